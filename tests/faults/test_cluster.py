"""A Spark standalone cluster on loopback: a master and two workers as processes of their own, the packed environment, spark-submit."""

import os
import shutil
import signal
import socket
import subprocess
import sys
import time
import urllib.request
from pathlib import Path

import pyspark
import pytest

from ..small import REPO
from .conftest import TINY, content, injected

pytestmark = [pytest.mark.faults, pytest.mark.slow]
SPARK = Path(pyspark.__file__).parent
STARTS = 120  # s


def free_port() -> int:
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        return s.getsockname()[1]


class Cluster:
    """Master and workers; each process leads a group, so that a worker dies with its executors."""

    def __init__(self, folder: Path):
        self.folder, self.port, self.web = folder, free_port(), free_port()
        self.url, self.processes = f"spark://127.0.0.1:{self.port}", []

    def _launch(self, name: str, *arguments: str) -> subprocess.Popen:
        log = (self.folder / f"{name}.log").open("w")
        environment = os.environ | {"SPARK_LOCAL_IP": "127.0.0.1", "SPARK_NO_DAEMONIZE": "1", "SPARK_LOCAL_DIRS": str(self.folder / name)}
        environment.pop("PYTHONPATH", None)  # the workers have the archive and nothing else
        command = [str(SPARK / "bin" / "spark-class"), *arguments]
        self.processes.append(subprocess.Popen(command, stdout=log, stderr=log, env=environment, start_new_session=True, cwd=self.folder))
        return self.processes[-1]

    def __enter__(self):
        master = ("org.apache.spark.deploy.master.Master", "--host", "127.0.0.1", "--port", str(self.port), "--webui-port", str(self.web))
        self._launch("master", *master)
        worker = ("org.apache.spark.deploy.worker.Worker", "--host", "127.0.0.1", "--cores", "1", "--memory", "1536m", "--webui-port", "0")
        self.workers = [self._launch(f"worker{k}", *worker, "--work-dir", str(self.folder / f"work{k}"), self.url) for k in (1, 2)]
        end = time.monotonic() + STARTS
        while time.monotonic() < end:
            try:
                page = urllib.request.urlopen(f"http://127.0.0.1:{self.web}/json/", timeout=5).read().decode()
                if page.count('"ALIVE"') >= 3:  # the master says it of itself too
                    return self
            except OSError:
                pass
            time.sleep(0.5)
        raise AssertionError("the cluster did not start: " + "".join(p.read_text()[-2000:] for p in self.folder.glob("*.log")))

    def __exit__(self, *_):
        for process in self.processes:
            if process.poll() is None:
                os.killpg(process.pid, signal.SIGKILL)
                process.wait()

    def submit(self, path: Path, archive: Path) -> subprocess.Popen:
        settings = {
            "spark.executor.memory": "1g", "spark.driver.memory": "1g", "spark.driver.host": "127.0.0.1", "spark.driver.bindAddress": "127.0.0.1",
            "spark.sql.shuffle.partitions": "2", "spark.executorEnv.NUMBA_CACHE_DIR": str(self.folder / "numba"),
            "spark.executorEnv.TWINLIB_KERNELS": str(self.folder / "kernels"),
        }
        command = [str(SPARK / "bin" / "spark-submit"), "--master", self.url, "--archives", f"{archive}#environment"]
        command += [x for k, v in settings.items() for x in ("--conf", f"{k}={v}")]
        environment = os.environ | {
            "PYSPARK_PYTHON": "./environment/bin/python", "PYSPARK_DRIVER_PYTHON": sys.executable, "PYTHONPATH": str(REPO),
            "SPARK_LOCAL_IP": "127.0.0.1",
        }
        log = (path.parent / "log").open("a")
        command += [str(REPO / "jobs" / "refresh.py"), "--config", str(path)]
        return subprocess.Popen(command, stdout=log, stderr=log, env=environment, start_new_session=True)


@pytest.fixture(scope="module")
def archive(tmp_path_factory) -> Path:
    """The environment of this Python, packed as docs/operations.md says."""
    out = tmp_path_factory.mktemp("packed") / "twinlib-env.zip"
    subprocess.run([sys.executable, str(REPO / "deploy" / "pack.py"), str(out)], check=True, timeout=600, stdout=subprocess.DEVNULL)
    yield out
    shutil.rmtree(out.parent)


@pytest.mark.parametrize("fault", [False, True], ids=["undisturbed", "a worker is killed during the fit"])
def test_a_cluster_gives_the_same_tables_as_one_machine(tiny, undisturbed, archive, tmp_path, fault):
    path = tiny("cluster", spark={k: v for k, v in TINY["spark"].items() if k == "spark.databricks.delta.snapshotPartitions"})
    log = path.parent / "log"
    (tmp_path / "processes").mkdir()
    with Cluster(tmp_path / "processes") as cluster:
        run = cluster.submit(path, archive)
        try:
            if fault:
                while not (log.exists() and "stage=fuse status=done" in log.read_text()) and run.poll() is None:
                    time.sleep(0.1)
                time.sleep(2)  # into the fit
                assert run.poll() is None and "stage=fit status=" not in log.read_text(), log.read_text()[-3000:]
                os.killpg(cluster.workers[0].pid, signal.SIGKILL)
                injected("parquet: a cluster's worker, its executor and Python workers killed during the fit")
            assert run.wait(timeout=900) == 0, log.read_text()[-4000:]
        finally:
            if run.poll() is None:
                os.killpg(run.pid, signal.SIGKILL)
    executors = list((tmp_path / "processes").glob("work*/app-*/*/environment/bin/python"))
    assert len(executors) == 2  # both workers ran the packed environment
    assert content(path, "parquet") == undisturbed
