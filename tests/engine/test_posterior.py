"""Importance sampling against closed forms."""

import numpy as np
from scipy import stats

from twinlib.engine import posterior
from twinlib.engine.kernel import Data


class GaussianKernel:
    """Stands in for a kernel: minus log-likelihood of a Gaussian location model with unit variance."""

    def filter(self, theta, who, data, full):
        off = data.readings[who][:, None, :] - theta[:, :, None]
        return 0.5 * (off**2).sum((1, 2)), None, None


def test_evidence_and_moments_of_a_conjugate_model():
    rng = np.random.default_rng(0)
    p, n = 3, 5
    y = rng.normal(1.0, 1.0, (2, n))
    mean, sd = np.zeros(p), np.full(p, 2.0)
    # every parameter sees all readings; the kernel counts n readings, so the constant is that of n, not of n * p
    precision = n + 1 / sd**2
    theta = np.repeat((y.sum(1)[:, None]) / precision[None], 1, axis=0)
    cov = np.tile(np.diag(1 / precision), (2, 1, 1))
    keys = [("a", "1"), ("b", "1")]
    data = Data(None, None, y)
    got = posterior.sample(GaussianKernel(), lambda t: t, data, mean, sd, theta, cov, keys, 7, 1024)
    for i in range(2):
        joint = stats.multivariate_normal(np.zeros(n), np.eye(n) + sd[0] ** 2 * np.ones((n, n))).logpdf(y[i])
        exact = p * joint + (p - 1) * n * 0.5 * np.log(2 * np.pi)
        assert abs(got.log_evidence[i] - exact) < 0.02
    m = np.einsum("nk,nkp->np", got.weights, got.draws)
    np.testing.assert_allclose(m, theta, atol=0.03)
    assert (got.pareto_k < 0.5).all() and (got.effective_draws > 600).all()
    again = posterior.sample(GaussianKernel(), lambda t: t, Data(None, None, y[1:]), mean, sd, theta[1:], cov[1:], keys[1:], 7, 1024)
    np.testing.assert_array_equal(again.draws[0], got.draws[1])  # keyed by patient, not by position


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
    p = posterior.Posterior(draws, w, np.zeros(1), np.zeros(1), np.zeros(1))
    got = posterior.resample(p, [("a", "1")], 1, 32)[0, :, 0]
    assert abs((got == 3).sum() - 8) <= 1 and (got == 10).sum() + (got == 3).sum() == 32
