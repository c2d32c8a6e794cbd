"""Do Numba kernels run unchanged, and what do they gain? Points in a quarter circle, by a compiled loop without lock.

Optional: it needs `pip install numba`. Run it with `parcompute run experiments/_numba_pi.py`.
"""

import math

import numba

import parcompute as pc


@numba.njit(nogil=True)
def hits(start, stop):
    """Count points of a Weyl sequence within the quarter circle: multiples of √2 and √3, each modulo 1."""
    found = 0
    for i in range(start, stop):
        x, y = (i * 1.4142135623730951) % 1.0, (i * 1.7320508075688772) % 1.0
        found += x * x + y * y < 1.0
    return found


def count(block):
    """Count those of a block."""
    return hits(block.start, block.stop)


def pi(total, n_items):
    """Compare with pi; the discrepancy of the sequence falls as log² n/n (Niederreiter 1992)."""
    return pc.Check(4 * total / n_items, math.pi, 40 * math.log(n_items) ** 2 / n_items, "the sequence's discrepancy")


@pc.experiment(n_items={"quick": 2**24, "default": 2**27, "full": 2**33}, truth=pi)
def numba_pi(executor, n_items, seed):
    return executor.reduce_blocks(count, n_items=n_items, block_items=2**18)


if __name__ == "__main__":
    numba_pi.main()
