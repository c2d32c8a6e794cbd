"""Scientific batch computing in Python: all cores, no copies, honest scaling curves."""

import sys
from typing import TYPE_CHECKING, Any

if sys.platform == "win32":
    raise ImportError("parcompute needs Linux or macOS; on Windows, run it in WSL 2")

from parcompute._version import __version__ as __version__
from parcompute.executor.joblib_name import register_joblib, register_joblib_once_imported

if TYPE_CHECKING:
    from parcompute.analysis.losses import Losses, losses
    from parcompute.analysis.results import Results, read
    from parcompute.backends.base import WorkerLost
    from parcompute.executor.advice import advise
    from parcompute.executor.executor import Executor
    from parcompute.experiments.experiment import experiment
    from parcompute.figures import plot
    from parcompute.jobs.checkpoint_file import CheckpointError
    from parcompute.jobs.job import KernelError
    from parcompute.jobs.setup import worker_state
    from parcompute.machine.batch.deadline import OutOfTime
    from parcompute.memory.segments import SharedMemoryFull
    from parcompute.memory.shared import SharedArray, share
    from parcompute.values.blocks import Block, Plan
    from parcompute.values.sweep import Check
    from parcompute.values.timeline import Timeline

__all__ = [
    "Block",
    "Check",
    "CheckpointError",
    "Executor",
    "KernelError",
    "Losses",
    "OutOfTime",
    "Plan",
    "Results",
    "SharedArray",
    "SharedMemoryFull",
    "Timeline",
    "WorkerLost",
    "advise",
    "experiment",
    "losses",
    "plot",
    "read",
    "register_joblib",
    "share",
    "worker_state",
]

# Where each name is at home: looked up when it is first asked for, so that `import parcompute` loads next to nothing.
_HOMES = {
    "Block": "values.blocks",
    "Check": "values.sweep",
    "CheckpointError": "jobs.checkpoint_file",
    "Executor": "executor.executor",
    "KernelError": "jobs.job",
    "Losses": "analysis.losses",
    "OutOfTime": "machine.batch.deadline",
    "Plan": "values.blocks",
    "Results": "analysis.results",
    "SharedArray": "memory.shared",
    "SharedMemoryFull": "memory.segments",
    "Timeline": "values.timeline",
    "WorkerLost": "backends.base",
    "advise": "executor.advice",
    "experiment": "experiments.experiment",
    "losses": "analysis.losses",
    "plot": "figures",
    "read": "analysis.results",
    "share": "memory.shared",
    "worker_state": "jobs.setup",
}


if not TYPE_CHECKING:  # which would take it for a promise that every name is there

    def __getattr__(name: str) -> Any:
        if name not in _HOMES:
            raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
        # As `from HOME import NAME` does, so that what is asked for may be a module, too.
        found = globals()[name] = getattr(__import__(f"{__name__}.{_HOMES[name]}", fromlist=[name]), name)
        return found


def __dir__() -> list[str]:
    return [*__all__, *(name for name in globals() if name.startswith("__"))]


register_joblib_once_imported()
