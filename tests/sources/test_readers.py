"""Readers: exact lines, nothing lost, faulty rows returned. Python's csv and json modules are the reference."""

import csv
import io
import json

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from twinlib.sources import readers
from twinlib.sources.mapping import FileGroup
from twinlib.sources.readers import Unreadable, json_path, read
from twinlib.sources.verbatim import json_texts


def group(format="csv", **more) -> FileGroup:
    return FileGroup.model_validate(
        {
            "name": "g",
            "glob": "*",
            "format": format,
            "patient": {"constant": "p"},
            "time": {"column": "t", "zone": "UTC"},
            "entries": [{"observation": "glucose", "value": {"column": "v", "unit": "mg/dL"}}],
            **more,
        }
    )


def rows(content: bytes, g: FileGroup, wanted=("t", "v")) -> tuple[list[tuple], list[tuple[int, str]]]:
    good, faulty = [], []
    for block in read(g, io.BytesIO(content), set(wanted), set(wanted)):
        columns = [c.to_pylist() for c in block.columns.values()]
        good += list(zip(block.lines.tolist(), *columns))
        faulty += block.faulty
    return good, faulty


def test_bom_crlf_blank_lines_and_malformed_rows_keep_their_line_numbers():
    content = b"\xef\xbb\xbft,v\r\n1,a\r\n\r\n2,b,x\r\n3\r\n4,d\r\n"
    assert rows(content, group()) == ([(2, "1", "a"), (6, "4", "d")], [(4, "2,b,x"), (5, "3")])


def test_header_rows_to_skip_headerless_files_and_other_delimiters():
    assert rows(b"My export\nof today\nt;v\n1;2,5\n", group(skip_rows=2, delimiter=";"))[0] == [(4, "1", "2,5")]
    assert rows(b"1,2\n", group(header=["t", "v"]))[0] == [(1, "1", "2")]


def test_nameless_and_repeated_columns_are_told_apart():
    assert rows(b"t,v,,v\n1,2,3,4\n", group(), ())[0] == [(2, "1", "2", "3", "4")]


@pytest.mark.parametrize("encoding", ["latin-1", "utf-16"])
def test_encodings(encoding):
    assert rows("t,v\n1,é\n".encode(encoding), group(encoding=encoding))[0] == [(2, "1", "é")]


def test_an_undecodable_byte_spoils_its_own_cell_only():
    assert rows(b"t,v\n1,\xff\n2,b\n", group())[0] == [(2, "1", "\ufffd"), (3, "2", "b")]


def test_an_unclosed_quotation_does_not_swallow_the_rest_of_the_file():
    good, faulty = rows(b't,v\n1,a\n2,"b\n3,c\n4,d\n', group())
    assert good == [(2, "1", "a"), (4, "3", "c"), (5, "4", "d")]
    assert faulty == [(3, '2,"b')]


@settings(max_examples=60, deadline=None)
@given(
    st.lists(st.tuples(st.text('ab,"\n é', max_size=4), st.text('xy"\n;', min_size=1, max_size=3)), max_size=12),
    st.integers(20, 60),
)
def test_any_quoted_table_is_read_as_pythons_csv_module_reads_it(table, block):
    text = io.StringIO()
    csv.writer(text, lineterminator="\n").writerows([("t", "v"), *table])
    reader, expected, line = csv.reader(io.StringIO(text.getvalue())), [], 1
    for row in reader:
        expected.append((line, *row))
        line = reader.line_num + 1
    assert rows(text.getvalue().encode(), group(quoted_newlines=True))[0] == expected[1:]


def test_line_numbers_go_on_over_blocks(monkeypatch):
    monkeypatch.setattr(readers, "BLOCK_BYTES", 64)
    lines = [f"{k},{k * k}" + (",extra" if k % 17 == 0 else "") for k in range(1, 200)]
    good, faulty = rows(("t,v\n" + "\n".join(lines)).encode(), group())
    assert good == [(k + 1, str(k), str(k * k)) for k in range(1, 200) if k % 17]
    assert [n for n, _ in faulty] == [k + 1 for k in range(1, 200) if k % 17 == 0]


def test_json_array_and_lines_agree():
    records = [{"t": "1", "v": 1.5, "n": {"a": [{"b": "x"}]}}, {"t": "2"}, {"t": None, "v": True}]
    wanted = ("n.a[0].b", "t", "v")
    expected = [("x", "1", "1.5"), (None, "2", None), (None, None, "true")]
    array, _ = rows(json.dumps(records, indent=1).encode(), group("json"), wanted)
    lines, _ = rows(("\ufeff" + "\n".join(json.dumps(r) for r in records)).encode(), group("json"), wanted)
    assert array == lines == [(k, *e) for k, e in enumerate(expected, 1)]


def test_broken_json_lines_are_faulty_rows_and_a_broken_array_is_unreadable():
    good, faulty = rows(b'{"t":"1"}\n\n{"t":\n[1]\n{"t":"5"}\n', group("json"), ("t",))
    assert good == [(1, "1"), (5, "5")]
    assert faulty == [(3, '{"t":'), (4, "[1]")]
    with pytest.raises(Unreadable) as e:
        rows(b'[{"t":"1"}, {"t":', group("json"), ("t",))
    assert e.value.code == "unreadable_file"


def test_json_path_quotes_keys():
    assert json_path("a.b[0].c") == '$."a"."b"[0]."c"'


def test_parquet_columns_become_texts():
    out = io.BytesIO()
    pq.write_table(pa.table({"t": pa.array([0, 1], pa.timestamp("us", "UTC")), "v": [0.1, None], "l": [[1], None]}), out)
    good, _ = rows(out.getvalue(), group("parquet"))
    assert good == [(1, "1970-01-01 00:00:00.000000Z", "0.1", "[1]"), (2, "1970-01-01 00:00:00.000001Z", None, None)]


@pytest.mark.parametrize(
    "content, code", [(b"", "unreadable_file"), (b"\n", "unreadable_file"), (b"t,w\n1,2\n", "missing_column")]
)
def test_files_that_cannot_be_used_say_why(content, code):
    with pytest.raises(Unreadable) as e:
        rows(content, group())
    assert e.value.code == code


def test_a_header_without_rows_is_an_empty_file():
    assert rows(b"t,v", group()) == rows(b"t,v\n", group()) == ([], [])


@settings(max_examples=50, deadline=None)
@given(st.lists(st.text(max_size=6), min_size=1, max_size=5))
def test_records_as_json_text_are_read_back_by_pythons_json(values):
    values = [v.encode("utf-8", "replace").decode() for v in values]
    texts = json_texts({'a"b': pa.array(values, pa.string()), "c": pa.array([None] * len(values), pa.string())}).to_pylist()
    control = {k: "\ufffd" for k in range(32) if k not in (9, 10, 13)}
    assert [json.loads(t) for t in texts] == [{'a"b': v.translate(control), "c": None} for v in values]


def test_blocks_are_numpy_lines():
    block = next(read(group(), io.BytesIO(b"t,v\n1,2\n"), {"t"}, {"t"}))
    assert isinstance(block.lines, np.ndarray) and block.lines.dtype == np.int64
