"""Find the parameters of a law of scaling from measured times, and say what the points cannot tell.

Times are fitted, not speedups: a speedup shares its T1 with all others, so their errors are not independent.
`laws` has the laws, and finds the closest parameters; here stands how far to believe them.
"""

from __future__ import annotations

import itertools
from collections.abc import Mapping
from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt

from parcompute.analysis.bootstrap import amdahl_bounds, parameter_intervals
from parcompute.analysis.laws import LAWS, LOSSES, Floats, named, residuals, solve

# Up to here σ(N − 1) and κN(N − 1) are too much alike to be told apart through noise of a few per cent.
USL_NEEDS_MORE_THAN = 8


@dataclass(frozen=True, eq=False)
class Fit:
    """A law with its parameters, or the reason why the points do not give them.

    Attributes
    ----------
    law, loss : str
        Keys of `LAWS` and `LOSSES`.
    n_workers, times_s : ndarray, shape (n_points,)
        What was fitted.
    identifiable : bool
        Whether the points tell the parameters. If not, `reason` says why, and there are either no parameters
        or ones that should not be reported.
    reason : str
        Why not; empty if they are.
    parameters : mapping of str to float
        By name, what follows from them included.
    intervals : mapping of str to (float, float)
        95 % intervals. One-sided for a parameter on its boundary. Not identifiable: what the points exclude.
    intervals_by : str
        How the intervals were found, or why there are none.
    standard_errors : mapping of str to float
        From the curvature of the loss, for parameters that are not on a boundary.
    correlations : mapping of str to float
        Of pairs of parameters that are not on a boundary, by ``"sigma, kappa"``: near −1 the one does the other's work.
    boundary : tuple of str
        Parameters on their boundary.
    residuals : ndarray, shape (n_points,)
        Observed minus fitted, in the units of the loss.
    lack_of_fit : tuple of (float, float) or None
        F and p of the test against the scatter of the replicates; None where there are none. A small p: the
        law is wrong.
    """

    law: str
    loss: str
    n_workers: Floats
    times_s: Floats
    identifiable: bool
    reason: str
    parameters: Mapping[str, float] = field(default_factory=dict)
    intervals: Mapping[str, tuple[float, float]] = field(default_factory=dict)
    intervals_by: str = ""
    standard_errors: Mapping[str, float] = field(default_factory=dict)
    correlations: Mapping[str, float] = field(default_factory=dict)
    boundary: tuple[str, ...] = ()
    residuals: Floats = field(default_factory=lambda: np.zeros(0))
    lack_of_fit: tuple[float, float] | None = None

    @property
    def rss(self) -> float:
        """Residual sum of squares, in the units of the loss."""
        return float(self.residuals @ self.residuals)

    @property
    def aicc(self) -> float | None:
        """Akaike's criterion with the correction for few points (Hurvich & Tsai 1989); None where undefined.

        n ln(RSS/n) + 2k + 2k(k + 1)/(n − k − 1), where k counts the variance too: undefined below 5 points for
        a law of two parameters, below 6 for one of three.
        """
        n, k = len(self.residuals), len(LAWS[self.law].parameters) + 1
        if n < k + 2 or not self.parameters:
            return None
        with np.errstate(divide="ignore"):
            return float(n * np.log(self.rss / n)) + 2 * k + 2 * k * (k + 1) / (n - k - 1)

    def times(self, n_workers: npt.ArrayLike) -> Floats:
        """Return the seconds that the law gives on `n_workers`.

        Raises
        ------
        ValueError
            If the points did not give parameters.
        """
        if not self.parameters:
            raise ValueError(f"{self.law} has no parameters here: {self.reason}; measure more worker counts")
        law = LAWS[self.law]
        return law.time(np.asarray(n_workers, float), np.array([self.parameters[name] for name in law.parameters]))

    def __str__(self) -> str:
        values = [f"{name} = {value:.4g}{self._interval(name)}" for name, value in self.parameters.items()]
        if not self.parameters:
            values = [f"{name} in [{low:.4g}, {high:.4g}]" for name, (low, high) in self.intervals.items()]
        notes = [] if self.identifiable else [self.reason]
        notes += [f"{name} on its boundary" for name in self.boundary]
        return f"{self.law} ({self.loss}): {'; '.join([*notes, *values])}"

    def _interval(self, name: str) -> str:
        if name not in self.intervals:
            return ""
        low, high = self.intervals[name]
        return f" [{low:.4g}, {high:.4g}]"


def fit(
    law: str,
    n_workers: npt.ArrayLike,
    times_s: npt.ArrayLike,
    *,
    loss: str = "relative",
    rounds: npt.ArrayLike | None = None,
    n_draws: int = 1000,
    seed: int = 0,
) -> Fit:
    """Fit a law of scaling to measured times.

    Parameters
    ----------
    law : str
        A key of `LAWS`.
    n_workers, times_s : array_like, shape (n_points,)
        One point per run: workers, and seconds (or 1/rate).
    loss : str
        A key of `LOSSES`. ``linearised`` is for the USL only, ``gustafson`` has ``relative`` only.
    rounds : array_like of int, shape (n_points,), optional
        Which round each run belongs to. Whole rounds are drawn again, with everything computed anew, T1
        included; without rounds, or with less than six of them, there are no intervals.
    n_draws, seed : int
        Of the bootstrap.

    Raises
    ------
    ValueError
        If names are unknown, lengths differ, or a number is out of its range.

    Examples
    --------
    >>> print(fit("amdahl", [1, 2, 4, 8], [8.0, 4.4, 2.6, 1.7]))
    amdahl (relative): T1 = 8; s = 0.1; S_max = 10
    >>> print(fit("amdahl", [1, 2], [8.0, 4.4]))
    amdahl (relative): not identifiable from 2 points; s in [0, 0.1]; S_max in [10, inf]
    """
    N, T, R = _checked(law, loss, n_workers, times_s, rounds)
    n_parameters, n_distinct = len(LAWS[law].parameters), len(np.unique(N))
    if n_distinct <= n_parameters:
        reason = f"not identifiable from {n_distinct} point{'s' * (n_distinct > 1)}"
        if law != "amdahl":
            return Fit(law, loss, N, T, False, reason)
        intervals, by = amdahl_bounds(N, T, R, n_draws, seed)
        return Fit(law, loss, N, T, False, reason, intervals=intervals, intervals_by=by)

    theta, boundary = solve(law, loss, N, T)
    left = residuals(law, loss, N, T, theta)
    intervals, by = parameter_intervals(law, loss, N, T, R, theta, boundary, n_draws, seed)
    errors, correlations = _errors(law, loss, N, T, theta, boundary)
    reason = ""
    if law == "usl" and N.max() <= USL_NEEDS_MORE_THAN:
        reason = f"up to {N.max():.0f} workers sigma and kappa cannot be told apart"
    return Fit(
        law,
        loss,
        N,
        T,
        identifiable=not reason,
        reason=reason,
        parameters=named(law, theta),
        intervals=intervals,
        intervals_by=by,
        standard_errors=errors,
        correlations=correlations,
        boundary=boundary,
        residuals=left,
        lack_of_fit=_lack_of_fit(law, loss, N, T, float(left @ left)),
    )


# ── one solution ──────────────────────────────────────────────────────────────────────────────────────


def _checked(
    law: str, loss: str, n_workers: npt.ArrayLike, times_s: npt.ArrayLike, rounds: npt.ArrayLike | None
) -> tuple[Floats, Floats, npt.NDArray[np.int64] | None]:
    if law not in LAWS:
        raise ValueError(f"law={law!r} is unknown; pass one of {', '.join(LAWS)}")
    if loss not in LOSSES:
        raise ValueError(f"loss={loss!r} is unknown; pass one of {', '.join(LOSSES)}")
    if (loss == "linearised" and law != "usl") or (law == "gustafson" and loss != "relative"):
        raise ValueError(f"loss={loss!r} is not defined for law={law!r}; pass loss='relative'")
    N, T = np.asarray(n_workers, float), np.asarray(times_s, float)
    R = None if rounds is None else np.asarray(rounds, np.int64)
    if N.ndim != 1 or N.shape != T.shape or (R is not None and R.shape != N.shape) or not len(N):
        shapes = f"{N.shape}, {T.shape}" + (f", {R.shape}" if R is not None else "")
        raise ValueError(f"n_workers, times_s and rounds have shapes {shapes}; pass one number per run in each")
    if not (np.isfinite(T).all() and (T > 0).all()):
        raise ValueError(f"times_s has the value {T[~(np.isfinite(T) & (T > 0))][0]}; pass finite seconds above 0")
    if not (np.isfinite(N).all() and (N >= 1).all()):
        raise ValueError(f"n_workers has the value {N[~(np.isfinite(N) & (N >= 1))][0]}; pass numbers of at least 1")
    if loss == "linearised" and not (N == 1).any():
        raise ValueError("loss='linearised' takes the rate on one worker as exact; pass a run with n_workers=1")
    return N, T, R


# ── how sure ──────────────────────────────────────────────────────────────────────────────────────────


def _errors(
    law: str, loss: str, N: Floats, T: Floats, theta: Floats, boundary: tuple[str, ...]
) -> tuple[dict[str, float], dict[str, float]]:
    """Return standard errors and correlations, from the curvature of the loss."""
    names = LAWS[law].parameters
    free = [i for i, name in enumerate(names) if name not in boundary and not (loss == "linearised" and name == "T1")]
    if len(T) <= len(free):
        return {}, {}
    columns = []
    for i in free:
        step = np.zeros_like(theta)
        step[i] = 1e-6 * max(abs(theta[i]), 1e-6)
        ahead, behind = (residuals(law, loss, N, T, theta + sign * step) for sign in (1, -1))
        columns.append((ahead - behind) / (2 * step[i]))
    J = np.stack(columns, axis=1)
    left = residuals(law, loss, N, T, theta)
    scale = np.linalg.norm(J, axis=0)
    if not (scale > 0).all() or np.linalg.matrix_rank(J / scale) < len(free):
        return {}, {}
    variance = float(left @ left) / (len(T) - len(free))
    covariance = variance * np.linalg.inv((J / scale).T @ (J / scale))
    spread = np.sqrt(np.diag(covariance))
    errors = {names[i]: float(error) for i, error in zip(free, spread / scale, strict=True)}
    if not (spread > 0).all():
        return errors, {}
    pairs = itertools.combinations(range(len(free)), 2)
    correlation = covariance / np.outer(spread, spread)
    return errors, {f"{names[free[a]]}, {names[free[b]]}": float(correlation[a, b]) for a, b in pairs}


def _lack_of_fit(law: str, loss: str, N: Floats, T: Floats, rss: float) -> tuple[float, float] | None:
    from scipy import stats

    n, m, p = len(T), len(np.unique(N)), len(LAWS[law].parameters)
    if n <= m or m <= p:
        return None
    pure = 0.0
    for value in np.unique(N):
        t = T[value == N]
        if loss == "relative":
            # The constant that minimises the same loss, so that no law can come below it.
            rate = LAWS[law].of_rate
            best = (t * t).sum() / t.sum() if rate else (1 / t).sum() / (1 / t**2).sum()
            errors = 1 - t / best if rate else 1 - best / t
        else:
            y = np.log(t) if loss == "log" else 1 / t
            errors = y - y.mean()
        pure += float(errors @ errors)
    if pure <= 0:
        return None
    F = ((rss - pure) / (m - p)) / (pure / (n - m))
    return F, float(stats.f.sf(F, m - p, n - m))
