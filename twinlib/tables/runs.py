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
from twinlib.errors import DataError, TwinlibError
from twinlib.tables.schemas import RUNS
from twinlib.tables.storage import Storage


@dataclass
class Stage:
    """What a running stage tells of itself: counts by name, and whether it found nothing to do."""

    counts: dict[str, int] = field(default_factory=dict)
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

    def last_input_hash(self, name: str, parts: tuple[str, ...] = ()) -> str | None:
        """Input hash of the stage's last run, where that ended well under the present configuration; else None.

        Only the very last run counts: after a failure, or a run with another configuration, the tables hold
        something else than what an earlier success left.
        """
        last = (
            self.storage.read(RUNS)
            .where(F.col("stage") == name)
            .orderBy(F.desc("started_at"), F.desc("run_id"))
            .select("status", "config_hash", "input_hash")
            .first()
        )
        good = last is not None and last.status != "failed" and last.config_hash == self.config.hash(*parts)
        return last.input_hash if good else None

    def _record(self, name, stage, started, seconds, input_hash, parts, message) -> None:
        counts = {k: int(v) for k, v in stage.counts.items()}
        row = (self.run_id, name, stage.status, started, seconds, self.config.hash(*parts), input_hash, counts, message)
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
