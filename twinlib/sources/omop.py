"""OMOP CDM 5.3 and 5.4, as CSV or Parquet files: person, measurement, observation, drugs, conditions, visits, death.

A row is about the signal, agent or event that its concept id stands for. Where the vocabulary tables (CONCEPT, CONCEPT_ANCESTOR) lie
beside the data, the codes of our vocabulary find their concepts there, and drugs and conditions all concepts below theirs. Where the
concept tells nothing, the source's own code counts (flag `source_code`), and for drugs and conditions a name (flag `by_name`).

OMOP keeps dates, and instants where they are known: midnight is read as "some time that day". It has no instant at which a row became
known; `available_at` is the time itself, or the end of the day.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

import duckdb
import pyarrow as pa
import pyarrow.dataset as ds
from pyarrow import csv

from twinlib.config import SourceConfig
from twinlib.errors import DataError
from twinlib.fusion.vocabulary import Vocabulary
from twinlib.sources.codes import FOUND, code_tables
from twinlib.sources.ehr import EhrSource, Table
from twinlib.sources.files import File, filesystem, find
from twinlib.sources.mapping import Attributes, Clock, Entry, FileGroup, PatientId, Value
from twinlib.sources.records import Meaning

_VOCABULARIES = {"LOINC": "loinc", "SNOMED": "snomed", "RxNorm": "rxnorm", "ICD10CM": "icd10", "ICD10": "icd10", "ICD9CM": "icd9", "ATC": "atc"}
_BELOW_CODE = {"icd10": r"[\w.]{0,6}", "icd9": r"[\d.]{0,3}", "atc": r"\w{0,5}"}  # a code stands for those below it
_LIMITS = {"<": "below_limit", "<=": "below_limit", ">": "above_limit", ">=": "above_limit"}
_OPERATORS = {"4171756": "<", "4171754": "<=", "4172704": ">", "4171755": ">="}
_SEXES = {"8507": "male", "8532": "female", "8521": "other", "8551": "unknown"}


def _time(table: str, which: str = "") -> str:
    """A date, or an instant where one is stated: `<table>_<which>datetime` other than midnight, or a time of day beside the date."""
    day, instant = f"{table}_{which}date", f"{table}_{which}datetime"
    clock = "WHEN regexp_matches(measurement_time, '^[012]\\d:\\d\\d(:\\d\\d)?$') THEN left(measurement_date, 10) || ' ' || measurement_time"
    return f"""CASE WHEN {instant} IS NOT NULL AND NOT regexp_matches({instant}, '[T ]00:00(:00(\\.0*)?)?$') THEN {instant}
      {clock if table == "measurement" else ""} ELSE coalesce(left({day}, 10), left({instant}, 10)) END"""


def _codings(concept: str, source: str, text: str) -> str:
    return f"""[{{'system': 'omop', 'code': whole({concept}), 'loose': false}},
      {{'system': 'omop', 'code': nullif(whole({source}), '0'), 'loose': true}},
      {{'system': NULL, 'code': whole({text}), 'loose': true}}]"""


def _measured(table: str) -> str:
    operator = "operator_concept_id" if table == "measurement" else "NULL"
    return f"""
WITH parts AS (
  SELECT n, 0 AS part, {_codings(f"{table}_concept_id", f"{table}_source_concept_id", f"{table}_source_value")} AS codings,
    NULL::VARCHAR AS words FROM raw
), {FOUND}
SELECT f.n, f.entry, person_id AS patient, value_as_number AS value,
  coalesce(u.unit, unit_source_value) AS unit,
  {_time(table)} AS time, o.flag AS operator,
  flags(f.flag, o.flag, CASE WHEN u.unit IS NULL AND unit_source_value IS NOT NULL THEN 'source_unit' END, NULL) AS flags
FROM found f JOIN raw r ON f.n = r.n
LEFT JOIN units u ON whole(r.unit_concept_id) = u.concept_id LEFT JOIN operators o ON whole({operator}) = o.concept_id"""


_DRUGS = f"""
WITH parts AS (
  SELECT n, 0 AS part, {_codings("drug_concept_id", "drug_source_concept_id", "drug_source_value")} AS codings,
    concat_ws(' ', c.name, drug_source_value) AS words FROM raw LEFT JOIN concept_names c ON whole(raw.drug_concept_id) = c.concept_id
), {FOUND}
SELECT f.n, f.entry, person_id AS patient, {_time("drug_exposure", "start_")} AS time,
  coalesce({_time("drug_exposure", "end_")}, verbatim_end_date) AS end,
  CASE WHEN {_time("drug_exposure", "end_")} IS NULL AND verbatim_end_date IS NULL THEN days_supply END AS duration,
  coalesce(c.name, drug_source_value) AS label, '1' AS value, f.flag AS flags
FROM found f JOIN raw r ON f.n = r.n LEFT JOIN concept_names c ON whole(r.drug_concept_id) = c.concept_id"""

_CONDITIONS = f"""
WITH parts AS (
  SELECT n, 0 AS part, {_codings("condition_concept_id", "condition_source_concept_id", "condition_source_value")} AS codings,
    NULL::VARCHAR AS words FROM raw
), {FOUND}
SELECT f.n, f.entry, person_id AS patient, {_time("condition", "start_")} AS time, {_time("condition", "end_")} AS end,
  whole(condition_source_value) AS label, f.flag AS flags
FROM found f JOIN raw r ON f.n = r.n"""

_VISITS = f"""
WITH parts AS (
  SELECT n, 0 AS part, [{{'system': 'omop', 'code': whole(visit_concept_id), 'loose': false}},
    {{'system': NULL, 'code': visit_source_value, 'loose': true}}] AS codings, NULL::VARCHAR AS words FROM raw
), {FOUND}
SELECT f.n, f.entry, person_id AS patient, {_time("visit", "start_")} AS time, {_time("visit", "end_")} AS end, f.flag AS flags
FROM found f JOIN raw r ON f.n = r.n"""

_PERSONS = """
SELECT n, 0 AS entry, person_id AS patient, coalesce(s.sex, gender_source_value) AS sex,
  CASE WHEN year_of_birth IS NULL THEN left(birth_datetime, 10)
       WHEN month_of_birth IS NULL THEN whole(year_of_birth) || '-07-01'
       ELSE whole(year_of_birth) || '-' || lpad(whole(month_of_birth), 2, '0') || '-' || lpad(coalesce(whole(day_of_birth), '15'), 2, '0')
  END AS birth_date,
  [{'system': (SELECT system FROM identified), 'value': person_source_value}] AS identifiers
FROM raw LEFT JOIN sexes s ON whole(gender_concept_id) = s.concept_id"""

_DEATHS = f"SELECT n, 0 AS entry, person_id AS patient, {_time('death')} AS time FROM raw"

_MASKS = "SELECT n, json_merge_patch(record, json_object('person_id', patient_id))::VARCHAR AS text FROM rows"


@dataclass(frozen=True)
class _Kind:
    """A table of the CDM. items: what its rows can be about. required: columns without which no row can be read."""

    query: str
    items: str  # signals, treatments, conditions, visits, person, death
    required: tuple[str, ...]
    columns: tuple[str, ...]


def _kind(query: str, items: str, required: str, others: str) -> _Kind:
    return _Kind(query, items, ("person_id", *required.split()), ("person_id", *required.split(), *others.split()))


_TABLES = {
    "person": _kind(
        _PERSONS, "person", "gender_concept_id year_of_birth",
        "month_of_birth day_of_birth birth_datetime gender_source_value person_source_value",
    ),
    **{
        t: _kind(
            _measured(t), "signals", f"{t}_concept_id {t}_date value_as_number",
            f"{t}_datetime {t}_source_concept_id {t}_source_value unit_concept_id unit_source_value operator_concept_id measurement_time",
        )
        for t in ("measurement", "observation")
    },
    "drug_exposure": _kind(
        _DRUGS, "treatments", "drug_concept_id drug_exposure_start_date",
        "drug_exposure_start_datetime drug_exposure_end_date drug_exposure_end_datetime verbatim_end_date days_supply "
        "drug_source_concept_id drug_source_value",
    ),
    "condition_occurrence": _kind(
        _CONDITIONS, "conditions", "condition_concept_id condition_start_date",
        "condition_start_datetime condition_end_date condition_end_datetime condition_source_concept_id condition_source_value",
    ),
    "visit_occurrence": _kind(
        _VISITS, "visits", "visit_concept_id visit_start_date",
        "visit_start_datetime visit_end_date visit_end_datetime visit_source_value",
    ),
    "death": _kind(_DEATHS, "death", "death_date", "death_datetime"),
}  # fmt: skip
_VOCABULARY_TABLES = ("concept", "concept_ancestor")
_SCANNED = ("concept_id", "concept_name", "domain_id", "vocabulary_id", "concept_code", "ancestor_concept_id", "descendant_concept_id")


def omop_source(config: SourceConfig, vocabulary: Vocabulary) -> EhrSource:
    """The source. Raises DataError where the folder cannot be listed or holds no table of the CDM."""
    name, found = config.name or config.kind, find(config.root)
    files = {t: tuple(f for f in found if _holds(f, t)) for t in (*_TABLES, *_VOCABULARY_TABLES)}
    if not any(files[t] for t in _TABLES):
        raise DataError(f"{config.root}: no table of an OMOP CDM; expected files such as person.csv or measurement.parquet")
    concepts = _Concepts.read(config.root, files, vocabulary)
    formats = ("iso", "yyyy-MM-dd", "yyyyMMdd")
    clock = Clock(column="time", formats=formats, zone=config.zone)
    tables, meanings = [], []
    for table, kind in _TABLES.items():
        if not files[table]:
            continue
        own, source = len(meanings), f"{name}.{table}"
        where = f"{config.root}: {table}"
        meanings.append(Meaning(source, source, where, "none"))
        items = _items(kind.items, vocabulary)
        base = len(meanings)
        meanings += [_meaning(kind.items, item, source, where, clock) for item in items]
        codes = code_tables([(base + k, item) for k, item in enumerate(items)], vocabulary, concepts.ids)
        query = kind.query.replace("0 AS entry", f"{base} AS entry")
        tables += [
            Table(
                name=table, group=_group(table, some, config.root), files=some, own=own, codes=codes, query=query, masks=_MASKS,
                columns=kind.columns, required=kind.required, hidden=("person_id", "person_source_value"), extra=concepts.tables(vocabulary, config.identifier_system),
            )
            for some in _layouts(files[table], config.root)
        ]  # fmt: skip
    beside = tuple(f for t in _VOCABULARY_TABLES for f in files[t])
    return EhrSource(name, config.root, config.namespace, tuple(tables), tuple(meanings), config.model_dump_json(), beside)


def _holds(file: File, table: str) -> bool:
    """measurement.csv, MEASUREMENT.csv.gz, measurement.parquet, measurement/part-0.parquet, 2_measurement.tsv …"""
    name = rf"(?:.*/)?(?:[a-z0-9]+_)?{table}(?:[-.]\d+)?(?:/[^/]+)?\.(?:csv|tsv|txt|parquet)(?:\.gz|\.bz2|\.zst)?"
    prefixed = rf"(?:.*/)?(?:source|fact|drug|dose|condition)_{table}\b.*"  # other tables whose names end alike
    return bool(re.fullmatch(name, file.relative, re.I)) and not re.fullmatch(prefixed, file.relative, re.I)


def _layouts(files: tuple[File, ...], root: str) -> list[tuple[File, ...]]:
    """Files of one format and delimiter each; tables are usually one."""
    system, _ = filesystem(root)
    groups: dict[str, list[File]] = {}
    for file in files:
        groups.setdefault("parquet" if ".parquet" in file.relative.lower() else _delimiter(system, file), []).append(file)
    return [tuple(g) for g in groups.values()]


def _delimiter(system, file: File) -> str:
    with system.open_input_stream(file.path) as stream:
        head = stream.read(4096).split(b"\n", 1)[0].decode("utf-8", "replace")
    return max(",", "\t", ";", "|", key=head.count)


def _group(table: str, files: tuple[File, ...], root: str) -> FileGroup:
    parquet = ".parquet" in files[0].relative.lower()
    layout = {} if parquet else {"delimiter": _delimiter(filesystem(root)[0], files[0])}
    return FileGroup(
        name=table, glob=tuple(f.relative for f in files), format="parquet" if parquet else "csv", **layout,
        patient=PatientId(column="person_id"), entries=(Entry(patient=Attributes()),),
    )  # fmt: skip


def _items(kind: str, vocabulary: Vocabulary) -> list[str]:
    """Names of what the rows of a table can be about."""
    visits = [n for n in vocabulary.events if n.startswith("visit_")]
    return {
        "signals": list(vocabulary.signals),
        "treatments": [n for n, a in vocabulary.agents.items() if a.treatment],
        "conditions": [n for n in vocabulary.events if n not in visits and n != "death"],
        "visits": visits,
        "person": ["person"],
        "death": ["death"],
    }[kind]


def _meaning(kind: str, item: str, source: str, where: str, clock: Clock) -> Meaning:
    if kind == "person":
        return Meaning(source, source, where, "patient", attributes=Attributes(sex="gender_concept_id", birth_date="birth_date"))
    if kind == "signals":
        value = Value(column="value_as_number", unit_column="unit")
        return Meaning(source, source, where, "observation", item, clock=clock, value=value)
    if kind == "treatments":
        value = Value(constant=1, unit="1")
        return Meaning(
            source, source, where, "exposure", item, "treatment", clock=clock, value=value, duration_seconds=86400, has_end=True
        )
    return Meaning(source, source, where, "event", item, clock=clock, has_end=kind != "death")


@dataclass(frozen=True)
class _Concepts:
    """What the vocabulary tables beside the data tell. ids: name -> concept ids; names, units: concept id -> text."""

    ids: dict[str, tuple[str, ...]]
    names: dict[str, str]
    units: dict[str, str]

    @classmethod
    def read(cls, root: str, files: dict[str, tuple[File, ...]], vocabulary: Vocabulary) -> _Concepts:
        if not files["concept"]:
            return cls({}, {}, {})
        with duckdb.connect() as db:
            for table in _VOCABULARY_TABLES:
                if files[table]:
                    db.register(table, _scan(root, files[table]))
            known = {v: k for k, v in _VOCABULARIES.items()}
            listed = [
                {"name": name, "vocabulary": v, "pattern": rf"{re.escape(code)}{_BELOW_CODE.get(system, '')}"}
                for name, systems in vocabulary.codes.items()
                for system, codes in systems.items()
                if system in known
                for v in (v for v, s in _VOCABULARIES.items() if s == system)
                for code in codes
            ]
            db.register("listed", pa.Table.from_pylist(listed))
            ids = db.sql("""
                SELECT DISTINCT l.name, c.concept_id::VARCHAR AS id, c.domain_id AS domain FROM concept c
                JOIN listed l ON c.vocabulary_id = l.vocabulary AND regexp_full_match(c.concept_code, l.pattern)
            """).fetchall()
            found = {(name, i) for name, i, _ in ids} | {(n, i) for n, s in vocabulary.codes.items() for i in s.get("omop", ())}
            if files["concept_ancestor"]:
                above = [{"name": n, "id": i} for n, i in sorted(found) if n not in vocabulary.signals]
                db.register("above", pa.Table.from_pylist(above))
                found |= set(db.sql("""
                    SELECT DISTINCT a.name, c.descendant_concept_id::VARCHAR FROM concept_ancestor c
                    JOIN above a ON c.ancestor_concept_id::VARCHAR = a.id
                """).fetchall())
            words = "|".join(re.escape(w) for s in vocabulary.codes.values() for w in s.get("names", ()))
            names = db.execute(
                r"SELECT concept_id::VARCHAR, concept_name FROM concept WHERE domain_id = 'Drug' AND regexp_matches(concept_name, ?, 'i')",
                [rf"\b({words})\b"],
            ).fetchall()
            units = db.sql("SELECT concept_id::VARCHAR, concept_code FROM concept WHERE vocabulary_id = 'UCUM'").fetchall()
        by_name: dict[str, list[str]] = {}
        for name, concept in sorted(found):
            by_name.setdefault(name, []).append(concept)
        return cls({n: tuple(i) for n, i in by_name.items()}, dict(names), dict(units))

    def tables(self, vocabulary: Vocabulary, identifier_system: str | None) -> tuple[tuple[str, pa.Table], ...]:
        """The small tables that the queries join with."""
        units = {**{str(k): v for k, v in vocabulary.omop_units.items()}, **self.units}
        flags = {k: _LIMITS[v] for k, v in _OPERATORS.items()}
        two = lambda pairs, value: pa.table(  # noqa: E731
            {"concept_id": pa.array(pairs.keys(), pa.string()), value: pa.array(pairs.values(), pa.string())}
        )
        return (
            ("units", two(units, "unit")),
            ("operators", two(flags, "flag")),
            ("sexes", two(_SEXES, "sex")),
            ("concept_names", two(self.names, "name")),
            ("identified", pa.table({"system": pa.array([identifier_system], pa.string())})),
        )


def _scan(root: str, files: tuple[File, ...]) -> ds.Dataset:
    """A vocabulary table; as Athena exports it, tab-delimited text without quotations."""
    system, _ = filesystem(root)
    paths = [f.path for f in files]
    if ".parquet" in files[0].relative.lower():
        return ds.dataset(paths, filesystem=system, format="parquet")
    delimiter = _delimiter(system, files[0])
    parse = csv.ParseOptions(delimiter=delimiter, quote_char=False if delimiter == "\t" else '"')
    text = csv.ConvertOptions(column_types={c: pa.string() for name in _SCANNED for c in (name, name.upper())})
    return ds.dataset(paths, filesystem=system, format=ds.CsvFileFormat(parse_options=parse, convert_options=text))
