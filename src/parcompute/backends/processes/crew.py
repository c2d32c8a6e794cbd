"""The worker processes of an executor: start them, talk to them, notice their end, replace them."""

from __future__ import annotations

import contextlib
import functools
import math
import os
import pickle
import selectors
import signal
import sys
import time
import warnings
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from multiprocessing import process
from typing import TYPE_CHECKING, Any

from parcompute.backends.base import Options, WorkerLost
from parcompute.backends.processes.output import Output
from parcompute.jobs import modules, pickling, world
from parcompute.jobs.job import Failure
from parcompute.jobs.schedule import FileClaims, FileTokens
from parcompute.machine import blas, cgroups, signals
from parcompute.memory import segments
from parcompute.workers import start, surroundings, worker
from parcompute.workers.channel import Channel

if TYPE_CHECKING:
    from parcompute.workers.handover import Handover

# How long a worker that was asked to leave may take before it is killed.
LEAVE_S = 1.0

# So many workers in a row that end before they are ready mean that none will ever be, if there is no other. Where there
# is, it is tried again, after pauses that double.
FAILED_STARTS = 3
_PAUSES_S = 0.1, 5.0


@dataclass(eq=False)
class Member:
    """One worker process, as its parent sees it."""

    number: int
    child: start.Child
    channel: Channel
    tokens: FileTokens  # as many as it has calls that were sent ahead: whoever takes one has that call
    ready_ns: int = 0
    owes: set[int] = field(default_factory=set)  # jobs of which it has not said the end
    calls: dict[int, Any] = field(default_factory=dict)  # submitted calls that it has, the running one first
    since_s: float = 0.0  # which it has been running, as far as this process knows
    skips: bool = False  # a call that was taken back, and has not said so
    calls_left: int = sys.maxsize  # that it may be given before it must leave
    leaving: bool = False
    outputs: tuple[Output, ...] = ()  # to be brought here

    @property
    def ready(self) -> bool:
        """Whether it has said so."""
        return self.ready_ns > 0


Event = tuple[Member, tuple[Any, ...] | None]


class Crew:
    """A fixed number of worker processes, replaced one by one as they die.

    Whoever calls its methods must hold the executor's turn: nothing here is safe for two threads.
    """

    def __init__(self, options: Options) -> None:
        self.options = options
        self.claims = FileClaims(), FileClaims()  # of the job that runs, and of the one before
        self.world = world.process()  # as all workers know it, those too that will replace others
        self.members: list[Member] = []
        self._selector = selectors.DefaultSelector()
        self._failed_starts = 0  # in a row
        self._vacant: dict[int, float] = {}  # places of workers that do not start, and when to try again
        self._shown: set[int] = set()  # segments that workers have mapped for jobs
        self._oom_kills = cgroups.oom_kills()
        self.failure: Failure | None = None  # of an initializer
        self._closing = False
        self._handover: Handover | None = None
        modules.notice()
        try:
            if options.setup and options.start_method != "fork":
                from parcompute.workers.handover import Handover

                self._handover = Handover(options.setup)
            self._fill()
        except BaseException:  # Ctrl-C too must not leave half a crew
            self.kill()
            self.release()
            raise

    def _fill(self) -> None:
        """Start the workers that there are not."""
        while (number := len(self.members)) < self.options.n_workers:
            with start.undisturbed():
                self.members.append(self._start(number))

    def _start(self, number: int) -> Member:
        options = self.options
        ours, theirs = Channel.pair()
        start.hold(ours)
        environ = {**os.environ, **blas.variables(options.blas_threads)}
        settings = worker.Settings(
            worker=number * options.threads_per_worker,
            n_threads=options.threads_per_worker,
            blas_threads=options.blas_threads,
            environ=environ,
            folder=surroundings.folder(),
            authkey=bytes(process.current_process().authkey),
            path=sys.path,
            argv=sys.argv,
            cpus=self._cpus_of(number),
            setup=self._handover.handed if self._handover else None,
            world=self.world,
        )
        main = worker.main
        if options.start_method == "fork" and options.setup:
            main = functools.partial(worker.main, inherited=options.setup)
        outputs = (Output("stdout"), Output("stderr")) if options.output_here else ()
        tokens = FileTokens()
        with theirs, contextlib.ExitStack() as stack, contextlib.ExitStack() as unless_started:
            unless_started.callback(tokens.close)
            fds = [stack.enter_context(output.theirs).fileno() for output in outputs]
            fds = [theirs.fileno(), *(claims.fd for claims in self.claims), tokens.fd, *fds]
            child = start.start(options.start_method, main, fds, environ)
            unless_started.pop_all()
        member = Member(number, child, ours, tokens, calls_left=options.most_calls or sys.maxsize, outputs=outputs)
        for output in outputs:
            self._selector.register(output, selectors.EVENT_READ, member)
        with contextlib.suppress(ConnectionError):  # it has ended already: the next look will tell
            ours.send(settings)
            if self._handover is not None:
                self._handover.send_fds(ours)
        self._selector.register(ours, selectors.EVENT_READ, member)
        if child.sentinel >= 0:
            self._selector.register(child.sentinel, selectors.EVENT_READ, member)
        return member

    def _cpus_of(self, number: int) -> frozenset[int] | None:
        """Return the CPUs of a worker: all that this process may use, or cores of its own."""
        if not hasattr(os, "sched_getaffinity"):
            return None
        allowed = frozenset(os.sched_getaffinity(0))
        if not self.options.pin:
            return allowed
        from parcompute.machine import topology  # 2 ms, that most programs need not pay

        cores = topology.Topology.read(sorted(allowed)).cores
        threads = self.options.threads_per_worker
        own = [cores[i % len(cores)] for i in range(number * threads, (number + 1) * threads)]
        return frozenset(cpu for core in own for cpu in core)

    def watch(self, fd: int) -> None:
        """Return from `events` also when this descriptor is readable."""
        self._selector.register(fd, selectors.EVENT_READ, None)

    def unwatch(self, fd: int) -> None:
        """Undo `watch`."""
        self._selector.unregister(fd)

    def send(self, member: Member, *message: Any) -> None:
        """Send a message; that its reader has ended is for `events` to tell."""
        self.send_pickled(member, pickle.dumps(message))

    def send_pickled(self, member: Member, message: bytes) -> None:
        """Send a message that was pickled once for all."""
        with contextlib.suppress(ConnectionError):
            if not member.channel.closed:
                member.channel.send_pickled(message)

    def events(self, timeout: float = signals.LOOK_S) -> Iterator[Event]:
        """Wait a while, and yield each message; None in its place where a worker has ended.

        A worker that was replaced is `members[number]` from then on. Its last messages come first.

        Raises
        ------
        BrokenProcessPool
            If an initializer has failed.
        """
        signals.look()
        if self._vacant:
            timeout = min(timeout, self._try_again())
        touched: dict[Member, set[Any]] = {}
        for key, _ in self._selector.select(timeout):
            if key.data is not None:
                touched.setdefault(key.data, set()).add(key.fileobj)
        for member, news in touched.items():
            ended = member.child.sentinel in news
            self._bring(member)
            try:
                # One message, since the next look tells of another; of a worker that has ended, all.
                while (ended and member.channel.poll()) or member.channel in news:
                    news.discard(member.channel)
                    message = member.channel.recv()
                    self._bring(member, rest=message[0] in ("end", "result"))
                    if message[0] == "ready":
                        member.ready_ns = message[1]
                        self._failed_starts = 0
                    elif message[0] == "end":
                        member.owes.discard(message[1])
                    elif message[0] == "skipped":  # which nobody waits for
                        member.skips = False
                        continue
                    elif message[0] == "broken" and not self._closing:
                        self.failure = message[1]
                        self.require_unbroken()
                    yield member, message
            except (EOFError, OSError, pickle.UnpicklingError):
                ended = True  # hung up, or killed in the middle of a message
            if ended:
                member.child.kill()  # it may live on without its channel; nobody would hear it
                self.forget(member)
                yield member, None

    def _bring(self, member: Member, *, rest: bool = False) -> None:
        """Write here what a worker has printed."""
        for output in member.outputs:
            if not output.bring(rest=rest) and output in self._selector.get_map():
                self._selector.unregister(output)

    def forget(self, member: Member) -> int:
        """Stop looking at a worker that has ended, or was killed; return its exit status."""
        with signals.held():
            if not member.channel.closed:
                self._selector.unregister(member.channel)
                if member.child.sentinel >= 0:
                    self._selector.unregister(member.child.sentinel)
                member.channel.close()
                member.tokens.close()
                for output in member.outputs:
                    if output in self._selector.get_map():
                        self._selector.unregister(output)
                    output.close()
            return member.child.exitcode()

    def require_unbroken(self) -> None:
        """Raise BrokenProcessPool if an initializer has failed: no other worker will get any further."""
        if self.failure is not None:
            from parcompute.backends.broken import Broken

            raise Broken(self.failure)

    def dismiss(self, member: Member) -> None:
        """Ask a worker to leave; `events` tells when it has."""
        member.leaving = True
        self.send(member, "quit")

    def replace(self, member: Member) -> None:
        """Start a worker in the place of one that has ended; later, if one after the other ends before it is ready.

        Raises
        ------
        WorkerLost
            If none is left, or none has ever been ready.
        """
        if member.ready or self._failed_starts + 1 < FAILED_STARTS:
            self._failed_starts += not member.ready
            self._restart(member.number)
            return
        self._failed_starts += 1
        ended = f"{self._failed_starts} workers in a row ended before they were ready, the last with "
        ended += f"{ending(member.child.exitcode())}; what they printed says why"
        if not (others := self._n_alive()):
            self.kill()
            raise WorkerLost(ended, exitcodes=(member.child.exitcode(),))
        if self._failed_starts == FAILED_STARTS:
            told = f"{ended}; {others} of {len(self.members)} workers go on, and others are tried now and then"
            warnings.warn(told, stacklevel=2)
        shortest, longest = _PAUSES_S
        pause_s = min(longest, shortest * 2 ** (self._failed_starts - FAILED_STARTS))
        self._vacant[member.number] = time.monotonic() + pause_s

    def _restart(self, number: int) -> None:
        try:
            with start.undisturbed():
                self.members[number] = self._start(number)
        except OSError:  # the system starts no process now
            if not self._n_alive():
                raise
            gone = self.members[number]
            gone.ready_ns, gone.leaving = 0, False  # nothing is handed to it, and nobody waits for it
            self._vacant[number] = time.monotonic() + _PAUSES_S[1]

    def _n_alive(self) -> int:
        return sum(member.ready and not member.child.ended() for member in self.members)

    def _try_again(self) -> float:
        """Start the workers whose pause is over; return for how many seconds the next pause lasts."""
        for number in [number for number, due_s in self._vacant.items() if due_s <= time.monotonic()]:
            del self._vacant[number]
            self._restart(number)
        return max(0.0, min(self._vacant.values(), default=signals.LOOK_S) - time.monotonic()) if self._vacant else 0.0

    def out_of_memory_evidence(self) -> str:
        """Say whether the kernel has killed for want of memory in the own control groups since the start."""
        return cgroups.oom_evidence(self._oom_kills, cgroups.oom_kills()) or "no out-of-memory kill seen"

    def show(self, arrays: Iterable[Any]) -> None:
        """Note that a job shows the workers these arrays, whose mappings they keep for the next job."""
        self._shown.update(segment.inode for segment in pickling.segments_of(arrays))

    def has_shown(self, array: Any) -> bool:
        """Whether a job has shown the workers this array."""
        return all(segment.inode in self._shown for segment in pickling.segments_of((array,)))

    def let_go(self) -> None:
        """Have the workers let go of arrays that are no more."""
        gone = segments.gone(self._shown)
        self._shown -= gone
        for member in self.members:
            if member.ready and gone:
                self.send(member, "forget", gone)

    def settle(self, number: int) -> None:
        """Return when all workers have said the end of that job, and of those before it, or were replaced."""
        while any(min(member.owes, default=number + 1) <= number for member in self.members):
            for member, message in self.events():
                if message is None:
                    self.replace(member)

    def repair(self) -> None:
        """Replace the workers that ended while nobody looked."""
        self.require_unbroken()
        for member, message in self.events(0):
            if message is None:
                self.replace(member)
        self._fill()

    def starting(self) -> list[Member]:
        """Return the workers that are not ready yet."""
        return [member for member in self.members if not member.ready and member.number not in self._vacant]

    def wait_until_ready(self) -> None:
        """Return when every worker is ready."""
        self.repair()
        while self.starting():
            for member, message in self.events():
                if message is None:
                    self.replace(member)

    def leave(self) -> None:
        """Ask all workers to leave, and wait until they have."""
        self._closing = True
        for member in self.members:
            self.dismiss(member)
        # What a worker has made may take long to close.
        deadline = math.inf if self.options.setup.state else time.monotonic() + LEAVE_S
        staying = [member for member in self.members if not member.channel.closed]
        while staying and (left := deadline - time.monotonic()) > 0:
            for member, message in self.events(min(left, signals.LOOK_S)):
                if message is None:
                    staying.remove(member)
        for member in staying:
            member.child.kill()
            self.forget(member)
        self.members = []

    def kill(self) -> None:
        """End all workers now, whatever they are doing; `repair` starts new ones."""
        with signals.held():  # a second Ctrl-C must not leave half of them
            for member in self.members:
                member.child.kill()
            for member in self.members:
                self.forget(member)
            self.members = []
            self._vacant.clear()

    def release(self) -> None:
        """Let go of the descriptors; the crew is of no use after that."""
        self._selector.close()
        for claims in self.claims:
            claims.close()
        if self._handover is not None:
            self._handover.close()


def ending(exitcode: int) -> str:
    """Say how a process ended.

    Examples
    --------
    >>> ending(-9), ending(3)
    ('signal 9 (SIGKILL)', 'exit status 3')
    """
    if exitcode >= 0:
        return f"exit status {exitcode}"
    try:
        name = signal.Signals(-exitcode).name
    except ValueError:
        name = "unnamed"
    return f"signal {-exitcode} ({name})"
