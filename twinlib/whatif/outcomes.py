"""Outcomes of a glucose trace by the CGM consensus, and the contrast of a counterfactual with what happened.

Battelino et al. 2019 (10.2337/dci19-0028) and 2023 (10.1016/S2213-8587(22)00319-9): times in ranges; Bergenstal et al. 2018
(10.2337/dc18-1581): GMI. An outcome is added in one place: the registry OUTCOMES.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True)
class Outcome:
    """One number from a trace. `function` maps readings [..., n] with NaN = missing, n >= 1, to values [...].

    better: +1 where a higher value is better, -1 where a lower one is.
    """

    name: str
    unit: str
    better: int
    function: Callable[[np.ndarray], np.ndarray]
    meaning: str


def _readings(glucose: np.ndarray) -> np.ndarray:
    return np.count_nonzero(~np.isnan(glucose), axis=-1)


def _percent(condition: Callable[[np.ndarray], np.ndarray]) -> Callable[[np.ndarray], np.ndarray]:
    # a comparison with NaN is false, so missing readings are in no range
    return lambda glucose: 100.0 * np.count_nonzero(condition(glucose), axis=-1) / _readings(glucose)


def _mean(glucose: np.ndarray) -> np.ndarray:
    return np.nansum(glucose, axis=-1) / _readings(glucose)


def _gmi(glucose: np.ndarray) -> np.ndarray:
    return 3.31 + 0.02392 * _mean(glucose)


def _cv(glucose: np.ndarray) -> np.ndarray:
    mean = _mean(glucose)
    squares = np.nansum((glucose - mean[..., None]) ** 2, axis=-1)
    return 100.0 * np.sqrt(squares / (_readings(glucose) - 1)) / mean


OUTCOMES: tuple[Outcome, ...] = (
    Outcome("tir", "%", +1, _percent(lambda g: (g >= 70) & (g <= 180)), "readings from 70 to 180 mg/dL"),
    Outcome("tbr_70", "%", -1, _percent(lambda g: g < 70), "readings below 70 mg/dL"),
    Outcome("tbr_54", "%", -1, _percent(lambda g: g < 54), "readings below 54 mg/dL"),
    Outcome("tar_180", "%", -1, _percent(lambda g: g > 180), "readings above 180 mg/dL"),
    Outcome("tar_250", "%", -1, _percent(lambda g: g > 250), "readings above 250 mg/dL"),
    Outcome("mean_glucose", "mg/dL", -1, _mean, "mean of the readings"),
    Outcome("gmi", "%", -1, _gmi, "glucose management indicator, 3.31 + 0.02392 mean"),
    Outcome("cv", "%", -1, _cv, "sample standard deviation over mean"),
)
BETTER = np.array([o.better for o in OUTCOMES])


def wear_fraction(glucose: np.ndarray) -> np.ndarray:
    """Share of the slots [..., n] that hold a reading; 0 where n is 0."""
    return _readings(glucose) / max(glucose.shape[-1], 1)


def cgm_outcomes(glucose: np.ndarray, minimum_wear: float = 0.7) -> np.ndarray:
    """All outcomes of traces in mg/dL: [..., n] with NaN = missing to [..., len(OUTCOMES)], in the registry's order.

    A trace with a smaller share of readings than `minimum_wear` (consensus: 70 %), or with none, gets NaN throughout;
    so does the CV of a single reading.
    """
    # contiguous along the readings, so that a trace is summed in the same order (to the bit) alone and among draws
    glucose = np.ascontiguousarray(glucose, dtype=np.float64)
    with np.errstate(divide="ignore", invalid="ignore"):  # 0 / 0 readings is NaN, as documented
        values = np.stack([o.function(glucose) for o in OUTCOMES], axis=-1)
    return np.where((wear_fraction(glucose) >= minimum_wear)[..., None], values, np.nan)


def weighted_quantile(values: np.ndarray, q: float, weights: np.ndarray | None = None) -> np.ndarray:
    """Quantile q over the first axis of [K, ...], weights [K] (equal where None, need not sum to 1).

    Linear between the midpoints of the weights' steps: Hyndman and Fan's type 5 (Hazen) where weights are equal, between
    equal values exactly that value. NaN where any value of positive weight is NaN.
    """
    weights = np.ones(len(values)) if weights is None else np.asarray(weights, dtype=np.float64)
    values, weights = values[weights > 0], weights[weights > 0]
    flat = values.reshape(len(values), -1)
    order = np.argsort(flat, axis=0, kind="stable")
    flat, steps = np.take_along_axis(flat, order, axis=0), weights[order]
    at = (np.cumsum(steps, axis=0) - steps / 2) / weights.sum()
    out = [np.interp(q, at[:, j], flat[:, j]) if not np.isnan(flat[-1, j]) else np.nan for j in range(flat.shape[1])]
    return np.array(out).reshape(values.shape[1:])


@dataclass(frozen=True)
class Contrast:
    """Counterfactual against factual, one entry per outcome; `effects` is [K, n_outcomes], NaN = no value."""

    counterfactual_mean: np.ndarray
    counterfactual_q05: np.ndarray
    counterfactual_q95: np.ndarray
    effect_mean: np.ndarray
    effect_q05: np.ndarray
    effect_q95: np.ndarray
    probability_of_benefit: np.ndarray
    effects: np.ndarray


def contrast(
    factual: np.ndarray, counterfactual: np.ndarray, weights: np.ndarray | None = None, better: np.ndarray = BETTER
) -> Contrast:
    """Effects of K posterior draws: counterfactual [K, n_outcomes] minus factual [n_outcomes], weighted by [K] or equally.

    probability_of_benefit is the weight of the draws in which the outcome strictly improves in the direction `better`.
    Everything is computed from the effects, so equal arms give exactly zero. An outcome that is NaN in the factual arm or
    in any draw of positive weight is NaN. Raises ValueError where shapes differ or no weight is positive.
    """
    factual, counterfactual = np.asarray(factual, dtype=np.float64), np.asarray(counterfactual, dtype=np.float64)
    weights = np.ones(len(counterfactual)) if weights is None else np.asarray(weights, dtype=np.float64)
    if counterfactual.shape[1:] != factual.shape or weights.shape != counterfactual.shape[:1] or factual.shape != better.shape:
        raise ValueError("factual, counterfactual, weights and better differ in shape")
    if not (np.all(weights >= 0) and 0 < weights.sum() < np.inf):
        raise ValueError("weights must be finite, not negative and not all zero")
    effects = counterfactual - factual
    q05, q95 = weighted_quantile(effects, 0.05, weights), weighted_quantile(effects, 0.95, weights)
    used, weight = effects[weights > 0], weights[weights > 0, None]
    mean = (weight * used).sum(axis=0) / weight.sum()
    benefit = np.where(np.isnan(mean), np.nan, (weight * (better * used > 0)).sum(axis=0) / weight.sum())
    return Contrast(factual + mean, factual + q05, factual + q95, mean, q05, q95, benefit, effects)
