"""Running an arm whose inputs depend on its own signal: all posterior draws of a patient in step, slot by slot.

Between two slots the compiled kernel goes on from the states it left; at a slot the rules see the simulated sensor of all lanes and order
what is given until the next. A rule that orders nothing leaves the bits of the arm without it: lengths of steps, rates and
doses are the recorded ones plus exact zeros.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np

from twinlib.engine.kernel import Data, Kernel
from twinlib.engine.schedule import Schedule, build
from twinlib.models.batch import Batch
from twinlib.models.timeline import Inputs
from twinlib.whatif.selection import DAY, Scene


@dataclass
class Loop:
    """What the rules of an arm see and order. Amounts are per lane, in the agents' canonical units.

    minutes (slots,); seen (slots, lanes): the simulated sensor, up to slot k; recorded: inputs before any rule, inputs: what the rules
    leave of them; given (slots, lanes) by agent: doses given between a slot and the next.
    """

    minutes: np.ndarray
    lanes: int
    scene: Scene
    recorded: Inputs
    inputs: Inputs
    k: int = 0
    seen: np.ndarray = field(default_factory=lambda: np.empty(0))
    given: dict[str, np.ndarray] = field(default_factory=dict)
    doses: dict[str, np.ndarray] = field(default_factory=dict)
    rates: dict[str, np.ndarray] = field(default_factory=dict)  # per hour
    factors: dict[str, np.ndarray] = field(default_factory=dict)

    @property
    def now(self) -> float:
        return self.minutes[self.k]

    @property
    def length(self) -> float:
        """Minutes until the next slot."""
        return self.minutes[self.k + 1] - self.minutes[self.k]

    @property
    def sensor(self) -> np.ndarray:
        return self.seen[self.k]

    @property
    def previous(self) -> np.ndarray:
        """The sensor at the slot before (at the first slot: of that slot)."""
        return self.seen[max(self.k - 1, 0)]

    def slope(self, history: float) -> np.ndarray:
        """Change of the sensor per minute: least squares over the last `history` minutes, 0 where that is one reading."""
        first = np.searchsorted(self.minutes[: self.k + 1], self.now - history)
        t = self.minutes[first : self.k + 1] - self.minutes[first : self.k + 1].mean()
        if len(t) < 2:
            return np.zeros(self.lanes)
        return sum(w * y for w, y in zip(t / (t * t).sum(), self.seen[first : self.k + 1]))

    def on_board(self, agent: str, action: float) -> np.ndarray:
        """What is left of the doses given before now, if each falls linearly to nothing over `action` minutes."""
        first = np.searchsorted(self.minutes, self.now - action)
        left = np.zeros(self.lanes)
        for j in range(first, self.k):
            left += self.given[agent][j] * (1.0 - (self.now - self.minutes[j]) / action)
        return left

    def mean_rate(self, agent: str) -> float:
        """Mean amount per hour that is recorded of an agent."""
        return float(daily(self.recorded, agent, self.scene).sum() / (self.scene.minutes - self.scene.begin) * 60)

    def give(self, agent: str, amount: np.ndarray) -> None:
        """Order a dose now."""
        self.doses[agent] = self.doses.get(agent, 0.0) + amount

    def infuse(self, agent: str, per_hour: np.ndarray) -> None:
        """Order a rate until the next slot."""
        self.rates[agent] = self.rates.get(agent, 0.0) + per_hour

    def scale(self, agents: Sequence[str], factor: np.ndarray) -> None:
        """Multiply what is recorded, or ordered as a rate, of agents until the next slot."""
        for agent in agents:
            self.factors[agent] = self.factors.get(agent, 1.0) * factor


def daily(inputs: Inputs, agent: str, scene: Scene) -> np.ndarray:
    """(days,) amounts of an agent from the scene's beginning to its end; the last day may be a part of one."""
    edges = np.append(np.arange(scene.begin, scene.minutes, DAY), scene.minutes)
    out = np.zeros(len(edges) - 1)
    if agent not in inputs or not len(inputs[agent]):
        return out
    e = inputs[agent]
    point = (e.durations == 0) & (e.minutes >= scene.begin) & (e.minutes < scene.minutes)
    np.add.at(out, ((e.minutes[point] - scene.begin) // DAY).astype(int), e.amounts[point])
    spread = e.durations > 0
    begin, length, amount = e.minutes[spread], e.durations[spread], e.amounts[spread]
    inside = np.clip(edges[:, None], begin, begin + length) - begin  # minutes of each event before each edge
    return out + (np.diff(inside, axis=0) / length * amount).sum(axis=1)


@dataclass(frozen=True)
class _Feed:
    """How orders of one agent reach one input of the model: column of the input, column of its doses (None: it acts over time), amount to the
    input's unit times the model's time, least duration and pace (model's time); own recorded rates (steps,) and doses (steps,)."""

    column: int
    dose: int | None
    scale: float
    spread: float
    pace: float | None
    rates: np.ndarray
    doses: np.ndarray | None


def _feeds(kernel: Kernel, batch: Batch, slots: np.ndarray, agents: Sequence[str]) -> tuple[Schedule, dict[str, list[_Feed]]]:
    """The schedule of a batch of one row over `slots` (model's time), and the agents' own share in it, by each input that they drive."""
    model, unit = kernel.model, kernel.model.minutes_per_unit()
    driven = [(a, i) for a in agents for i, declared in enumerate(model.inputs) if a in declared.agents]
    drives = batch.drives(model, 0) + [batch.drive(model, 0, model.inputs[i], (a,)) for a, i in driven]
    whole = build(slots, drives, kernel.nominal_step)
    width, dosed = len(model.inputs), [d.spread == 0 for d in drives]
    column = np.cumsum(dosed) - 1
    feeds: dict[str, list[_Feed]] = {a: [] for a in agents}
    for n, (a, i) in enumerate(driven, width):
        declared = model.inputs[i]
        own = whole.doses[:, column[n]] if dosed[n] else None
        pace = None if declared.pace is None else declared.pace * unit
        feeds[a].append(_Feed(i, int(column[i]) if dosed[n] else None, batch.scale(model, 0, declared), declared.spread, pace, whole.rates[:, n], own))
    joint = int(sum(dosed[:width]))
    return Schedule(whole.ends, whole.lengths, np.ascontiguousarray(whole.rates[:, :width]), np.ascontiguousarray(whole.doses[:, :joint]), whole.fresh), feeds


def run(
    kernel: Kernel, batch: Batch, data: Data, minutes: np.ndarray, natural, noise: np.ndarray, state: np.ndarray, rules: Sequence, scene: Scene,
    first: int, offset: np.ndarray, recorded: Inputs,
) -> tuple[np.ndarray, dict[str, np.ndarray]]:
    """Signals (lanes, slots) of the arm, and what the rules changed of the agents' amounts by day: (lanes, days), in canonical units.

    batch: one row, its inputs those that the rules leave; data: its constants and readings; minutes (slots,); natural(k) -> (lanes,
    parameters) on the way to slot k; noise (lanes, slots, noisy states); state (lanes, states) at the start; first: slot from which rules act;
    offset (lanes or 1, slots): sensor minus signal, not a number where it is not known (then the sensor is the signal).
    """
    model, unit = kernel.model, kernel.model.minutes_per_unit()
    lanes, slots = noise.shape[:2]
    agents = tuple(dict.fromkeys(a for rule in rules for a in rule.input))
    schedule, feeds = _feeds(kernel, batch, minutes / unit, agents)
    at = np.concatenate([[0], schedule.ends])
    loop = Loop(minutes, lanes, scene, recorded, batch.inputs[0], seen=np.empty((slots, lanes)))
    loop.given = {a: _recorded_doses(batch.inputs[0], a, minutes, lanes) for a in agents}
    limits = [bound if limit is None else limit for bound, limit in zip((-np.inf, np.inf), (model.signals[0].lower, model.signals[0].upper))]
    offset = np.broadcast_to(np.where(np.isnan(offset), 0.0, offset), (lanes, slots))
    constants, each, blank = np.repeat(data.constants, lanes, axis=0), np.arange(lanes), np.empty((lanes, data.readings.shape[1]))
    extra = {a: [np.zeros((slots, lanes)) for _ in feeds[a]] for a in agents}  # ordered rates in the inputs' units
    days = len(np.arange(scene.begin, scene.minutes, DAY))
    changed = {a: np.zeros((lanes, days)) for a in agents}
    out = np.empty((lanes, slots))

    def interval(k: int, doses: dict, factors: dict) -> None:
        """Move the states over the steps that lead up to slot k."""
        steps = slice(at[k], at[k + 1])
        count = at[k + 1] - at[k]
        rates = np.repeat(schedule.rates[None, steps], lanes, axis=0)
        dose = np.repeat(schedule.doses[None, steps], lanes, axis=0)
        for feed, f in ((feed, f) for a, f in factors.items() for feed in feeds[a]):
            rates[:, :, feed.column] = _scaled(rates[:, :, feed.column], f, feed.rates[steps])
            if feed.dose is not None:
                dose[:, :, feed.dose] = _scaled(dose[:, :, feed.dose], f, feed.doses[steps])
        for feed, ordered in ((feed, ordered) for a in agents for feed, ordered in zip(feeds[a], extra[a])):
            if ordered[k - 1].any():
                rates[:, :, feed.column] += ordered[k - 1][:, None]
        for feed, amount in ((feed, amount) for a, amount in doses.items() for feed in feeds[a] if feed.dose is not None):
            dose[:, 0, feed.dose] += amount * feed.scale
        piece = Data(
            constants, np.arange(lanes + 1), np.arange(lanes + 1) * count, np.tile(schedule.lengths[steps], lanes),
            rates.reshape(-1, rates.shape[2]), dose.reshape(-1, dose.shape[2]), np.ones(lanes * count, bool), blank,
        )
        out[:, k] = kernel.resume(natural(k), each, piece, np.ascontiguousarray(noise[:, k]), state)[:, 0]
        loop.seen[k] = np.clip(out[:, k] + offset[:, k], *limits)

    past = Data(data.constants, np.array([0, slots]), at, schedule.lengths, schedule.rates, schedule.doses, schedule.fresh, data.readings).between(0, first + 1)
    before = np.ascontiguousarray(noise[:, : first + 1]).reshape(-1, noise.shape[2])
    out[:, : first + 1] = kernel.resume(natural(0), np.zeros(lanes, np.int64), past, before, state)[:, 0].reshape(lanes, -1)
    loop.seen[: first + 1] = np.clip(out[:, : first + 1] + offset[:, : first + 1], *limits).T
    controls = [rule.control(loop) for rule in rules]
    for k in range(first, slots - 1):
        loop.k, loop.doses, loop.rates, loop.factors = k, {}, {}, {}
        for control in controls:
            next(control)
        day = int((minutes[k] - scene.begin) // DAY)
        at_once = {}
        for a, amount in loop.doses.items():
            if not amount.any():
                continue
            changed[a][:, day] += amount
            loop.given[a][k] += amount
            at_once[a] = amount
            for feed, ordered in zip(feeds[a], extra[a]):
                if feed.dose is None:
                    _spread(ordered, amount * feed.scale, k, minutes / unit, np.maximum(feed.spread, amount / feed.pace if feed.pace else 0.0) * np.ones(lanes))
        for a, per_hour in loop.rates.items():
            per_hour = per_hour * loop.factors.get(a, 1.0)
            for feed, ordered in zip(feeds[a], extra[a]):
                ordered[k] += per_hour * (unit / 60.0) * feed.scale
            changed[a][:, day] += per_hour * (loop.length / 60.0)
        loop.factors = {a: f for a, f in loop.factors.items() if (f != 1.0).any()}
        for a, f in loop.factors.items():
            steps = slice(at[k + 1], at[k + 2])
            feed = feeds[a][0]
            own = (feed.rates[steps] * schedule.lengths[steps]).sum() + (feed.doses[steps].sum() if feed.doses is not None else 0.0)
            changed[a][:, day] += (f - 1.0) * (own / feed.scale)
        interval(k + 1, at_once, loop.factors)
    return out, changed


def _scaled(total: np.ndarray, factor: np.ndarray, own: np.ndarray) -> np.ndarray:
    """total (lanes, steps) with the share `own` (steps,) of it multiplied by factor (lanes,); the same bits where the factor is 1."""
    change = (factor[:, None] - 1.0) * own
    return np.where(change == 0, total, np.maximum(total + change, 0.0))


def _recorded_doses(inputs: Inputs, agent: str, minutes: np.ndarray, lanes: int) -> np.ndarray:
    """(slots, lanes) recorded amounts given at once between a slot and the next."""
    out = np.zeros(len(minutes))
    if agent in inputs:
        e = inputs[agent].take(inputs[agent].durations == 0)
        at = np.searchsorted(minutes, e.minutes, side="right") - 1
        np.add.at(out, at[at >= 0], e.amounts[at >= 0])
    return np.repeat(out[:, None], lanes, axis=1)


def _spread(extra: np.ndarray, amount: np.ndarray, k: int, slots: np.ndarray, duration: np.ndarray) -> None:
    """Add to `extra` (slots, lanes) the mean rates over each interval of amounts given evenly over `duration` (lanes,) from slot k on."""
    j = k
    while j < len(slots) - 1 and slots[j] < slots[k] + duration.max():
        inside = np.clip(slots[k] + duration - slots[j], 0.0, slots[j + 1] - slots[j])
        extra[j] += amount / duration * (inside / (slots[j + 1] - slots[j]))
        j += 1
