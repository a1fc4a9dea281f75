"""Quality rules: small functions that say of which records something is wrong. The first that holds is the reason.

They read what `twinlib.fusion.judge` has made of the records of one entry. Conditions never raise, and what is not there does not hold.
A rule whose condition is None is decided over many records (of a patient, or of a file), not over one.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from datetime import datetime

import numpy as np

from twinlib.fusion.clocks import LARGEST_OFFSET, NOTHING, micros_of
from twinlib.fusion.entries import Entry

_EARLIEST, _LATEST = "1900-01-01", "2100-01-01"
_FIRST, _LAST = (micros_of(datetime.fromisoformat(day)) for day in (_EARLIEST, _LATEST))
_BIRTH = -25567  # 1900-01-01 in days since 1970
_SEXES = ("female", "male", "other", "unknown")


@dataclass(frozen=True)
class Fields:
    """Records (n,) of one entry as arrays; which of them are there depends on the entry's target.

    Instants are micros (clocks.NOTHING = none), numbers NaN = none; `…_stated`: the source has a text there.
    """

    entry: Entry
    patient: np.ndarray  # bool: it is known
    order: str | None = None  # of day and month in the file
    time_stated: np.ndarray | None = None
    wall: np.ndarray | None = None
    utc: np.ndarray | None = None
    nonexistent: np.ndarray | None = None
    offset: np.ndarray | None = None  # minutes
    offset_stated: np.ndarray | None = None
    available: np.ndarray | None = None
    available_stated: np.ndarray | None = None
    end: np.ndarray | None = None
    end_stated: np.ndarray | None = None
    value_stated: np.ndarray | None = None
    number: np.ndarray | None = None
    value: np.ndarray | None = None  # in the canonical unit
    sex: np.ndarray | None = None  # bool: it is known
    sex_stated: np.ndarray | None = None
    birth: np.ndarray | None = None  # days since 1970
    birth_stated: np.ndarray | None = None


@dataclass(frozen=True)
class Rule:
    """code: the reason in quarantine. targets: records it applies to. expected: what the record should have had."""

    code: str
    targets: tuple[str, ...]
    condition: Callable[[Fields], np.ndarray | bool] | None
    expected: Callable[[Entry], str]


RULES: list[Rule] = []
EXPOSURE, PATIENT, MEASURED, LASTING = ("exposure",), ("patient",), ("observation", "exposure"), ("exposure", "event")
TIMED = MEASURED + ("event",)
ALL = TIMED + PATIENT


def rule(targets: tuple[str, ...], expected: Callable[[Entry], str]):
    """Register the condition under its own name; order of definition is order of precedence."""

    def register(condition: Callable[[Fields], np.ndarray | bool]) -> Callable[[Fields], np.ndarray | bool]:
        RULES.append(Rule(condition.__name__, targets, condition, expected))
        return condition

    return register


def _column(e: Entry) -> str:
    return e.meaning.value.column or "constant"


def _times(e: Entry) -> str:
    return " ".join(e.meaning.clock.column)


@rule(ALL, lambda e: "a patient id in the declared column or file name")
def missing_patient(r: Fields) -> np.ndarray | bool:
    return ~r.patient


@rule(TIMED, lambda e: f"column {_times(e)}: a time stamp")
def missing_time(r: Fields) -> np.ndarray | bool:
    return ~r.time_stated


@rule(TIMED, lambda e: f"column {_times(e)}: day and month can be told apart in the file")
def ambiguous_date(r: Fields) -> np.ndarray | bool:
    return r.order == "ambiguous"


@rule(TIMED, lambda e: f"column {_times(e)}: {' or '.join(e.meaning.clock.formats)}")
def unparsable_time(r: Fields) -> np.ndarray | bool:
    return r.wall == NOTHING


@rule(TIMED, lambda e: f"column {e.meaning.clock.offset_column}: local time minus UTC in {e.meaning.clock.offset_unit}, within {LARGEST_OFFSET // 60} hours")
def unparsable_offset(r: Fields) -> np.ndarray | bool:
    faulty = ~(np.abs(r.offset) <= LARGEST_OFFSET)
    return faulty if r.entry.meaning.clock.zone == "offset" else faulty & r.offset_stated


@rule(TIMED, lambda e: f"column {_times(e)}: a local time that exists in {e.meaning.clock.zone}")
def nonexistent_local_time(r: Fields) -> np.ndarray | bool:
    return r.nonexistent


@rule(TIMED, lambda e: f"column {_times(e)}: a time from {_EARLIEST} to {_LATEST}")
def implausible_time(r: Fields) -> np.ndarray | bool:
    return (r.utc != NOTHING) & ((r.utc < _FIRST) | (r.utc > _LAST))


RULES.append(
    Rule(
        "clock_jump",
        ("observation",),
        None,
        lambda e: f"column {_times(e)}: a clock that runs on; in this part of the file it was set forward or back",
    )
)


@rule(MEASURED, lambda e: f"column {_column(e)}: a value")
def missing_value(r: Fields) -> np.ndarray | bool:
    return ~r.value_stated


@rule(MEASURED, lambda e: f"column {_column(e)}: a number")
def unparsable_value(r: Fields) -> np.ndarray | bool:
    return np.isnan(r.number)


@rule(MEASURED, lambda e: f"column {e.meaning.value.unit_column}: one of {', '.join(t for t, _ in e.units if t) or e.canonical}")
def unknown_unit(r: Fields) -> np.ndarray | bool:
    return np.isnan(r.value)


@rule(EXPOSURE, lambda e: f"column {_column(e)}: not negative")
def negative_amount(r: Fields) -> np.ndarray | bool:
    return r.value < 0


RULES.append(
    Rule(
        "unit_contradicts_values",
        MEASURED,
        None,
        lambda e: f"column {_column(e)}: values in the declared unit; those of this patient fit another unit of {e.meaning.name}",
    )
)


@rule(MEASURED, lambda e: f"column {_column(e)}: {e.plausible.text} {e.canonical}")
def out_of_range(r: Fields) -> np.ndarray | bool:
    plausible = r.entry.plausible
    return (r.value > plausible.to) | (r.value < plausible.low) | ((plausible.above is not None) & (r.value == plausible.low))


@rule(LASTING, lambda e: "the end or duration can be read and is not before the start")
def unparsable_end(r: Fields) -> np.ndarray | bool:
    return r.end_stated & ((r.end == NOTHING) | (r.end < r.utc))


@rule(TIMED, lambda e: "the instant at which the record became known: a time stamp in the format of the record's own")
def unparsable_available_at(r: Fields) -> np.ndarray | bool:
    return r.available_stated & (r.available == NOTHING)


@rule(PATIENT, lambda e: f"sex: one of {', '.join(_SEXES)}, or a code declared in sex_values")
def unknown_sex(r: Fields) -> np.ndarray | bool:
    return r.sex_stated & ~r.sex


@rule(
    PATIENT,
    lambda e: (
        f"birth date: {'a year' if e.meaning.attributes.birth_year else e.meaning.attributes.birth_date_format}, from 1900 on"
    ),
)
def unparsable_birth_date(r: Fields) -> np.ndarray | bool:
    return r.birth_stated & (r.birth < _BIRTH)


def broken(r: Fields) -> np.ndarray:
    """(n,) place in RULES of the first rule that holds, -1 where the record is sound."""
    result = np.full(len(r.patient), -1, np.int8)
    for place, rule_ in enumerate(RULES):
        if rule_.condition and r.entry.meaning.target in rule_.targets:
            result[(result < 0) & rule_.condition(r)] = place
    return result


def overruled(reason: str | None, code: str) -> str:
    """The reason after it is known from other records that the rule `code` holds; rules that come before it, and faults of the file, stand."""
    codes = [r.code for r in RULES]
    return code if reason is None or reason in codes[codes.index(code) + 1 :] else reason
