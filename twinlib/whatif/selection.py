"""Which events of an input a scenario's edit touches: by local time of day, by label, by the event they belong to."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Annotated

import numpy as np
from pydantic import AfterValidator, BeforeValidator, Field, model_validator

from twinlib.config import Strict
from twinlib.models.timeline import Events, Inputs, joined

DAY = 1440.0


@dataclass(frozen=True)
class Clock:
    """Length of the episode and local minute of the day at its minute 0 (0: timelines start at local midnight).

    A change to or from daylight saving time within the episode is not followed: the whole episode keeps the offset
    of its start.
    """

    minutes: float
    local_start: float = 0.0

    def time_of_day(self, minutes: np.ndarray) -> np.ndarray:
        return (minutes + self.local_start) % DAY

    def clamp(self, minutes: np.ndarray) -> np.ndarray:
        """Minutes held within the episode, so that an edit moves amounts but never loses them."""
        return np.clip(minutes, 0.0, max(self.minutes - 1.0, 0.0))


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

    def matches(self, events: Events, clock: Clock) -> np.ndarray:
        """Mask of n booleans."""
        mask = np.ones(len(events), dtype=bool)
        if self.time is not None:
            mask &= in_window(self.time, clock.time_of_day(events.minutes))
        if self.labels is not None:
            mask &= np.isin(np.array(events.labels, dtype=str), self.labels)
        return mask


class Near(Selection):
    """Events of another input (a meal, say), and how close an event must be to belong to one of them.

    An event belongs to the nearest event of `input` that starts at most `within_minutes` before or after it, to the
    later one where two are equally near. `time` and `labels` then say which of these count.
    """

    input: Names
    within_minutes: Annotated[float, Field(strict=True, gt=0, le=720)] = 60.0

    def anchors(self, events: Events, inputs: Inputs, clock: Clock) -> np.ndarray:
        """Minute of the anchor that each of the n events belongs to, NaN where it belongs to none that counts."""
        anchor = joined(inputs[name] for name in self.input if name in inputs)
        if not len(anchor) or not len(events):
            return np.full(len(events), np.nan)
        after = np.searchsorted(anchor.minutes, events.minutes)
        before = np.maximum(after - 1, 0)
        after = np.minimum(after, len(anchor) - 1)
        gap_before, gap_after = (np.abs(anchor.minutes[i] - events.minutes) for i in (before, after))
        nearest = np.where(gap_after <= gap_before, after, before)
        counts = (np.minimum(gap_before, gap_after) <= self.within_minutes) & self.matches(anchor, clock)[nearest]
        return np.where(counts, anchor.minutes[nearest], np.nan)


class Where(Selection):
    """Which events an edit touches: all conditions hold. Without `where` an edit touches every event.

    whole: take events that start in the `time` window as they are. Otherwise an event spread over time is cut at the
    window's edges, and the edit touches what was delivered within (edits of amounts only; a move takes whole events).
    """

    near: Near | None = None
    whole: bool = False

    @model_validator(mode="after")
    def _something(self):
        if self.time is None and self.labels is None and self.near is None:
            raise ValueError("give at least one of time, labels and near")
        return self

    def mask(self, events: Events, inputs: Inputs, clock: Clock) -> np.ndarray:
        """Mask of the n events that are touched as wholes."""
        mask = self.matches(events, clock)
        return mask & ~np.isnan(self.near.anchors(events, inputs, clock)) if self.near else mask

    def parts(self, events: Events, inputs: Inputs, clock: Clock) -> tuple[Events, np.ndarray]:
        """The events, cut at the window's edges where they are spread over them, and the mask of those touched."""
        if self.time is None or self.whole:
            return events, self.mask(events, inputs, clock)
        any_time = self.model_copy(update={"time": None}).mask(events, inputs, clock)
        cut, source = _cut(events, np.where(any_time, events.durations, 0.0), self.time, clock)
        return cut, any_time[source] & in_window(self.time, clock.time_of_day(cut.minutes))


def _cut(events: Events, spans: np.ndarray, window: tuple[int, int], clock: Clock) -> tuple[Events, np.ndarray]:
    """Events cut at every edge of the window strictly inside their span, and the event that each part comes from.

    The amount is shared in proportion to time.
    """
    ends = events.minutes + spans
    if not np.any(spans > 0):
        return events, np.arange(len(events))
    days = np.arange(np.floor(events.minutes.min() / DAY) - 2, np.ceil(ends.max() / DAY) + 2)
    edges = np.unique((days[:, None] * DAY + np.array([e % DAY for e in window]) - clock.local_start).ravel())
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
