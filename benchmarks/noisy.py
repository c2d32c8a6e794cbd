"""How often intervals hold the truth, and how wide they are, on simulated machines that drift and are stolen from.

    machine ── rounds of six runs in random order ──▶ seconds, stolen share ── each way to estimate ──▶ coverage, width

`make noisy` prints the tables of docs/decisions/0024.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from scipy import stats

from parcompute.values.intervals import Interval, paired_ratio, ratio, summarise
from parcompute.values.rounds import ENOUGH

Floats = npt.NDArray[np.float64]

# Seconds of one worker and of two on the quiet machine, and runs of a round: other ways run in between.
ONE_S, TWO_S, RUNS_OF_A_ROUND = 1.9, 1.0, 6

# A run that more than this was stolen from is marked as disturbed.
MARKED = 0.01


@dataclass(frozen=True, slots=True)
class Machine:
    """What is wrong with a machine.

    Attributes
    ----------
    drift : float
        Its speed wanders by this share from one run to the next.
    bursts : float
        Chance that something slows a run down, by an exponential share of 30 % in the mean.
    tails : bool
        Runs scatter as Student's t with two degrees of freedom, not as a normal law.
    stolen : float
        Share of the time in which the hypervisor gives 2 to 40 % of a CPU to others, for five runs in the mean.
    """

    drift: float = 0.0
    bursts: float = 0.0
    tails: bool = False
    stolen: float = 0.0


MACHINES = {
    "quiet": Machine(),
    "drifts": Machine(drift=0.02),
    "bursts": Machine(bursts=0.15),
    "heavy tails": Machine(tails=True),
    "stolen, 16 % of the time": Machine(stolen=0.16),
    "stolen, 40 % of the time": Machine(stolen=0.40),
    "all of it": Machine(drift=0.02, bursts=0.15, tails=True, stolen=0.16),
}


@dataclass(frozen=True, slots=True)
class Session:
    """What was measured: seconds of one worker and of two, and the share that was stolen, one of each per round."""

    one: Floats
    two: Floats
    stolen_one: Floats
    stolen_two: Floats

    @property
    def quiet(self) -> npt.NDArray[np.bool_]:
        """The rounds of which neither run is marked."""
        return (self.stolen_one <= MARKED) & (self.stolen_two <= MARKED)


def sessions(machine: Machine, n_rounds: int, n: int, seed: int) -> Iterator[Session]:
    """Yield simulated sessions."""
    rng = np.random.default_rng(seed)
    n_runs = n_rounds * RUNS_OF_A_ROUND
    for _ in range(n):
        noise = 0.01 * (rng.standard_t(2, n_runs) if machine.tails else rng.normal(size=n_runs))
        slower = noise + machine.drift * np.cumsum(rng.normal(size=n_runs))
        slower += (rng.random(n_runs) < machine.bursts) * rng.exponential(0.3, n_runs)
        share = _stolen(machine.stolen, n_runs, rng)
        order = rng.permuted(np.tile(np.arange(RUNS_OF_A_ROUND), (n_rounds, 1)), axis=1)
        first = RUNS_OF_A_ROUND * np.arange(n_rounds)
        at_one, at_two = (first + np.argmax(order == which, axis=1) for which in (0, 1))
        # One CPU of two is stolen from: one worker is on it or not, of two workers one is, and the other takes over.
        stolen_one = share[at_one] * (rng.random(n_rounds) < 0.5)
        stolen_two = share[at_two] / 2
        one = ONE_S * np.exp(slower[at_one]) / (1 - stolen_one)
        two = TWO_S * np.exp(slower[at_two]) / (1 - stolen_two)
        yield Session(one, two, stolen_one, stolen_two)


def _stolen(of_time: float, n_runs: int, rng: np.random.Generator) -> Floats:
    """Return the share of a CPU that is stolen in each run: none, or for a while the same."""
    share, now = np.zeros(n_runs), 0.0
    for i in range(n_runs):
        if now and rng.random() < 1 / 5:
            now = 0.0
        if not now and rng.random() < of_time / (5 * (1 - of_time)):
            now = rng.uniform(0.02, 0.4)
        share[i] = now
    return share


# ── ways to estimate ──────────────────────────────────────────────────────────────────────────────────

NONE = Interval(np.nan, -np.inf, np.inf, True)


def unpaired(a: Floats, b: Floats) -> Interval:
    """Return the ratio of the medians with the interval of Mann and Whitney, whatever the rounds."""
    return ratio(a, b) if len(a) and len(b) else NONE


def weighted(session: Session) -> Interval:
    """Return the mean of the logarithms with Student's interval: a round counts less the more was stolen from it."""
    shifts = np.log(session.one / session.two)
    most = np.maximum(session.stolen_one, session.stolen_two)
    weights = 1 / (1 + (most / MARKED) ** 2)
    weights /= weights.sum()
    mean, n = float(weights @ shifts), len(shifts)
    error = float(np.sqrt(n / (n - 1) * weights**2 @ (shifts - mean) ** 2))
    half = float(stats.t.ppf(0.975, n - 1)) * error
    return Interval(float(np.exp(mean)), float(np.exp(mean - half)), float(np.exp(mean + half)), False)


def paired_of(session: Session, rounds: npt.NDArray[np.bool_]) -> Interval:
    """Return what `paired_ratio` says of some of the rounds."""
    return paired_ratio(session.one[rounds], session.two[rounds]) if rounds.any() else NONE


WAYS: Mapping[str, Callable[[Session], Interval]] = {
    "unpaired, marked left out": lambda s: unpaired(s.one[s.stolen_one <= MARKED], s.two[s.stolen_two <= MARKED]),
    "unpaired, all": lambda s: unpaired(s.one, s.two),
    "paired, marked left out": lambda s: paired_of(s, s.quiet),
    "paired, all": lambda s: paired_of(s, s.quiet | True),
    "paired, marked left out if six remain": lambda s: paired_of(s, s.quiet | (s.quiet.sum() < ENOUGH)),
    "paired, weighted": weighted,
}

# The same question of the time of two workers: its median.
TIMES: Mapping[str, Callable[[Session], Interval]] = {
    "median, marked left out": lambda s: median_of(s.two[s.stolen_two <= MARKED]),
    "median, all": lambda s: median_of(s.two),
}


def median_of(walls_s: Floats) -> Interval:
    """Return the median with its interval by binomial ranks."""
    return summarise(walls_s).median if len(walls_s) else NONE


@dataclass(frozen=True, slots=True)
class Outcome:
    """Of many sessions.

    Attributes
    ----------
    coverage : float
        Share of the intervals that hold the truth.
    width : float
        Median width of the intervals, as a share of the ratio.
    lacking : float
        Share of the sessions that give no interval: too few rounds are left.
    """

    coverage: float
    width: float
    lacking: float

    def __str__(self) -> str:
        lacking = f" ({100 * self.lacking:.0f})" if self.lacking >= 0.005 else ""
        return f"{100 * self.coverage:.1f} / {100 * self.width:.1f}{lacking}"


def outcome(found: list[Interval], truth: float) -> Outcome:
    """Summarise what one way says of many sessions."""
    intervals = [each for each in found if not each.is_range]
    if not intervals:
        return Outcome(np.nan, np.nan, 1.0)
    coverage = float(np.mean([not each.excludes(truth) for each in intervals]))
    width = float(np.median([np.log(each.high / each.low) for each in intervals]))
    return Outcome(coverage, width, 1 - len(intervals) / len(found))


def outcomes(
    machine: Machine, n_rounds: int, n: int, seed: int, asked: Sequence[str] = (*WAYS, *TIMES)
) -> dict[str, Outcome]:
    """Return what each of the ways that are asked says of the same sessions."""
    made = list(sessions(machine, n_rounds, n, seed))
    truths = dict.fromkeys(WAYS, ONE_S / TWO_S) | dict.fromkeys(TIMES, TWO_S)
    ways = {**WAYS, **TIMES}
    return {name: outcome([ways[name](session) for session in made], truths[name]) for name in asked}


def main() -> None:
    """Print coverage and median width in per cent, in brackets the share of sessions without an interval."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--sessions", type=int, default=2000)
    parser.add_argument("--rounds", type=int, nargs="+", default=[6, 10, 20])
    parser.add_argument("--seed", type=int, default=0)
    chosen = parser.parse_args()
    names = (*WAYS, *TIMES)
    print(f"| machine | rounds | {' | '.join(names)} |")
    print("| --- | --- |" + " --- |" * len(names))
    for name, machine in MACHINES.items():
        for n_rounds in chosen.rounds:
            found = outcomes(machine, n_rounds, chosen.sessions, chosen.seed)
            print(f"| {name} | {n_rounds} | {' | '.join(map(str, found.values()))} |", flush=True)


if __name__ == "__main__":
    main()
