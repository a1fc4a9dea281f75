"""Files as blocks of text columns with exact line numbers. Faulty rows are returned, not raised.

Parsing is done by Arrow (CSV, Parquet), DuckDB (JSON), expat (XML) and fitdecode (FIT), a block of rows at a time.
"""

from __future__ import annotations

import codecs
import csv
import re
from collections.abc import Iterator
from dataclasses import replace
from itertools import islice
from typing import BinaryIO

import duckdb
import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.csv
import pyarrow.parquet as pq

from twinlib.sources.blocks import BLOCK_BYTES, BLOCK_ROWS, Block, Columns, Unreadable
from twinlib.sources.fit_messages import messages
from twinlib.sources.mapping import FileGroup, Unpivot
from twinlib.sources.xml_elements import elements


def read(
    group: FileGroup, stream: BinaryIO, wanted: set[str], required: set[str], row_groups: tuple[int, ...] | None = None
) -> Iterator[Block]:
    """Blocks of a file, or of some row groups of a Parquet file. JSON gives the wanted columns, the other formats all of the file; a wanted
    column that the file lacks is null. Raises Unreadable where a required column lacks or the file is broken, also after some blocks.
    """
    try:
        if group.format == "json":
            yield from _json(group, stream, wanted)
            return
        for block in _blocks(group, stream, required, row_groups):
            if group.unpivot:
                block = unpivot(group.unpivot, block)
            absent = wanted - set(block.columns)
            nulls = dict.fromkeys(absent, pa.nulls(len(block.lines), pa.string()))
            yield replace(block, columns=block.columns.plus(nulls)) if absent else block
    except (pa.ArrowInvalid, OSError, EOFError) as e:
        raise Unreadable("unreadable_file", f"not a readable {group.format} file ({type(e).__name__})") from None


def _blocks(group: FileGroup, stream: BinaryIO, required: set[str], row_groups: tuple[int, ...] | None = None) -> Iterator[Block]:
    match group.format:
        case "csv":
            return _csv(group, stream, required)
        case "parquet":
            return _parquet(stream, required, row_groups)
        case "xml":
            return elements(group.element, stream)
        case "fit":
            return messages(stream)


def unpivot(how: Unpivot, block: Block) -> Block:
    """One record per row and matching column, rows in order; `parts` numbers the records of a row."""
    wide = [(name, found[1]) for name in block.columns if (found := re.fullmatch(how.columns, name))]
    n, k = len(block.lines), len(wide)
    if k == 0:
        raise Unreadable("missing_column", f"no column matches {how.columns}")
    row, part = np.divmod(np.arange(n * k), k)
    take = pa.array(row)
    columns = {name: c.take(take) for name, c in block.columns.items() if name not in dict(wide)}
    cells = pa.concat_arrays([block.columns[name] for name, _ in wide]).take(pa.array(part * n + row))
    names = pa.array([text for _, text in wide], pa.string()).take(pa.array(part))
    return Block(block.lines[row], Columns(columns | {how.name: names, how.value: cells}), None, block.faulty, (part + 1).astype(np.int32))


def header(group: FileGroup, stream: BinaryIO) -> list[str]:
    """Names of a file's columns; of JSON, the keys of its first records. Raises Unreadable."""
    if group.format == "csv":
        return next(_text_with_header(group, stream))[0]
    try:
        if group.format == "parquet":
            return pq.ParquetFile(stream).schema_arrow.names
        if group.format in ("xml", "fit"):
            return sorted({name for block in islice(_blocks(group, stream, set()), 1) for name in block.columns})
        first = next(_json(group, stream, set()), None)
        return _json_keys(first.record) if first else []
    except (pa.ArrowInvalid, OSError) as e:
        raise Unreadable("unreadable_file", f"not a readable {group.format} file ({type(e).__name__})") from None


# --- text -------------------------------------------------------------------------------------------------------------


def _decoded(stream: BinaryIO, encoding: str, whole: bool) -> Iterator[tuple[bytes, int]]:
    """UTF-8 pieces of whole lines, each with the number of lines before it. Undecodable bytes become U+FFFD."""
    decoder, rest, lines, first = codecs.getincrementaldecoder(encoding)(errors="replace"), "", 0, True
    while True:
        raw = stream.read() if whole else stream.read(BLOCK_BYTES)
        text = decoder.decode(raw, final=not raw)
        if first and text:
            text, first = text.removeprefix("\ufeff"), False
        text = rest + text
        cut = len(text) if not raw else text.rfind("\n") + 1
        piece, rest = text[:cut], text[cut:]
        if piece:
            yield piece.encode(), lines
            lines += piece.count("\n")
        if not raw:
            return


def _text_with_header(group: FileGroup, stream: BinaryIO) -> Iterator[tuple[list[str], bytes, int]]:
    """(column names, piece without header, lines before the piece)."""
    names = list(group.header) if group.header else None
    skip = group.skip_rows + (names is None)
    for piece, lines in _decoded(stream, group.encoding, group.quoted_newlines):
        if lines == 0 and skip:
            head = piece.split(b"\n", skip)
            if len(head) < skip or not any(head[:skip]):
                raise Unreadable("unreadable_file", f"expected a header in line {skip}")
            if names is None:
                quote = {"quotechar": group.quote} if group.quote else {"quoting": csv.QUOTE_NONE}
                names = _distinct(
                    next(csv.reader([head[skip - 1].decode().rstrip("\r")], delimiter=group.delimiter, **quote), [])
                )
            piece, lines = (head[skip] if len(head) > skip else b""), skip
        yield names, piece, lines
    if names is None:
        raise Unreadable("unreadable_file", "the file is empty; expected a header")


def _distinct(names: list[str]) -> list[str]:
    """Names without blanks around; a nameless or repeated column gets its number."""
    result: list[str] = []
    for k, name in enumerate(names, 1):
        name = name.strip() or f"column_{k}"
        result.append(name if name not in result else f"{name}_{k}")
    return result


# --- CSV --------------------------------------------------------------------------------------------------------------


def _csv(group: FileGroup, stream: BinaryIO, required: set[str]) -> Iterator[Block]:
    for names, piece, before in _text_with_header(group, stream):
        _require(required, names)
        if not piece:
            continue
        block = _parse(group, names, piece, before)
        if not group.quoted_newlines and _has_newline(block):
            piece, unclosed = _without_unclosed_quotes(group, piece, before)
            block = _parse(group, names, piece, before)
            block = Block(block.lines, block.columns, None, block.faulty + unclosed)
        yield _without_blank_rows(block, {line for line, _ in block.faulty})


def _parse(group: FileGroup, names: list[str], piece: bytes, before: int) -> Block:
    bad: list[tuple[int, str]] = []

    def keep(row) -> str:
        bad.append((row.number, row.text if isinstance(row.text, str) else row.text.decode(errors="replace")))
        return "skip"

    table = pyarrow.csv.read_csv(
        pa.BufferReader(piece),
        pyarrow.csv.ReadOptions(use_threads=False, column_names=names, block_size=len(piece) + 1),
        pyarrow.csv.ParseOptions(
            delimiter=group.delimiter,
            quote_char=group.quote or False,
            newlines_in_values=True,
            ignore_empty_lines=False,
            invalid_row_handler=keep,
        ),
        pyarrow.csv.ConvertOptions(column_types=dict.fromkeys(names, pa.string()), strings_can_be_null=False),
    )
    columns = {n: c.combine_chunks() if c.num_chunks != 1 else c.chunk(0) for n, c in zip(names, table.columns)}
    numbers = np.array([n for n, _ in bad], np.int64)
    good = np.setdiff1d(np.arange(1, table.num_rows + len(bad) + 1), numbers, assume_unique=True)
    extra = np.zeros(table.num_rows + len(bad) + 1, np.int64)  # line breaks inside each record
    for column in columns.values():
        extra[good] += pc.count_substring(column, "\n").to_numpy(zero_copy_only=False)
    extra[numbers] = [text.count("\n") for _, text in bad]
    line = before + np.arange(len(extra)) + np.concatenate([[0], np.cumsum(extra)[:-1]])
    return Block(line[good], Columns(columns), None, [(int(line[n]), text) for n, text in bad if text.strip()])


def _has_newline(block: Block) -> bool:
    return any("\n" in text for _, text in block.faulty) or any(
        pc.any(pc.match_substring(c, "\n")).as_py() for c in block.columns.values()
    )


def _without_unclosed_quotes(group: FileGroup, piece: bytes, before: int) -> tuple[bytes, list[tuple[int, str]]]:
    """`piece` with the lines blanked that open a quotation and do not close it; one such line must not swallow the rest."""
    quote, lines, unclosed = group.quote.encode(), piece.split(b"\n"), []
    for k, line in enumerate(lines):
        if line.count(quote) % 2:
            unclosed.append((before + k + 1, line.decode().rstrip("\r")))
            lines[k] = b""
    return b"\n".join(lines), unclosed


def _without_blank_rows(block: Block, faulty: set[int]) -> Block:
    """Without rows that hold nothing but delimiters: spreadsheets leave them behind, and no one has recorded them."""
    filled = np.zeros(len(block.lines), bool)
    for column in block.columns.values():
        filled |= pc.greater(pc.binary_length(column), 0).to_numpy(zero_copy_only=False)
    if faulty:
        filled &= ~np.isin(block.lines, list(faulty))
    if filled.all():
        return block
    return Block(block.lines[filled], block.columns.take(np.flatnonzero(filled)), None, block.faulty)


def _require(required: set[str], names: list[str]) -> None:
    missing = sorted(required - set(names))
    if missing:
        raise Unreadable("missing_column", f"no column {', '.join(missing)}")


# --- Parquet ----------------------------------------------------------------------------------------------------------


def _parquet(stream: BinaryIO, required: set[str], row_groups: tuple[int, ...] | None) -> Iterator[Block]:
    footer = pq.read_metadata(stream)
    file = pq.ParquetFile(stream, metadata=footer, read_dictionary=_repetitive(footer))
    _require(required, file.schema_arrow.names)
    chosen = range(footer.num_row_groups) if row_groups is None else row_groups
    before = sum(footer.row_group(k).num_rows for k in range(chosen[0])) if chosen else 0
    for batch in file.iter_batches(batch_size=BLOCK_ROWS, row_groups=list(chosen)):
        yield Block(before + np.arange(1, batch.num_rows + 1), Columns(dict(zip(batch.schema.names, batch.columns))))
        before += batch.num_rows


def _repetitive(footer: pq.FileMetaData) -> list[str]:
    """Columns of texts that the file holds with a dictionary: they are read as codes."""
    if not footer.num_row_groups:
        return []
    columns = [footer.row_group(0).column(k) for k in range(footer.num_columns)]
    texts = {footer.schema.column(k).path for k in range(footer.num_columns) if footer.schema.column(k).logical_type.type == "STRING"}
    return [c.path_in_schema for c in columns if c.has_dictionary_page and c.path_in_schema in texts]


# --- JSON -------------------------------------------------------------------------------------------------------------


def json_path(column: str) -> str:
    """`a.b[0].c` as a JSON path."""
    return "$" + "".join(f"[{i}]" if i else f'."{k}"' for k, i in re.findall(r'([^.\[\]"\']+)|\[(\d+)\]', column))


def _json(group: FileGroup, stream: BinaryIO, wanted: set[str]) -> Iterator[Block]:
    """An array of objects, or one object per line."""
    with duckdb.connect(config={"threads": 1}) as db:
        pieces = _decoded(stream, group.encoding, whole=False)
        head = next(pieces, None)
        if head is None:
            return
        if head[0].lstrip()[:1] == b"[":
            text = b"".join([head[0], *(piece for piece, _ in pieces)]).decode()
            try:
                records = db.sql("SELECT unnest(from_json($1, '[\"JSON\"]')) AS r", params=[text]).to_arrow_table()["r"]
            except duckdb.Error:
                raise Unreadable("unreadable_file", "not a JSON array") from None
            for start in range(0, len(records), BLOCK_ROWS):
                part = records.slice(start, BLOCK_ROWS).combine_chunks().cast(pa.string())
                yield _json_block(db, part, start + np.arange(1, len(part) + 1), wanted)
            return
        for piece, before in (head, *pieces):
            lines = pa.array(piece.decode().split("\n"), pa.string())
            lines = pc.utf8_trim(lines, " \t\r\ufeff\u200b")
            numbers = before + np.arange(1, len(lines) + 1)
            filled = pc.not_equal(lines, "")
            yield _json_block(db, lines.filter(filled), numbers[filled.to_numpy(zero_copy_only=False)], wanted)


def _json_block(db: duckdb.DuckDBPyConnection, records: pa.Array, lines: np.ndarray, wanted: set[str]) -> Block:
    db.register("raw", pa.table({"r": records}))
    valid = db.sql("SELECT coalesce(TRY(json_type(r)) = 'OBJECT', false) AS ok FROM raw").to_arrow_table()["ok"].combine_chunks()
    ok = valid.to_numpy(zero_copy_only=False)
    faulty = [(int(n), str(t)) for n, t in zip(lines[~ok], records.filter(pc.invert(valid)).to_pylist())]
    records = records.filter(valid)
    names = sorted(wanted)
    columns: dict[str, pa.Array] = {}
    if names:
        db.register("good", pa.table({"r": records}))
        picked = ", ".join(f"""r ->> '{json_path(n).replace("'", "''")}' AS c{k}""" for k, n in enumerate(names))
        table = db.sql(f"SELECT {picked} FROM good").to_arrow_table()
        columns = {n: table.column(k).combine_chunks().cast(pa.string()) for k, n in enumerate(names)}
    return Block(lines[ok], Columns(columns), records, faulty)


def _json_keys(records: pa.Array) -> list[str]:
    with duckdb.connect(config={"threads": 1}) as db:
        db.register("good", pa.table({"r": records}))
        return sorted(k for (k,) in db.sql("SELECT DISTINCT unnest(json_keys(r)) FROM good").fetchall())
