"""The easy case: how close to ideal? A geometric Asian call, priced by Monte Carlo.

Paths are independent, a block's state fits a core's cache, and nothing is shared: if this does not scale,
nothing will. The average of a geometric Asian option is log-normal, so its price has a closed form.
"""

import math

import numpy as np

import parcompute as pc

SPOT = STRIKE = 100.0
RATE, DIVIDEND, VOLATILITY, YEARS = 0.06, 0.03, 0.2, 1.0
FIXINGS = 10


def discounted_payoffs(block, rng):
    """Sum, and sum of squares, of the discounted payoffs of a block's paths."""
    step = YEARS / FIXINGS
    drift, spread = (RATE - DIVIDEND - VOLATILITY**2 / 2) * step, VOLATILITY * math.sqrt(step)
    log_return, total, normals = np.zeros((3, block.size))
    for _ in range(FIXINGS):  # in place: temporaries of the whole path would leave the cache
        rng.standard_normal(out=normals)
        normals *= spread
        normals += drift
        log_return += normals
        total += log_return
    payoffs = SPOT * np.exp(total / FIXINGS) - STRIKE
    np.maximum(payoffs, 0.0, out=payoffs)
    payoffs *= math.exp(-RATE * YEARS)
    return payoffs.sum(), np.square(payoffs).sum()


def geometric_asian_call(sums, n_paths):
    """Compare the mean payoff with the closed form (Kemna & Vorst 1990, for discrete fixings)."""
    times = np.arange(1, FIXINGS + 1) * (YEARS / FIXINGS)
    mean = math.log(SPOT) + (RATE - DIVIDEND - VOLATILITY**2 / 2) * times.mean()
    variance = VOLATILITY**2 * np.minimum.outer(times, times).sum() / FIXINGS**2
    d1 = (mean - math.log(STRIKE) + variance) / math.sqrt(variance)
    d2 = d1 - math.sqrt(variance)
    cdf = lambda x: math.erfc(-x / math.sqrt(2)) / 2  # noqa: E731 (a formula)
    truth = math.exp(-RATE * YEARS) * (math.exp(mean + variance / 2) * cdf(d1) - STRIKE * cdf(d2))

    price, mean_square = sums[0] / n_paths, sums[1] / n_paths
    standard_error = math.sqrt((mean_square - price**2) / n_paths)
    return pc.Check(price, truth, 4 * standard_error, f"4 standard errors of {standard_error:.1e}")


@pc.experiment(n_items={"quick": 2**21, "default": 2**23, "full": 2**28}, truth=geometric_asian_call)
def montecarlo(executor, n_items, seed):
    return executor.reduce_blocks(discounted_payoffs, n_items=n_items, seed=seed)


if __name__ == "__main__":
    montecarlo.main()
