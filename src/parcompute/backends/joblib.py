"""joblib's own dispatch and memory mapping (loky), for comparison."""

from __future__ import annotations

import functools
import itertools
import os
import threading
import time
import weakref
from contextvars import ContextVar
from dataclasses import replace
from typing import Any

import numpy as np
import numpy.typing as npt

from parcompute.backends import tasks
from parcompute.backends.base import (
    Call,
    CountsDone,
    Options,
    StoresHere,
    Trouble,
    WorkerLost,
    deliver,
    settle,
    timeline,
)
from parcompute.jobs import contextvariables, modules, pickling, world
from parcompute.jobs.job import Job
from parcompute.machine import blas, signals
from parcompute.memory import shared, sources
from parcompute.values.timeline import Timeline
from parcompute.workers import surroundings, worker


class Joblib(CountsDone, StoresHere):
    """``joblib.Parallel(backend="loky")``, its workers kept for many jobs."""

    def __init__(self, options: Options) -> None:
        import joblib
        import joblib.externals.loky.process_executor  # which registers what ends it at exit: before our own, that is
        from joblib.externals.loky.backend import reduction

        reduction.register(ContextVar, contextvariables.reduce)
        self.n_workers, self.start_method = options.n_workers, ""
        self._joblib = joblib
        self._turn = threading.Lock()
        self._ready_ns = 0
        self._options = options
        modules.notice()

    def _parallel(self, **more: Any) -> Any:
        return self._joblib.Parallel(
            n_jobs=self.n_workers, backend="loky", inner_max_num_threads=self._options.blas_threads, **more
        )

    def wait_until_ready(self) -> int:
        """Return when every worker has run a task."""
        if self._ready_ns:
            return self._ready_ns
        met: set[int] = set()
        who = self._joblib.delayed(_who)(surroundings.Place.here())
        with surroundings.starting({}):
            while len(met) < self.n_workers:
                met.update(self._parallel()([who] * (4 * self.n_workers)))
        self._pids = tuple(met)
        self._ready_ns = time.perf_counter_ns()
        return self._ready_ns

    def run(self, job: Job, called_ns: int) -> tuple[Timeline, tuple[Trouble, ...]]:
        """Compute every block once, or raise when a worker dies."""
        with signals.taken(self._turn), signals.at_any_line():
            self.wait_until_ready()
            caller = tasks.Caller(job, self.allocate)
            self._running = weakref.ref(caller)
            # joblib maps arrays into files by itself; an open dataset it cannot send, nor many a kernel
            inputs = tuple(sources.portable(array) for array in job.inputs)
            pickled, keep_alive = pickling.dumps(replace(job, inputs=()), f"kernel {job.name}")
            compute, number = self._joblib.delayed(_chunk), next(_numbers)
            told = world.OnArrival(None if job.world is None else job.world.told(None))
            stop = shared.share(np.zeros(1, np.uint8))
            submitted_ns = time.perf_counter_ns()
            try:  # a worker may die while tasks are still handed out
                answers = self._parallel(return_as="generator_unordered")(
                    compute(told, stop, number, pickled, inputs, *task) for task in list(caller.chunks())
                )
                for answer in answers:
                    caller.store(answer)
                    if caller.failures and not job.keep_going:
                        stop[0] = 1  # joblib warns about answers that nobody takes
            except Exception as error:  # of joblib or of pickle: each is put into our words
                raise self._translated(error) from error
            del keep_alive
            troubles = caller.troubles()
            workers = caller.workers(self.n_workers, self._ready_ns)
            return timeline(called_ns, submitted_ns, time.perf_counter_ns(), caller.rows(), workers), troubles

    def _translated(self, error: BaseException) -> BaseException:
        from joblib.externals.loky.process_executor import BrokenProcessPool

        if isinstance(error, BrokenProcessPool):
            self._ready_ns = 0
            return WorkerLost(f"a worker of joblib ended: {error}")
        return error

    def submit(self, call: Call) -> None:
        """Run a call on joblib's executor."""
        if (travelling := call.pickled()) is None:
            return
        pickled, keep_alive = travelling
        if not call.future.set_running_or_notify_cancel():
            return
        if not self._ready_ns:  # else no waiting for a turn: this may be the thread that takes answers of a job
            with signals.taken(self._turn), signals.at_any_line():
                self.wait_until_ready()  # joblib cannot take over an executor that it has not started itself

        def settled(done: Any) -> None:
            keep_alive.clear()
            if (error := done.exception()) is not None:
                lost = self._translated(error)
                lost.__cause__ = error if lost is not error else error.__cause__
                deliver(call.future, error=lost)
            else:
                settle(call.future, *done.result()[:2])

        self._executor().submit(worker.run_call, pickled).add_done_callback(settled)

    def _executor(self) -> Any:
        from joblib.externals.loky import get_reusable_executor

        threads = blas.variables(self._options.blas_threads)  # for the case that joblib has started none
        return get_reusable_executor(self.n_workers, reuse=True, env=threads)

    def pids(self) -> tuple[int, ...]:
        """Return the process ids of the workers."""
        self.wait_until_ready()
        return self._pids

    def close(self, *, wait: bool) -> None:
        """End joblib's workers, which would otherwise stay for five idle minutes."""
        if self._ready_ns:
            self._executor().shutdown(wait=wait)
        self._ready_ns = 0

    def kill(self) -> None:
        """End joblib's workers now."""
        if self._ready_ns:
            self._executor().shutdown(wait=True, kill_workers=True)
        self._ready_ns = 0


def _who(place: surroundings.Place) -> int:
    place.restore()
    return os.getpid()


# Of the jobs of all executors: they share joblib's workers.
_numbers = itertools.count()


def _chunk(
    told: world.OnArrival,
    stop: npt.NDArray[np.uint8],
    number: int,
    pickled: bytes,
    inputs: tuple[Any, ...],
    chunk: int,
    blocks: tuple[int, ...] | None,
) -> tasks.Answer:
    return tasks.compute_as(told.told, stop, replace(_arrived(number, pickled), inputs=inputs), chunk, blocks)


@functools.lru_cache(maxsize=1)
def _arrived(number: int, pickled: bytes) -> Job:
    """Return a job, unpickled once for all its chunks."""
    job: Job = pickling.loads(pickled)
    return job
