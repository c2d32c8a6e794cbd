"""Cut many calls of one function into batches that travel together, and give their results in order.

The first batches are single calls. How long those took tells how many fit a batch that is worth its way;
towards the end batches shrink again, so that no worker is left with a long one. A batch that turns out long is broken
off, and what is left of it is sent again in smaller ones: quick calls tell nothing of those that follow.

    iterables ──► read ──► batch, batch, batch on their way ──► results, in order
                  all at once, or as far as `buffersize` goes
"""

from __future__ import annotations

import functools
import itertools
import pickle
import sys
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import CancelledError, Future
from dataclasses import dataclass
from typing import Any

from parcompute.backends.base import WorkerLost
from parcompute.jobs import pickling
from parcompute.jobs.job import Failure, is_ctrl_c
from parcompute.machine import signals
from parcompute.values.blocks import whole

# Sending a batch and taking its results costs some 0.1 ms: a few per cent of the first, and half of the second,
# which is as small as batches become towards the end.
BATCH_S = 0.004
LEAST_S = 0.0002

# A batch that has taken so long is broken off after the call that it is at.
_AT_MOST_S = 2 * BATCH_S

# Batches per worker that are on their way at a time: one computes, one is there, the others tell that more will come.
_AHEAD = 4

# A batch is at most this share of an equal share of what is left.
_SHARE = 2

# And at most so many times the largest that has ended: of what is sent for the first time little is known.
_GROWTH = 64


@dataclass(eq=False)
class _Batch:
    """Some calls on their way."""

    items: Sequence[Any]
    future: Future[Any]
    sent_s: float  # that it took to send them
    ended: bool = False  # and counted
    rest: Sequence[_Batch] = ()  # what it was broken off before, sent again


class Batches:
    """The calls of one `map`, submitted batch by batch as earlier ones end.

    Parameters
    ----------
    submit : callable
        Of the executor; it works until the executor lets go of its workers.
    function : callable
        What is called.
    iterables : sequence of iterable
        The arguments of the calls.
    n_workers : int
        Of the executor.
    chunksize : int or None
        Calls per batch; None finds out.
    buffersize : int or None
        Calls whose results have not been taken, at most; None reads the iterables to their end at once.
    most : int or None
        Calls per batch, at most.
    """

    def __init__(
        self,
        submit: Callable[..., Future[Any]],
        function: Callable[..., Any],
        iterables: Sequence[Iterable[Any]],
        n_workers: int,
        chunksize: int | None,
        buffersize: int | None,
        most: int | None = None,
    ) -> None:
        self._submit, self._n_workers = submit, n_workers
        self._chunksize = None if chunksize is None else whole("chunksize", chunksize, at_least=1)
        self._buffersize = None if buffersize is None else whole("buffersize", buffersize, at_least=1)
        self._most = sys.maxsize if most is None else most
        self._function, self._starred = SentOnce(function), len(iterables) != 1
        self._source = iter(iterables[0]) if len(iterables) == 1 else zip(*iterables, strict=False)
        self._more = True  # in the source
        self._items: list[Any] = []  # read and not sent, the next one last
        self._unyielded = 0
        self._ended_calls, self._ended_s = 0, 0.0  # since a batch was broken off
        self._largest, self._largest_s = 0, 0.0  # of the batches that have ended
        self._in_flight = 0
        self._feeding = self._finished = False
        self._stopped: BaseException | None = None
        self._batches: deque[_Batch] = deque()
        self._changed = signals.Condition()
        self._read()
        self._feed()

    def results(self, deadline: float | None) -> Iterator[Any]:
        """Yield the results in order.

        Parameters
        ----------
        deadline : float or None
            By `time.monotonic`; waiting beyond it raises TimeoutError.
        """
        try:
            while (batch := self._next(deadline)) is not None:
                values, failure = self._outcome(batch, deadline)
                del batch
                values.reverse()
                while values and self._more:
                    yield values.pop()
                    self._unyielded -= 1
                    self._read()
                    self._feed()
                # The same without a line of Python per result, and nothing here holds on to one either.
                yield from map(list.pop, itertools.repeat(values, len(values)))
                if failure is not None:
                    raise failure.called()
        finally:
            self.stop(CancelledError())
            for batch in self._batches:
                batch.future.cancel()

    def join(self) -> None:
        """Return when all that was read has been sent and has ended, or the map was stopped."""
        with signals.heard(), self._changed:
            signals.wait(functools.partial(self._changed.wait_for, lambda: self.done))

    @property
    def done(self) -> bool:
        """Whether no call is on its way or to be sent."""
        return self._stopped is not None or not (self._items or self._feeding or self._in_flight)

    @signals.heard()
    def finish(self) -> None:
        """Submit all that was read: the executor will take no more calls."""
        with self._changed:
            self._finished = True
            self._feed()

    @signals.heard()
    def stop(self, why: BaseException) -> None:
        """Submit no more; who waits for the results gets those of what was submitted, and then this exception."""
        with self._changed:
            self._stopped, self._more = self._stopped or why, False
            self._items = []
            self._changed.notify_all()

    # --- the results ---------------------------------------------------------------------------------------

    @signals.heard()
    def _next(self, deadline: float | None) -> _Batch | None:
        """Return the batch whose results are next, taken off the row; None at the end."""
        with self._changed:
            there = functools.partial(self._changed.wait_for, lambda: self._batches or self._at_end)
            if not signals.wait(there, _left(deadline)):
                raise TimeoutError
            if self._batches:
                return self._batches.popleft()
            if self._stopped is not None:
                raise self._stopped
            return None

    @property
    def _at_end(self) -> bool:
        return self._stopped is not None or not (self._items or self._more or self._feeding)

    @signals.heard()
    def _outcome(self, batch: _Batch, deadline: float | None) -> tuple[list[Any], Failure | None]:
        try:
            answer: _Answer = signals.result(batch.future, _left(deadline))
        except WorkerLost:
            if len(batch.items) < 2:
                raise
            # One of the calls has cost the workers, and only that one shall be lost.
            with self._changed:
                self._batches.extendleft(reversed([self._send([item]) for item in batch.items]))
            return [], None
        except BaseException:
            batch.future.cancel()  # a deadline has passed, or Ctrl-C: it is off the row already
            raise
        with self._changed:  # by the thread that has settled it
            signals.wait(functools.partial(self._changed.wait_for, lambda: batch.ended))
            self._batches.extendleft(reversed(batch.rest))
        return answer.results, answer.failure

    # --- the calls -----------------------------------------------------------------------------------------

    def _read(self) -> None:
        """Read the source to its end, or as far as the buffer goes: in the thread of whoever takes the results."""
        room = None if self._buffersize is None else self._buffersize - self._unyielded
        with signals.at_any_line():
            read = list(itertools.islice(self._source, room))
        with self._changed:
            self._more = len(read) == room and self._stopped is None
            if read and self._finished:
                self.stop(RuntimeError("the executor was closed before map had read all inputs"))
            else:
                self._unyielded += len(read)
                read.reverse()
                self._items[:0] = read

    @signals.heard()
    def _feed(self) -> None:
        """Submit as many batches as may be on their way."""
        with self._changed:
            if self._feeding:  # a serial executor ends a batch before it returns its future
                return
            self._feeding = True
            try:
                while self._items and (self._finished or self._in_flight < self._n_workers * self._ahead):
                    size = self._size(len(self._items))
                    if self._more and self._in_flight and not self._finished and size < self._least():
                        break  # more will have been read when one of those ends
                    taken = self._items[-size:]
                    del self._items[-size:]
                    taken.reverse()
                    self._put(taken)
            except Exception as error:  # the executor has gone
                self.stop(error)
            finally:
                self._feeding = False
                self._changed.notify_all()

    def _put(self, items: list[Any]) -> None:
        batch = self._send(items)
        future = batch.future
        if len(items) > 1 and future.done() and not future.cancelled() and future.exception() is not None:
            # Something among them cannot travel. Nothing has run; those before it come first, as they should.
            self._batches.extend(self._send([item]) for item in items)
        else:
            self._batches.append(batch)

    def _send(self, items: Sequence[Any]) -> _Batch:
        started_s = time.perf_counter()
        at_most_s = _AT_MOST_S if self._chunksize is None else float("inf")
        future = self._submit(len(items), _each, self._function, self._starred, items, at_most_s)
        batch = _Batch(items, future, time.perf_counter() - started_s)
        self._in_flight += 1
        future.add_done_callback(functools.partial(self._ended, batch))
        return batch

    @property
    def _call_s(self) -> float:
        """Seconds that a call is taken to need."""
        return max(self._ended_s / self._ended_calls, 1e-9) if self._ended_calls else BATCH_S

    @property
    def _ahead(self) -> int:
        """Batches per worker that may be on their way: as long as the sizes are guesses, few."""
        return _AHEAD if self._largest_s >= LEAST_S or self._chunksize is not None else 1

    def _least(self) -> int:
        return 1 if self._chunksize is not None else int(LEAST_S / self._call_s)

    def _size(self, left: int) -> int:
        left = min(left, self._most)
        if self._chunksize is not None:
            return min(left, self._chunksize)
        shared = max(left // (_SHARE * self._n_workers), self._least())
        return max(1, min(left, shared, int(BATCH_S / self._call_s), _GROWTH * self._largest))

    def _ended(self, batch: _Batch, future: Future[Any]) -> None:
        with self._changed:
            if not future.cancelled() and future.exception() is None:
                self._count(batch, future.result())
            self._in_flight -= 1
            batch.ended = True
            self._changed.notify_all()
        self._feed()
        if self.done:  # not only when the garbage collector looks for circles
            self._function.let_go()

    def _count(self, batch: _Batch, answer: _Answer) -> None:
        """Learn from a batch how long calls take, and send again what it was broken off before."""
        items, n, run_s = batch.items, len(answer.results) + (answer.failure is not None), answer.run_s
        batch.items = ()
        # What it takes to send one call tells little of many; of two or more it is mostly theirs.
        sent_s = batch.sent_s - (LEAST_S if n > 1 else BATCH_S)
        # Of a batch that was broken off, the last call has taken all that is above the limit, and the quick ones before
        # tell nothing of those to come.
        if run_s > _AT_MOST_S and self._chunksize is None:
            self._ended_calls, self._ended_s = 1, max(run_s / n, run_s - _AT_MOST_S)
        else:
            self._ended_calls += n
            self._ended_s += max(run_s, sent_s)
        self._largest, self._largest_s = max(self._largest, n), max(self._largest_s, run_s, sent_s)
        if n == len(items) or answer.failure is not None or self._stopped is not None:
            return
        rest, pieces = items[n:], []
        try:
            while rest:
                size = self._size(len(rest))
                pieces.append(self._send(rest[:size]))
                rest = rest[size:]
        except Exception as error:  # the executor has gone
            self.stop(error)
        batch.rest = pieces


def _left(deadline: float | None) -> float | None:
    return None if deadline is None else max(0.0, deadline - time.monotonic())


class SentOnce:
    """The function of many calls: pickled once for all of them, and only if they travel."""

    def __init__(self, function: Callable[..., Any]) -> None:
        self.function = function
        self._pickled: tuple[bytes, list[Any]] | None = None

    def __reduce__(self) -> Any:
        if self._pickled is None:
            self._pickled = pickling.dumps((self.function, (), {}), "the function")
        return _arrived, (self._pickled[0],)

    def let_go(self) -> None:
        """Let go of the arrays that travel with it; sent again, it is pickled again."""
        self._pickled = None


def _arrived(pickled: bytes) -> SentOnce:
    return SentOnce(pickling.loads_again(pickled)[0])


@dataclass(eq=False)
class _Answer:
    """The results of a batch up to the first failure, that, and how long they took."""

    results: list[Any]
    failure: Failure | None
    run_s: float

    def __reduce__(self) -> Any:
        results, failure = self.results, self.failure
        try:
            pickled = pickling.dumps_back(results)
        except BaseException as error:  # one of them cannot travel; those before it do
            if is_ctrl_c(error):
                raise
            results = list(itertools.takewhile(_can_travel, results))
            pickled, failure = pickling.dumps_back(results), Failure.before_blocks(error)
        return _unpacked, (pickled, failure, self.run_s)


def _unpacked(pickled: bytes, failure: Failure | None, run_s: float) -> _Answer:
    return _Answer(pickle.loads(pickled), failure, run_s)


def _can_travel(result: Any) -> bool:
    try:
        pickling.dumps_back(result)
    except BaseException:  # of the user's __reduce__
        return False
    return True


def _each(function: SentOnce, starred: bool, items: Sequence[Any], at_most_s: float) -> _Answer:
    """Call a function with each item, or with the arguments that each item is, until it has taken so long."""
    call, clock = function.function, time.perf_counter
    results: list[Any] = []
    failure = None
    started_s = clock()
    until_s = started_s + at_most_s
    try:
        if starred:
            for args in items:
                results.append(call(*args))
                if clock() > until_s:
                    break
        else:
            for item in items:
                results.append(call(item))
                if clock() > until_s:
                    break
    except BaseException as error:
        if is_ctrl_c(error):
            raise
        failure = Failure.before_blocks(error)
    return _Answer(results, failure, clock() - started_s)
