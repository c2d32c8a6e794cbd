"""Draw on given axes where the core-seconds went: their shares, and who spent them when.

     0 %                                    100 %   core-s      0 s                                  1.2 s
     processes                                                0 ┃ ▒▒████████████░██████████░████████▒▒▒▒
   1 ┃ computing ░░░░░░░░░░░░░░░░░░░░░░░░░░░▒▒┃     0.126     1 ┃ ▒▒▒▒██████████░█████████░████████████
   2 ┃ computing ░░░░░░░░░░░▒▒▒ losses ▒▒▒▒▒▒▒┃     0.155

Like `curves` it opens no file, knows no page and changes no setting.
"""

from __future__ import annotations

import itertools
from bisect import bisect_right
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from parcompute.figures.curves import beside
from parcompute.values.parts import PARTS, WORDS
from parcompute.values.timeline import Timeline

if TYPE_CHECKING:
    from matplotlib.axes import Axes

# Colour, and hatch for print without colour.
LOOKS = {
    "useful": ("#DADADA", ""),
    "prologue": ("#000000", ""),
    "startup": ("#56B4E9", "//"),
    "dispatch": ("#0072B2", "/////"),
    "transfer": ("#767676", "oooo"),
    "lost_cpu": ("#D55E00", "xxxxx"),
    "slowdown": ("#E69F00", "\\\\\\\\\\"),
    "return": ("#009E73", "-----"),
    "tail": ("#CC79A7", "|||||"),
    "drain": ("#F0E442", "+++++"),
}

# A page has no room for more rows that can be told apart.
MOST_ROWS = 64


@dataclass(frozen=True, slots=True)
class Bar:
    """The ledger of one way of running on one number of workers.

    Attributes
    ----------
    way : str
        Its name.
    n_workers : int
        N.
    n_nodes : int
        On how many nodes these are.
    beyond : bool
        More workers than CPUs.
    core_s : float
        Core-seconds of a run, mean of the runs.
    shares : mapping of str to float
        Of the core-seconds, by part; they add up to 1, and some may be negative.
    """

    way: str
    n_workers: int
    n_nodes: int
    beyond: bool
    core_s: float
    shares: Mapping[str, float]


def ledger(ax: Axes, bars: Sequence[Bar]) -> None:
    """Draw where the core-seconds went: one bar per way and number of workers, its parts adding up to 100 %.

    What is negative, less than in the serial reference, stands left of zero.

    Parameters
    ----------
    ax : Axes
        Where to draw; `ledger_rows` tells how many rows it needs.
    bars : sequence of Bar
        By way, and by number of workers within.
    """
    if not bars:
        ax.set_axis_off()
        ax.text(0.5, 0.5, "no run has a timeline", transform=ax.transAxes, ha="center", va="center")
        return
    rows, heads = _rows(bars)
    for name, (colour, hatch) in LOOKS.items():
        share = 100 * np.array([bar.shares.get(name, 0.0) for bar in bars])
        before = 100 * np.array([_before(bar.shares, name) for bar in bars])
        if name == "transfer" and not share.any():  # on one node there is none to be told from the others
            continue
        ax.barh(rows, share, 0.78, left=before, color=colour, hatch=hatch, ec="white", lw=0.3, label=WORDS[name])
    for y, way in heads:
        beside(ax, way, (0, y), "data", (3, 0), ha="left", va="center_baseline")
    for y, bar in zip(rows, bars, strict=True):
        told = f"{bar.core_s:#.3g}" if bar.core_s < 100 else f"{bar.core_s:.0f}"
        beside(ax, told, (1, y), ax.get_yaxis_transform(), (28, 0), ha="right", va="center_baseline")
    beside(ax, "core-s", (1, 1), ax.transAxes, (28, 2), ha="right", va="bottom")
    low = min((_before(bar.shares, "") for bar in bars), default=0.0)
    ax.set_xlim(min(0.0, 100 * low * 1.05), 100 - min(0.0, 100 * low * 1.05))
    for x in (0, 100):
        ax.axvline(x, color="0.25", lw=0.7, zorder=3)
    ax.set_ylim(ledger_rows(bars) - 0.5, -0.5)
    several = any(bar.n_nodes > 1 for bar in bars)
    where = [f" on {bar.n_nodes}" if several else "" for bar in bars]
    ax.set_yticks(rows, [f"{bar.n_workers}{'*' * bar.beyond}{on}" for bar, on in zip(bars, where, strict=True)])
    ax.tick_params(axis="y", length=0)
    ax.set_ylabel("workers on nodes" if several else "workers")
    ax.set_xlabel("share of all core-seconds, %")


def ledger_rows(bars: Sequence[Bar]) -> int:
    """Return how many rows `ledger` draws: one per bar, and one above each way for its name."""
    return len(bars) + len(dict.fromkeys(bar.way for bar in bars))


def _rows(bars: Sequence[Bar]) -> tuple[list[int], list[tuple[int, str]]]:
    rows: list[int] = []
    heads: list[tuple[int, str]] = []
    for bar in bars:
        if not heads or heads[-1][1] != bar.way:
            heads.append((len(rows) + len(heads), bar.way))
        rows.append(len(rows) + len(heads))
    return rows, heads


def _before(shares: Mapping[str, float], name: str) -> float:
    """Sum the parts of the same sign that stand between zero and a part; all negative ones for no name."""
    negative = not name or shares.get(name, 0.0) < 0
    between = itertools.takewhile(lambda part: part != name, PARTS)
    return sum(share for part in between if (share := shares.get(part, 0.0)) and (share < 0) == negative)


def timeline(ax: Axes, timelines: Sequence[Timeline]) -> None:
    """Draw the jobs of a run: kernels, and between them what the ledger calls the rest; lines part the nodes.

    Parameters
    ----------
    ax : Axes
        Where to draw.
    timelines : sequence of Timeline
        Of one run, at least one.
    """
    origin = timelines[0].called_ns
    seconds = (timelines[-1].completed_ns - origin) / 1e9
    unit, scale = ("s", 1.0) if seconds >= 1 else ("ms", 1e3)
    spans: dict[str, dict[int, list[tuple[float, float]]]] = {}

    def add(kind: str, worker: int, begin: int, end: int) -> None:
        if end > begin:
            width = (end - begin) / 1e9 * scale
            spans.setdefault(kind, {}).setdefault(worker, []).append(((begin - origin) / 1e9 * scale, width))

    def add_or_transfer(kind: str, worker: int, begin: int, end: int) -> None:
        intervals = away.get(worker, ())
        for gone, back in intervals[bisect_right(intervals, begin, key=lambda interval: interval[1]) :]:
            if gone >= end:
                break
            add(kind, worker, begin, gone)
            add("transfer", worker, max(begin, gone), min(back, end))
            begin = min(back, end)
        add(kind, worker, begin, end)

    workers = timelines[0].workers["worker"].tolist()[:MOST_ROWS]
    previous = origin
    for job in timelines:
        chunks = job.chunks
        submitted = int(chunks["started_ns"].min(initial=job.submitted_ns))
        last = max(submitted, int(chunks["stored_ns"].max(initial=submitted)))
        away = _away(job)
        for worker, ready_ns in zip(job.workers["worker"].tolist(), job.workers["ready_ns"].tolist(), strict=True):
            if worker not in workers:
                continue
            rows = job.of_worker(worker)
            add("prologue", worker, previous, submitted)
            at = min(max(submitted, ready_ns), int(rows["started_ns"][0]) if len(rows) else last)
            add_or_transfer("startup", worker, submitted, at)
            for started, finished, stored in rows[["started_ns", "finished_ns", "stored_ns"]].tolist():
                add_or_transfer("dispatch", worker, at, started)
                add("useful", worker, started, finished)
                add("return", worker, finished, stored)
                at = stored
            add_or_transfer("tail", worker, at, last)
            add_or_transfer("drain", worker, last, job.completed_ns)
        previous = job.completed_ns
    for kind, (colour, _) in LOOKS.items():
        label = WORDS[kind]
        for worker, parts in spans.get(kind, {}).items():
            # An edge in the same colour keeps what is thinner than a pixel in sight.
            ax.broken_barh(parts, (worker - 0.4, 0.8), facecolors=colour, edgecolors=colour, lw=0.1, label=label)
            label = ""
    _ends_of_kernels(ax, spans.get("useful", {}))
    ax.set_xlim(0, seconds * scale)
    ax.set_ylim(max(workers) + 0.6, -0.6)
    _lines_between_nodes(ax, timelines, max(workers))
    step = max(1, len(workers) // 8)
    ax.set_yticks(workers[::step])
    ax.tick_params(axis="y", length=0)
    ax.set_ylabel("worker")
    ax.set_xlabel(f"time since the call, {unit}")


def _away(job: Timeline) -> dict[int, list[tuple[int, int]]]:
    """Return for each worker when its node had nothing in hand."""
    found: dict[int, list[tuple[int, int]]] = {}
    for node, first, n_workers in job.nodes[["node", "first_worker", "n_workers"]].tolist():
        intervals = [(gone, back) for gone, back in job.without_work(node).tolist()]
        found |= dict.fromkeys(range(first, min(first + n_workers, MOST_ROWS)), intervals)
    return found


def _lines_between_nodes(ax: Axes, timelines: Sequence[Timeline], last: int) -> None:
    """Part the workers of each node from the next ones', and name the nodes as long as there is room."""
    nodes = next((job.nodes for job in timelines if len(job.nodes)), timelines[0].nodes)
    shown = nodes[nodes["first_worker"] <= last]
    for node, first, n_workers in shown[["node", "first_worker", "n_workers"]].tolist():
        if first:
            ax.axhline(first - 0.5, color="0.25", lw=0.5, zorder=3)
        if node % max(1, len(shown) // 8) == 0:
            middle = (first + min(first + n_workers - 1, last)) / 2
            beside(ax, f"node {node}", (1, middle), ax.get_yaxis_transform(), (3, 0), ha="left", va="center")


def _ends_of_kernels(ax: Axes, of_workers: dict[int, list[tuple[float, float]]]) -> None:
    """Draw a hair where a chunk ends, as long as there are few enough to be told apart."""
    if sum(map(len, of_workers.values())) <= 400:
        for worker, parts in of_workers.items():
            ends = np.array(parts).sum(axis=1)
            ax.vlines(ends, worker - 0.4, worker + 0.4, color="0.45", lw=0.3)
