"""The data dictionary as Markdown, generated from the contracts: `python -m twinlib.tables.dictionary FILE`."""

from __future__ import annotations

import sys
from pathlib import Path

from twinlib.tables.contracts import Column, Table
from twinlib.tables.schemas import TABLES

_HEAD = """\
# Data dictionary

Generated from `twinlib/tables/schemas.py` by `make docs`; do not edit. Times are UTC. "By signal" and the like mean that
another column of the row names the quantity, and so its unit.
"""


def dictionary() -> str:
    """The whole document: per table its meaning, key, partition and columns."""
    contents = "\n".join(f"- [{t.name}](#{t.name}): {t.meaning}" for t in TABLES.values())
    return "\n".join([_HEAD, contents, "", *(_table(t) for t in TABLES.values())])


def _table(table: Table) -> str:
    partition = "by `bucket`, a hash of `patient_id`" if table.by_patient else "none"
    rows = "\n".join(_row(c) for c in table.columns)
    return f"""\
## {table.name}

{table.meaning}

Key: {", ".join(f"`{k}`" for k in table.key)}. Partition: {partition}.

| Column | Type | Unit | Null | Meaning |
|---|---|---|---|---|
{rows}
"""


def _row(column: Column) -> str:
    meaning = column.meaning + (f"; one of {', '.join(f'`{v}`' for v in column.values)}" if column.values else "")
    null = "yes" if column.nullable else "no"
    cells = (f"`{column.name}`", f"`{column.type.simpleString()}`", column.unit or "", null, meaning)
    return "| " + " | ".join(c.replace("|", "\\|") for c in cells) + " |"


if __name__ == "__main__":
    if len(sys.argv) != 2:
        sys.exit("usage: python -m twinlib.tables.dictionary FILE")
    Path(sys.argv[1]).write_text(dictionary(), encoding="utf-8")
