"""Text of one integration step of the lanes: Runge-Kutta in blocks of few states, or the exact propagator of linear dynamics.

Blocks: variables are ordered so that each depends on earlier ones (strongly connected ones together). A block runs through all four
stages on its own and leaves the stage values that later blocks read in the workspace. The arithmetic is that of the joint method,
but few values live at a time, so that the processor's registers hold them.
"""

from __future__ import annotations

import graphlib

import numpy as np
import sympy as sp
from scipy.sparse import csr_matrix
from scipy.sparse.csgraph import connected_components

from twinlib.engine.printing import text

W = 16  # lanes side by side: what LLVM vectorises, with compile-time strides
BLOCK = 5  # variables per block: what the registers hold through four stages (measured: 4-5 best, 7 a third slower, 12 twice as slow)


def symbol(name: str) -> sp.Symbol:
    return sp.Symbol(name, real=True)


class Layout:
    """Rows of the workspace by name, given out as they are asked for; a row holds one number per lane."""

    def __init__(self):
        self.rows: dict[str, int] = {}

    def at(self, name: str) -> str:
        return f"S[{self.rows.setdefault(name, len(self.rows)) * W} + l]"

    def load(self, names) -> list[str]:
        return [f"{n} = {self.at(n)}" for n in sorted(set(names))]

    def reserve(self, names) -> int:
        """Give these names rows side by side; the first row."""
        first = len(self.rows)
        for n in names:
            assert n not in self.rows, n
            self.at(n)
        return first

    @property
    def size(self) -> int:
        return len(self.rows) * W


def lanes(lines: list[str]) -> str:
    """One loop over the lanes."""
    return f"    for l in range({W}):\n" + "\n".join(f"        {x}" for x in lines or ["pass"])


def names(expressions) -> set[str]:
    return {s.name for e in expressions for s in sp.sympify(e).free_symbols}


def closure(pairs: set[tuple[int, int]]) -> set[tuple[int, int]]:
    """All (i, j) that chains of the pairs lead to: the zero pattern of a matrix's powers."""
    while more := {(i, j) for i, k in pairs for k2, j in pairs if k == k2} - pairs:
        pairs = pairs | more
    return pairs


def blocks(rates: dict[str, sp.Expr]) -> list[list[str]]:
    """The variables in groups, each depending on itself and earlier groups only."""
    order = list(rates)
    position = {n: i for i, n in enumerate(order)}
    edges = [(position[n], position[m]) for n in order for m in sorted(names([rates[n]]) & set(order))]
    rows, columns = zip(*edges) if edges else ((), ())
    graph = csr_matrix((np.ones(len(rows)), (rows, columns)), shape=(len(order), len(order)))
    _, label = connected_components(graph, directed=True, connection="strong")
    needs = {int(c): set() for c in label}
    for a, b in edges:
        if label[a] != label[b]:
            needs[int(label[a])].add(int(label[b]))
    first = {int(c): int(np.flatnonzero(label == c)[0]) for c in label}
    sorter = graphlib.TopologicalSorter(needs)
    sorter.prepare()
    ready, groups = [], []
    while sorter.is_active():
        ready += sorter.get_ready()
        ready.sort(key=first.get)
        c = ready.pop(0)
        group = [n for n in order if label[position[n]] == c]
        if groups and len(groups[-1]) + len(group) <= BLOCK:
            groups[-1] += group
        else:
            groups.append(group)
        sorter.done(c)
    return groups


def runge_kutta(rates: dict[str, sp.Expr], layout: Layout, inputs: dict[str, int], shared: dict[str, sp.Expr] | None = None) -> str:
    """One classical Runge-Kutta step (order 4) of the variables named in `rates`, each lane by its own step B[l].

    inputs: row of the step buffer B by input name. shared: expressions that several rates name, worked out once per stage. Other symbols
    are rows of the workspace.
    """
    shared = {n: e for n, e in (shared or {}).items() if n in names(rates.values())}
    whole = _interleaved(rates, shared)
    groups = blocks(whole)
    home = {n: g for g, group in enumerate(groups) for n in group}
    passed = {m for n in whole for m in names([whole[n]]) if m in home and home[m] != home[n]}
    out = []
    for g, group in enumerate(groups):
        used = names(whole[n] for n in group)
        outside = sorted(m for m in used if m in home and home[m] != g)
        moving, algebraic = [n for n in group if n in rates], [n for n in group if n in shared]
        step = ["h = B[l]", "half = 0.5*h"]
        begin = layout.load({m for m in used if m not in home and m not in inputs}) + [f"{n} = B[{inputs[n] * W} + l]" for n in sorted(used & set(inputs))]
        state, split = layout.load(moving), any(_slow(whole[n]) for n in group)
        lines = [] if split else begin + state + step
        for stage in (1, 2, 3, 4):
            part = list(begin) if split else []
            at = {n: n if stage == 1 else f"y{stage}_{n}" for n in moving} | {n: f"z{stage}_{n}" for n in [*outside, *algebraic]}
            if split:
                part += state + step * (stage > 1) + [f"d{stage - 1}_{n} = {layout.at(f'd_{n}')}" for n in moving if stage > 1]
            if stage > 1:
                part += [f"{at[n]} = {n} + {'h' if stage == 4 else 'half'}*d{stage - 1}_{n}" for n in moving]
            part += [f"z{stage}_{n} = {layout.at(f'z{stage}_{n}')}" for n in outside]
            replaced = {symbol(n): symbol(v) for n, v in at.items()}
            temporaries = (symbol(f"t{stage}_{k}") for k in range(10**6))
            ordered = [*algebraic, *moving]
            common, reduced = sp.cse([whole[n].xreplace(replaced) for n in ordered], symbols=temporaries, order="canonical")
            part += _in_order([(v.name, e) for v, e in common] + [
                (at[n] if n in shared else f"d{stage}_{n}", e) for n, e in zip(ordered, reduced)
            ])
            part += [f"{layout.at(f'z{stage}_{n}')} = {at[n]}" for n in group if n in passed]
            if not split:
                lines += part
                continue
            for n in moving:
                total = f"d1_{n}" if stage == 1 else f"{layout.at(f'sum_{n}')} + {'2.0*' if stage < 4 else ''}d{stage}_{n}"
                part += [f"{layout.at(f'd_{n}')} = d{stage}_{n}", f"{layout.at(f'sum_{n}')} = {total}"] if stage < 4 else [
                    f"{layout.at(n)} = {n} + h*{1 / 6!r}*({total})"
                ]
            out.append(lanes(part))
        if not split:
            lines += [f"sixth = h*{1 / 6!r}"] * bool(moving)
            lines += [f"{layout.at(n)} = {n} + sixth*(d1_{n} + 2.0*(d2_{n} + d3_{n}) + d4_{n})" for n in moving]
            out.append(lanes(lines))
    return "\n".join(out)


def _slow(e: sp.Expr) -> bool:
    """Whether an expression holds operations that keep their successors waiting: divisions, roots and functions."""
    return e.has(sp.exp, sp.log, sp.tanh) or any(not (q.exp.is_Integer and q.exp > 0) for q in e.atoms(sp.Pow))


def _interleaved(rates: dict[str, sp.Expr], shared: dict[str, sp.Expr]) -> dict[str, sp.Expr]:
    """All expressions, each shared one right after the last variable that it reads: near the variables, it shares their sub-expressions."""
    order = list(rates)
    after = {n: max((order.index(m) for m in names([e]) & set(order)), default=-1) for n, e in shared.items()}
    out = {n: shared[n] for n in shared if after[n] < 0}
    for k, n in enumerate(order):
        out[n] = rates[n]
        out |= {m: shared[m] for m in shared if after[m] == k}
    return out


def _in_order(assignments: list[tuple[str, sp.Expr]]) -> list[str]:
    """The assignments as lines, each after those that it reads."""
    targets = {n: e for n, e in assignments}
    sorter = graphlib.TopologicalSorter({n: names([e]) & set(targets) for n, e in targets.items()})
    rank = {n: k for k, n in enumerate(targets)}
    sorter.prepare()
    lines, ready = [], []
    while sorter.is_active():
        ready = sorted([*ready, *sorter.get_ready()], key=rank.get)
        n = ready.pop(0)
        lines.append(f"{n} = {text(targets[n])}")
        sorter.done(n)
    return lines


def propagator(rates: dict[str, sp.Expr], layout: Layout, inputs: dict[str, int]) -> str:
    """One exact step of x' = A x + b with A and b constant over the step, of any length: x becomes exp(A h) x + (integral of exp) b.

    The matrix exponential of [[A, b], [0, 0]] h by a Taylor polynomial of degree 10 of the matrix scaled to norm 1/2 (error below 2e-11
    of its norm), then repeated squaring (Moler & Van Loan 2003, method 3), every lane with its own number of squarings.
    """
    states = list(rates)
    n = len(states)
    zero = dict.fromkeys((symbol(s) for s in states), sp.Integer(0))
    matrix = {(i, j): sp.diff(rates[a], symbol(b)) for i, a in enumerate(states) for j, b in enumerate(states)}
    matrix |= {(i, n): rates[a].xreplace(zero) for i, a in enumerate(states)}
    matrix = {ij: e for ij, e in matrix.items() if e != 0}
    full = sorted(closure(set(matrix) | {(i, i) for i in range(n + 1)}))
    used = names(matrix.values())
    lines = layout.load(m for m in used if m not in inputs) + [f"{m} = B[{inputs[m] * W} + l]" for m in sorted(used & set(inputs))]
    lines += ["h = B[l]"]
    lines += [f"a{i}_{j} = h*({text(e)})" for (i, j), e in matrix.items()]
    rows = [" + ".join(f"abs(a{i}_{j})" for j in range(n) if (i, j) in matrix) or "0.0" for i in range(n)]
    norm = rows[0]
    for row in rows[1:]:
        norm = f"max({norm}, {row})"
    lines += [f"norm = {norm}", "q = max(exponent_of(max(norm, 1e-300)) + 2.0, 0.0)", "q = q if q < 60.0 else 60.0", "w = power_of_two(-q)"]
    lines += [f"a{i}_{j} = w*a{i}_{j}" for i, j in matrix]
    # Horner: T = I + A (I + A/2 (I + A/3 ...)))
    lines += [f"e{i}_{j} = {'1.0' if i == j else '0.0'}" for i, j in full]
    for degree in range(10, 0, -1):
        for i, j in full:
            terms = [f"a{i}_{k}*e{k}_{j}" for k in range(n + 1) if (i, k) in matrix and (k, j) in full]
            total = f"{1 / degree!r}*({' + '.join(terms)})" if terms else "0.0"
            lines += [f"n{i}_{j} = {'1.0 + ' if i == j else ''}{total}"]
        lines += [f"e{i}_{j} = n{i}_{j}" for i, j in full]
    lines += [f"{layout.at(f'e{i}_{j}')} = e{i}_{j}" for i, j in full] + [f"{layout.at('squarings')} = q"]
    square = layout.load([f"e{i}_{j}" for i, j in full]) + [f"more = {layout.at('squarings')} > round"]
    for i, j in full:
        total = " + ".join(f"e{i}_{k}*e{k}_{j}" for k in range(n + 1) if (i, k) in full and (k, j) in full)
        square += [f"{layout.at(f'e{i}_{j}')} = {total} if more else e{i}_{j}"]
    apply = layout.load([f"e{i}_{j}" for i, j in full if i < n] + states)
    for i, s in enumerate(states):
        parts = [f"e{i}_{j}*{states[j]}" for j in range(n) if (i, j) in full] + [f"e{i}_{n}"] * ((i, n) in full)
        apply += [f"{layout.at(s)} = {' + '.join(parts)}"]
    squaring = "\n".join("    " + line for line in lanes(square).splitlines())
    first = layout.rows["squarings"] * W
    return "\n".join([
        lanes(lines), "    rounds = 0.0", f"    for l in range({W}):", f"        rounds = max(rounds, S[{first} + l])",
        "    round = 0.0", "    while round < rounds:", squaring, "        round += 1.0", lanes(apply),
    ])
