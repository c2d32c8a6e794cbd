"""Two maps with a global exchange between them: what does the exchange cost? A 2-D Fourier transform and its inverse.

Rows are transformed where they lie; then each worker gathers its columns out of everyone's rows, which transposes the
whole field through shared memory, and transforms those. A chirp on a plane wave has no coefficient that vanishes and
all of them in closed form, so that a misplaced or missing piece of any size is found.
"""

import functools
import math

import numpy as np

import parcompute as pc

WAVE = 5, 17  # of the plane wave, down and along: unlike, so that a transposition too many is seen
COLUMNS_PER_BLOCK = 16  # four cache lines out of each row: what a column brings along is used by its neighbours


def along_rows(rows, transform):
    return transform(rows, axis=1)


def along_columns(field, transform, block, out):
    """Transform the block's columns of a field that all have written, and leave them as rows."""
    out[...] = transform(np.ascontiguousarray(field[:, block.start : block.stop].T), axis=1)


def transposed_transform(executor, field, between, result, transform):
    """Transform rows and columns of a field; `result` is transposed, which a second call undoes."""
    executor.map_blocks(along_rows, field, out=between, args=(transform,))
    return executor.map_blocks(
        along_columns, n_items=len(field), block_items=COLUMNS_PER_BLOCK, out=result, args=(between, transform)
    )


def phases(quadratic, linear, n):
    """Return exp(iπ (q m² + 2 w m) / n) for m < n, its phase reduced in whole numbers, where that is exact."""
    m = np.arange(n)
    return np.exp(1j * np.pi / n * ((quadratic * m * m + 2 * linear * m) % (2 * n)))


def chirp(n):
    """Return exp(iπ (x² + 2 a x + y² + 2 b y) / n), shape (n, n); each of its points has modulus 1."""
    return np.outer(*(phases(1, wave, n) for wave in WAVE))


def chirp_transform(n):
    """Return i n exp(−iπ ((k − a)² + (l − b)²) / n): completing the square leaves a Gauss sum (n is even)."""
    down, along = (np.exp(-1j * np.pi * (wave * wave % (2 * n)) / n) * phases(-1, wave, n) for wave in WAVE)
    return 1j * n * np.outer(down, along)


@functools.lru_cache(maxsize=2)  # of the warm-up and of the run: the field is there before the clock starts
def fields(n):
    """Return the chirp, and room for what is between the maps, for the spectrum, and for the way back."""
    return pc.share(chirp(n)), *(pc.SharedArray.empty((n, n), complex) for _ in range(3))


def known_spectrum(result, n):
    """Compare the spectrum with the closed form, its energy with Parseval's, and the way back with the start."""
    spectrum, back = result
    errors = {
        "spectrum": np.linalg.norm(spectrum.T - chirp_transform(n)) / n**2,
        "energy": abs(np.linalg.norm(spectrum) / n**2 - 1),
        "round trip": np.linalg.norm(back - chirp(n)) / n,
    }
    worst = list(errors)[np.argmax(list(errors.values()))]
    # Higham (2002), theorem 24.2: a relative error of 3.4 eps for each of the log2 n² levels of butterflies.
    tolerance = 2 * 3.4 * np.finfo(float).eps * math.log2(n * n)
    return pc.Check(errors[worst], 0.0, tolerance, f"the rounding of two transforms ({worst}, relative)")


@pc.experiment(
    n_items={"quick": 2048, "default": 4096, "full": 16384}, truth=known_spectrum, backends=("processes", "threads")
)
def fft2(executor, n_items, seed):
    field, between, spectrum, back = fields(n_items)
    transposed_transform(executor, field, between, spectrum, np.fft.fft)
    transposed_transform(executor, spectrum, between, back, np.fft.ifft)
    return spectrum, back


if __name__ == "__main__":
    fft2.main()
