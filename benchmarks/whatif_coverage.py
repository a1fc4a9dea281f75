"""Do the intervals of effects hold the truth where the model is right? make bench NAME=whatif_coverage -> out/benchmarks/whatif_coverage.json

Patients drawn from the prior live one day in plain NumPy (`cohorts`), once as they do and once under each scenario with the same flux and sensor error.
The twin sees the first only. A cell is a patient and a scenario. SIZE=small is for trying it out.
"""

from __future__ import annotations

import json
import os
from pathlib import Path

import numpy as np

from benchmarks import cohorts
from twinlib.config import FitConfig
from twinlib.engine.kernel import Kernel
from twinlib.models import find
from twinlib.models.batch import Batch, Series
from twinlib.models.timeline import Events
from twinlib.population.fit import Fitter, Stopwatch
from twinlib.population.priors import published
from twinlib.whatif.cgm import OUTCOMES, cgm_outcomes
from twinlib.whatif.scenarios import VERBS, Scenario
from twinlib.whatif.simulate import Simulator

PATIENTS = 32 if os.environ.get("SIZE") == "small" else 300
WEIGHT, LENGTH = 70.0, 1441.0
SCENARIOS = {  # name: (input, factor, factor of the truth)
    "bolus_70": ("insulin_bolus", 0.7, {"bolus": 0.7}), "bolus_120": ("insulin_bolus", 1.2, {"bolus": 1.2}),
    "basal_120": ("insulin_basal", 1.2, {"infusion": 1.2}), "carbohydrate_70": ("carbohydrate", 0.7, {"meal": 0.7}),
}
JUDGED = ("mean_glucose", "tir", "tbr_70")


def batch(day: cohorts.Day) -> Batch:
    """What the twins are told of a day."""
    at, kg = np.arange(day.readings.shape[1]) * 5.0, WEIGHT / 1000
    inputs = tuple(
        {
            "insulin_bolus": Events.of(day.bolus_times[i], day.boluses[i] * kg), "insulin_basal": Events.of([0.0], [day.basal[i] * LENGTH * kg], LENGTH),
            "carbohydrate": Events.of(day.meal_times[i], day.meals[i] * kg),
        }
        for i in range(len(day.theta))
    )
    n = len(inputs)
    signals = tuple({"glucose": Series(at, y)} for y in np.clip(day.readings, 40.0, 400.0))
    return Batch(tuple((f"p{i}", "e") for i in range(n)), np.full(n, LENGTH), signals, inputs, ({"body_weight": WEIGHT},) * n, np.zeros(n))


def coverage(patients: int = PATIENTS, seed: int = 3) -> dict:
    """Share of cells whose 90 % interval holds the true effect, by scenario and outcome; the error of the posterior mean, and its bias, relative
    to the true effects' root mean square."""
    model = find("glucose_insulin")
    fitter = Fitter(Kernel(model), published(model), FitConfig(draws=64), seed)
    theta = model.natural(model.prior_mean + model.prior_sd * np.random.default_rng(seed).standard_normal((patients, len(model.prior_mean))))
    lived = cohorts.day(theta, seed)
    told = batch(lived)
    fits = fitter.fit(told, Stopwatch())
    simulator = Simulator(fitter.kernel, tuple(
        Scenario(name, "", (VERBS["scale"].model_validate({"input": (i,), "factor": f}),)) for name, (i, f, _) in SCENARIOS.items()
    ))
    good = [i for i, f in enumerate(fits) if f["status"] == "converged"]
    rows = [simulator.simulate(told, i, np.array(fits[i]["draws"]).reshape(-1, len(model.fitted))) for i in good]
    # the twin's counterfactual trace is cut at 20 mg/dL and is not cut by the sensor's limits: so is the truth's
    factual = cgm_outcomes(np.clip(lived.readings, 40.0, 400.0))
    out: dict = {"patients": len(good), "scenarios": {}}
    for s, (name, (_, _, change)) in enumerate(SCENARIOS.items()):
        shifted = np.maximum(np.clip(lived.readings, 40.0, 400.0) + cohorts.day(theta, seed, **change).readings - lived.readings, 20.0)
        truth, found = cgm_outcomes(shifted) - factual, {}
        for outcome in JUDGED:
            j = [o.name for o in OUTCOMES].index(outcome)
            cells = [r[s][j] for r in rows]
            true = truth[good, j]
            low, high, mean = (np.array([c[k] for c in cells], dtype=float) for k in ("effect_q05", "effect_q95", "effect_mean"))
            scale = np.sqrt(np.mean(true**2))
            found[outcome] = {
                "coverage_90": float(np.mean((low <= true + 1e-9) & (true <= high + 1e-9))), "relative_error": float(np.sqrt(np.mean((mean - true) ** 2)) / scale),
                "relative_bias": float(np.mean(mean - true) / scale), "median_width": float(np.median(high - low)),
            }
        out["scenarios"][name] = found
    out["coverage_90"] = {o: float(np.mean([s[o]["coverage_90"] for s in out["scenarios"].values()])) for o in JUDGED}
    return out


def main() -> None:
    result = coverage()
    out = Path(__file__).resolve().parents[1] / "out" / "benchmarks" / "whatif_coverage.json"
    out.parent.mkdir(parents=True, exist_ok=True)
    out.write_text(json.dumps(result, indent=1) + "\n")
    print(json.dumps(result, indent=1))


if __name__ == "__main__":
    main()
