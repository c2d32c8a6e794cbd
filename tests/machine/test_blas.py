"""The threads of numeric libraries: limited while a job runs, in every thread, and as before afterwards."""

import os
import threading
import warnings

import numpy as np
import pytest
import threadpoolctl

import parcompute as pc
from parcompute.machine import blas


def n_threads():
    return {library["filepath"]: library["num_threads"] for library in threadpoolctl.threadpool_info()}


@pytest.fixture(autouse=True)
def as_before():
    np.ones((2, 2)) @ np.ones((2, 2))
    before = n_threads()
    yield
    assert n_threads() == before
    assert not blas._asked
    assert not blas._before


def test_the_libraries_are_limited_in_the_body_only_also_when_it_fails():
    with blas.limited(1):
        assert set(n_threads().values()) <= {1}
    with pytest.raises(ZeroDivisionError), blas.limited(1):
        raise ZeroDivisionError


def test_none_leaves_them_alone():
    before = n_threads()
    with blas.limited(None):
        assert n_threads() == before


def test_what_a_program_has_set_itself_comes_back():
    with threadpoolctl.threadpool_limits(1):
        with blas.limited(2):
            pass
        assert set(n_threads().values()) <= {1}


def test_threads_leave_in_any_order_and_the_last_one_puts_back_what_was():
    before, found = n_threads(), {}
    inside, leave, left = ({name: threading.Event() for name in "ab"} for _ in range(3))

    def body(name, limit):
        with blas.limited(limit):
            inside[name].set()
            leave[name].wait()
        left[name].set()

    threads = [threading.Thread(target=body, args=("a", 1)), threading.Thread(target=body, args=("b", 2))]
    for thread, name in zip(threads, "ab", strict=True):
        thread.start()
        inside[name].wait()
        found[name] = set(n_threads().values())
    leave["b"].set()
    left["b"].wait()
    assert found["a"] <= {1}
    assert set(n_threads().values()) <= {1}
    leave["a"].set()
    for thread in threads:
        thread.join()
    assert n_threads() == before


def test_a_library_that_was_loaded_meanwhile_is_limited_the_next_time(monkeypatch):
    looked = []
    monkeypatch.setattr(threadpoolctl, "ThreadpoolController", lambda: looked.append(1) or _Nothing)
    monkeypatch.setattr(blas, "_found", (0, None))
    for modules, looks in (({"a": 1}, 1), ({"a": 1}, 1), ({"a": 1, "b": 2}, 2)):
        monkeypatch.setattr(blas.sys, "modules", modules | {"threadpoolctl": threadpoolctl})
        blas._controller()
        assert len(looked) == looks


class _Nothing:
    lib_controllers = ()


def found(block=None):
    """Return the numbers of threads that the libraries have where this runs."""
    return set(n_threads().values())


@pytest.mark.parametrize("backend", ["serial", "threads", "auto"])
def test_jobs_and_calls_keep_to_the_number(backend):
    with pc.Executor(1 if backend == "serial" else 2, backend=backend) as executor:
        assert executor.reduce_blocks(found, n_items=4, block_items=1, combine=set.union) <= {1}
        assert executor.submit(found).result() <= {1}


@pytest.mark.parametrize("backend", ["serial", "threads"])
def test_without_a_number_they_are_left_alone(backend):
    with pc.Executor(1 if backend == "serial" else 2, backend=backend, blas_threads=None) as executor:
        assert executor.reduce_blocks(found, n_items=4, block_items=1, combine=set.union) == found()


@pytest.mark.skipif(not os.path.isdir("/proc/self/task"), reason="the threads of a process are listed by Linux")
@pytest.mark.parametrize("backend", ["processes", "pool"])
def test_forked_workers_have_no_threads_that_look_for_work(backend):
    with threadpoolctl.threadpool_limits(2), warnings.catch_warnings(action="ignore"):  # that this process has threads
        np.ones((300, 300)) @ np.ones((300, 300))
        with pc.Executor(1, backend=backend, start_method="fork", blas_threads=1) as executor:
            there = executor.map_blocks(lambda block: [len(os.listdir("/proc/self/task"))], n_items=1)
            assert there == [1]
            product = executor.map_blocks(lambda x: x @ x, np.ones((1, 300, 300)), block_items=1)
            assert np.array_equal(product[0], np.full((300, 300), 300.0))
