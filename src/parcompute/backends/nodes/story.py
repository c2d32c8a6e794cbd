"""What happened during a job on several nodes: each tells it on its own clock, the timeline has one."""

from __future__ import annotations

import time
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import numpy.typing as npt

from parcompute.backends.nodes.peers import Peer
from parcompute.values.blocks import Plan
from parcompute.values.timeline import CHUNK_DTYPE, DEATH_DTYPE, NODE_DTYPE, SPAN_DTYPE, WORKER_DTYPE, Timeline

_STAMPS = ("started_ns", "finished_ns", "stored_ns")


@dataclass(eq=False)
class _Span:
    """A span that a node has computed, as both have seen it."""

    peer: Peer
    first: int
    stop: int
    sent_ns: int
    arrived_ns: int  # on the clock of the node
    finished_ns: int
    received_ns: int
    chunks: npt.NDArray[np.void]
    edges: npt.NDArray[np.int64]


class Story:
    """Puts together what the nodes tell of one job."""

    def __init__(self) -> None:
        self._first_worker: dict[Peer, int] = {}
        self._spans: list[_Span] = []
        self._deaths: list[tuple[Peer, npt.NDArray[np.void]]] = []
        self._workers: dict[Peer, npt.NDArray[np.void]] = {}

    def enlist(self, peer: Peer) -> None:
        """Give the workers of a node the next numbers."""
        self._first_worker[peer] = sum(map(_n_workers, self._first_worker))

    def tell(self, peer: Peer, first: int, stop: int, attempt: int, sent_ns: int, came: dict[str, Any]) -> None:
        """Take note of a span of which the results are stored now."""
        chunks = came["chunks"].copy()
        chunks["attempt"] += attempt
        stamps = sent_ns, came["arrived_ns"], came["finished_ns"], time.perf_counter_ns()
        self._spans.append(_Span(peer, first, stop, *stamps, chunks, came["edges"]))
        self._workers[peer] = came["workers"]
        if len(came["deaths"]):
            self._deaths.append((peer, came["deaths"]))

    def bury(self, peer: Peer, exitcode: int) -> None:
        """Take note that a node is lost, with all its workers."""
        now_ns = time.perf_counter_ns()
        deaths = np.zeros(len(peer.pids), DEATH_DTYPE)
        deaths["worker"] = np.arange(len(peer.pids)) * (_n_workers(peer) // max(1, len(peer.pids)))
        deaths["pid"], deaths["exitcode"] = peer.pids, exitcode
        deaths["noticed_ns"] = now_ns - peer.clock.offset(now_ns)[0]
        self._deaths.append((peer, deaths))

    def plan(self, plan: Plan) -> Plan:
        """Return a plan with the chunks in which the nodes have carried it out."""
        edges = [plan.edges[[0, -1]], *(span.first + span.edges for span in self._spans)]
        return replace(plan, edges=np.unique(np.concatenate(edges)))

    def timeline(self, plan: Plan, called_ns: int, submitted_ns: int, completed_ns: int) -> Timeline:
        """Return what happened, all on the clock of this process."""
        peers = list(self._first_worker)
        clocks = {peer: peer.clock.offset((called_ns + completed_ns) // 2) for peer in peers}
        order = {peer: number for number, peer in enumerate(peers)}
        edges = self.plan(plan).edges
        nodes = [(order[peer], self._first_worker[peer], _n_workers(peer), *clocks[peer]) for peer in peers]
        spans = [
            (
                order[span.peer],
                span.first,
                span.stop,
                span.sent_ns,
                span.arrived_ns + clocks[span.peer][0],
                span.finished_ns + clocks[span.peer][0],
                span.received_ns,
            )
            for span in self._spans
        ]
        return Timeline(
            called_ns,
            submitted_ns,
            completed_ns,
            np.concatenate(
                [np.zeros(0, CHUNK_DTYPE), *(self._chunks(s, edges, clocks[s.peer][0]) for s in self._spans)]
            ),
            np.concatenate([np.zeros(0, WORKER_DTYPE), *(self._table(peer, clocks[peer][0]) for peer in peers)]),
            np.concatenate(
                [np.zeros(0, DEATH_DTYPE), *(self._dead(p, rows, clocks[p][0]) for p, rows in self._deaths)]
            ),
            nodes=np.array(nodes, NODE_DTYPE),
            spans=np.array(spans, SPAN_DTYPE),
        )

    def _chunks(self, span: _Span, edges: npt.NDArray[np.int64], offset_ns: int) -> npt.NDArray[np.void]:
        rows = span.chunks.copy()
        rows["chunk"] = np.searchsorted(edges, span.first + span.edges[rows["chunk"]], side="right") - 1
        rows["worker"] += self._first_worker[span.peer]
        for name in _STAMPS:
            rows[name] += offset_ns
        return rows

    def _table(self, peer: Peer, offset_ns: int) -> npt.NDArray[np.void]:
        rows = self._workers.get(peer)
        if rows is None:  # it has computed nothing
            rows = np.zeros(_n_workers(peer), WORKER_DTYPE)
            rows["pid"] = np.repeat(peer.pids, len(rows) // len(peer.pids))
            rows["ready_ns"] = peer.ready_ns
        rows = rows.copy()
        rows["worker"] = self._first_worker[peer] + np.arange(len(rows))
        rows["ready_ns"] += offset_ns
        return rows

    def _dead(self, peer: Peer, rows: npt.NDArray[np.void], offset_ns: int) -> npt.NDArray[np.void]:
        rows = rows.copy()
        rows["worker"] += self._first_worker[peer]
        rows["noticed_ns"] += offset_ns
        return rows


def _n_workers(peer: Peer) -> int:
    return peer.node.n_workers if peer.node is not None else 0
