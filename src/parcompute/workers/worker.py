"""The loop of a worker: ready, claim, compute, write in place, stamp, leave.

parent ── job, arrays ──► worker ── shape of block 0, odd results, failures, end of pass ──► parent
                            │
                claims, done marks, output rows, timeline: shared memory, nobody in the loop
"""

from __future__ import annotations

import contextlib
import copy
import gc
import os
import pickle
import sys
import threading
import time
import weakref
from collections.abc import Callable
from dataclasses import dataclass, replace
from multiprocessing import process
from multiprocessing.connection import Connection
from typing import Any, TextIO

import numpy as np
import numpy.typing as npt

from parcompute.jobs import pickling, variables, world
from parcompute.jobs.job import Failure, Job, is_ctrl_c
from parcompute.jobs.outputs import Outputs
from parcompute.jobs.schedule import BETWEEN, DONE, FAILED, Board, FileClaims, Pass, ThreadClaims
from parcompute.jobs.setup import Setup, State
from parcompute.machine import blas, malloc
from parcompute.memory import segments, shared
from parcompute.workers import exits, handover, start

# What the calls of one map have in common is forgotten by a worker that has had none for so many seconds.
_AGAIN_S = 0.1

# What is remembered of the last jobs: inputs and outputs in shared memory, each a message of so many bytes at most.
_REMEMBERED, _SHORT_BYTES = 8, 2**14

# The stamp of a block that has no time limit any more: its kernel has returned.
_COMPUTED = 2**63 - 1


@dataclass(frozen=True)
class Settings:
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
    setup: handover.Handed | None  # None is inherited, or nothing to do
    world: bytes  # what holds for jobs that tell of nothing else


def walk(
    job: Job,
    pass_: Pass,
    board: Board,
    claims: FileClaims | ThreadClaims,
    worker: int,
    shaped: Callable[[int, Any], None],
    odd: Callable[[int, Any], None],
    failed: Callable[[Failure], None],
) -> None:
    """Compute chunks until none is left, the run is stopped, or a block fails: one loop for all media.

    Parameters
    ----------
    job : Job
        What to compute.
    pass_ : Pass
        The chunks to claim from.
    board : Board
        Where to mark what is current, done and when.
    claims : FileClaims or ThreadClaims
        The counter that the workers of the pass share.
    worker : int
        Number of this worker.
    shaped : callable
        Called with a block and what its result looks like while the outputs have no arrays. They have
        when it returns, or the run is stopped.
    odd : callable
        Called with a block and its result if that has no place in the arrays.
    failed : callable
        Called with a block that failed; the walk ends there unless the job keeps going.
    """
    outputs, compute, block_of = job.outputs, job.bind(), job.plan.block
    (firsts, stops), number_of, attempt = pass_.spans(), pass_.chunk_in_plan, pass_.number
    current, since_ns, done, stop, stamp = board.current, board.since_ns, board.done_marks, board.stop_mark, board.stamp
    timed = job.block_timeout_s is not None
    wall, cpu = time.perf_counter_ns, time.thread_time_ns
    many = _many(outputs, job.plan.n_blocks)
    current[worker] = BETWEEN
    for chunk in pass_.claimed(worker, claims):
        first, behind = firsts[chunk], stops[chunk]
        started = finished = wall()
        cpu_started = cpu_finished = cpu()
        computed = False
        if behind - first >= many:
            _touch(outputs, first, behind)
        for index in range(first, behind):
            if stop[0]:
                cpu_finished = cpu()
                break
            if done[index]:
                continue
            block = block_of(index)
            if timed:
                since_ns[worker] = wall()
            current[worker] = index
            computed = True
            try:
                result = compute(block)
                finished = wall()
                if timed:
                    since_ns[worker] = _COMPUTED
                if index + 1 == behind:
                    cpu_finished = cpu()
                if outputs.arrays is None:
                    shaped(index, outputs.shape_of(result, block))
                    if outputs.arrays is None:
                        return
                    many = _many(outputs, job.plan.n_blocks)
                    if behind - index >= many:
                        _touch(outputs, index, behind)
                if not outputs.store(result, block):
                    odd(index, result)
            except BaseException as error:  # SystemExit too: a kernel that calls sys.exit() has failed
                if is_ctrl_c(error):
                    raise
                failed(job.failure(block, error))
                if not job.keep_going:
                    return
                done[index] = FAILED
            else:
                done[index] = DONE
        current[worker] = BETWEEN
        if computed:  # else by the predecessor of this worker, whose row must stay
            cpu_ns = cpu_finished - cpu_started
            stamp(chunk, number_of(chunk), worker, attempt, started, finished, cpu_ns, wall())
        if stop[0]:
            return


def _many(outputs: Outputs, n_blocks: int) -> int:
    """Return how many blocks have more rows than one page fault maps."""
    return 1 + segments.AROUND * n_blocks // max([1, *(array.nbytes for array in outputs.arrays or ())])


def _touch(outputs: Outputs, first: int, behind: int) -> None:
    """Have the rows of these blocks mapped here before they are written."""
    for array in outputs.arrays or ():
        shared.touch(array[outputs.span(first, behind)])


def main(channel_fd: int, claims_fd: int, *print_fds: int, inherited: Setup | None = None) -> None:
    """Serve a parent until it says "quit" or is gone: the whole life of a worker process.

    Parameters
    ----------
    channel_fd : int
        Of the socket to the parent.
    claims_fd : int
        Of the file that hands out claims.
    *print_fds : int
        Of the pipes for what it prints on stdout and stderr, if it does not print where its parent does.
    inherited : Setup, optional
        What to do first, where it need not travel.
    """
    if print_fds:
        _print_into(*print_fds)
    channel = Connection(channel_fd)
    start.hold(channel)
    with contextlib.suppress(EOFError, ConnectionError):
        settings: Settings = channel.recv()
        if settings.setup is not None:
            handover.receive_fds(channel, settings.setup)
        libraries = _settle(settings)
        try:
            setup = settings.setup.packed.opened() if settings.setup else inherited or Setup()
            with world.beginning(), variables.kept(setup.initializer):
                setup.initialize()
        except BaseException as error:  # no worker will get any further
            exits.flush_queues()  # this process is killed as soon as the parent hears of it
            channel.send(("broken", Failure.before_blocks(error)))
            return
        desk = _Desk(channel, FileClaims(claims_fd), settings, setup)
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


class _Desk:
    """What a worker does on each kind of message."""

    def __init__(self, channel: Connection, claims: FileClaims, settings: Settings, setup: Setup) -> None:
        self.channel, self.claims, self.settings = channel, claims, settings
        self.states = [State(setup.state) for _ in range(settings.n_threads)]
        self.job: Job | None = None
        self.number = -1  # of the job
        self.key = -1
        self.program: Any = None  # what it shares with the jobs before and after it
        self.known: dict[bytes, Any] = {}  # what the last few messages have had unpickled
        self.board = b""
        self.attached: Board | None = None
        self.told: bytes | None = None  # of the caller's settings, with the job
        self.sending, self.receiving = threading.Lock(), threading.Lock()

    def walk(
        self,
        number: int,
        parcel: tuple[int, bytes, bytes, int | None, bool],
        told: bytes | None,
        arrays: bytes | None,
        pass_: Any,
        board: bytes,
        gone: set[int],
    ) -> None:
        """Take part in a pass."""
        try:
            with segments.holding():
                if number != self.number:
                    if gone:
                        self.known.clear()
                    self._open(parcel, told)
                    self.number = number
                if board != self.board:
                    self.board, self.attached = b"", None
                    self.board, self.attached = board, Board.attached(board)
                self._attach(arrays)
            segments.release_mappings(gone)
            pass_number, n_chunks, lost, alone = pass_
            walked = Pass(pass_number, n_chunks, self.program.plan, lost, alone)
            _keep_to(self.settings.cpus)
        except BaseException as error:  # say what cannot be had here; the job cannot run on any worker
            self._send("failed", number, Failure.before_blocks(error))
            self._send("end", number)
            return
        first, lanes = self.settings.worker, []
        with world.under(self.told):
            for worker in range(first + 1, first + (1 if alone else self.settings.n_threads)):
                lane = threading.Thread(target=self._lane, args=(number, walked, worker))
                try:
                    lane.start()
                except RuntimeError:  # the system gives no more threads; those that there are do its part
                    break
                lanes.append(lane)
            self._lane(number, walked, first)
            for lane in lanes:
                lane.join()
        exits.flush()
        self._send("end", number)

    def _open(self, parcel: tuple[int, bytes, bytes, int | None, bool], told: bytes | None) -> None:
        """Have the job of a `parcompute.backends.processes.parcels.Parcel`, as far as it is not here already."""
        key, program, data, seed, stays = parcel
        self.job, self.number = None, -1
        world.arrive(told)
        if key != self.key:
            self.key, self.program = -1, None
            self.key, self.program = key, pickling.loads(program)
        inputs = self._known(data, pickling.loads, stays)
        self.job = replace(self.program, inputs=tuple(inputs), seed=seed, outputs=copy.copy(self.program.outputs))
        self.told = told

    def _known(self, pickled: bytes, loads: Callable[[bytes], Any], stays: bool = True) -> Any:
        """Return what is unpickled, the same objects as a few jobs before."""
        if pickled in self.known:
            return self.known[pickled]
        value = loads(pickled)
        if stays and len(pickled) <= _SHORT_BYTES:
            while len(self.known) >= _REMEMBERED:
                del self.known[next(iter(self.known))]
            self.known[pickled] = value
        return value

    def forget(self, gone: set[int]) -> None:
        """Let go of the job, and of what it maps and the caller has no more: the next one may use the other arrays."""
        self.job, self.number = None, -1
        self.key, self.program = -1, None
        self.known.clear()
        segments.release_mappings(gone)

    def arrays(self, number: int, arrays: Any) -> None:
        """Nothing: an answer to a question that was settled meanwhile."""

    def call(self, number: int, pickled: bytes) -> None:
        """Run a submitted call and send what it returned or raised."""
        with self.states[0].here():
            result = run_call(pickled)
        exits.flush()  # whoever takes the result finds what was printed before it
        self._send("result", number, *result)

    def leave(self) -> None:
        """Close what the threads of this worker keep."""
        for state in self.states:
            state.close()

    def _lane(self, number: int, pass_: Pass, worker: int) -> None:
        assert self.job is not None
        assert self.attached is not None
        outputs, board = self.job.outputs, self.attached

        def shaped(index: int, shape: Any) -> None:
            pickled = pickling.dumps_back(shape)
            pickle.loads(pickled)  # if it cannot be rebuilt, that is the failure of this block
            if index == 0 or not self.channel.poll():
                self._send("shape", number, index, pickled)
            with self.receiving:  # one thread waits for the answer of all
                if outputs.arrays is None and not board.stopped:
                    answer = self.channel.recv()
                    assert answer[:2] == ("arrays", number)
                    self._attach(answer[2])

        def odd(index: int, result: Any) -> None:
            self._send("odd", number, index, pickling.dumps_back(result))

        def failed(failure: Failure) -> None:
            self._send("failed", number, failure)

        try:
            with self.states[worker - self.settings.worker].here():
                world.run_as(self.told, walk, self.job, pass_, board, self.claims, worker, shaped, odd, failed)
        except BaseException as error:  # outside any block: a file cannot be opened, memory is short
            if is_ctrl_c(error):
                raise
            failed(Failure.before_blocks(error))

    def _attach(self, arrays: bytes | None) -> None:
        assert self.job is not None
        if arrays is None:
            return
        with segments.holding():
            shape, outputs = self._known(arrays, _attached)
        left = iter(outputs)
        self.job.outputs.allocate(shape, lambda *_: next(left))

    def _send(self, *message: Any) -> None:
        with self.sending:
            self.channel.send(message)


def _attached(arrays: bytes) -> tuple[Any, list[npt.NDArray[Any]]]:
    shape, places = pickle.loads(arrays)
    return shape, [shared.attach(place).view(np.ndarray) for place in places]


def run_call(pickled: bytes) -> tuple[bool, bytes, bool]:
    """Run a call that has travelled.

    Parameters
    ----------
    pickled : bytes
        Of ``(function, args, kwargs)``, by `parcompute.backends.base.Call.pickled`.

    Returns
    -------
    (bool, bytes, bool)
        Whether it returned; the pickled result, or else a pickled `Failure`; and whether nothing has kept the arrays
        that it was lent.
    """
    lent: list[weakref.ref[segments.Segment]] = []
    answer = _called(pickled, lent)
    if pickling.still_lent(lent):
        gc.collect()
    return *answer, not pickling.still_lent(lent)


def _called(pickled: bytes, lent: list[weakref.ref[segments.Segment]]) -> tuple[bool, bytes]:
    try:
        told, ((function, args, kwargs), lent[:]) = world.unpack(pickled, pickling.loads_watched)
        with world.under(told):
            result = world.run_as(told, function, *args, **kwargs)
        return True, pickling.dumps_back(result)
    except BaseException as error:
        if is_ctrl_c(error):
            raise
        return False, pickle.dumps(Failure.before_blocks(error))


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
    _keep_to(settings.cpus)
    malloc.keep_freed()
    # A forked process would continue the parent's legacy streams, the same in every worker.
    for name in ("random", "numpy.random"):  # loading them takes milliseconds, and seeds them
        if name in sys.modules:
            sys.modules[name].seed()
    return blas.limit(settings.blas_threads)


def _keep_to(cpus: frozenset[int] | None) -> None:
    """Set the affinity mask again if something has changed it: some libraries shrink it when they are loaded."""
    if cpus is not None and os.sched_getaffinity(0) != cpus:
        os.sched_setaffinity(0, cpus)
