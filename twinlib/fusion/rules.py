"""Quality rules: small functions that say of a record whether it must be refused. The first that holds is the reason.

They read the columns that `twinlib.fusion.judge` prepares. Conditions never raise, and null counts as "does not hold".
A rule whose condition is None is decided over many records (of a patient, or of a file), not over one.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from pyspark.sql import Column
from pyspark.sql import functions as F

from twinlib.fusion.entries import Entry

_EARLIEST, _LATEST = "1900-01-01", "2100-01-01"
_SEXES = ("female", "male", "other", "unknown")


@dataclass(frozen=True)
class Rule:
    """code: the reason in quarantine. targets: records it applies to. expected: what the record should have had."""

    code: str
    targets: tuple[str, ...]
    condition: Callable[[], Column] | None
    expected: Callable[[Entry], str]


RULES: list[Rule] = []
EXPOSURE, PATIENT, MEASURED, LASTING = ("exposure",), ("patient",), ("observation", "exposure"), ("exposure", "event")
TIMED = MEASURED + ("event",)
ALL = TIMED + PATIENT


def rule(targets: tuple[str, ...], expected: Callable[[Entry], str]):
    """Register the condition under its own name; order of definition is order of precedence."""

    def register(condition: Callable[[], Column]) -> Callable[[], Column]:
        RULES.append(Rule(condition.__name__, targets, condition, expected))
        return condition

    return register


def _column(e: Entry) -> str:
    return e.meaning.value.column or "constant"


def _times(e: Entry) -> str:
    return " ".join(e.meaning.clock.column)


@rule(ALL, lambda e: "a patient id in the declared column or file name")
def missing_patient() -> Column:
    return F.col("patient_id").isNull()


@rule(TIMED, lambda e: f"column {_times(e)}: a time stamp")
def missing_time() -> Column:
    return F.col("no_time")


@rule(TIMED, lambda e: f"column {_times(e)}: day and month can be told apart in the file")
def ambiguous_date() -> Column:
    return F.col("date_order") == "ambiguous"


@rule(TIMED, lambda e: f"column {_times(e)}: {' or '.join(e.meaning.clock.formats)}")
def unparsable_time() -> Column:
    return F.col("wall").isNull()


@rule(TIMED, lambda e: f"column {e.meaning.clock.offset_column}: local time minus UTC in {e.meaning.clock.offset_unit}, within 18 hours")
def unparsable_offset() -> Column:
    faulty = F.col("offset_minutes").isNull() | (F.abs("offset_minutes") > 18 * 60)
    return F.when(F.col("needs_offset"), faulty).otherwise(F.col("offset").isNotNull() & faulty)


@rule(TIMED, lambda e: f"column {_times(e)}: a local time that exists in {e.meaning.clock.zone}")
def nonexistent_local_time() -> Column:
    return F.col("nonexistent")


@rule(TIMED, lambda e: f"column {_times(e)}: a time from {_EARLIEST} to {_LATEST}")
def implausible_time() -> Column:
    return ~F.col("utc").between(F.lit(_EARLIEST).cast("timestamp"), F.lit(_LATEST).cast("timestamp"))


RULES.append(
    Rule(
        "clock_jump",
        ("observation",),
        None,
        lambda e: f"column {_times(e)}: a clock that runs on; in this part of the file it was set forward or back",
    )
)


@rule(MEASURED, lambda e: f"column {_column(e)}: a value")
def missing_value() -> Column:
    return F.col("no_value")


@rule(MEASURED, lambda e: f"column {_column(e)}: a number")
def unparsable_value() -> Column:
    return F.col("number").isNull()


@rule(MEASURED, lambda e: f"column {e.meaning.value.unit_column}: one of {', '.join(t for t, _ in e.units if t) or e.canonical}")
def unknown_unit() -> Column:
    return F.col("value").isNull()


@rule(EXPOSURE, lambda e: f"column {_column(e)}: not negative")
def negative_amount() -> Column:
    return F.col("value") < 0


RULES.append(
    Rule(
        "unit_contradicts_values",
        MEASURED,
        None,
        lambda e: f"column {_column(e)}: values in the declared unit; those of this patient fit another unit of {e.meaning.name}",
    )
)


@rule(MEASURED, lambda e: f"column {_column(e)}: {e.plausible.text} {e.canonical}")
def out_of_range() -> Column:
    value, low = F.col("value"), F.col("low")
    return (value > F.col("high")) | (value < low) | (F.col("low_open") & (value == low))


@rule(LASTING, lambda e: "the end or duration can be read and is not before the start")
def unparsable_end() -> Column:
    return F.col("end_stated") & (F.col("end").isNull() | (F.col("end") < F.col("utc")))


@rule(TIMED, lambda e: "the instant at which the record became known: a time stamp in the format of the record's own")
def unparsable_available_at() -> Column:
    return F.col("available").isNotNull() & F.col("stated_available").isNull()


@rule(PATIENT, lambda e: f"sex: one of {', '.join(_SEXES)}, or a code declared in sex_values")
def unknown_sex() -> Column:
    return F.col("sex_stated") & F.col("sex").isNull()


@rule(
    PATIENT,
    lambda e: (
        f"birth date: {'a year' if e.meaning.attributes.birth_year else e.meaning.attributes.birth_date_format}, from 1900 on"
    ),
)
def unparsable_birth_date() -> Column:
    return F.col("birth_stated") & (F.col("birth_date").isNull() | (F.year("birth_date") < 1900))


def _concerned(targets: tuple[str, ...]) -> Column:
    flags = {
        ALL: F.col("timed") | F.col("person"),
        TIMED: F.col("timed"),
        LASTING: F.col("lasting"),
        MEASURED: F.col("measured"),
        EXPOSURE: F.col("exposed"),
        PATIENT: F.col("person"),
    }
    return flags[targets]


def reason() -> Column:
    """Code of the first rule that holds, null where the record is sound; faults found while reading come first."""
    tests = [F.when(_concerned(r.targets) & r.condition(), F.lit(r.code)) for r in RULES if r.condition]
    return F.coalesce(F.col("fault"), *tests)


def overruled(reason: Column, condition: Column, code: str) -> Column:
    """`reason` after it is known from other records that the rule `code` holds; rules that come before it stand."""
    codes = [r.code for r in RULES]
    weaker = codes[codes.index(code) + 1 :]
    return F.when(condition & (reason.isNull() | reason.isin(*weaker)), F.lit(code)).otherwise(reason)
