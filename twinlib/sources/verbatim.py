"""Records as they stood in the file, as JSON text, for quarantine; the patient's id replaced by the pseudonym."""

from __future__ import annotations

import csv
import json

import duckdb
import pyarrow as pa
import pyarrow.compute as pc

from twinlib.sources.mapping import FileGroup
from twinlib.sources.pseudonym import pseudonym


def verbatim(
    group: FileGroup,
    columns: dict[str, pa.Array],
    record: pa.Array | None,
    ids: pa.Array,
    raw_id: str | None,
    known: str | None,
    needed: set[str],
) -> pa.Array:
    """The rows as JSON text; the patient's id, wherever it fills a whole field that is not itself data, is the pseudonym."""
    column = group.patient.column
    if record is not None:
        patches = {h: pa.array(["(hidden)"] * len(ids), pa.string()) for h in group.hidden}
        if column:
            patches[column] = pc.fill_null(ids, "")
        if raw_id:
            record = pc.replace_substring(record, json.dumps(raw_id), json.dumps(known))
        return _patched(record, _nested(patches)) if patches else record
    masked = dict(columns)
    raw = columns[column] if column else pa.scalar(raw_id, pa.string())
    for name, texts in columns.items():
        if name in group.hidden:
            masked[name] = pc.if_else(pc.equal(texts, ""), texts, "(hidden)")
        elif name == column:
            masked[name] = ids
        elif name not in needed and (column or raw_id):
            masked[name] = pc.if_else(pc.fill_null(pc.and_(pc.equal(texts, raw), pc.not_equal(texts, "")), False), ids, texts)
    return json_texts(masked)


def _nested(patches: dict[str, pa.Array]) -> pa.Array:
    """JSON objects that hold the texts at their (dotted) places."""
    result: dict = {}
    for k, path in enumerate(patches):
        *outer, last = path.split(".")
        place = result
        for step in outer:
            place = place.setdefault(step, {})
        place[last] = f"\x01{k}\x01"
    pieces = json.dumps(result).split('"\\u0001')
    parts: list = [pieces[0]]
    arrays = list(patches.values())
    for piece in pieces[1:]:
        k, rest = piece.split('\\u0001"', 1)
        parts += [pc.binary_join_element_wise('"', arrays[int(k)], '"', ""), rest]
    return pc.binary_join_element_wise(*parts, "")


def masker(group: FileGroup, names: list[str], raw_id: str | None, known: str | None, key: bytes, namespace: str):
    """A function from the text of a broken row to its JSON record without the patient's id."""
    column = group.patient.column

    def mask(text: str) -> str:
        if group.format != "csv":
            # broken JSON: the id cannot be found in it with certainty, so nothing of the text is kept
            return json.dumps(
                {"text": text if not column else f"({len(text)} characters, hidden: the patient's id may be among them)"}
            )
        fields = (
            text.split(group.delimiter)
            if group.quote is None
            else next(csv.reader([text], delimiter=group.delimiter, quotechar=group.quote), [])
        )
        hidden = {k for k, name in enumerate(names) if name in group.hidden}
        place = names.index(column) if column else len(fields)
        own = fields[place].strip() if place < len(fields) else raw_id or ""
        own_known = known or pseudonym(key, namespace, own)
        fields = ["(hidden)" if k in hidden else own_known if own and f.strip() == own else f for k, f in enumerate(fields)]
        return json.dumps({"fields": fields}, ensure_ascii=False)

    return mask


def json_texts(columns: dict[str, pa.Array]) -> pa.Array:
    """One JSON object of texts per row."""
    parts: list = []
    for k, (name, column) in enumerate(columns.items()):
        if pc.any(pc.match_substring_regex(column, r'["\\\x00-\x1f]')).as_py():
            for raw, escaped in (("\\", "\\\\"), ('"', '\\"'), ("\n", "\\n"), ("\r", "\\r"), ("\t", "\\t")):
                column = pc.replace_substring(column, raw, escaped)
            column = pc.replace_substring_regex(column, r"[\x00-\x1f]", "\ufffd")
        text = pc.binary_join_element_wise('"', column, '"', "")
        parts += [("{" if k == 0 else ",") + json.dumps(name, ensure_ascii=False) + ":", pc.fill_null(text, "null")]
    return pc.binary_join_element_wise(*parts, "}", "")


def _patched(records: pa.Array, patches: pa.Array) -> pa.Array:
    """`records` with the members of `patches` (JSON objects) in place of their own."""
    with duckdb.connect(config={"threads": 1}) as db:
        db.register("t", pa.table({"r": records, "p": patches}))
        return db.sql("SELECT json_merge_patch(r, p)::VARCHAR AS r FROM t").to_arrow_table()["r"].combine_chunks()
