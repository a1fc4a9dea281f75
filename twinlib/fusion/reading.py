"""Raw files to blobs of judged records: what one task does with its files. Every file is read once."""

from __future__ import annotations

import heapq
import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from twinlib.fusion.arrays import codes, coded
from twinlib.fusion.blobs import Packer, gathered
from twinlib.fusion.entries import Entry
from twinlib.fusion.judge import JUDGED, judge, told
from twinlib.fusion.clocks import date_order
from twinlib.fusion.survey import KEYS, counted, schema, tallied, units
from twinlib.fusion.verdicts import Verdicts
from twinlib.sources.forgotten import PSEUDONYM, tombstone
from twinlib.sources.records import TASK_BYTES, Job, Piece, Tally

SOUND = pa.schema([f for f in JUDGED if f.name not in ("reason", "detail", "worded", "identifiers")])  # kinds of blobs by target
_PLACE = ("entry", "file", "line", "part", "patient_id", "unit", "reason", "detail")
REFUSED = pa.schema([*(JUDGED.field(n) for n in _PLACE), ("record", pa.string())])
CLAIMS = pa.schema([JUDGED.field(n) for n in ("entry", "patient_id", "identifiers")])
RECORDS = 1_250_000  # of one part: some 800 MB in a Python worker
RECORD_BYTES = {False: 64, True: 8}  # of raw files, by whether they are dense: CSV, and Parquet in order of patients


@dataclass(frozen=True)
class Reading:
    """What is needed to read and judge files. as_of: micros, what became known later is left out, as are patients under a tombstone."""

    entries: Sequence[Entry]
    key: bytes
    as_of: int | None = None
    tombstones: frozenset[str] = frozenset()

    def judged(self, job: Job, wanted: Callable[[str], bool] | None = None) -> Iterator[tuple[Piece, pa.Table] | Tally]:
        """Every record of the job, or those of the patients that are wanted, judged on its own: pieces with JUDGED; and its tally."""
        order = self._orders(job)
        for piece in job.pieces(self.key):
            if isinstance(piece, Tally):
                yield piece
                continue
            if wanted:
                patient, ids = codes(piece.columns["patient_id"])
                piece = piece.filter(np.array([*map(wanted, ids), False], bool)[patient])
                if not len(piece):
                    continue
            table = judge(piece, self.entries[piece.entry], order.get(piece.file))
            keep = self._left(piece, table)
            if keep.all():
                yield piece, table
            elif keep.any():
                yield piece.filter(keep), table.filter(pa.array(keep))

    def _orders(self, job: Job) -> dict[str, str]:
        """Order of day and month by file, where the stamps themselves must tell it: then the file is read for them first."""
        counts: dict[str, np.ndarray] = {}
        for piece in job.pieces(self.key) if job.undecided else ():
            clock = None if isinstance(piece, Tally) else self.entries[piece.entry].meaning.clock
            if clock and clock.order == "auto":
                counts[piece.file] = counts.get(piece.file, 0) + told(piece, self.entries[piece.entry])
        return {file: date_order(c) for file, c in counts.items()}

    def _left(self, piece: Piece, table: pa.Table) -> np.ndarray:
        keep = np.ones(table.num_rows, bool)
        if self.as_of is not None:  # before duplicates are settled: a later correction must not push out what was known
            known = table["available_at"].combine_chunks().cast(pa.int64()).fill_null(self.as_of).to_numpy()
            keep &= known <= self.as_of
        if self.tombstones:
            patient, ids = codes(table["patient_id"])
            gone = np.array([tombstone(self.key, p) in self.tombstones for p in ids] + [False])
            keep &= ~gone[patient]
            unknown = np.flatnonzero(patient < 0)
            if len(unknown):
                texts = piece.text(unknown).to_pylist()
                keep[unknown] &= np.array([not names_withdrawn(f"{piece.file} {t}", self._is_gone) for t in texts])
        return keep

    def _is_gone(self, patient: str) -> bool:
        return tombstone(self.key, patient) in self.tombstones


def names_withdrawn(text: str, gone: Callable[[str], bool]) -> bool:
    """Whether a text holds the pseudonym of a patient who has withdrawn: a record whose patient is not known then counts as the patient's."""
    return any(map(gone, re.findall(rf"(?=({PSEUDONYM}))", text)))


def read(jobs: Iterable[Job], how: Reading, parts: int, identified: bool) -> Iterator[pa.RecordBatch]:
    """Batches of blobs.SCHEMA: sound records by target (SOUND), `refused` ones with their texts, `survey` counts, and `claims` where people are to
    be `identified` (before anyone is left out)."""
    packer, k = Packer(parts), units(how.entries)
    for job in jobs:
        for found in how.judged(job):
            if isinstance(found, Tally):
                yield from packer.add("survey", tallied(found, k))
                continue
            piece, table = found
            entry = how.entries[piece.entry]
            yield from packer.add("survey", counted(table, entry, k))
            refused = table["reason"].is_valid().to_numpy()
            if refused.any():
                yield from packer.add("refused", with_text(piece, table, refused))
            sound = table.filter(pa.array(~refused)) if refused.any() else table
            if entry.meaning.target != "none":
                yield from packer.add(entry.meaning.target, sound.select(SOUND.names))
            if identified and entry.meaning.target == "patient":
                stated = table.filter(pc.and_(table["identifiers"].is_valid(), table["patient_id"].is_valid()))
                yield from packer.add("claims", stated.select(CLAIMS.names))
    yield from packer.rest()


def with_text(piece: Piece, table: pa.Table, chosen: np.ndarray) -> pa.Table:
    """REFUSED of some judged records (n,)."""
    places = np.flatnonzero(chosen)
    return table.take(pa.array(places)).select(REFUSED.names[:-1]).append_column("record", piece.text(places))


def refused_later(jobs: Iterable[Job], how: Reading, verdicts: Verdicts, canonical: Mapping[str, str]) -> Iterator[pa.Table]:
    """REFUSED of records that are sound on their own and were refused when they were seen together: their files are read again for their texts.

    canonical: the patient, by the pseudonyms that a source gave to it.
    """
    for job in jobs:
        for found in how.judged(job, lambda patient: verdicts.known(canonical.get(patient, patient))):
            if isinstance(found, Tally):
                continue
            piece, table = found
            table = renamed(table, canonical)
            sound = table["reason"].is_null().to_numpy()
            verdict = np.where(sound, verdicts.on(table)[0], 0)
            if verdict.any():
                yield with_text(piece, table, verdict > 0)


def renamed(table: pa.Table, canonical: Mapping[str, str]) -> pa.Table:
    """`table` with each person's patient_id in place of the pseudonym of the source's own id."""
    if not canonical:
        return table
    patient, ids = codes(table["patient_id"])
    names = coded(pa.array([canonical.get(p, p) for p in ids], pa.string()))
    place = table.schema.get_field_index("patient_id")
    return table.set_column(place, table.schema.field(place), coded(names.dictionary_decode().take(pa.array(patient, mask=patient < 0))))


def placed_anew(
    batches: Iterable[pa.RecordBatch], parts: int, canonical: Mapping[str, str], gone: Callable[[str], bool], k: int
) -> Iterator[pa.RecordBatch]:
    """Blobs with people under one id each, in the parts of these, without the patients who are gone. k: `survey.units`."""
    packer = Packer(parts)
    for batch in batches:
        for row, kind in enumerate(batch.column(0).to_pylist()):
            if kind == "claims":
                continue
            table = gathered([batch.slice(row, 1)], {kind: None})[kind]
            patient, ids = codes(table["patient_id"])
            keep = ~np.array([*map(gone, ids), False], bool)[patient]
            if kind == "refused":
                file, record = (table[n].to_pylist() for n in ("file", "record"))
                unnamed = [j for j in np.flatnonzero(patient < 0) if names_withdrawn(f"{file[j]} {record[j]}", gone)]
                keep[unnamed] = False
                yield from packer.add("survey", _uncounted(table.take(pa.array(unnamed, pa.int64())), k))
            yield from packer.add(kind, renamed(table.filter(pa.array(keep)), canonical))
    yield from packer.rest()


def _uncounted(records: pa.Table, k: int) -> pa.Table:
    """Counts (survey.schema(k)) that take back those of some records whose patient is not known."""
    n, kind = records.num_rows, schema(k)
    given = {name: records[name].combine_chunks() for name in KEYS} | {"rows": pa.array(np.full(n, -1))}
    return pa.table([given.get(f.name, pa.array(np.zeros(n, np.int64))) for f in kind], kind)


def stored_records(rows: pa.Table, target: str, entries: Sequence[Entry]) -> pa.Table:
    """SOUND of rows of OBSERVATIONS or EXPOSURES; those of entries that are no more are left out."""
    of: dict[tuple, int] = {}
    for e in entries:
        if e.meaning.target == target:
            of.setdefault((e.meaning.source, e.meaning.name, e.meaning.kind if target == "exposure" else None), e.number)
    names = ("signal", "time", "value") if target == "observation" else ("agent", "start", "amount")
    keys = zip(rows["source"].to_pylist(), rows[names[0]].to_pylist(), rows["kind"].to_pylist() if target == "exposure" else [None] * rows.num_rows)
    columns = {n: rows[n] for n in rows.column_names} | {
        "entry": pa.array([of.get(k) for k in keys], pa.int32()), "utc": rows[names[1]], "value": rows[names[2]],
        "quality": pc.binary_join(rows["quality"].combine_chunks(), " "),
    }  # fmt: skip
    known = columns["entry"].is_valid()
    table = pa.table([_typed(columns[f.name], f.type) if f.name in columns else pa.nulls(rows.num_rows, f.type) for f in SOUND], SOUND)
    return table.filter(known)


def _typed(column: pa.Array | pa.ChunkedArray, kind: pa.DataType) -> pa.Array:
    column = column.combine_chunks() if isinstance(column, pa.ChunkedArray) else column
    return coded(column) if pa.types.is_dictionary(kind) else column.cast(kind)


def parts_for(jobs: Iterable[Job], buckets: int) -> int:
    """In how many parts of whole patients records are looked at: a multiple of the buckets of the tables, so that the patients of a part are of one
    bucket, and as many as keep a part to about RECORDS records, whatever the size of the cohort."""
    records = sum(job.size // RECORD_BYTES[job.dense] for job in jobs)
    return buckets * max(1, -(-records // (buckets * RECORDS)))


def balanced(jobs: Sequence[Job], parallelism: int) -> list[list[Job]]:
    """Files spread over tasks of about equal size, largest first."""
    total = sum(j.size for j in jobs)
    n = max(1, min(len(jobs), max(parallelism, -(-total // TASK_BYTES))))
    heap, tasks = [(0, k) for k in range(n)], [[] for _ in range(n)]
    for job in sorted(jobs, key=lambda j: (-j.size, j.name)):
        size, k = heapq.heappop(heap)
        tasks[k].append(job)
        heapq.heappush(heap, (size + job.size + (1 << 16), k))
    return tasks

