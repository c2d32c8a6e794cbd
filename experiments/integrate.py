"""How much accuracy do cores buy in a given time? Four of Genz's integrals in five dimensions.

Points of a Richtmyer sequence (multiples of square roots of primes), shifted at random eight times: the scatter of
the eight estimates is the standard error. Any point can be computed without those before it, so blocks need no
order.
"""

import math

import numpy as np

import parcompute as pc

ALPHA = np.sqrt([2.0, 3.0, 5.0, 7.0, 11.0])
A = np.array([1.5, 2.0, 0.7, 1.1, 0.4])
U = np.array([0.3, 0.6, 0.45, 0.7, 0.2])
N_SHIFTS, PIECE = 8, 2048


def families(x):
    """Return the integrands Gaussian, product peak, oscillatory and C0 at x, shape (4, n_points) (Genz 1984)."""
    apart = x - U
    return np.array([
        np.exp(-((A * apart) ** 2).sum(axis=1)),
        1 / (A**-2 + apart**2).prod(axis=1),
        np.cos(2 * np.pi * U[0] + x @ A),
        np.exp(-(A * np.abs(apart)).sum(axis=1)),
    ])  # fmt: skip


def sums(block, shifts):
    """Return the sums over a block's points for each shift, shape (N_SHIFTS, 4)."""
    found = np.zeros((N_SHIFTS, 4))
    for first in range(block.start, block.stop, PIECE):  # in pieces that stay in a core's cache
        at = np.arange(first + 1, min(first + PIECE, block.stop) + 1)[:, None] * ALPHA
        for i, shift in enumerate(shifts):
            found[i] += families((at + shift) % 1.0).sum(axis=1)
    return found


def exact():
    """Return the four integrals over the unit cube in closed form."""
    gaussian = math.prod(
        math.sqrt(math.pi) / (2 * a) * (math.erf(a * (1 - u)) + math.erf(a * u)) for a, u in zip(A, U, strict=True)
    )
    peak = math.prod(a * (math.atan(a * (1 - u)) + math.atan(a * u)) for a, u in zip(A, U, strict=True))
    waves = np.exp(2j * np.pi * U[0]) * np.prod((np.exp(1j * A) - 1) / (1j * A))
    kinked = math.prod((2 - math.exp(-a * u) - math.exp(-a * (1 - u))) / a for a, u in zip(A, U, strict=True))
    return np.array([gaussian, peak, waves.real, kinked])


def closed_forms(estimates, n_points):
    """Compare each family with its closed form, in standard errors of eight shifts."""
    error = np.abs(estimates.mean(axis=0) - exact())
    standard_error = estimates.std(axis=0, ddof=1) / math.sqrt(N_SHIFTS)
    worst = float((error / standard_error).max())
    told = ", ".join(f"{value:.1e}" for value in standard_error)
    return pc.Check(worst, 0.0, 6.0, f"6 standard errors of eight shifts ({told})")


@pc.experiment(
    n_items={"quick": 2**15, "default": 2**18, "full": 2**26},
    truth=closed_forms,
    backends=("processes", "threads", "joblib"),
)
def integrate(executor, n_items, seed):
    shifts = np.random.default_rng(seed).random((N_SHIFTS, len(A)))
    return executor.reduce_blocks(sums, n_items=n_items, block_items=2 * PIECE, args=(shifts,)) / n_items


if __name__ == "__main__":
    integrate.main()
