"""The command `parcompute`: run an experiment, plot and show its file, tell what this machine offers."""

from __future__ import annotations

import json
import runpy
import sys
from pathlib import Path
from typing import Any

import click

from parcompute._version import __version__
from parcompute.cluster.command import submit
from parcompute.experiments.command_line import Counts, Schedules
from parcompute.experiments.experiment import Experiment

# What is fitted unless it is said.
FITTED = ("amdahl", "usl", "logarithmic", "saturation")


@click.group(epilog="Each command has --help with an example.")
@click.version_option(__version__)
def commands() -> None:
    """Run NumPy work on all cores, measure how it scales, and say what the rest was lost to."""


def main() -> None:
    """Run the command and leave the program with its exit status."""
    from parcompute.experiments.command_line import leave

    leave(commands, None)


@commands.command(
    context_settings={"ignore_unknown_options": True, "allow_interspersed_args": False},
    epilog="Example: parcompute run experiments/montecarlo.py --preset quick --workers 1,2\n\n"
    "The options of an experiment: parcompute run experiments/montecarlo.py --help",
)
@click.argument("file", type=click.Path(exists=True, dir_okay=False))
@click.argument("arguments", nargs=-1, type=click.UNPROCESSED)
def run(file: str, arguments: tuple[str, ...]) -> None:
    """Run FILE, an experiment or any program: the same as ``python FILE ARGUMENTS``.

    In a batch job it heeds the time limit: what a checkpoint or a record has is kept, the exit status is 75, and a job
    of Slurm is requeued and goes on where it was.
    """
    from parcompute.cluster.going_on import going_on

    sys.argv = [file, *arguments]
    sys.path.insert(0, str(Path(file).parent.resolve()))
    with going_on():
        defined = runpy.run_path(file, run_name="__main__")
        if any(isinstance(value, Experiment) for value in defined.values()):
            click.echo(f"parcompute: {file} has run no experiment; it should end with: NAME.main()", err=True)
            sys.exit(2)


commands.add_command(submit)


@commands.command(name="machine", epilog="Example: parcompute machine --json")
@click.option("--json", "as_json", is_flag=True, help="For programs.")
def machine_(as_json: bool) -> None:
    """Tell what this process may use: CPUs, memory, limits, and the reason for each number."""
    from parcompute.machine.machine import Machine

    machine = Machine.read()
    click.echo(json.dumps(machine.as_dict(), indent=2) if as_json else "\n".join(machine.describe()))


_SEED = click.option("--seed", type=int, help="Of the random streams; the newest if left out.")
_N_ITEMS = click.option("--n-items", type=int, help="Size of the problem; that of the newest runs if left out.")


def _of_one_study(command: Any) -> Any:
    """Add the options that choose among the studies of a file."""
    named = "Which, by the first digits of their id, or `newest`; `show` lists them."
    return click.option("--conditions", help=named)(_SEED(_N_ITEMS(command)))


@commands.command(epilog="Example: parcompute show results/reference/montecarlo.h5 --csv > runs.csv")
@click.argument("files", nargs=-1, required=True, type=click.Path())
@click.option("--json", "form", flag_value="json", help="For programs: studies, points, fits, with intervals.")
@click.option("--csv", "form", flag_value="csv", help="For spreadsheets: one row per run, as recorded.")
def show(files: tuple[str, ...], form: str | None) -> None:
    """Print what FILES hold: times, speed-ups and efficiencies with their intervals, and the verdict."""
    from parcompute.analysis import tables
    from parcompute.analysis.studies import studies, unlike_conditions
    from parcompute.record import record

    read = [record.read(file, timelines=form != "csv") for file in files]
    if form == "csv":
        click.echo(tables.csv_of([(recorded.path, run) for recorded in read for run in recorded.runs]), nl=False)
        return
    if form == "json":
        click.echo(json.dumps({str(r.path): [tables.as_dict(study) for study in studies(r)] for r in read}, indent=2))
        return
    for recorded in read:
        if not (found := studies(recorded)):
            click.echo(f"{recorded.path}: no runs yet")
        if unlike := unlike_conditions(found):
            click.echo("\n  ".join([f"{recorded.path}: runs under unlike conditions, kept apart:", *unlike]) + "\n")
        for study in found:
            click.echo("\n".join([*tables.table(study), "", *map(str, tables.verdicts(study)), ""]))


@commands.command(epilog="Example: parcompute plot results/*/montecarlo.h5 --format pdf --figure speedup --width 85mm")
@click.argument("files", nargs=-1, required=True, type=click.Path())
@click.option(
    "--format", "formats", multiple=True, type=click.Choice(["png", "svg", "pdf"]), help="Again and again; png and svg."
)
@click.option("--figure", "kinds", multiple=True, help="Again and again; all that the runs allow if left out.")
@click.option(
    "--width", default="one", show_default=True, help="one or two columns of a page, or a length such as 85mm."
)
@click.option("--style", default="light", show_default=True, help="light, or dark for slides.")
@_of_one_study
def plot(
    files: tuple[str, ...], formats: tuple[str, ...], kinds: tuple[str, ...], width: str, style: str, **chosen: Any
) -> None:
    """Draw the figures of FILES beside them, from the files alone."""
    from parcompute.figures import pages

    page = pages.Page(pages.inches(width), style)
    for file in files:
        for path in pages.save(
            Path(file), formats=formats or ("png", "svg"), figures=kinds or None, page=page, **chosen
        ):
            click.echo(path)


# One column, or several that are numbered repetitions or a curve each; without a name, what the values are.
_VALUES: dict[str, Any] = {"multiple": True, "is_flag": False, "flag_value": "", "metavar": "[COLUMN]"}


@commands.command(
    epilog="Example: parcompute fit measured.csv --workers cores --time time_ms --curve system --law usl\n\n"
    "A COLUMN is a heading, or its number from 1. docs/reference/tables.md says which tables are read."
)
@click.argument("file", type=click.Path())
@click.option("--law", "laws", multiple=True, help="Again and again; amdahl, usl, logarithmic and saturation.")
@click.option("--loss", default="relative", show_default=True, help="relative, log, throughput or linearised.")
@click.option("--workers", default="", metavar="COLUMN", help="Of a table: the column with the numbers of workers.")
@click.option("--time", "times", **_VALUES, help="With times; of all its values, if no column is named.")
@click.option("--rate", "rates", **_VALUES, help="The same of rates.")
@click.option("--round", default="", metavar="COLUMN", help="The one with the number of the repetition.")
@click.option("--curve", "curves", multiple=True, metavar="COLUMN", help="Again and again: what tells curves apart.")
@click.option("--ignore", "ignored", multiple=True, metavar="COLUMN", help="Again and again: what does not matter.")
@click.option("--unit", type=click.Choice(["ns", "us", "ms", "s", "min", "h"]), help="Of the times.")
@click.option("--decimal", type=click.Choice([".", ","]), help="What stands before decimals.")
@click.option("--scaling", type=click.Choice(["strong", "weak"]), help="weak: the work grew with the workers.")
@click.option("--json", "as_json", is_flag=True, help="For programs.")
@_of_one_study
def fit(
    file: str,
    laws: tuple[str, ...],
    loss: str,
    times: tuple[str, ...],
    rates: tuple[str, ...],
    as_json: bool,
    conditions: str | None,
    seed: int | None,
    n_items: int | None,
    **columns: Any,
) -> None:
    """Fit laws of scaling to FILE: a record, any table of workers and times or rates, or what benchmark tools write."""
    from parcompute.analysis import tables
    from parcompute.analysis.choice import compare_laws
    from parcompute.analysis.measurements import points
    from parcompute.analysis.measurements.columns import Named

    if times and rates:
        raise click.UsageError("--time and --rate exclude each other; pass one of them")
    named = Named(
        values=tuple(filter(None, times + rates)),
        kind="time" if times else "rate" if rates else "",
        **{name: value for name, value in columns.items() if value},
    )
    curves = points.of_file(Path(file), named, conditions=conditions, seed=seed, n_items=n_items)
    found = {
        name: compare_laws(
            points.of_laws(each, laws, FITTED), each.n_workers, each.times_s, loss=loss, rounds=each.rounds
        )
        for name, each in curves.items()
    }
    if as_json:
        told = {name: {"read": curves[name].how or None, **compared.as_dict()} for name, compared in found.items()}
        click.echo(json.dumps(told, indent=2))
        return
    if how := next(iter(curves.values())).how:
        click.echo(f"{file}: {how}\n")
    for name, compared in found.items():
        click.echo("\n".join([name, *(f"  {line}" for line in compared.describe()), ""]))
    if len(found) > 1:
        names = {name.removeprefix(f"{file}: "): compared for name, compared in found.items()}
        click.echo("\n".join(tables.of_laws(names)))


@commands.command(epilog="Example: parcompute compare before.h5 after.h5")
@click.argument("a", type=click.Path())
@click.argument("b", type=click.Path())
@click.option("--json", "as_json", is_flag=True, help="For programs.")
@_SEED
@_N_ITEMS
def compare(a: str, b: str, as_json: bool, seed: int | None, n_items: int | None) -> None:
    """Say how much faster the runs of B are than those of A, and in which conditions the two differ.

    Of each file the newest conditions are taken; with A and B the same file, its two newest.
    """
    from parcompute.analysis import comparison
    from parcompute.record import record

    found = comparison.compare(record.read(a), record.read(b), seed=seed, n_items=n_items)
    click.echo(json.dumps(found.as_dict(), indent=2) if as_json else "\n".join(found.describe()))


@commands.command(epilog="Example: parcompute report results/reference/montecarlo.h5 --output page.html")
@click.argument("files", nargs=-1, required=True, type=click.Path())
@click.option("--output", type=click.Path(dir_okay=False), help="Where to write; beside the first file if left out.")
def report(files: tuple[str, ...], output: str | None) -> None:
    """Write one self-contained HTML page about FILES: verdict, figures, tables, conditions, rules and data."""
    from parcompute.figures import report

    click.echo(report.write([Path(file) for file in files], Path(output) if output else None))


@commands.command(epilog="Example: parcompute advise experiments/montecarlo.py::montecarlo")
@click.argument("target", metavar="FILE.py::NAME")
@click.argument("arrays", nargs=-1, type=click.Path(exists=True, dir_okay=False))
@click.option("--n-items", type=click.IntRange(1), help="Size of the problem, where there are no ARRAYS.")
@click.option("--workers", type=click.IntRange(1), help="The most to use; all usable CPUs if left out.")
@click.option("--json", "as_json", is_flag=True, help="For programs.")
def advise(target: str, arrays: tuple[str, ...], n_items: int | None, workers: int | None, as_json: bool) -> None:
    """Say how to run NAME of FILE.py: an experiment, a kernel of blocks of ARRAYS (.npy files), or a call per item."""
    from parcompute.experiments import scripts

    found = scripts.advice_for(target, arrays, n_items, workers)
    click.echo(json.dumps(found.as_dict(), indent=2) if as_json else str(found))


@commands.command(epilog="Example: parcompute new heat && make experiment-heat")
@click.argument("name")
@click.option("--folder", default="experiments", show_default=True, type=click.Path(file_okay=False))
def new(name: str, folder: str) -> None:
    """Write an experiment NAME that runs at once, to begin from."""
    from parcompute.experiments import scripts

    click.echo(scripts.write_template(name, Path(folder)))


@commands.command(epilog="Example: parcompute merge node*/montecarlo.h5 --into montecarlo.h5")
@click.argument("files", nargs=-1, type=click.Path())
@click.option("--into", type=click.Path(dir_okay=False), help="A new file, or one to add to.")
@click.option("--parts", type=click.Path(), help="A folder of parts that `submit` has made; which are missing is said.")
def merge(files: tuple[str, ...], into: str | None, parts: str | None) -> None:
    """Put the runs of FILES, of several machines or jobs, into one file."""
    from parcompute.cluster.parts import Parts
    from parcompute.record import merging

    found = Parts.read(Path(parts)) if parts else None
    paths = [*map(Path, files), *(found.records() if found else ())]
    if found is None and not (files and into):
        raise click.UsageError("pass FILES and --into, or --parts")
    for line in merging.merge(paths, Path(into)) if paths and into else ():
        click.echo(line)
    if found is not None and (missing := found.describe()):
        click.echo("\n".join(missing), err=True)
        sys.exit(1)


@commands.command(epilog="Example: parcompute simulate results/reference/montecarlo.h5 --workers 1,2,4,64,1024")
@click.argument("file", type=click.Path())
@click.option("--workers", type=Counts(), default="1,2,4,8,16,32,64,128,256,512,1024", show_default=True)
@click.option("--nodes", type=Counts(), default="1", show_default=True, help="Numbers of nodes; --workers are on each.")
@click.option("--backend", default="processes", show_default=True, help="Whose run is replayed.")
@click.option("--schedules", type=Schedules(), default="", help="Under which; as it was run if left out.")
@click.option("--json", "as_json", is_flag=True, help="For programs: nothing is drawn.")
@_of_one_study
def simulate(
    file: str,
    workers: tuple[int, ...],
    nodes: tuple[int, ...],
    backend: str,
    schedules: tuple[str, ...],
    as_json: bool,
    **chosen: Any,
) -> None:
    """Predict the speed-up on other numbers of workers and nodes by replaying a recorded timeline of FILE."""
    from parcompute.analysis import simulate
    from parcompute.analysis.studies import choose
    from parcompute.figures import pages
    from parcompute.record import record

    study = choose(record.read(file, timelines=True), **chosen)
    prediction = simulate.predict(study.runs, backend, workers, schedules, nodes or (1,))
    if as_json:
        click.echo(json.dumps(prediction.as_dict(), indent=2))
        return
    click.echo("\n".join(prediction.describe()))
    for path in pages.save_prediction(study, prediction, Path(file)):
        click.echo(path)


if __name__ == "__main__":
    main()
