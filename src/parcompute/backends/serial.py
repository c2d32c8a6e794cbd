"""The reference: every block in the calling thread, in order."""

from __future__ import annotations

import contextlib
import os
import threading
import time
from collections.abc import Iterator
from typing import Any

from parcompute.backends.base import Call, KeepsPlan, Options, StoresHere, Trouble, conclude, timeline
from parcompute.jobs import variables, world
from parcompute.jobs.job import Failure, Job, is_ctrl_c
from parcompute.jobs.schedule import Board, Pass, ThreadClaims
from parcompute.jobs.setup import State
from parcompute.machine import blas, signals
from parcompute.values.timeline import Timeline
from parcompute.workers.walk import walk


class Serial(KeepsPlan, StoresHere):
    """Compute in the calling thread."""

    def __init__(self, options: Options) -> None:
        if options.n_workers != 1:
            raise ValueError(f"workers={options.n_workers} is out of range for backend 'serial'; pass 1 or None")
        self.n_workers, self.start_method = 1, ""
        self._ready_ns = time.perf_counter_ns()
        self._blas_threads = options.blas_threads
        self._setup, self._state = options.setup, State(options.setup.state)
        self._lock = threading.Lock()
        self._failure: Failure | None = None  # of the initializer
        self._own: dict[Any, Any] = {}  # context variables that it has set
        self._initialized = options.setup.initializer is None

    def wait_until_ready(self) -> int:
        """Return when the initializer has run, in the thread that asks first."""
        if not self._initialized:
            with signals.taken(self._lock), signals.at_any_line():
                self._initialize()
        if self._failure is not None:
            from parcompute.backends.broken import Broken

            raise Broken(self._failure)
        return self._ready_ns

    def _initialize(self) -> None:
        if self._initialized:  # by another thread meanwhile
            return
        try:
            with variables.noted(self._own):
                self._setup.initialize()
        except BaseException as error:
            if is_ctrl_c(error):
                raise
            self._failure = Failure.before_blocks(error)
        self._ready_ns = time.perf_counter_ns()
        self._initialized = True

    def run(self, job: Job, called_ns: int) -> tuple[Timeline, tuple[Trouble, ...]]:
        """Compute every block once."""
        self.wait_until_ready()
        board = Board(1, job.plan.n_blocks, job.plan.n_chunks)
        job.follow(board.done, stop=board.stop, current=board.current)

        def shaped(index: int, shape: Any) -> None:
            job.outputs.allocate(shape, self.allocate)

        submitted_ns = time.perf_counter_ns()
        failures: list[Failure] = []
        with self._settled():
            first, keep, failed = Pass.first(job.plan), job.outputs.keep, failures.append
            world.run(job.world, walk, job, first, board, ThreadClaims(), 0, shaped, keep, failed)
        troubles = conclude(job, failures)
        workers = [(os.getpid(), self._ready_ns)]
        return timeline(called_ns, submitted_ns, time.perf_counter_ns(), board.take_rows(), workers), troubles

    def submit(self, call: Call) -> None:
        """Call at once."""
        self.wait_until_ready()
        with self._settled():
            call.run_here()

    @contextlib.contextmanager
    def _settled(self) -> Iterator[None]:
        with blas.limited(self._blas_threads), signals.at_any_line(), self._state.here(), variables.holding(self._own):
            yield

    def pids(self) -> tuple[int, ...]:
        """Return this process."""
        return (os.getpid(),)

    def close(self, *, wait: bool) -> None:
        """Close what is kept; there is nothing to end."""
        with signals.at_any_line():
            self._state.close()

    def kill(self) -> None:
        """Nothing to end."""
