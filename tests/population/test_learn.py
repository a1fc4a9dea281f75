"""Learning on simulated patients with known truth: recovery, bits, occasions, phenotypes, covariates, and everything that can be wrong."""

import datetime as dt
from copy import copy
from dataclasses import replace

import numpy as np
import pytest

from benchmarks import published
from benchmarks.subjects import rows
from tests.population.drugs import ONE, TWO
from twinlib.config import EffectConfig, LearnConfig
from twinlib.engine.kernel import Kernel
from twinlib.errors import ConfigError, DataError
from twinlib.models.batch import Batch
from twinlib.models.pharmacokinetics import Pharmacokinetics
from twinlib.population import learning, priors, results, settings
from twinlib.population.expectation import Settings, Sums, expect
from twinlib.population.maximisation import maximise
from twinlib.population.patients import Patients
from twinlib.tables.schemas import POPULATION_EFFECTS, POPULATION_FITS, POPULATION_MEMBERS, POPULATION_TRACE, POPULATIONS, TIMELINES

MODEL = ONE
TRUTH, SD, CV, DOSE = np.log([5.0, 30.0]), np.array([0.3, 0.2]), 0.1, 100.0


@pytest.fixture(scope="module")
def kernel():
    return Kernel(MODEL)


def subjects(n, seed, theta=None, readings=6, covariates=None, episode="all", prefix="s"):
    """n subjects after a bolus, by the closed form; theta (n, 2) log clearance and volume."""
    rng = np.random.default_rng(seed)
    theta = TRUTH + SD * rng.standard_normal((n, 2)) if theta is None else theta
    out = {}
    for i, (cl, v) in enumerate(np.exp(theta)):
        t = np.sort(np.round(rng.uniform(0.3, 16, readings) * 60) / 60)
        y = DOSE / v * np.exp(-cl / v * t) * (1 + CV * rng.standard_normal(readings))
        out[f"{prefix}{i:04d}"] = (t, y, {"drug_venous": ([0.0], [DOSE], 0.0)}, covariates[i] if covariates else {})
    made = published.batch("drug_concentration", out)
    return replace(made, ids=tuple((p, episode) for p, _ in made.ids))


def joined(*batches: Batch) -> Batch:
    """The episodes of all batches, by patient."""
    order = sorted((ids, k, i) for k, b in enumerate(batches) for i, ids in enumerate(b.ids))
    pick = lambda field: tuple(getattr(batches[k], field)[i] for _, k, i in order)  # noqa: E731
    return Batch(pick("ids"), np.array(pick("minutes")), pick("signals"), pick("inputs"), pick("covariates"), np.array(pick("offsets")))


def frame(spark, cohort: Batch, changes=()):
    timelines = rows(cohort, MODEL.name)
    for i, change in changes:
        timelines[i] |= change
    names = TIMELINES.schema.fieldNames()
    return spark.createDataFrame([tuple(r[n] for n in names) for r in timelines], TIMELINES.schema)


def learnt(spark, cohort, kernel, config=LearnConfig(draws=64), partitions=2, changes=()):
    return learning.learn_population(spark, frame(spark, cohort, changes), kernel, config, 1, partitions)


def test_truth_is_recovered_within_standard_errors(kernel):
    """Four fixed effects of 400 subjects; the errors are those of theory where data are rich."""
    out, last = published.estimate(MODEL, subjects(400, 3), LearnConfig(draws=64), kernel=kernel)
    e = out.estimate
    found = np.array([*e.coefficients[0], *np.diag(e.omega), e.values[0]])
    assert out.status == "converged"
    np.testing.assert_array_less(abs(found - [*TRUTH, *SD**2, np.log(CV)]) / out.errors, 3.0)
    np.testing.assert_allclose(out.errors[:2], np.sqrt(np.diag(e.omega) / 400), rtol=0.15)
    likelihoods = [i.log_likelihood for i in out.trace]
    assert likelihoods[-1] > likelihoods[0] and abs(np.nanmean(last.eta, 0)).max() < 0.01


@pytest.mark.slow
@pytest.mark.parametrize(("error", "truth"), [
    ("additive", {"error_sd": 0.15}), ("combined", {"error_sd": 0.1, "error_cv": 0.1}), ("log_normal", {"error_cv": 0.2}),
])
def test_every_kind_of_residual_error_is_recovered(error, truth):
    """Proportional error: all other tests."""
    rng, n = np.random.default_rng(24), 400
    theta, out = TRUTH + SD * rng.standard_normal((n, 2)), {}
    for i, (cl, v) in enumerate(np.exp(theta)):
        t = np.sort(rng.choice(np.arange(18, 960), 8, replace=False)) / 60
        level, e = DOSE / v * np.exp(-cl / v * t), rng.standard_normal(8)
        sd = np.hypot(truth.get("error_sd", 0.0), truth.get("error_cv", 0.0) * level)
        out[f"s{i:04d}"] = (t, level * np.exp(truth["error_cv"] * e) if error == "log_normal" else level + sd * e, {"drug_venous": ([0.0], [DOSE], 0.0)}, {})
    model = Pharmacokinetics(oral=False, error=error)
    found, _ = published.estimate(model, published.batch("drug_concentration", out), LearnConfig(draws=64))
    assert found.status == "converged"
    names = found.structure.shared
    values, errors = found.estimate.values, found.errors[-len(names) :]
    np.testing.assert_array_less(abs(values - np.log([truth[n] for n in names])) / errors, 3.0)
    np.testing.assert_array_less(abs(found.estimate.coefficients[0] - TRUTH) / found.errors[:2], 3.0)


def test_information_is_the_slope_of_the_score(kernel):
    """Louis' formula against differences of the total score, whose own draws move with the parameter."""
    cohort = subjects(40, 4)
    out, _ = published.estimate(MODEL, cohort, LearnConfig(draws=2048, omega="full"), kernel=kernel)
    s, e = out.structure, out.estimate
    patients, ids, layout = Patients(cohort.data(MODEL, kernel.nominal_step), np.arange(41)), [p for p, _ in cohort.ids], Sums(out.structure, 1, True)

    def score(change):
        coefficients, omega = e.coefficients.copy(), e.omega.copy()
        coefficients[0] += change[:2]
        omega += [[change[2], change[3]], [change[3], change[4]]]
        moved = replace(e, coefficients=coefficients, omega=omega, values=e.values + change[5])
        sums = layout.unpack(expect(kernel, patients, ids, np.zeros((40, 0)), moved, s, Settings(2048, 1, True)).sums.sum(0))
        return sums["score"], sums["information"]

    information = score(np.zeros(6))[1]
    steps = np.array([0.01, 0.01, 0.002, 0.002, 0.002, 0.02])
    slopes = np.array([(score(h)[0] - score(-h)[0]) / (2 * h.max()) for h in np.diag(steps)])
    scale = np.sqrt(np.outer(np.diag(information), np.diag(information)))
    np.testing.assert_allclose(-slopes / scale, information / scale, atol=0.05)


def test_same_bits_whatever_the_partitions_and_bad_patients_are_left_out(spark, kernel):
    cohort = subjects(30, 5)
    silent = {"signals": [{"signal": "drug_concentration", "minutes": [5.0], "values": [float("nan")]}]}
    infinite = {"signals": [{"signal": "drug_concentration", "minutes": [5.0, 9.0], "values": [float("inf"), 1.0]}]}
    broken = {"signals": [{"signal": "drug_concentration", "minutes": [9.0, 5.0], "values": [1.0, 2.0, 3.0]}]}
    changes = [(3, silent), (7, infinite), (11, broken), (15, {"status": "insufficient_data", "reason": "no_records"})]
    a, b = (learnt(spark, cohort, kernel, partitions=p, changes=changes) for p in (1, 5))
    assert a.best.log_likelihood == b.best.log_likelihood and (a.best.estimate.omega == b.best.estimate.omega).all()
    assert (a.best.sums["patients"], a.best.sums["left_out"], a.known) == (29, 3, 29)
    good = joined(*[cohort.row(i) for i in range(30) if i not in (3, 7, 11, 15)])
    alone = learnt(spark, good, kernel)
    assert alone.best.log_likelihood == pytest.approx(a.best.log_likelihood, abs=1e-9)
    assert results.prior(a).version == results.prior(b).version
    members = {r.patient_id: r for r in learning.members(frame(spark, cohort, changes), a, "v", 3).collect()}
    assert len(members) == 29 and (members["s0003"].reason, members["s0007"].reason) == ("no_observation", "not_finite_at_start")
    assert members["s0011"].reason.startswith("error:") and members["s0003"].log_evidence is None and members["s0003"].eta is None
    assert sum(m.log_evidence for m in members.values() if m.status == "used") == pytest.approx(a.best.log_likelihood, abs=1e-6)


def test_rows_of_the_tables_hold_no_nan_and_give_the_prior_back(spark, kernel):
    covariates = [{"body_weight": float(w) if i % 7 else float("nan"), "sex": float(i % 3)} for i, w in enumerate(np.random.default_rng(6).uniform(50, 100, 90))]
    weights = np.array([np.nan_to_num(c["body_weight"], nan=75.0) for c in covariates])
    rng = np.random.default_rng(7)
    theta = TRUTH + SD * rng.standard_normal((90, 2)) + np.column_stack([0.75 * np.log(weights / 70), 0.4 * np.array([c["sex"] == 1 for c in covariates])])
    effects = (
        EffectConfig(parameter="clearance", covariate="body_weight", kind="log", reference=70), EffectConfig(parameter="volume", covariate="sex", kind="category", reference=0),
    )
    config = LearnConfig(draws=64, effects=effects, omega=(("clearance", "volume"),), phenotypes=1)
    out = learnt(spark, subjects(90, 8, theta, covariates=covariates), kernel, config)
    prior = results.prior(out)
    tables = {
        POPULATIONS: results.parameter_rows(out, prior), POPULATION_EFFECTS: results.effect_rows(out, prior.version),
        POPULATION_FITS: [results.fit_row(out, prior.version, dt.datetime.now(dt.UTC))], POPULATION_TRACE: results.trace_rows(out, prior.version),
    }
    for table, made in tables.items():
        required = {c.name for c in table.columns if not c.nullable}
        assert made and all(required <= {k for k, v in r.items() if v is not None} for r in made), table.name
        assert not [k for r in made for k, v in r.items() if isinstance(v, float) and not np.isfinite(v)], table.name
    found = {(e["parameter"], e["level"]): e for e in tables[POPULATION_EFFECTS]}
    assert set(found) == {("clearance", None), ("volume", 1.0), ("volume", 2.0)}
    for at, truth in ((("clearance", None), 0.75), (("volume", 1.0), 0.4), (("volume", 2.0), 0.0)):
        assert abs(found[at]["coefficient"] - truth) < 3 * found[at]["coefficient_se"], at
    assert found["clearance", None]["patients_missing"] == 13
    back = priors.find(MODEL, prior.version, tables[POPULATION_FITS], tables[POPULATIONS], tables[POPULATION_EFFECTS])
    newest = priors.find(MODEL, "learned", tables[POPULATION_FITS], tables[POPULATIONS], tables[POPULATION_EFFECTS])
    assert back.digest == prior.digest == newest.digest and newest.version == prior.version
    heavy, unknown = back.normal([{"body_weight": 140.0, "sex": 0.0}, {}]).mean
    assert heavy[0] - out.best.estimate.coefficients[0, 0] == pytest.approx(np.log(2) * found["clearance", None]["coefficient"])
    assert unknown[0] == pytest.approx(out.best.estimate.coefficients[0, 0])
    with pytest.raises(ConfigError, match="learning is diverged"):
        priors.find(MODEL, prior.version, [tables[POPULATION_FITS][0] | {"status": "diverged"}], [], [])


def test_blocks_of_omega_keep_their_zeros():
    s = settings.start(LearnConfig(omega=(("clearance", "peripheral_volume"),), fixed=("exchange",)), TWO, (), False)[1]
    e = settings.start(LearnConfig(), TWO, (), False)[0]
    rng = np.random.default_rng(20)
    theta = rng.standard_normal((50, 4)) @ rng.standard_normal((4, 4))
    sums = Sums(s, 1, False).unpack(np.zeros(Sums(s, 1, False).size)) | {
        "weight": np.array([50.0]), "xx": np.full((1, 1), 50.0), "xm": theta.sum(0)[None], "second": theta.T @ theta, "curvature": -np.eye(1), "gradient": np.zeros(1),
    }
    omega = maximise(sums, e, s)[0].omega
    assert [tuple(pair) for pair in np.argwhere(np.tril(omega, -1))] == [(3, 0)] and omega[2, 2] == e.omega[2, 2]
    np.testing.assert_allclose(omega[np.ix_([0, 3], [0, 3])], np.cov(theta[:, [0, 3]].T, bias=True))
    assert s.count(1) == 3 + 4 + 1  # means, variances and one covariance, the error


def test_episodes_of_a_patient_share_what_does_not_differ_between_them(kernel):
    """Three episodes each; clearance differs between patients (SD 0.3) and between episodes (0.15)."""
    model = copy(MODEL)
    model.parameters = tuple(replace(q, level="occasion") if q.name == "clearance" else q for q in MODEL.parameters)
    own = copy(kernel)
    own.model = model
    rng = np.random.default_rng(9)
    n = 150
    theta = TRUTH + SD * rng.standard_normal((n, 2))
    parts = [subjects(n, 10 + k, theta + np.array([0.15, 0.0]) * rng.standard_normal((n, 2)), readings=4, episode=f"e{k}") for k in range(3)]
    cohort = joined(*parts)
    patients, ids = Patients(cohort.data(model, own.nominal_step), np.arange(0, 3 * n + 1, 3)), [p for p, _ in cohort.ids[::3]]
    config = LearnConfig(draws=128)
    first, s = settings.start(config, model, (), True)
    out = published.learn.run(
        lambda e, information, _: expect(own, patients, ids, np.zeros((n, 0)), e, s, Settings(128, 1, information)).sums.sum(0), first, s, 100, 2e-3
    )
    assert out.status == "converged"
    found = np.array([*np.diag(out.estimate.omega), out.estimate.occasion[0, 0]])
    np.testing.assert_array_less(abs(found - [0.09, 0.04, 0.0225]) / out.errors[2:5], 3.0)
    assert abs(out.estimate.occasion[0, 0] - 0.0225) < 0.006


@pytest.mark.parametrize(("effect", "covariates", "message"), [
    ({"kind": "linear"}, lambda i: {}, "missing for all 20 patients"),
    ({"kind": "linear"}, lambda i: {"bilirubin": 2.0}, "the same for all patients"),
    ({"kind": "log"}, lambda i: {"bilirubin": float(i)}, "not positive"),
    ({"kind": "below", "reference": 0.5}, lambda i: {"bilirubin": float(1 + i)}, "no patient is below 0.5"),
    ({"kind": "category"}, lambda i: {"bilirubin": i / 7}, "20 different values|more than the 20"),
])
def test_covariates_that_cannot_be_used_are_refused(spark, kernel, effect, covariates, message):
    n = 22 if effect["kind"] == "category" else 20
    config = LearnConfig(effects=(EffectConfig(parameter="clearance", covariate="bilirubin", **effect),))
    with pytest.raises(DataError, match=message):
        learnt(spark, subjects(n, 13, covariates=[covariates(i) for i in range(n)]), kernel, config)


def test_too_few_patients_are_refused(spark, kernel):
    with pytest.raises(DataError, match="1 patients of model pharmacokinetics have data"):
        learnt(spark, subjects(1, 14), kernel)


@pytest.mark.parametrize(("config", "message"), [
    ({"fixed": ("speed",)}, "learn.fixed: speed: no parameter"),
    ({"effects": ({"parameter": "error_cv", "covariate": "x"},)}, "learn.effects: error_cv: no parameter"),
    ({"omega": (("clearance", "volume"), ("volume",))}, "more than one block"),
])
def test_settings_that_do_not_fit_the_model_are_refused(config, message):
    with pytest.raises(ConfigError, match=message):
        settings.check(LearnConfig(**config), MODEL)


def test_a_fixed_parameter_stays_and_an_unidentified_one_has_no_standard_error(kernel):
    one = {"draws": 64, "iterations": 60}
    out, _ = published.estimate(MODEL, subjects(60, 15), LearnConfig(**one, fixed=("volume", "error_cv"), start={"volume": 30.0, "error_cv": 0.1}), kernel=kernel)
    assert out.estimate.coefficients[0, 1] == np.log(30.0) and out.estimate.omega[1, 1] == 1.0 and out.estimate.shared(MODEL)["error_cv"] == pytest.approx(0.1)
    assert out.parameters == 2 and len(out.errors) == 2
    # one reading each, at the same time: only one combination of clearance, volume, and their variances is seen
    single = {f"s{i}": ([3.0], [y], {"drug_venous": ([0.0], [DOSE], 0.0)}, {}) for i, y in enumerate(np.exp(0.3 * np.random.default_rng(16).standard_normal(60)))}
    out, _ = published.estimate(MODEL, published.batch("drug_concentration", single), LearnConfig(**one, fixed=("error_cv",)), kernel=kernel)
    fit = made(kernel, out)[POPULATION_FITS][0]
    assert set(fit["unidentified"]) & {"clearance", "volume", "variance between patients of clearance", "variance between patients of volume"}
    assert np.isfinite(out.estimate.omega).all() and np.isfinite(out.log_likelihood)


def made(kernel, best, config=LearnConfig()):
    """All rows of the tables of something learnt; none of them may hold a NaN."""
    out = learning.Learning(kernel, config, 1, (), {}, 40, best, [best.bic], {1: best.trace})
    prior = results.prior(out)
    tables = {
        POPULATIONS: results.parameter_rows(out, prior), POPULATION_EFFECTS: results.effect_rows(out, prior.version),
        POPULATION_FITS: [results.fit_row(out, prior.version, dt.datetime.now(dt.UTC))], POPULATION_TRACE: results.trace_rows(out, prior.version),
    }
    for table, lines in tables.items():
        for row in lines:
            assert not [k for c in table.columns for k in [c.name] if not c.nullable and row.get(k) is None], table.name
            values = [x for v in row.values() for x in (v if isinstance(v, list) else v.values() if isinstance(v, dict) else [v])]
            assert not [x for x in values if isinstance(x, float) and not np.isfinite(x)], table.name
    return tables


def test_a_vanishing_variance_and_a_diverging_run_have_a_status(kernel):
    alike = np.tile(TRUTH, (40, 1))
    out, _ = published.estimate(MODEL, subjects(40, 17, alike, readings=10), LearnConfig(draws=64, iterations=400, tolerance=1e-6), kernel=kernel)
    assert out.status in ("singular_omega", "not_converged") and np.isfinite(out.estimate.omega).all()
    made(kernel, out)
    s = out.structure
    layout = Sums(s, 1, False)

    def falling(estimate, information, share):
        falling.calls += 1
        good = layout.pack(1, **{k: np.zeros((1, *shape)) for k, shape in layout.shapes.items()} | {
            "patients": np.full(1, 40.0), "weight": np.full((1, 1), 40.0), "log_likelihood": np.full(1, -100.0 * falling.calls),
            "xx": np.full((1, 1, 1), 40.0), "xm": 40 * TRUTH[None, None], "second": 40 * (np.outer(TRUTH, TRUTH) + np.diag(SD**2))[None],
            "curvature": -np.ones((1, 1, 1)), "gradient": np.full((1, 1), 0.3 * (-1) ** falling.calls),
        })[0]
        return good if not information else np.zeros(Sums(s, 1, True).size)

    falling.calls = 0
    lost = published.learn.run(falling, out.estimate, s, 20, 1e-9)
    assert (lost.status, lost.reason) == ("diverged", "likelihood_fell")
    made(kernel, lost)
    nothing = published.learn.run(lambda e, i, f: np.zeros(Sums(s, 1, i).size), out.estimate, s, 20, 1e-9)
    assert (nothing.status, nothing.reason) == ("diverged", "no_patient_has_a_posterior")
    assert made(kernel, nothing)[POPULATION_FITS][0]["minus_two_log_likelihood"] is None
    spoilt = published.learn.run(lambda e, i, f: np.r_[40.0, 0.0, 240.0, 40.0, np.full(Sums(s, 1, i).size - 4, np.nan)], out.estimate, s, 20, 1e-9)
    assert (spoilt.status, spoilt.reason) == ("diverged", "not_finite")
    made(kernel, spoilt)


def test_episodes_stay_together_whatever_the_partitions(spark, kernel):
    """Nothing differs between a patient's episodes here, so two episodes say what one with all readings says."""
    theta = TRUTH + SD * np.random.default_rng(21).standard_normal((20, 2))
    cohort = joined(subjects(20, 22, theta, readings=3, episode="a"), subjects(20, 23, theta, readings=3, episode="b"))
    one = {"draws": 40, "iterations": 3}
    out = [learnt(spark, cohort, kernel, LearnConfig(**one), partitions=p).best for p in (1, 3)]
    assert out[0].log_likelihood == out[1].log_likelihood and (out[0].sums["patients"], out[0].sums["episodes"]) == (20, 40)
    alone = sum(published.estimate(MODEL, subjects(20, 22 + k, theta, readings=3), LearnConfig(**one), kernel=kernel)[0].log_likelihood for k in (0, 1))
    assert out[0].log_likelihood > alone  # the second episode is foretold by the first


def test_a_stratified_sample_is_the_same_whatever_the_partitions(spark):
    cohort = joined(subjects(60, 18, readings=2, prefix="a"), subjects(30, 19, readings=9, prefix="b"))
    chosen = []
    for partitions in (1, 4):
        part, known = learning.sampled(frame(spark, cohort).repartition(partitions), 30, 1)
        chosen.append(sorted(r.patient_id for r in part.select("patient_id").collect()))
        assert known == 90
    assert chosen[0] == chosen[1] and [sum(p.startswith(x) for p in chosen[0]) for x in "ab"] == [20, 10]
    assert POPULATION_MEMBERS.by_patient
