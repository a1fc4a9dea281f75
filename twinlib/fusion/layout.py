"""What a model's timelines hold: which signals stand on a grid, units, covariates, and when a row may be fitted."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field

from twinlib.config import EpisodeConfig
from twinlib.errors import ConfigError
from twinlib.fusion.units import Converter
from twinlib.fusion.vocabulary import Affine, Quantity, Vocabulary

GRID = 5  # minutes, where a model has no signal with a grid of its own
PATIENT_COVARIATES = ("age_years", "female")  # from `patients`; all others are signals, as they were known at the episode's start
SENSOR_READINGS, SENSOR_HOURS = 144, 24.0  # what a sensor's episode needs unless the configuration says otherwise


@dataclass(frozen=True)
class Layout:
    """How records are packed for one model.

    signals: in the model's order; grids: those on the grid of `step` minutes, the others are lists; agents; covariates: stand-in by name, None
    without one; conversions: from canonical units to the model's, where they differ; days: length of an episode, None = the whole record;
    minimum_readings, minimum_wear_hours, require: what a row needs to be fitted.
    """

    model: str
    signals: tuple[str, ...]
    grids: tuple[str, ...]
    step: int
    agents: tuple[str, ...]
    covariates: dict[str, float | None]
    days: int | None
    minimum_readings: int
    minimum_wear_hours: float
    require: tuple[str, ...]
    conversions: dict[str, Affine] = field(default_factory=dict)

    @property
    def lists(self) -> tuple[str, ...]:
        return tuple(s for s in self.signals if s not in self.grids)


def layout(model, vocabulary: Vocabulary, episodes: EpisodeConfig, covariates: Iterable[str] = ()) -> Layout:
    """The layout of a twin model (see `engine.contract.Model`), with further covariates.

    A signal that the vocabulary gives a grid is a sensor's, others are lists. What the configuration leaves open follows: with a grid 144
    readings, 24 hours of wear, and a bolus and a meal where the model has them; else one reading. Raises ConfigError that names the signal,
    agent, covariate or setting at fault.
    """
    where = f"model {model.name}"
    known = {s.name: vocabulary.signal(s.name, f"{where}: signal") for s in model.signals}
    grids = tuple(n for n, s in known.items() if s.grid_minutes)
    steps = {known[n].grid_minutes for n in grids}
    if len(steps) > 1:
        raise ConfigError(f"{where}: signals {', '.join(grids)} have grids of {', '.join(map(str, sorted(steps)))} minutes; one model has one grid")
    conversions = {s.name: _to(known[s.name], s.unit, f"{where}: signal {s.name}", vocabulary) for s in model.signals}
    for i in model.inputs:
        for name in (a for a in i.agents if a in model.agents):
            if name not in vocabulary.agents:
                raise ConfigError(f"{where}: input {i.name}: unknown agent {name!r}; known: {', '.join(vocabulary.agents)}")
            to = _to(vocabulary.agents[name], i.amount, f"{where}: input {i.name}: agent {name}", vocabulary)
            if to.offset or conversions.setdefault(name, to) != to:
                raise ConfigError(f"{where}: agent {name}: its inputs have amounts in different units")
    stand_ins = {"body_weight": episodes.body_weight_kg} | dict(episodes.stand_ins)
    names = tuple(dict.fromkeys([*model.covariates, *covariates]))
    for name in names:
        if name not in PATIENT_COVARIATES:
            vocabulary.signal(name, f"{where}: covariate")
    lacking = [n for n in model.covariates if n not in stand_ins]
    if lacking:
        raise ConfigError(f"{where}: episodes.stand_ins: no value for {', '.join(lacking)}, which the model needs of every patient")
    agents = model.agents
    require = episodes.require
    if require is None:
        require = tuple(a for a in ("insulin_bolus", "carbohydrate") if a in agents) if grids else ()
    unknown = sorted(set(require) - set(agents))
    if unknown:
        raise ConfigError(f"episodes.require: {', '.join(unknown)}: no input of model {model.name}, expected some of {', '.join(agents)}")
    readings, hours = episodes.minimum_readings, episodes.minimum_wear_hours
    return Layout(
        model.name, tuple(known), grids, steps.pop() if steps else GRID, agents, {n: stand_ins.get(n) for n in names},
        None if episodes.days == "all" else episodes.days,
        readings if readings is not None else SENSOR_READINGS if grids else 1,
        hours if hours is not None else SENSOR_HOURS if grids else 0.0,
        require, {n: c for n, c in conversions.items() if c != Affine(factor=1.0)},
    )


def _to(quantity: Quantity, unit: str, where: str, vocabulary: Vocabulary) -> Affine:
    """From the quantity's canonical unit to the model's. Raises ConfigError."""
    back = Converter(where, quantity, False, vocabulary.unit_aliases).of(unit or "1", where)
    return Affine(factor=float(f"{1 / back.factor:.15g}"), offset=-back.offset / back.factor)
