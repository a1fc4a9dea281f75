"""Fixtures that every test may use: one Spark session, the real data sets, temporary storage."""

import os
from pathlib import Path

import pytest

REPO = Path(__file__).resolve().parents[1]


def pytest_configure(config):
    os.environ.setdefault("NUMBA_CACHE_DIR", str(REPO / "out" / "numba"))


@pytest.fixture(scope="session")
def spark():
    from twinlib.session import session

    s = session(
        "tests",
        {
            "spark.master": "local[2]",
            "spark.sql.shuffle.partitions": 2,
            "spark.driver.extraJavaOptions": "-XX:TieredStopAtLevel=1",
            "spark.driver.memory": "2g",
        },
        delta=os.environ.get("TWINLIB_TEST_DELTA") == "1",
    )
    yield s
    s.stop()


@pytest.fixture(scope="session")
def data() -> Path:
    """Folder of the real data sets: $TWINLIB_DATA, or shared/data beside the project."""
    for folder in filter(None, (os.environ.get("TWINLIB_DATA"), REPO.parent / "shared" / "data")):
        if Path(folder).is_dir():
            return Path(folder)
    pytest.skip("real data sets not found: set TWINLIB_DATA to their folder")
