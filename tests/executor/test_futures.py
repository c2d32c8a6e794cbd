"""An executor is a `concurrent.futures.Executor`: each test that can runs on the standard library's own, too.

Where parcompute differs on purpose, the name of the test says so, and the test shows both.
"""

import contextlib
import gc
import itertools
import os
import signal
import subprocess
import sys
import threading
import traceback
from concurrent import futures
from concurrent.futures.process import BrokenProcessPool
from multiprocessing import get_context

import cloudpickle
import numpy as np
import psutil
import pytest

import parcompute as pc

# The workers of a test session can import the package, but not its tests.
cloudpickle.register_pickle_by_value(sys.modules[__name__])

# Python warns of forking beside threads, which the reference does.
pytestmark = pytest.mark.filterwarnings("ignore:.*multi-threaded.*fork:DeprecationWarning")

STDLIB = "ProcessPoolExecutor"
PROCESSES = ("processes-fork", "processes-forkserver", "processes-spawn")
# Where each test needs workers of its own: a spawned one is told from the server's by how it starts alone.
OWN = ("processes-fork", "processes-forkserver")
IN_PROCESSES = (STDLIB, *PROCESSES, "pool")
CONCURRENT = (*IN_PROCESSES, "threads")
ALL = (*CONCURRENT, "serial")
# With joblib, whose workers take a second to start for each test: all executors of a program share them.
JOBLIB_TOO = (*ALL, "joblib")
# Those that hold calls back until a worker is free; `pool` and `joblib` give them to their engine at once.
QUEUEING = (STDLIB, *PROCESSES, "threads")


def opened(medium, **options):
    """Return an executor with two workers, or with one where there can be only one."""
    if medium == STDLIB:  # forked workers find the functions of this module
        return futures.ProcessPoolExecutor(2, get_context("fork"))
    backend, _, method = medium.partition("-")
    if backend == "pool":
        method = "fork"
    return pc.Executor(1 if backend == "serial" else 2, backend=backend, start_method=method or None, **options)


@pytest.fixture(scope="module")
def kept():
    """Executors for many tests, made when the first one asks."""
    with contextlib.ExitStack() as stack:
        known = {}

        def get(medium):
            if medium not in known:
                known[medium] = stack.enter_context(opened(medium))
                list(known[medium].map(abs, range(4), chunksize=1))
            return known[medium]

        # All threads and processes run before the first test is compared with what was there.
        for medium in ALL:
            get(medium)
        yield get


@pytest.fixture
def executor(request, kept):
    """Return the executor of a medium, which no test may break."""
    if request.param == "joblib":
        with opened("joblib") as own:
            own.submit(int).result()
            yield own
    else:
        yield kept(request.param)


def on(*media):
    return pytest.mark.parametrize("executor", media, indirect=True)


def fresh_on(*media):
    return pytest.mark.parametrize("medium", media)


class Line:
    """Numbers from anyone to anyone, through a named pipe: whoever receives waits, unless it was taken away."""

    def __init__(self, path):
        self.path = str(path)

    def _open(self, flags=0):
        try:
            return os.open(self.path, os.O_RDWR | flags)
        except FileNotFoundError:
            return os.open(os.devnull, os.O_RDWR)

    def send(self, *numbers):
        fd = self._open()
        os.write(fd, b"".join(int(number).to_bytes(8, "little") for number in numbers))
        os.close(fd)

    def receive(self):
        fd = self._open()
        try:
            return int.from_bytes(os.read(fd, 8), "little")
        finally:
            os.close(fd)

    def received(self):
        """Return all that has been sent and not been received."""
        fd = self._open(os.O_NONBLOCK)
        numbers = []
        with contextlib.suppress(BlockingIOError):
            while token := os.read(fd, 8):
                numbers.append(int.from_bytes(token, "little"))
        os.close(fd)
        return numbers


@pytest.fixture
def line(tmp_path):
    """Make lines, which this process keeps open."""
    with contextlib.ExitStack() as stack:

        def make(name):
            path = tmp_path / name
            os.mkfifo(path)
            stack.callback(os.close, os.open(path, os.O_RDWR))
            stack.callback(os.unlink, path)
            return Line(path)

        yield make


def gated(started, gate, number):
    """Say that it runs, wait at the gate, return the number."""
    started.send(number)
    gate.receive()
    return number


@pytest.fixture
def gate(line):
    """Calls that wait until they are let go; those that a failed test has left are let go at the end."""
    started, gate = line("started"), line("gate")
    yield started, gate
    gate.send(*range(100))


# --- submit ------------------------------------------------------------------------------------------------


def takes_anything(*args, **kwargs):
    return args, kwargs


@on(*JOBLIB_TOO)
def test_a_future_has_what_the_call_returns(executor):
    future = executor.submit(takes_anything, 1, fn=2, self=3)
    assert future.result() == ((1,), {"fn": 2, "self": 3})
    assert future.exception() is None
    assert (future.done(), future.running(), future.cancelled()) == (True, False, False)
    assert not future.cancel()


def raises_from_another():
    try:
        raise KeyError("the first")
    except KeyError as error:
        raise ValueError("the second", 2) from error


@on(*JOBLIB_TOO)
def test_an_exception_arrives_with_its_arguments_and_the_traceback_of_both(executor):
    error = executor.submit(raises_from_another).exception()
    assert (type(error), error.args) == (ValueError, ("the second", 2))
    text = "".join(traceback.format_exception(error))
    assert "in raises_from_another" in text
    assert "KeyError: 'the first'" in text
    assert text.index("KeyError") < text.index("ValueError")


def exits():
    sys.exit("enough")


def interrupts():
    raise KeyboardInterrupt("not from the keyboard")


@on(*(medium for medium in ALL if medium != "serial"))
@pytest.mark.parametrize(("call", "kind"), [(exits, SystemExit), (interrupts, KeyboardInterrupt)])
def test_what_is_no_exception_in_the_narrow_sense_arrives_too(executor, call, kind):
    future = executor.submit(call)
    assert type(future.exception()) is kind
    assert executor.submit(abs, -1).result() == 1


@on(*ALL)
def test_what_cannot_be_called_is_said_through_the_future(executor):
    assert "not callable" in str(executor.submit(3).exception())
    with pytest.raises(TypeError, match="not callable"):
        list(executor.map(3, [1]))


@on(*IN_PROCESSES)
def test_what_cannot_travel_is_said_through_the_future(executor):
    lock = threading.Lock()
    for future in (executor.submit(lock.acquire), executor.submit(abs, lock), executor.submit(print, file=lock)):
        assert "lock" in str(future.exception())
        assert isinstance(future.exception(), TypeError)
    assert executor.submit(abs, -1).result() == 1


@on("threads", "serial")
def test_threads_need_no_pickle(executor):
    lock = threading.Lock()
    assert executor.submit(lock.acquire).result()
    assert list(executor.map(lambda one: one is lock, [lock])) == [True]


@on(*IN_PROCESSES)
def test_a_result_that_cannot_travel_costs_its_call_only(executor):
    assert "lock" in str(executor.submit(threading.Lock).exception())
    assert executor.submit(abs, -1).result() == 1


class NotRebuilt(Exception):
    def __init__(self, one, two):
        super().__init__(f"{one} and {two}")


def breaks(*_):
    raise ZeroDivisionError("cannot be rebuilt")


class Broken:
    def __reduce__(self):
        return breaks, ()


def raises_what_is_not_rebuilt():
    raise NotRebuilt("this", "that")


@fresh_on(STDLIB, "processes-forkserver")
@pytest.mark.parametrize(
    ("call", "says"),
    [
        ((Broken,), "cannot be rebuilt"),
        ((abs, Broken()), "cannot be rebuilt"),
        ((raises_what_is_not_rebuilt,), "this and that"),
    ],
    ids=["result", "argument", "exception"],
)
def test_unlike_the_standard_library_what_cannot_be_rebuilt_costs_its_call_only(medium, call, says):
    if medium == STDLIB and "tblib" in sys.modules:
        pytest.skip("Dask has been imported, which teaches pickle to rebuild exceptions")
    with opened(medium) as executor:
        error = executor.submit(*call).exception()
        if medium == STDLIB:
            with pytest.raises(BrokenProcessPool):
                executor.submit(abs, -1).result()
        else:
            assert says in str(error)
            assert executor.submit(abs, -1).result() == 1


@fresh_on(*OWN)
def test_a_call_cannot_submit_to_the_executor_that_runs_it_and_is_told_so(medium):
    with opened(medium) as executor:
        error = executor.submit(lambda: executor.submit(abs, -1)).exception()
        assert "'executor'" in str(error)
        assert "cannot submit to the executor that runs it" in str(error)
        assert executor.submit(abs, -1).result() == 1


@on("threads")
def test_a_call_in_a_thread_can_submit_to_the_executor_that_runs_it(executor):
    assert executor.submit(lambda: executor.submit(abs, -1)).result().result() == 1


def test_a_fork_of_the_program_is_told_to_make_an_executor_of_its_own(kept):
    inner = kept("processes-forkserver")
    reader, writer = os.pipe()
    if (pid := os.fork()) == 0:
        try:
            inner.shutdown()  # nothing: it is not its own
            inner.submit(abs, -1)
        except BaseException as error:
            os.write(writer, str(error).encode())
        os._exit(0)
    os.close(writer)
    with open(reader, "rb") as answer:
        assert b"was forked; make a new one here" in answer.read()
    os.waitpid(pid, 0)
    assert inner.submit(abs, -1).result() == 1


@on(*ALL)
def test_several_threads_submit_at_a_time(executor):
    def submit_many(thread):
        return [executor.submit(pow, n, 2) for n in range(1_000 * thread, 1_000 * thread + 50)]

    with futures.ThreadPoolExecutor(4) as threads:
        found = [[future.result() for future in many] for many in threads.map(submit_many, range(4))]
    assert found == [[n * n for n in range(1_000 * thread, 1_000 * thread + 50)] for thread in range(4)]


# --- callbacks, as_completed, wait, cancel -----------------------------------------------------------------


@on(*CONCURRENT)
def test_callbacks_are_called_in_order_and_what_they_raise_is_logged(executor, gate, caplog):
    seen, over = [], threading.Event()
    future = executor.submit(gated, *gate, 5)
    future.add_done_callback(lambda done: seen.append((1, done.result())))
    future.add_done_callback(lambda done: 1 // 0)
    future.add_done_callback(lambda done: seen.append((2, done is future)))
    future.add_done_callback(lambda done: over.set())
    gate[1].send(0)
    assert over.wait(60)
    future.add_done_callback(lambda done: seen.append((3, done.done())))
    assert seen == [(1, 5), (2, True), (3, True)]
    assert [record.exc_info[0] for record in caplog.records] == [ZeroDivisionError]


@on(*CONCURRENT)
def test_a_callback_can_submit(executor):
    answers, over = [], threading.Event()

    def again(future):
        answers.append(future.result())
        if len(answers) < 5:
            executor.submit(abs, -len(answers)).add_done_callback(again)
        else:
            over.set()

    executor.submit(abs, 0).add_done_callback(again)
    assert over.wait(60)
    assert answers == [0, 1, 2, 3, 4]


@on(*PROCESSES)
def test_a_callback_cannot_run_a_job_and_is_told_so(executor, gate):
    errors, over = [], threading.Event()

    def run_a_job(_):
        try:
            executor.reduce_blocks(np.sum, np.ones(3))
        except RuntimeError as error:
            errors.append(str(error))
        over.set()

    executor.submit(gated, *gate, 1).add_done_callback(run_a_job)
    gate[1].send(0)
    assert over.wait(60)
    assert "cannot run a job" in errors[0]
    assert executor.reduce_blocks(np.sum, np.ones(3)) == 3.0


@on(*CONCURRENT)
def test_as_completed_and_wait_give_what_is_done_first(executor, gate, line):
    started, first = gate
    second = line("second")
    slow, quick = executor.submit(gated, started, second, 1), executor.submit(gated, started, first, 2)
    try:
        assert {started.receive(), started.receive()} == {1, 2}
        first.send(0)
        done, pending = futures.wait([slow, quick], return_when=futures.FIRST_COMPLETED)
        assert (done, pending) == ({quick}, {slow})
        completed = futures.as_completed([slow, quick])
        assert next(completed) is quick
        with pytest.raises(TimeoutError):
            next(futures.as_completed([slow], timeout=0))
        with pytest.raises(TimeoutError):
            slow.result(timeout=0)
    finally:
        second.send(0)
    assert next(completed) is slow


@on(*QUEUEING)
def test_a_pending_call_can_be_cancelled_and_a_running_one_cannot(executor, gate):
    started, barrier = gate
    calls = [executor.submit(gated, started, barrier, n) for n in range(20)]
    running = calls[started.receive()]
    called = []
    calls[-1].add_done_callback(called.append)
    assert running.running()
    assert not running.cancel()
    assert calls[-1].cancel()
    assert calls[-1].cancel()
    assert (calls[-1].cancelled(), calls[-1].done(), called) == (True, True, [calls[-1]])
    with pytest.raises(futures.CancelledError):
        calls[-1].result()
    barrier.send(*range(19))
    assert [call.result() for call in calls[:-1]] == list(range(19))
    assert futures.wait(calls).not_done == set()
    assert 19 not in started.received()


# --- map ---------------------------------------------------------------------------------------------------


@on(*ALL)
@pytest.mark.parametrize("options", [{}, {"chunksize": 1}, {"chunksize": 7}, {"chunksize": 1_000}])
def test_map_gives_the_results_in_order(executor, options):
    assert list(executor.map(pow, range(100), [2] * 100, **options)) == [n**2 for n in range(100)]
    assert list(executor.map(abs, range(-100, 0), **options)) == list(range(100, 0, -1))
    assert list(executor.map(pow, range(3), itertools.count(1))) == [0, 1, 8]
    assert list(executor.map(abs, [], **options)) == []
    assert list(executor.map(abs)) == []


@on(*ALL)
def test_map_reads_its_inputs_at_once_and_gives_results_one_by_one(executor):
    read = []
    results = executor.map(abs, (read.append(n) or -n for n in range(30)), chunksize=1)
    assert read == list(range(30))
    assert iter(results) is results
    assert [next(results) for _ in range(30)] == list(range(30))
    assert next(results, None) is None


def failing_inputs():
    yield 1
    raise LookupError("no more")


@on(*ALL)
def test_map_raises_what_its_inputs_raise(executor):
    with pytest.raises(LookupError, match="no more"):
        executor.map(abs, failing_inputs())


def inverse(n):
    return 1 / n


@on(*JOBLIB_TOO)
def test_map_gives_what_came_before_a_failure_and_then_ends(executor):
    results = executor.map(inverse, [4, 2, 0, 1], chunksize=1)
    assert [next(results), next(results)] == [0.25, 0.5]
    with pytest.raises(ZeroDivisionError) as caught:
        next(results)
    assert "in inverse" in "".join(traceback.format_exception(caught.value))
    assert list(results) == []


@on(*(medium for medium in ALL if medium != STDLIB))
def test_unlike_the_standard_library_a_failure_costs_nothing_of_its_batch(executor):
    results = executor.map(inverse, [4, 2, 0, 1], chunksize=4)
    assert [next(results), next(results)] == [0.25, 0.5]
    with pytest.raises(ZeroDivisionError):
        next(results)


def lock_at_3(n):
    return threading.Lock() if n == 3 else n


@on(*PROCESSES, "pool")
def test_unlike_the_standard_library_what_cannot_travel_costs_nothing_of_its_batch(executor):
    results = executor.map(lock_at_3, range(6), chunksize=6)
    assert [next(results) for _ in range(3)] == [0, 1, 2]
    with pytest.raises(TypeError, match="lock"):
        next(results)
    results = executor.map(abs, [0, 1, 2, threading.Lock(), 4], chunksize=5)
    assert [next(results) for _ in range(3)] == [0, 1, 2]
    with pytest.raises(TypeError, match="lock"):
        next(results)


def stops(n):
    if n == 2:
        raise StopIteration
    return n


@on(*ALL)
@pytest.mark.parametrize("chunksize", [1, 5])
def test_a_stop_iteration_of_the_function_is_no_end_of_the_map(executor, chunksize):
    results = executor.map(stops, range(5), chunksize=chunksize)
    with pytest.raises(RuntimeError, match="StopIteration"):
        list(results)


@on(*CONCURRENT)
@pytest.mark.parametrize("timeout", [0, 0.01])
def test_map_raises_timeout_error_when_its_time_is_over(executor, gate, timeout):
    started, barrier = gate
    results = executor.map(gated, [started] * 2, [barrier] * 2, range(2), timeout=timeout, chunksize=1)
    with pytest.raises(TimeoutError):
        next(results)
    barrier.send(0, 0)
    assert list(results) == []


def gated_but_the_first(started, gate, number):
    return gated(started, gate, number) if number else number


@on(*QUEUEING)
def test_a_map_that_is_given_up_runs_no_further_calls(executor, gate):
    started, barrier = gate
    results = executor.map(gated_but_the_first, [started] * 50, [barrier] * 50, range(50), chunksize=1)
    assert next(results) == 0
    results.close()
    barrier.send(*range(49))
    # What was handed out before goes on; an executor that is idle again has dropped the others.
    list(executor.map(abs, range(50), chunksize=1))
    assert len(started.received()) < 49


@on(*ALL)
def test_map_refuses_a_chunksize_below_one(executor):
    with pytest.raises(ValueError, match="chunksize"):
        executor.map(abs, [1], chunksize=0)


class Watched:
    """Natural numbers, and how many were read."""

    def __init__(self):
        self.n_read = 0

    def __iter__(self):
        return self

    def __next__(self):
        self.n_read += 1
        return self.n_read - 1


BUFFERED = ALL if sys.version_info >= (3, 14) else tuple(medium for medium in ALL if medium != STDLIB)


@on(*BUFFERED)
@pytest.mark.parametrize("options", [{}, {"chunksize": 1}])
def test_with_a_buffersize_inputs_are_read_as_results_are_taken(executor, options):
    numbers = Watched()
    results = executor.map(abs, numbers, buffersize=4, **options)
    assert numbers.n_read == 4
    for n in range(60):
        assert next(results) == n
        assert numbers.n_read <= n + 5
    results.close()
    assert list(executor.map(pow, range(9), itertools.count(), buffersize=2)) == [n**n for n in range(9)]
    assert list(executor.map(abs, [], buffersize=2)) == []


@on(*BUFFERED)
def test_a_large_buffer_gives_each_result_once_and_in_order(executor):
    assert list(executor.map(abs, range(-3_000, 0), buffersize=500)) == list(range(3_000, 0, -1))


@on(*BUFFERED)
def test_a_buffersize_is_a_whole_number_above_zero(executor):
    for wrong in ("4", 2.0):
        with pytest.raises(TypeError, match="buffersize"):
            executor.map(abs, [1], buffersize=wrong)
    for wrong in (0, -1):
        with pytest.raises(ValueError, match="buffersize"):
            executor.map(abs, [1], buffersize=wrong)


@fresh_on(*(medium for medium in BUFFERED if medium not in ("serial", "processes-spawn")))
def test_a_buffered_map_says_that_its_executor_was_closed(medium):
    with opened(medium) as executor:
        results = executor.map(abs, itertools.count(), buffersize=2)
    with pytest.raises(RuntimeError, match=r"clos|shutdown"):
        list(results)


# --- the end -----------------------------------------------------------------------------------------------

ENDING = (STDLIB, *OWN, "pool", "threads")


@fresh_on(*ENDING, "joblib", "serial")
def test_shutdown_finishes_what_was_submitted_and_mapped(medium):
    executor = opened(medium)
    calls = [executor.submit(pow, 2, n) for n in range(20)]
    results = executor.map(abs, range(-200, 0), chunksize=1)
    executor.shutdown()
    assert [call.done() for call in calls] == [True] * 20
    assert [call.result() for call in calls] == [2**n for n in range(20)]
    assert list(results) == list(range(200, 0, -1))


@fresh_on(*ENDING)
def test_shutdown_without_waiting_finishes_it_too(medium, gate):
    started, barrier = gate
    executor = opened(medium)
    calls = [executor.submit(gated, started, barrier, n) for n in range(10)]
    executor.shutdown(wait=False)
    assert not any(call.done() for call in calls)
    with pytest.raises(RuntimeError, match=r"shutdown|closed"):
        executor.submit(abs, -1)
    barrier.send(*range(10))
    assert [call.result() for call in calls] == list(range(10))
    executor.shutdown()


@fresh_on(STDLIB, *OWN, "threads")
def test_shutdown_can_cancel_what_has_not_begun(medium, gate):
    started, barrier = gate
    executor = opened(medium)
    calls = [executor.submit(gated, started, barrier, n) for n in range(20)]
    results = executor.map(abs, range(20), chunksize=1)
    begun = started.receive()
    shutdown = threading.Thread(target=executor.shutdown, kwargs={"cancel_futures": True})
    shutdown.start()
    while not calls[-1].cancelled():
        os.sched_yield()
    barrier.send(*range(20))
    shutdown.join(60)
    assert calls[begun].result() == begun
    assert all(call.cancelled() or call.result() == n for n, call in enumerate(calls))
    with pytest.raises(futures.CancelledError):
        list(results)


@fresh_on(*(medium for medium in ENDING if medium != STDLIB))
def test_unlike_in_the_standard_library_several_threads_may_shut_down_and_all_of_them_wait(medium, gate):
    started, barrier = gate
    executor = opened(medium)
    call = executor.submit(gated, started, barrier, 1)
    started.receive()
    at_the_end = []

    def shut_down():
        executor.shutdown()
        at_the_end.append(call.done())

    threads = [threading.Thread(target=shut_down) for _ in range(4)]
    for thread in threads:
        thread.start()
    assert at_the_end == []
    barrier.send(0)
    for thread in threads:
        thread.join(60)
    assert at_the_end == [True] * 4
    executor.shutdown()


@fresh_on(STDLIB, *OWN, "pool", "threads", "serial")
def test_a_closed_executor_takes_no_calls_and_says_so(medium):
    with opened(medium) as executor:
        pass
    for use in (lambda: executor.submit(abs, -1), lambda: executor.map(abs, [-1])):
        with pytest.raises(RuntimeError, match=r"cannot schedule new futures after shutdown|closed; make a new one"):
            use()


@fresh_on(*PROCESSES)
@pytest.mark.parametrize("used", ["not at all", "by a call"])
def test_the_workers_of_an_executor_that_nobody_holds_any_more_end(medium, used):
    executor = opened(medium)
    workers = [psutil.Process(pid) for pid in executor.worker_pids]
    if used == "by a call":
        assert executor.submit(abs, -1).result() == 1
    del executor
    gc.collect()
    _, alive = psutil.wait_procs(workers, timeout=60)
    assert alive == []


@fresh_on(*OWN, "pool")
def test_kill_workers_ends_what_runs_and_cancels_what_waits(medium, gate):
    started, barrier = gate
    executor = opened(medium)
    workers = [psutil.Process(pid) for pid in executor.worker_pids]
    calls = [executor.submit(gated, started, barrier, n) for n in range(20)]
    begun = started.receive()
    executor.kill_workers()
    executor.terminate_workers()  # the same, under its other name
    executor.shutdown()
    assert all(call.done() for call in calls)
    with pytest.raises(pc.WorkerLost, match="killed"):
        calls[begun].result()
    if medium != "pool":
        assert calls[-1].cancelled()
    assert psutil.wait_procs(workers, timeout=60)[1] == []


MAKE = {
    STDLIB: "concurrent.futures.ProcessPoolExecutor(2, multiprocessing.get_context('fork'))",
    **{f"processes-{m}": f"pc.Executor(2, start_method={m!r})" for m in ("fork", "forkserver", "spawn")},
}

PENDING = """
import concurrent.futures, multiprocessing, os, time
import parcompute as pc

def note(n):
    os.write(1, b"%d\\n" % n)

if __name__ == "__main__":
    executor = MAKE
    for n in range(30):
        executor.submit(note, n)
    executor.map(note, range(30, 60), chunksize=1)
"""


def started_program(text, medium, folder):
    (folder / "program.py").write_text(text.replace("MAKE", MAKE[medium]))
    command = [sys.executable, "program.py"]
    return subprocess.Popen(
        command, cwd=folder, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, start_new_session=True
    )


@fresh_on(*MAKE)
def test_a_program_that_ends_finishes_what_is_pending(medium, tmp_path):
    with started_program(PENDING, medium, tmp_path) as program:
        out, error = program.communicate(timeout=60)
    assert (sorted(map(int, out.split())), error, program.returncode) == (list(range(60)), "", 0)


INTERRUPTED = """
import os, threading
import parcompute as pc

def wait():
    os.write(1, b"begun\\n")
    threading.Event().wait()

USE
"""
USES = {
    "in a with block": "with MAKE as executor:\n    [f.result() for f in [executor.submit(wait) for _ in range(20)]]",
    "in a map": "with MAKE as executor:\n    list(executor.map(lambda _: wait(), range(20)))",
    "without": "executor = MAKE\n[f.result() for f in [executor.submit(wait) for _ in range(20)]]",
    "at the end of the block": "with MAKE as executor:\n    [executor.submit(wait) for _ in range(20)]",
}


@pytest.mark.parametrize(
    ("medium", "use"),
    [*(("processes-forkserver", use) for use in USES), ("processes-fork", "without"), ("processes-spawn", "in a map")],
)
def test_ctrl_c_ends_a_program_that_waits_for_calls(medium, use, tmp_path):
    with started_program(INTERRUPTED.replace("USE", USES[use]), medium, tmp_path) as program:
        assert [program.stdout.readline() for _ in range(2)] == ["begun\n"] * 2
        family = psutil.Process(program.pid).children(recursive=True)
        os.killpg(program.pid, signal.SIGINT)
        _, error = program.communicate(timeout=60)
    assert error.rstrip().endswith("KeyboardInterrupt")
    assert program.returncode == -signal.SIGINT
    assert psutil.wait_procs(family, timeout=60)[1] == []


UNWOKEN = """
import os, signal, threading
import parcompute as pc

def interrupt():
    # A signal that another thread takes ends no wait of the main thread, like one that comes just before it begins.
    begun.wait()
    signal.pthread_kill(threading.get_ident(), signal.SIGINT)

executor, begun, never = pc.Executor(1, backend="threads"), threading.Event(), threading.Event()
threading.Thread(target=interrupt).start()
future = executor.submit(never.wait)
begun.set()
try:
    future.result()
except KeyboardInterrupt:
    os._exit(7)
"""


def test_ctrl_c_that_wakes_nobody_is_heard_all_the_same(tmp_path):
    with started_program(UNWOKEN, STDLIB, tmp_path) as program:
        _, error = program.communicate(timeout=60)
    assert (program.returncode, error) == (7, "")


# --- a worker dies -----------------------------------------------------------------------------------------


def dies():
    os.kill(os.getpid(), signal.SIGKILL)


def noted(log, number):
    log.send(number)
    return number


@fresh_on(STDLIB, *OWN)
def test_unlike_the_standard_library_a_dead_worker_costs_only_its_call(medium, line):
    log = line("log")
    with opened(medium) as executor:
        before = [executor.submit(noted, log, n) for n in range(20)]
        deadly = executor.submit(dies)
        after = [executor.submit(noted, log, n) for n in range(20, 40)]
        if medium == STDLIB:
            with pytest.raises(BrokenProcessPool):
                deadly.result()
            with pytest.raises(BrokenProcessPool):
                executor.submit(abs, -1).result()
            return
        with pytest.raises(pc.WorkerLost, match=r"cost 2 workers: signal 9 \(SIGKILL\), signal 9"):
            deadly.result()
        assert [call.result() for call in before + after] == list(range(40))
    assert sorted(log.received()) == list(range(40))


def dies_at_first(log, number):
    """Be killed by the signal of someone else, in the middle."""
    first = not os.path.exists(f"{log.path}.{number}")
    with open(f"{log.path}.{number}", "w"):
        pass
    log.send(os.getpid())
    if first:
        signal.pause()
    return number


@fresh_on(*OWN)
def test_a_call_whose_worker_is_killed_is_run_again_and_no_other_is(medium, line):
    log, others = line("log"), line("others")
    with opened(medium) as executor:
        victim = executor.submit(dies_at_first, log, 0)
        calls = [executor.submit(noted, others, n) for n in range(1, 30)]
        os.kill(log.receive(), signal.SIGKILL)
        assert victim.result() == 0
        assert [call.result() for call in calls] == list(range(1, 30))
        assert len(executor.worker_pids) == 2
    assert len(log.received()) == 1
    assert sorted(others.received()) == list(range(1, 30))


@fresh_on(*OWN)
@pytest.mark.parametrize("retries", [1, 3])
def test_a_call_is_tried_on_as_many_workers_as_retries_says(medium, retries, line):
    log = line("log")
    with opened(medium, retries=retries) as executor:
        error = executor.submit(lambda: (log.send(1), dies())).exception()
        assert error.exitcodes == (-signal.SIGKILL,) * retries
    assert log.received() == [1] * retries


@fresh_on(*PROCESSES)
def test_a_worker_that_is_killed_while_idle_costs_nothing(medium):
    with opened(medium) as executor:
        assert executor.submit(abs, -1).result() == 1
        for _ in range(3):
            for pid in executor.worker_pids:
                os.kill(pid, signal.SIGKILL)
            assert list(executor.map(abs, range(-20, 0), chunksize=1)) == list(range(20, 0, -1))


def dies_at_5(n):
    if n == 5:
        dies()
    return n


@fresh_on(*OWN)
@pytest.mark.parametrize("chunksize", [1, 4, 20])
def test_a_deadly_item_of_a_map_costs_nothing_that_comes_before_it(medium, chunksize):
    with opened(medium) as executor:
        results = executor.map(dies_at_5, range(20), chunksize=chunksize)
        assert [next(results) for _ in range(5)] == list(range(5))
        with pytest.raises(pc.WorkerLost):
            next(results)
        assert list(executor.map(abs, range(3))) == [0, 1, 2]


@fresh_on(*OWN)
def test_a_job_goes_before_the_calls_that_wait(medium, gate):
    started, barrier = gate
    with opened(medium) as executor, futures.ThreadPoolExecutor(1) as thread:
        calls = [executor.submit(gated, started, barrier, n) for n in range(20)]
        order = [started.receive(), started.receive()]
        job = thread.submit(executor.reduce_blocks, lambda block: noted(started, 100), n_items=1)
        while not executor._backend._turn.wanted:
            os.sched_yield()
        barrier.send(*range(20))
        assert job.result() == 100
        assert [call.result() for call in calls] == list(range(20))
    order += started.received()
    assert sorted(order) == [*range(20), 100]
    assert order.index(100) <= 4  # two calls run then, and each worker has at most one more
