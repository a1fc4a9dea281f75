"""Parquet files read by Spark itself give what the same files give through Arrow: tables, counts, reasons and lines."""

import json
from datetime import datetime, timedelta, timezone

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from tests.fusion.test_ingest import KEY, counts, id_of, run_config
from tests.sources import mapping_file
from twinlib.fusion.ingest import ingest
from twinlib.sources import columnar

MAPPING = {
    "name": "clinic",
    "files": [
        {
            "name": "cgm", "glob": "cgm/*.parquet", "format": "parquet", "patient": {"column": "who"}, "hide": ["name"],
            "time": {"column": "at", "zone": "Europe/London"},
            "entries": [{"observation": "glucose", "value": {"column": "v", "unit_column": "unit"}}],
        },
        {
            "name": "pump", "glob": "pump.parquet", "format": "parquet", "patient": {"column": "who"}, "time": {"column": "at", "zone": "UTC"},
            "entries": [
                {"name": "bolus", "when": {"what": "bolus"}, "exposure": "insulin_bolus", "value": {"column": "v", "unit": "U"}},
                {"name": "rate", "when": {"what": "rate"}, "exposure": "insulin_basal", "kind": "rate", "value": {"column": "v", "unit": "U/h"}, "duration": {"column": "minutes", "unit": "min"}},
            ],
        },
    ],
}  # fmt: skip


@pytest.fixture(scope="module")
def config(tmp_path_factory):
    root = tmp_path_factory.mktemp("columnar")
    (root / "cgm").mkdir()
    start, five = datetime(2024, 3, 30, 23), timedelta(minutes=5)
    times = [start + k * five for k in range(60)]  # over the gap of the 31st of March
    values = [100.0 + k for k in range(60)]
    values[3], values[4], values[5] = None, float("nan"), 900.0
    one = {
        "who": ["p"] * 60 + [" p ", "p", "", None, "p"], "at": [*times, times[0], times[1], times[2], times[2], times[2]], "v": [*values, 100.0, 155.0, 1.0, 1.0, 102.0],
        "unit": ["mg/dL"] * 62 + ["mg/dL", "furlong", "mg/dL"], "name": ["Jo"] * 65, "note": ["p"] * 65,
    }  # fmt: skip
    other = {k: v[:20] for k, v in one.items()} | {"who": ["q"] * 20, "unit": ["mmol/L"] * 20, "v": [120.0 + k for k in range(20)]}
    for name, columns in (("a", one), ("b", other)):
        pq.write_table(pa.table(columns), root / "cgm" / f"{name}.parquet")
    (root / "cgm" / "broken.parquet").write_bytes(b"PAR1 and then nothing")
    utc = [t.replace(tzinfo=timezone.utc) for t in times[:6]]
    pump = {"who": ["p"] * 6, "at": utc, "what": ["bolus", "bolus", "rate", "rate", "alarm", None], "v": [2, -1, 1, 40, 0, 0], "minutes": [None, None, 30, 30, None, None]}
    pq.write_table(pa.table(pump), root / "pump.parquet")
    return run_config((mapping_file(root, MAPPING), root), storage={"buckets": 3})


def everything(spark, config) -> dict:
    got = ingest(spark, config, KEY)
    result = {
        "counts": counts(got), "ignored": sorted((r.source, r.files, r.rows_ignored) for r in got.counts.collect()),
        "quarantine": sorted((r.source, r.file, r.line or 0, r.reason, r.patient_id or "") for r in got.quarantine.collect()),
        "records": [json.loads(r.record) for r in got.quarantine.collect()],
        **{n: sorted(map(repr, getattr(got, n).collect())) for n in ("observations", "exposures", "patients")},
    }  # fmt: skip
    got.release()
    return result


def test_both_ways_give_the_same(spark, config, monkeypatch):
    through_arrow = everything(spark, config)
    monkeypatch.setattr(columnar, "WORTH", 0)
    plans = []
    parts = columnar.parts
    monkeypatch.setattr(columnar, "parts", lambda *a: plans.append(1) or parts(*a))
    natively = everything(spark, config)
    assert len(plans) == 2
    for name in through_arrow.keys() - {"records"}:
        assert natively[name] == through_arrow[name], name

    reasons = {(r[1], r[2]): r[3] for r in natively["quarantine"]}
    assert reasons["cgm/a.parquet", 4] == "missing_value" and reasons["cgm/a.parquet", 5] == "unparsable_value"
    assert reasons["cgm/a.parquet", 6] == "out_of_range" and reasons["cgm/a.parquet", 27] == "nonexistent_local_time"
    assert reasons["cgm/a.parquet", 63] == reasons["cgm/a.parquet", 64] == "missing_patient"
    assert reasons["cgm/b.parquet", 1] == "unit_contradicts_values" and reasons["cgm/broken.parquet", 0] == "unreadable_file"
    assert reasons["pump.parquet", 2] == "negative_amount" and reasons["pump.parquet", 4] == "out_of_range"
    shown = [r for r in natively["records"] if r.get("who")]
    assert {r["who"] for r in shown} == {id_of("p"), id_of("q")}
    assert all(r.get("name", "(hidden)") == "(hidden)" for r in shown) and any(r.get("note") == id_of("p") for r in shown)
