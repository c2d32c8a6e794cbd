"""The backend that chooses: what it sees, what it concludes, and that nothing is lost or done twice on the way."""

import functools
import os
import sys
import threading
import time
from concurrent.futures import Future, ThreadPoolExecutor

import h5py
import numpy as np
import pytest

import parcompute as pc
from parcompute.backends import kinds
from parcompute.backends.auto import probe
from parcompute.backends.auto.probe import ENOUGH_S, LONG_S, Evidence, Verdict
from parcompute.backends.threads import Walks
from parcompute.jobs.job import Job
from parcompute.jobs.outputs import Rows
from parcompute.values.blocks import Schedule

X = np.random.default_rng(5).standard_normal(3_000)


def seen(*found, late=0.0, of_processes=0):
    """Return evidence of threads, given as (threads, CPUs kept busy, seconds): 100 blocks are a second of a CPU.

    Looks at them are late by so many milliseconds. Processes may have finished so many blocks in a second.
    """
    evidence = Evidence()
    for n_threads, busy, wall_s in found:
        cpu_s = busy * wall_s
        evidence.of_threads(n_threads).add(wall_s, cpu_s, round(100 * cpu_s), late_s=late / 1e3)
    if of_processes:
        evidence.processes.add(wall_s=1.0, n_blocks=of_processes)
    return evidence


def choice(evidence, n_workers=2, n_left=10_000, hand_over_s=0.0):
    verdict = evidence.verdict(n_workers, n_left, hand_over_s)
    return verdict and verdict.backend


# --- what is concluded -------------------------------------------------------------------------------------


def test_nothing_is_concluded_from_less_than_the_scheduler_may_take_to_spread_threads():
    assert choice(Evidence()) is None
    assert choice(seen((2, 1.0, ENOUGH_S * 0.9), late=0.5)) is None
    assert choice(seen((2, 2.0, ENOUGH_S * 0.9))) is None


def test_a_kernel_that_waits_is_for_threads():
    assert choice(seen((2, 0.05, LONG_S * 0.9), late=0.5)) is None
    assert choice(seen((2, 0.05, LONG_S))) == "threads"


def test_threads_that_wait_for_the_lock_are_replaced_by_processes():
    assert choice(seen((2, 1.02, ENOUGH_S), late=0.5)) == "processes"


def test_threads_that_wait_for_something_else_are_looked_at_for_longer():
    assert choice(seen((2, 1.02, LONG_S * 0.9))) is None
    assert choice(seen((2, 1.02, LONG_S))) == "processes"


def test_threads_that_all_compute_go_on():
    assert choice(seen((2, 1.9, ENOUGH_S))) == "threads"
    assert choice(seen((2, 1.9, ENOUGH_S)), n_workers=8) is None
    assert choice(seen((2, 1.9, ENOUGH_S), (8, 7.1, ENOUGH_S)), n_workers=8) == "threads"


def test_a_kernel_that_lets_go_half_of_the_time_is_found_out_by_all_threads():
    assert choice(seen((2, 1.7, ENOUGH_S), (8, 2.5, LONG_S * 0.9), late=0.5), n_workers=8) is None
    assert choice(seen((2, 1.7, ENOUGH_S), (8, 2.5, LONG_S), late=0.5), n_workers=8) == "processes"
    assert choice(seen((2, 1.7, ENOUGH_S), (8, 1.8, ENOUGH_S)), n_workers=8) == "processes"


def test_all_threads_begin_when_blocks_are_short_or_two_do_not_take_turns():
    assert not seen((2, 1.0, 1e-3)).wants_more(2)
    assert seen((2, 1.0, 0.02)).wants_more(2)
    for busy, wanted in ((1.0, False), (1.9, True), (0.1, True)):
        evidence = Evidence()
        evidence.of_threads(2).add(1.0, busy, n_blocks=0)
        assert evidence.wants_more(2) == wanted


def test_one_worker_computes_in_a_thread():
    assert choice(Evidence(), n_workers=1) == "threads"


def test_a_hand_over_that_takes_longer_than_it_saves_keeps_the_threads():
    evidence = seen((2, 1.0, 1.0))
    assert choice(evidence, n_left=100, hand_over_s=0.6) == "threads"
    assert choice(evidence, n_left=100, hand_over_s=0.4) == "processes"


def test_a_hand_over_is_worth_as_long_a_look():
    for wall_s, chosen in ((0.9, None), (1.1, "processes")):
        assert choice(seen((2, 1.0, wall_s), late=0.5), hand_over_s=1.0) == chosen


def test_threads_that_one_of_them_equals_are_busy_with_their_fight():
    evidence = seen((2, 1.9, ENOUGH_S))
    assert choice(evidence) == "threads"
    evidence.takes_turns = True
    assert choice(evidence, n_left=100, hand_over_s=0) == "processes"


def test_what_processes_have_done_counts_more_than_what_they_should():
    assert choice(seen((2, 1.4, 1.0), of_processes=160)) == "processes"
    assert choice(seen((2, 1.4, 1.0), of_processes=130)) == "threads"
    assert choice(seen((2, 1.4, 1.0), of_processes=160), n_left=100, hand_over_s=0.2) == "threads"


def test_threads_with_short_blocks_are_taken_to_be_as_fast_as_one():
    evidence = Evidence()
    evidence.of_threads(2).add(wall_s=1.0, cpu_s=1.9, n_blocks=100_000)
    assert choice(evidence, n_left=100_000, hand_over_s=0.4) == "processes"
    assert choice(evidence, n_left=100_000, hand_over_s=0.6) == "threads"


def test_processes_are_tried_twice_where_a_job_is_short_and_then_the_fastest_counts():
    evidence = seen((2, 1.4, 1.0))  # 140 blocks a second
    evidence.threads.add(wall_s=1.0, n_blocks=150)
    assert choice(evidence, n_left=10, hand_over_s=0.04) == "processes"
    assert choice(evidence, n_left=10, hand_over_s=0.09) == "threads"  # it would take more than is risked
    assert choice(evidence, n_left=100, hand_over_s=0.4) == "threads"  # it is not short
    evidence.processes.add(wall_s=1.0, n_blocks=120)
    assert choice(evidence, n_left=10) == "processes"
    evidence.processes.add(wall_s=1.0, n_blocks=140)
    assert choice(evidence, n_left=10) == "threads"
    evidence.processes.add(wall_s=1.0, n_blocks=160)
    assert choice(evidence, n_left=10) == "processes"
    evidence.processes.add(wall_s=1.0, n_blocks=100)
    assert choice(evidence, n_left=10) == "processes"


def test_only_the_last_few_jobs_are_remembered():
    jobs = probe.Jobs()
    for n_blocks in (9, 1, 2, 3):
        jobs.add(1.0, n_blocks)
    assert (len(jobs), jobs.per_s) == (3, 3.0)


@pytest.mark.parametrize(
    ("seen_s", "hand_over_s", "last_s", "next_s"),
    [(0.002, 0.0, 0.002, 0.003), (0.004, 0.0, 0.004, 0.002), (0.004, 0.012, 0.004, 0.008), (0.02, 0.0, 0.004, 0.008),
     (0.5, 0.0, 0.04, LONG_S)],
)  # fmt: skip
def test_the_next_look_is_as_soon_as_it_tells_something(seen_s, hand_over_s, last_s, next_s):
    assert seen((2, 1.0, seen_s)).next_look_s(2, last_s, hand_over_s) == pytest.approx(next_s)


def test_shared_arrays_are_handed_over_once_and_others_each_time(monkeypatch):
    found = []

    def verdict(self, n_workers, n_left, hand_over_s):
        found.append(hand_over_s)
        return Verdict("processes", "it was told so")

    monkeypatch.setattr(Evidence, "verdict", verdict)
    with pc.Executor(2, backend="auto") as executor:
        for array in (pc.share(X), X):
            for _ in range(2):
                executor.reduce_blocks(np.sum, array, block_items=30)
    assert [bool(hand_over_s) for hand_over_s in found] == [True, False, True, True]


def test_a_job_without_all_workers_says_nothing_about_processes(monkeypatch):
    monkeypatch.setattr(Evidence, "verdict", lambda self, *_: Verdict("processes", "it was told so"))
    with pc.Executor(2, backend="auto") as executor:
        run = executor._backend._processes.run

        def late(job, called_ns):
            found, troubles = run(job, called_ns)
            found.workers["ready_ns"][1] = found.submitted_ns + 1
            return found, troubles

        monkeypatch.setattr(executor._backend._processes, "run", late)
        executor.wait_until_ready()
        executor.reduce_blocks(np.sum, X, block_items=30)
        (evidence,) = executor._backend._known._known.values()
        assert not evidence.processes
        monkeypatch.undo()
        monkeypatch.setattr(Evidence, "verdict", lambda self, *_: Verdict("processes", "it was told so"))
        executor.reduce_blocks(np.sum, X, block_items=30)
        assert len(evidence.processes) == 1


def test_looks_come_in_time_while_a_thread_holds_the_lock():
    over, usual_s = threading.Event(), sys.getswitchinterval()
    threads = [threading.Thread(target=lambda: [None for _ in iter(over.is_set, True)]) for _ in range(3)]
    try:
        for thread in threads:
            thread.start()
        with probe.short_turns():
            with probe.short_turns():
                assert sys.getswitchinterval() < usual_s
            assert sys.getswitchinterval() < usual_s
    finally:
        over.set()
        for thread in threads:
            thread.join()
    assert sys.getswitchinterval() == usual_s


# --- what is seen ------------------------------------------------------------------------------------------


def test_the_clocks_show_the_cpu_time_of_a_thread_while_it_computes_and_of_no_other():
    over, begun = threading.Event(), threading.Event()

    def compute():
        begun.set()
        while not over.is_set():
            sum(range(1000))

    busy, idle = threading.Thread(target=compute), threading.Thread(target=over.wait)
    try:
        busy.start()
        idle.start()
        begun.wait()
        both, one = probe.Clocks([busy.ident, idle.ident]), probe.Clocks([idle.ident])
        before, before_one = both.read(), one.read()
        while both.read().cpu_s - before.cpu_s < 0.01:
            pass
        assert one.read().cpu_s - before_one.cpu_s < 0.01
    finally:
        over.set()
        busy.join()
        idle.join()


# --- kernels that are the same -----------------------------------------------------------------------------


def test_a_lambda_that_is_made_again_is_the_same_kernel_and_what_it_wraps_makes_another():
    def wrapped(function):
        return lambda x: function(x)

    def same():
        return lambda x: x + 1

    def recursive(x):
        return recursive(x)

    kind = kinds._code_of
    assert kind(same()) == kind(same())
    assert kind(functools.partial(same(), 1)) == kind(same())
    assert kind(wrapped(np.sqrt)) != kind(wrapped(np.exp))
    assert kind(wrapped(same())) == kind(wrapped(same()))
    assert kind(np.sqrt) != kind(np.exp)
    assert kind(len) != kind(abs)
    hash(kind(recursive))

    class Kernel:
        def method(self, x): ...

        def __call__(self, x): ...

    assert kind(Kernel().method) == kind(Kernel().method)
    assert kind(Kernel()) == kind(Kernel())


# --- a job changes hands -----------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def serial():
    with pc.Executor(backend="serial") as executor:
        yield executor


@pytest.fixture(scope="module")
def kept():
    with pc.Executor(2, backend="auto") as executor:
        executor.wait_until_ready()
        yield executor


@pytest.fixture
def changing(kept, monkeypatch):
    """An executor whose jobs go from threads to processes as soon as a block is done."""
    monkeypatch.setattr(probe, "STEP_S", 1e-4)

    def verdict(self, n_workers, n_left, hand_over_s):
        return Verdict("processes", "to be tested") if n_left < self.n_blocks else None

    monkeypatch.setattr(Evidence, "verdict", verdict)
    monkeypatch.setattr(Evidence, "n_blocks", 0, raising=False)

    def with_blocks(n_blocks):
        monkeypatch.setattr(Evidence, "n_blocks", n_blocks)
        return kept

    return with_blocks


def slow_root(x):
    time.sleep(0.001)  # so that no thread does all blocks before anybody looks
    return np.sqrt(np.abs(x))


def slow_partial(x, block):
    time.sleep(0.001)
    return {"sum": x.sum(), "n": block.size}


def slow_odd(x, block):
    time.sleep(0.001)
    return [str(block.index)] if block.index % 2 else {block.index}


def slow_random(block, rng):
    time.sleep(0.001)
    return rng.random(block.size)


def slow_fill(x, out):
    time.sleep(0.001)
    np.multiply(x, 3, out=out)


JOBS = {
    "rows": lambda ex: ex.map_blocks(slow_root, X, block_items=30),
    "filled": lambda ex: ex.map_blocks(slow_fill, X, block_items=30),
    "into": lambda ex: ex.map_blocks(slow_root, X, block_items=30, out=np.zeros(len(X), np.float32)),
    "tuples": lambda ex: ex.map_blocks(lambda x: (slow_root(x), np.ones((len(x), 2))), X, block_items=30),
    "partials": lambda ex: ex.reduce_blocks(slow_partial, X, block_items=30),
    "odd": lambda ex: ex.reduce_blocks(slow_odd, X, block_items=30, combine=lambda a, b: [*a, *b]),
    "random": lambda ex: ex.map_blocks(slow_random, n_items=3_000, block_items=30, seed=3),
}


@pytest.mark.parametrize("schedule", ["guided", "dynamic,7", "static"])
@pytest.mark.parametrize("job", JOBS)
def test_a_job_that_changes_hands_has_the_same_bits(job, schedule, changing, serial):
    executor = changing(100)
    executor.schedule = Schedule.parse(schedule)
    expected, found = JOBS[job](serial), JOBS[job](executor)
    if isinstance(expected, dict):
        assert found == expected
    else:
        for a, b in zip(*((r if isinstance(r, tuple) else (r,)) for r in (expected, found)), strict=True):
            assert np.array_equal(a, b)
    assert executor.plan.why.endswith("on processes: to be tested")
    assert pc.losses(executor.timeline).closes
    assert len(set(executor.timeline.chunks["attempt"])) == 2


def test_each_block_of_a_job_that_changes_hands_is_computed_once(changing, tmp_path):
    path = str(tmp_path / "calls")

    def kernel(block):
        time.sleep(0.001)
        with open(path, "ab", buffering=0) as file:
            file.write(b"%3d%9d" % (block.index, os.getpid()))
        return block.index

    executor = changing(100)
    assert executor.reduce_blocks(kernel, n_items=100, block_items=1) == sum(range(100))
    with open(path, "rb") as file:
        calls = [file.read(12) for _ in range(os.path.getsize(path) // 12)]
    assert sorted(int(call[:3]) for call in calls) == list(range(100))
    pids = {int(call[3:]) for call in calls}
    assert os.getpid() in pids
    assert pids & set(executor.worker_pids)


def test_failures_before_and_after_the_change_are_all_listed(changing):
    def kernel(block):
        time.sleep(0.001)
        if block.index in (0, 99):
            raise ArithmeticError(str(block.index))
        return np.full(block.size, block.index)

    rows = changing(100).map_blocks(kernel, n_items=100, block_items=1, on_error="keep", dtype=int, item_shape=())
    assert rows.tolist() == [0, *range(1, 99), 0]
    assert [failure.block.index for failure in changing(100).failures] == [0, 99]
    with pytest.raises(pc.KernelError, match="block 0"):
        changing(100).map_blocks(kernel, n_items=100, block_items=1)


@pytest.mark.parametrize("travels", [True, False])
@pytest.mark.parametrize("n_failed", [2, 5])
def test_when_all_blocks_before_the_change_fail_another_says_what_results_look_like(changing, n_failed, travels):
    lock = None if travels else threading.Lock()

    def kernel(block):
        assert lock is None or not lock.locked()
        time.sleep(0.002)
        if block.index < n_failed:
            raise ArithmeticError
        return np.ones(block.size)

    executor = changing(100)
    executor.schedule = Schedule.parse("dynamic")
    rows = executor.map_blocks(kernel, n_items=100, block_items=1, on_error="keep")
    assert rows.tolist() == [0] * n_failed + [1] * (100 - n_failed)
    assert [failure.block.index for failure in executor.failures] == list(range(n_failed))
    executor.reduce_blocks(len, X)  # lets go of the failures, and of what their tracebacks hold


def walks_of(n_blocks, submit):
    """Return walks of two threads, the first of which has the even blocks, and the job."""
    plan = pc.Plan.cut(n_blocks, 1, Schedule.parse("static,1"), 2)
    job = Job(lambda block: np.full(1, block.index), (), plan, Rows(plan), asks=frozenset(["block"]))
    return Walks(job, 2, submit, None, np.empty), job


def test_threads_leave_no_one_waiting_for_a_block_that_they_have_not_begun():
    first, calls = Future(), []

    def submit(function, worker):
        calls.append((function, worker))
        return pool.submit(function, worker) if worker == 1 else first

    with ThreadPoolExecutor(1) as pool:
        walks, job = walks_of(4, submit)
        walks.begin()
        walks.begin()
        while walks.board.current[1] != 1:
            assert not walks.over(0.001)
        walks.leave()
        function, worker = calls[0]
        function(worker)  # the thread that has block 0 begins only now
        first.set_result(None)
        while not walks.over(1):
            pass
    assert walks.board.unfinished().tolist() == [2, 3]
    assert job.outputs.arrays[0][:2].tolist() == [0, 1]


def test_a_thread_that_fails_outside_a_kernel_is_noticed_while_others_compute():
    calls = []
    walks, job = walks_of(4, lambda *call: calls.append(call))
    walks.begin()
    walks.begin()
    object.__setattr__(job, "outputs", None)
    calls[1][0](calls[1][1])
    with pytest.raises(AttributeError):
        assert walks.over(100)
    assert walks.board.stopped


def test_a_checkpoint_has_the_blocks_of_both(changing, tmp_path, serial):
    path = tmp_path / "kept.h5"
    found = changing(100).map_blocks(slow_root, X, block_items=30, checkpoint=path)
    with h5py.File(path) as file:
        assert file  # it can be read by anyone
    again = serial.map_blocks(slow_root, X, block_items=30, checkpoint=path)
    assert np.array_equal(found, again)
    assert len(serial.timeline.chunks) == 0


def test_what_is_known_of_a_kernel_is_used_at_once(monkeypatch):
    with pc.Executor(2, backend="auto") as executor:
        for backend in ("threads", "processes"):
            monkeypatch.setattr(Evidence, "verdict", lambda self, *_, to=backend: Verdict(to, "it was told so"))
            kernel = eval("lambda block: __import__('os').getpid()")  # a code of its own each time
            for _ in range(2):
                pids = executor.reduce_blocks(lambda block, own=kernel: {own(block)}, n_items=9, block_items=1,
                                              combine=lambda a, b: a | b)  # fmt: skip
                assert (pids <= {os.getpid()}) == (backend == "threads")
                assert executor.plan.why.endswith(f"on {backend}, as known: it was told so")
            executor._backend._known.clear()


def test_the_choices_of_many_kernels_are_remembered_up_to_a_bound(monkeypatch):
    monkeypatch.setattr(kinds, "_REMEMBERED", 3)
    with pc.Executor(2, backend="auto") as executor:
        for n in range(6):
            kernel = eval(f"lambda block: {n}")
            assert executor.reduce_blocks(kernel, n_items=2, block_items=1) == 2 * n
        assert len(executor._backend._known) == 3


def test_calls_run_on_the_processes():
    with pc.Executor(2, backend="auto") as executor:
        assert executor.submit(os.getpid).result() in executor.worker_pids
        assert set(executor.map(abs, range(-5, 0))) == {1, 2, 3, 4, 5}


def test_a_kernel_that_releases_the_lock_and_one_that_holds_it_give_the_serial_bits(kept, serial):
    def holds(x):
        return sum(v * v for v in x.tolist())

    big = np.random.default_rng(1).random(2**19)
    for kernel, block_items in ((holds, 2_000), (np.sum, 10_000)):
        for _ in range(3):
            assert kept.reduce_blocks(kernel, big, block_items=block_items) == serial.reduce_blocks(
                kernel, big, block_items=block_items
            )
            assert "; on " in kept.plan.why


def test_a_kernel_that_cannot_travel_stays_with_the_threads(changing):
    lock = threading.Lock()

    def kernel(block):
        time.sleep(0.001)
        with lock:
            return block.index

    executor = changing(100)
    for _ in range(2):
        assert executor.reduce_blocks(kernel, n_items=100, block_items=1) == sum(range(100))
        assert "on threads: kernel" in executor.plan.why
        assert "its variable 'lock'" in executor.plan.why
        assert pc.losses(executor.timeline).closes


def test_what_a_checkpoint_holds_comes_along_to_the_processes(kept, monkeypatch, tmp_path, serial):
    def root(x, block, folder):
        if block.index == 9 and not os.listdir(folder):
            raise ValueError
        return np.sqrt(np.abs(x))

    (folder := tmp_path / "folder").mkdir()
    options = {"block_items": 300, "args": (str(folder),), "checkpoint": tmp_path / "kept.h5"}
    with pytest.raises(pc.KernelError):
        serial.map_blocks(root, X, **options)
    (folder / "go").touch()
    monkeypatch.setattr(Evidence, "verdict", lambda self, *_: Verdict("processes", "it was told so"))
    assert np.array_equal(kept.map_blocks(root, X, **options), np.sqrt(np.abs(X)))
    assert len(kept.timeline.chunks) == 1
