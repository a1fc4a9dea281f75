"""Posterior modes of a batch of patients: Levenberg-Marquardt on the likelihood, every patient on its own path.

Most of the way is gone with steps of twice the length, the last of it with the steps that the model asks for.
All patients that are still on their way are lanes of one kernel call; those that have converged leave. Nothing that is computed for one
patient depends on which others are in the batch.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numba import njit

from twinlib.engine.kernel import Data, Kernel
from twinlib.engine.normal import Normal

TOLERANCE = 1e-6  # decrease of minus log posterior that a full step promises: 0.14 % of a posterior SD from the mode
BOUND = 5.0  # prior SDs about the prior mean within which modes are sought
NEAR = 1e-2  # the same where the steps of the integration are still long: 14 % of a posterior SD
TRUST = 1e-3  # promised decrease (4 % of a posterior SD) below which the last step is taken without looking again
LEFT = 1e-6  # decrease that may be left after that step
SLOWEST = 1e-2  # the least share of a promise that is assumed to be left after a step
LONGEST = 2.0  # prior SDs that one step may move a parameter
GIVE_UP = 1e10  # damping at which there is no descent

ON_THE_WAY, CONVERGED, NO_DESCENT, SINGULAR, NOT_FINITE = range(5)
_STATUS = {
    ON_THE_WAY: ("not_converged", "iteration_limit"), CONVERGED: ("converged", None), NO_DESCENT: ("not_converged", "no_descent"),
    SINGULAR: ("failed", "singular_hessian"), NOT_FINITE: ("failed", "not_finite_at_start"),
}


@dataclass(frozen=True)
class Modes:
    """theta (rows, p) transformed; hessian (rows, p, p) of minus log posterior (expected); objective (rows,) minus log posterior without
    constants; status and reason (rows,) text; iterations (rows,)."""

    theta: np.ndarray
    hessian: np.ndarray
    objective: np.ndarray
    status: np.ndarray
    reason: np.ndarray
    iterations: np.ndarray


@njit(cache=True, error_model="numpy")
def _descent(h, damping, g, free, step):
    """step = -(h + damping*diag(h))^-1 g of the free parameters, by Cholesky; False where that is not positive definite."""
    p = g.size
    c = np.zeros((p, p))
    for i in range(p):
        for j in range(i + 1):
            if not (free[i] and free[j]):
                a = 1.0 if i == j else 0.0
            else:
                a = h[i, j] * (1.0 + damping) if i == j else h[i, j]
            for k in range(j):
                a -= c[i, k] * c[j, k]
            if i == j:
                if not a > 0.0:
                    return False
                c[i, i] = np.sqrt(a)
            else:
                c[i, j] = a / c[j, j]
    for i in range(p):
        a = -g[i] if free[i] else 0.0
        for k in range(i):
            a -= c[i, k] * step[k]
        step[i] = a / c[i, i]
    for i in range(p - 1, -1, -1):
        for k in range(i + 1, p):
            step[i] -= c[k, i] * step[k]
        step[i] /= c[i, i]
    return True


@njit(cache=True, error_model="numpy")
def _propose(rows, goal, theta, f, g, h, promised, rate, rest, learnt, damping, low, high, sd, trial, predicted, status):
    """Next points of the patients `rows`; those that need none get their status.

    Converged is who cannot gain `goal` by an undamped step, or can with less than that left to gain after it, to judge by what earlier
    steps have left. The step is taken, and the objective is what it promises. Parameters that press against a bound stay there.
    """
    p = theta.shape[1]
    step, free, m = np.empty(p), np.empty(p, np.bool_), np.empty((p, p))
    for n in range(rows.size):
        r = rows[n]
        for j in range(p):
            free[j] = not ((theta[r, j] <= low[r, j] and g[r, j] > 0.0) or (theta[r, j] >= high[r, j] and g[r, j] < 0.0))
        trial[r], predicted[r] = theta[r], np.nan
        if _descent(h[r], 0.0, g[r], free, step):
            gain, inside = 0.0, True
            for j in range(p):
                gain -= 0.5 * g[r, j] * step[j]
                inside = inside and low[r, j] < theta[r, j] + step[j] < high[r, j]
            if promised[r] > 0.0:
                rate[r] = max(gain / promised[r], SLOWEST)
            promised[r] = gain
            if gain < goal or (gain < TRUST and rate[r] * gain < LEFT and inside):
                if inside:
                    for j in range(p):
                        theta[r, j] += step[j]
                    f[r] -= gain
                status[r] = CONVERGED
                continue
        elif damping[r] > GIVE_UP:
            status[r] = SINGULAR
            continue
        m[:] = h[r]
        if learnt[r]:
            m += rest[r]
        if not _descent(m, damping[r], g[r], free, step):
            m[:] = h[r]
            if not _descent(m, damping[r], g[r], free, step):
                continue
        longest = 0.0
        for j in range(p):
            longest = max(longest, abs(step[j]) / sd[j])
        share = min(1.0, LONGEST / longest) if longest > 0.0 else 1.0
        for j in range(p):
            trial[r, j] = min(max(theta[r, j] + share * step[j], low[r, j]), high[r, j])
            step[j] = trial[r, j] - theta[r, j]
        decrease = 0.0
        for i in range(p):
            decrease -= g[r, i] * step[i]
            for j in range(p):
                decrease -= 0.5 * step[i] * m[i, j] * step[j]
        predicted[r] = decrease


@njit(cache=True, error_model="numpy")
def _learn(s, y, h, rest):
    """Secant update of `rest`, what the expected Hessian h lacks of the true one, so that (h + rest) s = y: the structured update of
    Dennis, Gay & Welsch 1981 (NL2SOL), sized so that it can shrink."""
    p = s.size
    sy, srs, short = 0.0, 0.0, np.empty(p)
    for i in range(p):
        sy += s[i] * y[i]
        short[i] = y[i]
        for j in range(p):
            short[i] -= h[i, j] * s[j]
            srs += s[i] * rest[i, j] * s[j]
    wanted = 0.0
    for i in range(p):
        wanted += s[i] * short[i]
    if not sy > 0.0:
        rest[:] = 0.0
        return
    if abs(srs) > abs(wanted):
        rest *= abs(wanted) / abs(srs)
    inner = 0.0
    for i in range(p):
        for j in range(p):
            short[i] -= rest[i, j] * s[j]
    for i in range(p):
        inner += s[i] * short[i]
    for i in range(p):
        for j in range(p):
            rest[i, j] += (short[i] * y[j] + y[i] * short[j]) / sy - inner * y[i] * y[j] / (sy * sy)


@njit(cache=True, error_model="numpy")
def _judge(rows, trial, f2, g2, h2, predicted, theta, f, g, h, rest, learnt, damping, growth, status):
    """Take or refuse the trial points (f2, g2, h2 in the order of `rows`); damping after Nielsen 1999."""
    for n in range(rows.size):
        r = rows[n]
        fine = np.isfinite(f2[n]) and np.all(np.isfinite(g2[n])) and np.all(np.isfinite(h2[n])) and f2[n] < f[r]
        if fine and predicted[r] > 0.0:
            gain = (f[r] - f2[n]) / predicted[r]
            step = trial[r] - theta[r]
            plain, less = f[r] - f2[n], 0.0
            for i in range(step.size):
                plain += g[r, i] * step[i]
                for j in range(step.size):
                    plain += 0.5 * step[i] * h[r, i, j] * step[j]
                    less += 0.5 * step[i] * rest[r, i, j] * step[j]
            learnt[r] = abs(plain + less) < abs(plain)  # which of the two would have foretold this step better
            _learn(step, g2[n] - g[r], h2[n], rest[r])
            theta[r], f[r], g[r], h[r] = trial[r], f2[n], g2[n], h2[n]
            damping[r] = max(damping[r] * max(0.2, 1.0 - (2.0 * gain - 1.0) ** 3), 1e-9)
            growth[r] = 2.0
        else:
            if damping[r] > GIVE_UP:
                status[r] = NO_DESCENT
            damping[r] *= growth[r]
            growth[r] *= 2.0


def _evaluate(kernel: Kernel, data: Data, prior: Normal, rows, theta):
    """Objective, gradient and Hessian of minus log posterior of the patients `rows` at theta (rows.size, p)."""
    nll, g, h = kernel.derivatives(theta, rows, data)
    part = prior.take(rows)
    return nll + part.minus_log(theta), g + prior.pull(theta - part.mean), h + prior.precision


def _finite(f, g, h) -> np.ndarray:
    return np.isfinite(f) & np.isfinite(g).all(1) & np.isfinite(h).all((1, 2))


def find(kernel: Kernel, data: Data, prior: Normal, starts: np.ndarray, maximum_iterations: int = 60) -> Modes:
    """Modes of all rows of `data` from `starts` (rows, p), on the transformed scale, within BOUND prior SDs of the prior mean.

    Status is converged, not_converged or failed; a patient that fails leaves the others as they are.
    """
    n, p = starts.shape
    low, high = prior.mean - BOUND * prior.sd, prior.mean + BOUND * prior.sd
    begin, iterations = np.clip(starts, low, high), np.zeros(n, np.int32)
    theta = begin.copy()
    rest, learnt, rate = np.zeros((n, p, p)), np.zeros(n, bool), np.full(n, np.inf)
    trial, predicted = np.empty_like(theta), np.empty(n)
    coarse = data.coarse(kernel.search_step)
    phases = ((coarse, NEAR), (data, TOLERANCE)) if len(coarse.lengths) < len(data.lengths) else ((data, TOLERANCE),)
    with np.errstate(all="ignore"):
        for part, goal in phases:
            f, g, h = _evaluate(kernel, part, prior, np.arange(n), theta)
            usable = _finite(f, g, h)
            lost = np.flatnonzero(~usable & (theta != begin).any(1))  # long steps have led where short ones fail: from the start again
            if lost.size:
                theta[lost] = begin[lost]
                f[lost], g[lost], h[lost] = _evaluate(kernel, part, prior, lost, theta[lost])
                usable = _finite(f, g, h)
            status = np.where(usable, ON_THE_WAY, NOT_FINITE)
            damping, growth, promised = np.full(n, 1e-3), np.full(n, 2.0), np.zeros(n)
            while (rows := np.flatnonzero((status == ON_THE_WAY) & (iterations < maximum_iterations))).size:
                _propose(rows, goal, theta, f, g, h, promised, rate, rest, learnt, damping, low, high, prior.sd, trial, predicted, status)
                rows = rows[status[rows] == ON_THE_WAY]
                if not rows.size:
                    break
                iterations[rows] += 1
                _judge(rows, trial, *_evaluate(kernel, part, prior, rows, trial[rows]), predicted, theta, f, g, h, rest, learnt, damping, growth, status)
    text, reason = (np.array([_STATUS[s][k] for s in status], object) for k in (0, 1))
    return Modes(theta, h, f, text, reason, iterations)


def find_from(kernel: Kernel, data: Data, prior: Normal, starts: list[np.ndarray], maximum_iterations: int, all_starts: bool = False) -> Modes:
    """`find` from the first start for all, from the next ones for those that have not converged (or for all): the best of each is kept."""
    best = find(kernel, data, prior, starts[0], maximum_iterations)
    for start in starts[1:]:
        rows = np.arange(len(data)) if all_starts else np.flatnonzero(best.status != "converged")
        if not rows.size:
            break
        again = find(kernel, data.take(rows), prior.take(rows), start[rows], maximum_iterations)
        converged, was = again.status == "converged", best.status[rows] == "converged"
        better = (converged & ~was) | ((converged == was) & (again.objective < best.objective[rows]))
        for name in Modes.__dataclass_fields__:
            getattr(best, name)[rows[better]] = getattr(again, name)[better]
    return best
