"""A script without a main guard is told so, once, by the backend that needs one."""

import subprocess
import sys

import pytest

SCRIPT = """
import sys
import parcompute as pc
executor = pc.Executor(2, backend="pool", start_method=sys.argv[1])
print("begun", executor.submit(abs, -1).result() if sys.argv[2] == "call" else None)
print(executor.reduce_blocks(lambda: 1, n_items=3))
"""


@pytest.mark.parametrize("method", ["spawn", "forkserver"])
@pytest.mark.parametrize("first", ["call", "job"])
def test_a_pool_without_main_guard_says_so_in_one_line(tmp_path, method, first):
    (script := tmp_path / "script.py").write_text(SCRIPT)
    command = [sys.executable, script, method, first]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 1
    assert done.stdout == ("" if first == "call" else "begun None\n")
    assert done.stderr.count("Traceback") == 1
    assert 'if __name__ == "__main__"' in done.stderr.splitlines()[-1]
