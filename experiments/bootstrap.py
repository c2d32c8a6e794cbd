"""A big input that every resample reads: what does not copying buy? Percentiles of a mean, by bootstrap.

The data go to the workers in three ways: as a shared array, as a file that each maps into its memory, and pickled
with the kernel. The resamples are the same, bit for bit.
"""

import functools
import tempfile
from pathlib import Path

import numpy as np

import parcompute as pc

N_DATA = 2**20


@functools.cache
def data(seed):
    """Return a million incomes: log-normal."""
    return pc.share(np.random.default_rng(seed).lognormal(0.0, 0.7, N_DATA))


@functools.cache
def folder():
    """Return a temporary folder that goes when the program ends."""
    return tempfile.TemporaryDirectory()


@functools.cache
def mapped(seed):
    """Return the data as a file mapped into memory."""
    path = Path(folder().name) / f"{seed}.npy"
    np.save(path, data(seed))
    return np.load(path, mmap_mode="r")


def means(block, rng, incomes):
    """Return the mean of one resample per item."""
    if isinstance(incomes, bytes):
        incomes = np.frombuffer(incomes)
    return np.array([incomes[rng.integers(0, len(incomes), len(incomes))].mean() for _ in range(block.size)])


@functools.cache
def by_scipy(seed, n_resamples=200):
    """Return the standard error that SciPy finds with resamples of its own."""
    from scipy import stats

    found = stats.bootstrap(
        (np.asarray(data(seed)),), np.mean, n_resamples=n_resamples, batch=8, method="percentile", rng=seed
    )
    return float(found.standard_error)


def agrees(percentiles, n_resamples):
    """Compare the spread with SciPy's; both have the error of a standard deviation of so many resamples."""
    low, _, high = percentiles
    spread = (high - low) / (2 * 1.959964)
    error = np.sqrt(1 / (2 * n_resamples) * 3.5 + 1 / (2 * 200))  # a quantile of 2.5 % scatters more than a deviation
    truth = by_scipy(1)
    return pc.Check(float(spread), truth, float(4 * error * truth), "4 standard errors of both bootstraps")


@pc.experiment(
    n_items={"quick": 16, "default": 256, "full": 2**15},
    truth=agrees,
    backends=("processes", "joblib"),
    variants=("shared", "mapped", "pickled"),
)
def bootstrap(executor, n_items, seed, variant):
    incomes = {"shared": data, "mapped": mapped, "pickled": lambda seed: data(seed).tobytes()}[variant](seed)
    found = executor.map_blocks(means, n_items=n_items, block_items=1, seed=seed, kwargs={"incomes": incomes})
    return np.percentile(found, [2.5, 50, 97.5])


if __name__ == "__main__":
    bootstrap.main()
