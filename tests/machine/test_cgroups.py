"""Control groups of made-up machines, and one that is made for real below the own one."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from parcompute.machine import cgroups

UNLIMITED_V1 = "9223372036854771712"


@pytest.fixture
def made_up(tmp_path):
    """Write the files of a made-up machine, name → text, and return its root folder."""

    def write(**folders):
        for folder, contents in folders.items():
            for name, text in contents.items():
                path = tmp_path / ROOTS[folder] / name
                path.parent.mkdir(parents=True, exist_ok=True)
                path.write_text(text + "\n")
        return tmp_path

    return write


ROOTS = {"proc": "proc", "groups": "sys/fs/cgroup"}


def v2(own, top="/", point="/sys/fs/cgroup"):
    return {
        "self/cgroup": f"0::{own}",
        "self/mountinfo": f"30 23 0:26 {top} {point} rw - cgroup2 cgroup2 rw,nsdelegate",
    }


def v1(*controllers, own, top="/"):
    names = [f"{number}:{c}:{own}" for number, c in enumerate(controllers, 1)]
    mounts = [
        f"3{number} 23 0:3{number} {top} /sys/fs/cgroup/{c} rw shared:{number} - cgroup cgroup rw,{c}"
        for number, c in enumerate(controllers)
    ]
    return {"self/cgroup": "\n".join(names), "self/mountinfo": "\n".join(mounts)}


def paths(groups):
    return [group.path for group in groups]


def test_v2_groups_go_from_the_own_one_up_to_the_root(made_up):
    root = made_up(proc=v2("/a/b"), groups={"a/b/cpu.max": "max 100000"})
    groups = cgroups.own_groups("cpu", root)
    assert paths(groups) == ["/a/b", "/a", "/"]
    assert [g.folder for g in groups] == [root / "sys/fs/cgroup" / p for p in ("a/b", "a", "")]
    assert {g.version for g in groups} == {2}


def test_v1_controllers_that_share_a_hierarchy_are_both_found_in_it(made_up):
    root = made_up(proc=v1("cpu,cpuacct", "memory", own="/job"), groups={"cpu,cpuacct/job/cpu.shares": "1024"})
    assert paths(cgroups.own_groups("cpu", root)) == ["/job", "/"]
    assert cgroups.own_groups("cpu", root) == cgroups.own_groups("cpuacct", root)
    assert cgroups.own_groups("cpu", root)[0].folder == root / "sys/fs/cgroup/cpu,cpuacct/job"


def test_a_hybrid_machine_is_asked_where_each_controller_is(made_up):
    both = v1("memory", own="/old")
    new = v2("/new", point="/sys/fs/cgroup/unified")
    proc = {name: f"{both[name]}\n{new[name]}" for name in both}
    root = made_up(proc=proc, groups={"memory/old/x": "", "unified/new/x": ""})
    assert [str(g) for g in cgroups.own_groups("memory", root)] == ["cgroup v1 /old", "cgroup v1 /"]
    assert [str(g) for g in cgroups.own_groups("cpu", root)] == ["cgroup v2 /new", "cgroup v2 /"]


def test_a_container_sees_its_part_of_the_tree_under_the_name_that_the_host_gave_it(made_up):
    root = made_up(proc=v1("cpu", own="/docker/77/inner", top="/docker/77"), groups={"cpu/inner/x": ""})
    groups = cgroups.own_groups("cpu", root)
    assert paths(groups) == ["/docker/77/inner", "/docker/77"]
    assert groups[-1].folder == root / "sys/fs/cgroup/cpu"


@pytest.mark.parametrize("own", ["/docker/77", "/../other", "/"])
@pytest.mark.parametrize("top", ["/", "/docker/77", "/.."])
def test_a_path_outside_of_what_is_mounted_falls_back_to_the_mount_point(made_up, own, top):
    root = made_up(proc=v2(own, top), groups={"cpu.max": "200000 100000"})
    groups = cgroups.own_groups("cpu", root)
    assert groups[-1].folder == root / "sys/fs/cgroup"
    assert [cgroups.cpu_quota(g) for g in groups] == [2.0]


def test_a_path_that_leads_out_of_the_mount_is_not_followed(made_up):
    # From inside a namespace of control groups, a process that was moved out of it is "/../other".
    root = made_up(proc=v2("/../other", point="/sys/fs/cgroup/mine"), groups={"other/cpu.max": "1 1", "mine/x": ""})
    assert [g.folder for g in cgroups.own_groups("cpu", root)] == [root / "sys/fs/cgroup/mine"]


def test_the_end_of_a_path_outside_of_what_is_mounted_is_found(made_up):
    root = made_up(proc=v2("/machine/slice/job"), groups={"slice/job/cpu.max": "100000 100000"})
    assert paths(cgroups.own_groups("cpu", root)) == ["/slice/job", "/slice", "/"]


def test_a_mount_point_with_a_blank_in_its_name_is_found(made_up):
    root = made_up(proc=v2("/a", point="/sys/fs/cgroup/my\\040groups"), groups={"my groups/a/x": ""})
    assert cgroups.own_groups("cpu", root)[0].folder == root / "sys/fs/cgroup/my groups/a"


@pytest.mark.parametrize(
    "proc",
    [
        {},
        {"self/cgroup": "0::/a"},
        {"self/cgroup": "nonsense", "self/mountinfo": "more - nonsense"},
        {"self/cgroup": "0::/a", "self/mountinfo": "30 23 0:26 / /nowhere rw - cgroup2 cgroup2 rw"},
    ],
)
def test_nothing_that_is_missing_or_broken_is_an_error(made_up, proc):
    root = made_up(proc=proc)
    assert cgroups.own_groups("cpu", root) == ()
    assert cgroups.cpuset(root) is None
    assert cgroups.throttling(root) is None
    assert cgroups.oom_kills(root).n == -1


@pytest.mark.parametrize(
    ("text", "quota"), [("250000 100000", 2.5), ("50000 100000", 0.5), ("max 100000", None), ("", None), ("1 0", None)]
)
def test_v2_quota(made_up, text, quota):
    root = made_up(proc=v2("/"), groups={"cpu.max": text})
    assert cgroups.cpu_quota(cgroups.own_groups("cpu", root)[0]) == quota


@pytest.mark.parametrize(("text", "quota"), [("250000", 2.5), ("-1", None), ("", None)])
def test_v1_quota(made_up, text, quota):
    root = made_up(proc=v1("cpu", own="/"), groups={"cpu/cpu.cfs_quota_us": text, "cpu/cpu.cfs_period_us": "100000"})
    assert cgroups.cpu_quota(cgroups.own_groups("cpu", root)[0]) == quota


def test_the_cpuset_is_that_of_the_first_parent_that_has_one(made_up):
    root = made_up(proc=v2("/a/b"), groups={"a/b/cpu.max": "max 100000", "a/cpuset.cpus.effective": "2-3,6"})
    group, cpus = cgroups.cpuset(root)
    assert (group.path, cpus) == ("/a", (2, 3, 6))


def test_v1_writes_no_limit_as_a_number_near_2_to_the_63(made_up):
    groups = {"memory/a/memory.limit_in_bytes": UNLIMITED_V1, "memory/memory.limit_in_bytes": "1048576"}
    root = made_up(proc=v1("memory", own="/a"), groups=groups)
    assert [cgroups.memory_limit(g) for g in cgroups.own_groups("memory", root)] == [None, 2**20]


def test_idle_file_cache_is_told_apart_from_other_used_memory(made_up):
    stat = "inactive_file 11\ntotal_inactive_file 300"
    new = made_up(proc=v2("/"), groups={"memory.current": "1000", "memory.stat": stat})
    assert cgroups.memory_used(cgroups.own_groups("memory", new)[0]) == (1000, 11)
    old = made_up(
        proc=v1("memory", own="/"), groups={"memory/memory.usage_in_bytes": "1000", "memory/memory.stat": stat}
    )
    assert cgroups.memory_used(cgroups.own_groups("memory", old)[0]) == (1000, 300)


def test_oom_kills_of_v2_and_the_evidence_between_two_looks(made_up):
    events = "memory.events"
    root = made_up(proc=v2("/a"), groups={f"a/{events}": "low 0\nhigh 0\nmax 7\noom 1\noom_kill 1\noom_group_kill 0"})
    before = cgroups.oom_kills(root)
    assert (before.n, before.n_limit_hits) == (1, 7)
    assert cgroups.oom_evidence(before, before) == ""
    after = cgroups.oom_kills(made_up(groups={f"a/{events}": "max 9\noom_kill 3"}))
    assert cgroups.oom_evidence(before, after) == (
        "out of memory: 2 processes killed (oom_kill in memory.events of cgroup v2 /a went from 1 to 3)"
    )


def test_oom_kills_of_v1(made_up):
    groups = {
        "memory/a/memory.oom_control": "oom_kill_disable 0\nunder_oom 0\noom_kill 4",
        "memory/a/memory.failcnt": "12",
    }
    found = cgroups.oom_kills(made_up(proc=v1("memory", own="/a"), groups=groups))
    assert found == cgroups.OomKills("memory.oom_control of cgroup v1 /a", 4, 12)


def test_where_no_group_counts_oom_kills_the_system_does(made_up):
    found = cgroups.oom_kills(made_up(proc=v2("/") | {"vmstat": "nr_free_pages 1\noom_kill 5"}, groups={"x": ""}))
    assert (found.n, found.source) == (5, "/proc/vmstat, of the whole system")


def test_counts_of_different_sources_are_no_evidence():
    one, other = cgroups.OomKills("memory.events of cgroup v2 /a", 0), cgroups.OomKills("/proc/vmstat", 3)
    assert cgroups.oom_evidence(one, other) == ""


def test_throttling_is_summed_over_the_own_group_and_its_parents(made_up):
    groups = {
        "a/cpu.stat": "usage_usec 5\nnr_throttled 2\nthrottled_usec 30",
        "cpu.stat": "nr_throttled 1\nthrottled_usec 4",
    }
    assert cgroups.throttling(made_up(proc=v2("/a"), groups=groups)) == (3, 34_000)


def test_v1_counts_throttled_time_in_nanoseconds(made_up):
    groups = {"cpu/a/cpu.stat": "nr_periods 9\nnr_throttled 2\nthrottled_time 30"}
    assert cgroups.throttling(made_up(proc=v1("cpu", own="/a"), groups=groups)) == (2, 30)


@pytest.fixture
def child_group():
    """Make a version-1 group below the own one, with the given files, and remove it."""
    made = []

    def make(controller, **settings):
        groups = cgroups.own_groups(controller)
        if not groups or groups[0].version != 1:
            pytest.skip(f"no version-1 {controller} controller, below whose group a test could make another")
        folder = groups[0].folder / f"parcompute-test-{os.getpid()}"
        try:
            folder.mkdir()
            made.append(folder)
            for name, value in settings.items():
                (folder / name.replace("__", ".")).write_text(str(value))
        except OSError as error:
            pytest.skip(f"control groups cannot be made here: {error}")
        return folder

    yield make
    for folder in made:
        folder.rmdir()


def inside(groups, program):
    """Run a program in control groups and return what it prints as JSON."""
    enter = "".join(f"open({str(folder / 'cgroup.procs')!r}, 'w').write(str(os.getpid()))\n" for folder in groups)
    done = subprocess.run(
        [sys.executable, "-c", f"import json, os\n{enter}{program}"], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


def test_a_real_cpu_quota_is_seen_from_inside(child_group):
    folder = child_group("cpu", cpu__cfs_quota_us=150_000)
    program = """
from parcompute.machine.limits import cpu_bound
bound = cpu_bound(affinity=range(8), environ={})
print(json.dumps([bound.n, bound.reason]))
"""
    n, reason = inside([folder], program)
    assert n == 1
    assert folder.name in reason
    assert "allows 1.5 CPUs" in reason


def test_a_real_quota_that_stops_a_run_disturbs_it(child_group):
    program = """
import time
from parcompute.machine.quiet import Activity, disturbances
before = Activity.now()
while time.process_time() < before.own_ns / 1e9 + 0.06: pass
print(json.dumps(disturbances(before, Activity.now(), 0.5, 1)))
"""
    assert "throttled" in inside([child_group("cpu", cpu__cfs_quota_us=20_000)], program)


def test_a_real_memory_limit_is_seen_from_inside(child_group):
    folder = child_group("memory", memory__limit_in_bytes=512 * 2**20)
    program = """
from parcompute.machine.limits import Memory
memory = Memory.read()
print(json.dumps([memory.limit.n, memory.limit.reason, memory.available.n]))
"""
    limit, reason, available = inside([folder], program)
    assert limit == 512 * 2**20
    assert folder.name in reason
    assert 0 < available < limit


def test_a_real_kill_for_want_of_memory_leaves_evidence(child_group):
    if Path("/proc/swaps").read_text().count("\n") > 1:
        pytest.skip("with swap space the kernel need not kill")
    folder = child_group("memory", memory__limit_in_bytes=96 * 2**20)
    program = """
import subprocess, sys
from parcompute.machine import cgroups
before = cgroups.oom_kills()
# The score makes the kernel choose the child.
hog = "open('/proc/self/oom_score_adj', 'w').write('1000'); b'x' * (200 * 2**20)"
code = subprocess.run([sys.executable, "-c", hog], check=False).returncode
print(json.dumps([code, cgroups.oom_evidence(before, cgroups.oom_kills())]))
"""
    code, evidence = inside([folder], program)
    assert code == -9
    assert evidence.startswith("out of memory: 1 process killed")
    assert folder.name in evidence
