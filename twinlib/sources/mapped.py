"""The mapped source: raw files of one folder, read as one mapping file says."""

from __future__ import annotations

import difflib
import heapq
from collections.abc import Iterable, Iterator
from dataclasses import dataclass

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from pyspark.sql import DataFrame, SparkSession

from twinlib.errors import DataError
from twinlib.sources import columnar
from twinlib.sources.blocks import Block, Unreadable
from twinlib.sources.choice import known_rows, marks, meets
from twinlib.sources.files import File, filesystem, find, select
from twinlib.sources.mapping import SECONDS, SPARSE, Entry, FileGroup, Mapping
from twinlib.sources.pseudonym import pseudonym, pseudonyms, tokens
from twinlib.sources.readers import header, read
from twinlib.sources.records import RECORDS, RECORDS_ARROW, Meaning, Part
from twinlib.sources.verbatim import masker, verbatim

HEADERS_CHECKED = 200  # files per group whose columns are looked at before work starts
TASK_BYTES = 64 << 20


def _meanings(mapping: Mapping, name: str, path: str) -> Iterator[tuple[Meaning, FileGroup, Entry | None]]:
    """Per group of files: the layout itself where it has several entries, then its entries."""
    for group in mapping.files:
        base = f"{name}.{group.name}"
        if len(group.entries) > 1 or group.entries[0].name:
            yield Meaning(base, base, f"{path}: files {group.name}", "none"), group, None
        for entry in group.entries:
            target = "patient" if entry.patient else "observation" if entry.observation else "exposure" if entry.exposure else "event"
            yield (
                Meaning(
                    source=f"{base}.{entry.name}" if entry.name else base,
                    group=base,
                    where=f"{path}: files {group.name}, entry {entry.name or target}",
                    target=target,
                    name=entry.name_of_target,
                    kind=entry.kind if entry.exposure else None,
                    clock=group.clock(entry),
                    value=entry.number,
                    duration_seconds=SECONDS[entry.duration.unit] if entry.duration else None,
                    attributes=entry.patient,
                    has_end=entry.end is not None,
                    has_available=entry.available_at is not None,
                    has_device=group.device is not None and entry.observation is not None,
                ),
                group,
                entry,
            )


class MappedSource:
    """Files under `root`, as `mapping` (read from `path`) says; `name` is the prefix of the source names."""

    def __init__(self, mapping: Mapping, path: str, root: str, name: str | None = None):
        self.mapping, self.path, self.root, self.name = mapping, path, root, name or mapping.name
        self.only: frozenset[str] | None = None
        self._parts = tuple(_meanings(mapping, self.name, path))
        self.meanings = tuple(m for m, _, _ in self._parts)
        self.namespace = mapping.namespace
        self.described = mapping.model_dump_json()  # all of its configuration, for the fingerprint of a run

    def restricted(self, names: Iterable[str]) -> MappedSource:
        """The same source with some of its files only, by relative path; a glob may then match none."""
        result = MappedSource(self.mapping, self.path, self.root, self.name)
        result.only = frozenset(names)
        return result

    def files(self) -> list[tuple[FileGroup, list[File]]]:
        """Raises DataError where a glob matches no file."""
        if self.only is not None:
            return [(g, kept) for g, some in self.present() if (kept := [f for f in some if f.relative in self.only])]
        found, result = find(self.root), []
        for group in self.mapping.files:
            chosen = select(found, group.glob)
            if not chosen:
                raise DataError(f"{self.root}: no file matches {', '.join(group.glob)} (files {group.name} of {self.path})")
            result.append((group, chosen))
        return result

    def present(self) -> list[tuple[FileGroup, list[File]]]:
        """The files that are there, of the groups that have any."""
        found = find(self.root)
        return [(g, some) for g in self.mapping.files if (some := select(found, g.glob))]

    def check(self) -> None:
        """Globs match, patients can be told from file names, declared columns exist in at least one file of the group.

        A single bad file among good ones is not an error of the run: its place is quarantine.
        """
        system, _ = filesystem(self.root)
        for group, files in self.files():
            where = f"{self.path}: files {group.name}"
            if group.patient.file and not any(group.patient.of_file(f.relative) for f in files):
                raise DataError(f"{where}: patient.file {group.patient.file!r} matches none of the {len(files)} file names")
            names: set[str] = set()
            problem = ""
            for file in files[:HEADERS_CHECKED]:
                try:
                    with opened(system, group, file) as stream:
                        names |= set(header(group, stream))
                except Unreadable as e:
                    problem = f" ({e.detail})"
            if not names:
                raise DataError(f"{where}: none of {len(files)} files can be read as {group.format}{problem}")
            self._check_columns(group, names, where)

    def _check_columns(self, group: FileGroup, names: set[str], where: str) -> None:
        wanted: set[str] = set()
        for entry in group.entries:
            # a JSON record leaves out the keys it has no use for: only what every record needs can be checked
            loose = group.format in SPARSE and (entry.when or entry.optional)
            wanted |= group.columns(entry) - (entry.columns if loose else set()) - {*entry.present, group.device}  # a file need not name its device
        if group.unpivot:
            wanted -= {group.unpivot.name, group.unpivot.value}
        if group.format == "json":
            wanted = {c.split(".")[0].split("[")[0] for c in wanted}
        for column in sorted(wanted - names):
            near = difflib.get_close_matches(column, names, 1, 0.6)
            hint = f"; did you mean {near[0]!r}?" if near else ""
            # a file without a header has values where names should be: only names that the mapping knows are shown
            known = ", ".join(sorted(wanted & names)) or "none"
            raise DataError(f"{where}: no file has a column {column!r}{hint} (of the mapping's columns there: {known}; others: {len(names - wanted)})")

    def records(self, spark: SparkSession, key: bytes, first: int) -> list[Part]:
        """RECORDS of all files: one part for what Arrow reads, and one per entry of what Spark reads itself (see `columnar`)."""
        system, base = filesystem(self.root)[0], columnar.uri(self.root)
        jobs, result = [], []
        for group, files in self.files():
            layout = self._layout(group, first)
            typed, others = columnar.split(group, files, system, base, _columns(layout))
            jobs += [_Job(layout, file) for file in others]
            for schema, some in typed.items():
                result += columnar.parts(spark, group, layout.own, layout.entries, schema, some, base, key, self.mapping.namespace)
        return [Part(self._extracted(spark, jobs, key)), *result] if jobs else result

    def _extracted(self, spark: SparkSession, jobs: list[_Job], key: bytes) -> DataFrame:
        """The list of files travels inside the function: no path, and so no id, is in a plan."""
        tasks = balanced(jobs, spark.sparkContext.defaultParallelism)
        root, namespace = self.root, self.mapping.namespace

        def extract_files(batches):
            system, _ = filesystem(root)
            for batch in batches:
                for task in batch.column(0).to_pylist():
                    for job in tasks[task]:
                        yield from extract(job.layout, job.file, system, key, namespace)

        return spark.range(0, len(tasks), 1, len(tasks)).mapInArrow(extract_files, RECORDS)

    def _layout(self, group: FileGroup, first: int) -> Layout:
        numbered = [(first + k, entry) for k, (_, g, entry) in enumerate(self._parts) if g is group]
        return Layout(group, numbered[0][0], tuple((k, e) for k, e in numbered if e))


@dataclass(frozen=True)
class Layout:
    """A group of files with the numbers of its entries; `own` is the number that tally and broken rows are counted under."""

    group: FileGroup
    own: int
    entries: tuple[tuple[int, Entry], ...]


@dataclass(frozen=True)
class _Job:
    layout: Layout
    file: File


def _columns(layout: Layout) -> set[str]:
    """Every column that some entry reads."""
    return set().union(*(layout.group.columns(e) for _, e in layout.entries))


def balanced(jobs: list[_Job], parallelism: int) -> list[list[_Job]]:
    """Files spread over tasks of about equal size, largest first."""
    total = sum(j.file.size for j in jobs)
    n = max(1, min(len(jobs), max(parallelism, -(-total // TASK_BYTES))))
    heap, tasks = [(0, k) for k in range(n)], [[] for _ in range(n)]
    for job in sorted(jobs, key=lambda j: (-j.file.size, j.file.relative)):
        size, k = heapq.heappop(heap)
        tasks[k].append(job)
        heapq.heappush(heap, (size + job.file.size + (1 << 16), k))
    return tasks


def opened(system, group: FileGroup, file: File):
    """Parquet needs to seek; texts are read through, and unpacked where their names end in .gz, .bz2 or .zst."""
    return system.open_input_file(file.path) if group.format == "parquet" else system.open_input_stream(file.path)


def extract(layout: Layout, file: File, system, key: bytes, namespace: str) -> Iterator[pa.RecordBatch]:
    """RECORDS_ARROW batches of one file, its tally last."""
    group = layout.group
    raw_id = group.patient.of_file(file.relative)
    known = pseudonym(key, namespace, raw_id) if raw_id else None
    shown = file.relative.replace(raw_id, known) if group.patient.file and raw_id else file.relative
    needed = _columns(layout)
    required = set().union(*(group.required(e) for _, e in layout.entries))
    ignored = 0

    def faults(rows: list[tuple[int | None, str, str, str]]) -> pa.RecordBatch:
        lines, codes, details, texts = zip(*rows)
        n = len(rows)
        return batch(
            n,
            entry=[layout.own] * n,
            file=[shown] * n,
            line=lines,
            patient_id=[known] * n,
            fault=codes,
            detail=details,
            record=texts,
        )

    try:
        with opened(system, group, file) as stream:
            for block in read(group, stream, needed, required):
                ids = _patients(group, block, known, key, namespace)
                if block.faulty:
                    mask = masker(group, list(block.columns), raw_id, known, key, namespace)
                    detail = "as many fields as the header" if group.format == "csv" else "a JSON object"
                    yield faults([(n, "malformed_row", detail, mask(text)) for n, text in block.faulty])
                wanted = np.zeros(len(block.lines), bool)
                for number, entry in layout.entries:
                    chosen = _chosen(group, entry, block)
                    wanted |= chosen
                    if chosen.any():
                        yield _select(group, number, entry, block, chosen, ids, shown, raw_id, known, needed, key, namespace)
                ignored += int((~wanted).sum())
    except Unreadable as e:
        yield faults([(None, e.code, e.detail, "{}")])
    yield batch(1, entry=[layout.own], file=[shown], ignored=[ignored])


def batch(n: int, **columns) -> pa.RecordBatch:
    """A batch of n rows; absent columns are null."""
    arrays = [
        columns[f.name]
        if isinstance(columns.get(f.name), pa.Array)
        else pa.array(columns[f.name], f.type)
        if f.name in columns
        else pa.nulls(n, f.type)
        for f in RECORDS_ARROW
    ]
    return pa.RecordBatch.from_arrays(arrays, schema=RECORDS_ARROW)


def _cell(group: FileGroup, column: pa.Array) -> pa.Array:
    """Trimmed texts, null where the cell counts as empty."""
    text = pc.utf8_trim_whitespace(column)
    return pc.if_else(pc.is_in(text, value_set=pa.array(sorted({"", *group.missing}))), pa.scalar(None, pa.string()), text)


def _patients(group: FileGroup, block: Block, known: str | None, key: bytes, namespace: str) -> pa.Array:
    if group.patient.column is None:
        return (
            pa.array([known], pa.string()).take(pa.array(np.zeros(len(block.lines), np.int64)))
            if known
            else pa.nulls(len(block.lines), pa.string())
        )
    return pseudonyms(key, namespace, _cell(group, block.columns[group.patient.column]))


def _chosen(group: FileGroup, entry: Entry, block: Block) -> np.ndarray:
    """(n,) bool: rows that the entry wants."""
    chosen = np.ones(len(block.lines), bool)
    for conditions, wanted in ((entry.when, True), (entry.unless, False)):
        for column, texts in conditions.items():
            hit = pc.is_in(pc.utf8_trim_whitespace(block.columns[column]), value_set=pa.array(texts, pa.string()))
            chosen &= hit.to_numpy(zero_copy_only=False) == wanted
    for column in entry.present:
        chosen &= _cell(group, block.columns[column]).is_valid().to_numpy(zero_copy_only=False)
    stated = entry.value.column if entry.value else group.clock(entry).column[0] if entry.number or entry.event else None
    if entry.optional and stated:
        chosen &= _cell(group, block.columns[stated]).is_valid().to_numpy(zero_copy_only=False)
    if entry.codes:
        coded, named = known_rows(entry.codes, block.columns)
        chosen &= coded | named
    return chosen


def _select(
    group: FileGroup,
    number: int,
    entry: Entry,
    block: Block,
    chosen: np.ndarray,
    ids: pa.Array,
    shown: str,
    raw_id: str | None,
    known: str | None,
    needed: set[str],
    key: bytes,
    namespace: str,
) -> pa.RecordBatch:
    keep, n = pa.array(chosen), int(chosen.sum())
    columns = {name: c.filter(keep) for name, c in block.columns.items()} if n < len(chosen) else block.columns
    ids = ids.filter(keep)

    def cell(name: str | None) -> pa.Array:
        return _cell(group, columns[name]) if name else pa.nulls(n, pa.string())

    clock, value, attributes = group.clock(entry), entry.number, entry.patient
    times = [cell(c) for c in clock.column] if clock else []
    fields = {
        "time": times[0] if len(times) == 1 else pc.binary_join_element_wise(*times, " ") if times else cell(None),
        "offset": cell(clock.offset_column if clock else None),
        "end": cell(entry.end),
        "duration": cell(entry.duration.column if entry.duration else None),
        "available": cell(entry.available_at),
        "label": cell(entry.label),
        "device": cell(group.device if entry.observation else None),
        "unit": cell(value.unit_column if value else None),
        "value": pa.array([repr(value.constant)] * n, pa.string())
        if value and value.column is None
        else cell(value.column if value else None),
    }
    if block.parts is not None:
        fields["part"] = pa.array(block.parts[chosen])
    if group.device:
        fields["device"] = pc.utf8_slice_codeunits(pseudonyms(key, f"{namespace}\x1fdevice", fields["device"]), 0, 12)
    flags = {name: meets(conditions, columns, n) for name, conditions in entry.flags.items()}
    if entry.codes and entry.codes.words:
        flags["by_name"] = known_rows(entry.codes, columns)[1]
    if flags:
        fields["flags"] = marks(flags, n)
    for code, conditions in entry.refuse.items():
        faulty = pa.array(meets(conditions, columns, n))
        fields["fault"] = pc.if_else(faulty, code, fields.get("fault", pa.nulls(n, pa.string())))
        fields["detail"] = pc.if_else(faulty, f"columns {', '.join(conditions)}", fields.get("detail", pa.nulls(n, pa.string())))
    if attributes and attributes.identifiers:
        stated = [tokens(key, system, cell(c)) for system, c in attributes.identifiers.items()]
        fields["identifiers"] = pc.binary_join_element_wise(*stated, " ", null_handling="skip")
    if attributes:
        fields |= {"sex": cell(attributes.sex), "birth_date": cell(attributes.birth_date or attributes.birth_year)}
    return batch(
        n,
        entry=pa.array(np.full(n, number, np.int32)),
        file=pa.array([shown], pa.string()).take(pa.array(np.zeros(n, np.int64))),
        line=pa.array(block.lines[chosen]),
        patient_id=ids,
        record=verbatim(
            group, columns, block.record.filter(keep) if block.record is not None else None, ids, raw_id, known, needed
        ),
        **fields,
    )
