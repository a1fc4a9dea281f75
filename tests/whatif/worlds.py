"""Patients for the tests of what-ifs: small batches of one row, and draws about the prior."""

import numpy as np

from twinlib.models.batch import Batch, Series
from twinlib.models.timeline import Events
from twinlib.whatif.scenarios import VERBS, Scenario

BOLUS, BASAL, CARBOHYDRATE = ("insulin_bolus",), ("insulin_basal",), ("carbohydrate",)


def diabetic(days: int = 1, seed: int = 0, level: float = 150.0, gap: bool = True) -> Batch:
    """A person with pump and sensor; every meal at a time off the grid, a bolus ten minutes before it."""
    rng = np.random.default_rng(seed)
    minutes = np.arange(days * 288) * 5.0
    glucose = level + 30 * np.sin(minutes / 150) + rng.normal(0, 6, len(minutes))
    if gap:
        glucose[100:112] = np.nan
    meals = np.concatenate([1440 * d + np.array([450.3, 765.0, 1125.7]) for d in range(days)])
    grams = rng.uniform(30, 70, len(meals))
    inputs = {
        "insulin_bolus": Events.of(meals - 10, grams / 10),
        "insulin_basal": Events.of(np.arange(4 * days) * 360.0, rng.uniform(4, 7, 4 * days), 360.0),
        "carbohydrate": Events.of(meals, grams),
    }
    return Batch((("p", "e"),), np.array([1440.0 * days]), ({"glucose": Series(minutes, glucose)},), (inputs,), ({"body_weight": 70.0},), np.zeros(1))


def draws(model, count: int = 5, seed: int = 0, width: float = 0.2) -> np.ndarray:
    return model.prior_mean + width * model.prior_sd * np.random.default_rng(seed).standard_normal((count, len(model.prior_mean)))


def scenario(*edits: dict) -> Scenario:
    """From specifications as they stand in a file (aliases aside)."""
    return Scenario("x", "", tuple(VERBS[e["do"]].model_validate({k: v for k, v in e.items() if k != "do"}) for e in edits))
