"""The end of the job that this process is part of: by the clock, asked once, or by a signal that announces it.

PARCOMPUTE_JOB_END_TIME, SLURM_JOB_END_TIME, or a command of the batch system ──► end_s
SIGUSR1, SIGTERM ──► a job with a checkpoint is there? ── yes ──► `announced`: it ends after the blocks in progress
                                                       ── no ───► OutOfTime, as Ctrl-C raises KeyboardInterrupt
"""

from __future__ import annotations

import contextlib
import functools
import math
import os
import signal
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

from parcompute.machine import signals
from parcompute.machine.batch import systems

# For any system, and those that cannot be asked: seconds since 1970, as `date +%s` prints them.
END_VARIABLE = "PARCOMPUTE_JOB_END_TIME"

# What a batch system may need that looks at its clock now and then, an interpreter to leave, and a file system to be
# done with the last file.
MARGIN_S = 5.0

# After a signal, blocks in progress have so many seconds: SIGTERM is followed by SIGKILL, in Slurm after 30 s.
GRACE_S = 5.0

# A command of a batch system that does not answer is not waited for.
_ASK_S = 10.0

# So long a job that was requeued waits for a file that its own start before may still be writing: on a node that has
# lost its network the processes go on, and a file server keeps a lock for a lease (90 s for NFS).
_BEFORE_S = 150.0

SIGNALS = (signal.SIGUSR1, signal.SIGTERM)


class OutOfTime(BaseException):
    """The time of the batch job is over, or a signal (SIGUSR1, SIGTERM) has announced its end.

    What was finished is kept in the checkpoint: the same call goes on from there. As `KeyboardInterrupt` it is no
    `Exception`, so that no loop that goes on after any error begins another run with no time left.

    Attributes
    ----------
    n_kept, n_blocks : int
        Blocks that the checkpoint holds, and those of the job; both 0 where there is no checkpoint.
    """

    def __init__(self, message: str, n_kept: int = 0, n_blocks: int = 0) -> None:
        super().__init__(message, n_kept, n_blocks)
        self.n_kept, self.n_blocks = n_kept, n_blocks

    def __str__(self) -> str:
        return str(self.args[0])


def in_job(environ: Mapping[str, str] = os.environ) -> bool:
    """Tell whether this process is part of a batch job."""
    return systems.current(environ) is not None or bool(environ.get(END_VARIABLE))


def find_end_s(environ: Mapping[str, str] = os.environ) -> float | None:
    """Find out when the job ends, in seconds since 1970; None outside one, or where nobody knows.

    Raises
    ------
    ValueError
        If ``PARCOMPUTE_JOB_END_TIME`` is no number of seconds.
    """
    if asked := environ.get(END_VARIABLE, "").strip():
        if not asked.isdecimal() or len(asked) > 12:
            raise ValueError(f"{END_VARIABLE}={asked!r:.40} is no time; set seconds since 1970, as `date +%s` prints")
        return float(asked)
    if (told := environ.get("SLURM_JOB_END_TIME", "")).isdecimal() and len(told) <= 12:
        return float(told)
    system = systems.current(environ)
    if system is None or not system.command:
        return None
    import subprocess  # 10 ms that nobody else need pay

    command = [word.replace("{}", environ[system.id_variable]) for word in system.command]
    try:
        answer = subprocess.run(command, capture_output=True, text=True, timeout=_ASK_S, env=dict(environ))
    except (OSError, subprocess.TimeoutExpired):
        return None
    left_s = system.seconds_left(answer.stdout) if answer.returncode == 0 else None
    return None if left_s is None else time.time() + left_s


@functools.cache
def end_s() -> float | None:
    """Return when the job of this process ends, in seconds since 1970, asked once; None where nobody knows."""
    return find_end_s()


def left_s() -> float:
    """Return how many seconds are left; infinity where nobody knows."""
    end = end_s()
    return float("inf") if end is None else end - time.time()


class Countdown:
    """Ends a job when no more of its blocks should begin.

    Parameters
    ----------
    stop : callable, optional
        Asks the workers to begin no more blocks; they have some time then to hear it. None has `look` raise.
    current : sequence of int
        The block that each worker computes now, below 0 for none. What is read there once a look tells how long blocks
        take, at most one look too much.

    Attributes
    ----------
    ended : str
        Why no more blocks are to begin; empty as long as they may.
    """

    def __init__(self, stop: Callable[[], None] | None = None, current: Sequence[int] = ()) -> None:
        self.ended = ""
        self._stop, self._current = stop, current
        self._seen = [(-1, 0.0)] * len(current)  # of each worker: a block, and when it was seen first
        self._longest_s, self._until_s = 0.0, math.inf

    def of(self, stop: Callable[[], None] | None, current: Sequence[int]) -> Countdown:
        """Return the same for other workers, or other passes of them, who take over; one that has ended stops them."""
        other = Countdown(stop, current)
        other.ended, other._longest_s, other._until_s = self.ended, self._longest_s, self._until_s
        if self.ended and stop is not None:
            stop()
        return other

    def look(self, save_s: float) -> None:
        """End the job if it is time.

        Parameters
        ----------
        save_s : float
            What it takes to bring what is finished to the file.

        Raises
        ------
        OutOfTime
            If the workers cannot be asked, or have not heard it in time.
        """
        if not self.ended and (why := self._over(save_s)):
            self.ended = why
            # By the clock they were expected to be done in time; after a signal nothing more is known.
            grace_s = min(GRACE_S if announced else math.inf, left_s() - save_s - MARGIN_S / 2)
            self._until_s = time.monotonic() + grace_s
            if self._stop is not None:
                self._stop()
        if self.ended and (self._stop is None or time.monotonic() > self._until_s):
            raise OutOfTime(self.ended)

    def _over(self, save_s: float) -> str:
        if announced:
            return in_words()
        if end_s() is None:
            return ""
        now_s = time.monotonic()
        for worker, (block, (known, since_s)) in enumerate(zip(self._current, self._seen, strict=True)):
            if known >= 0:
                self._longest_s = max(self._longest_s, now_s - since_s)
            if block != known:
                self._seen[worker] = block, now_s
        if left_s() > self._longest_s + signals.LOOK_S + save_s + MARGIN_S:
            return ""
        told = f", and a block took up to {self._longest_s:.1f} s" if self._longest_s >= 0.1 else ""
        return f"{in_words()}{told}"


def patience_s(wait_s: float, environ: Mapping[str, str] = os.environ) -> float:
    """Return for how long to wait for the writer of a file: longer in a job that was requeued."""
    restarts = environ.get("SLURM_RESTART_COUNT", "")
    return max(wait_s, _BEFORE_S) if restarts.isdecimal() and int(restarts) else wait_s


# --- signals -----------------------------------------------------------------------------------------------

# The signal that has announced the end, within `heeded`.
announced = 0

# How much of what lasts was made by this process: blocks in checkpoints, runs in records.
n_kept = 0

_pid = 0  # that heeds; 0 for none
_n_keeping = 0
_counting = threading.Lock()


@contextlib.contextmanager
def heeded() -> Iterator[None]:
    """Heed SIGUSR1 and SIGTERM in the body, in the main thread of a process in a batch job; a user's handlers stay."""
    global _pid, announced
    free = [number for number in SIGNALS if signal.getsignal(number) is signal.SIG_DFL] if in_job() else []
    if not free or threading.current_thread() is not threading.main_thread():
        yield
        return
    _pid, announced = os.getpid(), 0
    signals.defers = True
    try:
        for number in free:
            signal.signal(number, _heed)
        yield
    finally:
        for number in free:
            if signal.getsignal(number) is _heed:
                signal.signal(number, signal.SIG_DFL)
        signals.defers, announced, _pid = False, 0, 0


@contextlib.contextmanager
def keeping() -> Iterator[None]:
    """Let a job with a checkpoint end by itself in the body when `announced` is set, instead of raising."""
    global _n_keeping
    with heeded():
        with _counting:
            _n_keeping += 1
        try:
            yield
        finally:
            with _counting:
                _n_keeping -= 1


def settle() -> None:
    """Have a worker process in a batch job ignore both, which reach all processes of the job: its parent decides."""
    signal.signal(signal.SIGTERM, signal.SIG_IGN if in_job() else signal.SIG_DFL)
    if in_job():
        signal.signal(signal.SIGUSR1, signal.SIG_IGN)


def note_kept(n: int) -> None:
    """Note that so many blocks or runs are kept from now on, whatever happens."""
    global n_kept
    n_kept += n


def in_words() -> str:
    """Say why there is no more time."""
    if announced:
        return f"{signal.Signals(announced).name} has announced the end of the job"
    return f"the job ends in {max(0.0, left_s()):.0f} s"


def _heed(number: int, frame: Any) -> None:
    global announced
    if os.getpid() != _pid:  # a process that the user has forked: it answers as if nobody had set anything
        signal.signal(number, signal.SIG_DFL)
        os.kill(os.getpid(), number)
        return
    announced = number
    if not _n_keeping or signals.at_users_line():
        signals.defer(_raise)


def _raise() -> None:
    raise OutOfTime(in_words())
