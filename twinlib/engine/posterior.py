"""From the mode to the posterior: Laplace covariance, importance-sampled draws, evidence and their diagnostics."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass

import numpy as np
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
    base = qmc.Sobol(dimensions, scramble=False).random(count)
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


def proposal(theta, cov, keys, seed: int, count: int):
    """Draws (rows, count, p) from a multivariate t at the mode, and their log density (rows, count)."""
    n, p = theta.shape
    u = uniforms(keys, seed, count, p + 1)
    z = ndtri(u[..., :p])
    chi2 = 2.0 * gammaincinv(DEGREES / 2, u[..., p])
    z *= np.sqrt(DEGREES / chi2)[..., None]
    root = np.linalg.cholesky(cov)
    logdet = np.log(np.diagonal(root, axis1=1, axis2=2)).sum(1)
    draws = theta[:, None] + np.einsum("nij,nkj->nki", root, z, optimize=False)
    const = gammaln((DEGREES + p) / 2) - gammaln(DEGREES / 2) - 0.5 * p * np.log(DEGREES * np.pi)
    return draws, const - logdet[:, None] - 0.5 * (DEGREES + p) * np.log1p((z * z).sum(-1) / DEGREES)


def sample(kernel: Kernel, natural, data: Data, mean, sd, theta, cov, keys, seed: int, count: int) -> Posterior:
    """Importance sampling of every row of `data` about its mode; the draws are lanes of one kernel call per row.

    A row whose draws all fail has NaN evidence, pareto_k infinite and equal weights.
    """
    n, p = theta.shape
    draws, logq = proposal(theta, cov, keys, seed, count)
    nll = np.empty((n, count))
    with np.errstate(all="ignore"):
        for i in range(n):
            nll[i], _, _ = kernel.filter(natural(draws[i]), np.full(count, i), data, full=False)
        readings = (~np.isnan(data.readings)).sum(1)
        z = (draws - mean) / sd
        logp = -nll - 0.5 * readings[:, None] * np.log(2 * np.pi)
        logp += -0.5 * (z * z).sum(-1) - np.log(sd).sum() - 0.5 * p * np.log(2 * np.pi)
        ratio = np.where(np.isfinite(logp), logp - logq, -np.inf)
        total = logsumexp(ratio, axis=1)
        weights = np.exp(ratio - total[:, None])
    dead = ~np.isfinite(total)
    weights[dead] = 1.0 / count
    pareto = np.array([np.inf if d else pareto_k(r) for d, r in zip(dead, ratio)])
    return Posterior(draws, weights, np.where(dead, np.nan, total - np.log(count)), pareto, 1.0 / (weights**2).sum(1))


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

    Each draw stands for the middle of its share of the weight, linear in between.
    """
    order = np.argsort(values, axis=-1, kind="stable")
    v = np.take_along_axis(values, order, -1)
    w = np.take_along_axis(np.broadcast_to(weights, values.shape), order, -1)
    at = np.cumsum(w, -1) - 0.5 * w
    flat_v, flat_a = v.reshape(-1, v.shape[-1]), at.reshape(-1, v.shape[-1])
    out = np.stack([np.interp(levels, a, x) for a, x in zip(flat_a, flat_v)], axis=1)
    return out.reshape(len(levels), *values.shape[:-1])
