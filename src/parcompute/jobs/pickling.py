"""Pickle what goes to a worker, and what comes back: functions by value, big arrays as references."""

from __future__ import annotations

import errno
import functools
import gc
import io
import operator
import os
import pickle
import sys
import threading
import weakref
from collections import ChainMap
from collections.abc import Callable, Iterable, Iterator, MutableMapping
from contextvars import ContextVar
from types import CodeType, FunctionType, ModuleType
from typing import Any

import cloudpickle
import numpy as np

from parcompute.jobs import modules, variables
from parcompute.memory import segments, shared, sources, tables

# A plain array of more bytes is shared instead of sent; below, a pickle costs less than a segment.
SHARE_ABOVE = 2**20

_FILES = (io.TextIOWrapper, io.BufferedReader, io.BufferedWriter, io.BufferedRandom, io.FileIO)


# Says how an array-like value travels, as `sources.refer` does.
Refer = Callable[[Any], tuple[Any, Any] | None]


# How further types are reduced, as in `pickle.Pickler.dispatch_table`.
Table = MutableMapping[Any, Any]


class CannotTravel(TypeError, pickle.PicklingError):
    """Something cannot be pickled for the workers; the message names it."""


_Cache = type(functools.lru_cache(lambda: None))
# What `functools.lru_cache` gives a function that it wraps, and will give it again in the worker.
_GIVEN = {*functools.WRAPPER_ASSIGNMENTS, "__wrapped__", "cache_parameters"}

# The code of the functions that `functools.singledispatch` makes and that know its cache, a weak dictionary.
_dispatching = functools.singledispatch(lambda _: None)
_KNOW_CACHE = (_dispatching.register.__code__, _dispatching.dispatch.__code__)


class _CodePickler(cloudpickle.Pickler):  # type: ignore[misc]  # cloudpickle has no types
    """Sends by value what belongs to no module that a worker can import, with an empty cache if `functools` made one.

    Its functions know where their source stands, so that a remote traceback shows its lines; from 3.1.3 on cloudpickle
    leaves that out.
    """

    def __init__(self, file: io.BytesIO) -> None:
        super().__init__(file, protocol=pickle.HIGHEST_PROTOCOL)
        self._caches: set[int] = set()

    def reducer_override(self, obj: Any) -> Any:
        kind = type(obj)
        if kind is ContextVar:
            return variables.reduce(obj)
        if kind is CodeType:
            make, args, *_ = self.dispatch_table[CodeType](obj)
            return _code, (obj.co_filename, make, args)
        if kind is FunctionType:
            if obj.__code__ in _KNOW_CACHE:  # equal: in a worker it is a copy
                self._caches.update(id(cell.cell_contents) for cell in obj.__closure__)
        elif kind is weakref.WeakKeyDictionary and id(obj) in self._caches:
            return weakref.WeakKeyDictionary, ()
        elif kind is _Cache and not importable(obj):
            parameters = obj.cache_parameters()
            attributes = {name: value for name, value in vars(obj).items() if name not in _GIVEN}
            return _cached, (obj.__wrapped__, parameters["maxsize"], parameters["typed"]), attributes
        elif isinstance(obj, functools.cached_property):
            return _cached_property, (kind,), {name: value for name, value in vars(obj).items() if name != "lock"}
        elif (managers := sys.modules.get("multiprocessing.managers")) and isinstance(obj, managers.BaseProxy):
            return _with_key(obj, managers)
        elif (reduced := tables.through_arrow(obj)) is not None:
            return reduced
        reduced = super().reducer_override(obj)
        if kind is FunctionType and isinstance(reduced, tuple):
            *made, set_state = reduced
            return *made[:2], (set_state, made[2]), None, None, _set_state
        return reduced


def _set_state(function: FunctionType, state: tuple[Callable[[FunctionType, Any], None], Any]) -> None:
    """Complete a function that has travelled by value."""
    set_state, its_state = state
    set_state(function, its_state)
    variables.give(function)


def importable(value: Any) -> bool:
    """Tell whether a worker finds a function, a class or a module by its name, as cloudpickle decides it."""
    is_module = type(value) is ModuleType
    name = value.__name__ if is_module else getattr(value, "__module__", None)
    if name is None or name == "__main__" or (module := sys.modules.get(name)) is None:
        return False
    if any(f"{name}.".startswith(f"{by_value}.") for by_value in cloudpickle.list_registry_pickle_by_value()):
        return False
    try:
        return (module if is_module else operator.attrgetter(value.__qualname__)(module)) is value
    except AttributeError:
        return False


def _code(filename: str, make: Callable[..., CodeType], args: tuple[Any, ...]) -> CodeType:
    return make(*args).replace(co_filename=filename)


def _cached(function: Callable[..., Any], maxsize: int | None, typed: bool) -> Any:
    return functools.lru_cache(maxsize, typed)(function)


def _cached_property(kind: type[functools.cached_property[Any]]) -> Any:
    made = kind.__new__(kind)
    functools.cached_property.__init__(made, lambda _: None)  # makes the lock that it has in Python 3.11
    return made


def _with_key(proxy: Any, managers: Any) -> Any:
    """Send a manager's proxy with the key that its server wants; a worker has that of its caller's start at most."""
    rebuild, args, *rest = proxy.__reduce__()
    if rebuild is managers.RebuildProxy:
        args = (*args[:-1], {**args[-1], "authkey": bytes(proxy._authkey)})
    return rebuild, args, *rest


class _Pickler(_CodePickler):
    """Sends big arrays as references, wherever in the object graph they sit, and plain ones in an arena for all."""

    def __init__(
        self,
        file: io.BytesIO,
        refer: Refer = sources.refer,
        *,
        private: bool,
        share_above: int,
        table: Table | None = None,
    ) -> None:
        if table is not None:  # before C looks for it
            self.dispatch_table: Table = ChainMap(table, _CodePickler.dispatch_table)
        super().__init__(file)
        self.keep_alive: list[Any] = []
        self.arena = shared.Arena()
        self._refer, self._private, self._share_above = refer, private, share_above

    def reducer_override(self, obj: Any) -> Any:
        # Unlike persistent_id, this is not called for plain numbers, text and containers.
        # cloudpickle would send what is left to read of a text file, which is never what was meant.
        if isinstance(obj, _FILES) and obj not in (sys.stdout, sys.stderr):
            raise TypeError(f"cannot pickle the open file {getattr(obj, 'name', '')!r}")
        if (referred := self._refer(obj)) is not None:
            where, keep_alive = referred
            self.keep_alive += [obj, keep_alive]
            if self._private and not isinstance(where, sources.DatasetReference) and not where.writeable:
                where = where._replace(private=True)
            return _opened, (where,)
        if sources.is_plain(obj, above=self._share_above):
            return _of_arena, self.arena.add(obj)
        if (content := tables.buffer_as_array(obj, above=self._share_above)) is not None:
            return tables.array_as_buffer, (content,)
        return super().reducer_override(obj)


def dumps(
    value: Any,
    name: str,
    refer: Refer = sources.refer,
    *,
    share_above: int = SHARE_ABOVE,
    lent: bool = False,
    table: Table | None = None,
) -> tuple[bytes, list[Any]]:
    """Pickle a value for the workers; arrays in shared memory or files, and big ones, as references.

    A call may write to its arguments, whatever their size: it gets arrays that are copied where it does. Those of a job
    are read-only.

    Parameters
    ----------
    value : Job or tuple
        A job, or function, args and kwargs of a call.
    name : str
        What to call it in an error.
    refer : callable
        Says which arrays travel as references to what they lie on.
    share_above : int
        Plain arrays of more bytes are copied into shared memory, where there is room for a segment.
    lent : bool
        Whether the receiver says when it has let go of the arrays. Otherwise they are not used again for others: a call
        may keep what it was given, in a variable of its module say.
    table : mapping, optional
        Further types.

    Returns
    -------
    bytes
        For `loads` in a worker.
    list
        What must live here until the workers have unpickled it.

    Raises
    ------
    CannotTravel
        Naming the object.
    """
    modules.notice()
    # In a process that multiprocessing has started, the user's main module has this name, and no worker has it.
    if (main := sys.modules.get("__mp_main__")) is not None:
        cloudpickle.register_pickle_by_value(main)
    if not segments.descriptors_left():
        share_above = sys.maxsize
    file = io.BytesIO(bytes(_PREFIX))
    file.seek(_PREFIX)
    pickler = _Pickler(file, refer, private=isinstance(value, tuple), share_above=share_above, table=table)
    try:
        pickler.dump(modules.ahead_of(value))
    except CannotTravel:  # a part that was pickled for itself
        raise
    except (pickle.PicklingError, TypeError, AttributeError, RuntimeError, ValueError) as error:
        from parcompute.jobs import culprits  # what is seldom needed

        reason = culprits.find(value, functools.partial(_why_not, table)) or error
        raise CannotTravel(f"{name} cannot travel to a worker: {reason}") from error
    try:
        arena = pickler.arena.fill()
    except OSError as error:
        if error.errno not in (errno.EMFILE, errno.ENFILE):
            raise
        return dumps(value, name, refer, share_above=sys.maxsize, lent=lent, table=table)
    keep_alive = pickler.keep_alive
    if arena is not None:
        keep_alive.append(arena)
        where = shared.reference(arena, writeable=False)
        assert where is not None
        at = file.tell()
        pickle.dump(where._replace(private=isinstance(value, tuple)), file)
        file.seek(0)
        file.write(at.to_bytes(_PREFIX, "little"))
    if isinstance(value, tuple) and not lent:
        export(keep_alive)
    return file.getvalue(), keep_alive


# The message begins with the place of the arena's reference, which is known last; 0 without an arena.
_PREFIX = 8


def export(arrays: Iterable[Any]) -> None:
    """Note of arrays that others may go on looking at them."""
    for segment in segments_of(arrays):
        segment.exported = True


def segments_of(arrays: Iterable[Any]) -> Iterator[segments.Segment]:
    """Yield the segments on which arrays lie; what is no array, or lies in private memory, is left out."""
    for array in arrays:
        if isinstance(array, np.ndarray) and (segment := shared.segment_of(array)) is not None:
            yield segment


class _ResultPickler(_CodePickler):
    """Sends arrays that this process has shared as they are: it will have dropped them when they are looked for."""

    def reducer_override(self, obj: Any) -> Any:
        if isinstance(obj, shared.SharedArray) and (segment := shared.segment_of(obj)) and segment.pid == os.getpid():
            return np.array(obj).__reduce_ex__(pickle.HIGHEST_PROTOCOL)
        return super().reducer_override(obj)


def _why_not(table: Table | None, part: Any) -> Exception | None:
    """Return why a part of what travels cannot, None if it can; arrays can, and are left where they are."""

    def refer(obj: Any) -> tuple[Any, Any] | None:
        numbers = isinstance(obj, np.ndarray) and not obj.dtype.hasobject
        return (None, None) if numbers or sources.is_dataset(obj) else None

    try:
        _Pickler(io.BytesIO(), refer, private=False, share_above=sys.maxsize, table=table).dump(part)
    except Exception as error:
        return error
    return None


def dumps_back(result: Any) -> bytes:
    """Pickle a result for the process that asked for it."""
    file = io.BytesIO()
    _ResultPickler(file).dump(result)
    return file.getvalue()


class _Reading(threading.local):
    """The messages that a thread is reading, the innermost last: the arena of each, and what it has opened."""

    def __init__(self) -> None:
        self.messages: list[tuple[Any, list[Any]]] = []


_reading = _Reading()


def _of_arena(*place: Any) -> Any:
    return shared.taken_from(_reading.messages[-1][0], *place)


def _opened(where: Any) -> Any:
    array = sources.open_reference(where)
    _reading.messages[-1][1].append(array)
    return array


def loads(pickled: bytes) -> Any:
    """Return what `dumps` has pickled."""
    return loads_watched(pickled)[0]


def loads_watched(pickled: bytes) -> tuple[Any, list[weakref.ref[segments.Segment]]]:
    """Return what `dumps` has pickled, and the segments on which its arrays lie, to see when they have gone."""
    message = memoryview(pickled)
    at = int.from_bytes(message[:_PREFIX], "little")
    opened: list[Any] = [shared.attach(pickle.loads(message[at:])).view(np.ndarray)] if at else []
    _reading.messages.append((opened[0] if at else None, opened))
    try:
        value = pickle.loads(message[_PREFIX : at or None])
    finally:
        _reading.messages.pop()
    return value, [weakref.ref(segment) for segment in segments_of(opened)]


# What the calls of the last maps have in common; two may run at the same time.
_REMEMBERED = 2
_remembered: list[tuple[bytes, Any, list[weakref.ref[segments.Segment]]]] = []


def loads_again(pickled: bytes) -> Any:
    """Return what `dumps` has pickled, the same object if it has come just before: until `forget_loaded`."""
    for known, value, _ in _remembered:
        if known == pickled:
            return value
    _remembered.append((pickled, *loads_watched(pickled)))
    _forget(_REMEMBERED)
    return _remembered[-1][1]


def remembers() -> bool:
    """Whether `loads_again` has anything to forget."""
    return bool(_remembered)


def forget_loaded() -> None:
    """Let go of what `loads_again` has returned."""
    _forget(0)


def _forget(n_kept: int) -> None:
    while len(_remembered) > n_kept:
        _, value, lent = _remembered.pop(0)
        del value
        if still_lent(lent):
            gc.collect()


def still_lent(lent: Iterable[weakref.ref[segments.Segment]]) -> bool:
    """Whether anything keeps arrays that were lent; functions that travel by value are circles, and do for a while."""
    return any(segment() is not None for segment in lent)


def _after_fork_in_child() -> None:
    """Let go of the lock of cloudpickle's classes: the thread that had it in the parent is not here."""
    if hasattr(cloudpickle.cloudpickle, "_DYNAMIC_CLASS_TRACKER_LOCK"):
        cloudpickle.cloudpickle._DYNAMIC_CLASS_TRACKER_LOCK = threading.Lock()


os.register_at_fork(after_in_child=_after_fork_in_child)
