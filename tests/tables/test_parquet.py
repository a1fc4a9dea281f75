"""What only the Parquet adapter promises: folders, links, the pointer, what a crash leaves."""

import os
import shutil

import duckdb
import pandas as pd
import pyarrow.parquet as pq
import pytest
from pyspark.sql import functions as F

from tests.tables.test_storage import BUCKETS, EVENTS, VISITS, events, patients, rows, visits
from twinlib.errors import StorageError
from twinlib.tables.ordered import AHEAD, PARTS
from twinlib.tables.parquet import ParquetStorage
from twinlib.tables.storage import bucket_of


@pytest.fixture
def storage(spark, tmp_path):
    return ParquetStorage(spark, str(tmp_path / "tables"), BUCKETS)


def files(storage, table):
    """Name -> inode of the current version's data files."""
    home = storage.folder / table.name
    folder = home / (home / "CURRENT").read_text().strip()
    return {str(p.relative_to(folder)): p.stat().st_ino for p in folder.rglob("*.parquet")}


def test_an_ordered_frame_must_have_every_patient_in_its_partition(spark, storage):
    """Several partitions to a bucket: a patient in two of them could have one key twice, which order within partitions does not show."""
    parts, ids = 2 * BUCKETS, [f"p{i}" for i in range(40)]
    frame = visits(spark, *[(i, 0, "home") for i in ids]).withColumn(AHEAD, F.lit(True))
    placed = frame.repartitionById(parts, bucket_of(parts)).withMetadata(AHEAD, {PARTS: parts})
    assert storage.replace(VISITS, placed) == 40 and len(files(storage, VISITS)) > BUCKETS
    other = F.when(F.col("patient_id") == "p0", F.pmod(bucket_of(parts) + BUCKETS, F.lit(parts))).otherwise(bucket_of(parts))
    for wrong in (frame.repartitionById(parts, other).withMetadata(AHEAD, {PARTS: parts}), frame.repartitionById(parts, other)):
        with pytest.raises(StorageError, match="every patient in one partition, and every partition of one bucket"):
            storage.replace(VISITS, wrong)
    assert len(rows(storage.read(VISITS))) == 40
    uneven = frame.repartitionById(parts + 1, bucket_of(parts + 1)).withMetadata(AHEAD, {PARTS: parts + 1})
    with pytest.raises(StorageError, match="every partition of one bucket"):
        storage.replace(VISITS, uneven)


def test_a_refresh_rewrites_only_the_buckets_it_touches(spark, storage):
    ids = [f"p{i}" for i in range(40)]
    storage.replace(VISITS, visits(spark, *[(i, 0, "home") for i in ids]))
    before = files(storage, VISITS)
    assert {name.split("/")[0] for name in before} == {f"bucket={k}" for k in range(BUCKETS)}
    touched = patients(spark, "p0").select(bucket_of(BUCKETS)).first()[0]
    storage.replace_patients(VISITS, visits(spark, ("p0", 0, "ward")), patients(spark, "p0"))
    after = files(storage, VISITS)
    same = {name for name in before if not name.startswith(f"bucket={touched}/")}
    assert len(same) == BUCKETS - 1 and all(after[name] == before[name] for name in same)
    assert set(after) - same and not (set(after) - same) & set(before)


def test_where_links_are_impossible_files_are_copied(spark, storage, monkeypatch):
    def no_links(*_):
        raise OSError("no links here")

    monkeypatch.setattr(os, "link", no_links)
    storage.replace(VISITS, visits(spark, *[(f"p{i}", 0, "home") for i in range(20)]))
    storage.replace_patients(VISITS, visits(spark), patients(spark, "p0"))
    assert storage.read(VISITS).count() == 19


def test_a_crash_before_the_flip_leaves_the_old_version_and_the_next_writer_cleans_up(spark, storage, monkeypatch):
    storage.replace(VISITS, visits(spark, ("a", 0, "home")))

    def crash(*_):
        raise KeyboardInterrupt("planted")

    with monkeypatch.context() as broken:
        broken.setattr(os, "replace", crash)
        with pytest.raises(KeyboardInterrupt):
            storage.replace(VISITS, visits(spark, ("b", 0, "home"), ("c", 0, "home")))
        with pytest.raises(KeyboardInterrupt):
            storage.replace(EVENTS, events(spark, ("x", 1)))  # a first write
    assert rows(storage.read(VISITS)) == [("a", 0, "home")] and not storage.exists(EVENTS)
    left = storage.folder / "visits" / "v000002"
    assert left.is_dir()
    (left / "bucket=9").mkdir()  # something that the next writer would not make itself
    storage.replace_patients(VISITS, visits(spark, ("d", 0, "home")), patients(spark, "d"))
    storage.replace(EVENTS, events(spark, ("y", 1)))
    assert not (left / "bucket=9").exists()
    assert rows(storage.read(VISITS)) == [("a", 0, "home"), ("d", 0, "home")]
    assert storage.read(EVENTS).collect() == [("y", 1)]


@pytest.mark.parametrize("content", [b"", b"v0000", b"v000007\n", b"\xff\x00\xfe", b"../elsewhere"])
def test_a_damaged_pointer_is_named_with_the_remedy(spark, storage, content):
    storage.folder.mkdir()
    (storage.folder / "events" / "v000003").mkdir(parents=True)
    (storage.folder / "events" / "CURRENT").write_bytes(content)
    new = events(spark, ("x", 1))
    for action in (lambda: storage.read(EVENTS), lambda: storage.version(EVENTS), lambda: storage.append(EVENTS, new)):
        with pytest.raises(StorageError, match=r"events/CURRENT is damaged.*v000003"):
            action()


def test_a_lost_pointer_does_not_cost_the_versions(spark, storage):
    for n in range(2):
        storage.replace(EVENTS, events(spark, ("x", n)))
    (storage.folder / "events" / "CURRENT").unlink()
    with pytest.raises(StorageError, match=r"CURRENT is missing.*v000001, v000002"):
        storage.replace(EVENTS, events(spark, ("x", 9)))
    (storage.folder / "events" / "CURRENT").write_text("v000002")
    assert storage.read(EVENTS).collect() == [("x", 1)]


def test_old_versions_are_kept_as_many_as_told(spark, tmp_path):
    storage = ParquetStorage(spark, str(tmp_path / "t"), BUCKETS, keep_versions=1)
    for n in range(4):
        storage.replace(EVENTS, events(spark, ("x", n)))
    assert sorted(p.name for p in (storage.folder / "events").glob("v*")) == ["v000003", "v000004"]


def test_a_table_built_anew_has_another_version_name(spark, storage):
    storage.replace(EVENTS, events(spark, ("x", 1)))
    first = storage.version(EVENTS)
    shutil.rmtree(storage.folder / "events")
    storage.replace(EVENTS, events(spark, ("x", 1)))
    assert storage.version(EVENTS) != first and first.startswith("v000001-")


def test_others_can_read_a_version_folder_even_an_empty_one(spark, storage):
    for content in ([("a", 0, "home"), ("b", 1, "ward")], []):
        storage.replace(VISITS, visits(spark, *content))
        home = storage.folder / "visits"
        folder = home / (home / "CURRENT").read_text().strip()
        frame = pd.read_parquet(folder)
        assert sorted(zip(frame.patient_id, frame.day, frame.kind)) == content
        found = duckdb.sql(f"SELECT patient_id, day, kind FROM '{folder}/**/*.parquet' ORDER BY ALL")
        assert found.fetchall() == content and [str(t) for t in found.types] == ["VARCHAR", "INTEGER", "VARCHAR"]


def test_a_root_that_is_no_local_folder_or_a_pattern_is_refused(spark, tmp_path):
    with pytest.raises(StorageError, match="needs a local folder"):
        ParquetStorage(spark, "s3a://lake/tables", BUCKETS)
    with pytest.raises(StorageError, match="for a pattern"):
        ParquetStorage(spark, str(tmp_path / "run[1]"), BUCKETS)


def test_a_folder_that_cannot_be_made_is_named(spark, tmp_path):
    (tmp_path / "file").write_text("")
    storage = ParquetStorage(spark, str(tmp_path / "file" / "tables"), BUCKETS)
    with pytest.raises(StorageError, match="tables cannot be made"):
        storage.replace(EVENTS, events(spark, ("x", 1)))


def test_the_same_rows_give_the_same_files_whatever_their_order(spark, storage):
    data = [(f"p{i}", d, "home") for i in range(9) for d in range(3)]
    contents = []
    for order, partitions in ((data, 1), (data[::-1], 3)):
        storage.replace(VISITS, visits(spark, *order).repartition(partitions))
        home = storage.folder / "visits"
        folder = home / (home / "CURRENT").read_text().strip()
        contents.append([pq.read_table(p, partitioning=None).to_pylist() for p in sorted(folder.glob("bucket=*/*.parquet"))])
    assert contents[0] == contents[1] and sum(map(len, contents[0])) == len(data)


def test_only_the_owner_may_enter_the_folders(spark, storage):
    umask = os.umask(0o022)
    try:
        storage.replace(EVENTS, events(spark, ("x", 1)))
    finally:
        os.umask(umask)
    for folder in (storage.folder, storage.folder / "events", storage.folder / "events" / "v000001"):
        assert folder.stat().st_mode & 0o777 == 0o700
