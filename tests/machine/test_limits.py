"""How many CPUs and how much memory, on made-up machines and under real limits."""

import json
import os
import platform
import resource
import shutil
import subprocess
import sys

import pytest

from parcompute.machine.limits import Bound, Limit, Memory, allowed_cpus, cpu_bound

V2 = {"proc/self/mountinfo": "30 23 0:26 / /sys/fs/cgroup rw - cgroup2 cgroup2 rw", "proc/self/cgroup": "0::/a/b"}
V1 = {
    "proc/self/mountinfo": "31 23 0:31 / /sys/fs/cgroup/cpu rw - cgroup cgroup rw,cpu\n"
    "32 23 0:32 / /sys/fs/cgroup/memory rw - cgroup cgroup rw,memory\n"
    "33 23 0:33 / /sys/fs/cgroup/cpuset rw - cgroup cgroup rw,cpuset",
    "proc/self/cgroup": "3:cpuset:/a\n2:memory:/a/b\n1:cpu:/a/b",
}
G = "sys/fs/cgroup"
GIB = 2**30
UNLIMITED_V1 = "9223372036854771712"


@pytest.fixture
def made_up(tmp_path):
    """Write the files of a made-up machine, name → text, and return its root folder."""

    def write(*contents):
        (tmp_path / G / "a/b").mkdir(parents=True, exist_ok=True)
        for name, text in (item for files in contents for item in files.items()):
            path = tmp_path / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(text + "\n")
        return tmp_path

    return write


def bound_of(root, n_affinity=16, **environ):
    return cpu_bound(root, environ, range(n_affinity))


def test_an_empty_root_still_gives_an_answer_with_a_reason_for_each_limit(tmp_path):
    bound = bound_of(tmp_path, 6)
    assert (bound.n, bound.reason) == (6, "affinity mask: CPUs 0-5")
    assert {limit.source for limit in bound.limits} == {"affinity mask", "cpuset", "CPU quota", "Slurm"}
    assert all(limit.reason for limit in bound.limits)


def test_the_tighter_quota_of_a_v2_parent_decides(made_up):
    root = made_up(V2, {f"{G}/a/b/cpu.max": "800000 100000", f"{G}/a/cpu.max": "300000 100000", f"{G}/cpu.max": "max"})
    bound = bound_of(root)
    assert bound.n == 3
    assert bound.reason == "CPU quota: cgroup v2 /a allows 3 CPUs"
    assert [limit.n for limit in bound.limits if limit.source == "CPU quota"] == [8, 3, None]


def test_the_tighter_quota_of_a_v1_parent_decides(made_up):
    quotas = {f"{G}/cpu/{group}/cpu.cfs_quota_us": text for group, text in {"a/b": "-1", "a": "200000"}.items()}
    periods = {f"{G}/cpu/{group}/cpu.cfs_period_us": "50000" for group in ("a/b", "a")}
    bound = bound_of(made_up(V1, quotas, periods))
    assert (bound.n, bound.decided_by.source) == (4, "CPU quota")
    assert "cgroup v1 /a allows" in bound.reason


@pytest.mark.parametrize(
    ("quota", "n", "said"),
    [
        ("250000 100000", 2, "allows 2.5 CPUs: 2 workers, as one more would be throttled"),
        ("50000 100000", 1, "allows 0.5 CPUs: 1 worker, which will be throttled"),
        ("200000 100000", 2, "allows 2 CPUs"),
        ("100000 100000", 1, "allows 1 CPU"),
    ],
)
def test_a_fraction_of_a_cpu_is_no_worker_but_one_is_the_least(made_up, quota, n, said):
    bound = bound_of(made_up(V2, {f"{G}/a/cpu.max": quota}))
    assert bound.n == n
    assert said in bound.reason


def test_max_is_no_limit_and_is_said_to_be_none(made_up):
    bound = bound_of(made_up(V2, {f"{G}/a/b/cpu.max": "max 100000"}), 5)
    assert (bound.n, bound.decided_by.source) == (5, "affinity mask")
    assert Limit("CPU quota", None, "none in cgroup v2 /a/b, /a, /") in bound.limits


def test_a_cpuset_smaller_than_the_affinity_mask_decides(made_up):
    root = made_up(V2, {f"{G}/a/b/cpuset.cpus.effective": "2-3,40"})
    bound = bound_of(root)
    assert (bound.n, bound.decided_by.source) == (2, "cpuset")
    assert allowed_cpus(root, range(16)) == (2, 3)
    assert "2 of them in the mask" in bound.reason


def test_a_v1_cpuset_is_read_too(made_up):
    assert bound_of(made_up(V1, {f"{G}/cpuset/a/cpuset.cpus": "0-3"})).n == 4


def test_a_cpuset_without_any_cpu_of_the_mask_is_not_believed(made_up):
    root = made_up(V2, {f"{G}/a/b/cpuset.cpus.effective": "60-63"})
    assert bound_of(root, 4).n == 4
    assert allowed_cpus(root, range(4)) == (0, 1, 2, 3)


@pytest.mark.parametrize(
    ("environ", "n"),
    [
        ({"SLURM_CPUS_PER_TASK": "4"}, 4),
        ({"SLURM_CPUS_ON_NODE": "8"}, 8),
        ({"SLURM_CPUS_ON_NODE": "8", "SLURM_CPUS_PER_TASK": "2"}, 2),
        ({"SLURM_JOB_CPUS_PER_NODE": "8(x2),4"}, 4),
        ({"SLURM_JOB_CPUS_PER_NODE": "12(x3)"}, 12),
        ({"SLURM_CPUS_ON_NODE": "8", "SLURM_JOB_CPUS_PER_NODE": "8(x2),4"}, 8),
        ({"SLURM_CPUS_ON_NODE": "?", "SLURM_JOB_CPUS_PER_NODE": "8(x2),4"}, 4),
    ],
)
def test_slurm_variables_limit(tmp_path, environ, n):
    bound = bound_of(tmp_path, **environ)
    assert (bound.n, bound.decided_by.source) == (n, "Slurm")


@pytest.mark.parametrize(
    ("environ", "n"),
    [
        # srun -n 8 on one node, and on two with 6 and 2 tasks; each task has its share
        ({"CPUS_ON_NODE": "8", "STEP_TASKS_PER_NODE": "8"}, 1),
        ({"CPUS_ON_NODE": "12", "STEP_TASKS_PER_NODE": "6,2", "NODEID": "1"}, 6),
        ({"CPUS_ON_NODE": "12", "STEP_TASKS_PER_NODE": "3(x2)", "NODEID": "1"}, 4),
        ({"CPUS_ON_NODE": "12", "STEP_TASKS_PER_NODE": "6,2"}, 2),
        # the batch script of the same job, outside of any step
        ({"CPUS_ON_NODE": "8", "TASKS_PER_NODE": "8"}, 8),
        # what was asked for per task counts, however many there are
        ({"CPUS_ON_NODE": "8", "STEP_TASKS_PER_NODE": "2", "CPUS_PER_TASK": "4"}, 4),
        ({"CPUS_ON_NODE": "8", "STEP_TASKS_PER_NODE": "?"}, 8),
    ],
)
def test_the_tasks_of_a_step_share_their_node(tmp_path, environ, n):
    environ = {f"SLURM_{name}": value for name, value in environ.items()}
    step = {"SLURM_STEP_ID": "0"} if "SLURM_STEP_TASKS_PER_NODE" in environ else {}
    bound = bound_of(tmp_path, SLURM_JOB_ID="7", **step, **environ)
    assert (bound.n, bound.decided_by.source) == (n, "Slurm")


@pytest.mark.parametrize("hint", [{"SLURM_HINT": "nomultithread"}, {"SLURM_THREADS_PER_CORE": "1"}])
def test_without_multithreading_a_core_counts_once(made_up, hint):
    siblings = {
        f"sys/devices/system/cpu/cpu{n}/topology/thread_siblings_list": f"{n % 2},{n % 2 + 2}" for n in range(4)
    }
    bound = bound_of(made_up(siblings), 4, SLURM_JOB_ID="7", SLURM_CPUS_ON_NODE="4", **hint)
    assert bound.n == 2
    assert "one hardware thread of each core" in bound.reason


@pytest.mark.parametrize(
    ("environ", "n", "source"),
    [
        ({"PBS_JOBID": "1", "NCPUS": "3"}, 3, "PBS"),
        ({"LSB_JOBID": "1", "LSB_MCPU_HOSTS": f"{platform.node()} 5"}, 5, "LSF"),
        ({"SGE_TASK_ID": "undefined", "NSLOTS": "4"}, 4, "Grid Engine"),
        ({"FLUX_JOB_ID": "f"}, 16, "affinity mask"),
    ],
)
def test_other_batch_systems_limit_too(tmp_path, environ, n, source):
    bound = bound_of(tmp_path, **environ)
    assert (bound.n, bound.decided_by.source) == (n, source)
    assert any(limit.source != "Slurm" for limit in bound.limits)


@pytest.mark.parametrize("value", ["0", "-1", "eight", "8(x", "8,,4", ""])
def test_a_slurm_variable_that_cannot_be_read_is_no_limit(tmp_path, value):
    bound = bound_of(tmp_path, SLURM_JOB_ID="7", SLURM_CPUS_ON_NODE=value)
    assert bound.n == 16
    assert {limit.n for limit in bound.limits if limit.source == "Slurm"} == {None}


@pytest.mark.parametrize("asked", [1, 3, 64])
def test_the_override_wins_in_both_directions_and_names_what_it_beat(made_up, asked):
    root = made_up(V2, {f"{G}/a/cpu.max": "200000 100000"})
    bound = bound_of(root, PARCOMPUTE_WORKERS=f" {asked} ")
    assert (bound.n, bound.decided_by.source) == (asked, "PARCOMPUTE_WORKERS")
    assert "(2 without it)" in bound.reason
    assert len(bound.limits) > 4


@pytest.mark.parametrize("value", ["0", "-2", "four", "2.5", "1_0", "٣", "1e3", "4097", "9" * 30])
def test_a_bad_override_names_variable_and_value(tmp_path, value):
    with pytest.raises(ValueError, match="PARCOMPUTE_WORKERS=") as caught:
        bound_of(tmp_path, PARCOMPUTE_WORKERS=value)
    assert repr(value) in str(caught.value)


def test_a_variable_of_thousands_of_digits_is_no_number(tmp_path):
    with pytest.raises(ValueError, match=r"PARCOMPUTE_WORKERS='9{39} is not a number of workers"):
        bound_of(tmp_path, PARCOMPUTE_WORKERS="9" * 5000)
    assert bound_of(tmp_path, 7, SLURM_CPUS_PER_TASK="9" * 5000).n == 7


def test_an_empty_override_is_as_good_as_none(tmp_path):
    assert bound_of(tmp_path, 7, PARCOMPUTE_WORKERS="").n == 7


def test_a_system_without_affinity_masks_gives_all_cpus(tmp_path, monkeypatch):
    monkeypatch.delattr(os, "sched_getaffinity", raising=False)
    bound = cpu_bound(tmp_path, {})
    assert bound.n == os.cpu_count()
    assert "no affinity mask" in bound.reason


def test_of_equal_limits_the_first_decides():
    assert Bound.smallest([Limit("a", 2, ""), Limit("b", None, ""), Limit("c", 2, "")]).decided_by.source == "a"


MEMINFO = {"proc/meminfo": "MemTotal:       67108864 kB\nMemFree: 1 kB\nMemAvailable:   50331648 kB"}


def memory_of(root, address_space_bytes=-1):
    return Memory.read(root, address_space_bytes)


def test_physical_memory_decides_where_nothing_else_limits(made_up):
    memory = memory_of(made_up(MEMINFO))
    assert (memory.total_bytes, memory.limit.n, memory.available.n) == (64 * GIB, 64 * GIB, 48 * GIB)
    assert memory.available.reason == "physical memory: MemAvailable in /proc/meminfo"


def test_a_memory_limit_in_a_v2_parent_decides(made_up):
    files = {f"{G}/a/b/memory.max": "max", f"{G}/a/memory.max": str(4 * GIB), f"{G}/a/memory.current": str(3 * GIB)}
    memory = memory_of(made_up(MEMINFO, V2, files, {f"{G}/a/memory.stat": f"file 9\ninactive_file {GIB}"}))
    assert memory.limit.n == 4 * GIB
    assert memory.limit.reason == "cgroup memory: limit of cgroup v2 /a"
    # 4 GiB less 3 used, of which 1 can be dropped.
    assert memory.available.n == 2 * GIB
    assert "4,096.0 MiB limit of cgroup v2 /a, less 3,072.0 MiB used" in memory.available.reason
    assert "1,024.0 MiB is idle file cache" in memory.available.reason


def test_the_limit_and_what_is_available_may_have_different_reasons(made_up):
    files = {f"{G}/a/b/memory.max": str(2 * GIB), f"{G}/a/b/memory.current": "0"}
    files |= {f"{G}/a/memory.max": str(4 * GIB), f"{G}/a/memory.current": str(7 * GIB // 2)}
    memory = memory_of(made_up(MEMINFO, V2, files))
    assert (memory.limit.n, memory.limit.reason) == (2 * GIB, "cgroup memory: limit of cgroup v2 /a/b")
    assert memory.available.n == GIB // 2
    assert "limit of cgroup v2 /a," in memory.available.reason


def test_the_huge_number_of_v1_is_no_limit(made_up):
    files = {f"{G}/memory/{group}/memory.limit_in_bytes": UNLIMITED_V1 for group in ("a/b", "a", "")}
    memory = memory_of(made_up(MEMINFO, V1, files))
    assert memory.limit.decided_by.source == "physical memory"
    assert Limit("cgroup memory", None, "no limit in cgroup v1 /a/b, /a, /") in memory.limit.limits


def test_v1_tells_of_a_limit_above_what_is_mounted(made_up):
    files = {
        f"{G}/memory/a/b/memory.limit_in_bytes": UNLIMITED_V1,
        f"{G}/memory/a/b/memory.stat": f"hierarchical_memory_limit {GIB}",
        f"{G}/memory/memory.usage_in_bytes": str(GIB // 4),
    }
    memory = memory_of(made_up(MEMINFO, V1, files))
    assert memory.limit.n == GIB
    assert "not seen from here" in memory.limit.reason
    assert memory.available.n == 3 * GIB // 4


def test_a_group_above_its_limit_leaves_nothing_and_not_less(made_up):
    files = {f"{G}/a/memory.max": str(GIB), f"{G}/a/memory.current": str(GIB + 4096)}
    assert memory_of(made_up(MEMINFO, V2, files)).available.n == 0


def test_a_limit_on_the_address_space_counts_less_what_is_mapped(made_up):
    pages = GIB // os.sysconf("SC_PAGE_SIZE")
    memory = memory_of(made_up(MEMINFO, {"proc/self/statm": f"{pages} 5 4 3 0 2 0"}), 8 * GIB)
    assert (memory.limit.n, memory.limit.decided_by.source) == (8 * GIB, "RLIMIT_AS")
    assert memory.available.n == 7 * GIB


def test_an_empty_root_still_knows_the_memory(tmp_path):
    memory = memory_of(tmp_path)
    assert 0 < memory.available.n <= memory.limit.n == memory.total_bytes
    assert "psutil" in memory.limit.reason
    assert (memory.shm_bytes, memory.shm_free_bytes) == (-1, -1)


def test_shared_memory_has_a_size_and_a_free_part(made_up):
    class Shm:
        f_frsize, f_blocks, f_bavail = 4096, 1000, 250

    memory = Memory.read(made_up(MEMINFO), -1, statvfs=lambda path: Shm if path.name == "shm" else None)
    assert (memory.shm_bytes, memory.shm_free_bytes) == (4_096_000, 1_024_000)


@pytest.mark.parametrize(
    ("options", "huge"), [("rw,size=1k", "never"), ("rw,huge=within_size,size=1k", "within_size"), (None, "")]
)
def test_huge_pages_are_told_as_the_kernel_and_the_last_mount_have_them(made_up, options, huge):
    chosen = "sys/kernel/mm/transparent_hugepage"
    files = {f"{chosen}/enabled": "[madvise] never", f"{chosen}/shmem_enabled": "[advise] never", "dev/shm/x": ""}
    mounts = [f"30 25 0:27 / /dev/shm rw - tmpfs tmpfs {those}" for those in ("rw,huge=always", options) if options]
    memory = Memory.read(made_up({**MEMINFO, **files, "proc/self/mountinfo": "\n".join(mounts)}), -1)
    found = (memory.huge_pages, memory.shm_huge_pages, memory.dev_shm_huge_pages)
    assert found == ("[madvise] never", "[advise] never", huge)


def answer(program, *before):
    """Run a program, behind a command that limits it, and return what it prints as JSON."""
    environ = {name: value for name, value in os.environ.items() if not name.startswith(("SLURM_", "PARCOMPUTE_"))}
    command = [*before, sys.executable, "-c", program]
    done = subprocess.run(command, capture_output=True, text=True, check=False, env=environ)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


@pytest.mark.skipif(shutil.which("taskset") is None, reason="no taskset (util-linux)")
def test_a_real_affinity_mask_of_one_cpu_gives_one_worker():
    cpu = max(os.sched_getaffinity(0))
    program = """
import json
from parcompute.machine.limits import allowed_cpus, cpu_bound
bound = cpu_bound()
print(json.dumps([bound.n, bound.reason, allowed_cpus()]))
"""
    assert answer(program, "taskset", "-c", str(cpu)) == [1, f"affinity mask: CPUs {cpu}", [cpu]]


def test_a_real_limit_on_the_address_space_is_seen():
    program = """
import json, resource
resource.setrlimit(resource.RLIMIT_AS, (3 * 2**30, resource.getrlimit(resource.RLIMIT_AS)[1]))
from parcompute.machine.limits import Memory
memory = Memory.read()
rows = {limit.source: limit.n for limit in memory.available.limits}
print(json.dumps([memory.limit.limits[-1].n, rows["RLIMIT_AS"]]))
"""
    if resource.getrlimit(resource.RLIMIT_AS)[1] != resource.RLIM_INFINITY:
        pytest.skip("the address space is limited already")
    limit, left = answer(program)
    assert limit == 3 * GIB
    assert 0 < left < limit


def test_a_real_small_shared_memory_is_seen():
    program = "import json; from parcompute.machine.limits import Memory; print(json.dumps(Memory.read().shm_bytes))"
    private = ["unshare", "-m", "sh", "-c", 'mount -t tmpfs -o size=8m tmpfs /dev/shm && exec "$@"', "sh"]
    if (
        shutil.which("unshare") is None
        or subprocess.run([*private, "true"], capture_output=True, check=False).returncode
    ):
        pytest.skip("no private mount of /dev/shm may be made here")
    assert answer(program, *private) == 8 * 2**20
