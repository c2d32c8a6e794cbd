"""Nodes under MPI: each rank is one, rank 0 runs the script as well.

    mpiexec -n 4 python -m parcompute.mpi script.py

    rank 0   script ── verbs ──► Nodes ──► Post ═══ MPI ═══ Post ──► Server ──► crew     ranks 1, 2, 3
                                   └─────► Local ──► Server ──► crew

A rank has one thread that calls MPI, whatever the number of threads that have something to send: any MPI will do that
is not confined to the main thread. It asks for messages again and again, with pauses, since an MPI that waits by itself
keeps a CPU busy meanwhile.
"""

from __future__ import annotations

import atexit
import collections
import os
import threading
import time
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from parcompute.backends.base import Options
from parcompute.backends.nodes import wire
from parcompute.backends.nodes.local import Local
from parcompute.backends.nodes.nodes import Nodes
from parcompute.backends.nodes.server import Server
from parcompute.machine.batch import deadline

# The most bytes of one MPI message: many count in 32 bits.
_PIECE_BYTES = 2**30

# A pause between two looks for messages is such a part of the time since the last one, within these bounds: a look
# takes 20 µs of a CPU that a worker may compute on.
_PART, _SHORT_S, _LONG_S = 8, 1e-4, 1e-3

_HEAD, _BUFFER = 1, 2


class Post:
    """Sends and receives the messages of one rank, in a thread of its own.

    Parameters
    ----------
    heard : callable
        Called with the rank of the sender and each message, in that thread.
    """

    def __init__(self, comm: Any, heard: Callable[[int, wire.Message], None]) -> None:
        from mpi4py import MPI

        self._mpi, self._comm, self._heard = MPI, comm, heard
        self._waiting: collections.deque[tuple[int, wire.Message]] = collections.deque()
        self._news = threading.Event()
        self._sending: list[tuple[Any, Any]] = []
        self._closing = False
        self._thread = threading.Thread(target=self._run, name="parcompute-mpi", daemon=True)
        self._thread.start()

    def send(self, rank: int, message: wire.Message) -> None:
        """Send a message, some time."""
        self._waiting.append((rank, message))
        self._news.set()

    def close(self) -> None:
        """Send what waits, and end."""
        self._closing = True
        self._news.set()
        if self._thread is not threading.current_thread():
            self._thread.join()

    def _run(self) -> None:
        try:
            self._move()
        except BaseException:  # without this thread all ranks would wait for each other for ever
            traceback.print_exc()
            self._comm.Abort(1)

    def _move(self) -> None:
        last_s = time.perf_counter()
        while True:
            moved = self._send_all() | self._receive()
            now_s = time.perf_counter()
            if moved:
                last_s = now_s
                continue
            if self._closing and not self._waiting and not self._sending:
                return
            idle_s = now_s - last_s
            if self._sending:  # an MPI moves a piece with each look
                time.sleep(0)
            else:
                self._news.wait(min(max(_SHORT_S, idle_s / _PART), _LONG_S))
                self._news.clear()

    def _send_all(self) -> bool:
        moved = False
        while self._waiting:
            rank, message = self._waiting.popleft()
            head, buffers = wire.pack(message)
            views = [np.frombuffer(buffer, np.uint8) for buffer in buffers]
            framed = np.frombuffer(wire.framed(head, [len(view) for view in views]), np.uint8)
            requests = [self._comm.Isend([framed, len(framed), self._mpi.BYTE], rank, _HEAD)]
            for view in views:
                for at in range(0, len(view), _PIECE_BYTES):
                    piece = view[at : at + _PIECE_BYTES]
                    requests.append(self._comm.Isend([piece, len(piece), self._mpi.BYTE], rank, _BUFFER))
            self._sending.append((requests, (framed, views)))
            moved = True
        for one in list(self._sending):
            if all([request.Test() for request in one[0]]):
                self._sending.remove(one)
                moved = True
        return moved

    def _receive(self) -> bool:
        status = self._mpi.Status()
        found = self._comm.Improbe(self._mpi.ANY_SOURCE, _HEAD, status)
        if found is None:
            return False
        rank = status.Get_source()
        framed = np.empty(status.Get_count(self._mpi.BYTE), np.uint8)
        found.Recv([framed, len(framed), self._mpi.BYTE])
        head, sizes = wire.unframed(framed.tobytes())
        buffers = [np.empty(size, np.uint8) for size in sizes]
        requests = [
            self._comm.Irecv([piece, len(piece), self._mpi.BYTE], rank, _BUFFER)
            for buffer in buffers
            for piece in (buffer[at : at + _PIECE_BYTES] for at in range(0, len(buffer), _PIECE_BYTES))
        ]
        while requests:  # what this rank sends meanwhile goes on, or two that send to each other would wait for ever
            requests = [request for request in requests if not request.Test()]
            if requests:
                self._send_all()
        self._heard(rank, wire.unpack(head, buffers))
        return True


class _Ranks:
    """The engine: rank 0 here, the others over MPI."""

    def __init__(self, n_nodes: int | None) -> None:
        world = _world()
        self._size = world.Get_size()
        if world.Get_rank() != 0:
            raise RuntimeError(
                "backend='mpi' is for the script of rank 0: mpiexec -n N python -m parcompute.mpi script.py"
            )
        if self._size > 1 and not _served:
            raise RuntimeError(
                f"this program is one of {self._size} MPI ranks, and the others do not serve: start it by "
                "mpiexec -n N python -m parcompute.mpi script.py"
            )
        if n_nodes is not None and n_nodes > self._size:
            raise ValueError(f"nodes={n_nodes}, but MPI has {self._size} ranks; start more by mpiexec -n {n_nodes}")
        self._n_nodes = n_nodes or self._size

    def open(self, heard: Callable[[int, wire.Message | None], None]) -> None:
        """Have a node in each rank."""
        self._local = Local(0, heard, shares(_places())[0])
        heard(0, ("joined",))
        if self._n_nodes > 1:
            self._executor = _served[0].listen(heard)
            for rank in range(1, self._n_nodes):
                heard(rank, ("joined",))

    def send(self, number: int, message: wire.Message) -> None:
        """Send a message."""
        if number == 0:
            self._local.send(message)
        else:
            _served[0].post.send(number, (self._executor, message))

    def look(self) -> None:
        """Nothing: ranks neither come nor go."""

    def why_nobody(self) -> str:
        """All ranks end with one of them."""
        return "its rank has ended"

    def close(self) -> None:
        """Let go of the ranks, which go on to serve others."""
        self._local.close()
        if self._n_nodes > 1:
            _served[0].quiet(self._executor)


class MPI(Nodes):
    """Nodes under MPI."""

    def __init__(self, options: Options) -> None:
        super().__init__(options, _Ranks(options.n_nodes))


def _world() -> Any:
    try:
        from mpi4py import MPI
    except ImportError as error:
        raise ImportError(
            "backend='mpi' needs mpi4py and an MPI: pip install 'parcompute[mpi]' mpich (or the MPI of your cluster)"
        ) from error
    except RuntimeError as error:  # mpi4py is there, and no library of an MPI
        raise ImportError(
            f"mpi4py finds no MPI: {error}; pip install mpich, or load the module of your cluster"
        ) from error
    return MPI.COMM_WORLD


# --- the ranks ---------------------------------------------------------------------------------------------


def _place() -> tuple[str, tuple[int, ...]]:
    """Return what this rank has of which host: other ranks may have the same CPUs."""
    from parcompute.machine import procfs

    cpus = tuple(sorted(os.sched_getaffinity(0)))
    return f"{os.uname().nodename} {procfs.text(Path('/proc/sys/kernel/random/boot_id'))}", cpus


_all_places: list[tuple[str, tuple[int, ...]]] = []


def _places() -> list[tuple[str, tuple[int, ...]]]:
    return _all_places or [_place()]


def shares(places: list[tuple[str, tuple[int, ...]]]) -> list[int]:
    """Return how many CPUs each rank is to use: those of ranks that may use the same ones are divided among them.

    Examples
    --------
    >>> shares([("n1", (0, 1)), ("n1", (0, 1)), ("n2", (0, 1, 2))])
    [1, 1, 3]
    """
    from parcompute.machine import limits

    usable = limits.usable_cpus()
    found = []
    for rank, (host, cpus) in enumerate(places):
        same = [other for other, place in enumerate(places) if place == (host, cpus)]
        n_cpus = min(len(cpus), usable) if places[0] == (host, cpus) else len(cpus)
        share, rest = divmod(n_cpus, len(same))
        found.append(max(1, share + (same.index(rank) < rest)))
    return found


class Service:
    """What rank 0 has of the others while its script runs."""

    def __init__(self) -> None:
        self._heard: dict[int, Callable[[int, wire.Message | None], None]] = {}  # by executor
        self._n = 0
        self.post = Post(_world(), self._hear)

    def listen(self, heard: Callable[[int, wire.Message | None], None]) -> int:
        """Have an executor hear the ranks; return its number."""
        self._n += 1
        self._heard[self._n] = heard
        return self._n

    def quiet(self, executor: int) -> None:
        """Have an executor hear nothing any more."""
        del self._heard[executor]

    def _hear(self, rank: int, message: wire.Message) -> None:
        executor, said = message
        if (heard := self._heard.get(executor)) is not None:
            heard(rank, said)

    def close(self) -> None:
        """Let all ranks end."""
        for rank in range(1, _world().Get_size()):
            self.post.send(rank, (0, ("end",)))
        self.post.close()


_served: list[Service] = []


def gather() -> list[int]:
    """Tell all ranks of each other's places; return how many CPUs each is to use. Each rank must call it, first."""
    _all_places[:] = _world().allgather(_place())
    return shares(_all_places)


def serve() -> None:
    """Serve rank 0 until its script has ended: what the other ranks do."""
    deadline.settle()  # the time of a batch job is for rank 0 to heed
    world = _world()
    n_cpus = gather()[world.Get_rank()]
    over = threading.Event()
    servers: dict[int, Server] = {}  # by executor

    def heard(_: int, message: wire.Message) -> None:
        executor, said = message
        if said[0] == "end":
            over.set()
            return
        if said[0] == "hello":
            for number in [number for number, server in servers.items() if server.ended]:
                del servers[number]
            servers[executor] = Server(lambda answer: post.send(0, (executor, answer)), n_cpus)
        servers[executor].hear(said)

    post = Post(world, heard)
    over.wait()
    for server in servers.values():
        server.close()
        server.join()
    post.close()


def rank() -> int:
    """Return the rank of this process."""
    return int(_world().Get_rank())


def begin() -> None:
    """Have the other ranks, all of which serve, be nodes of this program until its end."""
    gather()
    service = Service()
    _served.append(service)
    atexit.register(service.close)  # after the executors that are still open have been closed
