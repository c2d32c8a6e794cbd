"""What is released is whole: the wheel has the package, the sdist what its own tests read, and all name one version."""

import configparser
import datetime
import re
import subprocess
import tarfile
import tomllib
import zipfile
from pathlib import Path

import pytest
import yaml

import parcompute

ROOT = Path(__file__).parents[1]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
STEM = f"parcompute-{parcompute.__version__}"


@pytest.fixture(scope="module")
def built(tmp_path_factory):
    """Build both as `python -m build` does, but in this process; return their names' parts."""
    pytest.importorskip("hatchling", reason="hatchling, which builds the project, is not installed")
    from hatchling.builders.sdist import SdistBuilder
    from hatchling.builders.wheel import WheelBuilder

    folder = str(tmp_path_factory.mktemp("dist"))
    (sdist,) = SdistBuilder(str(ROOT)).build(directory=folder, versions=["standard"])
    (wheel,) = WheelBuilder(str(ROOT)).build(directory=folder, versions=["standard"])
    return sdist, wheel


def names_of_the_sdist(sdist):
    with tarfile.open(sdist) as archive:
        return {name.removeprefix(f"{STEM}/") for name in archive.getnames()}


def names_of_the_wheel(wheel):
    with zipfile.ZipFile(wheel) as archive:
        return set(archive.namelist())


def test_the_wheel_has_the_package_and_what_describes_it(built):
    names = names_of_the_wheel(built[1])
    sources = {path for path in (ROOT / "src").rglob("*") if path.is_file() and "__pycache__" not in path.parts}
    described = {name for name in names if name.startswith(f"{STEM}.dist-info/")}
    assert names - described == {str(path.relative_to(ROOT / "src")) for path in sources}
    assert {name.partition("/")[2] for name in described} == {
        "METADATA", "WHEEL", "RECORD", "entry_points.txt", "licenses/LICENSE",
    }  # fmt: skip
    assert "parcompute/py.typed" in names


def test_the_wheel_brings_the_command(built):
    with zipfile.ZipFile(built[1]) as archive:
        entry_points = configparser.ConfigParser()
        entry_points.read_string(archive.read(f"{STEM}.dist-info/entry_points.txt").decode())
    assert dict(entry_points["console_scripts"]) == PROJECT["scripts"]


def test_the_sdist_has_all_that_git_has(built):
    listed = subprocess.run(["git", "-C", ROOT, "ls-files"], capture_output=True, text=True, check=False)
    if listed.returncode or not (ROOT / ".git").exists():
        pytest.skip("no git checkout, as in an unpacked sdist: what belongs to it is not known")
    there = {name for name in listed.stdout.splitlines() if (ROOT / name).is_file()}
    assert there - names_of_the_sdist(built[0]) == set()


def test_the_sdist_has_nothing_that_tools_leave_behind(built):
    parts = {part for name in names_of_the_sdist(built[0]) for part in Path(name).parts}
    assert (
        parts & {".git", ".venv", "__pycache__", ".pytest_cache", ".mypy_cache", ".ruff_cache", "dist", "build"}
        == set()
    )


def test_the_version_has_a_dated_section_in_the_changelog():
    text = (ROOT / "CHANGELOG.md").read_text(encoding="utf-8")
    sections = re.findall(r"^## (.+)$", text, re.MULTILINE)
    assert sections[0] == "[Unreleased]"
    versions = [re.fullmatch(r"\[(\d+\.\d+\.\d+)\] - (\d{4}-\d\d-\d\d)", section) for section in sections[1:]]
    assert all(versions), sections
    assert versions[0][1] == re.match(r"\d+\.\d+\.\d+", parcompute.__version__)[0]
    assert datetime.date.fromisoformat(versions[0][2])


def test_each_supported_python_has_a_classifier_and_a_leg():
    found = [line.rpartition(" ")[2] for line in PROJECT["classifiers"] if re.search(r":: 3\.\d+$", line)]
    (legs,) = re.findall(r"^for version in (.*); do$", (ROOT / ".ci" / "run").read_text(), re.MULTILINE)
    assert found == legs.split()
    assert PROJECT["requires-python"] == f">={found[0]}"


# --- CITATION.cff: the keys of the format's schema 1.2.0 ---------------------------------------------------

REQUIRED = {"cff-version", "message", "title", "authors"}
KNOWN = REQUIRED | {
    "abstract", "commit", "contact", "date-released", "doi", "identifiers", "keywords", "license", "license-url",
    "preferred-citation", "references", "repository", "repository-artifact", "repository-code", "type", "url",
    "version",
}  # fmt: skip
ENTITY = {
    "address", "alias", "city", "country", "date-end", "date-start", "email", "fax", "location", "name", "orcid",
    "post-code", "region", "tel", "website",
}  # fmt: skip


def citation():
    return yaml.safe_load((ROOT / "CITATION.cff").read_text(encoding="utf-8"))


def test_the_citation_is_one_of_the_format():
    found = citation()
    assert REQUIRED <= set(found) <= KNOWN
    assert found["cff-version"] == "1.2.0"
    assert found["type"] in {"software", "dataset"}
    texts = ("message", "title", "abstract", "version", "license", "date-released")
    assert all(isinstance(found[key], str) and found[key] for key in texts)
    assert found["keywords"]
    assert len(set(found["keywords"])) == len(found["keywords"])
    assert all(set(author) <= ENTITY and author["name"] for author in found["authors"])


def test_the_citation_says_what_pyproject_and_the_changelog_say():
    found = citation()
    assert found["version"] == parcompute.__version__
    assert found["license"] == PROJECT["license"]
    assert found["authors"] == PROJECT["authors"]
    assert f"## [{found['version']}] - {found['date-released']}" in (ROOT / "CHANGELOG.md").read_text(encoding="utf-8")
