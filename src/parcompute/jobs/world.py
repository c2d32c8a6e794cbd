"""What of the caller's settings belongs to a job: whoever computes it does so under them.

    of a thread      np.errstate, print options, decimal context, context variables
                     ──► each thread gets a copy, each process is told of what has been set
    of a process     working folder, environment, sys.path, warnings' filters, limits of recursion and digits, locale
                     ──► threads have them anyway, a process is told if they are no longer as its workers know them

Nothing is told of what is as it is in any new process. docs/reference/settings.md has the whole table, and
what belongs to the start of a worker instead.
"""

from __future__ import annotations

import _locale
import contextlib
import functools
import operator
import os
import pickle
import sys
import time
import warnings
from collections.abc import Callable, Iterator
from contextvars import Context, ContextVar, copy_context
from typing import Any, NamedTuple, TypeVar

import numpy as np

from parcompute.jobs import pickling, variables
from parcompute.machine import blas

_T = TypeVar("_T")

# NumPy 1 keeps both in the process or the thread; 2 keeps errstate, and 2.1 the print options, in context variables.
_NUMPY = tuple(map(int, np.__version__.split(".")[:2]))
_DEFAULT_ERRORS = {"divide": "warn", "over": "warn", "under": "ignore", "invalid": "warn"}

# Variables whose values cannot be pickled, or must not be shared by threads: their owners have functions for that.
_ERRORS, _DECIMAL = "numpy.ufunc.extobj", "decimal_context"


class World:  # made for each call, so in few microseconds
    """The settings of the caller, taken when it asks for a job or a call.

    Attributes
    ----------
    process : bytes
        What `process` has returned.
    """

    __slots__ = ("_context", "_decimal", "_errors", "_told", "process")

    def __init__(self) -> None:
        self.process = process()
        self._context = copy_context()
        names = {variable.name for variable in self._context} if self._context else ()
        self._errors = _errors() if _ERRORS in names or _NUMPY < (2, 0) else None
        self._decimal = _decimal() if _DECIMAL in names else None
        self._told: bytes | None = None

    def run(self, function: Callable[..., _T], /, *args: Any, **kwargs: Any) -> _T:
        """Call a function in a thread of this process: what it sets itself ends with it."""
        return self._context.copy().run(self._isolated, function, args, kwargs)

    def _isolated(self, function: Callable[..., _T], args: tuple[Any, ...], kwargs: dict[str, Any]) -> _T:
        if own := getattr(variables.here, "own", None):
            _set({variable: value for variable, value in own.items() if not self._has(variable)})
        if self._decimal is not None:
            _set_decimal(self._decimal.copy())
        return _under_errors(self._errors, function, args, kwargs)

    def _has(self, variable: ContextVar[Any]) -> bool:
        special = {_ERRORS: self._errors, _DECIMAL: self._decimal}  # None is as in any new process
        return variable in self._context and special.get(variable.name, self) is not None

    def told(self, known: bytes | None) -> bytes | None:
        """Return what a worker process has to be told; None if that is nothing.

        Parameters
        ----------
        known : bytes or None
            What `process` had returned when the worker was started; None if the worker does not know.
        """
        changed = None if self.process == known else self.process
        if self._told is None and (self._context or self._errors or self._decimal):
            self._told = self._of_thread()
        return pickle.dumps((changed, self._told)) if changed or self._told else None

    def _of_thread(self) -> bytes:
        values = []
        for variable, value in self._context.items():
            if variable.name in (_ERRORS, _DECIMAL) or variables.home_of(variable) is None:
                continue
            with contextlib.suppress(Exception):  # whatever a __reduce__ of the user's raises: it stays here
                values.append(pickling.dumps_back((variable, value)))
        if not values and self._errors is None and self._decimal is None:
            return b""
        try:
            return pickling.dumps_back((self._errors, self._decimal, values))
        except Exception as error:
            raise pickling.CannotTravel(f"np.geterrcall() cannot travel to a worker: {error}") from error


def run(world: World | None, function: Callable[..., _T], /, *args: Any, **kwargs: Any) -> _T:
    """Call a function in this process, in a world if there is one."""
    return function(*args, **kwargs) if world is None else world.run(function, *args, **kwargs)


def pack(world: World | None, known: bytes | None, pickled: bytes) -> bytes:
    """Put a pickled job or call, and what its worker has to be told, into one, for `unpack`."""
    return pickle.dumps((None if world is None else world.told(known), pickled))


# --- the settings of a process -----------------------------------------------------------------------------


class _Process(NamedTuple):
    """What holds for all threads of a process."""

    folder: str
    recursion_limit: int
    max_str_digits: int
    locale: str
    print_options: bytes
    path: tuple[str, ...]
    filters: tuple[Any, ...]  # of warnings
    environ: tuple[tuple[bytes, bytes | None], ...]  # what has ever changed here; None is no longer set


def process() -> bytes:
    """Return the settings of this process, pickled: the same bytes as long as they are the same."""
    global _last
    few = _few()
    found, pickled = _last
    if found != (few, sys.path, warnings.filters, _environ()):
        path, filters, environ = [*sys.path], [*warnings.filters], {**_environ()}
        pickled = _pickled(_Process(*few, tuple(path), tuple(filters), _changes(environ)))
        _last = (few, path, filters, environ), pickled
    return pickled


def _few() -> tuple[str, int, int, str, bytes]:
    locale = _locale.setlocale(_locale.LC_ALL)
    return _folder(), sys.getrecursionlimit(), sys.get_int_max_str_digits(), locale, _print_options()


_last: tuple[Any, bytes] = ((), b"")


def _environ() -> dict[bytes, bytes]:
    """Return the environment as it is kept: `os.environ` would encode and decode each item, 20 µs in all."""
    return os.environ._data  # type: ignore[attr-defined, no-any-return]


_first_environ = {**_environ()}
_ever_changed: set[bytes] = set()
_NOT_TOLD = {os.fsencode(name) for name in blas.VARIABLES}  # an executor has an option for these


def _changes(now: dict[bytes, bytes]) -> tuple[tuple[bytes, bytes | None], ...]:
    names = now.keys() | _first_environ.keys()
    _ever_changed.update(name for name in names - _NOT_TOLD if now.get(name) != _first_environ.get(name))
    return tuple((name, now.get(name)) for name in sorted(_ever_changed))


def _folder() -> str:
    try:
        return os.getcwd()
    except OSError:  # it has been removed
        return ""


def _print_options() -> bytes:
    if _NUMPY >= (2, 1):
        return b""
    try:
        return pickling.dumps_back(np.get_printoptions())
    except Exception:  # a formatter that cannot travel
        return b""


@functools.lru_cache(maxsize=16)  # a program may go to and fro between a few
def _pickled(settings: _Process) -> bytes:
    filters = tuple(one for one in settings.filters if _can_travel(one))
    return pickling.dumps_back(tuple(settings._replace(filters=filters)))


def _can_travel(value: Any) -> bool:
    try:
        pickling.dumps_back(value)
    except Exception:
        return False
    return True


# --- in a worker process -----------------------------------------------------------------------------------

_known = b""  # what `process` had returned when this worker was started
_arrived: _Process | None = None  # where this process is now


def begin(known: bytes) -> None:
    """Take note, in a new worker, of the settings that hold whenever it is told of no others."""
    global _known, _arrived
    _known, _arrived = known, None
    _own.clear()
    variables.own.clear()
    _unpickled.cache_clear()


_own: dict[str, Any] = {}  # what the initializer of this worker has set of the fields of _Process


@contextlib.contextmanager
def beginning() -> Iterator[None]:
    """Keep what an initializer, which runs within, sets in this worker: it holds until the caller changes the same."""
    arrive(None)
    with under(None):
        before = _here()
        with variables.noted(variables.own):
            yield
        _own.update((name, value) for name, value in _here().items() if value != before[name])
    _unpickled.cache_clear()


def _here() -> dict[str, Any]:
    return dict(zip(_Process._fields, _few(), strict=False)) | {"filters": tuple(warnings.filters)}


def unpack(packed: bytes, loads: Callable[[bytes], Any] = pickling.loads) -> tuple[bytes | None, Any]:
    """Return what this worker was told, for `run_as`, and the job or call, whose modules are found as there."""
    told, pickled = pickle.loads(packed)
    arrive(told)
    return told, loads(pickled)


def arrive(told: bytes | None) -> None:
    """Be where the caller is: in its folder, with its environment and its modules. That remains.

    What was changed here, by a module at its import say, stays as long as it does not change there.
    """
    global _arrived
    settings = _settings(told)
    if settings is None:
        return
    if settings.folder and settings.folder != _folder():
        with contextlib.suppress(OSError):  # the folder may be gone by now
            os.chdir(settings.folder)
    if settings is _arrived:
        return
    before = () if _arrived is None else _arrived.path
    if settings.path != before:
        own = [entry for entry in sys.path if entry not in before and entry not in settings.path]
        sys.path[:] = [*settings.path, *own]
    if _arrived is None or settings.environ != _arrived.environ:
        for name, value in set(settings.environ).difference(() if _arrived is None else _arrived.environ):
            if value is None:
                os.environ.pop(os.fsdecode(name), None)
            else:
                os.environ[os.fsdecode(name)] = os.fsdecode(value)
        time.tzset()
    _arrived = settings


class OnArrival:
    """What a worker has to be told, for engines that rebuild a task at once: the rest is rebuilt after it."""

    def __init__(self, told: bytes | None) -> None:
        self.told = told

    def __reduce__(self) -> Any:
        return _on_arrival, (self.told,)


def _on_arrival(told: bytes | None) -> OnArrival:
    arrive(told)
    return OnArrival(told)


def _settings(told: bytes | None) -> _Process | None:
    changed = pickle.loads(told)[0] if told else None
    pickled = _known if changed is None else changed
    return _unpickled(pickled) if pickled else None


@functools.lru_cache(maxsize=16)
def _unpickled(pickled: bytes) -> _Process:
    settings = _Process(*pickle.loads(pickled))
    first = _Process(*pickle.loads(_known)) if _known else settings
    same = {name: value for name, value in _own.items() if getattr(settings, name) == getattr(first, name)}
    return settings._replace(**same)


def under(told: bytes | None) -> contextlib.AbstractContextManager[None]:
    """Have the caller's filters, limits and locale in this process, and put back what was there.

    Not longer: what a worker imports for the next job is none of this one's.
    """
    settings = _settings(told)
    if settings is None or (_few()[1:], (*warnings.filters,)) == (settings[1:5], settings.filters):
        return contextlib.nullcontext()
    return _under(settings)


@contextlib.contextmanager
def _under(settings: _Process) -> Iterator[None]:
    with contextlib.ExitStack() as stack:
        if (filters := list(settings.filters)) != (before := list(warnings.filters)):
            stack.callback(lambda: _filter([*(one for one in warnings.filters if one not in filters), *before]))
            _filter(filters)
        for get, put, wanted in (
            (sys.getrecursionlimit, sys.setrecursionlimit, settings.recursion_limit),
            (sys.get_int_max_str_digits, sys.set_int_max_str_digits, settings.max_str_digits),
        ):
            if (found := get()) != wanted:
                stack.callback(put, found)
                put(wanted)
        if (locale := _locale.setlocale(_locale.LC_ALL)) != settings.locale:
            stack.callback(_locale.setlocale, _locale.LC_ALL, locale)
            _locale.setlocale(_locale.LC_ALL, settings.locale)
        if settings.print_options:
            stack.callback(lambda options: np.set_printoptions(**options), np.get_printoptions())
            np.set_printoptions(**pickle.loads(settings.print_options))
        yield


def _filter(filters: list[Any]) -> None:
    warnings.resetwarnings()  # tells the interpreter that they have changed
    warnings.filters[:] = filters  # type: ignore[index]


def run_as(told: bytes | None, function: Callable[..., _T], /, *args: Any, **kwargs: Any) -> _T:
    """Call a function in a thread of a worker as the caller's thread would: what it sets itself ends with it."""
    return Context().run(_as_caller, pickle.loads(told)[1] if told else None, function, args, kwargs)


def _as_caller(
    of_thread: bytes | None, function: Callable[..., _T], args: tuple[Any, ...], kwargs: dict[str, Any]
) -> _T:
    errors, decimal, values = pickle.loads(of_thread) if of_thread else (None, None, ())
    _set(variables.own)
    if decimal is not None:
        _set_decimal(decimal)
    for pickled in values:
        with contextlib.suppress(Exception):  # what cannot be rebuilt here is as if it were not set
            variable, value = pickle.loads(pickled)
            variable.set(value)
    return _under_errors(errors, function, args, kwargs)


def _set(values: dict[ContextVar[Any], Any]) -> None:
    for variable, value in values.items():
        variable.set(value.copy() if variable.name == _DECIMAL else value)


# --- np.errstate and the decimal context -------------------------------------------------------------------


def _errors() -> Any:
    found = np.geterr(), np.geterrcall(), np.getbufsize()
    return None if found == (_DEFAULT_ERRORS, None, 8192) else found


def _under_errors(errors: Any, function: Callable[..., _T], args: tuple[Any, ...], kwargs: dict[str, Any]) -> _T:
    if errors is None and _NUMPY >= (2, 0):  # a context of its own is as it was
        return function(*args, **kwargs)
    wanted: Any = errors or (_DEFAULT_ERRORS, None, 8192)
    kinds, call, buffer_items = wanted
    with np.errstate(call=call, **kinds):
        before = np.setbufsize(buffer_items)
        try:
            return function(*args, **kwargs)
        finally:
            np.setbufsize(before)


def _decimal() -> Any:
    """Return the decimal context, to be copied; None if it is as in any new process."""
    import decimal

    context, plain = decimal.getcontext(), _plain_decimal()
    same = _settings_of(context) == _settings_of(plain) and context.traps == plain.traps
    return None if same else context.copy()


@functools.cache
def _plain_decimal() -> Any:
    import decimal

    trapped = [decimal.InvalidOperation, decimal.DivisionByZero, decimal.Overflow]
    return decimal.Context(28, decimal.ROUND_HALF_EVEN, -999999, 999999, 1, 0, [], trapped)  # and not DefaultContext


_settings_of = operator.attrgetter("prec", "rounding", "Emin", "Emax", "capitals", "clamp")


def _set_decimal(context: Any) -> None:
    import decimal

    decimal.setcontext(context)
