"""Schedules keep every event at its time and every amount."""

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from twinlib.engine.schedule import Drive, build

times = st.floats(-200, 400, allow_nan=False, width=32)
events = st.lists(st.tuples(times, st.floats(0, 50, width=32), st.sampled_from([0.0, 3.0, 7.25, 100.0])), max_size=12)


def drive(rows, spread) -> Drive:
    rows = sorted(rows)
    return Drive(*(np.array([r[k] for r in rows], float) for k in range(3)), spread)


@settings(max_examples=60)
@given(events, events, st.lists(st.floats(0.5, 300, width=32), min_size=1, max_size=30, unique=True), st.sampled_from([1.0, 2.5, 1e9]))
def test_steps_fill_the_time_and_hold_every_amount(first, second, slots, nominal):
    slots = np.sort(np.array(slots, float))
    drives = [drive(first, 0.0), drive(second, 15.0)]
    s = build(slots, drives, nominal)
    ends = np.cumsum(s.lengths)
    assert (s.lengths > 0).all() and (s.lengths <= 1.5 * nominal + 1e-9).all()
    np.testing.assert_allclose(ends[s.ends - 1], slots, rtol=1e-12)
    for j, d in enumerate(drives):
        given_ = 0.0
        for t, a, length in zip(d.times, d.amounts, np.maximum(d.durations, d.spread)):
            if length == 0:
                given_ += a if 0 <= t < slots[-1] else 0.0
            else:
                given_ += a * max(min(t + length, slots[-1]) - max(t, 0.0), 0.0) / length
        got = s.lengths @ s.rates[:, j] + (s.doses[:, 0].sum() if j == 0 else 0.0)
        np.testing.assert_allclose(got, given_, rtol=1e-9, atol=1e-6)


def test_a_dose_comes_at_its_own_time_and_after_the_reading_of_its_instant():
    s = build(np.array([0.0, 5.0, 10.0]), [Drive(np.array([5.0, 6.2]), np.array([2.0, 3.0]), np.zeros(2), 0.0)], 2.5)
    begins = np.concatenate([[0.0], np.cumsum(s.lengths)[:-1]])
    assert s.ends[0] == 0  # the first reading stands at the start
    assert dict(zip(begins[s.doses[:, 0] > 0], s.doses[s.doses[:, 0] > 0, 0])) == {5.0: 2.0, 6.2: 3.0}
    assert (np.flatnonzero(s.doses[:, 0] > 0) >= s.ends[1]).all()


def test_a_rate_is_exactly_zero_again_when_all_of_it_has_ended():
    d = Drive(np.array([0.1, 0.2, 0.3]), np.array([0.7, 1.1, 1.3]), np.array([3.0, 3.0, 3.0]), 1.0)
    s = build(np.array([10.0]), [d], 1.0)
    assert s.rates[-1, 0] == 0.0
