"""A record is read as typed values and as tables that say the same."""

import subprocess
import sys
from dataclasses import replace

import numpy as np
import pytest

import parcompute as pc
from parcompute.machine.provenance import Provenance
from parcompute.record.record import Record
from parcompute.values.parts import PARTS
from parcompute.values.sweep import Configuration, Run
from parcompute.values.timeline import CHUNK_DTYPE, WORKER_DTYPE, Timeline

HERE = Provenance(cpu_model="A64FX", usable_cpus=4, n_cores=4)
THERE = replace(HERE, cpu_model="EPYC")


def a_run(backend, n_workers, wall_s, round_, provenance="here", **changes):
    end = int(wall_s * 1e9)
    chunks = [(i, i, 0, 20, end - 40, end - 60, end - 10) for i in range(n_workers)]
    workers = np.array([(i, 100 + i, 5) for i in range(n_workers)], WORKER_DTYPE)
    timeline = Timeline(0, 10, end, np.array(chunks, CHUNK_DTYPE), workers)
    configuration = Configuration(backend, n_workers, 1, "guided", "", "strong", 1_000)
    fields = {"seed": 1, "block_items": 100, "n_chunks": 10, "startup_s": 0.1, "cpu_s": 1.0, "digest": "d"}
    fields |= {"value": 1.0, "error": 0.0, "tolerance": 0.0, "verified": True, "disturbed": ""}
    fields |= {"started_utc": "2025-01-01T00:00:00.000+00:00", "timelines": (timeline,)}
    return Run(configuration=configuration, round=round_, wall_s=wall_s, provenance=provenance, **(fields | changes))


@pytest.fixture
def file(tmp_path):
    runs = [
        a_run(backend, n, 8 / n * (1 + 0.01 * round_) * scale, round_)
        for round_ in range(6)
        for backend, n, scale in (("serial", 1, 1), ("threads", 1, 1), ("threads", 2, 1.1), ("threads", 4, 1.3))
    ]
    runs.append(a_run("threads", 4, 99.0, 6, disturbed="load"))
    with Record.open(tmp_path / "heat.h5", "heat") as record:
        record.add_provenance("here", HERE.as_dict())
        record.add_provenance("there", THERE.as_dict())
        for run in runs:
            record.append(run)
    return tmp_path / "heat.h5"


@pytest.fixture
def heat(file):
    return pc.read(file)


def test_every_run_of_the_file_is_a_row_with_what_counts(heat):
    runs = heat.runs
    assert len(runs) == len(heat.recorded.runs) == 25
    assert runs["counts"].sum() == 24
    assert runs.loc[24, "disturbed"] == "load"
    assert runs["wall_s"].tolist() == [run.wall_s for run in heat.recorded.runs]
    assert runs["timeline_rows"].tolist() == list(heat.recorded.timeline_rows)
    assert (runs["n_workers"].dtype.kind, runs["wall_s"].dtype.kind, runs["verified"].dtype.kind) == ("i", "f", "b")


def test_the_points_of_the_curves_are_rows_with_their_intervals(heat):
    (curve,) = heat.study.curves
    points = heat.curves
    assert points["n_workers"].tolist() == [1, 2, 4]
    assert points["speedup"].tolist() == [point.speedup.value for point in curve.points]
    assert points["wall_s_high"].tolist() == [point.wall.median.high for point in curve.points]
    assert points["karp_flatt"].isna().tolist() == [True, False, False]
    assert not points["speedup_is_range"].any()


def test_the_laws_of_each_curve_are_rows_by_parameter(heat):
    fits = heat.fits
    amdahl = fits[(fits["law"] == "amdahl") & (fits["parameter"] == "s")].iloc[0]
    told = heat.compared["threads"].fits["amdahl"]
    assert amdahl["value"] == told.parameters["s"]
    assert (amdahl["low"], amdahl["high"]) == told.intervals["s"]
    usl = fits[fits["law"] == "usl"]
    assert usl["reason"].tolist() == ["not identifiable from 3 points"]
    assert usl["value"].isna().all()
    assert list(heat.compared) == ["threads"]
    assert heat.verdicts[0].startswith("threads: on 4 workers, ")


def test_the_shares_of_the_ledger_add_up_to_one(heat):
    ledger = heat.ledger
    assert ledger["n_workers"].tolist() == [1, 2, 4]
    assert ledger[list(PARTS)].sum(axis=1).tolist() == pytest.approx([1, 1, 1])
    assert ledger["core_s"].tolist() == pytest.approx([8 * 1.025, 8 * 1.1 * 1.025, 8 * 1.3 * 1.025])


def test_a_notebook_shows_a_table_and_text_of_a_file_as_text(heat, file):
    shown = heat._repr_html_()
    assert shown.count("<tr>") == 4
    assert ">speed-up</th>" in shown
    assert "base: best serial" in shown
    assert repr(heat) == f"<Results of heat: 25 runs, studies: 1, {file}>"
    odd = pc.Results(replace(heat.recorded, experiment="<b>&"), {})
    assert "&lt;b&gt;&amp;" in odd._repr_html_()


def test_between_unlike_conditions_nothing_is_chosen_in_silence(file):
    with Record.open(file, "heat") as record:
        for n in (1, 2):
            record.append(a_run("threads", n, 4 / n, 0, provenance="there"))
    with pytest.raises(ValueError, match="runs under unlike conditions are never mixed"):
        _ = pc.read(file).curves
    assert "never mixed" in pc.read(file)._repr_html_()
    assert len(pc.read(file).runs) == 27
    assert pc.read(file, conditions="newest").curves["n_workers"].tolist() == [1, 2]


def test_without_pandas_the_values_are_there_and_the_tables_say_what_to_install(heat, monkeypatch):
    monkeypatch.setitem(sys.modules, "pandas", None)
    for name in ("runs", "curves", "fits", "ledger"):
        with pytest.raises(ImportError, match=r"need pandas; pip install 'parcompute\[pandas\]', or take"):
            getattr(heat, name)
    assert heat.study.curves[0].points[1].n_workers == 2
    assert heat._repr_html_()


def test_reading_loads_neither_pandas_nor_matplotlib(file):
    program = f"import sys, parcompute as pc; repr(pc.read({str(file)!r})); print('pandas' in sys.modules, "
    program += "'matplotlib' in sys.modules, 'parcompute.executor.executor' in sys.modules)"
    told = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True).stdout
    assert told.split() == ["False", "False", "False"]
