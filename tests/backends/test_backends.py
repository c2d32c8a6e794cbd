"""What all backends do alike when a worker dies, Ctrl-C comes, or several threads use them."""

import contextlib
import fcntl
import os
import pty
import select
import signal
import subprocess
import sys
import termios
import threading
import time

import cloudpickle
import numpy as np
import pytest

import parcompute as pc
from parcompute.backends.joblib import Joblib
from parcompute.backends.pool import Pool

# The workers of a test session can import the package, but not its tests.
cloudpickle.register_pickle_by_value(sys.modules[__name__])

METHODS = ("fork", "forkserver", "spawn")
MEDIA = {
    **{f"processes-{method}": {"backend": "processes", "start_method": method} for method in METHODS},
    **{f"pool-{method}": {"backend": "pool", "start_method": method} for method in METHODS},
    "joblib": {"backend": "joblib"},
}
# How a worker was started matters to Ctrl-C, which may come while it starts; else one method does for an engine of
# others, and two for ours.
ENGINES = {name: MEDIA[name] for name in ("processes-fork", "processes-forkserver", "pool-fork", "joblib")}
FOREIGN = ("pool-fork", "joblib")

# Generous, on a machine that is busy with other work; the promise is the number in the test's name.
BUSY = 4

# What hangs is told soon.
SAFE = pytest.mark.timeout(100)


class Gate:
    """A FIFO at which any process can wait until it is opened."""

    def __init__(self, path):
        self.path = path
        os.mkfifo(path)

    def wait(self):
        with open(self.path) as gate:
            return gate.read()


def ended(pids, within_s):
    """Tell whether processes end in time; what nobody has collected yet has ended all the same."""
    deadline = time.monotonic() + within_s
    for pid in pids:
        with contextlib.suppress(ProcessLookupError):
            fd = os.pidfd_open(pid)
            readable = select.select([fd], [], [], max(0, deadline - time.monotonic()))[0]
            os.close(fd)
            if not readable:
                return False
    return True


def kill(pid):
    os.kill(pid, signal.SIGKILL)
    assert ended([pid], within_s=10)


def die():
    os.kill(os.getpid(), signal.SIGKILL)


X = np.random.default_rng(3).standard_normal(500)


# --- a worker dies -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("medium", FOREIGN)
def test_the_engines_of_others_raise_within_two_seconds_of_a_busy_workers_death(medium, tmp_path):
    moment = tmp_path / "moment"

    def kernel(block):
        if block.index == 5:
            moment.write_text(str(time.monotonic()))
            die()
        return np.zeros(block.size)

    with pc.Executor(2, **MEDIA[medium]) as executor:
        with pytest.raises(pc.WorkerLost, match="worker"):
            executor.map_blocks(kernel, n_items=1_000, block_items=3)
        assert time.monotonic() - float(moment.read_text()) < 2 * BUSY
        assert executor.reduce_blocks(np.sum, np.ones(10), block_items=1) == 10


@SAFE
@pytest.mark.parametrize(("medium", "which"), [("pool-fork", 0), ("pool-fork", 1), ("joblib", 0)])
def test_the_engines_of_others_do_not_hang_when_an_idle_worker_was_killed(medium, which):
    with pc.Executor(2, **MEDIA[medium]) as executor:
        executor.wait_until_ready()
        kill(executor.worker_pids[which])
        began = time.monotonic()
        try:  # the standard library's pool replaces a worker, unless that one held the lock of its queue
            assert executor.reduce_blocks(np.sum, np.ones(10), block_items=1) == 10
        except pc.WorkerLost:
            assert time.monotonic() - began < 2 * BUSY
        assert executor.reduce_blocks(np.sum, np.ones(10), block_items=1) == 10
        if medium != "joblib":  # loky then keeps its broken executor, with two pipes
            with contextlib.suppress(ProcessLookupError):  # the other one did the jobs, and the pool has not looked yet
                kill(executor.worker_pids[which])


@SAFE
@pytest.mark.parametrize("medium", [*ENGINES, "pool-spawn"])
def test_a_call_that_kills_its_workers_is_given_up(medium):
    with pc.Executor(2, **MEDIA[medium]) as executor:
        executor.wait_until_ready()
        with pytest.raises(pc.WorkerLost, match=r"SIGKILL"):
            executor.submit(die).result(timeout=60)
        assert executor.submit(pow, 2, 5).result(timeout=30) == 32
        assert executor.reduce_blocks(np.sum, np.ones(10), block_items=1) == 10


def test_a_call_that_comes_while_a_pool_without_a_worker_is_ended_is_given_up_like_those_before(monkeypatch):
    late, end = [], Pool._end

    def ended(pool):
        end(pool)
        late.append(executor.submit(pow, 2, 5))

    with pc.Executor(2, backend="pool") as executor:
        executor.wait_until_ready()
        with monkeypatch.context() as patched:
            patched.setattr(Pool, "_end", ended)
            with pytest.raises(pc.WorkerLost, match=r"SIGKILL"):
                executor.submit(die).result(timeout=30)
        with pytest.raises(pc.WorkerLost, match=r"SIGKILL"):
            late[0].result(timeout=30)
        assert executor.submit(pow, 2, 5).result(timeout=30) == 32


def test_a_call_that_joblib_refuses_since_a_worker_has_died_is_given_up(monkeypatch):
    from joblib.externals.loky.process_executor import TerminatedWorkerError

    class Refusing:
        def submit(self, *call):
            raise TerminatedWorkerError("SIGKILL(-9)")

    with pc.Executor(1, backend="joblib") as executor:
        executor.wait_until_ready()
        with monkeypatch.context() as patched:
            patched.setattr(Joblib, "_executor", lambda self: Refusing())
            future = executor.submit(pow, 2, 5)
        with pytest.raises(pc.WorkerLost, match=r"SIGKILL"):
            future.result(timeout=30)
        assert executor.submit(pow, 2, 5).result(timeout=30) == 32


# --- Ctrl-C ------------------------------------------------------------------------------------------------

INTERRUPTED = """
import sys, time
import numpy as np
import parcompute as pc

def kernel(block):
    call(in_job)

def call(gate):
    with open(gate, "w") as file:
        file.write("!")
    for _ in range(1_000):  # Python does not hear a signal that comes just before it begins to sleep
        time.sleep(0.1)

in_job, in_calls = sys.argv[1:]
ex = pc.Executor({options})
ex.wait_until_ready()
print(*ex.worker_pids, flush=True)
try:
    ex.map_blocks(kernel, n_items=4, block_items=1)
except KeyboardInterrupt:
    print("interrupted", flush=True)
ex.wait_until_ready()  # a pool's workers that still start would take Ctrl-C as any new interpreter does
print(ex.reduce_blocks(np.sum, np.ones(10), block_items=1), flush=True)
try:
    with pc.Executor({options}) as two:
        two.wait_until_ready()
        list(two.map(call, [in_calls] * 4))
except KeyboardInterrupt:
    print("interrupted", flush=True)
print(ex.reduce_blocks(np.sum, np.ones(10), block_items=1))
ex.shutdown()
print("closed")
"""
# Not joblib: loky's workers take Ctrl-C themselves, and print what they were doing.
INTERRUPTIBLE = {"serial": {"backend": "serial"}, **{name: MEDIA[name] for name in MEDIA if name != "joblib"}}


@SAFE
@pytest.mark.parametrize("to", ["parent", "terminal"])
@pytest.mark.parametrize("medium", INTERRUPTIBLE)
def test_ctrl_c_is_heard_within_a_second_and_the_executor_lives_on(medium, to, tmp_path):
    in_job, in_calls = Gate(str(tmp_path / "job")), Gate(str(tmp_path / "calls"))
    workers = 1 if medium == "serial" else 2
    options = f"{workers}, " + ", ".join(f"{key}={value!r}" for key, value in INTERRUPTIBLE[medium].items())
    master, slave = pty.openpty()
    program = subprocess.Popen(
        [
            sys.executable,
            "-W",
            "error",
            "-W",
            "ignore:This process:DeprecationWarning",  # is multi-threaded and forks: a pool that begins anew may
            "-c",
            INTERRUPTED.format(options=options),
            in_job.path,
            in_calls.path,
        ],
        stdin=slave,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
        preexec_fn=take_terminal,
    )
    os.close(slave)
    pids = [int(pid) for pid in program.stdout.readline().split()]
    for gate in (in_job, in_calls):
        assert gate.wait().startswith("!")
        began = time.monotonic()
        if to == "parent":
            program.send_signal(signal.SIGINT)
        else:  # as to all of its group
            os.write(master, b"\x03")
        assert program.stdout.readline() == "interrupted\n"
        assert time.monotonic() - began < 1 * BUSY
        if gate is in_job:
            assert program.stdout.readline() == "10.0\n"
    # Not communicate(), which would miss what readline() has read ahead.
    assert (program.stdout.read(), program.stderr.read(), program.wait()) == ("10.0\nclosed\n", "", 0)
    program.stdout.close()
    program.stderr.close()
    assert ended([pid for pid in pids if pid != program.pid], within_s=10)
    os.close(master)


def take_terminal():
    """Make standard input the terminal whose Ctrl-C reaches this process, which has it at its default."""
    fcntl.ioctl(0, termios.TIOCSCTTY, 0)
    signal.signal(signal.SIGINT, signal.default_int_handler)


@SAFE
@pytest.mark.parametrize("medium", ["serial", "threads", "processes", "pool"])
def test_a_kernel_that_raises_keyboardinterrupt_itself_does_not_hang_the_others(medium):
    def kernel(block):
        if block.index == 0:
            raise KeyboardInterrupt("of its own")
        return np.zeros(block.size)

    with pc.Executor(1 if medium == "serial" else 2, backend=medium) as executor:
        kind = KeyboardInterrupt if medium == "serial" else pc.KernelError
        with pytest.raises(kind, match="of its own"):
            executor.map_blocks(kernel, n_items=20, block_items=1)
        assert executor.reduce_blocks(np.sum, np.ones(10), block_items=1) == 10


# --- several threads --------------------------------------------------------------------------------------


@SAFE
@pytest.mark.parametrize("medium", ["serial", "threads", *ENGINES])
def test_threads_may_use_one_executor_together(medium):
    options = MEDIA.get(medium, {"backend": medium})
    wrong, n_threads, start = [], 4, threading.Barrier(4)

    def use(number):
        start.wait()
        for turn in range(5):
            if list(executor.map(pow, range(10), [number] * 10)) != [n**number for n in range(10)]:
                wrong.append(("map", number, turn))
            if executor.reduce_blocks(np.sum, X * number, block_items=10) != expected[number]:
                wrong.append(("reduce", number, turn))

    with pc.Executor(backend="serial") as serial:
        expected = [serial.reduce_blocks(np.sum, X * number, block_items=10) for number in range(n_threads)]
    with pc.Executor(1 if medium == "serial" else 2, **options) as executor:
        threads = [threading.Thread(target=use, args=(number,)) for number in range(n_threads)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    assert wrong == []


@SAFE
@pytest.mark.parametrize("medium", ["threads", "processes-fork", "pool-fork"])
def test_calls_can_be_submitted_from_the_callbacks_of_others(medium):
    chain, finished = [], threading.Event()

    def go_on(future):
        chain.append(future.result())
        if len(chain) == 5:
            finished.set()
        else:
            executor.submit(pow, 2, len(chain)).add_done_callback(go_on)

    with pc.Executor(1, **MEDIA.get(medium, {"backend": medium})) as executor:
        executor.submit(pow, 2, 0).add_done_callback(go_on)
        executor.reduce_blocks(np.sum, X, block_items=10)
        assert finished.wait(20)
    assert chain == [1, 2, 4, 8, 16]
