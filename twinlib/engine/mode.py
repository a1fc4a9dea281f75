"""Posterior modes of a batch of patients: Levenberg-Marquardt on the Kalman likelihood, every patient on its own path.

The copies of a patient (its parameters, and one perturbed parameter each) are lanes of one kernel call; patients that have
converged leave the batch. Nothing that is computed for one patient depends on which others are in the batch.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numba import njit

from twinlib.engine.kernel import Data, Kernel

STEP = 1e-4  # forward difference on the transformed scale: bias of the mode below 0.1 % of a posterior SD
TOLERANCE = 1e-6  # predicted decrease of minus log posterior: 0.14 % of a posterior SD from the mode
BOUND = 5.0  # prior SDs about the prior mean within which modes are sought


@dataclass(frozen=True)
class Modes:
    """theta (patients, p) transformed; hessian (patients, p, p) of minus log posterior (Gauss-Newton); objective (patients,) minus
    log posterior without constants; status and reason (patients,) text; iterations (patients,)."""

    theta: np.ndarray
    hessian: np.ndarray
    objective: np.ndarray
    status: np.ndarray
    reason: np.ndarray
    iterations: np.ndarray


@njit(cache=True, error_model="numpy")
def normal_equations(E, V, copies, step, g, H):
    """Gradient g (patients, p) and expected Hessian H (patients, p, p) of sum(e^2/s + log s)/2.

    E, V (patients*copies, slots): innovations and variances; copy 0 is the base point, copy 1+j has parameter j moved by `step`.
    """
    p = copies - 1
    de, dv = np.empty(p), np.empty(p)
    for b in range(g.shape[0]):
        base = b * copies
        g[b] = 0.0
        H[b] = 0.0
        for k in range(E.shape[1]):
            e, s = E[base, k], V[base, k]
            for j in range(p):
                de[j] = (E[base + 1 + j, k] - e) / step
                dv[j] = (V[base + 1 + j, k] - s) / step
                g[b, j] += (e * de[j] + 0.5 * dv[j] * (1.0 - e * e / s)) / s
                for i in range(j + 1):
                    H[b, j, i] += (de[i] * de[j] + 0.5 * dv[i] * dv[j] / s) / s
        for j in range(p):
            for i in range(j):
                H[b, i, j] = H[b, j, i]


def _evaluate(kernel: Kernel, natural, data: Data, rows, theta, mean, sd):
    """Objective, gradient and Hessian of minus log posterior at theta (rows.size, p)."""
    n, p = theta.shape
    copies = np.repeat(theta, 1 + p, axis=0).reshape(n, 1 + p, p)
    copies[:, 1 + np.arange(p), np.arange(p)] += STEP
    nll, e, v = kernel.filter(natural(copies.reshape(-1, p)), np.repeat(rows, 1 + p), data, full=True)
    g, h = np.empty((n, p)), np.empty((n, p, p))
    normal_equations(e, v, 1 + p, STEP, g, h)
    z = (theta - mean) / sd
    return nll[:: 1 + p] + 0.5 * (z * z).sum(1), g + z / sd, h + np.diag(1 / sd**2)


def _solve(h, damping, g):
    """Damped Newton steps (n, p); NaN where the damped Hessian is not positive definite."""
    a = h + damping[:, None, None] * (h * np.eye(h.shape[1]))
    out = np.full_like(g, np.nan)
    for i in range(len(a)):  # one by one: an indefinite matrix must not touch its neighbours
        try:
            c = np.linalg.cholesky(a[i])
            out[i] = -np.linalg.solve(c.T, np.linalg.solve(c, g[i]))
        except np.linalg.LinAlgError:
            pass
    return out


def find(kernel: Kernel, natural, data: Data, mean, sd, starts: np.ndarray, maximum_iterations: int = 60) -> Modes:
    """Modes of all rows of `data` from `starts` (patients, p), under the prior N(mean, diag(sd^2)) on the transformed scale.

    Status is converged, not_converged or failed; a patient that fails leaves the others as they are.
    """
    n, p = starts.shape
    with np.errstate(all="ignore"):
        theta = np.clip(starts, mean - BOUND * sd, mean + BOUND * sd)
        f, g, h = _evaluate(kernel, natural, data, np.arange(n), theta, mean, sd)
        status, reason = np.full(n, "", object), np.full(n, None, object)
        usable = np.isfinite(f) & np.isfinite(g).all(1) & np.isfinite(h).all((1, 2))
        status[~usable], reason[~usable] = "failed", "not_finite_at_start"
        lam, nu, iterations = np.full(n, 1e-3), np.full(n, 2.0), np.zeros(n, np.int32)
        for _ in range(maximum_iterations):
            rows = np.flatnonzero(status == "")
            if not rows.size:
                break
            step = _solve(h[rows], lam[rows], g[rows])
            step *= np.minimum(1.0, 2.0 / np.max(np.abs(step) / sd, axis=1))[:, None]
            trial = np.clip(theta[rows] + step, mean - BOUND * sd, mean + BOUND * sd)
            step = trial - theta[rows]
            predicted = -(g[rows] * step).sum(1) - 0.5 * np.einsum("ni,nij,nj->n", step, h[rows], step, optimize=False)
            done = predicted < TOLERANCE * (1 + lam[rows])
            status[rows[done]] = "converged"
            lost = ~np.isfinite(predicted) & (lam[rows] > 1e10)
            status[rows[lost]], reason[rows[lost]] = "failed", "singular_hessian"
            go = ~done & ~lost
            rows, trial, predicted = rows[go], trial[go], predicted[go]
            if not rows.size:
                continue
            iterations[rows] += 1
            f2, g2, h2 = _evaluate(kernel, natural, data, rows, trial, mean, sd)
            fine = np.isfinite(f2) & np.isfinite(g2).all(1) & np.isfinite(h2).all((1, 2)) & (f2 < f[rows])
            gain = (f[rows] - f2) / predicted
            up, down = rows[~fine], rows[fine]
            theta[down], f[down], g[down], h[down] = trial[fine], f2[fine], g2[fine], h2[fine]
            lam[down] *= np.maximum(1 / 5, 1 - (2 * gain[fine] - 1) ** 3)  # Nielsen 1999
            lam[down], nu[down] = np.maximum(lam[down], 1e-9), 2.0
            stuck = up[(lam[up] > 1e10)]
            status[stuck], reason[stuck] = "not_converged", "no_descent"
            lam[up] *= nu[up]
            nu[up] *= 2
        left = status == ""
        status[left], reason[left] = "not_converged", "iteration_limit"
    return Modes(theta, h, f, status, reason, iterations)


def find_from(kernel: Kernel, natural, data: Data, mean, sd, starts: list[np.ndarray], maximum_iterations: int) -> Modes:
    """`find` from the first start for all, from the next ones for patients that have not converged; the best of each is kept."""
    best = find(kernel, natural, data, mean, sd, starts[0], maximum_iterations)
    for start in starts[1:]:
        rows = np.flatnonzero(best.status != "converged")
        if not rows.size:
            break
        again = find(kernel, natural, data.take(rows), mean, sd, start[rows], maximum_iterations)
        better = (again.status == "converged") | (again.objective < best.objective[rows])
        for name in Modes.__dataclass_fields__:
            getattr(best, name)[rows[better]] = getattr(again, name)[better]
    return best
