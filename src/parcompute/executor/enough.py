"""A reduction that ends when its caller has enough: 1, 2, 4, … blocks are combined, and shown, until it says so.

The numbers depend on nothing, so the result is that of the first so many blocks, whoever has computed them.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import numpy.typing as npt

from parcompute.backends import base
from parcompute.backends.base import Backend, Trouble
from parcompute.jobs.job import Job
from parcompute.jobs.partials import Partials
from parcompute.jobs.pickling import SHARE_ABOVE
from parcompute.jobs.schedule import DONE, FAILED
from parcompute.memory import shared, sources
from parcompute.values.timeline import Timeline

Until = Callable[[Any, int], Any]


class Steps:
    """Runs a job in portions, each of which doubles the blocks that are done.

    Parameters
    ----------
    backend : Backend
        Which computes them.
    until : callable
        ``until(partial, n_items)`` of what is combined so far; when it returns something true, no more is computed.

    Attributes
    ----------
    plan : Plan
        After the run, of the blocks that have been computed.
    """

    def __init__(self, backend: Backend, until: Until) -> None:
        if not callable(until):
            raise TypeError(f"until={until!r} is {type(until).__name__}; pass a function of a partial and n_items")
        self._backend, self._until = backend, until

    def run(self, job: Job, called_ns: int) -> tuple[Timeline, tuple[Trouble, ...]]:
        """Compute so many blocks that it is enough, or all; see `parcompute.backends.base.Backend.run`."""
        assert isinstance(job.outputs, Partials)
        whole, outputs, job = job.plan, job.outputs, self._shared_once(job)
        timelines: list[Timeline] = []
        troubles: list[Trouble] = []
        edges: list[npt.NDArray[np.int64]] = []
        first, stop = 0, 1
        while True:
            plan = whole.portion(first, stop)
            if job.keeper is None:  # else its file has room for all
                plan = replace(plan, n_items=min(stop * whole.block_items, whole.n_items))
                outputs.grow(stop, self._backend.allocate)
            portion = _Portion(job, first, stop, plan.n_blocks)
            timeline, failed = base.run(self._backend, replace(job, plan=plan, keeper=portion, watch=None), called_ns)
            timeline.chunks["chunk"] += sum(map(len, edges)) - len(edges)
            timelines.append(timeline)
            edges.append(self._backend.carried_out(plan).edges)
            troubles += failed
            if portion.ended:  # which the checkpoint tells
                break
            n_items = min(stop * whole.block_items, whole.n_items)
            n_items -= sum(whole.block(index).size for index in outputs.omitted)
            if stop == whole.n_blocks or (len(outputs.omitted) < stop and self._until(outputs.result(stop), n_items)):
                break
            first, stop = stop, min(2 * stop, whole.n_blocks)
        ends = np.concatenate([edges[0][:1], *(some[1:] for some in edges)])
        self.plan = whole.first(stop, ends)
        return _joined(timelines), tuple(troubles)

    def _shared_once(self, job: Job) -> Job:
        """Return the job with large arrays in shared memory, if each portion would otherwise have them copied."""
        if set(self._backend.pids()) == {os.getpid()}:
            return job
        return replace(
            job,
            inputs=tuple(map(_shared, job.inputs)),
            args=tuple(map(_shared, job.args)),
            kwargs={name: _shared(value) for name, value in job.kwargs.items()},
        )


def _shared(value: Any) -> Any:
    if not sources.is_plain(value, above=SHARE_ABOVE) or sources.reachable(value) is not None:
        return value
    return value if sources.lies_in_file(value) else shared.share(value)


def _joined(timelines: list[Timeline]) -> Timeline:
    first, last = timelines[0], timelines[-1]
    chunks, deaths, spans = (
        np.concatenate([getattr(one, name) for one in timelines]) for name in ("chunks", "deaths", "spans")
    )
    stamps = first.called_ns, first.submitted_ns, last.completed_ns
    return Timeline(*stamps, chunks, last.workers, deaths, nodes=last.nodes, spans=spans)


class _Portion:
    """See `parcompute.jobs.job.Keeper`: what is before a portion is done, and what is behind it is nobody's."""

    def __init__(self, job: Job, first: int, stop: int, n_blocks: int) -> None:
        assert isinstance(job.outputs, Partials)
        self._first, self._stop, self._keeper, self._watch = first, stop, job.keeper, job.watch
        self._omitted = sorted(job.outputs.omitted)
        marks = np.zeros(n_blocks, np.uint8)
        self.follow(marks)
        self.complete = bool(marks.all())

    @property
    def ended(self) -> str:
        """Why no more blocks are to begin; empty as long as they are."""
        return "" if self._keeper is None else self._keeper.ended

    def follow(self, done: npt.NDArray[np.uint8], **how: Any) -> None:
        """Mark what is not in the portion."""
        done[: self._first] = DONE
        done[self._omitted] = FAILED
        done[self._stop :] = FAILED
        if self._keeper is not None:
            self._keeper.follow(done, **how)
        if self._watch is not None:
            self._watch(done[: self._stop])

    def look(self) -> float:
        """Have the checkpoint, if there is one, write what is due."""
        return float("inf") if self._keeper is None else self._keeper.look()
