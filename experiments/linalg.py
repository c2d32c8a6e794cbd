"""Workers × BLAS threads: who over-subscribes? Eigenvalues of many symmetric matrices.

The matrices lie in shared memory, one block each. A library that starts its own threads in each worker can use more
cores than there are, and all of them wait for each other.
"""

import functools

import numpy as np

import parcompute as pc

SIZE = 160


def eigenvalues(matrices):
    """Return them to nine decimals: BLAS adds in another order with another number of threads."""
    return np.round(np.linalg.eigvalsh(matrices), 9) + 0.0


@functools.lru_cache(maxsize=2)
def matrices(n):
    """Return n symmetric matrices of normal entries, shape (n, SIZE, SIZE)."""
    square = np.random.default_rng(1).standard_normal((n, SIZE, SIZE))
    return pc.share((square + square.transpose(0, 2, 1)) / 2)


def invariants(found, n):
    """Compare the sum of the eigenvalues, and of their squares, with trace and Frobenius norm of each matrix."""
    of = np.asarray(matrices(n))
    trace = np.abs(found.sum(axis=1) - np.trace(of, axis1=1, axis2=2)).max()
    norm = np.abs((found**2).sum(axis=1) / (of**2).sum(axis=(1, 2)) - 1).max()
    return pc.Check(float(max(trace, norm)), 0.0, 1e-6, "nine decimals of 160 eigenvalues")


@pc.experiment(
    n_items={"quick": 48, "default": 384, "full": 2**14},
    truth=invariants,
    backends=("processes", "threads"),
    blas_threads=(1, 2),
)
def linalg(executor, n_items, seed):
    return executor.map_blocks(eigenvalues, matrices(n_items), block_items=1, item_shape=SIZE, dtype=np.float64)


if __name__ == "__main__":
    linalg.main()
