"""The mapped source: raw files of one folder, read as one mapping file says."""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from twinlib.errors import DataError
from twinlib.fusion.arrays import constant
from twinlib.sources.blocks import Block, Unreadable, as_text, may_be_undecodable, recoded
from twinlib.sources.choice import known_rows, marks, meets
from twinlib.sources.files import File, filesystem, find, select
from twinlib.sources.mapping import SECONDS, SPARSE, Entry, FileGroup, Mapping
from twinlib.sources.pseudonym import pseudonym, pseudonyms, tokens
from twinlib.sources.readers import header, read
from twinlib.sources.records import TASK_BYTES, Meaning, Piece, Tally
from twinlib.sources.verbatim import masker, verbatim

HEADERS_CHECKED = 200  # files per group whose columns are looked at before work starts


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

    def jobs(self, first: int) -> list[MappedJob]:
        found: list[MappedJob] = []
        for group, files in self.files():
            layout = self._layout(group, first)
            for file in files:
                job = MappedJob(layout, file, self.root, self.mapping.namespace, file.size)
                found += _parts(job) if group.format == "parquet" and file.size > TASK_BYTES and not layout.undecided else [job]
        return found

    def _layout(self, group: FileGroup, first: int) -> Layout:
        numbered = [(first + k, entry) for k, (_, g, entry) in enumerate(self._parts) if g is group]
        return Layout(group, numbered[0][0], tuple((k, e) for k, e in numbered if e))


@dataclass(frozen=True)
class Layout:
    """A group of files with the numbers of its entries; `own` is the number that tally and broken rows are counted under."""

    group: FileGroup
    own: int
    entries: tuple[tuple[int, Entry], ...]

    @property
    def undecided(self) -> bool:
        """Whether some time stamps must all be seen before one can be read."""
        return any(c.order == "auto" for _, e in self.entries if (c := self.group.clock(e)))

    @property
    def columns(self) -> set[str]:
        """Every column that some entry reads."""
        return set().union(*(self.group.columns(e) for _, e in self.entries))


@dataclass(frozen=True)
class MappedJob:
    """A file, or some row groups of a Parquet file."""

    layout: Layout
    file: File
    root: str
    namespace: str
    size: int
    row_groups: tuple[int, ...] | None = None

    @property
    def name(self) -> str:
        return self.file.relative

    @property
    def dense(self) -> bool:
        return dense(self.layout.group, self.file)

    @property
    def undecided(self) -> bool:
        return self.layout.undecided

    def shown(self, key: bytes) -> str:
        raw_id = self.layout.group.patient.of_file(self.name) if self.layout.group.patient.file else None
        return self.name.replace(raw_id, pseudonym(key, self.namespace, raw_id)) if raw_id else self.name

    def pieces(self, key: bytes) -> Iterator[Piece | Tally]:
        system, _ = filesystem(self.root)
        return extract(self.layout, self.file, system, key, self.namespace, self.row_groups)


def _parts(job: MappedJob) -> list[MappedJob]:
    """A big Parquet file as jobs of about TASK_BYTES each; as it is where its footer cannot be read."""
    system, _ = filesystem(job.root)
    try:
        with opened(system, job.layout.group, job.file) as stream:
            footer = pq.read_metadata(stream)
    except (pa.ArrowInvalid, OSError):
        return [job]
    n = max(1, min(footer.num_row_groups, -(-job.size // TASK_BYTES)))
    parts = [tuple(int(k) for k in some) for some in np.array_split(np.arange(footer.num_row_groups), n)]
    return [replace(job, row_groups=some, size=job.size // n) for some in parts]


def dense(group: FileGroup, file: File) -> bool:
    """Whether the file is compressed."""
    return group.format == "parquet" or file.path.endswith((".gz", ".bz2", ".zst"))


def opened(system, group: FileGroup, file: File):
    """Parquet needs to seek; texts are read through, and unpacked where their names end in .gz, .bz2 or .zst."""
    return system.open_input_file(file.path) if group.format == "parquet" else system.open_input_stream(file.path)


def extract(layout: Layout, file: File, system, key: bytes, namespace: str, row_groups: tuple[int, ...] | None = None) -> Iterator[Piece | Tally]:
    """The records of one file, its tally last."""
    group = layout.group
    raw_id = group.patient.of_file(file.relative)
    known = pseudonym(key, namespace, raw_id) if raw_id else None
    shown = file.relative.replace(raw_id, known) if group.patient.file and raw_id else file.relative
    needed = layout.columns
    required = set().union(*(group.required(e) for _, e in layout.entries))
    ignored = 0
    try:
        with opened(system, group, file) as stream:
            for block in read(group, stream, needed, required, row_groups):
                ids = _patients(group, block, known, key, namespace)
                odd = may_be_undecodable(block)
                if block.faulty:
                    mask = masker(group, list(block.columns), raw_id, known, key, namespace)
                    detail = "as many fields as the header" if group.format == "csv" else "a JSON object"
                    yield faults(layout.own, shown, known, [(n, "malformed_row", detail, mask(text)) for n, text in block.faulty])
                wanted = np.zeros(len(block.lines), bool)
                for number, entry in layout.entries:
                    chosen = _chosen(group, entry, block)
                    wanted |= chosen
                    if chosen.any():
                        yield _select(layout, number, entry, block, chosen, ids, shown, raw_id, known, odd, key, namespace)
                ignored += int((~wanted).sum())
    except Unreadable as e:
        yield faults(layout.own, shown, known, [(None, e.code, e.detail, "{}")], row_groups[0] if row_groups else 0)
    yield Tally(layout.own, shown, ignored, int(not row_groups or row_groups[0] == 0))


def faults(entry: int, file: str, patient: str | None, rows: Sequence[tuple[int | None, str, str, str]], part: int = 0) -> Piece:
    """Rows that cannot be read: line, reason, expectation, text. part: tells the parts of a file that is read in several from the first one."""
    lines, codes, details, texts = zip(*rows)
    record = pa.array(texts, pa.string())
    columns = {
        "line": pa.array(lines, pa.int64()), "fault": pa.array(codes, pa.string()), "detail": pa.array(details, pa.string()),
        "patient_id": constant(patient, len(rows)), "part": pa.array([part or None] * len(rows), pa.int32()),
    }  # fmt: skip
    return Piece(entry, file, columns, lambda places: record.take(pa.array(places)))


def _cell(group: FileGroup, column: pa.Array) -> pa.Array:
    """Trimmed texts, null where the cell counts as empty. Codes stay codes."""
    if pa.types.is_dictionary(column.type):
        return recoded(column.indices, _cell(group, column.dictionary.cast(pa.string())))
    text = pc.utf8_trim_whitespace(column)
    return pc.if_else(pc.is_in(text, value_set=pa.array(sorted({"", *group.missing}))), pa.scalar(None, pa.string()), text)


def _patients(group: FileGroup, block: Block, known: str | None, key: bytes, namespace: str) -> pa.DictionaryArray:
    if group.patient.column is None:
        return constant(known, len(block.lines))
    column = block.columns.typed(group.patient.column)
    return pseudonyms(key, namespace, _cell(group, column if pa.types.is_dictionary(column.type) else as_text(column)))


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
    layout: Layout, number: int, entry: Entry, block: Block, chosen: np.ndarray, ids: pa.DictionaryArray, shown: str, raw_id: str | None,
    known: str | None, odd: bool, key: bytes, namespace: str,
) -> Piece:  # fmt: skip
    group, rows, n = layout.group, np.flatnonzero(chosen), int(chosen.sum())
    columns = block.columns.take(rows) if n < len(chosen) else block.columns
    record = None if block.record is None else block.record.take(pa.array(rows))
    ids = ids.take(pa.array(rows)) if n < len(chosen) else ids

    def cell(name: str | None) -> pa.Array | None:
        return _cell(group, columns[name]) if name else None

    clock, value, attributes = group.clock(entry), entry.number, entry.patient
    fields = {
        "line": pa.array(block.lines[chosen]),
        "patient_id": ids,
        "offset": cell(clock.offset_column if clock else None),
        "end": cell(entry.end),
        "duration": cell(entry.duration.column if entry.duration else None),
        "available": cell(entry.available_at),
        "label": cell(entry.label),
        "device": cell(group.device if entry.observation else None),
    }
    if value and value.unit_column:
        unit = columns.typed(value.unit_column)
        fields["unit"] = _cell(group, unit if pa.types.is_dictionary(unit.type) else as_text(unit))
    if clock and len(clock.column) == 1 and pa.types.is_timestamp(columns.typed(clock.column[0]).type):
        fields["stamp"] = columns.typed(clock.column[0])
    elif clock:
        times = [cell(c) for c in clock.column]
        fields["time"] = times[0] if len(times) == 1 else pc.binary_join_element_wise(*times, " ")
    if value and value.column is None:
        fields["amount"] = pa.array(np.full(n, float(value.constant)))
    elif value:
        amount = columns.typed(value.column)
        if _is_number(amount.type) and group.missing == ("",) and not value.texts:
            fields["amount"] = amount.cast(pa.float64(), safe=False)
        else:
            fields["value"] = cell(value.column)
    if block.parts is not None:
        fields["part"] = pa.array(block.parts[chosen])
    if fields["device"] is not None:
        fields["device"] = pc.utf8_slice_codeunits(as_text(pseudonyms(key, f"{namespace}\x1fdevice", fields["device"])), 0, 12)
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
        stated = [as_text(tokens(key, system, cell(c))) for system, c in attributes.identifiers.items()]
        fields["identifiers"] = pc.binary_join_element_wise(*stated, " ", null_handling="skip")
    if attributes:
        fields |= {"sex": cell(attributes.sex), "birth_date": cell(attributes.birth_date or attributes.birth_year)}

    def text(places: np.ndarray) -> pa.Array:
        at = pa.array(places)
        return verbatim(group, columns.take(places), None if record is None else record.take(at), as_text(ids.take(at)), raw_id, known, layout.columns)

    undecodable = pc.match_substring(text(np.arange(n)), "\ufffd").to_numpy(zero_copy_only=False) if odd else None
    return Piece(number, shown, {name: c for name, c in fields.items() if c is not None}, text, undecodable)


def _is_number(kind: pa.DataType) -> bool:
    """Numbers that a double holds as they were written; 7.1 as a single float is another number than 7.1 as a double, but the same text."""
    return pa.types.is_integer(kind) or pa.types.is_float64(kind) or pa.types.is_decimal(kind)
