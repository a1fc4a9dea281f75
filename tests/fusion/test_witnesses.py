"""Clocks against meals, levels against a meter: on series whose truth is known."""

import numpy as np
import pytest

from twinlib.fusion.witnesses import MINUTE, clock_shift, drifted

DAY = 1440


def life(days=14, seed=1, noise=10.0, fraction=1.0):
    """Instants and values of a sensor, and of meals: four a day at times that vary by an hour, glucose peaks an hour after each.

    fraction: share of the meals that were written down."""
    rng = np.random.default_rng(seed)
    at = np.arange(0, days * DAY, 5)
    meals = np.concatenate([d * DAY + np.array([420, 720, 1110, 1290]) + rng.integers(-60, 60, 4) for d in range(days)])
    ago = at[:, None] - meals
    value = 120 + (70 * np.where(ago > 0, ago / 60 * np.exp(1 - np.minimum(ago, 6000) / 60), 0)).sum(axis=1)
    slow = 30 * np.sin(at / 700 + 3 * rng.random())
    written = meals[rng.random(len(meals)) < fraction]
    return at * MINUTE, value + slow + rng.normal(0, noise, len(at)), written * MINUTE


@pytest.mark.parametrize("minutes", [-480, -300, -120, 120, 330, 480, 660])
def test_a_shifted_clock_is_found_with_its_shift(minutes):
    at, value, meals = life()
    assert clock_shift(at + minutes * MINUTE, value, meals, 120) == pytest.approx(minutes, abs=30)


@pytest.mark.parametrize("seed", range(8))
def test_a_right_clock_is_left_alone(seed):
    at, value, meals = life(seed=seed, noise=25, fraction=0.7)
    late = 45 * MINUTE  # written down after the meal
    assert clock_shift(at, value, meals, 120) == 0 and clock_shift(at, value, meals + late, 120) == 0


@pytest.mark.parametrize("seed", range(8))
def test_nothing_is_said_where_meals_tell_nothing(seed):
    at, value, meals = life(seed=seed)
    rng = np.random.default_rng(seed)
    assert clock_shift(at + 300 * MINUTE, value, meals[:15], 120) == 0  # too few
    anywhere = np.sort(rng.integers(0, 14 * DAY, 60)) * MINUTE
    assert clock_shift(at, value, anywhere, 120) == 0
    assert clock_shift(at[:3], value[:3], meals, 120) == 0


def test_a_drift_is_found_where_the_meter_says_so():
    rng = np.random.default_rng(3)
    at, value, _ = life(noise=5)
    days = at / (DAY * MINUTE)
    share = np.clip(0.08 * (days - 4), 0, None)
    own = np.arange(20, len(at), 48)
    meter = at[own] + 2 * MINUTE, value[own] * (1 + 0.05 * rng.standard_normal(len(own)))
    found = drifted(at, value * (1 + share), *meter, 0.2, 1440, 4)
    clear = np.abs(share - 0.2) > 0.04  # half a day before or after
    assert (found == (share > 0.2))[clear].all() and found[share > 0.2].mean() > 0.95
    assert not drifted(at, value, *meter, 0.2, 1440, 4).any()
    few = tuple(m[::30] for m in meter)
    assert not drifted(at, value * 2, *few, 0.2, 1440, 4).any()  # one or two in a day say nothing
    assert not drifted(at, value * 2, meter[0] + 4000 * DAY * MINUTE, meter[1], 0.2, 1440, 4).any()
