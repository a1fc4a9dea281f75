"""Outcomes against hand-computed traces, NumPy's own quantiles, and iglu on real traces."""

import csv

import numpy as np
import pytest

from twinlib.whatif.cgm import BETTER, OUTCOMES, cgm_outcomes
from twinlib.whatif.outcomes import contrast, wear_fraction

NAMES = [o.name for o in OUTCOMES]


def named(values) -> dict[str, float]:
    return dict(zip(NAMES, values.tolist()))


def test_a_trace_worked_out_by_hand_counts_limits_as_the_consensus_does():
    trace = np.array([53.9, 54, 69.9, 70, 180, 180.1, 250, 250.1, np.nan, 100])
    out = named(cgm_outcomes(trace))
    ninth = 100 / 9
    assert out["tbr_54"] == pytest.approx(ninth) and out["tbr_70"] == pytest.approx(3 * ninth)
    assert out["tir"] == pytest.approx(3 * ninth)  # 70, 180 and 100
    assert out["tar_180"] == pytest.approx(3 * ninth) and out["tar_250"] == pytest.approx(ninth)
    assert out["mean_glucose"] == pytest.approx(1208 / 9)
    assert out["gmi"] == pytest.approx(3.31 + 0.02392 * 1208 / 9)
    assert named(cgm_outcomes(np.array([100.0, 140.0])))["cv"] == pytest.approx(100 * np.sqrt(800) / 120)


def test_ranges_are_complete_and_units_and_directions_declared():
    trace = np.random.default_rng(3).uniform(40, 400, (4, 500))
    out = dict(zip(NAMES, cgm_outcomes(trace).T))
    assert np.allclose(out["tir"] + out["tbr_70"] + out["tar_180"], 100)
    assert {o.name: o.better for o in OUTCOMES if o.better > 0} == {"tir": 1}
    assert {o.unit for o in OUTCOMES} == {"%", "mg/dL", "1", "1/wk", "U/d", "g/d"} and all(o.better in (-1, 0, 1) for o in OUTCOMES)


def test_wear_counts_what_a_reading_stands_for():
    trace = np.full(120, 120.0)
    trace[:36] = np.nan
    assert wear_fraction(trace) == 0.7
    slow = np.full(120, np.nan)
    slow[::3] = 120.0  # a sensor that gives a reading every 15 minutes, worn throughout
    assert wear_fraction(slow) == 1.0
    slow[::4] = np.nan
    slow[60:] = np.nan
    assert wear_fraction(slow) < 0.5
    rare = np.full(120, np.nan)
    rare[::12] = 120.0  # a finger prick an hour is no sensor
    assert wear_fraction(rare) == pytest.approx(0.25)
    assert wear_fraction(np.full(5, np.nan)) == 0 and wear_fraction(np.empty(0)) == 0


def test_traces_without_readings_have_no_values():
    with np.errstate(all="raise"):
        assert np.isnan(cgm_outcomes(np.full(5, np.nan))).all()
        assert np.isnan(cgm_outcomes(np.empty(0))).all()
        single = named(cgm_outcomes(np.array([90.0])))
    assert single["tir"] == 100 and np.isnan(single["cv"])


def test_draws_get_the_bits_that_each_gets_alone_whatever_the_memory_layout():
    rng = np.random.default_rng(0)
    trace = rng.normal(150, 60, 4032)
    trace[rng.random(4032) < 0.1] = np.nan
    alone = cgm_outcomes(trace)
    for layout in ("C", "F"):
        many = np.array(np.broadcast_to(trace, (3, 5, 4032)), order=layout)
        assert np.array_equal(cgm_outcomes(many), np.broadcast_to(alone, (3, 5, len(OUTCOMES))), equal_nan=True)
    assert np.array_equal(cgm_outcomes(trace.astype(np.float32)), cgm_outcomes(trace.astype(np.float32).astype(float)), equal_nan=True)


# tir, tbr_70, tbr_54, tar_180, tar_250, mean, GMI, CV by in_range_percent, below_percent, above_percent, mean_glu, gmi and
# cv_glu of iglu-python 0.4.3 (PyPI) on the example data of the R package iglu; each trace holds readings of exactly 54, 70, 180
# or 250
IGLU = {
    ("example_data_5_subject.csv", "Subject 1"): (91.66381, 0.13722, 0.0, 8.19897, 0.37736, 123.66552, 6.26808, 26.90166),
    ("example_data_5_subject.csv", "Subject 2"): (26.44044, 0.0, 0.0, 73.55956, 26.08696, 218.45281, 8.53539, 23.97365),
    ("example_data_5_subject.csv", "Subject 3"): (81.34377, 0.32616, 0.0, 18.33007, 5.67515, 154.04175, 6.99468, 29.07207),
    ("example_data_5_subject.csv", "Subject 4"): (95.11463, 0.27293, 0.05459, 4.61245, 0.0, 129.6744, 6.41181, 22.41601),
    ("example_data_5_subject.csv", "Subject 5"): (62.11966, 0.10256, 0.0, 37.77778, 11.28205, 174.60752, 7.48661, 33.54755),
    ("example_data_hall.csv", "1636-69-001"): (96.91224, 0.54171, 0.0, 2.54605, 0.0, 108.2286, 5.89883, 25.22656),
    ("example_data_hall.csv", "2133-018"): (88.33803, 0.0, 0.0, 11.66197, 1.85915, 126.56676, 6.33748, 31.11722),
}


@pytest.mark.realdata
@pytest.mark.parametrize("file, subject", IGLU)
def test_iglu_agrees_on_real_traces(data, file, subject):
    with open(data / "iglu_examples" / file, newline="") as f:
        trace = np.array([float(r["gl"]) for r in csv.DictReader(f) if r["id"] == subject])
    assert cgm_outcomes(trace)[:8] == pytest.approx(np.array(IGLU[file, subject]), abs=6e-6)


def test_contrast_by_hand():
    better = np.array([1, -1])
    c = contrast(np.array([50.0, 10.0]), np.array([[60.0, 9.0], [50.0, 12.0], [50.0, 12.0], [70.0, 4.0]]), better)
    assert c.effect_mean.tolist() == [7.5, -0.75]
    assert c.counterfactual_mean.tolist() == [57.5, 9.25]
    assert c.effects.tolist() == [[10, -1], [0, 2], [0, 2], [20, -6]]
    assert c.probability_of_benefit.tolist() == [0.5, 0.5]  # no change is no improvement
    assert c.effect_q95[0] == 20 and c.counterfactual_q95[0] == 70


def test_quantiles_cover_what_few_draws_can():
    """The interval of n draws of a continuous law holds the next one in 90 % of cases, however small n (>= 19)."""
    rng = np.random.default_rng(1)
    draws, following = rng.normal(size=(19, 20000)), rng.normal(size=20000)
    c = contrast(np.zeros(20000), draws, np.ones(20000))
    assert abs(((following > c.effect_q05) & (following < c.effect_q95)).mean() - 0.9) < 0.01


def test_equal_arms_give_exactly_zero():
    rng = np.random.default_rng(5)
    factual = cgm_outcomes(rng.normal(160, 50, 777))[BETTER != 0]
    c = contrast(factual, np.tile(factual, (33, 1)), BETTER[BETTER != 0])
    for part in (c.effect_mean, c.effect_q05, c.effect_q95, c.probability_of_benefit, c.probability_of_harm, c.effects):
        assert np.all(part == 0)
    assert np.array_equal(c.counterfactual_mean, factual) and np.array_equal(c.counterfactual_q05, factual)


def test_contrast_passes_missing_values_on_and_refuses_nonsense():
    better = np.array([1, 1])
    c = contrast(np.array([1.0, np.nan]), np.array([[2.0, 2.0], [np.nan, 2.0]]), better=better)
    assert np.isnan(c.effect_mean).all() and np.isnan(c.probability_of_benefit).all() and np.isnan(c.effect_q05).all()
    with pytest.raises(ValueError, match="differ in shape"):
        contrast(np.array([1.0]), np.ones((2, 2)), better=better)
