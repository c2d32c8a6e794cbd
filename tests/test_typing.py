"""A user's program has the types that it should have, for mypy and for pyright, and its mistakes are found."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]


def run(*command):
    return subprocess.run(
        [sys.executable, "-m", *command], cwd=ROOT, capture_output=True, text=True, timeout=250,
        env=os.environ | {"PYRIGHT_PYTHON_IGNORE_WARNINGS": "1"},
    )  # fmt: skip


@pytest.mark.slow
def test_mypy_finds_the_types_that_the_program_states():
    pytest.importorskip("mypy", reason="mypy is not installed")
    done = run("mypy", "tests/typed")  # with the options and the cache of `make check`
    assert done.returncode == 0, done.stdout + done.stderr


@pytest.mark.slow
def test_pyright_finds_the_types_that_the_program_states():
    pytest.importorskip("pyright", reason="pyright is not installed")
    if run("pyright", "--version").returncode:
        pytest.skip("pyright has no node, or has not fetched itself: it is once downloaded with its first call")
    done = run("pyright", "--pythonpath", sys.executable)
    assert done.returncode == 0, done.stdout + done.stderr
