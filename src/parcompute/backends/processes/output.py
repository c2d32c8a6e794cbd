"""What a worker prints, brought into this process's own streams in whole lines.

    worker: print, C's printf, its children ──► pipe ──► whole lines ──► sys.stdout of now: a cell, a test, a file

A pipe is read before each message of its worker is, and a worker writes before it sends: what a call has printed is
here before its future is done. A worker whose pipe is full waits, so that no flood fills this process's memory.
"""

from __future__ import annotations

import contextlib
import os
import sys

from parcompute.workers import start
from parcompute.workers.channel import Channel

# What a pipe holds at most, as Linux makes it: one look takes all that was there when a message was sent.
_PIPE_BYTES = 2**16

# A line may be as long as that before it is cut.
_LINE_BYTES = 2**20


class Output:
    """One stream of one worker.

    Parameters
    ----------
    name : {"stdout", "stderr"}
        Which.
    """

    def __init__(self, name: str) -> None:
        self.name = name
        self._ours, self.theirs = map(Channel, os.pipe())  # which close themselves if nobody else does
        os.set_blocking(self._ours.fileno(), False)
        start.hold(self._ours)
        self._unfinished = b""

    def fileno(self) -> int:
        """Return the descriptor that is readable when there is something to bring."""
        return self._ours.fileno()

    def bring(self, *, rest: bool = False) -> bool:
        """Write the whole lines that have come; with `rest`, what follows them too. False when no more will come."""
        try:
            came = os.read(self._ours.fileno(), _PIPE_BYTES)
            ended = not came
        except BlockingIOError:
            came, ended = b"", False
        lines, newline, unfinished = (self._unfinished + came).rpartition(b"\n")
        if rest or len(unfinished) > _LINE_BYTES:
            lines, newline, unfinished = lines + newline + unfinished, b"", b""
        self._unfinished = unfinished
        stream = getattr(sys, self.name)
        if (lines or newline) and stream is not None:
            with contextlib.suppress(Exception):  # a closed file of the caller's is no reason to lose a job
                stream.write((lines + newline).decode(errors="backslashreplace"))
        return not ended

    def close(self) -> None:
        """Bring what is left of a worker that has ended."""
        self.bring()
        if self._unfinished:
            self._unfinished += b"\n"  # it was killed in the middle of it: what others print begins a line
            self.bring(rest=True)
        self._ours.close()
