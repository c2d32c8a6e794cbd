"""What a study found, as a table of plain text: times, speed-ups, efficiencies, with units and intervals."""

from __future__ import annotations

import csv
import dataclasses
import io
import math
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from parcompute.analysis.choice import Compared
from parcompute.analysis.fits import Fit
from parcompute.analysis.laws import LAWS
from parcompute.analysis.scaling import Curve
from parcompute.analysis.studies import Study
from parcompute.analysis.verdict import Verdict, verdict
from parcompute.record import schema
from parcompute.values.intervals import Interval, summarise
from parcompute.values.sweep import Run


def table(study: Study) -> list[str]:
    """Return the lines of a study's table: the study, the base, a row per point, what was left out."""
    curves = study.curves
    if not curves:
        return [str(study), *_serial_only(study), *_left_out(study)]
    lines = [str(study), *_verified(study), *bases(curves), *aligned(points(study))]
    if any(point.beyond for curve in curves for point in curve.points):
        of_each = " of each node" if _several(curves) else ""
        lines.append(f"* more workers than {study.n_cpus} CPU{'s' * (study.n_cpus > 1)}{of_each}: in no fit")
    return lines + _left_out(study)


def points(study: Study) -> list[tuple[str, ...]]:
    """Return a heading, and a row per point of the curves: times, speed-ups and efficiencies with their intervals."""
    several = _several(study.curves)
    shape = ("workers", "nodes") if several else ("workers",)
    rows: list[tuple[str, ...]] = [("backend", *shape, "runs", "time (s)", "speed-up", "efficiency (%)")]
    for curve in study.curves:
        for point in curve.points:
            rows.append(
                (
                    curve.label,
                    f"{point.n_workers}{'*' if point.beyond else ''}",
                    *((str(point.n_nodes),) if several else ()),
                    str(point.wall.n),
                    _shown(point.wall.median),
                    _shown(point.speedup, 2),
                    _shown(point.efficiency.scaled(100), 1),
                )
            )
    return rows


def of_laws(found: Mapping[str, Compared]) -> list[str]:
    """Return lines that put the fits of several curves side by side: a row per curve and law that it prefers.

    Without a preferred law the first one that the points tell is shown, in brackets.
    """
    rows: list[tuple[str, ...]] = [("curve", "points", "workers", "law", "parameters")]
    for name, compared in found.items():
        told = [each for each in compared.fits.values() if each.identifiable]
        shown = compared.fits[compared.preferred] if compared.preferred else next(iter(told), None)
        first = next(iter(compared.fits.values()))
        law = shown.law if shown else "none"
        rows.append(
            (
                name,
                str(len(first.times_s)),
                f"{first.n_workers.min():g}–{first.n_workers.max():g}",
                law if compared.preferred else f"({law})",
                "; ".join(_parameters(shown)) if shown else first.reason,
            )
        )
    return aligned(rows)


def _parameters(fit: Fit) -> list[str]:
    told = []
    for name in LAWS[fit.law].parameters:
        low, high = fit.intervals.get(name, (math.nan, math.nan))
        interval = f" (95 % {low:.3g}–{high:.3g})" if not math.isnan(low) else ""
        told.append(f"{name} {fit.parameters[name]:.4g}{interval}")
    return told


def _several(curves: Sequence[Curve]) -> bool:
    return any(point.n_nodes > 1 for curve in curves for point in curve.points)


def csv_of(runs: Iterable[tuple[Path, Run]]) -> str:
    """Return runs as comma-separated text with a heading: one row each, as in the file.

    Text that a spreadsheet would compute, since it begins with =, +, - or @, has an apostrophe before it.
    """
    stream = io.StringIO()
    writer = csv.DictWriter(stream, ["file", *(name for name, _, _ in schema.FIELDS)], lineterminator="\n")
    writer.writeheader()
    for path, run in runs:
        row = {"file": str(path), **schema.row_of(run)}
        writer.writerow({name: _inert(value) if isinstance(value, str) else value for name, value in row.items()})
    return stream.getvalue()


def _inert(text: str) -> str:
    return f"'{text}" if text.startswith(("=", "+", "-", "@", "\t", "\r", "\n")) else text


def as_dict(study: Study) -> dict[str, Any]:
    """Return a study as plain values for `json`; what is not a number is None."""
    told = {
        "experiment": study.experiment,
        "kind": study.kind,
        "n_items": study.n_items,
        "seed": study.seed,
        "conditions": study.conditions,
        "provenance": study.provenance.as_dict(),
        "n_runs": len(study.runs),
        "left_out": study.left_out,
        "n_cpus": study.n_cpus,
        "curves": [{**dataclasses.asdict(curve), "label": curve.label} for curve in study.curves],
        "verdicts": [str(each) for each in verdicts(study)],
    }
    plain: dict[str, Any] = _plain(told)
    return plain


def _plain(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {str(key): _plain(part) for key, part in value.items()}
    if isinstance(value, (list, tuple)):
        return [_plain(part) for part in value]
    if isinstance(value, np.ndarray):
        return _plain(value.tolist())
    if isinstance(value, float) and not math.isfinite(value):
        return None
    return value


def verdicts(study: Study) -> list[Verdict]:
    """Return what there is to say of each way of running: how far it scales, and what the rest was lost to."""
    return [verdict(curve, study.experiment) for curve in study.curves]


def _verified(study: Study) -> list[str]:
    """Say what the results are, how far from the truth, and that they are the same."""
    runs = [run for run in study.runs if run.verified]
    if not runs or len({run.digest for run in runs}) > 1:  # the second for weak scaling, whose problems differ
        return []
    run = runs[0]
    told = f"verified: {len(runs)} runs gave the same bits (sha256 {run.digest[:12]}…)"
    if not math.isfinite(run.value):
        return [told]
    return [f"{told}; {run.value:.10g} is {run.error:.2g} off the truth, {run.tolerance:.2g} allowed"]


def bases(curves: Sequence[Curve]) -> list[str]:
    """Say what speed-ups are relative to: once, where all ways of running have the same base."""
    if len({str(curve.base) for curve in curves}) == 1:
        return [f"base: {curves[0].base}"]
    return [f"base of {curve.label}: {curve.base}" for curve in curves]


def _serial_only(study: Study) -> list[str]:
    walls_s: dict[str, list[float]] = {}
    for run in study.counted:
        walls_s.setdefault(run.configuration.way, []).append(run.wall_s)
    if not walls_s:
        return ["no run counts: none is both verified and undisturbed; make more rounds when the machine is quiet"]
    if len(walls_s) == 1:
        return [f"serial runs only, nothing to compare them with: {summarise(*walls_s.values()).median} s"]
    rows = [(way, str(len(times)), _shown(summarise(times).median)) for way, times in sorted(walls_s.items())]
    return aligned([("way", "runs", "time (s)"), *rows])


def _left_out(study: Study) -> list[str]:
    """Say how many runs are in no number of the table, and why."""
    reasons = ", ".join(f"{n} {reason}" for reason, n in study.left_out.items())
    told = [f"left out of {len(study.runs)} runs: {reasons}"] if reasons else []
    if study.n_disturbed:
        told.append(
            f"{study.n_disturbed} runs were disturbed and have no undisturbed ones beside them: their times are ranges"
        )
    return told


def _shown(interval: Interval, digits: int | None = None) -> str:
    if digits is None:
        return str(interval)
    kind = "range" if interval.is_range else "95 %"
    return f"{interval.value:.{digits}f} ({kind} {interval.low:.{digits}f}–{interval.high:.{digits}f})"


def aligned(rows: Iterable[Sequence[str]]) -> list[str]:
    """Return rows as lines: pad each column to its widest cell, text to the left and numbers to the right."""
    rows = list(rows)
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return [
        "  ".join(
            cell.ljust(w) if i == 0 else cell.rjust(w) for i, (cell, w) in enumerate(zip(row, widths, strict=True))
        )
        for row in rows
    ]
