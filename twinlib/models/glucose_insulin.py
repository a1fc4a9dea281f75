"""Glucose-insulin twin for type 1 diabetes, with the unexplained glucose flux as part of the model.

Two-compartment subcutaneous insulin, plasma insulin, remote action and three-compartment meal absorption after Hovorka 2004 and
ReplayBG (Cappon 2023), one glucose compartment with interstitial lag (Bergman 1979). The flux (unlogged meals, exercise, hormones)
is an Ornstein-Uhlenbeck process that enters plasma glucose; the Kalman filter marginalises it.
"""

import numpy as np

from twinlib.engine.contract import Constant, Input, Model, Parameter, Signal, State, additive, quantity

KD = quantity(0.026, "1/min")  # first subcutaneous compartment to second (ReplayBG's population value)
KE = quantity(0.127, "1/min")  # plasma insulin clearance
VI = quantity(0.126, "L/kg")  # insulin distribution volume
VG = quantity(1.45, "dL/kg")  # glucose distribution volume
LAG = quantity(7.0, "min")  # plasma to interstitial glucose
P2 = quantity(0.012, "1/min")  # rate of remote insulin action
F = 0.9  # share of carbohydrate that appears as glucose
SENSOR_SD = quantity(5.0, "mg/dL")  # white error of a CGM reading
START_SD = quantity(20.0, "mg/dL")  # glucose at the start, about the first reading

_PRIOR = "log-normal about ReplayBG's published values, widened (Cappon 2023)"


class GlucoseInsulin(Model):
    name = "glucose_insulin"
    version = "2"
    states = (
        State("insulin_depot_1", "mU/L"), State("insulin_depot_2", "mU/L"), State("plasma_insulin", "mU/L"),
        State("insulin_action", "1/min"),
        State("stomach_solid", "mg/kg"), State("stomach_liquid", "mg/kg"), State("gut", "mg/kg"),
        State("glucose", "mg/dL"), State("interstitial_glucose", "mg/dL"),
        State("flux", "mg/dL/min", noise=True),
    )
    parameters = (
        Parameter("insulin_sensitivity", "L/mU/min", 6e-4, 0.7, _PRIOR),
        Parameter("glucose_effectiveness", "1/min", 0.02, 0.4, _PRIOR),
        Parameter("basal_glucose", "mg/dL", 119.0, 0.10, _PRIOR),
        Parameter("gastric_emptying_rate", "1/min", 0.14, 0.5, _PRIOR),
        Parameter("glucose_absorption_rate", "1/min", 0.012, 0.7, _PRIOR),
        Parameter("insulin_absorption_rate", "1/min", 0.014, 0.35, _PRIOR),
        Parameter("flux_sd", "mg/dL/min", 0.6, 0.7, "broad; whole-day fits to real CGM"),
        Parameter("flux_correlation_time", "min", 40.0, 0.6, "broad; whole-day fits to real CGM"),
    )
    inputs = (
        Input("insulin", "mU/kg/min", ("insulin_bolus", "insulin_basal", "insulin_long_acting"), "U", per_weight=True),
        Input("carbohydrate", "mg/kg/min", ("carbohydrate",), "g", spread=15.0, per_weight=True),
    )
    signals = (Signal("glucose", "mg/dL", lower=40.0, upper=400.0),)  # the limits of CGM sensors
    constants = (Constant("basal_insulin", "mU/kg/min"), Constant("first_glucose", "mg/dL"))
    covariates = ("body_weight",)
    step = 2.5  # min; halving it changes the signal by 0.005 mg/dL as a rule, by more where a rate exceeds half per minute

    def dynamics(self, x, u, p, c):
        basal_plasma = c.basal_insulin / (VI * KE)
        emptying, absorption = p.gastric_emptying_rate, p.glucose_absorption_rate
        return {
            "insulin_depot_1": u.insulin / VI - KD * x.insulin_depot_1,
            "insulin_depot_2": KD * x.insulin_depot_1 - p.insulin_absorption_rate * x.insulin_depot_2,
            "plasma_insulin": p.insulin_absorption_rate * x.insulin_depot_2 - KE * x.plasma_insulin,
            "insulin_action": P2 * (p.insulin_sensitivity * (x.plasma_insulin - basal_plasma) - x.insulin_action),
            "stomach_solid": u.carbohydrate - emptying * x.stomach_solid,
            "stomach_liquid": emptying * (x.stomach_solid - x.stomach_liquid),
            "gut": emptying * x.stomach_liquid - absorption * x.gut,
            "glucose": p.glucose_effectiveness * (p.basal_glucose - x.glucose) - x.insulin_action * x.glucose
            + F / VG * absorption * x.gut + x.flux,
            "interstitial_glucose": (x.glucose - x.interstitial_glucose) / LAG,
            "flux": -x.flux / p.flux_correlation_time,
        }

    def initial(self, p, c):
        flow = c.basal_insulin / VI
        return {
            "insulin_depot_1": flow / KD, "insulin_depot_2": flow / p.insulin_absorption_rate, "plasma_insulin": flow / KE,
            "insulin_action": 0, "stomach_solid": 0, "stomach_liquid": 0, "gut": 0,
            "glucose": c.first_glucose, "interstitial_glucose": c.first_glucose, "flux": 0,
        }

    def initial_variance(self, p, c):
        return {"glucose": START_SD**2, "interstitial_glucose": START_SD**2, "flux": p.flux_sd**2}

    def noise(self, x, u, p, c):
        return {"flux": 2 * p.flux_sd**2 / p.flux_correlation_time}  # gives the flux its stationary SD

    def observe(self, x, p, c):
        return {"glucose": additive(x.interstitial_glucose, SENSOR_SD)}

    def patient_constants(self, batch):
        return basal_and_first(batch)


def basal_and_first(batch) -> dict[str, np.ndarray]:
    """Mean background insulin of the episode (mU/kg/min) and the first reading (mg/dL)."""
    background = batch.total("insulin_basal") + batch.total("insulin_long_acting")
    minutes = batch.minutes * batch.covariate("body_weight")
    return {"basal_insulin": 1000.0 * background / minutes, "first_glucose": batch.first("glucose")}


MODEL = GlucoseInsulin()
