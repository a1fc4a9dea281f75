"""Health records end to end: the same content as OMOP, FHIR, MEDS and Synthea CSV, one person from several sources, and point in time."""

from datetime import UTC, date, datetime

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import yaml

from tests.fusion.test_ingest import counts, reasons
from tests.sources.ehr import KEY, MRN, SNOMED, coding, ehr_config, lab, ndjson, table
from tests.small import REPO
from twinlib import sources
from twinlib.fusion import packing
from twinlib.fusion.layout import Layout
from twinlib.fusion.ingest import ingest
from twinlib.sources.pseudonym import pseudonym
from twinlib.stages import Night, Plan
from twinlib.tables import schemas

MAPPINGS = REPO / "conf" / "mappings"
#         signal        LOINC      OMOP     unit   unit id  day           value
LABS = [
    ("body_weight", "29463-7", 3025315, "kg", 9529, "2020-01-02", 80.0),
    ("body_weight", "29463-7", 3025315, "kg", 9529, "2020-06-02", 84.5),
    ("hba1c", "4548-4", 3004410, "%", 8554, "2020-01-02", 7.1),
    ("systolic_pressure", "8480-6", 3004249, "mm[Hg]", 8876, "2020-01-02", 131.0),
    ("blood_glucose", "2345-7", 3004501, "mmol/L", 8753, "2020-01-03", 6.25),
    ("creatinine", "2160-0", 3016723, "umol/L", 8749, "2020-01-03", 88.4),
    ("creatinine", "2160-0", 3016723, "umol/L", 8749, "2020-01-04", 880000.0),  # out of range
]
REFUSED = {("creatinine", 1)}


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    """Patient 1 of the CDM, p1 of the FHIR server, 11 of MEDS and s1 of Synthea are one person; so are 2 and p2, but by the crosswalk."""
    folder = tmp_path_factory.mktemp("ehr")
    rows = [f"{k} {p} {o} {day} - 0 {v} {u} - 0 -" for k, (p, (_, _, o, _, u, day, v)) in enumerate((p, x) for p in (1, 2) for x in LABS)]
    head = "measurement_id person_id measurement_concept_id measurement_date measurement_datetime operator_concept_id value_as_number unit_concept_id measurement_source_value measurement_source_concept_id unit_source_value"
    table(folder / "cdm", "measurement", "\n".join([head, *rows]))
    table(folder / "cdm", "person", "person_id gender_concept_id year_of_birth month_of_birth day_of_birth person_source_value\n1 8507 1960 2 3 M1\n2 8532 1970 - - M2")
    table(folder / "cdm", "condition_occurrence", "person_id condition_concept_id condition_start_date condition_end_date\n1 201826 2015-03-01 -")
    table(folder / "cdm", "drug_exposure", "person_id drug_concept_id drug_exposure_start_date drug_exposure_end_date\n1 1503297 2020-01-02 2020-01-31")
    people = [{"id": p, "gender": g, "birthDate": b, "identifier": [{"system": MRN, "value": m}]} for p, g, b, m in (("p1", "male", "1960-02-03", "M1"), ("p2", "female", "1970", "x"))]
    found = [lab(p, code, v, u, day) for p in ("p1", "p2") for _, code, _, u, _, day, v in LABS]
    condition = {"subject": {"reference": "Patient/p1"}, "code": coding(SNOMED, "44054006"), "onsetDateTime": "2015-03-01"}
    ndjson(folder / "fhir", Patient=people, Observation=found, Condition=[condition])
    times = [datetime.fromisoformat(x[5]) for x in LABS]
    events = pa.table({
        "subject_id": pa.array([11] * (len(LABS) + 3), pa.int64()),
        "time": pa.array([datetime(1960, 2, 3), None, datetime(2015, 3, 1), *times], pa.timestamp("us")),
        "code": ["MEDS_BIRTH", "GENDER//M", "SNOMED//44054006", *[f"LOINC//{x[1]}" for x in LABS]],
        "numeric_value": pa.array([None] * 3 + [x[6] * {"mmol/L": 18.0156, "umol/L": 0.011312}.get(x[3], 1) for x in LABS], pa.float32()),
    })  # fmt: skip
    (folder / "meds" / "data" / "train").mkdir(parents=True)
    pq.write_table(events, folder / "meds" / "data" / "train" / "0.parquet")
    (folder / "crosswalk.csv").write_text("source,id,person\nomop,1,A\nmeds,11,A\nomop,2,B\nfhir,p2,B\n")
    return folder


@pytest.fixture(scope="module")
def alone(spark, root):
    """Every source under its own ids."""
    config = ehr_config(
        {"kind": "omop", "root": str(root / "cdm")}, {"kind": "fhir", "root": str(root / "fhir")}, {"mapping": str(MAPPINGS / "meds.yaml"), "root": str(root / "meds")}
    )
    sources.check(config)
    got = ingest(spark, config, KEY)
    yield got
    got.release()


@pytest.fixture(scope="module")
def joined(spark, root):
    config = ehr_config(
        {"kind": "omop", "root": str(root / "cdm"), "identifier_system": MRN}, {"kind": "fhir", "root": str(root / "fhir")},
        {"mapping": str(MAPPINGS / "meds.yaml"), "root": str(root / "meds")},
        identity={"systems": [MRN], "crosswalk": str(root / "crosswalk.csv")},
    )  # fmt: skip
    sources.check(config)
    got = ingest(spark, config, KEY)
    yield got
    got.release()


def facts(df, patient: str) -> list[tuple]:
    rows = df.filter(df.patient_id == pseudonym(KEY, "", patient)).collect()
    return sorted((r.signal, r.time, float(f"{r.value:.5g}")) for r in rows)


def test_the_same_content_gives_the_same_observations(alone):
    expected = sorted(
        (s, datetime.fromisoformat(day), float(f"{v * {'mmol/L': 18.0156, 'umol/L': 0.011312}.get(u, 1):.5g}")) for s, _, _, u, _, day, v in LABS[:-1]
    )
    for patient in ("1", "2", "p1", "p2", "11"):
        assert facts(alone.observations, patient) == expected


def test_sex_birth_date_conditions_and_drugs(alone):
    ids = {pseudonym(KEY, "", p): p for p in ("1", "2", "p1", "p2", "11")}
    people = {ids[r.patient_id]: (r.sex, r.birth_date) for r in alone.patients.collect()}
    assert people == {
        "1": ("male", date(1960, 2, 3)), "p1": ("male", date(1960, 2, 3)), "11": ("male", date(1960, 2, 3)),
        "2": ("female", date(1970, 7, 1)), "p2": ("female", date(1970, 7, 1)),
    }  # fmt: skip
    events = {(ids[r.patient_id], r.event, r.start) for r in alone.events.collect()}
    assert events == {(p, "diabetes_type_2", datetime(2015, 3, 1)) for p in ("1", "p1", "11")}
    (drug,) = alone.exposures.collect()
    assert (drug.agent, drug.kind, drug.start, drug.end, drug.amount) == ("metformin", "treatment", datetime(2020, 1, 2), datetime(2020, 2, 1), 1.0)


def test_records_are_conserved_and_refused_with_a_reason(alone):
    n = len(LABS)
    got = {k: v for k, v in counts(alone).items() if v[0]}
    assert got == {
        "omop.measurement": (2 * n, 2 * n - 2, 0, 2), "omop.person": (2, 2, 0, 0), "omop.condition_occurrence": (1, 1, 0, 0),
        "omop.drug_exposure": (1, 1, 0, 0), "fhir.observation": (2 * n, 2 * n - 2, 0, 2), "fhir.patient": (2, 2, 0, 0), "fhir.condition": (1, 1, 0, 0),
        "meds.events.measurement": (n, n - 1, 0, 1), "meds.events.born": (1, 1, 0, 0), "meds.events.sex": (1, 0, 1, 0), "meds.events.condition": (1, 1, 0, 0),
    }  # fmt: skip
    assert {(s, r) for s, _, r in reasons(alone)} == {(s, "out_of_range") for s in ("omop.measurement", "fhir.observation", "meds.events.measurement")}


def test_one_person_is_one_patient(joined):
    first, second = pseudonym(KEY, "", "1"), pseudonym(KEY, "", "2")
    assert {r.patient_id for r in joined.patients.collect()} == {first, second}
    links = {(r.source, r.source_patient_id): (r.patient_id, r.status, r.reason) for r in joined.identities.collect()}
    assert links == {
        ("omop", first): (first, "linked", "crosswalk"), ("meds", pseudonym(KEY, "", "11")): (first, "linked", "crosswalk"),
        ("fhir", pseudonym(KEY, "", "p1")): (first, "linked", "identifier"),
        ("omop", second): (second, "linked", "crosswalk"), ("fhir", pseudonym(KEY, "", "p2")): (second, "linked", "crosswalk"),
    }  # fmt: skip
    assert facts(joined.observations, "1") and {r.source for r in joined.observations.collect()} == {"omop.measurement"}  # the first source wins
    got = counts(joined)
    assert got["fhir.observation"][2] == 2 * (len(LABS) - 1) and got["meds.events.measurement"][2] == len(LABS) - 1


@pytest.mark.slow
def test_a_run_writes_events_identities_and_counts(spark, root, tmp_path):
    """The ingest stage of a night; nothing to do the second time, until a vocabulary table appears beside the data."""
    config = {
        "name": "ehr", "output": str(tmp_path), "pseudonym_key": {"file": str(REPO / "conf" / "demo.key")}, "storage": {"buckets": 1},
        "sources": [{"kind": "omop", "root": str(root / "cdm"), "identifier_system": MRN}, {"kind": "fhir", "root": str(root / "fhir")}],
        "identity": {"systems": [MRN]},
    }  # fmt: skip
    (tmp_path / "run.yaml").write_text(yaml.safe_dump(config))
    statuses = []
    for again in range(3):
        night = Night(Plan.of(tmp_path / "run.yaml"), spark)
        with night.storage.writer():
            night.ingest()
        (run,) = [r for r in night.storage.read(schemas.RUNS).collect() if r.run_id == night.runs.run_id]
        statuses.append(run.status)
        if again == 0:
            assert run.counts["identities_linked"] == 2 and run.counts["omop.measurement.quarantined"] == 2
            assert run.counts["rows_read"] == run.counts["accepted"] + run.counts["duplicates"] + run.counts["quarantined"]
            assert night.storage.read(schemas.EVENTS).count() == 1 and night.storage.read(schemas.IDENTITIES).count() == 2
        if again == 1:
            table(root / "cdm", "concept", "concept_id concept_name domain_id vocabulary_id concept_code")
    (root / "cdm" / "concept.csv").unlink()
    assert statuses == ["done", "unchanged", "done"]


def test_nothing_is_used_before_it_was_known(spark, tmp_path):
    """A weight of the day before, one issued a week late, one of the day itself, and one that an amendment replaced."""
    ndjson(tmp_path, Observation=[
        lab("a", "29463-7", 70, "kg", "2020-01-01"),
        lab("a", "29463-7", 75, "kg", "2020-01-05T08:00:00Z", issued="2020-01-12T08:00:00Z"),
        lab("a", "29463-7", 80, "kg", "2020-01-20"),
        lab("a", "29463-7", 90, "kg", "2020-01-25T08:00:00Z"),
        lab("a", "29463-7", 91, "kg", "2020-01-25T08:00:00Z", status="amended", issued="2020-01-26T08:00:00Z"),
    ])  # fmt: skip
    got = ingest(spark, ehr_config({"kind": "fhir", "root": str(tmp_path)}), KEY)
    days = [1, 2, 6, 12, 13, 20, 21, 26, 27]
    exposures = spark.createDataFrame(
        [(pseudonym(KEY, "", "a"), "carbohydrate", "dose", datetime(2020, 1, d, 12, tzinfo=UTC), None, 10.0, None, 0) for d in days],
        "patient_id string, agent string, kind string, start timestamp, end timestamp, amount double, label string, utc_offset_minutes int",
    )
    glucose = exposures.selectExpr("patient_id", "'glucose' AS signal", "start AS time", "100D AS value", "0 AS utc_offset_minutes", "start AS available_at", "array() AS quality")
    columns = ["patient_id", "signal", "time", "value", "utc_offset_minutes", "available_at", "quality"]
    observations = got.observations.select(columns).union(glucose.select(columns))
    layout = Layout("m", ("glucose",), ("glucose",), 5, ("carbohydrate",), {"body_weight": 60.0}, 1, 144, 24.0, ())
    lines = packing.pack(observations, exposures, exposures.select("patient_id").distinct(), layout)
    known = {int(r.episode[-2:]): (r.covariates[0].value, r.covariates[0].assumed) for r in lines.collect()}
    # each episode begins at midnight: a date is known when its day is over, a late result when it was issued
    assert known == {
        1: (60.0, True), 2: (70.0, False), 6: (70.0, False), 12: (70.0, False), 13: (75.0, False), 20: (75.0, False), 21: (80.0, False),
        26: (80.0, False), 27: (91.0, False),
    }  # fmt: skip
    got.release()
