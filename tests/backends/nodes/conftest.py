"""Hosts, and what connects them."""

import contextlib
import importlib
import os
import random
import sys
from pathlib import Path

import pytest

sys.path.append(str(Path(__file__).parent))  # the tests import what they share

import engines
from hosts import Hosts, why_not


@pytest.fixture(scope="module")
def hosts(tmp_path_factory):
    """Three hosts."""
    if reason := why_not():
        pytest.skip(reason)
    three = Hosts(3, tmp_path_factory.mktemp("hosts"))
    yield three
    three.close()


@pytest.fixture(scope="module")
def dask(hosts):
    """A Dask cluster on them."""
    pytest.importorskip("distributed")
    cluster = engines.OnDask(hosts)
    yield cluster
    cluster.close()


@pytest.fixture(scope="module")
def mpi(hosts):
    """MPI on them."""
    pytest.importorskip("mpi4py.MPI", exc_type=ImportError)
    if engines.MPIEXEC is None:
        pytest.skip("there is no mpiexec of MPICH")
    return engines.OnMPI(hosts)


@pytest.fixture(scope="module")
def files_of_mpi():
    """Have MPI open its files, which stay open until the program ends, before the first test."""
    with contextlib.suppress(ImportError):
        importlib.import_module("mpi4py.MPI")


@pytest.fixture(scope="module", params=["dask", "mpi"])
def engine(request):
    """Each engine."""
    return request.getfixturevalue(request.param)


@pytest.fixture
def chance(request):
    """What a test does at random; the same with the same seed."""
    return random.Random(f"{os.environ['PARCOMPUTE_STRESS_SEED']} {request.node.name}")
