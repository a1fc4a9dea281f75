"""Simulated patients for the benchmarks: plain NumPy, none of the engine's numerics, so that what it recovers is not its own.

The glucose twin's equations are written out again; the flux is an Ornstein-Uhlenbeck path sampled exactly every quarter of a minute.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from twinlib.engine.kernel import Data
from twinlib.engine.schedule import Drive, build

KD, KE, VI, VG, LAG, P2, F = 0.026, 0.127, 0.126, 1.45, 7.0, 0.012, 0.9
SENSOR_SD, START_SD = 5.0, 20.0
QUARTER = 0.25  # min


@dataclass(frozen=True)
class Day:
    """Truth and events of n patients over one day: theta (n, 8) natural parameters; basal (n,) mU/kg/min; first (n,) mg/dL; bolus and
    meal times (n, 3) min and amounts mU/kg, mg/kg; readings (n, 289) mg/dL every 5 minutes, the first at minute 0."""

    theta: np.ndarray
    basal: np.ndarray
    first: np.ndarray
    bolus_times: np.ndarray
    boluses: np.ndarray
    meal_times: np.ndarray
    meals: np.ndarray
    readings: np.ndarray


def rates(x, insulin, meal, basal, p, flux=0.0):
    """Right-hand side: x nine states, p the first six parameters; inputs mU/kg/min and mg/kg/min. Works for one patient or for many."""
    i1, i2, ip, action, q1, q2, qg, g, ig = x
    si, sg, gb, kempt, kabs, ka2 = p
    return [
        insulin / VI - KD * i1, KD * i1 - ka2 * i2, ka2 * i2 - KE * ip, P2 * (si * (ip - basal / VI / KE) - action),
        meal - kempt * q1, kempt * (q1 - q2), kempt * q2 - kabs * qg,
        sg * (gb - g) - action * g + F / VG * kabs * qg + flux, (g - ig) / LAG,
    ]


def begin(basal, first, p):
    """The nine states at the start."""
    zero = 0.0 * basal
    return [basal / VI / KD, basal / VI / p[5], basal / VI / KE, zero, zero, zero, zero, first, first]


def runge_kutta(f, x, h):
    """One step of order 4 of the states x (a list) under f(share of the step, x)."""
    k1 = f(0.0, x)
    k2 = f(0.5, [a + 0.5 * h * b for a, b in zip(x, k1)])
    k3 = f(0.5, [a + 0.5 * h * b for a, b in zip(x, k2)])
    k4 = f(1.0, [a + h * b for a, b in zip(x, k3)])
    return [a + h / 6 * (b + 2 * (c + d) + e) for a, b, c, d, e in zip(x, k1, k2, k3, k4)]


def day(theta: np.ndarray, seed: int, bolus: float = 1.0, infusion: float = 1.0, meal: float = 1.0) -> Day:
    """One day of each patient whose natural parameters are the rows of theta (n, 8), in the order of the model's declaration.

    bolus, infusion, meal: factors of what is given and eaten; all else, flux and sensor error included, stays the same.
    """
    rng = np.random.default_rng(seed)
    n = len(theta)
    p, sd, tau = theta.T[:6], theta.T[6], theta.T[7]
    basal = rng.uniform(0.17, 0.30, n)
    meal_times = np.round((np.array([7.5, 12.5, 19.0]) * 60 + rng.uniform(-45, 45, (n, 3))) * 4) / 4
    grams = rng.uniform(30, 80, (n, 3))
    bolus_times = meal_times - 10.0
    boluses = grams / 10 * rng.uniform(0.7, 1.3, (n, 3)) * 1000 / 70
    meals = grams * 1000 / 70
    first = rng.uniform(90, 180, n)  # what the twin is told of the start; the truth differs from it
    g = first + START_SD * rng.standard_normal(n)
    ig = first + START_SD * rng.standard_normal(n)
    d = sd * rng.standard_normal(n)
    x = [*begin(basal, first, p)[:7], g, ig]
    decay = np.exp(-QUARTER / tau)
    kick = sd * np.sqrt(1 - decay**2)

    readings = np.empty((n, 289))
    for step in range(1440 * 4 + 1):
        t = step * QUARTER
        if step % 20 == 0:
            readings[:, step // 20] = x[8] + SENSOR_SD * rng.standard_normal(n)
        for k in range(3):
            x[0] = x[0] + np.where(bolus_times[:, k] == t, bolus * boluses[:, k] / VI, 0.0)
        carbohydrate = meal * np.where((t >= meal_times) & (t < meal_times + 15), meals / 15, 0.0).sum(1)
        following = decay * d + kick * rng.standard_normal(n)
        flux = {0.0: d, 0.5: 0.5 * (d + following), 1.0: following}
        x = runge_kutta(lambda share, x: rates(x, infusion * basal, carbohydrate, basal, p, flux[share]), x, QUARTER)  # noqa: B023
        d = following
    return Day(theta, basal, first, bolus_times, boluses, meal_times, meals, readings)


def data(day: Day, nominal_step: float) -> Data:
    """What the engine is told of these patients: events, readings, background insulin and the first reading that it may assume."""
    slots, schedules = np.arange(day.readings.shape[1]) * 5.0, []
    end = slots[-1] + 1.0
    for i in range(len(day.theta)):
        insulin = Drive(np.r_[0.0, day.bolus_times[i]], np.r_[day.basal[i] * end, day.boluses[i]], np.r_[end, 0.0, 0.0, 0.0], 0.0)
        schedules.append(build(slots, [insulin, Drive(day.meal_times[i], day.meals[i], np.zeros(3), 15.0)], nominal_step))
    return Data.of(np.column_stack([day.basal, day.first]), schedules, list(day.readings[:, :, None]))
