"""What a session does where something is missing: each in a process of its own, since a JVM cannot be configured twice."""

import os
import subprocess
import sys

import pytest

from twinlib.session import require_delta, session


def start(code, **environment):
    script = f"from twinlib.session import *\ntry:\n    {code}\nexcept TwinlibError as e:\n    print(type(e).__name__, e)"
    command = [sys.executable, "-c", script]
    return subprocess.run(command, env=os.environ | environment, capture_output=True, text=True, timeout=120).stdout.strip()


def test_jars_that_cannot_be_had_give_a_clear_error():
    said = start("session(delta=True)", TWINLIB_DELTA_JARS="io.delta:no-such-artifact_2.13:0.0.0")
    assert said.startswith("StorageError storage.format is delta") and "io.delta:no-such-artifact_2.13:0.0.0" in said
    assert "storage: {format: parquet}" in said


def test_a_session_without_delta_is_told_apart():
    said = start("require_delta(session(conf={'spark.master': 'local[1]'}))")
    assert said.startswith("StorageError storage.format is delta, but this Spark session has no Delta classes")


def test_a_missing_java_is_named():
    assert "Spark needs Java 17 or newer: no java was found in JAVA_HOME" in start("session()", JAVA_HOME="/nowhere")


def test_the_session_keeps_utc_and_the_callers_settings(spark):
    assert session().conf.get("spark.sql.session.timeZone") == "UTC"
    assert spark.sparkContext.master == "local[2]" and spark.conf.get("spark.sql.shuffle.partitions") is not None


@pytest.mark.delta
def test_a_session_with_delta_is_accepted(spark):
    require_delta(spark)
    assert "DeltaSparkSessionExtension" in spark.conf.get("spark.sql.extensions")


def test_a_failed_task_shows_no_values():
    code = (
        "s = session(conf={'spark.master': 'local[1]'})\n    try:\n        s.sql(\"SELECT CAST('marker-' || id AS INT) FROM range(1)\").collect()\n"
        "    except Exception as e:\n        print(type(e).__name__)"
    )
    script = f"from twinlib.session import *\nif True:\n    {code}"
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, timeout=120)
    assert done.stdout.strip() == "NumberFormatException" and "marker" not in done.stderr
