"""Contenders of other projects: joblib, loky, mpire, dask.distributed and ray."""

from __future__ import annotations

import os
import tempfile
import uuid
from functools import partial
from pathlib import Path

import numpy as np
import tasks
from contender import Engine, samples
from standard import ProcessPool
from tasks import N_WORKERS


class Joblib(Engine):
    """`joblib.Parallel` as a context, so that its workers stay; plain arrays are memory-mapped by joblib itself."""

    package = "joblib"

    def __init__(self):
        super().__init__()
        import joblib

        self.joblib, self.delayed = joblib, joblib.delayed
        self.folder = Path(tempfile.mkdtemp(prefix="arrays-"))
        self.parallel = joblib.Parallel(N_WORKERS).__enter__()
        self.parallel(self.delayed(tasks.loaded)(i) for i in range(4 * N_WORKERS))

    def close(self):
        from joblib.externals.loky import get_reusable_executor

        self.parallel.__exit__(None, None, None)
        get_reusable_executor().shutdown(wait=True)

    def each(self, function, items):
        # A call of its own: the batch size belongs to Parallel; the workers are the reusable ones.
        parallel = self.joblib.Parallel(N_WORKERS, batch_size=1, pre_dispatch="all")
        return parallel(self.delayed(function)(item) for item in items)

    def batched(self, function, items):
        return self.parallel(self.delayed(function)(item) for item in items)

    def share(self, x):
        path = self.folder / uuid.uuid4().hex
        self.joblib.dump(x, path)
        return self.joblib.load(path, mmap_mode="r")

    def touch(self, shared):
        shared[::512].sum()

    def unshare(self, shared):
        if shared is not None:
            os.unlink(shared.filename)

    def sums(self, x, n_blocks, block_items, gate=None):
        work = self.delayed(tasks.root_sums)
        # Behind a gate no batch may hold all that is left.
        parallel = self.parallel if gate is None else self.joblib.Parallel(N_WORKERS, batch_size=1)
        return [s for (s,) in parallel(work(x, i, i + 1, block_items, gate) for i in range(n_blocks))]

    def share_and_sum(self, x, n_blocks, block_items):
        return self.sums(x, n_blocks, block_items), None

    def map_first(self, n_blocks):
        """The output is a writable memmap, as joblib's own example collects results."""
        source = tasks.values()

        def call(x):
            out = np.memmap(self.folder / "out", x.dtype, "w+", shape=x.shape)
            self._roots(out, x, n_blocks)
            return out

        return samples(call, tasks.array_of_roots(source), fresh=lambda: (source.copy(),))

    def map_later(self, n_blocks):
        x = tasks.values()
        check = tasks.array_of_roots(x)
        out = np.memmap(self.folder / "out-later", x.dtype, "w+", shape=x.shape)
        return samples(lambda: self._roots(out, x, n_blocks), lambda _: check(out))

    def _roots(self, out, x, n_blocks):
        work = self.delayed(tasks.roots_into)
        self.parallel(work(out, x, i, i + 1, len(x) // n_blocks) for i in range(n_blocks))


class Loky(ProcessPool):
    """loky's executor, as joblib carries it."""

    package = "joblib"

    def make(self):
        from joblib.externals.loky import ProcessPoolExecutor

        return ProcessPoolExecutor(N_WORKERS)


class Mpire(Engine):
    """`WorkerPool` kept alive; big arrays as shared objects, which the workers of a pool of their own inherit."""

    package = "mpire"

    def __init__(self):
        super().__init__()
        from mpire import WorkerPool

        self.make = partial(WorkerPool, N_WORKERS, keep_alive=True)
        self.pool = self.make()
        self.pool.map(tasks.loaded, range(4 * N_WORKERS))

    def close(self):
        self.pool.stop_and_join()

    def each(self, function, items):
        # It spreads a tuple over the parameters of the function.
        return self.pool.imap_unordered(function, ((item,) for item in items), chunk_size=1)

    def batched(self, function, items):
        return self.pool.map(function, items)

    def share(self, x):
        return self.make(shared_objects=x)

    def unshare(self, pool):
        pool.stop_and_join()

    def sums(self, pool, n_blocks, block_items, gate=None):
        work = partial(_root_sums_of_one, block_items=block_items, gate=gate)
        return [s for (s,) in pool.map_unordered(work, range(n_blocks))]


class Dask(Engine):
    """`Client` on a `LocalCluster` of processes, on the loopback without dashboard; big arrays are scattered."""

    package = "distributed"

    def __init__(self):
        super().__init__()
        from distributed import Client, LocalCluster

        self.cluster = LocalCluster(
            n_workers=N_WORKERS, threads_per_worker=1, host="127.0.0.1", dashboard_address=None, silence_logs=50
        )
        self.client = Client(self.cluster)
        list(self.each(tasks.loaded, range(4 * N_WORKERS)))

    def close(self):
        self.client.close()
        self.cluster.close()

    def each(self, function, items):
        return self.client.gather(self.client.map(function, list(items), pure=False))

    def batched(self, function, items):
        # A task per item costs it a millisecond, and a `dask.bag` as much: items travel together, as for ray.
        batches = [items[first:last] for first, last in tasks.ranges(len(items), 16)]
        return [result for part in self.each(partial(tasks.called_each, function), batches) for result in part]

    def share(self, x):
        return self.client.scatter(x, broadcast=True, hash=False)

    def sums(self, future, n_blocks, block_items, gate=None):
        firsts, lasts = zip(*tasks.ranges(n_blocks), strict=True)
        futures = self.client.map(
            _root_sums_between, firsts, lasts, x=future, block_items=block_items, gate=gate, pure=False
        )
        return [s for part in self.client.gather(futures) for s in part]


class Ray(Engine):
    """ray on the loopback without dashboard; big arrays by `ray.put`, items in tasks of well-chosen size."""

    package = "ray"

    def __init__(self):
        os.environ["RAY_USAGE_STATS_ENABLED"] = "0"
        super().__init__()
        import ray

        self.ray = ray
        ray.init(
            address="local",
            num_cpus=N_WORKERS,
            include_dashboard=False,
            object_store_memory=3 * 2**30,
            log_to_driver=False,
            logging_level="ERROR",
            configure_logging=False,
            _node_ip_address="127.0.0.1",
            _temp_dir=tempfile.mkdtemp(prefix="ray-"),
        )
        self.remote_call = ray.remote(_called)
        self.remote_batch = ray.remote(tasks.called_each)
        self.remote_sums = ray.remote(tasks.root_sums)
        self.each(tasks.loaded, range(4 * N_WORKERS))

    def close(self):
        self.ray.shutdown()

    def each(self, function, items):
        return self.ray.get([self.remote_call.remote(function, item) for item in items])

    def batched(self, function, items):
        batches = [items[first:last] for first, last in tasks.ranges(len(items), 16)]
        parts = self.ray.get([self.remote_batch.remote(function, batch) for batch in batches])
        return [result for part in parts for result in part]

    def share(self, x):
        return self.ray.put(x)

    def touch(self, reference):
        self.ray.get(reference)[::512].sum()

    def sums(self, reference, n_blocks, block_items, gate=None):
        parts = [self.remote_sums.remote(reference, *edges, block_items, gate) for edges in tasks.ranges(n_blocks)]
        return [s for part in self.ray.get(parts) for s in part]


# --- in the workers ----------------------------------------------------------------------------------------


def _root_sums_of_one(x, i, block_items, gate):
    return tasks.root_sums(x, i, i + 1, block_items, gate)


def _root_sums_between(first, last, x, block_items, gate):
    return tasks.root_sums(x, first, last, block_items, gate)


def _called(function, item):
    return function(item)
