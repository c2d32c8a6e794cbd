"""Thousands of executors, and of jobs of one executor, one after the other, and nothing grows."""

import json
import time

import numpy as np
import pytest
from kills import ROUNDS
from programs import A_SECOND, JOBS, Program

MIB = 2**20

GROWTH = f"""{JOBS}
def belongings(pids):
    gc.collect()
    leases.release_kept()
    sizes = [psutil.Process(pid).memory_info().rss for pid in (os.getpid(), *pids)]
    return sizes, len(os.listdir("/proc/self/fd")), threading.active_count(), len(children())

def executors(n):
    for number in range(n):
        if number == n // 5:
            yield belongings(())
        with an_executor() as ex:
            ready = chance.random() < 0.5 and ex.wait_until_ready()
            if chance.random() < 0.9:
                one_job(ex)
    yield belongings(())

def jobs(n):
    x = np.arange(40.0)
    with pc.Executor(2, start_method=method) as ex:
        ex.wait_until_ready()
        for number in range(n):
            if number == n // 5:
                yield belongings(ex.worker_pids)
            kind = chance.randrange(8)
            if kind == 0:
                assert ex.map_blocks(np.negative, x, block_items=9)[3] == -3.0
            elif kind == 1:
                assert ex.reduce_blocks(np.sum, x, block_items=9) == 780.0
            else:
                future = ex.submit(pow, 2, number % 50)
                assert number % 9 or future.result() == 2 ** (number % 50)
        future.result()
        yield belongings(ex.worker_pids)

before, after = {{"executors": executors, "jobs": jobs}}[sys.argv[3]](int(sys.argv[4]))
print(json.dumps([before, after]))
"""


def growth(tmp_path, chance, what, n, method):
    """Return how many bytes this program and each worker has grown after its first fifth, and check all else."""
    with Program(GROWTH, tmp_path, method, chance.getrandbits(32), what, n) as program:
        status, out, err = program.ended(270)
        assert (status, err) == (0, "")
        (sizes_before, *before), (sizes_after, *after) = json.loads(out)
        assert after == before, "descriptors, threads, children"
        program.assert_nothing_is_left(time.monotonic() + A_SECOND)
    grown = np.subtract(sizes_after, sizes_before)
    print(f"{n} {what}: grown by {grown // 1024} KiB from {np.array(sizes_before) // 1024} KiB")
    return grown


# One page lost per executor would be 6 MiB after 1,600 of them, one object of 100 bytes per job 8 MiB after 80,000.
# What the allocator keeps at the end is more or less than at the beginning by up to some MiB, however many there were.
MAY_GROW = 5 * MIB


@pytest.mark.parametrize(
    ("start_method", "n"),
    [
        ("fork", 30),
        *(
            pytest.param(method, round(n * ROUNDS), marks=[pytest.mark.stress, pytest.mark.timeout(300)])
            for method, n in (("fork", 2_000), ("forkserver", 2_000), ("spawn", 100))
        ),
    ],
)
def test_executors_one_after_the_other_leave_nothing(start_method, n, chance, tmp_path):
    assert growth(tmp_path, chance, "executors", n, start_method).max() < MAY_GROW


@pytest.mark.parametrize(
    "n",
    [1_000, pytest.param(round(100_000 * ROUNDS), marks=[pytest.mark.stress, pytest.mark.timeout(300)])],
)
def test_jobs_one_after_the_other_leave_nothing(n, chance, tmp_path):
    assert growth(tmp_path, chance, "jobs", n, "forkserver").max() < MAY_GROW
