"""Expressions as Python text that numba turns into vector instructions: no calls into libm, no branches."""

from __future__ import annotations

import sympy as sp
from sympy.logic.boolalg import BooleanAtom
from sympy.printing.pycode import PythonCodePrinter

# exp and log without branches or calls, so that LLVM vectorises the loops that use them. exp: Taylor polynomial after reduction by log 2
# (Cody & Waite 1980); log: the odd series of artanh on [3/4, 3/2). Relative errors below 1e-15 (tests/engine/test_printing.py).
FUNCTIONS = '''
# no reassociation here: the argument reduction of exp relies on the order of its operations
EXACT = dict(fastmath={"contract", "arcp", "nsz"}, error_model="numpy", cache=True)


def _intrinsic(build):
    @intrinsic
    def made(context, x):
        return types.float64(types.float64), build
    return made


def _round(context, builder, signature, arguments):
    double = ir.DoubleType()
    return builder.call(builder.module.declare_intrinsic("llvm.nearbyint", [double]), arguments)


def _power_of_two(context, builder, signature, arguments):
    word, double = ir.IntType(64), ir.DoubleType()
    n = builder.fptosi(arguments[0], word)
    return builder.bitcast(builder.shl(builder.add(n, ir.Constant(word, 1023)), ir.Constant(word, 52)), double)


def _shifted(builder, x):
    word = ir.IntType(64)
    bits = builder.bitcast(x, word)
    up = builder.add(bits, ir.Constant(word, 1 << 51))
    return bits, builder.sub(builder.ashr(up, ir.Constant(word, 52)), ir.Constant(word, 1023))


def _exponent_of(context, builder, signature, arguments):
    return builder.sitofp(_shifted(builder, arguments[0])[1], ir.DoubleType())


def _mantissa_of(context, builder, signature, arguments):
    word = ir.IntType(64)
    bits, exponent = _shifted(builder, arguments[0])
    return builder.bitcast(builder.sub(bits, builder.shl(exponent, ir.Constant(word, 52))), ir.DoubleType())


nearest, power_of_two, exponent_of, mantissa_of = (_intrinsic(b) for b in (_round, _power_of_two, _exponent_of, _mantissa_of))


@njit(**EXACT)
def exp_(x):
    x = min(max(x, -708.0), 709.0)
    k = nearest(x*1.4426950408889634)
    r = (x - k*0.693359375) - k*-2.121944400546905827679e-4
    # the polynomial in pairs (Estrin 1960): a short chain of dependent operations, where Horner's rule waits for each
    r2 = r*r
    r4 = r2*r2
    low = (1.0 + r) + r2*(0.5 + r*(1.0/6.0))
    middle = (1.0/24.0 + r*(1.0/120.0)) + r2*(1.0/720.0 + r*(1.0/5040.0))
    high = (1.0/40320.0 + r*(1.0/362880.0)) + r2*(1.0/3628800.0 + r*(1.0/39916800.0)) + r4*(1.0/479001600.0)
    y = low + r4*(middle + r4*high)
    return y*power_of_two(k)


@njit(**EXACT)
def log_(x):
    m = mantissa_of(x)
    s = (m - 1.0)/(m + 1.0)
    z = s*s
    z2 = z*z
    z4 = z2*z2
    low = (1.0 + z*(1.0/3.0)) + z2*(0.2 + z*(1.0/7.0))
    middle = (1.0/9.0 + z*(1.0/11.0)) + z2*(1.0/13.0 + z*(1.0/15.0))
    y = low + z4*(middle + z4*(1.0/17.0 + z*(1.0/19.0)))
    # zero, negative and non-finite arguments have no place in the bits above
    return exponent_of(x)*0.6931471805599453 + 2.0*s*y if 0.0 < x < 1.7e308 else (-np.inf if x == 0.0 else np.nan)


@njit(**EXACT)
def tanh_(x):
    return 1.0 - 2.0/(exp_(2.0*x) + 1.0)
'''


def _product(base: str, n: int) -> str:
    """The nth power by squaring; the compiler works out equal factors once."""
    if n == 1:
        return base
    half = _product(base, n // 2)
    return f"({half}*{half})" if n % 2 == 0 else f"({half}*{half}*{base})"


class _Printer(PythonCodePrinter):
    def _print_Float(self, e):
        return repr(float(e))

    def _print_Integer(self, e):
        return repr(float(e))

    def _print_Rational(self, e):
        return f"({float(e.p)!r}/{float(e.q)!r})"

    def _print_Pow(self, e, **kwargs):
        if e.exp.is_Integer and 1 <= abs(int(e.exp)) <= 16:
            product = _product(self.parenthesize(e.base, 100), abs(int(e.exp)))
            return product if e.exp > 0 else f"(1.0/{product})"
        if e.exp.is_Number and abs(float(e.exp)) == 0.5:  # a Float as well as a Rational, which are not equal
            root = f"math.sqrt({self._print(e.base)})"
            return root if e.exp > 0 else f"(1.0/{root})"
        return f"exp_({self._print(e.exp)}*log_({self._print(e.base)}))"

    def _print_exp(self, e):
        return f"exp_({self._print(e.args[0])})"

    def _print_log(self, e):
        return f"log_({self._print(e.args[0])})"

    def _print_tanh(self, e):
        return f"tanh_({self._print(e.args[0])})"

    def _print_Piecewise(self, e):
        (value, condition), *rest = e.args
        if condition == True or not rest:  # noqa: E712  (sympy's true)
            return self._print(value)
        return f"({self._print(value)} if {self._print(condition)} else {self._print(sp.Piecewise(*rest, evaluate=False))})"


text = _Printer({"fully_qualified_modules": True}).doprint


class Hoist:
    """Replaces maximal sub-expressions that do not vary in time by coefficients k0, k1, ..., computed once per lane (`table`)."""

    def __init__(self, varying: set[sp.Symbol]):
        self.varying, self.table = varying, {}

    def __call__(self, e: sp.Expr) -> sp.Expr:
        e = sp.sympify(e)
        if isinstance(e, BooleanAtom):
            return e
        if not e.free_symbols & self.varying:
            return self._coefficient(e)
        if not e.args:
            return e
        if e.is_Add or e.is_Mul:
            fixed = [a for a in e.args if not a.free_symbols & self.varying]
            rest = [self(a) for a in e.args if a.free_symbols & self.varying]
            return e.func(*rest, *([self._coefficient(e.func(*fixed))] if fixed else []))
        if isinstance(e, sp.Piecewise):
            return sp.Piecewise(*[(self(value), self(condition)) for value, condition in e.args], evaluate=False)
        return e.func(*[a if a.is_Number else self(a) for a in e.args])

    def _coefficient(self, e: sp.Expr) -> sp.Expr:
        if e.is_Number or e.is_NumberSymbol:
            return e
        if e.could_extract_minus_sign():
            return -self._coefficient(-e)
        if e not in self.table:
            self.table[e] = sp.Symbol(f"k{len(self.table)}", real=True)
        return self.table[e]
