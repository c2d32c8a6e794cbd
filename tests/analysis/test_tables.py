"""A study as text: aligned, with units, intervals and the base, and with what was left out."""

import re
from dataclasses import replace

import pytest

from parcompute.analysis import tables
from parcompute.analysis.studies import studies
from parcompute.machine.provenance import Provenance
from parcompute.record.record import Recorded
from parcompute.values.sweep import Configuration, Run

PROVENANCE = Provenance(cpu_model="A64FX", usable_cpus=2, n_cores=2)


def runs_of(backend, n_workers, wall_s, n=6, schedule="guided", **changes):
    """Return `n` runs of a configuration whose times are around `wall_s`."""
    fields = {"seed": 1, "block_items": 100, "n_chunks": 10, "startup_s": 0.1, "cpu_s": 1.0, "digest": "d"}
    fields |= {"value": 1.0, "error": 0.0, "tolerance": 0.0, "verified": True, "disturbed": ""}
    fields |= {"started_utc": "2025-01-01T00:00:00.000+00:00", "provenance": "here"}
    configuration = Configuration(backend, n_workers, 1, schedule, "", "strong", 1_000)
    walls_s = [wall_s * (1 + 0.01 * round_) for round_ in range(n)]
    return [
        Run(configuration=configuration, round=round_, wall_s=wall_s, **(fields | changes))
        for round_, wall_s in enumerate(walls_s)
    ]


def study_of(*groups):
    runs = tuple(run for group in groups for run in group)
    (study,) = studies(Recorded("f.h5", "counting", "", runs, {"here": PROVENANCE.as_dict()}, (-1,) * len(runs)))
    return study


SERIAL = runs_of("serial", 1, 8.0)


def test_a_table_names_study_and_base_and_has_a_row_per_point():
    head, verified, base, headings, *rows = tables.table(
        study_of(SERIAL, runs_of("threads", 1, 8.2), runs_of("threads", 2, 4.1))
    )
    assert verified == "verified: 18 runs gave the same bits (sha256 d…); 1 is 0 off the truth, 0 allowed"
    assert head.startswith("counting: 18 runs of 1000 items, seed 1, on A64FX (2 usable CPUs)")
    assert base == "base: best serial, 8.2 (95 % 8–8.4) s"
    assert re.split(r"  +", headings) == ["backend", "workers", "runs", "time (s)", "speed-up", "efficiency (%)"]
    assert [re.split(r"  +", row)[:3] for row in rows] == [["threads", "1", "6"], ["threads", "2", "6"]]


def test_each_number_has_its_interval():
    turned = [replace(run, round=5 - run.round) for run in runs_of("threads", 2, 5.0)]
    *_, row = tables.table(study_of(SERIAL, turned))
    time, speedup, efficiency = re.split(r"  +", row)[3:]
    assert time == "5.125 (95 % 5–5.25)"
    assert re.fullmatch(r"1\.60 \(95 % 1\.5\d–1\.6\d\)", speedup)
    assert re.fullmatch(r"80\.0 \(95 % 7\d\.\d–8\d\.\d\)", efficiency)


def test_few_runs_have_a_range_and_no_interval():
    lines = tables.table(study_of(SERIAL[:2], runs_of("threads", 2, 4.0, n=2)))
    assert "95 %" not in "".join(lines)
    assert lines[-1].count("(range ") == 3


def test_columns_are_aligned():
    _, _, _, *rows = tables.table(
        study_of(SERIAL, runs_of("threads", 2, 4.0), runs_of("threads", 2, 40.0, schedule="static"))
    )
    assert len({len(row) for row in rows}) == 1
    assert rows[2].startswith("threads, static")


def test_more_workers_than_cpus_are_marked():
    *_, row, note = tables.table(study_of(SERIAL, runs_of("threads", 2, 4.0), runs_of("threads", 4, 4.1)))
    assert re.split(r"  +", row)[:2] == ["threads", "4*"]
    assert note == "* more workers than 2 CPUs: in no fit"


def test_what_was_left_out_is_counted_by_reason_the_base_case_included():
    wrong, disturbed = runs_of("threads", 2, 4.0, n=1, verified=False), runs_of("serial", 1, 9.0, n=2, disturbed="load")
    lines = tables.table(study_of(SERIAL, runs_of("threads", 2, 4.0), wrong, disturbed))
    assert lines[-1] == "left out of 15 runs: 1 not verified, 2 disturbed"
    assert "left out" not in "".join(tables.table(study_of(SERIAL, runs_of("threads", 2, 4.0))))


def test_a_study_in_which_nothing_counts_says_so():
    study = study_of(runs_of("serial", 1, 8.0, n=5, disturbed="load"), runs_of("threads", 2, 4.0, verified=False))
    _, nothing, left_out = tables.table(study)
    assert nothing.startswith("no run counts: none is both verified and undisturbed")
    assert left_out == "left out of 11 runs: 5 disturbed, 6 not verified"
    assert tables.verdicts(study) == []


def test_a_study_of_serial_runs_tells_their_time():
    study = study_of(SERIAL)
    assert tables.table(study)[1:] == ["serial runs only, nothing to compare them with: 8.2 (95 % 8–8.4) s"]
    assert tables.verdicts(study) == []


def test_a_study_without_serial_runs_is_relative_to_one_worker():
    lines = tables.table(study_of(runs_of("threads", 1, 8.0), runs_of("threads", 2, 4.0)))
    assert lines[2] == "base: threads with one worker, 8.2 (95 % 8–8.4) s"


def test_ways_of_running_with_bases_of_their_own_have_each_its_base():
    times_s = {"threads": (8, 4), "pool": (9, 5)}
    groups = [
        runs_of(name, n, wall_s) for name, walls_s in times_s.items() for n, wall_s in zip((1, 2), walls_s, strict=True)
    ]
    assert tables.table(study_of(*groups))[2:4] == [
        "base of pool: pool with one worker, 9.225 (95 % 9–9.45) s",
        "base of threads: threads with one worker, 8.2 (95 % 8–8.4) s",
    ]


def test_a_table_says_which_times_are_of_disturbed_runs():
    *_, row, last = tables.table(study_of(SERIAL, runs_of("threads", 2, 4.0, disturbed="load")))
    assert "4.1 (range 4–4.2)" in row
    assert last == "6 runs were disturbed and have no undisturbed ones beside them: their times are ranges"


@pytest.mark.parametrize("n_ways", [1, 2])
def test_there_is_a_verdict_for_each_way_of_running(n_ways):
    groups = [runs_of("threads", 2, 4.0), runs_of("pool", 2, 4.2)][:n_ways]
    verdicts = tables.verdicts(study_of(SERIAL, *groups))
    assert [told.sentence.partition(":")[0] for told in verdicts] == sorted(["threads", "pool"][:n_ways])
    assert all("on 2 workers, counting runs " in told.sentence for told in verdicts)
