"""A measured number with its spread: median, ratio, and the intervals that need no normality.

An interval of 95 % where there are enough values for one, else the range, and the value says which it is.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import cache

import numpy as np
import numpy.typing as npt

LEVEL = 0.95

Floats = npt.NDArray[np.float64]


@dataclass(frozen=True, slots=True)
class Interval:
    """A value and what it may be.

    Attributes
    ----------
    value : float
        The estimate.
    low, high : float
        Ends of the interval; both belong to it.
    is_range : bool
        Whether these are the smallest and the largest that were seen, since there were too few values for
        an interval of 95 %.
    """

    value: float
    low: float
    high: float
    is_range: bool

    def excludes(self, value: float) -> bool:
        """Whether `value` can be ruled out. A range rules out nothing."""
        return not self.is_range and not self.low <= value <= self.high

    def scaled(self, factor: float) -> Interval:
        """Return it in another unit: value and ends times a factor above 0."""
        return Interval(self.value * factor, self.low * factor, self.high * factor, self.is_range)

    def __str__(self) -> str:
        kind = "range" if self.is_range else "95 %"
        return f"{self.value:.4g} ({kind} {self.low:.4g}–{self.high:.4g})"


@dataclass(frozen=True, slots=True)
class Summary:
    """Times of like runs.

    Attributes
    ----------
    n : int
        Number of runs.
    median : Interval
        With its interval by exact binomial ranks, or the range below six runs.
    p5, p95 : float
        Percentiles.
    cv : float
        Coefficient of variation, standard deviation over mean; NaN for a single run.
    """

    n: int
    median: Interval
    p5: float
    p95: float
    cv: float

    def __str__(self) -> str:
        few = "; n < 6: range only" if self.median.is_range else ""
        return f"{self.median} s, n = {self.n}{few}"


def median_ranks(n: int) -> tuple[int, int] | None:
    """Return the ranks, from 1, of the ordered values between which the median lies with 95 %.

    Exact for every continuous distribution, from the binomial law with p = ½; None below six values, of
    which the smallest and the largest do not reach 95 %.

    Examples
    --------
    >>> [median_ranks(n) for n in (5, 6, 8, 9, 20, 30)]
    [None, (1, 6), (1, 8), (2, 8), (6, 15), (10, 21)]
    """
    # In logarithms: 2^-n underflows from n = 1075 on.
    log_term, below, low = -n * math.log(2), 0.0, 0
    while 2 * (below := below + math.exp(log_term)) <= 1 - LEVEL:
        log_term += math.log((n - low) / (low + 1))
        low += 1
    return (low, n + 1 - low) if low else None


def summarise(values: npt.ArrayLike) -> Summary:
    """Summarise times of like runs.

    Parameters
    ----------
    values : array_like of float, shape (n,)
        Seconds, at least one.

    Raises
    ------
    ValueError
        If there are none.

    Examples
    --------
    >>> print(summarise([1.02, 1.00, 1.01, 1.05, 1.03, 1.04]))
    1.025 (95 % 1–1.05) s, n = 6
    """
    ordered = np.sort(np.asarray(values, float))
    n = len(ordered)
    if not n:
        raise ValueError("there are no values to summarise; pass at least one")
    ranks = median_ranks(n)
    first, last = ranks or (1, n)
    median = Interval(float(np.median(ordered)), float(ordered[first - 1]), float(ordered[last - 1]), ranks is None)
    p5, p95 = np.percentile(ordered, [5, 95])
    cv = float(ordered.std(ddof=1) / ordered.mean()) if n > 1 else math.nan
    return Summary(n, median, float(p5), float(p95), cv)


def ratio(numerator: npt.ArrayLike, denominator: npt.ArrayLike) -> Interval:
    """Return how many times larger the times of one configuration are than those of another.

    The value is the ratio of the medians, never a mean of ratios. The interval is that of Hodges and Lehmann
    (1963) for a shift of the logarithms, from the exact distribution of Mann and Whitney's U; it needs four
    runs on both sides. With fewer, the range of all ratios.

    Examples
    --------
    >>> print(ratio([8.0, 8.1, 8.2, 8.3], [4.0, 4.1, 4.2, 4.3]))
    1.964 (95 % 1.86–2.075)
    >>> print(ratio([8.0, 8.2], [4.0, 4.1]))
    2 (range 1.951–2.05)
    """
    a, b = np.asarray(numerator, float), np.asarray(denominator, float)
    if not len(a) or not len(b):
        raise ValueError(f"a ratio of {len(a)} and {len(b)} values; pass at least one of each")
    value = float(np.median(a) / np.median(b))
    all_ratios = np.sort(np.divide.outer(a, b), axis=None)
    rank = _mann_whitney_rank(len(a), len(b)) if min(len(a), len(b)) >= 4 else 0
    first = max(rank, 1)
    # The ratio of medians is not the Hodges-Lehmann estimate; where it falls outside, which takes a strange
    # sample, the interval grows to hold it.
    low, high = min(value, float(all_ratios[first - 1])), max(value, float(all_ratios[-first]))
    return Interval(value, low, high, is_range=rank == 0)


def paired_ratio(numerator: npt.ArrayLike, denominator: npt.ArrayLike) -> Interval:
    """Return the ratio of times that were measured in pairs: what slowed both of a pair down is not in it.

    The value is the shift between the logarithms of the pairs as Hodges and Lehmann (1963) estimate it: the median of
    the Walsh averages (dᵢ + dⱼ)/2, i ≤ j, of their differences, which up to 29 % of spoilt pairs do not carry off. The
    interval is that of Wilcoxon's signed ranks, exact for differences that scatter symmetrically; it holds with 95 % or
    more, with 96.9 % for six pairs. Fewer carry none: the range of the ratios.

    Parameters
    ----------
    numerator, denominator : array_like of float, shape (n_pairs,)
        Seconds, pair by pair, at least one.

    Raises
    ------
    ValueError
        If there are none, or not as many of each.

    Examples
    --------
    >>> print(paired_ratio([8.0, 9.1, 8.2, 11.2, 8.4, 8.1], [4.0, 4.5, 4.1, 5.6, 4.2, 4.1]))
    2 (95 % 1.976–2.022)
    >>> print(paired_ratio([8.0, 16.4], [4.0, 8.0]))
    2.025 (range 2–2.05)
    """
    a, b = np.asarray(numerator, float), np.asarray(denominator, float)
    if a.shape != b.shape or not len(a):
        raise ValueError(f"pairs of {len(a)} and {len(b)} values; pass as many of each, at least one")
    shifts = np.log(a / b)
    i, j = np.triu_indices(len(shifts))
    walsh = np.sort((shifts[i] + shifts[j]) / 2)
    rank = _signed_rank(len(shifts))
    ends = walsh[max(rank, 1) - 1], walsh[-max(rank, 1)]
    value, low, high = (float(np.exp(shift)) for shift in (np.median(walsh), *ends))
    return Interval(value, low, high, is_range=rank == 0)


@cache
def _signed_rank(n: int) -> int:
    """Return k such that the k-th smallest and k-th largest Walsh average enclose the shift with 95 %; 0 below six."""
    if n > 200:
        mean, variance = n * (n + 1) / 4, n * (n + 1) * (2 * n + 1) / 24
        return int(mean - 1.96 * math.sqrt(variance))
    # Chances of each sum of ranks: each rank, 1 to n, is in it or not.
    chances = np.zeros(n * (n + 1) // 2 + 1)
    chances[0] = 1.0
    for rank in range(1, n + 1):
        chances[rank:] += chances[:-rank].copy()
        chances /= 2
    return int(np.searchsorted(np.cumsum(chances), (1 - LEVEL) / 2, side="right"))


@cache
def _mann_whitney_rank(m: int, n: int) -> int:
    """Return k such that the k-th smallest and k-th largest pairwise shift enclose the shift with 95 %."""
    if m * n > 2_500:
        # The normal law is then closer to the exact one than runs are to independent.
        return int(m * n / 2 - 1.96 * math.sqrt(m * n * (m + n + 1) / 12))
    # Ways to reach each U: the coefficients of ∏ (1 - q^(n+i))/(1 - q^i), one factor after the other.
    ways = np.zeros(m * n + 1)
    ways[0] = 1.0
    for i in range(1, m + 1):
        ways[n + i :] -= ways[: -(n + i)].copy()
        for start in range(i):
            ways[start::i] = np.cumsum(ways[start::i])
    below = np.cumsum(ways) / ways.sum()
    return int(np.searchsorted(below, (1 - LEVEL) / 2, side="right"))
