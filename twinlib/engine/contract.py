"""What a twin model declares: states, parameters, inputs, the observed signal and plain Python functions for its equations.

A model is a subclass of `Model` with class attributes and five short methods. The methods receive namespaces (`x.glucose`,
`p.insulin_sensitivity`, `u.insulin`, `c.body_weight`) and are called once, with SymPy symbols, when the model is traced.
"""

from __future__ import annotations

import inspect
from dataclasses import dataclass

import numpy as np

from twinlib.errors import ConfigError


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
    """A fitted parameter with a log-normal (`log`) or normal (`identity`) prior: median, and SD on the transformed scale."""

    name: str
    unit: str
    median: float
    sd: float
    source: str
    transform: str = "log"

    def __post_init__(self):
        if self.transform not in ("log", "identity"):
            raise ModelError(f"parameter {self.name}: transform {self.transform!r} is not one of log, identity")
        if not self.sd > 0 or (self.transform == "log" and not self.median > 0):
            raise ModelError(f"parameter {self.name}: prior sd must be positive, and the median too where the transform is log")

    @property
    def prior_mean(self) -> float:
        """Prior mean on the transformed scale."""
        return float(np.log(self.median)) if self.transform == "log" else self.median


@dataclass(frozen=True)
class Input:
    """A rate that drives the dynamics: timeline events by agent, spread over at least `spread_minutes`.

    `factor` converts the agent's canonical unit into the rate's numerator (U to mU: 1000); `per_weight` divides by body weight.
    """

    name: str
    unit: str
    agents: tuple[str, ...]
    factor: float = 1.0
    spread_minutes: float = 1.0
    per_weight: bool = False


@dataclass(frozen=True)
class Signal:
    """The observed signal on the regular grid."""

    name: str
    unit: str


class Model:
    """Base of all twin models; see `twinlib/models/glucose_insulin.py` for an example.

    Methods (namespaces in, expressions out):
      dynamics(x, u, p, c) -> {state: derivative per minute}
      initial(p, c) -> {state: value}; initial_variance(p, c) -> {state: variance} for states with uncertain start
      noise(p, c) -> {state: intensity of the white noise that drives it, variance per minute}
      observe(x, p, c) -> expression in the signal's unit; error_variance(p, c) -> expression
      constants(batch) -> {name: (patients,) array}: per-patient numbers that the equations call `c`
    """

    name: str
    version: str
    states: tuple[State, ...]
    parameters: tuple[Parameter, ...]
    inputs: tuple[Input, ...]
    signal: Signal
    constant_names: tuple[str, ...] = ()
    covariates: tuple[str, ...] = ()
    input_minutes: float = 1.0  # inputs are constant over this interval; also the integration step

    def dynamics(self, x, u, p, c):
        raise NotImplementedError

    def initial(self, p, c):
        raise NotImplementedError

    def initial_variance(self, p, c):
        return {}

    def noise(self, p, c):
        return {}

    def observe(self, x, p, c):
        raise NotImplementedError

    def error_variance(self, p, c):
        raise NotImplementedError

    def constants(self, batch):
        return {}

    @property
    def agents(self) -> tuple[str, ...]:
        """Agents of all inputs, in order, each once."""
        return tuple(dict.fromkeys(a for i in self.inputs for a in i.agents))

    @property
    def prior_mean(self) -> np.ndarray:
        """(parameters,) prior mean on the transformed scale."""
        return np.array([q.prior_mean for q in self.parameters])

    @property
    def prior_sd(self) -> np.ndarray:
        """(parameters,) prior SD on the transformed scale."""
        return np.array([q.sd for q in self.parameters])

    def natural(self, theta: np.ndarray) -> np.ndarray:
        """Transformed parameters (..., parameters) on their natural scale."""
        log = np.array([q.transform == "log" for q in self.parameters])
        return np.where(log, np.exp(np.where(log, theta, 0.0)), theta)


def where_defined(function) -> str:
    """file:line of a model's method, for error messages."""
    try:
        return f"{inspect.getsourcefile(function)}:{inspect.getsourcelines(function)[1]}"
    except (OSError, TypeError):
        return getattr(function, "__qualname__", str(function))
