"""A call that was sent ahead to a worker is taken back where another has nothing to do, and each runs once."""

import collections
import os
import random
import signal
import time

import pytest

import parcompute as pc


def nothing():
    return None


def waits_for(path):
    while not os.path.exists(path):
        time.sleep(0.001)
    return path


def noted(log, number, duration_s):
    """Note that a call has begun, and spin for so long."""
    with open(log, "ab", buffering=0) as file:
        file.write(b"%d\n" % number)
    end = time.perf_counter() + duration_s
    while time.perf_counter() < end:
        pass
    return number


def counted(log):
    with open(log) as file:
        return collections.Counter(map(int, file))


def test_nothing_waits_behind_a_long_call_while_another_worker_is_idle(tmp_path, start_method):
    with pc.Executor(2, start_method=start_method) as executor:
        for round_ in range(5):
            flag = tmp_path / f"go {round_}"
            for future in [executor.submit(nothing) for _ in range(30)]:  # so that calls are known to be short
                future.result()
            long = executor.submit(waits_for, str(flag))
            others = [executor.submit(nothing) for _ in range(12)]
            assert [future.result() for future in others] == [None] * 12
            assert not long.done()
            flag.touch()
            assert long.result() == str(flag)


@pytest.mark.filterwarnings("ignore:.*they will take turns")
@pytest.mark.parametrize("n_workers", [2, 4])
def test_each_call_runs_once_whoever_takes_it(tmp_path, n_workers):
    rng, log, n_calls = random.Random(1), tmp_path / "log", 0
    with pc.Executor(n_workers) as executor:
        for _ in range(60):
            lengths = [rng.choice([0, 0, 0, 1e-4, 1e-3, 8e-3]) for _ in range(rng.randrange(1, 6 * n_workers))]
            numbers = range(n_calls, n_calls + len(lengths))
            futures = [executor.submit(noted, log, i, s) for i, s in zip(numbers, lengths, strict=True)]
            if rng.random() < 0.3:  # jobs and calls take turns
                assert executor.reduce_blocks(lambda: 1, n_items=4, block_items=1) == 4
            assert [future.result() for future in futures] == list(numbers)
            n_calls += len(lengths)
    assert counted(log) == dict.fromkeys(range(n_calls), 1)


def test_a_killed_worker_loses_no_call_and_no_other_call_runs_again(tmp_path):
    rng, log, n_kills = random.Random(2), tmp_path / "log", 0
    with pc.Executor(2) as executor:
        futures = [executor.submit(noted, log, i, rng.choice([1e-4, 1e-3, 5e-3])) for i in range(400)]
        for i in range(40, 400, 40):
            futures[i].result()
            os.kill(executor.worker_pids[i // 40 % 2], signal.SIGKILL)
            n_kills += 1
        assert [future.result() for future in futures] == list(range(400))
    runs = counted(log)
    assert sorted(runs) == list(range(400))
    assert sum(runs.values()) <= 400 + n_kills


@pytest.mark.parametrize("backend", ["processes", "auto"])
def test_a_worker_that_must_leave_after_some_calls_is_given_no_more(tmp_path, backend):
    log = tmp_path / "log"
    with pc.Executor(2, backend=backend, max_tasks_per_child=3) as executor:
        assert list(executor.map(noted, [log] * 60, range(60), [0, 0, 2e-3] * 20, chunksize=1)) == list(range(60))
    assert counted(log) == dict.fromkeys(range(60), 1)
