"""What the last job of an executor has left behind: who did what when, by which plan, with which seed, what failed."""

from __future__ import annotations

from typing import TypeVar

from parcompute.backends import base
from parcompute.executor.futures import CallExecutor
from parcompute.values import views
from parcompute.values.blocks import Plan, Schedule
from parcompute.values.timeline import Timeline

_T = TypeVar("_T")


class LastJob(CallExecutor):
    """Calls, and what is known of the last job."""

    backend: str
    schedule: Schedule

    def __init__(self) -> None:
        super().__init__()
        self._timeline: Timeline | None = None
        self._plan: Plan | None = None
        self._seed: int | None = None
        self._failures: tuple[base.Trouble, ...] = ()

    @property
    def timeline(self) -> Timeline:
        """Who did what when in the last job.

        Raises
        ------
        RuntimeError
            Before the first job.
        """
        return _known(self._timeline, "timeline")

    @property
    def plan(self) -> Plan:
        """Blocks and chunks of the last job, and the reason for their size.

        Raises
        ------
        RuntimeError
            Before the first job.
        """
        return _known(self._plan, "plan")

    @property
    def seed(self) -> int | None:
        """The seed of the last job; None if its kernel asked for no ``rng``."""
        return self._seed

    @property
    def failures(self) -> tuple[base.Trouble, ...]:
        """What went wrong with which blocks of the last job, if it ran with ``on_error="keep"``."""
        return self._failures

    def __repr__(self) -> str:
        state = "closed" if self._closed else "open"
        return f"<Executor: {self._backend.n_workers} workers, backend {self.backend!r}, {state}>"

    def _repr_html_(self) -> str:
        known: dict[str, object] = {
            "executor": "closed" if self._closed else "open",
            "workers": self._backend.n_workers,
            "backend": self.backend + f", started by {self._backend.start_method}" * bool(self._backend.start_method),
            "schedule": self.schedule,
        }
        if self._plan is not None and self._timeline is not None:
            known["last job (s)"] = f"{self._timeline.makespan_ns / 1e9:.6f}"
            known["of"] = f"{self._plan.n_items} items in {self._plan.n_blocks} blocks, {self._plan.n_chunks} chunks"
            if self._seed is not None:
                known["seed"] = self._seed
            if self._failures:
                known["failed blocks"] = len(self._failures)
        return views.facts(known)

    def _note(self, timeline: Timeline, plan: Plan) -> None:
        """Keep what a job that has ended leaves behind."""
        self._timeline, self._plan = timeline, plan


def _known(value: _T | None, name: str) -> _T:
    if value is None:
        raise RuntimeError(f"there is no {name} before the first map_blocks or reduce_blocks")
    return value
