"""Therapy and habits that suit each person's physiology: background insulin, meals, carbohydrate ratio, correction factor.

Everything is drawn around what the true parameters call for, with the errors that real settings have.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from twinlib.synthetic import physiology as ph
from twinlib.synthetic.people import PLAN, Person, stream

DAY = 1440
MEAL_MINUTES = 15  # a meal is eaten evenly over this time
TARGET = 130.0  # mg/dL, aim of corrections

# label, minute of the day, spread (min), share of the typical meal, probability of being eaten
_MEALS = (
    ("Breakfast", 450, 30, 0.8, 0.97),
    ("Lunch", 765, 35, 1.1, 0.97),
    ("Snack", 955, 45, 0.4, 0.45),
    ("Dinner", 1125, 40, 1.2, 1.0),
)


@dataclass(frozen=True)
class Response:
    """What a person's glucose does, from trial runs without noise; arrays (N,)."""

    units_per_gram: np.ndarray  # U/g: dose whose total effect balances one gram
    rise_covered: np.ndarray  # mg/dL per g: peak rise after a meal with the balancing dose
    fall_covered: np.ndarray  # mg/dL per g: deepest fall after the same
    rise_bare: np.ndarray  # mg/dL per g without insulin
    fall_per_unit: np.ndarray  # mg/dL per U: deepest fall after a dose alone


def respond(parameters: np.ndarray, weight: np.ndarray, minutes: int = 600) -> Response:
    """Trial runs of 30 g (or its balancing dose) from rest; parameters (N, 8), weight (N,) kg."""
    grams, n = 30.0, len(weight)
    area = ph.F * ph.VI * ph.KE / (ph.VG * parameters[:, ph.GB] * parameters[:, ph.SI])  # mU per mg
    dose = area * grams  # U
    thrice, basal = np.tile(parameters, (3, 1)), np.full(3 * n, 0.2)
    model, state = ph.Dynamics(thrice, basal), ph.basal_state(thrice, basal)
    per_kg = 1000.0 / weight
    eaten = np.concatenate([per_kg * grams, per_kg * grams, np.zeros(n)]) / MEAL_MINUTES
    given = np.concatenate([per_kg * dose, np.zeros(n), per_kg * dose])
    nothing = np.zeros(3 * n)
    high = low = state[7]
    for t in range(minutes):
        state = model.minute(state, basal + (given if t == 0 else nothing), eaten if t < MEAL_MINUTES else nothing, nothing)
        high, low = np.maximum(high, state[7]), np.minimum(low, state[7])
    rise, fall = (high - thrice[:, ph.GB]).reshape(3, n), (thrice[:, ph.GB] - low).reshape(3, n)
    return Response(area, rise[0] / grams, fall[0] / grams, rise[1] / grams, fall[2] / dose)


@dataclass(frozen=True)
class Plan:
    """One person's therapy and intended meals. Minutes count from the first local midnight of the record."""

    rates: tuple[tuple[int, float], ...]  # pump: (minute of the day, U/h), the same every day
    long_minutes: np.ndarray  # pen: minute and U of the long-acting doses, the first one before the record starts
    long_units: np.ndarray
    meal_minutes: np.ndarray
    meal_grams: np.ndarray  # whole g, eaten and logged
    meal_labels: tuple[str, ...]
    bolus_minutes: np.ndarray  # -1 where the bolus is forgotten
    bolus_grams: np.ndarray  # g, what the person believes the meal to be
    ratio: float  # g/U
    factor: float  # mg/dL per U
    rescue_grams: float  # whole g against a low
    bolus_step: float  # U


def _rates(rng, units: float, swing: float) -> tuple[tuple[int, float], ...]:
    """3-6 rates a day around `units` per day, rounded to 0.01 U/h."""
    changes = np.sort(rng.choice(np.arange(3, 46), size=rng.integers(2, 6), replace=False)) * 30
    steps = 1.0 + swing * rng.uniform(-1, 1, len(changes) + 1)
    return tuple((int(m), max(0.02, round(units / 24 * float(f), 2))) for m, f in zip([0, *changes], steps))


def plan(seed: int, person: Person, response: Response, k: int, days: int) -> Plan:
    """The plan of `person`, whose trial responses are entry `k` of `response`."""
    rng, p = stream(seed, person.index, PLAN), person.parameters
    # Background insulin: less for the sensitive; its swings over the day stay within what glucose tolerates.
    per_kg = float(np.clip(0.3 * (p[ph.SI] / 6e-4) ** -0.6 * np.exp(0.15 * rng.standard_normal()), 0.06, 0.9))
    level = per_kg * 1000 / DAY / (ph.VI * ph.KE)
    rates = _rates(rng, per_kg * person.weight, float(np.clip(0.12 * p[ph.SG] / (p[ph.SI] * level), 0.02, 0.3)))
    usual = rng.integers(1230, 1410) if rng.random() < 0.7 else rng.integers(390, 540)
    long_minutes = usual + DAY * np.arange(-1, days) + rng.integers(-20, 21, days + 1)
    long_units = np.full(days + 1, max(1.0, round(per_kg * person.weight)))

    typical = float(np.clip(min(140 / response.rise_covered[k], 45 / max(response.fall_covered[k], 1e-3)), 12, 85))
    labels, starts, spreads, shares, eaten = (np.array(x) for x in zip(*_MEALS))
    shape = (days, len(_MEALS))
    minutes = DAY * np.arange(days)[:, None] + starts + np.rint(spreads * np.clip(rng.standard_normal(shape), -2, 2)).astype(int)
    grams = np.maximum(3, np.rint(typical * shares * np.exp(0.25 * rng.standard_normal(shape))))
    offset = np.clip(np.rint(rng.normal(-3, 12, shape)), -20, 30).astype(int)
    believed = grams * np.exp(0.2 * rng.standard_normal(shape))
    forgotten = rng.random(shape) < np.where(labels == "Snack", 0.35, 0.06)
    kept = rng.random(shape) < eaten
    ratio_error, factor_error = np.exp([0.2, 0.0] + 0.15 * rng.standard_normal(2))
    return Plan(
        rates if person.pump else (),
        np.array([], int) if person.pump else long_minutes,
        np.array([]) if person.pump else long_units,
        minutes[kept], grams[kept], tuple(np.broadcast_to(labels, shape)[kept].tolist()),
        np.where(forgotten, -1, minutes + offset)[kept], believed[kept],
        float(ratio_error / response.units_per_gram[k]), float(factor_error * response.fall_per_unit[k]),
        float(np.clip(np.rint(45 / response.rise_bare[k]), 4, 30)), 0.01 if person.pump else 0.5,
    )


def background(plan: Plan, weight: float, days: int) -> np.ndarray:
    """Background insulin per minute of the record, (days * 1440,), mU/kg/min. Long-acting doses are flat over 24 h."""
    minutes = days * DAY
    if plan.rates:
        starts = [m for m, _ in plan.rates] + [DAY]
        day = np.repeat([r for _, r in plan.rates], np.diff(starts)) * 1000 / 60 / weight
        return np.tile(day, days)
    steps = np.zeros(minutes + 1)
    for m, units in zip(plan.long_minutes, plan.long_units):
        steps[max(m, 0)] += units * 1000 / DAY / weight
        steps[min(m + DAY, minutes)] -= units * 1000 / DAY / weight
    # rounded so that doses which have ended leave an exact zero
    return np.round(np.cumsum(steps[:-1]), 12)
