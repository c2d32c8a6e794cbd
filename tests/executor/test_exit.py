"""What was submitted is finished when the program ends, as `concurrent.futures` promises."""

import contextlib
import subprocess
import sys
import textwrap
import threading
from concurrent.futures import ThreadPoolExecutor

import pytest

import parcompute as pc

# A start method changes nothing of this, and "auto" has the workers of "processes" for its calls.
WAYS = {
    "processes": ["shutdown", "open", "dropped", "map-shutdown", "map-dropped"],
    "threads": ["shutdown", "open", "dropped", "map-shutdown", "map-dropped"],
    "joblib": ["shutdown", "open", "map-dropped"],
    "auto": ["open", "map-dropped"],
    "processes-fork": ["dropped"],
    "pool": ["shutdown"],
}


def ended(program, *arguments):
    done = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(program), *arguments], capture_output=True, text=True, timeout=100
    )
    assert done.returncode == 0
    assert done.stderr == "" or "joblib" in arguments  # loky's tracker may warn of semaphores that loky has left
    return sorted(done.stdout.split())


SUBMITTED = """
    import os, sys, time
    import parcompute as pc

    def call(i):
        time.sleep(0.2)  # the work
        os.write(1, f"ran-{i}\\n".encode())

    def submitted(how):
        backend, _, method = sys.argv[1].partition("-")
        executor = pc.Executor(2, backend=backend, **({"start_method": method} if method else {}))
        if "map" in how:
            results = executor.map(call, range(3))
        else:
            futures = [executor.submit(call, i) for i in range(3)]
        if "shutdown" in how:
            executor.shutdown(wait=False)
        return executor

    how = sys.argv[2]
    if "dropped" in how:
        submitted(how)
    else:
        executor = submitted(how)
"""


@pytest.mark.parametrize(("backend", "how"), [(backend, how) for backend, ways in WAYS.items() for how in ways])
def test_submitted_calls_run_although_the_program_has_come_to_its_end(backend, how):
    assert ended(SUBMITTED, backend, how) == ["ran-0", "ran-1", "ran-2"]


def test_a_callback_may_shut_the_executor_down():
    program = """
        import parcompute as pc
        executor = pc.Executor(1)
        future = executor.submit(int)
        future.add_done_callback(lambda _: (executor.shutdown(), print("shut")))
        future.result()
    """
    assert ended(program) == ["shut"]


def test_joblib_workers_are_ended_by_two_at_once(monkeypatch):
    """A thread that has finished a map, and the program that has come to its end."""
    from parcompute.backends import joblib as backend

    executor = pc.Executor(2, backend="joblib")
    assert executor.submit(int).result() == 0
    real, made, others = threading.Thread, [], []
    starts = threading.Event(), threading.Event()

    class Slow(real):
        """The first waits at each line for the second, which comes into its way if it can."""

        def __init__(self, **more):
            super().__init__(**more)
            made.append(self)
            if self is made[0]:
                others.append(futures.submit(executor._backend.close, wait=True))
                starts[1].wait(0.2)

        def start(self):
            starts[self is not made[0]].set()
            if self is made[0]:
                with contextlib.suppress(TimeoutError):
                    others[0].result(0.2)
            else:
                starts[0].wait()
            super().start()

    with ThreadPoolExecutor(1) as futures:
        futures.submit(int).result()
        monkeypatch.setattr(backend.threading, "Thread", Slow)
        executor._backend.close(wait=False)
        monkeypatch.undo()
        assert others[0].result() is None
    assert len(made) == 1
    executor.shutdown()
