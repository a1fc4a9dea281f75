"""Tables in Delta Lake: on any file system that Spark reaches, with a change feed and constraints from the contracts."""

from __future__ import annotations

import json
import secrets
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from itertools import count
from urllib.parse import unquote

from delta.exceptions import DeltaConcurrentModificationException
from delta.tables import DeltaTable
from pyspark.sql import DataFrame, SparkSession
from pyspark.sql import functions as F
from pyspark.sql.types import ArrayType, DataType, IntegerType, MapType, StructField, StructType

from twinlib.errors import StorageError
from twinlib.session import require_delta
from twinlib.tables.contracts import PATIENT, Table
from twinlib.tables.faults import point
from twinlib.tables.ordered import AHEAD
from twinlib.tables.storage import BUCKET, Storage, check_flat, check_parquet, check_types, local_folder, without

_BUCKETS = "twinlib.buckets"
_CONSTRAINT = "delta.constraints."
_GONE = "_gone"  # helper column of a merge: the stored row has no successor
_PROPERTIES = {
    "delta.enableChangeDataFeed": "true",
    "delta.dataSkippingNumIndexedCols": "0",  # else the log holds smallest and largest values, which outlive their rows
}
_TRANSACTION = "spark.databricks.delta.write.txn{}"
_RETENTION = "spark.databricks.delta.retentionDurationCheck.enabled"
_ATTEMPTS = 3


class DeltaStorage(Storage):
    def __init__(self, spark: SparkSession, root: str, buckets: int, keep_versions: int = 2):
        super().__init__(spark, root, buckets, keep_versions)
        require_delta(spark)
        self._writer, self._commits = f"twinlib-{secrets.token_hex(8)}", count(1)

    def exists(self, table: Table) -> bool:
        return DeltaTable.isDeltaTable(self.spark, self._path(table))

    def version(self, table: Table) -> str:
        if not self.exists(table):
            return "none"
        commit = self._commit(table)  # the instant tells a table apart from one that was removed and built anew
        return f"{commit.version}-{commit.timestamp.timestamp():.3f}"

    def read(self, table: Table) -> DataFrame:
        return self._snapshot(table).select(*[c.name for c in table.columns]) if self.exists(table) else self.empty(table)

    def read_version(self, table: Table, version: str) -> DataFrame:
        number, _, instant = version.partition("-")
        history = DeltaTable.forPath(self.spark, self._path(table)).history() if self.exists(table) else None
        commit = history.where(F.col("version") == int(number)).first() if history is not None and number.isdigit() else None
        if commit is None or f"{commit.timestamp.timestamp():.3f}" != instant:
            raise StorageError(f"table {table.name}: version {version} is not kept any more")
        return self._snapshot(table, int(number)).select(*[c.name for c in table.columns])

    def check(self, table: Table) -> None:
        if self.folder is None or not self.exists(table):
            return  # an object store checks what it stores
        files = self.spark.read.format("delta").load(self._path(table)).inputFiles()
        check_parquet((local_folder(unquote(f)) for f in files), table)

    def maintain(self, table: Table, retain_hours: float) -> dict[str, int]:
        if not self.exists(table):
            return {"files": 0, "removed": 0}
        with self.writer():
            self._target(table).optimize().executeCompaction()
            removed = self._vacuum(table, retain_hours, "DRY RUN").where(F.col("path").endswith(".parquet")).count()  # it names folders too
            self._vacuum(table, retain_hours)
            return {"files": len(self.spark.read.format("delta").load(self._path(table)).inputFiles()), "removed": removed}

    def drop_history(self, table: Table) -> None:
        self._vacuum(table, 0)

    def _vacuum(self, table: Table, retain_hours: float, mode: str = "") -> DataFrame:
        """Remove the files that no version within the last `retain_hours` needs, change feed included; what it would remove in mode DRY RUN."""
        conf = self.spark.conf
        before = conf.get(_RETENTION, "true")
        conf.set(_RETENTION, "false")  # the caller says how long: forgetting a patient cannot wait for a week
        try:
            return self.spark.sql(f"VACUUM delta.`{self._quoted(table)}` RETAIN {retain_hours:g} HOURS {mode}")
        finally:
            conf.set(_RETENTION, before)

    def replace(self, table: Table, df: DataFrame, check: Callable[[], None] | None = None) -> int:
        with self.writer(), self._staged(table, table.conform(df.drop(AHEAD))) as (staged, rows):
            if check:
                check()
            self._overwrite(table, staged)
            return rows

    def replace_patients(self, table: Table, df: DataFrame, patients: DataFrame) -> int:
        with self.writer():
            scope = self.scope(patients).persist()
            try:
                touched = sorted(row[0] for row in scope.select(BUCKET).distinct().collect())
                if self.exists(table) and not touched and df.isEmpty():
                    return 0
                # A first write, or another number of buckets: every row moves.
                whole = not self.exists(table) or self._properties(table).get(_BUCKETS) != str(self.buckets)
                new = self.marked(table.conform(df), scope, self.read(table) if whole else None)
                with self._staged(table, new) as (staged, rows):
                    if whole:
                        self._overwrite(table, staged)
                    else:
                        self._merge(table, staged, scope, touched)
                    return rows
            finally:
                scope.unpersist()

    def append(self, table: Table, df: DataFrame) -> None:
        check_flat(table)
        with self.writer(), self._staged(table, table.conform(df)) as (staged, _):
            self._ensure(table)
            same = " AND ".join(f"t.`{k}` <=> s.`{k}`" for k in table.key)
            self._once(table, self._target(table).merge(staged.alias("s"), same).whenNotMatchedInsertAll().execute)

    def _merge(self, table: Table, staged: DataFrame, scope: DataFrame, touched: list[int]) -> None:
        """One commit that inserts, updates and deletes rows of the patients in `scope`, in the touched buckets only.

        Rows to delete are part of the source, because MERGE's own "not matched by source" could only be limited to
        the patients by writing their ids into the statement.
        """
        self._ensure(table)
        buckets = ", ".join(map(str, touched)) or "NULL"
        keys = [BUCKET, *table.key]
        stored = self._snapshot(table).where(f"{BUCKET} IN ({buckets})")
        gone = without(stored.join(scope.select(PATIENT), PATIENT, "left_semi"), staged.select(*keys), keys)
        source = staged.withColumn(_GONE, F.lit(False)).unionByName(gone.select(*staged.columns).withColumn(_GONE, F.lit(True)))
        same = " AND ".join([f"t.{BUCKET} IN ({buckets})", *[f"t.`{k}` <=> s.`{k}`" for k in keys]])
        values = {f"`{name}`": f"s.`{name}`" for name in staged.columns}
        others = [c.name for c in table.columns if c.name not in table.key]
        changed = " OR ".join(f"NOT (t.`{name}` <=> s.`{name}`)" for name in others) or "false"
        merge = self._target(table).merge(source.alias("s"), same).whenMatchedDelete(f"s.{_GONE}")
        merge = merge.whenMatchedUpdate(changed, values)  # rows that stay the same are no news in the change feed
        self._once(table, merge.whenNotMatchedInsert(f"NOT s.{_GONE}", values).execute)

    def _overwrite(self, table: Table, staged: DataFrame) -> None:
        self._ensure(table)
        moving = table.by_patient and self._properties(table).get(_BUCKETS) != str(self.buckets)
        if moving:  # a crash between the two leaves a number that fits no configuration, so every row moves again
            self._sql(table, f"SET TBLPROPERTIES ('{_BUCKETS}' = 'moving')")
        writer = staged.write.format("delta").mode("overwrite").option("userMetadata", table.name)
        self._once(table, lambda: writer.save(self._path(table)))
        if moving:
            self._sql(table, f"SET TBLPROPERTIES ('{_BUCKETS}' = '{self.buckets}')")

    def _once(self, table: Table, commit: Callable[[], object]) -> None:
        """Make a commit that Delta takes once, though it may be tried several times: against other writers (maintenance, another
        run on an object store), or where the answer to a commit that landed was lost."""
        conf, number = self.spark.conf, next(self._commits)
        point()
        conf.set(_TRANSACTION.format("AppId"), f"{self._writer}-{table.name}")
        conf.set(_TRANSACTION.format("Version"), str(number))
        try:
            for attempt in range(1, _ATTEMPTS + 1):
                try:
                    commit()
                    break
                except DeltaConcurrentModificationException:
                    if attempt == _ATTEMPTS:
                        raise StorageError(f"table {table.name}: another writer came first {_ATTEMPTS} times; run again") from None
                    time.sleep(attempt)
        finally:
            conf.unset(_TRANSACTION.format("AppId"))
            conf.unset(_TRANSACTION.format("Version"))
        point()

    @contextmanager
    def _staged(self, table: Table, df: DataFrame) -> Iterator[tuple[DataFrame, int]]:
        """`df` prepared, computed once and kept (MERGE reads its source twice), and checked before Delta sees it:
        the message of Delta's own constraints would show the values of the offending row."""
        frame, check = self.prepare(table, df)
        frame = frame.persist()
        try:
            frame.write.format("noop").mode("overwrite").save()
            yield frame, check()
        finally:
            frame.unpersist()

    def _ensure(self, table: Table) -> None:
        """Create the table, or bring columns and constraints of an older one up to the contract (additive only)."""
        bucket = [StructField(BUCKET, IntegerType(), False)] if table.by_patient else []
        columns = [StructField(f.name, _loose(f.dataType), f.nullable, f.metadata) for f in table.schema.fields]
        schema = StructType([*bucket, *columns])
        wanted = {name: rule for name, rule in table.rules.items() if name.endswith("_allowed")}
        if not self.exists(table):
            create = DeltaTable.createIfNotExists(self.spark).location(self._path(table)).comment(table.meaning)
            create = create.addColumns(schema)
            for name, value in _PROPERTIES.items():
                create = create.property(name, value)
            for name, rule in wanted.items():
                create = create.property(_CONSTRAINT + name, rule)
            if table.by_patient:
                create = create.partitionedBy(BUCKET).property(_BUCKETS, str(self.buckets))
            create.execute()
            return
        stored = self.spark.read.format("delta").load(self._path(table)).schema
        check_types(table, stored, self._path(table))
        for field in schema.fields:
            if field.name not in stored.names:
                comment = json.dumps(field.metadata["comment"], ensure_ascii=False)
                self._sql(table, f"ADD COLUMNS (`{field.name}` {field.dataType.simpleString()} COMMENT {comment})")
        properties = self._properties(table)
        for name, value in _PROPERTIES.items():
            if properties.get(name) != value:
                self._sql(table, f"SET TBLPROPERTIES ('{name}' = '{value}')")
        have = {k.removeprefix(_CONSTRAINT): v for k, v in properties.items() if k.startswith(_CONSTRAINT)}
        for name in have.keys() | wanted.keys():
            if _tokens(have.get(name, "")) != _tokens(wanted.get(name, "")):
                if name in have:
                    self._sql(table, f"DROP CONSTRAINT {name}")
                if name in wanted:
                    self._sql(table, f"ADD CONSTRAINT {name} CHECK ({wanted[name]})")

    def _snapshot(self, table: Table, version: int | None = None) -> DataFrame:
        """A version (the current one) with `bucket`, pinned: a Delta frame would otherwise follow later commits."""
        reader = self.spark.read.format("delta").option("versionAsOf", self._commit(table).version if version is None else version)
        frame = reader.load(self._path(table))
        check_types(table, frame.schema, self._path(table))
        absent = {c.name: F.lit(None).cast(c.type) for c in table.columns if c.name not in frame.columns}
        return frame.withColumns(absent) if absent else frame

    def _target(self, table: Table) -> DeltaTable:
        return DeltaTable.forPath(self.spark, self._path(table)).alias("t")

    def _commit(self, table: Table):
        return DeltaTable.forPath(self.spark, self._path(table)).history(1).select("version", "timestamp").first()

    def _properties(self, table: Table) -> dict[str, str]:
        rows = self.spark.sql(f"SHOW TBLPROPERTIES delta.`{self._quoted(table)}`").collect()
        return {row["key"]: row["value"] for row in rows}

    def _sql(self, table: Table, change: str) -> None:
        self.spark.sql(f"ALTER TABLE delta.`{self._quoted(table)}` {change}")

    def _path(self, table: Table) -> str:
        root = f"file:{self.folder}" if self.folder else self.root.rstrip("/")
        return f"{root}/{table.name}"

    def _quoted(self, table: Table) -> str:
        return self._path(table).replace("`", "``")


def _loose(kind: DataType) -> DataType:
    """The type with everything nested nullable: Delta has no NOT NULL inside arrays."""
    if isinstance(kind, ArrayType):
        return ArrayType(_loose(kind.elementType), True)
    if isinstance(kind, MapType):
        return MapType(kind.keyType, _loose(kind.valueType), True)
    if isinstance(kind, StructType):
        return StructType([StructField(f.name, _loose(f.dataType), True, f.metadata) for f in kind.fields])
    return kind


def _tokens(condition: str) -> str:
    """A condition without the spaces and quotes in which Delta writes it down differently."""
    return condition.replace(" ", "").replace("`", "")
