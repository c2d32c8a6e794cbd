"""What the engines of others need to run a job: a task that computes chunks, a caller that stores.

`multiprocessing.Pool` and joblib move tasks and results themselves. A task is a chunk; it returns the results
of its blocks and its stamps, pickled by the engine, and the caller puts them in their place.
"""

from __future__ import annotations

import contextlib
import multiprocessing.util
import os
import pickle
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt

from parcompute.backends.base import Trouble, conclude
from parcompute.backends.broken import Broken
from parcompute.jobs import pickling, variables, world
from parcompute.jobs.job import Failure, Job, is_ctrl_c
from parcompute.jobs.outputs import Allocate
from parcompute.jobs.schedule import DONE
from parcompute.jobs.setup import Packed, Setup, State
from parcompute.memory import sources
from parcompute.values.blocks import Block
from parcompute.values.timeline import CHUNK_DTYPE

# Of results that go to files, so many bytes are on their way; but at least four blocks for each worker.
_ROUND_BYTES = 2**24

Place = State | Failure  # of a worker process: what it keeps, or why it has nothing


def taken(setup: Setup | Packed) -> Place:
    """Set this worker process up; what is kept is closed at the end of it."""
    try:
        opened = setup.opened()
        with world.beginning(), variables.kept(opened.initializer):
            opened.initialize()
    except BaseException as error:  # the tasks will say so
        return Failure.before_blocks(error)
    state = State(opened.state)
    multiprocessing.util.Finalize(None, state.close, exitpriority=0)
    return state


def at(place: Place) -> contextlib.AbstractContextManager[None]:
    """Run a task in a place that was taken.

    Raises
    ------
    BrokenProcessPool
        If there is none, since the initializer has failed.
    """
    if isinstance(place, Failure):
        raise Broken(place)
    return place.here()


@dataclass(frozen=True)
class Answer:
    """What came of one chunk: results by block, stamps, and the blocks that failed."""

    chunk: int
    pid: int
    started_ns: int
    finished_ns: int
    cpu_ns: int
    results: dict[int, Any]
    failures: list[Failure]


def compute_unless(stop: npt.NDArray[np.uint8], job: Job, chunk: int, blocks: tuple[int, ...] | None = None) -> Answer:
    """Compute blocks of a chunk, here, up to the first that fails unless the job keeps going, or until told to stop.

    `blocks` are those that are left of it; None is all.
    """
    call = job.bind()
    results: dict[int, Any] = {}
    failures: list[Failure] = []
    started_ns = time.perf_counter_ns()
    cpu_ns = -time.thread_time_ns()
    for index in job.plan.chunk(chunk) if blocks is None else blocks:
        if stop[0]:
            break
        block = job.plan.block(index)
        try:
            result = _computed(job, call, block)
            # What is no array of numbers is pickled here: if that fails, it is the failure of its block.
            known = job.outputs.shape_of(result, block) is not None
            results[index] = result if known else _Pickled(pickling.dumps_back(result))
        except BaseException as error:
            if is_ctrl_c(error):
                raise
            failures.append(job.failure(block, error))
            if not job.keep_going:
                break
    cpu_ns += time.thread_time_ns()
    return Answer(chunk, os.getpid(), started_ns, time.perf_counter_ns(), cpu_ns, results, failures)


def compute_as(told: bytes | None, *task: Any) -> Answer:
    """Do what `compute_unless` does as the caller would, of whose settings this worker was told."""
    world.arrive(told)  # it may have run a call meanwhile
    with world.under(told):
        return world.run_as(told, compute_unless, *task)


@dataclass(frozen=True)
class _Pickled:
    """A result that its worker has pickled."""

    pickled: bytes


def _computed(job: Job, call: Any, block: Block) -> Any:
    if "out" not in job.asks:
        return call(block)
    # The rows to fill lie in the caller's memory: fill rows of one's own and send them.
    fields = job.outputs.fields
    assert fields is not None
    rows = tuple(np.empty((block.size, *one.shape), one.dtype) for one in fields)
    filled = rows[0] if getattr(job.outputs, "single", True) else rows
    return call(block, filled)


@dataclass
class Caller:
    """Stores answers as they come, in any order."""

    job: Job
    allocate: Allocate
    stop: npt.NDArray[np.uint8]  # set to 1, no worker begins another block
    failures: list[Failure] = field(default_factory=list)
    _early: list[Answer] = field(default_factory=list)
    _rows: list[tuple[int, ...]] = field(default_factory=list)
    _workers: dict[int, int] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self._done = np.zeros(self.job.plan.n_blocks, np.uint8)
        # An answer may be an hour's work, and the next an hour away.
        self.job.follow(self._done, every_s=0.0, stop=self.stop_all)

    def stop_all(self) -> None:
        """Have the chunks that are queued answer at once, and the others after the block that they compute."""
        self.stop[0] = 1

    @property
    def n_done(self) -> int:
        """Number of blocks whose results are in place."""
        return int(np.count_nonzero(self._done))

    def chunks(self) -> Iterator[tuple[int, tuple[int, ...] | None]]:
        """Yield each chunk with something left to compute, and the blocks that are left; None is all of them."""
        for chunk in range(self.job.plan.n_chunks):
            blocks = self.job.plan.chunk(chunk)
            n_done = int(np.count_nonzero(self._done[blocks.start : blocks.stop]))
            if n_done < len(blocks):
                yield chunk, tuple(i for i in blocks if not self._done[i]) if n_done else None

    def rounds(self, n_workers: int) -> Iterator[list[tuple[int, tuple[int, ...] | None]]]:
        """Yield the chunks that are handed out together; the next are when all of these have been stored.

        All at once, but for results that go to files: an engine takes answers from its workers whether or not they are
        written, so that no more are asked for than memory holds.
        """
        outputs, plan = self.job.outputs, self.job.plan
        stored = outputs.stored or ()
        if all(isinstance(place, np.ndarray) and not sources.lies_in_file(place) for place in stored):
            yield list(self.chunks())
            return
        block_bytes = sum(place.nbytes for place in stored) // plan.n_blocks
        per_task = max(1, _ROUND_BYTES // (max(1, block_bytes) * 4 * n_workers))
        tasks: list[tuple[int, tuple[int, ...] | None]] = []
        for chunk, blocks in self.chunks():
            left = blocks or plan.chunk(chunk)
            tasks += [(chunk, tuple(left[n : n + per_task])) for n in range(0, len(left), per_task)]
            while len(tasks) >= 4 * n_workers:
                yield tasks[: 4 * n_workers]
                del tasks[: 4 * n_workers]
        yield tasks

    def store(self, answer: Answer) -> None:
        """Put the results of a chunk in their place; those before block 0's wait for it."""
        self.failures += answer.failures
        # Where block 0 is another task's, it says nothing here.
        if self.job.outputs.arrays is None and answer.chunk != 0 and not (self._done[0] or self._first_failed()):
            self._early.append(answer)
            return
        self._place(answer)
        early, self._early = self._early, []
        for waiting in early:
            self._place(waiting)
        self.job.look()

    def _first_failed(self) -> bool:
        return any(failure.block is None or failure.block.index == 0 for failure in self.failures)

    def _place(self, answer: Answer) -> None:
        outputs, plan = self.job.outputs, self.job.plan
        for index, result in answer.results.items():
            block = plan.block(index)
            try:
                if isinstance(result, _Pickled):
                    result = pickle.loads(result.pickled)
                if outputs.arrays is None:
                    outputs.allocate(outputs.shape_of(result, block), self.allocate)
                if not outputs.store(result, block):
                    outputs.keep(index, result)
            except Exception as error:
                self.failures.append(self.job.failure(block, error))
            else:
                self._done[index] = DONE
        worker = self._workers.setdefault(answer.pid, len(self._workers))
        stamps = (answer.started_ns, answer.finished_ns, answer.cpu_ns, time.perf_counter_ns())
        self._rows.append((answer.chunk, worker, 0, *stamps))

    def troubles(self) -> tuple[Trouble, ...]:
        """Raise or return what went wrong, when the engine says that there are no more answers.

        Raises
        ------
        RuntimeError
            If the engine has lost answers: joblib 1.6.0 can, in the call after a failed one.
        """
        troubles = conclude(self.job, self.failures)
        missing = self.job.plan.n_blocks - self.n_done - len(troubles)
        if missing and not self.job.ended:
            raise RuntimeError(f"the engine has lost the answers of {missing} of {self.job.plan.n_blocks} blocks")
        return troubles

    def rows(self) -> npt.NDArray[np.void]:
        """Return the timeline's rows."""
        return np.array(self._rows, CHUNK_DTYPE)

    def workers(self, n_workers: int, ready_ns: int) -> list[tuple[int, int]]:
        """Return process id and ready time of each worker; 0 for those that never answered."""
        pids = [*self._workers, *[0] * n_workers][:n_workers]
        return [(pid, ready_ns) for pid in pids]
