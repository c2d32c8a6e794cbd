"""Does the easy case hold against a published benchmark? NAS EP: Gaussian pairs, to the exact counts.

Each block of 2^16 pairs starts where the linear congruential generator would be (x ← a·x mod 2^46), so any chunking
gives the same integers. Two in eleven pairs are rejected; what is left is counted in square rings.
"""

import numpy as np

import parcompute as pc

A, SEED, MASK = 5**13, 271828183, 2**46 - 1
BLOCK_PAIRS, PIECE = 2**16, 2**13

# Sums and counts of NPB 3 (EP/ep.f) and RNR-94-007, by number of pairs: classes S, W, A, B.
PUBLISHED = {
    2**24: (-3.247834652034740e3, -6.958407078382297e3, (6140517, 5865300, 1100361, 68546, 1648, 17)),
    2**25: (-2.863319731645753e3, -6.320053679109499e3, (12281576, 11729692, 2202726, 137368, 3371, 36)),
    2**28: (-4.295875165629892e3, -1.580732573678431e4, (98257395, 93827014, 17611549, 1110028, 26536, 245)),
    2**30: (4.033815542441498e4, -2.660669192809235e4, (393058470, 375280898, 70460742, 4438852, 105691, 948, 5)),
}


def powers(n):
    """Return a, a², …, a^n modulo 2^46; products wrap modulo 2^64, which 2^46 divides."""
    found = np.empty(n, np.uint64)
    found[0], have = A, 1
    while have < n:
        found[have : 2 * have] = found[:have] * found[have - 1] & np.uint64(MASK)
        have *= 2
    return found


POWERS = powers(2 * PIECE)


def gaussian_pairs(block):
    """Return the sums of X and of Y, and the counts of max(|X|, |Y|), over the pairs of a block."""
    x_last = np.uint64(SEED * pow(A, 2 * block.start, 2**46) & MASK)
    sums, counts = np.zeros(2), np.zeros(10, np.int64)
    for first in range(0, block.size, PIECE):  # in pieces that stay in a core's cache
        numbers = POWERS[: 2 * min(PIECE, block.size - first)] * x_last & np.uint64(MASK)
        x_last = numbers[-1]
        x, y = (2.0**-45 * numbers - 1).reshape(-1, 2).T
        t = x * x + y * y
        inside = t <= 1
        x, y, t = x[inside], y[inside], t[inside]
        scale = np.sqrt(-2 * np.log(t) / t)
        x, y = x * scale, y * scale
        counts += np.bincount(np.maximum(np.abs(x), np.abs(y)).astype(np.int64), minlength=10)
        sums += x.sum(), y.sum()
    return sums, counts


def published(result, n_pairs):
    """Compare with the published class: counts exactly, sums to 1e-12 as RNR-94-007 asks."""
    (x, y), counts = result
    X, Y, Q = PUBLISHED[n_pairs]
    exact = counts.tolist() == [*Q, *[0] * (10 - len(Q))]
    error = max(abs(x / X - 1), abs(y / Y - 1)) if exact else np.inf
    return pc.Check(error, 0.0, 1e-12, "1e-12 of the published sums, all counts exact")


@pc.experiment(
    n_items={"quick": 2**24, "default": 2**25, "full": 2**30}, truth=published, backends=("processes", "threads")
)
def nas_ep(executor, n_items, seed):
    return executor.reduce_blocks(gaussian_pairs, n_items=n_items, block_items=BLOCK_PAIRS)


if __name__ == "__main__":
    nas_ep.main()
