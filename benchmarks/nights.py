"""Nights: what a whole refresh costs at several sizes, and what a night with 1 % of the patients changed costs against it.

    make bench NAME=nights                                             # 200 and 1,000 patients
    TWINLIB_NIGHTS="1000 10000 100000" make bench NAME=nights          # hours
    TWINLIB_NIGHTS_INCREMENTAL=20000 make bench NAME=nights

A cohort of any size is 100 synthetic patients under many names: files are linked, so every patient is read, fitted and simulated for
itself (random numbers are keyed by patient), and only the raw files' blocks are shared. Every night is a process of its own.
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

import yaml

from twinlib.config import GenerateConfig
from twinlib.synthetic import generate
from twinlib.tables.query import connect

REPO = Path(__file__).resolve().parents[1]
CORES = int(os.environ.get("TWINLIB_NIGHTS_CORES", "2"))
SIZES = [int(n) for n in os.environ.get("TWINLIB_NIGHTS", "200 1000").split()]
INCREMENTAL = int(os.environ.get("TWINLIB_NIGHTS_INCREMENTAL", str(max(SIZES))))
DAYS, BASE, SHARE = 14, 100, 100  # every 100th patient changes
WORK = ("fit", "simulate")


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


def main() -> None:
    out = REPO / "out" / "benchmarks" / "nights.json"
    out.parent.mkdir(parents=True, exist_ok=True)
    result: dict = {"cores": CORES, "days": DAYS, "seconds_by_patients": {}, "work_seconds_by_patients": {}, "peak_worker_mb_by_patients": {}}
    with tempfile.TemporaryDirectory() as scratch:
        base = Path(scratch) / "base"
        generate(GenerateConfig(root=str(base), patients=BASE, days=DAYS), 1)
        for patients in sorted({*SIZES, INCREMENTAL}):
            folder = Path(scratch) / str(patients)
            (folder / "raw").mkdir(parents=True)
            files, path = multiply(base, folder / "raw", patients), configuration(folder)
            full = night(path)
            result["seconds_by_patients"][patients], result["work_seconds_by_patients"][patients] = full["seconds"], work(full)
            peak = max(full["stages"][s]["peak_python_mb"] for s in WORK)
            result["peak_worker_mb_by_patients"][patients] = peak / (CORES + 1)  # the daemon is about as large as a worker
            print(f"{patients} patients: {full['seconds']:.0f} s, fit and simulate {work(full):.0f} s", file=sys.stderr)
            if patients == INCREMENTAL:
                for file in files[: max(1, patients // SHARE)]:
                    text = file.read_bytes()
                    file.unlink()  # a link: the others keep the file
                    file.write_bytes(text + b"\r\n07/01/2026 03:02,9.9\r\n")
                some = night(path)
                result |= {
                    "incremental_patients": patients, "incremental_cost_ratio": work(some) / work(full),
                    "incremental_task_ratio": sum(some["stages"][s]["task_seconds"] for s in WORK) / sum(full["stages"][s]["task_seconds"] for s in WORK),
                    "incremental_job_ratio": some["seconds"] / full["seconds"], "incremental_seconds": some["seconds"],
                    "incremental_episodes_fitted": some["stages"]["fit"]["episodes_fitted"], "stages_full": full["stages"], "stages_incremental": some["stages"],
                }
            shutil.rmtree(folder)
    first, last = min(result["seconds_by_patients"]), max(result["seconds_by_patients"])
    result["peak_worker_mb"] = max(result["peak_worker_mb_by_patients"].values())
    if first != last:
        rate = {n: result["work_seconds_by_patients"][n] / n for n in (first, last)}
        result["work_per_patient_largest_over_smallest"] = rate[last] / rate[first]
    faults = out.with_name("faults.json")
    if faults.is_file():
        result |= {k: v for k, v in json.loads(faults.read_text()).items() if k != "faults"}
    out.write_text(json.dumps(result, indent=1) + "\n")
    print(out.read_text())


if __name__ == "__main__":
    main()
