"""Whether the machine was quiet while something ran: take its counters before and after, and compare.

Four things disturb a measurement from outside, and each has its own counter:

    the own CPU quota stopped the workers                     cpu.stat of the own cgroup and its parents
    the hypervisor gave the CPUs to others                    steal time of the usable CPUs in /proc/stat
    others computed on the usable CPUs                        busy time of those CPUs, less that of this process tree
    others were waiting to compute when it began or ended     runnable threads in /proc/loadavg
"""

from __future__ import annotations

import math
import os
import time
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from parcompute.machine import cgroups, procfs
from parcompute.machine.limits import allowed_cpus
from parcompute.machine.topology import mean_mhz

# Above this share of a run's core-seconds stolen time is as large as the effects that are measured.
STOLEN_SHARE = 0.01

# The kernel samples the busy time of a CPU by its timer tick but counts that of a process exactly. The two differ by
# up to this share although nobody else computes.
SAMPLING_SHARE = 0.05

# Counters in /proc/stat go in ticks: a single one may have been filling up since long before the run.
_TICK_NS = 10**9 // os.sysconf("SC_CLK_TCK")


@dataclass(frozen=True, slots=True)
class Activity:
    """What the machine and this process had done up to one moment; -1 or NaN where it cannot be read.

    Attributes
    ----------
    taken_ns : int
        When, by `time.perf_counter_ns`.
    n_cpus, n_online : int
        CPUs on which this process may run, and those of the machine.
    load_1min : float
        Mean number of threads that ran or waited for a CPU in the last minute, on the whole machine.
    n_runnable : int
        Threads that run or wait for a CPU at this moment, on the whole machine, the asking one included.
    n_throttled, throttled_ns : int
        How often and how long CPU quotas have stopped this process's control groups.
    stolen_ns, busy_ns : int
        Of the CPUs on which this process may run: time that the hypervisor gave to others, and busy time.
    own_ns : int
        CPU time of this process and all that stem from it, those that have ended included.
    mhz : float
        Mean frequency of those CPUs.
    """

    taken_ns: int
    n_cpus: int
    n_online: int
    load_1min: float = math.nan
    n_runnable: int = -1
    n_throttled: int = -1
    throttled_ns: int = -1
    stolen_ns: int = -1
    busy_ns: int = -1
    own_ns: int = -1
    mhz: float = math.nan

    @classmethod
    def now(
        cls,
        root: str | Path = "/",
        affinity: Iterable[int] | None = None,
        own: Iterable[int] | None = None,
        looks: int = 5,
    ) -> Activity:
        """Read all counters: about 1 ms, and 1 ms more for each further look.

        Parameters
        ----------
        root : path
            Folder that holds ``proc`` and ``sys``.
        affinity : iterable of int, optional
            The affinity mask; None asks the system.
        own : iterable of int, optional
            The processes that, with all that stem from them, do not count as others; None for the calling
            process. Workers that a launcher such as ``mpirun`` has started do not stem from it: name them too.
        looks : int
            How often at most the runnable threads are counted, a millisecond apart; the least count stands.
        """
        root = Path(root)
        cpus = allowed_cpus(root, affinity)
        taken_ns = time.perf_counter_ns()
        online = procfs.cpu_list(procfs.text(root / "sys/devices/system/cpu/online"))
        n_throttled, throttled_ns = cgroups.throttling(root) or (-1, -1)
        busy_ns, stolen_ns = cpu_times(cpus, root)
        own_ns = tree_ns([os.getpid()] if own is None else own, root)
        load_1min, n_runnable = _load(root, looks)
        return cls(
            taken_ns,
            len(cpus),
            len(online) or os.cpu_count() or 1,
            load_1min,
            n_runnable,
            n_throttled,
            throttled_ns,
            stolen_ns,
            busy_ns,
            own_ns,
            mean_mhz(cpus, root),
        )


@dataclass(frozen=True, slots=True)
class Counters:
    """What the counters of the machine said of one run; -1 or NaN where they cannot be read.

    Attributes
    ----------
    load_before, load_after : float
        Mean number of threads that ran or waited for a CPU in the minute before, on the whole machine.
    runnable_before, runnable_after : int
        Threads that ran or waited for a CPU then, on the whole machine, the asking one included.
    mhz_before, mhz_after : float
        Mean frequency of the CPUs on which the process may run.
    throttled_s, stolen_s : float
        How long, meanwhile, CPU quotas stopped it, and how much of the CPUs' time the hypervisor gave to others.
    others_s : float
        CPU time that others had, meanwhile, on the CPUs on which the process may run, to a tick of the kernel.
    """

    load_before: float = math.nan
    load_after: float = math.nan
    runnable_before: int = -1
    runnable_after: int = -1
    mhz_before: float = math.nan
    mhz_after: float = math.nan
    throttled_s: float = math.nan
    stolen_s: float = math.nan
    others_s: float = math.nan

    @property
    def known(self) -> bool:
        """Whether any of what others did meanwhile could be read."""
        told = (self.throttled_s, self.stolen_s, self.others_s)
        return not all(map(math.isnan, told)) or max(self.runnable_before, self.runnable_after) >= 0

    @classmethod
    def between(cls, before: Activity, after: Activity) -> Counters:
        """Return what happened between two moments."""
        others_ns = math.nan
        if 0 <= before.own_ns <= after.own_ns and min(before.busy_ns, after.busy_ns) >= 0:
            others_ns = max(0, after.busy_ns - before.busy_ns - (after.own_ns - before.own_ns))
        return cls(
            before.load_1min,
            after.load_1min,
            before.n_runnable,
            after.n_runnable,
            before.mhz,
            after.mhz,
            _seconds(before.throttled_ns, after.throttled_ns),
            _seconds(before.stolen_ns, after.stolen_ns),
            others_ns / 1e9,
        )


def _seconds(before_ns: int, after_ns: int) -> float:
    return (after_ns - before_ns) / 1e9 if min(before_ns, after_ns) >= 0 else math.nan


def disturbances(before: Activity, after: Activity, wall_s: float, n_workers: int, blas_threads: int = 1) -> str:
    """Say why a run was disturbed; empty where the machine was quiet.

    Parameters
    ----------
    before, after : Activity
        Taken right before and right after the run.
    wall_s : float
        How long the run took, in seconds.
    n_workers : int
        How many of its threads computed at once on this host; 0 where all of them were on others.
    blas_threads : int
        Threads of BLAS in each of them: what its libraries leave spinning is none of others.

    Notes
    -----
    A run counts as disturbed if

    * a CPU quota stopped it, however briefly: each stop holds all workers for up to a period of 0.1 s;
    * more than `STOLEN_SHARE` of its core-seconds, and more than one tick, was stolen;
    * others computed for longer than the CPUs that the workers leave idle could serve, by more than
      `SAMPLING_SHARE` of the CPU time there was;
    * when it began or ended more threads of others were runnable than the workers leave idle CPUs. That count is of
      the whole machine, so it is used only where the process may run on all of it.

    What could not be read on both sides counts as quiet.

    Examples
    --------
    >>> before = Activity(0, n_cpus=2, n_online=2, n_runnable=1, stolen_ns=0)
    >>> after = Activity(10**9, n_cpus=2, n_online=2, n_runnable=4, stolen_ns=50_000_000)
    >>> disturbances(before, after, wall_s=1.0, n_workers=2)
    '2.5 % of its CPU time stolen by the hypervisor; 3 threads of others runnable at its end, room for 0'
    """
    idle = max(0, after.n_cpus - n_workers * blas_threads)
    found = []
    stops = _grown(before.n_throttled, after.n_throttled)
    if stops > 0:
        held_s = _grown(before.throttled_ns, after.throttled_ns) / 1e9
        found.append(f"throttled {stops} time{'s' * (stops > 1)} for {held_s:.2f} s by a CPU quota")

    stolen_ns, core_ns = _grown(before.stolen_ns, after.stolen_ns), wall_s * n_workers * 1e9
    if n_workers and stolen_ns > max(STOLEN_SHARE * core_ns, _TICK_NS):
        found.append(f"{stolen_ns / core_ns:.1%} of its CPU time stolen by the hypervisor".replace("%", " %"))

    elapsed_ns = after.taken_ns - before.taken_ns
    if 0 <= before.own_ns <= after.own_ns:
        others_ns = _grown(before.busy_ns, after.busy_ns) - (after.own_ns - before.own_ns)
        room_ns = (idle + SAMPLING_SHARE * after.n_cpus) * elapsed_ns + 2 * _TICK_NS * after.n_cpus
        if others_ns > room_ns:
            share = f"{others_ns / elapsed_ns:.2f} of {after.n_cpus} CPUs"
            found.append(f"others computed on {share} meanwhile, room for {idle}")

    if after.n_cpus == after.n_online:
        for when, activity in (("start", before), ("end", after)):
            # The thread that asked is one of them.
            others = activity.n_runnable - 1 - n_workers * (blas_threads - 1)
            if others > idle:
                found.append(f"{others} thread{'s' * (others > 1)} of others runnable at its {when}, room for {idle}")
    return "; ".join(found)


def _grown(before: int, after: int) -> int:
    return 0 if min(before, after) < 0 else after - before


def cpu_times(cpus: Iterable[int], root: str | Path = "/") -> tuple[int, int]:
    """Return how long CPUs were busy, and how long the hypervisor had them, since the boot.

    Returns
    -------
    (busy_ns, stolen_ns) : tuple of int
        Sums over `cpus`; -1 and -1 where they cannot be read.
    """
    wanted = {f"cpu{cpu}" for cpu in cpus}
    rows = [line.split() for line in procfs.text(Path(root) / "proc/stat").splitlines()]
    # user nice system idle iowait irq softirq steal; guest time is part of user. Old kernels end earlier.
    ticks = [([int(value) for value in row[1:9]] + [0] * 8)[:8] for row in rows if row and row[0] in wanted]
    if not ticks:
        return -1, -1
    busy = sum(sum(row[:3]) + sum(row[5:7]) for row in ticks)
    return busy * _TICK_NS, sum(row[7] for row in ticks) * _TICK_NS


def tree_ns(pids: Iterable[int], root: str | Path = "/") -> int:
    """Return the CPU time of processes and of all that stem from them, those that have ended included.

    Returns
    -------
    int
        Nanoseconds, in whole ticks; -1 where the system does not list the children of a process.
    """
    ticks, listed, seen, waiting = 0, False, set[int](), list(pids)
    while waiting:
        if (pid := waiting.pop()) in seen:
            continue
        seen.add(pid)
        folder = Path(root) / f"proc/{pid}"
        # The name of the program stands in brackets and may hold blanks. After it, utime, stime and those of the
        # children that have ended are fields 14 to 17 of the line (proc(5)).
        fields = procfs.text(folder / "stat").rpartition(")")[2].split()
        if len(fields) < 15:
            continue  # it has just ended, and its parent counts it from now on
        ticks += sum(map(int, fields[11:15]))
        for children in folder.glob("task/*/children"):
            listed = True
            waiting += map(int, procfs.text(children).split())
    return ticks * _TICK_NS if listed else -1


def _load(root: Path, looks: int) -> tuple[float, int]:
    load_1min, n_runnable = math.nan, -1
    for look in range(looks):
        # 0.20 0.18 0.12 1/80 11206: the fourth is runnable/all (proc(5)).
        fields = procfs.text(root / "proc/loadavg").replace("/", " ").split()
        if len(fields) < 4:
            break
        load_1min = float(fields[0])
        n_runnable = int(fields[3]) if look == 0 else min(n_runnable, int(fields[3]))
        if n_runnable <= 1:
            break
        # Workers that have just finished are still on their way to sleep, and a thread of the kernel runs for
        # microseconds: neither is there at each look.
        time.sleep(0.001)
    if math.isnan(load_1min) and hasattr(os, "getloadavg"):
        load_1min = os.getloadavg()[0]
    return load_1min, n_runnable
