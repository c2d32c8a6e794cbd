"""What a worker process does on each message of its parent, and what it remembers from one to the next."""

from __future__ import annotations

import gc
import os
import pickle
import threading
import weakref
from collections.abc import Callable, Sequence
from typing import Any

import numpy.typing as npt

from parcompute.jobs import pickling, world
from parcompute.jobs.job import Failure, Job, is_ctrl_c
from parcompute.jobs.schedule import Board, FileClaims, FileTokens, Pass
from parcompute.jobs.setup import Setup, State
from parcompute.memory import segments, sources
from parcompute.workers import exits
from parcompute.workers.channel import Channel
from parcompute.workers.walk import walk

# What is remembered of the last jobs: inputs and outputs in shared memory, each a message of so many bytes at most.
_REMEMBERED, _SHORT_BYTES = 8, 2**14


class Desk:
    """What a worker does on each kind of message."""

    def __init__(
        self,
        channel: Channel,
        claims: Sequence[FileClaims],
        tokens: FileTokens,
        first_worker: int,
        n_threads: int,
        cpus: frozenset[int] | None,
        setup: Setup,
    ) -> None:
        self.channel, self.claims, self.tokens, self.cpus = channel, claims, tokens, cpus
        self.first_worker, self.n_threads = first_worker, n_threads
        self.states = [State(setup.state) for _ in range(n_threads)]
        self.job: Job | None = None
        self.number = -1  # of the job
        self.opened: tuple[Any, ...] | None = None  # what its message has said, if the next job may say the same
        self.key = -1
        self.program: Any = None  # what it shares with the jobs before and after it
        self.known: dict[bytes, Any] = {}  # what the last few messages have had unpickled
        self.board: Board | None = None
        self.told: bytes | None = None  # of the caller's settings, with the job
        self.sending, self.receiving = threading.Lock(), threading.Lock()

    def walk(
        self,
        number: int,
        parcel: tuple[int, bytes, bytes, bytes, int | None, bool],
        told: bytes | None,
        arrays: bytes | None,
        pass_: Any,
        board: bytes,
    ) -> None:
        """Take part in a pass."""
        pass_number, n_chunks, lost, alone, is_claimed = pass_
        if is_claimed and self.claims[number % 2].n_taken >= n_chunks:  # this worker comes too late
            self._send("end", number)
            return
        try:
            with segments.holding():
                self._open(number, parcel, told, arrays)
                self.board = self._known(board, Board.attached)
            assert self.job is not None
            walked = Pass(pass_number, n_chunks, self.job.plan, lost, alone)
            keep_to(self.cpus)
        except BaseException as error:  # say what cannot be had here; the job cannot run on any worker
            self._send("failed", number, Failure.before_blocks(error))
            self._end(number, parcel)
            return
        first, lanes = self.first_worker, []
        with world.under(self.told):
            for worker in range(first + 1, first + (1 if alone else self.n_threads)):
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
        self._end(number, parcel)

    def _end(self, number: int, parcel: tuple[int, bytes, bytes, bytes, int | None, bool]) -> None:
        if not parcel[-1]:  # whoever has the result may write to the files that were its inputs
            self.forget(set())
        self._send("end", number)

    def _open(
        self,
        number: int,
        parcel: tuple[int, bytes, bytes, bytes, int | None, bool],
        told: bytes | None,
        arrays: bytes | None,
    ) -> None:
        """Have the job of a `parcompute.backends.processes.parcels.Parcel`, as far as it is not here already."""
        key, program, cut, data, seed, stays = parcel
        if number != self.number:
            self.number = -1
            world.arrive(told)
            if self.opened != (key, cut, data, seed, arrays):
                self.job = self.opened = None
                if key != self.key:
                    self.key, self.program = -1, None
                    self.key, self.program = key, pickling.loads(program)
                plan, outputs = self._known(cut, pickling.loads, stays)
                self.job = self.program.again(tuple(self._known(data, pickling.loads, stays)), seed, plan, outputs)
            self.number, self.told = number, told
        if self.opened is None and arrays is not None:
            self._attach(arrays)
            self.opened = (key, cut, data, seed, arrays) if stays else None

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
        self.job, self.number, self.opened = None, -1, None
        self.key, self.program = -1, None
        self.known.clear()
        self.board = None
        segments.release_mappings(gone)

    def arrays(self, number: int, arrays: Any) -> None:
        """Nothing: an answer to a question that was settled meanwhile."""

    def call(self, number: int, pickled: bytes, ahead: bool) -> None:
        """Run a submitted call and send what it returned or raised; not one that was sent ahead and taken back."""
        if ahead and not self.tokens.taken():
            self._send("skipped")
            return
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
        assert self.board is not None
        outputs, board = self.job.outputs, self.board

        def shaped(index: int, shape: Any) -> None:
            pickled = pickling.dumps_back(shape)
            pickle.loads(pickled)  # if it cannot be rebuilt, that is the failure of this block
            if index == 0 or not self.channel.poll():
                self._send("shape", number, index, pickled)
            with self.receiving:  # one thread waits for the answer of all
                # Who is asked to leave may have had the answer before, and then a place for its result.
                if outputs.arrays is None and (not board.stopped or self.channel.poll()):
                    answer = self.channel.recv()
                    assert answer[:2] == ("arrays", number)
                    self._attach(answer[2])

        def odd(index: int, result: Any) -> None:
            self._send("odd", number, index, pickling.dumps_back(result))

        def failed(failure: Failure) -> None:
            self._send("failed", number, failure)

        try:
            with self.states[worker - self.first_worker].here():
                world.run_as(
                    self.told, walk, self.job, pass_, board, self.claims[number % 2], worker, shaped, odd, failed
                )
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
    return shape, [sources.open_reference(place) for place in places]


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
    except BaseException as error:  # SystemExit too: whoever has submitted the call must hear of it
        if is_ctrl_c(error):
            raise
        return False, pickle.dumps(Failure.before_blocks(error))


def keep_to(cpus: frozenset[int] | None) -> None:
    """Set the affinity mask again if something has changed it: some libraries shrink it when they are loaded."""
    if cpus is not None and os.sched_getaffinity(0) != cpus:
        os.sched_setaffinity(0, cpus)
