"""What the core can do, and how much of it a kernel asks for: floating point operations counted in the generated text."""

from __future__ import annotations

import ast
import time
from contextlib import suppress

import numpy as np
import psutil
from numba import njit


@njit(fastmath={"contract"}, error_model="numpy")
def _chains(a, n, b, c):
    # 32 dependent multiply-adds on each of 128 numbers: sixteen independent vectors hide the latency of the units
    for _ in range(n):
        for k in range(128):
            x = a[k]
            x = x * b + c; x = x * b + c; x = x * b + c; x = x * b + c; x = x * b + c; x = x * b + c; x = x * b + c; x = x * b + c  # noqa: E702
            x = x * b + c; x = x * b + c; x = x * b + c; x = x * b + c; x = x * b + c; x = x * b + c; x = x * b + c; x = x * b + c  # noqa: E702
            x = x * b + c; x = x * b + c; x = x * b + c; x = x * b + c; x = x * b + c; x = x * b + c; x = x * b + c; x = x * b + c  # noqa: E702
            x = x * b + c; x = x * b + c; x = x * b + c; x = x * b + c; x = x * b + c; x = x * b + c; x = x * b + c; x = x * b + c  # noqa: E702
            a[k] = x


def peak_gflops() -> float:
    """Double precision multiply-adds of one core, as the same compiler makes them: best of nine short runs."""
    a, n = np.random.default_rng(0).random(128), 10_000
    _chains(a, 1, 0.9, 0.1)
    best = np.inf
    for _ in range(9):
        began = time.thread_time()
        _chains(a, n, 0.9, 0.1)
        best = min(best, time.thread_time() - began)
    return n * 128 * 32 * 2 / best / 1e9


def tree_cpu_seconds() -> float:
    """CPU seconds so far of this process and of all that it has started (Spark's driver and workers), living or gone."""
    total, own = 0.0, psutil.Process()
    for process in (own, *own.children(recursive=True)):
        with suppress(psutil.NoSuchProcess):
            t = process.cpu_times()
            total += t.user + t.system + t.children_user + t.children_system  # children: those that have ended
    return total


def tree_bytes(pid: int) -> int:
    """Resident bytes of a process and of all that it has started; 0 where it is gone."""
    total = 0
    with suppress(psutil.NoSuchProcess):
        root = psutil.Process(pid)
        for process in (root, *root.children(recursive=True)):
            with suppress(psutil.NoSuchProcess):
                total += process.memory_info().rss
    return total


class _Counter(ast.NodeVisitor):
    """Operations on floats; index arithmetic does not count."""

    def __init__(self, functions: dict[str, int]):
        self.functions, self.count = functions, 0

    def visit_Subscript(self, node):
        pass

    def visit_BinOp(self, node):
        self.count += 1
        self.generic_visit(node)

    def visit_Call(self, node):
        name = node.func.id if isinstance(node.func, ast.Name) else getattr(node.func, "attr", "")
        self.count += self.functions.get(name, 1 if name in ("sqrt", "abs", "max", "min") else 0)
        for a in node.args:
            self.visit(a)


def operations(source: str, function: str) -> int:
    """Floating point operations per lane of one call of a generated function."""
    found = {n.name: n for n in ast.parse(source).body if isinstance(n, ast.FunctionDef)}
    functions: dict[str, int] = {}
    for name in ("exp_", "log_", "tanh_", function):
        counter = _Counter(functions)
        for loop in found[name].body:
            counter.visit(loop)
        functions[name] = counter.count
    return functions[function]
