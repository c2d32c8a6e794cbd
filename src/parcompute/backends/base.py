"""What every backend offers, and the one table that knows their names."""

from __future__ import annotations

import functools
import importlib
import pickle
import threading
import time
import traceback
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np
import numpy.typing as npt

from parcompute.jobs import pickling, world
from parcompute.jobs.job import Failure, Job, KernelError, is_ctrl_c
from parcompute.jobs.schedule import written
from parcompute.jobs.setup import Setup
from parcompute.jobs.world import World
from parcompute.values.blocks import Plan
from parcompute.values.timeline import CHUNK_DTYPE, DEATH_DTYPE, WORKER_DTYPE, Timeline
from parcompute.workers import start

if TYPE_CHECKING:
    from concurrent.futures import Future

ENTRY_POINTS = "parcompute.backends"

# On these a job runs on several nodes, with so many workers on each.
OF_NODES = ("dask", "mpi")

# Each is imported when it is asked for, so that nobody pays for an engine that is not used.
_BACKENDS = {
    "serial": "parcompute.backends.serial:Serial",
    "threads": "parcompute.backends.threads:Threads",
    "processes": "parcompute.backends.processes.processes:Processes",
    "auto": "parcompute.backends.auto.auto:Auto",
    "pool": "parcompute.backends.pool:Pool",
    "joblib": "parcompute.backends.joblib:Joblib",
    "dask": "parcompute.backends.dask:Dask",
    "mpi": "parcompute.backends.mpi:MPI",
}
_FORKS = ("processes", "auto")  # by workers.start


@dataclass(frozen=True, slots=True)
class Options:
    """What a backend is asked for; those that it cannot use do not concern it.

    Attributes
    ----------
    n_workers : int
        Processes or threads.
    threads_per_worker : int
        Threads that claim in each process.
    start_method : str
        ``"fork"``, ``"forkserver"`` or ``"spawn"``; empty for a backend that starts no processes itself.
    blas_threads : int or None
        Threads of BLAS and OpenMP in each worker, while it computes; None leaves them alone.
    pin : bool
        Whether each worker keeps to cores of its own.
    retries : int
        How many workers one block or call may cost before it is given up.
    setup : Setup
        What each worker does first, and what it keeps.
    most_calls : int or None
        After so many submitted calls a worker process ends, and another takes its place.
    output_here : bool
        Whether what worker processes print is written to this process's streams.
    cluster : object
        What connects the nodes, for the backend "dask".
    n_nodes : int or None
        How many of the nodes that are there; None is all. `n_workers` are those of each, 0 where it decides.
    """

    n_workers: int
    threads_per_worker: int
    start_method: str
    blas_threads: int | None
    pin: bool
    retries: int
    setup: Setup = field(default_factory=Setup)
    most_calls: int | None = None
    output_here: bool = False
    cluster: Any = None
    n_nodes: int | None = None


class Backend(Protocol):
    """Workers that serve one executor, one job at a time, until they are closed."""

    n_workers: int
    start_method: str

    def wait_until_ready(self) -> int:
        """Return when every worker can begin: the stamp at which the last one could."""

    def allocate(self, shape: tuple[int, ...], dtype: np.dtype[Any]) -> npt.NDArray[Any]:
        """Make an output that the workers, or who stores for them, can write to."""

    def reaches(self, array: npt.NDArray[Any]) -> bool:
        """Whether they can write to this array of the caller's."""

    def run(self, job: Job, called_ns: int) -> tuple[Timeline, tuple[Trouble, ...]]:
        """Compute every block once into ``job.outputs``; return what happened, and what went wrong with which blocks.

        Raises
        ------
        KernelError, WorkerLost
            If a block failed or was given up, and the job does not keep going.
        """

    def carried_out(self, plan: Plan) -> Plan:
        """Return the plan of the last job as it was carried out: with its chunks, and the reason for them."""

    def submit(self, call: Call) -> None:
        """Run a call on one worker, some time, and settle its future."""

    def pids(self) -> tuple[int, ...]:
        """Return the process ids of the workers, by number."""

    def close(self, *, wait: bool) -> None:
        """End the workers after the submitted calls; with `wait`, return when they have ended.

        It may be called again, also by several threads at once.
        """

    def kill(self) -> None:
        """End the workers now, as far as that can be, instead or after `close`; the calls that they run raise."""


@dataclass(frozen=True, slots=True)
class Call:
    """One submitted call, or a batch of `n_calls`, and the future that waits for it."""

    future: Future[Any]
    function: Callable[..., Any]
    args: tuple[Any, ...]
    kwargs: dict[str, Any]
    n_calls: int = 1
    world: World | None = None

    def run_here(self) -> None:
        """Call in this thread, unless it was cancelled, and settle the future."""
        if not self.future.set_running_or_notify_cancel():
            return
        try:
            result = world.run(self.world, self.function, *self.args, **self.kwargs)
        except BaseException as error:  # the future is where the caller looks, for SystemExit too
            deliver(self.future, error=error)
            if is_ctrl_c(error):
                raise
        else:
            deliver(self.future, result)

    def pickled(self, known: bytes | None = None, *, lent: bool = False) -> tuple[bytes, list[Any]] | None:
        """Pickle it, and return that and what must live until it has arrived; `lent` is as for `pickling.dumps`.

        None if it cannot travel, which the future then says, as with `concurrent.futures`. For `known` see
        `parcompute.jobs.world.World.told`.
        """
        try:
            call = (self.function, self.args, self.kwargs)
            pickled, keep_alive = pickling.dumps(call, "the call", lent=lent)
            return world.pack(self.world, known, pickled), keep_alive
        except BaseException as error:  # whatever a __reduce__ of the caller raises
            if is_ctrl_c(error):
                raise
            if self.future.set_running_or_notify_cancel():
                deliver(self.future, error=error)
            return None


def settle(future: Future[Any], returned: bool, pickled: bytes) -> None:
    """Give a future what `parcompute.workers.desk.run_call` has sent."""
    try:
        answer = pickle.loads(pickled)
        error = None if returned else answer.called()
    except BaseException as unbuilt:  # what is rebuilt is the user's, and may raise SystemExit, too
        answer, error = None, unbuilt
    deliver(future, answer, error)


def deliver(future: Future[Any], result: Any = None, error: BaseException | None = None) -> None:
    """Settle a future; what its callbacks raise is printed, and ends no thread of ours.

    `concurrent.futures` catches what is an Exception, and not SystemExit and its like.
    """
    _delivering.depth = in_callback() + 1
    try:
        if error is None:
            future.set_result(result)
        else:
            future.set_exception(error)
    except BaseException:  # of a callback of the user, in a thread that others wait for
        traceback.print_exc()
    finally:
        _delivering.depth -= 1


_delivering = threading.local()


def in_callback() -> int:
    """Whether this thread runs the callbacks of a future: nothing else is settled meanwhile."""
    return getattr(_delivering, "depth", 0)


class WorkerLost(RuntimeError):
    """A block, or a call, has cost so many workers that it is given up.

    Attributes
    ----------
    block : Block or None
        Which; None for a submitted call.
    exitcodes : tuple of int
        Of the workers that it has cost; minus the signal's number for a killed one.
    """

    def __init__(self, message: str, block: Any = None, exitcodes: tuple[int, ...] = ()) -> None:
        super().__init__(message, block, exitcodes)
        self.block, self.exitcodes = block, exitcodes

    def __str__(self) -> str:
        return str(self.args[0])


Trouble = KernelError | WorkerLost


def names() -> tuple[str, ...]:
    """Return the names of all backends, those of other packages included."""
    return (*_BACKENDS, *(name for name in _registered() if name not in _BACKENDS))


def _registered() -> dict[str, Any]:
    from importlib.metadata import entry_points  # 25 ms, which only an unknown name is worth

    return {point.name: point for point in entry_points(group=ENTRY_POINTS)}


def known(name: object) -> bool:
    """Tell whether there is a backend of that name."""
    return name in _BACKENDS or name in _registered()


def create(name: str, options: Options) -> Backend:
    """Start the workers of a backend.

    Raises
    ------
    ValueError
        If there is no backend of that name; the message lists those there are.
    """
    if name in _BACKENDS:
        if name in _FORKS and options.start_method == "forkserver":
            start.begin_server()  # which loads its modules while this process loads those of the backend
        module, _, attribute = _BACKENDS[name].partition(":")
        factory = getattr(importlib.import_module(module), attribute)
    elif known(name):
        factory = _registered()[name].load()
    else:
        raise ValueError(f"backend={name!r} is unknown; pass one of {', '.join(names())}")
    backend: Backend = factory(options)
    return backend


class KeepsPlan:
    """For backends that carry a plan out as it is."""

    why = ""

    def carried_out(self, plan: Plan) -> Plan:
        """Return the plan as it is, and what the backend has chosen."""
        return plan.adding(self.why) if self.why else plan


class StoresHere:
    """For backends whose results are stored by this process: any of its memory will do."""

    def allocate(self, shape: tuple[int, ...], dtype: np.dtype[Any]) -> npt.NDArray[Any]:
        """Make an output in private memory."""
        return np.empty(shape, dtype)

    def reaches(self, array: npt.NDArray[Any]) -> bool:
        """Every array."""
        return True


def run(backend: Backend, job: Job, called_ns: int) -> tuple[Timeline, tuple[Trouble, ...]]:
    """Have a backend compute the blocks of a job, unless a checkpoint has them all."""
    if job.keeper is None or not job.keeper.complete:
        return backend.run(job, called_ns)
    now_ns = time.perf_counter_ns()
    nobody = [(0, now_ns)] * backend.n_workers
    return timeline(called_ns, now_ns, now_ns, np.empty(0, CHUNK_DTYPE), nobody), ()


def timeline(
    called_ns: int,
    submitted_ns: int,
    completed_ns: int,
    rows: npt.NDArray[np.void],
    workers: Sequence[tuple[int, int]],
    deaths: Sequence[tuple[int, int, int, int]] = (),
) -> Timeline:
    """Put a timeline together.

    Parameters
    ----------
    called_ns, submitted_ns, completed_ns : int
        See `Timeline`.
    rows : structured ndarray of CHUNK_DTYPE
        What the workers have stamped; those with zeros only are none.
    workers : sequence of (int, int)
        Process id, and when it was ready, of each worker.
    deaths : sequence of (int, int, int, int)
        Worker, process id, exit status and when it was noticed, of each worker that has ended.
    """
    tables = functools.partial(_tables, rows, workers, deaths)
    return Timeline.unread(called_ns, submitted_ns, completed_ns, tables)


def _tables(rows: Any, workers: Any, deaths: Any) -> tuple[npt.NDArray[np.void], ...]:
    table = np.array([(w, pid, ready) for w, (pid, ready) in enumerate(workers)], WORKER_DTYPE)
    return written(rows), table, np.array(list(deaths), DEATH_DTYPE)


def conclude(job: Job, failures: Sequence[Failure], lost: Sequence[WorkerLost] = ()) -> tuple[Trouble, ...]:
    """Raise what went wrong with the lowest block, or return all of it if the job keeps going.

    Parameters
    ----------
    job : Job
        Which has ended.
    failures, lost : sequence
        Blocks that failed, and those that were given up.
    """
    errors: list[Trouble] = [*(failure.error() for failure in failures), *lost]
    errors.sort(key=position)
    if errors and (not job.keep_going or errors[0].block is None):
        raise errors[0]
    for error in errors:
        if error.block is not None:
            job.outputs.omit(error.block)
    return tuple(errors)


def position(error: Trouble) -> int:
    """Return the number of the block that an error is of; -1 for one of the whole job."""
    return -1 if error.block is None else error.block.index
