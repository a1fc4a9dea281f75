"""What every stage of a run shares: its row in the manifest, progress, metrics, a log line, lineage, and the dry run."""

from __future__ import annotations

import hashlib
import logging
import sys
import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import cached_property

from pyspark.sql import SparkSession

from twinlib.errors import TwinlibError
from twinlib.metrics import Tasks
from twinlib.plan import Plan
from twinlib.progress import progress
from twinlib.session import session
from twinlib.tables import faults, lineage, open_storage
from twinlib.tables.contracts import Table
from twinlib.tables.runs import Runs, Stage

log = logging.getLogger("twinlib")


@dataclass(frozen=True)
class Work:
    """A running stage: its row of the manifest, and whether its inputs are the same as last time."""

    stage: Stage
    same: bool

    @property
    def counts(self) -> dict[str, int]:
        return self.stage.counts

    @property
    def metrics(self) -> dict[str, float]:
        return self.stage.metrics

    def unchanged(self) -> None:
        self.stage.unchanged()


@dataclass(frozen=True)
class Preview(Exception):  # noqa: N818  (no error: how a stage says what it would do, and stops before it does it)
    """What a stage would do: `same` where its inputs are those of its last run, so nothing."""

    stage: str
    same: bool


class Runner(ABC):
    """One run: a plan on a Spark session and a storage."""

    def __init__(self, plan: Plan, spark: SparkSession | None = None):
        self.plan, self.config = plan, plan.config
        self.spark = spark or session(f"twinlib {plan.config.name}", dict(plan.config.spark), plan.config.storage.format == "delta")
        self.storage = open_storage(self.spark, plan.config)
        self.runs = Runs(self.storage, plan.config)
        self._preview = False
        self._seen: dict[str, str] = {}  # versions of the tables that this run has written or found up to date

    @cached_property
    def partitions(self) -> int:
        """Tasks of the compute stages: enough for balance and progress, few enough to amortise their start."""
        return 8 * self.spark.sparkContext.defaultParallelism

    @property
    @abstractmethod
    def stages(self) -> tuple[Callable[[], None], ...]:
        """In the order in which they run."""

    @abstractmethod
    def amount(self, stage: str, certain: bool) -> str:
        """How much a stage would do, in words. certain: whether its input tables are those that it would read."""

    def preview(self) -> list[tuple[str, str, str]]:
        """(stage, "unchanged" | "run" | "perhaps", how much) of what `run` would do now. Nothing is written.

        What comes after a stage that would run can only be known when that has run: "perhaps", with what its last run did.
        """
        self._preview, out, certain = True, [], True
        try:
            for stage in self.stages:
                try:
                    stage()
                except TwinlibError:
                    if certain:
                        raise
                    out.append((stage.__name__, "perhaps", ""))  # its input is yet to be made
                except Preview as found:
                    verdict = ("unchanged" if found.same else "run") if certain else "perhaps"
                    out.append((found.stage, verdict, "" if verdict == "unchanged" else self.amount(found.stage, certain)))
                    certain = certain and found.same
        finally:
            self._preview = False
        return out

    @contextmanager
    def _stage(
        self, name: str, parts: tuple[str, ...], *inputs: str, reads: tuple[Table, ...] = (), writes: tuple[Table, ...] = ()
    ) -> Iterator[Work]:
        """A stage in the manifest, with progress, metrics, one log line and its lineage.

        parts: the parts of the configuration that the stage reads; inputs: versions or hashes of what else it reads. `same` where both
        are those of its last run and its tables are there. reads: the tables among what it reads.
        """
        digest = hashlib.sha256("\x1f".join(inputs).encode()).hexdigest()[:16]
        same = self.runs.last_input_hash(name, parts) == digest and all(self.storage.exists(t) for t in writes)
        if self._preview:
            raise Preview(name, same)
        began, work, tasks = time.monotonic(), None, Tasks(self.spark)
        self._lineage(name, "START")
        faults.entered(name)
        try:
            with self.runs.stage(name, digest, parts) as stage, progress(self.spark, name):
                work = Work(stage, same)
                yield work
                stage.metrics |= tasks.measure(time.monotonic() - began)
                stage.tables |= {t.name: self.storage.version(t) for t in writes}
                self._seen |= stage.tables
        finally:
            error, seconds = sys.exc_info()[1], time.monotonic() - began
            counted = {k: v for k, v in sorted(work.counts.items()) if "." not in k} if work else {}
            state = "failed" if error else work.stage.status
            fields = {"run_id": self.runs.run_id, "stage": name, "status": state, "seconds": round(seconds, 3), **counted}
            words = " ".join(f"{k}={v}" for k, v in counted.items())
            log.info("stage=%s status=%s seconds=%.1f %s", name, state, seconds, words, extra={"fields": fields})
            self._lineage(name, "FAIL" if error else "COMPLETE", reads, writes, work.stage if work else None, error)

    def _lineage(
        self, name: str, kind: str, reads: tuple[Table, ...] = (), writes: tuple[Table, ...] = (), stage: Stage | None = None,
        error: BaseException | None = None,
    ) -> None:
        """One event of a stage; a failure to write it does not hide how the stage ended."""
        message = None if error is None else str(error) if isinstance(error, TwinlibError) else type(error).__name__
        try:
            read = {t.name: self._seen.get(t.name) or self.storage.version(t) for t in reads}
            lineage.write(self.storage, self.runs.run_id, lineage.event(
                self.storage, self.config.name, self.runs.run_id, name, kind, datetime.now(UTC), read, dict(stage.tables) if stage else {},
                {t.name: t for t in writes}, dict(stage.counts) if stage else {}, message,
            ))
        except (OSError, TwinlibError) as e:
            log.warning("stage=%s: its lineage could not be written: %s", name, type(e).__name__)
