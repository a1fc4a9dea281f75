"""The life of a prior version: stored, compared, promoted, used."""

from datetime import UTC, datetime

import numpy as np
import pytest
from pyspark.sql import functions as F

from benchmarks.published import theophylline
from benchmarks.subjects import rows as timelines
from twinlib.config import load
from twinlib.errors import ConfigError
from twinlib.models.glucose_insulin import MODEL
from twinlib.models.pharmacokinetics import MODEL as DRUG
from twinlib.population import promotion
from twinlib.population.design import Column
from twinlib.population.priors import PUBLISHED, Prior, check_version, published, rows
from twinlib.stages import Night, Plan
from twinlib.tables import open_storage, schemas

from ..small import configured

HEAVY = Column("body_weight", "log", 70.0)


def version(name: str, status: str = "converged", **changes) -> dict:
    """The row of `population_fits` of a version of MODEL."""
    numbers = dict.fromkeys(("patients", "patients_left_out", "patients_known", "readings", "iterations", "parameters", "phenotypes"), 1)
    given = {"model": MODEL.name, "prior_version": name, "status": status, "learnt_at": datetime(2026, 1, 1, tzinfo=UTC)}
    return numbers | given | {"bic_by_phenotypes": [], "settings": "{}", "model_hash": ""} | changes


def stored(spark, storage, table, made: list[dict]) -> None:
    names = table.schema.fieldNames()
    storage.replace(table, spark.createDataFrame([tuple(r.get(n) for n in names) for r in made], table.schema))


@pytest.fixture
def storage(spark, tmp_path):
    storage = open_storage(spark, load(configured(tmp_path)))
    effects = np.linspace(0.1, 0.8, len(MODEL.fitted))[None]
    learned = Prior("learned-1", published(MODEL).mean + 0.1, published(MODEL).covariance * 0.25, (HEAVY,), effects)
    stored(spark, storage, schemas.POPULATIONS, [*rows(MODEL, published(MODEL)), *rows(MODEL, learned)])
    stored(spark, storage, schemas.POPULATION_FITS, [version("learned-1"), version("learned-2", "diverged")])
    stored(spark, storage, schemas.POPULATION_EFFECTS, [
        {
            "model": MODEL.name, "prior_version": "learned-1", "parameter": q.name, "covariate": HEAVY.covariate, "kind": HEAVY.kind,
            "reference": HEAVY.reference, "share": HEAVY.share, "term": 0, "coefficient": float(e), "fixed": False, "patients_missing": 0,
        }
        for q, e in zip(MODEL.fitted, effects[0])
    ])
    return storage


def test_nights_follow_what_was_promoted_last(storage):
    assert promotion.chosen(storage, MODEL, "promoted").version == PUBLISHED
    promotion.promote(storage, MODEL, "learned-1", "spring")
    found = promotion.chosen(storage, MODEL, "promoted")
    assert found.version == "learned-1"
    assert np.array_equal(found.mean, published(MODEL).mean + 0.1) and np.array_equal(found.covariance, published(MODEL).covariance * 0.25)
    heavy, usual = found.normal([{"body_weight": 140.0}, {"body_weight": 70.0}]).mean
    assert np.allclose(heavy - usual, np.log(2) * np.linspace(0.1, 0.8, len(MODEL.fitted)))
    promotion.promote(storage, MODEL, PUBLISHED, "back again")
    assert promotion.promoted(storage, MODEL) == PUBLISHED
    assert promotion.chosen(storage, MODEL, "learned-1").version == "learned-1"  # a fixed name stays with its version
    history = [(r.sequence, r.prior_version, r.replaces, r.comment) for r in storage.read(schemas.PROMOTIONS).orderBy("sequence").collect()]
    assert history == [(1, "learned-1", PUBLISHED, "spring"), (2, PUBLISHED, "learned-1", "back again")]


def test_a_version_that_is_not_there_or_in_use_is_not_promoted(storage):
    with pytest.raises(ConfigError, match="unknown version 'learned-9'.*known: published-1, learned-1"):
        promotion.promote(storage, MODEL, "learned-9", "")
    with pytest.raises(ConfigError, match="learning is diverged"):
        promotion.promote(storage, MODEL, "learned-2", "")
    with pytest.raises(ConfigError, match="in use already"):
        promotion.promote(storage, MODEL, PUBLISHED, "")
    assert storage.read(schemas.PROMOTIONS).count() == 0


def test_the_newest_is_promoted_under_its_own_name(storage):
    assert promotion.promote(storage, MODEL, "learned", "") == promotion.promoted(storage, MODEL) == "learned-1"


def test_a_version_is_named_as_one_can_be():
    for name in (PUBLISHED, "promoted", "learned", "learned-41c07a9d52be"):
        check_version(name)
    with pytest.raises(ConfigError, match="unknown version 'newest'"):
        check_version("newest")


def test_the_gain_in_evidence_is_that_of_a_normal_model():
    """Two correlated normal parameters, one reading of their sum, and a covariate that shifts them: the marginal likelihoods are known exactly."""
    old = Prior("a", np.zeros(2), np.array([[1.0, 0.3], [0.3, 0.5]]))
    new = Prior("b", np.array([0.4, 0.1]), np.array([[0.7, -0.1], [-0.1, 0.4]]), (HEAVY,), np.array([[0.2, 0.3]]))
    y, noise, ones, covariates = 0.7, 0.6, np.ones(2), {"body_weight": 95.0}
    pull = old.covariance @ ones / (ones @ old.covariance @ ones + noise**2)
    posterior = old.mean + pull * y, old.covariance - np.outer(pull, ones @ old.covariance)
    draws = np.random.default_rng(0).multivariate_normal(*posterior, 40000)
    gain, share = promotion.reweighted(draws, covariates, old, new)

    def log_marginal(p):
        normal = p.normal([covariates])
        variance = ones @ normal.covariance @ ones + noise**2
        return -0.5 * (y - normal.mean[0].sum()) ** 2 / variance - 0.5 * np.log(variance)

    assert gain == pytest.approx(log_marginal(new) - log_marginal(old), abs=0.01) and 0.5 < share <= 1


def test_a_comparison_uses_the_twins_of_the_version_in_use(first):
    model, twins, timelines = first.plan.fitter.model, first.storage.read(schemas.TWINS), first.storage.read(schemas.TIMELINES)
    old, converged = published(model), twins.where(F.col("status") == "converged").count()
    same = promotion.compare(model, old, old, twins, timelines)
    assert same.twins == converged > 0 and same.log_evidence_gain == 0 and same.worst_effective_share == 1
    assert all(s.shift == 0 for s in same.shifts if s.sd[0]) and {s.parameter for s in same.shifts} == {q.name for q in model.parameters}
    away = promotion.compare(model, old, Prior("x", old.mean + 2 * old.sd, old.covariance, (HEAVY,), np.ones((1, len(old.mean)))), twins, timelines)
    assert away.log_evidence_gain < 0 and all(s.shift == pytest.approx(2) for s in away.shifts if s.sd[0])
    assert away.effects == ((), ("log(body_weight)",))
    assert promotion.compare(model, Prior("y", old.mean, old.covariance), old, twins, timelines).twins == 0


def test_priors_with_other_shared_values_are_not_compared_by_evidence(first):
    """The stored draws know nothing of the likelihood under another residual error."""
    old, twins, timelines = published(DRUG), first.storage.read(schemas.TWINS), first.storage.read(schemas.TIMELINES)
    shared = next(q for q in DRUG.parameters if q.level == "population")
    found = promotion.compare(DRUG, old, Prior("z", old.mean, old.covariance, values={shared.name: 1.1 * shared.median}), twins, timelines)
    assert found.log_evidence_gain is None and [s.parameter for s in found.shifts if s.median[0] != s.median[1]] == [shared.name]
    assert promotion.compare(DRUG, old, old, twins, timelines).log_evidence_gain == 0


@pytest.mark.realdata
@pytest.mark.slow
def test_a_population_is_learnt_compared_promoted_and_then_used(spark, data, tmp_path):
    """Theophylline: nights stay with the published prior until the learnt one is promoted, and change every twin then."""
    cohort = theophylline(data)
    changes = {"simulate": None, "recommend": [], "subgroups": [], "cohorts": [{"name": "everyone"}], "learn": {"draws": 128, "tolerance": 0.02}}
    path = configured(tmp_path, fit={"model": DRUG.name, "prior_version": "promoted"}, **changes)

    def night() -> Night:
        return Night(Plan.of(path), spark)

    def twins() -> dict[str, tuple]:
        before = night()
        before.fit()
        return {r.patient_id: (r.prior_version, r.status, r.mode) for r in before.storage.read(schemas.TWINS).collect()}

    stored(spark, night().storage, schemas.TIMELINES, timelines(cohort, DRUG.name))
    published_twins = twins()
    assert {v[:2] for v in published_twins.values()} == {(PUBLISHED, "converged")} and len(published_twins) == 12
    learning = night()
    learning.learn()
    newest = promotion.chosen(learning.storage, DRUG, "learned")
    assert twins() == published_twins  # learning alone changes no night
    found = promotion.compare(DRUG, published(DRUG), newest, learning.storage.read(schemas.TWINS), learning.storage.read(schemas.TIMELINES))
    assert found.twins == 12 and found.log_evidence_gain is None  # the residual error was learnt too
    assert {s.parameter: s.median[1] for s in found.shifts}["clearance"] == pytest.approx(2.75, rel=0.05)  # nlme, saemix: 2.74 to 2.77
    promotion.promote(learning.storage, DRUG, newest.version, "theophylline")
    learnt_twins = twins()
    assert {v[:2] for v in learnt_twins.values()} == {(newest.version, "converged")}
    assert all(learnt_twins[p][2] != published_twins[p][2] for p in learnt_twins)
