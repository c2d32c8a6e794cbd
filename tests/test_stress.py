"""Random kills, floods and repeats: what no single run can show. docs/engine.md has the argument that they test.

Each test has a few rounds that are always run, and many that `make stress` runs. What is random comes from
PARCOMPUTE_STRESS_SEED and the test's own name, so one test alone repeats what it did among all. At which line of the
engine a kill arrives is up to the machine. PARCOMPUTE_STRESS_ROUNDS=10 makes ten times as many rounds of the many.
"""

import collections
import contextlib
import ctypes
import faulthandler
import functools
import hashlib
import itertools
import json
import os
import random
import resource
import select
import signal
import subprocess
import sys
import threading
import time
import warnings
from dataclasses import dataclass, field

import cloudpickle
import numpy as np
import psutil
import pytest
from _pytest.faulthandler import fault_handler_stderr_fd_key

import parcompute as pc
from parcompute.jobs import checkpoint_file
from parcompute.workers import start

# The workers of a test session can import the package, but not its tests.
cloudpickle.register_pickle_by_value(sys.modules[__name__])

SEED = os.environ["PARCOMPUTE_STRESS_SEED"]  # conftest.py has drawn one if there was none
ROUNDS = float(os.environ.get("PARCOMPUTE_STRESS_ROUNDS", "1"))

# What a promise calls a second may take so long on a machine that is busy with other work.
A_SECOND = 4.0

# Nothing here takes so long unless it hangs.
HANGS_S = 60

MIB = 2**20


def rounds(few, many, parts=1):
    """Run a test with a few rounds always, and under `make stress` with many: in parts, each of which is repeatable."""
    share = max(1, round(many * ROUNDS / parts))
    stress = [pytest.mark.stress, pytest.mark.timeout(280)]
    more = [pytest.param(share, marks=stress, id=f"{share}-part{part}") for part in range(parts)]
    return pytest.mark.parametrize("n_rounds", [pytest.param(few, id=str(few)), *more])


@pytest.fixture
def chance(request):
    """What the test does at random."""
    print(f"to repeat: PARCOMPUTE_STRESS_SEED={SEED} PARCOMPUTE_STRESS_ROUNDS={ROUNDS:g}")  # shown if it fails
    return random.Random(f"{SEED} {request.node.name}")


# --- workers die at random moments -------------------------------------------------------------------------

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
        if not self.folder:
            return
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
                assert select.select([pidfd], [], [], HANGS_S)[0], f"worker {pid} survives {how!r}"
        finally:
            os.close(pidfd)


@contextlib.contextmanager
def opened(method, workers, **options):
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", ".*they will take turns", UserWarning)
        executor = pc.Executor(workers, start_method=method, **options)
    with executor:
        yield executor


@pytest.fixture
def no_stacks(request):
    """Keep pytest's faulthandler, which forked workers inherit, from printing the stacks of those that are killed."""
    was_enabled = faulthandler.is_enabled()
    faulthandler.disable()
    yield
    if was_enabled:
        faulthandler.enable(request.config.stash[fault_handler_stderr_fd_key])


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


@pytest.mark.parametrize("start_method", ["fork", "forkserver", "spawn"])
@rounds(6, 500, parts=5)
def test_random_kills_change_nothing(start_method, n_rounds, chance, tmp_path, no_stacks):
    """`n_rounds` counts kills."""
    n_outside = n_inside = n_jobs = n_executors = 0
    with pc.Executor(backend="serial") as serial:
        while n_outside + n_inside < n_rounds:
            n_executors += 1
            workers, threads = chance.randint(1, 3), chance.randint(1, 2)
            schedule = chance.choice(["static", "dynamic", "guided"]) + chance.choice(["", "", ",1", ",5"])
            options = {"threads_per_worker": threads, "schedule": schedule, "retries": 50}
            with opened(start_method, workers, **options) as executor:
                for number in range(chance.randint(2, 6)):
                    if number or chance.random() < 0.7:
                        executor.wait_until_ready()
                    n_jobs += 1
                    task = Task.drawn(chance, (*BLOCKS, "submit", "map"))
                    deadly = chance.sample(range(task.n), min(task.n, chance.choice([0, 0, 0, 1, 2])))
                    deadly = {number: (chance.choice(ENDINGS), chance.choice([1, 1, 2])) for number in deadly}
                    delays_s = [
                        chance.expovariate(chance.choice([30, 300])) for _ in range(chance.choice([0, 1, 2, 2]))
                    ]
                    folder = tmp_path / str(n_jobs)
                    folder.mkdir()
                    work = Work(str(folder), chance.choice([0.0, 0.0005, 0.002]), deadly)
                    context = f"{options}, {workers} workers, {task}, {work}, {delays_s}"
                    with Outside(executor, chance, delays_s) as outside:
                        if chance.random() < 0.2:
                            executor.wait_until_ready()
                        result = task.run(executor, work)
                    died = {*outside.killed, *work.suicides()}
                    assert bits(result) == bits(task.run(serial, Work(""))), context
                    check_calls(work, task, died, context)
                    assert work.n_deadly() == sum(times for _, times in deadly.values()), context
                    n_outside += len(outside.killed)
                    n_inside += len(died) - len(outside.killed)
                executor.wait_until_ready()
                assert executor.reduce_blocks(np.sum, np.ones(5), block_items=1) == 5.0
                assert executor.submit(pow, 2, 3).result(HANGS_S) == 8
                assert len(set(executor.worker_pids)) == workers
    print(f"{n_outside} kills from outside, {n_inside} from inside, in {n_jobs} jobs of {n_executors} executors")


@dataclass(frozen=True)
class Refusing(Work):
    """The work of the reference, in a process that must not die."""

    def begun(self, number):
        if number in self.deadly:
            raise RuntimeError("a worker would be lost")


@pytest.mark.parametrize("start_method", ["fork", "forkserver", "spawn"])
@rounds(2, 60)
def test_blocks_that_no_worker_survives_are_given_up_and_no_others(start_method, n_rounds, chance, tmp_path, no_stacks):
    if start_method == "spawn":  # each worker takes a third of a second to start
        n_rounds = max(1, n_rounds // 4)
    with pc.Executor(backend="serial") as serial:
        for number in range(n_rounds):
            workers, threads, retries = chance.randint(1, 3), chance.randint(1, 2), chance.randint(1, 3)
            schedule = chance.choice(["static", "dynamic", "guided"]) + chance.choice(["", ",1", ",5"])
            task = Task.drawn(chance, (*BLOCKS, "submit"))
            fatal = chance.sample(range(task.n), min(task.n - 1, chance.choice([1, 2, 4])))
            deadly = {block: (chance.choice(ENDINGS), ALWAYS) for block in fatal}
            if threads == 1 and retries > 1:  # otherwise a neighbour's death may be one too many for it
                others = chance.sample(range(task.n), min(task.n, 3))
                deadly = {block: (chance.choice(ENDINGS), retries - 1) for block in others} | deadly
            folder = tmp_path / str(number)
            folder.mkdir()
            work = Work(str(folder), chance.choice([0.0, 0.001]), deadly)
            context = f"{schedule}, {workers} workers, {threads} threads, {retries} retries, {task}, {work}"
            keep = {} if task.verb == "submit" else {"on_error": "keep"}
            options = {"threads_per_worker": threads, "schedule": schedule, "retries": retries}
            with opened(start_method, workers, **options) as executor:
                result = task.run(executor, work, **keep)
                if task.verb == "submit":
                    lost = {at: value for at, value in enumerate(result) if isinstance(value, pc.WorkerLost)}
                    result = [value for at, value in enumerate(result) if at not in lost]
                else:
                    lost = {failure.block.index: failure for failure in executor.failures}
                assert executor.reduce_blocks(np.sum, np.ones(5), block_items=1) == 5.0
            assert sorted(lost) == sorted(fatal), context
            for block, loss in lost.items():
                how = deadly[block][0]
                code = -how if isinstance(how, signal.Signals) else how
                assert isinstance(loss, pc.WorkerLost), context
                if threads == 1:
                    assert loss.exitcodes == (code,) * retries, context
            if task.verb == "submit":
                expected = task.run(serial, Work(""))
                expected = [value for at, value in enumerate(expected) if at not in fatal]
            else:
                expected = task.run(serial, Refusing("", deadly=dict.fromkeys(fatal)), **keep)
            assert bits(result) == bits(expected), context
            check_calls(work, task, set(work.suicides()), context)
            if threads == 1:
                counts = collections.Counter(work.calls()[:, 2].tolist())
                assert {block: counts[block] for block in fatal} == dict.fromkeys(fatal, retries), context


@pytest.mark.parametrize("schedule", ["static,1", "dynamic,1", "guided"])
@pytest.mark.parametrize("fatal", [(0, 1), (0, 1, 2, 5)])
def test_blocks_that_kill_side_by_side_in_the_threads_of_a_worker_are_given_up(schedule, fatal):
    def kernel(block):
        time.sleep(0.02)  # likely, both threads are at work then; what comes out is the same if not
        if block.index in fatal:
            os._exit(3)
        time.sleep(0.02)  # and likely, an innocent neighbour is hit
        return 1

    with opened("fork", 1, threads_per_worker=2, schedule=schedule) as executor:
        assert executor.reduce_blocks(kernel, n_items=6, block_items=1, on_error="keep") == 6 - len(fatal)
        assert [failure.block.index for failure in executor.failures] == list(fatal)


# --- programs of their own ---------------------------------------------------------------------------------

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


def living_of_session(sid):
    """Return the processes of a session that have not ended, whoever is their parent now."""
    living = []
    for process in psutil.process_iter():
        with contextlib.suppress(psutil.Error, ProcessLookupError):
            if os.getsid(process.pid) == sid and process.status() != psutil.STATUS_ZOMBIE:
                living.append(process)
    return living


def shared_files():
    """Return what there is in /dev/shm under names that parcompute and the standard library give."""
    return {name for name in os.listdir("/dev/shm") if name.startswith(("parcompute", "psm_", "pymp-", "sem."))}


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
        while (living := living_of_session(self.process.pid)) and time.monotonic() < deadline:
            psutil.wait_procs(living, timeout=0.05)
        assert living == []
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


BUSY = f"""{JOBS}
print("begins", flush=True)
while True:
    with an_executor() as ex:
        for _ in range(chance.randrange(2, 12)):
            one_job(ex)
"""
KILLS = {
    "SIGKILL to it alone": (os.kill, signal.SIGKILL),
    "SIGKILL to all": (os.killpg, signal.SIGKILL),
    "SIGTERM": (os.kill, signal.SIGTERM),
}


@pytest.mark.parametrize("start_method", ["fork", "forkserver", "spawn"])
@rounds(1, 60)
def test_a_parent_that_is_killed_at_a_random_moment_leaves_nothing(start_method, n_rounds, chance, tmp_path):
    manners = chance.sample(list(KILLS), len(KILLS))
    for number in range(n_rounds):
        manner = manners[number % len(manners)]
        send, signal_ = KILLS[manner]
        with Program(BUSY, tmp_path, start_method, chance.getrandbits(32)) as program:
            assert program.line() == "begins"
            threading.Event().wait(chance.choice([0.05, 0.3, 1.0]) * chance.random())
            send(program.process.pid, signal_)
            deadline = time.monotonic() + A_SECOND
            assert program.ended(A_SECOND) == (-signal_, "", ""), manner
            program.assert_nothing_is_left(deadline)


# --- Ctrl-C ------------------------------------------------------------------------------------------------

# Python prints and forgets what is raised in a finalizer. Then this round has to be interrupted once more, and what the
# finalizer would have given back, the two descriptors of one segment, stays.
INTERRUPTED = f"""{JOBS}
def swallowed(unraisable):
    assert unraisable.exc_type in (KeyboardInterrupt, RuntimeError), unraisable
    swallowed_here.append(unraisable.exc_type)
    print("swallowed", flush=True)

swallowed_here = []
sys.unraisablehook = swallowed

def in_a_with_block():
    while True:
        with an_executor() as ex:
            for _ in range(chance.randrange(1, 9)):
                one_job(ex)

def closed_later():
    global ex
    while True:
        ex = an_executor()
        for _ in range(chance.randrange(1, 9)):
            one_job(ex)
        ex.shutdown()

def belongings():
    gc.collect()
    leases.release_kept()
    descriptors = []
    for fd in os.listdir("/proc/self/fd"):
        try:
            descriptors.append(os.readlink(f"/proc/self/fd/{{fd}}").partition(":")[0])
        except FileNotFoundError:  # that of the folder itself
            pass
    return children(), sorted(descriptors), threading.active_count()

ex = None
with an_executor() as first:
    one_job(first)
before = belongings()
before_all = before[1]
while chance.random() >= 0:
    work = chance.choice([in_a_with_block, closed_later])
    try:
        print("go", flush=True)
        work()
    except KeyboardInterrupt:
        print("interrupted", flush=True)
    if ex is not None:
        try:
            assert ex.reduce_blocks(np.sum, np.ones(6), block_items=1) == 6.0
            assert ex.submit(pow, 2, 5).result() == 32
        except RuntimeError as error:  # it came in the middle of shutdown
            assert "is closed" in str(error), error
        ex.shutdown()
        ex = None
    deadline = time.monotonic() + {A_SECOND}
    while (now := belongings()) != before and time.monotonic() < deadline:
        time.sleep(0.01)
    stays = [descriptor for descriptor in now[1] if descriptor.startswith("/dev/shm/")]
    if len(stays) <= 2 * len(swallowed_here):
        before = before[0], sorted([*before_all, *stays]), before[2]
    print("ok" if now == before else f"{{work.__name__}} has left {{now}}, not {{before}}", flush=True)
"""


@pytest.mark.parametrize("start_method", ["fork", "forkserver", "spawn"])
@rounds(3, 300, parts=2)
def test_ctrl_c_at_a_random_moment_leaves_nothing(start_method, n_rounds, chance, tmp_path):
    n_swallowed = 0
    with Program(INTERRUPTED, tmp_path, start_method, chance.getrandbits(32)) as program:
        for _ in range(n_rounds):
            assert program.line() == "go"
            while True:
                threading.Event().wait(chance.choice([0.02, 0.1, 0.5]) * chance.random())
                chance.choice([os.kill, os.killpg])(program.process.pid, signal.SIGINT)
                if (line := program.line()) != "swallowed":
                    break
                n_swallowed += 1
            while line == "swallowed":
                line = program.line()
            assert line == "interrupted"
            while (line := program.line()) == "swallowed":
                pass
            assert line == "ok"
        assert program.line() == "go"
        os.kill(program.process.pid, signal.SIGTERM)
        assert program.ended() == (-signal.SIGTERM, "", "")
        program.assert_nothing_is_left(time.monotonic() + A_SECOND)
    print(f"{n_rounds} interrupts, {n_swallowed} more swallowed")


# --- many executors, many jobs -----------------------------------------------------------------------------

GROWTH = f"""{JOBS}
def belongings(pids):
    gc.collect()
    leases.release_kept()
    sizes = [psutil.Process(pid).memory_info().rss for pid in (os.getpid(), *pids)]
    return sizes, len(os.listdir("/proc/self/fd")), threading.active_count(), len(children())

def executors(n):
    for number in range(n):
        if number == n // 5:
            yield belongings(())
        with an_executor() as ex:
            ready = chance.random() < 0.5 and ex.wait_until_ready()
            if chance.random() < 0.9:
                one_job(ex)
    yield belongings(())

def jobs(n):
    x = np.arange(40.0)
    with pc.Executor(2, start_method=method) as ex:
        ex.wait_until_ready()
        for number in range(n):
            if number == n // 5:
                yield belongings(ex.worker_pids)
            kind = chance.randrange(8)
            if kind == 0:
                assert ex.map_blocks(np.negative, x, block_items=9)[3] == -3.0
            elif kind == 1:
                assert ex.reduce_blocks(np.sum, x, block_items=9) == 780.0
            else:
                future = ex.submit(pow, 2, number % 50)
                assert number % 9 or future.result() == 2 ** (number % 50)
        future.result()
        yield belongings(ex.worker_pids)

before, after = {{"executors": executors, "jobs": jobs}}[sys.argv[3]](int(sys.argv[4]))
print(json.dumps([before, after]))
"""


def growth(tmp_path, chance, what, n, method):
    """Return how many bytes this program and each worker has grown after its first fifth, and check all else."""
    with Program(GROWTH, tmp_path, method, chance.getrandbits(32), what, n) as program:
        status, out, err = program.ended(270)
        assert (status, err) == (0, "")
        (sizes_before, *before), (sizes_after, *after) = json.loads(out)
        assert after == before, "descriptors, threads, children"
        program.assert_nothing_is_left(time.monotonic() + A_SECOND)
    grown = np.subtract(sizes_after, sizes_before)
    print(f"{n} {what}: grown by {grown // 1024} KiB from {np.array(sizes_before) // 1024} KiB")
    return grown


# One page lost per executor would be 6 MiB after 1,600 of them, one object of 100 bytes per job 8 MiB after 80,000.
# What the allocator keeps at the end is more or less than at the beginning by up to some MiB, however many there were.
MAY_GROW = 5 * MIB


@pytest.mark.parametrize(
    ("start_method", "n"),
    [
        ("fork", 30),
        *(
            pytest.param(method, round(n * ROUNDS), marks=[pytest.mark.stress, pytest.mark.timeout(300)])
            for method, n in (("fork", 2_000), ("forkserver", 2_000), ("spawn", 100))
        ),
    ],
)
def test_executors_one_after_the_other_leave_nothing(start_method, n, chance, tmp_path):
    assert growth(tmp_path, chance, "executors", n, start_method).max() < MAY_GROW


@pytest.mark.parametrize(
    "n",
    [1_000, pytest.param(round(100_000 * ROUNDS), marks=[pytest.mark.stress, pytest.mark.timeout(300)])],
)
def test_jobs_one_after_the_other_leave_nothing(n, chance, tmp_path):
    assert growth(tmp_path, chance, "jobs", n, "forkserver").max() < MAY_GROW


# --- a program with a checkpoint is killed -----------------------------------------------------------------

CHECKPOINTED = """
import hashlib, os, pickle, sys, time
import numpy as np
import parcompute as pc
from parcompute.jobs import checkpoint

checkpoint.EVERY_S, checkpoint.COST = 0.004, 1  # a job of a tenth of a second is kept many times
verb, backend, method, workers, schedule, path = sys.argv[1:]
x = np.random.default_rng(1).standard_normal(40_000)

def noted(block):
    fd = os.open("calls", os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o600)
    os.write(fd, block.index.to_bytes(8, "little"))
    os.close(fd)
    time.sleep(0.004)  # the work

def rows(x, block, rng):
    noted(block)
    return x + rng.random(len(x)), x > 0

def partial(x, block, rng):
    noted(block)
    return x.sum() * rng.random(), x[:3]

def objects(x, block, rng):
    noted(block)
    return [block.index, rng.random(), "text" * 1000] if block.index % 3 else rng.random()

def joined(a, b):
    return hashlib.sha256(repr((a, b)).encode()).hexdigest()

options = {"start_method": method} if backend == "processes" else {}
with pc.Executor(int(workers), backend=backend, schedule=schedule, **options) as ex:
    print("begins", flush=True)
    more = {"block_items": 1000, "seed": 3, "checkpoint": path or None}
    if verb == "rows":
        value = [array.tobytes() for array in ex.map_blocks(rows, x, **more)]
    elif verb == "sums":
        value = ex.reduce_blocks(partial, x, **more)
    else:
        value = ex.reduce_blocks(objects, x, combine=joined, **more)
print(hashlib.sha256(pickle.dumps(value)).hexdigest(), flush=True)
"""


def kept_blocks(path):
    """Return the blocks that the journal of a checkpoint has."""
    if not path.exists():
        return set()
    file = checkpoint_file.CheckpointFile(path)
    try:
        return {index for first, stop, _, _ in file.records() for index in range(first, stop)}
    finally:
        file.close()


@rounds(1, 25)
def test_a_checkpoint_survives_kills_at_random_moments(n_rounds, chance, tmp_path):
    path, calls = tmp_path / "job.h5", tmp_path / "calls"
    expected, n_kills, n_middle = {}, 0, 0

    def program(verb, *arguments):
        calls.unlink(missing_ok=True)
        return Program(CHECKPOINTED, tmp_path, verb, *arguments)

    for _ in range(n_rounds):
        verb = chance.choice(["rows", "sums", "objects"])
        if verb not in expected:
            with program(verb, "serial", "", 1, "guided", "") as running:
                status, out, err = running.ended()
                assert (status, err) == (0, "")
                expected[verb] = out.split()[-1]
        path.unlink(missing_ok=True)
        answer, n_left = None, chance.randint(2, 6)
        while answer is None:
            finished = kept_blocks(path)
            n_middle += 0 < len(finished) < 40
            options = [
                "processes",
                chance.choice(["fork", "fork", "forkserver", "spawn"]),
                chance.randint(1, 2),
                chance.choice(["static", "dynamic,2", "guided"]),
            ]
            with program(verb, *options, path) as running:
                assert running.line() == "begins"
                if n_left:
                    n_left -= 1
                    delay_s = chance.choice([0.03, 0.15, 0.4]) * chance.random()
                    try:
                        running.process.wait(delay_s)
                    except subprocess.TimeoutExpired:
                        os.killpg(running.process.pid, signal.SIGKILL)
                        n_kills += 1
                status, out, err = running.ended()
                assert status in (0, -signal.SIGKILL)
                assert err == ""
                running.assert_nothing_is_left(time.monotonic() + A_SECOND)
                answer = out.split()[-1] if status == 0 else None
            computed = np.fromfile(calls, "<i8").tolist() if calls.exists() else []
            assert len(computed) == len(set(computed))
            assert set(computed) & finished == set(), "a block in the file was computed again"
        assert answer == expected[verb]
        assert set(computed) | finished == set(range(40))
        assert kept_blocks(path) == set(range(40))
        assert {file.name for file in tmp_path.iterdir()} <= {"calls", "job.h5", "program.py", "temporary"}
    print(f"{n_rounds} jobs, {n_kills} kills, {n_middle} of them in the middle of a job")
