"""What the container files say is so: the base, the packages and the commands that they promise. None is built."""

import re
from pathlib import Path

import pytest
import yaml

ROOT = Path(__file__).parents[2]
FILES = {"Containerfile": ROOT / "Containerfile", "Apptainer": ROOT / "containers" / "parcompute.def"}
README_COMMANDS = re.findall(r"^make (?:experiment-montecarlo|test)\b", (ROOT / "README.md").read_text(), re.MULTILINE)


@pytest.mark.parametrize("kind", FILES)
def test_it_runs_both_commands_of_the_readme(kind):
    text = FILES[kind].read_text()
    assert len(README_COMMANDS) == 2
    for command in README_COMMANDS:
        verb = command.removeprefix("make ")
        assert re.search(rf"make (-C \S+ )?{verb}", text), command
    needed = {"make", "python3", "python3-venv"}
    (installed,) = re.findall(r"apt-get install -y --no-install-recommends (.*?)(?: \\|$)", text, re.MULTILINE)
    assert needed <= set(installed.split())
    assert re.search(r"pip install --no-cache-dir --editable '(/parcompute|\.)\[dev\]'", text)
    assert "/opt/parcompute/bin:$PATH" in text  # `make` finds the environment that has parcompute


def test_both_begin_with_the_same_base():
    bases = {re.search(r"debian:\S+", path.read_text())[0] for path in FILES.values()}
    assert len(bases) == 1


def test_instructions_of_the_containerfile_are_known_and_in_order():
    text = re.sub(r"\\\n", " ", FILES["Containerfile"].read_text())
    lines = [line for line in text.splitlines() if line.strip() and not line.startswith("#")]
    words = [line.split()[0] for line in lines]
    assert words[0] == "FROM"
    assert set(words) <= {"FROM", "RUN", "ENV", "WORKDIR", "COPY", "CMD"}
    assert words.index("COPY") < len(words) - 1 - words[::-1].index("RUN")
    assert yaml.safe_load(lines[-1].removeprefix("CMD ")) == ["parcompute", "machine"]


def test_sections_of_the_definition_are_known():
    text = FILES["Apptainer"].read_text()
    assert re.findall(r"^%(\w+)", text, re.MULTILINE) == ["files", "post", "environment", "runscript"]
    assert re.search(r"^Bootstrap: docker\nFrom: debian:", text, re.MULTILINE)


def test_what_a_build_needs_is_not_ignored():
    ignored = (ROOT / ".containerignore").read_text().split()
    assert not {"src", "Makefile", "pyproject.toml", "experiments", "tests", "README.md", "LICENSE"} & set(ignored)
    assert ".git" in ignored
