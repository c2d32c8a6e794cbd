"""Files → sheets: a heading and rows of cells as text, whatever lies between the cells.

    bytes ── text ──▶ lines without comments ── delimiter, Markdown, fixed widths ──▶ Sheet

What a column means, and what number a cell is, others find out.
"""

from __future__ import annotations

import csv
import re
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from parcompute.analysis.measurements import cells, headings

# A table of points is some kilobytes; without an end, as of a device, it would fill the memory.
_MOST_BYTES = 2**26

# What stands for bytes that are no UTF-8, and what a terminal would act upon in a message.
_NO_TEXT = re.compile("[\ufffd\x00-\x08\x0e-\x1f\x7f-\x84\x86-\x9f]")

_DELIMITERS = ("\t", ";", "|", ",")
_RULE = re.compile(r"[-=+|:\s]*--[-=+|:\s]*|[=\s]*==[=\s]*")  # between heading and rows


class TableError(ValueError):
    """A table cannot be read; the message is one line with the file, the line and the way out."""


@dataclass(frozen=True, eq=False)
class Sheet:
    """Cells as they stand in a file.

    Attributes
    ----------
    path : Path
        The file.
    heading : tuple of str
        A name for each column; empty if the file has none.
    rows : tuple of (int, tuple of str)
        The line of each row, and its cells: as many as there are columns, or less where a line ends early.
    notes : tuple of str
        What was left out, in words.
    """

    path: Path
    heading: tuple[str, ...]
    rows: tuple[tuple[int, tuple[str, ...]], ...]
    notes: tuple[str, ...] = ()

    @property
    def n_columns(self) -> int:
        """How many columns have a name, or, without names, how many the first row has."""
        return len(self.heading) if self.heading else len(self.rows[0][1])

    def column(self, i: int) -> list[str]:
        """Return the cells of a column; one that a line does not have is empty."""
        return [row[i] if i < len(row) else "" for _, row in self.rows]

    def name(self, i: int) -> str:
        """Return what a column is called: its heading, or its number from 1."""
        return (self.heading[i] if self.heading else "") or str(i + 1)


def text_of(path: Path) -> str:
    """Return the text of a file.

    Raises
    ------
    TableError
        If it cannot be read, is too large, or is no text.
    """
    try:
        with path.open("rb") as stream:
            content = stream.read(_MOST_BYTES + 1)
    except OSError as error:
        raise TableError(f"{path}: cannot be read ({error.strerror}); check the name") from error
    if len(content) > _MOST_BYTES:
        raise TableError(f"{path}: has more than {_MOST_BYTES >> 20} MiB; pass a table of workers and times only")
    text = _decoded(content)
    if _NO_TEXT.search(text):
        raise TableError(f"{path}: is neither text nor a record of parcompute; pass a table or an .h5 file")
    return text


def _decoded(content: bytes) -> str:
    if content.startswith((b"\xff\xfe", b"\xfe\xff")):
        return content.decode("utf-16", "replace")
    try:
        return content.decode("utf-8-sig")
    except UnicodeDecodeError:  # spreadsheets of Western Europe: µs and ± are single bytes
        wrong = content.startswith(b"\x89HDF")
        return content.decode("utf-8" if wrong else "cp1252", "replace")


def of_text(path: Path, text: str) -> Sheet:
    """Return the sheet of a text table.

    Lines that begin with ``#`` are left out, but for a heading as `numpy.savetxt` writes it. A second row that has
    nothing but units is put into the heading.

    Raises
    ------
    TableError
        If there are no rows, or they cannot be cut into cells.
    """
    all_lines = [
        (i, line)
        for i, line in enumerate(text.splitlines(keepends=True), 1)
        if line.strip() and not line.lower().startswith("sep=")
    ]
    lines = [(i, line) for i, line in all_lines if not line.lstrip().startswith("#")]
    if not lines:
        raise TableError(f"{path}: has no rows; pass a table of workers and times")
    rows = [(i, row) for i, row in _cut(path, lines) if any(row)]
    if not rows:
        raise TableError(f"{path}: has no cells; pass a table of workers and times")
    if cells.is_number(rows[0][1][0]):
        heading = _in_comment(path, all_lines, lines[0], len(rows[0][1]))
        return Sheet(path, heading, tuple(rows))
    (_, heading), *rows = rows
    sheet = _upright(Sheet(path, heading, tuple(rows)))
    if not sheet.rows:
        raise TableError(f"{path}: has a heading and no rows; pass a table of workers and times")
    return _with_units(sheet)


def _in_comment(
    path: Path, lines: Sequence[tuple[int, str]], first: tuple[int, str], n_columns: int
) -> tuple[str, ...]:
    """Return the heading of a table whose rows follow a comment with as many names, workers among them."""
    before = lines.index(first) - 1
    told = lines[before][1].lstrip("# \t") if before >= 0 else ""
    heading = _cut(path, [(before, told)])[0][1] if told.strip() else ()
    known = len(heading) == n_columns and any(headings.parse(name).role == "workers" for name in heading)
    return heading if known else ()


# ── lines → cells ─────────────────────────────────────────────────────────────────────────────────────


def _cut(path: Path, lines: Sequence[tuple[int, str]]) -> list[tuple[int, tuple[str, ...]]]:
    if markdown := _markdown(path, lines):
        return markdown
    rules = [line for _, line in lines if _RULE.fullmatch(line.strip())]
    kept = [(i, line) for i, line in lines if not _RULE.fullmatch(line.strip())] or list(lines)
    first = kept[0][1]
    for _, line in kept[1:]:
        if first.count('"') % 2 == 0:
            break
        first += line  # a heading of two lines
    for delimiter in _DELIMITERS:
        if delimiter in first:
            return _delimited(path, kept, delimiter)
    if rules and len(rules[0].split()) > 1:  # fixed widths, as sacct prints them
        spans = [found.span() for found in re.finditer(r"[-=]+", rules[0])]
        return [(i, tuple(line.rstrip("\n")[a:b].strip() for a, b in spans)) for i, line in kept]
    wide = [re.split(r"\s{2,}", line.strip()) for _, line in kept]
    several = len(wide[0]) > 1 and len({len(row) for row in wide}) == 1
    cut = wide if several else [line.split() for _, line in kept]
    return [(i, tuple(row)) for (i, _), row in zip(kept, cut, strict=True)]


def _delimited(path: Path, lines: Sequence[tuple[int, str]], delimiter: str) -> list[tuple[int, tuple[str, ...]]]:
    reader = csv.reader((line for _, line in lines), delimiter=delimiter)
    rows: list[tuple[int, tuple[str, ...]]] = []
    while True:
        first = min(reader.line_num, len(lines) - 1)
        try:
            row = tuple(" ".join(cell.split()) for cell in next(reader))
        except StopIteration:
            return rows
        except csv.Error as error:
            raise TableError(f"{path}, line {lines[first][0]}: cannot be cut into cells ({error}); mend it") from None
        rows.append((lines[first][0], row))


def _markdown(path: Path, lines: Sequence[tuple[int, str]]) -> list[tuple[int, tuple[str, ...]]]:
    """Return the rows of the one Markdown table, with whatever text around it; none if there is no such table."""
    rules = [k for k, (_, line) in enumerate(lines) if "|" in line and _RULE.fullmatch(line.strip()) and k]
    if not rules or "|" not in lines[rules[0] - 1][1]:
        return []
    if len(rules) > 1:
        raise TableError(f"{path}: has {len(rules)} Markdown tables; pass a file with one of them")
    first = last = rules[0] - 1
    while last < len(lines) and "|" in lines[last][1] and lines[last][0] - lines[first][0] == last - first:
        last += 1
    return [
        (
            i,
            tuple(
                cell.strip().strip("*`").strip() for cell in line.strip().removeprefix("|").removesuffix("|").split("|")
            ),
        )
        for k, (i, line) in enumerate(lines[first:last], first)
        if k != rules[0]
    ]


# ── headings ──────────────────────────────────────────────────────────────────────────────────────────


def _upright(sheet: Sheet) -> Sheet:
    """Turn a table that has its workers in a row, ``cores, 1, 2, 4``, by a quarter."""
    first, *others = sheet.heading
    numbers = [cell for cell in others if cell]
    lying = headings.parse(first).role == "workers" and len(numbers) > 1 and all(map(cells.is_number, numbers))
    if not lying or any(cells.is_number(row[0]) for _, row in sheet.rows):
        return sheet
    columns = [sheet.heading, *(row for _, row in sheet.rows)]
    turned = [tuple(column[i] if i < len(column) else "" for column in columns) for i in range(len(sheet.heading))]
    line = sheet.rows[0][0] - 1 if sheet.rows else 1
    return replace(sheet, heading=turned[0], rows=tuple((line, row) for row in turned[1:] if row[0]))


def _with_units(sheet: Sheet) -> Sheet:
    (_, units), *rows = sheet.rows
    of_columns = [cell for cell in units if cell not in ("", "-", "1")]
    if not of_columns or not rows or not all(map(headings.is_unit, of_columns)):
        return sheet
    padded = [*units, *[""] * (len(sheet.heading) - len(units))]
    heading = tuple(
        f"{name} [{unit.strip('[]() ')}]" if headings.is_unit(unit) else name
        for name, unit in zip(sheet.heading, padded, strict=False)
    )
    return replace(sheet, heading=heading, rows=tuple(rows))
