"""make is the front door: it lists what there is, and passes on just the options that there are."""

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from parcompute.experiments import command_line

ROOT = Path(__file__).resolve().parents[1]
EXPERIMENTS = sorted(path.stem for path in (ROOT / "experiments").glob("[!_]*.py"))
MAKEFILE = (ROOT / "Makefile").read_text()

pytestmark = pytest.mark.skipif(shutil.which("make") is None, reason="no make")


def make(*arguments):
    """Call make with this environment active; return status, and the two streams."""
    inherited = {name: value for name, value in os.environ.items() if not name.startswith(("MAKE", "MFLAGS"))}
    for name in (*variables(), "ARGS"):
        inherited.pop(name, None)
    path = f"{Path(sys.executable).parent}{os.pathsep}{inherited.get('PATH', os.defpath)}"
    done = subprocess.run(
        ["make", "--no-print-directory", "-C", ROOT, *arguments],
        capture_output=True, text=True, timeout=120, env=inherited | {"PATH": path},
    )  # fmt: skip
    return done.returncode, done.stdout, done.stderr


def variables():
    (line,) = re.findall(r"^OPTIONS := (.*)$", MAKEFILE, re.MULTILINE)
    return line.split()


LEVELS = {
    "variants": ("one", "other"),
    "backends": ("serial",),
    "schedules": ("guided",),
    "start_methods": ("fork",),
    "blas_threads": (1,),
}


def options_of_an_experiment(capsys):
    with pytest.raises(SystemExit):
        command_line.command_line("name", "question", {"default": (1,)}, LEVELS, None, ["--help"])
    return set(re.findall(r"^  --([a-z-]+)", capsys.readouterr().out, re.MULTILINE)) - {"help"}


def test_the_variables_are_just_the_options_of_an_experiment(capsys):
    assert {name.lower().replace("_", "-") for name in variables()} == options_of_an_experiment(capsys)


def test_help_lists_every_target_and_every_experiment():
    status, out, err = make("help")
    assert (status, err) == (0, "")
    listed = set(re.findall(r"^make (\S+)", out, re.MULTILINE))
    phony = {name for line in re.findall(r"^\.PHONY: (.*)$", MAKEFILE, re.MULTILINE) for name in line.split()}
    assert listed == {name for name in phony if not name.startswith("$")} | {"experiment-%", "submit-%"}
    assert out.splitlines()[-1] == f"experiments: {' '.join(EXPERIMENTS)}"


def test_help_is_what_is_made_without_a_target():
    assert make()[1] == make("help")[1]


@pytest.mark.parametrize("name", EXPERIMENTS)
def test_an_experiment_is_run_by_the_command(name):
    status, out, _ = make("-n", f"experiment-{name}", "PRESET=quick", "WORKERS=1,2")
    assert status == 0
    (line,) = out.splitlines()
    parcompute, *rest = line.split()
    assert Path(parcompute) == Path(sys.executable).with_name("parcompute")
    assert rest == ["run", f"experiments/{name}.py", "--preset", "'quick'", "--workers", "'1,2'"]


@pytest.mark.parametrize("name", variables())
def test_each_variable_becomes_its_option(name):
    _, out, _ = make("-n", f"experiment-{EXPERIMENTS[0]}", f"{name}=a b")
    assert out.split(".py ", 1)[1].strip() == f"--{name.lower().replace('_', '-')} 'a b'"


def test_all_experiments_are_quick_unless_asked_otherwise():
    assert make("-n", "experiments")[1].count("--preset 'quick'") == len(EXPERIMENTS)
    assert make("-n", "experiments", "PRESET=full")[1].count("--preset 'full'") == len(EXPERIMENTS)


def test_an_unknown_experiment_is_one_line_with_those_that_there_are_and_status_2():
    status, out, err = make("experiment-nix", "PRESET=quick")
    assert (status, out) == (2, "")
    said = [line for line in err.splitlines() if not line.startswith("make: ***")]  # make's own word for a failure
    assert said == [f"there is no experiments/nix.py; there are: {' '.join(EXPERIMENTS)}"]


def test_an_experiment_is_submitted_with_its_options_and_those_of_the_job(tmp_path):
    asked = ("NODES=1,2", "TIME=30:00", "CPUS_PER_TASK=4", "ENGINE=dask", "PRESET=quick", f"RESULTS={tmp_path}")
    status, out, err = make("submit-triad", *asked, "ARGS=--dry-run -- --mem=8G")
    assert (status, err) == (0, "")
    for line in ("--nodes=2", "--time=30:00", "--cpus-per-task=4", "--mem=8G"):
        assert f"#SBATCH {line}\n" in out
    assert "run experiments/triad.py --results" in out
    assert "--preset quick" in out
