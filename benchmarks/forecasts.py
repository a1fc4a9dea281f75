"""60-minute forecasts on real data: part of `make bench NAME=whatif`. T1D-UOM, four people with an insulin pump and a meal diary.

Training: the first 14 usable days (70 % of the readings, a bolus and a meal). Held out: the next 14. Every 15 minutes of a held-out day the twin has
seen the last 24 hours and is told insulin and meals as logged. Compared with a fitted autoregression (least squares of the reading an hour later on the
last twelve readings, training days only) and with persistence, at the same instants.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pandas as pd

from twinlib.models.batch import Batch, Series
from twinlib.models.glucose_two_compartment import UNLOGGED
from twinlib.models.implied import unlogged_meals
from twinlib.models.timeline import Events
from twinlib.population.fit import Fitter, Stopwatch

PEOPLE = ("2301", "2307", "2308", "2309")
MMOL, SLOT, DAY, AHEAD, LAGS = 18.016, 5, 1440, 60, 12
TRAIN = TEST = 14  # days
WEIGHT = 70.0  # kg; unknown


def _times(texts: pd.Series, begin) -> np.ndarray:
    return (pd.to_datetime(texts, format="%d/%m/%Y %H:%M") - begin).dt.total_seconds().to_numpy() / 60


def _table(path: Path, columns: list[str]) -> pd.DataFrame:
    """Rows with a time of day and a value."""
    rows = pd.read_csv(path, encoding="utf-8-sig", usecols=columns).dropna(subset=columns[:2])
    return rows[rows[columns[0]].str.contains(":")]


def person(folder: Path, name: str):
    """Glucose (mg/dL on a 5-minute grid, NaN = missing) and inputs as events, both from the midnight before the first reading."""
    glucose = _table(folder / "Glucose Data" / f"UoMGlucose{name}.csv", ["bg_ts", "value"])
    begin = pd.to_datetime(glucose["bg_ts"], format="%d/%m/%Y %H:%M").min().normalize()
    at = np.round(_times(glucose["bg_ts"], begin) / SLOT).astype(int)
    grid = np.full((at.max() // (DAY // SLOT) + 1) * (DAY // SLOT), np.nan)
    grid[at] = MMOL * glucose["value"].to_numpy()
    basal = _table(folder / "Insulin Data" / "Basal Data" / f"UoMBasal{name}.csv", ["basal_ts", "basal_dose", "insulin_kind"])
    rates = basal[basal["insulin_kind"] == "R"].groupby("basal_ts", sort=False)["basal_dose"].last().reset_index()
    t, dose = _times(rates["basal_ts"], begin), rates["basal_dose"].to_numpy()
    t, dose = t[np.argsort(t, kind="stable")], dose[np.argsort(t, kind="stable")]
    lasts = np.diff(np.r_[t, len(grid) * SLOT])
    keep = lasts > 0
    bolus = _table(folder / "Insulin Data" / "Bolus Data" / f"UoMBolus{name}.csv", ["bolus_ts", "bolus_dose"])
    meals = _table(folder / "Nutrition Data" / f"UoMNutrition{name}.csv", ["meal_ts", "carbs_g"])
    return grid, {
        "insulin_basal": Events.of(t[keep], dose[keep] * lasts[keep] / 60, lasts[keep]),
        "insulin_bolus": Events.of(_times(bolus["bolus_ts"], begin), bolus["bolus_dose"]),
        "carbohydrate": Events.of(_times(meals["meal_ts"], begin), meals["carbs_g"]),
    }


def usable(grid: np.ndarray, inputs: dict[str, Events]) -> np.ndarray:
    """Days with enough of everything."""
    days = len(grid) // (DAY // SLOT)
    has = lambda e: np.bincount((e.minutes[(e.amounts > 0) & (e.minutes >= 0)] // DAY).astype(int), minlength=days)[:days] > 0  # noqa: E731
    return np.flatnonzero(((~np.isnan(grid)).reshape(days, -1).mean(1) >= 0.7) & has(inputs["insulin_bolus"]) & has(inputs["carbohydrate"]))


def window(grid, inputs, first: int, last: int, hide: tuple[int, int] = (0, 0)) -> Batch:
    """Slots first..last as a batch of one row; readings of the slots of `hide` are missing. Events that reach in are cut at its begin."""
    y = grid[first:last].copy()
    y[hide[0] - first : hide[1] - first] = np.nan
    begin, end, cut = first * SLOT, last * SLOT, {}
    for name, e in inputs.items():
        a, b = np.maximum(e.minutes, begin), np.minimum(e.minutes + e.durations, end)
        inside = (e.minutes < end) & ((e.minutes >= begin) | (b > begin))
        share = np.where(e.durations > 0, (b - a) / np.where(e.durations > 0, e.durations, 1), 1.0)[inside]
        cut[name] = Events.of(a[inside] - begin, e.amounts[inside] * share, np.where(e.durations > 0, b - a, 0)[inside])
    series = {"glucose": Series(np.arange(len(y)) * float(SLOT), y)}
    return Batch((("x", f"{first}"),), np.array([float(len(y) * SLOT)]), (series,), (cut,), ({"body_weight": WEIGHT},), np.zeros(1))


def autoregression(grid: np.ndarray, train: np.ndarray, origins: np.ndarray) -> np.ndarray:
    """Forecasts of the reading AHEAD minutes after the origins; NaN where a lag is missing."""
    lags = lambda t: np.column_stack([np.ones(len(t)), *(grid[t - k] for k in range(LAGS))])  # noqa: E731
    per, h = DAY // SLOT, AHEAD // SLOT
    t = np.concatenate([np.arange(d * per, (d + 1) * per) for d in train])
    t = t[(t >= LAGS) & (t + h < len(grid))]
    x, y = lags(t), grid[t + h]
    ok = ~np.isnan(x).any(1) & ~np.isnan(y)
    return lags(origins) @ np.linalg.lstsq(x[ok], y[ok], rcond=None)[0]


def at_clock(theta: np.ndarray, names: Sequence[str], minutes: np.ndarray) -> np.ndarray:
    """(n, p) parameters for windows that begin so many minutes after midnight (n,): the twin takes its row's begin to be midnight."""
    angle, out = 2 * np.pi * minutes / DAY, np.tile(theta, (len(minutes), 1))
    i, j = names.index("sensitivity_cosine"), names.index("sensitivity_sine")
    out[:, i], out[:, j] = theta[i] * np.cos(angle) + theta[j] * np.sin(angle), theta[j] * np.cos(angle) - theta[i] * np.sin(angle)
    return out


def judge(fitter: Fitter, folder: Path, name: str) -> dict:
    """RMSE (mg/dL) of the three forecasts of one person, and the unexplained flux that was learnt."""
    grid, inputs = person(folder, name)
    days, per, h = usable(grid, inputs), DAY // SLOT, AHEAD // SLOT
    train, test = days[:TRAIN], days[TRAIN : TRAIN + TEST]
    kernel = fitter.kernel
    inputs = inputs | {UNLOGGED: unlogged_meals(inputs["insulin_bolus"], inputs["carbohydrate"])}  # by the whole log, which a window is too short for
    first, last = train[0], train[-1] + 1  # one episode, with whatever days lie in between
    fit = fitter.fit(window(grid, inputs, first * per, last * per), Stopwatch())[0]
    out = {"person": name, "status": fit["status"], "days_fitted": int(last - first)}
    if fit["status"] != "converged":
        return out
    theta = np.asarray(fit["mode"])
    origins = np.concatenate([np.arange(d * per, (d + 1) * per, 3) for d in test])
    origins = origins[(origins >= per) & (origins + h < len(grid))]
    regressed = autoregression(grid, train, origins)
    ok = ~np.isnan(regressed) & ~np.isnan(grid[origins + h])
    origins, regressed = origins[ok], regressed[ok]
    truth, predicted = grid[origins + h], np.empty(len(origins))
    constants = window(grid, inputs, first * per, last * per).data(kernel.model, kernel.nominal_step).constants
    for a in range(0, len(origins), 256):
        parts = [window(grid, inputs, t - per, t + h + 1, (t + 1, t + h + 1)) for t in origins[a : a + 256]]
        batch = Batch.stack(parts).completed(kernel.model)  # by what is known at the origin
        for part, y in zip(batch.signals, truth[a : a + 256]):
            part["glucose"].values[-1] = y
        begins = np.tile(constants, (len(parts), 1))
        begins[:, [c.name for c in kernel.model.constants].index("first_glucose")] = batch.first("glucose")
        data = batch.data(kernel.model, kernel.nominal_step, begins)
        begun = at_clock(theta, [q.name for q in kernel.model.fitted], (origins[a : a + 256] - per) * SLOT % DAY)
        e, _ = kernel.innovations(begun, np.arange(len(parts)), data)
        predicted[a : a + len(parts)] = truth[a : a + len(parts)] - e[data.slot_at[1:] - 1, 0]
    rmse = lambda x: float(np.sqrt(np.mean((x - truth) ** 2)))  # noqa: E731
    natural = dict(zip([q.name for q in kernel.model.fitted], kernel.model.fitted_natural(theta)))
    return out | {
        "origins": len(origins), "twin": rmse(predicted), "autoregression": rmse(regressed), "persistence": rmse(grid[origins]),
        "flux_sd": float(natural["flux_sd"]), "insulin_sensitivity": float(natural["insulin_sensitivity"]),
    }


def forecasts(fitter: Fitter, folder: Path, people: Sequence[str] = PEOPLE) -> list[dict]:
    fitter.kernel.compile()
    return [judge(fitter, folder, name) for name in people]
