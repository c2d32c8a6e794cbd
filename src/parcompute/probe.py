"""Tell from the clocks of a few threads whether a kernel lets go of the interpreter lock, while it runs.

One thread computes for some milliseconds, then a second one beside it, then four, eight, … as long as that pays.
The clocks of their CPU time can be read at any moment, also in the middle of a kernel:

    one thread                   0.98 CPUs busy
    two      1.95: twice as many: it lets go        1.01: they take turns       (one 0.02: it waits, for files say)
"""

from __future__ import annotations

import time
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path

from parcompute import procfs

# A step. Who holds the lock makes the asking thread wait for 5 ms more; who lets go of it should not wait for CPUs.
STEP_S = 0.002

# So many steps are seen before a choice is made for good: the clocks of a single one are off by a third at times.
LEAST_STEPS, ENOUGH_STEPS = 4, 8

# On a machine that others always use something has to be made of what there is.
MOST_DROPPED = 50

# A single thread that is busy for less than this share of the time waits for something else than the lock.
WAITS_BELOW = 0.3

# n threads should get so much of n times what one gets; noise on a busy machine takes the rest.
FREE_ABOVE = 0.75


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


def others_compute(n_threads: int) -> bool:
    """Whether more threads want CPUs now, on the whole machine, than those that compute here and the asking one."""
    # 0.20 0.18 0.12 1/80 11206: the fourth is runnable/all (proc(5)).
    fields = procfs.text(Path("/proc/loadavg")).split()
    return len(fields) > 3 and int(fields[3].partition("/")[0]) > n_threads + 1


@dataclass(frozen=True, slots=True)
class Verdict:
    """Which backend serves a kernel best, and why; or only this job of it, if the choice is not `lasting`."""

    backend: str
    why: str
    lasting: bool = True


@dataclass(slots=True)
class _Steps:
    """What so many threads have done in all steps in which they were so many."""

    n: int = 0
    wall_s: float = 0.0
    cpu_s: float = 0.0
    n_blocks: int = 0

    @property
    def busy(self) -> float:
        """How many CPUs they kept busy."""
        return self.cpu_s / self.wall_s


@dataclass(slots=True)
class Evidence:
    """What is known of a kernel; it may come from several jobs.

    Examples
    --------
    >>> held, free = Evidence(), Evidence()
    >>> for evidence, cpu_s in (held, 0.0041), (free, 0.0079):
    ...     evidence.add(1, Reading(0.0, 0.0), Reading(0.004, 0.0039), n_blocks=10)
    ...     for _ in range(ENOUGH_STEPS):
    ...         evidence.add(2, Reading(0.0, 0.0), Reading(0.004, cpu_s), n_blocks=10)
    >>> held.verdict(n_workers=2, n_left=10_000, hand_over_s=0).backend
    'processes'
    >>> free.verdict(n_workers=2, n_left=10_000, hand_over_s=0).backend
    'threads'
    """

    n_dropped: int = 0
    _of: dict[int, _Steps] = field(default_factory=dict)

    def add(self, n_threads: int, before: Reading, after: Reading, n_blocks: int, *, disturbed: bool = False) -> None:
        """Note a step: so many threads computed at once, and finished so many blocks.

        What others have disturbed says little, and is dropped unless there is nothing else.
        """
        if disturbed and self.n_dropped < MOST_DROPPED:
            self.n_dropped += 1
            return
        steps = self._of.setdefault(n_threads, _Steps())
        steps.n += 1
        steps.wall_s += after.wall_s - before.wall_s
        steps.cpu_s += after.cpu_s - before.cpu_s
        steps.n_blocks += n_blocks

    def pays(self, n_threads: int) -> bool:
        """Whether it looks as if twice as many threads would do more."""
        return n_threads not in self._of or n_threads == 1 or self._free(n_threads)

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
        if 1 not in self._of:
            return None
        n, one = max(self._of), self._of[1].busy
        last = self._of[n]
        if one < WAITS_BELOW and last.busy < WAITS_BELOW * n:
            return Verdict("threads", f"a thread that computes keeps {one:.2f} CPUs busy: the kernel waits")
        if n == 1 or last.n < LEAST_STEPS:
            return None
        found = f"{n} threads keep {last.busy:.2f} CPUs busy, one {one:.2f}"
        if self._free(n):
            free = Verdict("threads", f"{found}: the kernel lets go of the interpreter lock")
            return free if n == n_workers and last.n >= ENOUGH_STEPS else None
        n_blocks = sum(steps.n_blocks for steps in self._of.values())
        block_s = sum(steps.cpu_s for steps in self._of.values()) / max(n_blocks, 1)
        threads_s = n_left * block_s / last.busy
        processes_s = n_left * block_s / n_workers + hand_over_s
        if processes_s < threads_s:
            return Verdict("processes", f"{found}: the kernel holds the interpreter lock")
        if last.n < ENOUGH_STEPS:
            return None
        why = f"{found}, but to hand the arrays over to processes would take longer than that costs"
        return Verdict("threads", why, lasting=False)

    def _free(self, n: int) -> bool:
        """Whether n threads get nearly n times what one gets."""
        one = self._of[1].busy if 1 in self._of else 1.0
        return self._of[n].busy >= FREE_ABOVE * n * min(1.0, one)
