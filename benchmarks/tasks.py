"""What the contenders compute: the same functions, data and expected answers for all of them."""

from __future__ import annotations

import itertools
import math
import os
import shutil
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path

import numpy as np

N_WORKERS = 2
N_VALUES = 2**25  # float64: 256 MiB
POINTS_PER_BLOCK = 65_536


# --- without data ------------------------------------------------------------------------------------------


def noop(_):
    return 0.0


def identity(i):
    return i


def loaded(_):
    """Use NumPy, so that it has to be there."""
    return float(np.ones(8).sum())


def called_each(function, items):
    return [function(item) for item in items]


# --- square roots ------------------------------------------------------------------------------------------


def values():
    """Return the big input, the same in every process."""
    return np.random.default_rng(20).random(N_VALUES)


def halves(n):
    return np.full(n, 0.5)


def root_sum(rows):
    return float(np.sqrt(rows).sum())


def root_sums(x, first, last, block_items, gate=None):
    """Return the partial of each block of a range: what one task of well-chosen size computes."""
    sums = []
    for i in range(first, last):
        if gate is not None:
            gate.stop(i)
        sums.append(root_sum(x[i * block_items : (i + 1) * block_items]))
    return sums


def roots_into(out, x, first, last, block_items):
    """Fill the rows of each block of a range."""
    for i in range(first, last):
        rows = slice(i * block_items, (i + 1) * block_items)
        np.sqrt(x[rows], out=out[rows])


def ranges(n_blocks, n_tasks=64):
    """Cut blocks into tasks: 32 per worker balance two workers and cost nothing to hand out."""
    return list(itertools.pairwise(np.linspace(0, n_blocks, min(n_tasks, n_blocks) + 1).astype(int).tolist()))


# --- arrays that are read and written in turn --------------------------------------------------------------


def fill(value, out):
    out[...] = value


def scaled_sum(b, c, q, out):
    np.multiply(c, q, out=out)
    out += b


def triad(executor, a, b, c):
    """Go over three arrays as STREAM does."""
    for x in a, b:
        executor.map_blocks(fill, n_items=len(x), out=x, args=(2.0,))
    for target, x, y, q in (c, a, b, 0.0), (b, c, a, 2.0), (c, a, b, 1.0), (a, b, c, 3.0):
        executor.map_blocks(scaled_sum, x, y, out=target, args=(q,))
    return a, b, c


def along_rows(rows):
    return np.fft.fft(rows, axis=1)


def along_columns(field, block, out):
    out[...] = along_rows(np.ascontiguousarray(field[:, block.start : block.stop].T))


def fft2(executor, field, between, result):
    """Transform rows, then columns, which transposes the field."""
    executor.map_blocks(along_rows, field, out=between)
    return executor.map_blocks(along_columns, n_items=len(field), block_items=16, out=result, args=(between,))


def triad_arrays(empty):
    """Return three arrays of 64 MiB, written before, and the check of what `triad` makes of them."""
    arrays = [empty(N_VALUES // 4) for _ in "abc"]
    for x in arrays:
        x[:] = 1.0
    return arrays, _check_triad


def fft2_arrays(empty):
    """Return a field of 64 MiB and two places for transforms, written before, and the check of `fft2`."""
    arrays = [empty((2048, 2048), complex) for _ in range(3)]
    for x in arrays:
        x[:] = np.random.default_rng(20).random((2048, 2048))
    return arrays, same_array(along_rows(np.ascontiguousarray(along_rows(arrays[0]).T)))


def _check_triad(answer):
    for x, expected in zip(answer, (30.0, 6.0, 8.0), strict=True):
        equal_to((expected, expected))((float(x.min()), float(x.max())))


# --- Monte Carlo -------------------------------------------------------------------------------------------


def hits_of(rng, size):
    x, y = rng.random(size), rng.random(size)
    x *= x
    y *= y
    x += y
    return int(np.count_nonzero(x < 1))


def pi_hits_between(seed, n_points, edges):
    """Count the hits of a range of blocks of points, each with a stream of its own."""
    hits = 0
    for index in range(*edges):
        size = min(POINTS_PER_BLOCK, n_points - index * POINTS_PER_BLOCK)
        hits += hits_of(np.random.default_rng(np.random.SeedSequence(seed, spawn_key=(index,))), size)
    return hits


def n_pi_blocks(n_points):
    return -(-n_points // POINTS_PER_BLOCK)


# --- tasks of unequal length -------------------------------------------------------------------------------


def durations(n_tasks, total_s, n_workers):
    """Return task lengths with a heavy tail (lognormal, σ = 1.2) in random order, and the least makespan there is."""
    lengths = np.random.default_rng(5).lognormal(sigma=1.2, size=n_tasks)
    lengths *= total_s / lengths.sum()
    return lengths.tolist(), max(math.fsum(lengths) / n_workers, max(lengths))


def spin(duration_s):
    """Keep a core busy for so long by the wall clock, so that a neighbour changes no task's length."""
    end = time.perf_counter() + duration_s
    while time.perf_counter() < end:
        pass
    return duration_s


# --- the truth ---------------------------------------------------------------------------------------------


class WrongAnswer(AssertionError):
    """A contender returned something else than what was asked for; its time does not count."""


def equal_to(expected):
    return partial(_check_equal, expected)


def _check_equal(expected, answer):
    if answer != expected:
        raise WrongAnswer(f"got {answer!r:.60}, expected {expected!r:.60}")


def array_of_roots(x):
    return partial(_check_array, np.sqrt(x))


def same_array(x):
    return partial(_check_array, x)


def _check_array(expected, answer):
    if not np.array_equal(answer, expected):
        raise WrongAnswer("the array out is not the expected one")


def root_sum_of(x, n_blocks):
    """Sums of the same partials in another order are equal to a few units in the last place."""
    return partial(_check_sum, math.fsum(root_sums(x, 0, n_blocks, len(x) // n_blocks)))


def _check_sum(expected, answer):
    if not math.isclose(answer, expected, rel_tol=1e-12):
        raise WrongAnswer(f"got {answer!r}, expected {expected!r}")


def pi_from(n_points):
    """Hits of random points are binomial; four standard errors are less than one lost task of 64."""
    return partial(_check_pi, n_points)


def _check_pi(n_points, hits):
    error, allowed = abs(4 * hits / n_points - math.pi), 4 * math.sqrt(math.pi * (4 - math.pi) / n_points)
    if error > allowed:
        raise WrongAnswer(f"{4 * hits / n_points:.6f} is {error:.2g} from π, allowed are {allowed:.2g}")


# --- a look at workers that are at work --------------------------------------------------------------------


class Gate:
    """Holds each worker in its first block from `first` on, until the caller has looked."""

    WAIT_S = 20.0

    def __init__(self, first):
        self.first, self.folder = first, Path(tempfile.mkdtemp(prefix="gate-"))

    def stop(self, i):
        """In a worker: wait, once."""
        mine = self.folder / str(os.getpid())
        if i >= self.first and not mine.exists() and self.folder.exists():
            mine.touch()
            self._wait_for(lambda: (self.folder / "open").exists())

    def look(self, look, job):
        """In the caller: return what `look` returns while all workers are held in `job`, and the job's result."""
        try:
            with ThreadPoolExecutor(1) as beside:
                seen = beside.submit(self._look, look)
                try:
                    result = job()
                finally:
                    (self.folder / "open").touch()
                return seen.result(), result
        finally:
            shutil.rmtree(self.folder)

    def _look(self, look):
        try:
            self._wait_for(lambda: self._n_inside() >= N_WORKERS or (self.folder / "open").exists())
            if (n_inside := self._n_inside()) != N_WORKERS:
                raise RuntimeError(f"{n_inside} of {N_WORKERS} workers were at work at once")
            return look()
        finally:
            (self.folder / "open").touch()

    def _n_inside(self):
        return sum(path.name != "open" for path in self.folder.iterdir())

    def _wait_for(self, condition):
        deadline = time.monotonic() + self.WAIT_S
        while not condition() and time.monotonic() < deadline:
            time.sleep(0.002)
