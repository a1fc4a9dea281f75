"""OMOP tables to records, without Spark: which rows are read, by which code, and what is left of them."""

import json

import pyarrow as pa
import pyarrow.csv
import pyarrow.parquet as pq
import pytest

from tests.sources.ehr import records, table
from twinlib.errors import DataError
from twinlib.fusion.vocabulary import load_vocabulary

MEASUREMENT = """
measurement_id person_id measurement_concept_id measurement_date measurement_datetime operator_concept_id value_as_number unit_concept_id measurement_source_value measurement_source_concept_id unit_source_value measurement_time
1 7 3004410 2020-01-02 2020-01-02_08:30:00 0 7.1 8554 4548-4 0 % -
2 7 3004410 2020-02-02 2020-02-02_00:00:00 0 7.3 8554 4548-4 0 % 2020-02-02
3 7 0 2020-03-02 - 0 5.5 0 2345-7 0 mmol/L 07:15:00
4 7 3025315 2020-03-02 - 0 80 9529 weight 0 kg -
5 7 3049187 2020-03-02 - 4172704 90 9117 egfr 0 - -
6 7 9999999 2020-03-02 - 0 90 9117 unheard_of 0 - -
7 7 3025315.0 2020-03-03 - - 81 9529.0 weight 0 kg -
"""
DRUGS = """
drug_exposure_id person_id drug_concept_id drug_exposure_start_date drug_exposure_start_datetime drug_exposure_end_date drug_exposure_end_datetime verbatim_end_date days_supply drug_source_value
1 7 1503297 2020-01-02 - 2020-03-31 - - 90 x
2 7 0 2020-01-02 - - - - 30 Lisinopril/Hydrochlorothiazide_20_mg
3 7 40000001 2020-01-05 - 2020-02-05 - - - -
4 7 0 2020-01-02 - 2020-03-31 - - 90 aspirin
"""


@pytest.fixture
def cdm(tmp_path):
    table(tmp_path, "MEASUREMENT", MEASUREMENT)
    table(tmp_path, "drug_exposure", DRUGS)
    return tmp_path


def test_measurements_by_concept_then_by_source_code(cdm):
    found, ignored = records({"kind": "omop", "root": str(cdm)})
    got = [(r["line"], r["meaning"].name, r["time"], r["value"], r["unit"], r["flags"]) for r in found if r["file"] == "MEASUREMENT.csv"]
    assert sorted(got) == [
        (2, "hba1c", "2020-01-02 08:30:00", "7.1", "%", None),
        (3, "hba1c", "2020-02-02", "7.3", "%", None),  # midnight is some time that day
        (4, "blood_glucose", "2020-03-02 07:15:00", "5.5", "mmol/L", "source_code source_unit"),
        (5, "body_weight", "2020-03-02", "80", "kg", None),
        (6, "egfr", "2020-03-02", "90", "mL/min/{1.73_m2}", "above_limit"),
        (8, "body_weight", "2020-03-03", "81", "kg", None),
    ]
    assert ignored == 1 + 2  # an unknown code; aspirin, and a product that no vocabulary tells


def test_drugs_by_concept_or_by_name_and_combinations_are_both(cdm):
    found, _ = records({"kind": "omop", "root": str(cdm)})
    got = [(r["line"], r["meaning"].name, r["end"], r["duration"], r["value"], r["flags"]) for r in found if r["meaning"].kind]
    assert sorted(got) == [
        (2, "metformin", "2020-03-31", None, "1", None),
        (3, "ace_inhibitor", None, "30", "1", "by_name"),
        (3, "thiazide", None, "30", "1", "by_name"),
    ]


def test_the_vocabulary_beside_the_data_finds_products_and_further_codes(cdm):
    (cdm / "CONCEPT.csv").write_text(
        "concept_id\tconcept_name\tdomain_id\tvocabulary_id\tconcept_code\n"
        '1310149\tramipril "x"\tDrug\tRxNorm\t35296\n'
        "9999999\tHaemoglobin A1c by a method of our own\tMeasurement\tLOINC\t17856-6\n"
    )
    (cdm / "CONCEPT_ANCESTOR.csv").write_text("ancestor_concept_id\tdescendant_concept_id\n1310149\t40000001\n")
    found, ignored = records({"kind": "omop", "root": str(cdm)})
    assert {r["meaning"].name for r in found if r["line"] == 7 and r["file"] == "MEASUREMENT.csv"} == {"hba1c"}
    assert [(r["meaning"].name, r["flags"]) for r in found if r["line"] == 4 and r["meaning"].kind] == [("ace_inhibitor", None)]
    assert ignored == 1


def test_parquet_tells_the_same_as_csv(cdm, tmp_path_factory):
    folder = tmp_path_factory.mktemp("parquet") / "measurement"
    folder.mkdir(parents=True)
    whole = pyarrow.csv.read_csv(cdm / "MEASUREMENT.csv")
    for k in range(2):
        pq.write_table(whole.slice(4 * k, 4), folder / f"part-{k}.parquet")
    facts = []
    for root in (folder.parent, cdm):
        found, _ = records({"kind": "omop", "root": str(root)})
        measured = [r for r in found if r["meaning"].target == "observation"]
        facts.append(sorted((r["meaning"].name, r["time"][:19], float(r["value"]), r["unit"], r["flags"] or "") for r in measured))
    assert len(facts[0]) == 6 and facts[0] == facts[1]


def test_a_row_keeps_no_raw_id(tmp_path):
    table(tmp_path, "person", "Person_Id gender_concept_id year_of_birth month_of_birth day_of_birth PERSON_SOURCE_VALUE\n4711 8532 1950 7 - SECRET")
    found, _ = records({"kind": "omop", "root": str(tmp_path), "identifier_system": "urn:mrn"})
    (person,) = found
    assert (person["sex"], person["birth_date"]) == ("female", "1950-07-15")
    assert "4711" not in json.dumps(person["record"]) and "SECRET" not in str(person)
    assert ":" in person["identifiers"]


def test_broken_rows_and_missing_columns_are_data(tmp_path):
    table(tmp_path, "visit_occurrence", "person_id visit_concept_id visit_start_date\n1 9201 2020-01-01\n1 9202 2020-01-01 extra secret")
    found, _ = records({"kind": "omop", "root": str(tmp_path)})
    assert [(r["line"], r["fault"], r["meaning"].name) for r in found] == [(3, "malformed_row", ""), (2, None, "visit_inpatient")]
    assert "secret" not in str(found)
    table(tmp_path, "death", "person_id death_datetime\n1 2020-01-01")
    with pytest.raises(DataError, match="death.csv: no column death_date"):
        records({"kind": "omop", "root": str(tmp_path)})
    with pytest.raises(DataError, match="no table of an OMOP CDM"):
        (tmp_path / "none").mkdir()
        records({"kind": "omop", "root": str(tmp_path / "none")})


@pytest.mark.realdata
def test_our_concept_ids_are_those_of_our_codes(data, tmp_path):
    """The vocabulary's OMOP concept ids against a CONCEPT table that OHDSI made."""
    import zipfile

    with zipfile.ZipFile(data / "omop_synthea27nj" / "Synthea27Nj_5.4.zip") as z:
        name = next(n for n in z.namelist() if n.endswith("/CONCEPT.csv") or n == "CONCEPT.csv")
        concepts = pyarrow.csv.read_csv(pa.BufferReader(z.read(name))).select(["concept_id", "vocabulary_id", "concept_code"]).to_pylist()
    systems = {"LOINC": "loinc", "SNOMED": "snomed", "RxNorm": "rxnorm"}
    theirs = {str(c["concept_id"]): (systems.get(c["vocabulary_id"]), str(c["concept_code"])) for c in concepts}
    compared = 0
    for name, codes in load_vocabulary().codes.items():
        for concept in codes.get("omop", ()):
            system, code = theirs.get(concept, (None, None))
            if system in codes:
                assert code in codes[system], (name, concept, code)
                compared += 1
    assert compared >= 30
