"""Show jobs that run, all in one place: a terminal's last lines, one output of a notebook's cell, or a log.

On a terminal, what is printed meanwhile scrolls in the lines above (as apt has it): by this process, by its workers, or
by another bar, none of which know of these, and find the cursor where they left it. A library for progress has to see
what is printed, and that of a worker process goes past it.
"""

from __future__ import annotations

import atexit
import contextlib
import os
import sys
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from html import escape
from typing import Any, ClassVar, Protocol

# In a log, the first line of a job comes after so long; another one with each tenth of the job, or after twice the
# time, and never sooner than so long after the last. A job of a week has fewer than 30.
LINE_S = 10.0

# A terminal shows at most so many jobs at once: those that began first.
MOST_ROWS = 8

_WIDEST_BAR = 40


@dataclass(eq=False, slots=True)
class Row:
    """What is known of one job that runs.

    Attributes
    ----------
    name : str
        Of its kernel.
    n_blocks : int
        Of the job.
    inner : bool
        Whether it began while others ran: within one of them, perhaps.
    n_done, n_failed : int
        Blocks so far; those that have failed are known at the end of most jobs.
    end : str
        How it has ended: ``"done"``, ``"enough"`` or ``"stopped"``; empty while it runs.
    shown : bool
        Whether it is, or was.
    began_s, took_s : float
        When it began, and how long it had taken at the last look.
    """

    name: str
    n_blocks: int
    inner: bool = False
    n_done: int = 0
    n_failed: int = 0
    end: str = ""
    shown: bool = False
    began_s: float = field(default_factory=time.monotonic)
    took_s: float = 0.0
    _first: tuple[float, int] | None = None
    _told: tuple[float, float] = (0.0, 0.0)  # when a log had its last line of this job, and of what share

    def __post_init__(self) -> None:
        self.name = _cropped("".join(letter if letter.isprintable() else " " for letter in self.name), 40)

    def look(self, n_done: int) -> None:
        """Note how many blocks are done by now."""
        self.n_done, self.took_s = max(self.n_done, n_done), time.monotonic() - self.began_s
        if self._first is None:  # what a checkpoint had is no work of this job
            self._first = self.took_s, self.n_done

    @property
    def share(self) -> float:
        """How much of it is done, from 0 to 1."""
        return self.n_done / self.n_blocks

    @property
    def words(self) -> str:
        """How far it is."""
        failed = f", {self.n_failed} failed" if self.n_failed else ""
        blocks = f"{self.n_done} of {self.n_blocks} blocks"
        if self.end:
            how = "" if self.end == "done" else f"{self.end} after "
            return f"{how}{blocks} in {_clock(self.took_s)}{failed}"
        return f"{blocks}, {int(100 * self.share)} %{self._left()}{failed}"

    def _left(self) -> str:
        if self._first is None or (n := self.n_done - self._first[1]) <= 0:
            return ""
        return f", {_clock((self.took_s - self._first[0]) * (self.n_blocks - self.n_done) / n)} left"

    def due(self) -> bool:
        """Whether a log is to have a line of it now."""
        told_s, share = self._told
        if self.took_s < told_s + LINE_S or (self.took_s < 2 * told_s and self.share < share + 0.1):
            return False
        self._told = self.took_s, self.share
        return True

    @property
    def lasting(self) -> bool:
        """Whether its end is worth a line: inner jobs would leave hundreds, but where a log has said that it runs."""
        return not self.inner or self._told[0] > 0


def _clock(seconds: float) -> str:
    """Return a duration as text.

    Examples
    --------
    >>> [_clock(s) for s in (0.04, 59.4, 60, 3600)]
    ['0.0 s', '59 s', '1:00', '1:00:00']
    """
    if seconds < 59.5:
        return f"{seconds:.{int(seconds < 9.95)}f} s"
    minutes, whole = divmod(round(seconds), 60)
    return f"{minutes // 60}:{minutes % 60:02d}:{whole:02d}" if minutes >= 60 else f"{minutes}:{whole:02d}"


def _cropped(text: str, width: int) -> str:
    return text if len(text) <= width else f"{text[: width - 1]}…"


class Place(Protocol):
    """Where jobs are shown."""

    def show(self, rows: Sequence[Row]) -> None:
        """Show those that run."""

    def end(self, row: Row, rows: Sequence[Row]) -> None:
        """Leave the end of one there for good; `rows` still run."""


def place_of(stream: Any) -> Place | None:
    """Return what suits standard error, or None if nobody would see it."""
    shell: Any = getattr(sys.modules.get("IPython"), "get_ipython", lambda: None)()
    if getattr(shell, "kernel", None) is not None:
        return Notebook(shell.execution_count)
    try:
        if stream.isatty() and os.environ.get("TERM", "") not in ("", "dumb", "unknown"):
            return Terminal(stream.fileno(), stream.encoding or "utf-8")
        return Log()
    except (AttributeError, OSError, ValueError):  # there is none, or it is closed
        return None


class Log:
    """A line now and then, for a file or a pipe."""

    def show(self, rows: Sequence[Row]) -> None:
        """Write a line of each job that is due for one."""
        for row in rows:
            if row.due():
                _write_line(row)

    def end(self, row: Row, rows: Sequence[Row]) -> None:
        """Write the last line."""
        _write_line(row)


def _write_line(row: Row) -> None:
    line = f"{row.name}: {row.words}"
    tqdm = getattr(sys.modules.get("tqdm"), "tqdm", None)
    if getattr(tqdm, "_instances", None):  # its bars make room; those of rich do so by themselves
        tqdm.write(line, file=sys.stderr)  # type: ignore[union-attr]
    else:
        sys.stderr.write(f"{line}\n")  # in one piece
        sys.stderr.flush()


class Terminal:
    """The last lines of a terminal, below those in which everything else scrolls.

    Parameters
    ----------
    fd : int
        Its descriptor. Each picture is one call of write, between whose bytes no other process puts its own.
    encoding : str
        Of what is written to it.
    """

    def __init__(self, fd: int, encoding: str) -> None:
        self._fd, self._encoding = fd, encoding
        self._n_kept = 0  # lines at the bottom that do not scroll
        self._height = 0
        self._inks = "█", "░"
        if "?" in "".join(self._inks).encode(encoding, "replace").decode(encoding):
            self._inks = "#", "-"

    def show(self, rows: Sequence[Row]) -> None:
        """Draw a line per job."""
        width, height = os.get_terminal_size(self._fd)
        width, height = width or 80, height or 24  # those that do not tell, as serial lines, are mostly of this size
        lines = [self._line(row, width) for row in rows[: min(MOST_ROWS, height // 2)]]
        if not (lines or self._n_kept):
            return
        picture = [*self._room(len(lines), height), "\x1b7\x1b[?7l"]
        for y, line in enumerate(lines, height - len(lines) + 1):
            picture.append(f"\x1b[{y};1H\x1b[2K{line}")
        picture.append("\x1b[?7h\x1b8")
        encoded = "".join(picture).encode(self._encoding, "replace")
        while encoded:
            encoded = encoded[os.write(self._fd, encoded) :]

    def end(self, row: Row, rows: Sequence[Row]) -> None:
        """Leave a line where the program prints."""
        _write_line(row)

    def _room(self, n: int, height: int) -> Iterator[str]:
        """Make `n` lines at the bottom the bars' own, and leave the cursor on the text on which it is."""
        if height != self._height:  # what was at the bottom is anywhere now
            if self._n_kept:
                yield "\x1b7\x1b[r\x1b8"
            self._n_kept, self._height = 0, height
        if n == self._n_kept:
            return
        if (more := n - self._n_kept) > 0:
            yield "\x1bD" * more + f"\x1b[{more}A"
        scrolls = f"1;{height - n}" if n else ""
        freed = "".join(f"\x1b[{height - y};1H\x1b[2K" for y in range(n, self._n_kept))
        yield f"\x1b7\x1b[{scrolls}r{freed}\x1b8"
        self._n_kept = n
        atexit.unregister(self._leave)
        if n:
            atexit.register(self._leave)

    def _leave(self) -> None:
        """Have the whole terminal scroll again, where a program exits in the middle of a job."""
        with contextlib.suppress(OSError):
            self.show(())

    def _line(self, row: Row, width: int) -> str:
        told = f"{row.name}: {row.words}"
        n_wide = min(_WIDEST_BAR, width - len(told) - 2)
        if n_wide < 4:  # the words are what matters
            return _cropped(row.words if n_wide < 0 else told, width)
        n_full = int(n_wide * row.share)
        full, empty = self._inks
        return f"{full * n_full}{empty * (n_wide - n_full)}  {told}"


class Notebook:
    """One output of a cell, changed in its place, however many jobs the cell has.

    Parameters
    ----------
    cell : int
        Its number.
    """

    _cell: ClassVar[int | None] = None  # whose output it is
    _output: ClassVar[Any] = None

    def __init__(self, cell: int) -> None:
        self._ended: list[Row] = []  # since one began alone
        if Notebook._cell != cell:
            Notebook._cell, Notebook._output = cell, None

    def show(self, rows: Sequence[Row]) -> None:
        """Show those that run, and those that have ended beside them."""
        from IPython import display

        if not (rows := [*self._ended, *rows]):
            return
        bundle = {
            "text/plain": "\n".join(f"{row.name}: {row.words}" for row in rows),
            "text/html": "".join(map(_html, rows)),
        }
        if Notebook._output is None:
            Notebook._output = display.display(bundle, raw=True, display_id=True)
        else:
            Notebook._output.update(bundle, raw=True)

    def end(self, row: Row, rows: Sequence[Row]) -> None:
        """Keep what has ended in sight."""
        self._ended.append(row)
        self.show(rows)


def _html(row: Row) -> str:
    bar = f'<progress value="{row.n_done}" max="{row.n_blocks}" style="width:16em;vertical-align:middle"></progress>'
    return f"<div><code>{escape(row.name)}</code> {bar} {escape(row.words)}</div>"
