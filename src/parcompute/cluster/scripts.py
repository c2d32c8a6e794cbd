"""The job script, as a careful user would write it by hand: a value in, text out.

sbatch NAME.sbatch ──► batch shell ──exec──► srun ──► python -m parcompute run FILE, once per node
                           ▲ SIGUSR1, some time before the limit: srun hands it on
"""

from __future__ import annotations

import shlex
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from parcompute.machine.batch import systems
from parcompute.machine.batch.tasks import DONE_VARIABLE, PART_VARIABLE

ENGINES = ("mpi", "dask", "none")

# The scheduler's address is in this file; the backend "dask" finds it by this variable.
SCHEDULER_VARIABLE = "PARCOMPUTE_SCHEDULER_FILE"


@dataclass(frozen=True, slots=True)
class Request:
    """What a job asks of Slurm, and what it runs.

    Attributes
    ----------
    name : str
        Of the job, and of its script and log.
    nodes : int
        How many.
    command : tuple of str
        What is run: the file and its arguments.
    engine : str
        What connects the nodes: one of `ENGINES`.
    python : str
        The interpreter.
    folder : str
        Where to start: relative paths of the command are relative to it.
    log : str
        Where its output goes; ``%j`` is the job's id.
    time, partition, account : str
        As for sbatch; empty leaves them to the site.
    cpus_per_task : int or None
        CPUs on each node; None takes whole nodes.
    options : tuple of str
        Further ones of sbatch, which win.
    environ : tuple of (str, str)
        Variables that the submitting environment has and the job needs.
    tasks : tuple of int
        Numbers of the tasks of a job array; empty for none.
    n_parts : int
        Of how many parts the tasks are; 0 for no job array.
    done : str
        File that is made when the job has done its work; empty for none. ``{}`` is the task's number.
    """

    name: str
    nodes: int
    command: tuple[str, ...]
    engine: str
    python: str
    folder: str
    log: str
    time: str = ""
    partition: str = ""
    account: str = ""
    cpus_per_task: int | None = None
    options: tuple[str, ...] = ()
    environ: tuple[tuple[str, str], ...] = ()
    tasks: tuple[int, ...] = ()
    n_parts: int = 0
    done: str = ""

    def script(self) -> str:
        """Return the text of the job script."""
        return "\n".join([*self._head(), "", *self._environment(), *self._body()]) + "\n"

    def _head(self) -> Iterator[str]:
        # Without a unit Slurm counts minutes.
        parts = self.time.count(":") + self.time.count("-")
        limit_s = systems.clock_s(self.time if parts else f"{self.time}:00") or 0.0
        # Slurm looks at its clock every half minute and may send the signal as much earlier.
        warning_s = 15 if 0 < limit_s <= 120 else 60
        yield "#!/bin/bash"
        yield f"#SBATCH --job-name={self.name}"
        yield f"#SBATCH --nodes={self.nodes}"
        yield "#SBATCH --ntasks-per-node=1"
        yield f"#SBATCH --cpus-per-task={self.cpus_per_task}" if self.cpus_per_task else "#SBATCH --exclusive"
        for name in ("time", "partition", "account"):
            if value := getattr(self, name):
                yield f"#SBATCH --{name}={value}"
        if self.tasks:
            yield f"#SBATCH --array={_ranges(self.tasks)}"
        yield f"#SBATCH --chdir={_quoted(self.folder)}"
        yield f"#SBATCH --output={_quoted(self.log)}"
        yield "#SBATCH --open-mode=append"
        yield "#SBATCH --requeue"
        yield f"#SBATCH --signal=B:USR1@{warning_s}"
        yield from (f"#SBATCH {option}" for option in self.options)

    def _environment(self) -> Iterator[str]:
        for name, value in self.environ:
            yield f"export {name}={shlex.quote(value)}"
        if self.n_parts:
            yield f'export {PART_VARIABLE}="$SLURM_ARRAY_TASK_ID/{self.n_parts}"'
        if self.done:
            yield f"export {DONE_VARIABLE}={self._of_task(self.done)}"

    def _body(self) -> Iterator[str]:
        python, command = shlex.quote(self.python), self._command()
        cpus = str(self.cpus_per_task) if self.cpus_per_task else '"$SLURM_CPUS_ON_NODE"'
        # From Slurm 22.05 on srun does not take over sbatch's --cpus-per-task.
        srun = f"srun --cpus-per-task={cpus}"
        if self.engine == "dask":
            file = f'"$PWD"/{_quoted(str(Path(self.log).with_name(f".{self.name}-")))}"$SLURM_JOB_ID.json"'
            yield f"export {SCHEDULER_VARIABLE}={file}"
            yield f'rm -f "${SCHEDULER_VARIABLE}"   # of the start before a requeue'
            scheduler = f"{python} -m distributed.cli.dask_scheduler --port 0 --no-dashboard"
            # As a step of its own, which Slurm ends with the job: what a script leaves in the background may live on.
            step = "srun --overlap --nodes=1 --ntasks=1 --cpus-per-task=1"
            yield f'{step} {scheduler} --scheduler-file "${SCHEDULER_VARIABLE}" &'
            worker = (
                f"{python} -m distributed.cli.dask_worker --nworkers 1 --nthreads 1 --memory-limit 0 --no-dashboard"
            )
            yield f'{srun} --overlap --kill-on-bad-exit=0 {worker} --scheduler-file "${SCHEDULER_VARIABLE}" &'
            yield f"exec {python} -m parcompute run {command}"
        elif self.engine == "mpi":
            yield f"exec {srun} {python} -m parcompute.mpi -m parcompute run {command}"
        else:
            yield f"exec {srun} --nodes=1 --ntasks=1 {python} -m parcompute run {command}"

    def _command(self) -> str:
        return " ".join(self._of_task(word) for word in self.command)

    def _of_task(self, word: str) -> str:
        before, mark, after = word.partition("{}")
        return f'{_quoted(before)}"$SLURM_ARRAY_TASK_ID"{_quoted(after)}' if mark and self.n_parts else _quoted(word)


def merge_script(request: Request, lines: Sequence[str]) -> str:
    """Return the script of the job that puts the results of others together, which `lines` do."""
    head = [
        "#!/bin/bash",
        f"#SBATCH --job-name={request.name}",
        "#SBATCH --ntasks=1",
        *(f"#SBATCH --{name}={value}" for name in ("partition", "account") if (value := getattr(request, name))),
        "#SBATCH --time=10:00",
        f"#SBATCH --chdir={_quoted(request.folder)}",
        f"#SBATCH --output={_quoted(request.log)}",
        "#SBATCH --open-mode=append",
    ]
    variables = [f"export {name}={shlex.quote(value)}" for name, value in request.environ]
    return "\n".join([*head, "", *variables, "", *lines]) + "\n"


def _quoted(text: str) -> str:
    return shlex.quote(text) if text else ""


def _ranges(numbers: Sequence[int]) -> str:
    """Write 0, 1, 2, 5 as ``0-2,5``.

    Examples
    --------
    >>> _ranges([0, 1, 2, 5])
    '0-2,5'
    """
    runs: list[list[int]] = []
    for number in sorted(numbers):
        if runs and runs[-1][-1] == number - 1:
            runs[-1][1:] = [number]
        else:
            runs.append([number])
    return ",".join("-".join(map(str, run)) for run in runs)
