"""What this process may use: CPUs, memory, NUMA nodes, BLAS threads; the number and the reason.

The numbers that something limits are a `parcompute.machine.limits.Bound`: all limits that were looked at, which one
decided, and why in a sentence.
"""

from __future__ import annotations

import math
import os
import sys
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import asdict, dataclass
from datetime import datetime
from pathlib import Path
from typing import Any

from parcompute.machine import procfs
from parcompute.machine.batch import deadline, systems
from parcompute.machine.blas import Blas, blas_libraries
from parcompute.machine.limits import Bound, Memory, affinity_mask, allowed_cpus, cpu_bound, mib
from parcompute.machine.topology import Topology, has_hypervisor_flag


@dataclass(frozen=True, slots=True)
class Machine:
    """What this process may use of the machine that it runs on.

    Attributes
    ----------
    cpus : Bound
        How many CPUs it may keep busy.
    topology : Topology
        How the CPUs on which it may run hang together; quotas allow time, not particular CPUs, and do not
        show here.
    memory : Memory
        How much memory it may have.
    blas : tuple of Blas
        The numeric libraries loaded now.
    container : str
        Marks of containers that were found, such as ``"docker"``; empty outside.
    hypervisor : str
        Marks of a virtual machine; empty where there are none.
    batch : str
        Which job of which batch system this process is part of, and when it ends; empty outside.
    n_ranks : int
        MPI ranks of one job on this host, as the launcher says; 0 outside of one.
    """

    cpus: Bound
    topology: Topology
    memory: Memory
    blas: tuple[Blas, ...]
    container: str
    hypervisor: str
    batch: str
    n_ranks: int

    @classmethod
    def read(
        cls,
        root: str | Path = "/",
        environ: Mapping[str, str] = os.environ,
        affinity: Iterable[int] | None = None,
        *,
        address_space_bytes: int | None = None,
        statvfs: Callable[[Path], os.statvfs_result] = os.statvfs,
    ) -> Machine:
        """Read everything; parameters as in `cpu_bound` and `Memory.read`."""
        mask = tuple(sorted(affinity_mask() if affinity is None else affinity))
        return cls(
            cpus=cpu_bound(root, environ, affinity),
            topology=Topology.read(allowed_cpus(root, mask), root),
            memory=Memory.read(root, address_space_bytes, statvfs),
            blas=blas_libraries(),
            container=", ".join(_containers(Path(root), environ)),
            hypervisor=", ".join(_hypervisors(Path(root))),
            batch=_batch_job(environ),
            n_ranks=next((int(environ[name]) for name in _LOCAL_RANKS if environ.get(name, "").isdecimal()), 0),
        )

    def as_dict(self) -> dict[str, Any]:
        """Return all of it as plain values that JSON can hold; what is unknown (NaN) is None."""
        plain: dict[str, Any] = _plain(asdict(self))
        plain["cpus"] |= {"n": self.cpus.n, "reason": self.cpus.reason}
        for name in ("limit", "available"):
            bound: Bound = getattr(self.memory, name)
            plain["memory"][name] |= {"n": bound.n, "reason": bound.reason}
        return plain

    def describe(self) -> list[str]:
        """Return lines of text, aligned: each number, and the reason for it."""
        rows = list(_rows(self))
        wide = [max(len(row[column]) for row in rows) for column in (0, 1)]
        return [f"{name:<{wide[0]}}  {value:>{wide[1]}}  {why}".rstrip() for name, value, why in rows]


def _containers(root: Path, environ: Mapping[str, str]) -> Iterator[str]:
    groups = procfs.text(root / "proc/1/cgroup") + procfs.text(root / "proc/self/cgroup")
    marks = {
        "docker": (root / ".dockerenv").exists() or "/docker" in groups,
        "podman": (root / "run/.containerenv").exists() or "libpod" in groups,
        "kubernetes": "KUBERNETES_SERVICE_HOST" in environ or "kubepods" in groups,
        "apptainer": (root / ".singularity.d").exists()
        or not environ.keys().isdisjoint({"APPTAINER_CONTAINER", "SINGULARITY_CONTAINER"}),
        "lxc": "/lxc" in groups,
    }
    yield from (name for name, found in marks.items() if found)


# Where Open MPI, MPICH and MVAPICH say how many ranks of the job are on this host.
_LOCAL_RANKS = ("OMPI_COMM_WORLD_LOCAL_SIZE", "MPI_LOCALNRANKS", "MV2_COMM_WORLD_LOCAL_SIZE")


def _batch_job(environ: Mapping[str, str]) -> str:
    system = systems.current(environ)
    if system is None and not deadline.in_job(environ):
        return ""
    told = [f"{system.name} {environ[system.id_variable]}"] if system else ["of a system that is not known here"]
    if task := environ.get("SLURM_ARRAY_TASK_ID"):
        told.append(f"task {task} of array {environ.get('SLURM_ARRAY_JOB_ID', '')}")
    if (end_s := deadline.find_end_s(environ)) is None:
        told.append("whose end nobody tells")
    else:
        told.append(f"ends at {datetime.fromtimestamp(end_s):%Y-%m-%d %H:%M:%S}, in {end_s - time.time():,.0f} s")
    if (n := systems.copies(environ, sys.modules)) > 1:
        told.append(f"one of {n} copies of this program, which srun has started")
    return "; ".join(told)


def _hypervisors(root: Path) -> Iterator[str]:
    if has_hypervisor_flag(root):
        yield "hypervisor flag of the CPU"
    if kind := procfs.text(root / "sys/hypervisor/type"):
        yield kind


def _plain(value: Any) -> Any:
    if isinstance(value, dict):
        return {name: _plain(part) for name, part in value.items()}
    if isinstance(value, (list, tuple)):
        return [_plain(part) for part in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def _rows(machine: Machine) -> Iterator[tuple[str, str, str]]:
    yield "usable CPUs", str(machine.cpus.n), machine.cpus.reason
    for limit in machine.cpus.limits:
        yield f"  {limit.source}", "–" if limit.n is None else str(limit.n), limit.reason
    t = machine.topology
    if machine.batch:
        yield "batch job", "", machine.batch
    if machine.n_ranks:
        yield "MPI ranks", str(machine.n_ranks), "on this host; those that may use the same CPUs divide them"
    yield "CPU model", "", t.model
    yield "physical cores", str(len(t.cores)), _cores_told(t)
    yield "sockets", str(len(t.sockets)), _sets_told(t.sockets)
    yield "NUMA nodes", str(len(t.numa_nodes)), _sets_told(t.numa_nodes)
    for cache in t.caches:
        each = f"each, {len(cache.shared_by)} of them: {_sets_told(cache.shared_by)}"
        yield f"cache {cache.name}", f"{cache.size_bytes // 1024:,} KiB", each
    yield "frequency", _mhz(t.mhz), f"mean now; highest {_mhz(t.max_mhz)}, governor {t.governor or 'unknown'}"
    m, unknown = machine.memory, "unknown"
    yield "memory", mib(m.total_bytes), "of the machine"
    for name, bound in (("memory limit", m.limit), ("memory available", m.available)):
        yield name, mib(bound.n), bound.reason
        for limit in bound.limits:
            yield f"  {limit.source}", "–" if limit.n is None else mib(limit.n), limit.reason
    yield (
        "/dev/shm",
        mib(m.shm_bytes) if m.shm_bytes >= 0 else "–",
        (f"{mib(m.shm_free_bytes)} of it free" if m.shm_bytes >= 0 else "there is none"),
    )
    yield "huge pages", "", f"private memory {m.huge_pages or unknown}; shared memory {m.shm_huge_pages or unknown}"
    yield "  in /dev/shm", "", m.dev_shm_huge_pages or unknown
    for blas in machine.blas:
        yield f"{blas.kind} threads", str(blas.n_threads), " ".join([blas.vendor, blas.version, blas.architecture])
    yield "container", "", machine.container or "no mark of one"
    yield "virtual machine", "", machine.hypervisor or "no mark of one"


def _cores_told(topology: Topology) -> str:
    n, siblings = len(topology.cpus), topology.smt_siblings
    threads = f"up to {siblings} hardware threads each" if siblings > 1 else "no two CPUs share a core"
    return f"of CPUs {procfs.cpu_notation(topology.cpus)} ({n}), {threads}; {topology.why_cores}"


def _sets_told(sets: tuple[tuple[int, ...], ...]) -> str:
    shown = [f"CPUs {procfs.cpu_notation(cpus)}" if len(cpus) > 1 else f"CPU {cpus[0]}" for cpus in sets[:4]]
    return " | ".join(shown) + (f" | … {len(sets) - 4} more" if len(sets) > 4 else "")


def _mhz(value: float) -> str:
    return "unknown" if math.isnan(value) else f"{value:,.0f} MHz"
