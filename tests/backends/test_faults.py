"""What goes wrong, wherever: nothing hangs, nothing is lost, nothing is left (docs/explanation/engine.md)."""

import contextlib
import ctypes
import functools
import gc
import itertools
import multiprocessing
import os
import pickle
import pty
import random
import resource
import select
import shutil
import signal
import subprocess
import sys
import termios
import threading
import time
import weakref
from pathlib import Path

import cloudpickle
import numpy as np
import psutil
import pytest

import parcompute as pc
from parcompute.jobs import outputs, partials, schedule
from parcompute.machine import blas, cgroups, limits, topology
from parcompute.memory import leases
from parcompute.values import blocks
from parcompute.workers import desk, start, worker
from parcompute.workers.channel import Channel

# The workers of a test session can import the package, but not its tests.
cloudpickle.register_pickle_by_value(sys.modules[__name__])

# What a promise calls a second may take so long on a machine that is busy with other work.
A_SECOND = 4.0

# Nothing here takes so long unless it hangs.
HANGS_S = 60


@pytest.fixture(params=["fork", "forkserver"])
def start_method(request):
    """Start a worker as a child of this process, with its memory, or of the server, with nothing of it.

    A spawned worker is the child of the one that has loaded what the other has. It is tested, at a second each, where
    starting itself or the environment of a new interpreter matters.
    """
    return request.param


each_start_method = pytest.mark.parametrize("start_method", start.METHODS)


def opened(method="fork", workers=2, **options):
    """Return an executor of worker processes."""
    more_than_cpus = workers > limits.usable_cpus()
    with pytest.warns(UserWarning, match="take turns") if more_than_cpus else contextlib.nullcontext():
        return pc.Executor(workers, start_method=method, **options)


def first_time(path):
    """Tell whether nobody, in any process, has asked this of the path before."""
    try:
        os.close(os.open(path, os.O_CREAT | os.O_EXCL | os.O_WRONLY))
    except FileExistsError:
        return False
    return True


class CallLog:
    """Numbers, appended by whoever computes: with O_APPEND each write is one piece, from any process."""

    def __init__(self, path):
        self.path = str(path)

    def note(self, number):
        fd = os.open(self.path, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o600)
        os.write(fd, int(number).to_bytes(8, "little"))
        os.close(fd)

    def noted(self):
        return sorted(np.fromfile(self.path, "<i8").tolist())


@pytest.fixture
def calls(tmp_path):
    """Which blocks were computed, each as often as it was begun."""
    return CallLog(tmp_path / "calls")


class Fifo:
    """A pipe with a name: whoever waits goes on when someone has said go."""

    def __init__(self, path):
        self.path = str(path)
        os.mkfifo(path)

    def wait(self):
        with open(self.path, "rb") as pipe:
            pipe.read(1)

    def go(self):
        with open(self.path, "wb") as pipe:
            pipe.write(b"!")


def die(how):
    """End this process: by a signal, by its number, or with an exit status."""
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    if how == "segmentation fault":
        import faulthandler

        faulthandler.disable()
        ctypes.string_at(0)
    elif how == "abort":
        import faulthandler

        faulthandler.disable()
        os.abort()
    elif isinstance(how, signal.Signals):
        os.kill(os.getpid(), how)
    else:
        os._exit(how)


X = np.random.default_rng(1).standard_normal(118) * np.exp(np.arange(118) / 3)


def each(calls, x, block, also=()):
    """The kernel of most tests here."""
    calls.note(block.index)
    return np.sqrt(np.abs(x)) + x.sum()


def total(calls, x, block, also=()):
    calls.note(block.index)
    return {"sum": float(x.sum()), "squares": (x * x).sum()}


VERBS = {"map_blocks": each, "reduce_blocks": total}


def by_serial(verb, tmp_path):
    with pc.Executor(backend="serial") as serial:
        kernel = functools.partial(VERBS[verb], CallLog(tmp_path / "reference"))
        return pickle.dumps(getattr(serial, verb)(kernel, X, block_items=4))


# --- a worker dies, at any line ----------------------------------------------------------------------------


class Trap:
    """Part of a job: unpickled in a worker, it makes the first worker that gets into a state die there."""

    def __init__(self, state, folder, how=signal.SIGKILL):
        self.args = (state, str(folder / "sprung"), how)

    def __reduce__(self):
        return set_trap, self.args


def set_trap(state, path, how):
    def spring():
        if first_time(path):
            die(how)

    TRAPS[state](spring)


def before_stamp(spring):
    wrap_given(schedule.Board, "stamp", lambda original, *args: (spring(), original(*args))[1])


def after_claim(spring):
    """Spring as soon as a number has been taken from the counter."""
    wrap(schedule.FileClaims, "below", lambda original, *args: map(lambda chunk: (chunk, spring())[0], original(*args)))


def after(kind, name):
    return lambda spring: wrap(kind, name, lambda original, *args: (original(*args), spring())[0])


def wrap(kind, name, wrapper):
    original = getattr(kind, name)
    setattr(kind, name, lambda *args: wrapper(original, *args))


def wrap_given(kind, name, wrapper):
    """Wrap the function that a property gives."""
    original = getattr(kind, name).fget
    setattr(kind, name, property(lambda self: functools.partial(wrapper, original(self))))


def stores(trap):
    """Lay a trap for both kinds of outputs."""

    def lay(spring):
        trap(outputs.Rows, "store")(spring)
        trap(partials.Partials, "store")(spring)

    return lay


def half_stored(kind, name):
    def store(spring, original, self, result, block):
        if isinstance(self, outputs.Rows):
            self.arrays[0][block.start : block.start + block.size // 2] = -1
        else:
            self.arrays[0][block.index] = -1
        spring()
        return original(self, result, block)

    return lambda spring: wrap(kind, name, functools.partial(store, spring))


def within_a_chunk(spring):
    """Spring when a worker comes to another block of a chunk of which it has stored one."""
    stored = []
    for kind in (outputs.Rows, partials.Partials):
        wrap(kind, "store", lambda original, *args: (original(*args), stored.append(True))[0])
    wrap_given(schedule.Board, "stamp", lambda original, *args: (original(*args), stored.clear())[0])
    wrap_given(blocks.Plan, "block", lambda original, *args: (stored and spring(), original(*args))[1])


def around(kind, when):
    """Lay a trap before, in the middle of, or after sending a message."""

    def send(spring, original, desk, *message):
        if message[0] != kind:
            return original(desk, *message)
        if when == "before":
            spring()
        elif when == "middle":
            ours, theirs = Channel.pair()
            ours.send(message)
            packed = os.read(theirs.fileno(), 2**16)
            with contextlib.closing(ours), contextlib.closing(theirs):
                os.write(desk.channel.fileno(), packed[: len(packed) // 2])
                spring()
                os.write(desk.channel.fileno(), packed[len(packed) // 2 :])
            return None
        original(desk, *message)
        if when == "after":
            spring()
        return None

    return lambda spring: wrap(desk.Desk, "_send", functools.partial(send, spring))


TRAPS = {
    "while it takes on the job": lambda spring: spring(),
    "between a claim and the first line of the kernel": after_claim,
    "before it sends the shape": around("shape", "before"),
    "in the middle of the shape": around("shape", "middle"),
    "while it waits for the shape of the output": around("shape", "after"),
    "while it stores a result": stores(half_stored),
    "between the store and the mark": stores(after),
    "between the mark and the end of the chunk": within_a_chunk,
    "between the last mark and the row of the chunk": before_stamp,
    "before it says end": around("end", "before"),
    "while it says end": around("end", "middle"),
    "idle, after it has said end": around("end", "after"),
}
# In these it has begun a block, and not marked it: that block alone is computed twice.
COSTS_A_BLOCK = ("before it sends", "in the middle of the sh", "while it waits", "while it stores", "between the store")


@pytest.mark.parametrize("verb", VERBS)
@pytest.mark.parametrize("state", TRAPS)
def test_a_worker_that_dies_in_any_state_costs_at_most_its_block(start_method, state, verb, calls, tmp_path):
    with opened(start_method, schedule="dynamic,3") as executor:
        executor.wait_until_ready()
        pids = executor.worker_pids
        ends = [os.pidfd_open(pid) for pid in pids]
        kernel = functools.partial(VERBS[verb], calls, also=Trap(state, tmp_path))
        result = getattr(executor, verb)(kernel, X, block_items=4)
        assert select.select(ends, [], [], HANGS_S)[0]
        for fd in ends:
            os.close(fd)
        assert (tmp_path / "sprung").exists()
        assert pickle.dumps(result) == by_serial(verb, tmp_path)
        again = calls.noted()
        for block in range(30):
            again.remove(block)
        assert len(again) == state.startswith(COSTS_A_BLOCK), f"computed again: {again}"
        ledger = pc.losses(executor.timeline)
        assert sum(ledger.parts_ns.values()) == ledger.total_ns
        # A worker that had nothing left to do is missed by the next job only.
        assert executor.reduce_blocks(np.sum, np.ones(5), block_items=1) == 5.0
        assert len(set(executor.worker_pids) - set(pids)) == len(set(pids) - set(executor.worker_pids)) == 1


@pytest.mark.parametrize(
    ("kind", "how"),
    [
        *((kind, signal.SIGKILL) for kind in ("static", "dynamic,2", "guided")),
        *(("dynamic,2", how) for how in ("segmentation fault", "abort", signal.SIGTERM, 0, 3)),
    ],
)
def test_a_worker_that_dies_in_the_kernel_costs_that_block_alone(how, kind, calls, tmp_path):
    def kernel(x, block):
        result = each(calls, x, block)
        if block.index == 17 and first_time(tmp_path / "once"):
            die(how)
        return result

    with opened(schedule=kind) as executor:
        result = executor.map_blocks(kernel, X, block_items=4)
        assert pickle.dumps(result) == by_serial("map_blocks", tmp_path)
        assert calls.noted() == sorted([*range(30), 17])
        timeline = executor.timeline
        assert set(timeline.chunks["attempt"]) <= {0, 1}
        (death,) = timeline.deaths
        by_number = {"segmentation fault": -signal.SIGSEGV, "abort": -signal.SIGABRT}
        assert death["exitcode"] == by_number.get(how, -how if isinstance(how, signal.Signals) else how)
        assert timeline.submitted_ns < death["noticed_ns"] < timeline.completed_ns
        assert death["pid"] not in timeline.workers["pid"]


@each_start_method
@pytest.mark.parametrize("workers", [1, 2])
def test_a_worker_that_dies_idle_is_replaced(start_method, workers):
    with opened(start_method, workers) as executor:
        executor.wait_until_ready()
        pids = executor.worker_pids
        victim = psutil.Process(pids[0])
        os.kill(victim.pid, signal.SIGKILL)
        wait_for_the_end([victim])
        assert executor.reduce_blocks(np.sum, np.ones(5), block_items=1) == 5.0
        assert executor.submit(pow, 2, 3).result(HANGS_S) == 8
        executor.wait_until_ready()
        assert pids[0] not in executor.worker_pids
        assert executor.worker_pids[1:] == pids[1:]


def wait_for_the_end(processes):
    """Return when processes have ended, collected by their parents or not."""
    deadline = time.monotonic() + HANGS_S
    for process in processes:
        with contextlib.suppress(ProcessLookupError):
            pidfd = os.pidfd_open(process.pid)
            with contextlib.closing(os.fdopen(pidfd)):
                assert select.select([pidfd], [], [], deadline - time.monotonic())[0], f"{process} goes on"


@each_start_method
def test_a_worker_that_dies_before_it_is_ready_is_replaced(start_method):
    with opened(start_method) as executor:
        os.kill(executor.worker_pids[1], signal.SIGKILL)
        assert executor.reduce_blocks(np.sum, np.ones(5), block_items=1) == 5.0
        executor.wait_until_ready()


@each_start_method
def test_a_worker_that_dies_while_it_is_sent_a_job_is_replaced(start_method):
    def die_in_the_next_large_message():
        def read(self, size, original=Channel._read):
            if size > 2**20:
                os.read(self.fileno(), 1000)
                os.kill(os.getpid(), signal.SIGKILL)
            return original(self, size)

        Channel._read = read

    large = bytes(3_000_000)
    with opened(start_method) as executor:
        executor.wait_until_ready()
        pids = executor.worker_pids
        executor.submit(die_in_the_next_large_message).result(HANGS_S)
        assert executor.reduce_blocks(lambda block: len(large), n_items=9, block_items=1) == 27_000_000
        assert len(set(executor.worker_pids) - set(pids)) == 1


def test_block_0_that_dies_while_the_others_wait_for_its_shape_keeps_nobody_waiting(start_method, tmp_path):
    waits = Fifo(tmp_path / "waits")

    class TellWhoWaits:
        def __reduce__(self):
            return tell, ()

    def tell():
        def send(original, desk, *message):
            original(desk, *message)
            if message[0] == "shape" and message[2]:
                waits.go()

        wrap(desk.Desk, "_send", send)

    teller = TellWhoWaits()

    def kernel(x, block):
        assert teller is None
        if block.index == 0 and first_time(tmp_path / "once"):
            waits.wait()
            die(signal.SIGKILL)
        return x

    with opened(start_method, schedule="dynamic,1") as executor:
        executor.wait_until_ready()
        assert executor.map_blocks(kernel, np.arange(9.0), block_items=1).tolist() == list(range(9))


def test_many_deaths_in_one_job_change_nothing(start_method, tmp_path):
    def kernel(x, block):
        if block.index % 3 == 0 and first_time(tmp_path / f"once-{block.index}"):
            die(signal.SIGKILL)
        return each(CallLog(tmp_path / "calls"), x, block)

    with opened(start_method, schedule="guided") as executor:
        result = executor.map_blocks(kernel, X, block_items=12)
        with pc.Executor(backend="serial") as serial:
            assert result.tobytes() == serial.map_blocks(kernel, X, block_items=12).tobytes()


@each_start_method
def test_a_call_whose_worker_dies_is_called_again_and_the_others_are_not(start_method, calls, tmp_path):
    def call(number):
        calls.note(number)
        if number == 7 and first_time(tmp_path / "once"):
            die(signal.SIGKILL)
        return number

    with opened(start_method) as executor:
        futures = [executor.submit(call, number) for number in range(20)]
        assert [future.result(HANGS_S) for future in futures] == list(range(20))
    assert calls.noted() == sorted([*range(20), 7])


def test_the_end_of_the_forkserver_ends_nothing_else():
    with opened("forkserver") as executor:
        executor.wait_until_ready()
        server, pids = psutil.Process(start._server._pid), executor.worker_pids
        os.kill(server.pid, signal.SIGKILL)
        wait_for_the_end([server])
        assert executor.reduce_blocks(np.sum, np.ones(5), block_items=1) == 5.0
        assert executor.worker_pids == pids
        victims = [psutil.Process(pid) for pid in pids]
        for victim in victims:
            os.kill(victim.pid, signal.SIGKILL)
        wait_for_the_end(victims)
        assert executor.reduce_blocks(np.sum, np.ones(5), block_items=1) == 5.0


# --- a block, or a job, that no worker survives ------------------------------------------------------------

ENDINGS = {
    signal.SIGKILL: (-9, "signal 9 (SIGKILL)"),
    "segmentation fault": (-11, "signal 11 (SIGSEGV)"),
    "abort": (-6, "signal 6 (SIGABRT)"),
    0: (0, "exit status 0"),
    3: (3, "exit status 3"),
}


def deadly(number, how=signal.SIGKILL):
    def kernel(x, block):
        if block.index in np.atleast_1d(number):
            die(how)
        return x + 1.0

    return kernel


# How a child of the server has ended is told by the server.
@pytest.mark.parametrize(
    ("start_method", "how"), [*(("fork", how) for how in ENDINGS), ("forkserver", signal.SIGKILL), ("forkserver", 3)]
)
def test_a_block_that_kills_every_worker_is_given_up_and_the_message_says_all_about_it(start_method, how):
    code, ending = ENDINGS[how]
    with opened(start_method, retries=2) as executor:
        with pytest.raises(pc.WorkerLost) as caught:
            executor.map_blocks(deadly(4, how), np.arange(50.0), block_items=6)
        error = caught.value
        assert (error.block.index, error.block.start, error.block.stop) == (4, 24, 30)
        assert error.exitcodes == (code, code)
        assert f"block 4 (items 24 to 29) of kernel deadly.<locals>.kernel has cost 2 workers: {ending}, {ending};" in (
            str(error)
        )
        peak_mib = int(str(error).partition("peak memory of the last ")[2].partition(" MiB")[0])
        assert 10 < peak_mib < 10_000
        assert "no out-of-memory kill seen" in str(error)
        assert executor.map_blocks(deadly(99), np.arange(3.0)).tolist() == [1, 2, 3]


@pytest.mark.parametrize("number", [0, 4, [0, 1, 7], [8]])
def test_the_results_of_all_other_blocks_can_be_kept(start_method, number):
    with opened(start_method) as executor:
        rows = executor.map_blocks(deadly(number), np.arange(54.0), block_items=6, on_error="keep")
        expected = (np.arange(54.0) + 1).reshape(9, 6)
        expected[number] = 0
        assert rows.tolist() == expected.ravel().tolist()
        assert [failure.block.index for failure in executor.failures] == np.atleast_1d(number).tolist()
        assert {type(failure) for failure in executor.failures} == {pc.WorkerLost}
        total = executor.reduce_blocks(deadly(number), np.arange(54.0), block_items=6, on_error="keep")
        kept = np.delete(np.arange(54.0).reshape(9, 6), number, axis=0)
        assert total.tolist() == (kept + 1).sum(axis=0).tolist()


def test_block_0_decides_what_results_look_like_though_another_block_has_failed(start_method, tmp_path):
    begun = Fifo(tmp_path / "begun")

    def kernel(block):
        if block.index == 0:
            begun.wait()
            time.sleep(0.05)  # block 2 should ask before block 0 does; whether it has does not matter
        if block.index == 1:
            raise ArithmeticError
        if block.index == 2:
            begun.go()
        return np.ones(block.size, float if block.index == 0 else np.float32)

    with opened(start_method, schedule="dynamic,1") as executor:
        rows = executor.map_blocks(kernel, n_items=4, block_items=1, on_error="keep")
        assert (rows.dtype, rows.tolist()) == (float, [1, 0, 0, 0])
        causes = [type(failure.__cause__).__name__ for failure in executor.failures]
        assert causes == ["ArithmeticError", "ResultError", "ResultError"]


class Unbuilt:
    """Can be pickled, and not be rebuilt."""

    def __reduce__(self):
        return pickle.loads, (b"",)


@pytest.mark.parametrize("threads", [1, 2])
@pytest.mark.parametrize("bad", [[0], [0, 3], [8, 1], [*range(8)], [*range(9)]])
def test_a_block_fails_whose_result_cannot_be_rebuilt_and_nobody_waits_for_it(bad, threads):
    def kernel(block):
        return {Unbuilt(): 1.0} if block.index in bad else float(block.index)

    with opened("fork", 2, threads_per_worker=threads, schedule="dynamic") as executor:
        if len(bad) == 9:
            with pytest.raises(pc.KernelError, match=r"block 0 .* EOFError"):
                executor.reduce_blocks(kernel, n_items=9, block_items=1, on_error="keep")
        else:
            total = executor.reduce_blocks(kernel, n_items=9, block_items=1, on_error="keep")
            assert total == 36 - sum(bad)
            assert [failure.block.index for failure in executor.failures] == sorted(bad)


def test_of_the_threads_of_a_worker_only_the_one_that_kills_it_is_blamed(start_method, tmp_path):
    begun = Fifo(tmp_path / "begun")

    def kernel(block):
        if block.index == 0 and first_time(tmp_path / "once"):
            begun.go()
            threading.Event().wait()  # in the middle of a block, until the other thread kills both
        if block.index == 1:
            if first_time(tmp_path / "twice"):
                begun.wait()
            die(signal.SIGKILL)
        return np.full(block.size, block.index)

    for retries in (1, 2):
        (tmp_path / "once").unlink(missing_ok=True)
        (tmp_path / "twice").unlink(missing_ok=True)
        with opened(start_method, 1, threads_per_worker=2, schedule="dynamic,1", retries=retries) as executor:
            rows = executor.map_blocks(kernel, n_items=6, block_items=1, dtype=int, item_shape=(), on_error="keep")
            assert rows.tolist() == [0, 0, 2, 3, 4, 5]
            assert [failure.block.index for failure in executor.failures] == [1]


class CannotArrive:
    def __reduce__(self):
        return os._exit, (5,)


def test_a_job_that_no_worker_can_take_on_ends_and_does_not_try_for_ever(start_method):
    unpickled = CannotArrive()

    def kernel(block):
        return unpickled

    with opened(start_method) as executor:
        for on_error in ("raise", "keep"):
            with pytest.raises(pc.WorkerLost, match=r"3 workers in a row .* took on kernel .*exit status 5") as caught:
                executor.reduce_blocks(kernel, n_items=9, block_items=1, on_error=on_error)
            assert caught.value.block is None
        with pytest.raises(pc.WorkerLost, match="the call has cost 2 workers"):
            executor.submit(lambda: unpickled).result(HANGS_S)
        assert executor.reduce_blocks(np.sum, np.ones(5), block_items=1) == 5.0


def test_a_file_that_is_gone_when_the_workers_open_it_is_an_error_of_the_job(start_method, tmp_path, capfd):
    import h5py

    with h5py.File(tmp_path / "data.h5", "w") as file:
        file["x"] = np.arange(10.0)
    with h5py.File(tmp_path / "data.h5") as file, opened(start_method) as executor:
        executor.wait_until_ready()
        (tmp_path / "data.h5").rename(tmp_path / "elsewhere.h5")
        with pytest.raises(pc.KernelError, match=r"data\.h5"):
            executor.reduce_blocks(np.sum, file["x"], block_items=2)
        assert executor.reduce_blocks(np.sum, np.ones(5), block_items=1) == 5.0
    assert capfd.readouterr().err == ""


def test_workers_that_cannot_start_are_an_error(monkeypatch, capfd):
    monkeypatch.setattr(worker, "_settle", lambda settings: sys.exit("no room"))
    with opened("fork") as executor:
        with pytest.raises(pc.WorkerLost, match="3 workers in a row ended before they were ready"):
            executor.reduce_blocks(np.sum, np.ones(5), block_items=1)
        monkeypatch.undo()
        assert executor.reduce_blocks(np.sum, np.ones(5), block_items=1) == 5.0


# --- a kernel raises ---------------------------------------------------------------------------------------


def test_a_kernel_that_raises_stops_the_run_within_one_block_per_worker(start_method, calls, tmp_path):
    begun = Fifo(tmp_path / "begun")

    class SeeTheBoard:
        def __reduce__(self):
            return see, ()

    def see():
        wrap(schedule.Board, "__init__", lambda original, self, *args: (original(self, *args), BOARDS.append(self))[0])

    class Boards(list):
        def __reduce__(self):
            return list, ()

    BOARDS = Boards()  # of a worker: filled there

    def kernel(block, also=SeeTheBoard()):  # noqa: B008
        calls.note(block.index)
        if block.index == 0:
            begun.wait()
            raise ValueError("enough")
        begun.go()
        while not BOARDS[-1].stopped:  # as long as the other worker's failure takes to be known
            threading.Event().wait(0.001)
        return 0.0

    with opened(start_method, schedule="dynamic,1") as executor:
        executor.wait_until_ready()
        pids = executor.worker_pids
        with pytest.raises(pc.KernelError, match=r"block 0 \(items 0 to 2\).*ValueError: enough"):
            executor.reduce_blocks(kernel, n_items=3_000, block_items=3)
        assert calls.noted() == [0, 1]
        assert executor.reduce_blocks(np.sum, np.ones(5), block_items=1) == 5.0
        assert executor.worker_pids == pids


@pytest.mark.parametrize("threads", [1, 2])
def test_a_worker_out_of_memory_fails_with_the_block_that_wanted_it(start_method, threads):
    def kernel(block):
        if block.index != 3:
            return 1.0
        before = resource.getrlimit(resource.RLIMIT_AS)
        in_use = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
        resource.setrlimit(resource.RLIMIT_AS, (in_use + 2**26, before[1]))
        try:
            return float(np.ones(2**28).sum())
        finally:
            resource.setrlimit(resource.RLIMIT_AS, before)

    with opened(start_method, threads_per_worker=threads) as executor:
        with pytest.raises(pc.KernelError, match=r"block 3 \(items 3 to 3\).*MemoryError") as caught:
            executor.reduce_blocks(kernel, n_items=9, block_items=1)
        assert isinstance(caught.value.__cause__, MemoryError)
        assert executor.reduce_blocks(kernel, n_items=3, block_items=1) == 3.0


# --- a block takes too long --------------------------------------------------------------------------------


@pytest.mark.parametrize(("workers", "threads"), [(2, 1), (1, 2), (2, 2)])
def test_a_block_that_takes_too_long_is_stopped_and_no_other_suffers(start_method, workers, threads, calls):
    def kernel(block):
        calls.note(block.index)
        if block.index in (0, 5):
            threading.Event().wait()
        return np.full(block.size, float(block.index))

    with opened(start_method, workers, threads_per_worker=threads, schedule="dynamic,1", retries=1) as executor:
        executor.wait_until_ready()
        pids = executor.worker_pids
        rows = executor.map_blocks(kernel, n_items=20, block_items=2, block_timeout=0.3, on_error="keep")
        expected = np.repeat(np.arange(10.0), 2)
        expected[[10, 11]] = 0
        assert rows.tolist() == expected.tolist()
        assert [failure.block.index for failure in executor.failures] == [0, 5]
        for failure in executor.failures:
            assert isinstance(failure.__cause__, TimeoutError)
            assert "longer than block_timeout=0.3 s" in str(failure)
        assert set(calls.noted()) == set(range(10))
        executor.wait_until_ready()
        assert set(executor.worker_pids) != set(pids)
        with pytest.raises(pc.KernelError, match=r"block 0 \(items 0 to 1\).*TimeoutError"):
            executor.map_blocks(kernel, n_items=20, block_items=2, block_timeout=0.3)
        assert executor.reduce_blocks(np.sum, np.ones(5), block_items=1) == 5.0


def test_waiting_for_the_shape_of_the_output_is_no_part_of_a_block(start_method):
    """Also where the parent takes its time about the worker that was stopped."""

    def kernel(block):
        if block.index == 0:
            threading.Event().wait()
        return np.full(block.size, float(block.index))

    with opened(start_method, schedule="dynamic,1", retries=1) as executor:
        executor.wait_until_ready()
        exitcode = start.Child.exitcode

        def slowly(child):
            threading.Event().wait(0.4)
            return exitcode(child)

        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(start.Child, "exitcode", slowly)
            rows = executor.map_blocks(kernel, n_items=8, block_items=1, block_timeout=0.3, on_error="keep")
        assert rows.tolist() == list(range(8))
        assert [failure.block.index for failure in executor.failures] == [0]


# --- Ctrl-C ------------------------------------------------------------------------------------------------


class Program:
    """A program of its own, in a session of its own, that gets a signal when it has said where it is."""

    def __init__(self, source, folder, *, ignores=(), terminal=False):
        self.folder = folder
        (folder / "program.py").write_text(source)
        (folder / "temporary").mkdir(exist_ok=True)
        self.segments = set(os.listdir("/dev/shm"))
        environ = {**os.environ, "TMPDIR": str(folder / "temporary")}
        self.terminal, theirs = pty.openpty() if terminal else (None, subprocess.DEVNULL)

        def begin():
            for number in (signal.SIGINT, signal.SIGTERM):
                signal.signal(number, signal.SIG_IGN if number in ignores else signal.SIG_DFL)
            if terminal:
                import fcntl

                fcntl.ioctl(0, termios.TIOCSCTTY, 0)

        self.process = subprocess.Popen(
            [sys.executable, "-W", "error", "program.py"],
            cwd=folder,
            env=environ,
            stdin=theirs,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            start_new_session=True,
            preexec_fn=begin,
        )
        if terminal:
            os.close(theirs)

    def __enter__(self):
        return self

    def __exit__(self, *exception):
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self.process.pid, signal.SIGKILL)
        self.process.wait()
        self.process.stdout.close()
        self.process.stderr.close()
        if self.terminal is not None:
            os.close(self.terminal)

    def line(self):
        """Return the next line that it prints."""
        printed = b""
        while not printed.endswith(b"\n"):
            assert select.select([self.process.stdout], [], [], HANGS_S)[0], f"hangs after {printed!r}"
            letter = os.read(self.process.stdout.fileno(), 1)
            if not letter:
                pytest.fail(f"ended: {self.process.stderr.read().decode()}")
            printed += letter
        return printed.decode().strip()

    def family(self):
        own = psutil.Process(self.process.pid)
        return [own, *own.children(recursive=True)]

    def ended(self):
        """Return exit status and what it and its workers have printed, once none of them can print any more."""
        out, err = self.process.communicate(timeout=HANGS_S)
        return self.process.returncode, out.decode(), err.decode()

    def assert_nothing_is_left(self, family):
        wait_for_the_end([process for process in family if process.is_running()])
        assert os.listdir(self.folder / "temporary") == []
        assert {name for name in os.listdir("/dev/shm") if name.startswith("p")} <= self.segments


INTERRUPTED = """
import os, sys, threading, time
import numpy as np, psutil, parcompute as pc

def kernel(block):
    os.write(1, b"computing\\n")
    time.sleep(600)

def usual(ex):
    assert ex.reduce_blocks(np.sum, np.ones(6), block_items=1) == 6.0
    assert ex.map_blocks(np.sqrt, np.arange(4.0), block_items=1).tolist() == np.sqrt(np.arange(4.0)).tolist()
    assert ex.submit(pow, 2, 5).result() == 32

with pc.Executor(2, start_method={method!r}) as ex:
    usual(ex)
    for verb in (ex.map_blocks, ex.reduce_blocks):
        try:
            verb(kernel, n_items=2, block_items=1)
        except KeyboardInterrupt:
            print("interrupted", flush=True)
        usual(ex)
alive = [p for p in psutil.Process().children(recursive=True) if "_serve" not in " ".join(p.cmdline())]
print("left:", alive)
"""


@each_start_method
@pytest.mark.parametrize("by", ["terminal", "signal"])
def test_ctrl_c_is_answered_within_a_second_and_the_executor_lives_on(start_method, by, tmp_path):
    with Program(INTERRUPTED.format(method=start_method), tmp_path, terminal=by == "terminal") as program:
        for _ in range(2):
            assert [program.line(), program.line()] == ["computing", "computing"]
            sent_s = time.monotonic()
            if by == "terminal":
                os.write(program.terminal, b"\x03")
            else:
                os.kill(program.process.pid, signal.SIGINT)
            assert program.line() == "interrupted"
            assert time.monotonic() - sent_s < A_SECOND
        assert program.ended() == (0, "left: []\n", "")


TWICE = """
import os, signal, sys, time
import numpy as np, psutil, parcompute as pc

def kernel(block):
    os.write(1, b"computing\\n")
    time.sleep(600)

interrupted = False
try:
    try:
        try:
            with pc.Executor(2, start_method={method!r}) as ex:
                ex.map_blocks(kernel, n_items=2, block_items=1)
        finally:
            print("over", flush=True)
    except KeyboardInterrupt:
        signal.signal(signal.SIGINT, signal.SIG_IGN)
        interrupted = True
except KeyboardInterrupt:  # the second one, while the first was being answered
    interrupted = True
if interrupted:
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    del ex
    workers = [p for p in psutil.Process().children(recursive=True) if "_serve" not in " ".join(p.cmdline())]
    psutil.wait_procs(workers, timeout=30)
    alive = [p for p in psutil.Process().children(recursive=True) if "_serve" not in " ".join(p.cmdline())]
    print("left:", alive)
"""


@pytest.mark.parametrize(
    "pause_s", [0.001, *(pytest.param(pause_s, marks=pytest.mark.stress) for pause_s in (0.0, 0.01))]
)
def test_ctrl_c_twice_in_quick_succession_leaves_nothing_either(start_method, pause_s, tmp_path):
    with Program(TWICE.format(method=start_method), tmp_path) as program:
        assert [program.line(), program.line()] == ["computing", "computing"]
        os.kill(program.process.pid, signal.SIGINT)
        threading.Event().wait(pause_s)  # not to be in time for anything: to be at another line each time
        os.kill(program.process.pid, signal.SIGINT)
        status, out, err = program.ended()
    assert (status, out.splitlines()[-1:], "Error" in err) == (0, ["left: []"], False)


@each_start_method
def test_a_program_that_ignores_ctrl_c_goes_on_ignoring_it(start_method, tmp_path):
    source = f"""
import os, numpy as np, parcompute as pc

def kernel(block):
    if block.index == 0:
        os.write(1, b"computing\\n")
        with open({str(tmp_path / "go")!r}) as go:
            go.read()
    return block.size

with pc.Executor(2, start_method={start_method!r}) as ex:
    print(ex.reduce_blocks(kernel, n_items=100, block_items=7), flush=True)
    print(ex.reduce_blocks(np.sum, np.ones(3)))
"""
    go = Fifo(tmp_path / "go")
    with Program(source, tmp_path, ignores=(signal.SIGINT,)) as program:
        assert program.line() == "computing"
        os.killpg(program.process.pid, signal.SIGINT)
        go.go()
        assert program.ended() == (0, "100\n3.0\n", "")


def after_event(number, function):
    """Call a function, and press Ctrl-C at such an event in it; return whether there were so many.

    At the beginning of a function and at the return of a built-in one the interpreter looks for signals. Just before a
    built-in one is called it does not: a lock's exit lets go, whatever comes.
    """
    left, pid = number, os.getpid()

    def in_finalizer(frame):  # Python swallows what is raised there, and what it had to close stays open
        while frame is not None and (frame.f_code is not weakref.finalize.__call__.__code__):
            frame = frame.f_back
        return frame is not None

    def count(frame, event, argument):
        nonlocal left
        if event not in ("call", "c_return") or os.getpid() != pid or in_finalizer(frame):
            return
        if (left := left - 1) == 0:
            sys.setprofile(None)
            signal.getsignal(signal.SIGINT)(signal.SIGINT, frame)

    sys.setprofile(count)
    try:
        function()
    finally:
        sys.setprofile(None)
    return left <= 0


@pytest.mark.skipif(signal.getsignal(signal.SIGINT) is signal.SIG_IGN, reason="this session ignores SIGINT")
@pytest.mark.parametrize(
    ("first", "deed"),
    [
        pytest.param(first, deed, marks=() if n == first else pytest.mark.stress)
        for n, deed in enumerate(["job", "replacement", "call", "map"])
        for first in range(4)
    ],
)
def test_ctrl_c_may_come_at_any_line(deed, first, monkeypatch):
    """After it the executor does what it always did, and at the end nothing is left: the fixture looks.

    At every 44th event here, and at every 11th under stress.
    """
    monkeypatch.setattr(sys, "unraisablehook", lambda unraisable: None)  # any() has closed a generator
    with opened("fork") as executor:

        def job():
            executor.map_blocks(np.sqrt, np.arange(9.0), block_items=2)

        def call():
            executor.submit(pow, 2, 3)

        def calls():
            list(executor.map(abs, range(20), chunksize=4))

        deeds = {"call": call, "map": calls}
        for number in itertools.count(1 + 11 * first, 44):
            if deed == "replacement":
                executor.wait_until_ready()
                victim = psutil.Process(executor.worker_pids[0])
                os.kill(victim.pid, signal.SIGKILL)
                wait_for_the_end([victim])
            try:
                if not after_event(number, deeds.get(deed, job)):
                    break
            except KeyboardInterrupt:
                pass
            assert executor.map_blocks(np.sqrt, np.arange(3.0), block_items=1).tolist() == [0.0, 1.0, 2**0.5]
            assert executor.submit(pow, 2, 4).result(HANGS_S) == 16
        executor.wait_until_ready()
        assert len(psutil.Process().children()) >= 2


# --- the parent dies ---------------------------------------------------------------------------------------

BUSY = """
import numpy as np, parcompute as pc

def kernel(x):
    return np.sort(x) + x.sum()

with pc.Executor(2, start_method={method!r}) as ex:
    while True:
        x = pc.share(np.arange(30_000.0)[::-1])
        print("round", flush=True)
        ex.map_blocks(kernel, x, block_items=1_000)
        ex.reduce_blocks(np.sum, np.arange(200_000.0), block_items=10_000)
        list(ex.map(abs, range(10)))
"""


@pytest.mark.parametrize("to", ["parent", "group", "parent, kindly"])
def test_a_parent_that_is_killed_leaves_nothing(start_method, to, tmp_path):
    """As at any other moment (test_stress.py)."""
    number = signal.SIGTERM if to == "parent, kindly" else signal.SIGKILL
    with Program(BUSY.format(method=start_method), tmp_path) as program:
        for _ in range(random.randrange(1, 9)):
            assert program.line() == "round"
        threading.Event().wait(random.random() * 0.01)
        family = program.family()
        assert len(family) >= 3
        (os.killpg if to == "group" else os.kill)(program.process.pid, number)
        killed_s = time.monotonic()
        status, _, err = program.ended()  # once no worker has the pipe any more
        assert time.monotonic() - killed_s < A_SECOND
        assert (status, err) == (-number, "")
        program.assert_nothing_is_left(family)


@each_start_method
def test_a_parent_that_is_killed_while_its_workers_start_leaves_nothing(start_method, tmp_path):
    source = f"""
import parcompute as pc
print("begins", flush=True)
ex = pc.Executor(2, start_method={start_method!r})
print("begun", flush=True)
ex.wait_until_ready()
print("ready", flush=True)
ex.submit(print).result()
"""
    for line in ("begins", "begun"):
        with Program(source, tmp_path) as program:
            while program.line() != line:
                pass
            threading.Event().wait(random.random() * 0.02)
            family = program.family()
            os.kill(program.process.pid, signal.SIGKILL)
            status, _, err = program.ended()
            assert (status, err) == (-signal.SIGKILL, "")
            program.assert_nothing_is_left(family)


def test_a_child_that_the_user_has_forked_does_not_keep_the_workers_of_a_killed_parent(start_method, tmp_path):
    source = f"""
import os, sys, signal, numpy as np, parcompute as pc
ex = pc.Executor(2, start_method={start_method!r})
ex.reduce_blocks(np.sum, np.ones(9), block_items=1)
if os.fork() == 0:
    os.close(1), os.close(2)
    signal.pause()
print("ready", *ex.worker_pids, flush=True)
signal.pause()
"""
    with Program(source, tmp_path) as program:
        pids = [int(word) for word in program.line().split()[1:]]
        workers = [psutil.Process(pid) for pid in pids]
        os.kill(program.process.pid, signal.SIGKILL)
        status, _, err = program.ended()
        wait_for_the_end(workers)
        assert (status, err) == (-signal.SIGKILL, "")


# --- too little memory -------------------------------------------------------------------------------------


def in_small_shared_memory(source, tmp_path, mib=64):
    """Run a program whose /dev/shm is small; skip where that is not permitted."""
    if shutil.which("unshare") is None:
        pytest.skip("unshare is not installed")
    mount = f"mount -t tmpfs -o size={mib}m tmpfs /dev/shm"
    if subprocess.run(["unshare", "-m", "sh", "-c", mount], capture_output=True).returncode:
        pytest.skip("this user may not mount a tmpfs in a namespace of its own")
    (tmp_path / "program.py").write_text(source)
    command = ["unshare", "-m", "sh", "-c", f'{mount} && exec "$0" -W error program.py', sys.executable]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=HANGS_S)
    return done.returncode, done.stdout, done.stderr


def test_a_full_shared_memory_is_an_error_before_anything_starts_and_never_a_bus_error(start_method, tmp_path):
    source = f"""
import numpy as np, parcompute as pc

def refused(function, *args, **kwargs):
    try:
        function(*args, **kwargs)
    except pc.SharedMemoryFull as error:
        assert error.needed > error.available >= 0 and "/dev/shm" in str(error), error
        return True
    return False

def never(block):
    raise AssertionError

with pc.Executor(2, start_method={start_method!r}) as ex:
    assert refused(pc.share, np.zeros(2**24))
    assert refused(ex.map_blocks, never, n_items=2**24, dtype=float, item_shape=())
    assert refused(ex.map_blocks, lambda block: np.zeros((block.size, 2**10)), n_items=2**14)
    assert refused(ex.reduce_blocks, np.sum, np.zeros(2**24))
    held = []
    while not refused(lambda: held.append(pc.share(np.ones(2**18 + 2**14 * (len(held) % 5))))):
        assert ex.reduce_blocks(np.sum, np.ones(9), block_items=1) == 9.0
    while not refused(lambda: held.append(pc.share(np.ones(2**9)))):  # to the last page
        pass
    assert refused(ex.reduce_blocks, np.sum, np.ones(9), block_items=1)
    assert all(x.sum() == len(x) for x in held)
    print(len(held) > 20)
    del held
    assert ex.map_blocks(np.sqrt, np.ones(2**21)).sum() == 2**21
"""
    assert in_small_shared_memory(source, tmp_path) == (0, "True\n", "")


@contextlib.contextmanager
def memory_group(limit_mib):
    """Make a memory group below the own one; skip where that is not permitted."""
    own = cgroups.own_groups("memory")
    if not own or own[0].version != 1:
        pytest.skip("no memory group of version 1, in which a group can be made and entered")
    folder = own[0].folder / f"parcompute-test-{os.getpid()}"
    try:
        folder.mkdir()
    except OSError as error:
        pytest.skip(f"this user may not make a memory group: {error}")
    try:
        (folder / "memory.limit_in_bytes").write_text(f"{limit_mib}M")
        yield folder
    finally:
        deadline = time.monotonic() + HANGS_S
        while True:
            try:
                folder.rmdir()
                break
            except OSError:  # the last of its processes is not gone yet
                assert time.monotonic() < deadline
                threading.Event().wait(0.01)


def in_group(folder, source, tmp_path):
    (tmp_path / "program.py").write_text(source)
    command = ["sh", "-c", f'echo $$ > {folder}/cgroup.procs && exec "$0" -W error program.py', sys.executable]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=HANGS_S)
    return done.returncode, done.stdout, done.stderr


def test_a_block_that_needs_more_memory_than_its_group_has_is_given_up_with_the_evidence(start_method, tmp_path):
    source = f"""
import numpy as np, parcompute as pc

def kernel(block):
    if block.index == 3:
        return float(np.ones(2**26).sum())
    return 1.0

with pc.Executor(2, start_method={start_method!r}) as ex:
    print(ex.reduce_blocks(kernel, n_items=9, block_items=1, on_error="keep"))
    [lost] = ex.failures
    print(type(lost).__name__, lost.block.index, lost.exitcodes)
    print("out of memory: 2 processes killed (oom_kill in memory.oom_control of cgroup v1" in str(lost) or lost)
"""
    with memory_group(320) as folder:
        printed = in_group(folder, source, tmp_path)
    assert printed == (0, "8.0\nWorkerLost 3 (-9, -9)\nTrue\n", "")


def test_a_small_memory_group_is_an_error_before_it_kills(start_method, tmp_path):
    source = f"""
import numpy as np, parcompute as pc
with pc.Executor(1, start_method={start_method!r}) as ex:
    ex.reduce_blocks(np.sum, np.ones(9))
    try:
        pc.share(np.broadcast_to(np.ones(1), 2**26))
    except pc.SharedMemoryFull as error:
        print("memory" in str(error))
    try:
        ex.map_blocks(np.sqrt, n_items=2**26, dtype=float, item_shape=())
    except pc.SharedMemoryFull as error:
        print("memory" in str(error))
    held = []
    try:
        while True:
            held.append(pc.SharedArray.empty(5 * 2**20, "u1"))
    except pc.SharedMemoryFull as error:
        print(len(held) > 5)
    del held
    print(ex.map_blocks(np.sqrt, np.ones(2**17)).sum() == 2**17)
"""
    with memory_group(320) as folder:
        printed = in_group(folder, source, tmp_path)
    assert printed == (0, "True\n" * 4, "")


# --- executors in unusual places ---------------------------------------------------------------------------


def test_an_executor_inside_a_worker_is_serial_and_says_so(start_method):
    def kernel(block):
        with pytest.warns(UserWarning, match="an executor inside a worker is serial"):
            inner = pc.Executor()
        with inner:
            assert inner.backend == "serial"
            return inner.reduce_blocks(np.sum, np.arange(block.index + 1.0), block_items=2)

    with opened(start_method) as executor:
        assert executor.reduce_blocks(kernel, n_items=4, block_items=1) == 0 + 1 + 3 + 6


def test_workers_of_a_worker_die_with_it(start_method):
    def nested():
        inner = pc.Executor(1, start_method="fork")
        assert inner.submit(pow, 2, 3).result() == 8
        sys.modules["__main__"].nested = inner  # lives on; the globals of a function that travels go with the call
        return inner.worker_pids

    with opened(start_method, 1) as executor:
        inner = [psutil.Process(pid) for pid in executor.submit(nested).result(HANGS_S)]
        os.kill(executor.worker_pids[0], signal.SIGKILL)
        wait_for_the_end(inner)
        assert executor.submit(pow, 2, 3).result(HANGS_S) == 8


@each_start_method
def test_in_a_child_that_the_user_has_forked_the_executor_says_whose_it_is(start_method):
    with opened(start_method) as executor:
        x = pc.share(np.ones(9))
        executor.submit(pow, 2, 3).result(HANGS_S)
        ours, theirs = os.pipe()
        pid = os.fork()
        if pid == 0:
            said = b"nothing"
            try:
                uses = (
                    lambda: executor.reduce_blocks(np.sum, x),
                    lambda: executor.submit(pow, 2, 3),
                    lambda: executor.map(abs, [1]),
                    lambda: executor.worker_pids,
                )
                for use in uses:
                    with pytest.raises(RuntimeError, match=f"belongs to process {os.getppid()}.*make a new one here"):
                        use()
                executor.shutdown()
                del executor
                gc.collect()
                with pc.Executor(1, start_method="fork") as own:
                    said = str(own.reduce_blocks(np.sum, x)).encode()
            finally:
                os.write(theirs, said)
                os._exit(0)
        os.close(theirs)
        with open(ours, "rb") as pipe:
            assert pipe.read() == b"9.0"
        assert os.waitpid(pid, 0)[1] == 0
        assert executor.reduce_blocks(np.sum, x, block_items=1) == 9.0
        assert executor.submit(pow, 2, 3).result(HANGS_S) == 8


def test_an_executor_that_nobody_holds_any_more_is_closed(start_method):
    def forgotten(in_a_circle):
        executor = opened(start_method)
        executor.reduce_blocks(np.sum, np.ones(9), block_items=1)
        executor.submit(pow, 2, 3).result(HANGS_S)
        processes = [psutil.Process(pid) for pid in executor.worker_pids]
        if in_a_circle:
            executor.itself = executor
        return processes

    for in_a_circle in (False, True):
        processes = forgotten(in_a_circle)
        gc.collect()
        wait_for_the_end(processes)


def test_an_executor_outlives_the_thread_that_made_it(start_method):
    made = []
    thread = threading.Thread(target=lambda: made.append(opened(start_method)))
    thread.start()
    thread.join()
    with made.pop() as executor:
        assert executor.reduce_blocks(np.sum, np.ones(9), block_items=1) == 9.0
        os.kill(executor.worker_pids[0], signal.SIGKILL)
        assert executor.submit(pow, 2, 3).result(HANGS_S) == 8
        assert executor.reduce_blocks(np.sum, np.ones(9), block_items=1) == 9.0


def test_jobs_and_calls_of_several_threads_take_turns(start_method):
    errors = []

    def work(number, executor):
        try:
            rng = np.random.default_rng(number)
            for _ in range(8):
                x = rng.random(rng.integers(1, 60))
                assert executor.map_blocks(np.sqrt, x, block_items=7).tolist() == np.sqrt(x).tolist()
                futures = [executor.submit(pow, number, n) for n in range(5)]
                assert executor.reduce_blocks(len, x, block_items=3) == len(x)
                assert [future.result(HANGS_S) for future in futures] == [number**n for n in range(5)]
                assert list(executor.map(abs, range(-5, 0))) == [5, 4, 3, 2, 1]
        except BaseException as error:
            errors.append(error)

    with opened(start_method) as executor:
        threads = [threading.Thread(target=work, args=(number, executor)) for number in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(HANGS_S)
    assert errors == []


def test_a_job_that_waits_for_its_turn_while_the_executor_closes_says_so(tmp_path):
    begun, go = Fifo(tmp_path / "begun"), Fifo(tmp_path / "go")

    def kernel(block):
        begun.go()
        go.wait()
        return 1

    executor, said = opened("fork", 1), {}

    def job(name, kernel):
        try:
            said[name] = executor.reduce_blocks(kernel, n_items=1)
        except RuntimeError as error:
            said[name] = str(error)

    first = threading.Thread(target=job, args=("first", kernel))
    first.start()
    begun.wait()
    others = [threading.Thread(target=job, args=(i, lambda block: 2)) for i in range(3)]
    others.append(threading.Thread(target=executor.shutdown))
    for thread in others:
        thread.start()
    go.go()
    for thread in [first, *others]:
        thread.join(HANGS_S)
    # Who asks after the executor has closed may hear it before the first job ends.
    assert said.pop("first") == 1
    assert set(said) == {0, 1, 2}
    assert set(said.values()) <= {2, "this executor is closed; make a new one"}


# --- cores and threads -------------------------------------------------------------------------------------


def test_pinned_workers_have_cores_of_their_own_inside_the_allowed_ones(start_method, tmp_path):
    def mask(block):
        if first_time(tmp_path / f"worker-{os.getpid()}"):  # until both have come
            while len(list(tmp_path.glob("worker-*"))) < n:
                threading.Event().wait(0.001)
        return {os.getpid(): os.sched_getaffinity(0)}

    allowed = os.sched_getaffinity(0)
    cores = {frozenset(core) for core in topology.Topology.read(sorted(allowed)).cores}
    n = min(2, len(cores))
    with opened(start_method, n, pin="cores", schedule="dynamic,1") as executor:
        masks = executor.reduce_blocks(mask, n_items=9, block_items=1, combine=lambda a, b: a | b)
        assert len(masks) == n
        assert len({frozenset(mask) for mask in masks.values()}) == n
        assert all(frozenset(mask) in cores for mask in masks.values())
    assert os.sched_getaffinity(0) == allowed


@pytest.mark.skipif(len(os.sched_getaffinity(0)) < 2, reason="a mask of one CPU cannot shrink")
@each_start_method
@pytest.mark.parametrize("pin", [False, "cores"])
def test_a_mask_that_a_kernel_has_shrunk_is_restored_for_the_next_job(start_method, pin):
    def shrink(block):
        os.sched_setaffinity(0, {min(os.sched_getaffinity(0))})
        return 0

    allowed = os.sched_getaffinity(0)
    with opened(start_method, 1, pin=pin) as executor:
        executor.reduce_blocks(shrink, n_items=1)
        mask = executor.reduce_blocks(lambda block: os.sched_getaffinity(0), n_items=1, combine=lambda a, b: a | b)
        expected = topology.Topology.read(sorted(allowed)).cores[0] if pin else allowed
        assert mask == set(expected)
    assert os.sched_getaffinity(0) == allowed


@each_start_method
@pytest.mark.parametrize("n", [1, 2])
def test_blas_threads_are_as_asked_in_the_workers_and_as_before_here(start_method, n, monkeypatch):
    import threadpoolctl

    for name in blas.VARIABLES:
        monkeypatch.delenv(name, raising=False)

    def threads(block=None):
        from threadpoolctl import threadpool_info

        np.ones((2, 2)) @ np.ones((2, 2))
        return [library["num_threads"] for library in threadpool_info() if library["user_api"] == "blas"]

    with threadpoolctl.threadpool_limits(2):
        before = threads()
        environ = dict(os.environ)
        with opened(start_method, blas_threads=n) as executor:
            found = executor.reduce_blocks(threads, n_items=4, block_items=1, combine=lambda a, b: a + b)
            assert set(found) == {n}
            assert set(executor.submit(threads).result(HANGS_S)) == {n}
        assert threads() == before
        assert dict(os.environ) == environ


# --- kept segments -----------------------------------------------------------------------------------------


def test_results_never_change_while_later_jobs_reuse_memory(start_method):
    rng = np.random.default_rng(3)
    held = []
    with opened(start_method) as executor:
        for number in range(60):
            x = np.full(int(rng.integers(1, 40_000)), float(number))
            results = executor.map_blocks(lambda x: (x + 1, np.stack([x, -x], 1)), x, block_items=5_000)
            held.append((results[0][3:], number + 1) if number % 3 else (results[1].T[1], -number))
            if rng.random() < 0.5:
                del held[rng.integers(len(held))]
            assert all((array == value).all() for array, value in held)
        pinned = leases.KEPT_BYTES
        assert sum(map(len, leases._kept)) <= pinned
        assert len(leases._kept) <= leases.KEPT_SEGMENTS


def test_results_in_a_forked_child_never_change_either(start_method):
    with opened(start_method) as executor:
        mine = executor.map_blocks(np.negative, np.full(50_000, 7.0))
        ours, theirs = os.pipe()
        pid = os.fork()
        if pid == 0:
            os.close(theirs)
            os.read(ours, 1)
            os._exit(0 if (mine == -7.0).all() else 1)
        os.close(ours)
        del mine
        for number in range(5):
            executor.map_blocks(np.negative, np.full(50_000, float(number)))
        os.close(theirs)
        assert os.waitpid(pid, 0)[1] == 0


def test_shared_arrays_that_were_pickled_for_another_process_never_change_either(start_method):
    with opened(start_method) as executor:
        x = pc.share(np.full(50_000, 7.0))
        ours, theirs = multiprocessing.get_context("spawn").Pipe()
        process = multiprocessing.get_context("spawn").Process(target=_says_what_it_sees, args=(theirs,))
        process.start()
        ours.send(x)
        assert ours.recv() == 7.0 * 50_000
        assert executor.reduce_blocks(np.sum, x) == 7.0 * 50_000
        del x
        for number in range(5):
            executor.map_blocks(np.negative, np.full(50_000, float(number)))
        ours.send("again")
        assert ours.recv() == 7.0 * 50_000
        process.join()
        process.close()
        ours.close()
        theirs.close()


def _says_what_it_sees(pipe):
    x = pipe.recv()
    pipe.send(float(x.sum()))
    pipe.recv()
    pipe.send(float(x.sum()))


def in_use(*workers):
    """Return the bytes of the shared memory that this process and these workers have open or mapped."""
    gc.collect()
    segments = {}
    for pid in (os.getpid(), *workers):
        for line in Path(f"/proc/{pid}/maps").read_text().splitlines():
            fields = line.split(maxsplit=5)
            if fields[5:] and fields[5].startswith("/dev/shm/"):
                first, behind = (int(edge, 16) for edge in fields[0].split("-"))
                segments[fields[4]] = max(segments.get(fields[4], 0), behind - first)
        for fd in Path(f"/proc/{pid}/fd").iterdir():
            with contextlib.suppress(OSError):  # it is closed by now
                if os.readlink(fd).startswith("/dev/shm/"):
                    segments[str(fd.stat().st_ino)] = fd.stat().st_size
    return sum(segments.values())


def test_workers_let_go_of_what_was_pickled_for_others(start_method):
    with opened(start_method, 1) as executor:
        most = 0
        for _ in range(8):
            before = in_use(*executor.worker_pids)
            x = pc.share(np.ones(2**21))
            pickle.dumps(x)
            assert executor.reduce_blocks(np.sum, x) == 2**21
            del x
            executor.reduce_blocks(np.sum, np.ones(3))
            most = max(most, in_use(*executor.worker_pids) - before)
        assert most < 2**23


def test_kept_memory_is_bounded_in_bytes_and_in_descriptors(monkeypatch):
    monkeypatch.setattr(leases, "KEPT_BYTES", 2**24)
    before = len(os.listdir("/proc/self/fd"))
    for size in (2**20, 100):
        many = [pc.share(np.ones(size + 4_096 * n, "u1")) for n in range(200)]
        del many
        assert sum(map(len, leases._kept)) <= 2**24
        assert len(os.listdir("/proc/self/fd")) - before <= 2 * leases.KEPT_SEGMENTS + 2
    assert in_use() < 2**26
