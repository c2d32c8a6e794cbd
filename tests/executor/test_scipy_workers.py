"""What takes a map takes an executor's: SciPy's ``workers=ex.map``, and samplers' ``pool=ex``, with the serial bits."""

import contextlib
import os
import signal
import sys

import cloudpickle
import numpy as np
import pytest
from scipy import integrate, optimize

import parcompute as pc

# The workers of a test session can import the package, but not its tests.
cloudpickle.register_pickle_by_value(sys.modules[__name__])

# Python warns of forking beside threads.
pytestmark = pytest.mark.filterwarnings("ignore:.*multi-threaded.*fork:DeprecationWarning")

PROCESSES = ("processes-fork", "processes-forkserver", "processes-spawn")
ALL = (*PROCESSES, "threads", "serial")
BOUNDS = [(-2.0, 2.0)] * 3


def opened(medium):
    backend, _, method = medium.partition("-")
    return pc.Executor(1 if backend == "serial" else 2, backend=backend, start_method=method or None)


@pytest.fixture(scope="module")
def kept():
    """Open executors for all tests; their workers run before the first test is compared with what was there."""
    with contextlib.ExitStack() as stack:
        executors = {medium: stack.enter_context(opened(medium)) for medium in ALL}
        for executor in executors.values():
            list(executor.map(abs, range(4), chunksize=1))
        yield executors


@pytest.fixture(params=ALL)
def executor(request, kept):
    return kept[request.param]


@pytest.fixture(params=PROCESSES)
def in_processes(request, kept):
    return kept[request.param]


def rosenbrock(x, scale=100.0):
    return float(np.sum(scale * (x[1:] - x[:-1] ** 2) ** 2 + (1 - x[:-1]) ** 2))


class Misfit:
    """An objective with data, as models are written: an object that is called, or one of its methods."""

    def __init__(self, points):
        self.points = points

    def __call__(self, x):
        return float(np.sum((np.polyval(x, self.points) - np.sin(self.points)) ** 2))

    def halved(self, x):
        return self(x) / 2


def closure(exponent):
    def power(x):
        return float(np.sum(np.abs(x - 0.5) ** exponent))

    return power


POINTS = np.linspace(0, 1, 50)
OBJECTIVES = {
    "function of a module": rosenbrock,
    "function of SciPy": optimize.rosen,
    "lambda": lambda x: float(x @ x),
    "closure": closure(1.5),
    "object": Misfit(POINTS),
    "bound method": Misfit(POINTS).halved,
}


@pytest.fixture(params=OBJECTIVES.values(), ids=OBJECTIVES)
def objective(request):
    return request.param


def evolved(objective, workers, **options):
    options = {"maxiter": 4, "popsize": 5, "seed": 1, **options}
    return optimize.differential_evolution(objective, BOUNDS, updating="deferred", workers=workers, **options)


def assert_same_optimum(found, expected):
    assert np.array_equal(found.x, expected.x)
    assert found.fun == expected.fun
    assert (found.nfev, found.nit) == (expected.nfev, expected.nit)


# --- differential_evolution ----------------------------------------------------------------------------------


def test_differential_evolution_has_the_serial_bits(executor, objective):
    assert_same_optimum(evolved(objective, executor.map), evolved(objective, 1))


def test_differential_evolution_hands_on_args_and_constraints(executor):
    constraint = optimize.LinearConstraint(np.ones(3), -np.inf, 2.0)
    options = {"args": (10.0,), "constraints": constraint, "polish": False}
    assert_same_optimum(evolved(rosenbrock, executor.map, **options), evolved(rosenbrock, 1, **options))


def test_differential_evolution_with_a_large_array_has_the_serial_bits(executor):
    misfit = Misfit(np.linspace(0, 1, 2**18))  # 2 MiB: shared, and not sent
    options = {"maxiter": 1, "polish": False}
    assert_same_optimum(evolved(misfit, executor.map, **options), evolved(misfit, 1, **options))


def test_a_callback_can_end_differential_evolution(executor):
    seen = []

    def stop_at_the_second(x, convergence):
        seen.append(x)
        return len(seen) == 2

    result = evolved(rosenbrock, executor.map, callback=stop_at_the_second, polish=False)
    assert len(seen) == result.nit == 2
    assert list(executor.map(abs, [-1])) == [1]


def test_an_exception_of_the_objective_ends_differential_evolution(executor):
    def raising(x):
        raise ZeroDivisionError("of the objective")

    with pytest.raises(ZeroDivisionError, match="of the objective"):
        evolved(raising, executor.map)
    assert list(executor.map(abs, [-1])) == [1]


def test_why_an_objective_cannot_travel_is_the_cause_of_scipys_error(in_processes):
    with open(os.devnull) as file, pytest.raises(RuntimeError, match="map-like") as caught:
        evolved(lambda x: file.fileno(), in_processes.map)
    assert f"cannot pickle the open file '{os.devnull}'" in str(caught.value.__cause__)


@pytest.mark.parametrize("medium", PROCESSES)
def test_differential_evolution_goes_on_when_a_worker_is_killed(medium, tmp_path):
    def killed_once(x):
        with contextlib.suppress(FileExistsError):
            os.close(os.open(tmp_path / "killed", os.O_CREAT | os.O_EXCL))
            os.kill(os.getpid(), signal.SIGKILL)
        return rosenbrock(x)

    with opened(medium) as executor:
        found = evolved(killed_once, executor.map, polish=False)
    assert (tmp_path / "killed").exists()
    assert_same_optimum(found, evolved(rosenbrock, 1, polish=False))


# --- brute ---------------------------------------------------------------------------------------------------


def test_brute_has_the_serial_bits(executor, objective):
    def searched(workers):
        return optimize.brute(objective, BOUNDS, Ns=5, full_output=True, workers=workers)

    for found, expected in zip(searched(executor.map), searched(1), strict=True):
        assert np.array_equal(found, expected)


def test_brute_hands_on_args_and_a_grid_of_slices(executor):
    def searched(workers):
        grid = (slice(-1, 1, 0.25), slice(-1, 1, 0.5))
        return optimize.brute(rosenbrock, grid, args=(10.0,), full_output=True, finish=None, workers=workers)

    for found, expected in zip(searched(executor.map), searched(1), strict=True):
        assert np.array_equal(found, expected)


# --- quad_vec ------------------------------------------------------------------------------------------------


def vector(t):
    return np.array([np.sin(40 * t) ** 2, np.exp(-t), 1 / (1 + t**2)])


INTEGRANDS = {
    "function of a module": vector,
    "lambda": lambda t: np.cos(np.arange(5) * t),
    "closure": (lambda a: lambda t: np.sqrt(np.abs(t - a)))(np.array([0.3, 0.7])),
}


@pytest.mark.parametrize("integrand", INTEGRANDS.values(), ids=INTEGRANDS)
@pytest.mark.parametrize("limits", [(0, 1), (0, np.inf)], ids=["finite", "infinite"])
def test_quad_vec_has_the_serial_bits(executor, integrand, limits):
    def integral(workers):
        return integrate.quad_vec(integrand, *limits, workers=workers, limit=60, full_output=True)

    (found, found_error, info), (expected, expected_error, serial_info) = integral(executor.map), integral(1)
    assert np.array_equal(found, expected)
    assert found_error == expected_error
    assert info.neval == serial_info.neval


# --- pools ---------------------------------------------------------------------------------------------------


def log_density(x, ivar):
    return -0.5 * float(np.sum(ivar * x**2))


def sampled(pool, density=log_density, **options):
    emcee = pytest.importorskip("emcee")
    walkers = np.random.default_rng(3).normal(size=(12, 3))
    options = {"args": [np.arange(1.0, 4.0)], **options}
    sampler = emcee.EnsembleSampler(*walkers.shape, density, pool=pool, **options)
    sampler.random_state = np.random.RandomState(7).get_state()
    sampler.run_mcmc(walkers, 10)
    return sampler


def test_an_executor_is_emcees_pool(executor):
    found, expected = sampled(executor), sampled(None)
    assert np.array_equal(found.get_chain(), expected.get_chain())
    assert np.array_equal(found.get_log_prob(), expected.get_log_prob())
    assert np.ptp(found.get_chain()) > 0


def test_emcee_gets_blobs_of_a_closure(executor):
    def density(x):
        return -0.5 * float(x @ x), float(x.sum())

    found, expected = sampled(executor, density, args=None), sampled(None, density, args=None)
    assert np.array_equal(found.get_chain(), expected.get_chain())
    assert np.array_equal(found.get_blobs(), expected.get_blobs())


def test_emcee_raises_what_the_density_raises(executor, capsys):
    def density(x):
        raise ZeroDivisionError("of the density")

    with pytest.raises(ZeroDivisionError, match="of the density"):
        sampled(executor, density, args=None)
    assert list(executor.map(abs, [-1])) == [1]


def test_a_sampler_that_only_knows_map_gets_its_results_in_order(executor):
    """As zeus, dynesty and others do it: one map per step, over a list or a generator, taken by list()."""

    def steps(pool_map):
        rng = np.random.default_rng(5)
        x = rng.normal(size=(8, 2))
        log_p = np.array(list(pool_map(lambda row: -float(row @ row), x)))
        for _ in range(5):
            proposed = x + 0.3 * rng.normal(size=x.shape)
            proposed_log_p = np.array(list(pool_map(lambda row: -float(row @ row), (row for row in proposed))))
            taken = np.log(rng.random(len(x))) < proposed_log_p - log_p
            x[taken], log_p[taken] = proposed[taken], proposed_log_p[taken]
        return x, log_p

    for found, expected in zip(steps(executor.map), steps(map), strict=True):
        assert np.array_equal(found, expected)
