"""What cannot work on several nodes is refused at once, in words that say what to do."""

import asyncio
import os
import subprocess
import sys
import traceback
from concurrent.futures.process import BrokenProcessPool
from unittest import mock

import cloudpickle
import engines
import numpy as np
import pytest

import parcompute as pc
from parcompute.backends.nodes import facts

# The programs on the hosts can import the package, but not its tests.
cloudpickle.register_pickle_by_value(sys.modules[__name__])

pytestmark = [pytest.mark.slow, pytest.mark.usefixtures("files_of_mpi")]


@pytest.fixture(scope="module")
def cluster():
    distributed = pytest.importorskip("distributed")
    options = {"threads_per_worker": 1, "dashboard_address": ":0", "processes": True}
    with mock.patch.dict(os.environ):  # Dask sets what its workers shall find, and lets it stand
        started = distributed.LocalCluster(n_workers=2, **options)
    with started as cluster, distributed.Client(cluster) as client:
        with pc.Executor(1, backend="dask", cluster=client) as executor:  # what Dask opens, and starts, once
            executor.submit(len, ()).result()
        yield cluster


def test_a_missing_extra_is_named(monkeypatch):
    monkeypatch.setitem(sys.modules, "distributed", None)
    monkeypatch.setitem(sys.modules, "mpi4py", None)
    with pytest.raises(ImportError, match=r"needs Dask: pip install 'parcompute\[dask\]'"):
        pc.Executor(backend="dask")
    with pytest.raises(ImportError, match=r"needs mpi4py and an MPI: pip install 'parcompute\[mpi\]'"):
        pc.Executor(backend="mpi")


def ended_badly(*command):
    """Run a program that fails; return what it says."""
    done = subprocess.run(
        [*command], env=engines.environment(), capture_output=True, text=True, timeout=engines.HANGS_S
    )
    assert done.returncode != 0
    return done.stderr.replace("\n", " ")


def test_an_address_without_a_scheduler():
    pytest.importorskip("distributed")
    program = "import parcompute as pc; pc.Executor(backend='dask', cluster='tcp://127.0.0.1:9')"
    said = ended_badly(sys.executable, "-c", program)  # a client of Dask that has not come to be leaves its thread
    assert "ConnectionError: there is no Dask scheduler at tcp://127.0.0.1:9" in said


def test_what_is_no_cluster(cluster):
    for wrong in (3, ["tcp://127.0.0.1:9"]):
        with pytest.raises(TypeError, match=r"pass a distributed\.Client, a cluster, an address"):
            pc.Executor(backend="dask", cluster=wrong)
    for backend in ("mpi", "processes", "threads", "auto"):
        with pytest.raises(ValueError, match=f"no meaning for backend '{backend}'"):
            pc.Executor(backend=backend, cluster=cluster)

    async def asynchronous():
        import distributed

        async with distributed.Client(cluster.scheduler_address, asynchronous=True, set_as_default=False) as client:
            with pytest.raises(TypeError, match="asynchronous=False"):
                pc.Executor(backend="dask", cluster=client)

    asyncio.run(asynchronous())


def test_more_nodes_than_there_are(cluster):
    with pytest.raises(ValueError, match=r"nodes=5, but the Dask cluster has 2 workers; scale it up"):
        pc.Executor(backend="dask", cluster=cluster, nodes=5)
    with pc.Executor(backend="dask", cluster=cluster, nodes=1) as executor:
        assert len(executor.nodes) == 1
    pytest.importorskip("mpi4py.MPI", exc_type=ImportError)
    with pytest.raises(ValueError, match=r"nodes=5, but MPI has 1 ranks; start more by mpiexec -n 5"):
        pc.Executor(backend="mpi", nodes=5)


@pytest.mark.parametrize("name", ["python", "numpy", "parcompute"])
def test_a_node_with_another_version(cluster, monkeypatch, name):
    ours = {**facts.versions(), name: "0.1"}
    monkeypatch.setattr(facts, "versions", lambda: ours)
    with pytest.raises(RuntimeError, match=rf"node .* has {name} .* \(here 0.1\); use one environment on all nodes"):
        pc.Executor(backend="dask", cluster=cluster)


def failing():
    raise OSError("no licence")


@pytest.mark.parametrize("backend", ["dask", "mpi"])
def test_an_initializer_that_fails(cluster, backend):
    if backend == "mpi":
        pytest.importorskip("mpi4py.MPI", exc_type=ImportError)
    options = {"cluster": cluster} if backend == "dask" else {}
    with (
        pytest.raises(BrokenProcessPool, match="no licence"),
        pc.Executor(1, backend=backend, initializer=failing, **options) as executor,
    ):
        executor.submit(len, ()).result()


def test_a_program_that_was_started_as_several_ranks_itself(tmp_path):
    pytest.importorskip("mpi4py.MPI", exc_type=ImportError)
    if engines.MPIEXEC is None:
        pytest.skip("there is no mpiexec of MPICH")
    program = "import parcompute as pc; pc.Executor(backend='mpi')"
    said = ended_badly(engines.MPIEXEC, "-n", "2", sys.executable, "-c", program)
    assert "start it by mpiexec -n N python -m parcompute.mpi script.py" in said


def test_what_only_the_host_of_the_caller_has(engine, hosts):
    def program(options, own):
        (own / "only_here.py").write_text("def kernel(x):\n    return x + 1\n")
        sys.path.insert(0, str(own))
        import only_here

        x = np.memmap(own / "x.npy", "f8", "w+", shape=(1_000,))
        found = []
        with pc.Executor(1, **options) as executor:
            for use in (
                lambda: executor.map_blocks(only_here.kernel, np.zeros(1_000), block_items=10),
                lambda: executor.map_blocks(lambda x, file: x + file[0], np.zeros(1_000), args=(x,), block_items=10),
                lambda: list(executor.map(only_here.kernel, range(100), chunksize=1)),
                lambda: list(executor.map(lambda _, file: file[0], range(100), [x] * 100, chunksize=1)),
            ):
                try:
                    use()
                except Exception as error:
                    found.append("".join(traceback.format_exception(error)))
                assert executor.reduce_blocks(np.sum, np.ones(100), block_items=1) == 100.0
        return found

    module, file, module_in_call, file_in_call = engine.run(program, hosts.own)
    for message in (module, module_in_call):
        assert "ModuleNotFoundError" in message
        assert "No module named 'only_here' (on node n" in message
    for message in (file, file_in_call):
        assert "OSError" in message
        assert "put it on a file system that all nodes see, or pass the array itself" in message
