"""A job that equals the one before is not pickled again, and whatever has changed is seen all the same."""

import functools
import math
import os
import signal
import weakref

import h5py
import numpy as np
import pytest

import parcompute as pc
from parcompute.backends.processes.parcels import Parcels
from parcompute.jobs.job import Job
from parcompute.jobs.partials import Partials
from parcompute.memory import leases, shared
from parcompute.values.blocks import Plan

scale = 1.0
settings = {"scale": 1.0}


@pytest.fixture(scope="module", params=["fork", "forkserver", "spawn"])
def executor(request):
    with pc.Executor(2, start_method=request.param) as executor:
        executor.wait_until_ready()
        yield executor


def key_of(executor):
    return executor._backend._parcels._key


def total(executor, kernel, *arrays, **options):
    n = {} if arrays else {"n_items": 8}
    return executor.reduce_blocks(kernel, *arrays, block_items=2, **n, **options)


def by_value(function):
    """Have a function of this module travel by value, as one of a notebook does."""
    copy = type(function)(function.__code__, globals(), function.__name__, function.__defaults__, function.__closure__)
    copy.__kwdefaults__, copy.__module__ = function.__kwdefaults__, "__main__"
    return copy


# --- what stays the same -----------------------------------------------------------------------------------


def kernels():
    offset, numbers = 2.0, np.arange(3.0)

    def inner(x):
        return x.sum() * scale + math.tau * offset

    def with_default(x, k=3, *, c=(1, "two", None)):
        return inner(x) * k + numbers.sum() + len(c) + settings["scale"]

    return {
        "of a module": np.sum,
        "a closure": by_value(inner),
        "with defaults": by_value(with_default),
        "partial": functools.partial(by_value(with_default), k=5),
        "a lambda": by_value(lambda x: x.max()),
    }


@pytest.mark.parametrize("name", kernels())
def test_the_same_job_is_pickled_once(executor, name):
    kernel, x = kernels()[name], pc.share(np.arange(8.0))
    first = total(executor, kernel, x)
    key = key_of(executor)
    with pc.Executor(backend="serial") as serial:
        assert first == total(serial, kernel, x)
    for number in range(3):
        x[:] = number
        assert total(executor, kernel, x) == total(pc.Executor(backend="serial"), kernel, x)
    assert key_of(executor) == key


def test_a_job_with_other_arrays_of_the_same_form_has_the_same_program(executor):
    kernel = by_value(lambda x, y: x.sum() - y.sum())
    x, y = pc.share(np.arange(8.0)), pc.share(np.ones(8))
    assert total(executor, kernel, x, y) == 20.0
    key = key_of(executor)
    assert total(executor, kernel, y, x) == -20.0
    assert total(executor, kernel, np.zeros(8), x) == -28.0
    assert key_of(executor) == key


def test_a_job_that_is_cut_otherwise_has_the_same_program(executor):
    def squares(x, *, block):
        return np.full((len(x), len(x)), block.index)

    x, keys = np.arange(12), set()
    for block_items in (3, 4, 3, 2):
        got = executor.map_blocks(squares, x, block_items=block_items)
        assert got.shape == (12, block_items)
        assert np.array_equal(got[:, 0], x // block_items)
        keys.add(key_of(executor))
    assert len(keys) == 1


def test_each_job_has_its_own_seed(executor):
    kernel = by_value(lambda block, rng: rng.random())
    values = [total(executor, kernel, seed=seed) for seed in (1, 2, 1)]
    assert values[0] == values[2] != values[1]
    assert total(executor, kernel) != total(executor, kernel)


# --- what has changed --------------------------------------------------------------------------------------


def changes():
    """Return, by name, a kernel, its options, and what changes the result."""
    global scale
    scale, offset = 1.0, 1.0
    array, many = np.ones(3), np.ones(200_000)
    shared, listed, named = pc.share(np.ones(3)), [1.0], {"a": 1.0}

    class Callable:
        factor = 1.0

        def __call__(self, block):
            return self.factor

    called = Callable()

    def set_offset():
        nonlocal offset
        offset = 3.0

    def set_scale():
        global scale
        scale = 3.0

    def helper():
        return scale

    called_helper = by_value(helper)

    def default(block, k=1.0):
        return k

    default = by_value(default)

    def code(block):
        return 1.0

    code = by_value(code)

    return {
        "a variable of the closure": (by_value(lambda block: offset), {}, set_offset),
        "a variable of the module": (by_value(lambda block: scale), {}, set_scale),
        "a variable of a function that it calls": (by_value(lambda block: called_helper()), {}, set_scale),
        "a small array": (by_value(lambda block: array[0]), {}, lambda: array.fill(3)),
        "a large array": (by_value(lambda block: many[0]), {}, lambda: many.fill(3)),
        "an array in shared memory": (by_value(lambda block: shared[0]), {}, lambda: shared.fill(3)),
        "a list": (by_value(lambda block: listed[0]), {}, lambda: listed.__setitem__(0, 3.0)),
        "a dict": (by_value(lambda block: named["a"]), {}, lambda: named.update(a=3.0)),
        "an array in args": (by_value(lambda block, a: a[0]), {"args": (array,)}, lambda: array.fill(3)),
        "a large array in args": (by_value(lambda block, a: a[0]), {"args": (many,)}, lambda: many.fill(3)),
        "a default": (default, {}, lambda: setattr(default, "__defaults__", (3.0,))),
        "its code": (code, {}, lambda: setattr(code, "__code__", (lambda block: 3.0).__code__)),
        "an attribute of an object": (called, {}, lambda: setattr(called, "factor", 3.0)),
    }


@pytest.mark.parametrize("name", changes())
def test_what_has_changed_since_the_last_job_is_seen(executor, name):
    kernel, options, change = changes()[name]
    assert total(executor, kernel, **options) == total(executor, kernel, **options) == 4.0
    change()
    assert total(executor, kernel, **options) == 12.0


def test_zeros_of_both_signs_and_numbers_of_all_types_are_told_apart(executor):
    kernel = by_value(lambda block, value: repr(value))
    values = [0.0, -0.0, 0, False, 0j, np.float32(0), np.float64(0), np.float64("nan"), float("nan"), "0", b"0", None]
    for value in values:
        found = executor.reduce_blocks(kernel, n_items=1, args=(value,))
        assert found == repr(value)


def test_state_of_an_argument_begins_anew_with_each_job():
    def draws(block, generator):
        return generator.random()

    with pc.Executor(1) as executor:
        generator = np.random.default_rng(1)
        first = executor.reduce_blocks(draws, n_items=3, block_items=1, args=(generator,))
        assert executor.reduce_blocks(draws, n_items=3, block_items=1, args=(generator,)) == first


# --- results that look otherwise ---------------------------------------------------------------------------


@pytest.mark.parametrize("keep", [{}, {"on_error": "keep"}])
def test_rows_may_look_otherwise_in_the_next_job(executor, keep):
    kinds = pc.share(np.zeros(8, int))

    def kernel(kind):
        return [kind * 1, kind * 0.5, np.zeros((len(kind), 3)), (kind, kind), None][kind[0]]

    with pc.Executor(backend="serial") as serial:
        for kind in (0, 0, 1, 1, 2, 3, 0, 0):
            kinds[:] = kind
            found, expected = (ex.map_blocks(kernel, kinds, block_items=2, **keep) for ex in (executor, serial))
            assert executor.failures == serial.failures == ()
            np.testing.assert_equal(found, expected)
            assert np.asarray(found).dtype == np.asarray(expected).dtype
        kinds[:] = 0
        kinds[4:] = 4  # block 2 returns nothing
        for executor_ in (executor, serial):
            if keep:
                assert executor_.map_blocks(kernel, kinds, block_items=2, **keep).tolist() == [0] * 8
                assert [failure.block.index for failure in executor_.failures] == [2, 3]
            else:
                with pytest.raises(pc.KernelError, match="block 2"):
                    executor_.map_blocks(kernel, kinds, block_items=2)


def test_partials_may_look_otherwise_in_the_next_job(executor):
    kinds = pc.share(np.zeros(8, int))

    def kernel(kind):
        return [1, 1.5, np.ones(2), (1, 2.0), 2**70, {"a": np.float32(1)}][kind[0]]

    with pc.Executor(backend="serial") as serial:
        for kind in (0, 0, 1, 2, 3, 4, 5, 0):
            kinds[:] = kind
            found, expected = (total(ex, kernel, kinds) for ex in (executor, serial))
            assert repr(found) == repr(expected)


def test_a_result_is_nobody_elses(executor):
    """Rows of partials are used again by the next job, what was returned is not."""
    x = pc.share(np.arange(8.0))
    kernel = by_value(lambda x: x.copy())
    first = executor.reduce_blocks(kernel, x, block_items=8)
    rows = executor.map_blocks(kernel, x, block_items=2)
    x += 1
    executor.reduce_blocks(kernel, x, block_items=8)
    executor.map_blocks(kernel, x, block_items=2)
    assert first.tolist() == rows.tolist() == list(range(8))


# --- who has it, and for how long --------------------------------------------------------------------------


def test_a_worker_that_replaces_another_gets_all_of_the_job():
    x = pc.share(np.arange(8.0))
    kernel = by_value(lambda x: x.sum())
    with pc.Executor(2) as executor:
        assert total(executor, kernel, x) == 28.0
        key = key_of(executor)
        for pid in executor.worker_pids:
            os.kill(pid, signal.SIGKILL)
        assert total(executor, kernel, x) == total(executor, kernel, x) == 28.0
        assert key_of(executor) == key


def test_a_file_is_not_held_open_after_the_job(tmp_path):
    with h5py.File(tmp_path / "in.h5", "w") as file:
        file["x"] = np.arange(8.0)
    with pc.Executor(2) as executor:
        with h5py.File(tmp_path / "in.h5", "r") as file:
            assert total(executor, np.sum, file["x"]) == total(executor, np.sum, file["x"]) == 28.0
        for pid in executor.worker_pids:
            assert not any("in.h5" in os.readlink(f"/proc/{pid}/fd/{fd}") for fd in os.listdir(f"/proc/{pid}/fd"))
        with h5py.File(tmp_path / "in.h5", "a") as file:  # HDF5 would refuse it
            file["y"] = 1


def test_what_is_compared_holds_on_to_no_array():
    array = pc.share(np.arange(8.0))
    segment = weakref.ref(shared.segment_of(array))
    kernel, parcels = by_value(lambda x, y: x.sum() + y.sum()), Parcels()
    job = Job(kernel, (array,), plan := Plan.cut(8, 2), Partials(plan), args=(array,))
    parcel, keep_alive = parcels.of(job)
    assert parcel.stays
    assert any(kept is array for kept in keep_alive)
    leases.release_kept()
    del job, keep_alive, array
    leases.release_kept()
    assert segment() is None
