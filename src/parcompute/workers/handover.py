"""Hand a setup to new worker processes, with the locks, queues and pipes of `multiprocessing` that are in it.

Those travel only while a process is started: `multiprocessing` asks for whoever starts one, and gives it descriptors.

    setup ── pickled once ──► with the first message of each worker
      └──── descriptors ────► behind it, through the same socket
"""

from __future__ import annotations

import contextlib
import os
import socket
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from multiprocessing import context

from parcompute.jobs.setup import Packed, Setup
from parcompute.workers.channel import Channel


@dataclass(frozen=True)
class Handed:
    """A setup that goes to a worker, and how many descriptors come behind it."""

    packed: Packed
    n_fds: int

    def receive_fds(self, channel: Channel) -> None:
        """Take the descriptors that come behind it, for when the setup is opened."""
        global _received
        if self.n_fds:
            with socket.socket(fileno=os.dup(channel.fileno())) as end:
                _received = socket.recv_fds(end, 1, self.n_fds)[1]
            for fd in _received:
                os.set_inheritable(fd, False)


class Handover:
    """A setup on its way to each worker that is started, until it is closed."""

    def __init__(self, setup: Setup) -> None:
        self._fds: list[int] = []
        with _started_by(self):
            try:
                packed = setup.packed()
            except BaseException:
                self.close()
                raise
        self.handed = Handed(packed, len(self._fds))

    def send_fds(self, channel: Channel) -> None:
        """Send the descriptors to a worker that gets `handed`."""
        if self._fds:
            with socket.socket(fileno=os.dup(channel.fileno())) as end:
                socket.send_fds(end, [b"!"], self._fds)

    def close(self) -> None:
        """Let go of the descriptors."""
        while self._fds:
            os.close(self._fds.pop())

    # What `multiprocessing.reduction.DupFd` asks for. The setup's own descriptors may be closed before a worker starts.
    def duplicate_for_child(self, fd: int) -> int:
        """Take a descriptor, and return its number among those that are sent."""
        self._fds.append(os.dup(fd))
        return len(self._fds) - 1

    def DupFd(self, number: int) -> _Passed:  # noqa: N802  # the name is multiprocessing's
        """Return what becomes the descriptor in the worker."""
        return _Passed(number)


_received: Sequence[int] = ()


@dataclass(frozen=True)
class _Passed:
    number: int

    def detach(self) -> int:
        return _received[self.number]


@contextlib.contextmanager
def _started_by(starter: Handover) -> Iterator[None]:
    before = context.get_spawning_popen()
    context.set_spawning_popen(starter)  # type: ignore[arg-type]  # by what it does, like theirs
    try:
        yield
    finally:
        context.set_spawning_popen(before)
