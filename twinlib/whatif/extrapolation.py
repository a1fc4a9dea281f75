"""Whether a scenario leaves what the patient's record covers: there the twin is asked about something it has not seen."""

from __future__ import annotations

import numpy as np

from twinlib.models.timeline import Inputs
from twinlib.whatif.closed_loop import daily
from twinlib.whatif.replay import Arm, Replay
from twinlib.whatif.scenarios import Scenario
from twinlib.whatif.selection import DAY, Scene

_SLACK = 1e-6  # of rounding


def extrapolation(replay: Replay, scenario: Scenario, arm: Arm) -> str | None:
    """In what the scenario leaves the recorded range: daily amounts (mean over draws) by agent, agents that were never given, and parameters;
    None where it does not. Counts of days, no amounts."""
    recorded: Inputs = replay.past or replay.future
    record = Scene(replay.scene.begin or replay.scene.minutes)
    reasons = [f"{c.parameter} changed" for c in scenario.changes]
    for agent, given in arm.given.items():
        before, after = _whole(daily(recorded, agent, record), record), _whole(given.mean(axis=0), replay.scene)
        if not before.any():
            if (after > 0).any():
                reasons.append(f"{agent} never recorded")
            continue
        slack = _SLACK * before.max()
        above, below = int((after > before.max() + slack).sum()), int((after < before.min() - slack).sum())
        reasons += [f"{agent} {side} the recorded daily range on {n} of {len(after)} days" for side, n in (("above", above), ("below", below)) if n]
    return "; ".join(reasons) or None


def _whole(amounts: np.ndarray, scene: Scene) -> np.ndarray:
    """The amounts of whole days (of the part of a day where there is no whole one)."""
    return amounts[: max(int((scene.minutes - scene.begin) // DAY), 1)]
