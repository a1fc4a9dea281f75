"""Whole-file and stretch faults at known rows: one kind of fault per person, in all of the person's files that can have it.

Where `dirt` spoils single rows here and there, this plants what goes wrong with an export or a device: another unit, order of date,
clock, column order or encoding; a sensor that sticks or is lain upon; files that end early. The truth names every row that the fault touches.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from dataclasses import dataclass, replace
from datetime import datetime, timedelta
from zoneinfo import ZoneInfo

from twinlib.synthetic.exports import MMOL, RawFile
from twinlib.synthetic.people import FAULTS, Person, stream

DAY_ROWS = 288
DAY_FIRST, MONTH_FIRST = "%d/%m/%Y %H:%M", "%m/%d/%Y %H:%M"


@dataclass(frozen=True)
class Spoilt:
    """The file, its faulty rows (index in `rows`), and bytes in place of the text where the text cannot say it."""

    file: RawFile
    rows: list[int]
    encoding: str = "utf-8"


def _glucose(change: Callable[[float], float]) -> Callable[[str], str]:
    def one(row: str) -> str:
        time, value = row.split(",")[:2]
        return f"{time},{change(float(value)):g}"

    return one


def _value(row: str) -> float:
    return float(row.split(",")[1])


def _every(file: RawFile, change: Callable[[str], str]) -> Spoilt:
    return Spoilt(replace(file, rows=[change(r) for r in file.rows]), list(range(len(file.rows))))


def wrong_unit(file: RawFile, rng) -> Spoilt:
    """mg/dL in a column that is declared as mmol/L."""
    return _every(file, _glucose(lambda v: round(v * MMOL)))


def day_month_swap(file: RawFile, rng) -> Spoilt:
    """Month before day in the whole file."""
    return _every(file, lambda r: re.sub(r"^(\d+)/(\d+)/", r"\2/\1/", r))


def wrong_zone(file: RawFile, rng) -> Spoilt:
    """Local times of a zone hours away, in a file that is read as one of here."""
    away = timedelta(minutes=int(rng.choice([-480, -300, 330, 480])))

    def one(row: str) -> str:
        time, value = row.split(",")[:2]
        return f"{datetime.strptime(time, DAY_FIRST) + away:{DAY_FIRST}},{value}"

    return _every(file, one)


def drift(file: RawFile, rng) -> Spoilt:
    """A sensor that reads more and more too high from the fourth day on, 8 % a day; a meter's readings every four hours beside it (SD 5 %).
    Faulty are the readings that are more than 20 % off."""
    rows, planted, meter = [], [], []
    first = None
    for row in file.rows:
        record = json.loads(row)
        if record["type"] == "cbg":
            at = datetime.fromisoformat(record["time"])
            first = first or at
            if not meter or at - meter[-1][0] >= timedelta(hours=4):
                meter.append((at, record | {"type": "smbg", "value": round(record["value"] * (1 + 0.05 * rng.standard_normal()), 5)}))
            share = min(max(0.08 * ((at - first) / timedelta(days=1) - 4), 0), 0.6)
            if share > 0.2:
                planted.append(len(rows))
            row = json.dumps(record | {"value": round(record["value"] * (1 + share), 5)}, separators=(",", ":"))
        rows.append(row)
    rows += [json.dumps(r, separators=(",", ":")) for _, r in meter]
    return Spoilt(replace(file, rows=rows), planted)


def swapped_columns(file: RawFile, rng) -> Spoilt:
    """Value and time in each other's column under the same header."""
    return _every(file, lambda r: ",".join(reversed(r.split(",")[:2])))


def rate_per_five_minutes(file: RawFile, rng) -> Spoilt:
    """Rates in U per 5 minutes under a header that means U/h."""
    def one(row: str) -> str:
        fields = row.split(",")
        return ",".join([fields[0], f"{float(fields[1]) / 12:.6g}", *fields[2:]]) if fields[2] == "R" else row

    changed = [one(r) for r in file.rows]
    return Spoilt(replace(file, rows=changed), [k for k, r in enumerate(file.rows) if ",R" in r])


def byte_order_mark(file: RawFile, rng) -> Spoilt:
    """A mark in front of the header."""
    return Spoilt(replace(file, bom=True), list(range(len(file.rows))))


def mixed_encodings(file: RawFile, rng) -> Spoilt:
    """Some meals were typed into another program, and stand in Latin-1 within a UTF-8 file."""
    chosen = [k for k in range(len(file.rows)) if rng.random() < 0.5]
    rows = [r.replace("Lunch", "D\u00e9jeuner").replace("Breakfast", "Caf\u00e9").replace("Dinner", "D\u00eener").replace("Snack", "Go\u00fbter").replace("Correction", "Pur\u00e9e")
            if k in set(chosen) else r for k, r in enumerate(file.rows)]
    return Spoilt(replace(file, rows=rows, bom=False), [k for k in chosen if not rows[k].isascii()], "latin-1")


def _inserted(file: RawFile, share: float, rng, sibling: Callable[[str], str]) -> Spoilt:
    rows, planted = [], []
    for row in file.rows:
        rows.append(row)
        if rng.random() < share:
            planted.append(len(rows))
            rows.append(sibling(row))
    return Spoilt(replace(file, rows=rows), planted)


def duplicate(file: RawFile, rng) -> Spoilt:
    """Rows twice."""
    return _inserted(file, 0.3, rng, lambda r: r)


def conflicting_duplicate(file: RawFile, rng) -> Spoilt:
    """Another value at the same instant."""
    return _inserted(file, 0.2, rng, _glucose(lambda v: round(v * 1.1 + 0.2, 1)))


def clock_jump(file: RawFile, rng) -> Spoilt:
    """For some hours the clock is three and a half hours ahead, then it is set back."""
    first, n = int(rng.integers(DAY_ROWS, len(file.rows) - 2 * DAY_ROWS)), int(rng.integers(60, 140))
    times = [r.split(",")[0] for r in file.rows]
    shifted = {k: f"{times[k + 42]},{_value(file.rows[k]):g}" for k in range(first, first + n)}
    return Spoilt(replace(file, rows=[shifted.get(k, r) for k, r in enumerate(file.rows)]), sorted(shifted))


def stuck_sensor(file: RawFile, rng) -> Spoilt:
    """The last value again and again, for some hours each day."""
    rows, planted = list(file.rows), []
    for day in range(len(rows) // DAY_ROWS):
        first = day * DAY_ROWS + int(rng.integers(1, DAY_ROWS - 120))
        held = _value(rows[first - 1])
        for k in range(first, first + int(rng.integers(36, 96))):
            rows[k] = _glucose(lambda _: held)(rows[k])  # noqa: B023
            planted.append(k)
    return Spoilt(replace(file, rows=rows), planted)


def compression_low(file: RawFile, rng) -> Spoilt:
    """Each night half an hour to an hour and a half 2.2 to 3.3 mmol/L lower, with edges of one reading."""
    rows, planted = list(file.rows), []
    nights = [k for k, r in enumerate(rows) if re.search(r" 0[1-5]:", r)]
    by_date: dict[str, list[int]] = {}
    for k in nights:
        by_date.setdefault(rows[k].split(" ")[0], []).append(k)
    for some in by_date.values():
        n = int(rng.integers(6, 18))
        if len(some) < 40:
            continue
        at = int(rng.integers(2, len(some) - n - 2))
        depth = rng.uniform(2.2, 3.3)
        if _value(rows[some[at]]) - depth < 2.3:
            continue
        for k in some[at : at + n]:
            rows[k] = _glucose(lambda v: max(round(v - depth, 1), 2.3))(rows[k])  # noqa: B023
            planted.append(k)
    return Spoilt(replace(file, rows=rows), planted)


def broken_json_line(file: RawFile, rng) -> Spoilt:
    """Lines that were cut in the middle."""
    planted = [k for k in range(len(file.rows)) if rng.random() < 0.2]
    chosen = set(planted)
    return Spoilt(replace(file, rows=[r[: len(r) // 2] if k in chosen else r for k, r in enumerate(file.rows)]), planted)


def truncated_file(file: RawFile, rng) -> Spoilt:
    """The file ends in the middle of a line."""
    rows = file.rows[: len(file.rows) // 2]
    return Spoilt(replace(file, rows=[*rows, file.rows[len(rows)][:9]]), [len(rows)])


# fault -> (shape of export, kinds of file, how)
KINDS: dict[str, tuple[str, tuple[str, ...], Callable]] = {
    "wrong_unit": ("t1d_uom", ("glucose",), wrong_unit),
    "wrong_zone": ("t1d_uom", ("glucose",), wrong_zone),
    "day_month_swap": ("t1d_uom", ("glucose",), day_month_swap),
    "swapped_columns": ("t1d_uom", ("glucose",), swapped_columns),
    "rate_per_five_minutes": ("t1d_uom", ("basal",), rate_per_five_minutes),
    "byte_order_mark": ("t1d_uom", ("glucose",), byte_order_mark),
    "mixed_encodings": ("t1d_uom", ("nutrition",), mixed_encodings),
    "duplicate": ("t1d_uom", ("glucose",), duplicate),
    "conflicting_duplicate": ("t1d_uom", ("glucose",), conflicting_duplicate),
    "clock_jump": ("t1d_uom", ("glucose",), clock_jump),
    "stuck_sensor": ("t1d_uom", ("glucose",), stuck_sensor),
    "compression_low": ("t1d_uom", ("glucose",), compression_low),
    "truncated_file": ("t1d_uom", ("glucose", "basal", "bolus", "nutrition"), truncated_file),
    "broken_json_line": ("tidepool", ("tidepool",), broken_json_line),
    "drift": ("tidepool", ("tidepool",), drift),
}
GONE = ("wrong_unit", "swapped_columns", "rate_per_five_minutes", "duplicate", "conflicting_duplicate", "clock_jump", "truncated_file")  # not accepted


def fault_of(person: Person) -> str | None:
    """The fault of a person: in turn among those of the export's shape; none for the special people and for every eighth."""
    mine = [f for f, (shape, _, _) in KINDS.items() if shape == person.shape]
    k = person.index // 2
    if person.special or k % 8 == 7:
        return None
    fault = mine[(k - k // 8) % len(mine)]
    return None if fault == "rate_per_five_minutes" and not person.pump else fault


def _said_twice(person: Person, file: RawFile, fault: str | None, rows: list[int]) -> list[int]:
    """Rows whose local time happens twice, when clocks are set back, and that another fault does not take away."""
    zone, pattern, gone = ZoneInfo(person.zone), MONTH_FIRST if fault == "day_month_swap" else DAY_FIRST, set(rows) if fault in GONE else ()

    def twice(row: str) -> bool:
        try:
            here = datetime.strptime(row.split(",")[0], pattern).replace(tzinfo=zone)
        except ValueError:
            return False
        return here.utcoffset() > here.replace(fold=1).utcoffset()

    return [k for k, r in enumerate(file.rows) if k not in gone and twice(r)]


def plant(seed: int, person: Person, files: list[RawFile]) -> tuple[list[Spoilt], list[tuple[str, int, str]]]:
    """The person's files with the person's fault, and (path, line from 1, fault) of every row that it touches; clocks that go back touch all."""
    fault, rng = fault_of(person), stream(seed, person.index, FAULTS)
    spoilt, planted = [], []
    for file in files:
        here = fault if fault and file.kind in KINDS[fault][1] else None
        done = KINDS[here][2](file, rng) if here else Spoilt(file, [])
        rows = [(k, here) for k in done.rows]
        if person.shape == "t1d_uom":
            rows += [(k, "dst_fold") for k in _said_twice(person, done.file, here, done.rows)]
        planted += [(file.path, k + 1 + (file.header is not None), f) for k, f in rows]
        spoilt.append(done)
    return spoilt, planted
