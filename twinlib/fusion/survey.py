"""What the records of every patient look like as a whole, file by file: units that their values contradict, and sources without any."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

import numpy as np
import pyarrow as pa

from twinlib.errors import DataError
from twinlib.fusion.arrays import codes, coded, constant, numbers
from twinlib.fusion.entries import Entry, affine
from twinlib.fusion.judge import CODED
from twinlib.sources.records import Source, Tally

CONTRADICTION_MINIMUM = 5  # readings of one patient in one file below which the middle says nothing about the unit
KEYS = ("entry", "patient_id", "file", "unit")


def units(entries: Iterable[Entry]) -> int:
    """The largest number of units that the numbers of an entry might be in."""
    return max((len(e.alternatives) for e in entries), default=0)


def schema(k: int) -> pa.Schema:
    """Counts per entry, patient, file and unit; they add up. rows: records; files, ignored: of the file's tally; n: usable values; below, above:
    those out of the plausible range; from_j, to_j: those that would not be below, or above, it in the j-th of k units that might be meant."""
    sums = ["files", "ignored", "rows", "n", "below", "above", *[f"{side}_{j}" for j in range(k) for side in ("from", "to")]]
    return pa.schema([("entry", pa.int32()), ("patient_id", CODED), ("file", CODED), ("unit", CODED), *[(s, pa.int64()) for s in sums]])


def counted(judged: pa.Table, entry: Entry, k: int) -> pa.Table:
    """The counts (`schema(k)`) of judged records, at least one, of one entry and file."""
    (patient, ids), (unit, texts) = codes(judged["patient_id"]), codes(judged["unit"])
    groups, group = np.unique((patient.astype(np.int64) + 1) * max(len(texts), 1) + unit, return_inverse=True)
    value = np.where(judged["worded"].combine_chunks().to_numpy(zero_copy_only=False), np.nan, numbers(judged["value"]))
    low, high = (entry.plausible.low, entry.plausible.to) if entry.plausible else (np.nan, np.nan)
    holds = {"rows": np.ones(len(value), bool), "n": ~np.isnan(value), "below": value < low, "above": value > high}
    if entry.alternatives:
        factor, shift = affine(entry, texts)[:, unit]
        raw = (value - shift) / factor
        for j, a in enumerate(entry.alternatives):
            meant = raw * a.factor + a.offset
            holds |= {f"from_{j}": holds["n"] & ~(meant < low), f"to_{j}": holds["n"] & ~(meant > high)}
    sums = {name: np.bincount(group, h, len(groups)).astype(np.int64) for name, h in holds.items()}
    who, which = np.divmod(groups, max(len(texts), 1))
    n, kind = len(groups), schema(k)
    columns = {
        "entry": pa.array(np.full(n, entry.number, np.int32)), "file": constant(judged["file"][0].as_py(), n),
        "patient_id": coded(pa.array([*ids, None], pa.string()).take(pa.array(who - 1, mask=who == 0))),
        "unit": coded(pa.array(texts, pa.string()).take(pa.array(which))), **{name: pa.array(s) for name, s in sums.items()},
    }  # fmt: skip
    return pa.table([columns.get(f.name, pa.array(np.zeros(n, np.int64))) for f in kind], kind)


def tallied(tally: Tally, k: int) -> pa.Table:
    kind = schema(k)
    row = {"entry": tally.entry, "patient_id": None, "file": tally.file, "unit": "", "files": tally.files, "ignored": tally.ignored}
    return pa.Table.from_pylist([{f.name: row.get(f.name, 0) for f in kind}], kind)


def summed(partial: pa.Table, keys: Sequence[str] = KEYS, sums: Sequence[str] | None = None) -> pa.Table:
    """`partial` with the counts of equal keys added up, coded columns as texts."""
    sums = [n for n in partial.column_names if n not in KEYS] if sums is None else sums
    plain = partial.cast(pa.schema([(f.name, pa.string() if f.type == CODED else f.type) for f in partial.schema]))
    total = plain.group_by(list(keys), use_threads=False).aggregate([(n, "sum") for n in sums])
    return total.rename_columns([n.removesuffix("_sum") for n in total.column_names])


def contradictions(survey: pa.Table) -> pa.Table:
    """KEYS where the middle value is implausible in the declared unit, but not in another one.

    survey: `summed` counts. A file is decided on its own: one bad export among good ones is seen, and what comes later changes nothing.
    """
    c = {n: survey[n].to_numpy() for n in survey.column_names if n not in KEYS}
    k = sum(n.startswith("from_") for n in c)
    fits = np.zeros(survey.num_rows, bool)
    for j in range(k):
        fits |= (2 * c[f"from_{j}"] > c["n"]) & (2 * c[f"to_{j}"] > c["n"])
    outside = 2 * np.maximum(c["below"], c["above"]) > c["n"]
    known = survey["patient_id"].is_valid().to_numpy()
    return survey.filter(pa.array((c["n"] >= CONTRADICTION_MINIMUM) & known & outside & fits)).select(list(KEYS))


def read_counts(found: Mapping[int, Mapping[str, int]], entries: Sequence[Entry]) -> dict[int, dict[str, int]]:
    """files, rows_ignored and rows_read by number of entry, of the sums of files, ignored and rows by number of entry."""
    none = {"files": 0, "ignored": 0, "rows": 0}
    files = {e.meaning.group: found[e.number]["files"] for e in reversed(entries) if found.get(e.number, none)["files"]}
    return {
        e.number: {
            "files": files.get(e.meaning.group, 0),
            "rows_ignored": found.get(e.number, none)["ignored"],
            "rows_read": found.get(e.number, none)["rows"],
        }
        for e in entries
    }


def check_presence(read: dict[int, dict[str, int]], sources: Sequence[Source], entries: Sequence[Entry]) -> None:
    """Raises DataError where a whole source has no record."""
    for origin, source in enumerate(sources):
        own = [e for e in entries if e.origin == origin]
        if not any(read[e.number]["rows_read"] for e in own):
            files = sum({e.meaning.group: read[e.number]["files"] for e in own}.values())
            raise DataError(f"source {source.name}: no records in {files} files; expected at least one")
