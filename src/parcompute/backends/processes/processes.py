"""Self-scheduled worker processes: a job is broadcast once, chunks are claimed without the parent.

The calling thread drives a job; a thread that starts with the first submitted call drives the calls.
They take turns.
"""

from __future__ import annotations

import contextlib
import threading
from typing import Any

import numpy as np
import numpy.typing as npt

from parcompute.backends.base import Call, KeepsPlan, Options, Trouble, WorkerLost
from parcompute.backends.processes.calls import Calls, Turn
from parcompute.backends.processes.crew import Crew
from parcompute.backends.processes.drive import Drive, shared_array
from parcompute.backends.processes.parcels import Parcels
from parcompute.jobs.job import Job
from parcompute.machine import signals
from parcompute.memory import sources
from parcompute.values.timeline import Timeline


class Processes(KeepsPlan):
    """Worker processes that claim chunks by themselves."""

    def __init__(self, options: Options) -> None:
        self.n_workers = options.n_workers * options.threads_per_worker
        self.start_method = options.start_method
        self._options = options
        self._crew = Crew(options)
        self._parcels = Parcels()
        self._turn = Turn()
        self._calls: Calls | None = None
        self._lock = threading.RLock()
        self._closed = self._ended = False
        self._n_jobs = 0
        self._driving: Drive | None = None

    def wait_until_ready(self) -> int:
        """Return when the last worker process is ready."""
        self._turn.require_no_callback()
        with self._turn.of_job():
            self._require_crew()
            try:
                self._crew.wait_until_ready()
            except BaseException:  # Ctrl-C, in the middle of a message perhaps: the channels are of no use any more
                self._crew.kill()
                raise
            return max(member.ready_ns for member in self._crew.members)

    def allocate(self, shape: tuple[int, ...], dtype: np.dtype[Any]) -> npt.NDArray[Any]:
        """Make an output in shared memory."""
        return shared_array(shape, dtype)

    def has_shown(self, array: npt.NDArray[Any]) -> bool:
        """Whether workers have had this shared array in a job, so that its pages are mapped there."""
        return self._crew.has_shown(array)

    def reaches(self, array: npt.NDArray[Any]) -> bool:
        """Arrays in shared memory, and on files that are mapped for writing."""
        return sources.reachable(array) is not None

    def run(self, job: Job, called_ns: int) -> tuple[Timeline, tuple[Trouble, ...]]:
        """Compute every block once, those of workers that die again."""
        return self.compute(job).conclude(called_ns)

    def compute(self, job: Job) -> Drive:
        """Do so, and return who knows what came of it."""
        self._turn.require_no_callback()
        with self._turn.of_job():
            self._require_crew()
            drive = self._drive(job)  # what can fail for want of a pickle or of memory fails here
            try:
                drive.run()
                if drive.is_mistaken:
                    self._parcels.unlearn()
                    job.outputs.forget_shape()
                    drive = self._drive(job)
                    drive.run()
                drive.learn()
                return drive
            except WorkerLost:
                raise
            except BaseException:  # Ctrl-C above all: what the workers hold now is of no use to anyone
                self._crew.kill()
                raise
            finally:
                self._driving = None

    def give_up(self, *, at_once: bool) -> None:
        """End the job that another thread runs: after the blocks that are being computed, or with its workers."""
        if (drive := self._driving) is None:
            return
        drive.give_up()
        if at_once:
            for member in list(self._crew.members):
                with contextlib.suppress(OSError):  # it has just ended
                    member.child.kill()

    def _drive(self, job: Job) -> Drive:
        """Return what will have the crew compute a job."""
        parcel, keep_alive = self._parcels.of(job)
        self._n_jobs += 1
        board = self._parcels.board(self._n_jobs % 2, self.n_workers, job.plan)
        drive = Drive(self._crew, job, self._n_jobs, self._options, self._parcels, parcel, keep_alive, board)
        self._driving = drive
        return drive

    def _require_crew(self) -> None:
        if self._ended:  # while this thread waited for its turn
            raise RuntimeError("this executor is closed; make a new one")
        self._crew.require_unbroken()

    def submit(self, call: Call) -> None:
        """Run a call on the first worker that is free."""
        with self._lock, signals.held():
            if self._closed:
                raise RuntimeError("this executor is closed; make a new one")
            self._crew.require_unbroken()
            if self._calls is None:
                self._calls = Calls(self._crew, self._turn, self._options.retries)
        self._calls.put(call)

    def pids(self) -> tuple[int, ...]:
        """Return the process ids of the workers."""
        return tuple(member.child.pid for member in self._crew.members)

    def close(self, *, wait: bool) -> None:
        """End the workers after the submitted calls."""
        with self._lock:
            self._closed = True
        if self._calls is None:
            self._end()
            return
        self._calls.close(then=self._end)
        if wait:
            self._calls.join()

    def kill(self) -> None:
        """End the workers once no job has them."""
        with self._lock:
            self._closed = True
        if self._calls is not None:
            self._calls.kill(then=self._end)
            self._calls.join()
            return
        with self._turn.of_job():
            self._crew.kill()
        self._end()

    def _end(self) -> None:
        with self._turn.of_job():
            if self._ended:
                return
            try:
                self._crew.leave()
            finally:
                with signals.held():
                    self._ended = True
                    self._crew.kill()  # those that Ctrl-C has left
                    self._crew.release()
