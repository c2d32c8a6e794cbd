"""`progress=True` shows a bar below what a terminal prints, a line now and then in a log, and disturbs nobody."""

import contextlib
import io
import itertools
import os
import re
import signal
import subprocess
import sys
import threading
from pathlib import Path

import pytest
from rich.console import Console
from rich.progress import track
from tqdm import tqdm

import parcompute as pc
from parcompute.executor import bars, progress
from parcompute.executor.bars import Row

sys.path.insert(0, str(Path(__file__).parent))
import screens


@pytest.fixture(autouse=True)
def at_once(monkeypatch):
    """Show jobs from their first look on."""
    monkeypatch.setattr(progress, "BRIEF_S", 0.0)
    monkeypatch.setenv("TERM", "xterm")


def words(lines):
    """Return lines without the times in them."""
    return [line.partition(" in ")[0] for line in lines]


def waiting(terminal, *, until="{index} of 4 blocks", then=lambda block: None):
    """Return a kernel whose blocks end when the terminal shows those before."""

    def kernel(block):
        terminal.wait_for(until.format(index=block.index))
        then(block)
        return 1

    return kernel


def test_a_bar_stands_at_the_bottom_and_a_line_is_left_at_the_end():
    pictures = []
    with screens.Terminal() as terminal, pc.Executor(backend="serial", progress=True) as executor:
        kernel = waiting(terminal, then=lambda block: pictures.append(terminal.picture()))
        assert executor.reduce_blocks(kernel, n_items=4, block_items=1) == 4
        print("next")
    assert pictures[2][:-1] == [""] * 9
    assert pictures[2][-1].startswith(f"{'█' * 20}{'░' * 20}  kernel: 2 of 4 blocks, 50 %")
    assert words(terminal.lines()) == ["kernel: 4 of 4 blocks", "next"]


def test_lines_that_are_printed_meanwhile_stay_whole():
    with screens.Terminal() as terminal, pc.Executor(backend="serial", progress=True) as executor:
        kernel = waiting(terminal, then=lambda block: [print(block.index, "text" * 10) for _ in range(7)])
        executor.reduce_blocks(kernel, n_items=4, block_items=1)
    expected = [f"{index} {'text' * 10}" for index in range(4) for _ in range(7)]
    assert words(terminal.lines()) == [*expected, "kernel: 4 of 4 blocks"]


WORKERS_PRINT = """
import parcompute as pc
from parcompute.executor import progress
progress.BRIEF_S = 0.0
def kernel(block):
    print("worker", block.index, "text" * 10)
    return sum(range(200_000))
with pc.Executor(2, progress=True, backend="{backend}", start_method="fork") as executor:
    executor.reduce_blocks(kernel, n_items=40, block_items=1)
print("next")
"""


@pytest.mark.parametrize("backend", ["processes", "pool"])
def test_lines_that_worker_processes_print_stay_whole(tmp_path, backend):
    terminal = screens.Terminal()
    script = tmp_path / "script.py"
    script.write_text(WORKERS_PRINT.format(backend=backend))
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONUNBUFFERED"}
    subprocess.run([sys.executable, script], stdout=terminal.fd, stderr=terminal.fd, env=environment, check=True)
    terminal.close()
    *printed, last, over = words(terminal.lines())
    assert sorted(printed) == sorted(f"worker {index} {'text' * 10}" for index in range(40))
    assert (last, over) == ("kernel: 40 of 40 blocks", "next")


def test_the_terminal_is_as_before_after_ctrl_c_and_after_an_error():
    def interrupt(block):
        if block.index == 2:
            signal.raise_signal(signal.SIGINT)

    def fail(block):
        return 1 // (2 - block.index)

    with screens.Terminal() as terminal, pc.Executor(backend="serial", progress=True) as executor:
        with pytest.raises(KeyboardInterrupt):
            executor.reduce_blocks(waiting(terminal, then=interrupt), n_items=4, block_items=1)
        with pytest.raises(pc.KernelError):
            executor.reduce_blocks(waiting(terminal, then=fail), n_items=4, block_items=1)
        print("next")
    assert words(terminal.lines()) == ["kernel: stopped after 2 of 4 blocks"] * 2 + ["next"]
    assert terminal.written.rfind("\x1b[r") > terminal.written.rfind("\x1b[1;9r") > 0


def test_inner_jobs_stand_below_the_outer_one_and_leave_no_lines():
    pictures = []

    def outer(block):
        kernel = waiting(terminal, then=lambda block: pictures.append(terminal.picture()))
        with pc.Executor(backend="serial", progress=True) as inner:
            return inner.reduce_blocks(kernel, n_items=4, block_items=1)

    with screens.Terminal() as terminal, pc.Executor(backend="serial", progress=True) as executor:
        assert executor.reduce_blocks(outer, n_items=2, block_items=1) == 8
    assert [line.split()[1] for line in pictures[3][-2:]] == ["outer:", "kernel:"]
    assert words(terminal.lines()) == ["outer: 2 of 2 blocks"]


def test_executors_of_two_threads_share_the_terminal():
    both = threading.Barrier(2, timeout=60)

    def kernel(block):
        both.wait()
        terminal.wait_for("\x1b[9;1H")  # the second line from below, which two bars need
        return 1

    def run():
        with pc.Executor(backend="serial", progress=True) as executor:
            executor.reduce_blocks(kernel, n_items=1)

    with screens.Terminal() as terminal:
        threads = [threading.Thread(target=run) for _ in range(2)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    assert set(words(terminal.lines())) == {"kernel: 1 of 1 blocks"}


def test_bars_of_tqdm_and_of_rich_around_a_job_stay_whole(monkeypatch):
    monkeypatch.setattr(tqdm, "monitor_interval", 0)  # else it keeps a thread

    def loops():
        yield tqdm(range(3), ascii=True, leave=False, mininterval=0, file=sys.stderr)
        yield track(range(3), console=Console(file=sys.stdout, force_terminal=True, width=80, color_system=None))

    with screens.Terminal(height=20) as terminal, pc.Executor(backend="serial", progress=True) as executor:
        for loop in loops():
            for _ in loop:
                executor.reduce_blocks(waiting(terminal, until="of"), n_items=4, block_items=1)
            print("next")
    lines = words(terminal.lines())
    assert lines[:4] == lines[4:7] + lines[8:] == ["kernel: 4 of 4 blocks"] * 3 + ["next"]
    assert "100%" in lines[7]


def test_a_fork_in_the_middle_shows_nothing():
    def in_the_child(block):
        return 1

    def fork(block):
        if block.index == 1:
            if not (child := os.fork()):
                with pc.Executor(backend="serial", progress=True) as inner:
                    inner.reduce_blocks(in_the_child, n_items=1)
                os._exit(0)
            os.waitpid(child, 0)

    with screens.Terminal() as terminal, pc.Executor(backend="serial", progress=True) as executor:
        assert executor.reduce_blocks(waiting(terminal, then=fork), n_items=4, block_items=1) == 4
    assert words(terminal.lines()) == ["kernel: 4 of 4 blocks"]


@pytest.mark.parametrize("backend", ["processes", "pool", pytest.param("joblib", marks=pytest.mark.slow)])
def test_workers_show_nothing(backend):
    with pc.Executor(1, backend=backend) as executor:
        assert executor.submit(progress._is_worker).result()
    assert not progress._is_worker()


@pytest.mark.parametrize("width", [1, 12, 40])
def test_a_narrow_terminal_has_the_words(width):
    terminal = screens.Terminal(width=width)
    place = bars.Terminal(terminal.fd, "utf-8")
    place.show([Row("kernel", 8)])
    place.show([])
    terminal.close()
    assert "0 of 8 blocks"[: width - 1] in terminal.written
    assert terminal.lines() == []


def test_more_jobs_than_a_terminal_has_room_for_leave_half_of_it_to_the_text():
    terminal = screens.Terminal(height=6)
    place = bars.Terminal(terminal.fd, "utf-8")
    for n in (1, 40, 2, 0):
        place.show([Row(f"job{i}", 8) for i in range(n)])
    terminal.close()
    assert terminal.lines() == []
    assert re.findall(r"\x1b\[([\d;]*)r", terminal.written) == ["1;5", "1;3", "1;4", ""]


def test_a_terminal_of_another_size_gets_the_bar_at_its_end():
    terminal = screens.Terminal(height=10)
    place = bars.Terminal(terminal.fd, "ascii")
    place.show([Row("kernel", 8)])
    terminal.resize(20, 100)
    place.show([Row("kernel", 8)])
    place.show([])
    terminal.close()
    assert re.findall(r"\x1b\[([\d;]*)r", terminal.written) == ["1;9", "", "1;19", ""]
    assert f"\x1b[20;1H\x1b[2K{'-' * 40}  kernel: 0 of 8 blocks" in terminal.written


def test_a_program_that_exits_in_the_middle_of_a_job_gives_the_terminal_back():
    terminal = screens.Terminal()
    program = "from parcompute.executor.bars import *; Terminal(1, 'utf-8').show([Row('kernel', 8)])"
    subprocess.run([sys.executable, "-c", program], stdout=terminal.fd, check=True)
    terminal.close()
    assert terminal.lines() == []
    assert re.findall(r"\x1b\[([\d;]*)r", terminal.written) == ["1;9", ""]


def test_a_name_is_one_short_line():
    assert Row("kernel\n\x1b[2J", 8).name == "kernel  [2J"
    assert len(Row("k" * 100, 8).name) == 40


@pytest.mark.parametrize("term", ["dumb", "unknown", None])
def test_a_terminal_that_can_nothing_gets_lines(monkeypatch, term):
    monkeypatch.delenv("TERM") if term is None else monkeypatch.setenv("TERM", term)
    with screens.Terminal() as terminal, pc.Executor(backend="serial", progress=True) as executor:
        executor.reduce_blocks(lambda block: 1, n_items=4, block_items=1)
    assert words(terminal.lines()) == ["<lambda>: 4 of 4 blocks"]
    assert "\x1b" not in terminal.written


# --- a log -------------------------------------------------------------------------------------------------


def log():
    """Have standard error be a file for a while."""
    return contextlib.redirect_stderr(io.StringIO())


@pytest.mark.parametrize("n_items", [0, 1, 4])
def test_a_log_ends_with_a_line(n_items):
    with log() as written, pc.Executor(backend="serial", progress=True) as executor:
        for _ in range(2):
            executor.reduce_blocks(lambda block: 1, n_items=n_items, block_items=1)
    n_blocks = max(1, n_items)  # an empty index space is an empty block
    assert words(written.getvalue().splitlines()) == [f"<lambda>: {n_blocks} of {n_blocks} blocks"] * 2


def test_a_hundred_brief_jobs_leave_a_line(monkeypatch):
    monkeypatch.setattr(progress, "BRIEF_S", 1000.0)
    monkeypatch.setattr(progress, "_last_end_s", float("-inf"))
    with log() as written, pc.Executor(backend="serial", progress=True) as executor:
        for _ in range(100):
            executor.reduce_blocks(len, range(4), block_items=1)
    assert written.getvalue().count("\n") == 1


@pytest.mark.parametrize("hours", [0.01, 1, 24 * 7])
def test_a_log_has_few_lines_however_long_a_job_takes(hours):
    row, told = Row("kernel", 10_000), []
    for step in range(10_000):
        row.n_done, row.took_s = step, hours * 0.36 * step
        if row.due():
            told.append(row.took_s)
    assert told[0] < 10 + hours * 0.36 + 1e-9
    assert len(told) < 30
    assert all(later - earlier >= 10 for earlier, later in itertools.pairwise(told))


def test_failed_blocks_are_counted():
    with log() as written, pc.Executor(backend="serial", progress=True) as executor:
        kernel = lambda block: 1 // (block.index % 2)  # noqa: E731
        executor.reduce_blocks(kernel, n_items=4, block_items=1, on_error="keep")
        assert len(list(executor.iter_blocks(kernel, n_items=6, block_items=1, on_error="keep"))) == 3
    assert [line.rpartition(",")[2] for line in written.getvalue().splitlines()] == [" 2 failed", " 3 failed"]


def test_a_reduction_that_has_enough_says_after_how_many():
    with log() as written, pc.Executor(backend="serial", progress=True) as executor:
        executor.reduce_blocks(lambda block: 1, n_items=64, block_items=1, until=lambda total, n: n >= 8)
    assert written.getvalue().startswith("<lambda>: enough after 8 of 64 blocks in ")


def test_an_iterator_that_is_dropped_has_stopped():
    with log() as written, pc.Executor(backend="serial", progress=True) as executor:
        blocks = executor.iter_blocks(lambda block: 1, n_items=8, block_items=1)
        next(blocks)
        next(blocks)
        del blocks
    assert written.getvalue().startswith("<lambda>: stopped after 2 of 8 blocks in ")


def test_iterating_tells_a_function_how_far_it_is():
    told = []
    with pc.Executor(backend="serial", progress=lambda n_done, n_blocks: told.append((n_done, n_blocks))) as executor:
        for _ in executor.iter_blocks(lambda block: 1, n_items=8, block_items=1):
            pass
    assert told[-1] == (8, 8)


def test_what_a_checkpoint_had_does_not_count_for_the_time_that_is_left():
    row = Row("kernel", 100)
    row.look(90)
    assert row.words == "90 of 100 blocks, 90 %"
    row.began_s -= 5
    row.look(95)
    assert row.words == "95 of 100 blocks, 95 %, 5.0 s left"


@pytest.mark.parametrize("stream", ["none", "closed", "broken"])
def test_nobody_needs_to_see_it(stream):
    reads, writes = os.pipe()
    os.close(reads)
    seen = open(writes, "w")  # noqa: SIM115 (it is closed in two ways)
    if stream == "closed":
        seen.close()
    here = contextlib.redirect_stderr(None if stream == "none" else seen)
    with here, pc.Executor(backend="serial", progress=True) as executor:
        assert executor.reduce_blocks(lambda block: 1, n_items=4, block_items=1) == 4
    with contextlib.suppress(BrokenPipeError):
        seen.close()
