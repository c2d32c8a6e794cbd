"""The partials of a reduction, one per block, and the fixed tree over which they are combined."""

from __future__ import annotations

import math
import operator
import pickle
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from parcompute.jobs.outputs import Allocate, Field
from parcompute.memory.sources import is_masked
from parcompute.values.blocks import Block, Plan

Combine = Callable[[Any, Any], Any]
Write = Callable[[Any, int], bool]

# Stands in the tree for a block without a result: combined with anything, it gives the other.
_NOTHING = object()


class Partials:
    """The output of `reduce_blocks`: one partial per block, combined over a tree that only the blocks fix.

    Numbers, arrays, and tuples and dicts of them go to row i of shared arrays, one array per number.
    Anything else, and a partial that is unlike block 0's, travels to the caller pickled.

    Parameters
    ----------
    plan : Plan
        The blocks.
    combine : callable, optional
        Of two partials; None adds them.
    first : int
        Number of the block whose partial has row 0.
    """

    def __init__(self, plan: Plan, combine: Combine | None = None, first: int = 0):
        self.n_blocks, self._first = plan.n_blocks, first
        self.combine = combine
        self.fields: tuple[Field, ...] | None = None
        self.like: Any = None
        self.arrays: tuple[npt.NDArray[Any], ...] | None = None
        self.odd: dict[int, Any] = {}
        self.omitted: set[int] = set()
        self._write: Write | None = None

    def __getstate__(self) -> dict[str, Any]:
        # The workers need neither the combining function nor what the caller keeps.
        return {**self.__dict__, "combine": None, "odd": {}, "arrays": None, "_write": None}

    def shape_of(self, result: Any, block: Block) -> Any:
        """Return the structure of a partial; None if it does not consist of numbers."""
        return _structure(result)

    def fields_of(self, shape: Any) -> Sequence[Field]:
        """Return the field of each number."""
        leaves = [] if shape is None else _leaves(shape)
        if not all(type(leaf) is Leaf and leaf.is_one() for leaf in leaves):
            raise ValueError("it does not look like partials")
        return [leaf.field for leaf in leaves]

    def allocate(self, shape: Any, allocate: Allocate) -> None:
        """Make one array of n_blocks rows per number of a partial."""
        self.like = shape
        fields = [leaf.field for leaf in _leaves(shape)] if shape is not None else ()
        self.arrays = tuple([allocate((self.n_blocks, *field.shape), field.dtype) for field in fields])
        self._write = _writer(shape, iter(self.arrays)) if shape is not None else None

    def grow(self, n_blocks: int, allocate: Allocate) -> None:
        """Have room for the partials of so many blocks."""
        before, self.n_blocks = self.arrays, n_blocks
        if before is not None:
            self.allocate(self.like, allocate)
            for old, new in zip(before, self.arrays or (), strict=True):
                new[: len(old)] = old

    def forget_shape(self) -> None:
        """Let block 0 decide again what a partial looks like."""
        self.like = self.arrays = self._write = None

    @property
    def stored(self) -> tuple[Any, ...] | None:
        """The arrays."""
        return self.arrays

    @property
    def arrived(self) -> npt.NDArray[np.bool_] | None:
        """None: what is marked is in its place."""
        return None

    @property
    def shape(self) -> Any:
        """What was handed to `allocate`."""
        return self.like

    @property
    def kind(self) -> Any:
        """That they are partials."""
        return Partials

    @property
    def asked(self) -> str:
        """That partials are asked for."""
        return "partials"

    def span(self, first: int, stop: int) -> slice:
        """Return one row per block."""
        return slice(first, stop)

    def rows(self, block: Block) -> Any:
        """Fail: partials have no rows to fill."""
        raise AssertionError

    def store(self, result: Any, block: Block) -> bool:
        """Write the partial of a block to its row, if it fits there."""
        return self._write is not None and self._write(result, block.index - self._first)

    def keep(self, index: int, result: Any) -> None:
        """Keep a partial that travelled."""
        self.odd[index] = result

    def omit(self, block: Block) -> None:
        """Leave a block out of the tree."""
        self.omitted.add(block.index - self._first)

    def result(self, n_blocks: int | None = None) -> Any:
        """Combine the partials of the first blocks, or of all, neighbours first: ((0 1) (2 3)) ((4 5) 6)."""
        n_blocks = self.n_blocks if n_blocks is None else n_blocks
        if self.combine is None and self.like is not None and not self.odd and not self.omitted:
            sums = [_sum_tree(array[:n_blocks], leaf) for array, leaf in self._columns()]
            return sums[0] if type(self.like) is Leaf else _assemble(self.like, iter(sums))
        partials = [_NOTHING if i in self.omitted else self._partial(i) for i in range(n_blocks)]
        combine = self.combine or add
        while len(partials) > 1:
            pairs = [
                a if b is _NOTHING else b if a is _NOTHING else combine(a, b)
                for a, b in zip(partials[0::2], partials[1::2], strict=False)
            ]
            partials = pairs + partials[len(pairs) * 2 :]
        return partials[0]

    def _columns(self) -> Any:
        return zip(self.arrays or (), _leaves(self.like), strict=True)

    def _partial(self, i: int) -> Any:
        if i in self.odd:
            return self.odd[i]
        return _assemble(self.like, iter([_unboxed(array[i], leaf) for array, leaf in self._columns()]))


def add(a: Any, b: Any) -> Any:
    """Add two partials; tuples and dicts entry by entry.

    Examples
    --------
    >>> add((1, {"n": 2}), (10, {"n": 20}))
    (11, {'n': 22})
    """
    if isinstance(a, tuple) and isinstance(b, tuple) and len(a) == len(b):
        return tuple(map(add, a, b))
    if isinstance(a, dict) and isinstance(b, dict) and a.keys() == b.keys():
        return {key: add(value, b[key]) for key, value in a.items()}
    return operator.add(a, b)


# The structure of a partial: a leaf is a Python number type or a Field (with a mark for NumPy scalars), a
# container keeps its own type and keys.


@dataclass(frozen=True, slots=True)
class Leaf:
    """One number, or array of numbers, of a partial."""

    kind: type  # bool, int, float, complex; np.generic for NumPy scalars, np.ndarray for arrays
    field: Field

    def is_one(self) -> bool:
        """Whether a number, or an array, can look like this."""
        if any(self is known for known in _PYTHON_NUMBERS.values()):
            return True
        # By type, first of all: even to compare what somebody else's pickle has made may read memory that is nobody's.
        kind: Any = self.kind
        field: Any = self.field
        if not isinstance(kind, type) or type(field) is not Field:
            return False
        shape: Any = field.shape
        dtype: Any = field.dtype
        if type(shape) is not tuple or not isinstance(dtype, np.dtype):
            return False
        if kind is np.generic:
            return not shape
        return kind is np.ndarray or self == _PYTHON_NUMBERS.get(kind)


_PYTHON_NUMBERS = {
    bool: Leaf(bool, Field(np.dtype(bool), ())),
    int: Leaf(int, Field(np.dtype(np.int64), ())),
    float: Leaf(float, Field(np.dtype(np.float64), ())),
    complex: Leaf(complex, Field(np.dtype(np.complex128), ())),
}


# A checkpoint says what partials look like, and holds nothing that has to be called to be rebuilt.
_PLAIN_KEYS = {str, bytes, int, float, bool, type(None)}


def _structure(value: Any) -> Any:
    kind = type(value)
    leaf = _PYTHON_NUMBERS.get(kind)
    if leaf is not None:
        return leaf if kind is not int or -(2**63) <= value < 2**63 else None
    if isinstance(value, np.generic):
        return None if value.dtype.hasobject else Leaf(np.generic, Field(value.dtype, ()))
    if isinstance(value, np.ndarray) and not is_masked(value):
        return None if value.dtype.hasobject else Leaf(np.ndarray, Field(value.dtype, value.shape))
    if kind is tuple:
        parts = tuple(map(_structure, value))
        return None if None in parts else parts
    if kind is dict and all(type(key) in _PLAIN_KEYS for key in value):
        entries = {key: _structure(part) for key, part in value.items()}
        return None if None in entries.values() else entries
    return None


def _writer(like: Any, rows: Iterator[npt.NDArray[Any]]) -> Write:
    """Return what writes a partial of that structure into row i of the arrays; of another, False and perhaps a part.

    To ask each partial for its structure, and to compare, takes five times as long as to write it.
    """
    if type(like) is tuple:
        parts = [_writer(part, rows) for part in like]

        def write_tuple(partial: Any, i: int) -> bool:
            if type(partial) is not tuple or len(partial) != len(parts):
                return False
            return all(write(part, i) for write, part in zip(parts, partial, strict=True))

        return write_tuple
    if type(like) is dict:
        entries = {key: _writer(like[key], rows) for key in sorted(like, key=repr)}

        def write_dict(partial: Any, i: int) -> bool:
            if (
                type(partial) is not dict
                or partial.keys() != entries.keys()
                or not _PLAIN_KEYS.issuperset(map(type, partial))
            ):
                return False
            return all(write(partial[key], i) for key, write in entries.items())

        return write_dict
    kind, dtype, shape, row = like.kind, like.field.dtype, like.field.shape, next(rows)
    if kind is np.ndarray:

        def write_array(partial: Any, i: int) -> bool:
            if type(partial) is not np.ndarray and (not isinstance(partial, np.ndarray) or is_masked(partial)):
                return False
            if partial.shape != shape or partial.dtype != dtype:
                return False
            row[i] = partial
            return True

        return write_array
    of_numpy = kind is np.generic
    if of_numpy and dtype.kind in "biufc":
        kind = dtype.type  # which says all, unlike those of text and of times
    numbers: Any = memoryview(row.data) if kind in (int, float, np.float64) else row  # in half of the time

    def write_number(partial: Any, i: int) -> bool:
        if type(partial) is not kind and not (of_numpy and isinstance(partial, np.generic) and partial.dtype == dtype):
            return False
        try:
            numbers[i] = partial
        except ValueError:  # an int of more than 64 bits
            return False
        return True

    return write_number


def _leaves(value: Any) -> list[Any]:
    if type(value) is tuple:
        return [leaf for part in value for leaf in _leaves(part)]
    if type(value) is dict:
        return [leaf for key in sorted(value, key=repr) for leaf in _leaves(value[key])]
    return [value]


def _assemble(structure: Any, leaves: Any) -> Any:
    if type(structure) is tuple:
        return tuple(_assemble(part, leaves) for part in structure)
    if type(structure) is dict:
        filled = {key: _assemble(structure[key], leaves) for key in sorted(structure, key=repr)}
        return {key: filled[key] for key in structure}
    return next(leaves)


def _unboxed(row: Any, leaf: Leaf) -> Any:
    if leaf.kind is np.ndarray:
        return np.array(row)
    return row if leaf.kind is np.generic else row.item()


def _sum_tree(rows: npt.NDArray[Any], leaf: Leaf) -> Any:
    """Add the rows pairwise, neighbours first, level by level: the bits of the tree, at NumPy's speed."""
    if leaf.kind in (int, bool):  # exact in any order, and Python's integers do not wrap
        return sum(rows.tolist()) if len(rows) > 1 else leaf.kind(rows[0])
    rows = np.array(rows) if len(rows) == 1 else rows
    while (n_rows := len(rows)) > 1:
        rows = np.concatenate([rows[0:-1:2] + rows[1::2], rows[-1:]]) if n_rows % 2 else rows[0::2] + rows[1::2]
    return _unboxed(rows[0], leaf)


# --- what results look like, from a file -------------------------------------------------------------------


class Shapes(pickle.Unpickler):
    """Rebuilds what results look like, and nothing else: a pickle may name any function to be called."""

    def find_class(self, module: str, name: str) -> Any:
        """Return one of the few classes that a shape consists of."""
        if module.startswith("parcompute."):  # wherever it stood when the file was written
            return {"Field": Field, "Leaf": Leaf, "_Leaf": Leaf}[name]
        if (module, name) in _PLAIN:
            return super().find_class(module, name)
        raise pickle.UnpicklingError(f"{module}.{name} is no part of what numbers look like")


def is_sound(field: Any) -> bool:
    """Whether a field that was read is what it says: a pickled dtype may hold objects and deny it."""
    return (
        type(field.shape) is tuple
        and all(type(n) is int and n >= 0 for n in field.shape)
        and isinstance(field.dtype, np.dtype)
        and _is_plain(field.dtype, field.dtype.itemsize)
    )


def _is_plain(dtype: np.dtype[Any], n_bytes: int) -> bool:
    if not 0 <= dtype.itemsize <= n_bytes or dtype.kind == "O":
        return False
    if dtype.subdtype is not None:
        base, shape = dtype.subdtype
        return _is_plain(base, n_bytes) and dtype.itemsize == base.itemsize * math.prod(shape) and min(shape) >= 0
    if dtype.names is None:
        known = np.dtype(dtype.str)
        return known == dtype and known.itemsize == dtype.itemsize
    fields = [dtype.fields[name] for name in dtype.names]  # type: ignore[index]
    return all(at >= 0 and _is_plain(part, dtype.itemsize - at) for part, at, *_ in fields)


_PLAIN = {("builtins", name) for name in ("bool", "int", "float", "complex")}
_PLAIN |= {("numpy", name) for name in ("dtype", "generic", "ndarray")}
