"""Replay a recorded timeline under other numbers of workers and nodes, schedules and chunk sizes.

    run ── kernel time of each block, median cost of a claim and of a return ──▶ list scheduling ──▶ makespan
        └─ on nodes: what spans and their results took on their way ──────────────────┘ on each node

The kernels take as long as they did when they were recorded: what shares a memory bus or a socket will be slower.
"""

from __future__ import annotations

import heapq
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

import numpy as np
import numpy.typing as npt

from parcompute.analysis.losses import list_schedule
from parcompute.values.blocks import Plan, Schedule
from parcompute.values.intervals import Interval, summarise
from parcompute.values.sweep import Configuration, Run
from parcompute.values.timeline import Timeline
from parcompute.values.ways import Way, kernel_ns_of_blocks

ASSUMPTIONS = (
    "a kernel takes as long as in the recorded run: no contention for memory, caches or hardware threads",
    "blocks of one chunk take equally long",
    "each claim and each return cost the median of the recorded ones, and do not wait for each other",
    "before the first chunk, between jobs and after the last result the time is as recorded",
)
ON_NODES = (
    "blocks of one span take equally long; a span is a quarter of a node's part of what is left (static: all of it), "
    "and no smaller, for each worker of its node, than the smallest recorded; a node computes one while the next is on "
    "its way",
    "spans and results of a node take as long on their way as its recorded ones of that size; a node that was not "
    "there costs what the last one does",
)

# Spans that a node has at a time.
_AHEAD = 2

Ints = npt.NDArray[np.int64]
Floats = npt.NDArray[np.float64]


@dataclass(frozen=True, slots=True)
class Costs:
    """What a job takes beside its kernels, in nanoseconds.

    Attributes
    ----------
    before, after : int
        From the call until the first chunk could be claimed; from the last result until the caller had the whole.
    claim, result : int
        Median time from one result to the next kernel of the same worker; from the end of a kernel until its result
        stood where it belongs.
    """

    before: int
    after: int
    claim: int
    result: int

    @classmethod
    def of(cls, timeline: Timeline) -> Costs:
        """Read them off a timeline with at least one chunk."""
        chunks = timeline.chunks
        gaps = [
            rows["started_ns"][1:] - rows["stored_ns"][:-1]
            for rows in (timeline.of_worker(int(worker)) for worker in np.unique(chunks["worker"]))
        ]
        between = np.concatenate(gaps)
        begun = int(chunks["started_ns"].min())
        return cls(
            before=begun - timeline.called_ns,
            after=timeline.completed_ns - int(chunks["stored_ns"].max()),
            claim=max(0, int(np.median(between))) if len(between) else 0,
            result=max(0, int(np.median(chunks["stored_ns"] - chunks["finished_ns"]))),
        )


@dataclass(frozen=True, slots=True)
class Predicted:
    """What one replay gives.

    Attributes
    ----------
    schedule : str
        How chunks are cut and handed out.
    n_workers, n_nodes : int
        Number of workers, and of nodes that they are on.
    wall : Interval
        Seconds, over the recorded runs.
    speedup : float
        Time of the base over it.
    measured : Interval or None
        Seconds of the runs of the same configuration, where there are any.
    """

    schedule: str
    n_workers: int
    n_nodes: int
    wall: Interval
    speedup: float
    measured: Interval | None

    @property
    def error(self) -> float:
        """Predicted over measured time, less 1; NaN where nothing was measured."""
        return float("nan") if self.measured is None else self.wall.value / self.measured.value - 1


@dataclass(frozen=True, slots=True)
class Prediction:
    """Replays of one configuration.

    Attributes
    ----------
    source : Configuration
        Whose timelines were replayed.
    n_runs : int
        How many.
    base : str
        What speedups are relative to.
    base_s : float
        Its median time in seconds.
    points : tuple of Predicted
        By schedule, then by number of nodes, then of workers.
    """

    source: Configuration
    n_runs: int
    base: str
    base_s: float
    points: tuple[Predicted, ...]

    @property
    def on_nodes(self) -> bool:
        """Whether spans were dealt to nodes."""
        return any(point.n_nodes > 1 for point in self.points)

    @property
    def assumptions(self) -> tuple[str, ...]:
        """What is assumed."""
        return ASSUMPTIONS + ON_NODES * self.on_nodes

    def as_dict(self) -> dict[str, Any]:
        """Return all of it as plain values."""
        return {**asdict(self), "assumptions": list(self.assumptions)}

    def describe(self) -> list[str]:
        """Return lines of text: a row per prediction, and what is assumed."""
        lines = [
            f"replayed: {self.n_runs} runs of {self.source.name}, "
            f"{self.source.n_items} items; base: {self.base}, {self.base_s:.4g} s",
            f"{'schedule':<12} {'workers':>7}{' nodes' * self.on_nodes} {'time (s)':>12} {'speed-up':>9} "
            f"{'efficiency':>10}   measured",
        ]
        for point in self.points:
            share = f"{100 * point.speedup / point.n_workers:.1f} %"
            measured = "" if point.measured is None else f"{point.measured.value:.4g} s ({100 * point.error:+.1f} %)"
            nodes = f"{point.n_nodes:>6}" if self.on_nodes else ""
            lines.append(
                f"{point.schedule:<12} {point.n_workers:>7}{nodes} {point.wall.value:>12.4g} "
                f"{point.speedup:>8.2f}× {share:>10}   {measured}".rstrip()
            )
        return [*lines, "assumed:", *(f"  {assumption}" for assumption in self.assumptions)]


def predict(
    runs: Sequence[Run],
    backend: str,
    workers: Sequence[int],
    schedules: Sequence[str] = (),
    nodes: Sequence[int] = (1,),
) -> Prediction:
    """Predict makespans from the runs of a backend on its fewest workers.

    Parameters
    ----------
    runs : sequence of Run
        Of one study, with their timelines; those that do not count are left out.
    backend : str
        Whose runs are replayed; for several nodes, those on several.
    workers : sequence of int
        Numbers of workers to predict, of each node.
    schedules : sequence of str
        Schedules to predict; empty for that of the runs.
    nodes : sequence of int
        Numbers of nodes to predict.

    Raises
    ------
    ValueError
        If no run of the backend, on several nodes if such are to be predicted, has a timeline.
    """
    counted = [run for run in runs if run.counts]
    timed = [run for run in counted if run.configuration.backend == backend and run.timelines]
    if not timed:
        have = sorted({run.configuration.backend for run in counted if run.timelines})
        raise ValueError(f"no run of {backend} has a timeline; pass one of {', '.join(have) or 'none'}")
    if max(nodes) > 1 and not (timed := [run for run in timed if run.configuration.n_nodes > 1]):
        raise ValueError(
            f"no run of {backend} on several nodes has a timeline, and what spans take on their way is not known; "
            "run the experiment with --nodes 1,2"
        )
    source = min((run.configuration for run in timed), key=lambda c: (c.n_workers, c))
    replayed = [run for run in timed if run.configuration == source]
    serial = [
        run.wall_s
        for run in counted
        if run.configuration.backend == "serial"
        and (run.configuration.n_items, run.configuration.variant) == (source.n_items, source.variant)
    ]
    points = [
        _predicted(replayed, counted, schedule, n_workers * n_nodes, n_nodes)
        for schedule in schedules or (source.schedule,)
        for n_nodes in nodes
        for n_workers in workers
    ]
    base_s = summarise(serial or [run.wall_s for run in replayed]).median.value
    base = "best serial" if serial else source.name
    return Prediction(
        source, len(replayed), base, base_s, tuple(replace(p, speedup=base_s / p.wall.value) for p in points)
    )


def _predicted(
    replayed: Sequence[Run], counted: Sequence[Run], schedule: str, n_workers: int, n_nodes: int
) -> Predicted:
    walls = [makespan_ns(run, schedule, n_workers, n_nodes) / 1e9 for run in replayed]
    wanted = replace(replayed[0].configuration, schedule=schedule, n_workers=n_workers, n_nodes=n_nodes)
    measured = [run.wall_s for run in counted if run.configuration == wanted]
    return Predicted(
        schedule, n_workers, n_nodes, summarise(walls).median, 1.0, summarise(measured).median if measured else None
    )


def makespan_ns(run: Run, schedule: str, n_workers: int, n_nodes: int = 1) -> int:
    """Return how long a run would take under another schedule and with other workers.

    Parameters
    ----------
    run : Run
        With its timelines; of nodes, if its blocks are to be dealt to nodes.
    schedule : str
        As `parcompute.values.blocks.Schedule` writes it.
    n_workers, n_nodes : int
        Number of workers, and of nodes that they are on, as many on each.
    """
    total, previous = 0, run.timelines[0].called_ns
    for timeline in run.timelines:
        total += timeline.called_ns - previous
        previous = timeline.completed_ns
        if not len(timeline.chunks):
            total += timeline.makespan_ns
            continue
        costs = Costs.of(timeline)
        blocks = block_ns(run, timeline)
        if len(timeline.spans):
            total += timeline.submitted_ns - timeline.called_ns
            total += _replay_on_nodes(blocks, timeline, costs, schedule, n_workers // n_nodes, n_nodes)
            total += timeline.completed_ns - int(timeline.spans["received_ns"].max())
            continue
        plan = Plan.cut(run.configuration.n_items, run.block_items, schedule, n_workers)
        chunks = _chunk_ns(blocks, plan.edges)
        total += costs.before + _replay(chunks, costs, plan.schedule.kind, n_workers) + costs.after
    return total


def block_ns(run: Run, timeline: Timeline) -> Floats:
    """Return the kernel time of each block in nanoseconds, shape (n_blocks,).

    A chunk's time is shared by its blocks alike; one that was computed twice counts as it was computed last. Of a job
    on nodes it is that of a span.

    Raises
    ------
    ValueError
        If the job's blocks are not those of the run's problem.
    """
    c = run.configuration
    only = "only jobs over all items of an experiment can be replayed"
    if len(timeline.spans):
        of_spans = kernel_ns_of_blocks(timeline, -(-c.n_items // run.block_items))
        if lacking := int(np.isnan(of_spans).sum()):
            raise ValueError(f"{c.name} has a job whose spans lack {lacking} blocks of {len(of_spans)}; {only}")
        return of_spans
    plan = Plan.cut(c.n_items, run.block_items, c.schedule, c.n_workers)
    if (n_chunks := len(np.unique(timeline.chunks["chunk"]))) != plan.n_chunks:
        raise ValueError(
            f"{c.name} has a job of {n_chunks} chunks where its {c.n_items} items give {plan.n_chunks}; {only}"
        )
    took = np.zeros(plan.n_chunks)
    took[timeline.chunks["chunk"]] = timeline.chunks["finished_ns"] - timeline.chunks["started_ns"]
    sizes = np.diff(plan.edges)
    return np.repeat(took / sizes, sizes)


def _chunk_ns(blocks: Floats, edges: Ints) -> Ints:
    ends = np.concatenate([[0], np.cumsum(blocks)])
    chunks: Ints = np.diff(np.rint(ends[edges]).astype(np.int64))
    return chunks


def _replay(chunks: Ints, costs: Costs, kind: str, n_workers: int) -> int:
    """Return when the last result stands, from when the first chunk begins, whose claim is in `before` already."""
    around = costs.claim + costs.result
    if kind == "static":
        own = np.bincount(np.arange(len(chunks)) % n_workers, chunks + around, n_workers)
        return int(own.max()) - costs.claim
    return list_schedule((chunks + around).tolist(), min(n_workers, len(chunks))) - costs.claim


# ── on nodes ──────────────────────────────────────────────────────────────────────────────────────────


def _replay_on_nodes(
    blocks: Floats, timeline: Timeline, costs: Costs, schedule: str, n_workers: int, n_nodes: int
) -> int:
    """Return when the caller has the last result, from when it could send the first span."""
    served = [node for node in timeline.nodes if (timeline.spans["node"] == node["node"]).any()]
    known = [Way.of(timeline, node) for node in served]
    ways = (known + [known[-1]] * n_nodes)[:n_nodes]
    of_a_node = int(timeline.nodes["n_workers"].max())
    least = -(-int((timeline.spans["stop"] - timeline.spans["first"]).min()) * n_workers // max(1, of_a_node))
    kind, whole = Schedule.parse(schedule).kind, -(-len(blocks) // n_nodes)
    asking = [(0.0, node) for node in range(n_nodes) for _ in range(1 if kind == "static" else _AHEAD)]
    arrived, free, last = [-1.0] * n_nodes, [0.0] * n_nodes, 0.0
    first = 0
    while first < len(blocks):
        at, node = heapq.heappop(asking)
        way, left = ways[node], len(blocks) - first
        size = min(left, whole if kind == "static" else max(1, least, left // (4 * n_nodes)))
        on_way = way.out[0] + way.out[1] * size + (way.first if arrived[node] < 0 else 0.0)
        arrived[node] = max(arrived[node], at + on_way)
        plan = Plan.cut(size, 1, schedule, n_workers)
        chunks = _chunk_ns(blocks[first : first + size], plan.edges)
        took = _replay(chunks, costs, kind, n_workers)
        free[node] = max(free[node], arrived[node]) + way.around + took
        received = free[node] + way.back[0] + way.back[1] * size
        heapq.heappush(asking, (received, node))
        first, last = first + size, max(last, received)
    return round(last)
