"""Sensor rules on series with one planted fault each, all flagged in one go; the flags gate; the summary counts them."""

from datetime import datetime, timedelta, timezone

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pytest

from twinlib.config import EpisodeConfig
from twinlib.errors import ConfigError
from twinlib.fusion import quality
from twinlib.fusion.vocabulary import Sensor, load_vocabulary
from twinlib.tables.schemas import SENSOR_QUALITY

MIDNIGHT = datetime(2026, 1, 6, tzinfo=timezone.utc)
SENSORS = load_vocabulary().sensors


def smooth(n: int = 288) -> np.ndarray:
    """A day of readings that no rule has anything to say about: slow waves and the noise of a sensor (SD 2 mg/dL)."""
    k = np.arange(n)
    return 140 + 40 * np.sin(k / 25) + 10 * np.sin(k / 7) + np.random.default_rng(5).normal(0, 2, n)


def series(patient, values, minutes=None, source="cgm", device=None, offset=0, flags=(), signal="glucose"):
    minutes = 5 * np.arange(len(values)) if minutes is None else minutes
    rows = []
    for k, (v, m) in enumerate(zip(values, minutes)):
        if np.isnan(v):
            continue
        at = MIDNIGHT + timedelta(minutes=float(m))
        rows.append((patient, signal, at, float(v), offset, device, source, "file", k + 1, at, list(flags)))
    return rows


def edited(at: slice | int, change) -> np.ndarray:
    values = smooth()
    values[at] = change(values[at])
    return values


def cases() -> list[tuple]:
    dip = np.minimum(1, np.array([0.2, 0.75, 1, 1, 1, 1, 1, 0.4]))  # pressed within two readings, let go within two
    rows = series("clean", smooth())
    rows += series("spike", edited(100, lambda v: v + 70))
    rows += series("hole", edited(100, lambda v: v - 70))
    rows += series("stuck", edited(slice(100, 113), lambda v: v[0]))  # 60 minutes of one value
    rows += series("not_long", edited(slice(100, 112), lambda v: v[0]))  # 55
    rows += series("low_limit", edited(slice(100, 130), lambda v: 40))
    rows += series("high_limit", edited(slice(100, 103), lambda v: 401))
    rows += series("pressed", edited(slice(24, 32), lambda v: v - 60 * dip))  # 2:00 at night
    rows += series("pressed_by_day", edited(slice(144, 152), lambda v: v - 60 * dip))
    rows += series("pressed_abroad", edited(slice(144, 152), lambda v: v - 60 * dip), offset=720)  # noon in UTC, midnight there
    rows += series("pressed_somewhere", edited(slice(144, 152), lambda v: v - 60 * dip), offset=None)
    slow = 60 * np.concatenate([np.linspace(0, 1, 9), np.linspace(1, 0, 9)])  # a true low: 1.5 mg/dL a minute
    rows += series("true_low", edited(slice(24, 42), lambda v: v - slow))
    rows += series("pause", edited(slice(100, 107), lambda v: np.nan))
    rows += series("new_sensor", edited(slice(60, 96), lambda v: np.nan))
    first, second = smooth(), smooth() + 60
    rows += series("two_named", first, source="old") + series("two_named", second[:100], 5 * np.arange(100) + 720.5, source="new")
    rows += series("two_devices", first, device="a") + series("two_devices", second[:20], 5 * np.arange(20) + 302, device="b")
    mixed = np.stack([first, second], axis=1).ravel()[:200]
    rows += series("alternating", mixed, np.stack([5 * np.arange(288), 5 * np.arange(288) + 1], axis=1).ravel()[:200])
    rows += series("labs", [90, 90, 90, 90] * 60, 30 * np.arange(240), signal="hba1c")
    rows += series("known", smooth()[:3], flags=("conflict", "saturated", "jump"))
    return rows


SCHEMA = pa.schema([
    ("patient_id", pa.string()), ("signal", pa.string()), ("time", pa.timestamp("us", "UTC")), ("value", pa.float64()), ("utc_offset_minutes", pa.int32()),
    ("device", pa.string()), ("source", pa.string()), ("file", pa.string()), ("line", pa.int64()), ("available_at", pa.timestamp("us", "UTC")),
    ("quality", pa.list_(pa.string())),
])  # fmt: skip


@pytest.fixture(scope="module")
def table() -> pa.Table:
    return pa.table([pa.array(c, f.type) for c, f in zip(zip(*cases()), SCHEMA)], schema=SCHEMA)


def flagged(table: pa.Table, sensors=SENSORS, order=("old", "new")) -> pa.Table:
    return table.set_column(table.column_names.index("quality"), "quality", quality.flagged(table, sensors, order))


def of(table: pa.Table, *patients: str) -> pa.Table:
    return table.filter(pc.is_in(table["patient_id"], pa.array(patients)))


@pytest.fixture(scope="module")
def flags(table):
    """patient -> flag -> places (source, minute); the warm-up that begins every series is left out."""
    found: dict = {}
    for r in flagged(table).to_pylist():
        here = found.setdefault(r["patient_id"], {})
        for flag in r["quality"]:
            minute = (r["time"] - MIDNIGHT).total_seconds() / 60
            if flag != "warm_up" or r["patient_id"] == "new_sensor":
                here.setdefault(flag, []).append((r["source"], minute))
    return {p: {f: sorted(x) for f, x in here.items()} for p, here in found.items()}


def at(*slots, source="cgm", shift=0.0):
    return sorted((source, 5.0 * k + shift) for k in slots)


def test_a_clean_series_has_no_flags(flags):
    assert flags["clean"] == {} and flags["labs"] == {}


def test_a_reading_far_from_both_neighbours_is_a_jump(flags):
    assert flags["spike"] == {"jump": at(100)} and flags["hole"] == {"jump": at(100)}


def test_repetitions_of_one_value_for_an_hour_are_a_flat_line(flags):
    assert flags["stuck"] == {"flat_line": at(*range(101, 113))}
    assert flags["not_long"] == {}


def test_the_sensors_limits_are_saturation_and_no_flat_line(flags):
    assert flags["low_limit"] == {"saturated": at(*range(100, 130))}
    assert flags["high_limit"] == {"saturated": at(*range(100, 103))}


def test_a_steep_dip_at_night_is_a_compression_low(flags):
    """Its edges, where less than 20 mg/dL are missing, cannot be told from noise."""
    for patient, first in (("pressed", 24), ("pressed_abroad", 144), ("pressed_somewhere", 144)):
        found = flags[patient].pop("compression_low")
        assert flags[patient] == {} and set(at(*range(first + 1, first + 8))) <= set(found) <= set(at(*range(first, first + 8)))
    assert flags["pressed_by_day"] == {}
    assert flags["true_low"] == {}


def test_gaps_and_warm_up(flags):
    assert flags["pause"] == {"gap": at(107)}
    assert flags["new_sensor"] == {"gap": at(96), "warm_up": at(*range(60), *range(96, 240))}


def test_of_two_devices_the_first_counts(flags):
    assert flags["two_named"] == {"overlap": at(*range(100), source="new", shift=720.5)}
    assert flags["two_devices"] == {"overlap": at(*range(20), shift=302)}


def test_two_devices_in_one_series_that_disagree_are_both_left_out(flags):
    found = flags["alternating"]["overlap"]
    assert set(flags["alternating"]) == {"overlap"} and len(found) == 198  # the first and the last have one neighbour only


def test_flags_are_worked_out_anew_but_what_was_known_before_stays(flags):
    assert set(flags["known"]) == {"conflict", "saturated"}


def test_same_flags_in_any_order_of_rows_of_each_patient_alone_and_twice(table):
    once = flagged(table)
    mixed = table.take(np.random.default_rng(3).permutation(table.num_rows))
    rows = lambda t: sorted(map(str, t.to_pylist()))  # noqa: E731
    assert rows(flagged(mixed)) == rows(once) == rows(flagged(once))
    patients = table["patient_id"].unique().to_pylist()
    assert rows(pa.concat_tables([flagged(of(table, p)) for p in patients])) == rows(once)


def test_flags_gate_and_the_default_is_what_the_rules_say(spark, table):
    assert set(EpisodeConfig().leave_out) == set(quality.GATES)
    done = spark.createDataFrame(of(flagged(table), "spike", "known"))
    assert quality.usable(done).count() == 287 + 3  # a jump goes; a conflict and a limit of the sensor stay
    assert quality.usable(done.where("patient_id = 'spike'"), ()).count() == 288
    with pytest.raises(ConfigError, match="leave_out: spikes: no quality flag"):
        quality.check(["jump", "spikes"])


def test_the_summary_counts_readings_flags_and_hours_of_wear(spark, table):
    done = spark.createDataFrame(of(flagged(table), "spike", "new_sensor", "two_named"))
    rows = {r.source: r for r in SENSOR_QUALITY.conform(quality.summary(done, SENSORS, ("jump", "overlap"), "run")).collect()}
    assert set(rows) == {"cgm", "old", "new"}
    cgm = rows["cgm"]
    assert (cgm.run_id, cgm.signal, cgm.patients, cgm.readings, cgm.left_out) == ("run", "glucose", 2, 288 + 252, 1)
    assert cgm.flags == {"gap": 1, "jump": 1, "warm_up": 144 + 60 + 144}
    assert cgm.spacing_minutes == 5 and cgm.wear_fraction == pytest.approx((24 + 21) / 48)
    assert rows["new"].flags["overlap"] == rows["new"].left_out == 100


def test_a_rule_whose_settings_lack_does_not_apply(table):
    bare = {"glucose": Sensor(gap_minutes=30)}
    found = flagged(of(table, "spike", "stuck", "pressed", "pause", "two_named"), bare)
    assert {f for q in found["quality"].to_pylist() for f in q} == {"gap"}
    with pytest.raises(ValueError, match="all or none of lowest, highest"):
        Sensor(gap_minutes=30, lowest=40)
