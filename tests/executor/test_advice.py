"""Advice: the fastest way that was measured, or a simpler one that is as fast, with the reasons."""

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

import parcompute as pc
from parcompute.executor import advice
from parcompute.executor.advice import Measured, Way
from parcompute.experiments import scripts
from parcompute.values.intervals import paired_ratio, summarise

ROOT = Path(__file__).parents[2]
SERIAL, THREADS, PROCESSES, ONE = (
    Way(0, "serial", 1),
    Way(1, "threads", 2),
    Way(2, "processes", 2),
    Way(2, "processes", 1),
)


def measured(**walls_s):
    """What was measured, from seconds by way."""
    of = {"serial": SERIAL, "threads": THREADS, "processes": PROCESSES, "one": ONE}
    times = {of[name]: [s * (1 + 0.001 * i) for i in range(7)] for name, s in walls_s.items()}
    return {way: Measured(way, summarise(t).median, paired_ratio(times[SERIAL], t)) for way, t in times.items()}


@pytest.mark.parametrize(
    ("walls_s", "best"),
    [
        ({"serial": 1.0, "threads": 1.05, "processes": 0.52, "one": 1.02}, PROCESSES),  # the lock is held
        ({"serial": 1.0, "threads": 0.51, "processes": 0.5, "one": 1.0}, THREADS),  # as fast, and simpler
        ({"serial": 1.0, "threads": 0.6, "processes": 0.5, "one": 1.0}, PROCESSES),
        ({"serial": 1.0, "threads": 0.98, "processes": 1.3, "one": 1.2}, SERIAL),
    ],
)
def test_the_fastest_way_is_advised_or_a_simpler_one_that_is_as_fast(walls_s, best):
    assert advice.choose(measured(**walls_s).values()) == best


def test_what_is_advised_is_never_more_than_the_noise_slower_than_the_best():
    rng = np.random.default_rng(1)
    for _ in range(100):
        walls_s = dict(zip(("serial", "threads", "processes", "one"), rng.uniform(0.1, 1, 4), strict=True))
        found = measured(**walls_s)
        chosen = found[advice.choose(found.values())].wall.value
        assert chosen <= 1.05 * min(each.wall.value for each in found.values())


def test_the_reasons_name_the_lock_the_bus_and_waiting():
    def said(waiting=0.0, **walls_s):
        found = measured(**walls_s)
        return "\n".join(advice.explain(found, advice.choose(found.values()), waiting))

    held = said(serial=1.0, threads=1.02, processes=0.52, one=1.02)
    assert "holds the interpreter's lock (" in held
    assert "more of them help" in held
    bound = said(serial=1.0, threads=0.6, processes=0.9, one=1.0)
    assert "lets go of the interpreter's lock" in bound
    assert "bandwidth, or what is handed over, is the limit" in bound
    assert "waits 80 % of its time" in said(0.8, serial=1.0, threads=0.5, processes=0.5, one=1.0)


def test_the_ways_that_are_tried_use_no_more_than_there_is():
    for most in (1, 2, 3, 8, 64):
        found = advice.ways(most)
        assert found[0] == SERIAL
        assert len(set(found)) == len(found)
        assert max(way.workers * way.threads_per_worker * way.blas_threads for way in found) <= most


def held(x):
    """Pure Python: the lock is held."""
    return float(sum(v * v for v in x.tolist()))


@pytest.mark.slow
def test_a_kernel_is_measured_and_advised(monkeypatch):
    monkeypatch.setattr(advice, "SAMPLE_S", 0.02)
    found = pc.advise(held, np.arange(200_000.0), workers=2)
    assert {each.way for each in found.measured} == set(advice.ways(2))
    fastest = min(each.wall.value for each in found.measured)
    (chosen,) = (each.wall.value for each in found.measured if each.way == found.way)
    assert chosen <= 1.05 * fastest
    assert found.item_bytes == 8
    told = str(found)
    assert told.startswith(f"advised: {found.way}, blocks of {found.block_items} items")
    assert "two threads against one" in told
    assert json.loads(json.dumps(found.as_dict()))["n_items"] == found.n_items


@pytest.mark.parametrize(
    ("kernel", "arrays", "how"),
    [
        (np.sqrt, (np.arange(1_000.0),), {}),
        (lambda x, out: np.sqrt(x, out=out), (np.arange(1_000.0),), {}),
        (lambda block, rng: rng.random(block.size).sum(), (), {"n_items": 1_000}),
        (lambda x, factor: {"sum": factor * x.sum()}, (np.arange(1_000.0),), {"args": (2,)}),
        (lambda x, y: (x + y, x - y), (np.arange(1_000.0), np.arange(1_000.0)), {"block_items": 100}),
    ],
)
def test_any_kernel_can_be_asked_about(monkeypatch, kernel, arrays, how):
    monkeypatch.setattr(advice, "SAMPLE_S", 0.0)
    monkeypatch.setattr(advice, "ROUNDS", 1)
    found = pc.advise(kernel, *arrays, workers=1, **how)
    assert found.way.workers == 1


def test_a_notebook_shows_advice_as_a_table():
    found = measured(serial=1.0, threads=0.6, processes=0.5, one=1.0)
    reasons = ("<lambda> waits",)
    shown = advice.Advice(PROCESSES, 64, reasons, tuple(found.values()), 1000, 0.0, 8)._repr_html_()
    assert "advised: processes × 2, blocks of 64 items" in shown
    assert "<li>&lt;lambda&gt; waits</li>" in shown
    assert shown.count("<tr>") == 5
    assert ">time (ms)</th>" in shown
    assert shown.index(">processes × 2<") < shown.index(">threads × 2<") < shown.index(">serial<")


def test_a_kernel_that_raises_says_so():
    with pytest.raises(pc.KernelError, match="I cannot"):
        pc.advise(lambda x: (_ for _ in ()).throw(ValueError("I cannot")), np.arange(10.0), workers=1)


def test_the_first_job_of_an_experiment_is_sampled(monkeypatch):
    monkeypatch.setattr(advice, "SAMPLE_S", 0.0)
    monkeypatch.setattr(advice, "ROUNDS", 1)

    def function(executor, n_items, seed):
        return executor.reduce_blocks(lambda block, rng: rng.random(), n_items=n_items, seed=seed, block_items=7)

    assert scripts.advice_for_experiment(function, 100, 1, workers=1).block_items == 7
    with pytest.raises(ValueError, match="calls neither map_blocks nor reduce_blocks"):
        scripts.advice_for_experiment(lambda executor, n_items, seed: 1, 100, 1)
    with pytest.raises(ValueError, match="has a halo"):
        scripts.advice_for_experiment(lambda ex, n, seed: ex.map_blocks(np.sqrt, np.ones(n), halo=1), 100, 1)


# --- files -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("target", "arrays", "message"),
    [
        ("nix.py::f", (), "nix.py: does not exist"),
        ("file.py", (), "names no function; pass FILE.py::NAME"),
        ("file.py::nix", (), "has no function nix"),
        ("file.py::kernel", (), "is a kernel: pass .npy files whose rows it gets, or --n-items"),
    ],
)
def test_what_cannot_be_advised_on_is_said(tmp_path, monkeypatch, target, arrays, message):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [*sys.path])
    Path("file.py").write_text("def kernel(x): return x.sum()\n")
    with pytest.raises(ValueError, match=message):
        scripts.advice_for(target, arrays, None, None)


def test_kernels_of_a_file_get_rows_of_arrays_or_one_number_each(tmp_path, monkeypatch):
    monkeypatch.setattr(advice, "SAMPLE_S", 0.0)
    monkeypatch.setattr(advice, "ROUNDS", 1)
    monkeypatch.setattr(sys, "path", [*sys.path])
    file = tmp_path / "file.py"
    file.write_text("def kernel(x): return x.sum()\ndef call(i): return i * i\n")
    np.save(tmp_path / "x.npy", np.arange(100.0))
    assert scripts.advice_for(f"{file}::kernel", [str(tmp_path / "x.npy")], None, 1).item_bytes == 8
    assert scripts.advice_for(f"{file}::call", [], 10, 1).n_items == 10


def test_a_template_runs_at_once(tmp_path):
    path = scripts.write_template("heat_2d", tmp_path / "experiments")
    call = [sys.executable, path, "--preset", "quick", "--rounds", "1", "--backends", "threads", "--results", tmp_path]
    done = subprocess.run(call, capture_output=True, text=True, timeout=120, env=os.environ)
    assert (done.returncode, done.stderr) == (0, "")
    assert (tmp_path / "heat_2d.h5").exists()
    with pytest.raises(ValueError, match="exists already"):
        scripts.write_template("heat_2d", tmp_path / "experiments")
    for name in ("heat-2d", "class", "", "../x"):
        with pytest.raises(ValueError, match="cannot name a function"):
            scripts.write_template(name, tmp_path)
