"""The Monte Carlo experiment agrees with the closed form, and gives the same bits whoever computes."""

import importlib.util
import math
from pathlib import Path

import numpy as np
import pytest

import parcompute as pc

SOURCE = Path(__file__).resolve().parents[2] / "experiments" / "montecarlo.py"
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
    assert montecarlo.geometric_price() == pytest.approx(5.3425606635, abs=1e-10)


@pytest.mark.parametrize("seed", range(1, 7))
def test_the_price_is_within_its_four_standard_errors(montecarlo, seed):
    check = montecarlo.asian_calls(sums(montecarlo, seed=seed), 2**16)
    assert check.passes
    assert check.truth == montecarlo.geometric_price()
    assert check.how.startswith("4 standard errors of ")


def test_the_standard_error_is_that_of_the_payoffs(montecarlo):
    n_paths = 2**16  # one block
    found = montecarlo.payoff_sums(pc.Block(0, 0, n_paths), np.random.default_rng(5))
    spread = math.sqrt(found[2] / n_paths - (found[0] / n_paths) ** 2)
    assert spread == pytest.approx(7.854, rel=0.02)  # by an integral over the log-normal average
    assert montecarlo.asian_calls(found, n_paths).tolerance == pytest.approx(4 * spread / math.sqrt(n_paths))


def test_the_control_variate_narrows_the_arithmetic_price(montecarlo):
    prices = [montecarlo.arithmetic_price(sums(montecarlo, seed=seed), 2**16) for seed in range(1, 9)]
    values, errors = np.array(prices).T
    assert values.std(ddof=1) == pytest.approx(errors.mean(), rel=0.7)  # eight seeds scatter as the error says
    plain = 8.0 / math.sqrt(2**16)
    assert errors.max() < plain / 20
    assert values.mean() > montecarlo.geometric_price()


def test_a_wrong_price_does_not_pass(montecarlo):
    G, A, GG, AA, GA = sums(montecarlo)
    assert not montecarlo.asian_calls((G * 1.05, A, GG * 1.05**2, AA, GA * 1.05), 2**16).passes
    assert not montecarlo.asian_calls((G, A * 1.05, GG, AA * 1.05**2, GA * 1.05), 2**16).passes
    assert not montecarlo.asian_calls((math.nan, A, GG, AA, GA), 2**16).passes


@pytest.mark.filterwarnings("ignore:workers=. is more than")  # where there are fewer CPUs
@pytest.mark.parametrize("way", WAYS, ids=lambda way: " ".join(map(str, way.values())))
def test_the_bits_are_the_same_whoever_computes(montecarlo, way):
    assert np.array(sums(montecarlo, N_PATHS, **way)).tobytes() == np.array(sums(montecarlo, N_PATHS)).tobytes()


def test_another_seed_gives_another_price(montecarlo):
    assert sums(montecarlo, seed=1) != sums(montecarlo, seed=2)


def test_each_preset_is_larger_than_the_one_before(montecarlo):
    sizes = montecarlo.montecarlo.sizes
    assert sizes["quick"] < sizes["default"] < sizes["full"]


def test_a_price_to_a_given_error_is_the_same_whoever_computes(montecarlo):
    prices = set()
    for way in ({"backend": "serial"}, *WAYS[:2]):
        with pc.Executor(**way) as executor:
            prices.add(montecarlo.price_within(executor, 4e-4, seed=2))
            assert executor.plan.n_blocks == 8
    ((price, error),) = prices
    low, high = montecarlo.arithmetic_bounds()
    assert low < price < high
    assert 2e-4 < error < 4e-4
