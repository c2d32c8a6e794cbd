"""The core-second ledger closes, and books each nanosecond where it belongs."""

from __future__ import annotations

import re
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from parcompute.analysis.losses import Losses, Reference, list_schedule, losses
from parcompute.values.parts import PARTS, WORDS
from parcompute.values.timeline import CHUNK_DTYPE, NODE_DTYPE, SPAN_DTYPE, WORKER_DTYPE, Timeline

durations = st.integers(0, 10**7)


@st.composite
def timelines(draw: st.DrawFn, *, tidy: bool = True) -> Timeline:
    """A timeline whose stamps are in order; not `tidy`: parent and ready stamps lie anywhere."""
    called = draw(st.integers(0, 10**17))
    submitted = called + draw(durations)
    n_workers = draw(st.integers(1, 5))
    chunks: list[tuple[int, ...]] = []
    workers, last = [], submitted
    for worker in draw(st.permutations(range(n_workers))):
        ready = called + draw(st.integers(-(10**8), 10**8))
        workers.append((worker, 4_000 + worker, ready))
        clock = max(ready, submitted)
        for _ in range(draw(st.integers(0, 4))):
            started = clock + draw(durations)
            finished = started + draw(durations)
            clock = finished + draw(durations)
            cpu = draw(st.integers(0, finished - started))
            chunks.append((len(chunks), worker, 0, started, finished, cpu, clock))
            last = max(last, clock)
    completed = last + draw(durations)
    if not tidy:
        submitted, completed = (called + draw(st.integers(-(10**8), 10**8)) for _ in range(2))
        workers = [(worker, pid, called + draw(st.integers(-(10**8), 10**8))) for worker, pid, _ in workers]
    return Timeline(called, submitted, completed, np.array(chunks, CHUNK_DTYPE), np.array(workers, WORKER_DTYPE))


references = st.none() | st.builds(Reference, wall_ns=st.integers(0, 10**12), cpu_ns=st.integers(0, 10**12))


@given(timeline=timelines(), reference=references)
def test_the_parts_add_up_to_workers_times_makespan(timeline: Timeline, reference: Reference | None) -> None:
    ledger = losses(timeline, reference)
    assert sum(ledger.parts_ns.values()) == timeline.n_workers * timeline.makespan_ns
    assert ledger.closes


@given(timeline=timelines(tidy=False), reference=references)
def test_the_parts_add_up_even_where_stamps_contradict_each_other(
    timeline: Timeline, reference: Reference | None
) -> None:
    assert losses(timeline, reference).closes


@given(timeline=timelines())
def test_no_part_is_negative_where_the_stamps_are_in_order(timeline: Timeline) -> None:
    ledger = losses(timeline)
    assert min(ledger.parts_ns.values()) >= 0


@given(timeline=timelines())
def test_the_parts_are_those_of_walking_along_each_worker(timeline: Timeline) -> None:
    t_l = max([timeline.submitted_ns, *timeline.chunks["stored_ns"].tolist()])
    startup = dispatch = back = tail = 0
    for worker in timeline.workers:
        clock = min(max(int(worker["ready_ns"]), timeline.submitted_ns), t_l)
        startup += clock - timeline.submitted_ns
        for chunk in timeline.of_worker(int(worker["worker"])).tolist():
            _, _, _, started, finished, _, stored = chunk
            dispatch += started - clock
            back += stored - finished
            clock = stored
        tail += t_l - clock
    parts = losses(timeline).parts_ns
    assert [parts[name] for name in ("startup", "dispatch", "return", "tail")] == [startup, dispatch, back, tail]
    assert parts["prologue"] == timeline.n_workers * (timeline.submitted_ns - timeline.called_ns)
    assert parts["drain"] == timeline.n_workers * (timeline.completed_ns - t_l)


@given(timeline=timelines(), reference=references)
def test_the_efficiencies_multiply(timeline: Timeline, reference: Reference | None) -> None:
    ledger = losses(timeline, reference)
    if ledger.total_ns and ledger.computing_ns.sum():
        assert ledger.parallel_efficiency == pytest.approx(ledger.load_balance * ledger.communication_efficiency)
        assert ledger.communication_efficiency == pytest.approx(
            ledger.serialisation_efficiency * ledger.transfer_efficiency
        )
        assert ledger.global_efficiency == pytest.approx(ledger.parallel_efficiency * ledger.computation_scaling)


@given(timeline=timelines(), reference=references, base_ns=st.integers(1, 10**10))
def test_the_summands_of_karp_and_flatt_add_up_to_their_fraction(
    timeline: Timeline, reference: Reference | None, base_ns: int
) -> None:
    w = timeline.n_workers
    if w > 1 and timeline.makespan_ns:
        speedup = base_ns / timeline.makespan_ns
        e = (1 / speedup - 1 / w) / (1 - 1 / w)
        summands = losses(timeline, reference).karp_flatt(base_ns)
        assert sum(summands.values()) == pytest.approx(e, rel=1e-9, abs=1e-9 * sum(map(abs, summands.values())))


# ── by hand ───────────────────────────────────────────────────────────────────────────────────────────


def by_hand(chunks: list[tuple[int, ...]], ready: list[int], completed: int = 100) -> Losses:
    workers = np.array([(i, 100 + i, at) for i, at in enumerate(ready)], WORKER_DTYPE)
    return losses(Timeline(0, 10, completed, np.array(chunks, CHUNK_DTYPE), workers))


def test_a_worker_that_got_nothing_is_in_tail_until_the_last_result() -> None:
    ledger = by_hand([(0, 0, 0, 20, 80, 60, 85)], ready=[0, 30])
    assert ledger.parts_ns == {
        "useful": 60,
        "prologue": 20,
        "startup": 20,
        "dispatch": 10,
        "transfer": 0,
        "lost_cpu": 0,
        "slowdown": 0,
        "return": 5,
        "tail": 55,
        "drain": 30,
    }


@pytest.mark.parametrize("ready", [85, 95, 100, 10**6])
def test_a_worker_that_was_ready_too_late_is_in_startup_until_the_last_result(ready: int) -> None:
    ledger = by_hand([(0, 0, 0, 20, 80, 60, 85)], ready=[0, ready])
    assert ledger.parts_ns["startup"] == 75
    assert ledger.parts_ns["tail"] == 0
    assert ledger.closes


def test_a_run_of_no_chunks_is_prologue_and_drain() -> None:
    ledger = by_hand([], ready=[0, 20], completed=50)
    assert {name: ns for name, ns in ledger.parts_ns.items() if ns} == {"prologue": 20, "drain": 80}


def test_a_chunk_that_began_before_the_stamp_of_its_submission_was_submitted() -> None:
    ledger = by_hand([(0, 0, 0, 8, 80, 72, 85)], ready=[9])
    assert ledger.parts_ns["prologue"] == 8
    assert ledger.parts_ns["dispatch"] == 0
    assert ledger.notes == (
        "no serial reference: computing is CPU time inside kernels, and that it is slower cannot be seen",
    )


def test_a_result_on_its_way_while_its_worker_computes_on_costs_no_more_than_the_gap() -> None:
    ledger = by_hand([(0, 0, 0, 10, 20, 10, 70), (1, 0, 0, 24, 80, 56, 85)], ready=[0])
    assert (ledger.return_ns, ledger.dispatch_ns, ledger.tail_ns) == (4 + 5, 0, 0)
    assert ledger.closes


def test_the_wait_for_a_replacement_is_in_dispatch() -> None:
    # Worker 0 stores a chunk at 30 and dies; its replacement, ready at 60, goes on under its number at 65.
    ledger = by_hand([(0, 0, 0, 15, 25, 10, 30), (1, 0, 1, 65, 75, 10, 80)], ready=[60])
    assert ledger.parts_ns["startup"] == 5
    assert ledger.parts_ns["dispatch"] == 35
    assert ledger.closes


def test_a_replacement_under_its_own_number_is_in_startup_until_it_is_ready() -> None:
    ledger = by_hand([(0, 0, 0, 15, 25, 10, 30), (1, 1, 1, 65, 75, 10, 80)], ready=[0, 60])
    assert ledger.parts_ns["startup"] == 50
    assert ledger.parts_ns["tail"] == 50
    assert ledger.closes


def test_a_reference_splits_kernel_time_into_useful_lost_and_slow() -> None:
    timeline = Timeline(
        0, 0, 100, np.array([(0, 0, 0, 0, 100, 80, 100)], CHUNK_DTYPE), np.array([(0, 1, 0)], WORKER_DTYPE)
    )
    parts = losses(timeline, Reference(wall_ns=70, cpu_ns=65)).parts_ns
    assert (parts["useful"], parts["lost_cpu"], parts["slowdown"]) == (70, 15, 15)


@given(timeline=timelines())
def test_a_run_is_its_own_reference(timeline: Timeline) -> None:
    ledger = losses(timeline, timeline)
    assert (ledger.lost_cpu_ns, ledger.slowdown_ns) == (0, 0)
    assert ledger.useful_ns == ledger.computing_ns.sum()


def test_a_reference_that_is_slower_than_the_run_is_flagged_and_not_clipped() -> None:
    timeline = Timeline(
        0, 0, 100, np.array([(0, 0, 0, 0, 90, 90, 95)], CHUNK_DTYPE), np.array([(0, 1, 0)], WORKER_DTYPE)
    )
    ledger = losses(timeline, Reference(wall_ns=99, cpu_ns=99))
    assert ledger.slowdown_ns == -9
    assert ledger.closes
    assert "CompS = 1.100" in ledger.notes[0]


def test_the_clock_of_a_machine_that_has_been_up_for_years_does_not_overflow() -> None:
    chunks = np.zeros(200_000, CHUNK_DTYPE)
    chunks["started_ns"] = 10**17 + 1_000 * np.arange(len(chunks))
    chunks["finished_ns"] = chunks["started_ns"] + 900
    chunks["stored_ns"] = chunks["started_ns"] + 950
    timeline = Timeline(10**17, 10**17, 10**17 + 10**9, chunks, np.array([(0, 1, 0)], WORKER_DTYPE))
    ledger = losses(timeline)
    assert ledger.closes
    assert ledger.dispatch_ns == 50 * (len(chunks) - 1)


def test_a_chunk_of_an_unknown_worker_is_refused() -> None:
    with pytest.raises(ValueError, match=r"chunks name the workers \[3\], the timeline has \[0\]"):
        by_hand([(0, 3, 0, 20, 30, 5, 35)], ready=[0])


def test_two_rows_of_one_worker_are_refused() -> None:
    workers = np.array([(0, 1, 0), (0, 2, 5)], WORKER_DTYPE)
    with pytest.raises(ValueError, match="has a number twice"):
        losses(Timeline(0, 10, 100, np.zeros(0, CHUNK_DTYPE), workers))


def test_one_worker_has_no_serial_fraction() -> None:
    with pytest.raises(ValueError, match="n_workers=1 has no serial fraction"):
        by_hand([(0, 0, 0, 20, 80, 60, 85)], ready=[0]).karp_flatt(100)


def test_a_base_without_length_is_refused() -> None:
    with pytest.raises(ValueError, match="base_ns=0 is out of range"):
        by_hand([(0, 0, 0, 20, 80, 60, 85)], ready=[0, 0]).karp_flatt(0)


def test_the_table_shows_every_part_and_its_share() -> None:
    text = str(by_hand([(0, 0, 0, 20, 80, 60, 85)], ready=[0, 30]))
    assert [name for name in PARTS if not re.search(rf"\n  {WORDS[name]} .* %  {name}\n", text)] == []
    assert "computing              0.000000 s   30.00 %" in text
    assert len({line.index("%") for line in text.splitlines() if " s " in line and "%" in line}) == 1


@given(timeline=timelines(), shift=st.integers(-(10**15), 10**15))
def test_the_origin_of_the_clock_does_not_matter(timeline: Timeline, shift: int) -> None:
    chunks, workers = timeline.chunks.copy(), timeline.workers.copy()
    for name in ("started_ns", "finished_ns", "stored_ns"):
        chunks[name] += shift
    workers["ready_ns"] += shift
    shifted = replace(
        timeline,
        called_ns=timeline.called_ns + shift,
        submitted_ns=timeline.submitted_ns + shift,
        completed_ns=timeline.completed_ns + shift,
        chunks=chunks,
        workers=workers,
    )
    assert losses(shifted).parts_ns == losses(timeline).parts_ns


@given(tasks=st.lists(st.integers(0, 10**6), min_size=1, max_size=30), n_workers=st.integers(1, 8))
def test_list_scheduling_keeps_graham_s_bounds(tasks: list[int], n_workers: int) -> None:
    makespan = list_schedule(tasks, n_workers)
    assert makespan >= max(sum(tasks) / n_workers, max(tasks))
    assert makespan <= sum(tasks) / n_workers + (1 - 1 / n_workers) * max(tasks) + 1e-6


# ── on several nodes ──────────────────────────────────────────────────────────────────────────────────


@st.composite
def on_nodes(draw: st.DrawFn, *, tidy: bool = True) -> Timeline:
    """A timeline of several nodes; not `tidy`: the clock of each node is wrong, its spans lie anywhere."""
    short = st.integers(0, 9)
    called, submitted = 1_000, 1_000 + draw(short)
    chunks: list[tuple[int, ...]] = []
    workers, nodes, spans, last = [], [], [], submitted
    for node in range(draw(st.integers(1, 3))):
        n_workers, wrong = draw(st.integers(1, 2)), 0 if tidy else draw(st.integers(-9, 9))
        first_worker = len(workers)
        nodes.append((node, first_worker, n_workers, 0, 9))
        workers += [(w, 50 + w, called + wrong + draw(short)) for w in range(first_worker, first_worker + n_workers)]
        free = [submitted] * n_workers
        for span in range(draw(st.integers(0, 3))):
            sent = submitted + draw(st.integers(0, 60))
            arrived = finished = sent + wrong + draw(short)
            for w in range(n_workers):
                for _ in range(draw(st.integers(0, 2))):
                    started = max(free[w], arrived, workers[first_worker + w][2]) + draw(short)
                    ended = started + draw(short)
                    free[w] = stored = ended + draw(short)
                    chunks.append((len(chunks), first_worker + w, 0, started, ended, 0, stored))
                    finished = max(finished, stored)
            received = finished - wrong + draw(short)
            last = max(last, received)
            spans.append((node, span, span + 1, sent, arrived, finished, received))
    completed = last + draw(short)
    return Timeline(
        called, submitted, completed, np.array(chunks, CHUNK_DTYPE), np.array(workers, WORKER_DTYPE),
        nodes=np.array(nodes, NODE_DTYPE), spans=np.array(spans, SPAN_DTYPE),
    )  # fmt: skip


@given(timeline=on_nodes() | on_nodes(tidy=False), reference=references)
def test_the_ledger_of_nodes_closes_as_a_whole_and_for_each(timeline: Timeline, reference: Reference | None) -> None:
    ledger = losses(timeline, reference)
    assert ledger.closes
    assert [node.n_workers for node in ledger.nodes] == timeline.nodes["n_workers"].tolist()
    assert all(node.closes and node.makespan_ns == ledger.makespan_ns for node in ledger.nodes)
    for name in PARTS.keys() - {"useful", "lost_cpu", "slowdown"}:
        assert sum(node.parts_ns[name] for node in ledger.nodes) == ledger.parts_ns[name]
    assert sum(len(node.kernels_ns) for node in ledger.nodes) == len(ledger.kernels_ns)


@given(timeline=on_nodes())
def test_transfer_is_what_a_worker_does_not_compute_while_its_node_has_nothing_in_hand(timeline: Timeline) -> None:
    """Nanosecond by nanosecond, for each worker."""
    plain = losses(replace(timeline, nodes=timeline.nodes[:0], spans=timeline.spans[:0])).parts_ns
    expected = 0
    for node in timeline.nodes:
        spans = timeline.spans[timeline.spans["node"] == node["node"]]
        if not len(spans):
            continue
        in_hand = {ns for span in spans for ns in range(span["arrived_ns"], span["finished_ns"])}
        begun = min(timeline.submitted_ns, *timeline.chunks["started_ns"].tolist(), 10**9)
        idle = set(range(begun, int(spans["received_ns"].max()))) - in_hand
        for worker in range(node["first_worker"], node["first_worker"] + node["n_workers"]):
            busy = {ns for c in timeline.of_worker(worker) for ns in range(c["started_ns"], c["stored_ns"])}
            expected += len(idle - busy)
    parts = losses(timeline).parts_ns
    assert parts["transfer"] == expected
    assert min(parts.values()) >= 0
    moved = ("startup", "dispatch", "tail", "drain")
    assert sum(plain[name] - parts[name] for name in moved) == parts["transfer"]
    assert [plain[name] for name in PARTS if name not in (*moved, "transfer")] == [
        parts[name] for name in PARTS if name not in (*moved, "transfer")
    ]


def two_nodes(wrong: int = 0) -> Timeline:
    """Two nodes of one worker: the first has two spans with a gap, the other one, and its clock may be wrong."""
    chunks = [(0, 0, 0, 22, 40, 18, 41), (1, 0, 0, 55, 70, 15, 71), (2, 1, 0, 32 + wrong, 90 + wrong, 58, 92 + wrong)]
    spans = [(0, 0, 1, 11, 20, 42, 45), (0, 1, 2, 46, 52, 72, 76), (1, 2, 3, 12, 30 + wrong, 93 + wrong, 97)]
    return Timeline(
        0, 10, 100, np.array(chunks, CHUNK_DTYPE), np.array([(0, 1, 5), (1, 2, 31 + wrong)], WORKER_DTYPE),
        nodes=np.array([(0, 0, 1, 0, 0), (1, 1, 1, 12_345, 3)], NODE_DTYPE), spans=np.array(spans, SPAN_DTYPE),
    )  # fmt: skip


def test_spans_inputs_and_results_on_their_way_are_transfer() -> None:
    ledger = losses(two_nodes())
    first, second = (node.parts_ns for node in ledger.nodes)
    # Node 0: 10-20 and 42-52 before spans, 72-76 behind the last; its worker waits for no other from 76 to 92.
    assert (first["transfer"], first["startup"], first["dispatch"], first["return"]) == (24, 0, 2 + 1 + 3, 2)
    assert (first["tail"], first["drain"]) == (1 + 92 - 76, 8)
    # Node 1: 10-30 before its span, 93-97 behind it, in what would be drain.
    assert (second["transfer"], second["startup"], second["dispatch"], second["drain"]) == (24, 1, 1, 1 + 3)
    assert "node 1, 1 workers: computing 58.0 %, " in str(ledger)


def test_a_node_that_got_no_span_has_no_transfer() -> None:
    timeline = two_nodes()
    alone = replace(timeline, spans=timeline.spans[:2], chunks=timeline.chunks[:2])
    ledger = losses(alone)
    assert ledger.nodes[1].parts_ns["transfer"] == 0
    assert ledger.nodes[1].parts_ns["tail"] == 71 - 31


def test_a_part_that_a_wrong_clock_makes_negative_is_told_with_the_bound_and_not_clipped() -> None:
    ledger = losses(two_nodes(wrong=10))
    assert ledger.closes
    assert ledger.drain_ns == 2 * (100 - 102)
    assert ledger.notes[-1] == (
        "finishing up is negative (-4 ns): stamps of the timeline overlap, "
        "the clocks of the nodes are known within 3 ns"
    )


def test_jobs_of_the_same_nodes_have_one_ledger_for_each_node() -> None:
    first = two_nodes()
    later = {name: getattr(first, name) + 200 for name in ("called_ns", "submitted_ns", "completed_ns")}
    chunks, workers, spans = first.chunks.copy(), first.workers.copy(), first.spans.copy()
    for table in (chunks, workers, spans):
        for name in table.dtype.names or ():
            if name.endswith("_ns") and name != "cpu_ns":
                table[name] += 200
    second = replace(first, chunks=chunks, workers=workers, spans=spans, **later)
    ledger = losses([first, second])
    assert ledger.closes
    assert [node.transfer_ns for node in ledger.nodes] == [48, 48]
    assert all(node.closes for node in ledger.nodes)
    from_checkpoint = replace(second, nodes=first.nodes[:0], spans=first.spans[:0])
    assert losses([first, from_checkpoint]).nodes == ()
    assert losses([first, from_checkpoint]).closes
