"""Where does memory bandwidth saturate? The STREAM triad, a = b + q c, on arrays larger than caches.

There are two operations to 24 bytes of memory traffic, so workers share one memory bus and hardly compute. A
repetition is STREAM's (McCalpin 1995): copy, scale, add, triad, each written as a triad over all three arrays, so
that every sweep costs the same and the arrays end at the values for which STREAM itself checks.
"""

import functools

import numpy as np

import parcompute as pc

REPETITIONS = 5  # STREAM's NTIMES
START = 2.0  # of a, as STREAM leaves it after timing its clock
SWEEPS = [  # target, b, c, q
    ("c", "a", "b", 0.0),  # copy: c = a
    ("b", "c", "a", 2.0),  # scale: b = 3 c, while a = c
    ("c", "a", "b", 1.0),  # add: c = a + b
    ("a", "b", "c", 3.0),  # triad: a = b + 3 c
]


def scaled_sum(b, c, q, out):
    """a = b + q c for one block, which stays in a core's cache from the first pass to the second."""
    np.multiply(c, q, out=out)
    out += b


def fill(value, out):
    out[...] = value


@functools.lru_cache(maxsize=2)  # of the warm-up and of the run: STREAM too has its arrays before the clock starts
def arrays(n_items):
    """Return a, b and c in shared memory; their pages lie where the workers touch them first."""
    return {name: pc.SharedArray.empty(n_items) for name in "abc"}


def stream_values(result, n_items):
    """Compare each item with STREAM's values after NTIMES: a = 2·15^NTIMES, b = 3/15 of it, c = 4/15 of it.

    All are whole numbers, so exact. STREAM allows the mean item a relative error of 1e-13, this the worst one.
    """
    unit = START * 15 ** (REPETITIONS - 1)
    ratios = [end / (parts * unit) for x, parts in zip(result, (15, 3, 4), strict=True) for end in (x.min(), x.max())]
    worst = ratios[np.argmax(np.abs(np.subtract(ratios, 1)))]
    return pc.Check(worst, 1.0, 1e-13, "the relative error that STREAM allows")


@pc.experiment(
    n_items={"quick": 2**23, "default": 2**25, "full": 2**29}, truth=stream_values, backends=("processes", "threads")
)
def triad(executor, n_items, seed):
    array = arrays(n_items)
    for name in "ab":
        executor.map_blocks(fill, n_items=n_items, out=array[name], args=(START,))
    for target, b, c, q in SWEEPS * REPETITIONS:
        executor.map_blocks(scaled_sum, array[b], array[c], out=array[target], args=(q,))
    return array["a"], array["b"], array["c"]


if __name__ == "__main__":
    triad.main()
