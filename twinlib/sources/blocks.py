"""What readers yield: rows of one file as columns of texts, with their line numbers."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field

import numpy as np
import pyarrow as pa

BLOCK_BYTES = 16 << 20
BLOCK_ROWS = 65_536


class Unreadable(Exception):
    """The rest of a file cannot be used. `code` is the reason; `detail` says what was expected."""

    def __init__(self, code: str, detail: str):
        super().__init__(detail)
        self.code, self.detail = code, detail


@dataclass(frozen=True)
class Block:
    """Rows of one file: line (n,) from 1, columns of n texts (null = absent), and rows that could not be split in fields.

    record: the rows as JSON text where the file holds JSON; otherwise it is made from `columns` when it is needed.
    parts: (n,) number of a row among those of its line, from 1, where a line holds several.
    """

    lines: np.ndarray
    columns: dict[str, pa.Array]
    record: pa.Array | None = None
    faulty: list[tuple[int, str]] = field(default_factory=list)
    parts: np.ndarray | None = None


def from_rows(rows: Iterable[tuple[int, dict[str, str]]]) -> Block:
    """A block of rows that hold different fields: (line, texts by column)."""
    lines, texts = zip(*rows)
    names = dict.fromkeys(name for row in texts for name in row)
    return Block(np.array(lines, np.int64), {n: pa.array([row.get(n) for row in texts], pa.string()) for n in names})
