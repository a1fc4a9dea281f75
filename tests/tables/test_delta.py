"""What only the Delta adapter promises: one commit per refresh, constraints, comments, a change feed without noise."""

from dataclasses import replace

import pyarrow as pa
import pytest
from delta.tables import DeltaTable
from pyspark.sql import functions as F

from tests.tables.test_storage import BUCKETS, EVENTS, VISITS, events, patients, rows, visits
from twinlib.errors import StorageError
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


def test_a_commit_that_is_tried_again_is_made_once(spark, storage, monkeypatch):
    """The answer to a commit is lost: the second try finds that the first one landed."""
    from delta.exceptions import DeltaConcurrentModificationException

    storage.replace(VISITS, visits(spark, ("ann", 0, "home")))
    start = DeltaTable.forPath(spark, storage._path(VISITS)).history(1).first().version
    seen, conf = [], spark.conf
    staged = visits(spark, ("bob", 0, "home")).withColumn("bucket", F.lit(1)).select("bucket", *[c.name for c in VISITS.columns])

    def commit():
        staged.write.format("delta").mode("append").save(storage._path(VISITS))
        seen.append(conf.get("spark.databricks.delta.write.txnVersion"))
        if len(seen) == 1:
            raise DeltaConcurrentModificationException("planted")

    monkeypatch.setattr("time.sleep", lambda _: None)
    storage._once(VISITS, commit)
    assert len(seen) == 2 and seen[0] == seen[1]
    assert DeltaTable.forPath(spark, storage._path(VISITS)).history(1).first().version == start + 1
    assert rows(storage.read(VISITS)) == [("ann", 0, "home"), ("bob", 0, "home")]
    assert conf.get("spark.databricks.delta.write.txnAppId", "gone") == "gone"


def test_the_log_holds_no_values_of_rows(storage, spark):
    storage.replace(VISITS, visits(spark, ("ann-marker", 77123, "home")))
    storage.replace_patients(VISITS, visits(spark, ("ann-marker", 77124, "ward")), patients(spark, "ann-marker"))
    log = "".join(p.read_text() for p in (storage.folder / "visits" / "_delta_log").glob("*.json"))
    assert "ann-marker" not in log and "7712" not in log and "numRecords" in log


def test_a_past_version_is_read_by_its_name_until_maintenance_removes_it(spark, storage):
    storage.replace(VISITS, visits(spark, ("a", 0, "home")))
    first = storage.version(VISITS)
    storage.replace_patients(VISITS, visits(spark, ("a", 0, "ward"), ("b", 0, "home")), patients(spark, "a", "b"))
    assert rows(storage.read_version(VISITS, first)) == [("a", 0, "home")]
    assert storage.maintain(VISITS, 1000)["removed"] == 0 and rows(storage.read_version(VISITS, first)) == [("a", 0, "home")]
    assert storage.maintain(VISITS, 0)["removed"] > 0
    assert rows(storage.read(VISITS)) == [("a", 0, "ward"), ("b", 0, "home")]
    with pytest.raises(StorageError, match="is not kept any more"):
        storage.read_version(VISITS, "99-0.000")


def test_compaction_makes_one_file_of_many(spark, storage):
    storage.replace(EVENTS, events(spark, *[(f"e{i}", i) for i in range(8)]))
    for k in range(3):
        storage.append(EVENTS, events(spark, (f"more{k}", k)))
    table = storage._path(EVENTS)
    assert len(spark.read.format("delta").load(table).inputFiles()) > 1
    assert storage.maintain(EVENTS, 1000)["files"] == 1 and storage.read(EVENTS).count() == 11


@pytest.mark.parametrize("reader", ["deltalake", "polars"])
def test_others_read_the_table_and_its_history_and_changes(spark, storage, reader):
    storage.replace(VISITS, visits(spark, ("a", 0, "home"), ("b", 1, "ward")))
    number = int(storage.version(VISITS).partition("-")[0])
    storage.replace_patients(VISITS, visits(spark, ("a", 0, "ward")), patients(spark, "a"))
    path = str(storage.folder / "visits")
    if reader == "polars":
        polars = pytest.importorskip("polars")
        now, then = (polars.read_delta(path, version=v).sort("patient_id").select("patient_id", "day", "kind").rows() for v in (None, number))
    else:
        deltalake = pytest.importorskip("deltalake")
        tables = [deltalake.DeltaTable(path, version=v) for v in (None, number)]
        now, then = (sorted((r["patient_id"], r["day"], r["kind"]) for r in t.to_pyarrow_table().to_pylist()) for t in tables)
        feed = pa.table(tables[0].load_cdf(starting_version=number + 1)).to_pylist()
        assert {(r["patient_id"], r["kind"], r["_change_type"]) for r in feed} == {
            ("a", "home", "update_preimage"), ("a", "ward", "update_postimage")
        }
    assert now == [("a", 0, "ward"), ("b", 1, "ward")] and then == [("a", 0, "home"), ("b", 1, "ward")]
