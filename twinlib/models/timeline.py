"""The inputs of one patient's episode as arrays: what a model is driven by and what a scenario edits."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True, eq=False)
class Events:
    """Events of one input, sorted by minute.

    minutes: start, minutes from the episode's start; amounts: total amount in the input's canonical unit (U, g);
    durations: minutes over which the amount is spread evenly, 0 = at once. Three float64 arrays of the same length n,
    and n labels ("" where there is none).
    """

    minutes: np.ndarray
    amounts: np.ndarray
    durations: np.ndarray
    labels: tuple[str, ...]

    @classmethod
    def of(cls, minutes, amounts, durations=0.0, labels: Iterable[str] | str = "") -> Events:
        """Events in any order, sorted (stably) by minute; a scalar duration or a single label holds for all.

        Raises ValueError where lengths differ.
        """
        minutes = np.asarray(minutes, dtype=np.float64).reshape(-1)
        amounts = np.asarray(amounts, dtype=np.float64).reshape(-1)
        durations = np.asarray(durations, dtype=np.float64)
        durations = np.full(minutes.shape, durations) if durations.ndim == 0 else durations
        labels = (labels,) * len(minutes) if isinstance(labels, str) else tuple(labels)
        if not len(minutes) == len(amounts) == len(durations) == len(labels):
            raise ValueError("minutes, amounts, durations and labels differ in length")
        events = cls(minutes, amounts, durations, labels)
        if np.all(minutes[1:] >= minutes[:-1]):
            return events
        return events.take(np.argsort(minutes, kind="stable"))

    def take(self, index: np.ndarray) -> Events:
        """The events at `index` (positions, or a mask of n booleans), in that order."""
        index = np.arange(len(self.minutes))[index]
        return Events(self.minutes[index], self.amounts[index], self.durations[index], tuple(self.labels[i] for i in index))

    def __len__(self) -> int:
        return len(self.minutes)


Inputs = dict[str, Events]


def joined(parts: Iterable[Events]) -> Events:
    """All events of the parts in one, sorted by minute; events of the same minute in the order of the parts."""
    parts = list(parts)
    if not parts:
        return Events.of([], [])
    return Events.of(
        np.concatenate([p.minutes for p in parts]),
        np.concatenate([p.amounts for p in parts]),
        np.concatenate([p.durations for p in parts]),
        [label for p in parts for label in p.labels],
    )
