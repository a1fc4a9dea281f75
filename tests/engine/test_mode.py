"""Modes against SciPy on an independent objective; failure of one patient leaves the others as they are."""

from dataclasses import replace

import numpy as np
import pytest
from scipy.integrate import solve_ivp
from scipy.optimize import least_squares

from benchmarks import cohorts
from twinlib.engine import mode, posterior
from twinlib.engine.kernel import Data, Kernel
from twinlib.engine.normal import Normal
from twinlib.engine.schedule import Drive, build
from twinlib.models.glucose_insulin import MODEL

from .conftest import events
from .tumour import Tumour


def prior_of(model, rows):
    return Normal.independent(model.prior_mean, model.prior_sd, rows)


def find(kernel, data):
    prior = prior_of(MODEL, len(data))
    return mode.find(kernel, data, prior, prior.mean)


@pytest.fixture(scope="module")
def six(kernel):
    rng = np.random.default_rng(2)
    truth = MODEL.prior_mean + MODEL.prior_sd * rng.standard_normal((6, 8))
    return cohorts.data(cohorts.day(MODEL.natural(truth), 2), MODEL.step)


def test_a_deterministic_model_of_another_field_agrees_with_least_squares():
    model = Tumour()
    rng = np.random.default_rng(1)
    times, drive = np.arange(60.0), Drive(np.array([20.0]), np.array([20.0]), np.array([10.0]), 0.0)

    def solve(theta):
        g, cap, kill = np.exp(theta)
        out, x = [10.0], np.array([10.0, 0.0])
        for k in range(59):
            f = lambda t, x: [g * x[0] * (1 - x[0] / cap) - kill * x[1] * x[0], 2.0 * (20 <= k < 30) - 0.5 * x[1]]  # noqa: B023
            x = solve_ivp(f, (0, 1), x, "DOP853", rtol=1e-10, atol=1e-10).y[:, -1]
            out.append(x[0])
        return np.array(out)

    truth = model.prior_mean + np.array([0.2, -0.3, 0.4])
    y = solve(truth) + rng.standard_normal(60)
    data = Data.of(np.array([[10.0]]), [build(times, [drive], model.step)], [y[:, None]])
    found = mode.find(Kernel(model), data, prior_of(model, 1), model.prior_mean[None])
    residual = lambda t: np.concatenate([solve(t) - y, (t - model.prior_mean) / model.prior_sd])  # noqa: E731
    expected = least_squares(residual, model.prior_mean, jac="3-point", x_scale=model.prior_sd, diff_step=1e-4, xtol=1e-10, ftol=1e-12)
    sd = np.sqrt(np.diag(np.linalg.inv(expected.jac.T @ expected.jac)))
    assert found.status[0] == "converged"
    assert np.abs((found.theta[0] - expected.x) / sd).max() < 0.01


def test_the_mode_is_a_stationary_point_of_the_posterior(kernel, six):
    found = find(kernel, six)
    assert (found.status == "converged").all()

    def objective(theta, row):
        return kernel.likelihood(theta[None], [row], six)[0] + prior_of(MODEL, 1).minus_log(theta[None])[0]

    sd = np.sqrt(np.diagonal(posterior.covariance(found.hessian), axis1=1, axis2=2))
    for row in range(6):  # central differences of the objective itself, in units of the posterior SD
        for j in range(8):
            step = np.zeros(8)
            step[j] = 0.05 * sd[row, j]
            slope = (objective(found.theta[row] + step, row) - objective(found.theta[row] - step, row)) / 0.1
            assert abs(slope) < 0.02


def test_one_bad_patient_leaves_the_others_as_they_are(kernel, six):
    alone = find(kernel, six)
    y, at = six.readings.copy(), six.slot_at
    y[at[1] : at[2]] = np.inf
    y[at[3] : at[4]] = np.nan
    constants = six.constants.copy()
    constants[5] = [0.2, 1e300]  # a trajectory that overflows
    bad = find(kernel, replace(six, readings=y, constants=constants))
    assert bad.status[1] == "failed" and bad.reason[1] == "not_finite_at_start"
    assert bad.status[5] in ("failed", "not_converged")
    assert np.allclose(bad.theta[3], MODEL.prior_mean, atol=1e-3)  # no readings: the prior
    for i in (0, 2, 4):
        np.testing.assert_array_equal(bad.theta[i], alone.theta[i])
        np.testing.assert_array_equal(bad.hessian[i], alone.hessian[i])
    parts = find(kernel, six.take(np.array([4, 0])))
    np.testing.assert_array_equal(parts.theta, alone.theta[[4, 0]])


def test_a_patient_with_a_thousand_times_the_data_is_fitted_beside_the_others(kernel, six):
    """Memory goes with one patient's readings, not with readings times parameters; the neighbour keeps its bits."""
    rng = np.random.default_rng(0)
    days, n = 300, 6  # of one-day patients, and one of 300 days with a reading every minute and a half: 1000 times as many readings
    slots = np.arange(0, 1440.0 * days, 1.5)
    long = build(slots, events(rng, days), MODEL.step)
    y = np.concatenate([six.readings, 130 + 30 * np.sin(slots / 400)[:, None] + 5 * rng.standard_normal((len(slots), 1))])
    both = Data(
        np.concatenate([six.constants, [[0.2, 130.0]]]), np.append(six.slot_at, len(y)), np.concatenate([six.step_at, six.step_at[-1] + long.ends]),
        np.concatenate([six.lengths, long.lengths]), np.concatenate([six.rates, long.rates]), np.concatenate([six.doses, long.doses]),
        np.concatenate([six.fresh, long.fresh]), y,
    )
    assert len(slots) > 990 * 289
    theta, who = np.tile(MODEL.prior_mean, (n + 1, 1)), np.arange(n + 1)
    for together, alone in zip(kernel.derivatives(theta, who, both), kernel.derivatives(theta[:n], who[:n], six)):
        np.testing.assert_array_equal(together[:n], alone)
        assert np.isfinite(together[n]).all()


def test_the_best_of_several_starts_is_kept(kernel, six):
    prior = prior_of(MODEL, 6)
    far = prior.mean + 3 * prior.sd * np.array([1, -1, 1, -1, 1, -1, 1, -1])
    one = mode.find_from(kernel, six, prior, [prior.mean], 60)
    both = mode.find_from(kernel, six, prior, [far, prior.mean], 60, all_starts=True)
    assert (both.status == "converged").all() and (both.objective <= one.objective + 1e-6).all()
    stopped = mode.find_from(kernel, six, prior, [far], 5)
    rescued = mode.find_from(kernel, six, prior, [far, one.theta], 5)
    assert (stopped.reason == "iteration_limit").all() and (rescued.status == "converged").all()


@pytest.mark.slow
def test_intervals_cover_the_truth(kernel):
    """90 % intervals of every parameter hold the truth in 86-94 % of patients drawn from the prior (+- 3 standard errors)."""
    truth = MODEL.prior_mean + MODEL.prior_sd * np.random.default_rng(4).standard_normal((400, 8))
    data = cohorts.data(cohorts.day(MODEL.natural(truth), 4), MODEL.step)
    found = find(kernel, data)
    assert (found.status == "converged").mean() > 0.99
    ok = found.status == "converged"
    keys = [(str(i), "") for i in range(ok.sum())]
    drawn = posterior.sample(
        kernel, data.take(ok), prior_of(MODEL, ok.sum()), found.theta[ok], posterior.covariance(found.hessian[ok]), keys, 1, 640
    )
    low, high = posterior.quantiles(drawn.draws.swapaxes(1, 2), drawn.weights[:, None], [0.05, 0.95])
    covered = ((truth[ok] >= low) & (truth[ok] <= high)).mean(0)
    assert (np.abs(covered - 0.9) < 0.045).all(), covered
