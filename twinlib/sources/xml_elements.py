"""XML files, read as a stream: every wanted element is a row of its attributes.

Of an element's children, those that state one thing by the attributes `key` and `value` (Apple Health's MetadataEntry) are columns
named by their key; the element's own attributes come first. The name of the element is the column `element`.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import BinaryIO
from xml.parsers import expat

from twinlib.sources.blocks import BLOCK_ROWS, Block, Unreadable, from_rows

PIECE_BYTES = 1 << 20


def elements(names: tuple[str, ...], stream: BinaryIO) -> Iterator[Block]:
    """Blocks of the elements with one of `names`, by the line on which they begin. Never holds more than a block.

    Raises Unreadable where the file is no well-formed XML; what comes before is yielded first. Entities that a file declares itself are
    refused: no export needs them, and they can grow without bound.
    """
    parser, wanted, rows, open_row = expat.ParserCreate(), set(names), [], []

    def start(name: str, attributes: dict[str, str]) -> None:
        if name in wanted:
            open_row.append((parser.CurrentLineNumber, {"element": name, **attributes}))
        elif open_row and "key" in attributes and "value" in attributes:
            open_row[-1][1].setdefault(attributes["key"], attributes["value"])

    def end(name: str) -> None:
        if name in wanted:
            rows.append(open_row.pop())

    def entity(*_) -> None:
        raise Unreadable("unreadable_file", "expected XML without entities of its own")

    parser.StartElementHandler, parser.EndElementHandler, parser.EntityDeclHandler = start, end, entity
    while True:
        piece = stream.read(PIECE_BYTES)
        broken = None
        try:
            parser.Parse(piece, not piece)
        except expat.ExpatError as e:
            broken = Unreadable("unreadable_file", f"not well-formed XML from line {e.lineno} on")
        if rows and (len(rows) >= BLOCK_ROWS or broken or not piece):
            yield from_rows(rows)
            rows.clear()
        if broken:
            raise broken
        if not piece:
            return
