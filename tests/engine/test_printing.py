"""The vectorisable functions against NumPy over the whole range, and expressions against their symbolic values."""

import numpy as np
import sympy as sp

from twinlib.engine.printing import Hoist, text


def test_exp_log_and_tanh_are_exact_to_rounding(kernel):
    m = kernel.module
    x = np.concatenate([np.linspace(-700, 700, 4001), np.linspace(-1, 1, 4001), [0.0]])
    got = np.array([m.exp_(v) for v in x])
    np.testing.assert_allclose(got, np.exp(x), rtol=2e-15)
    assert m.exp_(-1e9) < 1e-300 and m.exp_(1e9) > 1e300
    y = np.concatenate([np.logspace(-300, 300, 4001), np.linspace(0.5, 2, 4001)])
    np.testing.assert_allclose([m.log_(v) for v in y], np.log(y), rtol=4e-16, atol=4e-16)
    assert m.log_(0.0) == -np.inf and np.isnan(m.log_(-1.0)) and np.isnan(m.log_(np.nan))
    np.testing.assert_allclose([m.tanh_(v) for v in x], np.tanh(x), atol=4e-16)


def test_printed_expressions_have_their_symbolic_values(kernel):
    a, b = sp.symbols("a b", positive=True)
    space = {"math": __import__("math"), **{n: getattr(kernel.module, n) for n in ("exp_", "log_", "tanh_")}}
    for e in (
        a**3 / b**2, sp.sqrt(a) - 1 / sp.sqrt(b), a**sp.Rational(7, 5), a**b, sp.exp(-a / b), sp.log(1 + a), sp.tanh(a - b),
        sp.Piecewise((a - b, a > b), (b**2, a < b / 2), (a * b, True)), sp.Rational(1, 3) * a + 2,
    ):
        for values in ((0.7, 1.9), (2.5, 0.3), (1.2, 1.3)):
            got = eval(text(e), space | {"a": values[0], "b": values[1]})  # noqa: S307  (our own text)
            assert abs(got - float(e.subs({a: values[0], b: values[1]}))) < 1e-12 * max(abs(got), 1)


def test_what_does_not_vary_is_hoisted():
    x, p, q = sp.symbols("x p q", real=True)
    hoist = Hoist({x})
    e = p * q * x + sp.exp(p) * sp.Piecewise((x, x > q), (sp.Integer(0), True)) + p / q
    reduced = hoist(e)
    back = {k: v for v, k in hoist.table.items()}
    assert sp.simplify(reduced.subs(back) - e) == 0
    assert all(x not in v.free_symbols for v in back.values())
    assert reduced.free_symbols - {x} <= set(back)
