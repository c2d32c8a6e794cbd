"""Tell joblib of the backend ``"parcompute"`` as soon as joblib is imported, without importing it."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from types import ModuleType
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from importlib.machinery import ModuleSpec

NAME = "parcompute"


def to_joblib() -> None:
    """Make the backend known to joblib."""
    import joblib

    joblib.register_parallel_backend(NAME, _backend)


def to_joblib_once_imported() -> None:
    """Make the backend known to joblib now if it is imported, else when it will be."""
    if "joblib" in sys.modules:
        to_joblib()
    sys.meta_path.insert(0, _Watch())


def _backend(**options: Any) -> Any:
    from parcompute.for_joblib import Backend

    return Backend(**options)


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
                to_joblib()

            # Of this one module; a loader of our own around it would show in what joblib says of itself.
            spec.loader.exec_module = run_and_tell  # type: ignore[method-assign]
        return spec
