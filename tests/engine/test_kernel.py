"""The kernel against an independent filter (SciPy's DOP853 and plain NumPy) and against closed properties."""

import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from scipy.integrate import solve_ivp

from twinlib.engine.kernel import Data
from twinlib.engine.schedule import build
from twinlib.models import glucose_insulin as g
from twinlib.models.glucose_insulin import MODEL

from .conftest import BASAL

REPO = Path(__file__).resolve().parents[2]
KD, KE, LAG, P2, SENSOR_SD, VG, VI = (q.magnitude for q in (g.KD, g.KE, g.LAG, g.P2, g.SENSOR_SD, g.VG, g.VI))
F = g.F


def _rates(x, insulin, meal, p, basal):
    si, sg, gb, kempt, kabs, ka2, _, tau = p
    i1, i2, ip, act, q1, q2, qg, g, ig, d = x
    return np.array([
        insulin / VI - KD * i1, KD * i1 - ka2 * i2, ka2 * i2 - KE * ip, P2 * (si * (ip - basal / VI / KE) - act),
        meal - kempt * q1, kempt * (q1 - q2), kempt * q2 - kabs * qg,
        sg * (gb - g) - act * g + F / VG * kabs * qg + d, (g - ig) / LAG, -d / tau,
    ])


def _matrix(x, p):
    a = np.zeros((3, 3))
    a[0, 0], a[0, 2], a[1, 0], a[1, 1], a[2, 2] = -(p[1] + x[3]), 1.0, 1 / LAG, -1 / LAG, -1 / p[7]
    return a


def propagate(x, begin, end, drives, p, basal):
    """State at `end` from `begin` (min), with transition and noise covariance of the noisy states, at 1e-10, event by event."""
    insulin, meals = drives
    drive = np.diag([0.0, 0.0, 2 * p[6] ** 2 / p[7]])
    z = np.concatenate([x, np.eye(3).ravel(), np.zeros(9)])
    edges = {begin, end, *insulin.times, *(insulin.times + insulin.durations), *meals.times, *(meals.times + 15)}
    edges = sorted(t for t in edges if begin <= t <= end)
    for a, b in zip(edges, edges[1:]):
        z[0] += insulin.amounts[(insulin.times == a) & (insulin.durations == 0)].sum() / VI
        lasting = (insulin.durations > 0) & (insulin.times <= a) & (a < insulin.times + insulin.durations)
        rate = (insulin.amounts[lasting] / insulin.durations[lasting]).sum()
        meal = meals.amounts[(meals.times <= a) & (a < meals.times + 15)].sum() / 15

        def f(t, z):
            m, phi, q = _matrix(z[:10], p), z[10:19].reshape(3, 3), z[19:].reshape(3, 3)
            return np.concatenate([_rates(z[:10], rate, meal, p, basal), (m @ phi).ravel(), (m @ q + q @ m.T + drive).ravel()])  # noqa: B023

        z = solve_ivp(f, (a, b), z, "DOP853", rtol=1e-10, atol=1e-12).y[:, -1]
    return z[:10], z[10:19].reshape(3, 3), z[19:].reshape(3, 3)


def start(p, basal, first):
    return np.array([basal / VI / KD, basal / VI / p[5], basal / VI / KE, 0, 0, 0, 0, first, first, 0.0])


def independent_filter(p, data: Data, drives, times):
    """Innovations, variances and minus log-likelihood by adaptive integration at 1e-10 and matrix algebra."""
    basal, first = data.constants[0]
    y = data.readings[:, 0]
    x = start(p, basal, first)
    P = np.diag([400.0, 400.0, p[6] ** 2])
    H = np.array([0.0, 1.0, 0.0])
    out, now = [], 0.0
    for k, t in enumerate(times):
        if t > now:
            x, phi, q = propagate(x, now, t, drives, p, basal)
            P = phi @ P @ phi.T + q
            now = t
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
    theta, data, drives = patient
    e0, s0, nll0 = independent_filter(MODEL.natural(theta), data, drives, np.arange(200) * 5.0)
    for step, tolerance in ((MODEL.step, 0.05), (0.5, 1e-4)):
        finer = Data.of(data.constants, [build(np.arange(200) * 5.0, drives, step)], [data.readings])
        e, v = kernel.innovations(theta[None], [0], finer)
        np.testing.assert_allclose(e[:, 0], e0, atol=tolerance)
        np.testing.assert_allclose(v[:, 0], s0, rtol=0.2 * tolerance)
        np.testing.assert_allclose(kernel.likelihood(theta[None], [0], finer)[0], nll0, atol=tolerance)


def test_irregular_instants_are_filtered_at_their_own_times(kernel, patient):
    theta, _, drives = patient
    rng = np.random.default_rng(3)
    times = np.sort(rng.uniform(0, 900, 60))
    y = 140 + 30 * np.sin(times / 200) + 5 * rng.standard_normal(60)
    data = Data.of(np.array([[BASAL, 130.0]]), [build(times, drives, 1.0)], [y[:, None]])
    _, _, nll = independent_filter(MODEL.natural(theta), data, drives, times)
    np.testing.assert_allclose(kernel.likelihood(theta[None], [0], data)[0], nll, rtol=1e-5)


def test_replay_of_the_smoothed_noise_is_the_smoothed_signal(kernel, patient):
    """The smoother's signal at a reading equals the mean of a joint Gaussian conditioned on all readings."""
    theta, _, drives = patient
    p, n = MODEL.natural(theta), 60
    rng = np.random.default_rng(1)
    y = 140 + 40 * np.sin(np.arange(n) / 10) + 5 * rng.standard_normal(n)
    y[20:26] = np.nan
    data = Data.of(np.array([[BASAL, 130.0]]), [build(np.arange(n) * 5.0 + 300, drives, 0.5, start=300.0)], [y[:, None]])
    replay = kernel.simulate(theta[None], [0], data, *kernel.smooth(theta[None], [0], data))[:, 0]

    # independent: the signal is affine in (start, noise); condition the joint Gaussian directly
    zero, plain = np.zeros((n, 3)), np.array([[130.0, 130.0, 0.0]])
    base = kernel.simulate(theta[None], [0], data, zero, plain)[:, 0]
    columns, prior = [], np.zeros((3 * n, 3 * n))
    prior[:3, :3] = np.diag([400.0, 400.0, p[6] ** 2])
    x = start(p, BASAL, 130.0)
    for k in range(n):
        for j in range(3):
            noise, begin = zero.copy(), plain.copy()
            if k == 0:
                begin[0, j] += 1
            else:
                noise[k, j] = 1
            columns.append(kernel.simulate(theta[None], [0], data, noise, begin)[:, 0] - base)
        if k > 0:
            x, _, prior[3 * k : 3 * k + 3, 3 * k : 3 * k + 3] = propagate(x, 295 + 5.0 * k, 300 + 5.0 * k, drives, p, BASAL)
    A = np.array(columns).T
    seen = ~np.isnan(y)
    S = A[seen] @ prior @ A[seen].T + SENSOR_SD**2 * np.eye(seen.sum())
    best = prior @ A[seen].T @ np.linalg.solve(S, y[seen] - base[seen])
    np.testing.assert_allclose(replay, base + A @ best, atol=1e-4)


def test_a_lane_does_not_depend_on_its_neighbours(kernel, patient):
    theta, data, drives = patient
    rng = np.random.default_rng(0)
    short = Data.of(data.constants, [build(np.arange(31) * 5.0, drives, 2.5)], [data.readings[:31]])
    both = Data.of(
        np.tile(data.constants, (2, 1)), [build(np.arange(200) * 5.0, drives, 2.5), build(np.arange(31) * 5.0, drives, 2.5)],
        [data.readings, data.readings[:31]],
    )
    thetas = theta + 0.1 * rng.standard_normal((37, 8))
    thetas[5] = np.nan  # a broken neighbour
    who = rng.integers(0, 2, 37)  # long and short patients side by side
    together, derived = kernel.likelihood(thetas, who, both), kernel.derivatives(thetas, who, both)
    noise, begin = kernel.smooth(thetas, who, both)
    replay = kernel.simulate(thetas, who, both, noise, begin)
    to = np.concatenate([[0], np.cumsum(both.slots[who])])
    for i in (0, 4, 6, 15, 16, 36):
        own = short if who[i] else data
        one = (thetas[i : i + 1], [0], own)
        assert kernel.likelihood(*one)[0] == together[i]
        for alone, all_ in zip(kernel.derivatives(*one), derived):
            np.testing.assert_array_equal(alone[0], all_[i])
        alone = kernel.smooth(*one)
        np.testing.assert_array_equal(alone[0], noise[to[i] : to[i + 1]])
        np.testing.assert_array_equal(kernel.simulate(*one, *alone), replay[to[i] : to[i + 1]])
    assert np.isnan(together[5])


def test_taking_rows_gives_their_data(kernel, patient):
    _, data, drives = patient
    parts = [build(np.arange(n) * 5.0, drives, 2.5) for n in (10, 200, 31)]
    three = Data.of(np.arange(6.0).reshape(3, 2), parts, [data.readings[:n] for n in (10, 200, 31)])
    taken = three.take(np.array([2, 0]))
    expected = Data.of(np.array([[4.0, 5.0], [0.0, 1.0]]), [parts[2], parts[0]], [data.readings[:31], data.readings[:10]])
    for name in Data.__dataclass_fields__:
        np.testing.assert_array_equal(getattr(taken, name), getattr(expected, name))
    np.testing.assert_array_equal(three.counts(), [(~np.isnan(data.readings[:n])).sum() for n in (10, 200, 31)])


def test_halving_the_step_changes_little(kernel, patient):
    theta, data, _ = patient
    smoothed = kernel.smooth(theta[None], [0], data)
    a = kernel.simulate(theta[None], [0], data, *smoothed)
    b = kernel.simulate(theta[None], [0], data, *smoothed, halvings=1)
    assert 0 < np.abs(a - b).max() < 0.02


def test_a_reading_beyond_a_limit_says_only_that(kernel, patient):
    theta, data, _ = patient
    y = data.readings.copy()
    y[50] = 400.0
    beyond = y.copy()
    beyond[50] = 480.0
    e = [kernel.likelihood(theta[None], [0], replace(data, readings=r))[0] for r in (y, beyond)]
    assert e[0] == e[1]


def test_going_on_piece_by_piece_gives_the_bits_of_one_run(kernel, patient):
    theta, data, _ = patient
    many = theta + 0.1 * np.random.default_rng(1).standard_normal((19, 8))
    lanes, slots = np.zeros(19, int), len(data.readings)
    noise, begin = kernel.smooth(many, lanes, data)
    whole, natural = kernel.simulate(many, lanes, data, noise, begin).reshape(19, -1), kernel.natural(many)
    state, out, cuts = kernel.begin(natural, lanes, data, begin), [], [0, 1, 2, 57, slots]
    for a, b in zip(cuts, cuts[1:]):
        piece = noise.reshape(19, slots, -1)[:, a:b].reshape(19 * (b - a), -1)
        out.append(kernel.resume(natural, lanes, data.between(a, b), piece, state).reshape(19, -1))
    np.testing.assert_array_equal(np.concatenate(out, axis=1), whole)


def test_disturbances_have_the_covariance_of_each_slot(kernel, patient):
    """Noise over a slot against the exact Lyapunov solution of the flux: an Ornstein-Uhlenbeck process."""
    theta, row, _ = patient
    count = 4000
    rng, lanes, slots = np.random.default_rng(0), np.zeros(4000, int), len(row.readings)
    same = np.tile(theta, (count, 1))
    noise, begin, out, variance = kernel.disturb(same, lanes, row, rng.standard_normal((count * slots, 3)), rng.standard_normal((count, 3)))
    sd, tau = MODEL.natural(theta)[6:8]
    flux = noise.reshape(count, slots, 3)[:, 1:20, 2]
    np.testing.assert_allclose(flux.var(), sd**2 * (1 - np.exp(-2 * 5 / tau)), rtol=0.02)
    np.testing.assert_allclose(begin[:, 2].var(), sd**2, rtol=0.1)
    assert (variance == SENSOR_SD**2).all() and np.abs(np.corrcoef(flux[:, 0], flux[:, 1])[0, 1]) < 0.06
    np.testing.assert_allclose(out, kernel.simulate(same, lanes, row, noise, begin), rtol=0, atol=1e-9)


@pytest.mark.slow
def test_a_process_that_compiles_gives_the_bits_of_one_that_finds_it_done(tmp_path):
    """Linked anew, code that numba has just compiled differs in the last bit from what it loads: `compile` always loads."""
    script = (
        "import hashlib, sys; import numpy as np; from twinlib.engine.kernel import Data, Kernel; from twinlib.engine.schedule import Schedule\n"
        "from twinlib.models.glucose_insulin import MODEL\n"
        "k, n = Kernel(MODEL), 600; k.compile(); rng = np.random.default_rng(1)\n"
        "rates, doses = rng.random((n, len(MODEL.inputs))), rng.random((n, sum(i.spread == 0 for i in MODEL.inputs)))\n"
        "step = Schedule(np.arange(n + 1), np.full(n, 5.0), rates, doses, np.ones(n, bool))\n"
        "data = Data.of(np.array([[0.5, 120.0]]), [step], [120 + 30 * rng.random((n + 1, 1))])\n"
        "theta, who = MODEL.prior_mean[None], np.zeros(1, int); noise = k.smooth(theta, who, data)\n"
        "found = [*noise, *k.innovations(theta, who, data), *[k.simulate(theta, who, data, *noise, halvings=h) for h in (0, 1)]]\n"
        "print(hashlib.sha256(b''.join(np.ascontiguousarray(x).tobytes() for x in found)).hexdigest(), np.isfinite(found[-1]).all())"
    )
    environment = os.environ | {"NUMBA_CACHE_DIR": str(tmp_path / "numba"), "TWINLIB_KERNELS": str(tmp_path / "kernels"), "PYTHONPATH": str(REPO)}
    runs = [subprocess.run([sys.executable, "-c", script], env=environment, capture_output=True, text=True, check=True).stdout.split() for _ in range(2)]
    assert runs[0] == runs[1] and runs[0][1] == "True"
    assert list((tmp_path / "kernels").glob("*.compiled"))
