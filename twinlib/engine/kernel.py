"""The compiled kernel of a model: generated text, loaded once per process, behind a NumPy interface."""

from __future__ import annotations

import functools
import hashlib
import importlib.util
import os
import pickle
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numba
import numpy as np
from filelock import FileLock
from llvmlite.binding import get_host_cpu_name
from numba import njit

from twinlib.engine.codegen import generate
from twinlib.engine.contract import Model
from twinlib.engine.schedule import Schedule
from twinlib.engine.trace import trace

_COMPILE = "import pickle, sys; pickle.load(sys.stdin.buffer).touch()"
STEP = 1e-4  # of the copies, on the transformed scale: bias of the mode below 0.1 % of a posterior SD


@functools.lru_cache(maxsize=16)
def load(source: str):
    """The generated module, compiled on first use.

    The text lies in a file named by its own hash, so numba's disk cache hits in every worker of the machine and is never stale.
    The folder is $TWINLIB_KERNELS, or one in the user's temporary folder.
    """
    path = _path(source)
    name = path.stem
    if not path.exists() or path.read_text() != source:
        part = path.with_name(f".{name}.{os.getpid()}")
        part.write_text(source)
        part.replace(path)
    spec = importlib.util.spec_from_file_location(name, path)
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module
    spec.loader.exec_module(module)
    return module


def _path(source: str) -> Path:
    folder = Path(os.environ.get("TWINLIB_KERNELS") or Path(tempfile.gettempdir()) / f"twinlib-kernels-{os.getuid()}")
    folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    return folder / f"twinlib_kernel_{hashlib.sha256(source.encode()).hexdigest()[:16]}.py"


def _starts(counts) -> np.ndarray:
    """Where each of some stretches begins in their concatenation, and where the last one ends."""
    return np.concatenate([[0], np.cumsum(counts)]).astype(np.int64)


def ranges(starts, counts) -> np.ndarray:
    """The integers starts[i] .. starts[i]+counts[i], one range after the other."""
    ends = np.cumsum(counts)
    return np.arange(ends[-1] if len(ends) else 0) + np.repeat(starts - (ends - counts), counts)


@njit(cache=True)
def _plan(step_at, fresh):
    out = 2 * step_at
    for slot in range(step_at.size - 1):
        for s in range(step_at[slot], step_at[slot + 1]):
            if fresh[s]:
                out[slot] |= 1
    return out


@njit(cache=True)
def _merged(step_at, lengths, fresh, longest):
    """Consecutive steps of a slot as one, up to a length of `longest`, where nothing changes between them: first steps of the slots, lengths,
    the first of the steps that became one, and which differ from the one before."""
    to, at, h, new = np.empty_like(step_at), np.empty(lengths.size, np.int64), np.empty_like(lengths), np.empty_like(fresh)
    n = 0
    for slot in range(step_at.size - 1):
        to[slot] = n
        for s in range(step_at[slot], step_at[slot + 1]):
            if s > step_at[slot] and not fresh[s] and h[n - 1] + lengths[s] <= longest:
                h[n - 1] += lengths[s]
            else:
                h[n], at[n] = lengths[s], s
                n += 1
    to[-1] = n
    for i in range(n):
        new[i] = fresh[at[i]] or h[i] != h[i - 1]
    return to, h[:n], at[:n], new[:n]


@dataclass(frozen=True)
class Data:
    """What the kernel reads of a batch of patients; patients may differ in everything. C-contiguous.

    constants (rows, constants); slot_at (rows + 1,): the slots of row r are slot_at[r]..slot_at[r+1]; step_at (all slots + 1,): the
    steps that lead up to a slot; lengths (all steps,), rates (all steps, inputs), doses (all steps, dosed inputs) at a step's start; fresh
    (all steps,) whether a step differs from the one before; readings (all slots, signals), NaN = missing.
    """

    constants: np.ndarray
    slot_at: np.ndarray
    step_at: np.ndarray
    lengths: np.ndarray
    rates: np.ndarray
    doses: np.ndarray
    fresh: np.ndarray
    readings: np.ndarray

    @classmethod
    def of(cls, constants: np.ndarray, schedules: Sequence[Schedule], readings: Sequence[np.ndarray]) -> Data:
        """From the patients' schedules and readings (slots, signals)."""
        slots, steps = _starts([len(y) for y in readings]), _starts([len(s.lengths) for s in schedules])
        ends = [s.ends + first for s, first in zip(schedules, steps)]
        whole = lambda parts, shape: np.ascontiguousarray(np.concatenate(parts)) if parts else np.zeros(shape)  # noqa: E731
        return cls(
            np.ascontiguousarray(constants, np.float64), slots, np.concatenate([[0], *ends]).astype(np.int64),
            whole([s.lengths for s in schedules], 0), whole([s.rates for s in schedules], (0, 0)), whole([s.doses for s in schedules], (0, 0)),
            np.concatenate([np.zeros(0, bool), *[s.fresh for s in schedules]]), whole([np.asarray(y, np.float64) for y in readings], (0, 0)),
        )

    def __len__(self) -> int:
        return len(self.slot_at) - 1

    @property
    def slots(self) -> np.ndarray:
        """(rows,) number of slots."""
        return np.diff(self.slot_at)

    def take(self, rows) -> Data:
        """The data of these rows."""
        slots = ranges(self.slot_at[:-1][rows], self.slots[rows])
        per_slot = np.diff(self.step_at)[slots]
        steps = ranges(self.step_at[:-1][slots], per_slot)
        return Data(
            self.constants[rows], _starts(self.slots[rows]), _starts(per_slot), self.lengths[steps], self.rates[steps], self.doses[steps],
            self.fresh[steps], self.readings[slots],
        )

    def coarse(self, longest: float) -> Data:
        """The same with steps of up to `longest`, as far as inputs and readings allow; itself where no two steps fit into one."""
        if self.lengths.size and 2 * self.lengths.min() > (1 + 1e-9) * longest:
            return self
        step_at, lengths, first, fresh = _merged(self.step_at, self.lengths, self.fresh, (1 + 1e-9) * longest)
        return replace(self, step_at=step_at, lengths=lengths, rates=self.rates[first], doses=self.doses[first], fresh=fresh)

    def between(self, first: int, last: int) -> Data:
        """The slots first..last of data of one row, with the steps that lead up to them."""
        at = self.step_at[first : last + 1]
        steps = slice(at[0], at[-1])
        fresh = self.fresh[steps].copy()
        fresh[:1] = True  # nothing stands before it
        return Data(
            self.constants, np.array([0, last - first]), at - at[0], self.lengths[steps], self.rates[steps], self.doses[steps],
            fresh, self.readings[first:last],
        )

    def row(self, r: int) -> np.ndarray:
        """(slots, signals) readings of row r."""
        return self.readings[self.slot_at[r] : self.slot_at[r + 1]]

    @functools.cached_property
    def plan(self) -> np.ndarray:
        """(all slots + 1,) twice the first step of a slot, plus 1 where one of its steps differs from the step before it: the kernel gathers
        only those."""
        return _plan(self.step_at, self.fresh)

    def counts(self) -> np.ndarray:
        """(rows,) number of readings."""
        return np.diff(_starts((~np.isnan(self.readings)).sum(1))[self.slot_at])


class Kernel:
    """Likelihood, derivatives, smoother and simulator of one model. Pickles as the model's name and text; the worker compiles it.

    `theta` (lanes, fitted) is on the transformed scale; `who` (lanes,) names the data row of each lane. What differs by slot comes as
    (sum of the lanes' slots, ...), lane after lane.
    """

    def __init__(self, model: Model):
        self.model = model
        self.source = generate(trace(model))
        self.hash = hashlib.sha256(self.source.encode()).hexdigest()[:12]

    @property
    def module(self):
        return load(self.source)

    def compile(self) -> float:
        """Load all entry points from the disk cache; the seconds that took (next to nothing when it is done already).

        What is not there yet is compiled by a process of its own: code that numba has just compiled and the same code loaded from the cache
        are linked differently, and then differ in the last bit. One process of a machine at a time, since two that compile side by side take
        some functions from each other's cache. Where that process cannot, this one compiles.
        """
        began = time.monotonic()
        mark, where = _path(self.source).with_suffix(".compiled"), f"{os.environ.get('NUMBA_CACHE_DIR')} {numba.__version__} {get_host_cpu_name()}"
        with FileLock(mark.with_suffix(".lock")):
            if (not mark.exists() or mark.read_text() != where) and self._compiled_apart():
                mark.write_text(where)
            self.touch()
        return time.monotonic() - began

    def _compiled_apart(self) -> bool:
        """Whether a process of its own could compile: it cannot import a model that stands in a notebook."""
        try:
            given = pickle.dumps(self)
        except (pickle.PicklingError, AttributeError, TypeError):
            return False
        environment = os.environ | {"PYTHONPATH": os.pathsep.join(p for p in sys.path if p)}
        return subprocess.run([sys.executable, "-c", _COMPILE], input=given, env=environment, capture_output=True).returncode == 0

    def touch(self) -> None:
        """Call every entry point once."""
        p, c = len(self.model.fitted), len(self.model.constants)
        count = len(self.model.inputs)
        doses = sum(i.spread == 0 for i in self.model.inputs)
        step = Schedule(np.array([0, 1]), np.ones(1), np.zeros((1, count)), np.zeros((1, doses)), np.ones(1, bool))
        data = Data.of(np.ones((1, c)), [step], [np.full((2, len(self.model.signals)), np.nan)])
        theta, who = self.model.prior_mean[None], np.zeros(1, int)
        with np.errstate(all="ignore"):
            self.innovations(theta, who, data)
            for exact in {False, self.module.sensitive} if p else ():
                self.derivatives(theta, who, data, exact)
            self.simulate(theta, who, data, *self.smooth(theta, who, data))

    @property
    def nominal_step(self) -> float:
        """Nominal step in the model's time unit; infinite where the propagator is exact."""
        return np.inf if self.module.exact_step else self.model.step

    @property
    def search_step(self) -> float:
        """Longest step with which the search for a mode begins."""
        return self.model.search_step or 2 * self.model.step

    @staticmethod
    def _arrays(data: Data):
        return data.constants, data.slot_at, data.plan, data.lengths, data.rates, data.doses

    def likelihood(self, theta, who, data: Data) -> np.ndarray:
        """(lanes,) minus log likelihood without the constant log(2 pi)/2 per reading."""
        return self._likelihood(theta, who, data, full=False)[0]

    def innovations(self, theta, who, data: Data) -> tuple[np.ndarray, np.ndarray]:
        """What each reading adds to those before it: innovation and its variance (all slots, signals); 0 and 1 where none is."""
        return self._likelihood(theta, who, data, full=True)[1:]

    def _likelihood(self, theta, who, data, full):
        who = np.ascontiguousarray(who, np.int64)
        to = _starts(data.slots[who])
        shape = (to[-1], data.readings.shape[1]) if full else (0, 0)
        e, v, nll = np.empty(shape), np.empty(shape), np.empty(who.size)
        self.module.likelihood_lanes(self.natural(theta), who, *self._arrays(data), data.readings, full, to, e, v, nll)
        return nll, e, v

    def derivatives(self, theta, who, data: Data, exact: bool | None = None) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Minus log likelihood (lanes,), its gradient (lanes, fitted) and expected Hessian (lanes, fitted, fitted) by theta.

        exact: by traced sensitivities, which models without process noise have; by copies of the parameters otherwise. None: the better.
        """
        theta, who = np.asarray(theta, np.float64), np.ascontiguousarray(who, np.int64)
        n, p = theta.shape
        nll, g, h = np.empty(n), np.empty((n, p)), np.empty((n, p, p))
        if self.module.sensitive if exact is None else exact:
            natural = self.natural(theta)
            self.module.sensitive_lanes(natural, who, *self._arrays(data), data.readings, nll, g, h)
            fitted = self.model.fitted_natural(theta)
            slope = np.stack([q.slope(fitted[:, j]) for j, q in enumerate(self.model.fitted)], axis=1)
            g *= slope
            h *= slope[:, :, None] * slope[:, None, :]
        else:
            copies = np.repeat(theta[:, None], 1 + p, axis=1)
            copies[:, 1 + np.arange(p), np.arange(p)] += STEP
            self.module.copies_lanes(self.natural(copies), who, *self._arrays(data), data.readings, STEP, nll, g, h)
        return nll, g, h

    def smooth(self, theta, who, data: Data) -> tuple[np.ndarray, np.ndarray]:
        """Smoothed noise (all slots, noisy states) and smoothed initial noisy states (lanes, noisy states)."""
        who, m = np.ascontiguousarray(who, np.int64), self.module
        to = _starts(data.slots[who])
        noise, start = np.zeros((to[-1], m.noisy_count)), np.zeros((who.size, m.noisy_count))
        if m.noisy_count:
            m.smooth_lanes(self.natural(theta), who, *self._arrays(data), data.readings, to, noise, start)
        return noise, start

    def simulate(self, theta, who, data: Data, noise, start, halvings: int = 0) -> np.ndarray:
        """The signals (all slots, signals) under the given noise and start; `halvings` halves the step."""
        state = np.empty((len(who), len(self.model.states)))
        return self._simulate(self.natural(theta), who, data, noise, start, False, state, 2**halvings)

    def natural(self, theta) -> np.ndarray:
        """(lanes, parameters) natural values of all parameters, as `begin` and `resume` take them."""
        return np.ascontiguousarray(self.model.natural(np.asarray(theta, np.float64)))

    def begin(self, natural, who, data: Data, start) -> np.ndarray:
        """(lanes, states) the states at the start of each lane's patient."""
        state = np.empty((len(who), len(self.model.states)))
        nothing = Data(data.constants, np.zeros(len(data) + 1, np.int64), np.zeros(1, np.int64), data.lengths, data.rates, data.doses, data.fresh, data.readings[:0])
        self._simulate(natural, who, nothing, np.empty((0, self.module.noisy_count)), start, False, state)
        return state

    def resume(self, natural, who, data: Data, noise, state: np.ndarray) -> np.ndarray:
        """Like `simulate`, from `state` (lanes, states) on, which is moved to the end of the data. Going on piece by piece gives the bits of
        one run over all pieces."""
        return self._simulate(natural, who, data, noise, state[:, :0], True, state)

    def _simulate(self, natural, who, data, noise, start, resume, state, substeps=1):
        who = np.ascontiguousarray(who, np.int64)
        to = _starts(data.slots[who])
        out = np.empty((to[-1], data.readings.shape[1]))
        start = np.ascontiguousarray(start)
        self.module.simulate_lanes(natural, who, *self._arrays(data), substeps, to, noise, start, resume, state, out)
        return out

    def disturb(self, theta, who, data: Data, z, z_start) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
        """A course of the noise that the model expects, from standard normal numbers z (all slots, noisy states) and z_start (lanes, noisy
        states): noise and start as `smooth` gives them, the signals without error, and the variance of a reading's error (all slots,
        signals; on the log scale where the error is)."""
        who = np.ascontiguousarray(who, np.int64)
        to = _starts(data.slots[who])
        noise, start = np.empty((to[-1], self.module.noisy_count)), np.array(z_start, np.float64, order="C")
        out, variance = (np.empty((to[-1], data.readings.shape[1])) for _ in range(2))
        z = np.ascontiguousarray(z, np.float64)
        self.module.disturb_lanes(self.natural(theta), who, *self._arrays(data), z, to, noise, start, out, variance)
        return noise, start, out, variance
