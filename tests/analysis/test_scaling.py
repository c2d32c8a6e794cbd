"""Speedups know their base and interval, unlike runs refuse to mix, the verdict says no more than is known."""

from __future__ import annotations

import csv
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from parcompute.analysis import laws
from parcompute.analysis.fits import fit
from parcompute.analysis.scaling import alike, curves
from parcompute.analysis.verdict import verdict
from parcompute.machine.provenance import Provenance
from parcompute.machine.quiet import Counters
from parcompute.values.intervals import paired_ratio, ratio
from parcompute.values.parts import PARTS
from parcompute.values.sweep import Configuration, Run
from parcompute.values.timeline import CHUNK_DTYPE, WORKER_DTYPE, Timeline


def a_run(
    backend: str,
    n_workers: int,
    wall_s: float,
    round_: int = 0,
    *,
    kind: str = "strong",
    n_items: int = 2**20,
    schedule: str = "guided",
    n_chunks: int = 40,
    timeline: Timeline | None = None,
    provenance: str = "here",
) -> Run:
    return Run(
        configuration=Configuration(backend, n_workers, 1, schedule, "", kind, n_items),
        round=round_,
        seed=1,
        block_items=4096,
        n_chunks=n_chunks,
        wall_s=wall_s,
        startup_s=0.1,
        cpu_s=wall_s,
        digest="f" * 64,
        value=1.0,
        error=0.0,
        tolerance=1e-3,
        verified=True,
        disturbed="",
        started_utc="2025-01-01T00:00:00+00:00",
        provenance=provenance,
        timelines=() if timeline is None else (timeline,),
    )


def a_sweep(times: dict[tuple[str, int], float], n_rounds: int = 8, cv: float = 0.005, seed: int = 0) -> list[Run]:
    """Runs of each (backend, n_workers) that scatter around a time."""
    rng = np.random.default_rng(seed)
    return [
        a_run(backend, n_workers, wall_s * float(rng.lognormal(0, cv)), round_)
        for round_ in range(n_rounds)
        for (backend, n_workers), wall_s in times.items()
    ]


TWO = {("serial", 1): 8.0, ("processes", 1): 8.1, ("processes", 2): 4.1}


def amdahl_times(s: float, counts: tuple[int, ...]) -> dict[tuple[str, int], float]:
    return {("serial", 1): 8.0} | {("processes", N): 8.0 / float(laws.amdahl(N, s)) for N in counts}


# ── speedup and its base ──────────────────────────────────────────────────────────────────────────────


def walls_of(runs: list[Run], backend: str, n_workers: int) -> list[float]:
    return [
        run.wall_s for run in runs if (run.configuration.backend, run.configuration.n_workers) == (backend, n_workers)
    ]


def test_a_speedup_is_that_within_rounds() -> None:
    runs = a_sweep(TWO)
    (curve,) = curves(runs, base="best_serial", n_cpus=2)
    serial, two = walls_of(runs, "serial", 1), walls_of(runs, "processes", 2)
    assert curve.points[1].speedup == paired_ratio(serial, two)
    assert curve.points[1].speedups.tolist() == [one / other for one, other in zip(serial, two, strict=True)]
    assert curve.points[1].efficiency == paired_ratio(serial, two).scaled(1 / 2)
    assert curve.base.wall.median.value == np.median(serial)


def test_a_machine_that_drifts_widens_no_speedup() -> None:
    slower = np.random.default_rng(3).uniform(1, 2, 8)
    calm = a_sweep(TWO)
    drifting = [replace(run, wall_s=run.wall_s * slower[run.round]) for run in calm]
    (one,), (other,) = (curves(runs, base="best_serial", n_cpus=2) for runs in (calm, drifting))
    for a, b in zip(one.points, other.points, strict=True):
        assert (a.speedup.low, a.speedup.high) == pytest.approx((b.speedup.low, b.speedup.high))
    assert other.parallel_tax == one.parallel_tax


def test_runs_of_another_session_are_no_round_with_those_before() -> None:
    morning, evening = Provenance(collected_utc="morning"), Provenance(collected_utc="evening")
    of = {each.id: each.as_dict() for each in (morning, evening)}
    runs = [
        replace(run, provenance=(morning if run.configuration.backend == "serial" else evening).id)
        for run in a_sweep(TWO)
    ]
    (curve,) = curves(runs, base="best_serial", n_cpus=2, provenance=of)
    assert [len(point.speedups) for point in curve.points] == [0, 0]
    assert curve.points[1].speedup == ratio(walls_of(runs, "serial", 1), walls_of(runs, "processes", 2))


def test_weak_scaling_is_scaled_within_rounds_too() -> None:
    runs = [
        a_run("mpi", N, 1.0 + 0.1 * N + 0.01 * round_, round_, kind="weak", n_items=100 * N)
        for round_ in range(6)
        for N in (1, 2)
    ]
    (curve,) = curves(runs, base="one_worker", n_cpus=2)
    assert curve.points[1].speedups == pytest.approx([2 * (1.1 + 0.01 * i) / (1.2 + 0.01 * i) for i in range(6)])
    assert curve.points[1].speedup.low <= 2 * 1.1 / 1.2 <= curve.points[1].speedup.value


@pytest.mark.parametrize(
    ("base", "backend", "time_s"), [("best_serial", "serial", 8.0), ("one_worker", "processes", 8.1)]
)
def test_the_base_is_the_one_that_was_asked_for(base: str, backend: str, time_s: float) -> None:
    (curve,) = curves(a_sweep(TWO), base=base, n_cpus=2)
    assert (curve.base.backend, curve.base.n_workers) == (backend, 1)
    assert curve.base.wall.median.value == pytest.approx(time_s, rel=0.01)
    assert f"{curve.base.wall.median.value:.4g}" in str(curve.base)


def test_the_parallel_tax_is_one_worker_over_the_best_serial_run() -> None:
    (curve,) = curves(a_sweep(TWO), base="one_worker", n_cpus=2)
    assert curve.parallel_tax is not None
    assert curve.parallel_tax.value == pytest.approx(8.1 / 8.0, rel=0.01)


def test_a_base_that_was_not_measured_is_asked_for() -> None:
    runs = a_sweep({("processes", 2): 4.0, ("processes", 4): 2.0})
    with pytest.raises(ValueError, match="base='best_serial' needs an undisturbed, verified run of backend serial"):
        curves(runs, base="best_serial", n_cpus=4)
    with pytest.raises(ValueError, match="of backend processes with n_workers=1, n_items=1048576"):
        curves(runs, base="one_worker", n_cpus=4)
    (curve,) = curves(runs, base="smallest_n", n_cpus=4)
    assert curve.base.n_workers == 2
    assert curve.points[1].speedup.value == pytest.approx(2, rel=0.01)
    assert curve.points[1].efficiency.value == pytest.approx(1, rel=0.01)


def test_an_unknown_base_is_named() -> None:
    with pytest.raises(ValueError, match="base='fastest' is unknown; pass one of best_serial, one_worker, smallest_n"):
        curves(a_sweep(TWO), base="fastest", n_cpus=2)  # type: ignore[arg-type]


@pytest.mark.parametrize(("n_rounds", "is_range"), [(5, True), (6, False)])
def test_few_runs_give_a_range(n_rounds: int, is_range: bool) -> None:
    (curve,) = curves(a_sweep(TWO, n_rounds), base="best_serial", n_cpus=2)
    assert curve.points[1].speedup.is_range == is_range


def test_the_serial_fraction_is_that_of_karp_and_flatt_and_its_interval_follows_the_speedup() -> None:
    (curve,) = curves(a_sweep(amdahl_times(0.1, (1, 2, 4))), base="one_worker", n_cpus=4)
    one, two, four = curve.points
    assert one.karp_flatt is None
    for point in (two, four):
        assert point.karp_flatt is not None
        assert point.karp_flatt.value == pytest.approx(0.1, abs=0.02)
        assert point.karp_flatt.low == pytest.approx(float(laws.karp_flatt(point.n_workers, point.speedup.high)))
        assert point.karp_flatt.low <= point.karp_flatt.value <= point.karp_flatt.high
    assert two.karp_flatt_sd == pytest.approx(2**0.5 * 0.005 * 2 / two.speedup.value, rel=0.6)
    assert four.karp_flatt_sd < two.karp_flatt_sd


@pytest.mark.parametrize(
    ("schedule", "n_chunks", "bound"), [("static", 5, 5 / 8), ("dynamic,8", 32, 1.0), ("guided", 5, 1.0)]
)
def test_the_bound_counts_the_pieces_that_cannot_be_split(schedule: str, n_chunks: int, bound: float) -> None:
    runs = [a_run("processes", 4, 1.0, schedule=schedule, n_chunks=n_chunks)]
    (curve,) = curves(runs, base="smallest_n", n_cpus=4)
    assert curve.points[0].efficiency_bound == bound


# ── what is left out, what is kept apart ──────────────────────────────────────────────────────────────


def test_disturbed_and_wrong_runs_are_left_out_and_counted() -> None:
    runs = a_sweep(TWO)
    spoilt = [
        replace(a_run("processes", 2, 100.0), disturbed="load"),
        replace(a_run("processes", 2, 0.001), verified=False),
    ]
    (curve,) = curves([*runs, *spoilt, spoilt[0]], base="best_serial", n_cpus=2)
    (clean,) = curves(runs, base="best_serial", n_cpus=2)
    assert dict(curve.left_out) == {"disturbed": 2, "not verified": 1}
    assert curve.points[1].speedup == clean.points[1].speedup
    assert "left out: 2 disturbed, 1 not verified" in verdict(curve).numbers


def test_a_base_of_few_disturbed_runs_is_none() -> None:
    runs = [replace(run, disturbed="load") if run.configuration.backend == "serial" else run for run in a_sweep(TWO, 5)]
    with pytest.raises(ValueError, match="needs an undisturbed, verified run of backend serial"):
        curves(runs, base="best_serial", n_cpus=2)


def test_what_was_disturbed_all_day_has_speedups_and_ranges_of_times() -> None:
    runs = a_sweep(TWO)
    (quiet,) = curves(runs, base="best_serial", n_cpus=2)
    (curve,) = curves([replace(run, disturbed="load") for run in runs], base="best_serial", n_cpus=2)
    for one, other in zip(curve.points, quiet.points, strict=True):
        assert (one.speedup, one.n_disturbed, one.wall.n) == (other.speedup, 8, 8)
        assert (one.wall.median.is_range, one.wall.median.value) == (True, other.wall.median.value)
    assert curve.base.wall.median.is_range
    assert (curve.fit, dict(curve.left_out)) == (None, {})


def test_runs_of_unlike_conditions_refuse_to_mix() -> None:
    runs = [*a_sweep(TWO), a_run("processes", 2, 4.0, provenance="there")]
    with pytest.raises(ValueError, match="unlike conditions are mixed: here, there; sort them with alike"):
        curves(runs, base="best_serial", n_cpus=2)


def test_conditions_that_may_vary_do_not_set_runs_apart() -> None:
    one, later, other = (Provenance(cpu_model=cpu, seed=seed) for cpu, seed in (("a", 1), ("a", 2), ("b", 1)))
    provenance = {each.id: each.as_dict() for each in (one, later, other)}
    runs = [a_run("processes", 1, 2.0, provenance=each.id) for each in (one, later, other)]
    groups = alike(runs, provenance)
    assert [len(members) for members in groups.values()] == [2, 1]
    assert len(curves(groups[one.conditions_id], base="one_worker", n_cpus=1, provenance=provenance)) == 1
    with pytest.raises(ValueError, match="unlike conditions"):
        curves(runs, base="one_worker", n_cpus=1, provenance=provenance)


def test_problems_of_unlike_size_are_curves_of_their_own() -> None:
    runs = [
        a_run(backend, n, 8.0 * size / n, round_, n_items=size * 2**20)
        for round_ in range(6)
        for size in (1, 4)
        for backend, n in TWO
    ]
    found = curves(runs, base="best_serial", n_cpus=2)
    assert [curve.n_items for curve in found] == [2**20, 2**22]
    assert [curve.base.wall.median.value for curve in found] == [8.0, 32.0]


def test_each_way_of_running_has_its_curve() -> None:
    runs = a_sweep(TWO | {("threads", 1): 8.0, ("threads", 2): 5.0})
    assert [curve.backend for curve in curves(runs, base="best_serial", n_cpus=2)] == ["processes", "threads"]


def test_no_fit_goes_beyond_the_cpus() -> None:
    times = amdahl_times(0.05, (1, 2, 4)) | {("processes", 8): 50.0}
    (curve,) = curves(a_sweep(times), base="one_worker", n_cpus=4)
    assert [point.beyond for point in curve.points] == [False, False, False, True]
    assert curve.fit is not None
    assert curve.fit.n_workers.max() == 4
    assert curve.fit.parameters["s"] == pytest.approx(0.05, abs=0.01)


# ── published curves ──────────────────────────────────────────────────────────────────────────────────


def table(name: str) -> list[dict[str, str]]:
    text = (Path(__file__).parents[1] / "data" / f"{name}.csv").read_text(encoding="utf-8")
    return list(csv.DictReader(line for line in text.splitlines() if not line.startswith("#")))


@pytest.mark.parametrize("model", ["shallow_water_4096", "nonhydrostatic_256"])
def test_strong_scaling_of_oceananigans(model: str) -> None:
    rows = [row for row in table("oceananigans_strong") if row["model"] == model]
    runs = [a_run("mpi", int(row["ranks"]), float(row["median_s"])) for row in rows]
    (curve,) = curves(runs, base="one_worker", n_cpus=128)
    for row, point in zip(rows, curve.points, strict=True):
        # Times are printed with four digits, speedups were computed before: 1.437 s may be off by 3.5e-4.
        assert point.speedup.value == pytest.approx(float(row["published_speedup"]), rel=4e-4)
        assert point.efficiency.value == pytest.approx(float(row["published_efficiency"]), rel=4e-4)


def test_weak_scaling_of_oceananigans() -> None:
    rows = table("oceananigans_weak")
    runs = [
        a_run("mpi", int(row["ranks"]), float(row["median_s"]), kind="weak", n_items=4096 * int(row["ranks"]))
        for row in rows
    ]
    (curve,) = curves(runs, base="one_worker", n_cpus=128)
    assert curve.fit is not None
    assert curve.fit.law == "gustafson"
    for row, point in zip(rows, curve.points, strict=True):
        assert point.efficiency.value == pytest.approx(float(row["published_efficiency"]), rel=2e-4)
        assert point.speedup.value == pytest.approx(point.n_workers * point.efficiency.value)
        assert point.karp_flatt is None


@pytest.mark.parametrize("rdma", ["T", "F"])
@pytest.mark.parametrize("kind", ["strong", "weak"])
def test_scaling_of_mfc_from_its_smallest_number_of_nodes(kind: str, rdma: str) -> None:
    rows = [row for row in table("mfc_frontier") if (row["kind"], row["rdma"]) == (kind, rdma)]
    per_node = 2**20
    runs = [
        a_run("mpi", N, float(row["time_avg_s"]), kind=kind, n_items=per_node * (N if kind == "weak" else 1))
        for row in rows
        for N in [int(row["nodes"])]
    ]
    (curve,) = curves(runs, base="smallest_n", n_cpus=8192)
    for row, point in zip(rows, curve.points, strict=True):
        assert point.efficiency.value == pytest.approx(float(row["published_efficiency"]), abs=2e-4)
        if row["published_speedup"]:
            assert point.speedup.value == pytest.approx(float(row["published_speedup"]), rel=2e-4)


# ── in words ──────────────────────────────────────────────────────────────────────────────────────────


def a_timeline(wall_s: float, n_workers: int, dispatch_share: float) -> Timeline:
    end = round(wall_s * 1e9)
    begin = round(end * dispatch_share)
    chunks = np.array([(i, i, 0, begin, end, end - begin, end) for i in range(n_workers)], CHUNK_DTYPE)
    return Timeline(0, 0, end, chunks, np.array([(i, 100 + i, 0) for i in range(n_workers)], WORKER_DTYPE))


def test_the_first_line_is_for_people_and_the_numbers_stand_under_it() -> None:
    runs = [
        replace(run, timelines=(a_timeline(run.wall_s, run.configuration.n_workers, 0.013),))
        if run.configuration.n_workers == 2
        else run
        for run in a_sweep(TWO)
    ]
    (curve,) = curves(runs, base="best_serial", n_cpus=2)
    S, wall = curve.points[1].speedup, curve.base.wall.median
    assert str(verdict(curve, "heat")).splitlines() == [
        f"processes: on 2 workers, heat runs {S.value:.3g} times as fast as without parallelism (ideal: 2). "
        f"What is missing is mostly fetching work, 1 % of the core time ({PARTS['dispatch']}).",
        f"  on 2: {S.value:.2f}× (95 % {S.low:.2f}–{S.high:.2f}, within 8 rounds), efficiency {50 * S.value:.1f} % "
        f"({50 * S.low:.1f}–{50 * S.high:.1f})",
        f"  base: best serial, {wall.value:.4g} (95 % {wall.low:.4g}–{wall.high:.4g}) s",
        "  Amdahl's law: serial fraction not identifiable from 2 points",
        "  whether others used the machine meanwhile is not known: it has no counters for it",
    ]


def test_the_loss_is_measured_against_the_kernels_of_the_base() -> None:
    runs = [
        replace(run, timelines=(a_timeline(run.wall_s, run.configuration.n_workers, 0.0),))
        for run in a_sweep({("serial", 1): 6.0, ("processes", 1): 6.0, ("processes", 2): 4.0}, cv=0.0)
    ]
    (curve,) = curves(runs, base="best_serial", n_cpus=2)
    assert curve.points[1].lost["slowdown"] == pytest.approx(0.25)
    assert "What is missing is mostly slower computing, 25 % of the core time (on a CPU but" in verdict(curve).sentence
    assert any(line.startswith("apparent serial fraction 33.3 %: 33.3 slower") for line in verdict(curve).numbers)


@pytest.mark.parametrize(
    ("times", "n_rounds", "words"),
    [
        (
            {("serial", 1): 8.0, ("processes", 2): 4.2},
            8,
            "on 2 workers, this runs 1.9 times as fast as without parallel",
        ),
        ({("serial", 1): 8.0, ("processes", 2): 4.2}, 3, " (ideal: 2), from too few rounds to be sure."),
        (
            {("serial", 1): 8.0, ("processes", 2): 8.0},
            8,
            "this is no faster than without parallelism, as far as the runs",
        ),
        (
            {("serial", 1): 8.0, ("processes", 2): 12.0},
            8,
            "more workers make it slower: on 2 workers, this takes 1.5 times",
        ),
        ({("serial", 1): 8.0, ("processes", 1): 8.8}, 8, "this takes 1.10 times as long on one worker as without"),
        ({("processes", 2): 8.0}, 8, "s on 2 workers, the only number of workers that was measured."),
        (
            {("processes", 2): 8.0, ("processes", 4): 12.0},
            8,
            "on 2 workers, as fast as it gets. From there on more workers",
        ),
        ({("processes", 2): 8.0, ("processes", 4): 4.2}, 8, "times as fast as 2 workers (ideal: 2)."),
    ],
)
def test_faster_and_slower_are_said_only_where_the_interval_excludes_one(times, n_rounds, words) -> None:
    base = "best_serial" if ("serial", 1) in times else "smallest_n"
    (curve,) = curves(a_sweep(times, n_rounds, cv=0.002), base=base, n_cpus=4)
    assert words in verdict(curve).sentence


def test_weak_scaling_is_told_as_work_in_the_same_time() -> None:
    runs = [
        a_run("mpi", N, (1.0 + 0.03 * N) * (1 + 0.001 * (i % 3)), i, kind="weak", n_items=100 * N)
        for i in range(6)
        for N in (1, 2, 4)
    ]
    (curve,) = curves(runs, base="one_worker", n_cpus=4)
    assert "on 4 workers, this does 3.7 times the work of one worker in the same time (ideal: 4)." in str(
        verdict(curve)
    )


def test_the_verdict_tells_where_scaling_ends() -> None:
    times = {
        ("serial", 1): 8.0,
        ("processes", 1): 8.0,
        ("processes", 2): 4.1,
        ("processes", 4): 3.0,
        ("processes", 8): 5.0,
    }
    (curve,) = curves(a_sweep(times), base="best_serial", n_cpus=8)
    said = verdict(curve)
    assert "on 4 workers, this runs 2.7 times as fast" in said.sentence
    assert "From there on more workers make it slower: 1.6 times on 8." in said.sentence
    assert "What the rest goes to is not known: no run has a timeline." in said.sentence
    assert [line.partition(":")[0] for line in said.numbers[:2]] == ["on 4", "on 8"]
    assert any("Amdahl's law does not hold" in line for line in said.numbers)
    assert "By the fitted law" not in said.sentence


def test_the_verdict_gives_the_serial_fraction_where_the_points_do() -> None:
    (curve,) = curves(a_sweep(amdahl_times(0.05, (1, 2, 4, 8))), base="best_serial", n_cpus=8)
    assert curve.fit is not None
    low, high = curve.fit.intervals["s"]
    assert low < 0.05 < high
    s, most = 100 * curve.fit.parameters["s"], round(curve.fit.parameters["S_max"])
    told = f"Amdahl's law: serial fraction {s:.2g} % (95 % {100 * low:.2g}–{100 * high:.2g}), so at most {most}×"
    assert told in verdict(curve).numbers
    assert f"no number of workers makes it more than {most} times as fast." in verdict(curve).sentence


def test_a_law_with_a_peak_is_told_by_it() -> None:
    N = [1, 2, 4, 8, 16, 32]
    (curve,) = curves(a_sweep({("processes", n): 8.0 for n in N}), base="one_worker", n_cpus=32)
    peaked = verdict(replace(curve, fit=fit("usl", N, [8.0 * (0.95 / n + 0.05 + 0.004 * n) for n in N])))
    assert "By the fitted law it is fastest on about 15 workers." in peaked.sentence
    assert any(line.startswith("USL: T1 8.03, sigma 0.0538, kappa 0.00398, ") for line in peaked.numbers)


def test_perfect_scaling_bounds_the_serial_fraction() -> None:
    times = {("serial", 1): 8.0} | {("processes", N): 8.0 / N**1.001 for N in (1, 2, 4, 8)}
    (curve,) = curves(a_sweep(times), base="best_serial", n_cpus=8)
    assert any(line.startswith("Amdahl's law: serial fraction below 0.") for line in verdict(curve).numbers)


def test_more_than_ideal_is_pointed_out() -> None:
    (curve,) = curves(a_sweep({("serial", 1): 8.0, ("processes", 2): 3.0}), base="best_serial", n_cpus=2)
    assert "That is more than ideal: the base may be no baseline" in verdict(curve).sentence


def test_more_workers_than_cpus_are_not_called_cpus() -> None:
    runs = a_sweep({("serial", 1): 8.0, ("processes", 4): 4.0})
    (curve,) = curves(runs, base="best_serial", n_cpus=2)
    assert curve.fit is None
    assert "on 4 workers that share 2 CPUs, this runs" in verdict(curve).sentence


def test_wrong_results_and_disturbed_rounds_are_told() -> None:
    runs = [replace(run, disturbed="load") if run.round > 3 else run for run in a_sweep(TWO)]
    wrong = replace(a_run("processes", 2, 4.1, 8), verified=False)
    (curve,) = curves([*runs, wrong], base="best_serial", n_cpus=2)
    said = verdict(curve)
    assert "1 run gave a wrong result and is in no number." in said.sentence
    assert ", within 8 rounds, 4 of them disturbed), " in said.numbers[0]
    assert "left out: 8 disturbed, 1 not verified" in said.numbers


def test_a_machine_whose_counters_are_known_is_not_said_to_have_none() -> None:
    runs = [replace(run, counters=Counters(stolen_s=0.0)) for run in a_sweep(TWO)]
    (curve,) = curves(runs, base="best_serial", n_cpus=2)
    assert "counters" not in str(verdict(curve))


@given(
    times=st.dictionaries(st.integers(1, 64), st.floats(1e-3, 1e3), min_size=1, max_size=6),
    n_rounds=st.integers(1, 7),
    n_cpus=st.integers(1, 64),
)
def test_any_times_have_a_verdict(times: dict[int, float], n_rounds: int, n_cpus: int) -> None:
    runs = [a_run("processes", N, T, round_) for round_ in range(n_rounds) for N, T in times.items()]
    (curve,) = curves(runs, base="smallest_n", n_cpus=n_cpus)
    assert [point.n_workers for point in curve.points] == sorted(times)
    said = str(verdict(curve))
    assert said.count("\n") == len(verdict(curve).numbers)
    assert "nan" not in said
