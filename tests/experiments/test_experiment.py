"""An experiment becomes a command: it records, continues, refuses and tells, and leaves with the right status."""

import fcntl
import importlib.util
import os
import pty
import re
import select
import signal
import struct
import subprocess
import sys
import termios
import textwrap
from collections import Counter
from pathlib import Path

import pytest

import parcompute as pc
from parcompute.experiments import measure
from parcompute.experiments.perform import Choice, machine_name, sweep_of
from parcompute.figures import pages
from parcompute.machine import limits
from parcompute.machine.batch import deadline
from parcompute.record import record

PARCOMPUTE = Path(sys.executable).with_name("parcompute")
TIMEOUT_S = 120

COUNTING = '''
    """How many are there? Ones, counted."""

    import itertools
    import os
    import time

    import numpy as np

    import parcompute as pc

    calls = itertools.count(1)


    def ones(block):
        return int(np.ones(block.size).sum())


    def all_of_them(found, n_items):
        return pc.Check(found, n_items, 0, "equality")


    @pc.experiment(n_items={"quick": 4_000, "default": 8_000}, truth=all_of_them)
    def counting(executor, n_items, seed):
        if next(calls) == int(os.environ.get("HOLD_AT", 0)):
            print("holding", flush=True)
            while True:  # Python does not hear a signal that comes just before it begins to wait
                time.sleep(0.1)
        wrong = int(os.environ.get("WRONG", 0)) if executor.backend == "threads" else 0
        return executor.reduce_blocks(ones, n_items=n_items, block_items=500, seed=seed) + wrong


    if __name__ == "__main__":
        counting.main()
'''

# Three configurations, each run by two calls of the function: six calls warm up. The eleventh is the third run's.
SMALL = ("--preset", "quick", "--rounds", "2", "--backends", "serial,processes", "--workers", "1,2")
HOLD_IN_THE_THIRD_RUN = {"HOLD_AT": "11"}


@pytest.fixture
def script(tmp_path):
    """Return a small experiment, in a folder of its own."""
    (folder := tmp_path / "scripts").mkdir()
    path = folder / "counting.py"
    path.write_text(textwrap.dedent(COUNTING).lstrip())
    return path


@pytest.fixture
def experiment(script, monkeypatch):
    """Return the experiment itself, to be run here, where no figure is drawn."""
    spec = importlib.util.spec_from_file_location("counting", script)
    module = importlib.util.module_from_spec(spec)
    monkeypatch.setitem(sys.modules, "counting", module)
    spec.loader.exec_module(module)
    for name in ("save_study", "save_sizes"):
        monkeypatch.setattr(pages, name, lambda *of: [])
    monkeypatch.setattr(measure, "disturbances", lambda *counters: "")  # whoever else computes here
    return module.counting


def environment(**changes):
    """Return the environment for a command: no terminal's width, no progress left from another test."""
    return {name: value for name, value in os.environ.items() if name not in ("COLUMNS", "LINES")} | changes


def command(*arguments, **changes):
    done = subprocess.run(
        list(map(str, arguments)), capture_output=True, text=True, timeout=TIMEOUT_S, env=environment(**changes)
    )
    return done.returncode, done.stdout, done.stderr


def visits(path):
    """Return how often each (round, backend, workers) stands in a file."""
    runs = record.read(path).runs
    return Counter((run.round, run.configuration.backend, run.configuration.n_workers) for run in runs)


ALL_OF_SMALL = Counter((r, b, n) for r in (0, 1) for b, n in (("serial", 1), ("processes", 1), ("processes", 2)))


def run_here(experiment, folder, *arguments, backends="serial,threads", workers="1"):
    """Run the experiment's command in this process; return its exit status."""
    usual = ("--preset", "quick", "--rounds", "1", "--backends", backends, "--workers", workers)
    with pytest.raises(SystemExit) as left:
        experiment.main([*usual, "--results", str(folder), *arguments])
    return left.value.code or 0


# --- the decorator -----------------------------------------------------------------------------------------


def test_an_experiment_has_the_name_of_its_function_and_asks_the_first_line_of_its_module(experiment):
    assert (experiment.name, experiment.question) == ("counting", "How many are there? Ones, counted.")
    assert experiment.sizes == {"quick": (4_000,), "default": (8_000,)}


def test_an_experiment_can_be_called_like_its_function(experiment):
    with pc.Executor(backend="serial") as executor:
        assert experiment(executor, 1_234, 5) == 1_234


@pytest.mark.parametrize(("n_items", "found"), [({"quick": 1, "full": 2}, "quick, full"), ({}, "none")])
def test_an_experiment_without_a_default_size_is_refused(n_items, found):
    with pytest.raises(ValueError, match=f"n_items has the presets {found}; give a 'default' one"):
        pc.experiment(n_items=n_items, truth=None)


# --- what is swept -----------------------------------------------------------------------------------------


def choice(**levels):
    usual = {
        "preset": "default",
        "workers": (),
        "backends": ("serial", "processes", "threads"),
        "schedules": ("guided",),
        "start_methods": ("fork", "spawn"),
        "variants": (),
        "blas_threads": (1,),
        "scaling": "strong",
        "threads_per_worker": 1,
        "rounds": 6,
        "seed": 1,
        "precision": 0.02,
        "budget": None,
        "results": None,
    }
    return Choice(**(usual | levels))


def test_serial_has_one_worker_and_only_processes_have_a_start_method():
    swept = {(c.backend, c.n_workers, c.start_method) for c in sweep_of(choice(), [100], n_cpus=2).configurations}
    assert swept == {
        ("serial", 1, ""),
        *(("processes", n, method) for n in (1, 2) for method in ("fork", "spawn")),
        *(("threads", n, "") for n in (1, 2)),
    }


@pytest.mark.parametrize("threads", [1, 2, 3, 8])
def test_left_to_itself_a_sweep_keeps_no_more_workers_than_there_are_cpus(threads):
    chosen = choice(backends=("processes",), threads_per_worker=threads)
    serial, *swept = sweep_of(chosen, [100], n_cpus=4).configurations
    assert serial.backend == "serial"
    assert {c.threads_per_worker for c in swept} == {threads}
    assert all(c.n_workers % threads == 0 for c in swept)
    assert max(c.n_workers for c in swept) == max(threads, 4 - 4 % threads)


def test_both_bases_are_always_there():
    swept = sweep_of(choice(backends=("threads",), workers=(3,)), [100], n_cpus=4).configurations
    assert [(c.backend, c.n_workers) for c in swept] == [("serial", 1), ("threads", 1), ("threads", 3)]


def test_weak_scaling_grows_the_work_with_the_workers():
    for scaling, kinds in {"weak": {"weak"}, "both": {"strong", "weak"}}.items():
        serial, *swept = sweep_of(choice(backends=("threads",), scaling=scaling), [100], n_cpus=4).configurations
        assert (serial.kind, serial.n_items) == ("strong", 100)
        assert {c.kind for c in swept} == kinds
        assert {c.n_items // c.n_workers for c in swept if c.kind == "weak"} == {100}


def test_each_level_is_combined_with_each_and_the_serial_backend_runs_once_per_variant():
    levels = {"variants": ("copied", "shared"), "schedules": ("static", "guided"), "blas_threads": (1, 2)}
    swept = sweep_of(choice(backends=("threads",), workers=(1,), **levels), [10, 20], n_cpus=2).configurations
    assert sum(c.backend == "threads" for c in swept) == 2 * 2 * 2 * 2
    assert sum(c.backend == "serial" for c in swept) == 2 * 2 * 2
    assert len(set(swept)) == len(swept)


# --- recording and continuing ------------------------------------------------------------------------------


def test_a_script_and_the_command_record_the_same_and_each_continues_the_other(script, tmp_path):
    for how, other in ([(sys.executable,), (PARCOMPUTE, "run")], [(PARCOMPUTE, "run"), (sys.executable,)]):
        folder = tmp_path / Path(how[0]).name
        path = folder / "counting.h5"
        status, out, err = command(*how, script, *SMALL, "--results", folder)
        assert (status, err) == (0, "")
        assert visits(path) == ALL_OF_SMALL
        assert all(run.verified and run.timelines for run in record.read(path, timelines=True).runs)
        assert out.startswith("How many are there? Ones, counted.\n4,000 items, seed 1; serial, processes on 1, 2 of ")
        assert len(re.findall(r"^round \d.*verified", out, re.MULTILINE)) == 6
        assert "\x1b" not in out  # plain lines where there is no terminal
        before = path.read_bytes()
        status, out, err = command(*other, script, *SMALL, "--results", folder)
        assert (status, err) == (0, "")
        assert f"{path} has 6 of these runs; none to make" in out
        assert "round 1" not in out
        assert path.read_bytes() == before


# The signals by which a batch system announces the end of its job, and what the program says then.
ANNOUNCE = {name: f"parcompute: {name} has announced the end of the job" for name in ("SIGUSR1", "SIGTERM")}


@pytest.mark.parametrize("method", ["SIGINT", "SIGKILL", *ANNOUNCE])
def test_an_interrupted_sweep_is_completed_by_the_same_command(script, tmp_path, method):
    path, call = tmp_path / "counting.h5", [sys.executable, script, *SMALL, "--results", tmp_path]
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    # Ctrl-C in a terminal reaches the whole process group; a group of its own, so that this one is spared.
    job = {"PARCOMPUTE_JOB_END_TIME": "99999999999"} if method in ANNOUNCE else {}
    with subprocess.Popen(call, **pipes, env=environment(**HOLD_IN_THE_THIRD_RUN, **job), process_group=0) as running:
        try:
            assert any(line == "holding\n" for line in running.stdout)
            if method == "SIGKILL":
                running.kill()
            else:
                os.killpg(running.pid, signal.Signals[method])
            _, err = running.communicate(timeout=TIMEOUT_S)
        finally:
            running.kill()
    if method == "SIGINT":
        assert running.returncode == 130
        assert err.strip() == "interrupted; what was finished is recorded, the same command continues"
    if method in ANNOUNCE:
        assert (running.returncode, err.strip()) == (75, ANNOUNCE[method])
    kept = visits(path)
    assert sum(kept.values()) == 2
    status, out, err = command(*call)
    assert (status, err) == (0, "")
    assert f"{path} has 2 of these runs; 4 to make" in out
    assert visits(path) == ALL_OF_SMALL


def test_a_sweep_begins_no_run_that_its_batch_job_has_no_time_for(experiment, tmp_path, capsys, monkeypatch):
    left_s = iter([1e6] * 5 + [5.0] * 9)  # two runs warm up, then one of each in a round
    monkeypatch.setattr(deadline, "left_s", lambda: next(left_s))
    assert run_here(experiment, tmp_path, "--rounds", "3") == 75
    err = capsys.readouterr().err
    assert re.match(
        r"parcompute: the job ends in 5 s, and a run of \w+ × 1 may take \d+\.\d s; what was finished is", err
    )
    assert sum(visits(tmp_path / "counting.h5").values()) == 3
    monkeypatch.undo()
    assert run_here(experiment, tmp_path, "--rounds", "3") == 0
    assert "has 3 of these runs; 3 to make" in capsys.readouterr().out


def test_more_rounds_and_more_backends_are_added_to_those_on_record(experiment, tmp_path, capsys):
    assert run_here(experiment, tmp_path, backends="serial") == 0
    assert run_here(experiment, tmp_path, "--rounds", "2") == 0
    assert "has 1 of these runs; 3 to make" in capsys.readouterr().out
    assert visits(tmp_path / "counting.h5") == Counter((r, b, 1) for r in (0, 1) for b in ("serial", "threads"))


@pytest.mark.parametrize("change", [("--seed", "2"), ("--preset", "default")])
def test_another_seed_or_size_is_a_study_beside(experiment, tmp_path, capsys, change):
    run_here(experiment, tmp_path)
    run_here(experiment, tmp_path, *change)
    second = capsys.readouterr().out
    assert "of these runs" not in second
    runs = record.read(tmp_path / "counting.h5").runs
    assert sorted(Counter((run.seed, run.configuration.n_items) for run in runs).values()) == [2, 2]


def test_what_is_told_is_of_the_study_that_was_asked_for_and_not_of_the_newest(experiment, tmp_path, capsys):
    for seed in ("1", "2", "1"):
        capsys.readouterr()
        run_here(experiment, tmp_path, "--seed", seed)
    out = capsys.readouterr().out
    assert "has 2 of these runs; none to make" in out
    assert "counting: 2 runs of 4000 items, seed 1, " in out


def test_changed_code_begins_anew_and_says_why(experiment, script, tmp_path, capsys):
    run_here(experiment, tmp_path)
    script.write_text(script.read_text() + "\n# changed\n")
    assert run_here(experiment, tmp_path) == 0
    out = capsys.readouterr().out
    assert "has 2 runs under other conditions, kept apart: code_digest '" in out
    assert "of these runs" not in out
    assert len(record.read(tmp_path / "counting.h5").runs) == 4


def test_figures_are_drawn_of_the_study_that_was_asked_for(experiment, tmp_path, monkeypatch, capsys):
    asked = []
    name = "counting-speedup.png"
    monkeypatch.setattr(pages, "save_study", lambda study, path: asked.append(study) or [path.with_name(name)])
    run_here(experiment, tmp_path, "--seed", "2")
    assert [(study.seed, study.n_items) for study in asked] == [(2, 4_000)]
    assert capsys.readouterr().out.endswith(f"\n{tmp_path}/counting.h5\n{tmp_path}/counting-speedup.png\n")


def test_nothing_is_drawn_of_a_study_in_which_nothing_can_be_compared(experiment, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(pages, "save_study", lambda *of: pytest.fail("drawn"))
    assert run_here(experiment, tmp_path, backends="serial") == 0
    monkeypatch.setattr(measure, "disturbances", lambda *counters: "others computed")
    assert run_here(experiment, tmp_path, "--seed", "2") == 0
    out = capsys.readouterr().out
    assert "serial runs only, nothing to compare them with: " in out
    assert "no run counts: " in out
    assert out.count("disturbed: others computed") == 2
    assert "what was disturbed is left out as far as there are others; --budget 120 allows more runs" in out


def test_results_of_another_command_have_to_agree_with_those_on_record(experiment, tmp_path, monkeypatch, capsys):
    run_here(experiment, tmp_path, backends="serial")
    always = {"n_items": experiment.sizes, "truth": lambda found, n_items: pc.Check(found, n_items, 10, "10")}
    monkeypatch.setenv("WRONG", "1")
    assert run_here(pc.experiment(**always)(experiment.function), tmp_path, backends="threads") == 1
    assert "threads × 1: the result has other bits" in capsys.readouterr().err


# --- exit statuses and what is said ------------------------------------------------------------------------


def test_a_wrong_result_is_status_1_and_its_time_is_not_shown(experiment, tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("WRONG", "3")
    assert run_here(experiment, tmp_path) == 1
    out, err = capsys.readouterr()
    assert err.count("\n") == 1
    assert "parcompute: threads × 1: the result is 4003, 3 from 4000, NOT within equality (0)" in err
    (wrong,) = (line for line in out.splitlines() if "WRONG" in line)
    assert re.fullmatch(r"warm-up  threads × 1  WRONG RESULT( .*)?", wrong)
    assert " s " not in wrong.partition("disturbed")[0]
    monkeypatch.delenv("WRONG")
    assert run_here(experiment, tmp_path) == 0  # the wrong run is on record and is made again
    assert [run.verified for run in record.read(tmp_path / "counting.h5").runs].count(False) == 1


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("--preset", "huge"), "'huge' is not one of 'quick', 'default'"),
        (("--backends", "serial,fast"), "'fast' is unknown; pass some of serial, threads, processes"),
        (("--backends", "serial,16"), "'16' is unknown"),
        (("--backends", ""), "'' is unknown"),
        (("--workers", "0"), "'0': pass numbers from 1 to 4096"),
        (("--workers", "1,-2"), "'1,-2': pass numbers"),
        (("--workers", "1000000"), "'1000000': pass numbers"),
        (("--workers", "two"), "'two': pass numbers"),
        (("--schedules", "clever"), "schedule='clever' is unknown; pass one of static, dynamic, guided"),
        (("--schedules", "guided,dynamic,0"), "the chunk size is '0'"),
        (("--start-methods", "teleport"), "'teleport' is unknown; pass some of"),
        (("--threads-per-worker", "0"), "0 is not in the range x>=1"),
        (("--rounds", "0"), "0 is not in the range x>=1"),
        (("--seed", "-1"), "-1 is not in the range"),
        (("--sede", "1"), "No such option"),
    ],
)
def test_a_wrong_option_is_one_line_and_status_2(experiment, tmp_path, capsys, arguments, message):
    assert run_here(experiment, tmp_path / "results", *arguments) == 2
    out, err = capsys.readouterr()
    assert out == ""
    assert err.startswith("parcompute: ")
    assert err.endswith("see --help\n")
    assert err.count("\n") == 1
    assert message in err
    assert not (tmp_path / "results").exists()


def test_schedules_may_carry_their_chunk_size(experiment, tmp_path):
    assert run_here(experiment, tmp_path, "--schedules", "guided,dynamic, 2,static", backends="threads") == 0
    runs = record.read(tmp_path / "counting.h5").runs
    assert {run.configuration.schedule for run in runs} == {"guided", "dynamic,2", "static"}


def test_a_file_of_another_experiment_is_refused_and_left_as_it_is(experiment, tmp_path, capsys):
    record.Record.open(tmp_path / "counting.h5", "pricing").close()
    before = (tmp_path / "counting.h5").read_bytes()
    assert run_here(experiment, tmp_path) == 2
    assert "holds experiment 'pricing', not 'counting'" in one_line(capsys)
    assert (tmp_path / "counting.h5").read_bytes() == before


def test_a_damaged_file_is_refused_and_left_as_it_is(experiment, tmp_path, capsys):
    run_here(experiment, tmp_path)
    capsys.readouterr()
    path = tmp_path / "counting.h5"
    path.write_bytes(path.read_bytes()[:-100])
    before = path.read_bytes()
    assert run_here(experiment, tmp_path) == 2
    assert str(path) in one_line(capsys)
    assert path.read_bytes() == before


def test_a_folder_that_cannot_be_written_is_one_line(experiment, tmp_path, capsys):
    (tmp_path / "file").write_text("no folder")
    assert run_here(experiment, tmp_path / "file" / "results") == 2
    assert "cannot be written" in one_line(capsys)


def one_line(capsys):
    """Return what was said on standard error, which is one line."""
    err = capsys.readouterr().err
    assert err.startswith("parcompute: ")
    assert err.count("\n") == 1
    return err


def test_a_mistake_in_the_experiments_code_shows_its_place(experiment, tmp_path, capsys):
    def mistaken(executor, n_items, seed):
        return executor.reduce_blocks(lambda block: block.length, n_items=n_items)

    broken = pc.experiment(n_items=experiment.sizes, truth=experiment.truth)(mistaken)
    assert run_here(broken, tmp_path, backends="threads") == 2
    err = capsys.readouterr().err
    assert "in <lambda>" in err
    assert "AttributeError" in err
    assert "block 0" in err.splitlines()[-1]


def test_a_mistake_in_the_truth_shows_its_place(experiment, tmp_path, capsys):
    def mistaken(found, n_items):
        raise ValueError("I am in the truth")

    assert run_here(pc.experiment(n_items=experiment.sizes, truth=mistaken)(experiment.function), tmp_path) == 2
    err = capsys.readouterr().err
    assert "in mistaken" in err
    assert err.splitlines()[-1] == "parcompute: I am in the truth"


def test_help_names_sizes_and_has_an_example(experiment, capsys):
    with pytest.raises(SystemExit) as left:
        experiment.main(["--help"])
    assert not left.value.code
    out = " ".join(capsys.readouterr().out.split())
    assert "How many are there? Ones, counted." in out
    assert "quick 4,000, default 8,000" in out
    assert "Example: python counting.py --preset quick" in out


# --- other ways to sit in front of it ----------------------------------------------------------------------


def test_more_workers_than_cpus_are_said_once_marked_and_not_fitted(experiment, tmp_path, capsys, recwarn):
    many = str(limits.usable_cpus() + 2)
    assert run_here(experiment, tmp_path, "--rounds", "6", workers=f"1,{many}") == 0
    out, err = capsys.readouterr()
    assert (err, list(recwarn)) == ("", [])
    assert out.count("these runs are recorded and left out of fits") == 1
    assert re.search(rf"^threads +{many}\* ", out, re.MULTILINE)
    assert re.search(r"^threads +1  ", out, re.MULTILINE)
    assert {run.configuration.n_workers for run in record.read(tmp_path / "counting.h5").runs} == {1, int(many)}


def test_the_number_of_workers_may_come_from_the_environment(experiment, tmp_path, monkeypatch):
    monkeypatch.setenv("PARCOMPUTE_WORKERS", "1")
    assert run_here(experiment, tmp_path, workers="") == 0
    assert {run.configuration.n_workers for run in record.read(tmp_path / "counting.h5").runs} == {1}


def test_results_go_to_a_folder_of_this_machine_below_the_current_one(experiment, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(SystemExit):
        experiment.main(["--preset", "quick", "--rounds", "1", "--backends", "serial"])
    assert list(tmp_path.glob("results/*/counting.h5")) == [tmp_path / "results" / machine_name() / "counting.h5"]
    assert f"\nresults/{machine_name()}/counting.h5\n" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("node", "name"), [("node-7.cluster", "node-7.cluster"), ("my laptop/2", "my-laptop-2"), ("", "machine")]
)
def test_a_machines_name_is_fit_for_a_folder(monkeypatch, node, name):
    monkeypatch.setattr("platform.node", lambda: node)
    assert machine_name() == name


def test_it_runs_without_a_home_and_without_a_path(script, tmp_path):
    sources = f"PYTHONPATH={os.environ.get('PYTHONPATH', '')}"
    call = ["/usr/bin/env", "-i", sources, PARCOMPUTE, "run", script, *SMALL, "--rounds", "1", "--results", tmp_path]
    status, out, err = command(*call)
    assert (status, err) == (0, "")
    assert len(re.findall(r"^round \d.*verified", out, re.MULTILINE)) == 3


@pytest.mark.parametrize("columns", [60, 120])
def test_a_terminal_shows_a_table_that_fits_it(script, tmp_path, columns):
    status, text = in_a_terminal([sys.executable, str(script), *SMALL, "--results", str(tmp_path)], columns)
    assert status == 0
    for heading in ("backend", "workers", "runs", "last (s)", "median (s)", "speed-up"):
        assert heading in text
    assert re.search(r"\d of 9  \d+:\d\d left  round [12]/2: ", text)
    assert "9 of 9" in text
    lines = re.split(r"[\r\n]+", text[: text.rindex("counting: 6 runs")])  # what follows is the table of the study
    table = [line for line in lines if re.match(r"[█░]+ \d of|backend  |(serial|processes)  ", line)]
    assert {line.split()[0] for line in table} >= {"backend", "serial", "processes"}
    assert max(map(len, table)) <= columns


def in_a_terminal(call, columns):
    """Run a command in a terminal of a certain width; return its status and what was shown, without colours."""
    ours, theirs = pty.openpty()
    fcntl.ioctl(theirs, termios.TIOCSWINSZ, struct.pack("HHHH", 24, columns, 0, 0))
    ends = {"stdin": theirs, "stdout": theirs, "stderr": theirs}
    running = subprocess.Popen(call, **ends, env=environment(TERM="xterm-256color"))
    os.close(theirs)
    shown = b""
    try:
        while select.select([ours], [], [], TIMEOUT_S)[0]:
            try:
                if not (part := os.read(ours, 4096)):
                    break
            except OSError:  # EIO: Linux's word for the end of a terminal
                break
            shown += part
        status = running.wait(TIMEOUT_S)
    finally:
        running.kill()
        running.wait()
        os.close(ours)
    return status, re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", shown.decode())
