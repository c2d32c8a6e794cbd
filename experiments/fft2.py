"""A global exchange between two maps: what does the transpose cost? A Fourier transform by rows and by columns.

Rows are transformed in blocks, then the columns: each block of the second map reads from every block of the first.
The array between the two lies in shared memory and is read as its transpose, without being moved.
"""

import functools

import numpy as np

import parcompute as pc

WAVE = (3, 5)


def transform(rows):
    """Transform rows."""
    return np.fft.fft(rows, axis=1)


@functools.lru_cache(maxsize=2)
def field(n):
    """Return a plane wave of n × n points: its transform is n² at one place."""
    x = np.exp(2j * np.pi * np.arange(n) / n)
    return pc.share(np.outer(x ** WAVE[0], x ** WAVE[1]))


def delta(found, n):
    """Compare with the transform of a plane wave, with Parseval's sum, and with the way back by numpy alone."""
    truth = np.zeros_like(found)
    truth[WAVE[0] % n, WAVE[1] % n] = n * n
    wave = np.asarray(field(n))
    parseval = abs(np.vdot(found, found).real / (n * n * np.vdot(wave, wave).real) - 1)
    back = np.abs(np.fft.ifft2(found) - wave).max()
    worst = max(np.abs(found - truth).max() / (n * n), parseval, back)
    return pc.Check(float(worst), 0.0, 1e-11, "rounding of two transforms and one back")


@pc.experiment(
    n_items={"quick": 512, "default": 2048, "full": 2**14}, truth=delta, backends=("processes", "threads", "joblib")
)
def fft2(executor, n_items, seed):
    how = {"item_shape": n_items, "dtype": np.complex128, "block_items": max(1, 2**15 // n_items)}
    by_rows = executor.map_blocks(transform, field(n_items), **how)
    return executor.map_blocks(transform, by_rows.T, **how).T.copy()


if __name__ == "__main__":
    fft2.main()
