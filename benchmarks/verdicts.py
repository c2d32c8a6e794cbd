"""What a row has to reach, and whether it has: values and their verdicts, without any measuring."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from parcompute.values.intervals import Interval, ratio, summarise

Values = Mapping[str, Sequence[float]]


@dataclass(frozen=True, slots=True)
class Verdict:
    """Whether a target is reached; None where it cannot be told."""

    reached: bool | None
    text: str
    ratio: Interval | None = None

    def __str__(self) -> str:
        return {True: "reached: ", False: "not reached: ", None: "not known: "}[self.reached] + self.text


@dataclass(frozen=True, slots=True)
class AtMost:
    """The median of `label` is at most `limit` (in the row's unit times `scale`)."""

    label: str
    limit: float
    unit: str = ""
    scale: float = 1.0

    def judge(self, values: Values) -> Verdict:
        """Compare the median."""
        if not values.get(self.label):
            return Verdict(None, f"{self.label} has no samples")
        median = summarise(values[self.label]).median.value * self.scale
        return Verdict(median <= self.limit, f"{median:.3g} against ≤ {self.limit:g} {self.unit}".rstrip())


@dataclass(frozen=True, slots=True)
class AtMostTimes:
    """The median of `label` is at most `factor` times that of the best of `others` that has samples."""

    label: str
    factor: float
    others: tuple[str, ...]

    def judge(self, values: Values) -> Verdict:
        """Compare the medians."""
        if not values.get(self.label):
            return Verdict(None, f"{self.label} has no samples")
        medians = {name: summarise(values[name]).median.value for name in self.others if values.get(name)}
        if not medians:
            return Verdict(None, f"none of {', '.join(self.others)} has samples")
        best = min(medians, key=lambda name: medians[name])
        found = ratio(values[self.label], values[best])
        kind = "range" if found.is_range else "95 %"
        text = f"{found.value:.3g} × {best} ({kind} {found.low:.3g}–{found.high:.3g}) against ≤ {self.factor:g} ×"
        return Verdict(found.value <= self.factor, text, found)


Target = AtMost | AtMostTimes


def all_reached(verdicts: Sequence[Verdict]) -> bool | None:
    """Return whether all are reached; None if one is not known and none is missed."""
    if any(verdict.reached is False for verdict in verdicts):
        return False
    return None if not verdicts or any(verdict.reached is None for verdict in verdicts) else True
