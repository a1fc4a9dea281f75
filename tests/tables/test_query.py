import subprocess
import sys
from datetime import datetime, timezone
from pathlib import Path

import pytest

from twinlib.errors import StorageError
from twinlib.tables.contracts import Table
from twinlib.tables.parquet import ParquetStorage
from twinlib.tables.query import connect
from twinlib.tables.schemas import ALERTS, PATIENTS, RUNS, TABLES

REPO = Path(__file__).resolve().parents[2]
NOON = datetime(2026, 7, 1, 12, tzinfo=timezone.utc)


@pytest.fixture(scope="module")
def output(spark, tmp_path_factory):
    """Output folder of a run, with a quote in its name: one empty table, one with a row."""
    folder = tmp_path_factory.mktemp("an analyst's")
    storage = ParquetStorage(spark, str(folder / "tables"), 4)
    storage.replace(PATIENTS, spark.createDataFrame([], PATIENTS.schema))
    row = ("r1", "fit", "done", NOON, 1.5, "c", "i", {"rows": 7}, None, 1, {"tasks": 3.0}, {"twins": "v000001-0"})
    storage.append(RUNS, spark.createDataFrame([row], RUNS.schema))
    return folder


def test_every_table_is_a_view_with_the_contract_s_columns(output):
    for folder in (output, output / "tables"):
        tables = connect(folder)
        assert {name for (name,) in tables.execute("SHOW TABLES").fetchall()} == set(TABLES)
        for table in (PATIENTS, ALERTS):  # written without rows, and not written at all
            assert tables.sql(f"SELECT * FROM {table.name}").columns == [c.name for c in table.columns]
            assert tables.execute(f"SELECT count(*) FROM {table.name}").fetchone() == (0,)
        found = tables.execute("SELECT stage, started_at::VARCHAR, seconds, counts['rows'], message FROM runs").fetchone()
        assert found == ("fit", "2026-07-01 12:00:00+00", 1.5, 7, None)


def test_a_table_of_an_older_version_has_nulls_for_what_it_did_not_know(spark, tmp_path):
    older = Table("runs", RUNS.meaning, RUNS.key, tuple(c for c in RUNS.columns if c.name not in ("sequence", "metrics", "table_versions")))
    row = ("r1", "fit", "done", NOON, 1.5, "c", "i", {"rows": 7}, None)
    ParquetStorage(spark, str(tmp_path / "tables"), 4).replace(older, spark.createDataFrame([row], older.schema))
    assert connect(tmp_path).execute("SELECT stage, sequence, metrics FROM runs").fetchall() == [("fit", None, None)]


def test_what_cannot_be_opened_is_named(output, tmp_path):
    with pytest.raises(StorageError, match="holds no tables"):
        connect(tmp_path / "absent")
    with pytest.raises(StorageError, match="holds no tables"):
        connect(tmp_path)
    (tmp_path / "twins" / "_delta_log").mkdir(parents=True)
    with pytest.raises(StorageError, match="holds Delta tables.*deltalake"):
        connect(tmp_path)


def query(*arguments):
    return subprocess.run([sys.executable, "jobs/query.py", *arguments], cwd=REPO, capture_output=True, text=True, timeout=60)


def test_the_job_prints_a_result_or_one_line_of_error(output):
    done = query(str(output), "SELECT stage, seconds FROM runs UNION ALL SELECT 'total', 9 ORDER BY 1", "--rows", "1")
    assert done.returncode == 0 and "fit" in done.stdout and "total" not in done.stdout and "only the first 1 rows" in done.stdout
    wrong = query(str(output), "SELECT nothing FROM nowhere")
    assert wrong.returncode == 2 and "nowhere" in wrong.stderr and "Traceback" not in wrong.stderr
    absent = query(str(output / "absent"), "SELECT 1")
    assert absent.returncode == 5 and "holds no tables" in absent.stderr
