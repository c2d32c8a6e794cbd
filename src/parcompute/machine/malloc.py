"""Have malloc keep the memory of temporaries, instead of giving it back to the system block after block.

Each new page of the next temporary would cost more than the arithmetic on it (docs/decisions/0017). For processes that
are ours: workers, and the program of an experiment, whose base case must not depend on what malloc has seen before.
"""

from __future__ import annotations

import ctypes
import os

# Option of mallopt(3), variable of the environment that says the same, bytes: what malloc arrives at by itself, at
# most, in a program that frees large arrays.
_LIMITS = ((-3, "MALLOC_MMAP_THRESHOLD_", 2**25), (-1, "MALLOC_TRIM_THRESHOLD_", 2**26))


def keep_freed() -> None:
    """Keep up to 64 MiB at the end of each heap, unless the environment says how it should be."""
    set_option = getattr(ctypes.CDLL(None), "mallopt", None)  # the GNU C library's
    if set_option is None or "glibc.malloc" in os.environ.get("GLIBC_TUNABLES", ""):
        return
    for option, variable, n_bytes in _LIMITS:
        if variable not in os.environ:
            set_option(option, n_bytes)
