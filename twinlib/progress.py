"""Progress of Spark stages: a bar with rate and time left in a terminal, nothing elsewhere (logs have one line per stage)."""

from __future__ import annotations

import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager

from pyspark.sql import SparkSession
from rich.progress import BarColumn, Progress, SpinnerColumn, TaskProgressColumn, TextColumn, TimeElapsedColumn, TimeRemainingColumn


def _counts(tracker, known: dict[int, tuple[int, int]]) -> tuple[int, int]:
    """Completed and known tasks of all stages seen so far; finished stages count with all their tasks."""
    for stage in tracker.getActiveStageIds():
        info = tracker.getStageInfo(stage)
        if info:
            known[stage] = (info.numCompletedTasks, info.numTasks)
    return sum(d for d, _ in known.values()), sum(n for _, n in known.values())


@contextmanager
def progress(spark: SparkSession, name: str, stream=sys.stderr) -> Iterator[None]:
    """Show the tasks of the Spark jobs that run inside the block, where `stream` is a terminal."""
    if not stream.isatty():
        yield
        return
    tracker, stop = spark.sparkContext.statusTracker(), threading.Event()
    columns = (SpinnerColumn(), TextColumn("{task.description:10}"), BarColumn(), TaskProgressColumn(), TimeElapsedColumn(), TimeRemainingColumn())
    with Progress(*columns, transient=True) as bar:
        task, known = bar.add_task(name, total=None), {}

        def watch():
            while not stop.wait(0.5):
                done, total = _counts(tracker, known)
                bar.update(task, completed=done, total=total or None)

        thread = threading.Thread(target=watch, daemon=True)
        thread.start()
        try:
            yield
        finally:
            stop.set()
            thread.join()
