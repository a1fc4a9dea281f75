"""E-step: what one patient's data say under the current estimate, by mode and importance sampling, as sums that M-steps need.

Monte Carlo parametric expectation maximisation (Bauer & Guzy 2004). Random numbers are keyed by patient and are the same in every
iteration, so an iteration is a smooth function of the estimate and convergence can be seen.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from scipy.special import logsumexp

from twinlib.engine import mode, posterior
from twinlib.engine.kernel import Kernel
from twinlib.engine.normal import Normal
from twinlib.population.estimate import Estimate, Structure, population_level
from twinlib.population.patients import PatientKernel, Patients, occasion_columns, with_values

STEP = 1e-3  # of differences by population-level parameters, on the transformed scale
ITERATIONS = 60


@dataclass(frozen=True)
class Settings:
    """draws of every patient and component; seed of the random numbers; information: also work out the observed information."""

    draws: int
    seed: int
    information: bool = False

    @property
    def count(self) -> int:
        """Draws as the sampler rounds them up to whole stages."""
        stages = len(posterior.STAGES)
        return -(-self.draws // stages) * stages


@dataclass(frozen=True)
class Expected:
    """One row per patient. status and reason; readings; log_evidence and its SE; eta (n, p) posterior mean less the population's mean;
    spread (n, p) posterior SD; components (n, C) probabilities; sums (n, S): what M-steps add up, zero where there is no posterior."""

    status: np.ndarray
    reason: np.ndarray
    readings: np.ndarray
    log_evidence: np.ndarray
    log_evidence_se: np.ndarray
    eta: np.ndarray
    spread: np.ndarray
    components: np.ndarray
    sums: np.ndarray


class Sums:
    """Names and shapes of the summed statistics, packed into one vector.

    With d = C + K stacked regressors x (component indicator, then z): xx (d, d), xm (d, p) of x and E theta, second (p, p) of E theta
    theta', deviations (q, q) and episodes of the occasions, gradient and curvature of the log likelihood by the free
    population-level parameters, weight (C,), spread (p,) posterior variances, and counts; eta (p,) and eta2 (p,) of the posterior means.
    """

    def __init__(self, s: Structure, components: int, information: bool):
        p, d, q, m = len(s.fitted), components + len(s.effects), len(s.occasion), int(s.values.sum())
        f = s.count(components) if information else 0
        self.shapes = {
            "patients": (), "left_out": (), "readings": (), "episodes": (), "log_likelihood": (), "variance": (), "xx": (d, d), "xm": (d, p), "second": (p, p),
            "deviations": (q, q), "gradient": (m,), "curvature": (m, m), "weight": (components,), "spread": (p,), "eta": (p,), "eta2": (p,),
            "information": (f, f), "score": (f,),
        }
        self.size = int(sum(np.prod(x, dtype=int) for x in self.shapes.values()))

    def pack(self, n: int, **parts: np.ndarray) -> np.ndarray:
        """(n, size) of parts (n, *shape)."""
        return np.concatenate([np.reshape(parts[k], (n, -1)) for k in self.shapes], axis=1)

    def left_out(self) -> np.ndarray:
        """(size,) what a patient without a posterior adds."""
        out = np.zeros(self.size)
        out[:2] = 1.0  # patients, left_out
        return out

    def unpack(self, vector: np.ndarray) -> dict[str, np.ndarray]:
        out, at = {}, 0
        for name, shape in self.shapes.items():
            size = int(np.prod(shape, dtype=int))
            out[name] = vector[at : at + size].reshape(shape)
            at += size
        return out


def expect(kernel: Kernel, patients: Patients, ids, z: np.ndarray, estimate: Estimate, s: Structure, settings: Settings) -> Expected:
    """The E-step of some patients: ids (n,) key the random numbers, z (n, K) are the covariate columns.

    Nothing computed for a patient depends on the others. status: used; left_out (no_observation, or no posterior: the mode finder's reason).
    """
    n, p, c = len(patients), len(s.fitted), estimate.components
    layout = Sums(s, c, settings.information)
    status, reason = np.full(n, "left_out", object), np.full(n, "no_observation", object)
    scalars = {k: np.full(n, np.nan) for k in ("log_evidence", "log_evidence_se")}
    out = Expected(
        status, reason, patients.counts(), **scalars, eta=np.full((n, p), np.nan), spread=np.full((n, p), np.nan),
        components=np.full((n, c), np.nan), sums=np.zeros((n, layout.size)),
    )
    columns = occasion_columns(kernel.model)
    kernel = with_values(kernel, estimate.shared(kernel.model))
    kind = patients.episodes if len(columns) else np.zeros(n, int)
    seen = out.readings > 0
    for k in np.unique(kind[seen]):
        rows = np.flatnonzero(seen & (kind == k))
        _group(PatientKernel(kernel, columns), patients.take(rows), [ids[r] for r in rows], z[rows], estimate, s, settings, rows, out, int(k))
    left_out = out.status != "used"
    out.sums[left_out] = layout.left_out()
    return out


def _group(kernel: PatientKernel, patients: Patients, ids, z, estimate: Estimate, s: Structure, settings: Settings, rows, out, episodes):
    """Patients with equally many episodes (any number, where nothing differs between episodes); fills the rows of `out`."""
    n, p, q = len(patients), len(s.fitted), len(s.occasion)
    covariance = _block([estimate.omega, *[estimate.occasion] * (episodes if q else 0)])
    size, parts = len(covariance), []
    evidence, variance = np.full((n, estimate.components), -np.inf), np.zeros((n, estimate.components))
    for c in range(estimate.components):
        mean = np.zeros((n, size))
        mean[:, :p] = estimate.means(z, c)
        draws, weights = np.repeat(mean[:, None], settings.count, axis=1), np.full((n, settings.count), 1.0 / settings.count)
        g, sampled = _sampled(kernel, patients, ids, Normal(mean, covariance), settings, rows, out)
        if g.size:
            draws[g], weights[g] = sampled.draws, sampled.weights
            evidence[g, c], variance[g, c] = sampled.log_evidence, sampled.log_evidence_se**2
        parts.append((draws, weights, mean[:, :p]))
    by_values = lambda theta: _by_values(kernel, patients, theta, estimate, s)  # noqa: E731
    collect(parts, evidence, variance, patients.counts(), patients.episodes, by_values, z, estimate, s, settings.information, rows, out)


def collect(parts, evidence, variance, readings, episodes, by_values, z, estimate: Estimate, s: Structure, information: bool, rows, out: Expected) -> None:
    """Fill the rows of `out` from draws of their posteriors.

    parts: per component draws (n, k, p and deviations), weights (n, k) and the population's mean (n, p); evidence, variance (n, C) of its
    logarithm; readings, episodes (n,); by_values: draws -> slopes and bends by population-level parameters.
    """
    n, p, q, layout = len(z), len(s.fitted), len(s.occasion), Sums(s, estimate.components, information)
    with np.errstate(all="ignore"):
        joint = evidence + np.log(estimate.weights)
        total = logsumexp(joint, axis=1)
        share = np.where(np.isfinite(total)[:, None], np.exp(joint - total[:, None]), 0.0)
    used = np.isfinite(total)
    out.status[rows[used]], out.reason[rows[used]] = "used", None
    out.log_evidence[rows], out.log_evidence_se[rows] = np.where(used, total, np.nan), np.sqrt((share**2 * variance).sum(1))
    out.components[rows] = np.where(used[:, None], share, np.nan)

    # all components' draws side by side, weighted by component
    draws = np.concatenate([d for d, _, _ in parts], axis=1)
    weights = np.concatenate([share[:, c, None] * w for c, (_, w, _) in enumerate(parts)], axis=1)
    of = np.repeat(np.arange(estimate.components), parts[0][0].shape[1])
    theta = draws[..., :p]
    off = theta - np.stack([m for _, _, m in parts], axis=1)[:, of]
    kappa = draws[..., p:].reshape(n, draws.shape[1], -1, q) if q else np.zeros((n, draws.shape[1], 0, 0))
    sums = lambda text, *arrays: np.einsum(text, *arrays, optimize=False)  # noqa: E731
    mean = sums("nk,nkp->np", weights, theta)
    spread = sums("nk,nkp->np", weights, (theta - mean[:, None]) ** 2)
    eta = sums("nk,nkp->np", weights, off)
    x = np.concatenate([np.eye(estimate.components)[of][None] * np.ones((n, 1, 1)), np.repeat(z[:, None], len(of), axis=1)], axis=2)
    slopes, bends = by_values(draws)
    score = observed = np.zeros((n, 0))
    if information:
        score, observed = _louis(weights, x, off, kappa, slopes, bends, of, estimate, s)
    out.eta[rows], out.spread[rows] = np.where(used[:, None], eta, np.nan), np.where(used[:, None], np.sqrt(spread), np.nan)
    ones = np.ones(n)
    out.sums[rows] = layout.pack(
        n, patients=ones, left_out=0 * ones, readings=readings.astype(float), episodes=episodes.astype(float),
        log_likelihood=np.where(used, total, 0.0), variance=(share**2 * variance).sum(1),
        xx=sums("nk,nkd,nke->nde", weights, x, x), xm=sums("nk,nkd,nkp->ndp", weights, x, theta),
        second=sums("nk,nkp,nkr->npr", weights, theta, theta), deviations=sums("nk,nkja,nkjb->nab", weights, kappa, kappa),
        gradient=sums("nk,nkm->nm", weights, slopes), curvature=sums("nk,nkml->nml", weights, bends), weight=share, spread=spread, eta=eta, eta2=eta**2,
        information=observed, score=score,
    )


def _sampled(kernel: PatientKernel, patients: Patients, ids, prior: Normal, settings: Settings, rows, out):
    """Posterior draws of the patients that have a posterior: their positions and the draws; the others' reasons are noted."""
    found = mode.find(kernel, patients, prior, prior.mean, ITERATIONS)
    scale = posterior.covariance(found.hessian)
    good = np.isfinite(scale).all((1, 2)) & (found.status != "failed")
    out.reason[rows[~good]] = [r or "singular_hessian" for r in found.reason[~good]]
    g = np.flatnonzero(good)
    if not g.size:
        return g, None
    keys = [(ids[i],) for i in g]
    sampled = posterior.sample(kernel, patients.take(g), prior.take(g), found.theta[g], scale[g], keys, settings.seed, settings.count)
    finite = np.isfinite(sampled.log_evidence)
    out.reason[rows[g[~finite]]] = "no_finite_draw"
    kept = {name: getattr(sampled, name)[finite] for name in posterior.Posterior.__dataclass_fields__}
    return g[finite], posterior.Posterior(**kept)


def _by_values(kernel: PatientKernel, patients: Patients, draws: np.ndarray, estimate: Estimate, s: Structure):
    """First (n, k, m) and second (n, k, m, m) differences of every draw's log likelihood by the free population-level parameters."""
    free = np.flatnonzero(s.values)
    n, k = draws.shape[:2]
    slopes, bends = np.zeros((n, k, len(free))), np.zeros((n, k, len(free), len(free)))
    if not free.size:
        return slopes, bends
    who, flat = np.repeat(np.arange(n), k), draws.reshape(n * k, -1)
    model = kernel.kernel.model

    def at(*moves: tuple[int, float]) -> np.ndarray:
        values = estimate.values.copy()
        for i, by in moves:
            values[free[i]] += by
        moved = with_values(kernel.kernel, {q.name: float(q.natural(v)) for q, v in zip(population_level(model), values)})
        out = -PatientKernel(moved, kernel.columns).likelihood(flat, who, patients).reshape(n, k)
        return np.where(np.isfinite(out), out, 0.0)

    here = at()
    up, down = [at((i, STEP)) for i in range(len(free))], [at((i, -STEP)) for i in range(len(free))]
    for i in range(len(free)):
        slopes[..., i], bends[..., i, i] = (up[i] - down[i]) / (2 * STEP), (up[i] - 2 * here + down[i]) / STEP**2
        for j in range(i):
            bends[..., i, j] = bends[..., j, i] = (at((i, STEP), (j, STEP)) - up[i] - up[j] + here) / STEP**2
    return slopes, bends


def _louis(weights, x, off, kappa, slopes, bends, of, estimate: Estimate, s: Structure):
    """Score (n, f) and observed information (n, f f) of every patient by the free coefficients, entries of omega and occasion, values and log
    odds of the components: complete-data information less what is missing (Louis 1982)."""
    sums = lambda text, *arrays: np.einsum(text, *arrays, optimize=False)  # noqa: E731
    free = np.argwhere(s.regression(estimate.components))
    n, f = len(x), s.count(estimate.components)
    expected = np.zeros((n, f, f))
    a = np.linalg.inv(estimate.omega)
    v = sums("pr,nkr->nkp", a, off)
    scores, b = [x[..., free[:, 0]] * v[..., free[:, 1]]], len(free)
    expected[:, :b, :b] = sums("nk,nkd,nke->nde", weights, x[..., free[:, 0]], x[..., free[:, 0]]) * a[np.ix_(free[:, 1], free[:, 1])]
    at = b
    for precision, pulled, mask in ((a, v[:, :, None], s.omega), (np.linalg.inv(estimate.occasion), None, s.occasion)):
        bases = _bases(mask)
        if not len(bases):
            continue
        if pulled is None:
            pulled = sums("ab,nkjb->nkja", precision, kappa)
        count = pulled.shape[2]
        scores.append(0.5 * (sums("nkja,fab,nkjb->nkf", pulled, bases, pulled) - count * sums("ab,fab->f", precision, bases)))
        square = sums("nk,nkja,nkjb->nab", weights, pulled, pulled)
        inner = sums("fab,bc,gcd->fgad", bases, precision, bases)
        here = slice(at, at + len(bases))
        trace = sums("ab,fgba->fg", precision, inner)
        total = weights.sum(1)[:, None, None]
        block = sums("fgad,nad->nfg", inner, square)
        expected[:, here, here] = 0.5 * (block + block.swapaxes(1, 2)) - 0.5 * count * total * trace
        if mask is s.omega:
            cross = sums("pa,fab,nkb->nkfp", precision, bases, pulled[:, :, 0])
            part = sums("nk,nkd,nkfd->ndf", weights, x[..., free[:, 0]], cross[..., free[:, 1]])
            expected[:, :b, here], expected[:, here, :b] = part, part.swapaxes(1, 2)
        at += len(bases)
    m = slopes.shape[2]
    scores.append(slopes)
    expected[:, at : at + m, at : at + m] = -sums("nk,nkml->nml", weights, bends)
    at += m
    if estimate.components > 1:
        odds = estimate.weights[1:]
        scores.append(np.repeat((np.eye(estimate.components)[of][:, 1:] - odds)[None], n, axis=0))
        expected[:, at:, at:] = np.diag(odds) - np.outer(odds, odds)
    score = np.concatenate(scores, axis=2)
    mean = sums("nk,nkf->nf", weights, score)
    missing = sums("nk,nkf,nkg->nfg", weights, score, score) - mean[:, :, None] * mean[:, None, :]
    return mean, (expected - missing).reshape(n, -1)


def _bases(mask: np.ndarray) -> np.ndarray:
    """(f, p, p) symmetric matrices with ones at one free pair each."""
    pairs = np.argwhere(np.tril(mask)) if len(mask) else np.zeros((0, 2), int)
    out = np.zeros((len(pairs), *mask.shape))
    for k, (i, j) in enumerate(pairs):
        out[k, i, j] = out[k, j, i] = 1.0
    return out


def _block(parts: list[np.ndarray]) -> np.ndarray:
    size = sum(len(b) for b in parts)
    out, at = np.zeros((size, size)), 0
    for b in parts:
        out[at : at + len(b), at : at + len(b)] = b
        at += len(b)
    return out
