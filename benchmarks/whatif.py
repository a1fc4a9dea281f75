"""What-ifs against a truth that the twin has not seen: make bench NAME=whatif [DATA=folder] [SIZE=small] [POWER=0.5] [PRIOR=published] -> out/benchmarks/whatif.json

DATA is a folder in the layout of simglucose_days: per patient a baseline and what-ifs of it, with noise-free glucose. The twin is fitted to the
baseline's sensor readings, insulin and announced meals alone, on the way of the fit stage, and asked for every other scenario found there.
All days of a patient are one episode. Figures by scenario are medians over patients, unless they say otherwise:

rmse: of the predicted level against noise-free glucose (mg/dL). shift_error: RMSE of the predicted shift over the RMS of the true shift.
shift_ratio: mean predicted over mean true shift. tir_error, tbr_error: absolute error of time in 70-180 and below 70 (points). coverage_90:
share of patients whose 90 % interval of the effect on mean glucose contains the true one.

The twins' prior is learnt from the readings of the patients themselves, as far as it concerns what is not told (PRIOR=published: the model's own): first
fits, the learn stage's estimate from their draws, second fits. The same for people of our own synthetic truth, as the twin's model has it (`model_right`) and with what real life adds (`life`); 60-minute
forecasts on real data; speed. Each part is written as soon as it is there.
"""

from __future__ import annotations

import dataclasses
import json
import os
import sys
import time
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

import numpy as np

from benchmarks import forecasts, simglucose, whatif_speed
from twinlib.config import FitConfig, LearnConfig
from twinlib.engine.kernel import Data, Kernel
from twinlib.engine.trace import trace
from twinlib.models import find
from twinlib.models.batch import Batch, Series
from twinlib.models.glucose_two_compartment import SIZES
from twinlib.models.timeline import Events
from twinlib.population import learn, recycled, settings
from twinlib.population.estimate import Estimate
from twinlib.population.fit import Fitter, Stopwatch
from twinlib.population.priors import Prior, published
from twinlib.synthetic import life
from twinlib.whatif.simulate import Replay

REPO = Path(__file__).resolve().parents[1]
SHARED = Path(os.environ.get("TWINLIB_DATA") or REPO.parent / "shared" / "data")
FOLDER = Path(os.environ.get("DATA") or SHARED / "simglucose_days")
SMALL = os.environ.get("SIZE") == "small"
MODEL, DRAWS, EVALUATED, MOVES, STARTS, SEED = "glucose_two_compartment", 64, 512, 100, 4, 1
POWER = float(os.environ.get("POWER", "1"))  # of the likelihood in posterior draws
LEARNED = os.environ.get("PRIOR", "learned") == "learned"
FIRST = {"starts": 1, "importance_draws": 256, "moves": 20}  # of the fits that the prior is learnt from
PEOPLE, DAYS = (4, 4) if SMALL else (int(os.environ.get("PEOPLE", "20")), 14)  # of our own simulation
LEVEL, SHIFT = ("rmse", "tir_error", "tbr_error"), ("shift_error", "shift_ratio")


@lru_cache(maxsize=4)
def fitter(model: str = MODEL) -> Fitter:
    """The fit stage's own fitter."""
    declared = find(model)
    how = FitConfig(model=model, maximum_iterations=200, starts=STARTS, draws=DRAWS, importance_draws=EVALUATED, moves=MOVES, power=POWER)
    return Fitter(Kernel(declared), published(declared), how, SEED)


@dataclass(frozen=True)
class Case:
    """One patient: the episode that the twin sees, its arms by scenario (the factual one first), and their true glucose (slots,)."""

    patient: str
    factual: Batch
    arms: dict[str, Batch]
    truth: dict[str, np.ndarray]


def _clean(kernel: Kernel, replay: Replay, data: Data) -> np.ndarray:
    """(draws, slots) the signal without the sensor's own error: the states that only the sensor has stay at zero."""
    noisy = [kernel.model.states[i].name for i in trace(kernel.model).noisy]
    patient = np.array([not n.startswith("sensor_") for n in noisy])
    lanes = np.zeros(len(replay.theta), int)
    return kernel.simulate(replay.theta, lanes, data, replay.noise * patient, replay.start * patient)[:, 0].reshape(len(lanes), -1)


def first(cases: Sequence[Case], model: str = MODEL) -> list[dict]:
    """Twins under the model's own prior, to learn from."""
    fit = fitter(model)
    fit = dataclasses.replace(fit, config=fit.config.model_copy(update=FIRST))
    return fit.fit(Batch.stack([c.factual for c in cases]), Stopwatch())


def learnt(rows: Sequence[dict], model: str = MODEL) -> Prior:
    """The prior that twins teach, of how much they are not told; the model's own counts as one patient."""
    fit = fitter(model)
    usable = [r | {"prior_version": fit.prior.version, "twin_reason": None} for r in rows if r["status"] == "converged"]
    n = len(usable)
    if n < 2:
        return fit.prior
    drawn = recycled.drawn(usable, [{}] * n, len(fit.model.fitted), {fit.prior.version: fit.prior})
    how = LearnConfig(source="twins", only=SIZES, prior_patients=1.0, tolerance=0.01)
    start, structure = settings.start(how, fit.model, (), False)

    def step(estimate: Estimate, information: bool, _: float) -> np.ndarray:
        return recycled.expect(drawn, np.zeros((n, 0)), estimate, structure, information).sums.sum(0)

    out = learn.run(step, start, structure, how.iterations, how.tolerance, belief=settings.belief(how, start))
    return Prior("learned", out.estimate.coefficients[0], out.estimate.omega) if out.status == "converged" else fit.prior


def judge(cases: Sequence[Case], model: str, prior: Prior) -> list[dict]:
    """Figures of some patients by scenario; those of a patient whose fit has failed are its status."""
    fit = dataclasses.replace(fitter(model), prior=prior)
    rows = fit.fit(Batch.stack([c.factual for c in cases]), Stopwatch())
    return [figures for case, row in zip(cases, rows) for figures in _judged(case, row, fit.kernel)]


def _judged(case: Case, row: dict, kernel: Kernel) -> list[dict]:
    if row["status"] != "converged":
        return [{"patient": case.patient, "scenario": s, "status": row["reason"] or row["status"]} for s in case.arms]
    draws = np.asarray(row["draws"]).reshape(-1, len(kernel.model.fitted))
    replay = Replay.abduct(kernel, case.factual, draws)
    lanes, names = np.zeros(len(draws), int), list(case.arms)
    unchanged, out = case.truth[names[0]], []
    implied = {agent: replay.batch.inputs[0][agent] for agent in kernel.model.implied}  # by what happened, in every arm
    for name, batch in case.arms.items():
        data = batch.with_inputs((batch.inputs[0] | implied,)).data(kernel.model, kernel.nominal_step, replay.data.constants)
        effect = kernel.simulate(draws, lanes, data, replay.noise, replay.start)[:, 0].reshape(len(draws), -1) - replay.factual
        level, true = np.maximum(_clean(kernel, replay, data), 10.0), case.truth[name] - unchanged
        (tir, tbr), (true_tir, true_tbr) = (np.array(ranges(x)).reshape(2, -1).mean(1) for x in (level, case.truth[name]))
        figures = {
            "patient": case.patient, "scenario": name, "status": "ok", "rmse": rms(level.mean(0) - case.truth[name]),
            "tir_error": abs(tir - true_tir), "tbr_error": abs(tbr - true_tbr),
        }
        if name != names[0]:
            low, high = np.quantile(effect.mean(1), [0.05, 0.95], method="weibull")
            figures |= {
                "shift_error": rms(effect.mean(0) - true) / rms(true), "shift_ratio": effect.mean() / true.mean(),
                "covered": bool(low <= true.mean() <= high), "width": (high - low) / abs(true.mean()), "effective_draws": row["effective_draws"],
            }
        out.append({k: float(v) if isinstance(v, np.floating) else v for k, v in figures.items()})
    return out


def ranges(glucose: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Percent of the time in 70-180 and below 70 mg/dL of traces (..., slots)."""
    return 100 * ((glucose >= 70) & (glucose <= 180)).mean(-1), 100 * (glucose < 70).mean(-1)


def rms(x: np.ndarray) -> float:
    return float(np.sqrt(np.mean(np.square(x))))


def summary(cells: list[dict]) -> dict:
    """The figures by scenario, and over all cells of all what-ifs."""
    out: dict = {}
    for name in dict.fromkeys(c["scenario"] for c in cells):
        out[name] = _figures([c for c in cells if c["scenario"] == name])
    changed = [c for c in cells if "shift_ratio" in c]
    return {"scenarios": out, "overall": _figures(changed)}


def _figures(cells: list[dict]) -> dict:
    usable = [c for c in cells if c["status"] == "ok"]
    out = {"patients": len(usable), "failed": len(cells) - len(usable)}
    median = lambda f, rows: float(np.median([c[f] for c in rows])) if rows else None  # noqa: E731
    shifted = [c for c in usable if "shift_ratio" in c]  # all but the scenario that changes nothing
    ratios = [c["shift_ratio"] for c in shifted]
    return out | {f: median(f, usable) for f in LEVEL} | {f: median(f, shifted) for f in SHIFT} | {
        "shift_ratio_worst_patient": min(ratios, default=None), "shift_ratio_highest_patient": max(ratios, default=None),
        "coverage_90": float(np.mean([c["covered"] for c in shifted])) if shifted else None, "interval_width": median("width", shifted),
    }


def simglucose_cases(folder: Path) -> list[Case]:
    """The patients of a folder; the scenario `baseline` is what the twin sees."""
    cases = []
    for name, (weight, rows) in simglucose.patients(folder).items():
        count = int((rows["scenario"] == "baseline").sum()) // 288
        parts = {s: rows[rows["scenario"] == s] for s in ["baseline", *(s for s in rows["scenario"].unique() if s != "baseline")]}
        arms = {s: simglucose.batch(weight, part, [(0, count)]) for s, part in parts.items()}
        cases.append(Case(name, arms["baseline"], arms, {s: p["bg_sub_true"].to_numpy()[: count * 288] for s, p in parts.items()}))
    return cases


def own_cases(how: life.Life, seed: int) -> list[Case]:
    """People of the synthetic truth, whose structure is the twin's, under doses that they did not give themselves."""
    days = life.live(range(PEOPLE), DAYS, how, seed)
    morning = np.isin(np.arange(days.bolus.shape[1]) % 1440 // 60, range(4, 11))
    edits = {
        "baseline": {}, "bolus_x0.7": {"bolus": lambda x: 0.7 * x}, "basal_x1.2": {"basal": 1.2}, "cho_x0.7_same_insulin": {"eaten": 0.7},
        "no_breakfast_bolus": {"bolus": lambda x: np.where(morning, 0, x)},
    }
    truth = {name: days.truth if not edit else days.arm(**edit) for name, edit in edits.items()}
    at = np.arange(days.readings.shape[1]) * 5.0
    cases = []
    for i in range(PEOPLE):
        def batch(bolus=lambda x: x, basal=1.0, eaten=1.0, i=i):
            events = lambda x: Events.of(np.flatnonzero(x), x[x > 0])  # noqa: E731
            inputs = {
                "insulin_bolus": events(bolus(days.bolus)[i]), "carbohydrate": events(eaten * days.logged[i]),
                "insulin_basal": Events.of([0.0], [basal * days.basal[i] * 1440 * DAYS], 1440.0 * DAYS),
            }
            return Batch(
                ((str(i), "all"),), np.array([1440.0 * DAYS]), ({"glucose": Series(at, days.readings[i])},), (inputs,),
                ({"body_weight": float(days.weight[i])},), np.zeros(1),
            )
        arms = {name: batch(**edit) for name, edit in edits.items()}
        cases.append(Case(str(i), arms["baseline"], arms, {name: t[i] for name, t in truth.items()}))
    return cases


def accuracy(cases: list[Case], model: str = MODEL, workers: int = 2) -> tuple[dict, list[dict]]:
    """Summary and cells of all cases."""
    fitter(model).kernel.compile()  # once, into the cache that the workers read
    parts = [cases[w::workers] for w in range(min(workers, len(cases)))]
    with ProcessPoolExecutor(workers) as pool:
        prior = learnt([r for part in pool.map(first, parts, [model] * len(parts)) for r in part], model) if LEARNED else fitter(model).prior
        cells = [c for part in pool.map(judge, parts, [model] * len(parts), [prior] * len(parts)) for c in part]
    order = {c.patient: n for n, c in enumerate(cases)}
    cells.sort(key=lambda c: order[c["patient"]])
    sizes = {q.name: (float(q.natural(prior.mean[j])), float(prior.sd[j])) for j, q in enumerate(fitter(model).model.fitted) if q.name in SIZES}
    return summary(cells) | {"prior": {"version": prior.version, "median_and_sd": sizes}}, cells


def main() -> None:
    began, result = time.monotonic(), {"data": FOLDER.name, "model": MODEL, "prior": "learned" if LEARNED else "published", "power": POWER, "size": "small" if SMALL else "full"}
    out = REPO / "out" / "benchmarks" / "whatif.json"
    out.parent.mkdir(parents=True, exist_ok=True)

    def add(what: str, figures: dict) -> None:
        result.update(figures)
        result["seconds"] = round(time.monotonic() - began, 1)
        out.write_text(json.dumps(result, indent=1) + "\n")
        print(f"{what}: {result['seconds']} s", file=sys.stderr)

    found, cells = accuracy(simglucose_cases(FOLDER)[: 1 if SMALL else None])
    add("patients of the other simulator", {**found["overall"], "learnt": found["prior"], "scenarios": found["scenarios"], "cells": cells})
    add("speed", whatif_speed.speed())
    for name, how in (("model_right", life.Life()), ("life", life.REAL)):
        add(name, {name: accuracy(own_cases(how, 7))[0]})
    real = SHARED / "t1d_uom_core"
    mode_only = dataclasses.replace(fitter(), config=fitter().config.model_copy(update={"starts": 1, "importance_draws": 40, "draws": 8, "moves": 0}))
    if real.is_dir():
        add("forecasts", {"forecasts_60_min": forecasts.forecasts(mode_only, real, forecasts.PEOPLE[: 1 if SMALL else None])})
    print(json.dumps({k: v for k, v in result.items() if k != "cells"}, indent=1))


if __name__ == "__main__":
    main()
