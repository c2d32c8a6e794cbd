"""What a new process finds around it: a current folder, though it may be gone, and one seed for the hashes of text."""

from __future__ import annotations

import contextlib
import os
import threading
from collections.abc import Iterator, Mapping
from dataclasses import dataclass

# Where an interpreter reads its seed when it starts.
_HASH_SEED = "PYTHONHASHSEED"

# This interpreter's own, if it was told; one that has drawn its own does not say what it was.
_hash_seed = os.environ.get(_HASH_SEED, "random")


_starting = threading.RLock()

# Of the current folder, if that was removed: as long as it is open, workers find the folder by it.
_removed = -1


def _after_fork_in_child() -> None:
    global _starting
    _starting = threading.RLock()


os.register_at_fork(after_in_child=_after_fork_in_child)


def folder() -> str:
    """Return a path by which other processes of this user find the current folder, on Linux also a removed one."""
    global _removed
    try:
        return os.getcwd()
    except FileNotFoundError:
        if _removed < 0 or not os.path.samestat(os.fstat(_removed), os.stat(".")):
            _removed = os.open(".", os.O_RDONLY)
        return f"/proc/{os.getpid()}/fd/{_removed}"


def hash_seed(environ: Mapping[str, str]) -> dict[str, str]:
    """Return what to add to the environment of a new interpreter, so that it hashes text as all others started here.

    Parameters
    ----------
    environ : mapping of str
        The environment so far. What the user has chosen there stays.

    Examples
    --------
    >>> hash_seed({"PYTHONHASHSEED": "1"})
    {}
    >>> hash_seed({}) == hash_seed({})
    True
    """
    global _hash_seed
    if environ.get(_HASH_SEED, "random") != "random":
        return {}
    if _hash_seed == "random":
        _hash_seed = str(int.from_bytes(os.urandom(4), "little") or 1)  # 0 would switch the drawing off
    return {_HASH_SEED: _hash_seed}


@dataclass(frozen=True)
class Place:
    """What is another one while the workers of others' engines start, and what those must find again."""

    folder: str
    hash_seed: str | None  # as the environment has it

    @classmethod
    def here(cls) -> Place:
        """Return that of this process."""
        return cls(folder(), os.environ.get(_HASH_SEED))

    def restore(self) -> None:
        """Make it this process's."""
        with contextlib.suppress(OSError):
            os.chdir(self.folder)
        _set({_HASH_SEED: self.hash_seed})


@contextlib.contextmanager
def starting(variables: Mapping[str, str]) -> Iterator[None]:
    """Have another engine start its workers in the body: with these variables, and one hash seed.

    A removed folder is left meanwhile: the engines ask for its name, and fail. This holds for all threads, but from
    there no relative path leads anywhere.
    """
    variables = {**variables, **hash_seed(os.environ)}
    before = {name: os.environ.get(name) for name in variables}
    with _starting, contextlib.ExitStack() as stack:
        try:
            os.getcwd()
        except FileNotFoundError:
            folder()
            stack.callback(os.fchdir, _removed)
            os.chdir("/")
        stack.callback(_set, before)
        os.environ.update(variables)
        yield


def _set(variables: Mapping[str, str | None]) -> None:
    for name, value in variables.items():
        if value is None:
            os.environ.pop(name, None)
        else:
            os.environ[name] = value
