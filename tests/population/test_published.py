"""Estimates against published ones: nlme, saemix and NONMEM on the same data (sources of the figures: docs/population.md)."""

import numpy as np
import pytest

from tests.population import published
from tests.population.biexponential import Biexponential
from twinlib.config import EffectConfig, LearnConfig
from twinlib.models.biomarker_turnover import BiomarkerTurnover
from twinlib.models.pharmacokinetics import MODEL, Pharmacokinetics
from twinlib.population.design import Column


def natural(learnt):
    return np.exp(learnt.estimate.coefficients[0])


def sds(learnt):
    return np.sqrt(np.diag(learnt.estimate.omega))


def test_theophylline_as_saemix_and_nlme(data):
    learnt, _ = published.estimate(MODEL, published.theophylline(data), LearnConfig(draws=512))
    assert learnt.status == "converged"
    ka, cl, v = natural(learnt)
    assert 1.575 <= ka <= 1.605 and 2.735 <= cl <= 2.765 and 31.45 <= v <= 31.85
    np.testing.assert_allclose(sds(learnt), [0.636, 0.265, 0.136], rtol=0.05)
    assert 0.6935 <= learnt.estimate.shared(MODEL)["error_sd"] <= 0.6985
    assert -2 * learnt.log_likelihood == pytest.approx(360.7, abs=0.6) and 2 * learnt.log_likelihood_se < 0.2
    # saemix' standard errors of ka, CL and V on the same data, as relative ones: 0.19, 0.08, 0.045
    np.testing.assert_allclose(learnt.errors[:3], [0.19, 0.08, 0.045], rtol=0.15)
    assert learnt.parameters == 7 and learnt.aic == pytest.approx(-2 * learnt.log_likelihood + 14)


def test_phenobarbital_with_weight_and_apgar_as_nonmem(data):
    model = Pharmacokinetics(oral=False, error="proportional")
    weight = [EffectConfig(parameter=n, covariate="body_weight", kind="log", reference=1, fixed=1) for n in ("clearance", "volume")]
    config = LearnConfig(effects=(*weight, EffectConfig(parameter="volume", covariate="apgar", kind="below", reference=5)), start={"clearance": 0.01, "volume": 1.0})
    columns = (Column("body_weight", "log", 1.0), Column("apgar", "below", 5.0))
    cohort = published.phenobarbital(data)
    learnt, _ = published.estimate(model, cohort, config, columns)
    cl, v = natural(learnt)
    assert learnt.status == "converged"
    assert abs(np.log(cl / 0.0046956)) < learnt.errors[0] and abs(np.log(v / 0.98426)) < learnt.errors[1]
    assert abs(np.expm1(learnt.estimate.coefficients[2, 1]) - 0.1589) < learnt.errors[2] * 1.1589
    np.testing.assert_allclose(np.diag(learnt.estimate.omega), [0.0294, 0.0279], atol=[learnt.errors[3], learnt.errors[4]], rtol=0)
    assert learnt.estimate.shared(model)["error_cv"] ** 2 == pytest.approx(0.0132, rel=2 * learnt.errors[5])
    readings = learnt.sums["readings"]
    assert -2 * learnt.log_likelihood - readings * np.log(2 * np.pi) == pytest.approx(586.276, abs=1.5)  # NONMEM's is FOCE's approximation


@pytest.mark.parametrize(("omega", "expected", "sd", "error"), [
    ("diagonal", (-5.093, 0.3425), (0.440, 0.450), 2.793),  # nlme
    ("full", (-4.990, 0.340), (0.239**0.5, 0.155**0.5), 2.864),  # NONMEM FOCEI, covariance 0.192
])
def test_phenobarbital_without_covariates(data, omega, expected, sd, error):
    model = Pharmacokinetics(oral=False)
    learnt, _ = published.estimate(model, published.phenobarbital(data), LearnConfig(omega=omega, start={"clearance": 0.01, "volume": 1.0}))
    np.testing.assert_array_less(abs(learnt.estimate.coefficients[0] - expected), learnt.errors[:2])
    np.testing.assert_allclose(sds(learnt), sd, rtol=0.06)
    assert learnt.estimate.shared(model)["error_sd"] == pytest.approx(error, rel=learnt.errors[-1])
    if omega == "full":
        assert learnt.estimate.omega[0, 1] == pytest.approx(0.192, rel=0.06)


def test_indomethacin_as_nlme(data):
    learnt, _ = published.estimate(Biexponential(), published.indomethacin(data, dose=1.0), LearnConfig())
    a1, rate, a2 = learnt.estimate.coefficients[0]
    shared = learnt.estimate.shared(Biexponential())
    np.testing.assert_allclose([a1, rate, a2, np.log(shared["slow_rate"]), shared["error_sd"]], [2.8276, 0.7735, 0.4613, -1.3445, 0.0815], rtol=0.03)
    assert learnt.log_likelihood == pytest.approx(54.595, abs=0.5)


def test_bilirubin_over_years_as_a_linear_mixed_model(data):
    model = BiomarkerTurnover("bilirubin", "mg/dL", 1.0, 12.0, 0.2, 0.3, spread=1.0)
    learnt, last = published.estimate(model, published.cirrhosis(data), LearnConfig(omega="full", fixed=("turnover",), draws=128))
    sd, omega = sds(learnt), learnt.estimate.omega
    np.testing.assert_allclose(learnt.estimate.coefficients[0], [0.4957, 0.1775], atol=0.003)
    np.testing.assert_allclose([*sd, omega[0, 1] / sd.prod(), learnt.estimate.shared(model)["error"]], [0.999, 0.172, 0.418, 0.349], rtol=0.01)
    assert (last.status == "used").all() and learnt.sums["readings"] == 1945
