"""The manifest of job runs: one row per stage, with what it read, what it counted, how long it took and how it ended."""

from __future__ import annotations

import hashlib
import secrets
import time
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import datetime, timezone
from pathlib import Path

from pyspark.sql import functions as F

from twinlib import __version__
from twinlib.config import RunConfig
from twinlib.errors import DataError, StorageError, TwinlibError
from twinlib.tables.schemas import RUNS
from twinlib.tables.storage import Storage


@dataclass
class Stage:
    """What a running stage tells of itself: counts and metrics by name, its tables, and whether it found nothing to do."""

    counts: dict[str, int] = field(default_factory=dict)
    metrics: dict[str, float] = field(default_factory=dict)
    tables: dict[str, str] = field(default_factory=dict)  # name -> version of the tables that the stage wrote, or found up to date
    status: str = "done"

    def unchanged(self) -> None:
        """The stage did not run, because nothing that it reads has changed."""
        self.status = "unchanged"


class Runs:
    """The stages of one job run. `parts` of a method are the parts of the configuration that the stage reads (all of
    it when none is named): a stage need not run again because another stage's settings changed."""

    def __init__(self, storage: Storage, config: RunConfig):
        self.storage, self.config = storage, config
        self.run_id = f"{datetime.now(timezone.utc):%Y%m%dT%H%M%SZ}-{secrets.token_hex(3)}"
        self._sequence: int | None = None

    @contextmanager
    def stage(self, name: str, input_hash: str, parts: tuple[str, ...] = ()) -> Iterator[Stage]:
        """Run the body as a stage and record it, also when it fails; the error goes on to the caller.

        The message of an error that is not ours stays out of the table (Spark's may show values): its type is kept.
        """
        stage, message = Stage(), None
        started, clock = datetime.now(timezone.utc), time.monotonic()
        try:
            yield stage
        except Exception as e:
            stage.status, message = "failed", str(e) if isinstance(e, TwinlibError) else type(e).__name__
            try:
                self._record(name, stage, started, time.monotonic() - clock, input_hash, parts, message)
            except Exception as second:
                e.add_note(f"besides, the failure could not be recorded in table {RUNS.name}: {second}")
            raise
        self._record(name, stage, started, time.monotonic() - clock, input_hash, parts, message)

    def tables_of(self, run_id: str) -> dict[str, str]:
        """Name -> version of every table as that run left it (`Storage.read_version` opens them).

        A stage that the run did not reach left what an earlier run had made. Raises StorageError where there is no such run.
        """
        rows = self.storage.read(RUNS)
        own = rows.where(F.col("run_id") == run_id)
        last = own.agg(F.max("sequence")).first()[0]
        if last is None:
            raise StorageError(f"table {RUNS.name}: there is no run {run_id}, or it is older than the record of table versions")
        earlier = rows.where((F.col("sequence") <= last) & F.col("table_versions").isNotNull()).orderBy("sequence")
        found: dict[str, str] = {}
        for row in earlier.select("table_versions").collect():
            found |= row.table_versions
        return found

    def last_input_hash(self, name: str, parts: tuple[str, ...] = ()) -> str | None:
        """Input hash of the stage's last run, where that ended well under the present configuration; else None.

        Only the very last run counts: after a failure, or a run with another configuration, the tables hold
        something else than what an earlier success left.
        """
        last = (
            self.storage.read(RUNS)
            .where(F.col("stage") == name)
            .orderBy(F.desc_nulls_last("sequence"), F.desc("started_at"), F.desc("run_id"))  # a clock may be set back
            .select("status", "config_hash", "input_hash")
            .first()
        )
        good = last is not None and last.status != "failed" and last.config_hash == self.config.hash(*parts)
        return last.input_hash if good else None

    def _record(self, name, stage, started, seconds, input_hash, parts, message) -> None:
        if self._sequence is None:
            self._sequence = self.storage.read(RUNS).agg(F.max("sequence")).first()[0] or 0
        self._sequence += 1
        counts = {k: int(v) for k, v in stage.counts.items()}
        metrics = {k: float(v) for k, v in stage.metrics.items()}
        row = (
            self.run_id, name, stage.status, started, seconds, self.config.hash(*parts), input_hash, counts, message,
            self._sequence, metrics, stage.tables,
        )
        self.storage.append(RUNS, self.storage.spark.createDataFrame([row], RUNS.schema))


def fingerprint(paths: Iterable[str | Path], root: str | Path) -> str:
    """Hash of input files by path relative to `root`, size and time of change, and of twinlib's version, which may
    read them otherwise. Content is not read. Raises DataError where a file is missing or lies outside `root`."""
    root, lines = Path(root), [f"twinlib {__version__}"]
    for path in sorted(map(Path, paths)):
        try:
            found = path.stat()
            lines.append(f"{path.relative_to(root).as_posix()}\t{found.st_size}\t{found.st_mtime_ns}")
        except OSError as e:
            raise DataError(f"{root}: an input file cannot be read: {e.strerror}") from None
        except ValueError:
            raise DataError(f"an input file lies outside of {root}") from None
    return hashlib.sha256("\n".join(lines).encode()).hexdigest()[:16]
