"""Sound records of signals to readings: one fact, one row, with the flags of its series.

Spark brings the records of a bucket of patients together, in order, once; the rest is done on Arrow tables of whole patients, column by
column, and comes out in the order in which the table is stored.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence

import numpy as np
import pyarrow as pa
from pyspark.sql import DataFrame
from pyspark.sql import functions as F

from twinlib.fusion.arrays import codes, has_flag, instants, numbers, starts, whole_patients, with_flags
from twinlib.fusion.duplicates import DECIMALS
from twinlib.fusion.entries import Entry
from twinlib.fusion.quality import flagged
from twinlib.fusion.vocabulary import Sensor
from twinlib.tables.ordered import AHEAD, Ordered
from twinlib.tables.schemas import OBSERVATIONS

# what is read of a sound record; signal and source follow from its entry
RECORD = ("entry", "patient_id", "utc", "value", "device", "utc_offset_minutes", "file", "line", "part", "available_at", "quality")
_FIELDS = ", ".join(f"`{c.name}` {c.type.simpleString()}" for c in OBSERVATIONS.columns)
SCHEMA = f"{_FIELDS}, entry int, kept boolean, {AHEAD} boolean"


def readings(
    sound: DataFrame, exposures: DataFrame, entries: Sequence[Entry], sensors: Mapping[str, Sensor], buckets: int, again: bool = False
) -> DataFrame:
    """SCHEMA of sound records (RECORD, `origin` and `bucket`) of signals: all of them, `kept` where they are OBSERVATIONS. Partition k holds bucket k.

    exposures: the same of agents; doses with which some signal rises are looked at beside it. Where records contradict each other (see
    `duplicates`), the first is kept: in order of source, corrected ones first, then of entry, file and line. again: some have been through here
    before, and bear the flag of what was dropped then.
    """
    measured = [e for e in entries if e.meaning.target == "observation"]
    signals = sorted({e.meaning.name for e in measured})
    rise = {s.rises_with for n, s in sensors.items() if n in signals}
    doses = {e.number: e.meaning.name for e in entries if e.meaning.target == "exposure" and e.meaning.name in rise and e.meaning.kind == "dose"}
    sound = sound.select("bucket", "origin", *RECORD)
    if doses:
        sound = sound.unionByName(exposures.where(F.col("entry").isin(list(doses))).select(sound.columns))
    rank = _by_entry({e.number: signals.index(e.meaning.name) for e in measured})
    original = ~F.array_contains("quality", "amended")
    keyed = sound.select("*", rank.alias("rank"), original.alias("original"))
    placed = keyed.repartitionById(buckets, F.col("bucket")).sortWithinPartitions(
        "patient_id", "rank", "utc", "origin", "original", "entry", "file", "line", "part"
    )
    order = list(dict.fromkeys(e.meaning.source for e in measured))
    names = {e.number: (e.meaning.name, e.meaning.source) for e in measured}
    return placed.select(*RECORD).mapInArrow(_finisher(names, doses, dict(sensors), order, again), SCHEMA)


def _by_entry(numbers_: Mapping[int, int]):
    """The number of the row's entry."""
    last = max(numbers_, default=-1)
    return F.get(F.array(*[F.lit(numbers_.get(k, -1)) for k in range(last + 1)]) if numbers_ else F.array(F.lit(0)), F.col("entry"))


def _finisher(
    names: Mapping[int, tuple[str, str]], doses: Mapping[int, str], sensors: Mapping[str, Sensor], order: Sequence[str], again: bool
) -> Callable[[Iterable[pa.RecordBatch]], Iterator[pa.RecordBatch]]:
    def finish(batches: Iterable[pa.RecordBatch]) -> Iterator[pa.RecordBatch]:
        ordered = Ordered(OBSERVATIONS.key)
        for records in whole_patients(batches):
            yield from finished(records, names, doses, sensors, order, again, ordered).to_batches()

    return finish


def finished(
    records: pa.Table, names: Mapping[int, tuple[str, str]], doses: Mapping[int, str], sensors: Mapping[str, Sensor], order: Sequence[str],
    again: bool, ordered: Ordered,
) -> pa.Table:
    """SCHEMA of RECORD rows of signals, in order of patient, signal, instant and precedence. names: signal and source by entry; doses: agent by
    entry, whose rows are looked at and left out."""
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
