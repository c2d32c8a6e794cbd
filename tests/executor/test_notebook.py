"""In a notebook a job shows a bar, and can be interrupted."""

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import nbformat
import pytest

KERNEL = Path(__file__).with_name("kernel.py")

SETUP = """
import parcompute as pc
from parcompute.executor import progress
progress.BRIEF_S = 0.0
def kernel(block, wait=False):
    if block.index == 0 and wait:
        print("now", flush=True)
        __import__("time").sleep(60)
    return block.index
"""


def run(*cells):
    """Return what cells of a notebook give; those that begin with "interrupt" are interrupted."""
    told = [[cell, cell.startswith("# interrupt")] for cell in (SETUP, *cells)]
    # A kernel that finds itself tested does not show what its processes print.
    environment = {name: value for name, value in os.environ.items() if name != "PYTEST_CURRENT_TEST"}
    command = [sys.executable, KERNEL, json.dumps(told)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=240, env=environment)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout.splitlines()[-1])[1:]  # what workers print stands above, too


@pytest.mark.slow
def test_a_cell_has_one_output_with_its_bars_however_many_jobs_it_has():
    many = "with pc.Executor(backend='serial', progress=True) as executor:\n    for _ in range(50):\n        %s"
    job = "executor.reduce_blocks(lambda block: 1, n_items=8, block_items=1)"
    failing = "executor.reduce_blocks(lambda block: 1 // block.index, n_items=8, block_items=1)"
    first, second, failed = run(many % job, many % job, many % failing)
    for cell in (first, second):
        [(kind, shown)] = cell
        assert kind == "display_data"
        assert shown["text/plain"].startswith("<lambda>: 8 of 8 blocks in ")
        assert "<code>&lt;lambda&gt;</code> <progress" in shown["text/html"]
    (_, shown), (kind, name) = failed
    assert shown["text/plain"].startswith("<lambda>: stopped after 0 of 8 blocks in ")
    assert (kind, name) == ("error", "KernelError")


@pytest.mark.slow
def test_jobs_that_run_at_once_have_one_output():
    [[(_, shown)]] = run(
        "def outer(block):\n"
        "    with pc.Executor(backend='serial', progress=True) as inner:\n"
        "        return inner.reduce_blocks(kernel, n_items=4, block_items=1)\n"
        "with pc.Executor(2, backend='threads', progress=True) as executor:\n"
        "    executor.reduce_blocks(outer, n_items=8, block_items=1)\n"
    )
    assert shown["text/plain"].startswith("outer: 8 of 8 blocks in ")
    assert shown["text/html"].count("<progress") == 1


@pytest.mark.slow
def test_an_interrupted_cell_ends_and_the_executor_goes_on():
    methods = ("fork", "forkserver", "spawn")
    cells = []
    for method in methods:
        cells += [
            f"# interrupt\nexecutor = pc.Executor(2, start_method={method!r}, progress=True)\n"
            "executor.reduce_blocks(kernel, n_items=8, block_items=1, kwargs={'wait': True})",
            "print(executor.reduce_blocks(kernel, n_items=8, block_items=1))",
            "executor.shutdown()",
        ]
    found = run(*cells)
    for interrupted, again, shut in zip(found[::3], found[1::3], found[2::3], strict=True):
        assert interrupted[-1] == ["error", "KeyboardInterrupt"]
        assert "28" in "".join(text for kind, text in again if kind == "stdout")
        assert [kind for kind, _ in again if kind == "error"] == shut == []


@pytest.mark.slow
def test_the_cells_of_the_guide_run_and_show_something(tmp_path):
    guide = (Path(__file__).parents[2] / "docs" / "howto" / "notebooks.md").read_text(encoding="utf-8")
    cells = [block.splitlines() for block in re.findall(r"```python\n(.*?)```", guide, flags=re.DOTALL)]
    notebook = nbformat.v4.new_notebook()
    notebook.cells = [nbformat.v4.new_code_cell(cell) for cell in ("\n".join(cells[0]), *cells[1])]
    nbformat.write(notebook, tmp_path / "guide.ipynb")
    program = "from nbclient.cli import main; main()"
    command = [sys.executable, "-c", program, "--inplace", tmp_path / "guide.ipynb"]
    subprocess.run(command, check=True, capture_output=True, timeout=240)
    _, *shown = nbformat.read(tmp_path / "guide.ipynb", 4).cells
    htmls = ["".join(output.data["text/html"] for output in cell.outputs) for cell in shown]
    assert [html.count("<table>") for html in htmls] == [1, 1, 0, 1]
    assert "<svg" in htmls[2]
