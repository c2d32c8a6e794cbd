"""joblib's own dispatch and memory mapping (loky), for comparison."""

from __future__ import annotations

import contextlib
import functools
import itertools
import os
import threading
import time
from concurrent.futures import BrokenExecutor
from contextvars import ContextVar
from dataclasses import replace
from typing import Any

import numpy as np
import numpy.typing as npt

from parcompute.backends import tasks
from parcompute.backends.base import (
    Call,
    KeepsPlan,
    Options,
    StoresHere,
    Trouble,
    WorkerLost,
    deliver,
    settle,
    timeline,
)
from parcompute.backends.broken import Broken
from parcompute.jobs import modules, pickling, variables, world
from parcompute.jobs.job import Failure, Job
from parcompute.jobs.setup import Packed
from parcompute.machine import blas, signals
from parcompute.machine.batch import deadline
from parcompute.memory import shared, sources
from parcompute.values.timeline import Timeline
from parcompute.workers import desk, surroundings


class Joblib(KeepsPlan, StoresHere):
    """``joblib.Parallel(backend="loky")``, its workers kept for many jobs."""

    def __init__(self, options: Options) -> None:
        import joblib
        from joblib.externals.loky.backend import reduction

        reduction.register(ContextVar, variables.reduce)
        self.n_workers, self.start_method = options.n_workers, ""
        self._joblib = joblib
        self._turn, self._ending = threading.Lock(), threading.Lock()
        self._end: threading.Thread | None = None  # which ends the workers
        self._ready_ns = 0
        self._options = options
        modules.notice()
        self._setup = options.setup.packed() if options.setup else None
        self._failure: Failure | None = None  # of an initializer

    def _parallel(self, **more: Any) -> Any:
        return self._joblib.Parallel(
            n_jobs=self.n_workers, backend="loky", inner_max_num_threads=self._options.blas_threads, **more
        )

    def wait_until_ready(self) -> int:
        """Return when every worker has run a task."""
        self._require_unbroken()
        if self._ready_ns:
            return self._ready_ns
        met: set[int] = set()
        who = self._joblib.delayed(_who)(surroundings.Place.here(), self._setup)
        try:
            with surroundings.starting({}):
                while len(met) < self.n_workers:
                    met.update(self._parallel()([who] * (4 * self.n_workers)))
        except Broken as error:
            self._failure = error.failure
            self._require_unbroken()
        self._pids = tuple(met)
        self._ready_ns = time.perf_counter_ns()
        return self._ready_ns

    def run(self, job: Job, called_ns: int) -> tuple[Timeline, tuple[Trouble, ...]]:
        """Compute every block once, or raise when a worker dies."""
        # One worker joblib does without: it computes in this thread.
        here = blas.limited(self._options.blas_threads if self.n_workers == 1 else None)
        with signals.taken(self._turn), signals.at_any_line(), here:
            self.wait_until_ready()
            stop = shared.share(np.zeros(1, np.uint8))
            caller = tasks.Caller(job, self.allocate, stop)
            # joblib maps arrays into files by itself; an open dataset it cannot send, nor many a kernel
            inputs = tuple(sources.portable(array) for array in job.inputs)
            pickled, keep_alive = pickling.dumps(replace(job, inputs=()), f"kernel {job.name}")
            compute, number = self._joblib.delayed(_chunk), next(_numbers)
            told = world.OnArrival(None if job.world is None else job.world.told(None))
            submitted_ns = time.perf_counter_ns()
            try:  # a worker may die while tasks are still handed out
                for chunks in caller.rounds(self.n_workers):
                    answers = self._parallel(return_as="generator_unordered")(
                        compute(self._setup, told, stop, number, pickled, inputs, *task) for task in chunks
                    )
                    for answer in answers:
                        caller.store(answer)
                        if caller.failures and not job.keep_going:
                            caller.stop_all()  # joblib warns about answers that nobody takes
            except Broken as error:
                self._failure = error.failure
                self._require_unbroken()
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
        self._require_unbroken()
        if (travelling := call.pickled()) is None:
            return
        pickled, keep_alive = travelling
        if not call.future.set_running_or_notify_cancel():
            return
        if not self._ready_ns:  # else no waiting for a turn: this may be the thread that takes answers of a job
            with signals.taken(self._turn), signals.at_any_line():
                self.wait_until_ready()  # joblib cannot take over an executor that it has not started itself

        def failed(error: BaseException) -> None:
            lost = self._translated(error)
            lost.__cause__ = error if lost is not error else error.__cause__
            deliver(call.future, error=lost)

        def settled(done: Any) -> None:
            keep_alive.clear()
            error = done.exception()
            if isinstance(error, Broken):
                self._failure = error.failure
                deliver(call.future, error=Broken(error.failure))
            elif error is not None:
                failed(error)
            else:
                settle(call.future, *done.result()[:2])

        try:
            self._executor().submit(_call, self._setup, pickled).add_done_callback(settled)
        except BrokenExecutor as error:  # a worker has died since joblib has looked
            failed(error)

    def _require_unbroken(self) -> None:
        if self._failure is not None:
            raise Broken(self._failure)

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
        with signals.taken(self._ending):  # a thread that finishes a map, and the program that has come to its end
            if self._ready_ns:
                # Without waiting for them, joblib would leave semaphores behind at the end of the program.
                self._end = threading.Thread(target=self._executor().shutdown, args=(True,), daemon=True)
                self._end.start()
                self._ready_ns = 0
        if wait and self._end is not None:
            signals.join(self._end)

    def kill(self) -> None:
        """End joblib's workers now."""
        if self._ready_ns:
            self._executor().shutdown(wait=True, kill_workers=True)
        self._ready_ns = 0


def _who(place: surroundings.Place, setup: Packed | None) -> int:
    place.restore()
    deadline.settle()
    with _at(setup):
        return os.getpid()


@functools.cache  # once for all tasks of an executor that a worker process gets
def _taken(setup: Packed) -> tasks.Place:
    return tasks.taken(setup)


def _at(setup: Packed | None) -> contextlib.AbstractContextManager[None]:
    return contextlib.nullcontext() if setup is None else tasks.at(_taken(setup))


def _call(setup: Packed | None, pickled: bytes) -> tuple[bool, bytes, bool]:
    with _at(setup):
        return desk.run_call(pickled)


# Of the jobs of all executors: they share joblib's workers.
_numbers = itertools.count()


def _chunk(
    setup: Packed | None,
    told: world.OnArrival,
    stop: npt.NDArray[np.uint8],
    number: int,
    pickled: bytes,
    inputs: tuple[Any, ...],
    *task: Any,
) -> tasks.Answer:
    with _at(setup):  # before the kernel arrives, which finds then what the initializer has set
        return tasks.compute_as(told.told, stop, replace(_arrived(number, pickled), inputs=inputs), *task)


@functools.lru_cache(maxsize=1)
def _arrived(number: int, pickled: bytes) -> Job:
    """Return a job, unpickled once for all its chunks."""
    job: Job = pickling.loads(pickled)
    return job
