"""Arrow tables as blobs: how judged records travel between tasks, by kind and part of the patients, without a row of Spark's per record."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence

import numpy as np
import pyarrow as pa
import pyarrow.ipc as ipc

from twinlib.tables.buckets import buckets_of

SCHEMA = "kind string, part int, rows binary"
_ARROW = pa.schema([("kind", pa.string()), ("part", pa.int32()), ("rows", pa.binary())])
_BYTES = 32 << 20  # of tables that are held before they are packed
_OPTIONS = ipc.IpcWriteOptions(compression="lz4")


def pack(table: pa.Table) -> bytes:
    sink = pa.BufferOutputStream()
    with ipc.new_stream(sink, table.schema, options=_OPTIONS) as writer:
        writer.write_table(table)
    return sink.getvalue().to_pybytes()


def unpack(blob: bytes | pa.Buffer, columns: Sequence[str] | None = None) -> pa.Table:
    """All columns, or some of them, which are then the only ones that are decompressed."""
    options = ipc.IpcReadOptions(use_threads=False)
    if columns is not None:
        with ipc.open_stream(blob) as stream:
            options.included_fields = sorted(stream.schema.get_field_index(c) for c in columns)
    with ipc.open_stream(blob, options=options) as stream:
        return stream.read_all()


class Packer:
    """Collects tables with a column patient_id (coded) by kind, and gives them back as batches of SCHEMA, a blob per part."""

    def __init__(self, parts: int):
        self.parts, self._held, self._bytes = parts, {}, {}

    def add(self, kind: str, table: pa.Table) -> Iterator[pa.RecordBatch]:
        if table.num_rows:
            self._held.setdefault(kind, []).append(table)
            self._bytes[kind] = self._bytes.get(kind, 0) + table.nbytes
            if self._bytes[kind] > _BYTES:
                yield self._packed(kind)

    def rest(self) -> Iterator[pa.RecordBatch]:
        for kind in list(self._held):
            yield self._packed(kind)

    def _packed(self, kind: str) -> pa.RecordBatch:
        tables = self._held.pop(kind)
        self._bytes.pop(kind)
        rows = [{"kind": kind, "part": part, "rows": pack(some)} for part, some in split(joined(tables), self.parts)]
        return pa.RecordBatch.from_pylist(rows, _ARROW)


def joined(tables: Sequence[pa.Table]) -> pa.Table:
    """One table in one piece; coded columns share one list of texts."""
    return pa.concat_tables(tables).unify_dictionaries().combine_chunks()


def split(table: pa.Table, parts: int) -> Iterator[tuple[int, pa.Table]]:
    """The rows of each part that has any, by the hash that puts patients in buckets."""
    patient = table["patient_id"].combine_chunks()
    places = buckets_of([*patient.dictionary.to_pylist(), None], parts)
    part = places[patient.indices.fill_null(len(patient.dictionary)).to_numpy(zero_copy_only=False)]
    order = np.argsort(part, kind="stable")
    for rows in np.split(order, np.flatnonzero(np.diff(part[order])) + 1):
        some = table.take(pa.array(rows)) if len(rows) < len(order) else table
        yield int(part[rows[0]]), pa.table([_compact(c) for c in some.columns], some.schema)


def _compact(column: pa.ChunkedArray) -> pa.ChunkedArray:
    """A coded column without texts that no row has."""
    if not pa.types.is_dictionary(column.type):
        return column
    array = column.combine_chunks()
    codes, there = array.indices.fill_null(0).to_numpy(zero_copy_only=False), array.indices.is_valid()
    used = np.zeros(len(array.dictionary) + 1, bool)
    used[codes[there.to_numpy(zero_copy_only=False)]] = True
    if used[:-1].all():
        return column
    renumbered = pa.array((np.cumsum(used) - 1).astype(np.int32)[codes], mask=~there.to_numpy(zero_copy_only=False))
    return pa.chunked_array([pa.DictionaryArray.from_arrays(renumbered, array.dictionary.filter(pa.array(used[:-1])))])


def gathered(batches: Iterable[pa.RecordBatch], columns: Mapping[str, Sequence[str] | None]) -> dict[str, pa.Table]:
    """The tables of SCHEMA's batches by kind, of the kinds named in `columns`, with those of their columns; a kind without any blob lacks."""
    found: dict[str, list[pa.Table]] = {}
    for batch in batches:
        for k, kind in enumerate(batch.column(0).to_pylist()):
            if kind in columns:
                found.setdefault(kind, []).append(unpack(batch.column(2)[k].as_buffer(), columns[kind]))
    return {kind: joined(tables) for kind, tables in found.items()}
