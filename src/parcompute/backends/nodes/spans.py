"""A span of a job: a run of its consecutive blocks, as a job of its own for one node.

    job     │ 0 │ 1 │ 2 │ 3 │ 4 │ 5 │ 6 │ 7 │ 8 │
    span                │ 3 │ 4 │ 5 │ 6 │            its blocks keep their numbers, items and random streams;
    rows                │ 0 │ 1 │ 2 │ 3 │            its arrays hold nothing but their rows

So what comes of a block is what would come of it in the whole job, and nobody needs memory for the rest.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import numpy.typing as npt

from parcompute.jobs.job import Job
from parcompute.jobs.outputs import Rows
from parcompute.jobs.partials import Partials
from parcompute.jobs.world import World
from parcompute.values.blocks import Block, Plan, block_of


@dataclass(frozen=True, eq=False)
class SpanPlan(Plan):
    """The blocks ``first, ..., first + n_blocks - 1`` of a larger plan; `n_items` counts theirs only.

    Attributes
    ----------
    first_block : int
        Its number.
    n_items_in_all : int
        Of the larger plan, at whose end a block may be short and have less of a halo.
    """

    first_block: int = 0
    n_items_in_all: int = 0

    @classmethod
    def of(cls, plan: Plan, first: int, stop: int, n_workers: int) -> SpanPlan:
        """Cut the blocks ``first, ..., stop - 1`` of a plan into chunks for so many workers."""
        items = items_of(plan, first, stop)
        edges = plan.schedule.edges(stop - first, n_workers)
        n_items = items.stop - items.start
        return cls(n_items, plan.block_items, plan.halo, plan.schedule, n_workers, edges, plan.why, first, plan.n_items)

    @property
    def block(self) -> Callable[[int], Block]:
        """The function that returns a block of the span; the block has its number in the larger plan."""
        return block_of(self.n_items_in_all, self.block_items, self.halo, self.first_block)


def items_of(plan: Plan, first: int, stop: int) -> slice:
    """Return the items of the blocks ``first, ..., stop - 1``."""
    return slice(min(first * plan.block_items, plan.n_items), min(stop * plan.block_items, plan.n_items))


def reach_of(plan: Plan, first: int, stop: int) -> slice:
    """Return the items that their kernels receive: theirs, and the halo."""
    items = items_of(plan, first, stop)
    return slice(max(items.start - plan.halo, 0), min(items.stop + plan.halo, plan.n_items))


class SpanRows(Rows):
    """The rows of a span: blocks come with their numbers, and have the places of the span."""

    first: int
    begin: int  # its first item

    @classmethod
    def of(cls, rows: Rows, plan: SpanPlan) -> SpanRows:
        """Return the rows of a span of the job that has these."""
        made = cls(plan, rows.fields, rows.single, rows.dtype, rows.item_shape)
        made.casts, made.first, made.begin = rows.casts, plan.first_block, plan.first_block * plan.block_items
        return made

    def _here(self, block: Block) -> Block:
        return Block(block.index - self.first, block.start - self.begin, block.stop - self.begin)

    def rows(self, block: Block) -> Any:
        """Return the rows of a block."""
        return super().rows(self._here(block))

    def store(self, result: Any, block: Block) -> bool:
        """Write the rows of a block."""
        if self.single and type(result) is np.ndarray and self.arrays:  # the usual case, in half of the time
            begin = self.begin
            rows = self.arrays[0][block.start - begin : block.stop - begin]
            if result.dtype is rows.dtype and result.shape == rows.shape:
                rows[...] = result
                return True
        return super().store(result, self._here(block))

    def omit(self, block: Block) -> None:
        """Set the rows of a block to zero."""
        super().omit(self._here(block))


@dataclass(frozen=True, eq=False)
class Window:
    """Some rows of an input, at the numbers that they have in the whole."""

    rows: npt.NDArray[Any]
    begin: int

    @property
    def dtype(self) -> np.dtype[Any]:
        """Of an item."""
        return self.rows.dtype

    @property
    def shape(self) -> tuple[int, ...]:
        """Of the rows that are here."""
        return self.rows.shape

    def __getitem__(self, reach: slice) -> npt.NDArray[Any]:
        found: npt.NDArray[Any] = self.rows[reach.start - self.begin : reach.stop - self.begin]
        return found


class Abroad(World):
    """The settings of a caller on another host, as it has told them."""

    __slots__ = ("_all",)

    def __init__(self, told: bytes | None) -> None:
        self._all = told

    def told(self, known: bytes | None) -> bytes | None:
        """Return what a worker process has to be told."""
        return self._all


def part(job: Job, first: int, stop: int, n_workers: int, windows: Mapping[int, Window]) -> Job:
    """Return the blocks ``first, ..., stop - 1`` of a job as a job of their own.

    Parameters
    ----------
    job : Job
        The whole.
    first, stop : int
        The span.
    n_workers : int
        Who will compute it.
    windows : mapping of int to Window
        Inputs of which only these rows are here, by their place among the inputs.
    """
    plan = SpanPlan.of(job.plan, first, stop, n_workers)
    outputs: Any = SpanRows.of(job.outputs, plan) if isinstance(job.outputs, Rows) else Partials(plan, first=first)
    inputs = tuple(windows.get(i, array) for i, array in enumerate(job.inputs))
    return replace(job, plan=plan, outputs=outputs, inputs=inputs)
