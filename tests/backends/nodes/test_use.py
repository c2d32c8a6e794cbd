"""What an executor promises holds on several nodes: calls, jobs, ends, and what others call with it."""

import contextlib
import functools
import os
import signal
import sys
import threading
import time
from concurrent.futures import CancelledError

import cloudpickle
import engines
import numpy as np
import psutil
import pytest

import parcompute as pc

# The programs can import the package, but not its tests.
cloudpickle.register_pickle_by_value(sys.modules[__name__])

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module", params=["dask", "mpi"])
def here(request):
    """Each engine with two nodes on this machine."""
    if request.param == "dask":
        pytest.importorskip("distributed")
        with contextlib.closing(engines.OnDask(engines.Here(2))) as dask:
            yield dask
    else:
        pytest.importorskip("mpi4py.MPI", exc_type=ImportError)
        if engines.MPIEXEC is None:
            pytest.skip("there is no mpiexec of MPICH")
        yield engines.OnMPI(engines.Here(2))


def failing(n):
    return 1 // (n - 7)


class Counter:
    n = 0


def used(n, counter):
    counter.n += 1
    return n


def test_calls(here):
    def program(options):
        with pc.Executor(2, **options) as executor:
            nodes = {node.pid for node in executor.nodes}
            assert len(nodes) == 2
            assert list(executor.map(pow, range(100), range(100))) == [n**n for n in range(100)]
            assert list(executor.map(abs, range(-50, 0), chunksize=7)) == list(range(50, 0, -1))
            large = [np.full(2**18, n, "f8") for n in range(6)]  # 2 MiB each
            assert list(executor.map(np.sum, large)) == [n * 2.0**18 for n in range(6)]
            with pytest.raises(ZeroDivisionError) as caught:
                list(executor.map(failing, range(10)))
            assert "in failing" in str(caught.value.__cause__)
            parents = set(executor.map(lambda _: (time.sleep(0.01), os.getppid())[1], range(100), chunksize=1))
            assert len(parents) == 2
            # More calls than any node takes: the last ones wait here, and can be cancelled.
            gate = [executor.submit(time.sleep, 0.2) for _ in range(12)]
            waiting = [executor.submit(os.getpid) for _ in range(20)]
            assert waiting[-1].cancel()
            with pytest.raises(CancelledError):
                waiting[-1].result()
            assert all(isinstance(call.result(), int) for call in waiting[:-1])
            assert all(call.result() is None for call in gate)
            with pc.Executor(1, **options) as other:  # two at once
                futures = [ex.submit(pow, 3, n) for n in range(20) for ex in (executor, other)]
                one = executor.reduce_blocks(np.sum, np.arange(1e5), block_items=1_000)
                assert other.reduce_blocks(np.sum, np.arange(1e5), block_items=1_000) == one
                assert [future.result() for future in futures] == [3**n for n in range(20) for _ in range(2)]
            assert executor.submit(len, "four").result() == 4
            return True

    assert here.run(program)


def test_what_calls_with_an_executor(here):
    def program(options):
        import joblib
        from scipy import optimize

        with pc.Executor(2, **options) as executor:
            with joblib.parallel_config("parcompute", executor=executor):
                found = joblib.Parallel()(joblib.delayed(pow)(n, 2) for n in range(200))
            assert found == [n * n for n in range(200)]
            ask = {"rng": 1, "maxiter": 4, "updating": "deferred", "polish": False}
            here = optimize.differential_evolution(optimize.rosen, [(-2, 2)] * 3, **ask)
            there = optimize.differential_evolution(optimize.rosen, [(-2, 2)] * 3, workers=executor.map, **ask)
            assert here.x.tobytes() == there.x.tobytes()
            return True

    assert here.run(program)


def test_jobs(here, tmp_path):
    def program(options, folder):
        x = np.random.default_rng(0).standard_normal(50_000)
        with pc.Executor(backend="serial") as serial:
            expected = serial.map_blocks(np.sqrt, np.abs(x), block_items=100)
        told = []
        with pc.Executor(
            1, threads_per_worker=2, state=Counter, progress=lambda *seen: told.append(seen), **options
        ) as executor:
            assert executor.n_workers == 4
            assert len(executor.worker_pids) == 2
            assert executor.map_blocks(np.sqrt, np.abs(x), block_items=100).tobytes() == expected.tobytes()

            def counted(x, state):
                time.sleep(0.002)
                return np.full(len(x), used(1, state))

            assert executor.map_blocks(counted, x, block_items=100).sum() == len(x)
            assert told[-1] == (500, 500)
            assert [n for n, _ in told[-3:]] == sorted(n for n, _ in told[-3:])
            assert executor.submit(lambda: type(pc.worker_state()).__name__).result() == "Counter"

            firsts = []
            for _ in range(2):
                executor.reduce_blocks(int, n_items=6400, block_items=1)
                spans = executor.timeline.spans
                firsts.append(int((spans["stop"] - spans["first"])[spans["first"] == 0][0]))
            assert firsts[0] == 6400 // 2 // 32  # of what nothing is known
            assert firsts[0] < firsts[1] <= 6400 // 2 // 2  # it was the same before, but that is a guess

        def sometimes(x, block, broken):
            if block.index in broken:
                raise ValueError(block.index)
            if block.index == 77 and broken:
                time.sleep(30)
            return x + block.index

        with pc.Executor(2, **options) as executor:
            file = folder / "checkpoint.h5"
            broken = frozenset({0, 33, 34, 450})
            rows = executor.map_blocks(
                sometimes, x, args=(broken,), block_items=100, on_error="keep", block_timeout=1.0
            )
            failed = {trouble.block.index: type(trouble.__cause__ or trouble).__name__ for trouble in executor.failures}
            assert failed == {**dict.fromkeys(broken, "ValueError"), 77: "TimeoutError"}, failed
            whole = x + np.repeat(np.arange(500), 100)
            missing = np.repeat(np.isin(np.arange(500), [*broken, 77]), 100)
            assert (rows == np.where(missing, 0.0, whole)).all()

            def logged(x, block, rng, path):
                if os.path.exists(path + ".broken") and block.index % 7 == 3:
                    raise ValueError(block.index)
                with open(path, "ab", buffering=0) as log:
                    log.write(b".")
                return x + rng.random(len(x))

            path = str(folder / "log")
            open(path + ".broken", "w").close()
            job = dict(args=(path,), block_items=100, checkpoint=file, seed=4)
            executor.map_blocks(logged, x, on_error="keep", **job)
            assert [trouble.block.index % 7 for trouble in executor.failures] == [3] * 71
            assert os.path.getsize(path) == 500 - 71
            os.remove(path + ".broken")
            rows = executor.map_blocks(logged, x, **job)
            assert os.path.getsize(path) == 500
        with pc.Executor(backend="serial") as serial:
            job.pop("checkpoint")
            assert serial.map_blocks(logged, x, **job).tobytes() == rows.tobytes()
        return True

    assert here.run(program, tmp_path)


def test_ctrl_c_ends_a_job_and_the_executor_can_be_used_again(here):
    def program(options):
        signal.signal(signal.SIGINT, signal.default_int_handler)
        with pc.Executor(2, **options) as executor:
            for how in ("job", "job", "call"):
                executor.wait_until_ready()
                before = [psutil.Process(pid) for pid in executor.worker_pids]
                assert len(before) == 4
                threading.Timer(0.5, os.kill, (os.getpid(), signal.SIGINT)).start()
                wait = functools.partial(
                    executor.map_blocks, lambda x: (time.sleep(60), x)[1], np.zeros(100), block_items=1
                )
                if how == "call":
                    wait = executor.submit(time.sleep, 2).result
                with pytest.raises(KeyboardInterrupt):
                    wait()
                if how == "job":
                    _, left = psutil.wait_procs(before, timeout=10)
                    assert not left
                assert executor.reduce_blocks(np.sum, np.ones(100), block_items=1) == 100.0
                assert executor.submit(len, "four").result() == 4
        return True

    assert here.run(program)


def test_kill_workers_ends_what_runs(here):
    def program(options):
        executor = pc.Executor(2, **options)
        calls = [executor.submit(time.sleep, 60) for _ in range(10)]
        workers = [psutil.Process(pid) for pid in executor.worker_pids]
        executor.kill_workers()
        _, left = psutil.wait_procs(workers, timeout=10)
        assert len(workers) == 4
        assert not left
        errors = [call.exception(10) for call in calls if not call.cancelled()]
        assert all(isinstance(error, (pc.WorkerLost, CancelledError)) for error in errors), errors
        with pytest.raises(RuntimeError, match="closed; make a new one"):
            executor.submit(len, ())
        return len(errors)

    assert here.run(program) > 0


@pytest.mark.parametrize("how", ["shutdown", "open"])
def test_what_was_submitted_is_done_when_the_program_ends(here, how, tmp_path):
    def program(options, how, folder):
        def call(number):
            time.sleep(0.1)
            (folder / str(number)).touch()

        executor = pc.Executor(2, **options)
        for number in range(12):
            executor.submit(call, number)
        if how == "shutdown":
            executor.shutdown(wait=False)
        else:
            import builtins

            builtins.executor = executor
        return True

    assert here.run(program, how, tmp_path)
    assert len(list(tmp_path.iterdir())) == 12
