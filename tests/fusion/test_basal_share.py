"""Pump rates per five minutes that claim to be per hour, told by the patient's boluses."""

import pytest

from tests.fusion.test_ingest import KEY, counts, id_of, run_config, write
from tests.sources import mapping_file
from twinlib.fusion.ingest import ingest

MAPPING = {
    "name": "pump",
    "files": [
        {
            "name": "insulin", "glob": "*.csv", "format": "csv", "patient": {"column": "who"}, "time": {"column": "at", "zone": "UTC"},
            "entries": [
                {"name": "rate", "when": {"what": "rate"}, "exposure": "insulin_basal", "kind": "rate", "value": {"column": "amount", "unit": "U/h"}},
                {"name": "bolus", "when": {"what": "bolus"}, "exposure": "insulin_bolus", "value": {"column": "amount", "unit": "U"}},
            ],
        }
    ],
}  # fmt: skip
# patient -> (rate, bolus per day): an adult and a child as declared and per five minutes, one without boluses, one who needs little basal
PEOPLE = {"adult": (0.8, 20), "adult5": (0.8 / 12, 20), "child": (0.1, 3), "child5": (0.1 / 12, 3), "none5": (0.8 / 12, 0), "honeymoon": (0.05, 15)}


@pytest.fixture(scope="module")
def got(spark, tmp_path_factory):
    folder = tmp_path_factory.mktemp("pump")
    lines = ["who,what,at,amount"]
    for who, (rate, bolus) in PEOPLE.items():
        for day in range(1, 6):
            lines += [f"{who},rate,2024-01-{day:02d} {hour:02d}:00,{rate * (1 + hour / 60 if who != 'honeymoon' else 1):.4f}" for hour in range(0, 24, 4)]
            lines += [f"{who},bolus,2024-01-{day:02d} {hour:02d}:00,{bolus / 4}" for hour in (7, 12, 18, 21) if bolus]
    result = ingest(spark, run_config((mapping_file(folder, MAPPING), write(folder / "raw", {"p.csv": "\n".join(lines) + "\n"}))), KEY)
    yield result
    result.release()


def test_rates_per_five_minutes_are_refused_and_those_of_a_child_are_not(got):
    refused = {(r.patient_id, r.reason) for r in got.quarantine.collect()}
    assert refused == {(id_of(who), "unit_contradicts_values") for who in ("adult5", "child5")}
    assert counts(got)["pump.insulin.rate"] == (180, 120, 0, 60)
