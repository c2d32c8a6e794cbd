"""The processes of one contender: what they hold, and their end. Its host leads a session, which they all keep."""

from __future__ import annotations

import os
from contextlib import suppress
from pathlib import Path

import psutil

# How long processes may take to go once they are told.
GRACE_S = 5.0


def members(leader: int) -> set[psutil.Process]:
    """Return the processes of a session and all that stem from them; orphans keep their session."""
    found = set()
    for pid in psutil.pids():
        with suppress(OSError, psutil.Error):
            if os.getsid(pid) == leader:
                found.add(psutil.Process(pid))
    for process in list(found):
        with suppress(psutil.Error):
            found.update(process.children(recursive=True))
    return found


def end(leader: int) -> None:
    """Kill the processes of a session, resource trackers last: they remove the shared memory of the others."""
    for _ in range(3):  # one may have been starting another
        family = members(leader)
        trackers = {process for process in family if _tracks(process)}
        for group in (family - trackers, trackers):
            alive = psutil.wait_procs(group, GRACE_S)[1] if group is trackers else group
            for process in alive:
                with suppress(psutil.Error):
                    process.kill()
            psutil.wait_procs(alive, GRACE_S)
        if not family:
            return


def _tracks(process: psutil.Process) -> bool:
    with suppress(psutil.Error):
        return "resource_tracker" in " ".join(process.cmdline())
    return False


def own_bytes() -> int:
    """Return what this process and all that stem from it hold (PSS: each page of shared memory counts once)."""
    total = 0
    for process in (psutil.Process(), *psutil.Process().children(recursive=True)):
        with suppress(OSError):  # it has ended meanwhile
            lines = Path(f"/proc/{process.pid}/smaps_rollup").read_text().splitlines()
            total += sum(int(line.split()[1]) * 1024 for line in lines if line.startswith("Pss:"))
    return total
