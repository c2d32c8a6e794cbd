"""A job tells how far it is while it runs."""

import threading

import pytest

import parcompute as pc

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
