"""The accurate glucose-insulin twin: two glucose compartments, delayed suppression of glucose production, non-linear gastric emptying
and a sensor error with memory.

Structure after Dalla Man 2007 and 2014 (UVA/Padova): plasma and tissue glucose with saturable uptake; insulin acts on uptake through a remote
compartment and on endogenous production through two delays; the stomach empties at a rate that depends on how full it is. Four
random processes are marginalised by the Kalman filter: the flux of glucose that inputs do not explain, the drift of insulin sensitivity from its
usual course over the day, the error of every meal's count, and the slow error of the sensor. The sizes of the first three and the daily course are the
patient's own, from priors near nothing: where they need not be, they do not take over what insulin and meals do, and where life has much of them the
readings say so. How much life has of them is best learnt from the cohort: `SIZES` are the parameters to learn (docs/population.md).

A bolus without a logged meal is often the bolus of a meal that nobody logged. Taken at its word it would say that insulin does little, so such
boluses imply meals, of a share of what they would cover that the readings decide. A rise that stays and that no meal explains, taken for flux of
the usual size, would say that glucose regulates itself; so while it lasts the flux may be anything. Figures: docs/accuracy.md.
"""

import numpy as np

from twinlib.engine.contract import Constant, Input, Model, Parameter, Signal, State, additive, quantity
from twinlib.engine.expressions import exp, positive, tanh
from twinlib.models.batch import Series
from twinlib.models.glucose_insulin import basal_and_first
from twinlib.models.implied import unexplained_rises, unlogged_meals
from twinlib.models.timeline import Events, Inputs, joined

VI = quantity(0.126, "L/kg")  # insulin distribution volume
CLEARANCE = quantity(0.24, "1/min")  # of plasma insulin; it scales the two insulin sensitivities
TO_DEPOT_2 = quantity(0.0163, "1/min")  # insulin from the first subcutaneous depot to the second
DIRECT = 0.206  # absorption from the first depot straight into plasma, as a share of the rate from the second
BRAIN = quantity(0.54, "mg/dL/min")  # uptake by the brain, constant
MICHAELIS = quantity(126.0, "mg/dL")  # tissue glucose at half of the largest uptake
RENAL_RATE, RENAL_THRESHOLD = quantity(0.0005, "1/min"), quantity(180.0, "mg/dL")
PRODUCTION_CORNER = quantity(0.05, "mg/dL/min")  # softness of the floor of production
UPTAKE_CORNER, GLUCOSE_CORNER = quantity(0.0005, "1/min"), quantity(3.0, "mg/dL")
TRACE = quantity(1.0, "mg/kg")  # keeps the share of an empty stomach defined
ONSET, RESET = 10.0, quantity(0.32, "1/min")  # min; while a meal begins, what left the stomach before is forgotten (to 4 %; stable in 5-minute steps)
SLIGHT = quantity(1.0, "mg/kg/min")  # a meal that counts begins faster than this
MIXING = quantity(0.36, "1/min")  # so that of the old count error a quarter is left after a meal by itself, 60 % after one as large as what is there
DAILY = quantity(2 * np.pi / 1440, "1/min")
DRIFT_TIME = quantity(720.0, "min")  # correlation time of insulin sensitivity: it differs within a day and between days
SIZES = ("flux_sd", "sensitivity_drift_sd", "count_error_sd", "sensitivity_cosine", "sensitivity_sine")  # of what is not told
UNLOGGED, UNEXPLAINED = "carbohydrate_unlogged", "unexplained"
BURST = quantity(2.0, "mg/dL/min")  # SD of the flux, beside its usual one, while glucose rises for no reason that is known: a meal's
WHITE_SD = quantity(4.0, "mg/dL")  # error of a reading without memory, and what a meal five minutes off its time does

_COURSE = "near nothing; of the logarithm of insulin sensitivity, more at "  # Hinshaw 2013: it differs within the day, by patient
_SOURCE = "UVA/Padova 2008: median and log-SD of 20 virtual patients, mapped (docs/accuracy.md)"


class GlucoseTwoCompartment(Model):
    name = "glucose_two_compartment"
    version = "6"
    states = (
        State("insulin_depot_1", "mU/L"), State("insulin_depot_2", "mU/L"), State("plasma_insulin", "mU/L"), State("insulin_action", "mU/L"),
        State("production_delay_1", "mU/L"), State("production_delay_2", "mU/L"),
        State("emptied", "mg/kg"), State("stomach_solid", "mg/kg"), State("stomach_liquid", "mg/kg"), State("gut", "mg/kg"),
        State("glucose", "mg/dL"), State("tissue_glucose", "mg/dL"), State("interstitial_glucose", "mg/dL"),
        State("flux", "mg/dL/min", noise=True), State("sensitivity_drift", "", noise=True), State("count_error", "", noise=True),
        State("sensor_error", "mg/dL"), State("sensor_drift", "mg/dL", noise=True), State("day_cosine", ""), State("day_sine", ""),
    )
    parameters = tuple(Parameter(*row[:4], _SOURCE, *row[4:]) for row in (
        ("insulin_sensitivity", "L/mU/min", 2.37e-3, 0.6),
        ("production_sensitivity", "mg/dL/min/(mU/L)", 0.076, 0.6),
        ("glucose_effectiveness", "1/min", 0.0047, 0.6),
        ("basal_glucose", "mg/dL", 140.0, 0.12),
        ("basal_uptake", "mg/dL/min", 1.0, 0.32),
        ("meal_gain", "kg/dL", 0.487, 0.09),
        ("plasma_to_tissue", "1/min", 0.062, 0.30),
        ("tissue_to_plasma", "1/min", 0.107, 0.38),
        ("production_rate", "1/min", 0.0086, 0.5),
        ("insulin_absorption_rate", "1/min", 0.0175, 0.28),
        ("insulin_action_rate", "1/min", 0.039, 0.38),
        ("gastric_emptying_rate", "1/min", 0.036, 0.45),
        ("slowest_emptying_rate", "1/min", 0.0093, 0.5),
        ("slowing_share", "", 0.79, 0.9, "logit"),
        ("quickening_share", "", 0.153, 0.38, "logit"),
        ("glucose_absorption_rate", "1/min", 0.12, 0.6),
        ("sensor_lag", "min", 10.9, 0.25),
        ("flux_sd", "mg/dL/min", 0.05, 1.5),
        ("flux_correlation_time", "min", 60.0, 0.2),
        ("sensor_sd", "mg/dL", 11.0, 0.3),
        ("sensor_correlation_time", "min", 25.0, 0.3),
        ("sensor_smoothing_time", "min", 14.0, 0.3),
    )) + (
        Parameter("sensitivity_drift_sd", "", 0.05, 1.0, "near nothing and wide, like the flux's; of the logarithm"),
        Parameter("count_error_sd", "", 0.01, 1.5, "near nothing and wide; SD of the logarithm of eaten over logged grams, meal by meal"),
        Parameter("sensitivity_cosine", "", 0.0, 0.08, _COURSE + "midnight, less at noon", "identity"),
        Parameter("sensitivity_sine", "", 0.0, 0.08, _COURSE + "six in the morning, less at six in the evening", "identity"),
        Parameter("unlogged_share", "", 0.5, 1.5, "weak: what a bolus without a meal covers may not have been eaten at all", "logit"),
    )
    inputs = (
        Input("insulin", "mU/kg/min", ("insulin_bolus", "insulin_basal", "insulin_long_acting"), "U", per_weight=True),
        Input("carbohydrate", "mg/kg/min", ("carbohydrate",), "g", spread=1.0, per_weight=True, pace=5.0),
        Input("unlogged_carbohydrate", "mg/kg/min", (UNLOGGED,), "g", spread=1.0, per_weight=True, pace=5.0),
        Input("meal_onset", "mg/kg/min", ("carbohydrate", UNLOGGED), "g", spread=ONSET, per_weight=True),
        Input("unexplained", "", (UNEXPLAINED,), "min", spread=1.0),
    )
    implied = (UNLOGGED, UNEXPLAINED)
    signals = (Signal("glucose", "mg/dL", lower=40.0, upper=400.0),)
    constants = (Constant("basal_insulin", "mU/kg/min"), Constant("first_glucose", "mg/dL"))
    covariates = ("body_weight",)
    step = 2.5

    def dynamics(self, x, u, p, c):
        excess = x.plasma_insulin - c.basal_insulin / (VI * CLEARANCE)
        in_stomach = x.stomach_solid + x.stomach_liquid
        share = in_stomach / (in_stomach + x.emptied + TRACE)  # of the meal, counted from its begin, and what was there then
        slowing, quickening = p.slowing_share, p.quickening_share
        speed = tanh(2.5 / (1 - slowing) * (share - slowing)) - tanh(2.5 / quickening * (share - quickening)) + 2
        emptying = p.slowest_emptying_rate + (p.gastric_emptying_rate - p.slowest_emptying_rate) / 2 * speed
        course = p.sensitivity_cosine * x.day_cosine + p.sensitivity_sine * x.day_sine
        tissue_basal, factor = self._tissue_basal(p), exp(course + x.sensitivity_drift)
        production = positive(
            p.basal_uptake + BRAIN - p.glucose_effectiveness * (x.glucose - p.basal_glucose)
            - factor * p.production_sensitivity * x.production_delay_2, PRODUCTION_CORNER
        )
        per_glucose = positive(p.basal_uptake / tissue_basal + factor * p.insulin_sensitivity * x.insulin_action, UPTAKE_CORNER)
        uptake = per_glucose * x.tissue_glucose * (MICHAELIS + tissue_basal) / (MICHAELIS + x.tissue_glucose)
        exchange = p.plasma_to_tissue * x.glucose - p.tissue_to_plasma * x.tissue_glucose
        appearance = p.meal_gain * p.glucose_absorption_rate * x.gut * exp(x.count_error)
        direct = DIRECT * p.insulin_absorption_rate
        return {
            "insulin_depot_1": u.insulin / VI - (TO_DEPOT_2 + direct) * x.insulin_depot_1,
            "insulin_depot_2": TO_DEPOT_2 * x.insulin_depot_1 - p.insulin_absorption_rate * x.insulin_depot_2,
            "plasma_insulin": direct * x.insulin_depot_1 + p.insulin_absorption_rate * x.insulin_depot_2 - CLEARANCE * x.plasma_insulin,
            "insulin_action": p.insulin_action_rate * (excess - x.insulin_action),
            "production_delay_1": p.production_rate * (excess - x.production_delay_1),
            "production_delay_2": p.production_rate * (x.production_delay_1 - x.production_delay_2),
            "emptied": emptying * x.stomach_liquid - RESET * u.meal_onset / (u.meal_onset + SLIGHT) * x.emptied,
            "stomach_solid": u.carbohydrate + p.unlogged_share * u.unlogged_carbohydrate - p.gastric_emptying_rate * x.stomach_solid,
            "stomach_liquid": p.gastric_emptying_rate * x.stomach_solid - emptying * x.stomach_liquid,
            "gut": emptying * x.stomach_liquid - p.glucose_absorption_rate * x.gut,
            "glucose": production + appearance - BRAIN - exchange
            - RENAL_RATE * positive(x.glucose - RENAL_THRESHOLD, GLUCOSE_CORNER) + x.flux,
            "tissue_glucose": exchange - uptake,
            "interstitial_glucose": (x.glucose - x.interstitial_glucose) / p.sensor_lag,
            "flux": -x.flux / p.flux_correlation_time,
            "sensitivity_drift": -x.sensitivity_drift / DRIFT_TIME,
            "count_error": -self._renewal(x, u) * x.count_error,
            "sensor_error": (x.sensor_drift - x.sensor_error) / p.sensor_smoothing_time,
            "sensor_drift": -x.sensor_drift / p.sensor_correlation_time,
            "day_cosine": -DAILY * x.day_sine, "day_sine": DAILY * x.day_cosine,
        }

    def _renewal(self, x, u):
        """Rate at which the count error of a meal that begins takes the place of that of what is on its way, by the share that it has of both."""
        return RESET * u.meal_onset / (u.meal_onset + SLIGHT + MIXING * (x.stomach_solid + x.stomach_liquid + x.gut))

    def _tissue_basal(self, p):
        return positive((p.plasma_to_tissue * p.basal_glucose - p.basal_uptake) / p.tissue_to_plasma, GLUCOSE_CORNER)

    def _drift_variance(self, p):
        """Of the driver, such that the smoothed error has variance sensor_sd^2."""
        return p.sensor_sd**2 * (p.sensor_correlation_time + p.sensor_smoothing_time) / p.sensor_correlation_time

    def initial(self, p, c):
        first = c.basal_insulin / VI / (TO_DEPOT_2 + DIRECT * p.insulin_absorption_rate)
        moved = 0.8 * p.plasma_to_tissue / p.tissue_to_plasma * (c.first_glucose - p.basal_glucose)
        return dict.fromkeys((s.name for s in self.states), 0) | {
            "insulin_depot_1": first, "insulin_depot_2": TO_DEPOT_2 * first / p.insulin_absorption_rate,
            "plasma_insulin": c.basal_insulin / VI / CLEARANCE, "glucose": c.first_glucose, "interstitial_glucose": c.first_glucose,
            "tissue_glucose": positive(self._tissue_basal(p) + moved, GLUCOSE_CORNER),
            "day_cosine": 1,  # timelines begin at local midnight
        }

    def initial_variance(self, p, c):
        return {
            "glucose": quantity(20.0, "mg/dL") ** 2, "tissue_glucose": quantity(14.0, "mg/dL") ** 2,
            "interstitial_glucose": quantity(20.0, "mg/dL") ** 2, "flux": p.flux_sd**2,
            "sensitivity_drift": p.sensitivity_drift_sd**2, "count_error": p.count_error_sd**2,
            "sensor_error": p.sensor_sd**2, "sensor_drift": self._drift_variance(p),
        }

    def noise(self, x, u, p, c):
        return {
            "flux": 2 * (p.flux_sd**2 + u.unexplained * BURST**2) / p.flux_correlation_time,
            "sensitivity_drift": 2 * p.sensitivity_drift_sd**2 / DRIFT_TIME,
            "count_error": 2 * self._renewal(x, u) * p.count_error_sd**2,  # every meal has its own
            "sensor_drift": 2 * self._drift_variance(p) / p.sensor_correlation_time,
        }

    def observe(self, x, p, c):
        return {"glucose": additive(x.interstitial_glucose + x.sensor_error, WHITE_SD)}

    def imply(self, inputs: Inputs, signals: dict[str, Series]) -> Inputs:
        none = Events.of([], [])
        logged, glucose = inputs.get("carbohydrate", none), signals.get("glucose", Series(np.zeros(0), np.zeros(0)))
        unlogged = unlogged_meals(inputs.get("insulin_bolus", none), logged)
        return {UNLOGGED: unlogged, UNEXPLAINED: unexplained_rises(glucose.minutes, glucose.values, joined([logged, unlogged]))}

    def patient_constants(self, batch):
        return basal_and_first(batch)


MODEL = GlucoseTwoCompartment()
