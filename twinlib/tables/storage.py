"""The storage port: the only way in which the rest of the package touches tables."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator
from contextlib import contextmanager

from pyspark.sql import DataFrame, SparkSession

from twinlib.tables.contracts import Table


class Storage(ABC):
    """Tables under one root folder. Every write is atomic for readers: they see the old version or the new one.

    Patient tables (`Table.by_patient`) are stored in `buckets` parts by `pmod(xxhash64(patient_id), buckets)`; the
    column `bucket` exists in the files only, `read` leaves it out.
    """

    def __init__(self, spark: SparkSession, root: str, buckets: int, keep_versions: int = 2):
        self.spark, self.root, self.buckets, self.keep_versions = spark, root, buckets, keep_versions

    @contextmanager
    def writer(self) -> Iterator[None]:
        """Hold the single writer lock of the root. Raises StorageError when another run holds it."""
        raise NotImplementedError
        yield

    @abstractmethod
    def exists(self, table: Table) -> bool:
        """Whether the table has ever been written."""

    @abstractmethod
    def version(self, table: Table) -> str:
        """Name of the current version, "none" where the table was never written. Changes with every write."""

    @abstractmethod
    def read(self, table: Table) -> DataFrame:
        """The current version, exactly the contract's columns; an empty frame where the table was never written."""

    @abstractmethod
    def replace(self, table: Table, df: DataFrame) -> None:
        """Make `df` the whole content of the table. Raises StorageError where `df` breaks the contract."""

    @abstractmethod
    def replace_patients(self, table: Table, df: DataFrame, patients: DataFrame) -> None:
        """Make `df` the rows of the given patients (`patients`: one column patient_id); others stay as they are.

        `df` may hold no rows for a patient in `patients` (the patient's rows go), but none of any other patient.
        """

    @abstractmethod
    def append(self, table: Table, df: DataFrame) -> None:
        """Add rows to a table that is not stored by patient."""
