"""FHIR R4 bulk exports (NDJSON): Patient, Observation with components, medications, Condition, Encounter.

A resource is about the signal, agent or event that one of its codings stands for. A coding without a system counts where no other is known
(flag `source_code`); drugs without a known code are found by the name of the ingredient (flag `by_name`). Components of an observation
are records of their own. Medications are looked up where they are referred to: in `contained`, or in the export's Medication files.
`available_at` is when the resource says it was issued, recorded or written. Resources that do not hold (entered in error, cancelled,
not done, refuted, planned) are refused, as are values with a `dataAbsentReason`. Codes that the vocabulary does not know are ignored.
"""

from __future__ import annotations

import json
import re
from dataclasses import dataclass

import duckdb
import pyarrow as pa

from twinlib.config import SourceConfig
from twinlib.errors import DataError
from twinlib.fusion.vocabulary import Vocabulary
from twinlib.sources.codes import FOUND, MACROS, code_tables
from twinlib.sources.ehr import EhrSource, Table
from twinlib.sources.files import File, filesystem, find
from twinlib.sources.mapping import Attributes, Clock, Entry, FileGroup, PatientId, Value
from twinlib.sources.readers import read
from twinlib.sources.records import Meaning

_TEXT = "VARCHAR"
_CODING = {"system": _TEXT, "code": _TEXT, "display": _TEXT}
_CONCEPT = {"coding": [_CODING], "text": _TEXT}
_QUANTITY = {"value": _TEXT, "comparator": _TEXT, "unit": _TEXT, "code": _TEXT}
_PERIOD = {"start": _TEXT, "end": _TEXT}
_REFERENCE = {"reference": _TEXT, "display": _TEXT}
_ANY = {"resourceType": _TEXT, "id": _TEXT, "status": _TEXT, "subject": _REFERENCE}
_VALUE = {"valueQuantity": _QUANTITY, "valueInteger": _TEXT, "valueString": _TEXT, "dataAbsentReason": _CONCEPT}
_OBSERVATION = _ANY | _VALUE | {
    "code": _CONCEPT, "effectiveDateTime": _TEXT, "effectiveInstant": _TEXT, "effectivePeriod": _PERIOD, "issued": _TEXT,
    "component": [{"code": _CONCEPT} | _VALUE],
}  # fmt: skip
_MEDICATION = {
    "medicationCodeableConcept": _CONCEPT, "medicationReference": _REFERENCE,
    "contained": [{"resourceType": _TEXT, "id": _TEXT, "code": _CONCEPT}],
}  # fmt: skip
_REQUEST = _ANY | _MEDICATION | {
    "intent": _TEXT, "doNotPerform": _TEXT, "authoredOn": _TEXT,
    "dosageInstruction": [{"timing": {"repeat": {"boundsPeriod": _PERIOD}}}],
    "dispenseRequest": {"validityPeriod": _PERIOD, "numberOfRepeatsAllowed": _TEXT, "expectedSupplyDuration": _QUANTITY},
}  # fmt: skip
_STATEMENT = _ANY | _MEDICATION | {"effectiveDateTime": _TEXT, "effectivePeriod": _PERIOD, "dateAsserted": _TEXT}
_ADMINISTRATION = _ANY | _MEDICATION | {
    "effectiveDateTime": _TEXT, "effectivePeriod": _PERIOD, "dosage": {"dose": _QUANTITY, "rateQuantity": _QUANTITY},
}  # fmt: skip
_CONDITION = _ANY | {
    "code": _CONCEPT, "verificationStatus": _CONCEPT, "onsetDateTime": _TEXT, "onsetPeriod": _PERIOD, "recordedDate": _TEXT,
    "abatementDateTime": _TEXT, "abatementPeriod": _PERIOD,
}  # fmt: skip
_ENCOUNTER = _ANY | {"class": _CODING, "type": [_CONCEPT], "period": _PERIOD}
_PATIENT = {
    "resourceType": _TEXT, "id": _TEXT, "gender": _TEXT, "birthDate": _TEXT, "deceasedDateTime": _TEXT,
    "identifier": [{"system": _TEXT, "value": _TEXT}],
}  # fmt: skip

_MACROS = (
    *MACROS,
    # the patient that a reference names: Patient/1, https://server/fhir/Patient/1/_history/2, urn:uuid:1
    r"""CREATE OR REPLACE MACRO patient(r) AS nullif(coalesce(
      nullif(regexp_extract(r, '(?:^|/)Patient/([^/?#|]+)', 1), ''), regexp_extract(r, '^urn:uuid:(.+)$', 1)), '')""",
    "CREATE OR REPLACE MACRO codings(c) AS list_transform(c.coding, lambda x: {'system': clean(x.system), 'code': x.code, 'loose': false})",
    "CREATE OR REPLACE MACRO naming(c) AS clean(concat_ws(' ', array_to_string(list_transform(c.coding, lambda x: x.display), ' '), c.text))",
    "CREATE OR REPLACE MACRO label(c) AS clean(coalesce(c.text, c.coding[1].display, c.coding[1].code))",
    "CREATE OR REPLACE MACRO unit(q) AS clean(coalesce(clean(q.code), q.unit))",
    # minutes by which the text's own zone is ahead of UTC; +00:00 and Z are how servers write any time
    r"""CREATE OR REPLACE MACRO ahead(t) AS CASE WHEN regexp_matches(t, ':\d\d(\.\d+)?[+-]\d\d:\d\d$') AND right(t, 5) <> '00:00'
      THEN (CASE WHEN left(right(t, 6), 1) = '-' THEN -1 ELSE 1 END * (left(right(t, 5), 2)::INT * 60 + right(t, 2)::INT))::VARCHAR END""",
    """CREATE OR REPLACE MACRO days(q) AS TRY_CAST(q.value AS DOUBLE) * CASE coalesce(q.code, q.unit)
      WHEN 'd' THEN 1 WHEN 'day' THEN 1 WHEN 'days' THEN 1 WHEN 'wk' THEN 7 WHEN 'mo' THEN 30.4375 WHEN 'a' THEN 365.25 WHEN 'h' THEN 1 / 24 END""",
    "CREATE OR REPLACE MACRO void(s, words) AS CASE WHEN list_contains(words, s) THEN 'not_in_force' END",
    "CREATE OR REPLACE MACRO limited(c) AS CASE c WHEN '<' THEN 'below_limit' WHEN '<=' THEN 'below_limit' WHEN '>' THEN 'above_limit' WHEN '>=' THEN 'above_limit' END",
)


def _parsed(schema: dict, resource: str) -> str:
    text = json.dumps(schema).replace("'", "''")
    return f"j AS (SELECT n, j FROM (SELECT n, from_json(r, '{text}') AS j FROM raw) WHERE j.resourceType = '{resource}')"


_OBSERVATIONS = f"""
WITH {_parsed(_OBSERVATION, "Observation")},
whole AS (
  SELECT n, 0 AS part, j, j.code AS code, j.valueQuantity AS q, coalesce(j.valueQuantity.value, j.valueInteger, j.valueString) AS value,
    j.dataAbsentReason AS absent FROM j
  UNION ALL
  SELECT n, part, j, c.code, c.valueQuantity, coalesce(c.valueQuantity.value, c.valueInteger, c.valueString), c.dataAbsentReason
  FROM (SELECT n, j, unnest(j.component) AS c, generate_subscripts(j.component, 1) AS part FROM j)
),
parts AS (SELECT n, part, codings(code) AS codings, NULL::VARCHAR AS words FROM whole), {FOUND},
records AS (
  SELECT w.*, f.entry, f.flag, coalesce(j.effectiveDateTime, j.effectiveInstant, j.effectivePeriod.start, j.effectivePeriod.end) AS time
  FROM found f JOIN whole w ON f.n = w.n AND f.part = w.part
)
SELECT n, entry, patient(j.subject.reference) AS patient, j.subject.display AS display, time, ahead(time) AS "offset",
  j.issued AS available, clean(value) AS value, unit(q) AS unit,
  coalesce(void(j.status, ['entered-in-error', 'cancelled']), CASE WHEN absent IS NOT NULL AND value IS NULL THEN 'value_absent' END) AS fault,
  CASE WHEN list_contains(['entered-in-error', 'cancelled'], j.status) THEN 'status ' || j.status
       WHEN absent IS NOT NULL AND value IS NULL THEN 'absent: ' || coalesce(label(absent), 'no reason') END AS detail,
  flags(flag, limited(q.comparator), CASE j.status WHEN 'amended' THEN 'amended' WHEN 'corrected' THEN 'amended'
    WHEN 'preliminary' THEN 'preliminary' END, NULL) AS flags
FROM records"""


def _medication(schema: dict, resource: str, extra: str, time: str, end: str, void: str) -> str:
    """Query over a medication resource; `extra`: further columns, time and end: expressions, void: statuses that do not hold."""
    return f"""
WITH {_parsed(schema, resource)},
whole AS (
  SELECT n, j, coalesce(j.medicationCodeableConcept,
    list_filter(j.contained, lambda x: '#' || x.id = j.medicationReference.reference)[1].code, m.code) AS code
  FROM j LEFT JOIN medications m ON m.id = regexp_extract(j.medicationReference.reference, '(?:^|/)Medication/([^/?#|]+)', 1)
),
parts AS (SELECT n, 0 AS part, codings(code) AS codings, naming(code) AS words FROM whole), {FOUND},
records AS (SELECT w.*, f.entry, f.flag, {time} AS time, {end} AS "end" FROM found f JOIN whole w ON f.n = w.n),
kinds AS (SELECT r.*, k.kind FROM records r JOIN kinds_of k ON r.entry = k.entry)
SELECT n, entry, patient(j.subject.reference) AS patient, j.subject.display AS display, time, ahead(time) AS "offset", "end",
  label(code) AS label, {void} AS fault, CASE WHEN {void} IS NOT NULL THEN 'status ' || j.status END AS detail, {extra}
FROM kinds"""


_SUPPLY = "days(j.dispenseRequest.expectedSupplyDuration) * (1 + coalesce(TRY_CAST(j.dispenseRequest.numberOfRepeatsAllowed AS INT), 0))"
_REQUESTS = _medication(
    _REQUEST, "MedicationRequest",
    f"""'1' AS value, CASE WHEN "end" IS NULL THEN ({_SUPPLY})::VARCHAR END AS duration, j.authoredOn AS available,
    flags(flag, CASE WHEN "end" IS NULL AND {_SUPPLY} IS NULL THEN 'no_end' END, NULL, NULL) AS flags""",
    "coalesce(j.dosageInstruction[1].timing.repeat.boundsPeriod.start, j.authoredOn)",
    "coalesce(j.dosageInstruction[1].timing.repeat.boundsPeriod.end, j.dispenseRequest.validityPeriod.end)",
    """CASE WHEN j.status IN ('entered-in-error', 'cancelled', 'draft') OR j.doNotPerform = 'true' OR j.intent IN ('proposal', 'plan', 'option')
      THEN 'not_in_force' END""",
)  # fmt: skip
_STATEMENTS = _medication(
    _STATEMENT, "MedicationStatement",
    """'1' AS value, j.dateAsserted AS available, flags(flag, CASE WHEN "end" IS NULL THEN 'no_end' END, NULL, NULL) AS flags""",
    "coalesce(j.effectivePeriod.start, j.effectiveDateTime)", "j.effectivePeriod.end",
    "void(j.status, ['entered-in-error', 'not-taken', 'intended'])",
)  # fmt: skip
# a dose where one is stated; one administration keeps a treatment in force for a day
_ADMINISTRATIONS = _medication(
    _ADMINISTRATION, "MedicationAdministration",
    """CASE WHEN kind = 'treatment' AND "end" IS NULL THEN '1' END AS duration,
    CASE kind WHEN 'dose' THEN clean(j.dosage.dose.value) WHEN 'rate' THEN clean(j.dosage.rateQuantity.value) ELSE '1' END AS value,
    CASE kind WHEN 'dose' THEN unit(j.dosage.dose) WHEN 'rate' THEN unit(j.dosage.rateQuantity) END AS unit,
    flags(flag, CASE WHEN kind = 'treatment' AND "end" IS NULL THEN 'assumed_end' END, NULL, NULL) AS flags""",
    "coalesce(j.effectivePeriod.start, j.effectiveDateTime)", "j.effectivePeriod.end",
    "void(j.status, ['entered-in-error', 'not-done', 'stopped', 'on-hold'])",
) + " WHERE kind = 'treatment' OR kind = 'dose' AND j.dosage.dose.value IS NOT NULL OR kind = 'rate' AND j.dosage.rateQuantity.value IS NOT NULL"

_CONDITIONS = f"""
WITH {_parsed(_CONDITION, "Condition")},
parts AS (SELECT n, 0 AS part, codings(j.code) AS codings, naming(j.code) AS words FROM j), {FOUND},
records AS (
  SELECT f.n, f.entry, f.flag, j, coalesce(j.onsetDateTime, j.onsetPeriod.start) AS onset, j.verificationStatus.coding[1].code AS status
  FROM found f JOIN j ON f.n = j.n
)
SELECT n, entry, patient(j.subject.reference) AS patient, j.subject.display AS display, coalesce(onset, j.recordedDate) AS time,
  ahead(coalesce(onset, j.recordedDate)) AS "offset", coalesce(j.abatementDateTime, j.abatementPeriod.end) AS "end",
  j.recordedDate AS available, label(j.code) AS label, void(status, ['entered-in-error', 'refuted']) AS fault,
  CASE WHEN status IN ('entered-in-error', 'refuted') THEN 'verification status ' || status END AS detail,
  flags(flag, CASE WHEN onset IS NULL THEN 'onset_unknown' END,
    CASE WHEN status IN ('unconfirmed', 'provisional', 'differential') THEN 'unconfirmed' END, NULL) AS flags
FROM records"""

_ENCOUNTERS = f"""
WITH {_parsed(_ENCOUNTER, "Encounter")},
parts AS (
  SELECT n, 0 AS part, [{{'system': clean(j.class.system), 'code': j.class.code, 'loose': false}}] AS codings, NULL::VARCHAR AS words FROM j
), {FOUND}
SELECT f.n, f.entry, patient(j.subject.reference) AS patient, j.subject.display AS display, j.period.start AS time,
  ahead(j.period.start) AS "offset", j.period.end AS "end", label(j.type[1]) AS label,
  void(j.status, ['entered-in-error', 'cancelled', 'planned']) AS fault,
  CASE WHEN j.status IN ('entered-in-error', 'cancelled', 'planned') THEN 'status ' || j.status END AS detail, f.flag AS flags
FROM found f JOIN j ON f.n = j.n"""

_PATIENTS = f"""
WITH {_parsed(_PATIENT, "Patient")}
SELECT n, entry AS entry, j.id AS patient, CASE WHEN kind = 'person' THEN j.gender END AS sex,
  CASE WHEN kind = 'person' THEN CASE length(j.birthDate) WHEN 4 THEN j.birthDate || '-07-01' WHEN 7 THEN j.birthDate || '-15' ELSE j.birthDate END
  END AS birth_date,
  CASE WHEN kind = 'person' THEN list_filter(j.identifier, lambda x: x.value IS NOT NULL) END AS identifiers,
  CASE WHEN kind = 'death' THEN j.deceasedDateTime END AS time, CASE WHEN kind = 'death' THEN ahead(j.deceasedDateTime) END AS "offset"
FROM j, kinds_of WHERE kind = 'person' OR j.deceasedDateTime IS NOT NULL"""

_PATIENT_MASKS = """SELECT n, json_object('resourceType', 'Patient', 'id', patient_id, 'gender', record -> '$.gender',
  'birthDate', record -> '$.birthDate', 'deceasedDateTime', record -> '$.deceasedDateTime')::VARCHAR AS text FROM rows"""

# the patient's reference under the pseudonym; the patient's name and free text, which may hold it, are left out
_MASKS = """SELECT n, coalesce(replace(t, trim(to_json(display)::VARCHAR, '"'), '(hidden)'), t) AS text FROM (
  SELECT n, display, json_merge_patch(
    coalesce(replace(replace(record, 'Patient/' || raw, 'Patient/' || patient_id), 'urn:uuid:' || raw, 'urn:uuid:' || patient_id), record),
    json_object('subject', json_object('reference', CASE WHEN raw IS NOT NULL THEN 'Patient/' || patient_id ELSE '(hidden)' END,
      'display', NULL, 'identifier', NULL), 'text', NULL, 'note', NULL)
  )::VARCHAR AS t FROM (
    SELECT n, raw, patient_id, display, CASE WHEN list_contains(json_extract_string(record, '$.contained[*].resourceType'), 'Patient')
      THEN json_merge_patch(record, '{"contained": null}')::VARCHAR ELSE record END AS record FROM rows
  ))"""


@dataclass(frozen=True)
class _Kind:
    """A resource. kinds: what its records can be: observation, treatment, dose, rate, condition, visit, person, death."""

    query: str
    kinds: tuple[str, ...]
    masks: str = _MASKS


_RESOURCES = {
    "Patient": _Kind(_PATIENTS, ("person", "death"), _PATIENT_MASKS),
    "Observation": _Kind(_OBSERVATIONS, ("observation",)),
    "MedicationRequest": _Kind(_REQUESTS, ("treatment",)),
    "MedicationStatement": _Kind(_STATEMENTS, ("treatment",)),
    "MedicationAdministration": _Kind(_ADMINISTRATIONS, ("treatment", "dose", "rate")),
    "Condition": _Kind(_CONDITIONS, ("condition",)),
    "Encounter": _Kind(_ENCOUNTERS, ("visit",)),
}


def fhir_source(config: SourceConfig, vocabulary: Vocabulary) -> EhrSource:
    """The source. Raises DataError where the folder cannot be listed or holds no resource that is read."""
    name, found = config.name or config.kind, find(config.root)
    files: dict[str, tuple[File, ...]] = dict.fromkeys((*_RESOURCES, "Medication"), ())
    for file in found:
        resource = _resource(config.root, file, tuple(files))
        files[resource] = (*files.get(resource, ()), file)
    if not any(files[r] for r in _RESOURCES):
        raise DataError(f"{config.root}: no FHIR resources; expected files such as Patient.ndjson or Observation.000.ndjson")
    clock = Clock(column="time", formats=("iso", "yyyy-MM-dd"), zone=config.zone, offset_column="offset")
    loose = clock.model_copy(update={"formats": ("iso", "yyyy-MM-dd", "yyyy-MM", "yyyy")})  # onsets are often known by month or year
    medications = _medications(config.root, files["Medication"])
    tables, meanings = [], []
    for resource, kind in _RESOURCES.items():
        if not files[resource]:
            continue
        snake = re.sub(r"(?<!^)(?=[A-Z])", "_", resource).lower()
        own, source, where = len(meanings), f"{name}.{snake}", f"{config.root}: {resource}"
        meanings.append(Meaning(source, source, where, "none"))
        items = [(k, item) for k in kind.kinds for item in _items(k, vocabulary)]
        numbered = [(own + 1 + k, *item) for k, item in enumerate(items)]
        meanings += [_meaning(k, item, source, where, clock, loose) for k, item in items]
        kinds = pa.table({"entry": pa.array([n for n, *_ in numbered], pa.int32()), "kind": pa.array([k for _, k, _ in numbered], pa.string())})
        tables.append(
            Table(
                name=resource, group=_group(snake, files[resource]), files=files[resource], own=own,
                codes=code_tables([(n, item) for n, _, item in numbered], vocabulary, {}), query=kind.query, masks=kind.masks,
                macros=_MACROS, extra=(("kinds_of", kinds), ("medications", medications)),
            )
        )  # fmt: skip
    return EhrSource(name, config.root, config.namespace, tuple(tables), tuple(meanings), config.model_dump_json(), files["Medication"])


def _resource(root: str, file: File, known: tuple[str, ...]) -> str | None:
    """The kind of resource that a file holds: by its name (Patient.000.ndjson, Patient/part-0.ndjson.gz …), or else by its first line."""
    if not re.search(r"\.(ndjson|jsonl)(\.gz|\.bz2|\.zst)?$", file.relative):
        return None
    for resource in known:
        if re.search(rf"(^|[/._-]){resource}[/._-]", file.relative):
            return resource
    try:
        with filesystem(root)[0].open_input_stream(file.path) as stream:
            found = re.search(rb'"resourceType"\s*:\s*"(\w+)"', stream.read(1 << 16).lstrip().split(b"\n", 1)[0])
    except OSError:
        return None
    return found[1].decode() if found else None


def _group(name: str, files: tuple[File, ...]) -> FileGroup:
    return FileGroup(
        name=name, glob=tuple(f.relative for f in files), format="json", patient=PatientId(column="id"), entries=(Entry(patient=Attributes()),)
    )


def _items(kind: str, vocabulary: Vocabulary) -> list[str]:
    """Names of what records of a kind can be about."""
    visits = [n for n in vocabulary.events if n.startswith("visit_")]
    agents = {k: [n for n, a in vocabulary.agents.items() if getattr(a, k) and n in vocabulary.codes] for k in ("dose", "rate", "treatment")}
    others = {"observation": list(vocabulary.signals), "visit": visits, "person": ["person"], "death": ["death"]}
    others["condition"] = [n for n in vocabulary.events if n not in visits and n != "death"]
    return (agents | others)[kind]


def _meaning(kind: str, item: str, source: str, where: str, clock: Clock, loose: Clock) -> Meaning:
    if kind == "person":
        return Meaning(source, source, where, "patient", attributes=Attributes(sex="gender", birth_date="birthDate"))
    if kind == "observation":
        value = Value(column="value", unit_column="unit")
        return Meaning(source, source, where, "observation", item, clock=clock, value=value, has_available=True)
    if kind == "treatment":
        value = Value(constant=1, unit="1")
        return Meaning(
            source, source, where, "exposure", item, kind, clock=loose, value=value, duration_seconds=86400, has_end=True, has_available=True
        )
    if kind in ("dose", "rate"):
        value = Value(column="value", unit_column="unit")
        return Meaning(source, source, where, "exposure", item, kind, clock=clock, value=value, has_end=True, has_available=True)
    return Meaning(source, source, where, "event", item, clock=loose, has_end=kind != "death", has_available=kind == "condition")


def _medications(root: str, files: tuple[File, ...]) -> pa.Table:
    """(id, code) of the export's Medication resources; few beside those that refer to them."""
    system, _ = filesystem(root)
    schema = json.dumps({"id": _TEXT, "code": _CONCEPT})
    with duckdb.connect() as db:
        for macro in _MACROS:
            db.execute(macro)

        def picked(resources: pa.Array) -> pa.Table:
            db.register("raw", pa.table({"r": resources}))
            return db.sql(f"SELECT j.id, j.code FROM (SELECT from_json(r, '{schema}') AS j FROM raw)").to_arrow_table()

        found = [picked(pa.array([], pa.string()))]
        for file in files:
            with system.open_input_stream(file.path) as stream:
                for block in read(_group("medication", (file,)), stream, set(), set()):
                    found.append(picked(block.record))
    return pa.concat_tables(found)
