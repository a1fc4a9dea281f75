"""Metropolis moves of posterior draws: many short chains that begin at the draws of importance sampling.

With twenty parameters few importance draws carry the weight, and resampled draws are copies of each other. Moves that leave the posterior as it is
set them apart again (resample-move, Gilks & Berzuini 2001).
"""

from __future__ import annotations

import numpy as np

from twinlib.engine.kernel import Data, Kernel
from twinlib.engine.normal import Normal
from twinlib.engine.posterior import key

REACH = 2.38  # of a random walk, over the root of the number of parameters (Roberts, Gelman & Gilks 1997)


def move(kernel: Kernel, data: Data, prior: Normal, draws: np.ndarray, cov: np.ndarray, keys, seed: int, steps: int) -> tuple[np.ndarray, np.ndarray]:
    """`draws` (rows, draws, p) after `steps` random-walk steps shaped by `cov` (rows, p, p), and the share of accepted steps (rows,).

    Every draw is a chain of its own; all chains of all rows are lanes of one kernel call per step. Numbers are keyed by row.
    """
    n, count, p = draws.shape
    lanes = np.repeat(np.arange(n), count)

    def minus_log(theta):
        nll = kernel.likelihood(theta.reshape(-1, p), lanes, data).reshape(n, count)
        out = nll + prior.minus_log(theta)
        return np.where(np.isfinite(out), out, np.inf)

    # half of the steps have the theoretical reach, half a third of it, which gets on where the posterior is far from normal
    root = REACH / np.sqrt(p) * np.linalg.cholesky(cov)
    generators = [key(seed, "moves", *k) for k in keys]
    draws, accepted = draws.copy(), np.zeros(n)
    with np.errstate(all="ignore"):
        now = minus_log(draws)
        for step in range(steps):
            z = np.stack([g.standard_normal((count, p)) for g in generators])
            chance = np.stack([g.random(count) for g in generators])
            trial = draws + (1.0 if step % 2 else 1 / 3) * np.einsum("nij,nkj->nki", root, z, optimize=False)
            then = minus_log(trial)
            taken = np.log(chance) < now - then
            draws, now = np.where(taken[..., None], trial, draws), np.where(taken, then, now)
            accepted += taken.mean(1)
    return draws, accepted / max(steps, 1)
