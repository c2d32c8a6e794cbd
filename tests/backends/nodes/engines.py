"""What connects the hosts of the tests: a Dask cluster or MPI, and programs on n1 that compute with it."""

import contextlib
import itertools
import os
import pickle
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
from pathlib import Path

import cloudpickle
import psutil

SOURCES = Path(__file__).parents[3] / "src"
PROGRAM = Path(__file__).with_name("program.py")

# Hydra's, by whose options a host is entered.
MPIEXEC = shutil.which("mpiexec", path=f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}")

# A program that has not ended by then hangs. The machine may be busy with other work.
HANGS_S = 120.0

# How long resource trackers may take to remove what the killed have left.
GONE_S = 5.0


class Here:
    """This machine, as so many hosts that have everything in common; what needs no hosts needs no root."""

    mpiexec_options = ("-n", "2")

    def __init__(self, n):
        self.names = [f"n{number}" for number in range(1, n + 1)]
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            self.port = free.getsockname()[1]

    def address(self, name):
        """Return the address of a host."""
        return "127.0.0.1"

    def start(self, name, *command, **options):
        """Start a command on a host."""
        return subprocess.Popen(command, text=True, **options)


class Program:
    """A function that runs as a program of its own."""

    def __init__(self, hosts, command, function, args=()):
        self.folder = Path(tempfile.mkdtemp(prefix="program-"))
        (self.folder / "asked").write_bytes(cloudpickle.dumps((function, args)))
        self._output = open(self.folder / "output", "w+")  # noqa: SIM115  # closed by `end`
        self.process = hosts.start(
            "n1", *command, str(PROGRAM), str(self.folder), stdin=subprocess.DEVNULL,
            stdout=self._output, stderr=subprocess.STDOUT,
            env=environment(DASK_TEMPORARY_DIRECTORY=str(self.folder)), start_new_session=True,
        )  # fmt: skip

    def answer(self, timeout_s=HANGS_S):
        """Return what the function has returned, or raise what it has raised."""
        try:
            code = self.process.wait(timeout_s)
            output = self.output()
            try:
                returned, value = pickle.loads((self.folder / "answer").read_bytes())
            except FileNotFoundError:
                raise RuntimeError(f"the program ended with {code} and no answer:\n{output}") from None
            if not returned:
                value.output = output
                raise value
            assert code == 0, output
            return value
        finally:
            self.end()

    def output(self):
        """Return what it has printed so far."""
        return (self.folder / "output").read_text()

    def end(self):
        """End it, if it has not ended."""
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self.process.pid, signal.SIGKILL)
        self.process.wait()
        self._output.close()
        shutil.rmtree(self.folder, ignore_errors=True)


def environment(**more):
    """Return the environment of programs on hosts."""
    return {**os.environ, "PYTHONPATH": str(SOURCES), "PYTHONWARNINGS": "error", **more}


def kill_group(leader):
    """Kill a group of processes, but first let resource trackers remove the semaphores of those that they outlive."""
    trackers = []
    for process in psutil.process_iter():
        with contextlib.suppress(ProcessLookupError, psutil.Error):
            if os.getpgid(process.pid) == leader:
                if "resource_tracker" in " ".join(process.cmdline()):
                    trackers.append(process)
                else:
                    process.kill()
    psutil.wait_procs(trackers, GONE_S)
    with contextlib.suppress(ProcessLookupError):
        os.killpg(leader, signal.SIGKILL)


_n_clusters = itertools.count()


class OnDask:
    """A scheduler on n1, and a worker process with its nanny on each host.

    `ahead` says by how many seconds the monotonic clock of a host is ahead.
    """

    name = "dask"

    def __init__(self, hosts, nthreads=2, ahead=None):
        self.hosts, self.nthreads = hosts, nthreads
        self.folder = Path(tempfile.mkdtemp(prefix="dask-"))
        self.port = hosts.port + 10 * next(
            _n_clusters
        )  # of one that has just ended, workers may still be looking for it
        self.cluster = f"tcp://{hosts.address('n1')}:{self.port}"
        self.options = {"backend": "dask", "cluster": self.cluster}
        self.processes = {}
        self.scheduler = self.begin_scheduler()
        for name in hosts.names:
            clock = ("unshare", "--time", "--monotonic", str(ahead[name]), "--fork") if name in (ahead or {}) else ()
            self.add_worker(name, before=clock)
        self.run(complete, len(hosts.names))

    def begin_scheduler(self):
        """Start the scheduler."""
        where = ("--host", self.hosts.address("n1"), "--port", str(self.port))
        return self._start("n1", "scheduler", *where, "--no-dashboard", "--no-show")

    def add_worker(self, host, name=None, before=()):
        """Start a worker on a host; it is there some time later."""
        name = name or host
        options = (
            "--nthreads",
            str(self.nthreads),
            "--no-dashboard",
            "--host",
            self.hosts.address(host),
            "--name",
            name,
        )
        self.processes[name] = self._start(
            host, "worker", self.cluster, *options, "--local-directory", str(self.folder / name), before=before
        )

    def _start(self, host, kind, *arguments, before=()):
        with open(self.folder / f"{kind}-{host}.log", "a") as log:
            return self.hosts.start(
                host, *before, sys.executable, "-m", "dask", kind, *arguments, stdin=subprocess.DEVNULL,
                stdout=log, stderr=subprocess.STDOUT,
                env=environment(PYTHONWARNINGS="", DASK_TEMPORARY_DIRECTORY=str(self.folder)), start_new_session=True,
            )  # fmt: skip

    def start(self, function, *args):
        """Start a program on n1; its function is given the options of an executor, then the arguments."""
        return Program(self.hosts, [sys.executable], function, (self.options, *args))

    def run(self, function, *args):
        """Return what a program on n1 returns."""
        return self.start(function, *args).answer()

    def logs(self):
        """Return what the scheduler and the workers have printed."""
        return "\n".join(f"{log.name}:\n{log.read_text()}" for log in sorted(self.folder.glob("*.log")))

    def close(self):
        """End it."""
        for process in [*self.processes.values(), self.scheduler]:
            kill_group(process.pid)
            process.wait()
        shutil.rmtree(self.folder, ignore_errors=True)


def complete(options, n_workers):
    """Wait until a cluster has so many workers, and one node has been opened on each."""
    import distributed

    import parcompute as pc

    with distributed.Client(options["cluster"], timeout=60) as client:
        client.wait_for_workers(n_workers, timeout=60)
        with pc.Executor(1, **{**options, "cluster": client}) as executor:
            assert executor.submit(len, ()).result() == 0


class OnMPI:
    """A rank on each host, started anew with each program."""

    name = "mpi"
    options = {"backend": "mpi"}  # noqa: RUF012

    def __init__(self, hosts):
        self.hosts = hosts

    def start(self, function, *args):
        """Start a program on n1, with a rank on each host; its function is given what `OnDask.start` gives it."""
        command = [MPIEXEC, *self.hosts.mpiexec_options, sys.executable, "-m", "parcompute.mpi"]
        return Program(self.hosts, command, function, (self.options, *args))

    def run(self, function, *args):
        """Return what a program on n1 returns."""
        return self.start(function, *args).answer()

    def close(self):
        """Nothing is left of a program that has ended."""
