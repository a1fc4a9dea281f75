"""Outcomes of a glucose sensor's trace in mg/dL.

Times in ranges, hypoglycaemic events and targets: Battelino 2019 (10.2337/dci19-0028) and 2023 (10.1016/S2213-8587(22)00319-9). GMI: Bergenstal
2018 (10.2337/dc18-1581). LBGI and HBGI: Kovatchev 2006 (10.2337/dc06-1085). GRI: Klonoff 2023 (10.1177/19322968221085273).
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from numba import njit

from twinlib.whatif.outcomes import Outcome, Trace, evaluate

EVENT = 15.0  # min; an event begins after so long below the limit, and ends after so long above it
_SUMS = ("n", "below_54", "below_70", "above_180", "above_250", "sum", "squares", "low_risk", "high_risk", "events_70", "events_54")


@njit(cache=True, error_model="numpy")
def _summed(minutes, values, spacing, out):
    """out (rows, sums): what all outcomes need of each row of values (rows, n), in one pass each for the mean and the rest."""
    for r in range(values.shape[0]):
        n, total = 0, 0.0
        for i in range(values.shape[1]):
            if values[r, i] == values[r, i]:
                n += 1
                total += values[r, i]
        mean = total / n
        b54, b70, a180, a250, squares, low_risk, high_risk = 0, 0, 0, 0, 0.0, 0.0, 0.0
        down70, up70, on70, events70 = 0.0, 0.0, False, 0
        down54, up54, on54, events54 = 0.0, 0.0, False, 0
        last = -np.inf
        for i in range(values.shape[1]):
            g = values[r, i]
            if g != g:
                continue
            b54 += g < 54.0
            b70 += g < 70.0
            a180 += g > 180.0
            a250 += g > 250.0
            squares += (g - mean) * (g - mean)
            f = 1.509 * (np.log(max(g, 1.0)) ** 1.084 - 5.381)
            if f < 0.0:
                low_risk += 10.0 * f * f
            else:
                high_risk += 10.0 * f * f
            if minutes[i] - last > EVENT + spacing:  # nothing is known of what was between
                down70, up70, on70, down54, up54, on54 = 0.0, 0.0, False, 0.0, 0.0, False
            last = minutes[i]
            if g < 70.0:
                down70, up70 = down70 + spacing, 0.0
                if not on70 and down70 >= EVENT:
                    on70, events70 = True, events70 + 1
            else:
                down70, up70 = 0.0, up70 + spacing
                on70 = on70 and up70 < EVENT
            if g < 54.0:
                down54, up54 = down54 + spacing, 0.0
                if not on54 and down54 >= EVENT:
                    on54, events54 = True, events54 + 1
            else:
                down54, up54 = 0.0, up54 + spacing
                on54 = on54 and up54 < EVENT
        found = (1.0 * n, 1.0 * b54, 1.0 * b70, 1.0 * a180, 1.0 * a250, total, squares, low_risk, high_risk, 1.0 * events70, 1.0 * events54)
        for j, x in enumerate(found):
            out[r, j] = x


def _spacing(trace: Trace) -> float:
    """Usual minutes between readings: the lower median."""
    gaps = np.diff(trace.minutes[trace.known])
    return float(np.sort(gaps)[(gaps.size - 1) // 2]) if gaps.size else 5.0


def _sums(trace: Trace) -> dict[str, np.ndarray]:
    if "cgm" not in trace.memo:
        out = np.empty((len(trace.rows), len(_SUMS)))
        spacing = _spacing(trace)
        _summed(np.ascontiguousarray(trace.minutes, dtype=np.float64), trace.rows, spacing, out)
        shaped = out.reshape(*trace.values.shape[:-1], len(_SUMS))
        trace.memo["cgm"] = {name: shaped[..., j] for j, name in enumerate(_SUMS)} | {"weeks": shaped[..., 0] * (spacing / 10080)}
    return trace.memo["cgm"]


def _of(function: Callable[[dict[str, np.ndarray]], np.ndarray]) -> Callable[[Trace], np.ndarray]:
    return lambda trace: function(_sums(trace))


def _mean(s: dict[str, np.ndarray]) -> np.ndarray:
    return s["sum"] / s["n"]


def _in_range(s: dict[str, np.ndarray]) -> np.ndarray:
    return 100.0 * (s["n"] - s["below_70"] - s["above_180"]) / s["n"]


def _gri(s: dict[str, np.ndarray]) -> np.ndarray:
    low, high = s["below_70"] - s["below_54"], s["above_180"] - s["above_250"]
    return np.minimum(100.0 * (3.0 * s["below_54"] + 2.4 * low + 1.6 * s["above_250"] + 0.8 * high) / s["n"], 100.0)


OUTCOMES: tuple[Outcome, ...] = (
    Outcome("tir", "%", +1, _of(_in_range), "readings from 70 to 180 mg/dL", 70.0),
    Outcome("tbr_70", "%", -1, _of(lambda s: 100.0 * s["below_70"] / s["n"]), "readings below 70 mg/dL", 4.0),
    Outcome("tbr_54", "%", -1, _of(lambda s: 100.0 * s["below_54"] / s["n"]), "readings below 54 mg/dL", 1.0),
    Outcome("tar_180", "%", -1, _of(lambda s: 100.0 * s["above_180"] / s["n"]), "readings above 180 mg/dL", 25.0),
    Outcome("tar_250", "%", -1, _of(lambda s: 100.0 * s["above_250"] / s["n"]), "readings above 250 mg/dL", 5.0),
    Outcome("mean_glucose", "mg/dL", -1, _of(_mean), "mean of the readings", 154.0),
    Outcome("gmi", "%", -1, _of(lambda s: 3.31 + 0.02392 * _mean(s)), "glucose management indicator, 3.31 + 0.02392 mean", 7.0),
    Outcome("cv", "%", -1, _of(lambda s: 100.0 * np.sqrt(s["squares"] / (s["n"] - 1)) / _mean(s)), "sample standard deviation over mean", 36.0),
    Outcome("lbgi", "1", -1, _of(lambda s: s["low_risk"] / s["n"]), "low blood glucose index", 1.1),
    Outcome("hbgi", "1", -1, _of(lambda s: s["high_risk"] / s["n"]), "high blood glucose index", 5.0),
    Outcome("gri", "%", -1, _of(_gri), "glycaemia risk index, at most 100"),
    Outcome("hypo_events_70", "1/wk", -1, _of(lambda s: s["events_70"] / s["weeks"]), "events of 15 min or more below 70 mg/dL, per week of readings"),
    Outcome("hypo_events_54", "1/wk", -1, _of(lambda s: s["events_54"] / s["weeks"]), "events of 15 min or more below 54 mg/dL, per week of readings"),
    Outcome("insulin_per_day", "U/d", 0, lambda t: t.per_day("insulin"), "insulin of all kinds given per day"),
    Outcome("carbohydrate_per_day", "g/d", 0, lambda t: t.per_day("carbohydrate"), "carbohydrate eaten per day"),
)
BETTER = np.array([o.better for o in OUTCOMES])


def cgm_outcomes(glucose: np.ndarray, minutes: np.ndarray | None = None) -> np.ndarray:
    """All outcomes of traces in mg/dL: [..., n] with NaN = missing to [..., len(OUTCOMES)], in the registry's order.

    minutes: of the readings, every 5 where not given. What needs readings or amounts that are not there is NaN. Whether a trace is worn
    enough for the consensus (70 % of 14 days) is the caller's question: `wear_fraction`.
    """
    glucose = np.asarray(glucose, dtype=np.float64)
    return evaluate(OUTCOMES, Trace(np.arange(glucose.shape[-1]) * 5.0 if minutes is None else minutes, glucose))
