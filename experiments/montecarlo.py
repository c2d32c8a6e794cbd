"""The easy case: how close to ideal? Geometric and arithmetic Asian calls, priced by Monte Carlo.

Paths are independent, a block's state fits a core's cache, and nothing is shared: if this does not scale, nothing will.
The average of a geometric Asian option is log-normal, so its price has a closed form. The same paths price the
arithmetic one, with the geometric as control variate (Kemna & Vorst 1990).
"""

import math

import numpy as np

import parcompute as pc

SPOT = STRIKE = 100.0
RATE, DIVIDEND, VOLATILITY, YEARS = 0.06, 0.03, 0.2, 1.0
FIXINGS = 10


def payoff_sums(block, rng):
    """Sum over a block's paths the discounted payoffs, geometric and arithmetic, their squares and their product."""
    step = YEARS / FIXINGS
    drift, spread = (RATE - DIVIDEND - VOLATILITY**2 / 2) * step, VOLATILITY * math.sqrt(step)
    log_return, geometric, arithmetic, work = np.zeros((4, block.size))
    for _ in range(FIXINGS):  # in place: temporaries of the whole path would leave the cache
        rng.standard_normal(out=work)
        work *= spread
        work += drift
        log_return += work
        geometric += log_return
        np.exp(log_return, out=work)
        arithmetic += work
    geometric /= FIXINGS
    np.exp(geometric, out=geometric)
    arithmetic /= FIXINGS
    for payoff in (geometric, arithmetic):
        payoff *= SPOT
        payoff -= STRIKE
        np.maximum(payoff, 0.0, out=payoff)
        payoff *= math.exp(-RATE * YEARS)
    products = ((geometric, geometric), (arithmetic, arithmetic), (geometric, arithmetic))
    return geometric.sum(), arithmetic.sum(), *(np.multiply(a, b, out=work).sum() for a, b in products)


def log_normal():
    """Return mean and variance of the logarithm of the geometric average, and the times of the fixings."""
    times = np.arange(1, FIXINGS + 1) * (YEARS / FIXINGS)
    mean = math.log(SPOT) + (RATE - DIVIDEND - VOLATILITY**2 / 2) * times.mean()
    return mean, VOLATILITY**2 * np.minimum.outer(times, times).sum() / FIXINGS**2, times


def geometric_price():
    """Return the price of the geometric call in closed form (Kemna & Vorst 1990, for discrete fixings)."""
    mean, variance, _ = log_normal()
    d1 = (mean - math.log(STRIKE) + variance) / math.sqrt(variance)
    d2 = d1 - math.sqrt(variance)
    cdf = lambda x: math.erfc(-x / math.sqrt(2)) / 2  # noqa: E731 (a formula)
    return math.exp(-RATE * YEARS) * (math.exp(mean + variance / 2) * cdf(d1) - STRIKE * cdf(d2))


def arithmetic_bounds():
    """Return bounds of the arithmetic price: the geometric one, and that plus what the means are apart (Vorst 1992)."""
    mean, variance, times = log_normal()
    apart = SPOT * np.exp((RATE - DIVIDEND) * times).mean() - math.exp(mean + variance / 2)
    return geometric_price(), geometric_price() + math.exp(-RATE * YEARS) * apart


def arithmetic_price(sums, n_paths):
    """Return the arithmetic price with the geometric one as control variate, and its standard error."""
    G, A, GG, AA, GA = (total / n_paths for total in sums)
    covariance, variance = GA - G * A, GG - G * G
    beta = covariance / variance
    left = (AA - A * A) - beta * covariance
    return A + beta * (geometric_price() - G), math.sqrt(left / n_paths)


def asian_calls(sums, n_paths):
    """Compare the geometric mean payoff with the closed form, and the arithmetic one with its bounds."""
    G, A, GG, AA, _ = (total / n_paths for total in sums)
    geometric_error, plain_error = (math.sqrt((square - mean**2) / n_paths) for mean, square in ((G, GG), (A, AA)))
    controlled, controlled_error = arithmetic_price(sums, n_paths)
    low, high = arithmetic_bounds()
    agree = abs(controlled - A) <= 4 * plain_error and low < controlled < high
    told = f"arithmetic {controlled:.4f} ± {controlled_error:.1e} by control variate, {plain_error:.1e} without"
    return pc.Check(
        G if agree else math.nan,
        geometric_price(),
        4 * geometric_error,
        f"4 standard errors of {geometric_error:.1e}; {told}",
    )


@pc.experiment(n_items={"quick": 2**20, "default": 2**22, "full": 2**27}, truth=asian_calls)
def montecarlo(executor, n_items, seed):
    return executor.reduce_blocks(payoff_sums, n_items=n_items, seed=seed)


def price_within(executor, error, seed, most_paths=2**34):
    """Return the arithmetic price to a standard error: the paths double until it is reached."""
    sums = executor.reduce_blocks(
        payoff_sums, n_items=most_paths, seed=seed, until=lambda sums, n: arithmetic_price(sums, n)[1] < error
    )
    return arithmetic_price(sums, executor.plan.n_items)


if __name__ == "__main__":
    montecarlo.main()
