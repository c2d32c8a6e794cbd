"""Cut an index space into blocks, and blocks into chunks, as a value.

A *block* is a fixed number of consecutive items: the unit of identity. It depends on the problem
only, so nothing that a machine or a scheduler does can change a result. A *chunk* is a run of
consecutive blocks that one worker claims at once: the unit of scheduling.

    items   0 ─────────────────────────────────────────────────────────────── n_items
    blocks  │ 0 │ 1 │ 2 │ 3 │ 4 │ 5 │ 6 │ 7 │ 8 │ 9 │10 │11 │12 │13 │14 │15│   (the last may be short)
    chunks  │       0       │     1     │     2     │   3   │   4   │ 5 │ 6 │   ("guided": they shrink)
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from parcompute.values import views

SCHEDULES = ("static", "dynamic", "guided")

# A block's working set should stay in a core's private L2 cache (256 KiB to 2 MiB on machines of the
# last decade) together with the kernel's temporaries; docs/decisions/0003-block-size.md has the curve.
BLOCK_BYTES = 512 * 1024


class Block(NamedTuple):  # and no frozen dataclass: one is made per kernel call, in a third of the time
    """A fixed run of consecutive items, with the items of its neighbours that its kernel may read.

    Attributes
    ----------
    index : int
        Number of the block, from 0.
    start, stop : int
        Its items are ``start, ..., stop - 1``.
    halo_before, halo_after : int
        Items of the neighbours that the kernel receives before ``start`` and from ``stop`` on; less
        than the halo asked for at the two ends of the index space.

    Examples
    --------
    >>> block = Block(1, start=4, stop=8, halo_before=1, halo_after=1)
    >>> block.size, block.reach, block.core
    (4, slice(3, 9, None), slice(1, 5, None))
    """

    index: int  # type: ignore[assignment]  # a tuple has a method of that name, which nobody misses
    start: int
    stop: int
    halo_before: int = 0
    halo_after: int = 0

    @property
    def size(self) -> int:
        """Number of items."""
        return self.stop - self.start

    @property
    def reach(self) -> slice:
        """The items that the kernel receives: its own and the halo."""
        return slice(self.start - self.halo_before, self.stop + self.halo_after)

    @property
    def core(self) -> slice:
        """Where the block's own items stand within what the kernel receives."""
        return slice(self.halo_before, self.halo_before + self.size)


_new_block = tuple.__new__


@dataclass(frozen=True, slots=True)
class Schedule:
    """How chunks are cut and handed out, in OpenMP's words.

    Attributes
    ----------
    kind : {"static", "dynamic", "guided"}
        ``static``: chunk k belongs to worker k mod n_workers. ``dynamic``: chunks of equal size, claimed.
        ``guided``: chunks that shrink with what is left, claimed.
    chunk_blocks : int or None
        Blocks per chunk (the smallest, for ``guided``). None: for ``static`` one chunk per worker,
        otherwise 1.

    Examples
    --------
    >>> Schedule.parse("dynamic,16")
    Schedule(kind='dynamic', chunk_blocks=16)
    >>> str(Schedule.parse("guided"))
    'guided'
    """

    kind: str
    chunk_blocks: int | None = None

    @classmethod
    def parse(cls, text: str | Schedule) -> Schedule:
        """Read ``"kind"`` or ``"kind,chunk_blocks"``, as ``OMP_SCHEDULE`` writes it.

        Raises
        ------
        TypeError
            If `text` is no string.
        ValueError
            If the kind is unknown or the chunk size is not a whole number of at least 1.
        """
        if isinstance(text, Schedule):
            return text
        if not isinstance(text, str):
            raise TypeError(f"schedule={text!r} is {type(text).__name__}; pass one of {', '.join(SCHEDULES)}")
        kind, comma, size = (part.strip() for part in text.partition(","))
        if kind not in SCHEDULES:
            raise ValueError(
                f"schedule={text!r} is unknown; pass one of {', '.join(SCHEDULES)}, or with a chunk size: 'dynamic,16'"
            )
        if not comma:
            return cls(kind)
        if not size.isdecimal() or int(size) < 1:
            raise ValueError(f"schedule={text!r}: the chunk size is {size!r}; pass a number of blocks of at least 1")
        return cls(kind, int(size))

    def __str__(self) -> str:
        return self.kind if self.chunk_blocks is None else f"{self.kind},{self.chunk_blocks}"

    def edges(self, n_blocks: int, n_workers: int) -> npt.NDArray[np.int64]:
        """Cut blocks into chunks.

        Returns
        -------
        ndarray of int64, shape (n_chunks + 1,)
            Chunk k is the blocks ``edges[k], ..., edges[k + 1] - 1``.
        """
        if self.kind == "guided":
            return _guided_edges(n_blocks, n_workers, self.chunk_blocks or 1)
        if self.kind == "static" and self.chunk_blocks is None:
            n_chunks = min(n_workers, n_blocks)
            return np.arange(n_chunks + 1, dtype=np.int64) * n_blocks // n_chunks
        edges = np.arange(0, n_blocks + (size := self.chunk_blocks or 1), size, dtype=np.int64)
        edges[-1] = n_blocks
        return edges


def _guided_edges(n_blocks: int, n_workers: int, smallest: int) -> npt.NDArray[np.int64]:
    # Half of an equal share of what is left (Polychronopoulos & Kuck 1987 take the whole): the
    # first chunks then cannot outlast the rest of the job even if their blocks cost twice the mean.
    edges = [0]
    while (left := n_blocks - edges[-1]) > 0:
        edges.append(edges[-1] + min(left, max(smallest, left // (2 * n_workers))))
    return np.array(edges, dtype=np.int64)


def block_items_for(item_bytes: int) -> int:
    """Choose the items per block from the bytes per item, and from nothing else.

    Parameters
    ----------
    item_bytes : int
        Bytes of one item over all inputs; 0 for a job without arrays, whose items are then taken to
        be one float64 each.

    Returns
    -------
    int
        At least 1.

    Examples
    --------
    >>> block_items_for(8), block_items_for(0), block_items_for(10**9)
    (65536, 65536, 1)
    """
    return max(1, BLOCK_BYTES // (item_bytes or 8))


@dataclass(frozen=True, eq=False)
class Plan:
    """The blocks of a job and the chunks they are claimed in, decided before anything runs.

    Make one with `Plan.cut`. The union of all chunks' blocks holds every block exactly once, and the
    union of all blocks holds every item exactly once. An empty index space is one empty block, so
    that a kernel can say what an empty result looks like.

    Attributes
    ----------
    n_items, block_items : int
        Size of the index space, and of every block but the last.
    halo : int
        Items of the neighbours that a kernel receives on each side.
    schedule : Schedule
        How the chunks were cut, and how they are handed out.
    n_workers : int
        For how many workers.
    edges : ndarray of int64, shape (n_chunks + 1,), read-only
        Chunk k is the blocks ``edges[k], ..., edges[k + 1] - 1``.
    why : str
        The reason for the block size, in words.
    """

    n_items: int
    block_items: int
    halo: int
    schedule: Schedule
    n_workers: int
    edges: npt.NDArray[np.int64]
    why: str

    @classmethod
    def cut(
        cls,
        n_items: int,
        block_items: int | None = None,
        schedule: str | Schedule = "guided",
        n_workers: int = 1,
        *,
        halo: int = 0,
        item_bytes: int = 0,
        chunk_rows: int = 1,
    ) -> Plan:
        """Cut `n_items` into blocks and the blocks into chunks.

        Parameters
        ----------
        n_items : int
            Size of the index space, at least 0.
        block_items : int, optional
            Items per block; None chooses from `item_bytes` only (see `block_items_for`).
        schedule : str or Schedule
            See `Schedule`.
        n_workers : int
            Workers that will claim.
        halo : int
            Items of each neighbour that a kernel receives on either side.
        item_bytes : int
            Bytes of one item over all inputs.
        chunk_rows : int
            Blocks are whole multiples of so many items: chunks of a file, each of which one worker writes.

        Raises
        ------
        TypeError, ValueError
            If a number is not whole or out of its range, or blocks would cut chunks of a file.

        Examples
        --------
        >>> plan = Plan.cut(1_000_000, 4_096, "guided", n_workers=8)
        >>> plan.n_blocks, plan.n_chunks, plan.block(244)
        (245, 67, Block(index=244, start=999424, stop=1000000, halo_before=0, halo_after=0))
        """
        n_items = whole("n_items", n_items, at_least=0)
        n_workers = whole("n_workers", n_workers, at_least=1)
        halo = whole("halo", halo, at_least=0)
        schedule = Schedule.parse(schedule)
        if block_items is None:
            block_items = max(1, block_items_for(item_bytes) // chunk_rows) * chunk_rows
            each = f"items of {item_bytes} bytes" if item_bytes else "items without arrays, taken as 8 bytes each"
            limit = f"{BLOCK_BYTES // 1024} KiB"
            why = f"{block_items} items per block: the largest that keep a block of {each} within {limit}"
            if chunk_rows > 1:
                why = (
                    f"{block_items} items per block: chunks of {chunk_rows} rows of out, a block of {each} near {limit}"
                )
        else:
            block_items = whole("block_items", block_items, at_least=1)
            why = f"{block_items} items per block: as asked"
            if block_items % chunk_rows and block_items < n_items:
                fits = -(-block_items // chunk_rows) * chunk_rows
                raise ValueError(
                    f"block_items={block_items} cuts chunks of out, which have {chunk_rows} rows, and two workers "
                    f"would write to one; pass block_items={fits}, another multiple of {chunk_rows}, or None"
                )
        n_blocks = max(1, -(-n_items // block_items))
        edges = schedule.edges(n_blocks, n_workers)
        edges.flags.writeable = False
        return cls(n_items, block_items, halo, schedule, n_workers, edges, why)

    def adding(self, why: str) -> Plan:
        """Return the same plan with one more reason."""
        plan = object.__new__(Plan)  # a fifth of the time of `replace`
        plan.__dict__.update(self.__dict__, why=f"{self.why}; {why}")
        return plan

    def portion(self, first: int, stop: int) -> Plan:
        """Return the same with chunks of blocks ``first, ..., stop - 1`` only."""
        edges = first + self.schedule.edges(stop - first, self.n_workers)
        edges.flags.writeable = False
        return replace(self, edges=edges)

    def first(self, n_blocks: int, edges: npt.NDArray[np.int64]) -> Plan:
        """Return the plan of the first blocks, which were computed in these chunks."""
        if n_blocks == self.n_blocks:
            why = f"{self.why}; in portions of 1, 1, 2, 4, … blocks"
        else:
            why = f"{self.why}; enough after {n_blocks} of {self.n_blocks} blocks"
        return replace(self, n_items=min(n_blocks * self.block_items, self.n_items), edges=edges, why=why)

    @functools.cached_property
    def n_blocks(self) -> int:
        """Number of blocks, at least 1."""
        return max(1, -(-self.n_items // self.block_items))

    @property
    def n_chunks(self) -> int:
        """Number of chunks, at least 1."""
        return len(self.edges) - 1

    @property
    def block(self) -> Callable[[int], Block]:
        """The function that returns block `index`, ``0 <= index < n_blocks``; for many, get it once."""
        return block_of(self.n_items, self.block_items, self.halo)

    def chunk(self, index: int) -> range:
        """Return the block indices of chunk `index`."""
        return range(int(self.edges[index]), int(self.edges[index + 1]))

    def blocks(self) -> Iterator[Block]:
        """Return all blocks in order."""
        return map(self.block, range(self.n_blocks))

    def __str__(self) -> str:
        sizes = np.diff(self.edges)
        return (
            f"{self.n_items} items in {self.n_blocks} blocks, {self.n_chunks} chunks of {sizes.max()} to "
            f"{sizes.min()} blocks ({self.schedule}, {self.n_workers} workers); {self.why}"
        )

    def _repr_html_(self) -> str:
        sizes = np.diff(self.edges)
        return views.facts(
            {
                "items": self.n_items,
                "blocks": f"{self.n_blocks} of {self.block_items} items" + f", halo {self.halo}" * (self.halo > 0),
                "chunks": f"{self.n_chunks} of {sizes.max()} to {sizes.min()} blocks",
                "schedule": f"{self.schedule}, {self.n_workers} workers",
                "why": self.why,
            }
        )


def block_of(n_items: int, block_items: int, halo: int, first: int = 0) -> Callable[[int], Block]:
    """Return the function that returns block ``first + index`` of so many items.

    Examples
    --------
    >>> block_of(10, 4, halo=1)(1)
    Block(index=1, start=4, stop=8, halo_before=1, halo_after=1)
    """
    new = _new_block

    def block(index: int) -> Block:
        index += first
        start = index * block_items
        stop = start + block_items
        if stop > n_items:
            stop = n_items
        if not halo:
            return new(Block, (index, start, stop, 0, 0))  # a third of the time of Block(...)
        return Block(index, start, stop, min(halo, start), min(halo, n_items - stop))

    return block


def runs(wanted: npt.NDArray[np.bool_]) -> list[tuple[int, int]]:
    """Return the runs of True: the place of the first, and the one behind the last.

    Examples
    --------
    >>> runs(np.array([True, False, True, True]))
    [(0, 1), (2, 4)]
    """
    edges = np.flatnonzero(np.diff(wanted.astype(np.int8), prepend=0, append=0))
    return list(zip(edges[0::2].tolist(), edges[1::2].tolist(), strict=True))


def whole(name: str, value: Any, *, at_least: int) -> int:
    """Return `value` as an int, or say what it should have been.

    Raises
    ------
    TypeError
        If `value` is not a whole number (a bool is none).
    ValueError
        If it is below `at_least`.
    """
    if isinstance(value, (bool, np.bool_)) or not hasattr(value, "__index__"):
        raise TypeError(f"{name}={value!r} is {type(value).__name__}; pass a whole number of at least {at_least}")
    number = int(value.__index__())
    if number < at_least:
        raise ValueError(f"{name}={number} is out of range; pass at least {at_least}")
    return number
