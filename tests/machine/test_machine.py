"""What a machine is said to be: the numbers, the reasons, as text and as JSON."""

import json
import subprocess
import sys

import pytest

from parcompute.machine import limits, machine
from parcompute.machine.limits import allowed_cpus, cpu_bound
from parcompute.machine.machine import Machine

GIB = 2**30


@pytest.fixture
def made_up(tmp_path):
    """Make a container with two hardware threads of one core, a quota and a memory limit; return its root."""
    files = {
        "proc/self/mountinfo": "30 23 0:26 / /sys/fs/cgroup rw - cgroup2 cgroup2 rw",
        "proc/self/cgroup": "0::/",
        "proc/meminfo": "MemTotal: 16777216 kB\nMemAvailable: 8388608 kB",
        "proc/cpuinfo": "processor : 0\nmodel name : Fast CPU\nflags : hypervisor",
        "sys/fs/cgroup/cpu.max": "150000 100000",
        "sys/fs/cgroup/memory.max": str(2 * GIB),
        "sys/fs/cgroup/memory.current": str(GIB),
        "sys/devices/system/cpu/cpu0/topology/thread_siblings_list": "0-1",
        "sys/devices/system/cpu/cpu1/topology/thread_siblings_list": "0-1",
        "sys/devices/system/cpu/cpu0/cache/index0/level": "1",
        "sys/devices/system/cpu/cpu0/cache/index0/type": "Data",
        "sys/devices/system/cpu/cpu0/cache/index0/size": "32K",
        "sys/devices/system/cpu/cpu0/cache/index0/shared_cpu_list": "0-1",
        ".dockerenv": "",
        "dev/shm/x": "",
    }
    for name, text in files.items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(text + "\n")
    return tmp_path


def read(root, **environ):
    return Machine.read(root, environ, range(2), address_space_bytes=-1)


def test_everything_is_read_from_the_root_that_is_given(made_up):
    found = read(made_up)
    assert (found.cpus.n, found.cpus.decided_by.source) == (1, "CPU quota")
    assert found.topology.cores == ((0, 1),)
    assert (found.memory.limit.n, found.memory.available.n) == (2 * GIB, GIB)
    assert (found.container, found.hypervisor) == ("docker", "hypervisor flag of the CPU")


@pytest.mark.parametrize(
    ("marks", "environ", "container"),
    [
        ({}, {}, ""),
        ({"run/.containerenv": ""}, {}, "podman"),
        ({"proc/self/cgroup": "0::/kubepods.slice/pod7"}, {}, "kubernetes"),
        ({}, {"KUBERNETES_SERVICE_HOST": "10.0.0.1"}, "kubernetes"),
        ({}, {"APPTAINER_CONTAINER": "/images/a.sif"}, "apptainer"),
        ({"proc/1/cgroup": "3:cpu:/docker/77"}, {}, "docker"),
    ],
)
def test_containers_leave_marks(tmp_path, marks, environ, container):
    for name, text in marks.items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(text)
    assert read(tmp_path, **environ).container == container


def test_the_description_gives_each_number_and_its_reason_in_columns(made_up):
    lines = read(made_up).describe()
    text = "\n".join(lines)
    first = "CPU quota: cgroup v2 / allows 1.5 CPUs: 1 worker, as one more would be throttled"
    assert lines[0].startswith("usable CPUs")
    assert lines[0].endswith(f" 1  {first}")
    start = lines[0].index(first)
    assert all(line[start - 2 : start].strip() == "" for line in lines)
    for said in ("2 hardware threads", "32 KiB", "2,048.0 MiB", "not in a job", "Fast CPU", "docker"):
        assert said in text


def test_an_empty_root_still_gives_a_description(tmp_path):
    lines = read(tmp_path).describe()
    assert any("no control group" in line for line in lines)
    assert any(line.startswith("/dev/shm") and line.endswith("there is none") for line in lines)


def test_the_dictionary_survives_json_and_says_the_same(made_up):
    found = read(made_up)
    plain = json.loads(json.dumps(found.as_dict(), allow_nan=False))
    assert plain["cpus"]["n"] == found.cpus.n
    assert plain["cpus"]["reason"] == found.cpus.reason
    assert plain["memory"]["available"]["n"] == found.memory.available.n
    assert plain["topology"]["cores"] == [[0, 1]]
    assert plain["topology"]["mhz"] is None  # unknown


def test_this_machine_can_be_described():
    found = Machine.read()
    assert found.cpus.n >= 1
    assert found.topology.cpus == allowed_cpus()
    assert 0 < found.memory.available.n <= found.memory.total_bytes
    assert found.describe()


def test_the_shortcuts_agree_with_the_full_answer(monkeypatch):
    monkeypatch.setenv("PARCOMPUTE_WORKERS", "3")
    assert limits.usable_cpus() == cpu_bound().n == 3
    available = limits.available_memory_bytes()
    assert available.n > 0
    assert available.reason


def test_blas_of_numpy_is_found_with_the_number_of_its_threads():
    import numpy  # noqa: F401

    found = [library for library in machine.blas_libraries() if library.kind == "blas"]
    if not found:
        pytest.skip("threadpoolctl knows no BLAS that this numpy uses")
    assert all(library.vendor and library.n_threads >= 1 for library in found)


def test_importing_it_loads_nothing_that_costs():
    program = "import sys, parcompute.machine.machine; print(*sys.modules)"
    before = "import sys, parcompute; print(*sys.modules)"
    loaded, base = (
        set(subprocess.run([sys.executable, "-c", p], capture_output=True, text=True, check=True).stdout.split())
        for p in (program, before)
    )
    assert {"numpy", "psutil", "threadpoolctl", "subprocess"} & (loaded - base) == set()


def test_ranks_of_mpi_on_this_host_are_told():
    machine = Machine.read(environ={"MPI_LOCALNRANKS": "4"})
    assert machine.n_ranks == 4
    assert any("MPI ranks" in line and " 4 " in line for line in machine.describe())
    assert Machine.read(environ={}).n_ranks == 0
