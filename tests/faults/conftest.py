"""What the fault suite shares: a tiny night as a process of its own, the cohort that all of them read, and the tables they must end with."""

import json
import os
import subprocess
import sys
import threading
import time
from dataclasses import dataclass
from pathlib import Path

import pyarrow.parquet as pq
import pytest
from filelock import FileLock

from twinlib.tables import schemas

from ..small import REPO, configured

TINY = {
    "generate": {"patients": 4, "days": 2, "start": "2026-01-05", "dirty": False},
    "episodes": {"days": 2},
    "storage": {"buckets": 2},
    "checkpoint_episodes": 2,
    "cohorts": [{"name": "everyone"}],
    "recommend": [{"name": "doses", "scenarios": ["bolus_*"], "objective": "tir"}],
    "spark": {
        "spark.master": "local[2,4]", "spark.sql.shuffle.partitions": 2, "spark.driver.memory": "1g",
        "spark.driver.extraJavaOptions": "-XX:TieredStopAtLevel=1 -XX:ReservedCodeCacheSize=240m",
        "spark.databricks.delta.snapshotPartitions": 1,
    },
}
SCENARIOS = "scenarios:\n  - name: as_is\n  - name: bolus_70\n    edits: [{do: scale, input: insulin_bolus, factor: 0.7}]\n"
COMPARED = (
    schemas.PATIENTS, schemas.OBSERVATIONS, schemas.EXPOSURES, schemas.EVENTS, schemas.QUARANTINE, schemas.INGEST_COUNTS, schemas.TIMELINES,
    schemas.POPULATIONS, schemas.TWINS, schemas.TWIN_PARAMETERS, schemas.OUTCOMES, schemas.RECOMMENDATIONS, schemas.COHORT_POLICIES,
    schemas.COHORT_EFFECTS,
)
INJECTED: list[tuple[str, str]] = []  # every fault that did strike, with the test, for the report at the end
FAILED: set[str] = set()  # tests


def injected(fault: str) -> None:
    INJECTED.append((os.environ["PYTEST_CURRENT_TEST"].rpartition(" ")[0], fault))


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item, call):
    found = yield
    if found.failed:
        FAILED.add(item.nodeid)
    return found


@dataclass
class Refresh:
    """jobs/refresh.py as a process in a session of its own, so that it can be killed with its JVM."""

    path: Path
    environment: dict[str, str]
    prefix: tuple[str, ...] = ()

    def start(self) -> subprocess.Popen:
        command = [*self.prefix, sys.executable, str(REPO / "jobs" / "refresh.py"), "--config", str(self.path)]
        log = (self.path.parent / "log").open("a")
        environment = os.environ | {"PYTHONPATH": str(REPO), "NUMBA_CACHE_DIR": str(REPO / "out" / "numba")} | self.environment
        return subprocess.Popen(command, stdout=log, stderr=log, start_new_session=True, env=environment)

    def run(self) -> int:
        return self.start().wait(timeout=900)

    @property
    def log(self) -> str:
        return (self.path.parent / "log").read_text()


def refresh(path: Path, prefix=(), **environment) -> int:
    """Exit code of a whole run; negative where a signal ended it."""
    return Refresh(path, environment, tuple(prefix)).run()


@pytest.fixture(scope="session")
def cohort(tmp_path_factory) -> Path:
    """Raw files of the cohort, made once."""
    from twinlib.config import load
    from twinlib.synthetic import generate

    config = load(configured(tmp_path_factory.mktemp("cohort"), **TINY))
    generate(config.generate, config.seed)
    return Path(config.generate.root)


@pytest.fixture
def tiny(cohort, tmp_path):
    """A function that makes a configuration for a night over the cohort; `change` edits a private copy of the raw files."""

    def make(name: str, fmt: str = "parquet", **changes) -> Path:
        folder = tmp_path / name
        path = configured(folder, **TINY | {"generate": None, "storage": TINY["storage"] | {"format": fmt}} | changes)
        (folder / "scenarios.yaml").write_text(SCENARIOS)
        text = path.read_text().replace(str(REPO / "conf" / "scenarios.yaml"), str(folder / "scenarios.yaml"))
        path.write_text(text.replace(str(folder / "raw"), str(cohort)))
        return path

    return make


def content(path: Path, fmt: str) -> dict[str, list]:
    """Every compared table as sorted rows, read without Spark."""
    root, out = path.parent / "tables", {}
    for table in COMPARED:
        home, names = root / table.name, [c.name for c in table.columns]
        if fmt == "delta":
            from deltalake import DeltaTable

            found = DeltaTable(str(home)).to_pyarrow_table(columns=names)
        else:
            folder = home / (home / "CURRENT").read_text().strip()
            found = pq.ParquetDataset(folder, partitioning=None).read(columns=names)
        out[table.name] = sorted(map(repr, found.to_pylist()))
    return out


@pytest.fixture(scope="session")
def undisturbed(cohort, tmp_path_factory):
    """The tables of a night that nothing disturbed. One for both formats: that these agree is a test of its own."""
    folder = tmp_path_factory.mktemp("undisturbed")
    path = configured(folder, **TINY | {"generate": None})
    (folder / "scenarios.yaml").write_text(SCENARIOS)
    text = path.read_text().replace(str(REPO / "conf" / "scenarios.yaml"), str(folder / "scenarios.yaml"))
    path.write_text(text.replace(str(folder / "raw"), str(cohort)))
    run = Refresh(path, {})
    assert run.run() == 0, run.log
    return content(path, "parquet")


@pytest.fixture(scope="session", autouse=True)
def report(request):
    """out/benchmarks/faults.json: what every test of this run has injected, beside those of earlier runs. What a test that failed has
    injected counts as not survived."""
    yield
    if INJECTED:
        out = REPO / "out" / "benchmarks" / "faults.json"
        out.parent.mkdir(parents=True, exist_ok=True)
        with FileLock(f"{out}.lock"):  # the suite may run in several processes
            known = json.loads(out.read_text()) if out.is_file() else {}
            known |= {test: [{"fault": f, "survived": test not in FAILED} for t, f in INJECTED if t == test] for test, _ in INJECTED}
            out.write_text(json.dumps(known, indent=1) + "\n")


def when(condition, act, every: float = 0.05, within: float = 600) -> threading.Thread:
    """A thread that calls `act` once as soon as `condition()` holds."""

    def watch():
        end = time.monotonic() + within
        while time.monotonic() < end:
            found = condition()
            if found:
                return act(found)
            time.sleep(every)

    thread = threading.Thread(target=watch, daemon=True)
    thread.start()
    return thread
