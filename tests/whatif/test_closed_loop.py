"""Rules against what they should order, worked out on traces by hand; the loop against open arms with the same doses."""

import numpy as np
import pytest

from twinlib.engine.kernel import Kernel
from twinlib.models import find
from twinlib.models.timeline import Events
from twinlib.whatif.closed_loop import Loop, daily
from twinlib.whatif.replay import Replay
from twinlib.whatif.scenarios import VERBS
from twinlib.whatif.selection import Scene

from .worlds import BASAL, BOLUS, CARBOHYDRATE, diabetic, draws, scenario


def orders(spec: dict, trace, inputs=None, step=5.0):
    """What a rule orders on a given sensor trace, one lane: per slot (doses, rates per hour, factors)."""
    trace = np.asarray(trace, dtype=float)
    minutes = np.arange(len(trace)) * step
    scene = Scene(float(minutes[-1]))
    rule = VERBS[spec["do"]].model_validate({k: v for k, v in spec.items() if k != "do"})
    loop = Loop(minutes, 1, scene, inputs or {}, inputs or {}, seen=np.full((len(trace), 1), np.nan))
    loop.given = {a: np.zeros((len(trace), 1)) for a in rule.input}
    control, out = rule.control(loop), []
    for k in range(len(trace) - 1):
        loop.k, loop.doses, loop.rates, loop.factors = k, {}, {}, {}
        loop.seen[k] = trace[k]
        next(control)
        for a, d in loop.doses.items():
            loop.given[a][k] += d
        one = lambda d, none: float(np.ravel(next(iter(d.values())))[0]) if d else none  # noqa: E731
        out.append((one(loop.doses, 0.0), one(loop.rates, None), one(loop.factors, 1.0)))
    return out


def test_treatment_of_lows_waits():
    given = orders({"do": "treat", "input": CARBOHYDRATE, "amount": 15.0, "below": 70.0, "wait": 15}, [80, 69, 60, 60, 60, 71, 60, 60, 60])
    assert [g[0] for g in given] == [0, 15, 0, 0, 15, 0, 0, 15]


def test_suspend_acts_on_the_prediction_and_ends_with_a_rise():
    spec = {"do": "suspend", "input": BASAL}
    falling = [130, 120, 110, 100, 90, 91, 92, 93]  # 2 mg/dL a minute: 110 becomes 50 in half an hour, 120 becomes 60
    assert [g[2] for g in orders(spec, falling)] == [1, 0, 0, 0, 0, 1, 1]
    assert [g[2] for g in orders(spec, [69, 69, 70, 69])] == [0, 0, 1]  # below 70 now, unless rising
    low = orders(spec | {"longest": 10, "window": 30}, [60] * 10)
    assert [g[2] for g in low] == [0, 0, 1, 1, 1, 1, 0, 0, 1]  # ten minutes of every thirty


def test_the_calculator_covers_the_meal_and_corrects_less_what_is_on_board():
    meals = {"carbohydrate": Events.of([10.5, 30.0], [40.0, 20.0])}
    spec = {"do": "bolus_calculator", "input": BOLUS, "meals": {"input": CARBOHYDRATE}, "ratio": 10.0, "factor": 50.0, "target": 100.0, "action": 200.0}
    given = [g[0] for g in orders(spec, [100, 100, 200, 200, 200, 200, 300, 300], meals)]
    first = 40 / 10 + 100 / 50
    board = first * (1 - 20 / 200)  # more than the correction of 200/50 = 4
    assert given[2] == pytest.approx(first) and given[6] == pytest.approx(20 / 10 + max(200 / 50 - board, 0)) and sum(given) == given[2] + given[6]
    low = [g[0] for g in orders(spec, [60] * 8, {"carbohydrate": Events.of([10.5], [10.0])})]
    assert low[2] == pytest.approx(10 / 10 - 40 / 50)
    stepped = orders(spec | {"step": 0.5, "ratio": {"00:00": 10.0, "00:05": 8.0}}, [100] * 4, {"carbohydrate": Events.of([10.0], [30.0])})
    assert stepped[2][0] == 3.5  # 30/8 rounded down


def test_pid_is_its_formula_within_limits():
    spec = {"do": "pid", "input": BASAL, "target": 100.0, "gain": 0.02, "integral": 100.0, "derivative": 10.0, "basal": 1.0, "maximum": 2.0, "history": 5}
    rates = [g[1] for g in orders(spec, [110, 120, 400, 40, 40])]
    total = 10 * 5 / 100
    assert rates[0] == pytest.approx(1 + 0.02 * (10 + total))
    total += 20 * 5 / 100
    assert rates[1] == pytest.approx(1 + 0.02 * (20 + total + 10 * 2))
    assert rates[2] == 2 and rates[3] == 0


def test_slope_is_that_of_least_squares():
    rng = np.random.default_rng(0)
    loop = Loop(np.array([0.0, 5.0, 11.0, 15.0]), 3, Scene(20.0), {}, {}, k=3, seen=rng.normal(100, 20, (4, 3)))
    assert loop.slope(15.0) == pytest.approx(np.polyfit(loop.minutes, loop.seen, 1)[0])
    assert loop.slope(5.0) == pytest.approx((loop.seen[3] - loop.seen[2]) / 4)


@pytest.fixture(scope="module")
def world():
    kernel = Kernel(find("glucose_insulin"))
    return Replay.abduct(kernel, diabetic(), draws(kernel.model, 3))


def test_what_a_rule_orders_is_what_the_same_doses_do_in_an_open_arm(world):
    """A dose at a slot and a quarter of an hour of carbohydrate at another, ordered or recorded."""
    always = {"do": "treat", "input": CARBOHYDRATE, "amount": 20.0, "above": 1.0, "wait": "400 min"}  # at 0, 400, 800 and 1200 minutes
    recorded = [{"do": "add", "input": CARBOHYDRATE, "amount": 20.0, "every": "400 min"}]
    assert np.allclose(world.effect(scenario(always)), world.effect(scenario(*recorded)), atol=2e-3)
    dose = {"do": "treat", "input": BOLUS, "amount": 2.0, "above": 1.0, "wait": "400 min"}
    assert np.allclose(world.effect(scenario(dose)), world.effect(scenario({"do": "add", "input": BOLUS, "amount": 2.0, "every": "400 min"})), atol=1e-9)


def test_suspending_all_the_time_is_removing(world):
    off = {"do": "adjust", "input": BASAL, "factor": 0.0, "above": 1.0}
    removed = scenario({"do": "remove", "input": BASAL})
    assert np.allclose(world.effect(scenario(off)), world.effect(removed), atol=1e-9)
    arm = world.arm(scenario(off))
    assert arm.given["insulin_basal"].max() < 0.1  # what is recorded after the last reading, for five minutes
    constant = scenario({"do": "pid", "input": BASAL, "target": 100.0, "gain": 1e-12, "basal": 1.5})
    profile = scenario({"do": "profile", "input": BASAL, "rates": {"00:00": 1.5}})
    assert np.allclose(world.effect(constant), world.effect(profile), atol=1e-6)
    assert world.arm(constant).given["insulin_basal"] == pytest.approx(1.5 * 1435 / 60, rel=1e-6)  # until the last reading


def test_rules_work_against_what_they_are_for():
    kernel = Kernel(find("glucose_insulin"))
    low = Replay.abduct(kernel, diabetic(level=75.0), draws(kernel.model, 3))
    suspend = {"do": "suspend", "input": BASAL}
    treat = {"do": "treat", "input": CARBOHYDRATE, "amount": 15.0, "below": 70.0}
    traces = [low.counterfactual(scenario(*rules)) for rules in ([], [suspend], [suspend, treat])]
    below = [np.nanmean(t < 70) for t in traces]
    assert below[0] > below[1] > below[2]
    alone = [low.arm(scenario(suspend)).signals[0], Replay.abduct(kernel, diabetic(level=75.0), draws(kernel.model, 3)[:1]).arm(scenario(suspend)).signals[0]]
    assert np.array_equal(*alone)  # a lane does not know of its neighbours


def test_daily_amounts_are_cut_at_midnight():
    inputs = {"a": Events.of([100.0, 1400.0, 1430.0], [1.0, 8.0, 2.0], [0.0, 80.0, 0.0])}
    assert daily(inputs, "a", Scene(2160.0)).tolist() == [1 + 4 + 2, 4] and daily(inputs, "b", Scene(2160.0)).tolist() == [0, 0]
    assert daily(inputs, "a", Scene(2880.0, begin=1440.0)).tolist() == [4]
