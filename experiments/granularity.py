"""Claim cost against imbalance: how many blocks should a chunk have? The chunk-size curve of each backend.

Short uneven blocks under `dynamic,k`: with one block per chunk each costs a claim, with many the last chunk is
waited for.
"""

import numpy as np

import parcompute as pc

BLOCK_ITEMS = 64


def waves(block):
    """Sum sines over a block; every 50th block has twenty times the work."""
    x = np.arange(block.start, block.stop, dtype=float)
    return sum(float(np.sin(x + i).sum()) for i in range(40 if block.index % 50 == 0 else 2))


def closed_form(total, n_items):
    """Compare with the sum of a sine series: Σ sin(x + i) over a block is a ratio of sines (Lagrange)."""
    starts = np.arange(0, n_items, BLOCK_ITEMS, dtype=float)
    sizes = np.minimum(BLOCK_ITEMS, n_items - starts)
    repeats = np.where(np.arange(len(starts)) % 50 == 0, 40, 2)

    def series(first, n):
        return np.sin(n / 2) / np.sin(0.5) * np.sin(first + (n - 1) / 2)

    truth = sum(float(series(starts + i, sizes)[repeats > i].sum()) for i in range(40))
    return pc.Check(total, truth, 1e-9 * n_items, "1e-9 per item, of rounding")


@pc.experiment(
    n_items={"quick": 2**16, "default": 2**19, "full": 2**25},
    truth=closed_form,
    backends=("processes", "pool", "threads"),
    schedules=("dynamic,1", "dynamic,8", "dynamic,64"),
)
def granularity(executor, n_items, seed):
    return executor.reduce_blocks(waves, n_items=n_items, block_items=BLOCK_ITEMS)


if __name__ == "__main__":
    granularity.main()
