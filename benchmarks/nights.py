"""Nights: what a whole refresh costs at several sizes, and what a night with 1 % of the patients changed costs against it.

    make bench NAME=nights              # up to 1,000 patients, about ten minutes on two cores
    make bench NAME=nights SIZE=full    # up to 100,000, and the 1 % at 20,000: most of a day
    SIZE=small make bench NAME=nights   # for trying it out

A cohort of any size is 100 synthetic patients under many names: files are linked, so every patient is read, fitted and simulated for
itself (random numbers are keyed by patient), and only the raw files' blocks are shared. Every night is a process of its own. Faults injected and
survived are those of the last runs of the fault suite in this folder (`pytest -m faults tests/faults`).
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

from twinlib.config import GenerateConfig
from twinlib.synthetic import generate
from twinlib.tables.query import connect

REPO = Path(__file__).resolve().parents[1]
CORES = int(os.environ.get("TWINLIB_NIGHTS_CORES", "2"))
SIZES, INCREMENTAL = {
    "small": ((50, 100), 100), "default": ((100, 300, 1000), 1000), "full": ((1000, 10_000, 20_000, 100_000), 20_000),
}[os.environ.get("SIZE", "default")]
DAYS, BASE, SHARE = 14, 100, 100  # every 100th patient changes
WORK = ("fit", "simulate")
COHORTS = (10**4, 10**5, 10**6, 10**7)  # of the sizing guide


def multiply(base: Path, raw: Path, patients: int) -> list[Path]:
    """Raw files of `patients` people: those of `base` under other names. Returns one glucose or upload file per patient."""
    header, *register = (base / "patients.csv").read_text().splitlines()
    lines, own = [header], []
    for k in range(patients):
        line = register[k % len(register)]
        old = line.split(",")[0]
        new = f"TP{k:07d}" if old.startswith("TP") else str(1_000_000 + k)
        lines.append(line.replace(old, new, 1))
        files = [base / "tidepool" / f"{old}.json"] if old.startswith("TP") else sorted((base / "t1d_uom").rglob(f"*[a-z]{old}.csv"))
        for file in (f for f in files if f.is_file()):
            target = raw / file.relative_to(base).parent / file.name.replace(old, new)
            target.parent.mkdir(parents=True, exist_ok=True)
            os.link(file, target)
            if "Glucose" in file.name:
                own.append(target)
    raw.mkdir(exist_ok=True)
    (raw / "patients.csv").write_text("\n".join(lines) + "\n")
    return own


def configuration(folder: Path) -> Path:
    mapped = [("patients_csv", "."), ("t1d_uom", "t1d_uom"), ("tidepool_json", "tidepool")]
    config = {
        "name": "bench", "output": str(folder), "seed": 1, "pseudonym_key": {"file": str(REPO / "conf" / "demo.key")},
        "storage": {"buckets": 16},
        "sources": [{"mapping": str(REPO / "conf" / "mappings" / f"{m}.yaml"), "root": str(folder / "raw" / r)} for m, r in mapped],
        "simulate": {"scenarios": str(REPO / "conf" / "scenarios.yaml")},
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
    return sum(found["stages"][s]["seconds"] for s in WORK)


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


def main() -> None:
    out = REPO / "out" / "benchmarks" / "nights.json"
    out.parent.mkdir(parents=True, exist_ok=True)
    result: dict = {"cores": CORES, "days": DAYS, "seconds_by_patients": {}, "work_seconds_by_patients": {}, "peak_worker_mb_by_patients": {}}
    nights = {}
    with tempfile.TemporaryDirectory() as scratch:
        base = Path(scratch) / "base"
        generate(GenerateConfig(root=str(base), patients=BASE, days=DAYS), 1)
        for patients in SIZES:
            folder = Path(scratch) / str(patients)
            (folder / "raw").mkdir(parents=True)
            files, path = multiply(base, folder / "raw", patients), configuration(folder)
            full = nights[patients] = night(path)
            result["seconds_by_patients"][patients], result["work_seconds_by_patients"][patients] = full["seconds"], work(full)
            peak = max(full["stages"][s]["peak_python_mb"] for s in WORK)
            result["peak_worker_mb_by_patients"][patients] = peak / CORES  # of all Python processes: the daemon's small share is in it
            print(f"{patients} patients: {full['seconds']:.0f} s, fit and simulate {work(full):.0f} s", file=sys.stderr)
            if patients == INCREMENTAL:
                for file in files[: max(1, patients // SHARE)]:
                    lines = file.read_bytes().splitlines(keepends=True)
                    file.unlink()  # a link: the others keep the file
                    file.write_bytes(b"".join(lines[:-1]))  # the last reading was withdrawn
                some = night(path)
                task = [sum(x["stages"][s]["task_seconds"] for s in WORK) for x in (some, full)]
                result |= {
                    "incremental_patients": patients, "incremental_cost_ratio": work(some) / work(full), "incremental_task_ratio": task[0] / task[1],
                    "incremental_job_ratio": some["seconds"] / full["seconds"], "incremental_seconds": some["seconds"],
                    "incremental_episodes_fitted": some["stages"]["fit"]["episodes_fitted"], "stages_full": full["stages"], "stages_incremental": some["stages"],
                }
            shutil.rmtree(folder)
    first, last = SIZES[0], SIZES[-1]
    result["peak_worker_mb"] = max(result["peak_worker_mb_by_patients"].values())
    result["work_per_patient_largest_over_smallest"] = work(nights[last]) / last / (work(nights[first]) / first)
    result |= {"sizing": sizing(nights)} | faults()
    out.write_text(json.dumps(result, indent=1) + "\n")
    print(out.read_text())


if __name__ == "__main__":
    main()
