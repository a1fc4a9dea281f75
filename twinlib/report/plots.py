"""Plots for notebooks and reports. Each takes plain frames or arrays and returns the matplotlib axes that it drew on."""

from __future__ import annotations

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
from matplotlib.axes import Axes

BLUE, ORANGE, GREY = "#2a6f97", "#e07a1f", "#6b7280"


def plot_effects(effects: pd.DataFrame, outcome: str, ax: Axes | None = None) -> Axes:
    """Mean effects with 90 % intervals, one row per scenario and one colour per cohort.

    effects: rows of `cohort_effects`.
    """
    rows = effects[(effects.outcome == outcome) & effects.effect_mean.notna()]
    scenarios, cohorts = list(dict.fromkeys(rows.scenario)), list(dict.fromkeys(rows.cohort))
    ax = ax or plt.subplots(figsize=(7, 0.45 * len(scenarios) + 1.2), layout="constrained")[1]
    colours = plt.get_cmap("tab10")
    for c, cohort in enumerate(cohorts):
        part = rows[rows.cohort == cohort]
        y = np.array([scenarios.index(s) for s in part.scenario]) + (c - (len(cohorts) - 1) / 2) * 0.7 / max(len(cohorts), 1)
        spread = np.abs(np.vstack([part.effect_mean - part.effect_q05, part.effect_q95 - part.effect_mean]))
        ax.errorbar(part.effect_mean, y, xerr=spread, fmt="o", ms=4, capsize=2, color=colours(c), label=f"{cohort} (n = {part.n_patients.max()})")
    ax.axvline(0, color=GREY, lw=0.8)
    ax.set_yticks(range(len(scenarios)), scenarios)
    ax.invert_yaxis()
    ax.set_xlabel(f"change of {outcome}, {rows.unit.iloc[0] if len(rows) else ''} (mean over patients, 90 % interval)")
    ax.spines[["top", "right"]].set_visible(False)
    ax.legend(frameon=False, fontsize="small")
    return ax


def plot_twin(
    hours: np.ndarray, readings: np.ndarray, fit: np.ndarray, counterfactual: np.ndarray | None = None, name: str = "", ax: Axes | None = None
) -> Axes:
    """One patient's readings, the twin's fit and a counterfactual, both as median and 90 % band over posterior draws.

    hours, readings (slots,); fit, counterfactual (draws, slots), mg/dL.
    """
    ax = ax or plt.subplots(figsize=(9, 3.2), layout="constrained")[1]
    ax.axhspan(70, 180, color="#2e7d32", alpha=0.07, lw=0)
    for values, colour, label in ((fit, BLUE, "twin"), (counterfactual, ORANGE, name or "counterfactual")):
        if values is None:
            continue
        low, middle, high = np.quantile(values, [0.05, 0.5, 0.95], axis=0)  # NaN where there is no reading
        ax.fill_between(hours, low, high, color=colour, alpha=0.25, lw=0)
        ax.plot(hours, middle, color=colour, lw=1.4, label=label)
    ax.plot(hours, readings, ".", color="black", ms=2.5, label="CGM")
    ax.set_xlabel("hours from the start of the episode")
    ax.set_ylabel("glucose, mg/dL")
    ax.set_xlim(hours[0], hours[-1])
    ax.spines[["top", "right"]].set_visible(False)
    ax.legend(frameon=False, ncols=3, fontsize="small", loc="upper right")
    return ax
