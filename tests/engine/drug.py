"""A user's own model: a drug in two compartments, given by mouth or by vein, with error models of every kind to choose from."""

from twinlib.engine.contract import Input, Model, Parameter, Signal, State, combined, quantity


class Drug(Model):
    name = "drug"
    version = "1"
    states = (State("gut", "mg"), State("central", "mg"), State("peripheral", "mg"))
    parameters = (
        Parameter("absorption_rate", "1/h", 1.2, 0.4, "made up"),
        Parameter("clearance", "L/h", 3.0, 0.3, "made up"),
        Parameter("volume", "L", 30.0, 0.3, "made up"),
        Parameter("exchange", "L/h", 2.0, 0.3, "made up"),
        Parameter("peripheral_volume", "L", 40.0, 0.3, "made up", level="population"),
        Parameter("bioavailability", "", 0.7, 0.5, "made up", transform="logit"),
    )
    inputs = (Input("oral", "mg/h", ("drug_oral",), "mg"), Input("venous", "mg/h", ("drug_iv",), "mg", spread=0.5))
    signals = (Signal("concentration", "mg/L"),)
    time_unit = "h"
    step = 0.1

    def dynamics(self, x, u, p, c):
        out, back = p.exchange / p.volume * x.central, p.exchange / p.peripheral_volume * x.peripheral
        return {
            "gut": p.bioavailability * u.oral - p.absorption_rate * x.gut,
            "central": u.venous + p.absorption_rate * x.gut - p.clearance / p.volume * x.central - out + back,
            "peripheral": out - back,
        }

    def initial(self, p, c):
        return {"gut": 0, "central": 0, "peripheral": 0}

    def observe(self, x, p, c):
        concentration = x.central / p.volume
        return {"concentration": combined(concentration, quantity(0.05, "mg/L"), 0.1)}


class Saturable(Drug):
    """The same with Michaelis-Menten elimination: no longer linear, so integrated and with traced sensitivities."""

    name = "saturable_drug"

    def dynamics(self, x, u, p, c):
        rates = super().dynamics(x, u, p, c)
        concentration = x.central / p.volume
        saturation = concentration / (concentration + quantity(2.0, "mg/L"))
        return rates | {"central": rates["central"] + p.clearance / p.volume * x.central * (1 - saturation)}
