"""The twelve rules of Hoefler & Belli (SC15) as a checklist, each with its evidence in the runs of a study."""

from __future__ import annotations

from dataclasses import dataclass

from parcompute.analysis.studies import Study

# Without these nobody can say what was measured, and where.
REQUIRED = (
    "cpu_model",
    "usable_cpus",
    "kernel",
    "python_version",
    "numpy_version",
    "clock",
    "code_digest",
    "command_line",
)


@dataclass(frozen=True, slots=True)
class Rule:
    """One rule.

    Attributes
    ----------
    number : int
        From 1.
    text : str
        What it asks.
    met : bool
        Whether the study meets it.
    evidence : str
        By what, or what is missing.
    """

    number: int
    text: str
    met: bool
    evidence: str


def checklist(study: Study) -> list[Rule]:
    """Return the twelve rules with their evidence.

    Parameters
    ----------
    study : Study
        Whose runs are held against them.
    """
    points = [point for curve in study.curves for point in curve.points]
    fewest = min((point.wall.n for point in points), default=0)
    ranges = any(point.wall.median.is_range or point.speedup.is_range for point in points)
    rounds = sorted({len(point.speedups) for point in points} - {0})
    within = f"within {rounds[0]}{f' to {rounds[-1]}' * (len(rounds) > 1)} rounds" if rounds else ""
    at = study.provenance
    bases = "; ".join(dict.fromkeys(str(curve.base) for curve in study.curves))
    left_out = ", ".join(f"{n} {reason}" for reason, n in study.left_out.items()) or "none"
    counts = sorted({run.configuration.n_workers for run in study.runs})
    digests = len({(run.configuration.n_items, run.digest) for run in study.runs if run.verified})
    sizes = len({run.configuration.n_items for run in study.runs if run.verified})
    unknown = [name for name in REQUIRED if getattr(at, name) in ("", -1)]
    found = (
        (
            "name the base case of a speedup, and its absolute time",
            bool(study.curves),
            bases or "no speedup is shown: there is nothing to compare",
        ),
        (
            "say what was left out, and which resources were not used",
            at.usable_cpus > 0,
            f"{at.usable_cpus} usable CPUs ({at.usable_cpus_reason or 'reason unknown'}), measured on "
            f"{', '.join(map(str, counts))}; left out of {len(study.runs)} runs: {left_out}",
        ),
        (
            "arithmetic means for costs, harmonic for rates",
            True,
            "times are stored in seconds and summarised by medians; no rate is averaged",
        ),
        (
            "do not average ratios",
            True,
            f"each speedup is a shift of logarithms {within} (Hodges and Lehmann): A over B agrees with B over A"
            if rounds
            else "each speedup is the ratio of two medians",
        ),
        (
            "say whether results are deterministic, and give intervals",
            bool(points) and not ranges and digests == sizes,
            f"{digests} digest{'s' * (digests != 1)} for {sizes} problem{'s' * (sizes != 1)}; "
            f"at least {fewest} runs per point{f', speedups {within}' if within else ''}: "
            + ("some have ranges only, of less than six or of disturbed ones" if ranges else "95 % intervals"),
        ),
        (
            "do not take times for normal without a check",
            True,
            "intervals of medians by binomial ranks; of ratios by Hodges and Lehmann, from signed ranks within rounds, "
            "or from those of Mann and Whitney where no rounds are shared; of fits by bootstrap over rounds",
        ),
        (
            "compare soundly",
            True,
            f"rounds in random order (seed {study.seed}); faster or slower is said only where the interval excludes 1",
        ),
        ("is the centre the right value", True, "medians with 5th and 95th percentiles; every run is stored and drawn"),
        (
            "report factors, levels and set-up",
            not unknown,
            f"unknown: {', '.join(unknown)}" if unknown else f"{_levels(study)}; conditions below",
        ),
        (
            "say how time was measured",
            bool(at.clock),
            f"{at.clock or 'unknown clock'}, resolution {at.clock_resolution_ns:g} ns, a reading takes "
            f"{at.clock_overhead_ns:g} ns; from the call to the complete result, every worker ready before",
        ),
        ("show upper bounds", bool(study.curves), "the ideal, and what the number of chunks allows, are drawn"),
        (
            "plot as much as is needed, join points only where it is valid",
            True,
            "points with intervals and all runs; a line is a fitted law",
        ),
    )
    return [Rule(i, *each) for i, each in enumerate(found, 1)]


def _levels(study: Study) -> str:
    factors = ["backend", "variant", "n_workers", "threads_per_worker", "blas_threads", "schedule", "start_method"]
    if any(run.configuration.n_nodes > 1 for run in study.runs):
        factors.append("n_nodes")
    told = []
    for factor in factors:
        levels = sorted({getattr(run.configuration, factor) for run in study.runs} - {""})
        if levels:
            told.append(f"{factor}: {', '.join(map(str, levels))}")
    return "; ".join(told)
