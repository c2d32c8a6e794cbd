"""joblib and scikit-learn on the workers of parcompute: what ``joblib.Parallel`` promises holds there."""

import collections
import contextlib
import gc
import importlib
import importlib.util
import itertools
import multiprocessing
import os
import pickle
import signal
import subprocess
import sys
import threading
import time
import traceback
import weakref

import cloudpickle
import joblib
import numpy as np
import pytest
import threadpoolctl
from joblib import Parallel, delayed

import parcompute as pc
from parcompute.machine import limits
from parcompute.memory import shared

# The workers of a test session can import the package, but not its tests.
cloudpickle.register_pickle_by_value(sys.modules[__name__])

LARGE = 2**18  # floats: 2 MiB, above joblib's threshold of one


@pytest.fixture
def context():
    """Run a test in a context with two workers."""
    with joblib.parallel_config(backend="parcompute", n_jobs=2):
        yield


def squares(n, **options):
    return list(Parallel(**options)(delayed(pow)(i, 2) for i in range(n)))


def expected_squares(n):
    return [i * i for i in range(n)]


def pids(_):
    return os.getpid()


class Gate:
    """A named pipe on which a task waits until someone opens the gate, or for ever."""

    def __init__(self, path):
        self.path = str(path)
        os.mkfifo(path)

    def wait(self):
        with open(self.path) as pipe:  # waits for the other end
            pipe.read()

    def open(self):
        with open(self.path, "w"):
            pass


@pytest.fixture
def gate(tmp_path):
    return Gate(tmp_path / "gate")


# --- the name ------------------------------------------------------------------------------------------------

ORDERS = {
    "joblib first": "import joblib; import parcompute",
    "joblib last": "import parcompute; import joblib",
    "from joblib last": "import parcompute; from joblib import Parallel; import joblib",
    "a part of joblib last": "import parcompute; import joblib.parallel",
    "looked for and not imported": "import parcompute, importlib.util as u; u.find_spec('joblib'); import joblib",
    "reloaded": "import parcompute, joblib, importlib; joblib.parallel.BACKENDS.pop('parcompute');"
    "importlib.reload(joblib)",
    "parcompute twice": "import sys, parcompute; [sys.modules.pop(m) for m in list(sys.modules) if 'parcompute' in m];"
    "import parcompute; import joblib",
}


@pytest.mark.parametrize("order", ORDERS.values(), ids=ORDERS)
def test_joblib_knows_the_name_whichever_is_imported_first(order):
    program = f"{order}; print(joblib.parallel_config(backend='parcompute').parallel_config['backend'])"
    ended = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=False)
    assert "parcompute.executor.joblib_backend.ParcomputeBackend" in ended.stdout, ended.stderr


def test_joblib_is_found_as_without_parcompute():
    spec = importlib.util.find_spec("joblib")
    assert spec.origin == joblib.__file__
    assert type(spec.loader) is type(importlib.util.find_spec("cloudpickle").loader)


def test_a_script_needs_no_main_guard_and_ends_without_a_word(tmp_path):
    script = tmp_path / "script.py"
    script.write_text(
        "import parcompute as pc\n"
        "import joblib\n"
        "with joblib.parallel_config(backend='parcompute', n_jobs=2):\n"
        "    print(joblib.Parallel()(joblib.delayed(lambda i: i * i)(i) for i in range(5)))\n"
    )
    ended = subprocess.run([sys.executable, script], capture_output=True, text=True, check=False)
    assert (ended.stdout, ended.stderr, ended.returncode) == ("[0, 1, 4, 9, 16]\n", "", 0)


def test_the_name_can_be_told_again(monkeypatch):
    monkeypatch.delitem(joblib.parallel.BACKENDS, "parcompute")
    pc.register_joblib()
    assert squares(3, backend="parcompute", n_jobs=2) == expected_squares(3)


# --- results -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("n_jobs", [1, 2, -1, None])
def test_results_come_in_order(n_jobs):
    with joblib.parallel_config(backend="parcompute"):
        assert squares(300, n_jobs=n_jobs) == expected_squares(300)


def test_any_number_of_tasks_is_run(context):
    for n_tasks in (0, 1, 2, 1000):
        assert squares(n_tasks) == expected_squares(n_tasks)


def test_results_come_in_order_however_they_are_batched(context):
    for batch_size, pre_dispatch in itertools.product(["auto", 1, 7], ["all", "2*n_jobs", 1]):
        assert squares(200, batch_size=batch_size, pre_dispatch=pre_dispatch) == expected_squares(200)


def test_quick_tasks_are_batched(context):
    parallel = Parallel(batch_size="auto")
    parallel(delayed(abs)(i) for i in range(3000))
    assert parallel.n_dispatched_tasks == 3000
    assert parallel.n_dispatched_batches < 1500


def long(_):
    time.sleep(0.05)  # the work
    return os.getpid()


def test_long_tasks_behind_many_quick_ones_are_spread_over_the_workers():
    parallel = Parallel(n_jobs=4, backend="parcompute")
    found = parallel([delayed(abs)(i) for i in range(1000)] + [delayed(long)(i) for i in range(64)])
    assert found[:1000] == list(range(1000))
    assert max(collections.Counter(found[1000:]).values()) <= 64 // 4 * 3 // 2


def test_a_batch_that_takes_long_is_given_back(context, gate):
    # The waiting and the opening task of a batch need a worker each.
    tasks = [delayed(long)(0), delayed(gate.wait)(), delayed(gate.open)(), delayed(abs)(-3)]
    tasks += [delayed(abs)(-i) for i in range(4)]
    found = Parallel(batch_size=4, pre_dispatch="all", timeout=60)(tasks)
    assert found[1:] == [None, None, 3, 0, 1, 2, 3]


def test_tasks_run_in_the_workers_and_these_serve_all_calls_of_a_context(context):
    used = {pid for _ in range(4) for pid in Parallel()(delayed(pids)(i) for i in range(8))}
    assert 1 <= len(used) <= 2
    assert os.getpid() not in used


def test_each_context_has_workers_of_its_own():
    used = []
    for _ in range(3):
        with joblib.parallel_config(backend="parcompute", n_jobs=2):
            used.append(set(Parallel()(delayed(pids)(i) for i in range(8))))
    assert not set.intersection(*used)


def test_the_backend_can_be_named_without_a_context():
    assert squares(10, n_jobs=2, backend="parcompute") == expected_squares(10)


def test_contexts_may_nest():
    with joblib.parallel_config(backend="parcompute", n_jobs=2):
        with joblib.parallel_config(backend="threading", n_jobs=2):
            assert set(Parallel()(delayed(pids)(i) for i in range(4))) == {os.getpid()}
        assert os.getpid() not in Parallel()(delayed(pids)(i) for i in range(4))


def test_another_number_of_jobs_brings_as_many_workers():
    with joblib.parallel_config(backend="parcompute", n_jobs=2):
        assert squares(20) == expected_squares(20)
        assert squares(20, n_jobs=3) == expected_squares(20)
        assert set(Parallel(n_jobs=1)(delayed(pids)(i) for i in range(3))) == {os.getpid()}


def test_who_leaves_the_number_open_gets_all_cpus():
    with joblib.parallel_config(backend="parcompute"):
        assert joblib.effective_n_jobs(None) == joblib.effective_n_jobs(-1) == limits.usable_cpus()
        assert joblib.effective_n_jobs(-1000) == 1
        assert joblib.effective_n_jobs(5) == 5


def test_no_jobs_at_all_are_refused(context):
    with pytest.raises(ValueError, match="n_jobs == 0"):
        squares(3, n_jobs=0)


def test_unknown_options_are_refused():
    with pytest.raises(TypeError, match="exectuor"):
        joblib.parallel_config(backend="parcompute", exectuor=None)


def test_lambdas_closures_and_results_of_any_size_travel(context):
    factor = 3
    results = Parallel()(delayed(lambda n: np.full(n, factor))(n) for n in (1, 10, LARGE))
    assert [(len(found), found[0]) for found in results] == [(1, 3), (10, 3), (LARGE, 3)]


def test_two_threads_have_each_their_context():
    found = {}

    def run(n):
        with joblib.parallel_config(backend="parcompute", n_jobs=2):
            found[n] = squares(n)

    threads = [threading.Thread(target=run, args=(n,)) for n in (50, 60)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert found == {50: expected_squares(50), 60: expected_squares(60)}


# --- generators ----------------------------------------------------------------------------------------------


def test_a_generator_gives_results_in_order(context):
    assert squares(100, return_as="generator") == expected_squares(100)


def test_an_unordered_generator_gives_each_result_once(context):
    assert sorted(squares(100, return_as="generator_unordered")) == expected_squares(100)


def test_an_unordered_generator_does_not_wait_for_the_first_task(gate):
    def first_waits(i):
        if i == 0:
            gate.wait()
        return i

    with pc.Executor(2) as executor, joblib.parallel_config(backend="parcompute", executor=executor):
        executor.wait_until_ready()
        results = Parallel(return_as="generator_unordered", batch_size=1)(delayed(first_waits)(i) for i in range(2))
        assert next(results) == 1
        gate.open()
        assert list(results) == [0]


def test_no_quick_task_waits_behind_a_slow_one(context, gate):
    tasks = (delayed(gate.wait if i == 1 else abs)(*[i] * (i != 1)) for i in range(10))
    results = Parallel(return_as="generator_unordered", timeout=60)(tasks)
    assert sorted(next(results) for _ in range(9)) == [0, *range(2, 10)]
    gate.open()
    assert list(results) == [None]


@pytest.mark.parametrize("return_as", ["generator", "generator_unordered"])
@pytest.mark.parametrize("managed", [False, True])
def test_a_call_beside_a_running_generator_of_the_same_parallel_is_refused(gate, return_as, managed):
    parallel = Parallel(n_jobs=2, backend="parcompute", return_as=return_as)
    with parallel if managed else contextlib.nullcontext():
        for close in (True, False):
            results = parallel(delayed(gate.wait)() for _ in range(4))
            with pytest.raises(RuntimeError, match="This Parallel instance is already running"):
                parallel(delayed(pow)(i, 2) for i in range(3))
            with pytest.warns(UserWarning, match="have been cancelled"):
                results = results.close() if close else None
            assert sorted(parallel(delayed(pow)(i, 2) for i in range(3))) == expected_squares(3)


def test_a_generator_that_is_dropped_costs_no_other_call_its_workers(context, gate):
    dropped = Parallel(return_as="generator")(delayed(gate.wait)() for _ in range(4))
    results = Parallel(return_as="generator")(delayed(pow)(i, 2) for i in range(30))
    with pytest.warns(UserWarning, match="have been cancelled"):
        del dropped
    assert list(results) == expected_squares(30)


@pytest.mark.parametrize("return_as", ["generator", "generator_unordered"])
def test_a_generator_may_be_dropped(context, return_as):
    results = Parallel(return_as=return_as, batch_size=1)(delayed(pow)(i, 2) for i in itertools.count())
    taken = list(itertools.islice(results, 5))
    with pytest.warns(UserWarning, match="have been"):
        results.close()
    assert len(taken) == 5
    assert squares(20) == expected_squares(20)


def test_calls_may_be_made_while_a_generator_runs(context):
    results = Parallel(return_as="generator")(delayed(pow)(i, 2) for i in range(300))
    found = []
    for n, square in enumerate(results):
        found.append(square)
        if n % 100 == 0:
            assert squares(10) == expected_squares(10)
            gc.collect()
    assert found == expected_squares(300)


# --- failures ------------------------------------------------------------------------------------------------


def reciprocal(i):
    return 1 / (i - 7)


def raising_tasks(n):
    for i in range(n):
        if i == 13:
            raise LookupError("no such task")
        yield delayed(pow)(i, 2)


@pytest.mark.parametrize("return_as", ["list", "generator", "generator_unordered"])
def test_an_exception_arrives_with_the_traceback_of_the_task(context, return_as):
    with pytest.raises(ZeroDivisionError) as caught:
        list(Parallel(return_as=return_as)(delayed(reciprocal)(i) for i in range(20)))
    assert "return 1 / (i - 7)" in "".join(traceback.format_exception(caught.value))
    assert squares(20) == expected_squares(20)


def test_an_exception_of_the_iterable_arrives(context):
    with pytest.raises(LookupError, match="no such task"):
        Parallel()(raising_tasks(20))
    assert squares(20) == expected_squares(20)


def test_a_task_that_cannot_travel_is_named(context):
    lock = threading.Lock()
    with pytest.raises(pickle.PicklingError, match="cannot travel to a worker"):
        Parallel()(delayed(lambda i: lock)(i) for i in range(4))
    assert squares(20) == expected_squares(20)


class Unwilling:
    def __reduce__(self):
        raise RuntimeError("not me")


def test_a_task_that_refuses_to_travel_cannot_be_pickled(context):
    with pytest.raises(pickle.PicklingError, match="not me"):
        Parallel()(delayed(id)(Unwilling()) for i in range(4))


def without_end(i):
    return without_end(i + 1)


def chained(i):
    try:
        reciprocal(7)
    except ZeroDivisionError as error:
        raise OSError(2, "no such number", "seven") from error


@pytest.mark.parametrize(("function", "error"), [(without_end, RecursionError), (chained, FileNotFoundError)])
def test_an_exception_arrives_as_what_it_is(context, function, error):
    with pytest.raises(error) as caught:
        Parallel()(delayed(function)(i) for i in range(4))
    assert type(caught.value) is error
    assert error is RecursionError or caught.value.args == (2, "no such number")
    assert f"in {function.__name__}" in str(caught.value.__cause__)


def test_a_result_that_cannot_travel_is_named(context):
    with pytest.raises(TypeError, match="lock"):
        Parallel()(delayed(lambda i: threading.Lock())(i) for i in range(4))
    assert squares(20) == expected_squares(20)


@pytest.mark.parametrize("return_as", ["list", "generator", "generator_unordered"])
def test_a_task_that_takes_too_long_is_ended(context, gate, return_as):
    with pytest.raises(multiprocessing.TimeoutError):
        list(Parallel(timeout=0.1, return_as=return_as)(delayed(gate.wait)() for _ in range(4)))
    assert squares(20) == expected_squares(20)


def test_a_timeout_spares_tasks_that_are_quick_enough(context):
    assert squares(50, timeout=100) == expected_squares(50)


FAILURES = {
    "a task raises": (lambda gate: (delayed(reciprocal)(i) for i in range(100)), ZeroDivisionError),
    "the first task raises": (lambda gate: (delayed(reciprocal)(i) for i in range(7, 100)), ZeroDivisionError),
    "the iterable raises": (lambda gate: raising_tasks(100), LookupError),
    "a task takes too long": (lambda gate: (delayed(gate.wait)() for _ in range(100)), multiprocessing.TimeoutError),
    "a task cannot travel": (lambda gate: (delayed(id)(threading.Lock()) for _ in range(9)), pickle.PicklingError),
}


@pytest.mark.parametrize(("tasks", "error"), FAILURES.values(), ids=FAILURES)
@pytest.mark.parametrize("batch_size", ["auto", 1])
def test_the_calls_after_a_failed_one_have_their_own_results(tasks, error, batch_size, gate):
    with Parallel(n_jobs=2, backend="parcompute", batch_size=batch_size) as parallel:
        for _ in range(2):
            parallel.timeout = 0.1 if error is multiprocessing.TimeoutError else None
            with pytest.raises(error):
                parallel(tasks(gate))
            parallel.timeout = None
            for n in (30, 1, 50):
                assert parallel(delayed(pow)(i, 2) for i in range(n)) == expected_squares(n)


def test_a_killed_worker_costs_nothing(context, tmp_path):
    def killed_once(i):
        with contextlib.suppress(FileExistsError):
            if i == 11:
                os.close(os.open(tmp_path / "killed", os.O_CREAT | os.O_EXCL))
                os.kill(os.getpid(), signal.SIGKILL)
        return i * i

    assert Parallel()(delayed(killed_once)(i) for i in range(50)) == expected_squares(50)
    assert (tmp_path / "killed").exists()


def killing(i):
    if i == 11:
        os.kill(os.getpid(), signal.SIGKILL)
    return i


@pytest.mark.parametrize("return_as", ["list", "generator", "generator_unordered"])
def test_a_task_that_kills_its_workers_is_given_up(context, return_as):
    with pytest.raises(pc.WorkerLost, match="SIGKILL"):
        list(Parallel(return_as=return_as)(delayed(killing)(i) for i in range(50)))
    assert squares(20) == expected_squares(20)


# --- arrays --------------------------------------------------------------------------------------------------


def look_at(array):
    segment = shared.segment_of(array)
    return segment and segment.inode, bool(array.flags.writeable), float(array.sum())


def test_a_large_array_is_shared_once_by_all_tasks_of_a_call(context):
    x = np.arange(LARGE, dtype=float)
    seen = set(Parallel(batch_size=1)(delayed(look_at)(x) for _ in range(10)))
    ((inode, writeable, total),) = seen
    assert inode is not None
    assert writeable  # a copy on write
    assert total == x.sum()


def test_a_large_array_within_an_object_is_shared(context):
    x = np.arange(LARGE, dtype=float)
    seen = Parallel()(delayed(lambda data: look_at(data["x"][0]))({"x": [x]}) for _ in range(4))
    assert len(set(seen)) == 1
    assert seen[0][0] is not None


def test_each_call_sees_what_the_array_holds_then(context):
    x = np.zeros(LARGE)
    for value in (1.0, 2.0, 3.0):
        x[:] = value
        assert {total for _, _, total in Parallel()(delayed(look_at)(x) for _ in range(4))} == {value * LARGE}


def test_large_temporary_arrays_are_told_apart(context):
    totals = [total for _, _, total in Parallel()(delayed(look_at)(np.full(LARGE, float(i))) for i in range(20))]
    assert totals == [float(i) * LARGE for i in range(20)]


@pytest.mark.parametrize("options", [{"max_nbytes": None}, {"mmap_mode": None}, {"mmap_mode": "c"}], ids=str)
def test_joblibs_options_have_arrays_copied(context, options):
    seen = Parallel(**options)(delayed(look_at)(np.ones(LARGE)) for _ in range(2))
    assert seen == [(None, True, LARGE)] * 2


def test_joblibs_threshold_holds(context):
    x = np.ones(1000)
    assert Parallel()(delayed(look_at)(x) for _ in range(2))[0][0] is None
    assert Parallel(max_nbytes="1K")(delayed(look_at)(x) for _ in range(2))[0][0] is not None


@pytest.mark.parametrize("given", [False, True])
def test_no_array_is_kept_between_the_calls_of_a_parallel(given):
    with contextlib.ExitStack() as stack:
        options = {"executor": stack.enter_context(pc.Executor(2))} if given else {}
        stack.enter_context(joblib.parallel_config(backend="parcompute", n_jobs=2, **options))
        parallel = stack.enter_context(Parallel())
        gone = []
        for _ in range(2):
            x = np.ones(LARGE)
            x_in_tasks = [delayed(look_at)(x) for _ in range(4)]
            assert len(set(parallel(x_in_tasks))) == 1
            assert not parallel._backend._lent
            gone.append(weakref.ref(x))
            del x, x_in_tasks
        assert [known() for known in gone] == [None, None]


def put(array, i):
    array[i] = i + 1


def test_tasks_may_write_to_the_copy_that_they_share(context):
    x = np.zeros(LARGE)
    Parallel(mmap_mode="r+")(delayed(put)(x, i) for i in range(10))
    assert not x.any()


@pytest.mark.parametrize("view", [lambda x: x, lambda x: x[2:].view(np.ndarray)], ids=["memmap", "view"])
def test_tasks_write_into_a_file_that_is_mapped_for_writing(context, tmp_path, view):
    out = view(np.memmap(tmp_path / "out", mode="w+", shape=12))
    Parallel()(delayed(put)(out, i) for i in range(len(out)))
    assert list(out) == list(range(1, len(out) + 1))


def test_a_file_that_is_mapped_for_reading_stays_as_it_is(context, tmp_path):
    np.memmap(tmp_path / "in", mode="w+", shape=12).flush()
    mapped = np.memmap(tmp_path / "in", mode="r", shape=12)
    Parallel()(delayed(put)(mapped, i) for i in range(12))  # each into a copy of its own
    assert not np.fromfile(tmp_path / "in", "u1").any()
    assert Parallel()(delayed(np.sum)(mapped) for _ in range(2)) == [0, 0]


SUBCLASSES = {
    "masked": lambda: np.ma.masked_array(np.ones(LARGE), mask=np.arange(LARGE) % 2),
    "matrix": lambda: np.ones((LARGE // 4, 4)).view(np.matrix),
    "records": lambda: np.rec.fromarrays([np.ones(LARGE), np.zeros(LARGE)], names="a,b"),
}


@pytest.mark.filterwarnings("ignore:the matrix subclass:PendingDeprecationWarning")
@pytest.mark.parametrize("make", SUBCLASSES.values(), ids=SUBCLASSES)
def test_arrays_of_other_kinds_stay_what_they_are(context, make):
    array = make()
    expected = type(array).__name__, repr(array[:4])
    assert Parallel()(delayed(lambda x: (type(x).__name__, repr(x[:4])))(array) for _ in range(2)) == [expected] * 2
    with pc.Executor(2) as executor:
        assert executor.submit(lambda x: (type(x).__name__, repr(x[:4])), array).result() == expected


# --- within tasks --------------------------------------------------------------------------------------------


def inner(i, **options):
    return sum(Parallel(**options)(delayed(pow)(j, 2) for j in range(i)))


@pytest.mark.parametrize(
    "options", [{}, {"n_jobs": 2}, {"n_jobs": 2, "backend": "parcompute"}, {"n_jobs": -1, "prefer": "threads"}], ids=str
)
def test_tasks_may_call_joblib(context, options):
    found = Parallel()(delayed(inner)(i, **options) for i in range(4))
    assert found == [sum(expected_squares(i)) for i in range(4)]


def test_the_calls_of_one_job_still_have_the_workers(context):
    def outer():
        return set(Parallel(n_jobs=2)(delayed(pids)(i) for i in range(8)))

    (used,) = Parallel(n_jobs=1)(delayed(outer)() for _ in range(1))
    assert os.getpid() not in used


def test_a_loop_within_a_task_has_workers_if_it_asks_for_them(context):
    def outer():
        inner = Parallel(n_jobs=2, backend="parcompute")(delayed(pids)(i) for i in range(4))
        return os.getpid(), inner, Parallel(backend="parcompute")(delayed(pids)(i) for i in range(2))

    for pid, with_number, without in Parallel(n_jobs=2)(delayed(outer)() for _ in range(2)):
        assert pid not in with_number
        assert set(without) == {pid}


def test_a_loop_below_threads_is_sequential_and_says_so():
    outer = Parallel(n_jobs=2, backend="threading")
    with pytest.warns(UserWarning, match="parcompute-backed parallel loops cannot be nested below threads") as warned:
        (found,) = outer(delayed(inner_pids)(n_jobs=2) for _ in range(1))
    assert set(found) == {os.getpid()}
    assert len(warned) == 1
    assert set(*outer(delayed(inner_pids)() for _ in range(1))) == {os.getpid()}  # without a word


def inner_pids(**options):
    return Parallel(backend="parcompute", **options)(delayed(pids)(i) for i in range(4))


def blas_threads(_):
    found = {pool["num_threads"] for pool in threadpoolctl.threadpool_info() if pool["user_api"] == "blas"}
    return found, os.environ.get("OMP_NUM_THREADS")


def test_the_threads_of_libraries_within_tasks_are_limited_as_joblib_documents(monkeypatch):
    def seen(**options):
        with joblib.parallel_config(backend="parcompute", n_jobs=2, **options):
            (threads,) = {variable for _, variable in Parallel()(delayed(blas_threads)(i) for i in range(4))}
            return threads

    assert seen(inner_max_num_threads=3) == "3"
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    assert seen() == "1"
    monkeypatch.delenv("OMP_NUM_THREADS")
    assert seen() == str(max(limits.usable_cpus() // 2, 1))


# --- initializers --------------------------------------------------------------------------------------------


def note_worker(folder, name="of a worker"):
    os.mkdir(folder / str(os.getpid()))  # fails if it is called again
    os.environ["PARCOMPUTE_TEST_NAME"] = name


def worker_and_name(_):
    return os.getpid(), os.environ.get("PARCOMPUTE_TEST_NAME")


def test_an_initializer_of_a_context_runs_once_in_each_worker(tmp_path):
    with joblib.parallel_config(backend="parcompute", n_jobs=2, initializer=note_worker, initargs=(tmp_path,)):
        found = [one for _ in range(3) for one in Parallel()(delayed(worker_and_name)(i) for i in range(10))]
    assert {name for _, name in found} == {"of a worker"}
    assert {pid for pid, _ in found} <= {int(name) for name in os.listdir(tmp_path)}
    assert len(os.listdir(tmp_path)) <= 2


def test_an_initializer_of_a_parallel_goes_before_that_of_the_context(context, tmp_path):
    for name in ("first", "second"):
        options = {"initializer": note_worker, "initargs": (tmp_path, name)}
        parallel = Parallel(**options)
        for _ in range(2):
            found = parallel(delayed(worker_and_name)(i) for i in range(4))
            assert {seen for _, seen in found} == {name}
    assert len(os.listdir(tmp_path)) <= 4
    assert {name for _, name in Parallel()(delayed(worker_and_name)(i) for i in range(4))} == {None}


def test_the_workers_of_a_started_executor_cannot_be_initialized():
    with (
        pc.Executor(2) as executor,
        joblib.parallel_config(backend="parcompute", executor=executor, initializer=abs, initargs=(1,)),
        pytest.raises(ValueError, match="comes too late"),
    ):
        squares(3)


# --- an executor of the caller's -----------------------------------------------------------------------------

BACKENDS = ("processes", "threads", "pool")


@pytest.fixture(params=BACKENDS)
def executor(request):
    with pc.Executor(2, backend=request.param) as executor:
        yield executor


def test_an_executor_of_the_callers_is_used_and_stays_open(executor):
    for _ in range(2):
        with joblib.parallel_config(backend="parcompute", executor=executor):
            assert joblib.effective_n_jobs(None) == joblib.effective_n_jobs(5) == 2
            assert squares(100) == expected_squares(100)
            assert squares(100, return_as="generator") == expected_squares(100)
            if executor.worker_pids:
                assert set(Parallel()(delayed(pids)(i) for i in range(8))) <= set(executor.worker_pids)
    assert list(executor.map(abs, [-1])) == [1]


def test_an_executor_of_the_callers_outlives_failed_calls(executor, gate):
    with joblib.parallel_config(backend="parcompute", executor=executor), Parallel() as parallel:
        for _ in range(3):
            with pytest.raises(ZeroDivisionError):
                parallel(delayed(reciprocal)(i) for i in range(100))
            assert parallel(delayed(pow)(i, 2) for i in range(50)) == expected_squares(50)
        parallel.timeout = 0.1
        with pytest.raises(multiprocessing.TimeoutError):
            parallel(delayed(gate.wait)() for _ in range(1))
        gate.open()
        parallel.timeout = None
        assert parallel(delayed(pow)(i, 2) for i in range(50)) == expected_squares(50)
    assert list(executor.map(abs, [-1])) == [1]


def test_a_serial_executor_runs_the_tasks_here():
    with pc.Executor(1, backend="serial") as executor, joblib.parallel_config(backend="parcompute", executor=executor):
        assert squares(2000) == expected_squares(2000)


def test_a_closed_executor_says_so():
    with pc.Executor(2) as executor:
        pass
    with joblib.parallel_config(backend="parcompute", executor=executor), pytest.raises(RuntimeError, match="closed"):
        squares(3)


def test_the_threads_of_a_started_executor_are_not_to_be_changed():
    with (
        pc.Executor(2) as executor,
        joblib.parallel_config(backend="parcompute", executor=executor, inner_max_num_threads=3),
        pytest.raises(ValueError, match="blas_threads=3"),
    ):
        squares(3)


# --- scikit-learn --------------------------------------------------------------------------------------------


@pytest.fixture
def classes():
    datasets = pytest.importorskip("sklearn.datasets")
    return datasets.make_classification(200, 8, random_state=0)


@pytest.mark.slow
def test_scikit_learn_cross_validates_with_the_same_scores(classes):
    linear_model, selection = map(importlib.import_module, ("sklearn.linear_model", "sklearn.model_selection"))
    model = linear_model.LogisticRegression()
    expected = selection.cross_val_score(model, *classes, cv=5)
    with joblib.parallel_config(backend="parcompute", n_jobs=2):
        assert np.array_equal(selection.cross_val_score(model, *classes, cv=5), expected)
        grid = selection.GridSearchCV(model, {"C": [0.1, 1.0]}, cv=3).fit(*classes)
    serial = selection.GridSearchCV(model, {"C": [0.1, 1.0]}, cv=3).fit(*classes)
    assert np.array_equal(grid.cv_results_["mean_test_score"], serial.cv_results_["mean_test_score"])


@pytest.mark.slow
def test_scikit_learn_grows_the_same_forest(classes):
    ensemble = importlib.import_module("sklearn.ensemble")

    def predicted(**options):
        forest = ensemble.RandomForestClassifier(20, random_state=1, **options).fit(*classes)
        return forest.predict_proba(classes[0])

    expected = predicted()
    with joblib.parallel_config(backend="parcompute"):
        assert np.array_equal(predicted(n_jobs=2), expected)
        assert np.array_equal(predicted(), expected)
