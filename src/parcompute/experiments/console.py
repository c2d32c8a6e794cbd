"""Show a sweep while it runs: a live table on a terminal, a line per run elsewhere."""

from __future__ import annotations

import statistics
import sys
import time
from collections.abc import Sequence
from types import TracebackType
from typing import Any, Self

from parcompute.values.sweep import BESIDE_S, Configuration, Run, Sweep


def open_console(sweep: Sweep, kept: Sequence[Run], n_missing: int) -> Lines | Live:
    """Return the console that fits standard output; it shows what is `starting`, and the run that has `ended`.

    Parameters
    ----------
    sweep : Sweep
        What runs.
    kept : sequence of Run
        Runs that exist already.
    n_missing : int
        Runs that will be made, those that only warm up included.
    """
    progress = Progress(sweep, kept, n_missing)
    if sys.stdout.isatty():
        from rich.console import Console as Screen

        if not (screen := Screen()).is_dumb_terminal:
            return Live(progress, screen)
    return Lines(progress)


class Progress:
    """What is known of a sweep so far: times per configuration, and how long the rest will take."""

    def __init__(self, sweep: Sweep, kept: Sequence[Run], n_missing: int) -> None:
        self.sweep = sweep
        self.n_missing = n_missing
        self.wall_s: dict[Configuration, list[float]] = {c: [] for c in sweep.configurations}
        for run in kept:
            self.wall_s[run.configuration].append(run.wall_s)
        self.n_disturbed = sum(bool(run.disturbed) for run in kept)
        self.spent_s = sum(run.startup_s + run.wall_s + BESIDE_S for run in kept)
        self.now = ""
        self._began_s: float | None = None
        self._took_s: list[float] = []

    @property
    def n_ended(self) -> int:
        """How many runs have ended, those that only warm up included."""
        return len(self._took_s)

    def begin(self, round_: int, configuration: Configuration) -> None:
        """Note that a run begins."""
        self._end()
        self._began_s = time.monotonic()
        self.now = f"{self.which(round_)}: {configuration.name}"

    def which(self, round_: int) -> str:
        """Name a round."""
        if round_ < 0:
            return "warm-up"
        further = round_ >= self.sweep.n_rounds
        return (
            f"round {round_ + 1}{f', to ±{100 * self.sweep.precision:g} %' if further else f'/{self.sweep.n_rounds}'}"
        )

    def add(self, run: Run) -> None:
        """Note that the run has ended, and its time; the time of a wrong result is none."""
        self._end()
        self.spent_s += run.startup_s + run.wall_s + BESIDE_S
        if run.verified:
            self.wall_s[run.configuration].append(run.wall_s)
        self.n_disturbed += bool(run.disturbed)

    def _end(self) -> None:
        # A run that only warms up ends unsaid, when the next begins.
        if self._began_s is not None:
            self._took_s.append(time.monotonic() - self._began_s)
            self._began_s = None

    def left(self) -> str:
        """Return the time that the rest will take, as the runs so far took on average; every round is alike."""
        n_left = self.n_missing - self.n_ended
        if n_left < 0:  # further rounds
            seconds = max(0, int(self.sweep.budget_s - self.spent_s))
            return f"at most {seconds // 60}:{seconds % 60:02d} left"
        if not self._took_s or not n_left:
            return ""
        since_s = 0.0 if self._began_s is None else time.monotonic() - self._began_s
        mean_s = statistics.fmean(self._took_s)
        seconds = int(mean_s * n_left - min(since_s, mean_s))
        return f"{seconds // 60}:{seconds % 60:02d} left"

    def speedup(self, configuration: Configuration) -> str:
        """Return the speed-up over the serial runs so far, as text."""
        base = [s for c, s in self.wall_s.items() if c.backend == "serial" and c.n_items == configuration.n_items and s]
        own = self.wall_s[configuration]
        return f"{statistics.median(base[0]) / statistics.median(own):.2f}×" if base and own else ""


class Lines:
    """One line per run."""

    def __init__(self, progress: Progress) -> None:
        self.progress = progress
        self._wide = max(len(c.name) for c in progress.sweep.configurations)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        pass

    def starting(self, round_: int, configuration: Configuration) -> None:
        """Say nothing yet."""
        self.progress.begin(round_, configuration)

    def ended(self, run: Run) -> None:
        """Print a line."""
        progress, c = self.progress, run.configuration
        progress.add(run)
        result = f"{run.wall_s:9.4f} s  {progress.speedup(c):>7}  verified" if run.verified else "WRONG RESULT"
        disturbed = f"disturbed: {run.disturbed.partition(';')[0]}" if run.disturbed else ""
        parts = (
            progress.which(run.round),
            f"{c.name:<{self._wide}}",
            result,
            progress.left(),
            disturbed,
        )
        print("  ".join(filter(None, parts)), flush=True)


class Live:
    """A table that stays in its place."""

    def __init__(self, progress: Progress, screen: Any) -> None:
        from rich.live import Live as RichLive

        self.progress = progress
        self._live = RichLive(get_renderable=self._picture, console=screen, refresh_per_second=4, transient=False)

    def __enter__(self) -> Self:
        self._live.__enter__()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.progress.now = "" if error is None else f"{self.progress.now}: stopped"
        self._live.refresh()
        self._live.__exit__(kind, error, trace)

    def starting(self, round_: int, configuration: Configuration) -> None:
        """Show what runs now."""
        self.progress.begin(round_, configuration)
        self._live.refresh()

    def ended(self, run: Run) -> None:
        """Show its time."""
        self.progress.add(run)
        self._live.refresh()

    def _picture(self) -> Any:
        from rich.console import Group
        from rich.table import Table
        from rich.text import Text

        progress = self.progress
        done, of = progress.n_ended, max(progress.n_ended, progress.n_missing)
        bar = "█" * round(12 * done / max(1, of))
        # Above the table: what does not fit into the window is cut off below.
        disturbed = f"{progress.n_disturbed} disturbed" if progress.n_disturbed else ""
        line = "  ".join(filter(None, (f"{bar:░<12} {done} of {of}", progress.left(), progress.now, disturbed)))
        table = Table(box=None, padding=(0, 2, 0, 0))  # without rules it fits 60 characters
        table.add_column("backend")
        for heading in ("workers", "runs", "last (s)", "median (s)", "speed-up"):
            table.add_column(heading, justify="right")
        for configuration, wall_s in progress.wall_s.items():
            times = (f"{wall_s[-1]:.4f}", f"{statistics.median(wall_s):.4f}") if wall_s else ("", "")
            factors = (configuration.way, str(configuration.n_workers), str(len(wall_s)))
            table.add_row(*factors, *times, progress.speedup(configuration))
        return Group(Text(line), table)
