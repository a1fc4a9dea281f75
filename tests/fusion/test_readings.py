"""Readings from sound records: one fact, one row, whatever the batches; and what an ordered frame says of itself."""

from datetime import datetime, timedelta, timezone

import numpy as np
import pyarrow as pa

from twinlib.fusion.arrays import whole_patients, with_flags
from twinlib.fusion.readings import finished
from twinlib.fusion.vocabulary import load_vocabulary
from twinlib.tables.ordered import AHEAD, Ordered
from twinlib.tables.schemas import OBSERVATIONS

NAMES = {0: ("glucose", "meter.first"), 1: ("glucose", "meter.second"), 3: ("weight", "scale")}
NOON = datetime(2026, 1, 6, 12, tzinfo=timezone.utc)
SCHEMA = pa.schema([
    ("entry", pa.int32()), ("patient_id", pa.string()), ("utc", pa.timestamp("us", "UTC")), ("value", pa.float64()), ("device", pa.string()),
    ("utc_offset_minutes", pa.int32()), ("file", pa.string()), ("line", pa.int64()), ("part", pa.int32()), ("available_at", pa.timestamp("us", "UTC")),
    ("quality", pa.list_(pa.string())),
])  # fmt: skip


def record(entry, patient, minute, value, line=1, flags=()):
    at = NOON + timedelta(minutes=minute)
    return (entry, patient, at, value, None, 0, "f", line, None, at, list(flags))


def done(rows, again=False, doses=None) -> pa.Table:
    table = pa.table([pa.array(c, f.type) for c, f in zip(zip(*rows), SCHEMA)], schema=SCHEMA)
    return finished(table, NAMES, doses or {}, {}, [], again, Ordered(OBSERVATIONS.key))


def told(table: pa.Table) -> list[tuple]:
    return [(r["patient_id"], r["signal"], r["value"], *([r["quality"]] if r["kept"] else [])) for r in table.to_pylist()]


def test_the_first_of_an_instant_is_kept_and_says_whether_another_value_stood_there():
    got = done([record(0, "a", 0, 100), record(1, "a", 0, 100.0000001), record(0, "a", 5, 100), record(1, "a", 5, 110), record(3, "a", 5, 70), record(0, "b", 5, 90)])
    assert told(got) == [
        ("a", "glucose", 100, []), ("a", "glucose", 100.0000001), ("a", "glucose", 100, ["conflict"]),
        ("a", "glucose", 110), ("a", "weight", 70, []), ("b", "glucose", 90, []),
    ]  # fmt: skip
    assert got["source"].to_pylist() == ["meter.first", "meter.second"] * 2 + ["scale", "meter.first"] and all(got[AHEAD].to_pylist())


def test_what_was_here_before_bears_its_conflict_on():
    got = done([record(0, "a", 0, 100, flags=["conflict", "date_only"]), record(1, "a", 0, 100), record(0, "a", 5, 100, flags=["date_only"])], again=True)
    assert told(got) == [("a", "glucose", 100, ["conflict", "date_only"]), ("a", "glucose", 100), ("a", "glucose", 100, ["date_only"])]


def test_doses_are_looked_at_and_left_out():
    got = done([record(7, "a", 0, 50), record(0, "a", 0, 100)], doses={7: "carbohydrate"})
    assert told(got) == [("a", "glucose", 100, [])]


def test_a_wrong_zone_reaches_the_flags():
    rng, five = np.random.default_rng(2), np.arange(0, 14 * 1440, 5)
    meals = np.concatenate([d * 1440 + np.array([420, 720, 1110]) + rng.integers(-60, 60, 3) for d in range(14)])
    ago = five[:, None] - meals
    value = 120 + (70 * np.where(ago > 0, ago / 60 * np.exp(1 - np.minimum(ago, 6000) / 60), 0)).sum(axis=1) + rng.normal(0, 5, len(five))
    for shift, flag in ((0, False), (330, True)):
        rows = [record(7, "a", int(m), 50) for m in meals] + [record(0, "a", int(m) + shift, float(v)) for m, v in zip(five, value)]
        table = pa.table([pa.array(c, f.type) for c, f in zip(zip(*rows), SCHEMA)], schema=SCHEMA)
        got = finished(table, NAMES, {7: "carbohydrate"}, load_vocabulary().sensors, [], False, Ordered(OBSERVATIONS.key))
        assert {("clock_off" in q) for q in got["quality"].to_pylist()} == {flag}


def test_tables_are_cut_between_patients():
    ids = np.repeat(["a", "b", "c", "d"], [5, 1, 7, 2])
    table = pa.table({"patient_id": ids, "n": np.arange(15)})
    for size in (1, 4, 15):
        for least in (1, 3, 6, 100):
            got = list(whole_patients(table.to_batches(max_chunksize=size), least))
            assert pa.concat_tables(got).to_pydict() == table.to_pydict()
            seen = [p for t in got for p in t["patient_id"].unique().to_pylist()]
            assert len(seen) == len(set(seen)) and len(got) == (1 if least == 100 else len(got))


def test_flags_are_added_and_taken_away():
    lists = pa.chunked_array([pa.array([[], ["b"], ["old", "b"]], pa.list_(pa.string()))])
    got = with_flags(lists, {"a": np.array([True, False, True]), "old": np.array([False, False, False])}, ["old"])
    assert got.to_pylist() == [["a"], ["b"], ["a", "b"]]


def test_rows_out_of_order_and_twice_the_same_key_are_told():
    ordered = Ordered(("p", "k"))
    first = pa.table({"p": ["a", "a", "a", "b"], "k": [1, 2, 2, 1]})
    second = pa.table({"p": ["b", "b", "a"], "k": [1, 2, 9]})
    assert ordered(first).tolist() == [True, True, False, True] and ordered(second).tolist() == [False, True, False]
    assert ordered(first.slice(0, 0)).tolist() == []
