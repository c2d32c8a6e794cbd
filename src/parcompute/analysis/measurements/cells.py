"""Cells → numbers: decimal commas, thousands separators, units behind numbers, hours and minutes."""

from __future__ import annotations

import re
from collections.abc import Iterable

# Factors to seconds.
UNITS_S: dict[str, float] = {
    "ns": 1e-9, "nsec": 1e-9, "nanoseconds": 1e-9,
    "us": 1e-6, "µs": 1e-6, "μs": 1e-6, "usec": 1e-6, "microseconds": 1e-6,
    "ms": 1e-3, "msec": 1e-3, "msecs": 1e-3, "milliseconds": 1e-3, "millisecond": 1e-3,
    "s": 1.0, "sec": 1.0, "secs": 1.0, "second": 1.0, "seconds": 1.0,
    "min": 60.0, "mins": 60.0, "minute": 60.0, "minutes": 60.0,
    "h": 3600.0, "hr": 3600.0, "hrs": 3600.0, "hour": 3600.0, "hours": 3600.0,
    "d": 86400.0, "day": 86400.0, "days": 86400.0,
}  # fmt: skip

# What people write where there is no number.
MISSING = ("", "-", "–", "—", "na", "n/a", "#n/a", "null", "none", "nan")

_GAP = "[ '’\u00a0\u2009\u202f]"  # between groups of three digits
_NUMBER = re.compile(
    rf"([+-]?(?:\d{{1,3}}(?:{_GAP}\d{{3}})+(?!\d)(?:[.,]\d*)?|\d[\d.,]*|[.,]\d+)(?:[eE][+-]?\d+)?)\s*(.*)"
)
_CLOCK = re.compile(r"(?:(\d+)(?:-|\s+days?,?\s+))?(?:(\d+):)?(\d+):(\d{1,2}(?:[.,]\d+)?)")
_PARTS = re.compile(
    r"(?:(\d+)\s*d(?:ays?)?)?\s*(?:(\d+)\s*h(?:ours?|rs?)?)?\s*(?:(\d+)\s*m(?:in(?:utes?)?)?)?\s*"
    r"(?:(\d+(?:[.,]\d+)?)\s*s(?:ec(?:onds?)?)?)?"
)


def is_missing(cell: str) -> bool:
    """Tell whether a cell says that there is no number."""
    return cell.strip().lower() in MISSING


def is_number(cell: str) -> bool:
    """Tell whether a cell is nothing but a number, with a point or a comma."""
    found = _NUMBER.fullmatch(cell.strip())
    return found is not None and not found[2]


def split(cell: str) -> tuple[str, str]:
    """Return the number of a cell as text, and what stands behind it; an error behind ± is left out.

    Examples
    --------
    >>> split("3.2 ± 0.1 s"), split("95%"), split("fast")
    (('3.2', 's'), ('95', '%'), ('', 'fast'))
    """
    plain = re.sub(r"\s*(?:±|\+/-|\+-)\s*[\d.,]+", " ", cell).strip()
    found = _NUMBER.fullmatch(plain)
    return (found[1], found[2].strip()) if found else ("", plain)


def value(text: str, decimal: str) -> float | None:
    """Return a number whose decimals are behind `decimal`; None if it is none.

    Examples
    --------
    >>> value("1.234,5", ","), value("1,234.5", "."), value("12 345", "."), value("1,5", ".")
    (1234.5, 1234.5, 12345.0, None)
    """
    text = re.sub(_GAP, "", text.strip())
    mantissa, e, exponent = text.lower().partition("e")
    thousands = "." if decimal == "," else ","
    whole, point, rest = mantissa.partition(decimal)
    if thousands in rest or (
        thousands in whole and not re.fullmatch(rf"[+-]?\d{{1,3}}(?:[{thousands}]\d{{3}})+", whole)
    ):
        return None
    try:
        return float(f"{whole.replace(thousands, '')}{'.' if point else ''}{rest}{e}{exponent}")
    except ValueError:
        return None


def seconds(cell: str, decimal: str, unit_s: float) -> float | None:
    """Return a time in seconds; None if it is none.

    Parameters
    ----------
    cell : str
        A number with or without a unit, ``[[D-]HH:]MM:SS``, or ``1h2m3s``.
    decimal : {".", ","}
        What its decimals are behind.
    unit_s : float
        Seconds of a unit, where the cell has none.

    Examples
    --------
    >>> seconds("1-02:03:04", ".", 1), seconds("11m58s", ".", 1), seconds("7,5 ms", ",", 1), seconds("2", ".", 60)
    (93784.0, 718.0, 0.0075, 120.0)
    """
    number, unit = split(cell)
    if number and (not unit or unit in UNITS_S):
        found = value(number, decimal)
        return None if found is None else found * UNITS_S.get(unit, unit_s)
    clock, parts = _CLOCK.fullmatch(cell.strip()), _PARTS.fullmatch(cell.strip())
    groups = clock.groups() if clock else parts.groups() if parts and any(parts.groups()) else None
    if groups is None:
        return None
    days, hours, minutes, rest = (float((group or "0").replace(",", ".")) for group in groups)
    return 86400 * days + 3600 * hours + 60 * minutes + rest


def decimals(numbers: Iterable[str]) -> set[str]:
    """Return what numbers show to stand before decimals: a point, a comma, ``"?"`` for either, or nothing.

    Examples
    --------
    >>> decimals(["1", "2,5"]), decimals(["1,234"]), decimals(["1,234,567.0"]), decimals(["1.234"])
    ({','}, {'?'}, {'.'}, set())
    """
    found = set()
    for number in numbers:
        text = re.split("[eE]", re.sub(_GAP, "", number))[0].lstrip("+-")
        if re.fullmatch(r"[1-9]\d{0,2},\d{3}", text):
            found.add("?")
        elif re.fullmatch(r"\d*,\d+|\d{1,3}(?:\.\d{3})+,\d*", text):
            found.add(",")
        elif re.fullmatch(r"\d{1,3}(?:,\d{3})+(?:\.\d*)?", text):
            found.add(".")
        elif re.fullmatch(r"\d*\.\d*", text) and not re.fullmatch(r"[1-9]\d{0,2}\.\d{3}", text):
            found.add(".")  # 1.234 is none: it may be a thousand where others have decimal commas
    return found
