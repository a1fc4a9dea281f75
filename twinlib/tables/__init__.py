"""The tables: contracts (what they hold) and storage (where they are). Nothing else touches storage."""

from __future__ import annotations

from pyspark.sql import SparkSession

from twinlib.config import RunConfig
from twinlib.tables.storage import Storage


def open_storage(spark: SparkSession, config: RunConfig) -> Storage:
    """The tables of a run, in the format of its configuration. Raises StorageError where that cannot be used."""
    if config.storage.format == "delta":
        from twinlib.tables.delta import DeltaStorage as Adapter
    else:
        from twinlib.tables.parquet import ParquetStorage as Adapter
    return Adapter(spark, config.tables, config.storage.buckets, config.storage.keep_versions)
