"""Meals that nobody logged: what the two-compartment twin takes a bolus without a meal to imply."""

import numpy as np

from twinlib.fusion.layout import layout
from twinlib.fusion.vocabulary import load_vocabulary
from twinlib.config import EpisodeConfig
from twinlib.models import find
from twinlib.models.batch import Batch
from twinlib.models.glucose_two_compartment import MODEL, UNLOGGED, unlogged_meals
from twinlib.models.timeline import Events

BOLUS, MEALS = Events.of([480.0, 720.0, 900.0, 960.0, 1080.0], [5.0, 6.0, 4.0, 0.3, 7.0]), Events.of([475.0, 730.0, 1080.0], [50.0, 60.0, 70.0])


def test_a_bolus_without_a_meal_implies_what_it_would_cover():
    implied = unlogged_meals(BOLUS, MEALS)
    assert implied.minutes.tolist() == [900.0] and implied.amounts.tolist() == [40.0]  # 10 g/U; 3 g would be too little
    assert unlogged_meals(BOLUS, Events.of([], [])).minutes.size == 0
    assert unlogged_meals(BOLUS, MEALS.take(np.array([0, 1]))).minutes.size == 0  # too few meals to know the ratio
    assert unlogged_meals(Events.of([], []), MEALS).minutes.size == 0


def test_a_batch_is_completed_once_and_for_models_that_ask():
    batch = Batch((("a", "e"),), np.array([1440.0]), ({},), ({"insulin_bolus": BOLUS, "carbohydrate": MEALS},), ({},), np.zeros(1))
    done = batch.completed(MODEL)
    assert done.inputs[0][UNLOGGED].amounts.tolist() == [40.0] and UNLOGGED not in batch.inputs[0]
    halved = done.with_inputs((done.inputs[0] | {"insulin_bolus": Events.of([], [])},))
    assert halved.completed(MODEL).inputs[0][UNLOGGED].amounts.tolist() == [40.0]  # what happened is not worked out anew from a scenario's doses
    assert batch.completed(find("glucose_insulin")) is batch


def test_no_source_is_asked_for_what_is_implied():
    assert UNLOGGED not in MODEL.agents and UNLOGGED in {a for i in MODEL.inputs for a in i.agents}
    assert layout(MODEL, load_vocabulary(None), EpisodeConfig()).agents == MODEL.agents
