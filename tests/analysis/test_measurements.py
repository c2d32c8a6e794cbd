"""The tables that people have are read as they are, and what may be meant in two ways is asked for."""

import json
from pathlib import Path

import pytest

from parcompute.analysis.choice import compare_laws
from parcompute.analysis.measurements import points, sheets
from parcompute.analysis.measurements.columns import Named
from parcompute.analysis.measurements.sheets import TableError

DATA = Path(__file__).parents[1] / "data"


def table(tmp_path, text, name="table.csv"):
    path = tmp_path / name
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    return path


def read(path, **named):
    """Return the curves of a table by what tells them apart."""
    return {name.removeprefix(f"{path}").removeprefix(": "): p for name, p in points.read(path, Named(**named)).items()}


def one(path, **named):
    (found,) = read(path, **named).values()
    return found


# ── forms ─────────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize(
    "text",
    [
        "workers,time\n1,8\n2,4\n",
        "# from a paper\nN;seconds\n1;8\n2;4\n",
        "n_workers\twall_s\n1\t8\n\n2\t4\n",
        "cores elapsed\n1 8\n2   4\n",
        "time,threads\n8,1\n4,2\n",
        "\ufeffP,T\r\n1,8.0\r\n2,4e0\r\n",
        "p,ms\r1,8000\r2,4000\r",
        "Number of cores  Wall time [s]\n1                8\n2                4\n",
        "Number of cores;Wall time [ms]\n1;8.000,0\n2;4.000,0\n",
        'cores,time\n1,"8,0"\n2,"4,0"\n',
        "sep=;\nnodes;runtime\n1;8,00\n2;4,00\n",
        "procs,t\n-,s\n1,8\n2,4\n",
        "ranks;Elapsed\n-;[ms]\n1;8 000\n2;4 000\n",
        "| N | time |\n|--:|:----:|\n| 1 | **8** |\n| 2 | 4 s |\n",
        "Measured on a laptop, 2 | 4 cores.\n\ncores | time\n----- | ----\n1 | 8\n2 | 4\n\nThat is all.\n",
        "cores,time\n1,8 ± 0.2\n2,4 ± 0.1\n",
        "nproc,real\n1,0m8.000s\n2,0m4.000s\n",
        "cores,time\n1,00:08\n2,00:04\n",
        "cores,time (min)\n1 cores,0.13333333333333333\n2 cores,0.06666666666666667\n",
        "cores,time_ms\n1,8 s\n2,4000\n",
        "cores,1,2\ntime [s],8,4\n",
        '"Number\nof cores",time\n1,8\n2,4\n',
        b"\xff\xfe" + "cores\ttime\n1\t8\n2\t4\n".encode("utf-16-le"),
        "cores;time (µs)\n1;8000000\n2;4000000\n".encode("cp1252"),
        "cores,time,throughput\n1,8,10\n2,4,20\n",
        "nodes,cores,time\n1,1,8\n1,2,4\n",
        "CPUs,NCPUS,time\n1,1,8\n2,2,4\n",
        "cores,time,time_min,time_max,published speedup,efficiency (%)\n1,8,7,9,1,100\n2,4,3.9,5,1.9,95\n",
        "cores,min,mean_s,median_s,max\n1,7,9,8,99\n2,3,5,4,9\n",
        "# by hand, 2025\n# cores time\n1 8\n2 4\n",
        "#cores,time\n1,8\n2,4\n",
        "size,p,t,\n1000,1,8,\n1000,2,4,\n",
    ],
)
def test_tables_of_any_make_are_read(tmp_path, text):
    found = one(table(tmp_path, text))
    assert found.n_workers.tolist() == [1, 2]
    assert found.times_s.tolist() == [8, 4]
    assert (found.rounds, found.of_rate, found.kind) == (None, False, "strong")


@pytest.mark.parametrize(
    "text",
    [
        "workers,throughput\n1,0.125\n2,0.25\n",
        "users,tps\n1,0.125\n2,0.25\n",
        "cores,GFLOP/s\n1,0.125 GF\n2,0.25 GF\n",
        "nodes,ns/day,ns/day min\n1,0.125,0.1\n2,0.25,0.2\n",
        "concurrency,MB_per_s,throughput_stddev,duration\n1,0.125,0.1,60\n2,0.25,0.3,60\n",
    ],
)
def test_rates_are_turned_into_times(tmp_path, text):
    found = one(table(tmp_path, text))
    assert found.times_s.tolist() == [8, 4]
    assert found.of_rate


def test_speedups_and_efficiencies_are_times_of_a_base_of_one(tmp_path):
    assert one(table(tmp_path, "p,speedup\n1,1\n4,3.2\n")).times_s.tolist() == [1, 1 / 3.2]
    for text in ("p,efficiency\n1,1\n4,0.8\n", "p,Efficiency [%]\n1,100\n4,80\n", "p,E(p)\n1,100%\n4,80%\n"):
        assert one(table(tmp_path, text)).times_s.tolist() == [1, 1 / 3.2]


def test_scaled_rates_of_weak_scaling_are_times_of_one_share(tmp_path):
    path = table(tmp_path, "p,throughput\n1,10\n4,32\n")
    assert one(path, scaling="weak").times_s.tolist() == [0.1, 0.125]
    assert points.of_laws(one(path, scaling="weak"), (), ("amdahl",)) == ("gustafson",)
    assert points.of_laws(one(path), (), ("amdahl",)) == ("amdahl",)


@pytest.mark.parametrize(
    ("text", "rounds"),
    [
        ("workers,time,round\n1,8,0\n2,4,1\n", [0, 1]),
        ("workers,time,trial\n1,8,a\n2,4,b\n", [0, 1]),
        ("cores,t1,t2,t3\n1,8,9,7\n2,4,,3\n", [0, 1, 2, 0, 2]),
        ("cores,time run 1 [s],time run 2 [s]\n1,8,9\n2,4,5\n", [0, 1, 0, 1]),
        ("cores,t1,t2,mean time\n1,8,9,8.5\n2,4,5,4.5\n", [0, 1, 0, 1]),
        ("cores,time\n1,8\n2,4\n2,5\n1,9\n", [0, 0, 1, 1]),
        ("cores,time\n1,8\n2,4\n2,5\n", None),
    ],
)
def test_repetitions_stand_in_rows_or_beside_each_other(tmp_path, text, rounds):
    found = one(table(tmp_path, text)).rounds
    assert rounds == (None if found is None else found.tolist())


def test_repetitions_of_unknown_meaning_are_said_to_be_times(tmp_path):
    path = table(tmp_path, "cores,run 1,run 2\n1,8,9\n2,4,5\n")
    with pytest.raises(TableError, match="does not say whether its column run 1, run 2 is a time or a rate"):
        read(path)
    assert one(path, kind="time").times_s.tolist() == [8, 9, 4, 5]


def test_without_a_heading_it_has_to_be_said_what_the_numbers_are(tmp_path):
    path = table(tmp_path, "1 8 0\n2 4 1\n")
    with pytest.raises(TableError, match="does not say whether its second column is a time or a rate"):
        read(path)
    assert one(path, kind="time").times_s.tolist() == [8, 4]
    assert one(path, kind="rate").times_s.tolist() == [1 / 8, 1 / 4]
    assert one(path, kind="rate").rounds.tolist() == [0, 1]
    path = table(tmp_path, "a 8 9 1\na 4 9 2\n")
    assert one(path, kind="time", workers="4", values=("2",), ignored=("3",)).times_s.tolist() == [4]


def test_rows_without_a_value_are_left_out_and_counted(tmp_path):
    found = one(table(tmp_path, "cores,time\n1,8\n2,n/a\n4,-\n8,1\n"))
    assert found.n_workers.tolist() == [1, 8]
    assert found.how == "workers from cores, time from time; 2 rows without a value left out"


def test_two_jobs_never_share_a_point_of_nothing(tmp_path):
    with pytest.raises(TableError, match="no row has a value"):
        read(table(tmp_path, "cores,time\n1,\n2,\n"))


# ── several curves ────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize(
    ("text", "names"),
    [
        ("system,cores,time\na,1,8\na,2,4\nb,1,9\nb,2,5\n", ["system=a", "system=b"]),
        ("size,p,t\n10,1,8\n10,2,4\n20,1,9\n20,2,5\n", ["size=10", "size=20"]),
        ("nodes,threads,time\n1,1,8\n1,2,4\n2,1,5\n2,2,3\n", None),
        (
            "kind,cpu,cores,time\nweak,x,1,8\nweak,x,2,8\nweak,y,1,9\nweak,y,2,9\nstrong,x,4,5\nstrong,x,8,3\n",
            ["kind=weak, cpu=x", "kind=weak, cpu=y", "kind=strong, cpu=x"],
        ),
    ],
)
def test_rows_that_a_further_column_tells_apart_are_a_curve_each(tmp_path, text, names):
    if names is None:
        with pytest.raises(
            TableError, match=r"workers may be in nodes, threads .*--workers nodes or --workers threads"
        ):
            read(table(tmp_path, text))
        return
    found = read(table(tmp_path, text))
    assert list(found) == names
    assert sum(len(p.times_s) for p in found.values()) == len(text.splitlines()) - 1
    assert {p.kind for name, p in found.items() if "weak" in name} <= {"weak"}


def test_nodes_beside_their_cores_say_no_more_once_one_is_chosen(tmp_path):
    path = table(tmp_path, "nodes,cores,time\n1,36,8\n2,72,4\n4,144,2\n")
    assert one(path, workers="nodes").n_workers.tolist() == [1, 2, 4]
    assert one(path, workers="CORES").n_workers.tolist() == [36, 72, 144]


def test_columns_beside_each_other_are_a_curve_each_if_they_are_named(tmp_path):
    path = table(tmp_path, "p,t_gcc,t_icc\n1,8,7\n2,4,3\n")
    with pytest.raises(TableError, match=r"time may be in t_gcc, t_icc .*--time t_gcc or --time t_icc, or several"):
        read(path)
    found = read(path, kind="time", values=("t_gcc", "t_icc"))
    assert {name: p.times_s.tolist() for name, p in found.items()} == {"t_gcc": [8, 4], "t_icc": [7, 3]}


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("size,p,t\n1000,1,8\n2000,1,80\n", r"column size has 1000, 2000, .* \(read: workers from column p, time from"),
        ("size,p,t\n1000,1,8\n1000,2,8\n2000,4,8\n2000,8,8\n", "column size has .*--scaling weak if the work grows"),
        ("p,t,machine\n1,8,a\n2,4,b\n4,2,c\n8,1,d\n", "column machine has a, b, c, …, .* --ignore machine"),
        ("p,t,machine\n1,8,a\n2,4\n", "column machine has , a"),
        ("p,t,a,b\n1,8,x,y\n2,4,z,w\n", "column a has x, z, column b has w, y, .* --ignore a --ignore b"),
        ("1 8 1000\n1 80 2000\n", "third column does not count rounds"),
        ("1 8 4\n1 80 5\n", "third column does not count rounds"),
    ],
)
def test_two_problems_are_never_fitted_as_one_curve(tmp_path, text, message):
    with pytest.raises(TableError, match=message) as refused:
        read(table(tmp_path, text), kind="time")
    assert "\n" not in str(refused.value)


def test_what_does_not_matter_and_what_does_is_said(tmp_path):
    path = table(tmp_path, "p,t,machine\n1,8,a\n2,4,b\n")
    assert one(path, ignored=("machine",)).times_s.tolist() == [8, 4]
    assert list(read(path, curves=("machine",))) == ["machine=a", "machine=b"]


# ── what is asked for ─────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "has no rows"),
        ("workers,time\n", "a heading and no rows"),
        ("-----\n", "a heading and no rows"),
        ("# ----\n1 2\n", "second column is a time or a rate"),
        ("workers,time\n1,8\n2,fast\n", "line 3: '2, fast' is no row of numbers"),
        ("workers,time\n1,8\n2\n", "line 3: '2' is no row"),
        ("workers,time\n0,8\n", "line 2: workers=0, value=8; pass workers of at least 1"),
        ("workers,time\n1,-8\n", "value=-8"),
        ("workers,time\n1,nan\n", "no row has a value"),
        ("workers,time\n1,8\n2,inf\n", "line 3: '2, inf' is no row"),
        ("workers,time\n1,1e999\n", "value=inf"),
        ("a,b\n1,2\n", "no column of a, b is known"),
        ("workers,a,b\n1,2,3\n", "which of workers, a, b is the time"),
        ("1,2,3,4\n", "has 4 columns and no heading .*by number: --workers 1 --time 2"),
        ("workers,time,round\n1,8,1e999\n", "line 2: '1, 8, 1e999' is no row"),
        (f"workers,time,round\n1,8,{10**400}\n", "line 2: .* numbers no round"),
        (f"workers,time,round\n1,8,{10**300}\n", "numbers no round"),
        (f"workers,time\n1,'{'8' * 200_000}'\n", "line 2: cannot be cut into cells"),
        ("workers,time\n1,8,1000\n1,80,2000\n", r"3 cells and no name for each \(read: workers from column workers, "),
        ("p,time,wall_s\n1,8,9\n2,4,5\n", "time may be in time, wall_s .*pass --time time or --time wall_s"),
        ("p,time,throughput\n1,8,1\n2,4,5\n", "not of the same work .*pass --time time or --rate throughput"),
        ("p,time_min\n1,8\n2,4\n", "may be minutes or the smallest .*pass --unit min or --unit s"),
        ("p;time\n1;1,234\n2;0\n", "the comma of 1,234 may be of decimals or of thousands; pass --decimal"),
        ("p;time\n1;1,5\n2;1.5\n", "has both decimal points and decimal commas"),
        ("p,bandwidth\n1,980 MB/s\n2,1.9 GB/s\n", "line 3: '2, 1.9 GB/s' is no row"),
        ("p,t100,t200\n1,8,9\n2,4,5\n", "time may be in t100, t200"),
        ("| p | t |\n|---|---|\n| 1 | 2 |\n\n| p | t |\n|---|---|\n| 1 | 2 |\n", "has 2 Markdown tables"),
        ('{"a": 1}', "JSON of neither hyperfine, pyperf nor asv"),
        ('{"a": ', "is no JSON"),
        ('{"results": [{"command": 1}]}', "is not as hyperfine writes it"),
        ("[1]", "JSON of neither"),
    ],
)
def test_what_is_wrong_with_a_table_is_one_line_with_the_way_out(tmp_path, text, message):
    with pytest.raises(TableError, match=message) as refused:
        read(table(tmp_path, text))
    assert "\n" not in str(refused.value)
    assert len(str(refused.value)) < 600


def test_what_is_asked_for_is_answered_by_an_option(tmp_path):
    assert one(table(tmp_path, "p,time_min\n1,8\n2,4\n"), unit="min").times_s.tolist() == [480, 240]
    assert one(table(tmp_path, "p;time\n1;1,234\n2;1\n"), decimal=",").times_s.tolist() == [1.234, 1]
    assert one(table(tmp_path, "p;time\n1;1,234\n2;1\n"), decimal=".").times_s.tolist() == [1234, 1]
    assert one(table(tmp_path, "p;time\n1;8\n1,024;1\n")).n_workers.tolist() == [1, 1024]
    assert one(table(tmp_path, "p,t,wall\n1,8,9\n2,4,5\n"), kind="time", values=("wall",)).times_s.tolist() == [9, 5]
    for wrong in ({"workers": "nix"}, {"values": ("3",)}, {"curves": ("nix",)}):
        with pytest.raises(TableError, match=r"has no column '.*'.*name one of p, t, or its number from 1"):
            read(table(tmp_path, "p,t\n1,8\n2,4\n"), **wrong)


@pytest.mark.parametrize("content", [b"\x89HDF\xff\xfe", b"workers,time\n1,\0\n", b"workers,time\n1,\x1b[2J\n"])
def test_a_file_that_is_no_table_is_refused(tmp_path, content):
    with pytest.raises(TableError, match="neither text nor a record"):
        read(table(tmp_path, content, "x"))
    with pytest.raises(TableError, match="cannot be read"):
        read(tmp_path / "nix")


def test_a_file_without_an_end_is_refused(monkeypatch):
    monkeypatch.setattr(sheets, "_MOST_BYTES", 2**20)
    with pytest.raises(TableError, match="has more than 1 MiB"):
        read(Path("/dev/zero"))


def test_what_chooses_among_runs_is_not_for_tables_nor_columns_for_records(tmp_path):
    with pytest.raises(TableError, match="is a table, and --n-items are of records"):
        points.of_file(table(tmp_path, "p,t\n1,8\n2,4\n"), n_items=3)
    with pytest.raises(TableError, match="is a record, whose columns are known"):
        points.of_file(DATA / "montecarlo-first-columns.h5", Named(workers="cores"))


# ── what other tools write ────────────────────────────────────────────────────────────────────────────

SACCT = """\
JobID|JobName|State|NNodes|NCPUS|Elapsed
101|heat|COMPLETED|1|36|1-00:00:10
101.batch|batch|COMPLETED|1|36|1-00:00:10
102|heat|COMPLETED|2|72|12:00:05
103|heat|TIMEOUT|4|144|12:00:00
"""


def test_jobs_of_sacct_are_read_without_their_steps_and_failures(tmp_path):
    with pytest.raises(TableError, match="pass --workers NNodes or --workers NCPUS"):
        read(table(tmp_path, SACCT))
    found = one(table(tmp_path, SACCT), workers="NNodes")
    assert (found.n_workers.tolist(), found.times_s.tolist()) == ([1, 2], [86410, 43205])
    assert found.how.endswith("1 job not COMPLETED left out")
    plain = "  NNodes    Elapsed \n-------- ---------- \n       1   00:00:08 \n       2   00:00:04 \n"
    assert one(table(tmp_path, plain)).times_s.tolist() == [8, 4]
    with pytest.raises(TableError, match="none of them COMPLETED"):
        read(table(tmp_path, SACCT.replace("COMPLETED", "FAILED")))


def test_hyperfine_names_its_parameters_or_its_commands_have_numbers(tmp_path):
    results = [
        {"command": f"solve -j {n}", "times": [8 / n, 9 / n], "median": 1.0, "parameters": {"threads": str(n)}}
        for n in (1, 2)
    ]
    found = one(table(tmp_path, json.dumps({"results": results}), "h.json"))
    assert (found.times_s.tolist(), found.rounds.tolist()) == ([8, 9, 4, 4.5], [0, 1, 0, 1])
    for result in results:
        del result["parameters"]
    found = read(table(tmp_path, json.dumps({"results": results}), "h.json"))
    assert found[""].n_workers.tolist() == [1, 1, 2, 2]
    assert "workers are the number N in each command" in found[""].how
    heading = "command,mean,stddev,median,user,system,min,max"
    text = f"{heading},parameter_threads\n" + "".join(f"solve -j {n},9,1,{8 / n},1,{n}.5,7,10,{n}\n" for n in (1, 2))
    assert one(table(tmp_path, text)).times_s.tolist() == [8, 4]
    text = f"{heading}\n" + "".join(f"solve -j {n},9,1,{8 / n},1,{n}.5,7,10\n" for n in (1, 2))
    assert one(table(tmp_path, text)).n_workers.tolist() == [1, 2]


def test_pyperf_has_a_median_for_each_of_its_processes(tmp_path):
    def told(name, time_s):
        values = [{"values": [time_s, time_s * 1.1, time_s * 9]}, {"values": [time_s]}]
        return {"metadata": {"name": name, "cpu_count": 4}, "runs": [{"warmups": [[1, 2.0]]}, *values]}

    every = [told(f"{kind}-{n}", 8 / n) for kind in ("map", "sum") for n in (1, 2)]
    found = read(table(tmp_path, json.dumps({"version": "1.0", "benchmarks": every}), "p.json"))
    assert list(found) == ["benchmark=map-N", "benchmark=sum-N"]
    assert found["benchmark=map-N"].times_s == pytest.approx([8.8, 8, 4.4, 4])
    assert found["benchmark=map-N"].rounds.tolist() == [0, 1, 0, 1]
    every[0]["metadata"]["unit"] = "byte"
    with pytest.raises(TableError, match="measures bytes"):
        read(table(tmp_path, json.dumps({"benchmarks": every}), "p.json"))


def test_asv_has_its_parameters_by_name_where_its_folder_is_whole(tmp_path):
    told = {
        "result_columns": ["result", "params", "samples"],
        "results": {"heat.track": [[8.0, None, 4.0, 4.5], [["1", "2"], ["'a'", "'b'"]], None], "broken": [None]},
    }
    path = table(tmp_path, json.dumps(told), "abc.json")
    with pytest.raises(TableError, match="no column of benchmark, param1, param2, time"):
        read(path)
    assert list(read(path, workers="param1", curves=("param2",))) == ["param2=a", "param2=b"]
    (folder := tmp_path / "results" / "machine").mkdir(parents=True)
    about = {"heat.track": {"param_names": ["n_workers", "kind"], "unit": "seconds"}, "version": 2}
    (folder.parent / "benchmarks.json").write_text(json.dumps(about))
    told["results"]["heat.track"] = [[8.0, 4.0], [["1", "2"], ["'a'"]], [[8.0, 9.0], [4.0, 5.0]]]
    found = one(table(folder, json.dumps(told), "abc.json"))
    assert (found.times_s.tolist(), found.rounds.tolist()) == ([8, 9, 4, 5], [0, 1, 0, 1])


# ── published tables ──────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize(
    ("name", "named", "n_curves", "n_points"),
    [
        (
            "karp_flatt_textbook",
            {"kind": "rate", "values": ("speedup_A", "speedup_B"), "ignored": ("e_A", "e_B")},
            2,
            7,
        ),
        ("mfc_frontier", {}, 4, 4),
        ("oceananigans_strong", {"ignored": ("samples",)}, 2, 8),
        ("oceananigans_weak", {"ignored": ("samples",), "scaling": "weak"}, 1, 8),
        ("pi_universe_hpc_strong", {}, 1, 5),
        ("pi_universe_hpc_weak", {"scaling": "weak"}, 1, 5),
        ("python_mp_iree", {}, 1, 8),
        ("python_mp_metsim", {}, 1, 6),
        ("stream_triad_scaling", {}, 24, 2),
        ("sysbench_cpu_4core", {}, 1, 11),
        ("usl_raytracer", {}, 1, 11),
        ("usl_specsdm91", {}, 1, 7),
        ("usl_synthetic_exact", {}, 1, 6),
    ],
)
def test_published_tables_are_read_as_they_lie_there(name, named, n_curves, n_points):
    found = read(DATA / f"{name}.csv", **named)
    assert len(found) == n_curves
    assert len(next(iter(found.values())).times_s) == n_points


def test_published_medians_give_the_published_speedups():
    lines = [line.split(",") for line in (DATA / "oceananigans_strong.csv").read_text().splitlines() if line[0] != "#"]
    for name, found in read(DATA / "oceananigans_strong.csv", ignored=("samples",)).items():
        published = [float(line[7]) for line in lines if line[0] == name.removeprefix("model=")]
        assert found.times_s[0] / found.times_s == pytest.approx(published, rel=1e-3)


def test_textbook_speedups_give_the_textbooks_serial_fraction():
    named = {"kind": "rate", "values": ("speedup_A",), "ignored": ("speedup_B", "e_A", "e_B")}
    found = one(DATA / "karp_flatt_textbook.csv", **named)
    fitted = compare_laws(["amdahl"], found.n_workers, found.times_s).fits["amdahl"]
    assert fitted.parameters["s"] == pytest.approx(0.1, abs=0.002)


def test_a_published_table_is_fitted_as_it_lies_there():
    found = one(DATA / "usl_specsdm91.csv")
    usl = compare_laws(["usl"], found.n_workers, found.times_s, loss="throughput").fits["usl"]
    assert usl.parameters["sigma"] == pytest.approx(0.0277285, rel=1e-4)
