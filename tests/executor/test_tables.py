"""Tables of pandas, polars and Arrow go in as blocks of rows and come out whole, and lists of numbers are arrays."""

import pickle
import sys

import cloudpickle
import numpy as np
import pandas as pd
import polars as pl
import psutil
import pyarrow as pa
import pytest

import parcompute as pc
from parcompute.jobs import pickling
from parcompute.memory.tables import Table

# The workers of a test session can import the package, but not its tests.
cloudpickle.register_pickle_by_value(sys.modules[__name__])

BACKENDS = ("serial", "threads", "processes", "auto", "pool", "joblib")

N = 1000
COLUMNS = {"x": np.random.default_rng(1).random(N), "n": np.arange(N), "name": [f"row {n}" for n in range(N)]}
FRAME = pd.DataFrame(COLUMNS | {"kind": pd.Categorical(["a", "b"] * 500)}, index=pd.Index(range(5, N + 5), name="at"))
TABLES = {
    "DataFrame": FRAME,
    "DataFrame of times": FRAME[["x"]].set_index(pd.date_range("2026-01-01", periods=N, freq="h")),
    "DataFrame of objects": pd.DataFrame({"o": pd.Series([[n] for n in range(N)], dtype=object)}),
    "Series": FRAME["x"],
    "Series of text": FRAME["name"],
    "polars": pl.DataFrame(COLUMNS),
    "Series of polars": pl.Series("x", COLUMNS["x"]),
    "Arrow": pa.table(COLUMNS),
}


@pytest.fixture(scope="module", autouse=True)
def threads_of_polars():
    """Start the threads of polars and Arrow, which stay until the program ends."""
    Table(TABLES["polars"], "polars").digest_parts()
    TABLES["polars"].lazy().select(pl.col("x").sum()).collect()
    pickle.loads(pickle.dumps(TABLES["polars"]))


@pytest.fixture(scope="module", params=BACKENDS)
def executor(request):
    """An executor of each backend, all of whose threads and processes run already."""
    with pc.Executor(1 if request.param == "serial" else 2, backend=request.param) as executor:
        executor.reduce_blocks(len, np.arange(4), block_items=1)
        executor.submit(len, ()).result()
        yield executor


def same(table):
    return table


def equal(one, other):
    return type(one) is type(other) and one.equals(other)


@pytest.mark.parametrize("kind", TABLES)
def test_the_kernel_gets_rows_of_the_table_and_their_tables_are_joined(executor, kind):
    table = TABLES[kind]
    assert equal(executor.map_blocks(same, table, block_items=30), table)
    blocks = list(executor.iter_blocks(same, table, block_items=300))
    assert [len(part) for _, part in blocks] == [300, 300, 300, 100]
    assert all(type(part) is type(table) for _, part in blocks)


def test_a_frame_keeps_its_index_and_its_dtypes(executor):
    found = executor.map_blocks(lambda frame, block: frame.assign(y=frame["x"] * 2), FRAME, block_items=30)
    pd.testing.assert_frame_equal(found, FRAME.assign(y=FRAME["x"] * 2))


def test_tables_of_some_of_the_rows_are_joined(executor):
    found = executor.map_blocks(lambda frame: frame[frame["n"] % 100 == 0], FRAME, block_items=30)
    pd.testing.assert_frame_equal(found, FRAME[FRAME["n"] % 100 == 0])


def test_arrays_and_tables_go_together_and_arrays_come_of_tables(executor):
    found = executor.map_blocks(lambda frame, y: frame["x"].to_numpy() + y, FRAME, np.arange(N), block_items=30)
    assert np.array_equal(found, COLUMNS["x"] + np.arange(N))
    total = executor.reduce_blocks(lambda frame: float(frame["x"].sum()), FRAME, block_items=30)
    assert total == pytest.approx(COLUMNS["x"].sum())
    out = np.empty(N)
    executor.map_blocks(lambda frame: frame["x"], FRAME, block_items=30, out=out)
    assert np.array_equal(out, COLUMNS["x"])


def test_a_kernel_changes_rows_of_its_own_only(executor):
    def kernel(frame):
        frame["x"] = 0.0
        return frame

    before = FRAME.copy()
    assert not executor.map_blocks(kernel, FRAME, block_items=30)["x"].any()
    pd.testing.assert_frame_equal(FRAME, before)


def at_times(frame, block, bad):
    if block.index in bad:
        raise ValueError
    return frame if block.index != 3 else frame["x"].to_numpy()


def test_what_is_no_table_among_tables_is_refused(executor):
    with pytest.raises(pc.KernelError, match=r"block 3 .*expected a table, as block 0 has returned one; got float64"):
        executor.map_blocks(at_times, FRAME, block_items=30, args=((),))


def test_failed_blocks_leave_no_rows_and_a_checkpoint_keeps_tables(executor, tmp_path):
    options = {"block_items": 30, "on_error": "keep", "checkpoint": tmp_path / "job"}
    found = executor.map_blocks(at_times, FRAME, args=((1,),), **options)
    expected = pd.concat([FRAME[:30], FRAME[60:90], FRAME[120:]])
    pd.testing.assert_frame_equal(found, expected)
    assert [error.block.index for error in executor.failures] == [1, 3]
    pd.testing.assert_frame_equal(executor.map_blocks(at_times, FRAME, args=((1,),), **options), expected)
    assert executor.timeline.chunks["chunk"].size <= 2
    with pytest.raises(pc.CheckpointError, match="array 0 was"):
        executor.map_blocks(at_times, FRAME.assign(x=1.0), args=((1,),), **options)
    executor.reduce_blocks(len, np.arange(4))  # a failure holds on to what its block has seen


@pytest.mark.parametrize("kind", ["polars", "Series of polars", "Arrow", "Series"])
def test_a_checkpoint_tells_tables_by_their_content(kind, tmp_path):
    with pc.Executor(backend="serial") as executor:
        options = {"block_items": 300, "checkpoint": tmp_path / "job"}
        for _ in range(2):
            assert executor.reduce_blocks(len, TABLES[kind], **options) == N
        assert len(executor.timeline.chunks) == 0
        with pytest.raises(pc.CheckpointError, match="array 0 was"):
            executor.reduce_blocks(len, TABLES[kind][::-1] if kind != "Arrow" else pa.table({"x": [1] * N}), **options)


LARGE = {"x": np.arange(500_000.0), "y": np.arange(500_000), "s": [str(n) for n in range(500_000)]}
LARGE_TABLES = {
    "pandas": pd.DataFrame(LARGE).astype({"s": "string[pyarrow]"}),  # the default of pandas 3 only
    "polars": pl.DataFrame(LARGE),
    "pyarrow": pa.table(LARGE),
}


@pytest.mark.parametrize("package", LARGE_TABLES)
def test_columns_travel_as_shared_memory(package):
    given = LARGE_TABLES[package]
    pickled, keep_alive = pickling.dumps([Table(given, package)], "a table")
    assert len(pickled) < 100_000
    assert sum(array.nbytes for array in keep_alive if isinstance(array, pc.SharedArray)) > 10_000_000
    (table,) = pickling.loads(pickled)
    assert table.value.equals(given)
    private, _ = pickling.dumps((len, (given,), {}), "a call")
    assert len(private) < 100_000


@pytest.mark.slow
def test_two_workers_have_one_copy_of_a_frame():
    frame = pd.DataFrame(np.ones((2**17, 256)))  # 256 MiB
    with pc.Executor(2) as executor:
        executor.reduce_blocks(len, frame[:4], block_items=1)
        before = own_bytes(executor)
        assert executor.reduce_blocks(lambda part: float(part.to_numpy().sum()), frame) == frame.size
        assert own_bytes(executor) - before < 2**26


def own_bytes(executor):
    """Return what all workers have in memory that they do not share."""
    found = [psutil.Process(pid).memory_info() for pid in executor.worker_pids]
    return sum(info.rss - info.shared for info in found)


def test_lists_of_numbers_are_arrays(executor):
    for numbers in ([1, 2, 3], (1.5, 2.5), range(5), [[1, 2], [3, 4]], [True, False], [1j]):
        found = executor.map_blocks(same, numbers)
        assert (found.dtype, found.tolist()) == (np.asarray(numbers).dtype, np.asarray(numbers).tolist())


def test_what_is_computed_later_says_what_to_pass(executor):
    for wrong, says in (
        (TABLES["polars"].lazy(), "array 0 is LazyFrame; pass x.collect()"),
        (pa.array([1, 2]), r"pass x.to_numpy\(\), or a Table"),
        ([None, 1], "array 0 is list, and not of numbers only"),
        (["a"], "use map, or pass numpy.array"),
    ):
        with pytest.raises(TypeError, match=says):
            executor.map_blocks(same, wrong)
