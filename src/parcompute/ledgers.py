"""Draw on given axes where the core-seconds went.

     0 %                                    100 %   core-s
     processes
   1 ┃ useful ░░░░░░░░░░░░░░░░░░░░░░░░░░░░░░▒▒┃     0.126
   2 ┃ useful ░░░░░░░░░░░░░░▒▒▒ losses ▒▒▒▒▒▒▒┃     0.155

Like `figures` it opens no file, knows no page and changes no setting.
"""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from parcompute.figures import beside
from parcompute.losses import PARTS

if TYPE_CHECKING:
    from matplotlib.axes import Axes

# Colour, and hatch for print without colour.
LOOKS = {
    "useful": ("#DADADA", ""),
    "prologue": ("#000000", ""),
    "startup": ("#56B4E9", "//"),
    "dispatch": ("#0072B2", "/////"),
    "lost_cpu": ("#D55E00", "xxxxx"),
    "slowdown": ("#E69F00", "\\\\\\\\\\"),
    "return": ("#009E73", "-----"),
    "tail": ("#CC79A7", "|||||"),
    "drain": ("#F0E442", "+++++"),
}


@dataclass(frozen=True, slots=True)
class Bar:
    """The ledger of one way of running on one number of workers.

    Attributes
    ----------
    way : str
        Its name.
    n_workers : int
        N.
    beyond : bool
        More workers than CPUs.
    core_s : float
        Core-seconds of a run, mean of the runs.
    shares : mapping of str to float
        Of the core-seconds, by part; they add up to 1, and some may be negative.
    """

    way: str
    n_workers: int
    beyond: bool
    core_s: float
    shares: Mapping[str, float]


def ledger(ax: Axes, bars: Sequence[Bar]) -> None:
    """Draw where the core-seconds went: one bar per way and number of workers, its parts adding up to 100 %.

    What is negative, less than in the serial reference, stands left of zero.

    Parameters
    ----------
    ax : Axes
        Where to draw; `ledger_rows` tells how many rows it needs.
    bars : sequence of Bar
        By way, and by number of workers within.
    """
    if not bars:
        ax.set_axis_off()
        ax.text(0.5, 0.5, "no run has a timeline", transform=ax.transAxes, ha="center", va="center")
        return
    rows, heads = _rows(bars)
    for name, (colour, hatch) in LOOKS.items():
        share = 100 * np.array([bar.shares.get(name, 0.0) for bar in bars])
        before = 100 * np.array([_before(bar.shares, name) for bar in bars])
        ax.barh(rows, share, 0.78, left=before, color=colour, hatch=hatch, ec="white", lw=0.3, label=name)
    for y, way in heads:
        beside(ax, way, (0, y), "data", (3, 0), ha="left", va="center_baseline")
    for y, bar in zip(rows, bars, strict=True):
        told = f"{bar.core_s:#.3g}" if bar.core_s < 100 else f"{bar.core_s:.0f}"
        beside(ax, told, (1, y), ax.get_yaxis_transform(), (28, 0), ha="right", va="center_baseline")
    beside(ax, "core-s", (1, 1), ax.transAxes, (28, 2), ha="right", va="bottom")
    low = min((_before(bar.shares, "") for bar in bars), default=0.0)
    ax.set_xlim(min(0.0, 100 * low * 1.05), 100 - min(0.0, 100 * low * 1.05))
    for x in (0, 100):
        ax.axvline(x, color="0.25", lw=0.7, zorder=3)
    ax.set_ylim(ledger_rows(bars) - 0.5, -0.5)
    ax.set_yticks(rows, [f"{bar.n_workers}{'*' * bar.beyond}" for bar in bars])
    ax.tick_params(axis="y", length=0)
    ax.set_ylabel("workers")
    ax.set_xlabel("share of all core-seconds, %")


def ledger_rows(bars: Sequence[Bar]) -> int:
    """Return how many rows `ledger` draws: one per bar, and one above each way for its name."""
    return len(bars) + len(dict.fromkeys(bar.way for bar in bars))


def _rows(bars: Sequence[Bar]) -> tuple[list[int], list[tuple[int, str]]]:
    rows: list[int] = []
    heads: list[tuple[int, str]] = []
    for bar in bars:
        if not heads or heads[-1][1] != bar.way:
            heads.append((len(rows) + len(heads), bar.way))
        rows.append(len(rows) + len(heads))
    return rows, heads


def _before(shares: Mapping[str, float], name: str) -> float:
    """Sum the parts of the same sign that stand between zero and a part; all negative ones for no name."""
    negative = not name or shares.get(name, 0.0) < 0
    between = itertools.takewhile(lambda part: part != name, PARTS)
    return sum(share for part in between if (share := shares.get(part, 0.0)) and (share < 0) == negative)
