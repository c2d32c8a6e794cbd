"""Pickle what goes to a worker, and what comes back: functions by value, big arrays as references."""

from __future__ import annotations

import functools
import inspect
import io
import os
import pickle
import sys
from collections.abc import Callable
from contextvars import ContextVar
from types import CodeType
from typing import Any

import cloudpickle
import numpy as np

from parcompute.jobs import variables
from parcompute.memory import shared, sources

# A plain array of more bytes is shared instead of sent; below, a pickle costs less than a segment.
SHARE_ABOVE = 2**20

_FILES = (io.TextIOWrapper, io.BufferedReader, io.BufferedWriter, io.BufferedRandom, io.FileIO)


# Says how an array-like value travels, as `sources.refer` does.
Refer = Callable[[Any], tuple[Any, Any] | None]

_refer: Refer = functools.partial(sources.refer, share_above=SHARE_ABOVE)


class CannotTravel(TypeError):
    """Something cannot be pickled for the workers; the message names it."""


class _CodePickler(cloudpickle.Pickler):  # type: ignore[misc]  # cloudpickle has no types
    """Sends functions by value that know where their source stands, so that a remote traceback shows its lines.

    From 3.1.3 on cloudpickle leaves that out.
    """

    def reducer_override(self, obj: Any) -> Any:
        if type(obj) is ContextVar:
            return variables.reduce(obj)
        if type(obj) is CodeType:
            make, args, *_ = self.dispatch_table[CodeType](obj)
            return _code, (obj.co_filename, make, args)
        return super().reducer_override(obj)


def _code(filename: str, make: Callable[..., CodeType], args: tuple[Any, ...]) -> CodeType:
    return make(*args).replace(co_filename=filename)


class _Pickler(_CodePickler):
    """Sends big arrays as references, wherever in the object graph they sit."""

    def __init__(self, file: io.BytesIO, refer: Refer | None = None) -> None:
        super().__init__(file, protocol=pickle.HIGHEST_PROTOCOL)
        self.keep_alive: list[Any] = []
        self._refer = refer or _refer

    def reducer_override(self, obj: Any) -> Any:
        # Unlike persistent_id, this is not called for plain numbers, text and containers.
        # cloudpickle would send what is left to read of a text file, which is never what was meant.
        if isinstance(obj, _FILES) and obj not in (sys.stdout, sys.stderr):
            raise TypeError(f"cannot pickle the open file {getattr(obj, 'name', '')!r}")
        referred = self._refer(obj)
        if referred is None:
            return super().reducer_override(obj)
        where, keep_alive = referred
        self.keep_alive += [obj, keep_alive]
        return sources.open_reference, (where,)


def dumps(value: Any, name: str, refer: Refer | None = None) -> tuple[bytes, list[Any]]:
    """Pickle a value for the workers; arrays in shared memory or files, and big ones, as references.

    Parameters
    ----------
    value : Job or tuple
        A job, or function, args and kwargs of a call.
    name : str
        What to call it in an error.
    refer : callable, optional
        Says how arrays travel; None shares the big ones.

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
    file = io.BytesIO()
    pickler = _Pickler(file, refer)
    # In a process that multiprocessing has started, the user's main module has this name, and no worker has it.
    if (main := sys.modules.get("__mp_main__")) is not None:
        cloudpickle.register_pickle_by_value(main)
    try:
        pickler.dump(value)
    except CannotTravel:  # a part that was pickled for itself
        raise
    except (pickle.PicklingError, TypeError, AttributeError, RecursionError) as error:
        raise CannotTravel(f"{name} cannot travel to a worker: {_culprit(value) or error}") from error
    if isinstance(value, tuple):  # a call may keep what it was given, in a variable of its module say
        for array in pickler.keep_alive:
            if isinstance(array, np.ndarray) and (segment := shared.segment_of(array)) is not None:
                segment.exported = True
    return file.getvalue(), pickler.keep_alive


class _ResultPickler(_CodePickler):
    """Sends arrays that this process has shared as they are: it will have dropped them when they are looked for."""

    def reducer_override(self, obj: Any) -> Any:
        if isinstance(obj, shared.SharedArray) and (segment := shared.segment_of(obj)) and segment.pid == os.getpid():
            return np.array(obj).__reduce_ex__(pickle.HIGHEST_PROTOCOL)
        return super().reducer_override(obj)


def dumps_back(result: Any) -> bytes:
    """Pickle a result for the process that asked for it."""
    file = io.BytesIO()
    _ResultPickler(file, protocol=pickle.HIGHEST_PROTOCOL).dump(result)
    return file.getvalue()


def loads(pickled: bytes) -> Any:
    """Return what `dumps` has pickled; referred arrays are read-only."""
    return pickle.loads(pickled)


def _culprit(value: Any) -> str:
    """Name the variable that a function carries along and that cannot be pickled."""
    function, args, kwargs = value if isinstance(value, tuple) else (value.kernel, value.args, value.kwargs)
    candidates: dict[str, Any] = {}
    if isinstance(function, functools.partial):
        candidates |= {f"its argument {n}": v for n, v in enumerate(function.args)}
        candidates |= {f"its argument {n!r}": v for n, v in function.keywords.items()}
        function = function.func
    if callable(function) and not inspect.isfunction(function := inspect.unwrap(function)):
        owner = getattr(function, "__self__", function)  # of a bound method, or an object with __call__
        candidates |= {f"its attribute {n!r}": v for n, v in getattr(owner, "__dict__", {}).items()}
    if inspect.isfunction(function):
        closure = inspect.getclosurevars(function)
        candidates |= {f"its variable {n!r}": v for n, v in {**closure.globals, **closure.nonlocals}.items()}
    candidates |= {f"args[{n}]": v for n, v in enumerate(args)}
    candidates |= {f"kwargs[{n!r}]": v for n, v in kwargs.items()}
    for name, candidate in candidates.items():
        try:
            _Pickler(io.BytesIO()).dump(candidate)
        except Exception as error:
            return f"{name}, a {type(candidate).__name__}, cannot be pickled ({error}); create it inside the kernel"
    return ""
