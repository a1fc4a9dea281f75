"""Disks, files, clocks and neighbours that misbehave: a clear error, and the same tables once the cause is gone."""

import os
import random
import shutil
import subprocess
import sys
import time
from datetime import datetime, timedelta

import psutil
import pytest

from twinlib.tables import schemas
from twinlib.tables.storage import LOCK

from .conftest import Refresh, content, injected, refresh

pytestmark = pytest.mark.faults
FORMATS = ["parquet", pytest.param("delta", marks=pytest.mark.delta)]
_HOLD = "import sys, filelock\nlock = filelock.FileLock(sys.argv[1])\nlock.acquire()\nprint('held', flush=True)\nsys.stdin.read()"


@pytest.fixture(params=FORMATS)
def finished(request, tiny):
    """A night that is done, with its format."""
    path = tiny("finished", request.param)
    run = Refresh(path, {})
    assert run.run() == 0, run.log
    return path, request.param


def test_damaged_files_are_named_and_a_table_moved_away_is_built_anew(finished, undisturbed):
    path, fmt = finished
    assert content(path, fmt) == undisturbed  # both formats hold the same
    chance, run = random.Random(5), Refresh(path, {})
    for table in chance.sample(["observations", "timelines", "twins", "outcomes"], 2):
        home = path.parent / "tables" / table
        newest = (home / (home / "CURRENT").read_text().strip()) if fmt == "parquet" else home
        file = chance.choice(sorted(newest.rglob("part-*.parquet")))
        with file.open("r+b") as f:  # the last bytes are the footer's length and the magic
            f.truncate(file.stat().st_size - 6)
        for crc in home.rglob(f".{file.name}.crc"):
            crc.unlink()
        assert run.run() == 5, run.log
        assert f"table {table}: {file} is damaged. Move the folder of the table away" in run.log
        injected(f"{fmt}: footer of {table} cut off")
        shutil.rmtree(home)
    if fmt == "parquet":
        pointer = path.parent / "tables" / "twins" / "CURRENT"
        if pointer.exists():
            good = pointer.read_text()
            pointer.write_text(good[:3])
            assert run.run() == 5 and "CURRENT is damaged" in run.log
            injected("parquet: pointer of twins cut off")
            pointer.write_text(good)
    assert run.run() == 0, run.log
    assert content(path, fmt) == undisturbed


@pytest.mark.parametrize("fmt", FORMATS)
def test_a_full_disk_stops_the_night_and_room_lets_it_go_on(tiny, undisturbed, fmt):
    """Spark's files may not grow beyond a few bytes any more (RLIMIT_FSIZE), which it meets as it meets a full disk: a write that fails."""
    path = tiny("full", fmt)
    run = Refresh(path, {})
    process = run.start()
    while "stage=fuse status=" not in run.log and process.poll() is None:
        time.sleep(0.05)
    (java,) = [p for p in psutil.Process(process.pid).children(recursive=True) if p.name() == "java"]
    java.rlimit(psutil.RLIMIT_FSIZE, (512, 512))
    assert process.wait(timeout=900) == 5, run.log
    assert "error: a disk cannot be written (File too large)" in run.log and "Traceback" not in run.log
    injected(f"{fmt}: no room on the disk after fuse")
    assert refresh(path) == 0
    assert content(path, fmt) == undisturbed


def test_a_folder_that_cannot_be_written_is_named(tiny, undisturbed):
    path = tiny("readonly")
    tables = path.parent / "tables"
    tables.write_text("a file where the folder should be")  # permissions do not stop root, who runs this in many places
    run = Refresh(path, {})
    assert run.run() == 5 and f"folder {tables} cannot be made" in run.log
    injected("parquet: output that cannot be written")
    tables.unlink()
    if os.geteuid():
        tables.mkdir(0o500)
        assert run.run() == 5 and "cannot be" in run.log
        tables.chmod(0o700)
    assert refresh(path) == 0
    assert content(path, "parquet") == undisturbed


@pytest.mark.parametrize("fmt", FORMATS)
def test_a_second_run_at_the_same_time_stops_with_a_message(tiny, undisturbed, fmt):
    path = tiny("two", fmt)
    tables = path.parent / "tables"
    tables.mkdir(0o700)
    holder = subprocess.Popen([sys.executable, "-c", _HOLD, str(tables / LOCK)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    try:
        assert holder.stdout.readline() == "held\n"
        run = Refresh(path, {})
        assert run.run() == 5 and "another run is writing these tables" in run.log
        injected(f"{fmt}: a second run at the same time")
    finally:
        holder.kill()
        holder.wait()
    assert refresh(path) == 0
    assert content(path, fmt) == undisturbed


def test_a_clock_set_back_does_not_confuse_what_is_done(spark, tmp_path, monkeypatch):
    """The manifest is read in the order in which it was written, not by its clock."""
    from twinlib.config import load
    from twinlib.tables import open_storage, runs

    from ..small import configured

    config = load(configured(tmp_path / "clock"))
    storage = open_storage(spark, config)
    back = timedelta(0)

    class Clock:
        @staticmethod
        def now(zone):
            return datetime.now(zone) - back

    monkeypatch.setattr(runs, "datetime", Clock)
    with runs.Runs(storage, config).stage("fit", "h1"):
        pass
    back = timedelta(days=400)
    with pytest.raises(ZeroDivisionError), runs.Runs(storage, config).stage("fit", "h2"):
        raise ZeroDivisionError
    assert runs.Runs(storage, config).last_input_hash("fit") is None  # the failure is the last, though its clock says otherwise
    with runs.Runs(storage, config).stage("fit", "h3"):
        pass
    assert runs.Runs(storage, config).last_input_hash("fit") == "h3"
    assert storage.read(schemas.RUNS).count() == 3
    injected("parquet: clock set back by 400 days")
