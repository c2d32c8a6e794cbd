"""The world in which a kernel or a call runs is the caller's, on each backend (docs/reference/settings.md)."""

import contextvars
import decimal
import locale
import os
import sys
import threading
import time
import warnings
from pathlib import Path

import numpy as np
import pytest

import parcompute as pc
from parcompute.jobs.world import World, process

BACKENDS = ("serial", "threads", "processes", "auto", "pool", "joblib")

trace = contextvars.ContextVar("trace", default="nobody")


@pytest.fixture(scope="module", params=BACKENDS)
def executor(request):
    # Before its workers start, so that none of them has it from the start.
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)
        with pc.Executor(1 if request.param == "serial" else 2, backend=request.param) as executor:
            executor.wait_until_ready()
            executor.submit(int).result()  # starts a thread
            yield executor


def everywhere(executor, function):
    """Return what a function without arguments returns within a block, a call, and a call of map."""
    block = []  # of any type, hence by reduce_blocks
    block.append(executor.reduce_blocks(lambda: [function()], n_items=1))
    return [*block[0], executor.submit(function).result(), *executor.map(lambda _: function(), range(2))]


def always(value):
    return [value] * 4


def test_errstate_is_the_callers(executor):
    with np.errstate(divide="raise", under="warn"):
        assert everywhere(executor, np.geterr) == always(np.geterr())
        with pytest.raises(pc.KernelError, match="FloatingPointError: divide by zero"):
            executor.map_blocks(lambda rows: 1 / rows, np.zeros(4))
        with pytest.raises(FloatingPointError):
            executor.submit(np.divide, np.ones(1), np.zeros(1)).result()
    assert everywhere(executor, np.geterr) == always(np.geterr())


def test_what_a_kernel_sets_ends_with_it(executor):
    executor.submit(np.seterr, divide="raise").result()
    executor.reduce_blocks(lambda: np.seterr(divide="raise") and 0, n_items=4, block_items=1)
    assert np.geterr()["divide"] == "warn"
    assert everywhere(executor, lambda: np.geterr()["divide"]) == always("warn")


def test_print_options_are_the_callers(executor):
    with np.printoptions(precision=2):
        assert everywhere(executor, lambda: str(np.array([1 / 3]))) == always("[0.33]")
    assert everywhere(executor, lambda: str(np.array([1 / 3]))) == always("[0.33333333]")


def test_decimal_context_is_the_callers(executor):
    third = decimal.Decimal(1) / 3
    with decimal.localcontext(prec=4):
        assert everywhere(executor, lambda: str(decimal.Decimal(1) / 3)) == always("0.3333")
    assert everywhere(executor, lambda: str(decimal.Decimal(1) / 3)) == always(str(third))


def test_context_variables_are_the_callers(executor):
    token = trace.set("request 7")
    try:
        assert everywhere(executor, trace.get) == always("request 7")
        assert everywhere(executor, lambda: trace.get()) == always("request 7")
    finally:
        trace.reset(token)
    assert everywhere(executor, lambda: trace.get()) == always("nobody")


def test_a_context_variable_of_a_function_travels_with_it(executor):
    own = contextvars.ContextVar("own")

    def told():
        return own.get("unset")

    assert everywhere(executor, told) == always("unset")
    own.set(8)
    assert everywhere(executor, told) == always(8)


def test_a_value_that_cannot_travel_stays_here(executor):
    token = trace.set(threading.Lock())
    try:
        threads = executor.backend in ("serial", "threads")
        assert executor.submit(lambda: trace.get() != "nobody").result() is threads
    finally:
        trace.reset(token)


def warn():
    warnings.warn("beware", UserWarning, stacklevel=1)
    return "silent"


@pytest.mark.skipif(sys.version_info >= (3, 14), reason="filters may be of a context there")
def test_filters_of_warnings_are_the_callers(executor):
    with warnings.catch_warnings():
        warnings.simplefilter("error", UserWarning)
        with pytest.raises(pc.KernelError, match="UserWarning: beware"):
            executor.reduce_blocks(warn, n_items=1)
        with pytest.raises(UserWarning, match="beware"):
            executor.submit(warn).result()
        warnings.simplefilter("ignore", UserWarning)
        assert everywhere(executor, warn) == always("silent")


def test_limits_are_the_callers(executor):
    before, digits = sys.getrecursionlimit(), sys.get_int_max_str_digits()
    sys.setrecursionlimit(before + 700)
    sys.set_int_max_str_digits(5000)
    try:
        found = always((before + 700, 5000))
        assert everywhere(executor, lambda: (sys.getrecursionlimit(), sys.get_int_max_str_digits())) == found
    finally:
        sys.setrecursionlimit(before)
        sys.set_int_max_str_digits(digits)
    found = everywhere(executor, lambda: (sys.getrecursionlimit(), sys.get_int_max_str_digits()))
    assert found == always((before, digits))


def test_locale_is_the_callers(executor):
    before = locale.setlocale(locale.LC_ALL)
    try:
        locale.setlocale(locale.LC_TIME, "C.UTF-8")
        wanted = locale.setlocale(locale.LC_TIME)
        assert everywhere(executor, lambda: locale.setlocale(locale.LC_TIME)) == always(wanted)
    finally:
        locale.setlocale(locale.LC_ALL, before)
    assert everywhere(executor, lambda: locale.setlocale(locale.LC_TIME)) == always("C")


def test_relative_names_are_of_the_callers_folder(executor, tmp_path, monkeypatch):
    for name in ("one", "two"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "data").write_text(name)
    before = os.getcwd()
    for name in ("one", "two"):
        monkeypatch.chdir(tmp_path / name)
        assert everywhere(executor, lambda: Path("data").read_text()) == always(name)
    os.chdir(before)
    assert everywhere(executor, os.getcwd) == always(before)


def test_environment_is_the_callers(executor, monkeypatch):
    monkeypatch.setenv("PARCOMPUTE_TEST", "set")
    monkeypatch.setenv("TZ", "UTC-3")
    time.tzset()
    assert everywhere(executor, lambda: (os.environ.get("PARCOMPUTE_TEST"), time.timezone)) == always(("set", -10800))
    monkeypatch.undo()
    time.tzset()
    assert everywhere(executor, lambda: (os.environ.get("PARCOMPUTE_TEST"), time.timezone)) == always((None, 0))


def test_modules_that_can_be_found_now_are_found_by_workers(executor, tmp_path, monkeypatch):
    name = f"found_later_{executor.backend}"
    (tmp_path / f"{name}.py").write_text("def kernel():\n    return 42\n")
    monkeypatch.syspath_prepend(tmp_path)
    assert everywhere(executor, __import__(name).kernel) == always(42)
    del sys.modules[name]


def test_later_calls_of_map_run_in_the_world_of_map(executor):
    with np.errstate(divide="raise"):
        results = executor.map(lambda _: np.geterr()["divide"], range(40), chunksize=1)
    assert set(results) == {"raise"}


def test_threads_do_not_share_a_decimal_context_with_the_caller():
    def precise(n):
        decimal.getcontext().prec = n
        return decimal.getcontext().prec

    with decimal.localcontext(prec=9), pc.Executor(2, backend="threads") as executor:
        assert list(executor.map(precise, range(1, 30), chunksize=1)) == list(range(1, 30))
        assert decimal.getcontext().prec == 9


@pytest.mark.parametrize("threads", [1, 2])
def test_each_start_method_and_thread_has_the_callers_world(start_method, threads):
    with (
        np.errstate(divide="raise"),
        decimal.localcontext(prec=4),
        pc.Executor(1, start_method=start_method, threads_per_worker=threads) as executor,
    ):
        found = executor.reduce_blocks(
            lambda: [(np.geterr()["divide"], decimal.getcontext().prec)], n_items=8, block_items=1
        )
        assert found == [("raise", 4)] * 8
        np.seterr(divide="ignore")
        assert executor.submit(np.geterr).result() == np.geterr()


def test_a_worker_that_was_forked_has_nothing_that_its_parent_has_ended_since():
    token = trace.set("at the start")
    with np.errstate(divide="raise"), pc.Executor(1, start_method="fork") as executor:
        executor.wait_until_ready()
        trace.reset(token)
        np.seterr(divide="warn")
        assert executor.submit(lambda: (trace.get(), np.geterr()["divide"])).result() == ("nobody", "warn")


def test_of_what_has_not_changed_nothing_is_told():

    assert contextvars.Context().run(lambda: World().told(process())) is None
    assert contextvars.Context().run(lambda: World().told(None)) is not None
