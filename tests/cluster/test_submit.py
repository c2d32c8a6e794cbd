"""Job scripts and submissions, with commands of Slurm that are made up."""

import json
import os
import subprocess
import sys

import pytest

import parcompute.cli
from parcompute.cluster import slurm, submit
from parcompute.cluster.parts import Parts
from parcompute.cluster.submit import Asked, plan
from parcompute.machine.batch import tasks

EXPERIMENT = """\
import parcompute as pc

@pc.experiment(n_items={"default": 8}, truth=lambda result, n_items: pc.Check(result, 0.0, 0.0))
def nix(executor, n_items, seed):
    return 0.0

if __name__ == "__main__":
    nix.main()
"""


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """Be in a folder with an experiment and another program, and without Slurm."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("PYTHONPATH", "/some where")
    monkeypatch.setenv("PATH", "/usr/bin:/bin")
    monkeypatch.setattr(slurm.shutil, "which", lambda name: None)
    (tmp_path / "exp.py").write_text(EXPERIMENT)
    (tmp_path / "long.py").write_text("print('done')\n")
    return tmp_path


@pytest.fixture
def made_up(folder, monkeypatch):
    """Have an sbatch that notes what it gets and refuses the job after so many."""
    (folder / "bin").mkdir()

    def make(n_jobs=99):
        commands = {
            "sbatch": f'n=$(cat n 2>/dev/null || echo 0); echo "$@" >>calls; [ $n -lt {n_jobs} ] || '
            '{ echo "sbatch: error: invalid partition specified: nix" >&2; '
            'echo "sbatch: error: Batch job submission failed: Invalid partition name specified" >&2; exit 1; }; '
            "echo $((n + 1)) >n; echo $((n + 1))",
            "scancel": 'echo "scancel $@" >>calls',
            "scontrol": 'echo "ClusterName             = my cluster"',
        }
        for name, text in commands.items():
            (folder / "bin" / name).write_text(f"#!/bin/bash\n{text}\n")
            (folder / "bin" / name).chmod(0o755)
        monkeypatch.setenv("PATH", f"{folder}/bin:/usr/bin:/bin")
        monkeypatch.setattr(slurm.shutil, "which", lambda name: f"{folder}/bin/{name}")
        return folder

    return make


def call(capsys, *arguments):
    sys.argv = ["parcompute", *map(str, arguments)]
    with pytest.raises(SystemExit) as end:
        parcompute.cli.main()
    out, err = capsys.readouterr()
    return end.value.code or 0, out, err


def scripts(**asked):
    planned = plan(Asked(**{"file": "exp.py", **asked}), "site")
    return {str(path): text for path, text in (*planned.scripts, *([planned.last] if planned.last else []))}


def test_the_script_of_one_job_is_what_one_would_write_by_hand(folder):
    asked = {"time": "30:00", "partition": "cpu", "account": "me", "cpus_per_task": 16, "options": ("--mem=8G",)}
    assert scripts(**asked, arguments=("--preset", "quick")) == {
        "results/site/nix-1n.sbatch": f"""\
#!/bin/bash
#SBATCH --job-name=nix-1n
#SBATCH --nodes=1
#SBATCH --ntasks-per-node=1
#SBATCH --cpus-per-task=16
#SBATCH --time=30:00
#SBATCH --partition=cpu
#SBATCH --account=me
#SBATCH --chdir={folder}
#SBATCH --output=results/site/nix-1n-%j.log
#SBATCH --open-mode=append
#SBATCH --requeue
#SBATCH --signal=B:USR1@60
#SBATCH --mem=8G

export PYTHONPATH='/some where'
exec srun --cpus-per-task=16 --nodes=1 --ntasks=1 {sys.executable} -m parcompute run exp.py \
--results results/site --preset quick
"""
    }


def test_each_number_of_nodes_is_a_job_of_its_own_and_one_more_merges(folder):
    found = scripts(nodes=(1, 2, 4), engine="mpi")
    assert list(found) == [f"results/site/nix-{name}.sbatch" for name in ("1n", "2n", "4n", "merge")]
    four = found["results/site/nix-4n.sbatch"]
    assert "#SBATCH --nodes=4\n#SBATCH --ntasks-per-node=1\n#SBATCH --exclusive\n" in four
    assert "export PARCOMPUTE_DONE=results/site/nix-parts/4n.done\n" in four
    assert (
        f'exec srun --cpus-per-task="$SLURM_CPUS_ON_NODE" {sys.executable} -m parcompute.mpi -m parcompute run exp.py '
        "--results results/site/nix-parts/4n --backends mpi --nodes 4\n"
    ) in four
    merge = found["results/site/nix-merge.sbatch"]
    assert "merge --parts results/site/nix-parts --into results/site/nix.h5 || status=$?" in merge
    assert "#SBATCH --requeue" not in merge


def test_one_job_for_all_numbers_of_nodes(folder):
    ((path, text),) = scripts(nodes=(1, 2, 4), engine="mpi", one_job=True).items()
    assert path == "results/site/nix-4n.sbatch"
    assert "#SBATCH --nodes=4\n" in text
    assert "--backends mpi --nodes 1,2,4\n" in text


def test_dask_gets_a_scheduler_and_one_worker_a_node(folder):
    text = scripts(nodes=(2,), engine="dask", cpus_per_task=4)["results/site/nix-2n.sbatch"]
    last = text.splitlines()[-4:]
    assert last[0].startswith('rm -f "$PARCOMPUTE_SCHEDULER_FILE"')
    assert "distributed.cli.dask_scheduler" in last[1]
    assert last[1].endswith("&")
    assert last[2].startswith("srun --cpus-per-task=4 ")
    assert "dask_worker --nworkers 1" in last[2]
    assert last[3].startswith(f"exec {sys.executable} -m parcompute run exp.py")
    assert last[3].endswith("--backends dask --nodes 2")


def test_an_array_deals_the_work_over_tasks(folder):
    found = scripts(array=3, file="long.py", arguments=("a b",))
    text = found["results/site/long-array.sbatch"]
    assert "#SBATCH --array=0-2\n" in text
    assert 'export PARCOMPUTE_PART="$SLURM_ARRAY_TASK_ID/3"\n' in text
    assert 'export PARCOMPUTE_DONE=results/site/long-parts/"$SLURM_ARRAY_TASK_ID".done\n' in text
    assert "run long.py 'a b'\n" in text
    assert found["results/site/long-merge.sbatch"].endswith(f"exec {sys.executable} -m parcompute run long.py 'a b'\n")
    assert (
        '--results results/site/nix-parts/"$SLURM_ARRAY_TASK_ID"' in scripts(array=3)["results/site/nix-array.sbatch"]
    )


def test_a_short_limit_is_announced_late(folder):
    assert "B:USR1@15" in scripts(time="1")["results/site/nix-1n.sbatch"]
    assert "B:USR1@60" in scripts(time="1:00:00")["results/site/nix-1n.sbatch"]
    assert "B:USR1@60" in scripts(time="")["results/site/nix-1n.sbatch"]


def test_each_script_is_bash(folder):
    for engine in ("mpi", "dask"):
        for text in scripts(nodes=(1, 3), engine=engine, arguments=("it's", "$HOME")).values():
            subprocess.run(["bash", "-n"], input=text, text=True, check=True)


@pytest.mark.parametrize(
    ("asked", "told"),
    [
        ({"nodes": (1, 2), "engine": "none"}, "needs something that connects nodes"),
        ({"nodes": (1, 2), "engine": "mpi", "array": 2}, "pass one number of --nodes"),
        ({"missing": True}, "--missing is for --array"),
    ],
)
def test_what_does_not_fit_together_is_refused(folder, asked, told):
    with pytest.raises(ValueError, match=told):
        scripts(**asked)


def test_the_usual_engine_is_mpi_where_it_is_there(monkeypatch):
    monkeypatch.setattr(submit, "find_spec", lambda name: None)
    assert submit.usual_engine((1, 2)) == "none"
    monkeypatch.setattr(submit, "find_spec", lambda name: name)
    assert submit.usual_engine((1, 2)) == "mpi"
    assert submit.usual_engine((1,)) == "none"


def test_a_dry_run_prints_and_writes_nothing(capsys, folder):
    status, out, err = call(
        capsys, "submit", "exp.py", "--time", "5:00", "--preset", "quick", "--dry-run", "--", "--mem=1G"
    )
    assert (status, err) == (0, "")
    assert out.startswith("# results/cluster/nix-1n.sbatch\n#!/bin/bash\n")
    assert "#SBATCH --mem=1G\n" in out
    assert "--results results/cluster --preset quick\n" in out
    assert not (folder / "results").exists()


def test_without_slurm_one_line_says_so(capsys, folder):
    status, out, err = call(capsys, "submit", "exp.py")
    assert (status, out, err.count("\n")) == (2, "", 1)
    assert "there is no sbatch on this machine" in err


def test_a_submission_says_what_was_submitted_and_where_the_results_will_be(capsys, made_up):
    folder = made_up()
    status, out, err = call(capsys, "submit", "exp.py", "--nodes", "1,2", "--engine", "mpi")
    assert (status, err) == (0, "")
    assert out == (
        "submitted job 1: results/my/nix-1n.sbatch, its output will be in results/my/nix-1n-1.log\n"
        "submitted job 2: results/my/nix-2n.sbatch, its output will be in results/my/nix-2n-2.log\n"
        "submitted job 3: results/my/nix-merge.sbatch, its output will be in results/my/nix-merge-3.log\n"
        "the results will be in results/my/nix.h5; to show them: parcompute show results/my/nix.h5\n"
    )
    assert "--dependency=afterany:1:2" in (folder / "calls").read_text().splitlines()[-1]
    again = json.loads((folder / "results/my/nix-parts/parts.json").read_text())["again"]
    assert again == "parcompute submit exp.py --nodes 1,2 --engine mpi --missing"


@pytest.mark.parametrize("n_jobs", [0, 1, 2])
def test_what_sbatch_refuses_leaves_nothing(capsys, made_up, n_jobs):
    folder = made_up(n_jobs)
    status, out, err = call(capsys, "submit", "exp.py", "--nodes", "1,2", "--engine", "mpi", "--partition", "nix")
    assert (status, out, err.count("\n")) == (2, "", 1)
    assert "invalid partition specified: nix" in err
    assert not (folder / "results").exists()
    cancelled = [line for line in (folder / "calls").read_text().splitlines() if line.startswith("scancel")]
    assert cancelled == ([f"scancel {' '.join(map(str, range(1, n_jobs + 1)))}"] if n_jobs else [])


def test_only_what_is_missing_is_submitted_again(capsys, made_up):
    folder = made_up()
    call(capsys, "submit", "long.py", "--array", "4")
    parts = Parts.read(folder / "results/my/long-parts")
    for name in "013":
        parts.mark(name).touch()
    status, out, err = call(capsys, "merge", "--parts", parts.folder)
    assert (status, out) == (1, "")
    assert "missing: part 2 of 4" in err
    assert "to run only that: parcompute submit long.py --array 4 --missing" in err
    call(capsys, "submit", "long.py", "--array", "4", "--missing")
    assert "#SBATCH --array=2\n" in (folder / "results/my/long-array.sbatch").read_text()
    assert parts.missing() == ("2",)
    parts.mark("2").touch()
    assert call(capsys, "submit", "long.py", "--array", "4", "--missing") == (0, "nothing is missing\n", "")
    assert call(capsys, "merge", "--parts", parts.folder) == (0, "", "")
    call(capsys, "submit", "long.py", "--array", "4")  # all of it again
    assert len(parts.missing()) == 4


def test_merge_of_no_parts_is_one_line(capsys, folder):
    status, _, err = call(capsys, "merge", "--parts", folder)
    assert (status, err.count("\n")) == (2, 1)
    assert "is no folder of parts" in err
    assert call(capsys, "merge")[0] == 2


def test_tasks_share_the_rounds_of_a_sweep(monkeypatch):
    from parcompute.experiments.perform import sweep_of

    class Chosen:
        workers, backends, schedules, start_methods = (1,), ("threads",), ("guided",), ("fork",)
        variants, blas_threads, scaling, threads_per_worker = (), (1,), "strong", 1
        rounds, seed, precision, budget, preset = 6, 1, 0.02, None, "quick"
        nodes, cluster = (1,), None

    whole = sweep_of(Chosen, [8], 1)
    shares = []
    for number in range(4):
        monkeypatch.setenv(tasks.PART_VARIABLE, f"{number}/4")
        shares.append(sweep_of(Chosen, [8], 1))
    visits = [visit for share in shares for visit in share.visits_missing(()) if visit[0] >= 0]
    assert sorted(visits, key=str) == sorted((visit for visit in whole.visits() if visit[0] >= 0), key=str)
    monkeypatch.setenv(tasks.PART_VARIABLE, "7/8")
    assert sweep_of(Chosen, [8], 1).n_rounds == 8


def test_following_goes_on_when_the_controller_does_not_answer(monkeypatch):
    def asked(*_):
        answer = next(answers)
        return subprocess.CompletedProcess((), *answer)

    answers = iter(
        [
            (0, "1|RUNNING|1:00|n1\n", ""),
            (1, "", "slurm_load_jobs error: Unable to contact slurm controller (connect failure)"),
            (0, "1|RUNNING|1:00|n1\n", ""),
            (1, "", "slurm_load_jobs error: Invalid job id specified"),
        ]
    )
    monkeypatch.setattr(slurm, "_run", asked)
    monkeypatch.setattr(slurm.time, "sleep", lambda pause_s: None)
    shown = []
    slurm.follow(["1"], shown.append)
    assert [[state.state for state in states] for states in shown] == [["RUNNING"]] * 3
    assert list(answers) == []


def test_following_ends_when_all_have_ended_and_asks_rarely(monkeypatch):
    answers = [
        [("1", "PENDING")],
        [("1", "RUNNING"), ("2", "PENDING")],
        *[[("1", "RUNNING")]] * 12,
        [("1", "COMPLETED")],
    ]
    naps, shown = [], []
    monkeypatch.setattr(slurm.time, "sleep", naps.append)
    queue = iter([[slurm.State(id, state, "1:00", "n1") for id, state in answer] for answer in answers])
    monkeypatch.setattr(slurm, "states", lambda ids: next(queue))
    last = slurm.follow(["1"], shown.append)
    assert slurm.over(last) == (1, [])
    assert len(shown) == len(answers)
    assert naps == sorted(naps)
    assert (naps[0], naps[-1]) == (1.0, pytest.approx(1.3**13, rel=0.2))


@pytest.mark.parametrize("value", ["0", "a", "1,,2", "-1"])
def test_numbers_of_nodes_that_are_none_are_refused(capsys, folder, value):
    status, _, err = call(capsys, "submit", "exp.py", "--nodes", value)
    assert (status, err.count("\n")) == (2, 1)


def test_a_file_that_is_no_python_is_refused(capsys, made_up):
    (made_up() / "bad.py").write_text("def")
    status, _, err = call(capsys, "submit", "bad.py")
    assert (status, err.count("\n")) == (2, 1)
    assert "bad.py: is no Python program" in err


# --- within a job ------------------------------------------------------------------------------------------

JOB = {"SLURM_JOB_ID": "9", "SLURM_JOB_NODELIST": "n1", "PARCOMPUTE_JOB_END_TIME": "99999999999"}
OUT = (
    "import parcompute as pc\nfrom parcompute.machine.batch import deadline\n"
    "deadline.note_kept({})\nraise pc.OutOfTime('late')\n"
)


def run(folder, text, **environ):
    (folder / "program.py").write_text(text)
    return subprocess.run(
        [sys.executable, "-m", "parcompute", "run", "program.py"],
        cwd=folder,
        env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path), **environ},
        capture_output=True,
        text=True,
    )


@pytest.fixture
def scontrol(tmp_path):
    """Have a `scontrol` that says so of the job, and notes what it is asked to requeue."""

    def make(told):
        (tmp_path / "bin").mkdir()
        script = f'#!/bin/bash\nif [ "$1" = requeue ]; then echo "$2" >>requeued; else echo "{told}"; fi\n'
        (tmp_path / "bin/scontrol").write_text(script)
        (tmp_path / "bin/scontrol").chmod(0o755)
        return {**JOB, "PATH": f"{tmp_path}/bin:{os.environ['PATH']}"}

    return make


@pytest.mark.parametrize(
    ("told", "kept", "requeued", "said"),
    [
        ("JobId=9 JobState=RUNNING Reason=None BatchFlag=1", 1, True, "job 9 is requeued"),
        ("JobId=9 JobState=COMPLETING Reason=TimeLimit BatchFlag=1", 1, True, "job 9 is requeued"),
        ("JobId=9 JobState=COMPLETING Reason=None BatchFlag=1", 1, False, "is completing, and is not requeued"),
        ("JobId=9 JobState=RUNNING Reason=None BatchFlag=0", 1, False, ""),
        ("JobId=9 JobState=RUNNING Reason=None BatchFlag=1", 0, False, "nothing new was kept in this start"),
    ],
)
def test_a_program_that_is_out_of_time_has_its_job_requeued(tmp_path, scontrol, told, kept, requeued, said):
    ended = run(tmp_path, OUT.format(kept), **scontrol(told))
    assert ended.returncode == 75
    assert ended.stderr.splitlines()[0] == "parcompute: late"
    assert said in ended.stderr
    assert (tmp_path / "requeued").exists() == requeued


def test_only_one_task_of_a_step_requeues(tmp_path, scontrol):
    environ = scontrol("JobId=9 JobState=RUNNING Reason=None BatchFlag=1")
    assert run(tmp_path, OUT.format(1), **environ, SLURM_PROCID="1").returncode == 75
    assert not (tmp_path / "requeued").exists()


def test_a_program_that_ends_well_makes_the_mark_of_its_part(tmp_path):
    mark = tmp_path / "parts" / "2.done"
    assert run(tmp_path, "raise SystemExit(3)", PARCOMPUTE_DONE=str(mark)).returncode == 3
    assert not mark.exists()
    assert run(tmp_path, "x = 1", PARCOMPUTE_DONE=str(mark)).returncode == 0
    assert mark.exists()


def test_a_late_signal_does_not_change_the_status_of_what_is_done(tmp_path):
    text = "import atexit, os, signal\natexit.register(lambda: os.kill(os.getpid(), signal.SIGUSR1))\n"
    assert run(tmp_path, text, **JOB).returncode == 0
