"""How many threads the numeric libraries may use: of BLAS and OpenMP, each of which has a pool of its own.

    before they are loaded    environment variables      of worker processes
    afterwards                the libraries' own calls   in this process, for a job: its pools serve the program too

The number is part of a result: a product of matrices that two threads have computed has other last bits.
"""

from __future__ import annotations

import os
import sys
import threading
from dataclasses import dataclass
from typing import Any

VARIABLES = (
    "OMP_NUM_THREADS",
    "OPENBLAS_NUM_THREADS",
    "MKL_NUM_THREADS",
    "BLIS_NUM_THREADS",
    "VECLIB_MAXIMUM_THREADS",
    "NUMEXPR_NUM_THREADS",
)


@dataclass(frozen=True, slots=True)
class Blas:
    """One linear-algebra or OpenMP library that is loaded in this process.

    Attributes
    ----------
    kind : {"blas", "openmp"}
        Which of the two.
    vendor, version, architecture : str
        As threadpoolctl tells; empty where it does not.
    n_threads : int
        How many threads it would use now.
    path : str
        The file.
    """

    kind: str
    vendor: str
    version: str
    architecture: str
    n_threads: int
    path: str


def blas_libraries() -> tuple[Blas, ...]:
    """Return the BLAS and OpenMP libraries loaded now; import what brings them, such as numpy, before."""
    from threadpoolctl import threadpool_info

    return tuple(
        Blas(
            kind=str(found["user_api"]),
            vendor=str(found["internal_api"]),
            version=str(found.get("version") or ""),
            architecture=str(found.get("architecture") or ""),
            n_threads=int(found["num_threads"]),
            path=str(found["filepath"]),
        )
        for found in threadpool_info()
    )


def variables(n_threads: int | None) -> dict[str, str]:
    """Return the variables that limit libraries which are not loaded yet; none for None."""
    return {} if n_threads is None else dict.fromkeys(VARIABLES, str(n_threads))


def find() -> None:
    """Find the libraries that are loaded: processes that are forked from this one need not look for them."""
    _controller()


def limit(n_threads: int | None) -> Any:
    """Limit the libraries that are loaded, for good, in a process that has just begun.

    Returns
    -------
    object
        What threadpoolctl knows of them.
    """
    controller = _controller()
    if n_threads is not None:
        for library in controller.lib_controllers:
            if _give(library, n_threads) > n_threads == 1:
                _end_threads(library)
    return controller.info()


def _end_threads(library: Any) -> None:
    """End the threads that OpenBLAS starts in a forked process when it is told how many there shall be, one included.

    They look for work for a tenth of a second, each on a CPU that others want. This is what OpenBLAS itself calls
    before a fork.
    """
    end = getattr(library.dynlib, "blas_thread_shutdown_", None) if library.internal_api == "openblas" else None
    if end is not None:
        end()


class limited:  # noqa: N801 (a context manager; not by a generator, since a short job would notice)
    """Limit the libraries that are loaded while the body runs; None leaves them alone.

    Several threads may be within; the last that leaves puts back what was. A library that the body loads is not
    limited before the next time.
    """

    def __init__(self, n_threads: int | None) -> None:
        self._n_threads = n_threads

    def __enter__(self) -> None:
        if self._n_threads is None:
            return
        with _lock:
            _asked.append(self._n_threads)
            for library in _controller().lib_controllers:
                _before.setdefault(library.filepath, (library, _give(library, self._n_threads)))

    def __exit__(self, *_: object) -> None:
        if self._n_threads is None:
            return
        with _lock:
            _asked.remove(self._n_threads)
            for library, n_before in _before.values():
                _give(library, _asked[-1] if _asked else n_before)
            if not _asked:
                _before.clear()


_lock = threading.Lock()
_asked: list[int] = []  # by the bodies that run
_before: dict[str, tuple[Any, int]] = {}  # each library, and what it had before them
_found: tuple[int, Any] = (0, None)  # how many modules were loaded, and what controls the libraries that they brought


def _controller() -> Any:
    """Return threadpoolctl's controller; to look for libraries takes milliseconds, so only after an import."""
    global _found
    if _found[0] != len(sys.modules):
        import threadpoolctl

        _found = len(sys.modules), threadpoolctl.ThreadpoolController()
    return _found[1]


def _give(library: Any, n_threads: int) -> int:
    """Set the threads of a library, from any thread; return how many it had."""
    n_before: int = library.get_num_threads()
    if n_before != n_threads:  # else in a third of the time
        # threadpoolctl's own method listens to the first thread only that sets some, since 3.8.
        getattr(library, "_real_set_num_threads", library.set_num_threads)(n_threads)
    return n_before


def _after_fork_in_child() -> None:
    global _lock
    _lock = threading.Lock()
    _asked.clear()
    _before.clear()


os.register_at_fork(after_in_child=_after_fork_in_child)
