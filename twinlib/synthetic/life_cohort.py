"""A cohort that lives as `life` says, in the terms of the export files: people, plans and what the devices hold."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from datetime import date

import numpy as np

from twinlib.synthetic import life
from twinlib.synthetic.people import Person, person
from twinlib.synthetic.simulate import Record
from twinlib.synthetic.therapy import Plan

PARAMETERS = tuple(life.POPULATION)
_NAMED = ((600, "Breakfast"), (960, "Lunch"), (1440, "Dinner"))  # of meals that are no snack, by minute of the day
_SNACK = 25  # g


def _name(minute: int, grams: float) -> str:
    return "Snack" if grams < _SNACK else next(name for until, name in _NAMED if minute % life.DAY < until)


def _events(amounts: np.ndarray) -> np.ndarray:
    """(events, 3): person, minute and amount of what is not zero in (people, minutes)."""
    who, minute = np.nonzero(amounts)
    return np.column_stack([who, minute, amounts[who, minute]])


def cohort(seed: int, indices: Sequence[int], start: date, days: int) -> tuple[list[Person], list[Plan], Record]:
    """People with pumps under `life.REAL`: parameters are those of the two-compartment truth, in the order of PARAMETERS. What is eaten and not
    logged stands in no file."""
    lived = life.live(indices, days, life.REAL, seed)
    everybody, plans, meal = [], [], []
    intake = _events(lived.logged)
    for n, index in enumerate(indices):
        parameters = np.array([lived.parameters[name][n] for name in PARAMETERS])
        everybody.append(replace(person(seed, index, start), pump=True, weight=float(lived.weight[n]), parameters=parameters))
        mine = intake[intake[:, 0] == n, 1:]
        rescued = lived.rescues[n, mine[:, 0].astype(int)]
        meal.append(np.where(rescued, -1, np.arange(len(mine))))
        none = np.zeros(0)
        plans.append(Plan(
            rates=((0, float(60 * lived.basal[n])),), long_minutes=none.astype(int), long_units=none, meal_minutes=mine[:, 0].astype(int),
            meal_grams=mine[:, 1], meal_labels=tuple(_name(int(m), g) for m, g in mine), bolus_minutes=none.astype(int), bolus_grams=none,
            ratio=float("nan"), factor=float("nan"), rescue_grams=life.RESCUE, bolus_step=0.01,
        ))
    return everybody, plans, Record(lived.readings, lived.truth, _events(lived.bolus), intake, np.concatenate(meal))
