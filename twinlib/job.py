"""What all jobs share: logging, one clear message instead of a stack trace, and the exit code that a scheduler reads."""

from __future__ import annotations

import logging
import os
import sys
import time
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Annotated

import typer

from twinlib.errors import TwinlibError

ConfigPath = Annotated[Path, typer.Option("--config", help="run configuration (YAML)", show_default=False)]


def setup_logging() -> None:
    """Log lines of the package to standard error with UTC times; the level comes from TWINLIB_LOG (default INFO)."""
    handler = logging.StreamHandler(sys.stderr)
    formatter = logging.Formatter("%(asctime)sZ %(levelname)s %(message)s", "%Y-%m-%dT%H:%M:%S")
    formatter.converter = time.gmtime
    handler.setFormatter(formatter)
    log = logging.getLogger("twinlib")
    log.handlers[:] = [handler]
    log.setLevel(os.environ.get("TWINLIB_LOG", "INFO").upper())
    log.propagate = False


def run(work: Callable[[], object]) -> None:
    """Run a job's work and leave with its exit code; an error is one line on standard error.

    The message of an error that is not ours may hold values of patients: only its type and place are told, and the whole with
    TWINLIB_TRACE=1.
    """
    setup_logging()
    try:
        work()
    except TwinlibError as e:
        typer.echo(f"error: {e}", err=True)
        raise typer.Exit(e.exit_code) from None
    except Exception as e:
        if os.environ.get("TWINLIB_TRACE") == "1":
            raise
        own = [f for f in traceback.extract_tb(e.__traceback__) if "twinlib" in f.filename]
        place = f" at {Path(own[-1].filename).name}:{own[-1].lineno}" if own else ""
        typer.echo(f"error: {type(e).__name__}{place}: a defect of the program; TWINLIB_TRACE=1 shows the whole", err=True)
        raise typer.Exit(1) from None
