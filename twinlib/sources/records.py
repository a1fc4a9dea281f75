"""The seam between sources and fusion: raw records as text, one schema for every kind of source.

A source (mapped files, OMOP, FHIR) gives `meanings`, which say what its records mean, and `records`, the
frame of RECORDS. Units, clocks, rules, duplicates, quarantine and counts are the same for all of them.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, Protocol

import pyarrow as pa
from pyspark.sql import DataFrame, SparkSession

from twinlib.sources.mapping import Attributes, Clock, Value

# One row per record that an entry selects; besides, one row per file with `ignored` set and nothing else (the tally).
# Texts are trimmed, null where empty. `part` tells the records of one line apart, where a line holds several. `fault` is a reason code found
# while reading, `detail` its expectation. `flags` are quality flags and `identifiers` keyed hashes of the patient's identifiers, each separated
# by a space.
RECORDS = (
    "entry int, file string, line bigint, part int, patient_id string, time string, end string, available string, offset string, "
    "value string, unit string, duration string, label string, device string, sex string, birth_date string, "
    "flags string, identifiers string, fault string, detail string, record string, ignored bigint"
)
_ARROW = {"int": pa.int32(), "bigint": pa.int64(), "string": pa.string()}
RECORDS_ARROW = pa.schema([(name, _ARROW[kind]) for name, kind in (column.split() for column in RECORDS.split(", "))])


@dataclass(frozen=True)
class Meaning:
    """What the records of one entry are. `where` is its place for error messages; entries of one `source` are counted together.

    target none: the layout of a file itself, which holds rows that no entry wants or that cannot be split in fields.
    """

    source: str
    group: str
    where: str
    target: Literal["observation", "exposure", "event", "patient", "none"]
    name: str = ""
    kind: Literal["dose", "rate", "treatment"] | None = None
    clock: Clock | None = None
    value: Value | None = None
    duration_seconds: float | None = None
    attributes: Attributes | None = None
    has_end: bool = False
    has_available: bool = False
    has_device: bool = False


@dataclass(frozen=True)
class Part:
    """A frame of records that is judged on its own.

    entry: the number of the one entry that all of its records have; None where they differ, and `frame` is RECORDS. A frame of one entry
    may have typed columns besides: stamp (timestamp: the instant, or the wall clock's digits as UTC), stamp_named (boolean: it is the
    instant), amount (double); they take the place of texts. Its `record` may be a struct of texts. It is read anew for each result.
    """

    frame: DataFrame
    entry: int | None = None


class Source(Protocol):
    """`records(first)` numbers its entries from `first` in the order of `meanings`."""

    name: str
    namespace: str  # of its patients' ids
    meanings: tuple[Meaning, ...]

    def check(self) -> None:
        """Raises ConfigError or DataError for everything that can be known before work starts."""

    def records(self, spark: SparkSession, key: bytes, first: int) -> DataFrame | list[Part]:
        """The source's records (RECORDS), patients already under their pseudonyms, in one frame or in parts."""
