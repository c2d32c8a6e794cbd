"""Tables of pandas, polars and Arrow: cut by rows, their columns in shared memory, joined again.

A table is pickled column by column, and whoever pickles shares the large arrays among them; Arrow's buffers are made to
look like such arrays here. A column of Python objects is no array of numbers, and is pickled.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

# Where each kind of table is at home.
_CLASSES = {"pandas": ("DataFrame", "Series"), "polars": ("DataFrame", "Series"), "pyarrow": ("Table",)}


def kind_of(value: Any) -> str | None:
    """Return the package of a table, without importing any; None for what is no table."""
    for package, names in _CLASSES.items():
        module = sys.modules.get(package)
        if module is not None and isinstance(
            value, tuple(getattr(module, name) for name in names if hasattr(module, name))
        ):
            return package
    return None


class Table:
    """A table in the place of an input array.

    Attributes
    ----------
    dtype : dtype
        As many bytes as a row has on average.
    shape : (int,)
        Number of rows.
    """

    ndim = 1

    def __init__(self, value: Any, package: str) -> None:
        self.value, self._package = value, package
        n_bytes: Any
        if package == "pandas":
            n_bytes = value.memory_usage(index=True)  # a number for each column of a DataFrame
        else:
            n_bytes = value.estimated_size() if package == "polars" else value.nbytes
        self.shape = (len(value),)
        self.dtype = np.dtype((np.void, max(1, int(np.sum(n_bytes)) // max(1, len(value)))))

    def __getitem__(self, rows: slice) -> Any:
        if self._package == "pandas":
            block = self.value.iloc[rows]
            # From pandas 3 on, whoever writes to a part of a table has a copy of it.
            return block if int(sys.modules["pandas"].__version__.partition(".")[0]) >= 3 else block.copy()
        return self.value.slice(rows.start, rows.stop - rows.start)

    def digest_parts(self) -> tuple[Any, ...]:
        """Return what a checkpoint tells the table by: plain values, and arrays of its content."""
        if self._package == "pandas":
            hashed = sys.modules["pandas"].util.hash_pandas_object(self.value).to_numpy()
            columns = getattr(self.value, "dtypes", None)
            return hashed, str(columns), str(getattr(self.value, "columns", self.value.name))
        import pyarrow

        table = self.value
        if self._package == "polars":
            table = (table.to_frame() if hasattr(table, "to_frame") else table).to_arrow()
        sink = pyarrow.BufferOutputStream()
        with pyarrow.ipc.new_stream(sink, table.schema) as stream:
            stream.write_table(table.combine_chunks())
        return (np.frombuffer(sink.getvalue(), np.uint8),)


def through_arrow(value: Any) -> Any:
    """Return how a table of polars is pickled column by column, as `__reduce__` does; None for anything else.

    By itself it is packed into one piece, which takes a second for 16 MiB. Without Arrow it still is.
    """
    if "polars" not in sys.modules or kind_of(value) != "polars":
        return None
    try:
        return _from_arrow, (value.to_arrow(), type(value).__name__, getattr(value, "name", ""))
    except ImportError:
        return None


def _from_arrow(value: Any, kind: str, name: str) -> Any:
    import polars

    found: Any = polars.from_arrow(value)
    return found.rename(name) if kind == "Series" else found


def joined(tables: Sequence[Any]) -> Any:
    """Return the rows of all tables, of one kind, in this order."""
    package = kind_of(tables[0])
    assert package is not None
    join = "concat_tables" if package == "pyarrow" else "concat"
    return getattr(sys.modules[package], join)(tables)


def buffer_as_array(value: Any, *, above: int) -> npt.NDArray[np.uint8] | None:
    """Return the bytes of an Arrow buffer of more than so many; None for anything else."""
    arrow = sys.modules.get("pyarrow")
    if arrow is None or not isinstance(value, arrow.Buffer) or value.size <= above or not value.is_cpu:
        return None
    return np.frombuffer(value, np.uint8)


def array_as_buffer(array: npt.NDArray[np.uint8]) -> Any:
    """Return an Arrow buffer on an array."""
    import pyarrow

    return pyarrow.py_buffer(array)
