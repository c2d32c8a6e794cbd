"""Programs whose workers run the caller's functions: wrapped, loaded again, with managers, in a removed folder."""

import os
import subprocess
import sys
import threading

import cloudpickle
import pytest

import parcompute as pc

METHODS = ("fork", "forkserver", "spawn")
MEDIA = {
    **{f"processes-{method}": f"start_method={method!r}" for method in METHODS},
    "auto": "backend='auto'",
    "joblib": "backend='joblib'",
    "pool-spawn": "backend='pool', start_method='spawn'",
}
# Those whose workers are new interpreters.
NEW = ("processes-forkserver", "processes-spawn", "joblib", "pool-spawn")


def ran(program, folder, *way, **variables):
    """Run a program with a guard of its own in another folder; return what it printed, on both streams."""
    (folder / "program.py").write_text(program)
    command = [sys.executable, "-W", "error", *(way or ("program.py",))]
    environ = {**os.environ, **variables}
    done = subprocess.run(command, cwd=folder, env=environ, capture_output=True, text=True, timeout=100)
    return done.returncode, done.stdout, done.stderr


WRAPPED = """
import functools, sys
import parcompute as pc

@functools.lru_cache(maxsize=7)
def fibonacci(n):
    return n if n < 2 else fibonacci(n - 1) + fibonacci(n - 2)

@functools.singledispatch
def flat(x):
    return [x]

@flat.register(list)
def _(x):
    return [y for part in x for y in flat(part)]

class Model:
    @functools.cached_property
    def weights(self):
        return [1.0, 2.0]

    @functools.singledispatchmethod
    def of(self, x):
        return self.weights

if __name__ == "__main__":
    with pc.Executor(2, {options}) as ex:
        print(list(ex.map(fibonacci, range(5))), ex.submit(flat, [1, [2]]).result())
        print(ex.reduce_blocks(lambda block: fibonacci(block.index + 3), n_items=3, block_items=1))
        model = ex.submit(Model).result()
        print(type(model) is Model, ex.submit(model.of, 1).result(), ex.submit(lambda: fibonacci).result()(20))
"""


@pytest.mark.parametrize("name", MEDIA)
def test_functions_of_a_script_travel_though_functools_has_wrapped_them(name, tmp_path):
    printed = "[0, 1, 1, 2, 3] [1, 2]\n10\nTrue [1.0, 2.0] 6765\n"
    way = ("-m", "program") if name == "processes-forkserver" else ()
    assert ran(WRAPPED.format(options=MEDIA[name]), tmp_path, *way) == (0, printed, "")


AGAIN = """
import importlib, os, sys
import numpy as np, parcompute as pc
from parcompute.jobs import modules

os.makedirs("elsewhere/pkg", exist_ok=True)  # workers of a pool run this again
sys.path.insert(0, os.path.abspath("elsewhere"))
sys.dont_write_bytecode = True

def write(version):
    modules._looked_s = 0  # its file has just been looked at: time passes between two edits
    with open("elsewhere/pkg/mod.py", "w") as file:
        file.write(f"VERSION = {{version}}" + TEXT + "#" * version)

TEXT = '''
class Of:
    def __init__(self):
        self.version = VERSION
def call(_=None):
    return VERSION
def rows(x):
    return x * 0 + VERSION
'''

def seen(ex):
    return sorted({{
        ex.submit(mod.call).result(), ex.submit(lambda: mod.call()).result(), ex.submit(mod.Of).result().version,
        *ex.map(mod.call, range(3)), *ex.map_blocks(mod.rows, np.arange(4.0), block_items=1).tolist(),
        ex.reduce_blocks(lambda block: mod.call(), n_items=4, block_items=1) // 4,
    }})

def main():
    global mod
    with pc.Executor(2, {options}) as ex:
        write(1)
        mod = importlib.import_module("pkg.mod")
        print(seen(ex))
        write(2)
        print("edited", seen(ex))
        importlib.reload(mod)
        print("reloaded", seen(ex), seen(ex))
        write(3)
        {replace}
        print("replaced", seen(ex))
        importlib.reload(mod)
        print("reloaded", seen(ex))
        write(4)
        del sys.modules["pkg.mod"]
        mod = importlib.import_module("pkg.mod")
        print("imported anew", seen(ex))
        with open("elsewhere/pkg/mod.py", "w") as file:
            file.write("def call(:")
        try:
            importlib.reload(mod)
        except SyntaxError:
            print("broken", seen(ex))

if __name__ == "__main__":
    main()
"""


@pytest.mark.parametrize("name", [name for name in MEDIA if name != "auto"])
def test_workers_of_every_age_run_a_module_as_the_caller_has_loaded_it_last(name, tmp_path):
    replace = "os.kill(ex.worker_pids[0], 9)" if name.startswith("processes") else "pass"
    code, out, err = ran(AGAIN.format(options=MEDIA[name], replace=replace), tmp_path)
    assert (code, err) == (0, "")
    assert out.splitlines() == [
        "[1]",
        "edited [1]",
        "reloaded [2] [2]",
        "replaced [2]",
        "reloaded [3]",
        "imported anew [4]",
        "broken [4]",
    ]


MANAGED = """
import multiprocessing
from multiprocessing.managers import SyncManager
import parcompute as pc

def work(lock, counts, results, _=None):
    with lock:
        counts["n"] = counts.get("n", 0) + 1
        counts["inner"].append(1)
    results.put(counts["n"])
    return results

def main():
    multiprocessing.current_process().authkey = b"not the one that was drawn"
    with pc.Executor(2, {options}) as ex, multiprocessing.Manager() as manager, SyncManager(authkey=b"other") as other:
        lock, counts, results = manager.Lock(), manager.dict(), other.Queue()
        counts["inner"] = manager.list()
        back = ex.submit(work, lock, counts, results).result()
        ex.reduce_blocks(lambda block: len([work(lock, counts, results)]), n_items=3, block_items=1)
        print(counts["n"], len(counts["inner"]), back.qsize())

if __name__ == "__main__":
    main()
"""


@pytest.mark.parametrize("name", NEW)
def test_managers_let_workers_in(name, tmp_path):
    assert ran(MANAGED.format(options=MEDIA[name]), tmp_path) == (0, "4 4 4\n", "")


REMOVED = """
import os, signal, sys
import parcompute as pc
from parcompute.machine import revision

def removed():
    os.mkdir("gone")
    os.chdir("gone")
    os.rmdir("../gone")

def where(_):
    return os.stat(".").st_ino

def main():
    code = revision.Code.read(os.path.dirname(pc.__file__))
    removed()
    with pc.Executor(2, {options}) as ex:
        print({{*ex.map(where, range(4))}} == {{where(0)}})
        os.kill(ex.worker_pids[0], signal.SIGKILL)
        while True:
            try:
                print({{*ex.map(where, range(4))}} == {{where(0)}})
                break
            except pc.WorkerLost:  # the engines of others give up what they had
                pass
    print(revision.Code.read(os.path.dirname(pc.__file__)) == code)

if __name__ == "__main__":
    main()
"""


@pytest.mark.parametrize("name", MEDIA)
def test_workers_start_and_are_replaced_in_a_folder_that_was_removed(name, tmp_path):
    assert ran(REMOVED.format(options=MEDIA[name]), tmp_path) == (0, "True\n" * 3, "")


def test_the_command_runs_in_a_folder_that_was_removed(tmp_path):
    program = "import os, sys; os.mkdir('gone'); os.chdir('gone'); os.rmdir('../gone')"
    program += "; os.execv(sys.executable, [sys.executable, *sys.argv[1:]])"
    code, out, err = ran("", tmp_path, "-c", program, "-m", "parcompute", "machine")
    assert (code, err) == (0, "")
    assert "usable CPUs" in out


HASHES = """
import os
import parcompute as pc

def known(_):
    return hash("alpha"), os.environ.get("PYTHONHASHSEED")

def main():
    found = set()
    for options in ({options}):
        with pc.Executor(2, **options) as ex:
            ex.wait_until_ready()
            found |= {{*ex.map(known, range(4), chunksize=1)}}
            found |= {{known(0)}} if "PYTHONHASHSEED" in os.environ else set()
    print(len(found), {{seed for _, seed in found}} == {{os.environ.get("PYTHONHASHSEED")}})
    with pc.Executor(1, start_method="fork") as ex:
        print(ex.submit(known, 0).result() == known(0))

if __name__ == "__main__":
    main()
"""


@pytest.mark.parametrize(
    ("variables", "names"), [({}, NEW), ({"PYTHONHASHSEED": "5"}, NEW[:2])], ids=["drawn", "chosen"]
)
def test_all_new_interpreters_of_a_program_hash_text_alike_and_none_shows_it(variables, names, tmp_path, monkeypatch):
    monkeypatch.delenv("PYTHONHASHSEED", raising=False)
    options = ", ".join(f"dict({MEDIA[name]})" for name in names)
    assert ran(HASHES.format(options=options), tmp_path, **variables) == (0, "1 True\nTrue\n", "")


def test_a_worker_is_forked_while_another_thread_pickles_a_class():
    """The lock that cloudpickle holds for a moment would be held in the worker for ever."""
    held, go_on = threading.Event(), threading.Event()

    class Made:
        answer = 42

    def hold():
        with cloudpickle.cloudpickle._DYNAMIC_CLASS_TRACKER_LOCK:
            held.set()
            go_on.wait()

    thread = threading.Thread(target=hold)
    thread.start()
    assert held.wait(30)
    with pc.Executor(1, start_method="fork") as executor:
        executor.wait_until_ready()
        go_on.set()
        thread.join()
        future = executor.submit(lambda: Made().answer)
        try:
            assert future.result(timeout=30) == 42
        except TimeoutError:
            executor.kill_workers()  # so that this test ends
            raise
