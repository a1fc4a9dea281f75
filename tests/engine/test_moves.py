"""Metropolis moves against a closed form."""

import numpy as np
import pytest

from twinlib.engine.moves import move
from twinlib.engine.normal import Normal

from .test_posterior import GaussianKernel, conjugate, gaussian


@pytest.mark.parametrize("power", [1.0, 0.3])
def test_moves_find_the_posterior_from_one_point_and_do_not_depend_on_the_batch(power):
    rng = np.random.default_rng(0)
    readings = [rng.normal(1.0, 1.0, 5), rng.normal(0.0, 1.0, 9)]
    prior = Normal(np.zeros((2, 3)), np.array([[4.0, 1.0, 0.0], [1.0, 2.0, 0.5], [0.0, 0.5, 1.0]]))
    mean, cov = conjugate(readings, prior, power)
    begin, keys = np.repeat(mean[:, None], 400, axis=1), [("a", "1"), ("b", "1")]
    got, accepted = move(GaussianKernel(), gaussian(readings), prior, begin, mean, cov, keys, 3, 60, power)
    assert ((accepted > 0.2) & (accepted < 0.8)).all()
    for i in range(2):
        sd = np.sqrt(np.diag(cov[i]))
        np.testing.assert_allclose(got[i].mean(0), mean[i], atol=0.2 * sd.max())
        np.testing.assert_allclose(np.cov(got[i].T), cov[i], atol=0.25 * sd.max() ** 2)
    alone, _ = move(GaussianKernel(), gaussian(readings[1:]), prior.take([1]), begin[1:], mean[1:], cov[1:], keys[1:], 3, 60, power)
    assert np.array_equal(alone[0], got[1])


class BentKernel:
    """A likelihood along a parabola of the first two parameters: with a standard normal prior the posterior is bent."""

    def likelihood(self, theta, who, data):
        return 0.5 * ((theta[:, 1] - 0.5 * theta[:, 0] ** 2) / 0.3) ** 2


def bent(count: int, p: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Exact draws (count, p) of the bent posterior; its mode and the Laplace covariance there."""
    rng, a = np.random.default_rng(5), np.linspace(-4, 4, 8001)
    density = np.exp(-0.5 * a**2 - 0.5 * (0.5 * a**2) ** 2 / (1 + 0.3**2))  # of the first, the second integrated out
    draws = rng.standard_normal((count, p))
    draws[:, 0] = np.interp(rng.random(count), np.cumsum(density) / density.sum(), a)
    precise = 1 + 1 / 0.3**2
    draws[:, 1] = 0.5 * draws[:, 0] ** 2 / 0.3**2 / precise + draws[:, 1] / np.sqrt(precise)
    return draws, np.zeros(p), np.diag([1.0, 1 / precise, *np.ones(p - 2)])


def test_moves_leave_a_bent_posterior_of_many_parameters_as_it_is_and_find_it_from_a_few_copies():
    p, count = 24, 600
    exact, theta, cov = bent(count, p)
    prior, one = Normal(np.zeros((1, p)), np.eye(p)), gaussian([np.ones(1)])
    for begin in (exact, np.repeat(exact[:6], count // 6, axis=0)):
        got, accepted = move(BentKernel(), one, prior, begin[None], theta[None], cov[None], [("a", "1")], 3, 100)
        assert 0.1 < accepted[0] < 0.8
        np.testing.assert_allclose(got[0].mean(0), exact.mean(0), atol=0.25)
        np.testing.assert_allclose(got[0].std(0), exact.std(0), rtol=0.15)
        assert np.unique(got[0], axis=0).shape[0] == count
    once, _ = move(BentKernel(), one, prior, exact[None, :5], theta[None], cov[None], [("a", "1")], 3, 4)  # halves of three and two
    assert np.isfinite(once).all()
