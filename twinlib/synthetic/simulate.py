"""Living through the record: physiology, sensor and the person's decisions, minute by minute, for many people at once."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from twinlib.synthetic import physiology as ph
from twinlib.synthetic.people import CHOICES, FLUX, SENSOR, Person, stream
from twinlib.synthetic.therapy import DAY, MEAL_MINUTES, TARGET, Plan, background

STEP = 5  # minutes between readings
SENSOR_SD = 5.0  # mg/dL
SENSOR_RANGE = (40.0, 400.0)  # mg/dL
LARGEST_BOLUS = 40.0  # U


@dataclass(frozen=True)
class Record:
    """What the devices hold. Reading k is at minute k * STEP. Events: (person, minute, amount), in order of time."""

    readings: np.ndarray  # (N, days * 288) mg/dL, with sensor error
    interstitial: np.ndarray  # the same without sensor error
    bolus: np.ndarray  # (events, 3) U
    intake: np.ndarray  # (events, 3) g
    meal: np.ndarray  # (events,) index into the person's meals, -1 for an intake against a low


def _daily(plans: list[Plan], days: int):
    """Per day, dense (1440, N) tables: grams eaten, meal index, and grams to cover by a bolus."""
    meals = [[] for _ in range(days)]
    covers = [[] for _ in range(days)]
    for n, p in enumerate(plans):
        for j, (minute, grams) in enumerate(zip(p.meal_minutes, p.meal_grams)):
            if 0 <= minute < days * DAY:
                meals[minute // DAY].append((minute % DAY, n, grams, j))
        for minute, grams in zip(p.bolus_minutes, p.bolus_grams):
            if 0 <= minute < days * DAY:
                covers[minute // DAY].append((minute % DAY, n, grams))
    for day in range(days):
        grams, index, cover = np.zeros((DAY, len(plans))), np.full((DAY, len(plans)), -1), np.zeros((DAY, len(plans)))
        for minute, n, g, j in meals[day]:
            grams[minute, n], index[minute, n] = grams[minute, n] + g, j
        for minute, n, g in covers[day]:
            cover[minute, n] += g
        yield grams, index, cover


def simulate(people: list[Person], plans: list[Plan], days: int, seed: int) -> Record:
    """Simulate `days` days of everybody. The flux is constant over each minute, an exact Ornstein-Uhlenbeck sequence."""
    n = len(people)
    parameters, weight = np.array([p.parameters for p in people]), np.array([p.weight for p in people])
    basal = np.array([background(p, x.weight, days) for p, x in zip(plans, people)])
    mean = np.array([row.mean() for row in basal])
    settings = ("ratio", "factor", "rescue_grams", "bolus_step")
    ratio, factor, rescue, step = (np.array([getattr(p, a) for p in plans]) for a in settings)
    flux_rng, sensor_rng, choice_rng = ([stream(seed, p.index, s) for p in people] for s in (FLUX, SENSOR, CHOICES))
    sd = parameters[:, ph.FLUX_SD]
    decay = np.array([np.exp(-1.0 / x) for x in parameters[:, ph.FLUX_TAU]])
    kick = sd * np.sqrt(1 - decay**2)

    model, state = ph.Dynamics(parameters, mean), ph.basal_state(parameters, mean)
    flux = sd * np.array([r.standard_normal() for r in flux_rng])
    readings, interstitial = (np.empty((n, days * DAY // STEP)) for _ in range(2))
    boluses, intakes, meals = [], [], []
    last_bolus, last_rescue = np.full(n, -DAY), np.full(n, -DAY)
    spill = np.zeros((MEAL_MINUTES, n))  # what yesterday's last meals leave for today
    seen = state[8]
    for day, (grams, meal_index, cover) in enumerate(_daily(plans, days)):
        noise = np.array([r.standard_normal(DAY) for r in flux_rng]).T
        error = SENSOR_SD * np.array([r.standard_normal(DAY // STEP) for r in sensor_rng]).T
        chance = np.array([r.random(DAY // STEP) for r in choice_rng]).T
        insulin = np.ascontiguousarray(basal[:, day * DAY : (day + 1) * DAY].T)
        eating = np.zeros((DAY + MEAL_MINUTES, n))
        eating[:MEAL_MINUTES] = spill
        busy = cover.any(axis=1), grams.any(axis=1)
        for t in range(DAY):
            now, given, eaten = day * DAY + t, None, None
            if t % STEP == 0:
                k = now // STEP
                seen = np.clip(state[8] + error[t // STEP], *SENSOR_RANGE)
                readings[:, k], interstitial[:, k] = seen, state[8]
                low = (seen < 70) & (now - last_rescue >= 25) & (chance[t // STEP] < 0.8) & (grams[t] == 0)
                if low.any():
                    eaten = np.where(low, rescue, 0.0)
                    last_rescue[low] = now
                awake = 420 <= t < 1380
                high = (seen > 250) & (now - last_bolus >= 150) & (chance[t // STEP] < (0.4 if awake else 0.04))
                if high.any():
                    given = np.where(high, 0.7 * (seen - TARGET) / factor, 0.0)
            if busy[1][t]:
                eaten = grams[t] if eaten is None else eaten + grams[t]
            if busy[0][t]:
                adjust = (seen - TARGET) / factor
                adjust = np.where(now - last_bolus < 180, np.minimum(adjust, 0), 0.8 * adjust)
                meal_dose = np.where(cover[t] > 0, np.maximum(cover[t] / ratio + adjust, 0.0), 0.0)
                given = meal_dose if given is None else np.where(cover[t] > 0, meal_dose, given)
            u = insulin[t]
            if given is not None:
                given = np.round(np.floor(np.minimum(given, LARGEST_BOLUS) / step + 0.5) * step, 2)
                who = np.flatnonzero(given)
                last_bolus[who] = now
                boluses.append(np.stack([who, np.full(len(who), now), given[who]], axis=1))
                u = u + given * 1000 / weight
            if eaten is not None:
                who = np.flatnonzero(eaten)
                intakes.append(np.stack([who, np.full(len(who), now), eaten[who]], axis=1))
                meals.append(meal_index[t, who])
                eating[t : t + MEAL_MINUTES] += eaten * 1000 / weight / MEAL_MINUTES
            state = model.minute(state, u, eating[t], flux)
            flux = decay * flux + kick * noise[t]
        spill = eating[DAY:]
    none = [np.empty((0, 3))]
    return Record(readings, interstitial, np.concatenate(none + boluses), np.concatenate(none + intakes),
                  np.concatenate([np.empty(0, int)] + meals))
