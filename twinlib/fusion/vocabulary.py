"""The signals and agents that records can speak of: canonical units, plausible ranges, how repetitions are read."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from functools import cached_property, reduce
from importlib import resources
from typing import Annotated, Literal

import yaml
from pydantic import AfterValidator, BeforeValidator, Field, model_validator

from twinlib.config import Strict, read_yaml, validate
from twinlib.errors import ConfigError

BUILT_IN = ("vocabulary.yaml", "vocabulary_ehr.yaml")
KINDS = ("dose", "rate", "treatment")
HIERARCHIES = ("icd10", "icd9", "atc")  # code systems in which a code stands for all that begin with it
SYSTEMS = ("loinc", "snomed", "rxnorm", "icd10", "icd9", "atc", "act", "omop", "names")


def _system(name: str) -> str:
    if name not in SYSTEMS and ":" not in name:
        raise ValueError(f"unknown code system {name!r}; expected one of {', '.join(SYSTEMS)}, or the URI of another one")
    return name


System = Annotated[str, AfterValidator(_system)]
Text = Annotated[str, BeforeValidator(lambda v: str(v) if isinstance(v, int | float) and not isinstance(v, bool) else v)]


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
    steeper than edge_per_minute. overlap_minutes: devices whose readings are nearer than this report at the same time. The signal rises
    with doses of the agent `rises_with`, and a clock that is shift_minutes or more off them is wrong. Readings of the signal `meter`, at
    least meter_readings within meter_minutes, tell of a drift of more than meter_share. Levels are in the canonical unit.
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
    rises_with: str | None = None
    shift_minutes: Annotated[float, Field(ge=60)] | None = None
    meter: str | None = None
    meter_share: Annotated[float, Field(gt=0)] | None = None
    meter_minutes: Annotated[float, Field(gt=0)] | None = None
    meter_readings: Annotated[float, Field(ge=2)] | None = None

    @model_validator(mode="after")
    def _whole_rules(self):
        for names in (("lowest", "highest"), ("session_pause_minutes", "warm_up_minutes"), ("jump_level", "jump_per_minute"),
                      ("edge_per_minute", "dip_depth", "dip_minutes"), ("rises_with", "shift_minutes"),
                      ("meter", "meter_share", "meter_minutes", "meter_readings")):
            if len({getattr(self, n) is None for n in names}) > 1:
                raise ValueError(f"give all or none of {', '.join(names)}")
        return self


class Signal(Quantity):
    """`grid_minutes`: a sensor's signal, whose readings stand on a grid of that many minutes; without, each keeps its own instant."""

    plausible: Range
    sensor: Sensor | None = None
    grid_minutes: Literal[1, 3, 5, 15] | None = None


class Agent(Quantity):
    """`dose`, `rate` (per hour) and `treatment` (in force) are the kinds of exposure that exist, with their plausible ranges.

    same_instant: `conflict` = two amounts at one instant contradict each other; `add` = both were given or eaten.
    """

    dose: Range | None = None
    rate: Range | None = None
    treatment: Range | None = None
    same_instant: Literal["conflict", "add"] = "conflict"


class Event(Strict):
    """Something that happened or was in force, without a number: a condition, a visit, death."""

    meaning: str = ""


class Vocabulary(Strict):
    """codes: name of a signal, agent or event -> code system, `omop` or `names` -> codes. omop_units: unit concept id -> unit."""

    signals: dict[str, Signal] = {}
    agents: dict[str, Agent] = {}
    events: dict[str, Event] = {}
    unit_aliases: dict[str, str] = {}
    codes: dict[str, dict[System, tuple[Text, ...]]] = {}
    omop_units: dict[int, str] = {}

    @property
    def sensors(self) -> dict[str, Sensor]:
        """Settings of the signals that sensors report."""
        return {name: s.sensor for name, s in self.signals.items() if s.sensor}

    @cached_property
    def names(self) -> str:
        return f"signals {', '.join(self.signals)}; agents {', '.join(self.agents)}; events {', '.join(self.events)}"

    def event(self, name: str, where: str) -> Event:
        """Raises ConfigError where the event is unknown."""
        if name not in self.events:
            raise ConfigError(f"{where}: unknown event {name!r}; known: {', '.join(self.events)}")
        return self.events[name]

    def coded(self, known: Mapping[str, object], system: str) -> dict[str, tuple[str, ...]]:
        """Codes of a system by name, of those `known` signals, agents or events that have any."""
        return {n: self.codes[n][system] for n in known if self.codes.get(n, {}).get(system)}

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
        plausible = getattr(agent, kind)
        if plausible is None:
            kinds = [k for k in KINDS if getattr(agent, k)]
            raise ConfigError(f"{where}: {name} has no kind {kind!r}; expected {' or '.join(kinds)}")
        return agent, plausible


def load_vocabulary(path: str | None = None) -> Vocabulary:
    """The built-in vocabulary with the entries of the YAML file `path` added or replaced; codes are added to. Raises ConfigError."""
    built_in = [(yaml.safe_load(resources.files(__package__).joinpath(f).read_text(encoding="utf-8")), f) for f in BUILT_IN]
    parts = [validate(Vocabulary, data, name) for data, name in [*built_in, *([(read_yaml(path), path)] if path else [])]]
    whole = Vocabulary(
        codes=_added(p.codes for p in parts),
        **{
            field: reduce(lambda a, b: a | b, (getattr(p, field) for p in parts))
            for field in ("signals", "agents", "events", "unit_aliases", "omop_units")
        },
    )
    unknown = sorted(set(whole.codes) - set(whole.signals) - set(whole.agents) - set(whole.events))
    if unknown:
        raise ConfigError(f"{path}: codes: {', '.join(unknown)}: no signal, agent or event of that name")
    for name, sensor in whole.sensors.items():
        for setting, known in (("rises_with", whole.agents), ("meter", whole.signals)):
            if getattr(sensor, setting) not in (None, *known):
                raise ConfigError(f"{path}: signals: {name}: sensor: {setting}: unknown {getattr(sensor, setting)!r}; known: {', '.join(known)}")
    return whole


def _added(parts: Iterable[Mapping[str, Mapping[str, tuple[str, ...]]]]) -> dict[str, dict[str, tuple[str, ...]]]:
    result: dict[str, dict[str, tuple[str, ...]]] = {}
    for part in parts:
        for name, systems in part.items():
            known = result.setdefault(name, {})
            for system, codes in systems.items():
                known[system] = tuple(dict.fromkeys((*known.get(system, ()), *codes)))
    return result
