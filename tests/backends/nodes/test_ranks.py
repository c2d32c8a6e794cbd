"""The contract of the backends holds where the program is one of several MPI ranks."""

import importlib.util
import subprocess
import sys
from pathlib import Path

import engines
import pytest

CONTRACT = Path(__file__).parents[1] / "test_contract.py"


@pytest.mark.slow
@pytest.mark.parametrize("n_ranks", [2, 3])
def test_the_contract_holds_on_several_ranks(n_ranks, tmp_path):
    if engines.MPIEXEC is None or importlib.util.find_spec("mpi4py") is None:
        pytest.skip("there is no MPICH with mpi4py")
    ranks = [engines.MPIEXEC, "-n", str(n_ranks), sys.executable, "-m", "parcompute.mpi"]
    done = subprocess.run(
        [*ranks, "-m", "pytest", CONTRACT, "-n", "0", "-q", "-k", "mpi", "-p", "no:cacheprovider",
         "--basetemp", tmp_path / "inner"],
        env=engines.environment(), cwd=CONTRACT.parents[2], capture_output=True, text=True, timeout=280,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout[-5_000:] + done.stderr[-5_000:]
    assert " passed" in done.stdout
