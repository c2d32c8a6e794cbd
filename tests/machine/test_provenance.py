"""Provenance: complete, plain, and the same if and only if the conditions are."""

import dataclasses
import math
import os
import shutil
import subprocess
import sys

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from parcompute import __version__
from parcompute.machine import limits
from parcompute.machine.provenance import CONDITIONS, Code, Provenance, clock_overhead_ns, differences, meanings

FIELDS = dataclasses.fields(Provenance)
needs_git = pytest.mark.skipif(shutil.which("git") is None, reason="no git")


@pytest.fixture(scope="module")
def collected():
    """What is collected in this process."""
    return Provenance.collect(seed=7, environ={"OMP_NUM_THREADS": "1", "SLURM_JOB_ID": "42", "SECRET_TOKEN": "hush"})


def values(kind):
    """Return a strategy for values of a field's type."""
    return {
        str: st.text(max_size=20),
        bool: st.booleans(),
        int: st.integers(-1, 2**62),
        float: st.floats(),
    }[kind]


def test_every_field_is_plain_and_has_an_unknown_value():
    for f in FIELDS:
        assert type(f.default) in (str, int, float, bool)
        assert f.default in ("", -1, True) or math.isnan(f.default)


def test_every_field_says_what_it_is():
    assert meanings().keys() == {f.name for f in FIELDS}
    assert all(meanings().values())


# MEASURING, "Provenance (required)".
@pytest.mark.parametrize(
    "names",
    [
        "host cpu_model n_sockets n_cores n_threads n_numa_nodes caches governor mhz affinity",
        "cpu_quota n_throttled throttled_ns memory_bytes memory_limit_bytes kernel container load_1min",
        "start_method chunk_plan blas_vendor blas_threads python_build numpy_version scipy_version joblib_version",
        "omp_num_threads openblas_num_threads mkl_num_threads numexpr_num_threads git_commit git_dirty seed",
        "clock clock_resolution_ns slurm_job_id collected_utc command_line parcompute_version",
    ],
)
def test_each_required_field_is_there(names):
    assert set(names.split()) <= {f.name for f in FIELDS}


def test_what_is_collected_is_true_here(collected):
    assert collected.parcompute_version == __version__
    assert collected.numpy_version == np.__version__
    assert collected.python_version.endswith(sys.version.split()[0])
    assert collected.usable_cpus >= 1
    assert collected.n_threads >= collected.n_cores >= collected.n_sockets >= 1
    assert collected.memory_gib * 2**30 >= collected.memory_bytes > 0
    assert collected.clock_resolution_ns > 0
    assert collected.collected_utc.endswith("+00:00")
    assert (collected.seed, collected.omp_num_threads, collected.slurm_job_id) == (7, "1", "42")


@pytest.mark.parametrize(
    ("argv", "told"),
    [
        (["/usr/bin/python3", "experiments/pi.py", "--seed", "a b"], "python3 experiments/pi.py --seed 'a b'"),
        (["/usr/bin/python3", "/there/.venv/bin/parcompute", "run", "pi.py"], "parcompute run pi.py"),
        (["/usr/bin/python3", "-m", "parcompute", "run", "pi.py"], "python3 -m parcompute run pi.py"),
        (["python3"], "python3"),
    ],
)
def test_the_command_is_what_a_user_would_type(argv, told, monkeypatch):
    monkeypatch.setattr(sys, "orig_argv", argv)
    assert Provenance.collect().command_line == told


def test_types_are_those_that_were_declared(collected):
    for f in FIELDS:
        assert type(getattr(collected, f.name)) is type(f.default), f.name


def test_no_other_environment_variable_is_recorded(collected):
    assert not any("hush" in str(value) for value in collected.as_dict().values())


def test_two_collections_in_one_program_have_the_same_conditions(collected):
    again = Provenance.collect(seed=8, environ={"OMP_NUM_THREADS": "1"})
    assert differences(collected, again) == []
    assert collected.conditions_id == again.conditions_id
    assert collected.id != again.id


@pytest.mark.parametrize("asked", [1, 77])
def test_the_wish_for_a_number_of_workers_is_no_property_of_the_machine(collected, monkeypatch, asked):
    monkeypatch.setenv("PARCOMPUTE_WORKERS", str(asked))
    assert limits.usable_cpus() == asked
    assert Provenance.collect().usable_cpus == collected.usable_cpus


def test_threads_of_blas_in_the_workers_may_be_stated():
    assert Provenance.collect(blas_threads=3).blas_threads == 3


@pytest.mark.parametrize("name", CONDITIONS)
def test_a_change_of_any_condition_makes_runs_unlike(name):
    known = Provenance()
    other = changed(known, name)
    assert known.conditions_id != other.conditions_id
    assert [found[0] for found in differences(known, other)] == [name]


@pytest.mark.parametrize(
    ("name", "backend"), [("dask_version", "dask"), ("distributed_version", "dask"), ("mpi4py_version", "mpi")]
)
def test_the_version_of_an_engine_concerns_runs_of_its_backend_only(name, backend):
    known, other = Provenance(), changed(Provenance(), name)
    assert known.of("processes", "threads", "joblib") == other.of("processes", "threads", "joblib")
    assert known.of(backend) != other.of(backend, "processes")
    assert other.of(backend, "processes") == other


@pytest.mark.parametrize("name", sorted({f.name for f in FIELDS} - set(CONDITIONS)))
def test_what_varies_from_run_to_run_keeps_runs_alike(name):
    known = Provenance()
    other = changed(known, name)
    assert known.conditions_id == other.conditions_id
    assert differences(known, other) == []
    assert known.id != other.id


def changed(provenance, name):
    value = getattr(provenance, name)
    new = {str: "other", int: 5, float: 2.5, bool: not value}[type(value)]
    return dataclasses.replace(provenance, **{name: new})


@given(st.fixed_dictionaries({f.name: values(type(f.default)) for f in FIELDS}))
def test_a_round_trip_through_values_of_numpy_keeps_the_ids(found):
    one = Provenance(**found)
    kinds = {str: np.str_, int: np.int64, float: np.float64, bool: np.bool_}
    # A fixed-width string of NumPy drops zeros at its end; the text of a file is of variable length.
    stored = {n: v if isinstance(v, str) else kinds[type(v)](v) for n, v in one.as_dict().items()}
    other = Provenance.from_fields(stored)
    assert (one.id, one.conditions_id) == (other.id, other.conditions_id)
    assert differences(one, other) == []


def test_a_file_with_fewer_or_other_fields_can_be_read():
    found = Provenance.from_fields({"seed": 3, "of_a_later_version": 1})
    assert found.seed == 3
    assert found.id == Provenance(seed=3).id


def test_ids_are_the_same_in_every_program():
    program = "from parcompute.machine.provenance import Provenance; print(Provenance(cpu_model='A64FX').id)"
    command = [sys.executable, "-c", program]
    environ = os.environ | {"PYTHONHASHSEED": "99"}
    done = subprocess.run(command, capture_output=True, text=True, check=True, env=environ)
    assert done.stdout.strip() == Provenance(cpu_model="A64FX").id


def test_reading_the_clock_takes_time():
    assert clock_overhead_ns() >= 0


def git(folder, *arguments):
    who = ["-c", "user.name=A", "-c", "user.email=a@example.org", "-c", "commit.gpgsign=false"]
    subprocess.run(["git", *who, *arguments], cwd=folder, check=True, capture_output=True)


@pytest.fixture
def repository(tmp_path):
    """Make a repository with an experiment, a module beside it and a page of text; return its folder."""
    (tmp_path / "experiments").mkdir()
    (tmp_path / "src").mkdir()
    (tmp_path / "experiments/pi.py").write_text("print(3)\n")
    (tmp_path / "src/code.c").write_text("int x;\n")
    (tmp_path / "README.md").write_text("Read me.\n")
    git(tmp_path, "init", "-q")
    git(tmp_path, "add", ".")
    git(tmp_path, "commit", "-q", "-m", "First")
    return tmp_path


@needs_git
def test_a_clean_repository_has_a_commit_and_a_digest(repository):
    code = Code.read(repository / "experiments")
    assert len(code.commit) == 40
    assert code.dirty == 0
    assert code == Code.read(repository)


@needs_git
@pytest.mark.parametrize("name", ["experiments/pi.py", "src/code.c"])
def test_changed_code_is_dirty_and_unlike(repository, name):
    clean = Code.read(repository / "experiments")
    (repository / name).write_text("changed\n")
    once = Code.read(repository / "experiments")
    (repository / name).write_text("changed again\n")
    twice = Code.read(repository / "experiments")
    assert (clean.dirty, once.dirty, twice.dirty) == (0, 1, 1)
    assert len({clean.digest, once.digest, twice.digest}) == 3
    assert clean.commit == once.commit


@needs_git
def test_an_experiment_that_git_does_not_know_yet_is_dirty(repository):
    (repository / "experiments/new.py").write_text("print(4)\n")
    assert Code.read(repository / "experiments").dirty == 1


@needs_git
def test_results_and_documentation_leave_the_code_as_it_is(repository):
    clean = Code.read(repository / "experiments")
    (repository / "results.h5").write_bytes(b"\x89HDF")
    (repository / "README.md").write_text("Read me again.\n")
    assert Code.read(repository / "experiments") == clean
    git(repository, "add", ".")
    git(repository, "commit", "-q", "-m", "Results")
    later = Code.read(repository / "experiments")
    assert later.commit != clean.commit
    assert (later.digest, later.dirty) == (clean.digest, 0)


@needs_git
def test_a_repository_without_a_commit_has_none(tmp_path):
    git(tmp_path, "init", "-q")
    assert Code.read(tmp_path) == Code()


def test_outside_of_a_repository_the_files_of_the_folder_are_the_code(tmp_path, monkeypatch):
    monkeypatch.setenv("GIT_CEILING_DIRECTORIES", str(tmp_path.parent))
    assert Code.read(tmp_path) == Code()
    (tmp_path / "pi.py").write_text("print(3)\n")
    code = Code.read(tmp_path)
    assert (code.commit, code.dirty) == ("", -1)
    (tmp_path / "pi.py").write_text("print(4)\n")
    assert Code.read(tmp_path).digest != code.digest


def test_without_git_or_folder_nothing_fails(tmp_path, monkeypatch):
    monkeypatch.setenv("PATH", str(tmp_path))
    assert Code.read(tmp_path) == Code()
    assert Code.read(tmp_path / "missing") == Code()
    assert Provenance.collect(tmp_path / "missing").git_dirty == -1


def test_conditions_on_record_keep_their_id_where_a_later_field_says_nothing():
    known = Provenance(cpu_model="A64FX")
    assert known.conditions_id == "b5b281db17c3bc7f"  # of before there was node_cpu_models
    assert dataclasses.replace(known, node_cpu_models="A64FX, EPYC").conditions_id != known.conditions_id
