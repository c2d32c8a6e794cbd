"""Which code an experiment ran: what git tracks, as it stands."""

from __future__ import annotations

import hashlib
import os
import subprocess
from dataclasses import dataclass
from pathlib import Path

from parcompute.machine import procfs

# Files that parcompute writes, and text about code: neither a new run nor a new page of documentation may set the
# runs before and after it apart.
_NOT_CODE = ("h5", "png", "svg", "html", "json", "md", "rst")

# A repository on a sleeping network disk must not hold up an experiment.
_GIT_TIMEOUT_S = 5.0


@dataclass(frozen=True, slots=True)
class Code:
    """Which code an experiment ran.

    Code is what git tracks in the whole repository, without results and documentation, and the Python files of the
    experiment's folder that are not tracked yet. Outside of a repository it is the Python files of that folder.

    Attributes
    ----------
    digest : str
        Of the code as it stands: a commit of other files leaves it as it is, that of changed code gives a new one.
    commit : str
        Empty where there is no repository, no commit or no git.
    dirty : {0, 1, -1}
        Whether the code differs from the commit; -1 where that is not known.
    """

    digest: str = ""
    commit: str = ""
    dirty: int = -1

    @classmethod
    def read(cls, folder: str | Path) -> Code:
        """Ask git about a folder; it never fails."""
        folder = Path(folder)
        where = ["--", ":/", *(f":(top,exclude)*.{suffix}" for suffix in _NOT_CODE)]
        commit = _git(folder, "rev-parse", "--verify", "HEAD")
        tracked = _git(folder, "ls-files", "--stage", "--full-name", *where)
        changed = _git(folder, "diff", "--no-ext-diff", "--no-textconv", "--no-color", "HEAD", *where)
        new = _git(folder, "ls-files", "-z", "--others", "--exclude-standard", "--", "*.py")
        if not commit or tracked is None or changed is None or new is None:
            names = sorted(path.name for path in folder.glob("*.py"))
            return cls(_content_digest(folder, names) if names else "", (commit or b"").decode().strip())
        names = sorted(os.fsdecode(name) for name in new.split(b"\0") if name)
        digest = _content_digest(folder, names, tracked, changed)
        return cls(digest, commit.decode().strip(), int(bool(changed or names)))


def _content_digest(folder: Path, names: list[str], *parts: bytes) -> str:
    digest = hashlib.sha256(b"\0".join(parts))
    for name in names:
        digest.update(f"\0{name}\0{procfs.text(folder / name)}".encode(errors="surrogateescape"))
    return digest.hexdigest()[:16]


def _git(folder: Path, *arguments: str) -> bytes | None:
    # Without optional locks, so that a commit made meanwhile does not find the index locked.
    command = ["git", "--no-optional-locks", *arguments]
    try:  # in that folder: from one that is gone, git goes nowhere
        return subprocess.run(command, cwd=folder, capture_output=True, check=True, timeout=_GIT_TIMEOUT_S).stdout
    except (OSError, subprocess.SubprocessError):
        return None
