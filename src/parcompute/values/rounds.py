"""Ratios of runs that were measured together: what slows a whole round down is in none of them.

    runs of a, runs of b ── of the same round ──▶ pairs of times ──▶ ratio with its interval

The runs of a round follow each other within a session; the same number of another session is another round. How such
ratios do on machines that drift and are stolen from: docs/decisions/0024.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace

import numpy as np
import numpy.typing as npt

from parcompute.machine.provenance import Provenance, Value
from parcompute.values.intervals import Interval, Summary, paired_ratio, ratio, summarise
from parcompute.values.sweep import Run

# As many pairs carry an interval of 95 %.
ENOUGH = 6


def conditions_of(runs: Iterable[Run], provenance: Mapping[str, Mapping[str, Value]]) -> list[str]:
    """Return under which conditions each run was made: the id of those that it shares with runs of other backends.

    The version of an engine concerns its own runs only. Where these are of several versions, those of the newest are
    compared with the other backends, and those of each older one have conditions of their own.

    Parameters
    ----------
    runs : iterable of Run
        Runs of one file, in its order.
    provenance : mapping of str to mapping
        The conditions by id, as the file has them.
    """
    known = {id: Provenance.from_fields(fields) for id, fields in provenance.items()}
    ways = [(run.provenance, run.configuration.backend) for run in runs]
    own = {(id, backend): known[id].of(backend).conditions_id for id, backend in set(ways)}
    shared = {id: known[id].of().conditions_id for id, _ in set(ways)}
    newest = {(shared[id], backend): own[id, backend] for id, backend in ways}
    return [shared[way[0]] if newest[shared[way[0]], way[1]] == own[way] else own[way] for way in ways]


def sessions(provenance: Mapping[str, Mapping[str, Value]]) -> dict[str, str]:
    """Return in which session runs were made, by the id of their conditions.

    Conditions are collected once a session; runs on other nodes have an id of their own, and the time of the session.
    """
    return {id: str(fields.get("collected_utc") or id) for id, fields in provenance.items()}


def counting(runs: Iterable[Run]) -> tuple[Run, ...]:
    """Return the runs that times are of: of each configuration the undisturbed ones, or all if of six or more none is.

    A machine that others use all day would have no numbers else.
    """
    valid = tuple(run for run in runs if run.is_valid)
    n_disturbed = Counter(run.configuration for run in valid if run.disturbed)
    if not n_disturbed:
        return valid
    quiet = {run.configuration for run in valid if not run.disturbed}
    all_of = {c for c, n in n_disturbed.items() if n >= ENOUGH and c not in quiet}
    return tuple(run for run in valid if not run.disturbed or run.configuration in all_of)


def summary_of(runs: Iterable[Run]) -> Summary:
    """Summarise the times of the runs of a configuration that count; disturbed ones have a range and no interval."""
    counted = counting(runs)
    found = summarise([run.wall_s for run in counted])
    if all(run.counts for run in counted):
        return found
    ends = [run.wall_s for run in counted]
    return replace(found, median=Interval(found.median.value, min(ends), max(ends), is_range=True))


@dataclass(frozen=True, slots=True, eq=False)
class Pairs:
    """Times of two configurations in the rounds that have both.

    Attributes
    ----------
    times_s : ndarray of float, shape (n_rounds, 2)
        Seconds; no rounds where the two were not measured together.
    n_disturbed : int
        Rounds among these in which the machine was not quiet.
    """

    times_s: npt.NDArray[np.float64]
    n_disturbed: int


def pairs(a: Iterable[Run], b: Iterable[Run], of: Mapping[str, str]) -> Pairs:
    """Return the times of two configurations in the rounds that have both.

    A round in which one of the two is missing or not verified is left out. So is one in which one was disturbed, unless
    less than six of six or more would remain: a wide interval is better than none. Two that have less than half of the
    rounds of either in common were not measured together.

    Parameters
    ----------
    a, b : iterable of Run
        The runs of each, the disturbed ones included.
    of : mapping of str to str
        The session of each run, by `Run.provenance`; one that is not named is a session of its own.
    """
    first, second = (_by_round(runs, of) for runs in (a, b))
    both = sorted(first.keys() & second.keys())
    if 2 * len(both) < min(len(first), len(second)):
        both = []
    quiet = [each for each in both if first[each].counts and second[each].counts]
    kept = quiet if len(quiet) >= ENOUGH or len(both) < ENOUGH else both
    times_s = np.array([(first[each].wall_s, second[each].wall_s) for each in kept], float).reshape(-1, 2)
    return Pairs(times_s, len(set(kept) - set(quiet)))


def ratio_of_runs(a: Iterable[Run], b: Iterable[Run], of: Mapping[str, str]) -> Interval:
    """Return how many times as long runs `a` take as runs `b`: within rounds, or of all that count if they share none.

    Parameters and rounds are those of `pairs`.

    Raises
    ------
    ValueError
        If they share no rounds, and no run of one of them counts.
    """
    a, b = tuple(a), tuple(b)
    if len(found := pairs(a, b, of).times_s):
        return paired_ratio(*found.T)
    return ratio(*([run.wall_s for run in counting(runs)] for runs in (a, b)))


def _by_round(runs: Iterable[Run], of: Mapping[str, str]) -> dict[tuple[str, int], Run]:
    valid = sorted((run for run in runs if run.is_valid), key=lambda run: run.counts)  # of several, one that counts
    return {(of.get(run.provenance, run.provenance), run.round): run for run in valid}
