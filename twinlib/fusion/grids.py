"""Readings of a sensor's signals on a regular grid: one piece per block, and what of it is an episode's."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence

import numpy as np
import pyarrow as pa

from twinlib.fusion.arrays import DAY, MINUTE, codes, starts, whole_patients

MONDAY = 4 * DAY  # 1970-01-05


def schema(signals: Sequence[str]) -> str:
    grids = ", ".join(f"`piece_{s}` struct<tick: bigint, values: array<float>>" for s in signals)
    return f"patient_id string, block bigint, first bigint, begin bigint, until bigint, {grids}"


def gridded(signals: Sequence[str], step: int, days: int | None) -> Callable[[Iterable[pa.RecordBatch]], Iterator[pa.RecordBatch]]:
    """A function of batches of `pieces`' records in order of patient, to batches of `schema`."""
    def pack(batches: Iterable[pa.RecordBatch]) -> Iterator[pa.RecordBatch]:
        for records in whole_patients(batches):
            yield from pieces(records, signals, step, days).to_batches()

    return pack


def pieces(records: pa.Table, signals: Sequence[str], step: int, days: int | None) -> pa.Table:
    """Per patient and block: first (the first record as `packing._first` writes it), begin and until (micros of the first and last reading), and
    per signal s `piece_s`: (tick, values), null without a reading.

    records: patient_id, signal (place in `signals`), micros, value (millionths, whole: sums are exact in any order), offset (local minus UTC, min).
    Ticks are steps since 1970 (UTC); `values`, from `tick` on, are the means of the readings within half a step of each, NaN where there is none.
    """
    patient, ids = codes(records["patient_id"])
    signal, micros, value, offset = (records[n].combine_chunks().to_numpy() for n in ("signal", "micros", "value", "offset"))
    tick = (micros + step * MINUTE // 2) // (step * MINUTE)
    block = np.zeros_like(tick) if days is None else (tick * step * MINUTE + offset * MINUTE - MONDAY) // (days * DAY)
    place = np.lexsort((tick, signal, block, patient))
    patient, signal, block, tick, micros, value, offset = (x[place] for x in (patient, signal, block, tick, micros, value, offset))

    slots = starts(patient, block, signal, tick)
    counts = np.diff(np.append(slots, len(tick)))
    means = (np.add.reduceat(value, slots) / counts / 1e6).astype(np.float32)
    blocks = starts(patient, block)
    first = (micros // MINUTE) * 4096 + offset + 2048
    columns = {
        "patient_id": pa.array(ids, pa.string()).take(pa.array(patient[blocks])),
        "block": pa.array(block[blocks]),
        "first": pa.array(np.minimum.reduceat(first, blocks)),
        "begin": pa.array(np.minimum.reduceat(micros, blocks)),
        "until": pa.array(np.maximum.reduceat(micros, blocks)),
    }
    begins = np.flatnonzero(np.isin(slots, starts(patient, block, signal), assume_unique=True))  # places in `slots` of the pieces
    ends = np.append(begins[1:], len(slots)) - 1
    low, high = tick[slots[begins]], tick[slots[ends]]
    at = np.concatenate([[0], np.cumsum(high - low + 1)])  # of each piece in `values`
    values = np.full(at[-1], np.nan, np.float32)
    values[tick[slots] + np.repeat(at[:-1] - low, ends - begins + 1)] = means
    of = np.searchsorted(blocks, slots[begins], "right") - 1
    for k, name in enumerate(signals):
        own = np.full(len(blocks), -1)
        mine = np.flatnonzero(signal[slots[begins]] == k)
        own[of[mine]] = mine
        parts = [values[at[j] : at[j + 1]] if j >= 0 else values[:0] for j in own.tolist()]
        bounds = np.concatenate([[0], np.cumsum([len(p) for p in parts])]).astype(np.int32)
        lists = pa.ListArray.from_arrays(pa.array(bounds), pa.array(np.concatenate(parts) if parts else values[:0]))
        columns[f"piece_{name}"] = pa.StructArray.from_arrays([pa.array(np.append(low, 0)[own]), lists], ["tick", "values"], mask=pa.array(own < 0))
    return pa.table(columns)


EPISODE = "values array<float>, filled int, worn int"


def cutter(step: int) -> Callable[[pa.Array, pa.Array, pa.Array], pa.Array]:
    """A function of pieces (n,), starts (n,) in micros, on a tick, and minutes (n,) to EPISODE (n,).

    values: those from the start on, NaN where there is no reading. filled: slots with a reading. worn: slots that the sensor was worn, which
    are the filled ones times their usual spacing (the lower median, at least 1 and at most a quarter of an hour: the slowest sensors).
    """

    def cut(piece: pa.Array, start: pa.Array, minutes: pa.Array) -> pa.Array:
        there = piece.is_valid().to_numpy(zero_copy_only=False)
        first, slots = start.to_numpy() // (step * MINUTE), minutes.to_numpy() // step
        ticks, values = piece.field("tick").fill_null(0).to_numpy(), piece.field("values")
        bounds, flat = values.offsets.to_numpy(), values.values.to_numpy(zero_copy_only=False)
        at = np.concatenate([[0], np.cumsum(slots)])
        whole = np.full(at[-1], np.nan, np.float32)
        filled, worn = np.zeros((2, len(first)), np.int32)
        for k in np.flatnonzero(there).tolist():
            own, grid = flat[bounds[k] : bounds[k + 1]], whole[at[k] : at[k + 1]]
            shift = int(ticks[k] - first[k])
            low, high = max(shift, 0), min(shift + len(own), len(grid))
            if low < high:
                grid[low:high] = own[low - shift : high - shift]
            filled[k], worn[k] = _worn(grid, 15 // step)
        lists = pa.ListArray.from_arrays(pa.array(at.astype(np.int32)), pa.array(whole))
        return pa.StructArray.from_arrays([lists, pa.array(filled), pa.array(worn)], ["values", "filled", "worn"])

    return cut


def _worn(grid: np.ndarray, longest: int) -> tuple[int, int]:
    places = np.flatnonzero(~np.isnan(grid))
    gaps = len(places) - 1
    spacing = int(np.partition(np.diff(places), (gaps - 1) // 2)[(gaps - 1) // 2]) if gaps > 0 else 1
    return len(places), len(places) * min(spacing, longest)
