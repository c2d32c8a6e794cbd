"""The command line of an experiment: its options, and the exit status of whatever happens."""

from __future__ import annotations

import sys
import sysconfig
import traceback
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import click

from parcompute.backends import base
from parcompute.executor.arguments import MOST_WORKERS
from parcompute.experiments.measure import WrongResult
from parcompute.jobs.job import KernelError
from parcompute.machine import limits
from parcompute.machine.batch import deadline
from parcompute.machine.batch.deadline import OutOfTime
from parcompute.values.blocks import SCHEDULES, Schedule
from parcompute.workers.start import METHODS

# Seconds that the runs of a preset may take before further rounds end; those of other presets as "default".
BUDGET_S = {"quick": 10.0, "default": 120.0, "full": 1800.0}

# Exit statuses: 0 done; 1 done, and the answer is bad (a wrong result); 2 it could not be done; 75 (EX_TEMPFAIL of
# sysexits.h) there was no time for the rest, the same command goes on; 130 interrupted.
OUT_OF_TIME = 75


class _Listed(click.ParamType[Any]):
    """Several values with commas between, as a tuple."""

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> tuple[Any, ...]:
        """Split, and check each."""
        if isinstance(value, tuple):
            return value
        try:
            return self.read([part.strip() for part in str(value).split(",")])
        except ValueError as error:
            self.fail(str(error), param, ctx)

    def read(self, parts: list[str]) -> tuple[Any, ...]:
        """Return the values; ValueError says what they should have been."""
        raise NotImplementedError


class Names(_Listed):
    """Names, each one of a list."""

    name = "names"

    def __init__(self, known: Sequence[str]) -> None:
        self.known = known

    def read(self, parts: list[str]) -> tuple[str, ...]:
        """Refuse unknown ones."""
        for part in parts:
            if part not in self.known:
                raise ValueError(f"{part!r} is unknown; pass some of {', '.join(self.known)}")
        return tuple(dict.fromkeys(parts))


class Schedules(_Listed):
    """Schedules, each with its chunk size behind another comma if wanted."""

    name = "schedules"

    def read(self, parts: list[str]) -> tuple[str, ...]:
        """Take "guided,dynamic,16" as two."""
        names: list[str] = []
        for part in parts if any(parts) else ():
            if names and part.isdecimal():
                names[-1] += f",{part}"
            else:
                names.append(part)
        return tuple(dict.fromkeys(str(Schedule.parse(name)) for name in names))


class Counts(_Listed):
    """Numbers of workers, or of nodes."""

    name = "counts"

    def read(self, parts: list[str]) -> tuple[int, ...]:
        """Sort them."""
        if not any(parts):
            return ()
        if not all(part.isdecimal() and 1 <= int(part) <= MOST_WORKERS for part in parts):
            raise ValueError(f"{','.join(parts)!r}: pass numbers from 1 to {MOST_WORKERS} with commas, like 1,2,4")
        return tuple(sorted({int(part) for part in parts}))


def command_line(
    name: str,
    question: str,
    sizes: Mapping[str, Sequence[int]],
    levels: Mapping[str, Sequence[Any]],
    perform: Callable[..., Any],
    argv: Sequence[str] | None,
) -> None:
    """Parse the arguments of an experiment, perform it, and leave the program.

    Parameters
    ----------
    name, question : str
        Of the experiment.
    sizes : mapping of str to sequence of int
        Its presets.
    levels : mapping of str to sequence
        What it compares unless the arguments say otherwise: see `parcompute.experiments.experiment.Experiment`.
    perform : callable
        Called with one keyword argument per option.
    argv : sequence of str or None
        The arguments; None takes the program's.
    """
    told = ", ".join(f"{name} {' and '.join(f'{n:,}' for n in numbers)}" for name, numbers in sizes.items())
    usual = {name: ",".join(map(str, values)) for name, values in levels.items()}

    @click.command(name=name, help=question, epilog=f"Example: python {name}.py --preset quick --workers 1,2")
    @click.option(
        "--preset",
        type=click.Choice(list(sizes)),
        default="default",
        show_default=True,
        help=f"Number of items: {told}.",
    )
    @click.option(
        "--workers",
        type=Counts(),
        default="",
        help="Numbers of workers, of each node with mpi and dask, like 2,4; one runs in any case; "
        f"1, 2, 4, … {limits.usable_cpus()} usable CPUs if left out.",
    )
    @click.option(
        "--nodes",
        type=Counts(),
        default="1",
        callback=lambda ctx, param, value: value or (1,),
        show_default=True,
        help="Numbers of nodes for mpi and dask, like 1,2,4.",
    )
    @click.option(
        "--cluster",
        envvar="PARCOMPUTE_SCHEDULER_FILE",
        show_envvar=True,
        help="Dask's scheduler: its address, or its scheduler file.",
    )
    @click.option(
        "--backends",
        type=Names(base.names()),
        default=usual["backends"],
        show_default=True,
        help="Which to compare; serial runs in any case.",
    )
    @click.option(
        "--variants",
        type=Names(levels["variants"]),
        default=usual["variants"] or None,
        callback=lambda ctx, param, value: value or (),
        show_default=True,
        hidden=not levels["variants"],
        help="Which of the experiment's own ways to compare.",
    )
    @click.option(
        "--schedules",
        type=Schedules(),
        default=usual["schedules"],
        callback=lambda ctx, param, value: value or levels["schedules"],
        show_default=True,
        help=f"Which of {', '.join(SCHEDULES)} to compare, like guided,dynamic,16.",
    )
    @click.option(
        "--start-methods",
        type=Names(METHODS),
        default=usual["start_methods"],
        show_default=True,
        help="Of processes and pool.",
    )
    @click.option(
        "--blas-threads",
        type=Counts(),
        default=usual["blas_threads"],
        show_default=True,
        help="Threads of BLAS in each worker, like 1,2.",
    )
    @click.option(
        "--scaling",
        type=click.Choice(["strong", "weak", "both"]),
        default="strong",
        show_default=True,
        help="The same items for every number of workers, as many per worker, or both.",
    )
    @click.option("--threads-per-worker", type=click.IntRange(1), default=1, show_default=True, help="Of processes.")
    @click.option(
        "--rounds",
        type=click.IntRange(1),
        default=6,
        show_default=True,
        help="Rounds that visit every configuration; fewer than 6 give no interval.",
    )
    @click.option(
        "--precision",
        type=click.FloatRange(0, min_open=True),
        default=0.02,
        show_default=True,
        help="Further rounds until the 95 % interval of each median time is within this share of it.",
    )
    @click.option(
        "--budget",
        type=click.FloatRange(0),
        help="Seconds after which no further round begins; "
        f"{', '.join(f'{preset} {s:g}' for preset, s in BUDGET_S.items())} if left out.",
    )
    @click.option(
        "--seed",
        type=click.IntRange(0, 2**63 - 1),
        default=1,
        show_default=True,
        help="Of the random streams and the order of runs.",
    )
    @click.option(
        "--results",
        type=click.Path(file_okay=False, path_type=Path),
        help="Folder of the results; results/<machine> if left out.",
    )
    def command(**options: Any) -> None:
        perform(**options)

    leave(command, argv, "interrupted; what was finished is recorded, the same command continues")


def leave(command: click.Command, argv: Sequence[str] | None, interrupted: str = "interrupted") -> None:
    """Run a command and leave the program with its exit status, a line on standard error for each failure.

    Parameters
    ----------
    command : click.Command
        What to run.
    argv : sequence of str or None
        Its arguments; None takes the program's.
    interrupted : str
        What to say after Ctrl-C.
    """
    try:
        with deadline.heeded():
            sys.exit(command.main(args=list(argv) if argv is not None else None, standalone_mode=False))
    except click.exceptions.Exit as end:
        sys.exit(end.exit_code)
    except click.ClickException as error:
        message = error.format_message()
        if "\n" in message:  # no arguments at all: the help
            error.show()
        else:
            _say(f"{message.rstrip('.')}; see --help")
        sys.exit(2)
    except (KeyboardInterrupt, click.Abort):
        click.echo(interrupted, err=True)
        sys.exit(130)
    except OutOfTime as error:
        _say(str(error))
        sys.exit(OUT_OF_TIME)
    except WrongResult as error:
        _say(f"{error}; the sweep is stopped")
        sys.exit(1)
    except Exception as error:
        if not _tells_all(error):
            traceback.print_exception(error.__cause__ if isinstance(error, KernelError) else error)
        _say(str(error) or type(error).__name__)
        sys.exit(2)


def _say(line: str) -> None:
    click.echo(f"parcompute: {line}", err=True)


def _tells_all(error: Exception) -> bool:
    """Whether a message is enough: it is parcompute's own, and no mistake in the experiment's code or in ours."""
    if type(error).__module__.partition(".")[0] == __package__.partition(".")[0]:
        return not isinstance(error, KernelError)  # which tells of the user's code
    files = [frame.filename for frame in traceback.extract_tb(error.__traceback__)]
    if isinstance(error, OSError):  # raised in a library on behalf of whoever called it
        files = [file for file in files if _is_own(file) or not _is_librarys(file)]
        return _is_own(files[-1])
    return _is_own(files[-1]) and type(error) in (ValueError, TypeError, RuntimeError)


def _is_own(file: str) -> bool:
    return Path(file).is_relative_to(Path(__file__).parents[1])


def _is_librarys(file: str) -> bool:
    folders = (sysconfig.get_path(name) for name in ("stdlib", "purelib", "platlib"))
    return file.startswith("<frozen ") or any(Path(file).is_relative_to(folder) for folder in folders)
