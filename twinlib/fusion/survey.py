"""What the records of every patient look like as a whole, file by file: units that their values contradict, and sources without any."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import reduce

from pyspark.sql import DataFrame, SparkSession
from pyspark.sql import functions as F

from twinlib.errors import DataError
from twinlib.fusion.basal_share import too_small
from twinlib.fusion.entries import Entry, converted, described
from twinlib.fusion.rules import overruled
from twinlib.sources.records import Source

CONTRADICTION_MINIMUM = 5  # readings of one patient in one file below which the middle says nothing about the unit


@dataclass(frozen=True)
class Judged:
    """A judged part of a source (`judge.COLUMNS`), and the entries that its records may have."""

    frame: DataFrame
    entries: Sequence[Entry]


def union(frames: Iterable[DataFrame]) -> DataFrame:
    return reduce(DataFrame.unionByName, frames)


def surveyed(spark: SparkSession, parts: Sequence[Judged]) -> DataFrame:
    """(entry, patient_id, file, unit, files, ignored, rows, n, below, above, fits): what a patient's records in one file look like as a whole.

    n counts usable values, below and above those out of the plausible range; `fits` tells for each of the units that might be meant
    whether the middle value would be plausible in it.
    """
    return union(_of_part(spark, p) for p in parts)


def _of_part(spark: SparkSession, part: Judged) -> DataFrame:
    units = max(len(e.alternatives) for e in part.entries)
    df = part.frame.select("entry", "patient_id", "file", "unit", "value", "worded", "ignored")
    df = converted(spark, described(spark, df, part.entries, "low", "high", "alternatives"), part.entries)
    value, low, high = F.when(~F.col("worded"), F.col("value")), F.col("low"), F.col("high")
    raw = (value - F.col("shift")) / F.col("factor")
    meant = [raw * a.factor + a.offset for a in (F.get("alternatives", F.lit(k)) for k in range(units))]
    record = F.col("ignored").isNull()
    counted = df.groupBy("entry", "patient_id", "file", "unit").agg(
        F.count_if(~record).alias("files"),
        F.coalesce(F.sum("ignored"), F.lit(0)).alias("ignored"),
        F.count_if(record).alias("rows"),
        F.count(value).alias("n"),
        F.count_if(value < low).alias("below"),
        F.count_if(value > high).alias("above"),
        *[F.count_if(~(m < low)).alias(f"from_{k}") for k, m in enumerate(meant)],
        *[F.count_if(~(m > high)).alias(f"to_{k}") for k, m in enumerate(meant)],
    )
    fits = [(2 * F.col(f"from_{k}") > F.col("n")) & (2 * F.col(f"to_{k}") > F.col("n")) for k in range(units)]
    return counted.select(
        "entry", "patient_id", "file", "unit", "files", "ignored", "rows", "n", "below", "above",
        (F.greatest(*fits, F.lit(False)) if fits else F.lit(False)).alias("fits"),
    )  # fmt: skip


def contradictions(survey: DataFrame, parts: Sequence[Judged]) -> DataFrame:
    """(entry, patient_id, file, unit, contradicted) where the middle value is implausible in the declared unit, but not in another one,
    and where basal rates are too small beside the patient's boluses.

    A file is decided on its own: one bad export among good ones is seen, and what comes later changes nothing.
    """
    outside = 2 * F.greatest("below", "above") > F.col("n")
    wrong = survey.filter((F.col("n") >= CONTRADICTION_MINIMUM) & F.col("patient_id").isNotNull() & outside & F.col("fits"))
    found = wrong.select("entry", "patient_id", "file", "unit", F.lit(True).alias("contradicted"))
    rates, doses = (
        [e.number for p in parts for e in p.entries if (e.meaning.name, e.meaning.kind) == which] for which in (("insulin_basal", "rate"), ("insulin_bolus", "dose"))
    )
    if not rates or not doses:
        return found
    looked_at = [p.frame for p in parts if any(e.number in (*rates, *doses) for e in p.entries)]
    small = too_small(union(f.select("entry", "patient_id", "file", "unit", "utc", "value", "reason", "ignored") for f in looked_at), rates, doses)
    return found.unionByName(small).distinct()


def overrule(part: Judged, wrong_units: DataFrame, contradicted: set[int]) -> DataFrame:
    """Refuses all records of a patient, file, entry and unit that contradict their unit."""
    own = sorted(contradicted & {e.number for e in part.entries})
    if not own:
        return part.frame
    found = F.broadcast(wrong_units.filter(F.col("entry").isin(own)))
    keys = [*(["entry"] if len(part.entries) > 1 else []), "patient_id", "file", "unit"]
    df = part.frame.join(found.select(*keys, "contradicted"), keys, "left")
    return df.withColumn("reason", overruled(F.col("reason"), F.coalesce("contradicted", F.lit(False)), "unit_contradicts_values")).drop("contradicted")


def read_counts(survey: DataFrame, entries: Sequence[Entry]) -> dict[int, dict[str, int]]:
    """files, rows_ignored and rows_read by number of entry."""
    sums = [F.sum(n).alias(n) for n in ("files", "ignored", "rows")]
    found = {r.entry: r for r in survey.groupBy("entry").agg(*sums).collect()}
    files = {e.meaning.group: found[e.number].files for e in reversed(entries) if e.number in found and found[e.number].files}
    return {
        e.number: {
            "files": files.get(e.meaning.group, 0),
            "rows_ignored": found[e.number].ignored if e.number in found else 0,
            "rows_read": found[e.number].rows if e.number in found else 0,
        }
        for e in entries
    }


def check_presence(read: dict[int, dict[str, int]], sources: Sequence[Source], entries: Sequence[Entry]) -> None:
    """Raises DataError where a whole source has no record."""
    for origin, source in enumerate(sources):
        own = [e for e in entries if e.origin == origin]
        if not any(read[e.number]["rows_read"] for e in own):
            files = sum({e.meaning.group: read[e.number]["files"] for e in own}.values())
            raise DataError(f"source {source.name}: no records in {files} files; expected at least one")
