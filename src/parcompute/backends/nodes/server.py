"""A node: a crew of worker processes on one host that computes spans of a caller's jobs, and its calls.

    caller ── hello, arrays, job, spans, calls ──► hear ──► queue ──► one thread ──► the crew
           ◄── here, rows of spans, results, lacks ── say ◄──────────┘

It knows jobs and arrays by number and digest, so that whoever asks again need not send them again.
"""

from __future__ import annotations

import contextlib
import os
import pickle
import queue
import sys
import threading
import time
from collections.abc import Callable
from concurrent.futures import Future
from dataclasses import replace
from typing import Any

import numpy as np
import numpy.typing as npt

from parcompute.backends.base import Call, Options, WorkerLost
from parcompute.backends.broken import Broken
from parcompute.backends.nodes import facts, spans, wire
from parcompute.backends.processes.processes import Processes
from parcompute.jobs import pickling
from parcompute.jobs.job import Failure, Job, RemoteTraceback
from parcompute.jobs.partials import Partials
from parcompute.jobs.setup import Setup
from parcompute.machine import limits
from parcompute.memory import shared


class Server:
    """One node, which serves one caller.

    Parameters
    ----------
    say : callable
        Sends a message to the caller; any thread may call it.
    n_cpus : int, optional
        How many CPUs are its part of the host; None is all that this process may use.
    """

    def __init__(self, say: Callable[[wire.Message], None], n_cpus: int | None = None) -> None:
        self._say, self._n_cpus = say, n_cpus
        self._crew: Processes | None = None
        self._arrays: dict[bytes, npt.NDArray[Any]] = {}
        self._jobs: dict[int, tuple[Job, tuple[Any, ...]]] = {}
        self._unpickled: tuple[bytes, Job | None] = b"", None  # the last job: the next one may be the same again
        self._pids: tuple[int, ...] = ()  # of its workers, as the caller knows them
        self._stopped: dict[int, bool] = {}  # jobs of which no further span is wanted, and whether at once
        self._supplied_ns = 0  # when what the last message brought was in its place
        self._running = -1  # the job of which a span is computed
        self._queue: queue.SimpleQueue[wire.Message] = queue.SimpleQueue()
        self._closed = threading.Event()
        self._thread = threading.Thread(target=self._serve, name="parcompute-node", daemon=True)
        self._thread.start()

    # --- the engine's thread -------------------------------------------------------------------------------

    def hear(self, message: wire.Message) -> None:
        """Take a message of the caller; what takes time is done elsewhere."""
        kind = message[0]
        if kind == "ping":
            self._say(("pong", message[1], time.perf_counter_ns()))
            self._give_up()  # if the span had not quite begun when that was asked for
        elif kind == "stop":
            _, number, at_once = message
            self._stopped[number] = at_once
            self._give_up()
        elif kind == "kill":
            self.close()
        else:
            self._queue.put((time.perf_counter_ns(), *message))

    def _give_up(self) -> None:
        """End the span that is computed if it is of a job that was stopped."""
        at_once = self._stopped.get(self._running)
        if at_once is not None and self._crew is not None:
            self._crew.give_up(at_once=at_once)

    def close(self) -> None:
        """End the crew, with what it computes, and forget everything; it may be called again."""
        if not self._closed.is_set():
            self._closed.set()
            if self._crew is not None:
                self._crew.give_up(at_once=True)
            self._queue.put((0, "quit"))  # wakes the thread

    @property
    def ended(self) -> bool:
        """Whether its crew has ended."""
        return not self._thread.is_alive()

    def join(self, timeout_s: float | None = None) -> None:
        """Wait until the crew has ended."""
        if self._thread is not threading.current_thread():
            self._thread.join(timeout_s)

    # --- its own thread ------------------------------------------------------------------------------------

    def _serve(self) -> None:
        while True:
            arrived_ns, kind, *rest = self._queue.get()
            if self._closed.is_set():
                break
            try:
                getattr(self, f"_on_{kind}")(max(arrived_ns, self._supplied_ns), *rest)
            except BaseException as error:  # the caller must hear of it, whatever it is
                if self._closed.is_set():
                    break
                failure = _on_host(Failure.before_blocks(error), os.uname().nodename)
                if kind == "call":
                    self._reply("result", rest[0], False, pickle.dumps(failure))
                else:
                    self._reply("failed", rest[0] if kind in ("job", "span") else -1, failure)
            del rest
            if kind == "quit":
                break
        self._closed.set()
        if self._crew is not None:
            with contextlib.suppress(Exception):  # there is nobody left to tell
                self._crew.kill()
        self._arrays.clear()
        self._jobs.clear()
        self._unpickled = b"", None

    def _reply(self, *message: Any) -> None:
        if not self._closed.is_set():
            self._say(message)

    def _on_quit(self, _: int) -> None:
        if self._crew is not None:
            self._crew.close(wait=True)

    def _on_hello(self, _: int, versions: dict[str, str], asked: bytes, where: tuple[str, tuple[str, ...]]) -> None:
        host = os.uname().nodename
        if wrong := facts.unlike(versions, facts.versions(), host):
            self._reply("refused", wrong)
            return
        find_modules(*where)
        options: Options = pickle.loads(asked)
        n_cpus = self._n_cpus or limits.usable_cpus()
        n_processes = options.n_workers or max(1, n_cpus // options.threads_per_worker)
        self._options = replace(options, n_workers=n_processes)
        self._host = host

    def _on_setup(self, _: int, packed: bytes | None) -> None:
        setup = Setup()
        try:
            if packed is not None:
                setup = Setup(*wire.loads(packed, self._arrays))
            self._crew = Processes(replace(self._options, setup=setup))
            ready_ns = self._crew.wait_until_ready()
        except Broken as error:
            self._reply("broken", error.failure)
            return
        except BaseException as error:  # whatever the user's setup raises when it is rebuilt
            self._reply("broken", _on_host(Failure.before_blocks(error), self._host))
            return
        self._pids = self._crew.pids()
        node = replace(facts.here(self._crew.n_workers), n_cpus=self._n_cpus or limits.usable_cpus())
        self._reply("here", node, self._pids, ready_ns)

    def _on_ready(self, _: int) -> None:
        assert self._crew is not None
        try:
            self._crew.wait_until_ready()
        except Broken as error:
            self._reply("broken", error.failure)
        finally:
            self._tell_pids()
            self._reply("ready", time.perf_counter_ns())

    def _tell_pids(self) -> None:
        """Say who the workers are, if some have been replaced."""
        if self._crew is not None and self._crew.pids() != self._pids:
            self._pids = self._crew.pids()
            self._reply("pids", self._pids)

    def _on_array(self, _: int, digest: bytes, content: Any, shape: Any, dtype: Any, fortran: bool) -> None:
        if digest not in self._arrays:
            self._arrays[digest] = wire.from_bytes(np.frombuffer(content, np.uint8), shape, dtype, fortran)

    def _on_drop(self, _: int, digests: list[bytes]) -> None:
        self._unpickled = b"", None  # it may hold some of them
        for digest in digests:
            self._arrays.pop(digest, None)

    def _on_job(
        self, _: int, number: int, where: Any, told: bytes | None, pickled: bytes, inputs: tuple[Any, ...]
    ) -> None:
        find_modules(*where)
        try:
            if pickled != self._unpickled[0]:
                self._unpickled = b"", None
                self._unpickled = pickled, wire.loads(pickled, self._arrays)
            job = self._unpickled[1]
        except BaseException as error:  # a module that this host lacks, above all
            self._reply("failed", number, _on_host(Failure.before_blocks(error), self._host))
            return
        assert job is not None
        opened = tuple(job.inputs[i] if one is ... else self._opened(one) for i, one in enumerate(inputs))
        if unseen := [i for i, one in enumerate(opened) if one is None]:
            self._reply("unseen", number, unseen)
        self._jobs[number] = (replace(job, world=spans.Abroad(told)), opened)
        self._supplied_ns = time.perf_counter_ns()

    def _opened(self, one: Any) -> Any:
        if isinstance(one, wire.Kept):
            return self._arrays[one.digest]
        if isinstance(one, wire.InFile):
            return one.open() if one.is_here else None
        return one  # a small array, or None: its rows come with each span

    def _on_forget(self, _: int, number: int) -> None:
        self._jobs.pop(number, None)
        self._stopped.pop(number, None)

    def _on_span(
        self, arrived_ns: int, number: int, first: int, stop: int, shape: tuple[Any] | None, windows: dict[int, Any]
    ) -> None:
        if number in self._stopped or number not in self._jobs:
            self._reply("span", number, first, stop, None)
            return
        job, inputs = self._jobs[number]
        assert self._crew is not None
        rows = {i: spans.Window(_shared(array), begin) for i, (begin, array) in windows.items()}
        if lacking := [i for i, one in enumerate(inputs) if one is None and i not in rows]:
            self._reply("lack", number, first, stop, lacking)
            return
        part = spans.part(replace(job, inputs=inputs), first, stop, self._crew.n_workers, rows)
        if shape is not None:
            part.outputs.allocate(shape[0], self._crew.allocate)
        self._running = number
        try:
            drive = self._crew.compute(part) if number not in self._stopped else None
        except WorkerLost as error:
            self._reply("lost", number, first, stop, error)
            return
        finally:
            self._running = -1
            self._tell_pids()
        if drive is None:
            self._reply("span", number, first, stop, None)
            return
        outputs = part.outputs
        timeline = drive.timeline(arrived_ns)
        self._reply(
            "span", number, first, stop,
            {
                "shape": None if outputs.arrays is None else (outputs.shape,),
                "arrays": [self._to_send(outputs, array) for array in outputs.arrays or ()],
                "odd": {first + i: pickling.dumps_back(value) for i, value in outputs.odd.items()},
                "done": np.array(drive.board.done),
                "failures": [_on_host(failure, self._host) for failure in drive.failures],
                "lost": drive.lost,
                "chunks": timeline.chunks,
                "edges": part.plan.edges,
                "deaths": timeline.deaths,
                "workers": timeline.workers,
                "arrived_ns": arrived_ns,
                "finished_ns": time.perf_counter_ns(),
            },
        )  # fmt: skip

    @staticmethod
    def _to_send(outputs: Any, array: npt.NDArray[Any]) -> npt.NDArray[Any]:
        # The crew uses the memory of partials again for the next span, while this one may still be on its way.
        return np.array(array) if isinstance(outputs, Partials) else np.asarray(array)

    def _on_call(self, _: int, number: int, where: Any, told: bytes | None, pickled: bytes, n_calls: int) -> None:
        find_modules(*where)
        assert self._crew is not None
        future: Future[Any] = Future()

        def settled(done: Future[Any]) -> None:
            error = done.exception()
            if error is None:
                try:
                    self._reply("result", number, True, pickling.dumps_back(done.result()))
                    return
                except BaseException as unpicklable:  # whatever its __reduce__ raises
                    error = unpicklable
            failure = Failure.before_blocks(error)
            if isinstance(error.__cause__, RemoteTraceback):
                failure = replace(failure, text=error.__cause__.text)
            self._reply("result", number, False, pickle.dumps(_on_host(failure, self._host)))

        future.add_done_callback(settled)
        try:
            function, args, kwargs = wire.loads(pickled, self._arrays)
        except BaseException as error:  # whatever the class of an argument raises; the caller hears of it
            future.set_exception(error)
            return
        self._crew.submit(Call(future, function, args, kwargs, n_calls, spans.Abroad(told)))


def _shared(array: npt.NDArray[Any]) -> npt.NDArray[Any]:
    """Return rows that have come with a span where the crew can see them."""
    return shared.share(array)


def _on_host(failure: Failure, host: str) -> Failure:
    where = f"(on node {host})"  # of a call, only the text is seen: what it raised is raised as it was
    return replace(failure, message=f"{failure.message} {where}", text=f"{failure.text.rstrip()} {where}\n")


def find_modules(folder: str, path: tuple[str, ...]) -> None:
    """Have this process find the modules that the caller finds: its own come first."""
    for entry in path:
        entry = entry or folder
        if entry not in sys.path:
            sys.path.append(entry)
