"""Each verb against examples worked out by hand, and properties that hold for any inputs."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from twinlib.models.timeline import Events, joined
from twinlib.whatif.edits import Add, Align, Cap, Remove, Scale, Shift
from twinlib.whatif.selection import Scene, Near, Where, in_window

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


@settings(max_examples=200, deadline=None)
@given(bolus=events, meal=events, where=wheres, start=starts, minutes=st.floats(-1440, 1440))
def test_moves_conserve_every_amount_and_keep_order(bolus, meal, where, start, minutes):
    for edit in (
        Shift(input=BOLUS, minutes=minutes, where=where),
        Align(input=BOLUS, minutes=minutes, to=Near(input=MEAL), where=where),
    ):
        out = edited(edit, Scene(2880, start), bolus=bolus, meal=meal)["bolus"]
        assert sorted(zip(out.amounts, out.durations, out.labels)) == sorted(zip(bolus.amounts, bolus.durations, bolus.labels))
        assert np.all(np.diff(out.minutes) >= 0) and np.all((out.minutes >= 0) & (out.minutes < 2880))


@settings(max_examples=200, deadline=None)
@given(bolus=events, meal=events, where=wheres, start=starts)
def test_scale_by_one_is_the_identity_and_by_zero_leaves_what_remove_leaves(bolus, meal, where, start):
    clock = Scene(2880, start)
    assert edited(Scale(input=BOLUS, factor=1.0, where=where), clock, bolus=bolus, meal=meal)["bolus"] is bolus or not len(bolus)
    zero = edited(Scale(input=BOLUS, factor=0.0, where=where), clock, bolus=bolus, meal=meal)["bolus"]
    kept = edited(Remove(input=BOLUS, where=where), clock, bolus=bolus, meal=meal)["bolus"]
    assert zero.amounts.sum() == pytest.approx(kept.amounts.sum(), abs=1e-9)


@settings(max_examples=200, deadline=None)
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
