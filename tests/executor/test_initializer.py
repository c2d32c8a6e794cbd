"""What `ProcessPoolExecutor` is told about its workers, in the words of the standard library, on every backend."""

import contextlib
import multiprocessing
import os
import sys
import threading
import time
import warnings
from concurrent.futures import BrokenExecutor
from concurrent.futures.process import BrokenProcessPool
from concurrent.futures.thread import BrokenThreadPool

import cloudpickle
import numpy as np
import pytest

import parcompute as pc

# As with a script or a notebook: functions of this module travel by value.
cloudpickle.register_pickle_by_value(sys.modules[__name__])

MEDIA = {
    "serial": {"workers": 1, "backend": "serial"},
    "threads": {"workers": 2, "backend": "threads"},
    "auto": {"workers": 2, "backend": "auto"},
    **{f"processes-{method}": {"workers": 2, "start_method": method} for method in ("fork", "forkserver")},
    "pool": {"workers": 2, "backend": "pool", "start_method": "fork"},
    "joblib": {"workers": 2, "backend": "joblib"},
}
# Where an initializer, which a fork has in memory, is pickled.
FROM_AFAR = {"workers": 2, "backend": "pool", "start_method": "forkserver"}
METHODS = ("fork", "forkserver", "spawn")

TABLE, SET, SEEN = None, None, []


@pytest.fixture(params=MEDIA)
def options(request):
    """How an executor is made of each backend."""
    return MEDIA[request.param]


@pytest.fixture
def log(tmp_path):
    """A file to which every process appends lines."""
    return Log(tmp_path / "log")


class Log:
    def __init__(self, path):
        self.path = str(path)

    def add(self, *words):
        with open(self.path, "a") as file:
            print(*words, file=file)

    def lines(self):
        with contextlib.suppress(FileNotFoundError), open(self.path) as file:
            return [tuple(line.split()) for line in file]
        return []


def note(log, word="initialized"):
    log.add(word, os.getpid(), threading.get_ident())


def remember(value):
    global SET
    SET = value
    SEEN.append(value)


def recall(_=None):
    return SET, list(SEEN)


def fail():
    raise LookupError("no such table")


# --- what an initializer does ------------------------------------------------------------------------------


def test_an_initializer_runs_once_in_each_worker_before_anything_else(options, log):
    with pc.Executor(**options, initializer=note, initargs=(log, "first")) as executor:
        executor.map_blocks(lambda x: note(log, "block") or x, np.arange(8), block_items=1)
        [executor.submit(note, log, "call").result() for _ in range(8)]
        executor.wait_until_ready()
        workers = 2 * executor.n_workers if executor.backend == "auto" else executor.n_workers
    lines = log.lines()
    first = [where for word, *where in lines if word == "first"]
    assert len(first) == len({tuple(where) for where in first}) == workers
    begun = set()
    for word, *where in lines:
        assert word == "first" or tuple(where) in begun
        begun.add(tuple(where))


@pytest.mark.parametrize("options", [*MEDIA.values(), FROM_AFAR], ids=[*MEDIA, "pool-forkserver"])
def test_what_an_initializer_sets_is_seen_by_calls_and_kernels_that_travel_by_value(options):
    with pc.Executor(**options, initializer=remember, initargs=(7,)) as executor:
        try:
            assert executor.submit(recall).result()[0] == 7
            assert {value for value, _ in executor.map(recall, range(9))} == {7}
            assert all(7 in seen for _, seen in executor.map(recall, range(9)))
            if executor.backend != "joblib":  # which pickles jobs itself
                assert executor.reduce_blocks(lambda: SET, n_items=4, block_items=1) == 28
        finally:
            remember.__globals__.update(SET=None, SEEN=[])


@pytest.mark.parametrize("method", ["fork", "forkserver"])
def test_a_worker_that_replaces_a_killed_one_is_initialized_too(method, log):
    with pc.Executor(1, start_method=method, initializer=remember, initargs=(7,)) as executor:
        assert executor.submit(lambda: os.path.exists(log.path) or note(log) or os._exit(3)).result()
        assert executor.submit(recall).result() == (7, [7])


@pytest.mark.parametrize("method", METHODS)
def test_locks_queues_and_values_of_multiprocessing_travel_to_the_initializer(method):
    context = multiprocessing.get_context(method)
    queue, lock, number, pipe = context.Queue(), context.Lock(), context.Value("i", 0), context.Pipe()

    def count(queue, lock, number, end):
        global TABLE
        TABLE = number
        with lock:
            number.value += 1
            end.send(number.value)
        queue.put(os.getpid())

    def total():
        return TABLE.value

    with pc.Executor(2, context, count, (queue, lock, number, pipe[1])) as executor:
        executor.wait_until_ready()
        assert {queue.get(timeout=60), queue.get(timeout=60)} == set(executor.worker_pids)
        number.value = 40
        assert executor.submit(total).result() == 40
        assert {pipe[0].recv(), pipe[0].recv()} == {1, 2}
    queue.close()
    for end in pipe:
        end.close()
    queue._reader.close()


def test_a_manager_lets_calls_in(options):
    with multiprocessing.get_context("fork").Manager() as manager, pc.Executor(**options) as executor:
        shared = manager.list()
        executor.submit(shared.append, 5).result()
        assert list(shared) == [5]


# --- what happens if it fails ------------------------------------------------------------------------------


def test_a_failed_initializer_breaks_the_executor_as_in_the_standard_library(options):
    with pc.Executor(**options, initializer=fail) as executor:
        with pytest.raises(BrokenProcessPool) as caught:
            executor.submit(len, ()).result()
        assert isinstance(caught.value, BrokenThreadPool)
        for verb in (
            lambda: executor.submit(len, ()),
            lambda: list(executor.map(len, ["a"])),
            lambda: executor.map_blocks(np.sqrt, np.arange(4.0)),
            lambda: executor.reduce_blocks(np.sum, np.arange(4.0)),
        ):
            with pytest.raises(BrokenExecutor, match="the initializer of a worker has failed: LookupError") as caught:
                verb()
            assert type(caught.value.__cause__) is LookupError


@pytest.mark.parametrize("medium", ["serial", "threads", "processes-fork", "pool"])
def test_a_job_is_told_first_of_a_failed_initializer(medium):
    with pc.Executor(**MEDIA[medium], initializer=fail) as executor, pytest.raises(BrokenExecutor) as caught:
        executor.map_blocks(np.sqrt, np.arange(4.0))
    assert type(caught.value.__cause__) is LookupError


# Serial has none, and joblib waits for its workers.
@pytest.mark.parametrize("medium", [medium for medium in MEDIA if medium not in ("serial", "joblib")])
def test_all_pending_calls_hear_of_a_failed_initializer(medium, tmp_path):
    go = tmp_path / "go"

    def fail_later():
        while not go.exists():
            time.sleep(0.001)
        raise LookupError

    executor = pc.Executor(**MEDIA[medium], initializer=fail_later)
    pending = [executor.submit(len, ()) for _ in range(5)]
    go.touch()
    assert {type(future.exception()).__name__ for future in pending} == {"Broken"}
    executor.shutdown()


def test_a_call_that_has_cost_its_workers_is_a_broken_pool_to_whom_expects_that():
    with pc.Executor(1, retries=1) as executor:
        with pytest.raises(BrokenProcessPool) as caught:
            executor.submit(os._exit, 3).result()
        assert isinstance(caught.value, pc.WorkerLost)
        assert executor.submit(len, "ab").result() == 2


# --- workers that leave after some calls -------------------------------------------------------------------


@pytest.mark.parametrize("method", ["forkserver", "spawn"])
def test_a_worker_is_replaced_after_so_many_calls(method):
    with pc.Executor(1, start_method=method, max_tasks_per_child=3) as executor:
        pids = [executor.submit(os.getpid).result() for _ in range(7)]
    assert len(set(pids[:3])) == len(set(pids[3:6])) == len(set(pids[6:])) == 1
    assert len(set(pids)) == 3


@pytest.mark.parametrize("chunksize", [None, 1, 4, 100])
def test_batches_of_map_count_with_their_calls(chunksize):
    with pc.Executor(2, max_tasks_per_child=5) as executor:
        pids = list(executor.map(lambda _: os.getpid(), range(40), chunksize=chunksize))
    assert len(pids) == 40
    assert max(pids.count(pid) for pid in set(pids)) <= 5


def test_what_is_left_of_a_batch_that_was_broken_off_counts_too():
    def work(i):
        time.sleep(0.0 if i < 40 else 0.01)
        return os.getpid()

    with pc.Executor(2, max_tasks_per_child=10) as executor:
        pids = list(executor.map(work, range(80)))
    assert len(pids) == 80
    assert max(pids.count(pid) for pid in set(pids)) <= 10


def test_jobs_do_not_count_and_find_all_workers(log):
    with pc.Executor(2, max_tasks_per_child=1, state=lambda: note(log)) as executor:
        for _ in range(3):
            futures = [executor.submit(pc.worker_state) for _ in range(3)]
            assert executor.reduce_blocks(np.sum, np.arange(100), block_items=1) == 4950
            assert len(executor.timeline.deaths) == 0
            assert [future.result() for future in futures] == [None] * 3
    assert len({pid for _, pid, _ in log.lines()}) == 9


def test_calls_are_finished_when_an_executor_with_leaving_workers_is_closed():
    with pc.Executor(2, max_tasks_per_child=1) as executor:
        futures = [executor.submit(pow, i, 2) for i in range(6)]
    assert [future.result() for future in futures] == [0, 1, 4, 9, 16, 25]


# --- the object of a worker --------------------------------------------------------------------------------


def test_a_worker_makes_its_state_once_and_closes_it_at_its_end(options, log):
    @contextlib.contextmanager
    def opened():
        note(log, "made")
        yield {"n": 1}
        note(log, "closed")

    with pc.Executor(**options, state=opened) as executor:
        assert log.lines() == []
        assert executor.reduce_blocks(lambda state: state["n"], n_items=20, block_items=1) == 20
        assert [executor.submit(lambda: pc.worker_state()["n"]).result() for _ in range(20)] == [1] * 20
        assert list(executor.map(lambda n: pc.worker_state()["n"] + n, range(50))) == list(range(1, 51))
        made = [where for word, *where in log.lines() if word == "made"]
        most = 2 * executor.n_workers if executor.backend == "auto" else executor.n_workers
        assert 1 <= len(made) == len({tuple(where) for where in made}) <= most
    closed = [where for word, *where in log.lines() if word == "closed"]
    assert sorted(closed) == sorted(made)


class Entered:
    def __init__(self, log):
        self.log = log

    def __enter__(self):
        return 5

    def __exit__(self, *error):
        assert error == (None, None, None)
        note(self.log, "left")


def generated(log):
    yield 5
    note(log, "left")


@pytest.mark.parametrize("make", [Entered, generated])
@pytest.mark.parametrize("backend", ["serial", "threads", "processes"])
def test_context_managers_and_generators_are_entered_and_left(make, backend, log):
    with pc.Executor(1, backend=backend, state=lambda: make(log)) as executor:
        assert executor.submit(pc.worker_state).result() == 5
        assert log.lines() == []
    assert [line[0] for line in log.lines()] == ["left"]


def test_a_state_that_cannot_be_made_fails_its_call_and_is_tried_again(options, tmp_path):
    there = tmp_path / "there"

    def make():
        if not there.exists():
            raise LookupError("not there yet")
        return 5

    with pc.Executor(**options, state=make) as executor:
        with pytest.raises(LookupError, match="not there yet"):
            executor.submit(pc.worker_state).result()
        with pytest.raises(pc.KernelError, match="not there yet") as caught:
            executor.map_blocks(lambda x, state: x * state, np.arange(3))
        assert isinstance(caught.value.__cause__, LookupError)
        there.touch()
        assert executor.submit(pc.worker_state).result() == 5
        assert executor.map_blocks(lambda x, state: x * state, np.arange(3)).tolist() == [0, 5, 10]


def test_no_two_threads_share_a_state():
    def work(x, state):
        assert not state
        state.append(threading.get_ident())
        time.sleep(0.001)
        assert state.pop() == threading.get_ident()
        return x

    for how in ({"workers": 4, "backend": "threads"}, {"workers": 1, "threads_per_worker": 4}):
        with pytest.warns(UserWarning, match="take turns") if how["workers"] > 2 else contextlib.nullcontext():
            executor = pc.Executor(**how, state=list)
        with executor:
            executor.map_blocks(work, np.arange(40), block_items=1)


def test_a_thread_closes_what_it_has_made_itself(log):
    def made():
        note(log, "made")
        yield
        note(log, "closed")

    with pc.Executor(2, backend="threads", state=made) as executor:
        futures = [executor.submit(pc.worker_state) for _ in range(10)]
        executor.shutdown(wait=False)
    assert [future.result() for future in futures] == [None] * 10
    lines = log.lines()
    assert {line[1:] for line in lines if line[0] == "made"} == {line[1:] for line in lines if line[0] == "closed"}


def test_a_worker_that_leaves_after_its_calls_closes_its_state(log):
    def made():
        yield 5
        note(log, "closed")

    with pc.Executor(1, max_tasks_per_child=2, state=made) as executor:
        assert [executor.submit(pc.worker_state).result() for _ in range(5)] == [5] * 5
    assert len({pid for _, pid, _ in log.lines()}) == 3


def test_closing_may_take_longer_than_a_worker_is_waited_for_otherwise(log, monkeypatch):
    monkeypatch.setattr("parcompute.backends.processes.crew.LEAVE_S", 0.0)

    def made():
        yield
        time.sleep(0.05)
        note(log, "closed")

    with pc.Executor(1, state=made) as executor:
        executor.submit(pc.worker_state).result()
    assert [line[0] for line in log.lines()] == ["closed"]


def test_a_parameter_named_state_is_like_any_other_where_workers_have_none():
    with pc.Executor(backend="serial") as executor:
        assert executor.map_blocks(lambda x, state: x + state, np.arange(3), args=(1,)).tolist() == [1, 2, 3]
        with pytest.raises(RuntimeError, match=r"Executor\(state=\.\.\.\)"):
            executor.submit(pc.worker_state).result()
    with pc.Executor(backend="serial", state=list) as executor:
        assert executor.map_blocks(lambda x, state: x + state, np.arange(3), kwargs={"state": 1}).tolist() == [1, 2, 3]
        assert executor.submit(lambda state: state, 4).result() == 4


def test_what_goes_wrong_while_a_state_is_closed_is_logged(caplog):
    def made():
        yield
        raise LookupError("cannot be closed")

    with pc.Executor(backend="serial", state=made) as executor:
        executor.submit(pc.worker_state)
    assert "cannot be closed" in caplog.text


# --- arguments ---------------------------------------------------------------------------------------------


def test_the_arguments_of_processpoolexecutor_are_taken_in_its_words_and_places():
    context = multiprocessing.get_context("spawn")
    with pc.Executor(1, context, remember, (5,), max_tasks_per_child=2) as executor:
        assert (executor.n_workers, executor.start_method) == (1, "spawn")
        assert executor.submit(recall).result() == (5, [5])
    with pc.Executor(max_workers=1, mp_context="fork") as executor:
        assert (executor.n_workers, executor.start_method) == (1, "fork")


@pytest.mark.parametrize(
    ("options", "error", "says"),
    [
        ({"workers": 1, "max_workers": 1}, TypeError, "workers=1 and max_workers=1 are one argument"),
        ({"max_workers": 0}, ValueError, "max_workers=0 is out of range"),
        ({"max_workers": "4"}, TypeError, "max_workers='4' is str"),
        ({"max_workers": 10**6}, ValueError, "max_workers=1000000 is out of range"),
        ({"mp_context": "spawn", "start_method": "fork"}, ValueError, "start_method='fork', but mp_context .* 'spawn'"),
        ({"mp_context": "thread"}, ValueError, "mp_context starts by 'thread'; pass one that does by fork"),
        ({"mp_context": 3}, TypeError, "mp_context=3 is int"),
        ({"mp_context": "spawn", "backend": "threads"}, ValueError, "mp_context='spawn' has no meaning"),
        ({"initializer": 3}, TypeError, "initializer=3 is int, and must be a callable"),
        ({"state": 3}, TypeError, "state=3 is int, and must be a callable"),
        ({"max_tasks_per_child": 0}, ValueError, "max_tasks_per_child=0"),
        ({"max_tasks_per_child": 1.5}, TypeError, "max_tasks_per_child=1.5 is float"),
        ({"max_tasks_per_child": 1, "start_method": "fork"}, ValueError, "start_method='fork'"),
        ({"max_tasks_per_child": 1, "backend": "threads"}, ValueError, "needs backend='processes' or 'auto'"),
        ({"initializer": len, "initargs": (threading.Lock(),)}, TypeError, "set up with cannot travel"),
    ],
)
def test_arguments_that_make_no_sense_are_refused(options, error, says):
    with pytest.raises(error, match=says):
        pc.Executor(**options)


def _strict(folder):
    np.seterr(divide="raise")
    if folder is not None:
        warnings.simplefilter("error")
        sys.setrecursionlimit(4321)
        os.chdir(folder)


def _settings_now():
    warned = any(action == "error" and kind is Warning for action, _, kind, _, _ in warnings.filters)
    return np.geterr()["divide"], sys.getrecursionlimit(), os.getcwd(), warned


@pytest.mark.parametrize("method", ["fork", "forkserver"])
def test_settings_of_the_initializer_hold_until_the_caller_changes_them(tmp_path, method):
    limit = sys.getrecursionlimit()
    with pc.Executor(1, start_method=method, initializer=_strict, initargs=(tmp_path,)) as ex:
        for _ in range(2):
            assert ex.submit(_settings_now).result(10) == ("raise", 4321, str(tmp_path), True)
        assert ex.map_blocks(lambda x: x + sys.getrecursionlimit(), np.zeros(1))[0] == 4321
        try:
            sys.setrecursionlimit(limit + 5)
            with np.errstate(divide="ignore"):
                assert ex.submit(_settings_now).result(10) == ("ignore", limit + 5, str(tmp_path), True)
        finally:
            sys.setrecursionlimit(limit)
        assert ex.submit(_settings_now).result(10) == ("raise", 4321, str(tmp_path), True)


@pytest.mark.skipif(np.__version__ < "2", reason="np.errstate belongs to the thread")
@pytest.mark.parametrize("backend", ["serial", "threads", "pool", "joblib"])
def test_np_seterr_of_the_initializer_holds(backend):
    with np.errstate(), pc.Executor(1, backend=backend, initializer=_strict, initargs=(None,)) as ex:
        assert list(ex.map(lambda _: np.geterr()["divide"], range(3))) == ["raise"] * 3
