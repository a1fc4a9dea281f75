"""The storage port's promises, kept by both adapters: the same tests run on Parquet and on Delta."""

import subprocess
import sys
from datetime import datetime, timezone

import pyarrow.parquet as pq
import pytest
from pyspark.sql import functions as F
from pyspark.sql.types import ArrayType, DoubleType, IntegerType, StringType, StructField, StructType, TimestampType

from twinlib.errors import StorageError
from twinlib.tables.contracts import Column, Table
from twinlib.tables.storage import bucket_of

BUCKETS = 4
_NESTED = ArrayType(StructType([StructField("name", StringType(), False), StructField("at", ArrayType(DoubleType()), True)]))
VISITS = Table(
    "visits",
    "One row per visit.",
    ("patient_id", "day"),
    (
        Column("patient_id", StringType(), "patient", nullable=False),
        Column("day", IntegerType(), "day", "d", nullable=False),
        Column("kind", StringType(), "kind", nullable=False, values=("home", "ward")),
        Column("mood", StringType(), "mood, where it's known", values=("good", "bad")),
        Column("at", TimestampType(), "instant"),
        Column("notes", _NESTED, "notes", nullable=False),
    ),
)
EVENTS = Table(
    "events",
    "One row per event.",
    ("name",),
    (Column("name", StringType(), "name"), Column("n", IntegerType(), "count", "1", nullable=False)),
)
_HOLD = "import sys, filelock\nlock = filelock.FileLock(sys.argv[1])\nlock.acquire()\nprint('held', flush=True)\nsys.stdin.read()"
NOON = datetime(2026, 3, 29, 12, tzinfo=timezone.utc)


@pytest.fixture(params=["parquet", pytest.param("delta", marks=pytest.mark.delta)])
def storage(request, spark, tmp_path):
    return adapter(request.param)(spark, str(tmp_path / "my tables"), BUCKETS)


def adapter(name):
    if name == "delta":
        from twinlib.tables.delta import DeltaStorage as Adapter
    else:
        from twinlib.tables.parquet import ParquetStorage as Adapter
    return Adapter


def visits(spark, *rows):
    """Rows of (patient, day, kind), the other columns derived from them."""
    rows = [(p, d, k, None if d == 0 else "good", NOON, [(f"note {d}", [float(d or 0), None])]) for p, d, k in rows]
    return spark.createDataFrame(rows, StructType([StructField(f.name, f.dataType, True) for f in VISITS.schema.fields]))


def events(spark, *rows):
    return spark.createDataFrame(list(rows), "name string, n int")


def rows(frame):
    return sorted((r.patient_id, r.day, r.kind) for r in frame.collect())


def patients(spark, *ids):
    return spark.createDataFrame([(i,) for i in ids], "patient_id string")


def test_a_table_never_written_is_empty_and_has_no_version(storage):
    assert not storage.exists(VISITS) and storage.version(VISITS) == "none"
    assert storage.read(VISITS).count() == 0 and storage.read(VISITS).columns == [c.name for c in VISITS.columns]


def test_what_is_written_is_read_back_value_by_value(spark, storage):
    assert storage.replace(VISITS, visits(spark, ("a", 0, "home"), ("a", 1, "ward"), ("b", 1, "home"))) == 3
    back = storage.read(VISITS)
    assert back.columns == [c.name for c in VISITS.columns]
    assert sorted(map(tuple, back.where("day = 1").select("patient_id", "kind", "mood", "notes").collect())) == [
        ("a", "ward", "good", [("note 1", [1.0, None])]),
        ("b", "home", "good", [("note 1", [1.0, None])]),
    ]
    assert back.select(F.unix_timestamp("at")).distinct().collect() == [(int(NOON.timestamp()),)]
    assert back.where("day = 0").select("mood").collect() == [(None,)]
    assert storage.exists(VISITS)


def test_an_empty_table_keeps_its_columns(spark, storage):
    for table, frame in ((VISITS, visits(spark)), (EVENTS, events(spark))):
        assert storage.replace(table, frame) == 0
        assert storage.exists(table) and storage.version(table) != "none"
        assert storage.read(table).count() == 0
        assert [f.dataType.simpleString() for f in storage.read(table).schema] == [c.type.simpleString() for c in table.columns]


def test_replacing_patients_updates_inserts_deletes_and_leaves_the_others(spark, storage):
    start = [("a", 0, "home"), ("a", 1, "home"), ("b", 0, "home"), ("c", 0, "home"), ("d", 0, "ward")]
    storage.replace(VISITS, visits(spark, *start))
    old, version = storage.read(VISITS), storage.version(VISITS)
    new = visits(spark, ("a", 1, "ward"), ("a", 2, "home"), ("e", 0, "ward"))  # a 0 goes, a 1 changes, a 2 and e come, b goes
    assert storage.replace_patients(VISITS, new, patients(spark, "a", "b", "e", "e", None)) == 3
    want = [("a", 1, "ward"), ("a", 2, "home"), ("c", 0, "home"), ("d", 0, "ward"), ("e", 0, "ward")]
    assert rows(storage.read(VISITS)) == want
    assert rows(old) == start  # a frame read before the write shows what it showed
    written = storage.version(VISITS)
    assert written != version
    assert storage.replace_patients(VISITS, visits(spark), patients(spark)) == 0 and storage.version(VISITS) == written


def test_replacing_patients_can_build_a_table(spark, storage):
    assert storage.replace_patients(VISITS, visits(spark, ("a", 0, "home")), patients(spark, "a", "b")) == 1
    assert rows(storage.read(VISITS)) == [("a", 0, "home")]


def test_rows_of_a_patient_out_of_scope_are_refused(spark, storage):
    new = visits(spark, ("a", 5, "home"), ("b", 5, "home"))
    for scope in (patients(spark, "a"), patients(spark)):
        message = r"visits: nothing was stored.*only patients that are being replaced \(by [12] rows"
        with pytest.raises(StorageError, match=message):
            storage.replace_patients(VISITS, new, scope)
    assert not storage.exists(VISITS)


def test_a_table_can_be_rewritten_from_itself(spark, storage):
    storage.replace(VISITS, visits(spark, ("a", 0, "home"), ("b", 0, "home")))
    own = storage.read(VISITS).withColumn("kind", F.lit("ward"))
    storage.replace_patients(VISITS, own.where("day = 0"), patients(spark, "a", "b"))
    storage.replace(VISITS, storage.read(VISITS).withColumn("day", F.col("day") + 1))
    assert rows(storage.read(VISITS)) == [("a", 1, "ward"), ("b", 1, "ward")]


def test_a_broken_contract_stores_nothing_and_shows_no_values(spark, storage):
    storage.replace(VISITS, visits(spark, ("z", 9, "home")))
    for row, message in (
        (("a", None, "home"), r"day IS NOT NULL \(by 1 rows\)"),
        (("a", 1, "spa"), r"kind IN \('home', 'ward'\) \(by 1 rows\)"),
        (("z", 0, "ward"), r"one row per \(patient_id, day\) \(by 2 rows\)"),
    ):
        with pytest.raises(StorageError, match=message) as error:
            storage.replace(VISITS, visits(spark, ("z", 0, "home"), row))
        assert "spa" not in str(error.value) and "'z'" not in str(error.value)
    assert rows(storage.read(VISITS)) == [("z", 9, "home")]


def test_missing_unknown_and_wrongly_typed_columns_are_named(spark, storage):
    with pytest.raises(StorageError, match="missing column n; unknown column m"):
        storage.replace(EVENTS, events(spark, ("x", 1)).withColumnRenamed("n", "m"))
    with pytest.raises(StorageError, match="column n is bigint, expected int"):
        storage.append(EVENTS, events(spark, ("x", 1)).withColumn("n", F.col("n").cast("bigint")))


def test_work_that_fails_on_the_way_leaves_the_old_version(spark, storage):
    storage.replace(VISITS, visits(spark, ("a", 0, "home")))
    before = storage.version(VISITS)
    broken = visits(spark, ("a", 0, "ward"), ("b", 1, "home")).withColumn(
        "kind", F.when(F.col("day") == 1, F.raise_error(F.lit("planted"))).otherwise(F.col("kind"))
    )
    with pytest.raises(Exception, match="planted"):
        storage.replace(VISITS, broken)
    with pytest.raises(Exception, match="planted"):
        storage.replace_patients(VISITS, broken, patients(spark, "a", "b"))
    assert rows(storage.read(VISITS)) == [("a", 0, "home")] and storage.version(VISITS) == before


def test_append_adds_rows_once_and_to_flat_tables_only(spark, storage):
    storage.append(EVENTS, events(spark, ("x", 1)))
    storage.append(EVENTS, events(spark, ("y", 2)))
    storage.append(EVENTS, events(spark, ("y", 3), (None, 4)))  # y is there: a repeat
    storage.append(EVENTS, events(spark, (None, 5)))  # and now so is the nameless one
    assert sorted(map(tuple, storage.read(EVENTS).select("n", "name").collect())) == [(1, "x"), (2, "y"), (4, None)]
    with pytest.raises(StorageError, match="stored by patient"):
        storage.append(VISITS, visits(spark))


def test_a_changed_number_of_buckets_keeps_every_row(spark, storage):
    ids = [f"p{i}" for i in range(20)]
    storage.replace(VISITS, visits(spark, *[(i, 0, "home") for i in ids]))
    wider = type(storage)(spark, storage.root, 7)
    wider.replace_patients(VISITS, visits(spark, ("p3", 0, "ward")), patients(spark, "p3", "p4"))
    want = [(i, 0, "ward" if i == "p3" else "home") for i in ids if i != "p4"]
    assert rows(wider.read(VISITS)) == sorted(want)
    wider.replace_patients(VISITS, visits(spark), patients(spark, *ids[5:]))  # finds every patient in its new bucket
    assert {r[0] for r in rows(wider.read(VISITS))} == {"p0", "p1", "p2", "p3"}


def test_tables_grow_by_columns_and_allowed_values(spark, storage):
    storage.replace(VISITS, visits(spark, ("a", 0, "home"), ("b", 0, "home")))
    kind = Column("kind", StringType(), "kind", nullable=False, values=("home", "ward", "spa"))
    added = Column("pain", DoubleType(), "pain's \"score\" (0–10)", "1")
    later = Table("visits", VISITS.meaning, VISITS.key, (*(kind if c.name == "kind" else c for c in VISITS.columns), added))
    assert storage.read(later).where("pain IS NULL").count() == 2
    storage.replace_patients(later, visits(spark, ("a", 0, "spa")).withColumn("pain", F.lit(3.0)), patients(spark, "a"))
    found = storage.read(later).select("patient_id", "kind", "pain").collect()
    assert sorted(map(tuple, found)) == [("a", "spa", 3.0), ("b", "home", None)]


def test_a_table_of_an_incompatible_type_is_refused_by_name(spark, storage):
    storage.replace(EVENTS, events(spark, ("x", 1)))
    other = Table("events", EVENTS.meaning, EVENTS.key, (EVENTS.columns[0], Column("n", DoubleType(), "count", "1")))
    with pytest.raises(StorageError, match="column n is int, expected double"):
        storage.read(other).collect()
    with pytest.raises(StorageError, match="column n is int, expected double"):
        storage.append(other, events(spark, ("y", 2)).withColumn("n", F.lit(2.0)))


def test_a_second_process_cannot_write(spark, storage):
    storage.folder.mkdir()
    command = [sys.executable, "-c", _HOLD, str(storage.folder / ".writer.lock")]
    holder = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    try:
        assert holder.stdout.readline() == "held\n"
        with pytest.raises(StorageError, match=r"another run is writing.*\.writer\.lock"):
            storage.replace(EVENTS, events(spark, ("y", 1)))
        with pytest.raises(StorageError, match="another run is writing"), storage.writer():
            pass
        assert storage.read(EVENTS).count() == 0  # reading needs no lock
    finally:
        holder.kill()
        holder.wait()
    with storage.writer(), storage.writer():  # the lock goes with its process, and may be nested
        pass


def test_the_bucket_is_spark_s_hash_of_the_patient(spark):
    frame = spark.createDataFrame([("a",), ("b",)], "patient_id string")
    assert frame.select(bucket_of(5)).collect() == frame.selectExpr("int(pmod(xxhash64(patient_id), 5))").collect()


def test_forgotten_patients_are_in_no_file_of_the_table(spark, storage):
    storage.replace(VISITS, visits(spark, ("ann", 0, "home"), ("bob", 0, "home"), ("cid", 0, "ward")))
    storage.replace_patients(VISITS, visits(spark, ("ann", 0, "ward"), ("ann", 1, "ward")), patients(spark, "ann"))
    assert storage.forget(VISITS, patients(spark, "ann", "nobody")) == 2
    assert rows(storage.read(VISITS)) == [("bob", 0, "home"), ("cid", 0, "ward")]
    found = set()
    for file in (storage.folder / "visits").rglob("*.parquet"):
        found |= set(pq.ParquetFile(file).read(["patient_id"])["patient_id"].to_pylist())
    assert found == {"bob", "cid"}
    assert storage.forget(EVENTS, patients(spark, "ann")) == 0  # a table that was never written


def test_a_flat_table_forgets_rows_that_name_the_patient_in_any_text(spark, storage):
    notes = Table("notes", "Notes.", ("n",), (
        Column("n", IntegerType(), "number", nullable=False), Column("patient_id", StringType(), "patient, where known"), Column("text", StringType(), "text"),
    ))
    frame = spark.createDataFrame([(1, "ann", "x"), (2, None, "fields of ann"), (3, None, None), (4, "bob", "x")], "n int, patient_id string, text string")
    storage.replace(notes, frame)
    assert storage.forget(notes, patients(spark, "ann")) == 2
    assert sorted(r.n for r in storage.read(notes).collect()) == [3, 4]


def test_a_damaged_file_is_named_with_the_remedy(spark, storage):
    storage.replace(VISITS, visits(spark, ("ann", 0, "home")))
    storage.check(VISITS), storage.check(EVENTS)
    (file,) = (storage.folder / "visits").rglob("part-*.parquet")
    with file.open("r+b") as f:
        f.truncate(file.stat().st_size - 6)
    with pytest.raises(StorageError, match=f"{file.name} is damaged. Move the folder"):
        storage.check(VISITS)
