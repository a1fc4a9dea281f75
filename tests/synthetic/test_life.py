"""The synthetic life: an arm that changes nothing, what disturbances do, and its dynamics against the twin's own in the engine."""

import numpy as np
import pytest

from twinlib.engine.kernel import Kernel
from twinlib.engine.trace import trace
from twinlib.models import find
from twinlib.models.batch import Batch, Series
from twinlib.models.timeline import Events
from twinlib.synthetic import life


@pytest.fixture(scope="module")
def days() -> life.Days:
    return life.live(4, 2, life.REAL, 3)


def test_an_arm_that_changes_nothing_is_what_happened(days):
    assert np.array_equal(days.arm(), days.truth)
    assert np.array_equal(life.live(4, 2, life.REAL, 3).readings, days.readings)


def test_more_insulin_lowers_and_more_carbohydrate_raises_glucose(days):
    assert np.all(days.arm(bolus=lambda x: 1.3 * x) <= days.truth + 1e-9)
    assert np.all(days.arm(eaten=1.3) >= days.truth - 3.0)  # a larger meal may leave the stomach later
    assert np.all(days.arm(eaten=1.3).mean(1) > days.truth.mean(1))


def test_what_is_not_told(days):
    """Unlogged meals, wrong counts and the sensor's error have the sizes that were asked for."""
    many = life.live(100, 1, life.Life(unlogged=0.3, misestimated=0.2), 1)
    meals, told = many.eaten > life.RESCUE, many.logged > 0
    silent = 1 - (told & meals).sum() / meals.sum()
    assert silent == pytest.approx(0.3, abs=0.06)
    both = meals & told
    assert np.std(np.log(many.logged[both] / many.eaten[both])) == pytest.approx(0.2, abs=0.03)
    error = (many.readings - many.truth)[(many.readings > 40) & (many.readings < 400)]
    assert np.std(error) == pytest.approx(11.5, abs=2.0)


def test_the_dynamics_are_those_of_the_twin_in_the_engine():
    """Two implementations of the same equations: without noise the traces agree where the meals' memory is not smoothed."""
    quiet = life.live(3, 1, life.Life(flux_times=0.0), 5)
    model = find("glucose_two_compartment")
    kernel = Kernel(model)
    names = [kernel.model.states[i].name for i in trace(model).noisy]
    at = np.arange(288) * 5.0
    for i in range(3):
        p = {q.name: quiet.parameters[q.name][i] for q in model.parameters}
        theta = np.array([[np.log(p[q.name] / (1 - p[q.name])) if q.transform == "logit" else np.log(p[q.name]) for q in model.fitted]])
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
