"""Packing of observations and exposures into timelines: one row per patient and episode, with arrays that a fit reads.

Episodes are blocks of local calendar days counted from Monday 1970-01-05, so late data changes its own block only. A patient
has an episode for every block with a reading of the model's signal; one without any reading has one row all the same.

Every record is assigned to a block by its own local time; the episode's clock is the offset of its first record (0 where none is
known), rounded to the grid's step as the offsets of all time zones are. Where the offset changes during an episode (daylight
saving, travel), the episode goes on in elapsed minutes, and what lies beyond its last minute is left out.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from pyspark.sql import Column, DataFrame, Window
from pyspark.sql import functions as F

from twinlib.config import EpisodeConfig
from twinlib.errors import ConfigError
from twinlib.fusion.asof import histories, known_at
from twinlib.tables.schemas import COVARIATES, TIMELINES

MINUTE = 60_000_000  # microseconds
DAY = 1440 * MINUTE
MONDAY = 4 * DAY  # 1970-01-05
ACTION_MINUTES = {"insulin_long_acting": 1440}  # agents whose dose acts evenly over a fixed time
LONGEST_OPEN_RATE = DAY  # a rate without end that no other follows
TRAVEL = DAY  # how far apart two local clocks of one patient can be
LARGEST_VALUE = 1e9  # means are summed as whole millionths, exact in any order


def _nan() -> Column:
    return F.lit(float("nan")).cast("float")


def _floor_div(x: Column, by: int) -> Column:
    return ((x - F.pmod(x, F.lit(by))) / by).cast("long")


def _block(micros: Column, offset: Column, days: int) -> Column:
    return _floor_div(micros + offset * MINUTE - MONDAY, days * DAY)


def _offset(step: int) -> Column:
    known = F.when(F.abs("utc_offset_minutes") <= 18 * 60, F.col("utc_offset_minutes"))
    return (F.round(F.coalesce(known, F.lit(0)) / step) * step).cast("long")


# The first of some records and its offset as one number (minute * 4096 + offset + 2048), whose minimum Spark finds by hashing.
def _first(micros: Column, offset: Column) -> Column:
    return _floor_div(micros, MINUTE) * 4096 + offset + 2048


def _offset_of(first: Column) -> Column:
    return F.pmod(first, F.lit(4096)) - 2048


def _readings(observations: DataFrame, signal: str, days: int, step: int) -> DataFrame:
    """patient_id, block, first (see _first) and `hours`: array of (hour, values), sorted by hour.

    Hours count from 1970 (UTC) and begin half a step early; `values` are the means of the readings within half a step of the
    hour's ticks, NaN where there is none. Hours that hold no reading are not there.
    """
    per_hour = 60 // step
    micros = F.unix_micros("time")
    tick = _floor_div(micros + step * MINUTE // 2, step * MINUTE)
    records = (
        observations.where((F.col("signal") == signal) & (F.abs("value") < LARGEST_VALUE))
        .select(
            "patient_id", micros.alias("micros"), tick.alias("tick"), _offset(step).alias("offset"),
            F.round(F.col("value") * 1e6).cast("long").alias("value"),
        )
        .repartition("patient_id")
        .select(
            "patient_id", "value",
            _first(F.col("micros"), F.col("offset")).alias("first"),
            F.pmod("tick", F.lit(per_hour)).alias("slot"),
            _floor_div(F.col("tick"), per_hour).alias("hour"),
            _block(F.col("tick") * step * MINUTE, F.col("offset"), days).alias("block"),
        )
    )
    here = [F.when(F.col("slot") == k, F.col("value")) for k in range(per_hour)]
    hours = records.groupBy("patient_id", "block", "hour").agg(
        F.min("first").alias("first"), *[(F.sum(v) / F.count(v) / 1e6).cast("float").alias(f"v{k}") for k, v in enumerate(here)]
    )
    values = F.array(*[F.coalesce(f"v{k}", _nan()) for k in range(per_hour)]).alias("values")
    return hours.groupBy("patient_id", "block").agg(
        F.min("first").alias("first"), F.sort_array(F.collect_list(F.struct("hour", values))).alias("hours")
    )


def _events(exposures: DataFrame, inputs: Sequence[str], days: int, step: int) -> DataFrame:
    """patient_id, block, first (null where nothing starts in the block), and per agent a an array a of
    (begin, until, amount, label, cut) in microseconds and total amounts; what acts over several blocks stands in each."""
    records = (
        exposures.where(F.col("agent").isin(*inputs))
        .select(
            "patient_id", "agent", "kind", F.unix_micros("start").alias("begin"), F.unix_micros("end").alias("stated"),
            "amount", F.coalesce("label", F.lit("")).alias("label"), _offset(step).alias("offset"),
        )
        .repartition("patient_id")
    )
    following = F.lead("begin").over(Window.partitionBy("patient_id", "agent", "kind").orderBy("begin", "amount"))
    rate_end = F.coalesce(F.least("stated", following), F.col("begin") + LONGEST_OPEN_RATE)
    action = F.coalesce(*[F.when(F.col("agent") == a, m * MINUTE) for a, m in ACTION_MINUTES.items()])
    dose_end = F.col("begin") + F.coalesce(action, F.col("stated") - F.col("begin"), F.lit(0))
    is_rate = F.col("kind") == "rate"
    hours = (F.col("until") - F.col("begin")) / (60 * MINUTE)
    spans = records.withColumn("until", F.greatest(F.when(is_rate, rate_end).otherwise(dose_end), "begin")).withColumn(
        "amount", F.when(is_rate, F.col("amount") * hours).otherwise(F.col("amount"))
    )
    home = _block(F.col("begin"), F.col("offset"), days)
    touched = F.when(F.col("until") == F.col("begin"), F.array(home)).otherwise(
        F.sequence(_block(F.col("begin") - TRAVEL, F.col("offset"), days), _block(F.col("until") + TRAVEL, F.col("offset"), days))
    )
    placed = spans.select("*", home.alias("home"), F.explode(touched).alias("block"))
    event = F.struct("begin", "until", F.col("amount"), "label", is_rate.alias("cut"))
    return placed.groupBy("patient_id", "block").agg(
        F.min(F.when(F.col("home") == F.col("block"), _first(F.col("begin"), F.col("offset")))).alias("first"),
        *[F.collect_list(F.when(F.col("agent") == a, event)).alias(a) for a in inputs],
    )


def _grid(hours: Column, start: Column, slots: int, step: int) -> Column:
    """Array of `slots` floats from the instant `start` (micros, on a tick), NaN where there is no reading."""
    per_hour = 60 // step
    tick = _floor_div(start, step * MINUTE)
    begin = _floor_div(tick, per_hour)
    end = begin + slots // per_hour + 1  # one hour more than the episode, which may begin within an hour
    inside = F.filter(F.coalesce(hours, F.array()), lambda e: (e["hour"] >= begin) & (e["hour"] < end))
    # one empty piece at the end carries the last gap
    pieces = F.concat(inside, F.array(F.struct(end.alias("hour"), F.array().cast("array<float>").alias("values"))))
    after = F.concat(F.array(begin), F.transform(inside, lambda e: e["hour"] + 1))
    gap = lambda e, a: F.array_repeat(_nan(), ((e["hour"] - a) * per_hour).cast("int"))  # noqa: E731
    filled = F.zip_with(pieces, after, lambda e, a: F.concat(gap(e, a), e["values"]))
    return F.slice(F.flatten(filled), (tick - begin * per_hour + 1).cast("int"), slots)


def _input(agent: str, events: Column, start: Column, minutes: int) -> Column:
    """The struct of one agent; events cut at the episode's start, rates at its end too."""
    end = start + minutes * MINUTE
    point = lambda e: e["until"] == e["begin"]  # noqa: E731
    here = F.filter(events, lambda e: (e["begin"] < end) & F.when(point(e), e["begin"] >= start).otherwise(e["until"] > start))

    def clip(e: Column) -> Column:
        begin = F.greatest(e["begin"], start)
        until = F.when(e["cut"], F.least(e["until"], end)).otherwise(e["until"])
        share = F.when(point(e), F.lit(1.0)).otherwise((until - begin) / (e["until"] - e["begin"]))
        return F.struct(
            ((begin - start) / MINUTE).cast("float").alias("minute"), (e["amount"] * share).cast("float").alias("amount"),
            ((until - begin) / MINUTE).cast("float").alias("duration"), e["label"].alias("label"),
        )

    events = F.sort_array(F.transform(here, clip))
    return F.struct(
        F.lit(agent).alias("input"), events["minute"].alias("minutes"), events["amount"].alias("amounts"),
        events["duration"].alias("durations"), events["label"].alias("labels"),
    )


def _episodes(readings: DataFrame, events: DataFrame, patients: DataFrame) -> DataFrame:
    """Blocks that become episodes: those with a reading, or else the first with any record, or else block 0."""
    has_reading = F.col("first_reading").isNotNull()
    whole = Window.partitionBy("patient_id")
    blocks = (
        readings.withColumnRenamed("first", "first_reading")
        .join(events.withColumnRenamed("first", "first_event"), ["patient_id", "block"], "full")
        .where(has_reading | F.col("first_event").isNotNull())
        .withColumn("first", F.least("first_reading", "first_event"))
        .withColumn("any_reading", F.max(has_reading).over(whole))
        .withColumn("earliest", F.min("block").over(whole))
        .where(has_reading | ~F.col("any_reading") & (F.col("block") == F.col("earliest")))
    )
    return patients.select("patient_id").join(blocks, "patient_id", "left")


def _spacing(grid: Column, step_minutes: int) -> Column:
    """Usual spacing of a grid's readings in slots: the lower median, at least 1 and at most a quarter of an hour (the slowest sensors)."""
    at = F.filter(F.transform(grid, lambda x, i: F.when(~F.isnan(x), i)), lambda i: i.isNotNull())
    count = F.greatest(F.size(at) - 1, F.lit(0))
    gaps = F.sort_array(F.zip_with(F.slice(at, F.lit(2), count), F.slice(at, F.lit(1), count), lambda b, a: b - a))
    return F.least(F.coalesce(F.get(gaps, ((count - 1) / 2).cast("int")), F.lit(1)), F.lit(15 // step_minutes))


def check(episodes: EpisodeConfig, model: str, inputs: Sequence[str], step_minutes: int) -> None:
    """Raises ConfigError where `require` names an agent that is no input, or the step does not divide a quarter of an hour."""
    unknown = sorted(set(episodes.require) - set(inputs))
    if unknown:
        expected = ", ".join(inputs)
        raise ConfigError(f"episodes.require: {', '.join(unknown)}: no input of model {model}, expected some of {expected}")
    if 15 % step_minutes:
        raise ConfigError(f"step_minutes: {step_minutes} does not divide a quarter of an hour")


def pack(
    observations: DataFrame,
    exposures: DataFrame,
    patients: DataFrame,
    episodes: EpisodeConfig,
    model: str,
    signal: str,
    inputs: Sequence[str],
    covariates: Mapping[str, float],
    step_minutes: int = 5,
) -> DataFrame:
    """Timelines (contract TIMELINES) of every patient in `patients`; records of other patients are left out.

    signal: the gridded signal; inputs: agents; covariates: signals looked up as of the episode's start, each with the
    value that stands in (marked `assumed`) where none was known. Reason codes, the first that holds: no_records, no_<signal>,
    few_readings (filled slots below minimum_readings), short_wear (filled slots times the readings' usual spacing below
    minimum_wear_hours), no_<agent> for the agents in `require`.
    Raises ConfigError (see `check`).
    """
    check(episodes, model, inputs, step_minutes)
    days, minutes = episodes.days, episodes.days * 1440
    slots = minutes // step_minutes

    block, offset, start = F.coalesce("block", F.lit(0)), F.coalesce(_offset_of(F.col("first")), F.lit(0)), F.col("start_micros")
    rows = (
        _episodes(_readings(observations, signal, days, step_minutes), _events(exposures, inputs, days, step_minutes), patients)
        .join(histories(observations, covariates), "patient_id", "left")
        .withColumns({"start_micros": MONDAY + block * (days * DAY) - offset * MINUTE, "utc_offset_minutes": offset.cast("int")})
        .withColumns({"start": F.timestamp_micros(start), "grid": _grid(F.col("hours"), start, slots, step_minutes)})
    )

    def covariate(name: str) -> Column:
        known = known_at(F.col("history"), name, F.col("start"))
        value = F.coalesce(known, F.lit(float(covariates[name])))
        return F.struct(F.lit(name).alias("name"), value.alias("value"), known.isNull().alias("assumed"))

    on_grid = F.lit(None).cast("array<float>")
    gridded = F.struct(F.lit(signal).alias("signal"), on_grid.alias("minutes"), F.col("grid").alias("values"))
    packed = rows.select(
        "patient_id",
        F.lit(model).alias("model"),
        F.date_add(F.lit("1970-01-05").cast("date"), (block * days).cast("int")).cast("string").alias("episode"),
        "start",
        F.lit(minutes).alias("minutes"),
        F.lit(step_minutes).alias("step_minutes"),
        "utc_offset_minutes",
        F.array(gridded).alias("signals"),
        F.array(*[_input(a, F.coalesce(F.col(a), F.array()), start, minutes) for a in inputs]).alias("inputs"),
        F.array(*[covariate(name) for name in covariates]).cast(COVARIATES.simpleString()).alias("covariates"),
        F.size(F.array_remove("grid", _nan())).alias("filled"),
        _spacing(F.col("grid"), step_minutes).alias("spacing"),
        F.col("first").isNull().alias("no_records"),
    )
    filled, worn = F.col("filled"), F.least(F.col("filled") * F.col("spacing"), F.lit(slots))
    amounts = {a: F.col("inputs")[k]["amounts"] for k, a in enumerate(inputs)}
    reason = F.coalesce(
        F.when(F.col("no_records"), "no_records"),
        F.when(filled == 0, f"no_{signal}"),
        F.when(filled < episodes.minimum_readings, "few_readings"),
        F.when(worn * step_minutes < episodes.minimum_wear_hours * 60, "short_wear"),
        *[F.when(~F.exists(amounts[a], lambda x: x > 0), f"no_{a}") for a in episodes.require],
    )
    read_by_fit = ("model", "start", "minutes", "step_minutes", "utc_offset_minutes", "signals", "inputs", "covariates")
    digest = F.lower(F.lpad(F.hex(F.xxhash64(*read_by_fit)), 16, "0"))
    packed = packed.withColumns({"wear_fraction": worn / slots, "reason": reason, "content_hash": digest})
    packed = packed.withColumn("status", F.when(F.col("reason").isNull(), "ready").otherwise("insufficient_data"))
    return TIMELINES.conform(packed.drop("filled", "spacing", "no_records"))
