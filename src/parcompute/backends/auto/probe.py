"""Tell from the clocks of a few threads whether a kernel lets go of the interpreter lock, while it runs.

Their CPU time can be read at any moment, also in the middle of a kernel:

    two threads      1.95 CPUs busy: it lets go        1.01: they take turns        0.04: it waits, for files say

What cannot be told that way is whether processes do better, until some have done blocks of the same job too.
"""

from __future__ import annotations

import collections
import contextlib
import os
import sys
import threading
import time
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field

from parcompute.backends.kinds import SHORT_NS

# Before the first look, and then twice as long each time; for how long so many threads must have computed before a
# choice is made; and for how long if it is not the lock that they wait for. At first that may be the scheduler, which
# gives each a CPU of its own, or new pages.
STEP_S, ENOUGH_S, LONG_S = 0.002, 0.005, 0.05

# n threads should get so much of n CPUs; noise on a busy machine takes the rest.
FREE_ABOVE = 0.75

# Threads that are busy for less than this, all of them together, wait for something else than the lock.
WAITS_BELOW = 0.3

# Where threads wait for each other, processes are tried with so many jobs of less seconds: the first may be slow since
# memory is mapped and code is loaded. Of the last few jobs the fastest counts, as nothing makes one faster.
BRIEF_S, TRIED, _REMEMBERED = 0.1, 2, 3

# Who looks wants the interpreter lock too. If others hold it, it asks for it after so long. By default that is 5 ms,
# and as the lock may go to another one that asks, the look comes too late by tens of them.
_ASK_S = 0.0005

# Looks that are so late show that the lock is held, if the threads together are not busy for more than one CPU has.
LATE_S, ONE_BELOW = 0.0003, 1.1

# Many threads that are busy for less than this share of as many CPUs get in each other's way, not in the scheduler's.
FEW_BELOW = 0.25

_asking = threading.Lock()
_n_asking, _before_s = 0, 0.0


@contextlib.contextmanager
def short_turns() -> Iterator[None]:
    """Have threads that hold the interpreter lock pass it on often, so that this one sees the clocks in time."""
    global _n_asking, _before_s
    with _asking:
        if not _n_asking:
            _before_s = sys.getswitchinterval()
            sys.setswitchinterval(_ASK_S)
        _n_asking += 1
    try:
        yield
    finally:
        with _asking:
            _n_asking -= 1
            if not _n_asking:
                sys.setswitchinterval(_before_s)


def _after_fork_in_child() -> None:
    global _asking, _n_asking
    _asking, _n_asking = threading.Lock(), 0


os.register_at_fork(after_in_child=_after_fork_in_child)


class Clocks:
    """The CPU time of some threads.

    Parameters
    ----------
    idents : iterable of int
        `threading.get_ident` of each; they must be alive whenever the clocks are read.
    """

    def __init__(self, idents: Iterable[int]) -> None:
        self._clocks = [time.pthread_getcpuclockid(ident) for ident in idents]

    def read(self) -> Reading:
        """Read all of them."""
        return Reading(time.perf_counter(), sum(map(time.clock_gettime, self._clocks)))


@dataclass(frozen=True, slots=True)
class Reading:
    """Wall time, and the CPU time of some threads up to then, in seconds."""

    wall_s: float
    cpu_s: float


@dataclass(frozen=True, slots=True)
class Verdict:
    """Which backend serves a job best, and why."""

    backend: str
    why: str


@dataclass(slots=True)
class Work:
    """What has been done in some time."""

    wall_s: float = 0.0
    cpu_s: float = 0.0
    n_blocks: int = 0
    late_s: float = 0.0
    n_looks: int = 0

    def add(self, wall_s: float, cpu_s: float, n_blocks: int, late_s: float | None = None) -> None:
        """Add what was done in some more, and how late somebody looked who wanted to look sooner."""
        self.wall_s += wall_s
        self.cpu_s += cpu_s
        self.n_blocks += n_blocks
        if late_s is not None:
            self.late_s += late_s
            self.n_looks += 1

    @property
    def busy(self) -> float:
        """How many CPUs were kept busy."""
        return self.cpu_s / self.wall_s

    @property
    def per_s(self) -> float:
        """How many blocks a second were finished; the first may not be by now."""
        return max(self.n_blocks, 1) / self.wall_s

    @property
    def enough(self) -> bool:
        """Whether it says something."""
        return self.wall_s >= ENOUGH_S

    def held(self, n_threads: int) -> bool:
        """Whether it was the interpreter lock that so many threads have waited for."""
        one_by_one = self.late_s > LATE_S * self.n_looks and self.busy < ONE_BELOW
        return not self.waits and (one_by_one or self.short or self.busy < FEW_BELOW * n_threads)

    @property
    def short(self) -> bool:
        """Whether its blocks are so short that threads are busy with fighting for the lock."""
        return self.cpu_s < SHORT_NS / 1e9 * self.n_blocks

    @property
    def waits(self) -> bool:
        """Whether threads have waited for something else than the lock."""
        return self.busy < WAITS_BELOW

    def lets_go(self, n_threads: int) -> bool:
        """Whether so many threads have computed at the same time."""
        return self.busy >= FREE_ABOVE * n_threads and not self.short


class Jobs:
    """How fast the last whole jobs were."""

    def __init__(self) -> None:
        self._per_s: collections.deque[float] = collections.deque(maxlen=_REMEMBERED)

    def __len__(self) -> int:
        return len(self._per_s)

    def add(self, wall_s: float, n_blocks: int) -> None:
        """Add one that took so long for so many blocks."""
        self._per_s.append(n_blocks / max(wall_s, 1e-9))

    @property
    def per_s(self) -> float:
        """Blocks a second of the fastest; 0 if there was none."""
        return max(self._per_s, default=0.0)


@dataclass(slots=True)
class Evidence:
    """What is known of a kernel; it may come from several jobs.

    Examples
    --------
    >>> held, free = Evidence(), Evidence()
    >>> held.of_threads(2).add(wall_s=0.010, cpu_s=0.010, n_blocks=10, late_s=0.001)
    >>> free.of_threads(2).add(wall_s=0.010, cpu_s=0.019, n_blocks=10)
    >>> held.verdict(n_workers=2, n_left=10_000, hand_over_s=0).backend
    'processes'
    >>> free.verdict(n_workers=2, n_left=10_000, hand_over_s=0).backend
    'threads'
    """

    threads: Jobs = field(default_factory=Jobs)
    processes: Jobs = field(default_factory=Jobs)
    takes_turns: bool = False  # whole jobs have shown that one thread is as fast as all
    _threads: dict[int, Work] = field(default_factory=dict)

    def of_threads(self, n: int) -> Work:
        """Return what n threads have done that computed at once."""
        return self._threads.setdefault(n, Work())

    def wants_more(self, n_threads: int) -> bool:
        """Whether more threads than these should compute: they finish blocks soon, or do not take turns."""
        work = self.of_threads(n_threads)
        return work.n_blocks > 0 or (work.enough and (work.waits or work.lets_go(n_threads)))

    def next_look_s(self, n_threads: int, last_s: float, hand_over_s: float) -> float:
        """Return in how many seconds to look at so many threads again: twice as many, or as soon as it is enough."""
        lacking_s = max(ENOUGH_S, hand_over_s) - self.of_threads(n_threads).wall_s
        longer_s = min(2 * last_s, LONG_S)
        return min(longer_s, max(lacking_s, STEP_S)) if lacking_s > 0 else longer_s

    def verdict(self, n_workers: int, n_left: int, hand_over_s: float) -> Verdict | None:
        """Choose, or return None to see more.

        Parameters
        ----------
        n_workers : int
            CPUs to be used.
        n_left : int
            Blocks that nobody has finished.
        hand_over_s : float
            What it takes to bring the arrays where processes reach them.
        """
        if n_workers == 1:
            return Verdict("threads", "there is one worker, and a thread has no hand-over to pay")
        n = max((n for n, work in self._threads.items() if work.enough), default=0)
        if not n:
            return None
        threads = self._threads[n]
        found = f"{n} threads keep {threads.busy:.2f} CPUs busy"
        if threads.lets_go(n) and not self.takes_turns:
            found += ": the kernel lets go of the interpreter lock"
            return Verdict("threads", found) if n == n_workers else None
        # Whoever looks for as long as a hand-over takes has lost no more than that if it was right to look on.
        fight = self.takes_turns or threads.held(n)
        if threads.wall_s < max(ENOUGH_S if fight else LONG_S, hand_over_s):
            return None
        if threads.waits:
            return Verdict("threads", f"{found}: the kernel waits")
        per_s = self.threads.per_s or threads.per_s
        # Threads that fight for the lock are busy, and together as fast as one of them.
        by_processes = threads.per_s * n_workers / (1 if self.takes_turns or threads.short else threads.busy)
        if self.processes:
            by_processes = self.processes.per_s
            found += f", and finish {per_s:.3g} blocks a second, {n_workers} processes {by_processes:.3g}"
        alone_s, moved_s = n_left / per_s, n_left / by_processes + hand_over_s
        if self.threads and len(self.processes) < TRIED and moved_s < min(2 * alone_s, BRIEF_S):
            return Verdict("processes", f"{found}: to see how fast they are, since the job is short")
        if moved_s < alone_s:
            return Verdict("processes", f"{found}: they wait for each other")
        return Verdict("threads", f"{found}, but to hand the arrays over to processes costs more than that")
