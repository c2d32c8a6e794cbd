"""Ratios are of runs that were measured together: of one round of one session, and verified."""

from __future__ import annotations

from dataclasses import replace

import pytest

from parcompute.values.intervals import paired_ratio, ratio
from parcompute.values.rounds import counting, pairs, ratio_of_runs, sessions, summary_of
from parcompute.values.sweep import Configuration, Run


def runs_of(*walls_s: float, first: int = 0, provenance: str = "here", disturbed: tuple[int, ...] = ()) -> list[Run]:
    """Runs of one configuration, in rounds from `first` on."""
    return [
        Run(
            Configuration("serial", 1, 1, "guided", "", "strong", 100), round=i, seed=1, block_items=10, n_chunks=10,
            wall_s=wall_s, startup_s=0.0, cpu_s=1.0, digest="d", value=1.0, error=0.0, tolerance=0.0, verified=True,
            disturbed="load" if i in disturbed else "", started_utc="", provenance=provenance,
        )
        for i, wall_s in enumerate(walls_s, first)
    ]  # fmt: skip


A, B = (2.0, 4.0, 6.0, 8.0, 10.0, 12.0, 14.0), (1.0, 2.1, 3.0, 4.2, 5.0, 6.1, 7.0)


def test_a_pair_is_of_one_round() -> None:
    found = pairs(runs_of(*A), runs_of(*B, first=2), {})
    assert found.times_s.tolist() == [[6.0, 1.0], [8.0, 2.1], [10.0, 3.0], [12.0, 4.2], [14.0, 5.0]]
    assert ratio_of_runs(runs_of(*A), runs_of(*B), {}) == paired_ratio(A, B)


def test_what_is_not_verified_has_no_part_in_a_pair() -> None:
    wrong = [replace(run, verified=run.round != 3) for run in runs_of(*B)]
    assert len(pairs(runs_of(*A), wrong, {}).times_s) == 6


def test_sessions_are_told_apart_by_when_their_conditions_were_collected() -> None:
    fields = {"collected_utc": "noon"}
    of = sessions(
        {"here": fields, "on nodes": fields | {"node_hosts": "a, b"}, "later": {"collected_utc": "night"}, "old": {}}
    )
    assert of == {"here": "noon", "on nodes": "noon", "later": "night", "old": "old"}
    assert len(pairs(runs_of(*A), runs_of(*B, provenance="on nodes"), of).times_s) == 7
    assert len(pairs(runs_of(*A), runs_of(*B, provenance="later"), of).times_s) == 0


def test_runs_that_share_less_than_half_of_their_rounds_are_compared_as_a_whole() -> None:
    a, b = runs_of(*A), runs_of(*B, first=4)
    assert len(pairs(a, b, {}).times_s) == 0
    assert ratio_of_runs(a, b, {}) == ratio(A, B)
    assert len(pairs(a, b[:4], {}).times_s) == 3


@pytest.mark.parametrize(
    ("n", "disturbed", "kept", "n_disturbed"),
    [
        (7, (2,), 6, 0),  # six are left
        (7, (2, 3), 7, 2),  # five would carry no interval, seven do
        (5, (2, 3), 3, 0),  # there is none to be had
        (7, tuple(range(7)), 7, 7),
    ],
)
def test_disturbed_rounds_are_left_out_as_long_as_six_are_left(n, disturbed, kept, n_disturbed) -> None:
    found = pairs(runs_of(*A[:n]), runs_of(*B[:n], disturbed=disturbed), {})
    assert (len(found.times_s), found.n_disturbed) == (kept, n_disturbed)


def test_of_two_runs_of_a_round_the_undisturbed_one_is_taken() -> None:
    again = [*runs_of(*B), *runs_of(99.0, disturbed=(0,))]
    assert pairs(runs_of(*A), again, {}).times_s[0].tolist() == [2.0, 1.0]


def test_without_a_round_in_common_only_runs_that_count_are_compared() -> None:
    a, b = runs_of(*A, disturbed=(0,)), runs_of(*B, first=7, disturbed=(8,))
    assert ratio_of_runs(a, b, {}) == ratio(A[1:], (B[0], *B[2:]))
    with pytest.raises(ValueError, match="a ratio of 0 and 7 values"):
        ratio_of_runs([], runs_of(*B), {})


@pytest.mark.parametrize(("disturbed", "counted"), [((0, 1), 5), (tuple(range(6)), 1), (tuple(range(7)), 7)])
def test_times_are_of_undisturbed_runs_as_far_as_there_are_such(disturbed, counted) -> None:
    runs = runs_of(*A, disturbed=disturbed)
    assert len(counting(runs)) == counted
    found = summary_of(runs)
    assert found.n == counted
    assert found.median.is_range
    assert counting(runs_of(*A[:5], disturbed=tuple(range(5)))) == ()
