"""Results come block by block, and a reduction ends when its caller has enough, the same on every backend."""

import os
import signal
import sys
import threading
from pathlib import Path

import cloudpickle
import numpy as np
import pytest

import parcompute as pc
from parcompute.memory import shared
from parcompute.values.blocks import Schedule

# The workers of a test session can import the package, but not its tests.
cloudpickle.register_pickle_by_value(sys.modules[__name__])

BACKENDS = ("serial", "threads", "processes", "auto", "pool", "joblib")
X = np.random.default_rng(5).random(1000)


@pytest.fixture(scope="module", params=BACKENDS)
def executor(request):
    """An executor of each backend, all of whose threads and processes run already."""
    with pc.Executor(1 if request.param == "serial" else 2, backend=request.param) as executor:
        executor.reduce_blocks(len, np.arange(4), block_items=1)
        executor.submit(len, ()).result()
        yield executor


# --- iter_blocks -------------------------------------------------------------------------------------------


def drawn(x, block, rng, scale=1.0):
    return {block.index: (x.sum() + rng.random()) * scale}


@pytest.mark.parametrize("ordered", [True, False])
def test_each_block_comes_once_with_the_bits_of_a_reduction(executor, ordered):
    options = {"block_items": 30, "seed": 7, "kwargs": {"scale": 2.0}}
    came = list(executor.iter_blocks(drawn, X, ordered=ordered, **options))
    whole = executor.reduce_blocks(drawn, X, combine=joined, **options)
    assert executor.seed == 7
    assert [block.size for block, _ in came] == [min(30, 1000 - block.start) for block, _ in came]
    assert {index: value for _, result in came for index, value in result.items()} == whole
    assert all([*result] == [block.index] for block, result in came)
    if ordered:
        assert [block.index for block, _ in came] == list(range(34))


def joined(a, b):
    return a | b


def test_the_kernel_gets_the_rows_of_its_neighbours(executor):
    reached = {block.index: n for block, n in executor.iter_blocks(len, X, block_items=400, halo=3)}
    assert reached == {0: 403, 1: 406, 2: 203}


def test_an_iterator_that_is_closed_ends_the_job(executor, tmp_path):
    def kernel(block):
        Path(tmp_path, str(block.index)).touch()

    blocks = executor.iter_blocks(kernel, n_items=100, block_items=1)
    assert os.listdir(tmp_path) == []
    assert next(blocks)[0].index == 0
    blocks.close()
    assert executor.submit(max, 1, 2).result() == 2  # after all that was on its way
    assert 1 <= len(os.listdir(tmp_path)) <= 5
    assert list(blocks) == []


def test_no_more_is_computed_than_two_blocks_ahead_of_each_worker(executor, tmp_path):
    def kernel(block):
        Path(tmp_path, str(block.index)).touch()

    for block, _ in executor.iter_blocks(kernel, n_items=30, block_items=1):
        assert len(os.listdir(tmp_path)) <= block.index + 4


def test_a_serial_executor_computes_a_block_when_it_is_asked_for():
    computed = []
    with pc.Executor(backend="serial") as executor:
        for block, _ in executor.iter_blocks(lambda block: computed.append(block.index), n_items=5, block_items=1):
            assert computed == list(range(block.index + 1))


def test_blocks_come_as_they_are_finished():
    gate = threading.Event()

    def kernel(block):
        if block.index == 0:
            gate.wait()
        return block.index

    with pc.Executor(2, backend="threads") as executor:
        came = []
        for _, index in executor.iter_blocks(kernel, n_items=6, block_items=1, ordered=False):
            came.append(index)
            if len(came) == 5:
                gate.set()
    assert came == [1, 2, 3, 4, 5, 0]


def fails_at_two(block):
    if block.index == 2:
        raise ValueError("two")
    return block.index


def test_a_failed_block_raises_where_its_result_would_come_or_is_left_out(executor):
    blocks = executor.iter_blocks(fails_at_two, n_items=50, block_items=10)
    assert [next(blocks)[1], next(blocks)[1]] == [0, 1]
    with pytest.raises(pc.KernelError, match=r"failed on block 2 \(items 20 to 29\): ValueError: two") as caught:
        next(blocks)
    assert isinstance(caught.value.__cause__, ValueError)
    kept = executor.iter_blocks(fails_at_two, n_items=50, block_items=10, on_error="keep")
    assert [result for _, result in kept] == [0, 1, 3, 4]
    assert [error.block.index for error in executor.failures] == [2]


def test_a_block_that_kills_its_workers_is_named(start_method):
    def kernel(block):
        if block.index == 1:
            os.kill(os.getpid(), signal.SIGKILL)
        return block.index

    with pc.Executor(2, start_method=start_method) as executor:
        blocks = executor.iter_blocks(kernel, n_items=40, block_items=10, on_error="keep")
        assert [result for _, result in blocks] == [0, 2, 3]
        with pytest.raises(pc.WorkerLost, match=r"block 1 \(items 10 to 19\): ") as caught:
            list(executor.iter_blocks(kernel, n_items=40, block_items=10))
        assert caught.value.block.index == 1


def test_what_makes_no_sense_is_refused_before_the_first_block(executor):
    with pytest.raises(ValueError, match="the kernel asks for out"):
        executor.iter_blocks(lambda x, out: x, X)
    with pytest.raises(ValueError, match="on_error='no' is unknown"):
        executor.iter_blocks(len, X, on_error="no")


def test_an_iterator_outlives_no_executor():
    with pc.Executor(backend="serial") as executor:
        blocks = executor.iter_blocks(len, X, block_items=10)
        next(blocks)
    with pytest.raises(RuntimeError, match="this executor is closed"):
        next(blocks)


# --- reduce_blocks(until=) ---------------------------------------------------------------------------------


def sums(x, rng):
    return x.sum() + rng.random(), len(x)


@pytest.mark.parametrize("schedule", ["guided", "static", "dynamic,3"])
def test_the_result_is_that_of_the_first_1_2_4_blocks(executor, schedule, monkeypatch):
    shown = []

    def until(partial, n_items):
        shown.append((partial, n_items))
        return n_items >= 200

    monkeypatch.setattr(executor, "schedule", Schedule.parse(schedule))
    options = {"block_items": 30, "seed": 3}
    result = executor.reduce_blocks(sums, X, until=until, **options)
    plan, timeline = executor.plan, executor.timeline
    expected = [executor.reduce_blocks(sums, X[: n * 30], **options) for n in (1, 2, 4, 8)]
    assert shown == [(partial, n) for partial, n in zip(expected, (30, 60, 120, 240), strict=True)]
    assert result == expected[-1]
    assert (plan.n_items, plan.n_blocks, "enough after 8 of 34 blocks" in plan.why) == (240, 8, True)
    assert sorted(timeline.chunks["chunk"].tolist()) == list(range(plan.n_chunks))
    assert [*plan.edges[[0, -1]]] == [0, 8]


def test_if_it_is_never_enough_the_result_is_that_of_all_blocks(executor):
    asked = []
    result = executor.reduce_blocks(sums, X, block_items=30, seed=3, until=lambda _, n: asked.append(n))
    assert result == executor.reduce_blocks(sums, X, block_items=30, seed=3)
    assert asked == [30, 60, 120, 240, 480, 960]
    one = executor.reduce_blocks(sums, X, seed=3, until=pytest.fail)
    assert one == executor.reduce_blocks(sums, X, seed=3)


def objects(x, block):
    return {f"{block.index}": x.sum()} if block.index != 1 else [1]


def test_partials_may_be_objects_of_any_kind(executor):
    combined = executor.reduce_blocks(
        objects, X, block_items=30, combine=lambda a, b: [*a, *b], until=lambda partial, _: len(partial) == 4
    )
    assert combined == ["0", 1, "2", "3"]


@pytest.mark.parametrize("bad", [{0}, {0, 1, 2}, {2, 5}, set(range(34))])
def test_failed_blocks_are_left_out_of_what_is_shown(executor, bad):
    def kernel(x, block):
        if block.index in bad:
            raise ValueError
        return len(x)

    shown = []
    options = {"block_items": 30, "on_error": "keep", "until": lambda partial, n: shown.append((partial, n)) or n > 100}
    if len(bad) == 34:
        with pytest.raises(pc.KernelError, match="block 0"):
            executor.reduce_blocks(kernel, X, **options)
        assert shown == []
        return
    assert executor.reduce_blocks(kernel, X, **options) == 30 * (8 - len(bad))
    assert [error.block.index for error in executor.failures] == sorted(bad)
    assert all(partial == n for partial, n in shown)
    executor.reduce_blocks(len, X)  # a failure holds on to what its block has seen


def test_a_failed_block_ends_the_job(executor):
    with pytest.raises(pc.KernelError, match="block 2"):
        executor.reduce_blocks(fails_at_two, n_items=100, block_items=1, until=lambda *_: False)
    assert executor.reduce_blocks(fails_at_two, n_items=100, block_items=1, until=lambda _, n: n == 2) == 1


def test_what_until_raises_is_raised(executor):
    with pytest.raises(ZeroDivisionError):
        executor.reduce_blocks(len, X, block_items=30, until=lambda _, n: 1 / 0)
    with pytest.raises(TypeError, match="until=3 is int; pass a function"):
        executor.reduce_blocks(len, X, until=3)


def test_a_checkpoint_knows_the_blocks_of_all_portions(executor, tmp_path):
    (folder := tmp_path / "computed").mkdir()

    def kernel(x, block):
        Path(folder, f"{block.index} {len(os.listdir(folder))}").touch()
        return x.sum()

    options = {"block_items": 30, "checkpoint": tmp_path / "job.h5"}
    some = executor.reduce_blocks(kernel, X, until=lambda _, n: n >= 100, **options)
    assert executor.reduce_blocks(kernel, X, until=lambda _, n: n >= 100, **options) == some
    computed = [name.split()[0] for name in os.listdir(folder)]
    assert sorted(computed) == ["0", "1", "2", "3"]
    whole = executor.reduce_blocks(kernel, X, **options)
    assert sorted(int(name.split()[0]) for name in os.listdir(folder)) == list(range(34))
    assert whole == executor.reduce_blocks(np.sum, X, block_items=30)
    assert executor.reduce_blocks(kernel, X, until=lambda _, n: n >= 100, **options) == some


def test_large_arrays_are_copied_to_the_workers_once(monkeypatch):
    shares, share = [], shared.share
    monkeypatch.setattr(shared, "share", lambda array: shares.append(array.nbytes) or share(array))
    x = np.ones(200_000)
    with pc.Executor(2) as executor:
        kernel = lambda x, w: float(x.sum() + w[0])  # noqa: E731
        assert executor.reduce_blocks(kernel, x, block_items=20_000, args=(x,), until=lambda *_: False) == 200_010
    assert shares == [1_600_000] * 2


def test_a_killed_worker_changes_nothing(tmp_path):
    def kernel(x, block):
        if block.index in (0, 5) and not Path(tmp_path, str(block.index)).exists():
            Path(tmp_path, str(block.index)).touch()
            os.kill(os.getpid(), signal.SIGKILL)
        return x.sum()

    with pc.Executor(2) as executor:
        found = executor.reduce_blocks(kernel, X, block_items=30, until=lambda _, n: n > 200)
        assert len(executor.timeline.deaths) == 2
        assert found == executor.reduce_blocks(np.sum, X[:240], block_items=30)


def test_progress_counts_the_blocks_that_are_done():
    told = []
    with pc.Executor(backend="serial", progress=lambda n, of: told.append((n, of))) as executor:
        executor.reduce_blocks(len, X, block_items=30, until=lambda _, n: n > 200)
    assert all(0 <= n <= of == 34 for n, of in told)


def test_room_is_made_for_the_blocks_that_are_computed_only(executor):
    found = executor.reduce_blocks(lambda block: block.size, n_items=2**60, until=lambda _, n: n >= 2**18)
    assert found == executor.plan.n_items == 2**18
