"""A sweep over numbers of nodes runs, records, tells and continues; unlike nodes are kept apart."""

import platform
from collections import Counter
from dataclasses import dataclass, replace

import numpy as np
import pytest

import parcompute as pc
from parcompute.analysis.losses import losses
from parcompute.analysis.studies import studies
from parcompute.backends import base
from parcompute.backends.threads import Threads
from parcompute.experiments import measure
from parcompute.experiments.perform import Choice, sweep_of
from parcompute.figures import pages
from parcompute.machine import provenance, quiet
from parcompute.machine.machine import Machine
from parcompute.record import record
from parcompute.values.timeline import NODE_DTYPE, SPAN_DTYPE

N_ITEMS = 4_000


@dataclass(frozen=True)
class Node:
    host: str
    cpu_model: str


class Nodes(Threads):
    """Threads that tell their timeline as if they were on several hosts, with a span for each chunk."""

    n_nodes = 1

    def __init__(self, options):
        self.of_a_node = options.n_workers
        super().__init__(replace(options, n_workers=options.n_workers * self.n_nodes))

    def run(self, job, called_ns):
        timeline, troubles = super().run(job, called_ns)
        chunks, spans = timeline.chunks, np.zeros(len(timeline.chunks), SPAN_DTYPE)
        spans["node"] = chunks["worker"] // self.of_a_node
        spans["first"], spans["stop"] = job.plan.edges[chunks["chunk"]], job.plan.edges[chunks["chunk"] + 1]
        spans["arrived_ns"], spans["finished_ns"] = chunks["started_ns"], chunks["stored_ns"]
        spans["sent_ns"], spans["received_ns"] = spans["arrived_ns"] - 5, spans["finished_ns"] + 5
        nodes = np.array([(i, i * self.of_a_node, self.of_a_node, 7, 3) for i in range(self.n_nodes)], NODE_DTYPE)
        return replace(timeline, nodes=nodes, spans=spans), troubles


@pytest.fixture
def asked(monkeypatch):
    """Return what executors are asked for from now on: backend, workers, nodes, cluster; and what their nodes are."""
    asked = Counter()
    cpu = Machine.read().topology.model
    there = {"hosts": [platform.node(), "node8", "node9", "node10"], "cpus": [cpu] * 4}

    class Listening(measure.Listening):
        def __init__(self, workers, *, backend, nodes=None, cluster=None, **options):
            asked[backend, workers, nodes, cluster] += 1
            Nodes.n_nodes = nodes or 1
            super().__init__(workers, backend=backend, **options)

        @property
        def nodes(self):
            return [Node(*of) for of in zip(there["hosts"], there["cpus"], strict=True)][: Nodes.n_nodes]

    monkeypatch.setattr(measure, "Listening", Listening)
    monkeypatch.setattr(measure, "disturbances", lambda *counters: "")
    for name in ("mpi", "dask"):
        monkeypatch.setitem(base._BACKENDS, name, f"{__name__}:Nodes")
    for name in ("save_study", "save_sizes"):
        monkeypatch.setattr(pages, name, lambda *of: [])
    asked.there = there
    return asked


@pc.experiment(
    n_items={"default": N_ITEMS}, truth=lambda found, n_items: pc.Check(found, n_items, 0, "equality"),
    backends=("threads", "mpi"),
)  # fmt: skip
def ones(executor, n_items, seed):
    return executor.reduce_blocks(lambda block: block.size, n_items=n_items, block_items=100, seed=seed)


def run(tmp_path, *arguments):
    with pytest.raises(SystemExit) as left:
        ones.main(["--rounds", "1", "--results", str(tmp_path), *arguments])
    assert not left.value.code
    return record.read(tmp_path / "ones.h5", timelines=True)


def shapes(runs):
    return sorted({(r.configuration.backend, r.configuration.n_workers, r.configuration.n_nodes) for r in runs})


# --- what is swept -----------------------------------------------------------------------------------------


def choice(**levels):
    usual = dict.fromkeys(("schedules", "start_methods"), ("guided",)) | {"preset": "", "scaling": "strong"}
    usual |= {"workers": (2,), "backends": ("threads", "mpi"), "variants": (), "blas_threads": (1,)}
    usual |= {"threads_per_worker": 1, "rounds": 1, "seed": 1, "precision": 1.0, "budget": None, "results": None}
    return Choice(**(usual | levels))


def test_workers_are_those_of_each_node_and_backends_of_one_host_run_on_one():
    swept = sweep_of(choice(nodes=(1, 2, 4)), [100], n_cpus=2).configurations
    assert [(c.backend, c.n_workers, c.n_nodes) for c in swept] == [
        ("serial", 1, 1), ("threads", 1, 1), ("threads", 2, 1),
        ("mpi", 1, 1), ("mpi", 2, 1), ("mpi", 4, 2), ("mpi", 8, 4),
    ]  # fmt: skip


def test_without_a_number_of_workers_each_node_has_1_2_4_up_to_its_cpus():
    swept = sweep_of(choice(nodes=(2,), workers=(), backends=("dask",)), [100], n_cpus=4).configurations
    assert [(c.n_workers, c.n_nodes) for c in swept[1:]] == [(1, 1), (2, 2), (4, 2), (8, 2)]


def test_weak_scaling_grows_the_work_with_the_workers_of_all_nodes():
    swept = sweep_of(choice(nodes=(2,), scaling="weak", backends=("mpi",)), [100], n_cpus=2).configurations
    assert [(c.n_workers, c.n_items) for c in swept[1:]] == [(1, 100), (4, 400)]


# --- from the command to the file --------------------------------------------------------------------------


def test_nodes_are_a_factor_and_what_is_asked_of_an_executor(asked, tmp_path, capsys):
    found = run(tmp_path, "--workers", "2", "--nodes", "1,2", "--cluster", "tcp://there")
    assert shapes(found.runs) == [
        ("mpi", 1, 1), ("mpi", 2, 1), ("mpi", 4, 2), ("serial", 1, 1), ("threads", 1, 1), ("threads", 2, 1),
    ]  # fmt: skip
    assert set(asked) == {
        ("serial", 1, None, None), ("threads", 1, None, None), ("threads", 2, None, None),
        ("mpi", 1, 1, None), ("mpi", 2, 1, None), ("mpi", 2, 2, None),
    }  # fmt: skip
    out = capsys.readouterr().out
    assert "on 1, 2, 4 of " in out
    assert " of each of 1, 2 nodes; " in out
    assert "mpi × 4 on 2 nodes " in out
    table = [line.split()[:4] for line in out.splitlines() if line.startswith(("backend ", "mpi "))]
    assert table[:4] == [
        ["backend", "workers", "nodes", "runs"],
        ["mpi", "1", "1", "1"],
        ["mpi", "2", "1", "1"],
        ["mpi", "4", "2", "1"],
    ]
    assert "1 of these runs" not in out


@pytest.mark.parametrize("how", ["option", "variable"])
def test_the_cluster_of_dask_is_an_option_or_a_variable(asked, tmp_path, monkeypatch, how):
    if how == "variable":
        monkeypatch.setenv("PARCOMPUTE_SCHEDULER_FILE", "/there/scheduler.json")
    arguments = ("--cluster", "/there/scheduler.json") if how == "option" else ()
    run(tmp_path, "--workers", "1", "--nodes", "2", "--backends", "dask,mpi", *arguments)
    assert {(backend, cluster) for backend, _, _, cluster in asked} == {
        ("serial", None), ("dask", "/there/scheduler.json"), ("mpi", None),
    }  # fmt: skip


def test_a_run_has_its_nodes_spans_and_hosts_and_its_ledger_closes(asked, tmp_path):
    found = run(tmp_path, "--workers", "2", "--nodes", "2", "--backends", "mpi")
    (several,) = (r for r in found.runs if r.configuration.n_nodes == 2)
    (timeline,) = several.timelines
    assert timeline.nodes["n_workers"].tolist() == [2, 2]
    assert sorted(b for first, stop in timeline.spans[["first", "stop"]].tolist() for b in range(first, stop)) == [
        *range(N_ITEMS // 100)
    ]
    ledger = losses(several.timelines)
    assert ledger.closes
    assert all(node.closes for node in ledger.nodes)
    conditions = found.provenance[several.provenance]
    assert conditions["node_hosts"] == f"{platform.node()}, node8"
    assert conditions["node_cpu_models"] == ""
    (study,) = studies(found)  # with the serial runs and those on one node, which are alike
    (curve,) = study.curves
    assert [(p.n_workers, p.n_nodes) for p in curve.points] == [(1, 1), (4, 2)]


def test_the_same_command_continues_and_runs_nothing_twice(asked, tmp_path, capsys):
    arguments = ("--workers", "2", "--nodes", "1,2", "--backends", "mpi")
    first = run(tmp_path, *arguments)
    capsys.readouterr()
    assert len(run(tmp_path, *arguments).runs) == len(first.runs)
    assert f"has {len(first.runs)} of these runs; none to make" in capsys.readouterr().out


def test_the_version_of_an_engine_concerns_its_own_runs_only(asked, tmp_path, capsys, monkeypatch):
    def installed(**versions):
        monkeypatch.setattr(provenance, "_installed", lambda package: versions.get(package, ""))
        return sorted(r.configuration.backend for r in run(tmp_path, *arguments).runs)

    arguments = ("--workers", "1", "--backends", "threads")
    alone = installed()
    capsys.readouterr()
    assert installed(mpi4py="4.0", dask="2025.1") == alone
    assert "none to make" in capsys.readouterr().out
    arguments = ("--workers", "1", "--backends", "threads,mpi")
    with_mpi = installed(mpi4py="4.0", dask="2025.1")
    assert with_mpi == ["mpi", *alone]
    assert "under other conditions" not in capsys.readouterr().out
    again = installed(mpi4py="4.1", dask="2025.2")
    out = capsys.readouterr().out
    assert again == ["mpi", *with_mpi]
    assert "has 1 runs under other conditions, kept apart: mpi4py_version '4.0' is now '4.1'" in out
    assert out.count("ones: ") == 1  # the older version's are not told again
    assert len(studies(record.read(tmp_path / "ones.h5"))) == 2


def test_runs_on_unlike_nodes_are_kept_apart_and_not_made_again(asked, tmp_path, capsys):
    asked.there["cpus"][1] = "Imaginary 9000"
    arguments = ("--workers", "1", "--nodes", "1,2", "--backends", "mpi")
    found = run(tmp_path, *arguments)
    alone, unlike = sorted(studies(found), key=lambda study: len(study.provenance.node_cpu_models))
    assert shapes(unlike.runs) == [("mpi", 2, 2)]
    assert shapes(alone.runs) == [("mpi", 1, 1), ("serial", 1, 1)]
    assert "Imaginary 9000" in str(unlike)
    out = capsys.readouterr().out
    assert out.count("ones: ") == 2
    assert len(run(tmp_path, *arguments).runs) == len(found.runs)
    assert "under other conditions" not in capsys.readouterr().out


def test_results_on_other_cpus_may_have_other_bits(asked, tmp_path):
    def last_bit(executor, n_items, seed):
        return n_items + 1e-9 * (executor.n_workers > 1)

    asked.there["cpus"][1] = "Imaginary 9000"
    close = pc.experiment(n_items={"default": 10}, truth=lambda found, n: pc.Check(found, n, 1e-6, "1e-6"))(last_bit)
    with pytest.raises(SystemExit) as left:
        close.main(["--rounds", "1", "--results", str(tmp_path), "--workers", "1", "--nodes", "2", "--backends", "mpi"])
    assert not left.value.code


def test_workers_of_nodes_on_this_host_are_none_of_others(asked, monkeypatch, tmp_path):
    noted = []
    now = quiet.Activity.now

    def noting(own=None):
        noted.extend([own] if own else [])
        return now(own=own)

    monkeypatch.setattr(measure.Activity, "now", noting)
    counted = []
    monkeypatch.setattr(measure, "disturbances", lambda before, after, wall_s, n, blas: counted.append(n) or "")
    run(tmp_path, "--workers", "2", "--nodes", "2", "--backends", "mpi")
    # Serial and mpi × 1 have one worker, mpi on two nodes has two on this host.
    assert sorted(set(counted)) == [1, 2]
    assert {len(own) for own in noted} == {1, 2, 3}


def test_nobody_on_this_host_is_disturbed_by_theft():
    before = quiet.Activity(0, n_cpus=2, n_online=2, n_runnable=1, stolen_ns=0)
    after = quiet.Activity(10**9, n_cpus=2, n_online=2, n_runnable=1, stolen_ns=500_000_000)
    assert quiet.disturbances(before, after, wall_s=1.0, n_workers=0) == ""
    assert "stolen" in quiet.disturbances(before, after, wall_s=1.0, n_workers=1)
