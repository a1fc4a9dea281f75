"""Raw records of all sources to patients, observations, exposures and quarantine, with counts that must add up."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from functools import reduce

import pyarrow as pa
from pyspark import StorageLevel
from pyspark.sql import Column, DataFrame, SparkSession
from pyspark.sql import functions as F

from twinlib.config import RunConfig
from twinlib.errors import ConfigError, DataError
from twinlib.fusion.duplicates import settle
from twinlib.fusion.entries import Entry, entry_frame, interpret, unit_frame
from twinlib.fusion.judge import judge
from twinlib.fusion.rules import RULES, overruled
from twinlib.fusion.vocabulary import load_vocabulary
from twinlib.sources import open_sources
from twinlib.sources.forgotten import without_forgotten
from twinlib.sources.records import Source
from twinlib.tables.schemas import EXPOSURES, INGEST_COUNTS, OBSERVATIONS, PATIENTS, QUARANTINE

CONTRADICTION_MINIMUM = 5  # readings of one patient below which a median says nothing about the unit


@dataclass(frozen=True)
class Ingested:
    """Frames that conform to PATIENTS, OBSERVATIONS, EXPOSURES, QUARANTINE, INGEST_COUNTS; `release` when they are written."""

    patients: DataFrame
    observations: DataFrame
    exposures: DataFrame
    quarantine: DataFrame
    counts: DataFrame
    cached: tuple[DataFrame, ...]

    def release(self) -> None:
        for df in self.cached:
            df.unpersist()


def ingest(spark: SparkSession, config: RunConfig, key: bytes, tombstones: frozenset[str] = frozenset()) -> Ingested:
    """Read every source of the run; call `release` on the result when its frames have been written.

    Records that became known after `config.as_of`, and those of patients under a tombstone, are left out as if the files lacked them.

    Raises ConfigError or DataError where a mapping is wrong, files are missing, a source holds no record at all, or records
    are lost on the way (rows read must equal accepted + duplicates + quarantined, per source).
    """
    if spark.conf.get("spark.sql.session.timeZone") != "UTC":
        raise ConfigError("spark.sql.session.timeZone must be UTC")
    sources = open_sources(config)
    entries = interpret(sources, load_vocabulary(config.vocabulary))
    return fuse(spark, sources, entries, key, config.as_of, tombstones)


def fuse(
    spark: SparkSession, sources: Sequence[Source], entries: Sequence[Entry], key: bytes,
    as_of: datetime | None = None, tombstones: frozenset[str] = frozenset(),
) -> Ingested:
    """`ingest` for opened sources and their interpreted entries."""
    read = judge(spark, _records(spark, sources, key), entries)
    if as_of is not None:  # before duplicates are settled: a later correction must not push out what was known
        read = read.where(F.coalesce(F.col("available_at") <= F.lit(as_of), F.lit(True)))
    read = read.persist(StorageLevel.MEMORY_AND_DISK)
    judged = without_forgotten(read, tombstones, key)
    known = F.broadcast(entry_frame(spark, entries).select("entry", "origin", "source", "target", "name", "kind", "adds"))
    wrong_units = _contradictions(spark, judged, entries).persist()  # few rows, needed by every result
    final = _overrule(judged, wrong_units).join(known, "entry", "inner")
    sound = final.filter(F.col("ignored").isNull() & F.col("reason").isNull())
    settled = settle(sound.drop("record", "detail", "reason", "unit", "ignored")).persist(StorageLevel.MEMORY_AND_DISK)
    counts = _counts(final, settled, entries)
    check_conservation(counts, sources, entries)
    kept = settled.filter("kept")
    return Ingested(
        patients=_patients(final, settled),
        observations=_observations(kept),
        exposures=_exposures(kept),
        quarantine=_quarantine(spark, final, entries),
        counts=INGEST_COUNTS.conform(spark.createDataFrame(pa.Table.from_pylist(counts))),
        cached=(read, wrong_units, settled),
    )


def _records(spark: SparkSession, sources: Sequence[Source], key: bytes) -> DataFrame:
    firsts = [sum(len(s.meanings) for s in sources[:k]) for k in range(len(sources))]
    return reduce(DataFrame.unionByName, [s.records(spark, key, first) for s, first in zip(sources, firsts)])


def _contradictions(spark: SparkSession, judged: DataFrame, entries: Sequence[Entry]) -> DataFrame:
    """(entry, patient_id, unit, contradicted) where the median is implausible in the declared unit, but not in another one."""
    ranges = entry_frame(spark, entries).select("entry", "low", "high", "alternatives")
    medians = (
        judged.filter(F.col("value").isNotNull() & F.col("patient_id").isNotNull() & ~F.array_contains("quality", "saturated"))
        .groupBy("entry", "patient_id", "unit")
        .agg(F.count(F.lit(1)).alias("n"), F.median("value").alias("median"))
        .join(F.broadcast(ranges), "entry", "inner")
        .join(F.broadcast(unit_frame(spark, entries)), ["entry", "unit"], "inner")
    )
    raw, low, high = (F.col("median") - F.col("shift")) / F.col("factor"), F.col("low"), F.col("high")
    fits_another = F.exists("alternatives", lambda a: (raw * a.factor + a.offset).between(low, high))
    wrong = medians.filter((F.col("n") >= CONTRADICTION_MINIMUM) & ~F.col("median").between(low, high) & fits_another)
    return wrong.select("entry", "patient_id", "unit", F.lit(True).alias("contradicted"))


def _overrule(judged: DataFrame, contradictions: DataFrame) -> DataFrame:
    """Refuses all records of a patient, entry and unit that contradict their unit."""
    df = judged.join(F.broadcast(contradictions), ["entry", "patient_id", "unit"], "left")
    return df.withColumn("reason", overruled(F.col("reason"), F.coalesce("contradicted", F.lit(False)))).drop("contradicted")


# --- results ------------------------------------------------------------------------------------------------------------

_PROVENANCE = ("utc_offset_minutes", "source", "file", "line", "available_at", "quality")


def _observations(kept: DataFrame) -> DataFrame:
    df = kept.filter("target = 'observation'").select(
        "patient_id", F.col("name").alias("signal"), F.col("utc").alias("time"), "value", *_PROVENANCE
    )
    return OBSERVATIONS.conform(df)


def _exposures(kept: DataFrame) -> DataFrame:
    df = kept.filter("target = 'exposure'").select(
        "patient_id",
        F.col("name").alias("agent"),
        "kind",
        F.col("utc").alias("start"),
        "end",
        F.col("value").alias("amount"),
        "label",
        *_PROVENANCE,
    )
    return EXPOSURES.conform(df)


def _patients(judged: DataFrame, settled: DataFrame) -> DataFrame:
    """Everybody whose records were seen, refused ones included; attributes from the first record that states them."""
    place = ("origin", "entry", "file", "line")

    def first_stated(name: str) -> Column:
        return F.min(F.when(F.col(name).isNotNull(), F.struct(*place, name)))[name].alias(name)

    seen = (
        judged.filter("patient_id IS NOT NULL").groupBy("patient_id").agg(F.sort_array(F.collect_set("source")).alias("sources"))
    )
    stated = settled.filter("target = 'patient'").groupBy("patient_id").agg(first_stated("sex"), first_stated("birth_date"))
    return PATIENTS.conform(seen.join(stated, "patient_id", "left").select("patient_id", "sex", "birth_date", "sources"))


def _quarantine(spark: SparkSession, judged: DataFrame, entries: Sequence[Entry]) -> DataFrame:
    schema = pa.schema([("entry", pa.int32()), ("reason", pa.string()), ("expected", pa.string())])
    expected = [
        {"entry": e.number, "reason": r.code, "expected": r.expected(e)}
        for e in entries
        for r in RULES
        if e.meaning.target in r.targets and _applies(r.code, e)
    ]
    details = F.broadcast(spark.createDataFrame(pa.Table.from_pylist(expected, schema)))
    df = judged.filter("reason IS NOT NULL").join(details, ["entry", "reason"], "left")
    return QUARANTINE.conform(
        df.select("source", "file", "line", "patient_id", "reason", F.coalesce("detail", "expected").alias("detail"), "record")
    )


def _applies(code: str, e: Entry) -> bool:
    if code == "unparsable_offset":
        return e.meaning.clock.offset_column is not None
    return True


def _counts(judged: DataFrame, settled: DataFrame, entries: Sequence[Entry]) -> list[dict]:
    """Rows of INGEST_COUNTS. What was read and refused is counted before, what was kept and dropped after duplicates."""
    record = F.col("ignored").isNull()
    before = judged.groupBy("entry").agg(
        F.count_if(~record).alias("files"),
        F.coalesce(F.sum("ignored"), F.lit(0)).alias("rows_ignored"),
        F.count_if(record).alias("rows_read"),
        F.count_if(record & F.col("reason").isNotNull()).alias("quarantined"),
    )
    after = settled.groupBy("entry").agg(F.count_if("kept").alias("accepted"), F.count_if(~F.col("kept")).alias("duplicates"))
    result = {
        e.number: {
            "source": e.meaning.source,
            "files": 0,
            "rows_ignored": 0,
            "rows_read": 0,
            "accepted": 0,
            "duplicates": 0,
            "quarantined": 0,
        }
        for e in entries
    }
    for row in [*after.collect(), *before.collect()]:
        result[row.entry] |= {k: v for k, v in row.asDict().items() if k != "entry"}
    files = {e.meaning.group: result[e.number]["files"] for e in reversed(entries) if result[e.number]["files"]}
    return [result[e.number] | {"files": files.get(e.meaning.group, 0)} for e in entries]


def check_conservation(counts: Sequence[dict], sources: Sequence[Source], entries: Sequence[Entry]) -> None:
    """Raises DataError where a source's records do not add up, or a whole source has none."""
    for c in counts:
        if c["rows_read"] != c["accepted"] + c["duplicates"] + c["quarantined"]:
            raise DataError(
                f"{c['source']}: records were lost: {c['rows_read']} read, {c['accepted']} accepted, "
                f"{c['duplicates']} duplicates, {c['quarantined']} quarantined"
            )
    for origin, source in enumerate(sources):
        if not any(c["rows_read"] for c, e in zip(counts, entries) if e.origin == origin):
            files = sum({e.meaning.group: c["files"] for c, e in zip(counts, entries) if e.origin == origin}.values())
            raise DataError(f"source {source.name}: no records in {files} files; expected at least one")
