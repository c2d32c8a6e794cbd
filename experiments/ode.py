"""Irregular SciPy work, call by call: how do `map`, joblib and ProcessPoolExecutor compare? Predators and prey.

`solve_ivp` chooses its own steps, so that one set of parameters takes several times as long as another. The
Lotka–Volterra equations conserve a quantity that the solver knows nothing of.
"""

import functools
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context

import numpy as np

import parcompute as pc

RTOL, YEARS = 1e-8, 40.0


def end_of(parameters):
    """Return prey and predators after 40 years, and how far the conserved quantity has drifted, relatively."""
    from scipy.integrate import solve_ivp  # here, so that a worker loads it once and the script at need

    a, b, c, d = parameters
    law = lambda t, y: (a * y[0] - b * y[0] * y[1], d * y[0] * y[1] - c * y[1])  # noqa: E731 (a formula)
    conserved = lambda y: d * y[0] - c * np.log(y[0]) + b * y[1] - a * np.log(y[1])  # noqa: E731
    start = np.array([2.0, 1.0])
    end = solve_ivp(law, (0.0, YEARS), start, method="DOP853", rtol=RTOL, atol=1e-10).y[:, -1]
    return end[0], end[1], abs(conserved(end) / conserved(start) - 1)


def parameter_sets(n):
    """Return n sets that need more and more steps, in an order without order."""
    at = np.random.default_rng(7).permutation(np.linspace(0.3, 3.0, n))
    return [(speed, 0.6 * speed, 0.8 * speed, 0.5 * speed) for speed in at.tolist()]


@functools.cache
def standard_pool(n_workers):
    """Return the standard library's executor; its start is no part of a run, as those of the others are none."""
    return ProcessPoolExecutor(n_workers, mp_context=get_context("forkserver"))


def by_joblib(n_workers, parameters):
    """Let joblib do it."""
    import joblib

    return joblib.Parallel(n_workers)(joblib.delayed(end_of)(each) for each in parameters)


def conserved(ends, n):
    """Compare the largest drift with what the solver's tolerance allows over some hundred steps."""
    return pc.Check(float(ends[:, 2].max()), 0.0, 1e-5, f"a thousand times the tolerance {RTOL:g}")


@pc.experiment(
    n_items={"quick": 24, "default": 384, "full": 2**14},
    truth=conserved,
    backends=("processes",),
    variants=("map", "ProcessPoolExecutor", "joblib"),
)
def ode(executor, n_items, seed, variant):
    parameters, engine = parameter_sets(n_items), executor
    if executor.backend != "serial":
        if variant == "joblib":
            return np.array(by_joblib(executor.n_workers, parameters))
        engine = standard_pool(executor.n_workers) if variant == "ProcessPoolExecutor" else executor
    return np.array(list(engine.map(end_of, parameters)))


if __name__ == "__main__":
    ode.main()
