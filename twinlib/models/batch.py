"""A batch of timelines as arrays: what the engine reads, decoded from Arrow without copies where possible."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import pyarrow as pa
from numba import njit

from twinlib.engine.contract import Input, Model
from twinlib.engine.kernel import Data
from twinlib.engine.schedule import Drive, build
from twinlib.models.timeline import Events, Inputs, joined


@dataclass(frozen=True)
class Series:
    """Readings of one signal: minutes from the episode's start, increasing, and values in the signal's unit, NaN = missing."""

    minutes: np.ndarray
    values: np.ndarray


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
    """Patient-episodes; each may have its own length and instants.

    ids: (patient_id, episode) per row; minutes (rows,): length of the episode; signals: series by signal per row; inputs: events by agent
    per row; covariates: values by name per row; offsets (rows,): local time minus UTC at the start, minutes.
    """

    ids: tuple[tuple[str, str], ...]
    minutes: np.ndarray
    signals: tuple[dict[str, Series], ...]
    inputs: tuple[Inputs, ...]
    covariates: tuple[dict[str, float], ...]
    offsets: np.ndarray

    @classmethod
    def stack(cls, parts: Sequence[Batch]) -> Batch:
        """The rows of all parts, in order."""
        rows_of = lambda name: tuple(row for p in parts for row in getattr(p, name))  # noqa: E731
        numbers = lambda name: np.concatenate([getattr(p, name) for p in parts])  # noqa: E731
        return cls(rows_of("ids"), numbers("minutes"), rows_of("signals"), rows_of("inputs"), rows_of("covariates"), numbers("offsets"))

    def __len__(self) -> int:
        return len(self.ids)

    def total(self, agent: str) -> np.ndarray:
        """(rows,) amount of an agent that falls into the episode, canonical unit."""
        none = Events.of([], [])
        events = [i.get(agent, none) for i in self.inputs]
        return np.array([_total(e.minutes, e.amounts, e.durations, float(m)) for e, m in zip(events, self.minutes)])

    def covariate(self, name: str) -> np.ndarray:
        """(rows,) values of a covariate."""
        return np.array([c[name] for c in self.covariates])

    def first(self, signal: str) -> np.ndarray:
        """(rows,) the first reading of a signal, NaN where there is none."""
        known = [s[signal].values[~np.isnan(s[signal].values)] if signal in s else () for s in self.signals]
        return np.array([v[0] if len(v) else np.nan for v in known])

    def row(self, i: int) -> Batch:
        """The batch of row i alone."""
        return Batch(
            self.ids[i : i + 1], self.minutes[i : i + 1], self.signals[i : i + 1], self.inputs[i : i + 1], self.covariates[i : i + 1],
            self.offsets[i : i + 1],
        )

    def with_inputs(self, inputs: tuple[Inputs, ...]) -> Batch:
        """The same readings under other inputs."""
        return replace(self, inputs=inputs)

    def completed(self, model: Model) -> Batch:
        """The same with the inputs that the model takes to be implied by the records; those that a row has already stay as they are."""
        if not model.implied:
            return self
        return self.with_inputs(tuple(i if all(a in i for a in model.implied) else model.imply(i, s) | i for i, s in zip(self.inputs, self.signals)))

    def scale(self, model: Model, row: int, declared: Input) -> float:
        """Amount of an agent of one row -> the input's unit times the model's time unit."""
        return model.input_factor(declared) / (self.covariates[row]["body_weight"] if declared.per_weight else 1.0)

    def drive(self, model: Model, row: int, declared: Input, agents: tuple[str, ...]) -> Drive:
        """What some agents of an input give, in the model's units."""
        unit = model.minutes_per_unit()
        events = joined(self.inputs[row][a] for a in agents if a in self.inputs[row])
        minutes = events.durations if declared.pace is None else np.maximum(events.durations, events.amounts / declared.pace)
        return Drive(events.minutes / unit, events.amounts * self.scale(model, row, declared), minutes / unit, declared.spread)

    def drives(self, model: Model, row: int) -> list[Drive]:
        """The inputs of one row in the model's units."""
        return [self.drive(model, row, declared, declared.agents) for declared in model.inputs]

    def _series(self, model: Model, row: int) -> list[Series]:
        return [self.signals[row].get(s.name, Series(np.zeros(0), np.zeros(0))) for s in model.signals]

    def instants(self, model: Model, row: int) -> np.ndarray:
        """Minutes of the slots of one row: all instants at which a signal of the model may have a reading."""
        series = self._series(model, row)
        return series[0].minutes if len(series) == 1 else np.unique(np.concatenate([s.minutes for s in series]))

    def last_minute(self, model: Model, row: int) -> float:
        """Minute of the last reading of a signal of the model; minus infinity where there is none."""
        known = [s.minutes[~np.isnan(s.values)] for s in self._series(model, row)]
        return max((m[-1] for m in known if len(m)), default=-np.inf)

    def data(self, model: Model, nominal_step: float, constants: np.ndarray | None = None) -> Data:
        """The batch as the kernel reads it, completed with what its inputs imply. constants (rows, constants): those of the patients' own
        inputs, where the batch has others (which imply nothing)."""
        unit = model.minutes_per_unit()
        if constants is None:
            self = self.completed(model)
            values = model.patient_constants(self)
            constants = np.column_stack([values[c.name] for c in model.constants]) if model.constants else np.zeros((len(self), 0))
        schedules, readings = [], []
        for row in range(len(self)):
            series, instants = self._series(model, row), self.instants(model, row)
            y = np.full((len(instants), len(series)), np.nan)
            for m, s in enumerate(series):
                y[np.searchsorted(instants, s.minutes), m] = s.values
            schedules.append(build(instants / unit, self.drives(model, row), nominal_step))
            readings.append(y)
        return Data.of(constants, schedules, readings)


def _nested(array: pa.ListArray):
    """Offsets of a list column (sliced arrays included) and its values."""
    return array.offsets.to_numpy(), array.values


def _numbers(array: pa.Array) -> np.ndarray:
    return array.to_numpy(zero_copy_only=False).astype(np.float64, copy=False)


def _signals(column, steps: np.ndarray) -> list[dict[str, Series]]:
    at, structs = _nested(column)
    names = structs.field("signal").to_pylist()
    (value_at, values), (minute_at, minutes) = _nested(structs.field("values")), _nested(structs.field("minutes"))
    values, minutes = _numbers(values), _numbers(minutes)
    gridded = structs.field("minutes").is_null().to_numpy(zero_copy_only=False)
    out = []
    for row, step in enumerate(steps):
        found = {}
        for k in range(at[row], at[row + 1]):
            y = values[value_at[k] : value_at[k + 1]]
            found[names[k]] = Series(np.arange(len(y)) * float(step) if gridded[k] else minutes[minute_at[k] : minute_at[k + 1]], y)
        out.append(found)
    return out


def _inputs(column, rows: int) -> list[Inputs]:
    at, structs = _nested(column)
    names = structs.field("input").to_pylist()
    fields = [_nested(structs.field(f)) for f in ("minutes", "amounts", "durations", "labels")]
    numbers, labels = [_numbers(v) for _, v in fields[:3]], fields[3][1].to_pylist()
    out = []
    for row in range(rows):
        found = {}
        for k in range(at[row], at[row + 1]):
            a, b = fields[0][0][k], fields[0][0][k + 1]
            text = labels[fields[3][0][k] : fields[3][0][k + 1]]
            found[names[k]] = Events.of(numbers[0][a:b], numbers[1][a:b], numbers[2][a:b], [t or "" for t in text])
        out.append(found)
    return out


def decode(table: pa.Table) -> Batch:
    """A batch from rows of the `timelines` table, in the rows' order."""
    table = table.combine_chunks()
    column = lambda name: table.column(name).chunk(0) if table.num_rows else table.column(name).combine_chunks()  # noqa: E731
    at, structs = _nested(column("covariates"))
    names, numbers = structs.field("name").to_pylist(), structs.field("value").to_pylist()
    return Batch(
        tuple(zip(column("patient_id").to_pylist(), column("episode").to_pylist())),
        column("minutes").to_numpy(zero_copy_only=False).astype(np.float64),
        tuple(_signals(column("signals"), column("step_minutes").to_numpy(zero_copy_only=False))),
        tuple(_inputs(column("inputs"), table.num_rows)),
        tuple(dict(zip(names[at[r] : at[r + 1]], numbers[at[r] : at[r + 1]])) for r in range(table.num_rows)),
        column("utc_offset_minutes").to_numpy(zero_copy_only=False),
    )
