"""What is varied in an experiment, and what came back.

A *configuration* is one choice of every factor. A *round* visits every configuration once in random
order. A *run* is one timed execution of one configuration.
"""

from __future__ import annotations

import math
from collections.abc import Container, Iterable, Iterator, Sequence
from dataclasses import dataclass, field

import numpy as np

from parcompute.machine.quiet import Counters
from parcompute.values.intervals import summarise
from parcompute.values.timeline import Timeline

# Seconds that a run takes beside itself: counters are read, workers end, the file is written.
BESIDE_S = 0.05

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
        Processes (or threads) over all nodes, and threads that claim in each process.
    schedule : str
        As `parcompute.values.blocks.Schedule` writes it.
    start_method : str
        ``"fork"``, ``"forkserver"``, ``"spawn"``, or ``""`` where the backend has no such choice.
    kind : {"strong", "weak"}
        Whether the work is the same for every number of workers or grows with it.
    n_items : int
        Size of the index space.
    blas_threads : int
        Threads of BLAS and OpenMP in each worker.
    variant : str
        Which of the experiment's own ways to compute the same; empty where it has only one.
    n_nodes : int
        Nodes (hosts) that the workers are on, as many on each.
    """

    backend: str
    n_workers: int
    threads_per_worker: int
    schedule: str
    start_method: str
    kind: str
    n_items: int
    blas_threads: int = 1
    variant: str = ""
    n_nodes: int = 1

    def __str__(self) -> str:
        return f"{self.backend} × {self.n_workers}"

    @property
    def way(self) -> str:
        """The way of running: the backend, and the other factors where they are not as usual."""
        return f"{self._way_of_a_node}{self._on_nodes}"

    @property
    def name(self) -> str:
        """The way of running with its number of workers: ``"mpi × 8 on 2 nodes"``."""
        return f"{self._way_of_a_node} × {self.n_workers}{self._on_nodes}"

    @property
    def n_items_of_one(self) -> int:
        """Size of the problem; for weak scaling of one worker's share."""
        return self.n_items if self.kind == "strong" else self.n_items // self.n_workers

    def is_serial_of(self, other: Configuration) -> bool:
        """Whether it is the serial way to compute what `other` does, for weak scaling one worker's share of it."""
        return self.backend == "serial" and (self.n_items, self.variant) == (other.n_items_of_one, other.variant)

    @property
    def _on_nodes(self) -> str:
        return f" on {self.n_nodes} nodes" if self.n_nodes > 1 else ""

    @property
    def _way_of_a_node(self) -> str:
        threads = f"{self.threads_per_worker} threads" if self.threads_per_worker > 1 else ""
        blas = f"{self.blas_threads} BLAS threads" if self.blas_threads > 1 else ""
        levels = (self.variant, self.schedule, self.start_method, threads, blas)
        return " ".join((self.backend, *(level for level in levels if level not in USUAL)))


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
    counters : Counters
        What the counters of the machine said before and after it.
    timelines : tuple of Timeline
        Of its jobs, in their order; empty where it had none or they were not kept.
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
    counters: Counters = field(default_factory=Counters)
    timelines: tuple[Timeline, ...] = ()

    @property
    def is_valid(self) -> bool:
        """Whether it computed the right thing in some time: verified, and with a time."""
        return self.verified and math.isfinite(self.wall_s) and self.wall_s > 0

    @property
    def counts(self) -> bool:
        """Whether it may be part of a time: valid and undisturbed."""
        return self.is_valid and not self.disturbed


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
        Rounds that visit every configuration.
    seed : int
        Of the random streams, and of the order within the rounds.
    precision : float
        Further rounds visit the configurations whose median time is known less well: half of its 95 % interval over
        itself. Infinite asks for none.
    budget_s : float
        Seconds that all runs may take, start-up included, before the further rounds end.
    rounds : tuple of int
        Those that are run here, where several share a sweep; empty for all.
    """

    configurations: tuple[Configuration, ...]
    n_rounds: int
    seed: int
    precision: float = math.inf
    budget_s: float = 0.0
    rounds: tuple[int, ...] = ()

    def visits(self) -> Iterator[tuple[int, Configuration]]:
        """Yield (round, configuration) in the order in which they run.

        Round -1 warms up: its runs are not recorded.
        """
        for round_ in (-1, *(self.rounds or range(self.n_rounds))):
            for configuration in round_order(self.configurations, self.seed, round_ + 1):
                yield round_, configuration

    def unsettled(self, runs: Iterable[Run]) -> list[Configuration]:
        """Return the configurations of which the runs do not tell the median time as well as is asked for.

        None as soon as the budget is spent: runs that were not worth it are told as they are.
        """
        walls_s: dict[Configuration, list[float]] = {c: [] for c in self.configurations}
        spent_s = 0.0
        for run in runs:
            if run.configuration in walls_s:
                spent_s += run.startup_s + run.wall_s + BESIDE_S
                if run.counts:
                    walls_s[run.configuration].append(run.wall_s)
        if spent_s >= self.budget_s or math.isinf(self.precision):
            return []
        return [c for c, times in walls_s.items() if not times or _relative_width(times) > self.precision]

    def visits_missing(self, done: Container[tuple[int, Configuration]]) -> list[tuple[int, Configuration]]:
        """Return the visits that are not done, with a warm-up for each configuration that has one."""
        counted = [visit for visit in self.visits() if visit[0] >= 0 and visit not in done]
        wanted = {configuration for _, configuration in counted}
        return [(r, c) for r, c in self.visits() if r < 0 and c in wanted] + counted


def _relative_width(times: Sequence[float]) -> float:
    median = summarise(times).median
    return math.inf if median.is_range else (median.high - median.low) / 2 / median.value


def by_nodes(runs: Sequence[Run]) -> list[Sequence[Run]]:
    """Part the runs of one way by the number of nodes, unless the number of workers tells it.

    It does where every node has as many workers, and no such number of workers was on another number of nodes.
    """
    shapes = {(run.configuration.n_workers, run.configuration.n_nodes) for run in runs}
    of_a_node = {n_workers // n_nodes for n_workers, n_nodes in shapes if n_nodes > 1}
    if len(of_a_node) < 2 and len({n_workers for n_workers, _ in shapes}) == len(shapes):
        return [runs]
    numbers = sorted({n_nodes for _, n_nodes in shapes})
    return [[run for run in runs if run.configuration.n_nodes == n] for n in numbers]


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
