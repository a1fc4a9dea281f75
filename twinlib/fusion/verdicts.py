"""What only the records of a patient together can tell: units that values contradict, and clocks that were set. Found once, applied everywhere."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
import pyarrow as pa

from twinlib.fusion import clock_jumps
from twinlib.fusion.arrays import MINUTE, codes
from twinlib.fusion.basal_share import too_small
from twinlib.fusion.clock_jumps import Jump
from twinlib.fusion.entries import Entry
from twinlib.fusion.survey import KEYS, contradictions, summed
from twinlib.fusion.vocabulary import Sensor

CODES = (None, "clock_jump", "unit_contradicts_values")
SERIES = ("entry", "file", "line", "patient_id", "utc", "value", "quality")
AMOUNTS = ("entry", "patient_id", "file", "unit", "utc", "value")


@dataclass(frozen=True)
class Verdicts:
    """wrong: (entry, patient, file, unit) whose unit their values contradict. jumps: stretches under another clock. By patient."""

    wrong: Mapping[str, frozenset[tuple[int, str, str, str]]] = field(default_factory=dict)
    jumps: Mapping[str, tuple[Jump, ...]] = field(default_factory=dict)

    @classmethod
    def of(cls, wrong: Sequence[tuple[int, str, str, str]], jumps: Sequence[Jump]) -> Verdicts:
        units, stretches = defaultdict(set), defaultdict(list)
        for key in wrong:
            units[key[1]].add(key)
        for jump in jumps:
            stretches[jump.patient_id].append(jump)
        return cls({p: frozenset(u) for p, u in units.items()}, {p: tuple(sorted(s)) for p, s in stretches.items()})

    @property
    def files(self) -> frozenset[str]:
        """Files with records that were sound until they were seen together."""
        refused = [k[2] for keys in self.wrong.values() for k in keys]
        return frozenset(refused + [j.file for some in self.jumps.values() for j in some if not j.minutes])

    def known(self, patient: str | None) -> bool:
        return patient in self.wrong or patient in self.jumps

    def on(self, records: pa.Table) -> tuple[np.ndarray, np.ndarray]:
        """verdict (n,): the first of CODES that concerns the record, 0 where none; moved (n,): minutes by which its clock is set right.

        records: entry, patient_id, file, unit, line.
        """
        verdict, moved = np.zeros(records.num_rows, np.int8), np.zeros(records.num_rows, np.int64)
        patient, ids = codes(records["patient_id"])
        rows = np.flatnonzero(np.array([*map(self.known, ids), False])[patient])
        if not len(rows):
            return verdict, moved
        keys = [codes(records[n]) for n in KEYS]
        different, group = np.unique(np.stack([k[rows] for k, _ in keys]), axis=1, return_inverse=True)
        order = np.argsort(group, kind="stable")
        line = records["line"].combine_chunks().to_numpy(zero_copy_only=False)[rows]
        for key, some in zip(different.T, np.split(order, np.cumsum(np.bincount(group))[:-1])):
            entry, who, file, unit = (texts[k] if k >= 0 else None for (_, texts), k in zip(keys, key))
            if (entry, who, file, unit) in self.wrong.get(who, ()):
                verdict[rows[some]] = 2
            for jump in self.jumps.get(who, ()):
                if (jump.entry, jump.file) == (entry, file):
                    within = rows[some[(line[some] >= jump.first_line) & (line[some] <= jump.last_line)]]
                    if jump.minutes:
                        moved[within] = jump.minutes
                    else:
                        verdict[within] = 1
        return verdict, moved

    def applied(self, sound: pa.Table) -> pa.Table:
        """Sound records (judge.JUDGED) without those that are refused, and with the instants of those whose clock is set right."""
        verdict, moved = self.on(sound)
        if moved.any():
            sound = _moved(sound, moved)
        return sound.filter(pa.array(verdict == 0)) if verdict.any() else sound


def _moved(sound: pa.Table, minutes: np.ndarray) -> pa.Table:
    utc, known = (sound[n].combine_chunks().cast(pa.int64()).to_numpy() for n in ("utc", "available_at"))
    utc = utc + minutes * MINUTE
    offset = sound["utc_offset_minutes"].combine_chunks()
    changed = {
        "utc": utc, "available_at": np.where(minutes > 0, np.maximum(known, utc), known),
        "utc_offset_minutes": pa.array(offset.fill_null(0).to_numpy() - minutes, mask=offset.is_null().to_numpy(zero_copy_only=False)),
    }  # fmt: skip
    for name, values in changed.items():
        kind = sound.schema.field(name)
        column = values if isinstance(values, pa.Array) else pa.array(values)
        sound = sound.set_column(sound.schema.get_field_index(name), kind, column.cast(kind.type))
    return sound


@dataclass(frozen=True)
class Judges:
    """Which entries are looked at: of sensors, of basal rates and of boluses."""

    sensed: tuple[int, ...]
    rates: tuple[int, ...]
    doses: tuple[int, ...]

    @classmethod
    def of(cls, entries: Sequence[Entry], sensors: Mapping[str, Sensor]) -> Judges:
        def those(name: str, kind: str) -> tuple[int, ...]:
            return tuple(e.number for e in entries if (e.meaning.name, e.meaning.kind) == (name, kind))

        sensed = tuple(e.number for e in entries if e.meaning.target == "observation" and e.meaning.name in sensors)
        return cls(sensed, those("insulin_basal", "rate"), those("insulin_bolus", "dose"))

    def found(self, survey: pa.Table | None, observations: pa.Table | None, exposures: pa.Table | None) -> tuple[list[tuple], list[Jump]]:
        """wrong and jumps of all records of some patients: counts (survey.schema), sound records with SERIES and with AMOUNTS."""
        wrong = [] if survey is None else _rows(contradictions(summed(survey)))
        if self.rates and self.doses and exposures is not None:
            amounts = exposures.filter(pa.array(np.isin(exposures["entry"].to_numpy(), [*self.rates, *self.doses])))
            wrong += _rows(too_small(amounts.combine_chunks(), self.rates, self.doses))
        if not self.sensed or observations is None:
            return wrong, []
        series = observations.filter(pa.array(np.isin(observations["entry"].to_numpy(), list(self.sensed))))
        return wrong, list(clock_jumps.find(series.combine_chunks()))


def _rows(table: pa.Table) -> list[tuple]:
    return list(zip(*(c.to_pylist() for c in table.columns)))
