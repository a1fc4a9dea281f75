from pathlib import Path

from twinlib.tables.dictionary import dictionary
from twinlib.tables.schemas import TABLES

REPO = Path(__file__).resolve().parents[2]


def test_the_dictionary_in_docs_is_the_generated_one():
    assert (REPO / "docs" / "data-dictionary.md").read_text(encoding="utf-8") == dictionary(), "run: make docs"


def test_every_column_is_in_the_dictionary_with_its_allowed_values():
    text = dictionary()
    for table in TABLES.values():
        section = text.split(f"\n## {table.name}\n")[1].split("\n## ")[0]
        assert table.meaning in section
        for column in table.columns:
            (row,) = [line for line in section.splitlines() if line.startswith(f"| `{column.name}` |")]
            assert column.meaning in row and all(value in row for value in column.values or ())
