"""What each worker of an executor does first, and the object that it makes once, keeps and closes at its end."""

from __future__ import annotations

import contextlib
import io
import os
import sys
import threading
from collections.abc import Callable, Generator, Iterator
from contextvars import Context, copy_context
from dataclasses import dataclass, field
from typing import Any

from parcompute.jobs import pickling

_here = threading.local()  # .state is the one of the worker whose block or call this thread runs


def worker_state() -> Any:
    """Return the object that this worker has made by ``Executor(state=...)``, for a call that runs in it.

    It is made with the first use. (A kernel need not call this: it asks for ``state`` by parameter name.)

    Raises
    ------
    RuntimeError
        Anywhere else than in a worker of an executor that has a ``state``.

    Examples
    --------
    >>> import parcompute as pc
    >>> def word(n):
    ...     return pc.worker_state()[n]
    >>> with pc.Executor(backend="serial", state=lambda: ["zero", "one", "two"]) as ex:
    ...     list(ex.map(word, [2, 0]))
    ['two', 'zero']
    """
    state = getattr(_here, "state", None)
    if state is None:
        raise RuntimeError("there is no worker_state() here; it is for calls that an Executor(state=...) runs")
    return state.get()


class State:
    """The object of one worker.

    Parameters
    ----------
    make : callable or None
        Makes it. What it returns is kept. A context manager is entered, and what that gives is kept; leaving it is
        what closes the object. A generator is a context manager, as for `contextlib.contextmanager`.
    """

    def __init__(self, make: Callable[[], Any] | None) -> None:
        self._make = make
        self._lock = threading.RLock()
        self._kept: list[Any] = []  # the object, once it is made
        self._closing, self._context = contextlib.ExitStack(), Context()

    def here(self) -> contextlib.AbstractContextManager[None]:
        """Have `worker_state` return this one's object in this thread."""
        return contextlib.nullcontext() if self._make is None else self._here()

    @contextlib.contextmanager
    def _here(self) -> Iterator[None]:
        before = getattr(_here, "state", None)
        self.stay()
        try:
            yield
        finally:
            _here.state = before

    def stay(self) -> None:
        """Have `worker_state` return this one's object in this thread from now on."""
        if self._make is not None:
            _here.state = self

    def get(self) -> Any:
        """Return the object; make it first, if that has not been done, or has failed."""
        with self._lock:
            if not self._kept:
                assert self._make is not None
                self._context = copy_context()  # what it sets there as it is made, it finds as it is closed
                self._kept.append(self._context.run(self._made, self._make))
            return self._kept[0]

    def _made(self, make: Callable[[], Any]) -> Any:
        made = make()
        if isinstance(made, Generator):
            made = contextlib.contextmanager(lambda: made)()
        if hasattr(type(made), "__enter__") and hasattr(type(made), "__exit__"):
            made = self._closing.enter_context(made)
        return made

    def close(self) -> None:
        """Close the object, if it was made; what that raises is logged, since nobody waits for it."""
        with self._lock:
            self._kept.clear()
            try:
                self._context.run(self._closing.close)
            except BaseException:
                _log("Exception while a worker closed its state:")


@dataclass(frozen=True, eq=False)
class Setup:
    """What the workers of an executor are set up with.

    Attributes
    ----------
    initializer, initargs : callable or None, tuple
        What each calls before anything else.
    state : callable or None
        Makes the object that each keeps; see `State`.
    """

    initializer: Callable[..., Any] | None = None
    initargs: tuple[Any, ...] = ()
    state: Callable[[], Any] | None = None
    _keep_alive: list[Any] = field(default_factory=list, repr=False)

    def __bool__(self) -> bool:
        return self.initializer is not None or self.state is not None

    def initialize(self) -> None:
        """Call the initializer; what it raises is logged, as by `concurrent.futures`, and raised."""
        if self.initializer is None:
            return
        try:
            self.initializer(*self.initargs)
        except BaseException:
            _log("Exception in initializer:")
            raise

    def opened(self) -> Setup:
        """Return itself; see `Packed.opened`."""
        return self

    def packed(self) -> Packed:
        """Pickle it for a worker process.

        While that is started (`multiprocessing.context.set_spawning_popen`) its locks, queues and values may travel.

        Raises
        ------
        CannotTravel
            Naming what cannot.
        """
        table = None
        # Nobody has asked for it where it is not loaded.
        if (context := sys.modules.get("multiprocessing.context")) and context.get_spawning_popen() is not None:
            from multiprocessing.reduction import ForkingPickler

            table = ForkingPickler(io.BytesIO()).dispatch_table
        pickled, keep_alive = pickling.dumps(
            (self.initializer, self.initargs, {"state": self.state}),
            "what the workers are set up with",
            table=table,
        )
        self._keep_alive.append(keep_alive)
        return Packed(pickled)

    def __reduce__(self) -> Any:
        return Packed, (self.packed().pickled,)


@dataclass(frozen=True)
class Packed:
    """A setup on its way: opened by the worker, which can say then what is wrong with it."""

    pickled: bytes
    key: bytes = field(default_factory=lambda: os.urandom(8))  # equal setups of two executors are two

    def opened(self) -> Setup:
        """Unpickle it."""
        initializer, initargs, kept = pickling.loads(self.pickled)
        return Setup(initializer, initargs, kept["state"])


def _log(what: str) -> None:
    import logging

    logging.getLogger("concurrent.futures").critical(what, exc_info=True)
