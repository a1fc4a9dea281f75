"""Source text of a model's numba module, generated from its traced equations.

The text is deterministic, ships to the workers as text and is compiled there once. Layout: `W` lanes (a lane is one
parameter vector on one patient's data) with the lane index fastest in a flat workspace with compile-time strides, which
is what LLVM vectorises; the time loop outside, the lane loop inside. All lanes run the same instructions, so a lane's
result does not depend on its neighbours.

Three entry points (see template.py): `filter_lanes` runs the continuous-discrete extended Kalman filter and gives innovations and
log-likelihood; `smooth_lanes` also runs backwards and gives the smoothed noise and initial state (disturbance smoother: de Jong 1989,
Durbin & Koopman 2012 section 4.5); `simulate_lanes` replays the dynamics under given noise. Slot k stands for the instant k*step: its
reading comes first, then its inputs lead to slot k+1; noise[k] is what has entered the noisy states between slots k-1 and k, and
noise[0] is zero. The covariance of that noise (Lyapunov equation) and the transition of a slot are integrated with the states by the
same Runge-Kutta steps, so the transition is the exact derivative of the replay: where the noisy part is linear, replaying the smoothed
noise gives the smoothed signal to rounding.
"""

from __future__ import annotations

import sympy as sp
from sympy.printing.pycode import PythonCodePrinter

from twinlib.engine.template import TEMPLATE
from twinlib.engine.trace import System

W = 16


class _Printer(PythonCodePrinter):
    """sympy's Python printer; Max and Min as the selects that numba vectorises."""

    def _print_Max(self, e):
        a, *rest = e.args
        return self._print(a) if not rest else f"max({self._print(a)}, {self._print(sp.Max(*rest))})"

    def _print_Min(self, e):
        a, *rest = e.args
        return self._print(a) if not rest else f"min({self._print(a)}, {self._print(sp.Min(*rest))})"

    def _print_Float(self, e):
        return repr(float(e))

    def _print_Pow(self, e, **kwargs):
        if e.exp.is_Integer and 1 < abs(int(e.exp)) <= 4:
            base = self.parenthesize(e.base, 100)
            product = "*".join([base] * abs(int(e.exp)))
            return f"({product})" if e.exp > 0 else f"(1.0/({product}))"
        return super()._print_Pow(e, **kwargs)


_print = _Printer({"fully_qualified_modules": True}).doprint


class _Hoist:
    """Replaces maximal sub-expressions that do not vary in time by coefficients, computed once per lane."""

    def __init__(self, varying: set[sp.Symbol]):
        self.varying, self.table = varying, {}

    def __call__(self, e: sp.Expr) -> sp.Expr:
        e = sp.sympify(e)
        if not e.free_symbols & self.varying:
            return self._coefficient(e)
        if not e.args:
            return e
        if e.is_Add or e.is_Mul:
            fixed = [a for a in e.args if not a.free_symbols & self.varying]
            rest = [self(a) for a in e.args if a.free_symbols & self.varying]
            return e.func(*rest, *([self._coefficient(e.func(*fixed))] if fixed else []))
        return e.func(*[self(a) if isinstance(a, sp.Expr) else a.func(*[self(b) for b in a.args]) if a.args else a for a in e.args])

    def _coefficient(self, e: sp.Expr) -> sp.Expr:
        if e.is_Number or e.is_NumberSymbol:
            return e
        if e.could_extract_minus_sign():
            return -self._coefficient(-e)
        if e not in self.table:
            self.table[e] = sp.Symbol(f"k{len(self.table)}", real=True)
        return self.table[e]


class _Layout:
    """Rows of the workspace: name -> row."""

    def __init__(self):
        self.rows: dict[str, int] = {}

    def add(self, *names: str) -> None:
        for n in names:
            self.rows[n] = len(self.rows)

    def load(self, names) -> list[str]:
        return [f"{n} = S[{self.rows[n] * W} + l]" for n in sorted(names, key=self.rows.get)]

    def store(self, name: str, text: str) -> str:
        return f"S[{self.rows[name] * W} + l] = {text}"


def _lanes(lines: list[str]) -> str:
    return f"    for l in range({W}):\n" + "\n".join(f"        {x}" for x in lines or ["pass"])


def _names(expressions) -> set[str]:
    return {s.name for e in expressions for s in e.free_symbols}


class Generator:
    """Generates the module text of one traced system; `text()` is the only thing to call."""

    def __init__(self, system: System):
        s = self.s = system
        self.n, self.N = len(s.x), list(s.noisy)
        self.layout = _Layout()
        self.layout.add(*[v.name for v in s.x])
        # transition of the noisy states over a slot: zero pattern by closure of the Jacobian's
        linked = {(i, j) for i in self.N for j in self.N if i == j or s.jacobian(i, j) != 0}
        while True:
            more = {(i, j) for i, k in linked for k2, j in linked if k == k2} - linked
            if not more:
                break
            linked |= more
        self.phi = sorted(linked)
        self.layout.add(*[f"f{i}_{j}" for i, j in self.phi])
        self.cov = [(i, j) for a, i in enumerate(self.N) for j in self.N[: a + 1]]
        self.layout.add(*[f"c{i}_{j}" for i, j in self.cov], *[f"q{i}_{j}" for i, j in self.cov])
        self.layout.add(*[f"h{i}" for i in self.N], *[f"g{i}" for i in self.N], "ev", "es")
        self.layout.add(*[v.name.replace("c", "b") for v in s.c], *[v.name for v in s.p])
        self.b = {v: sp.Symbol(v.name.replace("c", "b"), real=True) for v in s.c}  # constants: b0.. (c is the covariance)
        carried = [f"f{i}_{j}" for i, j in self.phi] + [f"q{i}_{j}" for i, j in self.cov]
        self.hoist = _Hoist(set(s.x) | set(s.u) | {sp.Symbol(n, real=True) for n in carried})
        own = lambda e: sp.sympify(e).xreplace(self.b)  # noqa: E731
        self.f = [self.hoist(own(e)) for e in s.f]
        phi = {ij: sp.Symbol(f"f{ij[0]}_{ij[1]}", real=True) for ij in self.phi}
        self.df = {
            (i, j): self.hoist(own(sum((s.jacobian(i, k) * phi[k, j] for k in self.N if (k, j) in phi), sp.Integer(0))))
            for i, j in self.phi
        }
        q = {ij: sp.Symbol(f"q{ij[0]}_{ij[1]}", real=True) for ij in self.cov}
        q |= {(j, i): v for (i, j), v in q.items()}
        self.dq = {  # Lyapunov equation of the noise that enters over a slot
            (i, j): self.hoist(own(
                sum((s.jacobian(i, k) * q[k, j] + q[i, k] * s.jacobian(j, k) for k in self.N), s.q.get(i, sp.Integer(0)) if i == j else sp.Integer(0))
            ))
            for i, j in self.cov
        }
        self.obs = self.hoist(own(s.observe))
        self.H = {i: self.hoist(own(sp.diff(s.observe, s.x[i]))) for i in self.N}
        self.r = self.hoist(own(s.r))
        self.x0 = [own(e) for e in s.x0]
        self.p0 = {i: own(e) for i, e in s.p0.items()}
        self.layout.add(*[k.name for k in self.hoist.table.values()])

    def init(self) -> str:
        """Coefficients, initial state and covariance from parameters and constants."""
        L, s = self.layout, self.s
        lines = L.load([v.name for v in s.p] + [b.name for b in self.b.values()])
        lines += [L.store(k.name, _print(e)) for e, k in self.hoist.table.items()]
        lines += [L.store(v.name, _print(sp.Float(e) if e.is_Number else e)) for v, e in zip(s.x, self.x0)]
        lines += [L.store(f"c{i}_{j}", _print(sp.Float(self.p0[i]) if self.p0[i].is_Number else self.p0[i]) if i == j and i in self.p0 else "0.0")
                  for i, j in self.cov]
        return _lanes(lines)

    def begin_slot(self) -> str:
        """The slot's transition starts as the identity, its noise as nothing."""
        L = self.layout
        lines = [L.store(f"f{i}_{j}", "1.0" if i == j else "0.0") for i, j in self.phi]
        lines += [L.store(f"q{i}_{j}", "0.0") for i, j in self.cov]
        return _lanes(lines)

    def step(self, with_transition: bool) -> str:
        """One Runge-Kutta step (classical, order 4) of the states, and of the transition and the noise covariance with them."""
        L, s = self.layout, self.s
        names, rates = [v.name for v in s.x], list(self.f)
        if with_transition:
            names += [f"f{i}_{j}" for i, j in self.phi] + [f"q{i}_{j}" for i, j in self.cov]
            rates += [self.df[ij] for ij in self.phi] + [self.dq[ij] for ij in self.cov]
        used = _names(rates)
        inputs = {u.name: i for i, u in enumerate(s.u)}
        lines = L.load(set(names) | {n for n in used if n.startswith("k")})
        lines += [f"{n} = U[o + {i * W} + l]" for n, i in inputs.items() if n in used]
        for stage, (scale, previous) in enumerate((("", None), ("half", 1), ("half", 2), ("h", 3)), start=1):
            at = {n: n if stage == 1 else f"y{stage}_{n}" for n in names}
            if stage > 1:
                lines += [f"{at[n]} = {n} + {scale}*d{previous}_{n}" for n in names]
            renamed = [e.xreplace({sp.Symbol(n, real=True): sp.Symbol(at[n], real=True) for n in names}) for e in rates]
            common, reduced = sp.cse(renamed, symbols=(sp.Symbol(f"t{stage}_{k}", real=True) for k in range(10**6)), order="canonical")
            lines += [f"{v.name} = {_print(e)}" for v, e in common]
            lines += [f"d{stage}_{n} = {_print(e)}" for n, e in zip(names, reduced)]
        lines += [L.store(n, f"{n} + sixth*(d1_{n} + 2.0*(d2_{n} + d3_{n}) + d4_{n})") for n in names]
        return _lanes(lines)

    def update(self) -> str:
        """Covariance to the end of the slot, innovation and its variance, and the update by the reading where there is one."""
        L, N = self.layout, self.N
        cov = lambda i, j: f"c{i}_{j}" if N.index(i) >= N.index(j) else f"c{j}_{i}"  # noqa: E731
        has = set(self.phi)
        lines = L.load({f"f{i}_{j}" for i, j in self.phi} | {f"{m}{i}_{j}" for i, j in self.cov for m in "cq"})
        for i in N:  # M = phi P
            lines += [f"m{i}_{j} = " + " + ".join(f"f{i}_{k}*{cov(k, j)}" for k in N if (i, k) in has) for j in N]
        for i, j in self.cov:  # P = M phi' + Q
            lines += [f"v{i}_{j} = q{i}_{j} + " + " + ".join(f"m{i}_{k}*f{j}_{k}" for k in N if (j, k) in has)]
        v = lambda i, j: cov(i, j).replace("c", "v")  # noqa: E731
        seen = [i for i in N if self.H[i] != 0]
        used = _names([self.obs, self.r, *self.H.values()])
        lines += L.load((used | {self.s.x[i].name for i in N}) & set(L.rows))
        lines += ["w = Y[" + str(W) + " + l]", f"e = w*(Y[l] - ({_print(self.obs)}))"]
        lines += [f"h{i} = {_print(sp.Float(self.H[i]) if self.H[i].is_Number else self.H[i])}" for i in seen]
        lines += [f"p{i}_ = " + " + ".join(f"{v(i, j)}*h{j}" for j in seen) for i in N]
        spread = "".join(f"h{i}*p{i}_ + " for i in seen)
        lines += [f"s = w*({spread}{_print(sp.Float(self.r) if self.r.is_Number else self.r)}) + (1.0 - w)"]
        lines += [f"g{i} = w*p{i}_/s" for i in N]
        lines += [L.store(self.s.x[i].name, f"{self.s.x[i].name} + g{i}*e") for i in N]
        lines += [L.store(f"c{i}_{j}", f"v{i}_{j} - g{i}*p{j}_") for i, j in self.cov]
        lines += [L.store(f"g{i}", f"g{i}") for i in N] + [L.store(f"h{i}", f"w*h{i}" if i in seen else "0.0") for i in N]
        lines += [L.store("ev", "e"), L.store("es", "s")]
        return _lanes(lines)

    def backward(self) -> str:
        """One slot of the disturbance smoother; R holds the backward vector, T the stored rows of the slot, B gets the noise Q r."""
        N = self.N
        T = self.stored()
        load = lambda name: f"T[o + {T.index(name) * W} + l]"  # noqa: E731
        lines = [f"r{a} = R[{a * W} + l]" for a in range(len(N))]
        lines += [f"z = {load('ev')}/{load('es')}" + "".join(f" - {load(f'g{i}')}*r{a}" for a, i in enumerate(N))]
        lines += [f"r{a} = r{a} + {load(f'h{i}')}*z" for a, i in enumerate(N)]
        cov = lambda i, j: f"q{i}_{j}" if N.index(i) >= N.index(j) else f"q{j}_{i}"  # noqa: E731
        lines += [f"B[{a * W} + l] = " + " + ".join(f"{load(cov(i, j))}*r{b}" for b, j in enumerate(N)) for a, i in enumerate(N)]
        lines += [
            f"R[{a * W} + l] = " + " + ".join(f"{load(f'f{i}_{j}')}*r{b}" for b, i in enumerate(N) if (i, j) in set(self.phi))
            for a, j in enumerate(N)
        ]
        return _lanes(lines)

    def stored(self) -> list[str]:
        """Rows that the smoother keeps of every slot."""
        carried = [f"f{i}_{j}" for i, j in self.phi] + [f"q{i}_{j}" for i, j in self.cov]
        return carried + [f"g{i}" for i in self.N] + [f"h{i}" for i in self.N] + ["ev", "es"]

    def noise_in(self) -> str:
        """Given noise is added to the noisy states."""
        rows = [self.layout.rows[self.s.x[i].name] for i in self.N]
        return _lanes([f"S[{row * W} + l] += B[{a * W} + l]" for a, row in enumerate(rows)])

    def start_out(self) -> str:
        """Smoothed initial state of the noisy states: x0 + P0 r (S and its covariance freshly initialised)."""
        L, N = self.layout, self.N
        lines = L.load({f"c{i}_{j}" for i, j in self.cov} | {self.s.x[i].name for i in N})
        cov = lambda i, j: f"c{i}_{j}" if N.index(i) >= N.index(j) else f"c{j}_{i}"  # noqa: E731
        lines += [f"B[{a * W} + l] = {self.s.x[i].name} + " + " + ".join(f"{cov(i, j)}*R[{b * W} + l]" for b, j in enumerate(N))
                  for a, i in enumerate(N)]
        return _lanes(lines)

    def observe(self) -> str:
        L = self.layout
        return _lanes(L.load(_names([self.obs])) + [f"B[l] = {_print(sp.Float(self.obs) if self.obs.is_Number else self.obs)}"])

    def text(self) -> str:
        L, s = self.layout, self.s
        first = L.rows
        keep = "\n".join(f"    for l in range({W}): T[o + {a * W} + l] = S[{first[n] * W} + l]" for a, n in enumerate(self.stored()))
        return TEMPLATE.format(
            name=s.name, version=s.version, W=W, SIZE=len(L.rows) * W, NX=self.n, NN=len(self.N), NU=len(s.u),
            NP=len(s.p), NC=len(s.c), NT=len(self.stored()), ROW_P=first[s.p[0].name] * W,
            ROW_C=first[self.b[s.c[0]].name] * W if s.c else 0, ROW_E=first["ev"] * W, ROW_S=first["es"] * W,
            noisy_rows=repr(tuple(first[s.x[i].name] * W for i in self.N) or (0,)),
            init=self.init(), begin_slot=self.begin_slot(), step=self.step(True), plain_step=self.step(False), update=self.update(),
            keep=keep, backward=self.backward(), noise_in=self.noise_in(),
            start_out=self.start_out(), observe=self.observe(),
        )


def generate(system: System) -> str:
    """Module text for `twinlib.engine.kernel.load`; the same system gives the same text."""
    return Generator(system).text()
