"""A job as it is sent to nodes: the same to each, and without what only the caller has to do with."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import numpy.typing as npt

from parcompute.backends.nodes import spans, wire
from parcompute.jobs.job import Job
from parcompute.jobs.outputs import Rows
from parcompute.memory import sources
from parcompute.memory.tables import Table


class Parcel:
    """A job on its way.

    Attributes
    ----------
    pickled : bytes
        The job without its inputs, but for tables, whose columns are arrays.
    needed : dict of bytes to ndarray
        The arrays that a node must have, by digest.
    inputs : tuple
        For each input how a node has it: the array itself if it is small, `wire.Kept`, `wire.InFile`, an ellipsis if
        it is in the job, None if its rows come with each span.
    told : bytes or None
        The caller's settings.
    """

    def __init__(self, job: Job, arrays: wire.Arrays) -> None:
        self._job, self._arrays = job, arrays
        self.told = None if job.world is None else job.world.told(None)
        light = replace(job.plan, edges=np.array([0, job.plan.n_blocks], np.int64))
        outputs: Any = job.outputs
        if isinstance(outputs, Rows):  # where they are written to in the end is nothing to the nodes
            fixed = outputs
            outputs = Rows(light, fixed.fields, fixed.single, fixed.dtype, fixed.item_shape)
            outputs.casts = fixed.casts
        tables = tuple(one if isinstance(one, Table) else None for one in job.inputs)
        travelling = replace(job, inputs=tables, plan=light, outputs=outputs, keeper=None)
        self.pickled, self.needed = arrays.dumps(travelling, f"kernel {job.name}")
        self.inputs = tuple(map(self._referred, job.inputs))

    def _referred(self, array: Any) -> Any:
        if isinstance(array, Table):
            return ...
        if sources.is_zarr(array):
            return None
        if (where := wire.in_file(array)) is not None:
            return where
        if sources.is_dataset(array):
            array = array[()]
        array = np.asarray(array)
        if array.nbytes <= wire.KEPT_ABOVE:
            return np.array(array, order="K") if array.flags.f_contiguous else np.ascontiguousarray(array)
        kept = self._arrays.keep(array)
        self.needed[kept.digest] = array
        return kept

    def rows_of(self, i: int, first: int, stop: int) -> tuple[int, npt.NDArray[Any]]:
        """Return what blocks ``first, ..., stop - 1`` need of an input, and the number of its first row."""
        reach = spans.reach_of(self._job.plan, first, stop)
        return reach.start, np.require(self._job.inputs[i][reach], requirements=["C", "A"])
