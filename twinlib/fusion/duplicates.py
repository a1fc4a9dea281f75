"""One fact, one row: exact repetitions are dropped, contradictions at one instant are settled by a fixed rule.

Two records are about the same fact when patient, signal or agent, kind, instant, and (for doses) "at once or over a while"
are the same.

- Of a signal, a rate, or an agent whose amounts at one instant contradict each other, one record is kept: that of the source
  that stands first in the configuration, then of the entry and file that come first, then the first line; for rates the last
  line, because the rate set last within a minute is the one in force. It is flagged `conflict` where another value was dropped.
- Of an agent whose amounts add up (foods of one meal), all different records of the first source are kept and flagged
  `same_instant`; equal ones (value, end and label) are repetitions.
- Of one source, a record that corrects another (flag `amended`) comes before it.
- Of a patient's attributes the first record is kept.

Signals are settled in `readings`, by the same rule.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pyarrow as pa

from twinlib.fusion.arrays import has_word, instants, numbers, ranks, starts
from twinlib.fusion.clocks import NOTHING
from twinlib.fusion.entries import Entry

DECIMALS = 6  # of canonical values that are compared


def settled(records: pa.Table, target: str, entries: Sequence[Entry], again: bool = False) -> tuple[np.ndarray, np.ndarray, dict[str, np.ndarray]]:
    """order (n,), kept (n,) and flags (name -> (n,)) of sound records (judge.JUDGED) of exposures, events or patients.

    order: of key and priority, in which kept and flags stand. again: some of the records have been through here before, and bear the flags
    of what was dropped then, which are to be taken away; the result is that of all records together, whatever came first.
    """
    entry = records["entry"].combine_chunks().to_numpy()
    of = {e.number: e for e in entries}
    different, at = np.unique(entry, return_inverse=True)
    own = [of[k] for k in different.tolist()]
    kinds = [(e.meaning.name, e.meaning.kind or "") for e in own]
    what = np.array([sorted(set(kinds)).index(k) for k in kinds], np.int64)[at]
    origin = np.array([e.origin for e in own], np.int64)[at]
    adds = np.array([e.adds for e in own], bool)[at]
    rate, dose = (np.array([e.meaning.kind == k for e in own], bool)[at] for k in ("rate", "dose"))
    patient, time, end = ranks(records["patient_id"]), instants(records["utc"]), instants(records["end"])
    value, label = np.round(numbers(records["value"]), DECIMALS), ranks(records["label"])  # 5.5 mmol/L and 99.0858 mg/dL are one value
    value = np.where(np.isnan(value), -np.inf, value)
    key = [patient] if target == "patient" else [patient, what, dose & (end != NOTHING), time]
    item = [np.where(adds, value, 0), np.where(adds, end, 0), np.where(adds, label, 0)] if target in ("exposure", "event") else []
    original = ~has_word(records["quality"], "amended")
    line = records["line"].combine_chunks().to_numpy()
    place = [origin, original, entry, ranks(records["file"]), np.where(rate, -line, line)]
    order = np.lexsort([*reversed(place), *reversed([*key, *item])])
    key, item, origin, adds, value, end = [k[order] for k in key], [i[order] for i in item], origin[order], adds[order], value[order], end[order]
    first = starts(*key) if len(order) else np.zeros(0, int)
    counts = np.diff(np.append(first, len(order)))

    def over(reduce, x: np.ndarray) -> np.ndarray:
        """Of each row, a number of all with its key."""
        return np.repeat(reduce.reduceat(x, first), counts) if len(first) else x

    leading, last = over(np.minimum, origin), over(np.maximum, origin)
    differ = np.zeros(len(order), bool)
    if target != "patient":
        differ = (over(np.minimum, value) != over(np.maximum, value)) | (over(np.minimum, end) != over(np.maximum, end))
    one_source = leading == last
    if again:
        conflict, same = (has_word(records["quality"], word)[order] for word in ("conflict", "same_instant"))
        differ |= over(np.logical_or, conflict | same)
        one_source &= ~over(np.logical_or, conflict)
    head = np.zeros(len(order), bool)
    head[first] = True
    repeats = np.zeros(len(order), bool)
    if item:
        repeats[1:] = np.logical_and.reduce([i[1:] == i[:-1] for i in item])
    kept = (head | (adds & ~repeats)) & (~adds | (origin == leading))
    instant = differ & adds & one_source
    return order, kept, {"same_instant": instant, "conflict": differ & ~instant}
