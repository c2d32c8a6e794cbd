"""A sweep is run as asked: in rounds of random order, verified, each run complete, nothing left behind."""

import dataclasses
import itertools
import math
import os
import signal

import numpy as np
import psutil
import pytest
import threadpoolctl
from hypothesis import given
from hypothesis import strategies as st

from parcompute import Check
from parcompute.analysis.losses import losses
from parcompute.experiments import measure
from parcompute.experiments.measure import WrongResult, digest
from parcompute.values.sweep import BESIDE_S, Configuration, Sweep, round_order
from parcompute.workers import start

N_ITEMS = 1_000
HERE = ("serial", "threads")  # without processes: where it does not matter who computes


def configuration(backend, n_workers=1, **levels):
    levels = {"schedule": "guided", "n_items": N_ITEMS} | levels
    start_method = "fork" if backend in ("processes", "pool") else ""
    return Configuration(backend, n_workers, 1, start_method=start_method, kind="strong", **levels)


def sweep(*configurations, n_rounds=2, seed=3):
    return Sweep(configurations or tuple(map(configuration, HERE)), n_rounds, seed)


def count(executor, n_items, seed):
    return executor.reduce_blocks(lambda block: block.size, n_items=n_items, block_items=100, seed=seed)


def exactly(result, n_items):
    return Check(result, n_items, 0, "equality")


def close(result, n_items):
    return Check(result, n_items, 10, "10 items")


def runs_of(this, function=count, truth=exactly, **options):
    return list(measure.measure(this, function, truth, "conditions", **options))


def until_stopped(this, function=count, truth=exactly, **options):
    """Return the runs up to the error, and the error."""
    runs, ends = [], measure.measure(this, function, truth, "conditions", **options)
    with pytest.raises(WrongResult) as stopped:
        runs.extend(ends)  # extend keeps what came before the error
    return runs, stopped.value


# --- what runs, and in which order -------------------------------------------------------------------------


def test_each_round_visits_each_configuration_once_in_its_random_order():
    this = sweep(*(configuration("threads", n) for n in (1, 2)), configuration("serial"), n_rounds=4)
    runs = runs_of(this)
    visited = [[run.configuration for run in group] for _, group in itertools.groupby(runs, lambda run: run.round)]
    assert visited == [round_order(this.configurations, this.seed, round_) for round_ in range(1, 5)]


def test_the_order_can_be_had_again_and_another_seed_gives_another():
    many = tuple(configuration("threads", n) for n in range(1, 9))
    orders = [tuple(Sweep(many, 3, seed).visits()) for seed in (1, 1, 2)]
    assert orders[0] == orders[1] != orders[2]


def test_the_first_round_warms_up_and_is_not_yielded():
    this, begun = sweep(n_rounds=1), []
    runs = runs_of(this, starting=lambda *visit: begun.append(visit))
    assert [round_ for round_, _ in begun] == [-1, -1, 0, 0]
    assert {c for round_, c in begun if round_ < 0} == set(this.configurations)
    assert [(run.round, run.configuration) for run in runs] == begun[2:]


def test_finished_runs_are_not_made_again_and_later_rounds_are():
    first = runs_of(sweep(n_rounds=1))
    assert runs_of(sweep(n_rounds=1), done=first) == []
    assert {(run.round, run.configuration.backend) for run in runs_of(sweep(n_rounds=2), done=first)} == {
        (1, "serial"),
        (1, "threads"),
    }


def test_only_configurations_with_missing_runs_warm_up():
    serial, threads = map(configuration, HERE)
    begun = []
    done = runs_of(sweep(serial, n_rounds=1))
    runs_of(sweep(serial, threads, n_rounds=1), done=done, starting=lambda *visit: begun.append(visit))
    assert begun == [(-1, threads), (0, threads)]


def test_a_sweep_without_missing_runs_starts_nothing():
    assert runs_of(sweep(), function=None, done=runs_of(sweep())) == []


# --- what a run says ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(("backend", "n_workers"), [("serial", 1), ("threads", 2), ("processes", 2), ("pool", 2)])
def test_a_run_is_complete(backend, n_workers):
    (run,) = runs_of(sweep(configuration(backend, n_workers), n_rounds=1, seed=11))
    assert (run.round, run.seed, run.provenance, run.block_items) == (0, 11, "conditions", 100)
    assert (run.value, run.error, run.tolerance, run.verified) == (N_ITEMS, 0, 0, True)
    assert type(run.verified) is bool
    assert run.digest == digest(N_ITEMS)
    assert 1 <= run.n_chunks == len(run.timelines[0].chunks)
    assert run.wall_s > 0
    assert run.startup_s >= 0
    assert run.cpu_s >= 0
    numbers = [value for f in dataclasses.fields(run) if isinstance(value := getattr(run, f.name), float)]
    assert all(map(math.isfinite, numbers))
    assert run.started_utc.startswith("20")
    assert run.started_utc.endswith("+00:00")


def test_start_up_is_measured_apart_from_the_run(monkeypatch):
    ready, wait = [], measure.Executor.wait_until_ready

    def noted(executor):
        ready.append((executor, wait(executor)))
        return ready[-1][1]

    def counted(executor, n_items, seed):
        assert ready[-1][0] is executor  # the workers were waited for before they got anything to do
        return count(executor, n_items, seed)

    monkeypatch.setattr(measure.Executor, "wait_until_ready", noted)
    (run,) = runs_of(sweep(configuration("processes", 2), n_rounds=1), counted)
    assert run.startup_s == ready[-1][1]
    assert all(run.timelines[0].workers["ready_ns"] <= run.timelines[0].submitted_ns)


def test_workers_have_computed_a_share_of_the_run_before_the_clock_starts():
    sizes = []

    def noted(executor, n_items, seed):
        sizes.append((id(executor), n_items))
        return count(executor, n_items, seed)

    runs_of(sweep(configuration("serial"), n_rounds=1), noted)
    assert [n_items for _, n_items in sizes] == [16, N_ITEMS] * 2
    assert sizes[0][0] == sizes[1][0]
    assert sizes[2][0] == sizes[3][0]


def test_why_a_run_was_disturbed_is_stored_with_it(monkeypatch):
    monkeypatch.setattr(measure, "disturbances", lambda *counters: "others computed")
    assert {run.disturbed for run in runs_of(sweep())} == {"others computed"}


def test_blas_has_one_thread_while_a_sweep_runs_and_what_it_had_after_it():
    np.ones((2, 2)) @ np.ones((2, 2))

    def threads():
        return {found["num_threads"] for found in threadpoolctl.threadpool_info() if found["user_api"] == "blas"}

    if not threads():
        pytest.skip("threadpoolctl does not know the BLAS of this numpy")
    inside = []

    def noted(executor, n_items, seed):
        inside.append(threads())
        return count(executor, n_items, seed)

    with threadpoolctl.threadpool_limits(2):
        runs_of(sweep(n_rounds=1), noted)
        assert threads() == {2}
    assert all(found == {1} for found in inside)


def test_blas_has_what_it_had_after_a_sweep_that_failed():
    def fail(executor, n_items, seed):
        raise ArithmeticError

    with threadpoolctl.threadpool_limits(2):
        before = threadpoolctl.threadpool_info()
        with pytest.raises(ArithmeticError):
            runs_of(sweep(), fail)
        assert threadpoolctl.threadpool_info() == before


# --- what stops a sweep ------------------------------------------------------------------------------------


def test_a_wrong_result_is_yielded_as_unverified_and_stops_the_sweep():
    wrong_from = itertools.count()

    def wrong(executor, n_items, seed):  # two warm-ups of two calls each, then the second run
        return count(executor, n_items, seed) + 100 * (next(wrong_from) >= 6)

    runs, error = until_stopped(sweep(n_rounds=6), wrong)
    assert [run.verified for run in runs] == [True, False]
    assert (runs[-1].round, runs[-1].value, runs[-1].error) == (0, N_ITEMS + 100, 100)
    assert error.run is runs[-1]
    assert f"{runs[-1].configuration.backend} × 1: the result is 1100, 1e+02 from 1000, NOT within" in str(error)


def test_a_wrong_result_of_a_warm_up_stops_the_sweep_too():
    runs, error = until_stopped(sweep(), lambda *problem: count(*problem) + 1)
    assert runs == [error.run]
    assert (runs[0].round, runs[0].verified) == (-1, False)


def test_a_function_that_computes_no_block_has_a_time_and_no_timeline():
    for run in runs_of(sweep(n_rounds=1), lambda executor, n_items, seed: n_items):
        assert run.wall_s > 0
        assert (run.timelines, run.block_items, run.n_chunks, run.cpu_s) == ((), 0, 0, 0)


def test_a_run_of_several_jobs_has_the_timeline_of_each():
    def twice(executor, n_items, seed):
        return count(executor, n_items, seed) + count(executor, n_items, seed)

    for run in runs_of(sweep(n_rounds=1), twice, lambda result, n_items: exactly(result, 2 * n_items)):
        first, second = run.timelines
        assert first.completed_ns <= second.called_ns
        assert run.n_chunks == len(first.chunks) + len(second.chunks)
        ledger = losses(run.timelines)
        assert ledger.closes
        assert ledger.makespan_ns == second.completed_ns - first.called_ns
        assert run.cpu_s * 1e9 == pytest.approx(ledger.useful_ns)


def test_a_variant_reaches_the_function():
    asked = set()

    def function(executor, n_items, seed, variant):
        asked.add(variant)
        return count(executor, n_items, seed)

    ways = [configuration("serial", variant=variant) for variant in ("copied", "shared")]
    assert len(runs_of(sweep(*ways, n_rounds=1), function)) == 2
    assert asked == {"copied", "shared"}


def test_counters_of_the_machine_come_with_each_run():
    (run,) = runs_of(sweep(configuration("serial"), n_rounds=1))
    assert run.counters.load_before >= 0
    assert min(run.counters.runnable_before, run.counters.runnable_after) >= 1
    assert run.counters.others_s >= 0


# --- until the times are known well enough -----------------------------------------------------------------


def with_precision(precision, budget_s, n_rounds=6):
    return dataclasses.replace(sweep(n_rounds=n_rounds), precision=precision, budget_s=budget_s)


def took(this, walls_s, disturbed=""):
    """Runs of a sweep's configurations, one per round and time."""
    (any_run,) = runs_of(sweep(configuration("serial"), n_rounds=1))
    return [
        dataclasses.replace(any_run, configuration=c, round=i, wall_s=wall_s, startup_s=0.0, disturbed=disturbed)
        for c, times in zip(this.configurations, walls_s, strict=True)
        for i, wall_s in enumerate(times)
    ]


def test_only_what_is_not_known_well_enough_is_run_again():
    this = with_precision(0.02, 1e9)
    serial, threads = this.configurations
    assert this.unsettled(took(this, ([1.0] * 6, [1.0] * 6))) == []
    assert this.unsettled(took(this, ([1.0] * 6, [1.0, 1.1] * 3))) == [threads]
    assert this.unsettled(took(this, ([1.0] * 5, [1.0] * 6))) == [serial]  # five have no interval
    assert set(this.unsettled(took(this, ([1.0] * 6, [1.0] * 6), "others computed"))) == {serial, threads}


def test_a_further_round_visits_the_serial_case_of_what_is_not_known_well_enough():
    this = with_precision(0.02, 1e9)
    serial, threads = this.configurations
    other = dataclasses.replace(serial, variant="other")
    this = dataclasses.replace(this, configurations=(serial, threads, other))
    runs = took(this, ([1.0] * 6, [1.0, 1.1] * 3, [1.0] * 6))
    visits = list(itertools.islice(measure._visits(this, runs), 2))
    assert sorted(visits) == [(6, serial), (6, threads)]


def test_no_further_round_begins_when_the_budget_is_spent():
    this = with_precision(0.02, 10.0)
    noisy = took(this, ([1.0, 1.5] * 3, [1.0, 1.5] * 3))
    assert sum(run.wall_s for run in noisy) > 10
    assert this.unsettled(noisy) == []
    assert dataclasses.replace(this, budget_s=20.0).unsettled(noisy)


def test_further_rounds_end_with_the_budget_and_continue_on_the_next_call(monkeypatch):
    monkeypatch.setattr(measure, "disturbances", lambda *counters: "others computed")  # so that none is ever enough
    this = with_precision(0.02, 0.4, n_rounds=1)
    runs = runs_of(this)
    assert max(run.round for run in runs) >= 1
    spent_s = [run.startup_s + run.wall_s + BESIDE_S for run in runs]
    assert sum(spent_s) >= 0.4
    assert sum(spent_s[:-2]) < 0.4
    assert runs_of(this, done=runs) == []
    more = runs_of(dataclasses.replace(this, budget_s=0.8), done=runs)
    assert min(run.round for run in more) == 1 + max(run.round for run in runs)


def test_arrays_are_the_same_result_on_every_backend():
    def halves(executor, n_items, seed):
        return executor.map_blocks(
            lambda block, rng: rng.random(block.size), n_items=n_items, block_items=64, seed=seed
        )

    ways = [configuration(backend) for backend in ("serial", "threads", "processes", "pool")]
    runs = runs_of(sweep(*ways, n_rounds=1), halves, lambda rows, n_items: exactly(len(rows), n_items))
    assert len({run.digest for run in runs}) == 1


def test_a_result_that_is_not_a_number_is_wrong():
    runs, _ = until_stopped(sweep(), lambda *problem: count(*problem) * math.nan)
    assert [run.verified for run in runs] == [False]


def test_a_result_with_other_bits_stops_the_sweep_although_it_is_close():
    this = sweep(configuration("threads", 1), configuration("threads", 2), configuration("serial"), n_rounds=1)
    runs, error = until_stopped(this, lambda ex, *size: count(ex, *size) + (ex.n_workers == 2), close)
    assert [run.verified for run in runs].count(False) == 1
    assert runs[-1] is error.run
    assert "the result has other bits" in str(error)
    assert "threads × " in str(error) or "serial × 1" in str(error)


def test_a_result_with_other_bits_than_those_on_record_stops_the_sweep():
    serial, threads = map(configuration, HERE)
    done = [dataclasses.replace(run, digest=digest(N_ITEMS + 1)) for run in runs_of(sweep(serial, n_rounds=1))]
    runs, error = until_stopped(sweep(threads, n_rounds=1), truth=close, done=done)
    assert [run.verified for run in runs] == [False]
    assert "threads × 1: the result has other bits" in str(error)


def test_results_of_other_sizes_may_have_other_bits():
    sizes = [configuration("serial", n_items=n) for n in (100, 200)]
    assert {run.value for run in runs_of(sweep(*sizes, n_rounds=1))} == {100, 200}


def test_an_error_names_levels_that_are_not_as_usual():
    this = sweep(configuration("threads", 2, schedule="dynamic,4"))
    _, error = until_stopped(this, lambda *problem: count(*problem) + 1)
    assert str(error).startswith("threads dynamic,4 × 2: ")


@pytest.mark.parametrize("method", start.METHODS)
def test_ctrl_c_leaves_no_process(method):
    pids = []

    def interrupted(executor, n_items, seed):
        pids.extend(executor.worker_pids)
        signal.raise_signal(signal.SIGINT)

    this = sweep(dataclasses.replace(configuration("processes", 2), start_method=method))
    with pytest.raises(KeyboardInterrupt):
        runs_of(this, interrupted)
    assert len(pids) == 2
    assert os.getpid() not in pids
    assert [pid for pid in pids if psutil.pid_exists(pid)] == []


# --- digests -----------------------------------------------------------------------------------------------

plain = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(),
    st.floats(),
    st.complex_numbers(),
    st.text(max_size=5),
    st.binary(max_size=5),
)
arrays = st.builds(
    lambda values, dtype: np.array(values, dtype),
    st.lists(st.integers(0, 3), max_size=4),
    st.sampled_from(["i4", "<i8", ">i8", "f4", "f8", "c16", "?"]),
)
results = st.recursive(
    plain | arrays,
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.lists(inner, max_size=3).map(tuple)
        | st.dictionaries(st.text(max_size=3), inner, max_size=3)
    ),
    max_leaves=6,
)


def spelled(value):
    """Write types, shapes and bits of a result as text, in another way than `digest` does."""
    if isinstance(value, dict):
        return "{" + ", ".join(sorted(f"{key!r}: {spelled(part)}" for key, part in value.items())) + "}"
    if isinstance(value, (tuple, list)):
        return f"{type(value).__name__}({', '.join(map(spelled, value))})"
    if isinstance(value, np.ndarray):
        return f"array {value.dtype.str} {value.shape} {value.tobytes()!r}"
    if isinstance(value, (float, complex)):
        return f"{type(value).__name__} {np.array(value).tobytes()!r}"
    return f"{type(value).__name__} {value!r}"


@given(results, results)
def test_digests_are_equal_for_equal_bits_and_for_nothing_else(one, other):
    assert (digest(one) == digest(other)) == (spelled(one) == spelled(other))


@given(arrays)
def test_a_digest_does_not_depend_on_how_an_array_lies_in_memory(values):
    twice = np.repeat(values, 2)
    assert digest(twice[::2]) == digest(values)
    grid = np.multiply.outer(values, values)
    assert digest(np.asfortranarray(grid)) == digest(grid)


def test_a_digest_does_not_depend_on_the_order_of_a_dict():
    assert digest({"a": 1, "b": 2}) == digest({"b": 2, "a": 1})


@pytest.mark.parametrize(
    ("one", "other"),
    [
        (0.0, -0.0),
        (1, True),
        (1, 1.0),
        (np.float64(1), 1.0),
        ([1, 2], (1, 2)),
        ([[1], 2], [[1, 2]]),
        (("a", "b"), ("ab",)),
        (np.zeros((2, 3)), np.zeros((3, 2))),
        (np.zeros(1), np.float64(0)),
        (np.zeros(2, "i4,f4"), np.zeros(2, "f4,i4")),
        (np.zeros(2, [("x", "f8")]), np.zeros(2, [("y", "f8")])),
    ],
)
def test_digests_tell_apart(one, other):
    assert digest(one) != digest(other)


def test_what_lies_between_the_fields_of_a_structure_is_no_part_of_its_digest():
    aligned = np.dtype("i1,f8", align=True)
    one, other = np.zeros(3, aligned), np.zeros(3, aligned)
    other.view(np.uint8).reshape(3, -1)[:, 3] = 7
    assert one.tobytes() != other.tobytes()
    assert digest(one) == digest(other)


@pytest.mark.parametrize(
    "result",
    [object(), {1, 2}, [object()], np.array([None]), np.ma.masked_array([1, 2], [0, 1])],
    ids=lambda r: type(r).__name__,
)
def test_what_has_no_digest_is_refused(result):
    with pytest.raises(TypeError, match="has no digest; return"):
        digest(result)
