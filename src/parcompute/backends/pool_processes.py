"""The processes of the standard library's pool, and what becomes of those of a program without a main guard."""

from __future__ import annotations

import multiprocessing
import multiprocessing.pool
import os
import select
from multiprocessing import context
from typing import Any

from parcompute.workers import exits, surroundings

# How long the end of a forkserver is waited for.
_LOOK_S = 0.2

# How a process ends that multiprocessing has started, and that comes to start a pool itself while it runs the user's
# main module again: silently, since what it has to say its parent says, once.
UNGUARDED = os.EX_USAGE


class Unguarded(RuntimeError):
    """The program has no main guard, which this backend needs."""

    def __init__(self) -> None:
        super().__init__(
            "each worker of backend='pool' runs the main module again and has come to this executor: put what the "
            "program does under `if __name__ == \"__main__\":`, or use backend='processes', which needs no such line"
        )


def leave_if_unguarded() -> None:
    """End this process if it is one that runs the user's main module again, and has come to start a pool itself."""
    if getattr(multiprocessing.current_process(), "_inheriting", False):
        exits.flush()
        os._exit(UNGUARDED)


class _Starts:
    """A process that starts in surroundings fit for it, whoever starts it."""

    def start(self) -> None:
        with surroundings.starting({}):
            super().start()  # type: ignore[misc]  # of the class beside this one


class _Fork(_Starts, context.ForkProcess): ...


class _Spawn(_Starts, context.SpawnProcess): ...


class _ForkServer(_Starts, context.ForkServerProcess): ...


_PROCESSES = {"fork": _Fork, "spawn": _Spawn, "forkserver": _ForkServer}


class Workers(multiprocessing.pool.Pool):
    """The standard library's pool; by itself, it starts another worker for one that has died.

    Not for those that end because there is no main guard, which it would do for ever.
    """

    @staticmethod
    def Process(ctx: Any, *args: Any, **kwargs: Any) -> Any:  # noqa: N802 (its name there)
        """Return a process that is started in fit surroundings."""
        return _PROCESSES[ctx.get_start_method()](*args, **kwargs)

    @staticmethod
    def _maintain_pool(context: Any, process: Any, n_workers: int, workers: list[Any], *args: Any) -> None:
        if all(worker.exitcode != UNGUARDED for worker in workers):
            multiprocessing.pool.Pool._maintain_pool(context, process, n_workers, workers, *args)  # type: ignore[attr-defined]


def server_status() -> int | None:
    """Return how the forkserver of multiprocessing has ended, and leave it to multiprocessing to collect it."""
    from multiprocessing.forkserver import _forkserver

    server: Any = _forkserver
    try:
        with open(os.pidfd_open(server._forkserver_pid), "rb") as pidfd:
            select.select([pidfd], [], [], _LOOK_S)
            found = os.waitid(os.P_PID, server._forkserver_pid, os.WEXITED | os.WNOWAIT | os.WNOHANG)
    except (AttributeError, TypeError, OSError):  # there is none, or no such call here
        return None
    return None if found is None else found.si_status
