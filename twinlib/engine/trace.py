"""A model's Python functions, run once with symbols that carry units: the equations, their Jacobian and what noise reaches."""

from __future__ import annotations

import traceback
from dataclasses import dataclass

import pint
import sympy as sp

from twinlib.engine.contract import Model, ModelError, Reading, where_defined
from twinlib.engine.expressions import magnitude
from twinlib.units import registry


class Names:
    """Attribute access to quantities; an unknown name is a ModelError that lists the known ones."""

    def __init__(self, kind: str, quantities: dict[str, pint.Quantity]):
        self.__dict__["_kind"], self.__dict__["_quantities"] = kind, quantities

    def __getattr__(self, name):
        try:
            return self._quantities[name]
        except KeyError:
            raise ModelError(f"unknown {self._kind} {name!r}; known: {', '.join(self._quantities) or 'none'}") from None


@dataclass(frozen=True)
class Observed:
    """One signal's reading: value h and error variance r as expressions; degrees of a t error or None; log scale; censoring limits."""

    name: str
    h: sp.Expr
    r: sp.Expr
    degrees: float | None
    log: bool
    lower: float | None
    upper: float | None


@dataclass(frozen=True)
class System:
    """Traced equations in the model's units. Index lists refer to the declared order.

    u: the inputs that last; dosed: the positions of inputs that act at once, jumps[i]: what one unit of each adds to state i;
    fitted: positions of the fitted parameters; noisy: the states that noise reaches; linear: the dynamics are linear in the states.
    """

    name: str
    version: str
    x: tuple[sp.Symbol, ...]
    u: tuple[sp.Symbol, ...]
    p: tuple[sp.Symbol, ...]
    c: tuple[sp.Symbol, ...]
    f: tuple[sp.Expr, ...]
    x0: tuple[sp.Expr, ...]
    p0: dict[int, sp.Expr]
    q: dict[int, sp.Expr]
    dosed: tuple[int, ...]
    jumps: tuple[tuple[sp.Expr, ...], ...]
    observed: tuple[Observed, ...]
    fitted: tuple[int, ...]
    noisy: tuple[int, ...]
    linear: bool

    def jacobian(self, i: int, j: int) -> sp.Expr:
        return sp.diff(self.f[i], self.x[j])


def _call(function, *args):
    """Call a model's method; an exception becomes a ModelError that names the line in the model."""
    try:
        return function(*args)
    except Exception as e:
        frames = traceback.extract_tb(e.__traceback__)
        own = [f for f in frames if f.name == function.__name__]
        place = f"{own[-1].filename}:{own[-1].lineno}" if own else where_defined(function)
        hint = ""
        if isinstance(e, TypeError) and "truth value" in str(e):
            hint = " (a model's equations cannot branch on a traced value; use twinlib.engine.expressions.where, maximum or minimum)"
        kind = "model" if isinstance(e, ModelError) else "units do not match" if isinstance(e, pint.DimensionalityError) else type(e).__name__
        raise ModelError(f"{place}: {kind}: {e}{hint}") from None


def _in_unit(value, unit: pint.Unit, function, key: str, what: str) -> sp.Expr:
    try:
        return magnitude(value, unit)
    except pint.DimensionalityError:
        given = (f"{value.units:~}" or "dimensionless") if hasattr(value, "units") else "a plain number"
        raise ModelError(f"{where_defined(function, key)}: {what} of {key} must be in {unit:~}; it is {given}") from None
    except (sp.SympifyError, TypeError):
        raise ModelError(f"{where_defined(function, key)}: {what} of {key} is no expression: {value!r}") from None


def _by_state(values, model: Model, function, unit, complete: bool = False) -> dict[str, sp.Expr]:
    """The returned dictionary as expressions; `unit` makes a value's unit of the state's own."""
    units = {s.name: registry().parse_units(s.unit) for s in model.states}
    if not isinstance(values, dict):
        raise ModelError(f"{where_defined(function)}: {function.__name__} must return a dict by state, got {type(values).__name__}")
    unknown = [k for k in values if k not in units]
    missing = [n for n in units if n not in values] if complete else []
    if unknown or missing:
        raise ModelError(
            f"{where_defined(function, unknown[0] if unknown else None)}: {function.__name__}"
            + (f" names undefined states {', '.join(unknown)}" if unknown else "")
            + (f" lacks states {', '.join(missing)}" if missing else "")
        )
    return {k: _in_unit(v, unit(units[k]), function, k, function.__name__) for k, v in values.items()}


def _observed(values, model: Model) -> tuple[Observed, ...]:
    function = model.observe
    names = [s.name for s in model.signals]
    if not isinstance(values, dict) or set(values) != set(names):
        raise ModelError(f"{where_defined(function)}: observe must return a Reading for each of the signals {', '.join(names)}")
    out = []
    for signal in model.signals:
        reading = values[signal.name]
        if not isinstance(reading, Reading):
            raise ModelError(f"{where_defined(function, signal.name)}: {signal.name} must be a Reading: additive(...), proportional(...), ...")
        log = reading.scale == "log"
        unit = registry().parse_units(signal.unit)
        h = _in_unit(reading.value, unit, function, signal.name, "value")
        sd = _in_unit(reading.sd, registry().dimensionless if log else unit, function, signal.name, "error sd")
        if reading.degrees is not None and not reading.degrees > 0:
            raise ModelError(f"{where_defined(function, signal.name)}: degrees of freedom of {signal.name} must be positive")
        limit = (lambda v: None if v is None else float(sp.log(v))) if log else (lambda v: v)
        out.append(Observed(signal.name, sp.log(h) if log else h, sd**2, reading.degrees, log, limit(signal.lower), limit(signal.upper)))
    return tuple(out)


def _symbols(prefix: str, declared, model: Model) -> tuple[tuple[sp.Symbol, ...], dict[str, pint.Quantity]]:
    symbols, quantities = [], {}
    for i, d in enumerate(declared):
        symbol = sp.Symbol(f"{prefix}{i}", real=True)
        try:
            quantities[d.name] = registry().Quantity(symbol, d.unit)
        except Exception:  # pint raises several kinds of error on a text that is no unit
            raise ModelError(f"model {model.name}: {type(d).__name__.lower()} {d.name}: unknown unit {d.unit!r}") from None
        symbols.append(symbol)
    return tuple(symbols), quantities


def trace(model: Model) -> System:
    """The model's equations as expressions. Raises ModelError naming the line at fault."""
    x, xs = _symbols("x", model.states, model)
    u, us = _symbols("u", model.inputs, model)
    p, ps = _symbols("p", model.parameters, model)
    c, cs = _symbols("c", model.constants, model)
    X, U, P, C = Names("state", xs), Names("input", us), Names("parameter", ps), Names("constant", cs)
    _symbols("y", model.signals, model)  # their units are checked
    for i in model.inputs:
        model.input_factor(i)

    time = registry().parse_units(model.time_unit)
    f = _by_state(_call(model.dynamics, X, U, P, C), model, model.dynamics, lambda s: s / time, complete=True)
    x0 = _by_state(_call(model.initial, P, C), model, model.initial, lambda s: s, complete=True)
    p0 = _by_state(_call(model.initial_variance, P, C), model, model.initial_variance, lambda s: s**2)
    q = _by_state(_call(model.noise, X, U, P, C), model, model.noise, lambda s: s**2 / time)
    declared = {s.name for s in model.states if s.noise}
    if declared != set(q):
        raise ModelError(f"{where_defined(model.noise)}: states declared with noise ({', '.join(sorted(declared)) or 'none'}) are not those of noise()")
    observed = _observed(_call(model.observe, X, P, C), model)

    names = [s.name for s in model.states]
    rates = [f[n] for n in names]
    dosed = tuple(i for i, declared_input in enumerate(model.inputs) if declared_input.spread == 0)
    if any(e.free_symbols & {u[i] for i in dosed} for e in q.values()):
        raise ModelError(f"{where_defined(model.noise)}: noise cannot depend on an input that acts at once (spread 0)")
    jumps = []
    for row, n in zip(rates, names):
        adds = [sp.diff(row, u[i]) for i in dosed]
        if any(a.free_symbols & {*x, *u} for a in adds):
            raise ModelError(f"{where_defined(model.dynamics, n)}: an input that acts at once (spread 0) must add to {n} whatever the state")
        jumps.append(tuple(adds))
    index = {n: i for i, n in enumerate(names)}
    reached = {index[n] for n in q} | {index[n] for n in p0}
    F = [[sp.diff(a, b) for b in x] for a in rates]
    while True:
        more = {i for i in range(len(x)) for j in reached if F[i][j] != 0} - reached
        if not more:
            break
        reached |= more
    seen = {s for o in observed for s in o.h.free_symbols}
    if reached and not seen & {x[i] for i in reached}:
        raise ModelError(f"{where_defined(model.observe)}: no observed signal depends on any state that noise reaches")
    position = {q_.name: i for i, q_ in enumerate(model.parameters)}
    return System(
        model.name, model.version, x, u, p, c, tuple(rates), tuple(x0[n] for n in names),
        {index[n]: e for n, e in p0.items()}, {index[n]: e for n, e in q.items()}, dosed, tuple(jumps), observed,
        tuple(position[q_.name] for q_ in model.fitted), tuple(sorted(reached)),
        linear=not any(e.free_symbols & {*x} for row in F for e in row),
    )
