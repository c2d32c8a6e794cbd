"""The form of a record, schema parcompute/1: runs as rows and timelines as tables, on an open HDF5 file.

docs/reference/file-format.md describes it for readers. A reader ignores columns and attributes that it does not
know; any change of those that it knows needs a new number in SCHEMA.

A file may come from anybody. What is read of it is what is described there, or a RuntimeError that says what is not.
"""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Iterator, Mapping, Sequence
from datetime import UTC, datetime
from typing import Any

import numpy as np

from parcompute.machine import hdf5
from parcompute.machine.provenance import Provenance
from parcompute.machine.quiet import Counters
from parcompute.values.sweep import Configuration, Run
from parcompute.values.timeline import CHUNK_DTYPE, DEATH_DTYPE, NODE_DTYPE, SPAN_DTYPE, WORKER_DTYPE, Timeline

SCHEMA = "parcompute/1"
MINOR = 1  # one more with each column or table that a reader of before may ignore

CLOCK = (
    "time.perf_counter_ns. wall_s: from the call to the complete result, with every worker ready before the call; "
    "startup_s: from nothing to the last worker ready, not part of wall_s"
)

# name, type, meaning [unit]: the columns of `runs` in order, and the attributes that explain them in the file.
FIELDS: tuple[tuple[str, type, str], ...] = (
    ("backend", str, "name of the backend"),
    ("n_workers", int, "workers that claim, over all processes [1]"),
    ("n_nodes", int, "nodes (hosts) that these are on, as many on each [1]"),  # which a file may lack, as those below
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
    # From here on a file may lack them: it was begun by an earlier version, and what it does not say is as below.
    ("variant", str, "which of the experiment's own ways to compute the same; empty where it has only one"),
    ("blas_threads", int, "threads of BLAS and OpenMP in each worker [1]"),
    ("load_before", float, "runnable threads in the minute before the start, on the whole machine [1]"),
    ("load_after", float, "in the minute before the end [1]"),
    ("runnable_before", int, "runnable threads at the start, on the whole machine, -1: not known [1]"),
    ("runnable_after", int, "at the end [1]"),
    ("mhz_before", float, "mean frequency of the usable CPUs at the start [MHz]"),
    ("mhz_after", float, "at the end [MHz]"),
    ("throttled_s", float, "how long CPU quotas stopped the process meanwhile [s]"),
    ("stolen_s", float, "CPU time that the hypervisor gave to others meanwhile [s]"),
    ("others_s", float, "CPU time that others had on the usable CPUs meanwhile [s]"),
)

Scalar = str | int | float | bool

_CONFIGURATION = frozenset(field.name for field in dataclasses.fields(Configuration))
_COUNTERS = frozenset(field.name for field in dataclasses.fields(Counters))
_IF_MISSING: dict[str, Scalar] = {"n_nodes": 1, "variant": "", "blas_threads": 1, **dataclasses.asdict(Counters())}

_STAMPS = ("called_ns", "submitted_ns", "completed_ns")
_TABLES = {
    "chunks": CHUNK_DTYPE,
    "workers": WORKER_DTYPE,
    "deaths": DEATH_DTYPE,
    "nodes": NODE_DTYPE,
    "spans": SPAN_DTYPE,
}
_ALWAYS = ("chunks", "workers")  # the others are there where they have rows

# More than the runs of years, and than a timeline of ten million chunks.
_MOST_TABLE_BYTES = 2**30

# One row per job of a run that had several: where its rows in each table end, and its stamps.
JOB_DTYPE = np.dtype([(f"{name}_end", "<i8") for name in _TABLES] + [(name, "<i8") for name in _STAMPS])
_LATER = ("nodes_end", "spans_end")


def begin(file: Any, experiment: str, text: np.dtype[Any]) -> None:
    """Write the empty form into a new file; `text` is the dtype of variable-length UTF-8."""
    file.attrs["schema"] = SCHEMA
    file.attrs["schema_minor"] = MINOR
    file.attrs["experiment"] = as_text(experiment)
    file.attrs["created_utc"] = datetime.now(UTC).isoformat(timespec="seconds")
    file.attrs["clock"] = CLOCK
    _create_runs(file, [], text)
    file.create_group("provenance")
    file.create_group("timelines")


def renew(file: Any, text: np.dtype[Any]) -> None:
    """Give `runs` of a file of an earlier version the columns that it lacks, so that new rows lose nothing."""
    present = file["runs"].dtype.names  # read from the file each time it is asked for
    if all(name in present for name, _, _ in FIELDS):
        return
    earlier, unknown = list(rows(file["runs"])), file["runs"].dtype
    attributes = dict(file["runs"].attrs)
    file.attrs["schema_minor"] = MINOR
    del file["runs"]
    known = {name for name, _, _ in FIELDS}
    _create_runs(file, [(name, unknown[name]) for name in unknown.names if name not in known], text)
    for name, meaning in attributes.items():
        file["runs"].attrs[name] = meaning
    for row in earlier:
        add_row(file["runs"], _IF_MISSING | row)


def _create_runs(file: Any, others: list[tuple[str, Any]], text: np.dtype[Any]) -> None:
    types = {str: text, int: np.dtype("<i8"), float: np.dtype("<f8"), bool: np.dtype("?")}
    row = np.dtype([(name, types[kind]) for name, kind, _ in FIELDS] + others)
    runs = file.create_dataset("runs", shape=(0,), dtype=row, maxshape=(None,), chunks=(64,))
    for name, _, meaning in FIELDS:
        runs.attrs[name] = meaning


def what_is_missing(file: Any) -> list[str]:
    """Return the names that a file of this schema must have and this one has not."""
    groups = [name for name in ("runs", "provenance", "timelines") if not hdf5.has(file, name)]
    attributes = [name for name in ("experiment", "created_utc") if name not in file.attrs]
    if groups:
        return groups + attributes
    hdf5.group(file, "provenance"), hdf5.group(file, "timelines")
    columns = hdf5.dataset(file, "runs", _MOST_TABLE_BYTES).dtype
    if unlike := [
        name for name, kind, _ in FIELDS if name in (columns.names or ()) and not _holds(columns[name], kind)
    ]:
        raise RuntimeError(f"runs[{unlike[0]}] is a column of {columns[unlike[0]]}")
    return attributes + [
        f"runs[{name}]" for name, _, _ in FIELDS if name not in (columns.names or ()) and name not in _IF_MISSING
    ]


def _holds(column: np.dtype[Any], kind: type) -> bool:
    import h5py

    if kind is str:
        return h5py.check_string_dtype(column) is not None
    return column.shape == () and column.kind in {int: "iu", float: "f", bool: "b"}[kind]


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
    if runs.ndim != 1:
        raise RuntimeError(f"runs has {runs.ndim} dimensions")
    columns = runs[:]
    for row in columns:
        yield {name: native(value) for name, value in zip(columns.dtype.names, row, strict=True)}


def row_of(run: Run) -> dict[str, Scalar]:
    """Return the row of a run, in the order of FIELDS; `run_of` takes it back."""
    c = run.configuration
    if not 1 <= c.n_nodes <= c.n_workers:
        raise ValueError(
            f"n_workers={c.n_workers} ran nothing on n_nodes={c.n_nodes}; record runs of at least 1 on each"
        )
    values = {name: getattr(run, name, None) for name, _, _ in FIELDS}
    values |= dataclasses.asdict(run.configuration) | dataclasses.asdict(run.counters)
    values["timeline_rows"] = sum(len(timeline.chunks) for timeline in run.timelines) if run.timelines else -1
    return {name: storable(name, kind(values[name])) for name, kind, _ in FIELDS}


def run_of(row: Mapping[str, Any], timelines: tuple[Timeline, ...] = ()) -> Run:
    """Return the run of a row."""
    row = _IF_MISSING | dict(row)
    configuration = Configuration(**{name: row[name] for name in _CONFIGURATION})
    if not 1 <= configuration.n_nodes <= configuration.n_workers:
        raise RuntimeError(f"a run has {configuration.n_workers} workers on {configuration.n_nodes} nodes")
    counters = Counters(**{name: row[name] for name in _COUNTERS})
    apart = _CONFIGURATION | _COUNTERS | {"timeline_rows"}
    others = {name: row[name] for name, _, _ in FIELDS if name not in apart}
    return Run(configuration=configuration, counters=counters, timelines=timelines, **others)


def store_timelines(group: Any, timelines: Sequence[Timeline]) -> None:
    """Write the timelines of a run's jobs, at least one, into an empty group."""
    group.attrs["called_ns"] = timelines[0].called_ns
    group.attrs["submitted_ns"] = timelines[0].submitted_ns
    group.attrs["completed_ns"] = timelines[-1].completed_ns
    for name in _TABLES:
        table = np.concatenate([getattr(timeline, name) for timeline in timelines])
        # Below a few hundred rows the index of a compressed dataset takes more than compression saves.
        packed = {"compression": "gzip", "shuffle": True} if len(table) > 256 else {}
        if len(table) or name in _ALWAYS:
            group.create_dataset(name, data=table, **packed)
    if len(timelines) > 1:
        jobs = np.zeros(len(timelines), JOB_DTYPE)
        for name in _TABLES:
            jobs[f"{name}_end"] = np.cumsum([len(getattr(timeline, name)) for timeline in timelines])
        for name in _STAMPS:
            jobs[name] = [getattr(timeline, name) for timeline in timelines]
        group.create_dataset("jobs", data=jobs)


def timelines_of(file: Any, row: int) -> tuple[Timeline, ...]:
    """Return the timelines of the jobs of run `row`; none where the file has none."""
    if not hdf5.has(file["timelines"], str(row)):
        return ()
    group = hdf5.group(file["timelines"], str(row))
    tables = {name: _table(group, name, dtype) for name, dtype in _TABLES.items() if hdf5.has(group, name)}
    if lacking := set(_ALWAYS) - tables.keys():
        raise KeyError(f"there is no {lacking.pop()} in {group.name}")
    if not hdf5.has(group, "jobs"):
        return (_timeline({name: hdf5.attribute(group, name) for name in _STAMPS}, tables),)
    found, begin = [], dict.fromkeys(_TABLES, 0)
    for job in _table(group, "jobs", JOB_DTYPE, _LATER):
        end = {name: int(job[f"{name}_end"]) for name in _TABLES}
        parts = {name: table[begin[name] : end[name]] for name, table in tables.items()}
        found.append(_timeline(job, parts))
        begin = end
    return tuple(found)


def _table(group: Any, name: str, dtype: np.dtype[Any], later: Sequence[str] = ()) -> Any:
    """Return the columns of a table; one of `later` is 0 where the file lacks it."""
    table = hdf5.dataset(group, name, _MOST_TABLE_BYTES)
    columns = table.dtype
    names = [c for c in dtype.names or () if c in (columns.names or ()) or c not in later]
    if table.ndim != 1 or not all(c in (columns.names or ()) and _holds(columns[c], int) for c in names):
        raise RuntimeError(f"{table.name} is no table of {', '.join(names)}")
    found = table[:]
    if columns == dtype:
        return found
    known = np.zeros(len(found), dtype)
    known[names] = found[names]
    return known


def _timeline(stamps: Any, tables: dict[str, Any]) -> Timeline:
    called, submitted, completed = (int(stamps[name]) for name in _STAMPS)
    who = tables["chunks"]["worker"]
    if len(who) and not 0 <= who.min() <= who.max() < len(tables["workers"]):
        raise RuntimeError("a timeline has chunks of workers that it does not have")
    nodes, spans = (tables.get(name, np.zeros(0, _TABLES[name])) for name in ("nodes", "spans"))
    behind = nodes["first_worker"].astype(np.int64) + nodes["n_workers"]
    if (nodes["first_worker"] < 0).any() or (behind > len(tables["workers"])).any():
        raise RuntimeError("a timeline has nodes of workers that it does not have")
    if not np.isin(spans["node"], nodes["node"]).all():
        raise RuntimeError("a timeline has spans of nodes that it does not have")
    return Timeline(called, submitted, completed, **tables)


def text_of(file: Any, name: str) -> str:
    """Return an attribute of the file that is text."""
    found = native(hdf5.attribute(file, name))
    if not isinstance(found, str):
        raise RuntimeError(f"attribute {name} is no text")
    return found


def provenance_of(file: Any) -> dict[str, dict[str, Scalar]]:
    """Return the conditions by id."""
    found = {}
    for id in file["provenance"]:
        group = hdf5.group(file["provenance"], id)
        found[id] = {name: native(hdf5.attribute(group, name)) for name in group.attrs}
        try:
            Provenance.from_fields(found[id])
        except (ValueError, OverflowError) as error:
            raise RuntimeError(f"the conditions {id} cannot be read: {error}") from error
    return found


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


# What a terminal would act upon, and no XML may hold: control characters but the tab and the end of a line.
_CONTROL = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f]")


def as_text(value: str) -> str:
    r"""Return `value` as text that HDF5 can hold and a terminal can be shown.

    HDF5 text ends at the first NUL, and a command line or a file name need not be UTF-8: both are written
    as escapes, since a run must not be lost to an odd byte in a path. Control characters are written so, too.

    Examples
    --------
    >>> as_text("caf\udce9\0")
    'caf\\udce9\\x00'
    """
    return _CONTROL.sub(lambda odd: f"\\x{ord(odd[0]):02x}", value.encode("utf-8", "backslashreplace").decode())


def native(value: Any) -> Any:
    """Return a value read from HDF5 as Python's own str, int, float or bool, the text as it may be shown."""
    if isinstance(value, bytes):
        value = value.decode("utf-8", "backslashreplace")
    if isinstance(value, str):
        return as_text(value)
    return value.item() if isinstance(value, np.generic) else value
