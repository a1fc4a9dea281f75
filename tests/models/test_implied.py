"""What the two-compartment twin takes records to imply: a meal for a bolus without one, and something else where glucose moves by itself."""

import numpy as np
import pytest

from twinlib.fusion.layout import layout
from twinlib.fusion.vocabulary import load_vocabulary
from twinlib.config import EpisodeConfig
from twinlib.models import find
from twinlib.engine.kernel import Kernel
from twinlib.engine.trace import trace
from twinlib.models.batch import Batch, Series
from twinlib.models.glucose_two_compartment import MODEL, UNEXPLAINED, UNLOGGED
from twinlib.models.implied import unexplained_rises, unlogged_meals
from twinlib.models.timeline import Events

BOLUS, MEALS = Events.of([480.0, 720.0, 900.0, 960.0, 1080.0], [5.0, 6.0, 4.0, 0.3, 7.0]), Events.of([475.0, 730.0, 1080.0], [50.0, 60.0, 70.0])


def test_a_bolus_without_a_meal_implies_what_it_would_cover():
    implied = unlogged_meals(BOLUS, MEALS)
    assert implied.minutes.tolist() == [900.0] and implied.amounts.tolist() == [40.0]  # 10 g/U; 3 g would be too little
    assert unlogged_meals(BOLUS, Events.of([], [])).minutes.size == 0
    assert unlogged_meals(BOLUS, MEALS.take(np.array([0, 1]))).minutes.size == 0  # too few meals to know the ratio
    assert unlogged_meals(Events.of([], []), MEALS).minutes.size == 0


def test_a_batch_is_completed_once_and_for_models_that_ask():
    batch = Batch((("a", "e"),), np.array([1440.0]), ({},), ({"insulin_bolus": BOLUS, "carbohydrate": MEALS},), ({},), np.zeros(1))
    done = batch.completed(MODEL)
    assert done.inputs[0][UNLOGGED].amounts.tolist() == [40.0] and UNLOGGED not in batch.inputs[0]
    halved = done.with_inputs((done.inputs[0] | {"insulin_bolus": Events.of([], [])},))
    assert halved.completed(MODEL).inputs[0][UNLOGGED].amounts.tolist() == [40.0]  # what happened is not worked out anew from a scenario's doses
    assert batch.completed(find("glucose_insulin")) is batch


NONE, GRID = Events.of([], []), np.arange(0.0, 1440.0, 5.0)


def hill(at: float, slope: float, lasts: float = 40.0) -> np.ndarray:
    """Glucose on GRID that moves for a while and stays there."""
    return 120 + slope * np.clip(GRID - at, 0, lasts)


def test_a_rise_that_stays_without_a_meal_is_unexplained():
    found = unexplained_rises(GRID, hill(600, 2.0), NONE)
    assert found.minutes.tolist() == [570.0] and found.durations.tolist() == [135.0]  # means of 45 minutes differ by 50 from minute 610 to 665
    assert found.amounts.tolist() == found.durations.tolist()
    assert len(unexplained_rises(GRID, hill(600, -2.0), NONE)) == 0
    assert len(unexplained_rises(GRID, np.where(np.abs(GRID - 620) < 15, 200, 120), NONE)) == 0  # a spike


@pytest.mark.parametrize("at, found", [(590.0, 0), (530.0, 0), (440.0, 1), (700.0, 1)])
def test_a_meal_explains_the_rise_after_it(at, found):
    assert len(unexplained_rises(GRID, hill(600, 2.0), Events.of([at], [40.0]))) == found


def test_unexplained_rises_do_not_depend_on_the_sensors_spacing_and_need_readings():
    for step in (1, 15):
        at = np.arange(0.0, 1440.0, step)
        coarse = unexplained_rises(at, 120 + 2.0 * np.clip(at - 600, 0, 40), NONE)
        assert len(coarse) == 1 and abs(coarse.minutes[0] - 570) <= 15 and abs(coarse.durations[0] - 130) <= 25
    y = hill(600, 2.0)
    y[(GRID > 540) & (GRID < 700)] = np.nan
    assert len(unexplained_rises(GRID, y, NONE)) == len(unexplained_rises(np.zeros(0), np.zeros(0), NONE)) == 0
    two = unexplained_rises(GRID, hill(300, 2.0) + hill(1000, 2.0), NONE)
    assert len(two) == 2 and np.all(two.minutes[1:] > (two.minutes + two.durations)[:-1])


@pytest.mark.slow  # the kernel of the large model compiles for half a minute
def test_the_flux_may_move_more_while_something_is_unexplained_and_every_meal_has_a_count_error_of_its_own():
    kernel = Kernel(MODEL)
    inputs = {"insulin_bolus": NONE, "insulin_basal": Events.of([0.0], [14.4], 1440.0), "carbohydrate": Events.of([300.0, 900.0], [50.0, 50.0])}
    series = {"glucose": Series(GRID, np.full(len(GRID), np.nan))}
    batch = Batch((("a", "e"),), np.array([1440.0]), (series,), (inputs,), ({"body_weight": 70.0},), np.zeros(1))
    calm = batch.with_inputs((inputs | {UNLOGGED: NONE, UNEXPLAINED: NONE},))
    moved = batch.with_inputs((inputs | {UNLOGGED: NONE, UNEXPLAINED: Events.of([600.0], [60.0], 60.0)},))
    rng, n, names = np.random.default_rng(3), 400, [MODEL.states[i].name for i in trace(MODEL).noisy]
    theta, lanes = np.tile(kernel.model.prior_mean, (n, 1)), np.zeros(n, int)
    constants = np.array([[14.4e3 / 1440 / 70, 120.0]])  # basal insulin and the first reading: there are no readings
    z, start = rng.standard_normal((n * len(GRID), len(names))), rng.standard_normal((n, len(names)))
    noise = []
    for b in (calm, moved):
        data = b.data(MODEL, kernel.nominal_step, constants)
        noise.append(kernel.disturb(theta, lanes, data, z, start.copy())[0].reshape(n, len(GRID), -1))
    flux, count = names.index("flux"), names.index("count_error")
    sd = [x[..., flux].std(0) for x in noise]
    inside, outside = (GRID > 602) & (GRID < 658), (GRID < 598) | (GRID > 662)
    np.testing.assert_allclose(sd[1][inside], 2.0 * np.sqrt(1 - np.exp(-2 * 5 / 60)), rtol=0.15)  # an Ornstein-Uhlenbeck process of SD 2
    np.testing.assert_allclose(sd[1][outside][1:], sd[0][outside][1:], rtol=1e-3)
    eating = noise[0][..., count].std(0) > 1e-6
    assert set(GRID[eating] // 60) == {5.0, 15.0}  # only while a meal begins


def test_no_source_is_asked_for_what_is_implied():
    assert UNLOGGED not in MODEL.agents and UNLOGGED in {a for i in MODEL.inputs for a in i.agents}
    assert layout(MODEL, load_vocabulary(None), EpisodeConfig()).agents == MODEL.agents
