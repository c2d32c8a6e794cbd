"""End a process when its parent ends, whatever either of them is doing (docs/decisions/0005-starting-workers.md)."""

from __future__ import annotations

import fcntl
import os
import select
import signal
import sys
import threading

_F_SETSIG = getattr(fcntl, "F_SETSIG", 10)


def die_with_parent(pipe: int) -> None:
    """Ask the kernel for SIGKILL when the last write end of a pipe closes.

    Parameters
    ----------
    pipe : int
        Its read end; the parent holds the only write end.
    """
    if not sys.platform.startswith("linux"):
        threading.Thread(target=_watch, args=(pipe,), daemon=True).start()
        return
    # Opened anew: the owner and the signal belong to the open file, which all workers would share.
    try:
        own = os.open(f"/proc/self/fd/{pipe}", os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    except PermissionError:  # forked by a process that has changed its user id: /proc is closed to it from then on
        threading.Thread(target=_watch, args=(pipe,), daemon=True).start()
        return
    os.close(pipe)
    fcntl.fcntl(own, fcntl.F_SETOWN, os.getpid())
    fcntl.fcntl(own, _F_SETSIG, signal.SIGKILL)
    fcntl.fcntl(own, fcntl.F_SETFL, fcntl.fcntl(own, fcntl.F_GETFL) | os.O_ASYNC)
    # The parent may have gone before the signal was asked for.
    if select.select([own], [], [], 0)[0]:
        os._exit(1)


def _watch(pipe: int) -> None:
    os.read(pipe, 1)
    os._exit(1)
