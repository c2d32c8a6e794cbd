"""Give block i its own random generator, whoever computes it.

The stream of a block is a function of the seed and the block's number alone, so a random result is the
same for every backend, worker count, schedule and retry. It is NumPy's own construction: block i draws
what ``numpy.random.default_rng(numpy.random.SeedSequence(seed).spawn(n_blocks)[i])`` draws.
"""

from __future__ import annotations

import os

import numpy as np


def generator(seed: int, block_index: int) -> np.random.Generator:
    """Return the random generator of one block, at the start of its stream.

    Parameters
    ----------
    seed : int
        At least 0.
    block_index : int
        Number of the block, at least 0.

    Examples
    --------
    >>> import numpy as np
    >>> spawned = np.random.default_rng(np.random.SeedSequence(7).spawn(4)[3])
    >>> generator(7, 3).random() == spawned.random()
    True
    """
    return np.random.default_rng(np.random.SeedSequence(seed, spawn_key=(block_index,)))


def fresh_seed() -> int:
    """Return a seed from the system's entropy, below 2**63 so that every file format holds it."""
    return int.from_bytes(os.urandom(8)) >> 1
