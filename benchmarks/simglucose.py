"""Days of another simulator's virtual patients (simglucose; see the data's own README) as the engine reads them."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pandas as pd

from twinlib.engine.contract import Model
from twinlib.engine.kernel import Data
from twinlib.models.batch import Batch, Series
from twinlib.models.timeline import Events


def patients(folder: Path) -> dict[str, tuple[float, pd.DataFrame]]:
    """Body weight (kg) and rows (all scenarios, every 5 minutes) by patient, for every file of the folder."""
    truth = pd.read_csv(folder / "patients_true_params.csv").set_index("Name")
    return {
        name: (float(truth.loc[name, "BW"]), pd.read_csv(path, parse_dates=["t"]))
        for path in sorted(folder.glob("*.csv.gz")) for name in [path.name.split(".")[0].replace("_", "#")]
    }


def batch(weight: float, rows: pd.DataFrame, days: list[tuple[int, int]]) -> Batch:
    """One row per stretch of whole days (first, number of days) of a frame of one patient and scenario."""
    per_day, signals, inputs = 288, [], []
    for first, count in days:
        part = rows.iloc[first * per_day : (first + count) * per_day]
        at = np.arange(len(part)) * 5.0
        carbohydrate, bolus, basal = (part[c].to_numpy() * 5.0 for c in ("cho", "bolus", "basal"))
        begins = np.flatnonzero((carbohydrate > 0) & (np.r_[0.0, carbohydrate[:-1]] == 0))  # a meal may span rows
        signals.append({"glucose": Series(at, part["glucose"].to_numpy())})
        inputs.append({
            "insulin_bolus": Events.of(at[bolus > 0], bolus[bolus > 0], 5.0), "insulin_basal": Events.of(at, basal, 5.0),
            "carbohydrate": Events.of(at[begins], np.add.reduceat(carbohydrate, begins) if len(begins) else []),
        })
    ids = tuple((str(rows["patient"].iloc[0]), f"{count} days from {first}") for first, count in days)
    minutes = np.array([1440.0 * count for _, count in days])
    return Batch(ids, minutes, tuple(signals), tuple(inputs), ({"body_weight": weight},) * len(days), np.zeros(len(days)))


def baseline_days(folder: Path, model: Model, nominal_step: float, length: int = 1) -> list[Data]:
    """Per patient: all stretches of `length` days of the baseline scenario."""
    return [
        batch(w, rows[rows["scenario"] == "baseline"], [(d, length) for d in range(0, 15 - length, length)]).data(model, nominal_step)
        for w, rows in patients(folder).values()
    ]
