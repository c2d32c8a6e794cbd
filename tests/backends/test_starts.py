"""Workers that end before they are ready: the others go on, and it is tried again."""

import os
import signal
import sys
import time
import warnings

import cloudpickle
import numpy as np
import pytest

import parcompute as pc
from parcompute.backends.processes import crew
from parcompute.machine import blas
from parcompute.workers import start, worker

# The workers of a test session can import the package, but not its tests.
cloudpickle.register_pickle_by_value(sys.modules[__name__])


@pytest.fixture
def broken(tmp_path, monkeypatch):
    """Return a file: as long as it exists, forked workers end as soon as they run."""
    flag, main = tmp_path / "broken", worker.main

    def main_unless_broken(*fds, **more):
        if flag.exists():
            with open(tmp_path / "starts", "a") as starts:
                starts.write("x")
            os._exit(7)
        main(*fds, **more)

    monkeypatch.setattr(worker, "main", main_unless_broken)
    monkeypatch.setattr(crew, "_PAUSES_S", (0.01, 0.05))
    return flag


def slow(block):
    time.sleep(0.005)  # the work
    return block.size, {os.getpid()}


def both(a, b):
    return a[0] + b[0], a[1] | b[1]


def work(executor, n=100):
    return executor.reduce_blocks(slow, n_items=n, block_items=1, combine=both)


def test_the_others_go_on_while_one_does_not_start_and_it_is_tried_again(broken, tmp_path):
    with pc.Executor(2, start_method="fork") as executor:
        executor.wait_until_ready()
        living, killed = executor.worker_pids
        broken.touch()
        os.kill(killed, signal.SIGKILL)
        with warnings.catch_warnings(record=True, action="always") as said:
            assert work(executor) == (100, {living})
            assert work(executor) == (100, {living})
        (once,) = [warning for warning in said if warning.category is UserWarning]  # and not that this process forks
        assert "exit status 7; what they printed says why; 1 of 2 workers go on" in str(once.message)
        assert executor.submit(abs, -1).result() == 1
        assert (tmp_path / "starts").stat().st_size > crew.FAILED_STARTS
        broken.unlink()
        for _ in range(20):
            n, pids = work(executor)
            assert n == 100
            if len(pids) == 2:
                break
        assert len(pids) == 2


@pytest.mark.parametrize("verb", ["job", "call"])
def test_where_none_is_left_it_is_given_up(broken, verb):
    with pc.Executor(2, start_method="fork") as executor, warnings.catch_warnings(action="ignore"):
        executor.wait_until_ready()
        broken.touch()
        for pid in executor.worker_pids:
            os.kill(pid, signal.SIGKILL)
            os.waitid(os.P_PID, pid, os.WEXITED | os.WNOWAIT)  # until then a call may still be handed to it
        with pytest.raises(pc.WorkerLost, match="ended before they were ready, the last with exit status 7"):
            work(executor) if verb == "job" else executor.submit(abs, -1).result()
        broken.unlink()
        assert work(executor, 4)[0] == 4


@pytest.mark.parametrize("late", [0, 1])
def test_under_static_a_worker_that_comes_late_finds_its_own_chunk(late, tmp_path, monkeypatch):
    start_one, main, fifo = crew.Crew._start, worker.main, tmp_path / "go"
    os.mkfifo(fifo)

    def main_late(*fds, **more):
        fifo.read_bytes()
        main(*fds, **more)

    def one_late(self, number):
        with monkeypatch.context() as patch:
            if number == late:
                patch.setattr(worker, "main", main_late)
            return start_one(self, number)

    def kernel(block):
        if block.index == (7 if late == 0 else 3):  # the last of the other's
            fifo.write_bytes(b"")
        return np.full(block.size, os.getpid())

    monkeypatch.setattr(crew.Crew, "_start", one_late)
    with pc.Executor(2, start_method="fork", schedule="static") as executor:
        out = pc.SharedArray.empty(8, int)
        pids = executor.map_blocks(kernel, n_items=8, block_items=1, out=out).tolist()
        assert pids == np.repeat(executor.worker_pids, 4).tolist()
        assert executor.timeline.chunks[["chunk", "worker", "attempt"]].tolist() in (
            [(0, 0, 0), (1, 1, 0)],
            [(1, 1, 0), (0, 0, 0)],
        )


def test_forked_workers_have_the_numeric_libraries_as_this_process_has_found_them():
    with pc.Executor(2, start_method="fork") as executor:
        assert {executor.submit(lambda: id(blas._found[1])).result() for _ in range(2)} == {id(blas._found[1])}


def test_a_forkserver_that_is_killed_while_it_starts_is_started_again(monkeypatch):
    pids, make = [], start._Server.__init__

    def make_and_kill_the_first(server):
        make(server)
        pids.append(server._pid)
        if len(pids) == 1:
            os.kill(server._pid, signal.SIGKILL)

    start.stop_server()
    monkeypatch.setattr(start._Server, "__init__", make_and_kill_the_first)
    with pc.Executor(1, start_method="forkserver") as executor:
        assert executor.submit(abs, -1).result() == 1
    assert len(pids) == 2
