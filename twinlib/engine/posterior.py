"""From the mode to the posterior: Laplace covariance, importance-sampled draws, evidence and their diagnostics."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass

import numpy as np
from scipy.linalg import solve_triangular
from scipy.special import gammaincinv, gammaln, logsumexp, ndtri
from scipy.stats import qmc

from twinlib.engine.kernel import Data, Kernel

DEGREES = 7.0  # of freedom of the t proposal


@dataclass(frozen=True)
class Posterior:
    """Draws (rows, draws, p) on the transformed scale with normalised weights (rows, draws), log evidence and diagnostics (rows,)."""

    draws: np.ndarray
    weights: np.ndarray
    log_evidence: np.ndarray
    pareto_k: np.ndarray
    effective_draws: np.ndarray


def key(seed: int, *names: str) -> np.random.Generator:
    """A counter-based generator (Philox) keyed by seed and names, independent of partitions and order."""
    digest = hashlib.blake2b("\x1f".join([str(seed), *names]).encode(), digest_size=16).digest()
    return np.random.Generator(np.random.Philox(key=int.from_bytes(digest, "little")))


def uniforms(keys: list[tuple[str, ...]], seed: int, count: int, dimensions: int) -> np.ndarray:
    """Quasi-random numbers (rows, count, dimensions) in (0, 1): one Sobol set, rotated by a keyed shift per row.

    Cranley & Patterson 1976. `count` should be a power of two.
    """
    base = qmc.Sobol(dimensions, scramble=True, seed=0).random(count)
    shifts = np.stack([key(seed, "draws", *k).random(dimensions) for k in keys])
    u = np.mod(base[None] + shifts[:, None], 1.0)
    return np.clip(u, 1e-12, 1 - 1e-12)


def covariance(hessian: np.ndarray) -> np.ndarray:
    """Inverse Hessians (rows, p, p), row by row; NaN where one is not positive definite."""
    out = np.full_like(hessian, np.nan)
    for i, h in enumerate(hessian):
        try:
            inverse = np.linalg.inv(np.linalg.cholesky(h))
            out[i] = inverse.T @ inverse
        except np.linalg.LinAlgError:
            pass
    return out


class Proposal:
    """Multivariate t distributions, one per row: centre (rows, p), scale matrix (rows, p, p)."""

    def __init__(self, centre: np.ndarray, scale: np.ndarray):
        self.centre, self.root = centre, np.linalg.cholesky(scale)
        p = centre.shape[1]
        logdet = np.log(np.diagonal(self.root, axis1=1, axis2=2)).sum(1)
        self.constant = gammaln((DEGREES + p) / 2) - gammaln(DEGREES / 2) - 0.5 * p * np.log(DEGREES * np.pi) - logdet

    def draw(self, u: np.ndarray) -> np.ndarray:
        """Draws (rows, count, p) from uniforms (rows, count, p + 1)."""
        z = ndtri(u[..., :-1]) * np.sqrt(DEGREES / (2.0 * gammaincinv(DEGREES / 2, u[..., -1])))[..., None]
        return self.centre[:, None] + np.einsum("nij,nkj->nki", self.root, z, optimize=False)

    def log_density(self, draws: np.ndarray) -> np.ndarray:
        """(rows, count)."""
        off = draws - self.centre[:, None]
        z = np.stack([solve_triangular(r, o.T, lower=True).T for r, o in zip(self.root, off)])
        p = draws.shape[-1]
        return self.constant[:, None] - 0.5 * (DEGREES + p) * np.log1p((z * z).sum(-1) / DEGREES)


def _adapted(draws, ratio, cov) -> tuple[np.ndarray, np.ndarray]:
    """Centre and scale of the next proposal from weighted draws, leaning on `cov` where few draws carry the weight."""
    w = np.exp(ratio - logsumexp(ratio, axis=1)[:, None])
    centre = np.einsum("nk,nkp->np", w, draws, optimize=False)
    off = draws - centre[:, None]
    moment = np.einsum("nk,nkp,nkq->npq", w, off, off, optimize=False)
    share = (1.0 / (w * w).sum(1))[:, None, None]
    p = draws.shape[-1]
    return centre, (share * moment + p * cov) / (share + p)


def sample(kernel: Kernel, natural, data: Data, mean, sd, theta, cov, keys, seed: int, count: int) -> Posterior:
    """Adaptive importance sampling of every row of `data` about its mode; the draws are lanes of one kernel call per row.

    Half of the `count` draws come from a t at the mode with the Laplace covariance, half from a t with the moments that the first
    half found; all are weighted against the mixture of both (deterministic mixture, Owen & Zhou 2000). A row whose draws all
    fail has NaN evidence, infinite pareto_k and equal weights.
    """
    n, p = theta.shape
    half = count // 2
    readings = (~np.isnan(data.readings)).sum(1)

    def log_posterior(draws):
        nll = np.empty(draws.shape[:2])
        for i in range(n):
            nll[i], _, _ = kernel.filter(natural(draws[i]), np.full(draws.shape[1], i), data, full=False)
        z = (draws - mean) / sd
        out = -nll - 0.5 * readings[:, None] * np.log(2 * np.pi)
        out += -0.5 * (z * z).sum(-1) - np.log(sd).sum() - 0.5 * p * np.log(2 * np.pi)
        return np.where(np.isfinite(out), out, -np.inf)

    u = uniforms(keys, seed, 2 * half, p + 1)
    with np.errstate(all="ignore"):
        first = Proposal(theta, cov)
        one = first.draw(u[:, :half])
        target_one = log_posterior(one)
        ratio_one = target_one - first.log_density(one)
        dead = ~np.isfinite(logsumexp(ratio_one, axis=1))
        ratio_one[dead] = 0.0
        second = Proposal(*_adapted(one, ratio_one, cov))
        two = second.draw(u[:, half:])
        draws = np.concatenate([one, two], axis=1)
        target = np.concatenate([target_one, log_posterior(two)], axis=1)
        mixture = np.logaddexp(first.log_density(draws), second.log_density(draws)) - np.log(2)
        ratio = target - mixture
        total = logsumexp(ratio, axis=1)
        weights = np.exp(ratio - total[:, None])
    dead |= ~np.isfinite(total)
    weights[dead] = 1.0 / weights.shape[1]
    pareto = np.array([np.inf if d else pareto_k(r) for d, r in zip(dead, ratio)])
    evidence = np.where(dead, np.nan, total - np.log(weights.shape[1]))
    return Posterior(draws, weights, evidence, pareto, 1.0 / (weights**2).sum(1))


def resample(posterior: Posterior, keys, seed: int, count: int) -> np.ndarray:
    """Equally weighted draws (rows, count, p), by systematic resampling with a keyed offset (Kitagawa 1996)."""
    out = np.empty((len(keys), count, posterior.draws.shape[-1]))
    for i, k in enumerate(keys):
        at = (np.arange(count) + key(seed, "resample", *k).random()) / count
        index = np.searchsorted(np.cumsum(posterior.weights[i]), at).clip(max=posterior.weights.shape[1] - 1)
        out[i] = posterior.draws[i, index]
    return out


def pareto_k(log_ratio: np.ndarray) -> float:
    """Shape of a generalised Pareto fitted to the largest importance ratios (Vehtari et al. 2024; fit of Zhang & Stephens 2009).

    Below 0.7 the estimates can be trusted.
    """
    count = log_ratio.size
    tail = int(min(0.2 * count, 3 * np.sqrt(count)))
    if tail < 5:
        return float("nan")
    x = np.sort(np.exp(log_ratio - log_ratio.max()))
    x = x[-tail:] - x[-tail - 1]
    if not x[-1] > 0:
        return float("-inf")
    m = 30 + int(np.sqrt(tail))
    b = 1 - np.sqrt(m / (np.arange(1, m + 1) - 0.5))
    b = b / (3 * x[int(tail / 4 + 0.5) - 1]) + 1 / x[-1]
    k = np.log1p(-b[:, None] * x).mean(1)
    length = tail * (np.log(-b / k) - k - 1)
    weight = 1 / np.exp(length - length[:, None]).sum(1)
    shape = np.log1p(-(b * weight).sum() * x).mean()
    return float((tail * shape + 5.0) / (tail + 10))  # weak prior towards 1/2 (Vehtari et al. 2024, appendix C)


def quantiles(values: np.ndarray, weights: np.ndarray, levels) -> np.ndarray:
    """Weighted quantiles along the last axis: values (..., draws), weights broadcastable -> (len(levels), ...).

    Plotting position i/(n+1) (Weibull; type 6 of Hyndman & Fan 1996) with the effective number of draws as n, so that an interval
    from few draws is not too narrow; linear in between, the extreme draws outside.
    """
    weights = np.broadcast_to(weights, values.shape)
    order = np.argsort(values, axis=-1, kind="stable")
    v = np.take_along_axis(values, order, -1)
    w = np.take_along_axis(weights, order, -1)
    n = 1.0 / (w * w).sum(-1, keepdims=True)
    at = 0.5 + (np.cumsum(w, -1) - 0.5 * w - 0.5) * n / (n + 1)
    flat = zip(at.reshape(-1, v.shape[-1]), v.reshape(-1, v.shape[-1]))
    return np.array([np.interp(levels, a, x) for a, x in flat]).T.reshape(len(levels), *values.shape[:-1])
