"""What travels between hosts: messages as a head and buffers, and arrays by what they hold.

    caller   array ── digest ──► sent to a node once, kept there as long as the caller keeps the array
             job   ── pickled ─► arrays in it are their digests, files their paths and stamps
    node     finds the arrays by their digests, in its own shared memory

An array is known by its content and not by its place: the caller may write to it between two jobs.
"""

from __future__ import annotations

import collections
import hashlib
import os
import pickle
import sys
import threading
import weakref
from collections.abc import Iterable, Mapping
from concurrent.futures import ThreadPoolExecutor
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from parcompute.jobs import pickling
from parcompute.memory import shared, sources

Message = tuple[Any, ...]

# Arrays of more bytes are kept by the nodes; smaller ones travel with what they belong to.
KEPT_ABOVE = 2**16

# The content of an array is looked at in pieces of so many bytes, several at a time.
_PIECE_BYTES = 2**23


def pack(message: Message) -> tuple[bytes, list[Any]]:
    """Return a message as a head and the memory of its arrays, which is not copied."""
    buffers: list[pickle.PickleBuffer] = []
    head = pickle.dumps(message, protocol=5, buffer_callback=buffers.append)
    return head, [buffer.raw() for buffer in buffers]


def unpack(head: bytes | memoryview, buffers: Iterable[Any]) -> Message:
    """Return what `pack` was given."""
    message: Message = pickle.loads(head, buffers=buffers)
    return message


# --- arrays by their content -------------------------------------------------------------------------------


class Kept(NamedTuple):
    """An array that a node has, or will be sent before the job; found there by its digest."""

    digest: bytes
    shape: tuple[int, ...]
    dtype: np.dtype[Any]
    writeable: bool = False
    private: bool = False

    def open(self) -> npt.NDArray[Any]:
        """Return it, in the node that unpickles."""
        found: npt.NDArray[Any] = _here.arrays[self.digest]
        return found


class Sent(NamedTuple):
    """A small array, with what it belongs to."""

    array: npt.NDArray[Any]
    writeable: bool = False
    private: bool = False

    def open(self) -> npt.NDArray[Any]:
        """Return it."""
        return self.array


class InFile(NamedTuple):
    """An array in a file, which a node opens if it sees the same one."""

    where: sources.FileReference | sources.DatasetReference
    stamp: tuple[int, int]
    shape: tuple[int, ...]
    dtype: np.dtype[Any]
    writeable: bool = False
    private: bool = False

    @property
    def is_here(self) -> bool:
        """Whether this host has the file, of the same size and time."""
        return stamp_of(self.where.path) == self.stamp

    def open(self) -> Any:
        """Return the memory-mapped array, or the dataset.

        Raises
        ------
        OSError
            If it is not there, or another file is.
        """
        if not self.is_here:
            raise OSError(
                f"{self.where.path} is not the same file on {os.uname().nodename} as for the caller; put it on a file "
                "system that all nodes see, or pass the array itself"
            )
        if isinstance(self.where, sources.DatasetReference):
            return self.where.open()
        # As a memmap, by which its own workers find the file in turn.
        reach = sum((n - 1) * s for n, s in zip(self.where.shape, self.where.strides, strict=True))
        whole = np.memmap(self.where.path, np.uint8, "r", self.where.offset, (reach + self.dtype.itemsize,))
        return np.ndarray(self.where.shape, self.dtype, whole, 0, self.where.strides)


def stamp_of(path: str) -> tuple[int, int] | None:
    """Return size and time of a file; None if there is none."""
    try:
        found = os.stat(path)
    except OSError:
        return None
    return found.st_size, found.st_mtime_ns


def in_file(array: Any) -> InFile | None:
    """Return where an array lies if that is a file, whose content is on the disk then; else None."""
    if sources.is_dataset(array):
        where, _ = sources.refer(array) or (None, None)
    elif isinstance(array, np.ndarray) and sources.lies_in_file(array):
        where = sources.file_reference(array)
        if where is not None:
            _flush(array)
    else:
        return None
    if not isinstance(where, (sources.FileReference, sources.DatasetReference)):
        return None
    stamp = stamp_of(where.path)
    return None if stamp is None else InFile(where, stamp, array.shape, array.dtype)


def _flush(array: Any) -> None:
    while isinstance(array, np.ndarray):
        if isinstance(array, np.memmap) and array.flags.writeable:
            array.flush()
        array = array.base


_here = threading.local()  # .arrays are those of the node for which this thread unpickles


def loads(pickled: bytes, arrays: Mapping[bytes, npt.NDArray[Any]]) -> Any:
    """Return what `Arrays.dumps` has pickled, with the arrays of a node."""
    _here.arrays = arrays
    try:
        return pickling.loads(pickled)
    finally:
        _here.arrays = {}


class Arrays:
    """The arrays of a caller that nodes may have, by content."""

    def __init__(self) -> None:
        self._left: collections.deque[bytes] = collections.deque()  # digests of which there may be no array any more
        self._lock = threading.Lock()
        self._digests: dict[int, bytes] = {}  # of the arrays that live, by their id
        self._holders: dict[bytes, set[int]] = {}
        self._constant: set[int] = set()  # of those, the ones that nobody can write to

    def dumps(self, value: Any, name: str) -> tuple[bytes, dict[bytes, npt.NDArray[Any]]]:
        """Pickle a value for nodes; return that, and the arrays that a node needs to unpickle it.

        Raises
        ------
        CannotTravel
            Naming what cannot.
        """
        needed: dict[bytes, npt.NDArray[Any]] = {}

        def refer(obj: Any) -> tuple[Any, Any] | None:
            if (where := in_file(obj)) is not None:
                return where, None
            if not sources.is_plain(obj, above=-1):
                return None
            if obj.nbytes > KEPT_ABOVE:
                kept = self.keep(obj)
                needed[kept.digest] = obj
                return kept, None
            # As itself; a shared one would go as a reference that leads nowhere on another host.
            return (Sent(np.array(obj, order="K")), None) if shared.reference(obj) is not None else None

        pickled, _ = pickling.dumps(value, name, refer, share_above=2**62)
        return pickled, needed

    def keep(self, array: npt.NDArray[Any]) -> Kept:
        """Return by what nodes know an array."""
        with self._lock:
            known = self._digests.get(id(array))
            if known is not None and id(array) in self._constant:
                return Kept(known, array.shape, array.dtype)
        digest = digest_of(array)
        with self._lock:
            if known != digest:
                if known is None:
                    weakref.finalize(array, self._dropped, id(array)).atexit = False
                else:
                    self._leave(id(array), known)
                self._digests[id(array)] = digest
                self._holders.setdefault(digest, set()).add(id(array))
                if _is_constant(array):
                    self._constant.add(id(array))
        return Kept(digest, array.shape, array.dtype)

    def gone(self) -> set[bytes]:
        """Return the digests of which the caller has dropped, or written to, the last array since this was asked."""
        left = {self._left.popleft() for _ in range(len(self._left))}
        return {digest for digest in left if digest not in self._holders}

    def _dropped(self, number: int) -> None:
        digest = self._digests.pop(number, None)  # one step each: a collection may come at any line
        self._constant.discard(number)
        if digest is not None:
            self._leave(number, digest)

    def _leave(self, number: int, digest: bytes) -> None:
        holders = self._holders.get(digest, set())
        holders.discard(number)
        if not holders:
            self._holders.pop(digest, None)
            self._left.append(digest)


def _is_constant(array: Any) -> bool:
    """Whether nobody can write to the memory of an array, as far as NumPy knows."""
    while isinstance(array, np.ndarray):
        if array.flags.writeable:
            return False
        if array.base is None:
            return True
        array = array.base
    return isinstance(array, bytes)


def digest_of(array: npt.NDArray[Any]) -> bytes:
    """Return a digest of shape, dtype and content: of the items in memory order where that is C's or Fortran's."""
    order = "F" if array.flags.f_contiguous and not array.flags.c_contiguous else "C"
    whole = hashlib.sha256(repr((array.shape, array.dtype.descr, order)).encode())
    content = as_bytes(array)
    pieces = [content[at : at + _PIECE_BYTES] for at in range(0, len(content), _PIECE_BYTES)]
    if len(pieces) > 1:  # hashlib lets go of the interpreter lock
        with ThreadPoolExecutor(min(len(pieces), len(os.sched_getaffinity(0)))) as threads:
            digests = list(threads.map(_sha256, pieces))
    else:
        digests = [_sha256(piece) for piece in pieces]
    for digest in digests:
        whole.update(digest)
    return whole.digest()


def _sha256(piece: Any) -> bytes:
    return hashlib.sha256(piece).digest()


def as_bytes(array: npt.NDArray[Any]) -> npt.NDArray[np.uint8]:
    """Return the items of an array as they lie in memory, copied in C order if they lie apart."""
    if array.flags.f_contiguous and not array.flags.c_contiguous:
        array = array.T
    return np.ascontiguousarray(array).reshape(-1).view(np.uint8)


def is_fortran(array: npt.NDArray[Any]) -> bool:
    """Whether `as_bytes` has the items in Fortran order."""
    return bool(array.flags.f_contiguous and not array.flags.c_contiguous)


def from_bytes(content: npt.NDArray[np.uint8], shape: tuple[int, ...], dtype: Any, fortran: bool) -> Any:
    """Return the array of `as_bytes` in shared memory of this host."""
    order: Any = "F" if fortran else "C"
    try:
        array: Any = shared.SharedArray.empty(shape, dtype, order)
    except shared.SharedMemoryFull:  # whoever sends it to the crew says so, in the place of the job that needs it
        array = np.empty(shape, dtype, order)
    as_bytes_view = (array.T if fortran else array).reshape(-1).view(np.uint8)
    as_bytes_view[:] = content
    array.flags.writeable = False
    return array


def framed(head: bytes, sizes: list[int]) -> bytes:
    """Put a head, and the sizes of what follows it, into one."""
    return pickle.dumps((head, sizes))


def unframed(frame: bytes) -> tuple[bytes, list[int]]:
    """Undo `framed`."""
    head, sizes = pickle.loads(frame)
    return head, sizes


def where() -> tuple[str, tuple[str, ...]]:
    """Return the folder and the path on which this process finds its modules."""
    try:
        return os.getcwd(), tuple(sys.path)
    except FileNotFoundError:
        return "", tuple(sys.path)
