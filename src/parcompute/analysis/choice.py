"""Compare laws of scaling on the same points, and tell which of them the points prefer, or why they do not say."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from parcompute.analysis.fits import Fit, fit
from parcompute.analysis.laws import LAWS

# Pairs of laws of which the first is the second with a parameter of zero.
NESTED = (("amdahl", "usl"), ("amdahl", "logarithmic"))

# The extra parameter cannot be negative, so that p is halved: a nominal 10 % is 5 %.
NEEDED = 0.05


# A difference of AICc below it is none: both laws are as well supported (Burnham & Anderson 2002, section 2.6).
INDIFFERENT = 2.0


@dataclass(frozen=True, slots=True)
class Compared:
    """Laws fitted to the same points.

    Attributes
    ----------
    fits : mapping of str to Fit
        By law.
    preferred : str
        The simplest of the laws whose AICc is within 2 of the smallest; empty where it is not defined for all.
    why_none : str
        Why none is preferred; empty if one is.
    nested : mapping of (str, str) to (float, float)
        F and p of each pair in `NESTED` that was fitted: a small p says that the larger law is needed.
    """

    fits: Mapping[str, Fit]
    preferred: str
    why_none: str
    nested: Mapping[tuple[str, str], tuple[float, float]]

    def describe(self) -> list[str]:
        """Return lines of text."""
        lines = [line for each in self.fits.values() for line in _told(each)]
        for (small, large), (F, p) in self.nested.items():
            needed = "needed" if p < NEEDED else "not needed"
            lines.append(f"{small} in {large}: F = {F:.3g}, p = {p:.2g} (one-sided); the larger law is {needed}")
        if self.preferred:
            best = min(self.fits.values(), key=lambda each: each.aicc or 0.0)
            simpler = f" (simpler than {best.law}, whose AICc is not 2 lower)" if best.law != self.preferred else ""
            return [*lines, f"preferred by AICc: {self.preferred}{simpler}"]
        return [*lines, f"none is preferred: {self.why_none}"]

    def as_dict(self) -> dict[str, Any]:
        """Return all of it as plain values."""
        return {
            "preferred": self.preferred or None,
            "why_none": self.why_none or None,
            "nested": {f"{a} in {b}": {"F": F, "p": p} for (a, b), (F, p) in self.nested.items()},
            "fits": {
                law: {
                    "loss": each.loss,
                    "identifiable": each.identifiable,
                    "reason": each.reason,
                    "parameters": dict(each.parameters),
                    "intervals": {name: list(ends) for name, ends in each.intervals.items()},
                    "intervals_by": each.intervals_by,
                    "standard_errors": dict(each.standard_errors),
                    "correlations": dict(each.correlations),
                    "boundary": list(each.boundary),
                    "rss": each.rss if each.parameters else None,
                    "aicc": each.aicc,
                    "lack_of_fit": None if each.lack_of_fit is None else list(each.lack_of_fit),
                }
                for law, each in self.fits.items()
            },
        }


def compare_laws(
    laws: Sequence[str],
    n_workers: npt.ArrayLike,
    times_s: npt.ArrayLike,
    *,
    loss: str = "relative",
    rounds: npt.ArrayLike | None = None,
    seed: int = 0,
) -> Compared:
    """Fit several laws to the same points.

    Parameters
    ----------
    laws : sequence of str
        Keys of `parcompute.analysis.laws.LAWS`.
    n_workers, times_s, loss, rounds, seed
        See `parcompute.analysis.fits.fit`.

    Raises
    ------
    ValueError
        As `parcompute.analysis.fits.fit`.

    Examples
    --------
    >>> compare_laws(["amdahl", "usl"], [1, 2, 4, 8], [8.0, 4.4, 2.6, 1.7]).why_none
    'amdahl: 4 points are too few to compare it; measure at least 5'
    """
    fits = {law: fit(law, n_workers, times_s, loss=loss, rounds=rounds, seed=seed) for law in laws}
    nested = {
        pair: nested_test(fits[pair[0]], fits[pair[1]])
        for pair in NESTED
        if set(pair) <= set(fits) and all(fits[law].parameters for law in pair)
        if len(fits[pair[1]].times_s) > len(LAWS[pair[1]].parameters) and fits[pair[1]].rss > 0
    }
    try:
        return Compared(fits, prefer(*fits.values()).law, "", nested)
    except ValueError as error:
        return Compared(fits, "", str(error), nested)


def _told(each: Fit) -> list[str]:
    lines = [f"{each.law}, {_LOSS_NAMES.get(each.loss, each.loss)} of {len(each.times_s)} points"]
    if each.reason:
        lines.append(f"  {each.reason}")
    names = dict.fromkeys((*each.parameters, *each.intervals))
    wide = max(map(len, names), default=0)
    for name in names:
        value = f"{each.parameters[name]:.6g}" if name in each.parameters else "?"
        if name in each.boundary:
            value += " (on its boundary)"
        if name in each.intervals:
            low, high = each.intervals[name]
            value += f"  ≥ {low:.4g}" if high == float("inf") else f"  95 % {low:.4g}–{high:.4g}"
        if name in each.standard_errors:
            value += f"  (se {each.standard_errors[name]:.3g})"
        lines.append(f"  {name:<{wide}} {value}")
    lines += [f"  correlation of {pair}: {r:.3f}" for pair, r in each.correlations.items() if "T1" not in pair]
    if each.intervals:
        lines.append(f"  intervals: {each.intervals_by}")
    if each.lack_of_fit is not None:
        F, p = each.lack_of_fit
        verdict = "the law is wrong" if p < 0.01 else "no contradiction"
        lines.append(f"  lack of fit: F = {F:.3g}, p = {p:.2g}, {verdict}")
    if each.aicc is not None:
        lines.append(f"  AICc {each.aicc:.2f}")
    return lines


_LOSS_NAMES = {
    "relative": "relative errors",
    "log": "errors of logarithms",
    "throughput": "errors of rates",
    "linearised": "Gunther's linear form",
}


def prefer(*fits: Fit) -> Fit:
    """Return the fit with the smallest AICc, or one of fewer parameters that is within `INDIFFERENT` of it.

    Raises
    ------
    ValueError
        If the fits are not of the same points and loss, or there are too few points for one of them.
    """
    first = fits[0]
    for other in fits[1:]:
        if other.loss != first.loss or not (
            np.array_equal(other.n_workers, first.n_workers) and np.array_equal(other.times_s, first.times_s)
        ):
            raise ValueError("the fits are of unlike points or losses; fit all laws to the same points with one loss")
    for each in fits:
        if each.aicc is None:
            k = len(LAWS[each.law].parameters) + 1
            raise ValueError(
                f"{each.law}: {len(each.times_s)} points are too few to compare it; measure at least {k + 2}"
            )
    best = min(each.aicc or 0.0 for each in fits)
    supported = [each for each in fits if (each.aicc or 0.0) < best + INDIFFERENT]
    return min(supported, key=lambda each: (len(LAWS[each.law].parameters), each.aicc or 0.0))


def nested_test(small: Fit, large: Fit) -> tuple[float, float]:
    """Test whether the extra parameters of a larger law are needed.

    The extra parameter cannot be negative, so the nominal p is halved (Chernoff 1954).

    Returns
    -------
    F, p : float
        A small p: they are needed.
    """
    from scipy import stats

    n, p, q = len(large.times_s), len(LAWS[large.law].parameters), len(LAWS[small.law].parameters)
    if n <= p or small.loss != large.loss or len(small.times_s) != n:
        raise ValueError(
            f"{small.law} and {large.law} cannot be compared on {n} points; fit both to the same, more points"
        )
    F = max(0.0, (small.rss - large.rss) / (p - q)) / (large.rss / (n - p))
    return F, float(stats.f.sf(F, p - q, n - p)) / 2
