"""Faulty rows of the kinds that real exports hold, planted between the good rows, which stay as they are."""

from __future__ import annotations

import json
from dataclasses import replace

from twinlib.synthetic.exports import RawFile
from twinlib.synthetic.people import DIRT, Person, stream

_VALUE_COLUMN = {"glucose": 1, "basal": 1, "bolus": 1, "nutrition": 3}
_VALUE_KEY = {"cbg": "value", "basal": "rate", "bolus": "normal", "wizard": "carbInput"}

# kind of fault -> new value of the amount, given the good one
_AMOUNTS = {
    "conflicting_duplicate": lambda v: round(v * 1.1 + 0.1, 2),
    "glucose_zero": lambda v: 0,
    "glucose_2000": lambda v: 2000,
    "negative_amount": lambda v: -v,
    "text_in_number": lambda v: "HIGH",
    "missing_value": lambda v: None,
}
FAULTS = ("exact_duplicate", *_AMOUNTS, "unparsable_time", "malformed_row")


def _is_glucose(kind: str, row: str) -> bool:
    return kind == "glucose" or kind == "tidepool" and row.startswith('{"type":"cbg"')


def _is_rate(kind: str, row: str) -> bool:
    return kind == "basal" and ",R" in row or row.startswith('{"type":"basal"')


def _is_intake(kind: str, row: str) -> bool:
    return kind == "nutrition" or row.startswith('{"type":"wizard"')


def _possible(fault: str, kind: str, row: str) -> bool:
    if fault.startswith("glucose_"):
        return _is_glucose(kind, row)
    if fault == "negative_amount":
        return not _is_glucose(kind, row)
    if fault == "conflicting_duplicate":  # two amounts eaten at one instant are no conflict: both would count
        return not _is_intake(kind, row)
    return fault != "malformed_row" or kind != "tidepool"


def spoil(fault: str, kind: str, row: str) -> str:
    """The faulty sibling of a good row."""
    if fault == "exact_duplicate":
        return row
    if fault == "malformed_row":
        return row + ",1,2,3,4,5,6"
    if kind == "tidepool":
        record = json.loads(row)
        if fault == "unparsable_time":
            record["time"] = "2026-13-32T25:61:00.000Z"
        else:
            key = _VALUE_KEY[record["type"]]
            record[key] = _AMOUNTS[fault](record[key])
        return json.dumps(record, separators=(",", ":"))
    fields, column = row.split(","), _VALUE_COLUMN[kind]
    if fault == "unparsable_time":
        fields[0] = "32/13/2026 25:61"
    else:
        value = _AMOUNTS[fault](float(fields[column]))
        fields[column] = "" if value is None else f"{value:g}" if value != "HIGH" else value
    return ",".join(fields)


def plant(
    seed: int, person: Person, files: list[RawFile], share: float = 0.05
) -> tuple[list[RawFile], list[tuple[str, int, str]]]:
    """`files` with faulty rows in about `share` of the CSV files and three times that of the JSON files.

    Returns the files and (path, line or record number from 1, fault) of every planted row. The first person of each shape
    has every fault that is possible, so that even a small cohort holds them all. A conflicting row stands where the usual
    rule (first value wins; for a rate, the last) keeps the good one.
    """
    rng, planted, result = stream(seed, person.index, DIRT), [], []
    for file in files:
        chance, which, places = rng.random(), rng.random(len(FAULTS)), rng.random(len(FAULTS))
        always = person.index < 2
        if not always and (chance > share * (3 if file.kind == "tidepool" else 1) or person.special):
            result.append(file)
            continue
        after: dict[int, list[tuple[str, str]]] = {}
        for fault, w, place in zip(FAULTS, which, places):
            rows = [k for k, row in enumerate(file.rows) if _possible(fault, file.kind, row)]
            if rows and (always or w < 0.5):
                k = rows[int(place * len(rows))]
                bad = spoil(fault, file.kind, file.rows[k])
                before = fault == "conflicting_duplicate" and _is_rate(file.kind, file.rows[k])
                after.setdefault(k - before, []).append((fault, bad))
        rows: list[str] = []
        for k in range(-1, len(file.rows)):
            rows += file.rows[k : k + 1] if k >= 0 else []
            for fault, bad in after.get(k, ()):
                rows.append(bad)
                planted.append((file.path, len(rows) + (file.header is not None), fault))
        result.append(replace(file, rows=rows))
    return result, planted
