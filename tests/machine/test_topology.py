"""Cores, sockets, NUMA nodes and caches of made-up machines."""

import math
import os
import platform

import pytest

from parcompute.machine.topology import Cache, Topology, has_hypervisor_flag, mean_mhz


@pytest.fixture
def made_up(tmp_path):
    """Write the files of a made-up machine, name → text, and return its root folder."""

    def write(contents):
        for name, text in contents.items():
            path = tmp_path / name.replace("cpu/", "sys/devices/system/cpu/").replace(
                "node/", "sys/devices/system/node/"
            )
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(text + "\n")
        return tmp_path

    return write


def two_sockets_of_two_cores_with_two_threads():
    """CPUs 0-3 are the first threads of the four cores, 4-7 the second ones, as Linux numbers them."""
    files = {"node/node0/cpulist": "0-1,4-5", "node/node1/cpulist": "2-3,6-7"}
    for cpu in range(8):
        socket, first = (cpu // 2) % 2, cpu % 4
        shared = {0: f"{first},{first + 4}", 1: "0-1,4-5" if socket == 0 else "2-3,6-7"}
        files |= {
            f"cpu/cpu{cpu}/topology/thread_siblings_list": shared[0],
            f"cpu/cpu{cpu}/topology/core_id": str(cpu % 2),
            f"cpu/cpu{cpu}/topology/physical_package_id": str(socket),
        }
        for index, (level, kind, size, who) in enumerate(
            [(1, "Data", "48K", 0), (1, "Instruction", "32K", 0), (2, "Unified", "2M", 0), (3, "Unified", "32768K", 1)]
        ):
            folder = f"cpu/cpu{cpu}/cache/index{index}"
            files |= {f"{folder}/level": str(level), f"{folder}/type": kind, f"{folder}/size": size}
            files |= {f"{folder}/shared_cpu_list": shared[who]}
    return files


def test_hardware_threads_of_one_core_are_one_core(made_up):
    found = Topology.read(range(8), made_up(two_sockets_of_two_cores_with_two_threads()))
    assert found.cores == ((0, 4), (1, 5), (2, 6), (3, 7))
    assert found.smt_siblings == 2
    assert found.sockets == found.numa_nodes == ((0, 1, 4, 5), (2, 3, 6, 7))


def test_only_the_cpus_that_may_be_used_count(made_up):
    found = Topology.read([5, 1, 0], made_up(two_sockets_of_two_cores_with_two_threads()))
    assert found.cpus == (0, 1, 5)
    assert found.cores == ((0,), (1, 5))
    assert found.sockets == found.numa_nodes == ((0, 1, 5),)
    assert found.caches[-1] == Cache("L3", 32 * 2**20, ((0, 1, 5),))


def test_caches_have_a_name_a_size_and_those_who_share_them(made_up):
    caches = Topology.read(range(8), made_up(two_sockets_of_two_cores_with_two_threads())).caches
    assert [(c.name, c.size_bytes, len(c.shared_by)) for c in caches] == [
        ("L1d", 48 * 2**10, 4),
        ("L1i", 32 * 2**10, 4),
        ("L2", 2 * 2**20, 4),
        ("L3", 32 * 2**20, 2),
    ]
    assert caches[0].shared_by[0] == (0, 4)


def test_without_lists_of_siblings_the_core_counts_within_its_socket(made_up):
    files = two_sockets_of_two_cores_with_two_threads()
    files = {name: text for name, text in files.items() if "siblings" not in name}
    found = Topology.read(range(8), made_up(files))
    assert found.cores == ((0, 4), (1, 5), (2, 6), (3, 7))
    assert "core_id" in found.why_cores


def test_without_sysfs_each_cpu_is_taken_for_a_core(tmp_path):
    found = Topology.read(range(3), tmp_path)
    assert found.cores == ((0,), (1,), (2,))
    assert "taken for one" in found.why_cores
    assert found.sockets == found.numa_nodes == ((0, 1, 2),)
    assert found.caches == ()
    assert (found.model, found.governor) == (platform.machine(), "")
    assert math.isnan(found.mhz)


X86 = "processor\t: 0\nmodel name\t: Fast CPU @ 2.00GHz\ncpu MHz\t\t: 1999.5\nflags\t\t: fpu {flag} sse"


def test_x86_names_its_model_and_its_hypervisor(made_up):
    root = made_up({"proc/cpuinfo": X86.format(flag="hypervisor")})
    assert Topology.read([0], root).model == "Fast CPU @ 2.00GHz"
    assert has_hypervisor_flag(root)
    assert not has_hypervisor_flag(made_up({"proc/cpuinfo": X86.format(flag="nohypervisor")}))


@pytest.mark.parametrize(
    ("implementer", "part", "model"),
    [
        ("0x41", "0xd0c", "Arm Neoverse-N1"),
        ("0x46", "0x001", "Fujitsu A64FX"),
        ("0x41", "0xeee", "Arm part 0xeee"),
        ("0x99", "0x001", "implementer 0x99 part 0x001"),
    ],
)
def test_arm64_is_named_by_its_numbers(made_up, implementer, part, model):
    cpu = f"BogoMIPS\t: 50.00\nCPU implementer\t: {implementer}\nCPU part\t: {part}"
    root = made_up({"proc/cpuinfo": f"processor\t: 0\n{cpu}\n\nprocessor\t: 1\n{cpu}"})
    assert Topology.read([0, 1], root).model == model


def test_big_and_little_cores_are_both_named(made_up):
    cpu = "processor\t: {}\nCPU implementer\t: 0x41\nCPU part\t: {}"
    root = made_up({"proc/cpuinfo": f"{cpu.format(0, '0xd03')}\n\n{cpu.format(1, '0xd08')}"})
    assert Topology.read([0, 1], root).model == "Arm Cortex-A53 + Arm Cortex-A72"


def test_frequency_is_read_from_sysfs_before_cpuinfo(made_up):
    root = made_up({"proc/cpuinfo": X86.format(flag="")})
    assert Topology.read([0], root).mhz == 1999.5
    assert math.isnan(mean_mhz([0], root))
    root = made_up(
        {
            "cpu/cpu0/cpufreq/scaling_cur_freq": "3000000",
            "cpu/cpu1/cpufreq/scaling_cur_freq": "2000000",
            "cpu/cpu0/cpufreq/cpuinfo_max_freq": "3500000",
            "cpu/cpu0/cpufreq/scaling_governor": "performance",
        }
    )
    found = Topology.read([0, 1], root)
    assert (found.mhz, found.max_mhz, found.governor) == (2500.0, 3500.0, "performance")


def test_each_cpu_of_this_machine_is_in_one_core_one_socket_and_one_node():
    cpus = sorted(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else range(os.cpu_count())
    found = Topology.read(cpus)
    for sets in (found.cores, found.sockets, found.numa_nodes):
        assert sorted(cpu for together in sets for cpu in together) == list(cpus)
    assert found.model
