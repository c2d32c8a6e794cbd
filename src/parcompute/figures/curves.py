"""Draw scaling curves on given axes.

    curves ──▶ looks (colour, marker, name) ──▶ speedup(ax, …), efficiency(ax, …)

Nothing here opens a file, knows a page or changes a setting. Points are never joined: lines are models.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from parcompute.analysis.fits import Fit
from parcompute.analysis.laws import LAWS, Floats
from parcompute.analysis.scaling import Curve, Point

if TYPE_CHECKING:
    from matplotlib.axes import Axes

# Okabe & Ito (2008): told apart by every kind of colour vision; the marker tells them apart without colour.
_KNOWN = {
    "processes": ("#0072B2", "o"),
    "pool": ("#D55E00", "s"),
    "joblib": ("#009E73", "D"),
    "threads": ("#CC79A7", "^"),
    "dask": ("#E69F00", "v"),
    "mpi": ("#56B4E9", "P"),
}
_OTHERS = (("#000000", "X"), ("#7F7F7F", "h"), ("#8A6D00", "p"))
_ALL = (*_KNOWN.values(), *_OTHERS)
_MARKERS = "osD^vPXhp*"

_GREY, _DARK = "0.6", "0.25"
_DASHED = (0, (4, 2))

# From here on powers of two are farther apart than a linear axis of one column can show.
_LOG_FROM = 8

# Width of a digit, as a fraction of the size of its letters.
_DIGIT = 0.63

# What the text above the axes, which names the line under it, is known by; no legend shows it.
ABOVE = "_above"

# Below this p the law is wrong, as the verdict says too.
REFUTED = 0.01


@dataclass(frozen=True, slots=True)
class Look:
    """How a way of running is told from the others: colour, marker and name."""

    colour: str
    marker: str
    name: str


def look_of(backend: str, shift: int = 0) -> tuple[str, str]:
    """Return colour and marker of a backend; `shift` tells ways apart that have none of their own."""
    if backend in _KNOWN:
        colour, marker = _KNOWN[backend]
        return (colour, marker) if not shift else (colour, _MARKERS[(_MARKERS.index(marker) + shift) % len(_MARKERS)])
    return _OTHERS[0] if backend and not shift else _ALL[shift % len(_ALL)]


def looks(curves: Sequence[Curve]) -> tuple[Look, ...]:
    """Return a look for each curve; a backend has the same colour in every figure that compares some.

    The name is that of the backend, with what else tells it from other ways of the same backend.
    """
    unknown = itertools.cycle(_OTHERS)
    of_backend: dict[str, tuple[str, str]] = {}
    for curve in curves:
        if curve.backend not in of_backend:
            of_backend[curve.backend] = _KNOWN.get(curve.backend) or next(unknown)
    found, seen = [], dict.fromkeys(of_backend, 0)
    for curve in curves:
        same = [other for other in curves if other.backend == curve.backend]
        differing = [
            text for text, others in zip(_factors(curve), zip(*map(_factors, same), strict=True), strict=True)
            if len(set(others)) > 1
        ]  # fmt: skip
        colour, marker = of_backend[curve.backend]
        shift = _MARKERS.index(marker) + seen[curve.backend]
        if len(of_backend) == 1:
            own = next(i for i, (of_one, _) in enumerate(_ALL) if of_one == colour)
            colour = _ALL[(own + seen[curve.backend]) % len(_ALL)][0]
        seen[curve.backend] += 1
        found.append(Look(colour, _MARKERS[shift % len(_MARKERS)], ", ".join([curve.backend, *differing])))
    return tuple(found)


def edge_of(curve: Curve, point: Point, look: Look) -> str:
    """Return the colour of a mark's edge: dark on several nodes, where the curve has points on one node too."""
    return _DARK if point.n_nodes > 1 and curve.n_nodes == 0 else look.colour


def explain_edges(ax: Axes, curves: Sequence[Curve]) -> None:
    """Say in the legend what a dark edge is, where a mark has one."""
    if any(curve.n_nodes == 0 for curve in curves):
        ax.plot([], [], "o", ms=4, mfc=_GREY, mec=_DARK, mew=1.1, label="on several nodes")


def _factors(curve: Curve) -> tuple[str, ...]:
    nodes = f"{curve.n_nodes} node{'s' * (curve.n_nodes > 1)}" if curve.n_nodes else ""
    threads = f"{curve.threads_per_worker} thread{'s' * (curve.threads_per_worker > 1)}"
    blas = f"{curve.blas_threads} BLAS thread{'s' * (curve.blas_threads > 1)}"
    return curve.variant, curve.schedule, curve.start_method, threads, blas, nodes, f"blocks of {curve.block_items}"


# ── speedup and efficiency ────────────────────────────────────────────────────────────────────────────


def speedup(ax: Axes, curves: Sequence[Curve], *, usable_cpus: int | None = None) -> None:
    """Draw speedups with their intervals and runs, against the ideal and the bound by the number of chunks.

    Parameters
    ----------
    ax : Axes
        Where to draw.
    curves : sequence of Curve
        Of one problem, under the same conditions.
    usable_cpus : int, optional
        Where it differs from the number of workers up to which laws are fitted.

    Raises
    ------
    ValueError
        If there are no curves, or their problems, CPUs or kinds of base differ.
    """
    groups = _Groups.of(curves)
    if len(groups.counts) > 2:
        # The ideal and the models are slopes: beside N a point would be held against those of another number.
        groups = replace(groups, spread=0.0)
    _draw(ax, groups, curves, lambda curve, N: np.ones_like(N))
    if groups.log:
        drawn = np.concatenate([np.asarray(line.get_ydata(), float) for line in ax.lines])
        low, high = float(drawn.min()), float(drawn.max())
        ax.set_yscale("log", base=2)
        ticks = 2.0 ** np.arange(np.floor(np.log2(low)), np.ceil(np.log2(high)) + 1)
        ax.set_yticks(ticks, [f"{tick:g}" for tick in ticks])
        ax.minorticks_off()
        ax.set_ylim(low / 1.15, high * 1.15)
    else:
        ax.set_ylim(0, 1.06 * ax.dataLim.y1)
    weak = curves[0].kind == "weak"
    ax.set_ylabel("scaled speedup N·T(base)/T(N), 1 = base" if weak else "speedup T(base)/T(N), 1 = base")
    _frame(ax, groups, curves, usable_cpus)


def efficiency(ax: Axes, curves: Sequence[Curve], *, usable_cpus: int | None = None) -> None:
    """Draw the points of `speedup` as per cent of the ideal; parameters and errors are the same."""
    groups = _Groups.of(curves)
    _draw(ax, groups, curves, lambda curve, N: 100 * curve.base.n_workers / N)
    ax.set_ylim(0, 1.06 * ax.dataLim.y1)
    ax.set_ylabel("efficiency, % of ideal")
    _frame(ax, groups, curves, usable_cpus)


@dataclass(frozen=True, slots=True)
class _Groups:
    """Where points stand along the axis of workers: beside each other, so that their intervals do not overlap."""

    counts: tuple[int, ...]
    n_ways: int
    n_cpus: int
    log: bool
    spread: float  # width of a group over the distance to the next

    @classmethod
    def of(cls, curves: Sequence[Curve]) -> _Groups:
        problems = sorted({(c.kind, c.n_items, c.n_cpus, c.base.kind) for c in curves})
        if len(problems) != 1:
            told = "; ".join(f"{kind}, {n} items, {cpus} CPUs, base {base}" for kind, n, cpus, base in problems)
            raise ValueError(f"curves of unlike problems are mixed: {told or 'none'}; pass those of one Study")
        counts = tuple(sorted({point.n_workers for curve in curves for point in curve.points}))
        log = counts[-1] >= _LOG_FROM * counts[0]
        return cls(counts, len(curves), curves[0].n_cpus, log, 0.5 * min(1.0, len(curves) / 4))

    @property
    def gap(self) -> float:
        """Distance between neighbours, in workers or, on the logarithmic axis, in octaves."""
        at = np.log2(self.counts) if self.log else np.array(self.counts, float)
        return float(np.diff(at).min()) if len(at) > 1 else 1.0

    def moved(self, N: npt.ArrayLike, by: float) -> Floats:
        """Return N moved by `by` widths of a group."""
        N, step = np.asarray(N, float), by * self.spread * self.gap
        return N * 2**step if self.log else N + step

    def place(self, i: float) -> float:
        """Where way i stands in its group, in widths: from -1/2 to 1/2."""
        return (i + 0.5) / self.n_ways - 0.5

    @property
    def limits(self) -> tuple[float, float]:
        low, high = float(self.moved(self.counts[0], -0.5)), float(self.moved(self.counts[-1], 0.5))
        if self.log:
            return low / 1.25, high * 1.25
        margin = 0.12 * (self.counts[-1] - self.counts[0]) or 0.5
        return low - margin, high + margin


Scale = Callable[[Curve, Floats], Floats]


def _draw(ax: Axes, groups: _Groups, curves: Sequence[Curve], scale: Scale) -> None:
    """Draw points, bounds and models; `scale` turns a speedup on N workers into what the axis shows."""
    ways = looks(curves)
    if groups.log:
        ax.set_xscale("log", base=2)
    for i, (curve, look) in enumerate(zip(curves, ways, strict=True)):
        _points(ax, groups, i, curve, look, scale)
        _model(ax, groups, i, curve, look, scale)
    _ideal(ax, groups, curves, scale)
    _bounds(ax, groups, curves, scale)
    fits = [curve.fit for curve in curves if _has_line(curve)]
    for wrong, told in ((False, "fitted"), (True, "does not hold")):
        if laws := [fit.law for fit in fits if fit is not None and refuted(fit) == wrong]:
            ax.plot(
                [], [], color=_DARK, lw=0.8, ls=_DASHED if wrong else "-", label=f"{laws[0].capitalize()}'s law, {told}"
            )
    if any(point.beyond for curve in curves for point in curve.points):
        ax.plot([], [], "o", ms=4, mfc="white", mec=_DARK, mew=0.8, label="beyond: not fitted")
    explain_edges(ax, curves)


def _points(ax: Axes, groups: _Groups, i: int, curve: Curve, look: Look, scale: Scale) -> None:
    for j, point in enumerate(curve.points):
        N = np.array([float(point.n_workers)])
        x, unit = groups.moved(N, groups.place(i)), float(scale(curve, N)[0])
        work = point.n_workers / curve.base.n_workers if curve.kind == "weak" else 1.0
        runs = point.speedups if len(point.speedups) else work * curve.base.wall.median.value / point.walls_s
        runs = runs * unit
        beside = groups.moved(N, groups.place(i + 0.3)).repeat(len(runs))
        ax.plot(beside, runs, "o", ms=1.7, mew=0, color=look.colour, alpha=0.6, zorder=2.5)
        S = point.speedup
        spread = [[(S.value - S.low) * unit], [(S.high - S.value) * unit]]
        # A range is drawn dotted and without caps: it is no interval.
        bar = ax.errorbar(x, [S.value * unit], spread, fmt="none", ecolor=look.colour, elinewidth=0.9,
                          capsize=0 if S.is_range else 1.8, capthick=0.9, zorder=3)  # fmt: skip
        if S.is_range:
            bar.lines[2][0].set_linestyle((0, (1, 1)))
        face = "white" if point.beyond else look.colour
        edge = edge_of(curve, point, look)
        wide = 0.8 if edge == look.colour else 1.1
        ax.plot(x, [S.value * unit], look.marker, ms=3.6, mfc=face, mec=edge, mew=wide, zorder=4)
        if j == 0:
            ax.plot([], [], look.marker, ms=4, color=look.colour, label=look.name)


def _ideal(ax: Axes, groups: _Groups, curves: Sequence[Curve], scale: Scale) -> None:
    # Flat across each group: whoever stands beside N is held against the ideal of N.
    N = np.repeat(np.array(groups.counts, float), 2)
    x = np.ravel([groups.moved(groups.counts, -0.5), groups.moved(groups.counts, 0.5)], order="F")
    for j, curve in enumerate({curve.base.n_workers: curve for curve in curves}.values()):
        y = N / curve.base.n_workers * scale(curve, N)
        ax.plot(x, y, color=_GREY, lw=0.9, zorder=1, label="" if j else "ideal")


def _bounds(ax: Axes, groups: _Groups, curves: Sequence[Curve], scale: Scale) -> None:
    """Draw a dash where the number of indivisible pieces allows less than the ideal."""
    half = 0.5 / groups.n_ways if groups.spread else 0.5
    groups = groups if groups.spread else replace(groups, spread=min(0.3, 0.15 / groups.gap))
    label = "bound by the number of chunks"
    for i, curve in enumerate(curves):
        middle = groups.place(i) if half < 0.5 else 0.0
        for point in curve.points:
            if point.efficiency_bound < 0.9995:
                N = np.full(2, float(point.n_workers))
                y = point.efficiency_bound * N / curve.base.n_workers * scale(curve, N)
                x = [float(groups.moved(point.n_workers, middle + side)) for side in (-half, half)]
                ax.plot(x, y, color="0.45", lw=1.6, zorder=1.5, label=label, solid_capstyle="butt")
                label = ""


def _has_line(curve: Curve) -> str:
    """Return the law whose line is drawn; empty where the points do not tell its parameters."""
    return curve.fit.law if curve.fit is not None and curve.fit.identifiable else ""


def refuted(fit: Fit) -> bool:
    """Whether the scatter of the runs is too small for the distance between points and law."""
    return fit.lack_of_fit is not None and fit.lack_of_fit[1] < REFUTED


def _model(ax: Axes, groups: _Groups, i: int, curve: Curve, look: Look, scale: Scale) -> None:
    fit = curve.fit
    if fit is None or not _has_line(curve):
        return
    N = np.geomspace(fit.n_workers.min(), fit.n_workers.max(), 200)
    work = N / curve.base.n_workers if curve.kind == "weak" else np.ones_like(N)
    to_axis = work * curve.base.wall.median.value * scale(curve, N)
    x = groups.moved(N, groups.place(i))
    wrong = refuted(fit)
    ax.plot(x, to_axis / fit.times(N), color=look.colour, lw=0.8, ls=_DASHED if wrong else "-", zorder=2)
    if "s" in fit.intervals and not wrong:
        low, high = (to_axis / LAWS[fit.law].time(N, np.array([fit.parameters["T1"], s])) for s in fit.intervals["s"])
        ax.fill_between(x, low, high, color=look.colour, alpha=0.18, lw=0, zorder=0.8)


def _frame(ax: Axes, groups: _Groups, curves: Sequence[Curve], usable_cpus: int | None) -> None:
    ax.set_xlim(*groups.limits)
    ax.set_xlabel("workers")
    ax.set_xticks(groups.counts, _thinned(ax, groups))
    ax.minorticks_off()
    n_cpus, limits = usable_cpus or groups.n_cpus, groups.limits
    several = any(point.n_nodes > 1 for curve in curves for point in curve.points)
    names = {n_cpus: f"{n_cpus} usable CPU{'s' * (n_cpus > 1)}{' of a node' * several}"}
    if groups.n_cpus != n_cpus:
        names = {groups.n_cpus: f"{groups.n_cpus} core{'s' * (groups.n_cpus > 1)}"} | names
    inside = [n for n in names if limits[0] < n < limits[1]]
    for n in inside:
        ax.axvline(n, color=_DARK, lw=0.7, ls=(0, (1, 1.5)), zorder=0.5)
    if inside:
        at = _fraction(groups, inside[0])
        side = "left" if at < 0.3 else "right" if at > 0.7 else "center"
        at_top: dict[str, Any] = {"ha": side, "va": "bottom", "label": ABOVE}
        beside(ax, ", ".join(names.values()), (inside[0], 1), ax.get_xaxis_transform(), (0, 2), **at_top)


def _fraction(groups: _Groups, N: float) -> float:
    """Where N stands along the axis, from 0 to 1."""
    at, low, high = np.log2([N, *groups.limits]) if groups.log else (N, *groups.limits)
    return float((at - low) / (high - low))


def _thinned(ax: Axes, groups: _Groups) -> list[str]:
    """Label every tick that has room; the last always has."""
    from matplotlib import rcParams

    # As a fraction of the axis; both in inches.
    digit = _DIGIT * rcParams["font.size"] / 72 / (ax.get_window_extent().width / ax.figure.dpi)
    labels, free = [], 1.1
    for N in reversed(groups.counts):
        half = (len(str(N)) + 1) * digit / 2
        fits = _fraction(groups, N) + half <= free
        labels.append(str(N) if fits else "")
        free = _fraction(groups, N) - half if fits else free
    return labels[::-1]


def beside(ax: Axes, text: str, at: tuple[float, float], of: Any, by: tuple[float, float], **how: Any) -> None:
    """Write a text at a distance, in points, from a place: as far whatever the size of the axes."""
    ax.annotate(text, at, by, xycoords=of, textcoords="offset points", color=_DARK, annotation_clip=False, **how)
