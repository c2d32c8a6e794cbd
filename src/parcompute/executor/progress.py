"""Tell how far a job is while it runs."""

from __future__ import annotations

import contextlib
import sys
import threading
from collections.abc import Callable, Iterator

Report = Callable[[int, int], None]

# Often enough to look alive, seldom enough to cost nothing.
_EVERY_S = 0.1


def reporting(
    report: Report | None, n_done: Callable[[], int], n_blocks: int
) -> contextlib.AbstractContextManager[None]:
    """Call ``report(n_done(), n_blocks)`` ten times a second from a thread, and once more at the end.

    Parameters
    ----------
    report : callable or None
        None calls nothing.
    n_done : callable
        How many blocks are done by now.
    n_blocks : int
        Of the job.
    """
    return _NOBODY if report is None else _reporting(report, n_done, n_blocks)


_NOBODY = contextlib.nullcontext()


@contextlib.contextmanager
def _reporting(report: Report, n_done: Callable[[], int], n_blocks: int) -> Iterator[None]:
    over = threading.Event()

    def repeat() -> None:
        while not over.wait(_EVERY_S):
            report(n_done(), n_blocks)

    thread = threading.Thread(target=repeat, name="parcompute-progress", daemon=True)
    thread.start()
    try:
        yield
    finally:
        over.set()
        thread.join()
    report(n_blocks, n_blocks)


def bar(n_done: int, n_blocks: int) -> None:
    """Draw a bar on standard error, if that is a terminal.

    Parameters
    ----------
    n_done, n_blocks : int
        Blocks that are done, and all of them.
    """
    if sys.stderr is None or not sys.stderr.isatty():
        return
    filled = 40 * n_done // n_blocks
    end = "\n" if n_done == n_blocks else ""
    print(f"\r{'█' * filled:░<40} {n_done} of {n_blocks} blocks", end=end, file=sys.stderr, flush=True)
