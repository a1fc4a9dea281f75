"""The SparkSession, with the settings that the design needs. The only module that configures Spark."""

from __future__ import annotations

import logging
import os
import shutil
import sys

from pyspark.errors import PySparkRuntimeError
from pyspark.sql import SparkSession

from twinlib.errors import StorageError, TwinlibError

# Jars of the Delta release line that matches pyspark 4.2 (binary-tied). The registry the project was built against
# serves 4.4.0 of the jars beside 4.4.1 of the Python package. TWINLIB_DELTA_JARS overrides the coordinate; empty, it
# says that the jars are on the class path already (spark.jars, or the cluster's own).
DELTA_JARS = "io.delta:delta-spark_4.2_2.13:4.4.0"

_SETTINGS = {
    "spark.sql.session.timeZone": "UTC",
    "spark.sql.execution.arrow.pyspark.enabled": "true",
    "spark.sql.execution.arrow.maxBytesPerBatch": "16m",  # bounds what a Python worker holds, whatever the size of the cohort
    "spark.sql.shuffle.partitions": "8",
    "spark.sql.parquet.outputTimestampType": "TIMESTAMP_MICROS",
    "spark.sql.sources.partitionOverwriteMode": "static",
    "spark.sql.maxConcurrentOutputFileWriters": "1",  # what comes in order of its folders is not sorted again
    "spark.sql.sources.parallelPartitionDiscovery.parallelism": "64",  # tasks in which VACUUM lists a table: Spark's 10,000 take minutes
    "spark.sql.debug.maxToStringFields": "10",
    "spark.executor.syncLogLevel.enabled": "true",
    "spark.hadoop.fs.permissions.umask-mode": "077",  # files and folders of tables are the owner's alone
    "spark.executor.processTreeMetrics.enabled": "true",  # memory of the Python workers, for the manifest
    "spark.executor.metrics.pollingInterval": "2000",
    # Janino gets the stack maps of a generated method wrong where its jumps exceed 32 KB: such stages run without whole-stage code
    "spark.sql.codegen.hugeMethodLimit": "32000",
    "spark.ui.enabled": "false",
    "spark.ui.showConsoleProgress": "false",
}
_LOCAL = {"spark.driver.bindAddress": "127.0.0.1", "spark.driver.host": "127.0.0.1"}
_DELTA = {
    "spark.sql.extensions": "io.delta.sql.DeltaSparkSessionExtension",
    "spark.sql.catalog.spark_catalog": "org.apache.spark.sql.delta.catalog.DeltaCatalog",
}
_LISTS = ("spark.jars.packages", "spark.sql.extensions")  # settings to which Delta adds, instead of replacing them


def session(name: str = "twinlib", conf: dict | None = None, delta: bool = False) -> SparkSession:
    """The running session, or a new one.

    The master comes from `conf` (spark.master), from spark-submit, or is local[*]. With `delta` the Delta extension
    and catalog are set and the jars come through Spark's own resolver. Raises StorageError where they cannot be had,
    TwinlibError where there is no Java.
    """
    conf = {k: str(v).lower() if isinstance(v, bool) else str(v) for k, v in (conf or {}).items()}
    settings = dict(_SETTINGS)
    if "PYSPARK_GATEWAY_PORT" not in os.environ:  # else started by spark-submit: master and addresses are its own
        _require_java()
        os.environ.setdefault("PYSPARK_PYTHON", sys.executable)
        settings["spark.master"] = "local[*,4]"  # a task whose worker dies (memory) is tried again, as on a cluster
        if conf.get("spark.master", "local").startswith("local"):
            settings |= _LOCAL
            os.environ.setdefault("SPARK_LOCAL_IP", "127.0.0.1")
    if delta and "spark.master" in settings:
        settings["spark.databricks.delta.snapshotPartitions"] = "4"  # Delta's 50 tasks per look at a table suit a cluster
    settings |= conf
    if delta:
        jars = os.environ.get("TWINLIB_DELTA_JARS", DELTA_JARS)
        for key, value in (_DELTA | ({"spark.jars.packages": jars} if jars else {})).items():
            settings[key] = f"{conf[key]},{value}" if key in conf and key in _LISTS else value
    builder = SparkSession.builder.appName(name)
    for key, value in settings.items():
        builder = builder.config(key, value)
    try:
        spark = builder.getOrCreate()
    except PySparkRuntimeError as e:
        if delta and e.getCondition() == "JAVA_GATEWAY_EXITED":
            raise StorageError(
                f"storage.format is delta, but Spark did not start with Delta's jars ({jars or 'from the class path'}): "
                "the lines of Spark's resolver above say what it tried. The jars must be reachable for it "
                "(spark.jars.repositories, spark.jars.ivySettings), or stand in spark.jars with TWINLIB_DELTA_JARS set empty; "
                "or use storage: {format: parquet}"
            ) from e
        raise
    # The message of a failed task may hold values of patients: Spark's own errors are shown where whole errors are asked for.
    whole = os.environ.get("TWINLIB_TRACE") == "1"
    spark.sparkContext.setLogLevel("ERROR" if whole else "FATAL")
    for name in ("SQLQueryContextLogger", "DataFrameQueryContextLogger"):
        logging.getLogger(name).disabled = not whole
    if delta:
        require_delta(spark)
    return spark


def require_delta(spark: SparkSession) -> None:
    """Raises StorageError where the session has no Delta classes."""
    java = spark._jvm.java.lang
    try:
        java.Class.forName("io.delta.tables.DeltaTable", False, java.Thread.currentThread().getContextClassLoader())
    except Exception:  # py4j wraps ClassNotFoundException
        raise StorageError(
            "storage.format is delta, but this Spark session has no Delta classes: start the job with "
            f"--packages {DELTA_JARS}, or use storage: {{format: parquet}}"
        ) from None


def _require_java() -> None:
    home = os.environ.get("JAVA_HOME")
    if not shutil.which(os.path.join(home, "bin", "java") if home else "java"):
        raise TwinlibError(f"Spark needs Java 17 or newer: no java was found {'in JAVA_HOME' if home else 'on the PATH'}")
