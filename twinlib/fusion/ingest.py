"""Raw records of all sources to patients, observations, exposures and quarantine, with counts that must add up.

Spark moves blobs of judged records, a handful per task, and never sees a record before it is a row of a table (see docs/fusion.md).
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import datetime
from functools import reduce

import pyarrow as pa
from pyspark import StorageLevel
from pyspark.sql import DataFrame, SparkSession
from pyspark.sql import functions as F

from twinlib.config import IdentityConfig, RunConfig
from twinlib.errors import ConfigError
from twinlib.fusion import blobs, survey, tables
from twinlib.fusion.arrays import decoded
from twinlib.fusion.clock_jumps import Jump
from twinlib.fusion.clocks import micros_of
from twinlib.fusion.entries import Entry, interpret
from twinlib.fusion.identity import claims, identities, relatives, resolve
from twinlib.fusion.ingested import TARGETS, ByPart, Counted, Counts, Ingested
from twinlib.fusion.reading import CLAIMS, REFUSED, Reading, balanced, parts_for, placed_anew, read, refused_later, stored_records
from twinlib.fusion.readings import RECORD, Finisher
from twinlib.fusion.verdicts import AMOUNTS, SERIES, Judges, Verdicts
from twinlib.fusion.vocabulary import Sensor, load_vocabulary
from twinlib.sources import open_sources
from twinlib.sources.forgotten import tombstone
from twinlib.sources.records import Job, Source
from twinlib.tables.contracts import Table
from twinlib.tables.ordered import AHEAD, PARTS
from twinlib.tables.schemas import EXPOSURES, OBSERVATIONS, QUARANTINE

KEPT = {"observation": OBSERVATIONS, "exposure": EXPOSURES}  # what stored records are read again of
_SURVEY = "entry int, source string, patient_id string, file string, files bigint, ignored bigint, rows bigint"


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

    Every file is read once; the blobs of its judged records are kept on disk by part of a bucket of patients, and every table is made from them.
    Files with records that are refused only beside others are read again, for the texts of these.
    """
    jobs = _jobs(sources)
    parts = parts_for(jobs, buckets)
    how = Reading(tuple(entries), key, None if as_of is None else micros_of(as_of), frozenset() if identity else tombstones)
    identified = identity is not None
    found = _over(spark, jobs, lambda _, some: read(some, how, parts, identified), blobs.SCHEMA)
    links, cached = [], []
    if identity or stored:
        cached.append(found.persist(StorageLevel.DISK_ONLY))
    canonical: dict[str, str] = {}
    if identity:
        stated = claims(identity, _claimed(found), sources, [e.origin for e in entries], key)
        withdrawn = relatives(stated, tombstones, key)
        links = resolve(c for c in stated if c.patient not in withdrawn)
        canonical = {x.patient: x.canonical for x in links if x.patient != x.canonical}
        gone, k = tombstones | {tombstone(key, p) for p in withdrawn}, survey.units(entries)
        if canonical or gone:
            found = found.mapInArrow(lambda batches: placed_anew(batches, parts, canonical, lambda p: tombstone(key, p) in gone, k), blobs.SCHEMA)
    if stored:
        seen = _surveyed(found, entries).select("patient_id").where("patient_id IS NOT NULL").distinct()
        found = reduce(DataFrame.unionByName, [found, *(_stored(stored(t), seen, target, entries, parts) for target, t in KEPT.items())])
    placed = found.repartitionById(parts, F.col("part")).persist(StorageLevel.DISK_ONLY)  # blobs of megabytes soon fill a heap
    verdicts, read_ = _decided(placed, entries, Judges.of(entries, sensors))
    if stored is None:
        survey.check_presence(read_, sources, entries)
    make = _Maker(spark, placed, parts, tuple(entries), verdicts, bool(stored))
    refused = make.quarantine([j for j in jobs if verdicts.files and j.shown(key) in verdicts.files], how, canonical)
    return Ingested(
        counted={"quarantine": refused, **{target: make.table(target, sensors) for target in TARGETS}},
        identities=identities(spark, links, sources),
        survey=_surveyed(placed, entries),
        read=read_,
        spark=spark,
        entries=entries,
        cached=(*cached, placed),
    )


def _jobs(sources: Sequence[Source]) -> list[Job]:
    jobs, first = [], 0
    for source in sources:
        jobs += source.jobs(first)
        first += len(source.meanings)
    return jobs


def _over(spark: SparkSession, jobs: Sequence[Job], work: Callable[[int, list[Job]], Iterator[pa.RecordBatch]], schema: str) -> DataFrame:
    """What `work` makes of the files of each task, and its number. The list of files travels inside the function: no path, and so no id, is in a plan."""
    tasks = balanced(jobs, spark.sparkContext.defaultParallelism)

    def run(batches):
        for batch in batches:
            for task in batch.column(0).to_pylist():
                yield from work(task, tasks[task])

    return spark.range(0, len(tasks), 1, len(tasks)).mapInArrow(run, schema)


def _only(found: DataFrame, *kinds: str) -> DataFrame:
    return found.where(F.col("kind").isin(*kinds))


def _claimed(found: DataFrame) -> DataFrame:
    def run(batches):
        for table in blobs.gathered(batches, {"claims": CLAIMS.names}).values():
            yield from pa.table({n: decoded(table[n]) for n in CLAIMS.names}).to_batches()

    return _only(found, "claims").mapInArrow(run, "entry int, patient_id string, identifiers string")


def _surveyed(found: DataFrame, entries: Sequence[Entry]) -> DataFrame:
    sources = [e.meaning.source for e in entries]

    def run(batches):
        for table in blobs.gathered(batches, {"survey": ["entry", "patient_id", "file", "files", "ignored", "rows"]}).values():
            total = survey.summed(table, ("entry", "patient_id", "file"), ("files", "ignored", "rows"))
            named = total.append_column("source", pa.array(sources, pa.string()).take(total["entry"].combine_chunks()))
            yield from named.select([c.split()[0] for c in _SURVEY.split(", ")]).to_batches()

    return _only(found, "survey").mapInArrow(run, _SURVEY)


def _stored(table: DataFrame, patients: DataFrame, target: str, entries: Sequence[Entry], parts: int) -> DataFrame:
    """Stored rows of some patients as blobs of sound records (`stored_<target>`)."""

    def run(batches):
        packer = blobs.Packer(parts)
        for batch in batches:
            yield from packer.add(f"stored_{target}", stored_records(pa.Table.from_batches([batch]), target, entries))
        yield from packer.rest()

    return table.join(patients, "patient_id", "left_semi").mapInArrow(run, blobs.SCHEMA)


def _decided(placed: DataFrame, entries: Sequence[Entry], judges: Judges) -> tuple[Verdicts, dict[int, dict[str, int]]]:
    """What the records of each patient say together, and the counts of what was read."""
    columns: dict[str, Sequence[str] | None] = {"survey": None}
    if judges.sensed:
        columns["observation"] = SERIES
    if judges.rates and judges.doses:
        columns["exposure"] = AMOUNTS

    def run(batches):
        found = blobs.gathered(batches, columns)
        wrong, jumps = judges.found(found.get("survey"), found.get("observation"), found.get("exposure"))
        read_ = []
        if "survey" in found:
            sums = survey.summed(found["survey"], ("entry",), ("files", "ignored", "rows"))
            read_ = sums.to_pylist()
        yield pa.RecordBatch.from_pydict({"found": [json.dumps({"wrong": wrong, "jumps": jumps, "read": read_})]})

    wrong, jumps, sums = [], [], {}
    for row in _only(placed, *columns).mapInArrow(run, "found string").collect():
        found = json.loads(row.found)
        wrong += [tuple(w) for w in found["wrong"]]
        jumps += [Jump(*j) for j in found["jumps"]]
        for r in found["read"]:
            total = sums.setdefault(r["entry"], {"files": 0, "ignored": 0, "rows": 0})
            for name in total:
                total[name] += r[name]
    return Verdicts.of(wrong, jumps), survey.read_counts(sums, entries)


@dataclass(frozen=True)
class _Maker:
    """Makes the frames of tables from the blobs."""

    spark: SparkSession
    placed: DataFrame
    parts: int
    entries: tuple[Entry, ...]
    verdicts: Verdicts
    again: bool

    def table(self, target: str, sensors: Mapping[str, Sensor]) -> Counted:
        table, entries, verdicts, again = TARGETS[target], self.entries, self.verdicts, self.again
        finisher = Finisher(entries, sensors, again)
        columns: dict[str, Sequence[str] | None] = {f"{prefix}{target}": None for prefix in ("", "stored_")}
        if target == "observation":
            some = [*RECORD, "unit"]
            columns = dict.fromkeys(["observation", "stored_observation", *(["exposure", "stored_exposure"] if finisher.doses else [])], some)
        if target == "patient":
            columns["survey"] = ["entry", "patient_id"]

        def rows(found: dict[str, pa.Table]) -> Iterator[tuple[pa.Table, Counts]]:
            seen = found.pop("survey", None)
            sound = [t if kind.startswith("stored") else verdicts.applied(t) for kind, t in found.items()]
            if seen is not None:
                yield tables.people(seen, *(sound or [None]), entries)
            elif sound and target == "observation":
                for done in finisher(blobs.joined(sound)):
                    chosen = done.filter(done["kept"]).drop_columns(["entry", "kept"])
                    yield chosen, tables.counts_of(done["entry"].to_numpy(), done["kept"].to_numpy())
            elif sound:
                yield tables.lasting(blobs.joined(sound), table, entries, again)

        made = self._counted(self.placed, columns, rows, f"{_ddl(table)}, {AHEAD} boolean")
        return replace(made, frame=made.frame.withMetadata(AHEAD, {PARTS: self.parts}))

    def quarantine(self, later: Sequence[Job], how: Reading, canonical: Mapping[str, str]) -> Counted:
        entries, verdicts, expected = self.entries, self.verdicts, tables.expectations(self.entries)

        def rows(found: dict[str, pa.Table]) -> Iterator[tuple[pa.Table, Counts]]:
            for table in found.values():
                yield tables.quarantined(table, verdicts, entries, expected)

        refused = self._counted(self.placed, {"refused": REFUSED.names}, rows, _ddl(QUARANTINE))
        if not later:
            return refused
        accumulator = refused.accumulator

        def work(task: int, jobs: list[Job]) -> Iterator[pa.RecordBatch]:
            total = Counter()
            for table in refused_later(jobs, how, verdicts, canonical):
                done, counts = tables.quarantined(table, verdicts, entries, expected)
                total.update(counts)
                yield from done.to_batches()
            accumulator.add({("later", task): total})

        again = _over(self.spark, later, work, _ddl(QUARANTINE))
        return Counted(refused.frame.unionByName(again), accumulator)

    def _counted(self, placed: DataFrame, columns: Mapping[str, Sequence[str] | None], rows: Callable, schema: str) -> Counted:
        accumulator = self.spark.sparkContext.accumulator({}, ByPart())

        def run(batches):
            total, seen = Counter(), set()

            def noted():
                for batch in batches:
                    seen.update(batch.column(1).to_pylist())
                    yield batch

            for table, counts in rows(blobs.gathered(noted(), columns)):
                total.update(counts)
                yield from table.to_batches()
            accumulator.add({tuple(seen): total})  # of one part

        return Counted(_only(placed, *columns).mapInArrow(run, schema), accumulator)


def _ddl(table: Table) -> str:
    return ", ".join(f"`{c.name}` {c.type.simpleString()}" for c in table.columns)
