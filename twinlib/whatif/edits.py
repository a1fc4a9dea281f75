"""The verbs that edit recorded inputs: each is a checked specification and a pure function from inputs to inputs."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Annotated

import numpy as np
from pydantic import BeforeValidator, Field, field_validator, model_validator

from twinlib.config import Strict
from twinlib.engine.posterior import key
from twinlib.models.timeline import Events, Inputs, joined
from twinlib.whatif.selection import DAY, Labels, Names, Near, Scene, Span, Where, minute_of_day

Factor = Annotated[float, Field(strict=True, ge=0, le=100)]
Amount = Annotated[float, Field(strict=True, ge=0, allow_inf_nan=False)]
Dose = Annotated[float, Field(strict=True, gt=0, allow_inf_nan=False)]
Minutes = Annotated[Span, Field(ge=-366 * DAY, le=366 * DAY)]


def _times(value: object) -> tuple[int, ...]:
    return tuple(minute_of_day(v) for v in ([value] if isinstance(value, str) else value if isinstance(value, (list, tuple)) else [value]))


def _profile(value: object) -> tuple[tuple[int, object], ...]:
    if not isinstance(value, dict) or not value:
        raise ValueError('expected values by local time, such as {"00:00": 0.8, "06:00": 1.1}')
    return tuple(sorted((minute_of_day(k), v) for k, v in value.items()))


Profiled = Annotated[tuple[tuple[int, Amount], ...], BeforeValidator(_profile)]


class Edit(Strict):
    """One step of a scenario. `input` holds the inputs that it changes (an alias has been replaced by what it names)."""

    input: Names
    where: Where | None = None

    def changed(self, events: Events, inputs: Inputs, scene: Scene) -> Events:
        """The edited events of one input; `inputs` are all inputs as the previous edit left them."""
        raise NotImplementedError

    def apply(self, inputs: Inputs, scene: Scene) -> Inputs:
        """All inputs with this edit applied; arrays of untouched inputs are shared, none is written to."""
        return inputs | {n: self.changed(inputs[n], inputs, scene) for n in self.input if n in inputs and len(inputs[n])}

    def needs(self) -> Iterator[tuple[Names, Labels | None]]:
        """The inputs of which the patient must have events, and the labels by which events are told apart, if any."""
        yield self.input, self.where.labels if self.where else None
        if self.where and self.where.near:
            yield self.where.near.input, self.where.near.labels

    def lacks(self, inputs: Inputs, scene: Scene) -> str | None:
        """What the edit needs and the patient has no record of; None where nothing is missing."""
        for names, labels in self.needs():
            have = [inputs[n] for n in names if n in inputs and len(inputs[n])]
            if not have:
                return f"no {' or '.join(names)} recorded"
            if labels and not any(any(e.labels) for e in have):
                return f"{' or '.join(names)} recorded without labels"
        return "no readings to go by" if self.where and self.where.reading and not scene.readable else None

    def _mask(self, events: Events, inputs: Inputs, scene: Scene) -> np.ndarray:
        return self.where.mask(events, inputs, scene) if self.where else np.ones(len(events), dtype=bool)

    def _parts(self, events: Events, inputs: Inputs, scene: Scene) -> tuple[Events, np.ndarray]:
        return self.where.parts(events, inputs, scene) if self.where else (events, np.ones(len(events), dtype=bool))


def _with_amounts(events: Events, amounts: np.ndarray) -> Events:
    return Events(events.minutes, amounts, events.durations, events.labels)


class Scale(Edit):
    """Multiply amounts by `factor`."""

    factor: Factor

    def changed(self, events, inputs, scene):
        if self.factor == 1.0:  # identity to the bit, cuts included
            return events
        events, mask = self._parts(events, inputs, scene)
        return _with_amounts(events, np.where(mask, events.amounts * self.factor, events.amounts))


class Replace(Edit):
    """Set the amount of every event to `amount`, or what is given over time to `rate` per hour."""

    amount: Amount | None = None
    rate: Amount | None = None

    @model_validator(mode="after")
    def _one(self):
        if (self.amount is None) == (self.rate is None):
            raise ValueError("give exactly one of amount and rate")
        return self

    def changed(self, events, inputs, scene):
        if self.amount is not None:
            return _with_amounts(events, np.where(self._mask(events, inputs, scene), self.amount, events.amounts))
        events, mask = self._parts(events, inputs, scene)
        return _with_amounts(events, np.where(mask & (events.durations > 0), self.rate * events.durations / 60, events.amounts))


class Remove(Edit):
    """Take events out."""

    def changed(self, events, inputs, scene):
        events, mask = self._parts(events, inputs, scene)
        return events.take(~mask)


class Stop(Remove):
    """Nothing is given any more, from `from` after the beginning to `until`."""

    where: None = None
    start: Span = Field(0.0, alias="from")
    end: Span | None = Field(None, alias="until")

    def _parts(self, events, inputs, scene):
        return Where(**{"from": self.start, "until": self.end}).parts(events, inputs, scene)


class Cap(Edit):
    """Lower the amount of every event that exceeds `maximum` to it."""

    maximum: Amount

    def changed(self, events, inputs, scene):
        over = self._mask(events, inputs, scene) & (events.amounts > self.maximum)
        return _with_amounts(events, np.where(over, self.maximum, events.amounts))


class Miss(Edit):
    """Take out every n-th event, or each with a `probability`.

    The random numbers belong to the patient, the episode and the event: a dose missed at 10 % is missed at 20 % too, in every scenario.
    """

    every: Annotated[int, Field(ge=1)] | None = None
    probability: Annotated[float, Field(strict=True, ge=0, le=1)] | None = None

    @model_validator(mode="after")
    def _one(self):
        if (self.every is None) == (self.probability is None):
            raise ValueError("give exactly one of every and probability")
        return self

    def apply(self, inputs, scene):
        return inputs | {n: self._kept(n, inputs, scene) for n in self.input if n in inputs and len(inputs[n])}

    def _kept(self, name: str, inputs: Inputs, scene: Scene) -> Events:
        events = inputs[name]
        mask = self._mask(events, inputs, scene)
        if self.every is not None:
            return events.take(~(mask & (np.cumsum(mask) % self.every == 0)))
        chance = key(scene.seed, "missed", *scene.key, name).random(len(events))
        return events.take(~(mask & (chance < self.probability)))


class Shift(Edit):
    """Move events by `minutes` (negative = earlier), at most to the episode's first or last minute."""

    minutes: Minutes

    def changed(self, events, inputs, scene):
        moved = np.where(self._mask(events, inputs, scene), scene.clamp(events.minutes + self.minutes), events.minutes)
        return Events.of(moved, events.amounts, events.durations, events.labels)


class Align(Edit):
    """Move each event to `minutes` after (negative = before) the event of `to` that it belongs to; others stay."""

    to: Near
    minutes: Minutes

    def changed(self, events, inputs, scene):
        target = self.to.anchors(events, inputs, scene) + self.minutes
        moves = self._mask(events, inputs, scene) & ~np.isnan(target)
        return Events.of(np.where(moves, scene.clamp(target), events.minutes), events.amounts, events.durations, events.labels)

    def needs(self):
        yield from super().needs()
        yield self.to.input, self.to.labels


class Add(Edit):
    """Give `amount` at the local times `at` of every day, or `every` so often, spread over `duration` minutes (0 = at once).

    start, end: from when to when, since the beginning; loading: amount of the first dose.
    """

    where: None = None
    amount: Dose
    at: Annotated[tuple[int, ...], BeforeValidator(_times)] | None = None
    every: Annotated[Span, Field(gt=0)] | None = None
    start: Annotated[Span, Field(ge=0)] = Field(0.0, alias="from")
    end: Span | None = Field(None, alias="until")
    duration: Annotated[Span, Field(ge=0)] = 0.0
    loading: Dose | None = None
    label: str = ""

    @field_validator("input")
    @classmethod
    def _one(cls, names):
        if len(names) != 1:
            raise ValueError(f"needs one input, this alias names {len(names)}: {', '.join(names)}")
        return names

    @model_validator(mode="after")
    def _when(self):
        if (self.at is None) == (self.every is None):
            raise ValueError("give exactly one of at and every")
        return self

    def needs(self):
        yield from ()

    def given(self, scene: Scene) -> Events:
        """The doses."""
        first = scene.begin + self.start
        end = scene.minutes if self.end is None else min(scene.minutes, scene.begin + self.end)
        if self.every is not None:
            minutes = np.arange(first, end, self.every)
        else:
            begins = [first + (at - scene.local_start - first) % DAY for at in self.at]
            minutes = np.sort(np.concatenate([np.arange(b, end, DAY) for b in begins]))
        amounts = np.full(len(minutes), self.amount)
        amounts[:1] = self.amount if self.loading is None else self.loading
        return Events.of(minutes, amounts, self.duration, self.label.strip().lower())

    def apply(self, inputs, scene):
        return _added(inputs, self.input[0], self.given(scene))


class Switch(Add):
    """Stop `input` and give `to` instead: a regimen as in `add`, or each old dose times `factor`."""

    to: Names
    amount: Dose | None = None
    factor: Factor | None = None

    _one = field_validator("to")(lambda names: Add._one(names))

    @field_validator("input")
    @classmethod
    def _many(cls, names):
        return names

    @model_validator(mode="after")
    def _when(self):
        if (self.factor is None) == (self.amount is None):
            raise ValueError("give exactly one of factor (of the old doses) and amount (a new regimen)")
        if self.amount is not None and (self.at is None) == (self.every is None):
            raise ValueError("give exactly one of at and every")
        return self

    def needs(self):
        yield self.input, None

    def apply(self, inputs, scene):
        stop, where = Stop(**{"input": self.input, "from": self.start, "until": self.end}), Where(**{"from": self.start, "until": self.end})
        out = stop.apply(inputs, scene)
        if self.amount is not None:
            return _added(out, self.to[0], self.given(scene))
        parts = [where.parts(inputs[n], inputs, scene) for n in self.input if n in inputs and len(inputs[n])]
        old = joined(events.take(mask) for events, mask in parts)
        return _added(out, self.to[0], _with_amounts(old, old.amounts * self.factor))


class Profile(Edit):
    """Replace everything that is given over time by a daily profile of rates per hour."""

    where: None = None
    rates: Profiled

    def changed(self, events, inputs, scene):
        starts = np.array([m for m, _ in self.rates], dtype=float)
        rates = np.array([r for _, r in self.rates])
        days = np.arange(np.floor((scene.begin + scene.local_start) / DAY) - 1, np.ceil((scene.minutes + scene.local_start) / DAY) + 1)
        begin = (days[:, None] * DAY + starts - scene.local_start).ravel()
        end = np.append(begin[1:], np.inf)
        first, last = np.clip(begin, scene.begin, scene.minutes), np.clip(end, scene.begin, scene.minutes)
        amounts = np.tile(rates, len(days)) * (last - first) / 60
        kept = last > first
        return joined([events.take(events.durations == 0), Events.of(first[kept], amounts[kept], (last - first)[kept])])


def _added(inputs: Inputs, name: str, events: Events) -> Inputs:
    return inputs | {name: joined([inputs[name], events] if name in inputs else [events])}
