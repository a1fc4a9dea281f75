"""Functions for a model's equations: they take quantities (or plain numbers), check their units and build symbolic expressions."""

from __future__ import annotations

import sympy as sp

from twinlib.units import registry


def _plain(value) -> sp.Expr:
    """The value without unit. Raises pint.DimensionalityError where it has one."""
    return sp.sympify(value.to("").magnitude if hasattr(value, "magnitude") else value)


def _one(value):
    return registry().Quantity(value, "")


def exp(value):
    """e to a dimensionless value."""
    return _one(sp.exp(_plain(value)))


def log(value):
    """Natural logarithm of a dimensionless value."""
    return _one(sp.log(_plain(value)))


def tanh(value):
    """Hyperbolic tangent of a dimensionless value."""
    return _one(sp.tanh(_plain(value)))


def sqrt(value):
    """Square root; the unit's too."""
    return value**0.5


def positive(value, corner):
    """(value + sqrt(value^2 + corner^2))/2: a positive part whose corner is rounded over about `corner`.

    Prefer it to `maximum(value, 0)` in dynamics: a likelihood with corners has modes that no derivative finds.
    """
    return (value + sqrt(value**2 + corner**2)) / 2


def maximum(a, b):
    """The larger of two values of one dimension."""
    return where(a > b, a, b)


def minimum(a, b):
    """The smaller of two values of one dimension."""
    return where(a < b, a, b)


def where(condition, a, b):
    """`a` where the (symbolic) condition holds, else `b`; a model cannot branch with `if` on a traced value."""
    unit = next((v.units for v in (a, b) if hasattr(v, "units")), registry().dimensionless)
    return registry().Quantity(sp.Piecewise((magnitude(a, unit), condition), (magnitude(b, unit), True)), unit)


def magnitude(value, unit) -> sp.Expr:
    """The expression of a value in `unit`; zero needs no unit. Raises pint.DimensionalityError where the units do not match."""
    if not hasattr(value, "units"):
        if value == 0:
            return sp.Integer(0)
        value = _one(value)
    return sp.sympify(value.to(unit).magnitude)
