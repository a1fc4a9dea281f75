"""Which rows of a block an entry wants, flags and refuses: masks over text columns."""

from __future__ import annotations

import re

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from twinlib.sources.mapping import Codes, Filter


def known_rows(codes: Codes, columns: dict[str, pa.Array]) -> tuple[np.ndarray, np.ndarray]:
    """(n,) bool twice: rows with one of the codes, and rows that only have one of the words in their name."""
    text = pc.utf8_trim_whitespace(columns[codes.column])
    if codes.below:
        coded = _true(pc.match_substring_regex(text, rf"^({'|'.join(re.escape(v) for v in codes.values)})"))
    else:
        coded = _true(pc.is_in(text, value_set=pa.array(codes.values, pa.string())))
    if not codes.words:
        return coded, np.zeros(len(coded), bool)
    pattern = rf"\b({'|'.join(re.escape(w) for w in codes.words)})\b"
    return coded, _true(pc.match_substring_regex(columns[codes.names], pattern, ignore_case=True)) & ~coded


def meets(conditions: Filter, columns: dict[str, pa.Array], n: int) -> np.ndarray:
    """(n,) bool: every column of the filter holds one of its texts; an empty text is an empty or absent cell."""
    hits = [
        _true(pc.is_in(pc.fill_null(pc.utf8_trim_whitespace(columns[c]), ""), value_set=pa.array(texts, pa.string())))
        for c, texts in conditions.items()
    ]
    return np.logical_and.reduce(hits) if hits else np.ones(n, bool)


def _true(mask: pa.Array) -> np.ndarray:
    return pc.fill_null(mask, False).to_numpy(zero_copy_only=False)


def marks(masks: dict[str, np.ndarray], n: int) -> pa.Array:
    """Names of the masks that hold, separated by a space; null where none does."""
    texts = pa.nulls(n, pa.string())
    for name, mask in masks.items():
        both = pc.binary_join_element_wise(texts, name, " ", null_handling="skip")
        texts = pc.if_else(pa.array(mask), both, texts)
    return texts
