"""Which events of an input a scenario's edit touches: by time, by label, by the event they belong to, by the last reading."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Annotated

import numpy as np
from pydantic import AfterValidator, BeforeValidator, Field, model_validator

from twinlib.config import Strict
from twinlib.models.batch import Series
from twinlib.models.timeline import Events, Inputs, joined
from twinlib.units import span

DAY = 1440.0


@dataclass(frozen=True)
class Scene:
    """What an edit may know besides the inputs.

    minutes: end of the episode; local_start: local minute of the day at its minute 0 (0: timelines start at local midnight);
    begin: minute from which the scenario acts (a forecast's now); signals: readings, the first one being the model's first signal;
    key: names behind the patient's random numbers; seed. A change to or from daylight saving time within the episode is not
    followed: the whole episode keeps the offset of its start.
    """

    minutes: float
    local_start: float = 0.0
    begin: float = 0.0
    signals: Mapping[str, Series] = field(default_factory=dict)
    key: tuple[str, ...] = ()
    seed: int = 0

    def time_of_day(self, minutes: np.ndarray) -> np.ndarray:
        return (minutes + self.local_start) % DAY

    def clamp(self, minutes: np.ndarray) -> np.ndarray:
        """Minutes held within the episode, so that an edit moves amounts but never loses them."""
        return np.clip(minutes, self.begin, max(self.minutes - 1.0, self.begin))

    @property
    def readable(self) -> bool:
        """Whether there is any reading from the beginning on."""
        return any((~np.isnan(s.values) & (s.minutes >= self.begin)).any() for s in self.signals.values())

    def last_reading(self, minutes: np.ndarray, within: float, signal: str | None = None) -> np.ndarray:
        """The last known reading at or before each of n minutes, NaN where there is none within `within` minutes."""
        series = self.signals.get(signal) if signal else next(iter(self.signals.values()), None)
        known = ~np.isnan(series.values) if series is not None else np.zeros(0, bool)
        if not known.any():
            return np.full(len(minutes), np.nan)
        at, values = series.minutes[known], series.values[known]
        last = np.searchsorted(at, minutes, side="right") - 1
        fresh = (last >= 0) & (minutes - at[last] <= within)
        return np.where(fresh, values[last], np.nan)


def minute_of_day(text: object) -> int:
    """Minutes after midnight of "HH:MM" (00:00 to 24:00). Raises ValueError."""
    found = re.fullmatch(r"(\d\d):(\d\d)", text) if isinstance(text, str) else None
    minute = int(found[1]) * 60 + int(found[2]) if found and int(found[2]) < 60 else None
    if minute is None or minute > DAY:
        raise ValueError('expected a local time "HH:MM", in quotes, from "00:00" to "24:00"')
    return minute


def _window(text: object) -> tuple[int, int]:
    if isinstance(text, tuple):
        return text
    parts = text.split("-") if isinstance(text, str) else ()
    if len(parts) != 2:
        raise ValueError('expected a window of local time "HH:MM-HH:MM"')
    start, end = (minute_of_day(p.strip()) for p in parts)
    if start % DAY == end % DAY:
        raise ValueError("the window is empty: leave `time` out for the whole day")
    return start, end


Number = Annotated[float, Field(strict=True, allow_inf_nan=False)]
Span = Annotated[float, BeforeValidator(span)]  # minutes, from a number of minutes or a text such as "36 h"
Window = Annotated[tuple[int, int], BeforeValidator(_window)]
Labels = Annotated[tuple[str, ...], Field(min_length=1), AfterValidator(lambda labels: tuple(x.strip().lower() for x in labels))]
Names = Annotated[tuple[str, ...], Field(min_length=1)]


def in_window(window: tuple[int, int], minute: np.ndarray) -> np.ndarray:
    """Whether minutes of the day lie in [start, end); a window whose start is later than its end spans midnight."""
    start, end = window
    return (minute >= start) & (minute < end) if start < end else (minute >= start) | (minute < end)


class Selection(Strict):
    """Events whose start lies in a window of local time and whose label is one of `labels`."""

    time: Window | None = None
    labels: Labels | None = None

    def matches(self, events: Events, scene: Scene) -> np.ndarray:
        """Mask of n booleans."""
        mask = self.labelled(events)
        return mask & in_window(self.time, scene.time_of_day(events.minutes)) if self.time else mask

    def labelled(self, events: Events) -> np.ndarray:
        return np.ones(len(events), bool) if self.labels is None else np.isin(np.array(events.labels, dtype=str), self.labels)


class Near(Selection):
    """Events of another input (a meal, say), and how close an event must be to belong to one of them.

    An event belongs to the nearest event of `input` that starts at most `within_minutes` before or after it, to the
    later one where two are equally near. `time` and `labels` then say which of these count.
    """

    input: Names
    within_minutes: Annotated[Span, Field(gt=0)] = 60.0

    def anchors(self, events: Events, inputs: Inputs, scene: Scene) -> np.ndarray:
        """Minute of the anchor that each of the n events belongs to, NaN where it belongs to none that counts."""
        anchor = joined(inputs[name] for name in self.input if name in inputs)
        if not len(anchor) or not len(events):
            return np.full(len(events), np.nan)
        after = np.searchsorted(anchor.minutes, events.minutes)
        before = np.maximum(after - 1, 0)
        after = np.minimum(after, len(anchor) - 1)
        gap_before, gap_after = (np.abs(anchor.minutes[i] - events.minutes) for i in (before, after))
        nearest = np.where(gap_after <= gap_before, after, before)
        counts = (np.minimum(gap_before, gap_after) <= self.within_minutes) & self.matches(anchor, scene)[nearest]
        return np.where(counts, anchor.minutes[nearest], np.nan)


class Reading(Strict):
    """A condition on the data: the last reading of `signal` (the model's first) at an event's start. It fails where there is none in time."""

    below: Number | None = None
    above: Number | None = None
    within_minutes: Annotated[Span, Field(gt=0)] = 15.0
    signal: str | None = None

    @model_validator(mode="after")
    def _something(self):
        if self.below is None and self.above is None:
            raise ValueError("give at least one of below and above")
        return self

    def holds(self, events: Events, scene: Scene) -> np.ndarray:
        """Mask of n booleans."""
        value = scene.last_reading(events.minutes, self.within_minutes, self.signal)
        known = ~np.isnan(value)
        low = known if self.below is None else value < self.below
        return low & (known if self.above is None else value > self.above)


class Where(Selection):
    """Which events an edit touches: all conditions hold. Without `where` an edit touches every event.

    start, end: minutes since the scenario's beginning. whole: take events that start in the `time` window as they are. Otherwise an event spread over time is cut at the
    window's edges, and the edit touches what was delivered within (edits of amounts only; a move takes whole events).
    """

    near: Near | None = None
    reading: Reading | None = None
    start: Span | None = Field(None, alias="from")
    end: Span | None = Field(None, alias="until")
    whole: bool = False

    @model_validator(mode="after")
    def _something(self):
        if all(c is None for c in (self.time, self.labels, self.near, self.reading, self.start, self.end)):
            raise ValueError("give at least one of time, from, until, labels, near and reading")
        return self

    def _limits(self, scene: Scene) -> tuple[float, float]:
        return scene.begin + (self.start or 0.0), np.inf if self.end is None else scene.begin + self.end

    def _in_time(self, events: Events, scene: Scene) -> np.ndarray:
        first, last = self._limits(scene)
        inside = np.ones(len(events), bool) if self.start is None and self.end is None else (events.minutes >= first) & (events.minutes < last)
        return inside & in_window(self.time, scene.time_of_day(events.minutes)) if self.time else inside

    def mask(self, events: Events, inputs: Inputs, scene: Scene) -> np.ndarray:
        """Mask of the n events that are touched as wholes."""
        return self._any_time(events, inputs, scene) & self._in_time(events, scene)

    def _any_time(self, events: Events, inputs: Inputs, scene: Scene) -> np.ndarray:
        mask = self.labelled(events)
        if self.near:
            mask &= ~np.isnan(self.near.anchors(events, inputs, scene))
        return mask & self.reading.holds(events, scene) if self.reading else mask

    def parts(self, events: Events, inputs: Inputs, scene: Scene) -> tuple[Events, np.ndarray]:
        """The events, cut at the edges of the times where they are spread over them, and the mask of those touched."""
        if self.whole or (self.time is None and self.start is None and self.end is None):
            return events, self.mask(events, inputs, scene)
        any_time = self._any_time(events, inputs, scene)
        fixed = [e for e in self._limits(scene) if np.isfinite(e)] if self.start is not None or self.end is not None else []
        cut, source = cut_at(events, np.where(any_time, events.durations, 0.0), fixed, self.time, scene)
        return cut, any_time[source] & self._in_time(cut, scene)


def cut_at(
    events: Events, spans: np.ndarray, fixed: list[float], window: tuple[int, int] | None, scene: Scene
) -> tuple[Events, np.ndarray]:
    """Events cut at every fixed minute and every edge of the daily window strictly inside their span, and the event that each part
    comes from. The amount is shared in proportion to time.
    """
    ends = events.minutes + spans
    if not np.any(spans > 0):
        return events, np.arange(len(events))
    daily = np.empty(0)
    if window is not None:
        days = np.arange(np.floor(events.minutes.min() / DAY) - 2, np.ceil(ends.max() / DAY) + 2)
        daily = (days[:, None] * DAY + np.array([e % DAY for e in window]) - scene.local_start).ravel()
    edges = np.unique(np.concatenate([[-np.inf], fixed, daily, [np.inf]]))
    first, last = np.searchsorted(edges, events.minutes, side="right"), np.searchsorted(edges, ends, side="left")
    cuts = np.maximum(last - first, 0)
    source = np.repeat(np.arange(len(events)), cuts + 1)
    part = np.arange(len(source)) - np.repeat(np.cumsum(cuts + 1) - (cuts + 1), cuts + 1)  # 0, 1, … within its event
    edge = first[source] + part  # the edge after the part's start
    start = np.where(part == 0, events.minutes[source], edges[edge - 1])
    end = np.where(part == cuts[source], ends[source], edges[edge])
    is_cut, total = cuts[source] > 0, events.durations[source]
    duration = np.where(is_cut, end - start, total)
    share = np.divide(duration, total, out=np.ones_like(total), where=is_cut)
    order = np.argsort(start, kind="stable")
    parts = Events(start, events.amounts[source] * share, duration, tuple(events.labels[i] for i in source))
    return parts.take(order), source[order]
