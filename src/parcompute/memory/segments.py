"""Shared memory itself: made without a name, found through its creator's descriptors, kept for reuse.

A segment has no name at any moment, so nothing is left in /dev/shm even if every process of a program is
killed at once (docs/decisions/0002-nameless-segments.md). Where the system knows no such files, a segment is
a `multiprocessing.shared_memory.SharedMemory` with one owner, who removes its name.

    made ──► on loan, to the arrays on it ──► free ──► kept ──► on loan again, to arrays of about the size
                     │                          └────► dropped, if it was exported or too much is kept
                     └ exported: its reference went to someone of whom we do not know when they have done
"""

from __future__ import annotations

import collections
import contextlib
import errno
import mmap
import os
import sys
import weakref
from collections.abc import Iterable
from typing import TYPE_CHECKING, Any, NamedTuple, TypeVar

import numpy as np

from parcompute.machine import signals

if TYPE_CHECKING:
    from multiprocessing.shared_memory import SharedMemory

SHM_FOLDER = "/dev/shm"

# Reading the cgroup files costs about 0.2 ms, as much as touching 1 MiB of fresh shared pages.
_CHECK_MEMORY_ABOVE = 16 * 2**20
_unchecked_bytes = 0  # so many may be taken without looking again

# What is not shared memory takes from the same limit: the next megabytes of Python and of the workers.
_FOR_OTHERS = 8 * 2**20


class SharedMemoryFull(MemoryError):
    """Shared memory is too small for what was asked; nothing was created.

    Attributes
    ----------
    needed, available : int
        Bytes.
    remedy : str
        What can be done about it.
    """

    def __init__(self, needed: int, available: int, remedy: str) -> None:
        super().__init__(needed, available, remedy)
        self.needed, self.available, self.remedy = needed, available, remedy

    def __str__(self) -> str:
        needed, available = self.needed / 2**20, self.available / 2**20
        return f"{needed:.1f} MiB of shared memory needed, {available:.1f} MiB available; {self.remedy}"


class Reference(NamedTuple):
    """Where a shared array lies: all that travels when it is pickled."""

    pid: int
    descriptor: int  # of the creator; -1 for a segment with a name
    name: str
    device: int
    inode: int
    segment_bytes: int
    offset: int
    shape: tuple[int, ...]
    strides: tuple[int, ...]
    dtype: np.dtype[Any]
    writeable: bool


_S = TypeVar("_S", bound="Segment")


class Segment(mmap.mmap):
    """A mapping of shared memory that knows how others find it. It ends with the last array on it."""

    pid: int
    descriptor: int
    name: str
    device: int
    inode: int
    address: int
    exported: bool  # others than the workers of an executor may see it, for as long as they like
    _owned: SharedMemory | None

    @classmethod
    def _map(cls: type[_S], fd: int, n_bytes: int, writeable: bool) -> _S:
        prot = mmap.PROT_READ | (mmap.PROT_WRITE if writeable else 0)
        # From Python 3.13 on a mapping need not hold a second descriptor of its own.
        options = {"trackfd": False} if sys.version_info >= (3, 13) else {}
        segment = cls(fd, n_bytes, flags=mmap.MAP_SHARED, prot=prot, **options)
        status = os.fstat(fd)
        segment.device, segment.inode = status.st_dev, status.st_ino
        segment.address = np.frombuffer(segment, np.uint8).__array_interface__["data"][0]
        segment.descriptor, segment.name, segment._owned = -1, "", None
        segment.exported = False
        return segment

    @classmethod
    def create(cls, n_bytes: int, content: memoryview | None = None) -> Segment:
        """Make a segment whose pages are reserved, so that writing to it cannot fail later.

        Parameters
        ----------
        n_bytes : int
            Size.
        content : memoryview, optional
            What to fill it with. Writing to the file is faster than to fresh pages of a mapping.

        Raises
        ------
        SharedMemoryFull
            If the file system or the memory limit leaves too little.
        """
        n_bytes = max(1, n_bytes)
        try:
            return cls._create(n_bytes, content)
        except (SharedMemoryFull, OSError) as error:
            if isinstance(error, OSError) and error.errno not in (errno.EMFILE, errno.ENFILE):
                raise
            release_kept()
            return cls._create(n_bytes, content)

    @classmethod
    def _create(cls, n_bytes: int, content: memoryview | None) -> Segment:
        _require_memory(n_bytes)
        file = _File()
        try:
            with signals.held():
                fd, owned = file.fd, file.owned = _open_new(n_bytes)
            if owned is None:
                _reserve(fd, n_bytes, content)
            segment = cls._map(fd, n_bytes, writeable=True)
            if owned is not None and content is not None:
                segment[:] = content
            segment.pid, segment.descriptor, segment._owned = os.getpid(), fd, owned
            segment.name = owned.name if owned is not None and sys.platform != "linux" else ""
            # Not __del__, which at interpreter exit may run after the modules it needs are gone.
            weakref.finalize(segment, file.release).atexit = owned is not None
        except BaseException:  # Ctrl-C, at any line
            file.release()
            raise
        _mapped[segment.inode, True] = segment
        return segment

    @classmethod
    def attach(cls, reference: Reference, *, writeable: bool) -> Segment:
        """Map the segment of a reference in this process; again and again it is the same mapping.

        Raises
        ------
        ReferenceError
            If the creator has released the array or ended.
        """
        known = _mapped.get((reference.inode, writeable))
        if known is not None and known.device == reference.device:
            return known
        if reference.name:  # no /proc here: the name is the reference
            holder = _shared_memory(reference.name)
            try:
                segment = cls._map(holder._fd, reference.segment_bytes, writeable)  # type: ignore[attr-defined]
            finally:
                holder.close()
        else:
            try:
                fd = os.open(
                    f"/proc/{reference.pid}/fd/{reference.descriptor}",
                    (os.O_RDWR if writeable else os.O_RDONLY) | os.O_CLOEXEC,
                )
            except OSError as error:
                raise _released(reference) from error
            try:
                status = os.fstat(fd)
                if (status.st_dev, status.st_ino) != (reference.device, reference.inode):
                    raise _released(reference)
                segment = cls._map(fd, reference.segment_bytes, writeable)
            finally:
                os.close(fd)
        # What is attached stays the creator's: pickled again, it goes out under the creator's reference.
        segment.pid, segment.descriptor, segment.name = reference.pid, reference.descriptor, reference.name
        _mapped[segment.inode, writeable] = segment
        if _held is not None:
            _held[segment.inode, writeable] = segment
        return segment


# One mapping per segment and process: an input that ten jobs refer to is mapped once.
_mapped: weakref.WeakValueDictionary[tuple[int, bool], Segment] = weakref.WeakValueDictionary()


# ── segments on loan, and kept ────────────────────────────────────────────────────────────────────────

# Freed segments of up to so many bytes in all are kept: fresh shared pages cost ten times the copy into them.
KEPT_BYTES = 2**30
_may_keep = 0  # of them, as long as nobody has looked how much memory there is

# And up to so many: each has one or two descriptors here, and as many in each worker that has seen it.
KEPT_SEGMENTS = 64

# A kept segment serves arrays that fill at least this share of it.
_FILL = 0.8


class Lease(np.ndarray[Any, np.dtype[np.uint8]]):
    """All bytes of a segment, and the base of every array on it: when this ends, the segment is free."""

    segment: Segment


_kept: collections.deque[Segment] = collections.deque()
# Weak: Ctrl-C may come just before `_give_back`, in the finalizer, where Python forgets it; then the segment ends.
_leased: set[weakref.ref[Segment]] = set()


def lease(n_bytes: int, content: memoryview | None = None) -> Lease:
    """Return the bytes of a segment, one that was kept if it fits."""
    if (segment := _reused(n_bytes)) is None:
        segment = Segment.create(n_bytes, content)
    elif content is not None:
        segment[: len(content)] = content
    loan = Lease((len(segment),), np.uint8, segment)
    loan.segment = segment
    weakref.finalize(loan, _give_back, segment).atexit = False
    _leased.add(weakref.ref(segment))
    return loan


def is_kept(n_bytes: int) -> bool:
    """Whether a segment is kept that would serve as many bytes."""
    return any(_fits(n_bytes, segment) for segment in list(_kept))


def _fits(n_bytes: int, segment: Segment) -> bool:
    return n_bytes <= len(segment) <= max(n_bytes / _FILL, mmap.PAGESIZE)


def _reused(n_bytes: int) -> Segment | None:
    for segment in list(_kept):
        if _fits(n_bytes, segment):
            with contextlib.suppress(ValueError):  # another thread has just taken it
                _kept.remove(segment)
                return segment
    return None


def _give_back(segment: Segment) -> None:
    # Called by the garbage collector, in any thread at any line: no locks, only steps that are atomic.
    _leased.discard(weakref.ref(segment))
    if segment.pid != os.getpid():
        return
    if segment.exported:
        _dropped.append(segment.inode)  # others may look at its pages, but the workers let go of them
        return
    _kept.append(segment)
    while len(_kept) > KEPT_SEGMENTS or sum(map(len, list(_kept))) > _may_keep:
        try:
            _drop(_kept.popleft())
        except IndexError:
            return


def _drop(segment: Segment) -> None:
    """Give the pages back now, though workers may still map them: nobody looks at them any more."""
    if hasattr(mmap, "MADV_REMOVE"):
        segment.madvise(mmap.MADV_REMOVE)
    _dropped.append(segment.inode)


def release_kept() -> None:
    """Let go of all memory that is kept for arrays to come."""
    while _kept:
        try:
            _drop(_kept.popleft())
        except IndexError:
            return


def _before_fork() -> None:
    # The child sees all arrays of now for as long as it likes.
    for leased in _leased.copy():  # in one step, whatever other threads and the garbage collector do
        if (segment := leased()) is not None:
            segment.exported = True


os.register_at_fork(before=_before_fork, after_in_child=_kept.clear)


# ── mappings that a worker holds from job to job ──────────────────────────────────────────────────────

# The inodes of dropped segments, the newest of them: what a worker still maps costs address space only.
_dropped: collections.deque[int] = collections.deque(maxlen=4096)

_held: dict[tuple[int, bool], Segment] | None = None


def hold_mappings() -> None:
    """Keep what is attached in this process mapped, until `release_mappings`."""
    global _held
    _held = {}


def release_mappings(inodes: Iterable[int]) -> None:
    """Let go of the segments with these inodes."""
    for inode in inodes:
        for writeable in (False, True):
            if _held is not None:
                _held.pop((inode, writeable), None)


def dropped() -> tuple[int, ...]:
    """Return the inodes of the segments that were dropped last."""
    return tuple(_dropped)


def _shared_memory(*args: Any, **options: Any) -> SharedMemory:
    from multiprocessing.shared_memory import SharedMemory  # 10 ms, for systems without nameless files

    return SharedMemory(*args, **options)


def _open_new(n_bytes: int) -> tuple[int, SharedMemory | None]:
    if sys.platform == "linux":
        try:
            return os.open(SHM_FOLDER, os.O_TMPFILE | os.O_RDWR | os.O_CLOEXEC, 0o600), None
        except OSError as error:
            # An overlay or an old kernel may know no files without names, a container no /dev/shm.
            if error.errno not in (errno.EOPNOTSUPP, errno.EISDIR, errno.ENOENT, errno.EINVAL):
                raise
    owned = _shared_memory(create=True, size=n_bytes)
    fd = os.dup(owned._fd)  # type: ignore[attr-defined]
    if sys.platform == "linux":  # found through /proc; the name has done its work
        owned.unlink()
        owned.close()
        return fd, None
    return fd, owned


def _reserve(fd: int, n_bytes: int, content: memoryview | None = None) -> None:
    try:
        if content is None:
            os.posix_fallocate(fd, 0, n_bytes)
            return
        written = 0
        while written < n_bytes:  # one call writes 2 GiB at most
            written += os.pwrite(fd, content[written:], written)
    except OSError as error:
        if error.errno not in (errno.ENOSPC, errno.ENOMEM):
            raise
        os.ftruncate(fd, 0)  # what has been taken so far is available, too
        status = os.fstatvfs(fd)
        remedy = f"free some of {SHM_FOLDER}, enlarge it (docker: --shm-size), or use smaller arrays"
        raise SharedMemoryFull(n_bytes, status.f_bavail * status.f_frsize, remedy) from None


def _require_memory(n_bytes: int) -> None:
    """Refuse what the control group's memory limit would answer with SIGKILL."""
    global _unchecked_bytes, _may_keep
    if n_bytes <= _unchecked_bytes:
        _unchecked_bytes -= n_bytes
        return
    from parcompute.machine.limits import available_memory_bytes  # 10 ms, that workers need not pay

    available = available_memory_bytes()
    left = available.n - n_bytes - _FOR_OTHERS
    if left < 0:
        raise SharedMemoryFull(n_bytes, available.n, f"{available.reason}; raise the limit or use smaller arrays")
    _unchecked_bytes = min(left, _CHECK_MEMORY_ABOVE)
    _may_keep = min(KEPT_BYTES, available.n // 8)  # a small limit is not to be filled with what nobody uses


class _File:
    """What a segment holds open in the process that has made it, until it is released, once."""

    def __init__(self) -> None:
        self.pid = os.getpid()
        self.fd = -1
        self.owned: SharedMemory | None = None

    def release(self) -> None:
        fd, self.fd = self.fd, -1
        if fd < 0:
            return
        os.close(fd)
        if self.owned is not None:
            self.owned.close()
            if self.pid == os.getpid():
                self.owned.unlink()


def _released(where: Reference) -> ReferenceError:
    return ReferenceError(
        f"the shared array of shape {where.shape} was released before it was used: process {where.pid}, which "
        "created it, has dropped it or has ended; keep it alive there until the others have unpickled it"
    )
