"""Turn a function with a truth into an experiment: sweep, verify, record, fit, draw, tell.

experiments/NAME.py ── sweep ─► measure ── runs ─► record ─► results/<machine>/NAME.h5
                                                                │
                                         verdict ◄── scaling ◄──┴──► figures ─► NAME-*.png, NAME-*.svg
"""

from __future__ import annotations

import inspect
import platform
import re
import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from parcompute.provenance import Provenance
    from parcompute.record import Recorded
    from parcompute.sweep import Check, Configuration, Run, Sweep


@dataclass(frozen=True, eq=False)
class Experiment:
    """A function of (executor, n_items, seed), the sizes at which it runs, and the truth it is held against.

    Make one with `parcompute.experiment`.

    Attributes
    ----------
    function : callable
        ``function(executor, n_items, seed)`` returns the result.
    n_items : mapping of str to int
        The size of each preset; ``"default"`` is one of them.
    truth : callable
        ``truth(result, n_items)`` returns a `parcompute.Check`.
    name : str
        Names the files of its results.
    question : str
        What it asks: the first line of its module.
    """

    function: Callable[[Any, int, int], Any]
    n_items: Mapping[str, int]
    truth: Callable[[Any, int], Check]
    name: str
    question: str

    def __call__(self, executor: Any, n_items: int, seed: int) -> Any:
        """Compute the result once."""
        return self.function(executor, n_items, seed)

    def main(self, argv: Sequence[str] | None = None) -> None:
        """Run the command line of the experiment, and leave the program with its exit status.

        Parameters
        ----------
        argv : sequence of str, optional
            The arguments; None takes the program's.
        """
        from parcompute.options import command_line

        command_line(self.name, self.question, self.n_items, lambda **chosen: perform(self, Choice(**chosen)), argv)


def experiment(
    *, n_items: Mapping[str, int], truth: Callable[[Any, int], Check]
) -> Callable[[Callable[[Any, int, int], Any]], Experiment]:
    """Make an experiment of a function ``(executor, n_items, seed) -> result``.

    Parameters
    ----------
    n_items : mapping of str to int
        The size of each preset. ``"quick"`` should take a fraction of a second on one core, ``"default"``
        a second, ``"full"`` keep a node of 64 cores busy for as long.
    truth : callable
        ``truth(result, n_items)`` returns a `parcompute.Check` of the result against something that is known
        independently. No time of a run that fails it is ever shown.

    Returns
    -------
    callable
        A decorator that returns an `Experiment`.

    Raises
    ------
    ValueError
        If there is no ``"default"`` size.
    """
    if "default" not in n_items:
        raise ValueError(f"n_items has the presets {', '.join(n_items) or 'none'}; give a 'default' one")

    def make(function: Callable[[Any, int, int], Any]) -> Experiment:
        module = inspect.getmodule(function)
        text = (getattr(module, "__doc__", None) or function.__doc__ or "").strip()
        return Experiment(function, dict(n_items), truth, function.__name__, text.partition("\n")[0])

    return make


@dataclass(frozen=True, slots=True)
class Choice:
    """What the command line has chosen of an experiment.

    Attributes
    ----------
    preset : str
        Names the size.
    workers : tuple of int
        Numbers of workers; empty for 1, 2, 4, … usable CPUs.
    backends, schedules, start_methods : tuple of str
        Levels of these factors; start methods concern the backends that have one.
    threads_per_worker : int
        Threads that compute in each process of ``"processes"``.
    rounds, seed : int
        See `parcompute.sweep.Sweep`.
    results : Path or None
        Folder of the results; None is results/<machine>.
    """

    preset: str
    workers: tuple[int, ...]
    backends: tuple[str, ...]
    schedules: tuple[str, ...]
    start_methods: tuple[str, ...]
    threads_per_worker: int
    rounds: int
    seed: int
    results: Path | None


def sweep_of(chosen: Choice, n_items: int, n_cpus: int) -> Sweep:
    """Return all that is to be run.

    Parameters
    ----------
    chosen : Choice
        The levels of the factors.
    n_items : int
        The size.
    n_cpus : int
        CPUs that this process may use.
    """
    from parcompute.sweep import Configuration, Sweep, worker_counts

    configurations: list[Configuration] = []
    for backend in chosen.backends:
        threads = chosen.threads_per_worker if backend == "processes" else 1
        usual = worker_counts(max(1, n_cpus // threads))
        for n_workers in (1,) if backend == "serial" else chosen.workers or usual:
            for schedule in chosen.schedules:
                for start_method in chosen.start_methods if backend in ("processes", "pool") else ("",):
                    configurations.append(
                        Configuration(backend, n_workers * threads, threads, schedule, start_method, "strong", n_items)
                    )
    return Sweep(tuple(configurations), chosen.rounds, chosen.seed)


def perform(this: Experiment, chosen: Choice) -> Path:
    """Run what is missing of a sweep, record it, draw it, tell what came out; return the file.

    Raises
    ------
    ValueError
        If the experiment has no such preset.
    WrongResult
        If a run's result is not true or not the same bits as the others.
    RecordError
        If the file cannot be read or written.
    """
    from parcompute import console, machine, measure, record, tables
    from parcompute.provenance import Provenance
    from parcompute.studies import fit_limit, studies

    if chosen.preset not in this.n_items:
        raise ValueError(f"preset {chosen.preset!r} is unknown; {this.name} has {', '.join(this.n_items)}")
    provenance = Provenance.collect(Path(inspect.getfile(this.function)).parent, seed=chosen.seed, blas_threads=1)
    n_items = this.n_items[chosen.preset]
    sweep = sweep_of(chosen, n_items, machine.usable_cpus())
    path = (chosen.results or Path("results") / machine_name()) / f"{this.name}.h5"
    print(
        f"{this.question}\n{sweep_told(sweep, fit_limit(provenance, max(c.n_workers for c in sweep.configurations)))}",
        flush=True,
    )
    checks: list[Check] = []

    def truth(result: Any, n_items: int) -> Check:
        checks.append(this.truth(result, n_items))
        return checks[-1]

    with record.Record.open(path, this.name) as file:
        recorded = record.read(path)
        known = runs_like(recorded, sweep.seed, provenance)
        kept = [known[visit] for visit in sweep.visits() if visit in known]
        missing = sweep.visits_missing(known)
        if apart := kept_apart(recorded, sweep, provenance):
            print(apart)
        if kept:
            n_missing = sum(round_ >= 0 for round_, _ in missing)
            print(f"{path} has {len(kept)} of these runs; {n_missing or 'none'} to make", flush=True)
        if missing:
            id = file.add_provenance(provenance.id, provenance.as_dict())
            done = {visit: run.digest for visit, run in known.items()}
            with console.open_console(sweep, kept, len(missing)) as shown, warnings.catch_warnings():
                warnings.filterwarnings("ignore", r"workers=\d+ is more than")  # said above, once
                for run in measure.measure(sweep, this.function, truth, id, done=done, starting=shown.starting):
                    file.append(run)
                    shown.ended(run)
    own = (provenance.conditions_id, n_items, sweep.seed)
    (study,) = (s for s in studies(record.read(path, timelines=True)) if (s.conditions, s.n_items, s.seed) == own)
    if checks:
        print(f"\nagainst the truth: {checks[-1]}")
    print("\n".join(["", *tables.table(study), "", *tables.verdicts(study), ""]), flush=True)
    if any(run.disturbed for run in study.runs):
        print(
            f"what was disturbed is in no number above; --rounds {2 * sweep.n_rounds} makes more runs, these are kept\n"
        )
    print(path)
    if study.curves:
        from parcompute import plates  # only now: what is recorded and told needs no Matplotlib

        for figure in plates.save(path, conditions=study.conditions, seed=study.seed, n_items=n_items):
            print(figure)
    return path


def sweep_told(sweep: Sweep, n_cpus: int) -> str:
    """Say in a sentence what a sweep is, and what of it cannot be fitted."""
    counts = sorted({c.n_workers for c in sweep.configurations})
    backends = list(dict.fromkeys(c.backend for c in sweep.configurations))
    cpus = f"{n_cpus} usable CPU{'s' * (n_cpus > 1)}"
    text = (
        f"{sweep.configurations[0].n_items:,} items, seed {sweep.seed}; {', '.join(backends)} "
        f"on {', '.join(map(str, counts))} of {cpus}; "
        f"{sweep.n_rounds} round{'s' * (sweep.n_rounds > 1)} in random order after one to warm up"
    )
    if counts[-1] > n_cpus:
        text += f"\nmore workers than the {cpus}: these runs are recorded and left out of fits"
    return text


def runs_like(recorded: Recorded, seed: int, provenance: Provenance) -> dict[tuple[int, Configuration], Run]:
    """Return the runs of a file with the same conditions and seed, verified: their results have to agree."""
    from parcompute.provenance import Provenance

    alike = {
        id
        for id, fields in recorded.provenance.items()
        if Provenance.from_fields(fields).conditions_id == provenance.conditions_id
    }
    return {
        (run.round, run.configuration): run
        for run in recorded.runs
        if run.provenance in alike and run.seed == seed and run.verified
    }


def kept_apart(recorded: Recorded, sweep: Sweep, provenance: Provenance) -> str:
    """Say which runs of the same problem cannot be continued, and in what the newest differs; empty for none."""
    from parcompute.provenance import Provenance, differences

    sizes = {configuration.n_items for configuration in sweep.configurations}
    others = [
        unlike
        for run in recorded.runs
        if run.seed == sweep.seed and run.configuration.n_items in sizes
        if (unlike := differences(Provenance.from_fields(recorded.provenance[run.provenance]), provenance))
    ]
    if not others:
        return ""
    conditions = ", ".join(f"{name} {before!r} is now {now!r}" for name, before, now in others[-1])
    return f"{recorded.path} has {len(others)} runs under other conditions, kept apart: {conditions}"


def machine_name() -> str:
    """Return this machine's name as a folder may have it."""
    return re.sub(r"[^A-Za-z0-9.-]+", "-", platform.node()).strip("-.") or "machine"
