"""Time stamps: texts to instants in UTC, with the local offset, daylight-saving gaps and folds, and undecided day/month order.

Spark's session runs in UTC, so a wall-clock reading is held as the timestamp that shows the same digits in UTC.
"""

from __future__ import annotations

import re
from collections.abc import Sequence

from pyspark.sql import Column, DataFrame
from pyspark.sql import functions as F

from twinlib.sources.mapping import Clock

_ZONE = r"\s?(Z|[+-]\d{2}:?\d{2})"
_SECONDS = rf"^\d{{4}}-\d{{2}}-\d{{2}}[T ]\d{{2}}:\d{{2}}:\d{{2}}(\.\d{{1,9}})?({_ZONE})?$"
_MINUTES = rf"^(\d{{4}}-\d{{2}}-\d{{2}}[T ]\d{{2}}:\d{{2}})(?:{_ZONE})?$"
_EPOCHS = {"epoch_s": 1e6, "epoch_ms": 1e3}  # microseconds
_FOLDS = (30, 60, 120)  # minutes by which clocks are set back somewhere on earth
_HOUR = re.compile("[HhaS]")
AGREEMENT = 0.95  # share of the telltale rows of a file that must agree on the order of day and month


def parsed(text: Column, formats: Sequence[str]) -> Column:
    """Wall-clock reading (or instant, where the text has a zone) by the first format that fits; null where none does."""
    return F.coalesce(*[_one(text, f) for f in formats])


def _one(text: Column, pattern: str) -> Column:
    if pattern in _EPOCHS:
        number = F.when(text.rlike(r"^\d{1,14}(\.\d+)?$"), text.try_cast("double"))
        return F.timestamp_micros(F.round(number * _EPOCHS[pattern]).cast("bigint"))
    if pattern == "iso":  # Spark's own reading takes a zone after seconds only, and dates without time, which are not meant
        with_seconds = F.regexp_replace(text, _MINUTES, "$1:00$2")
        return F.when(text.rlike(_SECONDS), F.try_to_timestamp(text)).when(text.rlike(_MINUTES), F.try_to_timestamp(with_seconds))
    return F.try_to_timestamp(text, F.lit(pattern))


def swapped(formats: Sequence[str]) -> list[str]:
    """The formats with day and month in each other's place."""
    return [re.sub(r"d+|M+", lambda m: m[0].translate(str.maketrans("dM", "Md")), f) for f in formats]


def explicit(text: Column, clock: Clock) -> Column:
    """Whether the text itself names its zone, or is an instant."""
    if all(f in _EPOCHS for f in clock.formats):
        return text.isNotNull()
    since_1970 = text.rlike(r"^\d{9,14}(\.\d+)?$") if any(f in _EPOCHS for f in clock.formats) else F.lit(False)
    return since_1970 | _explicit(text, clock)


def _explicit(text: Column, clock: Clock) -> Column:
    return text.rlike(rf":\d{{2}}(\.\d+)?{_ZONE}$") if any(f == "iso" or "X" in f for f in clock.formats) else F.lit(False)


def wall(text: Column, clock: Clock, order: Column) -> Column:
    """Wall-clock reading of a text; with order auto, as the file's `order` says (null where it is ambiguous)."""
    usual = parsed(text, clock.formats)
    if clock.order == "fixed":
        return usual
    return F.when(order == "first", usual).when(order == "second", parsed(text, swapped(clock.formats)))


def dated(clock: Clock) -> bool:
    """Whether some texts may be dates without a time of day."""
    return any(f != "iso" and not _HOUR.search(f) for f in clock.formats)


def until(text: Column, clock: Clock, order: Column) -> Column:
    """Where the text is a date, a month or a year only: the wall-clock reading at which that period is over; else null."""
    earlier, result = F.lit(None).cast("timestamp"), F.lit(None).cast("timestamp")
    for pattern in clock.formats:
        read = wall(text, clock.model_copy(update={"formats": (pattern,)}), order)
        if pattern != "iso" and not _HOUR.search(pattern):
            months = 0 if "d" in pattern else 1 if "M" in pattern else 12
            end = F.add_months(read, months).cast("timestamp") if months else shifted(read, F.lit(1440))
            result = F.coalesce(result, F.when(earlier.isNull(), end))
        earlier = F.coalesce(earlier, read)
    return result


def date_orders(df: DataFrame) -> DataFrame:
    """(file, date_order) from (file, first, second): rows read as the formats say, and with day and month swapped.

    date_order is `first`, `second`, or `ambiguous` where the dates do not tell.
    A row tells when only one of the two readings exists. 95 % of the rows that tell must agree; without any that tells,
    all readings must be the same either way round.
    """
    first, second = F.col("first"), F.col("second")
    only_first, only_second = first.isNotNull() & second.isNull(), first.isNull() & second.isNotNull()
    counts = df.groupBy("file").agg(
        F.count_if(only_first).alias("a"), F.count_if(only_second).alias("b"), F.count_if(first != second).alias("open")
    )
    a, b = F.col("a"), F.col("b")
    decided = (
        F.when((a + b == 0) & (F.col("open") == 0), "first")
        .when((a + b > 0) & (a >= AGREEMENT * (a + b)), "first")
        .when((a + b > 0) & (b >= AGREEMENT * (a + b)), "second")
        .otherwise("ambiguous")
    )
    return counts.select("file", decided.alias("date_order"))


def to_utc(wall: Column, named: Column, clock: Clock, offset: Column) -> Column:
    """Instant in UTC of a wall-clock reading. `named`: the text names its own zone; `offset`: minutes, local minus UTC."""
    if clock.zone == "UTC":
        return wall
    if clock.zone == "offset":
        return F.when(named, wall).otherwise(shifted(wall, -offset))
    return F.when(named, wall).otherwise(F.to_utc_timestamp(wall, clock.zone))


def local_offset(text: Column, utc: Column, clock: Clock, offset: Column) -> Column:
    """Local time minus UTC in minutes, null where the source does not tell. A text that ends in +01:00 tells; one in Z does not."""
    if clock.offset_column is not None:
        return offset
    if any(f == "iso" or "X" in f for f in clock.formats):
        sign, hours, minutes = (F.regexp_extract(text, r":\d{2}(?:\.\d+)?\s?([+-])(\d{2}):?(\d{2})$", k) for k in (1, 2, 3))
        stated = F.when(sign != "", (hours.try_cast("int") * 60 + minutes.try_cast("int")) * F.when(sign == "-", -1).otherwise(1))
        return F.coalesce(stated, _zone_offset(utc, clock))
    return _zone_offset(utc, clock)


def _zone_offset(utc: Column, clock: Clock) -> Column:
    zone = clock.local_zone or clock.zone
    if zone == "UTC":
        return F.lit(None).cast("int")
    return _minutes_between(F.from_utc_timestamp(utc, zone), utc)


def nonexistent(wall: Column, utc: Column, named: Column, clock: Clock) -> Column:
    """The wall-clock reading lies in a gap of daylight saving."""
    if clock.zone in ("UTC", "offset"):
        return F.lit(False)
    return ~named & (F.from_utc_timestamp(utc, clock.zone) != wall)


def ambiguous(wall: Column, utc: Column, named: Column, clock: Clock) -> Column:
    """The wall-clock reading happened twice; its instant is the earlier one."""
    if clock.zone in ("UTC", "offset"):
        return F.lit(False)
    again = [F.from_utc_timestamp(shifted(utc, F.lit(m)), clock.zone) == wall for m in _FOLDS]
    later = F.lit(max(_FOLDS))  # a look ahead spares nearly all rows the tests
    changes = F.from_utc_timestamp(shifted(utc, later), clock.zone) != shifted(wall, later)
    return F.when(named | ~changes, F.lit(False)).otherwise(again[0] | again[1] | again[2])


def shifted(time: Column, minutes: Column) -> Column:
    return F.timestamp_micros(F.unix_micros(time) + minutes.cast("bigint") * 60_000_000)


def _minutes_between(a: Column, b: Column) -> Column:
    return F.round((F.unix_micros(a) - F.unix_micros(b)) / 60_000_000).cast("int")
