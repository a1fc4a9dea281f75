"""Figures of Spark's tasks, from its own status store."""

import time

import pytest

from twinlib.metrics import Tasks


def test_tasks_are_counted_from_the_moment_it_is_made(spark):
    def uneven(batches):
        for batch in batches:
            time.sleep(2.0 if batch.column(0)[0].as_py() == 0 else 0.05)
            yield batch

    spark.range(0, 50, 1, 5).count()
    tasks = Tasks(spark)
    spark.range(0, 5, 1, 5).mapInArrow(uneven, "id long").write.format("noop").mode("overwrite").save()
    found = tasks.measure(2.0)
    assert found["tasks"] == 5 and found["task_seconds"] > 2.2 and found["task_seconds"] > found["jvm_cpu_seconds"] > 0
    assert found["skew"] > 1.2 and found["rows_read"] == 5 and found["rows_per_second"] == 2.5
    assert Tasks(spark).measure(1.0)["tasks"] == 0 and Tasks(spark).measure(0.0)["skew"] == 1.0


def test_what_is_written_and_shuffled_is_counted(spark, tmp_path):
    tasks = Tasks(spark)
    spark.range(0, 1000, 1, 2).repartition(3).write.parquet(str(tmp_path / "x"))
    found = tasks.measure(1.0)
    assert found["rows_written"] == 1000 and found["shuffle_mb"] > 0 == found["spill_mb"] and found["tasks"] == pytest.approx(5)
