"""Readings of a sensor's signals as pieces of a regular grid, an hour each."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence

import numpy as np
import pyarrow as pa

from twinlib.fusion.arrays import DAY, MINUTE, codes, starts, whole_patients

MONDAY = 4 * DAY  # 1970-01-05


def schema(signals: Sequence[str]) -> str:
    hours = ", ".join(f"`hours_{s}` array<struct<hour: bigint, values: array<float>>>" for s in signals)
    return f"patient_id string, block bigint, first bigint, begin bigint, until bigint, {hours}"


def hourly(signals: Sequence[str], step: int, days: int | None) -> Callable[[Iterable[pa.RecordBatch]], Iterator[pa.RecordBatch]]:
    """A function of batches of `pieces`' records in order of patient, to batches of `schema`."""
    def pack(batches: Iterable[pa.RecordBatch]) -> Iterator[pa.RecordBatch]:
        for records in whole_patients(batches):
            yield from pieces(records, signals, step, days).to_batches()

    return pack


def pieces(records: pa.Table, signals: Sequence[str], step: int, days: int | None) -> pa.Table:
    """Per patient and block: first (the first record as `packing._first` writes it), begin and until (micros of the first and last reading), and
    per signal s `hours_s`: (hour, values), sorted by hour.

    records: patient_id, signal (place in `signals`), micros, value (millionths, whole: sums are exact in any order), offset (local minus UTC, min).
    Hours count from 1970 (UTC) and begin half a step early; `values` are the means of the readings within half a step of the hour's ticks,
    NaN where there is none. Hours that hold no reading are not there.
    """
    patient, ids = codes(records["patient_id"])
    signal, micros, value, offset = (records[n].combine_chunks().to_numpy() for n in ("signal", "micros", "value", "offset"))
    per_hour = 60 // step
    tick = (micros + step * MINUTE // 2) // (step * MINUTE)
    hour, slot = tick // per_hour, tick % per_hour
    block = np.zeros_like(tick) if days is None else (tick * step * MINUTE + offset * MINUTE - MONDAY) // (days * DAY)
    place = np.lexsort((tick, signal, block, patient))
    patient, signal, block, hour, slot, tick, micros, value, offset = (x[place] for x in (patient, signal, block, hour, slot, tick, micros, value, offset))

    slots = starts(patient, block, signal, tick)
    counts = np.diff(np.append(slots, len(tick)))
    means = (np.add.reduceat(value, slots) / counts / 1e6).astype(np.float32)
    hours = starts(*(x[slots] for x in (patient, block, signal, hour)))  # places in `slots`
    grid = np.full((len(hours), per_hour), np.nan, np.float32)
    row = np.repeat(np.arange(len(hours)), np.diff(np.append(hours, len(slots))))
    grid[row, slot[slots]] = means

    blocks = starts(patient, block)
    first = (micros // MINUTE) * 4096 + offset + 2048
    columns = {
        "patient_id": pa.array(ids, pa.string()).take(pa.array(patient[blocks])),
        "block": pa.array(block[blocks]),
        "first": pa.array(np.minimum.reduceat(first, blocks)),
        "begin": pa.array(np.minimum.reduceat(micros, blocks)),
        "until": pa.array(np.maximum.reduceat(micros, blocks)),
    }
    at = slots[hours]  # row at which each hour begins
    for k, name in enumerate(signals):
        own = signal[at] == k
        values = pa.FixedSizeListArray.from_arrays(pa.array(grid[own].ravel()), per_hour).cast(pa.list_(pa.float32()))
        pieces_ = pa.StructArray.from_arrays([pa.array(hour[at[own]]), values], ["hour", "values"])
        bounds = np.searchsorted(at[own], np.append(blocks, len(tick)))
        columns[f"hours_{name}"] = pa.ListArray.from_arrays(pa.array(bounds.astype(np.int32)), pieces_)
    return pa.table(columns)
