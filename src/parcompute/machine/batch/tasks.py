"""Which part of the work this process has: one task of a job array, which computes its share and talks to nobody.

PARCOMPUTE_PART=2/8 ──► rounds 2, 10, … of a sweep; the third eighth of the blocks of a job with a checkpoint
PARCOMPUTE_DONE=FILE ──► made when the program has done all of it
"""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

PART_VARIABLE = "PARCOMPUTE_PART"
DONE_VARIABLE = "PARCOMPUTE_DONE"


@dataclass(frozen=True, slots=True)
class Part:
    """One of several equal parts of something.

    Attributes
    ----------
    number, n_parts : int
        Which, from 0 on, and of how many.
    """

    number: int
    n_parts: int

    def __str__(self) -> str:
        return f"{self.number}of{self.n_parts}"

    def of(self, n: int) -> tuple[int, int]:
        """Return the first of `n` things that are of this part, and the one behind the last.

        Examples
        --------
        >>> [Part(number, 3).of(10) for number in range(3)]
        [(0, 3), (3, 6), (6, 10)]
        """
        return self.number * n // self.n_parts, (self.number + 1) * n // self.n_parts

    def file(self, path: Path) -> Path:
        """Return the name of this part's file beside that of the whole.

        Examples
        --------
        >>> Part(2, 8).file(Path("job.h5")).name
        'job.2of8.h5'
        """
        return path.with_name(f"{path.stem}.{self}{path.suffix}")


def own(environ: Mapping[str, str] = os.environ) -> Part | None:
    """Return the part that this process has; None if it has the whole.

    Raises
    ------
    ValueError
        If ``PARCOMPUTE_PART`` names no part.
    """
    if not (asked := environ.get(PART_VARIABLE, "").strip()):
        return None
    found = re.fullmatch(r"(\d{1,6})/(\d{1,6})", asked)
    if not found or not int(found[1]) < int(found[2]):
        raise ValueError(f"{PART_VARIABLE}={asked!r:.40} is no part; set NUMBER/PARTS, like 0/8 … 7/8, or unset it")
    return Part(int(found[1]), int(found[2]))


def files_of_parts(path: Path) -> list[Path]:
    """Return the files of parts that lie beside that of the whole."""
    named = re.compile(re.escape(path.stem) + r"\.(\d+)of(\d+)" + re.escape(path.suffix))
    found = [(int(m[2]), int(m[1]), f) for f in path.parent.iterdir() if (m := named.fullmatch(f.name))]
    return [file for *_, file in sorted(found)]


def note_done(environ: Mapping[str, str] = os.environ) -> None:
    """Make the file that says that this program has done its work, if one is asked for."""
    if path := environ.get(DONE_VARIABLE):
        Path(path).parent.mkdir(parents=True, exist_ok=True)
        Path(path).touch()
