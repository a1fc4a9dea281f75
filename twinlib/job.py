"""What all jobs share: logging, one clear message instead of a stack trace, and the exit code that a scheduler reads."""

from __future__ import annotations

import json
import logging
import os
import sys
import time
import traceback
from collections.abc import Callable
from datetime import datetime, timedelta, timezone
from pathlib import Path
from typing import Annotated

import typer

from twinlib.errors import StorageError, TwinlibError

AsOf = Annotated[
    datetime | None,
    typer.Option("--as-of", formats=["%Y-%m-%d"], help="use only what was known at the end of this day, UTC (backfill)", show_default=False),
]
_AGAIN = "start the run again: it goes on where it stopped"
# errors that are not ours and are known: what their messages hold, what is said, and the exit code
_KNOWN = (
    (
        ("No space left on device", "File too large", "Disk quota exceeded", "Read-only file system", "Input/output error"),
        "a disk cannot be written ({}); once it can, " + _AGAIN, StorageError.exit_code,
    ),
    (
        ("OutOfMemoryError", "SparkContext was shut down", "stopped SparkContext", "Python worker exited unexpectedly"),
        "Spark or one of its workers died ({}), most often for lack of memory: see spark.driver.memory, or spark.executor.memory and memoryOverhead on a "
        "cluster; " + _AGAIN, 1,
    ),
)  # fmt: skip
ConfigPath = Annotated[Path, typer.Option("--config", help="run configuration (YAML)", show_default=False)]


class JsonLines(logging.Formatter):
    """One JSON object per line: time (UTC), level, message, and the fields that the caller gave as `extra={"fields": {...}}`."""

    converter = time.gmtime

    def format(self, record: logging.LogRecord) -> str:
        line = {"time": self.formatTime(record, "%Y-%m-%dT%H:%M:%S") + f".{int(record.msecs):03d}Z", "level": record.levelname}
        return json.dumps(line | {"message": record.getMessage()} | getattr(record, "fields", {}), ensure_ascii=False)


def setup_logging() -> None:
    """Log lines of the package to standard error with UTC times.

    The level comes from TWINLIB_LOG (default INFO); TWINLIB_LOG_FORMAT=json makes every line a JSON object.
    """
    handler = logging.StreamHandler(sys.stderr)
    formatter = logging.Formatter("%(asctime)sZ %(levelname)s %(message)s", "%Y-%m-%dT%H:%M:%S")
    formatter.converter = time.gmtime
    handler.setFormatter(JsonLines() if os.environ.get("TWINLIB_LOG_FORMAT") == "json" else formatter)
    log = logging.getLogger("twinlib")
    log.handlers[:] = [handler]
    log.setLevel(os.environ.get("TWINLIB_LOG", "INFO").upper())
    log.propagate = False


def end_of(day: datetime | None) -> datetime | None:
    """The last moment of a day, UTC."""
    return None if day is None else day.replace(tzinfo=timezone.utc) + timedelta(days=1) - timedelta(microseconds=1)


def run(work: Callable[[], object]) -> None:
    """Run a job's work and leave with its exit code; an error is one line on standard error.

    The message of an error that is not ours may hold values of patients: only its type and place are told, and the whole with
    TWINLIB_TRACE=1.
    """
    setup_logging()
    os.umask(0o077)  # whatever the job writes is its owner's alone
    try:
        work()
    except TwinlibError as e:
        typer.echo(f"error: {e}", err=True)
        raise typer.Exit(e.exit_code) from None
    except Exception as e:
        if os.environ.get("TWINLIB_TRACE") == "1":
            raise
        for words, said, code in _KNOWN:
            word = next((w for w in words if w in str(e)), None)
            if word is not None:
                typer.echo(f"error: {said.format(word)}", err=True)
                raise typer.Exit(code) from None
        own = [f for f in traceback.extract_tb(e.__traceback__) if "twinlib" in f.filename]
        place = f" at {Path(own[-1].filename).name}:{own[-1].lineno}" if own else ""
        typer.echo(f"error: {type(e).__name__}{place}: a defect of the program; TWINLIB_TRACE=1 shows the whole", err=True)
        raise typer.Exit(1) from None
