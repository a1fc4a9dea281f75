"""The kernel against an independent filter (SciPy's DOP853 and plain NumPy) and against closed properties."""

import numpy as np
from scipy.integrate import solve_ivp

from twinlib.engine.kernel import Data
from twinlib.models.glucose_insulin import KD, KE, LAG, P2, SENSOR_SD, VG, VI, F


def _rates(x, u, p, basal):
    si, sg, gb, kempt, kabs, ka2, _, tau = p
    i1, i2, ip, act, q1, q2, qg, g, ig, d = x
    return np.array([
        u[0] / VI - KD * i1, KD * i1 - ka2 * i2, ka2 * i2 - KE * ip, P2 * (si * (ip - basal / VI / KE) - act),
        u[1] - kempt * q1, kempt * (q1 - q2), kempt * q2 - kabs * qg,
        sg * (gb - g) - act * g + F / VG * kabs * qg + d, (g - ig) / LAG, -d / tau,
    ])


def _matrix(x, p):
    a = np.zeros((3, 3))
    a[0, 0], a[0, 2], a[1, 0], a[1, 1], a[2, 2] = -(p[1] + x[3]), 1.0, 1 / LAG, -1 / LAG, -1 / p[7]
    return a


def propagate(x, u, p, basal):
    """State after five minutes of inputs u (5, 2), with transition and noise covariance of the noisy states, at 1e-10."""
    z = np.concatenate([x, np.eye(3).ravel(), np.zeros(9)])
    drive = np.diag([0.0, 0.0, 2 * p[6] ** 2 / p[7]])
    for minute in u:

        def f(t, z):
            a, phi, q = _matrix(z[:10], p), z[10:19].reshape(3, 3), z[19:].reshape(3, 3)
            return np.concatenate([_rates(z[:10], minute, p, basal), (a @ phi).ravel(), (a @ q + q @ a.T + drive).ravel()])  # noqa: B023

        z = solve_ivp(f, (0, 1), z, "DOP853", rtol=1e-10, atol=1e-12).y[:, -1]
    return z[:10], z[10:19].reshape(3, 3), z[19:].reshape(3, 3)


def independent_filter(p, data: Data):
    """Innovations, variances and minus log-likelihood by adaptive integration at 1e-10 and matrix algebra."""
    basal, first = data.constants[0]
    u, y = data.inputs.reshape(-1, 2), data.readings[0]
    x = np.array([basal / VI / KD, basal / VI / p[5], basal / VI / KE, 0, 0, 0, 0, first, first, 0.0])
    P = np.diag([400.0, 400.0, p[6] ** 2])
    H = np.array([0.0, 1.0, 0.0])
    out = []
    for k in range(y.size):
        if k > 0:
            x, phi, q = propagate(x, u[5 * (k - 1) : 5 * k], p, basal)
            P = phi @ P @ phi.T + q
        if np.isnan(y[k]):
            out.append((0.0, 1.0))
            continue
        e, s = y[k] - x[8], P[1, 1] + SENSOR_SD**2
        gain = P @ H / s
        x[7:] += gain * e
        P = P - np.outer(gain, H @ P)
        out.append((e, s))
    e, s = np.array(out).T
    return e, s, 0.5 * np.sum(e**2 / s + np.log(s))


def test_filter_agrees_with_an_independent_filter(kernel, patient):
    theta, data = patient
    data = Data(data.constants, data.inputs[:, : 150 * 10], data.readings[:, :150])
    nll, e, v = kernel.filter(theta[None], [0], data, full=True)
    e0, s0, nll0 = independent_filter(theta, data)
    np.testing.assert_allclose(e[0], e0, atol=2e-3)
    np.testing.assert_allclose(v[0], s0, rtol=1e-5)
    np.testing.assert_allclose(nll[0], nll0, rtol=1e-6)


def test_replay_of_the_smoothed_noise_is_the_smoothed_signal(kernel, patient):
    """The smoother's signal at a reading equals the mean of a joint Gaussian conditioned on all readings."""
    theta, data = patient
    data = Data(data.constants, data.inputs[:, : 60 * 10], data.readings[:, :60])
    noise, start = kernel.smooth(theta[None], [0], data)
    replay = kernel.simulate(theta[None], [0], data, noise, start)[0]

    # independent: the signal is affine in (start, noise); condition the joint Gaussian directly
    n = data.readings.shape[1]
    zero, plain = np.zeros((1, n, 3)), np.array([[data.constants[0, 1]] * 2 + [0.0]])
    base = kernel.simulate(theta[None], [0], data, zero, plain)[0]
    basal, first = data.constants[0]
    x = np.array([basal / VI / KD, basal / VI / theta[5], basal / VI / KE, 0, 0, 0, 0, first, first, 0.0])
    columns, prior = [], np.zeros((3 * n, 3 * n))
    prior[:3, :3] = np.diag([400.0, 400.0, theta[6] ** 2])
    for k in range(n):
        for j in range(3):
            noise, start = zero.copy(), plain.copy()
            if k == 0:
                start[0, j] += 1
            else:
                noise[0, k, j] = 1
            columns.append(kernel.simulate(theta[None], [0], data, noise, start)[0] - base)
        if k > 0:
            x, _, prior[3 * k : 3 * k + 3, 3 * k : 3 * k + 3] = propagate(x, data.inputs.reshape(-1, 2)[5 * (k - 1) : 5 * k], theta, basal)
    A = np.array(columns).T
    seen = ~np.isnan(data.readings[0])
    S = A[seen] @ prior @ A[seen].T + SENSOR_SD**2 * np.eye(seen.sum())
    best = prior @ A[seen].T @ np.linalg.solve(S, data.readings[0, seen] - base[seen])
    np.testing.assert_allclose(replay, base + A @ best, atol=1e-4)


def test_a_lane_does_not_depend_on_its_neighbours(kernel, patient):
    theta, data = patient
    rng = np.random.default_rng(0)
    thetas = theta * np.exp(0.1 * rng.standard_normal((37, 8)))
    thetas[5] = np.nan  # a broken neighbour
    together, _, _ = kernel.filter(thetas, np.zeros(37, int), data, full=False)
    for i in (0, 4, 6, 15, 16, 36):
        alone, _, _ = kernel.filter(thetas[i : i + 1], [0], data, full=False)
        assert alone[0] == together[i]
    assert np.isnan(together[5])


def test_halving_the_step_changes_little(kernel, patient):
    theta, data = patient
    noise, start = kernel.smooth(theta[None], [0], data)
    a = kernel.simulate(theta[None], [0], data, noise, start)
    b = kernel.simulate(theta[None], [0], data, noise, start, halvings=1)
    assert 0 < np.abs(a - b).max() < 0.01
