"""A model's Python functions, run once with SymPy symbols: the equations, their Jacobian and what noise reaches."""

from __future__ import annotations

import traceback
from dataclasses import dataclass

import sympy as sp

from twinlib.engine.contract import Model, ModelError, where_defined


class Names:
    """Attribute access to symbols; an unknown name is a ModelError that lists the known ones."""

    def __init__(self, kind: str, symbols: dict[str, sp.Symbol]):
        self.__dict__["_kind"], self.__dict__["_symbols"] = kind, symbols

    def __getattr__(self, name):
        try:
            return self._symbols[name]
        except KeyError:
            raise ModelError(f"unknown {self._kind} {name!r}; known: {', '.join(self._symbols) or 'none'}") from None


@dataclass(frozen=True)
class System:
    """Traced equations. Index lists refer to the declared order; `noisy` are the states that noise reaches."""

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
    observe: sp.Expr
    r: sp.Expr
    noisy: tuple[int, ...]

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
            hint = " (a model's equations cannot branch on a traced value; use sympy.Piecewise, sympy.Max or sympy.Min)"
        raise ModelError(f"{place}: {type(e).__name__ if not isinstance(e, ModelError) else 'model'}: {e}{hint}") from None


def _by_state(values, model: Model, function, complete: bool) -> dict[str, sp.Expr]:
    names = [s.name for s in model.states]
    if not isinstance(values, dict):
        raise ModelError(f"{where_defined(function)}: {function.__name__} must return a dict by state, got {type(values).__name__}")
    unknown = [k for k in values if k not in names]
    missing = [n for n in names if n not in values] if complete else []
    if unknown or missing:
        raise ModelError(
            f"{where_defined(function)}: {function.__name__}"
            + (f" names undefined states {', '.join(unknown)}" if unknown else "")
            + (f" lacks states {', '.join(missing)}" if missing else "")
        )
    return {k: sp.sympify(v) for k, v in values.items()}


def trace(model: Model) -> System:
    """The model's equations as expressions. Raises ModelError naming the line at fault."""
    group = lambda prefix, names: {n: sp.Symbol(f"{prefix}{i}", real=True) for i, n in enumerate(names)}  # noqa: E731
    states = [s.name for s in model.states]
    x = group("x", states)
    u = group("u", [i.name for i in model.inputs])
    p = group("p", [q.name for q in model.parameters])
    c = group("c", model.constant_names)
    X, U, P, C = Names("state", x), Names("input", u), Names("parameter", p), Names("constant", c)

    f = _by_state(_call(model.dynamics, X, U, P, C), model, model.dynamics, complete=True)
    x0 = _by_state(_call(model.initial, P, C), model, model.initial, complete=True)
    p0 = _by_state(_call(model.initial_variance, P, C), model, model.initial_variance, complete=False)
    q = _by_state(_call(model.noise, P, C), model, model.noise, complete=False)
    declared = {s.name for s in model.states if s.noise}
    if declared != set(q):
        raise ModelError(f"{where_defined(model.noise)}: states declared with noise ({', '.join(sorted(declared)) or 'none'}) are not those of noise()")
    observe = sp.sympify(_call(model.observe, X, P, C))
    r = sp.sympify(_call(model.error_variance, P, C))

    index = {n: i for i, n in enumerate(states)}
    reached = {index[n] for n in q} | {index[n] for n in p0}
    F = [[sp.diff(f[a], x[b]) != 0 for b in states] for a in states]
    while True:
        more = {i for i in range(len(states)) for j in reached if F[i][j]} - reached
        if not more:
            break
        reached |= more
    if not observe.free_symbols & {x[states[i]] for i in reached} and reached:
        raise ModelError(f"{where_defined(model.observe)}: the observed signal does not depend on any state that noise reaches")
    return System(
        model.name, model.version, tuple(x.values()), tuple(u.values()), tuple(p.values()), tuple(c.values()),
        tuple(f[s] for s in states), tuple(x0[s] for s in states),
        {index[n]: e for n, e in p0.items()}, {index[n]: e for n, e in q.items()}, observe, r, tuple(sorted(reached)),
    )
