"""Sheets → columns: which are workers, values, rounds, and which tell curves apart.

What a heading says is taken where it can be meant in one way only. Else the error says how the table was read, and
which option decides.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Never

from parcompute.analysis.measurements import cells, headings
from parcompute.analysis.measurements.headings import Heading
from parcompute.analysis.measurements.sheets import Sheet, TableError


@dataclass(frozen=True, slots=True)
class Named:
    """What the caller says about a table; empty for what its headings shall tell.

    Attributes
    ----------
    workers, round : str
        A heading, or the number of a column from 1.
    values : tuple of str
        The same, of times or of rates; several are repetitions if they are numbered, else a curve each.
    kind : {"", "time", "rate"}
        What the values are.
    curves, ignored : tuple of str
        Columns whose values tell curves apart, and columns that do not matter.
    unit : str
        Of times, a key of `parcompute.analysis.measurements.cells.UNITS_S`.
    decimal : {"", ".", ","}
        What decimals are behind.
    scaling : {"", "strong", "weak"}
        Whether the work was the same for every number of workers or grew with it.
    """

    workers: str = ""
    round: str = ""
    values: tuple[str, ...] = ()
    kind: str = ""
    curves: tuple[str, ...] = ()
    ignored: tuple[str, ...] = ()
    unit: str = ""
    decimal: str = ""
    scaling: str = ""


@dataclass(frozen=True, slots=True)
class Columns:
    """Which columns of a sheet are what, by number from 0.

    Attributes
    ----------
    workers : int
    values : tuple of int
        One; or several that hold repetitions; or, `apart`, a curve each.
    kind : {"time", "rate", "speedup", "efficiency"}
        What the values are.
    round : int or None
    curves : tuple of int
        Rows that differ in these are of unlike curves.
    apart : bool
        Whether each of the values is of a curve of its own.
    """

    workers: int
    values: tuple[int, ...]
    kind: str
    round: int | None
    curves: tuple[int, ...]
    apart: bool = False

    def describe(self, sheet: Sheet) -> str:
        """Say how a sheet was read: ``workers from cores, time from time_ms, curves by system``."""
        told = f"workers from {sheet.name(self.workers)}, {self.kind} from {_listed(sheet, self.values)}"
        told += f", round from {sheet.name(self.round)}" if self.round is not None else ""
        return told + (f", curves by {_listed(sheet, self.curves)}" if self.curves else "")


def choose(sheet: Sheet, named: Named) -> Columns:
    """Find out what the columns of a sheet are.

    Raises
    ------
    TableError
        If no column can be meant, or several can.
    """
    return _Chooser(sheet, named).choose()


def _listed(sheet: Sheet, columns: Iterable[int]) -> str:
    return ", ".join(sheet.name(i) for i in columns)


@dataclass(slots=True)
class _Chooser:
    sheet: Sheet
    named: Named
    headings: list[Heading] = field(default_factory=list)
    read: dict[str, tuple[int, ...]] = field(default_factory=dict)  # what has been decided, in its order

    def choose(self) -> Columns:
        sheet, named = self.sheet, self.named
        self.headings = [headings.parse(name) for name in sheet.heading] or [Heading("")] * sheet.n_columns
        ignored = [self._find(name) for name in named.ignored]
        curves = tuple(self._find(name) for name in named.curves)
        taken = {*ignored, *curves}
        round_ = self._find(named.round) if named.round else None
        if sheet.heading or named.workers or named.values:
            workers = self._workers(taken)
            values, kind = self._values({*taken, workers, *([] if round_ is None else [round_])})
            if round_ is None:
                round_ = next((i for i in self._of("round", {*taken, workers, *values})), None)
        elif sheet.n_columns in (2, 3):
            workers, values, kind = 0, (1,), named.kind
            self.read |= {"workers": (0,), "time or rate": (1,)}
            round_ = 2 if sheet.n_columns == 3 else None
        else:
            self._fail(f"has {sheet.n_columns} columns and no heading", "head them workers, time, round, or name them "
                       "by number: --workers 1 --time 2")  # fmt: skip
        if round_ is not None:
            self.read["round"] = (round_,)
        if not kind:
            which = f"column {_listed(sheet, values)}" if sheet.heading else "second column"
            self._fail(
                f"does not say whether its {which} is a time or a rate",
                "head it 'time' or 'throughput', or pass --time or --rate",
            )
        self._refuse_cells_without_name()
        if sheet.heading:
            used = {workers, *values, *ignored} | (set() if round_ is None else {round_})
            curves += self._curves(workers, curves, used)
        else:
            self._refuse_what_counts_no_rounds(round_)
        return Columns(workers, values, kind, round_, curves, len(values) > 1 and not self._repeat(values))

    # ── one column ────────────────────────────────────────────────────────────────────────────────────

    def _find(self, name: str) -> int:
        """Return the column of a heading, whatever its case, or of a number from 1."""
        same = [i for i, heading in enumerate(self.sheet.heading) if heading == name]
        same = same or [i for i, heading in enumerate(self.sheet.heading) if heading.lower() == name.strip().lower()]
        if not same and name.isdecimal() and 1 <= int(name) <= self.sheet.n_columns:
            same = [int(name) - 1]
        if len(same) != 1:
            how = f"{len(same)} columns" if same else "no column"
            self._fail(f"has {how} {name!r}", f"name one of {self._names()}, or its number from 1")
        return same[0]

    def _of(self, role: str, taken: set[int]) -> list[int]:
        """Return the columns of a role that have numbers; of those that are equal the first."""
        found: dict[tuple[str, ...], int] = {}
        for i, heading in enumerate(self.headings):
            if heading.role == role and i not in taken and (role == "round" or self._has_numbers(i)):
                found.setdefault(tuple(self.sheet.column(i)), i)
        empty = [i for i in found.values() if all(map(cells.is_missing, self.sheet.column(i)))]
        return [i for i in found.values() if i not in empty] or empty

    def _has_numbers(self, i: int) -> bool:
        # The first row that has something decides, so that a faulty cell further down is an error with its line.
        first = next((cell for cell in self.sheet.column(i) if not cells.is_missing(cell)), "0")
        return cells.seconds(first, ".", 1) is not None or bool(cells.split(first)[0])

    def _varies(self, i: int) -> bool:
        return len({cell for cell in self.sheet.column(i)}) > 1

    def _workers(self, taken: set[int]) -> int:
        if self.named.workers:
            found = [self._find(self.named.workers)]
        else:
            found = self._of("workers", taken | {self._find(name) for name in self.named.values if name})
            found = [i for i in found if self._varies(i)] or found[:1]
        if not found:
            self._fail(
                f"no column of {self._names()} is known to have workers", "head one 'workers', or pass --workers COLUMN"
            )
        if len(found) > 1:
            options = " or ".join(f"--workers {self._quoted(i)}" for i in found)
            self._fail(f"workers may be in {_listed(self.sheet, found)}", f"pass {options}")
        self.read["workers"] = (found[0],)
        return found[0]

    # ── values ────────────────────────────────────────────────────────────────────────────────────────

    def _values(self, taken: set[int]) -> tuple[tuple[int, ...], str]:
        values, kind = self._found_values(taken)
        self.read[kind or "time or rate"] = values
        return values, kind

    def _found_values(self, taken: set[int]) -> tuple[tuple[int, ...], str]:
        kind = self.named.kind
        if self.named.values:
            values = tuple(self._find(name) for name in self.named.values)
            said = {self.headings[i].role for i in values} & {"speedup", "efficiency"}
            # Of a base of 1 both are rates; what a speed-up is, its heading tells, and the option need not.
            return values, said.pop() if len(said) == 1 and kind == "rate" else kind
        by_role = {role: self._of(role, taken) for role in ("time", "rate", "speedup", "efficiency", "value")}
        if not kind and by_role["time"] and by_role["rate"]:
            self._refuse_unlike(by_role["time"], by_role["rate"], taken)
            constant = not any(map(self._varies, by_role["time"]))  # runs of a fixed time
            by_role["time"] = [] if constant else by_role["time"]
        for role, found in by_role.items():
            if found and (role == kind or not kind or role == "value"):
                values = self._one_of(found, role)
                return values, kind or (role if role != "value" else "")
        left = [i for i, heading in enumerate(self.headings) if heading.role == "" and i not in taken]
        left = [i for i in left if self._has_numbers(i)]
        if len(left) == 1:
            return (left[0],), kind
        self._fail(
            f"which of {self._names()} is the time?", "head it 'time' or 'throughput', or pass --time or --rate COLUMN"
        )

    def _refuse_unlike(self, times: list[int], rates: list[int], taken: set[int]) -> None:
        """Refuse a time and a rate that do not tell the same, as of runs in which the work differed."""
        if len(times) > 1 or len(rates) > 1 or not (self._varies(times[0]) and self._varies(rates[0])):
            return
        pairs = zip(self.sheet.column(times[0]), self.sheet.column(rates[0]), strict=True)
        both = [(cells.seconds(t, ".", 1), cells.value(cells.split(x)[0], ".")) for t, x in pairs]
        products = [t * x for t, x in both if t and x]
        if not products or max(products) > 1.1 * min(products):
            t, x = times[0], rates[0]
            self._fail(
                f"time in {self.sheet.name(t)} and rate in {self.sheet.name(x)} are not of the same work",
                f"pass --time {self._quoted(t)} or --rate {self._quoted(x)}",
            )

    def _one_of(self, found: list[int], role: str) -> tuple[int, ...]:
        """Choose among columns of one role: repetitions, the plain one, the median, the mean."""
        said = {i: self.headings[i] for i in found}
        stems: dict[str, list[int]] = {}
        for i, heading in said.items():
            if heading.number is not None and not heading.statistic:
                stems.setdefault(heading.stem, []).append(i)
        counted = [columns for columns in stems.values() if len(columns) > 1 and self._repeat(columns)]
        in_one = {i for columns in counted for i in columns}
        plain: list[tuple[int, ...]] = [
            (i,) for i, heading in said.items() if not heading.statistic and i not in in_one
        ]
        plain += [tuple(columns) for columns in counted]
        medians, means = (tuple((i,) for i in found if said[i].statistic == s) for s in ("median", "mean"))
        for choice in (plain, medians, means):
            if len(choice) == 1:
                return choice[0]
            if choice:
                option = "--time" if role == "time" else "--rate"
                names = [f"{option} {self._quoted(columns[0])}" for columns in choice]
                self._fail(
                    f"{role} may be in {_listed(self.sheet, [i for columns in choice for i in columns])}",
                    f"pass {' or '.join(names)}, or several for a curve each",
                )
        if len(found) > 1:
            self._fail(f"{role} is in {_listed(self.sheet, found)} only", f"pass --time {self._quoted(found[0])}")
        if said[found[0]].stem.endswith("min") and said[found[0]].unit_s is None and not self.named.unit:
            self._fail(f"{self.sheet.name(found[0])} may be minutes or the smallest", "pass --unit min or --unit s")
        return (found[0],)

    def _repeat(self, columns: Sequence[int]) -> bool:
        """Whether columns are numbered from 0 or 1, as t1, t2, t3: so many could be sizes, too."""
        numbers = sorted(number for i in columns if (number := self.headings[i].number) is not None)
        n = len(columns)
        return numbers in (list(range(n)), list(range(1, n + 1))) and len({self.headings[i].stem for i in columns}) == 1

    # ── what is not read ──────────────────────────────────────────────────────────────────────────────

    def _refuse_cells_without_name(self) -> None:
        n_columns = self.sheet.n_columns
        for _, row in self.sheet.rows:
            if any(cell.strip() for cell in row[n_columns:]):
                self._fail(f"a row has {len(row)} cells and no name for each", "head all columns")

    def _refuse_what_counts_no_rounds(self, round_: int | None) -> None:
        if round_ is None or self.named.round:
            return
        found = sorted({cell for cell in self.sheet.column(round_)})
        numbers = sorted({int(cell) for cell in found if cell.isdecimal() and len(cell) < 10})
        if len(numbers) < len(found) or numbers[0] not in (0, 1) or numbers[-1] - numbers[0] >= len(numbers):
            self._fail("its third column does not count rounds from 0 or 1", "head all columns")

    def _curves(self, workers: int, named: tuple[int, ...], used: set[int]) -> tuple[int, ...]:
        """Return the columns that tell curves apart: each curve then has several numbers of workers."""
        others = [
            i
            for i, heading in enumerate(self.headings)
            if i not in used and i not in named and self._varies(i)
            if heading.role in ("", "workers") or not (heading.role == "round" or self._has_numbers(i))
            # As nodes beside their cores: it says no more than the workers do.
            if not (heading.role == "workers" and self._says_no_more(i, workers))
        ]  # fmt: skip
        found = [i for i in others if self._parts(workers, (*named, i)) and not self._is_quantity(i, workers)]
        if not self._parts(workers, (*named, *found)):
            found = found[:1]
        if unread := [i for i in others if i not in found]:
            told, options = zip(*((self._shown(i), self._quoted(i)) for i in unread), strict=True)
            self._fail(
                f"column {', column '.join(told)}, and rows that differ in it are not fitted as one curve",
                f"pass --curve {options[0]} for a curve each, or --ignore {' --ignore '.join(options)} if it does not "
                f"matter{' (with --scaling weak if the work grows with the workers)' * (not self.named.scaling)}",
            )
        return tuple(found)

    def _parts(self, workers: int, by: tuple[int, ...]) -> bool:
        """Whether the rows of each combination of values have several numbers of workers."""
        found: dict[tuple[str, ...], set[str]] = {}
        for row in zip(*(self.sheet.column(i) for i in (workers, *by)), strict=True):
            found.setdefault(row[1:], set()).add(row[0])
        return all(len(numbers) > 1 for numbers in found.values())

    def _says_no_more(self, i: int, workers: int) -> bool:
        """Whether a column has the same value for all rows with the same number of workers."""
        pairs = set(zip(self.sheet.column(workers), self.sheet.column(i), strict=True))
        return len(pairs) == len({N for N, _ in pairs})

    def _is_quantity(self, i: int, workers: int) -> bool:
        """Whether a column is a number that follows from the workers, as memory or a growing size does."""
        return self._has_numbers(i) and self._says_no_more(i, workers)

    # ── words ─────────────────────────────────────────────────────────────────────────────────────────

    def _names(self) -> str:
        return ", ".join(self.sheet.name(i) for i in range(self.sheet.n_columns))

    def _shown(self, i: int) -> str:
        values = sorted(set(self.sheet.column(i)))
        return (
            f"{self.sheet.name(i)} has " + ", ".join(f"{cell:.20}" for cell in values[:3]) + ", …" * (len(values) > 3)
        )

    def _quoted(self, i: int) -> str:
        name = self.sheet.name(i)
        return (
            f"'{name}'"
            if set(name) - set("abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789_-./%")
            else name
        )

    def _fail(self, what: str, way_out: str) -> Never:
        how = ", ".join(f"{role} from column {_listed(self.sheet, columns)}" for role, columns in self.read.items())
        raise TableError(f"{self.sheet.path}: {what} (read: {how or 'nothing yet'}); {way_out}")
