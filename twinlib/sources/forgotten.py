"""Patients who have withdrawn: what is kept of them, and how ingest leaves their records out."""

from __future__ import annotations

import hashlib
import hmac

import pyarrow as pa
from pyspark.sql import DataFrame
from pyspark.sql import functions as F
from pyspark.sql.types import StructType

PSEUDONYM = r"[0-9a-f]{32}"


def tombstone(key: bytes, patient_id: str) -> str:
    """What is kept of a patient who has withdrawn: 64 hexadecimal digits of HMAC-SHA256(key, "forgotten", 0x1F, pseudonym)."""
    return hmac.new(key, f"forgotten\x1f{patient_id}".encode(), hashlib.sha256).hexdigest()


def without_forgotten(records: DataFrame, tombstones: frozenset[str], key: bytes) -> DataFrame:
    """`records` (columns patient_id, file, record; read several times) without those of patients under a tombstone.

    Where the patient of a record is not known, one whose text holds the pseudonym counts as the patient's. No identifier and no
    key becomes part of the plan.
    """
    if not tombstones:
        return records
    named, unnamed = records.where("patient_id IS NOT NULL"), records.where("patient_id IS NULL")
    nested = isinstance(records.schema["record"].dataType, StructType)
    text = F.concat_ws(" ", "file", F.to_json("record") if nested else "record")
    within = unnamed.select(F.explode(F.regexp_extract_all(text, F.lit(f"({PSEUDONYM})"))).alias("patient_id"))

    def buried(batches):
        for batch in batches:
            yield batch.filter(pa.array([tombstone(key, p.as_py()) in tombstones for p in batch.column(0)], pa.bool_()))

    ids = named.select("patient_id").union(within).distinct()
    gone = F.broadcast(ids.mapInArrow(buried, "patient_id string").withColumnRenamed("patient_id", "_gone"))
    alive = named.join(gone, F.col("patient_id") == F.col("_gone"), "left_anti")
    return alive.unionByName(unnamed.join(gone, F.contains(text, F.col("_gone")), "left_anti"))
