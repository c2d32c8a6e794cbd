"""Nodes on Dask: each worker process of a cluster is one, and the scheduler says who is there.

    caller ── Nodes ──► one connection to each worker, of Dask's own kind, with its TLS ──► Server ──► crew

No Dask task is made: a handler is installed in each worker, and takes over the connection that asks for it.
"""

from __future__ import annotations

import asyncio
import collections
import contextlib
import logging
import os
import warnings
from collections.abc import Callable
from typing import Any

import numpy as np
import numpy.typing as npt

from parcompute.backends.base import Options
from parcompute.backends.nodes import wire
from parcompute.backends.nodes.nodes import Nodes
from parcompute.backends.nodes.server import Server
from parcompute.machine import limits

# The name of the handler in Dask's workers.
_HANDLER = "parcompute"

# A scheduler that has not answered within so many seconds is not there.
_CONNECT_S = 10.0

# Either side of a connection says something each second. If nothing has come at so many looks, a second apart, the
# other one is cut off. Looks are counted and not seconds, since a program that was stopped itself has not looked.
_LOOK_S, _SILENT_LOOKS = 1.0, 10

# What keeps a connection alive, and tells the clocks, need not wait for a long message: that is sent in pieces.
_URGENT = {"ping", "pong"}
_PIECE_BYTES = 2**23


class _NotReached(RuntimeError):
    """A worker that the scheduler has does not answer, while others may."""


class _Workers:
    """The engine: the workers of a Dask cluster."""

    def __init__(self, cluster: Any, n_nodes: int | None) -> None:
        self._client, self._own = _client_of(cluster)
        self._n_nodes = n_nodes
        self._numbers: dict[str, int] = {}  # of the workers, by address
        self._links: dict[int, _Link] = {}
        self._n = 0
        self._joining: dict[str, asyncio.Task[Exception | None]] = {}
        self._looking = self._closed = False
        self._error = self._not_reached = ""

    def open(self, heard: Callable[[int, wire.Message | None], None]) -> None:
        """Connect to the workers that are there."""
        self._heard = heard
        try:
            with _in_words(self._client):
                self._client.sync(self._find, True)
            n = len(self._links)
            if self._n_nodes is not None and n < self._n_nodes:
                raise ValueError(f"nodes={self._n_nodes}, but the Dask cluster has {n} workers; scale it up first")
        except BaseException:  # Ctrl-C too must leave no connection
            self.close()
            raise
        if self._not_reached:
            warnings.warn(self._not_reached, stacklevel=6)

    def send(self, number: int, message: wire.Message) -> None:
        """Send a message."""
        if (link := self._links.get(number)) is not None:
            link.send(message)

    def look(self) -> None:
        """Connect to workers that have come."""
        if not (self._looking or self._closed):
            self._looking = True
            with contextlib.suppress(RuntimeError):  # the client is being closed
                self._client.loop.add_callback(self._find, False)

    async def _find(self, first: bool) -> None:
        try:
            found = (await asyncio.wait_for(self._client.scheduler.identity(), _CONNECT_S))["workers"]
            self._error = ""
        except Exception as error:  # of Dask: the next look may find it again
            if first:
                raise
            self._error = f"the Dask scheduler does not answer ({type(error).__name__}: {error})"
            return
        finally:
            self._looking = False
        new = [address for address in sorted(found) if address not in self._numbers and address not in self._joining]
        if self._n_nodes is not None:
            new = new[: max(0, self._n_nodes - len(self._links) - len(self._joining))]
        # Each by itself: one that is listed and does not answer must not keep the others waiting.
        for address in new:
            self._joining[address] = asyncio.ensure_future(self._join(address))
        if first:
            await self._look_at_first(list(self._joining.values()))

    async def _look_at_first(self, joining: list[asyncio.Task[Exception | None]]) -> None:
        errors = [error for error in await asyncio.gather(*joining) if error is not None]
        if errors and not (self._links and all(isinstance(error, _NotReached) for error in errors)):
            raise errors[0]
        self._not_reached = "; ".join(map(str, errors))

    async def _join(self, address: str) -> Exception | None:
        try:
            await self._install(address)
            await self._connect(address)
            return None
        except Exception as error:  # of Dask or the worker: told, and no reason to lose the others
            self._error = str(error)
            return error
        finally:
            del self._joining[address]

    async def _install(self, address: str) -> None:
        try:
            running = self._client._run(install, workers=[address], on_error="return")
            answer = (await asyncio.wait_for(running, _CONNECT_S)).get(address)
        except OSError as error:  # TimeoutError too
            answer = error
        if isinstance(answer, OSError):
            raise _NotReached(f"the Dask worker {address}, which the scheduler has, does not answer it") from answer
        if isinstance(answer, BaseException):
            raise RuntimeError(
                f"the Dask worker {address} cannot serve: {type(answer).__name__}: {answer}; install the same "
                "parcompute there as here, with the extra dask"
            ) from answer

    async def _connect(self, address: str) -> None:
        from distributed.comm import connect

        try:
            comm = await connect(address, timeout=_CONNECT_S, **self._client.connection_args)
        except OSError as error:
            raise _NotReached(
                f"this program does not reach the Dask worker {address} ({error}), which the scheduler has; run it "
                "where the workers can be reached"
            ) from error
        await comm.write({"op": _HANDLER, "reply": False})
        number, self._n = self._n, self._n + 1
        self._numbers[address] = number

        def heard(message: wire.Message | None) -> None:
            if message is None:
                self._links.pop(number, None)
                if self._numbers.get(address) == number and not self._closed:
                    del self._numbers[address]  # if the worker is there all the same, it is asked again
            self._heard(number, message)

        self._links[number] = link = _Link(comm, heard, self._client.loop)
        self._heard(number, ("joined",))
        link.begin()

    def why_nobody(self) -> str:
        """Say what the scheduler says."""
        scheduler = getattr(self._client.scheduler, "address", "?")
        if self._client.status != "running":
            return f"the Dask scheduler at {scheduler} is gone: the client is {self._client.status}"
        return self._error or f"the Dask scheduler at {scheduler} knows no worker"

    def close(self) -> None:
        """Disconnect."""
        self._closed = True
        with contextlib.suppress(Exception):  # of a loop that has ended
            self._client.sync(self._hang_up)
        for one in reversed(self._own):
            with contextlib.suppress(Exception):  # as above
                one.close()

    async def _hang_up(self) -> None:
        for task in self._joining.values():
            task.cancel()
        await asyncio.gather(*(link.hang_up() for link in list(self._links.values())), return_exceptions=True)


class _Link:
    """A connection to one worker, as either side has it: one task writes, one reads, one looks whether it is alive."""

    def __init__(self, comm: Any, heard: Callable[[wire.Message | None], None], loop: Any) -> None:
        self._comm, self._heard, self._loop = comm, heard, loop
        self._outbox: asyncio.Queue[wire.Message | None] = asyncio.Queue()
        self._urgent: collections.deque[wire.Message] = collections.deque()
        self._tasks: list[asyncio.Task[None]] = []
        self._silent_looks = 0
        self._gone = False

    def begin(self) -> None:
        """Write and read; in the thread of the loop."""
        self._tasks = [asyncio.ensure_future(self._until_lost(does)) for does in (self._write, self._read, self._watch)]

    async def _until_lost(self, does: Callable[[], Any]) -> None:
        try:
            await does()
        except OSError:  # the other side is gone
            pass
        except Exception:  # of a message that cannot be rebuilt here: this side is of no use to the other any more
            logging.getLogger(__name__).exception("a connection between nodes is given up:")
        finally:
            self._lose()

    def send(self, message: wire.Message) -> None:
        """Send a message; from any thread."""
        with contextlib.suppress(RuntimeError):  # the loop has ended
            self._loop.add_callback(self._put, message)

    def _put(self, message: wire.Message) -> None:
        if message[0] in _URGENT:
            self._urgent.append(message)
            message = ()  # wakes the task
        self._outbox.put_nowait(message)

    async def _write(self) -> None:
        while (message := await self._outbox.get()) is not None:
            await self._write_urgent()
            if message:
                await self._write_one(message)
            del message

    async def _write_urgent(self) -> None:
        while self._urgent:
            await self._write_one(self._urgent.popleft())

    async def _write_one(self, message: wire.Message) -> None:
        from distributed.protocol import to_serialize

        head, buffers = wire.pack(message)
        room, told, long = _PIECE_BYTES, [], []
        for part in (np.frombuffer(buffer, np.uint8) for buffer in (head, *buffers)):
            if part.nbytes <= room:
                room -= part.nbytes
                told.append(to_serialize(part))
            else:
                long.append(part)
                told.append(part.nbytes)
        await self._comm.write({"parts": told})
        for part in long:
            for at in range(0, part.nbytes, _PIECE_BYTES):
                await self._write_urgent()
                await self._comm.write({"piece": to_serialize(part[at : at + _PIECE_BYTES])})

    async def _read(self) -> None:
        while True:
            came = await self._come()
            parts = [await self._pieces(one) if isinstance(one, int) else one for one in came["parts"]]
            self._heard(wire.unpack(parts[0].data, parts[1:]))
            del came, parts

    async def _come(self) -> Any:
        came = await self._comm.read()
        self._silent_looks = 0
        return came

    async def _pieces(self, n_bytes: int) -> npt.NDArray[np.uint8]:
        """Return a long part of a message, put together; what comes between its pieces is urgent."""
        whole, n = np.empty(n_bytes, np.uint8), 0
        while n < n_bytes:
            came = await self._come()
            if (piece := came.get("piece")) is None:
                head, *buffers = came["parts"]
                self._heard(wire.unpack(head.data, buffers))
            else:
                whole[n : n + len(piece)] = piece
                n += len(piece)
        return whole

    async def _watch(self) -> None:
        while not self._gone:
            await asyncio.sleep(_LOOK_S)
            self._silent_looks += 1
            if self._silent_looks > _SILENT_LOOKS:
                self._lose()

    def _lose(self) -> None:
        if not self._gone:
            self._gone = True
            self._comm.abort()
            self._outbox.put_nowait(None)
            if self._tasks:
                self._tasks[2].cancel()
            self._heard(None)

    async def hang_up(self) -> None:
        """Send what waits, and close."""
        self._outbox.put_nowait(None)
        with contextlib.suppress(asyncio.TimeoutError, OSError):
            await asyncio.wait_for(asyncio.shield(self._tasks[0]), _CONNECT_S)

    async def ended(self) -> None:
        """Wait until the connection is gone."""
        await asyncio.wait(self._tasks)


class Dask(Nodes):
    """Nodes on Dask."""

    def __init__(self, options: Options) -> None:
        super().__init__(options, _Workers(options.cluster, options.n_nodes))


# --- the caller's side of Dask -----------------------------------------------------------------------------


def _client_of(cluster: Any) -> tuple[Any, list[Any]]:
    """Return a client of a cluster, and what has been made for it.

    Parameters
    ----------
    cluster : distributed.Client, a cluster, or str
        A string is an address, or the path of a scheduler file. None is the client that the program has, or the
        scheduler file that `parcompute submit` names, or a cluster of this process.
    """
    try:
        import distributed
    except ImportError as error:
        raise ImportError("backend='dask' needs Dask: pip install 'parcompute[dask]'") from error
    if cluster is None:
        with contextlib.suppress(ValueError):
            return distributed.get_client(), []
        cluster = os.environ.get("PARCOMPUTE_SCHEDULER_FILE")
    if isinstance(cluster, distributed.Client):
        if cluster.asynchronous:
            raise TypeError("cluster is an asynchronous Client; pass one with asynchronous=False")
        return cluster, []
    own: list[Any] = []
    with _in_words(cluster):
        if cluster is None:
            # In this process: the node has its crew anyway, and the program need not be one that can be imported.
            n_cpus = limits.usable_cpus()
            options = {"processes": False, "threads_per_worker": n_cpus, "dashboard_address": ":0"}
            own.append(distributed.LocalCluster(n_workers=1, **options))
            client = distributed.Client(own[0])
        elif isinstance(cluster, str) and "://" not in cluster and os.path.exists(cluster):
            client = distributed.Client(scheduler_file=cluster, timeout=_CONNECT_S)
        elif isinstance(cluster, str) or hasattr(cluster, "scheduler_address"):
            client = distributed.Client(cluster, timeout=_CONNECT_S)
        else:
            raise TypeError(
                f"cluster={cluster!r} is {type(cluster).__name__}; pass a distributed.Client, a cluster, an address "
                "such as 'tcp://host:8786', or a scheduler file"
            )
    return client, [*own, client]


@contextlib.contextmanager
def _in_words(cluster: Any) -> Any:
    try:
        yield
    except OSError as error:
        raise ConnectionError(f"there is no Dask scheduler at {cluster}: {error}") from error


# --- the worker's side -------------------------------------------------------------------------------------


def install(dask_worker: Any) -> None:
    """Have a Dask worker serve whoever asks for it."""
    dask_worker.handlers[_HANDLER] = _Handler(dask_worker)


class _Handler:
    """Takes over a connection, and serves its caller until it is gone."""

    __name__ = _HANDLER

    def __init__(self, worker: Any) -> None:
        self._worker = worker

    async def __call__(self, comm: Any, **_: Any) -> Any:
        from distributed.core import Status

        def heard(message: wire.Message | None) -> None:
            if message is None:
                server.close()
            else:
                server.hear(message)

        link = _Link(comm, heard, self._worker.loop)
        server = Server(link.send, self._worker.state.nthreads)
        link.begin()
        try:
            await link.ended()
        finally:
            server.close()
        return Status.dont_reply
