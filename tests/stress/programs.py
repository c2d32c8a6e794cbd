"""Programs of their own that are killed or interrupted, and what must be left of them: nothing."""

import contextlib
import os
import select
import signal
import subprocess
import sys
import threading
import time

import psutil
import pytest

# What a promise calls a second may take so long on a machine that is busy with other work.
A_SECOND = 4.0

# Nothing here takes so long unless it hangs.
HANGS_S = 60

# What the programs below do: any job, drawn from `chance`, whose result is checked where that costs nothing.
JOBS = """
import faulthandler, gc, json, os, random, signal, sys, threading, time, warnings
import numpy as np, psutil
import parcompute as pc
from parcompute.memory import leases

warnings.filterwarnings("ignore", ".*they will take turns", UserWarning)
warnings.simplefilter("ignore", ResourceWarning)  # Ctrl-C between open() and the line that would close it
faulthandler.register(signal.SIGUSR1)  # for `Program.stacks`
method, chance = sys.argv[1], random.Random(sys.argv[2])

def rows(x, rng):
    return np.sort(x) + rng.random(len(x))

def slow(block):
    time.sleep(0.002)
    return block.size

def one_job(ex):
    kind, n = chance.randrange(6), chance.choice([1, 5, 1_000, 60_000])
    if kind == 0:
        assert len(ex.map_blocks(rows, np.arange(float(n)), block_items=max(1, n // 20), seed=1)) == n
    elif kind == 1:
        assert ex.reduce_blocks(np.sum, np.ones(n), block_items=max(1, n // 20)) == n
    elif kind == 2:
        x = pc.share(np.arange(float(n)))
        assert ex.map_blocks(np.negative, x, block_items=max(1, n // 9))[-1] == 1 - n
    elif kind == 3:
        assert ex.reduce_blocks(slow, n_items=10, block_items=1) == 10
    elif kind == 4:
        assert list(ex.map(abs, range(-20, 0))) == list(range(20, 0, -1))
    else:
        assert [future.result() for future in [ex.submit(pow, 2, k) for k in range(5)]] == [1, 2, 4, 8, 16]

def children():
    found = []
    for child in psutil.Process().children(recursive=True):
        try:
            if "_serve" not in " ".join(child.cmdline()):  # the forkserver stays until this program exits
                found.append(child)
        except psutil.NoSuchProcess:
            pass
    return found

def an_executor():
    schedule = chance.choice(["static", "dynamic", "guided", "dynamic,3"])
    return pc.Executor(chance.randint(1, 2), start_method=method, threads_per_worker=chance.randint(1, 2),
                       schedule=schedule)
"""


@contextlib.contextmanager
def seen_as(fault):
    """Have what is raised here count as this fault in the summary; what has no name there is a lost run."""
    try:
        yield
    except BaseException as error:
        if not hasattr(error, "fault"):
            error.fault = fault
        raise


def living_of_session(sid):
    """Return the processes of a session that have not ended, whoever is their parent now."""
    living = []
    for pid in filter(str.isdecimal, os.listdir("/proc")):
        with contextlib.suppress(OSError, psutil.Error), open(f"/proc/{pid}/stat", "rb") as stat:
            state, _, _, session = stat.read().rpartition(b")")[2].split()[:4]
            if int(session) == sid and state not in b"ZX":
                living.append(psutil.Process(int(pid)))
    return living


def left_of(sid, deadline):
    """Return the processes of a session that live at a deadline."""
    while (living := living_of_session(sid)) and time.monotonic() < deadline:
        psutil.wait_procs(living, timeout=0.05)
    return living


def shared_files():
    """Return what there is in /dev/shm under names that parcompute and the standard library give."""
    return {name for name in os.listdir("/dev/shm") if name.startswith(("parcompute", "psm_", "pymp-", "sem.mp-"))}


def mapped():
    """Return what living processes have mapped, as the system lists it."""
    found = ""
    for pid in psutil.pids():
        with contextlib.suppress(OSError), open(f"/proc/{pid}/maps") as maps:
            found += maps.read()
    return found


class Program:
    """A program in a session, and so in a process group, of its own."""

    def __init__(self, source, folder, *arguments):
        self.folder = folder
        (folder / "program.py").write_text(source)
        (folder / "temporary").mkdir(exist_ok=True)
        self.segments = shared_files()

        def begin():
            for number in (signal.SIGINT, signal.SIGTERM):
                signal.signal(number, signal.SIG_DFL)

        self.process = subprocess.Popen(
            [sys.executable, "-W", "error", "program.py", *map(str, arguments)],
            cwd=folder,
            env={**os.environ, "TMPDIR": str(folder / "temporary")},
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            start_new_session=True,
            preexec_fn=begin,
        )

    def __enter__(self):
        return self

    def __exit__(self, *exception):
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self.process.pid, signal.SIGKILL)
        self.process.wait()
        self.process.stdout.close()
        self.process.stderr.close()

    def line(self):
        """Return the next line that it prints."""
        printed = b""
        while not printed.endswith(b"\n"):
            if not select.select([self.process.stdout], [], [], HANGS_S)[0]:
                with seen_as("hangs"):
                    pytest.fail(f"hangs after {printed!r}: {self.stacks()}")
            letter = os.read(self.process.stdout.fileno(), 1)
            if not letter:
                pytest.fail(f"ended: {self.process.stderr.read().decode()}")
            printed += letter
        return printed.decode().strip()

    def ended(self, within_s=HANGS_S):
        """Return exit status and what it and its workers have printed, once none of them can print any more."""
        try:
            out, err = self.process.communicate(timeout=within_s)
        except subprocess.TimeoutExpired:
            with seen_as("hangs"):
                pytest.fail(f"does not end: {self.stacks()}")
        return self.process.returncode, out.decode(), err.decode()

    def stacks(self):
        """Say which of its processes live, and where its threads are, and end it."""
        living = living_of_session(self.process.pid)
        if self.process.poll() is None:
            os.kill(self.process.pid, signal.SIGUSR1)
            threading.Event().wait(1)  # for faulthandler to write them down
        os.killpg(self.process.pid, signal.SIGKILL)
        return f"{living}\n{self.process.communicate()[1].decode()}"

    def assert_nothing_is_left(self, deadline):
        """Check that none of its processes lives at a deadline, and no file of theirs."""
        with seen_as("leaks"):
            assert left_of(self.process.pid, deadline) == []
            assert os.listdir(self.folder / "temporary") == []
            deadline = time.monotonic() + 10  # for what other programs are just making or removing
            while (left := self.new_segments()) and time.monotonic() < deadline:
                threading.Event().wait(0.05)
            assert left == set()

    def new_segments(self):
        """Return what has appeared in /dev/shm since its begin and no living process uses."""
        new = shared_files() - self.segments
        used = mapped() if new else ""
        return {name for name in new if name not in used}
