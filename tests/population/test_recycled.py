"""Learning from the draws that twins have already: against closed forms and against learning with new draws, and what has no draws."""

import numpy as np
import pytest
from pyspark.sql import functions as F
from scipy.optimize import minimize

from benchmarks.subjects import rows
from tests.population.drugs import ONE
from tests.population.test_learn import SD, TRUTH, subjects
from tests.small import configured
from twinlib.config import LearnConfig
from twinlib.errors import ConfigError, DataError
from twinlib.population import learn, learning, promotion, recycled, settings
from twinlib.population.estimate import Estimate, Structure
from twinlib.population.priors import Prior
from twinlib.stages import Night, Plan
from twinlib.tables import schemas

PATIENTS = 60
BOTH = ("clearance", "volume")


def drawn(y, noise, before, count, seed=1):
    """Draws of theta given y ~ N(theta, noise^2), under a normal prior (mean, SD), two parameters apart; and the exact log evidence."""
    (mean, sd), rng = before, np.random.default_rng(seed)
    precision = 1 / sd**2 + 1 / noise**2
    centre = (mean / sd**2 + y / noise**2) / precision
    draws = centre[:, None] + rng.standard_normal((len(y), count, 2)) / np.sqrt(precision)
    total = sd**2 + noise**2
    evidence = (-0.5 * np.log(2 * np.pi * total) - 0.5 * (y - mean) ** 2 / total).sum(1)
    prior = Prior("before", mean, np.diag(sd**2))
    return recycled.Drawn(draws, np.stack([prior.log_density(d, {}) for d in draws]), evidence, np.zeros(len(y)), np.full(len(y), 2), np.full(len(y), None))


@pytest.mark.parametrize("patients", [0.0, 50.0])
def test_the_population_is_what_the_readings_alone_would_give(patients):
    rng = np.random.default_rng(3)
    mean, sd, noise, before = np.array([1.0, -2.0]), np.array([0.5, 0.8]), np.array([0.4, 0.3]), (np.array([0.7, -1.5]), np.array([0.9, 1.2]))
    y = mean + np.sqrt(sd**2 + noise**2) * rng.standard_normal((300, 2))
    d = drawn(y, noise, before, 400)
    free, none = np.ones(2, bool), np.zeros((0, 2))
    s = Structure(BOTH, (), free, none.astype(bool), np.diag(free), np.zeros((0, 0), bool), np.zeros(0, bool))
    start = Estimate(before[0][None], np.diag(before[1] ** 2), np.zeros((0, 0)), np.zeros(0), np.ones(1))
    out = learn.run(lambda e, i, _: recycled.expect(d, np.zeros((300, 0)), e, s, i).sums.sum(0), start, s, 200, 1e-4, belief=settings.belief(LearnConfig(prior_patients=patients), start))
    assert out.status == "converged" and out.errors.shape == (4,) and np.isfinite(out.errors).all()

    def minus(x):  # the readings' likelihood, theta integrated out, and the prior of the variances
        m, v = x[:2], np.exp(2 * x[2:])
        own = (np.log(v + noise**2) + (y - m) ** 2 / (v + noise**2)).sum()
        return own + patients * (np.log(v) + before[1] ** 2 / v).sum()

    exact = minimize(minus, np.r_[mean, np.log(sd)], method="BFGS").x
    assert out.estimate.coefficients[0] == pytest.approx(exact[:2], abs=0.015)
    assert np.sqrt(np.diag(out.estimate.omega)) == pytest.approx(np.exp(exact[2:]), rel=0.03)
    assert out.log_likelihood == pytest.approx(-0.5 * (minus(exact) - patients * (2 * exact[2:] + before[1] ** 2 / np.exp(2 * exact[2:])).sum()) - 300 * np.log(2 * np.pi), abs=1.5)


@pytest.fixture(scope="module")
def fitted(spark, tmp_path_factory):
    """Sixty subjects with twins under the published prior; one has an impossible reading."""
    path = configured(
        tmp_path_factory.mktemp("recycled"), learn={"source": "twins", "only": list(BOTH), "tolerance": 0.005},
        fit={"model": "tests.population.drugs:ONE", "importance_draws": 1000, "draws": 400}, simulate=None, recommend=[], cohorts=[{"name": "everyone"}],
        episodes={"days": "all"},
    )
    night = Night(Plan.of(path), spark)
    lines = rows(subjects(PATIENTS, 5), ONE.name)
    lines[4] |= {"signals": [{"signal": "drug_concentration", "minutes": [5.0, 9.0], "values": [float("inf"), 1.0]}]}
    names = schemas.TIMELINES.schema.fieldNames()
    night.storage.replace(schemas.TIMELINES, spark.createDataFrame([tuple(r[n] for n in names) for r in lines], schemas.TIMELINES.schema))
    return night


def test_twins_teach_what_new_draws_would(fitted):
    night = fitted
    with pytest.raises(DataError, match="learn.source: no twin of model pharmacokinetics"):
        night.learn()
    night.fit()
    night.learn()
    fit = night.storage.read(schemas.POPULATION_FITS).first()
    found = {r.parameter: (r.median, r.sd) for r in night.storage.read(schemas.POPULATIONS).where(F.col("prior_version") == fit.prior_version).collect()}
    assert (fit.status, fit.patients, fit.patients_left_out) == ("converged", PATIENTS, 1) and fit.minus_two_log_likelihood_se < 4
    good = [i for i in range(PATIENTS) if i != 4]
    kernel, timelines = night.plan.fitter.kernel, night.storage.read(schemas.TIMELINES)
    anew = learning.learn_population(night.spark, timelines, kernel, LearnConfig(only=BOTH, draws=400, tolerance=0.005), 2, 2).best.estimate
    for j, name in enumerate(BOTH):
        median, sd = found[name]
        assert np.log(median) == pytest.approx(anew.coefficients[0, j], abs=0.01) and sd == pytest.approx(np.sqrt(anew.omega[j, j]), rel=0.08)
    truth = TRUTH + SD * np.random.default_rng(5).standard_normal((PATIENTS, 2))
    members = {r.patient_id: r for r in night.storage.read(schemas.POPULATION_MEMBERS).where(F.col("prior_version") == fit.prior_version).collect()}
    assert (members["s0004"].status, members["s0004"].reason) == ("left_out", "not_finite_at_start")
    off = np.array([members[f"s{i:04d}"].eta for i in good]) + [np.log(found[n][0]) for n in BOTH] - truth[good]
    assert np.abs(off).max() < 0.3 and all(members[f"s{i:04d}"].log_evidence is not None for i in good)

    # other partitions: the same bits
    stored = timelines, night.storage.read(schemas.TWINS)
    under = {"published-1": promotion.chosen(night.storage, ONE, "published-1")}
    frame = recycled.joined(*stored, ONE)
    a, b = (learning.learn_population(night.spark, frame.repartition(k), kernel, night.config.learn, night.config.seed, k, under) for k in (1, 5))
    assert a.best.log_likelihood == b.best.log_likelihood and (a.best.estimate.omega == b.best.estimate.omega).all()

    two = learning.learn_population(night.spark, frame, kernel, night.config.learn.model_copy(update={"phenotypes": 2}), 1, 2, under)
    assert len(two.bics) == 2 and two.best.estimate.components == 1  # there is one kind of subject here

    # a timeline that has changed since, and one without a twin, have no draws
    changed = stored[0].withColumn("content_hash", F.when(F.col("patient_id") == "s0001", "new").otherwise(F.col("content_hash")))
    why = {r.patient_id: (r.twin_reason, r.draws) for r in recycled.joined(changed, stored[1].where("patient_id != 's0002'"), ONE).collect()}
    assert why["s0001"] == ("outdated_twin", None) and why["s0002"] == ("no_twin", None) and why["s0003"][0] is None and len(why["s0003"][1]) == 800


@pytest.mark.parametrize(("config", "message"), [
    ({"only": ("speed",)}, "learn.only: speed: no parameter"),
    ({"only": ("clearance",), "fixed": ("volume",)}, "learn.only: names all that is learnt"),
    ({"source": "twins"}, "learn.source: twins know nothing of parameters that all patients share: error_cv"),
])
def test_settings_that_cannot_be_are_refused(config, message):
    with pytest.raises(ConfigError, match=message):
        settings.check(LearnConfig(**config), ONE)
