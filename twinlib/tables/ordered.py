"""Frames that come in the order in which they are stored: what they say of themselves, instead of another sort."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

AHEAD = "_ahead"  # column of an ordered frame: the row's key comes after that of the row before in its partition
PARTS = "parts"  # in that column's metadata: the number of partitions, by which patients are spread as by buckets; that of the buckets where it lacks


class Ordered:
    """Tells of the tables of one partition, one after the other, which rows have a key greater than that of the row before."""

    def __init__(self, key: Sequence[str]):
        self.key, self._last = list(key), None

    def __call__(self, table: pa.Table) -> np.ndarray:
        """(n,) bool. Columns of the key hold no null."""
        if not table.num_rows:
            return np.zeros(0, bool)
        last = table.slice(table.num_rows - 1).select(self.key)
        rows = pa.concat_tables([self._last or last, table.select(self.key)]).combine_chunks()
        greater = np.zeros(table.num_rows, bool)
        equal = np.ones(table.num_rows, bool)
        for name in self.key:
            column = rows[name].combine_chunks()
            a, b = column.slice(0, len(column) - 1), column.slice(1)
            greater |= equal & pc.greater(b, a).to_numpy(zero_copy_only=False)
            equal &= pc.equal(b, a).to_numpy(zero_copy_only=False)
        if self._last is None:
            greater[0] = True
        self._last = last
        return greater
