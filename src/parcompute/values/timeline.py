"""One row per chunk and one per worker: who did what when, as integer nanoseconds.

The stamps are of `time.perf_counter_ns`, which on Linux is one clock for all processes of a host.

    parent   called ──── submitted ─────────────────────────────────────────── completed
    worker        ready ····· started ███ finished ─ stored ·· started ███ finished ─ stored
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt

CHUNK_DTYPE = np.dtype(
    [
        ("chunk", "<i8"),  # its number in the plan; a chunk that was computed again keeps its number
        ("worker", "<i4"),  # who computed it, from 0
        ("attempt", "<i4"),  # 0, and one more each time that blocks were handed out again: see docs/file-format.md
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


def _no_deaths() -> npt.NDArray[np.void]:
    return np.zeros(0, DEATH_DTYPE)


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
    """

    called_ns: int
    submitted_ns: int
    completed_ns: int
    chunks: npt.NDArray[np.void]
    workers: npt.NDArray[np.void]
    deaths: npt.NDArray[np.void] = field(default_factory=_no_deaths)

    def __post_init__(self) -> None:
        order = np.lexsort((self.chunks["started_ns"], self.chunks["worker"]))
        object.__setattr__(self, "chunks", self.chunks[order])

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
        if name not in ("chunks", "workers", "deaths"):
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

    def of_worker(self, worker: int) -> npt.NDArray[np.void]:
        """Return the chunk rows of one worker in the order in which they ran."""
        first, last = np.searchsorted(self.chunks["worker"], [worker, worker + 1])
        rows: npt.NDArray[np.void] = self.chunks[first:last]
        return rows
