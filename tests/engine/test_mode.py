"""Modes against SciPy on an independent objective; failure of one patient leaves the others as they are."""

import numpy as np
import pytest
from scipy.integrate import solve_ivp
from scipy.optimize import least_squares

from twinlib.engine import mode, posterior
from twinlib.engine.kernel import Data, Kernel
from twinlib.models.glucose_insulin import MODEL

from .conftest import inputs
from .tumour import Tumour


def simulated(kernel, count: int, days: int, seed: int):
    """True transformed parameters (count, 8) and data simulated from them."""
    rng = np.random.default_rng(seed)
    n = 288 * days
    u = np.stack([inputs(rng, n) for _ in range(count)])
    truth = MODEL.prior_mean + MODEL.prior_sd * rng.standard_normal((count, 8))
    p = MODEL.natural(truth)
    first = p[:, 2]
    blank = Data(np.column_stack([np.full(count, 0.2), first]), u.reshape(count, -1), np.zeros((count, 5 * n)))
    noise = np.zeros((count, 5 * n, 3))  # the flux, exactly, every minute
    noise[:, 1:, 2] = np.sqrt(p[:, 6] ** 2 * (1 - np.exp(-2 / p[:, 7])))[:, None] * rng.standard_normal((count, 5 * n - 1))
    start = np.column_stack([first + 20 * rng.standard_normal(count), first + 20 * rng.standard_normal(count), p[:, 6] * rng.standard_normal(count)])
    y = Kernel(MODEL, 1.0).simulate(p, np.arange(count), blank, noise, start)[:, ::5] + 5 * rng.standard_normal((count, n))
    y[rng.random(y.shape) < 0.05] = np.nan
    return truth, Data(blank.constants, blank.inputs, y)


def find(kernel, data, starts=None):
    starts = np.tile(MODEL.prior_mean, (len(data.readings), 1)) if starts is None else starts
    return mode.find(kernel, MODEL.natural, data, MODEL.prior_mean, MODEL.prior_sd, starts)


def test_a_deterministic_model_of_another_field_agrees_with_least_squares():
    model = Tumour()
    kernel = Kernel(model, slot_minutes=1.0)
    rng = np.random.default_rng(1)
    n, u = 60, np.zeros(60)
    u[20:30] = 2.0

    def solve(theta):
        g, cap, kill = np.exp(theta)
        out, x = [10.0], np.array([10.0, 0.0])
        for k in range(n - 1):
            f = lambda t, x: [g * x[0] * (1 - x[0] / cap) - kill * x[1] * x[0], u[k] - 0.5 * x[1]]  # noqa: B023
            x = solve_ivp(f, (0, 1), x, "DOP853", rtol=1e-10, atol=1e-10).y[:, -1]
            out.append(x[0])
        return np.array(out)

    truth = model.prior_mean + np.array([0.2, -0.3, 0.4])
    y = solve(truth) + rng.standard_normal(n)
    data = Data(np.array([[10.0]]), np.repeat(u, 4)[None], y[None])
    found = mode.find(kernel, model.natural, data, model.prior_mean, model.prior_sd, model.prior_mean[None])
    residual = lambda t: np.concatenate([solve(t) - y, (t - model.prior_mean) / model.prior_sd])  # noqa: E731
    expected = least_squares(residual, model.prior_mean, jac="3-point", x_scale=model.prior_sd, diff_step=1e-4, xtol=1e-10, ftol=1e-12)
    sd = np.sqrt(np.diag(np.linalg.inv(expected.jac.T @ expected.jac)))
    assert found.status[0] == "converged"
    assert np.abs((found.theta[0] - expected.x) / sd).max() < 0.01


def test_the_mode_is_a_stationary_point_of_the_posterior(kernel):
    _, data = simulated(kernel, 6, 1, seed=2)
    found = find(kernel, data)
    assert (found.status == "converged").all()

    def objective(theta, row):
        z = (theta - MODEL.prior_mean) / MODEL.prior_sd
        return kernel.filter(MODEL.natural(theta[None]), [row], data, full=False)[0][0] + 0.5 * z @ z

    sd = np.sqrt(np.diagonal(posterior.covariance(found.hessian), axis1=1, axis2=2))
    for row in range(6):  # central differences of the objective itself, in units of the posterior SD
        for j in range(8):
            step = np.zeros(8)
            step[j] = 0.05 * sd[row, j]
            slope = (objective(found.theta[row] + step, row) - objective(found.theta[row] - step, row)) / 0.1
            assert abs(slope) < 0.02


def test_one_bad_patient_leaves_the_others_as_they_are(kernel):
    _, data = simulated(kernel, 5, 1, seed=3)
    alone = find(kernel, data)
    y = data.readings.copy()
    y[1] = np.inf
    y[3] = np.nan
    bad = find(kernel, Data(data.constants, data.inputs, y))
    assert bad.status[1] == "failed" and bad.reason[1] == "not_finite_at_start"
    assert np.allclose(bad.theta[3], MODEL.prior_mean, atol=1e-3)  # no readings: the prior
    for i in (0, 2, 4):
        np.testing.assert_array_equal(bad.theta[i], alone.theta[i])
        np.testing.assert_array_equal(bad.hessian[i], alone.hessian[i])
    parts = find(kernel, data.take(np.array([4, 0])))
    np.testing.assert_array_equal(parts.theta, alone.theta[[4, 0]])


@pytest.mark.slow
def test_intervals_cover_the_truth(kernel):
    """90 % intervals of every parameter hold the truth in 86-94 % of patients drawn from the prior (+- 3 standard errors)."""
    truth, data = simulated(kernel, 400, 2, seed=4)
    found = find(kernel, data)
    assert (found.status == "converged").mean() > 0.99
    ok = found.status == "converged"
    data, theta, cov = data.take(ok), found.theta[ok], posterior.covariance(found.hessian[ok])
    keys = [(str(i), "") for i in range(ok.sum())]
    drawn = posterior.sample(kernel, MODEL.natural, data, MODEL.prior_mean, MODEL.prior_sd, theta, cov, keys, 1, 512)
    low, high = posterior.quantiles(drawn.draws.swapaxes(1, 2), drawn.weights[:, None], [0.05, 0.95])
    covered = ((truth[ok] >= low) & (truth[ok] <= high)).mean(0)
    assert (np.abs(covered - 0.9) < 0.045).all(), covered
