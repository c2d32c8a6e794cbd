"""The laws of scaling as a table, and the parameters with which a law comes closest to given points.

The default minimises relative errors in the form that is linear in its coefficients, a/N + b + cN, with
non-negative coefficients: convex, without start values, and a coefficient on its boundary is a plain zero.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from parcompute import models

Floats = npt.NDArray[np.float64]


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
        time=lambda N, p: p[0] / models.amdahl(N, p[1]),
        derived=lambda p: {"S_max": _inverse(p[1])},
        basis=lambda N: np.stack([1 / N, np.ones_like(N)], axis=1),
        theta=lambda c: np.array([c[0] + c[1], c[1] / (c[0] + c[1])]),
    ),
    "gustafson": Law(
        ("T1", "s"),
        (_INF, 1.0),
        time=lambda N, p: p[0] * N / models.gustafson(N, p[1]),
        derived=lambda p: {"E_limit": 1 - p[1]},
        basis=lambda N: np.stack([np.ones_like(N), 1 / N], axis=1),
        theta=lambda c: np.array([1 / (c[0] + c[1]), c[1] / (c[0] + c[1])]),
        of_rate=True,
    ),
    "usl": Law(
        ("T1", "sigma", "kappa"),
        (_INF, _INF, _INF),
        time=lambda N, p: p[0] / models.usl(N, p[1], p[2]),
        derived=lambda p: {"N_peak": models.usl_peak(min(p[1], 1.0), p[2]), "S_limit": _inverse(p[1])},
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
        time=lambda N, p: 1 / models.saturation(N, p[0], p[1], p[2]),
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
    coefficients = np.linalg.lstsq(how.basis(N) / observed[:, None], np.ones_like(T))[0]
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
