"""Nights: what a whole refresh costs at several sizes, and what a night with 1 % of the patients changed costs against it.

    make bench NAME=nights                                                           # up to 1,000 patients, some five minutes on two cores
    PATIENTS="1000 10000 20000" INCREMENTAL=20000 make bench NAME=nights             # an hour
    WORK=light PATIENTS="1000 10000 100000" INCREMENTAL=0 make bench NAME=nights

WORK=light fits with fewer draws and simulates fewer scenarios, so that the largest sizes can be run on two cores at all; its figures stand in
nights-light.json, those of the product's defaults in nights.json. What earlier runs have measured at other sizes stays. Every night is a process of
its own. Faults injected and survived are those of the last runs of the fault suite in this folder (`pytest -m faults tests/faults`).
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
import yaml

from benchmarks.many import MAPPING, Clinic
from twinlib.tables.query import connect

REPO = Path(__file__).resolve().parents[1]
CORES = int(os.environ.get("TWINLIB_NIGHTS_CORES", "2"))
PATIENTS = [int(n) for n in os.environ.get("PATIENTS", "100 300 1000").split()]
INCREMENTAL = int(os.environ.get("INCREMENTAL", PATIENTS[-1]))
LIGHT = os.environ.get("WORK") == "light"
OUT = REPO / "out" / "benchmarks" / ("nights-light.json" if LIGHT else "nights.json")
DAYS, BASE, EVERY = 14, 100, 100  # every 100th patient changes
STAGES = ("fit", "simulate")
COHORTS = (10**4, 10**5, 10**6, 10**7)  # of the sizing guide


def configuration(folder: Path) -> Path:
    mapping, scenarios = folder / "clinic.yaml", yaml.safe_load((REPO / "conf" / "scenarios.yaml").read_text())
    mapping.write_text(MAPPING)
    if LIGHT:
        scenarios["scenarios"] = [s for s in scenarios["scenarios"] if s["name"] in ("as_is", "bolus_70", "basal_120")]
    (folder / "scenarios.yaml").write_text(yaml.safe_dump(scenarios))
    config = {
        "name": "bench", "output": str(folder), "seed": 1, "pseudonym_key": {"file": str(REPO / "conf" / "demo.key")},
        "storage": {"buckets": 16}, "sources": [{"mapping": str(mapping), "root": str(folder / "raw")}],
        "fit": {"importance_draws": 128, "draws": 16} if LIGHT else {},
        "simulate": {"scenarios": str(folder / "scenarios.yaml")},
        "spark": {"spark.master": f"local[{CORES},4]", "spark.driver.memory": "4g"},
        "alerts": {"quarantined_share": 1, "failed_fit_share": 1, "prior_drift": 1000},
    }
    path = folder / "run.yaml"
    path.write_text(yaml.safe_dump(config))
    return path


def night(path: Path) -> dict:
    """One run: seconds in all, seconds and metrics by stage."""
    began = time.monotonic()
    subprocess.run([sys.executable, str(REPO / "jobs" / "refresh.py"), "--config", str(path)], check=True, stdout=subprocess.DEVNULL)
    seconds = time.monotonic() - began
    rows = connect(path.parent).execute(
        "SELECT stage, seconds, metrics, counts FROM runs WHERE run_id = (SELECT arg_max(run_id, sequence) FROM runs)"
    ).fetchall()
    return {"seconds": seconds, "stages": {stage: {"seconds": s, **dict(metrics), **dict(counts)} for stage, s, metrics, counts in rows}}


def work(found: dict) -> float:
    """Seconds of fit and simulate."""
    return sum(found["stages"][s]["seconds"] for s in STAGES)


def incremental(patients: int, full: dict, some: dict) -> dict:
    """What the second night cost against the first."""
    task = [sum(x["stages"][s]["task_seconds"] for s in STAGES) for x in (some, full)]
    return {
        "incremental_patients": patients, "incremental_cost_ratio": work(some) / work(full), "incremental_task_ratio": task[0] / task[1],
        "incremental_job_ratio": some["seconds"] / full["seconds"], "incremental_seconds": some["seconds"],
        "incremental_episodes_fitted": some["stages"]["fit"]["episodes_fitted"], "stages_incremental": some["stages"],
    }  # fmt: skip


def faults() -> dict[str, int]:
    """Faults injected and survived, from what the fault suite has left."""
    path = REPO / "out" / "benchmarks" / "faults.json"
    found = [f for test in (json.loads(path.read_text()) if path.is_file() else {}).values() for f in test]
    return {"faults_injected": len(found), "faults_survived": sum(f["survived"] for f in found)} if found else {}


def sizing(full: dict[int, dict]) -> dict:
    """Seconds of a stage as a line over patients (least squares on relative errors), and core hours of whole nights along these lines.

    The part that does not grow is the driver's; the part that does, all cores share.
    """
    sizes = np.array(sorted(full), float)
    lines = {}
    for stage in full[int(sizes[0])]["stages"]:
        seconds = np.array([full[int(n)]["stages"][stage]["seconds"] for n in sizes])
        fixed, slope = np.linalg.lstsq(np.column_stack([1 / seconds, sizes / seconds]), np.ones(len(sizes)), rcond=None)[0]
        lines[stage] = {"fixed_seconds": float(max(fixed, 0.0)), "core_milliseconds_per_patient": float(1000 * slope * CORES)}
    per_patient = sum(s["core_milliseconds_per_patient"] for s in lines.values())
    return {"stages": lines, "core_hours_by_patients": {n: n * per_patient / 3.6e6 for n in COHORTS}}


def write(nights: dict[int, dict], again: dict) -> None:
    sizes = sorted(nights)
    first, last = sizes[0], sizes[-1]
    peak = {n: max(stage["peak_python_mb"] for stage in nights[n]["stages"].values()) / CORES for n in sizes}  # of all Python processes: the daemon's small share is in it
    result = {
        "work": "light" if LIGHT else "default", "cores": CORES, "days": DAYS, "seconds_by_patients": {n: nights[n]["seconds"] for n in sizes},
        "work_seconds_by_patients": {n: work(nights[n]) for n in sizes}, "peak_worker_mb_by_patients": peak, "peak_worker_mb": max(peak.values()),
        "work_per_patient_largest_over_smallest": work(nights[last]) / last / (work(nights[first]) / first), **again,
        "load_average": os.getloadavg()[1], "sizing": sizing(nights), **faults(), "nights": nights,
    }  # fmt: skip
    OUT.write_text(json.dumps(result, indent=1) + "\n")


def main() -> None:
    OUT.parent.mkdir(parents=True, exist_ok=True)
    earlier = json.loads(OUT.read_text()) if OUT.is_file() else {}
    nights = {int(n): found for n, found in earlier.get("nights", {}).items()}
    again = {k: v for k, v in earlier.items() if k.startswith(("incremental_", "stages_"))}
    with tempfile.TemporaryDirectory() as scratch:
        clinic = Clinic(Path(scratch) / "base", BASE, DAYS)
        for patients in PATIENTS:
            folder = Path(scratch) / str(patients)
            clinic.exposures(folder / "raw", patients)
            clinic.readings(folder / "raw", patients)
            path = configuration(folder)
            full = nights[patients] = night(path)
            print(f"{patients} patients: {full['seconds']:.0f} s, fit and simulate {work(full):.0f} s", file=sys.stderr)
            if patients == INCREMENTAL:
                clinic.readings(folder / "raw", patients, EVERY)
                again = incremental(patients, full, night(path))
            shutil.rmtree(folder)
            write(nights, again)
    print(OUT.read_text())


if __name__ == "__main__":
    main()
