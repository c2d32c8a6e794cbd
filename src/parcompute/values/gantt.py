"""Draw who computed when, as SVG: a row per worker, of a size that does not grow with the chunks.

0 ┃ ████████ ██████ ████ ██        few chunks: a bar for each
1 ┃  ███████ ███████ ███ ███
  ┃ ▇▇▇▆▇▇▇▇▅▇▇▇▇▆▃                many: columns as high as the share of their time inside kernels
  0       1       2       3 s
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator

import numpy as np
import numpy.typing as npt

from parcompute.values.views import INK, Html

# More rows are no picture: then each is the mean of several workers.
MOST_ROWS = 32

# As many bars can be told apart; more are drawn as columns, of which a picture has at most so many (20 bytes each).
MOST_BARS, MOST_COLUMNS = 400, 4000

_WIDTH, _LEFT, _TOP = 640, 56, 4
_LEVELS = 8  # heights that can be told apart

# Begin, end, and height from 0 to 1.
Bar = tuple[float, float, float]


def svg(
    begin_ns: npt.NDArray[np.int64],
    end_ns: npt.NDArray[np.int64],
    worker: npt.NDArray[np.intp],
    n_workers: int,
    span_ns: int,
    deaths: Iterable[tuple[int, int, str]] = (),
) -> Html:
    """Draw chunks.

    Parameters
    ----------
    begin_ns, end_ns : ndarray of int64, shape (n_chunks,)
        Of the kernels of each chunk, from the call on.
    worker : ndarray of int, shape (n_chunks,)
        Who computed it, from 0.
    n_workers : int
        How many there are.
    span_ns : int
        From the call to the result.
    deaths : iterable of (int, int, str)
        Worker, when it was seen to have ended, and how, of each that did.

    Returns
    -------
    Html
        At most 120 kB.
    """
    span_ns = max(1, span_ns)
    per_row = -(-n_workers // MOST_ROWS) or 1
    n_rows = -(-n_workers // per_row)
    high, pitch = (12, 17) if n_rows <= 16 else (8, 10)
    scale = _WIDTH / span_ns
    exact = per_row == 1 and len(begin_ns) <= MOST_BARS
    parts = []
    for row in range(n_rows):
        first, last = row * per_row, min((row + 1) * per_row, n_workers) - 1
        mine = (worker >= first) & (worker <= last)
        begin, end = begin_ns[mine], end_ns[mine]
        name = f"{first}" if first == last else f"{first}–{last}"
        busy = float((end - begin).sum()) / (span_ns * (last - first + 1))
        bars = _each(begin, end) if exact else _columns(begin, end, last - first + 1, span_ns, n_rows)
        told = f"worker{'s' * (first < last)} {name}: {len(begin)} chunks, {100 * busy:.1f} % of the time in kernels"
        bottom = _TOP + row * pitch + high
        parts.append(
            f'<g><title>{told}</title><path d="M{_LEFT} {bottom}h{_WIDTH}" stroke="currentColor" stroke-opacity=".25"/>'
            f'<path d="{"".join(_path(bars, bottom, high, scale))}" style="fill:{INK}"/>'
            f"{_text(_LEFT - 6, bottom - 1, name, 'end') if row % (1 + n_rows // 17) == 0 else ''}</g>"
        )
    for number, (who, at_ns, how) in enumerate(deaths):
        if number < MOST_ROWS and 0 <= who < n_workers:
            y = _TOP + who // per_row * pitch + high
            parts.append(f"<g><title>worker {who} {how}</title>{_text(_LEFT + at_ns * scale, y - 1, '✕')}</g>")
    bottom = _TOP + n_rows * pitch
    parts += _axis(span_ns, bottom, scale, "" if exact else "; height: share of the time in kernels")
    size = f'viewBox="0 0 {_LEFT + _WIDTH + 24} {bottom + 32}" width="{_LEFT + _WIDTH + 24}"'
    return Html(
        f'<svg xmlns="http://www.w3.org/2000/svg" {size} style="max-width:100%;height:auto" role="img" '
        f'aria-label="timeline" fill="none" font-size="11" font-family="sans-serif">{"".join(parts)}</svg>'
    )


def _each(begin: npt.NDArray[np.int64], end: npt.NDArray[np.int64]) -> Iterator[Bar]:
    return zip(begin.tolist(), end.tolist(), [1.0] * len(begin), strict=True)


def _columns(
    begin: npt.NDArray[np.int64], end: npt.NDArray[np.int64], n_workers: int, span_ns: int, n_rows: int
) -> Iterator[Bar]:
    """Return runs of columns of one height: the share of their time that the workers were inside kernels."""
    n = min(_WIDTH // 2, MOST_COLUMNS // n_rows)
    edges = np.linspace(0, span_ns, n + 1)
    busy = np.diff(_until(edges, begin) - _until(edges, end)) / (np.diff(edges) * n_workers)
    level = np.ceil(np.clip(busy, 0, 1) * _LEVELS - 0.5)
    level[(level == 0) & (busy > 0)] = 1  # little is not nothing
    starts = np.flatnonzero(np.diff(level, prepend=-1))
    stops = np.append(starts[1:], n)
    for a, b in zip(starts.tolist(), stops.tolist(), strict=True):
        if level[a]:
            yield edges[a], edges[b], level[a] / _LEVELS


def _until(at: npt.NDArray[np.float64], stamps: npt.NDArray[np.int64]) -> npt.NDArray[np.float64]:
    """Return the sum over the stamps of the time that has gone by since each, at some moments."""
    stamps = np.sort(stamps).astype(np.float64)
    n = np.searchsorted(stamps, at)
    since: npt.NDArray[np.float64] = n * at - np.append(0.0, np.cumsum(stamps))[n]
    return since


def _path(bars: Iterable[Bar], bottom: float, high: float, scale: float) -> Iterator[str]:
    for begin, end, height in bars:
        wide = max(0.4, (end - begin) * scale - 0.4)  # so that what ends and what begins can be told apart
        tall = round(height * high, 1)
        yield f"M{_LEFT + begin * scale:.1f} {bottom}v-{tall:g}h{wide:.1f}v{tall:g}z"


def _axis(span_ns: int, bottom: float, scale: float, about: str) -> Iterator[str]:
    unit, unit_ns = next((u for u in (("s", 1e9), ("ms", 1e6), ("µs", 1e3)) if span_ns >= u[1]), ("ns", 1.0))
    span = span_ns / unit_ns
    power = 10.0 ** math.floor(math.log10(span / 4))
    step = next(power * m for m in (1, 2, 5, 10) if span <= 6 * power * m)
    for i in range(int(span / step) + 1):
        x = _LEFT + i * step * unit_ns * scale
        yield f'<path d="M{x:.1f} {bottom}v4" stroke="currentColor"/>{_text(x, bottom + 14, f"{i * step:g}", "middle")}'
    yield _text(_LEFT + _WIDTH / 2, bottom + 28, f"time since the call ({unit}){about}", "middle")


def _text(x: float, y: float, text: str, anchor: str = "middle") -> str:
    return f'<text x="{x:.1f}" y="{y:g}" text-anchor="{anchor}" fill="currentColor">{text}</text>'
