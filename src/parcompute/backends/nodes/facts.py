"""What a node says of itself, and what of it must, or should, be as on the others."""

from __future__ import annotations

import os
import platform
from collections.abc import Sequence
from importlib import import_module
from typing import Any

import numpy as np

from parcompute._version import __version__
from parcompute.machine import limits
from parcompute.machine.blas import Blas, blas_libraries
from parcompute.machine.topology import Topology
from parcompute.values.nodes import Node


def versions() -> dict[str, str]:
    """Return the versions that have to be the same on all nodes: what travels is rebuilt by these."""
    return {
        "parcompute": __version__,
        "python": ".".join(platform.python_version_tuple()[:2]),
        "numpy": np.__version__,
    }


def unlike(ours: dict[str, str], theirs: dict[str, str], host: str) -> str:
    """Return in words how the versions of a node differ from the caller's; empty if they do not."""
    wrong = [f"{name} {theirs.get(name)} (here {ours[name]})" for name in ours if ours[name] != theirs.get(name)]
    return f"node {host} has {', '.join(wrong)}; use one environment on all nodes" if wrong else ""


def simd() -> tuple[str, ...]:
    """Return for which features of this CPU NumPy has chosen other code than for its baseline."""
    try:
        umath: Any = import_module("numpy._core._multiarray_umath")
    except ImportError:  # NumPy 1
        umath = import_module("numpy.core._multiarray_umath")
    return tuple(name for name in umath.__cpu_dispatch__ if umath.__cpu_features__.get(name))


def here(n_workers: int) -> Node:
    """Return what there is to say of this process and its host."""
    blas, found = _blas_of_numpy(), versions()
    return Node(
        host=os.uname().nodename,
        pid=os.getpid(),
        n_workers=n_workers,
        n_cpus=limits.usable_cpus(),
        cpu_model=Topology.read(os.sched_getaffinity(0)).model,
        memory_bytes=limits.Memory.read("/").limit.n,
        parcompute=found["parcompute"],
        python=found["python"],
        numpy=found["numpy"],
        simd=simd(),
        blas=" ".join((blas.vendor, blas.version, blas.architecture)) if blas else "",
    )


def _blas_of_numpy() -> Blas | None:
    """Return the library that NumPy calls; where it has not brought one of its own, all packages share one."""
    found = [one for one in blas_libraries() if one.kind == "blas"]
    own = [one for one in found if one.path.startswith(os.path.dirname(np.__file__))]  # numpy.libs, numpy/.dylibs
    return next(iter(own or found), None)


def doubts(nodes: Sequence[Node]) -> str:
    """Return in words why the bits of a result may depend on the node that computed them; empty if they do not.

    NumPy and BLAS choose code by the features of the CPU, and the last bits of a sum or a product with it.
    """
    if not nodes:
        return ""
    found = []
    common = set.intersection(*(set(node.simd) for node in nodes))
    if extra := sorted({name for node in nodes for name in node.simd} - common):
        unlike_hosts = ", ".join(
            sorted({f"{node.host} ({node.cpu_model})" for node in nodes if set(node.simd) - common})
        )
        found.append(
            f"NumPy uses {' '.join(extra)} on {unlike_hosts} only; NPY_DISABLE_CPU_FEATURES='{' '.join(extra)}' in the "
            "environment of all nodes, and of this program, gives all the same code"
        )
    if len(kernels := {node.blas for node in nodes}) > 1:
        by = "; ".join(f"{blas} on {', '.join(n.host for n in nodes if n.blas == blas)}" for blas in sorted(kernels))
        found.append(f"linear algebra is {by}; OPENBLAS_CORETYPE=Haswell on all nodes gives all the same code")
    return f"the bits of results may depend on the node: {'. And '.join(found)}" if found else ""
