"""Time stamps: texts to wall-clock readings and instants in UTC, on whole columns.

Instants and readings are microseconds since 1970; a wall-clock reading is held as the instant that shows the same digits in UTC. `NOTHING`
stands for one that is not there.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import lru_cache

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from twinlib.fusion.arrays import DAY, HOUR, MINUTE
from twinlib.fusion.zones import zone
from twinlib.sources.mapping import Clock

NOTHING = np.iinfo(np.int64).min
LARGEST_OFFSET = 18 * 60  # minutes between local time and UTC that are believed
AGREEMENT = 0.95  # share of the telltale rows of a file that must agree on the order of day and month
_SECOND = 1_000_000
_EPOCHS = {"epoch_s": 1e6, "epoch_ms": 1e3}  # microseconds
_HOUR = re.compile("[HhaS]")
_MONTHS = ("january", "february", "march", "april", "may", "june", "july", "august", "september", "october", "november", "december")
_ISO = (
    r"^(?P<y>\d{4})-(?P<M>\d{2})-(?P<d>\d{2})[T ](?P<H>\d{2}):(?P<m>\d{2})(?::(?P<s>\d{2})(?:\.(?P<S>\d{1,9}))?)?"
    r"(?:\s?(?P<X>Z|[+-]\d{2}:?\d{2}))?$"
)
_ZONES = {1: r"Z|[+-]\d{2}(?:\d{2})?", 2: r"Z|[+-]\d{4}", 3: r"Z|[+-]\d{2}:\d{2}"}


def micros_of(instant: datetime) -> int:
    """Microseconds since 1970; without a zone it is UTC."""
    return round((instant if instant.tzinfo else instant.replace(tzinfo=UTC)).timestamp() * _SECOND)


@dataclass(frozen=True)
class Stamps:
    """What texts (n,) say. wall: reading, or instant where `named`; until: when the day, month or year is over that is all a text states, else
    NOTHING; ahead: local time minus UTC in minutes where a text states it, else NaN."""

    wall: np.ndarray
    named: np.ndarray
    until: np.ndarray
    ahead: np.ndarray


def stamps(text: pa.Array, formats: Sequence[str]) -> Stamps:
    """Read by the first format that fits."""
    n = len(text)
    result = Stamps(np.full(n, NOTHING), np.zeros(n, bool), np.full(n, NOTHING), np.full(n, np.nan))
    left = np.flatnonzero(text.is_valid().to_numpy(zero_copy_only=False))
    for pattern in formats:
        if not len(left):
            break
        wall, ahead = _read(text if len(left) == n else text.take(pa.array(left)), pattern)
        fits = wall != NOTHING
        at = left[fits]
        result.wall[at], result.ahead[at] = wall[fits], ahead[fits]
        result.named[at] = True if pattern in _EPOCHS else ~np.isnan(ahead[fits])
        if not (pattern in ("iso", *_EPOCHS) or _HOUR.search(pattern)):
            result.until[at] = _over(wall[fits], pattern)
        left = left[~fits]
    return result


def stated_offsets(text: pa.Array, found: Stamps) -> np.ndarray:
    """(n,) minutes by which local time is ahead of UTC where a text says so; one in Z does not tell."""
    return np.where(_true(pc.ends_with(text, "Z")), np.nan, found.ahead)


def _true(mask: pa.Array) -> np.ndarray:
    return pc.fill_null(mask, False).to_numpy(zero_copy_only=False)


def _over(wall: np.ndarray, pattern: str) -> np.ndarray:
    """When the day, the month or the year is over that begins at `wall`."""
    if "d" in pattern:
        return wall + DAY
    unit = "M" if "M" in pattern else "Y"
    period = wall.astype("datetime64[us]").astype(f"datetime64[{unit}]")
    return (period + 1).astype("datetime64[us]").astype(np.int64)


# --- texts ----------------------------------------------------------------------------------------------------------------


def _read(text: pa.Array, pattern: str) -> tuple[np.ndarray, np.ndarray]:
    """Readings (micros, NOTHING where the pattern does not fit; in UTC where the text has a zone), minutes ahead of UTC (NaN without a zone)."""
    if pattern in _EPOCHS:
        fits = _true(pc.match_substring_regex(text, r"^\d{1,14}(\.\d+)?$"))
        number = pc.if_else(pa.array(fits), text, "0").cast(pa.float64()).to_numpy(zero_copy_only=False)
        micros = np.minimum(np.floor(number * _EPOCHS[pattern] + 0.5), 2.0**62).astype(np.int64)
        return np.where(fits, micros, NOTHING), np.full(len(text), np.nan)
    found = pc.extract_regex(text, _expression(pattern))
    fits = _true(found.is_valid())
    group = {f.name: found.field(k) for k, f in enumerate(found.type)}

    def number(name: str, default: int) -> np.ndarray:
        if name not in group:
            return np.full(len(text), default)
        digits = group[name]
        return pc.if_else(pc.equal(digits, ""), str(default), digits).fill_null(str(default)).cast(pa.int64()).to_numpy(zero_copy_only=False)

    year, day, minute, second = number("y", 1970), number("d", 1), number("m", 0), number("s", 0)
    if "Y" in group:
        year = 2000 + number("Y", 0)
    month = _month(group["N"]) if "N" in group else number("M", 1)
    hour, whole = _hour(group, number)
    days, valid = _days(year, month, day)
    fits &= valid & whole & (hour < 24) & (minute < 60) & (second < 60)
    micros = days * DAY + hour * HOUR + minute * MINUTE + second * _SECOND
    if "S" in group:
        digits = pc.utf8_slice_codeunits(pc.utf8_rpad(group["S"].fill_null(""), 6, "0"), 0, 6)
        micros += digits.cast(pa.int64()).to_numpy(zero_copy_only=False)
    ahead = np.full(len(text), np.nan)
    if "X" in group:
        ahead, known = _ahead(group["X"])
        fits &= known
        micros -= (np.nan_to_num(ahead) * MINUTE).astype(np.int64)
    return np.where(fits, micros, NOTHING), np.where(fits, ahead, np.nan)


def _days(year: np.ndarray, month: np.ndarray, day: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Days since 1970, and whether there is such a date."""
    valid = (month >= 1) & (month <= 12) & (day >= 1) & (year <= 9999)
    months = np.where(valid, (year - 1970) * 12 + month - 1, 0).astype("datetime64[M]")
    first, after = (m.astype("datetime64[D]").astype(np.int64) for m in (months, months + 1))
    return first + day - 1, valid & (day <= after - first)


def _hour(group: dict[str, pa.Array], number) -> tuple[np.ndarray, np.ndarray]:
    """Hour of the day, and whether it is whole. Without "a", h counts in the morning."""
    hour = number("H", 0)
    if "a" not in group and "h" not in group:
        return hour, np.ones(len(hour), bool)
    after_noon = _true(pc.equal(pc.utf8_lower(group["a"]), "pm")) if "a" in group else np.zeros(len(hour), bool)
    if "h" in group:
        twelve = number("h", 12)
        return twelve % 12 + 12 * after_noon, (twelve >= 1) & (twelve <= 12)
    if "H" in group:
        return hour, (hour >= 12) == after_noon
    return 12 * after_noon, np.ones(len(hour), bool)


def _month(names: pa.Array) -> np.ndarray:
    short = pc.utf8_slice_codeunits(pc.utf8_lower(names), 0, 3)
    place = pc.index_in(short, value_set=pa.array([m[:3] for m in _MONTHS])).fill_null(-1)
    return place.to_numpy(zero_copy_only=False).astype(np.int64) + 1


def _ahead(texts: pa.Array) -> tuple[np.ndarray, np.ndarray]:
    """Minutes ahead of UTC (NaN where the text is empty), and whether there is such an offset. Looked up per different text: there are few."""
    coded = pc.dictionary_encode(texts.fill_null(""))
    minutes, known = [], []
    for t in coded.dictionary.to_pylist():
        sign, digits = t[:1], re.sub(r"\D", "", t)
        hours, rest = int(digits[:2] or 0), int(digits[2:] or 0)
        minutes.append(np.nan if not t else (-1 if sign == "-" else 1) * (60 * hours + rest))
        known.append(rest < 60 and 60 * hours + rest <= LARGEST_OFFSET)
    at = coded.indices.to_numpy(zero_copy_only=False)
    return np.array([*minutes, 0.0])[at], np.array([*known, True])[at]


@lru_cache(maxsize=256)
def _expression(pattern: str) -> str:
    """A format as a regular expression with a group per field: y or Y (two digits), M or N (a name), d, H, h, m, s, S, a, X.

    As in Java's DateTimeFormatter, one letter is a number of any width, two are two digits, and S a fraction of up to so many.
    """
    if pattern == "iso":
        return _ISO
    tokens = re.findall(r"'[^']*'|y+|u+|M+|d+|H+|h+|m+|s+|S+|a+|X+|.", pattern)
    return f"(?i)^{''.join(map(_field, tokens))}$"


def _field(token: str) -> str:
    letter, width = token[0], len(token)
    if letter == "'":
        return re.escape(token[1:-1] or "'")
    if letter in "yu":
        return r"(?P<Y>\d{2})" if width == 2 else r"(?P<y>\d{4})" if width == 4 else rf"0*(?P<y>\d{{{1 if width == 1 else width},5}})"
    if letter == "M" and width > 2:
        return rf"(?P<N>{'|'.join(m[:3] if width == 3 else m for m in _MONTHS)})"
    if letter in "MdHhms":
        return rf"0*(?P<{letter}>\d{{1,2}})" if width == 1 else rf"(?P<{letter}>\d{{2}})"
    if letter == "S":
        return rf"(?P<S>\d{{1,{width}}})"
    if letter == "a":
        return "(?P<a>am|pm)"
    if letter == "X":
        return rf"(?P<X>{_ZONES[width]})"
    return re.escape(token)


# --- day and month --------------------------------------------------------------------------------------------------------


def swapped(formats: Sequence[str]) -> list[str]:
    """The formats with day and month in each other's place."""
    return [re.sub(r"d+|M+", lambda m: m[0].translate(str.maketrans("dM", "Md")), f) for f in formats]


def told(text: pa.Array, formats: Sequence[str]) -> np.ndarray:
    """(3,) counts of texts that can be read only as the formats say, only with day and month swapped, and both ways with another result."""
    first, second = stamps(text, formats).wall, stamps(text, swapped(formats)).wall
    one, other = first != NOTHING, second != NOTHING
    return np.array([(one & ~other).sum(), (other & ~one).sum(), (one & other & (first != second)).sum()])


def date_order(counts: np.ndarray) -> str:
    """`first`, `second`, or `ambiguous` where the dates of a file do not tell; counts (3,) of `told`.

    A row tells when only one of the two readings exists. 95 % of the rows that tell must agree; without any that tells, all readings must
    be the same either way round.
    """
    a, b, open_ = counts.tolist()
    if a + b == 0:
        return "ambiguous" if open_ else "first"
    return "first" if a >= AGREEMENT * (a + b) else "second" if b >= AGREEMENT * (a + b) else "ambiguous"


# --- instants -------------------------------------------------------------------------------------------------------------


def to_utc(wall: np.ndarray, named: np.ndarray, clock: Clock, offset: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """utc (n,), nonexistent (n,), ambiguous (n,) of wall-clock readings: instants (NOTHING where unknown), readings in a gap of daylight saving,
    and readings that happened twice (the earlier is taken). named: `wall` is the instant; offset: minutes, local minus UTC, NaN = unknown."""
    no, there = np.zeros(len(wall), bool), wall != NOTHING
    if clock.zone == "UTC":
        return wall, no, no
    if clock.zone == "offset":
        known = there & (named | ~np.isnan(offset))
        shift = np.where(named, 0, np.nan_to_num(offset)).astype(np.int64) * MINUTE
        return np.where(known, wall - np.where(known, shift, 0), NOTHING), no, no
    local = there & ~named
    utc, nonexistent, ambiguous = zone(clock.zone).resolved(np.where(there, wall, 0))
    return np.where(local, utc, wall), nonexistent & local, ambiguous & local


def local_offset(utc: np.ndarray, clock: Clock) -> np.ndarray:
    """(n,) local time minus UTC in minutes of the zone where the clock, or the patient, is; NaN where the source does not tell."""
    name = clock.local_zone or clock.zone
    if name in ("UTC", "offset"):
        return np.full(len(utc), np.nan)
    there = utc != NOTHING
    return np.where(there, np.floor(zone(name).offsets(np.where(there, utc, 0)) / MINUTE + 0.5), np.nan)
