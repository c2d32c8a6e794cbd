"""Each figure of a record on your own axes, with your own settings: ``pc.plot.speedup(record, ax=ax)``.

Nothing is saved, no setting is changed, and `matplotlib.pyplot` is loaded only where no axes are given. Letters are as
large as your ``font.size``, lines and marks in proportion to them; on a dark background the ink is light.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np

from parcompute.analysis import simulate
from parcompute.analysis.results import Results, read
from parcompute.analysis.studies import Study
from parcompute.figures import curves, ink, panels
from parcompute.figures.panels import Panel

if TYPE_CHECKING:
    from matplotlib.axes import Axes

__all__ = [
    "available", "caption", "chunk_size", "efficiency", "grid", "karp_flatt", "ledger", "prediction", "ratios", "sizes",
    "speedup", "timeline",
]  # fmt: skip

Record = Results | Study | str | os.PathLike[str]


def available(record: Record) -> list[str]:
    """Return the names of the figures that the runs of a record allow.

    Parameters
    ----------
    record : Results, Study or path
        What `parcompute.read` returns, one of its studies, or the file. The same in every function here.
    """
    opened = _opened(record)
    names = [name.replace("-", "_") for name in panels.available(_study(opened))]
    return [*names, "sizes"] if _like(opened) else names


def caption(record: Record, figure: str) -> str:
    """Return what stands above and below a figure when it is saved: title, base with its time, what was measured.

    A speed-up without its base means nothing: put this, or the base from it, wherever the figure goes.

    Parameters
    ----------
    record : Results, Study or path
        As in `available`.
    figure : str
        Its name, one of those that `available` returns.
    """
    panel = _panel(record, figure)
    return f"{panel.title}; {panel.base}. {panel.caption}"


def speedup(record: Record, ax: Axes | None = None, *, legend: bool = True) -> Axes:
    """Draw speed-ups with their intervals and runs, the ideal, the bound by the number of chunks, and Amdahl's law.

    Parameters
    ----------
    record : Results, Study or path
        What `parcompute.read` returns, one of its studies, or the file.
    ax : Axes, optional
        Where to draw; `matplotlib.pyplot.gca()` if left out.
    legend : bool
        Whether to add one. Every figure has labels, so ``ax.legend(...)`` of your own finds them.

    Returns
    -------
    Axes
        Those that were drawn on.

    Raises
    ------
    ValueError
        If the runs do not allow this figure; `available` tells which they do.

    Examples
    --------
    >>> import matplotlib.pyplot as plt, parcompute as pc        # doctest: +SKIP
    >>> fig, (left, right) = plt.subplots(1, 2)                  # doctest: +SKIP
    >>> pc.plot.speedup("montecarlo.h5", ax=left)                # doctest: +SKIP
    >>> pc.plot.efficiency("montecarlo.h5", ax=right, legend=False)  # doctest: +SKIP
    """
    return _draw(_panel(record, "speedup"), ax, legend)


def efficiency(record: Record, ax: Axes | None = None, *, legend: bool = True) -> Axes:
    """Draw the points of `speedup` as per cent of the ideal; parameters, result and errors are the same."""
    return _draw(_panel(record, "efficiency"), ax, legend)


def karp_flatt(record: Record, ax: Axes | None = None, *, legend: bool = True) -> Axes:
    """Draw the experimentally determined serial fraction; parameters, result and errors are those of `speedup`."""
    return _draw(_panel(record, "karp_flatt"), ax, legend)


def ledger(record: Record, ax: Axes | None = None, *, legend: bool = True) -> Axes:
    """Draw what the core-seconds were spent on, a bar per number of workers; else as `speedup`.

    It needs height: about 0.14 inches a bar at 7 points.
    """
    return _draw(_panel(record, "ledger"), ax, legend, below=True)


def timeline(record: Record, ax: Axes | None = None, *, legend: bool = True) -> Axes:
    """Draw who computed when, of the run with the median time on the most workers; else as `speedup`."""
    return _draw(_panel(record, "timeline"), ax, legend, below=True)


def ratios(record: Record, ax: Axes | None = None, *, legend: bool = True) -> Axes:
    """Draw times of ways of running over that of one of them; else as `speedup`."""
    return _draw(_panel(record, "ratios"), ax, legend)


def chunk_size(record: Record, ax: Axes | None = None, *, legend: bool = True) -> Axes:
    """Draw time against the size of a chunk, with the costs on either side; else as `speedup`."""
    return _draw(_panel(record, "chunk_size"), ax, legend)


def grid(record: Record, ax: Axes | None = None, *, legend: bool = True) -> Axes:
    """Draw times by workers and BLAS threads; else as `speedup`."""
    return _draw(_panel(record, "grid"), ax, legend)


def sizes(record: Results | str | os.PathLike[str], ax: Axes | None = None, *, legend: bool = True) -> Axes:
    """Draw time against the size of the problem, over studies that differ in nothing else; else as `speedup`."""
    return _draw(_panel(record, "sizes"), ax, legend)


def prediction(
    record: Record,
    ax: Axes | None = None,
    *,
    workers: Sequence[int] = (1, 2, 4, 8, 16, 32, 64, 128, 256, 512, 1024),
    backend: str = "processes",
    schedules: Sequence[str] = (),
    legend: bool = True,
) -> Axes:
    """Draw speed-ups that are predicted by replaying a recorded timeline.

    Parameters
    ----------
    record, ax, legend
        As in `speedup`.
    workers : sequence of int
        On how many to predict.
    backend : str
        Whose run is replayed.
    schedules : sequence of str
        Under which; as it was run if left out.
    """
    study = _study(record)
    found = simulate.predict(study.runs, backend, tuple(workers), tuple(schedules))
    return _draw(panels.of_prediction(study, found), ax, legend)


# ── from a record to axes ─────────────────────────────────────────────────────────────────────────────


def _opened(record: Record) -> Results | Study:
    return record if isinstance(record, (Results, Study)) else read(record)


def _study(record: Record) -> Study:
    opened = _opened(record)
    return opened if isinstance(opened, Study) else opened.study


def _like(record: Results | Study) -> list[Study]:
    """Return the studies that differ from the chosen one in size only; none where these are fewer than three."""
    if isinstance(record, Study):
        return []
    of_one = (record.study.conditions, record.study.seed)
    like = [
        study
        for study in record.studies
        if (study.conditions, study.seed) == of_one and study.kind == "strong" and panels.available(study)
    ]
    return like if len({study.n_items for study in like}) > 2 else []


def _panel(record: Record, figure: str) -> Panel:
    opened = _opened(record)
    if figure == "sizes" and (like := _like(opened)):
        return panels.of_sizes(like)
    study, kind = _study(opened), panels.PANELS.get(figure.replace("_", "-"))
    if kind is None or not kind.allowed(study):
        why = "is unknown" if kind is None and figure != "sizes" else "is not what these runs allow"
        raise ValueError(f"figure {figure!r} {why}; they allow {', '.join(available(opened))}")
    return kind.make(study)


def _draw(panel: Panel, ax: Axes | None, legend: bool, *, below: bool = False) -> Axes:
    """Draw on axes; where these are full of colour, the legend is below the label of the axis."""
    if ax is None:
        from matplotlib import pyplot

        ax = pyplot.gca()
    ink.draw(ax, panel.draw)
    _name_in_legend(ax)
    if legend and ax.get_legend_handles_labels()[0]:
        ax.legend(**(ink.below(ax) if below else {}))
    return ax


def _name_in_legend(ax: Axes) -> None:
    """Name the line of the usable CPUs in the legend instead of above it: there is your title."""
    for text in [text for text in ax.texts if text.get_label() == curves.ABOVE]:
        x, _ = text.xy  # type: ignore[attr-defined]
        named = next(line for line in ax.lines if list(np.ravel(line.get_xdata())) == [x, x])
        named.set_label(text.get_text())
        text.remove()
