"""Sound records of signals to readings: one fact, one row, with the flags of its series.

The records of a part of the patients are put in order once; the rest is done on tables of whole patients, column by column, and comes out in the
order in which the table is stored.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import pyarrow as pa

from twinlib.fusion.arrays import codes, decoded, has_flag, has_word, instants, numbers, ranks, starts, with_flags
from twinlib.fusion.duplicates import DECIMALS
from twinlib.fusion.entries import Entry
from twinlib.fusion.quality import flagged
from twinlib.fusion.vocabulary import Sensor
from twinlib.tables.ordered import AHEAD, Ordered
from twinlib.tables.schemas import OBSERVATIONS

# what is read of a sound record; signal and source follow from its entry
RECORD = ("entry", "patient_id", "utc", "value", "device", "utc_offset_minutes", "file", "line", "part", "available_at", "quality")
_ROWS = 200_000  # that are settled and flagged together, and a patient's more


@dataclass(frozen=True)
class Finisher:
    """Makes readings of the sound records of whole patients. again: some have been through here before, and bear the flag of what was dropped then."""

    entries: Sequence[Entry]
    sensors: Mapping[str, Sensor]
    again: bool = False

    @property
    def measured(self) -> list[Entry]:
        return [e for e in self.entries if e.meaning.target == "observation"]

    @property
    def doses(self) -> dict[int, str]:
        """Agents, by entry, with whose doses some signal rises: they are looked at beside it."""
        rise = {s.rises_with for n, s in self.sensors.items() if n in {e.meaning.name for e in self.measured}}
        return {e.number: e.meaning.name for e in self.entries if e.meaning.target == "exposure" and e.meaning.name in rise and e.meaning.kind == "dose"}

    def __call__(self, sound: pa.Table) -> Iterator[pa.Table]:
        """OBSERVATIONS with entry, kept and AHEAD of all records (judge.JUDGED) of some patients' signals, in the order in which they are stored;
        other records than those and `doses` are left out. Where records contradict each other (see `duplicates`), the first is kept: in order of
        source, corrected ones first, then of entry, file and line."""
        names = {e.number: (e.meaning.name, e.meaning.source) for e in self.measured}
        order = list(dict.fromkeys(e.meaning.source for e in self.measured))
        ordered, doses = Ordered(OBSERVATIONS.key), self.doses
        looked_at = np.isin(sound["entry"].to_numpy(), [*names, *doses])
        sound = sound if looked_at.all() else sound.filter(pa.array(looked_at))
        place, patient = self._placed(sound)
        if not len(place):
            return
        cuts, first = starts(patient), 0
        for last in [*cuts[1:].tolist(), len(place)]:
            if last - first >= _ROWS or last == len(place):
                table = sound.select(list(RECORD)).take(pa.array(place[first:last]))
                yield finished(plain(table), names, doses, self.sensors, order, self.again, ordered)
                first = last

    def _placed(self, sound: pa.Table) -> tuple[np.ndarray, np.ndarray]:
        """Places of the records in order of patient, signal, instant and precedence; and the patients (n,) in that order."""
        signals = sorted({e.meaning.name for e in self.measured})
        signal, origin = np.zeros(len(self.entries), np.int64), np.array([e.origin for e in self.entries])
        for e in self.measured:
            signal[e.number] = 1 + signals.index(e.meaning.name)
        entry, time, patient = sound["entry"].combine_chunks().to_numpy(), instants(sound["utc"]), ranks(sound["patient_id"])
        series = patient * (len(signals) + 1) + signal[entry]
        place = np.lexsort((time, series))
        same = np.flatnonzero((series[place][1:] == series[place][:-1]) & (time[place][1:] == time[place][:-1]))
        if len(same):  # few: only these are put in order of precedence
            tied = np.unique(np.concatenate([same, same + 1]))
            rows = place[tied]
            few = sound.select(["quality", "file", "line", "part"]).take(pa.array(rows))
            line, part = (few[n].combine_chunks().fill_null(0).to_numpy() for n in ("line", "part"))
            keys = (part, line, ranks(few["file"]), entry[rows], ~has_word(few["quality"], "amended"), origin[entry[rows]], time[rows], series[rows])
            place[tied] = rows[np.lexsort(keys)]
        return place, patient[place]


def plain(table: pa.Table) -> pa.Table:
    """`table` with texts in place of codes, and lists of flags in place of `quality`."""
    columns = {n: decoded(table[n]) for n in table.column_names}
    place, texts = codes(table["quality"])
    columns["quality"] = pa.array([t.split() for t in texts], pa.list_(pa.string())).take(pa.array(place))
    return pa.table(columns)


def finished(
    records: pa.Table, names: Mapping[int, tuple[str, str]], doses: Mapping[int, str], sensors: Mapping[str, Sensor], order: Sequence[str],
    again: bool, ordered: Ordered,
) -> pa.Table:
    """OBSERVATIONS, entry, kept and AHEAD of RECORD rows of signals, in order of patient, signal, instant and precedence. names: signal and source
    by entry; doses: agent by entry, whose rows are looked at and left out."""
    entry = records["entry"].combine_chunks().to_numpy()
    text = lambda by: pa.array([by.get(k) for k in range(max([*names, *doses, 0]) + 1)], pa.string())  # noqa: E731
    records = records.rename_columns([{"utc": "time"}.get(n, n) for n in records.column_names])
    given = None
    if doses and (other := np.isin(entry, list(doses))).any():
        eaten = other & (numbers(records["value"]) > 0)  # nothing eaten is a statement too
        given = records.filter(pa.array(eaten)).select(["patient_id", "time"])
        given = given.append_column("agent", text(doses).take(pa.array(entry[eaten])))
        records, entry = records.filter(pa.array(~other)), entry[~other]
    texts = [text({k: v[j] for k, v in names.items()}).take(pa.array(entry)) for j in (0, 1)]
    table = records.append_column("signal", texts[0]).append_column("source", texts[1])
    kept, differ, before = _settled(table, again)
    table = table.set_column(table.column_names.index("quality"), "quality", with_flags(table["quality"], {"conflict": differ}, before))
    chosen = table.filter(pa.array(kept))
    quality = flagged(chosen, sensors, order, given)
    place = np.maximum(np.cumsum(kept) - 1, 0)
    ahead = np.ones(len(kept), bool)
    ahead[kept] = ordered(chosen)
    columns = {n: table[n] for n in OBSERVATIONS.schema.fieldNames()} | {"quality": quality.take(pa.array(place))}
    return pa.table(columns | {"entry": table["entry"], "kept": pa.array(kept), AHEAD: pa.array(ahead)})


def _settled(table: pa.Table, again: bool) -> tuple[np.ndarray, np.ndarray, tuple[str, ...]]:
    """kept (n,), differ (n,): another value stands, or stood, at the instant; and the flags that are worked out anew."""
    first = starts(codes(table["patient_id"])[0], codes(table["signal"])[0], instants(table["time"]))
    kept = np.zeros(table.num_rows, bool)
    kept[first] = True
    counts = np.diff(np.append(first, table.num_rows))
    value = np.round(numbers(table["value"]), DECIMALS)  # 5.5 mmol/L and 99.0858 mg/dL are one value
    differ = np.zeros(len(first), bool)
    if len(first) < table.num_rows:
        differ = np.maximum.reduceat(value, first) != np.minimum.reduceat(value, first)
    if again:
        differ |= np.logical_or.reduceat(has_flag(table["quality"], "conflict"), first) if len(first) else differ
    return kept, np.repeat(differ, counts), ("conflict",) if again else ()
