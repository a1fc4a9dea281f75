"""What a sensor's series cannot say of itself, and other records of the patient can: whether its clock is right, and whether its level is.

Glucose rises after meals. If it rises hours before or after them, and does so all along, one of the two clocks is wrong (a time zone that an
export left out, a device that was never set). A meter's readings say whether a sensor has drifted.
"""

from __future__ import annotations

import numpy as np

from twinlib.fusion.arrays import MINUTE, starts

BIN = 15  # min
AHEAD = 4  # bins over which a rise is taken: an hour
FARTHEST = 14 * 60 // BIN  # bins: no zone is farther from another that is taken for it
FEWEST_MEALS = 20
ERRORS = 4.0  # standard errors by which the best shift must beat none
PAIRED = 10 * MINUTE  # how near a reading must be to a meter's


def clock_shift(micros: np.ndarray, value: np.ndarray, meals: np.ndarray, smallest: float) -> float:
    """Minutes by which a series is ahead of the patient's meals, in steps of half an hour; 0 = it agrees, or nothing can be told.

    micros, value (n,): the series in order of time; meals (m,): micros. smallest: minutes below which a shift may be habit (meals logged
    late, slow absorption). The rise over an hour after each meal is averaged for every shift up to 14 hours; the best shift must beat all those up to
    half of `smallest` by ERRORS standard errors, and by half of its own rise.
    """
    first = micros[0] // (BIN * MINUTE)
    place = micros // (BIN * MINUTE) - first
    n = int(place[-1]) + 1
    counts = np.bincount(place, minlength=n)
    with np.errstate(invalid="ignore"):
        level = np.bincount(place, value, minlength=n) / np.where(counts, counts, np.nan)
    rise = np.full(n + 2 * FARTHEST, np.nan)
    rise[FARTHEST : FARTHEST + n - AHEAD] = level[AHEAD:] - level[:-AHEAD]
    eaten = np.unique(meals // (BIN * MINUTE)) - first
    eaten = eaten[(eaten >= 0) & (eaten < n)]
    if len(eaten) < FEWEST_MEALS or n <= AHEAD:
        return 0.0
    shifts = np.arange(-FARTHEST, FARTHEST + 1, 2)
    after = rise[eaten[:, None] + FARTHEST + shifts]
    known = (~np.isnan(after)).sum(axis=0)
    some = known >= FEWEST_MEALS
    mean = np.where(some, np.nansum(after, axis=0) / np.maximum(known, 1), -np.inf)
    best = int(np.argmax(mean))
    near = np.abs(shifts) * BIN <= smallest / 2
    if abs(shifts[best]) * BIN < smallest or not (some & near).any():
        return 0.0
    error = np.nanstd(after[:, best]) / np.sqrt(known[best])
    lead = mean[best] - mean[near].max()
    return float(shifts[best] * BIN) if lead > max(ERRORS * error, mean[best] / 2) else 0.0


def drifted(
    micros: np.ndarray, value: np.ndarray, meter_micros: np.ndarray, meter_value: np.ndarray, share: float, minutes: float, pairs: float
) -> np.ndarray:
    """(n,) bool: the meter's readings within `minutes` of a reading, `pairs` or more, put the sensor off by more than `share` in their median.

    All in order of time. A pair is a meter's reading and the sensor's nearest one within ten minutes.
    """
    found = np.zeros(len(micros), bool)
    after = np.searchsorted(micros, meter_micros)
    left, right = np.maximum(after - 1, 0), np.minimum(after, len(micros) - 1)
    nearest = np.where(np.abs(micros[left] - meter_micros) <= np.abs(micros[right] - meter_micros), left, right)
    paired = (np.abs(micros[nearest] - meter_micros) <= PAIRED) & (meter_value > 0) & (value[nearest] > 0)
    off = np.log(value[nearest[paired]] / meter_value[paired])
    at, width = meter_micros[paired], int(minutes * MINUTE)
    window = np.stack([np.searchsorted(at, micros - width), np.searchsorted(at, micros + width, "right")])
    cuts = starts(*window)  # readings between two of the meter's share their window
    for a, b in zip(cuts, [*cuts[1:], len(micros)]):
        some = off[window[0, a] : window[1, a]]
        if len(some) >= pairs:
            found[a:b] = abs(np.median(some)) > np.log1p(share)
    return found
