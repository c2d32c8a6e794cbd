"""environment.yml, the recipe for conda-forge and pyproject.toml are faces of one list.

Whether the channel has these packages is not checked here: that needs the channel.
"""

import subprocess
import sys
import tomllib
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.specifiers import SpecifierSet
from packaging.utils import canonicalize_name

import parcompute

ROOT = Path(__file__).resolve().parents[1]
RECIPE = ROOT / "packaging" / "conda" / "recipe.yaml"
EXTRAS = ("test", "dev", "docs")  # what a checkout needs; the engines of the other extras are the user's choice

# conda-forge's name where it is not PyPI's.
CONDA_NAMES = {"matplotlib": "matplotlib-base", "build": "python-build"}

# What pip installs into the conda environment, too.
BY_PIP = {"py-rattler-build"}

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


def what_pip_installs():
    (pip,) = (spec["pip"] for spec in environment()["dependencies"] if isinstance(spec, dict))
    return pip


def recipe():
    yaml = pytest.importorskip("yaml")
    return yaml.safe_load(RECIPE.read_text())


def test_both_files_name_the_same_packages_with_the_same_bounds():
    expected = {CONDA_NAMES.get(name, name): bounds for name, bounds in bounds_by_pypi_name().items()}
    found = {name: bounds for name, bounds in bounds_by_conda_name().items() if name not in CONDA_ONLY}
    by_pip = [Requirement(line) for line in what_pip_installs()[:-1]]
    assert found | {requirement.name: requirement.specifier for requirement in by_pip} == expected
    assert {requirement.name for requirement in by_pip} == BY_PIP


def test_both_files_ask_for_the_same_python():
    assert bounds_by_conda_name()["python"] == SpecifierSet(pyproject()["requires-python"])


def test_no_name_is_translated_in_vain():
    assert set(CONDA_NAMES) <= set(bounds_by_pypi_name())


def test_each_package_has_a_lower_bound():
    without = [name for name, bounds in bounds_by_pypi_name().items() if not any(b.operator == ">=" for b in bounds)]
    assert without == []


def test_the_environment_installs_the_checkout_itself():
    assert what_pip_installs()[-1] == "-e ."


def test_the_environment_has_only_keys_that_conda_knows():
    assert set(environment()) <= {"name", "channels", "dependencies", "variables", "platforms"}


def test_each_conda_spec_is_well_formed():
    rattler = pytest.importorskip("rattler", reason="py-rattler, which reads conda specs, is not installed")
    names = [str(rattler.MatchSpec(spec, strict=True).name.normalized) for spec in conda_specs()]
    assert names == list(bounds_by_conda_name())


def test_the_recipe_asks_for_what_pyproject_asks_for():
    project, requirements = pyproject(), recipe()["requirements"]
    python, *run = requirements["run"]
    assert python == "python >=${{ python_min }}"
    assert SpecifierSet(f">={recipe()['context']['python_min']}") == SpecifierSet(project["requires-python"])
    core = {CONDA_NAMES.get(r.name, r.name): r.specifier for r in map(Requirement, project["dependencies"])}
    assert {name: SpecifierSet(bounds) for name, _, bounds in (spec.partition(" ") for spec in run)} == core
    built_by = tomllib.loads((ROOT / "pyproject.toml").read_text())["build-system"]["requires"]
    assert requirements["host"] == [
        "python ${{ python_min }}.*",
        "pip",
        *(line.replace(">", " >") for line in built_by),
    ]


def test_the_recipe_says_of_the_package_what_pyproject_says():
    project, found = pyproject(), recipe()
    assert found["context"]["version"] == parcompute.__version__
    assert found["build"]["python"]["entry_points"] == [f"{n} = {at}" for n, at in project["scripts"].items()]
    about = found["about"]
    assert (about["license"], about["license_file"]) == (project["license"], *project["license-files"])
    assert about["summary"] == project["description"]


def test_the_recipe_is_rendered_by_the_tool_of_conda_forge():
    rattler_build = pytest.importorskip(
        "rattler_build", reason="py-rattler-build, which reads recipes, is not installed"
    )
    (variant,) = rattler_build.Stage0Recipe.from_file(str(RECIPE)).render(rattler_build.VariantConfig())
    rendered = variant.recipe.to_dict()
    assert (rendered["package"]["name"], rendered["package"]["version"]) == ("parcompute", parcompute.__version__)
    assert len(variant.recipe.requirements.run) == 1 + len(pyproject()["dependencies"])


# --- the lowest versions -----------------------------------------------------------------------------------


def test_the_lowest_versions_are_the_bounds_of_what_users_install():
    done = subprocess.run([sys.executable, ROOT / ".ci" / "lowest"], capture_output=True, text=True, check=True)
    found = {r.name: r.specifier for r in map(Requirement, done.stdout.split())}
    project = pyproject()
    for line in [*project["dependencies"], *project["optional-dependencies"]["zarr"]]:
        requirement = Requirement(line)
        (bound,) = requirement.specifier
        assert found[requirement.name] == SpecifierSet(f"=={bound.version}")
