"""A job with a checkpoint whose batch job ends: it says how far it is, and goes on from there."""

import os
import signal
import time

import numpy as np
import pytest

import parcompute as pc
from parcompute.backends import base
from parcompute.machine.batch import deadline, tasks
from parcompute.workers import start

N_BLOCKS = 200


@pytest.fixture
def log(tmp_path):
    """Return a file, and the kernel that writes the number of each block into it."""
    file = tmp_path / "blocks"

    def kernel(block, rng):
        with file.open("a") as stream:
            stream.write(f"{block.index}\n")
        time.sleep(float(os.environ.get("NAP_S", "0.0")))
        return rng.random(2)

    return file, kernel


def blocks_in(file):
    return [int(line) for line in file.read_text().split()] if file.exists() else []


def total(backend, kernel, **more):
    with pc.Executor(1 if backend == "serial" else 2, backend=backend, schedule="dynamic") as executor:
        return executor.reduce_blocks(kernel, n_items=N_BLOCKS, block_items=1, seed=5, **more)


@pytest.fixture
def whole(log):
    """Return the result of one run without an end."""
    result = total("serial", log[1])
    log[0].unlink()
    return result


@pytest.mark.parametrize("backend", base.names()[:6])
def test_by_the_clock_no_block_begins_and_none_is_computed_twice(tmp_path, monkeypatch, log, whole, backend):
    file, kernel = log
    monkeypatch.setenv("SLURM_JOB_ID", "7")
    monkeypatch.setenv("NAP_S", "0.01")
    left = iter([1e6])  # at the second look the time is over, but for the blocks in progress
    monkeypatch.setattr(deadline, "end_s", lambda: 0.0)
    monkeypatch.setattr(deadline, "left_s", lambda: next(left, 4.0))
    with pytest.raises(
        pc.OutOfTime, match=rf"of {N_BLOCKS} blocks are kept; the job ends in 4 s.*; run it again"
    ) as told:
        total(backend, kernel, checkpoint=tmp_path / "job.h5")
    n_kept = told.value.n_kept
    assert told.value.n_blocks == N_BLOCKS
    assert n_kept < N_BLOCKS
    assert n_kept == len(blocks_in(file))
    monkeypatch.undo()
    assert np.array_equal(total("processes", kernel, checkpoint=tmp_path / "job.h5"), whole)
    assert sorted(blocks_in(file)) == list(range(N_BLOCKS))


@pytest.mark.parametrize("backend", ["serial", "threads", "processes", "auto", "pool"])
@pytest.mark.parametrize("number", deadline.SIGNALS)
def test_a_signal_ends_it_after_the_blocks_in_progress(tmp_path, monkeypatch, log, backend, number):
    file, kernel = log
    monkeypatch.setenv("SLURM_JOB_ID", "7")
    monkeypatch.setenv("NAP_S", "0.01")
    monkeypatch.setattr(deadline, "end_s", lambda: None)
    pid = os.getpid()

    def announcing(block, rng):
        if block.index == 5:
            os.kill(pid, number)
        return kernel(block, rng)

    with pytest.raises(pc.OutOfTime, match=f"{number.name} has announced the end of the job") as told:
        total(backend, announcing, checkpoint=tmp_path / "job.h5")
    assert 0 < told.value.n_kept < N_BLOCKS
    # In the calling thread it comes at any line, so the block in progress is lost; workers end theirs.
    assert len(blocks_in(file)) - told.value.n_kept <= (1 if backend == "serial" else 0)
    assert signal.getsignal(number) is signal.SIG_DFL


def test_a_job_that_is_complete_has_no_end(tmp_path, monkeypatch, log, whole):
    total("serial", log[1], checkpoint=tmp_path / "job.h5")
    monkeypatch.setenv("SLURM_JOB_ID", "7")
    monkeypatch.setattr(deadline, "end_s", lambda: 0.0)
    assert np.array_equal(total("serial", log[1], checkpoint=tmp_path / "job.h5"), whole)


def test_without_a_checkpoint_the_clock_ends_nothing(monkeypatch, log, whole):
    monkeypatch.setenv("SLURM_JOB_ID", "7")
    monkeypatch.setattr(deadline, "end_s", lambda: 0.0)
    assert np.array_equal(total("serial", log[1]), whole)


@pytest.mark.parametrize("start_method", ["fork", "forkserver", "spawn"])
def test_workers_ignore_both_signals(monkeypatch, start_method):
    monkeypatch.setenv("SLURM_JOB_ID", "7")
    start.stop_server()  # it began outside of the job
    with pc.Executor(1, start_method=start_method) as executor:
        executor.wait_until_ready()
        ignored = executor.submit(lambda: [signal.getsignal(n) is signal.SIG_IGN for n in deadline.SIGNALS]).result()
    assert ignored == [True, True]
    start.stop_server()


# --- one job over tasks that do not talk -------------------------------------------------------------------


def parts_of(monkeypatch, backend, kernel, path, numbers, n_parts=3):
    for number in numbers:
        monkeypatch.setenv(tasks.PART_VARIABLE, f"{number}/{n_parts}")
        with pytest.raises(SystemExit, match=rf"job\.{number}of{n_parts}\.h5: part {number}of{n_parts} is kept") as end:
            total(backend, kernel, checkpoint=path)
        assert end.value.code == 0
    monkeypatch.delenv(tasks.PART_VARIABLE)


@pytest.mark.parametrize("backend", base.names()[:6])
def test_tasks_compute_their_parts_and_the_whole_has_the_bits_of_one_run(tmp_path, monkeypatch, log, whole, backend):
    file, kernel = log
    parts_of(monkeypatch, backend, kernel, tmp_path / "job.h5", [2, 0, 1])
    assert sorted(blocks_in(file)) == list(range(N_BLOCKS))
    assert np.array_equal(total("processes", kernel, checkpoint=tmp_path / "job.h5"), whole)
    for part in tmp_path.glob("job.*of3.h5"):
        part.unlink()
    assert np.array_equal(total("serial", kernel, checkpoint=tmp_path / "job.h5"), whole)
    assert len(blocks_in(file)) == N_BLOCKS


def test_a_part_that_is_missing_is_computed_by_who_puts_them_together(tmp_path, monkeypatch, log, whole):
    file, kernel = log
    parts_of(monkeypatch, "serial", kernel, tmp_path / "job.h5", [0, 2])
    before = len(blocks_in(file))
    assert np.array_equal(total("threads", kernel, checkpoint=tmp_path / "job.h5"), whole)
    assert sorted(blocks_in(file)[before:]) == list(range(*tasks.Part(1, 3).of(N_BLOCKS)))


def test_parts_of_a_map_go_to_their_rows(tmp_path, monkeypatch):
    x = np.arange(100.0)
    for number in range(4):
        monkeypatch.setenv(tasks.PART_VARIABLE, f"{number}/4")
        with pc.Executor(2) as executor, pytest.raises(SystemExit):
            executor.map_blocks(np.sqrt, x, block_items=7, checkpoint=tmp_path / "map.h5")
    monkeypatch.delenv(tasks.PART_VARIABLE)
    with pc.Executor(2) as executor:
        assert np.array_equal(
            executor.map_blocks(np.sqrt, x, block_items=7, checkpoint=tmp_path / "map.h5"), np.sqrt(x)
        )


def test_a_part_without_a_seed_is_refused(tmp_path, monkeypatch, log):
    monkeypatch.setenv(tasks.PART_VARIABLE, "0/2")
    with pc.Executor(backend="serial") as executor, pytest.raises(ValueError, match="pass a seed, the same in all"):
        executor.reduce_blocks(log[1], n_items=4, block_items=1, checkpoint=tmp_path / "job.h5")


def test_a_part_of_another_job_is_refused(tmp_path, monkeypatch, log):
    parts_of(monkeypatch, "serial", log[1], tmp_path / "job.h5", [0])
    with (
        pc.Executor(backend="serial") as executor,
        pytest.raises(pc.CheckpointError, match=r"job\.0of3\.h5.*n_items was"),
    ):
        executor.reduce_blocks(log[1], n_items=4, block_items=1, seed=5, checkpoint=tmp_path / "job.h5")


@pytest.mark.parametrize("value", ["3/3", "-1/3", "1", "a/b"])
def test_a_part_that_is_none_is_refused(value):
    with pytest.raises(ValueError, match=r"PARCOMPUTE_PART=.*is no part"):
        tasks.own({tasks.PART_VARIABLE: value})
