"""Where results go: what all outputs have in common, and the output rows of a map, in memory and in files.

Rows, and the partials of a reduction, are arrays that nobody can make before the first block has said what a result
looks like: its *shape*. Block 0 decides, so the answer is the same whoever computes first.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt

from parcompute.memory import tables
from parcompute.memory.targets import Target
from parcompute.values.blocks import Block, Plan

Allocate = Callable[[tuple[int, ...], np.dtype[Any]], npt.NDArray[Any]]


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
    def stored(self) -> tuple[Any, ...] | None:
        """What holds the results: the arrays, or what stands for a file in the place of one."""

    @property
    def arrived(self) -> npt.NDArray[np.bool_] | None:
        """In the caller, which blocks are in their place; None if each is when it is marked."""

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
    def kind(self) -> Any:
        """What workers need to know of it before there are arrays, to be compared."""

    @property
    def asked(self) -> str:
        """What is computed and what the caller has fixed of it, in words."""

    def span(self, first: int, stop: int) -> slice:
        """Return which rows of the arrays hold the results of blocks ``first, ..., stop - 1``."""

    def shape_of(self, result: Any, block: Block) -> Any:
        """Return the shape that a result of block 0 gives to the output."""

    def fields_of(self, shape: Any) -> Sequence[Field]:
        """Return the arrays that results of that shape need; ValueError if it is none that `shape_of` returns."""

    def allocate(self, shape: Any, allocate: Allocate) -> None:
        """Make the arrays for results of that shape."""

    def forget_shape(self) -> None:
        """Be as before `allocate`, where that was told nothing that the caller has fixed."""

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
        self.odd: dict[int, Any] = {}  # tables, by block

    def __getstate__(self) -> dict[str, Any]:
        # The arrays travel on their own, since they are the one thing in a job that is written to.
        return {**self.__dict__, "arrays": None, "odd": {}}

    def shape_of(self, result: Any, block: Block) -> Any:
        """Return (fields, single); a table has no fields."""
        if not self.casts and self.item_shape is None and tables.kind_of(result):
            return (), True
        single = not isinstance(result, tuple)
        fields = []
        for part in (result,) if single else result:
            array = _as_array(part)
            if array.ndim == 0 or len(array) != block.size:
                raise ResultError(f"expected {block.size} rows, one per item; got {_shown(part)}")
            shape = array.shape[1:] if self.item_shape is None else self.item_shape
            fields.append(Field(self.dtype or array.dtype, shape))
        return tuple(fields), single

    def fields_of(self, shape: Any) -> Sequence[Field]:
        """Return its fields."""
        # By type, first of all: even to compare what somebody else's pickle has made may read memory that is nobody's.
        if not (type(shape) is tuple and [*map(type, shape)] == [tuple, bool]):
            raise ValueError("it does not look like rows")
        fields: tuple[Field, ...] = shape[0]
        if not all(type(field) is Field for field in fields):
            raise ValueError("it does not look like rows")
        return fields

    def allocate(self, shape: Any, allocate: Allocate) -> None:
        """Make one array of n_items rows per field."""
        self.fields, self.single = shape
        self.arrays = tuple(allocate((self.plan.n_items, *field.shape), field.dtype) for field in self.fields or ())

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
        return self.fields, self.single

    @property
    def kind(self) -> Any:
        """What the caller has fixed."""
        return self.fields, self.single, self.dtype, self.item_shape

    @property
    def asked(self) -> str:
        """That rows are asked for, and of which fields."""
        if self.fields is None:
            return f"rows of dtype {self.dtype or 'any'}, shape {'any' if self.item_shape is None else self.item_shape}"
        return f"rows of {'' if self.single else 'a tuple of '}{', '.join(map(str, self.fields))}"

    def span(self, first: int, stop: int) -> slice:
        """Return the items of the blocks."""
        return slice(first * self.plan.block_items, min(stop * self.plan.block_items, self.plan.n_items))

    def forget_shape(self) -> None:
        """Let block 0 decide again what a result looks like."""
        self.fields, self.arrays, self.odd = None, None, {}

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
        if self.single and type(result) is np.ndarray and self.arrays:  # the usual case, in half of the time
            rows = self.arrays[0][block.start : block.stop]
            if result.dtype is rows.dtype and result.shape == rows.shape:
                rows[...] = result
                return True
        if self.single and not self.arrays:
            if not tables.kind_of(result):
                raise ResultError(f"expected a table, as block 0 has returned one; got {_shown(result)}")
            return False
        for array, value in self._fitting(result, block):
            array[block.start : block.stop] = value
        return True

    def _fitting(self, result: Any, block: Block) -> Iterator[tuple[Any, npt.NDArray[Any]]]:
        """Yield each part of a result, and in what its rows are stored, if it fits there."""
        stored = self.stored or ()
        parts = (result,) if self.single else result
        if self.single == isinstance(result, tuple) or len(parts) != len(stored):
            wanted = "one array" if self.single else f"a tuple of {len(stored)} arrays"
            raise ResultError(f"expected {wanted}, got {_shown(result)}")
        for array, part in zip(stored, parts, strict=True):
            shape = (block.size, *array.shape[1:])
            value = _as_array(part)
            if value.shape != shape or (
                value.dtype != array.dtype
                and not (self.casts and np.can_cast(value.dtype, array.dtype, casting="same_kind"))
            ):
                raise ResultError(f"expected {array.dtype} {shape}, got {_shown(part)}")
            yield array, value

    def keep(self, index: int, result: Any) -> None:
        """Keep a table."""
        self.odd[index] = result

    def omit(self, block: Block) -> None:
        """Set the rows of a block to zero."""
        self.omitted.add(block.index)
        for array in self.arrays or ():
            array[block.start : block.stop] = np.zeros((), array.dtype)

    def finish(self) -> None:
        """Nothing: all is in its place."""

    def result(self) -> Any:
        """Return the whole output."""
        assert self.arrays is not None
        if self.odd:
            return tables.joined([self.odd[index] for index in sorted(self.odd)])
        return self.arrays[0] if self.single else self.arrays


class FileRows(Rows):
    """Rows that are written where they are computed if that can be, and otherwise by the caller, to whom they travel.

    A worker sends the rows of one block, and waits until the caller takes them: if writing is slower than computing,
    no more than a block for each worker is on its way.

    Parameters
    ----------
    plan : Plan
        The blocks.
    fields : sequence of Field
        As the caller has fixed them.
    single : bool
        Whether the kernel returns one array and not a tuple.
    targets : sequence of Target or None
        What each field is written to; None is an array.
    """

    def __init__(self, plan: Plan, fields: Sequence[Field], single: bool, targets: Sequence[Target | None]) -> None:
        super().__init__(plan, fields, single)
        self.targets = tuple(targets)
        self._travel = not all(target is None or target.everywhere for target in targets)
        self._arrived = np.zeros(plan.n_blocks, bool)
        self._self = object()

    def __getstate__(self) -> dict[str, Any]:
        return {**super().__getstate__(), "_arrived": None, "_self": None}

    @property
    def kind(self) -> Any:
        """What the caller has fixed; no two write to the same files."""
        return super().kind, self._self

    @property
    def stored(self) -> tuple[Any, ...] | None:
        """The arrays, and what stands for files, one for each field."""
        if self.arrays is None:
            return None
        arrays = iter(self.arrays)
        return tuple(next(arrays) if target is None else target for target in self.targets)

    @property
    def arrived(self) -> npt.NDArray[np.bool_] | None:
        """Which blocks are in their place; None if they are when they are marked."""
        return self._arrived if self._travel else None

    def allocate(self, shape: Any, allocate: Allocate) -> None:
        """Make the arrays of those fields that lie in no file."""
        fields = zip(self.fields or (), self.targets, strict=True)
        self.arrays = tuple(
            allocate((self.plan.n_items, *field.shape), field.dtype) for field, target in fields if target is None
        )

    def forget_shape(self) -> None:
        """Do nothing: the caller has fixed it."""

    def rows(self, block: Block) -> Any:
        """Return rows to fill: those of an array itself, or such as are stored then."""
        rows = tuple(
            array[block.start : block.stop]
            if isinstance(array, np.ndarray)
            else np.zeros((block.size, *array.shape[1:]), array.dtype)
            for array in self.stored or ()
        )
        return rows[0] if self.single else rows

    def store(self, result: Any, block: Block) -> bool:
        """Write the rows of a block that can be written here; False if others must travel.

        Raises
        ------
        ResultError
            If they have another number, shape or dtype than the output's.
        """
        for place, value in self._fitting(result, block):
            if isinstance(place, np.ndarray) or place.everywhere:
                place[block.start : block.stop] = value.astype(place.dtype, copy=False)
        return not self._travel

    def keep(self, index: int, result: Any) -> None:
        """Write, in the caller, the rows that have travelled."""
        block = self.plan.block(index)
        for place, value in self._fitting(result, block):
            if not (isinstance(place, np.ndarray) or place.everywhere):
                place[block.start : block.stop] = value.astype(place.dtype, copy=False)
        self._arrived[index] = True

    def omit(self, block: Block) -> None:
        """Set the rows of a block to zero."""
        self.omitted.add(block.index)
        for place in self.stored or ():
            place[block.start : block.stop] = np.zeros((block.size, *place.shape[1:]), place.dtype)

    def finish(self) -> None:
        """Write what is held back, when the last block has come."""
        for target in self.targets:
            if target is not None:
                target.finish()


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
