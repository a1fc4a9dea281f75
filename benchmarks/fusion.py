"""Raw Parquet to packed timelines, against the same work by hand in DuckDB, and planted faults: make bench NAME=fusion

SIZE is the number of CGM rows: small (0.2 M), 2m (default), 10m, 100m. Both engines get two threads, run one after the other in processes of
their own, and must agree on every count. FAULTS is the number of patients with planted faults (100).
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import threading
import time
from pathlib import Path

import duckdb
import pyarrow as pa
import yaml

from benchmarks import machine, raw

REPO = Path(__file__).resolve().parents[1]
OUT = REPO / "out" / "benchmarks"
SIZES = {"small": 200_000, "2m": 2_000_000, "10m": 10_000_000, "100m": 100_000_000}
SIZE = os.environ.get("SIZE", "2m")
MEMORY, DUCKDB_MEMORY = "5g", "12GB" if SIZE == "100m" else "5GB"  # the JVM's is the same at every size


def apart(*arguments: str) -> dict:
    """The JSON that a part of this module prints last, run in a process of its own, with its peak memory in GB."""
    run = subprocess.Popen([sys.executable, "-m", "benchmarks.fusion", *arguments], stdout=subprocess.PIPE, text=True, cwd=REPO)
    peak, done = [0], threading.Event()

    def watch():
        while not done.wait(0.5):
            peak[0] = max(peak[0], machine.tree_bytes(run.pid))

    thread = threading.Thread(target=watch)
    thread.start()
    text, _ = run.communicate()
    done.set()
    thread.join()
    if run.returncode:
        raise SystemExit(f"benchmarks.fusion {' '.join(arguments)} failed")
    return json.loads(text.strip().splitlines()[-1]) | {"peak_memory_gb": peak[0] / 1e9}


def buckets(rows: int) -> int:
    return max(8, rows // 1_250_000)  # of the same size at 10 M and 100 M rows


def by_spark(root: Path, out: Path, rows: int) -> dict:
    """The product's own stages, ingest and fuse, on two cores."""
    from twinlib.stages import Night, Plan
    from twinlib.tables import schemas

    mapping, run = out / "clinic.yaml", out / "run.yaml"
    mapping.write_text(raw.MAPPING)
    run.write_text(yaml.safe_dump({
        "name": "bench", "output": str(out / "spark"), "pseudonym_key": {"file": str(REPO / "conf" / "demo.key")},
        "storage": {"buckets": buckets(rows)}, "sources": [{"mapping": str(mapping), "root": str(root)}],
        "spark": {"spark.master": "local[2]", "spark.driver.memory": MEMORY, "spark.local.dir": str(out / "scratch"),
                  "spark.sql.shuffle.partitions": buckets(rows)},
    }))  # fmt: skip
    night = Night(Plan.of(run))
    began, used = time.perf_counter(), machine.tree_cpu_seconds()
    night.ingest()
    ingested = time.perf_counter() - began
    night.fuse()
    seconds, used = time.perf_counter() - began, machine.tree_cpu_seconds() - used
    counts = {r.source: [r.rows_read, r.accepted, r.duplicates, r.quarantined] for r in night.storage.read(schemas.INGEST_COUNTS).collect() if r.rows_read}
    tables = {n: f"{out}/spark/tables/{n}/v*/**/part-*.parquet" for n in ("observations", "quarantine", "timelines")}
    return {"seconds": seconds, "ingest_seconds": ingested, "cpu_seconds": used, "counts": counts, "tables": tables}


def by_duckdb(root: Path, out: Path, rows: int) -> dict:
    """benchmarks/fusion.sql on two threads."""
    from twinlib.sources.pseudonym import load_key, pseudonym
    from twinlib.config import PseudonymConfig

    key, home = load_key(PseudonymConfig(file=str(REPO / "conf" / "demo.key"))), out / "duckdb"
    home.mkdir()
    sql = (Path(__file__).parent / "fusion.sql").read_text().format(raw=root, out=home, buckets=buckets(rows))
    settings = {"threads": 2, "memory_limit": DUCKDB_MEMORY, "temp_directory": str(out / "scratch"), "preserve_insertion_order": False}
    began, used = time.perf_counter(), time.process_time()
    with duckdb.connect(config=settings) as db:
        db.execute("SET TimeZone = 'UTC'")
        ids = [r[0] for r in db.execute(" UNION ".join(f"SELECT who FROM read_parquet('{root}/{f}/*.parquet')" for f in ("cgm", "insulin", "meals", "labs"))).fetchall()]
        db.register("ids", pa.table({"who": ids, "patient_id": [pseudonym(key, "", i) for i in ids]}))
        db.execute("CREATE TABLE pseudonyms AS SELECT * FROM ids")
        for statement in sql.split("\n----\n"):
            db.execute(statement)
        seconds, used = time.perf_counter() - began, time.process_time() - used
        rows_ = db.execute(f"SELECT source, rows_read, accepted, duplicates, quarantined FROM '{home}/ingest_counts.parquet'").fetchall()
        tables = {"observations": f"{home}/observations/*/*.parquet", "quarantine": f"{home}/quarantine.parquet", "timelines": f"{home}/timelines.parquet"}
        return {"seconds": seconds, "cpu_seconds": used, "counts": {s: list(c) for s, *c in rows_}, "tables": tables}


def summary(tables: dict[str, str]) -> dict:
    """What both must agree on besides the counts: sums of what was accepted and packed, refusals by reason."""
    db = duckdb.connect()
    o, q, t = tables["observations"], tables["quarantine"], tables["timelines"]
    rows, total, conflicts = db.execute(f"SELECT count(*), round(sum(value)), count_if(list_contains(quality, 'conflict')) FROM '{o}'").fetchall()[0]
    flags = dict(db.execute(f"SELECT flag, count(*) FROM (SELECT unnest(quality) AS flag FROM '{o}') GROUP BY 1 ORDER BY 1").fetchall())
    reasons = dict(db.execute(f"SELECT reason, count(*) FROM '{q}' GROUP BY 1 ORDER BY 1").fetchall())
    episodes, filled = db.execute(f"""
        SELECT count(*), sum(list_sum([CASE WHEN isnan(x) THEN 0 ELSE 1 END FOR x IN signals[1]['values']])) FROM '{t}'""").fetchall()[0]
    doses = dict(db.execute(f"SELECT i.input, round(sum(list_sum(i.amounts))) FROM (SELECT unnest(inputs) AS i FROM '{t}') WHERE len(i.amounts) > 0 GROUP BY 1 ORDER BY 1").fetchall())
    return {"observations": rows, "sum_of_values": total, "conflicts": conflicts, "flags": flags, "reasons": reasons, "timelines": episodes, "filled_slots": filled, "amounts": doses}


def both(rows: int) -> tuple[int, dict, dict]:
    scratch = OUT / "fusion"
    root = scratch / f"raw-{rows}"
    n = raw.make(root, rows)
    results = []
    for engine in ("spark", "duckdb"):
        out = scratch / f"{engine}-{rows}"
        shutil.rmtree(out, ignore_errors=True)
        out.mkdir(parents=True)
        found = apart(engine, str(root), str(out), str(rows))
        results.append(found | {"checks": summary(found.pop("tables"))})  # here, so that its memory does not count
        print(f"{n} rows, {engine}: {json.dumps(results[-1])}", file=sys.stderr, flush=True)
        shutil.rmtree(out)
    return n, *results


def differences(a: dict, b: dict) -> dict:
    """Where the two do not agree: name -> (Spark, DuckDB)."""
    found = {f"counts.{s}": (a["counts"].get(s), b["counts"].get(s)) for s in a["counts"].keys() | b["counts"].keys()}
    found |= {k: (a["checks"][k], b["checks"][k]) for k in a["checks"]}
    return {k: v for k, v in found.items() if v[0] != v[1]}


def main() -> None:
    OUT.mkdir(parents=True, exist_ok=True)
    rows = SIZES[SIZE]
    n, spark, duck = both(rows)
    result = {
        "size": SIZE, "rows": n, "rows_per_second": n / spark["seconds"], "time_ratio_vs_duckdb": spark["seconds"] / duck["seconds"],
        "cpu_ratio_vs_duckdb": spark["cpu_seconds"] / duck["cpu_seconds"], "seconds": spark["seconds"], "ingest_seconds": spark["ingest_seconds"],
        "duckdb_seconds": duck["seconds"], "peak_memory_gb": spark["peak_memory_gb"], "duckdb_peak_memory_gb": duck["peak_memory_gb"],
        "differences_from_duckdb": differences(spark, duck), "time_ratio_100m_to_10m": None, "load_average": os.getloadavg()[1],
    }
    if SIZE != "small":
        _, tenth, _ = both(rows // 10)
        result["time_ratio_to_a_tenth"] = spark["seconds"] / tenth["seconds"]
        result["peak_memory_gb_a_tenth"] = tenth["peak_memory_gb"]
        if SIZE == "100m":
            result["time_ratio_100m_to_10m"] = result["time_ratio_to_a_tenth"]
    result |= apart("faults", str(OUT / "fusion" / "faults"), os.environ.get("FAULTS", "100")) | {"peak_memory_gb": result["peak_memory_gb"]}
    (OUT / "fusion.json").write_text(json.dumps(result, indent=1) + "\n")
    print((OUT / "fusion.json").read_text())


def part(name: str, *arguments: str) -> dict:
    if name == "faults":
        from benchmarks.faults import in_spark

        return in_spark(Path(arguments[0]), int(arguments[1]))
    root, out, rows = arguments
    return {"spark": by_spark, "duckdb": by_duckdb}[name](Path(root), Path(out), int(rows))


if __name__ == "__main__":
    if len(sys.argv) > 1:
        print(json.dumps(part(*sys.argv[1:]), default=str))
    else:
        main()
