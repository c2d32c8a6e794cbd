"""What was wrong, the value, and the way out: each row of the table of bad input."""

import re
import sys

import numpy as np
import pytest

import parcompute as pc

BACKENDS = ("serial", "threads", "processes", "auto", "pool", "joblib")


@pytest.fixture(scope="module", params=BACKENDS)
def executor(request):
    with pc.Executor(None if request.param == "serial" else 2, backend=request.param) as executor:
        executor.reduce_blocks(np.sum, np.ones(8), block_items=1)  # the helpers of a program are there
        yield executor


@pytest.mark.parametrize(
    ("workers", "kind", "says"),
    [
        (0, ValueError, "n_workers=0|workers=0 is out of range; pass at least 1"),
        (-1, ValueError, "workers=-1 is out of range; pass at least 1"),
        ("4", TypeError, "workers='4' is str; pass a whole number"),
        (2.0, TypeError, "workers=2.0 is float; pass a whole number"),
        (True, TypeError, "workers=True is bool; pass a whole number"),
        (10**6, ValueError, "workers=1000000 is out of range; pass 1 to 4096"),
    ],
)
def test_a_number_of_workers_out_of_its_range_is_named(workers, kind, says):
    with pytest.raises(kind, match=says):
        pc.Executor(workers)


def test_more_workers_than_cpus_are_allowed_and_warned_of(monkeypatch):
    monkeypatch.setenv("PARCOMPUTE_WORKERS", "1")
    with pytest.warns(UserWarning, match="workers=2 is more than the 1 CPUs"), pc.Executor(2, backend="threads") as ex:
        assert ex.n_workers == 2


@pytest.mark.parametrize(
    ("option", "says"),
    [
        (
            {"backend": "proceses"},
            "backend='proceses' is unknown; pass one of serial, threads, processes, auto, pool, joblib",
        ),
        ({"schedule": "gided"}, "schedule='gided' is unknown; pass one of static, dynamic, guided"),
        ({"schedule": "dynamic,0"}, "the chunk size is '0'; pass a number of blocks of at least 1"),
        ({"start_method": "vfork"}, "start_method='vfork' is unknown; pass one of fork, forkserver, spawn"),
        ({"backend": "threads", "start_method": "fork"}, "start_method='fork' has no meaning for backend 'threads'"),
        ({"backend": "pool", "threads_per_worker": 2}, "threads_per_worker=2 needs backend='processes'"),
        ({"pin": "socket"}, "pin='socket' is unknown; pass False or 'cores'"),
        ({"backend": "pool", "pin": "cores"}, "pin='cores' needs backend='processes'"),
        ({"retries": 0}, "retries=0 is out of range; pass at least 1"),
        ({"blas_threads": 0}, "blas_threads=0 is out of range"),
    ],
)
def test_an_unknown_choice_lists_the_known_ones(option, says):
    with pytest.raises(ValueError, match=re.escape(says)):
        pc.Executor(**{"workers": 1, **option})


def test_arrays_of_unequal_length_are_refused_with_both_lengths(executor):
    with pytest.raises(ValueError, match="array 0 has 3 rows and array 1 has 4"):
        executor.map_blocks(np.add, np.ones(3), np.ones(4))


def test_n_items_that_contradict_an_array_are_refused(executor):
    with pytest.raises(ValueError, match="n_items=4, but array 0 has 3 rows"):
        executor.map_blocks(np.sqrt, np.ones(3), n_items=4)


@pytest.mark.parametrize(
    ("array", "kind", "says"),
    [
        (np.array(1.0), ValueError, r"array 0 has no axis to cut \(shape \(\)\)"),
        (np.array([1, "a", None], object), TypeError, r"array 0 holds Python objects \(dtype object\); use map"),
        (["one", "two"], TypeError, "array 0 is list, and not of numbers only; use map"),
        ([[1.0], [2.0, 3.0]], TypeError, "array 0 is list, and not of numbers only; use map"),
        ({1.0}, TypeError, "array 0 is set; pass a NumPy array"),
        (np.ma.masked_array([1.0, 2.0], [0, 1]), TypeError, "array 0 is masked, and the mask would be lost"),
    ],
)
def test_what_is_no_array_of_rows_is_refused(executor, array, kind, says):
    with pytest.raises(kind, match=says):
        executor.map_blocks(np.sqrt, array)


def test_neither_arrays_nor_n_items_is_refused(executor):
    with pytest.raises(ValueError, match="neither arrays nor n_items"):
        executor.reduce_blocks(lambda: 1)


@pytest.mark.parametrize("kernel", [None, 3, "np.sqrt"])
def test_a_kernel_that_cannot_be_called_is_refused(executor, kernel):
    with pytest.raises(TypeError, match=f"kernel={kernel!r} is .*; pass a function of one block"):
        executor.map_blocks(kernel, np.ones(3))


@pytest.mark.parametrize(
    ("option", "kind", "says"),
    [
        ({"block_items": 0}, ValueError, "block_items=0 is out of range"),
        ({"block_items": 1.5}, TypeError, "block_items=1.5 is float"),
        ({"halo": -1}, ValueError, "halo=-1 is out of range"),
        ({"seed": -1}, ValueError, "seed=-1 is out of range"),
        ({"on_error": "ignore"}, ValueError, "on_error='ignore' is unknown; pass 'raise' or 'keep'"),
        ({"dtype": object}, TypeError, "dtype=object holds Python objects"),
        ({"out": [0.0] * 3}, TypeError, "out is list; pass an array"),
        ({"out": np.ones(4)}, ValueError, "out has 4 rows; pass 3, one per item"),
    ],
)
def test_options_of_map_blocks_that_make_no_sense_are_refused(executor, option, kind, says):
    with pytest.raises(kind, match=says):
        executor.map_blocks(np.sqrt, np.ones(3), **option)


def test_out_that_overlaps_an_input_or_cannot_be_written_is_refused(executor):
    x = np.ones(6)
    with pytest.raises(ValueError, match="out overlaps an input"):
        executor.map_blocks(np.sqrt, x[:3], out=x[1:4])
    fixed = np.ones(6)
    fixed.flags.writeable = False
    with pytest.raises(ValueError, match="out is read-only"):
        executor.map_blocks(np.sqrt, x, out=fixed)


@pytest.mark.parametrize(
    ("kernel", "got"),
    [
        (lambda b: b[:-1], r"expected 2 rows, one per item; got float64 \(1,\)"),
        (lambda b: b.sum(), r"expected 2 rows, one per item; got float64 \(\)"),
        (lambda b: None, "got None"),
        (lambda b: ["a", object()], "got list"),
    ],
)
def test_rows_that_do_not_fit_name_block_expected_and_got(executor, kernel, got):
    with pytest.raises(pc.KernelError, match=rf"failed on block \d \(items \d to \d\): ResultError: .*{got}") as caught:
        executor.map_blocks(kernel, np.ones(8), block_items=2)
    assert caught.value.block.size == 2  # any of them: they all fail, and the first to do so ends the job


def test_another_dtype_of_a_later_block_names_the_block(executor):
    def kernel(b, block):
        return b.astype("f4") if block.index == 3 else b

    with pytest.raises(pc.KernelError, match=r"block 3 .*expected float64 \(2,\), got float32 \(2,\)"):
        executor.map_blocks(kernel, np.ones(8), block_items=2)


def test_another_shape_of_a_later_block_names_the_block(executor):
    def kernel(b, block):
        return np.ones((2, 3 if block.index == 3 else 2))

    with pytest.raises(pc.KernelError, match=r"block 3 .*expected float64 \(2, 2\), got float64 \(2, 3\)"):
        executor.map_blocks(kernel, np.ones(8), block_items=2)


def test_nan_is_data_and_passes(executor):
    x = np.array([1.0, np.nan, np.inf, 4.0])
    np.testing.assert_array_equal(executor.map_blocks(np.sqrt, x, block_items=1), np.sqrt(x))
    assert np.isnan(executor.reduce_blocks(np.sum, x, block_items=1))


def test_a_kernel_cannot_write_to_its_input(executor):
    x = np.ones(8)

    def kernel(b):
        b += 1
        return b

    for array in (x, pc.share(x)):
        with pytest.raises(pc.KernelError, match="read-only"):
            executor.map_blocks(kernel, array, block_items=2)
        assert array.sum() == 8


def test_a_kernel_that_asks_for_out_needs_to_know_what_it_is(executor):
    def fill(block, out):
        out[:] = block.index

    with pytest.raises(ValueError, match="the kernel asks for out; pass dtype"):
        executor.map_blocks(fill, n_items=4)
    with pytest.raises(ValueError, match="the kernel asks for out, but the blocks of reduce_blocks have no rows"):
        executor.reduce_blocks(fill, n_items=4)


def test_a_closed_executor_says_so():
    executor = pc.Executor(1, backend="threads")
    executor.shutdown()
    executor.shutdown()
    with pytest.raises(RuntimeError, match=r"closed|shutdown"):
        executor.map_blocks(np.sqrt, np.ones(3))
    with pytest.raises(RuntimeError, match=r"closed|shutdown"):
        executor.submit(len, "")


def test_there_is_no_plan_and_no_timeline_before_the_first_job():
    with pc.Executor(backend="serial") as executor:
        for name in ("plan", "timeline"):
            with pytest.raises(RuntimeError, match=f"there is no {name} before the first"):
                getattr(executor, name)


def test_block_timeout_is_a_time_and_needs_processes():
    with pc.Executor(backend="serial") as executor, pytest.raises(ValueError, match="needs backend='processes'"):
        executor.reduce_blocks(len, np.ones(3), block_timeout=1)
    with pc.Executor(1) as executor:
        for bad, kind in ((0, ValueError), (-1.0, ValueError), ("1", TypeError), (float("nan"), ValueError)):
            with pytest.raises(kind, match="block_timeout="):
                executor.reduce_blocks(len, np.ones(3), block_timeout=bad)


def test_an_executor_in_one_of_eight_copies_warns_in_the_first_of_them(monkeypatch):
    monkeypatch.setenv("SLURM_STEP_ID", "0")
    monkeypatch.setenv("SLURM_STEP_NUM_TASKS", "8")
    monkeypatch.delitem(sys.modules, "mpi4py", raising=False)
    with pytest.warns(UserWarning, match="srun has started 8 copies of this program"):
        pc.Executor(1, backend="threads").shutdown()
    monkeypatch.setenv("SLURM_PROCID", "7")
    pc.Executor(1, backend="threads").shutdown()
