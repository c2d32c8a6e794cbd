"""(N, time) points of a record or of a text table, so that people can fit what they measured elsewhere."""

from __future__ import annotations

import csv
import math
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from parcompute.analysis.studies import choose
from parcompute.record import record

_WORKERS = ("n", "p", "workers", "n_workers", "threads", "processes", "cores", "cpus", "nodes", "procs", "load")
_TIMES = ("t", "time", "time_s", "seconds", "wall", "wall_s", "elapsed", "elapsed_s", "walltime")
_RATES = ("x", "rate", "throughput", "bandwidth", "ops", "tput")
_ROUNDS = ("round", "repeat", "repetition", "run", "rep")

# A table of points is some kilobytes; without an end, as of a device, it would fill the memory.
_MOST_BYTES = 2**26

# What stands for bytes that are no UTF-8, and what a terminal would act upon in a message.
_NO_TEXT = re.compile("[\ufffd\x00-\x08\x0e-\x1f\x7f-\x84\x86-\x9f]")


class TableError(ValueError):
    """A table cannot be read; the message is one line with the file, the line and the way out."""


@dataclass(frozen=True, eq=False)
class Points:
    """What a table says.

    Attributes
    ----------
    path : Path
        The table.
    n_workers, times_s : ndarray, shape (n_points,)
        Workers, and seconds or 1/rate.
    rounds : ndarray of int, shape (n_points,), or None
        Which round each point belongs to, where the table says so.
    of_rate : bool
        Whether the table has rates.
    """

    path: Path
    n_workers: npt.NDArray[np.float64]
    times_s: npt.NDArray[np.float64]
    rounds: npt.NDArray[np.int64] | None
    of_rate: bool


def of_file(path: Path, *, of_rate: bool | None = None, **chosen: Any) -> dict[str, Points]:
    """Return the points of a file by name: of each way of running of a record, or of a table.

    Parameters
    ----------
    path : Path
        The file.
    of_rate : bool, optional
        See `read`.
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
        return {str(path): read(path, of_rate=of_rate)}
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
            )
    return found


def read(path: Path, *, of_rate: bool | None = None) -> Points:
    """Read a table of two or three columns: workers, time or rate, and optionally the number of the round.

    Columns are separated by commas, semicolons, tabs or blanks; lines that begin with ``#`` are left out. A further
    column must have one value in all rows: rows that it tells apart may be of unlike problems.

    Parameters
    ----------
    path : Path
        The table.
    of_rate : bool, optional
        Whether the second column is a rate; None goes by its heading.

    Raises
    ------
    TableError
        If it cannot be read, or does not say what its columns are.
    """
    try:
        with path.open("rb") as stream:
            content = stream.read(_MOST_BYTES + 1)
    except OSError as error:
        raise TableError(f"{path}: cannot be read ({error.strerror}); check the name") from error
    if len(content) > _MOST_BYTES:
        raise TableError(f"{path}: has more than {_MOST_BYTES >> 20} MiB; pass a table of workers and times only")
    text = content.decode("utf-8-sig", "replace")
    if _NO_TEXT.search(text):
        raise TableError(f"{path}: is neither text nor a record of parcompute; pass a table or an .h5 file")
    lines = [
        (i, line) for i, line in enumerate(text.splitlines(), 1) if line.strip() and not line.lstrip().startswith("#")
    ]
    if not lines:
        raise TableError(f"{path}: has no rows; pass a table of workers and times")
    table = [(i, _cells(path, i, line)) for i, line in lines]
    heading = [] if _is_number(table[0][1][0]) else [cell.strip().lower() for cell in table.pop(0)[1]]
    workers, value, round_, by_name = _columns(path, heading, len(heading or table[0][1]))
    if of_rate is None:
        if by_name is None:
            raise TableError(
                f"{path}: does not say whether its second column is a time or a rate; head it "
                f"'time' or 'throughput', or pass --time or --rate"
            )
        of_rate = by_name
    rows = [_numbers(path, i, cells, workers, value, round_) for i, cells in table]
    if not rows:
        raise TableError(f"{path}: has a heading and no rows; pass a table of workers and times")
    _refuse_unlike_rows(path, heading, [cells for _, cells in table], workers, value, round_)
    n_workers, values, rounds = (np.array(column) for column in zip(*rows, strict=True))
    return Points(
        path,
        n_workers.astype(float),
        1 / values if of_rate else values,
        rounds.astype(np.int64) if round_ is not None else None,
        of_rate,
    )


def _cells(path: Path, i: int, line: str) -> list[str]:
    for delimiter in (",", ";", "\t"):
        if delimiter in line:
            try:
                return next(csv.reader([line], delimiter=delimiter))
            except csv.Error as error:
                raise TableError(f"{path}, line {i}: cannot be cut into cells ({error}); mend it") from None
    return re.split(r"\s+", line.strip())


def _refuse_unlike_rows(
    path: Path, heading: list[str], rows: list[list[str]], workers: int, value: int, round_: int | None
) -> None:
    """Refuse rows that differ in what is not read: points of several problems are no one curve."""
    n_columns = len(heading or rows[0])
    read = {"workers": workers, "time or rate": value} | ({} if round_ is None else {"round": round_})
    how = ", ".join(f"{what} from column {heading[i] if heading else i + 1}" for what, i in read.items())
    for cells in rows:
        if any(cell.strip() for cell in cells[n_columns:]):
            raise TableError(
                f"{path}: a row has {len(cells)} cells and no name for each (read: {how}); head all columns"
            )
    for i, name in enumerate(heading):
        found = {cells[i].strip() if i < len(cells) else "" for cells in rows}
        if i not in read.values() and len(found) > 1:
            shown = ", ".join(f"{cell:.20}" for cell in sorted(found)[:3]) + ", …" * (len(found) > 3)
            raise TableError(
                f"{path}: column {name} has {shown}, and rows that it tells apart are not fitted as one curve "
                f"(read: {how}); pass a table per value, or take the column out if it does not matter"
            )
    numbers = sorted({int(cells[2]) for cells in rows}) if not heading and round_ is not None else []
    if numbers and (numbers[0] not in (0, 1) or numbers[-1] - numbers[0] >= len(numbers)):
        raise TableError(f"{path}: its third column does not count rounds from 0 or 1 (read: {how}); head all columns")


def _is_number(cell: str) -> bool:
    try:
        float(cell)
    except ValueError:
        return False
    return True


def _columns(path: Path, heading: list[str], n_columns: int) -> tuple[int, int, int | None, bool | None]:
    """Return where workers, values and rounds stand, and whether the values are rates, None where it is not said."""
    if not heading:
        if n_columns not in (2, 3):
            raise TableError(f"{path}: has {n_columns} columns and no heading; head them workers, time, round")
        return 0, 1, 2 if n_columns == 3 else None, None

    def column(names: tuple[str, ...]) -> int | None:
        return next((i for i, cell in enumerate(heading) if cell in names), None)

    workers, time, rate, round_ = (column(names) for names in (_WORKERS, _TIMES, _RATES, _ROUNDS))
    if workers is None or (time is None and rate is None and n_columns > 3):
        raise TableError(
            f"{path}: no column of {', '.join(heading)} is known; head them workers and time, or workers and throughput"
        )
    if time is None and rate is None:
        others = [i for i in range(n_columns) if i not in (workers, round_)]
        if len(others) != 1:
            raise TableError(f"{path}: which of {', '.join(heading)} is the time? head it 'time' or 'throughput'")
        return workers, others[0], round_, None
    return workers, rate if time is None else time, round_, time is None  # type: ignore[return-value]


def _numbers(
    path: Path, i: int, cells: list[str], workers: int, value: int, round_: int | None
) -> tuple[float, float, float]:
    try:
        found = float(cells[workers]), float(cells[value]), 0.0 if round_ is None else float(int(cells[round_]))
    except (ValueError, IndexError, OverflowError):
        raise TableError(
            f"{path}, line {i}: {', '.join(cells)!r} is no row of numbers; mend or comment it out"
        ) from None
    if abs(found[2]) > 2**53:
        raise TableError(f"{path}, line {i}: round={cells[round_ or 0]} numbers no round; count them from 0")
    if not (math.isfinite(found[1]) and found[1] > 0 and math.isfinite(found[0]) and found[0] >= 1):
        raise TableError(
            f"{path}, line {i}: workers={found[0]:g}, value={found[1]:g}; pass workers of at least 1 and values above 0"
        )
    return found
