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


LONGEST_SPACING = 3  # slots; the slowest sensors give a reading every 15 minutes


def wear_fraction(glucose: np.ndarray) -> float:
    """Share of a trace [n] that the sensor was worn: readings times their usual spacing (lower median, 1 to 3 slots), at most 1."""
    at = np.flatnonzero(~np.isnan(glucose))
    spacing = min(int(np.sort(np.diff(at))[(at.size - 2) // 2]), LONGEST_SPACING) if at.size > 1 else 1
    return min(1.0, at.size * spacing / max(glucose.size, 1))


def cgm_outcomes(glucose: np.ndarray) -> np.ndarray:
    """All outcomes of traces in mg/dL: [..., n] with NaN = missing to [..., len(OUTCOMES)], in the registry's order.

    A trace without readings gets NaN throughout; so does the CV of a single reading. Whether a trace is worn enough for the consensus
    (70 % of 14 days) is the caller's question: `wear_fraction`.
    """
    glucose = np.asarray(glucose, dtype=np.float64, order="C")  # sums follow the memory layout
    with np.errstate(divide="ignore", invalid="ignore"):  # 0 / 0 readings is NaN, as documented
        return np.stack([o.function(glucose) for o in OUTCOMES], axis=-1)


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


def contrast(factual: np.ndarray, counterfactual: np.ndarray, better: np.ndarray = BETTER) -> Contrast:
    """Effects of K equally weighted posterior draws: counterfactual [K, n_outcomes] minus factual [n_outcomes].

    probability_of_benefit is the share of draws in which the outcome strictly improves in the direction `better`; quantiles take the
    i-th of K draws as i/(K+1) (Weibull), so that few draws do not make an interval too narrow. Equal arms give exactly zero. An outcome that is NaN in the factual arm or in any draw is NaN. Raises ValueError
    where shapes differ.
    """
    factual, counterfactual = np.asarray(factual, dtype=np.float64), np.asarray(counterfactual, dtype=np.float64)
    if counterfactual.shape[1:] != factual.shape or factual.shape != better.shape:
        raise ValueError("factual, counterfactual and better differ in shape")
    effects = counterfactual - factual
    q05, q95 = np.quantile(effects, [0.05, 0.95], axis=0, method="weibull")
    mean = effects.mean(axis=0)
    benefit = np.where(np.isnan(mean), np.nan, (better * effects > 0).mean(axis=0))
    still = (effects == 0).all(axis=0)  # rounding must not make a difference where there is none
    low, high = np.quantile(counterfactual, [0.05, 0.95], axis=0, method="weibull")
    level = [np.where(still, factual, x) for x in (counterfactual.mean(axis=0), low, high)]
    return Contrast(*level, mean, q05, q95, benefit, effects)
