"""Have workers run modules as their caller has loaded them, also if it has loaded one again or a file has changed.

A function of a module travels by its name, and a worker loads the module when it first needs it, from the file as it is
by then. If the user has edited that file, the caller still runs the text of before; and after an `importlib.reload` in
the caller, workers do. So what they cannot know by themselves goes ahead of whatever travels to them:

    caller   own modules, their text, how often loaded ── again, or file changed? ──► Edition, with every pickle
    worker   has loaded an older edition ──► loads it again            has not ──► loads that text when it needs it

*Own* modules are the user's: files that are neither Python's nor an installed package's.
"""

from __future__ import annotations

import importlib.util
import os
import sys
import time
import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from importlib.machinery import ModuleSpec, SourceFileLoader
from types import CodeType, ModuleType
from typing import Any, NamedTuple

# Files are looked at no more often than that: each look takes a microsecond per file.
_LOOK_S = 0.05


class Edition(NamedTuple):
    """A module as a process has loaded it.

    Attributes
    ----------
    name, path : str
        Of the module and its file.
    number : int
        How often it was loaded again.
    text : bytes
        Of the file.
    """

    name: str
    path: str
    number: int
    text: bytes


@dataclass(slots=True, eq=False)
class _Own:
    """A module of the user's, in this process."""

    spec: ModuleSpec  # importlib makes a new one whenever it loads the module again
    edition: Edition
    stamp: tuple[int, int]  # of the file when it was read
    differs: bool  # workers may have loaded, or would load, another text


# --- in the caller -----------------------------------------------------------------------------------------

# Never changed but replaced: several threads look at it.
_own: dict[str, _Own] = {}
_looked_at: set[str] = set()
_n_modules, _looked_s = 0, 0.0
_path: list[str] = []
_path_differs = False


def notice() -> None:
    """Take note of the modules that are new or loaded again; called before anything travels.

    It takes 0.1 µs per module of the user's. What was imported and loaded again before the first call of it has no
    earlier edition anywhere: no worker has been started.
    """
    global _n_modules, _path, _path_differs
    loaded = sys.modules
    if _path != sys.path:
        _path, _path_differs = list(sys.path), bool(_path)
    if len(loaded) != _n_modules:
        _n_modules = len(loaded)
        for name in loaded.keys() - _looked_at:
            _looked_at.add(name)
            _read(name, 0)
    for name, own in _own.items():
        if (module := loaded.get(name)) is not None and module.__spec__ is not own.spec:
            _read(name, own.edition.number + 1)
    _look_at_files()


def _read(name: str, number: int) -> None:
    """Take down a module of the user's as it is now."""
    global _own
    spec = getattr(sys.modules.get(name), "__spec__", None)
    others = {known: own for known, own in _own.items() if known != name}
    if isinstance(spec, ModuleSpec) and _is_own(name, spec):
        path = str(spec.origin)
        try:
            stamp = _stamp(path)
            with open(path, "rb") as file:
                edition = Edition(name, path, number, file.read())
            if number:
                compile(edition.text, path, "exec", dont_inherit=True)
        except (SyntaxError, ValueError):  # nothing was loaded: the module is as it was
            before = _own[name]
            _own = {**others, name: _Own(spec, before.edition, before.stamp, True)}
        except OSError:  # the file is gone; a worker that wants it will say so
            _own = others
        else:  # the last one loaded comes last, as it does in the workers
            _own = {**others, name: _Own(spec, edition, stamp, number > 0)}
    else:
        _own = others


def _is_own(name: str, spec: ModuleSpec) -> bool:
    path = spec.origin or ""
    return (
        spec.name == name  # else it is the main module under `python -m`
        and path.endswith(".py")
        and "site-packages" not in path
        and "dist-packages" not in path
        and (top := name.partition(".")[0]) not in sys.stdlib_module_names
        and top != "parcompute"
    )


def _stamp(path: str) -> tuple[int, int]:
    status = os.stat(path)
    return status.st_mtime_ns, status.st_size


def _look_at_files() -> None:
    """Find out which files have changed since they were loaded here."""
    global _looked_s
    now_s = time.monotonic()
    if now_s - _looked_s < _LOOK_S:
        return
    _looked_s = now_s
    for own in _own.values():
        if not own.differs:
            try:
                own.differs = _stamp(own.edition.path) != own.stamp
            except OSError:
                own.differs = True


def ahead_of(value: Any) -> Any:
    """Return a value as it is to be pickled for a worker: with what goes ahead of it, if there is anything.

    Parameters
    ----------
    value : object
        Whatever travels; unpickling gives it back alone.
    """
    editions, path = news()
    return _Ahead(editions, value) if editions or path else value


def news() -> tuple[tuple[Edition, ...], list[str]]:
    """Return the editions that workers may not have, and the path where modules are looked for if it has changed."""
    return tuple(own.edition for own in _own.values() if own.differs), _path if _path_differs else []


class _Ahead:
    """Editions and where modules are looked for, and behind them a value."""

    def __init__(self, editions: tuple[Edition, ...], value: Any) -> None:
        self._editions, self._value = editions, value

    def __reduce__(self) -> Any:
        return _behind, (_Adopted(self._editions, list(sys.path)), self._value)


class _Adopted:
    def __init__(self, editions: tuple[Edition, ...], path: list[str]) -> None:
        self._news = os.getpid(), tuple(map(tuple, editions)), path

    def __reduce__(self) -> Any:
        return adopt, self._news


def _behind(_: None, value: Any) -> Any:
    return value


# --- in the worker -----------------------------------------------------------------------------------------

_adopted: dict[str, int] = {}  # numbers of the editions that were loaded here
_editions: dict[str, Edition] = {}


def adopt(caller: int, editions: Sequence[tuple[str, str, int, bytes]], path: list[str]) -> None:
    """Look for modules where the caller does, and have its editions of them, now or when they are loaded.

    Parameters
    ----------
    caller : int
        Its process id: joblib's tasks are pickled for threads, too, and nothing is news to the caller itself.
    editions : sequence of tuple
        The fields of each `Edition`.
    path : list of str
        The caller's `sys.path`.
    """
    if caller == os.getpid():
        return
    if sys.path != path:
        sys.path[:] = path
    if editions and not any(isinstance(finder, _Finder) for finder in sys.meta_path):
        sys.meta_path.insert(0, _Finder())
    news = [Edition(*edition) for edition in editions]
    _editions.update((edition.name, edition) for edition in news)
    for name, _, number, _ in news:
        if name in sys.modules and _adopted.get(name, 0) != number:
            try:
                importlib.reload(sys.modules[name])
            except Exception as error:  # as in the caller, which has the module nevertheless
                warnings.warn(f"module {name} could not be loaded again in a worker: {error}", stacklevel=2)
            _adopted[name] = number


class _Finder:
    """Finds the modules of which the caller has sent its edition."""

    def find_spec(self, name: str, path: Any = None, target: ModuleType | None = None) -> ModuleSpec | None:
        if (edition := _editions.get(name)) is None:
            return None
        return importlib.util.spec_from_file_location(name, edition.path, loader=_Loader(edition))


class _Loader(SourceFileLoader):
    def __init__(self, edition: Edition) -> None:
        super().__init__(edition.name, edition.path)
        self._edition = edition

    def get_code(self, fullname: str) -> CodeType:
        code: CodeType = compile(self._edition.text, self._edition.path, "exec", dont_inherit=True)
        return code

    def exec_module(self, module: ModuleType) -> None:
        super().exec_module(module)
        _adopted[self._edition.name] = self._edition.number


def _after_fork_in_child() -> None:
    _adopted.update((name, own.edition.number) for name, own in _own.items())


os.register_at_fork(after_in_child=_after_fork_in_child)
