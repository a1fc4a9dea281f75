"""Outcomes of drug levels and biomarkers: exposure, targets, thresholds and slopes of a trajectory.

Areas are by the linear trapezoidal rule; crossings of a limit are found between instants by a straight line. Units follow from that of the
signal.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from twinlib.config import OutcomeConfig
from twinlib.errors import ConfigError
from twinlib.whatif.outcomes import Outcome, Trace

YEAR = 525_960.0  # min, of 365.25 days


def _points(trace: Trace) -> tuple[np.ndarray, np.ndarray]:
    """Minutes (m,) and values (..., m) at the instants with values. One instant is too few for anything: values NaN."""
    t, v = trace.minutes[trace.known], trace.values[..., trace.known]
    return (t, v) if t.size > 1 else (np.array([0.0, 1.0]), np.full((*v.shape[:-1], 2), np.nan))


def _area(t: np.ndarray, v: np.ndarray) -> np.ndarray:
    return ((v[..., 1:] + v[..., :-1]) * (np.diff(t) / 2)).sum(axis=-1)


def _share_above(t: np.ndarray, v: np.ndarray, limit: float) -> np.ndarray:
    """Share of the time that the line through the values is above the limit."""
    a, b = v[..., :-1] - limit, v[..., 1:] - limit
    up = np.maximum(a, 0) + np.maximum(b, 0)
    span = np.abs(a) + np.abs(b)
    share = np.divide(up, span, out=np.where(np.isnan(span), np.nan, 0.0), where=span > 0)
    return (share * np.diff(t)).sum(axis=-1) / (t[-1] - t[0])


def _first_above(t: np.ndarray, v: np.ndarray, limit: float) -> np.ndarray:
    """Minutes until the line through the values is first above the limit; the whole time where it never is."""
    above = v > limit
    k = above.argmax(axis=-1)
    before = np.maximum(k - 1, 0)
    a, b = (np.take_along_axis(v, i[..., None], -1)[..., 0] - limit for i in (before, k))
    share = np.divide(-a, b - a, out=np.zeros_like(a), where=b != a)
    when = np.where(k == 0, t[0], t[before] + np.clip(share, 0, 1) * (t[k] - t[before])) - t[0]
    return np.where(np.isnan(v).any(-1), np.nan, np.where(above.any(axis=-1), when, t[-1] - t[0]))


def _slope(t: np.ndarray, v: np.ndarray) -> np.ndarray:
    x = t - t.mean()
    return (v * x).sum(axis=-1) / (x * x).sum()


Points = Callable[[np.ndarray, np.ndarray, OutcomeConfig], np.ndarray]
# measure -> (unit, settings that it needs, function of minutes, values and settings)
MEASURES: dict[str, tuple[str, tuple[str, ...], Points]] = {
    "mean": ("{}", (), lambda t, v, s: _area(t, v) / (t[-1] - t[0])),
    "maximum": ("{}", (), lambda t, v, s: v.max(axis=-1)),
    "minimum": ("{}", (), lambda t, v, s: v.min(axis=-1)),
    "final": ("{}", (), lambda t, v, s: v[..., -1]),
    "change": ("{}", (), lambda t, v, s: v[..., -1] - v[..., 0]),
    "auc": ("{}*h", (), lambda t, v, s: _area(t, v) / 60.0),
    "slope": ("{}/a", (), lambda t, v, s: _slope(t, v) * YEAR),
    "time_above": ("%", ("limit",), lambda t, v, s: 100 * _share_above(t, v, s.limit)),
    "time_below": ("%", ("limit",), lambda t, v, s: 100 * _share_above(t, -v, -s.limit)),
    "time_within": ("%", ("low", "high"), lambda t, v, s: 100 * (1 - _share_above(t, -v, -s.low) - _share_above(t, v, s.high))),
    "ever_above": ("%", ("limit",), lambda t, v, s: np.where(np.isnan(v).any(-1), np.nan, 100.0 * (v > s.limit).any(axis=-1))),
    "ever_below": ("%", ("limit",), lambda t, v, s: np.where(np.isnan(v).any(-1), np.nan, 100.0 * (v < s.limit).any(axis=-1))),
    "time_to_above": ("d", ("limit",), lambda t, v, s: _first_above(t, v, s.limit) / 1440),
    "time_to_below": ("d", ("limit",), lambda t, v, s: _first_above(t, -v, -s.limit) / 1440),
}
_BETTER = {"higher": 1, "lower": -1, "neither": 0}


def measured(settings: OutcomeConfig, unit: str) -> Outcome:
    """The outcome of a configured measure of a signal in `unit`. Raises ConfigError."""
    better = _BETTER[settings.better]
    if settings.measure == "amount_per_day":
        if settings.agent is None:
            raise ConfigError(f"simulate.outcomes: {settings.name}: measure amount_per_day needs agent")
        agent = settings.agent
        return Outcome(settings.name, "1/d", better, lambda trace: trace.per_day(agent), f"amount of {agent} per day, in its canonical unit", settings.target)
    form, needed, function = MEASURES[settings.measure]
    missing = [n for n in needed if getattr(settings, n) is None]
    if missing:
        raise ConfigError(f"simulate.outcomes: {settings.name}: measure {settings.measure} needs {', '.join(missing)}")
    about = ", ".join(f"{n} {getattr(settings, n):g} {unit}" for n in needed)
    return Outcome(
        settings.name, form.format(unit), better, lambda trace: function(*_points(trace), settings),
        f"{settings.measure.replace('_', ' ')} of the trajectory{': ' if about else ''}{about}", settings.target,
    )


def standard(unit: str) -> list[Outcome]:
    """Mean, extremes and area of any signal."""
    names = {"mean_level": "mean", "c_max": "maximum", "c_min": "minimum", "auc": "auc"}
    return [measured(OutcomeConfig(name=n, measure=m, better="neither"), unit) for n, m in names.items()]
