"""Patients who have withdrawn: what is kept of them."""

from __future__ import annotations

import hashlib
import hmac

PSEUDONYM = r"[0-9a-f]{32}"


def tombstone(key: bytes, patient_id: str) -> str:
    """What is kept of a patient who has withdrawn: 64 hexadecimal digits of HMAC-SHA256(key, "forgotten", 0x1F, pseudonym)."""
    return hmac.new(key, f"forgotten\x1f{patient_id}".encode(), hashlib.sha256).hexdigest()
