"""The form of a record, schema parcompute/1: runs as rows and timelines as tables, on an open HDF5 file.

docs/file-format.md describes it for readers. A reader ignores columns and attributes that it does not
know; any change of those that it knows needs a new number in SCHEMA.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Mapping
from datetime import UTC, datetime
from typing import Any

import numpy as np

from parcompute.sweep import Configuration, Run
from parcompute.timeline import Timeline

SCHEMA = "parcompute/1"

CLOCK = (
    "time.perf_counter_ns. wall_s: from the call to the complete result, with every worker ready before the call; "
    "startup_s: from nothing to the last worker ready, not part of wall_s"
)

# name, type, meaning [unit]: the columns of `runs` in order, and the attributes that explain them in the file.
FIELDS: tuple[tuple[str, type, str], ...] = (
    ("backend", str, "name of the backend"),
    ("n_workers", int, "workers that claim, over all processes [1]"),
    ("threads_per_worker", int, "how many of them are threads of one process [1]"),
    ("schedule", str, "how chunks were cut and handed out: kind or kind,chunk_blocks"),
    ("start_method", str, "fork, forkserver or spawn; empty where the backend has no such choice"),
    ("kind", str, "strong: same work for every n_workers; weak: work grows with n_workers"),
    ("n_items", int, "size of the index space [items]"),
    ("block_items", int, "items per block [items]"),
    ("n_chunks", int, "chunks of the plan [1]"),
    ("round", int, "number of the round, from 0 [1]"),
    ("seed", int, "seed of the random streams [1]"),
    ("wall_s", float, "from the call to the complete result [s]"),
    ("startup_s", float, "from nothing to the last worker ready [s]"),
    ("cpu_s", float, "CPU time inside kernels, over all workers [s]"),
    ("digest", str, "SHA-256 of the result's bytes, hexadecimal"),
    ("value", float, "the result, where it is one number [of the experiment]"),
    ("error", float, "distance of the value from the truth [as value]"),
    ("tolerance", float, "largest error that passes [as value]"),
    ("verified", bool, "error <= tolerance, and the digest of all runs before of the same problem"),
    ("disturbed", str, "why the machine was not quiet; empty: it was"),
    ("started_utc", str, "start of the run, ISO 8601"),
    ("provenance", str, "name of the group in /provenance with the conditions"),
    ("timeline_rows", int, "chunk rows of the timeline, -1: none was kept; stored where /timelines/<row> exists [1]"),
)

_CONFIGURATION = frozenset(field.name for field in dataclasses.fields(Configuration))

Scalar = str | int | float | bool


def begin(file: Any, experiment: str, text: np.dtype[Any]) -> None:
    """Write the empty form into a new file; `text` is the dtype of variable-length UTF-8."""
    types = {str: text, int: np.dtype("<i8"), float: np.dtype("<f8"), bool: np.dtype("?")}
    file.attrs["schema"] = SCHEMA
    file.attrs["experiment"] = as_text(experiment)
    file.attrs["created_utc"] = datetime.now(UTC).isoformat(timespec="seconds")
    file.attrs["clock"] = CLOCK
    row = np.dtype([(name, types[kind]) for name, kind, _ in FIELDS])
    runs = file.create_dataset("runs", shape=(0,), dtype=row, maxshape=(None,), chunks=(64,))
    for name, _, meaning in FIELDS:
        runs.attrs[name] = meaning
    file.create_group("provenance")
    file.create_group("timelines")


def what_is_missing(file: Any) -> list[str]:
    """Return the names that a file of this schema must have and this one has not."""
    groups = [name for name in ("runs", "provenance", "timelines") if name not in file]
    attributes = [name for name in ("experiment", "created_utc") if name not in file.attrs]
    columns = (file["runs"].dtype.names or ()) if "runs" in file else ()
    return groups + attributes + [f"runs[{name}]" for name, _, _ in FIELDS if name not in columns]


def add_row(runs: Any, row: Mapping[str, Scalar]) -> int:
    """Append a row to the dataset `runs` and return its number."""
    added = len(runs)
    runs.resize((added + 1,))
    # By name and not by place: the file may have columns that this version does not know.
    values = np.zeros((), runs.dtype)
    for name in runs.dtype.names:
        values[name] = row.get(name, "" if runs.dtype[name].hasobject else 0)
    runs[added] = values
    return added


def rows(runs: Any) -> Iterator[dict[str, Scalar]]:
    """Return the rows of the dataset `runs` as Python values."""
    columns = runs[:]
    for row in columns:
        yield {name: native(value) for name, value in zip(columns.dtype.names, row, strict=True)}


def row_of(run: Run) -> dict[str, Scalar]:
    """Return the row of a run, in the order of FIELDS."""
    values = {name: getattr(run.configuration if name in _CONFIGURATION else run, name, None) for name, _, _ in FIELDS}
    values["timeline_rows"] = -1 if run.timeline is None else len(run.timeline.chunks)
    return {name: storable(name, kind(values[name])) for name, kind, _ in FIELDS}


def run_of(row: Mapping[str, Any], timeline: Timeline | None = None) -> Run:
    """Return the run of a row."""
    configuration = Configuration(**{name: row[name] for name in _CONFIGURATION})
    others = {name: row[name] for name, _, _ in FIELDS if name not in _CONFIGURATION and name != "timeline_rows"}
    return Run(configuration=configuration, timeline=timeline, **others)


def store_timeline(group: Any, timeline: Timeline) -> None:
    """Write a timeline into an empty group."""
    group.attrs["called_ns"] = timeline.called_ns
    group.attrs["submitted_ns"] = timeline.submitted_ns
    group.attrs["completed_ns"] = timeline.completed_ns
    # Below a few hundred rows the index of a compressed dataset takes more than compression saves.
    packed = {"compression": "gzip", "shuffle": True} if len(timeline.chunks) > 256 else {}
    group.create_dataset("chunks", data=timeline.chunks, **packed)
    group.create_dataset("workers", data=timeline.workers)
    if len(timeline.deaths):
        group.create_dataset("deaths", data=timeline.deaths)


def timeline_of(file: Any, row: int) -> Timeline | None:
    """Return the timeline of run `row`, None where the file has none."""
    group = file["timelines"].get(str(row))
    if group is None:
        return None
    fields: dict[str, Any] = {name: int(group.attrs[name]) for name in ("called_ns", "submitted_ns", "completed_ns")}
    fields |= {name: group[name][:] for name in ("chunks", "workers", "deaths") if name in group}
    return Timeline(**fields)


def storable(name: str, value: Any) -> Scalar:
    """Return `value` as what the file can hold.

    Raises
    ------
    TypeError, ValueError
        If it is neither text, number nor truth value, or a whole number of more than 64 bits.
    """
    value = native(value)
    if isinstance(value, str):
        return as_text(value)
    if not isinstance(value, (bool, int, float)):
        raise TypeError(f"{name}={value!r} is {type(value).__name__}; pass text, a number or a truth value")
    if isinstance(value, int) and not -(2**63) <= value < 2**63:
        raise ValueError(f"{name}={value} does not fit a 64-bit integer; pass one below 2**63, or text")
    return value


def as_text(value: str) -> str:
    r"""Return `value` as text that HDF5 can hold.

    HDF5 text ends at the first NUL, and a command line or a file name need not be UTF-8: both are written
    as escapes, since a run must not be lost to an odd byte in a path.

    Examples
    --------
    >>> as_text("caf\udce9\0")
    'caf\\udce9\\x00'
    """
    return value.encode("utf-8", "backslashreplace").decode().replace("\0", "\\x00")


def native(value: Any) -> Any:
    """Return a value read from HDF5 as Python's own str, int, float or bool."""
    if isinstance(value, bytes):
        return value.decode()
    return value.item() if isinstance(value, np.generic) else value
