"""Slowly changing values as they were known at an instant; a future value is never used."""

from __future__ import annotations

from collections.abc import Iterable

from pyspark.sql import Column, DataFrame
from pyspark.sql import functions as F


def histories(observations: DataFrame, signals: Iterable[str]) -> DataFrame:
    """One row per patient: patient_id, history = array of (time, available_at, value, signal) of the named, sparse signals."""
    entry = F.struct("time", "available_at", "value", "signal")
    return (
        observations.where(F.col("signal").isin(*signals))
        .groupBy("patient_id")
        .agg(F.collect_list(entry).alias("history"))
    )


def known_at(history: Column, signal: str, instant: Column) -> Column:
    """The latest value of `signal` that was measured and had become known by `instant`; null where there is none."""
    past = F.filter(history, lambda e: (e["signal"] == signal) & (e["time"] <= instant) & (e["available_at"] <= instant))
    return F.array_max(past)["value"]
