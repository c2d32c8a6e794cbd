"""The laws of scaling, and fits that reproduce published numbers and know what they cannot know."""

from __future__ import annotations

import csv
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from parcompute.analysis import laws
from parcompute.analysis.choice import nested_test, prefer
from parcompute.analysis.fits import LAWS, LOSSES, fit

Column = npt.NDArray[np.float64]


def columns(name: str, *wanted: str, **where: str) -> tuple[Column, ...]:
    """Columns of a published table, of the rows where other columns have given values; empty cells are NaN."""
    text = (Path(__file__).parents[1] / "data" / f"{name}.csv").read_text(encoding="utf-8")
    table = csv.DictReader(line for line in text.splitlines() if not line.startswith("#"))
    rows = [row for row in table if all(row[key] == value for key, value in where.items())]
    return tuple(np.array([float(row[name] or "nan") for row in rows]) for name in wanted)


# ── published fits ────────────────────────────────────────────────────────────────────────────────────


def test_specsdm91_by_nonlinear_least_squares() -> None:
    N, X = columns("usl_specsdm91", "load", "throughput")
    found = fit("usl", N, 1 / X, loss="throughput")
    T1 = found.parameters["T1"]
    assert found.parameters["sigma"] == pytest.approx(0.0277285, abs=5e-8)
    assert found.parameters["kappa"] == pytest.approx(1.044e-4, abs=5e-8)
    assert found.times(1) == pytest.approx(1 / 90.00, rel=1e-4)
    assert found.standard_errors["sigma"] == pytest.approx(0.0091217, abs=5e-8)
    assert found.standard_errors["kappa"] == pytest.approx(1.988e-5, abs=5e-9)
    assert found.standard_errors["T1"] / T1**2 == pytest.approx(14.21, abs=5e-3)
    assert found.parameters["N_peak"] == pytest.approx(96.51956, abs=5e-5)
    assert found.parameters["S_limit"] / T1 == pytest.approx(3245.589, abs=5e-3)
    assert found.residuals == pytest.approx([-25.10, -81.66, 111.09, 3.05, -49.99, -46.60, 56.00], abs=5e-3)


def test_specsdm91_by_the_linearised_form() -> None:
    N, X = columns("usl_specsdm91", "load", "throughput")
    found = fit("usl", N, 1 / X, loss="linearised")
    assert found.parameters["sigma"] == pytest.approx(0.0170469, abs=5e-8)
    assert found.parameters["kappa"] == pytest.approx(7.8925e-5, abs=5e-10)
    assert found.standard_errors["sigma"] == pytest.approx(3.318e-3, abs=5e-7)
    assert found.standard_errors["kappa"] == pytest.approx(2.492e-5, abs=5e-9)
    assert 1 - found.rss / ((X - X.mean()) ** 2).sum() == pytest.approx(0.9624, abs=5e-5)


def test_raytracer_first_six_rows() -> None:
    N, X = columns("usl_raytracer", "processors", "throughput")
    found = fit("usl", N[:6], 1 / X[:6], loss="throughput")
    assert found.parameters["sigma"] == pytest.approx(0.02444, abs=5e-6)
    assert found.parameters["kappa"] == pytest.approx(0.00163, abs=5e-6)
    assert 1 / found.parameters["T1"] == pytest.approx(20.85605, abs=5e-6)


def test_raytracer_has_kappa_on_its_boundary() -> None:
    N, X = columns("usl_raytracer", "processors", "throughput")
    found = fit("usl", N, 1 / X, loss="throughput")
    assert found.boundary == ("kappa",)
    assert found.parameters["kappa"] == 0
    assert found.parameters["N_peak"] == np.inf
    assert found.parameters["sigma"] == pytest.approx(0.05777, abs=5e-6)
    assert 1 / found.parameters["T1"] == pytest.approx(21.849, abs=5e-4)


@pytest.mark.parametrize("loss", LOSSES)
def test_the_synthetic_table_gives_the_parameters_it_was_made_with(loss: str) -> None:
    N, X = columns("usl_synthetic_exact", "load", "throughput")
    found = fit("usl", N, 1 / X, loss=loss)
    assert [found.parameters[name] for name in ("T1", "sigma", "kappa")] == pytest.approx([1, 0.02, 0.02], abs=3e-4)


def test_the_memory_of_four_x7550_saturates() -> None:
    N, X = columns("stream_triad_scaling", "threads", "MB_per_s", system="4 X X7550")
    fits = {law: fit(law, N, 1 / X, loss="log") for law in ("saturation", "amdahl", "usl")}
    assert prefer(*fits.values()).law == "saturation"
    assert [each.aicc for each in fits.values()] == pytest.approx([-58.25, -21.45, -25.61], abs=5e-3)
    found = fits["saturation"].parameters
    assert [found[name] for name in ("x1", "X_sat", "p")] == pytest.approx([5271, 35904, 4.43], rel=1e-3)


def test_metsim_has_no_base_case_and_still_a_serial_time() -> None:
    N, T = columns("python_mp_metsim", "processes", "time_s")
    found = fit("amdahl", N, T)
    assert found.parameters["T1"] == pytest.approx(1372, abs=0.5)
    assert found.parameters["s"] == pytest.approx(0.0439, abs=5e-5)
    assert abs(found.residuals).max() == pytest.approx(0.024, abs=5e-4)


def test_serial_fractions_of_the_pi_course() -> None:
    N, T, published = columns("pi_universe_hpc_strong", "cores", "time_s", "published_Fs")
    e = laws.karp_flatt(N[1:], T[0] / T[1:])
    assert e == pytest.approx(published[1:], abs=4e-6)
    assert e.mean() == pytest.approx(0.0346242, abs=4e-6)
    predicted = T[0] / laws.amdahl([2, 16, 4096], float(e.mean()))
    assert predicted == pytest.approx([2.067504, 0.379522, 0.139323], rel=2e-5)


@pytest.mark.parametrize("machine", ["A", "B"])
def test_serial_fractions_of_the_textbook(machine: str) -> None:
    N, S, e = columns("karp_flatt_textbook", "p", f"speedup_{machine}", f"e_{machine}")
    # Speedups are printed with two digits after the point.
    assert laws.karp_flatt(N, S) == pytest.approx(e, abs=6e-3)


# ── what a fit knows about itself ─────────────────────────────────────────────────────────────────────

LINEAR = {
    "amdahl": st.tuples(st.floats(0.1, 100), st.floats(0.001, 0.5)),
    "gustafson": st.tuples(st.floats(0.1, 100), st.floats(0.001, 0.5)),
    "usl": st.tuples(st.floats(0.1, 100), st.floats(0.01, 0.3), st.floats(1e-4, 0.009)),
    "logarithmic": st.tuples(st.floats(0.1, 100), st.floats(0.001, 0.5), st.floats(0.001, 0.1)),
}


@pytest.mark.parametrize("law", LINEAR)
@settings(max_examples=30)
@given(data=st.data())
def test_exact_times_give_back_their_parameters(law: str, data: st.DataObject) -> None:
    theta = np.array(data.draw(LINEAR[law]))
    N = np.array([1.0, 2, 4, 8, 16, 32, 64])
    found = fit(law, N, LAWS[law].time(N, theta))
    assert [found.parameters[name] for name in LAWS[law].parameters] == pytest.approx(theta, rel=1e-5)
    assert found.times(N) == pytest.approx(LAWS[law].time(N, theta))


@pytest.mark.parametrize("loss", ["relative", "log", "throughput"])
@settings(max_examples=15)
@given(x1=st.floats(0.1, 1e4), knee=st.floats(3, 12), p=st.floats(1.5, 8))
def test_exact_rates_give_back_their_saturation(loss: str, x1: float, knee: float, p: float) -> None:
    N = np.array([1.0, 2, 4, 8, 16, 32])
    found = fit("saturation", N, 1 / laws.saturation(N, x1, knee * x1, p), loss=loss)
    assert found.parameters["N_sat"] == pytest.approx(knee, rel=1e-3)
    assert found.parameters["p"] == pytest.approx(p, rel=1e-2)


@given(scale=st.floats(1e-6, 1e6), loss=st.sampled_from(["relative", "log", "throughput"]))
@settings(max_examples=20)
def test_the_unit_of_time_changes_no_fraction(scale: float, loss: str) -> None:
    N, T = np.array([1.0, 2, 4, 8, 16]), np.array([8.0, 4.3, 2.5, 1.55, 1.1])
    one, other = fit("amdahl", N, T, loss=loss), fit("amdahl", N, scale * T, loss=loss)
    assert other.parameters["s"] == pytest.approx(one.parameters["s"], rel=1e-5)
    assert other.parameters["T1"] == pytest.approx(scale * one.parameters["T1"], rel=1e-5)


def test_two_points_give_bounds_and_no_parameters() -> None:
    found = fit("amdahl", [1, 2], [8.0, 4.4])
    assert not found.identifiable
    assert found.reason == "not identifiable from 2 points"
    assert found.parameters == {}
    assert found.aicc is None
    assert found.intervals == {"s": (0, pytest.approx(0.1)), "S_max": (pytest.approx(10), np.inf)}
    with pytest.raises(ValueError, match="amdahl has no parameters here: not identifiable from 2 points"):
        found.times(4)


def test_one_point_excludes_nothing() -> None:
    found = fit("amdahl", [4, 4, 4], [1.0, 1.1, 1.2])
    assert found.reason == "not identifiable from 1 point"
    assert found.intervals["s"] == (0, 1)


def test_ideal_times_on_two_workers_bound_the_serial_fraction_from_noise_alone() -> None:
    rng = np.random.default_rng(0)
    rounds = np.repeat(np.arange(10), 2)
    N = np.tile([1.0, 2.0], 10)
    found = fit("amdahl", N, 8 / N * rng.lognormal(0, 0.02, 20), rounds=rounds)
    assert found.intervals["s"][0] == 0
    assert 0.005 < found.intervals["s"][1] < 0.05


@pytest.mark.parametrize("law", ["usl", "logarithmic", "saturation"])
def test_three_parameters_need_four_points(law: str) -> None:
    assert fit(law, [1, 2, 4], [8.0, 4.3, 2.5]).reason == "not identifiable from 3 points"


def test_contention_and_coherency_cannot_be_told_apart_up_to_eight_workers() -> None:
    N = np.array([1.0, 2, 3, 4, 6, 8])
    found = fit("usl", N, 1 / laws.usl(N, 0.03, 0.001))
    assert not found.identifiable
    assert found.reason == "up to 8 workers sigma and kappa cannot be told apart"


def noisy(law: str, theta: list[float], N: list[int], n_rounds: int, seed: int, cv: float = 0.02):
    rng = np.random.default_rng(seed)
    all_n = np.tile(np.array(N, float), n_rounds)
    T = LAWS[law].time(all_n, np.array(theta)) * rng.lognormal(0, cv, len(all_n))
    return all_n, T, np.repeat(np.arange(n_rounds), len(N))


def test_a_boundary_gives_one_sided_bounds() -> None:
    N, T, rounds = noisy("amdahl", [8.0, 0.05], [1, 2, 4, 8, 16, 32], n_rounds=8, seed=1)
    found = fit("usl", N, T, rounds=rounds, n_draws=200)
    assert found.boundary == ("kappa",)
    assert found.intervals["kappa"][0] == 0 < found.intervals["kappa"][1]
    assert found.intervals["N_peak"][1] == np.inf
    assert found.intervals["N_peak"][0] == laws.usl_peak(found.parameters["sigma"], found.intervals["kappa"][1])


@pytest.mark.parametrize("seed", range(5))
def test_points_on_two_workers_that_are_faster_than_ideal_claim_no_certainty(seed: int) -> None:
    N, T, rounds = noisy("amdahl", [8.0, 0.0], [1, 2], n_rounds=10, seed=seed)
    found = fit("amdahl", N, np.where(N == 2, 0.97 * T, T), rounds=rounds)
    assert found.intervals["s"][1] > 0.003
    assert found.intervals["S_max"][0] < 350


def test_s_on_its_upper_boundary_is_bounded_from_below() -> None:
    N, T, rounds = noisy("amdahl", [8.0, 1.0], [1, 2, 4], n_rounds=8, seed=4)
    found = fit("amdahl", N, T * N**0.02, rounds=rounds)
    assert found.boundary == ("s",)
    assert 0.9 < found.intervals["s"][0] < found.intervals["s"][1] == 1


@pytest.mark.slow
@pytest.mark.parametrize(
    ("law", "theta", "counts"),
    [
        ("usl", [8.0, 0.05, 0.002], [1, 2, 4, 8, 16, 32]),
        # Drawn and fitted in the same way, with one column less.
        pytest.param("amdahl", [8.0, 0.05], [1, 2, 4, 8, 16], marks=pytest.mark.stress),
    ],
)
def test_intervals_cover_the_truth_as_often_as_they_say(law: str, theta: list[float], counts: list[int]) -> None:
    names, n_sweeps = LAWS[law].parameters[1:], 300
    covered = dict.fromkeys(names, 0)
    for seed in range(n_sweeps):
        N, T, rounds = noisy(law, theta, counts, n_rounds=8, seed=seed)
        shared = np.random.default_rng(10_000 + seed).lognormal(0, 0.01, 8)  # what disturbs all runs of a round
        intervals = fit(law, N, T * shared[rounds], rounds=rounds, n_draws=300, seed=seed).intervals
        for name, truth in zip(names, theta[1:], strict=True):
            low, high = intervals[name]
            covered[name] += low <= truth <= high
    for name in names:
        assert 0.92 <= covered[name] / n_sweeps <= 0.98, name


def test_contention_and_coherency_are_anticorrelated_and_it_is_said() -> None:
    N, T, _ = noisy("usl", [8.0, 0.05, 0.002], [1, 2, 4, 8, 16, 32], n_rounds=4, seed=1)
    found = fit("usl", N, T)
    assert -1 < found.correlations["sigma, kappa"] < -0.5
    assert fit("amdahl", N, T).correlations.keys() == {"T1, s"}


def test_the_same_seed_gives_the_same_intervals() -> None:
    N, T, rounds = noisy("amdahl", [8.0, 0.05], [1, 2, 4, 8], n_rounds=8, seed=3)
    one, same, other = (fit("amdahl", N, T, rounds=rounds, n_draws=50, seed=seed).intervals for seed in (1, 1, 2))
    assert one == same != other


@pytest.mark.parametrize(("n_rounds", "reason"), [(5, "5 rounds, at least 6 are needed"), (0, "rounds of the runs")])
def test_too_few_rounds_give_a_reason_and_no_interval(n_rounds: int, reason: str) -> None:
    N, T, rounds = noisy("amdahl", [8.0, 0.05], [1, 2, 4, 8], n_rounds=n_rounds or 6, seed=3)
    found = fit("amdahl", N, T, rounds=rounds if n_rounds else None)
    assert found.identifiable
    assert found.intervals == {}
    assert reason in found.intervals_by


def test_rounds_are_drawn_whole() -> None:
    # All of the spread is between rounds and none within: T1 varies with the round, s does not.
    N = np.tile([1.0, 2, 4, 8], 8)
    rounds = np.repeat(np.arange(8), 4)
    T = (8 + rounds) * (0.1 + 0.9 / N)
    found = fit("amdahl", N, T, rounds=rounds, n_draws=100)
    assert found.intervals["s"] == (pytest.approx(0.1), pytest.approx(0.1))
    assert found.intervals["T1"][1] - found.intervals["T1"][0] > 1


def test_lack_of_fit_finds_a_wrong_law_and_passes_the_right_one() -> None:
    N, T, _ = noisy("usl", [8.0, 0.05, 0.01], [1, 2, 4, 8, 16, 32], n_rounds=8, seed=5)
    wrong, right = fit("amdahl", N, T), fit("usl", N, T)
    assert wrong.lack_of_fit is not None
    assert right.lack_of_fit is not None
    assert wrong.lack_of_fit[1] < 1e-6
    assert right.lack_of_fit[1] > 0.01
    assert fit("amdahl", [1, 2, 4], [8.0, 4.3, 2.5]).lack_of_fit is None


def test_the_extra_parameter_is_asked_for_where_it_is_there() -> None:
    for kappa, needed in ((0.0, False), (0.01, True)):
        N, T, _ = noisy("usl", [8.0, 0.05, kappa], [1, 2, 4, 8, 16, 32], n_rounds=8, seed=2)
        _, p = nested_test(fit("amdahl", N, T), fit("usl", N, T))
        assert (p < 0.01) == needed


@pytest.mark.parametrize(("law", "minimum"), [("amdahl", 5), ("usl", 6)])
def test_akaike_s_criterion_is_refused_below_its_minimum(law: str, minimum: int) -> None:
    N = 2.0 ** np.arange(minimum)
    T = 8 * (0.05 + 0.95 / N) * np.random.default_rng(0).lognormal(0, 0.02, minimum)
    assert fit(law, N, T).aicc is not None
    few = fit(law, N[:-1], T[:-1])
    assert few.aicc is None
    with pytest.raises(ValueError, match=f"{minimum - 1} points are too few .* at least {minimum}"):
        prefer(few)


def test_fits_of_unlike_points_or_losses_are_not_compared() -> None:
    N, T = 2.0 ** np.arange(8), 8 * (0.05 + 0.95 / 2.0 ** np.arange(8))
    first = fit("amdahl", N, T)
    for other in (fit("usl", N, 1.1 * T), fit("usl", N, T, loss="log")):
        with pytest.raises(ValueError, match="unlike points or losses"):
            prefer(first, other)


@pytest.mark.parametrize(
    ("arguments", "how", "message"),
    [
        (("moore", [1], [1.0]), {}, "law='moore' is unknown; pass one of amdahl, "),
        (("amdahl", [1], [1.0]), {"loss": "absolute"}, "loss='absolute' is unknown; pass one of relative, "),
        (("amdahl", [1], [1.0]), {"loss": "linearised"}, "not defined for law='amdahl'"),
        (("gustafson", [1], [1.0]), {"loss": "log"}, "not defined for law='gustafson'"),
        (("usl", [2, 4], [1.0, 0.6]), {"loss": "linearised"}, "pass a run with n_workers=1"),
        (("amdahl", [1, 2], [1.0]), {}, r"shapes \(2,\), \(1,\)"),
        (("amdahl", [1, 2], [1.0, 0.5]), {"rounds": [0]}, r"shapes \(2,\), \(2,\), \(1,\)"),
        (("amdahl", [], []), {}, r"shapes \(0,\), \(0,\)"),
        (("amdahl", [1, 2], [1.0, 0.0]), {}, "times_s has the value 0.0"),
        (("amdahl", [1, 2], [1.0, np.nan]), {}, "times_s has the value nan"),
        (("amdahl", [0, 2], [1.0, 1.0]), {}, "n_workers has the value 0.0"),
    ],
)
def test_input_that_cannot_be_fitted_is_named(arguments: tuple, how: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        fit(*arguments, **how)


DEFINED = [
    (law, loss)
    for law in LAWS
    for loss in LOSSES
    if not (loss == "linearised" and law != "usl") and not (law == "gustafson" and loss != "relative")
]


@pytest.mark.parametrize(("law", "loss"), DEFINED)
def test_every_machine_of_the_memory_table_is_fitted_or_refused_with_a_reason(law: str, loss: str) -> None:
    for system in ("T7200", "E5420", "4 X 8347", "8 X 8431", "4 X 6172", "4 X X7560", "4 X 4850"):
        N, X = columns("stream_triad_scaling", "threads", "MB_per_s", system=system)
        found = fit(law, N, 1 / X, loss=loss)
        assert bool(found.parameters) != found.reason.startswith("not identifiable")
        assert all(value >= 0 for value in found.parameters.values()) or loss == "linearised"
        assert str(found)


# ── formulas ──────────────────────────────────────────────────────────────────────────────────────────


@given(N=st.integers(1, 10**6), s=st.floats(0, 1))
def test_gustafson_s_speedup_is_amdahl_s_of_the_grown_problem(N: int, s: float) -> None:
    assert laws.amdahl(N, float(laws.fixed_size_fraction(N, s))) == pytest.approx(laws.gustafson(N, s), rel=1e-6)


@given(N=st.integers(2, 10**4), s=st.floats(0, 1))
def test_karp_and_flatt_find_amdahl_s_fraction(N: int, s: float) -> None:
    assert laws.karp_flatt(N, laws.amdahl(N, s)) == pytest.approx(s, abs=1e-9)


@given(sigma=st.floats(0, 0.5), kappa=st.floats(1e-6, 0.1))
def test_no_number_of_workers_beats_the_peak(sigma: float, kappa: float) -> None:
    peak = laws.usl_peak(sigma, kappa)
    at_peak = laws.usl(peak, sigma, kappa)
    assert (laws.usl(peak * np.array([0.5, 0.99, 1.01, 2]), sigma, kappa) <= at_peak).all()


@given(K=st.integers(1, 1000), N=st.integers(1, 1000))
def test_equal_chunks_never_exceed_their_bound(K: int, N: int) -> None:
    rounds = -(-K // N)
    assert laws.equal_chunks_efficiency(N, K) == pytest.approx(K / N / rounds)


def test_the_mean_of_two_saturations_is_below_both_limits() -> None:
    N = np.arange(1, 100)
    X = laws.saturation(N, 5.0, 40.0, 3.0)
    assert (np.minimum(5.0 * N, 40.0) >= X).all()
    assert (np.diff(X) > 0).all()
