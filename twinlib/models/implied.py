"""What the records of a person with diabetes imply although none of them says so: meals behind boluses that have none, and times at which
glucose rises for no reason that is known. They are of what happened, and stay as they were in every arm of a what-if."""

from __future__ import annotations

import numpy as np

from twinlib.models.timeline import Events

NEAR = 60.0  # min between a bolus and a meal that belong together
LEAST, ENOUGH = 10.0, 3  # g of an implied meal; boluses with a meal that tell how much a unit covers
RISE = 50.0  # mg/dL; further than the sensor's error goes
MEAN, STEEP = 45.0, 30.0  # min over which readings are averaged, before and after the rise; and between the two
MEAL_LASTS = 150.0  # min in which a meal explains a rise
AROUND = 40.0  # min before and after the end of a rise


def unlogged_meals(bolus: Events, carbohydrate: Events) -> Events:
    """Meals that boluses without a logged meal within NEAR minutes would cover, at the person's usual grams per unit: the median over boluses with
    a meal. None where there are fewer than ENOUGH of those."""
    units, at = bolus.amounts[bolus.amounts > 0], bolus.minutes[bolus.amounts > 0]
    around = np.searchsorted(carbohydrate.minutes, at - NEAR, "left"), np.searchsorted(carbohydrate.minutes, at + NEAR, "right")
    eaten = np.append(0.0, np.cumsum(carbohydrate.amounts))
    grams = eaten[around[1]] - eaten[around[0]]
    if (grams > 0).sum() < ENOUGH:
        return Events.of([], [])
    covered = units * np.median(grams[grams > 0] / units[grams > 0])
    alone = (grams == 0) & (covered >= LEAST)
    return Events.of(at[alone], covered[alone])


def unexplained_rises(minutes: np.ndarray, glucose: np.ndarray, meals: Events) -> Events:
    """Times at which glucose goes up and stays up and no meal says why: a meal that nobody logged, as a rule.

    minutes, glucose (n,): readings (mg/dL, NaN = missing). A rise is from the mean of MEAN minutes to that of the MEAN minutes that follow after
    STEEP: a single spike of the sensor is none. The events' amounts are their durations (min), so their rate is 1; none overlap.
    """
    t, g = minutes[~np.isnan(glucose)], glucose[~np.isnan(glucose)]
    total = np.append(0.0, np.cumsum(g))

    def mean(begin, end):
        a, b = np.searchsorted(t, begin), np.searchsorted(t, end)
        return np.where(b - a > 1, (total[b] - total[a]) / np.maximum(b - a, 1), np.nan)

    rise = mean(t, t + MEAN) - mean(t - STEEP - MEAN, t - STEEP)
    free = np.searchsorted(meals.minutes, t + STEEP, "right") == np.searchsorted(meals.minutes, t - MEAL_LASTS, "left")
    at = t[free & (rise > RISE)]
    first = np.append(True, np.diff(at) > 2 * AROUND)[: len(at)]
    last = np.append(np.diff(at) > 2 * AROUND, True)[: len(at)]
    begins = np.maximum(at[first] - AROUND, 0.0)
    lasts = at[last] + AROUND - begins
    return Events.of(begins, lasts, lasts)
