"""The landing zone: files that keep arriving, each taken into the tables exactly once.

Structured Streaming finds the files and keeps its checkpoint under `<output>/landing`; every micro-batch is a list of new files, and goes
through the same `ingest.fuse` as a whole night's, together with what the tables hold of the patients concerned. Everything is keyed by
the time of the event and settled by a rule that does not ask what came first, so files may come late and in any order: the tables equal
those of one batch over the same files. A batch that is repeated after a crash changes nothing: its records meet themselves, and its
files stand in `landings`, which is written last.

Files must appear whole (written elsewhere, then moved in) and not change. The checkpoint holds their names, so it is as confidential as
the raw folder.
"""

from __future__ import annotations

import logging
import time
from functools import reduce
from urllib.parse import unquote

from pyspark.sql import DataFrame, SparkSession
from pyspark.sql import functions as F
from pyspark.sql.streaming import StreamingQuery
from pyspark.sql.types import StructType

from twinlib import sources
from twinlib.config import RunConfig
from twinlib.errors import ConfigError
from twinlib.fusion.entries import interpret
from twinlib.fusion.ingest import fuse
from twinlib.fusion.ingested import Ingested
from twinlib.fusion.vocabulary import load_vocabulary
from twinlib.sources.files import uri
from twinlib.sources.mapped import MappedSource
from twinlib.tables import Storage, schemas
from twinlib.tables.runs import Runs

log = logging.getLogger("twinlib")
FILES_PER_BATCH = 2000
LOCK_WAIT = 3600.0  # s for which a batch waits for another job that writes the same tables
_LISTING = "path string, modificationTime timestamp, length long, content binary"  # of binaryFile; the content is never read


class Landing:
    """The followed sources of a run. Raises ConfigError where a source is not made of mapped files."""

    def __init__(self, spark: SparkSession, storage: Storage, config: RunConfig):
        self.spark, self.storage, self.config = spark, storage, config
        self.opened = sources.open_sources(config)
        for source in self.opened:
            if not isinstance(source, MappedSource):
                raise ConfigError(f"source {source.name}: only mapped files can be followed; ingest it in the night's batch")
            if any(m.target == "event" for m in source.meanings):
                raise ConfigError(f"source {source.name}: events cannot be followed; ingest it in the night's batch")
        if config.as_of:
            raise ConfigError("as_of: a landing zone is followed as it is now")
        if config.identity:
            raise ConfigError("identity: people of several sources are joined in the night's batch, not while files are followed")
        vocabulary = load_vocabulary(config.vocabulary)
        self.entries, self.sensors = interpret(self.opened, vocabulary), vocabulary.sensors
        self.key = sources.load_key(config.pseudonym_key)

    # --- the stream -------------------------------------------------------------------------------------------------------

    def start(self, interval: float | None = None) -> StreamingQuery:
        """The running query: over all files that are there now (None), or for ever, looking every `interval` seconds."""
        files = reduce(DataFrame.unionByName, [self._files(k, source.root) for k, source in enumerate(self.opened)])
        checkpoint = uri(f"{self.config.output.rstrip('/')}/landing")
        trigger = {"availableNow": True} if interval is None else {"processingTime": f"{interval:g} seconds"}
        return files.writeStream.foreachBatch(self._batch).option("checkpointLocation", checkpoint).trigger(**trigger).start()

    def _files(self, number: int, root: str) -> DataFrame:
        reader = self.spark.readStream.format("binaryFile").schema(StructType.fromDDL(_LISTING)).option("recursiveFileLookup", "true")
        # a file may be old when it arrives: none is too old
        reader = reader.option("maxFileAge", "36500d").option("maxFilesPerTrigger", FILES_PER_BATCH)
        return reader.load(uri(root)).select(F.lit(number).alias("source"), "path")

    def _batch(self, files: DataFrame, batch: int) -> None:
        stream = self.spark.sparkContext.getLocalProperty("sql.streaming.queryId")
        found: dict[int, set[str]] = {}
        for row in files.collect():
            root = uri(self.opened[row.source].root).split(":", 1)[1].lstrip("/") + "/"
            path = row.path.split(":", 1)[1].lstrip("/")
            found.setdefault(row.source, set()).add((path if path.startswith(root) else unquote(path)).removeprefix(root))
        self.take(found, stream, batch)

    # --- one batch --------------------------------------------------------------------------------------------------------

    def take(self, files: dict[int, set[str]], stream: str, batch: int) -> bool:
        """Take files (relative paths by number of source) into the tables. False where the batch has been taken before."""
        began = time.monotonic()
        with self.storage.writer(LOCK_WAIT), Runs(self.storage, self.config).stage("follow", f"{stream[:8]}-{batch}", ("sources", "vocabulary")) as stage:
            landings = self.storage.read(schemas.LANDINGS)
            done = not landings.where((F.col("stream") == stream) & (F.col("batch") == batch)).isEmpty()
            restricted, registers = self._restricted(files)
            if done or not any(s.files() for s in restricted):
                stage.unchanged()
                return not done
            tombstones = frozenset(r[0] for r in self.storage.read(schemas.FORGOTTEN).select("tombstone").collect())
            read = self.storage.read
            got = fuse(self.spark, restricted, self.entries, self.key, self.sensors, self.storage.buckets, read, tombstones=tombstones)
            try:
                self._write(got, registers, stream, batch)
            finally:
                got.release()
            stage.counts["files"] = sum(map(len, files.values()))
            stage.counts["rows_read"] = sum(r["rows_read"] for r in got.read.values())
        log.info("stage=follow batch=%d seconds=%.1f files=%d rows_read=%d", batch, time.monotonic() - began, stage.counts["files"], stage.counts["rows_read"])
        return True

    def _restricted(self, files: dict[int, set[str]]) -> tuple[list[MappedSource], bool]:
        """The sources with the new files, and whether some state attributes of patients: then all files that do are read again, because
        the first statement counts, whenever it came."""
        new = [s.restricted(files.get(k, ())) for k, s in enumerate(self.opened)]
        registers = [s.restricted(f.relative for g, some in s.present() if _register(g) for f in some) for s in self.opened]
        if not any(_register(g) for s in new for g, _ in s.files()):
            return new, False
        return [s.restricted(s.only | r.only) for s, r in zip(new, registers)], True

    def _write(self, got: Ingested, registers: bool, stream: str, batch: int) -> None:
        s, touched = self.storage, got.survey.select("patient_id").where("patient_id IS NOT NULL").distinct()
        s.append(schemas.QUARANTINE, got.quarantine)
        s.replace_patients(schemas.OBSERVATIONS, got.observations, touched)
        s.replace_patients(schemas.EXPOSURES, got.exposures, touched)
        s.replace_patients(schemas.PATIENTS, _patients(s.read(schemas.PATIENTS), got.patients, registers), touched)
        refused = s.read(schemas.QUARANTINE).groupBy("source", "file").agg(F.count(F.lit(1)).alias("quarantined"))
        landed = got.landed().join(refused, ["source", "file"], "left").fillna(0, ["quarantined"])
        attributed = {r["source"]: r for r in got.rows("patient")} if registers else None
        before = {r.source: r.asDict() for r in s.read(schemas.INGEST_COUNTS).collect()}
        s.append(schemas.LANDINGS, schemas.LANDINGS.conform(landed.withColumns({"stream": F.lit(stream), "batch": F.lit(batch).cast("bigint")})))
        s.replace(schemas.INGEST_COUNTS, self._counts(before if attributed is None else attributed))

    def _counts(self, people: dict[str, dict]) -> DataFrame:
        """INGEST_COUNTS of all that has landed; `people`: those of the sources of attributes. What is neither accepted nor refused was
        dropped as a duplicate."""
        s, sums = self.storage, [F.sum(n).alias(n) for n in ("files", "rows_ignored", "rows_read", "quarantined")]
        landed = {r.source: r.asDict() for r in s.read(schemas.LANDINGS).groupBy("source").agg(*sums).collect()}
        stored = [s.read(t).select("source") for t in (schemas.OBSERVATIONS, schemas.EXPOSURES)]
        accepted = {r.source: r["count"] for r in reduce(DataFrame.unionByName, stored).groupBy("source").count().collect()}
        rows = []
        for e in self.entries:
            name, group = e.meaning.source, e.meaning.group
            found = {n: landed.get(name, {}).get(n, 0) for n in ("rows_ignored", "rows_read", "quarantined")}
            found["files"] = landed.get(group, landed.get(name, {})).get("files", 0)
            found["accepted"] = people.get(name, {}).get("accepted", 0) if e.meaning.target == "patient" else accepted.get(name, 0)
            rows.append({"source": name, **found, "duplicates": found["rows_read"] - found["quarantined"] - found["accepted"]})
        return s.frame(schemas.INGEST_COUNTS, rows)


def _register(group) -> bool:
    return any(e.patient for e in group.entries)


def _patients(stored: DataFrame, fresh: DataFrame, registers: bool) -> DataFrame:
    """PATIENTS rows of the patients in `fresh`: their sources of then and now; attributes as all registers state them, if they were read."""
    old = stored.select("patient_id", *[F.col(c).alias(f"_{c}") for c in ("sex", "birth_date", "sources")])
    sources_ = F.sort_array(F.array_distinct(F.concat("sources", F.coalesce("_sources", F.array().cast("array<string>")))))
    attributes = [F.col(c if registers else f"_{c}").alias(c) for c in ("sex", "birth_date")]
    return schemas.PATIENTS.conform(fresh.join(old, "patient_id", "left").select("patient_id", *attributes, sources_.alias("sources")))
