"""Device clocks that were set while readings went on: found by the order of records in a file, which the device kept.

A device writes its readings as they come, so in its file time runs one way. Where it steps back, a clock was set: by the wearer, by
daylight saving, or because it had been wrong. The records of the stretch that was written under another clock are refused
(`clock_jump`), or, where the stretch is the second pass of an hour that the zone repeats, moved to that second pass.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from typing import NamedTuple

import numpy as np
import pyarrow as pa
from pyspark.sql import Column, DataFrame, SparkSession
from pyspark.sql import functions as F

from twinlib.fusion.arrays import HOUR, MINUTE
from twinlib.fusion.rules import overruled

LARGEST = 26 * 60 * MINUTE  # a day and daylight saving; larger steps back are files put together
DISORDER = 0.05  # share of steps against the file's order above which it has none
FEWEST = 12  # readings from which an order can be told
SCHEMA = "entry int, file string, first_line bigint, last_line bigint, shift_minutes int"
_ARROW = pa.schema(
    [("entry", pa.int32()), ("file", pa.string()), ("first_line", pa.int64()), ("last_line", pa.int64()), ("shift_minutes", pa.int32())]
)


class Stretch(NamedTuple):
    """Places [first, last] of a series that were written under another clock; `shift`: what sets them right (micros), 0 = unknown."""

    first: int
    last: int
    shift: int


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


def find(judged: DataFrame, entries: Sequence[int]) -> list[dict]:
    """Rows of SCHEMA for the sound records of the given entries, as they stand in their files.

    judged: entry, file, line, patient_id, utc, value, quality, reason, with the records of a file in order within a partition.
    """
    if not entries:
        return []
    repeated = F.array_contains("quality", "ambiguous_local_time").alias("repeated")
    series = judged.where(F.col("entry").isin(list(entries)) & F.col("reason").isNull() & F.col("ignored").isNull())
    columns = ("entry", "file", "patient_id", "line", F.unix_micros("utc").alias("time"), "value", repeated)
    return [r.asDict() for r in series.select(*columns).mapInArrow(_detected, SCHEMA).collect()]


def _detected(batches: Iterable[pa.RecordBatch]) -> Iterator[pa.RecordBatch]:
    for (entry, file, _), lines, time, value, repeated in _series(batches):
        found = stretches(time, value, repeated)
        if found:
            ends = [sorted((int(lines[s.first]), int(lines[s.last]))) for s in found]
            rows = [(entry, file, a, b, round(s.shift / MINUTE)) for s, (a, b) in zip(found, ends)]
            yield pa.RecordBatch.from_pylist([dict(zip(_ARROW.names, row)) for row in rows], _ARROW)


def _series(batches: Iterable[pa.RecordBatch]):
    """Consecutive rows of one entry, file and patient: (key, lines, times, values, repeated)."""
    key, held = None, []
    for batch in batches:
        coded = [batch.column(k).dictionary_encode() for k in range(3)]
        codes = np.stack([c.indices.fill_null(-1).to_numpy(zero_copy_only=False) for c in coded])
        cuts = np.flatnonzero((np.diff(codes, axis=1) != 0).any(axis=0)) + 1
        numbers = [batch.column(k).to_numpy(zero_copy_only=False) for k in range(3, 7)]
        for a, b in zip([0, *cuts], [*cuts, batch.num_rows]):
            if a == b:
                continue
            this = tuple(c.dictionary[int(code)].as_py() if code >= 0 else None for c, code in zip(coded, codes[:, a]))
            if this != key and held:
                yield key, *map(np.concatenate, zip(*held))
                held = []
            key = this
            held.append([x[a:b] for x in numbers])
    if held:
        yield key, *map(np.concatenate, zip(*held))


def applied(spark: SparkSession, judged: DataFrame, found: Sequence[dict]) -> DataFrame:
    """`judged` with the records of the stretches `found` refused or moved."""
    if not found:
        return judged
    rows = spark.createDataFrame(pa.Table.from_pylist(list(found), _ARROW))
    frame = F.broadcast(rows.withColumnsRenamed({"entry": "_entry", "file": "_file"}))
    inside = (F.col("entry") == F.col("_entry")) & (F.col("file") == F.col("_file")) & F.col("line").between(F.col("first_line"), F.col("last_line"))
    df = judged.join(frame, inside, "left")
    moved: Column = F.col("shift_minutes").cast("bigint") * MINUTE
    shifted = lambda c: F.when(F.col("shift_minutes") > 0, F.timestamp_micros(F.unix_micros(c) + moved)).otherwise(F.col(c))  # noqa: E731
    wrong = F.coalesce(F.col("shift_minutes") == 0, F.lit(False))
    df = df.withColumns({
        "utc": shifted("utc"),
        "available_at": F.greatest("available_at", shifted("utc")),
        "utc_offset_minutes": F.col("utc_offset_minutes") - F.coalesce("shift_minutes", F.lit(0)),
        "reason": overruled(F.col("reason"), wrong, "clock_jump"),
    })
    return df.drop("_entry", "_file", "first_line", "last_line", "shift_minutes")
