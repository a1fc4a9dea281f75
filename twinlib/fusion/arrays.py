"""Arrow columns as NumPy arrays and back, where whole columns are looked at in Python."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

MINUTE = 60_000_000  # microseconds
HOUR = 60 * MINUTE
DAY = 24 * HOUR


def whole_patients(batches: Iterable[pa.RecordBatch], least: int = 200_000) -> Iterator[pa.Table]:
    """Batches in order of patient_id, cut anew between patients: tables of about `least` rows, each with all rows of its patients. No more
    than that and the rows of one patient are held."""
    held: list[pa.RecordBatch] = []
    rows, enough = 0, least
    for batch in batches:
        if not batch.num_rows:
            continue
        held.append(batch)
        rows += batch.num_rows
        if rows < enough:
            continue
        table = pa.Table.from_batches(held)
        ids = table["patient_id"]
        cut = pc.index(ids, ids[-1]).as_py()
        if cut:
            yield table.slice(0, cut)
        held, rows = table.slice(cut).to_batches(), rows - cut
        enough = least + rows
    if held:
        yield pa.Table.from_batches(held)


def coded(texts: pa.Array) -> pa.DictionaryArray:
    """Texts as codes (int32) and the list of different texts; what is coded stays as it is."""
    kind = pa.dictionary(pa.int32(), pa.string())
    return texts.cast(kind) if pa.types.is_dictionary(texts.type) else texts.dictionary_encode().cast(kind)


def decoded(column: pa.ChunkedArray) -> pa.ChunkedArray:
    """Texts in place of codes; other columns as they are."""
    return column.cast(pa.string()) if pa.types.is_dictionary(column.type) else column


def constant(text: str | None, n: int) -> pa.DictionaryArray:
    """The same text n times, coded."""
    at = pa.nulls(n, pa.int32()) if text is None else pa.array(np.zeros(n, np.int32))
    return pa.DictionaryArray.from_arrays(at, pa.array([] if text is None else [text], pa.string()))


def codes(column: pa.Array | pa.ChunkedArray) -> tuple[np.ndarray, list]:
    """(n,) place of each value in the list of different values (-1 = null), and that list."""
    encoded = column.combine_chunks() if isinstance(column, pa.ChunkedArray) else column
    encoded = encoded if pa.types.is_dictionary(encoded.type) else encoded.dictionary_encode()
    return encoded.indices.fill_null(-1).to_numpy(zero_copy_only=False), encoded.dictionary.to_pylist()


def numbers(column: pa.ChunkedArray) -> np.ndarray:
    """(n,) float64, NaN = null."""
    return column.combine_chunks().cast(pa.float64()).to_numpy(zero_copy_only=False)


def instants(column: pa.ChunkedArray) -> np.ndarray:
    """(n,) int64 microseconds of a column of timestamps; the smallest number there is = null."""
    return column.combine_chunks().cast(pa.int64()).fill_null(np.iinfo(np.int64).min).to_numpy()


def ranks(column: pa.ChunkedArray) -> np.ndarray:
    """(n,) place of each text in the sorted list of different texts, -1 = null."""
    place, texts = codes(column)
    return np.append(np.argsort(np.argsort(np.array(texts, object), kind="stable"), kind="stable"), -1)[place] if texts else place.astype(np.int64)


def starts(*keys: np.ndarray) -> np.ndarray:
    """Places at which one of the keys (n,), sorted together, changes; the first row among them."""
    change = np.zeros(len(keys[0]), bool)
    for k in keys:
        change[1:] |= k[1:] != k[:-1]
    change[:1] = True
    return np.flatnonzero(change)


def last_where(condition: np.ndarray) -> np.ndarray:
    """(n,) place of the last row so far at which the condition holds, -1 where there is none."""
    return np.maximum.accumulate(np.where(condition, np.arange(len(condition)), -1))


def with_flags(lists: pa.ChunkedArray, flags: Mapping[str, np.ndarray], anew: Sequence[str] = ()) -> pa.Array:
    """`lists` (of flags, one per row) with those of `flags` (name -> (n,) bool) that hold, in alphabetical order.

    anew: flags that are taken away first. Lists are made once per combination that occurs.
    """
    return _marked(_joined(lists), flags, lambda stood, more: sorted(set(stood) - set(anew) | set(more)))


def with_words(texts: pa.ChunkedArray, flags: Mapping[str, np.ndarray], anew: Sequence[str] = ()) -> pa.Array:
    """Lists of the words of each text, without those of `anew`, and behind them the names of the `flags` (n,) that hold."""
    return _marked(texts, flags, lambda stood, more: [word for word in stood if word not in anew] + more)


def _marked(texts: pa.ChunkedArray, flags: Mapping[str, np.ndarray], words: Callable[[list[str], list[str]], list[str]]) -> pa.Array:
    """`words(those of the text, flags that hold)` of each row, worked out once per combination that occurs."""
    place, found = codes(texts)
    bits = np.zeros(len(place), np.int64)
    for k, holds in enumerate(flags.values()):
        bits |= holds.astype(np.int64) << k
    different, which = np.unique(place << len(flags) | bits, return_inverse=True)
    lists = [words(found[pair >> len(flags)].split(), [name for k, name in enumerate(flags) if pair >> k & 1]) for pair in different.tolist()]
    return pa.array(lists, pa.list_(pa.string())).take(pa.array(which))


def has_flag(lists: pa.ChunkedArray, *names: str) -> np.ndarray:
    """(n,) bool: one of the names stands in the row's list."""
    return has_word(_joined(lists), *names)


def has_word(texts: pa.ChunkedArray, *words: str) -> np.ndarray:
    """(n,) bool: one of the words stands in the row's text, which holds words separated by a space."""
    place, found = codes(texts)
    return np.array([*[not set(words).isdisjoint(text.split()) for text in found], False])[place]


def _joined(lists: pa.ChunkedArray) -> pa.ChunkedArray:
    return pa.chunked_array([pc.binary_join(lists.combine_chunks(), " ")])
