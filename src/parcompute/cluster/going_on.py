"""A program in a batch job that goes on in the next start of the job when there was no time for the rest."""

from __future__ import annotations

import contextlib
import os
import sys
from collections.abc import Iterator

from parcompute.cluster import slurm
from parcompute.experiments.command_line import OUT_OF_TIME
from parcompute.jobs.checkpoint import PartDone
from parcompute.machine.batch import deadline, tasks


@contextlib.contextmanager
def going_on() -> Iterator[None]:
    """Run a program in the body; heed the signals of the batch system, and requeue the job if time was short.

    Raises
    ------
    SystemExit
        With status 75, if there was no time for the rest; the program's own otherwise.
    """
    try:
        with deadline.heeded():
            yield
    except deadline.OutOfTime as error:
        _say(str(error))
        _leave()
    except PartDone as done:
        _say(str(done))
        tasks.note_done()
        raise
    except SystemExit as end:
        if end.code == OUT_OF_TIME:
            _leave()
        if end.code in (None, 0):
            tasks.note_done()
        raise
    else:
        tasks.note_done()
    finally:
        if deadline.in_job():  # what comes while the interpreter leaves would end it with another status
            deadline.settle()


def _leave() -> None:
    if os.environ.get("SLURM_PROCID", "0") == "0":
        if deadline.n_kept:
            told = slurm.requeue()
        else:  # it would do the same again, for ever
            told = (
                "nothing new was kept in this start, so the job is not requeued: give it more time, or smaller blocks"
            )
        if told:
            _say(told)
    sys.exit(OUT_OF_TIME)


def _say(line: str) -> None:
    print(f"parcompute: {line}", file=sys.stderr, flush=True)
