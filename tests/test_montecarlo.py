"""The Monte Carlo experiment agrees with the closed form, and gives the same bits whoever computes."""

import importlib.util
import math
from pathlib import Path

import numpy as np
import pytest

import parcompute as pc

SOURCE = Path(__file__).resolve().parents[1] / "experiments" / "montecarlo.py"
N_PATHS = 5 * 2**16 + 77  # six blocks, the last a short one
WAYS = [
    {"backend": "threads", "workers": 2},
    {"backend": "processes", "workers": 1},
    {"backend": "processes", "workers": 2, "schedule": "static"},
    {"backend": "processes", "workers": 2, "schedule": "dynamic,2"},
    {"backend": "processes", "workers": 3, "schedule": "guided"},
]


@pytest.fixture(scope="module")
def montecarlo():
    """Return the experiment's module, which is no package's and so travels to workers by value."""
    spec = importlib.util.spec_from_file_location("montecarlo", SOURCE)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def sums(montecarlo, n_paths=2**16, seed=1, backend="serial", **options):
    with pc.Executor(backend=backend, **options) as executor:
        return montecarlo.montecarlo(executor, n_paths, seed)


def test_the_closed_form_is_the_published_price(montecarlo):
    truth = montecarlo.geometric_asian_call((5.0, 100.0), 1).truth
    assert truth == pytest.approx(5.3425606635, abs=1e-10)


@pytest.mark.parametrize("seed", range(1, 7))
def test_the_price_is_within_its_four_standard_errors(montecarlo, seed):
    check = montecarlo.geometric_asian_call(sums(montecarlo, seed=seed), 2**16)
    assert check.passes
    assert check.how.startswith("4 standard errors of ")


def test_the_standard_error_is_that_of_the_payoffs(montecarlo):
    n_paths = 2**16  # one block
    block = pc.Block(0, 0, n_paths)
    total, squares = montecarlo.discounted_payoffs(block, np.random.default_rng(5))
    spread = math.sqrt(squares / n_paths - (total / n_paths) ** 2)
    assert spread == pytest.approx(7.854, rel=0.02)  # by an integral over the log-normal average
    check = montecarlo.geometric_asian_call((total, squares), n_paths)
    assert check.tolerance == pytest.approx(4 * spread / math.sqrt(n_paths))


def test_a_wrong_price_does_not_pass(montecarlo):
    total, squares = sums(montecarlo)
    assert not montecarlo.geometric_asian_call((total * 1.05, squares * 1.05**2), 2**16).passes
    assert not montecarlo.geometric_asian_call((math.nan, squares), 2**16).passes


@pytest.mark.filterwarnings("ignore:workers=. is more than")  # where there are fewer CPUs
@pytest.mark.parametrize("way", WAYS, ids=lambda way: " ".join(map(str, way.values())))
def test_the_bits_are_the_same_whoever_computes(montecarlo, way):
    assert np.array(sums(montecarlo, N_PATHS, **way)).tobytes() == np.array(sums(montecarlo, N_PATHS)).tobytes()


def test_another_seed_gives_another_price(montecarlo):
    assert sums(montecarlo, seed=1) != sums(montecarlo, seed=2)


def test_each_preset_is_larger_than_the_one_before(montecarlo):
    sizes = montecarlo.montecarlo.sizes
    assert sizes["quick"] < sizes["default"] < sizes["full"]
