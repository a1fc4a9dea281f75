"""The glucose-insulin dynamics behind the synthetic cohort: an implementation of its own, apart from the twin models.

Equations (minutes; mU/kg, mU/L, mg/kg, mg/dL), one column per person:
    I1' = u/VI - KD I1;  I2' = KD I1 - ka2 I2;  Ip' = ka2 I2 - KE Ip;  X' = P2 (SI (Ip - Ipb) - X)
    Q1' = c - kempt Q1;  Q2' = kempt (Q1 - Q2);  Qg' = kempt Q2 - kabs Qg
    G' = SG (Gb - G) - X G + F kabs/VG Qg + d;  IG' = (G - IG)/ALPHA
Minimal model of Bergman with the subcutaneous and gut chains of ReplayBG (Cappon et al., doi:10.1109/TBME.2023.3286856).
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

KD, KE, VI, VG, ALPHA, P2, F = 0.026, 0.127, 0.126, 1.45, 7.0, 0.012, 0.9
STATES = ("I1", "I2", "Ip", "X", "Q1", "Q2", "Qg", "G", "IG")


@dataclass(frozen=True)
class Parameter:
    """A person's parameter: log-normal over the population, `log_sd` on the natural-log scale."""

    name: str
    unit: str
    median: float
    log_sd: float


PARAMETERS = (
    Parameter("insulin_sensitivity", "L/mU/min", 6e-4, 0.7),
    Parameter("glucose_effectiveness", "1/min", 0.02, 0.4),
    Parameter("basal_glucose", "mg/dL", 119.0, 0.10),
    Parameter("gastric_emptying_rate", "1/min", 0.14, 0.5),
    Parameter("glucose_absorption_rate", "1/min", 0.012, 0.7),
    Parameter("insulin_absorption_rate", "1/min", 0.014, 0.35),
    Parameter("flux_sd", "mg/dL/min", 0.6, 0.7),
    Parameter("flux_correlation_time", "min", 40.0, 0.6),
)
SI, SG, GB, KEMPT, KABS, KA2, FLUX_SD, FLUX_TAU = range(len(PARAMETERS))


def draw(rng: np.random.Generator) -> np.ndarray:
    """One person's parameters, shape (8,), in the order of PARAMETERS."""
    z = rng.standard_normal(len(PARAMETERS))
    return np.array([p.median * np.exp(p.log_sd * x) for p, x in zip(PARAMETERS, z)])


def basal_state(parameters: np.ndarray, basal: np.ndarray) -> np.ndarray:
    """State (9, N) at rest: glucose at its basal level, insulin at the steady state of `basal` (N,), mU/kg/min."""
    state = np.zeros((len(STATES), len(basal)))
    state[0] = basal / VI / KD
    state[1] = basal / VI / parameters[:, KA2]
    state[2] = basal / VI / KE
    state[7] = state[8] = parameters[:, GB]
    return state


class Dynamics:
    """The right-hand side and its 1-minute Runge-Kutta step for N people at once.

    `parameters` (N, 8); `basal` (N,) mean background insulin, mU/kg/min, which fixes the reference level Ipb.
    """

    def __init__(self, parameters: np.ndarray, basal: np.ndarray):
        p = parameters.T
        self.si, self.sg, self.gb, self.kempt, self.kabs, self.ka2 = (p[k].copy() for k in (SI, SG, GB, KEMPT, KABS, KA2))
        self.ipb = basal / (VI * KE)
        self.ra = F * self.kabs / VG
        self._k = np.empty((4, len(STATES), len(basal)))

    def derivative(self, s: np.ndarray, u: np.ndarray, c: np.ndarray, d: np.ndarray, out: np.ndarray) -> None:
        """Rates of change of `s` (9, N) under insulin u (mU/kg/min), carbohydrate c (mg/kg/min) and flux d (mg/dL/min)."""
        i1, i2, ip, x, q1, q2, qg, g, ig = s
        absorbed, emptied = KD * i1, self.kempt * q1
        plasma = self.ka2 * i2
        out[0] = u / VI - absorbed
        out[1] = absorbed - plasma
        out[2] = plasma - KE * ip
        out[3] = P2 * (self.si * (ip - self.ipb) - x)
        out[4] = c - emptied
        ground = self.kempt * q2
        out[5] = emptied - ground
        out[6] = ground - self.kabs * qg
        out[7] = self.sg * (self.gb - g) - x * g + self.ra * qg + d
        out[8] = (g - ig) / ALPHA

    def minute(self, s: np.ndarray, u: np.ndarray, c: np.ndarray, d: np.ndarray) -> np.ndarray:
        """The state one minute later; inputs are constant over the minute."""
        k = self._k
        self.derivative(s, u, c, d, k[0])
        self.derivative(s + 0.5 * k[0], u, c, d, k[1])
        self.derivative(s + 0.5 * k[1], u, c, d, k[2])
        self.derivative(s + k[2], u, c, d, k[3])
        return s + (k[0] + 2.0 * (k[1] + k[2]) + k[3]) / 6.0
