"""Parquet files, whose columns keep their types, give what CSV files of the same content give: tables, counts, reasons and lines; also in parts."""

import json
from datetime import datetime, timedelta, timezone
from pathlib import Path

import pyarrow as pa
import pyarrow.csv as csv
import pyarrow.parquet as pq
import pytest

from tests.fusion.test_ingest import KEY, counts, id_of, run_config
from tests.sources import mapping_file
from twinlib.fusion.ingest import ingest
from twinlib.sources import mapped, open_sources

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


def content() -> dict[str, pa.Table]:
    start, five = datetime(2024, 3, 30, 23), timedelta(minutes=5)
    times = [start + k * five for k in range(60)]  # over the gap of the 31st of March
    values = [100.0 + k for k in range(60)]
    values[3], values[4], values[5] = None, float("nan"), 900.0
    one = {
        "who": ["p"] * 60 + [" p ", "p", "", None, "p"], "at": [*times, times[0], times[1], times[2], times[2], times[2]], "v": [*values, 100.0, 155.0, 1.0, 1.0, 102.0],
        "unit": ["mg/dL"] * 62 + ["mg/dL", "furlong", "mg/dL"], "name": ["Jo"] * 65, "note": ["p"] * 65,
    }  # fmt: skip
    other = {k: v[:20] for k, v in one.items()} | {"who": ["q"] * 20, "unit": ["mmol/L"] * 20, "v": [120.0 + k for k in range(20)]}
    utc = [t.replace(tzinfo=timezone.utc) for t in times[:6]]
    pump = {"who": ["p"] * 6, "at": utc, "what": ["bolus", "bolus", "rate", "rate", "alarm", None], "v": [2, -1, 1, 40, 0, 0], "minutes": [None, None, 30, 30, None, None]}
    single = pa.schema([("who", pa.string()), ("at", pa.timestamp("us", "UTC")), ("what", pa.string()), ("v", pa.float32()), ("minutes", pa.int32())])
    return {"cgm/a": pa.table(one), "cgm/b": pa.table(other), "pump": pa.table(pump, single)}


def written(root: Path, kind: str, **options):
    (root / "cgm").mkdir(parents=True)
    for name, table in content().items():
        path = root / f"{name}.{kind}"
        if kind == "parquet":
            pq.write_table(table, path, **options)
        else:
            csv.write_csv(pa.table([c.cast(pa.string()) for c in table.columns], table.column_names), path)
    (root / "cgm" / f"broken.{kind}").write_bytes(b"PAR1 and then nothing" if kind == "parquet" else b"")
    mapping = json.loads(json.dumps(MAPPING).replace("parquet", kind))
    return run_config((mapping_file(root, mapping), root), storage={"buckets": 3})


def everything(spark, config, header: int = 0) -> dict:
    """All results; lines are counted from the first record. header: lines before it."""
    got = ingest(spark, config, KEY)
    tables = {n: getattr(got, n).toArrow().to_pylist() for n in ("observations", "exposures", "patients", "quarantine")}
    for rows in tables.values():
        for row in rows:
            row["line"] = (row.get("line") or header) - header
            row["file"] = (row.get("file") or "").partition(".")[0]
    records = [(r["file"], r["line"], json.loads(r.pop("record"))) for r in tables["quarantine"]]
    for row in tables["quarantine"]:
        if row["file"] == "cgm/broken":
            del row["detail"]
    result = {
        "counts": counts(got), "ignored": sorted((r.source, r.files, r.rows_ignored) for r in got.counts.collect()), "records": records,
        **{n: sorted(map(repr, rows)) for n, rows in tables.items()}, "reasons": {(r["file"], r["line"]): r["reason"] for r in tables["quarantine"]},
    }  # fmt: skip
    got.release()
    return result


@pytest.fixture(scope="module")
def typed(spark, tmp_path_factory):
    return everything(spark, written(tmp_path_factory.mktemp("parquet") / "raw", "parquet"))


def test_types_and_texts_give_the_same(spark, tmp_path, typed):
    as_texts = everything(spark, written(tmp_path / "raw", "csv"), header=1)
    for name in typed.keys() - {"records"}:
        assert as_texts[name] == typed[name], name


def test_parts_of_files_give_the_same(spark, tmp_path, typed, monkeypatch):
    config = written(tmp_path / "raw", "parquet", row_group_size=7)
    monkeypatch.setattr(mapped, "TASK_BYTES", 1000)
    (source,) = open_sources(config)
    assert len(source.jobs(0)) > 10
    in_parts = everything(spark, config)
    assert {n: v for n, v in in_parts.items() if n != "records"} == {n: v for n, v in typed.items() if n != "records"}
    assert sorted(map(repr, in_parts["records"])) == sorted(map(repr, typed["records"]))


def test_every_damaged_part_of_a_file_is_one_refusal(spark, tmp_path, monkeypatch):
    config = written(tmp_path / "raw", "parquet", row_group_size=20, compression="none", use_dictionary=False)
    file = tmp_path / "raw" / "cgm" / "a.parquet"
    footer, damaged = pq.read_metadata(file), bytearray(file.read_bytes())
    for group in (1, 2):
        at = footer.row_group(group).column(0).data_page_offset
        damaged[at : at + 8] = b"\xff" * 8
    file.write_bytes(bytes(damaged))
    monkeypatch.setattr(mapped, "TASK_BYTES", 1000)
    got = ingest(spark, config, KEY)
    rows = [(r.line, r.part, r.reason) for r in got.quarantine.where("file = 'cgm/a.parquet' AND line IS NULL").collect()]
    assert sorted(rows, key=str) == [(None, 1, "unreadable_file"), (None, 2, "unreadable_file")]
    assert counts(got)["clinic.cgm"][0] == 20 + 5 + 20 + 3 and {r.files for r in got.counts.where("source = 'clinic.cgm'").collect()} == {3}
    got.release()


def test_reasons_and_records(typed):
    reasons = typed["reasons"]
    assert reasons["cgm/a", 4] == "missing_value" and reasons["cgm/a", 5] == "unparsable_value"
    assert reasons["cgm/a", 6] == "out_of_range" and reasons["cgm/a", 27] == "nonexistent_local_time"
    assert reasons["cgm/a", 63] == reasons["cgm/a", 64] == "missing_patient"
    assert reasons["cgm/b", 1] == "unit_contradicts_values" and reasons["cgm/broken", 0] == "unreadable_file"
    assert reasons["pump", 2] == "negative_amount" and reasons["pump", 4] == "out_of_range"
    shown = [r for _, _, r in typed["records"] if r.get("who")]
    assert {r["who"] for r in shown} == {id_of("p"), id_of("q")}
    assert all(r.get("name", "(hidden)") == "(hidden)" for r in shown) and any(r.get("note") == id_of("p") for r in shown)
