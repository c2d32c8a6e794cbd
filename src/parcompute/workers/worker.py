"""The life of a worker process: settle, be ready, serve, leave.

parent ── job, arrays ──► worker ── shape of block 0, odd results, failures, end of pass ──► parent
                            │
                claims, done marks, output rows, timeline: shared memory, nobody in the loop
"""

from __future__ import annotations

import contextlib
import gc
import os
import sys
import time
from multiprocessing import process
from typing import TYPE_CHECKING, Any, NamedTuple, TextIO

from parcompute.jobs import pickling, variables, world
from parcompute.jobs.job import Failure
from parcompute.jobs.schedule import FileClaims, FileTokens
from parcompute.jobs.setup import Setup
from parcompute.machine import blas, malloc
from parcompute.workers import exits, start
from parcompute.workers.channel import Channel
from parcompute.workers.desk import Desk, keep_to

if TYPE_CHECKING:
    from parcompute.workers.handover import Handed

# What the calls of one map have in common is forgotten by a worker that has had none for so many seconds.
_AGAIN_S = 0.1


class Settings(NamedTuple):
    """How a worker process must find its world: the first message it gets."""

    worker: int  # the number of its first thread
    n_threads: int
    blas_threads: int | None
    environ: dict[str, str]
    folder: str
    authkey: bytes  # of multiprocessing, for managers that the caller has
    path: list[str]
    argv: list[str]
    cpus: frozenset[int] | None  # None leaves the mask alone
    setup: Handed | None  # None is inherited, or nothing to do
    world: bytes  # what holds for jobs that tell of nothing else


def main(
    channel_fd: int,
    claims_fd: int,
    claims_fd_2: int,
    tokens_fd: int,
    *print_fds: int,
    inherited: Setup | None = None,
) -> None:
    """Serve a parent until it says "quit" or is gone: the whole life of a worker process.

    Parameters
    ----------
    channel_fd : int
        Of the socket to the parent.
    claims_fd, claims_fd_2 : int
        Of the files that hand out claims, of one job and of the next.
    tokens_fd : int
        Of the file that says whether a call that was sent ahead is still this worker's.
    *print_fds : int
        Of the pipes for what it prints on stdout and stderr, if it does not print where its parent does.
    inherited : Setup, optional
        What to do first, where it need not travel.
    """
    if print_fds:
        _print_into(*print_fds)
    channel = Channel(channel_fd)
    start.hold(channel)
    with contextlib.suppress(EOFError, ConnectionError):
        settings: Settings = channel.recv()
        if settings.setup is not None:
            settings.setup.receive_fds(channel)
        libraries = _settle(settings)
        try:
            setup = settings.setup.packed.opened() if settings.setup else inherited or Setup()
            with world.beginning(), variables.kept(setup.initializer):
                setup.initialize()
        except BaseException as error:  # no worker will get any further
            exits.flush_queues()  # this process is killed as soon as the parent hears of it
            channel.send(("broken", Failure.before_blocks(error)))
            return
        claims = FileClaims(claims_fd), FileClaims(claims_fd_2)
        desk = Desk(channel, claims, FileTokens(tokens_fd), settings.worker, settings.n_threads, settings.cpus, setup)
        gc.freeze()  # so that a collection looks at what calls have made, and takes a moment
        channel.send(("ready", time.perf_counter_ns(), libraries))
        while True:
            if pickling.remembers() and not channel.poll(_AGAIN_S):
                pickling.forget_loaded()
            if (message := channel.recv())[0] == "quit":
                break
            getattr(desk, message[0])(*message[1:])
            del message  # it may hold the last reference to arrays that the parent has released
        desk.leave()
    exits.run()  # as long as there is a channel: without one, the parent kills


_forked: list[Any] = []  # streams of the parent; their ends here would write what the parent has not written yet


def _print_into(*fds: int) -> None:
    """Have what this process prints, with all its C code and its children, go into pipes, line by line."""
    _forked[:] = sys.stdout, sys.stderr
    for number, fd in enumerate(fds, start=1):
        os.dup2(fd, number)
        os.close(fd)
    sys.stdout, sys.stderr = map(_lines_into, (1, 2))
    with contextlib.suppress(Exception):  # C would keep its lines until 4 KiB are full
        import ctypes

        library = ctypes.CDLL(None)
        library.setvbuf(ctypes.c_void_p.in_dll(library, "stdout"), None, ctypes.c_int(1), ctypes.c_size_t(0))


def _lines_into(fd: int) -> TextIO:
    return open(fd, "w", buffering=1, encoding="utf-8", errors="backslashreplace", closefd=False)


def _settle(settings: Settings) -> Any:
    """Make this process's surroundings those of the parent; return what numeric libraries it has."""
    os.environ.clear()
    os.environ.update(settings.environ)
    sys.path[:], sys.argv[:] = settings.path, settings.argv
    with contextlib.suppress(OSError):  # the folder may be gone by now
        os.chdir(settings.folder)
    process.current_process().authkey = settings.authkey
    world.begin(settings.world)
    keep_to(settings.cpus)
    malloc.keep_freed()
    # A forked process would continue the parent's legacy streams, the same in every worker.
    for name in ("random", "numpy.random"):  # loading them takes milliseconds, and seeds them
        if name in sys.modules:
            sys.modules[name].seed()
    return blas.limit(settings.blas_threads)
