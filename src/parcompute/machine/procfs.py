"""The kernel's text files: read one whole or not at all, and its notation for sets of CPUs."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path


def text(path: Path) -> str:
    """Return what stands in a file, stripped; empty where it is missing or may not be read."""
    try:
        return path.read_text(encoding="utf-8", errors="replace").strip()
    except OSError:
        return ""


def number(path: Path) -> int | None:
    """Return the whole number that a file holds; None where it holds something else, or is missing."""
    try:
        return int(text(path))
    except ValueError:
        return None


def table(path: Path) -> dict[str, int]:
    """Return the lines ``name value`` or ``name: value unit`` of a file as a mapping; others are left out."""
    found = {}
    for line in text(path).splitlines():
        name, _, rest = line.partition(" ")
        value = rest.split()
        if value and value[0].isdecimal():
            found[name.rstrip(":")] = int(value[0])
    return found


def cpu_list(notation: str) -> tuple[int, ...]:
    """Return the CPUs that a list such as ``0-3,8`` names, in order; empty where it cannot be read.

    Examples
    --------
    >>> cpu_list("0-2,8")
    (0, 1, 2, 8)
    """
    cpus: set[int] = set()
    try:
        for part in filter(None, notation.strip().split(",")):
            first, _, last = part.partition("-")
            cpus.update(range(int(first), int(last or first) + 1))
    except ValueError:
        return ()
    return tuple(sorted(cpus))


def cpu_notation(cpus: Iterable[int]) -> str:
    """Write a set of CPUs as the kernel does.

    Examples
    --------
    >>> cpu_notation([8, 0, 1, 2])
    '0-2,8'
    """
    runs: list[list[int]] = []
    for cpu in sorted(cpus):
        if runs and cpu == runs[-1][1] + 1:
            runs[-1][1] = cpu
        else:
            runs.append([cpu, cpu])
    return ",".join(str(first) if first == last else f"{first}-{last}" for first, last in runs)
