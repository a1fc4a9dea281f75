"""A small batch of patients simulated without the engine's own code paths where a test needs an independent answer."""

import numpy as np
import pytest

from twinlib.engine.kernel import Data, Kernel
from twinlib.models.glucose_insulin import MODEL


@pytest.fixture(scope="session")
def kernel() -> Kernel:
    return Kernel(MODEL, 5.0)


def inputs(rng, slots: int, basal: float = 0.2) -> np.ndarray:
    """(minutes, 2) insulin mU/kg/min and carbohydrate mg/kg/min: basal, three meals a day with their boluses."""
    u = np.zeros((slots * 5, 2))
    u[:, 0] = basal
    for day in range(-(-slots // 288)):
        for hour in (7.5, 12.5, 19.0):
            t = int(day * 1440 + hour * 60 + rng.integers(-40, 40))
            if t + 15 < len(u):
                grams = rng.uniform(30, 80)
                u[t : t + 15, 1] += grams * 1000 / 70 / 15
                u[t - 10, 0] += grams / 10 * 1000 / 70 * rng.uniform(0.7, 1.3)
    return u


@pytest.fixture
def patient():
    """Parameters (8,), data of one patient over 36 hours with missing readings."""
    rng = np.random.default_rng(7)
    slots = 432
    u = inputs(rng, slots)
    y = 140 + 40 * np.sin(np.arange(slots) / 40) + 5 * rng.standard_normal(slots)
    y[rng.random(slots) < 0.1] = np.nan
    y[100:130] = np.nan
    theta = MODEL.natural(MODEL.prior_mean + 0.3 * MODEL.prior_sd * rng.standard_normal(8))
    return theta, Data(np.array([[0.2, 130.0]]), u.reshape(1, -1), y[None])
