"""A patient withdraws: every trace goes from all tables and their history, and a tombstone keeps the patient out of later ingests.

What stays: counts and averages over many patients, and learned priors until they are learned again. The raw files are not ours: while
they still hold the patient, ingest leaves those records out.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from datetime import datetime, timezone

from pyspark.sql import DataFrame, SparkSession
from pyspark.sql import functions as F

from twinlib import sources
from twinlib.config import RunConfig
from twinlib.errors import ConfigError, DataError
from twinlib.sources.forgotten import PSEUDONYM, tombstone
from twinlib.sources.pseudonym import pseudonym
from twinlib.tables.schemas import FORGOTTEN, IDENTITIES, PATIENTS, TABLES
from twinlib.tables.storage import Storage


def candidates(lines: Iterable[str], config: RunConfig, key: bytes, namespace: str | None = None) -> list[set[str]]:
    """The pseudonyms that each line can mean: of a raw identifier in the namespace, and the line itself where it has the form of a
    pseudonym. Empty lines are left out.

    namespace: of the raw identifiers; it need not be given where all sources share one. Raises DataError where there is no line,
    ConfigError where the namespace is not known.
    """
    named = [line.strip() for line in lines if line.strip()]
    if not named:
        raise DataError("no patients given: expected one identifier or pseudonym per line")
    known = sorted({source.mapping.namespace for source in sources.open_sources(config)})
    if namespace not in known if namespace is not None else len(known) > 1:
        raise ConfigError(f"--namespace: say whose identifiers these are; the sources have {', '.join(known)}")
    return [{pseudonym(key, namespace or known[0], x)} | ({x} if re.fullmatch(PSEUDONYM, x) else set()) for x in named]


def forget(storage: Storage, people: list[set[str]], key: bytes) -> dict[str, int]:
    """Bury the patients, then remove them from every table. Returns counts: lines, known (lines that name a stored patient), rows.

    The tombstones come first, so a run that dies on the way can be done again and no ingest brings the patient back meanwhile.
    """
    spark = storage.spark
    with storage.writer():
        people = [_linked(storage, p) for p in people]
        patients = _frame(spark, sorted(set().union(*people))).persist()
        stored = {r[0] for r in storage.read(PATIENTS).join(patients, "patient_id", "left_semi").select("patient_id").collect()}
        now = datetime.now(timezone.utc)
        buried = sorted({tombstone(key, p) for names in people for p in names})
        storage.append(FORGOTTEN, spark.createDataFrame([(t, now) for t in buried], FORGOTTEN.schema))
        rows = sum(storage.forget(table, patients) for table in TABLES.values() if table is not FORGOTTEN)
        patients.unpersist()
    return {"lines": len(people), "known": sum(1 for p in people if p & stored), "rows": rows}


def _frame(spark: SparkSession, ids: list[str]) -> DataFrame:
    """One column patient_id. As an RDD, so that no identifier is written into a plan."""
    return spark.createDataFrame(spark.sparkContext.parallelize([(i,) for i in ids], 1), "patient_id string")


def _linked(storage: Storage, names: set[str]) -> set[str]:
    """`names` and every other pseudonym under which the same people came."""
    if not storage.exists(IDENTITIES):
        return names
    frame = storage.read(IDENTITIES).select("source_patient_id", "patient_id")
    for _ in range(2):  # from the source's pseudonym to the common one, and from there to those of the other sources
        asked = _frame(storage.spark, sorted(names)).withColumnRenamed("patient_id", "_asked")
        same = (F.col("source_patient_id") == F.col("_asked")) | (F.col("patient_id") == F.col("_asked"))
        names = names | {x for row in frame.join(F.broadcast(asked), same, "left_semi").collect() for x in row}
    return names
