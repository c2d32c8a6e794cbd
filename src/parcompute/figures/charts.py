"""Draw on given axes what is no scaling curve: serial fractions, ratios, chunk sizes, sizes, grids, predictions.

Like `figures` it opens no file, knows no page and changes no setting. What is drawn are medians with their intervals.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from parcompute.analysis.scaling import Curve
from parcompute.analysis.simulate import Prediction
from parcompute.figures.curves import ABOVE, beside, edge_of, explain_edges, look_of, looks
from parcompute.values.intervals import Interval, Summary

if TYPE_CHECKING:
    from matplotlib.axes import Axes

_DARK, _GREY = "0.25", "0.6"
_BARS: dict[str, Any] = {"fmt": "none", "elinewidth": 0.9, "capthick": 0.9}


def _interval(
    ax: Axes, x: float, interval: Interval, colour: str, marker: str, *, scale: float = 1, **how: Any
) -> None:
    """Draw a value with its interval; a range is dotted and has no caps, since it is no interval."""
    spread = np.array([[interval.value - interval.low], [interval.high - interval.value]]) * scale
    across = how.pop("across", False)
    place: dict[str, Any] = {"x": [interval.value * scale], "y": [x], "xerr": spread} if across else {
        "x": [x], "y": [interval.value * scale], "yerr": spread
    }  # fmt: skip
    bar = ax.errorbar(**place, ecolor=colour, capsize=0 if interval.is_range else 1.8, zorder=3, **_BARS)
    if interval.is_range:
        bar.lines[2][0].set_linestyle((0, (1, 1)))
    ax.plot(place["x"], place["y"], marker, ms=3.6, mew=0.8, color=colour, zorder=4, **how)


def karp_flatt(ax: Axes, curves: Sequence[Curve]) -> None:
    """Draw the experimentally determined serial fraction against the number of workers.

    Constant: Amdahl's law holds. Rising: an overhead grows with the number of workers (Karp & Flatt 1990).

    Parameters
    ----------
    ax : Axes
        Where to draw.
    curves : sequence of Curve
        Of one problem; points without a serial fraction are left out.
    """
    counts = sorted({p.n_workers for curve in curves for p in curve.points if p.karp_flatt is not None})
    ax.axhline(0, color=_GREY, lw=0.9, zorder=1)
    for i, (curve, look) in enumerate(zip(curves, looks(curves), strict=True)):
        by = 0.5 * ((i + 0.5) / len(curves) - 0.5)
        for j, point in enumerate(p for p in curve.points if p.karp_flatt is not None):
            assert point.karp_flatt is not None
            face = "white" if point.beyond else look.colour
            x = counts.index(point.n_workers) + by
            label = {} if j else {"label": look.name}
            edge = edge_of(curve, point, look)
            _interval(ax, x, point.karp_flatt, look.colour, look.marker, scale=100, mfc=face, mec=edge, **label)
    explain_edges(ax, curves)
    ax.set_xlim(-0.6, len(counts) - 0.4)
    every = -(-len(counts) // 12)
    ax.set_xticks(range(len(counts))[::-every], [str(n) for n in counts[::-every]])
    ax.set_xlabel("workers")
    ax.set_ylabel("apparent serial fraction, %")


def ratios(ax: Axes, rows: Sequence[tuple[str, str, Interval]], reference: str) -> None:
    """Draw times of ways of running over that of one of them, one row each.

    Parameters
    ----------
    ax : Axes
        Where to draw.
    rows : sequence of (name, backend, Interval)
        Ratio of times; below 1 is faster than the reference.
    reference : str
        Name of the way that all are compared with.
    """
    ax.axvline(1, color=_DARK, lw=0.8, zorder=1)
    for i, (_, backend, interval) in enumerate(rows):
        colour, marker = look_of(backend)
        _interval(ax, i, interval, colour, marker, across=True)
    values = [end for _, _, interval in rows for end in (interval.low, interval.high)]
    ax.set_ylim(len(rows) - 0.5, -0.5)
    ax.set_yticks(range(len(rows)), [name for name, _, _ in rows])
    ax.tick_params(axis="y", length=0)
    if max(values, default=1) > 6 * min(values, default=1):
        _log(ax, "x", min([*values, 1]), max([*values, 1]))
    ax.set_xlabel(f"time / time of {reference}, 1 = as fast")


def chunk_sizes(
    ax: Axes, walls: Mapping[str, Sequence[tuple[int, Summary]]], claim_s: Sequence[float], imbalance_s: Sequence[float]
) -> None:
    """Draw time against the size of a chunk, with the cost of claims on one side and imbalance on the other.

    Parameters
    ----------
    ax : Axes
        Where to draw.
    walls : mapping of str to sequence of (chunk_blocks, Summary)
        Seconds by backend.
    claim_s, imbalance_s : sequence of float
        The two asymptotes at the sizes of the first backend.
    """
    for backend, points in walls.items():
        colour, marker = look_of(backend)
        for j, (size, wall) in enumerate(points):
            _interval(ax, size, wall.median, colour, marker, scale=1000, **({} if j else {"label": backend}))
    sizes = [size for size, _ in next(iter(walls.values()))]
    for values, style, name in (
        (claim_s, (0, (4, 2)), "work + claims"),
        (imbalance_s, (0, (1, 1)), "work, uneven end"),
    ):
        ax.plot(sizes, 1000 * np.asarray(values), color=_DARK, lw=0.8, ls=style, label=name, zorder=2)
    ax.set_xscale("log", base=2)
    ax.set_xticks(sizes, [str(size) for size in sizes])
    ax.minorticks_off()
    drawn = [1000 * s.median.value for points in walls.values() for _, s in points]
    drawn += [1000 * value for value in (*claim_s, *imbalance_s)]
    _log(ax, "y", min(drawn), max(drawn))
    ax.set_xlabel("blocks per chunk")
    ax.set_ylabel("time, ms")


def sizes(ax: Axes, walls: Mapping[tuple[str, str], Sequence[tuple[int, Summary]]]) -> None:
    """Draw time against the size of the problem.

    Parameters
    ----------
    ax : Axes
        Where to draw.
    walls : mapping of (name, backend) to sequence of (n_items, Summary)
        Seconds by way of running.
    """
    for i, ((name, backend), points) in enumerate(walls.items()):
        colour, marker = look_of(backend, i)
        for j, (n_items, wall) in enumerate(points):
            _interval(ax, n_items, wall.median, colour, marker, scale=1000, **({} if j else {"label": name}))
    drawn = [(n, 1000 * s.median.value) for points in walls.values() for n, s in points]
    _log(ax, "x", min(n for n, _ in drawn), max(n for n, _ in drawn))
    _log(ax, "y", min(ms for _, ms in drawn), max(ms for _, ms in drawn))
    ax.set_xlabel("items")
    ax.set_ylabel("time, ms")


def grid(ax: Axes, walls: Mapping[tuple[int, int], Summary], usable_cpus: int) -> None:
    """Draw times by workers and BLAS threads as a heat map: each cell has its seconds and its speed-up.

    Parameters
    ----------
    ax : Axes
        Where to draw.
    walls : mapping of (n_workers, blas_threads) to Summary
        Seconds.
    usable_cpus : int
        A cell whose product is larger is marked: it oversubscribes.
    """
    columns, rows = (sorted({key[i] for key in walls}) for i in (0, 1))
    first = walls[columns[0], rows[0]].median.value
    speedup = np.array(
        [[first / walls[n, b].median.value if (n, b) in walls else np.nan for n in columns] for b in rows]
    )
    ax.imshow(speedup, cmap="cividis", aspect="auto", origin="lower", vmin=0)
    for i, b in enumerate(rows):
        for j, n in enumerate(columns):
            if (n, b) in walls:
                light = speedup[i, j] > 0.55 * np.nanmax(speedup)
                over = "\nover-\nsubscribed" if n * b > usable_cpus else ""
                told = f"{walls[n, b].median.value:.3g} s\n{speedup[i, j]:.2f}×{over}"
                ax.text(j, i, told, ha="center", va="center", color="black" if light else "white")
    ax.set_xticks(range(len(columns)), [str(n) for n in columns])
    ax.set_yticks(range(len(rows)), [str(b) for b in rows])
    ax.tick_params(length=0)
    ax.set_xlabel("workers")
    ax.set_ylabel("BLAS threads per worker")


def prediction(ax: Axes, found: Prediction, usable_cpus: int) -> None:
    """Draw predicted speedups against the ideal, with the measured ones where there are any.

    Parameters
    ----------
    ax : Axes
        Where to draw.
    found : Prediction
        What to draw.
    usable_cpus : int
        Up to where it was, or could be, measured.
    """
    counts = sorted({point.n_workers for point in found.points})
    ax.plot(counts, counts, color=_GREY, lw=0.9, zorder=1, label="ideal")
    for i, (schedule, n_nodes) in enumerate(dict.fromkeys((point.schedule, point.n_nodes) for point in found.points)):
        colour, marker = look_of("", i)
        points = [point for point in found.points if (point.schedule, point.n_nodes) == (schedule, n_nodes)]
        name = f"{schedule}, {n_nodes} node{'s' * (n_nodes > 1)}" if found.on_nodes else schedule
        x, y = [p.n_workers for p in points], [p.speedup for p in points]
        ax.plot(x, y, marker, ms=3.2, color=colour, mfc="white", mew=0.8, zorder=3, label=f"{name}, predicted")
        known = [(p.n_workers, found.base_s / p.measured.value) for p in points if p.measured is not None]
        if known:
            ax.plot(*zip(*known, strict=True), marker, ms=3.6, color=colour, zorder=4, label=f"{name}, measured")
    _log(ax, "x", counts[0], counts[-1])
    _log(ax, "y", min(p.speedup for p in found.points), max(1.0, *(p.speedup for p in found.points)))
    if counts[0] < usable_cpus < counts[-1]:
        ax.axvline(usable_cpus, color=_DARK, lw=0.7, ls=(0, (1, 1.5)), zorder=0.5)
        cpus = f"{usable_cpus} usable CPUs{' of a node' * found.on_nodes}"
        beside(ax, cpus, (usable_cpus, 1), ax.get_xaxis_transform(), (0, 2), ha="left", va="bottom", label=ABOVE)
    ax.set_xlabel("workers")
    ax.set_ylabel("speedup, 1 = base")


def _log(ax: Axes, axis: str, low: float, high: float) -> None:
    """Make an axis logarithmic with readable ticks: powers of two over few octaves, of ten over many.

    Over less than two octaves it stays linear, from 0 on: it would have a single tick or two.
    """
    if high < 4 * low:
        getattr(ax, f"set_{axis}lim")(0, high * 1.15)
        return
    octaves = np.log2(high / low)
    base = 2 if octaves <= 12 else 10
    step = 1 if base == 10 or octaves <= (6 if axis == "x" else 7) else 2  # 0.0625 is wide
    exponents = np.arange(np.floor(np.log(low) / np.log(base)), np.ceil(np.log(high) / np.log(base)) + 1, step)
    ticks = base**exponents
    names = [
        f"{tick:g}" if 1e-3 <= tick < 1e4 else f"$10^{{{int(e)}}}$" for tick, e in zip(ticks, exponents, strict=True)
    ]
    getattr(ax, f"set_{axis}scale")("log", base=base)
    getattr(ax, f"set_{axis}ticks")(ticks, names, parse_math=True)
    ax.minorticks_off()
    getattr(ax, f"set_{axis}lim")(low / 1.3, high * 1.3)
