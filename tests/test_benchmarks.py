"""The machinery of `make bench`: rounds, verdicts, table and record, over contenders that hang, die and lie."""

import os
import shutil
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import psutil
import pytest

from parcompute.record.record import read

ROOT = Path(__file__).resolve().parents[1]
SHARED_MEMORY = Path("/dev/shm")
sys.path.insert(0, str(ROOT / "benchmarks"))
import bench  # noqa: E402
import contender  # noqa: E402
import family  # noqa: E402
import session  # noqa: E402
import tasks  # noqa: E402
from rows import CONTENDERS, ROWS, Row  # noqa: E402
from session import Entry, Failed, Failure, Hosts, Missing, Process  # noqa: E402
from verdicts import AtMost, AtMostTimes, Verdict, all_reached  # noqa: E402

sys.path.remove(str(ROOT / "benchmarks"))

FAKES = """
import multiprocessing, os, signal, tempfile, time
from multiprocessing.shared_memory import SharedMemory
import tasks
from contender import Contender, samples

class Good(Contender):
    n = 0
    def count(self, start=0):
        try:
            for n in range(start, start + 100):
                yield float(n), n
        finally:
            self.n += 1
    def n_released(self):
        yield float(self.n), None
    def environ(self, name):
        yield 0.0, os.environ.get(name)

class Bad(Contender):
    def hangs(self):
        self.litter()
        time.sleep(600)
        yield
    def dies(self):
        self.litter()
        os.kill(os.getpid(), signal.SIGKILL)
        yield
    def lies(self):
        return samples(lambda: 41, tasks.equal_to(42))
    def litter(self):
        self.segment = SharedMemory(os.environ["BENCH_TEST"], create=True, size=100)
        child = multiprocessing.get_context("fork").Process(target=time.sleep, args=(600,))
        child.start()
        with open(os.path.join(tempfile.gettempdir(), "array"), "w") as file:
            file.write("x")

class Stubborn(Bad):
    def __init__(self):
        self.litter()
    def close(self):
        raise RuntimeError("no")

class Absent(Contender):
    package = "there_is_no_such_package"
"""


@pytest.fixture
def process(tmp_path):
    """Start hosts of the fakes."""
    (tmp_path / "fakes.py").write_text(FAKES)
    made = []

    def start(name):
        made.append(Process(f"fakes:{name}", [tmp_path]))
        return made[-1]

    yield start
    for host in made:
        host.close()
        assert not Path(host._scratch).exists()


@pytest.fixture
def nothing_left(monkeypatch):
    """Check that hosts leave neither segments nor processes, though they lead sessions of their own."""
    monkeypatch.setenv("BENCH_TEST", mark := f"test-{os.getpid()}-{os.urandom(4).hex()}")
    yield
    assert not [process for process in psutil.process_iter() if is_marked(process, mark)]
    assert not [path for path in SHARED_MEMORY.glob("*") if mark in path.name]


def is_marked(process, mark):
    try:
        return process.status() != psutil.STATUS_ZOMBIE and process.environ().get("BENCH_TEST") == mark
    except psutil.Error:
        return False


class Fake:
    """A host without a process: each answer is the next of a list, or an error that is raised."""

    def __init__(self, clock, answers, takes_s=0.0):
        self.clock, self.answers, self.takes_s, self.alive = clock, list(answers), takes_s, True

    def ask(self, timeout_s, *message):
        if message[0] == "release":
            return None
        self.clock.asked.append(message[1])
        self.clock.now += self.takes_s
        answer = self.answers.pop(0) if len(self.answers) > 1 else self.answers[0]
        if isinstance(answer, Exception):
            raise answer
        return answer, None

    def close(self):
        self.alive = False


@pytest.fixture
def clock():
    made = SimpleNamespace(now=0.0, asked=[])
    made.read = lambda: made.now
    return made


def said(clock, hosts, rounds=3, entries=None, **options):
    """Ask fakes; return what they say."""
    entries = entries or [Entry(name, name, "question") for name in hosts]
    with Hosts({name: name for name in hosts}, hosts.__getitem__) as opened:
        return list(
            session.ask(
                entries, opened, rounds=rounds, clock=clock.read,
                **{"parameters": {}, "seed": 1, "row": "1", "each_s": 1e9, "timeout_s": 1, "until": 1e9} | options,
            )
        )  # fmt: skip


# --- rounds ------------------------------------------------------------------------------------------------


def test_each_round_visits_each_entry_once_in_another_order_and_the_first_warms_up(clock):
    answers = said(clock, {name: Fake(clock, [1.0]) for name in "abcdef"}, rounds=5)
    visits = [clock.asked[i : i + 6] for i in range(0, 36, 6)]
    assert all(sorted(visit) == list("abcdef") for visit in visits)
    assert len({tuple(visit) for visit in visits}) > 1
    assert [(one.round, one.entry.label) for one in answers] == [(r, x) for r in range(5) for x in visits[r + 1]]


def test_the_order_belongs_to_seed_row_and_round():
    orders = {tuple(session.order(20, *of)) for of in [(1, "3a", 0), (2, "3a", 0), (1, "3b", 0), (1, "3a", 1)]}
    assert len(orders) == 4
    assert session.order(20, 1, "3a", 0) == session.order(20, 1, "3a", 0)


def test_an_entry_that_has_spent_its_time_has_fewer_rounds_and_never_none(clock):
    answers = said(clock, {"quick": Fake(clock, [1.0], 1), "slow": Fake(clock, [1.0], 20)}, rounds=6, each_s=7.5)
    labels = [one.entry.label for one in answers]
    assert (labels.count("quick"), labels.count("slow")) == (6, 1)


def test_nothing_is_asked_when_the_time_is_up(clock):
    assert len(said(clock, {"a": Fake(clock, [1.0], 2)}, rounds=9, until=8.0)) == 3
    assert said(clock, {"a": Fake(clock, [1.0])}, until=8.0) == []


def test_an_entry_may_ask_for_fewer_rounds_and_is_then_not_warmed_up(clock):
    entries = [Entry("all", "a", "question"), Entry("once", "a", "question", rounds=1)]
    answers = said(clock, {"a": Fake(clock, [1.0])}, entries=entries)
    assert [one.entry.label for one in answers].count("once") == 1
    assert clock.asked.count("once") == 1


def test_an_entry_that_fails_is_out_and_the_others_go_on(clock):
    answers = said(clock, {"bad": Fake(clock, [1.0, 2.0, Failed("broken"), 3.0]), "good": Fake(clock, [1.0])})
    assert [one.why for one in answers if isinstance(one, Failure)] == ["broken"]
    values = [(one.entry.label, one.value) for one in answers if not isinstance(one, Failure)]
    assert sorted(values) == [("bad", 2.0), *[("good", 1.0)] * 3]


def test_a_contender_that_is_missing_is_started_once_and_named():
    tried = []

    def make(spec):
        tried.append(spec)
        raise Missing("pip install it")

    with Hosts({"x": "x"}, make) as hosts:
        for _ in range(2):
            with pytest.raises(Missing, match="pip install it"):
                hosts.of("x")
    assert (tried, hosts.missing) == (["x"], {"x": "pip install it"})


def test_a_dead_host_is_replaced(clock):
    made = []

    def make(_):
        made.append(Fake(clock, [1.0]))
        return made[-1]

    with Hosts({"x": "x"}, make) as hosts:
        hosts.of("x").close()
        assert hosts.of("x") is hosts.of("x") is made[1]
    assert not made[1].alive


# --- processes ---------------------------------------------------------------------------------------------


@pytest.mark.usefixtures("nothing_left")
def test_a_host_keeps_questions_apart_until_they_are_released(process):
    host = process("Good")
    assert [host.ask(30, "sample", "a", "count", {})[0] for _ in range(3)] == [0, 1, 2]
    assert host.ask(30, "sample", "b", "count", {"start": 7})[0] == 7
    assert host.ask(30, "sample", "a", "count", {})[0] == 3
    host.ask(30, "release")
    assert host.ask(30, "sample", "c", "n_released", {})[0] == 2
    assert host.ask(30, "sample", "a", "count", {})[0] == 0


@pytest.mark.usefixtures("nothing_left")
@pytest.mark.parametrize(
    ("question", "timeout_s", "why"), [("hangs", 0.5, "no answer in 0.5 s"), ("dies", 30, r"has ended \(status -9\)")]
)
def test_a_host_that_hangs_or_dies_takes_all_it_has_made_with_it(process, question, timeout_s, why):
    host = process("Bad")
    with pytest.raises(Failed, match=why):
        host.ask(timeout_s, "sample", "a", question, {})
    assert not host.alive


@pytest.mark.usefixtures("nothing_left")
def test_a_host_that_does_not_close_is_killed_with_all_it_has_made(process):
    host = process("Stubborn")
    assert len(family.members(host._process.pid)) >= 2
    host.close()
    assert not host.alive


@pytest.mark.usefixtures("nothing_left")
def test_a_wrong_answer_is_no_sample_and_the_host_lives_on(process):
    host = process("Bad")
    with pytest.raises(Failed, match="WrongAnswer: got 41, expected 42"):
        host.ask(30, "sample", "a", "lies", {})
    with pytest.raises(Failed, match="has no attribute 'nix'"):
        host.ask(30, "sample", "b", "nix", {})
    assert host.alive


@pytest.mark.usefixtures("nothing_left")
def test_a_contender_that_cannot_be_imported_says_how_to_install_it(process):
    with pytest.raises(Missing, match="pip install there_is_no_such_package"):
        process("Absent")


def test_hosts_keep_bytecode_and_compute_with_one_thread(monkeypatch):
    monkeypatch.setenv("PYTHONDONTWRITEBYTECODE", "1")
    environ = session.environment("/scratch", ["/more"])
    assert "PYTHONDONTWRITEBYTECODE" not in environ
    assert (environ["OMP_NUM_THREADS"], environ["TMPDIR"]) == ("1", "/scratch")
    assert environ["PYTHONPATH"].startswith(f"/more{os.pathsep}{session.FOLDER}")


# --- the truth ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("check", "right", "wrong"),
    [
        (tasks.equal_to([1, 2]), [1, 2], [2, 1]),
        (tasks.pi_from(10**6), 785_398, 785_398 * 63 // 64),
        (tasks.root_sum_of(tasks.halves(640), 64), 640 * 0.5**0.5, 630 * 0.5**0.5),
        (tasks.same_array(tasks.halves(3)), tasks.halves(3), tasks.halves(2)),
    ],
)
def test_a_check_passes_the_truth_and_nothing_else(check, right, wrong):
    check(right)
    with pytest.raises(tasks.WrongAnswer):
        check(wrong)


def test_a_sample_is_time_per_unit_of_a_verified_answer():
    checked = []
    samples = contender.samples(lambda x: x + 1, checked.append, per=10, fresh=lambda: (4,))
    assert [next(samples)[1] for _ in range(2)] == [5, 5]
    assert checked == [5, 5]


def test_each_worker_is_held_while_the_caller_looks(monkeypatch, tmp_path):
    monkeypatch.setattr(tasks.tempfile, "tempdir", str(tmp_path))
    monkeypatch.setattr(tasks, "N_WORKERS", 1)
    gate, done = tasks.Gate(first=2), []

    def job():
        for i in range(4):
            gate.stop(i)
            done.append(i)
        return "result"

    assert gate.look(lambda: list(done), job) == ([0, 1], "result")
    assert not list(tmp_path.iterdir())


def test_a_look_at_fewer_workers_than_there_are_is_an_error():
    with pytest.raises(RuntimeError, match="0 of 2 workers"):
        tasks.Gate(0).look(lambda: 1, lambda: 2)


# --- verdicts ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("target", "values", "reached"),
    [
        (AtMost("a", 2), {"a": [1, 2, 9]}, True),
        (AtMost("a", 2), {"a": [1, 3, 9]}, False),
        (AtMost("a", 2, "ms", 1e3), {"a": [0.0021]}, False),
        (AtMost("a", 2), {"a": []}, None),
        (AtMostTimes("a", 0.5, ("b", "c")), {"a": [2], "b": [4], "c": [9]}, True),
        (AtMostTimes("a", 0.5, ("b", "c")), {"a": [2], "b": [9], "c": [3]}, False),
        (AtMostTimes("a", 0.5, ("b", "c")), {"a": [2], "c": [4]}, True),
        (AtMostTimes("a", 0.5, ("b", "c")), {"a": [2]}, None),
        (AtMostTimes("a", 0.5, ("b", "c")), {"b": [2]}, None),
    ],
)
def test_a_target_is_held_against_medians_and_the_best_there_is(target, values, reached):
    assert target.judge(values).reached is reached


def test_a_row_is_reached_if_all_its_targets_are():
    yes, no, unknown = Verdict(True, ""), Verdict(False, ""), Verdict(None, "")
    assert [all_reached(v) for v in ([yes, yes], [yes, unknown], [unknown, no], [])] == [True, None, False, None]


# --- table and record --------------------------------------------------------------------------------------


def test_a_cell_says_how_many_rounds_it_has_and_what_went_wrong():
    entries = tuple(
        Entry(name, name, "q", {"n": n}) for name, n in [("parcompute", 100), ("b", 10), ("c", 100), ("d", 9)]
    )
    row = Row("7", "title", "ms", 1e3, entries, (AtMost("parcompute", 3, "ms", 1e3),), {"n": 100}, "n")
    own = [session.Sample(entries[0], r, 0.002, None, 0.1, "noise" * (r < 2), "") for r in range(6)]
    answers = bench.Answers(
        [*own, session.Sample(entries[1], 0, 0.004, None, 0.1, "", "")], {"b": "late", "c": "absent"}
    )
    title, *cells = [" ".join(line.split()) for line in bench.lines(row, answers)]
    assert title == "7. title [ms]"
    assert cells == [
        "parcompute 2 95 % 2–2, n = 6 (2 disturbed)",
        "b 4 range 4–4, n = 1 parcompute is 0.5 × it (0.5–0.5) at 10 late",
        "c absent",
        "d n = 0: no time was left",
        "→ reached: 2 against ≤ 3 ms",
    ]


def test_rows_and_contenders_are_chosen_by_name_or_number():
    assert [row.name for row in bench.chosen(ROWS, ["3", "4c"], [])] == ["3a", "3b", "4c"]
    (row,) = bench.chosen(ROWS, ["8"], ["Pool", "mpire"])
    assert [e.label for e in row.entries] == ["Pool fork", "Pool forkserver", "Pool spawn", "mpire"]
    for wrong in (["99"], []), ([], ["nix"]):
        with pytest.raises(SystemExit, match="unknown; pass some of"):
            bench.chosen(ROWS, *wrong)


@pytest.mark.parametrize("row", ROWS, ids=lambda row: row.name)
def test_the_rows_hang_together(row):
    labels = [entry.label for entry in row.entries]
    assert len(set(labels)) == len(labels)
    assert {entry.contender for entry in row.entries} <= set(CONTENDERS)
    for target in row.targets:
        assert {target.label, *getattr(target, "others", ())} <= set(labels)
    assert not row.size or all(row.n_items(entry) > 1 for entry in row.entries)


def test_the_rows_are_those_of_the_design():
    assert [row.number for row in ROWS] == sorted(row.number for row in ROWS)
    assert {row.number for row in ROWS} == {*range(1, 20)}


@pytest.mark.usefixtures("nothing_left")
def test_a_tiny_row_of_parcompute_and_pool_is_measured_and_recorded(tmp_path, monkeypatch, capsys):
    (row,) = bench.chosen(ROWS, ["1"], ["Pool", "parcompute"])
    monkeypatch.setattr(bench, "ROWS", (replace(row, parameters={"n": 200}),))
    assert bench.main(["--rounds", "2", "--results", str(tmp_path)]) == 0
    out = capsys.readouterr().out
    assert out.count("n = 2") == 2
    recorded = read(tmp_path / "bench.h5")
    assert recorded.experiment == "bench"
    runs = [(run.configuration.backend, run.round, run.configuration.n_items, run.verified) for run in recorded.runs]
    assert sorted(runs) == [(name, r, 200, True) for name in ("Pool", "parcompute") for r in (0, 1)]
    (conditions,) = recorded.provenance.values()
    assert (conditions["row"], conditions["row_unit"]) == ("1", "µs")


@pytest.mark.skipif(shutil.which("make") is None, reason="no make")
def test_make_bench_passes_its_arguments_on_and_nothing_else():
    done = subprocess.run(
        ["make", "--no-print-directory", "-n", "-C", ROOT, "bench", "ARGS=--row 1", "PRESET=quick"],
        capture_output=True, text=True, timeout=60, check=True,
    )  # fmt: skip
    assert done.stdout.splitlines()[-1].endswith(" benchmarks/bench.py --row 1")
