"""Moves of posterior draws: many short chains that begin at the draws of importance sampling.

With twenty parameters few importance draws carry the weight, and resampled draws are copies of each other. Moves that leave the posterior as it is
set them apart again (resample-move, Gilks & Berzuini 2001).
"""

from __future__ import annotations

import numpy as np

from twinlib.engine.kernel import Data, Kernel
from twinlib.engine.normal import Normal
from twinlib.engine.posterior import LEAN, key, squared_distance

LEAPS = (0.9, 0.4, 0.9, 0.4, None)  # of steps in turn: share of the normal that is drawn anew; None: a random walk
REACH = 2.38  # of a random walk, over the root of the number of parameters (Roberts, Gelman & Gilks 1997)
WIDER = 1.2  # the normal's covariance, times that of the draws: it must reach the tails


def move(
    kernel: Kernel, data: Data, prior: Normal, draws: np.ndarray, theta: np.ndarray, cov: np.ndarray, keys, seed: int, steps: int, power: float = 1.0
) -> tuple[np.ndarray, np.ndarray]:
    """`draws` (rows, draws, p) after `steps` steps, and the share of accepted ones (rows,). theta (rows, p) and cov (rows, p, p): the mode and
    the Laplace covariance. power: of the likelihood, as in `posterior.sample`.

    The draws of a row are two halves that move in turn, each shaped by the other (Goodman & Weare 2010), which leaves the posterior exactly as it
    is: a normal has the other half's mean and covariance, leaning on theta and cov. Four steps of five would leave that normal as it is
    (Crank-Nicolson; Cotter et al. 2013) and are accepted by how far the posterior differs from it, so they reach across a posterior that is nearly
    normal, however many its parameters. The fifth is a random walk, which gets on where it is not. All chains of all rows are lanes of two kernel
    calls per step. Numbers are keyed by row.
    """
    n, count, p = draws.shape
    halves = np.arange(0, count, 2), np.arange(1, count, 2)
    generators = [key(seed, "moves", *k) for k in keys]

    def minus_log(theta):
        nll = kernel.likelihood(theta.reshape(-1, p), np.repeat(np.arange(n), theta.shape[1]), data).reshape(n, -1)
        out = power * nll + prior.minus_log(theta)
        return np.where(np.isfinite(out), out, np.inf)

    def half_step(leap, here, now, others):
        centre, root = _shape(others, theta, cov)
        z = np.stack([g.standard_normal((here.shape[1], p)) for g in generators])
        chance = np.stack([g.random(here.shape[1]) for g in generators])
        fresh, off = np.einsum("nij,nkj->nki", root, z, optimize=False), here - centre[:, None]
        aim = off + REACH / np.sqrt(p) * fresh if leap is None else np.sqrt(1 - leap**2) * off + leap * fresh
        trial = centre[:, None] + aim
        then = minus_log(trial)
        gain = now - then if leap is None else now - then + 0.5 * (_distance(root, aim) - _distance(root, off))
        taken = np.log(chance) < gain
        return np.where(taken[..., None], trial, here), np.where(taken, then, now), taken.sum(1)

    draws, accepted = draws.copy(), np.zeros(n)
    with np.errstate(all="ignore"):
        now = minus_log(draws)
        for step in range(steps):
            for me, other in (halves, halves[::-1]):
                draws[:, me], now[:, me], taken = half_step(LEAPS[step % len(LEAPS)], draws[:, me], now[:, me], draws[:, other])
                accepted += taken / count
    return draws, accepted / max(steps, 1)


def _shape(draws, theta, cov) -> tuple[np.ndarray, np.ndarray]:
    """Mean (rows, p) of draws (rows, k, p) and root (rows, p, p) of their covariance, leaning on theta and cov where they are few."""
    k, lean = draws.shape[1], LEAN * draws.shape[2]
    mean = draws.mean(1)
    off = draws - mean[:, None]
    moment = np.einsum("nkp,nkq->npq", off, off, optimize=False)
    return (k * mean + lean * theta) / (k + lean), np.linalg.cholesky(WIDER * (moment + lean * cov) / (k + lean))


def _distance(root, off) -> np.ndarray:
    out = np.empty(off.shape[:2])
    squared_distance(root, off, out)
    return out
