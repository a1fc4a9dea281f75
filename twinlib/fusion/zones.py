"""Time zones on arrays: local time to UTC and back, with the gaps and the repeated hours of daylight saving."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from functools import lru_cache
from zoneinfo import ZoneInfo

import numpy as np

_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
_FIRST, _LAST = (int(datetime(year, 1, 1, tzinfo=UTC).timestamp()) for year in (1890, 2110))
_STEP = 3 * 86400  # s


@dataclass(frozen=True)
class Zone:
    """Changes of a zone's clocks. at (k,): instants in micros UTC; offset (k + 1,): local time minus UTC in micros, before, between and after."""

    at: np.ndarray
    offset: np.ndarray

    def offsets(self, utc: np.ndarray) -> np.ndarray:
        """(n,) local time minus UTC at instants."""
        return self.offset[np.searchsorted(self.at, utc, "right")]

    def resolved(self, wall: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """utc (n,), nonexistent (n,), ambiguous (n,) of wall-clock readings (micros as if UTC).

        Of two instants with one reading the earlier is taken; a reading that does not exist is taken by the offset before the gap.
        """
        before, after = self.offset[:-1], self.offset[1:]
        k = np.searchsorted(self.at + np.maximum(before, after), wall, "right")
        lowest = np.append(self.at + np.minimum(before, after), np.iinfo(np.int64).max)
        forward = np.append(after > before, False)
        inside = wall >= lowest[k]
        return wall - self.offset[k], inside & forward[k], inside & ~forward[k]


@lru_cache(maxsize=64)
def zone(name: str) -> Zone:
    """The zone from 1890 to 2110, exact to the second; changes that are undone within three days are not seen."""
    info = ZoneInfo(name)

    def offset(seconds: int) -> int:
        return round((_EPOCH + timedelta(seconds=seconds)).astimezone(info).utcoffset().total_seconds())

    at, offsets = [], [offset(_FIRST)]
    for high in range(_FIRST + _STEP, _LAST, _STEP):
        if (after := offset(high)) != offsets[-1]:
            low = high - _STEP
            while high - low > 1:
                middle = (low + high) // 2
                low, high = (middle, high) if offset(middle) == offsets[-1] else (low, middle)
            at.append(high)
            offsets.append(after)
    return Zone(np.array(at, np.int64) * 1_000_000, np.array(offsets, np.int64) * 1_000_000)
