"""Importance sampling against closed forms."""

import numpy as np
from scipy import stats

from twinlib.engine import posterior
from twinlib.engine.kernel import Data
from twinlib.engine.normal import Normal


class GaussianKernel:
    """Stands in for a kernel: minus log likelihood of readings about the sum of the parameters, with unit variance."""

    def likelihood(self, theta, who, data):
        return np.array([0.5 * ((data.row(r)[:, 0] - t.sum()) ** 2).sum() for t, r in zip(theta, who)])


def gaussian(readings) -> Data:
    none = np.zeros(0)
    count = len(readings)
    y = np.concatenate(readings)[:, None]
    return Data(np.zeros((count, 0)), np.cumsum([0] + [len(r) for r in readings]), np.zeros(len(y) + 1, int), none, none, none, none, y)


def conjugate(readings, prior, power):
    """Means (rows, p) and covariances (rows, p, p) under the likelihood to `power`, in closed form."""
    cov = np.linalg.inv(np.stack([prior.precision + power * len(y) * np.ones((len(prior.covariance),) * 2) for y in readings]))
    return np.stack([c @ np.full(len(c), power * y.sum()) for c, y in zip(cov, readings)]), cov


def test_evidence_and_moments_of_a_conjugate_model():
    rng = np.random.default_rng(0)
    readings = [rng.normal(1.0, 1.0, 5), rng.normal(0.0, 1.0, 9)]
    prior = Normal(np.zeros((2, 3)), np.array([[4.0, 1.0, 0.0], [1.0, 2.0, 0.5], [0.0, 0.5, 1.0]]))
    theta, cov = conjugate(readings, prior, 1)
    keys = [("a", "1"), ("b", "1")]
    got = posterior.sample(GaussianKernel(), gaussian(readings), prior, theta, cov, keys, 7, 1280)
    for i, y in enumerate(readings):
        exact = stats.multivariate_normal(np.zeros(len(y)), np.eye(len(y)) + prior.covariance.sum()).logpdf(y)
        assert abs(got.log_evidence[i] - exact) < 4 * got.log_evidence_se[i] < 0.1
    np.testing.assert_allclose(np.einsum("nk,nkp->np", got.weights, got.draws), theta, atol=0.05)
    assert (got.pareto_k < 0.5).all() and (got.effective_draws > 700).all()
    spectrum = posterior.spectrum(got, prior)  # the data see one direction: the others keep their prior variance
    np.testing.assert_allclose(spectrum[:, 1:], 1.0, atol=0.15)
    assert (spectrum[:, 0] < 0.05).all()
    second = Normal(prior.mean[1:], prior.covariance)
    again = posterior.sample(GaussianKernel(), gaussian(readings[1:]), second, theta[1:], cov[1:], keys[1:], 7, 1280)
    np.testing.assert_array_equal(again.draws[0], got.draws[1])  # keyed by patient, not by position


def test_a_power_of_the_likelihood_counts_readings_for_less():
    rng = np.random.default_rng(0)
    readings = [rng.normal(3.0, 1.0, 5), rng.normal(-2.0, 1.0, 9)]
    prior = Normal(np.zeros((2, 3)), np.array([[4.0, 1.0, 0.0], [1.0, 2.0, 0.5], [0.0, 0.5, 1.0]]))
    keys, (mode, cov), (mean, wide) = [("a", "1"), ("b", "1")], conjugate(readings, prior, 1), conjugate(readings, prior, 0.3)
    scale = posterior.covariance(posterior.powered(np.linalg.inv(cov), prior, 0.3))
    np.testing.assert_allclose(scale, wide)
    got = posterior.sample(GaussianKernel(), gaussian(readings), prior, mode, scale, keys, 7, 5120, 0.3)
    np.testing.assert_allclose(np.einsum("nk,nkp->np", got.weights, got.draws), mean, atol=0.05)
    off = got.draws - mean[:, None]
    np.testing.assert_allclose(np.einsum("nk,nkp,nkq->npq", got.weights, off, off), wide, atol=0.1)
    assert np.isnan(got.log_evidence).all() and np.isnan(got.log_evidence_se).all()


def test_a_row_whose_draws_all_fail_says_so_and_leaves_the_other_alone():
    class Broken(GaussianKernel):
        def likelihood(self, theta, who, data):
            out = super().likelihood(theta, who, data)
            out[np.asarray(who) == 0] = np.nan
            return out

    prior = Normal(np.zeros((2, 1)), np.eye(1))
    data, theta, cov, keys = gaussian([np.ones(3), np.ones(3)]), np.full((2, 1), 0.75), np.full((2, 1, 1), 0.25), [("a",), ("b",)]
    good = posterior.sample(GaussianKernel(), data, prior, theta, cov, keys, 1, 320)
    bad = posterior.sample(Broken(), data, prior, theta, cov, keys, 1, 320)
    assert np.isnan(bad.log_evidence[0]) and np.isposinf(bad.pareto_k[0]) and np.allclose(bad.weights[0], 1 / 320)
    np.testing.assert_array_equal(bad.weights[1], good.weights[1])


def test_pareto_k_recovers_the_shape_of_a_tail():
    for shape in (0.2, 0.5, 0.9):
        x = stats.genpareto(shape).rvs(20000, random_state=1)
        assert abs(posterior.pareto_k(np.log(x)) - shape) < 0.12


def test_quantiles_with_equal_weights_are_numpys_weibull_quantiles():
    x = np.random.default_rng(0).normal(size=(3, 40))
    got = posterior.quantiles(x, np.full(40, 1 / 40), [0.05, 0.5, 0.95])
    np.testing.assert_allclose(got, np.quantile(x, [0.05, 0.5, 0.95], axis=1, method="weibull"))


def test_resampling_follows_the_weights():
    draws = np.arange(64.0).reshape(1, 64, 1)
    w = np.zeros((1, 64))
    w[0, [3, 10]] = [0.25, 0.75]
    p = posterior.Posterior(draws, w, *[np.zeros(1)] * 4)
    got = posterior.resample(p, [("a", "1")], 1, 32)[0, :, 0]
    assert abs((got == 3).sum() - 8) <= 1 and (got == 10).sum() + (got == 3).sum() == 32
