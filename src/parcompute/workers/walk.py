"""The loop of a worker, of processes, threads and the caller alike: claim, compute, write in place, mark, stamp."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

from parcompute.jobs.job import Failure, Job, is_ctrl_c
from parcompute.jobs.outputs import Outputs
from parcompute.jobs.schedule import BETWEEN, DONE, FAILED, Board, FileClaims, Pass, ThreadClaims
from parcompute.memory import segments, shared

# The stamp of a block that has no time limit any more: its kernel has returned.
_COMPUTED = 2**63 - 1


def walk(
    job: Job,
    pass_: Pass,
    board: Board,
    claims: FileClaims | ThreadClaims,
    worker: int,
    shaped: Callable[[int, Any], None],
    odd: Callable[[int, Any], None],
    failed: Callable[[Failure], None],
) -> None:
    """Compute chunks until none is left, the run is stopped, or a block fails: one loop for all media.

    Parameters
    ----------
    job : Job
        What to compute.
    pass_ : Pass
        The chunks to claim from.
    board : Board
        Where to mark what is current, done and when.
    claims : FileClaims or ThreadClaims
        The counter that the workers of the pass share.
    worker : int
        Number of this worker.
    shaped : callable
        Called with a block and what its result looks like while the outputs have no arrays. They have
        when it returns, or the run is stopped.
    odd : callable
        Called with a block and its result if that has no place in the arrays.
    failed : callable
        Called with a block that failed; the walk ends there unless the job keeps going.
    """
    outputs, compute, block_of = job.outputs, job.bind(), job.plan.block
    (firsts, stops), number_of, attempt = pass_.spans(), pass_.chunk_in_plan, pass_.number
    current, since_ns, done, stop, stamp = board.current, board.since_ns, board.done_marks, board.stop_mark, board.stamp
    timed = job.block_timeout_s is not None
    wall, cpu = time.perf_counter_ns, time.thread_time_ns
    many = job.plan.n_blocks + 1 if outputs.arrays is None else _many(outputs, job.plan.n_blocks)
    # Where the caller itself computes, nobody else would find the time to write what is due.
    look = None if job.keeper is None else job.keeper.look
    current[worker] = BETWEEN
    for chunk in pass_.claimed(worker, claims):
        first, behind = firsts[chunk], stops[chunk]
        started = finished = wall()
        cpu_started = cpu_finished = cpu()
        computed = False
        if behind - first >= many:
            _touch(outputs, first, behind)
        for index in range(first, behind):
            if look is not None:
                look()
            if stop[0]:
                cpu_finished = cpu()
                break
            if done[index]:
                continue
            block = block_of(index)
            if timed:
                since_ns[worker] = wall()
            current[worker] = index
            computed = True
            try:
                result = compute(block)
                finished = wall()
                if timed:
                    since_ns[worker] = _COMPUTED
                if index + 1 == behind:
                    cpu_finished = cpu()
                if outputs.arrays is None:
                    shaped(index, outputs.shape_of(result, block))
                    if outputs.arrays is None:
                        return
                    many = _many(outputs, job.plan.n_blocks)
                    if behind - index >= many:
                        _touch(outputs, index, behind)
                if not outputs.store(result, block):
                    odd(index, result)
            except BaseException as error:  # SystemExit too: a kernel that calls sys.exit() has failed
                if is_ctrl_c(error):
                    raise
                failed(job.failure(block, error))
                if not job.keep_going:
                    return
                done[index] = FAILED
            else:
                done[index] = DONE
        current[worker] = BETWEEN
        if computed:  # else by the predecessor of this worker, whose row must stay
            cpu_ns = cpu_finished - cpu_started
            stamp(chunk, number_of(chunk), worker, attempt, started, finished, cpu_ns, wall())
        if stop[0]:
            return


def _many(outputs: Outputs, n_blocks: int) -> int:
    """Return how many blocks have more rows than one page fault maps."""
    return 1 + segments.AROUND * n_blocks // max([1, *[array.nbytes for array in outputs.arrays or ()]])


def _touch(outputs: Outputs, first: int, behind: int) -> None:
    """Have the rows of these blocks mapped here before they are written."""
    for array in outputs.arrays or ():
        shared.touch(array[outputs.span(first, behind)])
