"""Hand submitted calls to free worker processes, taking turns with the jobs."""

from __future__ import annotations

import collections
import contextlib
import os
import threading
import time
from collections.abc import Iterator
from concurrent.futures import Future
from dataclasses import dataclass
from typing import Any

from parcompute.backends import base
from parcompute.backends.base import Call, WorkerLost, deliver
from parcompute.backends.processes.crew import Crew, Member, ending
from parcompute.jobs import pickling
from parcompute.machine import signals

# A worker is sent one call ahead, so that it need not wait for the parent between two of them, as long as they take
# less than so many seconds, or more wait than there are workers. One that has nothing to do gets what was sent ahead to
# another: nothing waits behind a long call.
_SHORT_S = 0.005

# A larger call waits for an idle worker: a busy one does not read, and once the socket is full (about 200 KiB)
# this process would wait for it, and it with a large result for this process.
_AHEAD_BYTES = 2**16


class Turn:
    """Jobs and submitted calls take turns on the crew; a job that waits goes first."""

    def __init__(self) -> None:
        self._gate = threading.Lock()  # of the job that has the crew, or is the first in the row
        self._lock = threading.Lock()  # of whoever has the crew
        self._caller = 0  # the thread that has it for calls

    def require_no_callback(self) -> None:
        """Refuse a job in the callback of a future, whose thread has the crew for calls.

        Raises
        ------
        RuntimeError
            Since it would wait for itself.
        """
        if self._caller == threading.get_ident():
            raise RuntimeError(
                "the callback of a future cannot run a job: its thread is the one that hands out the calls; "
                "submit a call there, or run the job in another thread"
            )

    def of_job(self) -> contextlib.AbstractContextManager[None]:
        """Have the crew for a job, and hear Ctrl-C while waiting for it."""
        return signals.taken(self._gate, self._lock)

    @contextlib.contextmanager
    def of_calls(self) -> Iterator[None]:
        """Have the crew for calls, once no job waits."""
        with self._gate:
            pass
        with self._lock:
            self._caller = threading.get_ident()
            try:
                yield
            finally:
                self._caller = 0

    @property
    def wanted(self) -> bool:
        """Whether a job waits for the crew."""
        return self._gate.locked()


@dataclass(eq=False)
class _Sent:
    """A submitted call on its way."""

    future: Future[Any]
    pickled: bytes
    keep_alive: list[Any]
    n_calls: int
    deaths: list[int]
    running: bool = False  # has been handed out, so it can no longer be cancelled

    def begin(self) -> bool:
        """Tell whether it may be handed out, now or again."""
        self.running = self.running or self.future.set_running_or_notify_cancel()
        return self.running


class Calls:
    """Hands submitted calls to free workers, in a thread of its own."""

    def __init__(self, crew: Crew, turn: Turn, retries: int) -> None:
        self._crew, self._turn, self._retries = crew, turn, retries
        self._waiting: collections.deque[_Sent] = collections.deque()
        self._news = signals.Condition()
        self._closing = self._killed = False
        self._then: Any = None
        self._number = 0
        self._usual_s = _SHORT_S  # of a call, the last ones counting most; nothing is known of the first
        self._bell, self._rope = os.pipe()
        os.set_blocking(self._rope, False)
        os.set_blocking(self._bell, False)
        self._rung = False
        self._thread = threading.Thread(target=self._serve, name="parcompute-calls", daemon=True)
        self._thread.start()

    def put(self, call: Call) -> None:
        """Queue a call.

        Raises
        ------
        RuntimeError
            After `close` or `kill`.
        """
        if (travelling := call.pickled(self._crew.world, lent=True)) is None:
            return
        with signals.held(), self._news:
            if self._closing:
                raise RuntimeError("this executor is closed; make a new one")
            self._waiting.append(_Sent(call.future, *travelling, call.n_calls, []))
            self._ring()

    def close(self, then: Any) -> None:
        """Call `then` when the last call is settled."""
        with signals.held(), self._news:
            if not self._closing:
                self._closing, self._then = True, then
                self._ring()

    def kill(self, then: Any) -> None:
        """End the workers and give up all calls, and call `then`."""
        self.close(then)
        with signals.held(), self._news:
            self._killed = True
            self._ring()

    def join(self) -> None:
        """Wait for the thread, unless this is it."""
        signals.join(self._thread)

    def _ring(self) -> None:
        # Under the lock: the thread closes the bell when it has seen the end.
        if not self._rung:
            self._rung = True
            os.write(self._rope, b"!")
            self._news.notify()

    def _serve(self) -> None:
        while True:
            with self._news:
                self._rung = False
                self._news.wait_for(lambda: self._waiting or self._closing)
                if not self._waiting:
                    break
            with self._turn.of_calls():
                members: list[Member] = []
                try:
                    self._crew.repair()
                    members = self._crew.members
                    self._work()
                except BaseException as error:  # whoever waits for a call must hear of it
                    self._crew.kill()
                    self._give_up(members, error)
        self._then()
        with self._news:
            self._rung = True  # nobody rings any more
            os.close(self._bell)
            os.close(self._rope)

    def _work(self) -> None:
        """Hand out calls until none is left, or a job wants the crew."""
        self._crew.watch(self._bell)
        try:
            self._hand_out_all()
        finally:
            self._crew.unwatch(self._bell)

    def _hand_out_all(self) -> None:
        while True:
            if self._killed:
                raise WorkerLost("the workers were killed, by kill_workers or after Ctrl-C")
            if self._turn.wanted:
                while self._take_back():
                    pass
            else:
                self._share_out()
            for member in self._crew.members:
                if not (member.calls_left or member.calls or member.leaving):
                    self._crew.dismiss(member)
            in_flight = any(member.calls or member.leaving for member in self._crew.members)
            if not in_flight and (self._turn.wanted or not self._waiting):
                return
            for member, message in self._crew.events():
                if message is None:
                    self._bury(member)
                elif message[0] == "result":
                    self._settle(member, *message[1:])
            self._silence()

    def _share_out(self) -> None:
        """Give each worker a call, then one ahead."""
        members = [member for member in self._crew.members if member.ready]
        for depth in range(2):
            for member in members:
                if len(member.calls) == depth and (not depth or self._goes_ahead(member)):
                    self._hand_out(member)
        for member in members:
            if self._waiting or member.calls or member.leaving or not member.calls_left:
                continue
            if not self._take_back():
                return
            self._hand_out(member)

    def _goes_ahead(self, member: Member) -> bool:
        return not member.skips and (self._usual_s < _SHORT_S or len(self._waiting) > len(self._crew.members))

    def _take_back(self) -> bool:
        """Have a call wait again that was sent ahead, behind the longest one if there is a choice."""
        for member in sorted(self._crew.members, key=lambda member: member.since_s):
            if len(member.calls) == 2 and member.tokens.taken():
                _, sent = member.calls.popitem()
                member.calls_left += sent.n_calls
                member.skips = True
                self._waiting.appendleft(sent)
                return True
        return False

    def _silence(self) -> None:
        """Have the next call ring again, before it is looked for."""
        with contextlib.suppress(BlockingIOError):
            os.read(self._bell, 4096)
        self._rung = False

    def _hand_out(self, member: Member) -> None:
        """Send a worker the next call that was not cancelled."""
        while self._waiting and not (member.calls and len(self._waiting[0].pickled) > _AHEAD_BYTES):
            if self._waiting[0].n_calls > member.calls_left:
                member.calls_left = 0  # a batch is not cut: the successor gets it
                return
            sent = self._waiting.popleft()
            if sent.begin():
                member.calls_left -= sent.n_calls
                self._number += 1
                if ahead := bool(member.calls):
                    member.tokens.give()
                else:
                    member.since_s = time.perf_counter()
                member.calls[self._number] = sent
                self._crew.send(member, "call", self._number, sent.pickled, ahead)
                return

    def _settle(self, member: Member, number: int, returned: bool, pickled: bytes, given_back: bool) -> None:
        sent: _Sent = member.calls.pop(number)
        if not given_back:  # its worker may go on looking at them
            pickling.export(sent.keep_alive)
        sent.keep_alive.clear()
        now_s = time.perf_counter()
        self._usual_s += (now_s - member.since_s - self._usual_s) / 4
        member.since_s = now_s
        base.settle(sent.future, returned, pickled)

    def _bury(self, member: Member) -> None:
        """Blame the call that ran; hand the others out again."""
        calls = list(member.calls.values())
        member.calls = {}
        if calls:
            running = calls[0]
            running.deaths.append(member.child.exitcode())
            if len(running.deaths) >= self._retries:
                from parcompute.backends.broken import CallLost  # 4 ms, that most programs need not pay

                calls.pop(0)
                codes = tuple(running.deaths)
                message = f"the call has cost {len(codes)} workers: {', '.join(map(ending, codes))}"
                deliver(running.future, error=CallLost(message, None, codes))
        self._waiting.extendleft(reversed(calls))
        self._crew.replace(member)

    def _give_up(self, members: list[Member], error: BaseException) -> None:
        given_up = [sent for member in members for sent in member.calls.values()]
        while self._waiting:
            given_up.append(self._waiting.popleft())
        for sent in given_up:
            if sent.begin():
                deliver(sent.future, error=error)
