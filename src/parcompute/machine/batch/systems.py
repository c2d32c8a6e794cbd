"""Batch systems, as far as a job can tell them by its variables: the CPUs that it was given, and what knows its end.

    Slurm, PBS, LSF, Grid Engine, Flux ── variables ──► CPUs on this node, where the job says
                                       ── a command, once ──► seconds that are left

Jobs are submitted to Slurm only (`parcompute.cluster`); within a job of any of them, sizes and ends are found here.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Container, Iterator, Mapping
from dataclasses import dataclass
from datetime import datetime

# What was found in a variable: CPUs or None, and how that was read.
Found = tuple[int | None, str]


@dataclass(frozen=True, slots=True)
class System:
    """One batch system.

    Attributes
    ----------
    name : str
        As its makers write it.
    id_variable : str
        Set in every job, to its id, and nowhere else.
    command : tuple of str
        Tells the end of the job whose id takes the place of ``{}``; empty where none does.
    seconds_left : callable
        Reads that from what the command prints; None where it does not tell.
    cpus : callable
        Yields the CPUs of this node that the variables grant, and how each was read.
    """

    name: str
    id_variable: str
    command: tuple[str, ...]
    seconds_left: Callable[[str], float | None]
    cpus: Callable[[Mapping[str, str], str], Iterator[Found]]


def current(environ: Mapping[str, str]) -> System | None:
    """Return the system whose job these variables are of; None outside."""
    return next((system for system in SYSTEMS if environ.get(system.id_variable)), None)


def copies(environ: Mapping[str, str], modules: Container[str]) -> int:
    """Return how many copies of this program a step of Slurm has started that do not talk by MPI; 1 where it has not.

    Variables do not tell: many a site has `srun` set those of MPI for every program.

    Examples
    --------
    >>> copies({"SLURM_STEP_ID": "0", "SLURM_STEP_NUM_TASKS": "8"}, {"sys"})
    8
    """
    # A job of `parcompute submit --engine dask` has its workers started as such a step.
    if "SLURM_STEP_ID" not in environ or "mpi4py" in modules or "PARCOMPUTE_SCHEDULER_FILE" in environ:
        return 1
    counts = _counts(environ.get("SLURM_STEP_NUM_TASKS", ""))
    return counts[0] if counts else 1


# --- CPUs of this node -------------------------------------------------------------------------------------


def _of_slurm(environ: Mapping[str, str], host: str) -> Iterator[Found]:
    # The count of a job's other nodes does not matter here, so the list of all nodes is asked last; which of its
    # entries is this node cannot be told within a job step, so its smallest is taken.
    told = set()
    for name in ("SLURM_CPUS_PER_TASK", "SLURM_CPUS_ON_NODE", "SLURM_JOB_CPUS_PER_NODE"):
        value = environ.get(name, "").strip()
        if not value or (name == "SLURM_JOB_CPUS_PER_NODE" and "SLURM_CPUS_ON_NODE" in told):
            continue
        if not (counts := _counts(value)):
            yield None, f"{name}={value!r} cannot be read"
            continue
        told.add(name)
        n, why = min(counts), f"{name}={value}" + (", the smallest node" if len(set(counts)) > 1 else "")
        if name == "SLURM_CPUS_ON_NODE" and "SLURM_CPUS_PER_TASK" not in told and (tasks := _tasks_here(environ)) > 1:
            n, why = max(1, n // tasks), f"{why}, shared by {tasks} tasks of this step here"
        yield n, why
    if not told:
        yield None, "no number of CPUs in its variables"


def _tasks_here(environ: Mapping[str, str]) -> int:
    """Return how many tasks of this process's step run on its node; 1 outside a step, or where it is not told."""
    counts: list[int] = []
    for count, times in re.findall(r"(\d{1,9})(?:\(x(\d{1,9})\))?", environ.get("SLURM_STEP_TASKS_PER_NODE", "")):
        counts += [int(count)] * min(int(times or 1), 10**5)
    if "SLURM_STEP_ID" not in environ or not counts:
        return 1
    node = environ.get("SLURM_NODEID", "")
    return counts[int(node)] if node.isdecimal() and int(node) < len(counts) else max(counts)


def _of_pbs(environ: Mapping[str, str], host: str) -> Iterator[Found]:
    yield from _first_number(environ, "NCPUS", "PBS_NUM_PPN")  # PBS Pro and OpenPBS; Torque


def _of_lsf(environ: Mapping[str, str], host: str) -> Iterator[Found]:
    words = environ.get("LSB_MCPU_HOSTS", "").split()  # "node1 8 node2 4"
    slots = {_short(name): n for name, n in zip(words[::2], words[1::2], strict=False) if n.isdecimal() and int(n)}
    if _short(host) in slots:
        n = slots[_short(host)]
        yield int(n), f"LSB_MCPU_HOSTS gives {n} to {_short(host)}"
    else:
        yield from _first_number(environ, "LSB_DJOB_NUMPROC")


def _of_grid_engine(environ: Mapping[str, str], host: str) -> Iterator[Found]:
    # NSLOTS counts the slots of all hosts; the file has a line per host: name, slots, queue, processors.
    try:
        with open(environ.get("PE_HOSTFILE", ""), encoding="utf-8") as file:  # workers would load pathlib for no more
            lines = [line.split() for line in file]
    except (OSError, UnicodeDecodeError):
        lines = []
    for words in lines:
        if len(words) > 1 and _short(words[0]) == _short(host) and words[1].isdecimal() and int(words[1]):
            yield int(words[1]), f"PE_HOSTFILE gives {words[1]} slots to {words[0]}"
            return
    yield from _first_number(environ, "NSLOTS")


def _of_flux(environ: Mapping[str, str], host: str) -> Iterator[Found]:
    yield None, "its shell sets the affinity mask"


def _first_number(environ: Mapping[str, str], *names: str) -> Iterator[Found]:
    for name in names:
        if (value := environ.get(name, "").strip()) and (counts := _counts(value)):
            yield min(counts), f"{name}={value}"
            return
        if value:
            yield None, f"{name}={value!r} cannot be read"
            return
    yield None, "no number of CPUs in its variables"


def _counts(notation: str) -> list[int]:
    """Read ``8(x2),4`` as [8, 4]; empty where any part cannot be read or is 0."""
    parts = [re.fullmatch(r"([1-9][0-9]{0,8})(?:\(x[0-9]+\))?", part.strip()) for part in notation.split(",")]
    return [int(part[1]) for part in parts if part] if all(parts) else []


def _short(host: str) -> str:
    return host.partition(".")[0]


# --- what is left ------------------------------------------------------------------------------------------


def clock_s(text: str) -> float | None:
    """Read ``[days-][[hours:]minutes:]seconds``, as Slurm writes a time, in seconds; None for anything else.

    Examples
    --------
    >>> clock_s("1-02:03:04"), clock_s("30:00"), clock_s("UNLIMITED")
    (93784.0, 1800.0, None)
    """
    if not (found := re.fullmatch(r"(?:(\d{1,5})-)?(?:(?:(\d{1,6}):)?(\d{1,6}):)?(\d{1,6})", text.strip())):
        return None
    days, hours, minutes, seconds = (int(part or 0) for part in found.groups())
    return float(((days * 24 + hours) * 60 + minutes) * 60 + seconds)


def _left_of_qstat(text: str) -> float | None:
    """Read ``qstat -f``: the time asked for, less that since the start (PBS Pro: stime, Torque: start_time)."""
    asked = re.search(r"Resource_List\.walltime = (\S+)", text)
    began = re.search(r"\b(?:stime|start_time) = (.+)", text)
    if not asked or not began or (walltime_s := clock_s(asked[1])) is None:
        return None
    try:
        started = datetime.strptime(" ".join(began[1].split()[:5]), "%a %b %d %H:%M:%S %Y")
    except ValueError:
        return None
    return walltime_s - (datetime.now() - started).total_seconds()


def _left_of_bjobs(text: str) -> float | None:
    """Read ``bjobs -o time_left``: hours and minutes, with an L where the limit is a hard one."""
    found = re.match(r"\s*(\d{1,6}):(\d{1,2})\b", text)
    return None if found is None else float(int(found[1]) * 3600 + int(found[2]) * 60)


def _left_of_flux(text: str) -> float | None:
    return float(text) if re.fullmatch(r"\s*\d{1,12}(\.\d*)?\s*", text) else None  # "infinity" is none


SYSTEMS = (
    System("Slurm", "SLURM_JOB_ID", ("squeue", "-h", "-j", "{}", "-o", "%L"), clock_s, _of_slurm),
    System("PBS", "PBS_JOBID", ("qstat", "-f", "{}"), _left_of_qstat, _of_pbs),
    System("LSF", "LSB_JOBID", ("bjobs", "-noheader", "-o", "time_left", "{}"), _left_of_bjobs, _of_lsf),
    # It tells the end to nobody within a job; with `-l s_rt=` it warns by SIGUSR1.
    System("Grid Engine", "SGE_TASK_ID", (), clock_s, _of_grid_engine),
    System("Flux", "FLUX_JOB_ID", ("flux", "job", "timeleft", "{}"), _left_of_flux, _of_flux),
)
