"""Tell how far jobs are while they run: a function of the user's, or all who look at one place.

job ── row ──┐
job ── row ──┼──▶ `bars`: the place that standard error is when the first of them begins
job ── row ──┘
"""

from __future__ import annotations

import contextlib
import contextvars
import functools
import os
import sys
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import TYPE_CHECKING, Literal

import numpy as np
import numpy.typing as npt

from parcompute.jobs.job import Job
from parcompute.machine import signals
from parcompute.workers import start

if TYPE_CHECKING:
    from parcompute.executor.bars import Place, Row

Report = Callable[[int, int], None]
Progress = Report | Literal[True] | None

# Often enough to look alive, seldom enough to cost nothing.
_EVERY_S = 0.1

# A job is shown once it has taken so long. What is over sooner leaves its last line if the one before is as long ago:
# a solver may have thousands of steps.
BRIEF_S = 0.5


def reporting(
    progress: Progress, job: Job, outcome: Callable[[], tuple[int, int]]
) -> contextlib.AbstractContextManager[Job]:
    """Call ``progress(n_done, n_blocks)`` ten times a second from a thread, and once more at the end.

    Parameters
    ----------
    progress : callable, True or None
        True shows the job among those of this process, and None nothing.
    job : Job
        The body gets it as it is to be run.
    outcome : callable
        Of how many blocks the result is, and how many of them have failed.
    """
    if progress is None:
        return contextlib.nullcontext(job)
    tally = _Tally()
    job = replace(job, watch=tally.watch)
    return _shown(job, tally, outcome) if progress is True else _reporting(progress, job, tally)


class _Tally:
    """Counts the blocks that are done: who computes a job may change, and mark anew, but nothing is taken back."""

    def __init__(self) -> None:
        self._marks, self._n_done = np.zeros(0, np.uint8), 0

    def watch(self, marks: npt.NDArray[np.uint8]) -> None:
        """Look at these marks from now on."""
        self._marks = marks

    def n_done(self) -> int:
        """Return how many blocks are done, or have failed."""
        self._n_done = max(self._n_done, int(np.count_nonzero(self._marks)))
        return self._n_done


@contextlib.contextmanager
def _reporting(report: Report, job: Job, tally: _Tally) -> Iterator[Job]:
    n_blocks = job.plan.n_blocks
    with _repeated(lambda: report(tally.n_done(), n_blocks)):
        yield job
    with signals.at_any_line():
        report(n_blocks, n_blocks)


@contextlib.contextmanager
def _shown(job: Job, tally: _Tally, outcome: Callable[[], tuple[int, int]]) -> Iterator[Job]:
    from parcompute.executor.bars import Row  # 1 ms, that programs without a bar need not pay

    row = Row(job.name.rpartition("<locals>.")[2], job.plan.n_blocks)
    try:
        with signals.heard():
            _begin(row)
        with _repeated(lambda: _update(row, tally.n_done())):
            yield job
        row.n_done, row.n_failed = outcome()
        row.end = "done" if row.n_done == row.n_blocks else "enough"
    finally:
        with signals.heard():
            if not row.end:
                row.end = "stopped"
                row.look(tally.n_done())
            _end(row)


@contextlib.contextmanager
def _repeated(look: Callable[[], None]) -> Iterator[None]:
    over = threading.Event()

    def repeat() -> None:
        while not over.wait(_EVERY_S):
            look()

    # In the caller's context, by which a notebook finds the cell.
    run = functools.partial(contextvars.copy_context().run, repeat)
    thread = threading.Thread(target=run, name="parcompute-progress", daemon=True)
    thread.start()
    try:
        yield
    finally:
        over.set()
        signals.join(thread)


# --- the jobs of this process ------------------------------------------------------------------------------

_lock = threading.RLock()  # taken again where an iterator is dropped while a row is shown
_rows: list[Row] = []
_place: Place | None = None
_last_end_s = float("-inf")
_forked = False  # while a job of its parent ran


def _begin(row: Row) -> None:
    from parcompute.executor.bars import place_of

    global _place
    with _lock:
        if not _rows:
            _place = None if _is_worker() else place_of(sys.stderr)
        row.inner = bool(_rows)
        _rows.append(row)


def _is_worker() -> bool:
    """Whether this is a worker of any kind: its parent may show something on the same terminal."""
    from multiprocessing import parent_process

    return _forked or start.in_worker() or parent_process() is not None


def _update(row: Row, n_done: int) -> None:
    with _lock:
        row.look(n_done)
        row.shown = row.shown or row.took_s >= BRIEF_S
        if _place is not None and row.shown and row in _rows:
            with _given_up():
                _place.show(_shown_rows())


def _end(row: Row) -> None:
    global _last_end_s
    with _lock:
        if row not in _rows:  # in a fork
            return
        _rows.remove(row)
        row.look(row.n_done)
        if _place is None:
            return
        with _given_up():
            if row.shown:
                _place.show(_shown_rows())
            now_s = time.monotonic()
            if (row.lasting or not _rows) and (row.shown or now_s - _last_end_s >= BRIEF_S):
                _last_end_s = now_s
                _place.end(row, _shown_rows())


def _shown_rows() -> list[Row]:
    return [row for row in _rows if row.shown]


@contextlib.contextmanager
def _given_up() -> Iterator[None]:
    """Show nothing more where nobody can see it: the terminal has gone, or a pipe's reader, or the file is closed."""
    global _place
    try:
        yield
    except (OSError, ValueError):
        _place = None


def _after_fork_in_child() -> None:
    global _lock, _place, _forked
    _forked = _forked or bool(_rows)
    _lock, _place = threading.RLock(), None
    _rows.clear()


os.register_at_fork(after_in_child=_after_fork_in_child)
