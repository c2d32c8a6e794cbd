"""What every backend promises under every start method: the same bits, each block once, clear failures, no remains."""

import contextlib
import ctypes
import functools
import os
import pickle
import resource
import subprocess
import sys
import threading
import traceback
from unittest import mock

import cloudpickle
import numpy as np
import pytest

import parcompute as pc
from parcompute.machine import limits
from parcompute.values.blocks import Schedule

# The workers of a test session can import the package, but not its tests.
cloudpickle.register_pickle_by_value(sys.modules[__name__])

# From 3.12 on a fork says that there are other threads, of whatever test.
pytestmark = pytest.mark.filterwarnings("ignore:.*multi-threaded.*fork:DeprecationWarning")

METHODS = ("fork", "forkserver", "spawn")
MEDIA = {
    "serial": {"backend": "serial"},
    "threads": {"backend": "threads"},
    "auto": {"backend": "auto"},
    **{f"processes-{method}": {"backend": "processes", "start_method": method} for method in METHODS},
    **{f"pool-{method}": {"backend": "pool", "start_method": method} for method in METHODS},
    "joblib": {"backend": "joblib"},
    "mpi": {"backend": "mpi"},
    "dask": {"backend": "dask"},
}
# How a worker was started changes nothing in how it computes, fails and answers, but for what a forked one has in
# memory: where each test needs workers of its own, one method does for an engine, and two for ours.
ENGINES = ["serial", "threads", "auto", "processes-fork", "processes-forkserver", "pool-fork", "joblib", "mpi", "dask"]
# A job of "auto" that cannot travel stays with the threads.
IN_PROCESSES = [name for name in ENGINES if name not in ("serial", "threads", "auto")]
of_each_engine = pytest.mark.parametrize("medium", ENGINES, indirect=True)
SCHEDULES = ("static", "static,3", "dynamic,1", "dynamic,7", "dynamic,1000", "guided", "guided,4")


def n_nodes(medium):
    """Return how many nodes there are; the session itself may be run by ``mpiexec -n N python -m parcompute.mpi``."""
    return sys.modules["mpi4py.MPI"].COMM_WORLD.Get_size() if medium == "mpi" else 2 if medium == "dask" else 1


def opened(medium, workers=2, **options):
    """Return an executor with so many workers on all nodes together; `serial` has one whatever is asked for."""
    workers = 1 if medium == "serial" else -(-workers // n_nodes(medium))
    more_than_cpus = workers > limits.usable_cpus()
    with pytest.warns(UserWarning, match="take turns") if more_than_cpus else contextlib.nullcontext():
        return pc.Executor(workers, **MEDIA[medium], **options)


@pytest.fixture(scope="module", params=MEDIA)
def medium(request):
    """Each backend under each start method."""
    with connected(request.param):
        yield request.param


@contextlib.contextmanager
def connected(medium):
    """Have what connects nodes, which is not an executor's own."""
    if medium == "mpi":
        pytest.importorskip("mpi4py.MPI", exc_type=ImportError)  # opens files that stay open until the program ends
        yield
    elif medium == "dask":
        distributed = pytest.importorskip("distributed")
        options = {"threads_per_worker": 1, "dashboard_address": ":0", "processes": True}
        with mock.patch.dict(os.environ):  # Dask sets what its workers shall find, and lets it stand
            started = distributed.LocalCluster(n_workers=2, **options)
        with started as cluster, distributed.Client(cluster):
            with pc.Executor(1, backend="dask") as executor:  # what Dask opens, and starts, once
                executor.submit(len, ()).result()
            yield
    else:
        yield


@pytest.fixture(scope="module")
def kept(medium):
    """An executor for many tests, all of whose threads and processes run already."""
    if medium == "joblib":  # all executors of a program share joblib's workers, and a close ends them
        yield None
        return
    with opened(medium) as executor:
        executor.reduce_blocks(len, np.arange(4), block_items=1)
        executor.submit(len, ()).result()
        yield executor


@pytest.fixture
def executor(medium, kept):
    """An executor with the default schedule that no test may break."""
    if kept is None:
        with opened(medium) as own:
            yield own
    else:
        yield kept
        kept.schedule = Schedule.parse("guided")


@pytest.fixture
def fresh(medium, capfd):
    """An executor of one's own, which must not write to the standard streams."""
    with opened(medium) as executor:
        yield executor
    assert tuple(capfd.readouterr()) == ("", "")


@pytest.fixture
def calls(tmp_path):
    """A log that every process can write to."""
    return CallLog(str(tmp_path / "calls"))


class CallLog:
    """Numbers, appended by whoever computes: with O_APPEND each write is one piece, from any process."""

    def __init__(self, path):
        self.path = path

    def note(self, number):
        fd = os.open(self.path, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o600)
        os.write(fd, int(number).to_bytes(8, "little"))
        os.close(fd)

    def noted(self):
        return np.fromfile(self.path, "<i8").tolist()


def bits(value):
    """Return types and bytes."""
    if isinstance(value, (tuple, list)):
        return tuple(map(bits, value))
    if isinstance(value, dict):
        return {key: bits(part) for key, part in value.items()}
    if isinstance(value, (np.ndarray, np.generic)):
        return type(value), value.dtype.str, value.shape, value.tobytes()
    return type(value), pickle.dumps(value)


# --- the same bits -----------------------------------------------------------------------------------------

RNG = np.random.default_rng(1)
X = RNG.standard_normal(2_500) * np.exp(RNG.standard_normal(2_500) * 20)
TABLE = RNG.standard_normal((700, 5, 3))
SQUARES = RNG.standard_normal((3, 700, 700))  # BLAS multiplies them in another order with another number of threads
LARGE = RNG.standard_normal((3, 30_000, 2))  # 1.4 MB: shared on the way in, where smaller arrays are sent


def smoothed(x, block):
    """Mean over each item and what the halo has of its two neighbours on either side."""
    core = range(block.core.start, block.core.stop)
    return np.array([x[max(0, i - 2) : i + 3].mean() for i in core])


def filled(x, out):
    np.multiply(x, x, out=out)


def block_sums(x):
    """Return one number that depends on the order of summation, hence on the block's memory layout."""
    return np.full(len(x), x.sum())


def of_mixed_kinds(block):
    return [block.index, 0.1 * block.index, 2**70, True, np.float32(0.1)][block.index % 5]


CASES = {
    "rows": lambda ex: ex.map_blocks(np.sqrt, np.abs(X), block_items=37),
    "random rows": lambda ex: ex.map_blocks(
        lambda block, rng: rng.standard_normal(block.size), n_items=2_500, block_items=37, seed=5
    ),
    "float sum": lambda ex: ex.reduce_blocks(lambda x: float((x * x).sum()), X, block_items=37),
    "NumPy scalars": lambda ex: ex.reduce_blocks(np.sum, X, block_items=37),
    "random sum": lambda ex: ex.reduce_blocks(
        lambda block, rng: rng.exponential(size=block.size).sum(), n_items=2_500, block_items=37, seed=5
    ),
    "arrays": lambda ex: ex.reduce_blocks(lambda x: x.sum(axis=0), TABLE, block_items=11),
    "dicts": lambda ex: ex.reduce_blocks(lambda x: {"sum": x.sum(), "of": (len(x), x.max(axis=0))}, X, block_items=37),
    "many arrays": lambda ex: ex.reduce_blocks(
        lambda block: {n: block.index / n for n in range(1, 100)}, n_items=40, block_items=1
    ),
    "objects": lambda ex: ex.reduce_blocks(
        lambda block: f"{block.index}", n_items=40, block_items=1, combine=lambda a, b: f"({a} {b})"
    ),
    "mixed kinds": lambda ex: ex.reduce_blocks(of_mixed_kinds, n_items=40, block_items=1),
    "tuple of outputs": lambda ex: ex.map_blocks(lambda x: (x[:, 0] > 0, x.sum(axis=1)), TABLE, block_items=11),
    "halo": lambda ex: ex.map_blocks(smoothed, X, halo=2, block_items=37),
    "out": lambda ex: ex.map_blocks(filled, X, block_items=37),
    "strided": lambda ex: ex.map_blocks(block_sums, TABLE[::-2, ::-1, 1:], block_items=11),
    "transposed": lambda ex: ex.map_blocks(block_sums, TABLE.transpose(1, 2, 0), block_items=2),
    "transposed, large": lambda ex: ex.map_blocks(block_sums, LARGE.transpose(1, 2, 0), block_items=1_001),
    "Fortran order, large": lambda ex: ex.map_blocks(block_sums, LARGE.transpose(2, 1, 0), block_items=1),
    "products by BLAS": lambda ex: ex.map_blocks(lambda x: x @ x, SQUARES, block_items=1),
    "default block size": lambda ex: ex.reduce_blocks(np.sum, LARGE.reshape(-1)),
    "empty": lambda ex: ex.map_blocks(np.sqrt, np.empty((0, 3), "f4")),
}
UNDER_EACH_SCHEDULE = ("random rows", "float sum", "mixed kinds")


@pytest.fixture(scope="module")
def by_serial():
    """What the reference computes."""
    with pc.Executor(backend="serial") as serial:
        return {name: bits(case(serial)) for name, case in CASES.items()}


# Three take turns on two CPUs, five get less than a chunk each of some cases.
NUMBERS = {
    **{name: (2,) for name in MEDIA},
    **{name: (1, 2, 3, 5) for name in ("threads", "auto", "processes-fork", "processes-forkserver")},
    **{name: (1, 3) for name in ("pool-fork", "joblib")},
    "serial": (1,),
}


@pytest.mark.parametrize(
    ("medium", "workers"),
    [pytest.param(name, n, id=f"{name}-{n}") for name in MEDIA for n in NUMBERS[name]],
    indirect=["medium"],
)
def test_results_are_bit_for_bit_those_of_serial(medium, workers, by_serial):
    with opened(medium, workers) as executor:
        assert executor.n_workers == -(-workers // n_nodes(medium)) * n_nodes(medium)
        for name, case in CASES.items():
            assert bits(case(executor)) == by_serial[name], name
        for schedule in SCHEDULES:
            executor.schedule = Schedule.parse(schedule)
            for name in UNDER_EACH_SCHEDULE:
                assert bits(CASES[name](executor)) == by_serial[name], (name, schedule)


@pytest.mark.parametrize("method", METHODS)
def test_threads_in_worker_processes_give_the_same_bits_too(method, by_serial):
    with pc.Executor(1, start_method=method, threads_per_worker=2) as executor:
        assert (executor.n_workers, len(executor.worker_pids)) == (2, 1)
        for name, case in CASES.items():
            assert bits(case(executor)) == by_serial[name], name


# --- each block once, and the books about it ---------------------------------------------------------------


def test_each_block_is_computed_exactly_once_under_every_schedule(executor, tmp_path):
    for schedule in SCHEDULES:
        executor.schedule = Schedule.parse(schedule)
        calls = CallLog(str(tmp_path / schedule))

        def kernel(block, calls=calls):
            calls.note(block.index)
            return np.full(block.size, block.index)

        result = executor.map_blocks(kernel, n_items=53, block_items=2)
        assert sorted(calls.noted()) == list(range(27)), schedule
        assert result.tolist() == [item // 2 for item in range(53)], schedule


def test_the_timeline_has_each_chunk_once_and_the_ledger_closes_under_every_schedule(executor):
    for schedule in SCHEDULES:
        executor.schedule = Schedule.parse(schedule)
        executor.reduce_blocks(np.sum, X, block_items=37)
        timeline, plan = executor.timeline, executor.plan
        assert plan.schedule == executor.schedule
        rows = timeline.chunks
        if executor.backend == "auto" and rows["attempt"].any():  # it changed hands, perhaps in the middle of chunks
            assert set(rows["attempt"]) <= {0, 1}
            assert len(set(zip(rows["chunk"].tolist(), rows["attempt"].tolist(), strict=True))) == len(rows)
            assert set(rows["chunk"]) == set(range(plan.n_chunks))
        else:
            assert not rows["attempt"].any()
            assert sorted(rows["chunk"]) == list(range(plan.n_chunks))
        assert timeline.called_ns <= timeline.submitted_ns <= timeline.completed_ns
        assert timeline.chunks["stored_ns"].max() <= timeline.completed_ns
        assert timeline.workers["worker"].tolist() == list(range(executor.n_workers))
        ledger = pc.losses(timeline)
        assert sum(ledger.parts_ns.values()) == ledger.total_ns == executor.n_workers * timeline.makespan_ns


def test_the_chunks_of_a_worker_follow_each_other(executor, medium):
    executor.reduce_blocks(np.sum, X, block_items=7)
    # The engines of others store in this process, while the worker is at its next chunk already.
    end = "finished_ns" if medium.startswith(("pool", "joblib")) else "stored_ns"
    for worker in range(executor.n_workers):
        rows = executor.timeline.of_worker(worker)
        assert (rows["started_ns"] <= rows["finished_ns"]).all()
        assert (rows["finished_ns"] <= rows["stored_ns"]).all()
        assert (rows[end][:-1] <= rows["started_ns"][1:]).all()
        assert (rows["cpu_ns"] >= 0).all()


def test_the_plan_and_the_seed_of_the_last_job_can_be_read(executor):
    first = executor.map_blocks(lambda block, rng: rng.random(block.size), n_items=30, block_items=4)
    assert (executor.plan.n_blocks, executor.plan.n_workers) == (8, executor.n_workers)
    again = executor.map_blocks(
        lambda block, rng: rng.random(block.size), n_items=30, block_items=4, seed=executor.seed
    )
    assert bits(again) == bits(first)


def test_a_job_is_independent_of_the_one_before(executor):
    one = executor.reduce_blocks(np.sum, X, block_items=37)
    other = executor.map_blocks(lambda x, by: x * by, X[:100], args=(2.0,), block_items=9)
    assert bits(other) == bits(X[:100] * 2.0)
    assert bits(executor.reduce_blocks(np.sum, X, block_items=37)) == bits(one)


def test_a_call_may_come_before_any_job_and_results_are_ordinary_arrays_that_outlive_the_executor(medium):
    with opened(medium) as executor:
        assert executor.submit(pow, 2, 5).result() == 32
        rows = executor.map_blocks(np.sqrt, np.arange(9.0), block_items=2)
        total = executor.reduce_blocks(lambda x: x.reshape(-1, 1), np.arange(4.0), block_items=2)
    assert type(rows) is type(total) is np.ndarray
    rows += 1
    assert rows.tolist() == (np.sqrt(np.arange(9.0)) + 1).tolist()
    assert total.tolist() == [[2.0], [4.0]]


# --- what can be a kernel ----------------------------------------------------------------------------------


class Scaled:
    def __init__(self, by):
        self.by = by

    def __call__(self, x):
        return x * self.by

    def method(self, x):
        return x * self.by

    @classmethod
    def of_class(cls, x):
        return cls(3.0)(x)

    @staticmethod
    def static(x):
        return x * 3.0


def times(by, x):
    return x * by


def kernels():
    """Return every kind of callable that multiplies by 3."""
    by = np.float64(3.0)

    def closure(x):
        return inner(x)

    def inner(x):
        return x * by

    return {
        "lambda": lambda x: x * 3.0,
        "closure": closure,
        "partial": functools.partial(times, 3.0),
        "partial of ufunc": functools.partial(np.multiply, 3.0),
        "bound method": Scaled(3.0).method,
        "class method": Scaled.of_class,
        "static method": Scaled.static,
        "callable object": Scaled(3.0),
        "wrapped": functools.wraps(times)(lambda x: x * 3.0),
    }


def test_any_callable_can_be_a_kernel_and_a_call(executor):
    expected = np.arange(20.0) * 3.0
    for kind, kernel in kernels().items():
        assert bits(executor.map_blocks(kernel, np.arange(20.0), block_items=3)) == bits(expected), kind
        assert executor.submit(kernel, 2.0).result() == 6.0, kind
        assert list(executor.map(kernel, [1.0, 2.0])) == [3.0, 6.0], kind


def test_a_kernel_sees_a_closure_as_it_is_at_the_call(executor):
    by = 2.0
    assert executor.reduce_blocks(lambda x: x.sum() * by, np.ones(3)) == 6.0
    by = 3.0
    assert executor.reduce_blocks(lambda x: x.sum() * by, np.ones(3)) == 9.0


def test_a_recursive_kernel_finds_itself(executor):
    def factorial(n):
        return 1 if n < 2 else n * factorial(n - 1)

    assert executor.submit(factorial, 20).result() == 2432902008176640000


# --- failures ----------------------------------------------------------------------------------------------


def failing_on(number, error):
    def kernel(block):
        if block.index == number:
            raise error
        return np.zeros(block.size)

    return kernel


@of_each_engine
def test_a_kernel_that_raises_is_answered_with_block_items_and_its_own_error(fresh):
    for number in (0, 5, 6):
        with pytest.raises(pc.KernelError) as caught:
            fresh.map_blocks(failing_on(number, ValueError("no such luck")), n_items=27, block_items=4)
        error = caught.value
        last = min(4 * number + 3, 26)
        assert f"block {number} (items {4 * number} to {last})" in str(error)
        assert "failing_on.<locals>.kernel" in str(error)
        assert "ValueError: no such luck" in str(error)
        assert (error.block.index, error.block.start, error.block.stop) == (number, 4 * number, last + 1)
        assert type(error.__cause__) is ValueError
        text = "".join(traceback.format_exception(error))
        assert "test_contract.py" in text
        assert "raise error" in text
        assert fresh.reduce_blocks(np.sum, np.ones(10), block_items=2) == 10.0


@of_each_engine
def test_of_several_failed_blocks_one_is_reported_and_the_run_stops(fresh, calls):
    def kernel(block):
        calls.note(block.index)
        raise ValueError(block.index)

    with pytest.raises(pc.KernelError) as caught:
        fresh.map_blocks(kernel, n_items=10_000, block_items=1)
    assert caught.value.block.index in calls.noted()
    assert len(calls.noted()) < 5_000


@of_each_engine
def test_a_submitted_call_that_raises_gives_its_own_exception_with_the_remote_traceback(fresh, medium):
    def call():
        raise KeyError("nothing there")

    future = fresh.submit(call)
    with pytest.raises(KeyError, match="nothing there") as caught:
        future.result()
    text = "".join(traceback.format_exception(caught.value))
    assert "in call" in text
    with pytest.raises(KeyError, match="nothing there") as caught:
        list(fresh.map(lambda _: call(), [1]))
    assert "in call" in "".join(traceback.format_exception(caught.value))


class CannotBePickled(Exception):
    def __init__(self, message):
        super().__init__(message)
        self.lock = threading.Lock()


class CannotBeRebuilt(Exception):
    def __init__(self, one, two):
        super().__init__(f"{one} and {two}")


class CannotBeShown(Exception):
    def __str__(self):
        raise RuntimeError("not even this")


@of_each_engine
@pytest.mark.parametrize("make", [CannotBePickled, lambda text: CannotBeRebuilt(text, "more")], ids=["pickle", "build"])
def test_an_exception_that_cannot_travel_arrives_as_text(fresh, make):
    def kernel(block):
        if block.index == 2:
            raise make("what happened")
        return 0.0

    with pytest.raises(pc.KernelError, match=r"block 2 \(items 4 to 5\).*what happened") as caught:
        fresh.reduce_blocks(kernel, n_items=10, block_items=2)
    # joblib sends kernels with cloudpickle, which from 3.1.3 on leaves out in which file their source stands.
    line = "in kernel" if fresh.backend == "joblib" else "raise make"
    assert line in "".join(traceback.format_exception(caught.value))

    def call():
        raise make("what happened")

    for run in (lambda: fresh.submit(call).result(), lambda: list(fresh.map(lambda _: call(), [1]))):
        with pytest.raises(Exception, match="what happened") as caught:
            run()
        assert "raise make" in "".join(traceback.format_exception(caught.value))


@of_each_engine
def test_an_exception_that_cannot_even_be_shown_names_its_type(fresh):
    def kernel(block):
        raise CannotBeShown

    with pytest.raises(pc.KernelError, match="CannotBeShown"):
        fresh.reduce_blocks(kernel, n_items=3)


@of_each_engine
def test_a_kernel_that_exits_has_failed(fresh):
    def kernel(block):
        sys.exit("enough")

    with pytest.raises(pc.KernelError, match=r"block 0 \(items 0 to 2\).*SystemExit: enough"):
        fresh.reduce_blocks(kernel, n_items=3)
    assert fresh.reduce_blocks(np.sum, np.ones(4), block_items=1) == 4.0


@pytest.mark.parametrize("medium", IN_PROCESSES, indirect=True)
@pytest.mark.parametrize("number", [0, 3])
def test_a_result_that_cannot_travel_is_a_failure_of_its_block(fresh, number):
    def kernel(block):
        return threading.Lock() if block.index == number else {block.index}

    with pytest.raises(pc.KernelError, match=rf"block {number} \(items {2 * number} to {2 * number + 1}\).*lock"):
        fresh.reduce_blocks(kernel, n_items=12, block_items=2, combine=lambda a, b: a | b)
    with pytest.raises(TypeError, match="lock"):
        fresh.submit(threading.Lock).result()
    assert fresh.reduce_blocks(np.sum, np.ones(4), block_items=1) == 4.0


@pytest.mark.parametrize("medium", IN_PROCESSES, indirect=True)
def test_a_kernel_that_cannot_travel_is_answered_with_the_variable_to_blame(fresh):
    guard = threading.Lock()

    def closure(x):
        with guard:
            return x

    def taking(x, one=None):
        return x

    scaled = Scaled(1.0)
    scaled.door = guard
    for kernel, options, named in (
        (closure, {}, "'guard'"),
        (taking, {"args": (guard,)}, r"args\[0\]"),
        (taking, {"kwargs": {"one": guard}}, r"kwargs\['one'\]"),
        (functools.partial(taking, one=guard), {}, "'one'"),
        (scaled.method, {}, "'door'"),
        (lambda x: (A_LOCK, x)[1], {}, "'A_LOCK'"),
    ):
        with pytest.raises(TypeError, match=f"cannot travel.*{named}.*lock"):
            fresh.map_blocks(kernel, np.arange(5.0), **options)
    assert fresh.reduce_blocks(np.sum, np.ones(4), block_items=1) == 4.0


A_LOCK = threading.Lock()


@pytest.mark.parametrize("medium", IN_PROCESSES, indirect=True)
def test_an_open_file_does_not_travel_either(fresh, tmp_path):
    (tmp_path / "data").write_text("some lines")
    for mode in ("r", "rb", "w"):
        with open(tmp_path / "data", mode) as file:
            with pytest.raises(TypeError, match=r"cannot travel.*'file'.*data"):
                fresh.map_blocks(lambda x: (file, x)[1], np.arange(5.0))
            with pytest.raises(TypeError, match=r"cannot travel.*'file'.*data"):
                fresh.submit(lambda: file.name).result()


@of_each_engine
def test_a_kernel_that_writes_to_its_input_fails_and_changes_nothing(fresh):
    def kernel(x):
        x += 1
        return x

    for x in (np.arange(10.0), pc.share(np.arange(10.0)), np.arange(500_000.0)):
        with pytest.raises(pc.KernelError, match="read-only"):
            fresh.map_blocks(kernel, x)
        assert x[:3].tolist() == [0.0, 1.0, 2.0]


# --- calls -------------------------------------------------------------------------------------------------


def test_map_keeps_the_order_and_takes_several_iterables(executor):
    assert list(executor.map(pow, [2, 3, 4], [5, 2, 3, 9])) == [32, 9, 64]
    assert list(executor.map(abs, range(-100, 0), chunksize=7)) == list(range(100, 0, -1))
    assert list(executor.map(abs, [])) == []


def test_map_gives_what_came_before_the_failure(executor):
    results = executor.map(lambda n: 1 // n, [1, -1, 0, 1])
    assert [next(results), next(results)] == [1, -1]
    with pytest.raises(ZeroDivisionError):
        next(results)
    assert list(results) == []


def test_calls_and_jobs_take_turns(executor):
    futures = [executor.submit(pow, 2, n) for n in range(30)]
    total = executor.reduce_blocks(np.sum, X, block_items=37)
    futures += [executor.submit(pow, 3, n) for n in range(30)]
    assert [future.result() for future in futures] == [2**n for n in range(30)] + [3**n for n in range(30)]
    assert bits(executor.reduce_blocks(np.sum, X, block_items=37)) == bits(total)


def test_large_arguments_and_results_of_calls_pass_each_other(executor):
    letters = [bytes([65 + n]) * 3_000_000 for n in range(8)]
    assert list(executor.map(lambda text: text.lower(), letters, chunksize=1)) == [text.lower() for text in letters]


@of_each_engine
def test_an_executor_that_only_calls_leaves_nothing_behind(medium):
    with opened(medium) as executor:
        assert executor.submit(pow, 2, 5).result() == 32


def test_an_executor_that_does_nothing_leaves_nothing_behind_and_says_that_it_is_closed(medium):
    with opened(medium) as executor:
        pass
    executor.shutdown()  # again is fine
    for use in (
        lambda: executor.submit(len, ()),
        lambda: executor.map(len, [()]),
        lambda: executor.reduce_blocks(np.sum, np.ones(3)),
        lambda: executor.map_blocks(np.sqrt, np.ones(3)),
        lambda: executor.worker_pids,
        executor.wait_until_ready,
    ):
        with pytest.raises(RuntimeError, match="closed; make a new one"):
            use()


# --- programs ----------------------------------------------------------------------------------------------

PROGRAM = """
import functools
import numpy as np
import parcompute as pc

OFFSET = 0.5


class Scaled:
    def __init__(self, by):
        self.by = by

    def __call__(self, x):
        return helper(x) * self.by


def helper(x):
    return x + OFFSET


def kernel(x, rng):
    return helper(x) + rng.integers(0, 1, len(x))


def main():
    with pc.Executor(2, {options}) as ex:
        print(ex.map_blocks(kernel, np.arange(6.0), block_items=2, seed=1).tolist())
        print(ex.map_blocks(Scaled(2), np.arange(3.0), block_items=1).tolist())
        print(ex.map_blocks(functools.partial(np.add, 1), np.arange(3.0)).tolist())
        print(ex.reduce_blocks(lambda x: helper(x).sum(), np.arange(4.0), block_items=1))
        print(list(ex.map(helper, [1.0, 2.0])), ex.submit(helper, 3.0).result())
        try:
            ex.reduce_blocks(lambda x: 1 // 0, np.arange(4.0))
        except pc.KernelError as error:
            print(type(error.__cause__).__name__)


{call}
"""
PRINTS = """\
[0.5, 1.5, 2.5, 3.5, 4.5, 5.5]
[1.0, 3.0, 5.0]
[1.0, 2.0, 3.0]
8.0
[1.5, 2.5] 3.5
ZeroDivisionError
"""


def ran(program, folder, way="file"):
    """Run a program of its own in another folder; return what it printed, on both streams."""
    way_in = {"file": ["program.py"], "stdin": ["-"], "-c": ["-c", program]}[way]
    (folder / "program.py").write_text(program)
    done = subprocess.run(
        [sys.executable, "-W", "error", *way_in],
        cwd=folder,
        env={name: value for name, value in os.environ.items() if not name.startswith(("PMI", "HYDI", "MPI_"))},
        input=program if way == "stdin" else None,
        capture_output=True,
        text=True,
        timeout=60,
    )
    return done.returncode, done.stdout, done.stderr


# multiprocessing runs the main module again in spawned workers, so it needs the guard, and a file.
UNGUARDED = [name for name in MEDIA if name not in ("serial", "pool-spawn", "pool-forkserver")]


# A program that is no file has no main module that a new interpreter could look for functions in.
WAYS = [(name, "file") for name in UNGUARDED]
WAYS += [(name, way) for name in ("processes-fork", "processes-spawn", "joblib") for way in ("stdin", "-c")]


@pytest.mark.parametrize(("name", "way"), WAYS)
def test_a_program_without_a_guard_computes_with_its_own_functions(name, way, tmp_path):
    options = ", ".join(f"{key}={value!r}" for key, value in MEDIA[name].items())
    assert ran(PROGRAM.format(options=options, call="main()"), tmp_path, way) == (0, PRINTS, "")


@pytest.mark.parametrize("method", METHODS)
def test_a_program_with_a_guard_computes_with_a_pool(method, tmp_path):
    options = f"backend='pool', start_method={method!r}"
    program = PROGRAM.format(options=options, call='if __name__ == "__main__":\n    main()')
    assert ran(program, tmp_path) == (0, PRINTS, "")


@pytest.mark.parametrize("name", [name for name in MEDIA if name.startswith(("threads", "processes", "joblib"))])
def test_a_program_that_never_closes_its_executor_ends_quietly(name, tmp_path):
    options = ", ".join(f"{key}={value!r}" for key, value in MEDIA[name].items())
    program = f"""
import numpy as np, parcompute as pc
ex = pc.Executor(2, {options})
x = pc.share(np.arange(1e6))
y = ex.map_blocks(np.sqrt, x)
print(ex.reduce_blocks(np.sum, x), ex.submit(len, "four").result())
"""
    assert ran(program, tmp_path) == (0, "499999500000.0 4\n", "")


def test_a_worker_stands_where_the_program_stands(executor, monkeypatch, tmp_path):
    assert executor.submit(os.getcwd).result() == os.getcwd()


@pytest.mark.parametrize("medium", IN_PROCESSES, indirect=True)
def test_blas_threads_are_limited_in_workers(medium, monkeypatch):
    for variable in ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"):
        monkeypatch.delenv(variable)

    def threads_found():
        import threadpoolctl

        np.ones((2, 2)) @ np.ones((2, 2))
        return [library["num_threads"] for library in threadpoolctl.threadpool_info()]

    with opened(medium, workers=1, blas_threads=1) as executor:
        assert set(executor.submit(threads_found).result()) <= {1}
    assert "OMP_NUM_THREADS" not in os.environ


@pytest.mark.skipif(not hasattr(ctypes.CDLL(None), "mallopt"), reason="malloc of this C library has no such options")
@pytest.mark.parametrize("method", METHODS)
def test_a_worker_uses_the_memory_of_temporaries_again(method):
    def new_pages():
        """Return how many the same temporaries take when they are made again and again."""
        counts = []
        for _ in range(50):
            np.ones(2**19) * np.ones(2**19)  # 4 MiB each
            counts.append(resource.getrusage(resource.RUSAGE_SELF).ru_minflt)
        return counts[-1] - counts[5]

    with pc.Executor(1, start_method=method) as executor:
        assert executor.submit(new_pages).result() < 1000  # one temporary that is made anew each time: 46,080
