"""joblib's own tests of `joblib.Parallel`, with "parcompute" in the place of "loky".

They are read from the joblib that is installed, and nothing of them is copied here. Of a test for several backends
the cases with this one are run; what is not about the processes of a backend is left out.
"""

import importlib.machinery
import importlib.util
import multiprocessing
import re
import sys

import cloudpickle
import pytest
from joblib import parallel

from parcompute.executor.joblib_backend import ParcomputeBackend

NAME = "parcompute"

# Tests that name no backend and are about what one does.
BY_DEFAULT = {
    "test_dispatch_race_condition",
    "test_exception_dispatch",
    "test_globals_update_at_each_parallel_call",
    "test_memmap_with_big_offset",
    "test_parallel_kwargs",
    "test_parallel_with_exhausted_iterator",
}

# What differs on purpose, as docs/howto/joblib.md tells users.
_ALL_CPUS = "who names this backend and no number wants all CPUs, and not one"
_SHARED_MEMORY = "arrays lie in shared memory and not in files, so they are no np.memmap and no folder is filled"
_OWN_WORKERS = "workers belong to a context or a Parallel, which keeps them for its next call, and not to the program"
DIFFERS = {
    "test_auto_memmap_on_arrays_from_generator": _SHARED_MEMORY,
    "test_error_capture": _OWN_WORKERS + " (it looks for them in joblib's private attributes)",
    "test_initializer_reused": _OWN_WORKERS,
    "test_memmapping_leaks": _SHARED_MEMORY,
    "test_multiple_generator_call_separated_gc": "a generator that is dropped costs no other call its workers",
    "test_nested_backend_in_sequential": _ALL_CPUS,
    "test_nested_parallel_warnings[parcompute-multiprocessing-True]": "a pool within a task works, and is no less safe",
    "test_parallel_as_context_manager": _OWN_WORKERS,
}

if multiprocessing.get_all_start_methods()[0] != "fork":  # since Python 3.14; those of a pool look for this module
    DIFFERS["test_nested_parallel_warnings[multiprocessing-parcompute-True]"] = "only forked workers have these tests"

# Cases enough where joblib has many for what is not the backend's: its older way to name one, numbers of jobs that come
# to the same workers, or to more than a machine for tests has.
ENOUGH = {
    "context": [parallel.parallel_config],
    "n_jobs": [2],
    "verbose": [11],
    "byteorder": [">"],
    "callable_position": ["args"],
    "n_tasks, n_jobs, pre_dispatch, batch_size": [(517, 2, "n_jobs", "auto"), (10, 4, "n_jobs", "auto")],
}

pytestmark = [
    pytest.mark.slow,
    pytest.mark.filterwarnings("ignore:.*You could benefit from adjusting the input task iterator:UserWarning"),
]


class Exchanged(importlib.machinery.SourceFileLoader):
    """Runs the source of joblib's tests with the name exchanged."""

    def get_code(self, fullname):
        source = self.get_source(fullname).replace('"loky"', f'"{NAME}"')
        # The programs in these tests must know the name, too.
        source = source.replace("from joblib import Parallel", f"import {NAME}; from joblib import Parallel")
        # Marks that only joblib's configuration of pytest has.
        source = re.sub(r"pytest\.mark\.(thread_unsafe|no_cover)", "pytest.mark.skipif(False, reason='')", source)
        return compile(source, self.path, "exec", dont_inherit=True)


def exchanged():
    """Return joblib's module of tests, run with the name exchanged; None where joblib is installed without."""
    try:
        origin = importlib.util.find_spec("joblib.test.test_parallel").origin
    except (ImportError, AttributeError):
        return None
    fullname = "joblib.test.test_parallel_of_parcompute"
    spec = importlib.util.spec_from_file_location(fullname, origin, loader=Exchanged(fullname, origin))
    module = importlib.util.module_from_spec(spec)
    before = parallel.BACKENDS.copy()
    parallel.BACKENDS[NAME] = ParcomputeBackend
    try:
        spec.loader.exec_module(module)
    finally:
        parallel.BACKENDS.clear()
        parallel.BACKENDS.update(before)
    module.LokyBackend = ParcomputeBackend
    sys.modules[fullname] = module
    cloudpickle.register_pickle_by_value(module)  # workers look for it in vain
    return module


def chosen(module):
    """Return the tests that are about the processes of a backend, each with our cases only."""
    tests = {name: test for name, test in vars(module).items() if name.startswith("test_")}
    return {
        name: test
        for name, test in tests.items()
        if cut_to_our_cases(test) or NAME in test.__code__.co_consts or name in BY_DEFAULT
    }


def cut_to_our_cases(test):
    """Leave a test the cases with our name, where it has some; return whether it has."""
    marks = [mark for mark in getattr(test, "pytestmark", []) if mark.name != "xfail"]  # what loky fails shall pass
    found = False
    for n, mark in enumerate(marks):
        if mark.name == "parametrize":
            names, cases = mark.args
            ours = [case for case in cases if NAME in (case if isinstance(case, tuple) else (case,))]
            ours = list(dict.fromkeys(ours))
            found = found or bool(ours)
            if not ours:
                ours = [case for case in ENOUGH.get(names, ()) if case in cases] or cases
            marks[n] = pytest.mark.parametrize(names, ours, **mark.kwargs).mark
    test.pytestmark = marks
    return found


module = exchanged()
if module is None:
    pytest.skip("the joblib that is installed has no tests", allow_module_level=True)
globals().update(chosen(module))


@pytest.fixture(autouse=True)
def ours(request, monkeypatch):
    """Make ours the backend of that name and of whoever names none; leave out what differs."""
    node = request.node
    if reason := DIFFERS.get(node.name) or DIFFERS.get(node.originalname):
        pytest.skip(reason)
    monkeypatch.setitem(parallel.BACKENDS, NAME, ParcomputeBackend)
    monkeypatch.setattr(parallel, "DEFAULT_BACKEND", NAME)
    monkeypatch.setattr(parallel, "DEFAULT_PROCESS_BACKEND", NAME)
    managers, make = [], multiprocessing.Manager
    monkeypatch.setattr(multiprocessing, "Manager", lambda: managers.append(make()) or managers[-1])
    yield
    for manager in managers:  # which joblib leaves to the garbage collector
        manager.shutdown()
