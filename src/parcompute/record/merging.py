"""Put the runs of several records, of machines or tasks of a job array, into one."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from parcompute.machine.provenance import Provenance
from parcompute.record.record import Record, Recorded, RecordError, read
from parcompute.values.rounds import conditions_of
from parcompute.values.sweep import Configuration, Run


def merge(files: Sequence[Path], into: Path) -> list[str]:
    """Append the runs of `files` to the record `into`; a run that is there already is not added again.

    The files themselves stay as they are.

    Parameters
    ----------
    files : sequence of Path
        Records of one experiment.
    into : Path
        A new file, or a record of the same experiment.

    Returns
    -------
    list of str
        What was added from each, and which rounds lack runs that others have.

    Raises
    ------
    RecordError
        If a file cannot be read or written, or the files are of different experiments. Nothing has been written then.
    """
    recorded = [read(file, timelines=True) for file in files]
    if len(names := {each.experiment for each in recorded}) > 1:
        raise RecordError(f"{files[0]}: the files hold the experiments {', '.join(sorted(names))}; merge those of one")
    told = []
    with Record.open(into, recorded[0].experiment) as record:
        known = {_identity(run) for run in read(into).runs}
        for each in recorded:
            added = 0
            for run in each.runs:
                if _identity(run) in known:
                    continue
                known.add(_identity(run))
                record.add_provenance(run.provenance, each.provenance[run.provenance])
                record.append(run)
                added += 1
            there = len(each.runs) - added
            hosts = {Provenance.from_fields(fields).host or "unknown host" for fields in each.provenance.values()}
            again = f", {there} were there already" if there else ""
            told.append(f"{each.path} ({', '.join(sorted(hosts))}): {added} runs added{again}")
    return told + incomplete(read(into))


def incomplete(recorded: Recorded) -> list[str]:
    """Say which rounds of a sweep lack configurations that it has in other rounds."""
    n_rounds = {id: Provenance.from_fields(fields).n_rounds for id, fields in recorded.provenance.items()}
    sweeps: dict[tuple[str, int], dict[int, set[Configuration]]] = {}
    wanted: dict[tuple[str, int], int] = {}
    for run, id in zip(recorded.runs, conditions_of(recorded.runs, recorded.provenance), strict=True):
        sweep = id, run.seed
        wanted[sweep] = max(wanted.get(sweep, 1), n_rounds[run.provenance])
        if run.verified:
            sweeps.setdefault(sweep, {}).setdefault(run.round, set()).add(run.configuration)
    told = []
    for (conditions, seed), rounds in sorted(sweeps.items()):
        all_of_it = set[Configuration]().union(*rounds.values())
        # Further rounds visit less on purpose.
        lacking = {number: len(all_of_it - rounds.get(number, set())) for number in range(wanted[conditions, seed])}
        if found := [f"round {number + 1} lacks {n}" for number, n in lacking.items() if n]:
            told.append(
                f"incomplete: conditions {conditions[:8]}, seed {seed}: {', '.join(found)} of {len(all_of_it)} runs"
            )
    return told


def _identity(run: Run) -> tuple[object, ...]:
    return run.provenance, run.seed, run.round, run.configuration, run.started_utc, run.wall_s
