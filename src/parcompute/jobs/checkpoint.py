"""Keep the finished blocks of a job while it runs, and bring them back when it is run again.

    marks ──► look: what is done and not saved? ──► rows to their place in the file, record into its journal
                                                                                         │
    marks, arrays ◄── resume: is it the same job? whose rows are whole? ◄────────────────┘

Whoever waits for the workers, or computes in the calling process, calls `look` now and then. A look never fails: what
goes wrong with the file ends the keeping and is told when the job has ended.
"""

from __future__ import annotations

import io
import math
import os
import pickle
import sys
import threading
import time
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

import cloudpickle
import numpy as np
import numpy.typing as npt

from parcompute.jobs import digests
from parcompute.jobs.checkpoint_file import CheckpointError, CheckpointFile, create, not_to_be_continued
from parcompute.jobs.job import Job
from parcompute.jobs.outputs import Allocate, Field, Outputs
from parcompute.jobs.partials import Shapes, is_sound
from parcompute.jobs.schedule import DONE
from parcompute.machine import atomic
from parcompute.machine.batch import deadline, tasks
from parcompute.machine.batch.tasks import Part, files_of_parts
from parcompute.values.blocks import runs

# Work of half a second is no loss. Keeping may cost one part in twenty of the time, then it is done less often.
EVERY_S, COST = 0.5, 19

# A checkpoint that another process writes is waited for so long; the workers of a killed one need a moment.
WAIT_S = 2.0


class PartDone(SystemExit):
    """The blocks of a job that are this task's part are kept: the program ends here, with status 0.

    What follows needs the whole result. The same program without a part finds the files of all parts, and goes on.
    """

    def __init__(self, message: str) -> None:
        super().__init__(0)
        self.message = message

    def __str__(self) -> str:
        return self.message


@contextmanager
def kept(path: Any, seed: int | None, job: Job, allocate: Allocate) -> Iterator[Job]:
    """Keep the finished blocks of a job in a file while the body runs it.

    Parameters
    ----------
    path : str or os.PathLike
        Of the file, which need not exist.
    seed : int or None
        As the caller has given it; None takes the seed of a file that exists.
    job : Job
        What will be run.
    allocate : callable
        Makes arrays for what the file holds already.

    Yields
    ------
    Job
        To run in its place.

    Raises
    ------
    CheckpointError
        If the file is of another job, or no checkpoint, or cannot be written, or another process writes it.
    OutOfTime
        If the time of the batch job is over before the job is done.
    """
    path, part = Path(os.path.abspath(path)), tasks.own()
    if part is not None:
        path = part.file(path)
    lock = _locked(path)
    try:
        keeper = _Keeper(path, job, part)
        try:
            job = replace(keeper.resume(job, seed, allocate), keeper=keeper)
            with deadline.keeping():
                try:
                    yield job
                except BaseException as error:
                    is_end = isinstance(error, deadline.OutOfTime)
                    trouble = keeper.finish(settled=is_end or isinstance(error, Exception))
                    if is_end:
                        raise keeper.out_of_time(trouble) from None
                    if trouble:
                        error.add_note(trouble)
                    raise
                trouble = keeper.finish(settled=True)
                if keeper.ended and not keeper.complete:
                    raise keeper.out_of_time(trouble)
                if part is not None and not trouble:
                    raise PartDone(f"{path}: part {part} is kept; what follows needs the whole result")
            if trouble:
                warnings.warn(f"{trouble}; the result itself is whole", stacklevel=5)
        finally:
            keeper.close()
    finally:
        atomic.release(path, lock)


def _locked(path: Path) -> int | None:
    try:
        lock = atomic.acquire(path, deadline.patience_s(WAIT_S))
        atomic.remove_leftovers(path)
    except atomic.Held as error:
        raise CheckpointError(f"{error}; wait for its end, or choose another name for this checkpoint") from None
    except OSError as error:
        raise CheckpointError(f"{path}: cannot be written ({error}); choose a file in another folder") from error
    return lock


@contextmanager
def _of_part(path: Path) -> Iterator[CheckpointFile]:
    """Open the file of a part, which nobody may be writing."""
    lock = _locked(path)
    try:
        file = CheckpointFile(path)
        try:
            yield file
        finally:
            file.close()
    finally:
        atomic.release(path, lock)


def identity(job: Job) -> dict[str, str]:
    """Return what makes a job the one that it is, except for its seed, in words and digests.

    Neither the backend, the workers, the schedule nor the function that combines partials is part of it: the
    partials are the same.

    Raises
    ------
    TypeError
        Naming what has no content that could be compared.
    """
    plan = job.plan
    inputs = {f"array {n}": digests.describe(array) for n, array in enumerate(job.inputs)}
    args = {f"args[{n}]": digests.describe(value) for n, value in enumerate(job.args)}
    kwargs = {f"kwargs[{name!r}]": digests.describe(job.kwargs[name]) for name in sorted(job.kwargs)}
    return {
        "output": job.outputs.asked,
        "n_items": str(plan.n_items),
        "block_items": str(plan.block_items),
        "halo": str(plan.halo),
        "Python": f"{sys.version_info.major}.{sys.version_info.minor}",  # the code is Python's own
        **digests.describe_kernel(job.kernel),
        **args,
        **kwargs,
        **inputs,
    }


class _Keeper:
    """See `parcompute.jobs.job.Keeper`."""

    def __init__(self, path: Path, job: Job, part: Part | None) -> None:
        self.path = path
        self.outputs: Outputs = job.outputs
        self.n_blocks = job.plan.n_blocks
        self.saved = np.zeros(self.n_blocks, bool)
        self.others = np.zeros(self.n_blocks, bool)  # blocks that other tasks have, or have had
        if part is not None:
            self.others[:] = True
            self.others[slice(*part.of(self.n_blocks))] = False
        self._part = part
        self.complete = False
        self._identity = identity(job)
        self._file: CheckpointFile | None = None
        self._trouble: BaseException | None = None
        self._done: npt.NDArray[np.uint8] | None = None
        self._late, self._every_s = False, EVERY_S
        self._seen = self.saved
        self._due_s = 0.0
        self._closed = False
        self._writing = threading.Lock()
        self._countdown = deadline.Countdown()
        self._save_s, self._n_before = 0.0, 0

    # --- before the job ------------------------------------------------------------------------------------

    def resume(self, job: Job, seed: int | None, allocate: Allocate) -> Job:
        """Put what the file holds into the outputs; return the job with the seed of the file."""
        if os.path.lexists(self.path):
            self._file = CheckpointFile(self.path)
        with ExitStack() as stack:
            others = [] if self._part is not None else files_of_parts(self.path)
            parts = [stack.enter_context(_of_part(path)) for path in others]
            files = [*([self._file] if self._file is not None else []), *parts]
            if "rng" in job.asks and seed is None:
                if self._part is not None:
                    raise ValueError("seed=None: each task would draw streams of its own; pass a seed, the same in all")
                stored = files[0].identity.get("seed", "") if files else ""
                job = replace(job, seed=int(stored) if stored.isdecimal() and len(stored) < 4000 else job.seed)
            self._identity["seed"] = str(job.seed) if "rng" in job.asks else "not asked for"
            shapes = [Shapes(io.BytesIO(file.shape)).load() for file in files] if parts else []
            for n, file in enumerate(files):
                file.compare(self._identity)
                if parts and shapes[n] != shapes[0]:
                    raise CheckpointError(f"{file.path}: its results look otherwise than {files[0].path}'s; delete one")
                found = self._load(file, allocate)
                if file is self._file:
                    self.saved |= found
                else:  # it goes into this file too, which then has the whole
                    self.others |= found & ~self.saved
        self._n_before = int(np.count_nonzero(self.saved))
        self.complete = bool((self.saved | self.others).all())
        if parts:
            self._done = self.others.astype(np.uint8) * np.uint8(DONE)
        return job

    def _load(self, file: CheckpointFile, allocate: Allocate) -> npt.NDArray[np.bool_]:
        """Put what a file holds into the outputs; return of which blocks that is."""
        outputs, found = self.outputs, np.zeros(self.n_blocks, bool)
        try:
            if outputs.arrays is None:
                shape = Shapes(io.BytesIO(file.shape)).load()
                fields = outputs.fields_of(shape)
                if not all(map(is_sound, fields)):
                    raise ValueError("no array of numbers looks like what it says")
            else:
                fields = [Field(array.dtype, array.shape[1:]) for array in outputs.stored or ()]
            n_rows = outputs.span(0, self.n_blocks).stop
            sizes = [n_rows * math.prod(field.shape) * max(1, field.dtype.itemsize) for field in fields]
            if file.n_blocks != self.n_blocks or file.room != sizes:
                raise ValueError("its arrays have other sizes than it says")
        except Exception as error:  # whatever bytes that are none raise
            raise not_to_be_continued(file.path, error) from error
        if outputs.arrays is None:
            outputs.allocate(shape, allocate)
        arrays = outputs.stored or ()
        for first, stop, checksum, pickled in file.records():
            if pickled is not None:
                with suppress(Exception):  # its class may have gone; then it is computed again
                    self.outputs.keep(first, pickle.loads(pickled))
                    found[first] = True
            elif file.read_rows(arrays, self.outputs.span(first, stop)) == checksum:
                found[first:stop] = True
        if n_damaged := file.mark(found):
            warnings.warn(
                f"{file.path}: {n_damaged} blocks are damaged (a power failure, or another program has opened the file "
                "for writing) and are computed again",
                stacklevel=6,
            )
        return found

    # --- while it runs -------------------------------------------------------------------------------------

    def follow(
        self,
        done: npt.NDArray[np.uint8],
        *,
        late: bool = False,
        every_s: float | None = None,
        stop: Callable[[], None] | None = None,
        current: Sequence[int] = (),
    ) -> None:
        """Mark what is kept already as done, and keep from now on what is marked."""
        done[(self.saved | self.others) & (done != DONE)] = DONE
        self._done, self._late = done, late
        self._every_s = EVERY_S if every_s is None else every_s
        self._countdown = self._countdown.of(stop, current)

    def look(self) -> float:
        """Write what is due; return the seconds until the next look."""
        left_s = self._due_s - time.monotonic()
        if self._writing.acquire(blocking=False):
            try:
                self._countdown.look(2 * self._save_s)  # what is due, and the disk is waited for once more
                if left_s <= 0:
                    self._save()
                    left_s = self._due_s - time.monotonic()
            finally:
                self._writing.release()
        return max(left_s, 0.001)

    @property
    def ended(self) -> str:
        """Why no more blocks are to begin."""
        return self._countdown.ended

    def out_of_time(self, trouble: str) -> deadline.OutOfTime:
        """Return what says how far the job is."""
        n_saved = int(np.count_nonzero(self.saved))
        told = f"{self.path}: {n_saved:,} of {self.n_blocks:,} blocks are kept; {self.ended or deadline.in_words()}"
        return deadline.OutOfTime(
            f"{told}; run it again to go on" + (f" ({trouble})" if trouble else ""), n_saved, self.n_blocks
        )

    def _save(self, *, all_of_it: bool = False) -> None:
        """Write what is done and not saved; of marks that other processes set, those that stood at the last look."""
        done, started_s = self._done, time.monotonic()
        if done is not None and self._trouble is None and not self._closed:
            marked = np.asarray(done == DONE)
            if self.outputs.arrived is not None:
                marked &= self.outputs.arrived | self.saved
            if self._part is not None:
                marked &= ~self.others
            new = marked & ~self.saved
            if self._late and not all_of_it:
                # By now all that was stored before those marks is visible here, and all that was sent is heard.
                new &= self._seen
            self._seen = marked
            try:
                if self.outputs.arrays is not None and (new.any() or self._file is None):
                    self._write(new)
            except Exception as error:  # a full disk above all: the job itself goes on
                self._trouble = error
        now_s = time.monotonic()
        self._save_s = max(self._save_s, now_s - started_s)
        self._due_s = now_s + max(self._every_s, COST * (now_s - started_s))

    def _write(self, new: npt.NDArray[np.bool_]) -> None:
        outputs = self.outputs
        arrays = outputs.stored or ()
        if self._file is None:
            create(self.path, self._identity, pickle.dumps(outputs.shape), self.n_blocks, arrays)
            self._file = CheckpointFile(self.path)
            self._file.compare(self._identity)  # the name may be of another file by now
        for index in outputs.omitted:
            new[index] = False
        for index in np.flatnonzero(new).tolist() if outputs.odd or not arrays else ():
            if index in outputs.odd:
                self._file.append_object(index, _pickled(outputs.odd[index]))
                self.saved[index] = True
            if index in outputs.odd or not arrays:
                new[index] = False
        n_most = self._file.blocks_per_record
        for first, last in runs(new):
            for start in range(first, last, n_most):
                stop = min(start + n_most, last)
                self._file.append_rows(arrays, outputs.span(start, stop), start, stop)
                self.saved[start:stop] = True

    # --- after it ------------------------------------------------------------------------------------------

    def finish(self, *, settled: bool) -> str:
        """Keep what is left; return what went wrong, in words.

        Parameters
        ----------
        settled : bool
            Whether the job ended by itself, and not by Ctrl-C.
        """
        with self._writing:
            # A job that was cut short may have marks of results that were on their way and have not arrived.
            if not self._late or self.outputs.asked != "partials":
                self._save(all_of_it=True)
            self._closed = True
            self.complete = bool((self.saved | self.others).all())
            deadline.note_kept(int(np.count_nonzero(self.saved)) - self._n_before)
            if settled and self._file is not None and self._trouble is None:
                try:
                    self._file.sync()
                except OSError as error:
                    self._trouble = error
        if self._trouble is None:
            return ""
        n_saved = int(np.count_nonzero(self.saved))
        return (
            f"{self.path}: the checkpoint is incomplete, {n_saved} of {self.n_blocks} blocks are in it "
            f"({type(self._trouble).__name__}: {self._trouble})"
        )

    def close(self) -> None:
        """Close the file."""
        with self._writing:
            self._closed = True
            if self._file is not None:
                self._file.close()
                self._file = None


def _pickled(value: Any) -> bytes:
    # By reference where that can be: a class of the user's main module is then the present one when it is read again.
    try:
        return pickle.dumps(value, pickle.HIGHEST_PROTOCOL)
    except Exception:
        return bytes(cloudpickle.dumps(value))
