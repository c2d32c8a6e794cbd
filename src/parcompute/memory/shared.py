"""An array in shared memory: create, attach by reference, release.

    creator   SharedArray ─► lease of a Segment
                  │ pickle: process id, descriptor, inode, offset, shape, strides, dtype
                  ▼
    anyone    opens /proc/<pid>/fd/<n>, checks the inode, maps it ─► SharedArray

Every array owns its mapping, so a view can outlive the creator and everything else.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

from parcompute.memory.leases import Lease, lease
from parcompute.memory.segments import Reference, Segment, SharedMemoryFull

__all__ = [
    "Arena",
    "Reference",
    "SharedArray",
    "SharedMemoryFull",
    "attach",
    "reference",
    "segment_of",
    "share",
    "touch",
]


class SharedArray(np.ndarray[Any, np.dtype[Any]]):
    """An array in shared memory: an ordinary ndarray that pickles, slices too, as a reference.

    Make one with `parcompute.share` or `SharedArray.empty`. Another process that unpickles it sees the
    same memory; it must do so while the array lives in the process that created it. What is computed
    from it (``x + 1``, ``x.copy()``) is an ordinary array.
    """

    @classmethod
    def empty(
        cls, shape: int | Sequence[int], dtype: npt.DTypeLike = float, order: Literal["C", "F"] = "C"
    ) -> SharedArray:
        """Return a new array in shared memory; what it holds at first is undefined.

        Parameters
        ----------
        shape : int or sequence of int
            As for `numpy.empty`.
        dtype : dtype
            Any without Python objects.
        order : {"C", "F"}
            Memory layout.

        Raises
        ------
        SharedMemoryFull
            If there is too little shared memory; nothing was created then.
        TypeError
            For a dtype that holds Python objects.

        Examples
        --------
        >>> SharedArray.empty((2, 3), "int8").nbytes
        6
        """
        dtype = np.dtype(dtype)
        _refuse_objects(dtype)
        shape = (int(shape),) if isinstance(shape, (int, np.integer)) else tuple(int(n) for n in shape)
        n_bytes = dtype.itemsize
        for n in shape:
            n_bytes *= n
        return cls(shape, dtype, lease(n_bytes), order=order)

    def __reduce_ex__(self, protocol: Any) -> Any:
        where = reference(self)
        if where is None:
            return np.asarray(self).__reduce_ex__(protocol)
        segment_of(self).exported = True  # type: ignore[union-attr]
        return attach, (where,)

    def __array_wrap__(self, array: Any, context: Any = None, return_scalar: bool = False) -> Any:
        if array is self:
            return array
        plain = np.asarray(array)
        return plain[()] if return_scalar else plain

    def copy(self, order: Any = "C") -> Any:
        """Return an ordinary array in private memory."""
        return np.array(self, order=order)


def share(array: npt.ArrayLike) -> SharedArray:
    """Put an array into shared memory, once.

    Parameters
    ----------
    array : array_like
        Of any shape, memory layout and dtype without Python objects. What lies in shared memory
        already is not copied.

    Returns
    -------
    SharedArray
        With the same items, C-ordered, or F-ordered where `array` is; writable.

    Raises
    ------
    SharedMemoryFull
        If there is too little shared memory; nothing was created then.
    TypeError
        For arrays of Python objects.

    Examples
    --------
    >>> import numpy as np, pickle
    >>> x = share(np.arange(1_000_000))
    >>> len(pickle.dumps(x[::2])) < 1000
    True
    """
    source = np.asarray(array)
    if isinstance(array, np.ndarray) and reference(array) is not None:
        return array.view(SharedArray)
    order: Literal["C", "F"] = "F" if source.flags.f_contiguous and not source.flags.c_contiguous else "C"
    if source.nbytes and (source.flags.c_contiguous or order == "F"):
        _refuse_objects(source.dtype)
        content = memoryview(source.ravel(order="K").view(np.uint8).data)
        return SharedArray(source.shape, source.dtype, lease(source.nbytes, [(0, content)]), order=order)
    target = SharedArray.empty(source.shape, source.dtype, order)
    np.copyto(target, source, casting="no")
    return target


def reference(array: npt.NDArray[Any], *, writeable: bool | None = None) -> Reference | None:
    """Return where an array lies if all of it lies in shared memory, else None."""
    segment = segment_of(array)
    if segment is None or segment.private:
        return None
    return Reference(
        segment.pid,
        segment.descriptor,
        segment.name,
        segment.device,
        segment.inode,
        len(segment),
        array.__array_interface__["data"][0] - segment.address,
        array.shape,
        array.strides,
        array.dtype,
        bool(array.flags.writeable) if writeable is None else writeable,
    )


def segment_of(array: npt.NDArray[Any]) -> Segment | None:
    """Return the segment on which an array lies, or None."""
    base: Any = array
    while isinstance(base, np.ndarray) and not isinstance(base, Lease):
        base = base.base
    if isinstance(base, memoryview):
        base = base.obj
    base = base.segment if isinstance(base, Lease) else base
    return base if isinstance(base, Segment) else None


def attach(where: Reference) -> SharedArray:
    """Return the array that lies where a reference says; it is the same memory.

    Raises
    ------
    ReferenceError
        If the creator has released the array or ended, or the reference leads out of the segment.
    """
    segment = Segment.attach(where)
    # NumPy checks it too, but in 64 bits: strides large enough come round, and point anywhere.
    first = last = where.offset
    for n, stride in zip(where.shape, where.strides, strict=True):
        first, last = first + min(0, stride * (n - 1)), last + max(0, stride * (n - 1))
    if 0 not in where.shape and not (
        min(where.shape, default=1) > 0 <= first <= last + where.dtype.itemsize <= len(segment)
    ):
        raise ReferenceError(f"the reference to an array of shape {where.shape} leads out of its memory; make it anew")
    buffer: Any = segment
    if not (where.writeable or where.private):  # by way of an array, since NumPy looks for what is below a memoryview
        buffer = np.frombuffer(memoryview(segment).toreadonly(), np.uint8)
    return SharedArray(where.shape, where.dtype, buffer, where.offset, where.strides)


def touch(rows: npt.NDArray[Any]) -> None:
    """Map rows that are about to be written, at a sixteenth of the page faults, if they lie in shared memory.

    Nothing is written, and what is not near these rows stays as it is.
    """
    segment = segment_of(rows)
    if segment is not None and rows.flags.c_contiguous:
        first = rows.__array_interface__["data"][0] - segment.address
        segment.touch(first, first + rows.nbytes)


class Arena:
    """Copies of arrays that travel together, in one segment, which is made when the last of them is known."""

    # Of pages, so that none lies on two arrays.
    _ALIGNMENT = 4096

    def __init__(self) -> None:
        self._arrays: list[tuple[int, npt.NDArray[Any]]] = []
        self._n_bytes = 0

    def add(self, array: npt.NDArray[Any]) -> tuple[int, tuple[int, ...], np.dtype[Any], Literal["C", "F"]]:
        """Take an array in; return its place, for `taken_from`."""
        at = self._n_bytes
        fortran = array.flags.f_contiguous and not array.flags.c_contiguous
        self._arrays.append((at, array.T if fortran else array))
        self._n_bytes += -(-array.nbytes // self._ALIGNMENT) * self._ALIGNMENT
        return at, array.shape, array.dtype, "F" if fortran else "C"

    def fill(self) -> SharedArray | None:
        """Copy the arrays into shared memory; None if there are none.

        Raises
        ------
        SharedMemoryFull
            If there is too little shared memory; nothing was created then.
        OSError
            If this process may have no further descriptors.
        """
        if not self._arrays:
            return None
        whole = [(at, array) for at, array in self._arrays if array.flags.c_contiguous]
        contents = [(at, memoryview(array.reshape(-1).view(np.uint8).data)) for at, array in whole]
        filled = SharedArray((self._n_bytes,), np.uint8, lease(self._n_bytes, contents))
        for at, array in self._arrays:
            if not array.flags.c_contiguous:
                np.copyto(taken_from(filled, at, array.shape, array.dtype, "C"), array, casting="no")
        return filled


def taken_from(
    arena: npt.NDArray[np.uint8], at: int, shape: tuple[int, ...], dtype: np.dtype[Any], order: Literal["C", "F"]
) -> npt.NDArray[Any]:
    """Return the array at a place of an arena."""
    array: npt.NDArray[Any] = np.ndarray(shape, dtype, arena, at, order=order)
    array.flags.writeable = arena.flags.writeable
    return array


def _refuse_objects(dtype: np.dtype[Any]) -> None:
    if dtype.hasobject:
        raise TypeError(f"dtype {dtype} holds Python objects, which cannot lie in shared memory; use numbers")
