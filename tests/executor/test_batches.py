"""Batches of a map: quick calls travel together, and no worker is left with the long ones that follow."""

import collections
import sys
import threading
import time
import warnings

import cloudpickle
import pytest

import parcompute as pc

cloudpickle.register_pickle_by_value(sys.modules[__name__])


def who_sleeps(i):
    """Return who has run a call; from 300 on calls are long."""
    import os

    if i >= 300:
        time.sleep(0.02)  # the work
    return os.getpid(), threading.get_ident()


@pytest.mark.parametrize("backend", ["processes", "threads", "pool"])
def test_long_calls_that_follow_quick_ones_are_shared_by_all_workers(backend):
    with warnings.catch_warnings(action="ignore"), pc.Executor(4, backend=backend) as executor:  # more than CPUs
        executor.wait_until_ready()
        ran = list(executor.map(who_sleeps, range(332)))
    by_worker = collections.Counter(ran[300:])
    assert sum(by_worker.values()) == 32
    assert max(by_worker.values()) <= 14  # 8 each, where nothing disturbs them


def test_long_calls_among_quick_ones_are_in_order_and_run_once(tmp_path):
    log = tmp_path / "log"
    log.touch()

    def call(i, log=str(log)):
        if i % 50 == 49:
            time.sleep(0.01)  # the work
        with open(log, "a") as file:
            file.write(f"{i}\n")
        return i * i

    with pc.Executor(2) as executor:
        assert list(executor.map(call, range(1000))) == [i * i for i in range(1000)]
    assert sorted(map(int, log.read_text().split())) == list(range(1000))


def test_a_call_that_fails_behind_a_long_one_raises_in_its_place():
    def call(i):
        if i == 40:
            time.sleep(0.02)  # the work, at which a batch is broken off
        if i == 45:
            raise ValueError(i)
        return i

    with pc.Executor(2) as executor:
        results = executor.map(call, range(100))
        assert [next(results) for _ in range(45)] == list(range(45))
        with pytest.raises(ValueError, match="45"):
            next(results)


@pytest.mark.parametrize("backend", ["processes", "threads", "pool", "serial"])
def test_what_is_left_of_a_batch_runs_although_the_executor_was_shut_down(backend):
    def call(i):
        if i > 100:
            time.sleep(0.01)  # the work
        return i

    executor = pc.Executor(1, backend=backend)
    results = executor.map(call, range(110))
    executor.shutdown(wait=False)
    assert list(results) == list(range(110))
    executor.shutdown()


def test_a_chunksize_that_was_asked_for_is_kept():
    def call(i):
        import os

        time.sleep(0.002)  # the work
        return os.getpid()

    with pc.Executor(2) as executor:
        ran = list(executor.map(call, range(40), chunksize=20))
    assert len(set(ran[:20])) == len(set(ran[20:])) == 1
