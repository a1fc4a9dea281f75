"""Attributes, members and attrition on a handful of patients whose rows are written out here."""

import datetime as dt

import pytest

from twinlib.config import CohortConfig, SubgroupConfig
from twinlib.errors import ConfigError
from twinlib.tables.schemas import OUTCOMES, PATIENTS, TIMELINES, TWIN_PARAMETERS, TWINS
from twinlib.whatif.cohorts import Attributes, attributes, check, check_all, check_subgroups, members, subgroups

KNOWN = Attributes(parameters=("insulin_sensitivity", "absorption"), covariates=("body_weight",))
MODEL = "glucose_insulin"


def frame(spark, table, rows):
    """A frame of the table's contract; columns that a row leaves out are null (the contract's nullability aside)."""
    schema = "struct<" + ", ".join(f"{c.name}: {c.type.simpleString()}" for c in table.columns) + ">"
    return spark.createDataFrame([tuple(r.get(c.name) for c in table.columns) for r in rows], schema)


@pytest.fixture(scope="module")
def tables(spark):
    def timeline(patient, episode, weight, wear, offset=0):
        start = dt.datetime.fromisoformat(episode + "T00:00:00+00:00") - dt.timedelta(minutes=offset)
        covariates = [("height", 170.0, False), ("body_weight", weight, False)] if weight else []
        return {
            "patient_id": patient,
            "model": MODEL,
            "episode": episode,
            "start": start,
            "utc_offset_minutes": offset,
            "wear_fraction": wear,
            "covariates": covariates,
        }

    def twin(patient, episode, status, rmse):
        return {
            "patient_id": patient,
            "model": MODEL,
            "episode": episode,
            "status": status,
            "forecast_rmse": rmse,
            "n_observations": 4000,
        }

    def parameter(patient, episode, name, q50):
        return {"patient_id": patient, "model": MODEL, "episode": episode, "parameter": name, "q50": q50, "mean": -1.0}

    def outcome(patient, episode, scenario, name, factual):
        return {
            "patient_id": patient,
            "model": MODEL,
            "episode": episode,
            "scenario": scenario,
            "outcome": name,
            "factual": factual,
        }

    patients = [
        {"patient_id": "a", "sex": "female", "birth_date": dt.date(2000, 2, 1)},
        {"patient_id": "b", "sex": "male", "birth_date": dt.date(2010, 2, 3)},
        {"patient_id": "c", "sex": "female", "birth_date": None},
        {"patient_id": "d", "sex": None, "birth_date": dt.date(1950, 1, 1)},
    ]
    timelines = [
        # east of Greenwich local midnight lies on the day before in UTC: the age must still turn on the local date
        timeline("a", "2024-01-18", 60.0, 0.9),
        timeline("a", "2024-02-01", 62.0, 0.8, offset=120),
        timeline("a", "2024-02-15", 64.0, 0.1),
        timeline("b", "2024-02-01", 50.0, 0.7),
        timeline("c", "2024-01-18", None, 0.2),
        timeline("c", "2024-02-01", 80.0, 0.3),
    ]
    twins = [
        twin("a", "2024-01-18", "converged", 30.0),
        twin("a", "2024-02-01", "converged", 20.0),
        twin("a", "2024-02-15", "insufficient_data", None),
        twin("b", "2024-02-01", "converged", 10.0),
        twin("c", "2024-01-18", "failed", None),
        twin("c", "2024-02-01", "insufficient_data", None),
    ]
    parameters = [
        parameter("a", "2024-01-18", "insulin_sensitivity", 1.0),
        parameter("a", "2024-02-01", "insulin_sensitivity", 2.0),
        parameter("a", "2024-02-01", "absorption", 0.5),
        parameter("b", "2024-02-01", "insulin_sensitivity", 3.0),
    ]
    outcomes = [
        outcome("a", "2024-01-18", "as_is", "tir", 10.0),
        outcome("a", "2024-02-01", "as_is", "tir", 70.0),
        outcome("a", "2024-02-01", "x", "tir", 70.0),
        outcome("a", "2024-02-01", "x", "tbr_70", None),
        outcome("b", "2024-02-01", "as_is", "tir", 80.0),
        outcome("b", "2024-02-01", "as_is", "tbr_70", 5.0),
    ]
    pairs = ((PATIENTS, patients), (TWINS, twins), (TWIN_PARAMETERS, parameters), (TIMELINES, timelines), (OUTCOMES, outcomes))
    return [frame(spark, table, rows) for table, rows in pairs]


@pytest.fixture(scope="module")
def known_patients(tables):
    return attributes(*tables, KNOWN).cache()


def test_attributes_describe_the_latest_converged_episode(known_patients):
    assert known_patients.columns == ["patient_id", *KNOWN.kinds]
    assert {t for _, t in known_patients.dtypes[1:]} == {"double", "string"}
    by = {r["patient_id"]: r for r in known_patients.collect()}
    assert set(by) == {"a", "b", "c", "d"} and known_patients.count() == 4
    a = by["a"]
    assert (a["status"], a["age_years"], a["body_weight"], a["wear_fraction"]) == ("converged", 24.0, 62.0, 0.8)
    assert (a["insulin_sensitivity"], a["absorption"], a["forecast_rmse"], a["tir"], a["tbr_70"]) == (2.0, 0.5, 20.0, 70.0, None)
    assert by["b"]["age_years"] == 13.0 and by["b"]["absorption"] is None  # two days before the birthday
    assert (by["c"]["status"], by["c"]["age_years"], by["c"]["wear_fraction"]) == ("insufficient_data", None, 0.3)
    assert by["d"]["status"] is None and by["d"]["age_years"] is None


def cohort(name, where):
    return CohortConfig(name=name, where=where)


COHORTS = [
    cohort("everyone", "true"),
    cohort("women", "sex = 'female'"),
    cohort("sensitive", "insulin_sensitivity > 2.5 and tir >= 80"),
    cohort("not_sensitive", "not (insulin_sensitivity > 2.5)"),
    cohort("nobody", "age_years > 200"),
]


def test_members(known_patients):
    found = sorted(tuple(r) for r in members(COHORTS, known_patients, KNOWN).collect())
    assert found == sorted(
        [("everyone", p) for p in "abcd"] + [("women", "a"), ("women", "c"), ("sensitive", "b"), ("not_sensitive", "a")]
    )


def test_subgroups_are_labelled_and_leave_nobody_out(known_patients):
    wanted = [SubgroupConfig(by="sex"), SubgroupConfig(by="age_years", breaks=(18, 24, 65))]
    found = {}
    for r in subgroups(wanted, known_patients).collect():
        found.setdefault(r["patient_id"], set()).add(r["subgroup"])
    assert found == {
        "a": {"all", "sex=female", "age_years=24 to 65"},
        "b": {"all", "sex=male", "age_years=below 18"},
        "c": {"all", "sex=female", "age_years=unknown"},
        "d": {"all", "sex=unknown", "age_years=unknown"},
    }
    for wrong in ({"by": "sexx"}, {"by": "sex", "breaks": (1,)}, {"by": "age_years"}, {"by": "age_years", "breaks": (3, 2)}):
        with pytest.raises(ConfigError, match="subgroups"):
            check_subgroups([SubgroupConfig(**wrong)], KNOWN)


def test_every_known_column_can_be_filtered_on(known_patients):
    for name, kind in KNOWN.kinds.items():
        where = f"{name} = 'x'" if kind == "text" else f"{name} < -5"
        assert members([cohort("x", where)], known_patients.limit(0), KNOWN).count() == 0


def test_a_wrong_cohort_is_refused_before_any_frame_is_needed():
    with pytest.raises(
        ConfigError,
        match="cohort resistant: unknown column insulin_resistance at line 1, column 1; known are absorption, age_years",
    ):
        check(cohort("resistant", "insulin_resistance > 1"), KNOWN)
    with pytest.raises(ConfigError, match="cohort twice: stands more than once"):
        check_all([cohort("twice", "true"), cohort("twice", "tir > 1")], KNOWN)
    with pytest.raises(ConfigError, match="cohort b: syntax error"):
        check_all([cohort("a", "true"), cohort("b", "tir >")], KNOWN)
    with pytest.raises(ConfigError, match="tir stands for more than one column"):
        Attributes(parameters=("tir",))
