"""Hosts on this machine: each has its own network, host name, shared memory and SysV IPC, and a cable to cut.

    n1 ── eth0 ═══ n1 ┐
    n2 ── eth0 ═══ n2 ┼ br0: a bridge in a namespace of its own, from which no route leads out
    n3 ── eth0 ═══ n3 ┘

Files, processes and CPUs are shared: the files are the cluster's file system. Nothing has a name that another program
sees: a host is as long as the process that holds its namespaces, and what runs there.
"""

from __future__ import annotations

import contextlib
import os
import re
import shlex
import shutil
import signal
import subprocess
from pathlib import Path

import psutil

_NETWORK = "198.51.100"  # set aside for examples: never routed anywhere
_ON_HOST = ("--net", "--uts", "--ipc", "--mount")


def why_not() -> str:
    """Return why there can be no hosts here; empty if there can."""
    if missing := [tool for tool in ("ip", "nsenter", "unshare") if shutil.which(tool) is None]:
        return f"hosts need {' and '.join(missing)}"
    if os.geteuid() != 0:
        return "hosts need root"
    tried = subprocess.run(["unshare", *_ON_HOST, "ip", "link", "add", "br0", "type", "bridge"], capture_output=True)
    return "" if tried.returncode == 0 else f"hosts need namespaces and a bridge: {tried.stderr.decode().strip()}"


class Hosts:
    """The hosts ``n1, ..., nN``.

    Parameters
    ----------
    n : int
        How many.
    folder : Path
        An empty folder for what they need on the disk.
    """

    def __init__(self, n: int, folder: Path) -> None:
        self.names = [f"n{number}" for number in range(1, n + 1)]
        self._folder = folder
        self.own = folder / "own"  # a folder of which each host has one of its own, as of a local disk
        self.own.mkdir()
        self._holders: dict[str, subprocess.Popen[str]] = {}
        try:
            self._switch = self._hold("switch", ("--net",), "ip link add br0 type bridge && ip link set br0 up")
            for number, name in enumerate(self.names, 1):
                self._add(number, name)
        except BaseException:
            self.close()
            raise
        self.rsh = folder / "rsh"  # as mpiexec calls ssh
        self.rsh.write_text(
            f'#!/bin/sh\n[ "$1" != -x ] || shift\nhost=$1; shift\ncd {shlex.quote(os.getcwd())}\n'
            f"exec nsenter --target $(cat {shlex.quote(str(folder))}/$host.pid) {' '.join(_ON_HOST)} "
            '-- sh -c "cd $PWD; $*"\n'
        )
        self.rsh.chmod(0o700)

    def _hold(self, name: str, namespaces: tuple[str, ...], setup: str) -> subprocess.Popen[str]:
        # It ends when this process does, however that ends.
        holder = subprocess.Popen(
            ["unshare", *namespaces, "sh", "-c", f"{setup} && echo up && exec cat >/dev/null"],
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, start_new_session=True,
        )  # fmt: skip
        self._holders[name] = holder
        assert holder.stdout is not None
        if holder.stdout.readline() != "up\n":
            raise RuntimeError(f"{name} does not come up")
        return holder

    def _add(self, number: int, name: str) -> None:
        known = self._folder / f"{name}.hosts"
        lines = [f"{_NETWORK}.{i} {host}" for i, host in enumerate(self.names, 1)]
        known.write_text("\n".join(["127.0.0.1 localhost", *lines, ""]))
        holder = self._hold(
            name, _ON_HOST,
            f"hostname {name} && mount --bind {shlex.quote(str(known))} /etc/hosts && "
            f"mount -t tmpfs tmpfs {shlex.quote(str(self.own))} && "
            "mount -t tmpfs -o size=512m,mode=1777 tmpfs /dev/shm && ip link set lo up",
        )  # fmt: skip
        (self._folder / f"{name}.pid").write_text(str(holder.pid))
        self._on_switch(f"ip link add {name} type veth peer name eth0 netns {holder.pid}")
        self._on_switch(f"ip link set {name} master br0 up")
        setup = f"ip addr add {_NETWORK}.{number}/24 dev eth0 && ip link set eth0 up"
        subprocess.run([*self.on(name), "sh", "-c", setup], check=True)

    def _on_switch(self, command: str) -> None:
        subprocess.run(["nsenter", "--target", str(self._switch.pid), "--net", *command.split()], check=True)

    port = 8786

    @property
    def mpiexec_options(self) -> tuple[str, ...]:
        """What MPICH's mpiexec needs to know to start a rank on each."""
        ranks = ("-hosts", ",".join(self.names), "-n", str(len(self.names)))
        return ("-launcher", "ssh", "-launcher-exec", str(self.rsh), *ranks)

    def address(self, name: str) -> str:
        """Return by what the others find a host."""
        return name

    def on(self, name: str) -> list[str]:
        """Return what a command has to begin with to run on a host, in the folder where this process is."""
        entered = ["nsenter", "--target", str(self._holders[name].pid), *_ON_HOST]
        return [*entered, "--", "sh", "-c", 'cd "$0" && exec "$@"', os.getcwd()]

    def start(self, name: str, *command: str, **options: object) -> subprocess.Popen[str]:
        """Start a command on a host."""
        return subprocess.Popen([*self.on(name), *command], text=True, **options)  # type: ignore[call-overload]

    def cut(self, name: str) -> None:
        """Pull the cable of a host."""
        self._on_switch(f"ip link set {name} down")

    def heal(self, name: str) -> None:
        """Plug it in again."""
        self._on_switch(f"ip link set {name} up")

    def traffic(self, name: str) -> tuple[int, int]:
        """Return how many bytes a host has received and sent."""
        shown = subprocess.run([*self.on(name), "cat", "/proc/net/dev"], check=True, capture_output=True, text=True)
        counts = re.search(r"eth0:(.*)", shown.stdout)
        assert counts is not None
        columns = counts[1].split()
        return int(columns[0]), int(columns[8])

    def processes(self, name: str) -> list[psutil.Process]:
        """Return what runs on a host."""
        holder = self._holders[name].pid
        namespace = os.readlink(f"/proc/{holder}/ns/net")
        found = []
        for pid in psutil.pids():
            with contextlib.suppress(OSError, psutil.NoSuchProcess):
                if pid != holder and os.readlink(f"/proc/{pid}/ns/net") == namespace:
                    found.append(psutil.Process(pid))
        return found

    def close(self) -> None:
        """End what runs on them, and them."""
        for name in self.names:
            if name in self._holders:
                for process in self.processes(name):
                    with contextlib.suppress(psutil.NoSuchProcess):
                        process.send_signal(signal.SIGKILL)
                psutil.wait_procs(self.processes(name), timeout=10)
        for holder in self._holders.values():
            holder.communicate()  # closes its standard input
