"""Run a script on the ranks of MPI: ``mpiexec -n 4 python -m parcompute.mpi script.py``.

Rank 0 runs the script, whose ``Executor(backend="mpi")`` has a node in each rank; the others serve it.
"""

from __future__ import annotations

import io
import os
import runpy
import sys
import types


def main(arguments: list[str]) -> None:
    """Run a script, or with ``-m`` a module, as rank 0; serve it as any other rank."""
    if not arguments or arguments[0] in ("-h", "--help"):
        sys.exit("usage: mpiexec -n N python -m parcompute.mpi (SCRIPT | -m MODULE) [ARGUMENTS]")
    if arguments[0] != "-m" and not os.path.isfile(arguments[0]):
        sys.exit(f"parcompute.mpi: there is no file {arguments[0]}; pass a script, or -m and a module")
    if arguments == ["-m"]:
        sys.exit("parcompute.mpi: -m has no module; pass its name")
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
        run(arguments[0])


def run(path: str) -> None:
    """Run a script as the main module, which stays that: submitted calls may look for their functions in it."""
    with io.open_code(path) as file:
        code = compile(file.read(), path, "exec")
    module = sys.modules["__main__"] = types.ModuleType("__main__")
    module.__file__ = path
    exec(code, vars(module))


if __name__ == "__main__":
    main(sys.argv[1:])
