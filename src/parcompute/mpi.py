"""Run a script on the ranks of MPI: ``mpiexec -n 4 python -m parcompute.mpi script.py``.

Rank 0 runs the script, whose ``Executor(backend="mpi")`` has a node in each rank; the others serve it.
"""

from __future__ import annotations

import os
import runpy
import sys


def main(arguments: list[str]) -> None:
    """Run a script, or with ``-m`` a module, as rank 0; serve it as any other rank."""
    if not arguments or arguments[0] in ("-h", "--help"):
        sys.exit("usage: mpiexec -n N python -m parcompute.mpi (SCRIPT | -m MODULE) [ARGUMENTS]")
    from parcompute.backends import mpi

    if mpi.rank() != 0:
        mpi.serve()
        return
    mpi.begin()
    if arguments[0] == "-m":
        sys.argv[:], sys.path[0] = arguments[1:], ""
        runpy.run_module(arguments[1], run_name="__main__", alter_sys=True)
    else:
        sys.argv[:], sys.path[0] = arguments, os.path.dirname(os.path.abspath(arguments[0]))
        runpy.run_path(arguments[0], run_name="__main__")


if __name__ == "__main__":
    main(sys.argv[1:])
