"""What only the Delta adapter promises: one commit per refresh, constraints, comments, a change feed without noise."""

import pytest
from pyspark.sql import functions as F

from tests.tables.test_storage import BUCKETS, VISITS, patients, visits
from twinlib.tables.schemas import TABLES

pytestmark = pytest.mark.delta


@pytest.fixture
def storage(spark, tmp_path):
    from twinlib.tables.delta import DeltaStorage

    return DeltaStorage(spark, str(tmp_path / "tables"), BUCKETS)


def sql(spark, storage, text):
    return spark.sql(text.format(f"delta.`{storage.folder / 'visits'}`"))


def test_a_refresh_is_one_commit_and_the_change_feed_tells_only_what_changed(spark, storage):
    storage.replace(VISITS, visits(spark, ("a", 0, "home"), ("a", 1, "home"), ("a", 2, "home"), ("b", 0, "home")))
    start = sql(spark, storage, "DESCRIBE HISTORY {}").agg(F.max("version")).first()[0]
    storage.replace_patients(VISITS, visits(spark, ("a", 1, "home"), ("a", 2, "ward"), ("a", 3, "home")), patients(spark, "a"))
    history = sql(spark, storage, "DESCRIBE HISTORY {}").where(F.col("version") > start).collect()
    assert [(h.operation, h.version) for h in history] == [("MERGE", start + 1)]
    feed = spark.read.option("readChangeFeed", "true").option("startingVersion", start + 1).format("delta").load(str(storage.folder / "visits"))
    found = sorted((r.patient_id, r.day, r.kind, r._change_type) for r in feed.collect())
    assert found == [
        ("a", 0, "home", "delete"),
        ("a", 2, "home", "update_preimage"),
        ("a", 2, "ward", "update_postimage"),
        ("a", 3, "home", "insert"),
    ]


def test_the_merge_names_buckets_and_no_patient(spark, storage):
    storage.replace(VISITS, visits(spark, ("patient-one", 0, "home")))
    storage.replace_patients(VISITS, visits(spark, ("patient-one", 0, "ward")), patients(spark, "patient-one"))
    merge = sql(spark, storage, "DESCRIBE HISTORY {}").where("operation = 'MERGE'").select("operationParameters").first()[0]
    assert "bucket" in merge["predicate"] and "patient-one" not in str(merge)


def test_the_contract_guards_against_other_writers(spark, storage):
    storage.replace(VISITS, visits(spark, ("a", 0, "home")))
    with pytest.raises(Exception, match="kind_allowed"):
        sql(spark, storage, "UPDATE {} SET kind = 'spa'")
    with pytest.raises(Exception, match="DELTA_NOT_NULL_CONSTRAINT_VIOLATED|NOT NULL"):
        sql(spark, storage, "UPDATE {} SET day = NULL")
    sql(spark, storage, "UPDATE {} SET mood = NULL")  # allowed values do not forbid "unknown"


def test_columns_carry_their_meaning(spark, storage):
    storage.replace(VISITS, visits(spark))
    comments = {r.col_name: r.comment for r in sql(spark, storage, "DESCRIBE TABLE {}").collect()}
    assert all(comments[c.name] == c.meaning for c in VISITS.columns)


def test_every_table_of_the_product_can_be_made(spark, storage):
    for table in TABLES.values():
        storage._ensure(table)
        commit = storage.version(table)
        storage._ensure(table)  # once more changes nothing: what Delta wrote down is what the contract says
        assert storage.version(table) == commit
