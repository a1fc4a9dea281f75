"""Outcomes: numbers from one trace, and the contrast of a scenario's with what happened.

An outcome is a small registered function of a `Trace`. Those of a glucose sensor are in `cgm`, those of drug levels and biomarkers in
`levels`; a user's own is named `module:name` in the configuration.
"""

from __future__ import annotations

import hashlib
import importlib
import inspect
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import TYPE_CHECKING

import numpy as np

from twinlib.errors import ConfigError

if TYPE_CHECKING:
    from twinlib.config import OutcomeConfig
    from twinlib.engine.contract import Model


@dataclass(frozen=True)
class Trace:
    """What outcomes are worked out from: one arm in all its draws.

    minutes (n,): increasing; values (..., n): the model's first signal in its unit, NaN = missing; given: amounts by agent and day, (..., days),
    in canonical units.
    """

    minutes: np.ndarray
    values: np.ndarray
    given: Mapping[str, np.ndarray] = field(default_factory=dict)
    days: float = np.nan  # length of the time that `given` covers

    @cached_property
    def rows(self) -> np.ndarray:
        """(traces, n) the values, C-contiguous."""
        shape = self.values.shape
        return np.ascontiguousarray(self.values, dtype=np.float64).reshape(int(np.prod(shape[:-1])), shape[-1])

    @cached_property
    def known(self) -> np.ndarray:
        """(n,) instants at which every draw has a value."""
        return ~np.isnan(self.rows).any(axis=0)

    @cached_property
    def memo(self) -> dict:
        """Room for what several outcomes share."""
        return {}

    def per_day(self, prefix: str) -> np.ndarray:
        """Mean daily amount of the agents whose name begins with `prefix`; NaN where nothing is known of what was given."""
        parts = [v.sum(axis=-1) for a, v in self.given.items() if a.startswith(prefix)]
        total = sum(parts) / self.days if parts else np.nan
        return np.broadcast_to(np.asarray(total, dtype=float), self.values.shape[:-1])


@dataclass(frozen=True)
class Outcome:
    """One number from a trace: `function` gives values (...), NaN where there is none.

    better: +1 where a higher value is better, -1 where a lower one is, 0 where neither; target: a patient is on target beyond it in the better
    direction (for numbers needed to treat).
    """

    name: str
    unit: str
    better: int
    function: Callable[[Trace], np.ndarray]
    meaning: str
    target: float | None = None

    @property
    def version(self) -> str:
        """Text that changes when the outcome's meaning does; for a user's own function that includes its source."""
        try:
            source = inspect.getsource(self.function)
        except (OSError, TypeError):
            source = ""
        return f"{self.name}|{self.unit}|{self.better}|{self.target}|{self.meaning}|{hashlib.sha256(source.encode()).hexdigest()[:12]}"


def evaluate(outcomes: Sequence[Outcome], trace: Trace) -> np.ndarray:
    """All outcomes of a trace: (..., outcomes)."""
    with np.errstate(divide="ignore", invalid="ignore"):  # 0 / 0 readings is NaN, as documented
        return np.stack([np.asarray(o.function(trace), dtype=np.float64) for o in outcomes], axis=-1)


def find(wanted: Sequence[str | OutcomeConfig], model: Model) -> tuple[Outcome, ...]:
    """The outcomes of a configuration: `cgm`, `levels`, `module:name`, or a measure with its settings; none = those of the model's signal.

    Raises ConfigError.
    """
    from twinlib.whatif import cgm, levels

    signal = model.signals[0]
    if not wanted:
        wanted = ("cgm",) if (signal.name, signal.unit) == ("glucose", "mg/dL") else ("levels",)
    found: list[Outcome] = []
    for w in wanted:
        if w == "cgm":
            found += cgm.OUTCOMES
        elif w == "levels":
            found += levels.standard(signal.unit)
        elif isinstance(w, str):
            found.append(_own(w))
        else:
            found.append(levels.measured(w, signal.unit))
    names = [o.name for o in found]
    twice = sorted({n for n in names if names.count(n) > 1})
    if twice:
        raise ConfigError(f"simulate.outcomes: {', '.join(twice)}: stands more than once")
    return tuple(found)


def _own(name: str) -> Outcome:
    module, _, attribute = name.partition(":")
    if not attribute:
        raise ConfigError(f"simulate.outcomes: {name!r}: expected cgm, levels, module:name of your own, or a measure")
    try:
        found = getattr(importlib.import_module(module), attribute)
    except (ImportError, AttributeError) as e:
        raise ConfigError(f"simulate.outcomes: {name!r} cannot be imported: {e}") from None
    if not isinstance(found, Outcome):
        raise ConfigError(f"simulate.outcomes: {name!r} is no Outcome")
    return found


LONGEST_SPACING = 3  # slots; the slowest sensors give a reading every 15 minutes


def wear_fraction(glucose: np.ndarray) -> float:
    """Share of a trace [n] that the sensor was worn: readings times their usual spacing (lower median, 1 to 3 slots), at most 1."""
    at = np.flatnonzero(~np.isnan(glucose))
    spacing = min(int(np.sort(np.diff(at))[(at.size - 2) // 2]), LONGEST_SPACING) if at.size > 1 else 1
    return min(1.0, at.size * spacing / max(glucose.size, 1))


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
    probability_of_harm: np.ndarray
    effects: np.ndarray


def contrast(factual: np.ndarray, counterfactual: np.ndarray, better: np.ndarray) -> Contrast:
    """Effects of K equally weighted posterior draws: counterfactual [K, n_outcomes] minus factual [n_outcomes] or [K, n_outcomes].

    probability_of_benefit (of harm) is the share of draws in which the outcome strictly improves (worsens) in the direction `better`, NaN
    where there is none; quantiles take the i-th of K draws as i/(K+1) (Weibull), so that few draws do not make an interval too
    narrow. Equal arms give exactly zero. An outcome that is NaN in the factual arm or in any draw is NaN. Raises ValueError
    where shapes differ.
    """
    factual, counterfactual = np.asarray(factual, dtype=np.float64), np.asarray(counterfactual, dtype=np.float64)
    if counterfactual.shape[1:] != factual.shape[-1:] or factual.shape[-1:] != better.shape:
        raise ValueError("factual, counterfactual and better differ in shape")
    effects = counterfactual - factual
    q05, q95 = np.quantile(effects, [0.05, 0.95], axis=0, method="weibull")
    mean = effects.mean(axis=0)
    unknown = np.isnan(mean) | (better == 0)
    benefit, harm = (np.where(unknown, np.nan, (sign * better * effects > 0).mean(axis=0)) for sign in (1, -1))
    low, high = np.quantile(counterfactual, [0.05, 0.95], axis=0, method="weibull")
    level = [counterfactual.mean(axis=0), low, high]
    if factual.ndim == 1:  # rounding must not make a difference where there is none
        still = (effects == 0).all(axis=0)
        level = [np.where(still, factual, x) for x in level]
    return Contrast(*level, mean, q05, q95, benefit, harm, effects)
