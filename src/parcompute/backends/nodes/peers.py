"""The nodes of an executor as its caller sees them: what each has, what it owes, and how its clock runs."""

from __future__ import annotations

import collections
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any, Protocol

import numpy.typing as npt

from parcompute.backends.base import Call, WorkerLost
from parcompute.backends.nodes import wire
from parcompute.jobs.job import Failure
from parcompute.values.nodes import Node

# Two clocks that are set by the same time server run apart by less than this, in seconds per second.
DRIFT = 1e-4

# So long is waited for others if all nodes are gone.
NOBODY_S = 10.0

# So many looks at a clock are remembered.
_LOOKS = 64


class Engine(Protocol):
    """What connects the nodes. Nodes are known by numbers that it gives them, and never gives again."""

    def open(self, heard: Callable[[int, wire.Message | None], None]) -> None:
        """Connect.

        For each node that is there, or comes later, ``heard(number, ("joined",))`` is called, then
        ``heard(number, message)`` with each message, and ``heard(number, None)`` when it is gone: from any thread, and
        it returns at once.
        """

    def send(self, number: int, message: wire.Message) -> None:
        """Send a message, in the order of the calls; that a node is gone is for `heard` to tell."""

    def look(self) -> None:
        """Find out who has come, and say that this caller is there; called each second."""

    def why_nobody(self) -> str:
        """Return in words why there is no node."""

    def close(self) -> None:
        """Disconnect; the nodes have been asked to quit."""


class Absence:
    """How long there has been nobody.

    If all nodes are gone, others may come: Dask starts a worker again that was killed.
    """

    def __init__(self, engine: Engine) -> None:
        self._engine = engine
        self._since_s: float | None = None

    def too_long(self, somebody: object) -> WorkerLost | None:
        """Return what to raise if there has been nobody for too long, at all looks, of which this is one."""
        now_s = time.monotonic()
        self._since_s = None if somebody else self._since_s or now_s
        if self._since_s is None or now_s - self._since_s <= NOBODY_S:
            return None
        return WorkerLost(f"no node is left, and none has come within {NOBODY_S:.0f} s: {self._engine.why_nobody()}")


class Clock:
    """The clock of a node, as far as questions and answers tell."""

    def __init__(self) -> None:
        self._looks: collections.deque[tuple[int, int, int]] = collections.deque(maxlen=_LOOKS)

    def note(self, asked_ns: int, theirs_ns: int, answered_ns: int) -> None:
        """Take note of an answer: between the two stamps here, it was that time there."""
        middle_ns = (asked_ns + answered_ns) // 2
        self._looks.append((middle_ns, middle_ns - theirs_ns, -(-(answered_ns - asked_ns) // 2)))

    def offset(self, at_ns: int) -> tuple[int, int]:
        """Return what to add to a stamp of about this time (here), and what the error of that is at most."""
        looks = list(self._looks)  # another thread notes more
        if not looks:
            return 0, 0
        bounds = [(half_ns + int(DRIFT * abs(at_ns - when_ns)), offset_ns) for when_ns, offset_ns, half_ns in looks]
        bound_ns, offset_ns = min(bounds)
        return offset_ns, bound_ns

    @property
    def round_trip_ns(self) -> int:
        """The shortest way there and back."""
        return 2 * min((half_ns for _, _, half_ns in list(self._looks)), default=0)


@dataclass(eq=False)
class Underway:
    """A submitted call on its way."""

    call: Call
    pickled: bytes
    needed: dict[bytes, npt.NDArray[Any]]
    told: bytes | None
    deaths: int = 0
    running: bool = False

    def begin(self) -> bool:
        """Tell whether it may be handed out, now or again."""
        self.running = self.running or self.call.future.set_running_or_notify_cancel()
        return self.running


@dataclass(eq=False)
class Peer:
    """A node, as its caller sees it."""

    number: int
    engine: Engine
    node: Node | None = None  # when it has said so
    pids: tuple[int, ...] = ()
    ready_ns: int = 0  # on its clock
    asked: int = 0  # how often it has been asked whether its workers are ready, and has not answered
    clock: Clock = field(default_factory=Clock)
    has: set[bytes] = field(default_factory=set)  # the arrays, by digest
    calls: dict[int, Underway] = field(default_factory=dict)  # that it has not answered
    last_rate: tuple[bytes, float] = b"", 0.0  # of its workers in the last job, pickled, in blocks per second
    gone: bool = False

    def send(self, *message: Any) -> None:
        """Send a message."""
        if not self.gone:
            self.engine.send(self.number, message)

    def ping(self) -> None:
        """Ask for the time."""
        self.send("ping", time.perf_counter_ns())

    def supply(self, arrays: Mapping[bytes, npt.NDArray[Any]]) -> None:
        """Send the arrays that it has not been sent."""
        for digest, array in arrays.items():
            if digest not in self.has:
                self.has.add(digest)
                content = wire.as_bytes(array)
                self.send("array", digest, content, array.shape, array.dtype, wire.is_fortran(array))

    def drop(self, digests: set[bytes]) -> None:
        """Have it forget arrays."""
        if known := digests & self.has:
            self.has -= known
            self.send("drop", list(known))

    def described(self) -> Node:
        """Return what is known of it."""
        assert self.node is not None
        offset_ns, bound_ns = self.clock.offset(time.perf_counter_ns())
        return replace(self.node, offset_ns=offset_ns, bound_ns=bound_ns)


@dataclass(eq=False)
class Said:
    """What nodes have said against being used."""

    refused: list[str] = field(default_factory=list)
    broken: Failure | None = None
