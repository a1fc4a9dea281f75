"""From the configuration of a learning run to what is free in it, checked against the model."""

from __future__ import annotations

import numpy as np

from twinlib.config import LearnConfig
from twinlib.engine.contract import Model
from twinlib.errors import ConfigError
from twinlib.population.design import Column
from twinlib.population.estimate import Estimate, Structure, population_level
from twinlib.population.maximisation import Belief
from twinlib.population.patients import occasion_columns


def check(config: LearnConfig, model: Model) -> None:
    """Raises ConfigError where the configuration names a parameter that the model has not, or the same twice."""
    fitted, names = [q.name for q in model.fitted], [q.name for q in model.parameters]
    for key, chosen, known in (
        ("fixed", config.fixed, names), ("only", config.only, names), ("effects", [e.parameter for e in config.effects], fitted),
        ("omega", [] if isinstance(config.omega, str) else [n for b in config.omega for n in b], fitted),
        ("start", config.start, names),
    ):
        unknown = sorted(set(chosen) - set(known))
        if unknown:
            raise ConfigError(f"learn.{key}: {', '.join(unknown)}: no parameter of model {model.name} for that, expected some of {', '.join(known)}")
    if config.only and config.fixed:
        raise ConfigError("learn.only: names all that is learnt, so learn.fixed must be left out")
    if config.source == "twins":
        for what, shared in (("that all patients share", [q.name for q in population_level(model)]), ("that differ between episodes", [fitted[j] for j in occasion_columns(model)])):
            free = sorted(set(shared) - set(fixed(config, model)))
            if free:
                raise ConfigError(f"learn.source: twins know nothing of parameters {what}: {', '.join(free)}; fix them, or learn from timelines")
    if not isinstance(config.omega, str):
        listed = [n for b in config.omega for n in b]
        if len(listed) != len(set(listed)):
            raise ConfigError("learn.omega: a parameter stands in more than one block")
    pairs = [(e.parameter, e.covariate, e.kind) for e in config.effects]
    if len(set(pairs)) < len(pairs):
        raise ConfigError("learn.effects: the same effect stands twice")


def fixed(config: LearnConfig, model: Model) -> tuple[str, ...]:
    """Names of the parameters that keep the model's prior."""
    return tuple(q.name for q in model.parameters if q.name not in config.only) if config.only else config.fixed


def belief(config: LearnConfig, start: Estimate) -> Belief | None:
    """What the model's prior, at which EM starts, says of the spread between patients."""
    return Belief(start.omega, config.prior_patients) if config.prior_patients else None


def covariates(config: LearnConfig) -> tuple[str, ...]:
    """Names of all covariates, each once."""
    return tuple(dict.fromkeys(e.covariate for e in config.effects))


def start(config: LearnConfig, model: Model, columns: tuple[Column, ...], several_episodes: bool) -> tuple[Estimate, Structure]:
    """Where EM begins (the model's own prior, and `start` of the configuration) and what is free.

    columns: the covariates' columns, in the order of `effects`. Without patients of several episodes the occasions' variance is part of the
    patients' and not estimated. Raises ConfigError.
    """
    check(config, model)
    fitted, shared = model.fitted, population_level(model)
    names = [q.name for q in fitted]
    p, q = len(fitted), len(occasion_columns(model))
    constant = fixed(config, model)
    varies = np.array([n not in constant for n in names])
    if isinstance(config.omega, str):
        omega = np.outer(varies, varies) if config.omega == "full" else np.diag(varies)
    else:
        omega = np.diag(varies)
        for block in config.omega:
            at = [names.index(n) for n in block]
            omega[np.ix_(at, at)] = np.outer(varies[at], varies[at])
    effects, coefficients = np.zeros((len(columns), p), bool), np.zeros((len(columns), p))
    for k, column in enumerate(columns):
        for e in config.effects:
            if (e.covariate, e.kind) == (column.covariate, column.kind) and (e.reference in (None, column.reference)):
                j = names.index(e.parameter)
                effects[k, j], coefficients[k, j] = e.fixed is None, 0.0 if e.fixed is None else e.fixed
    mean = np.array([x.prior_mean for x in fitted])
    values = np.array([x.prior_mean for x in shared])
    for name, value in config.start.items():
        declared = next(x for x in model.parameters if x.name == name)
        moved = type(declared)(name, declared.unit, value, declared.sd, declared.source, declared.transform, declared.level).prior_mean
        if name in names:
            mean[names.index(name)] = moved
        else:
            values[[x.name for x in shared].index(name)] = moved
    variance = np.square([x.sd for x in fitted])
    occasion = np.diag(0.25 * variance[occasion_columns(model)]) if q and several_episodes else np.zeros((q, q)) + np.eye(q) * 1e-6
    structure = Structure(
        tuple(names), tuple(x.name for x in shared), varies, effects, omega.astype(bool),
        np.eye(q, dtype=bool) & several_episodes, np.array([x.name not in constant for x in shared], bool),
    )
    return Estimate(np.vstack([mean, coefficients]), np.diag(variance), occasion, values, np.ones(1)), structure
