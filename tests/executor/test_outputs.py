"""Results go to files that are larger than memory, with the bits and the rules of an array."""

import os
import signal
import subprocess
import sys
from pathlib import Path

import cloudpickle
import h5py
import numpy as np
import psutil
import pytest
import zarr

import parcompute as pc

# The workers of a test session can import the package, but not its tests.
cloudpickle.register_pickle_by_value(sys.modules[__name__])

BACKENDS = ("serial", "threads", "processes", "auto", "pool", "joblib")
KINDS = ("memmap", "dataset", "chunked", "zarr", "sharded", "zarr in memory")

X = np.random.default_rng(3).random((500, 3))


@pytest.fixture(scope="module", autouse=True)
def threads_of_zarr(tmp_path_factory):
    """Start the threads of Zarr, which stay until the program ends."""
    zarr.config.set({"threading.max_workers": 1})
    zarr.create_array(tmp_path_factory.mktemp("zarr"), shape=(1,), dtype="f4")[:] = 1


@pytest.fixture(scope="module", params=BACKENDS)
def executor(request):
    """An executor of each backend, all of whose threads and processes run already."""
    with pc.Executor(1 if request.param == "serial" else 2, backend=request.param) as executor:
        executor.reduce_blocks(len, np.arange(4), block_items=1)
        executor.submit(len, ()).result()
        yield executor


@pytest.fixture
def opened(tmp_path):
    """Return a function that makes an output of a kind; how often it is called does not matter."""
    files = []

    def open_new(kind, shape, dtype="f8"):
        path = tmp_path / f"{len(os.listdir(tmp_path))}"
        if kind == "memmap":
            return np.lib.format.open_memmap(path, "w+", dtype, shape)
        if kind in ("dataset", "chunked"):
            files.append(h5py.File(path, "w"))
            chunks = (min(17, shape[0]), *shape[1:]) if kind == "chunked" else None
            return files[-1].create_dataset("y", shape, dtype, chunks=chunks, compression="gzip" if chunks else None)
        store = zarr.storage.MemoryStore() if kind == "zarr in memory" else path
        shards = (40, *shape[1:]) if kind == "sharded" else None
        return zarr.create_array(store, shape=shape, dtype=dtype, chunks=(20, *shape[1:]), shards=shards)

    yield open_new
    for file in files:
        file.close()


def doubled(x):
    return x * 2


def filled(x, out):
    np.multiply(x, 2, out=out)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("kernel", [doubled, filled])
def test_a_file_gets_what_an_array_would(executor, opened, kind, kernel):
    out = opened(kind, X.shape)
    assert executor.map_blocks(kernel, X, out=out, block_items=40) is out
    assert np.array_equal(out[:], X * 2)


@pytest.mark.parametrize("kind", KINDS)
def test_results_are_cast_as_for_an_array(executor, opened, kind):
    out = opened(kind, X.shape, "f4")
    executor.map_blocks(doubled, X, out=out, block_items=40)
    assert np.array_equal(out[:], (X * 2).astype("f4"))
    with pytest.raises(pc.KernelError, match=r"expected int32 \(40, 3\), got float64 \(40, 3\)"):
        executor.map_blocks(doubled, X, out=opened(kind, X.shape, "i4"), block_items=40)


def parts(x):
    return x[:, 0], x * 2, x[:, 1:], x.sum(axis=1)


def test_parts_of_a_result_go_to_different_places(executor, opened):
    out = np.empty(500), opened("memmap", X.shape), opened("chunked", (500, 2)), opened("zarr", (500,))
    assert executor.map_blocks(parts, X, out=out, block_items=40) is out
    assert all(np.array_equal(found[:], expected) for found, expected in zip(out, parts(X), strict=True))


def test_an_empty_output_is_an_output(executor, opened):
    for kind in ("memmap", "dataset"):
        assert executor.map_blocks(doubled, X[:0], out=opened(kind, (0, 3))).shape == (0, 3)


def test_a_memmap_is_written_in_place(executor, opened, monkeypatch):
    monkeypatch.setattr(executor._backend, "allocate", None)
    out = opened("memmap", (600, 6))
    executor.map_blocks(doubled, X, out=out[50:550, ::2], block_items=40)
    assert np.array_equal(out[50:550, ::2], X * 2)
    assert not out[:50].any()
    assert not out[550:].any()


def test_a_memmap_with_changes_of_its_own_gets_its_results_in_memory(executor, opened):
    out = np.load(opened("memmap", X.shape).filename, "c")
    executor.map_blocks(doubled, X, out=out, block_items=40)
    assert np.array_equal(out, X * 2)


def fails_at_two(x, block):
    if block.index == 2:
        raise ValueError
    return x * 2


@pytest.mark.parametrize("kind", KINDS)
def test_a_block_that_failed_leaves_rows_of_zeros(executor, opened, kind):
    out = opened(kind, X.shape)
    executor.map_blocks(fails_at_two, X, out=out, block_items=40, on_error="keep")
    expected = X * 2
    expected[80:120] = 0
    assert np.array_equal(out[:], expected)
    assert [error.block.index for error in executor.failures] == [2]
    executor.map_blocks(doubled, X[:1])  # the failure holds on to the file


def test_a_failed_job_leaves_an_executor_that_works(executor, opened):
    for _ in range(2):
        with pytest.raises(pc.KernelError, match="block 2"):
            executor.map_blocks(fails_at_two, X, out=opened("chunked", X.shape), block_items=40)
    test_a_file_gets_what_an_array_would(executor, opened, "chunked", doubled)


def only_if(x, block, folder, n_most):
    if block.index >= n_most:
        raise ValueError
    Path(folder, f"{block.index} {os.getpid()} {len(os.listdir(folder))}").touch()
    return x * 2


@pytest.mark.parametrize("kind", KINDS)
def test_a_checkpoint_fills_a_new_output(executor, opened, kind, tmp_path, monkeypatch):
    (folder := tmp_path / "computed").mkdir()

    def run(n_most, out):
        os.environ["N_MOST"] = str(n_most)
        executor.map_blocks(
            only_if_told, X, out=out, block_items=40, args=(str(folder),), checkpoint=tmp_path / "checkpoint"
        )

    monkeypatch.setenv("N_MOST", "0")
    with pytest.raises(pc.KernelError):
        run(9, opened(kind, X.shape))
    before = {name.partition(" ")[0] for name in os.listdir(folder)}
    run(99, out := opened(kind, X.shape))
    assert np.array_equal(out[:], X * 2)
    again = [name.partition(" ")[0] for name in os.listdir(folder)]
    assert len(again) == len({*again}) == 13
    assert before
    run(0, out := opened(kind, X.shape))
    assert np.array_equal(out[:], X * 2)


def only_if_told(x, block, folder):
    return only_if(x, block, folder, int(os.environ["N_MOST"]))


def dies_once(x, block, flag):
    if block.index in (1, 5) and not os.path.exists(f"{flag}{block.index}"):
        Path(f"{flag}{block.index}").touch()
        os.kill(os.getpid(), signal.SIGKILL)
    return x * 2


@pytest.mark.parametrize("kind", KINDS)
def test_rows_of_killed_workers_are_written_by_others(opened, kind, tmp_path, start_method):
    out = opened(kind, X.shape)
    with pc.Executor(2, start_method=start_method) as executor:
        executor.map_blocks(dies_once, X, out=out, block_items=40, args=(str(tmp_path / "flag"),))
        assert len(executor.timeline.deaths) == 2
    assert np.array_equal(out[:], X * 2)


def test_blocks_are_whole_chunks_of_a_zarr_array(opened):
    x = np.arange(100_000.0)
    with pc.Executor(backend="serial") as executor:
        out = opened("zarr", x.shape)
        executor.map_blocks(doubled, x, out=out)
        assert executor.plan.block_items == 65536 // 20 * 20
        assert "chunks of 20 rows of out" in executor.plan.why
        for kind, fits in (("zarr", 60), ("sharded", 80)):
            with pytest.raises(ValueError, match=f"block_items=50 cuts chunks of out, .* pass block_items={fits}"):
                executor.map_blocks(doubled, x, out=opened(kind, x.shape), block_items=50)
        executor.map_blocks(doubled, x[:15], out=opened("zarr", (15,)), block_items=50)


def test_outputs_that_do_not_fit_say_what_does(opened, tmp_path):
    with pc.Executor(backend="serial") as executor:
        wrong = {
            "out is list": ([0.0] * 500, TypeError),
            "out has 20 rows; pass 500": (opened("zarr", (20, 3)), ValueError),
            "out is a Zarr array that is open read-only": (
                zarr.open_array(opened("zarr", X.shape).store_path.store.root, mode="r"),
                ValueError,
            ),
            r"out is object \(500,\)": (opened("dataset", (500,), h5py.string_dtype()), TypeError),
        }
        for words, (out, kind) in wrong.items():
            with pytest.raises(kind, match=words):
                executor.map_blocks(doubled, X, out=out, block_items=40)


def test_an_output_that_is_an_input_is_refused(opened):
    with pc.Executor(backend="serial") as executor:
        for kind in ("dataset", "zarr", "memmap"):
            out = opened(kind, X.shape)
            with pytest.raises(ValueError, match="out overlaps an input"):
                executor.map_blocks(doubled, out, out=out, block_items=40)
        again = np.lib.format.open_memmap(out.filename, "r")
        with pytest.raises(ValueError, match="out overlaps an input"):
            executor.map_blocks(doubled, again[:100], out=out[99:199], block_items=40)
        executor.map_blocks(doubled, again[:100], out=out[100:200], block_items=40)


PROGRAM = """
import os, sys
kind, backend, path, n_rows = sys.argv[1:4] + [int(sys.argv[4])]
import h5py, numpy as np
import parcompute as pc

def kernel(block):
    return np.arange(block.start, block.stop, dtype=float)[:, None] + np.zeros(128)

if __name__ == "__main__":
    shape = n_rows, 128
    if kind == "memmap":
        out = np.lib.format.open_memmap(path, "w+", "f8", shape)
    elif kind == "zarr":
        import zarr

        out = zarr.create_array(path, shape=shape, dtype="f8", chunks=(1024, 128), compressors=None)
    else:
        out = h5py.File(path, "w").create_dataset("y", shape, "f8", chunks=(1000, 128) if kind == "chunked" else None)
    with pc.Executor(1 if backend == "serial" else 2, backend=backend) as executor:
        executor.map_blocks(kernel, n_items=n_rows, out=out, block_items=1024)
    assert all((out[n : n + 1000, 5] == np.arange(n, min(n + 1000, n_rows))).all() for n in range(0, n_rows, 1000))
    print("whole")
"""


def memory_group():
    """Return the folder of this process's memory control group, if a child of it can be made."""
    lines = (line.rstrip().split(":", 2) for line in Path("/proc/self/cgroup").read_text().splitlines())
    own = next((path for _, names, path in lines if "memory" in names.split(",")), None)
    group = Path("/sys/fs/cgroup/memory") / (own or "nowhere").lstrip("/")
    if not os.access(group, os.W_OK):
        pytest.skip("no control group of version 1 in which a limit of memory can be set")
    return group


@pytest.mark.slow
@pytest.mark.parametrize(
    ("kind", "backend"),
    [
        *[("dataset", backend) for backend in BACKENDS],
        *[("memmap", backend) for backend in ("processes", "pool")],
        ("zarr", "processes"),
    ],
)
def test_an_output_is_twice_what_memory_holds(kind, backend, tmp_path):
    limit = (112 if backend in ("serial", "threads") else 192) * 2**20
    group = memory_group() / f"parcompute-{os.getpid()}"
    (program := tmp_path / "program.py").write_text(PROGRAM)
    group.mkdir()
    try:
        (group / "memory.limit_in_bytes").write_text(str(limit))
        command = [sys.executable, program, kind, backend, tmp_path / "out", str(2 * limit // 1024)]
        enter = f'echo $$ > {group}/cgroup.procs; exec "$@"'
        done = subprocess.run(["sh", "-c", enter, "sh", *command], capture_output=True, text=True, timeout=120)
        assert (done.returncode, done.stdout) == (0, "whole\n"), done.stderr
    finally:
        psutil.wait_procs(
            [psutil.Process(int(pid)) for pid in (group / "cgroup.procs").read_text().split()], timeout=10
        )
        group.rmdir()
