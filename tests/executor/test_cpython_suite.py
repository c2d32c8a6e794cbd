"""CPython's own tests of `concurrent.futures` pass with parcompute's executors, but for what differs on purpose."""

import sys
import unittest
from pathlib import Path

import pytest

sys.path.append(str(Path(__file__).parent))  # workers and programs that the tests start import it, too

import cpython_suite

STARTS_ALL = "all workers start with the executor, not one by one with the calls"
INTERNALS = "it looks at, or replaces, parts of the standard library's executors that others do not have"
WORDS = "the message is in other words"
BEGUN = "what no worker has begun is cancelled; the standard library has handed out some of it before"
UNBROKEN = "what cannot be rebuilt costs its call only, which raises what rebuilding has raised"

# What differs on purpose (docs/compare/drop-in.md), by name of the test, and its class where not all of them differ.
DIFFERS = {
    "test_killed_child": "a killed worker costs the call that it ran, which is tried again",
    "test_broken_process_pool_traceback": "a killed worker costs the call that it ran, which is tried again",
    "test_map_buffersize_type_validation": WORDS,
    "test_map_buffersize_value_validation": WORDS,
    "test_max_workers_negative": WORDS,
    "test_submit_after_interpreter_shutdown": WORDS,
    "test_default_workers": "the default is one thread per usable CPU",
    "test_idle_thread_reuse": STARTS_ALL,
    "test_idle_process_reuse_one": STARTS_ALL,
    "test_idle_process_reuse_multiple": STARTS_ALL,
    "test_threads_terminate": STARTS_ALL,
    "test_processes_terminate": STARTS_ALL,
    "test_cancel_futures": BEGUN,
    "test_cancel_futures_wait_false": BEGUN,
    "test_thread_names_assigned": "threads are named parcompute_0, parcompute_1, …",
    "test_thread_names_default": "threads are named parcompute_0, parcompute_1, …",
    "test_max_tasks_per_child_defaults_to_spawn_context": "the default is forkserver",
    "test_traceback": "the cause that carries the remote traceback has a class of its own",
    "test_error_at_task_unpickle": UNBROKEN,
    "test_exit_at_task_unpickle": UNBROKEN,
    "test_error_during_result_unpickle_in_result_handler": UNBROKEN,
    "test_exit_during_result_unpickle_in_result_handler": UNBROKEN,
    "test_python_finalization_error": INTERNALS,
    "test_shutdown_deadlock_pickle": INTERNALS,
    "test_gh105829_should_not_deadlock_if_wakeup_pipe_full": INTERNALS,
    "test_failed_worker_replacement_breaks_pool": INTERNALS,
    "test_force_shutdown_during_max_tasks_worker_exit": INTERNALS,
    "test_force_shutdown_workers": INTERNALS,
    "test_force_shutdown_workers_invalid_op": INTERNALS,
    "test_force_shutdown_workers_stops_pool": INTERNALS,
    "test_gc_during_max_tasks_worker_exit_gh152967": INTERNALS,
    "test_kill_workers": INTERNALS,
    "test_shutdown_gh_132969_case_1": INTERNALS,
    "test_shutdown_gh_132969_case_2": INTERNALS,
    "test_shutdown_no_wait_max_tasks_gh119592": INTERNALS,
    "test_terminate_workers": INTERNALS,
    "ProcessPool.test_del_shutdown": INTERNALS,
    "ProcessPool.test_shutdown_no_wait": INTERNALS,
}

# Of those that do not sleep for a second or more, threads and one way to start processes.
QUICK = ("ThreadPool", "ProcessPoolForkserver")
SLEEP = {
    "test_free_reference", "test_free_reference_yielded_future", "test_hang_global_shutdown_lock", "test_map_timeout",
    "test_20369", "test_timeout", "test_zero_timeout", "test_duplicate_futures", "test_first_completed",
    "test_first_completed_some_already_completed", "test_first_exception", "test_first_exception_one_already_failed",
    "test_first_exception_some_already_complete", "test_interpreter_shutdown", "test_hang_issue12364",
    "test_hang_gh83386",
}  # fmt: skip


def why_not(cls, name):
    kind = "ProcessPool" if "ProcessPool" in cls.__name__ else "ThreadPool"
    return DIFFERS.get(name) or DIFFERS.get(f"{kind}.{name}")


CASES = [case for case in cpython_suite.cases() if not why_not(*case)]


def marked(cls, name):
    quick = cls.__name__.startswith(QUICK) and name not in SLEEP
    return pytest.param(cls, name, id=f"{cls.__name__}.{name}", marks=() if quick else pytest.mark.stress)


@pytest.mark.skipif(not CASES, reason="this Python came without test_concurrent_futures (libpython3.x-testsuite)")
@pytest.mark.filterwarnings("ignore:This process .* is multi-threaded:DeprecationWarning")
@pytest.mark.parametrize(("cls", "name"), [marked(*case) for case in CASES] or [(None, "")])
def test_of_cpython(cls, name):
    result = unittest.TestResult()
    cls(name).run(result)
    assert [told for _, told in result.failures + result.errors] == []
    if result.skipped:
        pytest.skip(result.skipped[0][1])


@pytest.mark.skipif(not CASES, reason="this Python came without test_concurrent_futures (libpython3.x-testsuite)")
def test_the_suite_was_found_whole():
    classes = {cls.__name__ for cls, _ in CASES}
    for kind in ("Wait", "AsCompleted", "ProcessPoolExecutor", "ProcessPoolShutdown", "ExecutorDeadlock"):
        for method in ("Fork", "Forkserver", "Spawn"):
            assert f"ProcessPool{method}{kind}Test" in classes
    assert len(CASES) > 100
