"""One fact, one row: exact repetitions are dropped, contradictions at one instant are settled by a fixed rule.

Two records are about the same fact when patient, signal or agent, kind, instant, and (for doses) "at once or over a while"
are the same.

- Of a signal, a rate, or an agent whose amounts at one instant contradict each other, one record is kept: that of the source
  that stands first in the configuration, then of the entry and file that come first, then the first line; for rates the last
  line, because the rate set last within a minute is the one in force. It is flagged `conflict` where another value was dropped.
- Of an agent whose amounts add up (foods of one meal), all different records of the first source are kept and flagged
  `same_instant`; equal ones (value, end and label) are repetitions.
- Of a patient's attributes the first record is kept.
"""

from __future__ import annotations

from pyspark.sql import DataFrame, Window
from pyspark.sql import functions as F

KEY = ("patient_id", "target", "name", "kind", "extended", "utc")


def settle(df: DataFrame) -> DataFrame:
    """`df` (sound records as `ingest.judge` makes them) with `kept`, and the flags that the choice adds to `quality`."""
    rate = F.coalesce(F.col("kind") == "rate", F.lit(False))
    df = df.withColumn("extended", F.coalesce(F.col("kind") == "dose", F.lit(False)) & F.col("end").isNotNull())
    df = df.withColumns(
        {f"item_{c}": F.when(F.col("adds"), F.col(c)) for c in ("value", "end", "label")}
        | {"place": F.when(rate, -F.col("line")).otherwise(F.col("line"))}
    )
    same_fact = Window.partitionBy(*KEY)
    same_item = Window.partitionBy(*KEY, "item_value", "item_end", "item_label").orderBy("origin", "entry", "file", "place")
    content = F.struct("value", "end")
    kept = (F.row_number().over(same_item) == 1) & (~F.col("adds") | (F.col("origin") == F.min("origin").over(same_fact)))
    differ = (F.col("target") != "patient") & (F.min(content).over(same_fact) != F.max(content).over(same_fact))
    flag = F.when(~F.col("adds") | (F.min("origin").over(same_fact) != F.max("origin").over(same_fact)), "conflict")
    flagged = F.when(differ, F.array_append("quality", flag.otherwise("same_instant"))).otherwise(F.col("quality"))
    return df.withColumns({"kept": kept, "quality": flagged}).drop("item_value", "item_end", "item_label", "place", "extended")


