"""One fact, one row: exact repetitions are dropped, contradictions at one instant are settled by a fixed rule.

Two records are about the same fact when patient, signal or agent, kind, instant, and (for doses) "at once or over a while"
are the same.

- Of a signal, a rate, or an agent whose amounts at one instant contradict each other, one record is kept: that of the source
  that stands first in the configuration, then of the entry and file that come first, then the first line; for rates the last
  line, because the rate set last within a minute is the one in force. It is flagged `conflict` where another value was dropped.
- Of an agent whose amounts add up (foods of one meal), all different records of the first source are kept and flagged
  `same_instant`; equal ones (value, end and label) are repetitions.
- Of one source, a record that corrects another (flag `amended`) comes before it.
- Of a patient's attributes the first record is kept.
"""

from __future__ import annotations

from pyspark.sql import DataFrame, Window
from pyspark.sql import functions as F

DECIMALS = 6  # of canonical values that are compared
KEYS = {
    "exposure": ("patient_id", "name", "kind", "extended", "utc"),
    "event": ("patient_id", "name", "utc"),
    "patient": ("patient_id",),
}


def settle(df: DataFrame, target: str, again: bool = False) -> DataFrame:
    """`df` (sound records of one target but signals, for which see `readings`; as `ingest` selects them) with `kept`, and the flags that the choice adds to `quality`.

    again: some of the records have been through here before, and bear the flags of what was dropped then. The result is that of all
    records together, whatever came first.

    Rows come out in order of bucket (where there is one), key and priority, the kept ones first.
    """
    rate = F.coalesce(F.col("kind") == "rate", F.lit(False))
    same = F.round("value", DECIMALS).alias("value")  # 5.5 mmol/L and 99.0858 mg/dL are one value
    item = F.when(F.col("adds"), F.struct(same, "end", "label")) if target in ("exposure", "event") else F.lit(None)
    df = df.withColumns(
        {
            "extended": F.coalesce(F.col("kind") == "dose", F.lit(False)) & F.col("end").isNotNull(),
            "item": item,
            "place": F.when(rate, -F.col("line")).otherwise(F.col("line")),
            "original": ~F.array_contains("quality", "amended"),
        }
    )
    key = (*(["bucket"] if "bucket" in df.columns else []), *KEYS[target])
    in_order = Window.partitionBy(*key).orderBy("item", "origin", "original", "entry", "file", "place")  # one sort for everything
    whole = in_order.rowsBetween(Window.unboundedPreceding, Window.unboundedFollowing)
    content = F.struct(same, "end")
    df = df.withColumns(
        {
            "rank": F.row_number().over(in_order),
            "repeats": F.lag("item").over(in_order).eqNullSafe(F.col("item")),
            "leading": F.min("origin").over(whole),
            "one_source": F.min("origin").over(whole) == F.max("origin").over(whole),
            "differ": F.lit(target != "patient") & (F.min(content).over(whole) != F.max(content).over(whole)),
        }
    )
    if again:
        conflict, either = F.array_contains("quality", "conflict"), F.arrays_overlap("quality", F.array(F.lit("conflict"), F.lit("same_instant")))
        df = df.withColumns(
            {
                "differ": F.col("differ") | F.max(either).over(whole),
                "one_source": F.col("one_source") & ~F.max(conflict).over(whole),
                "quality": F.array_except("quality", F.array(F.lit("conflict"), F.lit("same_instant"))),
            }
        )
    first = F.col("rank") == 1
    kept = first | (F.col("adds") & ~F.col("repeats"))
    flag = F.when(F.col("adds") & F.col("one_source"), "same_instant").otherwise("conflict")
    return df.withColumns(
        {
            "kept": kept & (~F.col("adds") | (F.col("origin") == F.col("leading"))),
            "quality": F.when(F.col("differ"), F.concat("quality", F.array(flag))).otherwise(F.col("quality")),
        }
    ).drop("extended", "item", "place", "original", "rank", "repeats", "leading", "one_source", "differ")
