"""Speed of what-ifs: patient-days per second of one core, all outcomes included: make bench NAME=whatif_speed -> out/benchmarks/whatif_speed.json

A patient-day is one day of one patient under one scenario in one posterior draw, with its outcomes. CPU time of the thread, the best of a few
runs. docs/scenarios.md has the model of the projection. SIZE=small is for trying it out.
"""

from __future__ import annotations

import json
import os
import time
from pathlib import Path

import numpy as np
from scipy.integrate import solve_ivp

from benchmarks.cohorts import begin, rates
from twinlib.engine.kernel import Kernel
from twinlib.models import find
from twinlib.models.batch import Batch, Series
from twinlib.models.timeline import Events
from twinlib.whatif.cgm import cgm_outcomes
from twinlib.whatif.scenarios import Scenario, VERBS
from twinlib.whatif.simulate import Simulator

SMALL = os.environ.get("SIZE") == "small"
SIMGLUCOSE = 6.0  # s per patient-day of simglucose 0.2.11, measured (5.6-6.3)
WEIGHT = 70.0
DAYS, DRAWS = (2, 16) if SMALL else (14, 64)


def _scenario(name: str, *edits: dict) -> Scenario:
    return Scenario(name, "", tuple(VERBS[e["do"]].model_validate({k: v for k, v in e.items() if k != "do"}) for e in edits))


BOLUS, BASAL, CARBOHYDRATE = ("insulin_bolus",), ("insulin_basal",), ("carbohydrate",)
OPEN = tuple(
    _scenario(f"{what[0]}_{f}", {"do": "scale", "input": what, "factor": f}) for what in (BOLUS, BASAL) for f in (0.7, 0.8, 0.9, 1.1, 1.2)
)
CLOSED = (_scenario(
    "loop", {"do": "pid", "input": BASAL, "target": 120.0, "gain": 0.01}, {"do": "suspend", "input": BASAL},
    {"do": "treat", "input": CARBOHYDRATE, "amount": 15.0, "below": 70.0},
),)


def patient(days: int = DAYS) -> Batch:
    """Days of a person with pump and sensor."""
    rng, minutes = np.random.default_rng(1), np.arange(days * 288) * 5.0
    meals = np.concatenate([1440 * d + np.array([450.3, 765.0, 1125.7]) for d in range(days)])
    grams = rng.uniform(30, 70, len(meals))
    inputs = {
        "insulin_bolus": Events.of(meals - 10, grams / 10), "insulin_basal": Events.of(np.arange(4 * days) * 360.0, rng.uniform(4, 7, 4 * days), 360.0),
        "carbohydrate": Events.of(meals, grams),
    }
    readings = 150 + 30 * np.sin(minutes / 150) + rng.normal(0, 6, len(minutes))
    return Batch((("p", "e"),), np.array([1440.0 * days]), ({"glucose": Series(minutes, readings)},), (inputs,), ({"body_weight": WEIGHT},), np.zeros(1))


def _draws(model, count: int) -> np.ndarray:
    return model.prior_mean + 0.2 * model.prior_sd * np.random.default_rng(0).standard_normal((count, len(model.prior_mean)))


def per_second(model: str, scenarios: tuple[Scenario, ...], days: int, draws: int, repeats: int = 3) -> float:
    """Patient-days per second of one core, from timeline and draws to rows of `outcomes`."""
    kernel = Kernel(find(model))
    simulator, batch, theta = Simulator(kernel, scenarios), patient(days), _draws(kernel.model, draws)
    simulator.simulate(patient(1), 0, theta[:2])  # compiles
    best = np.inf
    for _ in range(repeats):
        began = time.thread_time()
        simulator.simulate(batch, 0, theta)
        best = min(best, time.thread_time() - began)
    return days * draws * len(scenarios) / best


def scipy_seconds(count: int = 2 if SMALL else 6) -> float:
    """Seconds per patient-day of the usual way: SciPy's LSODA on the same nine states, steps of at most 5 minutes (it would step over meals),
    and the same outcomes. It is given no flux, which would break its steps up further."""
    model, batch = find("glucose_insulin"), patient(1)
    theta, inputs, basal = np.exp(_draws(model, count)), batch.inputs[0], 1000 * batch.total("insulin_basal")[0] / 1440 / WEIGHT
    insulin, meal = np.zeros(1441), np.zeros(1441)
    for e in (inputs["insulin_basal"], inputs["insulin_bolus"]):
        for m, a, d in zip(e.minutes.astype(int), e.amounts * 1000 / WEIGHT, np.maximum(e.durations, 1).astype(int)):
            insulin[m : m + d] += a / d
    for m, a in zip(inputs["carbohydrate"].minutes.astype(int), inputs["carbohydrate"].amounts * 1000 / WEIGHT):
        meal[m : m + 15] += a / 15
    times = np.arange(288) * 5.0
    began = time.thread_time()
    for p in theta:
        f = lambda t, x, p=p: rates(x, insulin[int(t)], meal[int(t)], basal, p[:6])  # noqa: E731
        found = solve_ivp(f, (0, 1435), begin(basal, 150.0, p[:6]), "LSODA", t_eval=times, rtol=1e-6, atol=1e-6, max_step=5.0)
        cgm_outcomes(found.y[8])
    return (time.thread_time() - began) / count


def projection(rate: float, patients: int, days: int, scenarios: int, draws: int, cores: int, overhead: float = 0.5, efficiency: float = 0.8) -> dict:
    """Wall time on a cluster. Work = patient-days over `rate`, and the factual arm once per draw; what Spark adds per core-second of kernel
    (decoding, rows, Arrow) is `overhead`; `efficiency` of scaling over cores. docs/scenarios.md says where they come from."""
    core_seconds = patients * days * (scenarios + 1) * draws / rate * (1 + overhead)
    return {
        "patients": patients, "days": days, "scenarios": scenarios, "draws": draws, "cores": cores, "core_hours": core_seconds / 3600,
        "wall_minutes": core_seconds / cores / efficiency / 60,
    }


def speed() -> dict:
    """The figures of the issue: keys as in out/benchmarks/whatif.json, and what they rest on."""
    rate, baseline = per_second("glucose_insulin", OPEN, DAYS, DRAWS), scipy_seconds()
    closed = per_second("glucose_insulin", CLOSED, DAYS, DRAWS, 1)
    two = per_second("glucose_two_compartment", OPEN[:2], min(DAYS, 7), DRAWS, 1)
    return {
        "patient_days_per_second_per_core": rate,
        "patient_days_per_second_per_core_closed_loop": closed,
        "patient_days_per_second_per_core_two_compartment": two,
        "scipy_seconds_per_patient_day": baseline,
        "speedup_vs_simglucose": rate * SIMGLUCOSE,
        "speedup_vs_scipy": rate * baseline,
        "projection": projection(rate, 100_000, 14, 10, 64, 64),
        "projection_two_compartment": projection(two, 100_000, 14, 10, 64, 64),
    }


def main() -> None:
    result = speed()
    out = Path(__file__).resolve().parents[1] / "out" / "benchmarks" / "whatif_speed.json"
    out.parent.mkdir(parents=True, exist_ok=True)
    out.write_text(json.dumps(result, indent=1) + "\n")
    print(json.dumps(result, indent=1))


if __name__ == "__main__":
    main()
