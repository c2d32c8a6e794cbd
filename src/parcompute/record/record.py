"""Runs ↔ HDF5: append-only, crash-safe, with a schema version.

    append(run)    file ──read──▶ image in memory ──HDF5 adds the row──▶ image ──▶ .file.PID.tmp ──rename──▶ file
                                                                                  (written, synced)

HDF5 never writes to the disk itself. The file of a name is therefore always a complete one, before or
after an append, whatever is killed when; docs/decisions/0004-crash-safe-records.md says what else was
tried. docs/reference/file-format.md describes the file field by field.
"""

from __future__ import annotations

import errno
import fcntl
import io
import json
import os
import stat
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import numpy as np

from parcompute.machine import atomic
from parcompute.machine.batch import deadline
from parcompute.record import schema
from parcompute.values.sweep import Run
from parcompute.values.timeline import Timeline

# Every append writes the file anew; a timeline row takes 44 bytes in it, some 12 after compression.
MAX_TIMELINE_ROWS = 100_000


class RecordError(Exception):
    """A record cannot be read or written; the message is one line with the path and the way out."""


@dataclass(frozen=True, slots=True, eq=False)
class Recorded:
    """What one file holds.

    Attributes
    ----------
    path : Path
        The file.
    experiment : str
        Name of the experiment whose runs these are.
    created_utc : str
        When the file was begun, ISO 8601.
    runs : tuple of Run
        In the order in which they ended; run i is row i of the file.
    provenance : mapping of str to mapping
        The conditions by id, each a mapping of field to value.
    timeline_rows : tuple of int
        Chunk rows that the timeline of each run had; -1 where a run had none. Where there are more than
        the writer's limit the file has no timeline.
    """

    path: Path
    experiment: str
    created_utc: str
    runs: tuple[Run, ...]
    provenance: Mapping[str, Mapping[str, schema.Scalar]]
    timeline_rows: tuple[int, ...]


def read(path: str | os.PathLike[str], *, timelines: bool = False) -> Recorded:
    """Read a record.

    Parameters
    ----------
    path : path
        The file. It may be read while runs are appended to it.
    timelines : bool
        Whether to read the timelines too; `read_timelines` reads those of a single run.

    Raises
    ------
    RecordError
        If the file is missing, locked, truncated, no HDF5 or of another schema.
    """
    path = Path(path)
    with _opened(path, _image_of(path)) as file:
        rows, provenance = list(schema.rows(file["runs"])), schema.provenance_of(file)
        if unknown := {row["provenance"] for row in rows} - provenance.keys():
            raise KeyError(f"there are no conditions {unknown.pop()!r}")
        return Recorded(
            path=path,
            experiment=schema.text_of(file, "experiment"),
            created_utc=schema.text_of(file, "created_utc"),
            runs=tuple(
                schema.run_of(row, schema.timelines_of(file, i) if timelines else ()) for i, row in enumerate(rows)
            ),
            provenance=provenance,
            timeline_rows=tuple(int(row["timeline_rows"]) for row in rows),
        )


def read_timelines(path: str | os.PathLike[str], row: int) -> tuple[Timeline, ...]:
    """Read the timelines of the jobs of run `row`; none where the file has none.

    Raises
    ------
    RecordError
        As `read`.
    """
    path = Path(path)
    with _opened(path, _image_of(path)) as file:
        return schema.timelines_of(file, row)


class Record:
    """A file that runs are appended to, held by one writer at a time. Make one with `Record.open`.

    Attributes
    ----------
    path : Path
        The file; a symbolic link is followed once, at the opening.
    experiment : str
        Whose runs it holds.

    Examples
    --------
    >>> import tempfile
    >>> with Record.open(tempfile.mkdtemp() + "/montecarlo.h5", "montecarlo") as record:
    ...     id = record.add_provenance("4f1d", {"host": "node7", "cpus": 8})
    >>> read(record.path).provenance["4f1d"]["host"]
    'node7'
    """

    def __init__(self, path: Path, experiment: str, lock: int | None, max_timeline_rows: int) -> None:
        self.path = path
        self.experiment = experiment
        self._lock = lock
        self._max_timeline_rows = max_timeline_rows
        self._open = True

    @classmethod
    def open(
        cls,
        path: str | os.PathLike[str],
        experiment: str,
        *,
        wait_s: float = 5.0,
        max_timeline_rows: int = MAX_TIMELINE_ROWS,
    ) -> Self:
        """Open a record for appending; make it, with its folder, where it does not exist.

        Parameters
        ----------
        path : path
            The file.
        experiment : str
            Name of the experiment; a file of another one is refused.
        wait_s : float
            Seconds to wait for another writer of the same file.
        max_timeline_rows : int
            Timelines with more chunk rows are not stored; ``timeline_rows`` of the run says how many it had.

        Raises
        ------
        RecordError
            If the file is of another experiment or schema, is damaged, cannot be made, or is held by
            another writer for longer than `wait_s`.
        """
        path = Path(path).resolve()
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            lock = atomic.acquire(path, deadline.patience_s(wait_s))
        except atomic.Held as error:
            raise RecordError(f"{error}; wait until it has ended, or choose another file") from None
        except OSError as error:
            raise RecordError(
                f"{path}: cannot be written ({error.strerror}); choose a folder you can write to"
            ) from error
        record = cls(path, experiment, lock, max_timeline_rows)
        try:
            atomic.remove_leftovers(path)
            if path.exists():
                record._check_experiment()
            else:
                record._commit(lambda file: schema.begin(file, experiment, _text_type()), new=True)
        except BaseException:
            record.close()
            raise
        return record

    def add_provenance(self, id: str, fields: Mapping[str, schema.Scalar]) -> str:
        """Store the conditions `fields` under `id`, unless the file has them already, and return `id`.

        Raises
        ------
        TypeError, ValueError
            If a field is neither text, number nor truth value, or `id` cannot name a group.
        RecordError
            If the file cannot be written.
        """
        if not id or "/" in id or "\0" in id or id == ".":
            raise ValueError(f"provenance id {id!r} cannot name a group; pass letters, digits and dashes")
        values = {name: schema.storable(f"provenance field {name}", value) for name, value in fields.items()}

        def edit(file: Any) -> None:
            group = file["provenance"].create_group(id)
            for name, value in values.items():
                group.attrs[name] = value

        with _opened(self.path, _image_of(self.path)) as file:
            known = id in file["provenance"]
        if not known:
            self._commit(edit)
        return id

    def append(self, run: Run) -> int:
        """Append a run with its timeline, and return its row.

        When this returns the run is on the disk. Whatever happens before, the file keeps every earlier run.

        Raises
        ------
        ValueError
            If the conditions ``run.provenance`` are not in the file, or a number does not fit 64 bits.
        RecordError
            If the file cannot be written: the run is then in a side file that the message names.
        """
        row = schema.row_of(run)
        try:
            return self._add(row, run.timelines)
        except RecordError as error:
            raise RecordError(f"{error}; {_put_aside(self.path, row)}") from error

    def restore(self, side: str | os.PathLike[str]) -> int:
        """Append the run of a side file, remove the side file, and return the run's row.

        Raises
        ------
        RecordError
            If it is no side file, or the record still cannot be written.
        """
        try:
            row = json.loads(Path(side).read_text(encoding="utf-8"))
            row = schema.row_of(schema.run_of(row)) | {"timeline_rows": int(row["timeline_rows"])}
        except (OSError, ValueError, KeyError, TypeError, AttributeError, OverflowError, RuntimeError) as error:
            raise RecordError(f"{side}: is no side file of a record ({error}); pass one named by an error") from error
        added = self._add(row, ())
        Path(side).unlink()
        return added

    def close(self) -> None:
        """Let the next writer in. Closing twice is allowed."""
        if self._open:
            atomic.release(self.path, self._lock)
        self._open = False

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _check_experiment(self) -> None:
        with _opened(self.path, _image_of(self.path)) as file:
            found = schema.text_of(file, "experiment")
        if found != self.experiment:
            raise RecordError(
                f"{self.path}: holds experiment {found!r}, not {self.experiment!r}; choose another file name"
            )

    def _add(self, row: Mapping[str, schema.Scalar], timelines: Sequence[Timeline]) -> int:
        added = 0

        def edit(file: Any) -> None:
            nonlocal added
            if row["provenance"] not in file["provenance"].keys():  # noqa: SIM118  ("" in a group is an error)
                raise ValueError(f"provenance={row['provenance']!r} is not in {self.path}; call add_provenance first")
            schema.renew(file, _text_type())
            added = schema.add_row(file["runs"], row)
            if timelines and int(row["timeline_rows"]) <= self._max_timeline_rows:
                schema.store_timelines(file["timelines"].create_group(str(added)), timelines)

        self._commit(edit)
        return added

    def _commit(self, edit: Callable[[Any], None], *, new: bool = False) -> None:
        """Replace the file by an edited copy of itself: both are complete, and the change is one rename."""
        if not self._open:
            raise ValueError(f"{self.path}: the record is closed; open it again with Record.open")
        image = io.BytesIO() if new else _image_of(self.path)
        with _opened(self.path, image) as file:
            edit(file)
        try:
            atomic.replace(self.path, image.getvalue())
        except OSError as error:
            way_out = "free some space" if error.errno in (errno.ENOSPC, errno.EDQUOT) else "see that it can be written"
            raise RecordError(
                f"{self.path}: not written ({error.strerror}), what it held is untouched; {way_out} and try again"
            ) from error


# ── one file ↔ one image ──────────────────────────────────────────────────────────────────────────────


@contextmanager
def _opened(path: Path, image: io.BytesIO) -> Iterator[Any]:
    """Open a file image in memory (empty: a new one) as an h5py.File; `path` serves for messages."""
    import h5py

    new = not image.getbuffer().nbytes
    try:
        # As a file of Python's: what HDF5 1.14 hands out as the image of a file that is open has a wrong checksum.
        # Every HDF5 since 1.8 (2008) reads this, and attributes may be larger than 64 KiB, unlike before.
        opened = h5py.File(image, "w" if new else "r+", libver=("v108", "v108"))
    except OSError as error:
        raise RecordError(f"{path}: {_what_is_wrong(error)}") from error
    with opened as file:
        try:
            if not new:
                _check_schema(path, file)
            yield file
        except (OSError, RuntimeError, KeyError) as error:
            raise RecordError(f"{path}: {_what_is_wrong(error)}") from error


def _text_type() -> np.dtype[Any]:
    import h5py

    text: np.dtype[Any] = h5py.string_dtype("utf-8")
    return text


def _what_is_wrong(error: Exception) -> str:
    if "signature not found" in str(error):
        return "is not an HDF5 file; name a file that parcompute wrote"
    if "truncated" in str(error):
        return "is truncated, probably by an incomplete copy; copy it again"
    return f"is damaged ({' '.join(str(error).split())}); use a copy from a backup"


def _check_schema(path: Path, file: Any) -> None:
    if "schema" not in file.attrs:
        raise RecordError(f"{path}: is HDF5 but has no attribute schema; name a file that parcompute wrote")
    found = schema.text_of(file, "schema")
    if found != schema.SCHEMA:
        raise RecordError(f"{path}: has schema {found!r}, not {schema.SCHEMA!r}; use the parcompute that wrote it")
    if missing := schema.what_is_missing(file):
        raise RecordError(f"{path}: is damaged, it has no {', '.join(missing)}; use a copy from a backup")


def _image_of(path: Path) -> io.BytesIO:
    try:
        # Not to wait for whoever writes to a pipe of that name.
        with open(path, "rb", opener=lambda name, flags: os.open(name, flags | os.O_NONBLOCK)) as stream:
            if not stat.S_ISREG(os.fstat(stream.fileno()).st_mode):
                raise RecordError(f"{path}: is no regular file; name a file that parcompute wrote")
            # HDF5 locks a file with flock() while it has it open. Our own writers replace the file and
            # never need it; another program that edits it in place would hand us half of its changes.
            try:
                if os.environ.get("HDF5_USE_FILE_LOCKING", "").upper() not in ("FALSE", "0"):
                    fcntl.flock(stream, fcntl.LOCK_SH | fcntl.LOCK_NB)
            except BlockingIOError:
                raise RecordError(
                    f"{path}: another program has it open for writing; close it there "
                    "(if it only reads, set HDF5_USE_FILE_LOCKING=FALSE for either of the two)"
                ) from None
            except OSError:
                pass  # a file system without locks, as Lustre is mounted on some clusters
            image = stream.read()
    except MemoryError:
        raise RecordError(f"{path}: is larger than the memory; name a file that parcompute wrote") from None
    except FileNotFoundError as error:
        raise RecordError(f"{path}: does not exist; run the experiment first, or check the name") from error
    except OSError as error:
        raise RecordError(f"{path}: cannot be read ({error.strerror}); check the name and its permissions") from error
    if not image:
        raise RecordError(f"{path}: is empty (0 bytes); delete it, and the next run begins it anew")
    return io.BytesIO(image)


def _put_aside(path: Path, row: Mapping[str, schema.Scalar]) -> str:
    """Keep a row that the file cannot take in a side file, and say where (or the row itself)."""
    text = json.dumps(row)
    side = atomic.put_aside(path, ".side.json", text)
    if side is None:
        return f"no folder could take this run either, so here it is: {text}"
    return f"this run, without its timeline, is kept in {side}; Record.restore appends it"
