"""Draw on anybody's axes: in proportion to the letters there, and in ink that shows on their background.

Charts are written for a white page with letters of 7 points. What they have drawn is then scaled to the reader's font
size, and on a dark background greys are turned round and colours lightened. What stood there before is left alone.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.typing import ColorType

# Points of the letters for which charts have their sizes.
LETTERS = 7.0

_DARK_BELOW = 0.4  # relative luminance
_LIGHTER = 0.3
_DARKEST = 0.2  # of greys: less could not be told from black


def draw(ax: Axes, drawing: Callable[[Axes], None]) -> None:
    """Have something drawn on axes, and fit it to them."""
    from matplotlib import rcParams

    before = set(ax.get_children())
    drawing(ax)
    scale, dark = float(rcParams["font.size"]) / LETTERS, is_dark(ax)
    if scale == 1 and not dark:
        return
    face = ax.get_facecolor()
    for artist in ax.get_children():
        if artist not in before:
            _fit(artist, scale, lambda colour: on_dark(colour, face) if dark else colour)


def is_dark(ax: Axes) -> bool:
    """Whether the background of axes is dark; what shows through is that of the figure."""
    from matplotlib.colors import to_rgba

    colour = np.ones(3)
    whole = ax.figure.figure  # of a figure in a figure, the outermost
    for face in (whole.get_facecolor(), ax.get_facecolor()):
        *rgb, alpha = to_rgba(face)
        colour = alpha * np.array(rgb) + (1 - alpha) * colour
    return float(colour @ [0.2126, 0.7152, 0.0722]) < _DARK_BELOW


def on_dark(colour: ColorType, face: ColorType) -> ColorType:
    """Return what a colour of a white page is on a dark one: white is the background, black white, grey in between.

    Examples
    --------
    >>> on_dark("black", "#111111"), on_dark("white", "#111111")
    ((1.0, 1.0, 1.0, 1.0), (0.06666666666666667, 0.06666666666666667, 0.06666666666666667, 1.0))
    """
    from matplotlib.colors import to_rgba

    *rgb, alpha = to_rgba(colour)
    if max(rgb) - min(rgb) > 0.02:
        red, green, blue = (level + _LIGHTER * (1 - level) for level in rgb)
        return red, green, blue, alpha
    if min(rgb) > 0.98:
        return (*to_rgba(face)[:3], alpha)
    level = 1 - (1 - _DARKEST) * rgb[0]
    return level, level, level, alpha


def below(ax: Axes) -> dict[str, Any]:
    """Return where a legend is below the axes and their label, as arguments of `Axes.legend`."""
    from matplotlib import rcParams
    from matplotlib.transforms import ScaledTranslation

    down = ScaledTranslation(0, -3.2 * rcParams["font.size"] / 72, ax.figure.dpi_scale_trans)
    return {
        "loc": "upper left", "bbox_to_anchor": (0, 0), "bbox_transform": ax.transAxes + down, "ncols": 3,
        "borderaxespad": 0, "frameon": False, "handlelength": 1.5, "columnspacing": 1,
    }  # fmt: skip


def _fit(artist: Any, scale: float, ink: Callable[[ColorType], ColorType]) -> None:
    """Scale and colour one artist; text that stands on a coloured cell, and pictures, stay as they are."""
    from matplotlib.collections import Collection
    from matplotlib.lines import Line2D
    from matplotlib.patches import Patch
    from matplotlib.text import Annotation

    if isinstance(artist, Line2D):
        for name in ("linewidth", "markersize", "markeredgewidth"):
            getattr(artist, f"set_{name}")(getattr(artist, f"get_{name}")() * scale)
        face, edge = artist.get_markerfacecolor(), artist.get_markeredgecolor()
        artist.set(color=ink(artist.get_color()), markerfacecolor=ink(face), markeredgecolor=ink(edge))
    elif isinstance(artist, Collection):
        artist.set_linewidth([width * scale for width in np.atleast_1d(artist.get_linewidth())])
        # Both are read before one is set: edges that follow the faces would change with these.
        faces, edges = (_all(ink, colours) for colours in (artist.get_facecolor(), artist.get_edgecolor()))
        artist.set(facecolor=faces, edgecolor=edges)
    elif isinstance(artist, Patch):
        face, edge = artist.get_facecolor(), artist.get_edgecolor()
        artist.set(facecolor=ink(face), edgecolor=ink(edge), linewidth=artist.get_linewidth() * scale)
    elif isinstance(artist, Annotation):
        artist.set_color(ink(artist.get_color()))
        x, y = artist.xyann
        artist.xyann = (x * scale, y * scale)


def _all(ink: Callable[[ColorType], ColorType], colours: Any) -> list[ColorType]:
    each: Iterable[ColorType] = (tuple(colour) for colour in np.atleast_2d(colours)) if len(colours) else ()
    return [ink(colour) for colour in each]
