"""Short steps: when does the hand-over eat the gain? The heat equation, step by step between two shared arrays.

A step of the explicit five-point scheme takes a millisecond or so, and every step is a job of its own: the workers
have to meet after each. A sine mode is an eigenvector of the scheme, so its decay over all steps is known exactly.
"""

import functools

import numpy as np

import parcompute as pc

COLUMNS = 1024  # of every row; the rows are the items, and beyond the rim all is zero
STEPS = 200
R = 1 / 8  # diffusivity × time step / spacing²: below the stable 1/4, and a power of two, which multiplies exactly
MODE = 31, 47  # half waves down the rows and along the columns


def heat_step(rows, block, out):
    """One step for a block's rows: u ← u + R (above + below + left + right − 4 u)."""
    own = rows[block.core]
    np.multiply(own, 1 / R - 4, out=out)
    above, below = rows[: block.size - 1 + block.halo_before], rows[block.halo_before + 1 :]
    out[1 - block.halo_before :] += above  # without a halo, the block's first row has nothing above it
    out[: len(below)] += below
    out[:, 1:] += own[:, :-1]
    out[:, :-1] += own[:, 1:]
    out *= R


def sine_mode(n_rows):
    """Return the mode on the inner points; it is zero on the rim, one spacing beyond the outermost ones."""
    return np.outer(*(sine(n, mode) for mode, n in half_waves(n_rows)))


def sine(n, mode):
    # The phase is reduced in whole numbers: one that is rounded would be no eigenvector to all digits.
    return np.sin(np.pi / (n + 1) * (mode * np.arange(1, n + 1) % (2 * (n + 1))))


def half_waves(n_rows):
    """Return half waves and number of inner points, of the rows and of the columns."""
    return zip(MODE, (n_rows, COLUMNS), strict=True)


@functools.lru_cache(maxsize=2)  # of the warm-up and of the run: a solver has its fields before the clock starts
def fields(n_rows):
    """Return the field at the start, and two to alternate between, in shared memory."""
    start = pc.share(sine_mode(n_rows))
    return start, pc.share(np.zeros_like(start)), pc.share(np.zeros_like(start))


def known_decay(field, n_rows):
    """Compare every point with the mode times (1 − 4R(sin² + sin²))^STEPS (Morton & Mayers 2005, chapter 3)."""
    factor = 1 - 4 * R * sum(np.sin(np.pi * mode / (2 * (n + 1))) ** 2 for mode, n in half_waves(n_rows))
    exact = factor**STEPS * sine_mode(n_rows)
    worst = np.unravel_index(np.argmax(np.abs(field - exact)), exact.shape)
    # Four additions per step, each of a sum below 8, which is then divided by 8; the scheme amplifies no error.
    # The exact side errs too, by an ulp of its factor per step: as much again, to be safe.
    tolerance = 4 * STEPS * np.finfo(float).eps
    return pc.Check(field[worst], exact[worst], tolerance, f"the rounding of {STEPS} steps")


@pc.experiment(
    n_items={"quick": 512, "default": 2048, "full": 65536}, truth=known_decay, backends=("processes", "threads")
)
def stencil(executor, n_items, seed):
    now, *others = fields(n_items)
    for step in range(STEPS):
        now = executor.map_blocks(heat_step, now, halo=1, out=others[step % 2])
    return now


if __name__ == "__main__":
    stencil.main()
