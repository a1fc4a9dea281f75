"""What a patient's lanes go through: slots (instants with readings), and the steps with constant inputs that lead up to each.

Steps end at slots and wherever an input begins or ends, so that no event is moved or averaged; in between they are near the
nominal length.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numba import njit


@dataclass(frozen=True)
class Drive:
    """Events of one input: start times, amounts and durations (n,), sorted by time; `spread` is the least duration (0: at once)."""

    times: np.ndarray
    amounts: np.ndarray
    durations: np.ndarray
    spread: float


@dataclass(frozen=True)
class Schedule:
    """Steps of one patient: ends (slots,) number of steps up to and with each slot; lengths (steps,), rates (steps, inputs) per time,
    doses (steps, dosed inputs) given at the step's start; fresh (steps,) whether a step differs from the one before."""

    ends: np.ndarray
    lengths: np.ndarray
    rates: np.ndarray
    doses: np.ndarray
    fresh: np.ndarray


@njit(cache=True)
def _edges(times, amounts, durations, spread, begin, end, at, change, dose, n):
    """Edges of the events of one input within [begin, end): rises and falls of its rate, doses. Returns the number of edges so far, the rate
    at `begin` and the number of events behind it."""
    base, going = 0.0, 0
    for i in range(times.size):
        length = max(durations[i], spread)
        if length == 0.0:
            if begin <= times[i] < end:
                at[n], change[n], dose[n] = times[i], 0.0, amounts[i]
                n += 1
            continue
        if times[i] + length <= begin or times[i] >= end:
            continue
        rate = amounts[i] / length
        if times[i] <= begin:
            base += rate
            going += 1
        else:
            at[n], change[n], dose[n] = times[i], rate, 0.0
            n += 1
        if times[i] + length < end:
            at[n], change[n], dose[n] = times[i] + length, -rate, 0.0
            n += 1
    return n, base, going


@njit(cache=True, error_model="numpy")
def _steps(start, slots, nominal, at, who, change, dose, rate, going, dosed, ends, lengths, rates, doses, fresh):
    """Fill the steps; `at` sorted; `rate` and `going` as at the start. Returns the number of steps."""
    now, e, n, new = start, 0, 0, True
    pending = np.zeros(doses.shape[1])
    for k in range(slots.size):
        while now < slots[k]:
            while e < at.size and at[e] <= now:
                j = who[e]
                rate[j] += change[e]
                going[j] += 1 if change[e] > 0 else -1 if change[e] < 0 else 0
                if change[e] < 0 and going[j] == 0:
                    rate[j] = 0.0  # nothing of the sums' rounding stays
                if change[e] == 0:
                    pending[dosed[j]] += dose[e]
                new = True
                e += 1
            until = slots[k] if e == at.size else min(slots[k], at[e])
            pieces = max(int((until - now) / nominal + 0.5), 1)
            for i in range(pieces):
                lengths[n] = (until - now) / pieces
                for j in range(rate.size):
                    rates[n, j] = rate[j]
                fresh[n] = new or lengths[n] != lengths[n - 1]
                new = False
                for j in range(pending.size):
                    doses[n, j] = pending[j]
                    new = new or pending[j] != 0.0
                    pending[j] = 0.0
                n += 1
            now = until
        ends[k] = n
    return n


def build(slots: np.ndarray, drives: list[Drive], nominal: float, start: float = 0.0) -> Schedule:
    """The schedule of a patient observed at `slots` (n,), sorted and distinct, in the model's time unit, with steps near `nominal`.

    The clock begins at `start`, not after the first slot. Where an event and a slot share an instant, the reading comes first.
    """
    dosed = (np.cumsum([d.spread == 0 for d in drives]) - 1).astype(np.int64)
    width = int(sum(d.spread == 0 for d in drives))
    size = 2 * sum(len(d.times) for d in drives)
    at, change, dose, who = np.empty(size), np.empty(size), np.empty(size), np.empty(size, np.int64)
    rate, going, n = np.zeros(len(drives)), np.zeros(len(drives), np.int64), 0
    for j, d in enumerate(drives):
        first = n
        n, rate[j], going[j] = _edges(d.times, d.amounts, d.durations, float(d.spread), start, slots[-1], at, change, dose, n)
        who[first:n] = j
    order = np.argsort(at[:n], kind="stable")
    at, change, dose, who = at[:n][order], change[:n][order], dose[:n][order], who[:n][order]
    most = len(slots) + n + int(1.5 * (slots[-1] - start) / nominal) + 1
    ends, lengths, fresh = np.empty(len(slots), np.int64), np.empty(most), np.empty(most, bool)
    rates, doses = np.empty((most, len(drives))), np.empty((most, width))
    count = _steps(float(start), slots, float(nominal), at, who, change, dose, rate, going, dosed, ends, lengths, rates, doses, fresh)
    return Schedule(ends, *(x[:count].copy() for x in (lengths, rates, doses, fresh)))
