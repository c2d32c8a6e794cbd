"""Compose the figures of a file, one column wide with their captions, and save them: the same bytes every time.

    file ── record.read ──▶ choose ──▶ figures on axes + captions ── layout ──▶ NAME-speedup.png, .svg, …

No figure depends on the reader's settings, display or fonts: the style stands here in full, letters are drawn as
outlines of the font that comes with matplotlib, and nothing in the file tells the hour.
"""

from __future__ import annotations

import io
import os
import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from parcompute.analysis.simulate import Prediction
from parcompute.analysis.studies import Study, choose, studies
from parcompute.figures import ink, panels
from parcompute.figures.panels import Panel
from parcompute.machine import atomic
from parcompute.record import record

if TYPE_CHECKING:
    from matplotlib.figure import Figure
    from matplotlib.text import Text

# Inches: a column of a two-column page, and both of them with the space between.
WIDTHS = {"one": 3.5, "two": 7.2}
WIDTH = WIDTHS["one"]
_NARROWEST, _WIDEST = 2.5, 20.0
_INCHES = {"mm": 1 / 25.4, "cm": 1 / 2.54, "in": 1.0, "pt": 1 / 72}
_EDGE, _GAP = 0.05, 0.05

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
    "text.parse_math": False,  # a dollar in a name is a dollar
    "text.hinting": "none",
    "svg.fonttype": "path",  # outlines: the same letters, and places for them, without the font installed
    "svg.hashsalt": "parcompute",
    "pdf.fonttype": 42,
    "savefig.dpi": 300,
    "figure.dpi": 300,
}

# For dark slides. Charts find out that they are on a dark background: see `parcompute.figures.ink`.
STYLES: dict[str, dict[str, Any]] = {
    "light": {},
    "dark": {
        "figure.facecolor": "#111111",
        "axes.facecolor": "#111111",
        "text.color": "#e6e6e6",
        "axes.labelcolor": "#e6e6e6",
        "axes.edgecolor": "#e6e6e6",
        "xtick.color": "#e6e6e6",
        "ytick.color": "#e6e6e6",
    },
}

# matplotlib writes its version, and into SVG and PDF the time, unless it is told not to.
_METADATA: dict[str, dict[str, None]] = {
    "png": {"Software": None},
    "svg": {"Date": None, "Creator": None},
    "pdf": {"CreationDate": None, "Creator": None, "Producer": None},
}


@dataclass(frozen=True, slots=True)
class Page:
    """What figures are made for.

    Attributes
    ----------
    width : float
        Inches; letters have the same size on every width.
    style : {"light", "dark"}
        For paper, or for slides with a dark background.
    """

    width: float = WIDTH
    style: str = "light"

    def __post_init__(self) -> None:
        if not _NARROWEST <= self.width <= _WIDEST:
            raise ValueError(
                f"width={self.width:.3g} inches; pass {_NARROWEST} to {_WIDEST}, as 85mm, or one or two columns"
            )
        if self.style not in STYLES:
            raise ValueError(f"style={self.style!r} is unknown; pass one of {', '.join(STYLES)}")


PAPER = Page()


def inches(text: str) -> float:
    """Return a width in inches: of ``one`` or ``two`` columns of a page, or a length.

    Examples
    --------
    >>> inches("one"), inches("254mm"), inches("3.3in")
    (3.5, 10.0, 3.3)
    """
    if text in WIDTHS:
        return WIDTHS[text]
    found = re.fullmatch(r"(\d+\.?\d*|\.\d+)\s*([a-z]+)", text.strip())
    if not found or found[2] not in _INCHES:
        raise ValueError(
            f"width {text!r} is no width; pass {', '.join(WIDTHS)}, or a length in {', '.join(_INCHES)}: 85mm"
        )
    return float(found[1]) * _INCHES[found[2]]


def save(
    path: str | os.PathLike[str],
    *,
    conditions: str | None = None,
    seed: int | None = None,
    n_items: int | None = None,
    kind: str | None = None,
    formats: Sequence[str] = ("png", "svg"),
    figures: Sequence[str] | None = None,
    page: Page = PAPER,
) -> list[Path]:
    """Draw the runs of a file beside it: ``NAME-speedup.png``, ``NAME-efficiency.png``, ``NAME-ledger.png``, ….

    Runs of unlike conditions, seeds, sizes or kinds are never drawn together. Seed and size that are not asked for
    are as in the newest run, and the caption says how many runs of the file are not shown. A file with strong and
    weak scaling gets the figures of both.

    Parameters
    ----------
    path : path
        A record.
    conditions, seed, n_items, kind
        See `parcompute.analysis.studies.choose`.
    formats : sequence of {"png", "svg", "pdf"}
        In which to save each figure.
    figures : sequence of str, optional
        Names of `parcompute.figures.panels.PANELS`; all that the runs allow if left out.
    page : Page
        Width and style. Dark figures have names of their own: ``NAME-speedup-dark.png``.

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
    recorded = record.read(path, timelines=True)
    chosen = choose(recorded, conditions=conditions, seed=seed, n_items=n_items, kind=kind)
    like = [
        study
        for study in studies(recorded)
        if (study.conditions, study.seed) == (chosen.conditions, chosen.seed) and panels.available(study)
    ]
    drawn = [s for s in like if s.n_items == chosen.n_items and kind in (None, s.kind)]
    how: dict[str, Any] = {"formats": formats, "figures": figures, "page": page}
    written = [target for study in drawn for target in save_study(study, path, **how)]
    if n_items is None:
        written += save_sizes(like, path, **how)
    if not written:
        raise ValueError(f"{path}: the runs allow none of the figures {', '.join(figures or ())}")
    return written


def save_study(
    chosen: Study,
    path: Path,
    *,
    formats: Sequence[str] = ("png", "svg"),
    figures: Sequence[str] | None = None,
    page: Page = PAPER,
) -> list[Path]:
    """Draw runs that have been chosen already, beside the file `path`; else as `save`."""
    if unknown := [name for name in figures or () if name not in (*panels.PANELS, "sizes")]:
        raise ValueError(f"figure {unknown[0]!r} is unknown; pass some of {', '.join((*panels.PANELS, 'sizes'))}")
    prefix = "weak-" if chosen.kind == "weak" else ""
    names = [name for name in panels.available(chosen) if figures is None or name in figures]
    made = {name: panels.PANELS[name].make(chosen) for name in names}
    return [target for name in names for target in _save(made[name], path, f"{prefix}{name}", formats, page)]


def save_prediction(
    chosen: Study, found: Prediction, path: Path, *, formats: Sequence[str] = ("png", "svg")
) -> list[Path]:
    """Draw what `parcompute.analysis.simulate` predicts, beside the file `path`."""
    return _save(panels.of_prediction(chosen, found), path, "prediction", formats, PAPER)


def save_sizes(
    like: Sequence[Study],
    path: Path,
    *,
    formats: Sequence[str] = ("png", "svg"),
    figures: Sequence[str] | None = None,
    page: Page = PAPER,
) -> list[Path]:
    """Draw time against size over studies that differ in nothing else, if there are at least three sizes."""
    like = [study for study in like if study.kind == "strong"]
    if len({study.n_items for study in like}) < 3 or (figures is not None and "sizes" not in figures):
        return []
    return _save(panels.of_sizes(like), path, "sizes", formats, page)


def _save(panel: Panel, path: Path, name: str, formats: Sequence[str], page: Page) -> list[Path]:
    written = []
    style = f"-{page.style}" if page.style != PAPER.style else ""
    for format, content in render(panel, formats, page).items():
        target = path.with_name(f"{path.stem}-{name}{style}.{format}")
        atomic.replace(target, content)
        written.append(target)
    return written


def render(panel: Panel, formats: Sequence[str], page: Page = PAPER) -> dict[str, bytes]:
    """Return the files of a figure by format.

    Raises
    ------
    ValueError
        If a format is unknown.
    """
    if unknown := [name for name in formats if name not in _METADATA]:
        raise ValueError(f"format {unknown[0]!r} is unknown; pass some of {', '.join(_METADATA)}")
    with own_style(page.style):
        figure = compose(panel, page.width)
        contents = {}
        for format in formats:
            stream = io.BytesIO()
            figure.savefig(stream, format=format, metadata=_METADATA[format])
            contents[format] = stream.getvalue()
    return contents


@contextmanager
def own_style(name: str = "light") -> Iterator[None]:
    """Set matplotlib's defaults and `STYLE`, whatever the reader has set, and put his settings back at the end."""
    from matplotlib import style

    with style.context(["default", STYLE, STYLES[name]]):
        yield


# ── one figure ────────────────────────────────────────────────────────────────────────────────────────


def compose(panel: Panel, width: float = WIDTH) -> Figure:
    """Return a figure with its title, legend and caption, as high as these need; call it within `own_style`."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(width, width))
    ax = figure.add_axes((0.2, 0.4, 0.7, 0.5))
    ink.draw(ax, panel.draw)
    title = figure.text(0, 0, panel.title, va="top", fontsize=8, fontweight="bold")
    base = figure.text(0, 0, panel.base, va="top")
    below = figure.text(0, 0, panel.caption, va="top", color="0.8" if ink.is_dark(ax) else "0.2")
    for text in (base, below):
        _wrap(text, width - 2 * _EDGE)
    # Twice as wide and no higher, a curve would be flat.
    height = panel.height * max(1.0, width / WIDTH) ** 0.5
    _arrange(figure, ax, width, height, title, base, below)
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


def _arrange(figure: Figure, ax: Any, width: float, height: float, title: Text, base: Text, below: Text) -> None:
    """Put title, base, axes, legend and caption under each other, and give the figure the height they need."""
    handles, labels = ax.get_legend_handles_labels()
    for columns in range(3, 0, -1):
        legend = figure.legend(
            handles, labels, loc="upper left", ncols=columns, frameon=False, borderaxespad=0, borderpad=0,
            labelspacing=0.25, columnspacing=1.2, handletextpad=0.5, handlelength=1.6,
        )  # fmt: skip
        if columns == 1 or _size(legend)[0] <= width - 2 * _EDGE:
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
    figure.set_size_inches(width, total)
    down = [1 - sum(heights[: i + 1]) / total for i in range(len(heights))]
    for text, at in ((title, down[0]), (base, down[2]), (below, down[8])):
        text.set_position((_EDGE / width, at))
    ax.set_position((left / width, down[5], (width - left - right) / width, height / total))
    legend.set_bbox_to_anchor((_EDGE / width, down[6]), transform=figure.transFigure)
