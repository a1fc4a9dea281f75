"""Packing of observations and exposures into timelines: one row per patient and episode, with arrays that a fit reads.

A dense sensor signal stands on a regular grid, NaN where there is no reading; readings of a sparse one (labs, drug levels) keep their
instants (`Layout`, made in layout.py).

Episodes are blocks of local calendar days counted from Monday 1970-01-05, so late data changes its own block only. A patient
has an episode for every block with a reading of the model's signals; one without any reading has one row all the same. Or the whole
record is one episode, named `all`: it begins with the patient's first record that the model reads, and ends with the last.

Every record is assigned to a block by its own local time; the episode's clock is the offset of its first record (0 where none is
known), rounded to the grid's step as the offsets of all time zones are. Where the offset changes during an episode (daylight
saving, travel), the episode goes on in elapsed minutes, and what lies beyond its last minute is left out.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import reduce

from pyspark.sql import Column, DataFrame, Window
from pyspark.sql import functions as F

from twinlib.fusion import grids
from twinlib.fusion.arrays import DAY, MINUTE
from twinlib.fusion.asof import histories, known_at
from twinlib.fusion.grids import MONDAY
from twinlib.fusion.layout import PATIENT_COVARIATES, Layout
from twinlib.tables.schemas import COVARIATES, INPUTS, TIMELINES

ACTION_MINUTES = {"insulin_long_acting": 1440}  # agents whose dose acts evenly over a fixed time
LONGEST_OPEN_RATE = DAY  # a rate without end that no other follows
TRAVEL = DAY  # how far apart two local clocks of one patient can be
LARGEST_VALUE = 1e9  # means are summed as whole millionths, exact in any order


def _floor_div(x: Column, by: int) -> Column:
    return ((x - F.pmod(x, F.lit(by))) / by).cast("long")


def _block(micros: Column, offset: Column, days: int | None) -> Column:
    return F.lit(0).cast("long") if days is None else _floor_div(micros + offset * MINUTE - MONDAY, days * DAY)


def _offset(step: int) -> Column:
    known = F.when(F.abs("utc_offset_minutes") <= 18 * 60, F.col("utc_offset_minutes"))
    return (F.round(F.coalesce(known, F.lit(0)) / step) * step).cast("long")


# The first of some records and its offset as one number (minute * 4096 + offset + 2048), whose minimum Spark finds by hashing.
def _first(micros: Column, offset: Column) -> Column:
    return _floor_div(micros, MINUTE) * 4096 + offset + 2048


def _offset_of(first: Column) -> Column:
    return F.pmod(first, F.lit(4096)) - 2048


def _gridded(observations: DataFrame, layout: Layout) -> DataFrame:
    """patient_id, block, first (see _first), begin, until and per gridded signal s `piece_s`: see `grids.pieces`."""
    place = F.array_position(F.array(*[F.lit(n) for n in layout.grids]), F.col("signal")) - 1
    records = _records(observations, layout.grids, layout).select(
        "patient_id", place.alias("signal"), F.unix_micros("time").alias("micros"), F.round(F.col("value") * 1e6).cast("long").alias("value"),
        _offset(layout.step).alias("offset"),
    )
    together = records.repartition("patient_id").sortWithinPartitions("patient_id")
    return together.mapInArrow(grids.gridded(layout.grids, layout.step, layout.days), grids.schema(layout.grids))


def _listed(observations: DataFrame, layout: Layout) -> DataFrame:
    """patient_id, block, first, begin and until as `_gridded`, and per listed signal s `list_s`: array of (micros, value), sorted by
    micros; readings of one instant are one, their mean."""
    micros, value = F.unix_micros("time"), F.round(F.col("value") * 1e6).cast("long")
    records = (
        _records(observations, layout.lists, layout)
        .select("patient_id", "signal", micros.alias("micros"), value.alias("value"), _offset(layout.step).alias("offset"))
        .repartition("patient_id")
        .select(
            "patient_id", "signal", "micros", "value", _first(F.col("micros"), F.col("offset")).alias("first"),
            _block(F.col("micros"), F.col("offset"), layout.days).alias("block"),
        )
    )
    instants = records.groupBy("patient_id", "block", "signal", "micros").agg(
        F.min("first").alias("first"), (F.sum("value") / F.count("value") / 1e6).alias("value")
    )
    reading = F.struct("micros", "value")
    return instants.groupBy("patient_id", "block").agg(
        *_span("micros", "micros"), *[F.sort_array(F.collect_list(F.when(F.col("signal") == s, reading))).alias(f"list_{s}") for s in layout.lists]
    )


def _records(observations: DataFrame, signals: Sequence[str], layout: Layout) -> DataFrame:
    """The readings of these signals in the model's units."""
    usable = observations.where(F.col("signal").isin(*signals) & (F.abs("value") < LARGEST_VALUE))
    return usable.withColumn("value", _converted(F.col("value"), F.col("signal"), signals, layout))


def _converted(value: Column, name: Column, names: Sequence[str], layout: Layout) -> Column:
    """Canonical units to the model's; the same bits where they are the same."""
    for n in names:
        if n in layout.conversions:
            to = layout.conversions[n]
            value = F.when(name == n, value * to.factor + to.offset).otherwise(value)
    return value


def _span(begin: str, until: str) -> list[Column]:
    return [F.min("first").alias("first"), F.min(begin).alias("begin"), F.max(until).alias("until")]


def _readings(observations: DataFrame, layout: Layout) -> DataFrame:
    """All signals of the layout: patient_id, block, first, begin, until, and the columns of `_gridded` and `_listed`."""
    parts = [f(observations, layout) for f, names in ((_gridded, layout.grids), (_listed, layout.lists)) if names]
    if len(parts) == 1:
        return parts[0]
    a, b = (p.withColumnsRenamed({c: f"{c}_{k}" for c in ("first", "begin", "until")}) for k, p in enumerate(parts))
    spans = [F.least("first_0", "first_1").alias("first"), F.least("begin_0", "begin_1").alias("begin"), F.greatest("until_0", "until_1").alias("until")]
    columns = [f"piece_{s}" for s in layout.grids] + [f"list_{s}" for s in layout.lists]
    return a.join(b, ["patient_id", "block"], "full").select("patient_id", "block", *spans, *columns)


def _events(exposures: DataFrame, layout: Layout) -> DataFrame:
    """patient_id, block, first (null where nothing starts in the block), first_begin and last_begin of the events, and per agent a an array a of
    (begin, until, amount, label, cut) in microseconds and total amounts; what acts over several blocks stands in each."""
    inputs, days = layout.agents, layout.days
    amount = _converted(F.col("amount"), F.col("agent"), inputs, layout)
    records = (
        exposures.where(F.col("agent").isin(*inputs))
        .select(
            "patient_id", "agent", "kind", F.unix_micros("start").alias("begin"), F.unix_micros("end").alias("stated"),
            amount.alias("amount"), F.coalesce("label", F.lit("")).alias("label"), _offset(layout.step).alias("offset"),
        )
        .repartition("patient_id")
    )
    following = F.lead("begin").over(Window.partitionBy("patient_id", "agent", "kind").orderBy("begin", "amount"))
    rate_end = F.coalesce(F.least("stated", following), F.col("begin") + LONGEST_OPEN_RATE)
    action = F.coalesce(*[F.when(F.col("agent") == a, m * MINUTE) for a, m in ACTION_MINUTES.items()])
    dose_end = F.col("begin") + F.coalesce(action, F.col("stated") - F.col("begin"), F.lit(0))
    is_rate = F.col("kind").isin("rate", "treatment")  # a treatment is in force: its amount is that of a day
    hours = (F.col("until") - F.col("begin")) / (60 * MINUTE) * F.when(F.col("kind") == "treatment", 1 / 24).otherwise(1.0)
    spans = records.withColumn("until", F.greatest(F.when(is_rate, rate_end).otherwise(dose_end), "begin")).withColumn(
        "amount", F.when(is_rate, F.col("amount") * hours).otherwise(F.col("amount"))
    )
    home = _block(F.col("begin"), F.col("offset"), days)
    touched = F.array(home) if days is None else F.when(F.col("until") == F.col("begin"), F.array(home)).otherwise(
        F.sequence(_block(F.col("begin") - TRAVEL, F.col("offset"), days), _block(F.col("until") + TRAVEL, F.col("offset"), days))
    )
    placed = spans.select("*", home.alias("home"), F.explode(touched).alias("block"))
    event = F.struct("begin", "until", F.col("amount"), "label", is_rate.alias("cut"))
    return placed.groupBy("patient_id", "block").agg(
        F.min(F.when(F.col("home") == F.col("block"), _first(F.col("begin"), F.col("offset")))).alias("first"),
        F.min("begin").alias("first_begin"), F.max("begin").alias("last_begin"),
        *[F.collect_list(F.when(F.col("agent") == a, event)).alias(a) for a in inputs],
    )


def _list(readings: Column, start: Column) -> tuple[Column, Column]:
    """Minutes from `start` and values of listed readings."""
    readings = F.coalesce(readings, F.array())
    return F.transform(readings, lambda e: (e["micros"] - start) / MINUTE), F.transform(readings, lambda e: e["value"].cast("float"))


def _input(agent: str, events: Column, start: Column, minutes: Column) -> Column:
    """The struct of one agent; events cut at the episode's start, rates at its end too."""
    end = start + minutes.cast("long") * MINUTE
    point = lambda e: e["until"] == e["begin"]  # noqa: E731
    here = F.filter(events, lambda e: (e["begin"] < end) & F.when(point(e), e["begin"] >= start).otherwise(e["until"] > start))

    def clip(e: Column) -> Column:
        begin = F.greatest(e["begin"], start)
        until = F.when(e["cut"], F.least(e["until"], end)).otherwise(e["until"])
        share = F.when(point(e), F.lit(1.0)).otherwise((until - begin) / (e["until"] - e["begin"]))
        return F.struct(
            ((begin - start) / MINUTE).alias("minute"), (e["amount"] * share).cast("float").alias("amount"),
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
    known = [c for c in ("patient_id", "sex", "birth_date") if c in patients.columns]
    return patients.select(known).join(blocks, "patient_id", "left")


def pack(observations: DataFrame, exposures: DataFrame, patients: DataFrame, layout: Layout) -> DataFrame:
    """Timelines (contract TIMELINES) of every patient in `patients`; records of other patients are left out.

    Covariates are looked up as of the episode's start; where none was known the layout's stand-in, or NaN without one, is marked
    `assumed`. Reason codes, the first that holds: no_records, no_<signal> (no_readings where the model has several), few_readings (below
    minimum_readings), short_wear (filled slots times the readings' usual spacing below minimum_wear_hours), no_<agent> for the agents in
    `require`.
    """
    days, step, start, minutes = layout.days, layout.step, F.col("start_micros"), F.col("minutes")
    block, offset = F.coalesce("block", F.lit(0)), F.coalesce(_offset_of(F.col("first")), F.lit(0))
    if days is None:
        begin = F.coalesce(F.least("begin", "first_begin"), F.lit(MONDAY))
        begins = _floor_div(begin, step * MINUTE) * (step * MINUTE) if layout.grids else begin
        lasts = F.greatest(F.coalesce("until", "last_begin"), F.coalesce("last_begin", "until"))
        length = F.coalesce(F.greatest(lasts, begin) - start, F.lit(0))
        minutes_ = ((_floor_div(length, step * MINUTE) + 1) * step).cast("int")  # beyond the last record, in whole steps
        episode = F.lit("all")
    else:
        begins, minutes_ = MONDAY + block * (days * DAY) - offset * MINUTE, F.lit(days * 1440)
        episode = F.date_add(F.lit("1970-01-05").cast("date"), (block * days).cast("int")).cast("string")
    rows = (
        _episodes(_readings(observations, layout), _events(exposures, layout), patients)
        .join(histories(observations, layout.covariates), "patient_id", "left")
        .withColumns({"start_micros": begins, "utc_offset_minutes": offset.cast("int")})
        .withColumns({"start": F.timestamp_micros(start), "minutes": minutes_})
        .withColumns({f"grid_{s}": F.arrow_udf(grids.cutter(step), grids.EPISODE)(f"piece_{s}", start, minutes) for s in layout.grids})
    )

    def covariate(name: str) -> Column:
        known = _of_patient(name) if name in PATIENT_COVARIATES else known_at(F.col("history"), name, F.col("start"))
        if name in layout.conversions:
            known = known * layout.conversions[name].factor + layout.conversions[name].offset
        stand_in = layout.covariates[name]
        value = F.coalesce(known.cast("double"), F.lit(float("nan") if stand_in is None else float(stand_in)))
        return F.struct(F.lit(name).alias("name"), value.alias("value"), known.isNull().alias("assumed"))

    def series(name: str) -> Column:
        on_grid = (F.lit(None).cast("array<double>"), F.col(f"grid_{name}.values")) if name in layout.grids else _list(F.col(f"list_{name}"), start)
        return F.struct(F.lit(name).alias("signal"), on_grid[0].alias("minutes"), on_grid[1].alias("values"))

    present = [F.col(f"grid_{s}.filled") for s in layout.grids]
    present += [F.coalesce(F.size(f"list_{s}"), F.lit(0)) for s in layout.lists]
    packed = rows.select(
        "patient_id",
        F.lit(layout.model).alias("model"),
        episode.alias("episode"),
        "start",
        "minutes",
        F.lit(step).alias("step_minutes"),
        "utc_offset_minutes",
        F.array(*[series(s) for s in layout.signals]).alias("signals"),
        F.array(*[_input(a, F.coalesce(F.col(a), F.array()), start, minutes) for a in layout.agents]).cast(INPUTS.simpleString()).alias("inputs"),
        F.array(*[covariate(name) for name in layout.covariates]).cast(COVARIATES.simpleString()).alias("covariates"),
        reduce(lambda a, b: a + b, present).alias("filled"),
        (F.col(f"grid_{layout.grids[0]}.worn") if layout.grids else F.lit(None).cast("int")).alias("worn"),
        F.col("first").isNull().alias("no_records"),
    )
    slots = F.col("minutes") / step
    worn = F.least("worn", slots)
    amounts = {a: F.col("inputs")[k]["amounts"] for k, a in enumerate(layout.agents)}
    reason = F.coalesce(
        F.when(F.col("no_records"), "no_records"),
        F.when(F.col("filled") == 0, f"no_{layout.signals[0]}" if len(layout.signals) == 1 else "no_readings"),
        F.when(F.col("filled") < layout.minimum_readings, "few_readings"),
        F.when(worn * step < layout.minimum_wear_hours * 60, "short_wear"),
        *[F.when(~F.exists(amounts[a], lambda x: x > 0), f"no_{a}") for a in layout.require],
    )
    read_by_fit = ("model", "start", "minutes", "step_minutes", "utc_offset_minutes", "signals", "inputs", "covariates")
    digest = F.lower(F.lpad(F.hex(F.xxhash64(*read_by_fit)), 16, "0"))
    wear = worn / slots if layout.grids else F.lit(None).cast("double")
    packed = packed.withColumns({"wear_fraction": wear, "reason": reason, "content_hash": digest})
    packed = packed.withColumn("status", F.when(F.col("reason").isNull(), "ready").otherwise("insufficient_data"))
    return TIMELINES.conform(packed.drop("filled", "worn", "no_records"))


def _of_patient(name: str) -> Column:
    """A covariate that stands in `patients`, as of the episode's start."""
    if name == "female":
        return F.when(F.col("sex") == "female", 1.0).when(F.col("sex") == "male", 0.0)
    return F.months_between("start", "birth_date") / 12  # age_years
