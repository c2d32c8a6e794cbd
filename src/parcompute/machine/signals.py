"""Ctrl-C: noted whenever it comes, heard where a verb waits (docs/decisions/0012-hearing-ctrl-c.md).

    SIGINT ──► noted ──► look, at each wait ──► the handler of before: KeyboardInterrupt
    others ──► defer ────┘                     (what announces the end of a batch job: see machine.batch.deadline)

Python would raise at any line of the main thread: between a lock's taking and the line that would let it go, or
within a finalizer, where it is printed and forgotten.
"""

from __future__ import annotations

import _signal  # type: ignore[import-not-found]  # without the enumerations of `signal`, a search of 15 µs a verb
import contextlib
import functools
import os
import signal
import threading
import time
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any, TypeVar

if TYPE_CHECKING:
    from concurrent.futures import Future

_T = TypeVar("_T")

# Nobody here waits for longer at a time, so that Ctrl-C is heard as soon. (A signal that comes in the moment before
# a wait begins ends no wait, be it of a lock or of a poll, whatever the handler does.)
LOOK_S = 0.25

# Of the main thread, as long as it is within `heard` or `held`.
_main = threading.main_thread().ident
_depth = 0  # how many of them
_n_holds = 0  # how many of those are `held`
_at_any_line = False
_noted: Callable[[], None] | None = None
_before: Any = None  # the handler that was there

# Whether handlers of other signals may call `defer`.
defers = False


class _Heard(contextlib.ContextDecorator):  # a class, since each job enters it three times: a fifth of the time
    def __enter__(self) -> None:
        if _can_note():
            _enter()

    def __exit__(self, *_: object) -> None:
        if _depth and threading.get_ident() == _main:
            _leave()


_heard = _Heard()


def heard() -> _Heard:
    """Note Ctrl-C in the body; raise what it raises where the body calls `look`, and at its end."""
    return _heard


@contextlib.contextmanager
def held() -> Iterator[None]:
    """Hold Ctrl-C back: until a new process is known here and ignores it itself, or until an end is complete.

    In the main thread by the handler, which a fork inherits. Its mask must stay open: otherwise another thread takes
    the signal, and the main thread is not woken by it.
    """
    global _n_holds
    if threading.get_ident() != _main:
        with masked():
            yield
        return
    if not _can_note():
        yield
        return
    _enter()
    _n_holds += 1
    try:
        yield
    finally:
        _n_holds -= 1
        _leave()


@contextlib.contextmanager
def at_any_line() -> Iterator[None]:
    """Let Ctrl-C come at any line of the body, as Python has it: what runs there is the user's, or another package."""
    global _at_any_line, _before, _depth
    if not _depth or _n_holds or threading.get_ident() != _main:
        yield
        return
    look()
    depth = _depth
    try:
        _depth, _at_any_line = 0, True
        if callable(_before):
            _signal.signal(signal.SIGINT, _before)
        yield
    finally:
        _depth, _at_any_line = depth, False  # first: the next line is one at which Ctrl-C may still be raised
        if callable(_before):
            _before = _signal.signal(signal.SIGINT, _note)


def look() -> None:
    """Raise what Ctrl-C raises, if it has come since the last look: nothing is half done here."""
    global _noted
    if _noted is not None and not _n_holds and threading.get_ident() == _main:
        noted, _noted = _noted, None
        noted()


def at_users_line() -> bool:
    """Tell whether the main thread is within `at_any_line`."""
    return _at_any_line


def defer(action: Callable[[], None]) -> None:
    """Do now what a handler of another signal has to do, or where the verb that runs looks next."""
    global _noted
    if not _depth:  # no verb of ours is in the middle of anything
        action()
    elif _noted is None:
        _noted = action


def wait(waited: Callable[[float], object], timeout: float | None = None) -> bool:
    """Wait in pieces: call ``waited(seconds)`` until it returns something true; False when the time is over."""
    deadline = None if timeout is None else time.monotonic() + timeout
    while True:
        look()
        left = LOOK_S if deadline is None else deadline - time.monotonic()
        if waited(max(0.0, min(left, LOOK_S))):
            return True
        if left <= 0:
            return False


class taken:  # noqa: N801 (a context manager, as all here)
    """Have these locks, and hear Ctrl-C while waiting for them."""

    def __init__(self, *locks: threading.Lock) -> None:
        self._locks, self._n_had = locks, 0

    def __enter__(self) -> None:
        _heard.__enter__()  # so that nothing is raised between two lines of this
        try:
            for lock in self._locks:
                lock.acquire(blocking=False) or wait(lambda seconds, lock=lock: lock.acquire(timeout=seconds))  # type: ignore[misc]
                self._n_had += 1
        except BaseException:
            self.__exit__()
            raise

    def __exit__(self, *_: object) -> None:
        try:
            for lock in self._locks[: self._n_had]:
                lock.release()
        finally:
            _heard.__exit__()


def join(thread: threading.Thread) -> None:
    """Wait for the end of a thread, unless this is it."""

    def ended(seconds: float) -> bool:
        thread.join(seconds)
        return not thread.is_alive()

    if thread is not threading.current_thread():
        with heard():
            wait(ended)


def result(future: Future[_T], timeout: float | None = None) -> _T:
    """Return a future's result, waiting in pieces.

    Raises
    ------
    TimeoutError
        If the time is over; and whatever the future holds.
    """
    from concurrent.futures import CancelledError  # with logging 7 ms, that workers need not pay

    def waited(seconds: float) -> bool:
        with contextlib.suppress(TimeoutError, CancelledError):
            future.exception(seconds)  # and does not raise it
        return future.done()

    if not wait(waited, timeout):
        raise TimeoutError
    return future.result()


class Condition(threading.Condition):
    """A condition that Ctrl-C cannot leave locked, also where the user's program waits for it.

    The standard one is entered by a function of Python's, at whose end KeyboardInterrupt may come: then the lock is
    taken, and nobody lets go of it. Here ``with`` gets the lock's own methods, each of which is one step.
    """

    __enter__ = property(lambda self: self._lock.__enter__)
    __exit__ = property(lambda self: self._lock.__exit__)

    def wait(self, timeout: float | None = None) -> bool:
        """Wait as `threading.Condition` does, and have the lock afterwards, whatever happens.

        Without a timeout it waits in pieces: Ctrl-C in the moment before a wait begins would otherwise never be heard.
        """
        try:
            return self._wait_in_pieces() if timeout is None else super().wait(timeout)
        except BaseException:
            if not self._is_owned():  # type: ignore[attr-defined]
                self._lock.acquire()  # type: ignore[attr-defined]
            raise

    def _wait_in_pieces(self) -> bool:
        waiter = threading.Lock()
        waiter.acquire()
        self._waiters.append(waiter)  # type: ignore[attr-defined]
        state = self._release_save()  # type: ignore[attr-defined]
        try:
            while not waiter.acquire(timeout=LOOK_S):
                pass
        finally:
            self._acquire_restore(state)  # type: ignore[attr-defined]
            with contextlib.suppress(ValueError):  # who notifies takes it out
                self._waiters.remove(waiter)  # type: ignore[attr-defined]
        return True


@contextlib.contextmanager
def masked() -> Iterator[None]:
    """Block Ctrl-C in this thread, and in the processes that it starts."""
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


# --- the handler -------------------------------------------------------------------------------------------


def _note(number: int, frame: Any) -> None:
    global _noted
    _noted = functools.partial(_before, number, frame)


def _can_note() -> bool:
    """Whether this is the main thread, and Ctrl-C is neither ignored nor left to the system, or others defer."""
    return threading.get_ident() == _main and (_depth > 0 or defers or callable(_signal.getsignal(signal.SIGINT)))


def _enter() -> None:
    global _before, _depth
    if not _depth:
        _before = _signal.getsignal(signal.SIGINT)
        if callable(_before):
            _signal.signal(signal.SIGINT, _note)
    _depth += 1


def _leave() -> None:
    global _depth
    _depth -= 1
    if not _depth:
        if _signal.getsignal(signal.SIGINT) is _note:
            _signal.signal(signal.SIGINT, _before)
        look()


def _after_fork_in_child() -> None:
    """Put the user's handler back in a process that the user has forked; one that is started here ignores Ctrl-C."""
    global _main, _depth, _n_holds, _noted
    own = _n_holds and threading.get_ident() == _main
    if _depth and not own and _signal.getsignal(signal.SIGINT) is _note:
        _signal.signal(signal.SIGINT, _before)
    _main, _depth, _n_holds, _noted = threading.get_ident(), 0, 0, None


os.register_at_fork(after_in_child=_after_fork_in_child)
