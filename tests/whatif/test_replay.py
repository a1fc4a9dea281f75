"""The three worlds of a what-if: nothing changed is nothing at all, signs are right, disturbances are keyed and shared."""

from dataclasses import replace

import numpy as np
import pytest

from twinlib.engine.kernel import Kernel
from twinlib.models import find
from twinlib.models.batch import Batch, Series
from twinlib.models.timeline import Events
from twinlib.whatif.cgm import OUTCOMES
from twinlib.whatif.extrapolation import extrapolation
from twinlib.whatif.outcomes import evaluate
from twinlib.whatif.replay import Replay
from twinlib.whatif.simulate import Simulator

from ..engine.drug import Drug
from .worlds import BASAL, BOLUS, CARBOHYDRATE, diabetic, draws, scenario


@pytest.fixture(scope="module")
def kernel():
    return Kernel(find("glucose_insulin"))


@pytest.fixture(scope="module", params=["counterfactual", "new_day", "forecast"])
def world(request, kernel):
    theta = draws(kernel.model)
    make = {"counterfactual": Replay.abduct, "new_day": Replay.new_day, "forecast": lambda *a: Replay.forecast(*a[:3], 600.0, a[3])}[request.param]
    return make(kernel, diabetic(), theta, 7)


NOTHING = [
    [],
    [{"do": "scale", "input": BOLUS, "factor": 1.0}],
    [{"do": "change", "parameter": "insulin_sensitivity", "factor": 1.0}],
    [{"do": "treat", "input": CARBOHYDRATE, "amount": 15.0, "below": 1.0}],
    [{"do": "adjust", "input": BOLUS + BASAL, "factor": 0.0, "above": 1e4}],
    [{"do": "suspend", "input": BASAL, "below": -1e4, "now_below": 0.0}, {"do": "change", "parameter": "basal_glucose", "factor": 1.0}],
]


@pytest.mark.parametrize("edits", NOTHING)
def test_a_scenario_that_changes_nothing_is_zero_to_the_bit(world, edits):
    s = scenario(*edits)
    assert np.all(world.effect(s) == 0)
    assert np.array_equal(world.counterfactual(s), np.broadcast_to(world.base, world.factual.shape), equal_nan=True)


def test_more_insulin_never_raises_glucose_and_more_carbohydrate_never_lowers_it(world):
    mean = lambda *e: world.effect(scenario(*e))[:, world.seen].mean(axis=1)  # noqa: E731
    for name, sign in ((BOLUS, -1), (BASAL, -1), (CARBOHYDRATE, 1)):
        levels = [mean({"do": "scale", "input": name, "factor": f}) for f in (0.5, 0.8, 1.0, 1.3, 2.0)]
        assert (sign * np.diff(levels, axis=0) > 0).all(), name  # monotone in dose, in every draw
    assert (mean({"do": "change", "parameter": "insulin_sensitivity", "factor": 1.2}) != 0).all()
    assert (world.effect(scenario({"do": "add", "input": BOLUS, "amount": 2.0, "at": "08:00"})) <= 1e-9).all()


def test_disturbances_depend_on_patient_episode_draw_and_seed_only(kernel):
    theta, batch = draws(kernel.model), diabetic()
    day = lambda t, b=batch, seed=7: Replay.new_day(kernel, b, t, seed)  # noqa: E731
    whole, part = day(theta), day(theta[:2])
    assert np.array_equal(whole.base[:2], part.base) and not np.array_equal(whole.base[0], whole.base[1])
    assert not np.array_equal(day(theta, seed=8).base, whole.base)
    assert not np.array_equal(day(theta, replace(batch, ids=(("p", "other"),))).base, whole.base)


def test_new_days_spread_as_the_model_says(kernel):
    """Against the filter: the variance of a reading that nothing is known of before is that of its innovation."""
    theta = np.tile(kernel.model.prior_mean, (3000, 1))
    batch = diabetic(gap=False)
    found = Replay.new_day(kernel, batch, theta, 1)
    for k in (5, 60, 287):
        only = np.full(288, np.nan)
        only[k] = 150.0
        seen = replace(batch, signals=({"glucose": Series(batch.signals[0]["glucose"].minutes, only)},))
        _, variance = kernel.innovations(theta[:1], [0], seen.data(kernel.model, kernel.nominal_step, found.data.constants))
        spread = found.factual[:, k].var() + 25.0  # and the sensor's error
        assert spread == pytest.approx(variance[k, 0], rel=0.1), k


def test_a_forecast_keeps_the_past_and_repeats_the_last_days_inputs(kernel):
    batch, theta = diabetic(2), draws(kernel.model, 100, width=0.01)
    found = Replay.forecast(kernel, batch, theta, 1440.0, 3)
    assert found.scene.begin == 2880 and found.minutes[found.seen[0]] == 2880 and len(found.seen) == 288
    for name, events in batch.inputs[0].items():
        last = events.minutes >= 1440
        assert np.array_equal(found.future[name].minutes, events.minutes[last] + 1440) and np.array_equal(found.future[name].amounts, events.amounts[last])
    readings = batch.signals[0]["glucose"].values
    assert np.nanmean(np.abs(found.factual[:, :576] - readings)) < 8.0  # the past is near what was read
    near, far = found.factual[:, 577].std(), found.factual[:, 650].std()
    assert near < far / 2  # what is known of now fades
    effect = found.effect(scenario({"do": "scale", "input": BOLUS, "factor": 0.0}))
    assert np.all(effect[:, :577] == 0) and effect[:, -1].min() > 0


def test_a_change_of_a_parameter_in_a_window_acts_from_then_on(kernel):
    found = Replay.abduct(kernel, diabetic(), draws(kernel.model))
    effect = found.effect(scenario({"do": "change", "parameter": "insulin_sensitivity", "factor": 1.5, "time": "12:00-16:00"}))
    assert np.all(effect[:, : 12 * 12 + 1] == 0) and (np.abs(effect[:, 15 * 12]) > 0).all()
    whole = found.effect(scenario({"do": "change", "parameter": "insulin_sensitivity", "factor": 1.5}))
    pieces = found.effect(scenario(*[{"do": "change", "parameter": "insulin_sensitivity", "factor": 1.5, "time": t} for t in ("00:00-12:00", "12:00-24:00")]))
    assert np.array_equal(whole, pieces)


def test_drug_levels_over_weeks_speak_the_same_language():
    kernel = Kernel(Drug())
    week = 7 * 1440.0
    readings = {"concentration": Series(np.array([600.0, 2000.0, 7000.0]), np.array([0.3, 0.4, 0.5]))}
    inputs = {"drug_oral": Events.of(np.arange(7) * 1440.0 + 480, np.full(7, 100.0))}
    batch = Batch((("p", "e"),), np.array([week]), (readings,), (inputs,), ({},), np.zeros(1))
    theta = draws(kernel.model)
    found = Replay.abduct(kernel, batch, theta, grid=60.0)
    assert len(found.seen) == 169 and found.base.shape == found.factual.shape
    double = found.effect(scenario({"do": "scale", "input": ("drug_oral",), "factor": 2.0}))
    assert np.allclose(double, found.factual, rtol=1e-9)  # linear
    stopped = found.effect(scenario({"do": "stop", "input": ("drug_oral",), "from": "3 days"})) + found.factual
    assert np.allclose(stopped[:, found.minutes < 4320], found.factual[:, found.minutes < 4320]) and (stopped[:, -1] < 0.2 * found.factual[:, -1]).all()
    twice = found.effect(scenario({"do": "switch", "input": ("drug_oral",), "to": ("drug_iv",), "amount": 50.0, "every": "12 h"}))
    assert (twice[:, found.seen[-1]] != 0).all()
    ahead = Replay.forecast(kernel, batch, theta, week, grid=60.0)
    assert np.all(ahead.effect(scenario()) == 0) and ahead.minutes[ahead.seen[0]] == week
    assert np.allclose(ahead.factual[:, ahead.seen[-1]], found.factual[:, -1], rtol=0.2)  # near its steady state


def test_extrapolation_names_what_leaves_the_record(kernel):
    found = Replay.abduct(kernel, diabetic(3), draws(kernel.model))

    def told(*edits):
        s = scenario(*edits)
        return extrapolation(found, s, found.arm(s))

    assert told() is None
    assert told({"do": "scale", "input": BOLUS, "factor": 3.0}) == "insulin_bolus above the recorded daily range on 3 of 3 days"
    assert told({"do": "scale", "input": BOLUS, "factor": 0.1}) == "insulin_bolus below the recorded daily range on 3 of 3 days"
    assert told({"do": "add", "input": ("insulin_long_acting",), "amount": 5.0, "at": "22:00"}) == "insulin_long_acting never recorded"
    assert told({"do": "change", "parameter": "insulin_sensitivity", "factor": 1.2}) == "insulin_sensitivity changed"


def test_conditions_on_readings_are_not_applicable_where_there_are_none(kernel):
    s = scenario({"do": "scale", "input": BOLUS, "factor": 0.5, "where": {"reading": {"below": 1000}}})
    worlds = {m: Simulator(kernel, (s,), mode=m, seed=1).simulate(diabetic(), 0, draws(kernel.model))[0] for m in ("counterfactual", "new_day")}
    assert {r["status"] for r in worlds["counterfactual"]} == {"ok"}
    assert {(r["status"], r["reason"]) for r in worlds["new_day"]} == {("not_applicable", "no readings to go by")}


def test_rows_hold_what_the_arms_say(kernel):
    s = scenario({"do": "scale", "input": BOLUS, "factor": 0.5})
    theta, batch = draws(kernel.model), diabetic()
    (rows,) = Simulator(kernel, (s,)).simulate(batch, 0, theta)
    found = Replay.abduct(kernel, batch, theta)
    arm = evaluate(OUTCOMES, found.counterfactual_trace(found.arm(s)))
    by = {r["outcome"]: r for r in rows}
    j = [o.name for o in OUTCOMES].index("mean_glucose")
    assert by["mean_glucose"]["counterfactual_mean"] == pytest.approx(arm[:, j].mean()) and by["mean_glucose"]["mode"] == "counterfactual"
    grams, units = batch.inputs[0]["carbohydrate"].amounts.sum(), batch.inputs[0]["insulin_basal"].amounts.sum()
    assert by["insulin_per_day"]["factual"] == pytest.approx(units + grams / 10)
    assert by["insulin_per_day"]["effect_mean"] == pytest.approx(-grams / 20) and by["insulin_per_day"]["probability_of_benefit"] is None
    assert by["carbohydrate_per_day"]["effect_mean"] == 0 and by["tir"]["probability_of_benefit"] + by["tir"]["probability_of_harm"] <= 1
    (missing,) = Simulator(kernel, (s,), minimum_wear=1.0).simulate(batch, 0, theta)
    assert {(r["status"], r["reason"]) for r in missing} == {("insufficient_data", "short_wear")}
