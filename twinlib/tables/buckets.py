"""The bucket of a patient, worked out on arrays as Spark works it out: pmod(xxhash64(patient_id), buckets)."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

_SEED = np.uint64(42)  # Spark's
_P1, _P2, _P3, _P4 = (np.uint64(p) for p in (0x9E3779B185EBCA87, 0xC2B2AE3D27D4EB4F, 0x165667B19E3779F9, 0x85EBCA77C2B2AE63))
WIDTH = 32  # characters of a pseudonym


def buckets_of(ids: Sequence[str | None], buckets: int) -> np.ndarray:
    """(n,) int32 buckets of pseudonyms (32 ASCII characters each); Spark hashes a null to the seed. Raises ValueError for other texts."""
    texts = np.array([(i or "0" * WIDTH).encode("ascii") for i in ids], f"S{WIDTH}")
    if any(i is not None and len(i) != WIDTH for i in ids):
        raise ValueError(f"a patient id is not {WIDTH} characters long")
    hashed = _xxhash64(np.frombuffer(texts.tobytes(), "<u8").reshape(len(texts), 4)).view(np.int64)
    hashed = np.where([i is None for i in ids], np.int64(_SEED), hashed) if len(ids) else hashed
    return np.mod(hashed, buckets).astype(np.int32)


def _xxhash64(words: np.ndarray) -> np.ndarray:
    """(n,) xxHash64 with Spark's seed of texts of four 64-bit words (n, 4)."""
    with np.errstate(over="ignore"):
        lanes = [_round(np.full(len(words), start), words[:, k]) for k, start in enumerate((_SEED + _P1 + _P2, _SEED + _P2, _SEED, _SEED - _P1))]
        h = sum((_rotated(lane, by) for lane, by in zip(lanes, (1, 7, 12, 18))), np.zeros(len(words), np.uint64))
        for lane in lanes:
            h = (h ^ _round(np.zeros_like(lane), lane)) * _P1 + _P4
        h = h + np.uint64(WIDTH)
        h = (h ^ h >> np.uint64(33)) * _P2
        h = (h ^ h >> np.uint64(29)) * _P3
        return h ^ h >> np.uint64(32)


def _round(lane: np.ndarray, word: np.ndarray) -> np.ndarray:
    return _rotated(lane + word * _P2, 31) * _P1


def _rotated(x: np.ndarray, by: int) -> np.ndarray:
    return x << np.uint64(by) | x >> np.uint64(64 - by)
