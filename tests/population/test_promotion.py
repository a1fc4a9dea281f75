"""The life of a prior version: stored, compared, promoted, used."""

import numpy as np
import pytest

from twinlib.config import load
from twinlib.errors import ConfigError
from twinlib.models.glucose_insulin import MODEL
from twinlib.population import promotion
from twinlib.population.priors import PUBLISHED, Prior, published, rows
from twinlib.tables import open_storage, schemas

from ..small import configured


@pytest.fixture
def storage(spark, tmp_path):
    storage = open_storage(spark, load(configured(tmp_path)))
    learned = Prior("learned-1", published(MODEL).mean + 0.1, published(MODEL).sd * 0.5)
    both = [*rows(MODEL, published(MODEL)), *rows(MODEL, learned)]
    storage.replace(schemas.POPULATIONS, spark.createDataFrame(both, schemas.POPULATIONS.schema))
    return storage


def test_nights_follow_what_was_promoted_last(storage):
    assert promotion.chosen(storage, MODEL, "promoted").version == PUBLISHED
    promotion.promote(storage, MODEL, "learned-1", "spring")
    found = promotion.chosen(storage, MODEL, "promoted")
    assert found.version == "learned-1"
    assert np.allclose(found.mean, published(MODEL).mean + 0.1, rtol=1e-12) and np.array_equal(found.sd, published(MODEL).sd * 0.5)
    promotion.promote(storage, MODEL, PUBLISHED, "back again")
    assert promotion.promoted(storage, MODEL) == PUBLISHED
    assert promotion.chosen(storage, MODEL, "learned-1").version == "learned-1"  # a fixed name stays with its version
    history = [(r.sequence, r.prior_version, r.replaces, r.comment) for r in storage.read(schemas.PROMOTIONS).orderBy("sequence").collect()]
    assert history == [(1, "learned-1", PUBLISHED, "spring"), (2, PUBLISHED, "learned-1", "back again")]


def test_a_version_that_is_not_there_or_in_use_is_not_promoted(storage):
    with pytest.raises(ConfigError, match="unknown version 'learned-9'.*known: learned-1, published-1"):
        promotion.promote(storage, MODEL, "learned-9", "")
    with pytest.raises(ConfigError, match="in use already"):
        promotion.promote(storage, MODEL, PUBLISHED, "")
    assert storage.read(schemas.PROMOTIONS).count() == 0


def test_the_gain_in_evidence_is_that_of_a_normal_model(spark):
    """One normal parameter with one reading: the marginal likelihoods are known exactly."""
    old, new = Prior("a", np.array([0.0]), np.array([1.0])), Prior("b", np.array([0.5]), np.array([0.8]))
    y, noise = 0.7, 0.6
    mean, sd = y / (1 + noise**2), noise / np.sqrt(1 + noise**2)
    draws = np.random.default_rng(0).normal(mean, sd, (20000, 1))
    gain, share = promotion.reweighted(draws, old, new)

    def log_marginal(p):
        return -0.5 * (y - p.mean[0]) ** 2 / (p.sd[0] ** 2 + noise**2) - 0.5 * np.log(p.sd[0] ** 2 + noise**2)

    assert gain == pytest.approx(log_marginal(new) - log_marginal(old), abs=0.01) and 0.5 < share <= 1


def test_a_comparison_uses_the_twins_of_the_version_in_use(first):
    model, twins = first.plan.fitter.model, first.storage.read(schemas.TWINS)
    old = published(model)
    same = promotion.compare(model, old, old, twins)
    assert same.twins == 8 and same.log_evidence_gain == 0 and same.worst_effective_share == 1 and all(s.shift == 0 for s in same.shifts)
    away = promotion.compare(model, old, Prior("x", old.mean + 2 * old.sd, old.sd), twins)
    assert away.log_evidence_gain < 0 and all(s.shift == pytest.approx(2) for s in away.shifts)
    assert promotion.compare(model, Prior("y", old.mean, old.sd), old, twins).twins == 0
