"""A user's own model from another field, outside the package: logistic tumour growth under a cell-killing drug, in days."""

from twinlib.engine.contract import Constant, Input, Model, Parameter, Signal, State, additive, quantity


class Tumour(Model):
    name = "tumour"
    version = "1"
    states = (State("volume", "mL"), State("drug", "mg/L"))
    parameters = (
        Parameter("growth_rate", "1/day", 0.2, 0.3, "made up"),
        Parameter("capacity", "mL", 50.0, 0.3, "made up"),
        Parameter("kill_rate", "L/mg/day", 0.05, 0.5, "made up"),
    )
    inputs = (Input("infusion", "mg/L/day", ("drug",), "mg/L"),)
    signals = (Signal("volume", "mL"),)
    constants = (Constant("first_volume", "mL"),)
    time_unit = "day"
    step = 0.25

    def dynamics(self, x, u, p, c):
        return {
            "volume": p.growth_rate * x.volume * (1 - x.volume / p.capacity) - p.kill_rate * x.drug * x.volume,
            "drug": u.infusion - quantity(0.5, "1/day") * x.drug,
        }

    def initial(self, p, c):
        return {"volume": c.first_volume, "drug": 0}

    def observe(self, x, p, c):
        return {"volume": additive(x.volume, quantity(1.0, "mL"))}
