"""Shared arrays travel as references, are the same memory everywhere, outlive everybody, and leave nothing behind."""

import contextlib
import copy
import errno
import gc
import os
import pickle
import random
import select
import signal
import subprocess
import sys
import textwrap
import threading
import time
import types

import cloudpickle
import numpy as np
import pytest

import parcompute as pc
from parcompute.memory import leases, segments, shared, sources

# The processes of a test session can import the package, but not its tests.
cloudpickle.register_pickle_by_value(sys.modules[__name__])

linux = pytest.mark.skipif(sys.platform != "linux", reason="looks into /proc and /dev/shm")


class Other:
    """Another program, not a child by fork: it runs what it is sent, one after the other, in one namespace."""

    def __init__(self):
        program = """
            import pickle, sys
            while True:
                try:
                    function, args = pickle.load(sys.stdin.buffer)
                except EOFError:
                    break
                except BaseException as error:
                    answer = error
                else:
                    try:
                        answer = function(*args)
                    except BaseException as error:
                        answer = error
                pickle.dump(answer, sys.stdout.buffer)
                sys.stdout.buffer.flush()
                del answer
                function = args = None
        """
        self.process = subprocess.Popen(
            [sys.executable, "-W", "error", "-c", textwrap.dedent(program)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
        )

    def send(self, function, *args):
        cloudpickle.dump((function, args), self.process.stdin)
        self.process.stdin.flush()

    def receive(self):
        answer = pickle.load(self.process.stdout)
        if isinstance(answer, BaseException):
            raise answer
        return answer

    def run(self, function, *args):
        self.send(function, *args)
        return self.receive()

    def kill(self):
        self.process.kill()
        self.process.wait()

    def close(self):
        self.process.stdin.close()
        assert self.process.wait(20) in (0, -signal.SIGKILL)
        noise = self.process.stderr.read()
        self.process.stdout.close()
        self.process.stderr.close()
        assert noise == b""


@pytest.fixture
def other():
    other = Other()
    yield other
    other.close()


@pytest.fixture
def third():
    third = Other()
    yield third
    third.close()


def keep(name, value):
    import builtins

    setattr(builtins, name, value)


def ended(pids, within_s):
    """Tell whether processes end in time; what nobody has collected yet has ended all the same."""
    deadline = time.monotonic() + within_s
    for pid in pids:
        with contextlib.suppress(ProcessLookupError):
            fd = os.pidfd_open(pid)
            readable = select.select([fd], [], [], max(0, deadline - time.monotonic()))[0]
            os.close(fd)
            if not readable:
                return False
    return True


def kept(name):
    import builtins

    return getattr(builtins, name)


def descriptors():
    return set(os.listdir("/proc/self/fd"))


# --- an ordinary array -------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "source",
    [
        np.arange(12.0).reshape(3, 4),
        np.asfortranarray(np.arange(12).reshape(3, 4)),
        np.arange(12, dtype="c8")[::-2],
        np.zeros(3, [("a", "i1"), ("b", "f8", (2,))]),
        np.empty((0, 3)),
        np.array(5.0),
        np.array([b"one", b"three"]),
        np.arange(10.0).astype(">f8"),
    ],
    ids=["2-D", "Fortran", "strided", "structured", "empty", "0-d", "bytes", "byte order"],
)
def test_share_gives_an_array_with_the_same_items_dtype_and_shape(source):
    x = pc.share(source)
    assert (type(x), x.dtype, x.shape) == (pc.SharedArray, source.dtype, source.shape)
    assert x.tobytes() == source.tobytes()
    assert x.flags.writeable
    if source.size and source.flags.f_contiguous:
        assert x.strides == source.strides


def test_sharing_copies_once_and_what_is_shared_already_not_at_all():
    source = np.arange(5.0)
    x = pc.share(source)
    source[0] = 9
    assert x[0] == 0
    again = pc.share(x[1:])
    again[0] = 7
    assert x[1] == 7


@pytest.mark.parametrize(("shape", "order"), [(5, "C"), ((2, 3), "F"), ((0,), "C"), ((), "C"), (np.int64(4), "C")])
def test_empty_has_the_shape_and_the_order_of_numpys(shape, order):
    x, plain = pc.SharedArray.empty(shape, "i4", order), np.empty(shape, "i4", order)
    assert (x.shape, x.dtype, x.flags.f_contiguous) == (plain.shape, plain.dtype, plain.flags.f_contiguous)
    x[...] = 7
    assert (x == 7).all()


@pytest.mark.parametrize("make", [lambda: pc.share(np.array([None])), lambda: pc.SharedArray.empty(3, object)])
def test_objects_cannot_be_shared(make):
    with pytest.raises(TypeError, match="Python objects"):
        make()


def test_what_is_computed_from_a_shared_array_is_an_ordinary_array():
    x = pc.share(np.arange(6.0).reshape(2, 3))
    for result in (x + 1, np.sqrt(x), x > 2, x.copy(), x * x, np.where(x > 1, x, 0), np.concatenate([x, x])):
        assert type(result) is np.ndarray
        assert shared.reference(result) is None
    assert isinstance(x.sum(), np.floating)
    assert type(x.sum(axis=0)) is np.ndarray
    assert type(copy.deepcopy(x)) is not type(None)
    assert pickle.loads(pickle.dumps(x + 1)).tolist() == [[1, 2, 3], [4, 5, 6]]


def test_a_large_result_pickles_by_value_and_a_shared_array_by_reference():
    x = pc.share(np.zeros(100_000))
    assert len(pickle.dumps(x + 1)) > x.nbytes
    assert len(pickle.dumps(x)) < 1_000


def test_arithmetic_in_place_stays_in_shared_memory():
    x = pc.share(np.zeros(4))
    same = x
    same += 1
    np.add(x, 1, out=x)
    assert (same is x, x.tolist()) == (True, [2.0] * 4)


# --- references --------------------------------------------------------------------------------------------


def views(x):
    return {
        "whole": x,
        "slice": x[10:20],
        "strided": x[::3, 1::2],
        "backwards": x[::-1],
        "transposed": x.T,
        "one item": x[3],
        "reshaped": x.reshape(-1),
        "as bytes": x.view("u1"),
        "no items": x[:0],
        "new axis": x[:, None],
    }


@pytest.mark.parametrize("name", views(np.empty((100, 8))))
@pytest.mark.parametrize("protocol", [2, 4, 5])
def test_an_array_and_its_views_pickle_to_less_than_a_kilobyte(name, protocol):
    view = views(pc.share(np.arange(800.0).reshape(100, 8)))[name]
    pickled = pickle.dumps(view, protocol)
    assert len(pickled) < 1_000
    again = pickle.loads(pickled)
    assert (again.shape, again.strides, again.dtype) == (view.shape, view.strides, view.dtype)
    assert np.shares_memory(again, view) or not view.size


@linux
@pytest.mark.parametrize("name", [name for name in views(np.empty((100, 8))) if name != "no items"])
def test_another_process_sees_the_same_memory(other, name):
    x = pc.share(np.zeros((100, 8)))
    view = views(x)[name]
    other.run(keep, "view", view)

    def write():
        kept("view")[...] = 1
        return kept("view").shape

    assert other.run(write) == view.shape
    assert (np.asarray(view) == 1).all()
    assert x.view("u1").any()
    view[...] = 2
    assert other.run(lambda: bool((kept("view") == 2).all()))


@linux
def test_a_reference_goes_on_from_process_to_process(other, third):
    x = pc.share(np.zeros(10))
    other.run(keep, "x", x)
    third.run(keep, "x", other.run(lambda: kept("x")[5:]))
    third.run(lambda: kept("x").__setitem__(0, 3.0))
    assert x[5] == 3.0


@linux
def test_a_read_only_array_stays_read_only_elsewhere(other):
    x = pc.share(np.zeros(10))
    x.flags.writeable = False
    with pytest.raises(ValueError, match="read-only"):
        other.run(lambda x: x.__setitem__(0, 1.0), x)

    def force(x):
        x.flags.writeable = True

    with pytest.raises(ValueError, match="WRITEABLE"):
        other.run(force, x)


@linux
def test_one_segment_is_mapped_once_per_process(other):
    x = pc.share(np.zeros(10))

    def addresses(*arrays):
        return [array.__array_interface__["data"][0] for array in arrays]

    one, same, next_item = other.run(addresses, x, x, x[1:])
    assert (same - one, next_item - one) == (0, 8)


@linux
def test_an_array_that_is_read_and_then_written_is_mapped_once(other):
    x = pc.share(np.zeros(10))
    read_only = x[:]
    read_only.flags.writeable = False

    def addresses(*arrays):
        return [(array.__array_interface__["data"][0], array.flags.writeable) for array in arrays]

    (first, *flags), (second, *others) = other.run(addresses, read_only, x)
    assert first == second
    assert (flags, others) == ([False], [True])


N_PAGES = 1024


def faults_of_writing(x, touching):
    import resource

    from parcompute.memory import shared

    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    if touching:
        shared.touch(x)
        assert (np.asarray(x) == 1).all()
    x[:] = 2
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before


@linux
def test_touched_rows_are_written_with_a_fraction_of_the_faults(other):
    x = pc.share(np.ones(N_PAGES * 512))
    assert other.run(faults_of_writing, x, True) < N_PAGES / 4
    assert (x == 2).all()


@pytest.mark.parametrize(
    "rows", [np.ones(N_PAGES * 512), pc.share(np.ones((0, 3))), pc.share(np.ones((600, 600)))[:, ::2]]
)
def test_what_cannot_be_touched_stays_as_it_is(rows):
    before = rows.copy()
    shared.touch(rows)
    assert np.array_equal(rows, before)


def counted():
    import re
    import resource
    from pathlib import Path

    kib = int(re.search(r"RssShmem:\s+(\d+) kB", Path("/proc/self/status").read_text())[1])
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt, kib * 1024


def numbers(block, out):
    out[:] = np.arange(block.start, block.stop)


@linux
@pytest.mark.parametrize("start_method", ["fork", "forkserver", "spawn"])
def test_a_worker_faults_its_rows_in_by_many_pages_and_no_others(start_method):
    whole = pc.share(np.ones(2 * N_PAGES * 512))
    half = whole[N_PAGES * 512 :]
    with pc.Executor(1, start_method=start_method) as executor:
        executor.map_blocks(numbers, n_items=10, dtype=float, item_shape=())
        n_faults, n_bytes = executor.submit(counted).result()
        executor.map_blocks(numbers, n_items=len(half), out=half)
        n_faults, n_bytes = np.subtract(executor.submit(counted).result(), (n_faults, n_bytes))
    assert n_faults < N_PAGES / 2
    assert n_bytes < 1.25 * half.nbytes
    assert np.array_equal(half, np.arange(N_PAGES * 512))
    assert (whole[: N_PAGES * 512] == 1).all()


@linux
def test_a_forked_child_shares_too():
    x = pc.share(np.zeros(2))
    if (pid := os.fork()) == 0:
        x[0] = 5
        pickle.loads(pickle.dumps(x))[1] = 6
        os._exit(0)
    assert os.waitpid(pid, 0)[1] == 0
    assert x.tolist() == [5, 6]


# --- ends --------------------------------------------------------------------------------------------------


def test_a_view_outlives_the_array():
    x = pc.share(np.arange(1_000_000.0))
    view = np.asarray(x)[10:20]
    del x
    gc.collect()
    pc.share(np.zeros(1_000_000))
    assert view.tolist() == list(range(10, 20))


@linux
def test_what_another_process_has_unpickled_outlives_the_array_here(other):
    x = pc.share(np.arange(1_000_000.0))
    other.run(keep, "x", x[5:])
    del x
    gc.collect()
    for _ in range(3):
        pc.share(np.zeros(1_000_000))
    assert other.run(lambda: kept("x")[:3].tolist()) == [5, 6, 7]
    assert other.run(lambda: float(kept("x").sum())) == sum(range(5, 1_000_000))


@linux
def test_what_another_process_has_unpickled_outlives_the_creator(other, third):
    other.run(lambda: keep("x", __import__("parcompute").share(__import__("numpy").arange(10.0))))
    x = other.run(lambda: kept("x"))
    third.run(keep, "x", x)
    other.kill()
    x[0] = 7
    assert third.run(lambda: kept("x").tolist()) == [7, *range(1, 10)]


@linux
def test_a_released_array_is_answered_with_what_to_do(other):
    x = pc.share(np.zeros((10, 3)))
    pickled = pickle.dumps(x)
    del x
    gc.collect()
    leases.release_kept()
    with pytest.raises(ReferenceError, match=rf"shape \(10, 3\) was released.*process {os.getpid()}.*keep it alive"):
        other.run(pickle.loads, pickled)


@linux
def test_a_released_array_is_not_mistaken_for_its_successor(other):
    """The next segment gets the same descriptor number."""
    x = pc.share(np.zeros(1_000))
    pickled = pickle.dumps(x)
    del x
    gc.collect()
    arrays = [pc.share(np.ones(1_000)) for _ in range(5)]
    with pytest.raises(ReferenceError, match="was released"):
        other.run(pickle.loads, pickled)
    del arrays


@linux
@pytest.mark.parametrize(
    "lie",
    [
        {"offset": -8},
        {"offset": 8},
        {"shape": (11,)},
        {"shape": (-1,)},
        {"strides": (-8,)},
        {"strides": (16,)},
        {"dtype": np.dtype("V16")},
        {"shape": (5,), "strides": (2**62,)},  # four steps are 2**64: in 64 bits back to the start
        {"shape": (2**33 + 1, 2), "strides": (2**31, 8)},
        {"shape": (10, 2), "strides": (8,)},
        {"segment_bytes": 2**40},
    ],
)
def test_a_reference_that_leads_out_of_its_segment_is_refused(monkeypatch, lie):
    array = pc.share(np.arange(10.0))
    where = shared.reference(array)
    assert shared.attach(where).tolist() == array.tolist()
    assert shared.attach(where._replace(offset=72, strides=(-8,))).tolist() == array[::-1].tolist()
    monkeypatch.setattr(segments, "_mapped", {})  # as in another process
    with pytest.raises((ReferenceError, ValueError)):
        shared.attach(where._replace(**lie))


@linux
def test_a_reference_is_believed_only_where_the_segment_itself_is_found():
    array, other = pc.share(np.arange(10.0)), pc.share(np.arange(20.0))
    where = shared.reference(array)._replace(inode=2**40)
    with pytest.raises(ReferenceError, match="was released"):
        shared.attach(where._replace(descriptor=shared.reference(other).descriptor))


@linux
def test_nobody_else_may_open_a_segment():
    array = pc.share(np.arange(10.0))
    where = shared.reference(array)
    assert os.stat(f"/proc/{where.pid}/fd/{where.descriptor}").st_mode & 0o777 == 0o600


def test_an_array_of_an_ended_process_is_answered_the_same_way(other):
    pickled = other.run(
        lambda: (
            keep("x", __import__("parcompute").share(__import__("numpy").zeros(3))),
            __import__("pickle").dumps(kept("x")),
        )[1]
    )
    other.kill()
    with pytest.raises(ReferenceError, match=f"process {other.process.pid}.*has ended"):
        pickle.loads(pickled)


@linux
def test_what_a_worker_keeps_of_an_argument_does_not_change_under_it():
    with pc.Executor(1) as executor:
        for make in (np.copy, pc.share):
            x = make(np.arange(300_000.0))
            executor.submit(keep, "x", x).result()
            del x
            gc.collect()
            successors = [pc.share(np.zeros(300_000)) for _ in range(5)]
            assert executor.submit(lambda: float(kept("x").sum())).result() == sum(range(300_000))
            del successors


# --- nothing is left ---------------------------------------------------------------------------------------


@linux
def test_a_thousand_arrays_leave_no_descriptor_behind():
    gc.collect()
    leases.release_kept()
    before = descriptors()
    for n in range(1_000):
        x = pc.share(np.arange(100.0))
        pickle.loads(pickle.dumps(x[n % 100 :]))
    del x
    gc.collect()
    leases.release_kept()
    assert descriptors() == before


@linux
def test_a_thousand_arrays_leave_no_mapping_and_no_descriptor_in_a_process_that_unpickles_them(other):
    def count():
        with open("/proc/self/maps") as maps:
            return len(os.listdir("/proc/self/fd")), sum("/dev/shm" in line for line in maps)

    other.run(np.sum, pc.share(np.ones(3)))
    before = other.run(count)
    for _ in range(300):
        assert other.run(np.sum, pc.share(np.ones(100))) == 100
    assert other.run(count) == before


@linux
def test_no_name_ever_appears_in_dev_shm():
    before = set(os.listdir("/dev/shm"))
    x = pc.share(np.zeros(1_000))
    appeared = set(os.listdir("/dev/shm")) - before
    with open("/proc/self/maps") as maps:
        mapped = maps.read()
    assert [name for name in appeared if name in mapped] == []  # other programs may have made theirs
    del x


SHARER = """
import os, sys
import numpy as np
import parcompute as pc
arrays = [pc.share(np.zeros(50_000)) for _ in range(5)]
ex = pc.Executor(2, start_method=sys.argv[1])
ex.wait_until_ready()
print(os.getpid(), *ex.worker_pids, flush=True)
while True:
    arrays[np.random.default_rng().integers(5)] = ex.map_blocks(np.sqrt, arrays[0], block_items=500)
"""


@linux
@pytest.mark.slow
def test_a_program_that_is_killed_at_any_moment_leaves_nothing_in_dev_shm():
    moments = random.Random(1)
    before = set(os.listdir("/dev/shm"))
    for kill in range(15):
        method = ("fork", "forkserver", "spawn")[kill % 3]
        program = subprocess.Popen(
            [sys.executable, "-c", SHARER, method], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
        )
        _, *workers = (int(pid) for pid in program.stdout.readline().split())
        # Not to synchronise, but to be killed anywhere.
        with contextlib.suppress(subprocess.TimeoutExpired):
            program.wait(moments.uniform(0, 0.2))
        program.kill()
        assert program.wait() == -signal.SIGKILL
        assert ended(workers, within_s=1)
        assert program.stderr.read() == ""
        program.stdout.close()
        program.stderr.close()
    of_others = ("sem.", "joblib", "loky", "pymp", "mpich")  # programs that may run beside this one
    assert [name for name in set(os.listdir("/dev/shm")) - before if not name.startswith(of_others)] == []


# --- too little memory -------------------------------------------------------------------------------------

FILLS = """
import os, signal
import numpy as np
import parcompute as pc

def filled(mib):
    try:
        x = pc.share(np.ones(mib * 2**17))
    except pc.SharedMemoryFull as error:
        print("full", error.needed >> 20, error.available >> 20, error)
        return None
    x[:] = 2
    return x

kept = filled(40)
filled(40)
print(float(kept.sum()) == 2 * kept.size)
try:
    pc.SharedArray.empty(40 * 2**17)
except pc.SharedMemoryFull:
    print("full")
with pc.Executor(2) as ex:
    try:
        ex.map_blocks(lambda block: np.ones((block.size, 2**17)), n_items=40, block_items=1)
    except pc.SharedMemoryFull as error:
        print("full", error.needed >> 20)
    print(ex.map_blocks(np.sqrt, np.ones(5)).tolist())
    del kept
    print(filled(40) is not None)
    print(float(ex.map_blocks(lambda block: np.ones((block.size, 2**17)), n_items=10, block_items=1).sum()))
print(os.listdir("/dev/shm"))
"""


@linux
def test_a_small_dev_shm_is_answered_before_anything_breaks(tmp_path):
    (tmp_path / "fills.py").write_text(FILLS)
    small = 'mount -t tmpfs -o size=64m tmpfs /dev/shm && exec "$@"'
    done = subprocess.run(
        ["unshare", "-m", "sh", "-c", small, "sh", sys.executable, "-W", "error", "fills.py"],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        timeout=100,
    )
    if "Operation not permitted" in done.stderr or "permission denied" in done.stderr.lower():
        pytest.skip(f"cannot mount a small /dev/shm here: {done.stderr.strip()}")
    assert (done.returncode, done.stderr) == (0, "")
    lines = done.stdout.splitlines()
    assert lines[0].startswith("full 40 2")
    assert "40.0 MiB of shared memory needed, 2" in lines[0]
    assert "enlarge it (docker: --shm-size)" in lines[0]
    assert lines[1:] == ["True", "full", "full 40", "[1.0, 1.0, 1.0, 1.0, 1.0]", "True", f"{10 * 2**17:.1f}", "[]"]


GROUP = """
import numpy as np
import parcompute as pc
try:
    pc.SharedArray.empty(300 * 2**17)
except pc.SharedMemoryFull as error:
    print("full at once", error)
kept = []
try:
    while len(kept) < 60:
        kept.append(pc.SharedArray.empty(10 * 2**17))
        kept[-1][:] = 1
except pc.SharedMemoryFull as error:
    print("full", 5 < len(kept) < 20)
del kept[5:]
with pc.Executor(1) as ex:
    print(ex.reduce_blocks(np.sum, kept[0][:5]))
"""


@linux
def test_a_small_memory_group_is_answered_instead_of_a_kill(tmp_path):
    group = memory_group()

    def enter():
        with open(f"{group}/cgroup.procs", "w") as members:
            members.write(str(os.getpid()))

    try:
        with open(f"{group}/memory.limit_in_bytes", "w") as limit:
            limit.write(str(200 * 2**20))
        done = subprocess.run(
            [sys.executable, "-W", "error", "-c", GROUP],
            capture_output=True,
            text=True,
            timeout=100,
            preexec_fn=enter,
        )
    finally:
        with open(f"{group}/cgroup.procs") as members:
            assert ended(map(int, members), within_s=10)
        os.rmdir(group)
    assert (done.returncode, done.stderr) == (0, "")
    first, *others = done.stdout.splitlines()
    assert first.startswith("full at once 300.0 MiB of shared memory needed, 1")
    assert "raise the limit" in first
    assert others == ["full True", "5.0"]


def memory_group():
    """Make a memory control group (version 1) below the own one, or skip."""
    try:
        with open("/proc/self/cgroup") as lines:
            own = next(path for _, names, path in (line.strip().split(":", 2) for line in lines) if names == "memory")
        group = f"/sys/fs/cgroup/memory{own.rstrip('/')}/parcompute-test-{random.randrange(10**12)}"
        os.mkdir(group)
    except (StopIteration, OSError) as error:
        pytest.skip(f"no memory control group can be made here: {error!r}")
    return group


def test_a_full_file_system_is_answered_with_both_numbers(monkeypatch):
    def refuse(fd, offset, size):
        raise OSError(errno.ENOSPC, "No space left on device")

    leases.release_kept()
    before = descriptors()
    monkeypatch.setattr(segments.os, "posix_fallocate", refuse)
    with pytest.raises(
        pc.SharedMemoryFull, match=r"0\.8 MiB of shared memory needed, .* available; free some of"
    ) as full:
        pc.SharedArray.empty(100_000)
    assert full.value.needed == 800_000
    assert full.value.available > 0
    assert isinstance(full.value, MemoryError)
    again = pickle.loads(pickle.dumps(full.value))
    assert (str(again), again.needed, again.remedy) == (str(full.value), 800_000, full.value.remedy)
    del full
    gc.collect()
    assert descriptors() == before


# --- where files without names are not to be had -------------------------------------------------------------


@pytest.fixture
def without_nameless_files(monkeypatch):
    really_open = os.open

    def refusing(path, flags, *args, **kwargs):
        if flags & os.O_TMPFILE == os.O_TMPFILE:
            raise OSError(errno.EOPNOTSUPP, "Operation not supported")
        return really_open(path, flags, *args, **kwargs)

    leases.release_kept()
    monkeypatch.setattr(segments.os, "open", refusing)


@linux
@pytest.mark.usefixtures("without_nameless_files")
def test_named_segments_serve_as_well_and_lose_their_name_at_once(other):
    before = set(os.listdir("/dev/shm"))
    x = pc.share(np.arange(10.0))
    assert {name for name in set(os.listdir("/dev/shm")) - before if name.startswith("psm_")} == set()
    other.run(lambda x: x.__setitem__(0, 7.0), x)
    assert x[0] == 7
    assert len(pickle.dumps(x)) < 1_000
    with pc.Executor(2) as executor:
        assert executor.map_blocks(np.sqrt, np.ones(300_000)).sum() == 300_000


@linux
@pytest.mark.usefixtures("without_nameless_files")
def test_named_segments_that_do_not_fit_leave_no_descriptor_behind(monkeypatch):
    def refuse(fd, offset, size):
        raise OSError(errno.ENOSPC, "No space left on device")

    pc.share(np.ones(3))  # starts the standard library's resource tracker
    leases.release_kept()
    before = descriptors()
    monkeypatch.setattr(segments.os, "posix_fallocate", refuse)
    for _ in range(3):
        with pytest.raises(pc.SharedMemoryFull):
            pc.SharedArray.empty(100_000)
    gc.collect()
    assert descriptors() == before


# --- memory that is kept -----------------------------------------------------------------------------------


def test_threads_that_make_and_drop_arrays_never_get_the_same_memory():
    wrong = []

    def work(mark):
        for _ in range(300):
            x = pc.SharedArray.empty(500)
            x[:] = mark
            if not (x == mark).all():
                wrong.append("written by another")
            del x

    threads = [threading.Thread(target=work, args=(mark,)) for mark in (1.0, 2.0, 3.0)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert wrong == []


def test_results_of_earlier_jobs_are_not_written_over_by_later_ones():
    with pc.Executor(2) as executor:
        results = [executor.map_blocks(np.add, np.full(300_000, float(n)), args=(1.0,)) for n in range(6)]
        results[2] = None
        results += [executor.map_blocks(np.add, np.full(300_000, float(n)), args=(1.0,)) for n in range(6, 9)]
    assert [float(result[0]) for result in results if result is not None] == [1, 2, 4, 5, 6, 7, 8, 9]
    assert all((result == result[0]).all() for result in results if result is not None)


def test_an_array_is_no_dataset_while_h5py_is_being_imported(monkeypatch):
    monkeypatch.setitem(sys.modules, "h5py", types.ModuleType("h5py"))
    assert not sources.is_dataset(np.zeros(1))
