"""What a twin model declares: states, parameters, inputs, observed signals, and plain Python functions for its equations.

A model is a subclass of `Model` with class attributes and a few short methods. The methods receive namespaces (`x.glucose`,
`p.insulin_sensitivity`, `u.insulin`, `c.body_weight`) whose members carry their units, and are called once, with symbols, when the model
is traced. Numbers in equations get a unit by `quantity(0.026, "1/min")`; functions are those of `expressions`.
"""

from __future__ import annotations

import inspect
from dataclasses import dataclass
from functools import lru_cache
from typing import Literal

import numpy as np
import pint
from scipy.special import expit, logit

from twinlib.errors import ConfigError
from twinlib.units import factor, quantity

__all__ = [
    "Constant", "Input", "Model", "ModelError", "Parameter", "Reading", "Signal", "State",
    "additive", "combined", "log_normal", "proportional", "quantity", "student_t",
]

TRANSFORMS = ("log", "identity", "logit")
LEVELS = ("population", "patient", "occasion")


class ModelError(ConfigError):
    """A model's declaration or equations are wrong; the message names the line at fault where there is one."""


@dataclass(frozen=True)
class State:
    """A state of the dynamics. `noise`: white noise drives it (see `Model.noise`)."""

    name: str
    unit: str
    noise: bool = False


@dataclass(frozen=True)
class Parameter:
    """A parameter whose prior is normal on the transformed scale (log, identity, logit): median, and SD on that scale.

    level: `patient` and `occasion` (it differs between a patient's episodes) are fitted; `population` is the same number for everybody.
    """

    name: str
    unit: str
    median: float
    sd: float
    source: str
    transform: Literal["log", "identity", "logit"] = "log"
    level: Literal["population", "patient", "occasion"] = "patient"

    def __post_init__(self):
        if self.transform not in TRANSFORMS:
            raise ModelError(f"parameter {self.name}: transform {self.transform!r} is not one of {', '.join(TRANSFORMS)}")
        if self.level not in LEVELS:
            raise ModelError(f"parameter {self.name}: level {self.level!r} is not one of {', '.join(LEVELS)}")
        inside = {"log": self.median > 0, "logit": 0 < self.median < 1, "identity": np.isfinite(self.median)}[self.transform]
        if not self.sd > 0 or not inside:
            raise ModelError(f"parameter {self.name}: prior sd must be positive, and the median within the range of {self.transform}")

    @property
    def prior_mean(self) -> float:
        """Prior mean on the transformed scale."""
        return float({"log": np.log, "logit": logit, "identity": float}[self.transform](self.median))

    def natural(self, theta):
        """The transformed value(s) `theta` on the natural scale."""
        return {"log": np.exp, "logit": expit, "identity": np.asarray}[self.transform](theta)

    def slope(self, natural):
        """Derivative of the natural value by the transformed one, at the natural value(s)."""
        return {"log": natural, "logit": natural * (1 - natural), "identity": np.ones_like(natural)}[self.transform]


@dataclass(frozen=True)
class Constant:
    """A number per patient that the equations call `c.<name>` (see `Model.patient_constants`)."""

    name: str
    unit: str


@dataclass(frozen=True)
class Input:
    """What drives the dynamics: timeline events by agent, as a rate in `unit`.

    An event lasts as long as it says, or at least `spread` (the model's time unit). With spread 0 an event without duration acts at once:
    the states jump by what the rate would add. `pace`: amount per minute that can be taken at most, which prolongs large amounts.
    `amount` is the unit of the agents' amounts; `per_weight` divides by body weight (kg).
    """

    name: str
    unit: str
    agents: tuple[str, ...]
    amount: str
    spread: float = 0.0
    per_weight: bool = False
    pace: float | None = None


@dataclass(frozen=True)
class Signal:
    """An observed signal. A reading at or beyond `lower` or `upper` (in `unit`) only says that the value lies beyond: it is censored."""

    name: str
    unit: str
    lower: float | None = None
    upper: float | None = None


@dataclass(frozen=True)
class Reading:
    """What a signal's reading is: a value, and the SD of its error (in the signal's unit; dimensionless on the log scale).

    degrees: of freedom of a Student t error; none = normal.
    """

    value: object
    sd: object
    degrees: float | None = None
    scale: Literal["identity", "log"] = "identity"


def additive(value, sd) -> Reading:
    """Normal error of constant SD."""
    return Reading(value, sd)


def proportional(value, cv: float) -> Reading:
    """Normal error with an SD of `cv` times the value."""
    return Reading(value, cv * value)


def combined(value, sd, cv: float) -> Reading:
    """Normal error with variance sd^2 + (cv*value)^2."""
    return Reading(value, (sd**2 + (cv * value) ** 2) ** 0.5)


def log_normal(value, sd: float) -> Reading:
    """Error that is normal on the log scale; the readings must be positive."""
    return Reading(value, sd, scale="log")


def student_t(value, sd, degrees: float) -> Reading:
    """Student t error with scale `sd`: robust against outliers. Exact without process noise; a robust filter (see docs) with it."""
    return Reading(value, sd, degrees)


class Model:
    """Base of all twin models; see `twinlib/models/glucose_insulin.py` for an example.

    Methods (namespaces in, quantities out):
      dynamics(x, u, p, c) -> {state: derivative}
      initial(p, c) -> {state: value}; initial_variance(p, c) -> {state: variance} for states with uncertain start
      noise(x, u, p, c) -> {state: intensity of the white noise that drives it: variance per time}; of inputs that last (spread above 0)
      observe(x, p, c) -> {signal: Reading}
      patient_constants(batch) -> {name: (patients,) array in the declared unit}
      imply(inputs, signals) -> {agent: events} for the agents in `implied`: what must have happened although no record says so
    `step` is the nominal step of the integration in `time_unit`; steps end at events and readings. The search for a mode begins with steps of
    up to `search_step` (none: twice `step`), which must still be stable.
    """

    name: str
    version: str
    states: tuple[State, ...]
    parameters: tuple[Parameter, ...]
    signals: tuple[Signal, ...]
    inputs: tuple[Input, ...] = ()
    constants: tuple[Constant, ...] = ()
    covariates: tuple[str, ...] = ()
    implied: tuple[str, ...] = ()
    time_unit: str = "min"
    step: float = 1.0
    search_step: float | None = None

    def dynamics(self, x, u, p, c):
        raise NotImplementedError

    def initial(self, p, c):
        raise NotImplementedError

    def initial_variance(self, p, c):
        return {}

    def noise(self, x, u, p, c):
        return {}

    def observe(self, x, p, c):
        raise NotImplementedError

    def patient_constants(self, batch):
        return {}

    def imply(self, inputs, signals):
        return {}

    @property
    def agents(self) -> tuple[str, ...]:
        """Agents of all inputs that are recorded, in order, each once."""
        return tuple(dict.fromkeys(a for i in self.inputs for a in i.agents if a not in self.implied))

    @property
    def fitted(self) -> tuple[Parameter, ...]:
        """The parameters that a fit estimates, in order."""
        return tuple(q for q in self.parameters if q.level != "population")

    @property
    def prior_mean(self) -> np.ndarray:
        """(fitted,) prior mean on the transformed scale."""
        return np.array([q.prior_mean for q in self.fitted])

    @property
    def prior_sd(self) -> np.ndarray:
        """(fitted,) prior SD on the transformed scale."""
        return np.array([q.sd for q in self.fitted])

    def fitted_natural(self, theta: np.ndarray) -> np.ndarray:
        """Transformed parameters (..., fitted) on their natural scale."""
        return np.stack([q.natural(theta[..., j]) for j, q in enumerate(self.fitted)], axis=-1)

    def natural(self, theta: np.ndarray) -> np.ndarray:
        """Transformed parameters (..., fitted) to all parameters (..., parameters) on their natural scale."""
        columns = {q.name: q.natural(theta[..., j]) for j, q in enumerate(self.fitted)}
        same = np.ones(theta.shape[:-1])
        return np.stack([columns[q.name] if q.name in columns else q.median * same for q in self.parameters], axis=-1)

    def minutes_per_unit(self) -> float:
        """Length of the model's time unit."""
        return factor(self.time_unit, "min")

    def input_factor(self, i: Input) -> float:
        """Amount of the agent (per kg of body weight where it says so) -> the input's unit times the model's time unit.

        Raises ModelError where the units do not convert.
        """
        try:
            return _rate(i.amount, i.per_weight, self.time_unit, i.unit)
        except pint.errors.PintError as e:
            per = " per kg" if i.per_weight else ""
            raise ModelError(f"model {self.name}: input {i.name}: {i.amount}{per} over {self.time_unit} is no rate in {i.unit}: {e}") from None


@lru_cache(maxsize=256)
def _rate(amount: str, per_weight: bool, time_unit: str, unit: str) -> float:
    """`amount` (per kg) over `time_unit` in `unit`. Kept: it is asked for every patient and scenario, and pint parses texts."""
    return float((quantity(1.0, amount) / quantity(1.0, "kg" if per_weight else "") / quantity(1.0, time_unit)).to(unit).magnitude)


def where_defined(function, key: str | None = None) -> str:
    """file:line of a model's method (of the dictionary entry `key` in it, where it is a literal), for error messages."""
    try:
        lines, first = inspect.getsourcelines(function)
    except (OSError, TypeError):
        return getattr(function, "__qualname__", str(function))
    at = next((n for n, text in enumerate(lines) if key is not None and (f'"{key}":' in text or f"'{key}':" in text)), 0)
    return f"{inspect.getsourcefile(function)}:{first + at}"
