"""Importance-sampling EM: from an E-step on some patients to a population's estimate, with acceleration, convergence and a trace.

`run` knows nothing of Spark: it is given a function that does the E-step on all patients and returns the sums (see `spark.py`).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

import numpy as np

from twinlib.population.estimate import Estimate, Structure
from twinlib.population.expectation import Sums
from twinlib.population.maximisation import Belief, maximise

Step = Callable[[Estimate, bool, float], np.ndarray]  # estimate, with information?, share of the patients -> sums
DROP = 1.0  # units of log likelihood below the best that an accelerated step may fall before it is taken back
LOST = 50.0  # units of log likelihood below the best at which an iteration counts as divergent


@dataclass(frozen=True)
class Iteration:
    """One E-step: the estimate under which it was made, its log likelihood, and the largest change that the M-step made."""

    number: int
    share: float
    patients: int
    log_likelihood: float
    change: float
    estimate: Estimate


@dataclass(frozen=True)
class Learnt:
    """What EM arrived at. status: converged, not_converged, diverged or singular_omega; log_likelihood with the SE of its Monte Carlo error;
    errors: SE of the free parameters in the order of `expectation._louis`, NaN where the data do not identify them; sums of the last pass."""

    status: str
    reason: str | None
    estimate: Estimate
    structure: Structure
    log_likelihood: float
    log_likelihood_se: float
    errors: np.ndarray
    sums: dict[str, np.ndarray]
    trace: list[Iteration] = field(default_factory=list)

    @property
    def parameters(self) -> int:
        return self.structure.count(self.estimate.components)

    @property
    def aic(self) -> float:
        return -2 * self.log_likelihood + 2 * self.parameters

    @property
    def bic(self) -> float:
        """With the number of patients as the sample size."""
        return -2 * self.log_likelihood + np.log(max(self.sums["patients"] - self.sums["left_out"], 1)) * self.parameters


def run(step: Step, start: Estimate, s: Structure, iterations: int, tolerance: float, shares=(1.0,), belief: Belief | None = None) -> Learnt:
    """EM from `start` until no free parameter is further than `tolerance` from where it is heading.

    The distance is judged from the last change and the rate at which changes shrink. shares: EM runs on these shares of the patients one after
    the other, the last on all. Steps are accelerated (SQUAREM, Varadhan & Roland 2008); one that lowers the likelihood is taken back.
    belief: what is known of the spread between patients beforehand.
    """
    trace: list[Iteration] = []
    estimate, status, reason = start, "not_converged", "iteration_limit"
    for share in shares:
        estimate, status, reason = _climb(step, estimate, s, iterations, tolerance if share == shares[-1] else 5 * tolerance, share, trace, belief)
        if status == "diverged":
            break
    estimate = estimate.ordered()
    final = Sums(s, estimate.components, True).unpack(step(estimate, True, shares[-1]))
    errors = standard_errors(final["information"])
    ll = float(final["log_likelihood"])
    return Learnt(status, reason, estimate, s, ll, float(np.sqrt(final["variance"])), errors, final, trace)


def _climb(step: Step, start: Estimate, s: Structure, iterations: int, tolerance: float, share: float, trace: list[Iteration], belief: Belief | None):
    """EM on one share of the patients: the estimate, status and reason. `trace` grows by its iterations."""
    layout = Sums(s, start.components, False)
    best, best_ll, before, singular, most = start, -np.inf, None, 0, 0
    current, plain, path = start, start, []  # path: estimates of plain steps since the last acceleration
    for _ in range(iterations):
        sums = layout.unpack(step(current, False, share))
        used, own = int(sums["patients"] - sums["left_out"]), float(sums["log_likelihood"])
        ll = own if belief is None else own + belief.log_density(current.omega)
        if used < most and current is not plain:  # a step too long for some patients, without whom the likelihood says nothing
            current, path = plain, []
            continue
        if used == 0:
            return best, "diverged", "no_patient_has_a_posterior"
        most = max(most, used)
        finite = np.isfinite(ll) and all(np.isfinite(v).all() for v in sums.values())
        if not finite or ll < best_ll - LOST:
            if current is plain:
                return best, "diverged", "not_finite" if not finite else "likelihood_fell"
            current, path = plain, []
            continue
        if ll < best_ll - DROP and current is not plain:
            current, path = plain, []
            continue
        if ll > best_ll:
            best, best_ll = current, ll
        following, floored = maximise(sums, current, s, belief)
        singular = singular + 1 if floored else 0
        change = following.vector(s) - current.vector(s)
        largest = float(np.abs(change).max()) if change.size else 0.0
        trace.append(Iteration(len(trace) + 1, share, used, own, largest, current))
        rate = min(np.linalg.norm(change) / np.linalg.norm(before), 0.99) if before is not None and np.linalg.norm(before) > 0 else 0.9
        before = change
        if singular >= 3:
            return following, "singular_omega", "a variance vanished, or parameters are perfectly correlated: make omega diagonal or fix the parameter"
        if largest * max(1.0, rate / (1.0 - rate)) < tolerance:
            return following, "converged", None
        path.append((current.vector(s), following.vector(s)))
        plain = current = following
        if len(path) == 2:
            current, path, before = _accelerated(*path, following, s), [], None
    return best if best_ll > -np.inf else current, "not_converged", "iteration_limit"


def _accelerated(first, second, following: Estimate, s: Structure) -> Estimate:
    """SQUAREM's third scheme from two consecutive steps; the plain step where it would go back."""
    (x0, x1), (_, x2) = first, second
    r, v = x1 - x0, (x2 - x1) - (x1 - x0)
    if not np.linalg.norm(v) > 1e-12:
        return following
    length = min(np.linalg.norm(r) / np.linalg.norm(v), 16.0)
    if length <= 1.0:
        return following
    return following.at(x0 + 2 * length * r + length**2 * v, s)


def standard_errors(information: np.ndarray) -> np.ndarray:
    """SE of parameters from their information matrix (f, f); NaN for those that lie in a direction it does not hold."""
    f = len(information)
    if not f or not np.isfinite(information).all():
        return np.full(f, np.nan)
    scale = np.sqrt(np.maximum(np.abs(np.diag(information)), 1e-300))
    values, vectors = np.linalg.eigh(information / np.outer(scale, scale))
    held = values > 1e-8 * max(values[-1], 1e-300)
    lost = (vectors[:, ~held] ** 2).sum(1) > 1e-4
    variance = (vectors[:, held] ** 2 / values[held]).sum(1) / scale**2
    return np.where(lost | ~(variance > 0), np.nan, np.sqrt(variance))
