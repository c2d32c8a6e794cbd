"""How many CPUs and how much memory a process may use: the smallest of several limits, which one it is, and why.

affinity mask ── cpuset ── CPU quota of the own cgroup and its parents ── batch system → CPUs
physical memory ── limit of the own cgroup and its parents ── RLIMIT_AS                → memory
PARCOMPUTE_WORKERS wins over all limits on CPUs, in both directions.
"""

from __future__ import annotations

import math
import os
import platform
import re
import resource
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

from parcompute.machine import cgroups, procfs
from parcompute.machine.batch import systems

WORKERS_VARIABLE = "PARCOMPUTE_WORKERS"

# More than any one host has: a larger number is a mistake for something else.
MOST_WORKERS = 4096


@dataclass(frozen=True, slots=True)
class Limit:
    """One thing that limits a process.

    Attributes
    ----------
    source : str
        What limits, in a few words.
    n : int or None
        CPUs or bytes; None where it sets no limit.
    reason : str
        What was read, and how it became the number.
    """

    source: str
    n: int | None
    reason: str


@dataclass(frozen=True, slots=True)
class Bound:
    """The smallest of several limits.

    Attributes
    ----------
    decided_by : Limit
        The one that counts: the first of the smallest, or one that wins over all.
    limits : tuple of Limit
        All that were looked at.

    Examples
    --------
    >>> bound = Bound.smallest([Limit("mask", 8, "CPUs 0-7"), Limit("quota", 2, "2.5 CPUs"), Limit("Slurm", None, "")])
    >>> bound.n, bound.reason
    (2, 'quota: 2.5 CPUs')
    """

    decided_by: Limit
    limits: tuple[Limit, ...]

    @classmethod
    def smallest(cls, limits: Iterable[Limit]) -> Bound:
        """Return the bound that limits make together; at least one of them has to be a number."""
        limits = tuple(limits)
        return cls(min((limit for limit in limits if limit.n is not None), key=_number), limits)

    @property
    def n(self) -> int:
        """The number: CPUs or bytes."""
        return _number(self.decided_by)

    @property
    def reason(self) -> str:
        """Which limit decided, and why."""
        return f"{self.decided_by.source}: {self.decided_by.reason}"


def _number(limit: Limit) -> int:
    assert limit.n is not None
    return limit.n


def allowed_cpus(root: str | Path = "/", affinity: Iterable[int] | None = None) -> tuple[int, ...]:
    """Return the CPUs on which this process may run: its affinity mask, as far as its cpuset allows."""
    mask = affinity_mask() if affinity is None else set(affinity)
    cpuset = cgroups.cpuset(root)
    # A cpuset that shares no CPU with the mask was not meant for this process.
    return tuple(sorted((mask & set(cpuset[1])) or mask)) if cpuset else tuple(sorted(mask))


def affinity_mask() -> set[int]:
    """Return the CPUs on which the system lets this process run; all of them where it has no such mask."""
    if hasattr(os, "sched_getaffinity"):
        return set(os.sched_getaffinity(0))
    return set(range(os.cpu_count() or 1))


def cpu_bound(
    root: str | Path = "/", environ: Mapping[str, str] = os.environ, affinity: Iterable[int] | None = None
) -> Bound:
    """Find how many CPUs this process may use, and why.

    Parameters
    ----------
    root : path
        Folder that holds ``proc`` and ``sys``.
    environ : mapping
        Environment variables.
    affinity : iterable of int, optional
        The affinity mask; None asks the system.

    Raises
    ------
    ValueError
        If ``PARCOMPUTE_WORKERS`` is set to anything but a whole number from 1 to `MOST_WORKERS`.
    """
    known = hasattr(os, "sched_getaffinity") or affinity is not None
    mask = tuple(sorted(affinity_mask() if affinity is None else affinity))
    told = f"CPUs {procfs.cpu_notation(mask)}" if known else "this system has no affinity mask: all CPUs"
    bound = Bound.smallest(
        [
            Limit("affinity mask", len(mask), told),
            _cpuset_limit(root, mask),
            *_quota_limits(root),
            *_batch_limits(root, environ, mask),
        ]
    )
    if not (asked := environ.get(WORKERS_VARIABLE, "").strip()):
        return bound
    if not (re.fullmatch("[0-9]{1,9}", asked) and 1 <= int(asked) <= MOST_WORKERS):
        raise ValueError(
            f"{WORKERS_VARIABLE}={asked!r:.40} is not a number of workers; "
            f"set a whole number from 1 to {MOST_WORKERS}, or unset it"
        )
    override = Limit(WORKERS_VARIABLE, int(asked), f"set to {asked}, which wins over all limits ({bound.n} without it)")
    return Bound(override, (override, *bound.limits))


def _cpuset_limit(root: str | Path, mask: tuple[int, ...]) -> Limit:
    if (found := cgroups.cpuset(root)) is None:
        return Limit("cpuset", None, "no cpuset can be read")
    group, cpus = found
    told = f"{group} has CPUs {procfs.cpu_notation(cpus)}"
    if common := len(set(mask) & set(cpus)):
        return Limit("cpuset", common, told if set(mask) >= set(cpus) else f"{told}, {common} of them in the mask")
    return Limit("cpuset", None, f"{told}, none of them in the mask: it is not taken for this process's own")


def _quota_limits(root: str | Path) -> Iterator[Limit]:
    if not (groups := cgroups.own_groups("cpu", root)):
        yield Limit("CPU quota", None, "no control group with a CPU quota can be read")
        return
    free = []
    for group in groups:
        if (quota := cgroups.cpu_quota(group)) is None:
            free.append(group.path)
            continue
        workers = max(1, math.floor(quota + 1e-9))
        told = f"{group} allows {quota:g} CPU{'s' * (quota != 1)}"
        if quota < 1:
            told += ": 1 worker, which will be throttled"
        elif quota > workers + 1e-9:
            told += f": {workers} worker{'s' * (workers > 1)}, as one more would be throttled"
        yield Limit("CPU quota", workers, told)
    if free:
        yield Limit("CPU quota", None, f"none in cgroup v{groups[0].version} {', '.join(free)}")


def _batch_limits(root: str | Path, environ: Mapping[str, str], mask: tuple[int, ...]) -> Iterator[Limit]:
    job = systems.current(environ)
    system = job or systems.SYSTEMS[0]
    found = list(system.cpus(environ, platform.node()))
    if job is None and not any(n for n, _ in found):
        found = [(None, "not in a job")]
    for n, why in found:
        yield Limit(system.name, n, why)
    # Numbers of CPUs count both hardware threads of a core, of which such a job is to use one.
    hint, threads = environ.get("SLURM_HINT", ""), environ.get("SLURM_THREADS_PER_CORE", "")
    if "nomultithread" in hint or threads == "1":
        from parcompute.machine.topology import Topology

        told = f"SLURM_HINT={hint}" if hint else f"SLURM_THREADS_PER_CORE={threads}"
        cores = len(Topology.read(allowed_cpus(root, mask), root).cores)
        yield Limit("Slurm", cores, f"{told}: one hardware thread of each core")


@dataclass(frozen=True, slots=True)
class Memory:
    """How much memory this process may have.

    Attributes
    ----------
    total_bytes : int
        Of the machine.
    limit : Bound
        The most that this process may ever use, in bytes.
    available : Bound
        What it may still take now, in bytes, without swapping or being killed.
    shm_bytes, shm_free_bytes : int
        Size and free space of ``/dev/shm``; -1 where there is none.
    huge_pages, shm_huge_pages : str
        Whether the kernel makes huge pages of private memory, and of shared memory that is no file, as it writes it:
        its choice in brackets; empty where it does not tell.
    dev_shm_huge_pages : str
        Whether it makes them of files in ``/dev/shm``, where shared arrays lie: the mount's option ``huge``.
    """

    total_bytes: int
    limit: Bound
    available: Bound
    shm_bytes: int
    shm_free_bytes: int
    huge_pages: str
    shm_huge_pages: str
    dev_shm_huge_pages: str

    @classmethod
    def read(
        cls,
        root: str | Path = "/",
        address_space_bytes: int | None = None,
        statvfs: Callable[[Path], os.statvfs_result] = os.statvfs,
    ) -> Memory:
        """Read it.

        Parameters
        ----------
        root : path
            Folder that holds ``proc``, ``sys`` and ``dev``.
        address_space_bytes : int, optional
            The limit on address space (RLIMIT_AS), -1 for none; None asks the system.
        statvfs : callable
            Tells the size and the free space of a file system.
        """
        physical = _physical(Path(root))
        if address_space_bytes is None:
            address_space_bytes = resource.getrlimit(resource.RLIMIT_AS)[0]
        try:
            shm = statvfs(Path(root) / "dev/shm")
            size, free = shm.f_blocks * shm.f_frsize, shm.f_bavail * shm.f_frsize
        except OSError:
            size = free = -1
        limits, available = zip(physical, *_memory_limits(root), _address_space(root, address_space_bytes), strict=True)
        chosen = Path(root) / "sys/kernel/mm/transparent_hugepage"
        return cls(
            total_bytes=_number(physical[0]),
            limit=Bound.smallest(limits),
            available=Bound.smallest(available),
            shm_bytes=size,
            shm_free_bytes=free,
            huge_pages=procfs.text(chosen / "enabled"),
            shm_huge_pages=procfs.text(chosen / "shmem_enabled"),
            dev_shm_huge_pages=_dev_shm_huge_pages(Path(root)) if size >= 0 else "",
        )


def _dev_shm_huge_pages(root: Path) -> str:
    # "30 25 0:27 / /dev/shm rw - tmpfs tmpfs rw,huge=always"; what is mounted last is what is seen.
    mounts = [line.split() for line in procfs.text(root / "proc/self/mountinfo").splitlines()]
    options = [mount[-1].split(",") for mount in mounts if len(mount) > 4 and mount[4] == "/dev/shm"]
    if not options:
        return ""
    return next((option.removeprefix("huge=") for option in options[-1] if option.startswith("huge=")), "never")


def _physical(root: Path) -> tuple[Limit, Limit]:
    found = procfs.table(root / "proc/meminfo")
    total, available = (found.get(name, 0) * 1024 for name in ("MemTotal", "MemAvailable"))
    if total:
        return (
            Limit("physical memory", total, "MemTotal in /proc/meminfo"),
            # Kernels before 3.14 have no MemAvailable.
            Limit("physical memory", available or total, "MemAvailable in /proc/meminfo"),
        )
    import psutil

    memory = psutil.virtual_memory()
    return (
        Limit("physical memory", memory.total, "as psutil reports"),
        Limit("physical memory", memory.available, "available, as psutil reports"),
    )


def _memory_limits(root: str | Path) -> Iterator[tuple[Limit, Limit]]:
    """Return what each control group allows in all, and what is left of it."""
    source = "cgroup memory"
    if not (groups := cgroups.own_groups("memory", root)):
        yield (Limit(source, None, "no control group with a memory limit can be read"),) * 2
        return
    free = []
    for group in groups:
        if (limit := cgroups.memory_limit(group)) is None:
            free.append(group.path)
            continue
        yield Limit(source, limit, f"limit of {group}"), _left(source, f"{group}", limit, group)
    if free:
        yield (Limit(source, None, f"no limit in cgroup v{groups[0].version} {', '.join(free)}"),) * 2
    inherited = cgroups.inherited_memory_limit(groups[0])
    seen = [limit for group in groups if (limit := cgroups.memory_limit(group)) is not None]
    if inherited is not None and inherited < min(seen, default=inherited + 1):
        whose = f"a parent of {groups[-1]} that is not seen from here"
        yield Limit(source, inherited, f"limit of {whose}"), _left(source, whose, inherited, groups[-1])


def _left(source: str, whose: str, limit: int, group: cgroups.Group) -> Limit:
    if (used := cgroups.memory_used(group)) is None:
        return Limit(source, limit, f"limit of {whose}, of which the used part cannot be read")
    charged, reclaimable = used
    left = max(0, limit - charged + reclaimable)
    told = f"{mib(limit)} limit of {whose}, less {mib(charged)} used, of which {mib(reclaimable)} is idle file cache"
    return Limit(source, left, told)


def _address_space(root: str | Path, limit: int) -> tuple[Limit, Limit]:
    source = "RLIMIT_AS"
    if limit == resource.RLIM_INFINITY or limit < 0:
        return (Limit(source, None, "no limit on the address space"),) * 2
    # The first number of statm is the size of the address space in pages.
    pages = (procfs.text(Path(root) / "proc/self/statm").split() or ["0"])[0]
    used = int(pages) * os.sysconf("SC_PAGE_SIZE") if pages.isdecimal() else 0
    return (
        Limit(source, limit, "limit on the address space of each process"),
        Limit(source, max(0, limit - used), f"{mib(limit)} of address space, less {mib(used)} in use"),
    )


def mib(n_bytes: int) -> str:
    """Write a number of bytes for people."""
    return f"{n_bytes / 2**20:,.1f} MiB"


def usable_cpus() -> int:
    """Return how many CPUs this process may use; `parcompute.machine.limits.cpu_bound` also says why."""
    return cpu_bound().n


def available_memory_bytes(root: str | Path = "/") -> Bound:
    """Return how many bytes this process may still take, and why no more."""
    return Memory.read(root).available
