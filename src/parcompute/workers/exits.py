"""What runs at the end of a worker: what was registered in it, by atexit, weakref.finalize and multiprocessing.

A worker leaves by os._exit, since nothing of its parent's stack may run there, so nobody else would run it.
"""

from __future__ import annotations

import atexit
import contextlib
import sys
import weakref


def forget() -> None:
    """Have a forked process forget what another one has registered for its own end."""
    atexit._clear()
    for finalizer in list(weakref.finalize._registry):  # type: ignore[attr-defined]
        finalizer.atexit = False
    if weakref.finalize._registered_with_atexit:  # type: ignore[attr-defined]
        atexit.register(weakref.finalize._exitfunc)  # type: ignore[attr-defined]
    if (util := sys.modules.get("multiprocessing.util")) is not None:
        util._finalizer_registry.clear()
    if (process := sys.modules.get("multiprocessing.process")) is not None:
        process._children.clear()  # else they would be ended
    if (logging := sys.modules.get("logging")) is not None:
        atexit.register(logging.shutdown)


def run() -> None:
    """Run what was registered for the end of this process, as the interpreter and multiprocessing do at theirs.

    The parent waits for a moment only (`LEAVE_S` of a crew), so nobody has to be patient here.
    """
    with contextlib.suppress(BaseException):  # of the user's; a process that leaves reports to nobody
        if (util := sys.modules.get("multiprocessing.util")) is not None:
            util._exit_function()
        atexit._run_exitfuncs()
    flush()


def flush_queues() -> None:
    """Send what is left in the queues of multiprocessing, whose threads end with this process; `run` does so too."""
    if (util := sys.modules.get("multiprocessing.util")) is not None:
        util._run_finalizers(0)
        util._run_finalizers()


def flush() -> None:
    """Write out what this process has printed."""
    for stream in (sys.stdout, sys.stderr):
        with contextlib.suppress(Exception):
            stream.flush()
