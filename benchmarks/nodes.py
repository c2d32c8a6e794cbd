"""The contenders of several nodes: two nodes of one worker each, on Dask and under MPI, and one node of two.

And `mpi4py.futures`, whose programs MPI starts as well.
"""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
from functools import partial
from multiprocessing.connection import Client, Listener
from pathlib import Path

import numpy as np
import tasks
from contender import Contender, Missing, samples
from standard import ProcessPool
from tasks import N_WORKERS

import parcompute as pc


def nothing():
    return 0.0


class Nodes(Contender):
    """`Executor` on nodes; what it is made with is its subclasses' business."""

    def opened(self):
        raise NotImplementedError

    def __init__(self):
        super().__init__()
        self.executor = self.opened()
        self.executor.reduce_blocks(nothing, n_items=100, block_items=1)

    def close(self):
        self.executor.shutdown()

    def guided_blocks(self, n):
        """Yield what a no-op block costs, under the default schedule."""
        return samples(
            lambda: self.executor.reduce_blocks(nothing, n_items=n, block_items=1), tasks.equal_to(0.0), per=n
        )

    def two_blocks(self):
        """Yield what a whole job of two no-op blocks takes."""
        return samples(lambda: self.executor.reduce_blocks(nothing, n_items=2, block_items=1), tasks.equal_to(0.0))

    def plain_input(self, n_blocks, again):
        """Yield what the sum of roots takes of an array that the nodes have not, or have, been given before."""
        source = tasks.values()
        source.flags.writeable = False

        def fresh():
            if again:
                return (source,)
            x = source.copy()
            x[0] = np.random.default_rng().random()  # no node has seen it
            x.flags.writeable = False
            return (x,)

        def call(x):
            return self.executor.reduce_blocks(tasks.root_sum, x, block_items=len(x) // n_blocks), np.sqrt(x[0])

        rest = tasks.root_sum(source) - np.sqrt(source[0])

        def check(answer):
            total, first = answer
            if not np.isclose(total, rest + first, rtol=1e-9):
                raise ValueError(f"{total} instead of {rest + first}")

        return samples(call, check, fresh=fresh)


class One(Nodes):
    """One node of as many workers."""

    def opened(self):
        return pc.Executor(N_WORKERS)


class OnDask(Nodes):
    """Two worker processes of Dask, with one worker each."""

    package = "distributed"

    def opened(self):
        import distributed

        self.cluster = distributed.LocalCluster(n_workers=N_WORKERS, threads_per_worker=1, dashboard_address=":0")
        self.client = distributed.Client(self.cluster)
        return pc.Executor(1, backend="dask", cluster=self.client)

    def close(self):
        super().close()
        self.client.close()
        self.cluster.close()


class Ranks(Nodes):
    """All ranks, with one worker each: what rank 0 runs."""

    def opened(self):
        return pc.Executor(1, backend="mpi")


class Futures(ProcessPool):
    """`MPIPoolExecutor` of mpi4py: what the rank of the script runs, with all others as workers."""

    def make(self):
        from mpi4py.futures import MPIPoolExecutor

        return MPIPoolExecutor()


class UnderMPI(Contender):
    """Two ranks with one worker each, in a program of their own that is asked over a socket."""

    package = "mpi4py"
    module, n_ranks, inside = "parcompute.mpi", N_WORKERS, "nodes:Ranks"

    def __init__(self):
        super().__init__()
        places = Path(sys.executable).parent / "mpiexec", Path("/usr/bin/mpiexec")
        launcher = next((path for path in places if path.exists()), None)
        if launcher is None:
            raise Missing("there is no mpiexec; pip install mpich")
        self.folder = tempfile.TemporaryDirectory()
        address = f"{self.folder.name}/asked"
        with Listener(address) as listener:
            launched = [launcher, "-n", str(self.n_ranks), sys.executable, "-m", self.module]
            here = os.pathsep.join([str(Path(__file__).parent), os.environ.get("PYTHONPATH", "")])
            self.program = subprocess.Popen(
                [*launched, __file__, address, self.inside], env={**os.environ, "PYTHONPATH": here}
            )
            self.channel = listener.accept()
        self._answer()

    def _answer(self):
        kind, answer = self.channel.recv()
        if kind != "ok":
            raise RuntimeError(answer)
        return answer

    def _asked(self, question, **parameters):
        label = f"{question} {parameters}"
        try:
            while True:
                self.channel.send(("sample", label, question, parameters))
                yield self._answer()
        finally:
            self.channel.send(("release",))
            self._answer()

    def __getattr__(self, question):
        if question.startswith("_"):
            raise AttributeError(question)
        return partial(self._asked, question)

    def close(self):
        self.channel.send(("close",))
        self._answer()
        self.program.wait()
        self.folder.cleanup()


class FuturesUnderMPI(UnderMPI):
    """One rank for the script, and two for the calls."""

    module, n_ranks, inside = "mpi4py.futures", 1 + N_WORKERS, "nodes:Futures"


if __name__ == "__main__":
    from host import serve

    serve(sys.argv[2], Client(sys.argv[1]))
