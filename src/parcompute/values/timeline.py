"""One row per chunk, worker, span and node: who did what when, as integer nanoseconds.

The stamps are of `time.perf_counter_ns`, which on Linux is one clock for all processes of a host.

    parent   called ──── submitted ─────────────────────────────────────────── completed
    worker        ready ····· started ███ finished ─ stored ·· started ███ finished ─ stored

A job on several nodes has a row per node and per span of blocks that one of them was given. The stamps of a node are
of its own clock, moved by what was measured to be between the two: they may be wrong by its bound.

    parent   called ──── submitted ─ sent ───────────────────────────────────── received ─ completed
    node                                  arrived ··· its workers ··· finished
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt

from parcompute.values import gantt, views

CHUNK_DTYPE = np.dtype(
    [
        ("chunk", "<i8"),  # its number in the plan; a chunk that was computed again keeps its number
        ("worker", "<i4"),  # who computed it, from 0
        ("attempt", "<i4"),  # 0, and one more each time that blocks were dealt again: docs/reference/file-format.md
        ("started_ns", "<i8"),  # before the first kernel call
        ("finished_ns", "<i8"),  # after the last kernel call
        ("cpu_ns", "<i8"),  # CPU time of the computing thread between the two
        ("stored_ns", "<i8"),  # the result stands where it belongs
    ]
)

WORKER_DTYPE = np.dtype(
    [
        ("worker", "<i4"),  # from 0; a process that runs several threads has one row per thread
        ("pid", "<i8"),  # of the process
        ("ready_ns", "<i8"),  # when it could have begun
    ]
)

DEATH_DTYPE = np.dtype(
    [
        ("worker", "<i4"),  # the first of the process's workers; its successor has the same number
        ("pid", "<i8"),  # of the process
        ("exitcode", "<i4"),  # its exit status, or minus the number of the signal that ended it
        ("noticed_ns", "<i8"),  # when the caller's process has seen it
    ]
)

NODE_DTYPE = np.dtype(
    [
        ("node", "<i4"),  # from 0
        ("first_worker", "<i4"),  # its workers are numbered from this
        ("n_workers", "<i4"),  # how many they are
        ("offset_ns", "<i8"),  # what was added to the stamps of its clock to make them the caller's
        ("bound_ns", "<i8"),  # the error of that is at most this
    ]
)

SPAN_DTYPE = np.dtype(
    [
        ("node", "<i4"),  # who was given it
        ("first", "<i8"),  # its blocks are first, ..., stop - 1
        ("stop", "<i8"),
        ("sent_ns", "<i8"),  # the caller has sent it
        ("arrived_ns", "<i8"),  # the node has it, and all that it needs
        ("finished_ns", "<i8"),  # the node's last result of it is there
        ("received_ns", "<i8"),  # the caller has stored its results
    ]
)


def _no_deaths() -> npt.NDArray[np.void]:
    return np.zeros(0, DEATH_DTYPE)


def _no_nodes() -> npt.NDArray[np.void]:
    return np.zeros(0, NODE_DTYPE)


def _no_spans() -> npt.NDArray[np.void]:
    return np.zeros(0, SPAN_DTYPE)


@dataclass(frozen=True, eq=False)
class Timeline:
    """What happened during one job.

    Attributes
    ----------
    called_ns, submitted_ns, completed_ns : int
        Stamps of the caller: the call, the first chunk could be claimed, the result was complete.
    chunks : structured ndarray of CHUNK_DTYPE, shape (n_rows,)
        One row per computed chunk, by worker and start.
    workers : structured ndarray of WORKER_DTYPE, shape (n_workers,)
        One row per worker, by number; in the place of one that has died stands its successor.
    deaths : structured ndarray of DEATH_DTYPE, shape (n_deaths,)
        One row per worker process that ended during the job, as they were noticed.
    nodes : structured ndarray of NODE_DTYPE, shape (n_nodes,)
        One row per node, by number; empty where the job ran on the caller's host alone.
    spans : structured ndarray of SPAN_DTYPE, shape (n_spans,)
        One row per span of blocks whose results came back from a node, by node and arrival.
    """

    called_ns: int
    submitted_ns: int
    completed_ns: int
    chunks: npt.NDArray[np.void]
    workers: npt.NDArray[np.void]
    deaths: npt.NDArray[np.void] = field(default_factory=_no_deaths)
    nodes: npt.NDArray[np.void] = field(default_factory=_no_nodes)
    spans: npt.NDArray[np.void] = field(default_factory=_no_spans)

    def __post_init__(self) -> None:
        order = np.lexsort((self.chunks["started_ns"], self.chunks["worker"]))
        object.__setattr__(self, "chunks", self.chunks[order])
        if self.spans.size:
            order = np.lexsort((self.spans["arrived_ns"], self.spans["node"]))
            object.__setattr__(self, "spans", self.spans[order])

    @classmethod
    def unread(cls, called_ns: int, submitted_ns: int, completed_ns: int, tables: Callable[[], Any]) -> Timeline:
        """Return a timeline whose tables are made, by ``tables()``, when somebody first looks at one of them.

        After most of the steps of a solver nobody does.
        """
        timeline = object.__new__(cls)
        stamps = {"called_ns": called_ns, "submitted_ns": submitted_ns, "completed_ns": completed_ns}
        timeline.__dict__.update(stamps, _tables=tables)
        return timeline

    def __getattr__(self, name: str) -> Any:  # of what is not there, the tables of an unread one
        if name not in ("chunks", "workers", "deaths", "nodes", "spans"):
            raise AttributeError(name)
        chunks, workers, deaths = self.__dict__["_tables"]()
        Timeline.__init__(self, self.called_ns, self.submitted_ns, self.completed_ns, chunks, workers, deaths)
        return self.__dict__[name]

    def until(self, completed_ns: int) -> Timeline:
        """Return the same with another end."""
        later = object.__new__(Timeline)  # the rows are in order already
        later.__dict__.update(self.__dict__, completed_ns=completed_ns)
        return later

    @property
    def n_workers(self) -> int:
        """Number of workers, those that computed nothing included."""
        return len(self.workers)

    @property
    def makespan_ns(self) -> int:
        """From the call to the complete result."""
        return self.completed_ns - self.called_ns

    @property
    def cpu_ns(self) -> int:
        """CPU time inside the kernels, over all workers."""
        return int(self.chunks["cpu_ns"].sum())

    def without_work(self, node: int) -> npt.NDArray[np.int64]:
        """Return when a node had nothing in hand: spans, inputs or results were on their way.

        Returns
        -------
        ndarray of int64, shape (n_intervals, 2)
            Begin and end of each interval, in order and apart: from the call until its first span had arrived, between
            spans, and from its last result until the caller had stored it. None for a node that got no span.
        """
        spans = self.spans[self.spans["node"] == node]
        if not len(spans):
            return np.zeros((0, 2), np.int64)
        begin = np.append(self.called_ns, np.maximum.accumulate(spans["finished_ns"]))
        end = np.append(spans["arrived_ns"], spans["received_ns"].max())
        # What had arrived before the one before it was finished leaves no gap.
        between: npt.NDArray[np.int64] = np.stack([begin, end], axis=1)[begin < end]
        return between

    def of_worker(self, worker: int) -> npt.NDArray[np.void]:
        """Return the chunk rows of one worker in the order in which they ran."""
        first, last = np.searchsorted(self.chunks["worker"], [worker, worker + 1])
        rows: npt.NDArray[np.void] = self.chunks[first:last]
        return rows

    def _repr_html_(self) -> str:
        numbers = np.sort(self.workers["worker"])
        chunks = self.chunks[np.isin(self.chunks["worker"], numbers)]
        begin, end = (chunks[name] - self.called_ns for name in ("started_ns", "finished_ns"))
        place, died = np.searchsorted(numbers, chunks["worker"]), np.searchsorted(numbers, self.deaths["worker"])
        how = [f"ended by signal {-code}" if code < 0 else f"ended with {code}" for code in self.deaths["exitcode"]]
        deaths = zip(died.tolist(), (self.deaths["noticed_ns"] - self.called_ns).tolist(), how, strict=True)
        share = 100 * float((end - begin).sum()) / max(1, self.n_workers * self.makespan_ns)
        told = f"{self.n_workers} workers, {len(self.chunks)} chunks in {self.makespan_ns / 1e9:.6f} s"
        told += f", {share:.1f} % of the workers' time inside kernels"
        if len(self.deaths):
            told += f", {len(self.deaths)} worker processes ended (✕)"
        picture = gantt.svg(begin, end, place, self.n_workers, self.makespan_ns, deaths)
        return views.paragraph(told) + picture
