"""Raw records of all sources to patients, observations, exposures and quarantine, with counts that must add up."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from functools import reduce

import pyarrow as pa
from pyspark import StorageLevel
from pyspark.sql import Column, DataFrame, SparkSession
from pyspark.sql import functions as F

from twinlib.config import RunConfig
from twinlib.errors import ConfigError, DataError
from twinlib.fusion import clocks
from twinlib.fusion.duplicates import settle
from twinlib.fusion.entries import FIXED, Entry, entry_frame, interpret, unit_frame
from twinlib.fusion.rules import RULES, reason
from twinlib.fusion.vocabulary import load_vocabulary
from twinlib.sources import open_sources
from twinlib.sources.mapping import Clock
from twinlib.sources.records import Source
from twinlib.tables.schemas import EXPOSURES, INGEST_COUNTS, OBSERVATIONS, PATIENTS, QUARANTINE

CONTRADICTION_MINIMUM = 5  # readings of one patient below which a median says nothing about the unit
_NUMBER = r"^[+-]?(\d+(\.\d*)?|\.\d+)([eE][+-]?\d{1,3})?$"
_SEXES = {"female": "female", "f": "female", "woman": "female", "male": "male", "m": "male", "man": "male",
          "other": "other", "o": "other", "unknown": "unknown", "u": "unknown"}


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


def ingest(spark: SparkSession, config: RunConfig, key: bytes) -> Ingested:
    """Read every source of the run. Files are parsed once.

    Raises ConfigError or DataError where a mapping is wrong, files are missing, a source holds no record at all, or records
    are lost on the way (rows read must equal accepted + duplicates + quarantined, per source).
    """
    if spark.conf.get("spark.sql.session.timeZone") != "UTC":
        raise ConfigError("spark.sql.session.timeZone must be UTC")
    sources = open_sources(config)
    entries = interpret(sources, load_vocabulary(config.vocabulary))
    return fuse(spark, sources, entries, key)


def fuse(spark: SparkSession, sources: Sequence[Source], entries: Sequence[Entry], key: bytes) -> Ingested:
    """`ingest` for opened sources and their interpreted entries."""
    read = prepare(spark, _records(spark, sources, key), entries).persist(StorageLevel.MEMORY_AND_DISK)
    judged = judge(spark, read, entries)
    sound = judged.filter(F.col("ignored").isNull() & F.col("reason").isNull())
    settled = settle(sound.drop("record", "detail", "fault", "reason")).persist(StorageLevel.MEMORY_AND_DISK)
    counts = _counts(judged, settled, entries)
    _check(counts, sources, entries)
    kept = settled.filter("kept")
    return Ingested(
        patients=_patients(judged, settled),
        observations=_observations(kept),
        exposures=_exposures(kept),
        quarantine=_quarantine(spark, judged, entries),
        counts=INGEST_COUNTS.conform(spark.createDataFrame(pa.Table.from_pylist(counts))),
        cached=(read, settled),
    )


def _records(spark: SparkSession, sources: Sequence[Source], key: bytes) -> DataFrame:
    firsts = [sum(len(s.meanings) for s in sources[:k]) for k in range(len(sources))]
    return reduce(DataFrame.unionByName, [s.records(spark, key, first) for s, first in zip(sources, firsts)])


# --- reading texts ------------------------------------------------------------------------------------------------------


def _choose(entries: Iterable[Entry], of: Callable[[Entry], object], column: Callable[..., Column], default: Column) -> Column:
    """`column(x)` for records of the entries with `of(entry) == x`; entries with None get `default`."""
    groups: dict[object, list[int]] = {}
    for e in entries:
        if of(e) is not None:
            groups.setdefault(of(e), []).append(e.number)
    chain = F
    for x, numbers in groups.items():
        chain = chain.when(F.col("entry").isin(numbers), column(x))
    return chain.otherwise(default) if groups else default


def _clock(e: Entry) -> Clock | None:
    return e.meaning.clock


def _by_clock(entries: Iterable[Entry], column: Callable[[Clock], Column], type_: str) -> Column:
    return _choose(entries, _clock, column, F.lit(None).cast(type_))


def _number(text: Column) -> Column:
    return F.when(text.rlike(_NUMBER), text.try_cast("double"))


def prepare(spark: SparkSession, records: DataFrame, entries: Sequence[Entry]) -> DataFrame:
    """Numbers, canonical values and wall-clock readings of the records' texts; needs no other record of the file."""
    null_double, measured = F.lit(None).cast("double"), [e for e in entries if e.meaning.value]
    commas = [e.number for e in measured if e.meaning.value.decimal == ","]
    digits = F.when(F.col("entry").isin(commas), F.replace("value", F.lit(","), F.lit("."))).otherwise(F.col("value")) if commas else F.col("value")
    word = _choose(
        measured, lambda e: tuple(e.meaning.value.texts.items()) or None,
        lambda words: reduce(lambda chain, w: chain.when(F.col("value") == w[0], F.lit(w[1])), words, F).otherwise(null_double), null_double,
    )
    sex = F.lower("sex")
    own_codes = _choose(
        entries, lambda e: e.meaning.attributes and tuple(e.meaning.attributes.sex_values.items()) or None,
        lambda codes: reduce(lambda chain, c: chain.when(F.col("sex") == c[0], F.lit(c[1])), codes, F).otherwise(F.lit(None)), F.lit(None),
    )
    common = reduce(lambda chain, c: chain.when(sex == c[0], F.lit(c[1])), _SEXES.items(), F).otherwise(F.lit(None))
    stamps: dict[str, Column] = {}
    for text, prefix, some in (
        ("time", "", [e for e in entries if e.meaning.clock]),
        ("end", "end_", [e for e in entries if e.meaning.has_end]),
        ("available", "available_", [e for e in entries if e.meaning.has_available]),
    ):
        stamps |= {
            f"{prefix}first": _by_clock(some, lambda c: clocks.readings(F.col(text), c)[0], "timestamp"),
            f"{prefix}second": _by_clock(some, lambda c: clocks.readings(F.col(text), c)[1], "timestamp"),
            f"{prefix}named": F.coalesce(_by_clock(some, lambda c: clocks.explicit(F.col(text), c), "boolean"), F.lit(False)),
        }
    stated = [F.col(c).isNotNull().alias(f"{c}_stated") for c in ("offset", "available", "sex")]
    return (
        records.withColumns({"number": F.coalesce(word, _number(digits)), "unit": F.coalesce("unit", F.lit(FIXED))})
        .join(F.broadcast(entry_frame(spark, entries)), "entry", "inner")
        .join(F.broadcast(unit_frame(spark, entries)), ["entry", "unit"], "left")
        .select(
            "entry", "origin", "source", "target", "name", "kind", "adds", "low", "low_open", "high", "alternatives",
            "file", "line", "patient_id", "ignored", "fault", "detail", "record", "number", "unit",
            (F.col("number") * F.col("factor") + F.col("shift")).alias("value"),
            F.lower("label").alias("label"),
            (_number(F.col("duration")) * F.col("duration_seconds")).alias("seconds"),
            _number(F.col("offset")).alias("offset_minutes"),
            F.coalesce(own_codes, common).alias("sex"),
            _birth_date(entries).alias("birth_date"),
            *[c.alias(name) for name, c in stamps.items()],
            F.col("time").isNull().alias("no_time"),
            F.col("value").isNull().alias("no_value"),
            word.isNotNull().alias("worded"),
            (F.col("end").isNotNull() | F.col("duration").isNotNull()).alias("end_stated"),
            F.col("birth_date").isNotNull().alias("birth_stated"),
            *stated,
        )
    )


def _birth_date(entries: Sequence[Entry]) -> Column:
    """A date, or the first of July where only the year is known."""
    text = F.col("birth_date")
    return _choose(
        entries, lambda e: e.meaning.attributes and (e.meaning.attributes.birth_year is not None, e.meaning.attributes.birth_date_format),
        lambda how: F.when(text.rlike(r"^\d{4}$"), F.try_to_timestamp(F.concat(text, F.lit("-07-01")), F.lit("yyyy-MM-dd")).cast("date"))
        if how[0] else F.try_to_timestamp(text, F.lit(how[1])).cast("date"),
        F.lit(None).cast("date"),
    )


# --- judging ------------------------------------------------------------------------------------------------------------


def judge(spark: SparkSession, df: DataFrame, entries: Sequence[Entry]) -> DataFrame:
    """Instants in UTC, quality flags, and `reason` (null = sound), with what the other records of file and patient tell."""
    undecided = [e.number for e in entries if e.meaning.clock and e.meaning.clock.order == "auto"]
    if undecided:
        orders = clocks.date_orders(df.filter(F.col("entry").isin(undecided) & ~F.col("no_time")))
        df = df.join(F.broadcast(orders), "file", "left")
    else:
        df = df.withColumn("date_order", F.lit(None).cast("string"))
    timed = [e for e in entries if e.meaning.clock]
    offset, usable = F.col("offset_minutes"), F.abs("offset_minutes") <= 18 * 60
    whole_offset = F.when(usable, offset).cast("int")

    def instant(prefix: str) -> Column:
        wall = F.when(F.col("date_order") == "second", F.col(f"{prefix}second")).otherwise(F.col(f"{prefix}first"))
        return _by_clock(timed, lambda c: clocks.to_utc(wall, F.col(f"{prefix}named"), c, whole_offset), "timestamp")

    def of_clock(fn) -> Column:
        found = _by_clock(timed, lambda c: fn(F.col("wall"), F.col("utc"), F.col("named"), c), "boolean")
        return F.coalesce(found, F.lit(False))

    wall = F.when(F.col("date_order") == "second", F.col("second")).otherwise(F.col("first"))
    after = F.when(F.col("seconds").between(0, 366 * 86400), F.timestamp_micros(F.unix_micros("utc") + F.round(F.col("seconds") * 1e6).cast("bigint")))
    needs_offset = [e.number for e in timed if e.meaning.clock.zone == "offset"]
    return (
        df.join(F.broadcast(_contradictions(df)), ["entry", "patient_id", "unit"], "left")
        .withColumns({"wall": wall, "utc": instant(""), "contradicted": F.coalesce("contradicted", F.lit(False))})
        .withColumns({
            "end": F.coalesce(instant("end_"), after),
            "available": F.when(F.col("available_stated"), F.greatest(instant("available_"), "utc")),
            "utc_offset_minutes": _by_clock(timed, lambda c: clocks.local_offset(F.col("utc"), c, whole_offset), "int"),
            "nonexistent": of_clock(clocks.nonexistent),
            "needs_offset": F.col("entry").isin(needs_offset) if needs_offset else F.lit(False),
            "quality": F.array_compact(F.array(
                F.when(of_clock(clocks.ambiguous), F.lit("ambiguous_local_time")),
                F.when(F.col("worded"), F.lit("saturated")),
            )),
        })
        .withColumn("reason", F.when(F.col("ignored").isNull(), reason()))
        .select(
            "entry", "origin", "source", "target", "name", "kind", "adds", "file", "line", "patient_id", "ignored", "fault", "detail", "record",
            "reason", "utc", "end", "value", "label", "utc_offset_minutes", F.coalesce("available", "utc").alias("available_at"), "quality",
            "sex", "birth_date",
        )
    )


def _contradictions(df: DataFrame) -> DataFrame:
    """(entry, patient_id, unit, contradicted) where a patient's median is implausible in the declared unit, not in another."""
    median = F.col("median")
    medians = (
        df.filter(F.col("number").isNotNull() & F.col("value").isNotNull() & F.col("patient_id").isNotNull() & ~F.col("worded"))
        .groupBy("entry", "patient_id", "unit")
        .agg(
            F.count(F.lit(1)).alias("n"), F.median("number").alias("median"), F.median("value").alias("canonical"),
            *[F.first(c).alias(c) for c in ("low", "high", "alternatives")],  # the same for all records of an entry
        )
    )
    fits = F.exists("alternatives", lambda a: (median * a.factor + a.offset).between(F.col("low"), F.col("high")))
    return medians.filter((F.col("n") >= CONTRADICTION_MINIMUM) & ~F.col("canonical").between(F.col("low"), F.col("high")) & fits).select(
        "entry", "patient_id", "unit", F.lit(True).alias("contradicted")
    )


# --- results ------------------------------------------------------------------------------------------------------------

_PROVENANCE = ("utc_offset_minutes", "source", "file", "line", "available_at", "quality")


def _observations(kept: DataFrame) -> DataFrame:
    df = kept.filter("target = 'observation'").select("patient_id", F.col("name").alias("signal"), F.col("utc").alias("time"), "value", *_PROVENANCE)
    return OBSERVATIONS.conform(df)


def _exposures(kept: DataFrame) -> DataFrame:
    df = kept.filter("target = 'exposure'").select(
        "patient_id", F.col("name").alias("agent"), "kind", F.col("utc").alias("start"), "end", F.col("value").alias("amount"), "label", *_PROVENANCE
    )
    return EXPOSURES.conform(df)


def _patients(judged: DataFrame, settled: DataFrame) -> DataFrame:
    """Everybody whose records were seen, refused ones included; attributes from the first record that states them."""
    place = ("origin", "entry", "file", "line")

    def first_stated(name: str) -> Column:
        return F.min(F.when(F.col(name).isNotNull(), F.struct(*place, name)))[name].alias(name)

    seen = judged.filter("patient_id IS NOT NULL").groupBy("patient_id").agg(F.sort_array(F.collect_set("source")).alias("sources"))
    stated = settled.filter("target = 'patient'").groupBy("patient_id").agg(first_stated("sex"), first_stated("birth_date"))
    return PATIENTS.conform(seen.join(stated, "patient_id", "left").select("patient_id", "sex", "birth_date", "sources"))


def _quarantine(spark: SparkSession, judged: DataFrame, entries: Sequence[Entry]) -> DataFrame:
    schema = pa.schema([("entry", pa.int32()), ("reason", pa.string()), ("expected", pa.string())])
    expected = [
        {"entry": e.number, "reason": r.code, "expected": r.expected(e)}
        for e in entries for r in RULES if e.meaning.target in r.targets and _applies(r.code, e)
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
        F.count_if(~record).alias("files"), F.coalesce(F.sum("ignored"), F.lit(0)).alias("rows_ignored"), F.count_if(record).alias("rows_read"),
        F.count_if(record & F.col("reason").isNotNull()).alias("quarantined"),
    )
    after = settled.groupBy("entry").agg(F.count_if("kept").alias("accepted"), F.count_if(~F.col("kept")).alias("duplicates"))
    result = {
        e.number: {"source": e.meaning.source, "files": 0, "rows_ignored": 0, "rows_read": 0, "accepted": 0, "duplicates": 0, "quarantined": 0}
        for e in entries
    }
    for row in [*after.collect(), *before.collect()]:
        result[row.entry] |= {k: v for k, v in row.asDict().items() if k != "entry"}
    files = {e.meaning.group: result[e.number]["files"] for e in reversed(entries) if result[e.number]["files"]}
    return [result[e.number] | {"files": files.get(e.meaning.group, 0)} for e in entries]


def _check(counts: Sequence[dict], sources: Sequence[Source], entries: Sequence[Entry]) -> None:
    for c in counts:
        if c["rows_read"] != c["accepted"] + c["duplicates"] + c["quarantined"]:
            raise DataError(
                f"{c['source']}: records were lost: {c['rows_read']} read, {c['accepted']} accepted, {c['duplicates']} duplicates, "
                f"{c['quarantined']} quarantined"
            )
    for origin, source in enumerate(sources):
        if not any(c["rows_read"] for c, e in zip(counts, entries) if e.origin == origin):
            files = sum({e.meaning.group: c["files"] for c, e in zip(counts, entries) if e.origin == origin}.values())
            raise DataError(f"source {source.name}: no records in {files} files; expected at least one")
