"""Slow biomarkers of health records (HbA1c, LDL cholesterol, systolic pressure, eGFR, weight) under drugs: an indirect-response model.

R' = k (T - R): the biomarker R turns over at rate k towards its target T (Jusko & Ko 1994, drugs on the production). The target is
baseline * exp(progression * t), multiplied by exp(-effect * dose rate) for each drug class, dose rates in defined daily doses per day. The start is
such that without drugs R = baseline * exp(progression * t) from the first record on. Readings have log-normal error.

Effects are medians of published trials, as a share of the level at one defined daily dose; patients differ about them. Turnover: HbA1c with
the red cell's mean age (about 60 days: Cohen 2008), LDL within two weeks (Jones 2003), pressure within two weeks (Lasserson 2011), weight with a
half-life of about 3 months (Wilding 2021, figure 1); for eGFR two weeks are a guess.
"""

import numpy as np

from twinlib.engine.contract import Input, Model, Parameter, Signal, State, log_normal, quantity
from twinlib.engine.expressions import exp

_BROAD = "broad"
DRUGS = {  # biomarker -> drug class -> (fall as a share of the level, source)
    "hba1c": {
        "metformin": (0.14, "1.12 points from 8.1 %: Hirst 2012, 10.2337/dc11-1465"),
        "sulfonylurea": (0.17, "1.51 points from 9 %: Hirst 2013, 10.1007/s00125-013-2856-6"),
        "dpp4_inhibitor": (0.09, "0.74 points from 8.1 %: Amori 2007, 10.1001/jama.298.2.194"),
        "sglt2_inhibitor": (0.08, "0.66 points from 8.1 %: Vasilakou 2013, 10.7326/0003-4819-159-4-201308200-00007"),
        "glp1_agonist": (0.12, "0.97 points from 8.1 %: Amori 2007, 10.1001/jama.298.2.194"),
    },
    "ldl_cholesterol": {
        "statin": (0.37, "atorvastatin 10 mg: Jones 2003 (STELLAR), 10.1016/S0002-9149(03)00530-7"),
        "ezetimibe": (0.186, "Pandor 2009, 10.1111/j.1365-2796.2008.02062.x"),
        "pcsk9_inhibitor": (0.59, "Sabatine 2017 (FOURIER), 10.1056/NEJMoa1615664"),
    },
    "systolic_pressure": {  # from 154 mm Hg, one drug at standard dose: Law 2009, 10.1136/bmj.b1665
        name: (fall / 154.0, "Law 2009, 10.1136/bmj.b1665")
        for name, fall in (("thiazide", 8.8), ("beta_blocker", 9.2), ("ace_inhibitor", 8.5), ("angiotensin_blocker", 10.3), ("calcium_channel_blocker", 8.8))
    },
    "egfr": {"sglt2_inhibitor": (0.065, "3.7 from 56: Perkovic 2019 (CREDENCE), 10.1056/NEJMoa1811744")},
    "body_weight": {
        "glp1_agonist": (0.124, "semaglutide 2.4 mg: Wilding 2021 (STEP 1), 10.1056/NEJMoa2032183"),
        "sglt2_inhibitor": (0.022, "1.8 kg: Vasilakou 2013, 10.7326/0003-4819-159-4-201308200-00007"),
    },
}


class BiomarkerTurnover(Model):
    """One biomarker; years. Agents are drug classes, amounts in defined daily doses."""

    time_unit, step, version = "year", 0.05, "1"

    def __init__(self, signal: str, unit: str, baseline: float, turnover_per_year: float, progression_sd: float, error: float, spread=0.2):
        self.name, self.drugs = f"turnover_{signal}", DRUGS.get(signal, {})
        self.signals, self.states = (Signal(signal, unit),), (State("target", unit), State("level", unit))
        self.parameters = (
            Parameter("baseline", unit, baseline, spread, _BROAD),
            Parameter("progression", "1/year", 0.0, progression_sd, _BROAD, transform="identity"),
            *(Parameter(f"{d}_effect", "", -np.log1p(-fall), 0.4, source) for d, (fall, source) in self.drugs.items()),
            Parameter("turnover", "1/year", turnover_per_year, 0.3, _BROAD, level="population"),
            Parameter("error", "", error, 0.5, _BROAD, level="population"),
        )
        # an input has a spread of a day, so that a dose without duration is a day's; effects are not to be added at once
        self.inputs = tuple(Input(d, "1/day", (d,), "1", spread=1 / 365.25) for d in self.drugs)

    def dynamics(self, x, u, p, c):
        lowering = sum((getattr(p, f"{d}_effect") * _daily(getattr(u, d)) for d in self.drugs), 0)
        target = x.target * exp(-lowering) if self.drugs else x.target
        return {"target": p.progression * x.target, "level": p.turnover * (target - x.level)}

    def initial(self, p, c):
        return {"target": p.baseline * (1 + p.progression / p.turnover), "level": p.baseline}

    def observe(self, x, p, c):
        return {self.signals[0].name: log_normal(x.level, p.error)}


def _daily(rate):
    """A rate in doses per day as a plain number."""
    return rate * quantity(1.0, "day")


HBA1C = BiomarkerTurnover("hba1c", "%", 7.0, 6.0, 0.03, 0.05)
LDL_CHOLESTEROL = BiomarkerTurnover("ldl_cholesterol", "mg/dL", 120.0, 50.0, 0.03, 0.12)
SYSTOLIC_PRESSURE = BiomarkerTurnover("systolic_pressure", "mmHg", 135.0, 30.0, 0.02, 0.08)
EGFR = BiomarkerTurnover("egfr", "mL/min/bsa", 75.0, 26.0, 0.05, 0.10, spread=0.35)
BODY_WEIGHT = BiomarkerTurnover("body_weight", "kg", 80.0, 2.8, 0.03, 0.02)
MODEL = HBA1C
