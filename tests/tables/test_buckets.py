"""Buckets worked out on arrays against Spark's."""

import hashlib

import pytest
from pyspark.sql import functions as F

from twinlib.tables.buckets import buckets_of


def test_buckets_are_those_of_spark(spark):
    ids = [hashlib.sha256(str(k).encode()).hexdigest()[:32] for k in range(500)] + [None]
    rows = spark.createDataFrame([(i,) for i in ids], "id string").select(F.pmod(F.xxhash64("id"), F.lit(7)).alias("b")).collect()
    assert buckets_of(ids, 7).tolist() == [r.b for r in rows]
    assert buckets_of([], 7).tolist() == []
    with pytest.raises(ValueError, match="32 characters"):
        buckets_of(["p1"], 7)
