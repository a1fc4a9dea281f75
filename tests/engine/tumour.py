"""A user's own model from another field, outside the package: logistic tumour growth under a cell-killing drug."""

from twinlib.engine.contract import Input, Model, Parameter, Signal, State


class Tumour(Model):
    name = "tumour"
    version = "1"
    states = (State("volume", "mL"), State("drug", "mg/L"))
    parameters = (
        Parameter("growth_rate", "1/day", 0.2, 0.3, "made up"),
        Parameter("capacity", "mL", 50.0, 0.3, "made up"),
        Parameter("kill_rate", "L/mg/day", 0.05, 0.5, "made up"),
    )
    inputs = (Input("infusion", "mg/L/day", ("drug",)),)
    signal = Signal("volume", "mL")
    constant_names = ("first_volume",)
    input_minutes = 0.25  # the model's unit of time is the day

    def dynamics(self, x, u, p, c):
        return {
            "volume": p.growth_rate * x.volume * (1 - x.volume / p.capacity) - p.kill_rate * x.drug * x.volume,
            "drug": u.infusion - 0.5 * x.drug,
        }

    def initial(self, p, c):
        return {"volume": c.first_volume, "drug": 0}

    def observe(self, x, p, c):
        return x.volume

    def error_variance(self, p, c):
        return 1.0
