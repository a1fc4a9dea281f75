"""The SparkSession, with the settings that the design needs. The only module that configures Spark."""

from __future__ import annotations

import os
import sys

from pyspark.sql import SparkSession

from twinlib.errors import StorageError

# Jars of the Delta release line that matches pyspark 4.2 (binary-tied). The registry the project was built against
# serves 4.4.0 of the jars beside 4.4.1 of the Python package; TWINLIB_DELTA_JARS overrides.
DELTA_JARS = "io.delta:delta-spark_4.2_2.13:4.4.0"

_SETTINGS = {
    "spark.sql.session.timeZone": "UTC",
    "spark.sql.execution.arrow.pyspark.enabled": "true",
    "spark.sql.shuffle.partitions": "8",
    "spark.sql.parquet.outputTimestampType": "TIMESTAMP_MICROS",
    "spark.sql.sources.partitionOverwriteMode": "static",
    "spark.sql.debug.maxToStringFields": "10",
    "spark.ui.enabled": "false",
    "spark.ui.showConsoleProgress": "false",
    "spark.driver.bindAddress": "127.0.0.1",
    "spark.driver.host": "127.0.0.1",
}
_LOCAL_ONLY = ("spark.driver.bindAddress", "spark.driver.host")


def session(name: str = "twinlib", conf: dict | None = None, delta: bool = False) -> SparkSession:
    """The running session, or a new one.

    The master comes from `conf` (spark.master), from spark-submit, or is local[*]. With `delta` the Delta extension
    and catalog are set and the jars come through Spark's own resolver. Raises StorageError where they cannot be had.
    """
    conf = {k: str(v).lower() if isinstance(v, bool) else str(v) for k, v in (conf or {}).items()}
    submitted = "PYSPARK_GATEWAY_PORT" in os.environ  # started by spark-submit: master and driver address are its own
    builder = SparkSession.builder.appName(name)
    for key, value in _SETTINGS.items():
        if not (submitted and key in _LOCAL_ONLY):
            builder = builder.config(key, value)
    if not submitted:
        builder = builder.master(conf.get("spark.master", "local[*]"))
        os.environ.setdefault("PYSPARK_PYTHON", sys.executable)
    if delta:
        builder = (
            builder.config("spark.jars.packages", os.environ.get("TWINLIB_DELTA_JARS", DELTA_JARS))
            .config("spark.sql.extensions", "io.delta.sql.DeltaSparkSessionExtension")
            .config("spark.sql.catalog.spark_catalog", "org.apache.spark.sql.delta.catalog.DeltaCatalog")
        )
    for key, value in conf.items():
        builder = builder.config(key, value)
    try:
        spark = builder.getOrCreate()
    except Exception as e:
        if delta:
            raise StorageError(
                f"Spark did not start with Delta's jars ({os.environ.get('TWINLIB_DELTA_JARS', DELTA_JARS)}): they must be "
                "reachable through Spark's resolver (spark.jars.ivySettings, spark.jars.repositories) or given in spark.jars; "
                "or use storage: {format: parquet}"
            ) from e
        raise
    spark.sparkContext.setLogLevel("ERROR")
    if delta:
        require_delta(spark)
    return spark


def require_delta(spark: SparkSession) -> None:
    """Raises StorageError where the session has no Delta classes."""
    try:
        spark._jvm.java.lang.Class.forName("io.delta.tables.DeltaTable", False, spark._jvm.java.lang.Thread.currentThread().getContextClassLoader())
    except Exception:
        raise StorageError(
            "storage.format is delta, but this Spark session has no Delta classes: start the job with "
            f"--packages {DELTA_JARS}, or use storage: {{format: parquet}}"
        ) from None
