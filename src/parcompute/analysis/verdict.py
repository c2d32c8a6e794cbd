"""What a scaling curve means: first in words for people, then the numbers behind them.

It says no more than the runs tell: "faster" and "slower" only where the interval of the speed-up excludes 1.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from parcompute.analysis.fits import Fit
from parcompute.analysis.scaling import Curve, Point
from parcompute.values.intervals import Interval
from parcompute.values.parts import PARTS, WORDS

# From here on a loss is told, and below it the ideal is as good as reached.
_NOTABLE = 0.01

# A limit that is farther off limits nobody.
_FAR = 1000


@dataclass(frozen=True, slots=True)
class Verdict:
    """What is to be said of one way of running.

    Attributes
    ----------
    sentence : str
        What matters, in words: how much faster, whether more workers help, what is missing.
    numbers : tuple of str
        Behind it: speed-up, efficiency, base, the fitted law, what the serial fraction consists of, what was left out.
    """

    sentence: str
    numbers: tuple[str, ...]

    def __str__(self) -> str:
        return "\n".join([self.sentence, *(f"  {line}" for line in self.numbers)])


def verdict(curve: Curve, experiment: str = "this") -> Verdict:
    """Say how far a way of running scales, and what limits it.

    Parameters
    ----------
    curve : Curve
        The way.
    experiment : str
        What was run.
    """
    usable = [point for point in curve.points if not point.beyond] or list(curve.points)
    best, last = max(usable, key=lambda point: point.speedup.value), usable[-1]
    said = [f"{curve.label}: {_reach(best, curve, experiment)}"]
    if last is not best:
        said.append(_beyond_best(best, last))
    if best.efficiency.excludes(1.0) and best.efficiency.value > 1:
        said.append("That is more than ideal: the base may be no baseline, or its data do not fit its caches.")
    elif missing := _missing(best):
        said.append(missing)
    if limit := _limit_in_words(curve.fit):
        said.append(limit)
    if any(point.baseline_broken for point in curve.points):
        said.append("Its kernels ran faster than in the serial reference, which is none then: measure it again.")
    if wrong := curve.left_out.get("not verified", 0):
        said.append(f"{_runs(wrong)} gave a wrong result and {'are' if wrong > 1 else 'is'} in no number.")
    return Verdict(" ".join(said), tuple(_numbers(best, last, curve)))


# ── in words ──────────────────────────────────────────────────────────────────────────────────────────


def _reach(best: Point, curve: Curve, experiment: str) -> str:
    S, E, where = best.speedup, best.efficiency, _where(best, curve)
    if best.n_workers == curve.base.n_workers and curve.base.kind != "best_serial":
        alone = ", the only number of workers that was measured" if len(curve.points) == 1 else ", as fast as it gets"
        return f"{experiment} takes {best.wall.median.value:.3g} s {where}{alone}."
    if best.n_workers == 1:
        times = f"{1 / S.value:.2f} times as long on one worker as {_than(curve)}"
        return f"{experiment} takes {times}{_unsure(S)}."
    if curve.kind == "weak":
        ideal, times = f"ideal: {best.n_workers // curve.base.n_workers}", _times(S.value, E.value)
        as_before = f"{times} times the work of {_than(curve)} in the same time ({ideal}){_unsure(S)}"
        return f"{where}, {experiment} does {as_before}."
    if S.is_range or (S.excludes(1.0) and S.value > 1):
        ideal = f"ideal: {best.n_workers / curve.base.n_workers:g}"
        times = f"{_times(S.value, E.value)} times as fast as {_than(curve)} ({ideal}){_unsure(S)}"
        return f"{where}, {experiment} runs {times}."
    if not S.excludes(1.0):
        return f"{experiment} is no faster than {_than(curve)}, as far as the runs tell: {S.value:.2f} times {where}."
    return (
        f"more workers make it slower: {where}, {experiment} takes {1 / S.value:.2g} times as long as {_than(curve)}."
    )


def _times(value: float, efficiency: float) -> str:
    """Return a speed-up with as many digits as tell it from the ideal."""
    return f"{value:.3g}" if value >= 10 or 0.95 < efficiency < 1.05 else f"{value:.2g}"


def _than(curve: Curve) -> str:
    if curve.base.kind == "best_serial":
        return "without parallelism"
    return "one worker" if curve.base.n_workers == 1 else f"{curve.base.n_workers} workers"


def _unsure(S: Interval) -> str:
    return ", from too few rounds to be sure" if S.is_range else ""


def _where(point: Point, curve: Curve) -> str:
    workers = f"on {point.n_workers} worker{'s' * (point.n_workers > 1)}"
    if point.beyond:
        return (
            f"{workers} that share {curve.n_cpus} CPU{'s' * (curve.n_cpus > 1)}{' of each node' * (point.n_nodes > 1)}"
        )
    return f"{workers} of {point.n_nodes} nodes" if point.n_nodes > 1 else workers


def _beyond_best(best: Point, last: Point) -> str:
    if last.speedup.high < best.speedup.low and not last.speedup.is_range:
        return f"From there on more workers make it slower: {last.speedup.value:.2g} times on {last.n_workers}."
    return f"More workers gain nothing: {last.speedup.value:.2g} times on {last.n_workers}."


def _missing(point: Point) -> str:
    """Say what most of the core time that computes nothing goes to."""
    if point.n_workers > 1 and not point.lost:
        return "What the rest goes to is not known: no run has a timeline." if point.efficiency.value < 0.95 else ""
    share, part = max(((share, name) for name, share in point.lost.items() if name != "useful"), default=(0.0, ""))
    if share < _NOTABLE or point.n_workers == 1:
        return ""
    return f"What is missing is mostly {WORDS[part]}, {100 * share:.0f} % of the core time ({PARTS[part]})."


def _limit_in_words(found: Fit | None) -> str:
    if found is None or not found.identifiable or _refuted(found) or "s" in found.boundary:
        return ""
    if (peak := found.parameters.get("N_peak", np.inf)) < _FAR:
        return f"By the fitted law it is fastest on about {peak:.0f} workers."
    if "s" not in found.intervals or (most := found.parameters.get("S_max", np.inf)) > _FAR:
        return ""
    return f"By the fitted law no number of workers makes it more than {most:.0f} times as fast."


# ── in numbers ────────────────────────────────────────────────────────────────────────────────────────


def _numbers(best: Point, last: Point, curve: Curve) -> list[str]:
    lines = [_speedup(best)]
    if last is not best:
        lines.append(_speedup(last))
    lines.append(f"base: {curve.base}")
    if curve.fit is not None:
        lines.append(_limit(curve.fit))
    if consists := _consists(best):
        lines.append(consists)
    if any(point.baseline_broken for point in curve.points):
        lines.append("CompS > 1: kernels took longer in the serial reference")
    if curve.left_out:
        lines.append("left out: " + ", ".join(f"{n} {reason}" for reason, n in curve.left_out.items()))
    if not curve.counters_known:
        lines.append("whether others used the machine meanwhile is not known: it has no counters for it")
    return lines


def _speedup(point: Point) -> str:
    S, E = point.speedup, point.efficiency.scaled(100)
    kind, n = "range" if S.is_range else "95 %", len(point.speedups)
    disturbed = f", {point.n_disturbed} of them disturbed" if point.n_disturbed else ""
    how = f", within {n} round{'s' * (n > 1)}{disturbed}" if n else ""
    return (
        f"on {point.n_workers}: {S.value:.2f}× ({kind} {S.low:.2f}–{S.high:.2f}{how}), "
        f"efficiency {E.value:.1f} % ({E.low:.1f}–{E.high:.1f})"
    )


def _limit(found: Fit) -> str:
    law = "USL" if found.law == "usl" else f"{found.law.capitalize()}'s law"
    if not found.identifiable:
        return f"{law}: {'serial fraction ' * (found.law != 'usl')}{found.reason}"
    if _refuted(found) and found.lack_of_fit is not None:
        return f"{law} does not hold (lack of fit p = {found.lack_of_fit[1]:.1g})"
    if "s" in found.boundary:
        _, high = found.intervals.get("s", (0.0, float("nan")))
        told = "no serial fraction seen" if np.isnan(high) else f"serial fraction below {100 * high:.2g} % (95 %)"
        return f"{law}: {told}"
    if "s" not in found.parameters:
        return f"{law}: {', '.join(f'{name} {value:.3g}' for name, value in found.parameters.items())}"
    spread = ""
    if "s" in found.intervals:
        low, high = found.intervals["s"]
        spread = f" (95 % {100 * low:.2g}–{100 * high:.2g})"
    limit = f", so at most {found.parameters['S_max']:.0f}×" if "S_max" in found.parameters else ""
    return f"{law}: serial fraction {100 * found.parameters['s']:.2g} %{spread}{limit}"


def _refuted(found: Fit) -> bool:
    return found.lack_of_fit is not None and found.lack_of_fit[1] < 0.01


def _consists(point: Point) -> str:
    """Say what the apparent serial fraction consists of (Karp & Flatt 1990, additive), largest first."""
    if not point.fraction:
        return ""
    total = sum(point.fraction.values())
    largest = sorted(point.fraction, key=lambda name: -abs(point.fraction[name]))[:3]
    told = [f"{100 * point.fraction[name]:.1f} {WORDS.get(name, 'of the base itself')}" for name in largest]
    rest = 100 * (total - sum(point.fraction[name] for name in largest))
    return f"apparent serial fraction {100 * total:.1f} %: {', '.join([*told, f'{rest:.1f} other'])}"


def _runs(n: int) -> str:
    return f"{n} run{'s' * (n > 1)}"
