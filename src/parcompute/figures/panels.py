"""Which figures a study allows, and what stands on each: title, base, drawing, caption.

Study ── available ──▶ speedup, efficiency, … ── make ──▶ Panel ── plates ──▶ a page
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from parcompute.analysis.laws import list_scheduling_bounds
from parcompute.analysis.losses import losses
from parcompute.analysis.simulate import Costs, Prediction, block_ns
from parcompute.analysis.studies import Study
from parcompute.figures import captions, charts, curves, ledgers
from parcompute.figures.ledgers import Bar
from parcompute.values.blocks import Plan, Schedule
from parcompute.values.intervals import Summary, summarise
from parcompute.values.rounds import summary_of
from parcompute.values.sweep import Configuration, Run, worker_counts

if TYPE_CHECKING:
    from matplotlib.axes import Axes

_AXES_HEIGHT, _ROW_HEIGHT = 2.1, 0.135  # inches
_MAX_BARS = 48


@dataclass(frozen=True, slots=True)
class Panel:
    """One figure before it has a page.

    Attributes
    ----------
    title, base, caption : str
        Above and below the axes.
    draw : callable
        Draws on given axes.
    height : float
        Of the axes, in inches.
    """

    title: str
    base: str
    caption: str
    draw: Callable[[Axes], None]
    height: float = _AXES_HEIGHT


@dataclass(frozen=True, slots=True)
class Kind:
    """A kind of figure.

    Attributes
    ----------
    allowed : callable
        ``allowed(study)``: whether the study has what it shows.
    make : callable
        ``make(study)`` returns its panel.
    """

    allowed: Callable[[Study], bool]
    make: Callable[[Study], Panel]


def available(study: Study) -> list[str]:
    """Return the names of the figures that the runs of a study allow, in the order of `PANELS`."""
    return [name for name, kind in PANELS.items() if kind.allowed(study)]


# ── scaling ───────────────────────────────────────────────────────────────────────────────────────────


def _scales(study: Study) -> bool:
    return bool(study.curves)


def _of_curves(study: Study, draw: Callable[[Axes], None]) -> Panel:
    return Panel(captions.title(study), captions.base_line(study), captions.of_curves(study), draw)


def _speedup(study: Study) -> Panel:
    cpus = study.provenance.usable_cpus
    return _of_curves(study, lambda ax: curves.speedup(ax, study.curves, usable_cpus=cpus))


def _efficiency(study: Study) -> Panel:
    cpus = study.provenance.usable_cpus
    return _of_curves(study, lambda ax: curves.efficiency(ax, study.curves, usable_cpus=cpus))


def _has_fractions(study: Study) -> bool:
    return any(point.karp_flatt is not None for curve in study.curves for point in curve.points)


def _karp_flatt(study: Study) -> Panel:
    return Panel(
        f"{study.experiment}, serial fraction",
        captions.base_line(study),
        f"Experimentally determined serial fraction (Karp & Flatt 1990). {captions.of_points(study)}",
        lambda ax: charts.karp_flatt(ax, study.curves),
    )


# ── where the time went ───────────────────────────────────────────────────────────────────────────────


def bars(study: Study) -> list[Bar]:
    """Return the bars of the ledger, by way and number of workers; none where no run has a timeline.

    Those of many numbers of workers, more than a page can hold, are thinned to 1, 2, 4, … and the last.
    """
    found: list[Bar] = []
    for curve, look in zip(study.curves, curves.looks(study.curves), strict=True):
        for point in curve.points:
            paid_ns = [losses(run.timelines).total_ns for run in study.runs_of(curve, point.n_workers) if run.timelines]
            if paid_ns:
                core_s = sum(paid_ns) * 1e-9 / len(paid_ns)
                found.append(Bar(look.name, point.n_workers, point.n_nodes, point.beyond, core_s, point.lost))
    if len(found) > _MAX_BARS:
        kept = worker_counts(max(bar.n_workers for bar in found))
        found = [bar for bar in found if bar.n_workers in kept] or found
    return found


def _ledger(study: Study) -> Panel:
    rows = bars(study)
    height = _ROW_HEIGHT * max(ledgers.ledger_rows(rows), 4)
    caption = captions.of_ledger(study, rows)
    return Panel(captions.title(study), captions.base_line(study), caption, lambda ax: ledgers.ledger(ax, rows), height)


def _shown_run(study: Study) -> Run | None:
    """Return the run whose timeline is shown: of the widest usable configuration the one with the median time."""
    timed = [run for run in study.counted if run.timelines and run.configuration.backend != "serial"]
    usable = [run for run in timed if study.has_cpus(run)] or timed
    if not usable:
        return None
    best = max(usable, key=lambda run: (run.configuration.n_workers, run.configuration.backend == "processes"))
    like = sorted((run for run in usable if run.configuration == best.configuration), key=lambda run: run.wall_s)
    return like[(len(like) - 1) // 2]


def _timeline(study: Study) -> Panel:
    run = _shown_run(study)
    assert run is not None
    c = run.configuration
    height = 0.11 * max(8, min(len(run.timelines[0].workers), ledgers.MOST_ROWS)) + 0.3
    return Panel(
        f"{study.experiment}, timeline",
        f"{c.name}, the run with the median time: {run.wall_s:.4g} s, round {run.round + 1}",
        f"{c.n_items:,} items in blocks of {run.block_items:,}, {run.n_chunks} chunks, {len(run.timelines)} "
        f"job{'s' * (len(run.timelines) > 1)}. Colours are the parts of the ledger; a hair ends each chunk"
        f"{', a line the workers of a node' * (c.n_nodes > 1)}. "
        f"{captions.conditions(study)}",
        lambda ax: ledgers.timeline(ax, run.timelines),
        height,
    )


# ── ways against each other ───────────────────────────────────────────────────────────────────────────


def _of_ways(study: Study) -> dict[Configuration, list[Run]]:
    """Return the runs by configuration, at the largest usable number of workers at which there are several."""
    by: dict[int, dict[Configuration, list[Run]]] = {}
    beyond: set[int] = set()
    for run in study.counted:
        if study.kind == run.configuration.kind or run.configuration.backend != "serial":
            by.setdefault(run.configuration.n_workers, {}).setdefault(run.configuration, []).append(run)
            beyond |= set() if study.has_cpus(run) else {run.configuration.n_workers}
    several = {n: ways for n, ways in by.items() if len(ways) > 1}
    usable = {n: ways for n, ways in several.items() if n not in beyond} or several
    return usable[max(usable)] if usable else {}


def _ratios(study: Study) -> Panel:
    groups: dict[str, dict[Configuration, list[Run]]] = {}
    of_all = _of_ways(study)
    one_backend = len({c.backend for c in of_all}) == 1
    for c, runs in sorted(of_all.items(), key=lambda item: (order(item[0]), item[0].way)):
        groups.setdefault(group_of(c), {})[c] = runs
    rows, bases, names = [], [], []
    for ways in groups.values():
        reference = next((c for c in ways if c.backend == "processes"), next(iter(ways)))
        names.append((one_backend and reference.variant) or reference.way)
        bases.append(f"{names[-1]}, {summary_of(ways[reference])}")
        rows += [
            ((one_backend and c.variant) or c.way, c.backend, study.ratio(c, reference)) for c in ways if c != reference
        ]
    n = reference.n_workers
    told = names[0] if len(groups) == 1 else "the first of its kind"
    return Panel(
        f"{study.experiment}, ways compared",
        f"on {n} worker{'s' * (n > 1)}; reference: {'; '.join(bases)}",
        f"{captions.measured(study)} Ratios of times within rounds, with their 95 % intervals (Hodges & Lehmann 1963; "
        f"dotted: range, too few rounds); an interval that holds 1 shows no difference. {captions.conditions(study)}",
        lambda ax: charts.ratios(ax, rows, told),
        0.17 * max(len(rows), 3) + 0.1,
    )


def order(c: Configuration) -> tuple[int, str]:
    """Return a key that puts serial ways first: they are what others are compared with."""
    return (0 if c.backend == "serial" and c.variant.endswith("serial") else 1, group_of(c))


def group_of(c: Configuration) -> str:
    """Return the kind of work that a variant like ``"files: threads"`` names; empty for others."""
    kind, colon, _ = c.variant.partition(": ")
    return kind if colon else ""


def _chunked(study: Study) -> dict[str, dict[int, list[Run]]]:
    """Return the runs under ``dynamic,k`` by backend and k, on the largest usable number of workers of one node."""
    by: dict[str, dict[int, list[Run]]] = {}
    on_one = [run for run in study.counted if run.configuration.n_nodes == 1]
    usable = [run.configuration.n_workers for run in on_one if run.configuration.n_workers <= study.n_cpus]
    for run in on_one:
        c = run.configuration
        size = Schedule.parse(c.schedule).chunk_blocks
        if (
            c.backend != "serial"
            and c.schedule.startswith("dynamic")
            and size
            and c.n_workers == max(usable, default=0)
        ):
            by.setdefault(c.backend, {}).setdefault(size, []).append(run)
    return {backend: sizes for backend, sizes in by.items() if len(sizes) >= 3}


def _chunk_sizes(study: Study) -> Panel:
    by = dict(sorted(_chunked(study).items(), key=lambda item: (item[0] != "processes", item[0])))
    walls = {b: [(k, summary_of(runs)) for k, runs in sorted(s.items())] for b, s in by.items()}
    first = next(iter(by))
    finest = min(by[first])
    runs = [run for run in by[first][finest] if run.timelines]
    claims, uneven = [], []
    if runs:
        run = runs[len(runs) // 2]
        timeline, n_workers = run.timelines[0], run.configuration.n_workers
        blocks_s = block_ns(run, timeline) / 1e9
        costs = Costs.of(timeline)
        for size in sorted(by[first]):
            plan = Plan.cut(run.configuration.n_items, run.block_items, f"dynamic,{size}", n_workers)
            chunks_s = np.add.reduceat(blocks_s, plan.edges[:-1])
            claims.append((blocks_s.sum() + plan.n_chunks * (costs.claim + costs.result) / 1e9) / n_workers)
            uneven.append(list_scheduling_bounds(chunks_s, n_workers)[1])
    return Panel(
        f"{study.experiment}, chunk size",
        captions.base_line(study),
        f"{captions.measured(study)} Left, each chunk costs a claim (dashed: kernel time plus the median claim and "
        f"return of {first}); right, the last chunk is waited for (dotted: Graham's bound of list scheduling). "
        f"{captions.conditions(study)}",
        lambda ax: charts.chunk_sizes(ax, walls, claims, uneven),
    )


def _grid_of(study: Study) -> dict[tuple[int, int], list[Run]]:
    cells: dict[tuple[int, int], list[Run]] = {}
    ways = {c.backend for c in {run.configuration for run in study.counted}} - {"serial"}
    backend = "processes" if "processes" in ways else min(ways, default="")
    for run in study.counted:
        if run.configuration.backend == backend and run.configuration.n_nodes == 1:
            cells.setdefault((run.configuration.n_workers, run.configuration.blas_threads), []).append(run)
    return cells


def _has_grid(study: Study) -> bool:
    cells = _grid_of(study)
    return len({n for n, _ in cells}) > 1 and len({b for _, b in cells}) > 1


def _grid(study: Study) -> Panel:
    walls = {key: summary_of(runs) for key, runs in _grid_of(study).items()}
    cpus = study.provenance.usable_cpus
    return Panel(
        f"{study.experiment}, workers × BLAS threads",
        captions.base_line(study),
        f"{captions.measured(study)} Median seconds, and speedup over one worker with one BLAS thread. "
        f"{captions.conditions(study)}",
        lambda ax: charts.grid(ax, walls, cpus),
        0.45 * len({b for _, b in walls}) + 0.4,
    )


PANELS: dict[str, Kind] = {
    "speedup": Kind(_scales, _speedup),
    "efficiency": Kind(_scales, _efficiency),
    "karp-flatt": Kind(_has_fractions, _karp_flatt),
    "ledger": Kind(_scales, _ledger),
    "timeline": Kind(lambda study: _shown_run(study) is not None, _timeline),
    "ratios": Kind(lambda study: len(_of_ways(study)) > 1, _ratios),
    "chunk-size": Kind(lambda study: bool(_chunked(study)), _chunk_sizes),
    "grid": Kind(_has_grid, _grid),
}


# ── of more than one study, or of none ────────────────────────────────────────────────────────────────


def of_sizes(like: Sequence[Study]) -> Panel:
    """Return the panel of time against size.

    Parameters
    ----------
    like : sequence of Study
        That differ in size only.
    """
    found: dict[tuple[str, str], dict[int, list[float]]] = {}
    for study in like:
        n_workers = max((run.configuration.n_workers for run in study.counted), default=1)
        for run in study.counted:
            if run.configuration.n_workers in (1, n_workers):
                c = dataclasses.replace(run.configuration, n_items=0)
                name = c.name if n_workers > 1 else c.variant or c.way
                found.setdefault((name, c.backend), {}).setdefault(study.n_items, []).append(run.wall_s)
    walls: dict[tuple[str, str], list[tuple[int, Summary]]] = {
        way: [(n, summarise(times)) for n, times in sorted(by_size.items())] for way, by_size in sorted(found.items())
    }
    last = like[-1]
    return Panel(
        f"{last.experiment}, sizes",
        f"{sum(len(study.counted) for study in like)} runs of {len({study.n_items for study in like})} sizes",
        f"Median times with their 95 % intervals (dotted: range). {captions.conditions(last)}",
        lambda ax: charts.sizes(ax, walls),
        2.6,
    )


def of_prediction(study: Study, found: Prediction) -> Panel:
    """Return the panel of predicted speedups."""
    c = found.source
    return Panel(
        f"{study.experiment}, prediction",
        f"base: {found.base}, {found.base_s:.4g} s",
        f"Replayed: {found.n_runs} runs of {c.name}, {c.n_items:,} items. "
        f"Assumed: {'; '.join(found.assumptions)}. {captions.conditions(study)}",
        lambda ax: charts.prediction(ax, found, study.provenance.usable_cpus),
    )
