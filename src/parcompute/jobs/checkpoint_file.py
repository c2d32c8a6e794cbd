"""Finished blocks of a job ↔ HDF5: a file that no kill can damage.

    ┌── HDF5: identity, shape, done, arrays/0 ... ──┬── journal: one record per piece ──┐
    │ made whole, renamed; then only rows and marks │ rows a to b, checksum │ object c  │►
    └───────────────────────────────────────────────┴───────────────────────────────────┘

HDF5 makes the file once, with room for everything, and never writes to it again: results go straight to their place,
and then a record into the journal says which blocks they are of. The journal lies behind the end of what HDF5 knows, so
that it can grow; it alone decides what is finished. docs/decisions/0008-checkpoints.md says why.

    identity     group whose attributes say which job this is
    shape        what the results look like, pickled
    done         uint8, one mark per block: for whoever wants to look; the journal decides
    arrays/0 ... the output rows of a map, or one row per block with the partials of a reduction
    (journal)    behind what HDF5 knows of the file, from byte `journal` (an attribute) on

A record of the journal is a header with a checksum of its own, and for an object its pickle. What follows the last
good record is the torn end of a killed writer, and is cut off.

Anybody may have written the numbers of a file: they are values. A pickle is code: it is read from a file only that
belongs to the caller and that nobody else can write to (docs/explanation/reliability.md).
"""

from __future__ import annotations

import errno
import io
import os
import stat
import struct
import zlib
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from parcompute.machine import atomic, hdf5

FORMAT = "parcompute checkpoint 1"

# Kind, first block, stop, bytes that follow, checksum of the rows or of these bytes; then the header's own checksum.
_HEADER = struct.Struct("<BqqqI")
_CHECKSUM = struct.Struct("<I")
_ROWS, _OBJECT = 1, 2

# Rows in one record: what a kill in the middle of writing costs, and what is computed again if it is damaged.
_RECORD_BYTES = 2**26

_PAGE = 4096

# What the results look like: a pickle of some hundred bytes per array.
_MOST_SHAPE_BYTES = 2**20

Record = tuple[int, int, int, bytes | None]


class CheckpointError(RuntimeError):
    """A checkpoint is of another job, is none at all, or cannot be written."""


def not_to_be_continued(path: Path, why: Exception) -> CheckpointError:
    """Say that a file is no checkpoint."""
    return CheckpointError(
        f"{path}: is no checkpoint that can be continued ({why}); it is left as it is, choose another name"
    )


def create(path: Path, identity: Mapping[str, str], shape: bytes, n_blocks: int, arrays: Sequence[Any]) -> None:
    """Make a file with room for everything, whole or not at all.

    Parameters
    ----------
    path : Path
        Which must not exist.
    identity : mapping of str to str
        Which job it is.
    shape : bytes
        What the results look like, pickled.
    n_blocks : int
        Number of marks.
    arrays : sequence of ndarray or Target
        For whose content there will be room.

    Raises
    ------
    OSError
        If there is too little space, or the name is taken meanwhile.
    """
    import h5py

    image = _Image()
    with h5py.File(image, "w") as file:
        file.attrs["format"] = FORMAT
        file.attrs["journal"] = np.uint64(0)
        attributes = file.create_group("identity").attrs
        for name, value in identity.items():
            attributes[name] = value
        file.create_dataset("shape", data=np.frombuffer(shape, np.uint8))
        _reserve(h5py, file, "done", (n_blocks,), np.dtype(np.uint8))
        group = file.create_group("arrays")
        for n, array in enumerate(arrays):
            _reserve(h5py, group, str(n), array.shape, array.dtype)
    n_bytes = image.size
    with h5py.File(image, "r+") as file:
        file.attrs.modify("journal", np.uint64(n_bytes))
    assert image.size == n_bytes
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        # However open the umask is to the group, nobody else writes to it: see `CheckpointFile.records`.
        with atomic.opened_new(temporary, 0o644) as stream:
            if hasattr(os, "posix_fallocate"):  # a disk that is too small is then too small now
                os.posix_fallocate(stream.fileno(), 0, n_bytes)
            image.write_to(stream.fileno())
            os.fsync(stream.fileno())
        _give_name(temporary, path)
    finally:
        with suppress(OSError):
            temporary.unlink()


def _give_name(temporary: Path, path: Path) -> None:
    try:
        os.link(temporary, path)  # unlike a rename, it never takes the place of a file that has come meanwhile
    except FileExistsError:
        raise
    except OSError:  # a file system without links
        if path.exists():
            raise FileExistsError(f"{path} has been made by another program") from None
        temporary.rename(path)


def _reserve(h5py: Any, group: Any, name: str, shape: tuple[int, ...], dtype: np.dtype[Any]) -> None:
    """Make a dataset whose place is fixed, without writing to it."""
    how = h5py.h5p.create(h5py.h5p.DATASET_CREATE)
    how.set_layout(h5py.h5d.CONTIGUOUS)
    how.set_alloc_time(h5py.h5d.ALLOC_TIME_EARLY)
    how.set_fill_time(h5py.h5d.FILL_TIME_NEVER)
    try:
        kind = h5py.h5t.py_create(dtype, logical=True)
        known = kind.get_size() == dtype.itemsize and kind.dtype == dtype
    except (TypeError, ValueError):
        known = False
    if not known:  # times and text: HDF5 sees bytes
        kind = h5py.h5t.py_create(np.dtype(f"V{max(1, dtype.itemsize)}"), logical=True)
    dataset = h5py.Dataset(h5py.h5d.create(group.id, name.encode(), kind, h5py.h5s.create_simple(shape), how))
    if not known:
        dataset.attrs["dtype"] = str(dtype)


class _Image(io.RawIOBase):
    """A file in memory that holds the pages that were written only.

    HDF5 then never writes to the disk, where it cannot deal with an end of space, and room for rows costs no memory.
    """

    def __init__(self) -> None:
        self.pages: dict[int, bytearray] = {}
        self.size = self.at = 0

    def readable(self) -> bool:
        return True

    writable = seekable = readable

    def seek(self, offset: int, whence: int = os.SEEK_SET) -> int:
        self.at = offset + {os.SEEK_SET: 0, os.SEEK_CUR: self.at, os.SEEK_END: self.size}[whence]
        return self.at

    def tell(self) -> int:
        return self.at

    def truncate(self, size: int | None = None) -> int:
        self.size = self.at if size is None else size
        return self.size

    def readinto(self, buffer: Any) -> int:
        view = memoryview(buffer).cast("B")
        for here, page, start, stop in self._pieces(len(view)):
            view[here : here + stop - start] = self.pages.get(page, bytes(_PAGE))[start:stop]
        self.at += len(view)
        return len(view)

    def write(self, buffer: Any) -> int:
        view = memoryview(buffer).cast("B")
        for here, page, start, stop in self._pieces(len(view)):
            self.pages.setdefault(page, bytearray(_PAGE))[start:stop] = view[here : here + stop - start]
        self.at += len(view)
        self.size = max(self.size, self.at)
        return len(view)

    def _pieces(self, n_bytes: int) -> Iterator[tuple[int, int, int, int]]:
        here = 0
        while here < n_bytes:
            page, start = divmod(self.at + here, _PAGE)
            stop = min(_PAGE, start + n_bytes - here)
            yield here, page, start, stop
            here += stop - start

    def write_to(self, fd: int) -> None:
        """Write the pages into a file."""
        for page, content in self.pages.items():
            _write(fd, content[: self.size - page * _PAGE], page * _PAGE)
        os.ftruncate(fd, self.size)


class CheckpointFile:
    """A file that exists, open for writing in place.

    Attributes
    ----------
    identity : dict of str to str
        Which job it is of.
    shape : bytes
        What the results look like, pickled.
    n_blocks : int
        How many blocks the job has.
    room : list of int
        Bytes of each array.
    blocks_per_record : int
        How many blocks to write at once.

    Raises
    ------
    CheckpointError
        If it is no checkpoint.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        try:
            self.fd = os.open(path, os.O_RDWR | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
        except OSError as error:
            told = ValueError("it is a symbolic link, and none is followed") if error.errno == errno.ELOOP else error
            raise not_to_be_continued(path, told) from error
        try:
            self._read()
        except (OSError, ValueError, KeyError, TypeError, AttributeError, RuntimeError) as error:
            os.close(self.fd)
            raise not_to_be_continued(path, error) from error

    def _read(self) -> None:
        """Find out what is where, from the descriptor that was opened: the name may be another file's by now."""
        import h5py

        status = os.fstat(self.fd)
        if not stat.S_ISREG(status.st_mode):
            raise ValueError("it is no regular file")
        with open(os.dup(self.fd), "rb") as stream, h5py.File(stream, "r") as file:
            if (found := file.attrs.get("format")) != FORMAT:
                raise ValueError(f"its format is {found!r}, not {FORMAT!r}")
            self.identity = {str(name): str(value) for name, value in hdf5.group(file, "identity").attrs.items()}
            self.shape = bytes(hdf5.dataset(file, "shape", _MOST_SHAPE_BYTES)[()].tobytes())
            done, group = hdf5.dataset(file, "done"), hdf5.group(file, "arrays")
            arrays = [hdf5.dataset(group, str(n)) for n in range(len(group))]
            self.n_blocks, self._done_at = len(done), int(done.id.get_offset())
            self._places = [int(array.id.get_offset() or 0) for array in arrays]  # without rows it has no place
            self.room = [array.id.get_storage_size() for array in arrays]
            self._end = self._begin = int(file.attrs["journal"])
        places = zip((self._done_at, *self._places), (self.n_blocks, *self.room), strict=True)
        if any(at + n_bytes > status.st_size for at, n_bytes in places) or not 0 <= self._begin <= status.st_size:
            raise ValueError("it is shorter than it says")
        self.blocks_per_record = max(1, _RECORD_BYTES * self.n_blocks // max(1, sum(self.room)))

    def compare(self, identity: Mapping[str, str]) -> None:
        """Raise CheckpointError, naming the difference, unless this is the identity of the file."""
        for name in [*identity, *self.identity]:
            stored, present = self.identity.get(name, "nothing"), identity.get(name, "nothing")
            if stored != present:
                raise CheckpointError(
                    f"{self.path}: this checkpoint is of another job: {name} was {stored}, and is {present} now; "
                    "delete the file or choose another name"
                )

    def records(self) -> Iterator[Record]:
        """Yield first block, stop, checksum, and for an object its pickle, of each record; cut off a torn end.

        Raises
        ------
        CheckpointError
            If a record is none of this file's blocks; before a pickle of a file that others can write to.
        """
        size = os.fstat(self.fd).st_size
        head = _HEADER.size + _CHECKSUM.size
        at = self._begin
        while at + head <= size:
            header = os.pread(self.fd, head, at)
            kind, first, stop, n_bytes, checksum = _HEADER.unpack_from(header)
            if zlib.crc32(header[: _HEADER.size]) != _CHECKSUM.unpack_from(header, _HEADER.size)[0]:
                break
            if kind not in (_ROWS, _OBJECT) or not 0 <= first < stop <= self.n_blocks or n_bytes < 0:
                raise not_to_be_continued(self.path, ValueError(f"it has results of blocks {first} to {stop}"))
            if at + head + n_bytes > size:
                break
            if kind == _OBJECT:
                self._require_own()
                payload = bytes(_read(self.fd, bytearray(n_bytes), at + head))
                if zlib.crc32(payload) == checksum:
                    yield first, stop, checksum, payload
            else:
                yield first, stop, checksum, None
            at += head + n_bytes
        os.ftruncate(self.fd, at)
        self._end = at

    def _require_own(self) -> None:
        """Refuse pickles, which are code, of a file that somebody else may have written."""
        status = os.fstat(self.fd)
        if status.st_uid != os.geteuid():
            wrong, mend = f"it belongs to user {status.st_uid}, and you are {os.geteuid()}", "make a copy of your own"
        elif status.st_mode & (stat.S_IWGRP | stat.S_IWOTH):
            wrong, mend = f"others than you can write to it (mode {stat.S_IMODE(status.st_mode):o})", "chmod go-w"
        else:
            return
        raise CheckpointError(
            f"{self.path}: has results that are objects, whose writer decides what is run when they are read; "
            f"{wrong}; if you trust all of them, {mend}, else delete the file or choose another name"
        )

    def mark(self, saved: npt.NDArray[np.bool_]) -> int:
        """Bring the marks in line with what was found; return how many were set and are no longer."""
        marks = np.frombuffer(_read(self.fd, bytearray(self.n_blocks), self._done_at), np.uint8)
        n_damaged = int(np.count_nonzero((marks != 0) & ~saved))
        if n_damaged or np.count_nonzero(marks) != np.count_nonzero(saved):
            _write(self.fd, saved.astype(np.uint8), self._done_at)
        return n_damaged

    def read_rows(self, arrays: Sequence[Any], rows: slice) -> int:
        """Read the rows of some blocks into the arrays; return their checksum."""
        checksum = 0
        for array, at in self._parts(arrays, rows):
            part = array[rows] if isinstance(array, np.ndarray) else None
            if part is not None and part.flags.c_contiguous:
                checksum = zlib.crc32(_read(self.fd, _bytes_of(part), at), checksum)
            else:
                content = np.empty((rows.stop - rows.start, *array.shape[1:]), array.dtype)
                checksum = zlib.crc32(_read(self.fd, _bytes_of(content), at), checksum)
                array[rows] = content
        return checksum

    def append_rows(self, arrays: Sequence[Any], rows: slice, first: int, stop: int) -> None:
        """Write these rows of the arrays, and then that they are those of blocks ``first, ..., stop - 1``."""
        checksum = 0
        for array, at in self._parts(arrays, rows):
            content = _bytes_of(np.ascontiguousarray(array[rows]))
            _write(self.fd, content, at)
            checksum = zlib.crc32(content, checksum)
        self._append(_ROWS, first, stop, checksum, b"")

    def append_object(self, index: int, pickled: bytes) -> None:
        """Write the result of one block that has no place in the arrays."""
        self._append(_OBJECT, index, index + 1, zlib.crc32(pickled), pickled)

    def _parts(self, arrays: Sequence[Any], rows: slice) -> Iterator[tuple[Any, int]]:
        """Yield each array of which these rows have a content, and where in the file that lies."""
        for array, at in zip(arrays, self._places, strict=True):
            if array.nbytes and rows.start < rows.stop:
                yield array, at + rows.start * (array.nbytes // len(array))

    def _append(self, kind: int, first: int, stop: int, checksum: int, payload: bytes) -> None:
        header = _HEADER.pack(kind, first, stop, len(payload), checksum)
        record = header + _CHECKSUM.pack(zlib.crc32(header)) + payload
        _write(self.fd, record, self._end)
        self._end += len(record)
        _write(self.fd, b"\1" * (stop - first), self._done_at + first)

    def sync(self) -> None:
        """Return when everything is on the disk."""
        os.fsync(self.fd)

    def close(self) -> None:
        """Close the file."""
        os.close(self.fd)


def _bytes_of(array: npt.NDArray[Any]) -> memoryview:
    return array.reshape(-1).view(np.uint8).data


def _write(fd: int, content: Any, at: int) -> None:
    view = memoryview(content).cast("B") if len(content) else memoryview(b"")
    while view:
        n_written = os.pwrite(fd, view, at)
        view, at = view[n_written:], at + n_written


def _read(fd: int, target: Any, at: int) -> Any:
    view = memoryview(target).cast("B") if len(target) else memoryview(bytearray())
    while view:
        n_read = os.preadv(fd, [view], at)
        if not n_read:
            raise OSError(f"byte {at} is behind the end of the file")
        view, at = view[n_read:], at + n_read
    return target
