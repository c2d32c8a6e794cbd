"""Every sample of the guides runs as a script, and each figure that a document shows is there."""

import re
import subprocess
import sys
from pathlib import Path

import pytest

from parcompute.values.parts import PARTS, WORDS

ROOT = Path(__file__).parent.parent
GUIDES = [(ROOT / "docs" / f"{name}.md").read_text(encoding="utf-8") for name in ("processes-or-threads", "data")]
SAMPLES = [sample for guide in GUIDES for sample in re.findall(r"```python\n(.*?)```", guide, flags=re.DOTALL)]


@pytest.mark.parametrize("number", range(len(SAMPLES)))
def test_a_sample_of_the_guide_runs(tmp_path, number):
    script = tmp_path / "sample.py"
    script.write_text(SAMPLES[number])
    done = subprocess.run([sys.executable, script], cwd=tmp_path, capture_output=True, text=True, timeout=120)
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout or "assert" in SAMPLES[number]


@pytest.mark.parametrize("document", [*sorted(ROOT.glob("docs/*.md")), ROOT / "README.md"], ids=lambda path: path.name)
def test_what_a_document_links_to_is_there(document):
    links = re.findall(r"\]\(([^)#:]+)\)", document.read_text(encoding="utf-8"))
    assert [link for link in links if not (document.parent / link).exists()] == []


def test_every_experiment_has_a_paragraph_with_a_figure():
    text = (ROOT / "docs" / "experiments.md").read_text(encoding="utf-8")
    for experiment in ROOT.glob("experiments/[!_]*.py"):
        section = re.search(rf"^## {experiment.stem}\n(.*?)(?=^## |\Z)", text, flags=re.MULTILINE | re.DOTALL)
        assert section, experiment.stem
        assert f"results/reference/{experiment.stem}-" in section[1], experiment.stem


def test_the_page_of_the_ledger_has_its_parts_in_their_words():
    rows = re.findall(
        r"^\| `(\w+)` \| (.*?) \| (.*?)(?:; without .*)? \|$", (ROOT / "docs" / "ledger.md").read_text("utf-8"), re.M
    )
    assert {part: told for part, _, told in rows} == PARTS
    assert {part: words for part, words, _ in rows} == WORDS
