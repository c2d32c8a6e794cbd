"""Neighbours and many short steps: when does the hand-over eat the gain? The heat equation on a plate.

Each step reads one array with a halo of one row and writes the other. A sine mode decays by a factor that is known
exactly for the discrete equation.
"""

import functools

import numpy as np

import parcompute as pc

COLUMNS, STEPS, R = 1024, 40, 0.2


def step(rows, out, block, n_rows):
    """Write a block's rows after one explicit step; beyond the plate it is 0."""
    above = rows[block.core.start - 1 : block.core.stop - 1] if block.halo_before else np.zeros_like(out)
    below = rows[block.core.start + 1 : block.core.stop + 1]
    if not block.halo_before:  # the first block has no row above its first
        above[1:] = rows[: block.size - 1]
    own = rows[block.core]
    np.multiply(own, 1 - 4 * R, out=out)
    out += R * above
    out[: len(below)] += R * below
    out[:, 1:] += R * own[:, :-1]
    out[:, :-1] += R * own[:, 1:]


@functools.lru_cache(maxsize=2)
def plates(n_rows):
    """Return the sine mode, and two arrays of its size."""
    across, down = (np.sin(np.pi * np.arange(1, n + 1) / (n + 1)) for n in (COLUMNS, n_rows))
    return (
        pc.share(np.outer(down, across)),
        pc.share(np.zeros((n_rows, COLUMNS))),
        pc.share(np.zeros((n_rows, COLUMNS))),
    )


def decay(plate, n_rows):
    """Compare with the discrete equation's own decay of that mode."""
    factor = 1 - 4 * R * sum(np.sin(np.pi / 2 / (n + 1)) ** 2 for n in (n_rows, COLUMNS))
    mode = plates(n_rows)[0]
    error = np.abs(plate - factor**STEPS * mode).max()
    return pc.Check(float(error), 0.0, 1e-12, "rounding of 40 steps")


@pc.experiment(
    n_items={"quick": 512, "default": 4096, "full": 2**16}, truth=decay, backends=("processes", "threads", "pool")
)
def stencil(executor, n_items, seed):
    start, one, other = plates(n_items)
    np.copyto(one, start)
    for _ in range(STEPS):
        executor.map_blocks(step, one, halo=1, out=other, block_items=64, args=(n_items,))
        one, other = other, one
    return np.array(one)


if __name__ == "__main__":
    stencil.main()
