"""Two compartments in the form of nlme's biexponential: a sum of two exponentials after a dose, amplitudes per unit dose normal."""

from twinlib.engine.contract import Input, Model, Parameter, Signal, State, additive


class Biexponential(Model):
    name, version, time_unit, step = "biexponential", "1", "h", 0.25
    states = (State("fast", "mg/L"), State("slow", "mg/L"))
    parameters = (
        Parameter("fast_amplitude", "1/L", 2.5, 1.0, "start", transform="identity"),
        Parameter("fast_rate", "1/h", 2.0, 0.5, "start"),
        Parameter("slow_amplitude", "1/L", 0.5, 0.3, "start", transform="identity"),
        Parameter("slow_rate", "1/h", 0.3, 0.5, "start", level="population"),
        Parameter("error_sd", "mg/L", 0.1, 1.0, "start", level="population"),
    )
    inputs = (Input("venous", "mg/h", ("drug_venous",), "mg"),)
    signals = (Signal("drug_concentration", "mg/L"),)

    def dynamics(self, x, u, p, c):
        return {"fast": p.fast_amplitude * u.venous - p.fast_rate * x.fast, "slow": p.slow_amplitude * u.venous - p.slow_rate * x.slow}

    def initial(self, p, c):
        return {"fast": 0, "slow": 0}

    def observe(self, x, p, c):
        return {"drug_concentration": additive(x.fast + x.slow, p.error_sd)}
