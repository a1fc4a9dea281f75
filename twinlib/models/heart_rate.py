"""Heart rate from wearables: a resting rate, and a response to movement that comes faster than it goes.

Steps per minute drive an effort that follows with one time constant on the way up and another on the way down (first-order kinetics of heart
rate at the onset and end of exercise: Bunc 1988; recovery: Imai 1994); the rate rises with the effort. What movement does not explain
(posture, stress, meals, time of day) is an Ornstein-Uhlenbeck process that the filter marginalises.
"""

from twinlib.engine.contract import Input, Model, Parameter, Signal, State, additive, quantity
from twinlib.engine.expressions import tanh

SOFTNESS = quantity(5.0, "1/min")  # steps per minute over which the time constant changes from that of rest to that of effort
SENSOR_SD = quantity(3.0, "1/min")  # optical sensors at the wrist: Bent 2020, 10.1038/s41746-020-0226-6
_BROAD = "broad: healthy adults"


class HeartRate(Model):
    name, version, step = "heart_rate", "1", 0.5
    states = (State("effort", "1/min"), State("drift", "1/min", noise=True))
    parameters = (
        Parameter("resting_rate", "1/min", 65.0, 0.2, "Nanchen 2018, 10.1136/heartjnl-2017-312731, and its spread between adults"),
        Parameter("gain", "", 0.4, 0.5, _BROAD),  # beats per step
        Parameter("rise_time", "min", 0.8, 0.5, "Bunc 1988, onset of exercise"),
        Parameter("fall_time", "min", 2.0, 0.5, "Imai 1994, 10.1016/0735-1097(94)90150-3"),
        Parameter("drift_sd", "1/min", 6.0, 0.5, _BROAD),
        Parameter("drift_time", "min", 40.0, 0.7, _BROAD),
    )
    inputs = (Input("steps", "1/min", ("steps_taken",), "1", spread=1.0),)
    signals = (Signal("heart_rate", "1/min"),)

    def dynamics(self, x, u, p, c):
        rising = 0.5 * (1 + tanh((u.steps - x.effort) / SOFTNESS))
        return {
            "effort": (u.steps - x.effort) * (rising / p.rise_time + (1 - rising) / p.fall_time),
            "drift": -x.drift / p.drift_time,
        }

    def initial(self, p, c):
        return {"effort": 0, "drift": 0}

    def initial_variance(self, p, c):
        return {"drift": p.drift_sd**2}

    def noise(self, x, u, p, c):
        return {"drift": 2 * p.drift_sd**2 / p.drift_time}

    def observe(self, x, p, c):
        return {"heart_rate": additive(p.resting_rate + p.gain * x.effort + x.drift, SENSOR_SD)}


MODEL = HeartRate()
