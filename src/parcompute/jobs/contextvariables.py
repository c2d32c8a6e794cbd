"""Context variables on their way to a worker: each is found there where it lies here, or made once.

A `contextvars.ContextVar` cannot be pickled, since it is nothing but itself. One that is a global of a module is the
global of that module in every process that has it. Of the user's main module, which no worker has, and of those that
no module knows, a worker makes one for each that it is told of, and keeps it.
"""

from __future__ import annotations

import contextlib
import importlib
import os
import sys
from contextvars import Context, ContextVar
from typing import Any

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
