"""Intervals of a law's parameters, by drawing whole rounds again and computing everything anew.

A round is drawn as a whole since what disturbs a machine for a while disturbs all of its runs. The ends are quantiles
farther out than 2.5 %, since few rounds scatter less than what they are a sample of (docs/decisions/0014).
"""

from __future__ import annotations

from collections.abc import Callable
from math import inf

import numpy as np
import numpy.typing as npt

from parcompute.analysis.laws import LAWS, Floats, named, solve, unconstrained

# Fewer rounds do not carry a 95 % interval, as fewer than six numbers do not carry one of their median.
MIN_ROUNDS = 6

# What runs off to infinity when a parameter is on its lower bound.
_FOLLOWERS = {"s": "S_max", "kappa": "N_peak", "sigma": "S_limit", "per_doubling": "N_peak"}

Rounds = npt.NDArray[np.int64] | None
Intervals = dict[str, tuple[float, float]]


def parameter_intervals(
    law: str,
    loss: str,
    N: Floats,
    T: Floats,
    rounds: Rounds,
    theta: Floats,
    boundary: tuple[str, ...],
    n_draws: int,
    seed: int,
) -> tuple[Intervals, str]:
    """Return 95 % intervals of the parameters and of what follows from them, and how they were found.

    The bootstrap fails on a boundary (Andrews 2000): draws that all lie on it would claim certainty. There the
    interval is one-sided, as wide as the *unbounded* estimate scatters, and so is that of what follows.

    Parameters
    ----------
    law, loss : str
        Keys of `LAWS` and `LOSSES`.
    N, T : ndarray, shape (n_points,)
        Workers and seconds.
    rounds : ndarray of int, shape (n_points,), or None
        Which round each point belongs to.
    theta, boundary
        The solution for all points.
    n_draws, seed : int
        Of the bootstrap.
    """
    names = LAWS[law].parameters

    def statistic(n: Floats, t: Floats) -> dict[str, float] | None:
        if len(np.unique(n)) <= len(names) or (loss == "linearised" and not (n == 1).any()):
            return None
        free = unconstrained(law, n, t) if boundary and loss == "relative" else None
        beyond = {} if free is None else {f"free {name}": float(x) for name, x in zip(names, free, strict=True)}
        return named(law, solve(law, loss, n, t)[0]) | beyond

    drawn, by = _draws(statistic, N, T, rounds, n_draws, seed)
    found = named(law, theta)
    tail, tail_of_one, reach, reach_of_one = _expanded(rounds)
    intervals = {}
    for name, values in drawn.items():
        if name.startswith("free "):
            continue
        low, high = _quantile(values, tail), _quantile(values, 1 - tail)
        # The draws of six rounds have no such far quantiles: then Student's interval reaches farther.
        if np.isfinite(values).all():
            half = reach * float(values.std())
            low, high = min(low, max(0.0, found[name] - half)), max(high, found[name] + half)
        intervals[name] = low, high
    for i, name in enumerate(names):
        if not drawn or name not in boundary:
            continue
        for silent in (name, _FOLLOWERS.get(name, name)):
            intervals.pop(silent, None)
        if f"free {name}" not in drawn:
            continue
        across = reach_of_one * float(drawn[f"free {name}"].std())
        if theta[i] > 0:
            intervals[name] = (min(_quantile(drawn[name], tail_of_one), theta[i] - across), float(theta[i]))
            continue
        at_bound = theta.copy()
        at_bound[i] = max(_quantile(drawn[name], 1 - tail_of_one), across)
        intervals[name] = (0.0, float(at_bound[i]))
        if (follower := _FOLLOWERS.get(name)) in named(law, at_bound):
            intervals[str(follower)] = (named(law, at_bound)[str(follower)], inf)
    return intervals, by


def amdahl_bounds(N: Floats, T: Floats, rounds: Rounds, n_draws: int, seed: int) -> tuple[Intervals, str]:
    """Return what one or two worker counts exclude of Amdahl's serial fraction, and how that was found.

    Two points fit the law exactly whether or not it holds. All of the loss may be serial work, so s is at most
    the fitted value; all of it may be something else, so it may be 0.
    """
    if len(np.unique(N)) < 2:
        return {"s": (0.0, 1.0), "S_max": (1.0, inf)}, "one worker count excludes nothing"

    def statistic(n: Floats, t: Floats) -> dict[str, float] | None:
        if len(np.unique(n)) < 2:
            return None
        free = unconstrained("amdahl", n, t)
        return {"s": float(solve("amdahl", "relative", n, t)[0][1]), "free": 0.0 if free is None else float(free[1])}

    drawn, by = _draws(statistic, N, T, rounds, n_draws, seed)
    if drawn:
        _, tail_of_one, _, reach_of_one = _expanded(rounds)
        largest = max(_quantile(drawn["s"], 1 - tail_of_one), reach_of_one * float(drawn["free"].std()))
    else:
        largest = float(solve("amdahl", "relative", N, T)[0][1])
        by += "; s is at most what is fitted, without regard to noise"
    if largest == 0:
        return {}, by
    return {"s": (0.0, min(largest, 1.0)), "S_max": (max(1 / largest, 1.0), inf)}, by


def _draws(
    statistic: Callable[[Floats, Floats], dict[str, float] | None],
    N: Floats,
    T: Floats,
    rounds: Rounds,
    n_draws: int,
    seed: int,
) -> tuple[dict[str, Floats], str]:
    """Return the statistic of `n_draws` samples of whole rounds, and how they were made."""
    if rounds is None:
        return {}, "no intervals: the rounds of the runs are not given"
    members = [np.flatnonzero(number == rounds) for number in np.unique(rounds)]
    if len(members) < MIN_ROUNDS:
        return {}, f"no intervals: {len(members)} rounds, at least {MIN_ROUNDS} are needed"
    rng = np.random.default_rng(seed)
    drawn = []
    for chosen in rng.integers(len(members), size=(n_draws, len(members))):
        rows = np.concatenate([members[i] for i in chosen])
        value = statistic(N[rows], T[rows])
        if value is not None:
            drawn.append(value)
    if len(drawn) < 0.95 * n_draws:
        return {}, f"no intervals: {n_draws - len(drawn)} of {n_draws} draws lacked worker counts; complete the rounds"
    by = f"95 %, bootstrap of {len(members)} rounds, {n_draws} draws, seed {seed}"
    return {name: np.array([value[name] for value in drawn]) for name in drawn[0]}, by


def _expanded(rounds: Rounds) -> tuple[float, float, float, float]:
    """Return the quantile of the draws at which a 95 % interval ends, two- and one-sided, and the two in deviations.

    n drawn rounds scatter as a sample of n does around its mean, with √((n − 1)/n) of the true deviation and without
    Student's tails; the quantile makes good for both (Hesterberg 2015).
    """
    from scipy.stats import norm, t

    n = max(2, 0 if rounds is None else len(np.unique(rounds)))
    two_sided, one_sided = (np.sqrt(n / (n - 1)) * t.ppf(1 - level, n - 1) for level in (0.025, 0.05))
    return float(norm.sf(two_sided)), float(norm.sf(one_sided)), float(two_sided), float(one_sided)


def _quantile(values: Floats, q: float) -> float:
    # A value that was drawn, not one between two: some are infinite.
    return float(np.quantile(values, q, method="lower" if q < 0.5 else "higher"))
