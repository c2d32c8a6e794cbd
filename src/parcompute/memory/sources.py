"""Inputs that live in files: refer to them, open them in the worker, read the rows of a block.

A `numpy.memmap` travels as its path and place in the file, an `h5py.Dataset` as its path and name, a Zarr array as
itself, without its chunks. Each process opens the file itself, once, and reads only the rows of its blocks.
"""

from __future__ import annotations

import mmap
import os
import sys
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from parcompute.memory import segments, shared


class FileReference(NamedTuple):
    """Where in a file a memory-mapped array lies."""

    path: str
    offset: int
    shape: tuple[int, ...]
    strides: tuple[int, ...]
    dtype: np.dtype[Any]
    writeable: bool = False
    private: bool = False  # a copy on write: what is written to it is nobody else's

    @property
    def reach(self) -> int:
        """Bytes from the first to the last; strides are positive (see file_reference)."""
        return sum((n - 1) * stride for n, stride in zip(self.shape, self.strides, strict=True)) + self.dtype.itemsize

    def open(self) -> npt.NDArray[Any]:
        """Map the array."""
        # The mapping must begin at a multiple of the page size.
        page_offset = self.offset % mmap.ALLOCATIONGRANULARITY
        reach = self.reach
        access = mmap.ACCESS_COPY if self.private else mmap.ACCESS_WRITE if self.writeable else mmap.ACCESS_READ
        with open(self.path, "r+b" if self.writeable and not self.private else "rb") as file:
            mapping = mmap.mmap(file.fileno(), page_offset + reach, access=access, offset=self.offset - page_offset)
        return np.ndarray(self.shape, self.dtype, mapping, page_offset, self.strides)


class DatasetReference(NamedTuple):
    """Which dataset of which HDF5 file."""

    path: str
    name: str

    def open(self) -> Any:
        """Open the file of the dataset, read-only; it closes with the dataset.

        Raises
        ------
        OSError
            If the file cannot be opened or lacks the dataset.
        """
        import h5py

        try:
            return h5py.File(self.path, "r")[self.name]
        except (OSError, KeyError) as error:
            raise OSError(
                f"{self.path}: dataset {self.name} cannot be read in a worker: {error}; open the file with mode 'r' "
                "in this program (HDF5 locks a file that is open for writing)"
            ) from error


def file_reference(array: npt.NDArray[Any]) -> FileReference | None:
    """Return where a memory-mapped array, or a slice of one, lies in its file.

    None where the file does not hold what the array shows: no memmap at all, changes that are private
    (``mode="c"``), a file that is gone, a view that runs backwards.
    """
    memmap = _memmap_under(array)
    path = getattr(memmap, "filename", None)
    if memmap is None or path is None or memmap.mode == "c" or not array.size or min(array.strides, default=0) < 0:
        return None
    if not os.path.exists(path):
        return None
    address: int = array.__array_interface__["data"][0]
    offset = address - memmap.__array_interface__["data"][0] + memmap.offset
    return FileReference(os.path.abspath(path), offset, array.shape, array.strides, array.dtype)


def _memmap_under(array: npt.NDArray[Any]) -> np.memmap[Any, Any] | None:
    base: Any = array
    memmap = None
    while isinstance(base, np.ndarray):
        if isinstance(base, np.memmap):
            memmap = base
        base = base.base
    return memmap


def is_dataset(value: Any) -> bool:
    """Tell whether `value` is an h5py dataset, without importing h5py."""
    dataset = getattr(sys.modules.get("h5py"), "Dataset", None)  # not there while another thread imports h5py
    return dataset is not None and isinstance(value, dataset)


def is_zarr(value: Any) -> bool:
    """Tell whether `value` is a Zarr array, without importing zarr."""
    zarr = sys.modules.get("zarr")
    return zarr is not None and isinstance(value, zarr.Array)


def folder_of(array: Any) -> str | None:
    """Return the folder in which the chunks of a Zarr array are files; None for one that lies elsewhere."""
    root = getattr(array.store, "root", None)
    return None if root is None else os.path.join(os.path.abspath(root), array.store_path.path)


def lies_in_memory(array: Any) -> bool:
    """Tell whether a Zarr array is one that only this process sees."""
    return isinstance(array.store, sys.modules["zarr"].storage.MemoryStore)


def lies_in_file(value: Any) -> bool:
    """Tell whether an input is an h5py dataset, a Zarr array or on a memory-mapped file."""
    return is_dataset(value) or is_zarr(value) or _memmap_under(value) is not None


def reachable(array: npt.NDArray[Any]) -> shared.Reference | FileReference | None:
    """Return where other processes can write to the memory of an array: shared memory, or a file mapped for writing."""
    if (where := shared.reference(array)) is not None:
        return where
    if not array.flags.writeable or (place := file_reference(array)) is None:
        return None
    return place._replace(writeable=True)


def overlap(out: Any, array: Any) -> bool:
    """Tell whether an output may write to what an input reads: the same memory, or the same place of a file."""
    if isinstance(out, np.ndarray) and isinstance(array, np.ndarray):
        return np.may_share_memory(out, array) or _overlap_in_file(file_reference(out), file_reference(array))
    if is_dataset(out) and is_dataset(array):
        return bool(out == array)
    return is_zarr(out) and is_zarr(array) and out.store_path == array.store_path


def _overlap_in_file(one: FileReference | None, other: FileReference | None) -> bool:
    if one is None or other is None or not os.path.samefile(one.path, other.path):
        return False
    return one.offset < other.offset + other.reach and other.offset < one.offset + one.reach


def is_masked(value: Any) -> bool:
    """Tell whether a value is a masked array, without loading numpy.ma: 40 ms that nobody else wants to pay."""
    ma = sys.modules.get("numpy.ma")
    return ma is not None and isinstance(value, ma.MaskedArray)


def is_plain(value: Any, *, above: int) -> bool:
    """Tell whether a value is an array of numbers of more than so many bytes, and nothing more than that."""
    # A subclass may hold more than its items, as numpy.ma does: it knows how to pickle itself.
    return (
        type(value) in (np.ndarray, np.memmap, shared.SharedArray)
        and value.nbytes > above
        and not value.dtype.hasobject
    )


def refer(value: Any, *, share_above: int = sys.maxsize) -> tuple[Any, Any] | None:
    """Say how an array-like value travels to a worker.

    Parameters
    ----------
    value : object
        Anything that may sit in a job.
    share_above : int
        Plain arrays of more bytes are copied into shared memory, each into a segment of its own.

    Returns
    -------
    (reference, keep_alive) or None
        What is sent in its place, and what must live here until the worker has opened it; None for a
        value that travels as it is.
    """
    if is_dataset(value):
        if value.file.mode == "r" and value.file.driver in ("sec2", "stdio"):
            return DatasetReference(os.path.abspath(value.file.filename), value.name), None
        # Only this process sees what is written and not yet flushed, or lives in memory.
        return _shared(shared.share(value[()]))
    if is_zarr(value) and lies_in_memory(value):
        return _shared(shared.share(value[...]))
    if not is_plain(value, above=-1):
        return None
    if shared.reference(value) is not None:
        return _shared(value)
    if (place := file_reference(value)) is not None:
        return place, None
    if value.nbytes > share_above and segments.descriptors_left():
        return _shared(shared.share(value))
    return None


def portable(array: Any) -> Any:
    """Return an input that any pickle can send: what lies in a file as its reference, an array as itself."""
    if is_dataset(array):
        where, shared_copy = refer(array, share_above=0) or (None, array)
        return where if isinstance(where, DatasetReference) else shared_copy
    if is_zarr(array):
        return array[...] if lies_in_memory(array) else array
    if _memmap_under(array) is not None:
        # joblib would map the file of any memmap again, and then gets a transposed view wrong, misses changes that
        # are private (mode "c"), and reaches outside of the mapping for a view that runs backwards.
        return file_reference(array) or np.array(array)
    return array


def open_reference(where: Any) -> Any:
    """Return what a reference refers to, read-only unless it is private or says otherwise, opened in this process."""
    return shared.attach(where).view(np.ndarray) if isinstance(where, shared.Reference) else where.open()


def _shared(array: npt.NDArray[Any]) -> tuple[shared.Reference | None, npt.NDArray[Any]]:
    return shared.reference(array, writeable=False), array
