"""Find what keeps a call from travelling to a worker, name it, and say what to do instead."""

from __future__ import annotations

import functools
import inspect
import types
from collections.abc import Callable, Iterator
from typing import Any

_Cache = type(functools.lru_cache(lambda: None))

# How deep one looks: beyond that a name has more parts than anyone reads.
_DEPTH = 6

# By module and name of a class, or of one that it inherits from: why it stays here, and the way out.
_ADVICE = {
    "_thread.lock _thread.RLock threading.Condition threading.Semaphore threading.Event threading.Barrier": (
        "it holds back the threads of one process only; leave it out, since workers share no variables that it could "
        "guard, or take one of a multiprocessing.Manager"
    ),
    "_contextvars.Token _contextvars.Context": (
        "it belongs to a thread of this process; pass the values of its variables, which travel themselves"
    ),
    "weakref.ReferenceType weakref.ProxyType weakref.WeakKeyDictionary weakref.WeakValueDictionary": (
        "it refers to what lives in this process; pass an ordinary object, or dictionary, with what the kernel needs"
    ),
    "builtins.generator builtins.async_generator builtins.coroutine": (
        "it stands in the middle of a run of this process; pass a list of its items, or the function that makes it"
    ),
    "_io._IOBase mmap.mmap": "pass the path, and open it inside the kernel",
    "_socket.socket ssl.SSLContext sqlite3.Connection sqlite3.Cursor": (
        "a connection belongs to the process that has opened it; open one inside the kernel, or once per worker in a "
        "function with functools.cache"
    ),
    "concurrent.futures._base.Executor multiprocessing.pool.Pool multiprocessing.managers.BaseManager": (
        "an executor and its workers belong to this process; use it here, and pass what it returns"
    ),
    "concurrent.futures._base.Future _asyncio.Future _asyncio.Task asyncio.events.AbstractEventLoop": (
        "it is settled in this process; pass its result"
    ),
    "_thread._local threading.Thread multiprocessing.process.BaseProcess subprocess.Popen": (
        "it belongs to this process; start or create one inside the kernel, if the kernel needs it"
    ),
    "_queue.SimpleQueue queue.Queue multiprocessing.queues.Queue multiprocessing.queues.SimpleQueue": (
        "what is put into it stays with this process; return it from the kernel, or take a queue of a "
        "multiprocessing.Manager"
    ),
    "multiprocessing.synchronize.SemLock multiprocessing.sharedctypes.SynchronizedBase": (
        "only a process that multiprocessing itself has started can have it; take one of a multiprocessing.Manager"
    ),
    "builtins.frame builtins.traceback": "pass its text, as traceback.format_exc() returns it",
}  # fmt: skip
_BY_KIND = {kind: advice for kinds, advice in _ADVICE.items() for kind in kinds.split()}


def find(value: Any, cannot: Callable[[Any], Exception | None]) -> str:
    """Name the variable, as deep as need be, that cannot travel.

    Parameters
    ----------
    value : Job, tuple or list
        A job; function, args and kwargs of a call; or what has no names of its own.
    cannot : callable
        Returns why something cannot be pickled; None if it can.

    Returns
    -------
    str
        The variable, its kind, the reason, and what to do instead; empty if no variable is to blame.
    """
    if isinstance(value, list):
        return ""
    function, args, kwargs = value if isinstance(value, tuple) else (value.kernel, value.args, value.kwargs)
    parts: dict[str, Any] = {f"args[{n}]": arg for n, arg in enumerate(args)}
    parts |= {f"kwargs[{name!r}]": arg for name, arg in kwargs.items()}
    path: list[str] = []
    seen = {id(function)}
    candidates = [*_parts(function), *parts.items()]
    while len(path) < _DEPTH and (found := _first(candidates, seen, cannot)) is not None:
        name, culprit, error = found
        path.append(name)
        if _advice(culprit):
            break
        candidates = list(_parts(culprit))
    if not path:
        return ""
    what = f"{', '.join(path)}, a {type(culprit).__name__}, cannot be pickled ({error})"
    if type(culprit).__module__.startswith("parcompute."):  # which says itself what to do
        return what
    return f"{what}; {_advice(culprit) or 'create it inside the kernel'}"


def _first(
    candidates: list[tuple[str, Any]], seen: set[int], cannot: Callable[[Any], Exception | None]
) -> tuple[str, Any, Exception] | None:
    for name, candidate in candidates:
        if id(candidate) not in seen:
            seen.add(id(candidate))
            if (error := cannot(candidate)) is not None:
                return name, candidate, error
    return None


def _advice(culprit: Any) -> str:
    kinds = (f"{cls.__module__}.{cls.__qualname__}" for cls in type(culprit).__mro__)
    return next((_BY_KIND[kind] for kind in kinds if kind in _BY_KIND), "")


def _parts(whole: Any) -> Iterator[tuple[str, Any]]:
    """Yield what travels with a thing, each with its name."""
    if isinstance(whole, functools.partial):
        yield from ((f"its argument {n}", arg) for n, arg in enumerate(whole.args))
        yield from ((f"its argument {name!r}", arg) for name, arg in whole.keywords.items())
        yield from _parts(whole.func)
    elif isinstance(whole, types.MethodType):
        yield from _parts(whole.__self__)
        yield from _parts(whole.__func__)
    elif isinstance(whole, types.FunctionType):
        yield from ((f"its variable {name!r}", variable) for name, variable in _variables(whole))
        yield from ((f"its default {n}", default) for n, default in enumerate(whole.__defaults__ or ()))
        yield from ((f"its default {name!r}", default) for name, default in (whole.__kwdefaults__ or {}).items())
        yield from _attributes(whole)
    elif isinstance(whole, dict):
        yield from ((f"its item {key!r:.60}", item) for key, item in whole.items())
        yield from ((f"its key {key!r:.60}", key) for key in whole)
    elif isinstance(whole, (list, tuple, set, frozenset)):
        yield from ((f"its item {n}", item) for n, item in enumerate(whole))
    elif isinstance(whole, (staticmethod, classmethod, _Cache)):
        yield from _parts(whole.__wrapped__)
    elif isinstance(whole, property):
        for accessor in (whole.fget, whole.fset, whole.fdel):
            yield from _parts(accessor)
    elif not isinstance(whole, types.ModuleType):
        yield from _attributes(whole)
        if not isinstance(whole, type):
            yield from _parts(type(whole))


def _attributes(whole: Any) -> Iterator[tuple[str, Any]]:
    for name, value in getattr(whole, "__dict__", {}).items():
        if not isinstance(whole, type) or name not in ("__dict__", "__weakref__"):
            yield f"its attribute {name!r}", value
    for cls in type(whole).__mro__:
        slots = vars(cls).get("__slots__", ())
        for name in (slots,) if isinstance(slots, str) else slots:
            if hasattr(whole, name) and name not in ("__dict__", "__weakref__"):
                yield f"its attribute {name!r}", getattr(whole, name)


def _variables(function: types.FunctionType) -> Iterator[tuple[str, Any]]:
    """Yield name and value of what a function, and those within it, read from around and from its module."""
    yield from inspect.getclosurevars(function).nonlocals.items()
    codes = [function.__code__]
    for code in codes:
        codes += [const for const in code.co_consts if isinstance(const, types.CodeType)]
        yield from ((name, function.__globals__[name]) for name in code.co_names if name in function.__globals__)
