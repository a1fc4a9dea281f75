"""Closed-loop rules: therapy that reacts to the simulated sensor.

A rule looks at every slot (a reading's instant), where it sees the sensor of its own arm in all posterior draws at once, and
orders what is given until the next one. What a rule takes the place of is first taken out of the recorded inputs (`edited`).
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Annotated, Literal

import numpy as np
from pydantic import BeforeValidator, Field, model_validator

from twinlib.config import Strict
from twinlib.models.timeline import Inputs
from twinlib.whatif.closed_loop import Loop
from twinlib.whatif.edits import Amount, Dose, Factor, Remove, _profile
from twinlib.whatif.selection import DAY, Names, Near, Number, Scene, Span, Where


def _setting(value: object) -> object:
    return _profile(value if isinstance(value, dict) else {"00:00": value})


Setting = Annotated[tuple[tuple[int, Dose], ...], BeforeValidator(_setting)]
"""A number, or numbers by local time from which they hold."""


def at_time(setting: tuple[tuple[int, float], ...], minute_of_day: float) -> float:
    """The value that holds at a minute of the day; before the first time that is the last one's."""
    return next((v for m, v in reversed(setting) if m <= minute_of_day), setting[-1][1])


class Rule(Strict):
    """Base of all rules. `input` holds the inputs that it acts on."""

    input: Names

    def needs(self) -> Iterator[Names]:
        """Inputs of which the patient must have records."""
        yield from ()

    def lacks(self, inputs: Inputs, scene: Scene) -> str | None:
        """What the rule needs and the patient has no record of."""
        return next((f"no {' or '.join(n)} recorded" for n in self.needs() if not any(len(inputs.get(i, ())) for i in n)), None)

    def edited(self, inputs: Inputs, scene: Scene) -> Inputs:
        """The recorded inputs without those that the rule takes the place of."""
        return inputs

    def control(self, loop: Loop) -> Iterator[None]:
        """Acts once per `next`, at loop.now; all numbers are (lanes,) arrays."""
        raise NotImplementedError

    @model_validator(mode="after")
    def _single(self):
        if len(self.input) != 1 and not isinstance(self, Adjust):
            raise ValueError(f"input: needs one input, this alias names {len(self.input)}: {', '.join(self.input)}")
        return self


class Adjust(Rule):
    """What is recorded of the inputs is multiplied by `factor` while the simulated signal is below or above a value."""

    factor: Factor
    below: Number | None = None
    above: Number | None = None

    def needs(self):
        yield self.input

    @model_validator(mode="after")
    def _some(self):
        if self.below is None and self.above is None:
            raise ValueError("give at least one of below and above")
        return self

    def control(self, loop):
        while True:
            holds = np.ones(loop.lanes, bool) if self.below is None else loop.sensor < self.below
            holds &= loop.sensor > self.above if self.above is not None else True
            loop.scale(self.input, np.where(holds, self.factor, 1.0))
            yield


class Suspend(Adjust):
    """Low-glucose suspend in the manner of Basal-IQ (Forlenza 2018, 10.2337/dc18-0771).

    Nothing is given from when the signal is below `now_below`, or would be below `below` after `ahead` minutes along the line through its
    last `history` minutes, until neither holds or the signal rises; at most `longest` minutes in any `window` minutes.
    """

    factor: Factor = 0.0
    below: Number = 80.0
    now_below: Number = 70.0
    ahead: Span = 30.0
    history: Annotated[Span, Field(gt=0)] = 20.0
    longest: Span = 120.0
    window: Span = 150.0

    def control(self, loop):
        off, was = np.zeros(loop.lanes, bool), np.zeros((len(loop.minutes), loop.lanes))  # minutes off by slot
        while True:
            rising = loop.sensor > loop.previous
            low = (loop.sensor < self.now_below) | (loop.sensor + self.ahead * loop.slope(self.history) < self.below)
            off = low & ~rising
            recent = was[np.searchsorted(loop.minutes, loop.now + loop.length - self.window) : loop.k].sum(axis=0)
            off &= recent + loop.length <= self.longest
            was[loop.k] = np.where(off, loop.length, 0.0)
            loop.scale(self.input, np.where(off, self.factor, 1.0))
            yield


class Treat(Rule):
    """Gives `amount` when the simulated signal is below or above a value, and again after `wait` minutes if need be."""

    amount: Dose
    below: Number | None = None
    above: Number | None = None
    wait: Annotated[Span, Field(gt=0)] = 15.0

    @model_validator(mode="after")
    def _one_limit(self):
        if (self.below is None) == (self.above is None):
            raise ValueError("give exactly one of below and above")
        return self

    def control(self, loop):
        last = np.full(loop.lanes, -np.inf)
        while True:
            off = loop.sensor < self.below if self.below is not None else loop.sensor > self.above
            now = off & (loop.now - last >= self.wait)
            loop.give(self.input[0], np.where(now, self.amount, 0.0))
            last = np.where(now, loop.now, last)
            yield


class BolusCalculator(Rule):
    """Boluses as a calculator advises them: grams/ratio, plus (signal - target)/factor less the insulin on board, never below nothing.

    They are given at the reading before the meal. Insulin on board falls linearly to nothing over `action` minutes and is taken from a
    positive correction only (Walsh & Roberts 2006). replaces: which recorded doses go, those that belong to a `meals` event, or all.
    correct_above: also corrects between meals where the signal is above it, at most every `wait` minutes. step: doses are rounded down
    to it.
    """

    meals: Near
    ratio: Setting
    factor: Setting
    target: Setting
    action: Annotated[Span, Field(gt=0)] = 240.0
    step: Amount = 0.0
    maximum: Dose = 30.0
    correct_above: Number | None = None
    wait: Span = 120.0
    replaces: Literal["meal", "all"] = "meal"

    def needs(self):
        yield self.meals.input

    def edited(self, inputs, scene):
        return Remove(input=self.input, where=Where(near=self.meals) if self.replaces == "meal" else None).apply(inputs, scene)

    def control(self, loop):
        grams = np.zeros(len(loop.minutes))  # eaten before the next slot
        for name in self.meals.input:
            if name in loop.inputs:
                e = loop.inputs[name]
                at = np.searchsorted(loop.minutes, e.minutes, side="right") - 1
                counts = (at >= 0) & self.meals.matches(e, loop.scene)
                np.add.at(grams, at[counts], e.amounts[counts])
        last = np.full(loop.lanes, -np.inf)
        while True:
            eaten = grams[loop.k]
            wanted = np.full(loop.lanes, eaten > 0)
            if self.correct_above is not None:
                wanted |= (loop.sensor > self.correct_above) & (loop.now - last >= self.wait)
            if wanted.any():
                minute = (loop.now + loop.scene.local_start) % DAY
                ratio, factor, target = (at_time(s, minute) for s in (self.ratio, self.factor, self.target))
                excess = (loop.sensor - target) / factor
                excess = np.where(excess > 0, np.maximum(excess - loop.on_board(self.input[0], self.action), 0.0), excess)
                dose = np.clip(eaten / ratio + excess, 0.0, self.maximum)
                dose = np.floor(dose / self.step + 1e-9) * self.step if self.step else dose
                loop.give(self.input[0], np.where(wanted, dose, 0.0))
                last = np.where(wanted & (dose > 0), loop.now, last)
            yield


class PID(Rule):
    """Rate of an infusion by a proportional-integral-derivative controller (Steil 2006, 10.2337/db06-0419), in place of what is recorded.

    rate per hour = basal + gain (e + sum of e over `integral` minutes + `derivative` minutes times the slope), e = signal - target, held
    within 0 and `maximum`. The integral is held where the rate would leave these limits by it alone. basal: none = the patient's mean rate.
    """

    target: Number
    gain: Annotated[float, Field(strict=True, gt=0)]
    integral: Annotated[Span, Field(gt=0)] = 450.0
    derivative: Annotated[Span, Field(ge=0)] = 90.0
    history: Annotated[Span, Field(gt=0)] = 20.0
    basal: Amount | None = None
    maximum: Dose = 5.0

    def needs(self):
        if self.basal is None:
            yield self.input

    def edited(self, inputs, scene):
        return Remove(input=self.input).apply(inputs, scene)

    def control(self, loop):
        basal = self.basal if self.basal is not None else loop.mean_rate(self.input[0])
        total = np.zeros(loop.lanes)
        low, high = -basal / self.gain, max(self.maximum - basal, 0.0) / self.gain
        while True:
            error = loop.sensor - self.target
            total = np.clip(total + error * (loop.length / self.integral), low, high)
            rate = basal + self.gain * (error + total + self.derivative * loop.slope(self.history))
            loop.infuse(self.input[0], np.clip(rate, 0.0, self.maximum))
            yield


RULES: dict[str, type[Rule]] = {
    "adjust": Adjust, "suspend": Suspend, "treat": Treat, "bolus_calculator": BolusCalculator, "pid": PID,
}
