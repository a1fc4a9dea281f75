"""What ingest leaves out as if the files lacked it: what was not known yet, and who has withdrawn."""

from datetime import UTC, datetime

import pytest

from tests.fusion.test_ingest import CLINIC, KEY, id_of, run_config, write
from tests.sources import mapping_file
from twinlib.fusion.ingest import ingest
from twinlib.sources.forgotten import tombstone

DOSES = """who,what,at,offset,amount,until,known,minutes,note
p1,bolus,2024-01-13 08:00,0,"3,0",,2024-01-15 09:00,,
p1,bolus,2024-01-13 08:00,0,"2,0",,2024-01-13 08:00,,
p2,bolus,2024-01-14 08:00,0,"4,0",,,,
p2,bolus,2024-01-16 08:00,0,"5,0",,,,
p2,bolus,never,0,"5,0",,,,
p2,bolus,2024-01-14 08:00,0,1,2,3,4,5,6,7
"""


@pytest.fixture
def clinic(tmp_path):
    root = write(tmp_path / "raw", {"doses.csv": DOSES, "people.csv": "who,gender,born\np1,1,1970\np2,2,1971\n"})
    mapping = {**CLINIC, "files": [f for f in CLINIC["files"] if f["name"] != "cgm"]}
    return mapping_file(tmp_path, mapping), root


def doses(got):
    return sorted((r.patient_id, r.start.day, r.amount) for r in got.exposures.collect())


def test_what_became_known_later_is_left_out_and_what_it_replaced_is_not(spark, clinic):
    full = ingest(spark, run_config(clinic), KEY)
    assert {a for p, _, a in doses(full) if p == id_of("p1")} == {3.0} and len([d for d in doses(full) if d[0] == id_of("p2")]) == 2
    full.release()
    then = ingest(spark, run_config(clinic, as_of="2024-01-14T23:59:59Z"), KEY)
    assert doses(then) == sorted([(id_of("p1"), 13, 2.0), (id_of("p2"), 14, 4.0)])
    counts = {r.source: (r.rows_read, r.accepted, r.duplicates, r.quarantined) for r in then.counts.collect()}
    assert sum(c[0] for c in counts.values()) == sum(sum(c[1:]) for c in counts.values())
    assert {r.reason for r in then.quarantine.collect()} >= {"unparsable_time"}  # a record without a time is not later than anything
    then.release()


def test_who_has_withdrawn_is_in_no_result_under_any_id_not_even_in_a_broken_record(spark, clinic, tmp_path):
    """p2 has withdrawn as p7, who is the same person by the crosswalk."""
    (tmp_path / "crosswalk.csv").write_text("source,id,person\nclinic,p2,x\nclinic,p7,x\n")
    config = run_config(clinic, identity={"crosswalk": str(tmp_path / "crosswalk.csv")})
    got = ingest(spark, config, KEY, frozenset({tombstone(KEY, id_of("p7"))}))
    assert {p for p, _, _ in doses(got)} == {id_of("p1")} == {r.patient_id for r in got.patients.collect()}
    assert not got.quarantine.count()  # broken rows, one of them without a patient column, are gone too
    assert not got.identities.count()
    for frame in (got.exposures, got.patients, got.quarantine):
        plan = frame._jdf.queryExecution().toString()
        assert id_of("p2") not in plan and tombstone(KEY, id_of("p2")) not in plan and KEY.decode() not in plan
    got.release()


@pytest.mark.slow
def test_a_tombstone_of_somebody_else_changes_nothing(spark, clinic):
    plain, other = ingest(spark, run_config(clinic), KEY), ingest(spark, run_config(clinic), KEY, frozenset({tombstone(KEY, id_of("p9"))}))
    for name in ("patients", "exposures", "quarantine", "counts"):
        assert sorted(map(repr, getattr(plain, name).collect())) == sorted(map(repr, getattr(other, name).collect()))
    plain.release(), other.release()


def test_as_of_needs_a_zone():
    with pytest.raises(ValueError, match="as_of"):
        run_config(("m.yaml", "raw"), as_of="2024-01-14T00:00:00")
    assert run_config(("m.yaml", "raw"), as_of="2024-01-14T00:00:00Z").as_of == datetime(2024, 1, 14, tzinfo=UTC)
