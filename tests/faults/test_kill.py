"""kill -9 of the driver at seeded points of its writes and at seeded moments, and of Python workers in the middle of their work.

Faults come in chains over one output folder: every run resumes what the killed one before it left, and is killed in turn, stage after
stage; the last one may finish. At least thirty of them strike, over all stages and both formats.
"""

import os
import random
import shutil
import signal
import time

import psutil
import pytest

from .conftest import Refresh, content, injected, refresh, when

pytestmark = pytest.mark.faults
STAGES = ("ingest", "fuse", "fit", "simulate", "recommend", "effects")
WRITES = {"ingest": 9, "fuse": 2, "fit": 6, "simulate": 3, "recommend": 2, "effects": 3}  # of tables, the manifest's row among them
POINTS = {"parquet": 3, "delta": 2}  # of a write (twinlib/tables/faults.py)
CHAINS = {"parquet": (11, 12, 13), "delta": (14, 15)}  # seeds


@pytest.mark.parametrize(("fmt", "seed"), [
    pytest.param(f, s, marks=[pytest.mark.delta] if f == "delta" else []) for f, seeds in CHAINS.items() for s in seeds
])
def test_a_night_killed_in_every_stage_ends_with_the_same_tables(tiny, undisturbed, fmt, seed):
    chance, path, struck = random.Random(seed), tiny("killed", fmt), []
    for stage in STAGES:
        for _ in range(5):
            point = chance.randint(1, POINTS[fmt] * WRITES[stage])
            run = Refresh(path, {"TWINLIB_FAULT": f"{stage}:{point}"})
            code = run.run()
            if code == -signal.SIGKILL:
                struck.append(stage)
                injected(f"{fmt}: driver killed in {stage} at write point {point} (chain {seed})")
                break
            assert code == 0, run.log  # the run before it had left less to write than that
            assert content(path, fmt) == undisturbed
            shutil.rmtree(path.parent / "tables")
    assert tuple(struck) == STAGES
    assert refresh(path) == 0, Refresh(path, {}).log
    assert content(path, fmt) == undisturbed


@pytest.mark.parametrize("seed", [21, 22])
def test_a_night_killed_at_any_moment_ends_with_the_same_tables(tiny, undisturbed, seed):
    chance, path = random.Random(seed), tiny("moments")
    for kill in range(3):
        run = Refresh(path, {})
        process = run.start()
        stage = ("ingest", "fuse", "fit")[kill]  # the stage after which the clock starts
        before = run.log.count(f"stage={stage} status=") if (path.parent / "log").exists() else 0
        thread = when(lambda: run.log.count(f"stage={stage} status=") > before or process.poll() is not None, lambda _: None)
        thread.join(600)
        time.sleep(chance.uniform(0.0, 4.0))
        if process.poll() is None:
            os.killpg(process.pid, signal.SIGKILL)
            injected(f"parquet: driver killed a random while after stage {stage} (seed {seed})")
        process.wait()
    assert refresh(path) == 0
    assert content(path, "parquet") == undisturbed


def test_killed_workers_are_replaced_and_nothing_changes(tiny, undisturbed):
    """Python workers are killed while they fit and simulate; their tasks run again, and the night succeeds at the first try."""
    path = tiny("workers")
    run = Refresh(path, {})
    process, killed = run.start(), []
    for stage in ("fuse", "fit"):
        while f"stage={stage} status=" not in run.log and process.poll() is None:
            time.sleep(0.05)
        end = time.monotonic() + 30
        while time.monotonic() < end and process.poll() is None:
            workers = [p for p in psutil.Process(process.pid).children(recursive=True) if _is_worker(p)]
            if workers:
                workers[0].kill()
                killed.append(stage)
                injected(f"parquet: a Python worker killed in the stage after {stage}")
                break
            time.sleep(0.02)
    assert process.wait(timeout=900) == 0, run.log
    assert killed
    assert content(path, "parquet") == undisturbed


def _is_worker(process: psutil.Process) -> bool:
    """A forked worker (the daemon's child), not the daemon."""
    try:
        return "pyspark.daemon" in process.cmdline() and "pyspark.daemon" in process.parent().cmdline()
    except (psutil.Error, AttributeError):
        return False
