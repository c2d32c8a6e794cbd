"""Nodes as a backend: they are greeted, jobs are dealt to them, calls are handed to them, and all is ended.

engine's threads ──► heard ──► one thread ──► of a job: to whoever runs it; of a call: to its future
"""

from __future__ import annotations

import collections
import contextlib
import logging
import pickle
import queue
import threading
import time
import warnings
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy.typing as npt

from parcompute.backends.base import (
    Call,
    Options,
    StoresHere,
    Trouble,
    WorkerLost,
    deliver,
    settle,
)
from parcompute.backends.broken import Broken
from parcompute.backends.nodes import facts, wire
from parcompute.backends.nodes.deal import Deal
from parcompute.backends.nodes.peers import Absence, Engine, Peer, Said, Underway
from parcompute.jobs.job import Job, is_ctrl_c
from parcompute.jobs.setup import Setup
from parcompute.machine import signals
from parcompute.values.blocks import Plan
from parcompute.values.nodes import Node
from parcompute.values.timeline import Timeline

# A node hears something so often: then it knows that the caller is there.
_BEAT_S = 1.0

# Calls that a node has beyond those that its workers run.
_AHEAD = 1

_JOB = {"span", "lack", "unseen", "lost", "failed"}


class Nodes(StoresHere):
    """The nodes that an engine connects, as workers of one executor."""

    def __init__(self, options: Options, engine: Engine) -> None:
        self.start_method = options.start_method
        self._options, self._engine = options, engine
        self._peers: dict[int, Peer] = {}
        self._said = Said()
        self._turn = threading.Lock()
        self._news = signals.Condition()
        self._deal: Deal | None = None
        self._carried_out: tuple[Plan, Plan] | None = None  # the last plan, and the same as it was carried out
        self._n_jobs = self._n_calls = 0
        self._waiting: collections.deque[Underway] = collections.deque()
        self._arrays = wire.Arrays()
        self._closing = self._ended = False
        self._absence = Absence(engine)  # of those who could take calls
        self._events: queue.SimpleQueue[tuple[int, wire.Message | None]] = queue.SimpleQueue()
        setup = options.setup
        self._greeting = pickle.dumps(replace(options, setup=Setup(), cluster=None))
        self._setup: bytes | None = None
        self._setup_needs: dict[bytes, npt.NDArray[Any]] = {}
        if setup:
            parts = (setup.initializer, setup.initargs, setup.state)
            self._setup, self._setup_needs = self._arrays.dumps(parts, "what the workers are set up with")
        engine.open(self._heard)
        self._thread = threading.Thread(target=self._listen, name="parcompute-nodes", daemon=True)
        self._thread.start()
        try:
            self._wait(self._are_all_there)
            self._require_like()
        except BaseException:  # Ctrl-C too must leave no crews on other hosts
            self.kill()
            raise

    # --- who is there --------------------------------------------------------------------------------------

    @property
    def nodes(self) -> tuple[Node, ...]:
        """The nodes that are there."""
        return tuple(peer.described() for peer in self._ready())

    @property
    def n_workers(self) -> int:
        """Workers of all nodes that are there."""
        return max(1, sum(peer.node.n_workers for peer in self._ready() if peer.node))

    def _ready(self) -> list[Peer]:
        return [peer for peer in list(self._peers.values()) if peer.node is not None and not peer.gone]

    def _are_all_there(self) -> bool:
        if self._said.broken is not None:  # whoever uses them is told
            return True
        return all(peer.node or peer.gone for peer in list(self._peers.values())) and self._has_some()

    def _has_some(self) -> bool:
        return bool(self._ready()) or bool(self._said.refused) or self._said.broken is not None

    def _require_like(self) -> None:
        if self._said.refused:
            raise RuntimeError("; ".join(sorted(self._said.refused)))
        if doubts := facts.doubts(self.nodes):
            warnings.warn(doubts, stacklevel=6)

    def _wait(self, done: Any) -> None:
        """Wait until something is so; an error if there is nobody for too long."""
        absence = Absence(self._engine)
        with signals.heard(), self._news:
            while not done():
                signals.look()
                if error := absence.too_long(any(not peer.gone for peer in self._peers.values())):
                    raise error
                self._news.wait(signals.LOOK_S)

    def wait_until_ready(self) -> int:
        """Return when all nodes are ready."""
        self._require_usable()
        self._wait(self._has_some)
        self._require_unbroken()
        asked = self._ready()
        with self._news:
            for peer in asked:
                peer.asked += 1
                peer.send("ready")
        self._wait(lambda: all(not peer.asked or peer.gone for peer in asked))
        self._require_unbroken()
        now_ns = time.perf_counter_ns()
        return max((peer.ready_ns + peer.clock.offset(now_ns)[0] for peer in self._ready()), default=now_ns)

    def pids(self) -> tuple[int, ...]:
        """Return the process ids of the workers, each on its host."""
        return tuple(pid for peer in self._ready() for pid in peer.pids)

    def carried_out(self, plan: Plan) -> Plan:
        """Return a plan with the chunks in which the nodes have carried it out."""
        known, found = self._carried_out or (None, plan)
        return found if known is plan else plan

    # --- jobs ----------------------------------------------------------------------------------------------

    def run(self, job: Job, called_ns: int) -> tuple[Timeline, tuple[Trouble, ...]]:
        """Compute every block once, those of nodes that are lost again."""
        with signals.taken(self._turn):
            self._require_usable()
            self._wait(self._has_some)
            self._require_unbroken()
            self._n_jobs += 1
            deal = Deal(self._peers, self._n_jobs, job, self._arrays, self._options.retries, self._engine)
            self._forget_dropped()
            with self._news:
                self._deal = deal
            try:
                deal.run()
                self._carried_out = job.plan, deal.plan()
                return deal.conclude(called_ns)
            except BaseException as error:
                # Ctrl-C above all: what the nodes compute now is of no use to anyone.
                deal.stop(at_once=is_ctrl_c(error) or not isinstance(error, RuntimeError))
                raise
            finally:
                deal.forget()
                with self._news:
                    self._deal = None

    def _forget_dropped(self) -> None:
        """Have the nodes forget arrays that the caller has dropped."""
        if gone := self._arrays.gone():
            for peer in list(self._peers.values()):
                peer.drop(gone)

    def _require_usable(self) -> None:
        if self._closing:
            raise RuntimeError("this executor is closed; make a new one")

    def _require_unbroken(self) -> None:
        if (error := self._broken()) is not None:
            raise error

    def _broken(self) -> Broken | None:
        return None if self._said.broken is None else Broken(self._said.broken)

    # --- calls ---------------------------------------------------------------------------------------------

    def submit(self, call: Call) -> None:
        """Run a call on the node that has the least to do."""
        self._require_unbroken()
        try:
            function = (call.function, call.args, call.kwargs)
            pickled, needed = self._arrays.dumps(function, "the call")
            told = None if call.world is None else call.world.told(None)
        except BaseException as error:  # whatever a __reduce__ of the caller raises
            if is_ctrl_c(error):
                raise
            if call.future.set_running_or_notify_cancel():
                deliver(call.future, error=error)
            return
        with signals.held(), self._news:
            self._require_usable()
            self._waiting.append(Underway(call, pickled, needed, told))
        self._hand_out()

    def _hand_out(self) -> None:
        """Hand the calls that wait to nodes that have room."""
        with signals.held(), self._news:
            while self._waiting:
                free = [p for p in self._ready() if p.node and len(p.calls) < p.node.n_workers + _AHEAD]
                if not free:
                    return
                peer = min(free, key=lambda p: len(p.calls) / p.node.n_workers if p.node else 0.0)
                call = self._waiting.popleft()
                if not call.begin():
                    continue
                self._n_calls += 1
                peer.calls[self._n_calls] = call
                peer.supply(call.needed)
                peer.send("call", self._n_calls, wire.where(), call.told, call.pickled, call.call.n_calls)

    def _answered(self, peer: Peer, number: int, returned: bool, pickled: bytes) -> None:
        with self._news:
            call = peer.calls.pop(number, None)
            self._news.notify_all()
        if call is not None:
            settle(call.call.future, returned, pickled)
        del call  # with what it was given
        with self._news:
            self._forget_dropped()
        self._hand_out()

    # --- the thread that listens ---------------------------------------------------------------------------

    def _heard(self, number: int, message: wire.Message | None) -> None:
        """Take what the engine has received; any thread of it."""
        if message is not None and message[0] == "pong":
            if (peer := self._peers.get(number)) is not None:
                peer.clock.note(message[1], message[2], time.perf_counter_ns())
            return
        if message is not None and message[0] == "joined":
            with self._news:
                self._peers[number] = peer = Peer(number, self._engine)
            self._greet(peer)
            return
        self._events.put((number, message))

    def _greet(self, peer: Peer) -> None:
        peer.send("hello", facts.versions(), self._greeting, wire.where())
        for _ in range(4):
            peer.ping()
        peer.supply(self._setup_needs)
        peer.send("setup", self._setup)

    def _listen(self) -> None:
        next_beat_s = time.monotonic() + _BEAT_S
        while True:
            with contextlib.suppress(queue.Empty):
                number, message = self._events.get(timeout=max(0.0, next_beat_s - time.monotonic()))
                if number < 0:  # nobody is to be heard any more
                    return
                peer = self._peers.get(number)
                if peer is not None:
                    try:
                        self._take(peer, message)
                    except Exception:  # without this thread everybody would wait for ever
                        logging.getLogger(__name__).exception("node %s is given up:", peer.node and peer.node.host)
                        self._take(peer, None)
                del message
            if time.monotonic() >= next_beat_s:
                next_beat_s = time.monotonic() + _BEAT_S
                self._engine.look()
                self._despair()
                for peer in list(self._peers.values()):
                    peer.ping()

    def _take(self, peer: Peer, message: wire.Message | None) -> None:
        kind = "gone" if message is None else message[0]
        with self._news:
            deal = self._deal
            if message is None:
                peer.gone = True
                self._peers.pop(peer.number, None)
            elif kind == "here":
                peer.node, peer.pids, peer.ready_ns = message[1:]
            elif kind == "ready":
                peer.asked -= 1
                peer.ready_ns = message[1]
            elif kind == "pids":
                peer.pids = message[1]
            elif kind == "refused":
                self._said.refused.append(message[1])
                peer.gone = True
            elif kind == "broken":
                self._said.broken = message[1]
            self._news.notify_all()
        if kind == "result":
            assert message is not None
            self._answered(peer, *message[1:])
        elif deal is not None and (kind in _JOB or kind in ("gone", "here")):
            deal.inbox.put((peer, message))
        if kind == "gone":
            self._redeal_calls(peer)
        elif kind == "broken":
            self._give_up_calls(self._broken)
        elif kind == "here":
            self._hand_out()

    def _redeal_calls(self, peer: Peer) -> None:
        """Hand the calls of a lost node to others, unless they have cost too many."""
        with self._news:
            calls, peer.calls = list(peer.calls.values()), {}
        for call in reversed(calls):
            call.deaths += 1
            if call.deaths >= self._options.retries:
                host = peer.node.host if peer.node else "?"
                lost = WorkerLost(f"the call has cost {call.deaths} nodes, the last {host}", None, (255,) * call.deaths)
                deliver(call.call.future, error=lost)
            else:
                with self._news:
                    self._waiting.appendleft(call)
        self._hand_out()
        if not self._ready() and self._ended:
            self._give_up_calls(lambda: WorkerLost("the nodes are gone"))

    def _despair(self) -> None:
        """Give up the calls if there has been nobody for too long who could be given them."""
        if error := self._absence.too_long(self._ready() or not self._has_calls()):
            self._give_up_calls(lambda: error)

    def _give_up_calls(self, reason: Callable[[], BaseException | None]) -> None:
        with self._news:
            calls = [call for peer in self._peers.values() for call in peer.calls.values()]
            for peer in self._peers.values():
                peer.calls.clear()
            waiting, self._waiting = list(self._waiting), collections.deque()
        for call in calls + [call for call in waiting if call.begin()]:
            deliver(call.call.future, error=reason())

    # --- the end -------------------------------------------------------------------------------------------

    def _has_calls(self) -> bool:
        return bool(self._waiting) or any(peer.calls for peer in list(self._peers.values()))

    def close(self, *, wait: bool) -> None:
        """End the crews after the submitted calls."""
        with self._news:
            self._closing = True
        if wait:
            with signals.heard(), self._news:
                while self._has_calls() and self._peers:
                    signals.look()
                    self._news.wait(signals.LOOK_S)
            self._end()
        elif not self._has_calls():
            self._end()
        else:
            threading.Thread(target=self.close, kwargs={"wait": True}, daemon=True).start()

    def dropped(self) -> None:
        """End the crews after the submitted calls: nobody has the executor any more, as a collection has found."""
        threading.Thread(target=self.close, kwargs={"wait": True}, name="parcompute-dropped", daemon=True).start()

    def kill(self) -> None:
        """End the crews now."""
        with self._news:
            self._closing = True
            deal = self._deal
        if deal is not None:
            with signals.taken(self._turn):  # a job that another thread has begun ends first
                pass
        self._end("kill")
        self._give_up_calls(lambda: WorkerLost("the workers were ended while they ran the call"))

    def _end(self, how: str = "quit") -> None:
        with self._news:
            if self._ended:
                return
            self._ended = True
        for peer in list(self._peers.values()):
            peer.send(how)
        self._engine.close()
        self._events.put((-1, None))
        if threading.current_thread() is not self._thread:
            signals.join(self._thread)
