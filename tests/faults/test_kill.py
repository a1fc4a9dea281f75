"""kill -9 of the driver at seeded points of its writes and at seeded moments, and of Python workers in the middle of their work.

Faults come in chains over one output folder: every run resumes what the killed one before it left, and is killed in turn; the last one
may finish. At least thirty of them strike, over all stages and both formats.
"""

import os
import random
import shutil
import signal
import time

import psutil
import pytest

from .conftest import INJECTED, Refresh, content, refresh, when

pytestmark = pytest.mark.faults
FURTHEST = {"parquet": 24, "delta": 16}  # points passed in eight writes of a table, three or two each (twinlib/tables/faults.py)
CHAINS = {"parquet": (11, 12), "delta": (13, 14)}  # seeds
KILLS = {"parquet": 8, "delta": 6}  # of each chain


@pytest.mark.parametrize(("fmt", "seed"), [
    pytest.param(f, s, marks=[pytest.mark.delta] if f == "delta" else []) for f, seeds in CHAINS.items() for s in seeds
])
def test_a_night_killed_again_and_again_ends_with_the_same_tables(tiny, undisturbed, fmt, seed):
    chance, path, struck = random.Random(seed), tiny("killed", fmt), []
    for _ in range(3 * KILLS[fmt]):
        point = chance.randint(1, FURTHEST[fmt])
        run = Refresh(path, {"TWINLIB_FAULT": str(point)})
        code = run.run()
        assert code in (-signal.SIGKILL, 0), run.log
        if code == 0:  # nothing was left to do before the point: the chain begins anew
            assert content(path, fmt) == undisturbed
            shutil.rmtree(path.parent / "tables")
            continue
        finished = [line.split("stage=")[1].split()[0] for line in run.log.splitlines() if " status=" in line and "stage=" in line]
        struck.append(finished[-1] if finished else "none")
        INJECTED.append(f"{fmt}: driver killed at write point {point}, last stage that was done: {struck[-1]} (chain {seed})")
        if len(struck) == KILLS[fmt]:
            break
    assert refresh(path) == 0, Refresh(path, {}).log
    assert content(path, fmt) == undisturbed
    assert len(struck) == KILLS[fmt] and len(set(struck)) > 2  # in different stages


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
            INJECTED.append(f"parquet: driver killed a random while after stage {stage} (seed {seed})")
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
                INJECTED.append(f"parquet: a Python worker killed in the stage after {stage}")
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
