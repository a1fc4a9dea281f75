"""Sensor quality: small registered rules that flag readings of a device's series, and the summary of a run.

A rule is a condition over the columns that `_prepared` puts beside every reading: its neighbours in the series, which is all readings
of a patient, signal, source and device in order of time. One sort serves all of them. What a rule needs to know of a signal is
written in the vocabulary (`sensor:`); a signal that lacks it is not looked at. Rules never refuse a reading: they add their name to
`quality`, and the flags in GATES keep a reading out of the fits (`episodes.leave_out` says otherwise).
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass

from pyspark.sql import Column, DataFrame, Window
from pyspark.sql import functions as F

from twinlib.errors import ConfigError
from twinlib.fusion.vocabulary import Sensor
from twinlib.tables.schemas import SENSOR_QUALITY

MINUTE = 60_000_000  # microseconds
SERIES = ("patient_id", "signal", "source", "device")
SAME = 1e-6  # values nearer than this are one value
HOUR = 60 * MINUTE


@dataclass(frozen=True)
class SensorRule:
    """name: the flag. gates: whether a reading with it stays out of fits. needs: what the vocabulary must tell of the signal."""

    name: str
    gates: bool
    needs: str
    condition: Callable[[Limits], Column]


class Limits:
    """The settings of every signal's sensor as columns: `limits("flat_minutes")` is that of the row's signal, null where it has none."""

    def __init__(self, sensors: Mapping[str, Sensor]):
        self.sensors = sensors

    def __call__(self, setting: str) -> Column:
        value = F.lit(None).cast("double")
        for signal, sensor in self.sensors.items():
            if (x := getattr(sensor, setting)) is not None:
                value = F.when(F.col("signal") == signal, F.lit(float(x))).otherwise(value)
        return value

    def longest(self, setting: str) -> int:
        """Microseconds, over all signals; at least one."""
        return 1 + int(max((getattr(s, setting) or 0 for s in self.sensors.values()), default=0) * MINUTE)


RULES: list[SensorRule] = []


def rule(needs: str, gates: bool = False):
    """Register the condition under its own name."""

    def register(condition: Callable[[Limits], Column]) -> Callable[[Limits], Column]:
        RULES.append(SensorRule(condition.__name__, gates, needs, condition))
        return condition

    return register


@rule("gap_minutes")
def gap(limits: Limits) -> Column:
    """The first reading after a pause of more than `gap_minutes`."""
    return F.col("since") > limits("gap_minutes")


@rule("warm_up_minutes")
def warm_up(limits: Limits) -> Column:
    """The first `warm_up_minutes` of a session, which begins after a pause of `session_pause_minutes`: Dexcom's and Abbott's sensors
    show nothing for 30 to 120 minutes after insertion, and their first hours are their least accurate (G6: 92.2 % of readings
    within 20 % on the first day, 93.9 % over ten; Shah et al. 2018, 10.1089/dia.2018.0143)."""
    return (F.col("micros") - F.col("session")) < limits("warm_up_minutes") * MINUTE


@rule("lowest")
def saturated(limits: Limits) -> Column:
    """At or beyond the limits of what the sensor reports (40 and 400 mg/dL): the value is a bound, and fits treat it as one."""
    return ~F.col("value").between(limits("lowest") + 0.5, limits("highest") - 0.5)


@rule("flat_minutes", gates=True)
def flat_line(limits: Limits) -> Column:
    """A repetition within a run of one and the same value that lasts `flat_minutes` or longer. The first reading of the run may well be
    true; a run at the sensor's limit is saturation."""
    return F.col("stuck") & ~F.coalesce(saturated(limits), F.lit(False))


@rule("jump_level", gates=True)
def jump(limits: Limits) -> Column:
    """One reading far above or far below both of its neighbours."""
    return (F.col("spike") != 0) & ~_zigzag()


@rule("edge_per_minute", gates=True)
def compression_low(limits: Limits) -> Column:
    """At night, a dip with a steep fall and a steep rise back to where it came from, at most `dip_minutes` apart: the sensor was lain
    upon (Baysal et al. 2014, 10.1177/1932296814553267, who find it in about 3 % of readings at night). Real lows fall more slowly.
    Where the local time is not known, every hour counts as night."""
    inside = F.col("dip.at") <= F.col("micros")
    deep = -F.col("dip.level") - F.col("value") >= limits("dip_depth")
    hour = F.pmod(F.col("micros") / HOUR + F.col("utc_offset_minutes") / 60, F.lit(24.0))
    night = F.coalesce((hour >= limits("night_from")) | (hour < limits("night_to")), F.lit(True))
    return night & inside & deep


@rule("overlap_minutes", gates=True)
def overlap(limits: Limits) -> Column:
    """Another device reports the same signal at the same time, and comes first: its source stands before in the run, or it began
    earlier. Also every reading of two devices that alternate in one series without being told apart, and disagree."""
    return F.coalesce(F.col("behind"), F.lit(False)) | ((F.col("spike") != 0) & _zigzag())


GATES = tuple(r.name for r in RULES if r.gates)
FLAGS = tuple(r.name for r in RULES)


def _zigzag() -> Column:
    """A neighbour is just as far off, on the other side."""
    return F.coalesce((F.col("spike_before") == -F.col("spike")) | (F.col("spike_after") == -F.col("spike")), F.lit(False))


def flagged(observations: DataFrame, sensors: Mapping[str, Sensor], order: Iterable[str] = (), one_device: bool = False) -> DataFrame:
    """`observations` (OBSERVATIONS, one row per patient, signal and instant) with the flags of all rules in `quality`.

    sensors: settings by signal. order: source names, the first has precedence where two devices overlap. one_device: no signal comes
    from two devices, so nothing can overlap. Flags of these rules that stand there already are worked out anew, except what was
    known while reading (`saturated`): the function may be applied to stored readings together with new ones.
    """
    columns, limits = observations.columns, Limits(sensors)
    df = observations.withColumns({"micros": F.unix_micros("time")})
    df = df.withColumn("behind", F.lit(False)) if one_device else _ranked(df, limits, list(order))
    df = _prepared(df, limits)
    found = [F.when(F.coalesce(r.condition(limits), F.lit(False)), F.array(F.lit(r.name))).otherwise(_none()) for r in RULES]
    stale = F.array(*[F.lit(n) for n in FLAGS if n != "saturated"])
    # except, concat and distinct are interpreted: spare them the readings, nearly all, that have no flag
    flags = F.concat(*found)
    other = F.when(F.size("quality") == 0, F.col("quality")).otherwise(F.array_except("quality", stale))
    quality = F.when(F.size(flags) == 0, other).otherwise(F.array_sort(F.array_distinct(F.concat(other, flags))))
    return df.withColumn("quality", quality).select(*columns)


def _none() -> Column:
    return F.array().cast("array<string>")


def _ranked(df: DataFrame, limits: Limits, order: list[str]) -> DataFrame:
    """Adds `behind`: a reading of a device that comes first lies within `overlap_minutes`."""
    # one look-up rather than a chain of conditions: health records are hundreds of sources
    found = F.array_position(F.array(*map(F.lit, dict.fromkeys(order))) if order else F.array().cast("array<string>"), F.col("source"))
    place = F.when(found > 0, found).otherwise(F.lit(len(order) + 1).cast("bigint"))
    began = F.min("micros").over(Window.partitionBy(*SERIES))
    df = df.withColumn("rank", F.struct(place, began, "source", "device"))
    around = Window.partitionBy("patient_id", "signal").orderBy("micros")
    near = limits.longest("overlap_minutes")
    best = F.min("rank").over(around.rangeBetween(-near, near))
    return df.withColumn("behind", (best < F.col("rank")) & limits("overlap_minutes").isNotNull()).drop("rank")


def _prepared(df: DataFrame, limits: Limits) -> DataFrame:
    """Adds what the rules read of a reading's surroundings in its series: minutes `since` the last reading, the `session`'s first
    instant, `stuck` (repeats a value that lasts), `spike` (1 above, -1 below both neighbours) and the neighbours' spikes, and the `dip`
    (began, -level) that the reading lies in."""
    series = Window.partitionBy(*SERIES).orderBy("micros")
    running = series.rowsBetween(Window.unboundedPreceding, Window.currentRow)
    ahead = lambda setting: series.rangeBetween(1, limits.longest(setting))  # noqa: E731
    before, after = (lambda c: F.lag(c).over(series)), (lambda c: F.lead(c).over(series))
    latest = lambda condition, x: F.last(F.when(condition, x), ignorenulls=True).over(running)  # noqa: E731
    micros, value = F.col("micros"), F.col("value")

    df = df.withColumns({
        "since": (micros - before("micros")) / MINUTE,
        "until": (after("micros") - micros) / MINUTE,
        "rise": value - before("value"),
        "drop": value - after("value"),
    })
    joined = F.coalesce(F.col("since") <= limits("gap_minutes"), F.lit(False))
    between = joined & (F.col("until") <= limits("gap_minutes"))
    reach = [limits("jump_level") + limits("jump_per_minute") * F.col(m) for m in ("since", "until")]
    above = (F.col("rise") > reach[0]) & (F.col("drop") > reach[1])
    below = (F.col("rise") < -reach[0]) & (F.col("drop") < -reach[1])
    df = df.withColumns({
        "joined": joined,
        "fresh": ~joined | (F.abs("rise") > SAME),
        "opens": F.col("since").isNull() | (F.col("since") >= limits("session_pause_minutes")),
        "spike": F.when(between & above, 1).when(between & below, -1).otherwise(0),
        "steep": F.when(joined, F.col("rise") / F.greatest("since", F.lit(5.0))),  # readings a minute apart have slopes of their own
    })
    df = df.withColumns({
        "run": latest(F.col("fresh"), micros),
        "session": latest(F.col("opens"), micros),
        "spike_before": before("spike"),
        "joined_before": before("joined"),
        "rise_before": before("rise"),
        "spike_after": after("spike"),
    })
    calm = (F.col("spike") == 0) & F.coalesce(F.col("spike_before") == 0, F.lit(True))
    df = df.withColumns({
        "lasting": F.when(micros - F.col("run") >= limits("flat_minutes") * MINUTE, F.col("run")),
        "falls": F.coalesce(calm & (F.col("steep") <= -limits("edge_per_minute")), F.lit(False)),
        "rises": F.coalesce(calm & (F.col("steep") >= limits("edge_per_minute")), F.lit(False)),
    })
    begins = F.col("falls") & ~F.coalesce(before("falls"), F.lit(False))
    # edges may take two readings, the outer of which are not steep yet or no longer: levels are those of the two beyond
    level = (value - F.col("rise")) + F.greatest(F.when(F.col("joined_before"), -F.col("rise_before")), F.lit(0.0))
    df = df.withColumn("fall", latest(begins, F.struct(micros.alias("at"), level.alias("level"))))
    lands = F.col("rises") & (micros - F.col("fall.at") <= limits("dip_minutes") * MINUTE)
    df = df.withColumn("landing", F.when(lands, F.struct("fall.at", (-F.least("fall.level", value + F.greatest(-F.col("drop"), F.lit(0.0)))).alias("level"))))
    lasts = F.coalesce("lasting", F.max("lasting").over(ahead("flat_minutes")))
    return df.withColumns({
        "stuck": ~F.col("fresh") & (lasts == F.col("run")),
        "dip": F.min("landing").over(ahead("dip_minutes")),
    })


def check(names: Iterable[str]) -> None:
    """Raises ConfigError where `episodes.leave_out` names a flag that is none."""
    known = (*FLAGS, "conflict", "ambiguous_local_time")
    if unknown := sorted(set(names) - set(known)):
        raise ConfigError(f"episodes.leave_out: {', '.join(unknown)}: no quality flag of a reading, expected some of {', '.join(known)}")


def usable(observations: DataFrame, leave_out: Iterable[str] = GATES) -> DataFrame:
    """`observations` without those that bear one of the flags `leave_out`."""
    names = list(leave_out)
    return observations.where(~F.arrays_overlap("quality", F.array(*[F.lit(n) for n in names]))) if names else observations


def summary(observations: DataFrame, sensors: Mapping[str, Sensor], leave_out: Iterable[str], run_id: str) -> DataFrame:
    """SENSOR_QUALITY of stored observations: one row per source and signal.

    Wear is counted in hours: those that hold a reading, of all from a patient's first reading to the last. That needs no order.
    """
    gated = F.arrays_overlap("quality", F.array(*[F.lit(n) for n in leave_out])) if tuple(leave_out) else F.lit(False)
    hour = F.floor(F.unix_micros("time") / HOUR)
    key = ("source", "signal")
    hours = observations.groupBy(*key, "patient_id", hour.alias("hour")).agg(
        F.count(F.lit(1)).alias("readings"),
        F.count_if(gated).alias("left_out"),
        F.count_if(F.size("quality") > 0).alias("noticed"),
    )
    patients = hours.groupBy(*key, "patient_id").agg(
        F.sum("readings").alias("readings"), F.sum("left_out").alias("left_out"), F.sum("noticed").alias("noticed"),
        F.count(F.lit(1)).alias("hours"), (F.max("hour") - F.min("hour") + 1).alias("span"), F.median("readings").alias("hourly"),
    )
    sources = patients.groupBy(*key).agg(
        F.count(F.lit(1)).alias("patients"), F.sum("readings").alias("readings"), F.sum("left_out").alias("left_out"),
        F.sum("noticed").alias("flagged"), (F.sum("hours") / F.sum("span")).alias("wear"), F.median(60 / F.col("hourly")).alias("spacing"),
    )
    each = observations.where(F.size("quality") > 0).select(*key, F.explode("quality").alias("flag")).groupBy(*key, "flag").count()
    flags = each.groupBy(*key).agg(F.map_from_entries(F.sort_array(F.collect_list(F.struct("flag", "count")))).alias("flags"))
    worn = F.col("signal").isin(*sensors) if sensors else F.lit(False)
    return SENSOR_QUALITY.conform(
        sources.join(flags, list(key), "left").select(
            F.lit(run_id).alias("run_id"), *key, "patients", "readings", "flagged", "left_out",
            F.coalesce("flags", F.create_map().cast("map<string,bigint>")).alias("flags"),
            F.when(worn, F.col("spacing")).alias("spacing_minutes"),
            F.when(worn, F.col("wear")).alias("wear_fraction"),
        )
    )
