"""A recorded timeline is replayed under other workers, schedules and chunk sizes."""

import json
from dataclasses import replace

import numpy as np
import pytest

from parcompute.analysis import simulate
from parcompute.analysis.losses import list_schedule
from parcompute.experiments import measure
from parcompute.values.blocks import Plan
from parcompute.values.sweep import Check, Configuration, Run, Sweep
from parcompute.values.timeline import CHUNK_DTYPE, WORKER_DTYPE, Timeline

N_BLOCKS, BLOCK_ITEMS = 64, 10


def a_run(block_ns, *, n_workers=1, schedule="dynamic", claim=0, result=0, before=0, after=0, backend="processes"):
    """A run of one worker whose blocks take as long as given, with the same overhead around each chunk."""
    plan = Plan.cut(len(block_ns) * BLOCK_ITEMS, BLOCK_ITEMS, schedule, n_workers)
    chunks = np.zeros(plan.n_chunks, CHUNK_DTYPE)
    at = 1_000 + before
    for k in range(plan.n_chunks):
        took = int(np.sum(block_ns[plan.edges[k] : plan.edges[k + 1]]))
        begin = at + (claim if k else 0)
        chunks[k] = (k, 0, 0, begin, begin + took, took, begin + took + result)
        at = begin + took + result
    workers = np.zeros(n_workers, WORKER_DTYPE)
    workers["worker"] = np.arange(n_workers)
    timeline = Timeline(1_000, 1_000 + before, at + after, chunks, workers)
    wall_s = timeline.makespan_ns / 1e9
    return Run(
        configuration=Configuration(backend, n_workers, 1, schedule, "", "strong", plan.n_items),
        round=0, seed=1, block_items=BLOCK_ITEMS, n_chunks=plan.n_chunks, wall_s=wall_s, startup_s=0.1, cpu_s=wall_s,
        digest="d", value=1.0, error=0.0, tolerance=0.0, verified=True, disturbed="", started_utc="2025-01-01",
        provenance="here", timelines=(timeline,),
    )  # fmt: skip


EQUAL = np.full(N_BLOCKS, 1_000_000)
UNEVEN = np.random.default_rng(3).integers(1, 3_000_000, N_BLOCKS)


@pytest.mark.parametrize("schedule", ["static", "dynamic", "guided", "dynamic,5"])
@pytest.mark.parametrize("block_ns", [EQUAL, UNEVEN])
def test_the_replay_of_a_run_as_it_was_is_the_run(schedule, block_ns):
    run = a_run(block_ns, schedule=schedule, claim=700, result=300, before=5_000, after=2_000)
    assert simulate.makespan_ns(run, schedule, 1) == run.timelines[0].makespan_ns


@pytest.mark.parametrize("n_workers", [1, 2, 3, 64, 100])
def test_without_overhead_it_is_list_scheduling_of_the_blocks(n_workers):
    assert simulate.makespan_ns(a_run(UNEVEN), "dynamic", n_workers) == list_schedule(UNEVEN.tolist(), n_workers)


def test_static_chunks_belong_to_a_worker_whoever_is_free():
    mine, yours = int(UNEVEN[0::2].sum()), int(UNEVEN[1::2].sum())
    assert simulate.makespan_ns(a_run(UNEVEN), "static,1", 2) == max(mine, yours)


def test_each_claim_costs_what_it_did():
    run = a_run(EQUAL, claim=400, result=100)
    assert simulate.makespan_ns(run, "dynamic", 2) == EQUAL.sum() // 2 + 32 * 500 - 400
    assert simulate.makespan_ns(run, "dynamic,16", 2) == EQUAL.sum() // 2 + 2 * 500 - 400


def test_jobs_of_one_run_follow_each_other():
    run = a_run(EQUAL)
    (first,) = run.timelines
    later = 10**9
    second = replace(
        first, called_ns=first.called_ns + later, submitted_ns=first.submitted_ns + later,
        completed_ns=first.completed_ns + later, chunks=first.chunks.copy(),
    )  # fmt: skip
    for name in ("started_ns", "finished_ns", "stored_ns"):
        second.chunks[name] += later
    both = replace(run, timelines=(first, second))
    between = second.called_ns - first.completed_ns
    assert simulate.makespan_ns(both, "dynamic", 2) == 2 * simulate.makespan_ns(run, "dynamic", 2) + between


def test_a_job_over_other_items_than_the_run_is_refused():
    run = a_run(EQUAL)
    other = replace(run, configuration=replace(run.configuration, n_items=7 * BLOCK_ITEMS))
    with pytest.raises(ValueError, match="has a job of 64 chunks where its 70 items give 7"):
        simulate.makespan_ns(other, "dynamic", 2)


def test_a_prediction_is_held_against_what_was_measured():
    serial = replace(a_run(EQUAL, backend="serial"), wall_s=0.08)
    runs = [serial, a_run(EQUAL), replace(a_run(EQUAL, n_workers=2), wall_s=0.033)]
    found = simulate.predict(runs, "processes", (1, 2, 4))
    assert (found.base, found.base_s, found.n_runs) == ("best serial", 0.08, 1)
    one, two, four = found.points
    assert two.wall.value == pytest.approx(0.032)
    assert two.speedup == pytest.approx(0.08 / 0.032)
    assert two.error == pytest.approx(0.032 / 0.033 - 1)
    assert one.measured is not None
    assert four.measured is None
    assert "0.033 s (-3.0 %)" in "\n".join(found.describe())
    assert json.loads(json.dumps(found.as_dict()))["points"][2]["n_workers"] == 4


def test_without_a_timeline_it_says_who_has_one():
    runs = [a_run(EQUAL, backend="pool"), replace(a_run(EQUAL), timelines=())]
    with pytest.raises(ValueError, match="no run of processes has a timeline; pass one of pool"):
        simulate.predict(runs, "processes", (2,))


def spin(block, ns=3_000_000):
    import time

    end = time.thread_time_ns() + ns
    while time.thread_time_ns() < end:
        pass
    return block.size


def test_the_makespan_on_two_workers_is_predicted_from_the_timeline_of_one():
    """Within 5 % where both runs were undisturbed: each kernel takes a fixed time on its CPU."""
    ways = [Configuration("processes", n, 1, "guided", "fork", "strong", 60) for n in (1, 2)]

    def function(executor, n_items, seed):
        return executor.reduce_blocks(spin, n_items=n_items, block_items=1)

    sweep = Sweep(tuple(ways), 5, 1)
    runs = list(measure.measure(sweep, function, lambda n, n_items: Check(n, n_items, 0, "equality"), "here"))
    quiet = [run for run in runs if run.counts]
    if {run.configuration.n_workers for run in quiet} != {1, 2}:
        pytest.skip(f"the machine is busy: {runs[-1].disturbed}")
    (point,) = simulate.predict(quiet, "processes", (2,)).points
    best = min(run.wall_s for run in quiet if run.configuration.n_workers == 2)
    assert point.wall.low <= 1.05 * point.measured.value
    assert best <= 1.05 * point.wall.high
    assert abs(point.wall.value / best - 1) < 0.05 or abs(point.error) < 0.05
