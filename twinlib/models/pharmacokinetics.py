"""Drug levels: one or two compartments; by vein (bolus, infusion) or by mouth, at once or after a delay; linear or saturable elimination.

Textbook compartment models (Gabrielsson & Weiner 2016). Linear ones are stepped by the exact propagator from event to event, however far apart.
A delay of absorption is a chain of transit compartments with the lag as its mean (Savic 2007), smooth where a lag time has a corner. Allometric
weight: clearances by (weight/70)^0.75, volumes by weight/70 (Anderson & Holford 2008).

`Pharmacokinetics(...)` makes a model of any drug; name an instance in the configuration as `module:NAME`.
"""

from twinlib.engine.contract import Constant, Input, Model, Parameter, Signal, State, additive, combined, log_normal, proportional

TRANSITS = 5
_BROAD = "broad: for any drug, a start for learning"


class Pharmacokinetics(Model):
    """Amounts in mg, levels in mg/L, hours. Agents `<drug>_oral` and `<drug>_venous`, signal `<drug>_concentration`.

    error: additive, proportional, combined or log_normal; its size is a population-level parameter.
    """

    time_unit, step, version = "h", 0.25, "1"

    def __init__(self, compartments=1, oral=True, lag=False, saturable=False, allometric=False, error="additive", drug="drug", name="pharmacokinetics"):
        two, transits = compartments == 2, [f"transit_{k}" for k in range(TRANSITS if lag else 0)]
        self.name, self.two, self.oral, self.transits, self.saturable, self.allometric, self.error = name, two, oral, transits, saturable, allometric, error
        self.path = [*transits, "gut"] if oral else []
        self.states = tuple(State(n, "mg") for n in [*self.path, "central", *["peripheral"] * two])
        wanted = {
            "absorption_rate": ("1/h", 1.0, 0.7, oral), "lag": ("h", 0.5, 0.5, lag), "clearance": ("L/h", 3.0, 1.0, not saturable),
            "maximum_rate": ("mg/h", 20.0, 1.0, saturable), "half_saturation": ("mg/L", 5.0, 0.7, saturable), "volume": ("L", 30.0, 1.0, True),
            "exchange": ("L/h", 3.0, 1.0, two), "peripheral_volume": ("L", 30.0, 1.0, two),
        }
        sizes = {"error_sd": ("mg/L", 0.5, 1.0, error in ("additive", "combined")), "error_cv": ("", 0.2, 1.0, error != "additive")}
        self.parameters = tuple(
            Parameter(n, unit, median, sd, _BROAD, level=level)
            for group, level in ((wanted, "patient"), (sizes, "population")) for n, (unit, median, sd, there) in group.items() if there
        )
        venous = Input("venous", "mg/h", (f"{drug}_venous",), "mg")
        self.inputs = (Input("oral", "mg/h", (f"{drug}_oral",), "mg"), venous) if oral else (venous,)
        self.signals = (Signal(f"{drug}_concentration", "mg/L"),)
        self.constants = (Constant("size", ""), Constant("size_of_flows", "")) if allometric else ()
        self.covariates = ("body_weight",) if allometric else ()

    def patient_constants(self, batch):
        if not self.allometric:
            return {}
        size = batch.covariate("body_weight") / 70.0
        return {"size": size, "size_of_flows": size**0.75}

    def _sized(self, p, c):
        """Volume and, where there is one, clearance of the patient's size."""
        return p.volume * (c.size if self.allometric else 1), c.size_of_flows if self.allometric else 1

    def dynamics(self, x, u, p, c):
        volume, flow = self._sized(p, c)
        level = x.central / volume
        rates = {"central": u.venous - (p.maximum_rate * flow * level / (p.half_saturation + level) if self.saturable else p.clearance * flow * level)}
        if self.oral:
            gut = p.absorption_rate * x.gut
            coming = u.oral
            for n in self.transits:
                out = TRANSITS / p.lag * getattr(x, n)
                rates[n], coming = coming - out, out
            rates["gut"], rates["central"] = coming - gut, rates["central"] + gut
        if self.two:
            there, back = p.exchange * flow * level, p.exchange * flow * x.peripheral / (p.peripheral_volume * (c.size if self.allometric else 1))
            rates["central"], rates["peripheral"] = rates["central"] - there + back, there - back
        return rates

    def initial(self, p, c):
        return {s.name: 0 for s in self.states}

    def observe(self, x, p, c):
        level = x.central / self._sized(p, c)[0]
        reading = {
            "additive": lambda: additive(level, p.error_sd), "proportional": lambda: proportional(level, p.error_cv),
            "combined": lambda: combined(level, p.error_sd, p.error_cv), "log_normal": lambda: log_normal(level, p.error_cv),
        }[self.error]()
        return {self.signals[0].name: reading}


MODEL = Pharmacokinetics()
TWO_COMPARTMENTS = Pharmacokinetics(compartments=2, name="pharmacokinetics_two_compartments")
SATURABLE = Pharmacokinetics(saturable=True, name="pharmacokinetics_saturable")
