"""Runs that can be compared are one study, others are another."""

from itertools import count

import numpy as np
import pytest

from parcompute.analysis import rules, tables
from parcompute.analysis.studies import studies
from parcompute.machine.provenance import Provenance
from parcompute.record.record import Recorded
from parcompute.values.sweep import Configuration, Run

MACHINE = {"cpu_model": "A64FX", "usable_cpus": 4, "n_cores": 4}


def a_run(backend="processes", n_workers=1, round_=0, **changes):
    levels = {"kind": "strong", "n_items": 1_000, "schedule": "guided", "threads_per_worker": 1, "n_nodes": 1}
    levels |= {name: changes.pop(name) for name in list(changes) if name in levels}
    fields = {
        "seed": 1,
        "block_items": 100,
        "n_chunks": 10,
        "wall_s": 8.0 / n_workers + 0.01 * round_,
        "startup_s": 0.1,
        "cpu_s": 8.0,
        "digest": "d",
        "value": 1.0,
        "error": 0.0,
        "tolerance": 0.0,
        "verified": True,
        "disturbed": "",
        "started_utc": "2025-01-01T00:00:00.000+00:00",
        "provenance": "here",
    }
    configuration = Configuration(backend, n_workers, start_method="", **levels)
    return Run(configuration=configuration, round=round_, **(fields | changes))


def recorded(*runs, **conditions):
    conditions = {"here": Provenance(**MACHINE)} | conditions
    fields = {id: provenance.as_dict() for id, provenance in conditions.items()}
    return Recorded("file.h5", "counting", "2025-01-01", runs, fields, (-1,) * len(runs))


def test_runs_that_share_conditions_seed_size_and_kind_are_one_study():
    runs = (a_run("serial"), a_run("processes", 2), a_run("processes", 2, round_=1), a_run("threads", 4))
    (study,) = studies(recorded(*runs))
    assert study.runs == runs
    assert (study.experiment, study.kind, study.n_items, study.seed) == ("counting", "strong", 1_000, 1)
    assert study.conditions == Provenance(**MACHINE).conditions_id


def test_runs_of_two_nodes_of_a_kind_are_one_study():
    runs = (a_run(provenance="here"), a_run(provenance="there"))
    there = Provenance(**MACHINE, host="node8", load_1min=3.0)
    (study,) = studies(recorded(*runs, there=there))
    assert study.provenance.host == "node8"  # of the newest run


@pytest.mark.parametrize(
    "unlike",
    [{"provenance": "there"}, {"seed": 2}, {"n_items": 2_000}, {"kind": "weak"}],
    ids=lambda unlike: next(iter(unlike)),
)
def test_unlike_runs_are_kept_apart(unlike):
    runs = a_run(), a_run(**unlike)
    found = studies(recorded(*runs, there=Provenance(**(MACHINE | {"cpu_model": "EPYC"}))))
    assert [study.runs for study in found] == [(run,) for run in runs]


def with_mpi4py(*versions):
    return {v: Provenance(**MACHINE, mpi4py_version=v, collected_utc=v) for v in versions}


def test_an_engine_that_is_installed_meanwhile_keeps_no_runs_apart():
    runs = (a_run("serial"), a_run("threads", provenance="4.0"), a_run("mpi", 2, provenance="4.0"))
    (study,) = studies(recorded(*runs, **with_mpi4py("4.0")))
    assert study.runs == runs
    assert study.conditions == Provenance(**MACHINE).conditions_id
    assert study.provenance.mpi4py_version == "4.0"
    (study,) = studies(recorded(*runs[:2], **with_mpi4py("4.0")))
    assert study.provenance.mpi4py_version == ""  # none of its runs is of it


def test_runs_of_an_older_version_of_an_engine_are_kept_apart_with_the_serial_runs_as_their_base():
    serial, threads = a_run("serial"), a_run("threads", 2, provenance="4.1")
    old, new = (a_run("mpi", 2, provenance=version) for version in ("4.0", "4.1"))
    before, now = studies(recorded(serial, old, new, threads, **with_mpi4py("4.0", "4.1")))
    assert before.runs == (serial, old)
    assert {curve.base.kind for curve in before.curves} == {"best_serial"}
    assert now.runs == (serial, new, threads)
    assert before.unlike(now) == [("mpi4py_version", "4.0", "4.1")]
    assert [study.provenance.mpi4py_version for study in (before, now)] == ["4.0", "4.1"]
    assert now.conditions == Provenance(**MACHINE).conditions_id != before.conditions


def test_two_studies_are_unlike_in_engines_only_where_both_have_used_them():
    runs = a_run("mpi", 2, provenance="4.0"), a_run("threads", 2, provenance="there")
    one, other = studies(recorded(*runs, **with_mpi4py("4.0"), there=Provenance(**(MACHINE | {"cpu_model": "EPYC"}))))
    assert one.unlike(other) == [("cpu_model", "A64FX", "EPYC")]


def test_for_weak_scaling_the_size_is_that_of_one_worker():
    runs = [a_run("processes", n, kind="weak", n_items=1_000 * n) for n in (1, 2, 4)]
    (study,) = studies(recorded(*runs))
    assert study.n_items == 1_000


def test_the_study_with_the_newest_run_comes_last():
    runs = [a_run(seed=seed, round_=round_) for round_, seed in enumerate((1, 2, 3, 1))]
    assert [study.seed for study in studies(recorded(*runs))] == [2, 3, 1]


def test_the_newest_run_is_the_last_of_the_file_although_the_clock_was_set_back():
    stamps = (f"2025-01-0{day}T00:00:00.000+00:00" for day in count(9, -1))
    runs = [a_run(seed=seed, started_utc=stamp) for seed, stamp in zip((1, 2, 3), stamps, strict=False)]
    assert [study.seed for study in studies(recorded(*runs))] == [1, 2, 3]


def test_a_file_without_runs_has_no_study():
    assert studies(recorded()) == ()


def test_what_counts_is_verified_and_undisturbed():
    runs = [a_run(), a_run(round_=1, verified=False), a_run(round_=2, disturbed="others computed")]
    (study,) = studies(recorded(*runs))
    assert study.counted == (runs[0],)
    assert study.runs == tuple(runs)


# --- what speed-ups are relative to ------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("base", "runs"),
    [
        ("best_serial", [a_run("serial"), a_run("processes", 2)]),
        ("best_serial", [a_run("serial"), a_run("processes", 1), a_run("processes", 2)]),
        ("one_worker", [a_run("processes", 1), a_run("processes", 2), a_run("threads", 1)]),
        ("smallest_n", [a_run("processes", 2), a_run("processes", 4)]),
        ("smallest_n", [a_run("processes", 1), a_run("threads", 2)]),
        ("smallest_n", [a_run("processes", 1), a_run("processes", 2, schedule="static")]),
        ("one_worker", [a_run("serial", disturbed="others computed"), a_run("processes", 1)]),
        ("one_worker", [a_run("serial", verified=False), a_run("processes", 1)]),
    ],
)
def test_the_base_is_the_serial_runs_or_one_worker_or_the_fewest(base, runs):
    (study,) = studies(recorded(*runs))
    assert {curve.base.kind for curve in study.curves} == {base}
    assert {curve.base.kind for curve in study.curves} == {base}


@pytest.mark.parametrize("runs", [[a_run("serial")], [a_run(verified=False)], [a_run("serial"), a_run(disturbed="x")]])
def test_without_parallel_runs_that_count_there_is_no_curve(runs):
    (study,) = studies(recorded(*runs))
    assert study.curves == ()


@pytest.mark.parametrize(("n_cores", "n_cpus"), [(4, 4), (2, 2), (-1, 4)])
def test_no_law_is_fitted_across_the_second_threads_of_cores(n_cores, n_cpus):
    there = Provenance(**(MACHINE | {"n_cores": n_cores}))
    runs = [a_run("processes", n, round_, provenance="there") for n in (1, 2, 4) for round_ in range(6)]
    (study,) = studies(recorded(*runs, there=there))
    assert study.n_cpus == n_cpus
    (curve,) = study.curves
    np.testing.assert_array_equal([point.beyond for point in curve.points], [n > n_cpus for n in (1, 2, 4)])


def test_a_study_names_experiment_size_seed_and_machine():
    text = str(studies(recorded(a_run()))[0])
    assert text.startswith("counting: 1 runs of 1000 items, seed 1, on A64FX (4 usable CPUs), conditions ")


# --- several nodes -----------------------------------------------------------------------------------------


def on_nodes(*shapes, backend="mpi", **changes):
    """Runs of as many workers on as many nodes."""
    return [a_run(backend, n, round_, n_nodes=k, **changes) for n, k in shapes for round_ in range(6)]


def shapes_of(study):
    return [[(p.n_workers, p.n_nodes) for p in curve.points] for curve in study.curves]


@pytest.mark.parametrize(
    ("shapes", "curves", "numbers"),
    [
        ([(1, 1), (4, 1), (8, 2), (16, 4)], [[(1, 1), (4, 1), (8, 2), (16, 4)]], [0]),
        ([(1, 1), (2, 2), (4, 4)], [[(1, 1), (2, 2), (4, 4)]], [0]),
        ([(4, 2)], [[(4, 2)]], [2]),
        ([(1, 1), (2, 1), (4, 1), (4, 2)], [[(1, 1), (2, 1), (4, 1)], [(4, 2)]], [1, 2]),  # 4 are on 1 and on 2
        ([(1, 1), (3, 1), (4, 2), (8, 2)], [[(1, 1), (3, 1)], [(4, 2), (8, 2)]], [1, 2]),  # both vary
    ],
)
def test_numbers_of_nodes_have_curves_of_their_own_unless_the_workers_tell_them(shapes, curves, numbers):
    (study,) = studies(recorded(*on_nodes(*shapes)))
    assert shapes_of(study) == curves
    assert [curve.n_nodes for curve in study.curves] == numbers
    for curve in study.curves:
        for point in curve.points:
            assert {run.configuration.n_nodes for run in study.runs_of(curve, point.n_workers)} == {point.n_nodes}


def test_workers_are_beyond_where_a_node_has_no_more_cpus_and_are_not_fitted():
    (within,) = studies(recorded(*on_nodes((1, 1), (4, 1), (8, 2))))
    assert sorted(set(within.curves[0].fit.n_workers.tolist())) == [1, 4, 8]
    (study,) = studies(recorded(*on_nodes((1, 1), (3, 1), (12, 2))))
    assert [point.beyond for point in study.curves[0].points] == [False, False, True]
    assert sorted(set(study.curves[0].fit.n_workers.tolist())) == [1, 3]
    told = "\n".join(tables.table(study))
    assert "12*" in told
    assert "* more workers than 4 CPUs of each node: in no fit" in told
    assert [study.has_cpus(run) for run in (study.runs[0], study.runs[-1])] == [True, False]


def test_nodes_on_one_host_share_its_cpus():
    twice = Provenance(**MACHINE).on_nodes(["node7", "node7"], ["A64FX", "A64FX"])
    runs = on_nodes((1, 1), (4, 1)) + on_nodes((8, 2), provenance="twice")
    (study,) = studies(recorded(*runs, twice=twice))
    assert [point.beyond for point in study.curves[0].points] == [False, False, True]


def test_one_worker_on_one_node_is_the_base_of_all_numbers_of_nodes():
    (study,) = studies(recorded(*on_nodes((1, 1), (2, 1), (2, 2), (4, 2))))
    assert {(curve.base.kind, curve.base.n_workers) for curve in study.curves} == {("one_worker", 1)}


def test_runs_on_nodes_of_the_same_cpus_are_one_study_with_those_on_one_and_unlike_ones_are_not():
    alike = Provenance(**MACHINE).on_nodes(["node7", "node8"], ["A64FX", "A64FX"])
    unlike = Provenance(**MACHINE).on_nodes(["node7", "node9"], ["A64FX", "EPYC"])
    runs = [a_run("serial"), *on_nodes((4, 2), provenance="alike"), *on_nodes((8, 2), provenance="unlike")]
    one, other = studies(recorded(*runs, alike=alike, unlike=unlike))
    assert shapes_of(one) == [[(4, 2)]]
    assert one.curves[0].base.kind == "best_serial"
    assert shapes_of(other) == [[(8, 2)]]
    assert "on nodes of A64FX, EPYC" in str(other)


def test_tables_and_verdicts_have_the_nodes():
    runs = [a_run("serial", round_=i, wall_s=8.0 + 0.01 * i) for i in range(6)] + on_nodes((1, 1), (4, 1), (8, 2))
    (study,) = studies(recorded(*runs))
    heading, *rows = tables.points(study)
    assert heading[:4] == ("backend", "workers", "nodes", "runs")
    assert [row[1:3] for row in rows] == [("1", "1"), ("4", "1"), ("8", "2")]
    assert "mpi: on 8 workers of 2 nodes, counting runs " in str(tables.verdicts(study)[0])
    assert rules._levels(study).endswith("; n_nodes: 1, 2")
    (alone,) = studies(recorded(a_run("serial"), a_run("processes", 2)))
    assert "nodes" not in tables.points(alone)[0]


def test_weak_scaling_over_nodes_is_the_share_of_one_worker():
    runs = [a_run("mpi", n * k, kind="weak", n_items=1_000 * n * k, n_nodes=k) for n, k in ((1, 1), (2, 1), (2, 2))]
    (study,) = studies(recorded(*runs))
    assert study.n_items == 1_000
    assert shapes_of(study) == [[(1, 1), (2, 1), (4, 2)]]
