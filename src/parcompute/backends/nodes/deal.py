"""One job on the nodes: spans are dealt, rows are stored, and what a lost node had is dealt again.

blocks   │ 0 ─────── │ ─────── │ ────── │ ───── │ ──── │ ─── │ …      spans shrink with what is left
node 0   ▓▓▓▓▓▓▓▓▓▓▓           ▓▓▓▓▓▓▓▓         ▓▓▓▓▓▓                one is computed, one is on its way
node 1               ▓▓▓▓▓▓▓▓▓          ▓▓▓▓▓▓▓        ▓▓▓▓
"""

from __future__ import annotations

import pickle
import queue
import time
from dataclasses import dataclass
from typing import Any

import numpy as np

from parcompute.backends.base import Trouble, WorkerLost, conclude
from parcompute.backends.nodes import wire
from parcompute.backends.nodes.parcel import Parcel
from parcompute.backends.nodes.peers import Absence, Engine, Peer
from parcompute.backends.nodes.story import Story
from parcompute.jobs.job import Failure, Job, is_ctrl_c
from parcompute.jobs.outputs import ResultError
from parcompute.jobs.schedule import DONE, FAILED, WAITING
from parcompute.machine import signals
from parcompute.values.blocks import Plan, runs
from parcompute.values.timeline import Timeline

# Spans that a node has at a time: the next one is there when it has computed one.
_AHEAD = 2

# How long a span takes, as far as the speed of its node is known: so many times the way there and back at least, and
# not so short that dealing costs more than a few per cent; not so long that much is lost with a node, or between two
# looks at a checkpoint. The first, of which nothing is known, is a small part; where the last job was the same on other
# items, its speed is a guess, and the first span half of the part at most.
_WAYS, _LEAST_S, _MOST_S, _FIRST_PART = 4, 0.05, 5.0, 32

# The exit status of processes of which nobody can say how they ended, as in the standard library.
UNKNOWN = 255


@dataclass(eq=False)
class _Sent:
    """A span on its way."""

    first: int
    stop: int
    attempt: int
    with_shape: bool
    sent_ns: int


class Deal:
    """One job on the nodes.

    Parameters
    ----------
    peers : dict of int to Peer
        The nodes, which may come and go.
    number : int
        Of the job.
    job : Job
        What to compute.
    arrays : wire.Arrays
        Of the caller.
    retries : int
        How many nodes one block may cost.
    engine : Engine
        Which connects them.
    """

    def __init__(
        self, peers: dict[int, Peer], number: int, job: Job, arrays: wire.Arrays, retries: int, engine: Engine
    ) -> None:
        self.inbox: queue.SimpleQueue[tuple[Peer, wire.Message | None]] = queue.SimpleQueue()
        self._peers, self._number, self._job, self._retries = peers, number, job, retries
        self._done = np.zeros(job.plan.n_blocks, np.uint8)
        self._parcel = Parcel(job, arrays)
        self._unseen: dict[Peer, set[int]] = {}
        self._todo: list[tuple[int, int, int]] = []  # first, stop, attempt
        self._owed: dict[Peer, list[_Sent]] = {}
        self._early: list[tuple[Peer, _Sent, dict[str, Any]]] = []
        self._lost_by_node = np.zeros(0, np.uint8)  # how many nodes each block has cost, once one has
        self._failures: list[Failure] = []
        self._lost: list[WorkerLost] = []
        self._rates: dict[Peer, float] = {}  # blocks per second, of its workers while they compute
        self._story = Story()
        self._stopping = self._headless = False
        self._absence = Absence(engine)

    # --- the run -------------------------------------------------------------------------------------------

    def run(self) -> None:
        """Have every block computed, or the job given up."""
        self._job.follow(self._done, every_s=0.0, stop=self._leave)
        self._todo = [(first, stop, 0) for first, stop in runs(self._done == WAITING)]
        self.submitted_ns = time.perf_counter_ns()
        for peer in list(self._peers.values()):
            self._enlist(peer)
        self._serve()
        while not self._finished():
            if error := self._absence.too_long(any(not peer.gone for peer in self._owed)):
                raise error
            signals.look()
            try:
                peer, message = self.inbox.get(timeout=self._job.look())
            except queue.Empty:
                continue
            if message is None:
                self._buried(peer)
            elif message[0] == "here":
                self._enlist(peer)
                self._serve()
            else:
                getattr(self, f"_on_{message[0]}")(peer, *message[1:])
        self.completed_ns = time.perf_counter_ns()
        self._job.look()

    def _finished(self) -> bool:
        return not any(self._owed.values()) and (self._over or not (self._todo or self._early))

    @property
    def _over(self) -> bool:
        if self._job.ended:
            return True
        if self._job.keep_going:
            return None in [f.block for f in self._failures] + [loss.block for loss in self._lost]
        return bool(self._failures or self._lost)

    def stop(self, *, at_once: bool) -> None:
        """Have the nodes leave the job: after the blocks that they compute, or with their workers."""
        self._stopping = True
        for peer in self._owed:
            peer.send("stop", self._number, at_once)

    def _leave(self) -> None:
        self.stop(at_once=False)

    def forget(self) -> None:
        """Have them forget it."""
        for peer in self._owed:
            peer.send("forget", self._number)

    # --- dealing -------------------------------------------------------------------------------------------

    def _enlist(self, peer: Peer) -> None:
        if peer in self._owed or peer.node is None or peer.gone:
            return
        self._story.enlist(peer)
        self._owed[peer] = []
        self._unseen[peer] = {i for i, one in enumerate(self._parcel.inputs) if one is None}
        peer.ping()
        peer.supply(self._parcel.needed)
        peer.send("job", self._number, wire.where(), self._parcel.told, self._parcel.pickled, self._parcel.inputs)

    def _serve(self) -> None:
        """Deal spans: one to each node that has none, then a second one."""
        is_static = self._job.plan.schedule.kind == "static"
        for n in range(1 if is_static else _AHEAD):
            for peer, owed in self._owed.items():
                if self._todo and len(owed) == n and not (self._over or self._stopping or peer.gone):
                    self._send(peer, self._next(peer))

    def _send(self, peer: Peer, sent: _Sent) -> None:
        self._owed[peer].append(sent)
        outputs = self._job.outputs
        shape = (outputs.shape,) if outputs.arrays is not None else None
        sent.with_shape = shape is not None
        windows = {i: self._parcel.rows_of(i, sent.first, sent.stop) for i in self._unseen[peer]}
        sent.sent_ns = time.perf_counter_ns()
        peer.send("span", self._number, sent.first, sent.stop, shape, windows)

    def _next(self, peer: Peer) -> _Sent:
        """Take the next span from what is left: about a quarter of this node's part of it."""
        assert peer.node is not None
        first, stop, attempt = self._todo[0]
        left = sum(stop - first for first, stop, _ in self._todo)
        n_workers = sum(p.node.n_workers for p in self._owed if p.node is not None and not p.gone)
        part = left * peer.node.n_workers / n_workers
        if self._job.plan.schedule.kind == "static":
            idle = [p for p, owed in self._owed.items() if p.node is not None and not (p.gone or owed)]
            size = -(-left * peer.node.n_workers // sum(p.node.n_workers for p in idle if p.node is not None))
        else:
            known = self._rates.get(peer)
            rate = known or (peer.last_rate[1] if peer.last_rate[0] == self._parcel.pickled else None)
            if rate is None:
                size = max(peer.node.n_workers, int(part / _FIRST_PART))
            else:
                worth = rate * max(_LEAST_S, _WAYS * peer.clock.round_trip_ns / 1e9)
                size = int(min(max(part / 4, min(worth, part), worth / 4), rate * _MOST_S))
                if not known:
                    size = min(size, int(part / 2))
            size = max(1, size)
        if attempt:  # of a lost node: a part of it for each, so that what has cost a node is found
            size = min(size, max(1, -(-(stop - first) // 2)) if self._most_lost(first, stop) < self._retries else 1)
        size = min(size, stop - first)
        self._todo[0] = (first + size, stop, attempt)
        if first + size == stop:
            del self._todo[0]
        return _Sent(first, first + size, attempt, False, 0)

    def _take_back(self, first: int, stop: int, attempt: int) -> None:
        """Deal the blocks of a span again that are not done."""
        left = runs(self._done[first:stop] == WAITING)
        self._todo[:0] = [(first + begin, first + end, attempt) for begin, end in left]

    # --- what nodes say ------------------------------------------------------------------------------------

    def _settled(self, peer: Peer, number: int, first: int, stop: int) -> _Sent | None:
        if number != self._number:
            return None
        for sent in self._owed.get(peer, ()):
            if (sent.first, sent.stop) == (first, stop):
                self._owed[peer].remove(sent)
                return sent
        return None

    def _on_span(self, peer: Peer, number: int, first: int, stop: int, came: dict[str, Any] | None) -> None:
        if (sent := self._settled(peer, number, first, stop)) is None:
            return
        if came is None:
            self._take_back(first, stop, sent.attempt)
        elif self._job.outputs.arrays is None and not self._decides(sent, came):
            self._early.append((peer, sent, came))
        else:
            self._place(peer, sent, came)
            early, self._early = self._early, []
            for one in early:
                self._place(*one)
        self._after()
        self._serve()

    def _decides(self, sent: _Sent, came: dict[str, Any]) -> bool:
        """Whether block 0 has said now what a result looks like, or never will; then there are arrays."""
        outputs = self._job.outputs
        shape = came["shape"]
        if sent.first == 0:
            if came["done"][0] == DONE and shape is not None:
                outputs.allocate(shape[0], np.empty)
                return True
            if any(failure.block is None for failure in came["failures"]) or not self._job.keep_going:
                return True
            self._headless = True
        if self._headless:
            known = sorted(
                [(s.first, c["shape"]) for _, s, c in [*self._early, (None, sent, came)] if c["shape"] is not None],
                key=lambda one: one[0],
            )
            if known:
                outputs.allocate(known[0][1][0], np.empty)
                return True
            return not self._todo and not any(self._owed.values())
        return False

    def _place(self, peer: Peer, sent: _Sent, came: dict[str, Any]) -> None:
        """Store what has come of a span, or have it computed again if it is not what block 0 has said."""
        outputs, first, stop = self._job.outputs, sent.first, sent.stop
        if not sent.with_shape and outputs.arrays is not None:
            odd = any(isinstance(failure.exception, ResultError) for failure in came["failures"])
            if odd or (came["shape"] is not None and came["shape"][0] != outputs.shape):
                self._todo.insert(0, (first, stop, sent.attempt))
                return
        done = came["done"]
        if outputs.arrays is not None and came["shape"] is not None:
            for a, b in runs(done == DONE):
                into, out_of = outputs.span(first + a, first + b), outputs.span(a, b)
                for target, rows in zip(outputs.stored or (), came["arrays"], strict=True):
                    target[into] = rows[out_of]
                if outputs.arrived is not None:
                    outputs.arrived[first + a : first + b] = True
        for index, pickled in came["odd"].items():
            try:
                outputs.keep(index, pickle.loads(pickled))
            except BaseException as error:  # whatever the class of a result raises when it is rebuilt here
                if is_ctrl_c(error):
                    raise
                self._failures.append(self._job.failure(self._job.plan.block(index), error))
                done[index - first] = FAILED
        self._done[first:stop] = done
        self._failures += came["failures"]
        self._lost += came["lost"]
        for trouble in [*came["failures"], *came["lost"]]:
            if trouble.block is not None:
                self._done[trouble.block.index] = FAILED
        self._story.tell(peer, first, stop, sent.attempt, sent.sent_ns, came)
        if len(chunks := came["chunks"]):  # what it takes to begin a span is not to make the next one short
            took_ns = int(chunks["stored_ns"].max() - chunks["started_ns"].min())
            self._rates[peer] = (stop - first) / max(1e-9, took_ns / 1e9)
            peer.last_rate = self._parcel.pickled, self._rates[peer]
        if not self._over:
            self._take_back(first, stop, sent.attempt)
        self._job.look()

    def _on_lack(self, peer: Peer, number: int, first: int, stop: int, lacking: list[int]) -> None:
        if (sent := self._settled(peer, number, first, stop)) is not None:
            self._unseen[peer].update(lacking)
            self._take_back(first, stop, sent.attempt)
            self._serve()

    def _on_unseen(self, peer: Peer, number: int, inputs: list[int]) -> None:
        if number == self._number and peer in self._unseen:
            self._unseen[peer].update(inputs)

    def _on_lost(self, peer: Peer, number: int, first: int, stop: int, error: WorkerLost) -> None:
        if self._settled(peer, number, first, stop) is not None:
            self._lost.append(error)
            self._after()

    def _on_failed(self, peer: Peer, number: int, failure: Failure) -> None:
        """Take note that a node cannot do its part, and why: a module is not there, memory is short."""
        if number != self._number:
            return
        self._owed[peer] = []
        self._failures.append(failure)
        self._after()

    def _after(self) -> None:
        if self._over and not self._stopping:
            self.stop(at_once=False)

    def _buried(self, peer: Peer) -> None:
        """Deal again what a lost node had."""
        for sent in reversed(self._owed.get(peer, [])):
            self._note_loss(sent)
            self._take_back(sent.first, sent.stop, sent.attempt + 1)
        if peer not in self._owed:
            return
        self._owed[peer] = []
        self._story.bury(peer, UNKNOWN)
        self._serve()

    def _note_loss(self, sent: _Sent) -> None:
        if not len(self._lost_by_node):
            self._lost_by_node = np.zeros(self._job.plan.n_blocks, np.uint8)
        self._lost_by_node[sent.first : sent.stop] += 1
        if sent.stop - sent.first == 1 and self._lost_by_node[sent.first] > self._retries:
            block = self._job.plan.block(sent.first)
            what = f"block {block.index} (items {block.start} to {block.stop - 1}) of kernel {self._job.name}"
            codes = (UNKNOWN,) * int(self._lost_by_node[sent.first])
            self._lost.append(WorkerLost(f"{what} has cost {len(codes)} nodes", block, codes))
            self._done[sent.first] = FAILED
            self._after()

    def _most_lost(self, first: int, stop: int) -> int:
        return int(self._lost_by_node[first:stop].max(initial=0)) if len(self._lost_by_node) else 0

    # --- the end -------------------------------------------------------------------------------------------

    def plan(self) -> Plan:
        """Return the plan with the chunks that it was carried out in."""
        return self._story.plan(self._job.plan)

    def conclude(self, called_ns: int) -> tuple[Timeline, tuple[Trouble, ...]]:
        """Return, or raise, what `parcompute.backends.base.Backend.run` does."""
        troubles = conclude(self._job, self._failures, self._lost)
        return self._story.timeline(self._job.plan, called_ns, self.submitted_ns, self.completed_ns), troubles
