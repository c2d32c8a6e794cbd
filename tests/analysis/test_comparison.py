"""Two records are compared configuration by configuration, and their conditions with them."""

import json
from dataclasses import replace
from pathlib import Path

import pytest

from parcompute.analysis import comparison
from parcompute.machine.provenance import Provenance
from parcompute.record import merging
from parcompute.record.record import Record, RecordError, read
from parcompute.values.sweep import Configuration, Run

HERE = Provenance(host="node1", cpu_model="slow", usable_cpus=2, n_rounds=8, collected_utc="2025-01-01T00:00:00")
LATER = replace(HERE, collected_utc="2025-01-02T00:00:00")


def runs_of(factor=1.0, n_rounds=8, provenance=HERE, n_items=100):
    """Runs on one and two workers whose times hardly scatter."""
    return [
        Run(
            configuration=Configuration(backend, n, 1, "guided", "", "strong", n_items),
            round=round_,
            seed=1,
            block_items=10,
            n_chunks=10,
            wall_s=factor * (1 + 0.001 * round_) / n,
            startup_s=0.1,
            cpu_s=1.0,
            digest="d",
            value=1.0,
            error=0.0,
            tolerance=0.0,
            verified=True,
            disturbed="",
            started_utc=f"2025-01-01T00:00:{round_:02}+00:00",
            provenance=provenance.id,
        )
        for backend, n in (("serial", 1), ("threads", 1), ("threads", 2))
        for round_ in range(n_rounds)
    ]


def write(path: Path, *groups, experiment="montecarlo"):
    with Record.open(path, experiment) as record:
        for provenance, runs in groups:
            record.add_provenance(provenance.id, provenance.as_dict())
            for run in runs:
                record.append(run)
    return read(path)


@pytest.fixture(scope="module")
def a(tmp_path_factory):
    """The record that most others are compared with."""
    return write(tmp_path_factory.mktemp("a") / "a.h5", (HERE, runs_of()))


def test_faster_is_said_only_where_the_interval_excludes_one(a, tmp_path):
    b = write(tmp_path / "b.h5", (LATER, runs_of(0.5, provenance=LATER)))
    assert {row.verdict for row in comparison.compare(a, b).rows} == {"B is faster"}
    assert {row.verdict for row in comparison.compare(b, a).rows} == {"B is slower"}
    same = write(tmp_path / "c.h5", (LATER, runs_of(1.0001, provenance=LATER)))
    assert {row.verdict for row in comparison.compare(a, same).rows} == {"no difference seen"}
    few = write(tmp_path / "d.h5", (HERE, runs_of(0.5, n_rounds=2)))
    assert {row.verdict for row in comparison.compare(few, few_of(tmp_path)).rows} == {"too few runs to tell"}


def test_runs_of_the_same_rounds_are_compared_within_them(a, tmp_path):
    there = replace(HERE, node_hosts="node1, node2")  # of the same session
    shared = comparison.compare(a, write(tmp_path / "b.h5", (there, runs_of(1.0001, provenance=there))))
    assert {(row.n_rounds, row.verdict) for row in shared.rows} == {(8, "B is slower")}
    assert "within 8 rounds): B is slower" in shared.describe()[-1]
    apart = comparison.compare(a, write(tmp_path / "c.h5", (LATER, runs_of(1.0001, provenance=LATER))))
    assert {(row.n_rounds, row.verdict) for row in apart.rows} == {(0, "no difference seen")}


def few_of(tmp_path):
    return write(tmp_path / "e.h5", (HERE, runs_of(0.2, n_rounds=2)))


def test_it_says_in_which_conditions_the_two_differ(a, tmp_path):
    other = replace(HERE, cpu_model="fast", load_1min=3.0)
    b = write(tmp_path / "b.h5", (other, runs_of(0.5, provenance=other)))
    found = comparison.compare(a, b)
    assert found.unlike == (("cpu_model", "slow", "fast"),)
    told = "\n".join(found.describe())
    assert "unlike: cpu_model is 'slow' in A and 'fast' in B" in told
    assert "threads × 2" in told
    assert json.loads(json.dumps(found.as_dict()))["rows"][0]["verdict"] == "B is faster"
    assert "all conditions are alike" in "\n".join(comparison.compare(a, a_copy(tmp_path, a)).describe())


def a_copy(tmp_path, recorded):
    return write(tmp_path / "copy.h5", (HERE, recorded.runs))


def test_of_one_file_the_two_newest_conditions_are_compared(tmp_path):
    other = replace(HERE, cpu_model="fast")
    both = write(tmp_path / "a.h5", (HERE, runs_of()), (other, runs_of(0.5, provenance=other)))
    assert {row.verdict for row in comparison.compare(both, both).rows} == {"B is faster"}


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"experiment": "other"}, "holds 'montecarlo' and .* 'other'"),
        ({"runs": runs_of(n_items=7)}, "has no other runs of 7 items"),
        ({"runs": []}, "has no runs that count"),
    ],
)
def test_what_cannot_be_compared_is_refused(a, tmp_path, change, message):
    runs = change.get("runs", runs_of())
    b = write(tmp_path / "b.h5", (HERE, runs), experiment=change.get("experiment", "montecarlo"))
    with pytest.raises(ValueError, match=message):
        comparison.compare(a, b)


# ── merging ───────────────────────────────────────────────────────────────────────────────────────────


def test_files_of_several_machines_become_one_and_nothing_is_added_twice(tmp_path):
    there = replace(HERE, host="node2")
    write(tmp_path / "a.h5", (HERE, runs_of()))
    write(tmp_path / "b.h5", (there, runs_of(provenance=there)), (HERE, runs_of()[:3]))
    into = tmp_path / "all.h5"
    told = merging.merge([tmp_path / "a.h5", tmp_path / "b.h5"], into)
    assert told == [
        f"{tmp_path}/a.h5 (node1): 24 runs added",
        f"{tmp_path}/b.h5 (node1, node2): 24 runs added, 3 were there already",
    ]
    merged = read(into)
    assert len(merged.runs) == 48
    assert set(merged.provenance) == {HERE.id, there.id}
    assert merging.merge([into], into)[0].endswith("0 runs added, 48 were there already")


def test_rounds_that_lack_runs_are_told(tmp_path):
    write(
        tmp_path / "a.h5", (HERE, [run for run in runs_of() if (run.round, run.configuration.backend) != (3, "serial")])
    )
    *_, told = merging.merge([tmp_path / "a.h5"], tmp_path / "all.h5")
    assert told == f"incomplete: conditions {HERE.conditions_id[:8]}, seed 1: round 4 lacks 1 of 3 runs"


def test_files_of_other_experiments_are_refused_before_anything_is_written(tmp_path):
    write(tmp_path / "a.h5", (HERE, runs_of()))
    write(tmp_path / "b.h5", (HERE, runs_of()), experiment="other")
    with pytest.raises(RecordError, match="the files hold the experiments montecarlo, other"):
        merging.merge([tmp_path / "a.h5", tmp_path / "b.h5"], tmp_path / "all.h5")
    assert not (tmp_path / "all.h5").exists()
