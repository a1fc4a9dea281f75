"""Clocks against Python's zoneinfo."""

from datetime import UTC, datetime, timedelta
from zoneinfo import ZoneInfo

import pytest
from pyspark.sql import functions as F

from twinlib.fusion import clocks
from twinlib.sources.mapping import Clock

# around changes of the clocks: by an hour, by half an hour (Lord Howe), and none
CASES = {
    "Europe/London": ["2024-03-31 00:30", "2024-10-27 00:30"],
    "America/New_York": ["2024-03-10 01:30", "2024-11-03 00:30"],
    "Australia/Lord_Howe": ["2024-04-07 01:00", "2024-10-06 01:30"],
    "Asia/Kolkata": ["2024-06-01 12:00"],
}


def reference(local: datetime, zone: str):
    """(exists, happened twice, first instant in UTC)."""
    first, second = (local.replace(tzinfo=ZoneInfo(zone), fold=f).astimezone(UTC) for f in (0, 1))
    exists = first.astimezone(ZoneInfo(zone)).replace(tzinfo=None) == local
    return exists, exists and first != second, first.replace(tzinfo=None)


@pytest.mark.parametrize("zone", CASES)
def test_gaps_folds_and_offsets(spark, zone):
    locals_ = [datetime.fromisoformat(t) + timedelta(minutes=10 * k) for t in CASES[zone] for k in range(16)]
    clock, no = Clock(column="t", formats=["d/M/yyyy H:mm"], zone=zone), F.lit(False)
    df = spark.createDataFrame([(f"{t:%-d/%-m/%Y %-H:%M}",) for t in locals_], "t string")
    df = df.withColumn("wall", clocks.wall(F.col("t"), clock, F.lit(None)))
    df = df.withColumn("utc", clocks.to_utc(F.col("wall"), no, clock, F.lit(None)))
    rows = df.select(
        F.date_format("utc", "yyyy-MM-dd HH:mm").alias("utc"),
        clocks.nonexistent(F.col("wall"), F.col("utc"), no, clock).alias("gap"),
        clocks.ambiguous(F.col("wall"), F.col("utc"), no, clock).alias("fold"),
        clocks.local_offset(F.col("t"), F.col("utc"), clock, F.lit(None)).alias("offset"),
    ).collect()
    assert len(rows) == len(locals_)
    for local, row in zip(locals_, rows):
        exists, twice, utc = reference(local, zone)
        assert row.gap == (not exists) and row.fold == twice
        if exists:
            assert row.utc == f"{utc:%Y-%m-%d %H:%M}" and row.offset == (local - utc) / timedelta(minutes=1)


def test_iso_texts_with_and_without_zone(spark):
    clock = Clock(column="t", zone="America/New_York")
    texts = [
        "2024-01-02T03:04:05.678Z",
        "2024-01-02 03:04:05+01:00",
        "2024-01-02 03:04 +0100",
        "2024-01-02T03:04Z",
        "2024-01-02T03:04",
        "2024-01-02",
        "20240102T0304",
        "2024-02-30 00:00",
    ]
    df = spark.createDataFrame([(t,) for t in texts], "t string")
    df = df.select(clocks.wall(F.col("t"), clock, F.lit(None)).alias("w"), clocks.explicit(F.col("t"), clock).alias("named"))
    got = df.select(
        F.date_format(clocks.to_utc(F.col("w"), F.col("named"), clock, F.lit(None)), "HH:mm:ss.SSS").alias("u")
    ).collect()
    assert [r.u for r in got] == [
        "03:04:05.678",
        "02:04:05.000",
        "02:04:00.000",
        "03:04:00.000",
        "08:04:00.000",
        None,
        None,
        None,
    ]


def test_order_of_day_and_month_per_file(spark):
    files = {
        "day_first": ["25/01/2024", "02/03/2024"],
        "month_first": ["01/25/2024", "02/03/2024"],
        "undecidable": ["02/03/2024", "04/05/2024"],
        "torn": ["25/01/2024", "01/25/2024"],
        "same_either_way": ["05/05/2024"],
        "one_slip": ["25/01/2024"] * 30 + ["01/25/2024"],
        "garbage": ["x"],
    }
    formats = ["d/M/yyyy"]
    df = spark.createDataFrame([(f, t) for f, texts in files.items() for t in texts], "file string, t string").select(
        "file",
        clocks.parsed(F.col("t"), formats).alias("first"),
        clocks.parsed(F.col("t"), clocks.swapped(formats)).alias("second"),
    )
    assert {r.file: r.date_order for r in clocks.date_orders(df).collect()} == {
        "day_first": "first",
        "month_first": "second",
        "undecidable": "ambiguous",
        "torn": "ambiguous",
        "same_either_way": "first",
        "one_slip": "first",
        "garbage": "first",
    }


def test_swapped_formats():
    assert clocks.swapped(["dd/M/yyyy HH:mm", "MM-dd-yy"]) == ["MM/d/yyyy HH:mm", "dd-MM-yy"]
