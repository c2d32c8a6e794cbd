"""Processes that are forked to be killed, by a program that has loaded all that they need: a kill costs no interpreter.

That program prints a line of JSON for each kill, empty or with what went wrong; `count` reads them in the test.
"""

import json
import os
import select
import signal
import sys
import tempfile
import time
import traceback

import pytest
from programs import A_SECOND, left_of, seen_as

ENDS = {
    "SIGKILL to it alone": (os.kill, signal.SIGKILL),
    "SIGTERM to it alone": (os.kill, signal.SIGTERM),
    "SIGKILL to the group": (os.killpg, signal.SIGKILL),
    "SIGTERM to the group": (os.killpg, signal.SIGTERM),
}

# What each victim would otherwise load, and what the program itself works with.
LOADED = f"""
import sys
sys.path.append({os.path.dirname(__file__)!r})
import json, os, random, time
import h5py, numpy as np, numpy.random, psutil
import parcompute as pc
from parcompute.experiments import measure
from parcompute.jobs import checkpoint, checkpoint_file
from parcompute.record.record import Record, read
from warm import Victim, require, told

with pc.Executor(1, start_method="fork") as ex:
    ex.reduce_blocks(np.sum, np.ones(9), block_items=2)
"""


class Victim:
    """A process in a session of its own that runs a source text; what it prints is for its parent."""

    def __init__(self, source, *arguments):
        self.printed, theirs = os.pipe()
        self.pid = os.fork()
        if self.pid == 0:
            self._run(source, arguments, theirs)
        os.close(theirs)
        os.read(self.printed, 1)  # the group is there, and can be killed

    def _run(self, source, arguments, theirs):
        try:
            os.setsid()
            os.close(self.printed)
            os.write(theirs, b"\n")
            os.dup2(theirs, 1)
            os.close(theirs)
            os.dup2(os.open("errors", os.O_WRONLY | os.O_CREAT | os.O_APPEND), 2)
            sys.argv = ["victim", *map(str, arguments)]
            exec(compile(source, "victim", "exec"), {"__name__": "__main__"})
            sys.stdout.flush()
            os._exit(0)
        except BaseException:
            traceback.print_exc()
            sys.stderr.flush()
        finally:
            os._exit(1)

    def line(self):
        """Return the next line that it prints, or what there is of it at its end."""
        line = b""
        while not line.endswith(b"\n") and (letter := os.read(self.printed, 1)):
            line += letter
        return line.decode()

    def ended(self, end=None, delay_s=0.0):
        """Have it end, if it has not by itself after a delay; return its status, and what it has printed.

        And see that it has ended in no other way and has left nothing.
        """
        pidfd = os.pidfd_open(self.pid)
        ended = bool(select.select([pidfd], [], [], delay_s if end else None)[0])
        os.close(pidfd)
        send, number = ENDS[end] if end else (None, 0)
        if not ended:
            send(self.pid, number)
        status = os.waitstatus_to_exitcode(os.waitpid(self.pid, 0)[1])
        left = left_of(self.pid, time.monotonic() + A_SECOND)
        require(not left, "leaks", f"{end}: {left}")
        with os.fdopen(self.printed, "rb") as printed:  # nobody is left who could write to it
            lines = [line.decode().strip() for line in printed if line.endswith(b"\n")]
        with open("errors") as errors:
            told = errors.read()
        require(not told and status in (0, -number), "lost runs", f"{end}: it has ended with {status}; {told}")
        require(not os.listdir(tempfile.gettempdir()), "leaks", f"{end}: {os.listdir(tempfile.gettempdir())}")
        return status, lines


def require(holds, fault, what):
    """Say what went wrong and leave, if something has."""
    if not holds:
        print(json.dumps({"fault": fault, "what": what}), flush=True)
        sys.exit(1)


def told():
    """Say that one more was killed."""
    print("{}", flush=True)


def count(program, tally):
    """Count what a program kills, until it says that it is over; fail with what it says went wrong."""
    while (line := program.line()) != "over":
        if answer := json.loads(line):
            with seen_as(answer["fault"]):
                pytest.fail(answer["what"])
        tally.kills += 1
    assert program.ended() == (0, "", "")
    program.assert_nothing_is_left(time.monotonic() + A_SECOND)
