"""The laws of scaling: formulas, a table of them, and the parameters with which one comes closest to given points.

The formulas give time, speedup or capacity on N workers; they take numbers or arrays of N and broadcast. Times are in
seconds or in units of T1.

The default loss is of relative errors in the form that is linear in its coefficients, a/N + b + cN, with non-negative
coefficients: convex, without start values, and a coefficient on its boundary is a plain zero.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

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


@dataclass(frozen=True, slots=True)
class Law:
    """A law of scaling with the parameters of the literature.

    Attributes
    ----------
    parameters : tuple of str
        Names, T1 or the rate of one worker first.
    upper : tuple of float
        Upper bounds; all lower bounds are 0.
    time : callable
        ``time(N, theta)``, seconds on N workers.
    derived : callable
        ``derived(theta)``, what follows from the parameters, by name.
    basis : callable or None
        ``basis(N)``, shape (n_points, n_parameters), of the form that is linear in its coefficients.
    theta : callable or None
        Parameters from those coefficients.
    of_rate : bool
        Whether the linear form gives 1/T instead of T.
    """

    parameters: tuple[str, ...]
    upper: tuple[float, ...]
    time: Callable[[Floats, Floats], Floats]
    derived: Callable[[Floats], dict[str, float]]
    basis: Callable[[Floats], Floats] | None = None
    theta: Callable[[Floats], Floats] | None = None
    of_rate: bool = False


def _inverse(x: float) -> float:
    return 1 / x if x > 0 else float("inf")


_INF = float("inf")

LAWS: dict[str, Law] = {
    "amdahl": Law(
        ("T1", "s"),
        (_INF, 1.0),
        time=lambda N, p: p[0] / amdahl(N, p[1]),
        derived=lambda p: {"S_max": _inverse(p[1])},
        basis=lambda N: np.stack([1 / N, np.ones_like(N)], axis=1),
        theta=lambda c: np.array([c[0] + c[1], c[1] / (c[0] + c[1])]),
    ),
    "gustafson": Law(
        ("T1", "s"),
        (_INF, 1.0),
        time=lambda N, p: p[0] * N / gustafson(N, p[1]),
        derived=lambda p: {"E_limit": 1 - p[1]},
        basis=lambda N: np.stack([np.ones_like(N), 1 / N], axis=1),
        theta=lambda c: np.array([1 / (c[0] + c[1]), c[1] / (c[0] + c[1])]),
        of_rate=True,
    ),
    "usl": Law(
        ("T1", "sigma", "kappa"),
        (_INF, _INF, _INF),
        time=lambda N, p: p[0] / usl(N, p[1], p[2]),
        derived=lambda p: {"N_peak": usl_peak(min(p[1], 1.0), p[2]), "S_limit": _inverse(p[1])},
        basis=lambda N: np.stack([1 / N, np.ones_like(N), N], axis=1),
        theta=lambda c: np.array([c.sum(), (c[1] + c[2]) / c.sum(), c[2] / c.sum()]),
    ),
    "logarithmic": Law(
        ("T1", "s", "per_doubling"),
        (_INF, 1.0, _INF),
        time=lambda N, p: p[0] * ((1 - p[1]) / N + p[1] + p[2] * np.log2(N)),
        derived=lambda p: {"N_peak": (1 - p[1]) * np.log(2) / p[2] if p[2] > 0 else _INF},
        basis=lambda N: np.stack([1 / N, np.ones_like(N), np.log2(N)], axis=1),
        theta=lambda c: np.array([c[0] + c[1], c[1], c[2]]) / np.array([1.0, c[0] + c[1], c[0] + c[1]]),
    ),
    "saturation": Law(
        ("x1", "X_sat", "p"),
        (_INF, _INF, 64.0),
        time=lambda N, p: 1 / saturation(N, p[0], p[1], p[2]),
        derived=lambda p: {"N_sat": p[1] / p[0]},
    ),
}

LOSSES: dict[str, str] = {
    "relative": "sum of squared relative errors of the times",
    "log": "sum of squared errors of the logarithms of the times",
    "throughput": "sum of squared errors of the rates 1/T, as the USL literature fits",
    "linearised": "Gunther's: least squares of N/C - 1 against N - 1 with the rate on one worker taken as exact",
}


def named(law: str, theta: Floats) -> dict[str, float]:
    """Return the parameters, and what follows from them, by name."""
    how = LAWS[law]
    return {name: float(value) for name, value in zip(how.parameters, theta, strict=True)} | how.derived(theta)


def solve(law: str, loss: str, N: Floats, T: Floats) -> tuple[Floats, tuple[str, ...]]:
    """Return the parameters that minimise a loss, and the names of those on their boundary.

    Parameters
    ----------
    law, loss : str
        Keys of `LAWS` and `LOSSES`.
    N, T : ndarray, shape (n_points,)
        Workers and seconds.

    Returns
    -------
    theta : ndarray, shape (n_parameters,)
    boundary : tuple of str
    """
    how = LAWS[law]
    if loss == "linearised":
        theta = _linearised(N, T)
    elif loss == "relative" and how.basis is not None and how.theta is not None:
        from scipy.optimize import nnls

        observed = 1 / T if how.of_rate else T
        theta = how.theta(nnls(how.basis(N) / observed[:, None], np.ones_like(T))[0])
    else:
        theta = _nonlinear(law, loss, N, T)
    # 1e-9: where the nonlinear solver, which stays inside its bounds, stops beside one.
    near = 1e-9 * np.where(np.isfinite(how.upper), how.upper, 1.0)
    on_boundary = (theta <= near) | (theta >= np.array(how.upper) - near)
    return theta, tuple(name for name, on in zip(how.parameters, on_boundary, strict=True) if on)


def unconstrained(law: str, N: Floats, T: Floats) -> Floats | None:
    """Return the parameters without their bounds, by relative errors; None for a law that has no linear form.

    Their scatter tells how far noise reaches across a bound, which that of bounded ones does not.
    """
    how = LAWS[law]
    if how.basis is None or how.theta is None:
        return None
    observed = 1 / T if how.of_rate else T
    coefficients = np.linalg.lstsq(how.basis(N) / observed[:, None], np.ones_like(T), rcond=None)[0]
    return how.theta(coefficients.astype(np.float64))


def _linearised(N: Floats, T: Floats) -> Floats:
    T1 = float(T[N == 1].mean())
    x, y = N - 1, N * T / T1 - 1
    (first, second), *_ = np.linalg.lstsq(np.stack([x, x * x], axis=1), y, rcond=None)
    return np.array([T1, first - second, second])


def _nonlinear(law: str, loss: str, N: Floats, T: Floats) -> Floats:
    from scipy.optimize import least_squares

    how = LAWS[law]
    linear = how.basis is not None
    start = solve(law, "relative", N, T)[0] if linear else np.array([1 / (N * T).min(), 1 / T.min(), 4.0])
    # The scale makes the first parameter, a time or a rate of any unit, as large as the others.
    scale = np.where(start > 0, start, 1e-2)
    upper = np.array(how.upper)
    inside = np.clip(start, 1e-6 * scale, np.where(np.isfinite(upper), 0.999 * upper, _INF))

    def scaled(z: Floats) -> Floats:
        return residuals(law, loss, N, T, z * scale) / unit

    unit = float(1 / T.min()) if loss == "throughput" else 1.0
    found = least_squares(
        scaled,
        inside / scale,
        bounds=(np.zeros(len(upper)), upper / scale),
        xtol=1e-15,
        ftol=1e-15,
        gtol=1e-15,
        max_nfev=2000,
    )
    theta: Floats = found.x * scale
    # The solver approaches a bound without touching it; on the bound itself the loss decides.
    for i in np.flatnonzero(theta < 1e-4 * scale):
        pinned = theta.copy()
        pinned[i] = 0.0
        if np.linalg.norm(scaled(pinned / scale)) <= np.sqrt(2 * found.cost) * (1 + 1e-9):
            theta = pinned
    return theta


def residuals(law: str, loss: str, N: Floats, T: Floats, theta: Floats) -> Floats:
    """Return observed minus fitted, in the units of the loss."""
    fitted = LAWS[law].time(N, theta)
    if loss == "log":
        return np.log(T) - np.log(fitted)
    if loss in ("throughput", "linearised"):
        return 1 / T - 1 / fitted
    if LAWS[law].of_rate:
        return 1 - T / fitted
    return 1 - fitted / T
