"""What is varied in an experiment, and what came back.

A *configuration* is one choice of every factor. A *round* visits every configuration once in random
order. A *run* is one timed execution of one configuration.
"""

from __future__ import annotations

from collections.abc import Container, Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from parcompute.timeline import Timeline

# Levels that go without saying.
USUAL = ("", "guided", "forkserver")


@dataclass(frozen=True, slots=True, order=True)
class Configuration:
    """One choice of every factor of a sweep.

    Attributes
    ----------
    backend : str
        Name of the backend.
    n_workers, threads_per_worker : int
        Processes (or threads), and threads that claim in each process.
    schedule : str
        As `parcompute.blocks.Schedule` writes it.
    start_method : str
        ``"fork"``, ``"forkserver"``, ``"spawn"``, or ``""`` where the backend has no such choice.
    kind : {"strong", "weak"}
        Whether the work is the same for every number of workers or grows with it.
    n_items : int
        Size of the index space.
    """

    backend: str
    n_workers: int
    threads_per_worker: int
    schedule: str
    start_method: str
    kind: str
    n_items: int

    def __str__(self) -> str:
        return f"{self.backend} × {self.n_workers}"

    @property
    def way(self) -> str:
        """The way of running: the backend, and the other factors where they are not as usual."""
        threads = f"{self.threads_per_worker} threads" if self.threads_per_worker > 1 else ""
        others = (level for level in (self.schedule, self.start_method, threads) if level not in USUAL)
        return " ".join((self.backend, *others))


@dataclass(frozen=True, slots=True, eq=False)
class Run:
    """One timed execution of one configuration: a row of the file.

    Attributes
    ----------
    configuration : Configuration
        What ran.
    round : int
        From 0; rounds that only warm up are not recorded.
    seed : int
        Of the random streams, below 2**63.
    block_items, n_chunks : int
        The plan.
    wall_s, startup_s, cpu_s : float
        Seconds from call to result; from nothing to the last worker ready; CPU seconds inside kernels,
        over all workers.
    digest : str
        SHA-256 of the result's bytes, in hexadecimal.
    value, error, tolerance : float
        The result as a number where it is one (else NaN), its distance from the truth, and the largest
        distance that passes.
    verified : bool
        ``error <= tolerance`` and the same digest as every run of the same problem before it.
    disturbed : str
        Why the machine was not quiet; empty for an undisturbed run.
    started_utc : str
        ISO 8601.
    provenance : str
        Id of the conditions under which it ran.
    timeline : Timeline or None
        Of the last job of the run; None where it was not kept.
    """

    configuration: Configuration
    round: int
    seed: int
    block_items: int
    n_chunks: int
    wall_s: float
    startup_s: float
    cpu_s: float
    digest: str
    value: float
    error: float
    tolerance: float
    verified: bool
    disturbed: str
    started_utc: str
    provenance: str
    timeline: Timeline | None = None


@dataclass(frozen=True, slots=True)
class Check:
    """How a result compares with what is known to be true.

    Attributes
    ----------
    value, truth : float
        What the run says, and what is true.
    tolerance : float
        The largest distance between the two that passes; 0 asks for equality.
    how : str
        What the tolerance is, in words: ``"4 standard errors"``.
    """

    value: float
    truth: float
    tolerance: float
    how: str

    @property
    def error(self) -> float:
        """Distance from the truth."""
        return abs(self.value - self.truth)

    @property
    def passes(self) -> bool:
        """Whether the distance is within the tolerance; NaN is not."""
        return bool(self.error <= self.tolerance)

    def __str__(self) -> str:
        relation = "within" if self.passes else "NOT within"
        return (
            f"{self.value:.10g}, {self.error:.2g} from {self.truth:.10g}, {relation} {self.how} ({self.tolerance:.2g})"
        )


@dataclass(frozen=True, slots=True)
class Sweep:
    """All that is to be run.

    Attributes
    ----------
    configurations : tuple of Configuration
        Each is visited once per round.
    n_rounds : int
        Rounds that count.
    seed : int
        Of the random streams, and of the order within the rounds.
    """

    configurations: tuple[Configuration, ...]
    n_rounds: int
    seed: int

    def visits(self) -> Iterator[tuple[int, Configuration]]:
        """Yield (round, configuration) in the order in which they run.

        Round -1 warms up: its runs are not recorded.
        """
        for round_ in range(-1, self.n_rounds):
            for configuration in round_order(self.configurations, self.seed, round_ + 1):
                yield round_, configuration

    def visits_missing(self, done: Container[tuple[int, Configuration]]) -> list[tuple[int, Configuration]]:
        """Return the visits that are not done, with a warm-up for each configuration that has one."""
        counted = [visit for visit in self.visits() if visit[0] >= 0 and visit not in done]
        wanted = {configuration for _, configuration in counted}
        return [(r, c) for r, c in self.visits() if r < 0 and c in wanted] + counted


def worker_counts(n_cpus: int) -> tuple[int, ...]:
    """Return 1, 2, 4, … up to and with `n_cpus`.

    Examples
    --------
    >>> worker_counts(12)
    (1, 2, 4, 8, 12)
    """
    return (*(2**k for k in range((n_cpus - 1).bit_length())), n_cpus)


def round_order(configurations: Sequence[Configuration], seed: int, round_: int) -> list[Configuration]:
    """Return the configurations in the random order in which round `round_` visits them.

    Parameters
    ----------
    configurations : sequence of Configuration
        All of the sweep.
    seed : int
        Of the sweep's order, at least 0.
    round_ : int
        Number of the round; the same seed and round give the same order.
    """
    order = np.random.default_rng([seed, round_]).permutation(len(configurations))
    return [configurations[i] for i in order]
