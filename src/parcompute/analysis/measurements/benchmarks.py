"""What hyperfine, pyperf, asv and sacct write → sheets like those of any table."""

from __future__ import annotations

import itertools
import json
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from parcompute.analysis.measurements import headings
from parcompute.analysis.measurements.sheets import Sheet, TableError

Row = Mapping[str, object]

# Of sacct: what tells one job from another without saying what it ran on.
_OF_NO_MATTER = headings.words_of(
    "jobid jobidraw state exitcode start end submit eligible elapsedraw cputime cputimeraw totalcpu "
    "usercpu systemcpu nodelist derivedexitcode maxrss avecpu"
)


def of_json(path: Path, text: str) -> Sheet:
    """Return the sheet of a JSON file: hyperfine's, pyperf's or asv's.

    Times are in seconds; each is a row. Where no parameter has the workers, they are the number in which the names of
    the benchmarks differ.

    Raises
    ------
    TableError
        If it is neither, or is not as these tools write it.
    """
    try:
        told = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise TableError(f"{path}: is no JSON ({error}); pass the file as the tool wrote it") from None
    for known, rows_of in _FORMATS:
        if isinstance(told, dict) and known in told:
            try:
                rows = list(rows_of(path, told))
            except (KeyError, TypeError, ValueError, IndexError, AttributeError) as error:
                if isinstance(error, TableError):
                    raise
                raise TableError(
                    f"{path}: is not as {rows_of.__name__[1:]} writes it ({error!r}); write it anew"
                ) from None
            if not rows:
                raise TableError(f"{path}: has no times; run the benchmarks, and export them again")
            return _with_workers(_sheet(path, rows))
    raise TableError(f"{path}: is JSON of neither hyperfine, pyperf nor asv; pass one of these, or a table")


def of_tools(sheet: Sheet) -> Sheet:
    """Return a text table of sacct, or of hyperfine, with what its columns mean; any other as it is."""
    names = [name.lower() for name in sheet.heading]
    if {"command", "mean", "stddev"} <= set(names):
        beside = {"mean": "mean_s", "median": "median_s", "stddev": "stddev", "system": "sys"}
        return _with_workers(replace(sheet, heading=tuple(beside.get(name, name) for name in names)))
    if "elapsed" in names and "jobid" in names:
        return _of_sacct(sheet, names)
    return sheet


def _of_sacct(sheet: Sheet, names: list[str]) -> Sheet:
    """Keep the jobs that were completed, without their steps, and what they ran on."""
    ids = sheet.column(names.index("jobid"))
    states = sheet.column(names.index("state")) if "state" in names else ["COMPLETED"] * len(ids)
    jobs = [(row, state) for row, id, state in zip(sheet.rows, ids, states, strict=True) if "." not in id]
    ended = [row for row, state in jobs if state.upper().startswith("COMPLETED")]
    kept = [k for k, name in enumerate(names) if name not in _OF_NO_MATTER]
    if not ended:
        raise TableError(
            f"{sheet.path}: has {len(jobs)} jobs, none of them COMPLETED; pass those of jobs that ended well"
        )
    n_failed = len(jobs) - len(ended)
    notes = (f"{n_failed} job{'s' * (n_failed > 1)} not COMPLETED left out",) if n_failed else ()
    rows = tuple((i, tuple(row[k] if k < len(row) else "" for k in kept)) for i, row in ended)
    return Sheet(sheet.path, tuple(sheet.heading[k] for k in kept), rows, (*sheet.notes, *notes))


# ── JSON ──────────────────────────────────────────────────────────────────────────────────────────────


def _hyperfine(path: Path, told: Any) -> Iterable[Row]:
    for result in told["results"]:
        named = result.get("parameters") or {"command": result["command"]}
        for k, time_s in enumerate(result.get("times") or [result["median"]]):
            yield {**named, "time [s]": float(time_s), "round": k}


def _pyperf(path: Path, told: Any) -> Iterable[Row]:
    of_all = told.get("metadata", {})
    for benchmark in told["benchmarks"]:
        said = {**of_all, **benchmark.get("metadata", {})}
        if (unit := said.get("unit", "second")) != "second":
            raise TableError(f"{path}: measures {unit}s; pass a file with times")
        workers = {
            key: value for key, value in said.items() if key not in _COUNTS and headings.parse(key).role == "workers"
        }
        measured = [run["values"] for run in benchmark["runs"] if run.get("values")]  # others only calibrate
        for k, values in enumerate(measured):
            # Those of one process are not independent of each other.
            yield {"benchmark": said.get("name", ""), **workers, "time [s]": float(np.median(values)), "round": k}


# What pyperf says of the machine and of itself.
_COUNTS = ("cpu_count", "loops", "inner_loops", "runs")


def _asv(path: Path, told: Any) -> Iterable[Row]:
    about = _asv_about(path)
    names = told.get("result_columns", ["result"])
    for name, entry in told["results"].items():
        columns = dict(zip(names, entry, strict=False)) if isinstance(entry, list) else entry
        if not isinstance(columns, dict) or not isinstance(columns.get("result"), list):
            continue  # it failed
        if about.get(name, {}).get("unit", "seconds") != "seconds":
            continue
        levels = columns.get("params") or []
        keys = about.get(name, {}).get("param_names") or [f"param{k + 1}" for k in range(len(levels))]
        samples = columns.get("samples") or [None] * len(columns["result"])
        for of_one, result, times_s in zip(itertools.product(*levels), columns["result"], samples, strict=True):
            if result is not None:
                named = {key: str(level).strip("'\"") for key, level in zip(keys, of_one, strict=True)}
                for k, time_s in enumerate(times_s or [result]):
                    yield {"benchmark": name, **named, "time [s]": float(time_s), "round": k}


def _asv_about(path: Path) -> Mapping[str, Any]:
    """Return what asv keeps of its benchmarks one folder up; nothing where the file was taken away from there."""
    try:
        told = json.loads((path.parent.parent / "benchmarks.json").read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return {name: about for name, about in told.items() if isinstance(about, dict)} if isinstance(told, dict) else {}


_FORMATS: tuple[tuple[str, Callable[[Path, Any], Iterable[Row]]], ...] = (
    ("benchmarks", _pyperf),
    ("result_columns", _asv),
    ("results", _hyperfine),
)


def _sheet(path: Path, rows: Sequence[Row]) -> Sheet:
    heading = tuple(dict.fromkeys(name for row in rows for name in row))
    return Sheet(
        path, heading, tuple((i, tuple(str(row.get(name, "")) for name in heading)) for i, row in enumerate(rows, 1))
    )


# ── workers in names ──────────────────────────────────────────────────────────────────────────────────


def _with_workers(sheet: Sheet) -> Sheet:
    """Take the workers from the one number in which commands or names of benchmarks differ, if no column has them."""
    id = next((k for k, name in enumerate(sheet.heading) if name in ("command", "benchmark")), None)
    known = any(headings.parse(name).role == "workers" for name in sheet.heading)
    if id is None:
        return sheet
    if known:  # a command says again what its parameters are
        is_command = sheet.heading[id] == "command"
        return _without(sheet, id) if is_command else sheet
    pieces = [re.split(r"(\d+)", row[id]) for _, row in sheet.rows]
    alike: dict[tuple[str, ...], set[tuple[str, ...]]] = {}
    for piece in pieces:
        alike.setdefault(tuple(piece[::2]), set()).add(tuple(piece[1::2]))
    differing = {
        texts: [k for k, numbers in enumerate(zip(*found, strict=True)) if len(set(numbers)) > 1]
        for texts, found in alike.items()
    }
    if not all(len(places) == 1 for places in differing.values()):
        return sheet
    rows = []
    for (i, row), piece in zip(sheet.rows, pieces, strict=True):
        place = 2 * differing[tuple(piece[::2])][0] + 1
        name = "".join("N" if k == place else text for k, text in enumerate(piece))
        rows.append((i, (*row[:id], name, *row[id + 1 :], piece[place])))
    note = f"workers are the number N in each {sheet.heading[id]}"
    return replace(sheet, heading=(*sheet.heading, "workers"), rows=tuple(rows), notes=(*sheet.notes, note))


def _without(sheet: Sheet, column: int) -> Sheet:
    rows = tuple((i, (*row[:column], *row[column + 1 :])) for i, row in sheet.rows)
    return replace(sheet, heading=(*sheet.heading[:column], *sheet.heading[column + 1 :]), rows=rows)
