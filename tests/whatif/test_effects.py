"""Cohort effects: against hand computation, a plain bootstrap, nominal coverage; invariance of every bit."""

import numpy as np
import pyarrow as pa
import pytest
from scipy import stats

from twinlib.whatif import publish
from twinlib.whatif.bootstrap import benjamini_hochberg, bootstrap_means, exponential_weights, p_value
from twinlib.whatif.cgm import OUTCOMES
from twinlib.whatif.effects import summaries, summarise
from twinlib.whatif.outcomes import Outcome

FLOATS = ("factual_mean", "counterfactual_mean", "effect_mean", "effect_q05", "effect_q95", "share_benefiting")
HIGHER, LOWER = (Outcome("x", "%", b, None, "", 70.0) for b in (1, -1))


def keys(n, seed=0):
    return np.random.default_rng(seed).integers(0, 2**64, n, dtype=np.uint64)


def rows(draws, factual=None, patients=None, episodes=None, keys_=None):
    """Rows as `summarise` reads them; draws [n, K]."""
    draws = np.asarray(draws, dtype=np.float32)
    n = len(draws)
    factual = np.full(n, 50.0) if factual is None else np.asarray(factual, dtype=float)
    effect = draws.astype(float).mean(axis=1)
    return pa.table(
        {
            "patient_id": patients or [f"p{i:06}" for i in range(n)],
            "episode": episodes or ["2024-01-01"] * n,
            "factual": factual,
            "counterfactual_mean": factual + effect,
            "effect_mean": effect,
            "effect_draws": pa.array(list(draws), pa.list_(pa.float32())),
            "factual_draws": pa.nulls(n, pa.list_(pa.float32())),
            "key": pa.array(keys(n).view(np.int64) if keys_ is None else keys_),
        }
    )


def test_weights_are_splitmix64_numbers_turned_exponential():
    # first outputs of SplitMix64 from state 1234567, as published with the reference implementation on Rosetta Code
    reference = np.array([6457827717110365317, 3203168211198807973, 9817491932198370423, 4593380528125082431], dtype=np.uint64)
    expected = -np.log(((reference >> np.uint64(11)).astype(float) + 0.5) / 2.0**53)
    assert np.array_equal(exponential_weights(np.array([1234567], dtype=np.uint64), 4)[0], expected)
    w = exponential_weights(keys(400), 500)
    assert w.min() > 0 and np.isfinite(w).all()
    assert stats.kstest(w.ravel(), "expon").pvalue > 1e-3
    assert (
        abs(np.corrcoef(w[:-1].ravel(), w[1:].ravel())[0, 1]) < 0.01
        and abs(np.corrcoef(w[:, :-1].ravel(), w[:, 1:].ravel())[0, 1]) < 0.01
    )


def test_a_patient_counts_once_whatever_the_number_of_episodes():
    table = rows(
        [[1, 3], [3, 5], [-10, -10]],
        factual=[40, 60, 80],
        patients=["a", "a", "b"],
        episodes=["e1", "e2", "e1"],
        keys_=np.array([5, 5, 9]),
    )
    out = summarise(table, HIGHER)
    assert out["factual_mean"] == 65 and out["effect_mean"] == -3.5 and out["counterfactual_mean"] == 61.5
    assert out["share_benefiting"] == out["share_harmed"] == summarise(table, LOWER)["share_benefiting"] == 0.5
    # every replicate is w (2 or 4) - (1 - w) 10 of two weights
    assert -10 < out["effect_q05"] < out["effect_mean"] < out["effect_q95"] < 4


def test_one_patient_has_the_interval_of_the_draws():
    draws = np.random.default_rng(0).normal(2, 1, (1, 64)).astype(np.float32)
    out = summarise(rows(draws), HIGHER)
    repeated = np.tile(draws[0].astype(float), 16)
    assert out["effect_q05"] == pytest.approx(np.quantile(repeated, 0.05, method="weibull"))
    assert out["effect_q95"] == pytest.approx(np.quantile(repeated, 0.95, method="weibull"))


def test_a_scenario_that_changes_nothing_has_exactly_no_effect():
    out = summarise(rows(np.zeros((37, 16)), factual=np.random.default_rng(1).uniform(20, 90, 37)), HIGHER)
    assert out["effect_mean"] == out["effect_q05"] == out["effect_q95"] == out["share_benefiting"] == 0
    assert out["factual_mean"] == out["counterfactual_mean"]


def test_the_share_benefiting_is_expected_and_no_change_is_no_benefit():
    table = rows([[1, 1, 0, 0], [1, 1, 1, 0], [-1, -1, -1, 1]])
    up, down = summarise(table, HIGHER), summarise(table, LOWER)
    assert up["share_benefiting"] == down["share_harmed"] == pytest.approx(6 / 12)
    assert down["share_benefiting"] == up["share_harmed"] == pytest.approx(3 / 12)
    neither = summarise(table, Outcome("x", "U/d", 0, None, ""))
    assert "share_benefiting" not in neither and neither["effect_mean"] == up["effect_mean"]


def test_the_number_needed_to_treat_is_that_of_patients_on_target():
    # 60 -> 75 reaches the target of 70, 68 -> 69 does not, 80 -> 65 loses it in one draw of two, 50 -> 71 reaches it
    out = summarise(rows([[15, 15], [1, 1], [-15, 5], [21, 21]], factual=[60, 68, 80, 50]), HIGHER)
    assert out["target_difference"] == pytest.approx(100 * (1 + 0 - 0.5 + 1) / 4)
    assert out["number_needed_to_treat"] == pytest.approx(4 / 1.5)
    harm = summarise(rows([[-15, -15], [1, 1]], factual=[80, 80]), HIGHER)
    assert harm["number_needed_to_treat"] == -2 and summarise(rows([[1, 1]], factual=[80]), HIGHER)["number_needed_to_treat"] is None


def test_p_and_q_values():
    assert p_value(np.array([1.0, 2, 3])) == 0.5 and p_value(np.zeros(99)) == 1 and p_value(np.arange(-49, 50)) == 1
    # Benjamini & Hochberg's (1995) own example of 15 comparisons: 4 are rejected at 5 %
    p = np.array([0.0001, 0.0004, 0.0019, 0.0095, 0.0201, 0.0278, 0.0298, 0.0344, 0.0459, 0.3240, 0.4262, 0.5719, 0.6528, 0.7590, 1.0])
    shuffled = np.random.default_rng(0).permutation(15)
    q = benjamini_hochberg(p[shuffled])
    assert np.array_equal(q, stats.false_discovery_control(p[shuffled])) or np.allclose(q, stats.false_discovery_control(p[shuffled]), rtol=1e-12)
    assert (q <= 0.05).sum() == 4


def test_different_numbers_of_draws_are_refused():
    table = pa.concat_tables([rows([[1, 2]]), rows([[1, 2, 3]])])
    with pytest.raises(ValueError, match=r"different lengths in one cohort: \[2, 3\]"):
        summarise(table, HIGHER)


def test_the_interval_is_as_wide_as_that_of_a_plain_nested_bootstrap():
    """Pick a posterior draw of the whole cohort, then resample its patients with replacement (Efron's bootstrap)."""
    rng = np.random.default_rng(7)
    draws = rng.gamma(2.0, 3.0, (150, 1)) + rng.normal(0, 4, (150, 64))
    ours = bootstrap_means(draws, keys(150), 8192)
    plain = np.array([draws[rng.integers(0, 150, 150), rng.integers(0, 64)].mean() for _ in range(8192)])
    assert ours.mean() == pytest.approx(plain.mean(), abs=0.03)
    assert ours.std() == pytest.approx(plain.std(), rel=0.03)
    assert np.quantile(ours, [0.05, 0.95]) == pytest.approx(np.quantile(plain, [0.05, 0.95]), abs=0.06)


@pytest.mark.parametrize("shrunk", [False, True])
def test_ninety_per_cent_intervals_cover_a_populations_mean_as_theory_says(shrunk):
    """Effects N(2, 4), each known with error of variance 2.25; posteriors with a flat prior, or shrunk by the true one."""
    rng = np.random.default_rng(11)
    cohorts, n, k, between, error = 600, 80, 32, 4.0, 2.25
    weight = between / (between + error) if shrunk else 1.0
    within = weight * error
    covered = 0
    for c in range(cohorts):
        seen = rng.normal(2, np.sqrt(between), n) + rng.normal(0, np.sqrt(error), n)
        draws = (2 + weight * (seen - 2))[:, None] + rng.normal(0, np.sqrt(within), (n, k))
        low, high = np.quantile(bootstrap_means(draws, keys(n, seed=c), 512), [0.05, 0.95])
        covered += low <= 2 <= high
    # n times the variances: of the estimate over cohorts; of replicates = spread of draws between patients + of a draw's mean
    estimate = weight**2 * (between + error)
    replicate = estimate + within + within
    nominal = 2 * stats.norm.cdf(stats.norm.ppf(0.95) * np.sqrt(replicate / estimate)) - 1
    assert nominal > 0.9 and covered / cohorts == pytest.approx(nominal, abs=0.02)


def test_coverage_is_nominal_where_twins_are_exact():
    rng = np.random.default_rng(12)
    covered = 0
    for c in range(600):
        draws = rng.gamma(1.0, 2.0, (100, 1)).repeat(2, axis=1)
        low, high = np.quantile(bootstrap_means(draws, keys(100, seed=c), 512), [0.05, 0.95])
        covered += low <= 2 <= high
    assert covered / 600 == pytest.approx(0.90, abs=0.03)


def test_the_order_of_rows_and_chunks_changes_no_bit():
    rng = np.random.default_rng(2)
    n = 5000  # more than one block
    patients = [f"p{i % 4000:05}" for i in range(n)]
    of = {p: int(k) for p, k in zip(sorted(set(patients)), keys(4000).view(np.int64))}
    table = rows(
        rng.normal(1, 9, (n, 16)),
        rng.uniform(0, 100, n),
        patients,
        [f"e{i // 4000}" for i in range(n)],
        np.array([of[p] for p in patients]),
    )
    first = summarise(table, HIGHER, replicates=64)
    shuffled = table.take(pa.array(rng.permutation(n)))
    chunked = pa.concat_tables([shuffled.slice(i, 700) for i in range(0, n, 700)])
    assert summarise(chunked, HIGHER, replicates=64) == first


SCHEMA = (
    "patient_id string, model string, episode string, scenario string, outcome string, unit string, status string, "
    "factual double, counterfactual_mean double, effect_mean double, effect_draws array<float>, factual_draws array<float>"
)


def outcome_rows():
    rng = np.random.default_rng(4)
    out = []
    for p in range(30):
        for scenario in ("as_is", "bolus_70"):
            for o in OUTCOMES[:3]:
                draws = np.zeros(16) if scenario == "as_is" else rng.normal(p - 12, 2, 16).astype(np.float32).astype(float)
                ok = not (scenario == "bolus_70" and p in (3, 17))
                value = (
                    (50.0 + p, 50.0 + p + float(draws.mean()), float(draws.mean()), draws.tolist())
                    if ok
                    else (50.0 + p, None, None, None)
                )
                out.append((f"p{p:02}", "m", "2024-01-01", scenario, o.name, o.unit, "ok" if ok else "not_applicable", *value, None))
    return out


def test_the_table_is_complete_and_the_same_whatever_the_partitioning(spark):
    data = outcome_rows()
    scenarios = ["as_is", "bolus_70", "basal_80"]
    member_rows = [("everyone", "all", f"p{p:02}") for p in range(31)] + [("few", "all", "p01"), ("few", "all", "p03")]
    groups = [("everyone", "all"), ("few", "all"), ("nobody", "all")]

    def run(order, partitions, seed=9):
        outcomes = spark.createDataFrame([data[i] for i in order], SCHEMA).repartition(partitions)
        members = spark.createDataFrame(
            member_rows[::-1] if partitions > 1 else member_rows, "cohort string, subgroup string, patient_id string"
        ).repartition(partitions)
        frame = spark.createDataFrame([(f"p{p:02}", "converged" if p < 30 else "failed") for p in range(31)], "patient_id string, status string")
        marked = publish.marks(frame, outcomes.where("status = 'ok'").selectExpr("patient_id", "concat(scenario, '|', outcome) as mark"))
        units = {o.name: o.unit for o in OUTCOMES}
        wanted = [publish.mark(s, o) for s in scenarios for o in units]
        shown = publish.cells(members, marked, wanted, 1)
        found = summaries(outcomes, members, OUTCOMES, seed, replicates=256).collect()
        rows = publish.effect_rows(found, groups, scenarios, units, shown)
        return {(r["cohort"], r["scenario"], r["outcome"]): r for r in rows}

    first = run(range(len(data)), 1)
    assert first == run(np.random.default_rng(0).permutation(len(data)), 3)
    assert len(first) == 3 * 3 * len(OUTCOMES)
    null = first["everyone", "as_is", "tir"]
    assert (null["n_all"], null["n_matched"], null["n_with_twin"], null["n_patients"], null["unit"]) == (31, 31, 30, 30, "%")
    assert null["p_value"] == null["q_value"] == 1 and null["comparisons"] == 2 * 3 * 2
    assert (
        null["effect_mean"] == null["effect_q05"] == null["effect_q95"] == null["share_benefiting"] == 0
        and null["factual_mean"] == 64.5
    )
    real = first["everyone", "bolus_70", "tir"]
    mine = [r for r in data if r[3] == "bolus_70" and r[4] == "tir" and r[6] == "ok"]
    assert real["n_patients"] == 28 and real["effect_mean"] == pytest.approx(np.mean([r[9] for r in mine]))
    assert real["share_benefiting"] == pytest.approx(np.mean([np.array(r[10]) > 0 for r in mine]))
    assert first["everyone", "bolus_70", "tbr_70"]["share_benefiting"] < 0.6  # lower is better there
    assert real["effect_q05"] < real["effect_mean"] < real["effect_q95"]
    few = first["few", "bolus_70", "tir"]
    assert (few["n_matched"], few["n_patients"], few["factual_mean"]) == (2, 1, 51.0)
    for key in (("nobody", "bolus_70", "tir"), ("everyone", "basal_80", "tir"), ("everyone", "bolus_70", "cv")):
        assert first[key]["n_patients"] == 0 and all(first[key].get(c) is None for c in FLOATS)
    other = run(range(len(data)), 1, seed=10)["everyone", "bolus_70", "tir"]
    assert other["effect_mean"] == real["effect_mean"] and other["effect_q05"] != real["effect_q05"]
