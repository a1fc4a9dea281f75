"""Raw records of all sources to patients, observations, exposures and quarantine, with counts that must add up."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from functools import reduce

import pyarrow as pa
from pyspark import StorageLevel
from pyspark.sql import Column, DataFrame, SparkSession
from pyspark.sql import functions as F

from twinlib.config import IdentityConfig, RunConfig
from twinlib.errors import ConfigError, DataError
from twinlib.fusion import clock_jumps
from twinlib.fusion.duplicates import settle
from twinlib.fusion.entries import Entry, entry_frame, interpret, unit_frame
from twinlib.fusion.identity import claims, identities, joined, relatives, resolve
from twinlib.fusion.judge import judge
from twinlib.fusion.quality import flagged
from twinlib.fusion.rules import RULES, overruled
from twinlib.fusion.vocabulary import Sensor, load_vocabulary
from twinlib.sources import open_sources
from twinlib.sources.forgotten import tombstone, without_forgotten
from twinlib.sources.records import Source
from twinlib.tables.schemas import EVENTS, EXPOSURES, INGEST_COUNTS, OBSERVATIONS, PATIENTS, QUARANTINE

CONTRADICTION_MINIMUM = 5  # readings of one patient below which a median says nothing about the unit


@dataclass(frozen=True)
class Ingested:
    """Frames that conform to PATIENTS, OBSERVATIONS, EXPOSURES, EVENTS, QUARANTINE, INGEST_COUNTS, IDENTITIES; `release` when they are written."""

    patients: DataFrame
    observations: DataFrame
    exposures: DataFrame
    events: DataFrame
    quarantine: DataFrame
    counts: DataFrame
    identities: DataFrame
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
    vocabulary = load_vocabulary(config.vocabulary)
    entries = interpret(sources, vocabulary)
    return fuse(spark, sources, entries, key, vocabulary.sensors, config.identity, config.as_of, tombstones)


def fuse(
    spark: SparkSession, sources: Sequence[Source], entries: Sequence[Entry], key: bytes, sensors: Mapping[str, Sensor],
    identity: IdentityConfig | None = None, as_of: datetime | None = None, tombstones: frozenset[str] = frozenset(),
) -> Ingested:
    """`ingest` for opened sources, their interpreted entries, and the settings of the signals that sensors report."""
    read = judge(spark, _records(spark, sources, key), entries)
    if as_of is not None:  # before duplicates are settled: a later correction must not push out what was known
        read = read.where(F.coalesce(F.col("available_at") <= F.lit(as_of), F.lit(True)))
    read = read.persist(StorageLevel.MEMORY_AND_DISK)
    stated = claims(identity, read, sources, [e.origin for e in entries], key) if identity else []
    withdrawn = relatives(stated, tombstones, key)
    found = resolve(c for c in stated if c.patient not in withdrawn)
    alive = without_forgotten(read, tombstones | {tombstone(key, p) for p in withdrawn}, key)
    sensed = [e.number for e in entries if e.meaning.target == "observation" and e.meaning.name in sensors]
    judged = joined(spark, clock_jumps.applied(spark, alive, clock_jumps.find(alive, sensed)), found)
    known = F.broadcast(entry_frame(spark, entries).select("entry", "origin", "source", "target", "name", "kind", "adds"))
    wrong_units = _contradictions(spark, judged, entries).persist()  # few rows, needed by every result
    final = _overrule(judged, wrong_units).join(known, "entry", "inner")
    sound = final.filter(F.col("ignored").isNull() & F.col("reason").isNull())
    settled = settle(sound.drop("record", "detail", "reason", "unit", "ignored", "identifiers")).persist(StorageLevel.MEMORY_AND_DISK)
    counts = _counts(final, settled, entries)
    check_conservation(counts, sources, entries)
    kept = settled.filter("kept")
    return Ingested(
        patients=_patients(final, settled),
        observations=_observations(kept, entries, sensors),
        exposures=_exposures(kept),
        events=_events(kept),
        quarantine=_quarantine(spark, final, entries),
        counts=INGEST_COUNTS.conform(spark.createDataFrame(pa.Table.from_pylist(counts))),
        identities=identities(spark, found, sources),
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
    wrong = F.coalesce("contradicted", F.lit(False))
    return df.withColumn("reason", overruled(F.col("reason"), wrong, "unit_contradicts_values")).drop("contradicted")


# --- results ------------------------------------------------------------------------------------------------------------

_PROVENANCE = ("utc_offset_minutes", "source", "file", "line", "available_at", "quality")


def _observations(kept: DataFrame, entries: Sequence[Entry], sensors: Mapping[str, Sensor]) -> DataFrame:
    df = kept.filter("target = 'observation'").select(
        "patient_id", F.col("name").alias("signal"), F.col("utc").alias("time"), "value", "device", *_PROVENANCE
    )
    measured = [(e.meaning.name, e.meaning.has_device) for e in entries if e.meaning.target == "observation"]
    one_device = len({name for name, _ in measured}) == len(measured) and not any(named for _, named in measured)
    return OBSERVATIONS.conform(flagged(df, sensors, [e.meaning.source for e in entries], one_device))


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


def _events(kept: DataFrame) -> DataFrame:
    df = kept.filter("target = 'event'").select(
        "patient_id", F.col("name").alias("event"), F.col("utc").alias("start"), "end", "label", *_PROVENANCE
    )
    return EVENTS.conform(df)


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
        df.select("source", "file", "line", "part", "patient_id", "reason", F.coalesce("detail", "expected").alias("detail"), "record")
    )


def _applies(code: str, e: Entry) -> bool:
    if code == "unparsable_offset":
        return e.meaning.clock.offset_column is not None
    return True


def _counts(judged: DataFrame, settled: DataFrame, entries: Sequence[Entry]) -> list[dict]:
    """Rows of INGEST_COUNTS, one per source name. What was read and refused is counted before, what was kept and dropped after duplicates."""
    record = F.col("ignored").isNull()
    before = judged.groupBy("entry").agg(
        F.count_if(~record).alias("files"),
        F.coalesce(F.sum("ignored"), F.lit(0)).alias("rows_ignored"),
        F.count_if(record).alias("rows_read"),
        F.count_if(record & F.col("reason").isNotNull()).alias("quarantined"),
    )
    after = settled.groupBy("entry").agg(F.count_if("kept").alias("accepted"), F.count_if(~F.col("kept")).alias("duplicates"))
    names = ("files", "rows_ignored", "rows_read", "accepted", "duplicates", "quarantined")
    counted = {e.number: dict.fromkeys(names, 0) for e in entries}
    for row in [*after.collect(), *before.collect()]:
        counted[row.entry] |= {k: v for k, v in row.asDict().items() if k != "entry"}
    files = {e.meaning.group: counted[e.number]["files"] for e in reversed(entries) if counted[e.number]["files"]}
    result: dict[str, dict] = {}
    for e in entries:
        total = result.setdefault(e.meaning.source, {"source": e.meaning.source, **dict.fromkeys(names, 0)})
        total |= {n: total[n] + counted[e.number][n] for n in names[1:]} | {"files": files.get(e.meaning.group, 0)}
    return list(result.values())


def check_conservation(counts: Sequence[dict], sources: Sequence[Source], entries: Sequence[Entry]) -> None:
    """Raises DataError where a source's records do not add up, or a whole source has none."""
    for c in counts:
        if c["rows_read"] != c["accepted"] + c["duplicates"] + c["quarantined"]:
            raise DataError(
                f"{c['source']}: records were lost: {c['rows_read']} read, {c['accepted']} accepted, "
                f"{c['duplicates']} duplicates, {c['quarantined']} quarantined"
            )
    for origin, source in enumerate(sources):
        own = {e.meaning.source: e.meaning.group for e in entries if e.origin == origin}
        if not any(c["rows_read"] for c in counts if c["source"] in own):
            files = sum({own[c["source"]]: c["files"] for c in counts if c["source"] in own}.values())
            raise DataError(f"source {source.name}: no records in {files} files; expected at least one")
