"""The global variables that an initializer sets in a worker, for the functions that travel there later.

A function of the user's program, or of a notebook, travels by value, each time with copies of the global variables that
it reads. Those that the initializer of a worker has set must stay as they are there:

    initializer: ``global model; model = load()``   ──► kept, by the name of its module
    function:    ``return model.predict(x)``        ──► arrives with ``model = None``, and is given the one that is kept
"""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Callable, Iterator
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
