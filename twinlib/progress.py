"""Progress of Spark stages: a bar with rate and time left in a terminal, a log line per minute elsewhere."""

from __future__ import annotations

import logging
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager

from pyspark.sql import SparkSession
from rich.progress import BarColumn, Progress, SpinnerColumn, TaskProgressColumn, TextColumn, TimeElapsedColumn, TimeRemainingColumn


LOG_SECONDS = 60.0
log = logging.getLogger(__name__)


def _counts(tracker, known: dict[int, tuple[int, int]]) -> tuple[int, int]:
    """Completed and known tasks of all stages seen so far; finished stages count with all their tasks."""
    for stage in tracker.getActiveStageIds():
        info = tracker.getStageInfo(stage)
        if info:
            known[stage] = (info.numCompletedTasks, info.numTasks)
    return sum(d for d, _ in known.values()), sum(n for _, n in known.values())


@contextmanager
def progress(spark: SparkSession, name: str, stream=sys.stderr, log_seconds: float = LOG_SECONDS) -> Iterator[None]:
    """Show the tasks of the Spark jobs that run inside the block: where `stream` is a terminal as a bar, else as log lines."""
    tracker, known = spark.sparkContext.statusTracker(), {}
    if not stream.isatty():
        began = time.monotonic()

        def tell():
            done, total = _counts(tracker, known)
            if total:
                left = (time.monotonic() - began) * (total - done) / done if done else None
                fields = {"stage": name, "tasks_done": done, "tasks": total, "seconds_left": None if left is None else round(left)}
                log.info("stage=%s tasks=%d/%d seconds_left=%s", name, done, total, "?" if left is None else round(left), extra={"fields": fields})

        with _every(log_seconds, tell):
            yield
        return
    columns = (SpinnerColumn(), TextColumn("{task.description:10}"), BarColumn(), TaskProgressColumn(), TimeElapsedColumn(), TimeRemainingColumn())
    with Progress(*columns, transient=True) as bar:
        task = bar.add_task(name, total=None)

        def draw():
            done, total = _counts(tracker, known)
            bar.update(task, completed=done, total=total or None)

        with _every(0.5, draw):
            yield


@contextmanager
def _every(seconds: float, tell) -> Iterator[None]:
    """Call `tell` from a thread of its own while the block runs."""
    stop = threading.Event()

    def watch():
        while not stop.wait(seconds):
            tell()

    thread = threading.Thread(target=watch, daemon=True)
    thread.start()
    try:
        yield
    finally:
        stop.set()
        thread.join()
