"""Results block by block, while the later blocks are computed: at most a few per worker that nobody has taken."""

from __future__ import annotations

import functools
import queue
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import Future
from dataclasses import dataclass
from functools import cached_property
from typing import Any, TypeVar

import numpy as np

from parcompute.backends.base import Trouble, WorkerLost
from parcompute.executor import arguments
from parcompute.executor.batches import SentOnce
from parcompute.executor.last_job import LastJob
from parcompute.executor.progress import Progress, reporting
from parcompute.jobs.job import Failure, Job, is_ctrl_c
from parcompute.jobs.partials import Partials
from parcompute.jobs.schedule import DONE
from parcompute.jobs.world import World
from parcompute.machine import signals
from parcompute.values.blocks import Block, Plan

_R = TypeVar("_R")

# Blocks per worker that are on their way, or have not been taken: one is computed while the one before is.
_AHEAD = 2


class BlockIterator(LastJob):
    """Calls, what is known of the last job, and its blocks one by one."""

    _has_state: bool
    _progress: Progress

    def iter_blocks(
        self,
        kernel: Callable[..., _R],
        *arrays: Any,
        n_items: int | None = None,
        block_items: int | None = None,
        seed: int | None = None,
        halo: int = 0,
        ordered: bool = True,
        args: Sequence[Any] = (),
        kwargs: Mapping[str, Any] | None = None,
        on_error: str = "raise",
    ) -> Iterator[tuple[Block, _R]]:
        """Return an iterator over ``(block, result)`` of finished blocks, while later ones are computed.

        Two blocks per worker at most are on their way or have not been taken, so whoever takes results slowly fills no
        memory. Closing the iterator, or dropping it, ends the job after the blocks that are computed then.

        Parameters
        ----------
        kernel : callable
            As for `map_blocks`, without ``out``; it returns anything that can be pickled.
        *arrays, n_items, block_items, seed, halo, args, kwargs
            As for `map_blocks`. Each block gets the same rows and the same random stream as there.
        ordered : bool
            In the order of the blocks; False gives each as it is finished.
        on_error : {"raise", "keep"}
            With ``"keep"`` a block that has failed is left out, and `failures` lists it.

        Raises
        ------
        KernelError, WorkerLost
            While iterating, if a block has failed or was given up.
        TypeError, ValueError
            At once, for arguments that do not fit together.

        Examples
        --------
        >>> import numpy as np
        >>> from parcompute import Executor
        >>> with Executor(backend="serial") as ex:
        ...     for block, result in ex.iter_blocks(np.sum, np.arange(10), block_items=4):
        ...         print(block.start, result)
        0 6
        4 22
        8 17
        """
        self._usable()
        arrays = arguments.arrays_of(arrays)
        n_items, item_bytes = arguments.n_items_of(arrays, n_items), arguments.item_bytes_of(arrays)
        plan = Plan.cut(n_items, block_items, n_workers=self._backend.n_workers, halo=halo, item_bytes=item_bytes)
        asks, args, kwargs = arguments.asked_of(kernel, len(arrays), args, kwargs, self._has_state)
        keep_going, _ = arguments.policy_of(on_error, None, "")
        if "out" in asks:
            raise ValueError("the kernel asks for out, but the blocks of iter_blocks have no rows; use map_blocks")
        self._seed, self._failures = arguments.seed_of(seed, asks), ()
        job = Job(kernel, arrays, plan, Partials(plan), self._seed, args, kwargs, asks, keep_going)
        return self._blocks(job, ordered, World())

    def _blocks(self, job: Job, ordered: bool, world: World) -> Iterator[tuple[Block, Any]]:
        function, n_blocks, most = SentOnce(_Blocks(job)), job.plan.n_blocks, _AHEAD * self._backend.n_workers
        news: queue.SimpleQueue[int] = queue.SimpleQueue()
        sent: dict[int, Future[Any]] = {}  # and not taken
        ended = np.zeros(n_blocks, np.uint8)
        done: set[int] = set()
        n_sent = 0

        def note(index: int, _: Future[Any]) -> None:
            ended[index] = DONE
            news.put(index)

        try:
            with reporting(self._progress, job, lambda: (n_blocks, len(self._failures))) as job:
                job.follow(ended)
                for turn in range(n_blocks):
                    while n_sent < n_blocks and len(sent) < most:
                        self._usable()
                        future = sent[n_sent] = self._submit(world, 1, _call, function, n_sent)
                        future.add_done_callback(functools.partial(note, n_sent))
                        n_sent += 1
                        if future.done():  # by this thread: nobody computes ahead
                            break
                    while not (turn in done if ordered else done):
                        done.add(_next(news))
                    index = turn if ordered else done.pop()
                    done.discard(index)
                    block, outcome = job.plan.block(index), _outcome(sent.pop(index), job.plan.block(index))
                    if not isinstance(outcome, Trouble):
                        yield block, outcome[0]
                    elif job.keep_going:
                        self._failures = (*self._failures, outcome)
                    else:
                        raise outcome
                    del outcome
        finally:
            for future in sent.values():
                future.cancel()
            function.let_go()


def _next(news: queue.SimpleQueue[int]) -> int:
    while True:
        signals.look()
        try:
            return news.get(timeout=signals.LOOK_S)
        except queue.Empty:
            continue


def _outcome(future: Future[Any], block: Block) -> tuple[Any] | Trouble:
    try:
        outcome = future.result()
    except WorkerLost as lost:
        return WorkerLost(
            f"block {block.index} (items {block.start} to {block.stop - 1}): {lost}", block, lost.exitcodes
        )
    return outcome.error() if isinstance(outcome, Failure) else (outcome,)


@dataclass(frozen=True)
class _Blocks:
    """The function of a block's number."""

    job: Job

    def __reduce__(self) -> Any:
        return _Blocks, (self.job,)

    @cached_property
    def _compute(self) -> Callable[[Block], Any]:
        return self.job.bind()

    def __call__(self, index: int) -> Any:
        block = self.job.plan.block(index)
        try:
            return self._compute(block)
        except BaseException as error:  # SystemExit too: a kernel that calls sys.exit() has failed
            if is_ctrl_c(error):
                raise
            return self.job.failure(block, error)


def _call(function: SentOnce, index: int) -> Any:
    return function.function(index)
