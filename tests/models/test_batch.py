"""Events become rates without losing an amount; timelines decode to the arrays that they hold."""

import datetime as dt

import numpy as np
import pyarrow as pa
import pytest
from pyspark.sql.pandas.types import to_arrow_schema

from twinlib.engine.contract import Signal
from twinlib.models.batch import Batch, Series, decode
from twinlib.models.glucose_insulin import MODEL
from twinlib.models.timeline import Events
from twinlib.tables.schemas import TIMELINES


def timeline(patient: str, glucose, inputs: dict, weight: float = 80.0, **other) -> dict:
    """A row of `timelines` over one day."""
    none = {"minutes": [], "amounts": [], "durations": [], "labels": []}
    return {
        "patient_id": patient, "model": "glucose_insulin", "episode": "2026-01-05", "start": dt.datetime(2026, 1, 5, tzinfo=dt.UTC),
        "minutes": 1440, "step_minutes": 5, "utc_offset_minutes": 60,
        "signals": [{"signal": "glucose", "minutes": None, "values": list(glucose)}],
        "inputs": [{"input": name, **none, **events} for name, events in inputs.items()],
        "covariates": [{"name": "body_weight", "value": weight, "assumed": False}],
        "wear_fraction": 1.0, "status": "ready", "reason": None, "content_hash": "0" * 16,
    } | other


def table(*rows: dict) -> pa.Table:
    return pa.Table.from_pylist(list(rows), schema=to_arrow_schema(TIMELINES.schema, timezone="UTC"))


def test_drives_hold_every_amount_in_the_models_units():
    events = {
        "insulin_bolus": Events.of([10.25, 1439.5], [2.0, 3.0]),
        "insulin_basal": Events.of([-60.0], [24.0], 1440.0),  # 1 U/h from an hour before the start
        "carbohydrate": Events.of([100.4], [30.0]),
    }
    series = {"glucose": Series(np.arange(289) * 5.0, np.full(289, 120.0))}
    batch = Batch((("a", "e"),), np.array([1440.0]), (series,), (events,), ({"body_weight": 50.0},), np.zeros(1))
    data = batch.data(MODEL, MODEL.step)
    assert data.lengths @ data.rates[:, 0] == pytest.approx(23.0 * 1000 / 50)  # mU/kg
    assert sorted(data.doses[data.doses[:, 0] > 0, 0]) == pytest.approx([2.0 * 20, 3.0 * 20])
    assert data.lengths @ data.rates[:, 1] == pytest.approx(30 * 1000 / 50)  # mg/kg
    assert data.lengths[data.rates[:, 1] > 0].sum() == pytest.approx(15.0)  # a meal enters over a quarter of an hour
    assert batch.total("insulin_basal")[0] == pytest.approx(23.0) and batch.total("insulin_long_acting")[0] == 0


def test_irregular_signals_share_their_instants():
    class Two(type(MODEL)):
        signals = (Signal("glucose", "mg/dL"), Signal("ketones", "mmol/L"))

    series = {"glucose": Series(np.array([0.0, 7.5, 60.0]), np.array([1.0, 2.0, 3.0])), "ketones": Series(np.array([7.5, 30.0]), np.array([0.1, 0.2]))}
    batch = Batch((("a", "e"),), np.array([60.0]), (series,), ({},), ({"body_weight": 50.0},), np.zeros(1))
    data = batch.data(Two(), 2.5)
    nan = np.nan
    np.testing.assert_array_equal(data.readings, [[1.0, nan], [2.0, 0.1], [nan, 0.2], [3.0, nan]])
    assert data.lengths[: data.step_at[-1]].sum() == 60.0


def test_decode_gives_what_the_rows_hold_also_from_a_slice():
    glucose = np.where(np.arange(288) % 7 == 0, np.nan, 100.0 + np.arange(288))
    rows = table(
        timeline("a", np.full(288, 99.0), {}),
        timeline("b", glucose, {"insulin_bolus": {"minutes": [5.0, 60.0], "amounts": [1.0, 2.0], "durations": [0.0, 0.0], "labels": ["", "lunch"]}}),
        timeline("c", np.full(288, np.nan), {"carbohydrate": {"minutes": [1.0], "amounts": [9.0], "durations": [0.0], "labels": [""]}}, 61.0),
    )
    batch = decode(rows.slice(1, 2))
    assert [i[0] for i in batch.ids] == ["b", "c"]
    np.testing.assert_array_equal(batch.signals[0]["glucose"].values, glucose)
    np.testing.assert_array_equal(batch.signals[0]["glucose"].minutes, np.arange(288) * 5.0)
    assert np.isnan(batch.signals[1]["glucose"].values).all()
    assert batch.inputs[0]["insulin_bolus"].labels == ("", "lunch") and list(batch.inputs[0]["insulin_bolus"].amounts) == [1.0, 2.0]
    assert batch.inputs[1]["carbohydrate"].amounts[0] == 9.0 and batch.covariate("body_weight").tolist() == [80.0, 61.0]
    constants = MODEL.patient_constants(batch)
    assert constants["first_glucose"][0] == 101.0 and np.isnan(constants["first_glucose"][1])


def test_timelines_of_different_length_and_kind_share_a_batch():
    sparse = [{"signal": "glucose", "minutes": [3.0, 800.0], "values": [99.0, 120.0]}]
    batch = decode(table(timeline("a", np.zeros(288), {}), timeline("b", np.zeros(576), {}, minutes=2880), timeline("c", [], {}, signals=sparse)))
    assert list(batch.minutes) == [1440.0, 2880.0, 1440.0]
    assert list(batch.data(MODEL, MODEL.step).slots) == [288, 576, 2]
    np.testing.assert_array_equal(batch.signals[2]["glucose"].minutes, [3.0, 800.0])
