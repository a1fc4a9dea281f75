"""The learn stage: phenotypes, rival models, its tables, fits under what it has learnt, and the report."""

import re
from dataclasses import replace

import numpy as np
import pytest
from pyspark.sql import functions as F

from benchmarks import published
from benchmarks.subjects import rows
from tests.population.drugs import ONE
from tests.small import configured
from twinlib.config import LearnConfig
from twinlib.population import learning, promotion
from twinlib.report.population import describe
from twinlib.stages import Night, Plan
from twinlib.tables import schemas

TRUTH, CV, DOSE = np.log([5.0, 30.0]), 0.1, 100.0
PATIENTS, SLOW = 120, 0.3
BROKEN = {"signals": [{"signal": "drug_concentration", "minutes": [5.0, 9.0], "values": [float("inf"), 1.0]}]}


def people():
    """Subjects after a bolus; three in ten are light and clear the drug slowly. One of them has an impossible reading."""
    rng = np.random.default_rng(11)
    slow = rng.random(PATIENTS) < SLOW
    theta = TRUTH + 0.15 * rng.standard_normal((PATIENTS, 2)) - np.column_stack([1.2 * slow, 0 * slow])
    out = {}
    for i, (cl, v) in enumerate(np.exp(theta)):
        t = np.sort(np.round(rng.uniform(0.3, 16, 6) * 60) / 60)
        y = DOSE / v * np.exp(-cl / v * t) * (1 + CV * rng.standard_normal(6))
        out[f"s{i:04d}"] = (t, y, {"drug_venous": ([0.0], [DOSE], 0.0)}, {"body_weight": float(rng.normal(55 if slow[i] else 80, 5))})
    lines = rows(published.batch("drug_concentration", out), ONE.name)
    return slow, [lines[0] | BROKEN, *lines[1:]]


@pytest.fixture(scope="module")
def learned(spark, tmp_path_factory):
    learn = {
        "draws": 40, "tolerance": 0.01, "phenotypes": 2, "rivals": ["tests.population.drugs:ADDITIVE", "published-1"], "start": {"clearance": 5.0},
    }
    path = configured(
        tmp_path_factory.mktemp("learn"), learn=learn, fit={"model": "tests.population.drugs:ONE", "prior_version": "learned", "importance_draws": 40},
        simulate=None, recommend=[], cohorts=[{"name": "everyone"}], episodes={"days": "all"},
    )
    night = Night(Plan.of(path), spark)
    slow, lines = people()
    names = schemas.TIMELINES.schema.fieldNames()
    night.storage.replace(schemas.TIMELINES, spark.createDataFrame([tuple(r[n] for n in names) for r in lines], schemas.TIMELINES.schema))
    night.learn()
    return night, slow


def test_phenotypes_are_found_and_bic_chooses_their_number(learned):
    night, slow = learned
    read = night.storage.read
    fit = read(schemas.POPULATION_FITS).where(F.col("model") == ONE.name).first()
    bics = fit.bic_by_phenotypes
    assert (fit.status, fit.phenotypes, fit.patients, fit.patients_left_out) == ("converged", 2, PATIENTS, 1) and len(bics) == 2 and bics[1] < bics[0]
    found = {(r.component, r.parameter): r for r in read(schemas.PHENOTYPES).collect()}
    assert found[2, "clearance"].weight == pytest.approx(slow.mean(), abs=0.03)
    assert found[1, "clearance"].median == pytest.approx(5.0, rel=0.1) and found[2, "clearance"].median == pytest.approx(5 * np.exp(-1.2), rel=0.1)
    members = read(schemas.POPULATION_MEMBERS).where((F.col("model") == ONE.name) & (F.col("prior_version") == fit.prior_version)).orderBy("patient_id").collect()
    assert (members[0].status, members[0].reason, members[0].phenotype, members[0].phenotype_probabilities) == ("left_out", "not_finite_at_start", None, None)
    assert np.mean([(m.phenotype == 2) == s for m, s in zip(members[1:], slow[1:])]) > 0.98
    assert all(sum(m.phenotype_probabilities) == pytest.approx(1.0) for m in members[1:])


def test_a_mixture_begins_with_the_clusters_that_are_there():
    """One direction holds two clusters, three others wide noise that k-means would rather part."""
    rng = np.random.default_rng(1)
    second = rng.random(400) < 0.3
    eta = rng.standard_normal((400, 4)) * [0.1, 1.0, 1.0, 1.0] + np.outer(second, [0.8, 0, 0, 0])
    centres, weights = learning.mixture(eta, 2, 1)
    assert sorted(weights) == pytest.approx([second.mean(), 1 - second.mean()], abs=0.01)
    assert sorted(centres[:, 0]) == pytest.approx([0, 0.8], abs=0.03)


def test_every_patient_is_told_which_model_suits(learned):
    night, _ = learned
    table = night.storage.read(schemas.MODEL_COMPARISONS).collect()
    assert len(table) == 3 * PATIENTS and {r.status for r in table if r.patient_id != "s0000"} == {"compared"}
    assert {(r.status, r.probability, r.log_bayes_factor, r.reason) for r in table if r.patient_id == "s0000"} == {("incomplete", None, None, "not_finite_at_start")}
    people = {}
    for r in table:
        if r.status == "compared":
            people.setdefault(r.patient_id, {})[r.candidate if r.candidate_version != "published-1" else "published-1"] = r
    total = {name: sum(p[name].log_bayes_factor for p in people.values()) for name in people["s0001"]}
    assert total[ONE.name] == 0 and max(total.values()) == 0 and total["published-1"] < -PATIENTS
    for p in people.values():
        assert sum(r.probability for r in p.values()) == pytest.approx(1.0)
        for r in p.values():
            assert r.log_bayes_factor == pytest.approx(r.log_evidence - p[ONE.name].log_evidence)
    assert {r.model for r in night.storage.read(schemas.POPULATIONS).collect()} == {ONE.name, "pharmacokinetics_additive"}


def test_tables_hold_no_nan_and_nothing_is_learnt_twice(learned):
    night, _ = learned
    tables = (
        schemas.POPULATIONS, schemas.POPULATION_EFFECTS, schemas.POPULATION_TRACE, schemas.PHENOTYPES, schemas.POPULATION_MEMBERS,
        schemas.MODEL_COMPARISONS, schemas.POPULATION_FITS,
    )
    for table in tables:
        for row in night.storage.read(table).collect():
            values = [x for v in row for x in (v if isinstance(v, list) else v.values() if isinstance(v, dict) else [v])]
            assert not [x for x in values if isinstance(x, float) and not np.isfinite(x)], table.name
    before = [night.storage.version(t) for t in tables]
    night.learn()
    assert [night.storage.version(t) for t in tables] == before


def test_the_report_describes_the_population(learned):
    night, slow = learned
    text = describe(night)
    for part in (
        "# Population of pharmacokinetics, version learned-", f"Learnt from {PATIENTS} patients; 1 left out", "| clearance | L/h |", "-2 log likelihood",
        "clearance below the population's by", f"Models compared on {PATIENTS - 1} patients", "published-1", "## Convergence",
    ):
        assert part in text, part
    shares = [int(n) for n in re.findall(r"### Phenotype \d: (\d+) % of the population, \d+ patients", text)]
    assert shares == pytest.approx([100 * (1 - slow.mean()), 100 * slow.mean()], abs=3)
    weights = [line for line in text.splitlines() if line.startswith("| body_weight")]
    medians = [float(line.split("|")[3]) for line in weights]
    assert medians == pytest.approx([80, 55], abs=3)
    strict = Night(replace(night.plan, config=night.config.model_copy(update={"disclosure": night.config.disclosure.model_copy(update={"smallest_cell": 60})})), night.spark)
    hidden = describe(strict)
    assert "withheld" in hidden and "body_weight" not in hidden and f", {slow[1:].sum()} patients" not in hidden


def test_twins_are_fitted_under_what_was_learnt(learned):
    night, _ = learned
    night.fit()
    twins = night.storage.read(schemas.TWINS).collect()
    assert {t.prior_version for t in twins} == {night.frozen.fitter.prior.version} and night.frozen.fitter.prior.version.startswith("learned-")
    assert sum(t.status == "converged" for t in twins) == PATIENTS - 1 and all(t.last_reading is not None for t in twins if t.status == "converged")
    assert night.storage.read(schemas.TWIN_CHECKS).count() == 0  # no twin before these


def tonight(night, **factors):
    """Patients get a reading of so many times what their twins foretell, and the night fits again; the rows of twin_checks by patient."""
    s = night.storage
    lines = {r.patient_id: r.asDict(True) for r in s.read(schemas.TIMELINES).collect()}
    known = {(r.patient_id, r.parameter): r.q50 for r in s.read(schemas.TWIN_PARAMETERS).collect()}
    for patient, factor in factors.items():
        cl, v = known[patient, "clearance"], known[patient, "volume"]
        signal = lines[patient]["signals"][0]
        value = float(factor * DOSE / v * np.exp(-cl / v * 20))
        lines[patient] |= {"signals": [signal | {"minutes": [*signal["minutes"], 1200.0], "values": [*signal["values"], value]}], "content_hash": "new"}
    names = schemas.TIMELINES.schema.fieldNames()
    s.replace(schemas.TIMELINES, night.spark.createDataFrame([tuple(r[n] for n in names) for r in lines.values()], schemas.TIMELINES.schema))
    night.fit()
    return {r.patient_id: r for r in s.read(schemas.TWIN_CHECKS).collect()}


def test_new_readings_are_held_against_last_nights_twin(learned):
    found = tonight(learned[0], s0001=1.0, s0002=8.0)
    assert set(found) == {"s0001", "s0002"} and {(r.status, r.new_readings) for r in found.values()} == {("checked", 1)}
    assert not found["s0001"].changed and found["s0002"].changed and found["s0002"].p_parameters < 1e-3


@pytest.mark.slow
def test_the_answer_stays_until_there_is_a_newer_one(learned):
    learned[0].fit()  # last night's twins, where no other test has made them
    before = tonight(learned[0], s0003=1.0)
    after = tonight(learned[0], s0004=1.0)
    assert set(after) == {*before, "s0004"} and all(after[p] == before[p] for p in before)


@pytest.mark.slow
def test_the_glucose_twin_learns_too_and_is_fitted_under_it(first):
    """Eight patients' week of glucose: the likelihood rises, and the learnt version serves the fit."""
    config = first.config.model_copy(update={"learn": LearnConfig(draws=40, iterations=200, tolerance=0.02, fixed=("flux_correlation_time",))})
    night = Night(replace(first.plan, config=config), first.spark)
    night.learn()
    fit = night.storage.read(schemas.POPULATION_FITS).where(F.col("model") == "glucose_insulin").first()
    assert (fit.patients, fit.patients_left_out) == (8, 0) and fit.status in ("converged", "singular_omega", "not_converged")
    trace = [r.minus_two_log_likelihood for r in night.storage.read(schemas.POPULATION_TRACE).orderBy("iteration").collect()]
    assert trace[-1] < trace[0] - 10
    assert "glucose_insulin" in describe(night)
    if fit.status == "converged":
        under = promotion.chosen(night.storage, night.plan.fitter.model, fit.prior_version)
        assert under.version == fit.prior_version and len(under.mean) == 8
