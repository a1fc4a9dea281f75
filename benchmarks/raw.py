"""Raw Parquet files of a made-up clinic for the fusion benchmark: CGM, insulin, meals and labs, with what real exports hold.

    root/cgm/block=*-week=*.parquet   who, taken (local time, no zone), glucose, unit
    root/insulin/*.parquet            who, taken, what (bolus | basal), amount
    root/meals/*.parquet              who, taken, grams, meal
    root/labs/*.parquet               who, taken, test (a1c | weight), result, unit

Files of one week hold a block of patients in order; repeated and contradicting rows stand at the end of the file. All by DuckDB's hash of
(patient, row), so the same size gives the same files.
"""

from __future__ import annotations

from pathlib import Path

import duckdb

DAYS = 28  # from Monday 2026-03-16, so the clocks of London go forward within
ROWS_PER_PATIENT = DAYS * 288
BLOCK = 250  # patients per file

MAPPING = """
name: clinic
files:
  - name: cgm
    glob: cgm/*.parquet
    format: parquet
    patient: {column: who}
    time: {column: taken, zone: Europe/London}
    entries: [{observation: glucose, value: {column: glucose, unit_column: unit}}]
  - name: insulin
    glob: insulin/*.parquet
    format: parquet
    patient: {column: who}
    time: {column: taken, zone: Europe/London}
    entries:
      - {name: bolus, when: {what: bolus}, exposure: insulin_bolus, value: {column: amount, unit: U}}
      - {name: basal, when: {what: basal}, exposure: insulin_basal, kind: rate, value: {column: amount, unit: U/h}}
  - name: meals
    glob: meals/*.parquet
    format: parquet
    patient: {column: who}
    time: {column: taken, zone: Europe/London}
    entries: [{exposure: carbohydrate, value: {column: grams, unit: g}, label: meal}]
  - name: labs
    glob: labs/*.parquet
    format: parquet
    patient: {column: who}
    time: {column: taken, zone: Europe/London}
    entries:
      - {name: a1c, when: {test: a1c}, observation: hba1c, value: {column: result, unit_column: unit}}
      - {name: weight, when: {test: weight}, observation: body_weight, value: {column: result, unit_column: unit}}
"""

# Glucose rises after each meal of _MEALS and comes back within hours. h: hash of patient and slot. 0.5 % repeated, and one row early in the week,
# so that no series goes back by hours only, as after a clock that was set; 0.05 % contradicting, 0.1 % out of range, 0.1 % empty, 1 % of patients in the wrong unit,
# 1 % five hours ahead; on 5 % of the days a stuck sensor, on 5 % a compression low at night
_CGM = """
WITH grid AS (
    SELECT p, s, hash(p, s) AS h, hash(p) AS hp FROM range({first}, {last}) a(p), range({week} * 2016, ({week} + 1) * 2016) b(s)
), eating AS (
    SELECT *, 5 * (s % 288) - 430 - 240 * k - (hash(p, s // 288, k) % 60)::BIGINT AS ago FROM (SELECT *, greatest(5 * (s % 288) - 430, 0) // 240 AS k FROM grid)
), curve AS (
    SELECT *, CASE WHEN hash(p, s // 288) % 20 = 3 AND s % 288 BETWEEN 180 AND 200 THEN 150 ELSE 110 + hp % 40 + (h % 801) / 100.0 - 4
        + CASE WHEN ago > 0 THEN 60 * ago / 60.0 * exp(1 - ago / 60.0) ELSE 0 END
        - CASE WHEN hash(p, s // 288) % 20 = 4 AND s % 288 BETWEEN 24 AND 32 THEN 45 ELSE 0 END END AS mgdl, hp % 2 = 0 AS molar
    FROM eating
), made AS (
    SELECT 'patient-' || lpad(p::VARCHAR, 7, '0') AS who, TIMESTAMP '2026-03-16' + to_minutes(5 * s + CASE WHEN hp % 97 = 7 THEN 300 ELSE 0 END) AS taken,
        CASE WHEN h % 1009 = 1 THEN NULL WHEN h % 1009 = 2 THEN 0.0
             WHEN molar AND hp % 97 <> 5 THEN round(mgdl / 18.0156, 1) ELSE round(mgdl) END AS glucose,
        CASE WHEN molar THEN 'mmol/L' ELSE 'mg/dL' END AS unit, p, s, h, 0 AS again FROM curve
)
SELECT who, taken, glucose, unit FROM (
    SELECT * FROM made UNION ALL SELECT * REPLACE (1 AS again) FROM made WHERE h % 200 = 7 OR s % 2016 = 5
    UNION ALL SELECT * REPLACE (1 AS again, glucose * 1.1 AS glucose) FROM made WHERE h % 2000 = 11
) ORDER BY again, p, s
"""
_INSULIN = """
SELECT 'patient-' || lpad(p::VARCHAR, 7, '0') AS who,
    TIMESTAMP '2026-03-16' + to_days(d::INTEGER) + CASE WHEN k < 6 THEN to_hours(4 * k) ELSE to_minutes(420 + 180 * (k - 6) + (hash(p, d, k) % 60)::INTEGER) END AS taken,
    CASE WHEN k < 6 THEN 'basal' ELSE 'bolus' END AS what,
    CASE WHEN hash(p, d, k) % 1009 = 1 THEN -1.0 WHEN k < 6 THEN 0.5 + (hash(p, k) % 10) / 10.0 ELSE 1 + (hash(p, d, k) % 100) / 10.0 END AS amount
FROM range({first}, {last}) a(p), range({days}) b(d), range(11) c(k) ORDER BY p, d, k
"""
_MEALS = """
SELECT 'patient-' || lpad(p::VARCHAR, 7, '0') AS who,
    TIMESTAMP '2026-03-16' + to_days(d::INTEGER) + to_minutes(430 + 240 * k + (hash(p, d, k) % 60)::INTEGER) AS taken,
    CASE WHEN hash(p, d, k) % 1009 = 1 THEN 5000.0 ELSE 20.0 + hash(p, d, k) % 70 END AS grams, ['Breakfast', 'Lunch', 'Dinner', 'Snack'][k + 1] AS meal
FROM range({first}, {last}) a(p), range({days}) b(d), range(4) c(k) ORDER BY p, d, k
"""
_LABS = """
SELECT 'patient-' || lpad(p::VARCHAR, 7, '0') AS who, TIMESTAMP '2026-03-10 09:00:00' + to_days((7 * k)::INTEGER) AS taken,
    CASE WHEN k % 2 = 0 THEN 'weight' ELSE 'a1c' END AS test,
    CASE WHEN k % 2 = 0 THEN 60.0 + hash(p) % 40 ELSE 45.0 + hash(p, k) % 40 END AS result, CASE WHEN k % 2 = 0 THEN 'kg' ELSE 'mmol/mol' END AS unit
FROM range({first}, {last}) a(p), range(4) c(k) ORDER BY p, k
"""


def make(root: Path, rows: int) -> int:
    """Files with about `rows` CGM rows under `root`, unless they are there. Returns the number of CGM rows."""
    patients, done = max(1, round(rows / ROWS_PER_PATIENT)), root / "done"
    if not (done.is_file() and done.read_text() == str(patients)):
        with duckdb.connect(config={"threads": 2}) as db:
            for folder in ("cgm", "insulin", "meals", "labs"):
                (root / folder).mkdir(parents=True, exist_ok=True)
            for first in range(0, patients, BLOCK):
                block = {"first": first, "last": min(first + BLOCK, patients), "days": DAYS}
                for week in range(DAYS // 7):
                    _copy(db, _CGM.format(week=week, **block), root / "cgm" / f"block{first:07d}-week{week}.parquet")
                for name, query in (("insulin", _INSULIN), ("meals", _MEALS), ("labs", _LABS)):
                    _copy(db, query.format(**block), root / name / f"block{first:07d}.parquet")
        done.write_text(str(patients))
    with duckdb.connect() as db:
        return db.sql(f"SELECT count(*) FROM '{root}/cgm/*.parquet'").fetchall()[0][0]


def _copy(db: duckdb.DuckDBPyConnection, query: str, path: Path) -> None:
    db.execute(f"COPY ({query}) TO '{path}' (FORMAT parquet, COMPRESSION snappy)")
