"""Tables as plain Parquet on a local disk, versioned by folder.

    root/<table>/CURRENT                           one line: the name of the current version
    root/<table>/v000012/bucket=3/part-*.parquet   a complete data set (flat tables: without bucket folders)
    root/<table>/v000012/_buckets                  number of buckets of a patient table

A write makes the next version folder, hard-links what it does not change, and flips CURRENT by one atomic rename.
Whatever happens before the flip leaves the old version; the next writer removes what is left over.
"""

from __future__ import annotations

import hashlib
import json
import logging
import os
import re
import shutil
from collections.abc import Callable, Iterable
from pathlib import Path

import pyarrow.parquet as pq
from pyspark.sql import DataFrame, SparkSession
from pyspark.sql.types import StructType

from twinlib.errors import StorageError
from twinlib.tables.contracts import Table
from twinlib.tables.faults import point
from twinlib.tables.storage import BUCKET, Storage, check_flat, check_parquet, check_types, make_folder, without

POINTER = "CURRENT"
_BUCKETS = "_buckets"
_ROW_SCHEMA = b"org.apache.spark.sql.parquet.row.metadata"

log = logging.getLogger(__name__)


class ParquetStorage(Storage):
    def __init__(self, spark: SparkSession, root: str, buckets: int, keep_versions: int = 2):
        super().__init__(spark, root, buckets, keep_versions)
        self._outdated: set[Path] = set()  # tables with a version too many
        if self.folder is None:
            raise StorageError(f"storage.format parquet needs a local folder, not {root}: use storage: {{format: delta}} there")
        if re.search(r"[*?{}\[\]\\]", str(self.folder)):
            raise StorageError(f"folder {self.folder}: Spark takes *?{{}}[]\\ in a path for a pattern: choose another folder")

    def exists(self, table: Table) -> bool:
        return current(self.folder / table.name) is not None

    def version(self, table: Table) -> str:
        folder = current(self.folder / table.name)
        return "none" if folder is None else self._name(folder)

    @staticmethod
    def _name(folder: Path) -> str:
        # Spark names every file anew, so the names tell two tables apart even where the number is the same.
        names = "\n".join(sorted(str(p.relative_to(folder)) for p in _parts(folder)))
        return f"{folder.name}-{hashlib.sha256(names.encode()).hexdigest()[:8]}"

    def read(self, table: Table) -> DataFrame:
        folder = current(self.folder / table.name)
        return self.empty(table) if folder is None else self._frame(table, [folder])

    def read_version(self, table: Table, version: str) -> DataFrame:
        folder = self.folder / table.name / version.partition("-")[0]
        if not folder.is_dir() or self._name(folder) != version:
            kept = ", ".join(self._name(p) for p in _versions(self.folder / table.name)) or "none"
            raise StorageError(f"table {table.name}: version {version} is not kept any more (kept: {kept}; storage.keep_versions says how many)")
        return self._frame(table, [folder])

    def check(self, table: Table) -> None:
        folder = current(self.folder / table.name)
        if folder is not None:
            check_parquet(_parts(folder), table)

    def maintain(self, table: Table, retain_hours: float) -> dict[str, int]:
        home = self.folder / table.name
        with self.writer():
            folder = current(home)
            if folder is None:
                return {"files": 0, "removed": 0}
            before = sum(1 for _ in home.rglob("part-*.parquet"))
            if len(_parts(folder)) > max(1, len(_folders(folder))):
                self._write(table, self.read(table).coalesce(1))
                folder = current(home)
            self._remove(home, keep=self.keep_versions)
            after = sum(1 for _ in home.rglob("part-*.parquet"))
            return {"files": len(_parts(folder)), "removed": max(0, before - after)}

    def drop_history(self, table: Table) -> None:
        self._remove(self.folder / table.name, keep=0)

    def replace(self, table: Table, df: DataFrame, check: Callable[[], None] | None = None) -> int:
        with self.writer():
            return self._write(table, self.conformed(table, df), check=check)

    def replace_patients(self, table: Table, df: DataFrame, patients: DataFrame) -> int:
        with self.writer():
            version = current(self.folder / table.name)
            scope = self.scope(patients).persist()
            try:
                touched = {row[0] for row in scope.select(BUCKET).distinct().collect()}
                if version is not None and not touched and df.isEmpty():
                    return 0
                if version is None:
                    return self._write(table, self.marked(table.conform(df), scope, None))
                rebucket = (version / _BUCKETS).read_text() != str(self.buckets)  # another configuration: every file changes
                folders = [p for p in _folders(version) if rebucket or _bucket(p) in touched]
                stored = self._frame(table, folders) if folders else None
                new = self.marked(table.conform(df), scope, stored)
                return self._write(table, new, [p for p in _folders(version) if p not in folders])
            finally:
                scope.unpersist()

    def append(self, table: Table, df: DataFrame) -> None:
        check_flat(table)
        with self.writer():
            old = self.read(table)
            self._write(table, old.unionByName(without(table.conform(df), old, table.key)))

    def _frame(self, table: Table, folders: list[Path]) -> DataFrame:
        part = next((p for folder in folders for p in _parts(folder)), None)
        if part is not None:
            stored = pq.read_schema(part).metadata[_ROW_SCHEMA]
            check_types(table, StructType.fromJson(json.loads(stored)), str(part.parent))
        frame = self.spark.read.schema(table.schema).parquet(*map(_uri, folders))
        return frame.select(*[c.name for c in table.columns])

    def _write(self, table: Table, df: DataFrame, unchanged: Iterable[Path] = (), check: Callable[[], None] | None = None) -> int:
        """Write the next version from `df` and the folders of the current version that stay, and make it current."""
        home = self.folder / table.name
        make_folder(home)
        old = current(home)
        number = int(old.name[1:]) if old else 0
        for left_over in (p for p in _versions(home) if int(p.name[1:]) > number):
            shutil.rmtree(left_over)
        fresh = home / f"v{number + 1:06d}"
        make_folder(fresh)
        frame, kept = self.prepare(table, df)
        point()
        self._save(frame, fresh, [BUCKET] if table.by_patient else [])
        rows = kept()
        if check:
            check()
        for folder in unchanged:
            _link(folder, fresh / folder.name)
        if not any(_parts(fresh)):  # an empty table is a file without rows, so that every reader finds the columns
            self._save(self.empty(table).coalesce(1), fresh / f"{BUCKET}=0" if table.by_patient else fresh, [])
        if table.by_patient:
            _write_text(fresh / _BUCKETS, str(self.buckets))
        for path in (*fresh.rglob("*"), fresh):
            _sync(path)
        point()
        self._flip(home, fresh.name)
        point()
        self._outdated.add(home)
        return rows

    def settle(self) -> None:
        while self._outdated:
            self._remove(self._outdated.pop(), self.keep_versions)

    @staticmethod
    def _remove(home: Path, keep: int) -> None:
        """All versions but the current one and the `keep` before it; what a crash left after it goes too."""
        newest = int(current(home).name[1:])
        for outdated in (p for p in _versions(home) if not newest - keep <= int(p.name[1:]) <= newest):
            try:
                shutil.rmtree(outdated)
            except OSError as e:
                log.warning("old version %s could not be removed: %s", outdated, e.strerror)

    @staticmethod
    def _save(frame: DataFrame, folder: Path, by: list[str]) -> None:
        writer = frame.write.mode("append").option("mapreduce.fileoutputcommitter.marksuccessfuljobs", "false")
        writer.partitionBy(*by).parquet(_uri(folder))

    @staticmethod
    def _flip(home: Path, name: str) -> None:
        temporary = home / f".{POINTER}.new"
        _write_text(temporary, name + "\n")
        _sync(temporary)
        os.replace(temporary, home / POINTER)
        _sync(home)


def current(home: Path) -> Path | None:
    """Folder of the current version of the table in `home`; None where the table was never written.

    Raises StorageError where the pointer file is damaged, missing beside finished versions, or names no version.
    """
    pointer = home / POINTER
    names = [p.name for p in _versions(home)]
    remedy = f"write the name of the newest complete version into it ({', '.join(names) or 'none is left'})"
    try:
        name = pointer.read_text(encoding="utf-8").strip()
    except FileNotFoundError:
        if names and names != ["v000001"]:  # a first write that crashed leaves version 1 alone
            raise StorageError(f"{pointer} is missing, though versions of the table exist: {remedy}") from None
        return None
    except UnicodeDecodeError:
        name = ""
    except OSError as e:
        raise StorageError(f"{pointer} cannot be read: {e.strerror}") from None
    if name not in names:
        raise StorageError(f"{pointer} is damaged: expected one line with the name of a version folder; {remedy}")
    return home / name


def _versions(home: Path) -> list[Path]:
    return sorted((p for p in home.glob("v*") if re.fullmatch(r"v\d{6,}", p.name)), key=lambda p: int(p.name[1:]))


def _parts(folder: Path) -> list[Path]:
    """Data files of a version or of one of its buckets."""
    return sorted(folder.rglob("part-*.parquet"))


def _folders(version: Path) -> list[Path]:
    return sorted(version.glob(f"{BUCKET}=*"))


def _bucket(folder: Path) -> int:
    return int(folder.name.removeprefix(f"{BUCKET}="))


def _link(source: Path, target: Path) -> None:
    """`target` with the files of folder `source`, hard-linked where the disk can."""
    make_folder(target)
    for file in source.iterdir():
        try:
            os.link(file, target / file.name)
        except OSError:
            shutil.copy2(file, target / file.name)


def _write_text(path: Path, text: str) -> None:
    """A small file that only the owner may read."""
    with os.fdopen(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600), "w") as file:
        file.write(text)


def _sync(path: Path) -> None:
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def _uri(folder: Path) -> str:
    return f"file://{folder}"  # whatever the cluster's default file system is; Hadoop wants it without percent codes
