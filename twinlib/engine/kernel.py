"""The compiled kernel of a model: generated text, loaded once per process, behind a NumPy interface."""

from __future__ import annotations

import functools
import hashlib
import importlib.util
import os
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from twinlib.engine.codegen import generate
from twinlib.engine.contract import Model
from twinlib.engine.trace import trace


@functools.lru_cache(maxsize=16)
def load(source: str):
    """The generated module, compiled on first use.

    The text lies in a file named by its own hash, so numba's disk cache hits in every worker of the machine and is never stale.
    The folder is $TWINLIB_KERNELS, or one in the user's temporary folder.
    """
    key = hashlib.sha256(source.encode()).hexdigest()[:16]
    folder = Path(os.environ.get("TWINLIB_KERNELS") or Path(tempfile.gettempdir()) / f"twinlib-kernels-{os.getuid()}")
    folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    name = f"twinlib_kernel_{key}"
    path = folder / f"{name}.py"
    if not path.exists() or path.read_text() != source:
        part = folder / f".{name}.{os.getpid()}"
        part.write_text(source)
        part.replace(path)
    spec = importlib.util.spec_from_file_location(name, path)
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module
    spec.loader.exec_module(module)
    return module


@dataclass(frozen=True)
class Data:
    """What the kernel reads of a batch of patients, C-contiguous float64.

    constants (rows, constants); inputs (rows, slots*intervals*inputs): rates per minute; readings (rows, slots), NaN = missing.
    """

    constants: np.ndarray
    inputs: np.ndarray
    readings: np.ndarray

    def take(self, rows) -> Data:
        return Data(self.constants[rows], self.inputs[rows], self.readings[rows])

    def with_inputs(self, inputs: np.ndarray) -> Data:
        return Data(self.constants, inputs, self.readings)


class Kernel:
    """Filter, smoother and simulator of one model. Pickles as text; the worker compiles it.

    `who` (lanes,) names the data row of each lane, `theta` (lanes, parameters) is on the natural scale. `halvings` halves the step.
    """

    def __init__(self, model: Model, slot_minutes: float):
        self.source = generate(trace(model))
        self.hash = hashlib.sha256(self.source.encode()).hexdigest()[:12]
        self.interval = float(model.input_minutes)
        self.intervals = int(round(slot_minutes / self.interval))

    @property
    def module(self):
        return load(self.source)

    @staticmethod
    def _lanes(theta, who):
        return np.ascontiguousarray(theta, np.float64), np.ascontiguousarray(who, np.int64)

    def filter(self, theta, who, data: Data, full: bool, halvings: int = 0):
        """nll (lanes,), and innovations and their variances (lanes, slots) where `full` (else empty arrays)."""
        theta, who = self._lanes(theta, who)
        shape = (who.size, data.readings.shape[1]) if full else (0, 0)
        e, v, nll = np.empty(shape), np.empty(shape), np.empty(who.size)
        self.module.filter_lanes(
            theta, who, data.constants, data.inputs, data.readings, self.intervals, self.interval, 2**halvings, full, e, v, nll
        )
        return nll, e, v

    def smooth(self, theta, who, data: Data):
        """Smoothed noise (lanes, slots, noisy states) and smoothed initial noisy states (lanes, noisy states)."""
        theta, who = self._lanes(theta, who)
        m = self.module
        noise = np.empty((who.size, data.readings.shape[1], m.noisy_count))
        start = np.empty((who.size, m.noisy_count))
        m.smooth_lanes(theta, who, data.constants, data.inputs, data.readings, self.intervals, self.interval, 1, noise, start)
        return noise, start

    def simulate(self, theta, who, data: Data, noise, start, halvings: int = 0):
        """The signal (lanes, slots) at the end of each slot under the given noise and start."""
        theta, who = self._lanes(theta, who)
        out = np.empty((who.size, data.readings.shape[1]))
        self.module.simulate_lanes(
            theta, who, data.constants, data.inputs, self.intervals, self.interval, 2**halvings, noise, start, out
        )
        return out
