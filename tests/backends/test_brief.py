"""Short jobs wake as few workers as serve them, and wait for none that has nothing to do; whatever comes next."""

import os
import select
import signal
import threading
import time

import numpy as np
import pytest

import parcompute as pc
from parcompute.backends import kinds, threads
from parcompute.backends.processes.drive import Drive
from parcompute.backends.threads import _Pace
from parcompute.jobs.job import Job
from parcompute.jobs.partials import Partials
from parcompute.values.timeline import CHUNK_DTYPE

X = pc.share(np.arange(8.0))
HANGS_S = 60


def total(executor, kernel=np.sum, x=X):
    return executor.reduce_blocks(kernel, x, block_items=2)


def waiting_for_each_other(folder, x):
    """The first two blocks wait for each other once the folder is there, so that two workers must compute."""
    if folder.exists() and (mine := int(x[0]) // 2) < 2:
        (folder / str(mine)).touch()
        deadline = time.monotonic() + HANGS_S
        while not (folder / str(1 - mine)).exists():
            assert time.monotonic() < deadline
            time.sleep(0.001)
    return x.sum()


@pytest.mark.parametrize("backend", ["threads", "processes"])
@pytest.mark.parametrize("schedule", ["guided", "dynamic", "static", "static,1"])
def test_a_job_that_is_longer_than_those_before_gets_more_workers(backend, schedule, tmp_path):
    folder = tmp_path / "long"

    def kernel(x):
        return waiting_for_each_other(folder, x)

    with pc.Executor(2, backend=backend, schedule=schedule) as executor:
        executor.wait_until_ready()
        for _ in range(5):
            assert total(executor, kernel) == 28
        if schedule == "static":  # the first two blocks are one worker's
            return
        folder.mkdir()
        assert total(executor, kernel) == 28
        assert len(set(executor.timeline.chunks["worker"])) == 2


def int_or_float(block):
    return [block.index, 0.5][block.index % 2]


def test_what_a_worker_has_sent_is_waited_for_if_it_begins_and_ends_between_two_looks(monkeypatch):
    with pc.Executor(1) as executor:
        assert executor.reduce_blocks(int_or_float, n_items=4, block_items=1) == 3.0
        look = Drive._current_of

        def looked_at_slowly(drive, member):
            current, deadline = list(look(drive, member)), time.monotonic() + HANGS_S
            while not drive.board.is_full and time.monotonic() < deadline:
                time.sleep(0.001)
            return current

        monkeypatch.setattr(Drive, "_current_of", looked_at_slowly)
        assert executor.reduce_blocks(int_or_float, n_items=4, block_items=1) == 3.0


def test_a_plan_says_that_one_thread_computes(monkeypatch):
    monkeypatch.setattr(kinds, "_BRIEF_NS", HANGS_S * 10**9)  # on any machine, however busy
    monkeypatch.setattr(threads, "_ALONE_S", HANGS_S)
    with pc.Executor(2, backend="threads") as executor:
        total(executor)
        assert "in one thread" not in executor.plan.why
        total(executor)
        assert executor.plan.why.endswith("in one thread: the job is over before another one is awake")
        assert set(executor.timeline.chunks["worker"]) == {0}


def rows_of(cpu_ns, makespan_ns):
    rows = np.zeros(1, CHUNK_DTYPE)
    rows["cpu_ns"], rows["stored_ns"] = cpu_ns, makespan_ns
    return rows


def test_a_brief_job_says_nothing_about_the_speed_of_one_thread():
    pace = _Pace()
    pace.learn(rows_of(100_000, 100_000), 1, 300_000, alone=False)
    pace.learn(rows_of(100_000, 100_000), 1, 200_000, alone=True)
    assert pace.alone
    for _ in range(9):  # blocks of 240 µs, on two CPUs
        pace.learn(rows_of(32 * 240_000, 4_000_000), 32, 4_000_000, alone=False)
        assert not pace.alone


def test_long_blocks_are_never_one_threads_however_slow_a_first_job_was():
    pace = _Pace()
    pace.learn(rows_of(32 * 240_000, 16_000_000), 32, 16_000_000, alone=False)
    pace.learn(rows_of(32 * 240_000, 8_000_000), 32, 8_000_000, alone=True)
    assert not pace.alone


def test_all_threads_are_tried_again_now_and_then():
    pace, tried, alone = _Pace(), [], False
    for job in range(100):
        tried += [] if alone else [job]
        pace.learn(rows_of(100 * 20_000, 2_000_000), 100, 2_000_000 + 500_000 * (not alone), alone=alone)
        alone = pace.alone
    assert tried == [0, 3, 12, 45]
    pace.learn(rows_of(100 * 20_000, 1_000_000), 100, 1_000_000, alone=False)
    assert (pace.alone, pace.patience) == (False, 2), "all are faster now"


@pytest.mark.parametrize(
    ("cpu_ns", "makespan_ns", "alone"),
    [
        (100 * 20_000, 2_000_000, True),  # of two threads, one CPU was busy: they have taken turns
        (100 * 20_000, 1_050_000, True),  # nearly two were, and may have fought for the lock
        (100 * 20_000, 20_000_000, False),  # a tenth of one was: they wait, for files say
        (100 * 200_000, 20_000_000, False),  # blocks are not short
    ],
)
def test_one_thread_is_tried_where_blocks_are_short_and_threads_compute(cpu_ns, makespan_ns, alone):
    rows, pace = rows_of(cpu_ns, makespan_ns), _Pace()
    pace.learn(rows, 100, makespan_ns, alone=False)
    assert pace.alone == alone
    if alone:
        pace.learn(rows, 100, 2 * makespan_ns, alone=True)
        assert not pace.alone, "it was slower alone"


def test_one_thread_does_not_stay_alone_when_its_blocks_become_long(tmp_path, monkeypatch):
    monkeypatch.setattr(_Pace, "learn", lambda self, *_, **__: None)
    folder = tmp_path / "long"

    def kernel(block):
        if folder.exists() and block.index >= 50:
            waiting_for_each_other(folder, np.array([2 * (block.index - 50)]))
        return 1

    with pc.Executor(2, backend="threads", schedule="dynamic") as executor:
        executor.reduce_blocks(kernel, n_items=1_000, block_items=1)
        (pace,) = executor._backend._paces._known.values()
        pace.alone, pace.per_s = True, {False: 1_000.0, True: 1_000.0}
        folder.mkdir()
        assert executor.reduce_blocks(kernel, n_items=1_000, block_items=1) == 1_000


def test_many_blocks_are_not_one_threads_because_few_of_them_were(tmp_path):
    def kernel(block):
        seen.add(threading.get_ident())
        time.sleep(0.001)
        return 1

    seen = set()
    with pc.Executor(2, backend="threads") as executor:
        executor.reduce_blocks(lambda block: 1, n_items=2, block_items=1)
        executor._backend._paces.of(job_like(executor, kernel)).alone = True
        executor._backend._paces.of(job_like(executor, kernel)).brief = True
        assert executor.reduce_blocks(kernel, n_items=100, block_items=1) == 100
    assert len(seen) == 2


def job_like(executor, kernel):
    plan = pc.Plan.cut(100, 1, executor.schedule, 2)
    return Job(kernel, (), plan, Partials(plan))


def test_a_job_does_not_wait_for_a_worker_that_has_nothing_to_do():
    with pc.Executor(2) as executor:
        executor.wait_until_ready()
        assert total(executor) == 28
        for stopped in executor.worker_pids:
            executor._backend._crew.settle(executor._backend._n_jobs)  # else it may owe the end of the job before
            os.kill(stopped, signal.SIGSTOP)
            go_on = threading.Timer(HANGS_S, os.kill, (stopped, signal.SIGCONT))
            go_on.start()
            values = [executor.reduce_blocks(np.sum, X + n, block_items=2) for n in (1, 2)]
            was_stopped = go_on.is_alive()
            go_on.cancel()
            go_on.join()
            os.kill(stopped, signal.SIGCONT)
            assert was_stopped
            assert values == [36, 44]
            for n in range(20):
                assert executor.reduce_blocks(np.sum, X + n, block_items=2) == 28 + 8 * n
                assert len(executor.timeline.chunks) >= 1


@pytest.mark.parametrize("start_method", ["fork", "forkserver"])
def test_a_worker_that_dies_before_it_has_said_the_end_of_an_old_job_costs_nothing(start_method):
    with pc.Executor(2, start_method=start_method) as executor:
        for n in range(6):
            executor.wait_until_ready()
            victim = executor.worker_pids[n % 2]
            os.kill(victim, signal.SIGSTOP)
            assert executor.reduce_blocks(np.sum, X + n, block_items=1) == 28 + 8 * n
            ended = os.pidfd_open(victim)
            os.kill(victim, signal.SIGKILL)
            select.select([ended], [], [])  # a job with a death would wait for the next victim, which is stopped
            os.close(ended)
            assert executor.reduce_blocks(np.sum, X - n, block_items=1) == 28 - 8 * n
            assert executor.submit(abs, -n).result() == n


def test_jobs_and_calls_take_turns_while_an_end_is_due():
    with pc.Executor(2) as executor:
        executor.wait_until_ready()
        stopped = executor.worker_pids[1]
        os.kill(stopped, signal.SIGSTOP)
        assert total(executor) == 28
        futures = [executor.submit(abs, -n) for n in range(4)]
        os.kill(stopped, signal.SIGCONT)
        assert [future.result(HANGS_S) for future in futures] == [0, 1, 2, 3]
        assert total(executor) == 28
