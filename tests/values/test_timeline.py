"""A timeline sorts its rows, and finds those of a worker."""

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from parcompute.values.timeline import CHUNK_DTYPE, NODE_DTYPE, SPAN_DTYPE, WORKER_DTYPE, Timeline

N_WORKERS = 5

# worker, start and CPU time of each chunk
chunks_in_any_order = st.lists(
    st.tuples(st.integers(0, N_WORKERS - 1), st.integers(10, 10**15), st.integers(0, 10**12)), max_size=40
)


def timeline_of(rows):
    chunks = np.zeros(len(rows), CHUNK_DTYPE)
    for k, (worker, started_ns, cpu_ns) in enumerate(rows):
        chunks[k] = (k, worker, 0, started_ns, started_ns + cpu_ns, cpu_ns, started_ns + cpu_ns)
    workers = np.zeros(N_WORKERS, WORKER_DTYPE)
    workers["worker"] = np.arange(N_WORKERS)
    return Timeline(called_ns=3, submitted_ns=7, completed_ns=2 * 10**15, chunks=chunks, workers=workers)


@given(chunks_in_any_order)
def test_rows_are_ordered_by_worker_and_start(rows):
    chunks = timeline_of(rows).chunks
    found = list(zip(chunks["worker"].tolist(), chunks["started_ns"].tolist(), strict=True))
    assert found == sorted((worker, started_ns) for worker, started_ns, _ in rows)


@given(chunks_in_any_order)
def test_each_row_belongs_to_exactly_one_worker(rows):
    timeline = timeline_of(rows)
    of_workers = [timeline.of_worker(worker) for worker in range(timeline.n_workers)]
    assert all((mine["worker"] == worker).all() for worker, mine in enumerate(of_workers))
    np.testing.assert_array_equal(np.concatenate(of_workers), timeline.chunks)


@given(chunks_in_any_order)
def test_cpu_time_is_the_exact_sum_over_all_chunks(rows):
    assert timeline_of(rows).cpu_ns == sum(cpu_ns for _, _, cpu_ns in rows)


def test_makespan_runs_from_the_call_to_the_complete_result():
    assert timeline_of([]).makespan_ns == 2 * 10**15 - 3


def test_workers_that_computed_nothing_are_counted():
    timeline = timeline_of([(2, 10, 1)])
    assert timeline.n_workers == N_WORKERS
    assert len(timeline.of_worker(0)) == 0


def test_rows_that_are_handed_in_stay_as_they_were():
    chunks = np.zeros(2, CHUNK_DTYPE)
    chunks["worker"] = [1, 0]
    Timeline(0, 0, 1, chunks, np.zeros(2, WORKER_DTYPE))
    assert chunks["worker"].tolist() == [1, 0]


def test_stamps_keep_their_nanoseconds():
    started_ns = 2**53 + 1  # the first integer that a float64 cannot hold
    assert timeline_of([(0, started_ns, 1)]).chunks["started_ns"][0] == started_ns


def test_spans_are_ordered_by_node_and_arrival():
    spans = np.zeros(3, SPAN_DTYPE)
    spans["node"], spans["arrived_ns"], spans["first"] = [1, 0, 0], [5, 9, 7], [10, 20, 30]
    timeline = Timeline(0, 0, 1, np.zeros(0, CHUNK_DTYPE), np.zeros(2, WORKER_DTYPE), spans=spans)
    assert timeline.spans["first"].tolist() == [30, 20, 10]


def test_a_job_of_one_host_has_neither_nodes_nor_spans():
    assert timeline_of([]).nodes.dtype == NODE_DTYPE
    assert timeline_of([]).spans.dtype == SPAN_DTYPE
    assert len(timeline_of([]).nodes) == len(timeline_of([]).spans) == 0


def test_the_tables_of_an_unread_timeline_are_made_once_and_only_if_somebody_looks():
    made = []

    def tables():
        made.append(1)
        read = timeline_of([(1, 30, 1), (0, 20, 1), (1, 10, 1)])
        return read.chunks[::-1], read.workers, read.deaths

    unread = Timeline.unread(3, 7, 99, tables)
    assert unread.until(100).makespan_ns == 97
    assert not made
    assert unread.chunks["started_ns"].tolist() == [20, 10, 30]
    assert unread.n_workers == N_WORKERS
    assert len(unread.deaths) == 0
    assert len(made) == 1
    assert not hasattr(unread, "anything else")
