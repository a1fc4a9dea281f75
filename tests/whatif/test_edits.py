"""Each verb against examples worked out by hand, and properties that hold for any inputs."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from twinlib.models.timeline import Events, joined
from twinlib.models.batch import Series
from twinlib.whatif.edits import Add, Align, Cap, Miss, Profile, Remove, Replace, Scale, Shift, Stop, Switch
from twinlib.whatif.selection import Near, Scene, Where, in_window
from twinlib.whatif.therapy import CarbohydrateRatio, CorrectionFactor

DAY = Scene(minutes=1440)
TWO_DAYS = Scene(minutes=2880)
BOLUS, MEAL, BASAL = ("bolus",), ("meal",), ("basal",)


def edited(edit, clock=DAY, **inputs):
    return edit.apply(inputs, clock)


def rows(events: Events) -> list[tuple]:
    return list(zip(events.minutes.tolist(), events.amounts.tolist(), events.durations.tolist(), events.labels))


def test_scale_touches_only_the_window_and_the_label():
    bolus = Events.of([400, 480, 720, 1080], [1, 4, 6, 8], labels=["correction", "meal", "meal", "meal"])
    out = edited(Scale(input=BOLUS, factor=0.5, where=Where(time="06:00-12:00", labels=["Meal"])), bolus=bolus)["bolus"]
    assert out.amounts.tolist() == [1, 2, 6, 8]  # 720 = 12:00 is outside: the window is half open
    assert out.minutes.tolist() == bolus.minutes.tolist()


def test_window_across_midnight_and_the_local_clock():
    assert in_window((1320, 120), np.array([1319, 1320, 1439, 0, 119, 120])).tolist() == [False, True, True, True, True, False]
    bolus = Events.of([0, 60, 120], [1, 1, 1])
    late = Scene(minutes=1440, local_start=1380)  # minute 0 is 23:00
    out = edited(Scale(input=BOLUS, factor=3, where=Where(time="23:30-00:30")), late, bolus=bolus)["bolus"]
    assert out.amounts.tolist() == [1, 3, 1]


def test_scale_cuts_an_infusion_at_the_edges_of_the_window():
    basal = Events.of([0], [24.0], 1440.0)  # 1 U/h all day
    out = edited(Scale(input=BASAL, factor=0.5, where=Where(time="02:00-05:00")), basal=basal)["basal"]
    assert rows(out) == [(0, 2, 120, ""), (120, 1.5, 180, ""), (300, 19, 1140, "")]


def test_an_infusion_over_two_days_is_cut_in_both_nights():
    basal = Events.of([600, 1200], [10.0, 24.0], [600.0, 1440.0])
    out = edited(Scale(input=BASAL, factor=0.0, where=Where(time="23:00-01:00")), TWO_DAYS, basal=basal)["basal"]
    assert rows(out) == [(600, 10, 600, ""), (1200, 3, 180, ""), (1380, 0, 120, ""), (1500, 19, 1140, "")]
    assert out.amounts.sum() == 10 + 24 - 2


def test_whole_takes_an_infusion_that_starts_in_the_window_as_it_is():
    pen = Events.of([1320], [20.0], 1440.0)
    where = Where(time="21:00-24:00", whole=True)
    assert rows(edited(Scale(input=BASAL, factor=0.5, where=where), TWO_DAYS, basal=pen)["basal"]) == [(1320, 10, 1440, "")]
    assert len(edited(Remove(input=BASAL, where=where), TWO_DAYS, basal=pen)["basal"]) == 0


def test_events_not_chosen_are_never_cut():
    basal = Events.of([0, 0], [12.0, 24.0], 1440.0, ["a", "b"])
    out = edited(Remove(input=BASAL, where=Where(time="00:00-12:00", labels=["b"])), basal=basal)["basal"]
    assert rows(out) == [(0, 12, 1440, "a"), (720, 12, 720, "b")]


def test_remove_the_bolus_of_a_meal():
    meal = Events.of([450, 560, 780], [40, 20, 60], labels=["breakfast", "snack", "lunch"])
    bolus = Events.of([300, 440, 509, 515, 560, 770], [1, 2, 3, 4, 5, 6])
    by_time = edited(
        Remove(input=BOLUS, where=Where(near=Near(input=MEAL, within_minutes=60, time="07:00-08:00"))), bolus=bolus, meal=meal
    )
    # 440 belongs to breakfast; 509 is 59 min after breakfast but 51 before the snack; 300 belongs to no meal
    assert by_time["bolus"].minutes.tolist() == [300, 509, 515, 560, 770]
    by_label = edited(Remove(input=BOLUS, where=Where(near=Near(input=MEAL, labels=["snack", "lunch"]))), bolus=bolus, meal=meal)
    assert by_label["bolus"].minutes.tolist() == [300, 440]
    assert by_label["meal"] is meal


def test_an_event_between_two_meals_belongs_to_the_later_one_and_the_edge_counts():
    meal = Events.of([100, 200], [1, 1], labels=["a", "b"])
    near = Near(input=MEAL, within_minutes=50)
    assert near.anchors(Events.of([150, 250, 251], [1, 1, 1]), {"meal": meal}, DAY).tolist()[:2] == [200, 200]
    assert np.isnan(near.anchors(Events.of([49, 251], [1, 1]), {"meal": meal}, DAY)).all()


def test_align_moves_each_bolus_to_before_its_meal():
    meal = Events.of([8, 480, 780], [30, 40, 60])
    bolus = Events.of([5, 475, 500, 600, 839, 841], [1, 2, 3, 4, 5, 6], labels=list("abcdef"))
    out = edited(Align(input=BOLUS, minutes=-15.0, to=Near(input=MEAL, within_minutes=60)), bolus=bolus, meal=meal)["bolus"]
    # the first would fall before the episode and is held at its first minute
    assert rows(out) == [(0, 1, 0, "a"), (465, 2, 0, "b"), (465, 3, 0, "c"), (600, 4, 0, "d"), (765, 5, 0, "e"), (841, 6, 0, "f")]


def test_shift_sorts_again_and_stays_in_the_episode():
    bolus = Events.of([10, 100, 1430], [1, 2, 3], labels=list("abc"))
    assert rows(edited(Shift(input=BOLUS, minutes=-30), bolus=bolus)["bolus"]) == [
        (0, 1, 0, "a"),
        (70, 2, 0, "b"),
        (1400, 3, 0, "c"),
    ]
    first = edited(Shift(input=BOLUS, minutes=200, where=Where(labels=["a"])), bolus=bolus)["bolus"]
    assert rows(first) == [(100, 2, 0, "b"), (210, 1, 0, "a"), (1430, 3, 0, "c")]
    assert edited(Shift(input=BOLUS, minutes=60), bolus=bolus)["bolus"].minutes.tolist() == [70, 160, 1439]


def test_cap():
    meal = Events.of([1, 2, 3], [10, 60, 90])
    assert edited(Cap(input=MEAL, maximum=60.0), meal=meal)["meal"].amounts.tolist() == [10, 60, 60]


def test_add_gives_an_event_every_day_at_local_time():
    out = edited(
        Add(input=MEAL, amount=15.0, at="22:00", duration=10.0, label=" Snack "), TWO_DAYS, meal=Events.of([2000], [5.0])
    )
    assert rows(out["meal"]) == [(1320, 15, 10, "snack"), (2000, 5, 0, ""), (2760, 15, 10, "snack")]
    fresh = edited(Add(input=MEAL, amount=1.0, at="00:30"), Scene(minutes=1440, local_start=60))
    assert rows(fresh["meal"]) == [(1410, 1, 0, "")]


def test_an_alias_of_two_inputs_changes_those_that_are_there():
    out = edited(Scale(input=("basal", "pen"), factor=2.0), pen=Events.of([1], [10.0], 1440.0), meal=Events.of([1], [1.0]))
    assert set(out) == {"pen", "meal"} and out["pen"].amounts.tolist() == [20]


events = st.lists(
    st.tuples(st.integers(0, 2879), st.floats(0, 50), st.sampled_from([0, 5, 90, 1440, 2000]), st.sampled_from(["", "a", "b"])),
    max_size=12,
).map(
    lambda rows: Events.of(*[[r[i] for r in rows] for i in (0, 1)], np.array([r[2] for r in rows], float), [r[3] for r in rows])
)
clock_time = st.integers(0, 1439).map(lambda m: f"{m // 60:02}:{m % 60:02}")
window = st.tuples(clock_time, clock_time).filter(lambda w: w[0] != w[1]).map("-".join)
wheres = st.builds(
    Where, time=window, labels=st.none() | st.just(["a"]), near=st.none() | st.just(Near(input=MEAL)), whole=st.booleans()
)
starts = st.integers(0, 1439).map(float)


@settings(max_examples=200)
@given(bolus=events, meal=events, where=wheres, start=starts, minutes=st.floats(-1440, 1440))
def test_moves_conserve_every_amount_and_keep_order(bolus, meal, where, start, minutes):
    for edit in (
        Shift(input=BOLUS, minutes=minutes, where=where),
        Align(input=BOLUS, minutes=minutes, to=Near(input=MEAL), where=where),
    ):
        out = edited(edit, Scene(2880, start), bolus=bolus, meal=meal)["bolus"]
        assert sorted(zip(out.amounts, out.durations, out.labels)) == sorted(zip(bolus.amounts, bolus.durations, bolus.labels))
        assert np.all(np.diff(out.minutes) >= 0) and np.all((out.minutes >= 0) & (out.minutes < 2880))


@settings(max_examples=200)
@given(bolus=events, meal=events, where=wheres, start=starts)
def test_scale_by_one_is_the_identity_and_by_zero_leaves_what_remove_leaves(bolus, meal, where, start):
    clock = Scene(2880, start)
    assert edited(Scale(input=BOLUS, factor=1.0, where=where), clock, bolus=bolus, meal=meal)["bolus"] is bolus or not len(bolus)
    zero = edited(Scale(input=BOLUS, factor=0.0, where=where), clock, bolus=bolus, meal=meal)["bolus"]
    kept = edited(Remove(input=BOLUS, where=where), clock, bolus=bolus, meal=meal)["bolus"]
    assert zero.amounts.sum() == pytest.approx(kept.amounts.sum(), abs=1e-9)


@settings(max_examples=200)
@given(bolus=events, span=window, start=starts)
def test_scaling_a_window_scales_exactly_what_is_delivered_in_it(bolus, span, start):
    """Against a minute-by-minute delivery computed on its own."""

    def delivered(e):
        grid = np.zeros(2880 + 2001)
        for minute, amount, duration, _ in rows(e):
            for m in range(int(minute), int(minute) + max(int(duration), 1)):
                grid[m] += amount / max(duration, 1)
        return grid

    begin, end = (int(t[:2]) * 60 + int(t[3:]) for t in span.split("-"))
    of_day = (np.arange(2880 + 2001) + start) % 1440
    inside = (of_day >= begin) & (of_day < end) if begin < end else (of_day >= begin) | (of_day < end)
    out = edited(Scale(input=BOLUS, factor=0.25, where=Where(time=span)), Scene(2880, start), bolus=bolus)["bolus"]
    assert np.allclose(delivered(out), delivered(bolus) * np.where(inside, 0.25, 1.0), atol=1e-9)
    assert np.all(np.diff(out.minutes) >= 0)


def test_no_edit_writes_into_its_input():
    basal, meal = Events.of([0, 100], [24.0, 3.0], [1440.0, 0.0], ["a", "a"]), Events.of([90], [40.0])
    for e in (basal, meal):
        for array in (e.minutes, e.amounts, e.durations):
            array.setflags(write=False)
    where = Where(time="01:00-02:00")
    for edit in (
        Scale(input=BASAL, factor=0.5, where=where),
        Remove(input=BASAL, where=where),
        Cap(input=BASAL, maximum=1.0),
        Shift(input=BASAL, minutes=-5),
        Align(input=BASAL, to=Near(input=MEAL), minutes=1),
        Add(input=BASAL, amount=1.0, at="03:00"),
    ):
        before = rows(basal)
        edit.apply({"basal": basal, "meal": meal}, DAY)
        assert rows(basal) == before


def test_events_refuse_columns_of_different_length_and_join_in_order():
    with pytest.raises(ValueError, match="differ in length"):
        Events.of([1, 2], [1.0])
    assert rows(joined([Events.of([5, 1], [1, 2], labels=["x", "y"]), Events.of([1], [3.0])])) == [
        (1, 2, 0, "y"),
        (1, 3, 0, ""),
        (5, 1, 0, "x"),
    ]
    assert len(joined([])) == 0


def test_replace_sets_amounts_and_rates():
    bolus, basal = Events.of([10, 20], [1.0, 5.0], labels=["a", "b"]), Events.of([0], [24.0], 1440.0)
    assert edited(Replace(input=BOLUS, amount=3.0, where=Where(labels=["b"])), bolus=bolus)["bolus"].amounts.tolist() == [1, 3]
    out = edited(Replace(input=BASAL, rate=0.5, where=Where(time="12:00-18:00")), basal=basal)["basal"]
    assert rows(out) == [(0, 12, 720, ""), (720, 3, 360, ""), (1080, 6, 360, "")]


def test_a_regimen_starts_stops_and_switches():
    every = edited(Add(**{"input": MEAL, "amount": 5.0, "every": "8 h", "from": "2 h", "until": "1 d", "loading": 9.0}), TWO_DAYS)["meal"]
    assert rows(every) == [(120, 9, 0, ""), (600, 5, 0, ""), (1080, 5, 0, "")]
    twice = edited(Add(input=MEAL, amount=5.0, at=["08:00", "20:00"]), TWO_DAYS)["meal"]
    assert twice.minutes.tolist() == [480, 1200, 1920, 2640]
    basal = Events.of([0, 1440], [24.0, 24.0], 1440.0)
    stopped = edited(Stop(**{"input": BASAL, "from": "6 h", "until": "30 h"}), TWO_DAYS, basal=basal)["basal"]
    assert rows(stopped) == [(0, 6, 360, ""), (1800, 18, 1080, "")]
    pen = edited(Switch(**{"input": BASAL, "to": ("pen",), "amount": 20.0, "at": "22:00", "duration": "24 h", "from": "1 d"}), TWO_DAYS, basal=basal)
    assert rows(pen["basal"]) == [(0, 24, 1440, "")] and rows(pen["pen"]) == [(2760, 20, 1440, "")]
    converted = edited(Switch(input=BASAL, to=("pen",), factor=0.8), TWO_DAYS, basal=basal)
    assert len(converted["basal"]) == 0 and converted["pen"].amounts.tolist() == pytest.approx([19.2, 19.2])


def test_a_profile_takes_the_place_of_rates_only():
    basal = Events.of([0, 300], [24.0, 2.0], [1440.0, 0.0])
    out = edited(Profile(input=BASAL, rates={"06:00": 1.0, "22:00": 0.5}), Scene(1440, 1380), basal=basal)["basal"]  # minute 0 is 23:00
    assert rows(out) == [(0, 3.5, 420, ""), (300, 2, 0, ""), (420, 16, 960, ""), (1380, 0.5, 60, "")]


def test_missed_doses_are_every_nth_or_keyed_to_the_dose():
    bolus = Events.of(np.arange(200) * 10, np.ones(200))
    assert edited(Miss(input=BOLUS, every=3), TWO_DAYS, bolus=bolus)["bolus"].minutes.tolist() == [m for i, m in enumerate(range(0, 2000, 10), 1) if i % 3]
    kept = lambda p, key=("a", "e"): set(edited(Miss(input=BOLUS, probability=p), Scene(2880, key=key, seed=5), bolus=bolus)["bolus"].minutes)  # noqa: E731
    assert kept(0.3) < kept(0.1) and 120 < len(kept(0.3)) < 160  # what is missed at 10 % is missed at 30 %
    assert kept(0.3) == kept(0.3) and kept(0.3) != kept(0.3, ("b", "e")) and len(kept(0.0)) == 200 and not kept(1.0)


def test_conditions_on_the_last_reading():
    glucose = Series(np.array([0.0, 5.0, 10.0]), np.array([60.0, np.nan, 200.0]))
    scene = Scene(1440, signals={"glucose": glucose})
    bolus = Events.of([0, 7, 10, 30], [1, 1, 1, 1])
    where = lambda **r: Where(reading=r)  # noqa: E731
    mask = lambda **r: where(**r).mask(bolus, {}, scene).tolist()  # noqa: E731
    assert mask(below=70) == [True, True, False, False] and mask(above=100) == [False, False, True, False]  # 30 is too late for 15 minutes
    assert mask(above=100, within_minutes="1 h") == [False, False, True, True] and mask(below=70, signal="ketones") == [False] * 4
    assert Scale(input=BOLUS, factor=0.5, where=where(below=70)).lacks({"bolus": bolus}, DAY) == "no readings to go by"


def test_from_and_until_cut_what_is_given_over_time():
    basal = Events.of([0], [48.0], 2880.0)
    out = edited(Scale(input=BASAL, factor=0.5, where=Where(**{"from": "1 d", "time": "06:00-12:00"})), TWO_DAYS, basal=basal)["basal"]
    assert [r for r in rows(out) if r[1] / r[2] * 60 < 0.75] == [(1800, 3, 360, "")] and out.amounts.sum() == 45


def test_a_new_carbohydrate_ratio_changes_what_the_meal_decides():
    meal, bolus = Events.of([100, 500], [60.0, 40.0]), Events.of([90, 100, 300, 495], [4.0, 2.0, 3.0, 5.0])
    edit = CarbohydrateRatio(input=BOLUS, meals=Near(input=MEAL), old=10.0, new=8.0)
    more = 60 * (1 / 8 - 1 / 10)
    assert edited(edit, bolus=bolus, meal=meal)["bolus"].amounts.tolist() == pytest.approx([4 + more * 4 / 6, 2 + more * 2 / 6, 3, 5 + 40 * (1 / 8 - 1 / 10)])
    told = edited(CarbohydrateRatio(input=BOLUS, meals=Near(input=MEAL), factor=0.5), bolus=bolus, meal=meal)["bolus"]
    old = np.median([10, 10, 8])  # grams per unit of each dose
    assert told.amounts[3] == pytest.approx(5 + 40 / old)
    alone = Events.of([300], [3.0])
    assert CarbohydrateRatio(input=BOLUS, meals=Near(input=MEAL), factor=0.5).lacks({"bolus": alone, "meal": meal}, DAY) == "bolus: no dose tells the old setting"


def test_a_new_correction_factor_changes_what_the_excess_decides():
    glucose = Series(np.array([80.0, 290.0, 600.0]), np.array([180.0, 230.0, 90.0]))
    scene = Scene(1440, signals={"glucose": glucose})
    meal, bolus = Events.of([90], [60.0]), Events.of([90, 300, 605], [7.0, 2.0, 1.0])
    edit = CorrectionFactor(input=BOLUS, meals=Near(input=MEAL), target=130.0, old=50.0, new=40.0)
    assert edited(edit, scene, bolus=bolus, meal=meal)["bolus"].amounts.tolist() == pytest.approx([7 + 50 * (1 / 40 - 1 / 50), 2 + 100 * (1 / 40 - 1 / 50), 1])
    told = edited(CorrectionFactor(input=BOLUS, meals=Near(input=MEAL), target=130.0, factor=2.0), scene, bolus=bolus, meal=meal)["bolus"]
    assert told.amounts[1] == pytest.approx(2 - 1)  # old: (230 - 130) / 2 = 50
