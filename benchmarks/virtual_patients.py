"""More days of the other simulator's virtual patients, in the layout of the shared ones: a tuning set and a test set for what-ifs.

Optional: needs an environment of its own with simglucose 0.2.11 (its patients' parameters, questionnaire and sensor noise), numba, SciPy.

    python -P benchmarks/virtual_patients.py OUT adult#007 adult#008 ...

The dynamics are simglucose's (UVA/Padova 2008, Dalla Man 2007) written out again and compiled (Runge-Kutta, half a minute); with the same
inputs its noise-free glucose is the package's own to 0.01 mg/dL. Meals begin at any minute of their row. Knows nothing of twinlib.
"""

from __future__ import annotations

import sys
import zlib
from pathlib import Path

import numpy as np
import pandas as pd
import simglucose
from numba import njit
from scipy.stats import truncnorm
from simglucose.sensor.noise_gen import CGMNoise

PARAMETERS = Path(simglucose.__file__).parent / "params"
NAMES = (
    "BW", "kabs", "kmax", "kmin", "b", "d", "Vg", "Vi", "Vmx", "Km0", "k2", "k1", "p2u", "m1", "m2", "m4", "m30", "ki", "kp1", "kp2", "kp3", "f",
    "ke1", "ke2", "Fsnc", "Vm0", "kd", "ksc", "ka1", "ka2", "Ib",
)
DAYS, EAT_RATE = 14, 5.0  # g/min
# probability, earliest, latest, mean and SD of the time (h), mean and SD of the amount (g): simglucose's RandomScenario
MEALS = (
    (0.95, 5, 9, 7, 1, 45, 10), (0.3, 9, 10, 9.5, 0.5, 10, 5), (0.95, 10, 14, 12, 1, 70, 10), (0.3, 14, 16, 15, 0.5, 10, 5),
    (0.95, 16, 20, 18, 1, 80, 10), (0.3, 20, 23, 21.5, 0.5, 10, 5),
)


@njit(cache=True)
def _rates(x, cho, insulin, dbar, p, dx):
    BW, kabs, kmax, kmin, b, d, Vg, Vi, Vmx, Km0, k2, k1, p2u, m1, m2, m4, m30, ki, kp1, kp2, kp3, f, ke1, ke2, Fsnc, Vm0, kd, ksc, ka1, ka2, Ib = p
    q = x[0] + x[1]
    kgut = kmax
    if dbar > 0:
        kgut = kmin + (kmax - kmin) / 2 * (np.tanh(5 / (2 * dbar * (1 - b)) * (q - b * dbar)) - np.tanh(5 / (2 * dbar * d) * (q - d * dbar)) + 2)
    dx[0] = cho * 1000 - kmax * x[0]
    dx[1] = kmax * x[0] - kgut * x[1]
    dx[2] = kgut * x[1] - kabs * x[2]
    dx[3] = max(kp1 - kp2 * x[3] - kp3 * x[8], 0.0) + f * kabs * x[2] / BW - Fsnc - ke1 * max(x[3] - ke2, 0.0) - k1 * x[3] + k2 * x[4]
    dx[4] = k1 * x[3] - k2 * x[4] - (Vm0 + Vmx * x[6]) * x[4] / (Km0 + x[4])
    dx[5] = m1 * x[9] + ka1 * x[10] + ka2 * x[11] - (m2 + m4) * x[5]
    dx[6] = p2u * (x[5] / Vi - Ib - x[6])
    dx[7] = ki * (x[5] / Vi - x[7])
    dx[8] = ki * (x[7] - x[8])
    dx[9] = m2 * x[5] - (m1 + m30) * x[9]
    dx[10] = insulin * 6000 / BW - (ka1 + kd) * x[10]
    dx[11] = kd * x[10] - ka2 * x[11]
    dx[12] = ksc * (x[3] - x[12])
    for j in range(13):
        if x[j] < 0 and j != 6 and j != 7 and j != 8:
            dx[j] = max(dx[j], 0.0)


@njit(cache=True)
def _minute(x, cho, insulin, dbar, p, k, y):
    h = 0.5
    for _ in range(2):
        _rates(x, cho, insulin, dbar, p, k[0])
        y[:] = x + h / 2 * k[0]
        _rates(y, cho, insulin, dbar, p, k[1])
        y[:] = x + h / 2 * k[1]
        _rates(y, cho, insulin, dbar, p, k[2])
        y[:] = x + h * k[2]
        _rates(y, cho, insulin, dbar, p, k[3])
        x += h / 6 * (k[0] + 2 * k[1] + 2 * k[2] + k[3])


@njit(cache=True)
def _live(x, cho, begins, bolus, basal, noise, ratio, factor, open_loop, p, seen, sub, plasma):
    """Rows of 5 minutes. cho, bolus and basal per minute over the row, a meal begins `begins` minutes into it; unless `open_loop`, a meal's bolus is worked out from the sensor."""
    k, y, planned, last, stomach, taken = np.empty((4, 13)), np.empty(13), 0.0, 0.0, 0.0, 0.0
    for t in range(len(cho)):
        sub[t], plasma[t] = x[12] / p[6], x[3] / p[6]
        seen[t] = min(max(sub[t] + noise[t], 39.0), 600.0)
        if not open_loop and cho[t] > 0:
            bolus[t] = (cho[t] * 5 / ratio + (max(seen[t] - 140, 0.0) / factor if seen[t] > 150 else 0.0)) / 5
        for minute in range(5):
            planned += 5 * cho[t] if minute == begins[t] else 0.0
            eaten = min(EAT_RATE, planned)
            planned -= eaten
            if eaten > 0 and last <= 0:
                stomach, taken = x[0] + x[1], 0.0
            if eaten > 0:
                taken += eaten
            last = eaten
            _minute(x, eaten, bolus[t] + basal[t], stomach + 1000 * taken, p, k, y)


def meals(rng: np.random.Generator) -> np.ndarray:
    """(rows,) announced carbohydrate, g/min over the row."""
    cho = np.zeros(DAYS * 288)
    for day in range(DAYS):
        for chance, low, high, mean, sd, grams, spread in MEALS:
            if rng.random() < chance:
                at = truncnorm.rvs((low - mean) / sd, (high - mean) / sd, mean, sd, random_state=rng)
                cho[day * 288 + int(at * 12)] = max(round(rng.normal(grams, spread)), 0) / 5
    return cho


def labels(amount: np.ndarray) -> np.ndarray:
    hour = np.arange(len(amount)) // 12 % 24
    name = np.select([hour < 4, hour < 9, hour < 10, hour < 14, hour < 16, hour < 20], ["S", "B", "S", "L", "S", "D"], "S")
    return np.where(amount > 0, name, "")


def run(patient: pd.Series, cho, begins, bolus, basal, noise, open_loop: bool) -> tuple[np.ndarray, ...]:
    """Sensor, noise-free subcutaneous and plasma glucose (rows,) of mg/dL; fills `bolus` unless `open_loop`."""
    seen, sub, plasma = (np.empty(len(cho)) for _ in range(3))
    x = patient.iloc[2:15].to_numpy(float).copy()
    p = tuple(float(patient[n]) for n in NAMES)
    _live(x, cho, begins, bolus, basal, noise, float(patient["CR"]), float(patient["CF"]), open_loop, p, seen, sub, plasma)
    return seen, sub, plasma


def arms(cho, bolus, basal):
    """What-ifs on the baseline's inputs: name -> cho, bolus, basal."""
    hour = np.arange(len(cho)) // 12 % 24
    breakfast = (hour >= 4) & (hour < 9)
    return {
        "bolus_x0.7": (cho, 0.7 * bolus, basal), "basal_x1.2": (cho, bolus, 1.2 * basal), "cho_x0.7_same_insulin": (0.7 * cho, bolus, basal),
        "no_breakfast_bolus": (cho, np.where(breakfast, 0, bolus), basal), "bolus_x1.2": (cho, 1.2 * bolus, basal),
        "basal_x0.8": (cho, bolus, 0.8 * basal), "bolus_30_min_late": (cho, np.r_[np.zeros(6), bolus[:-6]], basal),
        "cho_x1.3_same_insulin": (1.3 * cho, bolus, basal),
    }


def main(out: Path, names: list[str]) -> None:
    table = pd.read_csv(PARAMETERS / "vpatient_params.csv").merge(pd.read_csv(PARAMETERS / "Quest.csv"), on="Name")
    sensor = pd.read_csv(PARAMETERS / "sensor_params.csv").set_index("Name").loc["GuardianRT"]
    out.mkdir(parents=True, exist_ok=True)
    table[table["Name"].isin(names)].to_csv(out / "patients_true_params.csv", index=False)
    for name in names:
        patient, seed = table[table["Name"] == name].squeeze(), zlib.crc32(name.encode())
        rng = np.random.default_rng(seed)
        cho, begins = meals(rng), rng.integers(0, 5, DAYS * 288)
        noise = np.array([e for e, _ in zip(CGMNoise(sensor, seed=seed % 2**31), range(DAYS * 288))])
        basal, bolus = np.full(len(cho), patient["u2ss"] * patient["BW"] / 6000), np.zeros(len(cho))
        frames = []
        for scenario in ("baseline", *arms(cho, bolus, basal)):
            inputs = (cho, bolus, basal) if scenario == "baseline" else arms(cho, bolus, basal)[scenario]
            c, b, r = inputs
            seen, sub, plasma = run(patient, c, begins, b, r, noise, scenario != "baseline")
            frames.append(pd.DataFrame({
                "patient": name, "scenario": scenario, "t": pd.Timestamp("2026-01-01") + pd.to_timedelta(5 * np.arange(len(c)), "min"),
                "glucose": seen.round(2), "bg_sub_true": sub.round(4), "bg_plasma_true": plasma.round(4), "cho": c, "bolus": b, "basal": r,
                "cho_label": labels(c), "bolus_label": labels(b),
            }))
        pd.concat(frames).to_csv(out / f"{name.replace('#', '_')}.csv.gz", index=False)


if __name__ == "__main__":
    main(Path(sys.argv[1]), sys.argv[2:])
