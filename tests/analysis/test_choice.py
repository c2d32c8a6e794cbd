"""Laws are compared on the same points."""

import json

import numpy as np

from parcompute.analysis import laws
from parcompute.analysis.choice import compare_laws

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
