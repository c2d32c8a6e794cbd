"""Scientific batch computing in Python: all cores, no copies, honest scaling curves."""

import sys
from typing import TYPE_CHECKING, Any

if sys.platform == "win32":
    raise ImportError("parcompute needs Linux or macOS; on Windows, run it in WSL 2")

from parcompute import announce
from parcompute.backends.base import WorkerLost
from parcompute.blocks import Block, Plan
from parcompute.checkpoint import CheckpointError
from parcompute.executor import Executor
from parcompute.experiment import experiment
from parcompute.job import KernelError
from parcompute.losses import Losses, losses
from parcompute.shared import SharedArray, SharedMemoryFull, share
from parcompute.sweep import Check
from parcompute.timeline import Timeline

if TYPE_CHECKING:
    from collections.abc import Callable

    from parcompute.advice import Advice

__version__ = "0.1.0.dev0"

__all__ = [
    "Block",
    "Check",
    "CheckpointError",
    "Executor",
    "KernelError",
    "Losses",
    "Plan",
    "SharedArray",
    "SharedMemoryFull",
    "Timeline",
    "WorkerLost",
    "advise",
    "experiment",
    "losses",
    "register_joblib",
    "share",
]


def advise(kernel: "Callable[..., Any]", *arrays: Any, **given: Any) -> "Advice":
    """Find out how to run a kernel: threads or processes, how many, with which blocks.

    See `parcompute.advice.advise` for the parameters; they are those of `Executor.map_blocks`.

    Returns
    -------
    parcompute.advice.Advice
        Print it.

    Examples
    --------
    >>> import numpy as np
    >>> advise(np.sqrt, np.arange(100_000.0)).way.backend in ("serial", "threads", "processes")
    True
    """
    from parcompute.advice import advise  # on demand: most programs do without

    return advise(kernel, *arrays, **given)


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
    announce.to_joblib()


announce.to_joblib_once_imported()
