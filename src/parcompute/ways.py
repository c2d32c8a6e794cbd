"""The ways to run a kernel, and which of those that were measured is advised, and why."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from parcompute.executor import Executor
from parcompute.intervals import Interval

# As fast within the noise: then the simpler way is advised.
SAME = 0.05


@dataclass(frozen=True, slots=True, order=True)
class Way:
    """One way to run a kernel; ways are ordered from simple to complicated.

    Attributes
    ----------
    rank : int
        How complicated it is to use: serial, threads, processes, and more threads in each of those.
    backend : str
        Name of the backend.
    workers, threads_per_worker, blas_threads : int
        As `parcompute.Executor` takes them.
    """

    rank: int
    backend: str
    workers: int
    threads_per_worker: int = 1
    blas_threads: int = 1

    def executor(self) -> Executor:
        """Return an executor of this way."""
        return Executor(
            self.workers,
            backend=self.backend,
            threads_per_worker=self.threads_per_worker,
            blas_threads=self.blas_threads,
        )

    def __str__(self) -> str:
        told = self.backend if self.backend == "serial" else f"{self.backend} × {self.workers}"
        if self.threads_per_worker > 1:
            told += f" with {self.threads_per_worker} threads each"
        return told + (f", {self.blas_threads} BLAS threads" if self.blas_threads > 1 else "")


@dataclass(frozen=True, slots=True)
class Measured:
    """What one way took on the sample.

    Attributes
    ----------
    way : Way
        Which.
    wall : Interval
        Seconds.
    speedup : Interval
        Time of the serial way over it.
    """

    way: Way
    wall: Interval
    speedup: Interval


SERIAL = Way(0, "serial", 1)


def ways(most: int) -> list[Way]:
    """Return the ways that are tried where `most` CPUs may be used."""
    found = [SERIAL]
    for n in sorted({min(2, most), most}):
        found += [Way(1, "threads", n), Way(2, "processes", n)] if n > 1 else []
    found.append(Way(2, "processes", 1))
    if most > 1:
        found += [Way(3, "processes", most // 2, threads_per_worker=2), Way(4, "processes", 1, blas_threads=most)]
    return found


def choose(measured: Iterable[Measured]) -> Way:
    """Return the fastest way, or the simplest of those that are as fast within the noise."""
    measured = list(measured)
    fastest = min(each.wall.value for each in measured)
    close = [each.way for each in measured if each.wall.value <= (1 + SAME) * fastest]
    return min(close, key=lambda way: (way.rank, way.workers * way.threads_per_worker, way))


def explain(measured: Mapping[Way, Measured], best: Way, waiting: float) -> list[str]:
    """Say what the numbers mean: the interpreter's lock, the memory bus, waiting, BLAS."""

    def speedup(way: Way) -> Interval | None:
        return measured[way].speedup if way in measured else None

    said = []
    threads, processes, one = (
        speedup(way) for way in (Way(1, "threads", 2), Way(2, "processes", 2), Way(2, "processes", 1))
    )
    if waiting > 0.2:
        said.append(
            f"it waits {100 * waiting:.0f} % of its time: threads can wait for each other's sake, more than CPUs"
        )
    if threads is not None:
        held = "lets go of the interpreter's lock" if threads.value > 1.5 else "holds the interpreter's lock"
        if 1.2 < threads.value <= 1.5:
            held = "holds the interpreter's lock for a part of its time"
        said.append(f"two threads against one: {told(threads)}, so it {held} (or the memory is the limit)")
    if processes is not None and one is not None:
        gain = processes.value / one.value
        bus = "more of them help" if gain > 1.5 else "bandwidth, or what is handed over, is the limit"
        said.append(f"two processes against one: {gain:.2f}×, {bus}")
        said.append(f"one process against none: {told(one)}, which is what handing over costs")
    blas = next((way for way in measured if way.blas_threads > 1), None)
    if blas is not None and one is not None and measured[blas].speedup.value > 1.2 * one.value:
        said.append(f"BLAS uses its own threads well: {told(measured[blas].speedup)} with {blas.blas_threads}")
    said.append(f"{best}: {told(measured[best].speedup)} over serial, the fastest or as fast within {100 * SAME:.0f} %")
    return said


def told(S: Interval) -> str:
    """Return a ratio with its interval as text."""
    return f"{S.value:.2f}× ({'range' if S.is_range else '95 %'} {S.low:.2f}–{S.high:.2f})"
