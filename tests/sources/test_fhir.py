"""FHIR resources to records, without Spark: codings, components, references, statuses, absent values, and what is left of a resource."""

import pytest

from tests.sources.ehr import KEY, LOINC, RXNORM, SNOMED, coding, lab, ndjson, records
from twinlib.errors import ConfigError, DataError
from twinlib.sources.pseudonym import pseudonym


def read(tmp_path, **resources):
    found, ignored = records({"kind": "fhir", "root": str(ndjson(tmp_path / "bulk", **resources))})
    return found, ignored


def facts(found, *names):
    return sorted(((r["meaning"].name, *(r[n] for n in names)) for r in found), key=str)


def test_components_are_records_of_their_own(tmp_path):
    pressure = lab("a", "85354-9", None, "", "2020-01-02T08:30:00+01:00", component=[
        {"code": coding(LOINC, "8480-6"), "valueQuantity": {"value": 120.50, "code": "mm[Hg]"}},
        {"code": coding(LOINC, "8462-4"), "dataAbsentReason": coding(None, "error")},
        {"code": coding(LOINC, "8867-4"), "valueInteger": 60},
    ])  # fmt: skip
    found, ignored = read(tmp_path, Observation_000=[pressure, lab("a", "1234-5", 1, "kg", "2020-01-02")])
    assert facts(found, "value", "unit", "fault", "offset") == [
        ("diastolic_pressure", None, None, "value_absent", "60"),
        ("heart_rate", "60", None, None, "60"),
        ("systolic_pressure", "120.5", "mm[Hg]", None, "60"),
    ]
    assert ignored == 1 and {r["line"] for r in found} == {1}


def test_statuses_limits_and_hidden_spaces(tmp_path):
    at = "2020-01-02T08:30:00Z"
    less = lab("a", "2160-0", 0.2, "mg/dL", at)
    less["valueQuantity"]["comparator"] = "<"
    found, _ = read(tmp_path, Observation=[
        lab("a", "4548-4\u200b", 7.1, "%\u00a0", at, status="amended", issued="2020-01-05T00:00:00Z"),
        lab("a", "4548-4", 7.0, "%", at, status="entered-in-error"),
        lab("a", "4548-4", None, "%", at, dataAbsentReason=coding("x", "not-performed")),
        less,
        "\u200b",
        '{"resourceType": "Observation", "subject": {"reference": "Patient/secret"',
    ])  # fmt: skip
    assert facts(found, "line", "value", "unit", "flags", "fault", "detail") == [
        ("", 6, None, None, None, "malformed_row", "as many fields as the header, or a JSON object"),
        ("creatinine", 4, "0.2", "mg/dL", "below_limit", None, None),
        ("hba1c", 1, "7.1", "%", "amended", None, None),
        ("hba1c", 2, "7.0", "%", None, "not_in_force", "status entered-in-error"),
        ("hba1c", 3, None, None, None, "value_absent", "absent: not-performed"),
    ]
    assert "secret" not in str(found)


@pytest.mark.parametrize(
    "reference, known",
    [
        ("Patient/a", True),
        ("https://ehr.example/fhir/Patient/a/_history/3", True),
        ("urn:uuid:a", True),
        ("Patient?identifier=mrn|a", False),
        ("#contained", False),
    ],
)
def test_references(tmp_path, reference, known):
    found, _ = read(tmp_path, Observation=[lab("a", "4548-4", 7.1, "%", "2020-01-02") | {"subject": {"reference": reference}}])
    (record,) = found
    assert record["patient_id"] == (pseudonym(KEY, "", "a") if known else None)
    assert "mrn|a" not in record["record"]


def test_medications_are_found_wherever_they_are(tmp_path):
    subject = {"subject": {"reference": "Patient/a"}}
    ingredient, product = coding(RXNORM, "6809"), coding(RXNORM, "314076", "lisinopril 10 MG Oral Tablet")
    found, ignored = read(
        tmp_path,
        Medication_1=[{"id": "m1", "code": coding(RXNORM, "36567")}],
        MedicationRequest=[
            {"status": "active", "intent": "order", **subject, "authoredOn": "2020-01-02", "medicationCodeableConcept": product,
             "dispenseRequest": {"expectedSupplyDuration": {"value": 30, "code": "d"}, "numberOfRepeatsAllowed": 2}},
            {"status": "active", "intent": "order", **subject, "authoredOn": "2020-01-02", "medicationReference": {"reference": "Medication/m1"}},
            {"status": "active", "intent": "order", **subject, "authoredOn": "2020-01-02", "medicationReference": {"reference": "#c"},
             "contained": [{"resourceType": "Medication", "id": "c", "code": ingredient}],
             "dosageInstruction": [{"timing": {"repeat": {"boundsPeriod": {"start": "2020-01-03", "end": "2020-02-03"}}}}]},
            {"status": "active", "intent": "plan", **subject, "authoredOn": "2020-01-02", "medicationCodeableConcept": ingredient},
            {"status": "active", "intent": "order", **subject, "authoredOn": "2020-01-02", "medicationCodeableConcept": coding(RXNORM, "1191", "aspirin")},
        ],
    )  # fmt: skip
    assert facts(found, "time", "end", "duration", "flags", "fault") == [
        ("ace_inhibitor", "2020-01-02", None, "90.0", "by_name", None),
        ("metformin", "2020-01-02", None, None, "no_end", "not_in_force"),
        ("metformin", "2020-01-03", "2020-02-03", None, None, None),
        ("statin", "2020-01-02", None, None, "no_end", None),
    ]
    assert ignored == 1


def test_an_administered_dose_is_a_dose_and_a_treatment(tmp_path):
    given = {"status": "completed", "subject": {"reference": "Patient/a"}, "effectiveDateTime": "2020-01-02T08:00:00Z"}
    lispro = {"medicationCodeableConcept": coding(RXNORM, "86009")}
    found, _ = read(tmp_path, MedicationAdministration=[
        {**given, **lispro, "dosage": {"dose": {"value": 4, "unit": "units", "code": "[iU]"}}},
        {**given, **lispro, "status": "not-done"},
    ])  # fmt: skip
    got = [(r["line"], r["meaning"].name, r["meaning"].kind, r["value"], r["unit"], r["duration"], r["fault"]) for r in found]
    assert sorted(got) == [
        (1, "insulin_bolus", "dose", "4", "[iU]", None, None),
        (1, "insulin_therapy", "treatment", "1", None, "1", None),
        (2, "insulin_therapy", "treatment", "1", None, "1", "not_in_force"),
    ]


def test_conditions_visits_and_death(tmp_path):
    subject = {"subject": {"reference": "Patient/a"}}
    verified = lambda status: {"verificationStatus": coding("x", status)}  # noqa: E731
    found, _ = read(
        tmp_path,
        Condition=[
            {**subject, **verified("confirmed"), "code": coding(SNOMED, "44054006"), "onsetDateTime": "2015-03", "recordedDate": "2016-01-01"},
            {**subject, **verified("provisional"), "code": coding("http://hl7.org/fhir/sid/icd-10-cm", "E11.9"), "recordedDate": "2016-01-01"},
            {**subject, **verified("refuted"), "code": coding(SNOMED, "38341003"), "onsetDateTime": "2015"},
            {**subject, "code": coding(None, "38341003"), "onsetDateTime": "2015"},
        ],
        Encounter=[{**subject, "status": "finished", "class": {"code": "IMP"}, "period": {"start": "2020-01-01", "end": "2020-01-03"}}],
        Patient=[{"id": "a", "gender": "female", "birthDate": "1950", "deceasedDateTime": "2021-05-01", "name": [{"family": "Secret"}]}],
    )
    assert facts(found, "time", "end", "available", "flags", "fault") == [
        ("", None, None, None, None, None),
        ("death", "2021-05-01", None, None, None, None),
        ("diabetes_type_2", "2015-03", None, "2016-01-01", None, None),
        ("diabetes_type_2", "2016-01-01", None, "2016-01-01", "onset_unknown unconfirmed", None),
        ("hypertension", "2015", None, None, "source_code", None),
        ("hypertension", "2015", None, None, None, "not_in_force"),
        ("visit_inpatient", "2020-01-01", "2020-01-03", None, "source_code", None),
    ]
    assert [(r["sex"], r["birth_date"]) for r in found if r["meaning"].target == "patient"] == [("female", "1950-07-01")]
    assert "Secret" not in str(found)


def test_no_name_of_the_patient_is_kept(tmp_path):
    resource = lab("a1", "4548-4", 7.1, "%", "2020-01-02", text={"div": "Jane Doe"}, note=[{"text": "Jane"}], performer=[{"display": "Jane Doe"}])
    resource |= {"contained": [{"resourceType": "Patient", "name": "Jane"}], "device": {"reference": "https://x/Patient/a1"}}
    found, _ = read(tmp_path, Observation=[resource])
    assert "Jane" not in str(found) and "Patient/a1" not in str(found)
    assert f"Patient/{pseudonym(KEY, '', 'a1')}" in found[0]["record"]


def test_files_are_known_by_their_first_line_and_codes_by_any_system(tmp_path):
    own = "http://hospital.example/items"
    ndjson(tmp_path, Observation=[lab("a", "4548-4", 7.1, "%", "2020-01-02"), lab("a", "1", 70, "mg/dL", "2020-01-02") | {"code": coding(own, "50931")}])
    (tmp_path / "Observation.ndjson").rename(tmp_path / "HospitalLabs.ndjson")
    vocabulary = tmp_path / "vocabulary.yaml"
    vocabulary.write_text(f'codes: {{blood_glucose: {{"{own}": [50931]}}}}')
    found, _ = records({"kind": "fhir", "root": str(tmp_path)}, vocabulary=str(vocabulary))
    assert facts(found, "value", "flags") == [("blood_glucose", "70", None), ("hba1c", "7.1", None)]
    vocabulary.write_text("codes: {blood_glucose: {loink: [1]}}")
    with pytest.raises(ConfigError, match="unknown code system 'loink'"):
        records({"kind": "fhir", "root": str(tmp_path)}, vocabulary=str(vocabulary))


def test_a_folder_without_resources_is_an_error(tmp_path):
    (tmp_path / "log.ndjson").write_text("{}\n")
    with pytest.raises(DataError, match="no FHIR resources"):
        records({"kind": "fhir", "root": str(tmp_path)})
