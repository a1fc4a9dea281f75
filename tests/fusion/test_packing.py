"""Packing, rule by rule, on records small enough to pack by hand. One patient per rule, all packed in one go."""

from datetime import datetime, timedelta, timezone

import numpy as np
import pytest

from tests.engine.drug import Drug
from twinlib.config import EpisodeConfig
from twinlib.engine.contract import Input, Signal
from twinlib.errors import ConfigError
from twinlib.fusion.layout import layout
from twinlib.fusion.packing import pack
from twinlib.fusion.vocabulary import Vocabulary, load_vocabulary
from twinlib.models.glucose_insulin import MODEL
from twinlib.tables.schemas import TIMELINES

UTC = timezone.utc
MONDAY = datetime(2026, 1, 5, tzinfo=UTC)  # 20458 days after 1970-01-05 - 4: a multiple of 7
EPISODES = EpisodeConfig(
    days=7, minimum_readings=3, minimum_wear_hours=0.5, require=("insulin_bolus", "carbohydrate"), body_weight_kg=70
)
LAYOUT = layout(MODEL, load_vocabulary(), EPISODES)
INPUTS = ("insulin_bolus", "insulin_basal", "insulin_long_acting", "carbohydrate")
OBSERVATION = "patient_id string, signal string, time timestamp, value double, utc_offset_minutes int, available_at timestamp"
EXPOSURE = (
    "patient_id string, agent string, kind string, start timestamp, end timestamp, amount double, label string, "
    "utc_offset_minutes int"
)


def at(minutes: float) -> datetime:
    return MONDAY + timedelta(minutes=minutes)


def reading(patient, minutes, value, offset=0, signal="glucose", known=None):
    return (patient, signal, at(minutes), float(value), offset, at(minutes if known is None else known))


def event(patient, agent, minutes, amount, kind="dose", end=None, label=None, offset=0):
    return (patient, agent, kind, at(minutes), None if end is None else at(end), float(amount), label, offset)


def enough(patient, offset=0, shift=0):
    """Six readings, a bolus and a meal on the Tuesday."""
    first = 1440 + shift - offset
    return (
        [reading(patient, first + 5 * k, 100 + k, offset) for k in range(6)],
        [
            event(patient, "insulin_bolus", first, 4, offset=offset),
            event(patient, "carbohydrate", first + 5, 45, label="lunch", offset=offset),
        ],
    )


def cases() -> tuple[list, list, list]:
    observations, exposures = [], []

    def add(some_observations=(), some_exposures=()):
        observations.extend(some_observations)
        exposures.extend(some_exposures)

    add(*enough("plain"))
    # several readings in a slot; readings within half a step of the slot's minute
    add([reading("slots", m, v) for m, v in ((0, 100), (2.4, 110), (2.6, 200), (4, 210), (7.4, 220), (60 * 24 * 7 - 2.6, 90))])
    add([reading("slots", 7 * 1440 - 2.4, 80)])  # nearer to the next week's midnight
    add(*enough("west", offset=-480))
    # Sunday 23:59 and Monday 00:00 there
    add([reading("west", 7 * 1440 + 479, 150, -480), reading("west", 7 * 1440 + 480, 160, -480)])
    # pump rates: before the start, changes, a stated end, an open end, over the end of the episode
    add(enough("rates")[0], [
        event("rates", "insulin_basal", -90, 1.0, "rate"), event("rates", "insulin_basal", 30, 2.0, "rate"),
        event("rates", "insulin_basal", 60, 0.5, "rate", end=120), event("rates", "insulin_basal", 600, 3.0, "rate"),
        event("rates", "insulin_basal", 3000, 0.6, "rate", end=9000), event("rates", "insulin_basal", 4000, 0.3, "rate"),
        event("rates", "insulin_basal", 7 * 1440 - 60, 1.0, "rate"), event("rates", "insulin_basal", 7 * 1440 + 600, 9.0, "rate"),
    ])
    add(enough("open")[0], [event("open", "insulin_basal", 100, 1.2, "rate")])
    add(enough("pen")[0], [
        event("pen", "insulin_long_acting", -360, 24), event("pen", "insulin_long_acting", 1080, 20),
        event("pen", "insulin_long_acting", 7 * 1440 - 720, 18), event("pen", "insulin_long_acting", -1440, 99),
        event("pen", "insulin_bolus", -1, 7), event("pen", "insulin_bolus", 700, 6, end=820, label="dual"),
        event("pen", "insulin_bolus", 7 * 1440, 8),
    ])
    # weight: the latest known by the start; not one of the future, not one that arrived later
    add(*enough("weighed"))
    add([reading("weighed", -9000, 80, signal="body_weight"), reading("weighed", -5000, 82, signal="body_weight"),
         reading("weighed", -100, 84, signal="body_weight", known=50), reading("weighed", 10, 86, signal="body_weight")])
    add(*enough("weighed_late"))
    add([reading("weighed_late", 10, 86, signal="body_weight")])
    # statuses
    add([], [event("no_glucose", "insulin_bolus", 20 * 1440, 3), event("no_glucose", "carbohydrate", 40 * 1440, 30)])
    add([reading("few", 10, 100), reading("few", 15, 100)])
    add([reading("short", 10 + 5 * k, 100) for k in range(4)])
    add(enough("no_bolus")[0], enough("no_bolus")[1][1:])
    add(enough("no_meal")[0], enough("no_meal")[1][:1] + [event("no_meal", "carbohydrate", 1500, 0)])
    add(*enough("two_weeks"))
    add([reading("two_weeks", 22 * 1440 + 5 * k, 120) for k in range(6)])
    add([reading("stranger", 10, 100)])
    patients = sorted({o[0] for o in observations} | {e[0] for e in exposures} | {"nothing"} - {"stranger"})
    return observations, exposures, [p for p in patients if p != "stranger"]


def packed(spark, observations, exposures, patients, partitions=2, layout=LAYOUT, patient="patient_id string"):
    frames = (
        spark.createDataFrame(observations, OBSERVATION).repartition(partitions),
        spark.createDataFrame(exposures, EXPOSURE).repartition(partitions),
        spark.createDataFrame([p if isinstance(p, tuple) else (p,) for p in patients], patient),
    )
    df = pack(*frames, layout)
    assert df.schema.simpleString() == TIMELINES.schema.simpleString()
    return {(r.patient_id, r.episode): r.asDict(recursive=True) for r in df.collect()}


@pytest.fixture(scope="module")
def rows(spark):
    return packed(spark, *cases())


def grid(row) -> np.ndarray:
    (signal,) = row["signals"]
    assert signal["signal"] == "glucose" and signal["minutes"] is None and len(signal["values"]) == 7 * 288
    return np.array(signal["values"])


def filled(row) -> dict[int, float]:
    values = grid(row)
    return {int(k): float(values[k]) for k in np.flatnonzero(~np.isnan(values))}


def inputs(row, agent) -> list[tuple]:
    (found,) = [i for i in row["inputs"] if i["input"] == agent]
    return list(zip(found["minutes"], np.round(found["amounts"], 5).tolist(), found["durations"], found["labels"]))


def test_a_plain_episode(rows):
    r = rows["plain", "2026-01-05"]
    assert (r["status"], r["reason"], r["model"]) == ("ready", None, "glucose_insulin")
    assert r["start"].replace(tzinfo=UTC) == MONDAY
    assert (r["minutes"], r["step_minutes"], r["utc_offset_minutes"]) == (10080, 5, 0)
    assert filled(r) == {288 + k: 100.0 + k for k in range(6)} and r["wear_fraction"] == 6 / 2016
    assert inputs(r, "insulin_bolus") == [(1440, 4, 0, "")] and inputs(r, "carbohydrate") == [(1445, 45, 0, "lunch")]
    assert inputs(r, "insulin_basal") == [] and [i["input"] for i in r["inputs"]] == list(INPUTS)
    assert r["covariates"] == [{"name": "body_weight", "value": 70.0, "assumed": True}]


def test_readings_go_to_the_nearest_slot_as_their_mean(rows):
    assert filled(rows["slots", "2026-01-05"]) == {0: 105.0, 1: 210.0, 2015: 90.0}
    assert filled(rows["slots", "2026-01-12"]) == {0: 80.0}


def test_days_are_local(rows):
    r = rows["west", "2026-01-05"]
    assert r["start"].replace(tzinfo=UTC) == MONDAY + timedelta(hours=8) and r["utc_offset_minutes"] == -480
    assert filled(r) == {288 + k: 100.0 + k for k in range(6)}
    assert inputs(r, "insulin_bolus") == [(1440, 4, 0, "")]
    # 23:59 is nearest to midnight, so both belong to the next local Monday's first slot
    assert filled(rows["west", "2026-01-12"]) == {0: 155.0}


def test_rates_hold_until_their_end_or_the_next(rows):
    assert inputs(rows["rates", "2026-01-05"], "insulin_basal") == [
        (0, 0.5, 30, ""), (30, 1.0, 30, ""), (60, 0.5, 60, ""), (600, 120.0, 2400, ""), (3000, 10.0, 1000, ""),
        (4000, round(0.3 * (10020 - 4000) / 60, 5), 6020, ""), (10020, 1.0, 60, ""),
    ]
    assert inputs(rows["open", "2026-01-05"], "insulin_basal") == [(100, 28.8, 1440, "")]


def test_long_acting_doses_act_for_a_day_and_over_midnight(rows):
    r = rows["pen", "2026-01-05"]
    assert inputs(r, "insulin_long_acting") == [(0, 18.0, 1080, ""), (1080, 20, 1440, ""), (9360, 18, 1440, "")]
    assert inputs(r, "insulin_bolus") == [(700, 6, 120, "dual")]


def test_weight_is_what_was_known_at_the_start(rows):
    assert rows["weighed", "2026-01-05"]["covariates"] == [{"name": "body_weight", "value": 82.0, "assumed": False}]
    assert rows["weighed_late", "2026-01-05"]["covariates"] == [{"name": "body_weight", "value": 70.0, "assumed": True}]


@pytest.mark.parametrize("patient, episode, reason", [
    ("nothing", "1970-01-05", "no_records"), ("no_glucose", "2026-01-19", "no_glucose"), ("few", "2026-01-05", "few_readings"),
    ("short", "2026-01-05", "short_wear"),
    ("no_bolus", "2026-01-05", "no_insulin_bolus"), ("no_meal", "2026-01-05", "no_carbohydrate"),
    ("two_weeks", "2026-01-26", "no_insulin_bolus"),
])
def test_why_a_row_may_not_be_fitted(rows, patient, episode, reason):
    assert (rows[patient, episode]["status"], rows[patient, episode]["reason"]) == ("insufficient_data", reason)


def test_no_patient_is_lost_and_none_is_added(rows):
    assert {p for p, _ in rows} == set(cases()[2])
    episodes = {p: sorted(e for q, e in rows if q == p) for p, _ in rows}
    assert {p: e for p, e in episodes.items() if len(e) > 1} == {
        "two_weeks": ["2026-01-05", "2026-01-26"], "slots": ["2026-01-05", "2026-01-12"], "west": ["2026-01-05", "2026-01-12"]
    }
    assert all(len(r["content_hash"]) == 16 for r in rows.values())


def test_same_bits_in_any_order_and_partitioning(spark, rows):
    observations, exposures, patients = cases()
    rng = np.random.default_rng(0)
    shuffled = [[x[i] for i in rng.permutation(len(x))] for x in (observations, exposures, patients)]
    again = packed(spark, *shuffled, partitions=5)
    assert repr(sorted(again.items())) == repr(sorted(rows.items()))


def test_late_data_changes_its_own_block_only(spark, rows):
    observations, exposures, patients = cases()
    observations += [reading("two_weeks", 22 * 1440 + 40, 130), reading("plain", 8 * 1440, 99)]
    exposures += [event("weighed", "insulin_bolus", 3000, 1)]
    hashes = {k: r["content_hash"] for k, r in packed(spark, observations, exposures, patients).items()}
    before = {k: r["content_hash"] for k, r in rows.items()}
    assert {k for k in hashes if hashes[k] != before.get(k)} == {
        ("two_weeks", "2026-01-26"), ("plain", "2026-01-12"), ("weighed", "2026-01-05")
    }
    assert set(before) <= set(hashes)


def test_grid_against_a_plain_loop(spark):
    """Random times, offsets of half and quarter hours, gaps: slot by slot as a dictionary would do it."""
    rng = np.random.default_rng(1)
    observations, expected = [], {}
    for k, offset in enumerate((0, 345, -210, 60)):
        for minutes in rng.uniform(0, 14 * 1440, 900):
            minutes, value = round(minutes * 60) / 60 - offset, round(rng.uniform(40, 400), 2)
            observations.append(reading(f"p{k}", minutes, value, offset))
            slot = int((minutes + offset + 2.5) // 5)
            expected.setdefault((f"p{k}", slot // 2016), {}).setdefault(slot % 2016, []).append(value)
    rows = packed(spark, observations, [event("p0", "carbohydrate", 10, 5)], [f"p{k}" for k in range(4)])
    for (patient, week), slots in expected.items():
        if week > 1:
            continue
        found = filled(rows[patient, ("2026-01-05", "2026-01-12")[week]])
        assert found.keys() == slots.keys()
        assert all(abs(found[s] - np.mean(v)) < 1e-4 for s, v in slots.items())


def test_a_clock_change_within_the_episode(spark):
    """British clocks went forward on Sunday 2026-03-29: the week goes on in elapsed minutes and the next begins an hour early."""
    week = (datetime(2026, 3, 23, tzinfo=UTC) - MONDAY).days * 1440
    winter = [reading("p", week + 5 * k, 100 + k, 0) for k in range(6)]
    summer = [reading("p", week + 6 * 1440 + 120 + 5 * k, 200 + k, 60) for k in range(6)]
    after = [reading("p", week + 7 * 1440 - 60 + 5 * k, 300 + k, 60) for k in range(6)]
    basal = [event("p", "insulin_basal", week + 7 * 1440 - 120, 1.0, "rate", end=week + 7 * 1440 + 60, offset=60)]
    rows = packed(spark, winter + summer + after, basal, ["p"])
    assert sorted(rows) == [("p", "2026-03-23"), ("p", "2026-03-30")]
    first, second = rows["p", "2026-03-23"], rows["p", "2026-03-30"]
    assert filled(first) == {k: 100.0 + k for k in range(6)} | {6 * 288 + 24 + k: 200.0 + k for k in range(6)}
    assert second["start"].replace(tzinfo=UTC) == datetime(2026, 3, 29, 23, tzinfo=UTC)
    assert filled(second) == {k: 300.0 + k for k in range(6)}
    assert inputs(first, "insulin_basal") == [(9960, 2.0, 120, "")] and inputs(second, "insulin_basal") == [(0, 2.0, 120, "")]


class Levels(Drug):
    """Two signals of which one is a sensor's, in other units than the vocabulary's."""

    inputs = (Input("oral", "mg/h", ("drug_oral",), "mg"),)
    signals = (Signal("level", "mg/L"), Signal("heart_rate", "1/min"))
    covariates = ("body_weight",)


VOCABULARY = load_vocabulary().model_copy(update={
    "signals": load_vocabulary().signals | Vocabulary(signals={"level": {"unit": "ug/L", "plausible": {"from": 0, "to": 1e6}}}).signals,
    "agents": Vocabulary(agents={"drug_oral": {"unit": "g", "dose": {"above": 0, "to": 10}}}).agents,
})


def test_sparse_signals_keep_their_instants_and_the_whole_record_is_one_episode(spark):
    wanted = layout(Levels(), VOCABULARY, EpisodeConfig(days="all", minimum_readings=1, minimum_wear_hours=0), ("age_years", "female", "hba1c"))
    late = 100 * 1440
    observations = [
        reading("a", 61.5, 2000, signal="level"), reading("a", 61.5, 4000, signal="level"), reading("a", late + 0.5, 500, signal="level"),
        reading("a", 70, 80, signal="heart_rate"), reading("a", 50, 81, signal="body_weight"), reading("a", 63, 9, signal="hba1c"),
        reading("b", 5, 7000, signal="level"),
    ]
    exposures = [event("a", "drug_oral", 60.5, 0.25)]
    people = [("a", "female", MONDAY.date().replace(year=1986)), ("b", "unknown", None)]
    a, b = (packed(spark, observations, exposures, people, layout=wanted, patient="patient_id string, sex string, birth_date date")[p, "all"] for p in "ab")
    assert a["start"].replace(tzinfo=UTC) == at(60) and a["minutes"] == late - 60 + 1 and a["step_minutes"] == 1
    level, rate = a["signals"]
    assert (level["signal"], level["minutes"], level["values"]) == ("level", [1.5, late - 59.5], [3.0, 0.5])
    assert rate["minutes"] is None and {k: v for k, v in enumerate(rate["values"]) if v == v} == {10: 80.0}
    assert inputs(a, "drug_oral") == [(0.5, 250.0, 0, "")]
    found = {c["name"]: (c["value"], c["assumed"]) for c in a["covariates"]}
    assert found["body_weight"] == (81.0, False) and found["female"] == (1.0, False) and found["age_years"] == (40.0, False)
    assert np.isnan(found["hba1c"][0]) and found["hba1c"][1]  # known two minutes too late, and without a stand-in
    assert (a["status"], b["status"], b["signals"][0]["values"]) == ("ready", "ready", [7.0])


def test_sparse_signals_in_blocks_of_days(spark):
    class Sparse(Levels):
        signals = (Signal("level", "ug/L"),)
        inputs = ()

    wanted = layout(Sparse(), VOCABULARY, EpisodeConfig(days=7))
    rows = packed(spark, [reading("a", 30, 5, signal="level"), reading("a", 8 * 1440, 6, signal="level")], [], ["a", "c"], layout=wanted)
    first, second = rows["a", "2026-01-05"], rows["a", "2026-01-12"]
    assert (first["signals"][0]["minutes"], second["signals"][0]["minutes"]) == ([30.0], [1440.0])
    assert first["status"] == "ready" and first["wear_fraction"] is None and first["inputs"] == []
    assert (rows["c", "1970-01-05"]["status"], rows["c", "1970-01-05"]["reason"]) == ("insufficient_data", "no_records")


def test_bad_settings_are_refused():
    class Unknown(Levels):
        covariates = ("hba1c",)

    class Wrong(Levels):
        signals = (Signal("level", "1/min"),)

    class Other(Levels):
        inputs = (Input("oral", "U/h", ("drug_oral",), "U"),)

    class Nowhere(Levels):
        inputs = (Input("oral", "mg/h", ("drug_vein",), "mg"),)

    class Grids(Levels):
        signals = (Signal("glucose", "mg/dL"), Signal("heart_rate", "1/min"))

    for model, episodes, message in (
        (Levels(), EPISODES, "episodes.require: carbohydrate, insulin_bolus: no input of model drug, expected some of drug_oral"),
        (Unknown(), EpisodeConfig(), "episodes.stand_ins: no value for hba1c"),
        (Wrong(), EpisodeConfig(), "model drug: signal level: unknown unit '1/min'"),
        (Other(), EpisodeConfig(), "model drug: input oral: agent drug_oral: unknown unit 'U'"),
        (Nowhere(), EpisodeConfig(), "model drug: input oral: unknown agent 'drug_vein'; known: drug_oral"),
        (Grids(), EpisodeConfig(), "signals glucose, heart_rate have grids of 1, 5 minutes"),
    ):
        with pytest.raises(ConfigError, match=message):
            layout(model, VOCABULARY, episodes)
