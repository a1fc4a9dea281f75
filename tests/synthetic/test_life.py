"""The synthetic life: an arm that changes nothing, what disturbances do, its dynamics against the twin's own in the engine, and its cohort."""

import csv
from datetime import date

import numpy as np
import pyarrow.parquet as pq
import pytest
from scipy.special import logit

from twinlib.config import GenerateConfig
from twinlib.engine.kernel import Kernel
from twinlib.engine.trace import trace
from twinlib.models import find
from twinlib.models.batch import Batch, Series
from twinlib.models.glucose_two_compartment import SIZES
from twinlib.models.timeline import Events
from twinlib.synthetic import generate, life, life_cohort


@pytest.fixture(scope="module")
def days() -> life.Days:
    return life.live(range(4), 2, life.REAL, 3)


def test_an_arm_that_changes_nothing_is_what_happened(days):
    assert np.array_equal(days.arm(), days.truth)
    assert np.array_equal(life.live(range(4), 2, life.REAL, 3).readings, days.readings)


def test_more_insulin_lowers_and_more_carbohydrate_raises_glucose(days):
    assert np.all(days.arm(bolus=lambda x: 1.3 * x) <= days.truth + 1e-9)
    assert np.all(days.arm(eaten=1.3) >= days.truth - 3.0)  # a larger meal may leave the stomach later
    assert np.all(days.arm(eaten=1.3).mean(1) > days.truth.mean(1))


def test_what_is_not_told(days):
    """Unlogged meals, wrong counts and the sensor's error have the sizes that were asked for."""
    many = life.live(range(100), 1, life.Life(unlogged=0.3, misestimated=0.2), 1)
    meals, told = many.eaten > life.RESCUE, many.logged > 0
    silent = 1 - (told & meals).sum() / meals.sum()
    assert silent == pytest.approx(0.3, abs=0.06)
    both = meals & told
    assert np.std(np.log(many.logged[both] / many.eaten[both])) == pytest.approx(0.2, abs=0.03)
    error = (many.readings - many.truth)[(many.readings > 40) & (many.readings < 400)]
    assert np.std(error) == pytest.approx(11.5, abs=2.0)


def test_the_dynamics_are_those_of_the_twin_in_the_engine():
    """Two implementations of the same equations: without noise the traces agree where the meals' memory is not smoothed. Insulin sensitivity has
    a daily course in both."""
    quiet = life.live(range(3), 1, life.Life(flux_times=0.0, within_day=0.25), 5)
    model = find("glucose_two_compartment")
    kernel = Kernel(model)
    names = [kernel.model.states[i].name for i in trace(model).noisy]
    at = np.arange(288) * 5.0
    for i in range(3):
        p = {q.name: quiet.parameters[q.name][i] if q.name in quiet.parameters else q.median for q in model.parameters}
        midnight, six = np.log(quiet.world["sensitivity"][i, [0, 360]])
        p |= {"sensitivity_cosine": midnight, "sensitivity_sine": six}
        transformed = {"log": np.log, "logit": logit, "identity": float}
        theta = np.array([[transformed[q.transform](p[q.name]) for q in model.fitted]])
        events = lambda x: Events.of(np.flatnonzero(x), x[x > 0])  # noqa: E731
        inputs = {
            "insulin_bolus": events(quiet.bolus[i]), "carbohydrate": events(quiet.eaten[i]),
            "insulin_basal": Events.of([0.0], [quiet.basal[i] * 1440], 1440.0),
        }
        batch = Batch(
            (("a", "b"),), np.array([1440.0]), ({"glucose": Series(at, quiet.truth[i])},), (inputs,), ({"body_weight": float(quiet.weight[i])},),
            np.zeros(1),
        )
        data = batch.data(model, 1.0)
        first = quiet.world["first"][i]
        tissue = (p["plasma_to_tissue"] * p["basal_glucose"] - p["basal_uptake"]) / p["tissue_to_plasma"]
        tissue += 0.8 * p["plasma_to_tissue"] / p["tissue_to_plasma"] * (first - p["basal_glucose"])
        start = np.array([[{"glucose": first, "interstitial_glucose": first, "tissue_glucose": tissue}.get(n, 0.0) for n in names]])
        signal = kernel.simulate(theta, np.zeros(1, int), data, np.zeros((288, len(names))), start)[:, 0]
        assert np.sqrt(np.mean((signal - quiet.truth[i]) ** 2)) < 3.0  # boluses over a minute here, at once there


def test_a_cohort_of_life_is_written_in_the_shapes_of_exports(tmp_path):
    assert generate(GenerateConfig(root=str(tmp_path / "c"), patients=4, days=2, dirty=False, life=True), 3) is True
    truth = pq.read_table(tmp_path / "c" / "truth" / "parameters.parquet").to_pandas()
    assert {q.name for q in find("glucose_two_compartment").fitted} - set(truth.parameter) == {"unlogged_share", *SIZES} - {"flux_sd"} and truth.patient.nunique() == 4
    lived = life.live(range(4), 2, life.REAL, 3)
    weights = {r["patient"]: float(r["body_weight_kg"]) for r in csv.DictReader((tmp_path / "c" / "patients.csv").open())}
    assert weights["10002"] == lived.weight[2]
    told = list(csv.DictReader((tmp_path / "c" / "t1d_uom" / "Nutrition Data" / "UoMNutrition10002.csv").open(encoding="utf-8-sig")))
    assert [float(r["carbs_g"]) for r in told] == lived.logged[2][lived.logged[2] > 0].tolist()
    assert {r["meal_type"] for r in told} <= {"Breakfast", "Lunch", "Dinner", "Snack", "Correction"}
    insulin = list(csv.DictReader((tmp_path / "c" / "t1d_uom" / "Insulin Data" / "Bolus Data" / "UoMBolus10002.csv").open(encoding="utf-8-sig")))
    assert sum(float(r["bolus_dose"]) for r in insulin) == pytest.approx(lived.bolus[2].sum())


def test_a_person_of_the_cohort_depends_on_nobody_else():
    some, alone = (life_cohort.cohort(3, who, date(2026, 1, 5), 1) for who in (range(3), [2]))
    assert np.array_equal(some[2].readings[2], alone[2].readings[0]) and np.array_equal(some[0][2].parameters, alone[0][0].parameters)
    assert np.array_equal(some[2].bolus[some[2].bolus[:, 0] == 2, 1:], alone[2].bolus[:, 1:])
