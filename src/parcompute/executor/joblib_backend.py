"""Run joblib's and scikit-learn's tasks on an executor.

    joblib.Parallel ── batch of tasks ──► pickled here, arrays above 1 MiB as references, each shared once per call
          ▲                                   │
          └────────── callback ◄── future ◄── Executor.submit

joblib knows it as ``"parcompute"``. The executor lives as long as the
``with joblib.parallel_config(backend="parcompute")`` around it, or is one that the caller passes.
"""

from __future__ import annotations

import os
import queue
import sys
import weakref
from collections.abc import Callable
from concurrent.futures import Future
from typing import Any

import numpy as np
from joblib.parallel import AutoBatchingMixin, FallbackToBackend, ParallelBackendBase, SequentialBackend

from parcompute.executor.executor import Executor
from parcompute.jobs import pickling
from parcompute.machine import limits
from parcompute.memory import sources
from parcompute.workers import start


class Backend(AutoBatchingMixin, ParallelBackendBase):  # type: ignore[misc]  # joblib has no types
    """What joblib calls a backend.

    Parameters
    ----------
    executor : Executor, optional
        Whose workers to use, and to leave running. None starts worker processes with the first tasks; they end
        with this backend.
    nesting_level, inner_max_num_threads
        Of joblib.
    """

    supports_retrieve_callback = True
    supports_inner_max_num_threads = True

    # Whoever names this backend wants all CPUs, also in code that leaves n_jobs open, as with dask and ray.
    default_n_jobs = -1

    # A batch costs some 0.1 ms here, and not the milliseconds for which joblib's numbers are made.
    MIN_IDEAL_BATCH_DURATION = 0.02
    MAX_IDEAL_BATCH_DURATION = 0.2

    def __init__(
        self,
        executor: Executor | None = None,
        *,
        nesting_level: int | None = None,
        inner_max_num_threads: int | None = None,
    ) -> None:
        super().__init__(nesting_level=nesting_level, inner_max_num_threads=inner_max_num_threads)
        self._given = executor
        self._executor: Executor | None = None
        # What is under way, and how joblib is told of it.
        self._futures: dict[Future[Any], Any] = {}
        # They refer to this backend: a circle, in which the workers would live on until Python looks for circles.
        self._parallels: tuple[weakref.ref[Any], ...] = ()
        self._share_above = pickling.SHARE_ABOVE
        self._writeable = False
        self._lent: dict[int, tuple[weakref.ref[Any], Any]] = {}

    @property
    def parallel(self) -> Any:
        """The `joblib.Parallel` that was configured last, of those that live."""
        return next(reversed(self._living()), None)

    def _living(self) -> list[Any]:
        return [parallel for known in self._parallels if (parallel := known()) is not None]

    def effective_n_jobs(self, n_jobs: int | None) -> int:
        """Return how many tasks can run at a time; one inside of a task, since all CPUs are busy then."""
        if n_jobs == 0:
            raise ValueError("n_jobs == 0 in Parallel has no meaning")
        if start.in_worker() or (self.nesting_level or 0) > 0:
            return 1
        n_jobs = self.default_n_jobs if n_jobs is None else n_jobs
        n_workers = limits.usable_cpus() if self._given is None else self._given.n_workers
        if n_jobs < 0:
            return max(n_workers + 1 + n_jobs, 1)
        return n_jobs if self._given is None else min(n_jobs, n_workers)

    def configure(
        self,
        n_jobs: int = 1,
        parallel: Any = None,
        max_nbytes: Any = pickling.SHARE_ABOVE,
        mmap_mode: Any = "r",
        **_: Any,
    ) -> int:
        """Start as many workers, unless they run already; see joblib for `max_nbytes` and `mmap_mode`."""
        n_jobs = self.effective_n_jobs(n_jobs)
        if n_jobs == 1:
            raise FallbackToBackend(SequentialBackend(nesting_level=self.nesting_level))
        if self._given is not None and self.inner_max_num_threads is not None:
            raise ValueError(
                f"inner_max_num_threads={self.inner_max_num_threads} comes too late for the workers of an executor; "
                f"make it with Executor(blas_threads={self.inner_max_num_threads})"
            )
        self._parallels = (
            *(weakref.ref(other) for other in self._living() if other is not parallel),
            weakref.ref(parallel),
        )
        # "c" is a copy that the task may write to: that is what it gets by pickle.
        self._share_above = sys.maxsize if max_nbytes is None or mmap_mode in (None, "c") else max_nbytes
        self._writeable = mmap_mode in ("r+", "w+")
        if self._given is None and (self._executor is None or self._executor.n_workers != n_jobs):
            self._leave()
            self._executor = self._started(n_jobs)
        return n_jobs

    def _started(self, n_jobs: int) -> Executor:
        blas_threads = self.inner_max_num_threads
        # As joblib documents: else the user's variable, which the workers inherit, else an equal share.
        if blas_threads is None and "OMP_NUM_THREADS" not in os.environ:
            blas_threads = max(limits.usable_cpus() // n_jobs, 1)
        return Executor(n_jobs, blas_threads=blas_threads)

    def start_call(self) -> None:
        """Forget what was shared: the caller may have changed it since."""
        self._lent.clear()

    def submit(self, func: Callable[[], Any], callback: Any) -> Future[Any]:
        """Hand in a batch of tasks; what goes wrong arrives through the future, as joblib expects it."""
        future: Future[Any]
        try:
            executor = self._given or self._executor
            if executor is None:
                raise RuntimeError("this call of joblib.Parallel has ended")
            pickled, keep_alive = pickling.dumps((func, (), {}), "the tasks", self._refer)
            future = executor.submit(_run, pickled)
            future.add_done_callback(lambda _: keep_alive.clear())
        except Exception as error:
            future = Future()
            future.set_exception(error)
        self._futures[future] = callback
        future.add_done_callback(self._report)
        return future

    # Its name until joblib 1.5.
    apply_async = submit

    def retrieve_result_callback(self, out: Future[Any]) -> Any:
        """Return the results of a batch, or raise what a task has raised."""
        return out.result()

    def _report(self, future: Future[Any]) -> None:
        """Tell joblib how a batch has ended, unless its call was given up."""
        if (callback := self._futures.get(future)) is None:
            return
        # joblib lets go of the lock half-way; a call given up then, and followed by another, would be counted in that.
        with callback.parallel._lock:
            if self._futures.pop(future, None) is not None:
                callback(future)

    def abort_everything(self, ensure_ready: bool = True) -> None:
        """End the tasks that run, with their workers, unless these are the caller's; cancel the others."""
        given_up = [parallel for parallel in self._living() if parallel._aborting and not parallel._aborted]
        for parallel in given_up:
            with parallel._lock:
                futures = [future for future, told in list(self._futures.items()) if told.parallel is parallel]
                for future in futures:
                    del self._futures[future]
                # joblib (1.6) would run the tasks that it has not handed in yet in its next call, before that one's.
                parallel._ready_batches = queue.Queue()
            for future in futures:
                future.cancel()
        if self._executor is not None:
            n_jobs = self._executor.n_workers
            self._executor.kill_workers()
            self._executor = self._started(n_jobs) if ensure_ready else None

    def terminate(self) -> None:
        """Let go of what was shared; the workers stay for the next call."""
        self._lent.clear()
        self.reset_batch_stats()

    def _leave(self) -> None:
        if self._executor is not None:
            self._executor.shutdown(wait=False)
            self._executor = None

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


def _run(pickled: bytes) -> Any:
    """Run a batch of tasks."""
    batch, _, _ = pickling.loads(pickled)
    return batch()
