"""Slurm by its own commands: submit, cancel, ask for states, requeue.

Nothing here talks to the controller more often than a person would: see `follow`.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import time
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass
from pathlib import Path

# Between two questions about jobs that are followed: short at first, when a typing error shows, and never often.
_FIRST_S, _LONGEST_S, _SLOWER = 1.0, 30.0, 1.3

# A controller that is busy answers late.
_ANSWER_S = 60.0

# States after which a job does not run again by itself, in the words of `squeue`.
_OVER = {
    "BOOT_FAIL", "CANCELLED", "COMPLETED", "DEADLINE", "FAILED", "NODE_FAIL", "OUT_OF_MEMORY", "PREEMPTED", "TIMEOUT",
}  # fmt: skip

# What squeue says if it knows none of the jobs any more.
_FORGOTTEN = "Invalid job id"


class SlurmError(RuntimeError):
    """There is no Slurm, or one of its commands has refused; the message is its own."""


@dataclass(frozen=True, slots=True)
class State:
    """What `squeue` says of a job, or of a task of an array.

    Attributes
    ----------
    id : str
        As it is printed: ``12``, ``12_3``, ``12_[4-7]``.
    state : str
        ``"PENDING"``, ``"RUNNING"``, ….
    left : str
        Time left, as Slurm writes it.
    where : str
        Its nodes, or why it does not run.
    """

    id: str
    state: str
    left: str
    where: str


def require() -> None:
    """Raise SlurmError unless its commands are here."""
    if shutil.which("sbatch") is None:
        raise SlurmError(
            "there is no sbatch on this machine: jobs are submitted to Slurm only; on another batch system write the "
            "script by hand (docs/howto/hpc.md), sizes and time limits are found there all the same"
        )


def cluster_name() -> str:
    """Return the name of the cluster, as a folder may have it; ``"cluster"`` where Slurm does not tell."""
    told = os.environ.get("SLURM_CLUSTER_NAME", "")
    if not told and shutil.which("scontrol"):
        found = re.search(r"^ClusterName\s*=\s*(\S+)", _run("scontrol", "show", "config").stdout, re.MULTILINE)
        told = found[1] if found else ""
    return re.sub(r"[^A-Za-z0-9.-]+", "-", told).strip("-.") or "cluster"


def submit(script: Path, *, after: Sequence[str] = ()) -> str:
    """Submit a job script, to begin when other jobs have ended in whatever way; return the job's id.

    Raises
    ------
    SlurmError
        If sbatch refuses.
    """
    dependency = [f"--dependency=afterany:{':'.join(after)}"] if after else []
    answer = _run("sbatch", "--parsable", *dependency, str(script))
    if answer.returncode:
        raise SlurmError(_last_words(answer.stderr))
    return answer.stdout.strip().partition(";")[0]


def cancel(ids: Sequence[str]) -> None:
    """Cancel jobs."""
    if ids:
        _run("scancel", *ids)


def states(ids: Sequence[str]) -> list[State]:
    """Return what is known of jobs; those that Slurm has forgotten are not in it.

    Raises
    ------
    SlurmError
        If it does not answer.
    """
    answer = _run("squeue", "--noheader", "--states=all", f"--jobs={','.join(ids)}", "--format=%i|%T|%L|%R")
    if answer.returncode and _FORGOTTEN not in answer.stderr:
        raise SlurmError(_last_words(answer.stderr))
    found = []
    for line in answer.stdout.splitlines():
        parts = line.strip().split("|", 3)
        if len(parts) == 4:
            found.append(State(*parts))
    return found


def follow(ids: Sequence[str], show: Callable[[Sequence[State]], None]) -> list[State]:
    """Wait for the end of jobs; show what is known at each question, the last of which is returned.

    Between two questions pass 1 s at first, and 30 s before long.
    """
    pause_s, last = _FIRST_S, states(ids)
    while True:
        show(last)
        if all(state.state in _OVER for state in last):
            return last
        time.sleep(pause_s)
        pause_s = min(_SLOWER * pause_s, _LONGEST_S)
        try:
            now = states(ids)
        except SlurmError:  # its controller is started anew, or is busy: the jobs go on meanwhile
            continue
        # What Slurm has forgotten has ended some minutes ago.
        known = {state.id for state in now}
        last = [*now, *(state for state in last if state.state in _OVER and state.id not in known)] if now else last
        if not now:
            return last


def requeue() -> str:
    """Have the job of this process begin again when it has ended; return what was done, in words.

    A job that was cancelled stays so, and one of which `scontrol` says that it may not be requeued.
    """
    job = os.environ.get("SLURM_JOB_ID", "")
    if not job or "SLURM_JOB_NODELIST" not in os.environ or shutil.which("scontrol") is None:
        return ""
    told = _run("scontrol", "--oneliner", "show", "job", job).stdout
    state, reason = (_field(told, name) for name in ("JobState", "Reason"))
    if _field(told, "BatchFlag") == "0":
        return ""
    if state != "RUNNING" and reason != "TimeLimit":
        return f"job {job} is {state.lower() or 'unknown'}, and is not requeued"
    answer = _run("scontrol", "requeue", job)
    if answer.returncode:
        return f"job {job} is not requeued: {_last_words(answer.stderr)}"
    return f"job {job} is requeued"


def over(found: Collection[State]) -> tuple[int, list[State]]:
    """Return how many jobs have done all of it, and those that ended otherwise."""
    bad = [state for state in found if state.state in _OVER and state.state != "COMPLETED"]
    return sum(state.state == "COMPLETED" for state in found), bad


def _field(told: str, name: str) -> str:
    found = re.search(rf"\b{name}=(\S+)", told)
    return found[1] if found else ""


def _run(*command: str) -> subprocess.CompletedProcess[str]:
    try:
        return subprocess.run(command, capture_output=True, text=True, timeout=_ANSWER_S)
    except subprocess.TimeoutExpired:
        raise SlurmError(f"{command[0]} has not answered for {_ANSWER_S:g} s; ask the site, or try again") from None
    except OSError as error:
        raise SlurmError(f"{command[0]} cannot be run ({error})") from error


def _last_words(text: str) -> str:
    lines = [line.strip() for line in text.strip().splitlines() if line.strip()]
    return " ".join(lines) or "it gave no reason"
