"""Interleave contenders: per row, rounds in random order over hosted processes, whatever becomes of them."""

from __future__ import annotations

import compileall
import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from datetime import UTC, datetime
from multiprocessing.connection import Pipe
from pathlib import Path
from typing import Any, Protocol

import family
import numpy as np
from tasks import N_WORKERS

import parcompute
from parcompute.machine.quiet import Activity, disturbances

FOLDER = Path(__file__).resolve().parent

# How long a host may take to start its contender, and to end by itself before it is killed.
START_S = 60.0
LEAVE_S = 20.0


class Failed(Exception):
    """A contender could not answer; the message is for its cell."""


class Missing(Failed):
    """Its engine cannot be imported."""


@dataclass(frozen=True, slots=True)
class Entry:
    """One line of a row: who is asked what.

    Attributes
    ----------
    label : str
        Name in the table and in the record.
    contender : str
        Who answers.
    question : str
        The contender's method.
    parameters : dict
        Given to it instead of or besides the row's.
    rounds : int or None
        The most rounds in which it is asked, without one to warm up; None for all.
    """

    label: str
    contender: str
    question: str
    parameters: Mapping[str, Any] = field(default_factory=dict)
    rounds: int | None = None


@dataclass(frozen=True, slots=True)
class Sample:
    """One answer, verified by who gave it; `disturbed` says why the machine was not quiet meanwhile."""

    entry: Entry
    round: int
    value: float
    answer: float | None
    took_s: float
    disturbed: str
    started_utc: str


@dataclass(frozen=True, slots=True)
class Failure:
    """Why an entry gives no more samples."""

    entry: Entry
    why: str


# --- hosts -------------------------------------------------------------------------------------------------


class Host(Protocol):
    """Where a contender lives."""

    @property
    def alive(self) -> bool:
        """Whether it can still be asked."""

    def ask(self, timeout_s: float, *message: Any) -> Any:
        """Return the answer.

        Raises
        ------
        Failed
            If there is none in time; the host is then dead.
        """

    def close(self) -> None:
        """End it and all that it has started."""


class Process:
    """A contender in a process of its own, which leads a session and has a folder for whatever it leaves."""

    def __init__(self, spec: str, path: Sequence[str | Path] = ()) -> None:
        # In memory: joblib and ray put arrays there.
        self._scratch = tempfile.mkdtemp(prefix="bench-", dir="/dev/shm" if os.path.isdir("/dev/shm") else None)
        output = None if os.environ.get("BENCH_TRACEBACKS") else subprocess.DEVNULL
        self._end, theirs = Pipe()
        with theirs:
            self._process = subprocess.Popen(
                [sys.executable, str(FOLDER / "host.py"), spec, str(theirs.fileno())],
                pass_fds=[theirs.fileno()],
                env=environment(self._scratch, path),
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=output,
                start_new_session=True,
            )
        try:
            self._receive(START_S)
        except BaseException:
            self.kill()
            raise

    @property
    def alive(self) -> bool:
        """Whether it can still be asked."""
        return not self._end.closed

    def ask(self, timeout_s: float, *message: Any) -> Any:
        """Return the answer, or end the host if none comes."""
        with suppress(OSError):  # it has ended: the receiving says how
            self._end.send(message)
        return self._receive(timeout_s)

    def _receive(self, timeout_s: float) -> Any:
        deadline = time.monotonic() + timeout_s
        try:
            # Its children may hold the pipe open when it has died, so that no end of file tells.
            while not self._end.poll(min(0.2, timeout_s)) and self._process.poll() is None:
                if time.monotonic() > deadline:
                    self.kill()
                    raise Failed(f"no answer in {timeout_s:g} s")
            if not self._end.poll():
                raise EOFError
            kind, answer = self._end.recv()
        except (EOFError, OSError):
            with suppress(subprocess.TimeoutExpired):
                self._process.wait(1)
            self.kill()
            raise Failed(f"its process has ended (status {self._process.returncode})") from None
        if kind != "ok":
            raise {"missing": Missing, "failed": Failed}[kind](answer)
        return answer

    def close(self) -> None:
        """Let it end what it has started, and kill what is left."""
        if self.alive:
            with suppress(Failed, subprocess.TimeoutExpired):
                self.ask(LEAVE_S, "close")
                self._process.wait(LEAVE_S)
        self.kill()

    def kill(self) -> None:
        """End it and all that it has started now."""
        if not self.alive:
            return
        self._end.close()
        self._process.kill()
        self._process.wait()
        family.end(self._process.pid)
        shutil.rmtree(self._scratch, ignore_errors=True)


def environment(scratch: str, path: Sequence[str | Path] = ()) -> dict[str, str]:
    """Return the environment of a host: its folder for temporary files, one thread per library, bytecode kept."""
    environ = dict(os.environ)
    # Every new interpreter would compile what is not in site-packages again: parcompute, in a checkout.
    environ.pop("PYTHONDONTWRITEBYTECODE", None)
    environ |= dict.fromkeys(("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"), "1")
    environ |= dict.fromkeys(("TMPDIR", "JOBLIB_TEMP_FOLDER"), scratch)
    found = [*map(str, path), str(FOLDER), environ.get("PYTHONPATH", "")]
    return environ | {"PYTHONPATH": os.pathsep.join(filter(None, found))}


def compile_all() -> None:
    """Write the bytecode of parcompute and of this folder, so that no sample contains the compiling."""
    for folder in (FOLDER, *parcompute.__path__):
        compileall.compile_dir(folder, quiet=2)


class Hosts:
    """The contenders of a session: each started when it is first asked, started again after it was killed."""

    def __init__(self, specs: Mapping[str, str], make: Callable[[str], Host] = Process) -> None:
        self._specs, self._make = dict(specs), make
        self._hosts: dict[str, Host] = {}
        self.missing: dict[str, str] = {}

    def __enter__(self) -> Hosts:
        return self

    def __exit__(self, *_: object) -> None:
        while self._hosts:
            self._hosts.popitem()[1].close()

    def release(self, timeout_s: float) -> None:
        """Let all of them undo what they have prepared."""
        for host in self._hosts.values():
            if host.alive:
                with suppress(Failed):
                    host.ask(timeout_s, "release")

    def of(self, name: str) -> Host:
        """Return the host of a contender.

        Raises
        ------
        Failed
            If it is missing or cannot start.
        """
        if name in self.missing:
            raise Missing(self.missing[name])
        if name not in self._hosts or not self._hosts[name].alive:
            try:
                self._hosts[name] = self._make(self._specs[name])
            except Missing as missing:
                self.missing[name] = str(missing)
                raise
        return self._hosts[name]


# --- a row -------------------------------------------------------------------------------------------------


def order(n: int, seed: int, row: str, round_: int) -> list[int]:
    """Return the order in which a round visits n entries: the same for the same seed, row and round."""
    return np.random.default_rng([seed, *row.encode(), round_]).permutation(n).tolist()


def ask(
    entries: Sequence[Entry],
    hosts: Hosts,
    *,
    parameters: Mapping[str, Any],
    rounds: int,
    seed: int,
    row: str,
    each_s: float,
    timeout_s: float,
    until: float,
    clock: Callable[[], float] = time.monotonic,
) -> Iterator[Sample | Failure]:
    """Ask all entries of a row, round by round; yield each sample, and each failure, after which an entry is out.

    Parameters
    ----------
    entries : sequence of Entry
        Of the row.
    hosts : Hosts
        Who answers.
    parameters : mapping
        Of the row.
    rounds : int
        That count; one more warms up and is dropped.
    seed, row : int, str
        Of the order.
    each_s : float
        An entry for which this would not suffice is asked in no further round; in the first always.
    timeout_s : float
        For each answer.
    until : float
        Nothing is asked after this time by the clock.
    clock : callable
        Seconds that pass.
    """
    out: set[str] = set()
    spent, last = dict.fromkeys((e.label for e in entries), 0.0), dict.fromkeys((e.label for e in entries), 0.0)
    for round_ in range(rounds + 1):
        for i in order(len(entries), seed, row, round_):
            entry, began = entries[i], clock()
            if entry.rounds is not None and not 1 <= round_ <= entry.rounds:
                continue
            if round_ > 1 and spent[entry.label] + last[entry.label] > each_s:
                out.add(entry.label)
            if entry.label in out or began >= until:
                continue
            try:
                sample = _one(entry, round_ - 1, hosts.of(entry.contender), parameters, timeout_s)
            except Failed as failure:
                out.add(entry.label)
                yield Failure(entry, str(failure))
                continue
            last[entry.label] = clock() - began
            spent[entry.label] += last[entry.label]
            if round_ > 0:
                yield sample
    hosts.release(timeout_s)


def _one(entry: Entry, round_: int, host: Host, parameters: Mapping[str, Any], timeout_s: float) -> Sample:
    started_utc, before = datetime.now(UTC).isoformat(timespec="milliseconds"), Activity.now()
    started = time.monotonic()
    value, answer = host.ask(timeout_s, "sample", entry.label, entry.question, {**parameters, **entry.parameters})
    took_s = time.monotonic() - started
    disturbed = disturbances(before, Activity.now(), took_s, N_WORKERS)
    return Sample(entry, round_, float(value), answer, took_s, disturbed, started_utc)
