"""Planted faults: what ingest says of every row that is known to be faulty, and of those that are not.

Each fault has a sign: reasons in quarantine, flags on what was accepted, `dropped` (counted as a duplicate), or `right`: the rows are read as
if nothing had been wrong. Recall is the share of the fault's rows that bear its sign; precision the share of all rows with the sign (of
faults that are read right: of its rows that were accepted) for which it is true.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

import duckdb
import pyarrow as pa
import pyarrow.parquet as pq
import yaml

from twinlib.config import GenerateConfig, RunConfig
from twinlib.fusion.ingest import ingest
from twinlib.session import session
from twinlib.sources.pseudonym import pseudonym
from twinlib.synthetic import generate

REPO = Path(__file__).resolve().parents[1]
KEY = b"0123456789abcdef"
START = "2026-10-19"  # a fortnight in which London's clocks go back
SIGNS = {
    "wrong_unit": ["unit_contradicts_values"],
    "rate_per_five_minutes": ["unit_contradicts_values"],
    "wrong_zone": ["clock_off", "clock_jump"],  # its clocks go back at an hour at which those of here do not
    "drift": ["drift"],
    "day_month_swap": ["right"],
    "byte_order_mark": ["right"],
    "swapped_columns": ["unparsable_time"],
    "mixed_encodings": ["undecodable_text"],
    "duplicate": ["dropped"],
    "conflicting_duplicate": ["dropped"],
    "clock_jump": ["clock_jump"],
    "dst_fold": ["ambiguous_local_time"],
    "stuck_sensor": ["flat_line"],
    "compression_low": ["compression_low"],
    "truncated_file": ["malformed_row"],
    "broken_json_line": ["malformed_row"],
}


def _mapping(folder: Path, name: str) -> str:
    mapping = yaml.safe_load((REPO / "conf" / "mappings" / f"{name}.yaml").read_text())
    if name == "t1d_uom":
        mapping["files"][0]["time"]["order"] = "auto"
    path = folder / f"{name}.yaml"
    path.write_text(yaml.safe_dump(mapping, sort_keys=False))
    return str(path)


def measure(spark, folder: Path, patients: int, days: int = 14, seed: int = 7) -> dict:
    """planted_rows, planted_recall, planted_precision, and both per fault, of a cohort made under `folder`."""
    folder.mkdir(parents=True, exist_ok=True)
    root = folder / "raw"
    generate(GenerateConfig(root=str(root), patients=patients, days=days, start=START, dirty=False, faults=True), seed)
    config = RunConfig.model_validate({
        "name": "faults", "output": str(folder), "pseudonym_key": {"env": "UNUSED"},
        "sources": [{"mapping": _mapping(folder, n), "root": str(root / r)} for n, r in (("t1d_uom", "t1d_uom"), ("tidepool_json", "tidepool"))],
    })  # fmt: skip
    got = ingest(spark, config, KEY)
    observed = [got.observations.select("file", "line", "quality", "time"), got.exposures.select("file", "line", "quality", "start").toDF("file", "line", "quality", "time")]
    accepted = pa.concat_tables([o.toArrow() for o in observed])
    refused = got.quarantine.select("file", "line", "reason").toArrow()
    got.release()
    pq.write_table(accepted, folder / "accepted.parquet"), pq.write_table(refused, folder / "refused.parquet")  # to look at
    return score(root, accepted, refused, patients)


def _files(root: Path) -> pa.Table:
    """Path below the root, and the name under which ingest shows the file."""
    rows = []
    for path in sorted([*root.glob("t1d_uom/**/*.csv"), *root.glob("tidepool/*.json")]):
        shape = path.relative_to(root).parts[0]
        own = str(path.relative_to(root / shape))
        raw = path.stem[-5:] if shape == "t1d_uom" else path.stem
        rows.append((str(path.relative_to(root)), own.replace(raw, pseudonym(KEY, "", raw)), len(path.read_bytes().splitlines()), shape))
    return pa.table({k: list(c) for k, c in zip(("path", "file", "lines", "shape"), zip(*rows))})


def score(root: Path, accepted: pa.Table, refused: pa.Table, patients: int) -> dict:
    files = _files(root)
    signs = pa.table({"fault": [f for f, s in SIGNS.items() for _ in s], "sign": [s for ss in SIGNS.values() for s in ss]})
    with duckdb.connect() as db:
        for name, table in (("accepted", accepted), ("refused", refused), ("files", files), ("signs", signs)):
            db.register(name, table)
        db.execute(f"CREATE TABLE planted AS SELECT f.file, p.line, p.fault FROM '{root}/truth/planted.parquet' p JOIN files f ON p.file = f.path")
        # one row per line and sign
        db.execute("""
            CREATE TABLE said AS SELECT DISTINCT file, line, reason AS sign FROM refused
            UNION SELECT DISTINCT file, line, unnest(quality) FROM accepted
            UNION SELECT file, line, 'right' FROM accepted
            UNION SELECT file, line, 'dropped' FROM (SELECT file, unnest(range(2, lines + 1)) AS line FROM files WHERE path LIKE '%Glucose%')
                ANTI JOIN (SELECT file, line FROM accepted UNION SELECT file, line FROM refused) USING (file, line)
        """)
        recall = dict(db.execute("""
            SELECT fault, avg(found::INT) FROM (
                SELECT fault, file, line, count(s.sign) > 0 AS found FROM planted JOIN signs USING (fault) LEFT JOIN said s USING (file, line, sign) GROUP BY ALL
            ) GROUP BY fault""").fetchall())
        precision = dict(db.execute("""
            SELECT n.fault, avg(true_::INT) FROM (
                SELECT sign, file, line, EXISTS (FROM planted p JOIN signs n USING (fault) WHERE p.file = s.file AND p.line = s.line AND n.sign = s.sign) AS true_
                FROM said s WHERE sign <> 'right' AND sign IN (SELECT sign FROM signs)
            ) JOIN signs n USING (sign) GROUP BY n.fault""").fetchall())
        # of what is read right: accepted rows of the file at an instant of the fortnight
        precision |= dict(db.execute(f"""
            SELECT fault, avg((time BETWEEN TIMESTAMP '{START}' - INTERVAL 2 DAY AND TIMESTAMP '{START}' + INTERVAL 40 DAY)::INT)
            FROM planted JOIN signs USING (fault) JOIN accepted USING (file, line) WHERE sign = 'right' GROUP BY fault""").fetchall())
        counts = dict(db.execute("SELECT fault, count(*) FROM planted GROUP BY fault").fetchall())
        said, true = db.execute("""
            SELECT count(*), count_if(EXISTS (FROM planted p JOIN signs n USING (fault) WHERE p.file = s.file AND p.line = s.line AND n.sign = s.sign))
            FROM said s WHERE sign IN (SELECT sign FROM signs) AND (sign <> 'right' OR EXISTS (FROM planted p JOIN signs n USING (fault) WHERE n.sign = 'right' AND p.file = s.file AND p.line = s.line))
        """).fetchall()[0]
        wrong = dict(db.execute("""
            SELECT s.sign, count(*) FROM said s WHERE sign <> 'right' AND sign IN (SELECT sign FROM signs)
              AND NOT EXISTS (FROM planted p JOIN signs n USING (fault) WHERE p.file = s.file AND p.line = s.line AND n.sign = s.sign) GROUP BY 1""").fetchall())
    total = sum(counts.values())
    return {
        "planted_rows": total, "planted_patients": patients,
        "planted_recall": sum(recall[f] * n for f, n in counts.items()) / total, "planted_precision": true / said,
        "planted_faults": {f: {"rows": counts.get(f, 0), "recall": recall.get(f), "precision": precision.get(f)} for f in SIGNS},
        "planted_false_signs": wrong,
    }


def in_spark(folder: Path, patients: int) -> dict:
    """`measure` in a session of its own."""
    spark = session("faults", {"spark.master": "local[2]", "spark.sql.shuffle.partitions": 4, "spark.driver.memory": "4g"})
    return measure(spark, folder, patients)


if __name__ == "__main__":
    print(json.dumps(in_spark(Path(sys.argv[1]), int(sys.argv[2])), indent=1))
