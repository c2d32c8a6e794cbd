"""The table at the end of `make stress` says how many of each kind were killed, and what each failure was."""

from pathlib import Path
from types import SimpleNamespace

import pytest
from programs import seen_as


@pytest.fixture
def conftest(request):
    return request.config.pluginmanager.get_plugin(str(Path(__file__).parent.parent / "conftest.py"))


def failed(error, when="call"):
    return SimpleNamespace(when=when, excinfo=SimpleNamespace(value=error))


def test_a_failure_is_a_lost_run_unless_it_says_what_else_it_is(conftest):
    assert conftest.fault_of(failed(AssertionError())) == "lost runs"
    assert conftest.fault_of(failed(pytest.fail.Exception("Timeout (>600.0s) from pytest-timeout."))) == "hangs"
    assert conftest.fault_of(failed(pytest.fail.Exception("the test left behind"), "teardown")) == "leaks"
    with pytest.raises(ValueError, match="others") as caught, seen_as("leaks"), seen_as("wrong bits"):
        raise ValueError("others")
    assert conftest.fault_of(failed(caught.value)) == "wrong bits"


def test_kinds_are_summed_over_their_pieces_and_faults_are_counted(conftest):
    lines = []
    told = [["parents", 100, ""], ["parents", 50, "leaks"], ["groups", 70, ""], ["groups", 0, "hangs"]]
    reports = [SimpleNamespace(user_properties=[("kills", value)]) for value in told]
    stats = {"passed": reports[:3:2], "failed": reports[1::2], "warnings": [SimpleNamespace()]}
    reporter = SimpleNamespace(stats=stats, section=lines.append, line=lines.append)
    conftest.pytest_terminal_summary(reporter)
    assert lines[0] == "kills"
    assert lines[1].split() == ["kills", "hangs", "wrong", "bits", "leaks", "lost", "runs"]
    assert [line.split() for line in lines[2:]] == [
        ["groups", "70", "1", "0", "0", "0"],
        ["parents", "150", "0", "0", "1", "0"],
        ["all", "220", "1", "0", "1", "0"],
    ]
