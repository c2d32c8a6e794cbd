"""Samples → HDF5, as runs of the experiment "bench".

A run's columns fit a sample so: `backend` is the entry's label, `wall_s` the sample where the row measures seconds
and else the time that the answer took, `value` the sample in the row's unit, `n_items` the size of the problem,
`round` and `seed` those of the order. Which row it belongs to is a condition: each row has a provenance group of
its own, with the fields ``row``, ``row_title`` and ``row_unit`` beside the usual ones.
"""

from __future__ import annotations

from contextlib import contextmanager
from pathlib import Path

from rows import Row
from session import Sample
from tasks import N_WORKERS

from parcompute.experiments.measure import digest
from parcompute.experiments.perform import machine_name
from parcompute.machine.provenance import Provenance
from parcompute.record.record import Record
from parcompute.values.sweep import Configuration, Run

ROOT = Path(__file__).resolve().parent.parent


class Recorder:
    """Appends samples to a record."""

    def __init__(self, record: Record, provenance: Provenance, seed: int) -> None:
        self._record, self._provenance, self._seed = record, provenance, seed
        self._ids: dict[str, str] = {}
        self.path = record.path

    def __call__(self, row: Row, sample: Sample) -> None:
        """Append one."""
        self._record.append(self._run(row, sample))

    def _id(self, row: Row) -> str:
        if row.name not in self._ids:
            told = {"row": row.name, "row_title": row.title, "row_unit": row.unit}
            id = f"{self._provenance.id}-row-{row.name}"
            self._ids[row.name] = self._record.add_provenance(id, self._provenance.as_dict() | told)
        return self._ids[row.name]

    def _run(self, row: Row, sample: Sample) -> Run:
        value = sample.value * row.scale
        return Run(
            configuration=Configuration(sample.entry.label, N_WORKERS, 1, "", "", "strong", row.n_items(sample.entry)),
            round=sample.round,
            seed=self._seed,
            block_items=0,
            n_chunks=0,
            wall_s=sample.value if row.is_time else sample.took_s,
            startup_s=0.0,
            cpu_s=0.0,
            digest=digest(sample.answer),
            value=value,
            error=0.0,
            tolerance=0.0,
            verified=True,
            disturbed=sample.disturbed,
            started_utc=sample.started_utc,
            provenance=self._id(row),
        )


@contextmanager
def opened(folder: Path | None, seed: int):
    """Open ``bench.h5`` of this machine and collect the conditions."""
    folder = folder or ROOT / "results" / machine_name()
    provenance = Provenance.collect(Path(__file__).parent, seed=seed, blas_threads=1)
    with Record.open(folder / "bench.h5", "bench") as record:
        yield Recorder(record, provenance, seed)
