"""Raw records of all sources to patients, observations, exposures and quarantine, with counts that must add up."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from functools import cached_property, partial

import pyarrow as pa
from py4j.protocol import Py4JJavaError
from pyspark import StorageLevel
from pyspark.sql import Column, DataFrame, Observation, SparkSession
from pyspark.sql import functions as F
from pyspark.sql.types import StructType

from twinlib.config import IdentityConfig, RunConfig
from twinlib.errors import ConfigError, DataError
from twinlib.fusion import clock_jumps
from twinlib.fusion.duplicates import settle
from twinlib.fusion.entries import Entry, described, entry_frame, interpret
from twinlib.fusion.identity import Link, claims, identities, joined, relatives, resolve
from twinlib.fusion.judge import judge
from twinlib.fusion.readings import readings
from twinlib.fusion.rules import RULES
from twinlib.fusion.survey import Judged, check_presence, contradictions, overrule, read_counts, surveyed, union
from twinlib.fusion.vocabulary import Sensor, load_vocabulary
from twinlib.sources import open_sources
from twinlib.sources.forgotten import tombstone, without_forgotten
from twinlib.sources.records import Part, Source
from twinlib.tables.contracts import Table
from twinlib.tables.ordered import AHEAD
from twinlib.tables.schemas import EVENTS, EXPOSURES, IDENTITIES, INGEST_COUNTS, OBSERVATIONS, PATIENTS, QUARANTINE
from twinlib.tables.storage import bucket_of


@dataclass
class Counted:
    """Records (`plain`) that are counted by entry while something else computes `frame`. conditions: what is counted, by name."""

    plain: DataFrame
    entries: Sequence[Entry]
    conditions: dict[str, Column]
    computed: bool = False  # `frame` has been computed

    def __post_init__(self):
        self._observation = Observation()
        self.frame = self.plain.observe(self._observation, *self._sums())

    def counts(self) -> dict[int, dict[str, int]]:
        """The counts by number of entry; what has not been counted so far is counted now."""
        found = self._observed() or self.plain.agg(*self._sums()).first().asDict()
        return {e.number: {n: found[f"{n}{e.number}"] for n in self.conditions} for e in self.entries}

    def _sums(self) -> list[Column]:
        counts = [F.count_if((F.col("entry") == e.number) & c).alias(f"{n}{e.number}") for e in self.entries for n, c in self.conditions.items()]
        return [F.count(F.lit(1)).alias("all"), *counts]

    def _observed(self) -> dict[str, int] | None:
        if not self.computed:
            return None
        try:
            return self._observation.get
        except Py4JJavaError:  # Spark saw that nothing is there, and left the counting out
            return None


@dataclass
class Ingested:
    """Frames that conform to PATIENTS, OBSERVATIONS, EXPOSURES, EVENTS, IDENTITIES, QUARANTINE; `release` when they are written.

    Each frame can be computed on its own. Their records are counted on the way (`counted`, by target and for quarantine); `survey` has
    files, rows_ignored and rows_read by number of entry.
    """

    patients: DataFrame
    ordered: DataFrame  # observations in the order in which they are stored (see tables.ordered)
    exposures: DataFrame
    events: DataFrame
    identities: DataFrame
    quarantine: DataFrame
    counted: dict[str, Counted]
    survey: DataFrame
    read: dict[int, dict[str, int]]
    spark: SparkSession
    entries: Sequence[Entry]
    cached: tuple[DataFrame, ...]

    def frames(self) -> Iterator[tuple[Table, DataFrame, Callable[[], None]]]:
        """Tables in the order in which they are to be written, each with a check to call when its frame has just been computed.

        A check raises DataError where the records of the table's sources do not add up.
        """
        frames = {
            QUARANTINE: (self.quarantine, "quarantine"), OBSERVATIONS: (self.ordered, "observation"), EXPOSURES: (self.exposures, "exposure"),
            EVENTS: (self.events, "event"), PATIENTS: (self.patients, "patient"),
        }  # fmt: skip

        def check(target: str) -> None:
            self.counted[target].computed = True
            if target != "quarantine":
                check_conservation(self.rows(target))

        for table, (frame, target) in frames.items():
            yield table, frame, partial(check, target)
        yield IDENTITIES, self.identities, lambda: None

    @property
    def observations(self) -> DataFrame:
        return OBSERVATIONS.conform(self.ordered.drop(AHEAD))

    @cached_property
    def counts(self) -> DataFrame:
        """INGEST_COUNTS. Raises DataError where records were lost."""
        rows = by_source(row for target in ("patient", "observation", "exposure", "event", "none") for row in self.rows(target))
        check_conservation(rows)
        return INGEST_COUNTS.conform(self.spark.createDataFrame(pa.Table.from_pylist(rows)))

    def landed(self) -> DataFrame:
        """source, file, files (1 where the file is counted under this source), rows_ignored, rows_read."""
        names = F.broadcast(entry_frame(self.spark, self.entries).select("entry", "source"))
        sums = [F.sum(n).alias(m) for n, m in (("files", "files"), ("ignored", "rows_ignored"), ("rows", "rows_read"))]
        return self.survey.join(names, "entry", "inner").groupBy("source", "file").agg(*sums)

    def rows(self, target: str) -> list[dict]:
        """What INGEST_COUNTS has of the entries of one target, a row for each."""
        some, refused = [e for e in self.entries if e.meaning.target == target], self.counted["quarantine"].counts()
        kept = self.counted[target].counts() if target in self.counted else {e.number: {"accepted": 0, "duplicates": 0} for e in some}
        return [{"source": e.meaning.source, **self.read[e.number], **kept[e.number], **refused[e.number]} for e in some]

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
    return fuse(
        spark, sources, entries, key, vocabulary.sensors, config.storage.buckets, None, config.identity, config.as_of, tombstones,
    )  # fmt: skip


def fuse(
    spark: SparkSession, sources: Sequence[Source], entries: Sequence[Entry], key: bytes, sensors: Mapping[str, Sensor], buckets: int = 1,
    stored: Callable[[Table], DataFrame] | None = None, identity: IdentityConfig | None = None, as_of: datetime | None = None,
    tombstones: frozenset[str] = frozenset(),
) -> Ingested:  # fmt: skip
    """`ingest` for opened sources, their interpreted entries, and the settings of the signals that sensors report.

    stored: reads tables that hold earlier records; those of the patients concerned stand beside the new ones, as if they had come
    together, and a source may then have no records.

    What comes through Python is kept; what Spark reads itself is read anew for each of: survey, quarantine, and the table it goes to.
    """
    parts, cached = _judged(spark, sources, entries, key, as_of)
    claimed = union(p.frame.select("entry", "patient_id", "identifiers") for p in parts)
    stated = claims(identity, claimed, sources, [e.origin for e in entries], key) if identity else []
    withdrawn = relatives(stated, tombstones, key)
    found = resolve(c for c in stated if c.patient not in withdrawn)
    gone = tombstones | {tombstone(key, p) for p in withdrawn}
    parts = [Judged(_one_clock(spark, without_forgotten(p.frame, gone, key), p.entries, sensors, found), p.entries) for p in parts]
    survey = surveyed(spark, parts).persist()
    read = read_counts(survey, entries)
    if stored is None:
        check_presence(read, sources, entries)
    seen = survey.select("patient_id").where("patient_id IS NOT NULL").distinct()
    earlier = {t: _stored(spark, stored(table), seen, entries) for t, table in TABLES.items()} if stored else {}
    wrong_units = contradictions(survey, parts).persist()
    contradicted = {r.entry for r in wrong_units.select("entry").distinct().collect()}
    final = [Judged(overrule(p, wrong_units, contradicted), p.entries) for p in parts]
    fates = {"accepted": F.col("kept"), "duplicates": ~F.col("kept")}
    sound = {t: _sound(spark, final, t, buckets, earlier.get(t)) for t in ("patient", "observation", "exposure", "event")}
    settled = {
        t: readings(df, sound["exposure"], entries, sensors, buckets, t in earlier)
        if t == "observation"
        else settle(df.repartitionById(buckets, F.col("bucket")), t, t in earlier)
        for t, df in sound.items()
    }
    counted = {t: Counted(df, [e for e in entries if e.meaning.target == t], fates) for t, df in settled.items()}
    counted["quarantine"] = Counted(union(_refused(p.frame) for p in final), entries, {"quarantined": F.lit(True)})
    return Ingested(
        patients=_patients(spark, survey, counted["patient"].frame, entries),
        ordered=counted["observation"].frame.filter("kept").drop("entry", "kept"),
        exposures=_exposures(counted["exposure"].frame.filter("kept")),
        events=_events(counted["event"].frame.filter("kept")),
        identities=identities(spark, found, sources),
        quarantine=_quarantine(spark, counted["quarantine"].frame, entries),
        counted=counted,
        survey=survey,
        read=read,
        spark=spark,
        entries=entries,
        cached=(*cached, survey, wrong_units),
    )


def _judged(
    spark: SparkSession, sources: Sequence[Source], entries: Sequence[Entry], key: bytes, as_of: datetime | None
) -> tuple[list[Judged], list[DataFrame]]:
    """Every part judged record by record, without what became known after `as_of`; and what is kept of them."""
    parts, cached, first = [], [], 0
    for source in sources:
        records = source.records(spark, key, first)
        for part in [Part(records)] if isinstance(records, DataFrame) else records:
            some = entries[first : first + len(source.meanings)] if part.entry is None else [entries[part.entry]]
            frame = judge(spark, part.frame, some)
            if as_of is not None:  # before duplicates are settled: a later correction must not push out what was known
                frame = frame.where(F.coalesce(F.col("available_at") <= F.lit(as_of), F.lit(True)))
            if part.entry is None:
                cached.append(frame.persist(StorageLevel.MEMORY_AND_DISK))
            parts.append(Judged(frame, some))
        first += len(source.meanings)
    return parts, cached


def _one_clock(spark: SparkSession, judged: DataFrame, entries: Sequence[Entry], sensors: Mapping[str, Sensor], found: Sequence[Link]) -> DataFrame:
    """`judged` with the records of sensors whose clock was set refused or moved, and each person under one id."""
    sensed = [e.number for e in entries if e.meaning.target == "observation" and e.meaning.name in sensors]
    return joined(spark, clock_jumps.applied(spark, judged, clock_jumps.find(judged, sensed)), found)


# what duplicates and results need of a sound record
_SOUND = (
    "entry",
    "file",
    "line",
    "part",
    "device",
    "patient_id",
    "utc",
    "end",
    "value",
    "label",
    "utc_offset_minutes",
    "available_at",
    "quality",
    "sex",
    "birth_date",
)
_NAMES = ("origin", "source", "target", "name", "kind", "adds")
TABLES = {"observation": OBSERVATIONS, "exposure": EXPOSURES}


def _stored(spark: SparkSession, table: DataFrame, patients: DataFrame, entries: Sequence[Entry]) -> DataFrame:
    """Stored rows of some patients as sound records (_SOUND and _NAMES)."""
    own = entry_frame(spark, entries).select("entry", *_NAMES)
    df = table.join(patients, "patient_id", "left_semi")
    if "signal" in df.columns:
        df = df.withColumnsRenamed({"signal": "name", "time": "utc"}).join(F.broadcast(own.drop("kind").dropDuplicates(["source", "name"])), ["source", "name"])
        df = df.withColumns({"end": F.lit(None).cast("timestamp"), "label": F.lit(None).cast("string"), "kind": F.lit(None).cast("string")})
    else:
        df = df.withColumnsRenamed({"agent": "name", "start": "utc", "amount": "value"})
        df = df.join(F.broadcast(own.dropDuplicates(["source", "name", "kind"])), ["source", "name", "kind"])
        df = df.withColumn("device", F.lit(None).cast("string"))
    df = df.withColumns({"part": F.lit(None).cast("int"), "sex": F.lit(None).cast("string"), "birth_date": F.lit(None).cast("date")})
    return df.select(*_SOUND, *_NAMES)


def _sound(spark: SparkSession, parts: Sequence[Judged], target: str, buckets: int, earlier: DataFrame | None = None) -> DataFrame:
    """Sound records of a target, with the bucket of their patients."""
    frames = []
    for part in parts:
        if any(e.meaning.target == target for e in part.entries):
            df = part.frame.filter(F.col("ignored").isNull() & F.col("reason").isNull()).select(*_SOUND)
            df = described(spark, df, part.entries, *_NAMES)
            frames.append(df if len(part.entries) == 1 else df.filter(F.col("target") == target))
    if not frames:
        frames = [described(spark, parts[0].frame.select(*_SOUND), parts[0].entries, *_NAMES).filter(F.lit(False))]
    if earlier is not None:
        frames.append(earlier)
    return union(frames).withColumn("bucket", bucket_of(buckets))


# --- results ------------------------------------------------------------------------------------------------------------

_PROVENANCE = ("utc_offset_minutes", "source", "file", "line", "available_at", "quality")


def _exposures(kept: DataFrame) -> DataFrame:
    df = kept.select(
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
    df = kept.select(
        "patient_id", F.col("name").alias("event"), F.col("utc").alias("start"), "end", "label", *_PROVENANCE
    )
    return EVENTS.conform(df)


def _patients(spark: SparkSession, survey: DataFrame, stated: DataFrame, entries: Sequence[Entry]) -> DataFrame:
    """Everybody whose records were seen, refused ones included; attributes from the first record that states them."""
    place = ("origin", "entry", "file", "line")

    def first_stated(name: str) -> Column:
        return F.min(F.when(F.col(name).isNotNull(), F.struct(*place, name)))[name].alias(name)

    names = F.broadcast(entry_frame(spark, entries).select("entry", "source"))
    seen = (
        survey.filter("patient_id IS NOT NULL")
        .join(names, "entry", "inner")
        .groupBy("patient_id")
        .agg(F.sort_array(F.collect_set("source")).alias("sources"))
    )
    attributes = stated.groupBy("patient_id").agg(first_stated("sex"), first_stated("birth_date"))
    return PATIENTS.conform(seen.join(attributes, "patient_id", "left").select("patient_id", "sex", "birth_date", "sources"))


def _quarantine(spark: SparkSession, refused: DataFrame, entries: Sequence[Entry]) -> DataFrame:
    schema = pa.schema([("entry", pa.int32()), ("reason", pa.string()), ("expected", pa.string())])
    expected = [
        {"entry": e.number, "reason": r.code, "expected": r.expected(e)}
        for e in entries
        for r in RULES
        if e.meaning.target in r.targets and _applies(r.code, e)
    ]
    details = F.broadcast(spark.createDataFrame(pa.Table.from_pylist(expected, schema)))
    names = F.broadcast(entry_frame(spark, entries).select("entry", "source"))
    refused = refused.join(names, "entry", "inner").join(details, ["entry", "reason"], "left")
    return QUARANTINE.conform(
        refused.select("source", "file", "line", "part", "patient_id", "reason", F.coalesce("detail", "expected").alias("detail"), "record")
    )


def _refused(df: DataFrame) -> DataFrame:
    """Refused records; the text of those that Spark has read itself is made here, and for no other."""
    nested = isinstance(df.schema["record"].dataType, StructType)
    record = F.to_json("record", {"ignoreNullFields": "false"}) if nested else F.col("record")
    return df.filter(F.col("reason").isNotNull()).select(
        "entry", "file", "line", "part", "patient_id", "reason", "detail", record.alias("record")
    )


def _applies(code: str, e: Entry) -> bool:
    if code == "unparsable_offset":
        return e.meaning.clock.offset_column is not None
    return True


def by_source(rows: Iterable[dict]) -> list[dict]:
    """Rows of INGEST_COUNTS: those of entries that are counted under one source name added up; files are the same for each."""
    result: dict[str, dict] = {}
    for row in rows:
        total = result.setdefault(row["source"], {n: v if n in ("source", "files") else 0 for n, v in row.items()})
        total |= {n: total[n] + v for n, v in row.items() if n not in ("source", "files")}
    return list(result.values())


def check_conservation(counts: Iterable[dict]) -> None:
    """Raises DataError where the records of an entry do not add up."""
    for c in counts:
        if c["rows_read"] != c["accepted"] + c["duplicates"] + c["quarantined"]:
            raise DataError(
                f"{c['source']}: records were lost: {c['rows_read']} read, {c['accepted']} accepted, "
                f"{c['duplicates']} duplicates, {c['quarantined']} quarantined"
            )
