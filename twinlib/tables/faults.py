"""Where the fault suite (tests/faults) may stop a run: TWINLIB_FAULT=fit:3 kills it at the third point of the stage's writes, as kill -9 would.

Not set, a point does nothing. The points stand where a crash could hurt: before a table's files are written, before they become
current, and after.
"""

from __future__ import annotations

import os
import signal
from itertools import count

_stage, _passed = "", count(1)


def entered(stage: str) -> None:
    """From now on points are those of this stage."""
    global _stage, _passed
    _stage, _passed = stage, count(1)


def point() -> None:
    """A place at which a run may be killed: its whole process group where it leads one, so that the JVM dies with it."""
    stage, _, number = os.environ.get("TWINLIB_FAULT", "").partition(":")
    if number and stage == _stage and next(_passed) == int(number):
        if os.getpgrp() == os.getpid():
            os.killpg(0, signal.SIGKILL)
        os.kill(os.getpid(), signal.SIGKILL)
