"""Self-scheduled worker processes: a job is broadcast once, chunks are claimed without the parent.

The calling thread drives a job; a thread that starts with the first submitted call drives the calls.
They take turns.
"""

from __future__ import annotations

import array
import collections
import pickle
import threading
import time
import weakref
from typing import Any

import numpy as np
import numpy.typing as npt

from parcompute.backends.base import Call, CountsDone, Options, Trouble, WorkerLost, conclude, timeline
from parcompute.backends.processes.calls import Calls, Turn
from parcompute.backends.processes.crew import FAILED_STARTS, Crew, Member, ending
from parcompute.jobs import pickling, world
from parcompute.jobs.job import Failure, Job, KernelError, is_ctrl_c
from parcompute.jobs.schedule import FAILED, NO_BLOCK, WAITING, Board, Pass, rows_for
from parcompute.machine import signals
from parcompute.memory import shared
from parcompute.values.timeline import Timeline

# References to so many arrays fit a socket many times, also while nobody reads it.
_FEW_ARRAYS = 32


class Processes(CountsDone):
    """Worker processes that claim chunks by themselves."""

    def __init__(self, options: Options) -> None:
        self.n_workers = options.n_workers * options.threads_per_worker
        self.start_method = options.start_method
        self._options = options
        self._crew = Crew(options)
        self._turn = Turn()
        self._calls: Calls | None = None
        self._lock = threading.RLock()
        self._closed = self._ended = False
        self._n_jobs = 0

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
        return _shared_array(shape, dtype)

    def reaches(self, array: npt.NDArray[Any]) -> bool:
        """Arrays in shared memory."""
        return shared.reference(array) is not None

    def run(self, job: Job, called_ns: int) -> tuple[Timeline, tuple[Trouble, ...]]:
        """Compute every block once, those of workers that die again."""
        self._turn.require_no_callback()
        with self._turn.of_job():
            self._require_crew()
            self._n_jobs += 1
            drive = _Drive(self._crew, job, self._n_jobs, self._options)
            self._running = weakref.ref(drive.board)
            try:
                return drive.run(called_ns)
            except (KernelError, WorkerLost):
                raise
            except BaseException:  # Ctrl-C above all: what the workers hold now is of no use to anyone
                self._crew.kill()
                raise

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


class _Drive:
    """One job on a crew, from the broadcast to the last block."""

    def __init__(self, crew: Crew, job: Job, number: int, options: Options) -> None:
        self.crew, self.job, self.number, self.options = crew, job, number, options
        self.threads = options.threads_per_worker
        self.failures: list[Failure] = []
        self.lost: list[WorkerLost] = []
        self.deaths: dict[int, list[int]] = collections.defaultdict(list)
        self.timed_deaths: list[tuple[int, int, int, int]] = []
        self.n_unbegun = 0
        self.overdue: dict[int, Failure] = {}
        self.stopped: set[Member] = set()
        self.resting: set[int] = set()
        self.nobody = array.array("q", [NO_BLOCK]) * (options.n_workers * self.threads)
        self.shapes: dict[int, Any] = {}
        self.waiting: list[Member] = []
        self.told: set[Member] = set()
        self.rows: list[npt.NDArray[np.void]] = []
        # What can fail for want of a pickle or of memory fails here, before anything runs.
        pickled, self.keep_alive = pickling.dumps(job, f"kernel {job.name}")
        self.pickled = world.pack(job.world, crew.world, pickled)
        self.board = Board.in_shared_memory(options.n_workers * self.threads, job.plan.n_blocks, rows_for(job.plan))
        job.follow(self.board.done, late=True)

    def run(self, called_ns: int) -> tuple[Timeline, tuple[Trouble, ...]]:
        crew = self.crew
        crew.repair()
        self.begin(Pass.first(self.job.plan))
        submitted_ns = time.perf_counter_ns()
        while self.step():
            pass
        completed_ns = time.perf_counter_ns()
        self.job.follow(self.board.done)  # all that the workers have sent has arrived
        self.rows.append(self.board.take_rows())
        crew.forget_segments()
        troubles = conclude(self.job, self.failures, self.lost)
        workers = [(m.child.pid, m.ready_ns or completed_ns) for m in crew.members for _ in range(self.threads)]
        rows = np.concatenate(self.rows)
        return timeline(called_ns, submitted_ns, completed_ns, rows, workers, self.timed_deaths), troubles

    def begin(self, pass_: Pass) -> None:
        """Send every worker that is ready on a walk."""
        self.pass_ = pass_
        self.resting.clear()
        self.crew.claims.reset()
        self.message = self.broadcast()
        self.board.current[:] = self.nobody
        for member in self.crew.members:
            if member.ready:
                self.enlist(member)

    def broadcast(self) -> bytes:
        self.crew.show([*self.keep_alive, self.board.memory, *(self.job.outputs.arrays or ())])
        walked = (self.pass_.number, self.pass_.n_chunks, self.pass_.lost, self.pass_.alone)
        return pickle.dumps(("walk", self.number, self.pickled, self.arrays(), walked, self.board.reference()))

    def arrays(self) -> tuple[bytes, tuple[shared.Reference | None, ...]] | None:
        outputs = self.job.outputs
        if outputs.arrays is None:
            return None
        return pickling.dumps_back(outputs.shape), tuple(shared.reference(array) for array in outputs.arrays)

    def enlist(self, member: Member) -> None:
        member.busy = True
        self.crew.send_pickled(member, self.message)

    @property
    def over(self) -> bool:
        if self.job.keep_going:
            blocks = [failure.block for failure in self.failures] + [loss.block for loss in self.lost]
            return None in blocks  # the job cannot run on any worker
        return bool(self.failures or self.lost)

    @property
    def headless(self) -> bool:
        """Whether block 0 may never say what a result looks like: whoever waits must not wait for it."""
        failed = [failure.block and failure.block.index for failure in self.failures]
        return self.board.done[0] != WAITING or 0 in failed or bool(self.timed_deaths)

    def step(self) -> bool:
        """Wait for one thing to happen and deal with it; False when the job is over."""
        if not any(member.busy for member in self.crew.members):
            if self.over:
                return False
            unfinished = self.board.unfinished()
            if not len(unfinished):
                return False
            if any(member.ready for member in self.crew.members):
                self.rows.append(self.board.take_rows())
                # A death blames the blocks of all threads of its process: by itself, each shows whether it was the one.
                suspects = np.array([b for b in unfinished if b in self.deaths and self.threads > 1], np.int64)
                if len(suspects):
                    self.begin(self.pass_.again(suspects, alone=True))
                else:
                    self.begin(self.pass_.again(unfinished))
        for member, message in self.crew.events(self.job.look(self.look_at_the_clock())):
            if message is None:
                self.buried(member)
            else:
                self.heard(member, message)
        return True

    def heard(self, member: Member, message: tuple[Any, ...]) -> None:
        kind, *rest = message
        if kind == "ready":
            if not self.over and member.number not in self.resting:
                self.enlist(member)
        elif rest[0] != self.number:
            pass  # the end of an earlier job, which a failure had cut short
        elif kind == "shape":
            self.asked(member, *rest[1:])
        elif kind == "odd":
            try:
                self.job.outputs.keep(rest[1], pickle.loads(rest[2]))
            except BaseException as error:  # whatever the class of a result raises when it is rebuilt here
                if is_ctrl_c(error):
                    raise
                block = self.job.plan.block(rest[1])
                self.job.outputs.omit(block)  # its mark says done
                self.fail(self.job.failure(block, error))
        elif kind == "failed":
            self.fail(rest[1])
        elif kind == "end":
            member.busy = False
            self.n_unbegun = 0

    def asked(self, member: Member, index: int, pickled: bytes) -> None:
        """Take note of what the result of a block looks like: whoever tells it waits for the output's arrays."""
        if member in self.told:
            return  # they are on their way
        self.waiting.append(member)
        if self.job.outputs.arrays is not None:
            self.answer()
            return
        try:
            self.shapes[index] = pickle.loads(pickled)
        except BaseException as error:  # of a shape that can be rebuilt in the worker and not here
            if is_ctrl_c(error):
                raise
            self.fail(Failure.before_blocks(error))
            return
        if 0 in self.shapes:
            self.shape(self.shapes[0])
        elif self.over:
            self.answer()
        elif self.headless:
            self.shape(self.shapes[min(self.shapes)])

    def shape(self, shape: Any) -> None:
        """Make the output's arrays, and tell those that wait for them, and those that will as soon as they look."""
        self.job.outputs.allocate(shape, _shared_array)
        self.message = self.broadcast()
        # Whoever does not wait for it may not read it for long: it must fit the channel.
        if len(self.job.outputs.arrays or ()) <= _FEW_ARRAYS:
            self.told.update(member for member in self.crew.members if member.busy and not member.channel.closed)
        self.answer(*self.told)

    def answer(self, *others: Member) -> None:
        answer = pickle.dumps(("arrays", self.number, self.arrays()))
        for member in {*self.waiting, *others}:
            self.crew.send_pickled(member, answer)
        self.waiting = []

    def fail(self, failure: Failure) -> None:
        self.failures.append(failure)
        self.after_trouble()

    def after_trouble(self) -> None:
        """End the job, or see to it that the others do not wait for a block that will never be."""
        if self.over:
            self.board.stop()
            self.answer()
        elif self.shapes and self.job.outputs.arrays is None and self.headless:
            self.shape(self.shapes[min(self.shapes)])

    def buried(self, member: Member) -> None:
        """Find out what a death has cost, and start another worker."""
        exitcode = member.child.exitcode()
        self.timed_deaths.append((member.number * self.threads, member.child.pid, exitcode, time.perf_counter_ns()))
        self.waiting = [other for other in self.waiting if other is not member]
        current = self.current_of(member)
        at_that_time = list(current)
        current[:] = memoryview(self.nobody)[: self.threads]
        computing = [block for block in at_that_time if block >= 0 and self.board.done[block] == WAITING]
        for block in computing:
            if block in self.overdue:
                self.board.done[block] = FAILED
                self.failures.append(self.overdue.pop(block))
            elif member not in self.stopped:
                self.deaths[block].append(exitcode)
                if len(self.deaths[block]) < self.options.retries:
                    continue
                if len(computing) == 1:
                    self.board.done[block] = FAILED
                    self.lost.append(self.lost_by(block, member))
                else:  # under "static" the successor would begin the same blocks at once again, and so for ever
                    self.resting.add(member.number)
        # Who dies while it takes on the job would do so again and again: it has no block to blame.
        self.n_unbegun = self.n_unbegun + 1 if member.busy and set(at_that_time) == {NO_BLOCK} else 0
        if self.n_unbegun == FAILED_STARTS:
            self.lost.append(self.lost_by_job(member))
        self.after_trouble()
        self.crew.replace(member)

    def current_of(self, member: Member) -> memoryview:
        """Return the current block of each thread of a worker."""
        return self.board.current[member.number * self.threads : (member.number + 1) * self.threads]

    def look_at_the_clock(self) -> float:
        """Kill the workers whose block takes too long; return for how many seconds one may look away."""
        timeout_s, soonest = self.job.block_timeout_s, signals.LOOK_S
        if timeout_s is None:
            return soonest
        for member in self.crew.members:
            if not member.busy:
                continue
            for worker in range(member.number * self.threads, (member.number + 1) * self.threads):
                since_ns, index = self.board.since_ns[worker], self.board.current[worker]
                left = timeout_s - (time.perf_counter_ns() - since_ns) / 1e9
                # A block that began between the two looks has another stamp, and is left to the next look.
                if index < 0 or since_ns != self.board.since_ns[worker] or index in self.overdue:
                    continue
                soonest = min(soonest, max(left, 0.0))
                if left <= 0:
                    block = self.job.plan.block(index)
                    late = TimeoutError(f"it took longer than block_timeout={timeout_s:g} s; its worker was stopped")
                    self.overdue[index] = self.job.failure(block, late)
                    self.stopped.add(member)
                    member.child.kill()
        return soonest

    def lost_by(self, index: int, member: Member) -> WorkerLost:
        block, codes = self.job.plan.block(index), tuple(self.deaths[index])
        workers = f"{len(codes)} worker{'s' if len(codes) > 1 else ''}: {', '.join(map(ending, codes))}"
        what = f"block {index} (items {block.start} to {block.stop - 1}) of kernel {self.job.name} has cost {workers}"
        return WorkerLost(f"{what}; {self.last_words(member)}", block, codes)

    def lost_by_job(self, member: Member) -> WorkerLost:
        code = member.child.exitcode()
        what = f"{self.n_unbegun} workers in a row have ended while they took on kernel {self.job.name}"
        return WorkerLost(f"{what}, the last with {ending(code)}; {self.last_words(member)}", None, (code,))

    def last_words(self, member: Member) -> str:
        peak_mib = member.child.peak_bytes / 2**20
        return f"peak memory of the last {peak_mib:.0f} MiB; {self.crew.out_of_memory_evidence()}"


def _shared_array(shape: tuple[int, ...], dtype: np.dtype[Any]) -> npt.NDArray[Any]:
    return shared.SharedArray.empty(shape, dtype).view(np.ndarray)
