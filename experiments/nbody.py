"""Compute-bound, with a whole shared input per block: how close to ideal? All pairs of gravitating bodies.

Each block computes the accelerations of its bodies by all others, whose positions it reads from shared memory. The
same function moves the five bodies of the Benchmarks Game by 1,000 steps, to the published digits of their energy.
"""

import functools

import numpy as np

import parcompute as pc

TILE = 128  # bodies at a time: the differences of 128 × 128 pairs stay in a core's cache
DAY_UNITS, SOLAR_MASS = 365.24, 4 * np.pi**2

# Sun, Jupiter, Saturn, Uranus, Neptune: position, velocity per day, mass in solar masses (Benchmarks Game, n-body).
PLANETS = np.array([
    [0, 0, 0, 0, 0, 0, 1],
    [4.84143144246472090e00, -1.16032004402742839e00, -1.03622044471123109e-01,
     1.66007664274403694e-03, 7.69901118419740425e-03, -6.90460016972063023e-05, 9.54791938424326609e-04],
    [8.34336671824457987e00, 4.12479856412430479e00, -4.03523417114321381e-01,
     -2.76742510726411e-03, 4.99852801234917238e-03, 2.30417297573763929e-05, 2.85885980666130812e-04],
    [1.28943695621391310e01, -1.51111514016986312e01, -2.23307578892655734e-01,
     2.96460137564761618e-03, 2.37847173959480950e-03, -2.96589568540237556e-05, 4.36624404335156298e-05],
    [1.53796971148509165e01, -2.59193146099879641e01, 1.79258772950371181e-01,
     2.68067772490389322e-03, 1.62824170038242295e-03, -9.51592254519715870e-05, 5.15138902046611451e-05],
])  # fmt: skip
ENERGY_AFTER_1000 = -0.169087605


def accelerations(own, positions, masses):
    """Return the accelerations at `own`, shape (n, 3), by bodies at `positions` with `masses`."""
    found = np.zeros_like(own)
    for i in range(0, len(own), TILE):
        for j in range(0, len(positions), TILE):
            apart = positions[None, j : j + TILE] - own[i : i + TILE, None]
            squared = np.einsum("ijk,ijk->ij", apart, apart)
            squared[squared == 0] = np.inf  # a body does not pull itself
            pull = masses[j : j + TILE] / (squared * np.sqrt(squared))
            found[i : i + TILE] += np.einsum("ij,ijk->ik", pull, apart)
    return found


@functools.cache
def bodies(n, seed):
    """Return n bodies at random places of the unit sphere, of equal mass."""
    rng = np.random.default_rng(seed)
    directions = rng.standard_normal((n, 3))
    directions *= (rng.random(n) ** (1 / 3) / np.linalg.norm(directions, axis=1))[:, None]
    return pc.share(directions), pc.share(np.full(n, 1 / n))


@functools.cache
def energy_after(n_steps, dt=0.01):
    """Return the energy of the five planets after leapfrog steps as the Benchmarks Game takes them."""
    x, v, m = PLANETS[:, :3].copy(), PLANETS[:, 3:6] * DAY_UNITS, PLANETS[:, 6] * SOLAR_MASS
    v[0] = -(v * m[:, None]).sum(axis=0) / m[0]
    for _ in range(n_steps):
        v += dt * accelerations(x, x, m)
        x += dt * v
    distances = np.linalg.norm(x[:, None] - x[None], axis=2)[np.triu_indices(5, 1)]
    pairs = (m[:, None] * m)[np.triu_indices(5, 1)]
    return float((m * (v**2).sum(axis=1)).sum() / 2 - (pairs / distances).sum())


def published(pulls, n_bodies):
    """Hold the force law against the published energy, and the sum of all forces against Newton's third law."""
    balanced = np.abs(pulls.sum(axis=0)).max() <= 1e-11 * np.abs(pulls).sum()
    energy = energy_after(1000) if balanced else np.nan
    return pc.Check(energy, ENERGY_AFTER_1000, 5e-10, "the published digits, and forces that cancel")


@pc.experiment(
    n_items={"quick": 1024, "default": 8192, "full": 2**16},
    truth=published,
    backends=("processes", "threads", "joblib"),
)
def nbody(executor, n_items, seed):
    positions, masses = bodies(n_items, seed)
    return executor.map_blocks(accelerations, positions, block_items=TILE, args=(positions, masses))


if __name__ == "__main__":
    nbody.main()
