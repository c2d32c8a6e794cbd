"""Outputs that are files and no memory: HDF5 datasets, which one process writes, and Zarr arrays, whose chunks all do.

worker ── rows of a block ──► the caller ── whole chunks, each once ──► HDF5 dataset
worker ── rows of a block, which are whole chunks ────────────────────► Zarr array
"""

from __future__ import annotations

import math
import threading
from typing import Any

import numpy as np
import numpy.typing as npt

from parcompute.memory import sources
from parcompute.values.blocks import runs

# The rows of a chunk of more bytes are not held until all of them are there.
_HELD_BYTES = 2**26


class Target:
    """An array in a file, to which rows are written as the blocks of a job finish.

    Attributes
    ----------
    dtype, shape
        Of the array.
    everywhere : bool
        Whether each process writes by itself. Otherwise the caller does, to whom rows travel.
    """

    everywhere = False

    def __init__(self, array: Any) -> None:
        self._array = array
        self.dtype: np.dtype[Any] = array.dtype
        self.shape: tuple[int, ...] = tuple(map(int, array.shape))

    def __len__(self) -> int:
        return self.shape[0]

    @property
    def nbytes(self) -> int:
        """Bytes of all rows, as they would lie in memory."""
        return math.prod(self.shape) * self.dtype.itemsize

    def __getitem__(self, rows: slice) -> npt.NDArray[Any]:
        found: npt.NDArray[Any] = np.asarray(self._array[rows])
        return found

    def __setitem__(self, rows: slice, content: npt.NDArray[Any]) -> None:
        self._array[rows] = content

    def finish(self) -> None:
        """Write what is held back."""


class DatasetTarget(Target):
    """An HDF5 dataset. HDF5 lets one process write, and takes a chunk as a whole: to the disk, and through a filter.

    Rows of a chunk that the next block completes are held until then, so that none is read again, and packed again.
    """

    def __init__(self, dataset: Any) -> None:
        super().__init__(dataset)
        row_bytes = self.dtype.itemsize * math.prod(self.shape[1:])
        self._rows = dataset.chunks[0] if dataset.chunks else 1
        if self._rows * row_bytes > _HELD_BYTES:
            self._rows = 1
        # By chunk: rows, and which are there.
        self._held: dict[int, tuple[npt.NDArray[Any], npt.NDArray[np.bool_]]] = {}
        self._lock = threading.Lock()

    def __getstate__(self) -> dict[str, Any]:
        return {"dtype": self.dtype, "shape": self.shape}  # a worker only has to know what fits

    def __getitem__(self, rows: slice) -> npt.NDArray[Any]:
        self.finish()
        return super().__getitem__(rows)

    def __setitem__(self, rows: slice, content: npt.NDArray[Any]) -> None:
        start, stop, n = rows.start, rows.stop, self._rows
        with self._lock:
            first = -(-start // n) * n
            last = stop if stop == len(self) else stop // n * n
            if first < last:
                self._array[first:last] = content[first - start : last - start]
            else:  # all of it lies in one chunk, or in two of which it is no whole
                first = last = min(first, stop)
            for part in (slice(start, first), slice(last, stop)):
                if part.start < part.stop:
                    self._hold(part, content[part.start - start : part.stop - start])

    def _hold(self, rows: slice, content: npt.NDArray[Any]) -> None:
        """Keep rows of one chunk until it is complete."""
        chunk = rows.start // self._rows
        begin = chunk * self._rows
        if chunk not in self._held:
            n = min(self._rows, len(self) - begin)
            self._held[chunk] = np.empty((n, *self.shape[1:]), self.dtype), np.zeros(n, bool)
        held, there = self._held[chunk]
        held[rows.start - begin : rows.stop - begin] = content
        there[rows.start - begin : rows.stop - begin] = True
        if there.all():
            self._array[begin : begin + len(held)] = held
            del self._held[chunk]

    def finish(self) -> None:
        """Write what is held back."""
        with self._lock:
            for chunk, (held, there) in self._held.items():
                for first, stop in runs(there):
                    self._array[chunk * self._rows + first : chunk * self._rows + stop] = held[first:stop]
            self._held.clear()


class ZarrTarget(Target):
    """A Zarr array, of which each process writes chunks of its own."""

    def __init__(self, array: Any) -> None:
        super().__init__(array)
        self.everywhere = not sources.lies_in_memory(array)

    def __getstate__(self) -> dict[str, Any]:
        if self.everywhere:
            return self.__dict__
        return {"dtype": self.dtype, "shape": self.shape, "everywhere": False}


def chunk_rows(out: Any) -> int:
    """Return of how many rows blocks must be whole multiples so that no two write to the same chunk of a Zarr array."""
    arrays = filter(sources.is_zarr, out if isinstance(out, tuple) else (out,))
    return math.lcm(*(max(1, (array.shards or array.chunks)[0]) for array in arrays if array.ndim))


def target_of(out: Any) -> Target | None:
    """Return what writes to an HDF5 dataset or a Zarr array; None for anything else.

    Raises
    ------
    ValueError
        If it cannot be written to.
    """
    if sources.is_dataset(out):
        if not out:
            raise ValueError("out is a dataset of a file that is closed; open it with mode 'r+' or 'a'")
        if out.file.mode == "r":
            raise ValueError(f"out is a dataset of {out.file.filename}, open read-only; open it with mode 'r+' or 'a'")
        return DatasetTarget(out)
    if sources.is_zarr(out):
        if out.read_only:
            raise ValueError("out is a Zarr array that is open read-only; open it with mode 'r+' or 'a'")
        return ZarrTarget(out)
    return None
