"""The README's samples run as they stand."""

import re
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parent.parent
SAMPLES = re.findall(r"```python\n(.*?)```", (ROOT / "README.md").read_text(), flags=re.DOTALL)
# The README leads to it.
TUTORIAL = (ROOT / "docs/tutorials/scaling-study.md").read_text()
(EXPERIMENT,) = re.findall(r"```\{code-cell\}\n%%writefile squares\.py\n(.*?)```", TUTORIAL, flags=re.DOTALL)


def test_the_example_runs_as_a_script_without_a_guard(tmp_path):
    script = tmp_path / "example.py"
    script.write_text(SAMPLES[0])
    done = subprocess.run([sys.executable, script], cwd=tmp_path, capture_output=True, text=True, timeout=120)
    assert (done.returncode, done.stderr) == (0, "")
    assert "useful" in done.stdout


def test_the_calls_of_other_packages_run(tmp_path):
    script = tmp_path / "others.py"
    script.write_text(SAMPLES[1] + "print(len(roots), round(best.fun, 6), *best.x.round(3))")
    done = subprocess.run([sys.executable, script], capture_output=True, text=True, timeout=120)
    assert (done.stdout, done.stderr) == ("100 0.0 1.0 1.0 1.0\n", "")


def test_the_experiment_runs_is_verified_and_drawn(tmp_path):
    script = tmp_path / "squares.py"
    script.write_text(EXPERIMENT)
    options = ["--preset", "quick", "--rounds", "1", "--backends", "serial,processes", "--workers", "1,2"]
    done = subprocess.run(
        [sys.executable, script, *options, "--results", tmp_path], capture_output=True, text=True, timeout=120
    )
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "squares.h5").exists()
    assert len(re.findall(r"^round .* verified", done.stdout, flags=re.MULTILINE)) == 3


def test_the_commands_of_the_readme_are_targets_of_the_makefile():
    targets = set(re.findall(r"^make (\S+)", (ROOT / "README.md").read_text(), flags=re.MULTILINE))
    makefile = (ROOT / "Makefile").read_text()
    assert targets
    for target in targets:
        assert (
            f"\n{target}:" in makefile or (ROOT / "experiments" / f"{target.removeprefix('experiment-')}.py").exists()
        )
