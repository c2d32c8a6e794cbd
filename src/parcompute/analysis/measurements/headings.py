"""Headings → meanings: what the words of a heading say about its column."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Literal

from parcompute.analysis.measurements.cells import UNITS_S

Role = Literal["workers", "time", "rate", "speedup", "efficiency", "value", "round", "beside", ""]


def words_of(text: str) -> frozenset[str]:
    """Return the words of a text, each once."""
    return frozenset(text.split())


# The words of people and tools, in lower case. A heading is cut into words at blanks, underscores and a change to
# capitals; words that only count ("number of cores") are dropped.
_FILLERS = words_of("number num no nr nb of the count total parameter param used n #")
_WORKERS = words_of(
    "workers worker threads thread processes process procs proc processors processor nproc nprocs np "
    "nthreads p n cores core ncores cpus cpu ncpus nodes node nnodes ranks rank nranks tasks task ntasks "
    "gpus ngpus sockets concurrency parallelism users clients connections load vus instances"
)
_OF_WORKERS = words_of("mpi omp openmp cpu physical logical parallel concurrent active virtual simulated alloc req")
_TIMES = words_of(
    "time times walltime wall elapsed runtime duration makespan t real wallclock clock timing seconds "
    "second secs sec ms us ns µs μs milliseconds microseconds nanoseconds minutes hours"
)
_RATES = words_of(
    "throughput rate tput bandwidth bw tps qps rps ops iops mops gops flops kflops mflops gflops tflops "
    "pflops mlups glups fps hz performance perf x"
)
_NOT_RATES = words_of("error errors hit miss failure loss success cache")
_SPREADS = words_of(
    "min max minimum maximum std stddev stdev sd sem se err error sigma variance var ci low high lower "
    "upper lo hi best worst fastest slowest iqr cv rsd p90 p95 p99 q1 q3 deviation spread range"
)
_CENTRES = {"median": "median", "med": "median", "mean": "mean", "avg": "mean", "average": "mean"}
_ROUNDS = words_of("round repeat repetition rep run trial replicate replication attempt")

# Numbers of a row that are no measurement of it, or that are made of the others.
_DERIVED = words_of("published reported ideal theoretical expected modelled predicted fitted")
# Costs and hours of the clock: a time, but not the one that was waited.
_DATES = words_of("start started end ended finish finished submit submitted date stamp timestamp datetime user sys")
_NOT_WAITED = _DATES | words_of("cpu core node system queue wait waiting compile build limit timelimit")
_RATE_UNIT = re.compile(r"(?:/|\bper\b)[\s_]*(?:s|secs?|seconds?|mins?|minutes?|h|hours?|days?)\b", re.IGNORECASE)

# Behind a blank or an underscore these are the smallest, or names, rather than units.
_NO_UNITS = frozenset(("min", "h", "d", "day", "days"))

_BRACKETS = re.compile(r"[\[({]([^\])}]*)[\])}]")


@dataclass(frozen=True, slots=True)
class Heading:
    """What a heading says.

    Attributes
    ----------
    role : str
        ``"beside"`` is known and never fitted: a spread, a date, a published model. ``"value"`` is a time or a rate;
        empty where nothing is known.
    unit_s : float or None
        Seconds of its unit of time.
    statistic : {"", "median", "mean", "spread"}
        Of what was measured.
    stem : str
        Its words without the number at the end.
    number : int or None
        That number: of the repetition, in ``t1``, ``t2``.
    """

    role: Role
    unit_s: float | None = None
    statistic: str = ""
    stem: str = ""
    number: int | None = None


def is_unit(cell: str) -> bool:
    """Tell whether a cell is a unit: ``s``, ``[ms]``, ``GB/s``, ``%``."""
    unit = cell.strip("[](){} ")
    return unit in UNITS_S or unit in ("%", "#") or (not unit[:1].isdigit() and _has_rate_unit(unit))


def parse(name: str) -> Heading:
    """Return what a heading says.

    Examples
    --------
    >>> parse("Number of cores").role, parse("Wall time [ms]").unit_s, parse("rate_min").statistic
    ('workers', 0.001, 'spread')
    """
    plain, unit_s = _without_unit(name.strip())
    spaced = re.sub(r"(?<=[a-z])(?=[A-Z])", " ", plain)
    words = [word.lower() for word in re.findall(r"[^\W\d_]+|\d+|#", spaced)]
    number = int(words.pop()) if len(words) > 1 and words[-1].isdecimal() else None
    told = [word for word in words if word not in _FILLERS] or words[-1:]
    kept = {word for word in told if word not in _CENTRES and word not in _SPREADS}
    statistic = next((_CENTRES[word] for word in told if word in _CENTRES), "")
    if any(word in _SPREADS for word in told):
        statistic = "spread"
    role = _role(kept, set(words), plain, unit_s is not None)
    if not role and not kept and statistic:
        role = "beside" if statistic == "spread" else "value"
    if role == "round" and number is not None:  # run 1, run 2: the repetitions stand beside each other
        role = "value"
    return Heading(role, unit_s, statistic, " ".join(words), number)


def _without_unit(name: str) -> tuple[str, float | None]:
    """Return a heading without its unit of time, and the seconds of that."""
    if (found := re.fullmatch(r"(t|.*time)\s*(?:/|\bin\b)\s*(\w+)", name, re.IGNORECASE)) and found[2] in UNITS_S:
        return found[1], UNITS_S[found[2]]  # t/ms, as physicists write
    for content in _BRACKETS.findall(name):
        if content.strip() in UNITS_S:
            return re.sub(rf"[\[({{]{re.escape(content)}[\])}}]", " ", name), UNITS_S[content.strip()]
    if name in UNITS_S.keys() - _NO_UNITS:
        return name, UNITS_S[name]
    found = re.fullmatch(r"(.*[^\W_])[\s_,]+(\w+)", name)
    if found and found[2] in UNITS_S.keys() - _NO_UNITS and not _has_rate_unit(name):
        return found[1], UNITS_S[found[2]]
    return name, None


def _has_rate_unit(name: str) -> bool:
    return _RATE_UNIT.search(name.replace("_", " ")) is not None


def _role(kept: set[str], words: set[str], plain: str, is_time: bool) -> Role:
    if words & _DERIVED or ("model" in words and kept & (_TIMES | _RATES | {"speedup", "efficiency"})):
        return "beside"
    if kept & {"speedup", "speedups"} or {"speed", "up"} <= kept or re.fullmatch(r"S(\(.*\))?", plain):
        return "speedup"
    if kept & {"efficiency", "eff"} or re.fullmatch(r"E(\(.*\))?", plain):
        return "efficiency"
    if (_has_rate_unit(plain) or kept & _RATES) and not words & _NOT_RATES:
        return "rate"
    if not is_time and kept & _WORKERS and kept <= _WORKERS | _OF_WORKERS:
        return "workers"
    if words & _DATES and len(words) == 1:
        return "beside"
    if words & _NOT_WAITED and (is_time or words & (_TIMES | {"h"})):
        return "beside"
    if is_time or kept & _TIMES:
        return "time"
    return "round" if kept and kept <= _ROUNDS else ""
