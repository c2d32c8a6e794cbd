"""Warm up, visit every configuration once per round in random order, verify, yield runs."""

from __future__ import annotations

import hashlib
import math
import os
import platform
import struct
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from datetime import UTC, datetime
from typing import Any

import numpy as np

from parcompute.executor.executor import Executor
from parcompute.machine import blas
from parcompute.machine.batch import deadline
from parcompute.machine.quiet import Activity, Counters, disturbances
from parcompute.memory.sources import is_masked
from parcompute.values.blocks import Plan
from parcompute.values.parts import works_on
from parcompute.values.sweep import Check, Configuration, Run, Sweep, round_order
from parcompute.values.timeline import Timeline

Function = Callable[..., Any]
Truth = Callable[[Any, int], Check]

# The share of a run that its workers compute before the clock starts, so that what they load and touch
# for the first time is not booked as part of the work.
WARM_UP_SHARE = 1 / 64

# Backends whose executors take a number of nodes; the others compute on this host.
ON_NODES = ("mpi", "dask")


class WrongResult(RuntimeError):
    """A run's result is not true, or not the same bits as the others'.

    Attributes
    ----------
    run : Run
        The run; it is recorded as not verified.
    """

    def __init__(self, message: str, run: Run) -> None:
        super().__init__(message)
        self.run = run


def measure(
    sweep: Sweep,
    function: Function,
    truth: Truth,
    provenance: str,
    *,
    done: Sequence[Run] = (),
    starting: Callable[[int, Configuration], None] = lambda round_, configuration: None,
    cluster: str | None = None,
    of_nodes: Callable[[Sequence[Any]], str] | None = None,
    kind_of: Callable[[str], str] = lambda provenance: "",
) -> Iterator[Run]:
    """Run what a sweep asks for, one configuration at a time.

    Every run has an executor of its own. The clock starts when its last worker is ready and warm. After the rounds
    that visit every configuration come further ones of those that `Sweep.unsettled` names.

    Parameters
    ----------
    sweep : Sweep
        Configurations and rounds.
    function : callable
        ``function(executor, n_items, seed)`` returns the result; it may ask for ``variant`` by that name.
    truth : callable
        ``truth(result, n_items)`` returns a `Check`.
    provenance : str
        Id of the conditions.
    done : sequence of Run
        Runs that exist already: they are not made again, and the results of the same size have to agree with the new
        ones although they may be of other configurations.
    starting : callable
        Called with round and configuration before each run, warm-up included.
    cluster : str, optional
        Address or scheduler file of the nodes of Dask.
    of_nodes : callable, optional
        ``of_nodes(executor.nodes)`` returns the id of the conditions of a run on several nodes; None: they are as all.
    kind_of : callable
        Of the id of conditions: results have to agree where it returns the same.

    Yields
    ------
    Run
        Each as it ends; those of the warm-up round are not.

    Raises
    ------
    WrongResult
        If a result is not true, or not the same bits as the others of its size; the run has been
        yielded before, as not verified.
    OutOfTime
        If the batch job that this is part of would end before the next run does.
    """
    runs = list(done)
    digests = {(run.configuration.n_items, kind_of(run.provenance)): run.digest for run in runs}

    def conditions(nodes: Sequence[Any]) -> str:
        return of_nodes(nodes) if nodes and of_nodes is not None else provenance

    # Set for all of them: after a fork OpenBLAS starts its threads anew each time that it is told of another number,
    # and they look for work for a tenth of a second.
    with blas.limited(min(c.blas_threads for c in sweep.configurations)):
        for round_, configuration in _visits(sweep, runs):
            _require_time(runs, configuration)
            starting(round_, configuration)
            run, check = _run(round_, configuration, sweep.seed, function, truth, conditions, cluster)
            known = digests.setdefault((configuration.n_items, kind_of(run.provenance)), run.digest)
            same = known == run.digest
            if not same:
                run = replace(run, verified=False)
            if round_ >= 0 or not run.verified:
                runs.append(run)
                yield run
                deadline.note_kept(1)
            if not check.passes:
                raise WrongResult(f"{configuration.name}: the result is {check}", run)
            if not same:
                raise WrongResult(
                    f"{configuration.name}: the result has other bits (sha256 {run.digest[:12]}…) than the runs "
                    f"before it ({known[:12]}…), with the same seed and size",
                    run,
                )


def _require_time(runs: Sequence[Run], configuration: Configuration) -> None:
    """Raise OutOfTime unless a run of a configuration may end before the batch job does.

    It is taken to last as long as the longest so far of its kind, or of its size.
    """
    sized = [run for run in runs if run.configuration.n_items == configuration.n_items]
    alike = [run for run in sized if run.configuration == configuration] or sized
    longest_s = max((run.startup_s + (1 + WARM_UP_SHARE) * run.wall_s for run in alike), default=0.0)
    if deadline.left_s() < longest_s + deadline.MARGIN_S:
        raise deadline.OutOfTime(
            f"{deadline.in_words()}, and a run of {configuration.name} may take {longest_s:.1f} s; "
            "what was finished is recorded, the same command continues"
        )


def _visits(sweep: Sweep, runs: Sequence[Run]) -> Iterator[tuple[int, Configuration]]:
    """Yield what is missing, then further rounds while `runs`, which grows meanwhile, ask for them."""
    yield from sweep.visits_missing({(run.round, run.configuration) for run in runs})
    while wanted := set(sweep.unsettled(runs)):
        # A speed-up is of runs of one round, so that each needs its base there.
        wanted |= {c for c in sweep.configurations if any(c.is_serial_of(other) for other in wanted)}
        round_ = 1 + max(run.round for run in runs)
        for configuration in round_order(sweep.configurations, sweep.seed, round_ + 1):
            if configuration in wanted:
                yield round_, configuration


class Listening(Executor):
    """An executor that keeps the timelines and plans of all its jobs."""

    def __init__(self, *arguments: Any, **options: Any) -> None:
        self.jobs: list[tuple[Timeline, Plan]] = []
        super().__init__(*arguments, **options)

    def _note(self, timeline: Timeline, plan: Plan) -> None:
        super()._note(timeline, plan)
        self.jobs.append((timeline, plan))


def _run(
    round_: int,
    configuration: Configuration,
    seed: int,
    function: Function,
    truth: Truth,
    conditions: Callable[[Sequence[Any]], str],
    cluster: str | None,
) -> tuple[Run, Check]:
    asked = {"variant": configuration.variant} if configuration.variant else {}
    with blas.limited(configuration.blas_threads), executor_for(configuration, cluster) as executor:
        startup_s = executor.wait_until_ready()
        least = 2 * configuration.n_workers  # where an item is a call, each worker should have had one
        few = min(configuration.n_items, max(least, math.ceil(configuration.n_items * WARM_UP_SHARE)))
        function(executor, few, seed, **asked)
        nodes = executor.nodes if configuration.backend in ON_NODES else ()
        # Those of a cluster stem from its daemons and are still none of others.
        here = _pids_here(nodes, executor.jobs[-1][0]) if nodes and executor.jobs else ()
        own, n_here = (os.getpid(), *here), len(here) if nodes else configuration.n_workers
        executor.jobs.clear()
        started_utc = datetime.now(UTC).isoformat(timespec="milliseconds")
        before = Activity.now(own=own)
        started_ns = time.perf_counter_ns()
        result = function(executor, configuration.n_items, seed, **asked)
        wall_s = (time.perf_counter_ns() - started_ns) / 1e9
        after = Activity.now(own=own)
        timelines, plans = zip(*executor.jobs, strict=True) if executor.jobs else ((), ())
    check = truth(result, configuration.n_items)
    run = Run(
        configuration=configuration,
        round=round_,
        seed=seed,
        block_items=plans[-1].block_items if plans else 0,
        n_chunks=sum(plan.n_chunks for plan in plans),
        wall_s=wall_s,
        startup_s=startup_s,
        cpu_s=sum(timeline.cpu_ns for timeline in timelines) / 1e9,
        digest=digest(result),
        value=float(check.value),
        error=float(check.error),
        tolerance=float(check.tolerance),
        verified=check.passes,
        disturbed=disturbances(before, after, wall_s, n_here, configuration.blas_threads),
        started_utc=started_utc,
        provenance=conditions(nodes),
        counters=Counters.between(before, after),
        timelines=timelines,
    )
    return run, check


def _pids_here(nodes: Sequence[Any], timeline: Timeline) -> tuple[int, ...]:
    """Return the workers that are on this host."""
    here = [row for row in timeline.nodes if nodes[row["node"]].host == platform.node()]
    pids = [timeline.workers["pid"][works_on(row, timeline.workers["worker"])] for row in here]
    return tuple(int(pid) for of_node in pids for pid in of_node)


def numbers_of_nodes(backend: str, asked: Sequence[int]) -> Sequence[int]:
    """Return on how many nodes a backend is run: as asked for, or on this host."""
    return asked if backend in ON_NODES else (1,)


def executor_for(configuration: Configuration, cluster: str | None = None) -> Listening:
    """Return a new executor as a configuration asks for."""
    c = configuration
    of_cluster: dict[str, Any] = {"nodes": c.n_nodes} if c.backend in ON_NODES else {}
    if c.backend == "dask" and cluster is not None:
        of_cluster["cluster"] = cluster
    return Listening(
        c.n_workers // c.n_nodes // c.threads_per_worker,
        backend=c.backend,
        threads_per_worker=c.threads_per_worker,
        schedule=c.schedule,
        start_method=c.start_method or None,
        blas_threads=c.blas_threads,
        **of_cluster,
    )


def digest(result: Any) -> str:
    """Return the SHA-256 of a result: equal for equal bits, types and shapes, and for nothing else.

    Parameters
    ----------
    result : object
        Numbers, text, arrays, and tuples, lists and dicts of them.

    Raises
    ------
    TypeError
        For anything else.

    Examples
    --------
    >>> digest((1, 2.0)) == digest((1, 2.0)), digest(0.0) == digest(-0.0), digest(1) == digest(1.0)
    (True, False, False)
    """
    sha = hashlib.sha256()
    _feed(sha, result)
    return sha.hexdigest()


def _feed(sha: Any, value: Any) -> None:
    sha.update(type(value).__name__.encode() + b"\0")
    if isinstance(value, (tuple, list)):
        sha.update(struct.pack("<q", len(value)))
        for part in value:
            _feed(sha, part)
    elif isinstance(value, dict):
        sha.update(struct.pack("<q", len(value)))
        for key in sorted(value, key=repr):
            _feed(sha, key)
            _feed(sha, value[key])
    elif is_masked(value):
        raise TypeError("a masked array has no digest; return its data and its mask")
    elif isinstance(value, (np.ndarray, np.generic)):
        if value.dtype.hasobject:
            raise TypeError(f"a result of dtype {value.dtype} has no digest; return numbers")
        if value.dtype.names:  # field by field: the bytes between them are nobody's
            sha.update(struct.pack("<q", len(value.dtype.names)))
            for name in value.dtype.names:
                _feed(sha, name)
                _feed(sha, np.asarray(value)[name])
            return
        sha.update(f"{value.dtype.str} {value.shape}".encode() + b"\0")
        sha.update(np.ascontiguousarray(value).tobytes())
    elif value is None or isinstance(value, (bool, int, str, bytes)):
        sha.update(repr(value).encode())
    elif isinstance(value, float):
        sha.update(struct.pack("<d", value))
    elif isinstance(value, complex):
        sha.update(struct.pack("<dd", value.real, value.imag))
    else:
        raise TypeError(
            f"a result of type {type(value).__name__} has no digest; return numbers, arrays, tuples or dicts"
        )
