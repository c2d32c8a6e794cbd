"""Runs → speedup, efficiency and serial fraction with intervals.

    runs ── alike ──▶ of one machine and code ── curves ──▶ one Curve per way of running

Speedups are estimated within rounds, never as means of ratios, and each knows its base case and that one's time.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Literal, get_args

import numpy as np
import numpy.typing as npt

from parcompute.analysis.fits import Fit, fit
from parcompute.analysis.laws import equal_chunks_efficiency, karp_flatt, karp_flatt_sd
from parcompute.analysis.losses import Reference, losses, shares, summands
from parcompute.machine.provenance import Value
from parcompute.values.intervals import Interval, Summary, summarise
from parcompute.values.rounds import conditions_of, counting, pairs, ratio_of_runs, sessions, summary_of
from parcompute.values.sweep import Configuration, Run, by_nodes

# Levels that go without saying in a label; file and figures' captions have them all.
DEFAULTS = ("guided", "forkserver")

BaseKind = Literal["best_serial", "one_worker", "smallest_n"]
Conditions = Mapping[str, Mapping[str, Value]]


@dataclass(frozen=True, slots=True)
class Base:
    """What speedups are relative to.

    Attributes
    ----------
    kind : {"best_serial", "one_worker", "smallest_n"}
        The serial backend; the same backend with one worker; with the fewest workers that were measured.
    backend : str
        Its backend.
    n_workers : int
        N0, its workers.
    wall : Summary
        Its time in seconds.
    """

    kind: BaseKind
    backend: str
    n_workers: int
    wall: Summary

    def __str__(self) -> str:
        names = {
            "best_serial": "best serial",
            "one_worker": f"{self.backend} with one worker",
            "smallest_n": f"{self.backend} on {self.n_workers}",
        }
        return f"{names[self.kind]}, {self.wall.median} s"


@dataclass(frozen=True, slots=True, eq=False)
class Point:
    """One number of workers on a curve.

    Attributes
    ----------
    n_workers : int
        N, over all nodes; a process that runs several threads counts once per thread.
    n_nodes : int
        On how many nodes these are.
    wall : Summary
        Seconds.
    walls_s : ndarray, shape (n_runs,)
        The runs behind it.
    speedup : Interval
        T_base/T; for weak scaling the scaled speedup N·T_base/T.
    speedups : ndarray, shape (n_rounds,)
        The same in each round that it is estimated from (see `parcompute.values.rounds.pairs`); empty where base and
        point share none: then `speedup` is the ratio of their medians.
    n_disturbed : int
        Rounds among these in which the machine was not quiet.
    efficiency : Interval
        Speedup over N/N0.
    karp_flatt : Interval or None
        Experimentally determined serial fraction; None on one worker, for weak scaling, and where the base has
        more than one worker.
    karp_flatt_sd : float
        Its standard deviation from run to run; NaN where there is none.
    efficiency_bound : float
        The most that the number of indivisible pieces allows, for pieces of equal cost.
    beyond : bool
        More workers than CPUs, of all its hosts: not fitted.
    lost : mapping of str to float
        Share of all core-seconds in each part of the ledger; empty where no run has a timeline.
    fraction : mapping of str to float
        What `karp_flatt` consists of, mean of the runs: a summand per loss, and ``base`` (see
        `parcompute.analysis.losses.Losses.karp_flatt`); empty where there is neither a timeline nor a serial reference.
    computation_scaling : Interval or None
        CompS, time inside kernels in the serial reference over that here; None without a reference.
    """

    n_workers: int
    n_nodes: int
    wall: Summary
    walls_s: npt.NDArray[np.float64]
    speedup: Interval
    speedups: npt.NDArray[np.float64]
    n_disturbed: int
    efficiency: Interval
    karp_flatt: Interval | None
    karp_flatt_sd: float
    efficiency_bound: float
    beyond: bool
    lost: Mapping[str, float]
    fraction: Mapping[str, float]
    computation_scaling: Interval | None

    @property
    def baseline_broken(self) -> bool:
        """Whether kernels ran faster than in the serial reference, which then is none."""
        CompS = self.computation_scaling
        return CompS is not None and CompS.excludes(1.0) and CompS.value > 1


@dataclass(frozen=True, slots=True, eq=False)
class Curve:
    """How one way of running scales.

    Attributes
    ----------
    backend, schedule, start_method : str
        The way.
    threads_per_worker, blas_threads : int
        Of it.
    variant : str
        Which of the experiment's own ways; empty where it has only one.
    n_nodes : int
        On how many nodes; 0 where each point has its own number of them (see `Point.n_nodes`).
    kind : {"strong", "weak"}
        Whether the work was the same for every number of workers or grew with it.
    n_items, block_items : int
        Size of the problem (for weak scaling: per worker) and of a block.
    n_cpus : int
        CPUs that could be used, of a node.
    base : Base
        What speedups are relative to.
    points : tuple of Point
        By number of workers.
    parallel_tax : Interval or None
        Time of one worker over that of the best serial run; None where one of them was not measured.
    fit : Fit or None
        Amdahl's law (for weak scaling: Gustafson's) over the points with no more workers than CPUs; None if
        there are none.
    left_out : mapping of str to int
        How many runs were left out, by reason.
    counters_known : bool
        Whether the machine's counters could be read, by which a disturbed run is known.
    """

    backend: str
    schedule: str
    start_method: str
    threads_per_worker: int
    blas_threads: int
    variant: str
    n_nodes: int
    kind: str
    n_items: int
    block_items: int
    n_cpus: int
    base: Base
    points: tuple[Point, ...]
    parallel_tax: Interval | None
    fit: Fit | None
    left_out: Mapping[str, int]
    counters_known: bool

    @property
    def label(self) -> str:
        """Name of the way: backend, and the other factors where they are not as by default."""
        threads = f"{self.threads_per_worker} threads" if self.threads_per_worker > 1 else ""
        blas = f"{self.blas_threads} BLAS threads" if self.blas_threads > 1 else ""
        nodes = f"{self.n_nodes} nodes" if self.n_nodes > 1 else ""
        levels = (self.variant, self.schedule, self.start_method, threads, blas, nodes)
        return ", ".join((self.backend, *(part for part in levels if part not in ("", *DEFAULTS))))


def alike(runs: Iterable[Run], provenance: Conditions) -> dict[str, tuple[Run, ...]]:
    """Sort runs by the conditions in which they have to agree to be compared.

    Parameters
    ----------
    runs : iterable of Run
        All runs of a file.
    provenance : mapping of str to mapping
        The conditions by id, as the file has them.

    Returns
    -------
    dict of str to tuple of Run
        By the id of the conditions, in the order of the first run.
    """
    runs = tuple(runs)
    groups: dict[str, list[Run]] = {}
    for run, id in zip(runs, conditions_of(runs, provenance), strict=True):
        groups.setdefault(id, []).append(run)
    return {id: tuple(members) for id, members in groups.items()}


def curves(
    runs: Iterable[Run], *, base: BaseKind, n_cpus: int, provenance: Conditions | None = None, seed: int = 0
) -> tuple[Curve, ...]:
    """Return a curve for each way of running that is no base case itself.

    Runs on several nodes make one curve with those on one where each node has the same number of workers, so that the
    number of workers tells that of nodes; else each number of nodes has a curve of its own.

    Parameters
    ----------
    runs : iterable of Run
        Of one experiment under the same conditions.
    base : {"best_serial", "one_worker", "smallest_n"}
        What speedups are relative to.
    n_cpus : int
        CPUs of a node that could be used: no fit goes beyond. Where two hardware threads share a core and both were
        used, pass the number of cores, since a law of scaling does not hold across the step between them.
    provenance : mapping, optional
        The conditions by id. Without it all runs must have the same id, with it the same conditions.
    seed : int
        Of the bootstrap.

    Raises
    ------
    ValueError
        If runs of unlike conditions are mixed, or the base case was not measured.
    """
    if base not in get_args(BaseKind):
        raise ValueError(f"base={base!r} is unknown; pass one of {', '.join(get_args(BaseKind))}")
    runs = tuple(runs)
    _refuse_unlike(runs, provenance)
    ways: dict[tuple[Configuration, int], list[Run]] = {}
    for run in runs:
        way = replace(run.configuration, n_workers=0, n_nodes=1, n_items=run.configuration.n_items_of_one)
        ways.setdefault((way, run.block_items), []).append(run)
    return tuple(
        _curve(members, of_way, runs, base, n_cpus, provenance or {}, seed)
        for of_way in ways.values()
        for members in by_nodes(of_way)
        if members[0].configuration.backend != "serial" and counting(members)
    )


def room(run: Run, n_cpus: int, provenance: Conditions) -> int:
    """Return the CPUs that a run had, if each of its hosts has `n_cpus`; several nodes may be on one host."""
    hosts = str(provenance.get(run.provenance, {}).get("node_hosts", ""))
    return n_cpus * (len(set(hosts.split(", "))) if hosts else run.configuration.n_nodes)


# ── one curve ─────────────────────────────────────────────────────────────────────────────────────────


def _walls(runs: Iterable[Run]) -> npt.NDArray[np.float64]:
    return np.array([run.wall_s for run in counting(runs)])


def _refuse_unlike(runs: Sequence[Run], provenance: Conditions | None) -> None:
    ids = {run.provenance for run in runs} if provenance is None else set(alike(runs, provenance))
    if len(ids) > 1:
        raise ValueError(f"runs of unlike conditions are mixed: {', '.join(sorted(ids))}; sort them with alike() first")


def _curve(
    members: Sequence[Run],
    of_way: Sequence[Run],
    runs: Sequence[Run],
    kind: BaseKind,
    n_cpus: int,
    conditions: Conditions,
    seed: int,
) -> Curve:
    used = counting(members)
    # With the disturbed runs, of which rounds may still be taken.
    by_n = {
        N: [run for run in members if run.is_valid and run.configuration.n_workers == N]
        for N in sorted({run.configuration.n_workers for run in used})
    }
    first = members[0].configuration
    serial = [run for run in runs if run.is_valid and _is_serial_of(run, members[0])]
    one = [run for run in of_way if run.is_valid and run.configuration.n_workers == 1]
    of_base = {"best_serial": serial, "one_worker": one, "smallest_n": by_n[min(by_n)]}[kind]
    if not counting(of_base):
        wanted = "backend serial" if kind == "best_serial" else f"backend {first.backend} with n_workers=1"
        raise ValueError(
            f"base={kind!r} needs an undisturbed, verified run of {wanted}, n_items={first.n_items_of_one} and "
            f"block_items={members[0].block_items}; measure one, or pass base='smallest_n'"
        )
    c = of_base[0].configuration
    base = Base(kind, c.backend, c.n_workers, summary_of(of_base))
    of = sessions(conditions)
    reference = _reference(of_base) if c.n_workers == 1 and first.kind == "strong" else None
    fitted = [run for run in used if run.counts and run.configuration.n_workers <= room(run, n_cpus, conditions)]
    numbers = {run.configuration.n_nodes for run in members}
    return Curve(
        backend=first.backend,
        schedule=first.schedule,
        start_method=first.start_method,
        threads_per_worker=first.threads_per_worker,
        blas_threads=first.blas_threads,
        variant=first.variant,
        n_nodes=numbers.pop() if len(numbers) == 1 else 0,
        kind=first.kind,
        n_items=first.n_items_of_one,
        block_items=members[0].block_items,
        n_cpus=n_cpus,
        base=base,
        points=tuple(
            _point(at_n, of_base, of, base, room(at_n[0], n_cpus, conditions), reference) for at_n in by_n.values()
        ),
        parallel_tax=ratio_of_runs(by_n[1], serial, of) if counting(serial) and 1 in by_n else None,
        fit=_fit(fitted, first.kind, seed) if fitted else None,
        left_out=Counter("not verified" if not run.verified else "disturbed" for run in members if run not in used),
        counters_known=any(run.counters.known for run in members),
    )


def _is_serial_of(run: Run, other: Run) -> bool:
    return run.block_items == other.block_items and run.configuration.is_serial_of(other.configuration)


def _fit(runs: Sequence[Run], kind: str, seed: int) -> Fit:
    return fit(
        "amdahl" if kind == "strong" else "gustafson",
        [run.configuration.n_workers for run in runs],
        _walls(runs),
        rounds=[run.round for run in runs],
        seed=seed,
    )


def _point(
    runs: Sequence[Run],
    of_base: Sequence[Run],
    of: Mapping[str, str],
    base: Base,
    n_cpus: int,
    reference: Reference | None,
) -> Point:
    c = runs[0].configuration
    N, N0, weak = c.n_workers, base.n_workers, c.kind == "weak"
    within = pairs(of_base, runs, of)
    shrunk = ratio_of_runs(of_base, runs, of)
    if runs[0] in of_base:  # a configuration against itself is 1 and not a sample of ratios around 1
        within, shrunk = pairs((), (), of), Interval(1.0, 1.0, 1.0, False)
    work = N / N0 if weak else 1.0
    speedup = shrunk.scaled(work)
    wall = summary_of(runs)
    cv = float(np.hypot(wall.cv, base.wall.cv) / np.sqrt(2))
    has_fraction = N > 1 and N0 == 1 and not weak
    ledgers = [losses(run.timelines, reference) for run in counting(runs) if run.timelines]
    has_summands = has_fraction and reference is not None and bool(ledgers)
    CompS = [ledger.computation_scaling for ledger in ledgers if ledger.computing_ns.any()]
    return Point(
        n_workers=N,
        n_nodes=c.n_nodes,
        wall=wall,
        walls_s=_walls(runs),
        speedup=speedup,
        speedups=work * within.times_s[:, 0] / within.times_s[:, 1],
        n_disturbed=within.n_disturbed,
        efficiency=speedup.scaled(N0 / N),
        karp_flatt=_karp_flatt(N, speedup) if has_fraction else None,
        karp_flatt_sd=float(karp_flatt_sd(N, speedup.value, cv)) if has_fraction else float("nan"),
        efficiency_bound=float(equal_chunks_efficiency(N, _pieces(runs[0]))),
        beyond=n_cpus < N,
        lost=shares(ledgers),
        fraction=summands(ledgers, round(base.wall.median.value * 1e9)) if has_summands else {},
        computation_scaling=summarise(CompS).median if CompS and reference is not None else None,
    )


def _karp_flatt(N: int, speedup: Interval) -> Interval:
    value, low, high = karp_flatt(N, [speedup.value, speedup.high, speedup.low]).tolist()
    return Interval(value, low, high, speedup.is_range)


def _pieces(run: Run) -> int:
    # Chunks of "guided" shrink, so that their number bounds nothing; its blocks are equal and indivisible.
    if not run.block_items:  # calls, one per item
        return max(1, run.configuration.n_items)
    if run.configuration.schedule.startswith("guided"):
        return max(1, -(-run.configuration.n_items // run.block_items))
    return max(1, run.n_chunks)


def _reference(of_base: Sequence[Run]) -> Reference | None:
    timed = sorted((run for run in counting(of_base) if run.timelines), key=lambda run: run.wall_s)
    return Reference.of(*timed[(len(timed) - 1) // 2].timelines) if timed else None
