"""What only the Delta adapter promises: one commit per refresh, constraints, comments, a change feed without noise."""

from dataclasses import replace

import pytest
from pyspark.sql import functions as F

from tests.tables.test_storage import BUCKETS, VISITS, patients, visits
from twinlib.tables.contracts import Table
from twinlib.tables.schemas import TABLES

pytestmark = pytest.mark.delta


@pytest.fixture
def storage(spark, tmp_path):
    from twinlib.tables.delta import DeltaStorage

    return DeltaStorage(spark, str(tmp_path / "tables"), BUCKETS)


def sql(spark, storage, text):
    return spark.sql(text.format(f"delta.`{storage.folder / 'visits'}`"))


def test_a_refresh_is_one_commit_and_the_change_feed_tells_only_what_changed(spark, storage):
    storage.replace(VISITS, visits(spark, ("ann", 0, "home"), ("ann", 1, "home"), ("ann", 2, "home"), ("bob", 0, "home")))
    start = sql(spark, storage, "DESCRIBE HISTORY {}").agg(F.max("version")).first()[0]
    new = visits(spark, ("ann", 1, "home"), ("ann", 2, "ward"), ("ann", 3, "home"))
    storage.replace_patients(VISITS, new, patients(spark, "ann"))
    history = sql(spark, storage, "DESCRIBE HISTORY {}").where(F.col("version") > start).collect()
    assert [(h.operation, h.version) for h in history] == [("MERGE", start + 1)]
    merge = history[0].operationParameters
    assert "bucket" in merge["predicate"] and "ann" not in str(merge)  # the log names buckets and no patient
    reader = spark.read.format("delta").option("readChangeFeed", "true").option("startingVersion", start + 1)
    feed = reader.load(str(storage.folder / "visits")).collect()
    found = sorted((r.patient_id, r.day, r.kind, r._change_type) for r in feed)
    assert found == [
        ("ann", 0, "home", "delete"),
        ("ann", 2, "home", "update_preimage"),
        ("ann", 2, "ward", "update_postimage"),
        ("ann", 3, "home", "insert"),
    ]


def test_the_contract_guards_against_other_writers(spark, storage):
    storage.replace(VISITS, visits(spark, ("a", 0, "home")))
    with pytest.raises(Exception, match="kind_allowed"):
        sql(spark, storage, "UPDATE {} SET kind = 'spa'")
    with pytest.raises(Exception, match="DELTA_NOT_NULL_CONSTRAINT_VIOLATED|NOT NULL"):
        sql(spark, storage, "UPDATE {} SET day = NULL")
    sql(spark, storage, "UPDATE {} SET mood = NULL")  # allowed values do not forbid "not known"
    comments = {r.col_name: r.comment for r in sql(spark, storage, "DESCRIBE TABLE {}").collect()}
    assert all(comments[c.name] == c.meaning for c in VISITS.columns)


def test_making_a_table_again_changes_nothing(spark, storage):
    for table in (TABLES[n] for n in ("timelines", "quarantine", "runs")):  # nested columns, a flat table, a map
        storage._ensure(table)
        commit = storage.version(table)
        storage._ensure(table)  # once more changes nothing: what Delta wrote down is what the contract says
        assert storage.version(table) == commit


def test_a_key_with_a_null_is_merged_as_one_row(spark, storage):
    columns = tuple(replace(c, nullable=c.name != "patient_id") for c in VISITS.columns)
    loose = Table("visits", VISITS.meaning, VISITS.key, columns)
    storage.replace(loose, visits(spark, ("ann", None, "home"), ("ann", 1, "home")))
    storage.replace_patients(loose, visits(spark, ("ann", None, "ward")), patients(spark, "ann"))
    assert storage.read(loose).select("patient_id", "day", "kind").collect() == [("ann", None, "ward")]
