"""Say under a figure what was measured, how, where, and what was left out."""

from __future__ import annotations

from collections.abc import Sequence

from parcompute.analysis.fits import Fit
from parcompute.analysis.studies import Study, why_left_out
from parcompute.figures.curves import looks, refuted
from parcompute.figures.ledgers import Bar
from parcompute.record.schema import SCHEMA
from parcompute.values.parts import PARTS, WORDS


def title(chosen: Study) -> str:
    """Name the experiment and the kind of scaling."""
    return f"{chosen.experiment}, {chosen.kind} scaling"


def base_line(chosen: Study) -> str:
    """Name the base case with its absolute time, unit and interval; several where each way has its own."""
    return "base: " + "; ".join(dict.fromkeys(f"{curve.base}, n = {curve.base.wall.n}" for curve in chosen.curves))


def of_curves(chosen: Study) -> str:
    """Return the caption of speedup and efficiency."""
    return " ".join(filter(None, [_marks(chosen, dots=True), _laws(chosen), conditions(chosen)]))


def of_points(chosen: Study) -> str:
    """Return the caption of points of curves without their laws."""
    return f"{_marks(chosen, dots=False)} {conditions(chosen)}"


def _marks(chosen: Study, *, dots: bool) -> str:
    points = [point for curve in chosen.curves for point in curve.points]
    within = any(len(point.speedups) for point in points)
    how, dot = ("within rounds (Hodges & Lehmann 1963)", "rounds") if within else ("ratios of median times", "runs")
    said = [measured(chosen), f"Marks: {how}{f'; small dots: {dot}' * dots}."]
    kinds = {point.speedup.is_range for point in points if point.speedup.low < point.speedup.high}
    if False in kinds:
        said.append("Bars with caps: 95 % interval.")
    if True in kinds:
        said.append("Dotted bars: range, too few rounds for an interval.")
    if n := max((point.n_disturbed for point in points), default=0):
        said.append(f"Marks keep up to {n} disturbed round{'s' * (n > 1)}: fewer than six others are there.")
    if any(point.beyond for point in points):
        said.append(f"Hollow: {_beyond(chosen)}, not fitted.")
    return " ".join(said)


def of_ledger(chosen: Study, bars: Sequence[Bar]) -> str:
    """Return the caption of the ledger."""
    said = [measured(chosen)]
    if not bars:
        return " ".join([*said, conditions(chosen)])
    if n_thinned := sum(len(curve.points) for curve in chosen.curves) - len(bars):
        said.append(f"{n_thinned} bars of other numbers of workers are not drawn.")
    said.append("Core-seconds: workers × time from call to result, mean of the runs.")
    if any(_has_reference(chosen, i) for i in range(len(chosen.curves))):
        said.append(f"{WORDS['useful'].capitalize()}: what the same kernels take in the base case.")
    else:
        said.append("No serial reference: computing is CPU time inside kernels, and that it is slower cannot be seen.")
    worst = [(part, min(bars, key=lambda bar: bar.shares.get(part, 0.0))) for part in PARTS]
    negative = [
        f"{WORDS[part]} ({bar.way} on {bar.n_workers}: −{-100 * bar.shares[part]:.1f} %)"
        for part, bar in worst
        if bar.shares.get(part, 0.0) < -0.0005
    ]
    if negative:
        said.append(f"Left of zero, less than in the base case: {', '.join(negative)}.")
    if any(bar.beyond for bar in bars):
        said.append(f"* {_beyond(chosen)}.")
    return " ".join([*said, conditions(chosen)])


def measured(chosen: Study) -> str:
    """Say what ran, how often, and how many runs are left out, and why."""
    curves, runs = chosen.curves, chosen.runs
    ways = ["serial"] * any(run.configuration.backend == "serial" for run in runs)
    ways += dict.fromkeys(curve.backend for curve in curves)
    how = list(dict.fromkeys(c.schedule for c in curves if c.schedule))
    how += dict.fromkeys(c.start_method for c in curves if c.start_method)
    how += dict.fromkeys(
        f"{c.backend} with {c.threads_per_worker} threads each" for c in curves if c.threads_per_worker > 1
    )
    how += _on_nodes(chosen)
    n_rounds = len({run.round for run in runs})
    share = " per worker" if chosen.kind == "weak" else ""
    factors = f" ({', '.join(how)})" if how else ""
    said = (
        f"{chosen.n_items:,} items{share}, seed {chosen.seed}; {', '.join(ways)}{factors}; "
        f"{n_rounds} round{'s' * (n_rounds > 1)} in random order, {len(runs)} run{'s' * (len(runs) > 1)}, "
    )
    reasons = [f"{n} {reason}{_example(chosen, reason)}" for reason, n in chosen.left_out.items()]
    said += f"{sum(chosen.left_out.values())} left out: {', '.join(reasons)}." if reasons else "none left out."
    if chosen.n_disturbed:
        said += f" {chosen.n_disturbed} disturbed ones have no others beside them: their times are ranges."
    if chosen.n_not_shown:
        said += f" {chosen.n_not_shown} runs of the file under other conditions, seeds or sizes are not shown."
    return said


def conditions(chosen: Study) -> str:
    """Say by which clock, on which machine, and by which version."""
    at = chosen.provenance
    clock = f"Clock: {at.clock.removeprefix('time.')}" if at.clock else "Clock unknown"
    cpus = f"{at.usable_cpus} usable CPUs" if at.usable_cpus > 0 else "usable CPUs unknown"
    days = sorted({run.started_utc[:10] for run in chosen.runs})
    when = " to ".join(dict.fromkeys([days[0], days[-1]]))
    return (
        f"{clock}, from call to result, start-up of workers not included. "
        f"{at.cpu_model or 'CPU model unknown'}, {cpus}; {SCHEMA}, conditions {chosen.conditions[:8]}, {when}."
    )


def _on_nodes(chosen: Study) -> list[str]:
    """Say on how many nodes which numbers of workers were, by backend."""
    found: dict[tuple[str, int], set[int]] = {}
    for run in chosen.runs:
        c = run.configuration
        found.setdefault((c.backend, c.n_nodes), set()).add(c.n_workers)
    return [
        f"{backend} with {', '.join(map(str, sorted(counts)))} workers on {n_nodes} nodes"
        for (backend, n_nodes), counts in sorted(found.items())
        if n_nodes > 1
    ]


def _beyond(chosen: Study) -> str:
    cores = chosen.curves[0].n_cpus < chosen.provenance.usable_cpus
    several = any(run.configuration.n_nodes > 1 for run in chosen.runs)
    return f"more workers than {'cores' if cores else 'usable CPUs'}{' of the nodes' * several}"


def _example(chosen: Study, reason: str) -> str:
    found = [run.disturbed for run in chosen.runs if why_left_out(run) == reason == "disturbed"]
    return f" ({'as ' * (len(set(found)) > 1)}{max(found, key=found.count)})" if found else ""


def _laws(chosen: Study) -> str:
    """Say what the lines are, or why there is none; ways of which the same holds are told together."""
    said: dict[str, list[str]] = {}
    for curve, look in zip(chosen.curves, looks(chosen.curves), strict=True):
        if curve.fit is not None:
            general, own = _law(curve.fit)
            said.setdefault(general, []).append(f"{look.name} {own}".strip())
    return " ".join(f"{general}: {', '.join(names)}." for general, names in said.items())


def _law(fit: Fit) -> tuple[str, str]:
    """Return what may hold for several ways, and what holds for this one."""
    law = f"{fit.law.capitalize()}'s law"
    if not fit.identifiable:
        return f"{law} {fit.reason}", ""
    if refuted(fit) and fit.lack_of_fit is not None:
        return f"{law} does not hold (dashed; lack of fit)", f"p = {fit.lack_of_fit[1]:.1g}"
    s = f"{100 * fit.parameters['s']:#.3g} %"
    if "s" not in fit.intervals:
        return f"{law}, serial fraction (too few rounds for an interval)", s
    low, high = (f"{100 * s:#.3g}" for s in fit.intervals["s"])
    if "s" in fit.boundary:
        return f"{law}, serial fraction (band: its 95 % interval)", f"below {high} %"
    return f"{law}, serial fraction (band: its 95 % interval)", f"{s} ({low}–{high})"


def _has_reference(chosen: Study, i: int) -> bool:
    base = chosen.curves[i].base
    return (
        chosen.kind == "strong"
        and base.n_workers == 1
        and any(
            run.timelines and run.configuration.backend == base.backend and run.configuration.n_workers == 1
            for run in chosen.runs
        )
    )
