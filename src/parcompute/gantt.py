"""Draw on given axes who did what when: one row per worker, coloured by the kind of core-second.

    0 │ ▒▒█████████████░█████████████░███████████████▒▒▒▒
    1 │ ▒▒▒▒██████████░█████████░████████████████████████

Like `figures` it opens no file, knows no page and changes no setting.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np

from parcompute.ledgers import LOOKS
from parcompute.timeline import Timeline

if TYPE_CHECKING:
    from matplotlib.axes import Axes

# A page has no room for more rows that can be told apart.
MOST_ROWS = 64


def timeline(ax: Axes, timelines: Sequence[Timeline]) -> None:
    """Draw the jobs of a run: kernels, and between them what the ledger calls the rest.

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

    workers = timelines[0].workers["worker"].tolist()[:MOST_ROWS]
    previous = origin
    for job in timelines:
        chunks = job.chunks
        submitted = int(chunks["started_ns"].min(initial=job.submitted_ns))
        last = max(submitted, int(chunks["stored_ns"].max(initial=submitted)))
        for worker, ready_ns in zip(job.workers["worker"].tolist(), job.workers["ready_ns"].tolist(), strict=True):
            if worker not in workers:
                continue
            rows = job.of_worker(worker)
            add("prologue", worker, previous, submitted)
            at = min(max(submitted, ready_ns), int(rows["started_ns"][0]) if len(rows) else last)
            add("startup", worker, submitted, at)
            for started, finished, stored in rows[["started_ns", "finished_ns", "stored_ns"]].tolist():
                add("dispatch", worker, at, started)
                add("useful", worker, started, finished)
                add("return", worker, finished, stored)
                at = stored
            add("tail", worker, at, last)
            add("drain", worker, last, job.completed_ns)
        previous = job.completed_ns
    for kind, (colour, _) in LOOKS.items():
        label = "kernel" if kind == "useful" else kind
        for worker, parts in spans.get(kind, {}).items():
            # An edge in the same colour keeps what is thinner than a pixel in sight.
            ax.broken_barh(parts, (worker - 0.4, 0.8), facecolors=colour, edgecolors=colour, lw=0.1, label=label)
            label = ""
    _ends_of_kernels(ax, spans.get("useful", {}))
    ax.set_xlim(0, seconds * scale)
    ax.set_ylim(max(workers) + 0.6, -0.6)
    step = max(1, len(workers) // 8)
    ax.set_yticks(workers[::step])
    ax.tick_params(axis="y", length=0)
    ax.set_ylabel("worker")
    ax.set_xlabel(f"time since the call, {unit}")


def _ends_of_kernels(ax: Axes, of_workers: dict[int, list[tuple[float, float]]]) -> None:
    """Draw a hair where a chunk ends, as long as there are few enough to be told apart."""
    if sum(map(len, of_workers.values())) <= 400:
        for worker, parts in of_workers.items():
            ends = np.array(parts).sum(axis=1)
            ax.vlines(ends, worker - 0.4, worker + 0.4, color="0.45", lw=0.3)
