"""Arrays of every layout, dtype and home go in, and results of every kind come out, the same as without parcompute."""

import math
import os
import re
import sys

import cloudpickle
import dask.array
import h5py
import numpy as np
import psutil
import pytest
import xarray
import zarr

import parcompute as pc
from parcompute.jobs import pickling

# The workers of a test session can import the package, but not its tests.
cloudpickle.register_pickle_by_value(sys.modules[__name__])

# Each way to move data: none, threads, shared memory, a task queue, joblib's memory maps.
BACKENDS = ("serial", "threads", "processes", "auto", "pool", "joblib")


@pytest.fixture(scope="module", params=BACKENDS)
def executor(request):
    """An executor of each backend, all of whose threads and processes run already."""
    with pc.Executor(1 if request.param == "serial" else 2, backend=request.param) as executor:
        executor.reduce_blocks(len, np.arange(4), block_items=1)
        executor.submit(len, ()).result()
        yield executor


def identical(x):
    return x.copy()


# --- layouts and dtypes ------------------------------------------------------------------------------------


class Subclass(np.ndarray):
    pass


RNG = np.random.default_rng(2)
BASE = RNG.random((60, 14, 3))
RECORDS = np.zeros(50, [("id", "i4"), ("at", "f8", (2,)), ("tag", "S3"), ("on", "?")])
RECORDS["id"], RECORDS["at"], RECORDS["tag"] = np.arange(50), RNG.random((50, 2)), b"ab"
PACKED = np.frombuffer(b"!" + BASE.tobytes(), np.uint8)[1:].view("f8")  # not aligned

ARRAYS = {
    "C order": BASE,
    "Fortran order": np.asfortranarray(BASE),
    "strided": BASE[::2, 1::3],
    "backwards": BASE[::-1],
    "backwards inside": BASE[:, ::-2, ::-1],
    "transposed": BASE.transpose(1, 2, 0),
    "broadcast": np.broadcast_to(BASE[0], (30, 14, 3)),
    "unaligned": PACKED,
    "other byte order": BASE.astype(">f8"),
    "structured": RECORDS,
    "a field of it": RECORDS["at"],
    "read-only": np.frombuffer(BASE.tobytes()),
    "float32": BASE.astype("f4"),
    "float16": BASE.astype("f2"),
    "long double": BASE.astype("g"),
    "complex64": (BASE + 1j).astype("c8"),
    "int8": (BASE * 100).astype("i1"),
    "uint64": (BASE * 2**64 * 0.99).astype("u8"),
    "bool": BASE > 0.5,
    "bytes": np.array([b"one", b"four"] * 20),
    "text": np.array(["één", "four"] * 20),
    "datetime": np.arange("2020-01-01", "2020-03-01", dtype="M8[D]"),
    "nan and inf": np.array([np.nan, np.inf, -np.inf, -0.0] * 10),
    "one item": BASE[:1],
    "no items": BASE[:0],
    "no bytes per item": np.empty((20, 0)),
    "2-D": BASE[:, :, 0],
    "subclass": BASE.view(Subclass),
}


@pytest.mark.parametrize("name", ARRAYS)
def test_a_kernel_gets_the_items_of_any_array(executor, name):
    x = ARRAYS[name]
    before = x.tobytes()
    result = executor.map_blocks(identical, x, block_items=7)
    assert (type(result), result.dtype, result.shape) == (np.ndarray, x.dtype, x.shape)
    assert result.tobytes() == before == x.tobytes()


@pytest.mark.parametrize("name", ["C order", "strided", "backwards", "transposed", "read-only", "unaligned"])
@pytest.mark.parametrize("shared", [False, True], ids=["plain", "shared"])
def test_every_backend_gives_a_kernel_the_same_kind_of_block(executor, name, shared):
    x = pc.share(ARRAYS[name]) if shared else ARRAYS[name]

    def kernel(x):
        flags = x.flags
        return {(type(x), x.dtype.str, x.shape[1:], flags.c_contiguous, flags.aligned, flags.writeable)}

    seen = executor.reduce_blocks(kernel, x, block_items=6, combine=set.union)
    assert seen == {(np.ndarray, "<f8", x.shape[1:], True, True, False)}


def test_slices_of_a_shared_array_are_inputs_like_any_other(executor):
    x = pc.share(BASE)
    for view in (x[5:], x[::-1], x[::3, 2], x[:, ::2], x[7], x.T):
        assert executor.map_blocks(identical, view, block_items=2).tobytes() == view.tobytes()


def test_arrays_of_one_length_go_in_together_whatever_their_items_are(executor):
    arrays = BASE[:50], RECORDS, np.arange(50) > 9
    result = executor.map_blocks(lambda x, r, on: x.sum(axis=(1, 2)) + r["id"] + on, *arrays, block_items=9)
    expected = np.concatenate([x.sum(axis=(1, 2)) for x in np.split(BASE[:50], range(9, 50, 9))])
    assert result.tobytes() == (expected + RECORDS["id"] + arrays[2]).tobytes()


def test_the_same_array_may_go_in_twice(executor):
    x = pc.share(np.arange(20.0))
    assert executor.map_blocks(np.multiply, x, x, block_items=3).tolist() == (np.arange(20.0) ** 2).tolist()


def test_an_input_that_changes_between_two_jobs_is_seen_as_it_is(executor):
    for x in (np.zeros(10), np.zeros(300_000), pc.share(np.zeros(300_000))):
        for step in (1.0, 2.0):
            x += 1
            assert executor.reduce_blocks(np.sum, x) == step * len(x)


@pytest.mark.slow
def test_more_than_2_to_the_31_items_are_counted_exactly():
    n_items = 2**31 + 2**28
    if psutil.virtual_memory().available < 2 * n_items or psutil.disk_usage("/dev/shm").free < n_items:
        pytest.skip(f"needs {n_items / 2**30:.1f} GiB of shared memory, twice that free")
    x = pc.SharedArray.empty(n_items, np.uint8)
    x[[0, 2**31 - 1, 2**31, n_items - 1]] = 1, 2, 4, 8
    with pc.Executor(2) as executor:
        found = executor.reduce_blocks(
            lambda x, block: {block.start + i: int(x[i]) for i in (0, len(x) - 1) if x[i]},  # all four are at an edge
            x,
            block_items=2**26,
            combine=lambda a, b: a | b,
        )
        assert executor.plan.n_items == n_items
    assert found == {0: 1, 2**31 - 1: 2, 2**31: 4, n_items - 1: 8}


# --- the empty and the small -------------------------------------------------------------------------------


def test_of_no_items_the_kernel_says_what_an_empty_result_looks_like(executor):
    result = executor.map_blocks(lambda x: (x.astype("i2"), x[:, None] * [1.0, 2.0]), np.empty(0))
    assert [(array.shape, array.dtype.char) for array in result] == [((0,), "h"), ((0, 2), "d")]
    assert executor.reduce_blocks(np.sum, np.empty(0)) == 0.0
    assert executor.reduce_blocks(lambda block: [block.index, block.size], n_items=0) == [0, 0]
    assert executor.plan.n_blocks == 1


def test_a_single_block_is_enough(executor):
    assert executor.reduce_blocks(np.sum, np.ones(3), block_items=100) == 3.0


def test_default_blocks_are_those_of_every_backend(executor):
    executor.reduce_blocks(np.sum, np.ones(200_000, "f4"))
    assert (executor.plan.block_items, executor.plan.n_blocks) == (131_072, 2)


# --- files -------------------------------------------------------------------------------------------------


@pytest.fixture
def file_of(tmp_path):
    """Write an array behind a header of 24 bytes."""

    def write(array):
        path = tmp_path / "array.bin"
        path.write_bytes(b"a header of odd length.." + array.tobytes())
        return path

    return write


@pytest.mark.parametrize("mode", ["r", "r+", "c"])
def test_a_memory_map_and_its_slices_are_inputs(executor, file_of, mode):
    big = RNG.random((4_000, 50))
    x = np.memmap(file_of(big), "f8", mode, offset=24, shape=big.shape)
    for view, same in (
        (x, big),
        (x[100:], big[100:]),
        (x[::7, 3:9], big[::7, 3:9]),
        (x[::-1], big[::-1]),
        (x.T, big.T),
    ):
        result = executor.map_blocks(identical, view, block_items=11)
        assert type(result) is np.ndarray
        assert result.tobytes() == same.tobytes()


@pytest.mark.parametrize("mode", ["r+", "c"])
def test_what_was_written_to_a_memory_map_is_seen_before_it_is_flushed(executor, file_of, mode):
    x = np.memmap(file_of(np.zeros(1_000)), "f8", mode, offset=24)
    x[::2] = 1
    assert executor.reduce_blocks(np.sum, x, block_items=100) == 500.0


def test_a_memory_map_can_be_an_output(executor, file_of):
    path = file_of(np.zeros(100))
    target = np.memmap(path, "f8", "r+", offset=24)
    assert executor.map_blocks(np.sqrt, np.arange(100.0), out=target, block_items=7) is target
    target.flush()
    assert np.fromfile(path, offset=24).tolist() == np.sqrt(np.arange(100.0)).tolist()


def test_the_rows_of_a_memory_map_are_not_copied_on_their_way(file_of):
    x = np.memmap(file_of(RNG.random(500_000)), "f8", "r", offset=24)
    pickled, keep_alive = pickling.dumps((identical, (x, x[5:]), {}), "the call")
    assert len(pickled) < 10_000
    assert [one for one in keep_alive if isinstance(one, pc.SharedArray)] == []
    one, other = pickling.loads(pickled)[1]
    assert (one.tobytes(), other.tobytes()) == (x.tobytes(), x[5:].tobytes())
    assert one.flags.writeable  # a copy on write


@pytest.mark.parametrize("mode", ["r", "r+"])
@pytest.mark.parametrize("chunks", [None, (16, 5)], ids=["contiguous", "chunked"])
def test_an_hdf5_dataset_is_an_input(executor, tmp_path, mode, chunks):
    data = RNG.random((500, 10))
    with h5py.File(tmp_path / "data.h5", "w") as file:
        file.create_dataset("group/data", data=data, chunks=chunks, compression="gzip" if chunks else None)
    with h5py.File(tmp_path / "data.h5", mode) as file:
        result = executor.map_blocks(identical, file["group/data"], block_items=13)
        assert result.tobytes() == data.tobytes()


def test_a_dataset_that_was_not_flushed_yet_is_seen_as_it_is(executor, tmp_path):
    with h5py.File(tmp_path / "data.h5", "w") as file:
        file["data"] = np.zeros(100)
        file["data"][::2] = 1
        assert executor.reduce_blocks(np.sum, file["data"], block_items=9) == 50.0


def test_a_dataset_in_memory_is_an_input(executor):
    with h5py.File("nowhere.h5", "w", driver="core", backing_store=False) as file:
        file["data"] = np.arange(100.0)
        assert executor.reduce_blocks(np.sum, file["data"], block_items=9) == 4950.0
    assert not os.path.exists("nowhere.h5")


def test_rows_of_a_dataset_are_read_only_like_those_of_an_array(executor, tmp_path):
    def kernel(x):
        x += 1
        return x

    for mode in ("w", "r"):
        with h5py.File(tmp_path / "data.h5", mode) as file:
            if mode == "w":
                file["data"] = np.zeros(20)
            with pytest.raises(pc.KernelError, match="read-only"):
                executor.map_blocks(kernel, file["data"])


def test_a_dataset_goes_through_args_and_closures_too(executor, tmp_path):
    with h5py.File(tmp_path / "data.h5", "w") as file:
        file["data"] = np.arange(10.0)
    with h5py.File(tmp_path / "data.h5", "r") as file:
        if executor.backend == "joblib":
            pytest.skip("joblib pickles kernels itself, and an open dataset it cannot send")
        data = file["data"]
        assert executor.reduce_blocks(lambda x, d: x.sum() + d[3] + data[4], np.ones(4), args=(data,)) == 11.0


# --- Zarr arrays -------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def threads_of_zarr(tmp_path_factory):
    """Start the threads of Zarr, which stay until the program ends."""
    zarr.config.set({"threading.max_workers": 1})
    zarr.create_array(tmp_path_factory.mktemp("zarr"), shape=(1,), dtype="f4")[:] = 1


@pytest.mark.parametrize("mode", ["r", "r+", "in memory"])
def test_a_zarr_array_is_an_input(executor, tmp_path, mode, threads_of_zarr):
    data = RNG.random((500, 10))
    x = zarr.create_array(
        zarr.storage.MemoryStore() if mode == "in memory" else tmp_path / "x", data=data, chunks=(16, 5)
    )
    x = x if mode == "in memory" else zarr.open_array(tmp_path / "x", mode=mode)
    assert executor.map_blocks(identical, x, block_items=13).tobytes() == data.tobytes()
    checkpoint = tmp_path / "checkpoint"
    for _ in range(2):
        assert executor.reduce_blocks(len, x, block_items=13, checkpoint=checkpoint) == 500
    (x if mode == "in memory" else zarr.open_array(tmp_path / "x", mode="r+"))[3] = 1
    with pytest.raises(pc.CheckpointError, match="array 0 was"):
        executor.reduce_blocks(len, x, block_items=13, checkpoint=checkpoint)


def test_arrays_that_are_computed_later_say_what_to_pass(executor):
    lazy = dask.array.arange(100)
    for x, says in ((lazy, "array 0 is Array; it is computed by dask"), (xarray.DataArray(lazy), "pass x.to_numpy()")):
        with pytest.raises(TypeError, match=re.escape(says)):
            executor.map_blocks(identical, x)


# --- outputs -----------------------------------------------------------------------------------------------


def test_outputs_have_the_dtype_and_the_item_shape_that_the_kernel_gives(executor):
    result = executor.map_blocks(lambda x: np.stack([x > 0.5, x < 0.1], axis=-1), BASE, block_items=7)
    assert (result.dtype, result.shape) == (np.dtype(bool), (60, 14, 3, 2))
    assert result.tobytes() == np.stack([BASE > 0.5, BASE < 0.1], axis=-1).tobytes()


def test_outputs_may_be_records(executor):
    def kernel(block):
        rows = np.zeros(block.size, [("id", "i4"), ("square", "f8")])
        rows["id"] = np.arange(block.start, block.stop)
        rows["square"] = rows["id"] ** 2
        return rows

    result = executor.map_blocks(kernel, n_items=20, block_items=3)
    assert result["square"].tolist() == [n**2 for n in range(20)]


def test_a_tuple_of_arrays_gives_a_tuple_of_outputs(executor):
    one, other = executor.map_blocks(lambda x: (x.astype("f4"), x.sum(axis=(1, 2)) > 21), BASE, block_items=7)
    assert one.tobytes() == BASE.astype("f4").tobytes()
    assert other.tobytes() == (BASE.sum(axis=(1, 2)) > 21).tobytes()


def test_nan_and_infinity_are_data_and_pass(executor):
    with np.errstate(all="ignore"):
        result = executor.map_blocks(lambda x: np.where(x > 5, np.nan, np.inf), np.arange(10.0), block_items=3)
        total = executor.reduce_blocks(np.sum, result, block_items=3)
    assert np.isnan(result[6:]).all()
    assert np.isinf(result[:6]).all()
    assert math.isnan(total)


def targets():
    return {
        "plain": np.zeros(60),
        "shared": pc.share(np.zeros(60)),
        "float32": np.zeros(60, "f4"),
        "strided": np.zeros((60, 3))[:, 1],
        "backwards": np.zeros(60)[::-1],
        "shared, strided": pc.share(np.zeros((60, 3)))[:, 1],
        "shared, backwards": pc.share(np.zeros(60))[::-1],
    }


@pytest.mark.parametrize("kind", targets())
def test_out_gets_the_rows_and_is_what_comes_back(executor, kind):
    target = targets()[kind]
    result = executor.map_blocks(np.sqrt, np.arange(60.0), out=target, block_items=7)
    assert result is target
    assert result.tolist() == np.sqrt(np.arange(60.0)).astype(target.dtype).tolist()
    if target.base is not None and "strided" in kind:
        assert not np.asarray(target.base).reshape(-1)[:180].reshape(60, 3)[:, ::2].any()


def test_out_may_be_a_tuple(executor):
    out = np.zeros(60), np.zeros((60, 14, 3), "f4")
    assert executor.map_blocks(lambda x: (x.sum(axis=(1, 2)), x), BASE, out=out, block_items=7) is out
    assert out[1].tobytes() == BASE.astype("f4").tobytes()
    np.testing.assert_allclose(out[0], BASE.sum(axis=(1, 2)), rtol=1e-14)


@pytest.mark.parametrize("shift", [-5, 0, 5])
def test_out_that_overlaps_an_input_is_refused(executor, shift):
    x = pc.share(np.arange(30.0))
    with pytest.raises(ValueError, match="out overlaps an input"):
        executor.map_blocks(np.sqrt, x[10:20], out=x[10 + shift : 20 + shift])
    assert x.tolist() == list(range(30))


def test_a_kernel_may_fill_the_rows_that_it_asks_for(executor):
    def kernel(x, out):
        assert out.shape == x.shape
        np.multiply(x, 2, out=out)

    assert executor.map_blocks(kernel, BASE, block_items=7).tobytes() == (BASE * 2).tobytes()
    for kind, target in targets().items():
        executor.map_blocks(kernel, np.arange(60.0), out=target, block_items=7)
        assert target.tolist() == [2.0 * n for n in range(60)], kind


def test_a_kernel_may_fill_rows_of_another_dtype_and_shape(executor):
    def kernel(block, out):
        out[:, 0] = np.arange(block.start, block.stop)
        out[:, 1] = block.index

    result = executor.map_blocks(kernel, n_items=10, block_items=4, dtype="i2", item_shape=2)
    assert (result.dtype, result.tolist()) == (np.dtype("i2"), [[n, n // 4] for n in range(10)])


def test_a_kernel_may_fill_a_tuple_of_rows(executor):
    def kernel(x, out):
        out[0][:] = x
        out[1][:] = -x

    out = np.zeros(10), np.zeros(10, "i4")
    executor.map_blocks(kernel, np.arange(10), out=out, block_items=3)
    assert (out[0].tolist(), out[1].tolist()) == (list(range(10)), [-n for n in range(10)])


def test_results_are_cast_to_the_dtype_that_is_asked_for(executor):
    result = executor.map_blocks(np.sqrt, np.arange(10.0), dtype="f4", block_items=3)
    assert result.tobytes() == np.sqrt(np.arange(10.0)).astype("f4").tobytes()


# --- halo --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("halo", [0, 1, 3, 100])
def test_a_halo_brings_the_neighbours_rows(executor, halo):
    x = np.arange(20)

    def kernel(x, block):
        assert x[block.core].tolist() == list(range(block.start, block.stop))
        return np.tile([x[0], x[-1]], (block.size, 1))

    result = executor.map_blocks(kernel, x, halo=halo, block_items=6)
    expected = [[max(0, 6 * (n // 6) - halo), min(19, 6 * (n // 6) + 5 + halo)] for n in range(20)]
    assert result.tolist() == expected


# --- partials ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("partial", "expected"),
    [
        (3, 60),
        (2**70, 20 * 2**70),
        (2**62, 20 * 2**62),
        (True, 20),
        (0.1, 20 * 0.1),
        (1 + 0.5j, 20 + 10j),
        (np.float32(0.1), np.float32(0.1) * np.float32(20)),
        (np.int8(3), np.int8(60)),
        (np.bool_(True), np.bool_(True)),
        (np.ones((2, 2), "f4"), np.full((2, 2), 20, "f4")),
        ((1, 0.5), (20, 10.0)),
        ({"n": 1, "sum": np.ones(2)}, {"n": 20, "sum": np.full(2, 20.0)}),
        ("ab", "ab" * 20),
        ([1], [1] * 20),
        (1 + 0j, 20 + 0j),
    ],
    ids=lambda value: f"{type(value).__name__} {value}"[:30],
)
@pytest.mark.filterwarnings("ignore:overflow")
def test_partials_of_every_kind_add_up(executor, partial, expected):
    total = executor.reduce_blocks(lambda block: partial, n_items=20, block_items=1)
    assert type(total) is type(expected)
    if isinstance(expected, (float, np.float32)):
        assert math.isclose(total, expected, rel_tol=1e-6)
    elif isinstance(expected, (np.ndarray, np.generic)):
        assert (total.dtype, total.tobytes()) == (expected.dtype, expected.tobytes())
    elif isinstance(expected, dict):
        assert (total["n"], total["sum"].tolist()) == (20, [20.0, 20.0])
    else:
        assert total == expected


def test_python_integers_do_not_overflow(executor):
    assert executor.reduce_blocks(lambda block: 2**63 - 1, n_items=5, block_items=1) == 5 * (2**63 - 1)


def test_partials_may_differ_in_kind_from_block_to_block(executor):
    kinds = [1, 2.5, 2**70, True, 1j, np.float32(0.5), np.ones(2), np.arange(2), 7]
    total = executor.reduce_blocks(lambda block: kinds[block.index], n_items=len(kinds), block_items=1)
    assert total.tolist() == (np.array([1, 1]) * (1 + 2.5 + 2**70 + True + 1j + 0.5 + 1 + 7) + [0, 1]).tolist()


def test_combine_gets_neighbours_in_their_order(executor):
    total = executor.reduce_blocks(
        lambda block: f"{block.index}", n_items=7, block_items=1, combine=lambda a, b: f"({a} {b})"
    )
    assert total == "(((0 1) (2 3)) ((4 5) 6))"


def test_any_object_can_be_a_partial(executor):
    words = executor.reduce_blocks(
        lambda block: {f"word {n % 4}" for n in range(block.start, block.stop)},
        n_items=100,
        block_items=3,
        combine=set.union,
    )
    assert words == {f"word {n}" for n in range(4)}


def test_combine_sees_partials_as_they_were_returned(executor):
    seen = []

    def combine(a, b):
        seen.extend([type(a), type(b)])
        return a

    executor.reduce_blocks(lambda block: np.float32(1), n_items=2, block_items=1, combine=combine)
    executor.reduce_blocks(lambda block: (1, np.ones(2)), n_items=2, block_items=1, combine=combine)
    assert seen == [np.float32, np.float32, tuple, tuple]


# --- whole arrays ------------------------------------------------------------------------------------------

WHOLE = RNG.random(400_000)  # 3.2 MB, above the limit from which arrays are shared


def holders():
    """Return every place where a whole array may sit: the call's own arguments, and a kernel that has it."""
    table = {"nested": [WHOLE]}

    def closure(x):
        return x + WHOLE[7] + table["nested"][0][8]

    def taking(x, a=None, b=None):
        return x + a[7] + b["nested"][0][8]

    return {
        "closure": (closure, (), {}),
        "args": (taking, (WHOLE, table), {}),
        "kwargs": (taking, (), {"a": WHOLE, "b": table}),
    }


@pytest.mark.parametrize("place", holders())
def test_whole_arrays_reach_a_kernel_wherever_they_sit(executor, place):
    kernel, args, kwargs = holders()[place]
    result = executor.map_blocks(kernel, np.arange(10.0), args=args, kwargs=kwargs, block_items=3)
    assert result.tolist() == (np.arange(10.0) + WHOLE[7] + WHOLE[8]).tolist()
    if args:
        assert executor.submit(kernel, 1.0, *args).result() == 1.0 + WHOLE[7] + WHOLE[8]


@pytest.mark.parametrize("place", holders())
def test_whole_arrays_are_shared_once_and_not_pickled(place):
    pickled, keep_alive = pickling.dumps(holders()[place], "the call")
    assert len(pickled) < 20_000
    assert sum(isinstance(one, pc.SharedArray) for one in keep_alive) == 1
    loaded = pickling.loads(pickled)
    del keep_alive
    assert loaded[0](0.0, *loaded[1], **loaded[2]) == WHOLE[7] + WHOLE[8]


def test_a_whole_array_in_a_worker_is_a_mapping_of_shared_memory():
    def home_of(array):
        address = array.__array_interface__["data"][0]
        with open("/proc/self/maps") as maps:
            for line in maps:
                start, stop = (int(edge, 16) for edge in line.split()[0].split("-"))
                if start <= address < stop:
                    return line.split()[1][3], line.split()[5]
        return None

    with pc.Executor(1) as executor:
        for array in (WHOLE, pc.share(WHOLE), pc.share(WHOLE)[10:]):
            kind, path = executor.submit(home_of, array).result()
            assert (kind, path[:9]) == ("p", "/dev/shm/")  # copied where it is written to
            homes = executor.reduce_blocks(lambda x: {home_of(x)}, array, combine=set.union)
            assert {(kind, path[:9]) for kind, path in homes} == {("s", "/dev/shm/")}


def test_a_small_array_travels_by_value():
    pickled, keep_alive = pickling.dumps((len, (np.arange(50.0),), {}), "the call")
    assert keep_alive == []
    assert pickling.loads(pickled)[1][0].tolist() == list(range(50))


# --- arguments beside what a kernel asks for ---------------------------------------------------------------


def test_arguments_go_past_what_the_kernel_asks_for():
    def kernel(x, block, factor, rng, offset=0.0):
        return x * factor + offset + 0 * block.start + 0 * rng.random()

    x = np.arange(10.0)
    with pc.Executor(backend="serial") as executor:
        for args, kwargs in (((2.0,), {}), ((2.0, 1.0), {}), ((2.0,), {"offset": 1.0}), ((), {"factor": 2.0})):
            offset = kwargs.get("offset", args[1] if len(args) > 1 else 0.0)
            found = executor.map_blocks(kernel, x, block_items=3, args=args, kwargs=kwargs)
            assert found.tolist() == (2 * x + offset).tolist()
        assert executor.reduce_blocks(lambda block, n: n * block.size, n_items=10, args=(3,)) == 30
        with pytest.raises(TypeError, match="put the arrays first"):
            executor.map_blocks(lambda block, x: x, x)
        with pytest.raises(TypeError, match="3 args for the parameters factor, offset of the kernel"):
            executor.map_blocks(kernel, x, args=(1, 2, 3))
        with pytest.raises(TypeError, match="is given factor twice"):
            executor.map_blocks(kernel, x, args=(1,), kwargs={"factor": 2})
