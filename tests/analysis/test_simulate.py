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
from parcompute.values.timeline import CHUNK_DTYPE, NODE_DTYPE, SPAN_DTYPE, WORKER_DTYPE, Timeline
from parcompute.values.ways import Way

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


# --- over nodes --------------------------------------------------------------------------------------------


def on_nodes(*ways, sizes=(1, 1, 1, 1), block_ns=100, around=(0, 0), before=0, after=0):
    """A run on a node of one worker for each (first, out, out_block, back, back_block), with spans of these sizes.

    The nodes take turns with their blocks, and each computes without a pause.
    """
    chunks, spans, next_block, last = [], [], 0, 0
    at = [before + first + out + out_block * sizes[0] for first, out, out_block, _, _ in ways]
    for i, size in enumerate(sizes):
        for node, (first, out, out_block, back, back_block) in enumerate(ways):
            arrived = at[node] if not i else at[node] - 40
            sent = arrived - out - out_block * size - (0 if i else first)
            begin = at[node] + around[0]
            end = begin + size * block_ns
            at[node] = end + around[1]
            received = at[node] + back + back_block * size
            chunks.append((len(chunks), node, 0, begin, end, end - begin, end))
            spans.append((node, next_block, next_block + size, sent, arrived, at[node], received))
            next_block, last = next_block + size, max(last, received)
    nodes = [(node, node, 1, 0, 0) for node in range(len(ways))]
    timeline = Timeline(
        0, before, last + after, np.array(chunks, CHUNK_DTYPE), np.array([(n, n, 0) for n, *_ in nodes], WORKER_DTYPE),
        nodes=np.array(nodes, NODE_DTYPE), spans=np.array(spans, SPAN_DTYPE),
    )  # fmt: skip
    run = a_run(np.full(next_block, block_ns), backend="mpi", n_workers=len(ways))
    wall_s = timeline.makespan_ns / 1e9
    configuration = replace(run.configuration, n_nodes=len(ways))
    return replace(run, configuration=configuration, timelines=(timeline,), wall_s=wall_s)


def test_what_spans_took_is_read_off_their_stamps():
    run = on_nodes((20, 10, 3, 5, 2), (0, 40, 0, 7, 0), sizes=(4, 2, 1, 1), around=(6, 4))
    (timeline,) = run.timelines
    ways = [Way.of(timeline, node) for node in timeline.nodes]
    assert ways == [Way(20, (10, 3), (5, 2), 10), Way(0, (40, 0), (7, 0), 10)]


def test_blocks_have_the_time_of_their_span():
    run = on_nodes((0, 10, 0, 5, 0), (0, 10, 0, 5, 0), sizes=(3, 1))
    run.timelines[0].chunks["finished_ns"][0] += 30
    assert simulate.block_ns(run, run.timelines[0]).tolist() == [110] * 3 + [100] * 5


@pytest.mark.parametrize(
    ("n_nodes", "expected"),
    [
        (1, 7 + 30 + 800 + 5 + 9),  # all blocks one after the other
        (2, 7 + 30 + 400 + 5 + 9),  # as it was: the way of a span is hidden behind the one before it
        (4, 7 + 30 + 200 + 5 + 9),
        (8, 7 + 30 + 100 + 5 + 9),
        (16, 7 + 30 + 100 + 5 + 9),  # some get nothing
    ],
)
def test_ways_of_spans_that_are_hidden_cost_once(n_nodes, expected):
    run = on_nodes((20, 10, 0, 5, 0), (20, 10, 0, 5, 0), before=7, after=9)
    assert n_nodes != 2 or run.timelines[0].makespan_ns == expected
    if n_nodes >= 8:  # the two that a node has at a time: it computes both
        expected += 100
    assert simulate.makespan_ns(run, "dynamic", n_nodes, n_nodes) == expected


def test_a_way_that_is_longer_than_a_span_keeps_its_node_waiting():
    run = on_nodes((0, 150, 0, 50, 0), (0, 150, 0, 50, 0))
    # Two spans arrive at 150 and are back at 300 and 400; the next two are sent then, the last is back at 700.
    assert simulate.makespan_ns(run, "dynamic", 2, 2) == 700


def test_a_span_costs_the_time_of_its_bytes():
    run = on_nodes((0, 10, 3, 5, 2), sizes=(4, 3, 2, 1, 1, 1))
    # 12 blocks on one node: the first span has 3 of them, the last one.
    assert simulate.makespan_ns(run, "dynamic", 1, 1) == 10 + 3 * 3 + 1200 + 5 + 2


def test_each_span_costs_what_it_takes_on_its_node():
    run = on_nodes((0, 10, 0, 5, 0), (0, 10, 0, 5, 0), around=(6, 4))
    assert simulate.makespan_ns(run, "dynamic", 2, 2) == run.timelines[0].makespan_ns == 10 + 4 * 110 + 5


def test_a_node_beyond_those_recorded_costs_what_the_last_one_does():
    run = on_nodes((0, 0, 0, 0, 0), (0, 50, 0, 50, 0))
    assert simulate.makespan_ns(run, "static", 4, 4) == 50 + 200 + 50
    assert simulate.makespan_ns(run, "static", 2, 2) == 50 + 400 + 50


@pytest.mark.parametrize(("n_workers", "expected"), [(2, 6400), (4, 3200), (8, 1600)])
def test_the_workers_of_a_node_share_its_spans(n_workers, expected):
    run = on_nodes((0, 0, 0, 0, 0), (0, 0, 0, 0, 0), sizes=(8,) * 8)
    assert simulate.makespan_ns(run, "static", n_workers, 2) == expected
    smallest = 8 * 100  # by which one node may end before the other
    assert expected <= simulate.makespan_ns(run, "dynamic", n_workers, 2) <= expected + smallest


def test_the_smallest_span_is_as_long_for_more_workers():
    run = on_nodes((0, 0, 0, 0, 0), (0, 0, 0, 0, 0))  # 8 blocks in spans of one
    assert simulate.makespan_ns(run, "dynamic", 4, 2) == 2 * 100


def test_a_prediction_over_nodes_is_told_with_them_and_held_against_what_was_measured():
    run = on_nodes((20, 10, 0, 5, 0), (20, 10, 0, 5, 0))
    one = replace(run, configuration=replace(run.configuration, n_workers=1, n_nodes=1), wall_s=1e-6)
    four = replace(run, configuration=replace(run.configuration, n_workers=4, n_nodes=4), wall_s=235e-9)
    found = simulate.predict([run, one, four], "mpi", (1,), nodes=(1, 2, 4))
    assert found.source == run.configuration  # the run on one node does not tell what spans take on their way
    assert [(p.n_workers, p.n_nodes, round(p.wall.value * 1e9)) for p in found.points] == [
        (1, 1, 835), (2, 2, 435), (4, 4, 235),
    ]  # fmt: skip
    assert [p.error for p in found.points][1:] == pytest.approx([0, 0])
    told = "\n".join(found.describe())
    assert "replayed: 1 runs of mpi dynamic × 2 on 2 nodes, 80 items" in told
    assert "schedule     workers nodes " in told
    assert "a span is a quarter of a node's part" in told
    assert set(simulate.ON_NODES) < set(found.as_dict()["assumptions"])


def test_runs_on_one_host_do_not_tell_what_nodes_take():
    with pytest.raises(ValueError, match=r"no run of processes on several nodes has a timeline, .* with --nodes 1,2"):
        simulate.predict([a_run(EQUAL)], "processes", (2,), nodes=(1, 2))


def test_spans_that_leave_out_blocks_are_refused():
    run = on_nodes((0, 0, 0, 0, 0))
    more = replace(run, configuration=replace(run.configuration, n_items=7 * BLOCK_ITEMS))
    with pytest.raises(ValueError, match="has a job whose spans lack 3 blocks of 7; only jobs over all items"):
        simulate.makespan_ns(more, "dynamic", 1)
