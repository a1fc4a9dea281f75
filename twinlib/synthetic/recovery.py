"""How well twins find the truth of a synthetic cohort. Only reports read the truth; no stage of a run does."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd
from pyspark.sql import DataFrame

from twinlib.config import RunConfig
from twinlib.sources import load_key
from twinlib.sources.pseudonym import pseudonym


@dataclass(frozen=True)
class Recovery:
    """One parameter over all twins: share of 90 % intervals that hold the truth, median relative error of the posterior median,
    correlation of log estimate and log truth."""

    parameter: str
    twins: int
    coverage: float
    median_error: float
    correlation: float


def compare(estimates: pd.DataFrame, truth: pd.DataFrame) -> list[Recovery]:
    """estimates: patient_id, parameter, q05, q50, q95; truth: patient_id, parameter, value. In the order of the truth's parameters."""
    both = truth.merge(estimates, on=["patient_id", "parameter"])
    out = []
    for name, rows in both.groupby("parameter", sort=False):
        held = (rows.value >= rows.q05) & (rows.value <= rows.q95)
        correlation = np.corrcoef(np.log(rows.q50), np.log(rows.value))[0, 1] if len(rows) > 2 else np.nan
        out.append(Recovery(name, len(rows), held.mean(), (rows.q50 / rows.value - 1).abs().median(), correlation))
    return out


def recovery(config: RunConfig, twin_parameters: DataFrame) -> list[Recovery] | None:
    """Recovery of the cohort that the configuration generates; None where it generates none."""
    if config.generate is None:
        return None
    truth = pd.read_parquet(Path(config.generate.root) / "truth" / "parameters.parquet")
    key = load_key(config.pseudonym_key)
    truth["patient_id"] = truth.patient.map({p: pseudonym(key, "", p) for p in truth.patient.unique()})
    estimates = twin_parameters.select("patient_id", "parameter", "q05", "q50", "q95").toPandas()
    return compare(estimates, truth)
