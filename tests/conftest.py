"""Every test runs with one thread per library, and fails if it leaves anything behind.

*Anything* is a process, a thread, an open file descriptor, a shared-memory segment or a temporary file.
Each test is compared with what was there before it began, so a fixture of a wider scope may keep its
workers; it has to start them when it is set up, not at the first test.
"""

import collections
import gc
import os
import secrets
import shutil
import signal
import sys
import tempfile
import threading
import time
from contextlib import suppress
from dataclasses import dataclass, fields
from multiprocessing import forkserver, process, resource_tracker, util
from pathlib import Path

import hypothesis
import psutil
import pytest

# Read by the libraries when they are loaded, so set before any test imports numpy, and inherited by workers.
for variable in ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS", "NUMEXPR_NUM_THREADS"):
    os.environ[variable] = "1"
os.environ["MPLBACKEND"] = "agg"
# The tests start a thousand interpreters: the first compiles the package, and not each anew.
os.environ.pop("PYTHONDONTWRITEBYTECODE", None)

# What the tests of the folder stress do at random; repeated with the same value.
os.environ.setdefault("PARCOMPUTE_STRESS_SEED", str(secrets.randbits(32)))

from parcompute.memory import leases  # noqa: E402  # loads numpy

# A shell that starts a program in the background has it ignore Ctrl-C, and what it starts in turn.
signal.signal(signal.SIGINT, signal.default_int_handler)

# A deadline would assert a wall-clock time; in CI the same examples run each time.
hypothesis.settings.register_profile("here", deadline=None)
hypothesis.settings.register_profile("ci", deadline=None, derandomize=True, database=None)
hypothesis.settings.load_profile("ci" if os.environ.get("CI") else "here")

START_METHODS = ("fork", "forkserver", "spawn")

# How long things that are on their way out may take, on a machine that is busy with other work.
GRACE_S = 10.0

SHARED_MEMORY = Path("/dev/shm")
# Prefixes of what parcompute and the engines it drives name there; other programs use it too.
SEGMENT_PREFIXES = ("parcompute", "psm_", "pymp-", "joblib", "loky", "sem.loky", "sem.mp-")

# Command lines of programs that serve a whole process and stay until it exits, as the standard library intends.
HELPERS = {
    "multiprocessing.resource_tracker": "unlinks what a killed owner has left, so it has to outlive everything",
    "multiprocessing.forkserver": "forks each worker from a clean process; one per program",
    "loky.backend.resource_tracker": "joblib's own copy of the first",
    "parcompute.workers.start import _serve": "parcompute's own forkserver; one per program",
}


def pytest_configure(config):
    if hasattr(config, "workerinput"):  # one of several processes of pytest-xdist: what others leave is not its own
        os.setsid()


def pytest_report_header():
    return f"PARCOMPUTE_STRESS_SEED={os.environ['PARCOMPUTE_STRESS_SEED']}"


@pytest.fixture(params=START_METHODS)
def start_method(request):
    """Each way to start a worker process."""
    return request.param


@pytest.fixture(scope="module")
def browser(tmp_path_factory):
    """A Chromium without a window."""
    if not (shutil.which("chromium") and shutil.which("chromedriver")):
        pytest.skip("chromium and chromedriver are not installed")
    selenium = pytest.importorskip("selenium.webdriver")
    from selenium.webdriver.chrome.service import Service

    options = selenium.ChromeOptions()
    options.binary_location = shutil.which("chromium")
    options.set_capability("goog:loggingPrefs", {"browser": "ALL", "performance": "ALL"})
    for flag in (
        "--headless=new", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-sync",
        "--disable-background-networking", "--disable-component-update", "--disable-dev-shm-usage",
        f"--user-data-dir={tmp_path_factory.mktemp('chromium')}",
    ):  # fmt: skip
        options.add_argument(flag)
    driver = selenium.Chrome(options=options, service=Service(shutil.which("chromedriver")))
    yield driver
    driver.quit()


@pytest.fixture(scope="session", autouse=True)
def temporary_folder(tmp_path_factory):
    """Make a temp folder that is this session's own: all that appears in it was left by a test."""
    tmp_path_factory.getbasetemp()  # pytest keeps its folders for a look afterwards, so outside of this one
    folder = os.environ["TMPDIR"] = tempfile.tempdir = tempfile.mkdtemp(prefix="parcompute-tests-")
    # The last thing at exit (a low priority): the forkserver's socket lies in it until then.
    util.Finalize(None, shutil.rmtree, (folder,), {"ignore_errors": True}, exitpriority=-1000)
    return Path(folder)


@pytest.fixture(scope="session", autouse=True)
def what_was_there_at_the_start():
    """Spare the garbage collector, which many a test calls, the million objects that all tests are."""
    gc.collect()
    gc.freeze()
    yield
    gc.unfreeze()


# What may come of a kill although it should not. A failure of a test that kills is one of them: it says which by the
# attribute `fault` of what it raises, and where nothing is said, a job has not given what it was asked for.
FAULTS = ("hangs", "wrong bits", "leaks", "lost runs")


@dataclass
class Tally:
    """What a test has killed so far."""

    kind: str
    kills: int = 0


TALLY = pytest.StashKey[Tally]()
FAILED = pytest.StashKey[bool]()


@pytest.fixture
def tally(request):
    """Count what the test kills, for the summary of `make stress`."""
    return request.node.stash.setdefault(TALLY, Tally(request.node.originalname))


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item, call):
    report = yield
    item.stash[FAILED] = report.failed or item.stash.get(FAILED, False)
    if TALLY in item.stash and call.when != "setup" and item.get_closest_marker("stress"):
        tally = item.stash[TALLY]
        kills = tally.kills if call.when == "call" else 0
        report.user_properties.append(("kills", [tally.kind, kills, fault_of(call) if report.failed else ""]))
    return report


def fault_of(call):
    """Return which of `FAULTS` a failure is."""
    if call.when == "teardown":  # `nothing_left_behind`
        return "leaks"
    error = call.excinfo.value
    return getattr(error, "fault", "hangs" if str(error).startswith("Timeout") else "lost runs")


def pytest_terminal_summary(terminalreporter):
    """Say how many of each kind were killed, and what came of it."""
    reports = [report for reports in terminalreporter.stats.values() for report in reports]
    told = [value for report in reports for name, value in getattr(report, "user_properties", ()) if name == "kills"]
    if not told:
        return
    table = collections.defaultdict(collections.Counter)
    for kind, kills, fault in told:
        for row in (kind, "all"):
            table[row].update({"kills": kills, fault: 1})
    terminalreporter.section("kills")
    columns = ("kills", *FAULTS)
    terminalreporter.line(" " * 36 + "".join(f"{column:>12}" for column in columns))
    for kind in sorted(table, key=lambda kind: (kind == "all", kind)):
        terminalreporter.line(f"{kind:36}" + "".join(f"{table[kind][column]:12}" for column in columns))


@pytest.fixture(autouse=True)
def nothing_left_behind(request, temporary_folder):
    """Fail a test that leaves a process, thread, descriptor, segment or temporary file behind."""
    leases.release_kept()
    before = Belongings.now(temporary_folder)
    yield
    if request.node.stash.get(FAILED, False):
        return  # its traceback keeps what it was working on alive
    if left := what_is_left(before, temporary_folder):
        pytest.fail(f"the test left behind:\n{left}", pytrace=False)


@dataclass(frozen=True)
class Belongings:
    """What this process and its descendants have at one moment."""

    processes: frozenset[psutil.Process]
    threads: frozenset[threading.Thread]
    descriptors: frozenset[tuple[int, str]]
    segments: frozenset[str]
    files: frozenset[str]

    @classmethod
    def now(cls, folder):
        return cls(
            frozenset(p for p in descendants() if not is_helper(p)),
            frozenset(threading.enumerate()),
            frozenset(open_descriptors()),
            frozenset(name for name in entries(SHARED_MEMORY) if name.startswith(SEGMENT_PREFIXES)),
            frozenset(entries(folder)),
        )

    def __sub__(self, other):
        return Belongings(*(getattr(self, f.name) - getattr(other, f.name) for f in fields(self)))

    def __bool__(self):
        return any(getattr(self, f.name) for f in fields(self))

    def __str__(self):
        things = ((f.name, sorted(map(str, getattr(self, f.name)))) for f in fields(self))
        return "\n".join(f"    {name}: {', '.join(found)}" for name, found in things if found)


def what_is_left(before, folder):
    """Return what is new since `before` and does not go within the grace."""
    leases.release_kept()  # kept for arrays to come, within a bound, and no leak
    if not (left := Belongings.now(folder) - before):
        return left
    deadline = time.monotonic() + GRACE_S
    while True:
        gc.collect()  # what hangs in a reference cycle, as every caught exception does, goes now
        leases.release_kept()  # and what has been given back since
        if not (left := own_of(Belongings.now(folder) - before)):
            break
        if (remaining := deadline - time.monotonic()) <= 0:
            break
        # Wakes when one of them ends; a descriptor or a file gives no such signal and is looked at again.
        psutil.wait_procs(left.processes, timeout=min(remaining, 0.05))
        for thread in left.threads:
            thread.join(timeout=0.05)
        if not (left.processes or left.threads):
            threading.Event().wait(0.05)
    return left


def own_of(left):
    """Return what is left without the segments of other programs."""
    if not left.segments:
        return left
    used = inodes_used_by_others()
    foreign = frozenset(name for name in left.segments if inode_of(name) in used)
    return left - Belongings(*[frozenset()] * 3, foreign, frozenset())


def descendants():
    """Return the processes that stem from this one, orphans of killed parents included.

    An orphan keeps this one's session although who has adopted it belongs to another.
    """
    known = parents_and_sessions()
    own, (_, session) = os.getpid(), known[os.getpid()]

    def stems_from_here(pid):
        parent = known.get(pid, (0, 0))[0]
        return parent == own or (parent > 1 and stems_from_here(parent))

    def is_orphan(pid):
        parent, its_session = known[pid]
        adopted = parent <= 1 or known.get(parent, (0, session))[1] != session
        return its_session == session and adopted and pid != own

    found = set()
    for pid in known:
        if not (stems_from_here(pid) or is_orphan(pid)):
            continue
        with suppress(psutil.Error):
            found.add(psutil.Process(pid))
    return found


def parents_and_sessions():
    """Return parent and session by process id: one file each, where psutil would read several."""
    found = {}
    for name in os.listdir("/proc"):
        if name.isdecimal():
            with suppress(OSError), open(f"/proc/{name}/stat", "rb") as stat:
                _, parent, _, session = stat.read().rpartition(b")")[2].split(maxsplit=4)[:4]
                found[int(name)] = int(parent), int(session)
    return found


def is_helper(process):
    """Tell whether a process serves this whole program and stays until it exits (see `HELPERS`).

    Only a child of this process can be one: what the forkserver forks has the forkserver's command line.
    """
    with suppress(psutil.Error):
        command = " ".join(process.cmdline())
        return process.ppid() == os.getpid() and any(name in command for name in HELPERS)
    return False


def open_descriptors():
    """Return the open descriptors of this process, without the lines to its helpers."""
    lines = {resource_tracker._resource_tracker._fd, forkserver._forkserver._forkserver_alive_fd}
    if loky := sys.modules.get("joblib.externals.loky.backend.resource_tracker"):
        lines.add(loky._resource_tracker._fd)
    if start := sys.modules.get("parcompute.workers.start"):
        lines.update(start._lifeline_ends or ())
        lines.update({start._server._end.fileno()} if start._server else ())
    folder = Path("/proc/self/fd")
    for name in os.listdir(folder) if folder.exists() else ():
        if int(name) not in lines:
            with suppress(FileNotFoundError):  # the descriptor that listed the folder
                target = os.readlink(folder / name)
                # matplotlib keeps its fonts open, multiprocessing the memory of its Arrays; a Dask client opens and
                # closes connections as it likes
                if not (target.endswith(".ttf") or "/pym-" in target or (target.startswith("socket:") and has_dask())):
                    yield int(name), target


def has_dask():
    """Tell whether this program has a client of Dask."""
    distributed = sys.modules.get("distributed")
    return distributed is not None and distributed.client._get_global_client() is not None


def entries(folder):
    """Return the names of this user's entries of a folder."""
    with suppress(FileNotFoundError):
        for entry in os.scandir(folder):
            with suppress(FileNotFoundError):  # another program's, gone since
                if entry.stat(follow_symlinks=False).st_uid == os.getuid() and not is_lasting(entry):
                    yield entry.name


def is_lasting(entry):
    """Tell whether a file stays: the forkserver's socket until the end, folders of joblib and Dask if empty."""
    if entry.name == "dask-scratch-space":
        return {"global.lock", "purge.lock"}.issuperset(os.listdir(entry))
    if entry.name.startswith("joblib_memmapping_folder_"):
        return not os.listdir(entry)
    return entry.path == process.current_process()._config.get("tempdir")


def inode_of(segment):
    """Return the inode of a segment, as text; None if it is gone."""
    with suppress(FileNotFoundError):
        return str((SHARED_MEMORY / segment).stat().st_ino)
    return None


def inodes_used_by_others():
    """Return the inodes that programs which have nothing to do with these tests have mapped, under whatever name."""
    own, used = {os.getpid(), *(p.pid for p in descendants())}, {None}
    for pid in set(psutil.pids()) - own:
        with suppress(OSError):
            mappings = (line.split(maxsplit=5) for line in Path(f"/proc/{pid}/maps").read_text().splitlines())
            used.update(line[4] for line in mappings if len(line) == 6 and line[5].startswith(str(SHARED_MEMORY)))
    return used
