"""Medians and ratios have exact intervals, and say so where there are too few values."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats

from parcompute.values.intervals import (
    Interval,
    _mann_whitney_rank,
    _signed_rank,
    median_ranks,
    paired_ratio,
    ratio,
    summarise,
)

times = st.floats(1e-3, 1e3)


@pytest.mark.parametrize(
    ("n", "ranks"),
    [(6, (1, 6)), (7, (1, 7)), (8, (1, 8)), (9, (2, 8)), (10, (2, 9)), (20, (6, 15)), (30, (10, 21))],
)
def test_the_ranks_are_those_of_the_literature(n: int, ranks: tuple[int, int]) -> None:
    assert median_ranks(n) == ranks


@pytest.mark.parametrize("n", range(6))
def test_below_six_values_there_is_no_interval(n: int) -> None:
    assert median_ranks(n) is None


@given(n=st.integers(6, 3000))
def test_the_ranks_enclose_the_median_with_95_percent_and_no_narrower_ones_do(n: int) -> None:
    ranks = median_ranks(n)
    assert ranks is not None
    low, high = ranks
    assert high == n + 1 - low
    assert 2 * stats.binom.cdf(low - 1, n, 0.5) <= 0.05
    assert 2 * stats.binom.cdf(low, n, 0.5) > 0.05


@given(values=st.lists(times, min_size=1, max_size=40))
def test_a_summary_holds_its_median_and_says_what_its_ends_are(values: list[float]) -> None:
    summary = summarise(values)
    assert summary.median.low <= summary.median.value <= summary.median.high
    assert summary.median.is_range == (len(values) < 6)
    assert ("range only" in str(summary)) == (len(values) < 6)


def test_nothing_has_no_summary() -> None:
    with pytest.raises(ValueError, match="no values"):
        summarise([])
    with pytest.raises(ValueError, match="a ratio of 1 and 0 values"):
        ratio([1.0], [])
    with pytest.raises(ValueError, match="pairs of 0 and 0 values"):
        paired_ratio([], [])


# Two-sided 5 % critical values of U from printed tables; the rank is one more.
@pytest.mark.parametrize(
    ("m", "n", "critical"), [(4, 4, 0), (5, 5, 2), (6, 6, 5), (8, 12, 22), (10, 10, 23), (20, 20, 127)]
)
def test_the_ranks_of_shifts_are_those_of_the_tables(m: int, n: int, critical: int) -> None:
    assert _mann_whitney_rank(m, n) == critical + 1
    assert _mann_whitney_rank(n, m) == critical + 1


def test_the_exact_ranks_go_over_into_those_of_the_normal_law() -> None:
    assert abs(_mann_whitney_rank(50, 50) - _mann_whitney_rank(50, 51)) < 50


@given(a=st.lists(times, min_size=1, max_size=12), b=st.lists(times, min_size=1, max_size=12))
def test_a_ratio_is_that_of_the_medians_and_lies_within_its_interval(a: list[float], b: list[float]) -> None:
    found = ratio(a, b)
    assert found.value == np.median(a) / np.median(b)
    assert found.low <= found.value <= found.high
    assert found.is_range == (min(len(a), len(b)) < 4)


@given(a=st.lists(times, min_size=4, max_size=8), b=st.lists(times, min_size=4, max_size=8))
def test_the_inverse_ratio_has_the_inverse_interval(a: list[float], b: list[float]) -> None:
    one, other = ratio(a, b), ratio(b, a)
    assert one.low == pytest.approx(1 / other.high)
    assert one.high == pytest.approx(1 / other.low)


def test_the_interval_of_a_ratio_covers_the_truth_as_often_as_it_says() -> None:
    rng = np.random.default_rng(1)
    covered = 0
    for _ in range(1000):
        a, b = 2 * rng.lognormal(0, 0.05, 8), rng.lognormal(0, 0.05, 10)
        covered += not ratio(a, b).excludes(2.0)
    assert covered / 1000 >= 0.93


# ── in pairs ──────────────────────────────────────────────────────────────────────────────────────────


# Two-sided 5 % critical values of Wilcoxon's T from printed tables; the rank is one more.
@pytest.mark.parametrize(("n", "critical"), [(6, 0), (7, 2), (8, 3), (9, 5), (10, 8), (15, 25), (20, 52), (25, 89)])
def test_the_ranks_of_walsh_averages_are_those_of_the_tables(n: int, critical: int) -> None:
    assert _signed_rank(n) == critical + 1


@pytest.mark.parametrize("n", range(1, 6))
def test_below_six_pairs_there_is_no_interval_but_the_range_of_the_ratios(n: int) -> None:
    a, b = np.arange(2.0, 2 + n), np.ones(n)
    found = paired_ratio(a, b)
    assert _signed_rank(n) == 0
    assert found.is_range
    assert (found.low, found.high) == pytest.approx((a.min(), a.max()))


def test_the_exact_signed_ranks_go_over_into_those_of_the_normal_law() -> None:
    assert abs(_signed_rank(200) - _signed_rank(201)) < 200


@given(st.lists(st.tuples(times, times), min_size=1, max_size=12))
def test_a_paired_ratio_lies_within_its_interval_and_that_of_the_inverse_is_the_inverse(pairs: list) -> None:
    a, b = np.array(pairs).T
    one, other = paired_ratio(a, b), paired_ratio(b, a)
    assert one.low <= one.value <= one.high
    assert (one.value, one.low, one.high) == pytest.approx((1 / other.value, 1 / other.high, 1 / other.low))


def test_what_slows_both_of_a_pair_down_is_not_in_a_paired_ratio() -> None:
    rng = np.random.default_rng(0)
    a, b, slower = 2 * rng.lognormal(0, 0.01, 8), rng.lognormal(0, 0.01, 8), rng.uniform(1, 3, 8)
    calm, drifting = paired_ratio(a, b), paired_ratio(a * slower, b * slower)
    assert (drifting.value, drifting.low, drifting.high) == pytest.approx((calm.value, calm.low, calm.high))
    assert ratio(a * slower, b * slower).high > 1.4 * drifting.high


def test_pairs_of_unlike_number_are_refused() -> None:
    with pytest.raises(ValueError, match="pairs of 2 and 1 values; pass as many of each"):
        paired_ratio([1.0, 2.0], [1.0])


def test_a_range_excludes_nothing() -> None:
    assert not Interval(2.0, 1.9, 2.1, is_range=True).excludes(1.0)
    assert Interval(2.0, 1.9, 2.1, is_range=False).excludes(1.0)
    assert not Interval(2.0, 1.9, 2.1, is_range=False).excludes(1.9)
