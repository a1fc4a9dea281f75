"""M-step: the estimate that the summed expectations call for, in closed form; one Newton step for population-level parameters."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from twinlib.population.estimate import Estimate, Structure, positive

LONGEST = 0.5  # step of a population-level parameter on the transformed scale


@dataclass(frozen=True)
class Belief:
    """An inverse Wishart prior of Omega, which counts as so many patients with this covariance (p, p): few patients cannot make a variance vanish."""

    covariance: np.ndarray
    patients: float

    def log_density(self, omega: np.ndarray) -> float:
        """What it adds to the log likelihood of omega, up to a constant."""
        return -0.5 * self.patients * float(np.linalg.slogdet(omega)[1] + np.sum(np.linalg.inv(omega) * self.covariance))


def maximise(sums: dict[str, np.ndarray], estimate: Estimate, s: Structure, belief: Belief | None = None) -> tuple[Estimate, bool]:
    """The next estimate from sums as `expectation.Sums` unpacks them, and whether Omega was kept from becoming singular.

    Coefficients by generalised least squares under the present Omega (free entries only), Omega as the second moment about them (its free
    entries; block structures stay exact), values by Newton on the expected log likelihood. With a belief, Omega is the mode under it.
    """
    free = s.regression(estimate.components)
    coefficients = _regression(sums, estimate, free)
    n = sums["weight"].sum()
    fit = coefficients.T @ sums["xm"]
    moment = (sums["second"] - fit - fit.T + coefficients.T @ sums["xx"] @ coefficients) / n
    if belief is not None:
        moment = (n * moment + belief.patients * belief.covariance) / (n + belief.patients)
    omega, singular = positive(np.where(s.omega, 0.5 * (moment + moment.T), estimate.omega))
    occasion = estimate.occasion
    if len(occasion) and sums["episodes"] > 0:
        moment = sums["deviations"] / sums["episodes"]
        occasion, vanished = positive(np.where(s.occasion, 0.5 * (moment + moment.T), occasion))
        singular = singular or vanished
    weights = np.maximum(sums["weight"], 1e-9 * n)
    return Estimate(coefficients, omega, occasion, _values(sums, estimate, s), weights / weights.sum()), singular


def _regression(sums, estimate: Estimate, free: np.ndarray) -> np.ndarray:
    precision = np.linalg.inv(estimate.omega)
    out = np.where(free, 0.0, estimate.coefficients)
    at = np.argwhere(free)
    if not len(at):
        return out
    matrix = precision[np.ix_(at[:, 1], at[:, 1])] * sums["xx"][np.ix_(at[:, 0], at[:, 0])]
    right = (sums["xm"] - sums["xx"] @ out) @ precision
    out[free] = np.linalg.lstsq(matrix, right[free], rcond=1e-12)[0]
    return out


def _values(sums, estimate: Estimate, s: Structure) -> np.ndarray:
    out = estimate.values.copy()
    if not s.values.any():
        return out
    g, h = sums["gradient"], -sums["curvature"]
    low = np.linalg.eigvalsh(h)[0] if np.isfinite(h).all() else -1.0
    step = np.linalg.solve(h, g) if low > 0 else np.sign(g) * LONGEST / 2  # where the curvature does not lead up, a short step does
    longest = np.abs(step).max()
    out[s.values] += step * min(1.0, LONGEST / longest if longest > 0 else 1.0)
    return out
