"""Planted faults: every kind of the list is planted, and ingest finds them."""

import pytest

from benchmarks.faults import SIGNS, measure

pytestmark = pytest.mark.slow


def test_nearly_all_planted_faults_are_found_and_little_else_is_flagged(spark, tmp_path):
    found = measure(spark, tmp_path, patients=60)
    assert found["planted_rows"] > 50_000 and set(found["planted_faults"]) == set(SIGNS)
    assert all(f["rows"] > 0 for f in found["planted_faults"].values())
    assert found["planted_recall"] >= 0.99 and found["planted_precision"] >= 0.95
    assert min(f["recall"] for f in found["planted_faults"].values()) >= 0.9
