"""A job that was ended, however it was ended, continues where it stopped, with the same bits, or says why it cannot."""

import contextlib
import json
import os
import pickle
import resource
import shutil
import signal
import struct
import subprocess
import sys
import types
import zlib
from pathlib import Path

import cloudpickle
import h5py
import numpy as np
import pytest

import parcompute as pc
from parcompute.jobs import checkpoint, checkpoint_file
from parcompute.jobs.outputs import Field
from parcompute.jobs.partials import Leaf
from parcompute.machine import atomic

# The workers of a test session can import the package, but not its tests.
cloudpickle.register_pickle_by_value(sys.modules[__name__])

MEDIA = {
    "serial": {"backend": "serial"},
    "threads": {"backend": "threads"},
    "processes": {"backend": "processes", "start_method": "fork"},
    "processes-threads": {"backend": "processes", "threads_per_worker": 2},
    "pool": {"backend": "pool", "start_method": "fork"},
    "joblib": {"backend": "joblib"},
}
X = np.random.default_rng(1).standard_normal(500)


def opened(medium):
    return pc.Executor(1 if medium == "serial" else 2, **MEDIA[medium])


@pytest.fixture(scope="module", params=MEDIA)
def medium(request):
    return request.param


@pytest.fixture(scope="module")
def executor(medium):
    """An executor for many tests, all of whose threads and processes run already."""
    with opened(medium) as executor:
        executor.reduce_blocks(len, np.arange(4), block_items=1)
        yield executor


@pytest.fixture
def serial():
    with pc.Executor(backend="serial") as executor:
        yield executor


@pytest.fixture
def path(tmp_path):
    return tmp_path / "job.h5"


class Calls:
    """Block numbers, noted by whoever computes, and a switch that lets a block fail."""

    def __init__(self, folder):
        self.log, self.switch = f"{folder}/calls", f"{folder}/fails"

    def note(self, number):
        fd = os.open(self.log, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o600)
        os.write(fd, int(number).to_bytes(8, "little"))
        os.close(fd)

    def take(self):
        """Return the numbers noted since the last time, in order."""
        if not os.path.exists(self.log):
            return []
        numbers = sorted(np.fromfile(self.log, "<i8").tolist())
        os.unlink(self.log)
        return numbers

    @contextlib.contextmanager
    def failing(self, block):
        Path(self.switch).write_text(str(block))
        yield
        os.unlink(self.switch)

    def enter(self, block):
        """Note a call, or fail."""
        if os.path.exists(self.switch) and Path(self.switch).read_text() == str(block.index):
            raise ValueError(f"block {block.index} fails")
        self.note(block.index)


@pytest.fixture
def calls(tmp_path):
    return Calls(tmp_path)


def bits(value):
    if isinstance(value, (tuple, list)):
        return tuple(map(bits, value))
    if isinstance(value, (np.ndarray, np.generic)):
        return type(value), value.dtype, value.shape, value.tobytes()
    return type(value), repr(value)


def marks(path):
    with h5py.File(path, "r") as file:
        return np.flatnonzero(file["done"][:]).tolist()


# --- every backend -----------------------------------------------------------------------------------------


def rows(calls):
    def kernel(x, block, rng):
        calls.enter(block)
        return np.sqrt(np.abs(x)) + rng.random(len(x)), x[:, None] > [0, 1]

    return lambda ex, **more: ex.map_blocks(kernel, X, block_items=9, seed=7, **more)


def sums(calls):
    def kernel(x, block, rng):
        calls.enter(block)
        return {"sum": x.sum() * rng.random(), "n": len(x)}

    return lambda ex, **more: ex.reduce_blocks(kernel, X, block_items=9, seed=7, **more)


def odd(calls):
    def kernel(x, block):
        calls.enter(block)
        return [block.index, str(block.index), {"x": x.sum()}, 2**70][block.index % 4]

    def together(a, b):
        return f"({a}+{b})"

    return lambda ex, **more: ex.reduce_blocks(kernel, X, block_items=9, combine=together, **more)


JOBS = {"rows": rows, "sums": sums, "odd": odd}
N_BLOCKS = -(-len(X) // 9)


@pytest.fixture(params=JOBS)
def job(request, calls):
    return JOBS[request.param](calls)


def test_a_job_that_is_done_comes_from_the_file_without_a_call(executor, job, calls, path, serial):
    expected = bits(job(serial))
    calls.take()
    assert bits(job(executor, checkpoint=path)) == expected
    assert calls.take() == list(range(N_BLOCKS))
    assert bits(job(executor, checkpoint=path)) == expected
    assert calls.take() == []
    assert executor.timeline.n_workers == executor.n_workers
    assert len(executor.timeline.chunks) == 0


def test_a_job_that_failed_continues_with_the_blocks_that_are_missing(executor, job, calls, path, serial):
    expected = bits(job(serial))
    calls.take()
    with calls.failing(N_BLOCKS - 1), pytest.raises(pc.KernelError, match=f"block {N_BLOCKS - 1}"):
        job(executor, checkpoint=path)
    computed, finished = calls.take(), marks(path)
    assert len(finished) > 0
    assert set(finished) <= set(computed)
    assert bits(job(executor, checkpoint=path)) == expected
    assert calls.take() == sorted(set(range(N_BLOCKS)) - set(finished))


def test_a_job_of_one_backend_continues_on_another(executor, job, calls, path, serial):
    expected = bits(job(serial))
    with calls.failing(20), pytest.raises(pc.KernelError):
        job(serial, checkpoint=path)
    calls.take()
    assert bits(job(executor, checkpoint=path)) == expected
    assert calls.take() == list(range(20, N_BLOCKS))


def test_blocks_that_failed_are_tried_again(executor, job, calls, path, serial):
    expected = bits(job(serial))
    calls.take()
    with calls.failing(11):
        job(executor, checkpoint=path, on_error="keep")
    assert [failure.block.index for failure in executor.failures] == [11]
    assert marks(path) == [i for i in range(N_BLOCKS) if i != 11]
    calls.take()
    assert bits(job(executor, checkpoint=path, on_error="keep")) == expected
    assert calls.take() == [11]
    assert executor.failures == ()


def test_rows_of_the_callers_own_are_filled(executor, calls, path, serial):
    def kernel(x, block):
        calls.enter(block)
        return 3 * x

    table = np.zeros((len(X), 2))
    for out in (np.zeros(len(X)), table[:, 1], pc.SharedArray.empty(len(X))):
        for expected in (N_BLOCKS, 0):
            out[:] = -1
            assert executor.map_blocks(kernel, X, block_items=9, out=out, checkpoint=path) is out
            assert len(calls.take()) == expected
            np.testing.assert_array_equal(out, 3 * X)
        path.unlink()
    assert not table[:, 0].any()


def test_rows_are_right_with_a_halo(executor, calls, path, serial):
    def kernel(x, block, calls):
        calls.enter(block)
        return np.convolve(x, [0.5, 1, 0.5], "same")[block.core]

    expected = serial.map_blocks(kernel, X, block_items=9, halo=1, kwargs={"calls": calls})
    with calls.failing(30), pytest.raises(pc.KernelError):
        serial.map_blocks(kernel, X, block_items=9, halo=1, kwargs={"calls": calls}, checkpoint=path)
    again = executor.map_blocks(kernel, X, block_items=9, halo=1, kwargs={"calls": calls}, checkpoint=path)
    assert bits(again) == bits(expected)


def test_an_empty_input_has_one_empty_block(executor, calls, path):
    def kernel(x, block):
        calls.enter(block)
        return x.astype("f4")

    for expected in ([0], []):
        assert bits(executor.map_blocks(kernel, X[:0], checkpoint=path)) == bits(np.empty(0, "f4"))
        assert calls.take() == expected


# --- one backend is enough ---------------------------------------------------------------------------------


def test_the_seed_of_the_file_is_used_when_none_is_given(serial, path, calls):
    def kernel(rng, block):
        calls.enter(block)
        return rng.random()

    with calls.failing(5), pytest.raises(pc.KernelError):
        serial.reduce_blocks(kernel, n_items=10, block_items=1, checkpoint=path)
    seed = serial.seed
    result = serial.reduce_blocks(kernel, n_items=10, block_items=1, checkpoint=path)
    assert serial.seed == seed
    assert result == serial.reduce_blocks(kernel, n_items=10, block_items=1, seed=seed)
    assert result == serial.reduce_blocks(kernel, n_items=10, block_items=1, seed=seed, checkpoint=path)


AN_ALIGNED_DTYPE = np.dtype([("x", "i1"), ("y", "f8")], align=True)


@pytest.mark.parametrize(
    "dtype",
    ["bool", "f2", ">f8", "g", "c16", "M8[ns]", "U3", "S3", "V4", [("x", "i1"), ("y", "f8", 2)], AN_ALIGNED_DTYPE],
    ids=str,
)
def test_any_dtype_comes_back(serial, path, dtype):
    dtype = np.dtype(dtype)
    data = np.frombuffer(np.random.default_rng(2).bytes(30 * dtype.itemsize), np.uint8) % 2
    table = np.zeros(30, dtype) if dtype.kind == "U" else data.view(dtype)
    for _ in ("computed", "from the file"):
        back = serial.map_blocks(lambda x: x, table, block_items=4, checkpoint=path)
        assert back.dtype == dtype
        if dtype is AN_ALIGNED_DTYPE:  # NumPy does not copy the gaps
            assert [back[name].tobytes() for name in dtype.names] == [table[name].tobytes() for name in dtype.names]
        else:
            assert bits(back) == bits(table)


def test_plain_h5py_reads_rows_and_marks(serial, path):
    serial.map_blocks(np.sqrt, np.arange(10.0), block_items=4, checkpoint=path)
    with h5py.File(path, "r") as file:
        assert file["done"][:].tolist() == [1, 1, 1]
        np.testing.assert_array_equal(file["arrays/0"][:], np.sqrt(np.arange(10.0)))
        assert file["identity"].attrs["kernel"] == "sqrt"


def test_finished_blocks_survive_ctrl_c(serial, path, calls):
    def kernel(block, sigint):
        calls.enter(block)
        if block.index == 6 and os.path.exists(calls.switch):
            signal.raise_signal(sigint)
        return block.index

    def total(**more):
        return serial.reduce_blocks(kernel, n_items=10, block_items=1, args=(), kwargs={"sigint": 2}, **more)

    with calls.failing("none"), pytest.raises(KeyboardInterrupt):
        total(checkpoint=path)
    assert marks(path) == [0, 1, 2, 3, 4, 5]
    calls.take()
    assert total(checkpoint=path) == 45
    assert calls.take() == [6, 7, 8, 9]


def test_finished_blocks_of_processes_survive_ctrl_c(path, calls):
    def kernel(x, block):
        calls.enter(block)
        if block.index == 12 and os.path.exists(calls.switch):
            os.kill(os.getppid(), signal.SIGINT)
            signal.pause()
        return x + 1

    with pc.Executor(2, start_method="fork", schedule="dynamic") as executor:
        with calls.failing("none"), pytest.raises(KeyboardInterrupt):
            executor.map_blocks(kernel, X, block_items=9, checkpoint=path)
        finished = marks(path)
        assert len(set(range(12)) - set(finished)) <= 1  # the other worker may hold one of those claimed before
        calls.take()
        np.testing.assert_array_equal(executor.map_blocks(kernel, X, block_items=9, checkpoint=path), X + 1)
        assert calls.take() == sorted(set(range(N_BLOCKS)) - set(finished))


# --- refusals ----------------------------------------------------------------------------------------------

SCALE = 2.0


def helper(x):
    return SCALE * x


def reference(x, offset=0):
    return helper(x) + offset


def with_offset(offset):
    return lambda x: x + offset


USUAL = {"kernel": reference, "arrays": (X,), "block_items": 9}
DIFFERENT = {
    "kernel": {"kernel": np.sqrt},
    "kernel code": {"kernel": lambda x: x + 1},
    "kernel variables": {"kernel": with_offset(2)},
    "seed": {"kernel": lambda x, rng: x, "seed": 2},
    "n_items": {"arrays": (X[:-1],)},
    "block_items": {"block_items": 10},
    "halo": {"halo": 1},
    "array 0": {"arrays": (X + 0.0 * X[::-1] + (np.arange(500) == 250),)},
    "array 0 by dtype": {"arrays": (X.astype("f4"),)},
    "array 0 by shape": {"arrays": (X[:, None],)},
    "array 1": {"arrays": (X, X)},
    "args[0]": {"args": (1,)},
    "kwargs['offset']": {"kwargs": {"offset": 3}},
    "output": {"dtype": "f4"},
}
USUALLY = {
    "kernel code": {"kernel": lambda x: x + 2},
    "kernel variables": {"kernel": with_offset(1)},
    "seed": {"kernel": DIFFERENT["seed"]["kernel"], "seed": 1},
    "args[0]": {"args": (0,)},
}


def run(executor, path, kernel, arrays, **more):
    return executor.map_blocks(kernel, *arrays, checkpoint=path, **more)


@pytest.mark.parametrize("what", DIFFERENT)
def test_another_job_is_refused_and_the_difference_named(serial, path, what, calls):
    usual = USUAL | USUALLY.get(what, {})
    run(serial, path, **usual)
    before = path.read_bytes()
    with pytest.raises(pc.CheckpointError, match="delete the file or choose another name") as refused:
        run(serial, path, **usual | DIFFERENT[what])
    assert f": {what.partition(' by ')[0]} was " in str(refused.value)
    assert path.read_bytes() == before
    run(serial, path, **usual)


def test_a_changed_function_that_the_kernel_calls_is_refused(serial, path, monkeypatch):
    run(serial, path, **USUAL)
    monkeypatch.setitem(globals(), "SCALE", 3.0)
    with pytest.raises(pc.CheckpointError, match="kernel variables was helper:"):
        run(serial, path, **USUAL)


def test_rows_and_partials_are_different_jobs(serial, path):
    serial.map_blocks(np.sort, X, checkpoint=path)
    with pytest.raises(pc.CheckpointError, match=r"output was rows of .*, and is partials now"):
        serial.reduce_blocks(np.sort, X, checkpoint=path)


def test_the_function_that_combines_may_change(serial, path):
    serial.reduce_blocks(np.max, X, block_items=9, checkpoint=path)
    assert serial.reduce_blocks(np.max, X, block_items=9, combine=max, checkpoint=path) == X.max()


@pytest.mark.parametrize("kind", ["memmap", "dataset"])
def test_an_input_file_that_was_written_since_is_refused(serial, path, tmp_path, kind):
    name = tmp_path / "input"
    with h5py.File(name, "w") as file:
        file["x"] = X

    def total():
        with h5py.File(name, "r") as file:
            array = np.memmap(name, "u1", "r", shape=64) if kind == "memmap" else file["x"]
            return serial.reduce_blocks(np.sum, array, block_items=9, checkpoint=path)

    assert total() == total()
    status = os.stat(name)
    os.utime(name, ns=(status.st_atime_ns, status.st_mtime_ns + 1))
    with pytest.raises(pc.CheckpointError, match="array 0 was"):
        total()


def test_what_has_no_content_to_compare_is_named(serial, path):
    with open(os.devnull) as stream, pytest.raises(TypeError, match="variable 'stream'"):
        serial.map_blocks(lambda x: x + bool(stream), X, checkpoint=path)
    assert os.listdir(path.parent) == []


def a_newer_one(path):
    with h5py.File(path, "w") as file:
        file.attrs["format"] = "parcompute checkpoint 99"


def a_cut_one(path):
    with pc.Executor(backend="serial") as executor:
        executor.map_blocks(np.sqrt, X * X, checkpoint=path)
    os.truncate(path, 1500)


NO_CHECKPOINTS = {
    "text": lambda path: path.write_text("not a checkpoint"),
    "nothing": lambda path: path.touch(),
    "another program's": lambda path: h5py.File(path, "w").close(),
    "a newer one": a_newer_one,
    "a cut one": a_cut_one,
    "a folder": lambda path: path.mkdir(),
}


@pytest.mark.parametrize("kind", NO_CHECKPOINTS)
def test_what_is_no_checkpoint_is_left_as_it_is(serial, path, kind, calls):
    NO_CHECKPOINTS[kind](path)
    before = path.read_bytes() if path.is_file() else None
    with pytest.raises(pc.CheckpointError, match="left as it is, choose another name"):
        serial.reduce_blocks(lambda block: calls.note(0), n_items=1, checkpoint=path)
    assert calls.take() == []
    assert (path.read_bytes() if path.is_file() else None) == before


@pytest.mark.parametrize("make", [rows, sums])
def test_a_checkpoint_of_a_version_without_packages_continues(serial, path, calls, make, monkeypatch):
    now = {Field: b"cparcompute.jobs.outputs\nField\n", Leaf: b"cparcompute.jobs.partials\nLeaf\n"}
    then = {Field: b"cparcompute.outputs\nField\n", Leaf: b"cparcompute.outputs\n_Leaf\n"}

    def dumps_of_then(value):
        pickled = pickle.dumps(value, protocol=3)  # classes are plain text in it
        for cls in now:
            pickled = pickled.replace(now[cls], then[cls])
        assert b"cparcompute.outputs" in pickled
        assert b"parcompute.jobs" not in pickled
        return pickled

    monkeypatch.setattr(checkpoint, "pickle", types.SimpleNamespace(dumps=dumps_of_then))
    with calls.failing(N_BLOCKS - 3), pytest.raises(pc.KernelError):
        make(calls)(serial, checkpoint=path)
    monkeypatch.undo()
    calls.take()
    found = make(calls)(serial, checkpoint=path)
    assert calls.take() == [N_BLOCKS - 3, N_BLOCKS - 2, N_BLOCKS - 1]
    assert bits(found) == bits(make(calls)(serial))


def test_a_checkpoint_cannot_have_a_function_called(serial, path, calls, tmp_path):
    def run():
        return serial.reduce_blocks(np.sum, X, block_items=50, checkpoint=path)

    class Evil:
        def __reduce__(self):
            return os.mkdir, (str(tmp_path / "gotcha"),)

    run()
    with h5py.File(path, "r+") as file:
        del file["shape"]
        file["shape"] = np.frombuffer(pickle.dumps(Evil()), np.uint8)
    with pytest.raises(pc.CheckpointError, match=r"posix.mkdir is no part of what numbers look like"):
        run()
    assert not (tmp_path / "gotcha").exists()


@pytest.mark.parametrize(
    "what", ["object", "objects that deny it", "outside of itself", "too many", "no shape", "link"]
)
def test_a_shape_is_believed_only_if_it_is_one_of_numbers(serial, path, what):
    def run():
        return serial.map_blocks(lambda x: np.zeros(len(x), [("a", "i8"), ("b", "i8")]), X, checkpoint=path)

    def lie(fields, n_bytes):
        dtype = np.dtype(f"V{n_bytes}")
        dtype.__setstate__((3, "|", None, tuple(fields), fields, n_bytes, 1, 0))  # no flag: no objects
        return dtype

    shape = {
        "object": lambda: (Field(np.dtype("O"), (2,)),),
        "objects that deny it": lambda: (Field(lie({"a": (np.dtype("O"), 0), "b": (np.dtype("i8"), 8)}, 16), ()),),
        "outside of itself": lambda: (Field(lie({"a": (np.dtype("i8"), 2**40)}, 16), ()),),
        "too many": lambda: (Field(np.dtype("f8"), (2**40,)),),
        "no shape": lambda: ({"a": 1},),
        "link": lambda: (),
    }[what]()
    run()
    with h5py.File(path, "r+") as file:
        del file["shape"]
        if what == "link":
            file["shape"] = h5py.ExternalLink("/nix", "shape")
        else:
            file["shape"] = np.frombuffer(pickle.dumps((shape, True)), np.uint8)
    with pytest.raises(pc.CheckpointError, match="no checkpoint that can be continued"):
        run()


@pytest.mark.parametrize(
    "leaf",
    [
        Leaf(np.dtype, Field(np.dtype("f8"), ())),
        Leaf(np.generic, Field(np.dtype("f4"), (2,))),
        Leaf(int, Field(np.dtype("f8"), ())),
        Leaf(np.ndarray, Field(np.dtype("f8"), (-1,))),
        Leaf(np.ones(2), Field(np.dtype("f8"), ())),
        Leaf(float, np.ones(2)),
        Field(np.dtype("f8"), ()),
    ],
)
def test_a_shape_of_partials_is_believed_only_if_it_is_one(serial, path, leaf, monkeypatch):
    def run():
        return serial.reduce_blocks(np.sum, X, block_items=50, checkpoint=path)

    run()
    monkeypatch.setattr(checkpoint.Shapes, "find_class", pickle.Unpickler.find_class)  # arrays, too
    with h5py.File(path, "r+") as file:
        del file["shape"]
        file["shape"] = np.frombuffer(pickle.dumps(leaf), np.uint8)
    with pytest.raises(pc.CheckpointError, match="no checkpoint that can be continued"):
        run()


@pytest.fixture
def evil(serial, path, calls, tmp_path):
    """Return what runs a job of objects, whose checkpoint has been replaced by one that would make a folder."""

    class Evil:
        def __reduce__(self):
            return os.mkdir, (str(tmp_path / "gotcha"),)

    def run():
        return serial.reduce_blocks(
            lambda block: {block.index}, n_items=3, block_items=1, combine=lambda a, b: b, checkpoint=path
        )

    assert run() == {2}
    with contextlib.closing(checkpoint_file.CheckpointFile(path)) as file:
        assert len(list(file.records())) == 3
        file.append_object(0, pickle.dumps(Evil()))
    return run, tmp_path / "gotcha"


def test_results_that_are_objects_are_read_from_an_own_file_that_nobody_else_can_write(evil, path):
    run, made = evil
    run()
    assert made.exists()  # so the tests below would tell


@pytest.mark.parametrize("mode", [0o664, 0o646, 0o666])
def test_objects_of_a_file_that_others_can_write_are_not_read(evil, path, mode):
    run, made = evil
    path.chmod(mode)
    before = path.read_bytes()
    with pytest.raises(pc.CheckpointError, match=rf"others than you can write to it \(mode {mode:o}\); .* chmod go-w"):
        run()
    assert not made.exists()
    assert path.read_bytes() == before


@pytest.mark.skipif(os.geteuid() != 0, reason="only root gives files away")
def test_objects_of_somebody_elses_file_are_not_read(evil, path):
    run, made = evil
    os.chown(path, 4242, 4242)
    with pytest.raises(
        pc.CheckpointError, match=r"belongs to user 4242, and you are 0; .* copy of your own, else delete"
    ):
        run()
    assert not made.exists()
    shutil.copyfile(path, f"{path}.own")
    os.replace(f"{path}.own", path)
    run()
    assert made.exists()


@pytest.mark.skipif(os.geteuid() != 0, reason="only root gives files away")
def test_numbers_may_be_anyones(serial, path, calls):
    job = sums(calls)
    expected = bits(job(serial, checkpoint=path))
    os.chown(path, 4242, 4242)
    path.chmod(0o666)
    calls.take()
    assert bits(job(serial, checkpoint=path)) == expected
    assert calls.take() == []


@pytest.mark.parametrize("there", [True, False])
def test_a_checkpoint_is_no_link(serial, path, tmp_path, calls, there):
    elsewhere = tmp_path / "elsewhere.h5"
    if there:
        sums(calls)(serial, checkpoint=elsewhere)
    path.symlink_to(elsewhere)
    with pytest.raises(pc.CheckpointError, match="symbolic link, and none is followed"):
        sums(calls)(serial, checkpoint=path)
    assert elsewhere.exists() == there


def test_a_pipe_is_no_checkpoint_and_nobody_waits_for_it(serial, path, calls):
    os.mkfifo(path)
    with pytest.raises(pc.CheckpointError, match="no regular file"):
        sums(calls)(serial, checkpoint=path)


@pytest.mark.parametrize("umask", [0o022, 0o002, 0o000, 0o077])
def test_nobody_else_writes_to_a_new_checkpoint(serial, path, calls, umask):
    before = os.umask(umask)
    try:
        first = odd(calls)(serial, checkpoint=path)
    finally:
        os.umask(before)
    assert path.stat().st_mode & 0o777 == 0o644 & ~umask
    calls.take()
    assert odd(calls)(serial, checkpoint=path) == first
    assert calls.take() == []


@pytest.mark.parametrize(
    "record", [(1, -1, 1, 0), (1, 0, 99, 0), (1, 2, 2, 0), (2, 7, 8, 0), (2, 0, 1, -1), (9, 0, 1, 0)]
)
def test_a_record_of_blocks_that_are_none_is_refused(serial, path, record):
    def run():
        return serial.reduce_blocks(np.sum, X, block_items=100, checkpoint=path)

    run()
    header = struct.pack("<BqqqI", *record, 0)
    with path.open("ab") as file:
        file.write(header + struct.pack("<I", zlib.crc32(header)))
    with pytest.raises(pc.CheckpointError, match="has results of blocks"):
        run()


def test_links_that_lie_in_wait_are_never_followed(serial, path, tmp_path, calls):
    victim = tmp_path / "victim"
    victim.write_text("precious")
    planted = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    planted.symlink_to(victim)
    sums(calls)(serial, checkpoint=path)
    assert not planted.is_symlink()
    path.with_name(f".{path.name}.lock").symlink_to(victim)
    with pytest.raises(pc.CheckpointError, match="cannot be written"):
        sums(calls)(serial, checkpoint=path)
    path.with_name(f".{path.name}.lock").unlink()
    os.link(victim, path.with_name(f".{path.name}.lock"))
    sums(calls)(serial, checkpoint=path)
    assert victim.read_text() == "precious"


def test_a_folder_that_cannot_be_written_is_told_before_anything_runs(serial, tmp_path, calls):
    for path in (tmp_path / "missing" / "job.h5", tmp_path / "file" / "job.h5"):
        (tmp_path / "file").touch()
        with pytest.raises(pc.CheckpointError, match="cannot be written"):
            serial.reduce_blocks(lambda block: calls.note(0), n_items=1, checkpoint=path)
    assert calls.take() == []


def test_a_checkpoint_that_another_process_writes_is_refused(serial, path, monkeypatch, calls):
    monkeypatch.setattr(checkpoint, "WAIT_S", 0)
    lock = atomic.acquire(path, 0)
    try:
        with pytest.raises(pc.CheckpointError, match=f"written by process {os.getpid()}; wait for its end"):
            serial.reduce_blocks(lambda block: calls.note(0), n_items=1, checkpoint=path)
    finally:
        atomic.release(path, lock)
    assert calls.take() == []


# --- full disks, torn ends, damage -------------------------------------------------------------------------


@contextlib.contextmanager
def largest_file(n_bytes):
    """Let no file grow beyond some bytes: a disk that is full, and that no test has to fill."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (n_bytes, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


@pytest.mark.parametrize(("n_bytes", "n_saved"), [(1_000, "0"), (45_000, r"\d+")])
def test_on_a_full_disk_the_result_is_whole_and_the_checkpoint_said_to_be_incomplete(serial, path, n_bytes, n_saved):
    def kernel(block):
        return [block.index] * 1000

    def joined(**more):
        return serial.reduce_blocks(kernel, n_items=50, block_items=1, **more)

    expected = joined()
    with (
        largest_file(n_bytes),
        pytest.warns(
            UserWarning, match=f"incomplete, {n_saved} of 50 blocks .*too large.*result itself is whole"
        ) as said,
    ):
        assert joined(checkpoint=path) == expected
    assert said[0].filename == __file__
    assert joined(checkpoint=path) == expected
    assert len(marks(path)) == 50
    assert os.listdir(path.parent) == [path.name]


def test_on_a_full_disk_a_failed_job_says_so_too(serial, path, calls):
    with largest_file(100), calls.failing(5), pytest.raises(pc.KernelError) as failed:
        rows(calls)(serial, checkpoint=path)
    assert "the checkpoint is incomplete, 0 of 56 blocks" in failed.value.__notes__[0]


def test_a_record_cut_anywhere_costs_its_blocks_only(serial, path, calls, tmp_path):
    expected = bits(odd(calls)(serial, checkpoint=path))
    whole, copy = path.read_bytes(), tmp_path / "copy.h5"
    with h5py.File(path, "r") as file:
        journal = int(file.attrs["journal"])
    calls.take()
    rng = np.random.default_rng(4)
    for size in (journal, *rng.integers(journal, len(whole), 20).tolist(), len(whole) - 1, len(whole)):
        copy.write_bytes(whole[:size])
        with pytest.warns(UserWarning, match="are damaged") if size < len(whole) else contextlib.nullcontext():
            assert bits(odd(calls)(serial, checkpoint=copy)) == expected
        computed = calls.take()
        assert bool(computed) == (size < len(whole))
        assert bits(odd(calls)(serial, checkpoint=copy)) == expected
        assert calls.take() == []


def test_rows_that_were_damaged_are_computed_again(serial, path, calls):
    expected = bits(rows(calls)(serial, checkpoint=path))
    calls.take()
    with h5py.File(path, "r") as file:
        place = file["arrays/0"].id.get_offset()
    with open(path, "r+b") as file:
        file.seek(place + 8 * 100)
        file.write(b"damage")
    with pytest.warns(UserWarning, match="blocks are damaged"):
        assert bits(rows(calls)(serial, checkpoint=path)) == expected
    assert 11 in calls.take()
    assert bits(rows(calls)(serial, checkpoint=path)) == expected
    assert calls.take() == []


def test_a_checkpoint_that_another_program_has_written_to_begins_anew(serial, path, calls):
    expected = bits(rows(calls)(serial, checkpoint=path))
    with h5py.File(path, "r+") as file:
        file.attrs["note"] = "mine"
    calls.take()
    with pytest.warns(UserWarning, match=f"{N_BLOCKS} blocks are damaged"):
        assert bits(rows(calls)(serial, checkpoint=path)) == expected
    assert calls.take() == list(range(N_BLOCKS))


def test_a_large_result_is_written_in_several_records(serial, path, calls, monkeypatch):
    monkeypatch.setattr(checkpoint_file, "_RECORD_BYTES", 300)
    expected = bits(rows(calls)(serial, checkpoint=path))
    calls.take()
    shutil.copy(path, path.with_name("copy"))
    with h5py.File(path, "r") as file:
        place = file["arrays/0"].id.get_offset()
    with open(path, "r+b") as file:
        file.seek(place + 8 * 100)
        file.write(b"damage")
    with pytest.warns(UserWarning, match="blocks are damaged"):
        assert bits(rows(calls)(serial, checkpoint=path)) == expected
    assert 0 < len(calls.take()) <= 4
    assert bits(rows(calls)(serial, checkpoint=path.with_name("copy"))) == expected
    assert calls.take() == []


# --- kill -9 -----------------------------------------------------------------------------------------------

# Runs a job in a child that it kills: twice at any moment from the start on, and twice some milliseconds after so many
# blocks were marked; then runs it to its end. Prints what each run found finished and what it called.
KILLED = """
import hashlib, json, os, pickle, select, signal, sys, time
import numpy as np
import h5py
import parcompute as pc
from pathlib import Path
from parcompute.jobs import checkpoint, checkpoint_file

checkpoint.EVERY_S, checkpoint.COST = 0.004, 1
folder, verb, options, seed = sys.argv[1], sys.argv[2], json.loads(sys.argv[3]), int(sys.argv[4])
path, log, answer, go = (os.path.join(folder, name) for name in ("job.h5", "calls", "answer", "go"))
N, HELD, SURE = 60, 50, 40
x = np.random.default_rng(1).standard_normal(N * 1000)

def noted(block):
    fd = os.open(log, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o600)
    os.write(fd, block.index.to_bytes(8, "little"))
    os.close(fd)
    time.sleep(0.002)  # the work
    while block.index >= HELD and not os.path.exists(go):  # a job that is to be killed must not end before
        time.sleep(0.001)

def rows(x, block, rng):
    noted(block)
    return x + rng.random(len(x)), x > 0

def partial(x, block, rng):
    noted(block)
    return x.sum() * rng.random(), x[:3]

def objects(x, block, rng):
    noted(block)
    return [block.index, rng.random(), "text" * 1000] if block.index % 3 else rng.random()

def joined(a, b):
    return hashlib.sha256(repr((a, b)).encode()).hexdigest()

def job(ex, **more):
    if verb == "rows":
        return ex.map_blocks(rows, x, block_items=1000, seed=3, **more)
    if verb == "sums":
        return ex.reduce_blocks(partial, x, block_items=1000, seed=3, **more)
    return ex.reduce_blocks(objects, x, block_items=1000, seed=3, combine=joined, **more)

def digest(value):
    return hashlib.sha256(pickle.dumps([a.tobytes() for a in value] if verb == "rows" else value)).hexdigest()

def calls():
    return np.fromfile(log, "<i8").tolist() if os.path.exists(log) else []

def marks():
    if not os.path.exists(path):
        return set()
    with h5py.File(path, "r") as file:
        return set(np.flatnonzero(file["done"][:]).tolist())

def finished():
    # What the journal holds; the marks, for plain h5py, may be one record behind it.
    if not os.path.exists(path):
        return []
    file = checkpoint_file.CheckpointFile(Path(path))
    blocks = {i for first, stop, _, _ in file.records() for i in range(first, stop)}
    file.close()
    assert marks() <= blocks
    return sorted(blocks)

def attempt(kill_after):
    before = finished()
    if os.path.exists(log):
        os.unlink(log)
    child = os.fork()
    if not child:
        with pc.Executor(**options) as ex:
            Path(answer).write_text(digest(job(ex, checkpoint=path)))
        os._exit(0)
    if kill_after:
        ended = os.pidfd_open(child)
        while len(marks()) < kill_after and not select.select([ended], [], [], 0.001)[0]:
            pass
        select.select([ended], [], [], rng.uniform(0, 0.01 if kill_after > 0 else 0.15))
        os.close(ended)
        os.kill(child, signal.SIGKILL)
    os.waitpid(child, 0)
    runs.append((before, calls()))

rng = np.random.default_rng(seed)
Path(go).touch()
with pc.Executor(backend="serial") as ex:
    expected = digest(job(ex))
os.unlink(go)
runs, in_the_middle, ANY_MOMENT, NEVER = [], False, -1, 0
for kill in range(4):
    attempt(ANY_MOMENT if kill < 2 else min(len(finished()) + int(rng.integers(1, 20)), SURE))
    in_the_middle |= 0 < len(finished()) < N
Path(go).touch()
attempt(NEVER)
print(json.dumps([runs, in_the_middle, expected, Path(answer).read_text(), len(finished())]))
"""
FORK = {"workers": 2, "start_method": "fork"}
FORKSERVER = {"workers": 2, "start_method": "forkserver", "schedule": "dynamic"}


@pytest.mark.parametrize(
    ("verb", "options"),
    [
        ("rows", FORK),
        ("sums", FORK),
        ("objects", FORK),
        ("objects", FORKSERVER),
        ("rows", {"workers": 2, "backend": "threads"}),
        ("sums", {"backend": "serial"}),
    ],
    ids=lambda value: value if isinstance(value, str) else value.get("start_method", value.get("backend")),
)
def test_a_killed_job_continues_with_the_blocks_that_are_missing(tmp_path, verb, options):
    command = [sys.executable, "-c", KILLED, str(tmp_path), verb, json.dumps(options), "5"]
    ended = subprocess.run(command, capture_output=True, text=True, timeout=60)
    assert (ended.returncode, ended.stderr) == (0, "")
    runs, in_the_middle, expected, answer, n_finished = json.loads(ended.stdout)
    assert in_the_middle, "no kill came in the middle: this has shown nothing"
    assert answer == expected
    assert n_finished == 60
    for before, calls in runs:
        assert set(before) & set(calls) == set(), "a finished block was computed again"
        assert len(calls) == len(set(calls))
    before, calls = runs[-1]
    assert sorted(calls) == sorted(set(range(60)) - set(before))
    assert set(os.listdir(tmp_path)) - {"calls"} == {"answer", "go", "job.h5"}
