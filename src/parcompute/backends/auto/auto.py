"""Threads where a kernel lets go of the interpreter lock, processes where it does not: found out on its first blocks.

    a kernel of which nothing is known ──► one thread, two, four, … ──► all of them finish the job
                                                   │ they take turns
                                                   └──► what is left goes to the worker processes

Every backend gives the same bits, so the choice can be left to the machine. It is remembered for the kernel.
"""

from __future__ import annotations

import contextlib
import time
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import numpy.typing as npt

from parcompute.backends.auto import probe
from parcompute.backends.base import Call, KeepsPlan, Options, Trouble, conclude, position
from parcompute.backends.kinds import Kinds
from parcompute.backends.processes.processes import Processes
from parcompute.backends.threads import Threads, Walks
from parcompute.jobs.job import Job, Keeper
from parcompute.jobs.pickling import CannotTravel
from parcompute.jobs.schedule import NO_BLOCK, WAITING, written
from parcompute.memory import leases, shared, sources
from parcompute.values.blocks import runs
from parcompute.values.timeline import Timeline

_NOT_YET = probe.Verdict("threads", "the job has ended before it was clear whether it lets go of the lock")

# Seconds per byte: to copy into shared memory that nobody has used yet, and into a segment that was kept; to map shared
# memory, by one worker.
_FRESH_S, _KEPT_S, _MAPPED_S = 0.6e-9, 0.1e-9, 0.12e-9

_HAS_CLOCKS = hasattr(time, "pthread_getcpuclockid")
_NO_CLOCKS = probe.Verdict("processes", "this system has no clocks of threads that tell more")


class Auto(KeepsPlan):
    """Threads and processes of one executor; the processes take its calls."""

    def __init__(self, options: Options) -> None:
        self._processes = Processes(options)
        self._threads = Threads(options)
        self.n_workers, self.start_method = options.n_workers, self._processes.start_method
        self.why = ""
        self._known = Kinds(probe.Evidence)

    def wait_until_ready(self) -> int:
        """Return when the last worker process is ready."""
        return max(self._processes.wait_until_ready(), self._threads.wait_until_ready())

    def allocate(self, shape: tuple[int, ...], dtype: np.dtype[Any]) -> npt.NDArray[Any]:
        """Make an output in private memory: new pages of it cost less than those of shared memory."""
        return self._threads.allocate(shape, dtype)

    def reaches(self, array: npt.NDArray[Any]) -> bool:
        """Every array: processes get an output of their own."""
        return True

    def run(self, job: Job, called_ns: int) -> tuple[Timeline, tuple[Trouble, ...]]:
        """Compute every block once."""
        evidence = self._known.of(job)
        n_blocks, hand_over_s = job.plan.n_blocks, self._hand_over_s(job)
        verdict = evidence.verdict(self.n_workers, n_blocks, hand_over_s) if _HAS_CLOCKS else _NO_CLOCKS
        if verdict is None:
            return self._find_out(evidence, job, called_ns)
        self.why = f"on {verdict.backend}, as known: {verdict.why}"
        if verdict.backend == "processes":
            marks = np.zeros(n_blocks, np.uint8)
            job.follow(marks)
            _move(job, marks != WAITING, self._processes)
            with contextlib.suppress(CannotTravel):  # nothing has run then, and threads can take it as it is
                return self._run_processes(evidence, job, n_blocks if job.keeper is None else 0, called_ns)
        with self._threads.turn():
            return self._run_threads(evidence, self._threads.walks(job), called_ns)

    def _find_out(self, evidence: probe.Evidence, job: Job, called_ns: int) -> tuple[Timeline, tuple[Trouble, ...]]:
        with self._threads.turn():
            walks = self._threads.walks(job)
            with probe.short_turns():
                verdict = self._watch(walks, evidence)
            self.why = f"on {verdict.backend}: {verdict.why}"
            if verdict.backend == "threads":
                return self._run_threads(evidence, walks, called_ns)
            walks.leave()
            while not walks.over(job.look()):
                pass
        if not len(walks.board.unfinished()) or (walks.failures and not job.keep_going):
            return self._threads.finish(walks, called_ns)
        return self._hand_over(walks, evidence, job, called_ns)

    def _watch(self, walks: Walks, evidence: probe.Evidence) -> probe.Verdict:
        """Have two threads compute, and soon all, until it is clear who does the rest."""
        clocks = probe.Clocks(self._threads.idents)
        n_threads, step_s, hand_over_s = min(2, self.n_workers), probe.STEP_S, self._hand_over_s(walks.job)
        while True:
            while len(walks) < n_threads:
                walks.begin()
            if n_threads == self.n_workers:  # each look takes time from the threads, and sooner it would change nothing
                step_s = max(step_s, hand_over_s)
            before, n_before = clocks.read(), walks.board.n_done
            left_s, over = step_s, False
            while left_s > 0 and not over:
                over = walks.over(min(left_s, walks.job.look()))
                left_s = before.wall_s + step_s - time.perf_counter()
            after, n_done = clocks.read(), walks.board.n_done
            if NO_BLOCK not in walks.board.current[:n_threads]:  # all that should compute do
                wall_s, cpu_s = after.wall_s - before.wall_s, after.cpu_s - before.cpu_s
                late_s = None if over else wall_s - step_s
                evidence.of_threads(n_threads).add(wall_s, cpu_s, n_done - n_before, late_s)
            if over:
                return _NOT_YET
            if verdict := evidence.verdict(self.n_workers, walks.job.plan.n_blocks - n_done, hand_over_s):
                return verdict
            if n_threads < self.n_workers and evidence.wants_more(n_threads):
                n_threads, step_s = self.n_workers, probe.STEP_S
            else:
                step_s = evidence.next_look_s(n_threads, step_s, hand_over_s)

    def _run_threads(
        self, evidence: probe.Evidence, walks: Walks, called_ns: int
    ) -> tuple[Timeline, tuple[Trouble, ...]]:
        """Have the threads do a job to its end, and note how long that has taken."""
        found, troubles = self._threads.finish(walks, called_ns)
        evidence.takes_turns = self._threads.takes_turns(walks.job)
        if walks.job.keeper is None and walks.board.is_full:
            evidence.threads.add(_seconds(found), walks.job.plan.n_blocks)
        return found, troubles

    def _run_processes(
        self, evidence: probe.Evidence, job: Job, n_blocks: int, called_ns: int
    ) -> tuple[Timeline, tuple[Trouble, ...]]:
        """Have the processes do so many blocks of a job, and note how long that has taken; 0 is an unknown number."""
        found, troubles = self._processes.run(job, called_ns)
        # Nothing can be told of a worker that has only just started, nor of a job that ended before its first block.
        whole = n_blocks and not troubles and len(found.chunks)
        if whole and (found.workers["ready_ns"] <= found.submitted_ns).all():
            evidence.processes.add(_seconds(found), n_blocks)
        return found, troubles

    def _hand_over_s(self, job: Job) -> float:
        """Return what it takes to bring inputs and outputs where processes reach them."""
        arrays = [*job.inputs, *job.args, *job.kwargs.values(), *(job.outputs.arrays or ())]
        return sum(self._brought_s(array) for array in arrays if isinstance(array, np.ndarray))

    def _brought_s(self, array: npt.NDArray[Any]) -> float:
        if shared.reference(array) is not None:
            return 0.0 if self._processes.has_shown(array) else array.nbytes * _MAPPED_S / self.n_workers
        if sources.file_reference(array) is not None:
            return 0.0
        return array.nbytes * (_KEPT_S if leases.is_kept(array.nbytes) else _FRESH_S)

    def _hand_over(
        self, walks: Walks, evidence: probe.Evidence, job: Job, called_ns: int
    ) -> tuple[Timeline, tuple[Trouble, ...]]:
        """Have the processes do what is left."""
        marks, begun = walks.board.done, written(walks.board.take_rows())
        _move(job, marks != WAITING, self._processes)
        rest = replace(job, keeper=_Continued(marks, job.keeper))
        try:
            n_left = int(np.count_nonzero(marks == WAITING))
            found, troubles = self._run_processes(evidence, rest, n_left, called_ns)
        except CannotTravel as error:
            self.why = f"on threads: {error}"
            found, troubles = self._threads.run(rest, called_ns)
        found.chunks["attempt"] += 1
        whole = replace(found, submitted_ns=walks.submitted_ns, chunks=np.concatenate([begun, found.chunks]))
        return whole, tuple(sorted((*conclude(job, walks.failures), *troubles), key=position))

    def submit(self, call: Call) -> None:
        """Run a call on a worker process."""
        self._processes.submit(call)

    def pids(self) -> tuple[int, ...]:
        """Return the process ids of the workers."""
        return self._processes.pids()

    def close(self, *, wait: bool) -> None:
        """End the processes after the submitted calls, and the threads."""
        try:
            self._processes.close(wait=wait)
        finally:
            self._threads.close(wait=wait)

    def kill(self) -> None:
        """End the processes now."""
        try:
            self._processes.kill()
        finally:
            self._threads.kill()


class _Continued:
    """See `parcompute.jobs.job.Keeper`: what threads have done need not be done again."""

    complete = False

    def __init__(self, marks: npt.NDArray[np.uint8], keeper: Keeper | None) -> None:
        self._marks, self._keeper = marks, keeper

    @property
    def ended(self) -> str:
        """As the checkpoint, if there is one, says."""
        return "" if self._keeper is None else self._keeper.ended

    def follow(self, done: npt.NDArray[np.uint8], **how: Any) -> None:
        """Mark what the threads have marked."""
        done[:] = np.where(self._marks != WAITING, self._marks, done)
        if self._keeper is not None:
            self._keeper.follow(done, **how)

    def look(self) -> float:
        """Have the checkpoint, if there is one, write what is due."""
        return float("inf") if self._keeper is None else self._keeper.look()


def _seconds(timeline: Timeline) -> float:
    """Return from the begin of the first block to the end of the last."""
    return float(timeline.chunks["finished_ns"].max() - timeline.chunks["started_ns"].min()) / 1e9


def _move(job: Job, done: npt.NDArray[np.bool_], processes: Processes) -> None:
    """Have the outputs where processes reach them, with the results of the blocks that are done."""
    outputs = job.outputs
    before: Sequence[npt.NDArray[Any]] | None = outputs.arrays
    if before is None or all(map(processes.reaches, before)):
        return
    left = iter(before)

    def moved(shape: tuple[int, ...], dtype: np.dtype[Any]) -> npt.NDArray[Any]:
        return old if processes.reaches(old := next(left)) else processes.allocate(shape, dtype)

    outputs.allocate(outputs.shape, moved)
    for old, new in zip(before, outputs.arrays or (), strict=True):
        for first, stop in runs(done) if new is not old else ():
            rows = outputs.span(first, stop)
            new[rows] = old[rows]
