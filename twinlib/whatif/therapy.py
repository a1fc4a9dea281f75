"""Changes of therapy settings that are not recorded themselves, only the doses that came of them.

A dose is taken apart as a bolus calculator puts it together: grams over carbohydrate ratio, and the distance from target over
correction factor. Only the part that the setting decides is changed. Old settings that are not given are the patient's own medians.
"""

from __future__ import annotations

import numpy as np
from pydantic import Field, model_validator

from twinlib.models.timeline import Events, Inputs, joined
from twinlib.whatif.edits import Dose, Edit, _with_amounts
from twinlib.whatif.selection import Near, Number, Scene, Span


class _Setting(Edit):
    """old: setting behind the recorded doses, none = estimated; new, or factor of the old one."""

    where: None = None
    meals: Near
    old: Dose | None = None
    new: Dose | None = None
    factor: Dose | None = None

    @model_validator(mode="after")
    def _one(self):
        if (self.new is None) == (self.factor is None):
            raise ValueError("give exactly one of new and factor")
        return self

    def needs(self):
        yield self.input, None
        yield self.meals.input, self.meals.labels

    def decided(self, events: Events, inputs: Inputs, scene: Scene) -> tuple[np.ndarray, np.ndarray]:
        """What the setting is applied to, per dose (0 = it plays no part), and the doses from which it can be told."""
        raise NotImplementedError

    def _old(self, inputs: Inputs, scene: Scene) -> float:
        if self.old is not None:
            return self.old
        ratios = [np.empty(0)]
        for name in self.input:
            if name in inputs and len(inputs[name]):
                what, tells = self.decided(inputs[name], inputs, scene)
                ratios.append(what[tells] / inputs[name].amounts[tells])
        ratios = np.concatenate(ratios)
        return float(np.median(ratios)) if ratios.size else np.nan

    def lacks(self, inputs, scene):
        missing = super().lacks(inputs, scene)
        if missing is None and np.isnan(self._old(inputs, scene)):
            return f"{' or '.join(self.input)}: no dose tells the old setting"
        return missing

    def apply(self, inputs, scene):
        old = self._old(inputs, scene)
        new = self.new if self.new is not None else old * self.factor
        if new == old or np.isnan(old):
            return inputs
        out = dict(inputs)
        for name in self.input:
            if name in inputs and len(inputs[name]):
                what, _ = self.decided(inputs[name], inputs, scene)
                out[name] = _with_amounts(inputs[name], np.maximum(inputs[name].amounts + what * (1 / new - 1 / old), 0.0))
        return out


class CarbohydrateRatio(_Setting):
    """Another carbohydrate ratio (g/U): doses that belong to a meal change by grams/new - grams/old, at least to nothing."""

    def decided(self, events, inputs, scene):
        anchors = self.meals.anchors(events, inputs, scene)
        meals = joined(inputs[n] for n in self.meals.input if n in inputs)
        of_meal = (anchors[:, None] == meals.minutes) @ meals.amounts if len(meals) else np.zeros(len(events))
        together = np.array([events.amounts[anchors == a].sum() if a == a else 1.0 for a in anchors])  # several doses share a meal
        share = np.divide(events.amounts, together, out=np.zeros(len(events)), where=together > 0)
        grams = of_meal * share
        return grams, (grams > 0) & (events.amounts > 0)


class CorrectionFactor(_Setting):
    """Another correction factor (mg/dL per U): where the last reading was above target, doses change by excess/new - excess/old."""

    target: Number
    within_minutes: Span = Field(15.0, gt=0)

    def lacks(self, inputs, scene):
        return super().lacks(inputs, scene) if scene.readable else "no readings to go by"

    def decided(self, events, inputs, scene):
        excess = np.nan_to_num(scene.last_reading(events.minutes, self.within_minutes) - self.target).clip(min=0)
        alone = np.isnan(self.meals.anchors(events, inputs, scene))
        return excess, alone & (excess > 0) & (events.amounts > 0)
