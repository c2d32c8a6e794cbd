"""Uneven work: static, dynamic or guided, and which chunk size? Rows of the Mandelbrot set.

A row through the set takes a hundred times as long as one beside it. Static chunks leave the cores that have the
edges waiting; small dynamic ones cost a claim each.
"""

import numpy as np

import parcompute as pc

WIDTH, MOST_STEPS = 768, 400
LEFT, RIGHT, TOP = -2.0, 0.6, 1.3
AREA = 1.5065918849  # Förstemann (2012), by counting pixels on a grid of 2^21 · 2^21


def steps_to_escape(block, n_rows):
    """Return, for each pixel of some rows, after how many steps |z| > 2; MOST_STEPS for never."""
    y = ((n_rows - 1) / 2 - np.arange(block.start, block.stop)) * (2 * TOP / n_rows)  # symmetric to the bit
    x = LEFT + (np.arange(WIDTH) + 0.5) * ((RIGHT - LEFT) / WIDTH)
    c = (x + 1j * y[:, None]).ravel()
    steps = np.full(c.size, MOST_STEPS, np.int32)
    left, z = np.arange(c.size), np.zeros_like(c)
    for step in range(MOST_STEPS):
        z *= z
        z += c
        inside = z.real**2 + z.imag**2 <= 4
        if not inside.all():
            steps[left[~inside]] = step
            left, z, c = left[inside], z[inside], c[inside]
            if not left.size:
                break
    return steps.reshape(block.size, WIDTH)


def area(steps, n_rows):
    """Compare the area of what has not escaped with the literature's: a grid of finite width and depth sees more."""
    found = np.count_nonzero(steps == MOST_STEPS) * (RIGHT - LEFT) / WIDTH * 2 * TOP / n_rows
    if not np.array_equal(steps, steps[::-1]):  # the set is symmetric, and so are the rows
        found = np.nan
    return pc.Check(found, AREA, 0.03 * AREA, "3 % for pixels and steps of finite size")


@pc.experiment(
    n_items={"quick": 64, "default": 768, "full": 2**15},
    truth=area,
    backends=("processes",),
    schedules=("static", "guided", "dynamic,1", "dynamic,4", "dynamic,16"),
)
def mandelbrot(executor, n_items, seed):
    return executor.map_blocks(
        steps_to_escape, n_items=n_items, block_items=1, item_shape=WIDTH, dtype=np.int32, args=(n_items,)
    )


if __name__ == "__main__":
    mandelbrot.main()
