"""What was registered in a worker runs when it ends, and nothing that was registered before it was forked."""

import atexit
import multiprocessing.util
import os
import subprocess
import sys
import tempfile
import weakref

import pytest

import parcompute as pc


def note(path, what):
    with open(path, "a") as file:
        file.write(f"{what} {os.getpid()}\n")


def register(path):
    atexit.register(note, path, "atexit")
    multiprocessing.util.Finalize(None, note, (path, "finalizer"), exitpriority=0)
    weakref.finalize(atexit, note, path, "weakref")
    return os.getpid(), tempfile.mkdtemp()


def test_what_was_registered_in_a_worker_runs_at_its_end(tmp_path, start_method):
    with pc.Executor(1, start_method=start_method) as executor:
        pid, folder = executor.submit(register, tmp_path / "notes").result()
    os.rmdir(folder)
    assert sorted((tmp_path / "notes").read_text().splitlines()) == [
        f"atexit {pid}",
        f"finalizer {pid}",
        f"weakref {pid}",
    ]


def test_what_the_parent_has_registered_does_not_run_in_a_forked_worker(tmp_path):
    program = f"""
import atexit, multiprocessing, multiprocessing.util, os, time, weakref
import parcompute as pc
from pathlib import Path
def note(what):
    with open({str(tmp_path / "notes")!r}, "a") as file:
        file.write(what + "\\n")
atexit.register(note, "atexit")
multiprocessing.util.Finalize(None, note, ("finalizer",), exitpriority=0)
weakref.finalize(atexit, note, "weakref")
if __name__ == "__main__":
    child = multiprocessing.get_context("fork").Process(target=time.sleep, args=(60,), daemon=True)
    child.start()
    with pc.Executor(1, start_method="fork") as executor:
        executor.submit(print, "unflushed", end="").result()
    assert child.is_alive() and not Path({str(tmp_path / "notes")!r}).exists()
    child.kill()
    child.join()
"""
    script = tmp_path / "script.py"
    script.write_text(program)
    done = subprocess.run([sys.executable, script], capture_output=True, text=True, timeout=60, check=False)
    assert (done.returncode, done.stdout, done.stderr) == (0, "unflushed", "")
    assert sorted((tmp_path / "notes").read_text().split()) == ["atexit", "finalizer", "weakref"]


@pytest.mark.skipif(os.name != "posix" or os.getuid() != 0, reason="only root can give its rights away")
@pytest.mark.parametrize("drop", ["seteuid", "setuid"])
@pytest.mark.parametrize("method", ["fork", "forkserver"])
@pytest.mark.parametrize("end", ["shutdown", "kill_workers"])
def test_workers_end_after_their_parent_has_given_its_rights_away(drop, method, end):
    program = f"""
import os, time
import parcompute as pc
executor = pc.Executor(2, start_method={method!r})
executor.wait_until_ready()
workers = executor.worker_pids
os.{drop.replace("uid", "gid")}(65534)
os.{drop}(65534)
executor.submit(time.sleep, 0.05)
assert executor.map_blocks(lambda rows: rows + 1, __import__("numpy").zeros(3)).tolist() == [1, 1, 1]
executor.{end}()
for pid in workers:
    assert not os.path.exists(f"/proc/{{pid}}"), pid
print("ended")
"""
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=60, check=False)
    assert (done.returncode, done.stdout, done.stderr) == (0, "ended\n", "")


@pytest.mark.skipif(os.name != "posix" or os.getuid() != 0, reason="only root can give its rights away")
def test_a_worker_that_is_forked_after_that_computes():
    program = """
import os
import parcompute as pc
with pc.Executor(1, start_method="fork") as executor:  # what it imports may be closed to another user
    executor.submit(os.getuid).result()
os.setgid(65534)
os.setuid(65534)
with pc.Executor(1, start_method="fork") as executor:
    print(executor.submit(os.getuid).result())
"""
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=60, check=False)
    assert (done.returncode, done.stdout, done.stderr) == (0, "65534\n", "")
