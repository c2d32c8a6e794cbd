"""Compare two records: how much faster B is than A, and in which conditions the two differ."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from parcompute.analysis.studies import Study, studies
from parcompute.machine.provenance import Value
from parcompute.record.record import Recorded
from parcompute.values.intervals import Interval
from parcompute.values.rounds import pairs, ratio_of_runs
from parcompute.values.sweep import Configuration


@dataclass(frozen=True, slots=True)
class Row:
    """One configuration that both have.

    Attributes
    ----------
    configuration : Configuration
        Which.
    n_a, n_b : int
        Runs that count.
    a_s, b_s : float
        Median seconds.
    speedup : Interval
        Time of A over that of B: above 1, B is faster.
    n_rounds : int
        Rounds that the two share and the speed-up is within; 0: it is of all runs.
    """

    configuration: Configuration
    n_a: int
    n_b: int
    a_s: float
    b_s: float
    speedup: Interval
    n_rounds: int

    @property
    def verdict(self) -> str:
        """Say whether B is faster: only where the interval excludes 1."""
        if not self.speedup.excludes(1.0):
            return "too few runs to tell" if self.speedup.is_range else "no difference seen"
        return "B is faster" if self.speedup.value > 1 else "B is slower"


@dataclass(frozen=True, slots=True)
class Comparison:
    """What two studies say of each other.

    Attributes
    ----------
    a, b : str
        Which studies.
    unlike : tuple of (str, value, value)
        The conditions in which they differ: name, value of A, value of B.
    rows : tuple of Row
        One for each configuration that both have.
    only : tuple of str
        What only one of them has.
    """

    a: str
    b: str
    unlike: tuple[tuple[str, Value, Value], ...]
    rows: tuple[Row, ...]
    only: tuple[str, ...]

    def as_dict(self) -> dict[str, Any]:
        """Return all of it as plain values."""
        return {**asdict(self), "rows": [{**asdict(row), "verdict": row.verdict} for row in self.rows]}

    def describe(self) -> list[str]:
        """Return lines of text."""
        lines = [f"A: {self.a}", f"B: {self.b}"]
        lines += [f"unlike: {name} is {one!r} in A and {other!r} in B" for name, one, other in self.unlike]
        if not self.unlike:
            lines.append("all conditions are alike")
        wide = max(len(row.configuration.name) for row in self.rows)
        for row in self.rows:
            c, S = row.configuration, row.speedup
            kind = "range" if S.is_range else "95 %"
            within = f", within {row.n_rounds} rounds" if row.n_rounds else ""
            lines.append(
                f"{c.name:<{wide}}  A {row.a_s:.4g} s, B {row.b_s:.4g} s, A/B {S.value:.3f} "
                f"({kind} {S.low:.3f}–{S.high:.3f}{within}): {row.verdict}"
            )
        return lines + [f"not compared: {told}" for told in self.only]


def compare(a: Recorded, b: Recorded, *, seed: int | None = None, n_items: int | None = None) -> Comparison:
    """Compare the newest studies of two records; of one and the same, the two newest that ran under unlike conditions.

    Parameters
    ----------
    a, b : Recorded
        The records.
    seed, n_items : int, optional
        Of the problem; by default that of the newest runs of B.

    Raises
    ------
    ValueError
        If they are of different experiments, or have no problem or no configuration in common.
    """
    if a.experiment != b.experiment:
        raise ValueError(f"{a.path} holds {a.experiment!r} and {b.path} {b.experiment!r}; pass runs of one experiment")
    theirs = [s for s in studies(b) if seed in (None, s.seed) and n_items in (None, s.n_items) and s.counted]
    if not theirs:
        raise ValueError(f"{b.path}: has no runs that count with what was asked for; `parcompute show` lists them")
    newest = _newest(theirs)
    ours = [
        study
        for study in studies(a)
        if (study.seed, study.n_items, study.kind) == (newest.seed, newest.n_items, newest.kind) and study.counted
    ]
    if a.path.resolve() == b.path.resolve():
        ours = [study for study in ours if study.conditions != newest.conditions]
    if not ours:
        problem = f"{newest.n_items} items with seed {newest.seed}, {newest.kind} scaling"
        raise ValueError(f"{a.path}: has no other runs of {problem} to compare with; run the same preset and seed")
    before = _newest(ours)
    walls_a, walls_b = _walls(before), _walls(newest)
    both = sorted(walls_a.keys() & walls_b.keys())
    of = {**before.sessions, **newest.sessions}
    if not both:
        raise ValueError(f"{a.path} and {b.path} have no configuration in common; run the same backends and workers")
    rows = tuple(
        Row(
            c,
            len(walls_a[c]),
            len(walls_b[c]),
            float(np.median(walls_a[c])),
            float(np.median(walls_b[c])),
            ratio_of_runs(before.runs_at(c), newest.runs_at(c), of),
            len(pairs(before.runs_at(c), newest.runs_at(c), of).times_s),
        )
        for c in both
    )
    only = [f"{c.name}, only in A" for c in sorted(walls_a.keys() - walls_b.keys())]
    only += [f"{c.name}, only in B" for c in sorted(walls_b.keys() - walls_a.keys())]
    return Comparison(
        f"{a.path}: {before}",
        f"{b.path}: {newest}",
        tuple(before.unlike(newest)),
        rows,
        tuple(only),
    )


def _newest(those: list[Study]) -> Study:
    # Serial runs alone belong to every study of their size.
    parallel = [study for study in those if any(run.configuration.backend != "serial" for run in study.counted)]
    return (parallel or those)[-1]


def _walls(study: Study) -> dict[Configuration, list[float]]:
    walls: dict[Configuration, list[float]] = {}
    for run in study.counted:
        walls.setdefault(run.configuration, []).append(run.wall_s)
    return walls
