"""The storage port: the only way in which the rest of the package touches tables, and what its adapters share."""

from __future__ import annotations

import os
import re
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from functools import reduce
from pathlib import Path

import pyarrow.parquet as pq
from filelock import FileLock, Timeout
from pyarrow import ArrowException
from pyspark.sql import Column, DataFrame, Observation, SparkSession, Window
from pyspark.sql import functions as F
from pyspark.sql.types import StructType

from twinlib.errors import StorageError
from twinlib.tables.contracts import PATIENT, Table
from twinlib.tables.ordered import AHEAD, PARTS

BUCKET = "bucket"
SCOPED = "_scoped"  # helper column of a write: is the row's patient being replaced? null for a stored row that is kept
LOCK = ".writer.lock"


class Storage(ABC):
    """Tables under one root folder. Every write is atomic for readers: they see the old version or the new one.

    Patient tables (`Table.by_patient`) are stored in `buckets` parts by `pmod(xxhash64(patient_id), buckets)`; the
    column `bucket` exists in the files only, `read` leaves it out. Every write checks the contract (types, columns
    that are never null, allowed values, one row per key, in which null equals null); a replacement returns the number of rows of its `df`.
    """

    def __init__(self, spark: SparkSession, root: str, buckets: int, keep_versions: int = 2):
        self.spark, self.root, self.buckets, self.keep_versions = spark, root, buckets, keep_versions
        self.folder = local_folder(root)
        self._depth = 0
        self._lock = FileLock(str(self.folder / LOCK), mode=0o600) if self.folder else None

    @contextmanager
    def writer(self, wait: float = 0.0) -> Iterator[None]:
        """Hold the single writer lock of the root; may be nested. Raises StorageError when another run holds it, and still does after `wait` seconds.

        Every write takes it; a job holds it around all of its writes. It goes with the process, so a crash leaves no
        stale lock. A root that is not a local folder (Delta on an object store) has none: there Delta's own commits
        are the guard, and the scheduler must not start a second run of the same tables.
        """
        if self._lock is None:
            yield
            return
        make_folder(self.folder)
        try:
            self._lock.acquire(blocking=wait > 0, timeout=wait, poll_interval=1.0)
        except Timeout:
            raise StorageError(f"another run is writing these tables: it holds the lock {self.folder / LOCK}") from None
        except OSError as e:
            raise StorageError(f"the lock {self.folder / LOCK} cannot be taken: {e.strerror}") from None
        self._depth += 1
        try:
            yield
        finally:
            self._depth -= 1
            try:
                if self._depth == 0:
                    self.settle()
            finally:
                self._lock.release()

    def settle(self) -> None:  # noqa: B027  (an adapter need not)
        """Called when a job lets go of the lock: what it has outdated may go now, since no frame of its own reads it any more."""

    @abstractmethod
    def exists(self, table: Table) -> bool:
        """Whether the table has ever been written."""

    @abstractmethod
    def version(self, table: Table) -> str:
        """Name of the current version, "none" where the table was never written. Changes with every write."""

    @abstractmethod
    def read(self, table: Table) -> DataFrame:
        """The current version, exactly the contract's columns; an empty frame where the table was never written.

        The frame keeps showing this version after later writes, for as long as the version is kept.
        """

    @abstractmethod
    def replace(self, table: Table, df: DataFrame, check: Callable[[], None] | None = None) -> int:
        """Make `df` the whole content of the table. Raises StorageError where `df` breaks the contract.

        `check` is called when `df` has been computed and nothing is current yet: what it raises leaves the table as it was.
        """

    @abstractmethod
    def replace_patients(self, table: Table, df: DataFrame, patients: DataFrame) -> int:
        """Make `df` the rows of the given patients (`patients`: a column patient_id); others stay as they are.

        `df` may hold no rows for a patient in `patients` (the patient's rows go), but none of any other patient:
        StorageError. Nothing is written where `patients` is empty and the table exists.
        """

    @abstractmethod
    def append(self, table: Table, df: DataFrame) -> None:
        """Add rows to a table that is not stored by patient.

        Rows whose key is there already are left as they are, so that repeating an append changes nothing.
        """

    @staticmethod
    def conformed(table: Table, df: DataFrame) -> DataFrame:
        """`table.conform`; the column `_ahead` of an ordered frame stays. Raises StorageError."""
        if AHEAD not in df.columns:
            return table.conform(df)
        table.conform(df.drop(AHEAD))
        return df

    @abstractmethod
    def read_version(self, table: Table, version: str) -> DataFrame:
        """The table as it was in the version of that name (see `version`). Raises StorageError where it is not kept any more."""

    @abstractmethod
    def check(self, table: Table) -> None:
        """Raises StorageError that names the file and the remedy where a file of the current version is damaged or gone."""

    @abstractmethod
    def maintain(self, table: Table, retain_hours: float) -> dict[str, int]:
        """Few large files in place of many small ones, and nothing of what no kept version needs. Returns counts of files.

        retain_hours: how long a version that is no longer current stays readable (Delta; Parquet keeps `keep_versions` of them).
        """

    def forget(self, table: Table, patients: DataFrame) -> int:
        """Remove every row of these patients (one column, patient_id) from a table and from its history: only the new version is left.

        A table that is not stored by patient loses the rows that name one of them in any text. Returns the rows removed.
        """
        if not self.exists(table):
            return 0
        with self.writer():
            stored = self.read(table)
            before = stored.count()
            if table.by_patient:
                self.replace_patients(table, self.empty(table), patients)
            elif PATIENT in (c.name for c in table.columns):
                texts = [c.name for c in table.columns if c.type.simpleString() == "string"]
                named = F.broadcast(patients.select(F.col(PATIENT).alias("_gone")).distinct())
                found = reduce(Column.__or__, (F.coalesce(F.contains(F.col(t), F.col("_gone")), F.lit(False)) for t in texts))
                self.replace(table, stored.join(named, found, "left_anti"))
            self.drop_history(table)
            return before - self.read(table).count()

    @abstractmethod
    def drop_history(self, table: Table) -> None:
        """Remove all that the current version does not need, now."""

    def empty(self, table: Table) -> DataFrame:
        return self.frame(table, [])

    def frame(self, table: Table, rows: Iterable[Mapping]) -> DataFrame:
        """Rows by name of column; what a row lacks is null."""
        names = table.schema.fieldNames()
        return self.spark.createDataFrame([tuple(r.get(n) for n in names) for r in rows], table.schema)

    def scope(self, patients: DataFrame) -> DataFrame:
        """The distinct patients to replace: columns patient_id, bucket."""
        return patients.select(PATIENT).where(F.col(PATIENT).isNotNull()).distinct().withColumn(BUCKET, bucket_of(self.buckets))

    def marked(self, df: DataFrame, scope: DataFrame, stored: DataFrame | None) -> DataFrame:
        """`df` and those rows of `stored` that stay beside it, told apart by the column `_scoped`."""
        marks = scope.select(PATIENT, F.lit(True).alias(SCOPED))
        new = df.join(marks, PATIENT, "left").withColumn(SCOPED, F.coalesce(SCOPED, F.lit(False)))
        if stored is None:
            return new
        return new.unionByName(stored.join(marks, PATIENT, "left_anti").withColumn(SCOPED, F.lit(None).cast("boolean")))

    def prepare(self, table: Table, df: DataFrame) -> tuple[DataFrame, Callable[[], int]]:
        """`df` as it is to be stored, and a function to call after an action on it has run.

        The frame has the contract's columns and, for a patient table, `bucket` in front, one partition per bucket,
        sorted by key; a frame with the column `_ahead` (see `ordered`) has come so, in one partition per bucket or in several of whole patients
        (then its metadata say how many), and that is checked. The function raises StorageError with the rules broken and by how many rows, else
        returns the number of rows; it costs no further pass. With a column `_scoped`, false breaks one more rule, and rows where it is null are not
        counted.
        """
        rules = dict(table.rules)
        scoped = [SCOPED] if SCOPED in df.columns else []
        if scoped:
            rules["scope"] = f"{SCOPED} IS NOT FALSE"
        columns = [c.name for c in table.columns]
        by = list(table.key)
        if AHEAD in df.columns:
            rules["bucket"] = f"_place = _part AND {BUCKET} = pmod(_place, {self.buckets})"
            part = bucket_of(df.schema[AHEAD].metadata.get(PARTS, self.buckets))
            df = df.withColumns({BUCKET: bucket_of(self.buckets), "_part": part, "_place": F.spark_partition_id(), "_same_key": F.when(F.col(AHEAD), 1).otherwise(2)})
            return self._observed(table, df, rules, [BUCKET, *columns], scoped)
        if table.by_patient:
            df = df.select(bucket_of(self.buckets).alias(BUCKET), *columns, *scoped).repartitionById(self.buckets, F.col(BUCKET))
            columns, by = [BUCKET, *columns], [BUCKET, *by]
        marked = df.withColumn("_same_key", F.count(F.lit(1)).over(Window.partitionBy(*by))).sortWithinPartitions(*by)
        return self._observed(table, marked, rules, columns, scoped)

    def _observed(
        self, table: Table, marked: DataFrame, rules: dict[str, str], columns: list[str], scoped: list[str]
    ) -> tuple[DataFrame, Callable[[], int]]:
        observation = Observation()
        observed = marked.observe(
            observation,
            F.count(SCOPED if scoped else F.lit(1)).alias("rows"),
            F.count_if(F.col("_same_key") > 1).alias("one_row_per_key"),
            *[F.count_if(~F.coalesce(F.expr(condition), F.lit(False))).alias(name) for name, condition in rules.items()],
        )

        def check() -> int:
            found = dict(observation.get)
            stored = found.pop("rows")
            texts = {**table.rules, "scope": "only patients that are being replaced", "bucket": "every patient in one partition, and every partition of one bucket"}
            texts["one_row_per_key"] = f"one row per ({', '.join(table.key)})"
            broken = [f"{texts[name].replace('`', '')} (by {n} rows)" for name, n in found.items() if n]
            if broken:
                raise StorageError(f"table {table.name}: nothing was stored, the contract is broken: {'; '.join(broken)}")
            return stored

        return observed.select(*columns), check


def bucket_of(buckets: int) -> Column:
    """Bucket number of column patient_id."""
    return F.pmod(F.xxhash64(PATIENT), F.lit(buckets)).cast("int")


def without(df: DataFrame, other: DataFrame, key: Iterable[str]) -> DataFrame:
    """Rows of `df` whose key does not occur in `other`; null equals null."""
    same = [F.col(f"mine.{k}").eqNullSafe(F.col(f"theirs.{k}")) for k in key]
    return df.alias("mine").join(other.alias("theirs"), same, "left_anti")


def check_flat(table: Table) -> None:
    if table.by_patient:
        raise StorageError(f"table {table.name} is stored by patient: use replace_patients instead of append")


def check_types(table: Table, stored: StructType, where: str) -> None:
    """Raises StorageError where columns of a stored table have other types than the contract's."""
    have = {f.name: f.dataType.simpleString() for f in stored.fields}
    other = [
        f"column {c.name} is {have[c.name]}, expected {c.type.simpleString()}"
        for c in table.columns
        if c.name in have and have[c.name] != c.type.simpleString()
    ]
    if other:
        raise StorageError(
            f"table {table.name} in {where} was written by an incompatible version of twinlib: {'; '.join(other)}. "
            "Move the folder away and refresh to build the table anew"
        )


def local_folder(root: str) -> Path | None:
    """Absolute folder of a root on a local disk; None where the root is a URI of another file system."""
    path = re.sub(r"^file:(//)?(?=/)", "", root)
    return None if re.match(r"^[A-Za-z][A-Za-z0-9+.-]+:/", path) else Path(path).absolute()


def check_parquet(files: Iterable[str | Path], table: Table) -> None:
    """Raises StorageError that names the first of the local Parquet files whose footer cannot be read."""
    for file in files:
        try:
            pq.read_metadata(file)
        except (OSError, ArrowException) as e:
            raise StorageError(
                f"table {table.name}: {file} is {'missing' if isinstance(e, FileNotFoundError) else 'damaged'}. "
                f"Move the folder of the table away: the next refresh builds it anew"
            ) from None


def make_folder(folder: Path) -> None:
    """Make a folder that only the owner may enter (an existing one keeps its permissions). Raises StorageError."""
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        if not folder.is_dir():
            os.mkdir(folder, 0o700)
    except OSError as e:
        raise StorageError(f"folder {folder} cannot be made: {e.strerror}") from None
