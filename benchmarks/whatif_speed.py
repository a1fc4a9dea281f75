"""Speed of what-ifs: patient-days per second of one core, all outcomes included: make bench NAME=whatif_speed -> out/benchmarks/whatif_speed.json

A patient-day is one day of one patient under one scenario in one posterior draw, with its outcomes. CPU time of the thread, the best of a few
runs. The projection onto a cluster rests on the simulate stage in Spark and on what cores lose to each other. SIZE=small is for trying it out.
"""

from __future__ import annotations

import json
import os
import resource
import subprocess
import sys
import tempfile
import time
from concurrent.futures import ProcessPoolExecutor
from datetime import UTC, datetime
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from pyspark.sql.pandas.types import to_arrow_schema
from scipy.integrate import solve_ivp

from benchmarks.cohorts import begin, rates
from twinlib.engine.kernel import Kernel
from twinlib.models import find
from twinlib.models.batch import Batch, Series
from twinlib.models.timeline import Events
from twinlib.session import session
from twinlib.tables.schemas import TIMELINES
from twinlib.whatif.cgm import cgm_outcomes
from twinlib.whatif.scenarios import VERBS, Scenario
from twinlib.whatif.simulate import Simulator, simulate

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


def _timeline() -> pa.Table:
    """The patient as a row that the simulate stage reads."""
    model, batch = find("glucose_insulin"), patient()
    row = {f.name: None for f in TIMELINES.schema.fields} | {
        "patient_id": "p", "model": model.name, "episode": "e", "start": datetime(2026, 1, 5, tzinfo=UTC), "minutes": int(batch.minutes[0]),
        "step_minutes": 5, "utc_offset_minutes": 0, "wear_fraction": 1.0, "status": "ready", "content_hash": "0" * 16,
        "signals": [{"signal": "glucose", "minutes": None, "values": batch.signals[0]["glucose"].values.tolist()}],
        "inputs": [
            {"input": n, "minutes": e.minutes.tolist(), "amounts": e.amounts.tolist(), "durations": e.durations.tolist(), "labels": list(e.labels)}
            for n, e in batch.inputs[0].items()
        ],
        "covariates": [{"name": "body_weight", "value": WEIGHT, "assumed": False}],
    }
    table = pa.Table.from_pylist([row], schema=to_arrow_schema(TIMELINES.schema, timezone="UTC"))
    for name, value in (("twin_status", "converged"), ("twin_reason", None), ("work_hash", "x")):
        table = table.append_column(name, pa.array([value], pa.string()))
    return table.append_column("draws", pa.array([_draws(model, DRAWS).ravel().tolist()], pa.list_(pa.float64())))


def stage(patients: int) -> None:
    """Run the simulate stage on Spark in this process, Parquet to Parquet, and print the CPU seconds of the JVM and of its workers."""
    with tempfile.TemporaryDirectory() as folder:
        one = _timeline()
        pq.write_table(pa.concat_tables([one.set_column(0, "patient_id", pa.array([f"p{i}"])) for i in range(patients)]), f"{folder}/in.parquet")
        spark = session("speed", {"spark.master": f"local[{os.cpu_count()}]", "spark.sql.shuffle.partitions": 2, "spark.driver.memory": "2g"})
        simulator = Simulator(Kernel(find("glucose_insulin")), OPEN)
        simulate(spark.read.parquet(f"{folder}/in.parquet"), simulator, 16).write.parquet(f"{folder}/out.parquet")
        gateway = spark.sparkContext._gateway
        spark.stop()
        gateway.shutdown()
        gateway.proc.stdin.close()
        gateway.proc.wait(60)
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    print(used.ru_utime + used.ru_stime)


def stage_seconds() -> float:
    """CPU seconds per patient of the simulate stage on Spark with the ten open scenarios: the slope over the number of patients."""
    counts = (8, 24) if SMALL else (16, 96)
    run = lambda n: float(subprocess.run([sys.executable, "-m", "benchmarks.whatif_speed", str(n)], capture_output=True, text=True, check=True).stdout.split()[-1])  # noqa: E731
    few, many = map(run, counts)
    return (many - few) / (counts[1] - counts[0])


def scaling() -> dict:
    """What a core does when all of the machine's work at once, as a share of what one does alone: the same work in as many processes."""
    cores = os.cpu_count()
    with ProcessPoolExecutor(cores) as pool:
        alone = pool.submit(per_second, "glucose_insulin", OPEN, DAYS, DRAWS).result()
        together = list(pool.map(per_second, *zip(*[("glucose_insulin", OPEN, DAYS, DRAWS)] * cores)))
    return {"cores": cores, "efficiency": float(np.mean(together) / alone)}


MODEL_OF_PROJECTION = (
    "wall = patients * seconds per patient / cores / efficiency. Seconds per patient: CPU of the simulate stage on Spark (JVM, decoding, kernel, rows, "
    "Parquet), measured as the slope over the number of patients, scaled to the scenarios, days and draws. Efficiency: the measured share of its "
    "speed that a core keeps when all work at once. Patients are independent rows without a shuffle of results, so nothing else grows with the cores; "
    "start-up and the cores' waiting for the last tasks are not in it."
)


def projection(seconds: float, efficiency: float, patients: int = 100_000, cores: int = 64) -> dict:
    """Wall time on a cluster for DAYS days, the open scenarios and DRAWS draws, at so many core seconds per patient."""
    return {
        "patients": patients, "days": DAYS, "scenarios": len(OPEN), "draws": DRAWS, "cores": cores, "seconds_per_patient": seconds, "efficiency": efficiency,
        "core_hours": patients * seconds / 3600, "wall_minutes": patients * seconds / cores / efficiency / 60, "model": MODEL_OF_PROJECTION,
    }


def speed() -> dict:
    """The figures of the issue: keys as in out/benchmarks/whatif.json, and what they rest on."""
    rate, baseline = per_second("glucose_insulin", OPEN, DAYS, DRAWS), scipy_seconds()
    closed = per_second("glucose_insulin", CLOSED, DAYS, DRAWS, 1)
    two = per_second("glucose_two_compartment", OPEN, min(DAYS, 7), DRAWS, 1)
    in_spark, scaled, simulated = stage_seconds(), scaling(), DAYS * DRAWS * len(OPEN)
    return {
        "patient_days_per_second_per_core": rate,
        "patient_days_per_second_per_core_closed_loop": closed,
        "patient_days_per_second_per_core_two_compartment": two,
        "scipy_seconds_per_patient_day": baseline,
        "speedup_vs_simglucose": rate * SIMGLUCOSE,
        "speedup_vs_scipy": rate * baseline,
        "stage_seconds_per_patient": in_spark,
        "scaling": scaled,
        "projection": projection(in_spark, scaled["efficiency"]),
        "projection_two_compartment": projection(in_spark + simulated / two - simulated / rate, scaled["efficiency"]),
    }


def main() -> None:
    result = speed()
    out = Path(__file__).resolve().parents[1] / "out" / "benchmarks" / "whatif_speed.json"
    out.parent.mkdir(parents=True, exist_ok=True)
    out.write_text(json.dumps(result, indent=1) + "\n")
    print(json.dumps(result, indent=1))


if __name__ == "__main__":
    stage(int(sys.argv[1])) if sys.argv[1:] else main()
