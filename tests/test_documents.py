"""Every sample of the guides runs as a script, and each figure that a document shows is there."""

import importlib.util
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

from parcompute.values.parts import PARTS, WORDS

ROOT = Path(__file__).parent.parent
# Each sample is a program of its own; those of a how-to page are one.
ALONE = ("processes-or-threads", "howto/data")
TOGETHER = (
    *(f"howto/{name}" for name in ("backend", "state", "errors", "debugging", "progress", "random", "nested")),
    "explanation/same-bits",
)


def samples_of(page):
    return re.findall(r"```python\n(.*?)```", (ROOT / "docs" / f"{page}.md").read_text("utf-8"), flags=re.DOTALL)


SAMPLES = {f"{page}-{number}": sample for page in ALONE for number, sample in enumerate(samples_of(page))}
SAMPLES |= {page: "\n".join(samples_of(page)) for page in TOGETHER}


def run(folder, program):
    script = folder / "sample.py"
    script.write_text(program)
    done = subprocess.run([sys.executable, script], cwd=folder, capture_output=True, text=True, timeout=120)
    assert (done.returncode, done.stderr) == (0, "")
    return done.stdout


@pytest.mark.parametrize("name", SAMPLES)
def test_a_sample_of_the_guide_runs(tmp_path, name):
    assert run(tmp_path, SAMPLES[name]) or "assert" in SAMPLES[name]


MOVING, *SECTIONS = (ROOT / "docs/compare/moving.md").read_text("utf-8").split("\n## From ")


@pytest.mark.parametrize("section", SECTIONS, ids=lambda section: section.partition("\n")[0])
def test_what_is_moved_over_gives_what_it_gave(tmp_path, section):
    (common,), (needs,) = (re.findall(r"```python\n(.*?)```", text, flags=re.DOTALL) for text in (MOVING, section))
    rows = re.findall(r"^\| `(.*)` \| `(.*)` \|$", section, flags=re.MULTILINE)
    assert rows
    module = re.search(r"^(?:from|import) (\w+)", needs)[1]
    has_it = module != "mpi4py" and importlib.util.find_spec(module)  # MPI starts workers by a launcher
    lines = [f"assert np.all(({before}) == ({after}))" if has_it else f"({after})" for before, after in rows]
    run(tmp_path, "\n".join([common, needs if has_it else "", *lines, "ex.shutdown()"]))


DOCUMENTS = [
    *sorted((ROOT / "docs").rglob("*.md")),
    ROOT / "README.md",
    ROOT / "CONTRIBUTING.md",
    ROOT / "results/README.md",
]


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda path: str(path.relative_to(ROOT)))
def test_what_a_document_links_to_is_there(document):
    links = re.findall(r"\]\(([^)#:]+)\)", document.read_text(encoding="utf-8"))
    assert [link for link in links if not (document.parent / link).exists()] == []


def test_each_page_that_a_docstring_or_a_comment_names_is_there():
    sources = [
        path for folder in ("src", "tests", "experiments", "benchmarks") for path in (ROOT / folder).rglob("*.py")
    ]
    sources += [ROOT / "CHANGELOG.md", *DOCUMENTS]
    named = {page for path in sources for page in re.findall(r"(?<![\w/.])docs/[\w/-]+\.md", path.read_text("utf-8"))}
    assert len(named) > 10
    assert [page for page in sorted(named) if not (ROOT / page).exists()] == []


def test_each_command_that_a_document_shows_claims_by_is_there():
    text = "\n".join(path.read_text("utf-8") for path in DOCUMENTS)
    commands = [shlex.split(command) for command in re.findall(r"\bpytest (tests/[^`\n#]+)", text)]
    assert len(commands) > 50
    for command in commands:
        paths = [ROOT / word.split("::")[0] for word in command if word.startswith("tests/")]
        assert [path for path in paths if not path.exists()] == [], command
        if "-k" in command:
            sources = [source for path in paths for source in (path.rglob("test_*.py") if path.is_dir() else [path])]
            tests = "\n".join([*map(str, sources), *(source.read_text("utf-8") for source in sources)])
            words = set(re.findall(r"\w+", command[command.index("-k") + 1])) - {"or", "and", "not", "NAME"}
            assert all(word in tests for word in words), command
    targets = set(re.findall(r"(?:`|^)make ([a-z][\w-]*)", text, re.M))
    made = set(re.findall(r"^([\w-]+):", (ROOT / "Makefile").read_text("utf-8"), re.M))
    made |= {f"{verb}-{path.stem}" for verb in ("experiment", "submit") for path in ROOT.glob("experiments/[!_]*.py")}
    assert targets - made - {"submit-NAME", "experiment-NAME"} == set()


def test_every_experiment_has_a_paragraph_with_a_figure():
    text = (ROOT / "docs" / "experiments.md").read_text(encoding="utf-8")
    for experiment in ROOT.glob("experiments/[!_]*.py"):
        section = re.search(rf"^## {experiment.stem}\n(.*?)(?=^## |\Z)", text, flags=re.MULTILINE | re.DOTALL)
        assert section, experiment.stem
        assert f"results/reference/{experiment.stem}-" in section[1], experiment.stem


def test_the_page_of_the_ledger_has_its_parts_in_their_words():
    rows = re.findall(
        r"^\| `(\w+)` \| (.*?) \| (.*?)(?:; without .*)? \|$",
        (ROOT / "docs" / "explanation" / "ledger.md").read_text("utf-8"),
        re.M,
    )
    assert {part: told for part, _, told in rows} == PARTS
    assert {part: words for part, words, _ in rows} == WORDS
