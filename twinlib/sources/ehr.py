"""Health records: files of known tables (OMOP) or resources (FHIR), made records by one DuckDB query per table and block of rows."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial

import duckdb
import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from twinlib.errors import DataError
from twinlib.sources.codes import MACROS, CodeTables
from twinlib.sources.files import File, filesystem
from twinlib.sources.mapped import dense, faults, opened
from twinlib.sources.mapping import FileGroup
from twinlib.sources.pseudonym import pseudonyms, tokens
from twinlib.sources.blocks import Block, Unreadable, as_text
from twinlib.sources.readers import header, read
from twinlib.sources.records import RECORDS, Meaning, Piece, Tally

# What the query of a table yields, one row per record: n, the row of the block it was made of; patient, the raw id; identifiers, a list
# of (system, value); display, a name of the patient that may stand in the row; and columns of RECORDS.
_OWN = ("line", "patient_id", "identifiers")  # columns of RECORDS that do not come from the query as they are


@dataclass(frozen=True)
class Table:
    """One table or resource: its files, how they are read, and the query that makes records of them.

    own: number of the entry that tally and broken rows are counted under. columns: those that the query reads; hidden: those that the
    record of a row must not have. masks: query from (n, record, raw, patient_id, display) to the text of a row that may be kept, without
    anything that names the patient. macros, extra: what the queries need besides, small tables by name.
    """

    name: str
    group: FileGroup
    files: tuple[File, ...]
    own: int
    codes: CodeTables
    query: str
    masks: str
    columns: tuple[str, ...] = ()
    required: tuple[str, ...] = ()
    hidden: tuple[str, ...] = ()
    extra: tuple[tuple[str, pa.Table], ...] = ()
    macros: tuple[str, ...] = MACROS


@dataclass(frozen=True)
class EhrSource:
    """Tables under `root` with what their entries mean. Entries are numbered within the source (see `records.Source`).

    beside: files that say what codes and references mean, and have been read.
    """

    name: str
    root: str
    namespace: str
    tables: tuple[Table, ...]
    meanings: tuple[Meaning, ...]
    described: str  # all of its configuration, for the fingerprint of a run
    beside: tuple[File, ...] = ()

    @property
    def path(self) -> str:
        return self.root

    def files(self) -> list[tuple[Table | None, tuple[File, ...]]]:
        return [*((t, t.files) for t in self.tables), (None, self.beside)]

    def check(self) -> None:
        """Every table has a file that can be read and has the columns that its rows need. Raises DataError."""
        system, _ = filesystem(self.root)
        for table in self.tables:
            names: set[str] = set()
            problem = ""
            for file in table.files:
                try:
                    with opened(system, table.group, file) as stream:
                        names |= {n.lower() for n in header(table.group, stream)}
                except Unreadable as e:
                    problem = f" ({e.detail})"
            if not names and problem:
                raise DataError(f"{self.root}: none of {len(table.files)} files of {table.name} can be read{problem}")
            missing = sorted(set(table.required) - names) if names else []
            if missing:
                known = ", ".join(sorted(set(table.columns) & names)) or "none"  # others might be values of a file without a header
                raise DataError(f"{self.root}: {table.files[0].relative}: no column {', '.join(missing)} (known columns there: {known})")

    def jobs(self, first: int) -> list[EhrJob]:
        return [EhrJob(table, file, self.root, self.namespace, first, file.size) for table in self.tables for file in table.files]


@dataclass(frozen=True)
class EhrJob:
    """A file of a table."""

    table: Table
    file: File
    root: str
    namespace: str
    first: int
    size: int
    undecided: bool = False

    @property
    def dense(self) -> bool:
        return dense(self.table.group, self.file)

    @property
    def name(self) -> str:
        return self.file.relative

    def shown(self, key: bytes) -> str:
        return self.name

    def pieces(self, key: bytes) -> Iterator[Piece | Tally]:
        system, _ = filesystem(self.root)
        return extract(self.table, self.file, system, key, self.namespace, self.first)


def extract(table: Table, file: File, system, key: bytes, namespace: str, first: int) -> Iterator[Piece | Tally]:
    """The records of one file, its tally last. Rows that no entry wants, such as those of unknown codes, are ignored."""
    ignored = 0
    broken = partial(faults, first + table.own, file.relative, None)
    try:
        with opened(system, table.group, file) as stream, _database(table) as db:
            for block in read(table.group, stream, set(), set()):
                if block.faulty:
                    detail = "as many fields as the header, or a JSON object"
                    yield broken([(n, "malformed_row", detail, _length(text)) for n, text in block.faulty])
                if not len(block.lines):
                    continue
                rows = _made(db, table, block)
                if rows.num_rows:
                    yield from _pieces(db, table, file, block, rows, key, namespace, first)
                ignored += len(block.lines) - pc.count_distinct(rows["n"]).as_py()
    except Unreadable as e:
        yield broken([(None, e.code, e.detail, "{}")])
    yield Tally(first + table.own, file.relative, ignored)


def _length(text: str) -> str:
    """Of a broken row, whose text may name the patient in any place, only its length is kept."""
    return json.dumps({"text": f"({len(text)} characters, hidden: the patient's id may be among them)"})


def _database(table: Table) -> duckdb.DuckDBPyConnection:
    db = duckdb.connect(config={"threads": 1})
    for macro in table.macros:
        db.execute(macro)
    for name, rows in (("exact", table.codes.exact), ("patterns", table.codes.patterns), ("words", table.codes.words), *table.extra):
        db.register(name, rows)
    return db


def _made(db: duckdb.DuckDBPyConnection, table: Table, block: Block) -> pa.Table:
    """The rows of the table's query over a block. Raises Unreadable where a column that every row needs lacks."""
    n = pa.array(range(len(block.lines)), pa.int64())
    if block.record is not None:
        db.register("raw", pa.table({"n": n, "r": block.record}))
    else:
        columns = {name.lower(): _cell(column) for name, column in block.columns.items() if name.lower() in table.columns}
        missing = sorted(set(table.required) - set(columns))
        if missing:
            raise Unreadable("missing_column", f"no column {', '.join(missing)}")
        absent = pa.nulls(len(n), pa.string())
        db.register("raw", pa.table({"n": n, **{c: columns.get(c, absent) for c in table.columns}}))
    return db.sql(table.query).to_arrow_table().combine_chunks()


def _cell(column: pa.Array) -> pa.Array:
    """Trimmed texts, null where empty."""
    text = pc.utf8_trim_whitespace(column)
    return pc.if_else(pc.equal(text, ""), pa.scalar(None, pa.string()), text)


def _pieces(db, table: Table, file: File, block: Block, rows: pa.Table, key: bytes, namespace: str, first: int) -> Iterator[Piece]:
    def column(name: str) -> pa.Array:
        found = rows[name]
        return found.combine_chunks() if isinstance(found, pa.ChunkedArray) else found

    at, raw = column("n"), column("patient")
    ids = pseudonyms(key, namespace, raw)
    fields = {name: column(name).cast(RECORDS.field(name).type) for name in rows.column_names if name in RECORDS.names and name not in _OWN}
    if "identifiers" in rows.column_names:
        fields["identifiers"] = _tokens(column("identifiers"), key)
    if block.record is not None:
        record = block.record.take(at)
    else:
        columns = block.columns.take(at.to_numpy())
        record = _as_json(db, {name: columns[name] for name in columns if name.lower() not in table.hidden})
    display = column("display") if "display" in rows.column_names else pa.nulls(len(at), pa.string())
    place = pa.array(range(len(at)), pa.int64())
    db.register("rows", pa.table({"n": place, "record": record, "raw": raw, "patient_id": as_text(ids), "display": display}))
    masked = db.sql(f"SELECT text FROM ({table.masks}) ORDER BY n").to_arrow_table()["text"].combine_chunks().cast(pa.string())
    fields |= {"line": pa.array(block.lines).take(at), "patient_id": ids}
    odd = pc.match_substring(masked, "\ufffd").to_numpy(zero_copy_only=False)
    entries = column("entry").to_numpy()
    for number in np.unique(entries):
        whole = Piece(first + int(number), file.relative, fields, lambda places: masked.take(pa.array(places)), odd if odd.any() else None)
        yield whole.filter(entries == number)


def _as_json(db: duckdb.DuckDBPyConnection, columns: dict[str, pa.Array]) -> pa.Array:
    """One JSON object of texts per row; empty cells are left out."""
    db.register("cells", pa.table({**columns, "row number": pa.array(range(len(next(iter(columns.values())))), pa.int64())}))
    pairs = ", ".join(f"""'{c.replace("'", "''")}', nullif("{c.replace('"', '""')}", '')""" for c in columns)
    made = db.sql(f"""SELECT json_merge_patch('{{}}', json_object({pairs}))::VARCHAR AS r FROM cells ORDER BY "row number" """)
    return made.to_arrow_table()["r"].combine_chunks()


def _tokens(identifiers: pa.Array, key: bytes) -> pa.Array:
    """Tokens of lists of (system, value), separated by a space; null where there is none."""
    lists = identifiers.to_pylist()
    pairs = pa.table({"system": [p["system"] for x in lists for p in x or ()], "value": [p["value"] for x in lists for p in x or ()]})
    named = [None] * pairs.num_rows
    for system in {s for s in pairs["system"].to_pylist() if s}:
        mine = pc.if_else(pc.equal(pairs["system"], system), pairs["value"], None).combine_chunks().cast(pa.string())
        for k, token in enumerate(tokens(key, system, mine).to_pylist()):
            named[k] = token or named[k]
    taken = iter(named)
    return pa.array([" ".join(sorted({t for _ in x or () if (t := next(taken))})) or None for x in lists], pa.string())
