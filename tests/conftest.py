"""Fixtures that every test may use: one Spark session, the real data sets, temporary storage."""

import os
import tempfile
from pathlib import Path

import hypothesis
import pytest
from filelock import FileLock

REPO = Path(__file__).resolve().parents[1]


def pytest_configure(config):
    os.environ.setdefault("NUMBA_CACHE_DIR", str(REPO / "out" / "numba"))
    hypothesis.settings.register_profile("twinlib", deadline=None, suppress_health_check=[hypothesis.HealthCheck.too_slow])  # a busy machine is no defect
    hypothesis.settings.load_profile("twinlib")


@pytest.fixture(scope="session")
def spark():
    """The one session of the process: with Delta when its jars can be had, else a plain one."""
    from twinlib.errors import StorageError
    from twinlib.session import session

    conf = {
        "spark.master": "local[2]",
        "spark.sql.shuffle.partitions": 2,
        "spark.driver.extraJavaOptions": "-XX:TieredStopAtLevel=1 -XX:ReservedCodeCacheSize=512m",  # the small default fills up, and compiling stops
        "spark.driver.memory": "3g",
        "spark.buffer.pageSize": "4m",  # every small broadcast relation holds a page: of 64 MB by default, and a few dozen sources fill the heap
        "spark.databricks.delta.snapshotPartitions": 1,  # else 50 tasks to read the log of a table of two rows
    }
    with FileLock(Path(tempfile.gettempdir()) / "twinlib-tests.lock"):  # Spark's resolver fetches jars for one process at a time
        try:
            s = session("tests", conf, delta=True)
        except StorageError:
            s = session("tests", conf)
    yield s
    s.stop()


@pytest.fixture(autouse=True)
def delta_or_skip(request):
    """Tests marked `delta` are skipped without Delta's jars, and fail with TWINLIB_REQUIRE_DELTA=1."""
    if request.node.get_closest_marker("delta") is None:
        return
    from twinlib.errors import StorageError
    from twinlib.session import require_delta

    try:
        require_delta(request.getfixturevalue("spark"))
    except StorageError as e:
        if os.environ.get("TWINLIB_REQUIRE_DELTA") == "1":
            pytest.fail(f"TWINLIB_REQUIRE_DELTA is set: {e}")
        pytest.skip(f"DELTA IS NOT TESTED: {e}")


@pytest.fixture(scope="session")
def data() -> Path:
    """Folder of the real data sets: $TWINLIB_DATA, or shared/data beside the project."""
    for folder in filter(None, (os.environ.get("TWINLIB_DATA"), REPO.parent / "shared" / "data")):
        if Path(folder).is_dir():
            return Path(folder)
    pytest.skip("real data sets not found: set TWINLIB_DATA to their folder")


@pytest.fixture(scope="session")
def first(spark, tmp_path_factory):
    """The small run of the main job, done once for all tests; one of them lets it grow by a record."""
    from .small import configured, night

    return night(configured(tmp_path_factory.mktemp("refresh")), spark)
