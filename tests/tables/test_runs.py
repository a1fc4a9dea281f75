import os
from datetime import datetime, timezone

import pytest

from twinlib.config import RunConfig
from twinlib.errors import DataError, StorageError
from twinlib.tables import open_storage
from twinlib.tables.contracts import Table
from twinlib.tables.runs import Runs, fingerprint
from twinlib.tables.schemas import RUNS


def config(tmp_path, **changes):
    sources = [{"mapping": "m.yaml", "root": "raw"}]
    return RunConfig(name="night", output=str(tmp_path / "out"), pseudonym_key={"env": "KEY"}, sources=sources, **changes)


def test_every_stage_leaves_one_row_also_when_it_fails(spark, tmp_path):
    settings = config(tmp_path)
    storage = open_storage(spark, settings)
    runs = Runs(storage, settings)
    with runs.stage("ingest", input_hash="h1") as stage:
        stage.counts["rows"] = 12
    with runs.stage("fuse", input_hash="h2") as stage:
        stage.unchanged()
    with pytest.raises(DataError, match="no such file"), runs.stage("fit", input_hash="h3"):
        raise DataError("no such file")
    with pytest.raises(ZeroDivisionError), runs.stage("simulate", input_hash="h4"):
        raise ZeroDivisionError("with a patient's value")
    rows = {r.stage: r for r in storage.read(RUNS).collect()}
    assert {s: (r.status, r.input_hash, r.message) for s, r in rows.items()} == {
        "ingest": ("done", "h1", None),
        "fuse": ("unchanged", "h2", None),
        "fit": ("failed", "h3", "no such file"),
        "simulate": ("failed", "h4", "ZeroDivisionError"),
    }
    assert rows["ingest"].counts == {"rows": 12} and rows["ingest"].config_hash == settings.hash()
    assert {r.run_id for r in rows.values()} == {runs.run_id} and all(r.seconds >= 0 for r in rows.values())


def test_only_a_last_run_that_ended_well_under_the_same_configuration_spares_the_next(spark, tmp_path):
    first, other = config(tmp_path), config(tmp_path, seed=2)
    storage = open_storage(spark, first)

    def run(settings, input_hash, fail=False, parts=()):
        try:
            with Runs(storage, settings).stage("fit", input_hash, parts):
                if fail:
                    raise DataError("planted")
        except DataError:
            pass

    def last(settings, parts=()):
        return Runs(storage, settings).last_input_hash("fit", parts)

    assert last(first) is None
    run(first, "h1")
    assert last(first) == "h1" and last(other) is None and Runs(storage, first).last_input_hash("ingest") is None
    run(other, "h1")
    assert last(first) is None and last(other) == "h1"  # the tables now hold the other configuration's results
    run(first, "h2", fail=True)
    assert last(first) is None
    run(first, "h3", parts=("fit",))
    assert last(other, parts=("fit",)) == "h3"  # the seed is no part of what the stage reads


def test_a_manifest_of_an_older_version_goes_on(spark, tmp_path):
    """Its rows have no sequence and no versions of tables; the next ones have, and count as later whatever the clock says."""
    settings = config(tmp_path)
    storage = open_storage(spark, settings)
    older = Table("runs", RUNS.meaning, RUNS.key, tuple(c for c in RUNS.columns if c.name not in ("sequence", "metrics", "table_versions")))
    row = ("r0", "fit", "failed", datetime(2099, 1, 1, tzinfo=timezone.utc), 1.5, settings.hash(), "h0", {}, None)
    storage.replace(older, spark.createDataFrame([row], older.schema))
    runs = Runs(storage, settings)
    assert runs.last_input_hash("fit") is None
    with runs.stage("fit", "h1") as stage:
        stage.tables["twins"] = "v000001-0"
        stage.metrics["tasks"] = 3
    assert runs.last_input_hash("fit") == "h1" and runs.tables_of(runs.run_id) == {"twins": "v000001-0"}
    with pytest.raises(StorageError, match="there is no run r0, or it is older"):
        runs.tables_of("r0")


def test_a_failure_that_cannot_be_recorded_does_not_hide_the_first_error(spark, tmp_path, monkeypatch):
    settings = config(tmp_path)
    storage = open_storage(spark, settings)

    def full(*_):
        raise StorageError("disk full")

    monkeypatch.setattr(storage, "append", full)
    with pytest.raises(DataError, match="first") as error, Runs(storage, settings).stage("fit", input_hash="h"):
        raise DataError("first")
    assert "disk full" in error.value.__notes__[0]


def test_a_fingerprint_tells_content_names_and_times_but_not_order_or_place(tmp_path):
    def folder(name):
        root = tmp_path / name
        (root / "sub").mkdir(parents=True)
        paths = [root / "a.csv", root / "sub" / "b.csv"]
        for path in paths:
            path.write_text("1,2")
            os.utime(path, ns=(0, 10**9))
        return root, paths

    root, paths = folder("here")
    base = fingerprint(paths, root)
    elsewhere, moved = folder("there")
    assert fingerprint(paths[::-1], root) == base == fingerprint(moved, elsewhere)
    assert fingerprint(paths[:1], root) != base
    os.utime(paths[0], ns=(0, 10**9 + 1))
    assert fingerprint(paths, root) != base
    os.utime(paths[0], ns=(0, 10**9))
    paths[1].write_text("1,2,3")
    os.utime(paths[1], ns=(0, 10**9))
    assert fingerprint(paths, root) != base
    with pytest.raises(DataError, match="No such file"):
        fingerprint([root / "c.csv"], root)
    with pytest.raises(DataError, match="outside"):
        fingerprint(paths, elsewhere)
