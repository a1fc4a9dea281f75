"""What ingest gives: frames of the tables, and counts that must add up."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property, partial

import pyarrow as pa
from pyspark import Accumulator, AccumulatorParam
from pyspark.sql import DataFrame, SparkSession
from pyspark.sql import functions as F

from twinlib.errors import DataError
from twinlib.fusion.entries import Entry
from twinlib.tables.contracts import Table
from twinlib.tables.ordered import AHEAD
from twinlib.tables.schemas import EVENTS, EXPOSURES, IDENTITIES, INGEST_COUNTS, OBSERVATIONS, PATIENTS, QUARANTINE

TARGETS = {"patient": PATIENTS, "observation": OBSERVATIONS, "exposure": EXPOSURES, "event": EVENTS}
Counts = Counter[tuple[int, str]]  # by number of entry, and "kept" or "dropped"


class ByPart(AccumulatorParam):
    """Counts by part of a frame: a task that runs twice counts once."""

    def zero(self, value: dict) -> dict:
        return {}

    def addInPlace(self, value1: dict, value2: dict) -> dict:  # noqa: N802  (Spark's name)
        return value1 | value2


@dataclass
class Counted:
    """A frame whose records are counted by entry where it is computed."""

    frame: DataFrame
    accumulator: Accumulator
    computed: bool = False  # `frame` has been computed as a whole

    def counts(self) -> Counts:
        """What has not been counted so far is counted now."""
        if not self.computed:
            self.frame.count()
            self.computed = True
        return sum(self.accumulator.value.values(), Counter())


@dataclass
class Ingested:
    """Frames that conform to PATIENTS, OBSERVATIONS, EXPOSURES, EVENTS, IDENTITIES, QUARANTINE; `release` when they are written.

    Each frame can be computed on its own. Their records are counted on the way (`counted`, by target and for quarantine). `survey` has files,
    ignored and rows by entry, patient and file; `read` files, rows_ignored and rows_read by number of entry.
    """

    counted: dict[str, Counted]
    identities: DataFrame
    survey: DataFrame
    read: dict[int, dict[str, int]]
    spark: SparkSession
    entries: Sequence[Entry]
    cached: tuple[DataFrame, ...]

    def frames(self) -> Iterator[tuple[Table, DataFrame, Callable[[], None]]]:
        """Tables in the order in which they are to be written, each with a check to call when its frame has just been computed.

        A check raises DataError where the records of the table's sources do not add up.
        """

        def check(target: str) -> None:
            self.counted[target].computed = True
            if target != "quarantine":
                check_conservation(self.rows(target))

        for target in ("quarantine", "observation", "exposure", "event", "patient"):
            yield TARGETS.get(target, QUARANTINE), self.counted[target].frame, partial(check, target)
        yield IDENTITIES, self.identities, lambda: None

    def _table(self, target: str) -> DataFrame:
        return TARGETS[target].conform(self.counted[target].frame.drop(AHEAD))

    @property
    def patients(self) -> DataFrame:
        return self._table("patient")

    @property
    def observations(self) -> DataFrame:
        return self._table("observation")

    @property
    def exposures(self) -> DataFrame:
        return self._table("exposure")

    @property
    def events(self) -> DataFrame:
        return self._table("event")

    @property
    def quarantine(self) -> DataFrame:
        return self.counted["quarantine"].frame

    @cached_property
    def counts(self) -> DataFrame:
        """INGEST_COUNTS. Raises DataError where records were lost."""
        rows = by_source(row for target in ("patient", "observation", "exposure", "event", "none") for row in self.rows(target))
        check_conservation(rows)
        return INGEST_COUNTS.conform(self.spark.createDataFrame(pa.Table.from_pylist(rows)))

    def landed(self) -> DataFrame:
        """source, file, files (1 where the file is counted under this source), rows_ignored, rows_read."""
        sums = [F.sum(n).alias(m) for n, m in (("files", "files"), ("ignored", "rows_ignored"), ("rows", "rows_read"))]
        return self.survey.groupBy("source", "file").agg(*sums)

    def rows(self, target: str) -> list[dict]:
        """What INGEST_COUNTS has of the entries of one target, a row for each."""
        refused = self.counted["quarantine"].counts()
        found = self.counted[target].counts() if target in self.counted else Counter()
        return [
            {
                "source": e.meaning.source, **self.read[e.number], "accepted": found[e.number, "kept"], "duplicates": found[e.number, "dropped"],
                "quarantined": refused[e.number, "kept"],
            }
            for e in self.entries if e.meaning.target == target
        ]  # fmt: skip

    def release(self) -> None:
        for df in self.cached:
            df.unpersist()


def by_source(rows: Iterable[dict]) -> list[dict]:
    """Rows of INGEST_COUNTS: those of entries that are counted under one source name added up; files are the same for each."""
    result: dict[str, dict] = {}
    for row in rows:
        total = result.setdefault(row["source"], {n: v if n in ("source", "files") else 0 for n, v in row.items()})
        total |= {n: total[n] + v for n, v in row.items() if n not in ("source", "files")}
    return list(result.values())


def check_conservation(counts: Iterable[dict]) -> None:
    """Raises DataError where the records of an entry do not add up."""
    for c in counts:
        if c["rows_read"] != c["accepted"] + c["duplicates"] + c["quarantined"]:
            raise DataError(
                f"{c['source']}: records were lost: {c['rows_read']} read, {c['accepted']} accepted, "
                f"{c['duplicates']} duplicates, {c['quarantined']} quarantined"
            )
