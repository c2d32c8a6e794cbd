"""Contenders of the standard library: a loop, `multiprocessing.Pool`, `ProcessPoolExecutor`, bare processes."""

from __future__ import annotations

import math
import multiprocessing
from concurrent.futures import ProcessPoolExecutor, ThreadPoolExecutor
from functools import partial
from multiprocessing import resource_tracker
from multiprocessing.shared_memory import SharedMemory

import numpy as np
import tasks
from contender import Contender, Engine, samples
from tasks import N_WORKERS


class Serial(Contender):
    """A loop over the blocks in one process: what there is to gain anything over."""

    def map_items(self, n):
        return samples(lambda: [tasks.identity(i) for i in range(n)], tasks.equal_to(list(range(n))), per=n)

    def sum_shared(self, n_blocks):
        x = tasks.values()
        block_items = len(x) // n_blocks
        return samples(lambda: math.fsum(tasks.root_sums(x, 0, n_blocks, block_items)), tasks.root_sum_of(x, n_blocks))

    sum_plain = sum_shared

    def sum_short(self, n_blocks):
        x = tasks.values()[: 2**23]
        block_items = len(x) // n_blocks
        return samples(lambda: math.fsum(tasks.root_sums(x, 0, n_blocks, block_items)), tasks.root_sum_of(x, n_blocks))

    def map_first(self, n_blocks):
        x = tasks.values()

        def call():
            out = np.empty_like(x)
            tasks.roots_into(out, x, 0, n_blocks, len(x) // n_blocks)
            return out

        return samples(call, tasks.array_of_roots(x))

    map_later = map_first


class Pool(Engine):
    """`multiprocessing.Pool` as one writes it by hand: `imap_unordered`, tasks of well-chosen size, `SharedMemory`."""

    def __init__(self):
        super().__init__()
        resource_tracker.ensure_running()  # before the fork, or each worker has one of its own
        self.pool = multiprocessing.Pool(N_WORKERS)
        self.pool.map(tasks.loaded, range(4 * N_WORKERS), 1)

    def close(self):
        self.pool.close()
        self.pool.join()

    def each(self, function, items):
        return self.pool.imap_unordered(function, items, 1)

    def batched(self, function, items):
        return self.pool.map(function, items)

    def share(self, x):
        segment = SharedMemory(create=True, size=x.nbytes)
        np.copyto(np.ndarray(x.shape, x.dtype, segment.buf), x)
        return segment

    def unshare(self, segment):
        # More often than there are workers, so that all hear it.
        self.pool.map(_arrays_named, [()] * (4 * N_WORKERS), 1)
        _remove(segment)

    def sums(self, segment, n_blocks, block_items, gate=None):
        work = partial(_sums_of_named, segment.name, block_items, gate)
        return [s for part in self.each(work, tasks.ranges(n_blocks)) for s in part]

    def map_first(self, n_blocks):
        """Make both segments, copy in, compute; the result is an array on the second."""
        x = tasks.values()
        check, made = tasks.array_of_roots(x), []

        def call():
            made[:] = [self.share(x), SharedMemory(create=True, size=x.nbytes)]
            self._roots(*made, n_blocks, x)

        def checked(_):
            check(np.ndarray(x.shape, x.dtype, made[1].buf))
            for segment in made:
                self.unshare(segment)

        return samples(call, checked)

    def map_later(self, n_blocks):
        """Segments and pool exist and are warm: the best that can be written by hand."""
        x = tasks.values()
        check = tasks.array_of_roots(x)
        source, target = self.share(x), SharedMemory(create=True, size=x.nbytes)
        try:
            yield from samples(
                lambda: self._roots(source, target, n_blocks, x),
                lambda _: check(np.ndarray(x.shape, x.dtype, target.buf)),
            )
        finally:
            self.unshare(source)
            self.unshare(target)

    def _roots(self, source, target, n_blocks, x):
        work = partial(_roots_of_named, (target.name, source.name), len(x) // n_blocks)
        for _ in self.each(work, tasks.ranges(n_blocks)):
            pass

    def hand_over(self):
        x = tasks.values()

        def checked(segment):
            tasks.same_array(x)(np.ndarray(x.shape, x.dtype, segment.buf))
            _remove(segment)

        return samples(lambda: self.share(x), checked)


class Inherited(Contender):
    """`Pool` forked when the array exists, which its workers inherit: no copy, but a new pool for each array."""

    def sum_plain(self, n_blocks):
        x = tasks.values()
        work = partial(_sums_of_inherited, len(x) // n_blocks)
        _inherited[:] = [x]

        def call():
            with multiprocessing.get_context("fork").Pool(N_WORKERS) as pool:
                parts = pool.imap_unordered(work, tasks.ranges(n_blocks))
                return math.fsum(s for part in parts for s in part)

        return samples(call, tasks.root_sum_of(x, n_blocks))


class ProcessPool(Engine):
    """`concurrent.futures.ProcessPoolExecutor`. It has no automatic batching: the size that Pool would choose."""

    def __init__(self):
        super().__init__()
        self.executor = self.make()
        list(self.executor.map(tasks.loaded, range(4 * N_WORKERS)))

    def make(self):
        return ProcessPoolExecutor(N_WORKERS)

    def close(self):
        self.executor.shutdown(wait=True)

    def each(self, function, items):
        return self.executor.map(function, items, chunksize=1)

    def batched(self, function, items):
        return self.executor.map(function, items, chunksize=max(1, len(items) // (4 * N_WORKERS)))


class ThreadPool(ProcessPool):
    """`concurrent.futures.ThreadPoolExecutor`."""

    def make(self):
        return ThreadPoolExecutor(N_WORKERS)


class Independent(Contender):
    """Two processes that each compute half, with nothing between them: the roof of any engine."""

    def __init__(self):
        super().__init__()
        self.ends, self.processes = [], []
        for _ in range(N_WORKERS):
            ours, theirs = multiprocessing.Pipe()
            process = multiprocessing.Process(target=_computes_its_part, args=(theirs,), daemon=True)
            process.start()
            theirs.close()
            self.ends.append(ours)
            self.processes.append(process)

    def close(self):
        for end in self.ends:
            end.send(None)
        for process in self.processes:
            process.join()

    def pi(self, n_points, seed):
        parts = tasks.ranges(tasks.n_pi_blocks(n_points), N_WORKERS)

        def call():
            for end, edges in zip(self.ends, parts, strict=True):
                end.send((seed, n_points, edges))
            return sum(end.recv() for end in self.ends)

        return samples(call, tasks.pi_from(n_points))


def _remove(segment):
    segment.close()
    segment.unlink()


# --- in the workers ----------------------------------------------------------------------------------------

_inherited: list[np.ndarray] = []
_segments: dict[str, SharedMemory] = {}


def _arrays_named(names):
    """Return arrays on these segments, and let go of all others."""
    for name in set(_segments) - set(names):
        _segments.pop(name).close()
    for name in set(names) - set(_segments):
        _segments[name] = SharedMemory(name)
    return [np.frombuffer(_segments[name].buf, np.float64) for name in names]


def _sums_of_named(name, block_items, gate, edges):
    return tasks.root_sums(*_arrays_named([name]), *edges, block_items, gate)


def _roots_of_named(names, block_items, edges):
    tasks.roots_into(*_arrays_named(names), *edges, block_items)


def _sums_of_inherited(block_items, edges):
    return tasks.root_sums(*_inherited, *edges, block_items)


def _computes_its_part(end):
    while (asked := end.recv()) is not None:
        end.send(tasks.pi_hits_between(*asked))
