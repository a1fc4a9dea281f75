"""The verbs of the scenario language: each is a checked specification and a pure function from inputs to inputs."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Annotated

import numpy as np
from pydantic import BeforeValidator, Field, field_validator

from twinlib.config import Strict
from twinlib.models.timeline import Events, Inputs, joined
from twinlib.whatif.selection import DAY, Clock, Labels, Names, Near, Where, minute_of_day

Factor = Annotated[float, Field(strict=True, ge=0, le=100)]
Amount = Annotated[float, Field(strict=True, ge=0, allow_inf_nan=False)]
Minutes = Annotated[float, Field(strict=True, ge=-DAY, le=DAY)]


class Edit(Strict):
    """One step of a scenario. `input` holds the inputs that it changes (an alias has been replaced by what it names)."""

    input: Names
    where: Where | None = None

    def changed(self, events: Events, inputs: Inputs, clock: Clock) -> Events:
        """The edited events of one input; `inputs` are all inputs as the previous edit left them."""
        raise NotImplementedError

    def apply(self, inputs: Inputs, clock: Clock) -> Inputs:
        """All inputs with this edit applied; arrays of untouched inputs are shared, none is written to."""
        return inputs | {n: self.changed(inputs[n], inputs, clock) for n in self.input if n in inputs and len(inputs[n])}

    def needs(self) -> Iterator[tuple[Names, Labels | None]]:
        """The inputs of which the patient must have events, and the labels by which events are told apart, if any."""
        yield self.input, self.where.labels if self.where else None
        if self.where and self.where.near:
            yield self.where.near.input, self.where.near.labels

    def lacks(self, inputs: Inputs) -> str | None:
        """What the edit needs and the patient has no record of; None where nothing is missing."""
        for names, labels in self.needs():
            have = [inputs[n] for n in names if n in inputs and len(inputs[n])]
            if not have:
                return f"no {' or '.join(names)} recorded"
            if labels and not any(any(e.labels) for e in have):
                return f"{' or '.join(names)} recorded without labels"
        return None

    def _mask(self, events: Events, inputs: Inputs, clock: Clock) -> np.ndarray:
        return self.where.mask(events, inputs, clock) if self.where else np.ones(len(events), dtype=bool)


class Scale(Edit):
    """Multiply amounts by `factor`."""

    factor: Factor

    def changed(self, events, inputs, clock):
        if self.factor == 1.0:  # identity to the bit, cuts included
            return events
        events, mask = self.where.parts(events, inputs, clock) if self.where else (events, True)
        return Events(
            events.minutes, np.where(mask, events.amounts * self.factor, events.amounts), events.durations, events.labels
        )


class Remove(Edit):
    """Take events out."""

    def changed(self, events, inputs, clock):
        events, mask = self.where.parts(events, inputs, clock) if self.where else (events, np.ones(len(events), dtype=bool))
        return events.take(~mask)


class Cap(Edit):
    """Lower the amount of every event that exceeds `maximum` to it."""

    maximum: Amount

    def changed(self, events, inputs, clock):
        over = self._mask(events, inputs, clock) & (events.amounts > self.maximum)
        return Events(events.minutes, np.where(over, self.maximum, events.amounts), events.durations, events.labels)


class Shift(Edit):
    """Move events by `minutes` (negative = earlier), at most to the episode's first or last minute."""

    minutes: Minutes

    def changed(self, events, inputs, clock):
        moved = np.where(self._mask(events, inputs, clock), clock.clamp(events.minutes + self.minutes), events.minutes)
        return Events.of(moved, events.amounts, events.durations, events.labels)


class Align(Edit):
    """Move each event to `minutes` after (negative = before) the event of `to` that it belongs to; others stay."""

    to: Near
    minutes: Minutes

    def changed(self, events, inputs, clock):
        target = self.to.anchors(events, inputs, clock) + self.minutes
        moves = self._mask(events, inputs, clock) & ~np.isnan(target)
        return Events.of(np.where(moves, clock.clamp(target), events.minutes), events.amounts, events.durations, events.labels)

    def needs(self):
        yield from super().needs()
        yield self.to.input, self.to.labels


class Add(Edit):
    """Give `amount` every day at the local time `at`, spread over `duration` minutes (0 = at once)."""

    where: None = None
    amount: Annotated[float, Field(strict=True, gt=0, allow_inf_nan=False)]
    at: Annotated[int, BeforeValidator(minute_of_day)]
    duration: Annotated[float, Field(strict=True, ge=0, le=DAY)] = 0.0
    label: str = ""

    @field_validator("input")
    @classmethod
    def _one(cls, names):
        if len(names) != 1:
            raise ValueError(f"add needs one input, this alias names {len(names)}: {', '.join(names)}")
        return names

    def needs(self):
        yield from ()

    def apply(self, inputs, clock):
        name = self.input[0]
        minutes = np.arange((self.at - clock.local_start) % DAY, clock.minutes, DAY)
        added = Events.of(minutes, np.full(len(minutes), self.amount), self.duration, self.label.strip().lower())
        return inputs | {name: joined([inputs[name], added] if name in inputs else [added])}


EDITS: dict[str, type[Edit]] = {"scale": Scale, "remove": Remove, "cap": Cap, "shift": Shift, "align": Align, "add": Add}
