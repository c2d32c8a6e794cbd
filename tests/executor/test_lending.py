"""What a call is lent it may write to, and gives back: memory and descriptors are bounded by what is alive."""

import os
import resource
import shutil
import subprocess
import sys
import threading

import cloudpickle
import numpy as np
import pytest

import parcompute as pc
from parcompute.jobs import pickling
from parcompute.memory import leases

# The workers of a test session can import the package, but not its tests.
cloudpickle.register_pickle_by_value(sys.modules[__name__])

MIB = 2**20
LARGE = MIB // 8 + 1000  # float64: above the size from which arrays are shared


@pytest.fixture(params=["fork", "forkserver", "spawn"])
def executor(request):
    with pc.Executor(2, start_method=request.param) as executor:
        executor.wait_until_ready()
        INHERITED.clear()
        INHERITED.update({pid: mapped_bytes(pid) for pid in executor.worker_pids})
        yield executor


INHERITED = {}  # by a forked worker, from whatever this process had mapped by then


def first(x, *_):
    return float(x[0])


def mapped_bytes(pid):
    """Return the bytes of shared memory that a process has mapped, but for those that it was born with."""
    found = -INHERITED.get(pid, 0)
    with open(f"/proc/{pid}/maps") as maps:
        for line in maps:
            if "/dev/shm" in line:
                begin, end = (int(part, 16) for part in line.split()[0].split("-"))
                found += end - begin
    return found


def used_bytes():
    status = os.statvfs("/dev/shm")
    return (status.f_blocks - status.f_bfree) * status.f_frsize


def wait_for(condition):
    """Return when a condition holds; a worker that has time lets go of what it remembers within a moment."""
    for _ in range(200):
        if condition():
            return
        threading.Event().wait(0.05)
    assert condition()


@pytest.mark.parametrize("how", ["plain", "shared", "closure", "keyword"])
def test_arrays_of_calls_are_released_when_the_call_is_over(executor, how):
    before = used_bytes()
    for i in range(30):
        x = np.full(2 * MIB // 8, float(i))
        if how == "closure":
            assert executor.submit(lambda x=x: first(x)).result() == i
        elif how == "keyword":
            assert executor.submit(first, x=x).result() == i
        else:
            assert executor.submit(first, pc.share(x) if how == "shared" else x).result() == i
        del x
    leases.release_kept()
    wait_for(lambda: used_bytes() - before < 8 * MIB)
    assert all(len(os.listdir(f"/proc/{pid}/fd")) < 60 for pid in executor.worker_pids)
    assert all(mapped_bytes(pid) < 8 * MIB for pid in executor.worker_pids)


def test_arrays_of_the_functions_of_maps_are_released_when_the_map_is_over(executor):
    for i in range(12):
        x = np.full(2 * MIB // 8, float(i))
        assert list(executor.map(lambda k, x=x: first(x) + k, range(3))) == [i, i + 1, i + 2]
    del x
    wait_for(lambda: all(mapped_bytes(pid) < 2 * MIB for pid in executor.worker_pids))


@pytest.mark.parametrize("backend", ["processes", "pool", "joblib", "auto"])
def test_a_call_may_write_to_its_arguments_whatever_their_size_and_the_callers_stay(backend):
    def overwrite(x):
        x[:] = -1
        return float(x.sum())

    with pc.Executor(2, backend=backend) as executor:
        for n in (10, LARGE):
            for x in (np.ones(n), pc.share(np.ones(n)), np.asfortranarray(np.ones((n, 2)))):
                for _ in range(2):  # what another call has written to is not seen
                    assert executor.submit(overwrite, x).result() == -x.size
                assert list(executor.map(overwrite, [x, x])) == [-x.size] * 2
                assert (x == 1).all()


def test_a_call_may_write_to_a_memmap_and_the_file_stays(tmp_path):
    x = np.memmap(tmp_path / "x", float, "w+", shape=LARGE)
    x[:] = 1

    def overwrite(x):
        x[:] = -1
        return float(x.sum())

    with pc.Executor(1) as executor:
        assert executor.submit(overwrite, x).result() == -LARGE
    assert (np.fromfile(tmp_path / "x") == 1).all()


KEPT = []


def keep(x):
    KEPT.append(x)
    return len(KEPT)


def kept(i):
    return float(KEPT[i][0]), float(KEPT[i][-1])


def test_what_a_call_keeps_stays_as_it_was():
    module = sys.modules[__name__]
    cloudpickle.unregister_pickle_by_value(module)  # by name, so that the module's variable is one and the same
    try:
        with pc.Executor(1, start_method="fork") as executor:
            for i in range(4):
                x = np.full(LARGE, float(i))
                assert executor.submit(keep, x).result() == i + 1
                del x
            assert [executor.submit(kept, i).result() for i in range(4)] == [(i, i) for i in range(4)]
    finally:
        cloudpickle.register_pickle_by_value(module)


@pytest.fixture
def few_descriptors():
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (200, hard))
    yield
    resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


def test_more_large_calls_wait_than_there_may_be_open_files(few_descriptors):
    with pc.Executor(2, start_method="fork") as executor:
        gate, futures = np.full(LARGE, 0.5), []
        for i in range(150):
            gate[0] = i
            futures.append(executor.submit(first, gate.copy()))
            with open(os.devnull):  # the program itself can open a file at any time
                pass
        assert [future.result() for future in futures] == list(range(150))
        assert executor.submit(first, gate).result() == 149


@pytest.mark.parametrize("verb", ["submit", "map", "map_blocks"])
def test_hundreds_of_large_arrays_travel_in_one_argument(few_descriptors, verb):
    arrays = [np.full(LARGE, float(i)) for i in range(150)]
    with pc.Executor(2, start_method="fork") as executor:
        if verb == "submit":
            assert executor.submit(lambda arrays: [first(x) for x in arrays], arrays).result() == list(range(150))
        elif verb == "map":
            assert list(executor.map(lambda i: first(arrays[i]), range(150))) == list(range(150))
        else:
            ones = executor.map_blocks(
                lambda block, arrays: np.array([first(arrays[i]) for i in range(block.start, block.stop)]),
                n_items=150,
                block_items=10,
                args=(arrays,),
            )
            assert ones.tolist() == list(range(150))


@pytest.mark.parametrize(
    "array",
    [
        np.arange(LARGE),
        np.arange(2.0 * LARGE)[::2],
        np.asfortranarray(np.arange(2.0 * LARGE).reshape(2, -1)),
        np.arange(2.0 * LARGE).reshape(-1, 2)[::-1],
        np.zeros(LARGE, [("a", "i4"), ("b", "f8", 3)]),
        np.arange(LARGE).astype("datetime64[s]"),
        np.full(LARGE, "tëxt"),
        np.arange(LARGE, dtype=">f8"),
    ],
    ids=["ints", "strided", "fortran", "backwards", "structured", "times", "text", "big-endian"],
)
def test_any_array_arrives_as_it_was(array):
    pickled, keep_alive = pickling.dumps((len, ([array, array[:3], array], "x"), {}), "the call")
    _, ((found, few, again), text), _ = pickling.loads(pickled)
    assert len(pickled) < 10_000
    assert found.dtype == array.dtype
    assert found.flags.f_contiguous or not array.flags.f_contiguous
    np.testing.assert_array_equal(found, array)
    np.testing.assert_array_equal(few, array[:3])
    assert found is again
    assert text == "x"
    assert found.flags.writeable
    del keep_alive


def test_arrays_of_a_job_are_read_only_whatever_their_size():
    def kernel(block, small, large):
        return bool(large.flags.writeable)

    with pc.Executor(2) as executor:
        large = np.ones(LARGE)
        assert executor.reduce_blocks(kernel, n_items=2, block_items=1, args=(np.ones(3), large)) == 0


IN_LITTLE = """
import sys
import numpy as np, parcompute as pc

def first(x, i=0):
    return float(x[0]) + i

with pc.Executor(2, start_method=sys.argv[1]) as executor:
    for i in range(15):
        x = np.full(2**21, float(i))
        assert executor.submit(first, x).result() == i
        x = pc.share(np.full(2**20, float(i)))
        assert executor.submit(lambda: first(x)).result() == i
        assert list(executor.map(lambda k: first(x, k), range(3))) == [i, i + 1, i + 2]
print("done")
"""


@pytest.mark.parametrize("start_method", ["fork", "forkserver", "spawn"])
def test_calls_with_large_arrays_go_on_for_ever_in_little_shared_memory(start_method):
    mount = "mount -t tmpfs -o size=64m tmpfs /dev/shm"
    private = ["unshare", "-m", "sh", "-c"]
    if shutil.which("unshare") is None or subprocess.run([*private, mount], capture_output=True).returncode:
        pytest.skip("a private mount needs unshare -m, which is not permitted here")
    command = [*private, f'{mount} && exec "$@"', "sh", sys.executable, "-c", IN_LITTLE, start_method]
    done = subprocess.run(command, capture_output=True, text=True, timeout=100)
    assert (done.stdout, done.stderr, done.returncode) == ("done\n", "", 0)
