"""One job on a crew: broadcast, results that need a word with the parent, deaths, passes over what was lost."""

from __future__ import annotations

import array
import collections
import pickle
import time
from typing import Any

import numpy as np
import numpy.typing as npt

from parcompute.backends.base import Options, Trouble, WorkerLost, conclude, timeline
from parcompute.backends.processes.crew import FAILED_STARTS, Crew, Member, ending
from parcompute.backends.processes.parcels import Parcel, Parcels
from parcompute.jobs.job import Failure, Job, is_ctrl_c
from parcompute.jobs.outputs import ResultError
from parcompute.jobs.schedule import FAILED, NO_BLOCK, WAITING, Board, Pass
from parcompute.machine import signals
from parcompute.memory import shared
from parcompute.values.timeline import Timeline

# References to so many arrays fit a socket many times, also while nobody reads it.
_FEW_ARRAYS = 32

# Where one worker is expected to do a job alone, the others are called after so many seconds.
_BRIEF_S = 0.001


class Drive:
    """One job on a crew, from the broadcast to the last block."""

    def __init__(
        self,
        crew: Crew,
        job: Job,
        number: int,
        options: Options,
        parcels: Parcels,
        parcel: Parcel,
        keep_alive: list[Any],
        board: Board,
    ) -> None:
        self.crew, self.job, self.number, self.options, self.parcels = crew, job, number, options, parcels
        self.parcel, self.keep_alive = parcel, keep_alive
        self.told = None if job.world is None else job.world.told(crew.world)
        self.board = board
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
        self.told_arrays: set[Member] = set()
        self.rows: list[npt.NDArray[np.void]] = []
        self.reserve: list[Member] = []
        self.given_up = False

    def run(self) -> None:
        """Have every block computed, or the job given up."""
        self.crew.repair()
        self.crew.settle(self.number - 2)  # which had this board, and these claims
        self.board.clear()
        self.job.follow(self.board.done, late=True, stop=self._leave, current=self.board.current)
        self.crew.let_go()
        self.expects = self.parcels.expect(self.job, shared_array)
        self._begin(Pass.first(self.job.plan))
        self.submitted_ns = time.perf_counter_ns()
        while self._step():
            pass
        self.completed_ns = time.perf_counter_ns()
        self.job.follow(self.board.done)  # all that the workers have sent has arrived
        self.rows.append(self.board.take_rows())

    @property
    def is_mistaken(self) -> bool:
        """Whether results may have failed for not being what those of the job before were."""
        return self.expects and any(isinstance(failure.exception, ResultError) for failure in self.failures)

    def learn(self) -> None:
        """Take note of it for the next job."""
        self.parcels.learn(self.job, self._all_rows())

    def _all_rows(self) -> npt.NDArray[np.void]:
        return self.rows[0] if len(self.rows) == 1 else np.concatenate(self.rows)

    def give_up(self) -> None:
        """End the job after the blocks that are being computed; any thread may say so."""
        self.given_up = True
        self.board.stop()

    def conclude(self, called_ns: int) -> tuple[Timeline, tuple[Trouble, ...]]:
        """Return, or raise, what `parcompute.backends.base.Backend.run` does."""
        troubles = conclude(self.job, self.failures, self.lost)
        return self.timeline(called_ns), troubles

    def timeline(self, called_ns: int) -> Timeline:
        """Return what has happened."""
        rows = self._all_rows()
        members = self.crew.members
        workers = [(m.child.pid, m.ready_ns or self.completed_ns) for m in members for _ in range(self.threads)]
        return timeline(called_ns, self.submitted_ns, self.completed_ns, rows, workers, self.timed_deaths)

    def _begin(self, pass_: Pass) -> None:
        """Send every worker that is ready on a walk."""
        self.pass_ = pass_
        self.resting.clear()
        self.crew.claims[self.number % 2].reset()
        self.message = self._broadcast()
        self.board.current[:] = self.nobody
        # No more than there are chunks; under "static" each chunk is a certain worker's.
        n_wanted = -(-pass_.n_chunks // (1 if pass_.alone else self.threads))
        wanted = [member for member in self.crew.members if member.ready][:n_wanted]
        for member in wanted[:1]:
            self._enlist(member)
        # It wakes up while the rest is found out here.
        n_now = 1 if pass_.is_claimed and self.parcels.is_brief() else n_wanted
        for member in wanted[1:n_now]:
            self._enlist(member)
        self.reserve = wanted[n_now:]
        self.crew.show((*self.keep_alive, self.board.memory, *(self.job.outputs.arrays or ())))

    def _broadcast(self) -> bytes:
        walked = (self.pass_.number, self.pass_.n_chunks, self.pass_.lost, self.pass_.alone, self.pass_.is_claimed)
        job = self.number, tuple(self.parcel), self.told, self.parcels.arrays(self.job)
        return pickle.dumps(("walk", *job, walked, self.board.reference))

    def _enlist(self, member: Member) -> None:
        member.owes.add(self.number)
        self.crew.send_pickled(member, self.message)

    def _owes(self, member: Member) -> bool:
        return self.number in member.owes

    def _is_complete(self) -> bool:
        """Whether all is done, and who has not said so has not begun: it will find nothing to do, and say so later.

        So a short job does not wait until each worker has been awake. Whoever has begun is waited for, since it may
        have sent more than its mark.
        """
        if self.job.keeper is not None or self.failures or self.lost or self.timed_deaths or not self.parcel.stays:
            return False
        if not self.board.is_full:  # looked at first: who begins and finishes between the two looks has begun
            return False
        owing = filter(self._owes, self.crew.members)
        return all(block == NO_BLOCK for member in owing for block in self._current_of(member))

    @property
    def _over(self) -> bool:
        if self.given_up:
            return True
        if self.job.keep_going:
            blocks = [failure.block for failure in self.failures] + [loss.block for loss in self.lost]
            return None in blocks  # the job cannot run on any worker
        return bool(self.failures or self.lost)

    @property
    def _no_more(self) -> bool:
        """Whether no worker is to begin anything."""
        return self._over or self.job.ended

    def _leave(self) -> None:
        """Ask the workers to leave after the block that they compute now: not before they know where to put it."""
        if self.job.outputs.arrays is not None:
            self.board.stop()

    @property
    def _headless(self) -> bool:
        """Whether block 0 may never say what a result looks like: whoever waits must not wait for it."""
        failed = [failure.block and failure.block.index for failure in self.failures]
        first = self.job.plan.block(0).index  # not 0 where the job is a span of another
        return self.board.done[0] != WAITING or first in failed or bool(self.timed_deaths)

    def _step(self) -> bool:
        """Wait for one thing to happen and deal with it; False when the job is over."""
        if not any(map(self._owes, self.crew.members)):
            if self._no_more or self.board.is_full:
                return False
            unfinished = self.board.unfinished()
            if any(member.ready for member in self.crew.members) and not self._owner_starts():
                self.rows.append(self.board.take_rows())
                # A death blames the blocks of all threads of its process: by itself, each shows whether it was the one.
                suspects = np.array([b for b in unfinished if b in self.deaths and self.threads > 1], np.int64)
                if len(suspects):
                    self._begin(self.pass_.again(suspects, alone=True))
                else:
                    self._begin(self.pass_.again(unfinished))
        elif self._is_complete():
            return False
        if self.given_up:
            self._answer()
        reserve, self.reserve = self.reserve, []
        for member, message in self.crew.events(_BRIEF_S if reserve else self.job.look(self._look_at_the_clock())):
            if message is None:
                self._buried(member)
            else:
                self._heard(member, message)
        if not (self._no_more or self.board.is_full):  # it is not as brief as the one before
            for member in reserve:
                if self.crew.members[member.number] is member:  # and not one that has died meanwhile
                    self._enlist(member)
        return True

    def _owner_starts(self) -> bool:
        """Whether chunks are those of a worker that is still starting, and has no predecessor that died of them."""
        if self.pass_.is_claimed:
            return False
        died = {worker for worker, *_ in self.timed_deaths}
        return any(
            worker < self.pass_.n_chunks and worker not in died
            for worker in (member.number * self.threads for member in self.crew.starting())
        )

    def _heard(self, member: Member, message: tuple[Any, ...]) -> None:
        kind, *rest = message
        if kind == "ready":
            if not self._no_more and member.number not in self.resting:
                self._enlist(member)
        elif rest[0] != self.number:
            pass  # the end of an earlier job, which a failure had cut short
        elif kind == "shape":
            self._asked(member, *rest[1:])
        elif kind == "odd":
            try:
                self.job.outputs.keep(rest[1], pickle.loads(rest[2]))
            except BaseException as error:  # whatever the class of a result raises when it is rebuilt here
                if is_ctrl_c(error):
                    raise
                block = self.job.plan.block(rest[1])
                self.job.outputs.omit(block)  # its mark says done
                self._fail(self.job.failure(block, error))
        elif kind == "failed":
            self._fail(rest[1])
        elif kind == "end":
            self.n_unbegun = 0

    def _asked(self, member: Member, index: int, pickled: bytes) -> None:
        """Take note of what the result of a block looks like: whoever tells it waits for the output's arrays."""
        if member in self.told_arrays:
            return  # they are on their way
        self.waiting.append(member)
        if self.job.outputs.arrays is not None:
            self._answer()
            return
        try:
            self.shapes[index] = pickle.loads(pickled)
        except BaseException as error:  # of a shape that can be rebuilt in the worker and not here
            if is_ctrl_c(error):
                raise
            self._fail(Failure.before_blocks(error))
            return
        if 0 in self.shapes:
            self._shape(self.shapes[0])
        elif self._over:
            self._answer()
        elif self._headless:
            self._shape(self.shapes[min(self.shapes)])

    def _shape(self, shape: Any) -> None:
        """Make the output's arrays, and tell those that wait for them, and those that will as soon as they look."""
        self.job.outputs.allocate(shape, shared_array)
        self.crew.show(self.job.outputs.arrays or ())
        self.message = self._broadcast()
        # Whoever does not wait for it may not read it for long: it must fit the channel.
        if len(self.job.outputs.arrays or ()) <= _FEW_ARRAYS:
            self.told_arrays.update(
                member for member in self.crew.members if self._owes(member) and not member.channel.closed
            )
        self._answer(*self.told_arrays)
        if self.job.ended:
            self._leave()

    def _answer(self, *others: Member) -> None:
        answer = pickle.dumps(("arrays", self.number, self.parcels.arrays(self.job)))
        for member in {*self.waiting, *others}:
            self.crew.send_pickled(member, answer)
        self.waiting = []

    def _fail(self, failure: Failure) -> None:
        self.failures.append(failure)
        self._after_trouble()

    def _after_trouble(self) -> None:
        """End the job, or see to it that the others do not wait for a block that will never be."""
        if self._over:
            self.board.stop()
            self._answer()
        elif self.shapes and self.job.outputs.arrays is None and self._headless:
            self._shape(self.shapes[min(self.shapes)])

    def _buried(self, member: Member) -> None:
        """Find out what a death has cost, and start another worker."""
        exitcode = member.child.exitcode()
        self.timed_deaths.append((member.number * self.threads, member.child.pid, exitcode, time.perf_counter_ns()))
        self.waiting = [other for other in self.waiting if other is not member]
        current = self._current_of(member)
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
                    self.lost.append(self._lost_by(block, member))
                else:  # under "static" the successor would begin the same blocks at once again, and so for ever
                    self.resting.add(member.number)
        # Who dies while it takes on the job would do so again and again: it has no block to blame.
        self.n_unbegun = self.n_unbegun + 1 if self._owes(member) and set(at_that_time) == {NO_BLOCK} else 0
        if self.n_unbegun == FAILED_STARTS:
            self.lost.append(self._lost_by_job(member))
        self._after_trouble()
        self.crew.replace(member)

    def _current_of(self, member: Member) -> memoryview:
        """Return the current block of each thread of a worker."""
        return self.board.current[member.number * self.threads : (member.number + 1) * self.threads]

    def _look_at_the_clock(self) -> float:
        """Kill the workers whose block takes too long; return for how many seconds one may look away."""
        timeout_s, soonest = self.job.block_timeout_s, signals.LOOK_S
        if timeout_s is None:
            return soonest
        for member in self.crew.members:
            if not self._owes(member):
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

    def _lost_by(self, index: int, member: Member) -> WorkerLost:
        block, codes = self.job.plan.block(index), tuple(self.deaths[index])
        workers = f"{len(codes)} worker{'s' if len(codes) > 1 else ''}: {', '.join(map(ending, codes))}"
        what = f"block {block.index} (items {block.start} to {block.stop - 1}) of kernel {self.job.name}"
        return WorkerLost(f"{what} has cost {workers}; {self._last_words(member)}", block, codes)

    def _lost_by_job(self, member: Member) -> WorkerLost:
        code = member.child.exitcode()
        what = f"{self.n_unbegun} workers in a row have ended while they took on kernel {self.job.name}"
        return WorkerLost(f"{what}, the last with {ending(code)}; {self._last_words(member)}", None, (code,))

    def _last_words(self, member: Member) -> str:
        peak_mib = member.child.peak_bytes / 2**20
        return f"peak memory of the last {peak_mib:.0f} MiB; {self.crew.out_of_memory_evidence()}"


def shared_array(shape: tuple[int, ...], dtype: np.dtype[Any]) -> npt.NDArray[Any]:
    """Make an output in shared memory."""
    return shared.SharedArray.empty(shape, dtype).view(np.ndarray)
