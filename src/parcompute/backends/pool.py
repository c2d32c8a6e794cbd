"""`multiprocessing.Pool` as its documentation shows: an initializer, unordered results, for comparison.

Inputs lie in shared memory; chunks and results travel through the pool's queues. A pool hangs when one of
its workers is killed, so the caller watches them, and raises.
"""

from __future__ import annotations

import contextlib
import multiprocessing
import multiprocessing.pool
import os
import pickle
import signal
import threading
import time
from concurrent.futures import Future
from functools import partial
from typing import Any

import numpy as np

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
from parcompute.backends.pool_processes import UNGUARDED, Unguarded, Workers, leave_if_unguarded, server_status
from parcompute.backends.processes.crew import ending
from parcompute.jobs import modules, pickling, world
from parcompute.jobs.job import Failure, Job
from parcompute.jobs.setup import Packed, Setup
from parcompute.machine import blas, signals
from parcompute.machine.batch import deadline
from parcompute.memory import shared
from parcompute.values.timeline import Timeline
from parcompute.workers import desk, surroundings

# How often the caller looks whether all workers live.
_LOOK_S = 0.2


class Pool(KeepsPlan, StoresHere):
    """A pool of the standard library, kept for many jobs.

    Its workers ignore Ctrl-C as soon as they run; while they still start, they answer it as any interpreter does.
    """

    def __init__(self, options: Options) -> None:
        leave_if_unguarded()
        self.n_workers, self.start_method = options.n_workers, options.start_method
        self._context = multiprocessing.get_context(options.start_method)
        self._blas_threads, self._setup, self._world = options.blas_threads, options.setup, world.process()
        self._failure: Failure | None = None  # of an initializer
        self._turn = threading.Lock()
        self._pool: Any = None
        self._n_jobs = 0
        self._calls: set[Future[Any]] = set()
        self._news = signals.Condition()
        self._closing = self._ended = False
        self._watcher: threading.Thread | None = None
        self._open()

    def _open(self) -> None:
        modules.notice()
        initializer = partial(_initialize, self._blas_threads, surroundings.Place.here(), self._setup, self._world)
        with surroundings.starting(blas.variables(self._blas_threads)):  # spawned workers read them when they load BLAS
            try:
                self._pool = Workers(self.n_workers, initializer, context=self._context)
            except (EOFError, OSError):  # from Python 3.12 on the forkserver runs the main module for all
                if self.start_method == "forkserver" and server_status() == UNGUARDED:
                    raise Unguarded from None
                raise
        self._processes = list(self._pool._pool)
        self._ready_ns = 0

    def wait_until_ready(self) -> int:
        """Return when every worker has run a task at the same time as all the others."""
        with signals.taken(self._turn):
            return self._all_ready()

    def _require_unbroken(self) -> None:
        if self._failure is not None:
            raise Broken(self._failure)

    def _all_ready(self) -> int:
        self._require_unbroken()
        if self._ended:
            raise Unguarded
        if codes := self._deaths():  # while nobody looked
            self._begin_anew(_lost(codes))
        if self._ready_ns:
            return self._ready_ns
        met: set[int] = set()
        while len(met) < self.n_workers:
            try:
                met.update(self._watched(self._pool.imap_unordered(_who, range(4 * self.n_workers))))
            except Broken as error:  # the tasks that are left say the same
                self._failure = error.failure
                self._require_unbroken()
            except BaseException as error:  # Ctrl-C too: tasks are left in the queues
                self._begin_anew(error)
                raise
        self._ready_ns = time.perf_counter_ns()
        return self._ready_ns

    def run(self, job: Job, called_ns: int) -> tuple[Timeline, tuple[Trouble, ...]]:
        """Compute every block once, or raise when a worker dies."""
        with signals.taken(self._turn):
            self._all_ready()
            pickled, keep_alive = pickling.dumps(job, f"kernel {job.name}")
            pickled = world.pack(job.world, self._world, pickled)
            segment = shared.share(np.frombuffer(b"\0" + pickled, np.uint8))
            self._n_jobs += 1
            caller = tasks.Caller(job, self.allocate, segment)
            submitted_ns = time.perf_counter_ns()
            compute = partial(_chunk, self._n_jobs, segment)
            try:
                for chunks in caller.rounds(self.n_workers):
                    for answer in self._watched(self._pool.imap_unordered(compute, chunks), job):
                        caller.store(pickle.loads(answer))
                        if caller.failures and not job.keep_going:
                            caller.stop_all()  # the chunks that are queued answer at once
            except BaseException as error:  # Ctrl-C too: chunks are left in the queues
                self._begin_anew(error)
                raise
            troubles = caller.troubles()
            del keep_alive
            workers = caller.workers(self.n_workers, self._ready_ns)
            return timeline(called_ns, submitted_ns, time.perf_counter_ns(), caller.rows(), workers), troubles

    def submit(self, call: Call) -> None:
        """Apply a call."""
        self._require_unbroken()
        future = call.future
        if (travelling := call.pickled(self._world)) is None:
            return
        pickled, keep_alive = travelling
        if not future.set_running_or_notify_cancel():
            return

        def settled(answer: tuple[bool, bytes, bool]) -> None:
            keep_alive.clear()
            if self._forget(future):
                settle(future, *answer[:2])

        def failed(error: BaseException) -> None:
            if isinstance(error, Broken):
                self._failure = error.failure
                error = Broken(error.failure)
            if self._forget(future):
                deliver(future, error=error)

        with self._news:
            self._calls.add(future)
            if self._watcher is None:
                self._watcher = threading.Thread(target=self._watch_calls, name="parcompute-watch", daemon=True)
                self._watcher.start()
            self._news.notify_all()
            pool = self._pool
        try:
            if pool is None:
                raise Unguarded
            pool.apply_async(_call, (pickled,), callback=settled, error_callback=failed)
        except Unguarded as error:
            failed(error)
        except ValueError as error:  # it has ended meanwhile
            if self._closing:  # else it has lost a worker, and `_begin_anew` gives up this call with the others
                failed(error)

    def _forget(self, future: Future[Any]) -> bool:
        """Take a call off the list of those that wait; False if it was given up."""
        with self._news:
            waited = future in self._calls
            self._calls.discard(future)
            self._news.notify_all()
        return waited

    def _watch_calls(self) -> None:
        """Give up the calls that a worker's death has lost, one of which would otherwise be waited for for ever."""
        while True:
            with self._news:
                self._news.wait_for(lambda: self._calls or self._closing)
                if not self._calls:
                    return
                self._news.wait(_LOOK_S)
            if self._deaths():
                with self._turn:
                    if codes := self._deaths():
                        self._begin_anew(_lost(codes))

    def _begin_anew(self, error: BaseException) -> None:
        """End the pool, and with it the submitted calls, and start another."""
        self._end()
        with self._news:  # whoever submits from now on finds the new one
            calls, self._calls = self._calls, set()
            if isinstance(error, Unguarded):  # nor would another one have workers
                self._let_go()
            else:
                self._open()
        for future in calls:
            deliver(future, error=error)

    def _deaths(self) -> tuple[int, ...]:
        return tuple(p.exitcode for p in self._processes if p.exitcode is not None)

    def pids(self) -> tuple[int, ...]:
        """Return the process ids of the workers."""
        return tuple(process.pid for process in self._processes)

    def close(self, *, wait: bool) -> None:
        """End the pool after what was submitted."""
        with self._news:
            self._closing = True
            self._news.notify_all()
        if wait and self._watcher is not None:
            signals.join(self._watcher)
        with signals.taken(self._turn):
            if self._ended:
                return
            if self._deaths() and self._pool._state != multiprocessing.pool.CLOSE:
                self._end_for_good()
                return
            self._pool.close()
            if wait and self._left():
                self._pool.join()
                self._let_go()
            elif wait:
                self._end_for_good()

    def _left(self) -> bool:
        """Wait until the workers of a closed pool have left; False if one was killed instead, maybe with a lock."""
        for process in list(self._pool._pool):
            while process.exitcode is None and not any(self._deaths()):
                signals.look()
                process.join(_LOOK_S)
        return not any(self._deaths())

    def kill(self) -> None:
        """End the pool now."""
        with self._news:
            self._closing = True
        with signals.taken(self._turn):
            if not self._ended:
                self._end_for_good()
        with self._news:
            calls, self._calls = self._calls, set()
            self._news.notify_all()
        for future in calls:
            deliver(future, error=WorkerLost("the pool was killed, by kill_workers or after Ctrl-C"))

    def _end_for_good(self) -> None:
        self._end()
        self._let_go()

    def _let_go(self) -> None:
        self._ended, self._pool, self._processes = True, None, []  # with their descriptors

    def _watched(self, answers: Any, job: Job | None = None) -> Any:
        """Yield the answers; raise WorkerLost instead of waiting for those of a dead worker."""
        while True:
            signals.look()
            try:
                yield answers.next(timeout=_LOOK_S)
            except StopIteration:
                return
            except multiprocessing.TimeoutError:
                if codes := self._deaths():
                    raise _lost(codes) from None
                if job is not None:
                    job.look()

    def _end(self) -> None:
        """End a pool whose workers may have died holding a lock, or in the middle of a message.

        `terminate` waits for such a lock, and for the rest of such a message, for ever.
        """
        pool = self._pool
        pool._terminate.cancel()
        pool._state = multiprocessing.pool.TERMINATE
        handlers = (pool._worker_handler, pool._task_handler, pool._result_handler)
        for handler in handlers:
            handler._state = multiprocessing.pool.TERMINATE
        pool._change_notifier.put(None)
        tasks, results = pool._inqueue, pool._outqueue
        os.set_blocking(tasks._reader.fileno(), False)
        nowhere = os.open(os.devnull, os.O_WRONLY)
        buried = False
        while alive := [handler for handler in handlers if handler.is_alive()]:
            with contextlib.suppress(BlockingIOError):  # the sender of tasks may wait for room
                while os.read(tasks._reader.fileno(), 2**16):
                    pass
            for process in list(pool._pool):
                process.kill()
            if not buried and all(process.exitcode is not None for process in list(pool._pool)):
                buried = True
                # The last writer has gone, so the reader of results sees the end of what was broken off.
                os.dup2(nowhere, results._writer.fileno(), inheritable=False)
                # Held for so long only by the dead: whoever lives here would write a few bytes to nowhere.
                results._wlock.acquire(timeout=0.1)
                results._wlock.release()
            alive[0].join(0.02)
        os.close(nowhere)
        for process in pool._pool:  # one may have been started meanwhile in the place of another
            process.kill()
            process.join()
        tasks.close()
        results.close()


def _lost(codes: tuple[int, ...]) -> RuntimeError:
    if UNGUARDED in codes:
        return Unguarded()
    return WorkerLost(
        f"a worker of the pool ended with {ending(codes[0])}; multiprocessing.Pool loses what it was computing, so all "
        "that it had is given up (backend='processes' goes on)",
        None,
        codes,
    )


_place: tasks.Place  # of this worker process


def _initialize(blas_threads: int | None, place: surroundings.Place, setup: Setup | Packed, known: bytes) -> None:
    global _place
    place.restore()
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    deadline.settle()
    world.begin(known)
    np.random.seed()
    blas.limit(blas_threads)
    _place = tasks.taken(setup)


# Of this worker process, unpickled once for all its chunks: number, what was told with it, and the job.
_job: tuple[int, bytes | None, Job] | None = None


def _chunk(number: int, pickled: shared.SharedArray, task: tuple[int, tuple[int, ...] | None]) -> bytes:
    global _job
    if _job is None or _job[0] != number:
        _job = (number, *world.unpack(pickled[1:].tobytes()))
    with tasks.at(_place):
        return pickling.dumps_back(tasks.compute_as(_job[1], pickled, _job[2], *task))


def _call(pickled: bytes) -> tuple[bool, bytes, bool]:
    with tasks.at(_place):
        return desk.run_call(pickled)


def _who(_: int) -> int:
    with tasks.at(_place):
        return os.getpid()
