"""How a job travels: in three parts, of which one that is as it was in the job before is not pickled again.

    program   kernel, arguments                ── the same as before? ──► the number by which workers know it
    cut       plan, kind of output             ── the same plan?      ──► the same bytes, by which they do
    data      inputs; and the output's arrays  ── the same arrays?    ──► the same bytes, by which they do

An iterative solver asks for the same job a thousand times: to pickle a function by value takes longer than its blocks.
"""

from __future__ import annotations

import collections
import functools
import weakref
from collections.abc import Iterator
from types import BuiltinFunctionType, CodeType, EllipsisType, FunctionType, ModuleType, NoneType
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from parcompute.backends.kinds import is_brief
from parcompute.jobs import modules, pickling
from parcompute.jobs.job import Job
from parcompute.jobs.partials import Partials
from parcompute.jobs.schedule import Board, rows_for
from parcompute.memory import leases, shared, sources
from parcompute.values.blocks import Plan

# So many values, and arrays of so many bytes, are looked at in less time than their pickle takes.
_FEW, _FEW_BYTES = 200, 2**14

# Of inputs, and of outputs, that the jobs of a program have had.
_REMEMBERED = 4

# A job of so many chunks is not brief, and its timeline's rows are not kept to be asked.
_MANY_ROWS = 1000

# The rows of partials, and a board, of so many bytes are kept for the next job.
_KEPT_BYTES = 2**20


class Parcel(NamedTuple):
    """A job as it is sent.

    Attributes
    ----------
    key : int
        Of the program: a worker that has unpickled the one with this number need not do so again.
    program, cut, data : bytes
        By `parcompute.jobs.pickling.dumps`.
    seed : int or None
        Of its random streams.
    stays : bool
        Whether workers may keep the job until the next one: it holds on to nothing but shared memory.
    """

    key: int
    program: bytes
    cut: bytes
    data: bytes
    seed: int | None
    stays: bool


class Parcels:
    """Pickles the jobs of one crew, one after the other, and knows what the last one was."""

    def __init__(self) -> None:
        self._key = 0
        self._known: tuple[Any, ...] | None = None  # what the program consists of, where that can be compared
        self._program = self._cut = b""
        self._cut_is: tuple[Any, ...] = ()  # the plan, and what is known of the output
        self._data: dict[tuple[Any, ...], bytes] = {}  # by where the inputs lie
        self._placed: collections.deque[tuple[Any, ...]] = collections.deque(maxlen=_REMEMBERED)
        self._shape: Any = None  # of a result of this program
        self._varies = False
        self._last: npt.NDArray[np.void] | None = None  # the timeline's rows of the last job of this program
        self._rows: tuple[npt.NDArray[Any], ...] = ()
        self._arrays: dict[tuple[Any, ...], bytes] = {}  # by where they lie
        self._rows_arrays: bytes | None = None  # of the rows
        self._boards: dict[int, Board] = {}
        leases.holders.add(self)

    def let_go(self) -> None:
        """Keep no shared memory for the next job."""
        self._rows, self._rows_arrays, self._boards = (), None, {}

    def board(self, place: int, n_workers: int, plan: Plan) -> Board:
        """Return the board of this place, 0 or 1; it may hold the marks of another job that had it."""
        sizes = n_workers, plan.n_blocks, rows_for(plan)
        board = self._boards.get(place)
        if board is None or board.sizes != sizes:
            self._boards.pop(place, None)
            board = Board.in_shared_memory(*sizes)
            if board.memory.nbytes <= _KEPT_BYTES:
                self._boards[place] = board
        return board

    def of(self, job: Job) -> tuple[Parcel, list[Any]]:
        """Return a job as it is sent, and what must live until the workers have unpickled it.

        Raises
        ------
        CannotTravel
            Naming what cannot.
        """
        modules.notice()
        keep_alive: list[Any] = []
        known = _known(job, keep_alive)
        if known is None or known != self._known:
            self._known, self._cut_is = None, ()
            self._key += 1
            self._program, keep_alive = pickling.dumps(job.program, f"kernel {job.name}")
            self._known = known
        if self._cut_is != (cut_is := (job.plan, job.outputs.kind)):
            self._cut_is, self._varies, self._last = (), False, None
            self._forget_shape()
            self._cut, more = pickling.dumps([job.plan, job.outputs], f"the output of kernel {job.name}")
            keep_alive += more
            self._cut_is = cut_is
        places = tuple(map(self._place, job.inputs))
        data = self._data.get(places)
        if data is None:
            data, more = pickling.dumps([*job.inputs], f"kernel {job.name}")
            keep_alive += more
            if None not in places:
                _note(self._data, places, data)
        keep_alive += job.inputs
        arrays = *job.inputs, *(job.outputs.arrays or ())
        stays = self._known is not None and not any(map(sources.lies_in_file, arrays))
        return Parcel(self._key, self._program, self._cut, data, job.seed, stays), keep_alive

    def _place(self, array: Any) -> Any:
        """Return where an input lies: what was found for the same array before, if it is one of the last few."""
        for known, form, place in self._placed:
            if known() is array and form == (array.shape, array.strides, array.dtype):
                return place
        place = _place(array)
        if place is not None:
            self._placed.append((weakref.ref(array), (array.shape, array.strides, array.dtype), place))
        return place

    def arrays(self, job: Job) -> bytes | None:
        """Return what the workers need to attach the output's arrays; None as long as there are none."""
        outputs = job.outputs
        if outputs.arrays is None:
            return None
        if self._rows and outputs.arrays[0] is self._rows[0]:
            if self._rows_arrays is None:
                self._rows_arrays = pickling.dumps_back((outputs.shape, tuple(map(shared.reference, self._rows))))
            return self._rows_arrays
        places = tuple(map(sources.reachable, outputs.arrays))
        if self._shape is None or self._shape != (shape := outputs.shape):
            return pickling.dumps_back((outputs.shape, places))
        if places not in self._arrays:
            _note(self._arrays, places, pickling.dumps_back((shape, places)))
        return self._arrays[places]

    def expect(self, job: Job, allocate: Any) -> bool:
        """Make the output's arrays before block 0 says what a result looks like, if it has said so before."""
        if self._shape is None or job.outputs.arrays is not None or job.keeper is not None:
            return False
        rows = iter(self._rows)
        job.outputs.allocate(self._shape, (lambda *_: next(rows)) if self._rows else allocate)
        return True

    def learn(self, job: Job, rows: npt.NDArray[np.void]) -> None:
        """Take note of what a job that has ended was like: its results, and the rows of its timeline."""
        self._last = rows if len(rows) < _MANY_ROWS else None
        outputs = job.outputs
        if self._known is None or self._varies or self._shape is not None or outputs.arrays is None:
            return
        self._shape = outputs.shape
        # Partials are combined into something else, so that nobody has their rows.
        if isinstance(outputs, Partials) and sum(rows.nbytes for rows in outputs.arrays) <= _KEPT_BYTES:
            self._rows = outputs.arrays

    def is_brief(self) -> bool:
        """Whether the last job was of this program, and was not worth the waking of two workers."""
        return self._last is not None and is_brief(self._last)

    def unlearn(self) -> None:
        """Expect nothing of this program any more: what its results look like is not always the same."""
        self._varies = True
        self._forget_shape()

    def _forget_shape(self) -> None:
        self._shape, self._rows, self._rows_arrays = None, (), None
        self._arrays.clear()


def _note(known: dict[Any, bytes], key: Any, value: bytes) -> None:
    """Remember the last few: a solver goes to and fro between two arrays."""
    while len(known) >= _REMEMBERED:
        del known[next(iter(known))]
    known[key] = value


def _place(array: Any) -> Any:
    return shared.reference(array, writeable=False) if isinstance(array, np.ndarray) else None


# Of these two are the same only if they are one. (A method that C has bound has a qualified name that is not found.)
_BY_NAME = (type, ModuleType, BuiltinFunctionType, type(np.sum))


# --- what a program consists of ----------------------------------------------------------------------------


class _Untold(Exception):
    """What something consists of cannot be told in short time, or at all."""


def _known(job: Job, keep_alive: list[Any]) -> tuple[Any, ...] | None:
    """Return what is equal for two jobs only if the worker's copy of one will do for the other.

    What a kernel changes in its own variables may last from one such job to the next, as it does in threads.
    """
    inputs = [(array.dtype, array.shape[1:]) for array in job.inputs]
    try:
        parts = _Parts(keep_alive).of((job.kernel, job.args, dict(job.kwargs)))
    except _Untold:
        return None
    asked = job.asks, job.keep_going, job.block_timeout_s
    return (parts, *asked, inputs, modules.news())


class _Parts:
    """Takes values apart, into what can be compared."""

    def __init__(self, keep_alive: list[Any]) -> None:
        self._keep_alive = keep_alive
        self._left, self._left_bytes = _FEW, _FEW_BYTES
        self._functions: dict[int, int] = {}

    def of(self, value: Any) -> Any:
        """Return the parts of a value; they hold on to no array.

        Raises
        ------
        _Untold
            For a value that is none of those that are known here, or too large.
        """
        self._left -= 1
        if self._left < 0:
            raise _Untold
        kind = type(value)
        if kind in (NoneType, bool, int, str, bytes, EllipsisType, slice):
            return kind, value
        if kind is float:
            return kind, value.hex()  # tells -0.0 from 0.0, and is equal for nan
        if kind in (tuple, list):
            return kind, tuple(map(self.of, value))
        if kind is dict:
            return kind, tuple((self.of(key), self.of(entry)) for key, entry in value.items())
        if kind is FunctionType:
            return self._of_function(value)
        if kind is functools.partial and not vars(value):
            return kind, self.of(value.func), self.of(value.args), self.of(value.keywords)
        if kind is np.ufunc or (kind in _BY_NAME and pickling.importable(value)):
            return kind, value
        if isinstance(value, (np.ndarray, np.generic)):
            return self._of_array(value)
        raise _Untold

    def _of_array(self, value: Any) -> Any:
        if type(value) in (np.ndarray, shared.SharedArray) and (place := _place(value)) is not None:
            self._keep_alive.append(value)
            return place
        self._left_bytes -= value.nbytes
        if self._left_bytes < 0 or value.dtype.hasobject or not (type(value) is np.ndarray or value.ndim == 0):
            raise _Untold
        return type(value), value.dtype, value.shape, value.flags.f_contiguous, value.tobytes()

    def _of_function(self, function: FunctionType) -> Any:
        if pickling.importable(function):
            return FunctionType, function
        if id(function) in self._functions:
            return FunctionType, self._functions[id(function)]
        self._functions[id(function)] = len(self._functions)
        code, variables = function.__code__, function.__globals__
        try:
            closure = tuple(self.of(cell.cell_contents) for cell in function.__closure__ or ())
        except ValueError as error:  # a variable that has no value yet
            raise _Untold from error
        return (
            code,
            code.co_filename,
            function.__name__,
            function.__module__,
            self.of(function.__defaults__),
            self.of(function.__kwdefaults__),
            closure,
            self.of(function.__dict__),
            [(name, self.of(variables[name])) for name in _names(code) if name in variables],
        )


def _names(code: CodeType) -> Iterator[str]:
    """Yield the names that a function, and those within it, may take from the variables of their module."""
    yield from code.co_names
    for constant in code.co_consts:
        if type(constant) is CodeType:
            yield from _names(constant)
