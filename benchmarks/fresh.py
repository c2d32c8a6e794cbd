"""What can only be measured in a new interpreter: start to first result, and the time of an import.

Run as ``python fresh.py start NAME``; prints seconds.
"""

from __future__ import annotations

import importlib
import subprocess
import sys
import time

import tasks
from contender import Contender
from tasks import N_WORKERS

# Each imports its package and returns what is timed: two results of a function that uses NumPy, one for each worker,
# and what ends the engine. What a package loads only when it starts an engine is timed, too, as Pool and ours do.


def pool(method):
    import multiprocessing

    def first_results():
        made = multiprocessing.get_context(method).Pool(N_WORKERS)
        return made.map(tasks.loaded, range(N_WORKERS), 1), made.terminate

    return first_results


def own(method):
    from parcompute import Executor

    def first_results():
        executor = Executor(N_WORKERS, start_method=method)
        return list(executor.map(tasks.loaded, range(N_WORKERS))), executor.shutdown

    return first_results


def own_second():
    """The second executor of a process."""
    _, end = own("forkserver")()
    end()
    return own("forkserver")


def loky():
    from joblib.externals.loky import ProcessPoolExecutor

    def first_results():
        executor = ProcessPoolExecutor(N_WORKERS)
        return list(executor.map(tasks.loaded, range(N_WORKERS))), executor.shutdown

    return first_results


def joblib():
    import joblib
    from joblib.externals.loky import get_reusable_executor

    def first_results():
        results = joblib.Parallel(N_WORKERS)(joblib.delayed(tasks.loaded)(i) for i in range(N_WORKERS))
        return results, lambda: get_reusable_executor().shutdown()

    return first_results


def mpire():
    from mpire import WorkerPool

    def first_results():
        made = WorkerPool(N_WORKERS)
        return made.map(tasks.loaded, range(N_WORKERS)), made.stop_and_join

    return first_results


def service(name, package):
    """Of a service, the contender itself: it starts as it is made."""
    importlib.import_module(package)
    others = importlib.import_module("others")

    def first_results():
        made = getattr(others, name)()
        return list(made.each(tasks.loaded, range(N_WORKERS))), made.close

    return first_results


STARTS = {
    "Pool fork": lambda: pool("fork"),
    "Pool forkserver": lambda: pool("forkserver"),
    "Pool spawn": lambda: pool("spawn"),
    "parcompute fork": lambda: own("fork"),
    "parcompute forkserver": lambda: own("forkserver"),
    "parcompute spawn": lambda: own("spawn"),
    "parcompute second": own_second,
    "loky": loky,
    "joblib": joblib,
    "mpire": mpire,
    "dask": lambda: service("Dask", "distributed"),
    "ray": lambda: service("Ray", "ray"),
}


def start(name):
    """Return the seconds from nothing to two results."""
    first_results = STARTS[name]()
    started = time.perf_counter()
    results, end = first_results()
    seconds = time.perf_counter() - started
    end()
    tasks.equal_to([tasks.loaded(0)] * N_WORKERS)(results)
    return seconds


# Seconds of a statement after the import of NumPy; of that import itself from nothing.
IMPORTS = """
import time
{first}
started = time.perf_counter()
{statement}
print(time.perf_counter() - started)
"""


class Fresh(Contender):
    """Asks new interpreters, one per sample."""

    def start(self, name):
        return _answers(__file__, "start", name)

    def imports(self, name):
        statement = "import parcompute; parcompute.Executor" if name == "parcompute.Executor" else f"import {name}"
        first = "" if name == "numpy" else "import numpy"
        return _answers("-c", IMPORTS.format(first=first, statement=statement))


def _answers(*arguments):
    while True:
        done = subprocess.run([sys.executable, *arguments], capture_output=True, text=True, check=False)
        if done.returncode:
            raise RuntimeError((done.stderr.strip().splitlines() or [f"status {done.returncode}"])[-1])
        yield float(done.stdout.split()[-1]), None


if __name__ == "__main__":
    import numpy as np

    np.random.default_rng()  # some versions load numpy.random on first use
    print({"start": start}[sys.argv[1]](sys.argv[2]), flush=True)
