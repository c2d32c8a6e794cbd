"""Tables for a notebook, as HTML: a value shows itself without a library, in the colours of the page."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

# JupyterLab's own blue where there is one; on white and on black it shows.
INK = "var(--jp-brand-color1,#4a90d9)"


class Html(str):
    """Text that is HTML already; any other is escaped."""

    __slots__ = ()


def paragraph(text: str) -> Html:
    """Return a paragraph."""
    return Html(f"<p>{_html(text)}</p>")


def bullets(texts: Iterable[str]) -> Html:
    """Return a list with a bullet for each text; nothing for none."""
    items = "".join(f"<li>{_html(text)}</li>" for text in texts)
    return Html(items and f"<ul>{items}</ul>")


def table(heading: Sequence[str], rows: Iterable[Sequence[object]], align: str = "") -> Html:
    """Return a table.

    Parameters
    ----------
    heading : sequence of str
        Of each column, with its unit; empty for none.
    rows : iterable of sequence
        Cells.
    align : str
        ``l`` or ``r`` for each column; left the first and right the others if not said.

    Examples
    --------
    >>> table((), [("kernel", "<lambda>")], "ll")
    '<table><tr><td style="text-align:left">kernel</td><td style="text-align:left">&lt;lambda&gt;</td></tr></table>'
    """
    cells = [_cells("td", row, align) for row in rows]
    if heading:
        cells.insert(0, _cells("th", heading, align))
    return Html(f"<table>{''.join(f'<tr>{row}</tr>' for row in cells)}</table>")


def facts(of: Mapping[str, object]) -> Html:
    """Return a table of names and values."""
    return table((), of.items(), "ll")


def bar(share: float) -> Html:
    """Return a bar of a cell, whole for 1; nothing below 0."""
    width = 8 * min(1.0, share) if share > 0 else 0
    return Html(f'<div style="width:{width:.2f}em;height:0.8em;background:{INK}"></div>')


def _cells(tag: str, row: Sequence[object], align: str) -> str:
    sides = align or "l" + "r" * len(row)
    style = {"l": "left", "r": "right"}
    return "".join(
        f'<{tag} style="text-align:{style[side]}">{_html(cell)}</{tag}>' for side, cell in zip(sides, row, strict=False)
    )


def _html(value: object) -> str:
    from html import escape  # 2 ms, that programs without a notebook need not pay

    return value if isinstance(value, Html) else escape(str(value))
