"""The seam between sources and fusion: raw records as text, one schema for every kind of source.

A source (mapped files, OMOP, FHIR) gives `meanings`, which say what its records mean, and `jobs`, which yield
its records. Units, clocks, rules, duplicates, quarantine and counts are the same for all of them.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from typing import Literal, Protocol

import numpy as np
import pyarrow as pa

from twinlib.sources.mapping import Attributes, Clock, Value

# What a record may have. Texts are trimmed, null where empty. `part` tells the records of one line apart, where a line holds several. `fault` is a
# reason code found while reading, `detail` its expectation. `flags` are quality flags and `identifiers` keyed hashes of the patient's
# identifiers, each separated by a space.
RECORDS = pa.schema(
    [("line", pa.int64()), ("part", pa.int32())]
    + [
        (name, pa.string())
        for name in "patient_id time end available offset value unit duration label device sex birth_date flags identifiers fault detail".split()
    ]
)


TASK_BYTES = 64 << 20  # of raw files that one task reads


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
class Piece:
    """Records of one entry and one file, as many as a block of it gives.

    columns: those of RECORDS that some row has, `patient_id` always (coded), as arrays of n texts. Typed columns may take the place of texts:
    `stamp` (timestamp; with a zone it is the instant, else the wall clock's digits) of `time`, `amount` (double) of `value`.
    text: the rows at some places as they stood in the file, as JSON texts. undecodable (n,): the row holds bytes that are no text in the
    file's encoding; None = no row does.
    """

    entry: int
    file: str
    columns: dict[str, pa.Array]
    text: Callable[[np.ndarray], pa.Array]
    undecodable: np.ndarray | None = None

    def __len__(self) -> int:
        return len(self.columns["patient_id"])

    def filter(self, keep: np.ndarray) -> Piece:
        """The records where `keep` (n,) holds."""
        at = np.flatnonzero(keep)
        columns = {name: column.take(pa.array(at)) for name, column in self.columns.items()}
        return replace(self, columns=columns, text=lambda places: self.text(at[places]), undecodable=None if self.undecodable is None else self.undecodable[at])


@dataclass(frozen=True)
class Tally:
    """The end of a file, or of a part of it: rows that no entry wants. `files` is 1 for the file's first part, and 0 for the others."""

    entry: int
    file: str
    ignored: int
    files: int = 1


class Job(Protocol):
    """A file, or a part of one, that is read by one task. `shown`: the name under which its records stand; `size`: bytes; `dense`: these are
    compressed; `undecided`: some of its time stamps must all be seen before one can be read."""

    size: int
    dense: bool
    undecided: bool

    @property
    def name(self) -> str:
        """Relative path; it may hold the patient's id."""

    def shown(self, key: bytes) -> str: ...

    def pieces(self, key: bytes) -> Iterator[Piece | Tally]:
        """All records, and a tally last."""


class Source(Protocol):
    """`jobs(first)` numbers its entries from `first` in the order of `meanings`."""

    name: str
    namespace: str  # of its patients' ids
    meanings: tuple[Meaning, ...]

    def check(self) -> None:
        """Raises ConfigError or DataError for everything that can be known before work starts."""

    def jobs(self, first: int) -> list[Job]:
        """All of the source's files, to be read by any number of tasks."""
