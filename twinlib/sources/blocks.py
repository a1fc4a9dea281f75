"""What readers yield: rows of one file as columns of texts, with their line numbers."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

BLOCK_BYTES = 16 << 20
BLOCK_ROWS = 65_536


class Unreadable(Exception):
    """The rest of a file cannot be used. `code` is the reason; `detail` says what was expected."""

    def __init__(self, code: str, detail: str):
        super().__init__(detail)
        self.code, self.detail = code, detail


class Columns(Mapping[str, pa.Array]):
    """Columns of a file by name, as texts. `typed` has them as they stand in the file; texts are made of them when they are asked for."""

    def __init__(self, typed: Mapping[str, pa.Array], rows: pa.Array | None = None):
        self._typed, self._rows, self._texts = dict(typed), rows, {}

    def __getitem__(self, name: str) -> pa.Array:
        if name not in self._texts:
            self._texts[name] = as_text(self.typed(name))
        return self._texts[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self._typed)

    def __len__(self) -> int:
        return len(self._typed)

    def typed(self, name: str) -> pa.Array:
        column = self._typed[name]
        return column if self._rows is None else column.take(self._rows)

    def take(self, rows: np.ndarray) -> Columns:
        """Some of the rows, by their places."""
        rows = pa.array(rows)
        return Columns(self._typed, rows if self._rows is None else self._rows.take(rows))

    def plus(self, more: Mapping[str, pa.Array]) -> Columns:
        return Columns({n: self.typed(n) for n in self._typed} | dict(more))


def as_text(column: pa.Array) -> pa.Array:
    if pa.types.is_string(column.type):
        return column
    if pa.types.is_nested(column.type):
        return pa.array([None if v is None else json.dumps(v, default=str) for v in column.to_pylist()], pa.string())
    if pa.types.is_dictionary(column.type):
        column = column.dictionary_decode()
    return column.cast(pa.string())


def recoded(indices: pa.Array, texts: pa.Array) -> pa.DictionaryArray:
    """Codes for `texts[indices]` in which different codes are different texts, and null is no code."""
    different = texts.dictionary_encode()
    return pa.DictionaryArray.from_arrays(different.indices.take(indices), different.dictionary)


_ODD = "[\ufffd\x00-\x08\x0b\x0c\x0e-\x1f]"


def may_be_undecodable(block: Block) -> bool:
    """Whether some text holds U+FFFD, which readers put in place of bytes that are no text, or a character that becomes it in JSON."""
    if block.record is not None:
        return pc.any(pc.match_substring(block.record, "\ufffd")).as_py() or False
    columns = [block.columns.typed(n) for n in block.columns]
    texts = [c.dictionary if pa.types.is_dictionary(c.type) else c for c in columns if not pa.types.is_primitive(c.type)]
    return any(pc.any(pc.match_substring_regex(as_text(t), _ODD)).as_py() for t in texts)


@dataclass(frozen=True)
class Block:
    """Rows of one file: line (n,) from 1, columns of n texts (null = absent), and rows that could not be split in fields.

    record: the rows as JSON text where the file holds JSON; otherwise it is made from `columns` when it is needed.
    parts: (n,) number of a row among those of its line, from 1, where a line holds several.
    """

    lines: np.ndarray
    columns: Columns
    record: pa.Array | None = None
    faulty: list[tuple[int, str]] = field(default_factory=list)
    parts: np.ndarray | None = None


def from_rows(rows: Iterable[tuple[int, dict[str, str]]]) -> Block:
    """A block of rows that hold different fields: (line, texts by column)."""
    lines, texts = zip(*rows)
    names = dict.fromkeys(name for row in texts for name in row)
    return Block(np.array(lines, np.int64), Columns({n: pa.array([row.get(n) for row in texts], pa.string()) for n in names}))
