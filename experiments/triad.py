"""Memory-bound: where does bandwidth saturate? The STREAM benchmark's four kernels on arrays larger than the caches.

24 bytes move per element and triad, for two operations: one core can nearly fill a memory bus, so that more cores
do not help. The values are exact after any number of repetitions.
"""

import functools

import numpy as np

import parcompute as pc

SCALAR, REPETITIONS = 3.0, 5


def multiply_add(b, c, out):
    """a = b + q·c, in pieces that a core's cache holds, without temporaries of the arrays' size."""
    np.multiply(c, SCALAR, out=out)
    out += b


def scale(c, out):
    """b = q·c."""
    np.multiply(c, SCALAR, out=out)


def add(a, b, out):
    """c = a + b."""
    np.add(a, b, out=out)


def copy(a, out):
    """c = a."""
    np.copyto(out, a)


@functools.lru_cache(maxsize=2)
def arrays(n):
    """Return STREAM's three arrays in shared memory."""
    return tuple(pc.share(np.zeros(n)) for _ in range(3))


def stream_check(found, n):
    """Compare with the values that the same operations give on single numbers, as STREAM does."""
    a, b, c = 1.0, 2.0, 0.0
    for _ in range(REPETITIONS):
        c = a
        b = SCALAR * c
        c = a + b
        a = b + SCALAR * c
    worst = max(np.abs(array / value - 1).mean() for array, value in zip(found, (a, b, c), strict=True))
    return pc.Check(float(worst), 0.0, 1e-13, "STREAM's 1e-13 of mean relative error")


@pc.experiment(
    n_items={"quick": 2**20, "default": 2**24, "full": 2**28}, truth=stream_check, backends=("processes", "threads")
)
def triad(executor, n_items, seed):
    a, b, c = arrays(n_items)
    for array, value in ((a, 1.0), (b, 2.0), (c, 0.0)):
        array[:] = value
    for _ in range(REPETITIONS):
        executor.map_blocks(copy, a, out=c)
        executor.map_blocks(scale, c, out=b)
        executor.map_blocks(add, a, b, out=c)
        executor.map_blocks(multiply_add, b, c, out=a)
    return tuple(array[:: max(1, n_items // 4096)].copy() for array in (a, b, c))


if __name__ == "__main__":
    triad.main()
