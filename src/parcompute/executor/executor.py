"""The user's verbs over a backend: map and reduce blocks of arrays, and, through `futures`, calls."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any, TypeVar, Unpack, overload

import numpy as np
import numpy.typing as npt

from parcompute.backends import base
from parcompute.executor import arguments
from parcompute.executor.arguments import BlockOptions, OtherBlockOptions
from parcompute.executor.enough import Steps, Until
from parcompute.executor.iteration import BlockIterator
from parcompute.executor.progress import reporting
from parcompute.jobs.job import Job
from parcompute.jobs.partials import Partials
from parcompute.jobs.world import World
from parcompute.machine import signals
from parcompute.memory.targets import chunk_rows
from parcompute.values.blocks import Plan, Schedule
from parcompute.values.timeline import Timeline

_R = TypeVar("_R")
_Array = npt.NDArray[Any]
_Rows = TypeVar("_Rows", bound=_Array | tuple[_Array, ...])


class Executor(BlockIterator):
    """Workers that start once and serve many jobs and calls.

    Parameters
    ----------
    workers : int, optional
        How many; None is what this process may really use (see `parcompute machine`). More than that is
        allowed, with a warning.
    mp_context : multiprocessing context or str, optional
        Another way to say `start_method`.
    initializer, initargs : callable, sequence
        ``initializer(*initargs)`` is called once in each worker before anything else, and in each that replaces one.
        If it raises, calls and jobs raise ``BrokenProcessPool``, which is a ``BrokenThreadPool`` too.
    max_workers : int, optional
        The same as `workers`.
    max_tasks_per_child : int, optional
        After so many calls a worker process ends, and another takes its place (``"processes"`` and ``"auto"``; not
        with ``"fork"``). Jobs do not count.
    state : callable, optional
        ``state()`` makes an object once in each worker, with the first use there: a kernel asks for it by the
        parameter name ``state``, a call gets it from `worker_state`. A context manager or a generator is entered, and
        left when the worker ends, unless that is killed. No two threads share one.
    backend : str
        ``"processes"`` (self-scheduled worker processes), ``"serial"``, ``"threads"``, ``"pool"``
        (`multiprocessing.Pool`), ``"joblib"``, or one that a package has registered. Each gives the same bits.
        ``"auto"`` finds out on the first blocks of a kernel whether threads or processes serve it better. ``"dask"``
        and ``"mpi"`` compute on several hosts, see docs/howto/nodes.md; `workers` are those of each.
    threads_per_worker : int
        Threads that compute in each worker process (``"processes"`` only).
    schedule : str
        ``"static"``, ``"dynamic"`` or ``"guided"``, with a chunk size in blocks if wanted: ``"dynamic,16"``.
    start_method : {"forkserver", "fork", "spawn"}, optional
        How worker processes start; None is ``"forkserver"``.
    blas_threads : int or None
        Threads of BLAS and OpenMP in each worker, while it computes; None leaves them alone, and the bits of what they
        compute to chance.
    pin : False or "cores"
        ``"cores"`` gives each worker process physical cores of its own, inside the allowed ones (``"processes"``
        only).
    retries : int
        How many workers one block may kill before it is given up as `WorkerLost`.
    worker_output : {"inherited", "here"}
        Where worker processes print: where this process's descriptors 1 and 2 lead, or, with ``"here"``, into its
        `sys.stdout` and `sys.stderr`, as they are at that moment, line by line: a cell, a test, a redirection
        (``"processes"`` and ``"auto"`` only; kernels in ``"serial"`` and ``"threads"`` print there anyway).
    progress : callable or True, optional
        ``progress(n_done, n_blocks)`` is called ten times a second while a job runs, from a thread of its own.
        True shows a bar in a terminal or a notebook, and now and then a line in a log (docs/howto/progress.md).
    cluster : distributed.Client, cluster or str, optional
        Of the backend ``"dask"``; a string is an address or a scheduler file. None is the program's client.
    nodes : int, optional
        How many of the nodes that are there; None is all.

    Raises
    ------
    TypeError, ValueError
        For a number out of its range and for unknown names, which are listed.

    Examples
    --------
    >>> import numpy as np
    >>> with Executor(workers=2, backend="threads") as ex:
    ...     ex.reduce_blocks(np.sum, np.arange(10.0))
    np.float64(45.0)
    """

    def __init__(
        self,
        workers: int | None = None,
        mp_context: Any = None,
        initializer: Callable[..., Any] | None = None,
        initargs: Sequence[Any] = (),
        *,
        max_workers: int | None = None,
        max_tasks_per_child: int | None = None,
        state: Callable[[], Any] | None = None,
        backend: str = "processes",
        threads_per_worker: int = 1,
        schedule: str = "guided",
        start_method: str | None = None,
        blas_threads: int | None = 1,
        pin: bool | str = False,
        retries: int = 2,
        worker_output: str = "inherited",
        progress: Any = None,
        cluster: Any = None,
        nodes: int | None = None,
    ) -> None:
        super().__init__()
        self.schedule = Schedule.parse(schedule)
        backend, options = arguments.options_of(
            workers,
            max_workers,
            backend,
            threads_per_worker,
            start_method,
            mp_context,
            max_tasks_per_child,
            blas_threads,
            pin,
            retries,
            worker_output,
            arguments.setup_of(initializer, initargs, state),
            cluster,
            nodes,
        )
        self._has_state = state is not None
        self._progress = arguments.progress_of(progress)
        self.backend = backend
        self._planned: tuple[Any, Plan] | None = None  # what the last plan was cut from, and the plan
        self._started_ns = time.perf_counter_ns()
        try:
            with signals.held():  # half an executor could not be closed
                self._begin(base.create(backend, options), options.most_calls)
        except BaseException:
            if not self._closed:
                self.kill_workers()
            raise

    def wait_until_ready(self) -> float:
        """Return when every worker can begin: the seconds that this took from the making of the executor."""
        return (self._usable().wait_until_ready() - self._started_ns) / 1e9

    # --- blocks --------------------------------------------------------------------------------------------

    @overload
    def map_blocks(
        self, kernel: Callable[..., _Rows], *arrays: Any, dtype: None = ..., **more: Unpack[BlockOptions]
    ) -> _Rows: ...
    @overload
    def map_blocks(
        self,
        kernel: Callable[..., _Array | None],
        *arrays: Any,
        dtype: npt.DTypeLike = ...,
        **more: Unpack[BlockOptions],
    ) -> _Array: ...
    @overload
    def map_blocks(
        self, kernel: Callable[..., Any], *arrays: Any, out: _R, dtype: None = ..., **more: Unpack[OtherBlockOptions]
    ) -> _R: ...
    @overload
    def map_blocks(self, kernel: Callable[..., Any], *arrays: Any, **more: Unpack[BlockOptions]) -> Any: ...
    def map_blocks(
        self,
        kernel: Callable[..., Any],
        *arrays: Any,
        n_items: int | None = None,
        block_items: int | None = None,
        seed: int | None = None,
        halo: int = 0,
        out: Any = None,
        dtype: npt.DTypeLike | None = None,
        item_shape: int | Sequence[int] | None = None,
        args: Sequence[Any] = (),
        kwargs: Mapping[str, Any] | None = None,
        on_error: str = "raise",
        block_timeout: float | None = None,
        checkpoint: str | os.PathLike[str] | None = None,
    ) -> Any:
        """Compute one output row per item, block by block.

        Parameters
        ----------
        kernel : callable
            Called once per block with that block's rows of each array, then `args` and `kwargs`. It asks by
            parameter name for ``block`` (a `Block`), ``rng`` (a `numpy.random.Generator` of its own), ``out``
            (the rows to fill) and ``state`` (of its worker, if the executor has one). It returns an array of one
            row per item, or a tuple of them. It must not write to its inputs, which are read-only.
        *arrays : ndarray, SharedArray, memmap, h5py.Dataset, zarr.Array, table or list of numbers
            Of n_items rows each. Tables are a DataFrame or Series of pandas or polars, or a Table of Arrow; the kernel
            gets some of its rows, as such.
        n_items : int, optional
            Needed without arrays.
        block_items : int, optional
            Items per block; None chooses by the bytes of an item alone, the same on every machine.
        seed : int, optional
            Of the random streams; None draws one, which `seed` then tells.
        halo : int
            Rows of the neighbours that the kernel receives on either side, fewer at the two ends; it
            returns rows for its own items (``block.core``) only.
        out : ndarray, memmap, h5py.Dataset, zarr.Array or tuple of them, optional
            Where to write; shape (n_items, ...). Results are cast to its dtype. It must not overlap an input. What lies
            in a file may be larger than memory, see docs/howto/data.md.
        dtype : dtype, optional
            Of a single output, to which results are cast ("same kind"); None is what block 0 returns. For a
            kernel that asks for ``out``, None is the dtype of the first array.
        item_shape : int or tuple of int, optional
            Of one item of a single output; None is what block 0 returns, or like the first array's.
        args, kwargs : sequence, mapping
            Handed to the kernel. Arrays above 1 MiB in them, wherever they sit, are shared and not sent.
        on_error : {"raise", "keep"}
            What happens when a block fails or is given up: ``"raise"`` ends the job; with ``"keep"`` the others
            are computed, the rows of that block are zero, and `failures` lists it.
        block_timeout : float, optional
            Seconds that one block may take (``"processes"`` only). Its worker is stopped and replaced, and the
            block has failed, with `TimeoutError` as the cause.
        checkpoint : str or os.PathLike, optional
            File that keeps finished blocks while the job runs. Called again, however it ended, the same job computes
            only the missing blocks, with the seed of the file if `seed` is None. See docs/howto/checkpoints.md.

        Returns
        -------
        ndarray or tuple of ndarray, or table
            Shape (n_items, ...); bit for bit the same for every backend, worker count and schedule. Where blocks return
            tables, all their rows.

        Raises
        ------
        KernelError
            If the kernel raised, or returned rows that do not fit; it names the block.
        WorkerLost
            If a block has killed as many workers as `retries` allows.
        SharedMemoryFull
            If there is too little shared memory; at most block 0 has run then.
        CheckpointError, OutOfTime
            If the checkpoint is of another job, or cannot be written; if the batch job ends before the job is done.
        TypeError, ValueError
            For arguments that do not fit together.

        Examples
        --------
        >>> import numpy as np
        >>> with Executor(backend="serial") as ex:
        ...     ex.map_blocks(np.sqrt, np.array([1.0, 4.0, 9.0]))
        array([1., 2., 3.])
        """
        called_ns = time.perf_counter_ns()
        backend, arrays = self._usable(), arguments.arrays_of(arrays)
        plan = self._cut(arrays, n_items, block_items, halo, chunk_rows(out))
        asked = arguments.asked_of(kernel, len(arrays), args, kwargs, self._has_state)
        policy = arguments.policy_of(on_error, block_timeout, self.backend)
        outputs, targets = arguments.rows_of(plan, arrays, out, dtype, item_shape, "out" in asked[0])
        if targets is not None:
            outputs.arrays = tuple(
                target if backend.reaches(target) else backend.allocate(target.shape, target.dtype)
                for target in targets
            )
        elif outputs.fields is not None:
            outputs.allocate((outputs.fields, outputs.single), backend.allocate)
        job = _job(kernel, arrays, plan, outputs, seed, asked, policy)
        self._note(*self._run(job, called_ns, checkpoint, seed))
        if outputs.arrays is None:  # no block has said what a row looks like
            raise self._failures[0]
        if targets is None:
            return outputs.result()
        outputs.finish()
        for target, result in zip(targets, outputs.arrays or (), strict=True):
            if target is not result:
                np.copyto(target, result)
        return out

    def reduce_blocks(
        self,
        kernel: Callable[..., _R],
        *arrays: Any,
        n_items: int | None = None,
        block_items: int | None = None,
        seed: int | None = None,
        combine: Callable[[_R, _R], _R] | None = None,
        args: Sequence[Any] = (),
        kwargs: Mapping[str, Any] | None = None,
        on_error: str = "raise",
        block_timeout: float | None = None,
        checkpoint: str | os.PathLike[str] | None = None,
        until: Callable[[_R, int], object] | None = None,
    ) -> _R:
        """Compute one partial result per block and combine them over a fixed tree.

        Parameters
        ----------
        kernel : callable
            As for `map_blocks`, but it returns the partial result of its block: a number, an array, a tuple
            or dict of them, or any object that can be pickled.
        *arrays, n_items, block_items, seed, args, kwargs, on_error, block_timeout, checkpoint
            As for `map_blocks`; with ``on_error="keep"`` a failed block is left out of the tree.
        combine : callable, optional
            ``combine(a, b)`` of two partials of neighbouring runs of blocks; None adds, tuples and dicts
            entry by entry.
        until : callable, optional
            ``until(partial, n_items)`` is asked after 1, 2, 4, … blocks, of what these combine to and how many items
            they are. When it returns something true, that is the result. See docs/howto/data.md.

        Returns
        -------
        object
            ``combine`` over all blocks, neighbours first: ((0 1) (2 3)) ((4 5) 6). The tree depends on the
            blocks only, so a sum of floats is bit for bit the same whoever computes.

        Raises
        ------
        KernelError, WorkerLost, SharedMemoryFull, CheckpointError, OutOfTime, TypeError, ValueError
            As for `map_blocks`.

        Examples
        --------
        >>> def hits(block, rng):
        ...     x, y = rng.random((2, block.size))
        ...     return int(np.count_nonzero(x * x + y * y < 1))
        >>> with Executor(backend="serial") as ex:
        ...     ex.reduce_blocks(hits, n_items=100_000, seed=1)
        78584
        """
        called_ns = time.perf_counter_ns()
        arrays = arguments.arrays_of(arrays)
        plan = self._cut(arrays, n_items, block_items, 0)
        asked = arguments.asked_of(kernel, len(arrays), args, kwargs, self._has_state)
        policy = arguments.policy_of(on_error, block_timeout, self.backend)
        if "out" in asked[0]:
            raise ValueError("the kernel asks for out, but the blocks of reduce_blocks have no rows; use map_blocks")
        outputs = Partials(plan, combine)
        job = _job(kernel, arrays, plan, outputs, seed, asked, policy)
        timeline, plan = self._run(job, called_ns, checkpoint, seed, until)
        if len(outputs.omitted) == plan.n_blocks:  # nothing is left to be combined
            raise self._failures[0]
        result: _R = outputs.result(plan.n_blocks)
        self._note(timeline.until(time.perf_counter_ns()), plan)
        return result

    # --- the way there -------------------------------------------------------------------------------------

    def _run(
        self, job: Job, called_ns: int, checkpoint: Any, seed: int | None, until: Until | None = None
    ) -> tuple[Timeline, Plan]:
        if checkpoint is None:
            return self._computed(job, called_ns, until)
        from parcompute.jobs.checkpoint import kept  # 20 ms, that most programs need not pay

        with kept(checkpoint, seed, job, self._usable().allocate) as job:
            return self._computed(job, called_ns, until)

    def _computed(self, job: Job, called_ns: int, until: Until | None) -> tuple[Timeline, Plan]:
        backend = self._usable()
        steps = None if until is None else Steps(backend, until)
        self._plan, self._seed, self._failures = job.plan, job.seed, ()

        def outcome() -> tuple[int, int]:
            return (job if steps is None else steps).plan.n_blocks, len(self._failures)

        with signals.heard(), reporting(self._progress, job, outcome) as job:
            if steps is None:
                timeline, self._failures = base.run(backend, job, called_ns)
            else:
                timeline, self._failures = steps.run(job, called_ns)
        return timeline, backend.carried_out(job.plan if steps is None else steps.plan)

    def _cut(self, arrays: Sequence[Any], n_items: Any, block_items: Any, halo: Any, chunk_rows: int = 1) -> Plan:
        n_items = arguments.n_items_of(arrays, n_items)
        item_bytes = arguments.item_bytes_of(arrays)
        asked = n_items, item_bytes, self.schedule, block_items, type(block_items), halo, type(halo), chunk_rows
        if self._planned is None or self._planned[0] != asked:
            sizes = {"halo": halo, "item_bytes": item_bytes, "chunk_rows": chunk_rows}
            plan = Plan.cut(n_items, block_items, self.schedule, self.n_workers, **sizes)
            self._planned = asked, plan
        return self._planned[1]


def _job(kernel: Any, arrays: Any, plan: Plan, outputs: Any, seed: Any, asked: Any, policy: Any) -> Job:
    (asks, args, kwargs), (keep_going, timeout_s), seed = asked, policy, arguments.seed_of(seed, asked[0])
    return Job(kernel, arrays, plan, outputs, seed, args, kwargs, asks, keep_going, timeout_s, world=World())
