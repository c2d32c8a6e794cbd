"""What the workers that are killed do: jobs and calls whose bits are known, and that note who began what."""

import contextlib
import ctypes
import functools
import hashlib
import itertools
import os
import resource
import signal
import sys
import threading
import time
from dataclasses import dataclass, field

import cloudpickle
import numpy as np
from programs import HANGS_S

import parcompute as pc

# The workers of a test session can import the package, but not its tests.
cloudpickle.register_pickle_by_value(sys.modules[__name__])

ENDINGS = (signal.SIGKILL, signal.SIGTERM, signal.SIGSEGV, 0, 3)
ALWAYS = 10**9


@dataclass(frozen=True)
class Work:
    """What the blocks or calls of one job do besides computing."""

    folder: str
    pause_s: float = 0.0
    deadly: dict = field(default_factory=dict)  # number: how it ends its process, and how many times

    def begun(self, number):
        """Note that a block was begun, by whom, and end this process if that is its part."""
        if self.folder:
            append(f"{self.folder}/calls", os.getpid(), threading.get_native_id(), number)
        time.sleep(self.pause_s * (number % 3))  # the work
        how, times = self.deadly.get(number, (0, 0))
        for n in itertools.count():
            if n >= times:
                return
            with contextlib.suppress(FileExistsError):
                os.close(os.open(f"{self.folder}/death-{number}-{n}", os.O_CREAT | os.O_EXCL | os.O_WRONLY))
                append(f"{self.folder}/deaths", os.getpid())
                die(how)

    def calls(self):
        """Return who has begun what, in the order of time; int array, shape (n, 3): process, thread, number."""
        return noted(f"{self.folder}/calls").reshape(-1, 3)

    def suicides(self):
        """Return the processes that have ended themselves."""
        return noted(f"{self.folder}/deaths").tolist()

    def n_deadly(self):
        """Return how often a block was about to end its process; a kill from outside may have been quicker."""
        return sum(name.startswith("death-") for name in os.listdir(self.folder))


def append(path, *numbers):
    """Append numbers to a file; with O_APPEND each write is one piece, from any process."""
    fd = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o600)
    os.write(fd, np.array(numbers, "<i8").tobytes())
    os.close(fd)


def noted(path):
    return np.fromfile(path, "<i8") if os.path.exists(path) else np.zeros(0, "<i8")


def die(how):
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    if how == signal.SIGSEGV:
        ctypes.string_at(0)
    elif isinstance(how, signal.Signals):
        os.kill(os.getpid(), how)
        threading.Event().wait()  # the other threads go first, if the system likes
    os._exit(how)


def rows(work, x, block, rng):
    work.begun(block.index)
    return np.sqrt(np.abs(x)) + rng.standard_normal(len(x)) * x.sum()


def several_rows(work, x, block, rng):
    work.begun(block.index)
    return x.cumsum() * rng.random(), np.stack([x > 0, x > rng.random(len(x))], 1)


def numbers(work, x, block, rng):
    work.begun(block.index)
    return {"sum": x.sum(), "weighted": float((rng.standard_normal(len(x)) * x).sum()), "first": x[:2].mean()}


def objects(work, x, block, rng):
    work.begun(block.index)
    return [block.index, rng.random(), "text" * 500] if block.index % 3 else x.sum() * rng.random()


def joined(a, b):
    return hashlib.sha256(repr((a, b)).encode()).hexdigest()


def call(work, seed, number):
    work.begun(number)
    return float(np.random.default_rng([seed, number]).standard_normal(200).cumsum().sum())


@dataclass(frozen=True)
class Task:
    """One use of an executor; the same bits on each."""

    verb: str
    n: int  # blocks or calls
    block_items: int
    seed: int
    more: dict

    @classmethod
    def drawn(cls, chance, verbs):
        verb = chance.choice(verbs)
        more = {"chunksize": chance.choice([None, 1, 4])} if verb == "map" else {}
        return cls(verb, chance.choice([1, 2, 7, 30, 90]), chance.choice([1, 3, 40, 700]), chance.getrandbits(32), more)

    def run(self, executor, work, **more):
        if self.verb == "submit":
            futures = [executor.submit(call, work, self.seed, number) for number in range(self.n)]
            return [value_or_loss(future) for future in futures]
        if self.verb == "map":
            return list(executor.map(functools.partial(call, work, self.seed), range(self.n), **self.more))
        x = np.random.default_rng(self.seed).standard_normal(self.n * self.block_items)
        x *= np.exp(np.arange(len(x)) / len(x) * 30)
        kernel, verb, own = {
            "rows": (rows, executor.map_blocks, {}),
            "several rows": (several_rows, executor.map_blocks, {}),
            "numbers": (numbers, executor.reduce_blocks, {}),
            "objects": (objects, executor.reduce_blocks, {"combine": joined}),
        }[self.verb]
        kernel = functools.partial(kernel, work)
        return verb(kernel, x, block_items=self.block_items, seed=self.seed, **own, **more)


BLOCKS = ("rows", "several rows", "numbers", "objects")


def value_or_loss(future):
    try:
        return future.result(HANGS_S)
    except pc.WorkerLost as loss:
        return loss


def bits(value):
    if isinstance(value, dict):
        return {name: bits(entry) for name, entry in value.items()}
    if isinstance(value, (tuple, list)):
        return type(value), tuple(map(bits, value))
    if isinstance(value, (np.ndarray, np.generic)):
        return type(value), value.dtype, value.shape, value.tobytes()
    return type(value), repr(value)


def check_calls(work, task, died, context):
    """Check that all was computed, and again only what was begun and not finished when its process was killed."""
    calls = work.calls().tolist()
    last = {number: at for at, (_, _, number) in enumerate(calls)}
    last_of_thread = {(pid, tid): at for at, (pid, tid, _) in enumerate(calls)}
    assert sorted(last) == list(range(task.n)), context
    for at, (pid, tid, number) in enumerate(calls):
        if at != last[number]:
            assert pid in died, f"{number} was computed again although process {pid} lived; {context}"
            if task.verb != "map":  # a batch travels, and is tried again, as a whole
                assert at == last_of_thread[pid, tid], f"{number} was finished and computed again; {context}"


@dataclass(frozen=True)
class Refusing(Work):
    """The work of the reference, in a process that must not die."""

    def begun(self, number):
        if number in self.deadly:
            raise RuntimeError("a worker would be lost")
