"""What ingest makes of the public data sets: out/benchmarks/real_data.json and the tables of docs/real-data.md. make bench NAME=real_data

TWINLIB_DATA is the folder that holds the sets. Every source adds up, or the run fails: read = accepted + duplicates + refused.
"""

from __future__ import annotations

import json
import os
import re
import tempfile
import zipfile
from collections import defaultdict
from pathlib import Path

import yaml
from pyspark.sql import DataFrame
from pyspark.sql import functions as F

from twinlib import sources
from twinlib.config import RunConfig
from twinlib.fusion.ingest import ingest
from twinlib.fusion.ingested import Ingested
from twinlib.session import session

REPO = Path(__file__).resolve().parents[1]
OUT, PAGE = REPO / "out" / "benchmarks" / "real_data.json", REPO / "docs" / "real-data.md"
KEY = b"0123456789abcdef"
DATA = Path(os.environ.get("TWINLIB_DATA", REPO.parent / "shared" / "data"))


def devices() -> list[dict]:
    text = (REPO / "conf" / "real_devices.yaml").read_text(encoding="utf-8")
    text = re.sub(r"\$\{TWINLIB_DATA:[^}]*\}", str(DATA), text)
    return [s | {"mapping": str(REPO / s["mapping"])} for s in yaml.safe_load(text)["sources"]]


def records(scratch: Path) -> list[dict]:
    """The sets of health records; the CDM's archives are unpacked under `scratch`."""
    for archive in (DATA / "omop_synthea27nj").glob("*.zip"):
        with zipfile.ZipFile(archive) as z:
            z.extractall(scratch / ("parquet" if "Parquet" in archive.name else "csv"))
    return [
        {"kind": "omop", "root": str(scratch / "csv"), "name": "synthea27nj", "namespace": "nj_csv"},
        {"kind": "omop", "root": str(scratch / "parquet"), "name": "synthea27nj_parquet", "namespace": "nj_parquet"},
        {"kind": "fhir", "root": str(DATA / "fhir_pathling_9pat"), "name": "pathling", "namespace": "pathling"},
        {"kind": "fhir", "root": str(DATA / "fhir_smart_bulk_10"), "name": "smart", "namespace": "smart"},
        {"mapping": str(REPO / "conf" / "mappings" / "synthea_csv.yaml"), "root": str(DATA / "synthea_csv_dbt")},
    ]


def counted(frame: DataFrame, *by: str) -> dict[str, dict[str, int]]:
    found: dict[str, dict[str, int]] = defaultdict(dict)
    for r in frame.groupBy("source", *by).count().collect():
        found[r.source][r[1]] = r["count"]
    return found


def account(got: Ingested) -> list[dict]:
    """A row per source: counts, reasons of what was refused, flags of what was accepted."""
    reasons = counted(got.quarantine, "reason")
    frames = [f.select("source", F.explode("quality").alias("flag")) for f in (got.observations, got.exposures, got.events)]
    flags = counted(frames[0].union(frames[1]).union(frames[2]), "flag")
    return [r.asDict() | {"reasons": reasons.get(r.source, {}), "flags": flags.get(r.source, {})} for r in got.counts.collect()]


def table(rows: list[dict]) -> str:
    def texts(counts: dict[str, int]) -> str:
        return ", ".join(f"{n:,} `{name}`" for name, n in sorted(counts.items(), key=lambda x: (-x[1], x[0])))

    lines = ["| Source | Files | Ignored | Read | Accepted | Duplicates | Refused, and why | Flags |", "|---|---|---|---|---|---|---|---|"]
    for r in rows:
        if r["rows_read"] or r["rows_ignored"]:
            numbers = " | ".join(f"{r[n]:,}" for n in ("files", "rows_ignored", "rows_read", "accepted", "duplicates"))
            lines.append(f"| {r['source']} | {numbers} | {texts(r['reasons'])} | {texts(r['flags'])} |")
    return "\n".join(lines)


def main() -> None:
    spark = session("real data", {"spark.master": "local[2]", "spark.sql.shuffle.partitions": 4, "spark.driver.memory": "4g"})
    result, page = {}, PAGE.read_text(encoding="utf-8")
    with tempfile.TemporaryDirectory() as scratch:
        for name, sets in (("records", records(Path(scratch))), ("devices", devices())):
            config = RunConfig.model_validate({"name": name, "output": "unused", "pseudonym_key": {"env": "UNUSED"}, "sources": sets})
            sources.check(config)
            got = ingest(spark, config, KEY)
            result[name] = account(got)
            got.release()
            page = re.sub(rf"(<!-- {name}: measured -->\n).*?(\n<!-- end -->)", lambda m: m[1] + table(result[name]) + m[2], page, flags=re.S)  # noqa: B023
    OUT.parent.mkdir(parents=True, exist_ok=True)
    OUT.write_text(json.dumps(result, indent=1) + "\n")
    PAGE.write_text(page, encoding="utf-8")
    print(OUT.read_text())


if __name__ == "__main__":
    main()
