"""On simulated machines that drift, stutter and are stolen from, intervals of speed-ups hold as often as they say."""

import sys
from pathlib import Path

import pytest

FOLDER = str(Path(__file__).resolve().parents[1] / "benchmarks")
sys.path.insert(0, FOLDER)
import noisy  # noqa: E402

sys.path.remove(FOLDER)

OURS, BEFORE = "paired, marked left out if six remain", "unpaired, marked left out"
LEFT_OUT = "paired, marked left out"


@pytest.mark.parametrize("name", noisy.MACHINES)
def test_intervals_within_rounds_cover_the_truth_on_each_machine(name):
    found = noisy.outcomes(noisy.MACHINES[name], n_rounds=10, n=200, seed=1, asked=[OURS])[OURS]
    assert found.lacking == 0
    assert 0.92 <= found.coverage <= 0.98


def test_on_a_machine_that_drifts_they_are_less_than_half_as_wide_as_without_rounds():
    found = noisy.outcomes(noisy.MACHINES["drifts"], n_rounds=10, n=50, seed=1, asked=[OURS, BEFORE])
    assert found[OURS].width < 0.5 * found[BEFORE].width


def test_few_rounds_have_an_interval_also_where_most_were_stolen_from():
    found = noisy.outcomes(noisy.MACHINES["stolen, 40 % of the time"], n_rounds=8, n=50, seed=1, asked=[OURS, LEFT_OUT])
    assert found[LEFT_OUT].lacking > 0.5
    assert found[OURS].lacking == 0


def test_a_median_of_all_runs_misses_the_quiet_time_where_that_of_unmarked_ones_holds_it():
    found = noisy.outcomes(
        noisy.MACHINES["stolen, 40 % of the time"], n_rounds=20, n=100, seed=1, asked=list(noisy.TIMES)
    )
    assert found["median, all"].coverage < 0.8 < 0.92 < found["median, marked left out"].coverage


def test_the_table_has_a_row_per_machine_and_number_of_rounds(monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["noisy.py", "--sessions", "2", "--rounds", "6", "7"])
    noisy.main()
    heading, rule, *rows = capsys.readouterr().out.splitlines()
    assert len(rows) == 2 * len(noisy.MACHINES)
    assert {row.count("|") for row in (heading, rule, *rows)} == {3 + len(noisy.WAYS) + len(noisy.TIMES)}
