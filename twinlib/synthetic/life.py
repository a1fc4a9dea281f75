"""Days of virtual people whose what-if truth is known, with what real life adds: a truth for twins that is not their own.

Dynamics: two glucose compartments, delayed suppression of glucose production and non-linear emptying of the stomach (Dalla Man 2007), written
out here once more, in plain NumPy, apart from the twin models. `Life` adds what no twin is told: insulin sensitivity that differs between days
and within a day, exercise, meals that are eaten but not logged, carbohydrate that is counted wrongly. The sensor's error has a memory.
A what-if lives through the same days again: same sensitivity, exercise, unlogged meals, unexplained flux and sensor error; other doses.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from scipy.signal import lfilter

from twinlib.synthetic.people import stream

DAY, STEP = 1440, 5
VI, CLEARANCE, TO_DEPOT_2, DIRECT = 0.126, 0.24, 0.0163, 0.206  # L/kg, 1/min, 1/min, share
BRAIN, MICHAELIS, RENAL_RATE, RENAL_THRESHOLD = 0.54, 126.0, 0.0005, 180.0  # mg/dL/min, mg/dL, 1/min, mg/dL
PACE = 5.0  # g/min eaten
LOW, RESCUE = 60.0, 15.0  # mg/dL on the sensor, g against it
TARGET, HIGH = 120.0, 160.0  # mg/dL; corrections aim at the one when above the other

# median and log-SD of the population (slowing and quickening share: of the odds)
POPULATION = {
    "insulin_sensitivity": (2.37e-3, 0.57), "production_sensitivity": (0.076, 0.6), "glucose_effectiveness": (0.0047, 0.6),
    "basal_glucose": (140.0, 0.12), "basal_uptake": (1.0, 0.32), "meal_gain": (0.487, 0.09), "plasma_to_tissue": (0.062, 0.3),
    "tissue_to_plasma": (0.107, 0.38), "production_rate": (0.0086, 0.5), "insulin_absorption_rate": (0.0175, 0.28),
    "insulin_action_rate": (0.039, 0.38), "gastric_emptying_rate": (0.036, 0.45), "slowest_emptying_rate": (0.0093, 0.5),
    "slowing_share": (0.79, 0.9), "quickening_share": (0.153, 0.38), "glucose_absorption_rate": (0.146, 1.0), "sensor_lag": (10.9, 0.25),
    "flux_sd": (0.1, 0.2), "flux_correlation_time": (60.0, 0.2), "sensor_sd": (11.0, 0.3), "sensor_correlation_time": (25.0, 0.3),
    "sensor_smoothing_time": (14.0, 0.3),
}
ODDS = ("slowing_share", "quickening_share")
_PURPOSES = range(20, 24)  # streams of random numbers: traits, meals, body, sensor; apart from those of `people`
# chance, mean and SD of the time (h) and of the amount (g)
_MEALS = ((0.95, 7.2, 0.8, 45, 10), (0.3, 9.7, 0.4, 12, 4), (0.95, 12.3, 0.8, 65, 12), (0.3, 15.2, 0.5, 12, 4), (0.95, 18.4, 0.8, 75, 14), (0.3, 21.3, 0.4, 12, 4))


@dataclass(frozen=True)
class Life:
    """What is not told. SDs on the log scale; chances per meal and per day."""

    between_days: float = 0.0  # SD of insulin sensitivity from day to day
    within_day: float = 0.0  # amplitude of its daily course (phase differs between people)
    unlogged: float = 0.0  # chance that a meal is eaten and not logged (with its bolus: half of them are)
    misestimated: float = 0.0  # SD of the carbohydrate count, in the log and in the bolus
    exercise: float = 0.0  # chance of exercise on a day: an hour, sensitivity up to twice for the rest of the day, and a direct uptake
    flux_times: float = 1.0  # the unexplained flux, times the population's


REAL = Life(between_days=0.15, within_day=0.25, unlogged=0.15, misestimated=0.25, exercise=0.3, flux_times=5.0)


@dataclass(frozen=True)
class Days:
    """Inputs per minute and person (n, minutes): eaten and logged carbohydrate as announced (g), bolus (U), rescues (bool: carbohydrate against a
    low); basal (n,) U/min.

    readings and truth (n, slots) mg/dL every 5 minutes; weight (n,) kg; parameters by name (n,).
    """

    eaten: np.ndarray
    logged: np.ndarray
    bolus: np.ndarray
    rescues: np.ndarray
    basal: np.ndarray
    weight: np.ndarray
    parameters: dict[str, np.ndarray]
    readings: np.ndarray
    truth: np.ndarray
    world: dict[str, np.ndarray]

    def arm(self, bolus: Callable = lambda x: x, basal: float = 1.0, eaten: float = 1.0) -> np.ndarray:
        """(n, slots) true glucose under other doses: `bolus` maps (n, minutes), factors for basal and for what is eaten of the logged meals."""
        food = np.where(self.logged > 0, eaten, 1.0) * self.eaten
        return _run(self.parameters, self.weight, self.world, food, self.basal, basal * self.basal, bolus(self.bolus))[0]


def draw(rng: np.random.Generator) -> tuple[dict[str, float], float]:
    """Parameters of one person by name, and the weight (kg)."""
    out = {}
    for name, (median, sd) in POPULATION.items():
        z = sd * rng.standard_normal()
        out[name] = 1 / (1 + (1 / median - 1) * np.exp(-z)) if name in ODDS else median * np.exp(z)
    return out, round(float(np.clip(rng.normal(70, 15), 40, 120)), 1)


def _meals(rng, days: int, life: Life) -> tuple[np.ndarray, ...]:
    """Per minute: grams that are eaten, logged, and meant by a bolus."""
    chance, hour, spread, grams, sd = (np.array(x) for x in zip(*_MEALS))
    shape = (days, len(_MEALS))
    at = (DAY * np.arange(days)[:, None] + np.clip(60 * rng.normal(hour, spread, shape), 0, DAY - 1)).astype(int)
    amount = np.where(rng.random(shape) < chance, np.maximum(np.round(rng.normal(grams, sd, shape)), 3), 0)
    count = np.round(amount * np.exp(life.misestimated * rng.standard_normal(shape) - life.misestimated**2 / 2))
    silent, dosed = rng.random(shape) < life.unlogged, rng.random(shape) < 0.5
    out = tuple(np.zeros(days * DAY) for _ in range(3))
    for minutes, g in zip(out, (amount, np.where(silent, 0, count), np.where(silent & ~dosed, 0, count))):
        np.add.at(minutes, at, g)
    return out


def _sensitivity(rng, days: int, life: Life) -> tuple[np.ndarray, np.ndarray]:
    """Per minute: the factor of insulin sensitivity, and the uptake of glucose by exercise (mg/dL/min)."""
    hours, phase = np.arange(days * DAY) / 60, rng.uniform(0, 2 * np.pi)
    factor = np.exp(life.within_day * np.sin(2 * np.pi * hours / 24 + phase))
    factor *= np.repeat(np.exp(life.between_days * rng.standard_normal(days)), DAY)
    uptake, sporty, hour = np.zeros(days * DAY), rng.random(days) < life.exercise, np.clip(rng.normal(17, 2, days), 6, 21)
    for day in np.flatnonzero(sporty):
        at = day * DAY + int(60 * hour[day])
        uptake[at : at + 60] += 1.0
        after = np.arange(days * DAY - at)
        factor[at:] *= 1 + np.exp(-after / 360) * (after < DAY)
    return factor, uptake


def _ou(rng, minutes: int, sd: float, tau: float) -> np.ndarray:
    """An Ornstein-Uhlenbeck process, every minute."""
    decay = np.exp(-1 / tau)
    z = rng.standard_normal(minutes) * sd * np.r_[1.0, np.full(minutes - 1, np.sqrt(1 - decay**2))]
    return lfilter([1.0], [1.0, -decay], z)


def _sensor(rng, minutes: int, sd: float, tau: float, smoothing: float) -> np.ndarray:
    """The sensor's slow error, every minute."""
    drift, keep = _ou(rng, minutes, sd * np.sqrt((tau + smoothing) / tau), tau), np.exp(-1 / smoothing)
    return lfilter([0.0, 1 - keep], [1.0, -keep], drift, zi=[sd * rng.standard_normal()])[0]


def live(people: Sequence[int], days: int, life: Life, seed: int) -> Days:
    """`days` days of some people under their usual care. Person i depends on `seed`, `days` and i alone."""
    n, minutes = len(people), days * DAY
    trait, meal, body, sensor = ([stream(seed, i, purpose) for i in people] for purpose in _PURPOSES)
    drawn = [draw(r) for r in trait]
    p, weight = {name: np.array([d[0][name] for d in drawn]) for name in POPULATION}, np.array([d[1] for d in drawn])
    z_ratio, z_factor, z_basal, z_first = np.array([r.standard_normal(4) for r in trait]).T
    per_unit = 1000 / weight / (VI * CLEARANCE)
    tissue = (p["plasma_to_tissue"] * p["basal_glucose"] - p["basal_uptake"]) / p["tissue_to_plasma"]
    effect = (p["insulin_sensitivity"] * np.maximum(tissue, 5) + p["production_sensitivity"]) * per_unit  # mg/dL per U, all in all
    ratio = effect / (p["meal_gain"] * 1000 / weight) * np.exp(0.15 * z_ratio)  # g/U
    factor = 0.5 * effect * np.exp(0.15 * z_factor)  # mg/dL per U
    basal = 0.225 * np.exp(0.25 * z_basal) * weight / 1000  # U/min
    eaten, logged, cover = (np.array(x) for x in zip(*[_meals(r, days, life) for r in meal]))
    sensitivity, uptake = (np.array(x) for x in zip(*[_sensitivity(r, days, life) for r in body]))
    flux = np.array([_ou(r, minutes, life.flux_times * sd, tau) for r, sd, tau in zip(body, p["flux_sd"], p["flux_correlation_time"])]) - uptake
    slow = (p["sensor_sd"], p["sensor_correlation_time"], p["sensor_smoothing_time"])
    error = np.array([_sensor(r, minutes, *which) for r, *which in zip(sensor, *slow)])
    white = 2.0 * np.array([r.standard_normal(minutes // STEP) for r in sensor])
    world = {"flux": flux, "sensitivity": sensitivity, "first": p["basal_glucose"] + 10 * z_first}
    bolus, rescues = np.zeros((n, minutes)), np.zeros((n, minutes), bool)

    def decide(t, glucose):
        seen = np.clip(glucose + error[:, t] + white[:, t // STEP], 40, 400)
        dose = cover[:, t : t + STEP].sum(1) / ratio
        dose = np.where(dose > 0, dose + np.where(seen > HIGH, (seen - TARGET) / factor, 0), 0)
        bolus[:, t] = np.round(np.minimum(dose, 40), 2)
        rescue = (seen < LOW) & (eaten[:, max(t - 30, 0) : t + STEP].sum(1) == 0)
        for food in (eaten, logged):
            food[rescue, t] += RESCUE
        rescues[:, t] = rescue

    truth = _run(p, weight, world, eaten, basal, basal, bolus, decide)[0]
    readings = np.clip(truth + error[:, ::STEP] + white, 40, 400)
    return Days(eaten, logged, bolus, rescues, basal, weight, p, readings, truth, world)


def _run(p, weight, world, eaten, basal, rate, bolus, decide=None) -> tuple[np.ndarray, np.ndarray]:
    """True interstitial and plasma glucose (n, slots). `basal` is the insulin at which the person is at rest, `rate` what is given (U/min)."""
    n, minutes = eaten.shape
    q = {k: v for k, v in p.items()}
    direct = DIRECT * q["insulin_absorption_rate"]
    tissue = np.maximum((q["plasma_to_tissue"] * q["basal_glucose"] - q["basal_uptake"]) / q["tissue_to_plasma"], 5)
    rest = basal * 1000 / weight / (VI * CLEARANCE)
    s1 = basal * 1000 / weight / VI / (TO_DEPOT_2 + direct)
    g = world["first"]
    zero = np.zeros(n)
    moved = 0.8 * q["plasma_to_tissue"] / q["tissue_to_plasma"] * (g - q["basal_glucose"])
    x = np.array([s1, TO_DEPOT_2 * s1 / q["insulin_absorption_rate"], rest, zero, zero, zero, zero, zero, zero, g, np.maximum(tissue + moved, 5), g])
    remembered = np.zeros(n)  # what left the stomach since the meal began
    plate, eating = np.zeros(n), np.zeros(n, bool)
    slow, quick, least, most = q["slowing_share"], q["quickening_share"], q["slowest_emptying_rate"], q["gastric_emptying_rate"]

    def f(x, dose, food, flux, factor, left):
        a, b, i, act, e1, e2, solid, liquid, gut, g, t, ig = x
        inside = solid + liquid
        share = inside / (inside + left + 1.0)
        empty = least + (most - least) / 2 * (np.tanh(2.5 / (1 - slow) * (share - slow)) - np.tanh(2.5 / quick * (share - quick)) + 2)
        made = q["basal_uptake"] + BRAIN - q["glucose_effectiveness"] * (g - q["basal_glucose"]) - factor * q["production_sensitivity"] * e2
        per = np.maximum(q["basal_uptake"] / tissue + factor * q["insulin_sensitivity"] * act, 0)
        exchange = q["plasma_to_tissue"] * g - q["tissue_to_plasma"] * t
        return np.array([
            dose / VI - (TO_DEPOT_2 + direct) * a, TO_DEPOT_2 * a - q["insulin_absorption_rate"] * b,
            direct * a + q["insulin_absorption_rate"] * b - CLEARANCE * i, q["insulin_action_rate"] * (i - rest - act),
            q["production_rate"] * (i - rest - e1), q["production_rate"] * (e1 - e2),
            food - most * solid, most * solid - empty * liquid, empty * liquid - q["glucose_absorption_rate"] * gut,
            np.maximum(made, 0) + q["meal_gain"] * q["glucose_absorption_rate"] * gut - BRAIN - exchange - RENAL_RATE * np.maximum(g - RENAL_THRESHOLD, 0) + flux,
            exchange - per * t * (MICHAELIS + tissue) / (MICHAELIS + t), (g - ig) / q["sensor_lag"],
        ]), empty * liquid

    interstitial, plasma = np.empty((n, minutes // STEP)), np.empty((n, minutes // STEP))
    for t in range(minutes):
        if t % STEP == 0:
            interstitial[:, t // STEP], plasma[:, t // STEP] = x[11], x[9]
            if decide is not None:
                decide(t, x[11])
        plate = plate + eaten[:, t]
        bite = np.minimum(plate, PACE)
        plate = plate - bite
        begins = (bite > 0) & ~eating
        remembered = np.where(begins, 0, remembered)
        eating = bite > 0
        dose, food = (rate + bolus[:, t]) * 1000 / weight, bite * 1000 / weight
        args = dose, food, world["flux"][:, t], world["sensitivity"][:, t], remembered
        k1, out1 = f(x, *args)
        k2, out2 = f(x + 0.5 * k1, *args)
        k3, out3 = f(x + 0.5 * k2, *args)
        k4, out4 = f(x + k3, *args)
        x = x + (k1 + 2 * (k2 + k3) + k4) / 6
        x[9:] = np.maximum(x[9:], 1.0)
        remembered = remembered + (out1 + 2 * (out2 + out3) + out4) / 6
    return interstitial, plasma
