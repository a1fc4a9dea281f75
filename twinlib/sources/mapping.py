"""The mapping file: how the files of one export become observations, exposures and patients (docs/sources.md)."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Annotated, Literal
from zoneinfo import ZoneInfo

from pydantic import BeforeValidator, Field, field_validator, model_validator

from twinlib.config import Strict, read_yaml, validate
from twinlib.errors import ConfigError
from twinlib.fusion.vocabulary import HIERARCHIES, System, Vocabulary

Name = Annotated[str, Field(pattern=r"^[a-z][a-z0-9_]*$")]
Scalar = Annotated[
    str, BeforeValidator(lambda v: str(v).lower() if isinstance(v, bool) else str(v) if isinstance(v, int | float) else v)
]
Texts = Annotated[tuple[Scalar, ...], BeforeValidator(lambda v: v if isinstance(v, list | tuple) else (v,))]
Filter = dict[str, Texts]
NAMED_FORMATS = ("iso", "epoch_s", "epoch_ms")
SECONDS = {"ms": 1e-3, "s": 1.0, "min": 60.0, "h": 3600.0, "d": 86400.0}


def _pattern(text: str) -> str:
    try:
        groups = re.compile(text).groups
    except re.error as e:
        raise ValueError(f"not a regular expression: {e}") from None
    if groups != 1:
        raise ValueError("the pattern needs exactly one group")
    return text


def _zone(name: str) -> str:
    if name != "offset":
        try:
            ZoneInfo(name)
        except Exception:  # ZoneInfo raises several kinds of error on a name that is no zone
            raise ValueError(f"unknown time zone {name!r}; expected an IANA name such as Europe/London, UTC, or offset") from None
    return name


class PatientId(Strict):
    """The patient of a row: a column, the one group of a pattern on the file's relative path, or one constant."""

    column: str | None = None
    file: Annotated[str, BeforeValidator(_pattern)] | None = None
    constant: Scalar | None = None

    @model_validator(mode="after")
    def _one_way(self):
        if sum(x is not None for x in (self.column, self.file, self.constant)) != 1:
            raise ValueError("give exactly one of `column`, `file` and `constant`")
        return self

    def of_file(self, relative: str) -> str | None:
        """Raw id of every row in the file, None where it is in a column or the path does not match."""
        if self.file is None:
            return self.constant
        found = re.search(self.file, relative)
        return found[1] if found else None


class Clock(Strict):
    """How a time stamp is read.

    column: one column, or several that are joined with a space (date and time).
    formats: `iso`, `epoch_s` and `epoch_ms` (seconds and milliseconds since 1970, always UTC), or patterns of Java's DateTimeFormatter;
        the first that fits is taken.
    order: `auto` = decide per file whether day and month are to be swapped in the formats.
    zone: IANA name of the clock that wrote the texts; `offset` = local time, UTC is local minus `offset_column`.
    offset_column: local time minus UTC, in `offset_unit`. local_zone: where the patient lived, when the texts are UTC.
    """

    column: Texts
    formats: Annotated[Texts, Field(min_length=1)] = ("iso",)
    order: Literal["fixed", "auto"] = "fixed"
    zone: Annotated[str, BeforeValidator(_zone)]
    offset_column: str | None = None
    offset_unit: Literal[tuple(SECONDS)] = "min"
    local_zone: Annotated[str, BeforeValidator(_zone)] | None = None

    @field_validator("formats")
    @classmethod
    def _known_letters(cls, formats):
        for text in formats:
            bare = re.sub(r"'[^']*'", "", text)
            if text not in NAMED_FORMATS and (not re.fullmatch(r"[yuMdHhmsSaX:/.,\- ]+", bare) or not re.search("[yu]", bare)):
                raise ValueError(
                    f"unknown time format {text!r}; expected {', '.join(NAMED_FORMATS)}, or a pattern such as d/M/yyyy H:mm "
                    "(letters y M d H h m s S a X, other text in single quotes)"
                )
        return formats

    @model_validator(mode="after")
    def _consistent(self):
        if self.zone == "offset" and self.offset_column is None:
            raise ValueError("zone offset needs `offset_column`")
        if self.local_zone is not None and self.zone != "UTC":
            raise ValueError("`local_zone` goes with zone UTC only")
        if self.order == "auto" and any(f in NAMED_FORMATS or "MMM" in f or not ("d" in f and "M" in f) for f in self.formats):
            raise ValueError("order auto needs formats with day and month as numbers, such as d/M/yyyy")
        return self


class Value(Strict):
    """A number: a column or a constant, with its unit. `texts` are words that stand for a number (Low, High)."""

    column: str | None = None
    constant: float | None = None
    unit: str | None = None
    unit_column: str | None = None
    units: dict[Scalar, str] = {}  # text in the unit column -> unit
    decimal: Literal[".", ","] = "."
    texts: dict[Scalar, float] = {}

    @model_validator(mode="after")
    def _complete(self):
        if (self.column is None) == (self.constant is None):
            raise ValueError("give exactly one of `column` and `constant`")
        if self.unit is None and self.unit_column is None:
            raise ValueError("a number needs `unit` or `unit_column`")
        return self


class Duration(Strict):
    column: str
    unit: Literal[tuple(SECONDS)]


class Codes(Strict):
    """Rows chosen by a code: those in `values`, or, where the entry is for all that the vocabulary knows ("*"), its codes of `system`.

    prefix: what stands before the code in the column (one text or several). below: a code stands for all that begin with it. names: a column with the name in words; a row that is known by one of `words`
    only is flagged `by_name`.
    """

    column: str
    system: System | None = None
    prefix: Texts = ("",)
    below: bool = False
    names: str | None = None
    values: Texts = ()
    words: Texts = ()

    @model_validator(mode="after")
    def _one_way(self):
        if (self.system is None) != bool(self.values or self.words):
            raise ValueError("give exactly one of `system`, and `values` or `words`")
        if self.words and self.names is None:
            raise ValueError("`words` needs `names`")
        return self


class Attributes(Strict):
    """Stable attributes of a patient. `sex_values` maps the file's codes to female, male, other, unknown.

    identifiers: identifier system -> column, for finding one person in several sources (`identity` of the run).
    """

    sex: str | None = None
    sex_values: dict[Scalar, Literal["female", "male", "other", "unknown"]] = {}
    birth_date: str | None = None
    birth_date_format: str = "yyyy-MM-dd"
    birth_year: str | None = None
    identifiers: dict[str, str] = {}

    @model_validator(mode="after")
    def _one_birth(self):
        if self.birth_date is not None and self.birth_year is not None:
            raise ValueError("give at most one of `birth_date` and `birth_year`")
        return self


class Entry(Strict):
    """One kind of record that rows of a file give; exactly one of observation, exposure, event and patient.

    With `codes`, observation, exposure or event may be "*": one entry each for all that the vocabulary has codes for. A unit
    `canonical` is then that of the signal or agent. flags: quality flag -> rows it is set on. refuse: reason -> rows refused for it.
    """

    name: Name | None = None
    when: Filter = {}
    unless: Filter = {}
    present: Texts = ()  # columns that must not be empty; a file may lack them, and so may all files
    optional: bool = False  # a row without a value is of no interest, instead of faulty
    observation: str | None = None
    exposure: str | None = None
    event: str | None = None
    codes: Codes | None = None
    flags: dict[Name, Filter] = {}
    refuse: dict[Literal["not_in_force", "value_absent"], Filter] = {}
    kind: Literal["dose", "rate", "treatment"] = "dose"
    value: Value | None = None
    time: Clock | None = None
    end: str | None = None
    duration: Duration | None = None
    available_at: str | None = None
    label: str | None = None
    patient: Attributes | None = None

    @model_validator(mode="after")
    def _consistent(self):
        if sum(x is not None for x in (self.observation, self.exposure, self.event, self.patient)) != 1:
            raise ValueError("give exactly one of `observation`, `exposure`, `event` and `patient`")
        if self.number is None and not (self.patient or self.event):
            raise ValueError("an observation or exposure needs `value`; a patient has none")
        if self.value and (self.patient or self.event):
            raise ValueError("a patient or an event has no `value`")
        if self.exposure is None:
            extra = [k for k in ("end", "duration", "label") if getattr(self, k) is not None and not self.event]
            if extra or "kind" in self.model_fields_set:
                raise ValueError(f"{', '.join(extra) or 'kind'} goes with an exposure only")
        if self.name_of_target == "*" and (self.codes is None or self.codes.system is None):
            raise ValueError("`*` needs `codes` with a `system`")
        if self.end is not None and self.duration is not None:
            raise ValueError("give at most one of `end` and `duration`")
        return self

    @property
    def plain(self) -> bool:
        """Whether rows are chosen by `when` and `unless` only, and none is flagged or refused."""
        identified = bool(self.patient and (self.patient.identifiers or self.patient.birth_date_format == "iso"))
        return not (self.codes or self.flags or self.refuse or self.event or identified or self.exposure and self.value is None)

    @property
    def number(self) -> Value | None:
        """The value; a treatment without one is in force: 1."""
        return self.value or (Value(constant=1, unit="1") if self.exposure and self.kind == "treatment" else None)

    @property
    def name_of_target(self) -> str:
        return self.observation or self.exposure or self.event or ""

    @property
    def columns(self) -> set[str]:
        """Columns the entry reads from a file, the clock's aside."""
        v, p, k = self.value, self.patient, self.codes
        named = [self.end, self.duration and self.duration.column, self.available_at, self.label]
        named += [v.column, v.unit_column] if v else []
        named += [p.sex, p.birth_date, p.birth_year, *p.identifiers.values()] if p else []
        named += [k.column, k.names] if k else []
        filters = (self.when, self.unless, *self.flags.values(), *self.refuse.values())
        return {c for c in named if c} | {c for f in filters for c in f} | set(self.present)


class Unpivot(Strict):
    """Wide rows become long: the cells of every column that `columns` matches are records, with what the pattern's group captures in the
    column `name` and the cell in the column `value`."""

    columns: Annotated[str, BeforeValidator(_pattern)]
    name: str
    value: str


class FileGroup(Strict):
    """Files of one layout. `missing` are the texts of an empty cell; `hide` are columns that quarantine must not keep; `device` is the
    column that names the device, which leaves the file under a pseudonym only."""

    name: Name
    glob: Texts
    format: Literal["csv", "json", "parquet", "xml", "fit"]
    element: Texts = ()  # of XML: the elements that are records
    unpivot: Unpivot | None = None
    delimiter: Annotated[str, Field(min_length=1, max_length=1)] = ","
    quote: Annotated[str, Field(min_length=1, max_length=1)] | None = '"'
    quoted_newlines: bool = False
    skip_rows: Annotated[int, Field(ge=0)] = 0
    header: tuple[str, ...] | None = None  # names of the columns where the file has no header row
    encoding: str = "utf-8"
    missing: Texts = ("",)
    hide: Texts = ()
    patient: PatientId
    device: str | None = None
    time: Clock | None = None
    entries: Annotated[tuple[Entry, ...], Field(min_length=1)]

    @field_validator("encoding")
    @classmethod
    def _known_encoding(cls, name):
        try:
            "".encode(name)
        except LookupError:
            raise ValueError(f"unknown encoding {name!r}") from None
        return name

    @model_validator(mode="after")
    def _complete(self):
        if (self.format == "xml") != bool(self.element):
            raise ValueError(f"files {self.name}: `element` goes with format xml, which needs it")
        names = [e.name for e in self.entries]
        if len(names) > 1 and (None in names or len(set(names)) < len(names)):
            raise ValueError(f"files {self.name}: several entries need different names")
        for entry in self.entries:
            if entry.patient is None and self.clock(entry) is None:
                raise ValueError(f"files {self.name}: `time` is missing")
        return self

    @property
    def hidden(self) -> set[str]:
        """Columns whose texts must not leave the file: those of `hide`, the device, and identifiers."""
        named = {c for e in self.entries if e.patient for c in e.patient.identifiers.values()}
        return {*self.hide, *([self.device] if self.device else []), *named} - {self.patient.column}

    def clock(self, entry: Entry) -> Clock | None:
        return None if entry.patient else entry.time or self.time

    def columns(self, entry: Entry) -> set[str]:
        """Every column that the entry reads."""
        return entry.columns | self._shared(entry) | ({self.device} if self.device and entry.observation else set())

    def required(self, entry: Entry) -> set[str]:
        """Columns without which a file cannot be read for the entry. Others may lack where no row of a file needs them."""
        if self.format in SPARSE:
            return set()
        made = {self.unpivot.name, self.unpivot.value} if self.unpivot else set()
        own = set() if entry.optional else set(entry.when) or entry.columns
        return (self._shared(entry) | own) - made - set(entry.present)

    def _shared(self, entry: Entry) -> set[str]:
        clock = self.clock(entry)
        times = {*clock.column, *([clock.offset_column] if clock.offset_column else [])} if clock else set()
        return times | ({self.patient.column} if self.patient.column else set())


SPARSE = ("json", "xml", "fit")  # formats in which a record may lack any field


class Mapping(Strict):
    """namespace: keeps patients of this export apart from others whose ids happen to be the same."""

    name: Name
    namespace: str = ""
    files: Annotated[tuple[FileGroup, ...], Field(min_length=1)]

    @model_validator(mode="after")
    def _different_names(self):
        names = [g.name for g in self.files]
        if len(set(names)) < len(names):
            raise ValueError("files: every group needs its own name")
        return self


def load_mapping(path: str | Path) -> Mapping:
    """The mapping in a YAML file. Raises ConfigError with every problem and its place."""
    return validate(Mapping, read_yaml(path), path)


def expanded(mapping: Mapping, vocabulary: Vocabulary, path: str) -> Mapping:
    """The mapping with an entry for each signal, agent or event in place of those for all ("*"). Raises ConfigError."""
    groups = [
        g.model_copy(update={"entries": tuple(x for e in g.entries for x in _by_code(e, vocabulary, f"{path}: files {g.name}"))})
        for g in mapping.files
    ]
    return mapping.model_copy(update={"files": tuple(groups)})


def _by_code(entry: Entry, vocabulary: Vocabulary, where: str) -> list[Entry]:
    if entry.name_of_target != "*":
        return [entry]
    target = "observation" if entry.observation else "exposure" if entry.exposure else "event"
    agents = {n: a for n, a in vocabulary.agents.items() if getattr(a, entry.kind)}
    known = {"observation": vocabulary.signals, "exposure": agents, "event": vocabulary.events}[target]
    codes = vocabulary.coded(known, entry.codes.system)
    words = vocabulary.coded(known, "names") if entry.codes.names else {}
    found = []
    for name in [n for n in known if n in codes or n in words]:
        values = tuple(p + c for p in entry.codes.prefix for c in codes.get(name, ()))
        chosen = entry.codes.model_copy(update={"values": values, "words": words.get(name, ()), "below": entry.codes.system in HIERARCHIES})
        change: dict = {target: name, "codes": chosen}
        if entry.value and entry.value.unit == "canonical":
            change["value"] = entry.value.model_copy(update={"unit": known[name].unit})
        found.append(entry.model_copy(update=change))
    if not found:
        raise ConfigError(f"{where}: the vocabulary has no {entry.codes.system} codes for any {target}")
    return found
