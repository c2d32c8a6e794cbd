"""Threads of this process: right for kernels that release the GIL, with no hand-over to pay."""

from __future__ import annotations

import functools
import os
import threading
import time
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor, wait
from contextlib import AbstractContextManager
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import numpy.typing as npt

from parcompute.backends.base import Call, KeepsPlan, Options, StoresHere, Trouble, conclude, deliver, timeline
from parcompute.backends.kinds import SHORT_NS, Kinds, is_brief
from parcompute.jobs import variables, world
from parcompute.jobs.job import Failure, Job
from parcompute.jobs.outputs import Allocate
from parcompute.jobs.schedule import WAITING, Board, Pass, ThreadClaims
from parcompute.jobs.setup import State
from parcompute.machine import blas, signals
from parcompute.values.timeline import Timeline
from parcompute.workers.walk import walk

# Threads that compute keep as many CPUs busy, all together; in less they wait. More than one says nothing about short
# blocks: to hand the interpreter's lock on costs CPU time, too.
_COMPUTING = 0.6

# For so long one thread is watched that is expected to do best alone; and it must be so fast compared with all of them.
_ALONE_S, _AS_FAST = 0.001, 0.9

# After so many jobs all threads are tried again, then after four times as many each time: what they did before may have
# been slow since they had just been woken, or were on one CPU.
_PATIENCE = 2


@dataclass(slots=True)
class _Pace:
    """How fast jobs of one kind have been.

    Attributes
    ----------
    per_s : dict
        Blocks a second; the key is whether one thread was alone.
    alone : bool
        Whether one thread shall begin alone next time.
    n_alone, patience : int
        How many jobs in a row one thread has done, and after how many all are tried again.
    """

    per_s: dict[bool, float] = field(default_factory=lambda: {False: 0.0, True: 0.0})
    alone: bool = False
    brief: bool = False
    block_ns: float = 0.0
    n_alone: int = 0
    patience: int = _PATIENCE

    def learn(self, rows: npt.NDArray[np.void], n_blocks: int, makespan_ns: int, alone: bool) -> None:
        """Take note of a job."""
        if is_brief(rows):
            self.brief = self.alone = True
            return
        self.per_s[alone] = n_blocks / (makespan_ns / 1e9)
        cpu_ns = int(rows["cpu_ns"].sum())
        self.brief, self.block_ns = False, cpu_ns / n_blocks
        if self.per_s[True]:
            self.alone = self.is_enough
        else:
            self.alone = self.block_ns < SHORT_NS and cpu_ns > _COMPUTING * makespan_ns
        self.n_alone = self.n_alone + 1 if alone else 0
        if not self.alone:
            self.patience = _PATIENCE
        elif self.n_alone == self.patience:
            self.alone, self.patience = False, 4 * self.patience

    @property
    def is_enough(self) -> bool:
        """Whether one thread alone has been as fast as all of them, with blocks so short that it is for the lock."""
        return self.block_ns < SHORT_NS and self.per_s[True] > _AS_FAST * self.per_s[False]

    def why(self, n_threads: int) -> str:
        """Say why one thread computes."""
        if self.brief:
            return "in one thread: the job is over before another one is awake"
        return f"in one thread: {n_threads} would take turns, with blocks of {self.block_ns / 1000:.0f} µs"


class Threads(KeepsPlan, StoresHere):
    """Compute in threads that start once and claim like worker processes do."""

    def __init__(self, options: Options) -> None:
        self.n_workers, self.start_method = options.n_workers, ""
        self._blas_threads = options.blas_threads
        self._pool = ThreadPoolExecutor(options.n_workers, thread_name_prefix="parcompute")
        self._turn = threading.Lock()
        self._setup = options.setup
        self._states = [State(options.setup.state) for _ in range(options.n_workers)]
        self._failure: Failure | None = None  # of an initializer
        self._closing = threading.Lock()
        self._leaving: threading.Barrier | None = None
        self.why = ""
        self._paces = Kinds(_Pace)
        self._ready_ns = [0] * options.n_workers
        self.idents = [0] * options.n_workers  # of the threads, by number
        self._start()

    def _start(self) -> None:
        """Have the pool start all its threads: each call waits until every one of them runs one."""
        barrier = threading.Barrier(self.n_workers + 1)

        def check_in(worker: int) -> None:
            self.idents[worker] = threading.get_ident()
            barrier.wait()
            self._states[worker].stay()
            variables.here.own = {}
            try:
                with variables.noted(variables.here.own):
                    self._setup.initialize()
            except BaseException as error:  # whoever has calls for this thread must hear of it
                self._failure = Failure.before_blocks(error)
            self._ready_ns[worker] = time.perf_counter_ns()

        self._checked_in = [self._pool.submit(check_in, worker) for worker in range(self.n_workers)]
        barrier.wait()

    def wait_until_ready(self) -> int:
        """Return when the last thread has run the initializer."""
        while not all(self._ready_ns) and wait(self._checked_in, signals.LOOK_S).not_done:
            signals.look()
        self._require_unbroken()
        return max(self._ready_ns)

    def _require_unbroken(self) -> None:
        if self._failure is not None:
            from parcompute.backends.broken import Broken

            raise Broken(self._failure)

    def run(self, job: Job, called_ns: int) -> tuple[Timeline, tuple[Trouble, ...]]:
        """Compute every block once."""
        with self.turn():
            return self.finish(self.walks(job), called_ns)

    def turn(self) -> AbstractContextManager[None]:
        """Have the threads for a job."""
        return signals.taken(self._turn)

    def walks(self, job: Job) -> Walks:
        """Return the walks of a job's pass, none of which has begun."""
        self.wait_until_ready()
        return Walks(job, self.n_workers, self._pool.submit, self._blas_threads, self.allocate)

    def finish(self, walks: Walks, called_ns: int) -> tuple[Timeline, tuple[Trouble, ...]]:
        """Have all threads walk to the end, and return what `run` returns."""
        pace, alone = self._paces.of(walks.job), False
        if pace.alone and not walks and walks.is_claimed:
            walks.begin()
            alone = self._stays_alone(walks, pace)
        over = False
        while not over:
            while not alone and len(walks) < self.n_workers and not (walks.board.stopped or walks.board.is_full):
                walks.begin()
            n_before, before_s = walks.board.n_done, time.perf_counter()
            over = walks.over(walks.job.look())
            if alone and not over:
                per_s = (walks.board.n_done - n_before) / (time.perf_counter() - before_s)
                alone = per_s > _AS_FAST / 2 * pace.per_s[False]
        troubles = conclude(walks.job, walks.failures)
        workers = [(os.getpid(), ready) for ready in self._ready_ns]
        completed_ns, rows = time.perf_counter_ns(), walks.board.take_rows()
        if self.n_workers > 1 and walks.is_claimed and walks.board.is_full and walks.job.keeper is None:
            pace.learn(rows, walks.job.plan.n_blocks, completed_ns - walks.submitted_ns, alone or len(walks) == 1)
        self.why = pace.why(self.n_workers) if len(walks) == 1 < self.n_workers else ""
        return timeline(called_ns, walks.submitted_ns, completed_ns, rows, workers), troubles

    def _stays_alone(self, walks: Walks, pace: _Pace) -> bool:
        """Wait a moment, and tell whether one thread is to go on without the others."""
        done = []
        for _ in range(2):  # what is between the two looks is neither the beginning nor the waking
            if walks.over(_ALONE_S):
                return True
            if pace.brief:  # a job of that kind was
                return False
            done.append((walks.board.n_done, time.perf_counter()))
        (n_before, before_s), (n_done, now_s) = done
        per_s = (n_done - n_before) / (now_s - before_s)
        if pace.per_s[True]:  # known from whole jobs: only if it is quite different now
            return per_s > _AS_FAST / 2 * pace.per_s[False]
        pace.per_s[True] = per_s
        return per_s > _AS_FAST * pace.per_s[False]

    def takes_turns(self, job: Job) -> bool:
        """Tell whether one thread is as fast as all of them, as far as jobs like this one have shown."""
        pace = self._paces.of(job)
        return pace.is_enough and not pace.brief

    def submit(self, call: Call) -> None:
        """Call in one of the threads."""
        self._require_unbroken()
        self._pool.submit(self._run, call)

    def _run(self, call: Call) -> None:
        try:
            self._require_unbroken()
        except Exception as error:
            if call.future.set_running_or_notify_cancel():
                deliver(call.future, error=error)
        else:  # it runs from now on, and cannot be cancelled
            replace(call, function=functools.partial(self._limited, call.function)).run_here()

    def _limited(self, function: Callable[..., Any], /, *args: Any, **kwargs: Any) -> Any:
        with blas.limited(self._blas_threads):
            return function(*args, **kwargs)

    def pids(self) -> tuple[int, ...]:
        """Return this process, once per thread."""
        return (os.getpid(),) * self.n_workers

    def close(self, *, wait: bool) -> None:
        """End the threads, each when it has closed what it keeps."""
        with signals.at_any_line():
            with self._closing:
                if self._setup.state is not None and self._leaving is None:
                    self._check_out()
            self._pool.shutdown(wait=wait)
            if wait:
                for state in self._states:  # of threads that the interpreter has ended before
                    state.close()

    def _check_out(self) -> None:
        """Have each thread close what it keeps, in that thread, when all are done."""
        self._leaving = barrier = threading.Barrier(self.n_workers)

        def leave() -> None:
            try:
                barrier.wait()
            except threading.BrokenBarrierError:  # killed
                return
            self._states[self.idents.index(threading.get_ident())].close()

        try:
            for _ in range(self.n_workers):
                self._pool.submit(leave)
        except RuntimeError:  # the interpreter takes no more calls
            barrier.abort()

    def kill(self) -> None:
        """Cancel what has not begun; threads cannot be stopped, so the others end when they are done."""
        self._pool.shutdown(wait=False, cancel_futures=True)
        if self._leaving is not None:
            self._leaving.abort()


class Walks:
    """The threads that compute a job: they begin one by one.

    The job is over when the last block is done, and who comes later finds nothing to do: a short one is not to wait
    until each thread has had its turn of the interpreter.
    """

    def __init__(
        self,
        job: Job,
        n_workers: int,
        submit: Callable[..., Future[None]],
        blas_threads: int | None,
        allocate: Allocate,
    ) -> None:
        self.job = job
        self.board = Board(n_workers, job.plan.n_blocks, job.plan.n_chunks)
        self.failures: list[Failure] = []
        self._submit, self._blas_threads, self._allocate = submit, blas_threads, allocate
        self._claims, self._pass = ThreadClaims(), Pass.first(job.plan)
        self._first_known = threading.Event()  # block 0 has said what a result looks like, or never will
        self._leaving = self._given_up = False
        self._settling = threading.Lock()  # what is known of the first block, and what follows from it
        job.follow(self.board.done, stop=self.leave, current=self.board.current)
        if self.board.done[0] != WAITING:
            self._first_known.set()
        self._futures: list[Future[None]] = []
        self._counting = threading.Lock()
        self._n_in = self._n_out = 0  # threads that compute, and those that have computed
        self._error: BaseException | None = None  # outside any block
        self._news = threading.Lock()  # let go of at the end, and with an error
        self._news.acquire()
        self.submitted_ns = time.perf_counter_ns()

    def __len__(self) -> int:
        return len(self._futures)

    @property
    def is_claimed(self) -> bool:
        """Whether any thread may compute any chunk."""
        return self._pass.is_claimed

    def begin(self) -> None:
        """Have one more thread compute."""
        with self._counting:  # it cannot end before it is counted
            self._futures.append(self._submit(self._work, len(self)))

    def over(self, timeout_s: float) -> bool:
        """Wait a while; tell whether those that have begun have done all that they ever will."""
        try:
            if not self._is_over() and not self._news.acquire(timeout=timeout_s):
                signals.look()
                for future in self._futures:
                    if future.cancelled():  # since the executor was killed
                        future.result()
            if self._error is not None:
                raise self._error
        except BaseException:  # Ctrl-C: threads cannot be killed; they leave after their block
            self.stop()
            raise
        return self._is_over()

    def _is_over(self) -> bool:
        # Who leaves has found nothing to claim; chunks that are not claimed wait for those whose they are.
        return self._n_in == 0 < self._n_out and (self._pass.is_claimed or self._n_out == len(self))

    def leave(self) -> None:
        """Ask the threads to leave after the block that they compute now.

        Those that wait for block 0 would wait for ever if the thread that has claimed it left without it.
        """
        with self._settling:
            self._leaving = True
            if self.job.outputs.arrays is not None or self._first_known.is_set():
                self.board.stop()

    def stop(self) -> None:
        """Ask the threads to leave after the block that they compute now, whose result nobody wants."""
        self._given_up = True
        self.board.stop()
        self._first_known.set()

    def _work(self, worker: int) -> None:
        with self._counting:
            if self._is_over():
                return
            self._n_in += 1
        try:
            job, keep = self.job, self.job.outputs.keep
            given = (self._pass, self.board, self._claims, worker, self._shaped, keep, self._failed)
            with blas.limited(self._blas_threads):
                world.run(job.world, walk, job, *given)
        except BaseException as error:  # whoever waits for the end must hear of it
            self._error = error
        with self._counting:
            self._n_in -= 1
            self._n_out += 1
            if (self._is_over() or self._error is not None) and self._news.locked():
                self._news.release()

    def _shaped(self, index: int, shape: Any) -> None:
        if index != 0:
            self._first_known.wait()
        with self._settling:
            if self.job.outputs.arrays is None and not self._given_up:
                self.job.outputs.allocate(shape, self._allocate)
            self._settled()

    def _failed(self, failure: Failure) -> None:
        self.failures.append(failure)
        if not self.job.keep_going:
            self.stop()
        elif failure.block is None or failure.block.index == 0:
            with self._settling:
                self._settled()

    def _settled(self) -> None:
        if self._leaving:
            self.board.stop()
        self._first_known.set()
