"""The reference: every block in the calling thread, in order."""

from __future__ import annotations

import os
import time
import weakref
from typing import Any

from parcompute.backends.base import Call, CountsDone, Options, StoresHere, Trouble, conclude, timeline
from parcompute.jobs import world
from parcompute.jobs.job import Failure, Job
from parcompute.jobs.schedule import Board, Pass, ThreadClaims
from parcompute.machine import blas, signals
from parcompute.values.timeline import Timeline
from parcompute.workers.worker import walk


class Serial(CountsDone, StoresHere):
    """Compute in the calling thread."""

    def __init__(self, options: Options) -> None:
        if options.n_workers != 1:
            raise ValueError(f"workers={options.n_workers} is out of range for backend 'serial'; pass 1 or None")
        self.n_workers, self.start_method = 1, ""
        self._ready_ns = time.perf_counter_ns()
        self._blas_threads = options.blas_threads

    def wait_until_ready(self) -> int:
        """Return at once."""
        return self._ready_ns

    def run(self, job: Job, called_ns: int) -> tuple[Timeline, tuple[Trouble, ...]]:
        """Compute every block once."""
        board = Board(1, job.plan.n_blocks, job.plan.n_chunks)
        job.follow(board.done)
        self._running = weakref.ref(board)

        def shaped(index: int, shape: Any) -> None:
            job.outputs.allocate(shape, self.allocate)

        submitted_ns = time.perf_counter_ns()
        failures: list[Failure] = []
        with blas.limited(self._blas_threads), signals.at_any_line():
            first, keep, failed = Pass.first(job.plan), job.outputs.keep, failures.append
            world.run(job.world, walk, job, first, board, ThreadClaims(), 0, shaped, keep, failed)
        troubles = conclude(job, failures)
        workers = [(os.getpid(), self._ready_ns)]
        return timeline(called_ns, submitted_ns, time.perf_counter_ns(), board.take_rows(), workers), troubles

    def submit(self, call: Call) -> None:
        """Call at once."""
        with blas.limited(self._blas_threads), signals.at_any_line():
            call.run_here()

    def pids(self) -> tuple[int, ...]:
        """Return this process."""
        return (os.getpid(),)

    def close(self, *, wait: bool) -> None:
        """Nothing to end."""

    def kill(self) -> None:
        """Nothing to end."""
