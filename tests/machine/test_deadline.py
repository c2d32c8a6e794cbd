"""The end of a batch job: who knows it, and what the signals that announce it do."""

import os
import signal
import subprocess
import sys
import time

import pytest

from parcompute.machine import signals
from parcompute.machine.batch import deadline, systems
from parcompute.machine.batch.deadline import Countdown, OutOfTime, find_end_s


@pytest.fixture
def in_job(monkeypatch):
    """Be in a batch job that ends so many seconds from now; none knows when, for infinity."""

    def set_(left_s=float("inf")):
        deadline.end_s.cache_clear()
        monkeypatch.setattr(deadline, "end_s", lambda: None if left_s == float("inf") else end)
        end = time.time() + left_s
        monkeypatch.setenv("SLURM_JOB_ID", "7")

    return set_


@pytest.fixture
def command(tmp_path):
    """Put a made-up command of a batch system on a path of its own; return that path."""

    def make(name, text):
        (tmp_path / name).write_text(f"#!/bin/sh\n{text}\n")
        (tmp_path / name).chmod(0o755)
        return f"{tmp_path}:/usr/bin:/bin"

    return make


def test_outside_a_job_there_is_no_end():
    assert find_end_s({}) is None
    assert not deadline.in_job({})


def test_variables_tell_the_end():
    assert find_end_s({"SLURM_JOB_ID": "1", "SLURM_JOB_END_TIME": "1700000000"}) == 1.7e9
    assert find_end_s({"PARCOMPUTE_JOB_END_TIME": "1700000001", "SLURM_JOB_END_TIME": "1700000000"}) == 1700000001
    assert deadline.in_job({"PARCOMPUTE_JOB_END_TIME": "1700000001"})


@pytest.mark.parametrize("value", ["soon", "-1", "1e9", "9" * 30])
def test_an_end_that_is_no_time_is_refused(value):
    with pytest.raises(ValueError, match=r"PARCOMPUTE_JOB_END_TIME=.*set seconds since 1970"):
        find_end_s({"PARCOMPUTE_JOB_END_TIME": value})


@pytest.mark.parametrize(
    ("variable", "name", "answer", "left_s"),
    [
        ("SLURM_JOB_ID", "squeue", "1-02:03:04", 93784),
        ("SLURM_JOB_ID", "squeue", "0:30", 30),
        ("SLURM_JOB_ID", "squeue", "UNLIMITED", None),
        ("LSB_JOBID", "bjobs", "1:30 L", 5400),
        ("LSB_JOBID", "bjobs", "-", None),
        ("FLUX_JOB_ID", "flux", "125.5", 125.5),
        ("FLUX_JOB_ID", "flux", "infinity", None),
        ("PBS_JOBID", "qstat", "Job Id: 7\n    Resource_List.walltime = 01:00:00\n    stime = {now}", 3600),
        ("PBS_JOBID", "qstat", "    Resource_List.walltime = 3600\n    start_time = {now}", 3600),
        ("PBS_JOBID", "qstat", "Resource_List.walltime = 3600\n stime = yesterday", None),
    ],
)
def test_the_batch_system_is_asked_where_no_variable_tells(command, variable, name, answer, left_s):
    text = answer.format(now=time.strftime("%a %b %d %H:%M:%S %Y"))
    path = command(name, f"cat <<'END'\n{text}\nEND")
    end = find_end_s({variable: "7", "PATH": path})
    assert (end is None) if left_s is None else abs(end - time.time() - left_s) < 30


def test_a_command_that_fails_or_is_missing_tells_no_end(command, tmp_path):
    assert find_end_s({"SLURM_JOB_ID": "7", "PATH": command("squeue", "echo 1:00; exit 1")}) is None
    assert find_end_s({"FLUX_JOB_ID": "7", "PATH": str(tmp_path)}) is None
    assert find_end_s({"SGE_TASK_ID": "undefined"}) is None


@pytest.mark.parametrize(
    ("environ", "host", "n"),
    [
        ({"PBS_JOBID": "1", "NCPUS": "8"}, "a", 8),
        ({"PBS_JOBID": "1", "PBS_NUM_PPN": "4"}, "a", 4),
        ({"PBS_JOBID": "1", "NCPUS": "many"}, "a", None),
        ({"LSB_JOBID": "1", "LSB_MCPU_HOSTS": "a 8 b.site 4", "LSB_DJOB_NUMPROC": "12"}, "b", 4),
        ({"LSB_JOBID": "1", "LSB_MCPU_HOSTS": "a 8", "LSB_DJOB_NUMPROC": "12"}, "c", 12),
        ({"SGE_TASK_ID": "undefined", "NSLOTS": "16"}, "a", 16),
        ({"FLUX_JOB_ID": "f1"}, "a", None),
    ],
)
def test_other_batch_systems_say_how_many_cpus_this_node_gives(environ, host, n):
    ((found, why),) = systems.current(environ).cpus(environ, host)
    assert found == n
    assert why


def test_grid_engine_counts_the_slots_of_this_host(tmp_path):
    (tmp_path / "hosts").write_text("a.site 4 all.q UNDEFINED\nb.site 12 all.q UNDEFINED\n")
    environ = {"SGE_TASK_ID": "1", "NSLOTS": "16", "PE_HOSTFILE": str(tmp_path / "hosts")}
    assert [n for n, _ in systems.current(environ).cpus(environ, "b")] == [12]


@pytest.mark.parametrize(
    ("environ", "modules", "n"),
    [
        ({}, (), 1),
        ({"SLURM_STEP_ID": "0", "SLURM_STEP_NUM_TASKS": "8"}, (), 8),
        ({"SLURM_STEP_ID": "0", "SLURM_STEP_NUM_TASKS": "8", "PMIX_RANK": "3"}, (), 8),
        ({"SLURM_STEP_ID": "0", "SLURM_STEP_NUM_TASKS": "8"}, ("mpi4py",), 1),
        ({"SLURM_STEP_ID": "0", "SLURM_STEP_NUM_TASKS": "8", "PARCOMPUTE_SCHEDULER_FILE": "f"}, (), 1),
        ({"SLURM_STEP_ID": "0", "SLURM_STEP_NUM_TASKS": "1"}, (), 1),
    ],
)
def test_copies_without_mpi_are_counted(environ, modules, n):
    assert systems.copies(environ, modules) == n


# --- the countdown -----------------------------------------------------------------------------------------


def test_a_countdown_outside_a_job_never_ends():
    countdown = Countdown(current=[0])
    countdown.look(1e9)
    assert countdown.ended == ""


def test_no_block_begins_that_takes_longer_than_what_is_left(in_job, monkeypatch):
    now, stopped, current = [0.0], [], [0]
    monkeypatch.setattr(deadline, "left_s", lambda: 100.0 - now[0])
    monkeypatch.setattr(deadline.time, "monotonic", lambda: now[0])
    in_job(100)
    countdown = Countdown(lambda: stopped.append(now[0]), current)
    for now[0] in range(0, 76, 5):
        current[0] = now[0] // 20  # a block takes 20 s
        countdown.look(save_s=2.0)
    assert stopped == [75]  # 20 s and a look for a block, 2 s for the file, and the margin are more than 25 s
    assert "a block took up to 20.0 s" in countdown.ended
    now[0] = 95
    countdown.look(2.0)  # the blocks in progress have time
    now[0] = 97
    with pytest.raises(OutOfTime, match=r"the job ends in 25 s, and a block took up to 20.0 s"):
        countdown.look(2.0)


def test_a_countdown_without_a_way_to_stop_raises(in_job):
    in_job(1)
    with pytest.raises(OutOfTime):
        Countdown().look(0.0)


def test_who_takes_over_after_the_end_is_stopped_at_once(in_job):
    in_job(4)
    countdown, stopped = Countdown(lambda: None), []
    countdown.look(0.0)
    assert countdown.of(lambda: stopped.append(1), ()).ended
    assert stopped == [1]


# --- signals -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("number", deadline.SIGNALS)
def test_a_signal_raises_where_no_checkpoint_is_kept(in_job, number):
    in_job()
    with pytest.raises(OutOfTime, match=f"{number.name} has announced"), deadline.heeded():
        signal.raise_signal(number)
    assert signal.getsignal(number) is signal.SIG_DFL
    assert not deadline.announced


def test_a_signal_within_a_verb_raises_where_that_looks(in_job):
    in_job()
    with pytest.raises(OutOfTime), deadline.heeded(), signals.heard():  # noqa: PT012 (two lines)
        os.kill(os.getpid(), signal.SIGUSR1)
        reached = True
        signals.look()
        reached = False
    assert reached


def test_a_signal_while_a_checkpoint_is_kept_raises_nothing(in_job):
    in_job()
    with deadline.keeping():
        os.kill(os.getpid(), signal.SIGUSR1)
        with pytest.raises(OutOfTime):
            Countdown().look(0.0)


@pytest.mark.parametrize("handler", [lambda *_: None, signal.SIG_IGN])
def test_a_handler_of_the_user_stays(in_job, handler):
    in_job()
    before = signal.signal(signal.SIGUSR1, handler)
    try:
        with deadline.heeded():
            assert signal.getsignal(signal.SIGUSR1) is handler
            assert signal.getsignal(signal.SIGTERM) is not signal.SIG_DFL
    finally:
        signal.signal(signal.SIGUSR1, before)


def test_outside_a_job_signals_are_left_alone():
    with deadline.heeded():
        assert signal.getsignal(signal.SIGUSR1) is signal.SIG_DFL


def test_a_process_that_the_user_forks_answers_as_any(in_job):
    in_job()
    with deadline.heeded():
        read, write = os.pipe()
        if not (pid := os.fork()):
            os.write(write, b"!")
            time.sleep(30)
            os._exit(0)
        os.read(read, 1)
        os.close(read)
        os.close(write)
        os.kill(pid, signal.SIGTERM)
        assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == -signal.SIGTERM


def test_a_program_in_the_background_heeds_them_too():
    program = (
        "import os, signal\nfrom parcompute.machine import signals\nfrom parcompute.machine.batch import deadline\n"
        "with deadline.heeded():\n try:\n  with signals.heard():\n   os.kill(os.getpid(), signal.SIGTERM)\n"
        "   print('noted', flush=True)\n except deadline.OutOfTime as error:\n  print(error)"
    )
    told = subprocess.run(
        [sys.executable, "-c", program],
        env={**os.environ, "FLUX_JOB_ID": "f"},
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_IGN),  # as a shell does
        capture_output=True,
        text=True,
        check=True,
    )
    assert told.stdout.splitlines() == ["noted", "SIGTERM has announced the end of the job"]


@pytest.mark.parametrize(("restarts", "waits_s"), [("", 2.0), ("0", 2.0), ("1", 150.0)])
def test_a_requeued_job_waits_for_the_end_of_its_own_start_before(restarts, waits_s):
    assert deadline.patience_s(2.0, {"SLURM_RESTART_COUNT": restarts}) == waits_s
