"""The laws of scaling as formulas: time, speedup or capacity on N workers.

All functions take numbers or arrays of N and broadcast. Times are in seconds or in units of T1.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

Floats = npt.NDArray[np.float64]


def amdahl(N: npt.ArrayLike, s: float) -> Floats:
    """Speedup on N workers with serial fraction s, for fixed work (Amdahl 1967). Its limit is 1/s.

    Examples
    --------
    >>> amdahl([1, 16], s=0.05).round(3).tolist()
    [1.0, 9.143]
    """
    N = np.asarray(N, float)
    return 1 / (s + (1 - s) / N)


def gustafson(N: npt.ArrayLike, s: float) -> Floats:
    """Scaled speedup on N workers when the work grows with N (Gustafson 1988).

    Here s is the serial fraction of the time *on N workers*; see `fixed_size_fraction` for Amdahl's.

    Examples
    --------
    >>> gustafson(1024, s=0.004).round(3).tolist()
    1019.908
    """
    N = np.asarray(N, float)
    return N - s * (N - 1)


def fixed_size_fraction(N: npt.ArrayLike, s: float) -> Floats:
    """Amdahl's serial fraction of a problem whose fraction by Gustafson on N workers is s (Shi 1996).

    Examples
    --------
    >>> float(amdahl(64, fixed_size_fraction(64, 0.1))) == float(gustafson(64, 0.1))
    True
    """
    N = np.asarray(N, float)
    fraction: Floats = s / (s + N * (1 - s))
    return fraction


def usl(N: npt.ArrayLike, sigma: float, kappa: float) -> Floats:
    """Relative capacity by the universal scalability law: contention σ, coherency κ (Gunther 1993).

    Examples
    --------
    >>> usl([1, 10], sigma=0.02, kappa=0.02).round(4).tolist()
    [1.0, 3.3557]
    """
    N = np.asarray(N, float)
    C: Floats = N / (1 + sigma * (N - 1) + kappa * N * (N - 1))
    return C


def usl_peak(sigma: float, kappa: float) -> float:
    """N at which the capacity of the universal scalability law is largest: √((1 − σ)/κ); inf for κ = 0."""
    return float(np.sqrt((1 - sigma) / kappa)) if kappa > 0 else float("inf")


def saturation(N: npt.ArrayLike, x1: float, X_sat: float, p: float) -> Floats:
    """Rate that grows by x1 a worker until a shared resource limits it to X_sat; p is how sharp the knee is.

    Examples
    --------
    >>> saturation([1, 4, 64], x1=5.0, X_sat=40.0, p=4.0).round(2).tolist()
    [5.0, 19.7, 40.0]
    """
    N = np.asarray(N, float)
    X: Floats = ((N * x1) ** -p + X_sat**-p) ** (-1 / p)
    return X


def task_farm(N: npt.ArrayLike, K: int, c: float, d: float, h: float = 0.0, t0: float = 0.0) -> Floats:
    """Time of K equal chunks of c seconds that a parent hands out at d seconds each; h is a worker's own cost.

    Saturates at N = (c + h)/d.

    Examples
    --------
    >>> task_farm([1, 10, 100], K=1000, c=0.010, d=0.001).round(3).tolist()
    [10.0, 1.0, 1.0]
    """
    N = np.asarray(N, float)
    T: Floats = t0 + np.maximum(K * d, (K / N) * (c + h))
    return T


def equal_chunks_efficiency(N: npt.ArrayLike, n_chunks: npt.ArrayLike) -> Floats:
    """Largest efficiency that K indivisible equal chunks allow: K/(N⌈K/N⌉).

    Examples
    --------
    >>> equal_chunks_efficiency([1, 4, 6, 8], n_chunks=8).round(3).tolist()
    [1.0, 1.0, 0.667, 1.0]
    """
    N, K = np.asarray(N, float), np.asarray(n_chunks, float)
    bound: Floats = K / (N * np.ceil(K / N))
    return bound


def list_scheduling_bounds(durations: Sequence[float] | Floats, N: int) -> tuple[float, float]:
    """Bounds of the makespan of independent tasks under list scheduling on N workers (Graham 1966).

    Examples
    --------
    >>> list_scheduling_bounds([3, 3, 2, 2, 2], N=2)
    (6.0, 7.5)
    """
    c = np.asarray(durations, float)
    mean = float(c.sum()) / N
    return max(mean, float(c.max(initial=0.0))), mean + (1 - 1 / N) * float(c.max(initial=0.0))


def karp_flatt(N: npt.ArrayLike, S: npt.ArrayLike) -> Floats:
    """Experimentally determined serial fraction of speedup S on N > 1 workers (Karp & Flatt 1990).

    Constant over N: Amdahl's law holds. Rising: an overhead grows with N.

    Examples
    --------
    >>> karp_flatt([2, 8], [1.82, 4.71]).round(2).tolist()
    [0.1, 0.1]
    """
    N, S = np.asarray(N, float), np.asarray(S, float)
    e: Floats = (1 / S - 1 / N) / (1 - 1 / N)
    return e


def karp_flatt_sd(N: npt.ArrayLike, S: npt.ArrayLike, cv: npt.ArrayLike) -> Floats:
    """Return the standard deviation of `karp_flatt` when both times scatter by the coefficient of variation `cv`.

    It grows as 1/(N − 1) towards few workers: with 2 % noise it is 0.029 on 2 and 0.0025 on 16.

    Examples
    --------
    >>> karp_flatt_sd([2, 16], [1.96, 12.3], 0.02).round(4).tolist()
    [0.0289, 0.0025]
    """
    N, S, spread = np.asarray(N, float), np.asarray(S, float), np.asarray(cv, float)
    sd: Floats = np.sqrt(2) * spread * N / ((N - 1) * S)
    return sd
