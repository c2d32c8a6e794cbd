"""Whether the machine was quiet: its counters on made-up machines, and real neighbours."""

import math
import os
import subprocess
import sys
import time
from dataclasses import replace

import pytest

from parcompute.machine.quiet import Activity, cpu_times, disturbances, tree_ns

TICK_NS = 10**9 // os.sysconf("SC_CLK_TCK")
SECOND_NS = 10**9


@pytest.fixture
def made_up(tmp_path):
    """Write the files of a made-up machine, name → text, and return its root folder."""

    def write(contents):
        for name, text in contents.items():
            path = tmp_path / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(text + "\n")
        return tmp_path

    return write


def process(pid, *ticks, children="", name="python"):
    """Return the files of a process with user, system, children's user and children's system ticks."""
    stat = f"{pid} ({name}) S 1 1 1 0 -1 4194304 100 0 0 0 {' '.join(map(str, ticks))} 20 0 1 0 141683"
    return {f"proc/{pid}/stat": stat, f"proc/{pid}/task/{pid}/children": children}


def test_an_empty_root_gives_unknown_and_no_error(tmp_path):
    found = Activity.now(tmp_path, range(2))
    counters = (found.n_runnable, found.n_throttled, found.throttled_ns, found.stolen_ns, found.busy_ns, found.own_ns)
    assert counters == (-1,) * 6
    assert math.isnan(found.mhz)
    assert disturbances(found, found, 1.0, 2) == ""


def test_all_counters_are_read(made_up):
    root = made_up(
        {
            "proc/loadavg": "0.75 0.18 0.12 3/80 11206",
            "proc/stat": "cpu  9 9 9 9 9 9 9 9 0\ncpu0 100 20 3 5000 60 7 8 9 50 0\ncpu1 10 0 0 0 0 0 0 1 0 0\nintr 5",
            "proc/self/cgroup": "0::/",
            "proc/self/mountinfo": "30 23 0:26 / /sys/fs/cgroup rw - cgroup2 cgroup2 rw",
            "sys/fs/cgroup/cpu.stat": "nr_throttled 4\nthrottled_usec 5",
            "sys/devices/system/cpu/online": "0-7",
            "sys/devices/system/cpu/cpu0/cpufreq/scaling_cur_freq": "2500000",
            **process(50, 5, 6, 7, 8),
        }
    )
    found = Activity.now(root, [0], own=[50], looks=1)
    assert replace(found, taken_ns=0) == Activity(
        taken_ns=0,
        n_cpus=1,
        n_online=8,
        load_1min=0.75,
        n_runnable=3,
        n_throttled=4,
        throttled_ns=5000,
        busy_ns=(100 + 20 + 3 + 7 + 8) * TICK_NS,  # neither idle nor waiting for a disk; guests are in the first
        stolen_ns=9 * TICK_NS,
        own_ns=26 * TICK_NS,
        mhz=2500.0,
    )


def test_an_old_kernel_that_counts_no_stolen_time_stole_none(made_up):
    root = made_up({"proc/stat": "cpu0 1 2 3 4 5 6 7"})
    assert cpu_times([0], root) == (19 * TICK_NS, 0)


def test_the_time_of_a_process_includes_all_that_stem_from_it(made_up):
    root = made_up(
        process(1, 1000, 0, 0, 0, children="50 60")
        | process(50, 1, 2, 3, 4, children="51 52")
        | process(51, 10, 0, 0, 0, name="a (b) c", children="53")
        | process(53, 100, 0, 0, 0)
        | process(60, 5000, 0, 0, 0)
    )  # 52 has ended meanwhile
    assert tree_ns([50], root) == 120 * TICK_NS
    assert tree_ns([50, 51, 53], root) == 120 * TICK_NS
    assert tree_ns([99], root) == -1


QUIET = Activity(
    taken_ns=0,
    n_cpus=4,
    n_online=4,
    n_runnable=1,
    n_throttled=5,
    throttled_ns=7,
    stolen_ns=0,
    busy_ns=50 * SECOND_NS,
    own_ns=20 * SECOND_NS,
)


def after(seconds=1.0, **changes):
    """Return what follows on QUIET when the own processes alone used two CPUs."""
    own_ns = int(2 * seconds * SECOND_NS)
    new = replace(
        QUIET,
        taken_ns=int(seconds * SECOND_NS),
        busy_ns=QUIET.busy_ns + own_ns,
        own_ns=QUIET.own_ns + own_ns,
    )
    return replace(new, **changes)


def test_a_quiet_run_is_not_disturbed():
    assert disturbances(QUIET, after(), 1.0, 2) == ""


def test_being_throttled_once_disturbs():
    said = disturbances(QUIET, after(n_throttled=6, throttled_ns=60_000_007), 1.0, 2)
    assert said == "throttled 1 time for 0.06 s by a CPU quota"


@pytest.mark.parametrize(("stolen_s", "disturbed"), [(0.0, False), (0.19, False), (0.21, True)])
def test_stolen_time_disturbs_from_one_percent_of_the_core_seconds(stolen_s, disturbed):
    new = after(10.0, stolen_ns=int(stolen_s * SECOND_NS))
    assert bool(disturbances(QUIET, new, wall_s=10.0, n_workers=2)) == disturbed


def test_a_single_stolen_tick_in_a_short_run_is_no_evidence():
    assert disturbances(QUIET, after(0.1, stolen_ns=TICK_NS), 0.1, 2) == ""
    assert "stolen" in disturbances(QUIET, after(0.1, stolen_ns=2 * TICK_NS), 0.1, 2)


@pytest.mark.parametrize(("n_workers", "disturbed"), [(1, False), (2, False), (3, True), (4, True), (9, True)])
def test_others_may_compute_on_the_cpus_that_the_workers_leave(n_workers, disturbed):
    new = after(10.0)
    new = replace(new, busy_ns=new.busy_ns + 15 * SECOND_NS)  # others had 1.5 CPUs
    assert ("others computed on 1.50 of 4 CPUs" in disturbances(QUIET, new, 10.0, n_workers)) == disturbed


def test_what_the_sampling_of_busy_time_gets_wrong_is_not_taken_for_others():
    new = after(10.0)
    new = replace(new, busy_ns=new.busy_ns + 1 * SECOND_NS)  # 2.5 % of 4 CPUs
    assert disturbances(QUIET, new, 10.0, 4) == ""


@pytest.mark.parametrize(("n_runnable", "said"), [(3, ""), (4, "3 threads of others runnable at its end, room for 2")])
def test_runnable_threads_beyond_the_idle_cpus_disturb(n_runnable, said):
    assert disturbances(QUIET, after(n_runnable=n_runnable), 1.0, 2) == said


def test_runnable_threads_at_the_start_count_as_well():
    said = disturbances(replace(QUIET, n_runnable=2), after(), 1.0, 4)
    assert said == "1 thread of others runnable at its start, room for 0"


def test_runnable_threads_of_a_node_that_is_shared_may_belong_to_other_cpus():
    shared = [replace(activity, n_online=64, n_runnable=50) for activity in (QUIET, after())]
    assert disturbances(*shared, 1.0, 4) == ""


def test_all_reasons_are_given():
    new = after(1.0, n_throttled=9, stolen_ns=SECOND_NS, n_runnable=8)
    assert disturbances(QUIET, new, 1.0, 2).count(";") == 2


@pytest.mark.skipif(tree_ns([os.getpid()]) < 0, reason="the system does not list the children of a process")
def test_the_own_time_grows_with_that_of_children_alive_and_ended():
    program = "import time\nwhile time.process_time() < 0.1: pass\nprint(flush=True)\ninput()"
    before = Activity.now(looks=1)
    with subprocess.Popen(
        [sys.executable, "-c", program], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as child:
        child.stdout.readline()
        alive = Activity.now(looks=1)
        child.communicate("\n")
    ended = Activity.now(looks=1)
    assert alive.own_ns - before.own_ns >= 0.09 * SECOND_NS
    assert ended.own_ns >= alive.own_ns


@pytest.mark.skipif(tree_ns([os.getpid()]) < 0, reason="the system does not list the children of a process")
def test_a_real_neighbour_on_the_only_cpu_disturbs():
    cpu = max(os.sched_getaffinity(0))
    busy = f"import os\nos.sched_setaffinity(0, [{cpu}])\nprint(flush=True)\nwhile True: pass"
    with (
        subprocess.Popen([sys.executable, "-c", busy], stdout=subprocess.PIPE) as neighbour,
        subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE) as own,
    ):
        neighbour.stdout.readline()
        before = Activity.now(affinity=[cpu], own=[own.pid], looks=1)
        while cpu_times([cpu])[0] < before.busy_ns + 30 * TICK_NS:
            pass
        after = Activity.now(affinity=[cpu], own=[own.pid], looks=1)
        neighbour.kill()
        own.communicate(b"\n")
    wall_s = (after.taken_ns - before.taken_ns) / 1e9
    assert "others computed" in disturbances(before, after, wall_s, n_workers=1)


def test_a_look_back_at_this_machine_is_consistent():
    first, second = Activity.now(), Activity.now()
    assert first.taken_ns < second.taken_ns <= time.perf_counter_ns()
    assert first.n_cpus >= 1
    assert second.busy_ns >= first.busy_ns
