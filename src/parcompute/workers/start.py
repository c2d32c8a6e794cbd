"""Start a worker process by fork, forkserver or spawn, and know when and how it ended.

                 fork ────────────────────────────► worker      a copy of this process
    this process spawn ──── new interpreter ───────► worker
                 forkserver ── new interpreter, kept ─ fork ──► worker     numpy is loaded already

The standard library's three methods under their own names, started without `multiprocessing`: the user's main module is
not run again in the worker, the environment is the one of now, and a worker cannot outlive its parent. That is the
lifeline: a pipe whose write end only this process holds. Each worker asks the kernel to send it SIGKILL when the pipe
hangs up, which works while C code holds the interpreter and needs no thread.
"""

from __future__ import annotations

import atexit
import contextlib
import importlib
import os
import select
import signal
import socket
import sys
import threading
import traceback
import weakref
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from parcompute.machine import blas, signals
from parcompute.machine.batch import deadline
from parcompute.workers import exits, lifeline, surroundings

METHODS = ("fork", "forkserver", "spawn")

# Loaded once in the server, so that each of its workers starts in milliseconds. When it has been idle for so many
# seconds, also what takes half as long again and not every kernel uses.
_PRELOAD = ("numpy", "cloudpickle", "threadpoolctl", "parcompute.workers.worker")
_LOADED_IDLE, _IDLE_S = "numpy.random", 0.2


@dataclass(eq=False)
class Child:
    """A process that was started here.

    Attributes
    ----------
    pid : int
        Its process id; certain to be its own until `exitcode` has returned.
    sentinel : int
        A descriptor that becomes readable when the process has ended; -1 where the system has none.
    peak_bytes : int
        The most memory that it had resident; known when `exitcode` has returned.
    """

    pid: int
    sentinel: int
    peak_bytes: int = 0
    _server: _Server | None = None
    _exitcode: int | None = None

    def kill(self) -> None:
        """Send SIGKILL, if it still runs."""
        if self._exitcode is not None:
            return
        # Refused if this process has another user id by now: then it leaves when its channel closes, after its block.
        with contextlib.suppress(ProcessLookupError, PermissionError):
            if self.sentinel >= 0:  # of this process for certain, also if the forkserver has died and left it to init
                signal.pidfd_send_signal(self.sentinel, signal.SIGKILL)
            else:
                os.kill(self.pid, signal.SIGKILL)

    def exitcode(self) -> int:
        """Wait for its end; return its exit status, or minus the number of the signal that ended it.

        Unknown, because someone else has collected it, is 255, as in the standard library.
        """
        if self._exitcode is None:
            if self.sentinel >= 0:
                select.select([self.sentinel], [], [])
            wait = _wait if self._server is None else self._server.wait
            self._exitcode, self.peak_bytes = wait(self.pid)
            if self.sentinel >= 0:
                os.close(self.sentinel)
                self.sentinel = -1
        return self._exitcode

    def ended(self) -> bool:
        """Tell whether it has ended, without waiting."""
        if self._exitcode is not None:
            return True
        return self.sentinel >= 0 and bool(select.select([self.sentinel], [], [], 0)[0])


def start(
    method: str, target: Callable[..., None], fds: Sequence[int], environ: Mapping[str, str] | None = None
) -> Child:
    """Start a process that calls ``target(*descriptors)`` and ends.

    Parameters
    ----------
    method : {"fork", "forkserver", "spawn"}
        How.
    target : function
        Of a module; it receives its own copies of the descriptors.
    fds : sequence of int
        Descriptors that the process gets. It gets no others but the standard streams and, under
        ``fork``, what this process has open.
    environ : mapping of str, optional
        Environment of a new interpreter (``spawn``); None is this process's.

    Raises
    ------
    OSError
        If the system starts no further process.
    """
    with undisturbed():
        fds = [*fds, _lifeline()]
        if method == "fork":
            for stream in (sys.stdout, sys.stderr):
                if stream is not None:
                    stream.flush()
            blas.find()
            pid = os.fork()
            if pid == 0:
                exits.forget()
                _run(target, fds)
            return Child(pid, _pidfd(pid))
        if method == "spawn":
            pid = _interpreter(f"{__name__}:_main", f"{target.__module__}:{target.__name__}", fds, environ)
            return Child(pid, _pidfd(pid))
        return _fork_by_server(target, fds)


def hold(end: Any) -> None:
    """Close `end` in every process that is forked from this one from now on.

    Whoever forks this process, a worker included, would otherwise keep the parent's ends of pipes
    open, and nobody could notice that the parent has gone.
    """
    _held.add(end)


def in_worker() -> bool:
    """Tell whether this process was started here, by another one."""
    return _in_worker


@atexit.register
def stop_server() -> None:
    """End the server of the method "forkserver", if it runs; the next start makes a new one."""
    global _server
    with _server_lock:
        if _server is not None:
            _server.stop()
            _server = None


# --- in the parent -----------------------------------------------------------------------------------------

_held: weakref.WeakSet[Any] = weakref.WeakSet()
_in_worker = False
_lifeline_ends: tuple[int, int] | None = None
_server: _Server | None = None
_server_lock = threading.RLock()
_starting = threading.RLock()


def _lifeline() -> int:
    global _lifeline_ends
    if _lifeline_ends is None:
        _lifeline_ends = os.pipe()
    return _lifeline_ends[0]


def _after_fork_in_child() -> None:
    global _lifeline_ends, _server, _server_lock, _starting
    if _lifeline_ends is not None:
        os.close(_lifeline_ends[1])
        _lifeline_ends = None
    for end in list(_held):
        end.close()
    _held.clear()
    _server, _server_lock, _starting = None, threading.RLock(), threading.RLock()


os.register_at_fork(after_in_child=_after_fork_in_child)


@contextlib.contextmanager
def undisturbed() -> Iterator[None]:
    """Start processes one at a time, and with Ctrl-C held back.

    One that another thread forks meanwhile would inherit the channel for this one, and keep it open when it has died.
    """
    with _starting, signals.held():
        yield


def _pidfd(pid: int) -> int:
    try:
        return os.pidfd_open(pid)
    except (AttributeError, OSError):  # macOS, Linux before 5.3, sandboxes: the channel's hang-up must do
        return -1


def _wait(pid: int) -> tuple[int, int]:
    """Return exit status and peak memory in bytes of a child of this process."""
    try:
        _, status, usage = os.wait4(pid, 0)
    except ChildProcessError:
        return 255, 0
    unit = 1 if sys.platform == "darwin" else 1024
    return os.waitstatus_to_exitcode(status), usage.ru_maxrss * unit


def _interpreter(main: str, target: str, fds: Sequence[int], environ: Mapping[str, str] | None) -> int:
    import subprocess  # 3 ms, as json below: no worker needs them

    module, function = main.split(":")
    program = (
        f"import sys; sys.path[:] = {sys.path!r}; sys.argv[:] = {sys.argv!r}; "
        f"from {module} import {function}; {function}({target!r}, {list(fds)!r})"
    )
    # The options of this interpreter (-W, -X, -E ...), as multiprocessing hands them on.
    options = subprocess._args_from_interpreter_flags()  # type: ignore[attr-defined]
    command = [sys.executable, *options, "-c", program]
    if threading.get_ident() != threading.main_thread().ident:
        return _popen(command, fds, environ)
    from concurrent.futures import ThreadPoolExecutor

    # What a new interpreter inherits is the mask, and that of the main thread stays open.
    with ThreadPoolExecutor(1) as other:
        return other.submit(_popen, command, fds, environ).result()


def _popen(command: Sequence[str], fds: Sequence[int], environ: Mapping[str, str] | None) -> int:
    import subprocess

    environ = os.environ if environ is None else environ
    with signals.masked():
        process = subprocess.Popen(command, pass_fds=fds, env={**environ, **surroundings.hash_seed(environ)})
    process.returncode = 0  # so that Popen leaves the status to Child
    return process.pid


class _Server:
    """The parent's end of the forkserver: one question, one answer, under a lock.

    They are numbered, since an exception in a signal handler may have taken the one who asked away.
    """

    def __init__(self) -> None:
        self._end, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        hold(self._end)
        # The libraries that the server loads must not start threads before it forks.
        one_thread = dict.fromkeys(("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"), "1")
        with theirs:
            self._pid = _interpreter(
                f"{__name__}:_serve", ",".join(_PRELOAD), [theirs.fileno(), _lifeline()], {**os.environ, **one_thread}
            )
        self._lock = threading.Lock()
        self._n_questions = 0

    def fork(self, target: Callable[..., None], fds: Sequence[int]) -> Child:
        pid, pidfds = self._ask({"target": f"{target.__module__}:{target.__name__}"}, fds)
        if pid < 0:
            raise OSError(-pid, os.strerror(-pid))
        return Child(pid, pidfds[0] if pidfds else -1, _server=self)

    def wait(self, pid: int) -> tuple[int, int]:
        try:
            exitcode, peak_bytes = self._ask({"wait": pid})[0]
        except OSError:  # the server has gone, and with it the status
            return 255, 0
        return exitcode, peak_bytes

    def _ask(self, question: dict[str, Any], fds: Sequence[int] = ()) -> tuple[Any, list[int]]:
        import json

        with self._lock, signals.held():
            self._n_questions += 1
            numbered = json.dumps({**question, "number": self._n_questions}).encode()
            socket.send_fds(self._end, [numbered], list(fds))
            while True:
                answer, passed, _, _ = socket.recv_fds(self._end, 4096, 1)
                if not answer:
                    raise ConnectionError("the forkserver has ended")
                number, value = json.loads(answer)
                if number == self._n_questions:
                    return value, passed
                for fd in passed:
                    os.close(fd)

    def stop(self) -> None:
        self._end.close()
        _wait(self._pid)


def begin_server() -> _Server:
    """Start the server of "forkserver", if it does not run: it loads its modules while the caller goes on."""
    global _server
    with undisturbed(), _server_lock:
        _server = _server or _Server()
        return _server


def _fork_by_server(target: Callable[..., None], fds: Sequence[int]) -> Child:
    """Ask the one server of this process; start it first, or again if something has killed it, twice at most."""
    with _server_lock:
        for _ in range(2):
            with contextlib.suppress(ConnectionError):
                return begin_server().fork(target, fds)
            stop_server()
        return begin_server().fork(target, fds)


# --- in the server -----------------------------------------------------------------------------------------


def _serve(preload: str, fds: list[int]) -> None:
    """Fork whenever asked, tell who and how it ended; leave when the parent does."""
    import json

    signal.signal(signal.SIGINT, signal.SIG_IGN)
    for module in preload.split(","):
        importlib.import_module(module)
    blas.find()
    end = socket.socket(fileno=fds[0])
    os.close(fds[1])
    answered = False
    while True:
        if answered and _LOADED_IDLE not in sys.modules and not select.select([end], [], [], _IDLE_S)[0]:
            importlib.import_module(_LOADED_IDLE)
            blas.find()
        question: bytes = b""
        passed: list[int] = []
        with contextlib.suppress(ConnectionError):  # the parent has gone, without taking the last answer
            question, passed, _, _ = socket.recv_fds(end, 65536, 16)
        if not question:
            os._exit(0)
        asked = json.loads(question)
        if "wait" in asked:
            _answer(end, asked, _wait(asked["wait"]))
            continue
        try:
            pid = os.fork()
        except OSError as error:
            pid = -(error.errno or 1)
        if pid == 0:
            end.close()
            exits.forget()
            _main(asked["target"], passed)
        for fd in passed:
            os.close(fd)
        pidfd = _pidfd(pid)
        _answer(end, asked, pid, [pidfd] if pidfd >= 0 else ())
        if pidfd >= 0:
            os.close(pidfd)
        answered = True


def _answer(end: socket.socket, asked: dict[str, Any], value: Any, fds: Sequence[int] = ()) -> None:
    import json

    with contextlib.suppress(ConnectionError):  # the parent has gone: the next question will be the end
        socket.send_fds(end, [json.dumps([asked["number"], value]).encode()], fds)


# --- in the new process ------------------------------------------------------------------------------------


def _main(target: str, fds: list[int]) -> None:
    module, function = target.split(":")
    _run(getattr(importlib.import_module(module), function), fds)


def _run(target: Callable[..., None], fds: Sequence[int]) -> None:
    """Call the target and leave, whatever happens: nothing of the parent's stack may run here."""
    global _in_worker
    code, _in_worker = 1, True
    try:
        signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C reaches the whole foreground group: the parent decides
        deadline.settle()
        signal.set_wakeup_fd(-1)
        signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGINT})
        *own, pipe = fds
        lifeline.die_with_parent(pipe)
        sys.stdin = open(os.devnull)  # noqa: SIM115 (open for the life of the process; two readers of a terminal are none)
        target(*own)
        code = 0
    except SystemExit as left:
        code = left.code if isinstance(left.code, int) else 1
    except BaseException:
        traceback.print_exc()
    finally:
        exits.flush()
        os._exit(code)
