"""Jobs on a real Slurm: submitted, requeued, merged. `make test-slurm` runs the long ones too."""

import fcntl
import json
import os
import shutil
import subprocess
import sys
import time
from pathlib import Path

import pytest

import parcompute
from parcompute.record import record

pytestmark = [pytest.mark.slurm, pytest.mark.slow, pytest.mark.timeout(900)]

HERE = Path(__file__).parent
SOURCE = Path(parcompute.__file__).parents[1]
EXPERIMENTS = Path(parcompute.__file__).parents[2] / "experiments"
NEEDED = ("slurmctld", "slurmd", "sbatch", "munge", "runuser")

# A sum whose blocks take a while and say who has computed them.
LONG = """\
import os, sys, time
import parcompute as pc

def partial(block, rng):
    time.sleep({block_s})
    with open("blocks.log", "a") as log:
        log.write(f"{{block.index}} {{os.environ.get('SLURM_RESTART_COUNT', '0')}}\\n")
    return float(rng.standard_normal(100).sum())

if __name__ == "__main__":
    with pc.Executor(workers=2, schedule="dynamic") as executor:
        total = executor.reduce_blocks(partial, n_items={n_blocks}, block_items=1, seed=3, checkpoint="long.h5")
    with open("total", "a") as file:
        print(repr(total), file=file)
"""


class Cluster:
    """A Slurm of its own, and a folder to submit from."""

    def __init__(self, folder, port, prefix):
        self.folder, self.port, self.prefix = folder, port, prefix
        self.work = None
        path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
        self.environ = {**os.environ, "SLURM_CONF": f"{folder}/slurm.conf", "PYTHONPATH": str(SOURCE), "PATH": path}

    def run(self, *command, check=True):
        """Run a command where the controller is."""
        command = [*self.prefix, *map(str, command)]
        ended = subprocess.run(command, cwd=self.work, env=self.environ, capture_output=True, text=True, timeout=600)
        assert not check or ended.returncode == 0, ended.stdout + ended.stderr
        return ended

    def parcompute(self, *arguments, check=True):
        """Run the command."""
        return self.run(sys.executable, "-m", "parcompute", *arguments, check=check)

    def submit(self, *arguments):
        """Submit, and return the ids of the jobs."""
        out = self.parcompute("submit", *arguments).stdout
        return [line.split()[2].rstrip(":") for line in out.splitlines() if line.startswith("submitted job")]

    def field(self, job, name):
        """Return what scontrol says of a job."""
        told = self.run("scontrol", "-o", "show", "job", job).stdout.splitlines()[0]
        return next(word.partition("=")[2] for word in told.split() if word.startswith(f"{name}="))

    def wait(self, until, what, timeout_s=300):
        """Ask once a second."""
        end = time.monotonic() + timeout_s
        while not (found := until()):
            assert time.monotonic() < end, f"{what}: not within {timeout_s} s\n{self.logs()}"
            time.sleep(1)
        return found

    def wait_for_state(self, job, *states, timeout_s=300):
        """Wait until a job has one of these states; not for ever if it has ended with another."""
        over = {"COMPLETED", "FAILED", "TIMEOUT"} - set(states)

        def has():
            state = self.field(job, "JobState")
            assert state not in over, f"job {job} is {state}\n{self.logs()}"
            return state in states

        self.wait(has, f"job {job} {states}", timeout_s)

    def wait_for_blocks(self, n):
        """Wait until so many blocks are computed."""
        self.wait(lambda: len(self.blocks()) >= n, f"{n} blocks")

    def blocks(self):
        """Return (block, start) of all that were computed."""
        log = self.work / "blocks.log"
        return [tuple(map(int, line.split())) for line in log.read_text().splitlines()] if log.exists() else []

    def logs(self):
        """Return all that jobs have written."""
        return "\n".join(f"{log}:\n{log.read_text()}" for log in sorted(self.work.rglob("*.log")))


def started(folder, n_nodes, *, hosts):
    """Start a cluster, or skip and say why."""
    if os.geteuid():
        pytest.skip("a Slurm of one's own needs root")
    if missing := [name for name in NEEDED if shutil.which(name) is None]:
        pytest.skip(f"no {', '.join(missing)}: apt-get install slurm-wlm munge")
    if hosts and shutil.which("ip") is None:
        pytest.skip("no ip: apt-get install iproute2")
    port = 20000 + os.getpid() % 2000 * 10
    command = [HERE / "slurm.sh", "start", folder, port, n_nodes, 2, *(["hosts"] if hosts else [])]
    ended = subprocess.run(list(map(str, command)), capture_output=True, text=True, timeout=200)
    if ended.returncode and ("Operation not permitted" in ended.stderr or "exists: hosts are up" in ended.stderr):
        subprocess.run([HERE / "slurm.sh", "stop", folder], capture_output=True, timeout=240)
        pytest.skip(f"no Slurm can be started here: {ended.stderr.strip().splitlines()[0]}")
    assert ended.returncode == 0, ended.stdout + ended.stderr
    return Cluster(folder, port, [str(HERE / "hosts.sh"), "on", "pc1"] if hosts else [])


@pytest.fixture(scope="session")
def three_nodes(tmp_path_factory):
    """Keep a cluster of three nodes with two CPUs each."""
    folder = tmp_path_factory.mktemp("slurm")
    yield started(folder, 3, hosts=False)
    subprocess.run([HERE / "slurm.sh", "stop", folder], capture_output=True, timeout=240)


@pytest.fixture
def cluster(three_nodes, tmp_path):
    """Submit from a new folder."""
    three_nodes.work = tmp_path
    three_nodes.environ["TMPDIR"] = str(tmp_path)  # of the jobs, too
    return three_nodes


def same_bits_as_one_run(cluster, n_blocks):
    """Whether the job has written the result of one run without an end, and computed each block once."""
    (told,) = set((cluster.work / "total").read_text().split())
    alone = cluster.work / "alone"
    alone.mkdir()
    shutil.copy(cluster.work / "long.py", alone)
    text = (alone / "long.py").read_text().replace("time.sleep", "(lambda s: None)")
    (alone / "long.py").write_text(text)
    subprocess.run([sys.executable, "long.py"], cwd=alone, env=cluster.environ, check=True, timeout=120)
    assert (alone / "total").read_text().split() == [told]
    computed = [block for block, _ in cluster.blocks()]
    assert set(computed) == set(range(n_blocks))
    return len(computed) - n_blocks


def write_long(cluster, n_blocks, block_s):
    (cluster.work / "long.py").write_text(LONG.format(n_blocks=n_blocks, block_s=block_s))


# --- submit ------------------------------------------------------------------------------------------------


@pytest.mark.stress
def test_an_experiment_on_one_node_ends_with_a_record_and_figures(cluster):
    shutil.copy(EXPERIMENTS / "montecarlo.py", cluster.work)
    asked = ("--preset", "quick", "--backends", "serial,threads", "--rounds", "2")
    out = cluster.parcompute(
        "submit", "montecarlo.py", "--nodes", "1", "--engine", "none", "--time", "5:00", "--wait", *asked
    ).stdout
    assert "1 completed" in out, cluster.logs()
    (path,) = cluster.work.glob("results/*/montecarlo.h5")
    runs = record.read(path).runs
    assert len(runs) == 6  # serial, and threads on 1 and 2
    assert all(run.verified for run in runs)
    assert {run.configuration.n_workers for run in runs} == {1, 2}  # what the job was given, not the machine
    assert "against the truth" in cluster.logs()


def test_an_experiment_on_1_2_and_3_nodes_ends_with_one_merged_record(cluster):
    pytest.importorskip("mpi4py")
    shutil.copy(EXPERIMENTS / "montecarlo.py", cluster.work)
    asked = ("--preset", "quick", "--rounds", "2", "--nodes", "1,2,3", "--time", "10:00")
    out = cluster.parcompute("submit", "montecarlo.py", *asked, "--wait").stdout
    assert "4 completed" in out, cluster.logs()
    (path,) = cluster.work.glob("results/*/montecarlo.h5")
    runs = record.read(path).runs
    assert all(run.verified for run in runs)
    assert {run.configuration.n_nodes for run in runs} == {1, 2, 3}
    if not all(run.disturbed for run in runs):
        assert list(path.parent.glob("montecarlo-*.png"))
    assert "montecarlo" in out.partition("4 completed")[2]  # the verdict, from the job that merges


def test_dask_has_a_scheduler_and_a_worker_on_each_node_that_the_program_finds(cluster):
    pytest.importorskip("distributed")
    (cluster.work / "who.py").write_text(
        "import os\nfrom distributed import Client\n"
        "client = Client(scheduler_file=os.environ['PARCOMPUTE_SCHEDULER_FILE'])\n"
        "client.wait_for_workers(2, timeout=120)\n"
        "nodes = client.run(lambda: (os.environ['SLURMD_NODENAME'], len(os.sched_getaffinity(0))))\n"
        "print('nodes', sorted(nodes.values()))\n"
    )
    ended = cluster.parcompute(
        "submit", "who.py", "--nodes", "2", "--engine", "dask", "--time", "5:00", "--wait", check=False
    )
    assert ended.returncode == 0, cluster.logs()
    assert "nodes [('n1', 2), ('n2', 2)]" in cluster.logs()


@pytest.mark.parametrize(
    ("options", "told"),
    [
        (("--partition", "nix"), "nvalid partition"),
        (("--time", "never"), "nvalid --time"),
        (("--partition", "strict", "--time", "1:00:00"), "time limit is invalid (missing or exceeds some limit)"),
    ],
)
def test_what_slurm_refuses_is_its_message_and_leaves_nothing(cluster, options, told):
    write_long(cluster, 2, 0)
    ended = cluster.parcompute("submit", "long.py", *options, check=False)
    assert (ended.returncode, ended.stdout, ended.stderr.count("\n")) == (2, "", 1)
    assert told in ended.stderr
    assert not (cluster.work / "results").exists()
    assert cluster.run("squeue", "-h", "-t", "PD,R").stdout == ""


# --- going on ----------------------------------------------------------------------------------------------


def test_a_signal_requeues_a_job_which_goes_on_with_the_same_bits(cluster):
    write_long(cluster, 60, 0.25)
    (job,) = cluster.submit("long.py", "--time", "5:00", "--cpus-per-task", "2")
    cluster.wait_for_blocks(10)
    cluster.run("scancel", "--signal=USR1", job)
    cluster.wait_for_state(job, "COMPLETED")
    assert cluster.field(job, "Restarts") == "1"
    assert {start for _, start in cluster.blocks()} == {0, 1}
    assert same_bits_as_one_run(cluster, 60) == 0, cluster.logs()
    assert "SIGUSR1 has announced the end of the job" in cluster.logs()


@pytest.mark.stress
def test_a_cancelled_job_stays_so(cluster):
    write_long(cluster, 60, 0.25)
    (job,) = cluster.submit("long.py", "--time", "5:00", "--cpus-per-task", "2")
    cluster.wait_for_blocks(5)
    cluster.run("scancel", job)
    cluster.wait_for_state(job, "CANCELLED")
    cluster.wait(lambda: "of 60 blocks are kept" in cluster.logs(), "the program's last words")
    assert cluster.field(job, "Restarts") == "0"


@pytest.mark.stress
def test_a_job_longer_than_its_limit_is_requeued_until_it_is_done(cluster):
    write_long(cluster, 260, 0.5)  # 65 s on two workers, and a minute is the limit
    (job,) = cluster.submit("long.py", "--time", "1", "--cpus-per-task", "2")
    cluster.wait_for_state(job, "COMPLETED", timeout_s=600)
    assert int(cluster.field(job, "Restarts")) >= 1
    assert same_bits_as_one_run(cluster, 260) == 0, cluster.logs()


@pytest.mark.stress
def test_a_job_without_a_warning_is_ended_by_its_own_clock(cluster):
    write_long(cluster, 260, 0.5)
    (job,) = cluster.submit("long.py", "--time", "1", "--cpus-per-task", "2", "--", "--signal=B:CONT@1")
    cluster.wait_for_state(job, "COMPLETED", timeout_s=600)
    assert same_bits_as_one_run(cluster, 260) == 0, cluster.logs()
    assert "the job ends in" in cluster.logs()


@pytest.mark.stress
def test_a_preempted_job_goes_on_with_the_same_bits(cluster):
    write_long(cluster, 60, 0.25)
    (job,) = cluster.submit("long.py", "--time", "5:00", "--cpus-per-task", "2")
    cluster.wait_for_blocks(10)
    (cluster.work / "urgent.sh").write_text("#!/bin/bash\nsleep 5\n")
    urgent = cluster.run("sbatch", "--parsable", "-p", "urgent", "-N", "3", "--exclusive", "urgent.sh").stdout.strip()
    cluster.wait_for_state(urgent, "COMPLETED")
    cluster.wait_for_state(job, "COMPLETED")
    assert int(cluster.field(job, "Restarts")) >= 1
    assert same_bits_as_one_run(cluster, 60) <= 2, cluster.logs()


@pytest.mark.stress
def test_a_job_whose_node_goes_down_goes_on_elsewhere_with_the_same_bits(tmp_path):
    folder = tmp_path / "slurm"
    folder.mkdir()
    cluster = started(folder, 3, hosts=True)
    cluster.work = tmp_path / "work"
    cluster.work.mkdir()
    try:
        write_long(cluster, 240, 0.5)
        (job,) = cluster.submit("long.py", "--time", "10:00", "--cpus-per-task", "2", "--", "--nodelist=n2")
        cluster.wait_for_blocks(10)
        subprocess.run([HERE / "hosts.sh", "cut", "pc2"], check=True)
        cluster.wait(lambda: cluster.run("sinfo", "-h", "-n", "n2", "-o", "%T").stdout.startswith("down"), "n2 is down")
        cluster.run("scontrol", "update", f"JobId={job}", "ReqNodeList=")
        cluster.wait_for_state(job, "RUNNING")
        assert cluster.field(job, "NodeList") != "n2"
        subprocess.run([HERE / "hosts.sh", "heal", "pc2"], check=True)  # where the first start still runs
        cluster.wait_for_state(job, "COMPLETED", timeout_s=500)
        assert int(cluster.field(job, "Restarts")) >= 1
        assert same_bits_as_one_run(cluster, 240) <= 4, cluster.logs()
    finally:
        subprocess.run([HERE / "slurm.sh", "stop", folder], capture_output=True, timeout=240)


# --- arrays ------------------------------------------------------------------------------------------------


def test_a_task_of_an_array_that_is_killed_is_named_and_run_again(cluster):
    """Each task computes its part without an engine; who puts them together has the bits of one run."""
    write_long(cluster, 60, 0.5)
    asked = ("long.py", "--array", "6", "--time", "5:00", "--cpus-per-task", "1")
    array, merge = cluster.submit(*asked)
    cluster.wait(lambda: any(20 <= block < 30 for block, _ in cluster.blocks()), "the third task computes")
    cluster.run("scancel", "--signal=KILL", f"{array}_2")
    cluster.wait_for_state(merge, "FAILED")
    assert "missing: part 2 of 6" in cluster.logs()
    assert f"to run only that: parcompute submit {' '.join(asked)} --missing" in cluster.logs()
    assert not (cluster.work / "total").exists()
    ended = cluster.parcompute("submit", *asked, "--missing", "--wait", check=False)
    assert ended.returncode == 0, ended.stdout + ended.stderr + cluster.logs()
    assert same_bits_as_one_run(cluster, 60) <= 2, cluster.logs()


@pytest.mark.stress
def test_tasks_of_an_array_share_a_sweep(cluster):
    shutil.copy(EXPERIMENTS / "montecarlo.py", cluster.work)
    asked = (
        "--preset",
        "quick",
        "--backends",
        "serial,threads",
        "--array",
        "3",
        "--time",
        "5:00",
        "--cpus-per-task",
        "2",
    )
    out = cluster.parcompute("submit", "montecarlo.py", *asked, "--wait").stdout
    (path,) = cluster.work.glob("results/*/montecarlo.h5")
    runs = record.read(path).runs
    assert sorted((run.round, str(run.configuration)) for run in runs) == sorted(
        (round_, str(c)) for c in {run.configuration for run in runs} for round_ in range(6)
    )
    assert "18 runs" in out or "18 like runs" in out  # the verdict, of a quiet machine or a busy one


# --- sizes -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("options", "srun", "n", "source"),
    [
        (("--cpus-per-task=1",), (), 1, None),
        (("--cpus-per-task=2",), (), 2, None),
        (("--ntasks=2",), (), 2, None),
        (("--exclusive",), (), 2, None),
        (("--cpus-per-task=2",), ("srun", "--cpus-per-task=2"), 2, None),
        (("--cpus-per-task=2",), ("srun", "--ntasks=1", "--cpus-per-task=1"), 1, None),
        (("--ntasks=2", "--nodes=1"), ("srun", "--cpu-bind=none", "--ntasks=2"), 1, "shared by 2 tasks of this step"),
        (("--array=3", "--cpus-per-task=1"), ("srun", "--cpus-per-task=1"), 1, None),
    ],
)
def test_workers_are_what_the_job_was_given(cluster, options, srun, n, source):
    script = f"#!/bin/bash\n{' '.join(srun)} {sys.executable} -m parcompute machine --json > m-$SLURM_JOB_ID.json\n"
    if "--ntasks=2" in srun:
        script = script.replace("> m-$SLURM_JOB_ID.json", "").replace(
            sys.executable, f"bash -c '[ $SLURM_PROCID = 1 ] || exec \"$@\" > m-$SLURM_JOB_ID.json' _ {sys.executable}"
        )
    (cluster.work / "job.sh").write_text(script)
    cluster.run("sbatch", "--wait", *options, "job.sh")
    (told,) = cluster.work.glob("m-*.json")
    cpus = json.loads(told.read_text())["cpus"]
    assert cpus["n"] == n, cpus
    assert source is None or any(source in limit["reason"] for limit in cpus["limits"]), cpus


def test_one_process_writes_a_record(cluster, tmp_path):
    """Two jobs of the same experiment at once: the second says who writes, and nothing is lost."""
    shutil.copy(EXPERIMENTS / "montecarlo.py", cluster.work)
    path = cluster.work / "results" / "montecarlo.h5"
    path.parent.mkdir()
    with (path.parent / ".montecarlo.h5.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        asked = ("--preset", "quick", "--results", "results", "--time", "5:00", "--cpus-per-task", "1", "--wait")
        ended = cluster.parcompute("submit", "montecarlo.py", *asked, check=False)
    assert ended.returncode == 1
    assert "is being written by process" in cluster.logs()
