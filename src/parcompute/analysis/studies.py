"""Which runs of a file belong together: a study has one set of conditions, one seed, one size and one kind.

    Recorded ── studies ──▶ Study, Study, … ── choose ──▶ the one that is drawn

Unlike runs in one file are kept apart. Whatever is fitted, drawn or told is so of one study.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from parcompute.analysis.scaling import BaseKind, Curve, curves
from parcompute.machine.provenance import Provenance, Value, differences
from parcompute.record.record import Recorded
from parcompute.values.intervals import Interval
from parcompute.values.rounds import conditions_of, counting, ratio_of_runs, sessions
from parcompute.values.sweep import Configuration, Run

# The fairest base that was measured: what a user would run without parcompute, then what it costs to use it at all.
_BASES: tuple[BaseKind, ...] = ("best_serial", "one_worker", "smallest_n")


@dataclass(frozen=True, slots=True, eq=False)
class Study:
    """Runs that may be compared, and what follows from them.

    Attributes
    ----------
    experiment : str
        Whose runs they are.
    conditions : str
        Id of the conditions of all of them (`parcompute.values.rounds.conditions_of`).
    provenance : Provenance
        Of the newest one; the versions of engines are those of their own newest runs.
    seed : int
        Of the random streams.
    kind : {"strong", "weak"}
        Whether the work was the same for every number of workers or grew with it.
    n_items : int
        Size of the problem; for weak scaling, per worker.
    runs : tuple of Run
        In the order in which they ended, those that are left out of the curves included.
    curves : tuple of Curve
        One for each way of running that has runs that count, by name.
    n_cpus : int
        Up to how many workers of a node a law of scaling may be fitted.
    n_not_shown : int
        Runs of the file with other conditions, seeds, sizes or of the other kind.
    sessions : mapping of str to str
        In which session runs were made, by `Run.provenance`.
    """

    experiment: str
    conditions: str
    provenance: Provenance
    seed: int
    kind: str
    n_items: int
    runs: tuple[Run, ...]
    curves: tuple[Curve, ...]
    n_cpus: int
    n_not_shown: int
    sessions: Mapping[str, str]

    @property
    def counted(self) -> tuple[Run, ...]:
        """The runs that count: verified, with a time, and undisturbed as far as their configuration has such."""
        return counting(self.runs)

    @property
    def n_disturbed(self) -> int:
        """How many of these were disturbed all the same."""
        return sum(not run.counts for run in self.counted)

    @property
    def left_out(self) -> dict[str, int]:
        """How many runs the curves leave out, by reason; the base case's own are counted too."""
        counted = set(self.counted)
        return dict(Counter(why_left_out(run) for run in self.runs if run not in counted))

    def runs_of(self, curve: Curve, n_workers: int) -> tuple[Run, ...]:
        """Return the runs behind one point of a curve."""
        return tuple(
            run
            for run in self.counted
            if run.configuration.n_workers == n_workers and _way(run.configuration, run) == _way(curve, curve)
            if curve.n_nodes in (0, run.configuration.n_nodes)
        )

    def runs_at(self, configuration: Configuration) -> tuple[Run, ...]:
        """Return the runs of a configuration, those that do not count included."""
        return tuple(run for run in self.runs if run.configuration == configuration)

    def ratio(self, one: Configuration, other: Configuration) -> Interval:
        """Return how many times as long one configuration takes as another (`parcompute.values.rounds`)."""
        return ratio_of_runs(self.runs_at(one), self.runs_at(other), self.sessions)

    def unlike(self, other: Study) -> list[tuple[str, Value, Value]]:
        """Return the conditions in which this study and another differ, as far as they concern backends of both."""
        both = {run.configuration.backend for run in self.runs} & {run.configuration.backend for run in other.runs}
        return differences(self.provenance.of(*both), other.provenance.of(*both))

    def has_cpus(self, run: Run) -> bool:
        """Tell whether each worker of a run had a CPU of its own."""
        c = run.configuration
        beyond = {(p.n_workers, p.n_nodes) for curve in self.curves for p in curve.points if p.beyond}
        return (c.n_workers, c.n_nodes) not in beyond

    def __str__(self) -> str:
        at = self.provenance
        nodes = f", on nodes of {at.node_cpu_models}" if at.node_cpu_models else ""
        return (
            f"{self.experiment}: {len(self.runs)} runs of {self.n_items} items, seed {self.seed}, on "
            f"{at.cpu_model} ({at.usable_cpus} usable CPUs){nodes}, conditions {self.conditions[:8]}"
        )


def studies(recorded: Recorded) -> tuple[Study, ...]:
    """Sort the runs of a file into studies, the one with the newest run last.

    Parameters
    ----------
    recorded : Recorded
        The file, with its timelines if the ledger is wanted.
    """
    known = {id: Provenance.from_fields(fields) for id, fields in recorded.provenance.items()}
    problems: dict[tuple[str, int, str, int], list[int]] = {}
    for row, (run, id) in enumerate(zip(recorded.runs, conditions_of(recorded.runs, recorded.provenance), strict=True)):
        problem = (id, run.seed, run.configuration.kind, run.configuration.n_items_of_one)
        problems.setdefault(problem, []).append(row)
    found = []
    for (conditions, seed, kind, n_items), rows in problems.items():
        # One worker's share is the same problem for strong and weak scaling, so either's serial runs are a base; and
        # they concern no engine, so that they are the base of all its versions.
        bases = {conditions, known[recorded.runs[rows[-1]].provenance].of().conditions_id}
        others = {(id, seed, "strong", n_items) for id in bases} - {(conditions, seed, kind, n_items)}
        shared = (row for problem in others for row in problems.get(problem, ()))
        rows = sorted([*rows, *(row for row in shared if recorded.runs[row].configuration.backend == "serial")])
        runs = tuple(recorded.runs[row] for row in rows)
        newest = {run.configuration.backend: known[run.provenance] for run in runs}
        provenance = known[runs[-1].provenance].with_engines(newest)
        n_cpus = fit_limit(provenance, most_of_a_node(run.configuration for run in runs))
        drawn = _curves(runs, n_cpus, recorded.provenance)
        n_not_shown = len(recorded.runs) - len(runs)
        study = Study(
            recorded.experiment,
            conditions,
            provenance,
            seed,
            kind,
            n_items,
            runs,
            drawn,
            n_cpus,
            n_not_shown,
            sessions(recorded.provenance),
        )
        found.append((rows[-1], study))  # by row, since a clock may have been set back
    return tuple(study for _, study in sorted(found, key=lambda pair: pair[0]))


def choose(
    recorded: Recorded,
    *,
    conditions: str | None = None,
    seed: int | None = None,
    n_items: int | None = None,
    kind: str | None = None,
) -> Study:
    """Choose the study that is to be drawn: the newest of those asked for.

    Parameters
    ----------
    recorded : Recorded
        The file, with its timelines if the ledger is wanted.
    conditions : str, optional
        `Provenance.conditions_id`, its first digits, or ``"newest"``. Without it there may be one only: between
        unlike conditions nothing is chosen in silence.
    seed, n_items : int, optional
        Of the problem; for weak scaling `n_items` is that of one worker.
    kind : {"strong", "weak"}, optional
        Of the scaling.

    Raises
    ------
    ValueError
        If no run fits; if those that fit ran under unlike conditions; or if none of them counts: all are disturbed or
        not verified, or there is nothing but the serial backend.
    """
    newest_of_all = conditions == "newest"
    asked = {"conditions": None if newest_of_all else conditions, "seed": seed, "kind": kind, "n_items": n_items}
    wanted = {name: value for name, value in asked.items() if value is not None}
    there = studies(recorded)
    fitting = [study for study in there if all(_fits(getattr(study, name), value) for name, value in wanted.items())]
    if not fitting:
        told = ", ".join(f"{name}={value}" for name, value in wanted.items())
        has = "; ".join(f"{name} {', '.join(dict.fromkeys(str(getattr(s, name)) for s in there))}" for name in asked)
        raise ValueError(f"{recorded.path}: has no run{f' with {told}; it has {has}' if there else ''}")
    # Serial runs belong to every study of their size, and are none to be drawn.
    parallel = [s for s in fitting if any(run.configuration.backend != "serial" for run in s.runs)]
    newest = (parallel or fitting)[-1]
    if not newest_of_all and (unlike := unlike_conditions(parallel or fitting)):
        raise ValueError(
            f"{recorded.path}: runs under unlike conditions are never mixed; choose with --conditions: "
            f"{'; '.join(unlike)}"
        )
    if not newest.curves and len({run.configuration for run in newest.counted}) < 2:
        reasons = ", ".join(f"{n} {reason}" for reason, n in newest.left_out.items()) or "all are of the serial backend"
        raise ValueError(
            f"{recorded.path}: none of {len(newest.runs)} like runs gives a curve ({reasons}); "
            "run a parallel backend on a quiet machine"
        )
    return newest


def _fits(value: object, wanted: object) -> bool:
    if isinstance(value, str) and isinstance(wanted, str):
        return value.startswith(wanted) if wanted else False
    return value == wanted


def unlike_conditions(those: Sequence[Study]) -> list[str]:
    """Say in which conditions studies ran, and in what each differs from the newest; empty if all are alike."""
    newest = {study.conditions: study for study in those}
    if len(newest) < 2:
        return []
    *_, last = those
    told = []
    for id, study in newest.items():
        unlike = [
            f"{name} {old!r} is {new!r}" if len(f"{old}{new}") < 60 else name for name, old, new in study.unlike(last)
        ]
        n_runs = sum(len(other.runs) for other in those if other.conditions == id)
        how = f"where {', '.join(unlike)}" if unlike else "the newest"
        told.append(f"{id[:8]} ({n_runs} runs, {study.runs[-1].started_utc[:16]}, {how})")
    return told


def why_left_out(run: Run) -> str:
    """Say why a run counts for no curve, disturbed ones if there are others; empty if it does."""
    if not run.verified:
        return "not verified"
    if run.disturbed:
        return "disturbed"
    return "" if math.isfinite(run.wall_s) and run.wall_s > 0 else "without a time"


def most_of_a_node(those: Iterable[Configuration]) -> int:
    """Return the largest number of workers that one node has in any of the configurations."""
    return max(c.n_workers // c.n_nodes for c in those)


def fit_limit(provenance: Provenance, most: int) -> int:
    """Return the number of workers up to which a law may be fitted on a node, if at most so many are run there.

    The usable CPUs; the cores, where two hardware threads share one and more workers than cores are run, since
    no law of scaling holds across that step; all, where neither is known.
    """
    cpus = provenance.usable_cpus if provenance.usable_cpus > 0 else most
    shared = 0 < provenance.n_cores < min(cpus, most)
    return provenance.n_cores if shared else cpus


def _curves(runs: Sequence[Run], n_cpus: int, conditions: Mapping[str, Mapping[str, object]]) -> tuple[Curve, ...]:
    if all(run.configuration.backend == "serial" for run in counting(runs)):
        return ()
    # `curves` counts what it leaves out itself, but cannot take a run without a time.
    timed = [run for run in runs if why_left_out(run) != "without a time"]
    for base in _BASES[:-1]:
        try:
            return _sorted(curves(timed, base=base, n_cpus=n_cpus, provenance=conditions))  # type: ignore[arg-type]
        except ValueError:  # not measured for one of the ways, or all of its runs are disturbed
            continue
    return _sorted(curves(timed, base=_BASES[-1], n_cpus=n_cpus, provenance=conditions))  # type: ignore[arg-type]


def _sorted(found: Sequence[Curve]) -> tuple[Curve, ...]:
    # Rounds are in random order, so that of the first runs means nothing.
    return tuple(sorted(found, key=lambda curve: (_way(curve, curve), curve.n_nodes)))


def _way(c: Configuration | Curve, blocks: Run | Curve) -> tuple[str | int, ...]:
    factors = c.backend, c.variant, c.schedule, c.start_method, c.threads_per_worker, c.blas_threads, c.kind
    return (*factors, blocks.block_items)
