"""A clinic of any size for the benchmark of nights: the people of a small synthetic cohort under many names, as Parquet files.

    root/readings/block=*.parquet    who, time (UTC), utc_offset_minutes, signal, value
    root/exposures/block=*.parquet   who, time, end_time, utc_offset_minutes, agent, kind, amount, label

Every patient is read, fitted and simulated for itself: random numbers are keyed by patient.
"""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import duckdb
import yaml

from twinlib.config import GenerateConfig
from twinlib.synthetic import generate
from twinlib.tables.query import connect

REPO = Path(__file__).resolve().parents[1]
BLOCK = 250  # patients per file
SOURCES = (("patients_csv", "."), ("t1d_uom", "t1d_uom"), ("tidepool_json", "tidepool"))
CLOCK = "{column: time, zone: UTC, offset_column: utc_offset_minutes}"
MAPPING = f"""
name: clinic
files:
  - name: readings
    glob: readings/*.parquet
    format: parquet
    patient: {{column: who}}
    time: {CLOCK}
    entries:
      - {{name: glucose, when: {{signal: glucose}}, observation: glucose, value: {{column: value, unit: mg/dL}}}}
      - {{name: weight, when: {{signal: body_weight}}, observation: body_weight, value: {{column: value, unit: kg}}}}
  - name: exposures
    glob: exposures/*.parquet
    format: parquet
    patient: {{column: who}}
    time: {CLOCK}
    entries:
      - {{name: bolus, when: {{agent: insulin_bolus}}, exposure: insulin_bolus, value: {{column: amount, unit: U}}, end: end_time}}
      - {{name: basal, when: {{agent: insulin_basal}}, exposure: insulin_basal, kind: rate, value: {{column: amount, unit: U/h}}, end: end_time}}
      - {{name: long_acting, when: {{agent: insulin_long_acting}}, exposure: insulin_long_acting, value: {{column: amount, unit: U}}}}
      - {{name: carbohydrate, when: {{agent: carbohydrate}}, exposure: carbohydrate, value: {{column: amount, unit: g}}, label: label}}
"""
_BASE = """
CREATE TEMP TABLE person AS SELECT patient_id, row_number() OVER (ORDER BY patient_id) - 1 AS place, count(*) OVER () AS people FROM patients;
CREATE TEMP TABLE reading AS SELECT *, row_number() OVER (PARTITION BY patient_id, signal ORDER BY time DESC) = 1 AS last
    FROM observations WHERE signal IN ('glucose', 'body_weight');
CREATE TEMP TABLE exposure AS SELECT *, start AS time, "end" AS end_time FROM exposures
"""
_PEOPLE = "SELECT patient_id, k, lpad(k::VARCHAR, 7, '0') AS who FROM person JOIN range({first}, {last}) a(k) ON k % people = place"
_READINGS = """
SELECT who, time, utc_offset_minutes, signal, value FROM ({people}) JOIN reading USING (patient_id)
WHERE NOT (last AND signal = 'glucose' AND {withdrawn}) ORDER BY who, signal, time
"""
_EXPOSURES = """
SELECT who, time, end_time, utc_offset_minutes, agent, kind, amount, label FROM ({people}) JOIN exposure USING (patient_id) ORDER BY who, agent, time
"""


class Clinic:
    """Raw files for nights, from `patients` synthetic people of `days` days made under `scratch`."""

    def __init__(self, scratch: Path, patients: int, days: int):
        generate(GenerateConfig(root=str(scratch / "raw"), patients=patients, days=days), 1)
        config = {
            "name": "base", "output": str(scratch), "pseudonym_key": {"file": str(REPO / "conf" / "demo.key")},
            "sources": [{"mapping": str(REPO / "conf" / "mappings" / f"{m}.yaml"), "root": str(scratch / "raw" / r)} for m, r in SOURCES],
        }
        (scratch / "run.yaml").write_text(yaml.safe_dump(config))
        subprocess.run([sys.executable, str(REPO / "jobs" / "ingest.py"), "--config", str(scratch / "run.yaml")], check=True, stdout=subprocess.DEVNULL)
        self._base = connect(scratch)
        self._base.execute(_BASE)

    def exposures(self, root: Path, patients: int) -> None:
        self._write(root / "exposures", _EXPOSURES, patients)

    def readings(self, root: Path, patients: int, every: int | None = None) -> None:
        """every: patients whose number this divides have lost their last reading."""
        self._write(root / "readings", _READINGS, patients, withdrawn="false" if every is None else f"k % {every} = 0")

    def _write(self, folder: Path, query: str, patients: int, **parts: str) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        for first in range(0, patients, BLOCK):
            people = _PEOPLE.format(first=first, last=min(first + BLOCK, patients))
            self._base.execute(f"COPY ({query.format(people=people, **parts)}) TO '{folder}/block{first:07d}.parquet' (FORMAT parquet)")
