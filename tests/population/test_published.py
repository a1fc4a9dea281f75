"""Estimates against published ones: nlme, saemix and NONMEM on the same data (sources of the figures: docs/population.md)."""

import numpy as np
import pytest

from benchmarks import published
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
    np.testing.assert_array_less(abs(np.diag(learnt.estimate.omega) - [0.0294, 0.0279]), learnt.errors[3:5])
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


def brute_force(cohort, coefficients, sd, slow_rate, error, draws=400_000):
    """Log likelihood of the biexponential by plain Monte Carlo from the population: no mode, no weights, no engine."""
    z = np.random.default_rng(0).standard_normal((draws, 3))
    a1, rate, a2 = (np.asarray(coefficients) + np.asarray(sd) * z).T
    total = 0.0
    for signals in cohort.signals:
        s = signals["drug_concentration"]
        ll = np.zeros(draws)
        for t, y in zip(s.minutes / 60, s.values):
            ll -= 0.5 * ((y - a1 * np.exp(-np.exp(rate) * t) - a2 * np.exp(-slow_rate * t)) / error) ** 2 + np.log(error) + 0.5 * np.log(2 * np.pi)
        total += np.logaddexp.reduce(ll) - np.log(draws)
    return total


def test_indomethacin_is_at_least_as_likely_as_at_nlmes_estimates(data):
    """nlme maximises a linearised likelihood. The exact one is flat there: its maximum lies elsewhere and nlme's point within the region that
    95 % confidence holds (chi-squared, 8 parameters: 7.75 units). Both likelihoods are checked by brute force."""
    cohort = published.indomethacin(data, dose=1.0)
    learnt, _ = published.estimate(Biexponential(), cohort, LearnConfig(draws=512))
    nlme = brute_force(cohort, [2.8276, 0.7735, 0.4613], [0.571, 0.158, 0.112], np.exp(-1.3445), 0.0815)
    shared = learnt.estimate.shared(Biexponential())
    own = brute_force(cohort, learnt.estimate.coefficients[0], sds(learnt), shared["slow_rate"], shared["error_sd"])
    assert learnt.log_likelihood == pytest.approx(own, abs=0.3) and nlme == pytest.approx(54.595, abs=1.0)
    assert nlme < learnt.log_likelihood < nlme + 7.75
    assert learnt.estimate.coefficients[0, 0] == pytest.approx(2.8276, rel=0.05) and shared["error_sd"] == pytest.approx(0.0815, rel=0.03)


def test_bilirubin_over_years_as_a_linear_mixed_model(data):
    model = BiomarkerTurnover("bilirubin", "mg/dL", 1.0, 12.0, 0.2, 0.3, spread=1.0)
    learnt, last = published.estimate(model, published.cirrhosis(data), LearnConfig(omega="full", fixed=("turnover",), draws=128))
    sd, omega = sds(learnt), learnt.estimate.omega
    np.testing.assert_allclose(learnt.estimate.coefficients[0], [0.4957, 0.1775], atol=0.003)
    np.testing.assert_allclose([*sd, omega[0, 1] / sd.prod(), learnt.estimate.shared(model)["error"]], [0.999, 0.172, 0.418, 0.349], rtol=0.01)
    assert (last.status == "used").all() and learnt.sums["readings"] == 1945
