"""The command `parcompute submit`."""

from __future__ import annotations

import re
import shlex
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

if TYPE_CHECKING:
    from parcompute.cluster.slurm import State
    from parcompute.cluster.submit import Planned


class _Submit(click.Command):
    """A command whose arguments behind ``--`` are sbatch's."""

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        """Take them away first."""
        own, options = args, []
        if "--" in args:
            own, options = args[: args.index("--")], args[args.index("--") + 1 :]
        missing = [] if "--missing" in own else ["--missing"]
        again = shlex.join(["parcompute", "submit", *own, *missing, *(["--", *options] if options else [])])
        ctx.obj = tuple(options), again
        return super().parse_args(ctx, list(own))


def _numbers(ctx: click.Context, parameter: click.Parameter, value: str) -> tuple[int, ...]:
    parts = [part.strip() for part in value.split(",")]
    if not all(re.fullmatch("[1-9][0-9]{0,5}", part) for part in parts):
        raise click.BadParameter(f"{value!r}: pass numbers of nodes with commas, like 1,2,4")
    return tuple(sorted({int(part) for part in parts}))


@click.command(
    cls=_Submit,
    context_settings={"ignore_unknown_options": True},
    epilog="Example: parcompute submit experiments/montecarlo.py --nodes 1,2,4 --time 30:00 --preset full\n\n"
    "Further options of sbatch: parcompute submit long.py --time 1:00:00 -- --mem=8G --constraint=skylake",
)
@click.argument("file", type=click.Path(exists=True, dir_okay=False))
@click.argument("arguments", nargs=-1, type=click.UNPROCESSED)
@click.option("--nodes", default="1", callback=_numbers, show_default=True, help="Numbers of nodes, one job each.")
@click.option("--one-job", is_flag=True, help="One job for all numbers of nodes, which holds the most all the time.")
@click.option("--array", type=click.IntRange(1), help="Deal the work over so many independent tasks.")
@click.option("--missing", is_flag=True, help="Only the parts that are not done, of the same command before.")
@click.option("--engine", type=click.Choice(["mpi", "dask", "none"]), help="Connects nodes; mpi where it is there.")
@click.option("--cpus-per-task", type=click.IntRange(1), help="CPUs on each node; whole nodes if left out.")
@click.option("--time", default="", help="Limit, like 30:00 or 1-12:00:00; the partition's if left out.")
@click.option("--partition", default="")
@click.option("--account", default="")
@click.option("--results", type=click.Path(file_okay=False, path_type=Path), help="results/<cluster> if left out.")
@click.option("--wait", is_flag=True, help="Follow to the end; the exit status says whether all was done.")
@click.option("--dry-run", is_flag=True, help="Print the scripts and submit nothing.")
@click.pass_obj
def submit(behind: tuple[tuple[str, ...], str], /, file: str, *, wait: bool, dry_run: bool, **chosen: Any) -> None:
    """Submit FILE, an experiment or any program, to Slurm; ARGUMENTS are its own, behind ``--`` are sbatch's.

    One job for each number of nodes: a job does not hold four nodes while it measures one. The records of an
    experiment are merged when all have ended, drawn, and told.
    """
    from parcompute.cluster import slurm
    from parcompute.cluster.submit import Asked, plan
    from parcompute.cluster.submit import submit as submit_all

    if not dry_run:
        slurm.require()
    chosen |= {"engine": chosen["engine"] or "", "array": chosen["array"] or 0}
    options, again = behind
    planned = plan(Asked(file, options=options, again=again, **chosen), slurm.cluster_name())
    if dry_run:
        for path, text in (*planned.scripts, *([planned.last] if planned.last else [])):
            click.echo(f"# {path}\n{text}")
        return
    if not planned.scripts:
        click.echo("nothing is missing")
        return
    ids = submit_all(planned)
    for id, (path, _), log in zip(ids, (*planned.scripts, planned.last or (Path(), "")), planned.logs, strict=False):
        click.echo(f"submitted job {id}: {path}, its output will be in {_log(log, id)}")
    if planned.record is None:
        click.echo(f"to see how it stands: squeue --jobs={','.join(ids)}")
    else:
        click.echo(f"the results will be in {planned.record}; to show them: parcompute show {planned.record}")
    if wait:
        sys.exit(_follow(ids, planned))


def _follow(ids: Sequence[str], planned: Planned) -> int:
    """Follow the jobs to the end; return the exit status."""
    from parcompute.cluster import slurm

    line = _Line()
    try:
        last = slurm.follow(ids, line.show)
    except KeyboardInterrupt:
        click.echo(f"\nthe jobs go on; to end them: scancel {' '.join(ids)}", err=True)
        raise
    finally:
        line.end()
    _, bad = slurm.over(last)
    for state in bad:
        click.echo(f"job {state.id}: {state.state}", err=True)
    if planned.last is not None:
        log = Path(_log(planned.logs[-1], ids[-1]))
        if log.exists():
            click.echo(log.read_text("utf-8", errors="replace"), nl=False)
    return 1 if bad else 0


def _log(log: str, id: str) -> str:
    return log.replace("%j", id).replace("%A", id).replace("%a", "*")


class _Line:
    """One line that says how jobs stand: rewritten on a terminal, printed where it changes elsewhere."""

    def __init__(self) -> None:
        self._before = ""

    def show(self, states: Sequence[State]) -> None:
        """Show it."""
        counts: dict[str, list[State]] = {}
        for state in states:
            counts.setdefault(state.state, []).append(state)
        told = []
        for name, alike in counts.items():
            one = alike[0]
            more = {"RUNNING": f" ({one.left} left, on {one.where})", "PENDING": f" {one.where}"}.get(name, "")
            told.append(f"{len(alike)} {name.lower()}{more}")
        line = ", ".join(told) or "unknown to Slurm"
        if sys.stdout.isatty():
            click.echo(f"\r\033[K{line}", nl=False)
        elif _without_time(line) != _without_time(self._before):
            click.echo(line)
        self._before = line

    def end(self) -> None:
        """Leave the line."""
        if sys.stdout.isatty():
            click.echo()


def _without_time(line: str) -> str:
    return re.sub(r"\([^)]* left", "", line)
