"""A run that is killed in the middle leaves tables that can be read, and the next run finishes the work."""

import os
import signal
import subprocess
import sys
import time

import pytest

from twinlib.tables import schemas
from twinlib.tables.query import connect

from .small import REPO, configured, night

pytestmark = pytest.mark.slow


@pytest.mark.parametrize("stage", ["ingest", "fit"])
def test_a_killed_run_is_finished_by_the_next(spark, tmp_path, stage):
    path = configured(tmp_path / "killed", spark={"spark.sql.shuffle.partitions": 2})
    log = tmp_path / "log"
    with log.open("w") as out:
        run = subprocess.Popen(
            [sys.executable, str(REPO / "jobs" / "refresh.py"), "--config", str(path)], stderr=out, stdout=out, start_new_session=True
        )
        deadline = time.monotonic() + 240
        while f"stage={stage} " not in log.read_text() and run.poll() is None and time.monotonic() < deadline:
            time.sleep(0.1)
        time.sleep(1)  # into the stage that follows
        assert run.poll() is None, log.read_text()
        os.killpg(run.pid, signal.SIGKILL)
        run.wait()
    assert connect(tmp_path / "killed").execute("SELECT count(*) FROM observations").fetchall()[0][0] > 0

    resumed, whole = night(path, spark), night(configured(tmp_path / "whole"), spark)
    done = {r.stage: r.status for r in resumed.storage.read(schemas.RUNS).collect() if r.run_id == resumed.runs.run_id}
    assert done["ingest"] == "unchanged" and done["effects"] == "done"
    for table in (schemas.OBSERVATIONS, schemas.TWINS, schemas.TWIN_PARAMETERS, schemas.OUTCOMES, schemas.COHORT_EFFECTS):
        a, b = (sorted(map(repr, n.storage.read(table).collect())) for n in (resumed, whole))
        assert a == b, table.name
