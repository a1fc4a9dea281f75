"""Who is in the synthetic cohort: identity, export shape, device, body weight and true parameters.

Person i depends on the seed and on i alone, so a larger cohort holds the smaller one unchanged.
"""

from __future__ import annotations

from dataclasses import dataclass
from datetime import date, timedelta

import numpy as np

from twinlib.synthetic import physiology

# One stream of random numbers per person and purpose.
TRAITS, PLAN, FLUX, SENSOR, CHOICES, GAPS, DIRT, FAULTS = range(8)

# People whose record cannot make a twin, by index.
SPECIAL = {5: "single_reading", 6: "no_insulin", 7: "no_records", 8: "cgm_only"}

_ZONES = ("America/New_York", "America/Los_Angeles", "Europe/Helsinki", "Asia/Kolkata")


def stream(seed: int, person: int, purpose: int) -> np.random.Generator:
    return np.random.Generator(np.random.PCG64(np.random.SeedSequence([seed, person, purpose])))


@dataclass(frozen=True)
class Person:
    index: int
    id: str
    shape: str  # t1d_uom | tidepool
    zone: str
    pump: bool
    special: str | None
    sex: str
    birth_date: date
    weight: float  # kg
    weighed_on: date
    parameters: np.ndarray  # (8,), order of physiology.PARAMETERS


def person(seed: int, index: int, start: date) -> Person:
    """Person `index` of the cohort. Half are T1D-UOM exports (40 % pumps), half Tidepool uploads (all pumps)."""
    rng = stream(seed, index, TRAITS)
    parameters = physiology.draw(rng)
    uom = index % 2 == 0
    pump = bool(rng.random() < 0.4) or not uom
    sex = "female" if rng.random() < 0.5 else "male"
    weight = round(float(np.clip(rng.normal(68 if sex == "female" else 80, 13), 45, 110)), 1)
    born = start - timedelta(days=int(rng.integers(18 * 366, 75 * 365)))
    weighed = start - timedelta(days=int(rng.integers(2, 200)))
    zone = "Europe/London" if uom else _ZONES[rng.integers(len(_ZONES))]
    return Person(
        index, f"{10000 + index}" if uom else f"TP{index:05d}", "t1d_uom" if uom else "tidepool", zone, pump,
        SPECIAL.get(index), sex, born, weight, weighed, parameters,
    )
