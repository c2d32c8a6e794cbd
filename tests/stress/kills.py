"""Who is killed how often at which random moment, and what a failure after a kill counts as."""

import contextlib
import json
import os
import random
import resource
import select
import signal
import subprocess
import sys
import threading
import warnings

import psutil
import pytest
from programs import HANGS_S, seen_as

import parcompute as pc
from parcompute.workers import start

SEED = os.environ["PARCOMPUTE_STRESS_SEED"]  # conftest.py has drawn one if there was none
ROUNDS = float(os.environ.get("PARCOMPUTE_STRESS_ROUNDS", "1"))

# One piece of the campaign takes a minute or two on two free cores.
PIECE = [pytest.mark.stress, pytest.mark.timeout(600)]


def rounds(name, **cases):
    """Run a test for each value of a parameter with ``(few, many, parts)`` rounds.

    The few are always run, unless there are none, and the many under `make stress`, in parts that are repeatable alone.
    """
    told = []
    for case, (few, many, parts) in cases.items():
        told += [pytest.param(case, few, id=f"{case}-{few}")] if few else []
        share = max(1, round(many * ROUNDS / parts))
        told += [pytest.param(case, share, marks=PIECE, id=f"{case}-{share}-part{part}") for part in range(parts)]
    return pytest.mark.parametrize((name, "n_rounds"), told)


@contextlib.contextmanager
def opened(workers, **options):
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", ".*they will take turns", UserWarning)
        executor = pc.Executor(workers, **options)
    with executor:
        yield executor


class Outside(threading.Thread):
    """Kills workers of an executor from outside, each after a delay, until it is told to stop.

    Not more than two between two times that all workers are ready: the third in a row that ends before it is ready, or
    before it has begun a block, ends the job, as it should.
    """

    def __init__(self, executor, chance, delays_s):
        super().__init__(name="kills from outside")
        self.executor, self.delays_s = executor, delays_s
        self.chance = random.Random(chance.getrandbits(32))
        self.killed, self.error, self.over = [], None, threading.Event()

    def __enter__(self):
        self.start()
        return self

    def __exit__(self, *exception):
        self.over.set()
        self.join()
        if self.error is not None:
            raise self.error

    def run(self):
        try:
            for delay_s in self.delays_s:
                if self.over.wait(delay_s):
                    return
                if pids := self.executor.worker_pids:
                    self.kill(self.chance.choice(pids))
        except BaseException as error:
            self.error = error

    def kill(self, pid):
        """Kill a worker and see it end: certainly a worker, and never a process that has got its number since."""
        try:
            pidfd = os.pidfd_open(pid)
        except ProcessLookupError:
            return
        try:
            with contextlib.suppress(ProcessLookupError, psutil.NoSuchProcess):
                ours = {os.getpid(), start._server._pid if start._server else os.getpid()}
                is_worker = pid in self.executor.worker_pids and psutil.Process(pid).ppid() in ours
                if not is_worker or select.select([pidfd], [], [], 0)[0]:
                    return  # that it has not ended by now says that `ppid` was told of this very process
                resource.prlimit(pid, resource.RLIMIT_CORE, (0, 0))
                how = self.chance.choice([signal.SIGKILL, signal.SIGKILL, signal.SIGTERM, signal.SIGSEGV])
                signal.pidfd_send_signal(pidfd, how)
                self.killed.append(pid)
                with seen_as("hangs"):
                    assert select.select([pidfd], [], [], HANGS_S)[0], f"worker {pid} survives {how!r}"
        finally:
            os.close(pidfd)


# A process of its own, since this one holds its interpreter while it forks: it looks for processes that have just come
# into being, and kills each after a delay. `/proc` lists them from the moment of their fork.
HUNTER = """
import json, os, random, select, signal, sys, time

parent, me = int(sys.argv[1]), str(os.getpid())

def parent_of(pid):
    try:
        with open(f"/proc/{pid}/stat", "rb") as stat:
            return int(stat.read().rpartition(b")")[2].split()[1])
    except (OSError, IndexError):
        return 0

def hunt(seed, server, n, longest_s):
    chance, known, killed = random.Random(seed), set(os.listdir("/proc")), []
    print("hunting", flush=True)
    while not select.select([sys.stdin], [], [], 0.0003)[0]:
        now = set(os.listdir("/proc"))
        for pid in now - known:
            if len(killed) == n or not pid.isdecimal() or pid == me or parent_of(pid) not in (parent, server):
                continue
            time.sleep(chance.uniform(0, longest_s))
            try:
                pidfd = os.pidfd_open(int(pid))
            except OSError:
                continue
            if parent_of(pid) in (parent, server):
                signal.pidfd_send_signal(pidfd, signal.SIGKILL)
                killed.append(int(pid))
            os.close(pidfd)
        known = now
    return killed

for line in sys.stdin:
    print(json.dumps(hunt(*json.loads(line))), flush=True)
    sys.stdin.readline()
"""


class Hunter:
    """Kills workers from the moment that they exist, at most so many in one hunt."""

    def __init__(self):
        command = [sys.executable, "-S", "-E", "-u", "-c", HUNTER, str(os.getpid())]
        self.process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)

    def __enter__(self):
        return self

    def __exit__(self, *exception):
        self.process.kill()
        self.process.communicate()

    @contextlib.contextmanager
    def hunt(self, seed, n, longest_s):
        """Yield a list that has, afterwards, the processes that were killed."""
        killed = []
        server = start._server._pid if start._server else -1
        print(json.dumps([seed, server, n, longest_s]), file=self.process.stdin, flush=True)
        assert self.process.stdout.readline() == "hunting\n"
        try:
            yield killed
        finally:
            print(file=self.process.stdin, flush=True)
            killed += json.loads(self.process.stdout.readline())
