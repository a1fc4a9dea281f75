"""Metropolis moves against a closed form."""

import numpy as np

from twinlib.engine.moves import move
from twinlib.engine.normal import Normal

from .test_posterior import GaussianKernel, gaussian


def test_moves_find_the_posterior_from_one_point_and_do_not_depend_on_the_batch():
    rng = np.random.default_rng(0)
    readings = [rng.normal(1.0, 1.0, 5), rng.normal(0.0, 1.0, 9)]
    prior = Normal(np.zeros((2, 3)), np.array([[4.0, 1.0, 0.0], [1.0, 2.0, 0.5], [0.0, 0.5, 1.0]]))
    cov = np.linalg.inv(np.stack([prior.precision + len(y) * np.ones((3, 3)) for y in readings]))
    mode = np.stack([c @ np.full(3, y.sum()) for c, y in zip(cov, readings)])
    begin, keys = np.repeat(mode[:, None], 400, axis=1), [("a", "1"), ("b", "1")]
    got, accepted = move(GaussianKernel(), gaussian(readings), prior, begin, mode, cov, keys, 3, 60)
    assert ((accepted > 0.2) & (accepted < 0.8)).all()
    for i in range(2):
        sd = np.sqrt(np.diag(cov[i]))
        np.testing.assert_allclose(got[i].mean(0), mode[i], atol=0.2 * sd.max())
        np.testing.assert_allclose(np.cov(got[i].T), cov[i], atol=0.25 * sd.max() ** 2)
    alone, _ = move(GaussianKernel(), gaussian(readings[1:]), prior.take([1]), begin[1:], mode[1:], cov[1:], keys[1:], 3, 60)
    assert np.array_equal(alone[0], got[1])
