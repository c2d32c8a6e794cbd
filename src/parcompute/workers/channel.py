"""A stream of pickled messages between a parent and its worker, each with its length ahead.

What `multiprocessing.connection` has for this loads `tempfile`, and with it much else, in each new process.
"""

from __future__ import annotations

import os
import pickle
import select
import socket
import struct
from types import TracebackType
from typing import Any

_LENGTH = struct.Struct("<Q")

# To concatenate a message of so many bytes with its length costs less than a second write.
_SHORT_BYTES = 2**14

# And so many are read at once: the system hands out no more of a socket, and memory is taken for what is asked.
_READ_BYTES = 2**18


class Channel:
    """One end, which closes itself if nobody else does.

    Parameters
    ----------
    fd : int
        A descriptor that is this object's from now on.
    """

    def __init__(self, fd: int) -> None:
        self._fd = fd

    @classmethod
    def pair(cls) -> tuple[Channel, Channel]:
        """Return the two ends of a new one."""
        ours, theirs = socket.socketpair()
        return cls(ours.detach()), cls(theirs.detach())

    @property
    def closed(self) -> bool:
        """Whether `close` was called."""
        return self._fd < 0

    def fileno(self) -> int:
        """Return the descriptor.

        Raises
        ------
        OSError
            If it is closed.
        """
        if self._fd < 0:
            raise OSError("this channel is closed")
        return self._fd

    def send(self, message: Any) -> None:
        """Send a message.

        Raises
        ------
        OSError
            If the other end, or this one, is closed.
        """
        self.send_pickled(pickle.dumps(message))

    def send_pickled(self, pickled: bytes) -> None:
        """Send a message that is pickled already."""
        length = _LENGTH.pack(len(pickled))
        if len(pickled) <= _SHORT_BYTES:
            self._write(length + pickled)
        else:
            self._write(length)
            self._write(pickled)

    def recv(self) -> Any:
        """Wait for a message and return it.

        Raises
        ------
        EOFError
            If the other end was closed before it was whole.
        """
        return pickle.loads(self._read(_LENGTH.unpack(self._read(_LENGTH.size))[0]))

    def poll(self, timeout_s: float = 0.0) -> bool:
        """Tell whether something has come, or the other end has gone; wait so long for it."""
        poll = select.poll()  # and not `select`, which knows no descriptors above 1023
        poll.register(self.fileno(), select.POLLIN)
        return bool(poll.poll(timeout_s * 1000))

    def _write(self, content: bytes) -> None:
        left = memoryview(content)
        while left:
            left = left[os.write(self.fileno(), left) :]

    def _read(self, n_bytes: int) -> bytes:
        read = os.read(self.fileno(), min(n_bytes, _READ_BYTES))
        parts = [read]
        while read and (n_bytes := n_bytes - len(read)):
            read = os.read(self.fileno(), min(n_bytes, _READ_BYTES))
            parts.append(read)
        if not read:
            raise EOFError
        return b"".join(parts)

    def close(self) -> None:
        """Close this end; once more does nothing."""
        fd, self._fd = self._fd, -1
        if fd >= 0:
            os.close(fd)

    __del__ = close

    def __enter__(self) -> Channel:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()
