"""What this process's own control groups allow and have counted, v1 and v2.

A limit may stand in the own group or in any of its parents, so each question is asked of all of them, from the
own group up to the root of what is mounted here. Inside a container the parents above the mount are invisible.

    /proc/self/cgroup         4:memory:/slurm/job_7/step_0           which group, as the host names it
    /proc/self/mountinfo      /slurm/job_7  /sys/fs/cgroup/memory    which part of the tree is seen, and where
    →                         /sys/fs/cgroup/memory/step_0, /sys/fs/cgroup/memory
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

from parcompute.machine import procfs

# Version 1 writes "no limit" as the largest whole number of pages, a little below 2**63 bytes.
_UNLIMITED_BYTES = 2**62


@dataclass(frozen=True, slots=True)
class Group:
    """One control group of this process, in one hierarchy.

    Attributes
    ----------
    version : {1, 2}
        Of the hierarchy.
    path : str
        Its name within the hierarchy, as far as it can be seen from here.
    folder : Path
        Where its files are.
    """

    version: int
    path: str
    folder: Path

    def __str__(self) -> str:
        return f"cgroup v{self.version} {self.path}"


def own_groups(controller: str, root: str | Path = "/") -> tuple[Group, ...]:
    """Find the group of this process that a controller acts on, and its parents.

    Parameters
    ----------
    controller : {"cpu", "cpuset", "memory", ...}
        Looked for in version 1 first: the kernel lists there only what version 2 does not have.
    root : path
        Folder that holds ``proc`` and ``sys``.

    Returns
    -------
    tuple of Group
        The own group first; empty where there is none.
    """
    root = Path(root)
    names = [line.split(":", 2) for line in procfs.text(root / "proc/self/cgroup").splitlines()]
    for entry in names:
        if len(entry) == 3 and controller in entry[1].split(","):
            return _visible(1, entry[2], [m for m in _mounts(root) if m.has(controller)], root)
    for entry in names:
        if len(entry) == 3 and entry[:2] == ["0", ""]:
            return _visible(2, entry[2], [m for m in _mounts(root) if m.kind == "cgroup2"], root)
    return ()


@dataclass(frozen=True, slots=True)
class _Mount:
    kind: str  # "cgroup" or "cgroup2"
    top: str  # the group that is seen at the mount point
    point: str
    options: tuple[str, ...]

    def has(self, controller: str) -> bool:
        return self.kind == "cgroup" and controller in self.options


def _mounts(root: Path) -> list[_Mount]:
    # 36 35 98:0 /top /point rw,noatime shared:1 - cgroup cgroup rw,cpu,cpuacct    (proc(5))
    found = []
    for line in procfs.text(root / "proc/self/mountinfo").splitlines():
        place, _, system = line.partition(" - ")
        left, right = place.split(), system.split()
        if len(left) >= 5 and right and right[0] in ("cgroup", "cgroup2"):
            found.append(_Mount(right[0], _plain(left[3]), _plain(left[4]), tuple(right[-1].split(","))))
    return found


def _plain(escaped: str) -> str:
    return re.sub(r"\\([0-7]{3})", lambda match: chr(int(match[1], 8)), escaped)


def _visible(version: int, path: str, mounts: list[_Mount], root: Path) -> tuple[Group, ...]:
    for mount, below in _places(path, mounts):
        top = root / mount.point.lstrip("/")
        if top.joinpath(*below).is_dir():
            return tuple(
                Group(version, str(PurePosixPath(mount.top, *below[:depth])), top.joinpath(*below[:depth]))
                for depth in range(len(below), -1, -1)
            )
    return ()


def _places(path: str, mounts: list[_Mount]) -> Iterator[tuple[_Mount, tuple[str, ...]]]:
    """Return where a group may be seen, the most certain place first."""
    for mount in mounts:
        if PurePosixPath(path).is_relative_to(mount.top):
            below = PurePosixPath(path).relative_to(mount.top).parts
            if ".." not in below:
                yield mount, below
    # The path lies outside what is mounted: the host named the group before the container got a namespace of
    # its own, or the other way round ("/../other"). Its end may still be seen; the mount point itself always is.
    parts = tuple(part for part in PurePosixPath(path).parts if part not in ("/", ".."))
    for start in range(len(parts) + 1):
        yield from ((mount, parts[start:]) for mount in mounts)


def cpu_quota(group: Group) -> float | None:
    """Return how many CPUs' worth of time the group may use; None where it has no quota of its own."""
    if group.version == 2:
        quota, _, period = procfs.text(group.folder / "cpu.max").partition(" ")
    else:
        quota, period = (procfs.text(group.folder / f"cpu.cfs_{name}_us") for name in ("quota", "period"))
    if not (quota.isdecimal() and period.isdecimal() and int(period)):
        return None  # "max" in version 2, "-1" in version 1, or no such file
    return int(quota) / int(period)


def cpuset(root: str | Path = "/") -> tuple[Group, tuple[int, ...]] | None:
    """Return the CPUs that the own group may run on, and the group that says so; None where none does."""
    for group in own_groups("cpuset", root):
        for name in ("cpuset.cpus.effective", "cpuset.effective_cpus", "cpuset.cpus"):
            if cpus := procfs.cpu_list(procfs.text(group.folder / name)):
                return group, cpus
    return None


def memory_limit(group: Group) -> int | None:
    """Return the bytes at which the kernel kills within the group; None where it has no limit of its own."""
    limit = procfs.number(group.folder / ("memory.max" if group.version == 2 else "memory.limit_in_bytes"))
    return limit if limit is not None and limit < _UNLIMITED_BYTES else None


def inherited_memory_limit(group: Group) -> int | None:
    """Return the limit that parents outside of what is mounted set as well; version 1 tells it, 2 does not."""
    limit = procfs.table(group.folder / "memory.stat").get("hierarchical_memory_limit", _UNLIMITED_BYTES)
    return limit if limit < _UNLIMITED_BYTES else None


def memory_used(group: Group) -> tuple[int, int] | None:
    """Return the bytes charged to the group, and those of them that are file cache not in recent use.

    The kernel drops the second kind before it kills, so it is still available. Shared memory is none of it.
    """
    used = procfs.number(group.folder / ("memory.current" if group.version == 2 else "memory.usage_in_bytes"))
    if used is None:
        return None
    name = "inactive_file" if group.version == 2 else "total_inactive_file"
    return used, min(used, procfs.table(group.folder / "memory.stat").get(name, 0))


@dataclass(frozen=True, slots=True)
class OomKills:
    """How many processes the kernel has killed for want of memory, up to now.

    Attributes
    ----------
    source : str
        Where the count stands.
    n : int
        Since the group (or, where no group tells, the system) was made; -1 where it cannot be read.
    n_limit_hits : int
        How often the limit was met, whether or not memory could then be reclaimed; -1 where unknown.
    """

    source: str
    n: int
    n_limit_hits: int = -1


def oom_kills(root: str | Path = "/") -> OomKills:
    """Read the out-of-memory count of the own group; take it before and after what may have been killed."""
    for group in own_groups("memory", root):
        if group.version == 2:
            events = procfs.table(group.folder / "memory.events")
            name, hits = "memory.events", events.get("max")
        else:
            events = procfs.table(group.folder / "memory.oom_control")
            name, hits = "memory.oom_control", procfs.number(group.folder / "memory.failcnt")
        if "oom_kill" in events:
            return OomKills(f"{name} of {group}", events["oom_kill"], -1 if hits is None else hits)
    # The root of version 2 has no such file, but the system counts as well.
    system = procfs.table(Path(root) / "proc/vmstat").get("oom_kill", -1)
    return OomKills("/proc/vmstat, of the whole system" if system >= 0 else "no counter can be read", system)


def oom_evidence(before: OomKills, after: OomKills) -> str:
    """Say what two counts tell about the time between them; empty where they tell of no kill.

    Examples
    --------
    >>> oom_evidence(OomKills("memory.events of cgroup v2 /a", 3), OomKills("memory.events of cgroup v2 /a", 4))
    'out of memory: 1 process killed (oom_kill in memory.events of cgroup v2 /a went from 3 to 4)'
    """
    killed = after.n - before.n
    if before.source != after.source or before.n < 0 or killed <= 0:
        return ""
    return (
        f"out of memory: {killed} process{'es' * (killed > 1)} killed "
        f"(oom_kill in {after.source} went from {before.n} to {after.n})"
    )


def throttling(root: str | Path = "/") -> tuple[int, int] | None:
    """Return how often and how long quotas have stopped the own group, over it and its parents.

    Returns
    -------
    (n_throttled, throttled_ns) : tuple of int, or None
        Each group counts the stops by its own quota, so the sum counts none twice. None where no group
        has counters.
    """
    n, ns, seen = 0, 0, False
    for group in own_groups("cpu", root):
        counters = procfs.table(group.folder / "cpu.stat")
        seen |= "nr_throttled" in counters
        n += counters.get("nr_throttled", 0)
        ns += counters.get("throttled_usec", 0) * 1000 + counters.get("throttled_time", 0)
    return (n, ns) if seen else None
