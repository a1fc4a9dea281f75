"""The scenario file: what is accepted, and the message for everything that is not."""

import pickle
from pathlib import Path

import numpy as np
import pytest

from twinlib.errors import ConfigError
from twinlib.models.timeline import Events
from twinlib.whatif.scenarios import Scenario, applicable, apply, load_scenarios

REPO = Path(__file__).resolve().parents[2]
KNOWN = ("insulin_bolus", "insulin_basal", "insulin_long_acting", "carbohydrate")


@pytest.fixture
def load(tmp_path):
    def read(text, known=KNOWN):
        path = tmp_path / "scenarios.yaml"
        path.write_text(text)
        return load_scenarios(path, known, ("insulin_sensitivity",))

    return read


def one(edit: str, name: str = "x") -> str:
    return f"aliases: {{basal: [insulin_basal, insulin_long_acting]}}\nscenarios:\n  - {{name: {name}, edits: [{edit}]}}\n"


@pytest.fixture(scope="module")
def shipped():
    return {s.name: s for s in load_scenarios(REPO / "conf/scenarios.yaml", KNOWN)}


def patient() -> dict[str, Events]:
    return {
        "insulin_bolus": Events.of([470, 800, 1100], [5.0, 6.0, 7.0]),
        "insulin_basal": Events.of([0], [24.0], 1440.0),
        "carbohydrate": Events.of([480, 780, 1130], [50.0, 60.0, 70.0]),
    }


def changed(scenario) -> dict[str, list]:
    before, after = patient(), apply(scenario, patient(), minutes=1440)
    assert set(before) == set(after)
    same = lambda a, b: np.array_equal(a.minutes, b.minutes) and np.array_equal(a.amounts, b.amounts)  # noqa: E731
    return {n: list(zip(after[n].minutes.tolist(), after[n].amounts.tolist())) for n in after if not same(before[n], after[n])}


def test_the_shipped_scenarios_do_what_they_say(shipped):
    assert list(shipped) == [
        "as_is",
        "bolus_70",
        "bolus_120",
        "basal_80",
        "basal_120",
        "bolus_15_min_before_meals",
        "carbohydrate_70",
        "no_breakfast_bolus",
    ]
    assert changed(shipped["as_is"]) == {}
    assert changed(shipped["bolus_70"]) == {"insulin_bolus": [(470, 3.5), (800, 6 * 0.7), (1100, 7 * 0.7)]}
    assert changed(shipped["bolus_120"]) == {"insulin_bolus": [(470, 6), (800, 6 * 1.2), (1100, 7 * 1.2)]}
    assert changed(shipped["basal_80"]) == {"insulin_basal": [(0, 24 * 0.8)]}
    assert changed(shipped["basal_120"]) == {"insulin_basal": [(0, 24 * 1.2)]}
    assert changed(shipped["bolus_15_min_before_meals"]) == {"insulin_bolus": [(465, 5), (765, 6), (1115, 7)]}
    assert changed(shipped["carbohydrate_70"]) == {"carbohydrate": [(480, 35), (780, 42), (1130, 49)]}
    assert changed(shipped["no_breakfast_bolus"]) == {"insulin_bolus": [(800, 6), (1100, 7)]}


def test_edits_run_in_order(load):
    (s,) = load(one("{do: scale, input: insulin_bolus, factor: 2}, {do: cap, input: insulin_bolus, maximum: 11}"))
    assert changed(s) == {"insulin_bolus": [(470, 10), (800, 11), (1100, 11)]}


def test_a_scenario_that_the_records_cannot_answer_is_not_applicable(shipped, load):
    assert applicable(shipped["basal_120"], patient()) is None
    no_basal = patient() | {"insulin_basal": Events.of([], [])}
    assert applicable(shipped["basal_120"], no_basal) == "no insulin_basal or insulin_long_acting recorded"
    pen = no_basal | {"insulin_long_acting": Events.of([1320], [20.0], 1440.0)}
    assert applicable(shipped["basal_120"], pen) is None
    no_meals = {n: e for n, e in patient().items() if n != "carbohydrate"}
    for name in ("bolus_15_min_before_meals", "no_breakfast_bolus", "carbohydrate_70"):
        assert applicable(shipped[name], no_meals) == "no carbohydrate recorded"
    assert applicable(shipped["as_is"], {}) is None
    (labelled,) = load(one("{do: remove, input: insulin_bolus, where: {near: {input: carbohydrate, labels: [breakfast]}}}"))
    assert applicable(labelled, patient()) == "carbohydrate recorded without labels"
    dinner = patient() | {"carbohydrate": Events.of([480], [50.0], labels="dinner")}
    assert applicable(labelled, dinner) is None and changed(labelled) == {}  # labelled, but no breakfast: truly no effect
    (added,) = load(one("{do: add, input: carbohydrate, amount: 15, at: '22:00'}"))
    assert applicable(added, {}) is None


def test_the_hash_follows_the_meaning_only(load):
    def h(edit, **kw):
        return load(one(edit, **kw))[0].hash

    base = h("{do: scale, input: insulin_bolus, factor: 0.7}")
    assert base == h("{factor: 0.70, do: scale, input: [insulin_bolus]}", name="other_name")
    assert base != h("{do: scale, input: insulin_bolus, factor: 0.8}")
    assert base != h("{do: scale, input: insulin_bolus, factor: 0.7, where: {time: '06:00-07:00'}}")
    assert h("{do: scale, input: basal, factor: 1.2}") == h(
        "{do: scale, input: [insulin_basal, insulin_long_acting], factor: 1.2}"
    )
    assert h("{do: scale, input: insulin_bolus, factor: 1}, {do: cap, input: insulin_bolus, maximum: 2}") != h(
        "{do: cap, input: insulin_bolus, maximum: 2}, {do: scale, input: insulin_bolus, factor: 1}"
    )


def test_scenarios_reach_a_worker_unchanged(shipped):
    for s in shipped.values():
        again = pickle.loads(pickle.dumps(s))
        assert again == s and again.hash == s.hash
    assert Scenario("null").hash == shipped["as_is"].hash


@pytest.mark.parametrize(
    "edit, message",
    [
        (
            "{do: scale, input: insulin_bolsu, factor: 0.7}",
            "edit 1: unknown input insulin_bolsu; known are basal, carbohydrate, insulin_basal",
        ),
        (
            "{do: scale, input: carbohydrate, factor: 1}, {do: cap, input: heart_rate, maximum: 3}",
            "edit 2: unknown input heart_rate",
        ),
        ("{do: remove, input: insulin_bolus, where: {near: {input: meals}}}", "edit 1: unknown input meals"),
        (
            "{do: scale, input: insulin_bolus, factor: -0.1}",
            r"edit 1 \(scale\): factor: Input should be greater than or equal to 0",
        ),
        ("{do: scale, input: insulin_bolus, factor: .nan}", r"edit 1 \(scale\): factor"),
        ("{do: scale, input: insulin_bolus, factor: yes}", r"edit 1 \(scale\): factor: Input should be a valid number"),
        ("{do: scale, input: insulin_bolus}", r"edit 1 \(scale\): factor: Field required"),
        ("{do: scale, factor: 0.5}", r"edit 1 \(scale\): input: Field required"),
        ("{do: scale, input: insulin_bolus, factor: 2, wehre: {}}", r"edit 1 \(scale\): wehre: Extra inputs"),
        ("{do: scale, input: insulin_bolus, factor: 2, where: {}}", "give at least one of time, from, until, labels, near and reading"),
        ("{do: scale, input: insulin_bolus, factor: 2, where: {labels: []}}", "where.labels"),
        ("{do: halve, input: insulin_bolus}", "edit 1: do: expected one of scale, replace, remove, stop, cap, miss, shift, align, add, start, switch, profile"),
        ("{input: insulin_bolus}", "edit 1: do: expected one of"),
        ("{do: remove, input: insulin_bolus, where: {time: '6:00-9:00'}}", 'where.time: .*"HH:MM"'),
        ("{do: remove, input: insulin_bolus, where: {time: '06:00-24:30'}}", 'where.time: .*"HH:MM"'),
        ("{do: remove, input: insulin_bolus, where: {time: '06:00-06:00'}}", "the window is empty"),
        ("{do: remove, input: insulin_bolus, where: {time: '00:00-24:00'}}", "the window is empty: leave `time` out"),
        ("{do: remove, input: insulin_bolus, where: {time: morning}}", "expected a window of local time"),
        (
            "{do: remove, input: insulin_bolus, where: {near: {input: carbohydrate, within_minutes: -5}}}",
            "where.near.within_minutes",
        ),
        ("{do: add, input: carbohydrate, amount: 15, at: 22:00}", r"edit 1 \(add\): at: .*in quotes"),  # YAML reads 22:00 as 1320
        ("{do: add, input: carbohydrate, amount: 0, at: '22:00'}", "amount: Input should be greater than 0"),
        ("{do: add, input: basal, amount: 1, at: '22:00'}", "needs one input, this alias names 2"),
        ("{do: shift, input: insulin_bolus, minutes: 2000 d}", "minutes: Input should be less than or equal to 527040"),
        ("{do: align, input: insulin_bolus, minutes: -15}", r"edit 1 \(align\): to: Field required"),
        ("{do: cap, input: insulin_bolus, maximum: -1}", "maximum: Input should be greater than or equal to 0"),
    ],
)
def test_a_bad_edit_is_refused_with_its_place(load, edit, message):
    with pytest.raises(ConfigError, match=f"scenarios.yaml: scenario x: .*{message}|scenarios.yaml: scenario x: {message}"):
        load(one(edit))


@pytest.mark.parametrize(
    "text, message",
    [
        ("scenarios: []", "scenarios: Tuple should have at least 1 item"),
        ("scenarios:\n  - {name: a}\n  - {name: a}", "scenario a: stands more than once"),
        ("scenarios:\n  - {name: Bad Name}", "scenarios.0.name: String should match pattern"),
        ("scenarios:\n  - {name: a, edit: []}", "scenarios.0.edit: Extra inputs"),
        ("scenarios:\n  - {name: a, edits: [3]}", "scenarios.0.edits.0"),
        ("aliases: {carbohydrate: [insulin_bolus]}\nscenarios: [{name: a}]", "alias carbohydrate: is the name of an input"),
        ("aliases: {meal: [food]}\nscenarios: [{name: a}]", "alias meal: unknown input food"),
        ("aliases: {meal: []}\nscenarios: [{name: a}]", "aliases.meal"),
        ("scenarios: [", "line 2 is not valid YAML|line 1 is not valid YAML"),
        ("", "scenarios.yaml"),
    ],
)
def test_a_bad_file_is_refused(load, text, message):
    with pytest.raises(ConfigError, match=message):
        load(text)


def test_a_missing_file_is_refused(tmp_path):
    with pytest.raises(ConfigError, match="cannot be read"):
        load_scenarios(tmp_path / "none.yaml", KNOWN)


def test_lists_are_grids_and_scenarios_combine(load):
    found = load("""
scenarios:
  - {name: basal, edits: [{do: scale, input: insulin_basal, factor: [0.8, 1.2]}]}
  - {name: early, edits: [{do: shift, input: insulin_bolus, minutes: [-15, "-1 h"]}]}
  - {name: both, combine: [basal, early]}
  - {name: grid, edits: [{do: scale, input: insulin_bolus, factor: [0.9, 1.1]}, {do: scale, input: [insulin_basal, carbohydrate], factor: [1, 2]}]}
  - {name: more, combine: [basal], edits: [{do: cap, input: insulin_bolus, maximum: 6}]}
""")
    by = {s.name: s for s in found}
    assert list(by) == [
        "basal_0_8", "basal_1_2", "early_minus_15", "early_minus_1_h", "both_0_8_minus_15", "both_0_8_minus_1_h", "both_1_2_minus_15",
        "both_1_2_minus_1_h", "grid_0_9_1", "grid_0_9_2", "grid_1_1_1", "grid_1_1_2", "more_0_8", "more_1_2",
    ]
    assert by["both_1_2_minus_15"].edits == by["basal_1_2"].edits + by["early_minus_15"].edits
    assert changed(by["both_1_2_minus_1_h"]) == changed(by["basal_1_2"]) | changed(by["early_minus_1_h"])
    assert changed(by["more_0_8"]) == changed(by["basal_0_8"]) | {"insulin_bolus": [(470, 5), (800, 6), (1100, 6)]}
    with pytest.raises(ConfigError, match="scenario a: combine: b: no scenario of that name stands above"):
        load("scenarios: [{name: a, combine: [b]}, {name: b}]")


@pytest.mark.parametrize("edit, message", [
    ("{do: change, parameter: insulin, factor: 1.2}", "parameter: unknown parameter insulin; known are insulin_sensitivity"),
    ("{do: replace, input: carbohydrate}", "give exactly one of amount and rate"),
    ("{do: miss, input: insulin_bolus, every: 2, probability: 0.5}", "give exactly one of every and probability"),
    ("{do: add, input: carbohydrate, amount: 5}", "give exactly one of at and every"),
    ("{do: start, input: carbohydrate, amount: 5, every: 3 parsecs}", "expected a number of minutes"),
    ("{do: profile, input: insulin_basal, rates: 3}", "expected values by local time"),
    ("{do: switch, input: insulin_basal, to: insulin_bolus}", "give exactly one of factor"),
    ("{do: switch, input: insulin_basal, to: basal, factor: 1}", "needs one input, this alias names 2"),
    ("{do: treat, input: carbohydrate, amount: 15}", "give exactly one of below and above"),
    ("{do: treat, input: basal, amount: 15, below: 70}", "needs one input, this alias names 2"),
    ("{do: adjust, input: basal, factor: 0.5}", "give at least one of below and above"),
    ("{do: pid, input: insulin_basal, target: 110, gain: 0}", "gain: Input should be greater than 0"),
    ("{do: bolus_calculator, input: insulin_bolus, meals: {input: food}, ratio: 10, factor: 40, target: 110}", "unknown input food"),
    ("{do: remove, input: insulin_bolus, where: {reading: {within_minutes: 5}}}", "give at least one of below and above"),
    ("{do: carbohydrate_ratio, input: insulin_bolus, meals: {input: carbohydrate}}", "give exactly one of new and factor"),
])
def test_further_verbs_are_checked_too(load, edit, message):
    with pytest.raises(ConfigError, match=message):
        load(one(edit))


def test_other_models_bring_their_own_inputs(load):
    (s,) = load("scenarios: [{name: statin, edits: [{do: add, input: statin, amount: 20, at: '08:00'}]}]", known=("statin",))
    assert apply(s, {}, minutes=2880)["statin"].minutes.tolist() == [480, 1920]


def test_the_shipped_closed_loops_are_valid():
    names = [s.name for s in load_scenarios(REPO / "conf/closed_loop.yaml", KNOWN, ("insulin_sensitivity",))]
    assert "both_0_9_1_2" in names and len(names) == 5 + 3 + 4 + 12 + 2


def test_every_example_of_the_documentation_is_valid(load):
    text = (REPO / "docs/scenarios.md").read_text()
    blocks = [b.split("```")[0] for b in text.split("```yaml\n")[1:]]
    files = [b for b in blocks if b.startswith(("aliases:", "scenarios:"))]
    assert files
    for block in files:
        load(block, (*KNOWN, "drug"))
