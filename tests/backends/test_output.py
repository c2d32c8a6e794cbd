"""What worker processes print is brought into the caller's streams, in whole lines, if that is asked for."""

import contextlib
import ctypes
import io
import os
import signal
import subprocess
import sys
import threading

import numpy as np
import pytest

import parcompute as pc


@contextlib.contextmanager
def printing(**options):
    """Yield an executor and what the two streams get meanwhile."""
    with (
        contextlib.redirect_stdout(io.StringIO()) as out,
        contextlib.redirect_stderr(io.StringIO()) as err,
        pc.Executor(worker_output="here", **options) as executor,
    ):
        yield executor, out, err


def talk():
    print("a line")
    ctypes.CDLL(None).puts(b"of C")
    subprocess.run(["echo", "of a child"], check=True)
    print("trouble", file=sys.stderr)
    print("the rest", end="")


@pytest.mark.parametrize("backend", ["processes", "auto"])
def test_a_call_has_printed_here_when_its_future_is_done(start_method, backend):
    with printing(workers=1, backend=backend, start_method=start_method) as (executor, out, err):
        for n in range(1, 3):
            executor.submit(talk).result()
            assert out.getvalue() == "a line\nof C\nof a child\nthe rest" * n
            assert err.getvalue() == "trouble\n" * n
    assert out.getvalue() == "a line\nof C\nof a child\nthe rest" * 2


def test_all_of_a_job_has_printed_when_its_verb_returns():
    def kernel(rows, block):
        print(*[block.index] * 200)
        return rows

    with printing(workers=2) as (executor, out, _):
        for _ in range(2):
            executor.map_blocks(kernel, np.zeros(60), block_items=1)
            lines = out.getvalue().splitlines()
            assert sorted(lines) == sorted(" ".join([str(n)] * 200) for n in range(60))
            out.truncate(0)
            out.seek(0)


def test_a_stream_that_is_set_later_gets_what_is_printed_later():
    with printing(workers=1) as (executor, out, _):
        executor.submit(print, "one").result()
        with contextlib.redirect_stdout(io.StringIO()) as later:
            executor.submit(print, "two").result()
    assert (out.getvalue(), later.getvalue()) == ("one\n", "two\n")


def test_a_flood_arrives_whole():
    with printing(workers=1) as (executor, out, _):
        executor.submit(lambda: print("\n".join(map(str, range(200_000))))).result()
    assert out.getvalue() == "".join(f"{n}\n" for n in range(200_000))


def test_a_killed_worker_loses_no_whole_line():
    def die():
        print("a line")
        print("half a", end="", flush=True)
        os.kill(os.getpid(), signal.SIGKILL)

    with printing(workers=1, retries=1) as (executor, out, _):
        with pytest.raises(pc.WorkerLost):
            executor.submit(die).result()
        executor.submit(print, "another").result()
    assert out.getvalue() == "a line\nhalf a\nanother\n"


def test_what_is_printed_at_the_end_arrives():
    def register():
        import atexit

        atexit.register(print, "leaving")

    with printing(workers=1) as (executor, out, _):
        executor.submit(register).result()
    assert out.getvalue() == "leaving\n"


def test_a_worker_that_prints_while_nobody_looks_stops_nothing():
    def print_on():
        threading.Thread(target=print, args=("x\n" * 2**17,), daemon=True).start()

    with printing(workers=1) as (executor, _, _):
        executor.submit(print_on).result()
        assert executor.submit(abs, -1).result() == 1


def test_a_closed_stream_of_the_caller_costs_no_call():
    with printing(workers=1) as (executor, out, _):
        out.close()
        executor.submit(print, "unheard").result()


@pytest.mark.parametrize("backend", ["pool", "joblib"])
def test_engines_of_others_refuse(backend):
    with pytest.raises(ValueError, match="worker_output='here' needs backend 'processes' or 'auto'"):
        pc.Executor(1, backend=backend, worker_output="here")


def test_an_unknown_way_is_refused():
    with pytest.raises(ValueError, match="worker_output='there' is unknown; pass 'inherited' or 'here'"):
        pc.Executor(1, worker_output="there")
