"""The plots draw what they are given."""

import matplotlib
import matplotlib.pyplot as plt
import numpy as np
import pandas as pd

from twinlib.report.plots import plot_effects, plot_twin

matplotlib.use("Agg")


def test_effects_stand_at_their_values_and_missing_ones_are_left_out():
    effects = pd.DataFrame({
        "cohort": ["all", "all", "few"], "scenario": ["more", "less", "more"], "outcome": "tir", "unit": "%", "n_patients": [30, 30, 0],
        "effect_mean": [2.0, -1.0, np.nan], "effect_q05": [1.0, -2.0, np.nan], "effect_q95": [3.5, -0.5, np.nan],
    })
    ax = plot_effects(effects, "tir")
    assert [t.get_text() for t in ax.get_yticklabels()] == ["more", "less"]
    assert [t.get_text() for t in ax.get_legend().get_texts()] == ["all (n = 30)"]
    points = ax.containers[0].lines[0]
    assert points.get_xdata().tolist() == [2.0, -1.0]
    segments = ax.containers[0].lines[2][0].get_segments()
    assert [tuple(x[:, 0]) for x in segments] == [(1.0, 3.5), (-2.0, -0.5)]
    plt.close("all")


def test_a_twin_is_drawn_with_its_band_and_gaps():
    hours, readings = np.arange(10) / 12, np.linspace(100, 120, 10)
    readings[3] = np.nan
    fit = np.array([[1.0], [2.0], [3.0]]) + np.zeros(10)
    ax = plot_twin(hours, readings, fit, fit + readings, "more insulin")
    assert [t.get_text() for t in ax.get_legend().get_texts()] == ["twin", "more insulin", "CGM"]
    assert ax.lines[0].get_ydata().tolist() == [2.0] * 10 and np.isnan(ax.lines[1].get_ydata()[3])
    assert len(ax.collections) == 2
    plt.close("all")
