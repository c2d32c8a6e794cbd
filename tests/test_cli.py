"""The command: help with examples, what it prints, the statuses it leaves with."""

import csv
import importlib
import io
import json
import os
import pkgutil
import re
import subprocess
import sys
import textwrap
from dataclasses import replace
from pathlib import Path

import click
import numpy as np
import pytest

import parcompute
from parcompute import __version__, cli
from parcompute.backends.broken import Broken
from parcompute.backends.pool_processes import Unguarded
from parcompute.experiments import command_line
from parcompute.experiments.measure import WrongResult
from parcompute.jobs.job import Failure, KernelError, RemoteTraceback
from parcompute.machine.provenance import Provenance
from parcompute.memory.shared import SharedMemoryFull
from parcompute.record.record import Record, read
from parcompute.values.sweep import Configuration, Run
from parcompute.values.timeline import CHUNK_DTYPE, WORKER_DTYPE, Timeline

COMMANDS = sorted(cli.commands.commands)


def call(capsys, *arguments):
    """Run the command in this process; return its status, and what it wrote to the two streams."""
    with pytest.raises(SystemExit) as left:
        command_line.leave(cli.commands, list(map(str, arguments)))
    out, err = capsys.readouterr()
    return left.value.code or 0, out, err


def one_line(err):
    return err.startswith("parcompute: ") and err.count("\n") == 1


def timeline(n_workers, wall_s):
    """One chunk per worker, all of them computing for the whole run."""
    end = 1_000 + round(wall_s * 1e9)
    chunks, workers = np.zeros(n_workers, CHUNK_DTYPE), np.zeros(n_workers, WORKER_DTYPE)
    chunks["chunk"] = chunks["worker"] = workers["worker"] = np.arange(n_workers)
    chunks["started_ns"], chunks["finished_ns"], chunks["stored_ns"] = 1_000, end - 20, end - 10
    chunks["cpu_ns"] = end - 1_100
    return Timeline(900, 1_000, end, chunks, workers)


@pytest.fixture
def recorded(tmp_path):
    """A file with six rounds of serial runs and of processes on 1, 2 and 4, of which there are 2 CPUs."""
    return write(tmp_path)


def write(folder):
    provenance = Provenance(cpu_model="A64FX", usable_cpus=2, n_cores=2)
    with Record.open(folder / "counting.h5", "counting") as file:
        id = file.add_provenance(provenance.id, provenance.as_dict())
        for round_ in range(6):
            for backend, n_workers in (("serial", 1), ("processes", 1), ("processes", 2), ("processes", 4)):
                wall_s = (8 + 0.01 * round_) / min(n_workers, 2)
                run = Run(
                    configuration=Configuration(backend, n_workers, 1, "guided", "", "strong", 1_000),
                    round=round_, seed=1, block_items=1_000, n_chunks=n_workers, wall_s=wall_s, startup_s=0.1,
                    cpu_s=8.0, digest="d", value=1.0, error=0.0, tolerance=0.0, verified=True, disturbed="",
                    started_utc="2025-01-01T00:00:00.000+00:00", provenance=id,
                    timelines=(timeline(n_workers, wall_s),),
                )  # fmt: skip
                file.append(run)
    return file.path


@pytest.fixture
def script(tmp_path, monkeypatch):
    """Return what writes a script, which may change where modules are looked for."""
    monkeypatch.setattr(sys, "path", [*sys.path])
    monkeypatch.setattr(sys, "argv", [*sys.argv])

    def write(text):
        path = tmp_path / "script.py"
        path.write_text(textwrap.dedent(text))
        return path

    return write


# --- help --------------------------------------------------------------------------------------------------


def test_help_lists_the_commands(capsys):
    status, out, err = call(capsys, "--help")
    assert (status, err) == (0, "")
    assert re.findall(r"^  ([a-z]+) +[A-Z]", out, re.MULTILINE) == COMMANDS


@pytest.mark.parametrize("name", COMMANDS)
def test_each_command_has_help_with_an_example(capsys, name):
    status, out, err = call(capsys, name, "--help")
    assert (status, err) == (0, "")
    assert f"Example: parcompute {name} " in out


def test_without_arguments_the_help_is_shown(capsys):
    _, out, err = call(capsys)
    assert "Commands:" in out + err


def test_the_version_is_the_packages(capsys):
    assert call(capsys, "--version")[1].split()[-1] == __version__


def test_the_package_can_be_run_as_a_module():
    ran = subprocess.run([sys.executable, "-m", "parcompute", "--version"], capture_output=True, text=True)
    assert (ran.returncode, ran.stdout.split()[-1]) == (0, __version__)


@pytest.mark.parametrize(
    "arguments",
    [("nix",), ("--nix",), ("show",), ("plot",), ("run",), ("machine", "--nix"), ("plot", "--format", "bmp", "f")],
)
def test_a_wrong_command_is_one_line_and_status_2(capsys, arguments):
    status, out, err = call(capsys, *arguments)
    assert (status, out) == (2, "")
    assert one_line(err)
    assert err.endswith("; see --help\n")


# --- machine -----------------------------------------------------------------------------------------------


def test_machine_tells_each_number_with_its_reason(capsys):
    status, out, err = call(capsys, "machine")
    assert (status, err) == (0, "")
    assert re.search(r"^usable CPUs +\d+  \S", out, re.MULTILINE)
    assert re.search(r"^memory available +[\d,.]+ MiB  \S", out, re.MULTILINE)


def test_machine_as_json_can_be_read_by_a_program(capsys):
    status, out, _ = call(capsys, "machine", "--json")
    found = json.loads(out, parse_constant=lambda name: pytest.fail(f"{name} is no JSON"))
    assert status == 0
    assert found["cpus"]["n"] >= 1
    assert found["cpus"]["reason"]


# --- show and plot -----------------------------------------------------------------------------------------


def test_show_prints_times_with_unit_interval_and_base(capsys, recorded):
    status, out, err = call(capsys, "show", recorded)
    assert (status, err) == (0, "")
    assert "counting: 24 runs of 1000 items, seed 1, on A64FX (2 usable CPUs)" in out
    assert "base: best serial, 8.025 (95 % 8–8.05) s\n" in out
    assert re.search(r"^backend +workers +runs +time \(s\) +speed-up +efficiency \(%\)$", out, re.MULTILINE)
    assert re.search(
        r"^processes +2 +6 +4\.012 \(95 % 4–4\.025\) +2\.00 \(95 % .*\) +100\.0 \(95 % ", out, re.MULTILINE
    )
    assert re.search(r"^processes +4\* ", out, re.MULTILINE)
    assert re.search(r"^processes: on 2 workers, counting runs 2 times as fast", out, re.MULTILINE)


def test_show_prints_each_of_several_files(capsys, recorded):
    assert call(capsys, "show", recorded, recorded)[1].count("\nbase: best serial") == 2


def test_show_says_that_a_file_has_no_runs(capsys, tmp_path):
    path = tmp_path / "new.h5"
    Record.open(path, "counting").close()
    assert call(capsys, "show", path) == (0, f"{path}: no runs yet\n", "")


def test_plot_draws_png_and_svg_beside_the_file(capsys, recorded):
    status, out, err = call(capsys, "plot", recorded)
    assert (status, err) == (0, "")
    drawn = [Path(line) for line in out.splitlines()]
    assert {path.suffix for path in drawn} == {".png", ".svg"}
    assert all(path.parent == recorded.parent and path.name.startswith("counting-") for path in drawn)
    assert all(path.read_bytes().startswith(b"\x89PNG") for path in drawn if path.suffix == ".png")
    assert all(b"<svg" in path.read_bytes() for path in drawn if path.suffix == ".svg")


def test_plot_draws_in_the_formats_asked_for(capsys, recorded):
    out = call(capsys, "plot", recorded, "--format", "svg")[1]
    assert {Path(line).suffix for line in out.splitlines()} == {".svg"}


def test_plot_of_a_file_without_runs_is_one_line(capsys, tmp_path):
    Record.open(tmp_path / "new.h5", "counting").close()
    status, out, err = call(capsys, "plot", tmp_path / "new.h5")
    assert (status, out) == (2, "")
    assert one_line(err)


@pytest.mark.parametrize("command", ["show", "plot"])
@pytest.mark.parametrize("content", [None, b"", b"no HDF5", "truncated"])
def test_a_file_that_cannot_be_read_is_one_line_with_its_name_and_status_2(capsys, recorded, command, content):
    if content is None:
        recorded.unlink()
    else:
        recorded.write_bytes(recorded.read_bytes()[:-50] if content == "truncated" else content)
    status, out, err = call(capsys, command, recorded)
    assert (status, out) == (2, "")
    assert one_line(err)
    assert str(recorded) in err


# --- run ---------------------------------------------------------------------------------------------------


def test_run_hands_the_arguments_to_the_script(capsys, script):
    path = script("""
        import sys
        print(__name__, sys.argv)
        sys.exit(0)
    """)
    status, out, err = call(capsys, "run", path, "--preset", "quick", "--help")
    assert (status, err) == (0, "")
    assert out == f"__main__ {[str(path), '--preset', 'quick', '--help']}\n"


def test_run_finds_what_lies_beside_the_script(capsys, script, tmp_path):
    (tmp_path / "lies_beside_it.py").write_text("answer = 42\n")
    path = script("import lies_beside_it, sys; print(lies_beside_it.answer); sys.exit(0)")
    assert call(capsys, "run", path)[:2] == (0, "42\n")
    del sys.modules["lies_beside_it"]


def test_run_of_a_script_that_runs_no_experiment_is_one_line(capsys, script):
    text = "import parcompute as pc\nnix = pc.experiment(n_items={'default': 1}, truth=None)(lambda executor: 1)"
    status, out, err = call(capsys, "run", script(text))
    assert (status, out) == (2, "")
    assert one_line(err)
    assert "has run no experiment; it should end with: NAME.main()" in err


@pytest.mark.parametrize("name", ["nix.py", "."])
def test_run_of_no_file_is_one_line(capsys, tmp_path, name):
    status, _, err = call(capsys, "run", tmp_path / name)
    assert status == 2
    assert one_line(err)


def test_run_of_a_script_with_a_mistake_shows_its_place(capsys, script):
    status, _, err = call(capsys, "run", script("def f():\n    return 1 / 0\n\nf()"))
    assert status == 2
    assert "script.py" in err
    assert "in f" in err
    assert err.splitlines()[-1] == "parcompute: division by zero"


def test_an_experiment_without_a_default_size_is_one_line(capsys, script):
    status, _, err = call(capsys, "run", script("import parcompute\nparcompute.experiment(n_items={}, truth=None)"))
    assert status == 2
    assert one_line(err)


def test_ctrl_c_is_status_130(capsys, script):
    path = script("import signal; signal.raise_signal(signal.SIGINT)")
    status, _, err = call(capsys, "run", path)
    assert status == 130
    assert err.strip() == "interrupted"


def test_a_reader_that_has_left_is_no_traceback(recorded):
    read, write = os.pipe()
    os.close(read)
    program = [sys.executable, "-m", "parcompute.cli", "show", str(recorded)]
    done = subprocess.run(program, stdout=write, stderr=subprocess.PIPE, text=True, timeout=120)
    os.close(write)
    assert done.returncode != 0
    assert "Traceback" not in done.stderr


# --- for programs ------------------------------------------------------------------------------------------


def test_show_gives_studies_as_json(capsys, recorded):
    status, out, err = call(capsys, "show", recorded, "--json")
    assert (status, err) == (0, "")
    (study,) = json.loads(out)[str(recorded)]
    (curve,) = study["curves"]
    assert [point["n_workers"] for point in curve["points"]] == [1, 2, 4]
    two = curve["points"][1]
    assert two["speedup"]["low"] <= two["speedup"]["value"] <= two["speedup"]["high"]
    assert study["provenance"]["cpu_model"] == "A64FX"
    assert study["provenance"]["mhz"] is None  # what is not known is not a number
    assert study["verdicts"]


def test_show_gives_runs_as_rows(capsys, recorded):
    status, out, err = call(capsys, "show", recorded, recorded, "--csv")
    assert (status, err) == (0, "")
    rows = list(csv.DictReader(io.StringIO(out)))
    assert len(rows) == 48
    assert (rows[0]["file"], rows[0]["verified"]) == (str(recorded), "True")
    assert {row["backend"] for row in rows} == {"serial", "processes"}
    assert all(float(row["wall_s"]) > 0 for row in rows)


FIRST = Provenance(cpu_model="A64FX", usable_cpus=2, n_cores=2)


def test_unlike_conditions_are_listed_and_one_has_to_be_chosen(capsys, recorded):
    other = replace(FIRST, cpu_model="M4")
    with Record.open(recorded, "counting") as file:
        file.add_provenance(other.id, other.as_dict())
        for run in read(recorded).runs:
            file.append(replace(run, provenance=other.id))
    status, out, _ = call(capsys, "show", recorded)
    assert status == 0
    assert "unlike conditions, kept apart:" in out
    assert "cpu_model 'A64FX' is 'M4'" in out
    for command in ("plot", "simulate"):
        status, out, err = call(capsys, command, recorded)
        assert (status, out) == (2, "")
        assert one_line(err)
        assert f"choose with --conditions: {FIRST.conditions_id[:8]}" in err
    for chosen in ("newest", other.conditions_id[:6]):
        assert call(capsys, "plot", recorded, "--conditions", chosen, "--figure", "ratios")[0] == 0
    assert call(capsys, "plot", recorded, "--conditions", "")[0] == 2
    status, out, _ = call(capsys, "compare", recorded, recorded)
    assert status == 0
    assert "unlike: cpu_model is 'A64FX' in A and 'M4' in B" in out


def test_simulate_predicts_and_draws(capsys, recorded):
    status, out, err = call(capsys, "simulate", recorded, "--workers", "1,2,64")
    assert (status, err) == (0, "")
    assert "replayed: 6 runs of processes × 1" in out
    assert "assumed:" in out
    assert (recorded.parent / "counting-prediction.svg").exists()
    status, out, _ = call(capsys, "simulate", recorded, "--workers", "2", "--json")
    assert json.loads(out)["points"][0]["n_workers"] == 2
    status, _, err = call(capsys, "simulate", recorded, "--workers", "2", "--nodes", "1,4")
    assert status == 2
    assert "no run of processes on several nodes has a timeline" in err


def test_fit_takes_records_and_tables(capsys, recorded, tmp_path):
    status, out, err = call(capsys, "fit", recorded)
    assert (status, err) == (0, "")
    assert f"{recorded}: processes" in out
    assert "not identifiable from 2 points" in out  # the third has more workers than CPUs
    assert "none is preferred" in out
    table = tmp_path / "table.csv"
    table.write_text("workers,time\n" + "".join(f"{n},{8 * (0.05 + 0.95 / n)}\n" for n in (1, 2, 4, 8, 16, 32, 64)))
    status, out, _ = call(capsys, "fit", table, "--law", "amdahl", "--json")
    assert json.loads(out)[str(table)]["fits"]["amdahl"]["parameters"]["s"] == pytest.approx(0.05)
    for wrong in (("--law", "nix"), ("--loss", "nix"), ("--law", "amdahl", "--loss", "linearised")):
        status, out, err = call(capsys, "fit", table, *wrong)
        assert (status, out) == (2, "")
        assert one_line(err)
    table.write_text("1 2\n2 1\n")
    assert "pass --time or --rate" in call(capsys, "fit", table)[2]
    assert call(capsys, "fit", table, "--time")[0] == 0


def test_plot_takes_a_width_and_a_style(capsys, recorded):
    status, out, err = call(
        capsys, "plot", recorded, "--format", "pdf", "--figure", "speedup", "--width", "two", "--style", "dark"
    )
    assert (status, err) == (0, "")
    assert out == f"{recorded.parent / 'counting-speedup-dark.pdf'}\n"
    for wrong in (("--width", "wide"), ("--style", "sepia")):
        status, out, err = call(capsys, "plot", recorded, *wrong)
        assert (status, out) == (2, "")
        assert one_line(err)


def test_fit_takes_columns_by_name_and_puts_curves_side_by_side(capsys, tmp_path):
    table = tmp_path / "table.csv"
    rows = [
        f"{system};{36 * n};{n};{scale * (0.05 + 0.95 / n):.3f};{n}".replace(".", ",")
        for system, scale in (("old", 9000), ("new", 5000))
        for n in (1, 2, 4, 8, 16, 32, 64)
    ]
    table.write_text("\n".join(["system;cores;nodes;t [ms];mem", *rows]))
    status, out, err = call(capsys, "fit", table)
    assert (status, out) == (2, "")
    assert one_line(err)
    assert "pass --workers cores or --workers nodes" in err
    options = ("--workers", "nodes", "--time", "t [ms]", "--curve", "system", "--ignore", "mem", "--law", "amdahl")
    status, out, err = call(capsys, "fit", table, *options)
    assert (status, err) == (0, "")
    assert f"{table}: workers from nodes, time from t [ms], curves by system\n" in out
    heading, old, new = out.splitlines()[-3:]
    assert heading.split() == ["curve", "points", "workers", "law", "parameters"]
    assert old.split()[:5] == ["system=old", "7", "1–64", "amdahl", "T1"]
    assert "s 0.05" in new
    status, out, _ = call(capsys, "fit", table, *options, "--json")
    fitted = json.loads(out)[f"{table}: system=new"]
    assert fitted["fits"]["amdahl"]["parameters"]["T1"] == pytest.approx(5, rel=1e-3)
    assert "curves by system" in fitted["read"]
    status, _, err = call(capsys, "fit", table, "--time", "a", "--rate", "b")
    assert status == 2
    assert "exclude each other" in err


def test_a_faulty_table_is_one_line_and_status_2(capsys, tmp_path):
    table = tmp_path / "table.csv"
    for text in ("", "a,b\n1,2\n", "workers,time\n1,fast\n", "size,workers,time\n1,1,8\n2,1,80\n", "{}"):
        table.write_text(text)
        status, out, err = call(capsys, "fit", table)
        assert (status, out) == (2, "")
        assert one_line(err)
        assert str(table) in err


OWN_ERRORS = [
    cls
    for module in (pkgutil.walk_packages(parcompute.__path__, "parcompute."))
    if not module.name.endswith("__main__")
    for cls in vars(importlib.import_module(module.name)).values()
    if isinstance(cls, type) and issubclass(cls, Exception) and cls.__module__ == module.name
    if not cls.__name__.startswith("_") and cls is not RemoteTraceback
]
MADE_OF = {
    SharedMemoryFull: (1, 0, "free some"),
    WrongResult: ("wrong", None),
    Broken: (Failure.before_blocks(ValueError("told")),),
    Unguarded: (),
}


@pytest.mark.parametrize("kind", OWN_ERRORS, ids=lambda kind: kind.__name__)
def test_every_error_of_our_own_is_one_line_unless_it_is_of_a_kernel(capsys, kind):
    def fail():
        raise kind(*MADE_OF.get(kind, ("told",))) from (ZeroDivisionError() if kind is KernelError else None)

    command = click.Command("fails", callback=fail)
    with pytest.raises(SystemExit) as left:
        command_line.leave(command, [])
    err = capsys.readouterr().err
    assert left.value.code == (1 if kind is WrongResult else 2)
    assert one_line(err) == (kind is not KernelError)


@pytest.mark.parametrize("mistake", ["open('nix.csv')", "__import__('os').makedirs('/proc/nix/nix')", "int('x')"])
def test_a_mistake_of_the_experiments_own_shows_its_place(capsys, script, mistake):
    status, _, err = call(capsys, "run", script(f"def f():\n    {mistake}\n\nf()"))
    assert status == 2
    assert "in f" in err


def test_what_the_system_refuses_us_is_one_line(capsys):
    for folder in ("/dev/null", "/dev/null/below"):
        status, out, err = call(capsys, "new", "heat", "--folder", folder)
        assert (status, out) == (2, "")
        assert one_line(err)


def test_advise_of_no_array_is_one_line(capsys, script, tmp_path):
    (tmp_path / "x.npy").write_text("no array")
    np.save(tmp_path / "objects.npy", np.array([{}]))
    path = script("def kernel(x):\n    return x")
    for array in ("x.npy", "objects.npy"):
        status, out, err = call(capsys, "advise", f"{path}::kernel", tmp_path / array)
        assert (status, out) == (2, "")
        assert one_line(err)
        assert "is no array of numbers in a .npy file" in err


def test_new_never_writes_through_a_link(capsys, tmp_path):
    (tmp_path / "heat.py").symlink_to(tmp_path / "elsewhere")
    status, _, err = call(capsys, "new", "heat", "--folder", tmp_path)
    assert status == 2
    assert "exists already" in err
    assert not (tmp_path / "elsewhere").exists()


def test_merge_writes_one_file(capsys, recorded):
    status, out, err = call(capsys, "merge", recorded, "--into", recorded.parent / "all.h5")
    assert (status, err) == (0, "")
    assert "24 runs added" in out
    assert len(read(recorded.parent / "all.h5").runs) == 24


@pytest.mark.parametrize(
    "command", [("compare", "nix.h5", "nix.h5"), ("simulate", "nix.h5"), ("merge", "nix.h5", "--into", "x")]
)
def test_a_file_that_is_missing_is_one_line_and_status_2(capsys, tmp_path, monkeypatch, command):
    monkeypatch.chdir(tmp_path)
    status, out, err = call(capsys, *command)
    assert (status, out) == (2, "")
    assert one_line(err)
    assert "nix.h5: does not exist" in err
