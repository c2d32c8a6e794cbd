"""Shared memory itself: made without a name, found through its creator's descriptors.

A segment has no name at any moment, so nothing is left in /dev/shm even if every process of a program is
killed at once (docs/decisions/0002-nameless-segments.md). Where the system knows no such files, a segment is
a `multiprocessing.shared_memory.SharedMemory` with one owner, who removes its name.
"""

from __future__ import annotations

import contextlib
import errno
import mmap
import os
import resource
import sys
import weakref
from collections.abc import Iterable, Iterator, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple, TypeVar

import numpy as np

from parcompute.machine import signals

if TYPE_CHECKING:
    from multiprocessing.shared_memory import SharedMemory

SHM_FOLDER = "/dev/shm"

# Reading the cgroup files costs about 0.2 ms, as much as touching 1 MiB of fresh shared pages.
_CHECK_MEMORY_ABOVE = 16 * 2**20
_unchecked_bytes = 0  # so many may be taken without looking again
may_keep = 0  # of freed segments, as long as nobody has looked how much memory there is

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
    private: bool = False  # a copy on write: what is written to it is nobody else's


_S = TypeVar("_S", bound="Segment")

# A fault that reads maps the pages around it, of so many bytes together, and writable; one that writes maps one page.
AROUND = 2**16

# Bytes, and the place in a segment that they go to.
Contents = Sequence[tuple[int, memoryview]]

# Until Python 3.13 a mapping holds a second descriptor of its own.
DESCRIPTORS_EACH = 1 if sys.version_info >= (3, 13) else 2


class Segment(mmap.mmap):
    """A mapping of shared memory that knows how others find it. It ends with the last array on it."""

    pid: int
    descriptor: int
    name: str
    device: int
    inode: int
    address: int
    exported: bool  # others than the workers of an executor may see it, for as long as they like
    private: bool
    _owned: SharedMemory | None

    @classmethod
    def _map(cls: type[_S], fd: int, n_bytes: int, private: bool = False) -> _S:
        options = {"trackfd": False} if DESCRIPTORS_EACH == 1 else {}
        flags = mmap.MAP_PRIVATE if private else mmap.MAP_SHARED
        segment = cls(fd, n_bytes, flags=flags, **options)
        status = os.fstat(fd)
        segment.device, segment.inode = status.st_dev, status.st_ino
        segment.address = np.frombuffer(segment, np.uint8).__array_interface__["data"][0]
        segment.descriptor, segment.name, segment._owned = -1, "", None
        segment.exported, segment.private = False, private
        return segment

    @classmethod
    def create(cls, n_bytes: int, contents: Contents = ()) -> Segment:
        """Make a segment whose pages are reserved, so that writing to it cannot fail later.

        Parameters
        ----------
        n_bytes : int
            Size.
        contents : sequence of (int, memoryview)
            What to write where. Writing to the file is faster than to fresh pages of a mapping.

        Raises
        ------
        SharedMemoryFull
            If the file system or the memory limit leaves too little.
        """
        n_bytes = max(1, n_bytes)
        _require_memory(n_bytes)
        file = _File()
        try:
            with signals.held():
                fd, owned = file.fd, file.owned = _open_new(n_bytes)
            if owned is None:
                _reserve(fd, n_bytes, contents)
            segment = cls._map(fd, n_bytes)
            if owned is not None:
                segment.fill(contents)
            segment.pid, segment.descriptor, segment._owned = os.getpid(), fd, owned
            segment.name = owned.name if owned is not None and sys.platform != "linux" else ""
            # Not __del__, which at interpreter exit may run after the modules it needs are gone.
            weakref.finalize(segment, file.release).atexit = owned is not None
        except BaseException:  # Ctrl-C, at any line
            file.release()
            raise
        _mapped[segment.inode] = segment
        return segment

    def fill(self, contents: Contents) -> None:
        """Write each content to its place."""
        for at, content in contents:
            self.touch(at, at + len(content))
            self[at : at + len(content)] = content

    def touch(self, first: int, stop: int) -> None:
        """Map the pages of these bytes, which are about to be written: one fault for sixteen pages, not for each."""
        if stop - first > AROUND:
            np.frombuffer(self, np.uint8)[first:stop:AROUND].max()

    @classmethod
    def attach(cls, reference: Reference) -> Segment:
        """Map the segment of a reference in this process; again and again it is the same mapping, unless it is private.

        An input of one job is the output of the next, so it can be written to also where the reference says read-only.

        Raises
        ------
        ReferenceError
            If the creator has released the array or ended.
        """
        private = reference.private
        known = None if private else _mapped.get(reference.inode)
        if known is not None and known.device == reference.device:
            return known
        if reference.name:  # no /proc here: the name is the reference
            holder = _shared_memory(reference.name)
            try:
                segment = cls._map(holder._fd, reference.segment_bytes, private)  # type: ignore[attr-defined]
            finally:
                holder.close()
        else:
            try:
                fd = os.open(
                    f"/proc/{reference.pid}/fd/{reference.descriptor}",
                    (os.O_RDONLY if private else os.O_RDWR) | os.O_CLOEXEC,
                )
            except OSError as error:
                raise _released(reference) from error
            try:
                status = os.fstat(fd)
                if (status.st_dev, status.st_ino) != (reference.device, reference.inode):
                    raise _released(reference)
                segment = cls._map(fd, reference.segment_bytes, private)
            finally:
                os.close(fd)
        # What is attached stays the creator's: pickled again, it goes out under the creator's reference.
        segment.pid, segment.descriptor, segment.name = reference.pid, reference.descriptor, reference.name
        if not private:
            _mapped[segment.inode] = segment
            if _holding:
                _held[segment.inode] = segment
        return segment


# One mapping per segment and process: an input that ten jobs refer to is mapped once.
_mapped: weakref.WeakValueDictionary[int, Segment] = weakref.WeakValueDictionary()


def descriptors_left() -> bool:
    """Whether one more segment leaves half of the descriptors that this process may have to the rest of the program."""
    limit, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    return limit == resource.RLIM_INFINITY or DESCRIPTORS_EACH * (len(_mapped) + 1) <= limit // 2


# ── mappings that a worker holds from job to job ──────────────────────────────────────────────────────

_held: dict[int, Segment] = {}
_holding = False


@contextlib.contextmanager
def holding() -> Iterator[None]:
    """Keep what is attached in the body mapped, until `release_mappings`."""
    global _holding
    _holding = True
    try:
        yield
    finally:
        _holding = False


def release_mappings(inodes: Iterable[int]) -> None:
    """Let go of the segments with these inodes."""
    for inode in inodes:
        _held.pop(inode, None)


def gone(inodes: Iterable[int]) -> set[int]:
    """Return those of these segments that this process has no more, so that nobody needs to have them mapped."""
    return {inode for inode in inodes if inode not in _mapped}


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


def _reserve(fd: int, n_bytes: int, contents: Contents) -> None:
    try:
        for at, content in contents:
            written = 0
            while written < len(content):  # one call writes 2 GiB at most
                written += os.pwrite(fd, content[written:], at + written)
        if sum(len(content) for _, content in contents) < n_bytes:
            os.posix_fallocate(fd, 0, n_bytes)
    except OSError as error:
        if error.errno not in (errno.ENOSPC, errno.ENOMEM):
            raise
        os.ftruncate(fd, 0)  # what has been taken so far is available, too
        status = os.fstatvfs(fd)
        remedy = f"free some of {SHM_FOLDER}, enlarge it (docker: --shm-size), or use smaller arrays"
        raise SharedMemoryFull(n_bytes, status.f_bavail * status.f_frsize, remedy) from None


def _require_memory(n_bytes: int) -> None:
    """Refuse what the control group's memory limit would answer with SIGKILL."""
    global _unchecked_bytes, may_keep
    if n_bytes <= _unchecked_bytes:
        _unchecked_bytes -= n_bytes
        return
    from parcompute.machine.limits import available_memory_bytes  # 10 ms, that workers need not pay

    available = available_memory_bytes()
    left = available.n - n_bytes - _FOR_OTHERS
    if left < 0:
        raise SharedMemoryFull(n_bytes, available.n, f"{available.reason}; raise the limit or use smaller arrays")
    _unchecked_bytes = min(left, _CHECK_MEMORY_ABOVE)
    may_keep = available.n // 8  # a small limit is not to be filled with what nobody uses


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
