"""What is known of jobs of one kind, of which one tells about another: the same code, on blocks of the same form."""

from __future__ import annotations

import collections
import functools
from collections.abc import Callable, Hashable
from types import BuiltinFunctionType, CellType
from typing import Any, Generic, TypeVar

import numpy as np
import numpy.typing as npt

from parcompute.jobs.job import Job

_T = TypeVar("_T")

# Of so many kinds something is remembered, of those that ran last.
_REMEMBERED = 256

# A job that takes less in one worker is over before another one is awake.
_BRIEF_NS = 150_000

# Blocks of less CPU time may be too short for several threads: NumPy lets go of the interpreter lock in each call, and
# to take it again from another thread costs as much as the call.
SHORT_NS = 60_000

# Wrappers within wrappers are told apart as deep as that; a function may refer to itself.
_DEPTH = 3

_EMPTY = CellType()  # of a variable that has no value yet


class Kinds(Generic[_T]):
    """What is known of each kind of job.

    Parameters
    ----------
    nothing : callable
        Makes what is known of a kind at first.
    """

    def __init__(self, nothing: Callable[[], _T]) -> None:
        self._nothing = nothing
        self._known: collections.OrderedDict[Hashable, _T] = collections.OrderedDict()
        self._last: Hashable = None
        self._of_last = nothing()

    def of(self, job: Job) -> _T:
        """Return what is known of jobs like this one, to be looked at and changed."""
        kind = _kind_of(job)
        if kind != self._last:  # to compare takes a third of the time of a look into the dictionary
            if kind not in self._known:
                self._known[kind] = self._nothing()
            self._known.move_to_end(kind)
            self._last, self._of_last = kind, self._known[kind]
            if len(self._known) > _REMEMBERED:
                self._known.popitem(last=False)
        return self._of_last

    def __len__(self) -> int:
        return len(self._known)

    def clear(self) -> None:
        """Forget all."""
        self._known.clear()
        self._last = None


def is_brief(rows: npt.NDArray[np.void]) -> bool:
    """Tell from the rows of its timeline whether a job was not worth the waking of two workers."""
    return int((rows["stored_ns"] - rows["started_ns"]).sum()) < _BRIEF_NS


def _kind_of(job: Job) -> Hashable:
    """Return what jobs have in common of which one tells about another.

    The size of a block is of it: NumPy lets go of the lock for the eigenvalues of several matrices, and not for one.
    """
    shapes = tuple((array.shape[1:], array.dtype) for array in job.inputs if isinstance(array, np.ndarray))
    return _code_of(job.kernel), job.plan.block_items, shapes


def _code_of(kernel: Any, depth: int = 0) -> Any:
    """Return what calls of the same code have in common: a lambda that is made anew each time is still the same."""
    while isinstance(kernel, functools.partial):
        kernel = kernel.func
    kernel = getattr(kernel, "__func__", kernel)
    code = getattr(kernel, "__code__", None)
    if code is None:
        return kernel if isinstance(kernel, (np.ufunc, BuiltinFunctionType)) else type(kernel)
    # What a wrapper wraps makes it another kernel.
    cells = [cell.cell_contents for cell in kernel.__closure__ or () if cell != _EMPTY]
    return code, tuple(_code_of(value, depth + 1) for value in cells if callable(value) and depth < _DEPTH)
