"""Fitting rows of timelines: a status for every row, and no row changes another."""

from dataclasses import replace

import numpy as np
import pytest

from tests.models.test_batch import table, timeline
from twinlib.config import FitConfig
from twinlib.engine.kernel import Kernel
from twinlib.models.glucose_insulin import MODEL
from twinlib.population import fit, priors
from twinlib.population.fit import Fitter


@pytest.fixture(scope="module")
def fitter():
    return Fitter(Kernel(MODEL), priors.published(MODEL), FitConfig(), seed=1)


def day(seed: int) -> dict:
    rng = np.random.default_rng(seed)
    glucose = 130 + 40 * np.sin(np.arange(288) / (20 + 5 * seed)) + 5 * rng.standard_normal(288)
    return timeline(f"p{seed}", glucose, {
        "insulin_bolus": {"minutes": [400.0, 700.0], "amounts": [5.0, 6.0], "durations": [0.0, 0.0], "labels": ["", ""]},
        "insulin_basal": {"minutes": [0.0], "amounts": [20.0], "durations": [1440.0], "labels": [""]},
        "carbohydrate": {"minutes": [405.0, 710.0], "amounts": [50.0, 60.0], "durations": [0.0, 0.0], "labels": ["", ""]},
    })


def test_every_row_gets_a_status_and_good_rows_are_unchanged_by_bad_ones(fitter):
    good = [day(1), day(2)]
    refused = timeline("x", np.full(288, np.nan), {}, status="insufficient_data", reason="no_glucose")
    weightless = day(3) | {"patient_id": "y", "covariates": [{"name": "body_weight", "value": 0.0, "assumed": False}]}
    broken = day(4) | {"patient_id": "z", "covariates": []}  # raises inside the batch
    infinite = day(5) | {"patient_id": "w", "signals": [{"signal": "glucose", "minutes": None, "values": [float("inf")] * 288}]}
    rows = {r["patient_id"]: r for r in fitter.run(table(good[0], refused, weightless, broken, infinite, good[1]))}
    assert rows["x"]["status"] == "insufficient_data" and rows["x"]["reason"] == "no_glucose"
    assert rows["y"]["status"] == "failed" and rows["w"]["status"] == "failed"
    assert (rows["z"]["status"], rows["z"]["reason"]) == ("failed", "error:KeyError")
    alone = {r["patient_id"]: r for r in fitter.run(table(*reversed(good)))}
    for p in ("p1", "p2"):
        assert rows[p]["status"] == "converged"
        assert rows[p] == alone[p]


def test_a_converged_twin_has_sensible_figures(fitter):
    row = fitter.run(table(day(1)))[0]
    assert row["n_observations"] == 288 and 0 < row["numerical_error"] < 0.1
    assert 2 < row["fit_rmse"] < 6 and row["forecast_rmse"] > row["fit_rmse"] and 0 < row["fit_mard_percent"] < 5
    assert len(row["draws"]) == 32 * 8 and len(row["summary"]) == 8
    for s in row["summary"]:
        assert s["q05"] < s["q50"] < s["q95"] and s["sd"] > 0 and 0 < s["shrinkage"] < 2
    assert not {r["parameter"]: r for r in row["summary"]}["flux_correlation_time"]["shrinkage"] > 1


def test_a_power_of_the_likelihood_widens_the_posterior_about_the_same_mode(fitter):
    half = replace(fitter, config=FitConfig(power=0.5, moves=5))
    plain, row = (f.run(table(day(1)))[0] for f in (fitter, half))
    for same in ("status", "mode", "log_posterior", "fit_rmse", "iterations"):
        assert row[same] == plain[same]
    assert row["log_evidence"] is None and row["log_evidence_se"] is None and plain["log_evidence"] < 0
    ratio = np.diag(np.reshape(row["covariance"], (8, 8))) / np.diag(np.reshape(plain["covariance"], (8, 8)))
    assert ((ratio > 0.999) & (ratio < 2.001)).all() and ratio.max() > 1.3
    assert np.mean([a["sd"] > b["sd"] for a, b in zip(row["summary"], plain["summary"])]) > 0.7
    assert half.model_version != fitter.model_version


def test_a_twin_that_is_integrated_too_coarsely_fails_alone(fitter, monkeypatch):
    """A gut that empties faster than the step can follow, told by the step's half, is a status of that patient."""
    prior = np.array(fitter.prior.mean)
    prior[3] = np.log(1.12)  # per minute: 2.8 per step, just beyond what Runge-Kutta can follow
    fast = Fitter(fitter.kernel, replace(fitter.prior, mean=prior, covariance=np.diag(np.where(np.arange(8) == 3, 1e-4, 0.1) ** 2)), FitConfig(), 1)
    row = fast.run(table(day(1)))[0]
    assert (row["status"], row["reason"]) == ("failed", "integration_error") and "draws" not in row
    monkeypatch.setattr(fit, "COARSEST", np.inf)
    assert fast.run(table(day(1)))[0]["status"] == "converged"
