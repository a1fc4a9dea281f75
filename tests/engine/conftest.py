"""Small sets of data for the engine, made without the engine's own code paths where a test needs an independent answer."""

import numpy as np
import pytest

from twinlib.engine.kernel import Data, Kernel
from twinlib.engine.schedule import Drive, build
from twinlib.models.glucose_insulin import MODEL

BASAL = 0.2  # mU/kg/min


@pytest.fixture(scope="session")
def kernel() -> Kernel:
    return Kernel(MODEL)


def events(rng, days: int) -> tuple[Drive, Drive]:
    """Basal insulin, and three meals a day with their boluses, at any minute."""
    times, grams = [], []
    for day in range(days):
        for hour in (7.5, 12.5, 19.0):
            times.append(day * 1440 + hour * 60 + rng.uniform(-40, 40))
            grams.append(rng.uniform(30, 80))
    times, grams = np.array(times), np.array(grams)
    bolus = grams / 10 * 1000 / 70 * rng.uniform(0.7, 1.3, len(grams))
    insulin = Drive(
        np.r_[0.0, times - 10], np.r_[BASAL * 1440 * days, bolus], np.r_[1440.0 * days, np.zeros(len(bolus))], 0.0
    )
    return insulin, Drive(times, grams * 1000 / 70, np.zeros(len(grams)), 15.0)


@pytest.fixture
def patient():
    """Transformed parameters (8,), data of one patient over a day with missing readings, and the events behind them."""
    rng = np.random.default_rng(7)
    slots = np.arange(200) * 5.0
    drives = events(rng, 1)
    y = 140 + 40 * np.sin(np.arange(200) / 40) + 5 * rng.standard_normal(200)
    y[rng.random(200) < 0.1] = np.nan
    y[100:130] = np.nan
    theta = MODEL.prior_mean + 0.3 * MODEL.prior_sd * rng.standard_normal(8)
    data = Data.of(np.array([[BASAL, 130.0]]), [build(slots, drives, MODEL.step)], [y[:, None]])
    return theta, data, drives
