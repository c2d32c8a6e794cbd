"""joblib.Memory caches jobs, kernels and calls of every backend."""

import sys

import cloudpickle
import joblib
import numpy as np
import pytest

import parcompute as pc

# The workers of a test session can import the package, but not its tests.
cloudpickle.register_pickle_by_value(sys.modules[__name__])

X = np.arange(100.0)


@pytest.fixture(scope="module", params=("serial", "threads", "processes", "auto", "pool", "joblib"))
def executor(request):
    """An executor of each backend, all of whose threads and processes run already."""
    with pc.Executor(1 if request.param == "serial" else 2, backend=request.param) as executor:
        executor.reduce_blocks(len, np.arange(4), block_items=1)
        executor.submit(len, ()).result()
        yield executor


@pytest.fixture
def noted():
    """A function that notes its calls in a file, new for each cache: joblib notes its code once in a process."""

    def noted(x, path):
        with open(path, "a") as file:
            file.write("computed\n")
        return x * 2

    return noted


def n_computed(path):
    return len(path.read_text().splitlines())


def test_a_job_is_cached(executor, tmp_path):
    def job(executor, factor):
        calls.append(factor)
        return executor.map_blocks(lambda x: x * factor, X, block_items=30)

    calls = []
    cached = joblib.Memory(tmp_path, verbose=0).cache(job, ignore=["executor"])
    for factor in (2, 2, 3):
        assert np.array_equal(cached(executor, factor), X * factor)
    assert calls == [2, 3]


def test_a_kernel_is_cached_block_by_block(executor, noted, tmp_path):
    kernel = joblib.Memory(tmp_path, verbose=0).cache(noted, ignore=["path"])
    path = tmp_path / "noted"
    kernel(X[:1], str(path))  # joblib notes the code of a function with its first call, and two at once forget a result
    for _ in range(2):
        assert np.array_equal(executor.map_blocks(kernel, X, block_items=30, args=(str(path),)), X * 2)
        assert n_computed(path) == 5


def test_a_submitted_call_is_cached(executor, noted, tmp_path):
    call = joblib.Memory(tmp_path, verbose=0).cache(noted, ignore=["path"])
    path = tmp_path / "noted"
    for _ in range(2):
        assert executor.submit(call, 21, str(path)).result() == 42
        assert list(executor.map(call, [21], [str(path)])) == [42]
    assert n_computed(path) == 1


def test_what_threads_have_cached_workers_find(noted, tmp_path):
    kernel = joblib.Memory(tmp_path, verbose=0).cache(noted, ignore=["path"])
    path = tmp_path / "noted"
    kernel(X[:1], str(path))
    for backend in ("threads", "processes"):
        with pc.Executor(2, backend=backend) as executor:
            executor.map_blocks(kernel, X, block_items=30, args=(str(path),))
    assert n_computed(path) == 5
