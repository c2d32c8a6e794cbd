"""CPython's own tests of `concurrent.futures`, with parcompute's executors in the place of those that they are of.

Nothing of the tests is changed but which class makes an executor, also in the programs that they start.
"""

import concurrent.futures
import importlib
import importlib.util
import pkgutil
import sys
import types
import unittest
import warnings
from pathlib import Path

import psutil

import parcompute as pc

NAME = "test_concurrent_futures"
DEBIAN = Path(f"/usr/lib/python{sys.version_info.major}.{sys.version_info.minor}/test")


class _Poked(pc.Executor):
    """An executor with those attributes that the tests look at and that it can have."""

    def __init__(self, *args, **kwargs):
        with warnings.catch_warnings():  # five workers, on any machine
            warnings.filterwarnings("ignore", ".*take turns", UserWarning)
            super().__init__(*args, **kwargs)

    @property
    def _max_workers(self):
        return self.n_workers

    @property
    def _processes(self):
        return {pid: _Process(pid) for pid in self._backend.pids()}

    @property
    def _threads(self):
        return self._backend._pool._threads

    @property
    def _broken(self):
        failure = self._backend._crew.failure if self.backend == "processes" else self._backend._failure
        return failure is not None


class _Process(psutil.Process):
    join = psutil.Process.wait


class ThreadPoolExecutor(_Poked):
    def __init__(self, max_workers=None, thread_name_prefix="", initializer=None, initargs=()):
        super().__init__(max_workers, initializer=initializer, initargs=initargs, backend="threads")


class ProcessPoolExecutor(_Poked):
    pass


def found():
    """Return the modules of the suite that belong to this interpreter; none if it has come without."""
    if importlib.util.find_spec("test") is None or importlib.util.find_spec("test.support") is None:
        return []
    if importlib.util.find_spec(f"test.{NAME}") is not None:
        top = importlib.import_module(f"test.{NAME}")
    elif (DEBIAN / NAME).exists() or (DEBIAN / f"{NAME}.py").exists():
        sys.path.append(str(DEBIAN))  # for workers, too
        top = sys.modules[f"test.{NAME}"] = importlib.import_module(NAME)
    else:
        return []
    parts = [part.name for part in pkgutil.iter_modules(getattr(top, "__path__", ()))]
    modules = [top, *(importlib.import_module(f"{top.__name__}.{part}") for part in parts)]
    for module in modules:
        _adapt(module)
    return modules


def _adapt(module):
    for name in ("ThreadPoolMixin", "ProcessPoolForkMixin", "ProcessPoolSpawnMixin", "ProcessPoolForkserverMixin"):
        if hasattr(module, name):
            getattr(module, name).executor_type = globals()[f"{name.partition('Pool')[0]}PoolExecutor"]
    if hasattr(module, "futures"):
        module.futures = types.ModuleType("futures")
        vars(module.futures).update({name: getattr(concurrent.futures, name) for name in dir(concurrent.futures)})
        vars(module.futures).update(process=sys.modules["concurrent.futures.process"])
        vars(module.futures).update(ThreadPoolExecutor=ThreadPoolExecutor, ProcessPoolExecutor=ProcessPoolExecutor)
    if hasattr(module, "assert_python_ok"):
        module.assert_python_ok = _assert_python_ok


def _assert_python_ok(option, program):
    from test.support import script_helper

    folders = [str(Path(__file__).parent), str(Path(pc.__file__).parent.parent)]
    there = f"import sys; sys.path[:0] = {folders!r}; import {__name__}; {__name__}.found()\n"
    adapted = program.replace("from concurrent.futures import", f"from {__name__} import")
    assert adapted != program
    return script_helper.assert_python_ok(option, there + adapted)


def cases():
    """Yield the tests that make executors: their class, and their name."""
    for module in found():
        for cls in vars(module).values():
            if isinstance(cls, type) and issubclass(cls, unittest.TestCase) and hasattr(cls, "executor_type"):
                yield from ((cls, name) for name in unittest.defaultTestLoader.getTestCaseNames(cls))
