"""Runs survive the way to HDF5 and back, and the file survives its writers."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import textwrap
from collections.abc import Callable
from dataclasses import fields, replace
from pathlib import Path

import h5py
import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from parcompute.machine import atomic
from parcompute.machine.quiet import Counters
from parcompute.record.record import Record, RecordError, read, read_timelines
from parcompute.record.schema import FIELDS, JOB_DTYPE
from parcompute.values.sweep import Configuration, Run
from parcompute.values.timeline import CHUNK_DTYPE, DEATH_DTYPE, NODE_DTYPE, SPAN_DTYPE, WORKER_DTYPE, Timeline


def a_timeline(n_rows: int = 3, n_workers: int = 2) -> Timeline:
    chunks = np.zeros(n_rows, CHUNK_DTYPE)
    chunks["chunk"] = np.arange(n_rows)
    chunks["worker"] = np.arange(n_rows) % n_workers
    chunks["started_ns"] = 10**15 + 1_000 * np.arange(n_rows)
    chunks["finished_ns"] = chunks["started_ns"] + 700
    chunks["cpu_ns"] = 650
    chunks["stored_ns"] = chunks["finished_ns"] + 50
    workers = np.zeros(n_workers, WORKER_DTYPE)
    workers["worker"] = np.arange(n_workers)
    workers["pid"] = 4_000 + workers["worker"]
    return Timeline(10**15 - 500, 10**15 - 100, 10**15 + 1_000 * n_rows, chunks, workers)


def on_nodes(timeline: Timeline, n_spans: int = 2) -> Timeline:
    """The same, on two nodes of a worker each."""
    nodes = np.array([(0, 0, 1, 0, 0), (1, 1, 1, -12_345, 678)], NODE_DTYPE)
    spans = np.zeros(n_spans, SPAN_DTYPE)
    spans["node"] = np.arange(n_spans) % 2
    spans["first"] = np.arange(n_spans)
    spans["stop"] = spans["first"] + 1
    for i, name in enumerate(("sent_ns", "arrived_ns", "finished_ns", "received_ns")):
        spans[name] = 10**15 + 1_000 * spans["first"] + i
    return replace(timeline, nodes=nodes, spans=spans)


def a_run(round_: int = 0, *, timeline: Timeline | None = None, provenance: str = "here") -> Run:
    return Run(
        configuration=Configuration("processes", 2, 1, "guided", "forkserver", "strong", 2**22),
        round=round_,
        seed=2**63 - 1,
        block_items=65_536,
        n_chunks=17,
        wall_s=0.1 + round_,
        startup_s=0.2,
        cpu_s=0.19,
        digest="f" * 64,
        value=5.3425606635,
        error=1e-4,
        tolerance=1e-3,
        verified=True,
        disturbed="",
        started_utc="2025-01-01T00:00:00+00:00",
        provenance=provenance,
        timelines=() if timeline is None else (timeline,),
    )


def same(a: Run, b: Run) -> bool:
    names = [field.name for field in fields(Run) if field.name != "timelines"]
    return all(repr(getattr(a, name)) == repr(getattr(b, name)) for name in names)


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "results" / "montecarlo.h5"


@pytest.fixture
def record(path: Path):
    with Record.open(path, "montecarlo") as record:
        record.add_provenance("here", {"host": "node7", "cpus": 8, "load": 0.25, "dirty": False})
        yield record


# ── there and back ────────────────────────────────────────────────────────────────────────────────────


def test_runs_come_back_in_the_order_in_which_they_were_appended(record: Record) -> None:
    rows = [record.append(a_run(i)) for i in range(3)]
    back = read(record.path)
    assert rows == [0, 1, 2]
    assert [run.round for run in back.runs] == [0, 1, 2]
    assert same(back.runs[1], a_run(1))
    assert back.experiment == "montecarlo"


def test_conditions_come_back_with_their_types(record: Record) -> None:
    back = read(record.path).provenance["here"]
    assert back == {"host": "node7", "cpus": 8, "load": 0.25, "dirty": False}
    assert {name: type(value) for name, value in back.items()} == {
        "host": str,
        "cpus": int,
        "load": float,
        "dirty": bool,
    }


def test_the_first_conditions_of_an_id_stand(record: Record) -> None:
    assert record.add_provenance("here", {"host": "another"}) == "here"
    assert read(record.path).provenance["here"]["host"] == "node7"


def test_an_attribute_may_be_larger_than_64_kib(record: Record) -> None:
    record.add_provenance("long", {"packages": "x" * 200_000})
    assert len(str(read(record.path).provenance["long"]["packages"])) == 200_000


@pytest.mark.parametrize("n_deaths", [0, 2])
@pytest.mark.parametrize("n_rows", [0, 3, 1_000])
def test_a_timeline_comes_back_bit_for_bit(record: Record, n_rows: int, n_deaths: int) -> None:
    timeline = replace(a_timeline(n_rows), deaths=np.ones(n_deaths, DEATH_DTYPE))
    row = record.append(a_run(timeline=timeline))
    (back,) = read_timelines(record.path, row)
    assert back is not None
    assert back.chunks.dtype == CHUNK_DTYPE
    assert back.chunks.tobytes() == timeline.chunks.tobytes()
    assert back.workers.tobytes() == timeline.workers.tobytes()
    assert (back.deaths.dtype, back.deaths.tobytes()) == (DEATH_DTYPE, timeline.deaths.tobytes())
    assert (back.called_ns, back.submitted_ns, back.completed_ns) == (
        timeline.called_ns,
        timeline.submitted_ns,
        timeline.completed_ns,
    )


@pytest.mark.parametrize("n_spans", [1, 1_000])
def test_nodes_and_spans_come_back_and_one_host_has_neither(record: Record, n_spans: int) -> None:
    timeline = on_nodes(a_timeline(), n_spans)
    run = a_run(timeline=timeline)
    run = replace(run, configuration=replace(run.configuration, backend="mpi", n_nodes=2))
    rows = [record.append(run), record.append(a_run(timeline=a_timeline()))]
    (back,), (alone,) = (read_timelines(record.path, row) for row in rows)
    assert (back.nodes.tobytes(), back.spans.tobytes()) == (timeline.nodes.tobytes(), timeline.spans.tobytes())
    assert (alone.nodes.dtype, alone.spans.dtype, len(alone.nodes)) == (NODE_DTYPE, SPAN_DTYPE, 0)
    assert [run.configuration.n_nodes for run in read(record.path).runs] == [2, 1]
    with h5py.File(record.path) as file:
        assert set(file["timelines/1"]) == {"chunks", "workers"}
        assert file.attrs["schema_minor"] == 1


@pytest.mark.parametrize(
    ("table", "column", "message"),
    [("nodes", "n_workers", "nodes of workers"), ("nodes", "first_worker", "nodes of"), ("spans", "node", "spans of")],
)
def test_nodes_that_do_not_fit_their_timeline_are_damage(record: Record, table: str, column: str, message: str) -> None:
    row = record.append(a_run(timeline=on_nodes(a_timeline())))
    record.close()
    with h5py.File(record.path, "r+") as file:
        rows = file[f"timelines/{row}/{table}"][:]
        rows[column] = 2**31 - 1
        file[f"timelines/{row}/{table}"][:] = rows
    with pytest.raises(RecordError, match=rf"is damaged \(.*{message}.* that it does not have"):
        read_timelines(record.path, row)


def test_timelines_are_read_on_request_only(record: Record) -> None:
    record.append(a_run(timeline=a_timeline()))
    assert read(record.path).runs[0].timelines == ()
    assert read(record.path, timelines=True).runs[0].timelines


def test_a_timeline_above_the_limit_is_left_out_and_its_length_told(path: Path) -> None:
    with Record.open(path, "montecarlo", max_timeline_rows=10) as record:
        record.add_provenance("here", {})
        for timeline in (a_timeline(10), a_timeline(11), None):
            record.append(a_run(timeline=timeline))
    back = read(path, timelines=True)
    assert [bool(run.timelines) for run in back.runs] == [True, False, False]
    assert back.timeline_rows == (10, 11, -1)


integers = st.integers(0, 2**63 - 1)
floats = st.floats(allow_nan=True, allow_infinity=True)
texts = st.text(st.characters(codec="utf-8", exclude_categories=["Cc"]) | st.sampled_from("\t\n"), max_size=20)
runs = st.builds(
    Run,
    configuration=st.builds(Configuration, texts, st.integers(1, 2**63 - 1), integers, texts, texts, texts, integers),
    round=integers,
    seed=integers,
    block_items=integers,
    n_chunks=integers,
    wall_s=floats,
    startup_s=floats,
    cpu_s=floats,
    digest=texts,
    value=floats,
    error=floats,
    tolerance=floats,
    verified=st.booleans(),
    disturbed=texts,
    started_utc=texts,
    provenance=st.just("here"),
    timelines=st.just(()),
)


@settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(written=st.lists(runs, min_size=1, max_size=3))
def test_any_run_comes_back_as_it_was_written(record: Record, written: list[Run]) -> None:
    first = record.append(written[0])
    for run in written[1:]:
        record.append(run)
    back = read(record.path).runs[first:]
    assert len(back) == len(written)
    assert all(same(a, b) for a, b in zip(back, written, strict=True))


def test_text_that_hdf5_cannot_hold_is_escaped_and_the_run_kept(record: Record) -> None:
    record.append(replace(a_run(), disturbed="file caf\udce9\0 busy"))
    assert read(record.path).runs[0].disturbed == "file caf\\udce9\\x00 busy"


def test_what_a_terminal_would_act_upon_is_shown_and_not_done(record: Record) -> None:
    record.append(replace(a_run(), disturbed="\x1b[2J gone\r\x9b but\ttabs\nand lines"))
    shown = "\\x1b[2J gone\\x0d\\x9b but\ttabs\nand lines"
    assert read(record.path).runs[0].disturbed == shown
    record.close()
    with h5py.File(record.path, "r+") as file:
        file.attrs["experiment"] = "\x1b[2J gone"  # as another program may have written it
        file["provenance/here"].attrs["host"] = np.bytes_(b"\xff\x1b")
    assert read(record.path).experiment == "\\x1b[2J gone"
    assert read(record.path).provenance["here"]["host"] == "\\xff\\x1b"


def test_a_run_of_no_workers_is_refused(record: Record) -> None:
    run = a_run()
    with pytest.raises(ValueError, match="n_workers=0 ran nothing"):
        record.append(replace(run, configuration=replace(run.configuration, n_workers=0)))
    with pytest.raises(ValueError, match="n_workers=2 ran nothing on n_nodes=3; record runs of at least 1 on each"):
        record.append(replace(run, configuration=replace(run.configuration, n_nodes=3)))


def test_a_column_of_a_later_version_does_not_disturb(record: Record) -> None:
    record.close()
    with h5py.File(record.path, "r+") as file:
        columns = file["runs"].dtype
        longer = np.dtype([*((name, columns[name]) for name in columns.names), ("mood", h5py.string_dtype())])
        del file["runs"]
        file.create_dataset("runs", shape=(0,), dtype=longer, maxshape=(None,), chunks=(64,))
    with Record.open(record.path, "montecarlo") as again:
        again.append(a_run(7))
    assert read(record.path).runs[0].round == 7


# ── what others see ───────────────────────────────────────────────────────────────────────────────────


def test_plain_h5py_sees_the_documented_schema(record: Record) -> None:
    record.append(a_run(timeline=a_timeline()))
    with h5py.File(record.path) as file:
        assert file.attrs["schema"] == "parcompute/1"
        assert file.attrs["experiment"] == "montecarlo"
        assert file["runs"].dtype.names == tuple(name for name, _, _ in FIELDS)
        assert h5py.check_string_dtype(file["runs"].dtype["backend"]).encoding == "utf-8"
        assert set(file["runs"].attrs) == {name for name, _, _ in FIELDS}
        assert file["timelines/0/chunks"].dtype == CHUNK_DTYPE
        assert file["provenance/here"].attrs["cpus"] == 8


def test_the_document_names_every_field() -> None:
    document = (Path(__file__).parents[2] / "docs" / "reference" / "file-format.md").read_text(encoding="utf-8")
    tables = (CHUNK_DTYPE, WORKER_DTYPE, DEATH_DTYPE, NODE_DTYPE, SPAN_DTYPE, JOB_DTYPE)
    names = [name for name, _, _ in FIELDS] + [name for table in tables for name in table.names or ()]
    assert [name for name in names if f"`{name}`" not in document] == []


@pytest.mark.skipif(shutil.which("h5dump") is None, reason="h5dump (hdf5-tools) is not installed")
def test_h5dump_reads_the_file(record: Record) -> None:
    record.append(a_run(timeline=a_timeline()))
    dump = subprocess.run(["h5dump", str(record.path)], capture_output=True, text=True, check=True)
    assert "montecarlo" in dump.stdout


# Written by the first version, without the columns from `variant` on.
FIRST = Path(__file__).parents[1] / "data" / "montecarlo-first-columns.h5"


def test_a_file_of_an_earlier_version_opens_and_what_it_does_not_say_is_unknown() -> None:
    recorded = read(FIRST, timelines=True)
    assert len(recorded.runs) == 4
    for run in recorded.runs:
        assert (run.configuration.variant, run.configuration.blas_threads, run.configuration.n_nodes) == ("", 1, 1)
        assert repr(run.counters) == repr(Counters())
        assert len(run.timelines) == 1


def test_a_run_appended_to_a_file_of_an_earlier_version_loses_nothing(tmp_path: Path) -> None:
    path = Path(shutil.copy(FIRST, tmp_path / "first.h5"))
    before = read(path, timelines=True).runs
    run = replace(a_run(provenance=before[0].provenance), counters=Counters(load_before=0.5, runnable_after=3))
    run = replace(run, configuration=replace(run.configuration, variant="copied", blas_threads=2, n_nodes=2))
    with Record.open(path, "montecarlo") as record:
        record.append(run)
    *earlier, added = read(path, timelines=True).runs
    assert same(added, run)
    assert all(map(same, earlier, before))
    assert [len(run.timelines[0].chunks) for run in earlier] == [len(run.timelines[0].chunks) for run in before]
    with h5py.File(path) as file:
        assert (file.attrs["schema"], file.attrs["schema_minor"]) == ("parcompute/1", 1)


def test_the_timelines_of_several_jobs_come_back_apart(record: Record) -> None:
    dead = replace(a_timeline(4), deaths=np.ones(1, DEATH_DTYPE))
    timelines = (a_timeline(3), on_nodes(dead, 3), a_timeline(0), on_nodes(a_timeline(300)))
    row = record.append(replace(a_run(), timelines=timelines))
    back = read_timelines(record.path, row)
    assert len(back) == len(timelines)
    for one, other in zip(back, timelines, strict=True):
        for table in ("chunks", "workers", "deaths", "nodes", "spans"):
            assert getattr(one, table).tobytes() == getattr(other, table).tobytes()
        assert (one.called_ns, one.submitted_ns, one.completed_ns) == (
            other.called_ns,
            other.submitted_ns,
            other.completed_ns,
        )
    assert read(record.path).timeline_rows == (307,)


def test_jobs_of_a_file_from_before_there_were_nodes_have_none(record: Record) -> None:
    row = record.append(replace(a_run(), timelines=(a_timeline(3), a_timeline(4))))
    record.close()
    with h5py.File(record.path, "r+") as file:
        group = file[f"timelines/{row}"]
        jobs = group["jobs"][:]
        del group["jobs"]
        group["jobs"] = jobs[[name for name in JOB_DTYPE.names or () if name not in ("nodes_end", "spans_end")]]
    back = read_timelines(record.path, row)
    assert [(len(timeline.chunks), len(timeline.nodes)) for timeline in back] == [(3, 0), (4, 0)]


def test_a_reader_that_keeps_the_file_open_does_not_hinder_the_writer(record: Record) -> None:
    with h5py.File(record.path, "r") as held:
        record.append(a_run())
        assert len(held["runs"]) == 0
    assert len(read(record.path).runs) == 1


def test_a_record_behind_a_symbolic_link_stays_behind_it(record: Record, tmp_path: Path) -> None:
    record.close()
    link = tmp_path / "latest.h5"
    link.symlink_to(record.path)
    with Record.open(link, "montecarlo") as again:
        again.append(a_run())
    assert link.is_symlink()
    assert len(read(record.path).runs) == 1


def test_the_permissions_of_the_file_are_kept(record: Record) -> None:
    record.path.chmod(0o640)
    record.append(a_run())
    assert record.path.stat().st_mode & 0o777 == 0o640


def test_a_closed_record_leaves_one_file(record: Record) -> None:
    record.append(a_run())
    record.close()
    assert [entry.name for entry in record.path.parent.iterdir()] == ["montecarlo.h5"]


# ── bad input ─────────────────────────────────────────────────────────────────────────────────────────


def one_line(error: pytest.ExceptionInfo[BaseException], path: Path) -> bool:
    return str(path) in str(error.value) and "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "is empty"),
        (b"no HDF5 at all" * 100, "not an HDF5 file"),
        (b"\x89HDF\r\n\x1a\n" + b"\xff" * 500, "damaged"),
    ],
)
def test_a_file_that_is_no_record_is_named(path: Path, content: bytes, message: str) -> None:
    path.parent.mkdir()
    path.write_bytes(content)
    with pytest.raises(RecordError, match=message) as error:
        read(path)
    assert one_line(error, path)
    with pytest.raises(RecordError, match=message):
        Record.open(path, "montecarlo")
    assert path.read_bytes() == content


@pytest.mark.parametrize("part", [0.02, 0.5, 0.999])
def test_a_truncated_file_is_named_and_left_alone(record: Record, part: float) -> None:
    record.append(a_run())
    record.close()
    image = record.path.read_bytes()
    record.path.write_bytes(image[: int(part * len(image))])
    with pytest.raises(RecordError, match=r"truncated|damaged") as error:
        read(record.path)
    assert one_line(error, record.path)
    with pytest.raises(RecordError):
        Record.open(record.path, "montecarlo")
    assert record.path.read_bytes() == image[: int(part * len(image))]


def test_a_missing_file_is_named(path: Path) -> None:
    with pytest.raises(RecordError, match="does not exist; run the experiment first"):
        read(path)


def test_a_folder_is_no_record(tmp_path: Path) -> None:
    with pytest.raises(RecordError, match="directory"):
        read(tmp_path)


@pytest.mark.parametrize(("schema", "message"), [("parcompute/2", "has schema 'parcompute/2'"), (None, "no attribute")])
def test_a_file_of_another_schema_is_refused(path: Path, schema: str | None, message: str) -> None:
    path.parent.mkdir()
    with h5py.File(path, "w") as file:
        if schema:
            file.attrs["schema"] = schema
    for attempt in (lambda: read(path), lambda: Record.open(path, "montecarlo")):
        with pytest.raises(RecordError, match=message) as error:
            attempt()
        assert one_line(error, path)


def _replaced(file: h5py.File, name: str, **how: object) -> None:
    del file[name]
    file.create_dataset(name, **how)


def _column(file: h5py.File, name: str, kind: object) -> None:
    columns = file["runs"].dtype
    _replaced(file, "runs", shape=(0,), dtype=[(n, kind if n == name else columns[n]) for n in columns.names])


def _elsewhere(file: h5py.File, name: str, link: object) -> None:
    if name in file:
        del file[name]
    file[name] = link


def _virtual(file: h5py.File, name: str) -> None:
    kind = file[name].dtype
    layout = h5py.VirtualLayout((3,), kind)
    layout[:] = h5py.VirtualSource("/elsewhere.h5", "x", (3,), kind)
    del file[name]
    file.create_virtual_dataset(name, layout)


def _of(file: h5py.File, name: str, column: str, value: object) -> None:
    rows = file[name][:]
    rows[column] = value
    file[name][:] = rows


# What another program can put into a record, and what is then said of it.
EVIL: dict[str, tuple[Callable[[h5py.File], object], str]] = {
    "runs of another file": (
        lambda f: _elsewhere(f, "runs", h5py.ExternalLink("/nix.h5", "runs")),
        "runs in / is a link",
    ),
    "runs of another name": (lambda f: _elsewhere(f, "runs", h5py.SoftLink("/timelines")), "runs in / is a link"),
    "conditions elsewhere": (
        lambda f: _elsewhere(f, "provenance", h5py.ExternalLink("/nix.h5", "/")),
        "provenance in / is a link",
    ),
    "one condition elsewhere": (
        lambda f: _elsewhere(f, "provenance/here", h5py.ExternalLink("/nix.h5", "/")),
        "here in /provenance is a link",
    ),
    "a timeline elsewhere": (
        lambda f: _elsewhere(f, "timelines/0", h5py.SoftLink("/provenance")),
        "0 in /timelines is",
    ),
    "chunks of other files": (lambda f: _virtual(f, "timelines/0/chunks"), "chunks has its content in other files"),
    "chunks of any file": (
        lambda f: _replaced(
            f, "timelines/0/chunks", shape=(3,), dtype=CHUNK_DTYPE, external=[("/dev/zero", 0, h5py.h5f.UNLIMITED)]
        ),
        "chunks has its content in other files",
    ),
    "runs without end": (
        lambda f: _replaced(f, "runs", shape=(2**40,), dtype=f["runs"].dtype, chunks=(64,)),
        "runs claims .* bytes, more than it can have",
    ),
    "chunks without end": (
        lambda f: _replaced(f, "timelines/0/chunks", shape=(2**40,), dtype=CHUNK_DTYPE, chunks=(64,)),
        "chunks claims .* bytes, more than it can have",
    ),
    "a bomb": (
        lambda f: _replaced(
            f,
            "timelines/0/chunks",
            data=np.zeros(2**16, CHUNK_DTYPE),
            chunks=(2**16,),
            compression="gzip",
            shuffle=True,
        ),
        "",
    ),
    "runs that are a group": (lambda f: (f.__delitem__("runs"), f.create_group("runs")), "runs is no dataset"),
    "runs in a square": (
        lambda f: _replaced(f, "runs", shape=(1, 1), dtype=f["runs"].dtype, chunks=(1, 1)),
        "claims|dimensions",
    ),
    "text for a number": (lambda f: _column(f, "n_workers", h5py.string_dtype()), r"runs\[n_workers\] is a column of"),
    "lists for text": (lambda f: _column(f, "digest", h5py.vlen_dtype("f8")), r"runs\[digest\] is a column of"),
    "references for text": (lambda f: _column(f, "digest", h5py.ref_dtype), r"runs\[digest\] is a column of"),
    "no conditions": (lambda f: f["provenance"].__delitem__("here"), "there are no conditions 'here'"),
    "no workers": (lambda f: _of(f, "runs", "n_workers", 0), "has 0 workers"),
    "a name that is a number": (lambda f: f.attrs.__setitem__("experiment", 7), "experiment is no text"),
    "a schema of many": (lambda f: f.attrs.__setitem__("schema", ["a", "b"]), "schema of / is no single text"),
    "conditions of many": (
        lambda f: f["provenance/here"].attrs.__setitem__("host", ["a"] * 9),
        "host of /provenance/here is no single",
    ),
    "conditions of another kind": (
        lambda f: f["provenance/here"].attrs.__setitem__("usable_cpus", "many"),
        "the conditions here cannot be read",
    ),
    "chunks of nobody": (lambda f: _of(f, "timelines/0/chunks", "worker", 2**31 - 1), "workers that it does not have"),
    "chunks that are numbers": (
        lambda f: _replaced(f, "timelines/0/chunks", data=np.arange(3)),
        "is no table of chunk,",
    ),
    "no chunks": (lambda f: f["timelines/0"].__delitem__("chunks"), "there is no chunks"),
    "no stamps": (lambda f: f["timelines/0"].attrs.__delitem__("called_ns"), "no attribute called_ns"),
}


@pytest.mark.parametrize("what", EVIL)
def test_a_file_of_anybodys_making_is_read_as_described_or_refused_in_a_line(record: Record, what: str) -> None:
    record.append(a_run(timeline=a_timeline()))
    record.close()
    edit, message = EVIL[what]
    with h5py.File(record.path, "r+") as file:
        edit(file)
    if not message:  # within the limits: large, and its file is as it should be
        assert len(read(record.path, timelines=True).runs[0].timelines[0].chunks) == 2**16
        return
    with pytest.raises(RecordError, match=message) as refused:
        read(record.path, timelines=True)
    assert "\n" not in str(refused.value)


def test_a_pipe_is_no_record_and_nobody_waits_for_it(path: Path) -> None:
    path.parent.mkdir()
    os.mkfifo(path)
    with pytest.raises(RecordError, match="is no regular file"):
        read(path)


def test_a_file_without_a_column_is_damaged(record: Record) -> None:
    record.close()
    with h5py.File(record.path, "r+") as file:
        del file["runs"]
        file.create_dataset("runs", shape=(0,), dtype=[("backend", h5py.string_dtype())])
    with pytest.raises(RecordError, match=r"damaged, it has no runs\[n_workers\]"):
        read(record.path)


def test_a_file_of_another_experiment_is_refused(record: Record) -> None:
    record.close()
    with pytest.raises(RecordError, match="holds experiment 'montecarlo', not 'mandelbrot'"):
        Record.open(record.path, "mandelbrot")


def test_a_file_that_another_program_edits_is_refused_and_the_run_kept(record: Record) -> None:
    with h5py.File(record.path, "r+"):
        with pytest.raises(RecordError, match="HDF5_USE_FILE_LOCKING"):
            read(record.path)
        with pytest.raises(RecordError, match="is kept in"):
            record.append(a_run())
    assert len(list(record.path.parent.glob("*.side.json"))) == 1


def test_a_run_needs_its_conditions_in_the_file(record: Record) -> None:
    for id in ("elsewhere", ""):
        with pytest.raises(ValueError, match="call add_provenance first"):
            record.append(a_run(provenance=id))
    assert read(record.path).runs == ()


@pytest.mark.parametrize(
    ("id", "values", "kind"),
    [
        ("a/b", {}, ValueError),
        ("", {}, ValueError),
        ("x", {"cpus": None}, TypeError),
        ("x", {"big": 2**64}, ValueError),
    ],
)
def test_conditions_that_cannot_be_stored_are_refused(record: Record, id: str, values: dict, kind: type) -> None:
    with pytest.raises(kind, match=r"provenance (id|field)"):
        record.add_provenance(id, values)
    assert set(read(record.path).provenance) == {"here"}


def test_a_seed_of_more_than_64_bits_is_refused(record: Record) -> None:
    with pytest.raises(ValueError, match=r"seed=\d+ does not fit"):
        record.append(replace(a_run(), seed=2**63))


def test_a_closed_record_takes_nothing(record: Record) -> None:
    record.close()
    record.close()
    with pytest.raises(ValueError, match="the record is closed"):
        record.append(a_run())


# ── several writers, and dead ones ────────────────────────────────────────────────────────────────────


def test_a_second_writer_is_refused_by_the_number_of_the_first(record: Record) -> None:
    with pytest.raises(RecordError, match=f"is being written by process {os.getpid()};") as error:
        Record.open(record.path, "montecarlo", wait_s=0)
    assert one_line(error, record.path)
    record.append(a_run())
    assert len(read(record.path).runs) == 1


def test_a_second_writer_that_waits_comes_in_when_the_first_has_ended(path: Path) -> None:
    writer = f"""
        from parcompute.record.record import Record
        record = Record.open({str(path)!r}, "montecarlo")
        print("open", flush=True)
        input()
    """
    with start(writer, stdin=subprocess.PIPE) as first:
        assert first.stdout is not None
        assert first.stdin is not None
        first.stdout.readline()
        with pytest.raises(RecordError, match=f"process {first.pid};"):
            Record.open(path, "montecarlo", wait_s=0)
        first.stdin.close()
        with Record.open(path, "montecarlo", wait_s=60) as second:
            second.add_provenance("here", {})
    assert list(read(path).provenance) == ["here"]


def test_leftovers_of_dead_writers_are_removed_and_those_of_living_ones_kept(record: Record) -> None:
    record.close()
    with start("pass") as ended:
        ended.wait()
    dead = record.path.with_name(f".{record.path.name}.{ended.pid}.tmp")
    alive = record.path.with_name(f".{record.path.name}.{os.getppid()}.tmp")
    other = record.path.with_name(f".another.h5.{ended.pid}.tmp")
    for leftover in (dead, alive, other):
        leftover.write_bytes(b"half")
    with Record.open(record.path, "montecarlo"):
        assert [leftover.exists() for leftover in (dead, alive, other)] == [False, True, True]


def test_a_file_system_without_locks_is_a_warning(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object) -> None:
        raise OSError(95, "Operation not supported")

    monkeypatch.setattr("fcntl.flock", refuse)
    with pytest.warns(UserWarning, match="has no locks"):
        record = Record.open(path, "montecarlo")
    record.add_provenance("here", {})
    record.append(a_run())
    record.close()
    assert len(read(path).runs) == 1


def test_a_link_in_the_place_of_the_temporary_file_is_not_followed(tmp_path: Path) -> None:
    (tmp_path / "victim").write_text("precious")
    (tmp_path / f".page.html.{os.getpid()}.tmp").symlink_to(tmp_path / "victim")
    atomic.replace(tmp_path / "page.html", b"content")
    assert (tmp_path / "page.html").read_bytes() == b"content"
    assert not (tmp_path / "page.html").is_symlink()
    assert (tmp_path / "victim").read_text() == "precious"


def test_what_stands_in_a_lock_is_told_if_it_is_a_number(record: Record) -> None:
    record.path.with_name(f".{record.path.name}.lock").write_text("\x1b[2J gone")
    with pytest.raises(RecordError, match=r"is being written by process \(number unknown\)"):
        Record.open(record.path, "montecarlo", wait_s=0)


def test_a_failed_replacement_keeps_the_old_content(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: object) -> None:
        raise OSError(5, "Input/output error")

    path = tmp_path / "file"
    atomic.replace(path, b"old")
    monkeypatch.setattr("os.fsync", fail)
    with pytest.raises(OSError, match="Input/output"):
        atomic.replace(path, b"new")
    assert path.read_bytes() == b"old"
    assert [entry.name for entry in tmp_path.iterdir()] == ["file"]


# ── kill -9, full disk ────────────────────────────────────────────────────────────────────────────────


def start(program: str, **how: object) -> subprocess.Popen[str]:
    """Start a Python process that can import this file."""
    code = f"import sys; sys.path.insert(0, {str(Path(__file__).parent)!r})\n" + textwrap.dedent(program)
    return subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True, **how)  # type: ignore[call-overload, no-any-return]


@pytest.mark.parametrize(
    ("step", "survives"), [("fchmod", False), ("fsync", False), ("rename", False), ("folder", True), ("close", True)]
)
def test_kill_9_at_each_step_of_an_append(record: Record, step: str, survives: bool) -> None:
    record.append(a_run(0))
    record.close()
    program = f"""
        from test_record import *
        import pathlib
        def die(*_):
            os.kill(os.getpid(), signal.SIGKILL)
        def opened(name, *how, before=os.open):
            return die() if os.path.isdir(name) else before(name, *how)
        record = Record.open({str(record.path)!r}, "montecarlo")
        {{"fchmod": lambda: setattr(os, "fchmod", die),
          "fsync": lambda: setattr(os, "fsync", die),
          "rename": lambda: setattr(pathlib.Path, "replace", die),
          "folder": lambda: setattr(os, "open", opened),
          "close": lambda: setattr(os, "close", die)}}[{step!r}]()
        record.append(a_run(1))
    """
    with start(program) as writer:
        writer.wait()
    assert writer.returncode == -signal.SIGKILL
    assert [run.round for run in read(record.path).runs] == ([0, 1] if survives else [0])
    with Record.open(record.path, "montecarlo") as again:
        again.append(a_run(2))
    assert read(record.path).runs[-1].round == 2
    assert [entry.name for entry in record.path.parent.iterdir()] == [record.path.name]


def test_a_full_disk_keeps_the_file_and_puts_the_run_aside(tmp_path: Path) -> None:
    small, elsewhere = tmp_path / "small", tmp_path / "elsewhere"
    small.mkdir()
    elsewhere.mkdir()
    mount = f"mount -t tmpfs -o size=1m tmpfs {small}"
    private = ["unshare", "-m", "sh", "-c"]
    if shutil.which("unshare") is None or subprocess.run([*private, mount], capture_output=True).returncode:
        pytest.skip("a private mount needs unshare -m, which is not permitted here")
    program = f"""
        import sys; sys.path.insert(0, {str(Path(__file__).parent)!r})
        from test_record import *
        small = Path({str(small)!r})
        record = Record.open(small / "montecarlo.h5", "montecarlo")
        record.add_provenance("here", {{}})
        record.append(a_run(0, timeline=a_timeline(10)))
        ballast = (small / "ballast").open("wb", buffering=0)
        try:
            while True:
                ballast.write(bytes(4096))
        except OSError:
            ballast.close()
        before = (small / "montecarlo.h5").read_bytes()
        try:
            record.append(a_run(5, timeline=a_timeline(20)))
        except RecordError as error:
            message = str(error)
        untouched = (small / "montecarlo.h5").read_bytes() == before
        (small / "ballast").unlink()
        side, = Path({str(elsewhere)!r}).iterdir()
        named = str(side) in message
        row = record.restore(side)
        back = read(record.path)
        print(json.dumps([message, untouched, named, row, back.runs[1].round, back.timeline_rows, side.exists(),
                          sorted(os.listdir(small))]))
    """
    done = subprocess.run(
        [*private, f'{mount} && exec "$0" -c "$1"', sys.executable, textwrap.dedent(program)],
        env=os.environ | {"TMPDIR": str(elsewhere)},
        capture_output=True,
        text=True,
    )
    assert done.stderr == ""
    message, untouched, named, row, round_, timeline_rows, side_left, left = json.loads(done.stdout)
    assert "No space left on device" in message
    assert "free some space" in message
    assert (untouched, named, row, round_, timeline_rows, side_left) == (True, True, 1, 5, [10, 20], False)
    assert left == [".montecarlo.h5.lock", "montecarlo.h5"]


def test_when_no_folder_takes_the_run_the_message_holds_it(record: Record, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: object, **__: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("os.fsync", full)
    with pytest.raises(RecordError, match="so here it is") as error:
        record.append(a_run(3))
    assert json.loads(str(error.value).split("so here it is: ")[1])["round"] == 3
    assert list(record.path.parent.glob("*.side.json")) == []


@pytest.mark.parametrize("text", ["[]", "{}", "nix", "[" * 100_000, '"text"', '{"timeline_rows": "x", "n_workers": 0}'])
def test_a_side_file_must_be_one(record: Record, tmp_path: Path, text: str) -> None:
    (tmp_path / "other.json").write_text(text)
    with pytest.raises(RecordError, match="is no side file"):
        record.restore(tmp_path / "other.json")
