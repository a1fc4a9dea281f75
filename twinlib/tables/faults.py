"""Where the fault suite (tests/faults) may stop a run: TWINLIB_FAULT=n kills it at the n-th point of its writes, as kill -9 would.

Not set, a point does nothing. The points stand where a crash could hurt: before a table's files are written, before they become
current, and after.
"""

from __future__ import annotations

import os
import signal
from itertools import count

_passed = count(1)


def point() -> None:
    """A place at which a run may be killed: its whole process group where it leads one, so that the JVM dies with it."""
    at = os.environ.get("TWINLIB_FAULT")
    if at and next(_passed) == int(at):
        if os.getpgrp() == os.getpid():
            os.killpg(0, signal.SIGKILL)
        os.kill(os.getpid(), signal.SIGKILL)
