"""Events become rates without losing an amount; timelines decode to the arrays that they hold."""

import datetime as dt

import numpy as np
import pyarrow as pa
import pytest
from pyspark.sql.pandas.types import to_arrow_schema

from twinlib.models.batch import Batch, decode
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


def test_rates_hold_every_amount_and_cut_at_the_ends():
    events = {
        "insulin_bolus": Events.of([10.25, 1439.5], [2.0, 3.0]),  # a dose enters over a minute; half of the second is outside
        "insulin_basal": Events.of([-60.0], [24.0], 1440.0),  # 1 U/h from an hour before the start
        "carbohydrate": Events.of([100.4], [30.0]),
    }
    batch = Batch((("a", "e"),), 1440, 5, np.full((1, 288), 120.0), (events,), ({"body_weight": 50.0},), np.zeros(1))
    rates = batch.rates(MODEL)[0].reshape(1440, 2)
    assert rates[:, 0].sum() == pytest.approx((2.0 + 1.5 + 23.0) * 1000 / 50)
    assert rates[10, 0] == pytest.approx((0.75 * 2 + 1 / 60) * 20) and rates[11, 0] == pytest.approx((0.25 * 2 + 1 / 60) * 20)
    assert rates[:, 1].sum() == pytest.approx(30 * 1000 / 50)
    assert np.count_nonzero(rates[:, 1]) == 16  # a meal enters over a quarter of an hour
    assert batch.total("insulin_basal")[0] == pytest.approx(23.0) and batch.total("insulin_long_acting")[0] == 0


def test_decode_gives_what_the_rows_hold_also_from_a_slice():
    glucose = np.where(np.arange(288) % 7 == 0, np.nan, 100.0 + np.arange(288))
    rows = table(
        timeline("a", np.full(288, 99.0), {}),
        timeline("b", glucose, {"insulin_bolus": {"minutes": [5.0, 60.0], "amounts": [1.0, 2.0], "durations": [0.0, 0.0], "labels": ["", "lunch"]}}),
        timeline("c", np.full(288, np.nan), {"carbohydrate": {"minutes": [1.0], "amounts": [9.0], "durations": [0.0], "labels": [""]}}, 61.0),
    )
    batch = decode(rows.slice(1, 2), MODEL)
    assert [i[0] for i in batch.ids] == ["b", "c"]
    np.testing.assert_array_equal(batch.signal[0], glucose)
    assert np.isnan(batch.signal[1]).all()
    assert batch.inputs[0]["insulin_bolus"].labels == ("", "lunch") and list(batch.inputs[0]["insulin_bolus"].amounts) == [1.0, 2.0]
    assert batch.inputs[1]["carbohydrate"].amounts[0] == 9.0 and batch.covariate("body_weight").tolist() == [80.0, 61.0]
    constants = MODEL.constants(batch)
    assert constants["first_glucose"][0] == 101.0 and np.isnan(constants["first_glucose"][1])


def test_timelines_of_different_length_are_refused():
    with pytest.raises(ValueError, match="one length"):
        decode(table(timeline("a", np.zeros(288), {}), timeline("b", np.zeros(288), {}, minutes=2880)), MODEL)
