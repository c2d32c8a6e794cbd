"""What to compute: kernel, inputs, output, seed and plan, as a value that can travel."""

from __future__ import annotations

import inspect
import pickle
import signal
import threading
import traceback
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field, replace
from types import FunctionType
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt

from parcompute.jobs import pickling
from parcompute.jobs.outputs import Rows
from parcompute.jobs.partials import Partials
from parcompute.jobs.setup import worker_state
from parcompute.jobs.world import World
from parcompute.machine import signals
from parcompute.machine.batch.deadline import OutOfTime
from parcompute.memory import sources
from parcompute.memory.tables import Table
from parcompute.values import streams
from parcompute.values.blocks import Block, Plan

ASKABLE = ("block", "rng", "out", "state")
_ASKABLE = frozenset(ASKABLE)


class KernelError(RuntimeError):
    """A kernel raised, or returned something that does not fit. Its cause is the kernel's own exception.

    Attributes
    ----------
    block : Block
        The block that it was computing.
    kernel : str
        Its name.
    """

    def __init__(self, message: str, kernel: str = "", block: Block | None = None) -> None:
        super().__init__(message, kernel, block)
        self.kernel, self.block = kernel, block

    def __str__(self) -> str:
        return str(self.args[0])


class RemoteTraceback(Exception):
    """The traceback of an exception in the process where it was raised, as text."""

    def __init__(self, text: str) -> None:
        super().__init__(text)
        self.text = text

    def __str__(self) -> str:
        return f'\n"""\n{self.text}"""'


def asked_for(kernel: Callable[..., Any]) -> frozenset[str]:
    """Return which of ``block``, ``rng``, ``out`` and ``state`` a kernel asks for by the names of its parameters.

    They are given whenever they are named; ``out`` only if it has no default, since ``out=None`` is how NumPy's
    functions say that they can do without.

    Examples
    --------
    >>> def hits(block, rng): ...
    >>> sorted(asked_for(hits))
    ['block', 'rng']
    """
    if isinstance(kernel, np.ufunc):
        return frozenset()
    try:
        by_place, by_name, defaults = _parameters(kernel)
    except (TypeError, ValueError):  # C functions without a signature ask for nothing
        return frozenset()
    asks = _ASKABLE.intersection((*by_place, *by_name))
    return asks - {"out"} if "out" in asks and "out" in defaults else asks


def positional(kernel: Callable[..., Any]) -> Sequence[str]:
    """Return the names of the parameters that arguments can be given to by their place and by their name."""
    return _parameters(kernel)[0]


def _parameters(kernel: Callable[..., Any]) -> tuple[Sequence[str], Sequence[str], Collection[str]]:
    """Return the parameters by place or name, those by name only, and which of them have a default."""
    if type(kernel) is FunctionType and not kernel.__dict__:  # nothing says otherwise: a twentieth of the time
        code = kernel.__code__
        n = code.co_argcount
        names = code.co_varnames[: n + code.co_kwonlyargcount]
        defaults = {*names[n - len(kernel.__defaults__ or ()) : n], *(kernel.__kwdefaults__ or ())}
        return names[code.co_posonlyargcount : n], names[n:], defaults
    parameters = inspect.signature(kernel).parameters.values()
    return (
        [p.name for p in parameters if p.kind is p.POSITIONAL_OR_KEYWORD],
        [p.name for p in parameters if p.kind is p.KEYWORD_ONLY],
        {p.name for p in parameters if p.default is not p.empty},
    )


class Keeper(Protocol):
    """Keeps the finished blocks of a job in a file while it runs, in the process that asked for it."""

    complete: bool

    @property
    def ended(self) -> str:
        """Why no more blocks are to begin, since the time of the batch job is over; empty as long as they may."""

    def follow(
        self,
        done: npt.NDArray[np.uint8],
        *,
        late: bool = False,
        every_s: float | None = None,
        stop: Callable[[], None] | None = None,
        current: Sequence[int] = (),
    ) -> None:
        """Mark what is kept already as done, and keep from now on what is marked.

        Parameters
        ----------
        done : ndarray of uint8, shape (n_blocks,)
            The marks. Blocks that need not be computed are marked before this returns.
        late : bool
            Whether other processes set them, so that what they mark may be seen a little later than the mark.
        every_s : float, optional
            Seconds from look to look; None leaves it to the keeper.
        stop : callable, optional
            Asks the workers to begin no more blocks, when the time is over; then the run ends as soon as they have
            heard it. None lets `look` raise.
        current : sequence of int
            The block that each worker computes now, below 0 for none: it tells how long blocks take.
        """

    def look(self) -> float:
        """Write what is due; return the seconds until the next look.

        Raises
        ------
        OutOfTime
            If the time is over, and no `stop` could say so to the workers or they have not heard it.
        """


@dataclass(frozen=True, eq=False)
class Job:
    """What to compute.

    Attributes
    ----------
    kernel : callable
        Called once per block with the rows of each input.
    inputs : tuple
        Arrays, or datasets of HDF5 files, of n_items rows each.
    plan : Plan
        Blocks and chunks.
    outputs : Rows or Partials
        Where the results go.
    seed : int or None
        Of the random streams; None for a kernel that asks for no ``rng``.
    args, kwargs : tuple, mapping
        Handed to the kernel after the rows.
    asks : frozenset of str
        Which of ``block``, ``rng``, ``out``, ``state`` the kernel asks for.
    keep_going : bool
        Whether the other blocks are computed when one has failed.
    block_timeout_s : float or None
        Seconds after which the worker of a block is stopped.
    keeper : Keeper or None
        Keeps the finished blocks in a checkpoint. It stays with the caller.
    watch : callable or None
        Is given the marks of the blocks by whoever computes the job from now on. It stays, too.
    world : World or None
        The caller's settings; it travels beside the job, since a job is rebuilt among them. None leaves those of
        whoever computes.
    """

    kernel: Callable[..., Any]
    inputs: tuple[Any, ...]
    plan: Plan
    outputs: Rows | Partials
    seed: int | None = None
    args: tuple[Any, ...] = ()
    kwargs: Mapping[str, Any] = field(default_factory=dict)
    asks: frozenset[str] = frozenset()
    keep_going: bool = False
    block_timeout_s: float | None = None
    keeper: Keeper | None = None
    watch: Callable[[npt.NDArray[np.uint8]], None] | None = None
    world: World | None = None

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "keeper": None, "watch": None, "world": None}

    @property
    def program(self) -> Job:
        """What other jobs may share with it, whatever they compute on and are cut into; see `again`."""
        return replace(self, inputs=(), seed=None, plan=None, outputs=None)  # type: ignore[arg-type]

    def again(self, inputs: tuple[Any, ...], seed: int | None, plan: Plan, outputs: Rows | Partials) -> Job:
        """Return a job of the same program; its outputs are like those given, and have no arrays yet."""
        fresh, job = object.__new__(type(outputs)), object.__new__(Job)  # a fifth of the time of `replace`
        fresh.__dict__.update(outputs.__getstate__())
        job.__dict__.update(self.__dict__, inputs=inputs, seed=seed, plan=plan, outputs=fresh)
        return job

    @property
    def name(self) -> str:
        """Name of the kernel, for messages."""
        return str(getattr(self.kernel, "__qualname__", None) or getattr(self.kernel, "__name__", None) or self.kernel)

    def bind(self) -> Callable[..., Any]:
        """Return the function of a block, and of the rows to fill if they are not the output's own."""
        kernel, args, kwargs = self.kernel, self.args, self.kwargs
        inputs = [_read_only(array) for array in self.inputs]
        asks_block, asks_rng, asks_out, asks_state = (name in self.asks for name in ASKABLE)
        if len(inputs) < 2 and not (args or kwargs or asks_rng or asks_out or asks_state):
            if inputs and (dtype := _dtype_of(kernel, inputs[0])) is not None and isinstance(self.outputs, Rows):
                return _in_place(kernel, inputs[0], dtype, self.outputs)
            return _plain(kernel, inputs, asks_block, self.plan.halo)

        def compute(block: Block, out: Any = None) -> Any:
            reach = block.reach
            rows = [array[reach] for array in inputs]
            if not self.asks:
                return kernel(*rows, *args, **kwargs)
            asked: dict[str, Any] = {}
            if asks_block:
                asked["block"] = block
            if asks_rng:
                assert self.seed is not None
                asked["rng"] = streams.generator(self.seed, block.index)
            if asks_state:
                asked["state"] = worker_state()
            if not asks_out:
                return kernel(*rows, *args, **kwargs, **asked)
            asked["out"] = filled = self.outputs.rows(block) if out is None else out
            result = kernel(*rows, *args, **kwargs, **asked)
            return filled if result is None else result

        return compute

    @property
    def ended(self) -> bool:
        """Whether no more blocks are to begin, since the time of the batch job is over."""
        return self.keeper is not None and bool(self.keeper.ended)

    def follow(self, done: npt.NDArray[np.uint8], **how: Any) -> None:
        """Show the marks of the blocks to the keeper, if there is one, and to who watches; see `Keeper.follow`."""
        if self.keeper is not None:
            self.keeper.follow(done, **how)
        if self.watch is not None:
            self.watch(done)

    def look(self, timeout_s: float = signals.LOOK_S) -> float:
        """Let the keeper write what is due; return for how long one may wait, `timeout_s` at most."""
        return timeout_s if self.keeper is None else min(self.keeper.look(), timeout_s)

    def failure(self, block: Block, error: BaseException) -> Failure:
        """Put into words why a block failed."""
        items = f"items {block.start} to {block.stop - 1}" if block.size else "no items"
        message = f"kernel {self.name} failed on block {block.index} ({items}): {_in_words(error)}"
        return Failure(block, self.name, message, "".join(traceback.format_exception(error)), error)


def _plain(kernel: Callable[..., Any], inputs: Sequence[Any], asks_block: bool, halo: int) -> Callable[..., Any]:
    """Return what `Job.bind` returns for the plainest kernels: in half of its time, which is much for short ones."""
    if not inputs:
        return lambda block, _=None: kernel(block=block) if asks_block else kernel()
    (array,) = inputs
    if asks_block:
        return lambda block, _=None: kernel(array[block.reach], block=block)
    if halo:
        return lambda block, _=None: kernel(array[block.reach])
    return lambda block, _=None: kernel(array[block.start : block.stop])


def _dtype_of(kernel: Any, array: Any) -> Any:
    """Return the dtype that a NumPy function of one array gives to its results; None for any other kernel."""
    if not (isinstance(kernel, np.ufunc) and kernel.nin == kernel.nout == 1 and isinstance(array, np.ndarray)):
        return None
    try:
        return kernel.resolve_dtypes((array.dtype, None))[-1]
    except TypeError:  # it has no loop for this dtype: let the call say so
        return None


def _in_place(kernel: Any, array: npt.NDArray[Any], dtype: np.dtype[Any], outputs: Rows) -> Callable[..., Any]:
    """Return what `Job.bind` returns for a NumPy function that can write to the output itself: it saves a copy."""

    def compute(block: Block, _: Any = None) -> Any:
        given = array[block.reach]
        if outputs.arrays is None or not outputs.single:
            return kernel(given)
        rows = outputs.rows(block)
        # Where the rows lie apart, its loop may be another one, with other last bits.
        fits = rows.dtype == dtype and rows.shape == given.shape and rows.flags.c_contiguous
        return kernel(given, rows) if fits else kernel(given)

    return compute


def _read_only(array: Any) -> Any:
    """Return an input of which every slice is an array that no kernel can write to."""
    if isinstance(array, (sources.DatasetReference, sources.FileReference)):
        array = array.open()
    if isinstance(array, Table):
        return array
    if not isinstance(array, np.ndarray):
        return _InCOrder(array)
    view = array.view(np.ndarray)
    view.flags.writeable = False
    # The bits of a sum depend on how its terms lie in memory. Where a whole array is copied on the way to a worker, it
    # arrives in C order, or in Fortran order if it was; the blocks of any other array are put in C order everywhere.
    whole = view.flags.aligned and (view.flags.c_contiguous or view.flags.f_contiguous)
    return view if whole else _InCOrder(view)


@dataclass(frozen=True, eq=False, slots=True)
class _InCOrder:
    """An input whose slices are brought into C order."""

    array: Any

    def __getitem__(self, reach: slice) -> npt.NDArray[Any]:
        rows: npt.NDArray[Any] = np.require(self.array[reach], requirements=["C", "A"])
        rows.flags.writeable = False
        return rows


@dataclass(frozen=True, eq=False)
class Failure:
    """A failed block, in words, with the exception itself unless that could not travel."""

    block: Block | None
    kernel: str
    message: str
    text: str
    exception: BaseException | None
    remote: bool = False

    @classmethod
    def before_blocks(cls, error: BaseException) -> Failure:
        """Put into words what went wrong outside any block."""
        return cls(None, "", _in_words(error), "".join(traceback.format_exception(error)), error)

    def __reduce__(self) -> Any:
        try:
            pickled = pickling.dumps_back(self.exception)
        except BaseException:  # as above: of the user
            pickled = b""
        return _arrived, (self.block, self.kernel, self.message, self.text, pickled)

    def error(self) -> KernelError:
        """Return it as an exception whose cause is the kernel's own, with the remote traceback."""
        error = KernelError(self.message, self.kernel, self.block)
        error.__cause__ = self.called() if self.exception is not None else RemoteTraceback(self.text)
        return error

    def called(self) -> BaseException:
        """Return the exception itself, as whoever submitted a call expects it, with the remote traceback."""
        if self.exception is None:
            return self.error()
        if self.remote:
            self.exception.__cause__ = RemoteTraceback(self.text)
        return self.exception


def is_ctrl_c(error: BaseException) -> bool:
    """Tell whether an exception is the user's Ctrl-C, or a batch job's end: it reaches a main thread that heeds it.

    Elsewhere, in workers and threads, a kernel has raised KeyboardInterrupt itself, and has failed.
    """
    heeded = KeyboardInterrupt if signal.getsignal(signal.SIGINT) is not signal.SIG_IGN else ()
    return threading.current_thread() is threading.main_thread() and isinstance(error, (OutOfTime, heeded))


def _in_words(error: BaseException) -> str:
    try:
        return f"{type(error).__name__}: {error}"
    except Exception:  # its own __str__ fails
        return type(error).__name__


def _arrived(block: Block | None, kernel: str, message: str, text: str, pickled: bytes) -> Failure:
    try:
        exception = pickle.loads(pickled) if pickled else None
    except BaseException:  # many exceptions pickle well and cannot be rebuilt from their args; it is the user's code
        exception = None
    return Failure(block, kernel, message, text, exception if isinstance(exception, BaseException) else None, True)
