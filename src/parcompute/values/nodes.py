"""What is known of the hosts that an executor computes on."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True, kw_only=True)
class Node:
    """One node of an executor: a host, or the part of one that an engine has been given.

    Attributes
    ----------
    host : str
        Its name.
    pid : int
        Of the process that serves there.
    n_workers : int
        Processes times threads that compute there.
    n_cpus : int
        CPUs that it may keep busy.
    cpu_model : str
        Name of the CPU.
    memory_bytes : int
        Memory that it may use.
    parcompute, python, numpy : str
        Versions.
    simd : tuple of str
        Features of the CPU for which NumPy chooses other code than for the baseline.
    blas : str
        Library that NumPy calls for linear algebra, and for which kind of CPU its code is.
    offset_ns : int
        What is added to stamps of its clock to have them on the caller's.
    bound_ns : int
        The error of that is at most this.
    """

    host: str
    pid: int
    n_workers: int
    n_cpus: int
    cpu_model: str
    memory_bytes: int
    parcompute: str
    python: str
    numpy: str
    simd: tuple[str, ...]
    blas: str
    offset_ns: int = 0
    bound_ns: int = 0

    def __str__(self) -> str:
        clock = f", clock {self.offset_ns / 1e6:+.3f} ± {self.bound_ns / 1e6:.3f} ms" if self.bound_ns else ""
        return f"{self.host}: {self.n_workers} workers on {self.n_cpus} CPUs ({self.cpu_model}){clock}"
