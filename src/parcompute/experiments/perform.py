"""Perform an experiment: run what is missing of its sweep, record it, draw it, tell what came out.

experiments/NAME.py ── sweep ─► measure ── runs ─► record ─► results/<machine>/NAME.h5
                                                                │
                                         verdict ◄── scaling ◄──┴──► figures ─► NAME-*.png, NAME-*.svg
"""

from __future__ import annotations

import inspect
import itertools
import math
import platform
import re
import warnings
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from parcompute.analysis import tables
from parcompute.analysis.studies import fit_limit, most_of_a_node, studies
from parcompute.experiments import console, measure
from parcompute.experiments.command_line import BUDGET_S
from parcompute.figures import panels
from parcompute.machine import limits, malloc
from parcompute.machine.batch import tasks
from parcompute.machine.provenance import Provenance, differences
from parcompute.record import record
from parcompute.values.sweep import Check, Configuration, Run, Sweep, worker_counts

if TYPE_CHECKING:
    from parcompute.analysis.studies import Study
    from parcompute.record.record import Recorded


@dataclass(frozen=True, slots=True)
class Choice:
    """What the command line has chosen of an experiment.

    Attributes
    ----------
    preset : str
        Names the size.
    workers : tuple of int
        Numbers of workers, for backends of several nodes on each node; empty for 1, 2, 4, … usable CPUs. One runs in
        any case.
    backends, schedules, start_methods, variants : tuple of str
        Levels of these factors; start methods concern the backends that have one. The serial backend runs in any case.
    blas_threads : tuple of int
        Levels of the threads that BLAS and OpenMP use in each worker.
    scaling : {"strong", "weak", "both"}
        Whether the work stays the same, or grows with the number of workers.
    threads_per_worker : int
        Threads that compute in each process of ``"processes"``.
    rounds, seed : int
        See `parcompute.values.sweep.Sweep`.
    precision : float
        See `parcompute.values.sweep.Sweep`.
    budget : float or None
        Seconds; None is that of the preset.
    results : Path or None
        Folder of the results; None is results/<machine>.
    nodes : tuple of int
        Numbers of nodes, for the backends of several nodes; the others run on this host.
    cluster : str or None
        Address or scheduler file of the nodes of Dask; None leaves it to the executor.
    """

    preset: str
    workers: tuple[int, ...]
    backends: tuple[str, ...]
    schedules: tuple[str, ...]
    start_methods: tuple[str, ...]
    variants: tuple[str, ...]
    blas_threads: tuple[int, ...]
    scaling: str
    threads_per_worker: int
    rounds: int
    seed: int
    precision: float
    budget: float | None
    results: Path | None
    nodes: tuple[int, ...] = (1,)
    cluster: str | None = None


def sweep_of(chosen: Choice, sizes: Sequence[int], n_cpus: int) -> Sweep:
    """Return all that is to be run.

    Parameters
    ----------
    chosen : Choice
        The levels of the factors.
    sizes : sequence of int
        Of the problem; for weak scaling, of one worker's share.
    n_cpus : int
        CPUs that this process may use.
    """
    kinds = ("strong", "weak") if chosen.scaling == "both" else (chosen.scaling,)
    configurations = []
    # Both bases are always there: the serial backend, and one worker of each other way.
    for backend, variant, schedule, n_blas, n_items in itertools.product(
        dict.fromkeys(("serial", *chosen.backends)),
        chosen.variants or ("",),
        chosen.schedules,
        chosen.blas_threads,
        sizes,
    ):
        if backend == "serial":
            if (
                schedule == chosen.schedules[0]
            ):  # once, in few chunks: one worker takes all blocks in their order anyway
                configurations.append(Configuration("serial", 1, 1, "guided", "", "strong", n_items, n_blas, variant))
            continue
        threads = chosen.threads_per_worker if backend == "processes" else 1
        counts = chosen.workers or worker_counts(max(1, n_cpus // threads))
        shapes = {(n * n_nodes, n_nodes) for n in counts for n_nodes in measure.numbers_of_nodes(backend, chosen.nodes)}
        for n_workers, n_nodes in sorted({(1, 1)} | shapes):
            for start_method in chosen.start_methods if backend in ("processes", "pool") else ("",):
                for kind in kinds:
                    size = n_items * n_workers * threads if kind == "weak" else n_items
                    factors = (n_workers * threads, threads, schedule, start_method, kind, size, n_blas, variant)
                    configurations.append(Configuration(backend, *factors, n_nodes))
    precision = chosen.precision if chosen.rounds >= 6 else math.inf  # who asks for fewer has no interval to narrow
    n_rounds, rounds = chosen.rounds, tuple[int, ...]()
    if (part := tasks.own()) is not None:
        # Every task visits all configurations, in rounds of its own: so each node measures its own base. Further rounds
        # would need the runs of the others.
        n_rounds, precision = max(chosen.rounds, part.n_parts), math.inf
        rounds = tuple(range(part.number, n_rounds, part.n_parts))
    budget_s = BUDGET_S.get(chosen.preset, BUDGET_S["default"]) if chosen.budget is None else chosen.budget
    return Sweep(tuple(configurations), n_rounds, chosen.seed, precision, budget_s, rounds)


def perform(this: Any, chosen: Choice) -> Path:
    """Run what is missing of an experiment's sweep, record it, draw it, tell what came out; return the file.

    Raises
    ------
    ValueError
        If the experiment has no such preset.
    WrongResult
        If a run's result is not true or not the same bits as the others.
    RecordError
        If the file cannot be read or written.
    """
    if chosen.preset not in this.sizes:
        raise ValueError(f"preset {chosen.preset!r} is unknown; {this.name} has {', '.join(this.sizes)}")
    sizes = this.sizes[chosen.preset]
    sweep = sweep_of(chosen, sizes, limits.usable_cpus())
    provenance = replace(
        Provenance.collect(
            Path(inspect.getfile(this.function)).parent, seed=chosen.seed, blas_threads=min(chosen.blas_threads)
        ),
        n_rounds=sweep.n_rounds,
        precision=sweep.precision,
        budget_s=sweep.budget_s,
    )
    path = (chosen.results or Path("results") / machine_name()) / f"{this.name}.h5"
    print(
        f"{this.question}\n{sweep_told(sweep, fit_limit(provenance, most_of_a_node(sweep.configurations)))}",
        flush=True,
    )
    malloc.keep_freed()
    checks: list[Check] = []

    def truth(result: Any, n_items: int) -> Check:
        checks.append(this.truth(result, n_items))
        return checks[-1]

    with record.Record.open(path, this.name) as file:
        recorded = record.read(path)
        known = runs_like(recorded, sweep.seed, provenance)
        kept = [run for run in known if run.configuration in sweep.configurations]
        missing = sweep.visits_missing({(run.round, run.configuration) for run in known})
        if apart := kept_apart(recorded, sweep, provenance):
            print(apart)
        if kept:
            n_missing = sum(round_ >= 0 for round_, _ in missing)
            print(f"{path} has {len(kept)} of these runs; {n_missing or 'none'} to make", flush=True)
        if missing or sweep.unsettled(kept):
            id = file.add_provenance(provenance.id, provenance.as_dict())
            cpus = {id: Provenance.from_fields(fields).node_cpu_models for id, fields in recorded.provenance.items()}

            def of_nodes(nodes: Sequence[Any]) -> str:
                found = provenance.on_nodes([node.host for node in nodes], [node.cpu_model for node in nodes])
                if found.id not in cpus:
                    cpus[file.add_provenance(found.id, found.as_dict())] = found.node_cpu_models
                return found.id

            with console.open_console(sweep, kept, len(missing)) as shown, warnings.catch_warnings():
                warnings.filterwarnings("ignore", r"workers=\d+ is more than")  # said above, once
                for run in measure.measure(
                    sweep,
                    this.function,
                    truth,
                    id,
                    done=known,
                    starting=shown.starting,
                    cluster=chosen.cluster,
                    of_nodes=of_nodes,
                    kind_of=lambda id: cpus.get(id, ""),
                ):
                    file.append(run)
                    shown.ended(run)
    if checks:
        print(f"\nagainst the truth: {checks[-1]}")
    kinds = {c.kind for c in sweep.configurations if c.backend != "serial"} or {"strong"}
    own = [
        study
        for study in studies(record.read(path, timelines=True))
        if study.conditions == study.provenance.of().conditions_id  # all that is not of an engine that was replaced
        if _is_of_host(study.provenance.of(), provenance.of()) and study.seed == sweep.seed
        if study.n_items in sizes and study.kind in kinds
    ]
    for study in own:
        print("\n".join(["", *tables.table(study), "", *map(str, tables.verdicts(study))]).rstrip() + "\n", flush=True)
    if any(run.disturbed for study in own for run in study.runs):
        more = f"--budget {2 * max(60, sweep.budget_s):g} allows more runs"
        print(f"what was disturbed is left out as far as there are others; {more}\n")
    print(path)
    for figure in drawn(own, path):
        print(figure)
    return path


def drawn(own: Sequence[Study], path: Path) -> list[Path]:
    """Draw the largest problem of each kind of scaling, and all sizes together where there are several."""
    if not any(map(panels.available, own)):
        return []
    from parcompute.figures import pages  # only now: what is recorded and told needs no Matplotlib

    # Of runs on unlike nodes only those that are all there is.
    by_size = sorted(own, key=lambda study: (study.n_items, not study.provenance.node_cpu_models))
    largest = {study.kind: study for study in by_size}
    figures = [figure for study in largest.values() for figure in pages.save_study(study, path)]
    return figures + pages.save_sizes(own, path)


def sweep_told(sweep: Sweep, n_cpus: int) -> str:
    """Say in a sentence what a sweep is, and what of it cannot be fitted."""
    sizes = sorted({c.n_items for c in sweep.configurations})
    counts = sorted({c.n_workers for c in sweep.configurations})
    nodes = sorted({c.n_nodes for c in sweep.configurations})
    backends = list(dict.fromkeys(c.backend for c in sweep.configurations))
    cpus = f"{n_cpus} usable CPU{'s' * (n_cpus > 1)}"
    on_nodes = f" of each of {', '.join(map(str, nodes))} nodes" if nodes[-1] > 1 else ""
    text = (
        f"{' and '.join(f'{n:,}' for n in sizes)} items, seed {sweep.seed}; {', '.join(backends)} "
        f"on {', '.join(map(str, counts))} of {cpus}{on_nodes}; "
        f"{sweep.n_rounds} round{'s' * (sweep.n_rounds > 1)} in random order after one to warm up"
    )
    if math.isfinite(sweep.precision):
        text += f", then more of what is not known within {100 * sweep.precision:g} %, for {sweep.budget_s:g} s in all"
    if most_of_a_node(sweep.configurations) > n_cpus:
        of_a_node = " of a node" if nodes[-1] > 1 else ""
        text += f"\nmore workers than the {cpus}{of_a_node}: these runs are recorded and left out of fits"
    return text


def runs_like(recorded: Recorded, seed: int, provenance: Provenance) -> list[Run]:
    """Return the runs of a file with the same conditions and seed, verified: their results have to agree."""
    known = {id: Provenance.from_fields(fields) for id, fields in recorded.provenance.items()}
    ways = {(run.provenance, run.configuration.backend) for run in recorded.runs}
    alike = {(id, backend) for id, backend in ways if _is_of_host(known[id].of(backend), provenance.of(backend))}
    return [
        run
        for run in recorded.runs
        if (run.provenance, run.configuration.backend) in alike and run.seed == seed and run.verified
    ]


def _is_of_host(known: Provenance, provenance: Provenance) -> bool:
    """Whether the conditions are the same but for the nodes, which no sweep knows before it has them."""
    return replace(known, node_cpu_models="").conditions_id == provenance.conditions_id


def kept_apart(recorded: Recorded, sweep: Sweep, provenance: Provenance) -> str:
    """Say which runs of the same problem cannot be continued, and in what the newest differs; empty for none."""
    sizes = {configuration.n_items for configuration in sweep.configurations}
    backends = {configuration.backend for configuration in sweep.configurations}
    known = {id: Provenance.from_fields(fields) for id, fields in recorded.provenance.items()}
    others = []
    for run in recorded.runs:
        if run.seed == sweep.seed and run.configuration.n_items in sizes:
            asked = {run.configuration.backend} & backends
            before, now = known[run.provenance].of(*asked), provenance.of(*asked)
            if not _is_of_host(before, now):
                others.append(differences(before, now))
    if not others:
        return ""
    conditions = ", ".join(f"{name} {before!r} is now {now!r}" for name, before, now in others[-1])
    return f"{recorded.path} has {len(others)} runs under other conditions, kept apart: {conditions}"


def machine_name() -> str:
    """Return this machine's name as a folder may have it."""
    return re.sub(r"[^A-Za-z0-9.-]+", "-", platform.node()).strip("-.") or "machine"
