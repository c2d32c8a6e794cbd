"""The contender parcompute, without a knob wherever the row does not name one."""

from __future__ import annotations

import contextlib
import tempfile
import threading

import family
import numpy as np
import tasks
from contender import Contender, samples
from tasks import N_WORKERS

import parcompute as pc
from parcompute.memory import leases


def nothing(block):
    return 0.0


def hits(block, rng):
    return tasks.hits_of(rng, block.size)


def spins(rows):
    return np.array([tasks.spin(length) for length in rows])


def root_sum_at(rows, gate, block):
    gate.stop(block.index)
    return tasks.root_sum(rows)


def ramps(block):
    return np.arange(block.start, block.stop, dtype=float)[:, None] + np.zeros(128)


@contextlib.contextmanager
def opened(kind, shape):
    """Yield an output of a kind, in a folder of its own."""
    with tempfile.TemporaryDirectory() as folder, contextlib.ExitStack() as files:
        if kind == "shared array":
            yield pc.SharedArray.empty(shape)
        elif kind == "memmap":
            yield np.lib.format.open_memmap(f"{folder}/out.npy", "w+", "f8", shape)
        elif kind == "dataset":
            import h5py

            yield files.enter_context(h5py.File(f"{folder}/out.h5", "w")).create_dataset("out", shape, "f8")
        else:
            import zarr

            chunks = (1024, *shape[1:])
            yield zarr.create_array(f"{folder}/out", shape=shape, dtype="f8", chunks=chunks, compressors=None)


class Parcompute(Contender):
    """`Executor` with the backend "processes"."""

    backend, n_workers = "processes", N_WORKERS

    def __init__(self):
        super().__init__()
        self.executor = pc.Executor(self.n_workers, backend=self.backend)
        self.executor.reduce_blocks(nothing, n_items=100, block_items=1)

    def close(self):
        self.executor.shutdown()

    def noop_blocks(self, n):
        with pc.Executor(self.n_workers, backend=self.backend, schedule="dynamic") as executor:
            executor.wait_until_ready()
            yield from samples(
                lambda: (executor.reduce_blocks(nothing, n_items=n, block_items=1), executor.plan.n_chunks),
                tasks.equal_to((0.0, n)),
                per=n,
            )

    def map_items(self, n):
        expected = list(range(n))
        return samples(lambda: list(self.executor.map(tasks.identity, range(n))), tasks.equal_to(expected), per=n)

    def short_jobs(self, n_jobs):
        def call():
            for _ in range(n_jobs):
                total = self.executor.reduce_blocks(nothing, n_items=4, block_items=1)
            return total

        return samples(call, tasks.equal_to(0.0), per=n_jobs)

    # --- arrays in -----------------------------------------------------------------------------------------

    def sum_shared(self, n_blocks):
        x = pc.share(tasks.values())
        return self._sums(x, n_blocks, lambda: (x,))

    def sum_short(self, n_blocks):
        x = pc.share(tasks.values()[: 2**23])
        for _ in range(3):  # what is learned from the first calls
            self.executor.reduce_blocks(tasks.root_sum, x, block_items=len(x) // n_blocks)
        return self._sums(x, n_blocks, lambda: (x,))

    def sum_plain(self, n_blocks):
        source = tasks.values()
        return self._sums(source, n_blocks, lambda: (source.copy(),))

    def sum_again(self, n_blocks):
        """The second call with the same plain array."""
        source = tasks.values()

        def used_once():
            x = source.copy()
            self.executor.reduce_blocks(tasks.root_sum, x, block_items=len(x) // n_blocks)
            return (x,)

        return self._sums(source, n_blocks, used_once)

    def _sums(self, x, n_blocks, fresh):
        return samples(
            lambda x: self.executor.reduce_blocks(tasks.root_sum, x, block_items=len(x) // n_blocks),
            tasks.root_sum_of(x, n_blocks),
            fresh=fresh,
        )

    # --- arrays in and out ---------------------------------------------------------------------------------

    def map_first(self, n_blocks):
        source = tasks.values()
        return self._maps(source, n_blocks, lambda: (source.copy(),))

    def map_later(self, n_blocks):
        x = pc.share(tasks.values())
        return self._maps(x, n_blocks, lambda: (x,))

    def map_into(self, n_blocks):
        x = pc.share(tasks.values())
        return self._maps(x, n_blocks, lambda: (x,), pc.SharedArray.empty(x.shape, x.dtype))

    def _maps(self, x, n_blocks, fresh, out=None):
        return samples(
            lambda x: self.executor.map_blocks(np.sqrt, x, block_items=len(x) // n_blocks, out=out),
            tasks.array_of_roots(x),
            fresh=fresh,
        )

    # --- shared memory -------------------------------------------------------------------------------------

    def hand_over(self):
        """The first array of its size: nothing freed is there to be used again."""
        source = tasks.values()
        return samples(lambda: pc.share(source), tasks.same_array(source), fresh=lambda: leases.release_kept() or ())

    def hand_over_again(self):
        """A later array of that size, when the one before has been dropped."""
        source = tasks.values()

        def dropped():
            pc.share(source)
            return ()

        return samples(lambda: pc.share(source), tasks.same_array(source), fresh=dropped)

    def first_jobs(self, job, backend, again=False):
        """Jobs of one new worker: on shared arrays, or in this process on private ones."""
        arrays, check = getattr(tasks, f"{job}_arrays")(np.empty if backend == "serial" else pc.SharedArray.empty)
        run, executors = getattr(tasks, job), []

        def fresh():
            while executors:
                executors.pop().shutdown()
            executors.append(pc.Executor(1, backend=backend))
            executors[0].reduce_blocks(nothing, n_items=2, block_items=1)
            if again:
                run(executors[0], *arrays)
            return (executors[0],)

        try:
            yield from samples(lambda executor: run(executor, *arrays), check, fresh=fresh)
        finally:
            while executors:
                executors.pop().shutdown()

    def extra_memory(self, n_bytes):
        n_blocks = 4096

        def extra(n, idle):
            x = pc.SharedArray.empty(n)
            for first in range(0, n, 2**17):  # in pieces, so that no copy of the whole is ever there
                x[first : first + 2**17] = tasks.halves(2**17)
            gate = tasks.Gate(n_blocks // 2)
            held, answer = gate.look(
                family.own_bytes,
                lambda: self.executor.reduce_blocks(root_sum_at, x, block_items=n // n_blocks, args=(gate,)),
            )
            tasks.root_sum_of(x, n_blocks)(answer)
            return held - idle

        extra(2**20, 0)  # an idle worker is one that has worked
        leases.release_kept()
        idle = family.own_bytes()
        while True:
            leases.release_kept()
            yield extra(n_bytes // 8, idle) / n_bytes, None

    # --- without arrays ------------------------------------------------------------------------------------

    def pi(self, n_points, seed, block_items=None, per=1):
        return samples(
            lambda: self.executor.reduce_blocks(hits, n_items=n_points, seed=seed, block_items=block_items),
            tasks.pi_from(n_points),
            per=per,
        )

    def point_cost(self, n_points, seed, block_items=None):
        """Seconds of one core per point."""
        return self.pi(n_points, seed, block_items, per=n_points / N_WORKERS)

    def uneven(self, n_tasks, total_s):
        """`map` as it comes."""
        lengths, bound = tasks.durations(n_tasks, total_s, N_WORKERS)
        return samples(lambda: list(self.executor.map(tasks.spin, lengths)), tasks.equal_to(lengths), per=bound)

    def uneven_blocks(self, n_tasks, total_s):
        """The same as blocks of one item."""
        lengths, bound = tasks.durations(n_tasks, total_s, N_WORKERS)
        x = np.array(lengths)
        return samples(lambda: self.executor.map_blocks(spins, x, block_items=1), tasks.same_array(x), per=bound)

    def block_cost(self, n_blocks):
        return samples(
            lambda: self.executor.reduce_blocks(nothing, n_items=n_blocks, block_items=1),
            tasks.equal_to(0.0),
            per=n_blocks,
        )

    def outputs(self, kind, n_rows):
        """A map of rows of 1 KiB into each kind of place."""
        with opened(kind, (n_rows, 128)) as out:
            yield from samples(
                lambda: float(self.executor.map_blocks(ramps, n_items=n_rows, out=out, block_items=1024)[-1, 0]),
                tasks.equal_to(n_rows - 1.0),
            )

    def frames(self, n_rows):
        """A reduction over a frame of 1 KiB a row."""
        import pandas as pd

        frame = pd.DataFrame(np.ones((n_rows, 128)))
        yield from samples(
            lambda: self.executor.reduce_blocks(lambda part: float(part[3].sum()), frame), tasks.equal_to(float(n_rows))
        )

    def block_memory(self, n_blocks):
        """The most that all processes together hold while so many blocks run, above what they hold idle."""
        while True:
            idle = family.own_bytes()
            most, over = [idle], threading.Event()

            def look(most=most, over=over):
                while not over.wait(0.05):
                    most.append(family.own_bytes())

            looking = threading.Thread(target=look)
            looking.start()
            try:
                answer = self.executor.reduce_blocks(nothing, n_items=n_blocks, block_items=1)
            finally:
                over.set()
                looking.join()
            tasks.equal_to(0.0)(answer)
            yield float(max(most) - idle), None


class Serial(Parcompute):
    """`Executor` with the backend "serial"."""

    backend, n_workers = "serial", 1


class Threads(Parcompute):
    """`Executor` with the backend "threads"."""

    backend = "threads"


class Auto(Parcompute):
    """`Executor` with the backend "auto"."""

    backend = "auto"
