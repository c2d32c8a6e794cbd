"""What ``except BrokenProcessPool`` of programs for `concurrent.futures` must catch; loaded when it is raised."""

from __future__ import annotations

from concurrent.futures.process import BrokenProcessPool
from concurrent.futures.thread import BrokenThreadPool
from typing import Any

from parcompute.backends.base import WorkerLost
from parcompute.jobs.job import Failure


class Broken(BrokenProcessPool, BrokenThreadPool):
    """An initializer has failed, so that the executor can compute nothing; its cause is what that has raised."""

    def __init__(self, failure: Failure) -> None:
        super().__init__(f"the initializer of a worker has failed: {failure.message}")
        self.failure = failure
        self.__cause__ = failure.called()

    def __reduce__(self) -> Any:
        return Broken, (self.failure,)


class CallLost(WorkerLost, BrokenProcessPool):
    """A submitted call has cost so many workers that it is given up. Only this call is: the executor goes on."""
