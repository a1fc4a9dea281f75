"""From the mode to the posterior: Laplace covariance, importance-sampled draws, evidence and their diagnostics."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass

import numpy as np
from numba import njit
from scipy.special import gammaincinv, gammaln, logsumexp, ndtri
from scipy.stats import qmc

from twinlib.engine.kernel import Data, Kernel
from twinlib.engine.normal import Normal

DEGREES = 7.0  # of freedom of the t proposal


STAGES = (0.3, 1.0, 1.0, 1.0)  # what a draw counts by stage of adaptation; every stage has as many draws
WIDER = 1.3  # of the Laplace covariance, for the first stage: it is too narrow more often than too wide
LEAN = 2.0  # pseudo-draws per parameter with which the Laplace covariance enters the later stages


@dataclass(frozen=True)
class Posterior:
    """Draws (rows, draws, p) on the transformed scale with normalised weights (rows, draws), log evidence with its standard error and
    diagnostics (rows,)."""

    draws: np.ndarray
    weights: np.ndarray
    log_evidence: np.ndarray
    log_evidence_se: np.ndarray
    pareto_k: np.ndarray
    effective_draws: np.ndarray


def key(seed: int, *names: str) -> np.random.Generator:
    """A counter-based generator (Philox) keyed by seed and names, independent of partitions and order."""
    digest = hashlib.blake2b("\x1f".join([str(seed), *names]).encode(), digest_size=16).digest()
    return np.random.Generator(np.random.Philox(key=int.from_bytes(digest, "little")))


def uniforms(keys: list[tuple[str, ...]], seed: int, count: int, dimensions: int) -> np.ndarray:
    """Quasi-random numbers (rows, count, dimensions) in (0, 1): one Sobol set, rotated by a keyed shift per row.

    Cranley & Patterson 1976.
    """
    base = qmc.Sobol(dimensions, scramble=True, seed=0).random_base2(int(np.ceil(np.log2(max(count, 2)))))[:count]
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


def powered(hessian: np.ndarray, prior: Normal, power: float) -> np.ndarray:
    """Hessians (rows, p, p) of minus log posteriors, with the likelihood to `power` instead of 1."""
    return hessian if power == 1 else power * (hessian - prior.precision) + prior.precision


@njit(cache=True, error_model="numpy")
def squared_distance(root, off, out):
    """|root^-1 off|^2 for lower triangular roots (rows, p, p) and offsets (rows, count, p)."""
    n, count, p = off.shape
    z = np.empty(p)
    for r in range(n):
        for k in range(count):
            total = 0.0
            for i in range(p):
                a = off[r, k, i]
                for j in range(i):
                    a -= root[r, i, j] * z[j]
                z[i] = a / root[r, i, i]
                total += z[i] * z[i]
            out[r, k] = total


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
        distance = np.empty(draws.shape[:2])
        squared_distance(self.root, draws - self.centre[:, None], distance)
        return self.constant[:, None] - 0.5 * (DEGREES + draws.shape[-1]) * np.log1p(distance / DEGREES)


def _adapted(draws, weights, cov) -> tuple[np.ndarray, np.ndarray]:
    """Centre and scale of the next proposal from weighted draws, leaning on `cov` where few draws carry the weight."""
    centre = np.einsum("nk,nkp->np", weights, draws, optimize=False)
    off = draws - centre[:, None]
    moment = np.einsum("nk,nkp,nkq->npq", weights, off, off, optimize=False)
    effective = (1.0 / (weights * weights).sum(1))[:, None, None]
    lean = LEAN * draws.shape[-1]
    return centre, (effective * moment + lean * cov) / (effective + lean)


def sample(kernel: Kernel, data: Data, prior: Normal, theta, cov, keys, seed: int, count: int, power: float = 1.0) -> Posterior:
    """Adaptive importance sampling of every row of `data` about its mode; all draws of all rows are lanes of the kernel's calls.

    The `count` draws come in equal stages (rounded up): the first from a t at the mode with the Laplace covariance, each later one from a t
    with the moments found so far. A draw is weighted against the proposal that it came from (population Monte Carlo, Cappe et al. 2004),
    which earlier draws alone have shaped, so that the estimates are unbiased. Weights against the mixture of all proposals vary less,
    but the mixture has been fitted to the very draws, and the posterior comes out too narrow (docs/engine.md). A row whose draws all fail has
    NaN evidence, infinite pareto_k and equal weights.

    power: of the likelihood; below 1 readings count for less than the model says, which is for models that are not quite right (Bissiri, Holmes &
    Walker 2016; docs/accuracy.md). `cov` is then that of `powered` Hessians, and there is no evidence: draws so wide do not give the likelihood's.
    """
    n, p = theta.shape
    constant = prior.log_constant - 0.5 * data.counts()[:, None] * np.log(2 * np.pi)

    def log_posterior(draws):
        k = draws.shape[1]
        nll = kernel.likelihood(draws.reshape(-1, p), np.repeat(np.arange(n), k), data).reshape(n, k)
        out = constant - power * nll - prior.minus_log(draws)
        return np.where(np.isfinite(out), out, -np.inf)

    size = -(-count // len(STAGES))
    u = uniforms(keys, seed, size * len(STAGES), p + 1)
    draws, ratio, counts = np.empty((n, 0, p)), np.empty((n, 0)), np.repeat(STAGES, size)
    centre, scale = theta, WIDER * cov
    with np.errstate(all="ignore"):
        for stage, part in enumerate(np.split(u, len(STAGES), axis=1)):
            proposal = Proposal(centre, scale)
            fresh = proposal.draw(part)
            draws = np.concatenate([draws, fresh], 1)
            ratio = np.concatenate([ratio, np.log(STAGES[stage]) + log_posterior(fresh) - proposal.log_density(fresh)], 1)
            total = logsumexp(ratio, axis=1)
            dead = ~np.isfinite(total)
            weights = np.where(dead[:, None], 1.0 / ratio.shape[1], np.exp(ratio - total[:, None]))
            centre, scale = _adapted(draws, weights, cov)
        pareto = np.array([np.inf if d else pareto_k(r) for d, r in zip(dead, ratio)])
    effective, most = 1.0 / (weights**2).sum(1), counts.sum() ** 2 / (counts**2).sum()
    error = np.sqrt(np.maximum(1.0 / effective - 1.0 / most, 0.0))  # delta method on the mean of the ratios
    none = lambda x: np.where(dead | (power != 1), np.nan, x)  # noqa: E731
    return Posterior(draws, weights, none(total - np.log(counts.sum())), none(error), pareto, effective)


def spectrum(posterior: Posterior, prior: Normal) -> np.ndarray:
    """(rows, p) variances of the posterior along its principal directions in units of the prior, ascending: near 0 where the data
    decide, near 1 where the prior does. The number well below 1 is what the data identify."""
    root = np.linalg.inv(np.linalg.cholesky(prior.covariance))
    centre = np.einsum("nk,nkp->np", posterior.weights, posterior.draws, optimize=False)
    off = np.einsum("ij,nkj->nki", root, posterior.draws - centre[:, None], optimize=False)
    moment = np.einsum("nk,nki,nkj->nij", posterior.weights, off, off, optimize=False)
    return np.stack([np.linalg.eigvalsh(m) for m in moment])


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
