"""Subjects of a drug in two compartments with known truth, by the closed form (no code shared with the engine), as packed timelines."""

from __future__ import annotations

import datetime as dt

import numpy as np
import pyarrow as pa
from pyspark.sql.pandas.types import to_arrow_schema

from twinlib.models.batch import Batch
from twinlib.tables.schemas import TIMELINES

DOSE = 100.0  # mg, into the vein at once
MEDIAN = {"clearance": 5.0, "volume": 20.0, "exchange": 6.0, "peripheral_volume": 40.0}
SD = {"clearance": 0.35, "volume": 0.25, "exchange": 0.3, "peripheral_volume": 0.3}
CV = 0.10


def level(theta: np.ndarray, hours: np.ndarray) -> np.ndarray:
    """(n, t) mg/L after the dose, of log parameters (n, 4) in the order of MEDIAN, at hours (n, t). Gibaldi & Perrier 1982, two compartments."""
    cl, v, q, v2 = np.exp(theta).T[:, :, None]
    k10, k12, k21 = cl / v, q / v, q / v2
    s = k10 + k12 + k21
    root = np.sqrt(s * s - 4 * k10 * k21)
    a, b = (s + root) / 2, (s - root) / 2
    return DOSE / v * ((a - k21) * np.exp(-a * hours) + (k21 - b) * np.exp(-b * hours)) / (a - b)


def draw(n: int, readings: int, seed: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Truth (n, 4) on the log scale, times (n, readings) in hours and levels with error, readings spread evenly in log time from 0.25 to 36 h."""
    rng = np.random.default_rng(seed)
    theta = np.log(list(MEDIAN.values())) + rng.standard_normal((n, 4)) * list(SD.values())
    edges = np.geomspace(0.25, 36.0, readings + 1)
    hours = edges[:-1] * (edges[1:] / edges[:-1]) ** rng.random((n, readings))
    hours = np.round(hours * 60) / 60
    y = level(theta, hours) * (1 + CV * rng.standard_normal((n, readings)))
    return theta, hours, y


def timelines(hours, y, prefix: str = "", start: dt.datetime = dt.datetime(2026, 1, 5, tzinfo=dt.UTC)) -> pa.Table:
    """Rows of `timelines` of subjects (n, t)."""
    n, t = y.shape
    lists = lambda x: pa.ListArray.from_arrays(np.arange(0, x.size + 1, x.shape[1], dtype=np.int32), pa.array(x.ravel()))  # noqa: E731
    one = np.arange(n + 1, dtype=np.int32)
    signals = pa.StructArray.from_arrays([pa.array(["drug_concentration"] * n), lists(hours * 60), lists(y.astype(np.float32))], ["signal", "minutes", "values"])
    inputs = pa.StructArray.from_arrays(
        [pa.array(["drug_venous"] * n), lists(np.zeros((n, 1))), lists(np.full((n, 1), DOSE, np.float32)), lists(np.zeros((n, 1), np.float32)),
         pa.array([[""]] * n)], ["input", "minutes", "amounts", "durations", "labels"],
    )
    column = {
        "patient_id": [f"{prefix}{i:07d}" for i in range(n)], "model": ["pharmacokinetics"] * n, "episode": ["all"] * n, "start": [start] * n,
        "minutes": [36 * 60 + 1] * n, "step_minutes": [5] * n, "utc_offset_minutes": [0] * n, "signals": pa.ListArray.from_arrays(one, signals),
        "inputs": pa.ListArray.from_arrays(one, inputs), "covariates": [[]] * n, "wear_fraction": [None] * n, "status": ["ready"] * n,
        "reason": [None] * n, "content_hash": ["0"] * n,
    }
    schema = to_arrow_schema(TIMELINES.schema, timezone="UTC")
    arrays = [v if isinstance(v, pa.Array) else pa.array(v, schema.field(k).type) for k, v in column.items()]
    return pa.table([a.cast(schema.field(k).type) for k, a in zip(column, arrays)], schema=pa.schema([f.with_nullable(True) for f in schema]))


def rows(cohort: Batch, model: str) -> list[dict]:
    """A batch as rows of `timelines`."""
    series = lambda s: [{"signal": n, "minutes": x.minutes.tolist(), "values": x.values.tolist()} for n, x in s.items()]  # noqa: E731
    events = lambda e: [  # noqa: E731
        {"input": a, "minutes": x.minutes.tolist(), "amounts": x.amounts.tolist(), "durations": x.durations.tolist(), "labels": list(x.labels)} for a, x in e.items()
    ]
    return [
        {
            "patient_id": p, "model": model, "episode": e, "start": dt.datetime(2026, 1, 5, tzinfo=dt.UTC), "minutes": int(m), "step_minutes": 5,
            "utc_offset_minutes": 0, "signals": series(s), "inputs": events(i), "covariates": [{"name": n, "value": v, "assumed": v != v} for n, v in c.items()],
            "wear_fraction": None, "status": "ready", "reason": None, "content_hash": "0",
        }
        for (p, e), m, s, i, c in zip(cohort.ids, cohort.minutes, cohort.signals, cohort.inputs, cohort.covariates)
    ]
