"""One record at a time: its texts as numbers, units and instants, and the reason why it is refused, if it is."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from functools import reduce

from pyspark.sql import Column, DataFrame, SparkSession
from pyspark.sql import functions as F
from pyspark.sql.types import StringType

from twinlib.fusion import clocks
from twinlib.fusion.entries import DESCRIBED, FIXED, Entry, converted, described
from twinlib.fusion.rules import reason
from twinlib.sources.mapping import SECONDS, Clock

_NUMBER = r"^[+-]?(\d+(\.\d*)?|\.\d+)([eE][+-]?\d{1,3})?$"
_SEXES = {
    "female": "female",
    "f": "female",
    "woman": "female",
    "male": "male",
    "m": "male",
    "man": "male",
    "other": "other",
    "o": "other",
    "unknown": "unknown",
    "u": "unknown",
}
_HOURS = 18  # largest offset from UTC that is believed
_LONGEST = 366 * 86400  # s
_LONGEST_TREATMENT = 10 * _LONGEST

# what is kept of a record; entry_frame has the rest
COLUMNS = (
    "entry",
    "unit",
    "file",
    "line",
    "part",
    "patient_id",
    "ignored",
    "detail",
    "record",
    "reason",
    "utc",
    "end",
    "value",
    "worded",
    "label",
    "device",
    "utc_offset_minutes",
    "available_at",
    "quality",
    "sex",
    "birth_date",
    "identifiers",
)


def judge(spark: SparkSession, records: DataFrame, entries: Sequence[Entry]) -> DataFrame:
    """RECORDS with numbers, instants in UTC and quality flags in place of texts (COLUMNS), `reason` null where sound.

    entries: those that the records may have; with a single one all that depends on the entry is constant (see `records.Part`).

    Files whose order of day and month must be found are read twice, the first time for their time stamps only.
    """
    df = records.withColumn("unit", F.coalesce("unit", F.lit(FIXED)))
    df = converted(spark, described(spark, df, entries, *DESCRIBED), entries)
    if "stamp" not in df.columns:
        untyped = {"stamp": F.lit(None).cast("timestamp"), "stamp_named": F.lit(False), "amount": F.lit(None).cast("double")}
        df = df.withColumns(untyped)
    undecided = [e for e in entries if e.meaning.clock and e.meaning.clock.order == "auto"]
    df = _with_wall(df, entries, undecided)
    return (
        _with_instants(_with_numbers(df, entries), entries)
        .withColumn("reason", F.when(F.col("ignored").isNull(), reason()))
        .select(*COLUMNS)
    )


def _choose(entries: Iterable[Entry], of: Callable[[Entry], object], column: Callable[..., Column], default: Column) -> Column:
    """`column(x)` for records of the entries with `of(entry) == x`; entries with None get `default`."""
    groups: dict[object, list[int]] = {}
    for e in entries:
        if of(e) is not None:
            groups.setdefault(of(e), []).append(e.number)
    chain = F
    for x, numbers in groups.items():
        chain = chain.when(F.col("entry").isin(numbers), column(x))
    return chain.otherwise(default) if groups else default


def _by_clock(entries: Iterable[Entry], column: Callable[[Clock], Column], type_: str) -> Column:
    return _choose(entries, lambda e: e.meaning.clock, column, F.lit(None).cast(type_))


def _words(pairs: Iterable[tuple[str, object]], text: Column) -> Column:
    return reduce(lambda chain, p: chain.when(text == p[0], F.lit(p[1])), pairs, F).otherwise(F.lit(None))


def _flag(condition: Column, name: str) -> Column:
    # not array_compact: it is interpreted, and everything below it with it
    return F.when(condition, F.array(F.lit(name))).otherwise(F.array().cast("array<string>"))


# --- times --------------------------------------------------------------------------------------------------------------

_STAMPS = (
    ("time", "wall", lambda e: e.meaning.clock is not None),
    ("end", "end_wall", lambda e: e.meaning.has_end),
    ("available", "available_wall", lambda e: e.meaning.has_available),
)


def _with_wall(df: DataFrame, entries: Sequence[Entry], undecided: Sequence[Entry]) -> DataFrame:
    """Adds date_order, and wall-clock readings `wall`, `end_wall`, `available_wall`, each with `…_named`: the text has a zone.

    A date without a time of day stands for its first instant as a time (`until_wall` is when the day is over), and for its last as
    an end or as the instant at which something became known.
    """
    if undecided:
        rows = df.filter(F.col("entry").isin([e.number for e in undecided]) & F.col("time").isNotNull())
        first = _by_clock(undecided, lambda c: clocks.parsed(F.col("time"), c.formats), "timestamp")
        second = _by_clock(undecided, lambda c: clocks.parsed(F.col("time"), clocks.swapped(c.formats)), "timestamp")
        orders = clocks.date_orders(rows.select("file", first.alias("first"), second.alias("second")))
        df = df.join(F.broadcast(orders), "file", "left")
    else:
        df = df.withColumn("date_order", F.lit(None).cast("string"))
    columns: dict[str, Column] = {}
    for text, name, has in _STAMPS:
        some = [e for e in entries if has(e)]
        columns[name] = _by_clock(some, lambda c, t=text: clocks.wall(F.col(t), c, F.col("date_order")), "timestamp")
        columns[f"{name}_named"] = F.coalesce(
            _by_clock(some, lambda c, t=text: clocks.explicit(F.col(t), c), "boolean"), F.lit(False)
        )
        dated = [e for e in some if clocks.dated(e.meaning.clock)]
        over = _by_clock(dated, lambda c, t=text: clocks.until(F.col(t), c, F.col("date_order")), "timestamp")
        if name == "wall":
            columns["until_wall"] = over
        elif dated:
            columns[name] = F.coalesce(over, columns[name])
    columns["wall"] = F.coalesce("stamp", columns["wall"])
    columns["wall_named"] = F.when(F.col("stamp").isNotNull(), F.col("stamp_named")).otherwise(columns["wall_named"])
    return df.withColumns(columns)


def _with_instants(df: DataFrame, entries: Sequence[Entry]) -> DataFrame:
    """Adds utc, end, available_at, utc_offset_minutes, nonexistent, needs_offset and the first quality flags."""
    timed = [e for e in entries if e.meaning.clock]
    offset = F.when(F.abs("offset_minutes") <= _HOURS * 60, F.col("offset_minutes")).cast("int")

    def instant(name: str, some: Sequence[Entry]) -> Column:
        return _by_clock(some, lambda c: clocks.to_utc(F.col(name), F.col(f"{name}_named"), c, offset), "timestamp")

    def holds(test: Callable[..., Column]) -> Column:
        found = _by_clock(timed, lambda c: test(F.col("wall"), F.col("utc"), F.col("wall_named"), c), "boolean")
        return F.coalesce(found, F.lit(False))

    needs_offset = [e.number for e in timed if e.meaning.clock.zone == "offset"]
    longest = F.when(F.col("kind") == "treatment", _LONGEST_TREATMENT).otherwise(_LONGEST)
    lasting = F.when(
        F.col("seconds").between(0, longest),
        F.timestamp_micros(F.unix_micros("utc") + F.round(F.col("seconds") * 1e6).cast("bigint")),
    )
    return (
        df.withColumns(
            {
                "utc": instant("wall", timed),
                "over": _by_clock(timed, lambda c: clocks.to_utc(F.col("until_wall"), F.lit(False), c, offset), "timestamp"),
                "stated_end": instant("end_wall", [e for e in entries if e.meaning.has_end]),
                "stated_available": instant("available_wall", [e for e in entries if e.meaning.has_available]),
            }
        )
        .withColumns(
            {
                "end_stated": F.col("end").isNotNull() | F.col("duration").isNotNull(),
                "utc_offset_minutes": _by_clock(timed, lambda c: clocks.local_offset(F.col("time"), F.col("utc"), c, offset), "int"),
                "nonexistent": holds(clocks.nonexistent) & F.col("over").isNull(),
                "needs_offset": F.col("entry").isin(needs_offset) if needs_offset else F.lit(False),
                "quality": F.concat(
                    _flag(holds(clocks.ambiguous), "ambiguous_local_time"),
                    _flag(F.col("worded"), "saturated"),
                    _flag(_undecodable(df), "undecodable_text"),
                    _flag(F.col("over").isNotNull(), "date_only"),
                    F.when(F.col("flags").isNotNull(), F.split("flags", " ")).otherwise(F.array().cast("array<string>")),
                ),
                # nothing is known before it has happened; what happened on some day is known when the day is over
                "available_at": F.greatest("stated_available", F.coalesce("over", "utc")),
            }
        )
        .withColumn("end", F.coalesce("stated_end", lasting))
    )


def _undecodable(df: DataFrame) -> Column:
    """The line held bytes that are no text in the file's encoding (the reader leaves U+FFFD in their place)."""
    text = isinstance(df.schema["record"].dataType, StringType)  # else typed columns, which were checked when they were written
    return F.coalesce(F.col("record").contains("\ufffd"), F.lit(False)) if text else F.lit(False)


# --- numbers and attributes -----------------------------------------------------------------------------------------------


def _number(text: Column) -> Column:
    return F.when(text.rlike(_NUMBER), text.try_cast("double"))


def _with_numbers(df: DataFrame, entries: Sequence[Entry]) -> DataFrame:
    """Adds number, worded, canonical value, seconds and offset_minutes; sex and birth_date are no longer texts."""
    measured = [e for e in entries if e.meaning.value]
    commas = [e.number for e in measured if e.meaning.value.decimal == ","]
    text = F.col("value")
    digits = F.when(F.col("entry").isin(commas), F.replace(text, F.lit(","), F.lit("."))).otherwise(text) if commas else text
    nothing = F.lit(None)
    per_minute = _by_clock(entries, lambda c: F.lit(SECONDS[c.offset_unit] / 60), "double")
    word = _choose(
        measured,
        lambda e: tuple(e.meaning.value.texts.items()) or None,
        lambda w: _words(w, text).cast("double"),
        nothing.cast("double"),
    )
    codes = _choose(
        entries,
        lambda e: e.meaning.attributes and tuple(e.meaning.attributes.sex_values.items()) or None,
        lambda c: _words(c, F.col("sex")).cast("string"),
        nothing.cast("string"),
    )
    return df.withColumns(
        {
            "no_time": F.col("time").isNull() & F.col("stamp").isNull(),
            "no_value": text.isNull() & F.col("amount").isNull(),
            "worded": word.isNotNull(),
            "number": F.coalesce("amount", word, _number(digits)),
            "seconds": _number(F.col("duration")) * F.col("duration_seconds"),
            "offset_minutes": _number(F.col("offset")) * per_minute,
            "label": F.lower("label"),
            "sex_stated": F.col("sex").isNotNull(),
            "birth_stated": F.col("birth_date").isNotNull(),
            "sex": F.coalesce(codes, _words(_SEXES.items(), F.lower("sex"))),
            "birth_date": _birth_date(entries),
        }
    ).withColumn("value", F.col("number") * F.col("factor") + F.col("shift"))


def _birth_date(entries: Sequence[Entry]) -> Column:
    """A date, or the first of July where only the year is known."""
    text = F.col("birth_date")

    def read(how: tuple[bool, str]) -> Column:
        year_only, pattern = how
        if pattern == "iso":
            return F.try_to_timestamp(F.substring(text, 1, 10), F.lit("yyyy-MM-dd")).cast("date")
        text_, pattern_ = (F.concat(text, F.lit("-07-01")), "yyyy-MM-dd") if year_only else (text, pattern)
        return F.try_to_timestamp(text_, F.lit(pattern_)).cast("date")

    return _choose(
        entries,
        lambda e: e.meaning.attributes and (e.meaning.attributes.birth_year is not None, e.meaning.attributes.birth_date_format),
        read,
        F.lit(None).cast("date"),
    )
