"""A batch of timelines as arrays: what the engine reads, decoded from Arrow without copies where possible."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import pyarrow as pa
from numba import njit

from twinlib.engine.contract import Model
from twinlib.engine.kernel import Data
from twinlib.models.timeline import Events, Inputs


@njit(cache=True, error_model="numpy")
def _spread(minutes, amounts, durations, least, interval, scale, out):
    """Add events to rates per minute on a grid of `interval` minutes; what lies outside the grid is left out."""
    n = out.size
    for i in range(minutes.size):
        duration = max(durations[i], least)
        begin, end = minutes[i], minutes[i] + duration
        rate = amounts[i] * scale / duration
        first = max(int(np.floor(begin / interval)), 0)
        last = min(int(np.ceil(end / interval)), n)
        for k in range(first, last):
            overlap = min(end, (k + 1) * interval) - max(begin, k * interval)
            if overlap > 0:
                out[k] += rate * overlap / interval


@njit(cache=True)
def _total(minutes, amounts, durations, end):
    total = 0.0
    for i in range(minutes.size):
        inside = min(minutes[i] + durations[i], end) - max(minutes[i], 0.0)
        if durations[i] > 0:
            total += amounts[i] * max(inside, 0.0) / durations[i]
        elif 0 <= minutes[i] < end:
            total += amounts[i]
    return total


@dataclass(frozen=True)
class Batch:
    """Patient-episodes of equal length and grid.

    ids: (patient_id, episode) per row; signal (rows, slots) in the signal's unit, NaN = missing; inputs: events by agent per row;
    covariates: values by name per row; offsets (rows,): local time minus UTC at the start, minutes.
    """

    ids: tuple[tuple[str, str], ...]
    minutes: int
    step: int
    signal: np.ndarray
    inputs: tuple[Inputs, ...]
    covariates: tuple[dict[str, float], ...]
    offsets: np.ndarray

    def __len__(self) -> int:
        return len(self.ids)

    def total(self, agent: str, inputs: tuple[Inputs, ...] | None = None) -> np.ndarray:
        """(rows,) amount of an agent that falls into the episode, canonical unit."""
        none = Events.of([], [])
        events = [i.get(agent, none) for i in (self.inputs if inputs is None else inputs)]
        return np.array([_total(e.minutes, e.amounts, e.durations, float(self.minutes)) for e in events])

    def covariate(self, name: str) -> np.ndarray:
        """(rows,) values of a covariate."""
        return np.array([c[name] for c in self.covariates])

    def rates(self, model: Model, inputs: tuple[Inputs, ...] | None = None) -> np.ndarray:
        """(rows, intervals*inputs) rates per minute of the model's inputs, interval by interval."""
        inputs = self.inputs if inputs is None else inputs
        count = int(round(self.minutes / model.input_minutes))
        out = np.zeros((len(inputs), len(model.inputs), count))
        for row, (events, covariates) in enumerate(zip(inputs, self.covariates)):
            for column, declared in enumerate(model.inputs):
                scale = declared.factor / (covariates["body_weight"] if declared.per_weight else 1.0)
                for agent in declared.agents:
                    e = events.get(agent)
                    if e is not None:
                        _spread(e.minutes, e.amounts, e.durations, declared.spread_minutes, model.input_minutes, scale, out[row, column])
        return np.ascontiguousarray(out.transpose(0, 2, 1)).reshape(len(inputs), -1)

    def data(self, model: Model) -> Data:
        """The batch as the kernel reads it."""
        constants = model.constants(self)
        columns = np.column_stack([constants[n] for n in model.constant_names]) if model.constant_names else np.zeros((len(self), 0))
        return Data(np.ascontiguousarray(columns, np.float64), self.rates(model), self.signal)


def _nested(array: pa.ListArray):
    """Offsets of a list column (sliced arrays included) and its values."""
    return array.offsets.to_numpy(), array.values


def decode(table: pa.Table, model: Model) -> Batch:
    """A batch from rows of the `timelines` table (all of one length and grid), in the rows' order."""
    table = table.combine_chunks()
    column = lambda name: table.column(name).chunk(0) if table.num_rows else table.column(name).combine_chunks()  # noqa: E731
    minutes, step = column("minutes")[0].as_py(), column("step_minutes")[0].as_py()
    if set(column("minutes").to_pylist()) != {minutes} or set(column("step_minutes").to_pylist()) != {step}:
        raise ValueError("timelines of one batch must have one length and one grid")

    signal = np.full((table.num_rows, minutes // step), np.nan)
    at, structs = _nested(column("signals"))
    names, (value_at, values) = structs.field("signal").to_pylist(), _nested(structs.field("values"))
    values = values.to_numpy(zero_copy_only=False)
    for row in range(table.num_rows):
        for k in range(at[row], at[row + 1]):
            if names[k] == model.signal.name:
                signal[row] = values[value_at[k] : value_at[k + 1]]

    at, structs = _nested(column("inputs"))
    names = structs.field("input").to_pylist()
    fields = [(_nested(structs.field(f))) for f in ("minutes", "amounts", "durations", "labels")]
    numbers = [v.to_numpy(zero_copy_only=False).astype(np.float64) for _, v in fields[:3]]
    labels = fields[3][1].to_pylist()
    inputs = []
    for row in range(table.num_rows):
        found = {}
        for k in range(at[row], at[row + 1]):
            a, b = fields[0][0][k], fields[0][0][k + 1]
            text = labels[fields[3][0][k] : fields[3][0][k + 1]]
            found[names[k]] = Events.of(numbers[0][a:b], numbers[1][a:b], numbers[2][a:b], [t or "" for t in text])
        inputs.append(found)

    at, structs = _nested(column("covariates"))
    names, numbers = structs.field("name").to_pylist(), structs.field("value").to_pylist()
    covariates = tuple(dict(zip(names[at[r] : at[r + 1]], numbers[at[r] : at[r + 1]])) for r in range(table.num_rows))
    ids = tuple(zip(column("patient_id").to_pylist(), column("episode").to_pylist()))
    offsets = column("utc_offset_minutes").to_numpy(zero_copy_only=False)
    return Batch(ids, minutes, step, np.ascontiguousarray(signal), tuple(inputs), covariates, offsets)
