"""Device clocks that were set while readings went on: found by the order of records in a file, which the device kept.

A device writes its readings as they come, so in its file time runs one way. Where it steps back, a clock was set: by the wearer, by
daylight saving, or because it had been wrong. The records of the stretch that was written under another clock are refused
(`clock_jump`), or, where the stretch is the second pass of an hour that the zone repeats, moved to that second pass.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

import numpy as np
import pyarrow as pa

from twinlib.fusion.arrays import HOUR, MINUTE, codes, has_word, instants, numbers, starts

LARGEST = 26 * 60 * MINUTE  # a day and daylight saving; larger steps back are files put together
DISORDER = 0.05  # share of steps against the file's order above which it has none
FEWEST = 12  # readings from which an order can be told


class Stretch(NamedTuple):
    """Places [first, last] of a series that were written under another clock; `shift`: what sets them right (micros), 0 = unknown."""

    first: int
    last: int
    shift: int


class Jump(NamedTuple):
    """Lines of a patient's records in a file that were written under another clock; minutes: what sets them right, 0 = unknown."""

    entry: int
    patient_id: str
    file: str
    first_line: int
    last_line: int
    minutes: int


def stretches(time: np.ndarray, value: np.ndarray, repeated: np.ndarray) -> list[Stretch]:
    """Stretches of one series in the order of its file.

    time (n,): micros; value (n,); repeated (n,) bool: the local time happened twice and `time` is the first pass.
    A step back of b that a step forward of b precedes or follows bounds a stretch: between the two steps the clock was ahead or behind.
    A lone step back leaves open which side is wrong: of both, the readings within the time that is covered twice. Repetitions of readings
    (equal time and value), as in an export appended to another, are no jump. Within an hour that the zone repeats, what follows a step back is
    its second pass.
    """
    n = len(time)
    if n < FEWEST:
        return []
    steps = np.diff(time)
    forward, backward = int((steps > 0).sum()), int((steps < 0).sum())
    if min(forward, backward) == 0 or min(forward, backward) > DISORDER * (n - 1):
        return []
    if backward > forward:  # newest first
        found = stretches(time[::-1], value[::-1], repeated[::-1])
        return sorted(Stretch(n - 1 - s.last, n - 1 - s.first, s.shift) for s in found)
    usual = int(np.median(steps[steps > 0]))
    known = set(zip(time.tolist(), np.round(value, 6).tolist()))
    copies = len(known) < n
    found: list[Stretch] = []
    taken = -1
    for k in np.flatnonzero(steps < 0):
        size = usual - int(steps[k])
        if k <= taken or size > LARGEST:
            continue
        if copies and _repeats(time, value, k):
            continue
        if repeated[k] and repeated[k + 1] and size <= HOUR + 2 * usual:  # the hour's second pass, whatever is missing of the two
            last = k + int(np.argmin(np.append(repeated[k + 1 :], False)))
            found.append(Stretch(int(k) + 1, last, HOUR))
            taken = last
            continue
        near = np.abs(steps - (usual + size)) <= 2 * usual
        before = np.flatnonzero(near[:k]) if k else np.empty(0, int)
        after = np.flatnonzero(near[k + 1 :]) + k + 1
        before = before[before > taken]
        if len(before) and (not len(after) or k - before[-1] <= after[0] - k):
            found.append(Stretch(int(before[-1]) + 1, int(k), 0))
        elif len(after):
            found.append(Stretch(int(k) + 1, int(after[0]), 0))
        else:
            first = k - np.argmax(time[k::-1] < time[k + 1]) + 1 if (time[: k + 1] < time[k + 1]).any() else 0
            later = time[k + 1 :] > time[k]
            last = k + int(np.argmax(later)) if later.any() else n - 1
            found.append(Stretch(int(first), int(last), 0))
        taken = found[-1].last
    return found


def _repeats(time: np.ndarray, value: np.ndarray, k: int) -> bool:
    """Most of what follows a step back, as long as it goes over known time, says again what was said before."""
    later = time[k + 1 :] > time[: k + 1].max()
    end = k + 1 + (int(np.argmax(later)) if later.any() else len(later))
    said = set(zip(time[: k + 1].tolist(), np.round(value[: k + 1], 6).tolist()))
    again = [pair in said for pair in zip(time[k + 1 : end].tolist(), np.round(value[k + 1 : end], 6).tolist())]
    return sum(again) > len(again) / 2


def find(series: pa.Table) -> Iterator[Jump]:
    """Jumps of sound records: entry, file, line, patient_id, utc, value, quality; all of a patient in a file, in any order."""
    entry = series["entry"].combine_chunks().to_numpy()
    (patient, ids), (file, names) = codes(series["patient_id"]), codes(series["file"])
    line = series["line"].combine_chunks().to_numpy()
    key = (patient.astype(np.int64) * max(len(names), 1) + file) * (int(entry.max(initial=0)) + 1) + entry
    order = np.lexsort((line, key))
    key, line, time, value = (x[order] for x in (key, line, instants(series["utc"]), numbers(series["value"])))
    repeated = has_word(series["quality"], "ambiguous_local_time")[order]
    begin = starts(key)
    end = np.append(begin[1:], len(key))
    back = np.concatenate([[0], np.cumsum(np.diff(time) < 0)])  # steps back so far; those between series are counted too, and do no harm
    odd = back[end - 1] > back[begin]
    rising = np.concatenate([[0], np.cumsum(np.diff(time) > 0)])
    odd &= rising[end - 1] > rising[begin]
    for a, b in zip(begin[odd].tolist(), end[odd].tolist()):
        row = order[a]
        for s in stretches(time[a:b], value[a:b], repeated[a:b]):
            ends = sorted((int(line[a + s.first]), int(line[a + s.last])))
            yield Jump(int(entry[row]), ids[patient[row]], names[file[row]], *ends, round(s.shift / MINUTE))
