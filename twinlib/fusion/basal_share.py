"""A pump's rates in U per 5 minutes that are declared as U/h: both are plausible numbers, but not beside the patient's boluses.

Basal insulin is a third to a half of what a person with type 1 diabetes takes (27.7 % +/- 6.9 in adults, Kuroda et al. 2011,
10.2337/dc10-2149; 20.6 % +/- 11 in children with insulin of their own left, 10.1111/j.1399-5448.2008.00375.x; 34 to 63 % in the six pump
users of T1D-UOM). Rates that are twelve times too small leave it at a few per cent. Pumps are set in steps of 0.025 U/h: rates that stand
on such steps are taken at their word.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pyarrow as pa

from twinlib.fusion.arrays import DAY, codes, instants, numbers

PER_HOUR = 12  # steps of five minutes
STEP = 0.025  # U/h
LOWEST = 0.12  # share of basal insulin that is believed
USUAL = (0.2, 0.8)  # share that the rates give when they are per five minutes
FEWEST_RATES, FEWEST_DAYS = 12, 3


def too_small(sound: pa.Table, rates: Sequence[int], doses: Sequence[int]) -> pa.Table:
    """(entry, patient_id, file, unit) of basal rates that look like U per 5 minutes, each file on its own.

    sound: entry, patient_id, file, unit, utc, value of sound records. rates, doses: numbers of the entries of basal rates and of boluses. Mean
    rates stand for their mean over time. Amounts are added up as whole millionths, so that their order does not matter.
    """
    entry = sound["entry"].combine_chunks().to_numpy()
    patient, people = codes(sound["patient_id"])
    value = numbers(sound["value"])
    millionths = np.round(value * 1e6)
    given = np.isin(entry, list(doses))
    bolus = np.bincount(patient[given], millionths[given], len(people)) / 1e6
    day = np.unique(np.stack([patient[given], instants(sound["utc"])[given] // DAY]), axis=1)[0]
    days = np.bincount(day, minlength=len(people))
    basal = np.flatnonzero(np.isin(entry, list(rates)))
    keys = sound.select(["entry", "patient_id", "file", "unit"]).take(pa.array(basal))
    different, group = np.unique(np.stack([codes(c)[0] for c in keys.columns]), axis=1, return_inverse=True)
    k = different.shape[1]
    steps = value[basal] / STEP
    count = np.bincount(group, minlength=k)
    per_day = 24 * np.bincount(group, millionths[basal], k) / 1e6 / count
    stepped = np.bincount(group, np.abs(steps - np.round(steps)) < 0.01, k) / count
    first = np.full(k, len(basal))
    np.minimum.at(first, group, np.arange(len(basal)))
    who = patient[basal][first]
    with np.errstate(divide="ignore", invalid="ignore"):
        daily = bolus[who] / days[who]
        share = per_day / (per_day + daily)
        corrected = PER_HOUR * per_day / (PER_HOUR * per_day + daily)
    enough = (count >= FEWEST_RATES) & (days[who] >= FEWEST_DAYS)
    wrong = enough & (stepped < 0.5) & (share < LOWEST) & (corrected >= USUAL[0]) & (corrected <= USUAL[1])
    return keys.take(pa.array(first[wrong]))
