"""Abduction, action, prediction for one patient-episode: the world in which a scenario runs, and the arm that it makes.

Abduction: for every posterior draw the smoother finds the flux that explains the readings. Action: the scenario edits inputs and
parameters, and its rules react to the simulated sensor. Prediction: the same draws with the same flux run under the factual and the edited
inputs; the difference of the two is added to the factual trace, so whatever the twin could not explain stays in both arms, and the arms
differ by the intervention alone.

In a `new_day` the flux and the sensor's error are drawn from the model instead; in a `forecast` the past is as it was and the flux after its
end is drawn. Either way their numbers are keyed by patient, episode and draw, and shared by all arms.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np

from twinlib.engine.kernel import Data, Kernel
from twinlib.engine.posterior import key
from twinlib.models.batch import Batch, Series
from twinlib.models.timeline import Events, Inputs, joined
from twinlib.whatif import closed_loop
from twinlib.whatif.outcomes import Trace
from twinlib.whatif.scenarios import Scenario, edited
from twinlib.whatif.selection import DAY, Scene, cut_at


@dataclass(frozen=True)
class Arm:
    """A scenario's arm: signals (draws, slots) of the twin, and amounts (draws or 1, days) given from the scene's beginning, by agent."""

    signals: np.ndarray
    given: dict[str, np.ndarray]


@dataclass(frozen=True)
class Replay:
    """One patient-episode under its posterior draws.

    minutes (slots,); noise (draws x slots, noisy states), start (draws, noisy states): the disturbances; factual (draws, slots): the
    factual arm of the twin; base (draws or 1, slots): the factual trace that outcomes see, NaN = missing; past, future: the inputs
    before and after the scene's beginning; first: slot at which the scenario begins; seen: slots that outcomes see.
    """

    kernel: Kernel
    batch: Batch
    data: Data
    minutes: np.ndarray
    theta: np.ndarray
    noise: np.ndarray
    start: np.ndarray
    factual: np.ndarray
    base: np.ndarray
    scene: Scene
    past: Inputs
    future: Inputs
    first: int
    seen: np.ndarray

    @classmethod
    def abduct(cls, kernel: Kernel, batch: Batch, draws: np.ndarray, seed: int = 0, grid: float | None = None) -> Replay:
        """What happened, in a batch of one row under `draws` (draws, fitted) on the transformed scale.

        grid: outcomes see the twin's trajectory every so many minutes, not the readings.
        """
        batch = batch.completed(kernel.model)
        minutes, signals = _instants(batch, kernel, [] if grid is None else np.arange(0.0, batch.minutes[0] + 1e-9, grid))
        batch = replace(batch, signals=(signals,))
        data = batch.data(kernel.model, kernel.nominal_step)
        noise, start = kernel.smooth(draws, np.zeros(len(draws), int), data)
        return cls._of(kernel, batch, data, minutes, draws, noise, start, _scene(batch, seed), {}, batch.inputs[0], grid, None)

    @classmethod
    def new_day(cls, kernel: Kernel, batch: Batch, draws: np.ndarray, seed: int = 0, grid: float | None = None) -> Replay:
        """The same patient with the same inputs, on days with other disturbances."""
        batch = batch.completed(kernel.model)
        minutes, signals = _instants(batch, kernel, [] if grid is None else np.arange(0.0, batch.minutes[0] + 1e-9, grid))
        constants = batch.data(kernel.model, kernel.nominal_step).constants  # those of the patient, first reading included
        batch = replace(batch, signals=({n: Series(s.minutes, np.full(len(s.values), np.nan)) for n, s in signals.items()},))
        data = batch.data(kernel.model, kernel.nominal_step, constants)
        noise, start, _, variance = kernel.disturb(draws, np.zeros(len(draws), int), data, *_numbers(kernel, batch, len(minutes), len(draws), seed, "new_day"))
        return cls._of(kernel, batch, data, minutes, draws, noise, start, _scene(batch, seed), {}, batch.inputs[0], grid, variance)

    @classmethod
    def forecast(cls, kernel: Kernel, batch: Batch, draws: np.ndarray, horizon: float, seed: int = 0, grid: float | None = None) -> Replay:
        """The `horizon` minutes after the record's end: the past is as it was, the last whole days' inputs are repeated, the flux is drawn.

        The disturbances are a draw of their posterior by Durbin & Koopman's (2002) simulation smoother: a course from the model, less
        what the smoother makes of its readings, plus what it makes of the patient's.
        """
        batch = batch.completed(kernel.model)
        now = float(batch.minutes[0])
        spacing = grid or _spacing(batch, kernel)
        ahead = np.arange(now, now + horizon - 1e-9, spacing)
        minutes, signals = _instants(batch, kernel, ahead)
        constants = batch.data(kernel.model, kernel.nominal_step).constants
        past, future = _continued(batch.inputs[0], now, horizon)
        inputs = {n: joined([past[n], future[n]]) for n in past}
        batch = replace(batch, minutes=batch.minutes + horizon, signals=(signals,), inputs=(inputs,))
        data = batch.data(kernel.model, kernel.nominal_step, constants)
        lanes, k = np.zeros(len(draws), int), len(minutes)
        z, z_start = _numbers(kernel, batch, k, len(draws), seed, "forecast")
        noise, start, signal, variance = kernel.disturb(draws, lanes, data, z, z_start)
        if kernel.module.noisy_count:
            error = _errors(batch, variance.shape, len(draws), seed, "forecast_readings")
            readings = _with_error(kernel, signal, np.sqrt(variance) * error)
            known = ~np.isnan(data.readings)
            invented = replace(data.take(lanes), readings=np.where(np.tile(known, (len(draws), 1)), readings, np.nan))
            (real, real_start), (own, own_start) = kernel.smooth(draws, lanes, data), kernel.smooth(draws, np.arange(len(draws)), invented)
            noise, start = noise + real - own, start + real_start - own_start
        scene = replace(_scene(batch, seed), begin=now)
        return cls._of(kernel, batch, data, minutes, draws, noise, start, scene, past, future, grid, variance)

    @classmethod
    def _of(cls, kernel, batch, data, minutes, draws, noise, start, scene, past, future, grid, variance) -> Replay:
        factual = kernel.simulate(draws, np.zeros(len(draws), int), data, noise, start)[:, 0].reshape(len(draws), -1)
        seen = minutes >= scene.begin
        if grid is not None:  # every slot was made for the grid, except those of readings in between
            seen &= np.isclose((minutes - scene.begin) % grid, 0) | np.isclose((minutes - scene.begin) % grid, grid)
            base = factual
        elif variance is None:
            base = data.readings[None, :, 0]
        else:
            error = np.sqrt(variance) * _errors(batch, variance.shape, len(draws), scene.seed, "readings")
            noisy = _with_error(kernel, factual.reshape(-1, 1), error[:, :1])[:, 0].reshape(factual.shape)
            real = data.readings[None, :, 0]
            base = np.where((minutes < scene.begin) & ~np.isnan(real), real, np.clip(noisy, *_limits(kernel)))
        first = int(np.searchsorted(minutes, scene.begin))
        return cls(kernel, batch, data, minutes, draws, noise, start, factual, base, scene, past, future, first, np.flatnonzero(seen))

    @property
    def readings(self) -> np.ndarray:
        """(slots,) readings of the model's first signal."""
        return self.data.readings[:, 0]

    def trace(self, signals: np.ndarray, given: dict[str, np.ndarray]) -> Trace:
        """What outcomes are worked out from: `signals` (draws or 1, slots) at the slots that they see."""
        return Trace(self.minutes[self.seen], signals[:, self.seen], given, (self.scene.minutes - self.scene.begin) / DAY)

    def factual_trace(self) -> Trace:
        return self.trace(self.base, self.given(self.future))

    def given(self, inputs: Inputs) -> dict[str, np.ndarray]:
        """(1, days) amounts by agent."""
        return {a: closed_loop.daily(inputs, a, self.scene)[None] for a in self.kernel.model.agents}

    def arm(self, scenario: Scenario) -> Arm:
        """The scenario's arm of the twin."""
        future = edited(scenario, self.future, self.scene)
        inputs = {n: joined([self.past[n], future[n]]) if n in self.past else future[n] for n in future}
        batch = self.batch.with_inputs((inputs,))
        given = self.given(future)
        if scenario.rules:
            natural = self._natural(scenario)
            draws, slots = self.factual.shape
            state = self.kernel.begin(natural(0, factual=True), np.zeros(draws, int), self.data, self.start)
            signals, changed = closed_loop.run(
                self.kernel, batch, self.data, self.minutes, natural, self.noise.reshape(draws, slots, -1), state, scenario.rules, self.scene,
                self.first, self.base - self.factual, self.future,
            )
            return Arm(signals, given | {a: given[a] + extra for a, extra in changed.items()})
        data = batch.data(self.kernel.model, self.kernel.nominal_step, self.data.constants)
        if not scenario.changes:
            return Arm(self._run(data), given)
        return Arm(self._changed(data, scenario), given)

    def _run(self, data: Data) -> np.ndarray:
        signals = self.kernel.simulate(self.theta, np.zeros(len(self.theta), int), data, self.noise, self.start)
        return signals[:, 0].reshape(len(self.theta), -1)

    def _natural(self, scenario: Scenario):
        """k -> (draws, parameters) natural parameters on the way to slot k, under the scenario's changes of parameters."""
        natural = self.kernel.natural(self.theta)
        begins = np.concatenate([[0.0], self.minutes[:-1]])
        names = [q.name for q in self.kernel.model.parameters]
        factors = np.ones((len(begins), len(names)))
        for change in scenario.changes:
            factors[:, names.index(change.parameter)] *= change.factors(begins, self.scene)
        return lambda k, factual=False: natural if factual or (factors[k] == 1).all() else natural * factors[k]

    def _changed(self, data: Data, scenario: Scenario) -> np.ndarray:
        """The arm under changed parameters: from the factual start, piece by piece where they differ."""
        draws, slots = self.factual.shape
        lanes, natural, noise = np.zeros(draws, int), self._natural(scenario), self.noise.reshape(draws, slots, -1)
        state = self.kernel.begin(natural(0, factual=True), lanes, data, self.start)
        out, a = np.empty((draws, slots)), 0
        while a < slots:
            parameters, b = natural(a), a + 1
            while b < slots and np.array_equal(natural(b), parameters):
                b += 1
            piece = np.ascontiguousarray(noise[:, a:b]).reshape(draws * (b - a), -1)
            out[:, a:b] = self.kernel.resume(parameters, lanes, data.between(a, b), piece, state)[:, 0].reshape(draws, -1)
            a = b
        return out

    def effect(self, scenario: Scenario) -> np.ndarray:
        """(draws, slots) counterfactual minus factual signal; exactly zero where the scenario changes nothing."""
        return self.arm(scenario).signals - self.factual

    def counterfactual(self, scenario: Scenario) -> np.ndarray:
        """(draws, slots) the trace under the scenario, NaN where there is no reading."""
        return self._onto_base(self.arm(scenario).signals)

    def counterfactual_trace(self, arm: Arm) -> Trace:
        return self.trace(self._onto_base(arm.signals), arm.given)

    def _onto_base(self, signals: np.ndarray) -> np.ndarray:
        """The difference of the arms added to the factual trace; cut at half of the sensor's lower limit, where dynamics no longer hold."""
        effect = signals - self.factual
        lower = self.kernel.model.signals[0].lower
        floor = -np.inf if lower is None else lower / 2
        return np.where(effect == 0, self.base, np.maximum(self.base + effect, np.minimum(self.base, floor)))


def _scene(batch: Batch, seed: int) -> Scene:
    return Scene(float(batch.minutes[0]), signals=batch.signals[0], key=batch.ids[0], seed=seed)


def _limits(kernel: Kernel) -> tuple[float, float]:
    s = kernel.model.signals[0]
    return -np.inf if s.lower is None else s.lower, np.inf if s.upper is None else s.upper


def _instants(batch: Batch, kernel: Kernel, more) -> tuple[np.ndarray, dict[str, Series]]:
    """All instants of a batch of one row together with further ones, and the signals with the first one missing at the latter."""
    first, signals = kernel.model.signals[0].name, batch.signals[0]
    nothing = Series(np.zeros(0), np.zeros(0))
    named = {s.name: signals.get(s.name, nothing) for s in kernel.model.signals}
    own = named[first]
    minutes = np.unique(np.concatenate([own.minutes, more]))
    values = np.full(len(minutes), np.nan)
    values[np.searchsorted(minutes, own.minutes)] = own.values
    named[first] = Series(minutes, values)
    return np.unique(np.concatenate([s.minutes for s in named.values()])), named


def _spacing(batch: Batch, kernel: Kernel) -> float:
    """Usual minutes between the slots of the first signal."""
    gaps = np.diff(batch.signals[0][kernel.model.signals[0].name].minutes)
    return float(np.median(gaps)) if gaps.size else float(batch.minutes[0])


def _continued(inputs: Inputs, now: float, horizon: float) -> tuple[Inputs, Inputs]:
    """Inputs before `now`, and those after: what reaches beyond it, and the last whole days repeated."""
    days = min(max(np.ceil(horizon / DAY), 1.0), max(np.floor(now / DAY), 1.0)) * DAY
    past, future = {}, {}
    for name, events in inputs.items():
        cut, _ = cut_at(events, events.durations, [now - days, now], None, Scene(now))
        past[name] = cut.take(cut.minutes < now)
        again = cut.take((cut.minutes >= now - days) & (cut.minutes < now))
        repeats = [
            Events(again.minutes + days * r, again.amounts, again.durations, again.labels) for r in range(1, int(np.ceil(horizon / days)) + 1)
        ]
        new = joined(repeats)
        future[name] = new.take(new.minutes < now + horizon)
    return past, future


def _numbers(kernel: Kernel, batch: Batch, slots: int, draws: int, seed: int, what: str) -> tuple[np.ndarray, np.ndarray]:
    """Standard normal numbers (draws x slots, noisy states) and (draws, noisy states), keyed by patient, episode and draw."""
    n = kernel.module.noisy_count
    each = [key(seed, what, *batch.ids[0], str(d)).standard_normal((slots + 1, n)) for d in range(draws)]
    return np.concatenate([e[1:] for e in each]), np.stack([e[0] for e in each])


def _errors(batch: Batch, shape: tuple[int, int], draws: int, seed: int, what: str) -> np.ndarray:
    """Standard normal numbers of `shape` (draws x slots, signals) for the errors of readings."""
    each = [key(seed, what, *batch.ids[0], str(d)).standard_normal((shape[0] // draws, shape[1])) for d in range(draws)]
    return np.concatenate(each)


def _with_error(kernel: Kernel, signal: np.ndarray, error: np.ndarray) -> np.ndarray:
    """Readings (..., signals) from signals and errors on the scale on which they are normal."""
    logs = np.array(kernel.module.LOG[: signal.shape[1]])
    return np.where(logs, signal * np.exp(np.where(logs, error, 0.0)), signal + error)
