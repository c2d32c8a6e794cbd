"""The verbs of `concurrent.futures` over a backend: submit, map, shutdown.

Where parcompute differs from `concurrent.futures.ProcessPoolExecutor`, on purpose:

* a worker that dies costs the call that it ran, which is tried again, up to ``retries`` workers, and then raises
  `WorkerLost`; the executor and all other calls go on. There, all pending calls raise ``BrokenProcessPool``;
* an exception, an argument or a result that cannot be rebuilt costs its call only, and says why. There, it breaks
  the pool;
* ``map`` cuts its calls into batches by itself. A batch travels, and is tried again, as a whole;
* Ctrl-C reaches the caller only. It ends a ``with`` block at once, with the calls that run then.
"""

from __future__ import annotations

import _thread
import atexit
import functools
import os
import sys
import threading
import time
import weakref
from collections.abc import Callable, Iterable, Iterator
from concurrent import futures
from typing import Any, ParamSpec, TypeVar

from parcompute.backends import base
from parcompute.executor.batches import Batches
from parcompute.jobs.world import World
from parcompute.machine import signals
from parcompute.values.nodes import Node

_P = ParamSpec("_P")
_T = TypeVar("_T")

# At the end of the program, what was submitted is finished first, as concurrent.futures does it: whether its executor
# was shut down without waiting, was dropped, or is still there.
_open: weakref.WeakSet[CallExecutor] = weakref.WeakSet()
_closing: set[CallExecutor] = set()  # by a thread that waits for what their maps have not sent
_leaving: weakref.WeakSet[base.Backend] = weakref.WeakSet()  # their threads have them as long as there are calls


def _finish_all() -> None:
    wanted = not isinstance(getattr(sys, "last_value", None), KeyboardInterrupt)  # else the user does not want to wait
    for executor in [*_open, *_closing]:
        if wanted:
            executor.shutdown()
        else:
            executor.kill_workers()
    for backend in list(_leaving):
        if wanted:
            backend.close(wait=True)
        else:
            backend.kill()


# What concurrent.futures itself uses: it comes before `threading` waits for its threads, and `multiprocessing` ends its
# processes. The last that was registered comes first, and engines register what ends them with their first call.
_register = getattr(threading, "_register_atexit", atexit.register)
_registered: set[tuple[type, bool]] = set()  # after which backends were started, and were given a call


def _register_after(backend: base.Backend, called: bool) -> None:
    if (type(backend), called) not in _registered:
        _registered.add((type(backend), called))
        _register(_finish_all)


class CallExecutor(futures.Executor):
    """Submitted calls, as `concurrent.futures` knows them, on a backend."""

    _backend: base.Backend

    def __init__(self) -> None:
        self._pid = os.getpid()
        self._closed = True  # until the workers start
        self._lock = threading.RLock()
        self._pending: set[futures.Future[Any]] = set()
        self._maps: weakref.WeakSet[Batches] = weakref.WeakSet()

    def _begin(self, backend: base.Backend, most: int | None = None) -> None:
        """Take calls from now on; `most` of them at once may travel together."""
        self._backend, self._most, self._closed = backend, most, False
        # A map that goes on must not keep its executor alive, whose end is what has it finish.
        self._submit = functools.partial(_submit, backend, self._pending)
        _open.add(self)
        _register_after(backend, called=False)
        if (dropped := getattr(backend, "dropped", None)) is not None:  # threads have it, so that it would live on
            weakref.finalize(self, dropped).atexit = False

    @property
    def n_workers(self) -> int:
        """Number of workers: processes times threads."""
        return self._backend.n_workers

    @property
    def start_method(self) -> str:
        """How the worker processes start; empty for backends without that choice."""
        return self._backend.start_method

    @property
    def worker_pids(self) -> tuple[int, ...]:
        """Process ids of the workers, for profilers and debuggers."""
        return self._usable().pids()

    @property
    def nodes(self) -> tuple[Node, ...]:
        """The hosts on which ``"dask"`` and ``"mpi"`` compute; none for the others, which have this one."""
        found: tuple[Node, ...] = getattr(self._usable(), "nodes", ())
        return found

    def submit(self, fn: Callable[_P, _T], /, *args: _P.args, **kwargs: _P.kwargs) -> futures.Future[_T]:
        """Schedule ``fn(*args, **kwargs)``; return its future, as `concurrent.futures` documents.

        What goes wrong with the call arrives through the future, also that it cannot travel.

        Raises
        ------
        RuntimeError
            If the executor is closed.
        """
        self._usable()
        return self._submit(World(), 1, fn, *args, **kwargs)

    @signals.heard()
    def map(
        self,
        fn: Callable[..., _T],
        *iterables: Iterable[Any],
        timeout: float | None = None,
        chunksize: int | None = None,
        buffersize: int | None = None,
    ) -> Iterator[_T]:
        """Return an iterator over ``fn(*items)`` in order, as `concurrent.futures` documents.

        Parameters
        ----------
        fn : callable
            Of as many arguments as there are iterables.
        *iterables : iterable
            Read to the end of the shortest, at once unless there is a `buffersize`.
        timeout : float, optional
            Seconds from now after which waiting for a result raises TimeoutError.
        chunksize : int, optional
            Calls that travel together; None finds out: as many as take some milliseconds, and few
            towards the end.
        buffersize : int, optional
            So many results at most are computed or on their way before the first of them is taken; the iterables are
            read as results are taken. (In the standard library since Python 3.14.)

        Raises
        ------
        RuntimeError
            If the executor is closed.
        """
        self._usable()
        deadline = None if timeout is None else time.monotonic() + timeout
        submit = functools.partial(self._submit, World())  # other threads send the later ones
        batches = Batches(submit, fn, iterables, self._backend.n_workers, chunksize, buffersize, self._most)
        with self._lock:
            self._maps.add(batches)
            if self._closed:  # meanwhile
                batches.finish()
        return batches.results(deadline)

    def shutdown(self, wait: bool = True, *, cancel_futures: bool = False) -> None:
        """End the workers after what was submitted, or with `cancel_futures` after what runs now.

        Parameters
        ----------
        wait : bool
            Return when the workers have ended. Without, and at the end of the program, the calls are finished too.
        cancel_futures : bool
            Cancel the calls that have not begun.
        """
        self._close(cancel_futures)
        if self._pid != os.getpid():
            return
        wait = wait and not base.in_callback()  # which would wait for the thread that it runs in
        try:
            if wait or all(batches.done for batches in list(self._maps)):
                self._close_backend(wait)
            elif self not in _closing:
                _closing.add(self)
                _thread.start_new_thread(self._close_backend, (False,))
        except KeyboardInterrupt:
            self._backend.kill()
            raise

    def _close_backend(self, wait: bool) -> None:
        """End the workers once the maps have sent all their calls: a batch may be broken off, and sent again."""
        for batches in list(self._maps):
            batches.join()
        _leaving.add(self._backend)
        self._backend.close(wait=wait)
        _closing.discard(self)

    def kill_workers(self) -> None:
        """End the workers now; what they run raises `WorkerLost`, and what has not begun is cancelled.

        (`ProcessPoolExecutor` has this since Python 3.14.) A job that another thread has begun ends first. Threads
        cannot be killed: they end after what they run, and nobody waits for them.
        """
        self._close(cancel_futures=True)
        if self._pid == os.getpid():
            self._backend.kill()

    def terminate_workers(self) -> None:
        """Do the same as `kill_workers`: no worker is asked to leave first, as those of the standard library are."""
        self.kill_workers()

    def _close(self, cancel_futures: bool) -> None:
        """Take no more calls, and submit or cancel those that `map` has not submitted."""
        if self._pid != os.getpid():
            return
        with self._lock:
            first, self._closed = not self._closed, True
            maps = list(self._maps)
        _open.discard(self)
        if cancel_futures:
            for batches in maps:
                batches.stop(futures.CancelledError())
            for future in list(self._pending):
                future.cancel()
        elif first:
            for batches in maps:
                batches.finish()

    def __exit__(self, kind: Any, error: Any, traceback: Any) -> None:
        """Shut down; after Ctrl-C, without waiting for the calls."""
        if isinstance(error, KeyboardInterrupt):
            self.kill_workers()
        else:
            self.shutdown()

    def __del__(self) -> None:
        if not getattr(self, "_closed", True) and not sys.is_finalizing():
            # The garbage collector may call this at any line, also where this thread holds a lock that is needed here.
            _closing.add(self)
            try:
                _thread.start_new_thread(self._let_go, ())
            except RuntimeError:
                self._let_go()

    def _let_go(self) -> None:
        self._close(cancel_futures=False)
        self._close_backend(wait=False)

    def __reduce__(self) -> Any:
        raise TypeError(
            "an executor stays in its process, so a call cannot submit to the executor that runs it; "
            "return what is to be done next, and submit it here"
        )

    def _usable(self) -> base.Backend:
        if self._closed:
            raise RuntimeError("this executor is closed; make a new one")
        if self._pid != os.getpid():
            raise RuntimeError(f"this executor belongs to process {self._pid}, which was forked; make a new one here")
        return self._backend


def _submit(
    backend: base.Backend,
    pending: set[futures.Future[Any]],
    world: World,
    n_calls: int,
    fn: Callable[..., Any],
    /,
    *args: Any,
    **kwargs: Any,
) -> futures.Future[Any]:
    future: futures.Future[Any] = futures.Future()
    future._condition = signals.Condition()  # else Ctrl-C here could stop all calls
    pending.add(future)
    future.add_done_callback(pending.discard)
    try:
        with signals.heard():
            backend.submit(base.Call(future, fn, args, kwargs, n_calls, world))
        _register_after(backend, called=True)
    except BaseException:
        pending.discard(future)
        raise
    return future
