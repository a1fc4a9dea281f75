"""The open-loop problem: nine states, six fitted parameters, one day with 288 readings, no process noise.

The twin model for the engine, the patients, and the usual way to fit one of them: SciPy's LSODA inside least_squares.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from scipy.integrate import solve_ivp
from scipy.optimize import least_squares

from benchmarks.cohorts import KD, KE, LAG, P2, VG, VI, F, begin, rates, runge_kutta
from twinlib.engine.contract import Constant, Input, Model, Parameter, Signal, State, additive, quantity
from twinlib.engine.kernel import Data
from twinlib.engine.schedule import Drive, build

SIGMA = 6.0
_KD, _KE, _P2 = (quantity(v, "1/min") for v in (KD, KE, P2))
_VI, _VG, _LAG = quantity(VI, "L/kg"), quantity(VG, "dL/kg"), quantity(LAG, "min")


class OpenLoop(Model):
    name, version = "open_loop", "1"
    states = (
        State("i1", "mU/L"), State("i2", "mU/L"), State("ip", "mU/L"), State("x", "1/min"), State("q1", "mg/kg"), State("q2", "mg/kg"),
        State("qg", "mg/kg"), State("g", "mg/dL"), State("ig", "mg/dL"),
    )
    parameters = tuple(Parameter(*p, "ReplayBG's form") for p in (
        ("si", "L/mU/min", 6e-4, 0.5), ("sg", "1/min", 0.018, 0.3), ("gb", "mg/dL", 120.0, 0.15), ("kempt", "1/min", 0.14, 0.3),
        ("kabs", "1/min", 0.014, 0.4), ("ka2", "1/min", 0.014, 0.3),
    ))
    inputs = (Input("insulin", "mU/kg/min", ("insulin",), "mU/kg", 1.0), Input("meal", "mg/kg/min", ("meal",), "mg/kg", 1.0))
    signals = (Signal("glucose", "mg/dL"),)
    constants = (Constant("basal", "mU/kg/min"), Constant("first", "mg/dL"))
    step = 1.0
    search_step = 5.0

    def dynamics(self, x, u, p, c):
        return {
            "i1": u.insulin / _VI - _KD * x.i1, "i2": _KD * x.i1 - p.ka2 * x.i2, "ip": p.ka2 * x.i2 - _KE * x.ip,
            "x": _P2 * (p.si * (x.ip - c.basal / (_VI * _KE)) - x.x),
            "q1": u.meal - p.kempt * x.q1, "q2": p.kempt * (x.q1 - x.q2), "qg": p.kempt * x.q2 - p.kabs * x.qg,
            "g": p.sg * (p.gb - x.g) - x.x * x.g + F / _VG * p.kabs * x.qg, "ig": (x.g - x.ig) / _LAG,
        }

    def initial(self, p, c):
        flow = c.basal / _VI
        return dict.fromkeys((s.name for s in self.states), 0) | {
            "i1": flow / _KD, "i2": flow / p.ka2, "ip": flow / _KE, "g": c.first, "ig": c.first,
        }

    def observe(self, x, p, c):
        return {"glucose": additive(x.ig, quantity(SIGMA, "mg/dL"))}


MODEL = OpenLoop()


@dataclass(frozen=True)
class Patients:
    """basal and first (n,); boluses (n, 4) mU/kg over 5 min and meals (n, 4) mg/kg over 15 min at their times (min); readings (n, 288)."""

    basal: np.ndarray
    first: np.ndarray
    bolus_times: np.ndarray
    boluses: np.ndarray
    meal_times: np.ndarray
    meals: np.ndarray
    readings: np.ndarray


def patients(n: int, seed: int) -> Patients:
    """Simulated by plain NumPy (Runge-Kutta, half a minute) with parameters drawn from the prior, cut at two SDs."""
    rng = np.random.default_rng(seed)
    theta = MODEL.prior_mean + MODEL.prior_sd * np.clip(rng.standard_normal((n, 6)), -2, 2)
    p = np.exp(theta.T)
    basal, first = rng.uniform(0.17, 0.30, n), rng.uniform(90, 180, n)
    meal_times = np.round((np.array([7.5, 12.5, 16.5, 19.5]) * 60 + rng.uniform(-45, 45, (n, 4))) / 5) * 5
    grams = np.array([50, 70, 25, 75]) * rng.uniform(0.6, 1.4, (n, 4))
    boluses, meals = grams / 10 * 1000 / 70 * rng.uniform(0.7, 1.3, (n, 4)), grams * 1000 / 70
    bolus_times = meal_times - np.array([0, 10, 10, 10])
    x, h, readings = begin(basal, first, p), 0.5, np.empty((n, 288))
    for k in range(2880):
        t = k * h
        inside = lambda times, length: ((t >= times) & (t < times + length))  # noqa: B023,E731
        insulin = basal + (inside(bolus_times, 5) * boluses / 5).sum(1)
        meal = (inside(meal_times, 15) * meals / 15).sum(1)
        x = runge_kutta(lambda _, x: rates(x, insulin, meal, basal, p), x, h)  # noqa: B023
        if k % 10 == 9:
            readings[:, k // 10] = x[8] + SIGMA * rng.standard_normal(n)
    return Patients(basal, first, bolus_times, boluses, meal_times, meals, readings)


def data(who: Patients, nominal_step: float) -> Data:
    """The patients as the engine reads them."""
    slots, schedules = np.arange(1, 289) * 5.0, []
    for i in range(len(who.basal)):
        insulin = Drive(np.r_[0.0, who.bolus_times[i]], np.r_[who.basal[i] * 1441, who.boluses[i]], np.r_[1441.0, 5.0, 5.0, 5.0, 5.0], 1.0)
        schedules.append(build(slots, [insulin, Drive(who.meal_times[i], who.meals[i], np.full(4, 15.0), 1.0)], nominal_step))
    return Data.of(np.column_stack([who.basal, who.first]), schedules, list(who.readings[:, :, None]))


def usual_fit(who: Patients, i: int, rtol: float = 1e-6, jac: str = "2-point", diff_step: float = 1e-3, tolerance: float = 1e-8):
    """The usual way, done with care: LSODA with steps of at most 5 minutes (it would step over meals), a difference step above its noise.

    Returns theta (6,) and its covariance.
    """
    insulin, meal = np.full(1440, who.basal[i]), np.zeros(1440)
    for t, a in zip(who.bolus_times[i].astype(int), who.boluses[i]):
        insulin[t : t + 5] += a / 5
    for t, a in zip(who.meal_times[i].astype(int), who.meals[i]):
        meal[t : t + 15] += a / 15
    times, y = np.arange(1, 289) * 5.0, who.readings[i]

    def residual(theta):
        p = np.exp(theta)

        def f(t, x):
            k = min(int(t), 1439)
            return rates(x, insulin[k], meal[k], who.basal[i], p)

        s = solve_ivp(f, (0, 1440), begin(who.basal[i], who.first[i], p), "LSODA", t_eval=times, rtol=rtol, atol=rtol, max_step=5.0)
        ig = s.y[8] if s.success else np.full(288, 1e3)
        return np.concatenate([(ig - y) / SIGMA, (theta - MODEL.prior_mean) / MODEL.prior_sd])

    r = least_squares(
        residual, MODEL.prior_mean, jac=jac, diff_step=diff_step, x_scale=MODEL.prior_sd, xtol=tolerance, ftol=tolerance, gtol=tolerance
    )
    return r.x, np.linalg.inv(r.jac.T @ r.jac)


def exact_fit(who: Patients, i: int):
    """A reference: every interval of constant input solved by DOP853 at 1e-10, central differences, tight tolerances."""
    edges = sorted({0.0, *(np.arange(1, 289) * 5.0), *who.bolus_times[i], *(who.bolus_times[i] + 5), *who.meal_times[i], *(who.meal_times[i] + 15)})
    edges = [t for t in edges if t <= 1440]

    def residual(theta):
        p, x, ig = np.exp(theta), None, {}
        x = begin(who.basal[i], who.first[i], p)
        for a, b in zip(edges, edges[1:]):
            insulin = who.basal[i] + (((who.bolus_times[i] <= a) & (a < who.bolus_times[i] + 5)) * who.boluses[i] / 5).sum()
            meal = (((who.meal_times[i] <= a) & (a < who.meal_times[i] + 15)) * who.meals[i] / 15).sum()
            x = solve_ivp(lambda t, x: rates(x, insulin, meal, who.basal[i], p), (a, b), x, "DOP853", rtol=1e-9, atol=1e-9).y[:, -1]  # noqa: B023
            ig[b] = x[8]
        modelled = np.array([ig[t] for t in np.arange(1, 289) * 5.0])
        return np.concatenate([(modelled - who.readings[i]) / SIGMA, (theta - MODEL.prior_mean) / MODEL.prior_sd])

    r = least_squares(residual, MODEL.prior_mean, jac="3-point", diff_step=1e-4, x_scale=MODEL.prior_sd, xtol=1e-12, ftol=1e-12, gtol=1e-12)
    return r.x, np.linalg.inv(r.jac.T @ r.jac)
