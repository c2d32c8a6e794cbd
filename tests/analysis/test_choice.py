"""Laws are compared on the same points, and points come from any table."""

import json
from pathlib import Path

import numpy as np
import pytest

from parcompute.analysis import laws, measurements
from parcompute.analysis.choice import compare_laws

DATA = Path(__file__).parents[1] / "data"
COUNTS = np.array([1, 2, 4, 8, 16, 32])


def test_the_law_that_made_the_points_is_preferred():
    rng = np.random.default_rng(1)
    N = np.tile(COUNTS, 4)
    for law, times in {
        "amdahl": 8 / laws.amdahl(N, 0.02),
        "usl": 8 / laws.usl(N, 0.02, 0.004),
        "saturation": 8 / laws.saturation(N, 1.0, 6.0, 4.0),
    }.items():
        found = compare_laws(["amdahl", "usl", "saturation"], N, times * rng.lognormal(0, 0.005, len(N)))
        assert found.preferred == law
        _, p = found.nested["amdahl", "usl"]
        assert (p < 0.05) == (law != "amdahl")
        told = "\n".join(found.describe())
        assert f"preferred by AICc: {law}" in told
        assert json.loads(json.dumps(found.as_dict()))["preferred"] == law


def test_of_laws_that_fit_as_well_the_simplest_is_preferred():
    rng = np.random.default_rng(11)
    for _ in range(10):
        times = 8 / laws.amdahl(COUNTS.repeat(4), 0.02) * rng.lognormal(0, 0.05, 4 * len(COUNTS))
        found = compare_laws(["amdahl", "usl", "saturation"], COUNTS.repeat(4), times)
        aicc = {law: fit.aicc for law, fit in found.fits.items()}
        assert (found.preferred == "amdahl") == (aicc["amdahl"] < min(aicc.values()) + 2)
        best = min(aicc, key=aicc.get)
        assert (f"preferred by AICc: amdahl (simpler than {best}," in found.describe()[-1]) == (
            found.preferred == "amdahl" != best
        )


def test_below_the_minimum_of_aicc_none_is_preferred_and_it_says_how_many_points_it_takes():
    found = compare_laws(["amdahl", "usl"], [1, 2, 4, 8, 16], [8.0, 4.1, 2.2, 1.3, 0.9])
    assert found.preferred == ""
    assert found.why_none == "usl: 5 points are too few to compare it; measure at least 6"
    assert "none is preferred: usl: 5 points are too few" in "\n".join(found.describe())


def test_what_is_not_identifiable_is_said_so():
    told = "\n".join(compare_laws(["amdahl"], [1, 2], [8.0, 4.4]).describe())
    assert "not identifiable from 2 points" in told
    assert "S_max ?  ≥ 10" in told


# ── tables ────────────────────────────────────────────────────────────────────────────────────────────


def table(tmp_path, text):
    path = tmp_path / "table.csv"
    path.write_text(text, encoding="utf-8")
    return path


@pytest.mark.parametrize(
    "text",
    [
        "workers,time\n1,8\n2,4\n",
        "# from a paper\nN;seconds\n1;8\n2;4\n",
        "n_workers\twall_s\n1\t8\n\n2\t4\n",
        "cores elapsed\n1 8\n2   4\n",
        "time,threads\n8,1\n4,2\n",
        "\ufeffP,T\n1,8.0\n2,4e0\n",
    ],
)
def test_tables_of_any_make_are_read(tmp_path, text):
    found = measurements.read(table(tmp_path, text))
    assert found.n_workers.tolist() == [1, 2]
    assert found.times_s.tolist() == [8, 4]
    assert (found.rounds, found.of_rate) == (None, False)


def test_rates_are_turned_into_times_and_rounds_are_kept(tmp_path):
    found = measurements.read(table(tmp_path, "workers,throughput,round\n1,0.5,0\n2,1,1\n"))
    assert found.times_s.tolist() == [2, 1]
    assert found.rounds.tolist() == [0, 1]
    assert found.of_rate


def test_without_a_heading_it_has_to_be_said_what_the_numbers_are(tmp_path):
    path = table(tmp_path, "1 8 0\n2 4 1\n")
    with pytest.raises(measurements.TableError, match="does not say whether its second column is a time or a rate"):
        measurements.read(path)
    assert measurements.read(path, of_rate=False).times_s.tolist() == [8, 4]
    assert measurements.read(path, of_rate=True).times_s.tolist() == [1 / 8, 1 / 4]
    assert measurements.read(path, of_rate=True).rounds.tolist() == [0, 1]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "has no rows"),
        ("workers,time\n", "a heading and no rows"),
        ("workers,time\n1,8\n2,fast\n", "line 3: '2, fast' is no row of numbers"),
        ("workers,time\n1,8\n2\n", "line 3: '2' is no row"),
        ("workers,time\n0,8\n", "line 2: workers=0, value=8; pass workers of at least 1"),
        ("workers,time\n1,-8\n", "value=-8"),
        ("workers,time\n1,nan\n", "value=nan"),
        ("a,b\n1,2\n", "no column of a, b is known"),
        ("workers,a,b\n1,2,3\n", "which of workers, a, b is the time"),
        ("1,2,3,4\n", "has 4 columns and no heading"),
        ("workers,time,round\n1,8,1e999\n", "line 2: '1, 8, 1e999' is no row"),
        (f"workers,time,round\n1,8,{10**400}\n", "line 2: .* is no row"),
        (f"workers,time,round\n1,8,{10**300}\n", "numbers no round"),
        (f"workers,time\n1,'{'8' * 200_000}'\n", "line 2: cannot be cut into cells"),
        ("workers,time\n1,8,1000\n1,80,2000\n", r"3 cells and no name for each \(read: workers from column workers, "),
    ],
)
def test_what_is_wrong_with_a_table_is_said_with_its_line(tmp_path, text, message):
    with pytest.raises(measurements.TableError, match=message):
        measurements.read(table(tmp_path, text))


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("size,p,t\n1000,1,8\n2000,1,80\n", r"column size has 1000, 2000, .* \(read: workers from column p, time or"),
        ("nodes,threads,time\n1,4,8\n1,8,4\n", "column threads has 4, 8"),
        ("p,time,wall_s\n1,8,9\n2,4,5\n", "column wall_s has 5, 9"),
        ("p,t,machine\n1,8,a\n2,4,b\n4,2,c\n8,1,d\n", "column machine has a, b, c, …, "),
        ("p,t,machine\n1,8,a\n2,4\n", "column machine has , a"),
        ("1 8 1000\n1 80 2000\n", "third column does not count rounds"),
        ("1 8 4\n1 80 5\n", "third column does not count rounds"),
    ],
)
def test_two_problems_are_never_fitted_as_one_curve(tmp_path, text, message):
    with pytest.raises(measurements.TableError, match=message) as refused:
        measurements.read(table(tmp_path, text), of_rate=False)
    assert "\n" not in str(refused.value)


def test_a_column_that_tells_no_rows_apart_does_not_matter(tmp_path):
    found = measurements.read(table(tmp_path, "size,p,t,rep,\n1000,1,8,0,\n1000,2,4,1,\n"))
    assert found.n_workers.tolist() == [1, 2]
    assert measurements.read(table(tmp_path, "1 8 1\n1 9 2\n"), of_rate=False).rounds.tolist() == [1, 2]


@pytest.mark.parametrize("content", [b"\x89HDF\xff\xfe", b"workers,time\n1,\0\n", b"workers,time\n1,\x1b[2J\n"])
def test_a_file_that_is_no_table_is_refused(tmp_path, content):
    (tmp_path / "x").write_bytes(content)
    with pytest.raises(measurements.TableError, match="neither text nor a record"):
        measurements.read(tmp_path / "x")
    with pytest.raises(measurements.TableError, match="cannot be read"):
        measurements.read(tmp_path / "nix")


def test_a_file_without_an_end_is_refused(monkeypatch):
    monkeypatch.setattr(measurements, "_MOST_BYTES", 2**20)
    with pytest.raises(measurements.TableError, match="has more than 1 MiB"):
        measurements.read(Path("/dev/zero"))


def test_a_published_table_is_fitted_as_it_lies_there():
    found = measurements.read(DATA / "usl_specsdm91.csv", of_rate=True)
    usl = compare_laws(["usl"], found.n_workers, found.times_s, loss="throughput").fits["usl"]
    assert usl.parameters["sigma"] == pytest.approx(0.0277285, rel=1e-4)
