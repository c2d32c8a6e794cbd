"""Workers die at random moments, at work and while they start, and all is computed as if they had not."""

import collections
import contextlib
import os
import signal
import time
import warnings

import numpy as np
import pytest
from kills import Hunter, Outside, opened, rounds
from programs import HANGS_S, seen_as
from work import ALWAYS, BLOCKS, ENDINGS, Refusing, Task, Work, bits, check_calls

import parcompute as pc


@rounds("start_method", fork=(6, 2_000, 10), forkserver=(6, 1_500, 10), spawn=(3, 300, 5))
def test_kills_of_workers_change_nothing(start_method, n_rounds, chance, tally, tmp_path, no_stacks):
    tally.kind = f"workers at work, {start_method}"
    n_jobs = n_executors = 0
    with pc.Executor(backend="serial") as serial:
        while tally.kills < n_rounds:
            n_executors += 1
            workers, threads = chance.randint(1, 3), chance.randint(1, 2)
            schedule = chance.choice(["static", "dynamic", "guided"]) + chance.choice(["", "", ",1", ",5"])
            options = {"threads_per_worker": threads, "schedule": schedule, "retries": 50}
            with opened(workers, start_method=start_method, **options) as executor:
                for number in range(chance.randint(2, 6)):
                    if number or chance.random() < 0.7:
                        executor.wait_until_ready()
                    n_jobs += 1
                    task = Task.drawn(chance, (*BLOCKS, "submit", "map"))
                    deadly = chance.sample(range(task.n), min(task.n, chance.choice([0, 0, 0, 1, 2])))
                    deadly = {number: (chance.choice(ENDINGS), chance.choice([1, 1, 2])) for number in deadly}
                    delays_s = [
                        chance.expovariate(chance.choice([30, 300])) for _ in range(chance.choice([0, 1, 2, 2]))
                    ]
                    folder = tmp_path / str(n_jobs)
                    folder.mkdir()
                    work = Work(str(folder), chance.choice([0.0, 0.0005, 0.002]), deadly)
                    context = f"{options}, {workers} workers, {task}, {work}, {delays_s}"
                    with Outside(executor, chance, delays_s) as outside:
                        if chance.random() < 0.2:
                            executor.wait_until_ready()
                        result = task.run(executor, work)
                    died = {*outside.killed, *work.suicides()}
                    tally.kills += len(died)
                    with seen_as("wrong bits"):
                        assert bits(result) == bits(task.run(serial, Work(""))), context
                    check_calls(work, task, died, context)
                    assert work.n_deadly() == sum(times for _, times in deadly.values()), context
                executor.wait_until_ready()
                assert executor.reduce_blocks(np.sum, np.ones(5), block_items=1) == 5.0
                assert executor.submit(pow, 2, 3).result(HANGS_S) == 8
                assert len(set(executor.worker_pids)) == workers
    print(f"{tally.kills} kills in {n_jobs} jobs of {n_executors} executors")


# How long a worker takes to start, about; a kill comes within that time after its fork.
START_S = {"fork": 0.01, "forkserver": 0.01, "spawn": 0.5}


@rounds("start_method", fork=(3, 1_800, 6), forkserver=(0, 1_800, 6), spawn=(0, 240, 4))
def test_kills_of_workers_that_start_change_nothing(start_method, n_rounds, chance, tally, no_stacks):
    """Two in a row cost nothing; each three may end one job, this or the next, with an error that says so."""
    tally.kind = f"workers that start, {start_method}"
    n_lost = 0
    with Hunter() as hunter, pc.Executor(backend="serial") as serial, warnings.catch_warnings():
        warnings.filterwarnings("ignore", ".* workers in a row ended before they were ready", UserWarning)
        with opened(1, start_method=start_method) as executor:  # so that the forkserver runs
            executor.wait_until_ready()
        while tally.kills < n_rounds:
            task, workers, n = (
                Task.drawn(chance, (*BLOCKS, "submit", "map")),
                chance.randint(1, 3),
                chance.choice([1, 2, 2, 2, 6]),
            )
            context = f"{workers} workers, at most {n} kills, {task}"
            with contextlib.ExitStack() as stack:
                with hunter.hunt(chance.getrandbits(32), n, chance.choice([0.1, 1]) * START_S[start_method]) as killed:
                    options = {"start_method": start_method, "schedule": chance.choice(["static", "dynamic", "guided"])}
                    executor = stack.enter_context(opened(workers, retries=50, **options))
                    if chance.random() < 0.3:
                        wait_until_ready(executor, n)
                    result = result_or_loss(task, executor, Work(""))
                tally.kills += len(killed)
                expected = bits(task.run(serial, Work("")))
                n_lost_here = 0
                for _ in range(2 + n // 3):  # the last deaths may be noticed by the next job only
                    if losses := losses_in(result):
                        n_lost_here += 1
                        assert all("in a row" in str(loss) for loss in losses), f"{losses}; {context}"
                    else:
                        with seen_as("wrong bits"):
                            assert bits(result) == expected, context
                    result = result_or_loss(task, executor, Work(""))
                assert n_lost_here <= len(killed) // 3, context
                assert not losses_in(result), context
                n_lost += n_lost_here
    print(f"{tally.kills} kills, {n_lost} jobs ended by more than two in a row")


def wait_until_ready(executor, n_kills):
    """Wait for the workers, but not for those that more than two kills in a row have kept from it."""
    try:
        executor.wait_until_ready()
    except pc.WorkerLost:
        assert n_kills > 2


def result_or_loss(task, executor, work):
    try:
        return task.run(executor, work)
    except pc.WorkerLost as loss:
        return loss


def losses_in(result):
    """Return the losses among the values of calls, or what has ended a job."""
    return [value for value in (result if isinstance(result, list) else [result]) if isinstance(value, pc.WorkerLost)]


@rounds("backend", pool=(2, 400, 4))
def test_kills_of_the_workers_of_a_pool_end_a_job_or_change_nothing(backend, n_rounds, chance, tally, no_stacks):
    """It cannot save a job, so each kill may end one with an error that says so, but not one more."""
    tally.kind = f"workers at work, {backend}"
    n_jobs = n_lost = 0
    with pc.Executor(backend="serial") as serial:
        while tally.kills < n_rounds:
            with opened(2, backend=backend, start_method="fork") as executor:
                for _ in range(chance.randint(1, 4)):
                    n_jobs += 1
                    executor.wait_until_ready()
                    task = Task.drawn(chance, (*BLOCKS, "submit", "map"))
                    work = Work("", chance.choice([0.0, 0.002]))
                    delays_s = [chance.expovariate(chance.choice([30, 300])) for _ in range(chance.choice([1, 2]))]
                    context = f"{task}, {work}, {delays_s}"
                    with Outside(executor, chance, delays_s) as outside:
                        result = result_or_loss(task, executor, work)
                    tally.kills += len(outside.killed)
                    if losses := losses_in(result):
                        assert outside.killed, f"{losses[0]}; {context}"
                        n_lost += 1
                    else:
                        with seen_as("wrong bits"):
                            assert bits(result) == bits(task.run(serial, Work(""))), context
                    # It may notice only then that a worker was killed when it had nothing more to do.
                    for _ in outside.killed[bool(losses) :]:
                        with contextlib.suppress(pc.WorkerLost):
                            executor.reduce_blocks(np.sum, np.ones(5), block_items=1)
                    value = executor.reduce_blocks(np.sum, np.ones(5), block_items=1)
                    with seen_as("wrong bits"):
                        assert value == 5.0, context
    print(f"{tally.kills} kills in {n_jobs} jobs, of which they have ended {n_lost}")


@rounds("start_method", fork=(2, 60, 1), forkserver=(2, 60, 1), spawn=(1, 15, 1))
def test_blocks_that_no_worker_survives_are_given_up_and_no_others(
    start_method, n_rounds, chance, tally, tmp_path, no_stacks
):
    tally.kind = f"workers at work, {start_method}"
    with pc.Executor(backend="serial") as serial:
        for number in range(n_rounds):
            workers, threads, retries = chance.randint(1, 3), chance.randint(1, 2), chance.randint(1, 3)
            schedule = chance.choice(["static", "dynamic", "guided"]) + chance.choice(["", ",1", ",5"])
            task = Task.drawn(chance, (*BLOCKS, "submit"))
            fatal = chance.sample(range(task.n), min(task.n - 1, chance.choice([1, 2, 4])))
            deadly = {block: (chance.choice(ENDINGS), ALWAYS) for block in fatal}
            if threads == 1 and retries > 1:  # otherwise a neighbour's death may be one too many for it
                others = chance.sample(range(task.n), min(task.n, 3))
                deadly = {block: (chance.choice(ENDINGS), retries - 1) for block in others} | deadly
            folder = tmp_path / str(number)
            folder.mkdir()
            work = Work(str(folder), chance.choice([0.0, 0.001]), deadly)
            context = f"{schedule}, {workers} workers, {threads} threads, {retries} retries, {task}, {work}"
            keep = {} if task.verb == "submit" else {"on_error": "keep"}
            options = {"threads_per_worker": threads, "schedule": schedule, "retries": retries}
            with opened(workers, start_method=start_method, **options) as executor:
                result = task.run(executor, work, **keep)
                if task.verb == "submit":
                    lost = {at: value for at, value in enumerate(result) if isinstance(value, pc.WorkerLost)}
                    result = [value for at, value in enumerate(result) if at not in lost]
                else:
                    lost = {failure.block.index: failure for failure in executor.failures}
                assert executor.reduce_blocks(np.sum, np.ones(5), block_items=1) == 5.0
            assert sorted(lost) == sorted(fatal), context
            for block, loss in lost.items():
                how = deadly[block][0]
                code = -how if isinstance(how, signal.Signals) else how
                assert isinstance(loss, pc.WorkerLost), context
                if threads == 1:
                    assert loss.exitcodes == (code,) * retries, context
            if task.verb == "submit":
                expected = task.run(serial, Work(""))
                expected = [value for at, value in enumerate(expected) if at not in fatal]
            else:
                expected = task.run(serial, Refusing("", deadly=dict.fromkeys(fatal)), **keep)
            tally.kills += len(work.suicides())
            with seen_as("wrong bits"):
                assert bits(result) == bits(expected), context
            check_calls(work, task, set(work.suicides()), context)
            if threads == 1:
                counts = collections.Counter(work.calls()[:, 2].tolist())
                assert {block: counts[block] for block in fatal} == dict.fromkeys(fatal, retries), context


@pytest.mark.parametrize("schedule", ["static,1", "dynamic,1", "guided"])
@pytest.mark.parametrize("fatal", [(0, 1), (0, 1, 2, 5)])
def test_blocks_that_kill_side_by_side_in_the_threads_of_a_worker_are_given_up(schedule, fatal):
    def kernel(block):
        time.sleep(0.02)  # likely, both threads are at work then; what comes out is the same if not
        if block.index in fatal:
            os._exit(3)
        time.sleep(0.02)  # and likely, an innocent neighbour is hit
        return 1

    with opened(1, start_method="fork", threads_per_worker=2, schedule=schedule) as executor:
        assert executor.reduce_blocks(kernel, n_items=6, block_items=1, on_error="keep") == 6 - len(fatal)
        assert [failure.block.index for failure in executor.failures] == list(fatal)
