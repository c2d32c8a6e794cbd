"""(N, time) points of a record, of a table or of the files of other tools, a set for each curve.

record ── studies ──────────────────────────────────────┐
table ── sheets ──┐                                     ├──▶ Points by name of the curve
JSON ── benchmarks┴─▶ Sheet ── columns, cells ──────────┘
"""

from __future__ import annotations

import math
from collections import Counter
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from parcompute.analysis.measurements import benchmarks, cells, columns, headings, sheets
from parcompute.analysis.measurements.columns import Columns, Named
from parcompute.analysis.measurements.sheets import Sheet, TableError
from parcompute.analysis.studies import choose
from parcompute.record import record


@dataclass(frozen=True, eq=False)
class Points:
    """What is known of one curve.

    Attributes
    ----------
    path : Path
        The file.
    n_workers, times_s : ndarray, shape (n_points,)
        Workers, and seconds, or 1/rate.
    rounds : ndarray of int, shape (n_points,), or None
        Which round each point belongs to, where the file says so or each number of workers has as many points.
    of_rate : bool
        Whether the file has rates, speed-ups or efficiencies.
    kind : {"strong", "weak"}
        Whether the work was the same for every number of workers or grew with it.
    how : str
        How the file was read.
    """

    path: Path
    n_workers: npt.NDArray[np.float64]
    times_s: npt.NDArray[np.float64]
    rounds: npt.NDArray[np.int64] | None
    of_rate: bool
    kind: str = "strong"
    how: str = ""


def of_file(path: Path, named: Named | None = None, **chosen: Any) -> dict[str, Points]:
    """Return the points of a file by name: of each way of running of a record, or of each curve of a table.

    Parameters
    ----------
    path : Path
        The file.
    named : Named, optional
        What the headings of a table do not say.
    **chosen
        Which runs of a record: see `parcompute.analysis.studies.choose`. More workers than CPUs are left out.

    Raises
    ------
    RecordError, ValueError
        As `parcompute.record.record.read`, `parcompute.analysis.studies.choose` and `read`.
    """
    try:
        with path.open("rb") as stream:
            is_record = stream.read(8) == b"\x89HDF\r\n\x1a\n"
    except OSError as error:
        raise TableError(f"{path}: cannot be read ({error.strerror}); check the name") from error
    if not is_record:
        if asked := [f"--{name.replace('_', '-')}" for name, value in chosen.items() if value is not None]:
            raise TableError(f"{path}: is a table, and {', '.join(asked)} are of records; name columns instead")
        return read(path, named)
    if named not in (None, Named()):
        raise TableError(f"{path}: is a record, whose columns are known; leave out what names those of a table")
    study = choose(record.read(path), **chosen)
    found = {}
    for curve in study.curves:
        runs = [run for p in curve.points if not p.beyond for run in study.runs_of(curve, p.n_workers)]
        if runs:
            found[f"{path}: {curve.label}"] = Points(
                path,
                np.array([run.configuration.n_workers for run in runs], float),
                np.array([run.wall_s for run in runs]),
                np.array([run.round for run in runs]),
                False,
                study.kind,
            )
    return found


def read(path: Path, named: Named | None = None) -> dict[str, Points]:
    """Read a table, or what hyperfine, pyperf, asv or sacct give, and return its curves by name.

    Parameters
    ----------
    path : Path
        The file. docs/reference/tables.md says what it may look like.
    named : Named, optional
        What its headings do not say.

    Raises
    ------
    TableError
        If it cannot be read, or may be read in several ways.
    """
    named = named or Named()
    text = sheets.text_of(path)
    sheet = benchmarks.of_json(path, text) if text.lstrip().startswith(("{", "[")) else sheets.of_text(path, text)
    sheet = benchmarks.of_tools(sheet)
    found = columns.choose(sheet, named)
    sheet = _with_values(sheet, found)
    how = "; ".join([found.describe(sheet), *sheet.notes])
    parts: dict[tuple[str, ...], list[tuple[int, tuple[str, ...]]]] = {}
    for i, row in sheet.rows:
        key = tuple(row[k] if k < len(row) else "" for k in found.curves)
        parts.setdefault(key, []).append((i, row))
    points = {}
    for of_one in [replace(found, values=(k,)) for k in found.values] if found.apart else [found]:
        numbers = _Numbers(sheet, of_one, named)
        for key, rows in parts.items():
            level = [f"{sheet.name(k)}={value}" for k, value in zip(found.curves, key, strict=True)]
            name = ", ".join([*([sheet.name(of_one.values[0])] if found.apart else []), *level])
            kind = named.scaling or ("weak" if "weak" in map(str.lower, key) else "strong")
            points[f"{path}: {name}" if name else str(path)] = _points(sheet, of_one, numbers, rows, kind, how)
    return points


def _with_values(sheet: Sheet, found: Columns) -> Sheet:
    """Leave out the rows in which no value is, and say how many these are."""
    ends_early = [row for row in sheet.rows if len(row[1]) <= max(found.workers, *found.values[:1])]
    rows = tuple(
        (i, row)
        for i, row in sheet.rows
        if (i, row) in ends_early or not all(k >= len(row) or cells.is_missing(row[k]) for k in found.values)
    )
    if not rows:
        raise TableError(f"{sheet.path}: no row has a value (read: {found.describe(sheet)}); name another column")
    n_empty = len(sheet.rows) - len(rows)
    note = (f"{n_empty} row{'s' * (n_empty > 1)} without a value left out",) if n_empty else ()
    return replace(sheet, rows=rows, notes=(*sheet.notes, *note))


def _points(
    sheet: Sheet,
    found: Columns,
    numbers: _Numbers,
    rows: list[tuple[int, tuple[str, ...]]],
    kind: str,
    how: str,
) -> Points:
    told: list[tuple[float, float, int]] = []
    for i, row in rows:
        try:
            N, given = numbers.workers(row[found.workers]), 0
            for k, column in enumerate(found.values):
                if k and (column >= len(row) or cells.is_missing(row[column])):
                    continue  # fewer repetitions here than elsewhere
                given = 0 if found.round is None else numbers.round(row[found.round])
                told.append((N, numbers.value(row[column]), given * len(found.values) + k))
        except (ValueError, IndexError):
            shown = ", ".join(row)
            raise TableError(
                f"{sheet.path}, line {i}: {shown!r:.200} is no row of numbers (read: {how}); mend or comment it out"
            ) from None
        if abs(given) > 2**40:
            raise TableError(f"{sheet.path}, line {i}: round={given} numbers no round; count them from 0")
        if not (math.isfinite(N) and N >= 1 and all(math.isfinite(t) and t > 0 for _, t, _ in told)):
            raise TableError(
                f"{sheet.path}, line {i}: workers={N:g}, value={told[-1][1]:g}; pass workers of at least 1 and "
                "values above 0"
            )
    n_workers, values, rounds = (np.array(column) for column in zip(*told, strict=True))
    if found.kind == "efficiency":
        values = values / (100 if numbers.in_percent else 1) * n_workers
    if found.kind != "time":
        values = (n_workers if kind == "weak" else 1) / values
    counted: npt.NDArray[np.int64] | None = rounds.astype(np.int64)
    if found.round is None and len(found.values) == 1:
        counted = _by_occurrence(n_workers)
    return Points(sheet.path, n_workers, values, counted, found.kind != "time", kind, how)


def _by_occurrence(n_workers: npt.NDArray[np.float64]) -> npt.NDArray[np.int64] | None:
    """Return the number of each repetition, if all numbers of workers have equally many, and more than one."""
    if len(often := set(Counter(n_workers.tolist()).values())) != 1 or often == {1}:
        return None
    seen: Counter[float] = Counter()
    numbers = []
    for N in n_workers.tolist():
        numbers.append(seen[N])
        seen[N] += 1
    return np.array(numbers, np.int64)


class _Numbers:
    """Turns the cells of one sheet into numbers; all have their decimals behind the same sign."""

    def __init__(self, sheet: Sheet, found: Columns, named: Named) -> None:
        of_values = [cell for k in found.values for cell in sheet.column(k)]
        self._kind = found.kind
        self._decimal = named.decimal or _decimal_of(sheet, sheet.column(found.workers), of_values)
        heading = headings.parse(sheet.name(found.values[0]))
        self._unit_s = cells.UNITS_S[named.unit] if named.unit else heading.unit_s or 1.0
        self._suffixes = {"workers": self._suffix(sheet, found.workers)}
        self._rounds = {cell: k for k, cell in enumerate(dict.fromkeys(sheet.column(found.round or 0)))}
        self.in_percent = False
        if found.kind != "time":
            self._suffixes["value"] = self._suffix(sheet, found.values[0])
            percent = "%" in sheet.name(found.values[0]) or self._suffixes["value"] == "%"
            self.in_percent = percent or max((self._number(cell) or 0.0 for cell in of_values), default=0.0) > 2

    def workers(self, cell: str) -> float:
        return self._known(cell, "workers")

    def value(self, cell: str) -> float:
        if self._kind != "time":
            return self._known(cell, "value")
        found = cells.seconds(cell, self._decimal, self._unit_s)
        if found is None:
            raise ValueError(cell)
        return found

    def round(self, cell: str) -> int:
        try:
            return int(cell)
        except ValueError:
            if cells.is_number(cell):
                raise
            return self._rounds[cell]  # a date, or a name

    def _number(self, cell: str) -> float | None:
        return cells.value(cells.split(cell)[0], self._decimal)

    def _known(self, cell: str, what: str) -> float:
        found = self._number(cell)
        if found is None or cells.split(cell)[1] != self._suffixes[what]:
            raise ValueError(cell)  # 1.2 GB/s under 980 MB/s, too
        return found

    def _suffix(self, sheet: Sheet, column: int) -> str:
        """Return what stands behind the first number of a column, a unit that the others must have too."""
        return next((cells.split(cell)[1] for cell in sheet.column(column) if cells.split(cell)[0]), "")


def _decimal_of(sheet: Sheet, of_workers: list[str], of_values: list[str]) -> str:
    """Find out whether decimals are behind points or commas."""
    workers, values = (
        cells.decimals(number for cell in column if (number := cells.split(cell)[0]))
        for column in (of_workers, of_values)
    )
    sure = (workers | values) - {"?"}
    if len(sure) > 1:
        raise TableError(
            f"{sheet.path}: has both decimal points and decimal commas (read: values such as "
            f"{', '.join(of_values[:3])}); pass --decimal , or --decimal ."
        )
    if not sure and "?" in values:
        example = next(cell for cell in of_values if cells.decimals([cells.split(cell)[0]]) == {"?"})
        raise TableError(
            f"{sheet.path}: the comma of {example} may be of decimals or of thousands; pass --decimal , or --decimal ."
        )
    return sure.pop() if sure else "."


def of_laws(points: Points, laws: tuple[str, ...], usual: tuple[str, ...]) -> tuple[str, ...]:
    """Return the laws to fit: those asked for; else the usual ones, and for weak scaling Gustafson's."""
    return laws or (("gustafson",) if points.kind == "weak" else usual)
