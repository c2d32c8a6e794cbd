"""Compose the figures of a file, one column wide with their captions, and save them: the same bytes every time.

    file ── record.read ──▶ choose ──▶ figures on axes + captions ── layout ──▶ NAME-speedup.png, .svg, …

No figure depends on the reader's settings, display or fonts: the style stands here in full, letters are drawn as
outlines of the font that comes with matplotlib, and nothing in the file tells the hour.
"""

from __future__ import annotations

import io
import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, get_args

from parcompute import atomic, captions, figures, ledgers, record
from parcompute.ledgers import Bar
from parcompute.losses import losses
from parcompute.studies import Study, choose
from parcompute.sweep import worker_counts

if TYPE_CHECKING:
    from matplotlib.figure import Figure
    from matplotlib.text import Text

Kind = Literal["speedup", "efficiency", "ledger"]
KINDS: tuple[Kind, ...] = get_args(Kind)

# Inches. A column of a two-column page is 3.3 to 3.5 wide.
WIDTH = 3.5
_EDGE, _GAP, _AXES_HEIGHT, _ROW_HEIGHT = 0.05, 0.05, 2.1, 0.135

_MAX_BARS = 48

STYLE: dict[str, Any] = {
    "font.family": "DejaVu Sans",  # comes with matplotlib, which looks there before it asks the system
    "font.size": 7,
    "axes.titlesize": 7,
    "axes.labelsize": 7,
    "xtick.labelsize": 7,
    "ytick.labelsize": 7,
    "legend.fontsize": 7,
    "axes.linewidth": 0.6,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "xtick.major.width": 0.6,
    "ytick.major.width": 0.6,
    "xtick.major.size": 2.5,
    "ytick.major.size": 2.5,
    "hatch.linewidth": 0.4,
    "text.usetex": False,
    "text.hinting": "none",
    "svg.fonttype": "path",  # outlines: the same letters, and places for them, without the font installed
    "svg.hashsalt": "parcompute",
    "pdf.fonttype": 42,
    "savefig.dpi": 300,
    "figure.dpi": 300,
}

# matplotlib writes its version, and into SVG and PDF the time, unless it is told not to.
_METADATA: dict[str, dict[str, None]] = {
    "png": {"Software": None},
    "svg": {"Date": None, "Creator": None},
    "pdf": {"CreationDate": None, "Creator": None, "Producer": None},
}


def save(
    path: str | os.PathLike[str],
    *,
    conditions: str | None = None,
    seed: int | None = None,
    n_items: int | None = None,
    kind: str | None = None,
    formats: Sequence[str] = ("png", "svg"),
) -> list[Path]:
    """Draw the runs of a file beside it: ``NAME-speedup.png``, ``NAME-efficiency.png``, ``NAME-ledger.png``, ….

    Runs of unlike conditions, seeds, sizes or kinds are never drawn together. What is not asked for is as in the
    newest run; the caption says how many runs of the file are not shown.

    Parameters
    ----------
    path : path
        A record.
    conditions, seed, n_items, kind
        See `parcompute.studies.choose`.
    formats : sequence of {"png", "svg", "pdf"}
        In which to save each figure.

    Returns
    -------
    list of Path
        What was written; each file whole or not at all.

    Raises
    ------
    RecordError
        If the file cannot be read.
    ValueError
        If there is nothing to draw, or a format is unknown.
    OSError
        If a figure cannot be written.
    """
    path = Path(path)
    chosen = choose(record.read(path, timelines=True), conditions=conditions, seed=seed, n_items=n_items, kind=kind)
    return save_study(chosen, path, formats=formats)


def save_study(chosen: Study, path: Path, *, formats: Sequence[str] = ("png", "svg")) -> list[Path]:
    """Draw runs that have been chosen already, beside the file `path`; else as `save`."""
    if unknown := [name for name in formats if name not in _METADATA]:
        raise ValueError(f"format {unknown[0]!r} is unknown; pass some of {', '.join(_METADATA)}")
    written = []
    for kind in KINDS:
        for format, content in render(chosen, kind, formats).items():
            target = path.with_name(f"{path.stem}-{kind}.{format}")
            atomic.replace(target, content)
            written.append(target)
    return written


def render(chosen: Study, kind: Kind, formats: Sequence[str]) -> dict[str, bytes]:
    """Return the files of a figure by format."""
    with own_style():
        figure = compose(chosen, kind)
        contents = {}
        for format in formats:
            stream = io.BytesIO()
            figure.savefig(stream, format=format, metadata=_METADATA[format])
            contents[format] = stream.getvalue()
    return contents


@contextmanager
def own_style() -> Iterator[None]:
    """Set matplotlib's defaults and `STYLE`, whatever the reader has set, and put his settings back at the end."""
    from matplotlib import style

    with style.context(["default", STYLE]):
        yield


def bars(chosen: Study) -> list[Bar]:
    """Return the bars of the ledger, by way and number of workers; none where no run has a timeline.

    Those of many numbers of workers, more than a page can hold, are thinned to 1, 2, 4, … and the last.
    """
    found: list[Bar] = []
    for curve, look in zip(chosen.curves, figures.looks(chosen.curves), strict=True):
        for point in curve.points:
            ledgers_ns = [
                losses(run.timelines).total_ns for run in chosen.runs_of(curve, point.n_workers) if run.timelines
            ]
            if ledgers_ns:
                core_s = sum(ledgers_ns) * 1e-9 / len(ledgers_ns)
                found.append(Bar(look.name, point.n_workers, point.beyond, core_s, point.lost))
    if len(found) > _MAX_BARS:
        kept = worker_counts(max(bar.n_workers for bar in found))
        found = [bar for bar in found if bar.n_workers in kept] or found
    return found


# ── one figure ────────────────────────────────────────────────────────────────────────────────────────


def compose(chosen: Study, kind: Kind) -> Figure:
    """Return a figure with its title, legend and caption, as high as these need; call it within `own_style`."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(WIDTH, WIDTH))
    ax = figure.add_axes((0.2, 0.4, 0.7, 0.5))
    height = _AXES_HEIGHT
    if kind == "ledger":
        of_ledger = bars(chosen)
        ledgers.ledger(ax, of_ledger)
        caption = captions.of_ledger(chosen, of_ledger)
        height = _ROW_HEIGHT * max(ledgers.ledger_rows(of_ledger), 4)
    else:
        draw = figures.speedup if kind == "speedup" else figures.efficiency
        draw(ax, chosen.curves, usable_cpus=chosen.provenance.usable_cpus)
        caption = captions.of_curves(chosen)
    title = figure.text(0, 0, captions.title(chosen), va="top", fontsize=8, fontweight="bold")
    base = figure.text(0, 0, captions.base_line(chosen), va="top")
    below = figure.text(0, 0, caption, va="top", color="0.2")
    for text in (base, below):
        _wrap(text, WIDTH - 2 * _EDGE)
    _arrange(figure, ax, height, title, base, below)
    return figure


def _wrap(text: Text, width: float) -> None:
    """Break a text into lines of at most `width` inches, at blanks."""
    lines: list[str] = []
    bound = text.get_text().replace(" %", "\u00a0%").replace(" = ", "\u00a0=\u00a0")
    for word in bound.split(" "):
        text.set_text(f"{lines[-1]} {word}" if lines else word)
        if lines and _size(text)[0] <= width:
            lines[-1] = text.get_text()
        else:
            lines.append(word)
    text.set_text("\n".join(lines))


def _size(artist: Any) -> tuple[float, float]:
    """Width and height in inches."""
    box = artist.get_window_extent(_renderer(artist.figure))
    return box.width / artist.figure.dpi, box.height / artist.figure.dpi


def _renderer(figure: Any) -> Any:
    from matplotlib.backends.backend_agg import FigureCanvasAgg

    canvas: Any = FigureCanvasAgg(figure)  # whose method has no annotation
    return canvas.get_renderer()


def _arrange(figure: Figure, ax: Any, height: float, title: Text, base: Text, below: Text) -> None:
    """Put title, base, axes, legend and caption under each other, and give the figure the height they need."""
    handles, labels = ax.get_legend_handles_labels()
    for columns in range(3, 0, -1):
        legend = figure.legend(
            handles, labels, loc="upper left", ncols=columns, frameon=False, borderaxespad=0, borderpad=0,
            labelspacing=0.25, columnspacing=1.2, handletextpad=0.5, handlelength=1.6,
        )  # fmt: skip
        if columns == 1 or _size(legend)[0] <= WIDTH - 2 * _EDGE:
            break
        legend.remove()

    # What stands outside of the axes is as wide as its text, which does not depend on where the axes are.
    dpi = figure.dpi
    inner, outer = ax.get_window_extent(), ax.get_tightbbox(_renderer(figure))
    left, right = (inner.x0 - outer.x0) / dpi + _EDGE, (outer.x1 - inner.x1) / dpi + _EDGE
    over, under = (outer.y1 - inner.y1) / dpi, (inner.y0 - outer.y0) / dpi

    heights = [_EDGE, _size(title)[1], _GAP, _size(base)[1], _GAP + over, height, under + _GAP, _size(legend)[1]]
    heights += [1.5 * _GAP, _size(below)[1], _EDGE]
    total = sum(heights)
    figure.set_size_inches(WIDTH, total)
    down = [1 - sum(heights[: i + 1]) / total for i in range(len(heights))]
    for text, at in ((title, down[0]), (base, down[2]), (below, down[8])):
        text.set_position((_EDGE / WIDTH, at))
    ax.set_position((left / WIDTH, down[5], (WIDTH - left - right) / WIDTH, height / total))
    legend.set_bbox_to_anchor((_EDGE / WIDTH, down[6]), transform=figure.transFigure)
