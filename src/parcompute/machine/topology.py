"""Which CPUs share what: cores, sockets, NUMA nodes, caches, and the kind of CPU they are."""

from __future__ import annotations

import math
import platform
import sys
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path

from parcompute.machine import procfs

CpuSets = tuple[tuple[int, ...], ...]

# On arm64 /proc/cpuinfo has no names. The numbers are Arm's MIDR_EL1 (linux/arch/arm64/include/asm/cputype.h).
_ARM_MAKERS = {
    0x41: "Arm",
    0x42: "Broadcom",
    0x43: "Cavium",
    0x46: "Fujitsu",
    0x48: "HiSilicon",
    0x4E: "NVIDIA",
    0x51: "Qualcomm",
    0x61: "Apple",
    0xC0: "Ampere",
}
_ARM_PARTS = {
    (0x41, 0xD03): "Cortex-A53",
    (0x41, 0xD08): "Cortex-A72",
    (0x41, 0xD0B): "Cortex-A76",
    (0x41, 0xD0C): "Neoverse-N1",
    (0x41, 0xD40): "Neoverse-V1",
    (0x41, 0xD49): "Neoverse-N2",
    (0x41, 0xD4F): "Neoverse-V2",
    (0x43, 0x0AF): "ThunderX2",
    (0x46, 0x001): "A64FX",
    (0x48, 0xD01): "Kunpeng-920",
    (0xC0, 0xAC3): "Ampere-1",
}


@dataclass(frozen=True, slots=True)
class Cache:
    """One level of cache.

    Attributes
    ----------
    name : str
        ``"L1d"``, ``"L1i"``, ``"L2"``, …
    size_bytes : int
        Of one of them.
    shared_by : tuple of tuple of int
        The CPUs that share each of them.
    """

    name: str
    size_bytes: int
    shared_by: CpuSets


@dataclass(frozen=True, slots=True)
class Topology:
    """Which of a process's CPUs share what.

    Only the CPUs that were asked for appear: a core with two hardware threads of which the process may use
    one is a core with one CPU here.

    Attributes
    ----------
    cpus : tuple of int
        Those asked for.
    model : str
        Name of the CPU; empty where nothing tells.
    cores, sockets, numa_nodes : tuple of tuple of int
        The CPUs of each. CPUs of one core are hardware threads (SMT siblings) of it.
    caches : tuple of Cache
        From the first level on; empty where they cannot be read.
    governor : str
        How the frequency is chosen, such as ``"performance"``; empty where it cannot be read.
    mhz, max_mhz : float
        Mean frequency now, and the highest; NaN where they cannot be read.
    why_cores : str
        How the cores were found.
    """

    cpus: tuple[int, ...]
    model: str
    cores: CpuSets
    sockets: CpuSets
    numa_nodes: CpuSets
    caches: tuple[Cache, ...]
    governor: str
    mhz: float
    max_mhz: float
    why_cores: str

    @classmethod
    def read(cls, cpus: Iterable[int], root: str | Path = "/") -> Topology:
        """Read it from sysfs.

        Parameters
        ----------
        cpus : iterable of int
            The CPUs that matter.
        root : path
            Folder that holds ``proc`` and ``sys``.
        """
        cpus, root = tuple(sorted(cpus)), Path(root)
        system = root / "sys/devices/system"
        infos = _cpuinfo(root)
        cores, why_cores = _cores(cpus, system)
        return cls(
            cpus=cpus,
            model=_model(infos),
            cores=cores,
            sockets=_grouped(cpus, lambda cpu: procfs.text(system / f"cpu/cpu{cpu}/topology/physical_package_id")),
            numa_nodes=_numa_nodes(cpus, system),
            caches=_caches(cpus, system),
            governor=_one_of({procfs.text(system / f"cpu/cpu{cpu}/cpufreq/scaling_governor") for cpu in cpus}),
            mhz=mean_mhz(cpus, root, otherwise=infos),
            max_mhz=_mean(procfs.number(system / f"cpu/cpu{cpu}/cpufreq/cpuinfo_max_freq") for cpu in cpus) / 1000,
            why_cores=why_cores,
        )

    @property
    def smt_siblings(self) -> int:
        """The most CPUs that are hardware threads of one core; 1 means that no two share a core."""
        return max(map(len, self.cores), default=1)


def mean_mhz(cpus: Iterable[int], root: str | Path = "/", otherwise: list[dict[str, str]] | None = None) -> float:
    """Return the mean frequency of some CPUs now, NaN where it cannot be read.

    Parameters
    ----------
    cpus : iterable of int
        Which.
    root : path
        Folder that holds ``proc`` and ``sys``.
    otherwise : list of dict, optional
        The processors of ``/proc/cpuinfo``, for systems where sysfs tells no frequency.
    """
    folder = Path(root) / "sys/devices/system/cpu"
    cpus = set(cpus)
    now = _mean(procfs.number(folder / f"cpu{cpu}/cpufreq/scaling_cur_freq") for cpu in cpus) / 1000
    if not math.isnan(now) or not otherwise:
        return now
    found = [float(info["cpu MHz"]) for info in otherwise if "cpu MHz" in info and int(info["processor"]) in cpus]
    return sum(found) / len(found) if found else math.nan


def has_hypervisor_flag(root: str | Path = "/") -> bool:
    """Return whether the CPU says that it is a virtual machine's (x86 only)."""
    return any("hypervisor" in info.get("flags", "").split() for info in _cpuinfo(Path(root))[:1])


def _cores(cpus: tuple[int, ...], system: Path) -> tuple[CpuSets, str]:
    def siblings(cpu: int) -> str:
        folder = system / f"cpu/cpu{cpu}/topology"
        return procfs.text(folder / "thread_siblings_list") or procfs.text(folder / "core_cpus_list")

    def core(cpu: int) -> str:
        folder = system / f"cpu/cpu{cpu}/topology"
        core_id = procfs.text(folder / "core_id")
        # The number of a core counts within its socket only.
        return core_id and f"{procfs.text(folder / 'physical_package_id')}:{core_id}"

    for why, of in (("thread_siblings_list", siblings), ("core_id and physical_package_id", core)):
        if cpus and all(of(cpu) for cpu in cpus):
            return _grouped(cpus, of), f"by {why} in sysfs"
    return tuple((cpu,) for cpu in cpus), "sysfs tells no cores: each CPU is taken for one"


def _grouped(cpus: Iterable[int], key: Callable[[int], str]) -> CpuSets:
    groups: dict[str, list[int]] = {}
    for cpu in cpus:
        groups.setdefault(key(cpu), []).append(cpu)
    return tuple(sorted(map(tuple, groups.values())))


def _numa_nodes(cpus: tuple[int, ...], system: Path) -> CpuSets:
    node_of: dict[int, str] = {}
    for folder in system.glob("node/node[0-9]*"):
        node_of |= dict.fromkeys(procfs.cpu_list(procfs.text(folder / "cpulist")), folder.name)
    return _grouped(cpus, lambda cpu: node_of.get(cpu, ""))


def _caches(cpus: tuple[int, ...], system: Path) -> tuple[Cache, ...]:
    sizes: dict[str, int] = {}
    sharers: dict[str, dict[int, tuple[int, ...]]] = {}
    for cpu in cpus:
        for folder in system.glob(f"cpu/cpu{cpu}/cache/index[0-9]*"):
            name = f"L{procfs.text(folder / 'level')}"
            name += {"Data": "d", "Instruction": "i"}.get(procfs.text(folder / "type"), "")
            together = set(procfs.cpu_list(procfs.text(folder / "shared_cpu_list"))) & set(cpus)
            size = _size_bytes(procfs.text(folder / "size"))
            if size:
                sizes[name] = size
                sharers.setdefault(name, {})[cpu] = tuple(sorted(together)) or (cpu,)
    return tuple(Cache(name, sizes[name], tuple(sorted(set(sharers[name].values())))) for name in sorted(sizes))


def _size_bytes(notation: str) -> int:
    factor = {"K": 2**10, "M": 2**20, "G": 2**30}.get(notation[-1:], 1)
    digits = notation.rstrip("KMG")
    return int(digits) * factor if digits.isdecimal() else 0


def _cpuinfo(root: Path) -> list[dict[str, str]]:
    processors: list[dict[str, str]] = []
    for paragraph in procfs.text(root / "proc/cpuinfo").split("\n\n"):
        pairs = (line.partition(":") for line in paragraph.splitlines())
        entry = {name.strip(): value.strip() for name, _, value in pairs}
        if entry.get("processor", "").isdecimal():
            processors.append(entry)
    return processors


def _model(infos: list[dict[str, str]]) -> str:
    models = [info.get("model name", "") or _arm_model(info) or info.get("cpu", "") for info in infos]
    # Big and little cores have different names, and both belong to what was measured.
    if named := " + ".join(dict.fromkeys(filter(None, models))):
        return named
    if sys.platform == "darwin":
        import subprocess

        command = ["/usr/sbin/sysctl", "-n", "machdep.cpu.brand_string"]
        return subprocess.run(command, capture_output=True, text=True, check=False).stdout.strip()
    return platform.machine()


def _arm_model(info: dict[str, str]) -> str:
    try:
        maker, part = (int(info[f"CPU {name}"], 0) for name in ("implementer", "part"))
    except (KeyError, ValueError):
        return ""
    who = _ARM_MAKERS.get(maker, f"implementer {maker:#04x}")
    return f"{who} {_ARM_PARTS.get((maker, part), f'part {part:#05x}')}"


def _mean(values: Iterable[int | None]) -> float:
    known = [value for value in values if value is not None]
    return sum(known) / len(known) if known else math.nan


def _one_of(values: set[str]) -> str:
    return ", ".join(sorted(values - {""}))
