"""Under which conditions something ran, as one flat value: a number travels with it.

Each field is either a *condition*, in which runs have to agree to be compared (the kind of CPU, the code, the
versions of what computes), or it may vary from run to run (the load, the time, the seed, the name of the node).
"""

from __future__ import annotations

import hashlib
import itertools
import json
import math
import os
import platform
import shlex
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields, replace
from datetime import UTC, datetime
from importlib import metadata
from pathlib import Path
from typing import Any, TypeVar

from parcompute.machine import cgroups, procfs
from parcompute.machine.blas import Blas
from parcompute.machine.limits import WORKERS_VARIABLE, Bound
from parcompute.machine.machine import Machine
from parcompute.machine.quiet import Activity
from parcompute.machine.revision import Code

Value = str | int | float | bool
_T = TypeVar("_T", str, int, float, bool)


def _condition(unknown: _T, meaning: str, **found: Any) -> _T:
    return field(default=unknown, metadata={"condition": True, "meaning": meaning, **found})


def _varies(unknown: _T, meaning: str, **found: str) -> _T:
    return field(default=unknown, metadata={"condition": False, "meaning": meaning, **found})


def _version_of(package: str, *, backend: str = "") -> str:
    only = f"; concerns runs of the backend {backend} only" if backend else ""
    meaning = f"version of {package}, empty where it is not installed{only}"
    return _condition("", meaning, package=package, backend=backend)


def _thread_variable(name: str) -> str:
    return _condition("", f"environment variable {name}", variable=name)


def _slurm_variable(name: str) -> str:
    return _varies("", f"environment variable {name}", variable=name)


@dataclass(frozen=True, slots=True, kw_only=True)
class Provenance:
    """The conditions of runs. `meanings` says what each field is.

    All values are plain, so that each becomes one attribute of a file. What is not known is ``""``, -1 or NaN
    and never missing.

    Examples
    --------
    >>> one, other = Provenance(cpu_model="A64FX", seed=1), Provenance(cpu_model="A64FX", seed=2)
    >>> one.conditions_id == other.conditions_id, one.id == other.id
    (True, False)
    """

    # The machine. A container or a batch system gives every job another host name and other CPUs of the same kind, so
    # the kind and the number of what is used are the conditions.
    host: str = _varies("", "name of the node")
    cpu_model: str = _condition("", "name of the CPU")
    architecture: str = _condition("", "instruction set")
    usable_cpus: int = _condition(-1, "CPUs that the process may keep busy")
    usable_cpus_reason: str = _varies("", "which limit decided on them")
    n_threads: int = _condition(-1, "CPUs (hardware threads) on which it may run")
    n_cores: int = _condition(-1, "physical cores that these belong to")
    n_sockets: int = _condition(-1, "sockets that these belong to")
    n_numa_nodes: int = _condition(-1, "NUMA nodes that these belong to")
    n_online_cpus: int = _condition(-1, "CPUs of the whole machine")
    caches: str = _condition("", "name and bytes of each cache, and how many CPUs share one")
    affinity: str = _varies("", "CPUs on which it may run, in the kernel's notation")
    cpu_quota: float = _condition(math.nan, "smallest quota of the own cgroup and its parents, in CPUs; inf for none")
    governor: str = _condition("", "how the frequency is chosen")
    max_mhz: float = _condition(math.nan, "highest frequency of a CPU")
    mhz: float = _varies(math.nan, "mean frequency of the CPUs at the start")
    memory_gib: int = _condition(-1, "memory of the machine, rounded up: what the kernel keeps differs between boots")
    memory_bytes: int = _varies(-1, "memory of the machine, as the kernel counts it")
    memory_limit_bytes: int = _varies(-1, "the most that the process may use")
    memory_limit_reason: str = _varies("", "which limit decided on it")
    memory_available_bytes: int = _varies(-1, "what it could still take at the start")
    shm_bytes: int = _varies(-1, "size of /dev/shm")
    transparent_hugepages: str = _condition("", "the kernel's choice for private memory, in brackets")
    shm_hugepages: str = _condition("", "its choice for shared memory that is no file, in brackets")
    dev_shm_hugepages: str = _condition("", "option huge of the mount of /dev/shm, where shared arrays lie")
    kernel: str = _condition("", "system and its release")
    container: str = _condition("", "marks of a container")
    hypervisor: str = _condition("", "marks of a virtual machine")
    node_hosts: str = _varies("", "names of the nodes of a run on a cluster, by number; several may be on one host")
    node_cpu_models: str = _condition(
        "", "names of their CPUs, where one is unlike that of the host; else empty", new=True
    )

    # How busy it was.
    load_1min: float = _varies(math.nan, "mean runnable threads in the minute before the start")
    n_runnable: int = _varies(-1, "runnable threads at the start")
    n_throttled: int = _varies(-1, "how often quotas had stopped the own cgroups up to the start")
    throttled_ns: int = _varies(-1, "for how long")

    # The program.
    parcompute_version: str = _condition("", "version of parcompute")
    python_version: str = _condition("", "implementation and version")
    python_build: str = _condition("", "compiler and build")
    gil: bool = _condition(True, "whether one thread of the interpreter runs at a time")
    # Packages that take part in a run; what only draws or prints changes no number.
    numpy_version: str = _version_of("numpy")
    scipy_version: str = _version_of("scipy")
    joblib_version: str = _version_of("joblib")
    cloudpickle_version: str = _version_of("cloudpickle")
    threadpoolctl_version: str = _version_of("threadpoolctl")
    h5py_version: str = _version_of("h5py")
    numba_version: str = _version_of("numba")
    dask_version: str = _version_of("dask", backend="dask")
    distributed_version: str = _version_of("distributed", backend="dask")
    mpi4py_version: str = _version_of("mpi4py", backend="mpi")
    blas_vendor: str = _condition("", "library that numpy calls for linear algebra")
    blas_version: str = _condition("", "its version")
    blas_architecture: str = _condition("", "the kind of CPU whose code it has chosen")
    blas_threads: int = _condition(-1, "threads that it uses in each worker")
    omp_num_threads: str = _thread_variable("OMP_NUM_THREADS")
    openblas_num_threads: str = _thread_variable("OPENBLAS_NUM_THREADS")
    mkl_num_threads: str = _thread_variable("MKL_NUM_THREADS")
    blis_num_threads: str = _thread_variable("BLIS_NUM_THREADS")
    veclib_maximum_threads: str = _thread_variable("VECLIB_MAXIMUM_THREADS")
    numexpr_num_threads: str = _thread_variable("NUMEXPR_NUM_THREADS")
    numba_num_threads: str = _thread_variable("NUMBA_NUM_THREADS")
    code_digest: str = _condition("", "of the code as it stands: equal commits of other files leave it as it is")
    git_commit: str = _varies("", "of the repository that holds the experiment")
    git_dirty: int = _varies(-1, "1 if the code differs from that commit, 0 if not, -1 where there is no repository")

    # The experiment.
    start_method: str = _varies("", "of the workers, where all runs have the same")
    chunk_plan: str = _varies("", "blocks and chunks, where all runs have the same")
    seed: int = _varies(-1, "of the sweep: of the random streams, and of the order within the rounds")
    n_rounds: int = _varies(-1, "rounds of the sweep that visit every configuration")
    precision: float = _varies(math.nan, "how well further rounds were to tell a median: half its interval over itself")
    budget_s: float = _varies(math.nan, "seconds that the runs might take before further rounds ended")
    command_line: str = _varies("", "as a shell would take it")
    collected_utc: str = _varies("", "when this was collected, ISO 8601")

    # The clock.
    clock: str = _condition("", "what time.perf_counter_ns reads")
    clock_source: str = _condition("", "what the kernel reads for it")
    clock_resolution_ns: float = _condition(math.nan, "as the system states it")
    clock_overhead_ns: float = _varies(math.nan, "median time between two readings that follow each other")

    # The batch system.
    slurm_cluster_name: str = _slurm_variable("SLURM_CLUSTER_NAME")
    slurm_job_partition: str = _slurm_variable("SLURM_JOB_PARTITION")
    slurm_job_id: str = _slurm_variable("SLURM_JOB_ID")
    slurm_array_job_id: str = _slurm_variable("SLURM_ARRAY_JOB_ID")
    slurm_array_task_id: str = _slurm_variable("SLURM_ARRAY_TASK_ID")
    slurm_step_id: str = _slurm_variable("SLURM_STEP_ID")
    slurm_procid: str = _slurm_variable("SLURM_PROCID")
    slurm_nodeid: str = _slurm_variable("SLURM_NODEID")

    @classmethod
    def collect(
        cls,
        folder: str | Path | None = None,
        *,
        seed: int = -1,
        start_method: str = "",
        chunk_plan: str = "",
        blas_threads: int = -1,
        machine: Machine | None = None,
        environ: Mapping[str, str] = os.environ,
    ) -> Provenance:
        """Find out all of it. Nothing that is missing or broken on the way makes this fail.

        Parameters
        ----------
        folder : path, optional
            Where the experiment's code is; None records no commit.
        seed : int
            Of the sweep.
        start_method, chunk_plan : str
            Where they are the same for all runs; otherwise each run records its own.
        blas_threads : int
            Threads of BLAS in each worker; -1 records what this process would use.
        machine : Machine, optional
            As it was read before; None reads it.
        environ : mapping
            Environment variables; only those that have a field here are recorded.
        """
        import numpy  # noqa: F401  # loads the BLAS whose name is recorded

        from parcompute._version import __version__

        machine = Machine.read(environ=environ) if machine is None else machine
        activity = Activity.now()
        blas = _numpy_blas(machine.blas)
        code = Code.read(folder) if folder is not None else Code()
        packages = {f.name: _installed(f.metadata["package"]) for f in fields(cls) if "package" in f.metadata}
        variables = {f.name: environ.get(f.metadata["variable"], "") for f in fields(cls) if "variable" in f.metadata}
        clock = time.get_clock_info("perf_counter")
        topology, memory = machine.topology, machine.memory
        # What the user asks for by variable is a choice, as the number of workers is, and no property of the machine.
        cpus = Bound.smallest(limit for limit in machine.cpus.limits if limit.source != WORKERS_VARIABLE)
        return cls.from_fields(
            packages
            | variables
            | {
                "host": platform.node(),
                "cpu_model": topology.model,
                "architecture": platform.machine(),
                "usable_cpus": cpus.n,
                "usable_cpus_reason": cpus.reason,
                "n_threads": len(topology.cpus),
                "n_cores": len(topology.cores),
                "n_sockets": len(topology.sockets),
                "n_numa_nodes": len(topology.numa_nodes),
                "n_online_cpus": activity.n_online,
                "caches": _caches(machine),
                "affinity": procfs.cpu_notation(topology.cpus),
                "cpu_quota": _smallest_quota(),
                "governor": topology.governor,
                "max_mhz": topology.max_mhz,
                "mhz": topology.mhz,
                "memory_gib": -(-memory.total_bytes // 2**30),
                "memory_bytes": memory.total_bytes,
                "memory_limit_bytes": memory.limit.n,
                "memory_limit_reason": memory.limit.reason,
                "memory_available_bytes": memory.available.n,
                "shm_bytes": memory.shm_bytes,
                "transparent_hugepages": memory.huge_pages,
                "shm_hugepages": memory.shm_huge_pages,
                "dev_shm_hugepages": memory.dev_shm_huge_pages,
                "kernel": f"{platform.system()} {platform.release()}",
                "container": machine.container,
                "hypervisor": machine.hypervisor,
                "load_1min": activity.load_1min,
                "n_runnable": activity.n_runnable,
                "n_throttled": activity.n_throttled,
                "throttled_ns": activity.throttled_ns,
                "parcompute_version": __version__,
                "python_version": f"{platform.python_implementation()} {platform.python_version()}",
                "python_build": f"{platform.python_compiler()}; {', '.join(platform.python_build())}",
                "gil": getattr(sys, "_is_gil_enabled", lambda: True)(),
                "blas_vendor": blas.vendor,
                "blas_version": blas.version,
                "blas_architecture": blas.architecture,
                "blas_threads": blas.n_threads if blas_threads < 0 else blas_threads,
                "code_digest": code.digest,
                "git_commit": code.commit,
                "git_dirty": code.dirty,
                "start_method": start_method,
                "chunk_plan": chunk_plan,
                "seed": seed,
                "command_line": _command_line(sys.orig_argv),
                "collected_utc": datetime.now(UTC).isoformat(timespec="milliseconds"),
                "clock": f"time.perf_counter_ns: {clock.implementation}",
                "clock_source": procfs.text(Path("/sys/devices/system/clocksource/clocksource0/current_clocksource")),
                "clock_resolution_ns": round(clock.resolution * 1e9, 3),
                "clock_overhead_ns": clock_overhead_ns(),
            }
        )

    @classmethod
    def from_fields(cls, values: Mapping[str, Any]) -> Provenance:
        """Make one from the values of a file, whose types may be those of NumPy.

        Fields that the file does not have are unknown; what has no field here, as a newer version may have written,
        is left out.
        """
        kinds: dict[str, Any] = {f.name: type(f.default) for f in fields(cls)}
        return cls(**{name: kinds[name](value) for name, value in values.items() if name in kinds})

    def on_nodes(self, hosts: Sequence[str], cpu_models: Sequence[str]) -> Provenance:
        """Return the same of a run on several nodes.

        Parameters
        ----------
        hosts, cpu_models : sequence of str
            Name and CPU of each node.

        Examples
        --------
        >>> known = Provenance(cpu_model="A64FX").on_nodes(["node7", "node8"], ["A64FX", "EPYC"])
        >>> known.node_hosts, known.node_cpu_models
        ('node7, node8', 'A64FX, EPYC')
        """
        alike = set(cpu_models) <= {self.cpu_model}
        models = "" if alike else ", ".join(sorted(set(cpu_models)))
        return replace(self, node_hosts=", ".join(hosts), node_cpu_models=models)

    def of(self, *backends: str) -> Provenance:
        """Return the same as far as it concerns runs of `backends`: the versions of others' engines are unknown.

        Examples
        --------
        >>> before, after = Provenance(mpi4py_version=""), Provenance(mpi4py_version="4.1.0")
        >>> [before.of(backend) == after.of(backend) for backend in ("processes", "mpi")]
        [True, False]
        """
        return self.with_engines(dict.fromkeys(backends, self))

    def with_engines(self, each: Mapping[str, Provenance]) -> Provenance:
        """Return the same with the versions of engines as `each` has them by backend; others are unknown."""
        none = Provenance()
        return replace(self, **{name: getattr(each.get(backend, none), name) for name, backend in _OF_BACKEND.items()})

    def as_dict(self) -> dict[str, Value]:
        """Return all fields by name, in the order in which they are declared."""
        return {f.name: getattr(self, f.name) for f in fields(self)}

    @property
    def id(self) -> str:
        """Digest of all fields: 16 hexadecimal digits."""
        return _digest(self.as_dict())

    @property
    def conditions_id(self) -> str:
        """Digest of the conditions only: runs with the same may be compared."""
        values = {name: getattr(self, name) for name in CONDITIONS}
        return _digest({name: value for name, value in values.items() if value or name not in _NEW})


CONDITIONS: tuple[str, ...] = tuple(f.name for f in fields(Provenance) if f.metadata["condition"])
"""Names of the fields in which runs have to agree."""

# Fields that concern the runs of one backend only.
_OF_BACKEND = {f.name: f.metadata["backend"] for f in fields(Provenance) if f.metadata.get("backend")}

# Where these are unknown, the conditions have the digest that they had before there were these fields.
_NEW = tuple(f.name for f in fields(Provenance) if f.metadata.get("new"))


def meanings() -> dict[str, str]:
    """Return what each field of `Provenance` is, by name."""
    return {f.name: f.metadata["meaning"] for f in fields(Provenance)}


def differences(a: Provenance, b: Provenance) -> list[tuple[str, Value, Value]]:
    """Return the conditions in which two differ: name of the field, value in `a`, value in `b`.

    Empty if and only if the two have the same `Provenance.conditions_id`.

    Examples
    --------
    >>> differences(Provenance(kernel="Linux 6.1", seed=1), Provenance(kernel="Linux 6.6", seed=2))
    [('kernel', 'Linux 6.1', 'Linux 6.6')]
    """
    pairs = ((name, getattr(a, name), getattr(b, name)) for name in CONDITIONS)
    return [(name, one, other) for name, one, other in pairs if one != other and not (one != one and other != other)]


def _digest(values: Mapping[str, Value]) -> str:
    return hashlib.sha256(json.dumps(values, sort_keys=True).encode()).hexdigest()[:16]


def clock_overhead_ns() -> float:
    """Return the median time between two readings of `time.perf_counter_ns` that follow each other."""
    read = time.perf_counter_ns
    stamps = [read() for _ in range(1002)]
    steps = sorted(later - earlier for earlier, later in itertools.pairwise(stamps))
    return float(steps[len(steps) // 2])


def _installed(package: str) -> str:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return ""


def _numpy_blas(libraries: tuple[Blas, ...]) -> Blas:
    # scipy may have brought a second one, and whether it is loaded already must not set runs apart.
    found = [library for library in libraries if library.kind == "blas"]
    found.sort(key=lambda library: "numpy" not in Path(library.path).parent.name)
    return (found or [Blas("blas", "", "", "", -1, "")])[0]


def _command_line(argv: list[str]) -> str:
    """Return what a user would type: where Python and the command `parcompute` lie is of no use elsewhere."""
    command, *arguments = argv[1:] if [Path(word).name for word in argv[1:2]] == ["parcompute"] else argv
    return shlex.join([Path(command).name, *arguments])


def _caches(machine: Machine) -> str:
    caches = machine.topology.caches
    return ", ".join(f"{c.name} {c.size_bytes} B per {max(map(len, c.shared_by))} CPUs" for c in caches)


def _smallest_quota() -> float:
    quotas = [cgroups.cpu_quota(group) for group in cgroups.own_groups("cpu")]
    return min((math.inf if quota is None else quota for quota in quotas), default=math.nan)
