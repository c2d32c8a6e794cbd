"""What a record says, for a notebook: typed values, and the same as tables of pandas.

    pc.read(path) ──▶ Results ┬─ recorded, studies, study     frozen values
                              └─ runs, curves, fits, ledger   DataFrames

pandas is loaded with the first table that is asked for, and nothing else here needs it.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping
from functools import cached_property
from typing import TYPE_CHECKING, Any

from parcompute.analysis import tables
from parcompute.analysis.choice import Compared, compare_laws
from parcompute.analysis.losses import losses
from parcompute.analysis.scaling import Curve, Point
from parcompute.analysis.studies import Study, choose, studies
from parcompute.record import record, schema
from parcompute.record.record import Recorded
from parcompute.values import views
from parcompute.values.intervals import Interval
from parcompute.values.parts import PARTS

if TYPE_CHECKING:
    from pandas import DataFrame

# What is fitted to strong scaling, and to weak scaling.
_LAWS = {"strong": ("amdahl", "usl", "logarithmic", "saturation"), "weak": ("gustafson",)}


def read(
    path: str | os.PathLike[str],
    *,
    conditions: str | None = None,
    seed: int | None = None,
    n_items: int | None = None,
    kind: str | None = None,
) -> Results:
    """Read a record, to look at it or to draw it on axes of your own.

    Parameters
    ----------
    path : path
        A file that an experiment has written. It may be read while runs are added to it.
    conditions, seed, n_items, kind : optional
        Which of its studies: runs of unlike conditions, seeds or sizes are never mixed. The newest if left out;
        between unlike conditions nothing is chosen in silence (``conditions="newest"`` does).

    Returns
    -------
    Results

    Raises
    ------
    RecordError
        If the file is missing, locked, truncated, no HDF5 or of another schema.

    See Also
    --------
    parcompute.plot : The figures.

    Examples
    --------
    >>> import parcompute as pc
    >>> montecarlo = pc.read("results/reference/montecarlo.h5")  # doctest: +SKIP
    >>> montecarlo.curves[["curve", "n_workers", "speedup"]]     # doctest: +SKIP
    >>> pc.plot.speedup(montecarlo)                              # doctest: +SKIP
    """
    chosen = {"conditions": conditions, "seed": seed, "n_items": n_items, "kind": kind}
    return Results(record.read(path, timelines=True), chosen)


class Results:
    """What a record holds. Made by `parcompute.read`.

    Attributes
    ----------
    recorded : parcompute.record.record.Recorded
        The file: every run as a frozen value, in the order in which they ended.
    """

    def __init__(self, recorded: Recorded, chosen: Mapping[str, Any]) -> None:
        self.recorded = recorded
        self._chosen = chosen

    # ── typed values ──────────────────────────────────────────────────────────────────────────────────

    @cached_property
    def studies(self) -> tuple[Study, ...]:
        """The runs sorted by what may be compared; the study with the newest run last."""
        return studies(self.recorded)

    @cached_property
    def study(self) -> Study:
        """The study that was asked for; its `curves` have points, intervals and Amdahl's law as values.

        Raises
        ------
        ValueError
            If no run fits, those that fit ran under unlike conditions, or none of them counts.
        """
        return choose(self.recorded, **self._chosen)

    @cached_property
    def compared(self) -> Mapping[str, Compared]:
        """The laws that were fitted to each curve of the study, by its label, as far as there are CPUs."""
        found = {}
        for curve in self.study.curves:
            runs = [run for p in curve.points if not p.beyond for run in self.study.runs_of(curve, p.n_workers)]
            if runs:
                n_workers = [run.configuration.n_workers for run in runs]
                walls_s, rounds = [run.wall_s for run in runs], [run.round for run in runs]
                found[curve.label] = compare_laws(_LAWS[curve.kind], n_workers, walls_s, rounds=rounds)
        return found

    @property
    def verdicts(self) -> tuple[str, ...]:
        """For each way of running, how far it scales and what the rest was lost to; its numbers in the lines below."""
        return tuple(map(str, tables.verdicts(self.study)))

    # ── tables ────────────────────────────────────────────────────────────────────────────────────────

    @property
    def runs(self) -> DataFrame:
        """All runs of the file, one row each: the columns of docs/reference/file-format.md, and ``counts``.

        Of all studies; those that no curve counts included.
        """
        rows = [{**schema.row_of(run), "counts": run.counts} for run in self.recorded.runs]
        rows = [{**row, "timeline_rows": n} for row, n in zip(rows, self.recorded.timeline_rows, strict=True)]
        return _frame(rows, [*(name for name, _, _ in schema.FIELDS), "counts"])

    @property
    def curves(self) -> DataFrame:
        """The points of the study, one row each, with their intervals.

        Columns are ``curve`` (its label), ``backend``, ``n_workers``, ``n_nodes``, ``n_runs``, ``beyond`` (more workers
        than CPUs), and ``wall_s``, ``speedup``, ``efficiency`` and ``karp_flatt``, each with ``_low`` and ``_high``:
        the ends of its 95 % interval, or of its range where ``wall_is_range`` or ``speedup_is_range`` says that the
        runs are too few for one.
        """
        rows = [_row(curve, point) for curve in self.study.curves for point in curve.points]
        values = ("wall_s", "speedup", "efficiency", "karp_flatt")
        ends = [f"{name}{end}" for name in values for end in ("", "_low", "_high")]
        return _frame(rows, [*_OF_POINT, *ends, "wall_is_range", "speedup_is_range"])

    @property
    def fits(self) -> DataFrame:
        """The parameters of the laws that were fitted to each curve, one row each.

        Columns are ``curve``, ``law``, ``parameter``, ``value``, ``low``, ``high`` (95 %), ``standard_error``,
        ``identifiable``, ``preferred`` (by AICc) and ``reason`` (why the points do not tell it).
        """
        rows = []
        for name, compared in self.compared.items():
            for law, each in compared.fits.items():
                for parameter in dict.fromkeys((*each.parameters, *each.intervals)) or ("",):
                    low, high = each.intervals.get(parameter, (None, None))
                    rows.append(
                        {
                            "curve": name,
                            "law": law,
                            "parameter": parameter,
                            "value": each.parameters.get(parameter),
                            "low": low,
                            "high": high,
                            "standard_error": each.standard_errors.get(parameter),
                            "identifiable": each.identifiable,
                            "preferred": law == compared.preferred,
                            "reason": each.reason,
                        }
                    )
        columns = ["curve", "law", "parameter", "value", "low", "high", "standard_error"]
        numbers = dict.fromkeys(("value", "low", "high", "standard_error"), float)
        return _frame(rows, [*columns, "identifiable", "preferred", "reason"]).astype(numbers)

    @property
    def ledger(self) -> DataFrame:
        """Where the core-seconds of each point went: one row each, one column per part, as shares that add up to 1.

        ``core_s`` has the core-seconds from call to result, mean of the runs. Points without a timeline have no row.
        """
        rows = []
        for curve in self.study.curves:
            for point in curve.points:
                timed = [run.timelines for run in self.study.runs_of(curve, point.n_workers) if run.timelines]
                if timed:
                    core_s = sum(losses(timelines).total_ns for timelines in timed) / len(timed) / 1e9
                    shares = {part: point.lost.get(part, 0.0) for part in PARTS}
                    rows.append({**_about(curve, point), "core_s": core_s, **shares})
        return _frame(rows, [*_OF_POINT, "core_s", *PARTS])

    # ── how it looks ──────────────────────────────────────────────────────────────────────────────────

    def __repr__(self) -> str:
        file = self.recorded
        return f"<Results of {file.experiment}: {len(file.runs)} runs, studies: {len(self.studies)}, {file.path}>"

    def _repr_html_(self) -> str:
        file = self.recorded
        about = f"{file.experiment}, {len(file.runs)} runs in {file.path}"
        try:
            heading, *rows = tables.points(self.study)
        except ValueError as error:
            return views.paragraph(about) + views.paragraph(str(error))
        lines = [about, str(self.study), *tables.bases(self.study.curves)]
        return "".join(map(views.paragraph, lines)) + views.table(heading, rows) + views.bullets(self.verdicts)


_OF_POINT = ("curve", "backend", "n_workers", "n_nodes", "n_runs", "beyond")


def _about(curve: Curve, point: Point) -> dict[str, object]:
    told = (curve.label, curve.backend, point.n_workers, point.n_nodes, point.wall.n, point.beyond)
    return dict(zip(_OF_POINT, told, strict=True))


def _row(curve: Curve, point: Point) -> dict[str, object]:
    return {
        **_about(curve, point),
        **_ends("wall_s", point.wall.median),
        **_ends("speedup", point.speedup),
        **_ends("efficiency", point.efficiency),
        **_ends("karp_flatt", point.karp_flatt),
        "wall_is_range": point.wall.median.is_range,
        "speedup_is_range": point.speedup.is_range,
    }


def _ends(name: str, interval: Interval | None) -> dict[str, float]:
    nan = float("nan")
    value, low, high = (nan, nan, nan) if interval is None else (interval.value, interval.low, interval.high)
    return {name: value, f"{name}_low": low, f"{name}_high": high}


def _frame(rows: Iterable[Mapping[str, object]], columns: Iterable[str]) -> DataFrame:
    try:
        from pandas import DataFrame
    except ImportError as error:
        raise ImportError(
            "tables of a record need pandas; pip install 'parcompute[pandas]', or take the typed values of "
            "`study`, `compared` and `recorded`"
        ) from error
    return DataFrame(list(rows), columns=list(columns))
