"""What a scaling curve means, in a sentence that says no more than the runs tell."""

from __future__ import annotations

import numpy as np

from parcompute.analysis.fits import Fit
from parcompute.analysis.scaling import Curve, Point


def verdict(curve: Curve) -> str:
    """Say in a sentence how far a way of running scales, and what limits it.

    It says "scales to" only where the interval of the speedup excludes 1.
    """
    usable = [point for point in curve.points if not point.beyond] or list(curve.points)
    best = max(usable, key=lambda point: point.speedup.value)
    last = usable[-1]
    said = [_reach(best, curve)]
    if last is not best:
        said[0] += f", and not further: {last.speedup.value:.2f}× on {last.n_workers}"
    if best.efficiency.excludes(1.0) and best.efficiency.value > 1:
        said.append("more than ideal: the base may be no baseline, or its data do not fit its caches")
    if curve.fit is not None:
        said.append(_limit(curve.fit))
    if loss := _largest_loss(best):
        said.append(loss)
    if summands := _consists(best):
        said.append(summands)
    if any(point.baseline_broken for point in curve.points):
        said.append("kernels ran faster than in the serial reference (CompS > 1): the baseline is broken")
    if curve.left_out:
        said.append("left out: " + ", ".join(f"{n} {reason}" for reason, n in curve.left_out.items()))
    return f"{curve.label}: {'; '.join(said)}"


def _reach(best: Point, curve: Curve) -> str:
    S, where = best.speedup, f"{best.n_workers} CPU{'s' * (best.n_workers > 1)}"
    if best.n_nodes > 1:
        where += f" of {best.n_nodes} nodes"
    spread = f"{'range' if S.is_range else '95 %'} {S.low:.2f}–{S.high:.2f}"
    details = f"({spread}; base: {curve.base})"
    if best.beyond:
        cpus = f"{curve.n_cpus} CPUs{f' of each of {best.n_nodes} nodes' * (best.n_nodes > 1)}"
        return f"{S.value:.2f}× with {best.n_workers} workers on {cpus} {details}"
    if S.is_range:
        return f"{S.value:.2f}× on {where} {details}, too few runs to be sure"
    if not S.excludes(1.0):
        return f"no faster than its base: {S.value:.2f}× on {where} {details}"
    if S.value < 1:
        return f"slower than its base: {S.value:.2f}× on {where} {details}"
    return f"scales to {S.value:.2f}× on {where} {details}"


def _limit(found: Fit) -> str:
    if not found.identifiable:
        return f"serial fraction {found.reason}"
    if found.lack_of_fit is not None and found.lack_of_fit[1] < 0.01:
        return f"{found.law.capitalize()}'s law does not hold (lack of fit p = {found.lack_of_fit[1]:.1g})"
    if "s" in found.boundary:
        low, high = found.intervals.get("s", (0.0, float("nan")))
        return "no serial fraction seen" if np.isnan(high) else f"serial fraction below {100 * high:.2g} % (95 %)"
    spread = ""
    if "s" in found.intervals:
        low, high = found.intervals["s"]
        spread = f" (95 % {100 * low:.2g}–{100 * high:.2g})"
    limit = f", so at most {found.parameters['S_max']:.0f}×" if "S_max" in found.parameters else ""
    return f"serial fraction {100 * found.parameters['s']:.2g} %{spread}{limit}"


def _largest_loss(point: Point) -> str:
    share, name = max(((share, name) for name, share in point.lost.items() if name != "useful"), default=(0.0, ""))
    return f"{100 * share:.1f} % lost to {name}" if share >= 0.001 else ""


def _consists(point: Point) -> str:
    """Say what the apparent serial fraction consists of (Karp & Flatt 1990, additive), largest first."""
    if not point.fraction:
        return ""
    total = sum(point.fraction.values())
    largest = sorted(point.fraction, key=lambda name: -abs(point.fraction[name]))[:3]
    told = [f"{100 * point.fraction[name]:.1f} {_CAUSES.get(name, name)}" for name in largest]
    rest = 100 * (total - sum(point.fraction[name] for name in largest))
    return f"apparent serial fraction {100 * total:.1f} %: {', '.join([*told, f'{rest:.1f} other'])}"


_CAUSES = {
    "slowdown": "slower compute",
    "lost_cpu": "not on a CPU",
    "dispatch": "communication",
    "transfer": "between nodes",
    "return": "results",
    "tail": "imbalance",
    "base": "of the base itself",
}
