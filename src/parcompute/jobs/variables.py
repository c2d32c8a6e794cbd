"""The global variables that an initializer sets in a worker, for the functions that travel there later.

A function of the user's program, or of a notebook, travels by value, each time with copies of the global variables that
it reads. Those that the initializer of a worker has set must stay as they are there:

    initializer: ``global model; model = load()``   ──► kept, by the name of its module
    function:    ``return model.predict(x)``        ──► arrives with ``model = None``, and is given the one that is kept

Context variables on their way to a worker: each is found there where it lies here, or made once.

A `contextvars.ContextVar` cannot be pickled, since it is nothing but itself. One that is a global of a module is the
global of that module in every process that has it. Of the user's main module, which no worker has, and of those that
no module knows, a worker makes one for each that it is told of, and keeps it.
"""

from __future__ import annotations

import contextlib
import functools
import importlib
import os
import sys
import threading
from collections.abc import Callable, Iterator
from contextvars import Context, ContextVar, copy_context
from types import CodeType, FunctionType, ModuleType
from typing import Any

_kept: dict[str, dict[str, Any]] = {}  # by the name of the module


@contextlib.contextmanager
def kept(initializer: Callable[..., Any] | None) -> Iterator[None]:
    """Keep what an initializer, which runs within, has set or may have changed in this worker process."""
    while isinstance(initializer, functools.partial):
        initializer = initializer.func
    if not isinstance(initializer, FunctionType):
        yield
        return
    own = initializer.__globals__
    before = {name: own.get(name) for name in _names(initializer)}
    yield
    # What was set; and what could be changed without setting it, which a function, class or module is not meant for.
    changed = {
        name: own[name]
        for name, value in before.items()
        if name in own and (own[name] is not value or not isinstance(value, (FunctionType, type, ModuleType)))
    }
    _kept.setdefault(own["__name__"], {}).update(changed)


def give(function: FunctionType) -> None:
    """Give a function that has arrived by value the variables that are kept for its module."""
    own = function.__globals__
    own.update(_kept.get(own.get("__name__", ""), {}))


def _names(function: FunctionType) -> set[str]:
    """Return the names of the global variables of a function, and of those of its module that it calls."""
    found: set[str] = set()
    functions, seen = [function], {function}
    while functions:
        codes = [functions.pop().__code__]
        while codes:
            code = codes.pop()
            codes += [constant for constant in code.co_consts if isinstance(constant, CodeType)]
            found.update(code.co_names)
        for name in found:
            other = function.__globals__.get(name)
            if isinstance(other, FunctionType) and other.__globals__ is function.__globals__ and other not in seen:
                seen.add(other)
                functions.append(other)
    return found


# --- context variables that an initializer sets ------------------------------------------------------------

own: dict[ContextVar[Any], Any] = {}  # in this worker process, in all its threads
here = threading.local()  # .own is the same for this thread, where an executor has threads


@contextlib.contextmanager
def noted(values: dict[ContextVar[Any], Any]) -> Iterator[None]:
    """Note the context variables that an initializer, which runs within, sets: they hold where a caller sets none."""
    before = copy_context()
    yield
    values.update(
        (variable, value)
        for variable, value in copy_context().items()
        if variable not in before or before[variable] is not value
    )


@contextlib.contextmanager
def holding(values: dict[ContextVar[Any], Any]) -> Iterator[None]:
    """Have noted variables hold for what this thread runs meanwhile."""
    before = getattr(here, "own", {})
    here.own = values
    try:
        yield
    finally:
        here.own = before


# --- context variables on their way ------------------------------------------------------------------------

_MAIN = ("__main__", "__mp_main__")

# Module and name of each variable; no module for a made-up name, None where nobody has asked for one.
_homes: dict[ContextVar[Any], tuple[str, str] | None] = {}
_own: dict[tuple[str, str], ContextVar[Any]] = {}  # those that no module of this process has


def reduce(variable: ContextVar[Any]) -> tuple[Any, tuple[Any, ...]]:
    """Say how a variable is pickled, as ``__reduce__`` does."""
    home = home_of(variable)
    if home is None:
        home = _homes[variable] = ("", f"{os.getpid()}-{len(_homes)}")
        _own[home] = variable
    if home[0] and home[0] not in _MAIN:
        return find, (*home, variable.name)
    try:
        return find, (*home, variable.name, Context().run(variable.get))
    except LookupError:  # it has no default
        return find, (*home, variable.name)


def home_of(variable: ContextVar[Any]) -> tuple[str, str] | None:
    """Return the module and the name under which others can find a variable; None if there is no such place."""
    if variable not in _homes:
        places = [
            (module, name)
            for module, loaded in list(sys.modules.items())
            for name, value in list(getattr(loaded, "__dict__", {}).items())
            if value is variable
        ]
        # What the main module has imported from another is to be found there.
        _homes[variable] = min(places, key=lambda place: place[0] in _MAIN, default=None)
    return _homes[variable]


def find(module: str, attribute: str, name: str, *default: Any) -> ContextVar[Any]:
    """Return the variable that lies there; make it if this process has none."""
    with contextlib.suppress(Exception):  # whatever the import of a module raises
        found = getattr(importlib.import_module(module), attribute)
        if type(found) is ContextVar:
            return found
    home = module, attribute
    if home not in _own:
        # One that lasts as long as the process, as the global that it stands for does.
        made: ContextVar[Any] = ContextVar(name, default=default[0]) if default else ContextVar(name)
        _own[home], _homes[made] = made, home
    return _own[home]
