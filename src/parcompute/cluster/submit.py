"""From what was asked to jobs: which there are, their scripts, submitted all or none, and followed to the end."""

from __future__ import annotations

import ast
import os
import shlex
import sys
from collections.abc import Sequence
from dataclasses import dataclass, replace
from importlib.util import find_spec
from pathlib import Path

from parcompute.cluster import slurm
from parcompute.cluster.parts import Parts
from parcompute.cluster.scripts import Request, merge_script


@dataclass(frozen=True, slots=True)
class Asked:
    """What `parcompute submit` was asked for.

    Attributes
    ----------
    file, arguments : str, tuple of str
        What to run.
    nodes : tuple of int
        Numbers of nodes, one job each.
    array : int
        Tasks among which the work is dealt; 0 for no job array.
    engine : str
        One of `parcompute.cluster.scripts.ENGINES`; empty for the usual one.
    one_job : bool
        Whether one job of the most nodes runs all of them.
    missing : bool
        Whether only those parts are run that are not done.
    results : Path or None
        Folder of the results; None is results/<cluster>.
    again : str
        The command line that submits what is missing.
    cpus_per_task, time, partition, account, options
        See `parcompute.cluster.scripts.Request`.
    """

    file: str
    arguments: tuple[str, ...] = ()
    nodes: tuple[int, ...] = (1,)
    array: int = 0
    engine: str = ""
    one_job: bool = False
    missing: bool = False
    results: Path | None = None
    again: str = ""
    cpus_per_task: int | None = None
    time: str = ""
    partition: str = ""
    account: str = ""
    options: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Planned:
    """The jobs of one submission.

    Attributes
    ----------
    scripts : tuple of (Path, str)
        File and text of each job script.
    last : tuple of (Path, str) or None
        That of the job that begins when all others have ended, and puts their results together.
    parts : Parts or None
        What it puts together.
    fresh : tuple of str
        The parts that the jobs make.
    logs : tuple of str
        Where each job writes, the last one too; ``%j`` is its id.
    record : Path or None
        Where the results of an experiment will be.
    """

    scripts: tuple[tuple[Path, str], ...]
    last: tuple[Path, str] | None
    parts: Parts | None
    fresh: tuple[str, ...]
    logs: tuple[str, ...]
    record: Path | None


def plan(asked: Asked, cluster: str) -> Planned:
    """Return the jobs.

    Raises
    ------
    ValueError
        If what was asked does not fit together.
    """
    experiment = experiment_in(Path(asked.file))
    name = experiment or Path(asked.file).stem
    results = asked.results or Path("results") / cluster
    engine = asked.engine or usual_engine(asked.nodes)
    if engine == "none" and max(asked.nodes) > 1:
        raise ValueError(
            f"--nodes {','.join(map(str, asked.nodes))} needs something that connects nodes: pip install "
            "'parcompute[mpi]' or 'parcompute[dask]' and --engine mpi or dask; --engine none uses one node"
        )
    if asked.array and len(asked.nodes) > 1:
        raise ValueError("--array deals one sweep over its tasks; pass one number of --nodes, or no --array")
    counts = (max(asked.nodes),) if asked.one_job else asked.nodes
    parts = None
    if asked.array or (experiment and len(counts) > 1):
        names = tuple(map(str, range(asked.array))) or tuple(f"{n}n" for n in counts)
        parts = Parts(results / f"{name}-parts", names, asked.again)
    elif asked.missing:
        raise ValueError("--missing is for --array, and for several numbers of --nodes of an experiment")
    fresh = () if parts is None else parts.missing() if asked.missing else parts.names
    python_path = os.environ.get("PYTHONPATH", "")
    common = Request(
        name=name,
        nodes=counts[0],
        command=(),
        engine=engine,
        python=sys.executable,
        folder=os.getcwd(),
        log=str(results / f"{name}-%j.log"),
        time=asked.time,
        partition=asked.partition,
        account=asked.account,
        cpus_per_task=asked.cpus_per_task,
        options=asked.options,
        environ=(("PYTHONPATH", python_path),) if python_path else (),
    )
    requests = []
    for n in () if asked.array else counts:
        part = f"{n}n"
        if parts is not None and part not in fresh:
            continue
        named = f"{name}-{part}"
        swept = asked.nodes if asked.one_job else (n,)
        folder = results if parts is None else parts.folder / part
        command = (asked.file, *_of_experiment(asked, engine, swept, folder)) if experiment else (asked.file,)
        done = "" if parts is None else str(parts.mark(part))
        log = str(results / f"{named}-%j.log")
        requests.append(replace(common, name=named, nodes=n, command=(*command, *asked.arguments), done=done, log=log))
    if parts is not None and asked.array and fresh:
        more = _of_experiment(asked, engine, asked.nodes, parts.folder / "{}") if experiment else ()
        requests.append(
            replace(
                common,
                name=f"{name}-array",
                command=(asked.file, *more, *asked.arguments),
                tasks=tuple(map(int, fresh)),
                n_parts=asked.array,
                done=str(parts.mark("{}")),
                log=str(results / f"{name}-array-%A-%a.log"),
            )
        )
    record = results / f"{name}.h5" if experiment else None
    last = None
    if parts is not None and fresh:
        merging = replace(common, name=f"{name}-merge", log=str(results / f"{name}-merge-%j.log"))
        last = results / f"{name}-merge.sbatch", merge_script(merging, _together(asked, parts, record))
    return Planned(
        scripts=tuple((results / f"{request.name}.sbatch", request.script()) for request in requests),
        last=last,
        parts=parts,
        fresh=fresh,
        logs=(*(request.log for request in requests), *([merging.log] if last else [])),
        record=record,
    )


def _of_experiment(asked: Asked, engine: str, nodes: Sequence[int], results: Path) -> tuple[str, ...]:
    """Return the options of an experiment's own command line."""
    across = ("--backends", engine) if "--backends" not in asked.arguments else ()
    swept = () if engine == "none" else (*across, "--nodes", ",".join(map(str, nodes)))
    return ("--results", str(results), *swept)


def _together(asked: Asked, parts: Parts, record: Path | None) -> list[str]:
    """Return the lines of the job that puts the parts together."""
    command = f"{shlex.quote(sys.executable)} -m parcompute"
    merge = f"{command} merge --parts {shlex.quote(str(parts.folder))}"
    if record is None:  # the same program, without a part: it finds the checkpoints of all parts, and has the result
        return [f"{merge} || exit", f"exec {command} run {shlex.join([asked.file, *asked.arguments])}"]
    file = shlex.quote(str(record))
    return [
        "status=0",
        f"{merge} --into {file} || status=$?",
        f"{command} show {file}",
        f"{command} plot {file} --conditions newest",  # which has nothing to draw of runs that were all disturbed
        "exit $status",
    ]


def experiment_in(file: Path) -> str:
    """Return the name of the experiment that a file defines; empty if it is another program. Nothing of it is run.

    Raises
    ------
    ValueError
        If it is no Python.
    """
    try:
        module = ast.parse(file.read_text("utf-8"))
    except (SyntaxError, UnicodeDecodeError) as error:
        raise ValueError(f"{file}: is no Python program ({error})") from None
    for node in module.body:
        for decorator in getattr(node, "decorator_list", ()):
            called = decorator.func if isinstance(decorator, ast.Call) else None
            if getattr(called, "attr", getattr(called, "id", "")) == "experiment":
                return str(getattr(node, "name", ""))
    return ""


def usual_engine(nodes: Sequence[int]) -> str:
    """Return what connects the nodes unless it is said."""
    return "mpi" if max(nodes) > 1 and find_spec("mpi4py") is not None else "none"


def submit(planned: Planned) -> list[str]:
    """Write the scripts and submit them, all or none; return the ids of the jobs.

    Raises
    ------
    SlurmError
        If sbatch refuses one; then the others are cancelled, and no script is left.
    """
    ids: list[str] = []
    written: list[Path] = []
    try:
        for path, text in planned.scripts:
            written.append(path)
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(text, "utf-8")
        if planned.parts is not None:
            planned.parts.write(planned.fresh)  # before a job may look there
        ids += (slurm.submit(path) for path, _ in planned.scripts)
        if planned.last is not None:
            path, text = planned.last
            written.append(path)
            path.write_text(text, "utf-8")
            ids.append(slurm.submit(path, after=ids))
    except BaseException:
        slurm.cancel(ids)
        for path in written:
            path.unlink(missing_ok=True)
        if planned.parts is not None and not planned.parts.records():
            (planned.parts.folder / "parts.json").unlink(missing_ok=True)
            _remove_empty(planned.parts.folder)
        for path in written[:1]:
            _remove_empty(path.parent)
        raise
    return ids


def _remove_empty(folder: Path) -> None:
    for each in (folder, *folder.parents):
        try:
            each.rmdir()
        except OSError:  # something is in it
            return
