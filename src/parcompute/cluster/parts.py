"""Results in parts, one per job or task of an array: which there are to be, which are done, and how to get the others.

results/CLUSTER/NAME-parts/parts.json     the parts, and the command that submits those that are missing
                          /4n/NAME.h5     what each has recorded
                          /4n.done        made by its job when it has done all of it
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True, slots=True)
class Parts:
    """A folder of parts.

    Attributes
    ----------
    folder : Path
        Where they are.
    names : tuple of str
        Of all parts.
    again : str
        The command that submits those that are missing.
    """

    folder: Path
    names: tuple[str, ...]
    again: str

    @classmethod
    def read(cls, folder: Path) -> Parts:
        """Read what `write` has written.

        Raises
        ------
        ValueError
            If there is no such folder, or it is none of parts.
        """
        try:
            found = json.loads((folder / "parts.json").read_text("utf-8"))
            return cls(folder, tuple(map(str, found["parts"])), str(found["again"]))
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise ValueError(f"{folder}: is no folder of parts that parcompute submit has made ({error})") from None

    def write(self, fresh: Sequence[str]) -> None:
        """Write which parts there are to be; those of `fresh` are not done any more."""
        self.folder.mkdir(parents=True, exist_ok=True)
        for name in fresh:
            self.mark(name).unlink(missing_ok=True)
        content = json.dumps({"parts": self.names, "again": self.again}, indent=2)
        (self.folder / "parts.json").write_text(content + "\n", "utf-8")

    def mark(self, name: str) -> Path:
        """Return the file that says that a part is done."""
        return self.folder / f"{name}.done"

    def missing(self) -> tuple[str, ...]:
        """Return the parts that are not done."""
        return tuple(name for name in self.names if not self.mark(name).exists())

    def records(self) -> list[Path]:
        """Return the files that the parts have recorded, complete or not."""
        return [file for name in self.names for file in sorted((self.folder / name).glob("*.h5"))]

    def describe(self) -> list[str]:
        """Say which parts are missing, and how to run only those; nothing if none is."""
        if not (missing := self.missing()):
            return []
        kind = "part" if len(missing) == 1 else "parts"
        return [
            f"missing: {kind} {', '.join(missing)} of {len(self.names)} (no {self.mark('*')})",
            f"to run only {'that' if len(missing) == 1 else 'those'}: {self.again}",
        ]
