"""Replace a file whole or not at all, one writer at a time.

    .name.lock       flock() of the writer, for as long as it writes; holds its process id
    .name.PID.tmp    the next content of the file, until it takes the name over
    name             always complete

A reader needs no lock: it sees the content before or after a replacement, never between. In a folder where others may
write, a name may be a link that somebody has put there: none of these is ever followed.
"""

from __future__ import annotations

import fcntl
import os
import re
import stat
import tempfile
import time
import warnings
from contextlib import suppress
from pathlib import Path
from typing import BinaryIO


class Held(Exception):
    """Another process writes this file."""


def acquire(path: Path, wait_s: float) -> int | None:
    """Become the one writer of `path`.

    The lock goes when `release` is called or the process (and every child that it forked) has ended,
    however it ended.

    Parameters
    ----------
    path : Path
        The file, which need not exist; its folder must.
    wait_s : float
        Seconds to wait for the writer before.

    Returns
    -------
    int or None
        The descriptor that holds the lock; None, with a warning, where the file system has no locks.

    Raises
    ------
    Held
        If another writer held the lock for `wait_s`.
    OSError
        If the folder cannot be written.
    """
    deadline = time.monotonic() + wait_s
    while True:
        descriptor = os.open(_lock_path(path), os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC, 0o666)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            holder = os.pread(descriptor, 32, 0).strip()
            os.close(descriptor)
            if time.monotonic() >= deadline:
                told = holder.decode() if holder.isdigit() else "(number unknown)"
                raise Held(f"{path}: is being written by process {told}") from None
            time.sleep(0.05)
            continue
        except OSError:
            # Lustre without its flock option, some FUSE file systems.
            os.close(descriptor)
            with suppress(OSError):
                _lock_path(path).unlink()
            warnings.warn(f"{path}: its file system has no locks; let one process at a time write it", stacklevel=3)
            return None
        if not _names(_lock_path(path), descriptor):
            # The holder before removed the name between our open and our lock: we hold a lock on
            # nothing, and the next comer would lock a new file of that name.
            os.close(descriptor)
            continue
        # For the message above and nothing else; a full disk must not prevent the lock.
        with suppress(OSError):
            status = os.fstat(descriptor)
            if status.st_nlink > 1 or not stat.S_ISREG(status.st_mode):
                return descriptor  # a second name of somebody's file, which must keep its content
            os.ftruncate(descriptor, 0)
            os.pwrite(descriptor, str(os.getpid()).encode(), 0)
        return descriptor


def release(path: Path, lock: int | None) -> None:
    """Let the next writer in; `lock` is what `acquire` returned."""
    if lock is not None:
        with suppress(OSError):
            _lock_path(path).unlink()
        os.close(lock)


def replace(path: Path, content: bytes) -> None:
    """Give `path` the new `content`; whatever fails, it keeps the old one.

    Raises
    ------
    OSError
        If the content cannot be written: no space, no permission.
    """
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        with opened_new(temporary) as stream:
            if path.exists():
                os.fchmod(stream.fileno(), path.stat().st_mode & 0o777)
            stream.write(content)
            stream.flush()
            # Without it a power failure after the rename may leave an empty file (delayed allocation).
            os.fsync(stream.fileno())
        temporary.replace(path)
    except BaseException:  # Ctrl-C too must not leave the temporary file
        with suppress(OSError):
            temporary.unlink()
        raise
    # The new content stands; only its survival of a power failure in the next seconds hangs on this.
    with suppress(OSError):
        folder = os.open(path.parent, os.O_RDONLY)
        try:
            os.fsync(folder)
        finally:
            os.close(folder)


def opened_new(path: Path, mode: int = 0o666) -> BinaryIO:
    """Open a temporary file of this process for writing; what has its name is removed, and never written to.

    Raises
    ------
    OSError
        If it cannot be made, or something of that name not be removed.
    """
    path.unlink(missing_ok=True)
    return open(path, "xb", opener=lambda name, flags: os.open(name, flags | os.O_NOFOLLOW, mode))


def remove_leftovers(path: Path) -> None:
    """Remove what killed writers of `path` left beside it. Call it with the lock held."""
    pattern = re.compile(re.escape(f".{path.name}.") + r"(\d+)\.tmp")
    for entry in path.parent.iterdir():
        if (match := pattern.fullmatch(entry.name)) and not _alive(int(match[1])):
            with suppress(OSError):
                entry.unlink()


def put_aside(path: Path, suffix: str, text: str) -> Path | None:
    """Write `text` to a new file beside `path`, else to the folder for temporary files.

    Returns
    -------
    Path or None
        The new file; None if neither folder could take it.
    """
    for folder in (path.parent, Path(tempfile.gettempdir())):
        try:
            descriptor, name = tempfile.mkstemp(prefix=f"{path.name}.", suffix=suffix, dir=folder)
        except OSError:
            continue
        try:
            with open(descriptor, "w", encoding="utf-8") as stream:
                stream.write(text)
                stream.flush()
                os.fsync(stream.fileno())
        except OSError:
            Path(name).unlink()
            continue
        return Path(name)
    return None


def _lock_path(path: Path) -> Path:
    return path.with_name(f".{path.name}.lock")


def _names(path: Path, descriptor: int) -> bool:
    try:
        return os.path.samestat(path.lstat(), os.fstat(descriptor))
    except FileNotFoundError:
        return False


def _alive(pid: int) -> bool:
    # The caller holds the lock and has not begun to write: a file with its own id is of a predecessor.
    if pid == os.getpid():
        return False
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except (PermissionError, OverflowError):
        return True
    return True
