"""Run joblib's and scikit-learn's tasks on an executor.

    joblib.Parallel ── batch of tasks ──► waits here ── one per worker, pickled ──► Executor.submit
          ▲                                   ▲                                          │
          └────────── all its results ────────┴──── what a worker has not come to ───────┘

joblib knows it as ``"parcompute"``. The executor lives as long as the
``with joblib.parallel_config(backend="parcompute")`` around it, or is one that the caller passes.
Arrays above 1 MiB travel as references, each shared once per call. See docs/howto/joblib.md for what differs from loky.
"""

from __future__ import annotations

import collections
import copy
import functools
import multiprocessing
import operator
import os
import pickle
import queue
import sys
import threading
import time
import warnings
import weakref
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
from joblib.parallel import AutoBatchingMixin, FallbackToBackend, ParallelBackendBase, SequentialBackend

from parcompute.executor.executor import Executor
from parcompute.jobs import pickling, world
from parcompute.jobs.world import World
from parcompute.machine import limits
from parcompute.memory import sources
from parcompute.workers import start

# A worker that has computed a batch for so long begins no other task of it, but gives the rest back: joblib cuts
# batches by what the tasks before them took, and those of this one may be longer.
_LONG_S = 0.02


@dataclass(eq=False)
class _Batch:
    """Tasks that joblib has handed in together, and will hear of together."""

    tasks: Any  # joblib's, a list of them in .items
    callback: Any  # joblib's
    results: list[Any]
    n_left: int
    future: Future[Any] = field(default_factory=Future)  # for joblib


@dataclass(eq=False)
class _Part:
    """Tasks `first` to `stop` of a batch, as they travel together."""

    batch: _Batch
    first: int
    stop: int
    pickled: bytes
    keep_alive: list[Any]


class ParcomputeBackend(AutoBatchingMixin, ParallelBackendBase):  # type: ignore[misc]  # joblib has no types
    """What joblib calls a backend.

    Parameters
    ----------
    executor : Executor, optional
        Whose workers to use, and to leave running. None starts worker processes with the first tasks; they end
        with this backend.
    initializer : callable, optional
        Called once in each worker before its first task, with `initargs`; not together with `executor`.
    initargs : sequence
        Its arguments.
    nesting_level, inner_max_num_threads
        Of joblib.
    """

    supports_retrieve_callback = supports_inner_max_num_threads = True

    # A batch costs some 0.1 ms here, and not the milliseconds for which joblib's numbers are made.
    MIN_IDEAL_BATCH_DURATION = 0.02
    MAX_IDEAL_BATCH_DURATION = 0.2

    def __init__(
        self,
        executor: Executor | None = None,
        *,
        initializer: Callable[..., Any] | None = None,
        initargs: Sequence[Any] = (),
        nesting_level: int | None = None,
        inner_max_num_threads: int | None = None,
    ) -> None:
        super().__init__(nesting_level=nesting_level, inner_max_num_threads=inner_max_num_threads)
        self._given, self._initializer, self._initargs = executor, initializer, initargs
        self._executor: Executor | None = None
        self._n_jobs = 0
        self._setup: tuple[Any, ...] = ()  # of its workers: initializer and arguments
        self._places = 0  # how many parts can run at a time
        # A generator that the garbage collector closes gives up its call, at any line of this thread.
        self._lock = threading.RLock()
        self._batches: set[_Batch] = set()
        self._waiting: collections.deque[_Part] = collections.deque()
        self._running: dict[_Part, Future[Any] | None] = {}
        # They refer to this backend: a circle, in which the workers would live on until Python looks for circles.
        self._parallels: tuple[weakref.ref[Any], ...] = ()
        self._share_above, self._writeable = pickling.SHARE_ABOVE, False
        self._world: World | None = None
        self._lent: dict[int, tuple[weakref.ref[Any], Any]] = {}

    @property
    def parallel(self) -> Any:
        """The `joblib.Parallel` that was configured last, of those that live."""
        return next(reversed(self._living()), None)

    def _living(self) -> list[Any]:
        return [parallel for known in self._parallels if (parallel := known()) is not None]

    @property
    def default_n_jobs(self) -> int:
        """As with dask and ray, whoever names this backend wants all CPUs; within a task they are busy."""
        return 1 if start.in_worker() or self.nesting_level else -1

    def effective_n_jobs(self, n_jobs: int | None) -> int:
        """Return how many tasks can run at a time; one, with a warning, where joblib starts no processes either."""
        if n_jobs == 0:
            raise ValueError("n_jobs == 0 in Parallel has no meaning")
        n_jobs = self.default_n_jobs if n_jobs is None else n_jobs
        if n_jobs != 1 and (place := self._place_for_one()):
            warnings.warn(f"parcompute-backed parallel loops cannot be nested {place}, setting n_jobs=1", stacklevel=3)
            return 1
        n_workers = limits.usable_cpus() if self._given is None else self._given.n_workers
        if n_jobs < 0:
            return max(n_workers + 1 + n_jobs, 1)
        return n_jobs if self._given is None else min(n_jobs, n_workers)

    def _place_for_one(self) -> str:
        if multiprocessing.current_process().daemon:
            return "in a daemonic process of multiprocessing"
        return "below threads" if self.nesting_level and not self.in_main_thread() else ""

    def configure(
        self,
        n_jobs: int = 1,
        parallel: Any = None,
        max_nbytes: Any = pickling.SHARE_ABOVE,
        mmap_mode: Any = "r",
        initializer: Callable[..., Any] | None = None,
        initargs: Sequence[Any] = (),
        **_: Any,
    ) -> int:
        """Start as many workers, unless they run already; see joblib for `max_nbytes` and `mmap_mode`."""
        n_jobs = self.effective_n_jobs(n_jobs)
        if n_jobs == 1:
            raise FallbackToBackend(SequentialBackend(nesting_level=self.nesting_level))
        if initializer is None:
            initializer, initargs = self._initializer, self._initargs
        if self._given is not None:
            threads = self.inner_max_num_threads
            _require_unset("inner_max_num_threads", threads, f"blas_threads={threads}")
            _require_unset("initializer", initializer, "initializer=..., initargs=...")
        self._parallels = (
            *(weakref.ref(other) for other in self._living() if other is not parallel),
            weakref.ref(parallel),
        )
        # "c" is a copy that the task may write to: that is what it gets by pickle.
        self._share_above = sys.maxsize if max_nbytes is None or mmap_mode in (None, "c") else max_nbytes
        self._writeable = mmap_mode in ("r+", "w+")
        setup = initializer, *initargs
        same = len(setup) == len(self._setup) and all(map(operator.is_, setup, self._setup))
        if n_jobs != self._n_jobs or not same:
            with self._lock:
                former, self._executor, self._n_jobs, self._setup = self._executor, None, n_jobs, setup
            if former is not None:
                former.shutdown(wait=False)
        executor = self._workers()
        # A process runs one call at a time, whatever its threads.
        self._places = n_jobs if self._given is None else len(executor.worker_pids)
        return n_jobs

    def start_call(self) -> None:
        """Forget what was shared, and take the caller's settings: it may have changed both since."""
        self._lent.clear()
        self._world = World()  # most tasks are handed in by threads that have none of them

    # Also between the calls of a ``with Parallel(...)``, which calls `terminate` at its end only.
    stop_call = start_call

    def submit(self, func: Any, callback: Any) -> Future[Any]:
        """Hand in a batch of tasks; what goes wrong arrives through the future, as joblib expects it."""
        n_tasks = len(func.items)
        batch = _Batch(func, callback, [None] * n_tasks, n_tasks)
        with self._lock:
            self._batches.add(batch)
        self._line_up(batch, 0, n_tasks, size=n_tasks)
        return batch.future

    # Its name until joblib 1.5.
    apply_async = submit

    def retrieve_result_callback(self, out: Future[Any]) -> Any:
        """Return the results of a batch, or raise what a task has raised."""
        return out.result()

    def abort_everything(self, ensure_ready: bool = True) -> None:
        """End the tasks that run, with their workers, unless these are the caller's; forget the others.

        Other calls that have this backend go on, on new workers, which start when they are needed: for
        `ensure_ready` there is nothing to do.
        """
        given_up = [parallel for parallel in self._living() if parallel._aborting and not parallel._aborted]
        for parallel in given_up:
            with parallel._lock:
                with self._lock:
                    self._batches = {batch for batch in self._batches if batch.callback.parallel is not parallel}
                    self._waiting = collections.deque(part for part in self._waiting if part.batch in self._batches)
                # joblib (1.6) would run the tasks that it has not handed in yet in its next call, before that one's.
                parallel._ready_batches = queue.Queue()
        with self._lock:
            # They count until they end: what was sent to their workers now would wait for them.
            futures = [future for part, future in self._running.items() if part.batch not in self._batches and future]
            executor, self._executor = self._executor, None
            if executor is not None:
                again = [replace(part) for part in self._running if part.batch in self._batches]
                self._waiting.extendleft(reversed(again))
                self._running.clear()
        for future in futures:
            future.cancel()
        if executor is not None:
            executor.kill_workers()
        self._feed()

    def terminate(self) -> None:
        """Let go of what was shared; the workers stay for the next call."""
        self._lent.clear()
        self.reset_batch_stats()

    def _workers(self) -> Executor:
        """Return the executor, started if need be."""
        with self._lock:
            if self._given is not None:
                return self._given
            if self._executor is None:
                self._executor = self._started(self._n_jobs, *self._setup)
            return self._executor

    def _started(self, n_jobs: int, initializer: Callable[..., Any] | None, *initargs: Any) -> Executor:
        options: dict[str, Any] = {"blas_threads": self.inner_max_num_threads}
        # As joblib documents: else the user's variable, which the workers inherit, else an equal share.
        if self.inner_max_num_threads is None and "OMP_NUM_THREADS" not in os.environ:
            options["blas_threads"] = max(limits.usable_cpus() // n_jobs, 1)
        if initializer:
            options |= {"initializer": initializer, "initargs": initargs}
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", "workers=.* is more than")  # joblib's users may ask for more than CPUs
            return Executor(n_jobs, **options)

    def _line_up(self, batch: _Batch, first: int, stop: int, *, size: int) -> None:
        """Have tasks of a batch run, so many at a time; those that were handed out before come first."""
        try:
            parts = [self._part(batch, n, min(n + size, stop)) for n in range(first, stop, size)]
        except Exception as error:
            self._settle(batch, error)
            return
        with self._lock:
            self._waiting.extendleft(reversed(parts)) if first else self._waiting.extend(parts)
        self._feed()

    def _part(self, batch: _Batch, first: int, stop: int) -> _Part:
        tasks = copy.copy(batch.tasks)
        tasks.items = tasks.items[first:stop]
        try:
            pickled = pickling.dumps((tasks, (), {}), "the tasks", self._refer, share_above=sys.maxsize)
            return _Part(batch, first, stop, *pickled)
        except MemoryError:  # there is too little to share an array, which is no fault of the task
            raise
        except Exception as error:  # whatever a __reduce__ of the caller raises
            why = self._why_not(tasks.items) or error
            raise pickle.PicklingError(f"Could not pickle the task to send it to the workers: {why}") from error

    def _why_not(self, tasks: Iterable[Any]) -> str:
        for task in tasks:
            try:
                pickling.dumps(task, "it", self._refer, share_above=sys.maxsize)
            except Exception as error:
                return str(error) if isinstance(error, pickling.CannotTravel) else repr(error)
        return ""

    def _feed(self) -> None:
        """Hand parts to workers that are free: behind another one a part might wait while others have nothing to do."""
        while True:
            with self._lock:
                if not self._waiting or len(self._running) >= self._places:
                    return
                part = self._waiting.popleft()
                self._running[part] = None
            try:
                future = world.run(self._world, self._workers().submit, _run, part.pickled)
            except BaseException as error:
                with self._lock:
                    known = self._running.pop(part, self) is None
                if not isinstance(error, Exception):
                    raise
                if known:  # else its workers were killed meanwhile, and it waits again if anyone wants it
                    self._settle(part.batch, error)
                continue
            with self._lock:
                if part in self._running:
                    self._running[part] = future
            future.add_done_callback(functools.partial(self._ended, part))

    def _ended(self, part: _Part, future: Future[Any]) -> None:
        """Keep the results of a part, and have the rest of it run."""
        batch = part.batch
        with self._lock:
            if part not in self._running:
                return
            del self._running[part]
            part.keep_alive.clear()
            wanted = batch in self._batches
        self._feed()
        if not wanted:
            return
        try:
            results = future.result()
        except BaseException as error:
            self._settle(batch, error)
            return
        behind = part.first + len(results)
        with self._lock:
            batch.results[part.first : behind] = results
            batch.n_left -= len(results)
            complete = batch.n_left == 0
        if complete:
            self._settle(batch)
        elif behind < part.stop:
            self._line_up(batch, behind, part.stop, size=max((part.stop - behind) // self._places, 1))

    def _settle(self, batch: _Batch, error: BaseException | None = None) -> None:
        """Tell joblib how a batch has ended, unless its call was given up."""
        # joblib lets go of the lock half-way; a call given up then, and followed by another, would be counted in that.
        with batch.callback.parallel._lock:
            with self._lock:
                if batch not in self._batches:
                    return
                self._batches.remove(batch)
                if error is not None:
                    self._waiting = collections.deque(part for part in self._waiting if part.batch is not batch)
            if error is None:
                batch.future.set_result(batch.results)
            else:
                batch.future.set_exception(error)
            batch.callback(batch.future)

    def _refer(self, obj: Any) -> tuple[Any, Any] | None:
        """Say how an array travels; the same array in many tasks is shared once."""
        if not isinstance(obj, np.ndarray):
            return sources.refer(obj, share_above=pickling.SHARE_ABOVE)
        known = self._lent.get(id(obj))
        if known is not None and known[0]() is obj:
            return known[1]  # type: ignore[no-any-return]
        if (referred := sources.refer(obj, share_above=self._share_above)) is None:
            return None
        where, keep_alive = referred
        if isinstance(where, sources.FileReference):  # joblib's users write results into the file that they map
            where = where._replace(writeable=obj.flags.writeable)
        elif keep_alive is not obj and self._writeable:
            where = where._replace(writeable=True)
        # With the last task that has the array goes the copy, too.
        key, lent = id(obj), self._lent
        self._lent[key] = (weakref.ref(obj, lambda _: lent.pop(key, None)), (where, keep_alive))
        return where, keep_alive


def _require_unset(name: str, value: Any, way: str) -> None:
    if value is not None:
        raise ValueError(f"{name}={value} comes too late for the workers of an executor; make it with Executor({way})")


def _run(pickled: bytes) -> list[Any]:
    """Run a batch of tasks, or as many of its first tasks as are begun before it has taken long."""
    tasks, _, _ = pickling.loads(pickled)
    tasks.items = _begun_in_time(tasks.items)
    return tasks()  # type: ignore[no-any-return]


def _begun_in_time(tasks: Iterable[Any]) -> Iterator[Any]:
    deadline = time.perf_counter() + _LONG_S
    for n, task in enumerate(tasks):
        if n and time.perf_counter() > deadline:
            return
        yield task
