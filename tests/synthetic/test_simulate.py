"""The simulated physiology against SciPy, and the population against its stated distribution."""

from datetime import date

import numpy as np
import pytest
from scipy.integrate import solve_ivp
from scipy.linalg import expm, solve_discrete_lyapunov

from twinlib.synthetic import physiology
from twinlib.synthetic.generate import cohort
from twinlib.synthetic.people import Person, person
from twinlib.synthetic.simulate import simulate
from twinlib.synthetic.therapy import Plan

START = date(2026, 1, 5)


def quiet(people: list[Person]) -> list[Person]:
    """The same people without unexplained flux."""
    for p in people:
        p.parameters[physiology.FLUX_SD] = 0.0
    return people


def reference(p: dict, weight: float, long_acting, rates, boluses, meals, days: int) -> np.ndarray:
    """Interstitial glucose every 5 minutes by DOP853 from the events alone, written out from the published equations."""
    minutes = days * 1440
    basal = np.zeros(minutes)
    for start, rate in rates:  # U/h, until the next one
        basal[start:] = rate * 1000 / 60 / weight
    for start, units in long_acting:
        basal[max(start, 0) : start + 1440] += units * 1000 / 1440 / weight
    insulin, carbohydrate = basal.copy(), np.zeros(minutes)
    for start, units in boluses:
        insulin[start] += units * 1000 / weight
    for start, grams in meals:
        carbohydrate[start : start + 15] += grams * 1000 / 15 / weight
    kd, ke, vi, vg, alpha, p2, f = 0.026, 0.127, 0.126, 1.45, 7.0, 0.012, 0.9
    si, sg, gb = p["insulin_sensitivity"], p["glucose_effectiveness"], p["basal_glucose"]
    kempt, kabs, ka2 = p["gastric_emptying_rate"], p["glucose_absorption_rate"], p["insulin_absorption_rate"]
    ib = basal.mean()

    def rates_of_change(t, y, u, c):
        return [
            u / vi - kd * y[0], kd * y[0] - ka2 * y[1], ka2 * y[1] - ke * y[2], p2 * (si * (y[2] - ib / vi / ke) - y[3]),
            c - kempt * y[4], kempt * (y[4] - y[5]), kempt * y[5] - kabs * y[6],
            sg * (gb - y[7]) - y[3] * y[7] + f * kabs / vg * y[6], (y[7] - y[8]) / alpha,
        ]

    y = np.array([ib / vi / kd, ib / vi / ka2, ib / vi / ke, 0, 0, 0, 0, gb, gb])
    changes = np.flatnonzero(np.diff(insulin) != 0) + 1, np.flatnonzero(np.diff(carbohydrate) != 0) + 1
    cuts = np.unique(np.concatenate([[0, minutes], *changes]))
    out = np.full(minutes // 5, np.nan)
    out[0] = y[8]
    for a, b in zip(cuts[:-1], cuts[1:]):
        at = [t for t in range(a + 1, b + 1) if t % 5 == 0]
        run = solve_ivp(rates_of_change, (a, b), y, "DOP853", sorted({*at, b}), args=(insulin[a], carbohydrate[a]),
                        rtol=1e-9, atol=1e-9)
        y = run.y[:, -1]
        for t, value in zip(at, run.y[8]):
            if t < minutes:
                out[t // 5] = value
    return out


@pytest.mark.parametrize("pump", [True, False])
def test_dynamics_agree_with_an_adaptive_solver(pump):
    days = 2
    people, plans = cohort(3, range(60), START, days)
    k = next(k for k, p in enumerate(people) if p.pump == pump)
    record = simulate(quiet([people[k]]), [plans[k]], days, 3)
    events = lambda a: [(int(m), float(x)) for _, m, x in a]  # noqa: E731
    rates = [(day * 1440 + m, r) for day in range(days) for m, r in plans[k].rates]
    long_acting = [(int(m), u) for m, u in zip(plans[k].long_minutes, plans[k].long_units) if -1440 < m < days * 1440]
    parameters = dict(zip([p.name for p in physiology.PARAMETERS], people[k].parameters))
    assert len(record.bolus) > 2 and len(record.intake) > 2 and bool(rates) == pump and bool(long_acting) != pump
    expected = reference(parameters, people[k].weight, long_acting, rates, events(record.bolus), events(record.intake), days)
    assert np.ptp(expected) > 30
    assert np.abs(record.interstitial[0] - expected).max() < 0.01


def test_parameters_have_the_stated_distribution():
    drawn = np.log([person(11, i, START).parameters for i in range(4000)])
    medians, sds = np.log([p.median for p in physiology.PARAMETERS]), np.array([p.log_sd for p in physiology.PARAMETERS])
    assert np.abs((drawn.mean(axis=0) - medians) / (sds / np.sqrt(4000))).max() < 4
    assert np.abs(drawn.std(axis=0) / sds - 1).max() < 4 / np.sqrt(2 * 4000)
    correlation = np.corrcoef(drawn.T) - np.eye(len(sds))
    assert np.abs(correlation).max() < 5 / np.sqrt(4000)


def test_flux_and_sensor_noise_have_the_stated_moments():
    """Sensor error is white with SD 5; the flux adds the variance that its correlation function implies."""
    people, plans = cohort(7, range(80), START, 3)
    noisy = simulate(people, plans, 3, 7)
    error = noisy.readings - noisy.interstitial
    inside = (noisy.interstitial > 70) & (noisy.interstitial < 370)
    assert abs(error[inside].std() - 5) < 0.1 and abs(error[inside].mean()) < 0.1
    following = error[:, 1:], error[:, :-1], inside[:, 1:] & inside[:, :-1]
    assert abs(np.corrcoef(following[0][following[2]], following[1][following[2]])[0, 1]) < 0.03

    # with no insulin action and no meals, glucose is linear in the flux, so its variance solves a Lyapunov equation
    sg, sd, tau, days = 0.02, 0.6, 40.0, 12
    for p in people:
        p.parameters[:] = [1e-12, sg, 150.0, 0.14, 0.012, 0.014, sd, tau]
    none = np.array([])
    idle = Plan(((0, 0.5),), none, none, none.astype(int), none, (), none.astype(int), none, 10.0, 1e12, 0.0, 0.01)
    record = simulate(people, [idle] * len(people), days, 7)
    assert len(record.bolus) == 0 and len(record.intake) == 0
    decay = np.exp(-1 / tau)
    minute = expm(np.array([[-sg, 0, 1], [1 / 7, -1 / 7, 0], [0, 0, 0]]))  # glucose, interstitial, flux held over the minute
    minute[2, 2] = decay
    variance = solve_discrete_lyapunov(minute, np.diag([0, 0, sd**2 * (1 - decay**2)]))[1, 1]
    settled = record.interstitial[:, 288:] - 150.0
    assert abs(np.mean(settled**2) / variance - 1) < 0.05


def test_control_is_that_of_people_in_treatment():
    people, plans = cohort(1, range(150), START, 7)
    g = simulate(people, plans, 7, 1).readings
    assert ((g > 40) & (g < 350)).mean() > 0.98
    assert 0.65 < ((g >= 70) & (g <= 180)).mean() < 0.92
    assert 115 < np.median(g.mean(axis=1)) < 160
    assert (g.min(axis=1) < 70).mean() > 0.5 and (g.max(axis=1) > 220).mean() > 0.5


def test_people_do_not_depend_on_each_other():
    few = simulate(*cohort(5, range(3, 8), START, 2), 2, 5)
    many = simulate(*cohort(5, range(0, 40), START, 2), 2, 5)
    assert np.array_equal(few.readings, many.readings[3:8])
    for name in ("bolus", "intake"):
        a, b = getattr(few, name), getattr(many, name)
        b = b[(b[:, 0] >= 3) & (b[:, 0] < 8)] - [3, 0, 0]
        assert np.array_equal(a, b)
    other = simulate(*cohort(6, range(3, 8), START, 2), 2, 6)
    assert not np.array_equal(few.readings, other.readings)
