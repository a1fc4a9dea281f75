"""Intervals of a cohort's mean by Rubin's Bayesian bootstrap (1981, 10.1214/aos/1176345338).

Replicate b takes every patient's posterior draw b mod K and averages them with random weights, Exponential(1) per patient and normalised.
So it covers both what is not known of each twin and that other patients could have been sampled; where posteriors are wide it errs on the wide
side, as their spread also shows between patients. The weights are a function of seed, patient and replicate alone: they are
shared by all scenarios, and no order or partitioning of the data changes them.
"""

from __future__ import annotations

import numpy as np

REPLICATES = 1024
_BLOCK = 2048  # patients whose weights are held at once


def exponential_weights(keys: np.ndarray, replicates: int) -> np.ndarray:
    """Exponential(1) numbers [n, replicates], row i a function of the 64-bit keys[i] (uint64) alone.

    Counter-based: SplitMix64 of Steele, Lea and Flood (2014, 10.1145/2660193.2660195), whose state `keys[i]` is advanced
    to every replicate at once.
    """
    with np.errstate(over="ignore"):
        z = keys[:, None] + np.arange(1, replicates + 1, dtype=np.uint64) * np.uint64(0x9E3779B97F4A7C15)
        z = (z ^ (z >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
        z = (z ^ (z >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
        z ^= z >> np.uint64(31)
    return -np.log(((z >> np.uint64(11)).astype(np.float64) + 0.5) * 2.0**-53)  # uniform on the open interval (0, 1)


def bootstrap_means(draws: np.ndarray, keys: np.ndarray, replicates: int = REPLICATES) -> np.ndarray:
    """Replicates [replicates, ...] of the mean over patients of effects [n patients, K draws, ...]; keys [n] (uint64), n >= 1."""
    of_replicate = np.arange(replicates) % draws.shape[1]
    total, weight = np.zeros((replicates, *draws.shape[2:])), np.zeros(replicates)
    for start in range(0, len(draws), _BLOCK):
        block = slice(start, start + _BLOCK)
        w = exponential_weights(keys[block], replicates)
        total += (w.reshape(*w.shape, *[1] * (draws.ndim - 2)) * draws[block][:, of_replicate]).sum(axis=0)
        weight += w.sum(axis=0)
    return total / weight.reshape(-1, *[1] * (draws.ndim - 2))


def interval(replicates: np.ndarray) -> tuple[float, float]:
    """5 % and 95 % quantiles of replicates (replicates,), at their Weibull positions."""
    low, high = np.quantile(replicates, [0.05, 0.95], method="weibull")
    return float(low), float(high)


def p_value(replicates: np.ndarray) -> float:
    """Two-sided tail probability of a mean of zero: twice the smaller share of replicates on one side of it, each with one more."""
    n = len(replicates) + 1
    return min(1.0, 2 * min((replicates <= 0).sum() + 1, (replicates >= 0).sum() + 1) / n)


def benjamini_hochberg(p: np.ndarray) -> np.ndarray:
    """q-values of p-values [n] (Benjamini & Hochberg 1995): the false discovery rate at which each would just be called an effect."""
    order = np.argsort(p, kind="stable")[::-1]
    scaled = p[order] * len(p) / np.arange(len(p), 0, -1)
    out = np.empty(len(p))
    out[order] = np.minimum(np.minimum.accumulate(scaled), 1.0)
    return out
