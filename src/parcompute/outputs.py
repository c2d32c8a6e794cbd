"""Where results go: the output rows of a map, the partials of a reduction.

Both are arrays that nobody can make before the first block has said what a result looks like: its *shape*.
Block 0 decides, so the answer is the same whoever computes first.
"""

from __future__ import annotations

import operator
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt

from parcompute.blocks import Block, Plan
from parcompute.sources import is_masked

Allocate = Callable[[tuple[int, ...], np.dtype[Any]], npt.NDArray[Any]]
Combine = Callable[[Any, Any], Any]


@dataclass(frozen=True, slots=True)
class Field:
    """One array of a result: the dtype, and the shape of one item or of one partial."""

    dtype: np.dtype[Any]
    shape: tuple[int, ...]

    def __str__(self) -> str:
        return f"{self.dtype} {self.shape}"


class ResultError(ValueError):
    """A kernel returned something other than what its output holds."""


class Outputs(Protocol):
    """Where the results of the blocks of one job go; a value that travels to the workers."""

    arrays: tuple[npt.NDArray[Any], ...] | None

    @property
    def odd(self) -> Mapping[int, Any]:
        """In the caller, the results that have no place in the arrays, by block."""

    @property
    def omitted(self) -> Collection[int]:
        """In the caller, the blocks without a result."""

    @property
    def shape(self) -> Any:
        """What was handed to `allocate`."""

    @property
    def asked(self) -> str:
        """What is computed and what the caller has fixed of it, in words."""

    def span(self, first: int, stop: int) -> slice:
        """Return which rows of the arrays hold the results of blocks ``first, ..., stop - 1``."""

    def shape_of(self, result: Any, block: Block) -> Any:
        """Return the shape that a result of block 0 gives to the output."""

    def allocate(self, shape: Any, allocate: Allocate) -> None:
        """Make the arrays for results of that shape."""

    def rows(self, block: Block) -> Any:
        """Return the rows that a kernel which asks for ``out`` must fill."""

    def store(self, result: Any, block: Block) -> bool:
        """Put the result of a block in its place; False if it must travel to the caller as it is."""

    def keep(self, index: int, result: Any) -> None:
        """Keep, in the caller, a result that has no place in the arrays."""

    def omit(self, block: Block) -> None:
        """Note, in the caller, that a block has no result."""


class Rows:
    """The output of `map_blocks`: one row per item, written in place by whoever computes the block.

    Parameters
    ----------
    plan : Plan
        The blocks.
    fields : sequence of Field, optional
        What the caller has fixed; None lets block 0 decide.
    single : bool
        Whether the kernel returns one array and not a tuple; block 0 tells if `fields` is None.
    dtype, item_shape : dtype, tuple of int, optional
        The one of the two that the caller has fixed if `fields` is None.
    """

    odd: Mapping[int, Any] = MappingProxyType({})

    def __init__(
        self,
        plan: Plan,
        fields: Sequence[Field] | None = None,
        single: bool = True,
        dtype: np.dtype[Any] | None = None,
        item_shape: tuple[int, ...] | None = None,
    ) -> None:
        self.plan = plan
        self.fields = tuple(fields) if fields is not None else None
        self.single = single
        self.dtype, self.item_shape = dtype, item_shape
        # Whoever names a dtype wants results in it; otherwise one that differs from block 0's is a mistake.
        self.casts = fields is not None or dtype is not None
        self.arrays: tuple[npt.NDArray[Any], ...] | None = None
        self.omitted: set[int] = set()

    def __getstate__(self) -> dict[str, Any]:
        # The arrays travel on their own, since they are the one thing in a job that is written to.
        return {**self.__dict__, "arrays": None}

    def shape_of(self, result: Any, block: Block) -> Any:
        """Return (fields, single)."""
        single = not isinstance(result, tuple)
        fields = []
        for part in (result,) if single else result:
            array = _as_array(part)
            if array.ndim == 0 or len(array) != block.size:
                raise ResultError(f"expected {block.size} rows, one per item; got {_shown(part)}")
            shape = array.shape[1:] if self.item_shape is None else self.item_shape
            fields.append(Field(self.dtype or array.dtype, shape))
        return tuple(fields), single

    def allocate(self, shape: Any, allocate: Allocate) -> None:
        """Make one array of n_items rows per field."""
        self.fields, self.single = shape
        self.arrays = tuple(allocate((self.plan.n_items, *field.shape), field.dtype) for field in self.fields or ())

    @property
    def shape(self) -> Any:
        """What was handed to `allocate`."""
        return self.fields, self.single

    @property
    def asked(self) -> str:
        """That rows are asked for, and of which fields."""
        if self.fields is None:
            return f"rows of dtype {self.dtype or 'any'}, shape {'any' if self.item_shape is None else self.item_shape}"
        return f"rows of {'' if self.single else 'a tuple of '}{', '.join(map(str, self.fields))}"

    def span(self, first: int, stop: int) -> slice:
        """Return the items of the blocks."""
        return slice(first * self.plan.block_items, min(stop * self.plan.block_items, self.plan.n_items))

    def rows(self, block: Block) -> Any:
        """Return the rows of a block, one view or a tuple of them."""
        assert self.arrays is not None
        rows = tuple(array[block.start : block.stop] for array in self.arrays)
        return rows[0] if self.single else rows

    def store(self, result: Any, block: Block) -> bool:
        """Write the rows of a block.

        Raises
        ------
        ResultError
            If they have another number, shape or dtype than the output's.
        """
        assert self.arrays is not None
        parts = (result,) if self.single else result
        if self.single == isinstance(result, tuple) or len(parts) != len(self.arrays):
            wanted = "one array" if self.single else f"a tuple of {len(self.arrays)} arrays"
            raise ResultError(f"expected {wanted}, got {_shown(result)}")
        for array, part in zip(self.arrays, parts, strict=True):
            rows = array[block.start : block.stop]
            value = _as_array(part)
            if value.shape != rows.shape or (
                value.dtype != array.dtype
                and not (self.casts and np.can_cast(value.dtype, array.dtype, casting="same_kind"))
            ):
                raise ResultError(f"expected {array.dtype} {rows.shape}, got {_shown(part)}")
            rows[...] = value
        return True

    def keep(self, index: int, result: Any) -> None:
        """Fail: rows always have a place."""
        raise AssertionError

    def omit(self, block: Block) -> None:
        """Set the rows of a block to zero."""
        self.omitted.add(block.index)
        for array in self.arrays or ():
            array[block.start : block.stop] = np.zeros((), array.dtype)

    def result(self) -> Any:
        """Return the whole output."""
        assert self.arrays is not None
        return self.arrays[0] if self.single else self.arrays


# Stands in the tree for a block without a result: combined with anything, it gives the other.
_NOTHING = object()


class Partials:
    """The output of `reduce_blocks`: one partial per block, combined over a tree that only the blocks fix.

    Numbers, arrays, and tuples and dicts of them go to row i of shared arrays, one array per number.
    Anything else, and a partial that is unlike block 0's, travels to the caller pickled.
    """

    def __init__(self, plan: Plan, combine: Combine | None = None):
        self.n_blocks = plan.n_blocks
        self.combine = combine
        self.fields: tuple[Field, ...] | None = None
        self.like: Any = None
        self.arrays: tuple[npt.NDArray[Any], ...] | None = None
        self.odd: dict[int, Any] = {}
        self.omitted: set[int] = set()
        self._kind: Any = None  # of the partials where each is one number; a store then costs 50 ns

    def __getstate__(self) -> dict[str, Any]:
        # The workers need neither the combining function nor what the caller keeps.
        return {**self.__dict__, "combine": None, "odd": {}, "arrays": None, "_kind": None}

    def shape_of(self, result: Any, block: Block) -> Any:
        """Return the structure of a partial; None if it does not consist of numbers."""
        return _structure(result)

    def allocate(self, shape: Any, allocate: Allocate) -> None:
        """Make one array of n_blocks rows per number of a partial."""
        self.like = shape
        fields = [leaf.field for leaf in ([] if shape is None else _leaves(shape))]
        self.arrays = tuple(allocate((self.n_blocks, *field.shape), field.dtype) for field in fields)
        if type(shape) is _Leaf and shape.kind in (int, float):
            self._kind, self._numbers = shape.kind, memoryview(self.arrays[0].data)

    @property
    def shape(self) -> Any:
        """What was handed to `allocate`."""
        return self.like

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
        if type(result) is self._kind:
            try:
                self._numbers[block.index] = result
            except ValueError:  # an int of more than 64 bits
                return False
            return True
        if self.like is None or _structure(result) != self.like:
            return False
        assert self.arrays is not None
        for array, leaf in zip(self.arrays, _leaves(result), strict=True):
            array[block.index] = leaf
        return True

    def keep(self, index: int, result: Any) -> None:
        """Keep a partial that travelled."""
        self.odd[index] = result

    def omit(self, block: Block) -> None:
        """Leave a block out of the tree."""
        self.omitted.add(block.index)

    def result(self) -> Any:
        """Combine the partials of all blocks, neighbours first: ((0 1) (2 3)) ((4 5) 6)."""
        if self.combine is None and self.like is not None and not self.odd and not self.omitted:
            assert self.arrays is not None
            return _assemble(self.like, iter([_sum_tree(array, leaf) for array, leaf in self._columns()]))
        partials = [_NOTHING if i in self.omitted else self._partial(i) for i in range(self.n_blocks)]
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
# container keeps its own type and keys. Compared with == to tell whether a partial fits its row.


@dataclass(frozen=True, slots=True)
class _Leaf:
    kind: type  # bool, int, float, complex; np.generic for NumPy scalars, np.ndarray for arrays
    field: Field


_PYTHON_NUMBERS = {
    bool: _Leaf(bool, Field(np.dtype(bool), ())),
    int: _Leaf(int, Field(np.dtype(np.int64), ())),
    float: _Leaf(float, Field(np.dtype(np.float64), ())),
    complex: _Leaf(complex, Field(np.dtype(np.complex128), ())),
}


def _structure(value: Any) -> Any:
    kind = type(value)
    leaf = _PYTHON_NUMBERS.get(kind)
    if leaf is not None:
        return leaf if kind is not int or -(2**63) <= value < 2**63 else None
    if isinstance(value, np.generic):
        return None if value.dtype.hasobject else _Leaf(np.generic, Field(value.dtype, ()))
    if isinstance(value, np.ndarray) and not is_masked(value):
        return None if value.dtype.hasobject else _Leaf(np.ndarray, Field(value.dtype, value.shape))
    if kind is tuple:
        parts = tuple(map(_structure, value))
        return None if None in parts else parts
    if kind is dict:
        entries = {key: _structure(part) for key, part in value.items()}
        return None if None in entries.values() else entries
    return None


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


def _unboxed(row: Any, leaf: _Leaf) -> Any:
    if leaf.kind is np.ndarray:
        return np.array(row)
    return row if leaf.kind is np.generic else row.item()


def _sum_tree(rows: npt.NDArray[Any], leaf: _Leaf) -> Any:
    """Add the rows pairwise, neighbours first, level by level: the bits of the tree, at NumPy's speed."""
    if leaf.kind in (int, bool):  # exact in any order, and Python's integers do not wrap
        return sum(rows.tolist()) if len(rows) > 1 else leaf.kind(rows[0])
    rows = np.array(rows) if len(rows) == 1 else rows
    while len(rows) > 1:
        n_pairs = len(rows) // 2
        pairs = rows[0 : 2 * n_pairs : 2] + rows[1 : 2 * n_pairs : 2]
        rows = pairs if len(rows) % 2 == 0 else np.concatenate([pairs, rows[-1:]])
    return _unboxed(rows[0], leaf)


def _as_array(value: Any) -> npt.NDArray[Any]:
    array = np.asarray(value)
    if array.dtype.hasobject:
        raise ResultError(f"expected an array of numbers, got {_shown(value)}")
    return array


def _shown(value: Any) -> str:
    if isinstance(value, (np.ndarray, np.generic)):
        return f"{value.dtype} {value.shape}"
    if isinstance(value, tuple):
        return f"a tuple of {len(value)}"
    return "None" if value is None else f"{type(value).__name__} {value!r:.60}"
