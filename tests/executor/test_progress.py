"""A job tells how far it is while it runs."""

import threading

import pytest

import parcompute as pc
from parcompute.backends.auto.auto import Auto
from parcompute.backends.auto.probe import Verdict
from parcompute.backends.processes.processes import Processes

BACKENDS = ("serial", "threads", "processes", "auto", "pool", "joblib")


@pytest.mark.parametrize("backend", BACKENDS)
def test_progress_grows_to_the_end_on_every_backend(backend):
    told = []
    workers = None if backend == "serial" else 2
    with pc.Executor(workers, backend=backend, progress=lambda done, total: told.append((done, total))) as executor:
        executor.reduce_blocks(lambda block: sum(range(2_000_000)), n_items=8, block_items=1)
    done = [n for n, _ in told]
    assert done == sorted(done)
    assert {total for _, total in told} == {8}
    assert told[-1] == (8, 8)


class Listener:
    """Notes what is told, and waits to be told something once more."""

    def __init__(self):
        self.told, self._news = [], threading.Condition()

    def __call__(self, done, total):
        with self._news:
            self.told.append(done)
            self._news.notify_all()

    def wait(self, n=2):
        """Wait for reports of which the last, at least, has begun after this call."""
        with self._news:
            goal = len(self.told) + n
            assert self._news.wait_for(lambda: len(self.told) >= goal, 30)


def test_what_threads_have_done_is_not_taken_back_when_processes_go_on(monkeypatch):
    listener = Listener()

    def watch(self, walks, evidence):
        for _ in range(2):
            walks.begin()
        while walks.board.n_done < 2:
            walks.over(0.001)
        return Verdict("processes", "asked for")

    def drive(self, job):
        listener.wait()
        return plain(self, job)

    plain = Processes._drive
    monkeypatch.setattr(Auto, "_watch", watch)
    monkeypatch.setattr(Processes, "_drive", drive)
    with pc.Executor(2, backend="auto", progress=listener) as executor:
        executor.reduce_blocks(lambda block: sum(range(200_000)), n_items=64, block_items=1)
        assert "asked for" in executor.plan.why
    assert listener.told == sorted(listener.told)
    assert 2 in listener.told[1:] or listener.told[0] >= 2


@pytest.mark.parametrize("backend", BACKENDS)
def test_what_is_done_is_not_taken_back_between_the_portions_of_a_reduction(backend):
    listener = Listener()

    def enough(partial, n_items):
        listener.wait()
        return n_items >= 4

    with pc.Executor(1 if backend == "serial" else 2, backend=backend, progress=listener) as executor:
        executor.reduce_blocks(lambda block: 1, n_items=8, block_items=1, until=enough)
    assert listener.told == sorted(listener.told)
    assert {1, 2, 4, 8} <= set(listener.told)


@pytest.mark.parametrize("backend", BACKENDS)
def test_blocks_that_nobody_has_taken_yet_are_done(backend):
    listener = Listener()
    with pc.Executor(1 if backend == "serial" else 2, backend=backend, progress=listener) as executor:
        for _ in executor.iter_blocks(lambda block: 1, n_items=2, block_items=1):
            listener.wait()
    assert listener.told == sorted(listener.told)
    assert {1, 2} <= set(listener.told) if backend == "serial" else 2 in listener.told[:-1]


def test_a_failed_job_does_not_claim_to_be_at_its_end():
    told = []
    with (
        pc.Executor(backend="serial", progress=lambda done, total: told.append(done)) as executor,
        pytest.raises(pc.KernelError),
    ):
        executor.reduce_blocks(lambda block: 1 // (3 - block.index), n_items=8, block_items=1)
    assert 8 not in told


def test_no_thread_runs_for_a_job_without_progress():
    names = []
    with pc.Executor(backend="serial") as executor:
        executor.reduce_blocks(lambda block: names.extend(t.name for t in threading.enumerate()) or 0, n_items=1)
    assert "parcompute-progress" not in names


@pytest.mark.parametrize("progress", [False, 1, "bar"])
def test_progress_is_a_function_or_true(progress):
    with pytest.raises(TypeError, match=f"progress={progress!r} is .*; pass a function, True or None"):
        pc.Executor(backend="serial", progress=progress)
