"""Tell joblib of the backend ``"parcompute"`` as soon as joblib is imported, without importing it."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from types import ModuleType
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from importlib.machinery import ModuleSpec


def register_joblib() -> None:
    """Make ``"parcompute"`` known to joblib as the name of a backend.

    ``import parcompute`` does this by itself, whether joblib is imported before it or after. Call it if something
    else has taken the name since.

    Examples
    --------
    >>> import joblib
    >>> with joblib.parallel_config(backend="parcompute", n_jobs=2):
    ...     joblib.Parallel()(joblib.delayed(abs)(n) for n in (-1, -2, -3))
    [1, 2, 3]
    """
    import joblib

    joblib.register_parallel_backend("parcompute", _backend)


def register_joblib_once_imported() -> None:
    """Make the backend known to joblib now if it is imported, else when it will be."""
    if "joblib" in sys.modules:
        register_joblib()
    sys.meta_path.insert(0, _Watch())


def _backend(**options: Any) -> Any:
    from parcompute.executor.joblib_backend import ParcomputeBackend

    return ParcomputeBackend(**options)


class _Watch:
    """Finds joblib as the other finders do, and has the name told when its code has run.

    A `importlib.abc.MetaPathFinder` by what it does: to derive from that class would cost 10 ms of `import parcompute`.
    """

    def find_spec(
        self, fullname: str, path: Sequence[str] | None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        if fullname != "joblib":
            return None
        others = sys.meta_path[sys.meta_path.index(self) + 1 :]
        found = (finder.find_spec(fullname, path, target) for finder in others)
        spec = next((spec for spec in found if spec is not None), None)
        if spec is not None and spec.loader is not None:
            run = spec.loader.exec_module

            def run_and_tell(module: ModuleType) -> None:
                run(module)
                register_joblib()

            # Of this one module; a loader of our own around it would show in what joblib says of itself.
            spec.loader.exec_module = run_and_tell  # type: ignore[method-assign]
        return spec
