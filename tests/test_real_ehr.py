"""The public health-record sets: everything comes in or is refused with a reason, and nothing is lost."""

import csv
import json
import zipfile
from collections import Counter

import pytest

from twinlib import sources
from twinlib.fusion.ingest import ingest

from .fusion.test_ingest import counts
from .small import REPO
from .sources.ehr import KEY, ehr_config

pytestmark = [pytest.mark.realdata, pytest.mark.slow]
SYNTHEA = "https://github.com/synthetichealth/synthea"


@pytest.fixture(scope="module")
def cdm(data, tmp_path_factory):
    folder = tmp_path_factory.mktemp("cdm")
    for name in ("csv", "parquet"):
        (archive,) = [p for p in (data / "omop_synthea27nj").glob("*.zip") if ("Parquet" in p.name) == (name == "parquet")]
        with zipfile.ZipFile(archive) as z:
            z.extractall(folder / name)
    return folder


@pytest.fixture(scope="module")
def got(spark, data, cdm):
    """All sets in one run, each under a namespace of its own; the second copy of the CDM under that of the first."""
    config = ehr_config(
        {"kind": "omop", "root": str(cdm / "csv"), "name": "nj", "namespace": "nj", "identifier_system": SYNTHEA},
        {"kind": "omop", "root": str(cdm / "parquet"), "name": "nj_parquet", "namespace": "parquet", "identifier_system": SYNTHEA},
        {"kind": "fhir", "root": str(data / "fhir_pathling_9pat"), "name": "pathling", "namespace": "pathling"},
        {"kind": "fhir", "root": str(data / "fhir_smart_bulk_10"), "name": "smart", "namespace": "smart"},
        {"mapping": str(REPO / "conf" / "mappings" / "synthea_csv.yaml"), "root": str(data / "synthea_csv_dbt")},
        identity={"systems": [SYNTHEA]},
    )
    sources.check(config)
    result = ingest(spark, config, KEY)
    yield result
    result.release()


def test_every_row_is_accounted_for(got, data, cdm):
    found = counts(got)  # checks that every source adds up
    rows = {r.source: (r.rows_read, r.rows_ignored) for r in got.counts.collect()}
    with open(next(cdm.rglob("DEATH.csv")), encoding="utf-8") as f:
        assert found["nj.death"][0] == sum(1 for _ in f) - 1
    assert sum(rows["nj.measurement"]) == 10_040 and sum(rows["nj.visit_occurrence"]) == 1_791
    assert sum(rows["smart.encounter"]) == 1_215 and sum(rows["synthea.observations"]) == 990
    assert sum(rows["synthea.medications"]) == 663 and rows["synthea.patients.person"][0] == 27
    assert rows["pathling.patient"][0] == 9 + 4 and rows["smart.patient"][0] == 13 + 3  # people and deaths
    # a blood pressure is two records of one row
    assert sum(rows["pathling.observation"]) == 1_502 + 83
    refused = Counter((r.source, r.reason) for r in got.quarantine.collect())
    assert refused == {("pathling.observation", "unknown_unit"): 14, ("synthea.observations", "unknown_unit"): 3}


def test_observations_of_the_cdm_are_those_of_its_file(got, cdm):
    """Values of three signals, read by plain Python."""
    wanted = {"3025315": "body_weight", "3004410": "hba1c", "3009966": "ldl_cholesterol"}
    with open(next(cdm.rglob("MEASUREMENT.csv")), encoding="utf-8", newline="") as f:
        rows = [r for r in csv.DictReader(f) if r["measurement_concept_id"] in wanted]
    plain = {(wanted[r["measurement_concept_id"]], r["person_id"], r["measurement_date"]): float(r["value_as_number"]) for r in rows}
    mine = [r for r in got.observations.filter("source = 'nj.measurement'").collect() if r.signal in wanted.values()]
    assert Counter(r.signal for r in mine) == Counter(k[0] for k in plain)
    assert sorted((r.signal, str(r.time.date()), r.value) for r in mine) == sorted((s, d, v) for (s, _, d), v in plain.items())


def test_the_two_copies_of_the_cdm_are_one(got):
    """CSV and Parquet: the same people by their identifier, so the second copy adds nothing."""
    found = counts(got)
    for table in ("measurement", "drug_exposure", "condition_occurrence", "visit_occurrence", "death"):
        read, _, duplicates, refused = found[f"nj_parquet.{table}"]
        assert read == found[f"nj.{table}"][0] and duplicates == read and refused == 0
    linked = Counter(r.source for r in got.identities.filter("status = 'linked'").collect())
    assert linked == {"nj": 28, "nj_parquet": 28}


def test_fhir_values_are_those_of_the_resources(got, data):
    wanted = {"29463-7": "body_weight", "8480-6": "systolic_pressure", "4548-4": "hba1c"}
    plain: Counter = Counter()
    for line in (data / "fhir_pathling_9pat" / "r4_small_9pat" / "Observation.ndjson").read_text("utf-8").splitlines():
        resource = json.loads(line)
        for part in [resource, *resource.get("component", [])]:
            signal = wanted.get(part["code"]["coding"][0]["code"])
            if signal and "valueQuantity" in part:
                plain[signal, round(part["valueQuantity"]["value"], 6)] += 1
    mine = Counter((r.signal, round(r.value, 6)) for r in got.observations.filter("source = 'pathling.observation'").collect() if r.signal in wanted.values())
    assert mine == plain


def test_every_patient_is_there_without_a_raw_id(got):
    people = got.patients.collect()
    assert len(people) == 28 + 9 + 13 + 27
    assert all(r.sex in ("male", "female") and r.birth_date for r in people)
    assert {len(r.patient_id) for r in people} == {32}
