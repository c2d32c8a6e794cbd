"""environment.yml and pyproject.toml are two faces of one list.

Whether the channel has these packages is not checked here: that needs the channel.
"""

import tomllib
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.specifiers import SpecifierSet
from packaging.utils import canonicalize_name

ROOT = Path(__file__).resolve().parents[1]
EXTRAS = ("test", "dev", "docs")  # what a checkout needs; the engines of the other extras are the user's choice

# conda-forge's name where it is not PyPI's.
CONDA_NAMES = {"matplotlib": "matplotlib-base"}

# What conda installs and pip takes as given.
CONDA_ONLY = {"python", "pip"}


def pyproject():
    return tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]


def environment():
    yaml = pytest.importorskip("yaml")
    return yaml.safe_load((ROOT / "environment.yml").read_text())


def conda_specs():
    return [spec for spec in environment()["dependencies"] if isinstance(spec, str)]


def bounds_by_conda_name():
    """Names and bounds as environment.yml writes them."""
    pairs = (spec.partition(" ") for spec in conda_specs())
    return {name: SpecifierSet(bounds.replace(" ", ",")) for name, _, bounds in pairs}


def bounds_by_pypi_name():
    """Names and bounds of the core and of `EXTRAS` as pyproject.toml writes them."""
    project = pyproject()
    lists = [project["dependencies"], *(project["optional-dependencies"][extra] for extra in EXTRAS)]
    requirements = [Requirement(line) for lines in lists for line in lines]
    return {canonicalize_name(r.name): r.specifier for r in requirements if r.name != project["name"]}


def test_both_files_name_the_same_packages_with_the_same_bounds():
    expected = {CONDA_NAMES.get(name, name): bounds for name, bounds in bounds_by_pypi_name().items()}
    found = {name: bounds for name, bounds in bounds_by_conda_name().items() if name not in CONDA_ONLY}
    assert found == expected


def test_both_files_ask_for_the_same_python():
    assert bounds_by_conda_name()["python"] == SpecifierSet(pyproject()["requires-python"])


def test_no_name_is_translated_in_vain():
    assert set(CONDA_NAMES) <= set(bounds_by_pypi_name())


def test_each_package_has_a_lower_bound():
    without = [name for name, bounds in bounds_by_pypi_name().items() if not any(b.operator == ">=" for b in bounds)]
    assert without == []


def test_the_environment_installs_the_checkout_itself():
    (pip,) = (spec["pip"] for spec in environment()["dependencies"] if isinstance(spec, dict))
    assert pip == ["-e ."]


def test_the_environment_has_only_keys_that_conda_knows():
    assert set(environment()) <= {"name", "channels", "dependencies", "variables", "platforms"}


def test_each_conda_spec_is_well_formed():
    rattler = pytest.importorskip("rattler", reason="py-rattler, which reads conda specs, is not installed")
    names = [str(rattler.MatchSpec(spec, strict=True).name.normalized) for spec in conda_specs()]
    assert names == list(bounds_by_conda_name())
