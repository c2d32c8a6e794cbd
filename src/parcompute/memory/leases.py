"""Segments on loan to arrays, and kept for the arrays to come.

made ──► on loan, to the arrays on it ──► free ──► kept ──► on loan again, to arrays of about the size
                 │                          └────► gone, if it was exported or too much is kept
                 └ exported: its reference went to someone of whom we do not know when they have done
"""

from __future__ import annotations

import collections
import contextlib
import errno
import mmap
import os
import time
import weakref
from typing import Any, Protocol

import numpy as np

from parcompute.memory import segments
from parcompute.memory.segments import Contents, Segment, SharedMemoryFull

# Freed segments of up to so many bytes in all are kept: fresh shared pages cost ten times the copy into them.
KEPT_BYTES = 2**30

# And up to so many: each has one or two descriptors here, and as many in each worker that has seen it.
KEPT_SEGMENTS = 64

# Workers let go of what the calls of a map have had in common when they have been idle for a moment: so long is waited
# for memory that is just being given back.
_PATIENCE_S = 0.4

# A kept segment serves arrays that fill at least this share of it.
_FILL = 0.8


class Lease(np.ndarray[Any, np.dtype[np.uint8]]):
    """All bytes of a segment, and the base of every array on it: when this ends, the segment is free."""

    segment: Segment


_kept: collections.deque[Segment] = collections.deque()
# Weak: Ctrl-C may come just before `_give_back`, in the finalizer, where Python forgets it; then the segment ends.
_leased: set[weakref.ref[Segment]] = set()


def lease(n_bytes: int, contents: Contents = ()) -> Lease:
    """Return the bytes of a segment, one that was kept if it fits; `contents` are written to their places."""
    if (segment := _reused(n_bytes)) is None:
        segment = _created(n_bytes, contents)
    else:
        segment.fill(contents)
    loan = Lease((len(segment),), np.uint8, segment)
    loan.segment = segment
    weakref.finalize(loan, _give_back, segment).atexit = False
    _leased.add(weakref.ref(segment))
    return loan


def _created(n_bytes: int, contents: Contents) -> Segment:
    try:
        return Segment.create(n_bytes, contents)
    except (SharedMemoryFull, OSError) as error:
        if isinstance(error, OSError) and error.errno not in (errno.EMFILE, errno.ENFILE):
            raise
        release_kept()
    patient_until_s = time.monotonic() + _PATIENCE_S
    while True:
        try:
            return Segment.create(n_bytes, contents)
        except SharedMemoryFull:
            if time.monotonic() > patient_until_s:
                raise
            time.sleep(_PATIENCE_S / 20)


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
    if segment.exported:  # others may look at its pages
        return
    _kept.append(segment)
    while len(_kept) > KEPT_SEGMENTS or sum(map(len, list(_kept))) > min(KEPT_BYTES, segments.may_keep):
        try:
            _drop(_kept.popleft())
        except IndexError:
            return


def _drop(segment: Segment) -> None:
    """Give the pages back now, though workers may still map them: nobody looks at them any more."""
    if hasattr(mmap, "MADV_REMOVE"):
        segment.madvise(mmap.MADV_REMOVE)


class Holder(Protocol):
    """Has arrays of its own that it keeps for its next use, and can make again."""

    def let_go(self) -> None:
        """Keep none of them."""


holders: weakref.WeakSet[Holder] = weakref.WeakSet()


def release_kept() -> None:
    """Let go of all memory that is kept for arrays to come."""
    for holder in list(holders):
        holder.let_go()
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
