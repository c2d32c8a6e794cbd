"""Tell by a digest whether a kernel, or what it is given, is that of another day.

The digest of a value is made from the digests of its parts, never from a pickle, an address or a hash, which differ
from process to process. A function is its code, its defaults and every variable that it reads, in its closure and in
its module, and so on through the functions that it calls. What is Python's or an installed package's is its name.
"""

from __future__ import annotations

import dis
import functools
import hashlib
import os
import sys
import types
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from parcompute.memory import sources
from parcompute.memory.shared import SharedArray
from parcompute.memory.tables import Table

_PLAIN = (type(None), bool, int, float, complex, str, bytes, bytearray, type(Ellipsis), type(NotImplemented))
_NUMBERS = {type(None), bool, int, float}

# What Python writes into classes by itself; some of it depends on hashes or line numbers.
_OF_PYTHON = {
    "__dict__", "__weakref__", "__doc__", "__module__", "__qualname__", "__firstlineno__", "__static_attributes__",
    "__annotations__", "__annotate__", "__annotate_func__", "__annotations_cache__", "__abstractmethods__", "_abc_impl",
}  # fmt: skip

# An array that is not contiguous is brought into order in pieces of so many bytes.
_PIECE_BYTES = 2**22


def describe(value: Any) -> str:
    """Return a value as a message shows it: a short plain one as itself, anything else by kind and digest.

    Raises
    ------
    TypeError
        Naming what has no content to tell it by.

    Examples
    --------
    >>> describe(3), describe("x")
    ('3', "'x'")
    """
    if isinstance(value, _PLAIN) and len(shown := repr(value)) <= 60:
        return shown
    if (place := _in_file(value)) is not None:
        return place
    kind = f"{value.dtype} {value.shape}" if isinstance(value, np.ndarray) else type(value).__name__
    return f"{kind} {_Digester().of(value).hex()}"


def describe_kernel(kernel: Any) -> dict[str, str]:
    """Return what there is to tell a kernel by: its name, its code, and what it closes over by name.

    Raises
    ------
    TypeError
        Naming what has no content to tell it by.
    """
    named = getattr(kernel, "__qualname__", None) or getattr(kernel, "__name__", None) or type(kernel).__qualname__
    digester = _Digester()
    if not isinstance(kernel, types.FunctionType) or _is_library(kernel.__module__):
        return {"kernel": str(named), "kernel code": digester.of(kernel).hex(), "kernel variables": ""}
    digester.current[id(kernel)] = 0
    variables = {name: digester.of(value, name).hex()[:12] for name, value in _variables(kernel)}
    shown = " ".join(f"{name}:{variables[name]}" for name in sorted(variables))
    return {
        "kernel": str(named),
        "kernel code": _join(b"kernel", [digester.code(kernel.__code__), digester.defaults(kernel)]).hex(),
        "kernel variables": shown if len(shown) < 4000 else describe(shown),
    }


class _Digester:
    """Digests of values that may refer to each other, in circles too."""

    def __init__(self) -> None:
        self.known: dict[int, tuple[bytes, Any]] = {}  # by address, with the object, which must not go meanwhile
        self.current: dict[int, int] = {}  # what the recursion is in, and how deep

    def of(self, value: Any, name: str = "") -> bytes:
        """Return the digest of any value; `name` is for the message."""
        kind = type(value)
        if kind in _PLAIN:
            return _join(kind.__name__.encode(), [repr(value).encode()])
        key = id(value)
        if key in self.known:
            return self.known[key][0]
        if key in self.current:
            return _join(b"circle", [str(self.current[key]).encode()])
        self.current[key] = len(self.current)
        try:
            digest = self._of_new(value, kind)
        except (TypeError, RecursionError) as error:
            what = f"variable {name!r}, " if name else ""
            raise TypeError(
                f"{what}a {kind.__name__}, has no content that could be compared ({error}); create it inside the kernel"
            ) from error
        finally:
            del self.current[key]
        self.known[key] = (digest, value)
        return digest

    def _of_new(self, value: Any, kind: type) -> bytes:
        if kind in (list, tuple):
            if set(map(type, value)) <= _NUMBERS:
                return _join(kind.__name__.encode(), [repr(value).encode()])
            return _join(kind.__name__.encode(), map(self.of, value))
        if kind in (set, frozenset):
            return _join(kind.__name__.encode(), sorted(map(self.of, value)))
        if kind in (dict, types.MappingProxyType):
            return _join(b"dict", (digest for item in value.items() for digest in map(self.of, item)))
        if (place := _in_file(value)) is not None:
            return _join(b"file", [place.encode()])
        if kind in (np.ndarray, np.memmap, SharedArray) and not value.dtype.hasobject:
            return _of_array(value)
        if sources.is_dataset(value) or sources.is_zarr(value):
            return _of_array(value[...])
        if isinstance(value, Table):
            return _join(b"table", map(self.of, value.digest_parts()))
        if isinstance(value, np.generic) and not value.dtype.hasobject:
            return _join(b"scalar", [str(value.dtype).encode(), value.tobytes()])
        if isinstance(value, np.ufunc):
            return _join(b"ufunc", [value.__name__.encode()])
        if isinstance(value, types.ModuleType):
            return _join(b"module", [value.__name__.encode()])
        if isinstance(value, types.CodeType):
            return self.code(value)
        if isinstance(value, types.FunctionType):
            return self._function(value)
        if isinstance(value, type):
            return self._class(value)
        return self._object(value, kind)

    def code(self, code: types.CodeType) -> bytes:
        """Return the digest of what code does, wherever in its file it stands."""
        numbers = (code.co_argcount, code.co_posonlyargcount, code.co_kwonlyargcount, code.co_flags)
        names = (code.co_names, code.co_varnames, code.co_freevars, code.co_cellvars)
        handlers = getattr(code, "co_exceptiontable", b"")
        parts = (repr(numbers).encode(), repr(names).encode(), code.co_code, handlers)
        return _join(b"code", [*parts, *map(self.of, code.co_consts)])

    def defaults(self, function: types.FunctionType) -> bytes:
        """Return the digest of a function's defaults and attributes."""
        return self.of((function.__defaults__, function.__kwdefaults__, function.__dict__))

    def _function(self, function: types.FunctionType) -> bytes:
        if _is_library(function.__module__):
            return _named(function)
        read = sorted(_variables(function), key=lambda item: item[0])
        variables = [digest for name, value in read for digest in (name.encode(), self.of(value, name))]
        return _join(b"function", [self.code(function.__code__), self.defaults(function), *variables])

    def _class(self, cls: type) -> bytes:
        if _is_library(cls.__module__):
            return _named(cls)
        parts = [cls.__qualname__.encode(), *map(self.of, cls.__bases__)]
        for name in sorted(set(vars(cls)) - _OF_PYTHON):
            member = vars(cls)[name]
            try:
                parts += [name.encode(), self.of(member)]
            except TypeError:  # slots and other descriptors of C: their name and kind say what they are
                parts += [name.encode(), type(member).__name__.encode()]
        return _join(b"class", parts)

    def _object(self, value: Any, kind: type) -> bytes:
        if isinstance(value, types.MethodType):
            return _join(b"method", [self.of(value.__func__), self.of(value.__self__)])
        if isinstance(value, types.BuiltinFunctionType):
            owner = value.__self__
            of_owner = [] if owner is None or isinstance(owner, types.ModuleType) else [self.of(owner)]
            return _join(b"builtin", [str(value.__module__).encode(), value.__qualname__.encode(), *of_owner])
        if isinstance(value, (staticmethod, classmethod)):
            return _join(kind.__name__.encode(), [self.of(value.__func__)])
        if isinstance(value, property):
            return _join(b"property", [self.of((value.fget, value.fset, value.fdel))])
        if (singleton := _in_library(value, kind)) is not None:
            return _join(b"library", [singleton.encode()])
        # numba's compiled functions and functools' caches: what counts is the function within.
        for within in ("py_func", "__wrapped__"):
            if isinstance(function := getattr(value, within, None), types.FunctionType):
                return _join(b"around", [kind.__qualname__.encode(), self.of(function)])
        reduced = value.__reduce_ex__(4)
        if isinstance(reduced, str):
            return _join(b"named", [str(getattr(value, "__module__", "")).encode(), reduced.encode()])
        made, args, state, items, pairs = (*reduced, None, None, None)[:5]
        rest = (args, state, list(items or ()), [tuple(pair) for pair in pairs or ()])
        return _join(b"object", [self.of(made), *map(self.of, rest)])


def _variables(function: types.FunctionType) -> Iterable[tuple[str, Any]]:
    """Yield name and value of what a function reads: of its closure, of its module, and of the user's other modules."""
    for name, cell in zip(function.__code__.co_freevars, function.__closure__ or (), strict=True):
        try:
            yield name, cell.cell_contents
        except ValueError:  # not assigned yet
            continue
    codes = list(_codes(function.__code__))
    attributes = {name for code in codes for name in code.co_names}
    for name in sorted({name for code in codes for name in _globals_read(code)} & function.__globals__.keys()):
        yield name, (value := function.__globals__[name])
        yield from _of_module(name, value, attributes)


def _of_module(name: str, value: Any, attributes: set[str]) -> Iterable[tuple[str, Any]]:
    if not isinstance(value, types.ModuleType) or _is_library(value.__name__):
        return
    for attribute in sorted(attributes & vars(value).keys()):
        found = vars(value)[attribute]
        yield f"{name}.{attribute}", found
        if isinstance(found, types.ModuleType) and found.__name__.startswith(value.__name__ + "."):
            yield from _of_module(f"{name}.{attribute}", found, attributes)


@functools.lru_cache(maxsize=1024)
def _globals_read(code: types.CodeType) -> frozenset[str]:
    return frozenset(str(i.argval) for i in dis.get_instructions(code) if i.opname in ("LOAD_GLOBAL", "LOAD_NAME"))


def _codes(code: types.CodeType) -> Iterable[types.CodeType]:
    yield code
    for const in code.co_consts:
        if isinstance(const, types.CodeType):
            yield from _codes(const)


def _is_library(name: str | None) -> bool:
    """Tell whether a module belongs to Python or an installed package: it is then its name and not its content."""
    top = (name or "__main__").partition(".")[0]
    if top in ("__main__", "__mp_main__"):
        return False
    if top in sys.stdlib_module_names or top == "parcompute":
        return True
    module = sys.modules.get(name or "", sys.modules.get(top))
    parts = Path(getattr(module, "__file__", None) or "").parts
    return "site-packages" in parts or "dist-packages" in parts


def _in_library(value: Any, kind: type) -> str | None:
    """Return the name of an object that an installed package has made for all, like ``scipy.stats.norm``."""
    module = sys.modules.get(kind.__module__)
    if module is None or not _is_library(kind.__module__):
        return None
    return next((f"{kind.__module__}.{name}" for name, found in vars(module).items() if found is value), None)


def _named(thing: Any) -> bytes:
    top, _, rest = str(thing.__module__).partition(".")
    # Where a module of parcompute stands among its packages is no content: checkpoints outlive a move.
    module = f"{top}.{rest.rpartition('.')[2]}" if top == "parcompute" and rest else thing.__module__
    return _join(b"library", [str(module).encode(), thing.__qualname__.encode()])


def _in_file(value: Any) -> str | None:
    """Return place, size and time of change of what lies in a file that this program only reads, else None."""
    if sources.is_dataset(value):
        place = sources.refer(value, share_above=0) if value.file.mode == "r" else None
        if place is None or not isinstance(place[0], sources.DatasetReference):
            return None
        path, where = place[0].path, place[0].name
    elif sources.is_zarr(value):
        return _in_folder(value) if value.read_only else None
    else:
        base = value
        while isinstance(base, np.ndarray):
            # The time of change of a file tells little while this program has it mapped for writing.
            if base.flags.writeable:
                return None
            base = base.base
        reference = sources.file_reference(value) if isinstance(value, np.ndarray) else None
        if reference is None:
            return None
        path, where = reference.path, f"byte {reference.offset} by {reference.strides}"
    status = os.stat(path)
    return f"{value.dtype} {value.shape} in {path} at {where}, {status.st_size} bytes of {status.st_mtime_ns} ns"


def _in_folder(array: Any) -> str | None:
    if (folder := sources.folder_of(array)) is None:
        return None
    stats = [os.stat(os.path.join(parent, name)) for parent, _, names in os.walk(folder) for name in names]
    n_bytes, last_ns = sum(stat.st_size for stat in stats), max((stat.st_mtime_ns for stat in stats), default=0)
    return f"{array.dtype} {array.shape} in {folder}, {len(stats)} files, {n_bytes} bytes, the last of {last_ns} ns"


def _of_array(array: npt.NDArray[Any]) -> bytes:
    """Return the digest of an array: dtype, shape, order in memory (the bits of a sum depend on it) and content."""
    array = array.view(np.ndarray)
    fortran = array.flags.f_contiguous and not array.flags.c_contiguous
    if fortran:
        array = array.T
    digest = hashlib.blake2b(digest_size=16)
    dtype = np.lib.format.dtype_to_descr(array.dtype)
    digest.update(repr((dtype, array.shape, fortran)).encode())
    if array.nbytes:
        rows = array if array.ndim else array.reshape(1)
        step = len(rows) if rows.flags.c_contiguous else max(1, _PIECE_BYTES * len(rows) // rows.nbytes)
        for start in range(0, len(rows), step):
            piece = np.ascontiguousarray(rows[start : start + step])
            digest.update(piece.reshape(-1).view(np.uint8).data)
    return digest.digest()


def _join(kind: bytes, parts: Iterable[bytes]) -> bytes:
    digest = hashlib.blake2b(kind, digest_size=16)
    for part in parts:
        digest.update(len(part).to_bytes(8, "little"))
        digest.update(part)
    return digest.digest()
