"""One record at a time: its texts as numbers, units and instants, and the reason why it is refused, if it is. Pure functions on arrays."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from twinlib.fusion import clocks
from twinlib.fusion.arrays import DAY, coded, constant
from twinlib.fusion.clocks import LARGEST_OFFSET, NOTHING, Stamps, stamps
from twinlib.fusion.entries import FIXED, Entry, affine
from twinlib.fusion.rules import RULES, Fields, broken
from twinlib.sources.mapping import SECONDS, Clock
from twinlib.sources.records import Piece

_NUMBER = r"^[+-]?(\d+(\.\d*)?|\.\d+)([eE][+-]?\d{1,3})?$"
_SEXES = {
    "female": "female",
    "f": "female",
    "woman": "female",
    "male": "male",
    "m": "male",
    "man": "male",
    "other": "other",
    "o": "other",
    "unknown": "unknown",
    "u": "unknown",
}
_LONGEST = 366 * 86400  # s
_LONGEST_TREATMENT = 10 * _LONGEST

CODED = pa.dictionary(pa.int32(), pa.string())
INSTANT = pa.timestamp("us", "UTC")
# What is kept of a record. `reason` is null where it is sound; `quality` holds flags separated by a space; `worded`: the value was a word.
JUDGED = pa.schema([
    ("entry", pa.int32()), ("file", CODED), ("line", pa.int64()), ("part", pa.int32()), ("patient_id", CODED), ("unit", CODED), ("reason", CODED),
    ("detail", CODED), ("utc", INSTANT), ("end", INSTANT), ("value", pa.float64()), ("worded", pa.bool_()), ("label", CODED), ("device", CODED),
    ("utc_offset_minutes", pa.int32()), ("available_at", INSTANT), ("quality", CODED), ("sex", CODED), ("birth_date", pa.date32()), ("identifiers", CODED),
])  # fmt: skip


def judge(piece: Piece, entry: Entry, order: str | None = None) -> pa.Table:
    """JUDGED of the records of a piece, all of which have this entry. order: of day and month in their file, where the clock's is `auto`."""
    n, meaning = len(piece), entry.meaning
    columns = {"line": piece.columns.get("line"), "part": piece.columns.get("part"), "patient_id": piece.columns["patient_id"]}
    fields: dict[str, object] = {"patient": _there(piece.columns["patient_id"])}
    flags: dict[str, np.ndarray] = {}
    if meaning.clock:
        _time(piece, entry, order, fields, flags, columns)
    worded = np.zeros(n, bool)
    if meaning.value:
        worded = _number(piece, entry, fields)
        flags["saturated"] = worded
    if meaning.attributes:
        _attributes(piece, entry, fields, columns)
    if piece.undecodable is not None:
        flags["undecodable_text"] = piece.undecodable
    reason = _reason(piece, broken(Fields(entry, **fields)) if meaning.target != "none" else np.full(n, -1, np.int8))
    columns |= {
        "entry": pa.array(np.full(n, entry.number, np.int32)), "file": constant(piece.file, n), "reason": reason,
        "unit": _units(piece), "detail": piece.columns.get("detail"), "label": _lower(piece.columns.get("label")), "device": piece.columns.get("device"),
        "value": pa.array(fields["value"], from_pandas=True) if "value" in fields else None, "worded": pa.array(worded),
        "quality": _quality(flags, piece.columns.get("flags"), n), "identifiers": piece.columns.get("identifiers"),
    }  # fmt: skip
    return pa.table([_column(columns.get(f.name), f.type, n) for f in JUDGED], JUDGED)


def told(piece: Piece, entry: Entry) -> np.ndarray:
    """(3,) what the stamps of a piece tell of the order of day and month (see `clocks.told`)."""
    text = piece.columns.get("time")
    return np.zeros(3, np.int64) if text is None else clocks.told(text, entry.meaning.clock.formats)


def _column(column: pa.Array | None, kind: pa.DataType, n: int) -> pa.Array:
    if column is None:
        return pa.nulls(n, kind)
    return coded(column) if kind == CODED else column.cast(kind)


def _there(column: pa.Array | None, n: int = 0) -> np.ndarray:
    return np.zeros(n, bool) if column is None else column.is_valid().to_numpy(zero_copy_only=False)


def _micros(instants: np.ndarray) -> pa.Array:
    return pa.array(instants, mask=instants == NOTHING).cast(INSTANT)


def _reason(piece: Piece, place: np.ndarray) -> pa.Array:
    """Faults found while reading come first."""
    reason = pa.DictionaryArray.from_arrays(pa.array(place.astype(np.int32), mask=place < 0), pa.array([r.code for r in RULES]))
    fault = piece.columns.get("fault")
    return reason if fault is None else coded(pc.coalesce(fault, reason.dictionary_decode()))


def _units(piece: Piece) -> pa.Array:
    unit = piece.columns.get("unit")
    if unit is None:
        return constant(FIXED, len(piece))
    if pa.types.is_dictionary(unit.type) and not unit.null_count:
        return unit
    return coded((unit.dictionary_decode() if pa.types.is_dictionary(unit.type) else unit).fill_null(FIXED))


def _lower(label: pa.Array | None) -> pa.Array | None:
    return None if label is None else pc.utf8_lower(label)


def _quality(flags: Mapping[str, np.ndarray], more: pa.Array | None, n: int) -> pa.Array:
    """The names of the flags that hold, in order, and those found while reading, separated by a space."""
    names = [f for f in ("ambiguous_local_time", "saturated", "undecodable_text", "date_only") if f in flags and flags[f].any()]
    bits = np.zeros(n, np.int32)
    for k, name in enumerate(names):
        bits |= flags[name].astype(np.int32) << k
    texts = [" ".join(name for k, name in enumerate(names) if b >> k & 1) for b in range(1 << len(names))]
    own = pa.DictionaryArray.from_arrays(pa.array(bits), pa.array(texts))
    if more is None or more.null_count == n:
        return own
    both = pc.binary_join_element_wise(own.dictionary_decode(), more, " ", null_handling="skip")
    return coded(pc.utf8_trim(both, " "))


# --- times --------------------------------------------------------------------------------------------------------------


def _time(piece: Piece, entry: Entry, order: str | None, fields: dict, flags: dict, columns: dict) -> None:
    """A date without a time of day stands for its first instant as a time, and for its last as an end or as the instant at which something
    became known."""
    clock, n = entry.meaning.clock, len(piece)
    offset_text = piece.columns.get("offset")
    offset = parsed(offset_text, n) * SECONDS[clock.offset_unit] / 60
    believed = np.where(np.abs(offset) <= LARGEST_OFFSET, np.trunc(offset), np.nan)
    time = piece.columns.get("time")
    found = _stamps(time, clock, order, n)
    if (stamp := piece.columns.get("stamp")) is not None:
        found = _typed(stamp, found)
    utc, nonexistent, ambiguous = clocks.to_utc(found.wall, found.named, clock, believed)
    dated = found.until != NOTHING
    over = clocks.to_utc(found.until, np.zeros(n, bool), clock, believed)[0] if dated.any() else found.until
    until = np.where(over != NOTHING, over, utc)  # what happened on some day is known when the day is over
    flags |= {"ambiguous_local_time": ambiguous & (utc != NOTHING), "date_only": over != NOTHING}
    fields |= {
        "order": order, "time_stated": _there(time, n) | _there(stamp, n), "wall": found.wall, "utc": utc, "nonexistent": nonexistent & (over == NOTHING),
        "offset": offset, "offset_stated": _there(offset_text, n),
    }  # fmt: skip

    def instant(name: str, has: bool) -> tuple[np.ndarray, np.ndarray]:
        text = piece.columns.get(name)
        if text is None or not has:
            return np.full(n, NOTHING), _there(text, n)
        s = _stamps(text, clock, order, n)
        wall = np.where(s.until != NOTHING, s.until, s.wall)
        return clocks.to_utc(wall, s.named, clock, believed)[0], _there(text)

    available, fields["available_stated"] = instant("available", entry.meaning.has_available)
    fields["available"] = available
    columns["available_at"] = _micros(np.maximum(available, until))  # nothing is known before it has happened
    if entry.meaning.target in ("exposure", "event"):
        end, stated = instant("end", entry.meaning.has_end)
        duration = piece.columns.get("duration")
        if duration is not None:
            longest = _LONGEST_TREATMENT if entry.meaning.kind == "treatment" else _LONGEST
            seconds = parsed(duration, n) * (entry.meaning.duration_seconds or np.nan)
            lasts = (seconds >= 0) & (seconds <= longest) & (utc != NOTHING) & (end == NOTHING)
            end = np.where(lasts, utc + np.floor(np.where(lasts, seconds, 0) * 1e6 + 0.5).astype(np.int64), end)
            stated = stated | _there(duration)
        fields |= {"end": end, "end_stated": stated}
        columns["end"] = _micros(end)
    if clock.offset_column is not None:
        ahead = believed
    else:
        ahead = clocks.local_offset(utc, clock)
        if time is not None:
            stated = clocks.stated_offsets(time, found)
            ahead = np.where(np.isnan(stated), ahead, stated)
    columns["utc"] = _micros(utc)
    columns["utc_offset_minutes"] = pa.array(np.nan_to_num(ahead).astype(np.int32), mask=np.isnan(ahead))


def _stamps(text: pa.Array | None, clock: Clock, order: str | None, n: int) -> Stamps:
    if text is None or clock.order == "auto" and order not in ("first", "second"):
        nothing = np.full(n, NOTHING)
        return Stamps(nothing, np.zeros(n, bool), nothing, np.full(n, np.nan))
    return stamps(text, clocks.swapped(clock.formats) if clock.order == "auto" and order == "second" else clock.formats)


def _typed(stamp: pa.Array, found: Stamps) -> Stamps:
    """`found` with the instants, or the digits of a wall clock, that a file holds as such."""
    there = _there(stamp)
    wall = stamp.cast(pa.timestamp("us", stamp.type.tz), safe=False).cast(pa.int64()).fill_null(NOTHING).to_numpy(zero_copy_only=False)
    return Stamps(np.where(there, wall, found.wall), np.where(there, stamp.type.tz is not None, found.named), found.until, found.ahead)


# --- numbers and attributes -----------------------------------------------------------------------------------------------


def parsed(text: pa.Array | None, n: int) -> np.ndarray:
    """(n,) numbers of texts, NaN where a text is none."""
    if text is None:
        return np.full(n, np.nan)
    fits = pc.match_substring_regex(text, _NUMBER).fill_null(False)
    digits = pc.replace_substring_regex(pc.if_else(fits, text, None), r"^\+", "")
    try:
        return digits.cast(pa.float64()).to_numpy(zero_copy_only=False)
    except pa.ArrowInvalid:  # beyond what a double holds
        return np.array([np.nan if t is None else float(t) for t in digits.to_pylist()], float)


def _number(piece: Piece, entry: Entry, fields: dict) -> np.ndarray:
    """(n,) bool: the value was a word that stands for a number."""
    text, amount, value, n = piece.columns.get("value"), piece.columns.get("amount"), entry.meaning.value, len(piece)
    digits = pc.replace_substring(text, ",", ".") if text is not None and value.decimal == "," else text
    number = parsed(digits, n)
    if amount is not None:
        given = amount.to_numpy(zero_copy_only=False)
        number = np.where(np.isnan(given), number, given)
    worded = np.zeros(n, bool)
    if value.texts and text is not None:
        meant = _looked_up(text, value.texts)
        worded = ~np.isnan(meant)
        number = np.where(worded, meant, number)
    unit = _units(piece)
    factor, shift = affine(entry, unit.dictionary.to_pylist())[:, unit.indices.to_numpy(zero_copy_only=False)]
    fields |= {"value_stated": _there(text, n) | _there(amount, n), "number": number, "value": number * factor + shift}
    return worded


def _looked_up(text: pa.Array, numbers: Mapping[str, float]) -> np.ndarray:
    """(n,) the numbers that some texts stand for, else NaN."""
    place = pc.index_in(text, value_set=pa.array(list(numbers), pa.string())).fill_null(len(numbers)).to_numpy(zero_copy_only=False)
    return np.array([*numbers.values(), np.nan], float)[place]


def _attributes(piece: Piece, entry: Entry, fields: dict, columns: dict) -> None:
    sex, birth, n = piece.columns.get("sex"), piece.columns.get("birth_date"), len(piece)
    fields |= {"sex": np.zeros(n, bool), "sex_stated": _there(sex, n), "birth": np.full(n, NOTHING), "birth_stated": _there(birth, n)}
    if sex is not None:
        columns["sex"] = pc.coalesce(_named(sex, entry.meaning.attributes.sex_values), _named(pc.utf8_lower(sex), _SEXES))
        fields["sex"] = _there(columns["sex"])
    if birth is not None:
        micros = _birth_date(birth, entry)
        fields["birth"] = np.where(micros == NOTHING, NOTHING, micros // DAY)
        columns["birth_date"] = pa.array(np.where(micros == NOTHING, 0, micros // DAY).astype(np.int32), mask=micros == NOTHING).cast(pa.date32())


def _named(text: pa.Array, names: Mapping[str, str]) -> pa.Array:
    return pa.array(list(names.values()), pa.string()).take(pc.index_in(text, value_set=pa.array(list(names), pa.string())))


def _birth_date(text: pa.Array, entry: Entry) -> np.ndarray:
    """A date, or the first of July where only the year is known."""
    attributes = entry.meaning.attributes
    if attributes.birth_year is not None:
        return stamps(pc.binary_join_element_wise(text, "-07-01", ""), ("yyyy-MM-dd",)).wall
    if attributes.birth_date_format == "iso":
        return stamps(pc.utf8_slice_codeunits(text, 0, 10), ("yyyy-MM-dd",)).wall
    return stamps(text, (attributes.birth_date_format,)).wall


def undecided(entries: Iterable[Entry]) -> list[int]:
    """Numbers of the entries whose order of day and month each file must tell."""
    return [e.number for e in entries if e.meaning.clock and e.meaning.clock.order == "auto"]
