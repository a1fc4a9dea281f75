"""Source text of a model's numba module, generated from its traced equations.

The text is deterministic, ships to the workers as text and is compiled there once. Layout: `W` lanes (a lane is one parameter vector on
one patient's data) with the lane index fastest in a flat workspace with compile-time strides, which is what LLVM vectorises; the time
loop outside, the lane loop inside. All lanes run the same instructions, so a lane's result does not depend on its neighbours.

A lane goes through the slots of its patient: the instants at which readings may stand. A slot's steps lead up to it; at each step's start
come the doses that act at once. The likelihood of a model with process noise is that of the continuous-discrete extended Kalman
filter, the covariance carried only through the states that noise reaches. The smoother (disturbance smoother: de Jong 1989, Durbin & Koopman
2012 section 4.5) also integrates the transition of every slot and the covariance of the noise that enters in it (Lyapunov equation) with
the states by the same Runge-Kutta steps, so the transition is the exact derivative of the replay: where the noisy part is linear,
replaying the smoothed noise gives the smoothed signal to rounding.

Every reading enters as a Gaussian with the slope and the curvature of the log likelihood of the predicted signal: exact for
normal errors, moment-matched for censored readings (Tobit), and an iteratively reweighted step for Student t errors.
"""

from __future__ import annotations

import math
from textwrap import indent

import sympy as sp

from twinlib.engine.integrate import Layout, W, closure, lanes, names, propagator, runge_kutta, symbol
from twinlib.engine.printing import FUNCTIONS, Hoist, text
from twinlib.engine.template import TEMPLATE
from twinlib.engine.trace import Observed, System

LOG_2PI = math.log(2 * math.pi)


def _number(e) -> str:
    return text(sp.Float(e) if e.is_Number else e)


class Generator:
    """Generates the module text of one traced system; `text()` is the only thing to call."""

    def __init__(self, system: System):
        s = self.s = system
        self.N = list(s.noisy)
        self.exact = s.linear and not self.N  # linear dynamics without noise have an exact propagator
        self.sensitive = not self.N and not self.exact  # traced sensitivities; copies of the parameters else
        self.cov = [(i, j) for a, i in enumerate(self.N) for j in self.N[: a + 1]]
        jacobian = {(i, j): s.jacobian(i, j) for i in range(len(s.x)) for j in range(len(s.x))}
        self.F = {ij: e for ij, e in jacobian.items() if e != 0}
        self.phi = sorted(closure({(i, i) for i in self.N} | {(i, j) for i, j in self.F if i in self.N and j in self.N}))
        self.layout = L = Layout()
        self.inputs = {u.name: 1 + i for i, u in enumerate(s.u)}  # rows of the step buffer; row 0 is the step's length
        self.doses = [1 + len(s.u) + d for d in range(len(s.dosed))]
        L.reserve([v.name for v in s.x])
        self.row_p = L.reserve([v.name for v in s.p])
        self.b = {v: symbol(v.name.replace("c", "b")) for v in s.c}  # constants: b0.. (c is the covariance)
        self.row_c = L.reserve([b.name for b in self.b.values()])

        self._own = own = lambda e: sp.sympify(e).xreplace(self.b)  # noqa: E731
        # entries of the Jacobian that vary in time are worked out once per stage and shared by all that they drive
        moving = {*s.x, *s.u}
        self.shared = {f"j{i}_{j}": e for (i, j), e in self.F.items() if e.free_symbols & moving}
        self.F = {(i, j): symbol(f"j{i}_{j}") if f"j{i}_{j}" in self.shared else e for (i, j), e in self.F.items()}
        self.columns = self._columns() if self.sensitive else {}  # of the sensitivities: (state, parameter) -> right-hand side
        carried = [*self.shared] + [f"f{i}_{j}" for i, j in self.phi] + [f"{m}{i}_{j}" for i, j in self.cov for m in "qc"] + [f"s{i}_{j}" for i, j in self.columns]
        carried += [f"dose{d}" for d in range(len(s.dosed))]
        self.hoist = h = Hoist(set(s.x) | set(s.u) | {symbol(n) for n in carried})
        self.shared = {n: h(own(e)) for n, e in self.shared.items()}
        self.f = {v.name: h(own(e)) for v, e in zip(s.x, s.f)}
        self.df = {f"f{i}_{j}": h(own(sum((self.F[i, k] * symbol(f"f{k}_{j}") for k in self.N if (i, k) in self.F and (k, j) in self.phi), sp.Integer(0))))
                   for i, j in self.phi}
        self.dq, self.dc = self._lyapunov("q"), self._lyapunov("c")
        self.ds = {f"s{i}_{j}": h(own(e)) for (i, j), e in self.columns.items()}
        self.jumps = {v.name: h(own(sum((a * symbol(f"dose{d}") for d, a in enumerate(row)), sp.Integer(0)))) for v, row in zip(s.x, s.jumps)}
        self.jumps |= {
            f"s{i}_{j}": h(own(sum((sp.diff(a, s.p[j]) * symbol(f"dose{d}") for d, a in enumerate(s.jumps[i])), sp.Integer(0))))
            for i, j in self.columns
        }
        self.jumps = {n: e for n, e in self.jumps.items() if e != 0}
        self.obs = [self._observation(o) for o in s.observed]

    def _lyapunov(self, prefix: str) -> dict[str, sp.Expr]:
        """Rates of a covariance of the noisy states: F P + P F' + Q."""
        v = {ij: symbol(f"{prefix}{ij[0]}_{ij[1]}") for ij in self.cov}
        v |= {(j, i): e for (i, j), e in v.items()}
        F = lambda i, k: self.F.get((i, k), 0)  # noqa: E731
        return {
            f"{prefix}{i}_{j}": self.hoist(self._own(
                sum((F(i, k) * v[k, j] + v[i, k] * F(j, k) for k in self.N), self.s.q.get(i, sp.Integer(0)) if i == j else sp.Integer(0))
            ))
            for i, j in self.cov
        }

    def _columns(self) -> dict[tuple[int, int], sp.Expr]:
        """Rates of the derivatives of the states by the fitted parameters, where they can differ from zero."""
        s = self.s
        direct = {(i, j): sp.diff(s.f[i], s.p[j]) for i in range(len(s.x)) for j in s.fitted}
        start = {(i, j) for i in range(len(s.x)) for j in s.fitted if s.p[j] in s.x0[i].free_symbols}
        start |= {(i, j) for i in range(len(s.x)) for j in s.fitted for a in s.jumps[i] if s.p[j] in a.free_symbols}
        reach = {ij for ij, e in direct.items() if e != 0} | start
        while more := {(i, j) for i, k in self.F for k2, j in reach if k == k2} - reach:
            reach |= more
        return {
            (i, j): direct[i, j] + sum((e * symbol(f"s{k}_{j}") for (i2, k), e in self.F.items() if i2 == i and (k, j) in reach), sp.Integer(0))
            for j in s.fitted for i in range(len(s.x)) if (i, j) in reach
        }

    def _observation(self, o: Observed) -> dict:
        own, h, s = self._own, self.hoist, self.s
        total = lambda e, j: sp.diff(e, s.p[j]) + sum(  # noqa: E731
            (sp.diff(e, s.x[i]) * symbol(f"s{i}_{j}") for i in range(len(s.x)) if (i, j) in self.columns), sp.Integer(0)
        )
        return {
            "h": h(own(o.h)), "r": h(own(o.r)), "H": {i: h(own(sp.diff(o.h, s.x[i]))) for i in self.N if sp.diff(o.h, s.x[i]) != 0},
            "dh": [h(own(total(o.h, j))) for j in s.fitted] if self.sensitive else [],
            "dr": [h(own(total(o.r, j))) for j in s.fitted] if self.sensitive else [],
            "value": h(own(sp.exp(o.h) if o.log else o.h)), "degrees": o.degrees,
        }

    # one method per function of the module

    def init(self) -> str:
        """Coefficients, initial state, covariance and sensitivities from parameters and constants."""
        L, s = self.layout, self.s
        lines = L.load([v.name for v in s.p] + [b.name for b in self.b.values()])
        lines += [f"{L.at(k.name)} = {text(e)}" for e, k in self.hoist.table.items()]
        lines += [f"{L.at(v.name)} = {_number(self._own(e))}" for v, e in zip(s.x, s.x0)]
        lines += [f"{L.at(f'c{i}_{j}')} = {_number(self._own(s.p0[i])) if i == j and i in s.p0 else '0.0'}" for i, j in self.cov]
        lines += [f"{L.at(f's{i}_{j}')} = {_number(self._own(sp.diff(s.x0[i], s.p[j])))}" for i, j in self.columns]
        return lanes([*lines, f"{L.at('ell')} = 0.0"])

    def jump(self) -> str:
        """Doses that act at once."""
        L = self.layout
        doses = {f"dose{d}": row for d, row in enumerate(self.doses)}
        used = names(self.jumps.values())
        lines = [f"{n} = B[{doses[n] * W} + l]" for n in sorted(used & set(doses))] + L.load((used - set(doses)) | set(self.jumps))
        return lanes(lines + [f"{L.at(n)} = {n} + {text(e)}" for n, e in self.jumps.items()])

    def step(self, *more: dict[str, sp.Expr]) -> str:
        rates = {n: e for part in (self.f, *more) for n, e in part.items()}
        if self.exact:
            return propagator(rates, self.layout, self.inputs)
        return runge_kutta(rates, self.layout, self.inputs, self.shared)

    def begin_slot(self) -> str:
        """The slot's transition starts as the identity, its noise as nothing."""
        L = self.layout
        return lanes([f"{L.at(f'f{i}_{j}')} = {'1.0' if i == j else '0.0'}" for i, j in self.phi] + [f"{L.at(f'q{i}_{j}')} = 0.0" for i, j in self.cov])

    def _symmetric(self, prefix: str):
        return lambda i, j: f"{prefix}{i}_{j}" if self.N.index(i) >= self.N.index(j) else f"{prefix}{j}_{i}"

    def carry(self) -> str:
        """Covariance to the end of the slot: P = phi P phi' + Q."""
        L, N, has, cov = self.layout, self.N, set(self.phi), self._symmetric("c")
        lines = L.load([f"f{i}_{j}" for i, j in self.phi] + [f"{m}{i}_{j}" for i, j in self.cov for m in "cq"])
        for i in N:
            lines += [f"m{i}_{j} = " + " + ".join(f"f{i}_{k}*{cov(k, j)}" for k in N if (i, k) in has) for j in N]
        return lanes(lines + [
            f"{L.at(f'c{i}_{j}')} = q{i}_{j} + " + " + ".join(f"m{i}_{k}*f{j}_{k}" for k in N if (j, k) in has) for i, j in self.cov
        ])

    def predict(self, m: int) -> str:
        """Innovation e of signal m, its variance s, and what the reading does: slope, curvature, weights and twice minus log likelihood."""
        L, N, o, cov = self.layout, self.N, self.obs[m], self._symmetric("c")
        used = names([o["h"], o["r"], *o["H"].values()]) | {cov(i, j) for i in N for j in o["H"]}
        lines = L.load(used) + [f"w = Y[{(3 * m + 1) * W} + l]", f"e = w*(Y[{3 * m * W} + l] - ({_number(o['h'])}))"]
        lines += [f"h{i} = {_number(e)}" for i, e in o["H"].items()]
        lines += [f"w{i} = " + " + ".join(f"{cov(i, j)}*h{j}" for j in o["H"]) for i in N if o["H"]]
        spread = "".join(f"h{i}*w{i} + " for i in o["H"])
        lines += [f"s = w*({spread}{_number(o['r'])}) + (1.0 - w)", "inverse = 1.0/s", "square = e*e*inverse"]
        if (nu := o["degrees"]) is None:
            lines += ["weight = w*inverse", "twice = square + log_(s)", "curve = weight", "mean_curve = weight", "spread_curve = 0.5*weight*weight"]
        else:
            constant = 2 * (math.lgamma(nu / 2) - math.lgamma((nu + 1) / 2)) + math.log(nu * math.pi) - LOG_2PI
            lines += [
                f"weight = w*{nu + 1.0!r}/({float(nu)!r} + square)*inverse", "curve = weight",
                f"twice = {nu + 1.0!r}*log_(1.0 + square/{float(nu)!r}) + log_(s) + w*{constant!r}",
                f"mean_curve = {(nu + 1) / (nu + 3)!r}*w*inverse", f"spread_curve = {nu / (2 * (nu + 3))!r}*w*inverse*inverse",
            ]
        stored = {"e": "e", "s": "s", "slope": "weight*e", "curve": "curve", "twice": "twice", "spread_slope": "0.5*(w*inverse - weight*square)",
                  "mean_curve": "mean_curve", "spread_curve": "spread_curve", "cross_curve": "0.0"}
        lines += [f"{L.at(f'{name}_{m}')} = {value}" for name, value in stored.items()]
        lines += [f"{L.at(f'w{i}_{m}')} = {f'w{i}' if o['H'] else '0.0'}" for i in N] + [f"{L.at(f'h{i}_{m}')} = w*h{i}" for i in o["H"]]
        return lanes(lines)

    def censor(self, m: int) -> str:
        """Readings beyond a limit: the same for the probability that the value lies beyond it. Lane by lane, where there are any."""
        at = lambda name: self.layout.at(f"{name}_{m}")  # noqa: E731
        return "\n".join([
            f"    for l in range({W}):",
            f"        code = Y[{(3 * m + 2) * W} + l]",
            "        if code != 0.0:",
            f"            s = {at('s')}",
            "            root = math.sqrt(s)",
            f"            z = -code*{at('e')}/root",
            "            ratio, twice = beyond(z)",
            "            bend = ratio*(ratio + z)",
            f"            {at('slope')} = code*ratio/root",
            f"            {at('curve')} = bend/s",
            f"            {at('twice')} = twice",
            f"            {at('spread_slope')} = 0.5*ratio*z/s",
            f"            {at('mean_curve')} = bend/s",
            f"            {at('spread_curve')} = 0.25*bend*z*z/(s*s)",
            f"            {at('cross_curve')} = -0.5*code*bend*z/(s*root)",
        ])

    def apply(self, m: int) -> str:
        """The reading's effect on the noisy states, their covariance and the likelihood."""
        L, N = self.layout, self.N
        lines = L.load([f"x{i}" for i in N] + [f"c{i}_{j}" for i, j in self.cov])
        lines += [f"{n} = {L.at(f'{n}_{m}')}" for n in ("slope", "curve", "twice")] + [f"w{i} = {L.at(f'w{i}_{m}')}" for i in N]
        lines += [f"{L.at(f'x{i}')} = x{i} + w{i}*slope" for i in N]
        lines += [f"{L.at(f'c{i}_{j}')} = c{i}_{j} - w{i}*(w{j}*curve)" for i, j in self.cov]
        return lanes([*lines, f"{L.at('ell')} = {L.at('ell')} + twice"])

    def derive(self, m: int) -> str:
        """Derivatives of minus the signal's value and of the error variance by the fitted parameters, from the sensitivities."""
        o, P = self.obs[m], len(self.s.fitted)
        expressions = [*[-e for e in o["dh"]], *o["dr"]]
        common, reduced = sp.cse(expressions, symbols=(symbol(f"t{k}") for k in range(10**6)), order="canonical")
        lines = self.layout.load(n for n in names(expressions))
        lines += [f"{v.name} = {text(e)}" for v, e in common]
        return lanes(lines + [f"D[{a * W} + l] = {_number(e)}" for a, e in enumerate(reduced)]) if P else "    pass"

    def accumulate(self, m: int) -> str:
        """The reading's part of the gradient and of the expected Hessian of minus log likelihood, row by row; D: derivatives of e and of s."""
        P, spreads, loops = len(self.s.fitted), self.spreads(m), []
        at = lambda name: self.layout.at(f"{name}_{m}")  # noqa: E731
        for a in range(P):
            lines = [f"e = D[{a * W} + l]", f"s = D[{(P + a) * W} + l]"][: 1 + spreads]
            lines += [f"u = {at('mean_curve')}*e" + (f" - {at('cross_curve')}*s" if spreads else "")]
            lines += [f"v = {at('spread_curve')}*s - {at('cross_curve')}*e"] * spreads
            lines += [f"G[{a * W} + l] += {at('slope')}*e" + (f" + {at('spread_slope')}*s" if spreads else "")]
            for b in range(a + 1):
                row = (P + a * (a + 1) // 2 + b) * W
                lines += [f"G[{row} + l] += u*D[{b * W} + l]" + (f" + v*D[{(P + b) * W} + l]" if spreads else "")]
            loops.append(lanes(lines))
        return "\n".join(loops) or "    pass"

    def spreads(self, m: int) -> bool:
        """Whether the error variance of signal m depends on the fitted parameters: directly, by the states, or by the filter's covariance."""
        r, fitted = sp.sympify(self.s.observed[m].r), {self.s.p[j] for j in self.s.fitted}
        return bool(self.N) or bool(r.free_symbols & (fitted | {*self.s.x}))

    def backward(self, m: int) -> str:
        """The smoother's way back through the reading of signal m; R holds the backward vector, T what was kept of the slot."""
        N, T = self.N, self.kept()
        at = lambda name: f"T[o + {T.index(name) * W} + l]"  # noqa: E731
        lines = [f"r{a} = R[{a * W} + l]" for a in range(len(N))]
        lines += [f"z = {at(f'slope_{m}')}" + "".join(f" - {at(f'g{i}_{m}')}*r{a}" for a, i in enumerate(N))]
        return lanes(lines + [f"R[{N.index(i) * W} + l] = r{N.index(i)} + {at(f'h{i}_{m}')}*z" for i in self.obs[m]["H"]])

    def disturb(self) -> str:
        """The smoothed noise Q r of the slot into B, and the backward vector to its beginning."""
        N, T, cov = self.N, self.kept(), self._symmetric("q")
        at = lambda name: f"T[o + {T.index(name) * W} + l]"  # noqa: E731
        lines = [f"r{a} = R[{a * W} + l]" for a in range(len(N))]
        lines += [f"B[{a * W} + l] = " + " + ".join(f"{at(cov(i, j))}*r{b}" for b, j in enumerate(N)) for a, i in enumerate(N)]
        return lanes(lines + [
            f"R[{a * W} + l] = " + " + ".join(f"{at(f'f{i}_{j}')}*r{b}" for b, i in enumerate(N) if (i, j) in set(self.phi))
            for a, j in enumerate(N)
        ])

    def kept(self) -> list[str]:
        """Rows that the smoother keeps of every slot."""
        carried = [f"f{i}_{j}" for i, j in self.phi] + [f"q{i}_{j}" for i, j in self.cov]
        return carried + [n for m, o in enumerate(self.obs) for n in (f"slope_{m}", *[f"g{i}_{m}" for i in self.N], *[f"h{i}_{m}" for i in o["H"]])]

    def keep(self) -> str:
        L = self.layout
        source = lambda n: f"{L.at('w' + n[1:])}*{L.at('curve_' + n.split('_')[1])}" if n[0] == "g" else L.at(n)  # noqa: E731
        return lanes([f"T[o + {a * W} + l] = {source(n)}" for a, n in enumerate(self.kept())])

    def noise_in(self) -> str:
        """Given noise is added to the noisy states."""
        return lanes([f"{self.layout.at(f'x{i}')} += D[{a * W} + l]" for a, i in enumerate(self.N)])

    def start_out(self) -> str:
        """Smoothed initial state of the noisy states: x0 + P0 r (S and its covariance freshly initialised)."""
        L, N, cov = self.layout, self.N, self._symmetric("c")
        lines = L.load([f"c{i}_{j}" for i, j in self.cov] + [f"x{i}" for i in N])
        lines += [f"B[{a * W} + l] = x{i} + " + " + ".join(f"{cov(i, j)}*R[{b * W} + l]" for b, j in enumerate(N)) for a, i in enumerate(N)]
        return lanes(lines)

    def values(self) -> str:
        """The signals' values."""
        expressions = [o["value"] for o in self.obs]
        return lanes(self.layout.load(names(expressions)) + [f"V[{m * W} + l] = {_number(e)}" for m, e in enumerate(expressions)])

    def variances(self) -> str:
        """The variance of a reading's error, on the scale on which it is normal."""
        expressions = [o["r"] for o in self.obs]
        return lanes(self.layout.load(names(expressions)) + [f"V[{m * W} + l] = {_number(e)}" for m, e in enumerate(expressions)])

    def text(self) -> str:
        s, each = self.s, range(len(self.obs))
        function = lambda name, arguments, body: f"@njit(**LANE)\ndef {name}({arguments}):\n{body}\n"  # noqa: E731
        parts = [
            function("init", "S", self.init()), function("jump", "S, B", self.jump()),
            function("advance", "S, B", self.step(self.dc)), function("replay", "S, B", self.step()),
            *[function(f"predict_{m}", "S, Y", self.predict(m)) for m in each], *[function(f"censor_{m}", "S, Y", self.censor(m)) for m in each],
            *[function(f"apply_{m}", "S", self.apply(m)) for m in each],
            *[function(f"accumulate_{m}", "S, D, G", self.accumulate(m)) for m in each], function("values", "S, V", self.values()),
            function("variances", "S, V", self.variances()),
            function("begin_slot", "S", self.begin_slot()), function("advance_map", "S, B", self.step(self.df, self.dq)),
            function("carry", "S", self.carry()), function("keep", "S, T, o", self.keep()),
            *[function(f"backward_{m}", "T, o, R", self.backward(m)) for m in each], function("disturb", "T, o, R, B", self.disturb()),
            function("noise_in", "S, D", self.noise_in()), function("start_out", "S, R, B", self.start_out()),
        ]
        if self.sensitive:
            parts += [function("advance_sensitive", "S, B", self.step(self.ds)), *[function(f"derive_{m}", "S, D", self.derive(m)) for m in each]]
        call = lambda pattern, over, depth: indent("\n".join(pattern.replace("{m}", str(m)) for m in over) or "pass", 4 * depth * " ")  # noqa: E731
        update = "predict_{m}(S, Y)\nif special:\n    censor_{m}(S, Y)\n"
        limits = lambda o: f"({-math.inf if o.lower is None else o.lower!r}, {math.inf if o.upper is None else o.upper!r})".replace("inf", "np.inf")  # noqa: E731
        L = self.layout
        rows = lambda pattern: "(" + "".join(f"{L.rows[pattern.replace('{m}', str(m))] * W}, " for m in each) + ")"  # noqa: E731
        at = lambda names: repr(tuple(L.rows[n] * W for n in names) or (0,))  # noqa: E731
        return TEMPLATE.substitute(
            name=s.name, version=s.version, functions=FUNCTIONS, parts="\n\n".join(parts), W=W, SIZE=L.size, NN=len(self.N), NU=len(s.u),
            ND=len(s.dosed), NP=len(s.p), NC=len(s.c), NF=len(s.fitted), NY=len(self.obs), NT=len(self.kept()), ROW_P=self.row_p * W,
            ROW_C=self.row_c * W, ELL=L.rows["ell"] * W, NOISY=at(f"x{i}" for i in self.N),
            STATES=at(v.name for v in s.x), NX=len(s.x), COV_C=at(f"c{i}_{j}" for i, j in self.cov), COV_Q=at(f"q{i}_{j}" for i, j in self.cov),
            SENSITIVE=self.sensitive, EXACT_STEP=self.exact, LOG=repr(tuple(o.log for o in s.observed)),
            LIMITS="(" + "".join(limits(o) + ", " for o in s.observed) + ")", E=rows("e_{m}"), V=rows("s_{m}"),
            update=call(update + "apply_{m}(S)", each, 3), update_seen=call(update + "apply_{m}(S)", each, 4),
            update_all=call(
                "for a in range(copies):\n    predict_{m}(C_[a], Y)\n    if special:\n        censor_{m}(C_[a], Y)\n"
                "differences(C_, D, step, {m})\naccumulate_{m}(C_[0], D, G)\nfor a in range(copies):\n    apply_{m}(C_[a])", each, 4),
            update_sensitive=call(
                update + "derive_{m}(S, D)\naccumulate_{m}(S, D, G)\napply_{m}(S)", each if self.sensitive else (), 4),
            back=call(f"backward_{{m}}(T, k*{len(self.kept())}*{W}, Z)", reversed(each), 3),
        )


def generate(system: System) -> str:
    """Module text for `twinlib.engine.kernel.load`; the same system gives the same text."""
    return Generator(system).text()
