"""Sensor quality: small registered rules that flag readings of a device's series, and the summary of a run.

A rule is a condition over what `Surroundings` says of every reading: its neighbours in the series, which is all readings of a patient,
signal, source and device in order of time. What a rule needs to know of a signal is written in the vocabulary (`sensor:`); a signal that
lacks it is not looked at. Rules never refuse a reading: they add their name to `quality`, and the flags in GATES keep a reading out of
the fits (`episodes.leave_out` says otherwise).
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import pyarrow as pa
from pyspark.sql import DataFrame
from pyspark.sql import functions as F

from twinlib.errors import ConfigError
from twinlib.fusion.arrays import HOUR, MINUTE, codes, instants, last_where, numbers, starts, with_flags
from twinlib.fusion.vocabulary import Sensor
from twinlib.fusion.witnesses import clock_shift, drifted
from twinlib.tables.schemas import SENSOR_QUALITY

SAME = 1e-6  # values nearer than this are one value


@dataclass(frozen=True)
class SensorRule:
    """name: the flag. gates: whether a reading with it stays out of fits. needs: what the vocabulary must tell of the signal."""

    name: str
    gates: bool
    needs: str
    condition: Callable[[Surroundings], np.ndarray]


RULES: list[SensorRule] = []


def rule(needs: str, gates: bool = False):
    """Register the condition under its own name."""

    def register(condition: Callable[[Surroundings], np.ndarray]) -> Callable[[Surroundings], np.ndarray]:
        RULES.append(SensorRule(condition.__name__, gates, needs, condition))
        return condition

    return register


@rule("gap_minutes")
def gap(s: Surroundings) -> np.ndarray:
    """The first reading after a pause of more than `gap_minutes`."""
    return s.since > s.limit("gap_minutes")


@rule("warm_up_minutes")
def warm_up(s: Surroundings) -> np.ndarray:
    """The first `warm_up_minutes` of a session, which begins after a pause of `session_pause_minutes`: Dexcom's and Abbott's sensors
    show nothing for 30 to 120 minutes after insertion, and their first hours are their least accurate (G6: 92.2 % of readings
    within 20 % on the first day, 93.9 % over ten; Shah et al. 2018, 10.1089/dia.2018.0143)."""
    return s.micros - s.session < s.limit("warm_up_minutes") * MINUTE


@rule("lowest")
def saturated(s: Surroundings) -> np.ndarray:
    """At or beyond the limits of what the sensor reports (40 and 400 mg/dL): the value is a bound, and fits treat it as one."""
    return (s.value < s.limit("lowest") + 0.5) | (s.value > s.limit("highest") - 0.5)


@rule("flat_minutes", gates=True)
def flat_line(s: Surroundings) -> np.ndarray:
    """A repetition within a run of one and the same value that lasts `flat_minutes` or longer. The first reading of the run may well be
    true; a run at the sensor's limit is saturation."""
    return s.stuck & ~saturated(s)


@rule("jump_level", gates=True)
def jump(s: Surroundings) -> np.ndarray:
    """One reading far above or far below both of its neighbours."""
    return (s.spike != 0) & ~s.zigzag


@rule("edge_per_minute", gates=True)
def compression_low(s: Surroundings) -> np.ndarray:
    """At night, a dip with a steep fall and a steep rise back to where it came from, at most `dip_minutes` apart: the sensor was lain
    upon (Baysal et al. 2014, 10.1177/1932296814553267, who find it in about 3 % of readings at night). Blood glucose itself does not change by
    more than 4 mg/dL per minute.
    Where the local time is not known, every hour counts as night."""
    hour = np.mod(s.micros / HOUR + s.offset_minutes / 60, 24.0)
    night = np.isnan(s.offset_minutes) | (hour >= s.limit("night_from")) | (hour < s.limit("night_to"))
    return night & (s.dip_from <= s.micros) & (s.dip_level - s.value >= s.limit("dip_depth"))


@rule("overlap_minutes", gates=True)
def overlap(s: Surroundings) -> np.ndarray:
    """Another device reports the same signal at the same time, and comes first: its source stands before in the run, or it began
    earlier. Also every reading of two devices that alternate in one series without being told apart, and disagree."""
    return s.behind | ((s.spike != 0) & s.zigzag)


@rule("shift_minutes", gates=True)
def clock_off(s: Surroundings) -> np.ndarray:
    """The whole series rises hours before or after the patient's meals: one of the two clocks is wrong (see `witnesses.clock_shift`)."""
    return s.clock_off


@rule("meter_share", gates=True)
def drift(s: Surroundings) -> np.ndarray:
    """A meter's readings within a day put the sensor off by more than 20 % in their median (see `witnesses.drifted`; a sensor that is
    to be relied upon is within 20 % of the meter in 87 % of readings, iCGM criteria, 21 CFR 862.1355)."""
    return s.drifts


GATES = tuple(r.name for r in RULES if r.gates)
FLAGS = tuple(r.name for r in RULES)
KNOWN_BEFORE = ("saturated",)  # flags of these rules that reading may have found, and that are not worked out anew


class Surroundings:
    """Readings of device series in order of series and time, and what the rules read of each one's place in its series.

    series (n,): number of the series, not decreasing; micros (n,) int64, increasing within a series; value (n,); offset_minutes (n,), NaN =
    unknown; behind (n,) bool: a reading of a device that comes first lies within `overlap_minutes`. limits: setting -> (n,), NaN = the
    signal has none. Minutes `since` the last reading and `until` the next (NaN at the ends), the `session`'s first instant, `stuck`
    (repeats a value that lasts), `spike` (1 above, -1 below both neighbours) and `zigzag` (a neighbour is just as far off, on the other
    side), and the dip that the reading lies in: `dip_from` (micros; the largest number where there is none) and `dip_level`. What other
    records say (`clock_off`, `drifts`: (n,) bool) is told by `heard`.
    """

    def __init__(self, series: np.ndarray, micros: np.ndarray, value: np.ndarray, offset_minutes: np.ndarray, behind: np.ndarray, limits):
        self.micros, self.value, self.offset_minutes, self.behind = micros, value, offset_minutes, behind
        self._limits = limits
        self.clock_off, self.drifts = np.zeros(len(micros), bool), np.zeros(len(micros), bool)
        n = len(micros)
        self._first = starts(series)  # of each series
        self._starts = np.zeros(n, bool)
        self._starts[self._first] = True
        self._start = np.repeat(self._first, np.diff(np.append(self._first, n)))
        self._neighbours()
        self._runs()
        self._dips()

    def limit(self, setting: str) -> np.ndarray:
        return self._limits[setting]

    def heard(self, number: int, sensor: Sensor, meals: np.ndarray | None, meter: tuple[np.ndarray, np.ndarray] | None) -> None:
        """Hold one series against instants of meals, and instants and values of a meter's readings, in order of time."""
        own = slice(self._first[number], self._first[number + 1] if number + 1 < len(self._first) else len(self.micros))
        if meals is not None:
            self.clock_off[own] = clock_shift(self.micros[own], self.value[own], meals, sensor.shift_minutes) != 0
        if meter is not None:
            self.drifts[own] = drifted(self.micros[own], self.value[own], *meter, sensor.meter_share, sensor.meter_minutes, sensor.meter_readings)

    def _before(self, x: np.ndarray, fill) -> np.ndarray:
        out = np.empty_like(x)
        out[1:] = x[:-1]
        out[self._starts] = fill
        return out

    def _after(self, x: np.ndarray, fill) -> np.ndarray:
        out = np.empty_like(x)
        out[:-1] = x[1:]
        out[np.append(self._first[1:] - 1, len(x) - 1)] = fill
        return out

    def _reach(self, setting: str) -> np.ndarray:
        """(n,) place behind the last reading of the series that lies at most `setting` minutes ahead."""
        ends = np.append(self._first[1:], len(self.micros))
        width = np.nan_to_num(self.limit(setting)) * MINUTE + 1
        until = self.micros + width.astype(np.int64)
        place = [np.searchsorted(self.micros[a:b], until[a:b], "right") + a for a, b in zip(self._first, ends)]
        return np.concatenate(place)

    def _neighbours(self) -> None:
        micros, value, limit = self.micros, self.value, self.limit
        self.since = (micros - self._before(micros, 0)) / MINUTE
        self.since[self._starts] = np.nan
        self.until = self._after(self.since, np.nan)
        self._rise = value - self._before(value, np.nan)
        self._drop = value - self._after(value, np.nan)
        self._joined = self.since <= limit("gap_minutes")
        between = self._joined & (self.until <= limit("gap_minutes"))
        reach = [limit("jump_level") + limit("jump_per_minute") * m for m in (self.since, self.until)]
        above = (self._rise > reach[0]) & (self._drop > reach[1])
        below = (self._rise < -reach[0]) & (self._drop < -reach[1])
        self.spike = np.where(between, above.astype(np.int8) - below.astype(np.int8), 0).astype(np.int8)
        self.zigzag = (self._before(self.spike, 2) == -self.spike) | (self._after(self.spike, 2) == -self.spike)
        opens = self._starts | (self.since >= limit("session_pause_minutes"))
        self.session = micros[last_where(opens)]

    def _runs(self) -> None:
        """`stuck`: same value as before, in a run that lasts."""
        micros = self.micros
        fresh = ~self._joined | (np.abs(self._rise) > SAME)
        run = last_where(fresh)
        lasts = micros - micros[run] >= self.limit("flat_minutes") * MINUTE
        lasting = last_where(lasts)  # a run's own later readings tell whether it lasts
        known = lasting[np.minimum(self._reach("flat_minutes"), len(micros)) - 1]
        self.stuck = ~fresh & (known >= self._start) & (run[known] == run)

    def _smooth(self) -> np.ndarray:
        """Medians of each reading and its two neighbours: they keep edges, and a sensor's noise makes none."""
        near = self._joined & (self.until <= self.limit("gap_minutes"))
        around = np.stack([self._before(self.value, np.nan), self.value, self._after(self.value, np.nan)])
        return np.where(near, np.sort(around, axis=0)[1], self.value)

    def _dips(self) -> None:
        micros, limit, here = self.micros, self.limit, np.arange(len(self.micros))
        value = self._smooth()
        rise, drop = value - self._before(value, np.nan), value - self._after(value, np.nan)
        steep = np.where(self._joined, rise / np.maximum(self.since, 5.0), np.nan)  # readings a minute apart have slopes of their own
        calm = (self.spike == 0) & (self._before(self.spike, 0) == 0)
        falls, rises = calm & (steep <= -limit("edge_per_minute")), calm & (steep >= limit("edge_per_minute"))
        begins = falls & ~self._before(falls, False)
        # edges may take two readings, the outer of which are not steep yet or no longer: levels are those of the two beyond
        rise_before = np.where(self._before(self._joined, False), self._before(rise, np.nan), np.nan)
        level = value - rise + np.fmax(-rise_before, 0.0)
        fall = last_where(begins)
        fallen = fall >= self._start
        fall = np.maximum(fall, 0)
        lands = np.flatnonzero(rises & fallen & (micros - micros[fall] <= limit("dip_minutes") * MINUTE))
        self.dip_from, self.dip_level = np.full(len(micros), np.iinfo(np.int64).max), np.full(len(micros), np.nan)
        if not len(lands):
            return
        back = np.fmin(level[fall[lands]], value[lands] + np.fmax(-drop[lands], 0.0))
        # of the landings ahead that are in reach: those of the earliest fall, and of these the highest level
        first = np.searchsorted(lands, here, "right")
        beyond = np.searchsorted(lands, self._reach("dip_minutes"), "left")
        group = fall[lands]
        last_of_group = np.searchsorted(group, group, "right")
        some = np.flatnonzero(first < beyond)
        a = first[some]
        b = np.minimum(beyond[some], last_of_group[a])
        pairs = np.stack([a, b], axis=1).ravel()
        self.dip_from[some] = micros[group[a]]
        self.dip_level[some] = np.maximum.reduceat(np.append(back, -np.inf), pairs)[::2]


def _behind(series: np.ndarray, kind: np.ndarray, rank: Sequence[tuple], micros: np.ndarray, near: np.ndarray) -> np.ndarray:
    """(n,) bool: a reading of a better series of the same kind (patient and signal) lies within `near` micros (NaN = not looked at).

    series, kind (n,): numbers, not decreasing; rank: by series, the lower is the better one.
    """
    found = np.zeros(len(micros), bool)
    first = starts(series)
    ends = np.append(first[1:], len(series))
    together: dict[int, list[int]] = {}
    for k, at in enumerate(first):
        together.setdefault(int(kind[at]), []).append(k)
    for some in (s for s in together.values() if len(s) > 1):
        some.sort(key=lambda k: (rank[k][0], micros[first[k]], *rank[k][1:]))
        better = micros[first[some[0]] : ends[some[0]]]
        for k in some[1:]:
            own = slice(first[k], ends[k])
            width = np.nan_to_num(near[own], nan=-1).astype(np.int64)
            at = micros[own]
            found[own] = (width >= 0) & (np.searchsorted(better, at + width, "right") > np.searchsorted(better, at - width, "left"))
            better = np.sort(np.concatenate([better, at]), kind="stable")
    return found


def flagged(readings: pa.Table, sensors: Mapping[str, Sensor], order: Sequence[str] = (), doses: pa.Table | None = None) -> pa.Array:
    """`quality` of readings (OBSERVATIONS: all those of the patients in it, one row per patient, signal and instant) with the flags of all rules.

    sensors: settings by signal. doses: patient_id, agent, time of what signals rise with. order: source names, the first has precedence where two devices overlap. Flags of these rules that stand
    there already are worked out anew, except what was known while reading (`saturated`): the function may be applied to stored readings
    together with new ones.
    """
    signal, names = codes(readings["signal"])
    rows = np.flatnonzero(np.array([n in sensors for n in names], bool)[signal])
    flags = {name: np.zeros(len(signal), bool) for name in FLAGS}
    if len(rows):
        chosen = readings.take(pa.array(rows)) if len(rows) < len(signal) else readings
        patient, (source, sources), (device, devices) = codes(chosen["patient_id"])[0], codes(chosen["source"]), codes(chosen["device"])
        micros = instants(chosen["time"])
        kind = patient.astype(np.int64) * len(names) + signal[rows]
        key = (kind * len(sources) + source) * (len(devices) + 1) + device + 1
        place = np.lexsort((micros, key))
        key, kind, micros, limits = key[place], kind[place], micros[place], _limits(sensors, names, signal[rows][place])
        first = starts(key)
        series = np.repeat(np.arange(len(first)), np.diff(np.append(first, len(key))))
        ranks = {s: k for k, s in reversed(list(enumerate(order)))}
        makers = [(sources[source[k]], devices[device[k]] if device[k] >= 0 else "") for k in place[first]]
        behind = _behind(series, kind, [(ranks.get(s, len(order)), s, d) for s, d in makers], micros, limits["overlap_minutes"] * MINUTE)
        value, offset = (numbers(chosen[n])[place] for n in ("value", "utc_offset_minutes"))
        surroundings = Surroundings(series, micros, value, offset, behind, limits)
        meals, meter = _Instants(doses, "agent"), _Instants(readings, "signal")
        ids = chosen["patient_id"].take(pa.array(place[first])).to_pylist()
        for k, (who, name) in enumerate(zip(ids, (names[s] for s in signal[rows][place[first]]))):
            sensor = sensors[name]
            eaten, checked = meals.of(who, sensor.rises_with), meter.of(who, sensor.meter)
            surroundings.heard(k, sensor, eaten and eaten[0], checked)
        for r in RULES:
            flags[r.name][rows[place]] = r.condition(surroundings)
    return with_flags(readings["quality"], flags, [f for f in FLAGS if f not in KNOWN_BEFORE])


class _Instants:
    """Records by patient and what they are of."""

    def __init__(self, table: pa.Table | None, column: str):
        self.table, self._found = table, {}
        if table is None or not table.num_rows:
            self.table = None
            return
        (self.patient, ids), (self.what, names) = codes(table["patient_id"]), codes(table[column])
        self.ids, self.names = {p: k for k, p in enumerate(ids)}, {n: k for k, n in enumerate(names)}
        self.micros = instants(table["time"])
        self.value = numbers(table["value"]) if "value" in table.column_names else np.zeros(table.num_rows)

    def of(self, patient: str, name: str | None) -> tuple[np.ndarray, np.ndarray] | None:
        """Instants and values in order of time, None where there are none."""
        if self.table is None or name not in self.names or patient not in self.ids:
            return None
        if name not in self._found:
            rows = np.flatnonzero(self.what == self.names[name])
            rows = rows[np.lexsort((self.micros[rows], self.patient[rows]))]
            self._found[name] = rows, np.searchsorted(self.patient[rows], np.arange(len(self.ids) + 1))
        rows, bounds = self._found[name]
        k = self.ids[patient]
        own = rows[bounds[k] : bounds[k + 1]]
        return (self.micros[own], self.value[own]) if len(own) else None


def _limits(sensors: Mapping[str, Sensor], names: Sequence[str], signal: np.ndarray) -> dict[str, np.ndarray]:
    def of(setting: str) -> np.ndarray:
        values = [getattr(sensors[n], setting) if n in sensors else None for n in names]
        return np.array([np.nan if v is None else v for v in values], float)[signal]

    return {name: of(name) for name, field in Sensor.model_fields.items() if field.annotation not in (str, str | None)}


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
