"""Who takes the next chunk, and what happens to the chunks of a dead worker.

A *pass* is one walk of all workers over a list of chunks. Each worker claims chunks until none is left
and says so. Whatever is then not marked done was lost with a dead worker, and makes up the next pass, one
block per chunk. So the parent never has to know who held what at the moment of a death.

Claims are the file offset of a file that all workers have open: ``lseek(fd, 1, SEEK_CUR)`` is one system call
of 0.3 µs that hands out each number once, and no process can die holding it.
"""

from __future__ import annotations

import errno
import functools
import itertools
import os
import pickle
import struct
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from parcompute.memory import segments, shared
from parcompute.values.blocks import Plan
from parcompute.values.timeline import CHUNK_DTYPE

# What stands in the place of a block before a worker has begun its walk, and between two chunks of it.
NO_BLOCK, BETWEEN = -1, -2

# Marks of a block; no other value ever stands there.
WAITING, DONE, FAILED = 0, 1, 2


class FileClaims:
    """A counter that processes share: the offset of an open file without a name.

    Parameters
    ----------
    fd : int, optional
        Of the file, in a worker; None makes a new one.
    """

    def __init__(self, fd: int | None = None) -> None:
        self.fd = _unnamed_file() if fd is None else fd

    def reset(self) -> None:
        """Begin again at 0; no worker may be claiming."""
        os.lseek(self.fd, 0, os.SEEK_SET)

    @property
    def n_taken(self) -> int:
        """How many numbers have been taken, those that were too high too."""
        return os.lseek(self.fd, 0, os.SEEK_CUR)

    def below(self, n: int) -> Iterator[int]:
        """Take numbers until one is not below `n`, each as it is asked for; no two in any process get the same."""
        # Without a line of Python per number.
        one_more = iter(functools.partial(os.lseek, self.fd, 1, os.SEEK_CUR), None)
        return map((-1).__add__, itertools.takewhile((n + 1).__gt__, one_more))

    def close(self) -> None:
        """Close the file."""
        os.close(self.fd)


class FileTokens(FileClaims):
    """Leaves to begin something, each of which one process takes: the same offset, counted down to 0."""

    def give(self) -> None:
        """Let one more be taken."""
        os.lseek(self.fd, 1, os.SEEK_CUR)

    def taken(self) -> bool:
        """Take one, unless there is none."""
        try:
            os.lseek(self.fd, -1, os.SEEK_CUR)
        except OSError as error:
            if error.errno != errno.EINVAL:
                raise
            return False
        return True


class ThreadClaims:
    """The same counter for the threads of one process."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._numbers = itertools.count()

    def _take(self) -> int:
        with self._lock:  # next() alone would do under the GIL, but not without it
            return next(self._numbers)

    def below(self, n: int) -> Iterator[int]:
        """Take numbers until one is not below `n`, each as it is asked for."""
        return itertools.takewhile(n.__gt__, iter(self._take, None))


@dataclass(frozen=True, eq=False)
class Pass:
    """One walk of all workers over a list of chunks.

    Attributes
    ----------
    number : int
        0 for the plan itself, then one more for each time that lost blocks are handed out again.
    n_chunks : int
        Length of the list.
    plan : Plan
        Of the job.
    lost : ndarray of int64, shape (n_chunks,), or None
        The block of each chunk; None where the chunks are the plan's.
    alone : bool
        Whether one thread only of each worker process takes part, so that a death has one block to blame.
    """

    number: int
    n_chunks: int
    plan: Plan
    lost: npt.NDArray[np.int64] | None = None
    alone: bool = False

    @classmethod
    def first(cls, plan: Plan) -> Pass:
        """Return the walk over the plan's own chunks."""
        return cls(0, plan.n_chunks, plan)

    def again(self, unfinished: npt.NDArray[np.int64], *, alone: bool = False) -> Pass:
        """Return the walk over lost blocks; at most as many at once as the board has rows."""
        lost = unfinished[: rows_for(self.plan)]
        return Pass(self.number + 1, len(lost), self.plan, lost, alone)

    def spans(self) -> tuple[memoryview, memoryview]:
        """Return the first block of each chunk, and the one behind its last.

        As memoryviews, which give a number in a quarter of an ndarray's time.
        """
        if self.lost is None:
            edges = memoryview(self.plan.edges.data)
            return edges[:-1], edges[1:]
        return memoryview(self.lost.data), memoryview((self.lost + 1).data)

    def chunk_in_plan(self, chunk: int) -> int:
        """Return the plan's number of a chunk."""
        if self.lost is None:
            return chunk
        return int(np.searchsorted(self.plan.edges, self.lost[chunk], side="right")) - 1

    def claimed(self, worker: int, claims: FileClaims | ThreadClaims) -> Iterator[int]:
        """Return the chunks of one worker, each claimed when it is asked for.

        Under ``static`` a chunk belongs to a worker from the start, and nothing is claimed; a lost block
        goes to whoever comes first all the same.
        """
        if self.is_claimed:
            return claims.below(self.n_chunks)
        return iter(range(worker, self.n_chunks, self.plan.n_workers))

    @property
    def is_claimed(self) -> bool:
        """Whether any worker may compute any chunk."""
        return self.plan.schedule.kind != "static" or self.lost is not None


def rows_for(plan: Plan) -> int:
    """Return how many rows a board needs: one per chunk, and enough for many lost blocks to be chunks of their own."""
    return max(plan.n_chunks, min(plan.n_blocks, 1024))


class Board:
    """What the workers of one job write for the parent to read, whatever becomes of them.

    One piece of memory: a stop flag, each worker's current block and since when, the timeline's row of each
    chunk, and a mark per block that is done or has failed. Every mark is one store by its only writer.

    Parameters
    ----------
    n_workers, n_blocks, n_rows : int
        Sizes.
    memory : ndarray of uint8, optional
        Made by another Board of the same sizes; None makes private memory.
    """

    def __init__(self, n_workers: int, n_blocks: int, n_rows: int, memory: npt.NDArray[np.uint8] | None = None) -> None:
        n_head = 8 * (1 + 2 * n_workers)
        rows_end = n_head + CHUNK_DTYPE.itemsize * n_rows
        is_new, self.sizes = memory is None, (n_workers, n_blocks, n_rows)
        self.memory = np.zeros(rows_end + n_blocks, np.uint8) if memory is None else memory
        self._rows: npt.NDArray[np.uint8] = self.memory[n_head:rows_end]
        self.done: npt.NDArray[np.uint8] = self.memory[rows_end : rows_end + n_blocks]
        whole = memoryview(self.memory.data)  # a memoryview stores in 30 ns, an ndarray in 80
        self._packed, self.done_marks = whole[n_head:rows_end], whole[rows_end : rows_end + n_blocks]
        head = whole[:n_head].cast("q")
        self.stop_mark, self.current, self.since_ns = head[:1], head[1 : 1 + n_workers], head[1 + n_workers :]
        if is_new:
            self._nobody_computes()

    @classmethod
    def in_shared_memory(cls, n_workers: int, n_blocks: int, n_rows: int) -> Board:
        """Make a board that other processes can attach."""
        head = 8 * (1 + 2 * n_workers)
        memory = shared.SharedArray.empty(head + CHUNK_DTYPE.itemsize * n_rows + n_blocks, np.uint8)
        board = cls(n_workers, n_blocks, n_rows, memory.view(np.ndarray))
        board.clear()
        return board

    def clear(self) -> None:
        """Make it as new, for another job of the same sizes."""
        self.memory.fill(0)
        self._nobody_computes()

    def _nobody_computes(self) -> None:
        for worker in range(self.sizes[0]):
            self.current[worker] = NO_BLOCK

    @functools.cached_property
    def reference(self) -> bytes:
        """What another process needs to attach the board; see `attached`."""
        return pickle.dumps((self.sizes, shared.reference(self.memory)))

    @classmethod
    def attached(cls, reference: bytes) -> Board:
        """Return the board of another process."""
        (n_workers, n_blocks, n_rows), place = pickle.loads(reference)
        return cls(n_workers, n_blocks, n_rows, shared.attach(place).view(np.ndarray))

    @property
    def stopped(self) -> int:
        """Whether the workers should leave after the block that they compute now."""
        return self.stop_mark[0]

    def stop(self) -> None:
        """Ask the workers to leave."""
        self.stop_mark[0] = 1

    @property
    def stamp(self) -> Callable[..., None]:
        """The function that writes a row of the timeline: ``stamp(row, fields of CHUNK_DTYPE in their order)``."""
        pack, packed, size = _ROW.pack_into, self._packed, _ROW.size

        def stamp(row: int, *values: int) -> None:
            pack(packed, row * size, *values)

        return stamp

    def take_rows(self) -> npt.NDArray[np.void]:
        """Return a copy of all rows, for `written`, and clear them for the next pass."""
        rows = np.frombuffer(self._rows.tobytes(), CHUNK_DTYPE)  # a third of the time of a copy of structured rows
        self._rows.fill(0)
        return rows

    @property
    def n_done(self) -> int:
        """Number of blocks that are done or have failed."""
        return int(np.count_nonzero(self.done))

    @property
    def is_full(self) -> bool:
        """Whether each block is done or has failed."""
        return WAITING not in self.done.tobytes()  # in a third of the time of a count, if there are few

    def unfinished(self) -> npt.NDArray[np.int64]:
        """Return the blocks that are neither done nor failed."""
        return np.flatnonzero(self.done == WAITING)


def written(rows: npt.NDArray[np.void]) -> npt.NDArray[np.void]:
    """Return the rows of a board that have been written."""
    return rows[rows["stored_ns"] > 0]


_ROW = struct.Struct("<qiiqqqq")
assert _ROW.size == CHUNK_DTYPE.itemsize


def _unnamed_file() -> int:
    # It must be a regular file: on the descriptor of memfd_create the kernel does not lock the offset.
    try:
        return os.open(segments.SHM_FOLDER, os.O_TMPFILE | os.O_RDWR | os.O_CLOEXEC, 0o600)
    except (OSError, AttributeError):
        import tempfile  # 5 ms, for systems without such files

        with tempfile.TemporaryFile() as file:
            return os.dup(file.fileno())
