"""Read what the user's verbs are given, and say what it should have been."""

from __future__ import annotations

import math
import os
import sys
import warnings
from collections.abc import Mapping, Sequence
from typing import Any, TypedDict

import numpy as np
import numpy.typing as npt

from parcompute.backends import base
from parcompute.executor.progress import Progress
from parcompute.jobs.job import asked_for, positional
from parcompute.jobs.outputs import Field, FileRows, Rows
from parcompute.jobs.setup import Setup
from parcompute.machine import limits
from parcompute.machine.batch import systems
from parcompute.memory import sources, tables
from parcompute.memory.tables import Table
from parcompute.memory.targets import target_of
from parcompute.values import streams
from parcompute.values.blocks import Plan, whole
from parcompute.workers import start

MOST_WORKERS = limits.MOST_WORKERS


class OtherBlockOptions(TypedDict, total=False):
    """What `map_blocks` takes whatever its result is: for its overloads, which differ in the rest."""

    n_items: int | None
    block_items: int | None
    seed: int | None
    halo: int
    item_shape: int | Sequence[int] | None
    args: Sequence[Any]
    kwargs: Mapping[str, Any] | None
    on_error: str
    block_timeout: float | None
    checkpoint: str | os.PathLike[str] | None


class BlockOptions(OtherBlockOptions, total=False):
    """The same, where no `out` is given."""

    out: None


def options_of(
    workers: Any,
    max_workers: Any,
    backend: Any,
    threads_per_worker: Any,
    start_method: Any,
    mp_context: Any,
    max_tasks_per_child: Any,
    blas_threads: Any,
    pin: Any,
    retries: Any,
    worker_output: Any,
    setup: Setup,
    cluster: Any = None,
    nodes: Any = None,
) -> tuple[str, base.Options]:
    """Return the name of the backend, and what it is asked for."""
    name = "workers" if max_workers is None else "max_workers"
    if workers is not None and max_workers is not None:
        raise TypeError(f"workers={workers!r} and max_workers={max_workers!r} are one argument; pass one of them")
    workers = workers if max_workers is None else max_workers
    if workers is None and backend == "processes" and start.in_worker():
        backend = "serial"
        start_method = mp_context = max_tasks_per_child = None  # of processes that there are none of
        warnings.warn(
            "an executor inside a worker is serial, since all CPUs are busy; pass workers=N for more", stacklevel=3
        )
    if not base.known(backend):
        raise ValueError(f"backend={backend!r} is unknown; pass one of {', '.join(base.names())}")
    threads = whole("threads_per_worker", threads_per_worker, at_least=1)
    if threads > 1 and backend not in ("processes", *base.OF_NODES):
        raise ValueError(f"threads_per_worker={threads} needs backend='processes', not {backend!r}")
    for argument, value in (("cluster", cluster), ("nodes", nodes)):
        if value is not None and backend not in (base.OF_NODES if argument == "nodes" else ("dask",)):
            raise ValueError(f"{argument}={value!r} has no meaning for backend {backend!r}; leave it out")
    method = start_method_of(start_method, mp_context, backend)
    return backend, base.Options(
        n_workers=n_workers_of(workers, backend, name),
        threads_per_worker=threads,
        start_method=method,
        blas_threads=None if blas_threads is None else whole("blas_threads", blas_threads, at_least=1),
        pin=pin_of(pin, backend),
        retries=whole("retries", retries, at_least=1),
        setup=setup,
        most_calls=most_calls_of(max_tasks_per_child, backend, method),
        output_here=output_here_of(worker_output, backend),
        cluster=cluster,
        n_nodes=None if nodes is None else whole("nodes", nodes, at_least=1),
    )


def setup_of(initializer: Any, initargs: Any, state: Any) -> Setup:
    """Return what the workers are set up with."""
    for name, value in (("initializer", initializer), ("state", state)):
        if value is not None and not callable(value):
            raise TypeError(f"{name}={value!r} is {type(value).__name__}, and must be a callable; pass a function")
    return Setup(initializer, tuple(initargs), state)


def progress_of(progress: Any) -> Progress:
    """Return what is told how far a job is: a function, or True for a bar."""
    if progress is None or progress is True or callable(progress):
        return progress  # type: ignore[no-any-return]
    raise TypeError(f"progress={progress!r} is {type(progress).__name__}; pass a function, True or None")


def n_workers_of(workers: Any, backend: str, name: str) -> int:
    """Return how many workers to start; warn about more than there are CPUs."""
    if backend != "serial" and (n := systems.copies(os.environ, sys.modules)) > 1 and _is_first():
        warnings.warn(
            f"srun has started {n} copies of this program, which know nothing of each other and do the same work; "
            "ask for one task per node (--ntasks-per-node=1 --cpus-per-task=…): it starts its own workers",
            stacklevel=4,
        )
    if workers is None:
        return 0 if backend in base.OF_NODES else 1 if backend == "serial" else limits.usable_cpus()
    n_workers = whole(name, workers, at_least=1)
    if n_workers > MOST_WORKERS:
        raise ValueError(f"{name}={n_workers} is out of range; pass 1 to {MOST_WORKERS}, or None for the usable CPUs")
    if backend not in base.OF_NODES and n_workers > (n_cpus := limits.usable_cpus()):
        warnings.warn(
            f"{name}={n_workers} is more than the {n_cpus} CPUs that this process may use; they will take turns",
            stacklevel=4,
        )
    return n_workers


def _is_first() -> bool:
    return os.environ.get("SLURM_PROCID", "0") == "0"


def start_method_of(start_method: Any, mp_context: Any, backend: str) -> str:
    """Return how worker processes start; empty for a backend without that choice."""
    if backend not in ("processes", "pool", "auto", *base.OF_NODES):
        for name, value in (("start_method", start_method), ("mp_context", mp_context)):
            if value is not None:
                raise ValueError(f"{name}={value!r} has no meaning for backend {backend!r}; leave it out")
        return ""
    if mp_context is not None:
        method = mp_context if isinstance(mp_context, str) else _method_of(mp_context)
        if start_method not in (None, method):
            raise ValueError(f"start_method={start_method!r}, but mp_context starts by {method!r}; pass one of them")
        if method not in start.METHODS:
            raise ValueError(f"mp_context starts by {method!r}; pass one that does by {', '.join(start.METHODS)}")
        return str(method)
    if start_method is None:
        return "forkserver"
    if start_method not in start.METHODS:
        raise ValueError(f"start_method={start_method!r} is unknown; pass one of {', '.join(start.METHODS)}")
    return str(start_method)


def _method_of(mp_context: Any) -> Any:
    try:
        return mp_context.get_start_method()
    except AttributeError:
        raise TypeError(
            f"mp_context={mp_context!r} is {type(mp_context).__name__}; pass multiprocessing.get_context(...)"
        ) from None


def most_calls_of(max_tasks_per_child: Any, backend: str, start_method: str) -> int | None:
    """Return after how many calls a worker is replaced; None for never."""
    if max_tasks_per_child is None:
        return None
    most = whole("max_tasks_per_child", max_tasks_per_child, at_least=1)
    if backend not in ("processes", "auto"):
        raise ValueError(f"max_tasks_per_child={most} needs backend='processes' or 'auto', not {backend!r}")
    if start_method == "fork":
        # A fork takes along the locks that other threads hold at that moment: once in a while is what a death costs.
        raise ValueError(
            f"max_tasks_per_child={most} cannot be had with start_method='fork', by which a program with threads would "
            "be forked again and again; use 'forkserver' or 'spawn'"
        )
    return most


def pin_of(pin: Any, backend: str) -> bool:
    """Return whether workers keep to cores of their own."""
    if pin is False:
        return False
    if pin != "cores":
        raise ValueError(f"pin={pin!r} is unknown; pass False or 'cores'")
    if backend not in ("processes", *base.OF_NODES):
        raise ValueError(f"pin={pin!r} needs backend='processes', not {backend!r}")
    return True


def output_here_of(worker_output: Any, backend: str) -> bool:
    """Return whether what worker processes print is brought here."""
    if worker_output not in ("inherited", "here"):
        raise ValueError(f"worker_output={worker_output!r} is unknown; pass 'inherited' or 'here'")
    if worker_output == "here" and backend not in ("serial", "threads", "processes", "auto"):
        raise ValueError(f"worker_output='here' needs backend 'processes' or 'auto', not {backend!r}")
    return bool(worker_output == "here")


def asked_of(
    kernel: Any,
    n_arrays: int,
    args: Sequence[Any],
    kwargs: Mapping[str, Any] | None,
    has_state: bool = False,
) -> tuple[frozenset[str], tuple[Any, ...], dict[str, Any]]:
    """Return what a kernel asks for by parameter name, and the arguments that it is given anyway.

    What it asks for may stand anywhere behind its arrays: arguments go to the other parameters in their order.
    ``state`` is a parameter like any other where workers have none.
    """
    if not callable(kernel):
        raise TypeError(f"kernel={kernel!r} is {type(kernel).__name__}; pass a function of one block")
    args, given = tuple(args), dict(kwargs or {})
    if asks := asked_for(kernel):
        asks -= given.keys() if has_state else {"state", *given}
    if not asks:
        return asks, args, given
    names = positional(kernel)
    if wrong := asks.intersection(names[:n_arrays]):
        raise TypeError(
            f"the kernel has {', '.join(sorted(wrong))} among its first {n_arrays} parameters, which are the arrays; "
            "put the arrays first"
        )
    if asks.intersection(names[: n_arrays + len(args)]):
        free = [name for name in names[n_arrays:] if name not in asks]
        if len(args) > len(free):
            raise TypeError(
                f"{len(args)} args for the parameters {', '.join(free) or 'none'} of the kernel; pass as many"
            )
        if twice := given.keys() & free[: len(args)]:
            raise TypeError(
                f"the kernel is given {', '.join(sorted(twice))} twice, in args and in kwargs; pass it once"
            )
        args, given = (), dict(zip(free, args, strict=False)) | given
    return asks, args, given


def arrays_of(arrays: Sequence[Any]) -> tuple[Any, ...]:
    """Return the arrays of a job: lists of numbers become some, and tables are cut like some."""
    return tuple(
        array if type(array) is np.ndarray else _array_of(position, array) for position, array in enumerate(arrays)
    )


def _array_of(position: int, array: Any) -> Any:
    if isinstance(array, (list, tuple, range)):
        try:
            found = np.asarray(array)
        except ValueError:  # parts of different lengths
            found = np.empty((), object)
        if found.dtype.kind not in "biufc":
            raise TypeError(
                f"array {position} is {type(array).__name__}, and not of numbers only; use map, or pass "
                "numpy.array(...) with a dtype"
            )
        return found
    package = tables.kind_of(array)
    return array if package is None else Table(array, package)


def n_items_of(arrays: Sequence[Any], n_items: Any) -> int:
    """Return the size of the index space, on which all arrays must agree."""
    for position, array in enumerate(arrays):
        known = isinstance(array, (np.ndarray, Table)) or sources.is_dataset(array) or sources.is_zarr(array)
        if not known:
            raise TypeError(f"array {position} is {type(array).__name__}; {_instead_of(array)}")
        if sources.is_masked(array):
            raise TypeError(f"array {position} is masked, and the mask would be lost; pass data and mask as two arrays")
        if array.dtype.hasobject:
            raise TypeError(f"array {position} holds Python objects (dtype {array.dtype}); use map for those")
        if array.ndim == 0:
            raise ValueError(f"array {position} has no axis to cut (shape ()); pass it in args")
    lengths = [int(array.shape[0]) for array in arrays]
    if n_items is not None:
        n_items = whole("n_items", n_items, at_least=0)
        if lengths and n_items != lengths[0]:
            raise ValueError(f"n_items={n_items}, but array 0 has {lengths[0]} rows; leave n_items out")
        return int(n_items)
    if not lengths:
        raise ValueError("neither arrays nor n_items: pass at least one of them")
    for position, length in enumerate(lengths):
        if length != lengths[0]:
            raise ValueError(
                f"array 0 has {lengths[0]} rows and array {position} has {length}; all must have the same length"
            )
    return lengths[0]


def _instead_of(array: Any) -> str:
    """Say what to pass in the place of something that is no array here."""
    package = type(array).__module__.partition(".")[0]
    if package == "dask":
        return "it is computed by dask: pass x.compute() if that fits memory, else what x.to_zarr(...) has written"
    if package == "xarray":
        return "pass x.to_numpy() if that fits memory, else the Zarr array or HDF5 dataset that it is read from"
    if package == "polars":
        return "pass x.collect()"
    if package == "pyarrow":
        return "pass x.to_numpy(), or a Table"
    return "pass a NumPy array, a memmap, an h5py dataset, a Zarr array, a table or a list of numbers"


def item_bytes_of(arrays: Sequence[Any]) -> int:
    """Return the bytes of one item over all arrays."""
    return sum(array.dtype.itemsize * math.prod(array.shape[1:]) for array in arrays)


def seed_of(seed: Any, asks: frozenset[str]) -> int | None:
    """Return the seed of a job: the one given, a fresh one for a kernel that asks for ``rng``, or none."""
    if seed is not None:
        return whole("seed", seed, at_least=0)
    return streams.fresh_seed() if "rng" in asks else None


def policy_of(on_error: Any, block_timeout: Any, backend: str) -> tuple[bool, float | None]:
    """Return whether a job keeps going when a block fails, and how many seconds a block may take."""
    if on_error not in ("raise", "keep"):
        raise ValueError(f"on_error={on_error!r} is unknown; pass 'raise' or 'keep'")
    if block_timeout is None:
        return on_error == "keep", None
    if backend not in ("processes", *base.OF_NODES):
        raise ValueError(f"block_timeout={block_timeout!r} needs backend='processes', which alone can stop a block")
    if isinstance(block_timeout, bool) or not isinstance(block_timeout, (int, float)):
        raise TypeError(f"block_timeout={block_timeout!r} is {type(block_timeout).__name__}; pass seconds")
    if not block_timeout > 0:
        raise ValueError(f"block_timeout={block_timeout!r} is out of range; pass seconds above 0")
    return on_error == "keep", float(block_timeout)


def rows_of(
    plan: Plan, arrays: Sequence[Any], out: Any, dtype: Any, item_shape: Any, asks_out: bool
) -> tuple[Rows, tuple[npt.NDArray[Any], ...] | None]:
    """Return the output, as far as the caller has fixed it, and those parts of it that are arrays of the caller's."""
    if out is not None:
        if dtype is not None or item_shape is not None:
            raise ValueError("out has a dtype and a shape already; leave dtype and item_shape out")
        targets = out if isinstance(out, tuple) else (out,)
        files = [target_of(target) for target in targets]
        for target, file in zip(targets, files, strict=True):
            if file is None and not isinstance(target, np.ndarray):
                raise TypeError(
                    f"out is {type(target).__name__}; pass an array of numbers with one row per item, a memmap, an "
                    "h5py dataset or a Zarr array"
                )
            if target.dtype.hasobject or target.ndim == 0:
                raise TypeError(f"out is {target.dtype} {target.shape}; pass an array of numbers with one row per item")
            if target.shape[0] != plan.n_items:
                raise ValueError(f"out has {target.shape[0]} rows; pass {plan.n_items}, one per item")
            if file is None and not target.flags.writeable:
                raise ValueError("out is read-only; pass an array that can be written to")
            if any(sources.overlap(target, array) for array in arrays):
                raise ValueError("out overlaps an input; a block that is computed again would read its own result")
        fields = tuple(Field(target.dtype, tuple(target.shape[1:])) for target in targets)
        single = not isinstance(out, tuple)
        if all(file is None for file in files):  # an empty one is falsy
            return Rows(plan, fields, single), targets
        in_memory = tuple(target for target, file in zip(targets, files, strict=True) if file is None)
        return FileRows(plan, fields, single, files), in_memory
    if item_shape is not None:
        shape = item_shape if isinstance(item_shape, Sequence) else (item_shape,)
        item_shape = tuple(whole("item_shape", length, at_least=0) for length in shape)
    dtype = None if dtype is None else np.dtype(dtype)
    if dtype is not None and dtype.hasobject:
        raise TypeError(f"dtype={dtype} holds Python objects; use map for those")
    if asks_out:  # rows must exist before the kernel runs: like the first array's, if nothing else is said
        if dtype is None and not arrays:
            raise ValueError("the kernel asks for out; pass dtype (and item_shape), since there is no array to go by")
        dtype = arrays[0].dtype if dtype is None else dtype
        if item_shape is None:
            item_shape = arrays[0].shape[1:] if arrays else ()
    if dtype is not None and item_shape is not None:
        return Rows(plan, (Field(dtype, item_shape),)), None
    return Rows(plan, dtype=dtype, item_shape=item_shape), None
