"""The command `parcompute`: run an experiment, plot and show its file, tell what this machine offers."""

from __future__ import annotations

import json
import runpy
import sys
from pathlib import Path

import click

from parcompute import __version__


@click.group(epilog="Each command has --help with an example.")
@click.version_option(__version__)
def commands() -> None:
    """Run NumPy work on all cores, measure how it scales, and say what the rest was lost to."""


def main() -> None:
    """Run the command and leave the program with its exit status."""
    from parcompute.options import leave

    leave(commands, None)


@commands.command(
    context_settings={"ignore_unknown_options": True, "allow_interspersed_args": False},
    epilog="Example: parcompute run experiments/montecarlo.py --preset quick --workers 1,2\n\n"
    "The options of an experiment: parcompute run experiments/montecarlo.py --help",
)
@click.argument("file", type=click.Path(exists=True, dir_okay=False))
@click.argument("arguments", nargs=-1, type=click.UNPROCESSED)
def run(file: str, arguments: tuple[str, ...]) -> None:
    """Run the experiment in FILE: the same as ``python FILE ARGUMENTS``."""
    sys.argv = [file, *arguments]
    sys.path.insert(0, str(Path(file).parent.resolve()))
    runpy.run_path(file, run_name="__main__")
    click.echo(f"parcompute: {file} has run no experiment; it should end with: NAME.main()", err=True)
    sys.exit(2)


@commands.command(name="machine", epilog="Example: parcompute machine --json")
@click.option("--json", "as_json", is_flag=True, help="For programs.")
def machine_(as_json: bool) -> None:
    """Tell what this process may use: CPUs, memory, limits, and the reason for each number."""
    from parcompute.machine import Machine

    machine = Machine.read()
    click.echo(json.dumps(machine.as_dict(), indent=2) if as_json else "\n".join(machine.describe()))


@commands.command(epilog="Example: parcompute show results/reference/montecarlo.h5")
@click.argument("files", nargs=-1, required=True, type=click.Path())
def show(files: tuple[str, ...]) -> None:
    """Print what FILES hold: times, speed-ups and efficiencies with their intervals, and the verdict."""
    from parcompute import record, tables
    from parcompute.studies import studies

    for file in files:
        if not (found := studies(record.read(file, timelines=True))):
            click.echo(f"{file}: no runs yet")
        for study in found:
            click.echo("\n".join([*tables.table(study), "", *tables.verdicts(study), ""]))


@commands.command(epilog="Example: parcompute plot results/*/montecarlo.h5 --format pdf")
@click.argument("files", nargs=-1, required=True, type=click.Path())
@click.option(
    "--format", "formats", multiple=True, type=click.Choice(["png", "svg", "pdf"]), help="Again and again; png and svg."
)
def plot(files: tuple[str, ...], formats: tuple[str, ...]) -> None:
    """Draw the figures of FILES beside them, from the files alone."""
    from parcompute import plates

    for file in files:
        for path in plates.save(Path(file), formats=formats or ("png", "svg")):
            click.echo(path)


if __name__ == "__main__":
    main()
