"""What jobs share: logs as text and as JSON, exit codes, progress where there is no terminal."""

import io
import json
import logging
import re
import time

import pytest
import typer
from typer.testing import CliRunner

from twinlib import job
from twinlib.errors import Alerted, ConfigError, DataError, StorageError
from twinlib.progress import progress


@pytest.fixture(autouse=True)
def as_before():
    log = logging.getLogger("twinlib")
    handlers, propagate, level = log.handlers[:], log.propagate, log.level
    yield
    log.handlers[:], log.propagate = handlers, propagate
    log.setLevel(level)


def ends(error: Exception | None):
    def main():
        def work():
            if error:
                raise error

        job.run(work)

    app = typer.Typer()
    app.command()(main)
    return CliRunner().invoke(app, [])


@pytest.mark.parametrize(("error", "code", "said"), [
    (None, 0, ""),
    (ConfigError("bad key"), 2, "error: bad key\n"),
    (DataError("no file"), 3, "error: no file\n"),
    (Alerted("the run is done, but with alerts"), 4, "error: the run is done, but with alerts\n"),
    (StorageError("locked"), 5, "error: locked\n"),
    (OSError(28, "No space left on device", "/tables/x"), 5,
     "error: a disk cannot be written (No space left on device); once it can, start the run again: it goes on where it stopped\n"),
    (RuntimeError("Job 3 cancelled because SparkContext was shut down"), 1,
     "error: Spark or one of its workers died (SparkContext was shut down), most often for lack of memory: see spark.driver.memory, or "
     "spark.executor.memory and memoryOverhead on a cluster; start the run again: it goes on where it stopped\n"),
    (ValueError("value of a patient"), 1, "error: ValueError at job.py:N: a defect of the program; TWINLIB_TRACE=1 shows the whole\n"),
])
def test_every_end_has_its_exit_code_and_one_line(error, code, said):
    result = ends(error)
    assert (result.exit_code, re.sub(r"py:\d+", "py:N", result.stderr)) == (code, said)


def test_logs_are_json_objects_where_asked(monkeypatch, capsys):
    monkeypatch.setenv("TWINLIB_LOG_FORMAT", "json")
    job.setup_logging()
    logging.getLogger("twinlib.stages").info("stage=%s", "fit", extra={"fields": {"stage": "fit", "seconds": 1.5}})
    line = json.loads(capsys.readouterr().err)
    assert line["level"] == "INFO" and line["message"] == "stage=fit" and line["stage"] == "fit" and line["seconds"] == 1.5
    assert line["time"].endswith("Z") and "T" in line["time"]


def test_as_of_is_the_end_of_the_day():
    from datetime import datetime

    assert job.end_of(datetime(2026, 1, 5)).isoformat() == "2026-01-05T23:59:59.999999+00:00" and job.end_of(None) is None


def test_progress_without_a_terminal_is_a_log_line_with_the_time_left(spark, caplog):
    caplog.set_level("INFO", logger="twinlib.progress")
    logging.getLogger("twinlib").propagate = True

    def slow(batches):
        time.sleep(0.3)
        yield from batches

    with progress(spark, "fit", io.StringIO(), log_seconds=0.05):
        spark.range(0, 6, 1, 6).mapInArrow(slow, "id long").count()
    fields = [r.fields for r in caplog.records]
    assert fields and fields[-1]["stage"] == "fit" and 0 < fields[-1]["tasks_done"] <= fields[-1]["tasks"] and fields[-1]["seconds_left"] >= 0
