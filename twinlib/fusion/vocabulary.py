"""The signals and agents that records can speak of: canonical units, plausible ranges, how repetitions are read."""

from __future__ import annotations

from functools import cached_property
from importlib import resources
from typing import Annotated, Literal

import yaml
from pydantic import Field, model_validator

from twinlib.config import Strict, read_yaml, validate
from twinlib.errors import ConfigError


class Range(Strict):
    """Plausible values in the canonical unit; `above` excludes the bound, `from` includes it."""

    from_: Annotated[float | None, Field(alias="from")] = None
    above: float | None = None
    to: float

    @model_validator(mode="after")
    def _one_lower_bound(self):
        if (self.from_ is None) == (self.above is None):
            raise ValueError("give exactly one of `from` and `above`")
        if self.low >= self.to:
            raise ValueError("the lower bound must be below `to`")
        return self

    @property
    def low(self) -> float:
        return self.above if self.from_ is None else self.from_

    @property
    def text(self) -> str:
        return f"{'above' if self.from_ is None else 'from'} {self.low:g} to {self.to:g}"


class Affine(Strict):
    """canonical = factor * value + offset"""

    factor: float
    offset: float = 0.0


class Quantity(Strict):
    """A signal or an agent. `units` can be converted by dimension; `conversions` are for the others."""

    meaning: str = ""
    unit: str
    units: tuple[str, ...] = ()
    conversions: dict[str, Affine] = {}
    molar_mass: Annotated[float, Field(gt=0)] | None = None  # g/mol


class Sensor(Strict):
    """What the rules of `fusion/quality.py` need to know of a signal that a sensor reports; a rule without its settings does not apply.

    lowest, highest: limits of what the sensor reports. gap_minutes: a longer pause is a gap. A session begins after a pause of
    session_pause_minutes, and warm_up_minutes are its start. flat_minutes: how long a sensor may repeat one value. A reading is a jump
    where it differs from both neighbours, on the same side, by more than jump_level + jump_per_minute * minutes between them. A
    compression low is a dip of dip_depth or more from night_from to night_to (hours, local), at most dip_minutes long, whose edges are
    steeper than edge_per_minute. overlap_minutes: devices whose readings are nearer than this report at the same time.
    Levels are in the canonical unit.
    """

    lowest: float | None = None
    highest: float | None = None
    gap_minutes: Annotated[float, Field(gt=0)]
    session_pause_minutes: Annotated[float, Field(gt=0)] | None = None
    warm_up_minutes: Annotated[float, Field(gt=0)] | None = None
    flat_minutes: Annotated[float, Field(gt=0)] | None = None
    jump_level: Annotated[float, Field(ge=0)] | None = None
    jump_per_minute: Annotated[float, Field(ge=0)] | None = None
    edge_per_minute: Annotated[float, Field(gt=0)] | None = None
    dip_depth: Annotated[float, Field(gt=0)] | None = None
    dip_minutes: Annotated[float, Field(gt=0)] | None = None
    night_from: Annotated[float, Field(ge=12, le=24)] = 22
    night_to: Annotated[float, Field(ge=0, le=12)] = 8
    overlap_minutes: Annotated[float, Field(gt=0)] | None = None

    @model_validator(mode="after")
    def _whole_rules(self):
        for names in (("lowest", "highest"), ("session_pause_minutes", "warm_up_minutes"), ("jump_level", "jump_per_minute"),
                      ("edge_per_minute", "dip_depth", "dip_minutes")):
            if len({getattr(self, n) is None for n in names}) > 1:
                raise ValueError(f"give all or none of {', '.join(names)}")
        return self


class Signal(Quantity):
    """`grid_minutes`: a sensor's signal, whose readings stand on a grid of that many minutes; without, each keeps its own instant."""

    plausible: Range
    sensor: Sensor | None = None
    grid_minutes: Literal[1, 3, 5, 15] | None = None


class Agent(Quantity):
    """`dose` and `rate` (per hour) are the kinds of exposure that exist, with their plausible ranges.

    same_instant: `conflict` = two amounts at one instant contradict each other; `add` = both were given or eaten.
    """

    dose: Range | None = None
    rate: Range | None = None
    same_instant: Literal["conflict", "add"] = "conflict"


class Vocabulary(Strict):
    signals: dict[str, Signal] = {}
    agents: dict[str, Agent] = {}
    unit_aliases: dict[str, str] = {}

    @property
    def sensors(self) -> dict[str, Sensor]:
        """Settings of the signals that sensors report."""
        return {name: s.sensor for name, s in self.signals.items() if s.sensor}

    @cached_property
    def names(self) -> str:
        return f"signals {', '.join(self.signals)}; agents {', '.join(self.agents)}"

    def signal(self, name: str, where: str) -> Signal:
        """Raises ConfigError where the signal is unknown."""
        if name not in self.signals:
            raise ConfigError(f"{where}: unknown signal {name!r}; known: {', '.join(self.signals)}")
        return self.signals[name]

    def agent(self, name: str, kind: str, where: str) -> tuple[Agent, Range]:
        """The agent and the plausible range of the kind. Raises ConfigError where either is unknown."""
        if name not in self.agents:
            raise ConfigError(f"{where}: unknown agent {name!r}; known: {', '.join(self.agents)}")
        agent = self.agents[name]
        plausible = agent.rate if kind == "rate" else agent.dose
        if plausible is None:
            kinds = [k for k in ("dose", "rate") if getattr(agent, k)]
            raise ConfigError(f"{where}: {name} has no kind {kind!r}; expected {' or '.join(kinds)}")
        return agent, plausible


def load_vocabulary(path: str | None = None) -> Vocabulary:
    """The built-in vocabulary, with the entries of the YAML file `path` added or replaced. Raises ConfigError."""
    builtin = yaml.safe_load(resources.files(__package__).joinpath("vocabulary.yaml").read_text(encoding="utf-8"))
    base = validate(Vocabulary, builtin, "vocabulary.yaml")
    if path is None:
        return base
    more = validate(Vocabulary, read_yaml(path), path)
    return Vocabulary(
        signals={**base.signals, **more.signals},
        agents={**base.agents, **more.agents},
        unit_aliases={**base.unit_aliases, **more.unit_aliases},
    )
