"""Error models, censoring, several signals and derivatives against scipy.stats, plain NumPy and adaptive integration."""

import numpy as np
import pytest
from scipy import stats
from scipy.integrate import solve_ivp
from scipy.linalg import expm

from twinlib.engine import contract
from twinlib.engine.contract import Model, Parameter, Signal, State, additive, quantity
from twinlib.engine.kernel import Data, Kernel
from twinlib.engine.schedule import Drive, build

from .drug import Drug, Saturable
from .tumour import Tumour

LOG_2PI = np.log(2 * np.pi)
TIMES = np.array([0.5, 1.0, 2.0, 3.5, 6.0, 9.0, 14.0, 24.0, 36.0])  # h
DOSES = (Drive(np.array([0.0, 12.0]), np.array([100.0, 80.0]), np.zeros(2), 0.0), Drive(np.array([5.0]), np.array([50.0]), np.zeros(1), 0.5))


def drug_rates(a, p, oral=0.0, venous=0.0, saturable=False):
    ka, cl, v, q, v2, f = p
    elimination = cl / v * a[1] * ((a[1] / v) / (a[1] / v + 2.0) if saturable else 1.0)
    return np.array([
        f * oral - ka * a[0], venous + ka * a[0] - elimination - q / v * a[1] + q / v2 * a[2], q / v * a[1] - q / v2 * a[2],
    ])


def concentrations(p, saturable=False):
    """Concentrations at TIMES by DOP853 at 1e-11, event by event."""
    a, out = np.zeros(3), {}
    edges = sorted({0.0, 5.0, 5.5, 12.0, *TIMES})
    for begin, end in zip(edges, edges[1:]):
        a[0] += p[5] * {0.0: 100.0, 12.0: 80.0}.get(begin, 0.0)
        rate = 100.0 if begin == 5.0 else 0.0
        a = solve_ivp(lambda t, a: drug_rates(a, p, 0, rate, saturable), (begin, end), a, "DOP853", rtol=1e-11, atol=1e-12).y[:, -1]  # noqa: B023
        out[end] = a[1] / p[2]
    return np.array([out[t] for t in TIMES])


def data_of(model, readings, times=TIMES, drives=DOSES):
    step = Kernel(model).nominal_step
    return Data.of(np.zeros((1, len(model.constants))), [build(times, drives, step)], [np.reshape(readings, (len(times), -1))])


@pytest.fixture(scope="module")
def readings():
    p = Drug().natural(Drug().prior_mean + 0.2)
    return concentrations(p) * np.exp(0.1 * np.random.default_rng(0).standard_normal(len(TIMES)))


def test_the_exact_propagator_is_the_matrix_exponential(readings):
    model = Drug()
    kernel = Kernel(model)
    assert kernel.module.exact_step and not kernel.module.sensitive
    theta = model.prior_mean + np.array([0.3, -0.2, 0.1, 0.2, -0.4])
    p = model.natural(theta)
    assert p[4] == 40.0  # the same for everybody, not fitted
    data = data_of(model, readings)
    assert len(data.lengths) == len({0.0, 5.0, 5.5, 12.0, *TIMES}) - 1  # no step but from event to event
    got = kernel.simulate(theta[None], [0], data, np.zeros((len(TIMES), 0)), np.zeros((1, 0)))[:, 0]
    np.testing.assert_allclose(got, concentrations(p), rtol=1e-8)
    ka, cl, v, q, v2, f = p
    A = np.array([[-ka, 0, 0], [ka, -(cl + q) / v, q / v2], [0, q / v, -q / v2]])
    stiff = np.log(np.array([400.0, 900.0, 12.0, 700.0, 1.0]))
    for t in (1e-9, 1e-3, 3.0, 4000.0):  # squarings from none to many, side by side
        one = data_of(model, [np.nan], np.array([t]), (Drive(np.array([0.0]), np.array([100.0]), np.zeros(1), 0.0), Drive(*[np.zeros(0)] * 3, 0.5)))
        lanes = kernel.simulate(np.stack([theta, stiff, theta]), [0, 0, 0], one, np.zeros((3, 0)), np.zeros((3, 0)))[:, 0]
        np.testing.assert_allclose(lanes[0], (expm(A * t) @ [f * 100, 0, 0])[1] / v, rtol=1e-9, atol=1e-12)
        assert lanes[2] == lanes[0]


@pytest.mark.parametrize("kind", ["additive", "proportional", "combined", "log_normal", "student_t"])
def test_error_models_are_those_of_scipy(readings, kind):
    sd, cv, nu = 0.2, 0.15, 4.0
    unit = quantity(sd, "mg/L")
    made = {
        "additive": lambda v: contract.additive(v, unit), "proportional": lambda v: contract.proportional(v, cv),
        "combined": lambda v: contract.combined(v, unit, cv), "log_normal": lambda v: contract.log_normal(v, cv),
        "student_t": lambda v: contract.student_t(v, unit, nu),
    }[kind]
    model = type("Other", (Drug,), {"observe": lambda self, x, p, c: {"concentration": made(x.central / p.volume)}})()
    kernel = Kernel(model)
    f = concentrations(model.natural(model.prior_mean))
    logpdf = {
        "additive": stats.norm(f, sd).logpdf, "proportional": stats.norm(f, cv * f).logpdf,
        "combined": stats.norm(f, np.hypot(sd, cv * f)).logpdf, "student_t": stats.t(nu, f, sd).logpdf,
        "log_normal": lambda y: stats.norm(np.log(f), cv).logpdf(np.log(y)),
    }[kind]
    y = readings.copy()
    y[3] = np.nan
    seen = ~np.isnan(y)
    expected = -logpdf(y)[seen].sum() - 0.5 * LOG_2PI * seen.sum()
    got = kernel.likelihood(model.prior_mean[None], [0], data_of(model, y))[0]
    np.testing.assert_allclose(got, expected, rtol=1e-7)


def test_censored_readings_are_probabilities(readings):
    model = type("Assay", (Drug,), {
        "signals": (Signal("concentration", "mg/L", lower=0.6, upper=2.5),),
        "observe": lambda self, x, p, c: {"concentration": additive(x.central / p.volume, quantity(0.2, "mg/L"))},
    })()
    f = concentrations(model.natural(model.prior_mean))
    y = np.clip(f + 0.1, 0.6, 2.5)
    assert (y == 0.6).any() and (y == 2.5).any()
    terms = np.where(y == 0.6, stats.norm.logcdf((0.6 - f) / 0.2), np.where(y == 2.5, stats.norm.logsf((2.5 - f) / 0.2), stats.norm(f, 0.2).logpdf(y)))
    kernel = Kernel(model)
    got = kernel.likelihood(model.prior_mean[None], [0], data_of(model, y))[0]
    np.testing.assert_allclose(got, -terms.sum() - 0.5 * LOG_2PI * len(y), rtol=1e-7)
    for z in (-3.0, -29.9, -30.1, -200.0, 5.0):  # far in the tail by its asymptotic series
        ratio, twice = kernel.module.beyond(z)
        np.testing.assert_allclose(ratio, np.exp(stats.norm.logpdf(z) - stats.norm.logcdf(z)), rtol=1e-5)
        np.testing.assert_allclose(twice, -2 * stats.norm.logcdf(z) - LOG_2PI, rtol=1e-6)


@pytest.mark.parametrize("model", [Saturable(), Tumour(), Drug()], ids=lambda m: m.name)
def test_derivatives_agree_with_copies_and_with_differences_of_an_independent_solution(model, readings):
    kernel = Kernel(model)
    theta = model.prior_mean + 0.1 * np.arange(1, len(model.fitted) + 1)
    if model.name == "tumour":
        times = np.arange(1.0, 40.0)
        drive = Drive(np.array([12.3]), np.array([10.0]), np.array([9.1]), 0.0)
        data = Data.of(np.array([[10.0]]), [build(times, [drive], 0.05)], [np.linspace(10, 30, 39)[:, None]])

        def objective(theta):
            g, cap, kill = np.exp(theta)
            x, now, out = np.array([10.0, 0.0]), 0.0, []
            for t in sorted({*times, 12.3, 21.4}):
                rate = 10.0 / 9.1 if 12.3 <= now < 21.4 else 0.0
                f = lambda t, x: [g * x[0] * (1 - x[0] / cap) - kill * x[1] * x[0], rate - 0.5 * x[1]]  # noqa: B023
                x, now = solve_ivp(f, (now, t), x, "DOP853", rtol=1e-11, atol=1e-11).y[:, -1], t
                out += [x[0]] if t in times else []
            return 0.5 * ((np.linspace(10, 30, 39) - out) ** 2).sum()
    else:
        data = Data.of(np.zeros((1, 0)), [build(TIMES, DOSES, 0.02 if model.name == "saturable_drug" else np.inf)], [readings[:, None]])

        def objective(theta):
            f = concentrations(model.natural(theta), model.name == "saturable_drug")
            s = 0.05**2 + (0.1 * f) ** 2
            return 0.5 * ((readings - f) ** 2 / s + np.log(s)).sum()

    nll, g, h = kernel.derivatives(theta[None], [0], data)
    np.testing.assert_allclose(nll[0], objective(theta), rtol=1e-6)
    for j in range(len(theta)):
        step = np.zeros(len(theta))
        step[j] = 1e-4
        slope = (objective(theta + step) - objective(theta - step)) / 2e-4
        np.testing.assert_allclose(g[0, j], slope, rtol=3e-3, atol=3e-3 * np.sqrt(h[0, j, j]))
    copies = kernel.derivatives(theta[None], [0], data, exact=False)
    scale = np.sqrt(np.diag(h[0]))
    np.testing.assert_allclose(copies[1][0] / scale, g[0] / scale, atol=3e-3 * max(1, np.abs(g[0] / scale).max()))
    np.testing.assert_allclose(copies[2][0] / np.outer(scale, scale), h[0] / np.outer(scale, scale), atol=2e-3)
    if kernel.module.sensitive:
        exact = kernel.derivatives(theta[None], [0], data, exact=True)
        np.testing.assert_array_equal(exact[1], g)


@pytest.mark.parametrize("kind", ["student_t", "censored", "proportional"])
def test_the_gradient_is_that_of_the_likelihood_for_every_error_model(kind):
    reading = {
        "student_t": lambda x, p: contract.student_t(x.volume, quantity(1.5, "mL") * p.kill_rate / quantity(0.05, "L/mg/day"), 4.0),
        "censored": lambda x, p: contract.combined(x.volume, quantity(1.0, "mL"), 0.05),
        "proportional": lambda x, p: contract.proportional(x.volume, 0.1),
    }[kind]
    model = type("Kind", (Tumour,), {
        "signals": (Signal("volume", "mL", lower=11.0, upper=28.0) if kind == "censored" else Signal("volume", "mL"),),
        "observe": lambda self, x, p, c: {"volume": reading(x, p)},
    })()
    kernel = Kernel(model)
    times = np.arange(1.0, 40.0)
    drive = Drive(np.array([12.3]), np.array([10.0]), np.array([9.1]), 0.0)
    y = np.linspace(9, 32, 39) + np.random.default_rng(0).standard_normal(39)
    data = Data.of(np.array([[10.0]]), [build(times, [drive], 0.25)], [y[:, None]])
    theta = model.prior_mean + 0.1
    g = kernel.derivatives(theta[None], [0], data)[1][0]
    for j in range(3):
        steps = np.tile(theta, (2, 1))
        steps[0, j] += 1e-5
        steps[1, j] -= 1e-5
        up, down = kernel.likelihood(steps, [0, 0], data)
        np.testing.assert_allclose(g[j], (up - down) / 2e-5, rtol=1e-5)
    copies = kernel.derivatives(theta[None], [0], data, exact=False)
    np.testing.assert_allclose(copies[1][0], g, rtol=5e-3, atol=0.02)


class Pair(Model):
    """Two noisy, coupled states, seen by two signals: linear, so a plain Kalman filter is exact."""

    name, version, step = "pair", "1", 0.05
    states = (State("a", "", noise=True), State("b", "", noise=True))
    parameters = (Parameter("rate", "1/min", 0.3, 0.5, ""), Parameter("size", "", 0.5, 0.5, ""))
    signals = (Signal("first", ""), Signal("second", ""))

    def dynamics(self, x, u, p, c):
        return {"a": -p.rate * x.a + quantity(0.2, "1/min") * x.b, "b": -quantity(0.1, "1/min") * x.b}

    def initial(self, p, c):
        return {"a": 1.0, "b": 2.0}

    def initial_variance(self, p, c):
        return {"a": 0.3, "b": 0.2}

    def noise(self, x, u, p, c):
        return {"a": p.size**2 / quantity(1, "min"), "b": quantity(0.04, "1/min")}

    def observe(self, x, p, c):
        return {"first": additive(x.a, 0.1), "second": additive(x.a - 2 * x.b, 0.3)}


def test_several_signals_at_irregular_times_are_a_plain_kalman_filter():
    model, rng = Pair(), np.random.default_rng(5)
    kernel = Kernel(model)
    times = np.sort(rng.uniform(0, 30, 40))
    y = rng.standard_normal((40, 2))
    y[rng.random((40, 2)) < 0.3] = np.nan
    data = Data.of(np.zeros((1, 0)), [build(times, [], model.step)], [y])
    rate, size = 0.4, 0.6
    A, Q, H, R = np.array([[-rate, 0.2], [0, -0.1]]), np.diag([size**2, 0.04]), np.array([[1.0, 0], [1, -2]]), np.diag([0.01, 0.09])
    m, P, now, nll = np.array([1.0, 2.0]), np.diag([0.3, 0.2]), 0.0, 0.0
    for t, row in zip(times, y):
        d, now = t - now, t
        block = expm(np.block([[-A, Q], [np.zeros((2, 2)), A.T]]) * d)  # Van Loan 1978
        phi = block[2:, 2:].T
        m, P = phi @ m, phi @ P @ phi.T + phi @ block[:2, 2:]
        k = ~np.isnan(row)
        if k.any():
            S = H[k] @ P @ H[k].T + R[np.ix_(k, k)]
            e = row[k] - H[k] @ m
            nll += 0.5 * (e @ np.linalg.solve(S, e) + np.linalg.slogdet(S)[1])
            K = P @ H[k].T @ np.linalg.inv(S)
            m, P = m + K @ e, P - K @ H[k] @ P
    theta = np.log([[rate, size]])
    np.testing.assert_allclose(kernel.likelihood(theta, [0], data)[0], nll, rtol=1e-7)
    # and the smoother's replay passes the last state of the filter
    replay = kernel.simulate(theta, [0], data, *kernel.smooth(theta, [0], data))
    np.testing.assert_allclose(replay[-1], H @ m, atol=1e-6)
